/*
 * The benchmarked loops in C: the core's hot paths and, beside each, the memset that is its limit.
 *
 * All memory is touched before the clock starts, so that what is timed is the code and the caches, not page
 * faults.  Built by bench/conftest.py together with csrc/.
 */
#include <stdlib.h>
#include <string.h>

#include "rmpcore/rmpcore.h"
#include "rmpcore/sparse.h"

#define GIB (UINT64_C(1) << 30)
#define REGION (RMPC_REGION_FRAMES * RMPC_PAGE_SIZE)
#define ARENA (UINT64_C(160) << 20) /* table pages, at the top of memory */

/* A machine with `size` bytes of RAM from 0, an RMP above it, and table pages from the top of RAM. */
struct bench {
    uint64_t size;
    struct rmpc_range ranges[2]; /* the arena at the top of RAM; the RMP */
    struct rmpc_extent memory;
    struct rmpc_extent arena;
    struct rmpc_pool pool;
    struct rmpc_mem mem;
    struct rmpc_frames mapped[8];
    struct rmpc_dmap dmap;
    struct rmpc_rmp rmp;
};

static int set_up(struct bench *b, int large_level)
{
    struct rmpc_dmap_config config = {
        .levels = 4,
        .large_level = large_level,
        .page_offset = UINT64_C(0xffff888000000000),
        .supported_mask = UINT64_MAX,
        .default_mask = UINT64_MAX,
        .cache_modes = RMPC_CACHE_MODES_PAT,
    };
    struct rmpc_e820 row = {0, b->size, RMPC_E820_USABLE};
    struct rmpc_boot_memory boot = {&b->memory, 1, NULL, 0, &row, 1, b->size >> RMPC_PAGE_SHIFT};

    rmpc_pool_init(&b->pool);
    rmpc_kernel_init(&config.kernel, 6, 12);
    return rmpc_dmap_init(&b->dmap, &b->mem, &config, b->mapped, 8, NULL) == RMPC_OK &&
           rmpc_dmap_boot(&b->dmap, &boot) == RMPC_OK;
}

struct bench *bench_new(uint64_t gib)
{
    struct bench *b = calloc(1, sizeof(*b));
    struct rmpc_hardware hardware;
    uint64_t rmp_size = RMPC_RMP_BOOKKEEPING + gib * (GIB / RMPC_PAGE_SIZE) * RMPC_RMP_ENTRY_SIZE;

    if (!b)
        return NULL;
    b->size = gib * GIB;
    b->memory = (struct rmpc_extent){0, b->size};
    b->arena = (struct rmpc_extent){b->size - ARENA, ARENA};
    b->ranges[0] = (struct rmpc_range){b->arena.base, ARENA, NULL};
    b->ranges[1] = (struct rmpc_range){b->size, rmp_size, NULL};
    for (int i = 0; i < 2; i++) {
        if (rmpc_sparse_map(&b->ranges[i], true) != RMPC_OK)
            return NULL;
        memset(b->ranges[i].host, 0, (size_t)b->ranges[i].size);
    }
    b->pool = (struct rmpc_pool){.memory = &b->arena, .memory_count = 1};
    b->pool.mem = &b->mem;
    b->mem = (struct rmpc_mem){.ranges = b->ranges, .count = 2, .alloc = rmpc_pool_alloc, .user = &b->pool};
    rmpc_hardware_init(&hardware, RMPC_PART_MILAN);
    if (!set_up(b, 3) || rmpc_rmp_init(&b->rmp, &b->mem, b->size, b->size + rmp_size - 1, 0, &hardware, NULL, NULL))
        return NULL;
    return b;
}

void bench_free(struct bench *b)
{
    for (int i = 0; b && i < 2; i++)
        rmpc_sparse_unmap(&b->ranges[i]);
    free(b);
}

static int split_at(struct bench *b, uint64_t pfn)
{
    return rmpc_set_memory(&b->dmap, RMPC_SET_MEMORY_4K, rmpc_dmap_pages(&b->dmap, pfn, 1));
}

/* A fresh direct map whose first n regions are mapped by 2 MiB leaves. */
int bench_prepare_split(struct bench *b, uint64_t n)
{
    int ok = set_up(b, 3);

    for (uint64_t gib = 0; ok && gib * 512 < n; gib++)
        ok = !split_at(b, (gib * 512 + 511) * RMPC_REGION_FRAMES);
    return ok;
}

/* Split the first n 2 MiB leaves (those that bench_prepare_split() has split already are left out). */
uint64_t bench_split(struct bench *b, uint64_t n)
{
    uint64_t before = b->dmap.counters.splits[2];

    for (uint64_t i = 1; i < n; i++)
        if (i % 512 != 511)
            split_at(b, i * RMPC_REGION_FRAMES + 7);
    return b->dmap.counters.splits[2] - before;
}

/* Build the direct map of all memory from leaves of this level and below; table pages used. */
uint64_t bench_boot(struct bench *b, int large_level)
{
    return set_up(b, large_level) ? b->dmap.counters.table_pages : 0;
}

/* The limit: a memset of each of n table pages, from the top down as the allocator gives them. */
void bench_memset_tables(struct bench *b, uint64_t n, int value)
{
    uint8_t *top = (uint8_t *)b->ranges[0].host + ARENA;

    for (uint64_t i = 1; i <= n; i++)
        memset(top - i * RMPC_PAGE_SIZE, value, RMPC_PAGE_SIZE);
}

/* Make the first n regions assigned 2M entries (unassigning whatever is there). */
void bench_prepare_psmash(struct bench *b, uint64_t n)
{
    const struct rmpc_cpu cpu = {0};
    const struct rmpc_rmp_state state = rmpc_rmp_state_make(0, 1, 1, 0, 5);

    memset(b->rmp.entries, 0, (size_t)(n * RMPC_REGION_FRAMES * RMPC_RMP_ENTRY_SIZE));
    for (uint64_t i = 0; i < n; i++)
        rmpc_rmpupdate(&b->rmp, cpu, i * REGION, state);
}

uint64_t bench_psmash(struct bench *b, uint64_t n)
{
    const struct rmpc_cpu cpu = {0};
    uint64_t failed = 0;

    for (uint64_t i = 0; i < n; i++)
        failed += rmpc_psmash(&b->rmp, cpu, i * REGION).code;
    return failed;
}

/* The limit: a memset of the 8 KiB of entries of each of n regions. */
void bench_memset_regions(struct bench *b, uint64_t n, int value)
{
    for (uint64_t i = 0; i < n; i++)
        memset(b->rmp.entries + i * RMPC_REGION_FRAMES, value, RMPC_REGION_FRAMES * RMPC_RMP_ENTRY_SIZE);
}

/* Assign, or unassign, n frames one by one. */
uint64_t bench_rmpupdate_4k(struct bench *b, uint64_t n, int assigned)
{
    const struct rmpc_cpu cpu = {0};
    uint64_t failed = 0;

    for (uint64_t i = 0; i < n; i++)
        failed += rmpc_rmpupdate(&b->rmp, cpu, i * RMPC_PAGE_SIZE,
                                 rmpc_rmp_state_make(i * RMPC_PAGE_SIZE, assigned, 0, 0, assigned ? 5 : 0)).code;
    return failed;
}

/* The limit: read and write the head's and the page's own quadword for each of n frames. */
void bench_touch_entries(struct bench *b, uint64_t n)
{
    volatile struct rmpc_rmp_entry *entries = b->rmp.entries;

    for (uint64_t i = 0; i < n; i++) {
        entries[i & ~(RMPC_REGION_FRAMES - 1)].lo ^= 8;
        entries[i].lo ^= 1;
    }
}
