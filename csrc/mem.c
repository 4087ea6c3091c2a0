/* Simulated physical memory: finding host bytes for an address, and a simple page allocator. */
#include "rmpcore/mem.h"

#include <string.h>

enum rmpc_status rmpc_mem_check(const struct rmpc_mem *mem)
{
    uint64_t previous_end = 0;

    for (size_t i = 0; i < mem->count; i++) {
        const struct rmpc_range *range = &mem->ranges[i];
        if (!range->host || (uintptr_t)range->host % RMPC_PAGE_SIZE)
            return RMPC_ERR_RANGE;
        if (!range->size || range->base % RMPC_PAGE_SIZE || range->size % RMPC_PAGE_SIZE)
            return RMPC_ERR_RANGE;
        if (range->base < previous_end || range->base >= RMPC_PHYSICAL_LIMIT ||
            range->size > RMPC_PHYSICAL_LIMIT - range->base)
            return RMPC_ERR_RANGE;
        previous_end = range->base + range->size;
    }
    return RMPC_OK;
}

void *rmpc_mem_at(const struct rmpc_mem *mem, uint64_t pa, uint64_t size)
{
    size_t low = 0;
    size_t high = mem->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct rmpc_range *range = &mem->ranges[middle];
        if (pa < range->base) {
            high = middle;
        } else if (pa - range->base >= range->size) {
            low = middle + 1;
        } else {
            uint64_t offset = pa - range->base;
            return size <= range->size - offset ? (uint8_t *)range->host + offset : NULL;
        }
    }
    return NULL;
}

uint64_t rmpc_mem_alloc(struct rmpc_mem *mem)
{
    uint64_t pa;

    if (mem->fail_count && !mem->fail_skip) {
        mem->fail_count--;
        return RMPC_NO_PAGE;
    }
    if (mem->fail_skip)
        mem->fail_skip--;
    pa = mem->alloc ? mem->alloc(mem->user) : RMPC_NO_PAGE;
    /* a page that is not memory would make the walk leave it: no page, then */
    if (pa % RMPC_PAGE_SIZE || !rmpc_mem_at(mem, pa, RMPC_PAGE_SIZE))
        return RMPC_NO_PAGE;
    return pa;
}

void rmpc_mem_free(struct rmpc_mem *mem, uint64_t pa)
{
    if (mem->free)
        mem->free(mem->user, pa);
}

enum rmpc_status rmpc_mem_read(const struct rmpc_mem *mem, uint64_t pa, void *out, size_t size)
{
    const void *host = rmpc_mem_at(mem, pa, size);

    if (!host)
        return RMPC_ERR_RANGE;
    memcpy(out, host, size);
    return RMPC_OK;
}

enum rmpc_status rmpc_mem_write(const struct rmpc_mem *mem, uint64_t pa, const void *data, size_t size)
{
    void *host = rmpc_mem_at(mem, pa, size);

    if (!host)
        return RMPC_ERR_RANGE;
    memcpy(host, data, size);
    return RMPC_OK;
}

enum rmpc_status rmpc_extents_check(const struct rmpc_extent *extents, size_t count)
{
    uint64_t previous_end = 0;

    for (size_t i = 0; i < count; i++) {
        const struct rmpc_extent *extent = &extents[i];
        if (!extent->size || extent->base % RMPC_PAGE_SIZE || extent->size % RMPC_PAGE_SIZE)
            return RMPC_ERR_RANGE;
        if (extent->base < previous_end || extent->base >= RMPC_PHYSICAL_LIMIT ||
            extent->size > RMPC_PHYSICAL_LIMIT - extent->base)
            return RMPC_ERR_RANGE;
        previous_end = extent->base + extent->size;
    }
    return RMPC_OK;
}

size_t rmpc_extents_find(const struct rmpc_extent *extents, size_t count, uint64_t address)
{
    size_t low = 0;
    size_t high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct rmpc_extent *extent = &extents[middle];
        if (address >= extent->base && address - extent->base >= extent->size)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void rmpc_pool_init(struct rmpc_pool *pool)
{
    pool->freed = RMPC_NO_PAGE;
    pool->next = 0;
    if (pool->memory_count) {
        const struct rmpc_extent *top = &pool->memory[pool->memory_count - 1];
        pool->next = (top->base + top->size) >> RMPC_PAGE_SHIFT;
    }
}

static bool is_busy(const struct rmpc_pool *pool, uint64_t pfn)
{
    size_t low = 0;
    size_t high = pool->busy_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pool->busy[middle] < pfn)
            low = middle + 1;
        else
            high = middle;
    }
    return low < pool->busy_count && pool->busy[low] == pfn;
}

/* Is this page of memory and touches nothing reserved? */
static bool is_allocatable(const struct rmpc_pool *pool, uint64_t pa)
{
    size_t m = rmpc_extents_find(pool->memory, pool->memory_count, pa);
    size_t r = rmpc_extents_find(pool->reserved, pool->reserved_count, pa);

    return m < pool->memory_count && pa >= pool->memory[m].base &&
           (r == pool->reserved_count || pool->reserved[r].base >= pa + RMPC_PAGE_SIZE);
}

/* The highest frame that never was given out, as an address; pool->next is left just above it. */
static uint64_t highest_fresh(struct rmpc_pool *pool)
{
    while (pool->next) {
        uint64_t pfn = pool->next - 1;
        uint64_t pa = pfn << RMPC_PAGE_SHIFT;
        size_t m = rmpc_extents_find(pool->memory, pool->memory_count, pa);
        size_t r = rmpc_extents_find(pool->reserved, pool->reserved_count, pa);

        if (m == pool->memory_count || pa < pool->memory[m].base) {
            /* in a hole: go on below the next lower piece of memory */
            pool->next = m ? (pool->memory[m - 1].base + pool->memory[m - 1].size) >> RMPC_PAGE_SHIFT : 0;
        } else if (r < pool->reserved_count && pool->reserved[r].base < pa + RMPC_PAGE_SIZE) {
            /* reserved extents may start inside the page: skip all that they touch */
            pool->next = pool->reserved[r].base < pa ? pool->reserved[r].base >> RMPC_PAGE_SHIFT : pfn;
        } else if (is_busy(pool, pfn)) {
            pool->next = pfn;
        } else {
            return pa;
        }
    }
    return RMPC_NO_PAGE;
}

/* Where a freed page keeps its link; NULL at the end of the list. */
static uint64_t *link_of(const struct rmpc_pool *pool, uint64_t pa)
{
    return pa == RMPC_NO_PAGE ? NULL : rmpc_mem_at(pool->mem, pa, RMPC_PAGE_SIZE);
}

uint64_t rmpc_pool_alloc(void *user)
{
    struct rmpc_pool *pool = user;
    uint64_t fresh = highest_fresh(pool);
    uint64_t freed = pool->freed;
    const uint64_t *link = link_of(pool, freed);

    if (link && (fresh == RMPC_NO_PAGE || freed > fresh)) {
        /* links fall; anything else was not written here, and ends the list */
        pool->freed = *link < freed ? *link : RMPC_NO_PAGE;
        return freed;
    }
    if (fresh != RMPC_NO_PAGE)
        pool->next = fresh >> RMPC_PAGE_SHIFT;
    return fresh;
}

void rmpc_pool_free(void *user, uint64_t pa)
{
    struct rmpc_pool *pool = user;
    uint64_t *place = &pool->freed;
    uint64_t *link = link_of(pool, pa);

    if (!link || !is_allocatable(pool, pa))
        return;
    while (*place != RMPC_NO_PAGE && *place > pa) {
        uint64_t *below = link_of(pool, *place);
        if (!below || (*below != RMPC_NO_PAGE && *below >= *place))
            break;
        place = below;
    }
    *link = *place;
    *place = pa;
}
