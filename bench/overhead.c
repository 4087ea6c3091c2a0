/*
 * What the RMP's checks of a write cost a simulator: asked of the library, beside the same check written by hand
 * into the simulator's own loop.
 *
 * Nothing of the project but its public headers.  Built twice by bench/test_overhead.py: with the static library and
 * with the shared one.
 */
#include <stdlib.h>
#include <string.h>

#include <rmpcore/rmpcore.h>

#define TABLE (RMPC_RMP_BOOKKEEPING + FRAMES * RMPC_RMP_ENTRY_SIZE)
#define FRAMES (UINT64_C(1) << 24) /* 64 GiB: 256 MiB of entries, far more than a cache holds */
#define REGIONS (FRAMES / RMPC_REGION_FRAMES)
#define BASE (FRAMES * RMPC_PAGE_SIZE)
#define WRITES (UINT64_C(1) << 19)
#define HOT 256     /* frames that a first-level cache holds */
#define ASSIGNED 64 /* frames that a guest has: so few that branches are predicted, as in a simulator that makes progress */

struct overhead {
    struct rmpc_range range;
    struct rmpc_mem mem;
    struct rmpc_rmp rmp;
    struct rmpc_rmp_segment segment;
    struct rmpc_cpu cpu;
    uint32_t *words;
    const struct rmpc_rmp_entry *entries; /* what the check by hand knows: a table and how many frames it covers */
    uint64_t frames;
    uint64_t *drawn[2]; /* frames to write to: from all of the table, and from HOT */
};

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

void overhead_free(struct overhead *o)
{
    if (o) {
        free(o->range.host);
        free(o->words);
        free(o->drawn[0]);
        free(o->drawn[1]);
    }
    free(o);
}

struct overhead *overhead_new(void)
{
    struct overhead *o = calloc(1, sizeof(*o));
    struct rmpc_rmp_msrs msrs = {BASE, BASE + TABLE - 1, 0};
    struct rmpc_hardware hardware;
    uint64_t state = 88172645463325252, hot[HOT];

    if (!o)
        return NULL;
    o->range = (struct rmpc_range){BASE, TABLE, aligned_alloc(RMPC_PAGE_SIZE, TABLE)};
    o->mem = (struct rmpc_mem){.ranges = &o->range, .count = 1};
    o->words = calloc(REGIONS, sizeof(*o->words));
    for (int i = 0; i < 2; i++)
        o->drawn[i] = malloc(WRITES * sizeof(**o->drawn));
    if (!o->range.host || !o->words || !o->drawn[0] || !o->drawn[1])
        goto fail;
    memset(o->range.host, 0, TABLE); /* and so every page of it is there before the clock starts */
    if (rmpc_hardware_init(&hardware, RMPC_PART_MILAN) != RMPC_OK ||
        rmpc_rmp_init(&o->rmp, &msrs, &o->mem, &hardware, 0, &o->segment, o->words) != RMPC_OK)
        goto fail;
    o->entries = o->segment.entries;
    o->frames = o->segment.frames;
    for (int i = 0; i < HOT; i++)
        hot[i] = next_random(&state) % FRAMES;
    for (uint64_t i = 0; i < WRITES; i++) {
        o->drawn[0][i] = next_random(&state) % FRAMES;
        o->drawn[1][i] = hot[next_random(&state) % HOT];
    }
    for (int i = 0; i < ASSIGNED; i++) {
        const uint64_t pa = o->drawn[0][i] * RMPC_PAGE_SIZE;

        rmpc_rmpupdate(&o->rmp, &o->cpu, pa, rmpc_rmp_state_make(pa, 1, 0, 0, 5));
    }
    return o;
fail:
    overhead_free(o);
    return NULL;
}

/* What a simulator does about a refused write is the same in all loops: it leaves the fast path, and a fault is counted. */
__attribute__((noinline, cold)) static void fault(uint64_t *refused)
{
    ++*refused;
}

/* The loops: WRITES writes to frames drawn from all of the table, or from the hot ones; how many are refused. */

uint64_t overhead_may_write(const struct overhead *o, int hot, int level)
{
    const uint64_t *drawn = o->drawn[hot];
    uint64_t refused = 0;

    for (uint64_t i = 0; i < WRITES; i++)
        if (!rmpc_rmp_host_may_write(&o->rmp, drawn[i], level))
            fault(&refused);
    return refused;
}

uint64_t overhead_host_write(const struct overhead *o, int hot, int level)
{
    const uint64_t *drawn = o->drawn[hot];
    uint64_t refused = 0;

    for (uint64_t i = 0; i < WRITES; i++)
        if (rmpc_rmp_check_host_write(&o->rmp, drawn[i], level, drawn[i] << RMPC_PAGE_SHIFT).kind !=
            RMPC_OUTCOME_ALLOWED)
            fault(&refused);
    return refused;
}

uint64_t overhead_check(const struct overhead *o, int hot, int level)
{
    const uint64_t *drawn = o->drawn[hot];
    struct rmpc_access access = {.who = RMPC_WHO_HOST, .kind = RMPC_WRITE, .level = (uint8_t)level};
    uint64_t refused = 0;

    for (uint64_t i = 0; i < WRITES; i++) {
        access.pa = access.va = drawn[i] << RMPC_PAGE_SHIFT;
        if (rmpc_rmp_check(&o->rmp, &access).kind != RMPC_OUTCOME_ALLOWED)
            fault(&refused);
    }
    return refused;
}

/* What a simulator's author would write, who knows one table in one piece, and one thread. */
static inline bool is_refused(const struct rmpc_rmp_entry *entries, uint64_t frames, uint64_t pfn, int level)
{
    if (pfn >= frames)
        return false;
    if (entries[pfn].lo & RMPC_RMP_ASSIGNED)
        return true;
    return level > 1 && entries[pfn & ~(RMPC_REGION_FRAMES - 1)].lo & (RMPC_RMP_ASSIGNED | RMPC_RMP_SUBPAGE_COUNT);
}

uint64_t overhead_by_hand(const struct overhead *o, int hot, int level)
{
    const uint64_t *drawn = o->drawn[hot];
    uint64_t refused = 0;

    for (uint64_t i = 0; i < WRITES; i++)
        if (is_refused(o->entries, o->frames, drawn[i], level))
            fault(&refused);
    return refused;
}
