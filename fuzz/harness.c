/*
 * In-process fuzzing of the C core, for libFuzzer, AFL++ and plain replay (fuzz/README.md).
 *
 * The first byte of an input selects an entry of the table at the end; the rest is read by it.  What has to hold is
 * checked with REQUIRE, whatever the input: the sanitizers see to the rest.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rmpcore/rmpcore.h"
#include "rmpcore/sparse.h"

#define REQUIRE(condition)                                                                    \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "harness: line %d does not hold: %s\n", __LINE__, #condition);     \
            abort();                                                                          \
        }                                                                                     \
    } while (0)
#define COUNT_OF(array) (sizeof(array) / sizeof(*(array)))

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* ---- reading an input ---- */

struct input {
    const uint8_t *at;
    size_t left;
    uint64_t frame; /* the last one read */
};

static bool take(struct input *in, void *out, size_t size)
{
    size_t have = size < in->left ? size : in->left;

    memset(out, 0, size);
    memcpy(out, in->at, have);
    in->at += have;
    in->left -= have;
    return have == size;
}

static uint8_t u8(struct input *in)
{
    uint8_t value;
    take(in, &value, sizeof(value));
    return value;
}

static uint16_t u16(struct input *in)
{
    uint16_t value;
    take(in, &value, sizeof(value));
    return value;
}

static uint32_t u32(struct input *in)
{
    uint32_t value;
    take(in, &value, sizeof(value));
    return value;
}

static uint64_t u64(struct input *in)
{
    uint64_t value;
    take(in, &value, sizeof(value));
    return value;
}

/* Where the simulated memory of a machine lies. */
#define RMP_BASE (32 * MIB)
#define ARENA_BASE (48 * MIB)
#define ARENA_PAGES 192
#define SEGMENT_BASE (64 * MIB)
#define COVERED UINT64_C(16384)             /* frames of a contiguous RMP */
#define RAGGED (COVERED - UINT64_C(256))    /* and of one that ends inside a region */
#define C_BIT (UINT64_C(1) << 47)

/* A frame, mostly one where something is. */
static uint64_t read_frame(struct input *in)
{
    static const uint64_t edges[32] = {
        0, 511, 512, 0x9f, 0xa0, 0x100, 4096, 4607, /* the image is from 4096 on */
        RMP_BASE >> 12, (RMP_BASE >> 12) + 4, ARENA_BASE >> 12, RAGGED - 1, RAGGED, COVERED - 512, COVERED - 1, COVERED,
        0x3ffff, 0x40000, 0x80000, 0xbffff, 0xc0000, 0xfffff, 0x100000, 0x17ffff,
        0x180000, (UINT64_C(1) << 34) - 1, UINT64_C(1) << 34, (C_BIT >> 12) + 5120,
        (UINT64_C(1) << 40) - 1, UINT64_C(1) << 40, UINT64_MAX >> 12, UINT64_MAX};
    static const uint64_t work[4] = {5120, 5632, 6144, 5121};
    const uint8_t how = u8(in);

    switch (how & 7) {
    case 0:
        in->frame = (uint64_t)(how >> 3) * RMPC_REGION_FRAMES;
        break;
    case 1:
        in->frame = (uint64_t)(how >> 3) * RMPC_REGION_FRAMES + u8(in);
        break;
    case 2:
        in->frame = u16(in);
        break;
    case 3:
        in->frame = edges[how >> 3];
        break;
    case 4:
        in->frame = work[(how >> 3) & 3] + (how >> 5);
        break;
    case 5:
        in->frame += how >> 3;
        break;
    case 6:
        in->frame = u32(in);
        break;
    default:
        in->frame = u64(in);
    }
    return in->frame;
}

static uint64_t read_address(struct input *in)
{
    const uint64_t address = read_frame(in) << RMPC_PAGE_SHIFT;
    const uint8_t how = u8(in);

    switch (how & 7) {
    case 1:
        return address | C_BIT;
    case 2:
        return address + (how >> 3);
    case 3:
        return address + (uint64_t)(how >> 3) * 64;
    case 4:
        return u64(in);
    default:
        return address;
    }
}

static uint64_t read_count(struct input *in)
{
    static const uint64_t edges[16] = {
        0, 1, 2, 33, 34, 511, 512, 513, 1024, 0x40000, UINT64_C(1) << 20, (UINT64_C(1) << 20) + 1,
        UINT64_C(1) << 34, UINT64_C(1) << 40, UINT64_MAX - 1, UINT64_MAX};
    const uint8_t how = u8(in);

    switch (how & 3) {
    case 0:
        return how >> 2;
    case 1:
        return edges[how >> 4];
    case 2:
        return u16(in);
    default:
        return how >> 2 == 63 ? u64(in) : 512 * (uint64_t)(how >> 2);
    }
}

static uint32_t read_asid(struct input *in)
{
    const uint8_t how = u8(in);

    if (how < 0xf0)
        return how & 7;
    return how == 0xff ? u32(in) : 0x3f8u + (how & 15u);
}

static uint64_t read_word(struct input *in)
{
    const uint8_t how = u8(in);

    if (how < 0xc0)
        return how & 3;
    return how == 0xff ? u64(in) : UINT64_C(1) << (how & 63);
}

/* Extents in rising order, a byte for a gap and one for a size; sometimes raw ones. */
static size_t read_extents(struct input *in, struct rmpc_extent *extents, size_t most)
{
    const uint8_t how = u8(in);
    const size_t count = (how & 15) < most ? how & 15 : most;
    uint64_t end = 0;

    for (size_t i = 0; i < count; i++) {
        if (how & 0x80) {
            extents[i] = (struct rmpc_extent){read_address(in), read_count(in) << (how & 0x40 ? 0 : 12)};
        } else {
            const uint8_t gap = u8(in), size = u8(in);
            extents[i].base = end + ((uint64_t)(gap & 31) << (12 + (gap >> 5) * 4));
            extents[i].size = (uint64_t)(size & 31) << (12 + (size >> 5) * 4);
            end = extents[i].base + extents[i].size;
        }
    }
    return count;
}

/* A profile: a part, and some switches set to something. */
static void read_hardware(struct input *in, struct rmpc_hardware *hardware, bool possible)
{
    const uint8_t how = u8(in);
    uint32_t words[sizeof(*hardware) / sizeof(uint32_t)];

    REQUIRE(rmpc_hardware_init(hardware, (enum rmpc_part)(how % RMPC_PART_END)) == RMPC_OK);
    REQUIRE(rmpc_hardware_check(hardware) == RMPC_OK);
    REQUIRE(rmpc_hardware_init(hardware, (enum rmpc_part)(how % RMPC_PART_END + RMPC_PART_END)) == RMPC_ERR_ARGUMENT);
    for (unsigned n = how / RMPC_PART_END % 8; n; n--) {
        struct rmpc_hardware changed;
        const size_t i = u8(in) % COUNT_OF(words);
        const uint8_t value = u8(in);

        memcpy(words, hardware, sizeof(words));
        words[i] = value == 0xff ? u32(in) : value == 0xfe ? 512 : value;
        memcpy(&changed, words, sizeof(words));
        if (!possible || rmpc_hardware_check(&changed) == RMPC_OK)
            *hardware = changed;
    }
}

static const int kernels[][2] = {{6, 12}, {6, 1}, {6, 2}, {6, 6}, {6, 9}, {6, 10}, {6, 13}, {6, 14}, {6, 15}, {7, 3}};

/* ---- a machine ---- */

struct map {
    int levels;
    int large_level;
    bool image;
    uint64_t page_offset;
    size_t count;
    struct rmpc_extent memory[3];
};

static const struct map maps[] = {
    {4, 3, true, UINT64_C(0xffff888000000000), 3, {{0, 0xa0000}, {MIB, 3 * GIB - MIB}, {4 * GIB, 2 * GIB}}},
    {5, 3, false, UINT64_C(0xff11000000000000), 3, {{0, 0xa0000}, {MIB, 3 * GIB - MIB}, {4 * GIB, 2 * GIB}}},
    {4, 2, true, UINT64_C(0xffff888000000000), 2, {{0, 0x9f000}, {MIB, 127 * MIB + 0x123000}}},
    {4, 1, true, UINT64_C(0xffff9d4640000000), 2, {{0, 0xa0000}, {MIB, 22 * MIB}}},
};

enum form { NO_RMP, CONTIGUOUS, WITHOUT_WORDS, SEGMENTED, ENCRYPTED, FORM_END };

struct set_up {
    const struct map *map;
    struct rmpc_kernel kernel;
    struct rmpc_hardware hardware;
    enum form form;
    enum rmpc_policy policy;
    uint64_t pages;   /* that the allocator has */
    uint8_t lies;     /* each so many-th allocation is none */
    bool kernel_readonly;
    bool events;
};

/* The memory is a malloc() for each range, so that the address sanitizer knows where it ends. */
struct machine {
    struct rmpc_range ranges[3];
    void *arena;
    void *whole;   /* RMP of COVERED frames */
    void *ragged;  /* and of RAGGED ones */
    void *head;    /* bookkeeping and segment table */
    void *segment; /* a segment of 1 GiB */
    struct rmpc_mem mem;
    struct rmpc_extent arena_extent;
    struct rmpc_pool pool;
    uint8_t lies;
    unsigned allocations;
    uint64_t lowest; /* page that was given out */
    struct rmpc_frames mapped[16];
    struct rmpc_dmap dmap;
    struct rmpc_rmp rmp;
    struct rmpc_rmp_segment segments[RMPC_RST_ENTRIES];
    uint32_t words[2 * 512];
    struct rmpc_cpu cpu;
    struct rmpc_firmware firmware;
    struct rmpc_machine machine;
    struct rmpc_events events;
    uint64_t hash;     /* of the events */
    uint64_t reported; /* how many */
};

#define RMP_SIZE(frames) (RMPC_RMP_BOOKKEEPING + (frames) * RMPC_RMP_ENTRY_SIZE)
#define HEAD_SIZE (RMPC_RMP_BOOKKEEPING + RMPC_PAGE_SIZE)
#define SEGMENT_FRAMES (GIB >> RMPC_PAGE_SHIFT)
#define SEGMENT_SIZE (SEGMENT_FRAMES * RMPC_RMP_ENTRY_SIZE)
#define ARENA_SIZE (ARENA_PAGES * RMPC_PAGE_SIZE)

static void *pages_of_host(size_t size)
{
    void *host = NULL;

    REQUIRE(posix_memalign(&host, (size_t)RMPC_PAGE_SIZE, size) == 0);
    return host;
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 29;
}

static void on_event(void *user, const struct rmpc_event *event)
{
    struct machine *m = user;

    REQUIRE(event->kind > 0 && event->kind < RMPC_EVENT_END && !event->reserved);
    m->reported++;
    m->hash = mix(m->hash, event->kind | (uint64_t)event->level << 16 | (uint64_t)(uint32_t)event->code << 32);
    m->hash = mix(mix(mix(m->hash, event->a), event->b), event->c);
}

static uint64_t allocate(void *user)
{
    static const uint64_t wrong[] = {RMPC_NO_PAGE, 0, ARENA_BASE + 8, ARENA_BASE + ARENA_SIZE, UINT64_C(1) << 52};
    struct machine *m = user;
    uint64_t pa;

    m->allocations++;
    if (m->lies && m->allocations % m->lies == 0)
        return wrong[m->allocations / m->lies % COUNT_OF(wrong)];
    pa = rmpc_pool_alloc(&m->pool);
    if (pa < m->lowest)
        m->lowest = pa;
    return pa;
}

static void give_back(void *user, uint64_t pa)
{
    struct machine *m = user;

    /* contents of a free page do not matter: nobody may go on reading it */
    REQUIRE(pa >= ARENA_BASE && pa < ARENA_BASE + ARENA_SIZE && pa % RMPC_PAGE_SIZE == 0);
    memset((uint8_t *)m->arena + (pa - ARENA_BASE), 0xa5, (size_t)RMPC_PAGE_SIZE);
    rmpc_pool_free(&m->pool, pa);
}

static void configure(const struct set_up *set_up, struct rmpc_dmap_config *config)
{
    *config = (struct rmpc_dmap_config){
        .levels = set_up->map->levels,
        .large_level = set_up->policy == RMPC_POLICY_MAP_4K && set_up->map->large_level < 3 ? 1
                                                                                             : set_up->map->large_level,
        .page_offset = set_up->map->page_offset,
        .supported_mask = UINT64_MAX,
        .default_mask = UINT64_MAX,
        .c_bit = set_up->form == ENCRYPTED ? C_BIT : 0,
        .cache_modes = RMPC_CACHE_MODES_PAT,
        .kernel = set_up->kernel,
    };
    if (set_up->map->image)
        config->image = (struct rmpc_image){
            .text = RMPC_HIGH_MAP + 16 * MIB,
            .etext = RMPC_HIGH_MAP + 17 * MIB + 0x5000,
            .start_rodata = RMPC_HIGH_MAP + 18 * MIB,
            .end_rodata = RMPC_HIGH_MAP + 18 * MIB + 0x9000,
            .brk_end = RMPC_HIGH_MAP + 21 * MIB + 0x3000,
        };
}

/* Make the machine's memory as it is before anything ran, fill in the rest that does not depend on the set-up. */
static void clear_machine(struct machine *m, const struct set_up *set_up, uint8_t poison)
{
    if (!m->arena) {
        m->arena = pages_of_host(ARENA_SIZE);
        m->whole = pages_of_host(RMP_SIZE(COVERED));
        m->ragged = pages_of_host(RMP_SIZE(RAGGED));
        m->head = pages_of_host(HEAD_SIZE);
        m->segment = pages_of_host(SEGMENT_SIZE);
        m->lowest = ARENA_BASE;
        memset(m->segment, 0, SEGMENT_SIZE);
    }
    /* a table's page may hold anything at first: another thing on each machine */
    memset((uint8_t *)m->arena + (m->lowest - ARENA_BASE), poison, (size_t)(ARENA_BASE + ARENA_SIZE - m->lowest));
    m->lowest = ARENA_BASE + (ARENA_PAGES - 1) * RMPC_PAGE_SIZE;
    m->arena_extent = (struct rmpc_extent){ARENA_BASE + (ARENA_PAGES - set_up->pages) * RMPC_PAGE_SIZE,
                                           set_up->pages * RMPC_PAGE_SIZE};
    m->ranges[0] = (struct rmpc_range){RMP_BASE, RMP_SIZE(COVERED), m->whole};
    if (set_up->form == WITHOUT_WORDS)
        m->ranges[0] = (struct rmpc_range){RMP_BASE, RMP_SIZE(RAGGED), m->ragged};
    if (set_up->form == SEGMENTED)
        m->ranges[0] = (struct rmpc_range){RMP_BASE, HEAD_SIZE, m->head};
    memset(m->ranges[0].host, 0, (size_t)m->ranges[0].size);
    m->ranges[1] = (struct rmpc_range){ARENA_BASE, ARENA_SIZE, m->arena};
    m->ranges[2] = (struct rmpc_range){SEGMENT_BASE, SEGMENT_SIZE, m->segment};
    if (m->segments[0].entries == m->segment)
        memset(m->segment, 0, SEGMENT_SIZE);
    memset(m->segments, 0, sizeof(m->segments));
    memset(m->words, 0, sizeof(m->words));
    memset(&m->pool, 0, sizeof(m->pool));
    m->pool.mem = &m->mem;
    m->pool.memory = &m->arena_extent;
    m->pool.memory_count = 1;
    rmpc_pool_init(&m->pool);
    m->mem = (struct rmpc_mem){m->ranges, set_up->form == SEGMENTED ? 3 : 2, allocate, give_back, m, 0, 0};
    m->lies = set_up->lies;
    m->allocations = 0;
    m->events = (struct rmpc_events){set_up->events ? on_event : NULL, m};
    m->hash = 0;
    m->reported = 0;
    memset(&m->cpu, 0, sizeof(m->cpu));
    m->cpu.events = &m->events;
    memset(&m->firmware, 0, sizeof(m->firmware));
    m->firmware.dram = set_up->map->memory;
    m->firmware.dram_count = set_up->map->count;
    m->firmware.events = &m->events;
    memset(&m->machine, 0, sizeof(m->machine));
    m->machine.mem = &m->mem;
    m->machine.host = (struct rmpc_host){
        .dmap = &m->dmap,
        .cpu = &m->cpu,
        .firmware = &m->firmware,
        .memory = set_up->map->memory,
        .memory_count = set_up->map->count,
        .policy = set_up->policy,
        .events = &m->events,
    };
}

static uint64_t top_of(const struct map *map)
{
    return (map->memory[map->count - 1].base + map->memory[map->count - 1].size) >> RMPC_PAGE_SHIFT;
}

static void place_rmp(struct machine *m, const struct set_up *set_up)
{
    struct rmpc_rmp_msrs msrs = {RMP_BASE, RMP_BASE + m->ranges[0].size - 1, 0};
    struct rmpc_rmp_room room;
    struct rmpc_hardware hardware = set_up->hardware;

    if (set_up->form == NO_RMP)
        return;
    if (set_up->form == SEGMENTED) {
        const uint64_t rst[] = {SEGMENT_BASE | 1, SEGMENT_BASE | 1 | UINT64_C(1) << 60};

        msrs = (struct rmpc_rmp_msrs){RMP_BASE, 0, RMPC_RMP_CFG_SEGMENTED | 30 << 8};
        hardware.segmented = 1;
        hardware.segment_min = 30 - hardware.segment_unit;
        hardware.segment_limit = 0;
        REQUIRE(rmpc_mem_write(&m->mem, RMP_BASE + RMPC_RMP_BOOKKEEPING, rst, sizeof(rst)) == RMPC_OK);
    }
    REQUIRE(rmpc_rmp_measure(&msrs, &m->mem, &hardware, &room) == RMPC_OK);
    REQUIRE(room.segments <= COUNT_OF(m->segments) && room.words <= COUNT_OF(m->words));
    REQUIRE(rmpc_rmp_init(&m->rmp, &msrs, &m->mem, &hardware, set_up->form == ENCRYPTED ? C_BIT : 0, m->segments,
                          set_up->form == WITHOUT_WORDS ? NULL : m->words) == RMPC_OK);
    m->machine.host.rmp = &m->rmp;
    m->firmware.rmp = &m->rmp;
}

/* false: the allocator had too few pages for a direct map. */
static bool start(struct machine *m, const struct set_up *set_up, uint8_t poison)
{
    const struct rmpc_extent *memory = set_up->map->memory;
    const struct rmpc_extent reserved[] = {{16 * MIB, 5 * MIB + 0x3000}, {RMP_BASE, MIB}, {ARENA_BASE, MIB}};
    struct rmpc_e820 e820[3];
    const struct rmpc_boot_memory boot = {memory, set_up->map->count, reserved, 3, e820, set_up->map->count,
                                          top_of(set_up->map)};
    struct rmpc_dmap_config config;
    enum rmpc_status status;

    for (size_t i = 0; i < set_up->map->count; i++)
        e820[i] = (struct rmpc_e820){memory[i].base, memory[i].size, RMPC_E820_USABLE};
    clear_machine(m, set_up, poison);
    configure(set_up, &config);
    REQUIRE(rmpc_dmap_init(&m->dmap, &m->mem, &config, m->mapped, COUNT_OF(m->mapped), &m->events) == RMPC_OK);
    m->dmap.kernel_readonly = set_up->kernel_readonly;
    place_rmp(m, set_up);
    status = rmpc_dmap_boot(&m->dmap, &boot);
    REQUIRE(status == RMPC_OK || status == RMPC_ERR_NOMEM);
    return status == RMPC_OK;
}

/* ---- what a machine looks like ---- */

struct listed {
    uint64_t hash;
    uint64_t tables;
    uint64_t leaves[4];
    uint64_t missing;
    const struct rmpc_dmap *dmap;
    struct rmpc_dmap *copy; /* a direct map to be rebuilt from the entries, or NULL */
};

static bool on_entry(void *user, const struct rmpc_dmap_entry *entry)
{
    struct listed *listed = user;
    const struct rmpc_dmap *dmap = listed->dmap;
    const uint64_t offset = entry->va - dmap->config.page_offset;

    REQUIRE(entry->raw && entry->level >= 1 && entry->level <= dmap->config.levels);
    REQUIRE(entry->table == rmpc_pte_is_table(entry->raw, entry->level));
    REQUIRE(entry->va % rmpc_level_size(entry->level) == 0);
    listed->hash = mix(mix(listed->hash, entry->va ^ (uint64_t)entry->level), entry->raw);
    listed->tables += entry->table;
    if (!entry->table && entry->level <= 3 && offset < rmpc_dmap_limit(dmap)) {
        listed->leaves[entry->level] += entry->raw & RMPC_PTE_P;
        listed->missing += entry->raw & RMPC_PTE_P ? 0 : rmpc_level_size(entry->level) >> RMPC_PAGE_SHIFT;
    }
    if (listed->copy && entry->table)
        REQUIRE(rmpc_dmap_put_table(listed->copy, entry->va, entry->level, entry->raw) == RMPC_OK);
    else if (listed->copy)
        REQUIRE(rmpc_dmap_put_leaf(listed->copy, entry->va, entry->level, entry->raw) == RMPC_OK);
    return true;
}

static struct listed list(const struct rmpc_dmap *dmap, struct rmpc_dmap *copy)
{
    struct listed listed = {.dmap = dmap, .copy = copy};

    rmpc_dmap_list(dmap, 0, UINT64_MAX, dmap->config.levels, on_entry, &listed);
    return listed;
}

static void check_dmap(const struct machine *m)
{
    static uint64_t scratch[ARENA_PAGES];
    const struct listed listed = list(&m->dmap, NULL);
    struct rmpc_census census;
    uint64_t where;

    REQUIRE(rmpc_dmap_validate(&m->dmap, scratch, COUNT_OF(scratch), &where) == RMPC_INVARIANTS_HOLD);
    REQUIRE(listed.tables + 1 == m->dmap.counters.table_pages);
    rmpc_dmap_census(&m->dmap, &census);
    for (int level = 1; level <= 3; level++)
        REQUIRE(census.leaves[level] == listed.leaves[level]);
    REQUIRE(census.missing == listed.missing);
    REQUIRE(rmpc_dmap_page_total(&m->dmap.counters) == m->dmap.page_total);
}

/* As long as nothing was stored past the checks: subpage counts count (rmp section 1.1), and bookkeeping does (1.6). */
static void check_rmp(const struct rmpc_rmp *rmp)
{
    static uint64_t books[RMPC_RMP_ASIDS];
    const struct rmpc_rmp_segment *segment = &rmp->segments[0];

    if (rmp->raw)
        return;
    memset(books, 0, sizeof(books));
    for (uint64_t first = 0; first < segment->frames; first += RMPC_REGION_FRAMES) {
        const uint64_t left = segment->frames - first;
        const uint64_t count = left < RMPC_REGION_FRAMES ? left : RMPC_REGION_FRAMES;
        const struct rmpc_rmp_entry *head = &segment->entries[first];
        const bool large = (head->lo & RMPC_RMP_ASSIGNED) && (head->lo & RMPC_RMP_SIZE_2M);
        uint64_t others = 0;

        if (segment->regions && !segment->regions[first / RMPC_REGION_FRAMES])
            continue;
        for (uint64_t i = 0; i < count; i++) {
            const uint64_t lo = head[i].lo;

            if (!(lo & RMPC_RMP_ASSIGNED))
                continue;
            others += i > 0;
            books[rmpc_rmp_asid(head[i])] += lo & RMPC_RMP_SIZE_2M ? rmp->hardware.bookkeeping : 1;
        }
        if (rmp->hardware.subpage_count)
            REQUIRE(rmpc_rmp_subpages(*head) == (large ? 0 : others));
    }
    for (size_t i = 1; rmp->hardware.bookkeeping && i < RMPC_RMP_ASIDS; i++)
        REQUIRE(rmp->bookkeeping[i] == books[i]);
}

/* The second machine has gone another way to the same state. */
static void check_same(const struct machine *a, const struct machine *b)
{
    const struct rmpc_host *h = &a->machine.host, *g = &b->machine.host;

    REQUIRE(a->hash == b->hash && a->reported == b->reported);
    REQUIRE(list(&a->dmap, NULL).hash == list(&b->dmap, NULL).hash);
    REQUIRE(!memcmp(&a->dmap.counters, &b->dmap.counters, sizeof(a->dmap.counters)));
    REQUIRE(a->dmap.root == b->dmap.root && a->dmap.page_total == b->dmap.page_total);
    REQUIRE(a->dmap.mapped_count == b->dmap.mapped_count && a->dmap.max_pfn_mapped == b->dmap.max_pfn_mapped);
    REQUIRE(!memcmp(a->mapped, b->mapped, a->dmap.mapped_count * sizeof(*a->mapped)));
    REQUIRE(a->mem.fail_skip == b->mem.fail_skip && a->mem.fail_count == b->mem.fail_count);
    REQUIRE(a->pool.next == b->pool.next && a->pool.freed == b->pool.freed && a->allocations == b->allocations);
    REQUIRE(h->leaked_pages == g->leaked_pages && h->retries == g->retries && h->policy == g->policy);
    REQUIRE(!memcmp(&h->counters, &g->counters, sizeof(h->counters)));
    /* the mode is no state: each op sets it */
    REQUIRE(!memcmp(&a->cpu.counters, &b->cpu.counters, sizeof(a->cpu.counters)));
    REQUIRE(a->cpu.inject.count == b->cpu.inject.count);
    for (size_t i = 0; i < a->cpu.inject.count; i++)
        REQUIRE(a->cpu.inject.runs[i].code == b->cpu.inject.runs[i].code &&
                a->cpu.inject.runs[i].count == b->cpu.inject.runs[i].count);
    REQUIRE(a->firmware.ready == b->firmware.ready);
    REQUIRE(a->firmware.context_count == b->firmware.context_count);
    REQUIRE(a->firmware.record_count == b->firmware.record_count);
    REQUIRE(!memcmp(a->firmware.contexts, b->firmware.contexts, a->firmware.context_count * sizeof(struct rmpc_context)));
    REQUIRE(!memcmp(a->firmware.records, b->firmware.records, a->firmware.record_count * sizeof(struct rmpc_record)));
    REQUIRE(a->machine.address_count == b->machine.address_count);
    REQUIRE(!memcmp(a->machine.addresses, b->machine.addresses, a->machine.address_count * sizeof(uint64_t)));
    if (!h->rmp)
        return;
    REQUIRE(a->rmp.raw == b->rmp.raw && a->rmp.in_use_count == b->rmp.in_use_count);
    REQUIRE(!memcmp(a->rmp.quick, b->rmp.quick, sizeof(a->rmp.quick)));
    REQUIRE(!memcmp(a->rmp.in_use, b->rmp.in_use, a->rmp.in_use_count * sizeof(struct rmpc_in_use)));
    REQUIRE(!memcmp(a->words, b->words, sizeof(a->words)));
    REQUIRE(!memcmp(a->ranges[0].host, b->ranges[0].host, (size_t)a->ranges[0].size));
    if (a->mem.count > 2)
        REQUIRE(!memcmp(a->segment, b->segment, SEGMENT_SIZE));
}

/* A direct map that is rebuilt from its own entries is the same. */
static void check_rebuilt(const struct machine *m, struct machine *copy, const struct set_up *set_up)
{
    struct rmpc_dmap_config config;
    struct listed listed;

    clear_machine(copy, set_up, 0x5a);
    copy->lowest = ARENA_BASE; /* all pages may be written */
    configure(set_up, &config);
    REQUIRE(rmpc_dmap_init(&copy->dmap, &copy->mem, &config, copy->mapped, COUNT_OF(copy->mapped), &copy->events) ==
            RMPC_OK);
    REQUIRE(rmpc_dmap_put_root(&copy->dmap, m->dmap.root) == RMPC_OK);
    listed = list(&m->dmap, &copy->dmap);
    REQUIRE(list(&copy->dmap, NULL).hash == listed.hash);
    for (size_t i = m->dmap.mapped_count; i-- > 0;)
        REQUIRE(rmpc_dmap_add_mapped(&copy->dmap, m->mapped[i].start, m->mapped[i].end) == RMPC_OK);
    REQUIRE(copy->dmap.mapped_count == m->dmap.mapped_count);
    REQUIRE(copy->dmap.max_pfn_mapped == m->dmap.max_pfn_mapped);
    REQUIRE(copy->dmap.counters.table_pages == m->dmap.counters.table_pages);
    if (m->dmap.config.image.text)
        REQUIRE(rmpc_dmap_put_high_path(&copy->dmap) == RMPC_OK);
    REQUIRE(list(&copy->dmap, NULL).hash == listed.hash);
}

/* ---- entry "tape": ops and calls on two machines ---- */

/* Fields of each op, in the order in which they are read.  F: addr is a frame, A: an address; g: gpa; e: entry bits in
 * gpa; l: level; i: id; c: count; r: few pages in count; C: count is an address; X: high bits in count; p: permissions
 * in count; v: va is an address; x: rcx; d: rdx; f: flavour in level. */
static const char *const shapes[RMPC_OP_END] = {
    [RMPC_OP_INSN_RMPUPDATE] = "AgiX",
    [RMPC_OP_INSN_PSMASH] = "A",
    [RMPC_OP_INSN_RMPREAD] = "A",
    [RMPC_OP_RMPUPDATE] = "Fgi",
    [RMPC_OP_RMP_MAKE_PRIVATE] = "Fgli",
    [RMPC_OP_RMP_MAKE_FIRMWARE] = "Fl",
    [RMPC_OP_RMP_MAKE_SHARED] = "Fl",
    [RMPC_OP_PSMASH] = "F",
    [RMPC_OP_SNP_LOOKUP_RMPENTRY] = "F",
    [RMPC_OP_ADJUST_DIRECT_MAP] = "Fl",
    [RMPC_OP_DUMP_RMPENTRY] = "F",
    [RMPC_OP_SNP_LEAK_PAGES] = "Fr",
    [RMPC_OP_LOOKUP] = "F",
    [RMPC_OP_SET_DIRECT_MAP_INVALID_NOFLUSH] = "F",
    [RMPC_OP_SET_DIRECT_MAP_DEFAULT_NOFLUSH] = "F",
    [RMPC_OP_SET_DIRECT_MAP_VALID_NOFLUSH] = "Fc",
    [RMPC_OP_INJECT] = "iR",
    [RMPC_OP_FAIL_ALLOC] = "nc",
    [RMPC_OP_CHANGE_PAGE_ATTR_SET] = "fFce",
    [RMPC_OP_CHANGE_PAGE_ATTR_CLEAR] = "fFce",
    [RMPC_OP_CPA_ADDRESS] = "F",
    [RMPC_OP_INSN_PVALIDATE] = "Agvlixd",
    [RMPC_OP_INSN_RMPADJUST] = "AgvlixD",
    [RMPC_OP_INSN_RMPQUERY] = "AgvliD",
    [RMPC_OP_VMRUN] = "AvgCi",
    [RMPC_OP_VMEXIT] = "A",
    [RMPC_OP_ACCESS] = "Agvli",
    [RMPC_OP_HOST_READ] = "F",
    [RMPC_OP_HOST_WRITE] = "F",
    [RMPC_OP_SNP_INIT] = "Fr",
    [RMPC_OP_SNP_SHUTDOWN] = "",
    [RMPC_OP_SNP_GCTX_CREATE] = "A",
    [RMPC_OP_SNP_ACTIVATE] = "Ai",
    [RMPC_OP_SNP_DECOMMISSION] = "A",
    [RMPC_OP_SNP_LAUNCH_UPDATE] = "vAlp",
    [RMPC_OP_SNP_PAGE_RECLAIM] = "A",
    [RMPC_OP_SNP_PAGE_SET_STATE] = "Ac",
    [RMPC_OP_SNP_PAGE_MOVE] = "vAg",
    [RMPC_OP_SNP_PAGE_UNSMASH] = "A",
    [RMPC_OP_SNP_MD_INIT] = "vA",
    [RMPC_OP_SNP_PAGE_SWAP_OUT] = "vAgC",
    [RMPC_OP_SNP_PAGE_SWAP_IN] = "vAgC",
    [RMPC_OP_RMP_MARK_PAGES_FIRMWARE] = "Fr",
    [RMPC_OP_SNP_RECLAIM_PAGES] = "Fr",
    [RMPC_OP_PAGE_STATE] = "F",
    [RMPC_OP_KVM_READ_GUEST] = "F",
    [RMPC_OP_KVM_WRITE_GUEST] = "F",
};

static uint64_t few(uint64_t count)
{
    /* beyond 2^20 pages they are refused */
    return count > UINT64_C(1) << 20 ? count : count % 600;
}

static void read_field(struct input *in, struct rmpc_op *op, char field)
{
    uint8_t byte;

    switch (field) {
    case 'F':
        op->addr = op->level && field == 'F' && (op->op >= RMPC_OP_SET_MEMORY_RO || op->op == RMPC_OP_SET_MEMORY_4K) &&
                           op->op <= RMPC_OP_CHANGE_PAGE_ATTR_CLEAR
                       ? 0
                       : read_frame(in);
        break;
    case 'A':
        op->addr = read_address(in);
        break;
    case 'n':
        op->addr = u8(in);
        break;
    case 'g':
        byte = u8(in);
        op->gpa = byte < 0x80 ? in->frame << RMPC_PAGE_SHIFT : read_address(in);
        break;
    case 'e':
        op->gpa = read_word(in);
        break;
    case 'l':
        byte = u8(in);
        op->level = byte < 0xf0 ? byte & 3 : byte & 15;
        break;
    case 'f':
        byte = u8(in);
        op->level = byte < 0xc0 ? 0 : byte & 3;
        break;
    case 'i':
        op->id = read_asid(in);
        break;
    case 'c':
        op->count = read_count(in);
        break;
    case 'r':
    case 'R':
        op->count = few(read_count(in));
        break;
    case 'C':
        op->count = read_address(in);
        break;
    case 'X':
        byte = u8(in);
        op->count = byte < 0xc0 ? 0 : u64(in);
        break;
    case 'p':
        op->count = u32(in) & (u8(in) < 0xc0 ? UINT32_C(0x1f1f1f00) : UINT32_MAX);
        break;
    case 'v':
        byte = u8(in);
        op->va = byte < 0x40 ? in->frame << RMPC_PAGE_SHIFT : read_address(in);
        break;
    case 'x':
        op->rcx = read_word(in);
        break;
    case 'd':
        op->rdx = read_word(in);
        break;
    default: /* D */
        byte = u8(in);
        op->rdx = byte == 0xff ? u64(in) : (byte & 3) | (uint64_t)(u8(in) & 0x1f) << 8 | (uint64_t)(byte >> 7) << 16;
    }
}

static void read_op(struct input *in, uint8_t code, struct rmpc_op *op)
{
    const bool stray = code >= 64;
    const char *shape;
    uint8_t byte;

    memset(op, 0, sizeof(*op));
    op->op = code % 64;
    shape = op->op < RMPC_OP_END && shapes[op->op] ? shapes[op->op] : "fFc";
    for (; *shape; shape++)
        read_field(in, op, *shape);
    if (rmpc_op_flags(op->op))
        op->flags = (uint8_t)(u8(in) & rmpc_op_flags(op->op));
    if (rmpc_op_mode(op->op)) {
        byte = u8(in);
        op->mode = byte == 0xff ? u32(in)
                                : ((uint32_t)byte % 11 | (uint32_t)(u8(in) % 6) << RMPC_MODE_ACCESS_SHIFT |
                                   (uint32_t)(u8(in) & 3) << RMPC_MODE_VMPL_SHIFT | (uint32_t)(byte >> 5) << 24) &
                                      rmpc_op_mode(op->op);
    }
    if (stray) {
        byte = u8(in);
        ((uint8_t *)op)[byte % sizeof(*op)] ^= (uint8_t)(1 << (byte >> 6)); /* some bit that is not as it should be */
    }
    if (op->op == RMPC_OP_INJECT || op->op == RMPC_OP_SNP_LEAK_PAGES)
        op->count = few(op->count);
}

/* Calls beside ops. */
enum call {
    CALL_RMP_SET,
    CALL_TOUCH,
    CALL_IN_USE,
    CALL_CONTEXT,
    CALL_RECORD,
    CALL_POLICY,
    CALL_RESTORE,
    CALL_SET_MEMORY,
    CALL_EXECUTE,
    CALL_ACCESSES,
    CALL_HOST_ACCESSES,
    CALL_FRAME,
    CALL_COMMAND,
    CALL_FAULT,
    CALL_GUEST,
    CALL_CHECK,
    CALL_FILL,
    CALL_END
};

struct step {
    bool is_call;
    enum call call;
    struct rmpc_op op;
    struct input in; /* of a call: where its operands are, to be read once for each machine */
};

#define CALL_BYTES 48

/* What a call said, to be held against what it said on the other machine. */
static uint64_t tell(uint64_t hash, struct rmpc_outcome outcome)
{
    REQUIRE(outcome.kind < RMPC_OUTCOME_END && outcome.reason < RMPC_REASON_END);
    hash = mix(hash, outcome.code | (uint64_t)outcome.kind << 32 | (uint64_t)outcome.reason << 40 |
                         (uint64_t)outcome.cf << 48 | (uint64_t)outcome.transient << 49);
    return mix(mix(hash, outcome.info), outcome.address);
}

static bool may_restore(const void *user, uint64_t pfn, uint64_t pages)
{
    const struct rmpc_rmp *rmp = user;
    return !rmp || rmpc_rmp_is_hypervisors(rmp, pfn, pages);
}

static uint64_t call_set_memory(struct rmpc_dmap *dmap, struct input *in)
{
    uint64_t addresses[8];
    struct rmpc_pages pages = {0, 0, NULL};
    const uint8_t how = u8(in);
    uint64_t frame = read_frame(in);

    pages.va = how & 1 ? u64(in) : how & 2 ? RMPC_HIGH_MAP + (frame << RMPC_PAGE_SHIFT) : rmpc_dmap_address(dmap, frame);
    pages.count = read_count(in);
    if (how & 4) {
        pages.addresses = addresses;
        pages.count %= COUNT_OF(addresses) + 1;
        for (size_t i = 0; i < COUNT_OF(addresses); i++)
            addresses[i] = pages.va + ((uint64_t)u8(in) << RMPC_PAGE_SHIFT);
    }
    if (how & 8)
        return (uint64_t)rmpc_change_page_attr(dmap, pages, read_word(in), read_word(in));
    if (how & 16)
        return (uint64_t)rmpc_set_direct_map_valid_noflush(dmap, frame, pages.count, how & 32);
    return (uint64_t)rmpc_set_memory(dmap, (enum rmpc_set_memory)(u8(in) % (RMPC_SET_MEMORY_END + 1)), pages);
}

/* An emulator's memory: even frames are there. */
static bool emulated_read(void *user, uint64_t va, struct rmpc_rmp_state *out, uint64_t *error)
{
    *out = *(const struct rmpc_rmp_state *)user;
    *error = 4;
    return va >> RMPC_PAGE_SHIFT & 1 ? false : true;
}

static bool emulated_write(void *user, uint64_t va, const struct rmpc_rmp_state *data, uint64_t *error)
{
    *(struct rmpc_rmp_state *)user = *data;
    *error = 6;
    return va >> RMPC_PAGE_SHIFT & 1 ? false : true;
}

static bool emulated_translate(void *user, uint64_t va, struct rmpc_page *page, uint64_t *error)
{
    (void)user;
    *page = (struct rmpc_page){va & (RMPC_PHYSICAL_LIMIT - 1), va & (RMPC_PHYSICAL_LIMIT - 1), va >> 63 ? 2 : 1};
    *error = 2;
    return va >> 62 != 1;
}

static uint64_t call_execute(struct machine *m, struct input *in)
{
    static const uint8_t known[][4] = {{0xf2, 0x0f, 0x01, 0xfe}, {0xf3, 0x0f, 0x01, 0xff}, {0xf2, 0x0f, 0x01, 0xfd},
                                       {0xf2, 0x0f, 0x01, 0xff}, {0xf3, 0x0f, 0x01, 0xfe}, {0xf3, 0x0f, 0x01, 0xfd}};
    const uint8_t how = u8(in), who = u8(in);
    const enum rmpc_cpu_mode mode = (enum rmpc_cpu_mode)(how >> 4 & 3);
    struct rmpc_rmp_state operand = rmpc_rmp_state_make(0, who & 1, who & 2, who & 4, who >> 3 & 7);
    const struct rmpc_memory memory = {emulated_read, emulated_write, emulated_translate, &operand};
    struct rmpc_registers registers;
    struct rmpc_decoded decoded, again;
    struct rmpc_outcome outcome;
    const size_t prefixes = u8(in) % 16;
    const size_t size = how & 8 ? prefixes : prefixes + 4;
    uint8_t *bytes = malloc(size ? size : 1); /* of its very size */
    const uint64_t before = m->reported;
    uint64_t old;

    REQUIRE(bytes);
    take(in, bytes, prefixes);
    if (!(how & 8))
        memcpy(bytes + prefixes, known[(how & 7) % COUNT_OF(known)], 4);
    registers.rax = read_address(in);
    registers.rcx = u8(in) & 1 ? read_word(in) : read_address(in);
    registers.rdx = read_word(in);
    registers.rip = u16(in);
    registers.rflags = u64(in);
    m->cpu.mode = (struct rmpc_mode){(how & 7) >= 3 ? read_asid(in) : who >> 6 & 1, 0, who >> 7, true};
    if (m->machine.host.rmp)
        m->cpu.mode.vmpl = (uint8_t)(u8(in) % m->rmp.hardware.vmpls);
    old = registers.rip;
    outcome = rmpc_insn_execute(m->machine.host.rmp, &m->cpu, mode, bytes, size, &registers, &memory, &decoded);
    again = rmpc_insn_decode(bytes, size, mode == RMPC_MODE_LONG);
    free(bytes);
    m->cpu.mode = (struct rmpc_mode){0, 0, false, false};
    REQUIRE(again.insn == decoded.insn && again.length == decoded.length && decoded.insn < RMPC_INSN_END);
    REQUIRE(decoded.length <= size && decoded.length <= 15 && !decoded.length == (decoded.insn == RMPC_INSN_NONE));
    if (outcome.kind != RMPC_OUTCOME_CODE)
        REQUIRE(registers.rip == old && m->reported == before);
    else
        REQUIRE(decoded.insn != RMPC_INSN_NONE && registers.rax == outcome.code && registers.rip > old);
    return mix(mix(mix(tell(decoded.length, outcome), registers.rcx), registers.rdx),
               registers.rflags ^ operand.gpa ^ operand.high);
}

static void read_access(struct input *in, struct rmpc_access *access)
{
    const uint8_t how = u8(in);

    access->pa = read_address(in);
    access->gpa = how & 1 ? access->pa : read_address(in);
    access->va = how & 2 ? u64(in) : access->pa;
    access->asid = read_asid(in);
    access->who = u8(in) % (RMPC_WHO_END + 1);
    access->kind = (how >> 2) % 7;
    access->level = (how >> 5) & 3;
    access->vmpl = u8(in) & 3;
    access->user = how & 0x80;
    access->c = how & 0x10;
}

/* One by one is as all at once, up to the first that is none. */
static uint64_t call_accesses(const struct machine *m, struct input *in)
{
    const struct rmpc_rmp *rmp = m->machine.host.rmp;
    struct rmpc_access accesses[6];
    struct rmpc_outcome outcomes[6];
    const size_t count = u8(in) % 7;
    enum rmpc_status status;
    uint64_t hash = 0;
    size_t done;

    for (size_t i = 0; i < count; i++)
        read_access(in, &accesses[i]);
    status = rmpc_rmp_check_all(rmp, accesses, count, outcomes, &done);
    REQUIRE(done <= count && (status == RMPC_OK) == (done == count));
    REQUIRE(status == RMPC_OK || status == RMPC_ERR_ARGUMENT);
    for (size_t i = 0; i < done; i++) {
        const struct rmpc_outcome alone = rmpc_rmp_check(rmp, &accesses[i]);

        REQUIRE(rmpc_access_is_valid(&accesses[i], rmp ? rmp->hardware.vmpls : RMPC_VMPLS));
        REQUIRE(tell(0, alone) == tell(0, outcomes[i]));
        hash = tell(hash, alone);
    }
    if (done < count)
        REQUIRE(!rmpc_access_is_valid(&accesses[done], rmp ? rmp->hardware.vmpls : RMPC_VMPLS));
    return hash;
}

static uint64_t call_host_accesses(struct machine *m, struct input *in)
{
    const enum rmpc_host_access_kind kind = (enum rmpc_host_access_kind)(u8(in) & 3);
    struct rmpc_host *host = &m->machine.host;
    struct rmpc_host_counters before, after;
    struct rmpc_outcome outcomes[20];
    uint64_t frames[20] = {0};
    const size_t count = u8(in) % 21;
    uint64_t hash = 0;
    int level;

    for (size_t i = 0; i < count; i++)
        frames[i] = read_frame(in);
    before = host->counters;
    rmpc_host_access_all(host, frames, count, kind, outcomes);
    after = host->counters;
    host->counters = before;
    for (size_t i = 0; i < count; i++) {
        const struct rmpc_outcome alone = rmpc_host_access(host, frames[i], kind, &level);

        REQUIRE(level >= 0 && level <= m->dmap.config.levels);
        REQUIRE(tell(0, alone) == tell(0, outcomes[i]));
        hash = tell(hash, alone);
    }
    REQUIRE(!memcmp(&after, &host->counters, sizeof(after)));
    return hash;
}

/* What is said about one frame, in several ways that have to agree. */
static uint64_t call_frame(struct machine *m, struct input *in)
{
    const uint64_t pfn = read_frame(in);
    const int level = u8(in) % 3 + 1;
    const size_t some = (size_t)level - 1;
    const uint64_t pages = read_count(in);
    struct rmpc_host *host = &m->machine.host;
    struct rmpc_rmp *rmp = host->rmp;
    const struct rmpc_walk walk = rmpc_dmap_lookup(&m->dmap, rmpc_dmap_address(&m->dmap, pfn));
    struct rmpc_extent blocks[4], room[4];
    struct rmpc_rmp_entry entry;
    bool mapped = false;
    uint64_t hash = pfn;
    uint64_t next;

    REQUIRE(!walk.entry == !walk.level);
    for (size_t i = 0; i < m->dmap.mapped_count; i++)
        mapped |= pfn >= m->mapped[i].start && pfn < m->mapped[i].end;
    REQUIRE(rmpc_dmap_is_mapped(&m->dmap, pfn) == mapped);
    hash = mix(hash, rmpc_pfn_valid(host, pfn));
    if (pages && rmpc_pages_valid(host, pfn, pages))
        REQUIRE(rmpc_pfn_valid(host, pfn) && rmpc_pfn_valid(host, pfn + pages - 1));
    REQUIRE(rmpc_rmp_host_may_write(rmp, pfn, level) ==
            (rmpc_rmp_check_host_write(rmp, pfn, level, 0).kind == RMPC_OUTCOME_ALLOWED));
    if (!rmp)
        return hash;
    rmpc_rmp_prefetch(rmp, pfn);
    if (pfn < (rmp->c_bit ? rmp->c_bit : RMPC_PHYSICAL_LIMIT) >> RMPC_PAGE_SHIFT) {
        const struct rmpc_access access = {
            .pa = pfn << RMPC_PAGE_SHIFT, .who = RMPC_WHO_HOST, .kind = RMPC_WRITE, .level = (uint8_t)level};

        REQUIRE(tell(0, rmpc_rmp_check(rmp, &access)) == tell(0, rmpc_rmp_check_host_write(rmp, pfn, level, 0)));
    }
    if (rmpc_rmp_passes(rmp, pfn, level))
        REQUIRE(rmpc_rmp_host_may_write(rmp, pfn, level));
    REQUIRE((rmpc_rmp_get(rmp, pfn, &entry) == RMPC_OK) == rmpc_rmp_covers(rmp, pfn));
    if (rmpc_rmp_covers(rmp, pfn)) {
        REQUIRE(pfn < rmp->frames && rmpc_page_state_of(entry) > RMPC_PAGE_DEFAULT);
        REQUIRE(rmpc_page_state_of(entry) < RMPC_PAGE_END);
        hash = mix(mix(hash, entry.lo), entry.hi);
    }
    next = rmpc_rmp_next_used(rmp, pfn);
    REQUIRE(next <= rmp->frames && (next >= pfn || pfn > rmp->frames));
    if (next < rmp->frames)
        REQUIRE(rmpc_rmp_get(rmp, next, &entry) == RMPC_OK && (entry.lo | entry.hi));
    hash = mix(mix(hash, next), rmpc_rmp_is_own(rmp, pfn));
    if (pages <= COVERED)
        hash = mix(hash, rmpc_rmp_is_hypervisors(rmp, pfn & ~(RMPC_REGION_FRAMES - 1), pages & ~(RMPC_REGION_FRAMES - 1)));
    next = rmpc_rmp_end_blocks(rmp, host->memory, host->memory_count, blocks, COUNT_OF(blocks));
    REQUIRE(rmpc_rmp_end_blocks(rmp, host->memory, host->memory_count, room, some) == next);
    REQUIRE(next <= COUNT_OF(blocks) && !memcmp(room, blocks, (next < some ? next : some) * sizeof(*room)));
    for (size_t i = 1; i < next; i++)
        REQUIRE(blocks[i - 1].base < blocks[i].base);
    return hash;
}

static uint64_t call_command(struct machine *m, struct input *in)
{
    struct rmpc_operands operands;

    memset(&operands, 0, sizeof(operands));
    operands.page = read_address(in);
    operands.gctx = read_address(in);
    operands.dst = read_address(in);
    operands.mdata = read_address(in);
    operands.pages = read_count(in);
    operands.asid = read_asid(in);
    operands.type = u8(in);
    take(in, operands.permissions, sizeof(operands.permissions));
    operands.large = u8(in) & 1;
    operands.iommu = u8(in) & 1;
    return (uint64_t)rmpc_firmware_command(&m->firmware, (enum rmpc_command)u8(in), &operands);
}

/* A guest's instructions as calls: also what no op can say, that the translation failed or a mapping of any size. */
static uint64_t call_guest(struct machine *m, struct input *in)
{
    const uint8_t how = u8(in);
    const uint64_t gva = read_address(in);
    const struct rmpc_page there = {read_address(in), how & 1 ? in->frame << RMPC_PAGE_SHIFT : read_address(in),
                                    (how >> 1 & 3) + 1};
    const struct rmpc_page *page = how & 8 ? NULL : &there;
    struct rmpc_rmp *rmp = m->machine.host.rmp;
    struct rmpc_rmp_state state = {read_word(in), read_word(in)};
    uint64_t rcx = state.gpa;
    uint64_t rdx = state.high;
    struct rmpc_outcome outcome;

    m->cpu.mode = (struct rmpc_mode){read_asid(in), (uint8_t)(u8(in) % (rmp ? rmp->hardware.vmpls : 1)), how & 16, !(how & 32)};
    switch (how >> 6) {
    case 0:
        outcome = rmpc_pvalidate(rmp, &m->cpu, gva, rcx, rdx, page);
        break;
    case 1:
        outcome = rmpc_rmpadjust(rmp, &m->cpu, gva, rcx, rdx, page);
        break;
    case 2:
        outcome = rmpc_rmpquery(rmp, &m->cpu, gva, &rcx, &rdx, page);
        if (outcome.kind != RMPC_OUTCOME_CODE || outcome.code != RMPC_CODE_SUCCESS)
            REQUIRE(rcx == state.gpa && rdx == state.high);
        break;
    default:
        m->cpu.mode.asid = 0;
        outcome = rmpc_rmpread(rmp, &m->cpu, gva, &state);
    }
    m->cpu.mode = (struct rmpc_mode){0, 0, false, false};
    return mix(mix(tell(rcx, outcome), rdx), state.gpa ^ state.high);
}

/* Much of one thing: lists up to their ends, and a region page by page. */
static uint64_t call_fill(struct machine *m, struct input *in)
{
    const uint8_t what = u8(in);
    const uint64_t first = read_frame(in);
    const unsigned count = u16(in) % 1100;
    const uint32_t asid = read_asid(in);
    struct rmpc_rmp *rmp = m->machine.host.rmp;
    uint64_t hash = 0;

    m->cpu.mode = (struct rmpc_mode){0, 0, false, false};
    for (unsigned i = 0; i < count; i++) {
        const uint64_t pfn = first + i;
        const struct rmpc_op op = {.op = RMPC_OP_CPA_ADDRESS, .addr = pfn, .flags = what & 8 ? RMPC_OP_HIGH : 0};
        struct rmpc_result result = {0};

        switch (what & 7) {
        case 0:
            hash = mix(hash, rmp ? rmpc_in_use_add(rmp, (struct rmpc_in_use){pfn, what & 8 ? pfn : 0, 0}) : 0);
            break;
        case 1:
            hash = mix(hash, rmpc_firmware_add_context(&m->firmware, (struct rmpc_context){pfn, asid + i}));
            break;
        case 2:
            hash = mix(hash, rmpc_firmware_add_record(&m->firmware, (struct rmpc_record){pfn << 6, 5120, what >> 3 & 15,
                                                                                         pfn << RMPC_PAGE_SHIFT, 0}));
            break;
        case 3:
            rmpc_machine_apply(&m->machine, &op, &result);
            hash = mix(hash, result.kind);
            break;
        default:
            hash = tell(hash, rmpc_rmpupdate(rmp, &m->cpu, pfn << RMPC_PAGE_SHIFT,
                                             rmpc_rmp_state_make(pfn << RMPC_PAGE_SHIFT, !(what & 16), 0, what & 8,
                                                                 what & 16 ? 0 : asid)));
        }
    }
    return hash;
}

static uint64_t do_call(struct machine *m, enum call call, struct input in)
{
    struct rmpc_rmp *rmp = m->machine.host.rmp;
    struct rmpc_outcome fault = {0};
    uint64_t pfn;

    switch (call) {
    case CALL_RMP_SET:
        pfn = read_frame(&in);
        return rmp ? rmpc_rmp_set(rmp, pfn, (struct rmpc_rmp_entry){u64(&in), u64(&in)}) : 0;
    case CALL_TOUCH:
        if (rmp)
            rmpc_rmp_touch(rmp, read_frame(&in));
        return 0;
    case CALL_IN_USE:
        return rmp ? rmpc_in_use_add(rmp, (struct rmpc_in_use){read_frame(&in), read_frame(&in), read_frame(&in)}) : 0;
    case CALL_CONTEXT:
        return rmpc_firmware_add_context(&m->firmware, (struct rmpc_context){read_frame(&in), read_asid(&in)});
    case CALL_RECORD:
        return rmpc_firmware_add_record(&m->firmware, (struct rmpc_record){read_address(&in), read_frame(&in), u8(&in),
                                                                           read_address(&in), u64(&in)});
    case CALL_POLICY:
        m->machine.host.policy = (enum rmpc_policy)(u8(&in) % (RMPC_POLICY_END + 1));
        return 0;
    case CALL_RESTORE:
        rmpc_dmap_restore(&m->dmap, read_frame(&in), may_restore, rmp);
        return 0;
    case CALL_SET_MEMORY:
        return call_set_memory(&m->dmap, &in);
    case CALL_EXECUTE:
        return call_execute(m, &in);
    case CALL_ACCESSES:
        return call_accesses(m, &in);
    case CALL_HOST_ACCESSES:
        return call_host_accesses(m, &in);
    case CALL_FRAME:
        return call_frame(m, &in);
    case CALL_COMMAND:
        return call_command(m, &in);
    case CALL_FAULT:
        fault.kind = RMPC_OUTCOME_FAULT;
        fault.info = u8(&in) & 1 ? RMPC_FAULT_RMP : 0;
        return rmpc_host_handle_fault(&m->machine.host, read_frame(&in), fault, u8(&in) & 3);
    case CALL_GUEST:
        return call_guest(m, &in);
    case CALL_FILL:
        return call_fill(m, &in);
    case CALL_CHECK:
        check_dmap(m);
        if (rmp)
            check_rmp(rmp);
        return 0;
    case CALL_END:
        break;
    }
    return 0;
}

static bool is_firmware_status(int32_t ret)
{
    return ret == 0 || ret == 1 || ret == 3 || ret == 8 || ret == 9 || ret == 0xc || ret == 0xd || ret == 0x10 ||
           ret == 0x12 || (ret >= 0x16 && ret <= 0x1c && ret != 0x18);
}

static void check_result(const struct machine *m, const struct rmpc_op *op, const struct rmpc_result *result)
{
    struct rmpc_op blank;

    REQUIRE(result->kind < RMPC_RESULT_END && result->reason < RMPC_REASON_END && result->flags < 16);
    REQUIRE(result->level <= m->dmap.config.levels);
    switch ((enum rmpc_result_kind)result->kind) {
    case RMPC_RESULT_KERNEL:
        REQUIRE(result->ret == 0 || result->ret == -RMPC_EFAULT || result->ret == -RMPC_ENOMEM ||
                result->ret == -RMPC_EINVAL || result->ret == -RMPC_ENODEV || result->ret == -RMPC_EIO ||
                (result->ret > 0 && result->ret < RMPC_HANGS));
        break;
    case RMPC_RESULT_CODE:
    case RMPC_RESULT_HANG:
        REQUIRE(result->ret >= 0 && result->ret < 256);
        break;
    case RMPC_RESULT_FAULT:
        REQUIRE(result->ret == RMPC_VECTOR_UD || result->ret == RMPC_VECTOR_GP || result->ret == RMPC_VECTOR_PF ||
                result->ret == RMPC_VECTOR_VC);
        break;
    case RMPC_RESULT_REFUSED:
        REQUIRE(result->ret > 0 && result->ret < RMPC_STATUS_END);
        REQUIRE(!result->level && !result->flags && !result->reason && !result->value && !result->value2);
        break;
    case RMPC_RESULT_NPF:
        REQUIRE(result->ret == RMPC_VMEXIT_NPF);
        break;
    case RMPC_RESULT_INVALID:
        REQUIRE(result->ret == -1);
        break;
    case RMPC_RESULT_IOMMU:
        REQUIRE(result->ret == RMPC_IOMMU_RMP_FAULT);
        break;
    case RMPC_RESULT_FIRMWARE:
        REQUIRE(is_firmware_status(result->ret));
        break;
    case RMPC_RESULT_ALLOWED:
    case RMPC_RESULT_END:
        REQUIRE(result->kind == RMPC_RESULT_ALLOWED && result->ret == 0);
    }
    /* what says which ops there are says the same as what does them */
    memset(&blank, 0, sizeof(blank));
    if (!rmpc_op_name(op->op) || (op->flags & ~rmpc_op_flags(op->op)) || (op->mode & ~rmpc_op_mode(op->op)) ||
        op->reserved)
        REQUIRE(result->kind == RMPC_RESULT_REFUSED);
}

static void read_set_up(struct input *in, struct set_up *set_up)
{
    const uint8_t how = u8(in);
    const int *version = kernels[u8(in) % COUNT_OF(kernels)];
    const uint8_t flags = u8(in);
    const uint8_t pages = u8(in);

    memset(set_up, 0, sizeof(*set_up));
    set_up->map = &maps[how % COUNT_OF(maps)];
    set_up->form = (enum form)((how / COUNT_OF(maps) + 1) % FORM_END);
    REQUIRE(rmpc_kernel_init(&set_up->kernel, version[0], version[1]) == RMPC_OK);
    set_up->policy = (enum rmpc_policy)((flags & 15) % (RMPC_POLICY_END + 1));
    set_up->kernel_readonly = flags & 16;
    set_up->events = !(flags & 32);
    set_up->lies = flags & 64 ? (uint8_t)(pages | 3) : 0;
    set_up->pages = flags & 128 ? 1 + pages % ARENA_PAGES : ARENA_PAGES;
    read_hardware(in, &set_up->hardware, true);
}

#define STEPS 160

static void tape(struct input *in)
{
    static struct machine a, b, copy;
    static struct step steps[STEPS];
    static struct rmpc_op ops[STEPS];
    static struct rmpc_result results[STEPS], batch[STEPS];
    static uint64_t said[STEPS];
    struct set_up set_up;
    size_t count = 0;
    size_t waiting = 0;

    read_set_up(in, &set_up);
    while (in->left && count < STEPS) {
        struct step *step = &steps[count++];
        const uint8_t code = u8(in);
        struct input operands;

        step->is_call = code >= 128 && code != 255;
        step->call = (enum call)((code - 128u) % CALL_END);
        if (step->is_call) {
            operands = *in;
            operands.left = operands.left < CALL_BYTES ? operands.left : CALL_BYTES;
            step->in = operands;
            /* calls have room of fixed size, so that a change in one leaves the others as they are */
            in->at += operands.left;
            in->left -= operands.left;
        } else if (code == 255) {
            take(in, &step->op, sizeof(step->op));
            if (step->op.op == RMPC_OP_INJECT || step->op.op == RMPC_OP_SNP_LEAK_PAGES ||
                step->op.op == RMPC_OP_RMP_MARK_PAGES_FIRMWARE || step->op.op == RMPC_OP_SNP_RECLAIM_PAGES)
                step->op.count = few(step->op.count);
        } else {
            read_op(in, code, &step->op);
        }
    }
    if (!start(&a, &set_up, 0))
        return;
    for (size_t i = 0; i < count; i++) {
        const uint64_t reported = a.reported;

        if (steps[i].is_call) {
            said[i] = do_call(&a, steps[i].call, steps[i].in);
            continue;
        }
        memset(&results[i], 0xee, sizeof(results[i]));
        rmpc_machine_apply(&a.machine, &steps[i].op, &results[i]);
        check_result(&a, &steps[i].op, &results[i]);
        if (results[i].kind == RMPC_RESULT_REFUSED)
            REQUIRE(a.reported == reported);
    }
    /* The other machine never sees the ops that were refused, gets the rest in batches, and had other bytes in its
     * free pages: it has to end up in the same state. */
    REQUIRE(start(&b, &set_up, 0xff));
    for (size_t i = 0; i <= count; i++) {
        size_t done = 0;

        if (i < count && !steps[i].is_call) {
            if (results[i].kind != RMPC_RESULT_REFUSED)
                ops[waiting++] = steps[i].op;
            continue;
        }
        rmpc_machine_run(&b.machine, ops, waiting, batch);
        for (size_t j = i; done < waiting; j--) /* backwards over the ops since the last call */
            if (j < i && results[j].kind != RMPC_RESULT_REFUSED)
                REQUIRE(!memcmp(&batch[waiting - ++done], &results[j], sizeof(*batch)));
        waiting = 0;
        if (i < count)
            REQUIRE(do_call(&b, steps[i].call, steps[i].in) == said[i]);
    }
    check_same(&a, &b);
    check_dmap(&a);
    if (a.machine.host.rmp)
        check_rmp(&a.rmp);
    if (set_up.pages % 4 == 0)
        check_rebuilt(&a, &copy, &set_up);
}

/* ---- entry "config": direct maps of any configuration, booted or put together, and changed ---- */

#define HOST_PAGES 64

struct config_machine {
    uint8_t *host;
    struct rmpc_range ranges[3];
    struct rmpc_extent backed[3];
    uint64_t busy[HOST_PAGES];
    struct rmpc_pool pool;
    struct rmpc_mem mem;
    struct rmpc_frames mapped[6];
    struct rmpc_dmap dmap;
};

static void read_ranges(struct input *in, struct config_machine *m)
{
    const size_t count = u8(in) % (COUNT_OF(m->ranges) + 1);
    uint64_t end = 0;
    size_t used = 0;

    for (size_t i = 0; i < count; i++) {
        const uint64_t pages = 1 + u8(in) % 21;

        m->ranges[i].base = end + (u8(in) & 1 ? 0 : read_frame(in) << RMPC_PAGE_SHIFT);
        m->ranges[i].size = pages << RMPC_PAGE_SHIFT;
        m->ranges[i].host = m->host + (used << RMPC_PAGE_SHIFT);
        m->backed[i] = (struct rmpc_extent){m->ranges[i].base, m->ranges[i].size};
        end = m->ranges[i].base + m->ranges[i].size;
        used += pages;
    }
    m->pool = (struct rmpc_pool){.mem = &m->mem, .memory = m->backed, .memory_count = count, .busy = m->busy};
    rmpc_pool_init(&m->pool);
    m->mem = (struct rmpc_mem){m->ranges, count, rmpc_pool_alloc, rmpc_pool_free, &m->pool, 0, 0};
}

static void read_config(struct input *in, struct rmpc_dmap_config *config)
{
    static const uint64_t offsets[] = {UINT64_C(0xffff888000000000), UINT64_C(0xff11000000000000),
                                       UINT64_C(0xffff800000000000), UINT64_C(0xff00000000000000),
                                       UINT64_C(0xffffbfffc0000000), UINT64_C(0xffff9d4640000000), 0, GIB};
    const uint8_t how = u8(in);
    const int *version = kernels[u8(in) % COUNT_OF(kernels)];
    uint64_t *image = &config->image.text;

    *config = (struct rmpc_dmap_config){
        .levels = how & 128 ? u8(in) & 7 : 4 + (how & 1),
        .large_level = how & 128 ? u8(in) & 7 : 1 + (how >> 1) % 3,
        .page_offset = offsets[how >> 3 & 7],
        .supported_mask = UINT64_MAX,
        .default_mask = UINT64_MAX,
        .cache_modes = RMPC_CACHE_MODES_PAT,
    };
    REQUIRE(rmpc_kernel_init(&config->kernel, version[0], version[1]) == RMPC_OK);
    if (!(how & 64))
        return;
    if (u8(in) & 1)
        config->page_offset = u64(in);
    if (u8(in) & 1)
        config->supported_mask = ~read_word(in);
    if (u8(in) & 1)
        config->default_mask = ~read_word(in);
    if (u8(in) & 1)
        config->c_bit = read_word(in);
    if (u8(in) & 1)
        config->cache_modes[u8(in) % 6] = read_word(in);
    for (size_t i = u8(in) & 1 ? 6 : 0; i; i--)
        image[6 - i] = (i == 1 ? 0 : RMPC_HIGH_MAP) + read_address(in);
}

static void check_walk(const struct rmpc_dmap *dmap, uint64_t va)
{
    const struct rmpc_walk walk = rmpc_dmap_lookup(dmap, va);

    REQUIRE(!walk.entry == !walk.level && walk.level <= dmap->config.levels);
    if (walk.entry)
        REQUIRE(!rmpc_pte_is_table(*walk.entry, walk.level));
}

/* Put a direct map together.  true: no page is a table in two places. */
static bool put_together(struct input *in, struct config_machine *m)
{
    struct rmpc_dmap *dmap = &m->dmap;
    bool once = true;
    uint64_t root = read_address(in);
    unsigned steps = u8(in) % 40;
    enum rmpc_status status = rmpc_dmap_put_root(dmap, root);

    if (status != RMPC_OK) {
        REQUIRE(status == RMPC_ERR_RANGE);
        return false;
    }
    m->busy[m->pool.busy_count++] = root >> RMPC_PAGE_SHIFT;
    while (steps--) {
        const uint8_t how = u8(in);
        const int level = how & 128 ? u8(in) : 1 + how % 5;
        const uint64_t frame = read_frame(in);
        uint64_t va = rmpc_dmap_address(dmap, frame);
        uint64_t raw = (read_frame(in) << RMPC_PAGE_SHIFT) + (how & 32 ? read_word(in) : RMPC_PTE_BOOT_TABLE);
        const uint64_t count = dmap->counters.table_pages;

        if (how & 16)
            va = RMPC_HIGH_MAP + (frame << RMPC_PAGE_SHIFT);
        if (!(how & 64) && level >= 1 && level <= 5)
            va &= ~(rmpc_level_size(level) - 1);
        if (how & 8) {
            status = rmpc_dmap_put_leaf(dmap, va, level, raw);
        } else {
            const uint64_t pa = raw & RMPC_PTE_ADDRESS & ~dmap->config.c_bit;

            for (size_t i = 0; i < m->pool.busy_count; i++)
                if (m->busy[i] == pa >> RMPC_PAGE_SHIFT)
                    once = false;
            status = rmpc_dmap_put_table(dmap, va, level, raw);
            REQUIRE(dmap->counters.table_pages == count + (status == RMPC_OK));
            if (status == RMPC_OK && m->pool.busy_count < HOST_PAGES) {
                size_t i = m->pool.busy_count++;

                for (; i && m->busy[i - 1] > pa >> RMPC_PAGE_SHIFT; i--)
                    m->busy[i] = m->busy[i - 1];
                m->busy[i] = pa >> RMPC_PAGE_SHIFT;
            }
        }
        REQUIRE(status == RMPC_OK || status == RMPC_ERR_RANGE || status == RMPC_ERR_STATE ||
                status == RMPC_ERR_ARGUMENT);
    }
    for (unsigned i = u8(in) % 10; i; i--) {
        const uint64_t first = read_frame(in);

        status = rmpc_dmap_add_mapped(dmap, first, first + read_count(in));
        REQUIRE(status == RMPC_OK || (status == RMPC_ERR_FULL && dmap->mapped_count == COUNT_OF(m->mapped)));
        REQUIRE(rmpc_dmap_is_mapped(dmap, first) || dmap->mapped_count <= COUNT_OF(m->mapped));
    }
    if (u8(in) & 1) {
        status = rmpc_dmap_put_high_path(dmap);
        REQUIRE(status == RMPC_OK || status == RMPC_ERR_STATE || status == RMPC_ERR_NOMEM);
    }
    dmap->page_total = rmpc_dmap_page_total(&dmap->counters);
    return once;
}

static void config(struct input *in)
{
    static struct config_machine m;
    static uint64_t scratch[HOST_PAGES + 64];
    struct rmpc_dmap_config wanted;
    struct rmpc_extent memory[6], reserved[4];
    struct rmpc_e820 e820[10];
    struct rmpc_boot_memory boot = {memory, 0, reserved, 0, e820, 0, 0};
    struct rmpc_census census;
    enum rmpc_invariant invariant;
    enum rmpc_status status;
    uint64_t where;
    uint8_t how;

    if (!m.host)
        m.host = pages_of_host(HOST_PAGES * RMPC_PAGE_SIZE);
    read_ranges(in, &m);
    read_config(in, &wanted);
    status = rmpc_dmap_init(&m.dmap, &m.mem, &wanted, m.mapped, COUNT_OF(m.mapped), NULL);
    REQUIRE(status == RMPC_OK || status == RMPC_ERR_ARGUMENT || status == RMPC_ERR_RANGE);
    if (status != RMPC_OK)
        return;
    how = u8(in);
    m.dmap.kernel_readonly = how & 2;
    if (how & 1) {
        if (!put_together(in, &m)) {
            rmpc_dmap_validate(&m.dmap, scratch, how >> 2, &where);
            return;
        }
    } else {
        boot.memory_count = read_extents(in, memory, COUNT_OF(memory));
        boot.reserved_count = read_extents(in, reserved, COUNT_OF(reserved));
        for (size_t i = how & 8 ? 0 : boot.memory_count; i < boot.memory_count; i++)
            e820[boot.e820_count++] = (struct rmpc_e820){memory[i].base, memory[i].size, RMPC_E820_USABLE};
        for (size_t i = u8(in) % 5; i; i--)
            e820[boot.e820_count++] =
                (struct rmpc_e820){read_address(in), read_count(in) << RMPC_PAGE_SHIFT, u8(in) & 3};
        boot.max_pfn = read_frame(in);
        if (boot.memory_count && how & 4)
            boot.max_pfn = (memory[boot.memory_count - 1].base + memory[boot.memory_count - 1].size) >> RMPC_PAGE_SHIFT;
        status = rmpc_dmap_boot(&m.dmap, &boot);
        REQUIRE(status == RMPC_OK || status == RMPC_ERR_RANGE || status == RMPC_ERR_NOMEM || status == RMPC_ERR_FULL ||
                status == RMPC_ERR_STATE);
        if (status != RMPC_OK)
            return;
    }
    invariant = rmpc_dmap_validate(&m.dmap, scratch, COUNT_OF(scratch), &where);
    REQUIRE(invariant < RMPC_INVARIANT_END);
    /* an e820 map that does not know of the memory takes tables out again (direct-map section 2.1, step 4) */
    if (!(how & 1))
        REQUIRE(invariant == RMPC_INVARIANTS_HOLD || (invariant == RMPC_BROKEN_TABLE_COUNT && !(how & 8)));
    for (unsigned i = u8(in) % 12; i; i--) {
        const uint8_t what = u8(in);

        check_walk(&m.dmap, u64(in));
        if (what & 1)
            rmpc_dmap_restore(&m.dmap, read_frame(in), may_restore, NULL);
        else
            call_set_memory(&m.dmap, in);
    }
    list(&m.dmap, NULL);
    rmpc_dmap_census(&m.dmap, &census);
    if (invariant == RMPC_INVARIANTS_HOLD)
        REQUIRE(rmpc_dmap_validate(&m.dmap, scratch, COUNT_OF(scratch), &where) == RMPC_INVARIANTS_HOLD);
}

/* ---- entry "table": an RMP anywhere, of any profile ---- */

#define TABLE_PAGES 8
#define TABLE_GAP (16 * MIB)

static void table(struct input *in)
{
    static uint8_t *small, *large;
    static bool dirty = true;
    static struct rmpc_rmp rmp;
    static struct rmpc_firmware firmware;
    static struct rmpc_cpu cpu;
    const uint8_t how = u8(in);
    struct rmpc_range ranges[2] = {{RMP_BASE, TABLE_PAGES * RMPC_PAGE_SIZE, NULL},
                                   {RMP_BASE + TABLE_GAP, SEGMENT_SIZE, NULL}};
    const struct rmpc_mem mem = {ranges, 2, NULL, NULL, NULL, 0, 0};
    const struct rmpc_extent dram = {MIB, 63 * MIB};
    struct rmpc_rmp_msrs msrs = {RMP_BASE, 0, 0};
    struct rmpc_rmp_segment *segments;
    struct rmpc_hardware hardware;
    struct rmpc_kernel kernel;
    struct rmpc_rmp_room room;
    enum rmpc_status status;
    struct rmpc_extent blocks[3];
    uint32_t *words;
    uint64_t max_pfn;

    if (!small) {
        small = pages_of_host(TABLE_PAGES * RMPC_PAGE_SIZE);
        large = pages_of_host(SEGMENT_SIZE);
    }
    ranges[0].host = small;
    ranges[1].host = large;
    memset(small, 0, TABLE_PAGES * RMPC_PAGE_SIZE);
    if (dirty)
        memset(large, 0, SEGMENT_SIZE);
    dirty = false;
    REQUIRE(rmpc_mem_check(&mem) == RMPC_OK);
    read_hardware(in, &hardware, !(how & 1));
    rmpc_kernel_init(&kernel, 6, how & 2 ? 12 : 14);
    if (how & 4) { /* segmented */
        msrs.cfg = how & 8 ? u64(in) : 1 | (uint64_t)(30 + (u8(in) & 31)) << 8;
        hardware.segmented = !(how & 64);
        if (!(how & 128))
            hardware.segment_min = 30 - (hardware.segment_unit == 20 ? 20 : 0);
        for (unsigned i = u8(in) % 8; i; i--) {
            const uint8_t at = u8(in), size = u8(in);
            const uint64_t raw = (size & 64 ? u64(in) : RMP_BASE + TABLE_GAP) | (size & 3) | (uint64_t)(size >> 7) << 63;

            memcpy(small + RMPC_RMP_BOOKKEEPING + 8 * (size_t)(size & 32 ? at * 2 : at & 7), &raw, sizeof(raw));
        }
    } else {
        msrs.end = how & 8 ? u64(in) : RMP_BASE + (uint64_t)(u8(in) % (TABLE_PAGES + 1)) * RMPC_PAGE_SIZE + (u8(in) & 15) - 1;
    }
    if (how & 16)
        msrs.base = read_address(in);
    max_pfn = read_frame(in);
    status = rmpc_rmp_probe(&msrs, &mem, &hardware, &kernel, max_pfn);
    REQUIRE(status < RMPC_STATUS_END);
    status = rmpc_rmp_measure(&msrs, &mem, &hardware, &room);
    REQUIRE(status < RMPC_STATUS_END);
    if (status != RMPC_OK)
        return;
    REQUIRE(room.segments >= 1 && room.segments <= RMPC_RST_ENTRIES && room.words >= 1);
    REQUIRE(rmpc_hardware_check(&hardware) == RMPC_OK);
    segments = calloc(room.segments, sizeof(*segments));
    words = calloc(room.words, sizeof(*words)); /* both of their very sizes */
    REQUIRE(segments && words);
    status = rmpc_rmp_init(&rmp, &msrs, &mem, &hardware, how & 32 ? u64(in) : 0, segments, words);
    REQUIRE(status == RMPC_OK);
    memset(&cpu, 0, sizeof(cpu));
    memset(&firmware, 0, sizeof(firmware));
    firmware.rmp = &rmp;
    firmware.dram = &dram;
    firmware.dram_count = 1;
    rmpc_rmp_end_blocks(&rmp, &dram, 1, blocks, COUNT_OF(blocks));
    dirty = how & 4;
    for (unsigned i = u8(in) % 16; i; i--) {
        const uint8_t what = u8(in);
        const uint64_t pfn = read_frame(in);
        const struct rmpc_operands operands = {.page = pfn, .pages = what >> 4};
        struct rmpc_rmp_entry entry = {what, what >> 3}, read;

        switch (what & 7) {
        case 0:
            REQUIRE((rmpc_rmp_set(&rmp, pfn, entry) == RMPC_OK) == rmpc_rmp_covers(&rmp, pfn));
            REQUIRE(!rmpc_rmp_covers(&rmp, pfn) ||
                    (rmpc_rmp_get(&rmp, pfn, &read) == RMPC_OK && read.lo == entry.lo && read.hi == entry.hi));
            break;
        case 1:
            rmpc_rmpupdate(&rmp, &cpu, pfn << RMPC_PAGE_SHIFT,
                           rmpc_rmp_state_make(pfn << RMPC_PAGE_SHIFT, what & 8, what & 16, what & 32, what >> 6));
            break;
        case 2:
            rmpc_psmash(&rmp, &cpu, pfn << RMPC_PAGE_SHIFT);
            break;
        case 3:
            REQUIRE(rmpc_rmp_next_used(&rmp, pfn) <= rmp.frames);
            break;
        case 4:
            if (room.words <= 2048) /* it writes all entries */
                rmpc_firmware_command(&firmware, what & 8 ? RMPC_SNP_SHUTDOWN : RMPC_SNP_INIT, &operands);
            break;
        case 5:
            rmpc_rmp_touch(&rmp, pfn);
            break;
        case 6:
            rmpc_rmp_is_own(&rmp, pfn);
            rmpc_rmp_is_hypervisors(&rmp, pfn, what);
            if (what & 8)
                rmpc_rmp_recount(&rmp);
            break;
        default:
            REQUIRE(rmpc_rmp_host_may_write(&rmp, pfn, 1 + what % 3) ==
                    (rmpc_rmp_check_host_write(&rmp, pfn, 1 + what % 3, 0).kind == RMPC_OUTCOME_ALLOWED));
        }
    }
    free(words);
    free(segments);
}

/* ---- entry "memory": ranges, extents, the page allocator, sparse memory ---- */

static void check_extents(const struct rmpc_extent *extents, size_t count, uint64_t address)
{
    const enum rmpc_status status = rmpc_extents_check(extents, count);
    const size_t found = rmpc_extents_find(extents, count, address);
    bool good = true;
    size_t i = 0;

    for (size_t j = 0; j < count; j++)
        good = good && extents[j].size && (extents[j].base | extents[j].size) % RMPC_PAGE_SIZE == 0 &&
               extents[j].base < RMPC_PHYSICAL_LIMIT && extents[j].size <= RMPC_PHYSICAL_LIMIT - extents[j].base &&
               (!j || extents[j - 1].base + extents[j - 1].size <= extents[j].base);
    REQUIRE(status == (good ? RMPC_OK : RMPC_ERR_RANGE));
    REQUIRE(found <= count);
    while (good && i < count && extents[i].base + extents[i].size <= address)
        i++;
    REQUIRE(!good || found == i);
}

static void check_pool(struct input *in, const struct rmpc_mem *mem, const struct rmpc_extent *memory, size_t count)
{
    struct rmpc_extent reserved[4];
    uint64_t busy[4], got[48];
    const size_t reserved_count = read_extents(in, reserved, COUNT_OF(reserved));
    const size_t busy_count = u8(in) % (COUNT_OF(busy) + 1);
    struct rmpc_pool pool = {.mem = mem, .memory = memory, .memory_count = count, .reserved = reserved,
                             .reserved_count = reserved_count, .busy = busy, .busy_count = busy_count};
    size_t have = 0;

    for (size_t i = 0; i < busy_count; i++)
        busy[i] = (i ? busy[i - 1] : memory[0].base >> RMPC_PAGE_SHIFT) + 1 + (u8(in) & 7);
    for (size_t i = 0; i < reserved_count; i++) /* the caller's to see to */
        if (!reserved[i].size || reserved[i].size > UINT64_MAX - reserved[i].base ||
            (i && reserved[i].base < reserved[i - 1].base + reserved[i - 1].size))
            return;
    rmpc_pool_init(&pool);
    for (unsigned i = u8(in) % 100; i; i--) {
        const uint8_t how = u8(in);
        uint64_t pa;

        if (how & 1) {
            if (!have)
                continue;
            pa = got[(how >> 1) % have];
            have--;
            got[(how >> 1) % (have + 1)] = got[have];
            memset(rmpc_mem_at(mem, pa, RMPC_PAGE_SIZE), how, (size_t)RMPC_PAGE_SIZE);
            rmpc_pool_free(&pool, pa);
            if (how > 0xf0) /* somebody writes to a page that is free: the list ends there */
                memset(rmpc_mem_at(mem, pa, RMPC_PAGE_SIZE), how, (size_t)RMPC_PAGE_SIZE);
            if (how > 0xf0)
                return;
            continue;
        }
        pa = rmpc_pool_alloc(&pool);
        if (pa == RMPC_NO_PAGE)
            continue;
        REQUIRE(pa % RMPC_PAGE_SIZE == 0 && rmpc_mem_at(mem, pa, RMPC_PAGE_SIZE));
        for (size_t j = 0; j < have; j++)
            REQUIRE(got[j] != pa);
        for (size_t j = 0; j < busy_count; j++)
            REQUIRE(busy[j] != pa >> RMPC_PAGE_SHIFT);
        for (size_t j = 0; j < reserved_count; j++)
            REQUIRE(reserved[j].base + reserved[j].size <= pa || reserved[j].base >= pa + RMPC_PAGE_SIZE);
        memset(rmpc_mem_at(mem, pa, RMPC_PAGE_SIZE), how, (size_t)RMPC_PAGE_SIZE);
        if (have < COUNT_OF(got))
            got[have++] = pa;
    }
}

static void sparse(struct input *in)
{
    const uint8_t how = u8(in);
    struct rmpc_range range = {0, (uint64_t)(how >> 1) << (u8(in) & 1 ? 12 : 40), NULL};

    if (rmpc_sparse_map(&range, how & 1) != RMPC_OK) {
        REQUIRE(!range.host);
    } else {
        uint8_t *host = range.host;

        REQUIRE(host && (uintptr_t)host % RMPC_PAGE_SIZE == 0 && !host[0] && !host[range.size - 1]);
        host[0] = host[range.size - 1] = 1;
    }
    rmpc_sparse_unmap(&range);
    REQUIRE(!range.host);
    rmpc_sparse_unmap(&range);
}

static void memory(struct input *in)
{
    static struct config_machine m;
    struct rmpc_extent extents[8];
    struct rmpc_range ranges[4];
    struct rmpc_mem any = {ranges, 0, NULL, NULL, NULL, 0, 0};
    uint8_t data[64], back[64];
    size_t count;
    uint64_t pa;

    if (!m.host)
        m.host = pages_of_host(HOST_PAGES * RMPC_PAGE_SIZE);
    count = read_extents(in, extents, COUNT_OF(extents));
    check_extents(extents, count, read_address(in));
    /* ranges of any kind, which nobody reads */
    any.count = u8(in) % (COUNT_OF(ranges) + 1);
    for (size_t i = 0; i < any.count; i++) {
        const uint8_t how = u8(in);

        ranges[i] = (struct rmpc_range){read_address(in), read_count(in) << (how & 1 ? 12 : 0),
                                        how & 2 ? NULL : m.host + (how & 4 ? 8 : 0)};
    }
    pa = read_address(in);
    if (rmpc_mem_check(&any) == RMPC_OK)
        for (size_t i = 0; i < any.count; i++) {
            const uint64_t size = read_count(in);
            const struct rmpc_range *range = &ranges[i];

            REQUIRE(range->host && range->base + range->size <= RMPC_PHYSICAL_LIMIT);
            REQUIRE(rmpc_mem_at(&any, range->base, range->size) == range->host);
            REQUIRE(!rmpc_mem_at(&any, range->base, range->size + 1));
            REQUIRE(rmpc_mem_at(&any, range->base + range->size - 1, 1));
            if (pa >= range->base && pa - range->base < range->size)
                REQUIRE(!rmpc_mem_at(&any, pa, size) == (size > range->size - (pa - range->base)));
        }
    read_ranges(in, &m);
    if (rmpc_mem_check(&m.mem) != RMPC_OK)
        return;
    if (m.mem.count) {
        const uint64_t at = m.ranges[0].base + u16(in);
        const size_t size = u8(in) % (sizeof(data) + 1);
        enum rmpc_status status;

        take(in, data, sizeof(data));
        status = rmpc_mem_write(&m.mem, at, data, size);
        REQUIRE(status == rmpc_mem_read(&m.mem, at, back, size) && (status == RMPC_OK || status == RMPC_ERR_RANGE));
        REQUIRE(status != RMPC_OK || !memcmp(data, back, size));
        check_pool(in, &m.mem, m.backed, m.mem.count);
    }
    m.mem.fail_skip = u8(in) & 3;
    m.mem.fail_count = u8(in) & 3;
    for (unsigned i = u8(in) & 15; i; i--) {
        pa = rmpc_mem_alloc(&m.mem);
        if (pa != RMPC_NO_PAGE) {
            REQUIRE(rmpc_mem_at(&m.mem, pa, RMPC_PAGE_SIZE));
            rmpc_mem_free(&m.mem, pa);
        }
    }
    sparse(in);
}

/* ---- entry "values": functions of their arguments alone ---- */

static void check_pte(struct input *in)
{
    const int level = 1 + u8(in) % 5;
    const uint64_t c_bit = u8(in) & 1 ? C_BIT : 0;
    const uint64_t raw = u64(in);
    const uint64_t flags = rmpc_pte_flags(raw, level, c_bit);
    const uint64_t address = rmpc_pte_address(raw, level, c_bit);

    REQUIRE(!(flags & rmpc_pte_address_mask(raw, level, c_bit)) && !(address & ~RMPC_PTE_ADDRESS) && !(address & c_bit));
    if (level == 1 && flags)
        REQUIRE(rmpc_pte_make(address, flags, c_bit) == raw);
    REQUIRE(rmpc_pte_to_small(rmpc_pte_to_large(raw & ~RMPC_PTE_PAT_LARGE)) == (raw & ~RMPC_PTE_PAT_LARGE));
    REQUIRE(rmpc_pte_without_protnone(raw) & RMPC_PTE_P || !(rmpc_pte_without_protnone(raw) & RMPC_PTE_G));
    REQUIRE(!rmpc_pte_is_table(raw, level) || (level > 1 && raw & RMPC_PTE_P));
}

static void check_decode(struct input *in)
{
    const size_t size = u8(in) % 20;
    uint8_t *bytes = malloc(size ? size : 1);
    struct rmpc_decoded decoded;

    REQUIRE(bytes);
    take(in, bytes, size);
    for (int long_mode = 0; long_mode < 2; long_mode++) {
        decoded = rmpc_insn_decode(bytes, size, long_mode);
        REQUIRE(decoded.insn < RMPC_INSN_END && decoded.length <= size && decoded.length <= 15);
        REQUIRE(!decoded.length == (decoded.insn == RMPC_INSN_NONE));
        if (decoded.length)
            REQUIRE(bytes[decoded.length - 3] == 0x0f && bytes[decoded.length - 2] == 0x01);
    }
    free(bytes);
}

static void values(struct input *in)
{
    static struct rmpc_cpu cpu;
    struct rmpc_kernel kernel, later;
    struct rmpc_hardware hardware;
    struct rmpc_rmp_entry entry;
    struct rmpc_outcome outcome = {.kind = (uint8_t)(u8(in) % RMPC_OUTCOME_END), .reason = RMPC_REASON_GPA};
    struct rmpc_dmap_counters counters;
    struct rmpc_rmp_state state;
    struct rmpc_result result;
    const uint32_t number = u8(in) & 1 ? u32(in) : u8(in);
    const int major = (int)u32(in), minor = (int)u32(in);
    uint64_t code, count;

    REQUIRE(rmpc_abi_matches() && rmpc_version()[0]);
    check_pte(in);
    check_decode(in);
    REQUIRE(rmpc_status_text((enum rmpc_status)number) && rmpc_status_text((enum rmpc_status)number)[0]);
    REQUIRE(rmpc_invariant_name((enum rmpc_invariant)number) && rmpc_invariant_name((enum rmpc_invariant)number)[0]);
    REQUIRE(!rmpc_policy_name(number) == (number >= RMPC_POLICY_END));
    REQUIRE(!rmpc_op_name(number) == (number == 0 || number >= RMPC_OP_END));
    if (!rmpc_op_name(number))
        REQUIRE(!rmpc_op_flags(number) && !rmpc_op_mode(number));
    REQUIRE(rmpc_hardware_init(&hardware, (enum rmpc_part)number) == (number < RMPC_PART_END ? RMPC_OK : RMPC_ERR_ARGUMENT));
    take(in, &hardware, sizeof(hardware));
    rmpc_hardware_check(&hardware);
    /* what a kernel has, a later one has too */
    if (rmpc_kernel_init(&kernel, major, minor) == RMPC_OK && rmpc_kernel_init(&later, major, minor / 2 + minor % 2) == RMPC_OK)
        REQUIRE(kernel.collapse >= later.collapse && kernel.rox >= later.rox && kernel.snp_host >= later.snp_host);
    REQUIRE(rmpc_kernel_init(&kernel, 6, number & 1 ? -1 : 0) == RMPC_ERR_KERNEL);
    entry = (struct rmpc_rmp_entry){u64(in), u64(in)};
    REQUIRE(rmpc_page_state_of(entry) > RMPC_PAGE_DEFAULT && rmpc_page_state_of(entry) < RMPC_PAGE_END);
    REQUIRE(rmpc_rmp_asid(entry) <= RMPC_RMP_ASID_MAX && rmpc_rmp_subpages(entry) < RMPC_REGION_FRAMES);
    state = rmpc_rmp_state_make(entry.lo, number & 1, number & 2, number & 4, number);
    REQUIRE(!(state.high & RMPC_STATE_RESERVED) && state.high >> RMPC_STATE_ASID_SHIFT == number);
    outcome.code = number;
    rmpc_result_of(outcome, &result);
    REQUIRE(result.kind < RMPC_RESULT_END && result.reason == RMPC_REASON_GPA);
    take(in, &counters, sizeof(counters));
    rmpc_dmap_page_total(&counters);
    memset(&cpu, 0, sizeof(cpu));
    code = read_word(in);
    count = read_count(in);
    for (unsigned i = 0; i < RMPC_INJECT_RUNS + 1; i++) {
        const bool good = code < 256 && count >= 1 && count <= RMPC_INJECT_MAX_COUNT;
        const enum rmpc_status status = rmpc_cpu_inject(&cpu, code, count);

        REQUIRE(status == (!good ? RMPC_ERR_ARGUMENT : i == RMPC_INJECT_RUNS ? RMPC_ERR_FULL : RMPC_OK));
    }
}

/* ---- entries ---- */

static void (*const entries[])(struct input *in) = {tape, config, table, memory, values};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size, 5120};

    if (size)
        entries[u8(&in) % COUNT_OF(entries)](&in);
    return 0;
}

#ifdef HARNESS_MAIN
/* For builds without libFuzzer: runs each file that is named; without one, what AFL++ gives, or standard input. */
#ifdef __AFL_COMPILER
__AFL_FUZZ_INIT();
#endif

static uint8_t bytes[1 << 16];

static size_t read_all(FILE *file)
{
    return fread(bytes, 1, sizeof(bytes), file);
}

/* A copy of its very size, so that reading past it is noticed. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);

    REQUIRE(copy);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");

        if (!file) {
            perror(argv[i]);
            return 2;
        }
        run(bytes, read_all(file));
        fclose(file);
    }
    if (argc > 1) {
        printf("%d inputs, nothing broken\n", argc - 1);
        return 0;
    }
#ifdef __AFL_COMPILER
    __AFL_INIT();
    while (__AFL_LOOP(10000))
        run(__AFL_FUZZ_TESTCASE_BUF, (size_t)__AFL_FUZZ_TESTCASE_LEN);
#else
    run(bytes, read_all(stdin));
#endif
    return 0;
}
#endif
