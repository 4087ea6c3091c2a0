/* Access checks, in the architecture's order (rmp section 3), and VMRUN's pages (3.7). */
#include "rmpcore/rmp_check.h"

#include "rmp_internal.h"

bool rmpc_access_is_valid(const struct rmpc_access *access, uint32_t vmpls)
{
    return access->who < RMPC_WHO_END && access->kind < RMPC_ACCESS_END && access->level >= 1 && access->level <= 3 &&
           access->vmpl < vmpls && (access->who < RMPC_WHO_VMCB || access->kind == RMPC_READ);
}

/* Is some page of the region assigned?  All that are covered count (section 3.1).  The aligned entry alone says so as
 * long as its subpage count can be trusted. */
static bool region_assigned(const struct rmpc_rmp *rmp, const struct place *place)
{
    const uint64_t count = place->left < RMPC_REGION_FRAMES ? place->left : RMPC_REGION_FRAMES;
    uint32_t before, after;
    uint64_t any;

    for (;;) {
        before = place->word ? __atomic_load_n(place->word, __ATOMIC_ACQUIRE) : WORD_RAW;
        any = load_quad(&place->head->lo);
        if (any & (RMPC_RMP_ASSIGNED | (before & WORD_RAW ? 0 : RMPC_RMP_SUBPAGE_COUNT)))
            return true;
        if (rmp->hardware.subpage_count && !(before & WORD_RAW))
            return false;
        for (uint64_t i = 1; i < count; i++)
            any |= load_quad(&place->head[i].lo);
        after = place->word ? __atomic_load_n(place->word, __ATOMIC_RELAXED) : before;
        if (before == after && (!place->word || !(before & WORD_BUSY)))
            return any & RMPC_RMP_ASSIGNED;
        relax();
    }
}

/* Is the page the hypervisor's, through a mapping of this level?  NONE, or why not (section 3.1). */
static enum rmpc_reason refuse_owner(const struct rmpc_rmp *rmp, uint64_t pfn, int level)
{
    struct place place;

    if (!find(rmp, pfn, &place))
        return is_in_reserved_segment(rmp, pfn) ? RMPC_REASON_RESERVED : RMPC_REASON_NONE;
    if (load_quad(&place.entry->lo) & RMPC_RMP_ASSIGNED)
        return RMPC_REASON_ASSIGNED;
    return level > 1 && region_assigned(rmp, &place) ? RMPC_REASON_NEIGHBOUR : RMPC_REASON_NONE;
}

/* May a processor access a page of the hypervisor's there?  As above; and it may not write to pages in use (3.7). */
static enum rmpc_reason refuse_access(const struct rmpc_rmp *rmp, uint64_t pfn, int level, bool write)
{
    enum rmpc_reason reason = refuse_owner(rmp, pfn, level);

    if (reason != RMPC_REASON_NONE || !write || rmp->hardware.hv_in_use_wr || !rmp->in_use_count)
        return reason;
    if (rmpc_in_use(rmp, pfn, 1) || (level > 1 && rmpc_in_use(rmp, pfn & ~(RMPC_REGION_FRAMES - 1), 1)))
        return RMPC_REASON_IN_USE;
    return RMPC_REASON_NONE;
}

static bool is_write(const struct rmpc_access *access)
{
    return access->kind == RMPC_WRITE || access->kind == RMPC_WALK_WRITE || access->kind == RMPC_SHADOW_STACK;
}

static bool is_walk(const struct rmpc_access *access)
{
    return access->kind == RMPC_WALK || access->kind == RMPC_WALK_WRITE;
}

static const struct rmpc_outcome allowed = {.kind = RMPC_OUTCOME_ALLOWED};

/* RMP or, for a bad entry of the segment table, RSV (section 1.7). */
static uint64_t cause(enum rmpc_reason reason)
{
    return reason == RMPC_REASON_RESERVED ? RMPC_FAULT_RSV : RMPC_FAULT_RMP;
}

static struct rmpc_outcome page_fault(uint64_t va, bool write, bool user, enum rmpc_reason reason)
{
    uint64_t error = RMPC_FAULT_P | cause(reason) | (write ? RMPC_FAULT_W : 0) | (user ? RMPC_FAULT_US : 0);

    return rmpc_outcome_fault(RMPC_VECTOR_PF, error, va, reason);
}

static struct rmpc_outcome nested(const struct rmpc_access *access, bool private, uint64_t info,
                                  enum rmpc_reason reason)
{
    info |= RMPC_FAULT_P | RMPC_FAULT_US | cause(reason) | (is_write(access) ? RMPC_FAULT_W : 0) |
            (access->kind == RMPC_FETCH ? RMPC_FAULT_FETCH : 0) |
            (is_walk(access) ? RMPC_FAULT_WALK : RMPC_FAULT_FINAL) | (private ? RMPC_FAULT_ENC : 0);
    return (struct rmpc_outcome){.code = RMPC_VMEXIT_NPF,
                                 .kind = RMPC_OUTCOME_NPF,
                                 .reason = (uint8_t)reason,
                                 .info = info,
                                 .address = access->gpa};
}

static struct rmpc_outcome check_host(const struct rmpc_rmp *rmp, const struct rmpc_access *access)
{
    enum rmpc_reason reason;

    if (access->kind == RMPC_READ || access->kind == RMPC_FETCH)
        return allowed;
    /* page tables are pages of 4 KiB, whatever maps them */
    reason = refuse_access(rmp, frame_of(rmp, access->pa), is_walk(access) ? 1 : access->level, is_write(access));
    return reason == RMPC_REASON_NONE ? allowed : page_fault(access->va, is_write(access), access->user, reason);
}

/* A guest's access to a page that it shares with the hypervisor, or a guest without SNP. */
static struct rmpc_outcome check_shared(const struct rmpc_rmp *rmp, const struct rmpc_access *access)
{
    enum rmpc_reason reason;

    if (access->kind == RMPC_READ || access->kind == RMPC_FETCH)
        return allowed;
    reason = refuse_access(rmp, frame_of(rmp, access->pa), access->kind == RMPC_WALK_WRITE ? 1 : access->level,
                           is_write(access));
    return reason == RMPC_REASON_NONE ? allowed : nested(access, access->c, 0, reason);
}

enum { MAY_READ = 1, MAY_WRITE = 2, MAY_EXECUTE_USER = 4, MAY_EXECUTE = 8, MAY_SHADOW_STACK = 16 };

/* Permissions that an access needs (section 3.2, last note). */
static unsigned needs(const struct rmpc_hardware *hardware, const struct rmpc_access *access)
{
    switch ((enum rmpc_access_kind)access->kind) {
    case RMPC_FETCH:
        return access->user ? MAY_EXECUTE_USER : MAY_EXECUTE;
    case RMPC_WRITE:
        return MAY_WRITE;
    case RMPC_WALK_WRITE:
        return MAY_READ | MAY_WRITE;
    case RMPC_SHADOW_STACK:
        return hardware->vmpl_sss ? MAY_SHADOW_STACK : MAY_WRITE;
    case RMPC_READ:
    case RMPC_WALK:
    case RMPC_ACCESS_END:
        break;
    }
    return MAY_READ;
}

static bool vmpl_allows(const struct rmpc_hardware *hardware, const struct rmpc_access *access, uint64_t hi)
{
    const unsigned has = (unsigned)(hi >> 8 * (access->vmpl & 3) & 0xff);
    const unsigned wants = needs(hardware, access);

    /* write without read is illegal, and nothing goes then */
    return (has & wants) == wants && (!(has & MAY_WRITE) || (has & MAY_READ));
}

/* The governing entry of a page and the first check that fails, up to "mutable". */
static enum rmpc_reason refuse_private(const struct rmpc_rmp *rmp, const struct rmpc_access *access,
                                       struct governing *governing)
{
    uint64_t pfn = frame_of(rmp, access->pa);
    struct rmpc_rmp_entry entry, head;
    struct place place;

    if (!find(rmp, pfn, &place))
        return is_in_reserved_segment(rmp, pfn) ? RMPC_REASON_RESERVED : RMPC_REASON_UNCOVERED;
    load_both(&place, &entry, &head);
    *governing = govern(&place, entry, head);
    return refusal(&rmp->hardware, governing, access->asid, access->gpa);
}

static struct rmpc_outcome check_private(const struct rmpc_rmp *rmp, const struct rmpc_access *access)
{
    struct governing governing;
    enum rmpc_reason reason = refuse_private(rmp, access, &governing);

    if (reason != RMPC_REASON_NONE)
        return nested(access, true, 0, reason);
    if (governing.large != (access->level > 1))
        return nested(access, true, governing.large ? RMPC_FAULT_SIZEM : 0, RMPC_REASON_SIZE);
    if (!(governing.entry.lo & RMPC_RMP_VALIDATED))
        return rmpc_outcome_fault(RMPC_VECTOR_VC, RMPC_VC_NOT_VALIDATED, access->va, RMPC_REASON_NOT_VALIDATED);
    if (!vmpl_allows(&rmp->hardware, access, governing.entry.hi)) {
        bool sss = access->kind == RMPC_SHADOW_STACK && rmp->hardware.vmpl_sss;
        return nested(access, true, RMPC_FAULT_VMPL | (sss ? RMPC_FAULT_SSS : 0), RMPC_REASON_VMPL);
    }
    return allowed;
}

/* A page that VMRUN or VMSAVE uses (section 3.7), judged as 4K. */
static struct rmpc_outcome check_use(const struct rmpc_rmp *rmp, const struct rmpc_access *access)
{
    bool hypervisors = access->who != RMPC_WHO_VMSA_SNP;
    struct governing governing;
    enum rmpc_reason reason;

    if (access->who == RMPC_WHO_HSAVE && !(access->pa & ~rmp->c_bit))
        reason = RMPC_REASON_NULL;
    else if (hypervisors)
        reason = refuse_owner(rmp, frame_of(rmp, access->pa), 1);
    else
        reason = refuse_private(rmp, access, &governing);
    if (!hypervisors && reason == RMPC_REASON_NONE && !(governing.entry.lo & RMPC_RMP_VMSA))
        reason = RMPC_REASON_NOT_VMSA;
    if (reason == RMPC_REASON_NONE)
        return allowed;
    if (access->who == RMPC_WHO_VMCB || access->who == RMPC_WHO_HSAVE || access->who == RMPC_WHO_VMSAVE)
        return rmpc_outcome_fault(RMPC_VECTOR_GP, 0, 0, reason);
    return (struct rmpc_outcome){.kind = RMPC_OUTCOME_INVALID, .reason = (uint8_t)reason};
}

static struct rmpc_outcome check_iommu(const struct rmpc_rmp *rmp, const struct rmpc_access *access)
{
    enum rmpc_reason reason;

    if (!is_write(access))
        return allowed;
    reason = refuse_owner(rmp, frame_of(rmp, access->pa), access->level);
    if (reason == RMPC_REASON_NONE)
        return allowed;
    return (struct rmpc_outcome){.code = RMPC_IOMMU_RMP_FAULT,
                                 .kind = RMPC_OUTCOME_IOMMU,
                                 .reason = (uint8_t)reason,
                                 .address = access->pa};
}

struct rmpc_outcome rmpc_rmp_check(const struct rmpc_rmp *rmp, const struct rmpc_access *access)
{
    bool private = access->c || access->kind == RMPC_FETCH || is_walk(access);

    if (!rmp)
        return allowed;
    switch ((enum rmpc_who)access->who) {
    case RMPC_WHO_HOST:
        return check_host(rmp, access);
    case RMPC_WHO_PLAIN:
        return check_shared(rmp, access);
    case RMPC_WHO_SNP:
        return private ? check_private(rmp, access) : check_shared(rmp, access);
    case RMPC_WHO_IOMMU:
        return check_iommu(rmp, access);
    case RMPC_WHO_VMCB:
    case RMPC_WHO_AVIC:
    case RMPC_WHO_VMSA_PLAIN:
    case RMPC_WHO_VMSA_SNP:
    case RMPC_WHO_HSAVE:
    case RMPC_WHO_VMSAVE:
        return check_use(rmp, access);
    case RMPC_WHO_PSP: /* hardware checks nothing of the firmware's */
    case RMPC_WHO_END:
        break;
    }
    return allowed;
}

enum rmpc_status rmpc_rmp_check_all(const struct rmpc_rmp *rmp, const struct rmpc_access *accesses, size_t count,
                                    struct rmpc_outcome *outcomes, size_t *done)
{
    const uint32_t vmpls = rmp ? rmp->hardware.vmpls : RMPC_VMPLS;

    for (*done = 0; *done < count; ++*done) {
        if (!rmpc_access_is_valid(&accesses[*done], vmpls))
            return RMPC_ERR_ARGUMENT;
        outcomes[*done] = rmpc_rmp_check(rmp, &accesses[*done]);
    }
    return RMPC_OK;
}

/* Apart, so that a write that passes at once saves no registers for it. */
__attribute__((noinline)) static struct rmpc_outcome look_closer(const struct rmpc_rmp *rmp, uint64_t pfn, int level,
                                                                 uint64_t va)
{
    enum rmpc_reason reason = refuse_access(rmp, pfn, level, true);

    return reason == RMPC_REASON_NONE ? allowed : page_fault(va, true, false, reason);
}

struct rmpc_outcome rmpc_rmp_check_host_write(const struct rmpc_rmp *rmp, uint64_t pfn, int level, uint64_t va)
{
    return !rmp || rmpc_rmp_passes(rmp, pfn, level) ? allowed : look_closer(rmp, pfn, level, va);
}

bool rmpc_rmp_is_hypervisors(const struct rmpc_rmp *rmp, uint64_t pfn, uint64_t pages)
{
    struct place place;

    for (uint64_t i = 0; i < pages; i += RMPC_REGION_FRAMES)
        if (find(rmp, pfn + i, &place) && region_assigned(rmp, &place))
            return false;
    return true;
}

static bool is_page(const struct rmpc_rmp *rmp, uint64_t pa)
{
    pa &= ~rmp->c_bit;
    return pa % RMPC_PAGE_SIZE == 0 && pa < RMPC_PHYSICAL_LIMIT;
}

static struct rmpc_in_use *in_use_row(struct rmpc_rmp *rmp, uint64_t vmcb)
{
    for (size_t i = 0; i < rmp->in_use_count; i++)
        if (rmp->in_use[i].vmcb == vmcb)
            return &rmp->in_use[i];
    return NULL;
}

enum rmpc_status rmpc_in_use_add(struct rmpc_rmp *rmp, struct rmpc_in_use pages)
{
    const uint64_t limit = RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT;

    if (pages.vmcb >= limit || pages.vmsa >= limit || pages.avic >= limit || in_use_row(rmp, pages.vmcb))
        return RMPC_ERR_ARGUMENT;
    if (rmp->in_use_count == RMPC_IN_USE)
        return RMPC_ERR_FULL;
    rmp->in_use[rmp->in_use_count++] = pages;
    rmpc_set_quick(rmp);
    return RMPC_OK;
}

enum rmpc_status rmpc_vmrun(struct rmpc_rmp *rmp, uint64_t vmcb, uint64_t vmsa, uint64_t avic, uint64_t gpa,
                            uint32_t asid, bool snp, struct rmpc_outcome *outcome, uint64_t *refused)
{
    const struct {
        uint64_t pa;
        enum rmpc_who who;
    } uses[] = {
        {vmcb, RMPC_WHO_VMCB}, {avic, RMPC_WHO_AVIC}, {vmsa, snp ? RMPC_WHO_VMSA_SNP : RMPC_WHO_VMSA_PLAIN}};
    struct rmpc_in_use pages;

    if (!is_page(rmp, vmcb) || !is_page(rmp, vmsa) || !is_page(rmp, avic))
        return RMPC_ERR_ARGUMENT;
    pages = (struct rmpc_in_use){frame_of(rmp, vmcb), frame_of(rmp, vmsa), frame_of(rmp, avic)};
    if (in_use_row(rmp, pages.vmcb))
        return RMPC_ERR_ARGUMENT;
    if (rmp->in_use_count == RMPC_IN_USE)
        return RMPC_ERR_FULL;
    for (size_t i = 0; i < sizeof(uses) / sizeof(*uses); i++) {
        const struct rmpc_access use = {
            .pa = uses[i].pa, .gpa = gpa, .asid = asid, .who = (uint8_t)uses[i].who, .level = 1};

        if (i && !(uses[i].pa & ~rmp->c_bit))
            continue;
        *outcome = rmpc_rmp_check(rmp, &use);
        *refused = uses[i].pa;
        if (outcome->kind != RMPC_OUTCOME_ALLOWED)
            return RMPC_OK;
    }
    return rmpc_in_use_add(rmp, pages);
}

enum rmpc_status rmpc_vmexit(struct rmpc_rmp *rmp, uint64_t vmcb)
{
    struct rmpc_in_use *row = is_page(rmp, vmcb) ? in_use_row(rmp, frame_of(rmp, vmcb)) : NULL;

    if (!row)
        return RMPC_ERR_ARGUMENT;
    for (rmp->in_use_count--; row < &rmp->in_use[rmp->in_use_count]; row++)
        *row = row[1];
    rmpc_set_quick(rmp);
    return RMPC_OK;
}
