/* The machine that the rows are measured on, the rows' loops, and the bare loops that are their limits. */
#include "rows.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "rmpcore/rmpcore.h"
#include "rmpcore/sparse.h"

#define GIB (UINT64_C(1) << 30)
#define REGION (RMPC_REGION_FRAMES * RMPC_PAGE_SIZE)
#define REGION_BYTES (RMPC_REGION_FRAMES * RMPC_RMP_ENTRY_SIZE)
#define ARENA (UINT64_C(160) << 20) /* table pages, at the top of memory */
#define DRAWN (UINT64_C(512) << 10) /* random frames */
#define PAGE_OFFSET UINT64_C(0xffff888000000000)

/* Regions, or GiB: what a loop writes in WARM of them stays in the second-level cache; COLD is far beyond it, as a page
 * fresh from an allocator is to the kernel. */
#define WARM 128
#define COLD 32000

/* RAM from 0, the pages of its tables at the top of it, an RMP above it. */
struct bench {
    const struct bench_row *row;
    uint64_t size;
    struct rmpc_range ranges[2]; /* the arena at the top of RAM; the RMP */
    struct rmpc_extent memory;
    struct rmpc_extent arena;
    struct rmpc_pool pool;
    struct rmpc_mem mem;
    struct rmpc_frames mapped[8];
    struct rmpc_dmap dmap;
    struct rmpc_rmp rmp;
    struct rmpc_rmp_segment segment;
    uint32_t *words; /* of the RMP's regions */
    struct rmpc_cpu cpu;
    struct rmpc_host host;
    struct rmpc_rmp_entry *entries;
    uint64_t *frames; /* DRAWN random ones, none in the last GiB, where the tables are */
    struct rmpc_access *accesses, *copies; /* DRAWN of them */
    struct rmpc_outcome *outcomes;
    uint64_t done;         /* pieces of work of the round, 0: something went wrong */
    volatile uint64_t sum; /* what the bare loops have read, so that they do */
};

/* ---- the machine ---- */

static int boot(struct bench *b, int large_level)
{
    struct rmpc_dmap_config config = {
        .levels = 4,
        .large_level = large_level,
        .page_offset = PAGE_OFFSET,
        .supported_mask = UINT64_MAX,
        .default_mask = UINT64_MAX,
        .cache_modes = RMPC_CACHE_MODES_PAT,
    };
    struct rmpc_e820 row = {0, b->size, RMPC_E820_USABLE};
    struct rmpc_boot_memory memory = {&b->memory, 1, NULL, 0, &row, 1, b->size >> RMPC_PAGE_SHIFT};

    rmpc_pool_init(&b->pool);
    rmpc_kernel_init(&config.kernel, 6, 12);
    return rmpc_dmap_init(&b->dmap, &b->mem, &config, b->mapped, 8, NULL) == RMPC_OK &&
           rmpc_dmap_boot(&b->dmap, &memory) == RMPC_OK;
}

static void draw(struct bench *b)
{
    uint64_t state = 88172645463325252;

    for (uint64_t i = 0; i < DRAWN; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b->frames[i] = state % ((b->size - ARENA) >> RMPC_PAGE_SHIFT);
    }
}

void bench_close(struct bench *b)
{
    if (!b)
        return;
    rmpc_sparse_unmap(&b->ranges[0]);
    rmpc_sparse_unmap(&b->ranges[1]);
    free(b->words);
    free(b->frames);
    free(b->accesses);
    free(b->copies);
    free(b->outcomes);
    free(b);
}

static int add_rmp(struct bench *b)
{
    const struct rmpc_rmp_msrs msrs = {b->size, b->size + b->ranges[1].size - 1, 0};
    struct rmpc_hardware hardware;

    b->words = calloc((size_t)(b->size / REGION), sizeof(*b->words));
    if (!b->words || rmpc_hardware_init(&hardware, RMPC_PART_MILAN) != RMPC_OK ||
        rmpc_rmp_init(&b->rmp, &msrs, &b->mem, &hardware, 0, &b->segment, b->words) != RMPC_OK)
        return 0;
    b->host = (struct rmpc_host){
        .dmap = &b->dmap, .rmp = &b->rmp, .cpu = &b->cpu, .memory = &b->memory, .memory_count = 1};
    b->entries = b->segment.entries;
    return 1;
}

struct bench *bench_open(const struct bench_row *row, bool dense)
{
    struct bench *b = calloc(1, sizeof(*b));

    if (!b)
        return NULL;
    b->row = row;
    b->size = row->gib * GIB;
    b->memory = (struct rmpc_extent){0, b->size};
    b->arena = (struct rmpc_extent){b->size - ARENA, ARENA};
    b->ranges[0] = (struct rmpc_range){b->arena.base, ARENA, NULL};
    b->ranges[1] = (struct rmpc_range){
        b->size, RMPC_RMP_BOOKKEEPING + (b->size >> RMPC_PAGE_SHIFT) * RMPC_RMP_ENTRY_SIZE, NULL};
    b->mem = (struct rmpc_mem){.ranges = b->ranges,
                               .count = row->rmp ? 2 : 1,
                               .alloc = rmpc_pool_alloc,
                               .free = rmpc_pool_free,
                               .user = &b->pool};
    for (size_t i = 0; i < b->mem.count; i++) {
        if (rmpc_sparse_map(&b->ranges[i], i == 0 || dense) != RMPC_OK)
            goto fail;
        memset(b->ranges[i].host, 0, (size_t)b->ranges[i].size);
    }
    b->pool = (struct rmpc_pool){.mem = &b->mem, .memory = &b->arena, .memory_count = 1};
    b->frames = malloc(DRAWN * sizeof(*b->frames));
    b->accesses = calloc(DRAWN, sizeof(*b->accesses));
    b->copies = calloc(DRAWN, sizeof(*b->copies));
    b->outcomes = calloc(DRAWN, sizeof(*b->outcomes));
    if (!b->frames || !b->accesses || !b->copies || !b->outcomes || !boot(b, 3) || (row->rmp && !add_rmp(b)))
        goto fail;
    draw(b);
    return b;
fail:
    bench_close(b);
    return NULL;
}

/* ---- what several limits are made of ---- */

static uint8_t *arena_end(const struct bench *b)
{
    return (uint8_t *)b->ranges[0].host + ARENA;
}

/* A memset of each of the table pages that the path has just filled, in the order in which they are given out. */
static void memset_tables(struct bench *b)
{
    for (uint64_t i = 1; i <= b->done; i++)
        memset(arena_end(b) - i * RMPC_PAGE_SIZE, 1, RMPC_PAGE_SIZE);
}

/* A memset of the entries of as many regions. */
static void memset_regions(struct bench *b)
{
    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        memset(b->entries + i * RMPC_REGION_FRAMES, 1, REGION_BYTES);
}

static uint64_t *bare_walk(const struct bench *b, const uint8_t *arena, uint64_t pfn)
{
    const uint64_t va = PAGE_OFFSET + (pfn << RMPC_PAGE_SHIFT);
    uint64_t pointer = b->dmap.root;

    for (int shift = 39;; shift -= 9) {
        uint64_t *entry = (uint64_t *)(void *)(arena + (pointer & RMPC_PTE_ADDRESS)) + (va >> shift & 511);
        if (shift == 12 || *entry & RMPC_PTE_PSE)
            return entry;
        pointer = *entry;
    }
}

static const uint8_t *arena_origin(const struct bench *b)
{
    return (const uint8_t *)b->ranges[0].host - b->arena.base;
}

static void none(struct bench *b)
{
    (void)b;
}

/* ---- boot; argument: the level of the largest leaves ---- */

static void run_boot(struct bench *b)
{
    b->done = boot(b, b->row->argument) ? b->dmap.counters.table_pages : 0;
}

/* ---- splits; argument: regions, or GiB ---- */

static int split_4k(struct bench *b, uint64_t pfn)
{
    return rmpc_set_memory(&b->dmap, RMPC_SET_MEMORY_4K, rmpc_dmap_pages(&b->dmap, pfn, 1));
}

/* A fresh direct map whose regions are mapped by 2 MiB leaves, but for one in each GiB. */
static void prepare_2m_leaves(struct bench *b)
{
    const uint64_t regions = (uint64_t)b->row->argument;

    boot(b, 3);
    for (uint64_t gib = 0; gib * 512 < regions; gib++)
        split_4k(b, (gib * 512 + 511) * RMPC_REGION_FRAMES);
}

static void split_2m_leaves(struct bench *b)
{
    const uint64_t before = b->dmap.counters.splits[2];

    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        if (i % 512 != 511)
            split_4k(b, i * RMPC_REGION_FRAMES + 7);
    b->done = b->dmap.counters.splits[2] - before;
}

static bool may_restore(const void *user, uint64_t pfn, uint64_t pages)
{
    (void)user;
    (void)pfn;
    return pages == RMPC_REGION_FRAMES; /* no 1 GiB leaves: they would be split again */
}

static void collapse_2m_leaves(struct bench *b)
{
    const uint64_t before = b->dmap.counters.collapses[2];

    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        if (i % 512 != 511)
            rmpc_dmap_restore(&b->dmap, i * RMPC_REGION_FRAMES + 7, may_restore, NULL);
    b->done = b->dmap.counters.collapses[2] - before;
}

static void prepare_collapse(struct bench *b)
{
    prepare_2m_leaves(b);
    split_2m_leaves(b);
}

/* 2 MiB leaves again, table pages having been used and given back. */
static void prepare_2m_reused(struct bench *b)
{
    prepare_collapse(b);
    collapse_2m_leaves(b);
}

/* A load of every entry of the tables. */
static void read_tables(struct bench *b)
{
    uint64_t sum = 0;

    for (uint64_t i = 1; i <= b->done; i++) {
        const uint64_t *table = (const uint64_t *)(const void *)(arena_end(b) - i * RMPC_PAGE_SIZE);
        for (unsigned j = 0; j < 512; j++)
            sum += table[j];
    }
    b->sum = sum;
}

static void prepare_boot(struct bench *b)
{
    boot(b, 3);
}

/* Splits of 1 GiB leaves alone: a 2 MiB range of each gets other attributes. */
static void split_1g_leaves(struct bench *b)
{
    const uint64_t before = b->dmap.counters.splits[3];

    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        rmpc_set_memory(&b->dmap, RMPC_SET_MEMORY_RO,
                        rmpc_dmap_pages(&b->dmap, (i * 512 + 7) * RMPC_REGION_FRAMES, RMPC_REGION_FRAMES));
    b->done = b->dmap.counters.splits[2] ? 0 : b->dmap.counters.splits[3] - before;
}

/* set_memory_4k() over ranges of 1 GiB. */
static void run_set_memory_4k(struct bench *b)
{
    const uint64_t frames = GIB >> RMPC_PAGE_SHIFT;
    const uint64_t before = b->dmap.counters.table_pages;

    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        rmpc_set_memory(&b->dmap, RMPC_SET_MEMORY_4K, rmpc_dmap_pages(&b->dmap, i * frames, frames));
    b->done = b->dmap.counters.table_pages - before;
}

/* ---- single pages of the direct map; argument: the level of the leaves ---- */

static void prepare_leaves(struct bench *b)
{
    boot(b, b->row->argument);
}

static void run_invalid_default(struct bench *b)
{
    int failed = 0;

    for (uint64_t i = 0; i < DRAWN; i++)
        failed |= rmpc_set_direct_map_invalid_noflush(&b->dmap, b->frames[i]);
    for (uint64_t i = 0; i < DRAWN; i++)
        failed |= rmpc_set_direct_map_default_noflush(&b->dmap, b->frames[i]);
    b->done = failed ? 0 : 2 * DRAWN;
}

static void bare_invalid_default(struct bench *b)
{
    const uint8_t *arena = arena_origin(b);

    for (int pass = 0; pass < 2; pass++)
        for (uint64_t i = 0; i < DRAWN; i++)
            *(volatile uint64_t *)bare_walk(b, arena, b->frames[i]) ^= RMPC_PTE_P | RMPC_PTE_RW;
}

/* Bit 62 of an entry, which is clear: whoever looks at it has to have the entry first. */
static uint64_t after(uint64_t entry)
{
    return entry >> 62 & 1;
}

/* Each lookup needs the one before, as a processor needs its walk before it goes on. */
static void run_lookup(struct bench *b)
{
    uint64_t last = 0;

    for (uint64_t i = 0; i < DRAWN; i++)
        last = *rmpc_dmap_lookup(&b->dmap, rmpc_dmap_address(&b->dmap, b->frames[i] ^ after(last))).entry;
    b->sum = last;
    b->done = DRAWN;
}

static void bare_lookup(struct bench *b)
{
    const uint8_t *arena = arena_origin(b);
    uint64_t last = 0;

    for (uint64_t i = 0; i < DRAWN; i++)
        last = *bare_walk(b, arena, b->frames[i] ^ after(last));
    b->sum = last;
}

/* None needs another: as many walks at once as the processor can keep track of. */
static void run_lookups_at_once(struct bench *b)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < DRAWN; i++)
        sum += *rmpc_dmap_lookup(&b->dmap, rmpc_dmap_address(&b->dmap, b->frames[i])).entry;
    b->sum = sum;
    b->done = DRAWN;
}

static void bare_lookups_at_once(struct bench *b)
{
    const uint8_t *arena = arena_origin(b);
    uint64_t sum = 0;

    for (uint64_t i = 0; i < DRAWN; i++)
        sum += *bare_walk(b, arena, b->frames[i]);
    b->sum = sum;
}

static void run_host_write(struct bench *b)
{
    uint64_t refused = 0;

    rmpc_host_access_all(&b->host, b->frames, DRAWN, RMPC_HOST_WRITE, b->outcomes);
    for (uint64_t i = 0; i < DRAWN; i++)
        refused += b->outcomes[i].kind != RMPC_OUTCOME_ALLOWED;
    b->done = refused ? 0 : DRAWN;
}

/* The walk, a load of the page's RMP entry, a store of the outcome. */
static void bare_host_write(struct bench *b)
{
    const uint8_t *arena = arena_origin(b);
    uint64_t sum = 0;

    for (uint64_t i = 0; i < DRAWN; i++) {
        sum += *bare_walk(b, arena, b->frames[i]) + *(volatile uint64_t *)&b->entries[b->frames[i]].lo;
        b->outcomes[i] = rmpc_outcome_code(0);
    }
    b->sum = sum;
}

/* ---- RMP instructions; argument: regions ---- */

/* Make them assigned 2M entries, unassigning whatever is there. */
static void prepare_psmash(struct bench *b)
{
    const struct rmpc_rmp_state state = rmpc_rmp_state_make(0, 1, 1, 0, 5);

    memset(b->entries, 0, (size_t)((uint64_t)b->row->argument * REGION_BYTES));
    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        rmpc_rmpupdate(&b->rmp, &b->cpu, i * REGION, state);
}

static void run_psmash(struct bench *b)
{
    uint64_t failed = 0;

    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        failed += rmpc_psmash(&b->rmp, &b->cpu, i * REGION).code;
    b->done = failed ? 0 : (uint64_t)b->row->argument;
}

static void prepare_shared(struct bench *b)
{
    memset(b->entries, 0, (size_t)((uint64_t)b->row->argument * REGION_BYTES));
}

static void run_rmpupdate_2m(struct bench *b)
{
    const struct rmpc_rmp_state state = rmpc_rmp_state_make(0, 1, 1, 0, 5);
    uint64_t failed = 0;

    for (uint64_t i = 0; i < (uint64_t)b->row->argument; i++)
        failed += rmpc_rmpupdate(&b->rmp, &b->cpu, i * REGION, state).code;
    b->done = failed ? 0 : (uint64_t)b->row->argument;
}

static void update(struct bench *b, const uint64_t *frames, bool assigned)
{
    const uint64_t ahead = 8; /* as rmpc_rmp_prefetch() says */
    uint64_t failed = 0;

    for (uint64_t i = 0; i < DRAWN; i++) {
        const uint64_t pfn = frames ? frames[i] : i;

        if (frames && i + ahead < DRAWN)
            rmpc_rmp_prefetch(&b->rmp, frames[i + ahead]);
        failed += rmpc_rmpupdate(&b->rmp, &b->cpu, pfn << RMPC_PAGE_SHIFT,
                                 rmpc_rmp_state_make(pfn << RMPC_PAGE_SHIFT, assigned, 0, 0, assigned ? 5 : 0)).code;
    }
    b->done = failed ? 0 : b->done + DRAWN;
}

static void prepare_random(struct bench *b)
{
    b->done = 0;
    update(b, b->frames, false);
}

/* Assign, and unassign, pages one by one. */
static void run_rmpupdate_4k(struct bench *b)
{
    const uint64_t *frames = b->row->argument ? b->frames : NULL;

    b->done = 0;
    update(b, frames, true);
    update(b, frames, false);
}

/* A load of the head's entry, an atomic 16-byte read-modify-write of the page's own, at the same addresses. */
static void bare_rmpupdate_4k(struct bench *b)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < 2 * DRAWN; i++) {
        const uint64_t pfn = b->row->argument ? b->frames[i % DRAWN] : i % DRAWN;
        struct rmpc_rmp_entry *entry = &b->entries[pfn];
        uint64_t lo = entry->lo, hi = entry->hi;
        unsigned char done;

        sum += *(volatile uint64_t *)&b->entries[pfn & ~(RMPC_REGION_FRAMES - 1)].lo;
        do
            __asm__ volatile("lock cmpxchg16b %1; sete %0"
                             : "=q"(done), "+m"(*entry), "+a"(lo), "+d"(hi)
                             : "b"(lo ^ 1), "c"(hi)
                             : "cc", "memory");
        while (!done);
    }
    b->sum = sum;
}

/* snp_lookup_rmpentry(). */
static void run_rmp_lookup(struct bench *b)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < DRAWN; i++) {
        bool assigned = false;
        int level = 0;

        sum += (uint64_t)rmpc_snp_lookup_rmpentry(&b->host, b->frames[i], &assigned, &level) + assigned;
    }
    b->sum = sum;
    b->done = sum ? 0 : DRAWN; /* no page is assigned */
}

/* A load of the head's entry and one of the page's. */
static void bare_rmp_lookup(struct bench *b)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < DRAWN; i++)
        sum += *(volatile uint64_t *)&b->entries[b->frames[i]].lo +
               *(volatile uint64_t *)&b->entries[b->frames[i] & ~(RMPC_REGION_FRAMES - 1)].lo;
    b->sum = sum;
}

/* ---- the RMP's checks of accesses ---- */

/* Writes of the host and reads of a guest, page by page. */
static void prepare_accesses(struct bench *b)
{
    for (uint64_t i = 0; i < DRAWN; i++)
        b->accesses[i] = (struct rmpc_access){.pa = i << RMPC_PAGE_SHIFT,
                                              .gpa = i << RMPC_PAGE_SHIFT,
                                              .va = PAGE_OFFSET + (i << RMPC_PAGE_SHIFT),
                                              .asid = i % 2 ? 5 : 0,
                                              .who = i % 2 ? RMPC_WHO_SNP : RMPC_WHO_HOST,
                                              .kind = i % 2 ? RMPC_READ : RMPC_WRITE,
                                              .level = 1};
}

static void run_check(struct bench *b)
{
    for (uint64_t i = 0; i < DRAWN; i++)
        b->outcomes[i] = rmpc_rmp_check(&b->rmp, &b->accesses[i]);
    b->done = DRAWN;
}

static void run_check_all(struct bench *b)
{
    size_t done = 0;

    b->done = rmpc_rmp_check_all(&b->rmp, b->accesses, DRAWN, b->outcomes, &done) == RMPC_OK ? done : 0;
}

/* A copy of the accesses, and of as many bytes as outcomes and entries have. */
static void bare_check(struct bench *b)
{
    memcpy(b->copies, b->accesses, DRAWN * sizeof(*b->copies));
    memcpy(b->outcomes, b->entries, DRAWN * sizeof(*b->outcomes));
}

/* ---- the table ---- */

#define TABLES "memset of the table pages"
#define WALK "bare loads of the same walk"
#define RMW "load of the head, atomic read-modify-write of the entry"
#define ENTRIES "memset of the region's 8 KiB of entries"

static const struct bench_row rows[] = {
    /* name, group, limit, most, GiB, RMP, argument, prepare, run, bare */
    {"boot_4k", "boot", TABLES, 1.2, 64, false, 1, none, run_boot, memset_tables},
    {"boot_2m", "boot", TABLES, 0, 64, false, 2, none, run_boot, memset_tables},
    {"boot_1g", "boot", TABLES, 0, 64, false, 3, none, run_boot, memset_tables},
    {"split_2m_cold", "split", TABLES, 1.3, 64, false, COLD, prepare_2m_leaves, split_2m_leaves, memset_tables},
    {"split_2m_warm", "split", TABLES, 2, 64, false, WARM, prepare_2m_leaves, split_2m_leaves, memset_tables},
    {"split_2m_cold_reused", "split", TABLES, 0, 64, false, COLD, prepare_2m_reused, split_2m_leaves, memset_tables},
    {"split_2m_warm_reused", "split", TABLES, 0, 64, false, WARM, prepare_2m_reused, split_2m_leaves, memset_tables},
    {"split_1g_cold", "split", TABLES, 1.3, 32768, false, COLD, prepare_boot, split_1g_leaves, memset_tables},
    {"split_1g_warm", "split", TABLES, 2, 32768, false, WARM, prepare_boot, split_1g_leaves, memset_tables},
    {"set_memory_4k", "split", TABLES, 0, 64, false, 64, prepare_boot, run_set_memory_4k, memset_tables},
    {"collapse_cold", "collapse", "load of every entry", 0, 64, false, COLD, prepare_collapse, collapse_2m_leaves,
     read_tables},
    {"collapse_warm", "collapse", "load of every entry", 0, 64, false, WARM, prepare_collapse, collapse_2m_leaves,
     read_tables},
    {"invalid_default", "single page", "walk, and a store", 0, 64, false, 1, prepare_leaves, run_invalid_default,
     bare_invalid_default},
    {"lookup_4k", "lookup", WALK, 1.2, 64, false, 1, prepare_leaves, run_lookup, bare_lookup},
    {"lookup_2m", "lookup", WALK, 0, 64, false, 2, prepare_leaves, run_lookup, bare_lookup},
    {"lookup_1g", "lookup", WALK, 0, 64, false, 3, prepare_leaves, run_lookup, bare_lookup},
    {"lookup_4k_at_once", "lookup", WALK, 0, 64, false, 1, prepare_leaves, run_lookups_at_once, bare_lookups_at_once},
    {"psmash_cold", "PSMASH", ENTRIES, 1.3, 64, true, COLD, prepare_psmash, run_psmash, memset_regions},
    {"psmash_warm", "PSMASH", ENTRIES, 2, 64, true, WARM, prepare_psmash, run_psmash, memset_regions},
    {"rmpupdate_4k_in_order", "RMPUPDATE", RMW, 0, 64, true, 0, none, run_rmpupdate_4k, bare_rmpupdate_4k},
    {"rmpupdate_4k_1g", "RMPUPDATE", RMW, 0, 1, true, 1, prepare_random, run_rmpupdate_4k, bare_rmpupdate_4k},
    {"rmpupdate_4k_64g", "RMPUPDATE", RMW, 1.3, 64, true, 1, prepare_random, run_rmpupdate_4k, bare_rmpupdate_4k},
    {"rmpupdate_4k_1024g", "RMPUPDATE", RMW, 0, 1024, true, 1, prepare_random, run_rmpupdate_4k, bare_rmpupdate_4k},
    {"rmpupdate_2m_cold", "RMPUPDATE", ENTRIES, 0, 64, true, COLD, prepare_shared, run_rmpupdate_2m, memset_regions},
    {"rmpupdate_2m_warm", "RMPUPDATE", ENTRIES, 0, 64, true, WARM, prepare_shared, run_rmpupdate_2m, memset_regions},
    {"snp_lookup_rmpentry", "lookup", "load of the entry and of the head", 0, 64, true, 1, bare_rmp_lookup,
     run_rmp_lookup, bare_rmp_lookup},
    {"check_single", "check", "memcpy of the same bytes", 0, 64, true, 0, prepare_accesses, run_check, bare_check},
    {"check_batch", "check", "memcpy of the same bytes", 0, 64, true, 0, prepare_accesses, run_check_all, bare_check},
    {"host_write_4k", "check", "walk, load of the entry, store of the outcome", 0, 64, true, 1, prepare_leaves,
     run_host_write, bare_host_write},
    {"host_write_2m", "check", "walk, load of the entry, store of the outcome", 0, 64, true, 2, prepare_leaves,
     run_host_write, bare_host_write},
    {"host_write_1g", "check", "walk, load of the entry, store of the outcome", 0, 64, true, 3, prepare_leaves,
     run_host_write, bare_host_write},
};

size_t bench_row_count(void)
{
    return sizeof(rows) / sizeof(rows[0]);
}

const struct bench_row *bench_row(size_t i)
{
    return i < bench_row_count() ? &rows[i] : NULL;
}

void bench_prepare(struct bench *b)
{
    b->row->prepare(b);
}

uint64_t bench_run(struct bench *b)
{
    b->done = 0;
    b->row->run(b);
    return b->done;
}

void bench_bare(struct bench *b)
{
    b->row->bare(b);
}

void bench_apply(struct bench *b, const void *ops, size_t count, void *results)
{
    struct rmpc_machine machine = {.mem = &b->mem, .host = b->host};

    rmpc_machine_run(&machine, ops, count, results);
    b->host = machine.host;
}
