/* The six SNP instructions (rmp sections 2.2 to 2.7).  Row numbers are those of the tables there. */
#include "rmpcore/rmp_insn.h"

#include "rmp_internal.h"

enum rmpc_status rmpc_cpu_inject(struct rmpc_cpu *cpu, uint64_t code, uint64_t count)
{
    if (code > 255 || count < 1 || count > RMPC_INJECT_MAX_COUNT)
        return RMPC_ERR_ARGUMENT;
    if (cpu->inject.count == RMPC_INJECT_RUNS)
        return RMPC_ERR_FULL;
    cpu->inject.runs[cpu->inject.count].code = (uint32_t)code;
    cpu->inject.runs[cpu->inject.count].count = count;
    cpu->inject.count++;
    return RMPC_OK;
}

uint32_t rmpc_take_injected(struct rmpc_inject *inject)
{
    uint32_t code;

    if (!inject->count)
        return 0;
    code = inject->runs[0].code;
    if (!--inject->runs[0].count) {
        inject->count--;
        for (size_t i = 0; i < inject->count; i++)
            inject->runs[i] = inject->runs[i + 1];
    }
    return code;
}

static struct rmpc_outcome fault(enum rmpc_vector vector)
{
    return rmpc_outcome_fault(vector, 0, 0, RMPC_REASON_NONE);
}

/* The entry of the segment table has reserved bits, and an instruction of the host needs it (section 1.7). */
static struct rmpc_outcome reserved_fault(void)
{
    return rmpc_outcome_fault(RMPC_VECTOR_PF, RMPC_FAULT_P | RMPC_FAULT_RSV, 0, RMPC_REASON_RESERVED);
}

static struct rmpc_outcome transient(uint32_t code)
{
    struct rmpc_outcome outcome = rmpc_outcome_code(code);

    outcome.transient = true;
    return outcome;
}

/* FAIL_INUSE or FAIL_OVERLAP, by who works in the region (section 2.2, row 7; section 1.3). */
static struct rmpc_outcome busy(uint32_t owner)
{
    return transient(owner & WORD_FIRMWARE ? RMPC_CODE_FAIL_OVERLAP : RMPC_CODE_FAIL_INUSE);
}

/* What an entry counts in the counter of its ASID (section 1.6). */
static uint64_t weight(const struct rmpc_hardware *hardware, struct rmpc_rmp_entry entry)
{
    if (!(entry.lo & RMPC_RMP_ASSIGNED))
        return 0;
    return entry.lo & RMPC_RMP_SIZE_2M ? hardware->bookkeeping : 1;
}

/* Count pages of an ASID; those of ASID 0 are not counted. */
static void keep_book(struct rmpc_rmp *rmp, uint64_t asid, uint64_t more)
{
    if (asid && more && rmp->hardware.bookkeeping)
        __atomic_fetch_add(&rmp->bookkeeping[asid], more, __ATOMIC_RELAXED);
}

/* What of the low quadword takes part in "all stays as it was" (section 2.2, keep-or-reset). */
#define SAME_MASK (RMPC_RMP_ASSIGNED | RMPC_RMP_SIZE_2M | RMPC_RMP_GPA | RMPC_RMP_ASID)

/* The entry that an update leaves: fields from the input, the rest kept or reset, the count 0. */
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

static void update_4k(struct rmpc_rmp *rmp, const struct place *place, struct rmpc_rmp_entry old,
                      struct rmpc_rmp_entry new)
{
    if (place->entry == place->head) {
        new.lo |= old.lo & RMPC_RMP_SUBPAGE_COUNT;
    } else if (rmp->hardware.subpage_count && ((old.lo ^ new.lo) & RMPC_RMP_ASSIGNED)) {
        uint64_t head = load_quad(&place->head->lo);
        uint64_t count = (head & RMPC_RMP_SUBPAGE_COUNT) >> RMPC_RMP_SUBPAGE_SHIFT;
        /* bounds: only entries stored by hand can make the count leave 0 to 511 */
        if (new.lo & RMPC_RMP_ASSIGNED)
            count += count < RMPC_REGION_FRAMES - 1;
        else
            count -= count > 0;
        store_quad(&place->head->lo, (head & ~RMPC_RMP_SUBPAGE_COUNT) | count << RMPC_RMP_SUBPAGE_SHIFT);
    }
    store_entry(place->entry, new);
}

/* Entries of a region in one cache line: it is written line by line. */
#define LINE 4

/* Fetch a line of the region that is written soon, so that eight are under way at once.  (Always inline: see
 * rmpc_rmp_prefetch().)
 *   i  the entry to be written now */
__attribute__((always_inline)) static inline void prefetch_line(const struct rmpc_rmp_entry *head, uint64_t i)
{
    const uint64_t ahead = 8 * LINE;

    __builtin_prefetch(&head[i + ahead < RMPC_REGION_FRAMES ? i + ahead : i], 1);
}

static void update_2m(const struct place *place, struct rmpc_rmp_entry new, bool assigned)
{
    const struct rmpc_rmp_entry other = {assigned ? RMPC_RMP_ASSIGNED : 0, 0};

    for (uint64_t i = 0; i < RMPC_REGION_FRAMES; i += LINE) {
        prefetch_line(place->entry, i);
        for (uint64_t j = i; j < i + LINE; j++)
            store_entry(&place->entry[j], j ? other : new);
    }
}

/* Is any entry of the region, which is ours, assigned but the first?  The first one's subpage count says so as long as it
 * can be trusted. */
static bool others_assigned(const struct rmpc_rmp *rmp, const struct place *place)
{
    uint64_t any = 0;

    if (rmp->hardware.subpage_count && place->word && !(__atomic_load_n(place->word, __ATOMIC_RELAXED) & WORD_RAW))
        return load_quad(&place->head->lo) & RMPC_RMP_SUBPAGE_COUNT;
    for (uint64_t i = 1; i < RMPC_REGION_FRAMES; i++)
        any |= place->head[i].lo;
    return any & RMPC_RMP_ASSIGNED;
}

/* Is the page in use, or of a 2 MiB page any part?  What is not covered has no entry that could be marked. */
static bool touches_in_use(const struct rmpc_rmp *rmp, uint64_t pfn, bool large)
{
    const uint64_t first = large ? pfn & ~(RMPC_REGION_FRAMES - 1) : pfn;
    struct place place;

    if (!rmp->in_use_count || !find(rmp, first, &place))
        return false;
    return rmpc_in_use(rmp, first, !large ? 1 : is_whole_region(&place) ? RMPC_REGION_FRAMES : place.left);
}

/* Rows 6 to 9, the region being ours; 0: write. */
static uint32_t refuse_update(const struct rmpc_rmp *rmp, const struct place *place, uint64_t pfn, bool large)
{
    uint64_t head = load_quad(&place->head->lo);
    bool inner = place->entry != place->head;

    if (load_quad(&place->entry->lo) & RMPC_RMP_IMMUTABLE) /* row 6 */
        return RMPC_CODE_FAIL_PERMISSION;
    if (!rmp->hardware.inuse_first && touches_in_use(rmp, pfn, large)) /* row 7 */
        return RMPC_CODE_FAIL_INUSE;
    if (!large) {
        if (!inner && (head & RMPC_RMP_SIZE_2M)) /* row 8 */
            return RMPC_CODE_FAIL_OVERLAP;
        if (inner && (head & RMPC_RMP_ASSIGNED) && (head & RMPC_RMP_SIZE_2M)) /* row 8b */
            return rmp->hardware.overlap_inner;
    } else if (!(head & RMPC_RMP_SIZE_2M) && others_assigned(rmp, place)) { /* row 9 */
        return RMPC_CODE_FAIL_OVERLAP;
    }
    return RMPC_CODE_SUCCESS;
}

static struct rmpc_outcome do_rmpupdate(struct rmpc_rmp *rmp, const struct rmpc_cpu *cpu, uint64_t pa,
                                        struct rmpc_rmp_state input)
{
    const struct rmpc_hardware *hardware = &rmp->hardware;
    uint64_t pfn = frame_of(rmp, pa);
    uint64_t asid = input.high >> RMPC_STATE_ASID_SHIFT;
    bool large = input.high & RMPC_STATE_SIZE_2M;
    bool assigned = input.high & RMPC_STATE_ASSIGNED;
    struct rmpc_rmp_entry old, new;
    struct place place;
    uint32_t code;

    if (cpu->mode.asid) /* row 1 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_PERMISSION);
    if (hardware->inuse_first && touches_in_use(rmp, pfn, large)) /* row 7 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_INUSE);
    if (large && (pa >> RMPC_PAGE_SHIFT) % RMPC_REGION_FRAMES) /* row 3 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if (!assigned && ((input.high & RMPC_STATE_IMMUTABLE) || asid)) /* row 4 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if (asid > hardware->asid_limit)
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if (hardware->reserved_input && ((input.high & RMPC_STATE_RESERVED) || input.gpa % RMPC_PAGE_SIZE))
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if (!find(rmp, pfn, &place)) /* row 5 */
        return is_in_reserved_segment(rmp, pfn) ? reserved_fault() : rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if (large && !is_whole_region(&place))
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);

    code = try_own(place.word, WORD_BUSY);
    if (code)
        return busy(code);
    code = refuse_update(rmp, &place, pfn, large);
    if (code == RMPC_CODE_SUCCESS) { /* row 10 */
        old = load_entry(place.entry);
        new = updated(hardware, old, input);
        if (large)
            update_2m(&place, new, assigned);
        else
            update_4k(rmp, &place, old, new);
        if (rmpc_rmp_asid(old) != asid || weight(hardware, old) != weight(hardware, new)) {
            keep_book(rmp, rmpc_rmp_asid(old), 0 - weight(hardware, old));
            keep_book(rmp, asid, weight(hardware, new));
        }
    }
    /* a whole region that was written has the right count again */
    disown(place.word, code == RMPC_CODE_SUCCESS, large && code == RMPC_CODE_SUCCESS ? TRUSTED : SAME_TRUST);
    return rmpc_outcome_code(code);
}

struct rmpc_outcome rmpc_rmpupdate(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t pa,
                                   struct rmpc_rmp_state input)
{
    struct rmpc_outcome outcome;
    uint32_t injected;

    if (!rmp) /* row 0 */
        return fault(RMPC_VECTOR_UD);
    if (cpu->mode.user)
        return fault(RMPC_VECTOR_GP);
    injected = rmpc_take_injected(&cpu->inject);
    outcome = injected ? transient(injected) : do_rmpupdate(rmp, cpu, pa, input);
    if (outcome.kind != RMPC_OUTCOME_CODE)
        return outcome;
    cpu->counters.rmpupdate++;
    rmpc_report(cpu->events, RMPC_EVENT_RMPUPDATE, 0, (int32_t)outcome.code, pa, input.gpa, input.high);
    return outcome;
}

/* Row 5: 512 entries of 4 KiB with consecutive guest addresses, all else as it was. */
static void smash(struct rmpc_rmp *rmp, const struct place *place, struct rmpc_rmp_entry old)
{
    const quads step = {RMPC_PAGE_SIZE, 0};
    const quads gpa_mask = {(UINT64_C(1) << rmp->hardware.gpa_bits) - RMPC_PAGE_SIZE, 0};
    const quads rest = {old.lo & ~(RMPC_RMP_GPA | RMPC_RMP_SIZE_2M | RMPC_RMP_SUBPAGE_COUNT), old.hi};
    quads gpa = {old.lo & RMPC_RMP_GPA, 0};

    for (uint64_t i = 0; i < RMPC_REGION_FRAMES; i += LINE) {
        prefetch_line(place->entry, i);
        for (uint64_t j = i; j < i + LINE; j++) {
            store_quads(&place->entry[j], rest | (gpa & gpa_mask));
            gpa += step;
        }
    }
    if (rmp->hardware.subpage_count)
        store_quad(&place->entry->lo, place->entry->lo | RMPC_RMP_SUBPAGE_COUNT); /* all 511 of them */
    keep_book(rmp, rmpc_rmp_asid(old), RMPC_REGION_FRAMES - rmp->hardware.bookkeeping);
}

static struct rmpc_outcome do_psmash(struct rmpc_rmp *rmp, const struct rmpc_cpu *cpu, uint64_t pa)
{
    const struct rmpc_hardware *hardware = &rmp->hardware;
    uint64_t pfn = frame_of(rmp, pa);
    struct rmpc_rmp_entry old;
    struct place place;
    uint32_t code;

    if (cpu->mode.asid) /* row 1 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_PERMISSION);
    if (pa % (RMPC_REGION_FRAMES * RMPC_PAGE_SIZE)) /* row 2 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if (!find(rmp, pfn, &place))
        return is_in_reserved_segment(rmp, pfn) ? reserved_fault() : rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if (!is_whole_region(&place))
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    code = try_own(place.word, WORD_BUSY); /* row 3 */
    if (code)
        return busy(code);
    old = load_entry(place.entry);
    if (rmpc_in_use(rmp, pfn, RMPC_REGION_FRAMES))
        code = RMPC_CODE_FAIL_INUSE;
    else if (!(old.lo & RMPC_RMP_ASSIGNED) || !(old.lo & RMPC_RMP_SIZE_2M)) /* row 4 */
        code = hardware->psmash_unassigned;
    else if (old.lo & RMPC_RMP_IMMUTABLE)
        code = hardware->psmash_immutable;
    else
        smash(rmp, &place, old);
    disown(place.word, code == RMPC_CODE_SUCCESS, code == RMPC_CODE_SUCCESS ? TRUSTED : SAME_TRUST);
    return rmpc_outcome_code(code);
}

struct rmpc_outcome rmpc_psmash(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t pa)
{
    struct rmpc_outcome outcome;
    uint32_t injected;

    if (!rmp) /* row 0 */
        return fault(RMPC_VECTOR_UD);
    if (cpu->mode.user)
        return fault(RMPC_VECTOR_GP);
    injected = rmpc_take_injected(&cpu->inject);
    outcome = injected ? transient(injected) : do_psmash(rmp, cpu, pa);
    if (outcome.kind != RMPC_OUTCOME_CODE)
        return outcome;
    cpu->counters.psmash++;
    rmpc_report(cpu->events, RMPC_EVENT_PSMASH, 0, (int32_t)outcome.code, pa, 0, 0);
    return outcome;
}

struct rmpc_outcome rmpc_rmpread(const struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t pa,
                                 struct rmpc_rmp_state *out)
{
    struct rmpc_rmp_state state = {0, 0};
    uint32_t code = RMPC_CODE_SUCCESS;
    struct place place;
    uint64_t pfn;

    if (!rmp || !rmp->hardware.rmpread)
        return fault(RMPC_VECTOR_UD);
    if (cpu->mode.user)
        return fault(RMPC_VECTOR_GP);
    pfn = frame_of(rmp, pa);
    if (cpu->mode.asid) {
        code = RMPC_CODE_FAIL_PERMISSION;
    } else if (!find(rmp, pfn, &place)) {
        if (is_in_reserved_segment(rmp, pfn))
            return reserved_fault();
        code = RMPC_CODE_FAIL_INPUT;
    } else {
        /* all of it is in one quadword, so no other thread can come between */
        struct rmpc_rmp_entry entry = {load_quad(&place.entry->lo), 0};
        state = rmpc_rmp_state_make(entry.lo & RMPC_RMP_GPA, (entry.lo & RMPC_RMP_ASSIGNED) != 0,
                                    (entry.lo & RMPC_RMP_SIZE_2M) != 0, (entry.lo & RMPC_RMP_IMMUTABLE) != 0,
                                    (uint32_t)rmpc_rmp_asid(entry));
        if (place.entry == place.head && rmpc_rmp_subpages(entry)) /* section 1.5 */
            state.high |= RMPC_STATE_REGION;
        *out = state;
    }
    cpu->counters.rmpread++;
    rmpc_report(cpu->events, RMPC_EVENT_RMPREAD, 0, (int32_t)code, pa, state.gpa, state.high);
    return rmpc_outcome_code(code);
}

/* ---- instructions of guests ---- */

static struct rmpc_outcome nested_fault(const struct rmpc_page *page, uint64_t info, enum rmpc_reason reason)
{
    /* real logs have neither FINAL nor WALK for an instruction (section 3.5) */
    return (struct rmpc_outcome){.code = RMPC_VMEXIT_NPF,
                                 .kind = RMPC_OUTCOME_NPF,
                                 .reason = (uint8_t)reason,
                                 .info = RMPC_FAULT_P | RMPC_FAULT_US | RMPC_FAULT_ENC | info,
                                 .address = page->gpa};
}

/* Rows that PVALIDATE, RMPADJUST and RMPQUERY share before anything else; CODE: go on. */
static struct rmpc_outcome may_execute(const struct rmpc_rmp *rmp, const struct rmpc_cpu *cpu, bool exists)
{
    if (!rmp || !exists || !cpu->mode.asid || !cpu->mode.snp) /* row 0 */
        return fault(RMPC_VECTOR_UD);
    if (cpu->mode.user) /* row 1 of PVALIDATE */
        return fault(RMPC_VECTOR_GP);
    return rmpc_outcome_code(RMPC_CODE_SUCCESS);
}

/* A page that a guest's instruction works on. */
struct target {
    struct place place;
    struct governing governing;
    bool owned; /* its region is */
};

static struct rmpc_rmp_entry *governing_entry(const struct target *target)
{
    return target->governing.large ? target->place.head : target->place.entry;
}

/* Find the page, own its region if it is to be changed, and check whose it is and its size; CODE: go on.
 *   small  the size in the operand is 4K */
static struct rmpc_outcome reach(const struct rmpc_rmp *rmp, const struct rmpc_cpu *cpu, uint64_t gva,
                                 const struct rmpc_page *page, bool small, bool change, struct target *target)
{
    struct rmpc_rmp_entry entry, head;
    enum rmpc_reason reason;
    uint64_t pfn;

    target->owned = false;
    if (!page) /* the walk */
        return rmpc_outcome_fault(RMPC_VECTOR_PF, 0, gva, RMPC_REASON_NONE);
    pfn = frame_of(rmp, page->pa);
    if (!find(rmp, pfn, &target->place)) {
        if (is_in_reserved_segment(rmp, pfn))
            return nested_fault(page, RMPC_FAULT_RSV, RMPC_REASON_RESERVED);
        return nested_fault(page, RMPC_FAULT_RMP, RMPC_REASON_UNCOVERED);
    }
    if (change) {
        own(target->place.word, WORD_BUSY);
        target->owned = true;
        entry = load_entry(target->place.entry);
        head = load_entry(target->place.head);
    } else {
        load_both(&target->place, &entry, &head);
    }
    target->governing = govern(&target->place, entry, head);
    reason = refusal(&rmp->hardware, &target->governing, cpu->mode.asid, page->gpa);
    if (reason != RMPC_REASON_NONE)
        return nested_fault(page, RMPC_FAULT_RMP, reason);
    if ((small || page->level == 1) && target->governing.large)
        return nested_fault(page, RMPC_FAULT_RMP | RMPC_FAULT_SIZEM, RMPC_REASON_SIZE);
    return rmpc_outcome_code(RMPC_CODE_SUCCESS);
}

static bool succeeded(struct rmpc_outcome outcome)
{
    return outcome.kind == RMPC_OUTCOME_CODE && outcome.code == RMPC_CODE_SUCCESS;
}

/* 2M asked for, and the address is none of a 2M page. */
static bool is_misaligned(uint64_t large, uint64_t gva)
{
    return large && (gva & (RMPC_REGION_FRAMES * RMPC_PAGE_SIZE - RMPC_PAGE_SIZE));
}

/* Let go of the page; succeeding without CF has changed its entry. */
static void leave(const struct target *target, struct rmpc_outcome outcome)
{
    if (target->owned)
        disown(target->place.word, succeeded(outcome) && !outcome.cf, SAME_TRUST);
}

/* Rows 8 to 10 of PVALIDATE. */
static struct rmpc_outcome validate(const struct rmpc_rmp *rmp, const struct target *target, bool large, bool valid)
{
    struct rmpc_outcome outcome = rmpc_outcome_code(RMPC_CODE_SUCCESS);
    struct rmpc_rmp_entry entry = target->governing.entry;

    if (large && !target->governing.large) /* row 8 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_SIZEMISMATCH);
    outcome.cf = ((entry.lo & RMPC_RMP_VALIDATED) != 0) == valid; /* row 9 */
    if (outcome.cf)
        return outcome;
    entry.lo ^= RMPC_RMP_VALIDATED; /* row 10 */
    if (!valid && rmp->hardware.rescind_resets)
        entry.hi = rmp->hardware.vmpl0_all;
    store_entry(governing_entry(target), entry);
    return outcome;
}

static struct rmpc_outcome do_pvalidate(struct rmpc_rmp *rmp, const struct rmpc_cpu *cpu, uint64_t gva, uint32_t ecx,
                                        uint32_t edx, const struct rmpc_page *page)
{
    const uint32_t not_0 = rmp->hardware.pvalidate_vmpl;
    struct rmpc_outcome outcome;
    struct target target;

    if (cpu->mode.vmpl) /* row 2 */
        return not_0 ? rmpc_outcome_code(not_0) : fault(RMPC_VECTOR_GP);
    if (ecx > 1 || edx > 1 || is_misaligned(ecx, gva)) /* rows 3, 4 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    outcome = reach(rmp, cpu, gva, page, !ecx, true, &target); /* rows 5 to 7 */
    if (succeeded(outcome))
        outcome = validate(rmp, &target, ecx, edx);
    leave(&target, outcome);
    return outcome;
}

struct rmpc_outcome rmpc_pvalidate(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t gva, uint64_t rcx, uint64_t rdx,
                                   const struct rmpc_page *page)
{
    struct rmpc_outcome outcome = may_execute(rmp, cpu, true);

    if (succeeded(outcome))
        outcome = do_pvalidate(rmp, cpu, gva, (uint32_t)rcx, (uint32_t)rdx, page);
    if (outcome.kind != RMPC_OUTCOME_CODE)
        return outcome;
    cpu->counters.pvalidate++;
    rmpc_report(cpu->events, RMPC_EVENT_PVALIDATE, outcome.cf, (int32_t)outcome.code, gva, rcx, rdx);
    return outcome;
}

/* RDX of RMPADJUST. */
#define ADJUST_VMPL UINT64_C(0xff)
#define ADJUST_PERMISSIONS UINT64_C(0xff00)
#define ADJUST_VMSA UINT64_C(0x10000)
#define PERMISSION_RESERVED UINT64_C(0xe0)

static uint64_t permissions_of(struct rmpc_rmp_entry entry, uint64_t vmpl)
{
    return entry.hi >> 8 * vmpl & 0xff;
}

/* Rows 5 to 8 of RMPADJUST. */
static struct rmpc_outcome adjust(const struct target *target, uint8_t current, bool large, uint64_t rdx, uint64_t gva)
{
    const uint64_t asked = (rdx & ADJUST_PERMISSIONS) >> 8;
    const uint64_t shift = 8 * (rdx & ADJUST_VMPL);
    struct rmpc_rmp_entry entry = target->governing.entry;

    if (!(entry.lo & RMPC_RMP_VALIDATED)) /* row 5 */
        return rmpc_outcome_fault(RMPC_VECTOR_VC, RMPC_VC_NOT_VALIDATED, gva, RMPC_REASON_NOT_VALIDATED);
    if (large && !target->governing.large) /* row 6 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_SIZEMISMATCH);
    if (asked & ~permissions_of(entry, current)) /* row 7 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_PERMISSION);
    entry.hi = (entry.hi & ~(UINT64_C(0xff) << shift)) | asked << shift; /* row 8 */
    if (!current)
        entry.lo = (entry.lo & ~RMPC_RMP_VMSA) | (rdx & ADJUST_VMSA ? RMPC_RMP_VMSA : 0);
    store_entry(governing_entry(target), entry);
    return rmpc_outcome_code(RMPC_CODE_SUCCESS);
}

static struct rmpc_outcome do_rmpadjust(struct rmpc_rmp *rmp, const struct rmpc_cpu *cpu, uint64_t gva, uint64_t rcx,
                                        uint64_t rdx, const struct rmpc_page *page)
{
    const uint64_t known = ADJUST_VMPL | ADJUST_PERMISSIONS | ADJUST_VMSA;
    struct rmpc_outcome outcome;
    struct target target;

    if (rcx > 1 || (rdx & ~known) || (rdx & PERMISSION_RESERVED << 8) || is_misaligned(rcx, gva) ||
        (rdx & ADJUST_VMPL) >= rmp->hardware.vmpls) /* row 1 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_INPUT);
    if ((rdx & ADJUST_VMPL) <= cpu->mode.vmpl) /* row 2 */
        return rmpc_outcome_code(RMPC_CODE_FAIL_PERMISSION);
    outcome = reach(rmp, cpu, gva, page, !rcx, true, &target); /* rows 3, 4 */
    if (succeeded(outcome))
        outcome = adjust(&target, cpu->mode.vmpl, rcx, rdx, gva);
    leave(&target, outcome);
    return outcome;
}

struct rmpc_outcome rmpc_rmpadjust(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t gva, uint64_t rcx, uint64_t rdx,
                                   const struct rmpc_page *page)
{
    struct rmpc_outcome outcome = may_execute(rmp, cpu, true);

    if (succeeded(outcome))
        outcome = do_rmpadjust(rmp, cpu, gva, rcx, rdx, page);
    if (outcome.kind != RMPC_OUTCOME_CODE)
        return outcome;
    cpu->counters.rmpadjust++;
    rmpc_report(cpu->events, RMPC_EVENT_RMPADJUST, 0, (int32_t)outcome.code, gva, rcx, rdx);
    return outcome;
}

static struct rmpc_outcome do_rmpquery(const struct rmpc_rmp *rmp, const struct rmpc_cpu *cpu, uint64_t gva,
                                       uint64_t *rcx, uint64_t *rdx, const struct rmpc_page *page)
{
    const uint64_t vmpl = *rdx & ADJUST_VMPL;
    struct target target;
    struct rmpc_outcome outcome = reach(rmp, cpu, gva, page, false, false, &target);
    struct rmpc_rmp_entry entry = target.governing.entry;

    if (!succeeded(outcome))
        return outcome;
    if (!(entry.lo & RMPC_RMP_VALIDATED))
        return rmpc_outcome_fault(RMPC_VECTOR_VC, RMPC_VC_NOT_VALIDATED, gva, RMPC_REASON_NOT_VALIDATED);
    if (vmpl >= rmp->hardware.vmpls)
        return rmpc_outcome_code(RMPC_CODE_FAIL_PERMISSION);
    if (vmpl < cpu->mode.vmpl && rmp->hardware.rmpquery_vmpl)
        return rmpc_outcome_code(rmp->hardware.rmpquery_vmpl);
    *rcx = target.governing.large;
    *rdx = vmpl | permissions_of(entry, vmpl) << 8 | (entry.lo & RMPC_RMP_VMSA ? ADJUST_VMSA : 0);
    return outcome;
}

struct rmpc_outcome rmpc_rmpquery(const struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t gva, uint64_t *rcx,
                                  uint64_t *rdx, const struct rmpc_page *page)
{
    struct rmpc_outcome outcome = may_execute(rmp, cpu, rmp && rmp->hardware.rmpquery);

    if (succeeded(outcome))
        outcome = do_rmpquery(rmp, cpu, gva, rcx, rdx, page);
    if (outcome.kind != RMPC_OUTCOME_CODE)
        return outcome;
    cpu->counters.rmpquery++;
    rmpc_report(cpu->events, RMPC_EVENT_RMPQUERY, 0, (int32_t)outcome.code, gva, succeeded(outcome) ? *rcx : 0,
                succeeded(outcome) ? *rdx : 0);
    return outcome;
}
