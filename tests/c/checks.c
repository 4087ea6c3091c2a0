/*
 * The access checks in bulk, and entries that are written past the library: checks.
 *
 * rmpc_rmp_check_all() has to give what rmpc_rmp_check() gives one by one, and to stop at an access that is none;
 * rmpc_host_access_all() likewise.  A region that rmpc_rmp_touch() names is looked at again.  The inline check of a
 * write agrees with the one that judges every access, whatever it may go by.
 * Exit status 0: all of that holds.
 */
#include <stdio.h>
#include <string.h>

#include "rmpcore/rmpcore.h"
#include "rmpcore/sparse.h"

#define MIB (UINT64_C(1) << 20)
#define PAGES 2048 /* frames that are asked about: 8 MiB of the 64 */
#define ACCESSES (PAGES * RMPC_WHO_END * 3)

static int failures;

static void expect(const char *what, int holds)
{
    if (holds)
        return;
    printf("%s\n", what);
    failures++;
}

static int same(const struct rmpc_outcome *a, const struct rmpc_outcome *b)
{
    return a->code == b->code && a->kind == b->kind && a->reason == b->reason && a->info == b->info &&
           a->address == b->address;
}

static void check_in_bulk(const struct rmpc_rmp *rmp)
{
    static struct rmpc_access accesses[ACCESSES];
    static struct rmpc_outcome outcomes[ACCESSES];
    size_t count = 0, done, refused = 0;

    for (uint64_t pfn = 0; pfn < PAGES; pfn++)
        for (uint8_t who = 0; who < RMPC_WHO_END; who++)
            for (uint8_t level = 1; level <= 3; level++)
                accesses[count++] = (struct rmpc_access){.pa = pfn << RMPC_PAGE_SHIFT,
                                                         .gpa = pfn << RMPC_PAGE_SHIFT,
                                                         .asid = 5,
                                                         .who = who,
                                                         .kind = who < RMPC_WHO_VMCB ? RMPC_WRITE : RMPC_READ,
                                                         .level = level,
                                                         .c = pfn % 2};
    expect("all are accesses", rmpc_rmp_check_all(rmp, accesses, count, outcomes, &done) == RMPC_OK && done == count);
    for (size_t i = 0; i < count; i++) {
        const struct rmpc_outcome one = rmpc_rmp_check(rmp, &accesses[i]);

        expect("in bulk as one by one", same(&one, &outcomes[i]));
        refused += one.kind != RMPC_OUTCOME_ALLOWED;
    }
    expect("some are refused, some are not", refused && refused < count);
    accesses[7].level = 4;
    expect("what is no access ends it",
           rmpc_rmp_check_all(rmp, accesses, count, outcomes, &done) == RMPC_ERR_ARGUMENT && done == 7);
    expect("without SNP, too",
           rmpc_rmp_check_all(NULL, accesses, count, outcomes, &done) == RMPC_ERR_ARGUMENT && done == 7);
    expect("without SNP all is allowed", rmpc_rmp_check_all(NULL, accesses, 3, outcomes, &done) == RMPC_OK &&
                                             done == 3 && outcomes[2].kind == RMPC_OUTCOME_ALLOWED);
}

static void write_in_bulk(struct rmpc_host *host)
{
    static uint64_t pfns[PAGES];
    static struct rmpc_outcome outcomes[PAGES];
    size_t refused = 0;
    int level;

    for (uint64_t i = 0; i < PAGES; i++)
        pfns[i] = i * 7 % PAGES;
    rmpc_host_access_all(host, pfns, PAGES, RMPC_HOST_WRITE, outcomes);
    for (size_t i = 0; i < PAGES; i++) {
        const struct rmpc_outcome one = rmpc_host_access(host, pfns[i], RMPC_HOST_WRITE, &level);

        expect("host writes in bulk as one by one", same(&one, &outcomes[i]));
        refused += one.kind != RMPC_OUTCOME_ALLOWED;
    }
    expect("one region is refused, and no other", refused == RMPC_REGION_FRAMES);
}

/* The inline check beside rmpc_rmp_check(), which does without it; how many writes of each level are refused. */
static void ask_inline(const char *what, const struct rmpc_rmp *rmp, size_t small, size_t large)
{
    const size_t expected[] = {0, small, large, large};

    for (uint8_t level = 1; level <= 3; level++) {
        size_t refused = 0;

        for (uint64_t pfn = 0; pfn < rmp->frames + 8; pfn++) {
            const struct rmpc_access access = {
                .pa = pfn << RMPC_PAGE_SHIFT, .who = RMPC_WHO_HOST, .kind = RMPC_WRITE, .level = level};
            const bool may = rmpc_rmp_host_may_write(rmp, pfn, level);

            if (may != (rmpc_rmp_check(rmp, &access).kind == RMPC_OUTCOME_ALLOWED) ||
                may != (rmpc_rmp_check_host_write(rmp, pfn, level, 0).kind == RMPC_OUTCOME_ALLOWED))
                expect(what, false);
            refused += !may;
        }
        expect(what, refused == expected[level]);
    }
}

/* rmp section 3.1, and 3.7 for pages in use: one page of the third region, then a VMCB at the head of the fourth. */
static void write_inline(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu)
{
    const struct rmpc_in_use pages = {0x600, 0, 0};

    rmp->hardware.hv_in_use_wr = false;
    ask_inline("inline, an empty table", rmp, 0, 0);
    expect("which needs no call", rmpc_rmp_passes(rmp, 0x405, 1) && rmpc_rmp_passes(rmp, 0x405, 2));
    rmpc_rmpupdate(rmp, cpu, UINT64_C(0x405) << RMPC_PAGE_SHIFT, rmpc_rmp_state_make(0x1000, 1, 0, 0, 5));
    ask_inline("inline, a page assigned", rmp, 1, RMPC_REGION_FRAMES);
    expect("a page in use", rmpc_in_use_add(rmp, pages) == RMPC_OK);
    ask_inline("inline, and one in use", rmp, 2, 2 * RMPC_REGION_FRAMES);
    expect("which is not any more", rmpc_vmexit(rmp, pages.vmcb << RMPC_PAGE_SHIFT) == RMPC_OK);
    ask_inline("inline, after that", rmp, 1, RMPC_REGION_FRAMES);
    expect("which needs no call again", rmpc_rmp_passes(rmp, 0x600, 2));
    rmpc_rmpupdate(rmp, cpu, UINT64_C(0x405) << RMPC_PAGE_SHIFT, rmpc_rmp_state_make(0, 0, 0, 0, 0));
    ask_inline("inline, given back", rmp, 0, 0);
    expect("without SNP all is allowed", rmpc_rmp_host_may_write(NULL, 0, 1));
}

int main(void)
{
    static const struct rmpc_extent memory = {0, 64 * MIB};
    static const struct rmpc_e820 e820 = {0, 64 * MIB, RMPC_E820_USABLE};
    struct rmpc_range ranges[] = {{0, 64 * MIB, NULL}, {64 * MIB, MIB, NULL}};
    struct rmpc_pool pool = {.memory = &memory, .memory_count = 1};
    struct rmpc_mem mem = {.ranges = ranges, .count = 2, .alloc = rmpc_pool_alloc, .user = &pool};
    const struct rmpc_boot_memory boot = {&memory, 1, NULL, 0, &e820, 1, 64 * MIB >> RMPC_PAGE_SHIFT};
    const struct rmpc_rmp_msrs msrs = {.base = 64 * MIB, .end = 65 * MIB - 1};
    struct rmpc_dmap_config config = {.levels = 4,
                                      .large_level = 2,
                                      .page_offset = UINT64_C(0xffff888000000000),
                                      .supported_mask = UINT64_MAX,
                                      .default_mask = UINT64_MAX,
                                      .cache_modes = RMPC_CACHE_MODES_PAT};
    struct rmpc_frames mapped[8];
    struct rmpc_hardware hardware;
    struct rmpc_rmp_segment segment;
    struct rmpc_rmp_room room;
    static uint32_t words[256];
    static struct rmpc_rmp rmp;
    struct rmpc_dmap dmap;
    struct rmpc_cpu cpu = {0};
    struct rmpc_host host = {.dmap = &dmap, .rmp = &rmp, .cpu = &cpu, .memory = &memory, .memory_count = 1};
    const uint64_t by_hand[2] = {5ull << 51 | 1, 0};

    for (int i = 0; i < 2; i++)
        if (rmpc_sparse_map(&ranges[i], false) != RMPC_OK)
            return 2;
    pool.mem = &mem;
    rmpc_pool_init(&pool);
    rmpc_kernel_init(&config.kernel, 6, 12);
    rmpc_hardware_init(&hardware, RMPC_PART_GENOA);
    if (rmpc_dmap_init(&dmap, &mem, &config, mapped, 8, NULL) != RMPC_OK || rmpc_dmap_boot(&dmap, &boot) != RMPC_OK ||
        rmpc_rmp_measure(&msrs, &mem, &hardware, &room) != RMPC_OK || room.words > 256 ||
        rmpc_rmp_init(&rmp, &msrs, &mem, &hardware, 0, &segment, words) != RMPC_OK)
        return 2;

    write_inline(&rmp, &cpu);
    /* one page of the second region, written past the library */
    if (rmpc_mem_write(&mem, 64 * MIB + 0x4000 + 0x233 * 16, by_hand, sizeof(by_hand)) != RMPC_OK)
        return 2;
    expect("nobody knows of the entry", rmpc_rmp_next_used(&rmp, 0) != 0x233);
    rmpc_rmp_touch(&rmp, 0x233);
    expect("now it is found", rmpc_rmp_next_used(&rmp, 0) == 0x233);
    ask_inline("inline, an entry written past the library", &rmp, 1, RMPC_REGION_FRAMES);
    write_in_bulk(&host);
    check_in_bulk(&rmp);
    for (int i = 0; i < 2; i++)
        rmpc_sparse_unmap(&ranges[i]);
    return failures != 0;
}
