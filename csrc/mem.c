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

/* Where a page given back holds its two links; NULL: it is no page of the memory.  Pages' first bytes would compete for
 * few lines of a cache, so each page has another place for them. */
static uint64_t *links_of(const struct rmpc_pool *pool, uint64_t pa)
{
    uint64_t *page = pa % RMPC_PAGE_SIZE ? NULL : rmpc_mem_at(pool->mem, pa, RMPC_PAGE_SIZE);

    return page ? page + (pa >> RMPC_PAGE_SHIFT) % 64 * 8 : NULL;
}

/* The page that a link names, if it is one below pa; anything else was not written here and names none. */
static uint64_t below(const struct rmpc_pool *pool, uint64_t link, uint64_t pa)
{
    return link < pa && links_of(pool, link) ? link : RMPC_NO_PAGE;
}

/*
 * Pages given back are a skew heap: each holds two links, to lower pages or to none, and the highest is its root.  So n
 * of them are taken and given in n log n steps, in whatever order.  As links only ever fall, a page that somebody has
 * written over cuts off what hangs below it and does no other harm.
 */
static uint64_t merged(const struct rmpc_pool *pool, uint64_t a, uint64_t b)
{
    uint64_t root;
    uint64_t *place = &root;

    while (a != RMPC_NO_PAGE && b != RMPC_NO_PAGE) {
        const uint64_t high = a > b ? a : b;
        const uint64_t low = a > b ? b : a;
        uint64_t *links = links_of(pool, high);
        const uint64_t right = below(pool, links[1], high);

        *place = high;
        links[1] = links[0];
        place = &links[0];
        a = right;
        b = low;
    }
    *place = a != RMPC_NO_PAGE ? a : b;
    return root;
}

uint64_t rmpc_pool_alloc(void *user)
{
    struct rmpc_pool *pool = user;
    const uint64_t fresh = highest_fresh(pool);
    const uint64_t freed = pool->freed;

    if (freed != RMPC_NO_PAGE && (fresh == RMPC_NO_PAGE || freed > fresh)) {
        const uint64_t *links = links_of(pool, freed);

        pool->freed = merged(pool, below(pool, links[0], freed), below(pool, links[1], freed));
        return freed;
    }
    if (fresh != RMPC_NO_PAGE)
        pool->next = fresh >> RMPC_PAGE_SHIFT;
    return fresh;
}

void rmpc_pool_free(void *user, uint64_t pa)
{
    struct rmpc_pool *pool = user;
    uint64_t *links = links_of(pool, pa);

    if (!links || !is_allocatable(pool, pa))
        return;
    links[0] = links[1] = RMPC_NO_PAGE;
    pool->freed = merged(pool, pool->freed, pa);
}
