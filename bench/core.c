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
    struct rmpc_rmp_segment segment;
    uint32_t *words; /* of the RMP's regions */
    struct rmpc_cpu cpu;
    struct rmpc_host host;
    struct rmpc_rmp_entry *entries;
    uint64_t *frames; /* random ones */
    uint64_t frame_count;
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
    struct rmpc_rmp_msrs msrs;
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
    b->words = calloc(b->size / REGION, sizeof(*b->words));
    msrs = (struct rmpc_rmp_msrs){b->size, b->size + rmp_size - 1, 0};
    if (!b->words || !set_up(b, 3) || rmpc_rmp_init(&b->rmp, &msrs, &b->mem, &hardware, 0, &b->segment, b->words))
        return NULL;
    b->host = (struct rmpc_host){.dmap = &b->dmap, .rmp = &b->rmp, .cpu = &b->cpu};
    b->entries = b->segment.entries;
    return b;
}

void bench_free(struct bench *b)
{
    for (int i = 0; b && i < 2; i++)
        rmpc_sparse_unmap(&b->ranges[i]);
    if (b) {
        free(b->words);
        free(b->frames);
    }
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
    const struct rmpc_rmp_state state = rmpc_rmp_state_make(0, 1, 1, 0, 5);

    memset(b->entries, 0, (size_t)(n * RMPC_REGION_FRAMES * RMPC_RMP_ENTRY_SIZE));
    for (uint64_t i = 0; i < n; i++)
        rmpc_rmpupdate(&b->rmp, &b->cpu, i * REGION, state);
}

uint64_t bench_psmash(struct bench *b, uint64_t n)
{
    uint64_t failed = 0;

    for (uint64_t i = 0; i < n; i++)
        failed += rmpc_psmash(&b->rmp, &b->cpu, i * REGION).code;
    return failed;
}

/* The limit: a memset of the 8 KiB of entries of each of n regions. */
void bench_memset_regions(struct bench *b, uint64_t n, int value)
{
    for (uint64_t i = 0; i < n; i++)
        memset(b->entries + i * RMPC_REGION_FRAMES, value, RMPC_REGION_FRAMES * RMPC_RMP_ENTRY_SIZE);
}

/* Assign, or unassign, n frames one by one. */
uint64_t bench_rmpupdate_4k(struct bench *b, uint64_t n, int assigned)
{
    uint64_t failed = 0;

    for (uint64_t i = 0; i < n; i++)
        failed += rmpc_rmpupdate(&b->rmp, &b->cpu, i * RMPC_PAGE_SIZE,
                                 rmpc_rmp_state_make(i * RMPC_PAGE_SIZE, assigned, 0, 0, assigned ? 5 : 0)).code;
    return failed;
}

/* The limit: read and write the head's and the page's own quadword for each of n frames. */
void bench_touch_entries(struct bench *b, uint64_t n)
{
    volatile struct rmpc_rmp_entry *entries = b->entries;

    for (uint64_t i = 0; i < n; i++) {
        entries[i & ~(RMPC_REGION_FRAMES - 1)].lo ^= 8;
        entries[i].lo ^= 1;
    }
}

/* Draw n random frames, none of them in the last GiB, where the tables are. */
int bench_draw(struct bench *b, uint64_t n)
{
    uint64_t state = 88172645463325252;

    free(b->frames);
    b->frames = malloc((size_t)n * sizeof(*b->frames));
    b->frame_count = b->frames ? n : 0;
    for (uint64_t i = 0; i < b->frame_count; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b->frames[i] = state % ((b->size - GIB) >> RMPC_PAGE_SHIFT);
    }
    return b->frame_count == n;
}

/* Assign, or unassign, the frames that were drawn, one by one; how often that failed. */
uint64_t bench_rmpupdate_random(struct bench *b, int assigned)
{
    const uint64_t ahead = 8;
    uint64_t failed = 0;

    for (uint64_t i = 0; i < b->frame_count; i++) {
        if (i + ahead < b->frame_count)
            rmpc_rmp_prefetch(&b->rmp, b->frames[i + ahead]);
        failed += rmpc_rmpupdate(&b->rmp, &b->cpu, b->frames[i] << RMPC_PAGE_SHIFT,
                                 rmpc_rmp_state_make(b->frames[i] << RMPC_PAGE_SHIFT, assigned, 0, 0,
                                                     assigned ? 5 : 0)).code;
    }
    return failed;
}

/* The limit: read the head's entry, and one atomic 16-byte read-modify-write of the page's, at the same addresses. */
uint64_t bench_touch_random(struct bench *b)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < b->frame_count; i++) {
        struct rmpc_rmp_entry *entry = &b->entries[b->frames[i]];
        uint64_t lo = entry->lo, hi = entry->hi;
        unsigned char done;

        sum += *(volatile uint64_t *)&b->entries[b->frames[i] & ~(RMPC_REGION_FRAMES - 1)].lo;
        do
            __asm__ volatile("lock cmpxchg16b %1; sete %0"
                             : "=q"(done), "+m"(*entry), "+a"(lo), "+d"(hi)
                             : "b"(lo ^ 1), "c"(hi)
                             : "cc", "memory");
        while (!done);
    }
    return sum;
}

/* A host write to each of the frames that were drawn; how many were refused. */
uint64_t bench_host_writes(struct bench *b)
{
    struct rmpc_outcome outcomes[256];
    uint64_t refused = 0;

    for (uint64_t i = 0; i < b->frame_count; i += 256) {
        uint64_t count = b->frame_count - i < 256 ? b->frame_count - i : 256;

        rmpc_host_access_all(&b->host, b->frames + i, count, RMPC_HOST_WRITE, outcomes);
        for (uint64_t j = 0; j < count; j++)
            refused += outcomes[j].kind != RMPC_OUTCOME_ALLOWED;
    }
    return refused;
}

/* The limit: a bare walk of the same tables, and one load of the page's RMP entry. */
uint64_t bench_walks(struct bench *b)
{
    const uint8_t *arena = (const uint8_t *)b->ranges[0].host - b->arena.base;
    uint64_t sum = 0;

    for (uint64_t i = 0; i < b->frame_count; i++) {
        uint64_t va = UINT64_C(0xffff888000000000) + (b->frames[i] << RMPC_PAGE_SHIFT);
        uint64_t raw = b->dmap.root;
        int shift = 39;

        for (;; shift -= 9) {
            const uint64_t *table = (const uint64_t *)(const void *)(arena + (raw & RMPC_PTE_ADDRESS));
            raw = table[va >> shift & 511];
            if (shift == 12 || raw & RMPC_PTE_PSE)
                break;
        }
        sum += raw + *(volatile uint64_t *)&b->entries[b->frames[i]].lo;
    }
    return sum;
}
