/*
 * direct-map §1 and §3, address arithmetic: indexes into tables, address <-> frame, and when ranges overlap.
 *
 * For all 2^64 addresses, levels 1 to 5, every configuration that rmpc_dmap_init() takes, all ranges.  No loop.
 */
#include "../csrc/dmap.c"
#include "../csrc/cpa.c"
#include "rules.h"

/* The indexes of 4 or 5 levels, and the offset, are the address without the bits that repeat its highest one. */
static void indexes(void)
{
    const uint64_t va = nondet_u64();
    uint64_t sum = va & (RMPC_PAGE_SIZE - 1);

    for (int level = 1; level <= 5; level++) {
        CLAIM(rmpc_table_index(va, level) < TABLE_ENTRIES, "an index stays in the table");
        CLAIM(rmpc_level_size(level + 1) == rmpc_level_size(level) * TABLE_ENTRIES || level == 5, "512 slots a table");
        sum |= (uint64_t)rmpc_table_index(va, level) << (12 + 9 * (level - 1));
        if (level == 4)
            CLAIM(sum == (va & (UINT64_MAX >> 16)), "the indexes of 4 levels hold the whole address");
    }
    CLAIM(sum == (va & (UINT64_MAX >> 7)), "those of 5 levels do");
    REACHED("indexes");
}

/* §3 "physical address = virtual address - PAGE_OFFSET": both ways, and no frame leaves the map's part. */
static void frames(void)
{
    struct rmpc_dmap dmap;
    const uint64_t pfn = nondet_u64(), pages = nondet_u64();

    ASSUME(config_is_possible(&dmap.config));
    if (!rmpc_dmap_has_room(&dmap, pfn, pages) || !pages)
        return;
    const uint64_t va = rmpc_dmap_address(&dmap, pfn), last = va + ((pages - 1) << RMPC_PAGE_SHIFT) + RMPC_PAGE_SIZE - 1;
    CLAIM(va >= dmap.config.page_offset && last >= va, "no address wraps");
    CLAIM(dmap.config.levels == 5 || va >= UINT64_MAX << 47, "addresses are canonical");
    if (va < RMPC_HIGH_MAP) {
        CLAIM(rmpc_frame_of(&dmap, va) == pfn, "frame, address, frame");
        REACHED("a frame");
    }
}

/* Two ranges overlap if and only if some address lies in both. */
static void ranges(void)
{
    const uint64_t a = nondet_u64(), b = nondet_u64(), c = nondet_u64(), d = nondet_u64(), x = nondet_u64();
    const uint64_t later = a > c ? a : c;

    ASSUME(a < b && c < d);
    CLAIM(!(x >= a && x < b && x >= c && x < d) || overlap(a, b, c, d), "what lies in both makes them overlap");
    CLAIM(!overlap(a, b, c, d) || (later < b && later < d), "where they overlap the later start lies in both");
    REACHED("ranges");
}

int main(void)
{
#if PART == 1
    indexes();
    ranges();
#else
    frames();
#endif
}
