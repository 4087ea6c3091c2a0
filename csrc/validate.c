/* The invariants of a direct map (direct-map sections 1 to 4, put the other way round). */
#include <string.h>

#include "dmap_internal.h"

static const char names[RMPC_INVARIANT_END][16] = {
    [RMPC_INVARIANTS_HOLD] = "all hold",
    [RMPC_BROKEN_ROOT] = "root",
    [RMPC_BROKEN_TABLE_PAGE] = "table-page",
    [RMPC_BROKEN_TABLE_SHARED] = "table-shared",
    [RMPC_BROKEN_IDENTITY] = "identity",
    [RMPC_BROKEN_COVERAGE] = "coverage",
    [RMPC_BROKEN_TABLE_COUNT] = "table-count",
    [RMPC_BROKEN_PAGE_COUNTS] = "page-counts",
    [RMPC_BROKEN_MAPPED] = "mapped",
};

const char *rmpc_invariant_name(enum rmpc_invariant invariant)
{
    return (unsigned)invariant < RMPC_INVARIANT_END ? names[invariant] : "unknown";
}

uint64_t rmpc_dmap_page_total(const struct rmpc_dmap_counters *counters)
{
    return counters->pages[1] + counters->pages[2] * 512 + counters->pages[3] * 512 * 512;
}

struct check {
    const struct rmpc_dmap *dmap;
    bool at_once;     /* a page that is met twice is noticed there, which takes long; else tables_differ() tells it */
    uint64_t *tables; /* pages seen; at_once: highest first */
    size_t room;
    size_t count;
    uint64_t mapped;  /* bytes of the direct map under leaves */
    uint64_t missing; /* and under empty entries */
    uint64_t where;
    enum rmpc_invariant broken;
};

static bool fail(struct check *check, enum rmpc_invariant invariant, uint64_t va)
{
    check->broken = invariant;
    check->where = va;
    return false;
}

/* Note a table page; false: it was seen before, or there are more tables than there should be. */
static bool add_table(struct check *check, uint64_t pa, uint64_t va)
{
    size_t low = check->at_once ? 0 : check->count;
    size_t high = check->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (check->tables[middle] > pa)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < check->count && check->tables[low] == pa)
        return fail(check, RMPC_BROKEN_TABLE_SHARED, va);
    if (check->count == check->room)
        return fail(check, RMPC_BROKEN_TABLE_COUNT, va);
    memmove(&check->tables[low + 1], &check->tables[low], (check->count - low) * sizeof(*check->tables));
    check->tables[low] = pa;
    check->count++;
    return true;
}

/* Let the page at i sink to its place in a heap of count pages, the lowest at its root. */
static void sink(uint64_t *tables, size_t i, size_t count)
{
    const uint64_t pa = tables[i];

    for (size_t child; (child = 2 * i + 1) < count; i = child) {
        child += child + 1 < count && tables[child + 1] < tables[child];
        if (tables[child] >= pa)
            break;
        tables[i] = tables[child];
    }
    tables[i] = pa;
}

/* Was no table page met twice?  They are taken out of a heap for that, the lowest first. */
static bool tables_differ(uint64_t *tables, size_t count)
{
    for (size_t i = count / 2; i-- > 0;)
        sink(tables, i, count);
    for (size_t left = count; left > 1; left--) {
        const uint64_t lowest = tables[0];
        tables[0] = tables[left - 1];
        sink(tables, 0, left - 1);
        if (tables[0] == lowest)
            return false;
    }
    return true;
}

/* How much of [va, va + size) lies in the direct map's span. */
static uint64_t in_span(const struct rmpc_dmap *dmap, uint64_t va, uint64_t size)
{
    uint64_t first = dmap->config.page_offset;
    uint64_t last = first + (rmpc_dmap_limit(dmap) - 1);
    uint64_t end = va + (size - 1); /* the last byte: what is behind it may be 0 */

    if (va > last || end < first)
        return 0;
    if (va > first)
        first = va;
    if (end < last)
        last = end;
    return last - first + 1;
}

static bool check_leaf(struct check *check, uint64_t va, uint64_t raw, int level)
{
    const struct rmpc_dmap *dmap = check->dmap;
    const uint64_t c_bit = dmap->config.c_bit;
    uint64_t bytes = in_span(dmap, va, rmpc_level_size(level));

    check->mapped += bytes;
    if (bytes && rmpc_pte_flags(raw, level, c_bit) &&
        rmpc_pte_address(raw, level, c_bit) != va - dmap->config.page_offset)
        return fail(check, RMPC_BROKEN_IDENTITY, va);
    return true;
}

static bool check_table(struct check *check, uint64_t pointer, uint64_t table_va, int level)
{
    const uint64_t pa = pointer & RMPC_PTE_ADDRESS & ~check->dmap->config.c_bit;
    const uint64_t *table = rmpc_table_at(check->dmap, pointer);
    const uint64_t size = rmpc_level_size(level);

    if (!table)
        return fail(check, level == check->dmap->config.levels ? RMPC_BROKEN_ROOT : RMPC_BROKEN_TABLE_PAGE, table_va);
    if (!add_table(check, pa, table_va))
        return false;
    for (unsigned i = 0; i < TABLE_ENTRIES; i++) {
        uint64_t va = table_va + i * size;
        bool good = true;

        if (!table[i])
            check->missing += in_span(check->dmap, va, size);
        else if (rmpc_pte_is_table(table[i], level))
            good = check_table(check, table[i], va, level - 1);
        else
            good = check_leaf(check, va, table[i], level);
        if (!good)
            return false;
    }
    return true;
}

enum rmpc_invariant rmpc_dmap_validate(const struct rmpc_dmap *dmap, uint64_t *scratch, size_t room, uint64_t *where)
{
    const int top = dmap->config.levels;
    /* slot 0 of the root, counted back from the kernel half, so that addresses of its upper half are canonical */
    const uint64_t first = (UINT64_MAX << (12 + 9 * top - 1)) - rmpc_level_size(top) * (TABLE_ENTRIES / 2);
    struct check check = {.dmap = dmap, .tables = scratch, .room = room};

    *where = 0;
    if (dmap->counters.table_pages < room)
        check.room = (size_t)dmap->counters.table_pages;
    /* what is broken first, and where, is looked for only when something is: then each table page in its turn */
    if (!check_table(&check, dmap->root, first, top) || !tables_differ(check.tables, check.count)) {
        check = (struct check){.dmap = dmap, .at_once = true, .tables = scratch, .room = check.room};
        if (!check_table(&check, dmap->root, first, top)) {
            *where = check.where;
            return check.broken;
        }
    }
    if (check.mapped + check.missing != rmpc_dmap_limit(dmap))
        return RMPC_BROKEN_COVERAGE;
    if (check.count != dmap->counters.table_pages)
        return RMPC_BROKEN_TABLE_COUNT;
    if (rmpc_dmap_page_total(&dmap->counters) != dmap->page_total)
        return RMPC_BROKEN_PAGE_COUNTS;
    for (size_t i = 0; i < dmap->mapped_count; i++) {
        const struct rmpc_frames *range = &dmap->mapped[i];
        if (range->start >= range->end || range->end > dmap->max_pfn_mapped ||
            (i && range->start <= dmap->mapped[i - 1].end))
            return RMPC_BROKEN_MAPPED;
    }
    return RMPC_INVARIANTS_HOLD;
}
