/* RMPUPDATE, PSMASH and RMPREAD (rmp sections 2.2 to 2.4).  Row numbers are those of the tables there. */
#include "rmpcore/rmp_insn.h"

static struct rmpc_outcome fault(enum rmpc_vector vector)
{
    struct rmpc_outcome outcome = {(uint32_t)vector, 0, false};
    return outcome;
}

static struct rmpc_outcome answer(uint32_t code)
{
    struct rmpc_outcome outcome = {RMPC_VECTOR_NONE, code, false};
    return outcome;
}

/* Take the next injected code; false: none waits, or it says "execute normally". */
static bool take_injected(struct rmpc_inject *inject, struct rmpc_outcome *outcome)
{
    uint32_t code;

    if (!inject->count)
        return false;
    code = inject->runs[0].code;
    if (!--inject->runs[0].count) {
        inject->count--;
        for (size_t i = 0; i < inject->count; i++)
            inject->runs[i] = inject->runs[i + 1];
    }
    if (!code)
        return false;
    outcome->vector = RMPC_VECTOR_NONE;
    outcome->code = code;
    outcome->injected = true;
    return true;
}

/* Frame of an address, UINT64_MAX when the address is above all physical memory. */
static uint64_t frame_of(const struct rmpc_rmp *rmp, uint64_t pa)
{
    pa &= ~rmp->c_bit;
    return pa < RMPC_PHYSICAL_LIMIT ? pa >> RMPC_PAGE_SHIFT : UINT64_MAX;
}

static bool covers_region(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    return pfn < rmp->frames && rmp->frames - pfn >= RMPC_REGION_FRAMES;
}

/* What of the low quadword takes part in "all stays as it was" (section 2.2, keep-or-reset). */
#define SAME_MASK (RMPC_RMP_ASSIGNED | RMPC_RMP_SIZE_2M | RMPC_RMP_GPA | RMPC_RMP_ASID)

/* The entry that an update leaves: fields from the input, the rest kept or reset, the count untouched. */
static struct rmpc_rmp_entry updated(const struct rmpc_hardware *hardware, struct rmpc_rmp_entry old,
                                     struct rmpc_rmp_state input)
{
    uint64_t gpa = input.gpa & ((UINT64_C(1) << hardware->gpa_bits) - 1) & RMPC_RMP_GPA;
    uint64_t asid = input.high >> RMPC_STATE_ASID_SHIFT;
    struct rmpc_rmp_entry new = {gpa | asid << RMPC_RMP_ASID_SHIFT, hardware->vmpl0_all};

    if (input.high & RMPC_STATE_ASSIGNED) {
        new.lo |= RMPC_RMP_ASSIGNED;
        if (input.high & RMPC_STATE_SIZE_2M)
            new.lo |= RMPC_RMP_SIZE_2M;
    }
    if (hardware->keep_same && asid && !((new.lo ^ old.lo) & SAME_MASK)) {
        new.lo |= old.lo & (RMPC_RMP_VALIDATED | RMPC_RMP_VMSA);
        new.hi = old.hi;
    }
    if (input.high & RMPC_STATE_IMMUTABLE) {
        new.lo |= RMPC_RMP_IMMUTABLE;
        if (hardware->lock_follows_immutable)
            new.lo |= RMPC_RMP_LOCK;
    }
    return new;
}

static void update_4k(struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_state input)
{
    struct rmpc_rmp_entry *entry = &rmp->entries[pfn];
    struct rmpc_rmp_entry *head = &rmp->entries[pfn & ~(RMPC_REGION_FRAMES - 1)];
    struct rmpc_rmp_entry new = updated(&rmp->hardware, *entry, input);

    if (entry == head) {
        new.lo |= entry->lo & RMPC_RMP_SUBPAGE_COUNT;
    } else if (rmp->hardware.subpage_count) {
        uint64_t count = rmpc_rmp_subpages(*head);
        bool was = entry->lo & RMPC_RMP_ASSIGNED;
        bool is = new.lo & RMPC_RMP_ASSIGNED;
        /* bounds: only entries stored by hand can make the count leave 0 to 511 */
        if (is && !was && count < RMPC_REGION_FRAMES - 1)
            count++;
        else if (was && !is && count > 0)
            count--;
        head->lo = (head->lo & ~RMPC_RMP_SUBPAGE_COUNT) | count << RMPC_RMP_SUBPAGE_SHIFT;
    }
    *entry = new;
}

static void update_2m(struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_state input)
{
    struct rmpc_rmp_entry *entry = &rmp->entries[pfn];
    struct rmpc_rmp_entry other = {input.high & RMPC_STATE_ASSIGNED ? RMPC_RMP_ASSIGNED : 0, 0};

    *entry = updated(&rmp->hardware, *entry, input);
    for (uint64_t i = 1; i < RMPC_REGION_FRAMES; i++)
        entry[i] = other;
}

static bool others_assigned(const struct rmpc_rmp_entry *head)
{
    uint64_t any = 0;

    for (uint64_t i = 1; i < RMPC_REGION_FRAMES; i++)
        any |= head[i].lo;
    return any & RMPC_RMP_ASSIGNED;
}

static uint32_t do_rmpupdate(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa, struct rmpc_rmp_state input)
{
    const struct rmpc_hardware *hardware = &rmp->hardware;
    uint64_t pfn = frame_of(rmp, pa);
    uint64_t asid = input.high >> RMPC_STATE_ASID_SHIFT;
    bool large = input.high & RMPC_STATE_SIZE_2M;
    bool inner = pfn % RMPC_REGION_FRAMES;
    struct rmpc_rmp_entry head;

    if (cpu.guest) /* row 1 */
        return RMPC_CODE_FAIL_PERMISSION;
    if (large && (pa >> RMPC_PAGE_SHIFT) % RMPC_REGION_FRAMES) /* row 3 */
        return RMPC_CODE_FAIL_INPUT;
    if (!(input.high & RMPC_STATE_ASSIGNED) && ((input.high & RMPC_STATE_IMMUTABLE) || asid)) /* row 4 */
        return RMPC_CODE_FAIL_INPUT;
    if (asid > hardware->asid_limit)
        return RMPC_CODE_FAIL_INPUT;
    if (hardware->reserved_input &&
        ((input.high & RMPC_STATE_RESERVED) || input.gpa % RMPC_PAGE_SIZE))
        return RMPC_CODE_FAIL_INPUT;
    if (large ? !covers_region(rmp, pfn) : !rmpc_rmp_covers(rmp, pfn)) /* row 5 */
        return RMPC_CODE_FAIL_INPUT;
    if (rmp->entries[pfn].lo & RMPC_RMP_IMMUTABLE) /* row 6 */
        return RMPC_CODE_FAIL_PERMISSION;

    head = rmp->entries[pfn & ~(RMPC_REGION_FRAMES - 1)];
    if (!large) {
        if (!inner && (head.lo & RMPC_RMP_SIZE_2M)) /* row 8 */
            return RMPC_CODE_FAIL_OVERLAP;
        if (inner && (head.lo & RMPC_RMP_ASSIGNED) && (head.lo & RMPC_RMP_SIZE_2M)) /* row 8b */
            return hardware->overlap_inner;
        update_4k(rmp, pfn, input); /* row 10 */
    } else {
        if (!(head.lo & RMPC_RMP_SIZE_2M) && others_assigned(&rmp->entries[pfn])) /* row 9 */
            return RMPC_CODE_FAIL_OVERLAP;
        update_2m(rmp, pfn, input); /* row 10 */
    }
    rmpc_rmp_touch(rmp, pfn);
    return RMPC_CODE_SUCCESS;
}

struct rmpc_outcome rmpc_rmpupdate(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa, struct rmpc_rmp_state input)
{
    struct rmpc_outcome outcome;

    if (!rmp) /* row 0 */
        return fault(RMPC_VECTOR_UD);
    if (cpu.user)
        return fault(RMPC_VECTOR_GP);
    if (!take_injected(&rmp->inject, &outcome))
        outcome = answer(do_rmpupdate(rmp, cpu, pa, input));
    rmp->counters.rmpupdate++;
    rmpc_report(rmp->events, RMPC_EVENT_RMPUPDATE, 0, (int32_t)outcome.code, pa, input.gpa, input.high);
    return outcome;
}

static uint32_t do_psmash(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa)
{
    const struct rmpc_hardware *hardware = &rmp->hardware;
    uint64_t gpa_mask = (UINT64_C(1) << hardware->gpa_bits) - RMPC_PAGE_SIZE;
    uint64_t pfn = frame_of(rmp, pa);
    struct rmpc_rmp_entry *entry;
    uint64_t gpa, rest, hi;

    if (cpu.guest) /* row 1 */
        return RMPC_CODE_FAIL_PERMISSION;
    if (pa % (RMPC_REGION_FRAMES * RMPC_PAGE_SIZE) || !covers_region(rmp, pfn)) /* row 2 */
        return RMPC_CODE_FAIL_INPUT;
    entry = &rmp->entries[pfn];
    if (!(entry->lo & RMPC_RMP_ASSIGNED) || !(entry->lo & RMPC_RMP_SIZE_2M)) /* row 4 */
        return hardware->psmash_unassigned;
    if (entry->lo & RMPC_RMP_IMMUTABLE)
        return hardware->psmash_immutable;

    /* row 5: 512 entries of 4 KiB with consecutive guest addresses, all else as it was */
    gpa = entry->lo & RMPC_RMP_GPA;
    rest = entry->lo & ~(RMPC_RMP_GPA | RMPC_RMP_SIZE_2M | RMPC_RMP_SUBPAGE_COUNT);
    hi = entry->hi;
    for (uint64_t i = 0; i < RMPC_REGION_FRAMES; i++) {
        entry[i].lo = rest | ((gpa + (i << RMPC_PAGE_SHIFT)) & gpa_mask);
        entry[i].hi = hi;
    }
    if (hardware->subpage_count)
        entry->lo |= (RMPC_REGION_FRAMES - 1) << RMPC_RMP_SUBPAGE_SHIFT;
    rmpc_rmp_touch(rmp, pfn);
    return RMPC_CODE_SUCCESS;
}

struct rmpc_outcome rmpc_psmash(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa)
{
    struct rmpc_outcome outcome;

    if (!rmp) /* row 0 */
        return fault(RMPC_VECTOR_UD);
    if (cpu.user)
        return fault(RMPC_VECTOR_GP);
    if (!take_injected(&rmp->inject, &outcome))
        outcome = answer(do_psmash(rmp, cpu, pa));
    rmp->counters.psmash++;
    rmpc_report(rmp->events, RMPC_EVENT_PSMASH, 0, (int32_t)outcome.code, pa, 0, 0);
    return outcome;
}

struct rmpc_outcome rmpc_rmpread(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa, struct rmpc_rmp_state *out)
{
    struct rmpc_rmp_state state = {0, 0};
    uint32_t code = RMPC_CODE_SUCCESS;
    uint64_t pfn;

    if (!rmp || !rmp->hardware.rmpread)
        return fault(RMPC_VECTOR_UD);
    if (cpu.user)
        return fault(RMPC_VECTOR_GP);
    pfn = frame_of(rmp, pa);
    if (cpu.guest) {
        code = RMPC_CODE_FAIL_PERMISSION;
    } else if (!rmpc_rmp_covers(rmp, pfn)) {
        code = RMPC_CODE_FAIL_INPUT;
    } else {
        struct rmpc_rmp_entry entry = rmp->entries[pfn];
        state = rmpc_rmp_state_make(entry.lo & RMPC_RMP_GPA, (entry.lo & RMPC_RMP_ASSIGNED) != 0,
                                    (entry.lo & RMPC_RMP_SIZE_2M) != 0, (entry.lo & RMPC_RMP_IMMUTABLE) != 0,
                                    (uint32_t)rmpc_rmp_asid(entry));
        if (pfn % RMPC_REGION_FRAMES == 0 && rmpc_rmp_subpages(entry)) /* section 1.5 */
            state.high |= RMPC_STATE_REGION;
        *out = state;
    }
    rmp->counters.rmpread++;
    rmpc_report(rmp->events, RMPC_EVENT_RMPREAD, 0, (int32_t)code, pa, state.gpa, state.high);
    return answer(code);
}
