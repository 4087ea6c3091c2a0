/*
 * A stranger's simulator, for tests/test_install.py: what somebody writes who has only the public headers and a library.
 *
 * Memory, page allocator and event list are its own.  C11 and C++11 alike.
 *
 *     simulator POLICY DIRECTORY < ops
 *
 * Builds 64 MiB of RAM with a 1 MiB RMP above them, runs the op records, and leaves in DIRECTORY the results, the
 * events, and each page of memory that is not all zero, after its address.  Prints the counters.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef AMALGAMATED
#include "rmpcore.h"
#else
#include <rmpcore/rmpcore.h>
#endif

#define RAM_SIZE (UINT64_C(64) << 20)
#define RAM_FRAMES (RAM_SIZE / RMPC_PAGE_SIZE)
#define RMP_SIZE (UINT64_C(1) << 20)

struct simulator {
    struct rmpc_range ranges[2]; /* RAM, RMP */
    struct rmpc_extent memory;
    struct rmpc_mem mem;
    struct rmpc_frames mapped[8];
    struct rmpc_dmap dmap;
    struct rmpc_rmp rmp;
    struct rmpc_rmp_segment segment;
    struct rmpc_cpu cpu;
    struct rmpc_firmware firmware;
    struct rmpc_machine machine;
    struct rmpc_events events;
    uint32_t *words;
    FILE *event_file;
    bool taken[RAM_FRAMES];
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(const char *what, enum rmpc_status status)
{
    if (status != RMPC_OK)
        die(what, rmpc_status_text(status));
}

/* The highest free page. */
static uint64_t give_page(void *user)
{
    struct simulator *s = (struct simulator *)user;

    for (uint64_t pfn = RAM_FRAMES; pfn-- > 0;) {
        if (!s->taken[pfn]) {
            s->taken[pfn] = true;
            return pfn * RMPC_PAGE_SIZE;
        }
    }
    return RMPC_NO_PAGE;
}

static void take_page(void *user, uint64_t pa)
{
    struct simulator *s = (struct simulator *)user;

    s->taken[pa / RMPC_PAGE_SIZE] = false;
    memset((uint8_t *)s->ranges[0].host + pa, 0, RMPC_PAGE_SIZE);
}

static void put(FILE *file, const void *data, size_t size, size_t count)
{
    if (fwrite(data, size, count, file) != count)
        die("write", strerror(errno));
}

static void on_event(void *user, const struct rmpc_event *event)
{
    put(((struct simulator *)user)->event_file, event, sizeof(*event), 1);
}

static FILE *create(const char *directory, const char *name)
{
    char path[4096];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    file = fopen(path, "wb");
    if (!file)
        die(path, strerror(errno));
    return file;
}

static struct rmpc_range zeroed(uint64_t base, uint64_t size)
{
    struct rmpc_range range = {base, size, aligned_alloc(RMPC_PAGE_SIZE, (size_t)size)};

    if (!range.host)
        die("memory", strerror(errno));
    memset(range.host, 0, (size_t)size);
    return range;
}

static enum rmpc_policy policy_of(const char *name)
{
    for (unsigned policy = 0; policy < RMPC_POLICY_END; policy++)
        if (!strcmp(rmpc_policy_name(policy), name))
            return (enum rmpc_policy)policy;
    die(name, "no such policy");
    return RMPC_POLICY_END;
}

static void build(struct simulator *s, enum rmpc_policy policy)
{
    const uint64_t modes[] = RMPC_CACHE_MODES_PAT;
    const struct rmpc_e820 rows[] = {{0, RAM_SIZE, RMPC_E820_USABLE}, {RAM_SIZE, RMP_SIZE, 2}};
    const struct rmpc_rmp_msrs msrs = {RAM_SIZE, RAM_SIZE + RMP_SIZE - 1, 0};
    struct rmpc_boot_memory boot = {NULL, 1, NULL, 0, rows, 2, RAM_FRAMES};
    struct rmpc_dmap_config config;
    struct rmpc_hardware hardware;
    struct rmpc_rmp_room room;

    s->ranges[0] = zeroed(0, RAM_SIZE);
    s->ranges[1] = zeroed(RAM_SIZE, RMP_SIZE);
    s->memory.size = RAM_SIZE;
    s->mem.ranges = s->ranges;
    s->mem.count = 2;
    s->mem.alloc = give_page;
    s->mem.free = take_page;
    s->mem.user = s;
    s->events.user = s; /* nobody is told before the machine is built */

    memset(&config, 0, sizeof(config));
    config.levels = 4;
    config.large_level = 3;
    config.page_offset = UINT64_C(0xffff888000000000);
    config.supported_mask = UINT64_MAX;
    config.default_mask = UINT64_MAX;
    memcpy(config.cache_modes, modes, sizeof(modes));
    check("kernel", rmpc_kernel_init(&config.kernel, 6, 12));
    check("hardware", rmpc_hardware_init(&hardware, RMPC_PART_MILAN));
    check("direct map", rmpc_dmap_init(&s->dmap, &s->mem, &config, s->mapped, 8, &s->events));
    check("RMP", rmpc_rmp_probe(&msrs, &s->mem, &hardware, &config.kernel, boot.max_pfn));
    check("RMP", rmpc_rmp_measure(&msrs, &s->mem, &hardware, &room));
    if (room.segments != 1)
        die("RMP", "more than one segment");
    s->words = (uint32_t *)calloc(room.words, sizeof(*s->words));
    if (!s->words)
        die("memory", strerror(errno));
    check("RMP", rmpc_rmp_init(&s->rmp, &msrs, &s->mem, &hardware, 0, &s->segment, s->words));
    boot.memory = &s->memory;
    check("boot", rmpc_dmap_boot(&s->dmap, &boot));

    s->cpu.events = &s->events;
    s->firmware.rmp = &s->rmp;
    s->firmware.dram = &s->memory;
    s->firmware.dram_count = 1;
    s->firmware.events = &s->events;
    s->machine.mem = &s->mem;
    s->machine.host.dmap = &s->dmap;
    s->machine.host.rmp = &s->rmp;
    s->machine.host.cpu = &s->cpu;
    s->machine.host.firmware = &s->firmware;
    s->machine.host.memory = &s->memory;
    s->machine.host.memory_count = 1;
    s->machine.host.policy = policy;
    s->machine.host.events = &s->events;
}

static void save_pages(FILE *file, const struct rmpc_range *range)
{
    static const uint8_t zero[RMPC_PAGE_SIZE] = {0};

    for (uint64_t at = 0; at < range->size; at += RMPC_PAGE_SIZE) {
        const uint8_t *page = (const uint8_t *)range->host + at;
        const uint64_t pa = range->base + at;

        if (memcmp(page, zero, RMPC_PAGE_SIZE) == 0)
            continue;
        put(file, &pa, sizeof(pa), 1);
        put(file, page, RMPC_PAGE_SIZE, 1);
    }
}

int main(int argc, char **argv)
{
    struct simulator *s = (struct simulator *)calloc(1, sizeof(*s));
    struct rmpc_op ops[64];
    struct rmpc_result results[64];
    struct rmpc_census census;
    FILE *result_file, *pages;
    size_t count;

    if (argc != 3 || !s) {
        fprintf(stderr, "usage: simulator POLICY DIRECTORY < ops\n");
        return 2;
    }
    if (!rmpc_abi_matches()) {
        fprintf(stderr, "built for ABI %d of rmpcore, but the library has %d (version %s)\n", RMPC_ABI, rmpc_abi(),
                rmpc_version());
        return 3;
    }
    s->event_file = create(argv[2], "events");
    build(s, policy_of(argv[1]));

    s->events.report = on_event;
    result_file = create(argv[2], "results");
    while ((count = fread(ops, sizeof(*ops), 64, stdin)) > 0) {
        rmpc_machine_run(&s->machine, ops, count, results);
        put(result_file, results, sizeof(*results), count);
    }
    pages = create(argv[2], "pages");
    save_pages(pages, &s->ranges[0]);
    save_pages(pages, &s->ranges[1]);
    if (fclose(result_file) || fclose(s->event_file) || fclose(pages))
        die("close", strerror(errno));

    rmpc_dmap_census(&s->dmap, &census);
    printf("leaves %" PRIu64 " %" PRIu64 " %" PRIu64 " missing %" PRIu64 "\n", census.leaves[1], census.leaves[2],
           census.leaves[3], census.missing);
    printf("splits %" PRIu64 " tables %" PRIu64 "\n", s->dmap.counters.splits[2], s->dmap.counters.table_pages);
    printf("instructions %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
           s->cpu.counters.rmpupdate, s->cpu.counters.psmash, s->cpu.counters.rmpread, s->cpu.counters.pvalidate,
           s->cpu.counters.rmpadjust, s->cpu.counters.rmpquery);

    free(s->words);
    free(s->ranges[0].host);
    free(s->ranges[1].host);
    free(s);
    return 0;
}
