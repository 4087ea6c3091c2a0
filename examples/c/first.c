/*
 * A simulator's first steps with rmpcore: a 4 GiB PC, its direct map, an RMP, and one page given to a guest.
 *
     cc -std=c11 -Iinclude examples/c/first.c $(find csrc -name "*.c") -o first
 *
 * The core itself needs no operating system; here sparse.h lends it host memory.  A simulator would pass its own
 * RAM in struct rmpc_range instead.
 */
#include <inttypes.h>
#include <stdio.h>

#include <rmpcore/rmpcore.h>
#include <rmpcore/sparse.h>

#define MIB (UINT64_C(1) << 20)

/* RAM as a 4 GiB QEMU machine has it, in whole pages; the RMP goes to an address above it. */
static const struct rmpc_extent memory[] = {{0x1000, 0x9e000}, {0x100000, 0xbfee0000}, {0x100000000, 0x40000000}};
static const struct rmpc_extent reserved[] = {{0, 0x100000}, {0x1000000, 0x2c11000}, {0xbfee4000, 0xfc000}};
static const struct rmpc_e820 e820[] = {
    {0x1000, 0x9ec00, RMPC_E820_USABLE},
    {0x100000, 0xbfee0000, RMPC_E820_USABLE},
    {0x100000000, 0x40000000, RMPC_E820_USABLE},
};
#define MAX_PFN UINT64_C(0x140000)
#define RMP_BASE UINT64_C(0x200000000)
#define RMP_SIZE (RMPC_RMP_BOOKKEEPING + MAX_PFN * RMPC_RMP_ENTRY_SIZE)

static int show(const char *when, const struct rmpc_dmap *dmap, uint64_t pfn)
{
    static const char *const levels[] = {"none", "4K", "2M", "1G"};
    struct rmpc_walk walk = rmpc_dmap_lookup(dmap, rmpc_dmap_address(dmap, pfn));

    return printf("%s: level %s, DirectMap4k %" PRIu64 ", DirectMap2M %" PRIu64 ", DirectMap1G %" PRIu64 "\n", when,
                  levels[walk.entry ? walk.level : 0], dmap->counters.pages[1], dmap->counters.pages[2],
                  dmap->counters.pages[3]);
}

static int fail(const char *what, enum rmpc_status status)
{
    fprintf(stderr, "%s: %s\n", what, rmpc_status_text(status));
    return 1;
}

int main(void)
{
    struct rmpc_range ranges[] = {
        {memory[0].base, memory[0].size, NULL},
        {memory[1].base, memory[1].size, NULL},
        {memory[2].base, memory[2].size, NULL},
        {RMP_BASE, RMP_SIZE, NULL},
    };
    struct rmpc_pool pool = {.memory = memory, .memory_count = 3, .reserved = reserved, .reserved_count = 3};
    struct rmpc_mem mem = {
        .ranges = ranges, .count = 4, .alloc = rmpc_pool_alloc, .free = rmpc_pool_free, .user = &pool};
    struct rmpc_boot_memory boot = {memory, 3, reserved, 3, e820, 3, MAX_PFN};
    struct rmpc_dmap_config config = {
        .levels = 4,
        .large_level = 3,
        .page_offset = UINT64_C(0xffff888000000000),
        .supported_mask = UINT64_MAX,
        .default_mask = UINT64_MAX,
        .cache_modes = RMPC_CACHE_MODES_PAT,
    };
    struct rmpc_frames mapped[8];
    struct rmpc_hardware hardware;
    struct rmpc_dmap dmap;
    struct rmpc_rmp_msrs msrs = {.base = RMP_BASE, .end = RMP_BASE + RMP_SIZE - 1};
    struct rmpc_rmp_segment segment;
    struct rmpc_rmp rmp;
    struct rmpc_cpu cpu = {0};
    struct rmpc_host host = {.dmap = &dmap, .rmp = &rmp, .cpu = &cpu, .memory = memory, .memory_count = 3};
    const uint64_t pfn = (UINT64_C(0x100000000) + 5 * MIB) >> RMPC_PAGE_SHIFT;
    enum rmpc_status status;

    for (int i = 0; i < 4; i++)
        if ((status = rmpc_sparse_map(&ranges[i], i < 3)) != RMPC_OK)
            return fail("host memory", status);
    pool.mem = &mem;
    rmpc_pool_init(&pool);
    if ((status = rmpc_kernel_init(&config.kernel, 6, 12)) != RMPC_OK)
        return fail("kernel", status);
    if ((status = rmpc_hardware_init(&hardware, RMPC_PART_MILAN)) != RMPC_OK)
        return fail("hardware", status);
    if ((status = rmpc_dmap_init(&dmap, &mem, &config, mapped, 8, NULL)) != RMPC_OK ||
        (status = rmpc_dmap_boot(&dmap, &boot)) != RMPC_OK)
        return fail("direct map", status);
    if ((status = rmpc_rmp_init(&rmp, &msrs, &mem, &hardware, 0, &segment, NULL)) != RMPC_OK)
        return fail("RMP", status);

    show("before", &dmap, pfn);
    printf("rmp_make_private: %d\n", rmpc_rmp_make_private(&host, pfn, 0x1000, 1, 5, false));
    show("after", &dmap, pfn);
    for (int i = 0; i < 4; i++)
        rmpc_sparse_unmap(&ranges[i]);
    return 0;
}
