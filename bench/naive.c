/* The naive RMP and direct map: rules of docs/rmp.md and docs/direct-map.md in the order in which they stand there. */
#include "naive.h"

#include <stdlib.h>
#include <string.h>

#define PAGE UINT64_C(4096)
#define REGION UINT64_C(512)
#define PAGE_OFFSET UINT64_C(0xffff888000000000)

/* rmp §1.1 */
#define ASSIGNED UINT64_C(1)
#define SIZE_2M UINT64_C(2)
#define IMMUTABLE UINT64_C(4)
#define COUNT_ONE UINT64_C(8)
#define COUNT (511 * COUNT_ONE)
#define STORED_GPA UINT64_C(0x0007fffffffff000)
#define GPA UINT64_C(0x0000fffffffff000) /* of 48 bits: a Milan's */
#define ASID_SHIFT 51
#define ASID (UINT64_C(0x3ff) << ASID_SHIFT)
#define VMSA (UINT64_C(1) << 61)
#define VALIDATED (UINT64_C(1) << 62)
#define LOCK (UINT64_C(1) << 63)
#define VMPL0_ALL UINT64_C(0x0f)

/* direct-map §1 */
#define P UINT64_C(1)
#define RW UINT64_C(2)
#define PSE UINT64_C(0x80)
#define PAT UINT64_C(0x80) /* of level 1 */
#define PAT_LARGE UINT64_C(0x1000)
#define NX (UINT64_C(1) << 63)
#define ADDRESS UINT64_C(0x000ffffffffff000)
#define BOOT_TABLE UINT64_C(0x067)
#define SPLIT_TABLE UINT64_C(0x063)
#define SMALL_LEAF UINT64_C(0x8000000000000163)
#define LARGE_LEAF UINT64_C(0x80000000000001e3)

struct naive *naive_open(uint64_t frames, uint64_t tables_max)
{
    struct naive *n = calloc(1, sizeof(*n));

    if (!n)
        return NULL;
    n->frames = frames;
    n->tables_max = tables_max;
    n->rmp = calloc(frames, sizeof(*n->rmp));
    n->tables = calloc(tables_max, sizeof(*n->tables));
    if (n->rmp && n->tables)
        return n;
    naive_close(n);
    return NULL;
}

void naive_close(struct naive *n)
{
    if (!n)
        return;
    free(n->rmp);
    free(n->tables);
    free(n);
}

/* ---- instructions ---- */

/* rmp §1.6: what an entry counts for its ASID */
static void count_asid(struct naive *n, uint64_t lo, bool more)
{
    const uint64_t pages = lo & SIZE_2M ? REGION : 1, asid = (lo & ASID) >> ASID_SHIFT;

    if (lo & ASSIGNED && asid)
        n->assigned[asid] += more ? pages : 0 - pages;
}

/* rmp §2.2 */
int naive_rmpupdate(struct naive *n, uint64_t pa, uint64_t gpa, bool assigned, bool size, bool immutable, uint64_t asid)
{
    const uint64_t pfn = pa / PAGE, fields = ASSIGNED | SIZE_2M | STORED_GPA | ASID;
    struct naive_entry *entry, *head;
    uint64_t lo;

    if ((size && pfn % REGION) || (!assigned && (immutable || asid)) || asid > 0x3ff || pfn >= n->frames)
        return 1;
    entry = &n->rmp[pfn];
    head = &n->rmp[pfn - pfn % REGION];
    if (entry->lo & IMMUTABLE)
        return 2;
    if (!size && head->lo & SIZE_2M && (entry == head || head->lo & ASSIGNED))
        return 4;
    for (unsigned i = 1; size && !(head->lo & SIZE_2M) && i < REGION; i++)
        if (head[i].lo & ASSIGNED)
            return 4;

    lo = (gpa & GPA) | asid << ASID_SHIFT | (assigned ? ASSIGNED : 0) | (assigned && size ? SIZE_2M : 0);
    count_asid(n, entry->lo, false);
    count_asid(n, lo, true);
    if (asid && (entry->lo & fields) == lo) /* keep or reset */
        lo |= entry->lo & (VALIDATED | VMSA);
    else
        entry->hi = VMPL0_ALL;
    if (immutable)
        lo |= IMMUTABLE | LOCK;
    if (size) {
        for (unsigned i = 1; i < REGION; i++)
            head[i] = (struct naive_entry){assigned ? ASSIGNED : 0, 0};
    } else if (entry == head) {
        lo |= head->lo & COUNT;
    } else if (assigned && !(entry->lo & ASSIGNED)) {
        head->lo += COUNT_ONE;
    } else if (!assigned && entry->lo & ASSIGNED) {
        head->lo -= COUNT_ONE;
    }
    entry->lo = lo;
    return 0;
}

/* rmp §2.3 */
int naive_psmash(struct naive *n, uint64_t pa)
{
    const uint64_t pfn = pa / PAGE;
    struct naive_entry first, *head;

    if (pa % (REGION * PAGE) || pfn >= n->frames)
        return 1;
    head = &n->rmp[pfn];
    if (!(head->lo & ASSIGNED) || !(head->lo & SIZE_2M) || head->lo & IMMUTABLE)
        return 7;
    first = (struct naive_entry){head->lo & ~(SIZE_2M | COUNT), head->hi};
    for (uint64_t i = 0; i < REGION; i++) {
        head[i].lo = (first.lo & ~GPA) | ((first.lo + i * PAGE) & GPA);
        head[i].hi = first.hi;
    }
    head->lo |= COUNT; /* the ASID's pages: less 512, and 512 more */
    return 0;
}

/* ---- the direct map ---- */

static int shift_of(int level)
{
    return 3 + 9 * level;
}

static uint64_t *slot_of(uint64_t *table, uint64_t pfn, int level)
{
    return &table[(PAGE_OFFSET + pfn * PAGE) >> shift_of(level) & 511];
}

void naive_boot(struct naive *n, int level)
{
    const uint64_t pages = UINT64_C(1) << (shift_of(level) - 12);

    memset(n->count, 0, sizeof(n->count));
    memset(n->tables[0], 0, PAGE);
    n->tables_used = 1;
    for (uint64_t pfn = 0; pfn < n->frames; pfn += pages) {
        uint64_t *table = n->tables[0];

        for (int at = 4; at > level; at--) {
            uint64_t *slot = slot_of(table, pfn, at);

            if (!*slot) {
                memset(n->tables[n->tables_used], 0, PAGE);
                *slot = n->tables_used++ * PAGE | BOOT_TABLE;
            }
            table = n->tables[(*slot & ADDRESS) / PAGE];
        }
        *slot_of(table, pfn, level) = pfn * PAGE | (level == 1 ? SMALL_LEAF : LARGE_LEAF);
        n->count[level]++;
    }
}

/* direct-map §3 */
struct naive_leaf naive_lookup(const struct naive *n, uint64_t pfn)
{
    struct naive_leaf leaf = {NULL, 0, true, false};
    uint64_t *table = n->tables[0];

    for (int level = 4; level >= 1; level--) {
        uint64_t *slot = slot_of(table, pfn, level);

        if (level > 1 && !*slot)
            break;
        if (level == 1 || !(*slot & P) || *slot & PSE) {
            leaf.entry = slot;
            leaf.level = level;
            break;
        }
        leaf.rw = leaf.rw && *slot & RW;
        leaf.nx = leaf.nx || *slot & NX;
        table = n->tables[(*slot & ADDRESS) / PAGE];
    }
    return leaf;
}

/* direct-map §4.4 */
static int split(struct naive *n, struct naive_leaf leaf)
{
    const int below = leaf.level - 1;
    const uint64_t size = UINT64_C(1) << shift_of(leaf.level);
    const uint64_t address = *leaf.entry & ADDRESS & ~(size - 1);
    uint64_t flags = *leaf.entry & ~(ADDRESS & ~(size - 1)), *table;

    if (n->tables_used == n->tables_max)
        return -12;
    table = n->tables[n->tables_used];
    if (below == 1)
        flags = (flags & ~(PSE | PAT_LARGE)) | (flags & PAT_LARGE ? PAT : 0);
    for (uint64_t i = 0; i < 512; i++)
        table[i] = (address + (i << shift_of(below))) | flags;
    n->count[leaf.level]--;
    n->count[below] += 512;
    *leaf.entry = n->tables_used++ * PAGE | SPLIT_TABLE;
    return 0;
}

/* direct-map §4: before 6.15 it sets and clears nothing, so a split is all that there is to do */
int naive_set_memory_4k(struct naive *n, uint64_t pfn, uint64_t pages)
{
    for (const uint64_t end = pfn + pages; pfn < end;) {
        struct naive_leaf leaf = naive_lookup(n, pfn);

        if (leaf.entry && leaf.level > 1) {
            if (split(n, leaf)) {
                            return -12;
            }
        } else {
            pfn++;
        }
    }
    return 0;
}

/* ---- loops ---- */

void naive_prepare_psmash(struct naive *n, uint64_t regions)
{
    memset(n->rmp, 0, regions * REGION * sizeof(*n->rmp));
    memset(n->assigned, 0, sizeof(n->assigned));
    for (uint64_t i = 0; i < regions; i++)
        naive_rmpupdate(n, i * REGION * PAGE, 0, true, true, false, 5);
}

uint64_t naive_run_psmash(struct naive *n, uint64_t regions)
{
    uint64_t done = 0;

    for (uint64_t i = 0; i < regions; i++)
        done += !naive_psmash(n, i * REGION * PAGE);
    return done;
}

/* Assign them all, then unassign them. */
uint64_t naive_run_rmpupdate_4k(struct naive *n, const uint64_t *frames, uint64_t count)
{
    uint64_t done = 0;

    for (uint64_t i = 0; i < count; i++)
        done += !naive_rmpupdate(n, frames[i] * PAGE, frames[i] * PAGE, true, false, false, 5);
    for (uint64_t i = 0; i < count; i++)
        done += !naive_rmpupdate(n, frames[i] * PAGE, frames[i] * PAGE, false, false, false, 0);
    return done;
}

/* 2 MiB leaves, but for one region in each GiB. */
void naive_prepare_2m_leaves(struct naive *n, uint64_t regions)
{
    naive_boot(n, 3);
    for (uint64_t i = 511; i < regions + 511; i += 512)
        naive_set_memory_4k(n, i * REGION, 1);
}

uint64_t naive_split_2m_leaves(struct naive *n, uint64_t regions)
{
    const uint64_t before = n->tables_used;

    for (uint64_t i = 0; i < regions; i++)
        if (i % 512 != 511)
            naive_set_memory_4k(n, i * REGION + 7, 1);
    return n->tables_used - before;
}

uint64_t naive_run_lookup(const struct naive *n, const uint64_t *frames, uint64_t count, uint64_t *sum)
{
    *sum = 0;
    for (uint64_t i = 0; i < count; i++)
        *sum += *naive_lookup(n, frames[i]).entry;
    return count;
}
