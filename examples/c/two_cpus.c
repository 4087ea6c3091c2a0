/*
 * A simulator with two processors in a hundred lines: a host and a guest with SNP take turns on one RAM and one RMP.
 *
     cc -std=c11 -Iinclude examples/c/two_cpus.c csrc/?*.c -o two_cpus
 *
 * Memory, page allocator and TLB are the simulator's own; the direct map is the model's.
 */
#include <inttypes.h>
#include <stdio.h>

#include <rmpcore/rmpcore.h>

#define RAM (UINT64_C(64) << 20)
#define RMP (UINT64_C(1) << 20)
#define NEIGHBOUR UINT64_C(0x2005) /* two frames of one 2 MiB region: the host's, ... */
#define SECRET UINT64_C(0x2007)    /* ... and the one that goes to the guest */
#define GPA UINT64_C(0x1000)       /* the guest's name for it */
#define ASID 5

static struct rmpc_cpu host, guest = {.mode = {.asid = ASID, .snp = true}};
static _Alignas(4096) uint8_t ram[RAM], table[RMP];
static const struct rmpc_range ranges[2] = {{0, RAM, ram}, {RAM, RMP, table}};
static struct rmpc_mem mem;
static struct rmpc_dmap dmap;
static struct rmpc_rmp rmp;

/* The host's TLB, of one entry: what a walk found, and never what the RMP said. */
static struct {
    bool valid;
    uint64_t va;
    int level;
} tlb;

static uint64_t alloc(void *next)
{
    return *(uint64_t *)next -= RMPC_PAGE_SIZE;
}

static void on_event(void *user, const struct rmpc_event *event)
{
    (void)user;
    if (event->kind == RMPC_EVENT_FLUSH_ALL || event->kind == RMPC_EVENT_FLUSH_PAGES) {
        printf("    TLB flush%s\n", tlb.valid ? ": the host's entry goes" : "");
        tlb.valid = false;
    }
}

static void show(const char *what, struct rmpc_outcome outcome)
{
    static const char *const kinds[] = {"done", "EAX", "exception", "#VMEXIT", "#VMEXIT(INVALID)", "IOMMU"};

    printf("%s: %s %#" PRIx32 ", %#" PRIx64 "\n", what, kinds[outcome.kind], outcome.code, outcome.info);
}

/* Each write asks the RMP before a byte changes. */
static struct rmpc_outcome store(struct rmpc_outcome outcome, uint64_t pfn, uint8_t value)
{
    if (outcome.kind == RMPC_OUTCOME_ALLOWED)
        rmpc_mem_write(&mem, pfn << RMPC_PAGE_SHIFT, &value, 1);
    return outcome;
}

static struct rmpc_outcome host_write(uint64_t pfn, uint8_t value)
{
    const uint64_t va = rmpc_dmap_address(&dmap, pfn);

    if (!tlb.valid || tlb.va != va) {
        tlb.va = va;
        tlb.level = rmpc_dmap_lookup(&dmap, va).level;
        tlb.valid = true;
    }
    return store(rmpc_rmp_check_host_write(&rmp, pfn, tlb.level, va), pfn, value);
}

static struct rmpc_outcome guest_write(uint8_t value)
{
    const struct rmpc_access access = {.pa = SECRET << RMPC_PAGE_SHIFT, .gpa = GPA, .va = GPA, .asid = ASID,
                                       .who = RMPC_WHO_SNP, .kind = RMPC_WRITE, .level = 1, .c = true};

    return store(rmpc_rmp_check(&rmp, &access), SECRET, value);
}

int main(void)
{
    static const struct rmpc_events events = {on_event, NULL};
    static const struct rmpc_extent memory = {0, RAM};
    static const struct rmpc_e820 e820 = {0, RAM, RMPC_E820_USABLE};
    const struct rmpc_boot_memory boot = {&memory, 1, NULL, 0, &e820, 1, RAM >> RMPC_PAGE_SHIFT};
    const struct rmpc_rmp_msrs msrs = {RAM, RAM + RMP - 1, 0};
    const struct rmpc_page page = {SECRET << RMPC_PAGE_SHIFT, GPA, 1};
    struct rmpc_host kernel = {.dmap = &dmap, .rmp = &rmp, .cpu = &host, .memory = &memory, .memory_count = 1};
    struct rmpc_dmap_config config = {.levels = 4,
                                      .large_level = 3,
                                      .page_offset = UINT64_C(0xffff888000000000),
                                      .supported_mask = UINT64_MAX,
                                      .default_mask = UINT64_MAX,
                                      .cache_modes = RMPC_CACHE_MODES_PAT};
    uint64_t next_table = RAM;
    struct rmpc_frames mapped[8];
    struct rmpc_hardware hardware;
    struct rmpc_rmp_segment segment;

    mem = (struct rmpc_mem){.ranges = ranges, .count = 2, .alloc = alloc, .user = &next_table};
    if (!rmpc_abi_matches() || rmpc_kernel_init(&config.kernel, 6, 12) != RMPC_OK ||
        rmpc_hardware_init(&hardware, RMPC_PART_MILAN) != RMPC_OK ||
        rmpc_dmap_init(&dmap, &mem, &config, mapped, 8, &events) != RMPC_OK || rmpc_dmap_boot(&dmap, &boot) != RMPC_OK ||
        rmpc_rmp_init(&rmp, &msrs, &mem, &hardware, 0, &segment, NULL) != RMPC_OK)
        return 1;

    show("host  writes the neighbour", host_write(NEIGHBOUR, 1));
    show("guest writes the page", guest_write(1));
    show("host  RMPUPDATE, the page to the guest", rmpc_rmpupdate(&rmp, &host, SECRET << RMPC_PAGE_SHIFT,
                                                                  rmpc_rmp_state_make(GPA, 1, 0, 0, ASID)));
    show("host  writes the neighbour", host_write(NEIGHBOUR, 2));
    printf("host  splits its mapping\n");
    printf("    adjust_direct_map: %d\n", rmpc_adjust_direct_map(&kernel, SECRET, 1));
    show("host  writes the neighbour again", host_write(NEIGHBOUR, 2));
    show("host  writes the page", host_write(SECRET, 3));
    show("guest writes the page", guest_write(4));
    show("guest PVALIDATE", rmpc_pvalidate(&rmp, &guest, GPA, 0, 1, &page));
    show("guest writes the page again", guest_write(4));
    return 0;
}
