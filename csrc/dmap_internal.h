/* What dmap.c and cpa.c share and callers do not see. */
#ifndef RMPCORE_DMAP_INTERNAL_H
#define RMPCORE_DMAP_INTERNAL_H

#include "rmpcore/dmap.h"

#define TABLE_ENTRIES 512

/* The table that a table pointer names, or NULL when it points outside the memory. */
static inline uint64_t *rmpc_table_at(const struct rmpc_dmap *dmap, uint64_t raw)
{
    uint64_t pa = raw & RMPC_PTE_ADDRESS & ~dmap->config.c_bit;

    if (pa - dmap->home.base < dmap->home.size)
        return (uint64_t *)(void *)((uint8_t *)dmap->home.host + (pa - dmap->home.base));
    return rmpc_mem_at(dmap->mem, pa, RMPC_PAGE_SIZE);
}

/* Index of a virtual address in a table of this level. */
static inline unsigned rmpc_table_index(uint64_t va, int level)
{
    return (unsigned)(va >> (12 + 9 * (level - 1))) % TABLE_ENTRIES;
}

/* A walk as below, whose tables may lie in any range of memory. */
struct rmpc_walk rmpc_walk_anywhere(const struct rmpc_dmap *dmap, uint64_t va, int stop_level);

/* Walk the tables for an address, down to the leaf, or to the entry of stop_level if that comes first.  levels and anywhere
 * are constants, so that no loop is left.  Not anywhere: at a table outside the home range the walk starts again. */
__attribute__((always_inline)) static inline struct rmpc_walk rmpc_walk_with(const struct rmpc_dmap *dmap, uint64_t va,
                                                                             int stop_level, const int levels,
                                                                             const bool anywhere)
{
    const uint64_t mask = RMPC_PTE_ADDRESS & ~dmap->config.c_bit;
    uint64_t all = RMPC_PTE_RW; /* flags at all levels above, and at any of them */
    uint64_t any = 0;
    uint64_t raw = dmap->root;

    for (int level = levels; level >= 1; level--) {
        const uint64_t offset = (raw & mask) - dmap->home.base;
        uint64_t *table;
        uint64_t *entry;

        if (offset < dmap->home.size)
            table = (uint64_t *)(void *)((uint8_t *)dmap->home.host + offset);
        else if (!anywhere)
            return rmpc_walk_anywhere(dmap, va, stop_level);
        else
            table = rmpc_mem_at(dmap->mem, raw & mask, RMPC_PAGE_SIZE);
        if (anywhere && !table)
            break;
        entry = table + rmpc_table_index(va, level);
        raw = *entry;
        if (level == stop_level || !rmpc_pte_is_table(raw, level)) {
            if (level > 1 && !raw)
                break;
            return (struct rmpc_walk){entry, level, (all & RMPC_PTE_RW) != 0, (any & RMPC_PTE_NX) != 0};
        }
        all &= raw;
        any |= raw;
    }
    return (struct rmpc_walk){NULL, 0, false, false};
}

static inline struct rmpc_walk rmpc_walk_to(const struct rmpc_dmap *dmap, uint64_t va, int stop_level)
{
    return dmap->config.levels == 4 ? rmpc_walk_with(dmap, va, stop_level, 4, false)
                                    : rmpc_walk_with(dmap, va, stop_level, 5, false);
}

/* Fill a table with entries whose numbers, from 0 on, are ORed to the first one at bit `shift`.  As fast as a memset: one
 * sum for four stores, where a sum for each would take half as long again, and eight cache lines under way at once. */
static inline void rmpc_fill_table(uint64_t *table, uint64_t first, unsigned shift)
{
    typedef uint64_t pair __attribute__((vector_size(16), may_alias));
    const uint64_t one = UINT64_C(1) << shift;
    const pair all = {first, first};
    const pair two = {2 * one, 2 * one};
    const unsigned ahead = 64; /* entries */
    pair lanes = {0, one};

    for (unsigned i = 0; i < ahead; i += 8)
        __builtin_prefetch(&table[i], 1);
    for (unsigned i = 0; i < TABLE_ENTRIES; i += 8) {
        pair *to = (pair *)(void *)&table[i];
        __builtin_prefetch(&table[i + ahead < TABLE_ENTRIES ? i + ahead : i], 1);
        to[0] = all | lanes;
        to[1] = all | (lanes + two);
        to[2] = all | (lanes + 2 * two);
        to[3] = all | (lanes + 3 * two);
        lanes += 4 * two;
    }
}

/* The slot of this level for an address, through existing tables; NULL: a table is missing. */
uint64_t *rmpc_slot_at(const struct rmpc_dmap *dmap, uint64_t va, int level);

/* The frame that the kernel's address arithmetic gives for an address of the direct map or the high mapping. */
static inline uint64_t rmpc_frame_of(const struct rmpc_dmap *dmap, uint64_t va)
{
    if (va >= RMPC_HIGH_MAP)
        return (va - RMPC_HIGH_MAP + dmap->config.image.phys_base) >> RMPC_PAGE_SHIFT;
    return (va - dmap->config.page_offset) >> RMPC_PAGE_SHIFT;
}

/* A page for a table of entries of this level, reported; RMPC_NO_PAGE: none left.  Contents undefined. */
uint64_t rmpc_table_alloc(struct rmpc_dmap *dmap, int level);

#endif
