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

/* Walk the tables for an address, down to the leaf, or to the entry of stop_level if that comes first. */
static inline struct rmpc_walk rmpc_walk_to(const struct rmpc_dmap *dmap, uint64_t va, int stop_level)
{
    struct rmpc_walk walk = {NULL, 0, false, false};
    uint64_t pointer = dmap->root;
    uint64_t all = RMPC_PTE_RW; /* flags at all levels above, and at any of them */
    uint64_t any = 0;

    for (int level = dmap->config.levels; level >= 1; level--) {
        uint64_t *table = rmpc_table_at(dmap, pointer);
        uint64_t *entry;

        if (!table)
            return walk;
        entry = &table[rmpc_table_index(va, level)];
        if (level == stop_level || !rmpc_pte_is_table(*entry, level)) {
            if (level == 1 || *entry)
                walk = (struct rmpc_walk){entry, level, (all & RMPC_PTE_RW) != 0, (any & RMPC_PTE_NX) != 0};
            return walk;
        }
        pointer = *entry;
        all &= pointer;
        any |= pointer;
    }
    return walk;
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
