/*
 * RMP instructions, a firmware and readers on one table from many threads: threads [operations [threads]].
 *
 * All work on the same few regions.  What is checked, while they run or at the end, a lost update, a torn entry or an
 * update that was done twice would break:
 *   - an entry is always one that somebody stored: its gpa and its ASID belong together, and an entry that is not
 *     validated has the permissions that RMPUPDATE gives;
 *   - of all threads that make a page immutable exactly one succeeds, and the entry is its own;
 *   - while a 2 MiB page is smashed each piece is the guest's at any time;
 *   - a page that stays assigned always stops a host write, one in a region of the hypervisor's never does;
 *   - the subpage count of each region is the number of its other assigned pages, and the counter of each ASID is the
 *     number of its pages, at the end;
 *   - every instruction is counted, and only codes that rmp section 2 allows come back.
 * Exit status 0: all of that holds.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rmpcore/rmpcore.h"
#include "rmpcore/sparse.h"

#define MIXED 4                     /* regions 0 to 3: everything happens here */
#define RACED 4                     /* region 4: each page is made immutable once, region 5 stays half assigned */
#define HALF 5
#define CLEAN 6                     /* region 6: the hypervisor's all the time */
#define SMASHED 7                   /* region 7: a guest's, whole or in pieces, of one thread alone */
#define REGIONS 8
#define FRAMES (REGIONS * RMPC_REGION_FRAMES)
#define BUSY_FRAMES 24              /* of each mixed region, so that threads meet */
#define MAX_THREADS 64
#define ALL_PERMISSIONS 0x1f

struct shared {
    struct rmpc_range range;
    struct rmpc_mem mem;
    struct rmpc_rmp rmp;
    struct rmpc_rmp_segment segment;
    uint32_t words[REGIONS + 1];
    uint64_t operations; /* for each thread */
    struct rmpc_firmware firmware;
    uint64_t epoch;     /* of the smashed region: rounds * 2, odd while it is a guest's */
    const char *broken; /* the first thing that was; set by anyone */
};

struct worker {
    pthread_t thread;
    struct shared *shared;
    struct rmpc_cpu cpu;
    uint64_t random;
    uint32_t asid;
    uint64_t updates;   /* RMPUPDATEs that were executed */
    uint64_t succeeded; /* instructions that changed something */
    uint64_t busy;      /* that met somebody else */
    uint64_t won;       /* pages of the raced region */
};

static uint64_t draw(struct worker *w, uint64_t below)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return w->random % below;
}

static void fail(struct shared *shared, const char *what)
{
    const char *none = NULL;

    __atomic_compare_exchange_n(&shared->broken, &none, what, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* The guest address of a frame in the guest with this ASID: each tells the other. */
static uint64_t gpa_for(uint64_t pfn, uint64_t asid)
{
    return (pfn | asid << 20) << RMPC_PAGE_SHIFT;
}

static uint64_t busy_frame(struct worker *w)
{
    return draw(w, MIXED) * RMPC_REGION_FRAMES + draw(w, BUSY_FRAMES);
}

static void count_code(struct worker *w, struct rmpc_outcome outcome)
{
    if (outcome.kind != RMPC_OUTCOME_CODE || (outcome.code > RMPC_CODE_FAIL_OVERLAP && outcome.code != 7))
        fail(w->shared, "an instruction answered what it cannot answer");
    w->succeeded += outcome.code == RMPC_CODE_SUCCESS;
    w->busy += outcome.transient;
}

static struct rmpc_outcome update(struct worker *w, uint64_t pfn, bool assigned, bool large, bool immutable,
                                  uint32_t asid)
{
    struct rmpc_rmp_state input =
        rmpc_rmp_state_make(asid ? gpa_for(pfn, asid) : 0, assigned, large, immutable, assigned ? asid : 0);
    struct rmpc_outcome outcome = rmpc_rmpupdate(&w->shared->rmp, &w->cpu, pfn << RMPC_PAGE_SHIFT, input);

    w->updates++;
    count_code(w, outcome);
    return outcome;
}

/* Whatever an entry is, it is one that was stored. */
static void check_entry(struct worker *w, uint64_t pfn)
{
    struct rmpc_rmp_entry entry;
    uint64_t asid, gpa;

    if (rmpc_rmp_get(&w->shared->rmp, pfn, &entry) != RMPC_OK)
        fail(w->shared, "an entry has gone");
    asid = rmpc_rmp_asid(entry);
    gpa = entry.lo & RMPC_RMP_GPA;
    if (asid && gpa != gpa_for(pfn, asid))
        fail(w->shared, "torn entry: the gpa of another guest");
    if (asid && !(entry.lo & RMPC_RMP_VALIDATED) && entry.hi != ALL_PERMISSIONS)
        fail(w->shared, "torn entry: permissions of another time");
}

/* A guest's instruction on a page that may be its own, or anybody's by now. */
static void guest_insn(struct worker *w, uint64_t pfn)
{
    const struct rmpc_page page = {pfn << RMPC_PAGE_SHIFT, gpa_for(pfn, w->asid), 1};
    uint64_t rcx = 0, rdx = 0;
    struct rmpc_outcome outcome;

    w->cpu.mode.asid = w->asid;
    switch (draw(w, 3)) {
    case 0:
        outcome = rmpc_pvalidate(&w->shared->rmp, &w->cpu, page.gpa, 0, 1, &page);
        break;
    case 1:
        outcome = rmpc_rmpadjust(&w->shared->rmp, &w->cpu, page.gpa, 0, 1 | (3 + 4 * draw(w, 2)) << 8, &page);
        break;
    default:
        outcome = rmpc_rmpquery(&w->shared->rmp, &w->cpu, page.gpa, &rcx, &rdx, &page);
        if (outcome.kind == RMPC_OUTCOME_CODE && (rcx || rdx != (uint64_t)ALL_PERMISSIONS << 8))
            fail(w->shared, "RMPQUERY: not what VMPL0 has");
    }
    w->cpu.mode.asid = 0;
    w->succeeded += outcome.kind == RMPC_OUTCOME_CODE && outcome.code == RMPC_CODE_SUCCESS && !outcome.cf;
}

/* Make a page of the raced region immutable: whoever is first keeps it. */
static void race(struct worker *w)
{
    uint64_t pfn = RACED * RMPC_REGION_FRAMES + draw(w, RMPC_REGION_FRAMES);

    if (update(w, pfn, true, false, true, w->asid).code == RMPC_CODE_SUCCESS) {
        struct rmpc_rmp_entry entry;

        w->won++;
        rmpc_rmp_get(&w->shared->rmp, pfn, &entry);
        if (rmpc_rmp_asid(entry) != w->asid)
            fail(w->shared, "two threads won the same page");
    }
}

static void check_accesses(struct worker *w)
{
    const uint64_t half = HALF * RMPC_REGION_FRAMES + draw(w, RMPC_REGION_FRAMES);
    const uint64_t clean = CLEAN * RMPC_REGION_FRAMES + draw(w, RMPC_REGION_FRAMES);
    const bool assigned = half % 2;

    for (int level = 1; level <= 3; level++) {
        struct rmpc_outcome outcome = rmpc_rmp_check_host_write(&w->shared->rmp, half, level, 0);

        if ((outcome.kind == RMPC_OUTCOME_ALLOWED) != (level == 1 && !assigned) ||
            outcome.reason != (assigned ? RMPC_REASON_ASSIGNED : level > 1 ? RMPC_REASON_NEIGHBOUR : RMPC_REASON_NONE))
            fail(w->shared, "a host write to a half assigned region was judged wrongly");
        if (rmpc_rmp_check_host_write(&w->shared->rmp, clean, level, 0).kind != RMPC_OUTCOME_ALLOWED)
            fail(w->shared, "a host write to the hypervisor's own page was refused");
    }
}

/* Give an assigned page of the half assigned region to another guest: it stays assigned. */
static void stir(struct worker *w)
{
    update(w, HALF * RMPC_REGION_FRAMES + 1 + 2 * draw(w, RMPC_REGION_FRAMES / 2), true, false, false, w->asid);
}

/* Give the smashed region to a guest, smash it, take it back. */
static void smash(struct worker *w)
{
    const uint64_t first = SMASHED * RMPC_REGION_FRAMES;
    struct rmpc_rmp *rmp = &w->shared->rmp;

    if (update(w, first, true, true, false, w->asid).code != RMPC_CODE_SUCCESS)
        fail(w->shared, "somebody else was in a region of one thread");
    __atomic_fetch_add(&w->shared->epoch, 1, __ATOMIC_SEQ_CST);
    count_code(w, rmpc_psmash(rmp, &w->cpu, first << RMPC_PAGE_SHIFT));
    __atomic_fetch_add(&w->shared->epoch, 1, __ATOMIC_SEQ_CST);
    for (uint64_t pfn = first; pfn < first + RMPC_REGION_FRAMES; pfn++)
        update(w, pfn, false, false, false, 0);
}

/* A page of that region, of which the guest may only find that it is not validated, or of another size. */
static void check_smashed(struct worker *w)
{
    const uint64_t first = SMASHED * RMPC_REGION_FRAMES;
    const uint64_t offset = draw(w, RMPC_REGION_FRAMES) << RMPC_PAGE_SHIFT;
    const struct rmpc_access access = {.pa = (first << RMPC_PAGE_SHIFT) + offset,
                                       .gpa = gpa_for(first, 1) + offset,
                                       .asid = 1,
                                       .who = RMPC_WHO_SNP,
                                       .level = 1,
                                       .c = true};
    const uint64_t before = __atomic_load_n(&w->shared->epoch, __ATOMIC_SEQ_CST);
    const struct rmpc_outcome outcome = rmpc_rmp_check(&w->shared->rmp, &access);

    if (before % 2 && __atomic_load_n(&w->shared->epoch, __ATOMIC_SEQ_CST) == before &&
        outcome.reason != RMPC_REASON_SIZE && outcome.reason != RMPC_REASON_NOT_VALIDATED)
        fail(w->shared, "a page was nobody's while it was smashed");
}

static void *work(void *argument)
{
    struct worker *w = argument;

    for (uint64_t i = 0; i < w->shared->operations; i++) {
        const uint64_t pfn = busy_frame(w);
        const uint64_t kind = draw(w, 1000);

        if (kind < 400)
            update(w, pfn, true, false, false, w->asid);
        else if (kind < 600)
            update(w, pfn, false, false, false, 0);
        else if (kind < 720)
            guest_insn(w, pfn);
        else if (kind < 820)
            check_entry(w, pfn);
        else if (kind < 860)
            race(w);
        else if (kind < 880)
            check_accesses(w);
        else if (kind < 900)
            check_smashed(w);
        else if (kind < 902 && w->asid == 1)
            smash(w);
        else if (kind < 940)
            stir(w);
        else if (kind < 990)
            update(w, pfn, true, false, true, 0); /* the firmware's, until it gives the page back */
        else if (kind < 995)
            update(w, pfn & ~(RMPC_REGION_FRAMES - 1), kind % 2, true, false, w->asid);
        else
            count_code(w, rmpc_psmash(&w->shared->rmp, &w->cpu, pfn / RMPC_REGION_FRAMES << 21));
    }
    return NULL;
}

/* The firmware gives back whatever is its own. */
static void *reclaim(void *argument)
{
    struct worker *w = argument;

    for (uint64_t i = 0; i < w->shared->operations; i++) {
        const struct rmpc_operands operands = {.page = busy_frame(w) << RMPC_PAGE_SHIFT};

        w->succeeded += rmpc_firmware_command(&w->shared->firmware, RMPC_SNP_PAGE_RECLAIM, &operands) == RMPC_FW_SUCCESS;
    }
    return NULL;
}

static void check_counts(struct shared *shared)
{
    const struct rmpc_rmp_entry *entries = shared->segment.entries;
    uint64_t pages[RMPC_RMP_ASID_MAX + 1] = {0};

    for (uint64_t region = 0; region < REGIONS; region++) {
        const struct rmpc_rmp_entry *head = &entries[region * RMPC_REGION_FRAMES];
        const bool large = head->lo & RMPC_RMP_SIZE_2M;
        uint64_t count = 0;

        for (uint64_t i = 0; i < RMPC_REGION_FRAMES; i++) {
            if (!(head[i].lo & RMPC_RMP_ASSIGNED))
                continue;
            count += i != 0;
            pages[rmpc_rmp_asid(head[i])] += head[i].lo & RMPC_RMP_SIZE_2M ? RMPC_REGION_FRAMES : 1;
        }
        if (rmpc_rmp_subpages(*head) != (large ? 0 : count))
            fail(shared, "a subpage count is wrong at the end");
    }
    for (uint64_t asid = 1; asid <= RMPC_RMP_ASID_MAX; asid++)
        if (shared->rmp.bookkeeping[asid] != pages[asid])
            fail(shared, "the counter of an ASID is wrong at the end");
}

static int set_up(struct shared *shared)
{
    const uint64_t size = RMPC_RMP_BOOKKEEPING + FRAMES * RMPC_RMP_ENTRY_SIZE;
    const struct rmpc_rmp_msrs msrs = {.base = UINT64_C(1) << 30, .end = (UINT64_C(1) << 30) + size - 1};
    struct rmpc_hardware hardware;
    struct rmpc_cpu cpu = {0};

    shared->range = (struct rmpc_range){msrs.base, (size + RMPC_PAGE_SIZE - 1) & ~(RMPC_PAGE_SIZE - 1), NULL};
    if (rmpc_sparse_map(&shared->range, false) != RMPC_OK || rmpc_hardware_init(&hardware, RMPC_PART_GENOA) != RMPC_OK)
        return 0;
    shared->mem = (struct rmpc_mem){.ranges = &shared->range, .count = 1};
    if (rmpc_rmp_init(&shared->rmp, &msrs, &shared->mem, &hardware, 0, &shared->segment, shared->words) != RMPC_OK)
        return 0;
    shared->firmware.rmp = &shared->rmp;
    shared->firmware.ready = true;
    for (uint64_t pfn = HALF * RMPC_REGION_FRAMES + 1; pfn < CLEAN * RMPC_REGION_FRAMES; pfn += 2)
        rmpc_rmpupdate(&shared->rmp, &cpu, pfn << RMPC_PAGE_SHIFT,
                       rmpc_rmp_state_make(gpa_for(pfn, 1), 1, 0, 0, 1));
    return 1;
}

int main(int argc, char **argv)
{
    static struct shared shared;
    static struct worker workers[MAX_THREADS];
    const uint64_t operations = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    const unsigned threads = argc > 2 ? (unsigned)atoi(argv[2]) : 4;
    uint64_t succeeded = 0, busy = 0, won = 0, updates = 0, counted = 0;

    if (threads < 2 || threads > MAX_THREADS || !set_up(&shared)) {
        fprintf(stderr, "threads [operations [2 to %d threads]]\n", MAX_THREADS);
        return 2;
    }
    shared.operations = operations / threads;
    for (unsigned i = 0; i < threads; i++) {
        workers[i].shared = &shared;
        workers[i].asid = i + 1;
        workers[i].random = 88172645463325252 + i * UINT64_C(0x9e3779b97f4a7c15);
        workers[i].cpu.mode.snp = true;
        if (pthread_create(&workers[i].thread, NULL, i == threads - 1 ? reclaim : work, &workers[i]))
            return 2;
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        succeeded += workers[i].succeeded;
        busy += workers[i].busy;
        won += workers[i].won;
        updates += workers[i].updates;
        counted += workers[i].cpu.counters.rmpupdate;
    }
    check_counts(&shared);
    if (counted != updates)
        fail(&shared, "an RMPUPDATE was not counted");
    if (won > RMPC_REGION_FRAMES)
        fail(&shared, "a page was won more than once");
    if (!succeeded || !won)
        fail(&shared, "nothing was done");
    printf("%llu operations, %u threads: %llu changes, %llu met another thread, %llu pages won\n",
           (unsigned long long)operations, threads, (unsigned long long)succeeded, (unsigned long long)busy,
           (unsigned long long)won);
    rmpc_sparse_unmap(&shared.range);
    if (shared.broken)
        fprintf(stderr, "%s\n", shared.broken);
    return shared.broken != NULL;
}
