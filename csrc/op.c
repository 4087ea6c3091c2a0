/* Ops: checking a record, and handing it to the function that does it. */
#include "rmpcore/op.h"

/* Fields beside flags that an op uses.  MAPPED: addr and count are frames of the direct map (or, with the flag high,
 * of the high mapping).  And what to fetch ahead of it: the RMP entry of frame addr, or of the frame that address addr
 * is in (BYTES), and the frame's leaf. */
enum field {
    LEVEL = 1,
    ID = 2,
    ADDR = 4,
    GPA = 8,
    COUNT = 16,
    MAPPED = 32,
    VA = 64,
    RCX = 128,
    RDX = 256,
    BYTES = 512,
    ENTRY = 1024,
    LEAF = 2048,
    PAGE = ADDR | ENTRY | LEAF,
    CPA = ADDR | COUNT | LEVEL | LEAF,
    TRANSLATED = VA | ADDR | BYTES | ENTRY | GPA | LEVEL | ID
};

/* Which kernel has the op. */
enum need { ANY, SNP_HOST, SET_VALID, ROX };

/* The name is an array: a pointer would need relocation, and make the table writable data. */
static const struct {
    char name[32];
    unsigned fields;
    unsigned flags;
    enum need need;
    uint32_t mode;
} specs[RMPC_OP_END] = {
    [RMPC_OP_INSN_RMPUPDATE] = {"RMPUPDATE", ADDR | GPA | ID | COUNT | BYTES | ENTRY,
                                RMPC_OP_ASSIGNED | RMPC_OP_SIZE_2M | RMPC_OP_IMMUTABLE | RMPC_OP_GUEST | RMPC_OP_USER,
                                ANY, 0},
    [RMPC_OP_INSN_PSMASH] = {"PSMASH", ADDR, RMPC_OP_GUEST | RMPC_OP_USER, ANY, 0},
    [RMPC_OP_INSN_RMPREAD] = {"RMPREAD", ADDR | BYTES | ENTRY, RMPC_OP_GUEST | RMPC_OP_USER, ANY, 0},
    [RMPC_OP_RMPUPDATE] = {"rmpupdate", PAGE | GPA | ID, RMPC_OP_ASSIGNED | RMPC_OP_SIZE_2M | RMPC_OP_IMMUTABLE,
                           SNP_HOST, 0},
    [RMPC_OP_RMP_MAKE_PRIVATE] = {"rmp_make_private", PAGE | GPA | LEVEL | ID, RMPC_OP_IMMUTABLE, SNP_HOST, 0},
    [RMPC_OP_RMP_MAKE_FIRMWARE] = {"rmp_make_firmware", PAGE | LEVEL, 0, SNP_HOST, 0},
    [RMPC_OP_RMP_MAKE_SHARED] = {"rmp_make_shared", PAGE | LEVEL, 0, SNP_HOST, 0},
    [RMPC_OP_PSMASH] = {"psmash", ADDR | ENTRY, 0, SNP_HOST, 0},
    [RMPC_OP_SNP_LOOKUP_RMPENTRY] = {"snp_lookup_rmpentry", ADDR | ENTRY, 0, SNP_HOST, 0},
    [RMPC_OP_ADJUST_DIRECT_MAP] = {"adjust_direct_map", ADDR | LEVEL | LEAF, 0, SNP_HOST, 0},
    [RMPC_OP_DUMP_RMPENTRY] = {"dump_rmpentry", ADDR, 0, SNP_HOST, 0},
    [RMPC_OP_SNP_LEAK_PAGES] = {"snp_leak_pages", ADDR | COUNT, 0, SNP_HOST, 0},
    [RMPC_OP_LOOKUP] = {"lookup", ADDR | MAPPED | LEAF, 0, ANY, 0},
    [RMPC_OP_SET_MEMORY_4K] = {"set_memory_4k", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_DIRECT_MAP_INVALID_NOFLUSH] = {"set_direct_map_invalid_noflush", ADDR | MAPPED | LEAF, 0, ANY, 0},
    [RMPC_OP_SET_DIRECT_MAP_DEFAULT_NOFLUSH] = {"set_direct_map_default_noflush", ADDR | MAPPED | LEAF, 0, ANY, 0},
    [RMPC_OP_SET_DIRECT_MAP_VALID_NOFLUSH] = {"set_direct_map_valid_noflush", ADDR | MAPPED | COUNT | LEAF,
                                              RMPC_OP_VALID, SET_VALID, 0},
    [RMPC_OP_INJECT] = {"inject", ID | COUNT, 0, ANY, 0},
    [RMPC_OP_FAIL_ALLOC] = {"fail_alloc", ADDR | COUNT, 0, ANY, 0},
    [RMPC_OP_SET_MEMORY_RO] = {"set_memory_ro", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_RW] = {"set_memory_rw", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_ROX] = {"set_memory_rox", CPA, RMPC_OP_HIGH, ROX, 0},
    [RMPC_OP_SET_MEMORY_NX] = {"set_memory_nx", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_X] = {"set_memory_x", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_NP] = {"set_memory_np", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_P] = {"set_memory_p", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_NP_NOALIAS] = {"set_memory_np_noalias", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_GLOBAL] = {"set_memory_global", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_NONGLOBAL] = {"set_memory_nonglobal", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_UC] = {"_set_memory_uc", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_WC] = {"_set_memory_wc", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_WB] = {"_set_memory_wb", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_ENCRYPTED] = {"set_memory_encrypted", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_SET_MEMORY_DECRYPTED] = {"set_memory_decrypted", CPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_CHANGE_PAGE_ATTR_SET] = {"change_page_attr_set", CPA | GPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_CHANGE_PAGE_ATTR_CLEAR] = {"change_page_attr_clear", CPA | GPA, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_CPA_ADDRESS] = {"cpa_address", ADDR, RMPC_OP_HIGH, ANY, 0},
    [RMPC_OP_INSN_PVALIDATE] = {"PVALIDATE", TRANSLATED | RCX | RDX, RMPC_OP_USER, ANY,
                                RMPC_MODE_VMPL | RMPC_MODE_PLAIN},
    [RMPC_OP_INSN_RMPADJUST] = {"RMPADJUST", TRANSLATED | RCX | RDX, RMPC_OP_USER, ANY,
                                RMPC_MODE_VMPL | RMPC_MODE_PLAIN},
    [RMPC_OP_INSN_RMPQUERY] = {"RMPQUERY", TRANSLATED | RDX, RMPC_OP_USER, ANY, RMPC_MODE_VMPL | RMPC_MODE_PLAIN},
    [RMPC_OP_VMRUN] = {"VMRUN", ADDR | VA | GPA | COUNT | ID, 0, ANY, RMPC_MODE_PLAIN},
    [RMPC_OP_VMEXIT] = {"VMEXIT", ADDR, 0, ANY, 0},
    [RMPC_OP_ACCESS] = {"access", TRANSLATED, RMPC_OP_USER, ANY,
                        RMPC_MODE_WHO | RMPC_MODE_ACCESS | RMPC_MODE_VMPL | RMPC_MODE_C},
    [RMPC_OP_HOST_READ] = {"host_read", PAGE | MAPPED, 0, ANY, 0},
    [RMPC_OP_HOST_WRITE] = {"host_write", PAGE | MAPPED, 0, ANY, 0},
    [RMPC_OP_SNP_INIT] = {"SNP_INIT", ADDR | COUNT, 0, ANY, 0},
    [RMPC_OP_SNP_SHUTDOWN] = {"SNP_SHUTDOWN", 0, 0, ANY, RMPC_MODE_IOMMU},
    [RMPC_OP_SNP_GCTX_CREATE] = {"SNP_GCTX_CREATE", ADDR, 0, ANY, 0},
    [RMPC_OP_SNP_ACTIVATE] = {"SNP_ACTIVATE", ADDR | ID, 0, ANY, 0},
    [RMPC_OP_SNP_DECOMMISSION] = {"SNP_DECOMMISSION", ADDR, 0, ANY, 0},
    [RMPC_OP_SNP_LAUNCH_UPDATE] = {"SNP_LAUNCH_UPDATE", VA | ADDR | LEVEL | COUNT, RMPC_OP_SIZE_2M, ANY, 0},
    [RMPC_OP_SNP_PAGE_RECLAIM] = {"SNP_PAGE_RECLAIM", ADDR, 0, ANY, 0},
    [RMPC_OP_SNP_PAGE_SET_STATE] = {"SNP_PAGE_SET_STATE", ADDR | COUNT, 0, ANY, 0},
    [RMPC_OP_SNP_PAGE_MOVE] = {"SNP_PAGE_MOVE", VA | ADDR | GPA, RMPC_OP_SIZE_2M, ANY, 0},
    [RMPC_OP_SNP_PAGE_UNSMASH] = {"SNP_PAGE_UNSMASH", ADDR, 0, ANY, 0},
    [RMPC_OP_SNP_MD_INIT] = {"SNP_MD_INIT", VA | ADDR, 0, ANY, 0},
    [RMPC_OP_SNP_PAGE_SWAP_OUT] = {"SNP_PAGE_SWAP_OUT", VA | ADDR | GPA | COUNT, RMPC_OP_SIZE_2M, ANY, 0},
    [RMPC_OP_SNP_PAGE_SWAP_IN] = {"SNP_PAGE_SWAP_IN", VA | ADDR | GPA | COUNT, RMPC_OP_SIZE_2M, ANY, 0},
    [RMPC_OP_RMP_MARK_PAGES_FIRMWARE] = {"rmp_mark_pages_firmware", ADDR | COUNT, 0, SNP_HOST, 0},
    [RMPC_OP_SNP_RECLAIM_PAGES] = {"snp_reclaim_pages", ADDR | COUNT, 0, SNP_HOST, 0},
    [RMPC_OP_PAGE_STATE] = {"page_state", ADDR, 0, ANY, 0},
    [RMPC_OP_KVM_READ_GUEST] = {"kvm_read_guest", PAGE | MAPPED, 0, ANY, 0},
    [RMPC_OP_KVM_WRITE_GUEST] = {"kvm_write_guest", PAGE | MAPPED, 0, ANY, 0},
};

const char *rmpc_op_name(unsigned op)
{
    return op < RMPC_OP_END && specs[op].name[0] ? specs[op].name : NULL;
}

unsigned rmpc_op_flags(unsigned op)
{
    return op < RMPC_OP_END ? specs[op].flags : 0;
}

uint32_t rmpc_op_mode(unsigned op)
{
    return op < RMPC_OP_END ? specs[op].mode : 0;
}

static bool in_kernel(const struct rmpc_kernel *kernel, enum need need)
{
    switch (need) {
    case SNP_HOST:
        return kernel->snp_host;
    case SET_VALID:
        return kernel->set_valid;
    case ROX:
        return kernel->rox;
    case ANY:
        break;
    }
    return true;
}

static enum rmpc_status check(const struct rmpc_machine *machine, const struct rmpc_op *op)
{
    unsigned unused;

    if (!rmpc_op_name(op->op) || !in_kernel(&machine->host.dmap->config.kernel, specs[op->op].need))
        return RMPC_ERR_OP;
    unused = ~specs[op->op].fields;
    if ((op->flags & ~specs[op->op].flags) || ((unused & LEVEL) && op->level) || ((unused & ID) && op->id) ||
        ((unused & ADDR) && op->addr) || ((unused & GPA) && op->gpa) || ((unused & COUNT) && op->count) ||
        ((unused & VA) && op->va) || ((unused & RCX) && op->rcx) || ((unused & RDX) && op->rdx) ||
        (op->mode & ~specs[op->op].mode) || op->reserved)
        return RMPC_ERR_ARGUMENT;
    if ((specs[op->op].fields & MAPPED) &&
        !rmpc_dmap_has_room(machine->host.dmap, op->addr, specs[op->op].fields & COUNT ? op->count : 1))
        return RMPC_ERR_ARGUMENT;
    return RMPC_OK;
}

/* The address of a frame, and whether `count` pages from there are modelled. */
static bool address_of(const struct rmpc_dmap *dmap, uint64_t pfn, bool high, uint64_t count, uint64_t *va)
{
    const uint64_t first = dmap->config.image.phys_base >> RMPC_PAGE_SHIFT;
    const uint64_t room = RMPC_HIGH_SIZE >> RMPC_PAGE_SHIFT;

    if (!high) {
        *va = rmpc_dmap_address(dmap, pfn);
        return rmpc_dmap_has_room(dmap, pfn, count);
    }
    *va = RMPC_HIGH_MAP + ((pfn - first) << RMPC_PAGE_SHIFT);
    return dmap->config.image.text && pfn >= first && pfn - first <= room && count <= room - (pfn - first);
}

/* The pages that a CPA op means; false: it cannot mean them. */
static bool pages_of(const struct rmpc_machine *machine, const struct rmpc_op *op, struct rmpc_pages *pages)
{
    *pages = (struct rmpc_pages){.count = op->count};
    if (op->level == RMPC_FLAVOUR_RANGE)
        return address_of(machine->host.dmap, op->addr, op->flags & RMPC_OP_HIGH, op->count, &pages->va);
    if (op->level >= RMPC_FLAVOUR_END || op->addr || (op->flags & RMPC_OP_HIGH) || op->count > machine->address_count)
        return false;
    for (uint64_t i = 0; op->level == RMPC_FLAVOUR_PAGES && i < op->count; i++)
        if (machine->addresses[i] >= RMPC_HIGH_MAP)
            return false;
    pages->addresses = machine->addresses;
    return true;
}

/* Ops 20 to 34 stand in the order of the calls. */
static_assert(RMPC_OP_SET_MEMORY_DECRYPTED - RMPC_OP_SET_MEMORY_RO ==
                  (int)RMPC_SET_MEMORY_DECRYPTED - (int)RMPC_SET_MEMORY_RO,
              "each call has its op");

static enum rmpc_set_memory call_of(unsigned op)
{
    return op == RMPC_OP_SET_MEMORY_4K ? RMPC_SET_MEMORY_4K
                                       : (enum rmpc_set_memory)(op - RMPC_OP_SET_MEMORY_RO + RMPC_SET_MEMORY_RO);
}

static enum rmpc_status do_change(struct rmpc_machine *machine, const struct rmpc_op *op, struct rmpc_result *result)
{
    struct rmpc_dmap *dmap = machine->host.dmap;
    struct rmpc_pages pages;

    if (!pages_of(machine, op, &pages))
        return RMPC_ERR_ARGUMENT;
    if (op->gpa & RMPC_PTE_ADDRESS & ~dmap->config.c_bit)
        return RMPC_ERR_ARGUMENT;
    if (op->op == RMPC_OP_CHANGE_PAGE_ATTR_SET)
        result->ret = rmpc_change_page_attr(dmap, pages, op->gpa, 0);
    else if (op->op == RMPC_OP_CHANGE_PAGE_ATTR_CLEAR)
        result->ret = rmpc_change_page_attr(dmap, pages, 0, op->gpa);
    else
        result->ret = rmpc_set_memory(dmap, call_of(op->op), pages);
    if (pages.addresses)
        machine->address_count = 0;
    return RMPC_OK;
}

static enum rmpc_status list_address(struct rmpc_machine *machine, const struct rmpc_op *op)
{
    uint64_t va;

    if (!address_of(machine->host.dmap, op->addr, op->flags & RMPC_OP_HIGH, 1, &va))
        return RMPC_ERR_ARGUMENT;
    if (machine->address_count == RMPC_ADDRESSES)
        return RMPC_ERR_FULL;
    machine->addresses[machine->address_count++] = va;
    return RMPC_OK;
}

void rmpc_result_of(struct rmpc_outcome outcome, struct rmpc_result *result)
{
    static const uint8_t kinds[RMPC_OUTCOME_END] = {
        [RMPC_OUTCOME_ALLOWED] = RMPC_RESULT_ALLOWED, [RMPC_OUTCOME_CODE] = RMPC_RESULT_CODE,
        [RMPC_OUTCOME_FAULT] = RMPC_RESULT_FAULT,     [RMPC_OUTCOME_NPF] = RMPC_RESULT_NPF,
        [RMPC_OUTCOME_INVALID] = RMPC_RESULT_INVALID, [RMPC_OUTCOME_IOMMU] = RMPC_RESULT_IOMMU};

    result->kind = kinds[outcome.kind];
    result->ret = outcome.kind == RMPC_OUTCOME_INVALID ? -1 : (int32_t)outcome.code;
    result->flags = outcome.cf ? RMPC_RESULT_CF : 0;
    result->reason = outcome.reason;
    result->value = outcome.info;
    result->value2 = outcome.address;
}

/* The same for an access, which is worth an event if it was refused. */
static void from_access(const struct rmpc_host *host, struct rmpc_outcome outcome, uint64_t pa,
                        struct rmpc_result *result)
{
    rmpc_result_of(outcome, result);
    if (outcome.kind != RMPC_OUTCOME_ALLOWED)
        rmpc_report(host->events, RMPC_EVENT_FAULT, result->kind, result->ret, pa, result->value, result->reason);
}

static void from_update(int ret, struct rmpc_result *result)
{
    result->ret = ret;
    if (ret >= RMPC_HANGS) {
        result->kind = RMPC_RESULT_HANG;
        result->ret = ret - RMPC_HANGS;
    }
}

static void do_lookup(const struct rmpc_dmap *dmap, uint64_t pfn, struct rmpc_result *result)
{
    struct rmpc_walk walk = rmpc_dmap_lookup(dmap, rmpc_dmap_address(dmap, pfn));

    if (walk.entry) {
        result->level = (uint8_t)walk.level;
        result->value = *walk.entry;
        result->flags = (uint8_t)((walk.rw ? RMPC_RESULT_RW : 0) | (walk.nx ? RMPC_RESULT_NX : 0));
    }
}

static struct rmpc_mode mode_of(const struct rmpc_op *op)
{
    const bool guests = op->op >= RMPC_OP_INSN_PVALIDATE && op->op <= RMPC_OP_INSN_RMPQUERY;
    struct rmpc_mode mode = {.vmpl = (uint8_t)((op->mode & RMPC_MODE_VMPL) >> RMPC_MODE_VMPL_SHIFT),
                             .user = op->flags & RMPC_OP_USER,
                             .snp = !(op->mode & RMPC_MODE_PLAIN)};

    if (guests) /* ASID 0 is the host's: a guest that claims it owns nothing */
        mode.asid = op->id ? op->id : UINT32_MAX;
    else if (op->flags & RMPC_OP_GUEST)
        mode.asid = 1; /* whichever it is */
    return mode;
}

/* How many VMPLs there are; without an RMP, as many as any part has. */
static uint32_t vmpls_of(const struct rmpc_rmp *rmp)
{
    return rmp ? rmp->hardware.vmpls : RMPC_VMPLS;
}

static enum rmpc_status do_guest_insn(const struct rmpc_machine *machine, const struct rmpc_op *op,
                                      struct rmpc_result *result)
{
    const struct rmpc_page page = {op->addr, op->gpa, op->level};
    struct rmpc_rmp *rmp = machine->host.rmp;
    struct rmpc_cpu *cpu = machine->host.cpu;
    uint64_t rcx = 0;
    uint64_t rdx = op->rdx;

    if (op->level < 1 || op->level > 3 || cpu->mode.vmpl >= vmpls_of(rmp))
        return RMPC_ERR_ARGUMENT;
    if (op->op == RMPC_OP_INSN_PVALIDATE) {
        rmpc_result_of(rmpc_pvalidate(rmp, cpu, op->va, op->rcx, op->rdx, &page), result);
    } else if (op->op == RMPC_OP_INSN_RMPADJUST) {
        rmpc_result_of(rmpc_rmpadjust(rmp, cpu, op->va, op->rcx, op->rdx, &page), result);
    } else {
        rmpc_result_of(rmpc_rmpquery(rmp, cpu, op->va, &rcx, &rdx, &page), result);
        if (result->kind == RMPC_RESULT_CODE && result->ret == RMPC_CODE_SUCCESS) {
            result->value = rcx;
            result->value2 = rdx;
        }
    }
    return RMPC_OK;
}

static enum rmpc_status do_access(const struct rmpc_machine *machine, const struct rmpc_op *op,
                                  struct rmpc_result *result)
{
    const struct rmpc_access access = {.pa = op->addr,
                                       .gpa = op->gpa,
                                       .va = op->va,
                                       .asid = op->id,
                                       .who = (uint8_t)(op->mode & RMPC_MODE_WHO),
                                       .kind = (uint8_t)((op->mode & RMPC_MODE_ACCESS) >> RMPC_MODE_ACCESS_SHIFT),
                                       .level = op->level,
                                       .vmpl = (uint8_t)((op->mode & RMPC_MODE_VMPL) >> RMPC_MODE_VMPL_SHIFT),
                                       .user = op->flags & RMPC_OP_USER,
                                       .c = op->mode & RMPC_MODE_C};
    const struct rmpc_rmp *rmp = machine->host.rmp;

    if (!rmpc_access_is_valid(&access, vmpls_of(rmp)))
        return RMPC_ERR_ARGUMENT;
    from_access(&machine->host, rmpc_rmp_check(rmp, &access), op->addr, result);
    return RMPC_OK;
}

static enum rmpc_status do_vmrun(const struct rmpc_machine *machine, const struct rmpc_op *op,
                                 struct rmpc_result *result)
{
    struct rmpc_outcome outcome;
    enum rmpc_status status;
    uint64_t refused;

    if (!machine->host.rmp)
        return RMPC_ERR_ARGUMENT;
    status = rmpc_vmrun(machine->host.rmp, op->addr, op->va, op->count, op->gpa, op->id,
                        !(op->mode & RMPC_MODE_PLAIN), &outcome, &refused);
    if (status == RMPC_OK)
        from_access(&machine->host, outcome, refused, result);
    return status;
}

static enum rmpc_host_access_kind access_kind_of(unsigned op)
{
    switch (op) {
    case RMPC_OP_HOST_READ:
        return RMPC_HOST_READ;
    case RMPC_OP_HOST_WRITE:
        return RMPC_HOST_WRITE;
    case RMPC_OP_KVM_READ_GUEST:
        return RMPC_KVM_READ;
    default:
        return RMPC_KVM_WRITE;
    }
}

static void do_host_access(struct rmpc_host *host, const struct rmpc_op *op, struct rmpc_result *result)
{
    struct rmpc_outcome outcome;
    int level;

    host->counters.accesses++;
    do {
        outcome = rmpc_host_access(host, op->addr, access_kind_of(op->op), &level);
        from_access(host, outcome, op->addr << RMPC_PAGE_SHIFT, result);
    } while (outcome.kind != RMPC_OUTCOME_ALLOWED && rmpc_host_handle_fault(host, op->addr, outcome, level));
    result->level = (uint8_t)level;
}

/* Ops 46 to 58, in order. */
static const uint8_t commands[] = {
    RMPC_SNP_INIT,          RMPC_SNP_SHUTDOWN,     RMPC_SNP_GCTX_CREATE,   RMPC_SNP_ACTIVATE,  RMPC_SNP_DECOMMISSION,
    RMPC_SNP_LAUNCH_UPDATE, RMPC_SNP_PAGE_RECLAIM, RMPC_SNP_PAGE_SET_STATE, RMPC_SNP_PAGE_MOVE, RMPC_SNP_PAGE_UNSMASH,
    RMPC_SNP_MD_INIT,       RMPC_SNP_PAGE_SWAP_OUT, RMPC_SNP_PAGE_SWAP_IN};
static_assert(sizeof(commands) == RMPC_OP_SNP_PAGE_SWAP_IN - RMPC_OP_SNP_INIT + 1, "each command has its op");

static void do_firmware(const struct rmpc_machine *machine, const struct rmpc_op *op, struct rmpc_result *result)
{
    const struct rmpc_operands operands = {.page = op->addr,
                                           .gctx = op->va,
                                           .dst = op->gpa,
                                           .mdata = op->count,
                                           .pages = op->count,
                                           .asid = op->id,
                                           .type = op->level,
                                           .permissions = {0, (uint8_t)(op->count >> 8), (uint8_t)(op->count >> 16),
                                                           (uint8_t)(op->count >> 24)},
                                           .large = op->flags & RMPC_OP_SIZE_2M,
                                           .iommu = op->mode & RMPC_MODE_IOMMU};

    result->kind = RMPC_RESULT_FIRMWARE;
    result->ret = (int32_t)rmpc_firmware_command(
        machine->host.firmware, (enum rmpc_command)commands[op->op - RMPC_OP_SNP_INIT], &operands);
}

static enum rmpc_page_state state_of(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    struct rmpc_rmp_entry entry;

    return rmp && rmpc_rmp_get(rmp, pfn, &entry) == RMPC_OK ? rmpc_page_state_of(entry) : RMPC_PAGE_DEFAULT;
}

/* RMPC_OK: done, and result says how it went. */
static enum rmpc_status apply(struct rmpc_machine *machine, const struct rmpc_op *op, struct rmpc_result *result)
{
    struct rmpc_host *host = &machine->host;
    struct rmpc_dmap *dmap = host->dmap;
    const bool immutable = op->flags & RMPC_OP_IMMUTABLE;
    struct rmpc_rmp_state state = rmpc_rmp_state_make(op->gpa, op->flags & RMPC_OP_ASSIGNED,
                                                      op->flags & RMPC_OP_SIZE_2M, immutable, op->id);
    bool assigned = false;
    int level = 0;

    host->cpu->mode = mode_of(op);
    switch ((enum rmpc_op_code)op->op) {
    case RMPC_OP_INSN_RMPUPDATE:
        state.high |= op->count;
        rmpc_result_of(rmpc_rmpupdate(host->rmp, host->cpu, op->addr, state), result);
        break;
    case RMPC_OP_INSN_PSMASH:
        rmpc_result_of(rmpc_psmash(host->rmp, host->cpu, op->addr), result);
        break;
    case RMPC_OP_INSN_RMPREAD:
        state = (struct rmpc_rmp_state){0, 0};
        rmpc_result_of(rmpc_rmpread(host->rmp, host->cpu, op->addr, &state), result);
        if (result->kind == RMPC_RESULT_CODE) {
            result->value = state.gpa;
            result->value2 = state.high;
        }
        break;
    case RMPC_OP_RMPUPDATE:
        from_update(rmpc_host_rmpupdate(host, op->addr, state), result);
        break;
    case RMPC_OP_RMP_MAKE_PRIVATE:
        from_update(rmpc_rmp_make_private(host, op->addr, op->gpa, op->level, op->id, immutable), result);
        break;
    case RMPC_OP_RMP_MAKE_FIRMWARE:
        from_update(rmpc_rmp_make_firmware(host, op->addr, op->level), result);
        break;
    case RMPC_OP_RMP_MAKE_SHARED:
        from_update(rmpc_rmp_make_shared(host, op->addr, op->level), result);
        break;
    case RMPC_OP_PSMASH:
        result->ret = rmpc_host_psmash(host, op->addr);
        break;
    case RMPC_OP_SNP_LOOKUP_RMPENTRY:
        result->ret = rmpc_snp_lookup_rmpentry(host, op->addr, &assigned, &level);
        result->level = (uint8_t)level;
        result->flags = assigned ? RMPC_RESULT_ASSIGNED : 0;
        break;
    case RMPC_OP_ADJUST_DIRECT_MAP:
        result->ret = rmpc_adjust_direct_map(host, op->addr, op->level);
        break;
    case RMPC_OP_DUMP_RMPENTRY:
        rmpc_dump_rmpentry(host, op->addr);
        break;
    case RMPC_OP_SNP_LEAK_PAGES:
        return rmpc_snp_leak_pages(host, op->addr, op->count);
    case RMPC_OP_LOOKUP:
        do_lookup(dmap, op->addr, result);
        break;
    case RMPC_OP_SET_DIRECT_MAP_INVALID_NOFLUSH:
        result->ret = rmpc_set_direct_map_invalid_noflush(dmap, op->addr);
        break;
    case RMPC_OP_SET_DIRECT_MAP_DEFAULT_NOFLUSH:
        result->ret = rmpc_set_direct_map_default_noflush(dmap, op->addr);
        break;
    case RMPC_OP_SET_DIRECT_MAP_VALID_NOFLUSH:
        result->ret = rmpc_set_direct_map_valid_noflush(dmap, op->addr, op->count, op->flags & RMPC_OP_VALID);
        break;
    case RMPC_OP_INJECT:
        return host->rmp ? rmpc_cpu_inject(host->cpu, op->id, op->count) : RMPC_ERR_ARGUMENT;
    case RMPC_OP_FAIL_ALLOC:
        machine->mem->fail_skip = op->addr;
        machine->mem->fail_count = op->count;
        break;
    case RMPC_OP_SET_MEMORY_4K:
    case RMPC_OP_SET_MEMORY_RO:
    case RMPC_OP_SET_MEMORY_RW:
    case RMPC_OP_SET_MEMORY_ROX:
    case RMPC_OP_SET_MEMORY_NX:
    case RMPC_OP_SET_MEMORY_X:
    case RMPC_OP_SET_MEMORY_NP:
    case RMPC_OP_SET_MEMORY_P:
    case RMPC_OP_SET_MEMORY_NP_NOALIAS:
    case RMPC_OP_SET_MEMORY_GLOBAL:
    case RMPC_OP_SET_MEMORY_NONGLOBAL:
    case RMPC_OP_SET_MEMORY_UC:
    case RMPC_OP_SET_MEMORY_WC:
    case RMPC_OP_SET_MEMORY_WB:
    case RMPC_OP_SET_MEMORY_ENCRYPTED:
    case RMPC_OP_SET_MEMORY_DECRYPTED:
    case RMPC_OP_CHANGE_PAGE_ATTR_SET:
    case RMPC_OP_CHANGE_PAGE_ATTR_CLEAR:
        return do_change(machine, op, result);
    case RMPC_OP_CPA_ADDRESS:
        return list_address(machine, op);
    case RMPC_OP_INSN_PVALIDATE:
    case RMPC_OP_INSN_RMPADJUST:
    case RMPC_OP_INSN_RMPQUERY:
        return do_guest_insn(machine, op, result);
    case RMPC_OP_VMRUN:
        return do_vmrun(machine, op, result);
    case RMPC_OP_VMEXIT:
        return host->rmp ? rmpc_vmexit(host->rmp, op->addr) : RMPC_ERR_ARGUMENT;
    case RMPC_OP_ACCESS:
        return do_access(machine, op, result);
    case RMPC_OP_HOST_READ:
    case RMPC_OP_HOST_WRITE:
    case RMPC_OP_KVM_READ_GUEST:
    case RMPC_OP_KVM_WRITE_GUEST:
        do_host_access(host, op, result);
        break;
    case RMPC_OP_SNP_INIT:
    case RMPC_OP_SNP_SHUTDOWN:
    case RMPC_OP_SNP_GCTX_CREATE:
    case RMPC_OP_SNP_ACTIVATE:
    case RMPC_OP_SNP_DECOMMISSION:
    case RMPC_OP_SNP_LAUNCH_UPDATE:
    case RMPC_OP_SNP_PAGE_RECLAIM:
    case RMPC_OP_SNP_PAGE_SET_STATE:
    case RMPC_OP_SNP_PAGE_MOVE:
    case RMPC_OP_SNP_PAGE_UNSMASH:
    case RMPC_OP_SNP_MD_INIT:
    case RMPC_OP_SNP_PAGE_SWAP_OUT:
    case RMPC_OP_SNP_PAGE_SWAP_IN:
        do_firmware(machine, op, result);
        break;
    case RMPC_OP_RMP_MARK_PAGES_FIRMWARE:
        if (!rmpc_pages_valid(host, op->addr, op->count))
            return RMPC_ERR_ARGUMENT;
        from_update(rmpc_rmp_mark_pages_firmware(host, op->addr, op->count), result);
        break;
    case RMPC_OP_SNP_RECLAIM_PAGES:
        if (!rmpc_pages_valid(host, op->addr, op->count))
            return RMPC_ERR_ARGUMENT;
        from_update(rmpc_snp_reclaim_pages(host, op->addr, op->count), result);
        break;
    case RMPC_OP_PAGE_STATE:
        result->ret = (int32_t)state_of(host->rmp, op->addr);
        break;
    case RMPC_OP_END:
        return RMPC_ERR_OP;
    }
    return RMPC_OK;
}

void rmpc_machine_apply(struct rmpc_machine *machine, const struct rmpc_op *op, struct rmpc_result *result)
{
    struct rmpc_result done = {.kind = RMPC_RESULT_KERNEL};
    enum rmpc_status status = check(machine, op);

    if (status == RMPC_OK)
        status = apply(machine, op, &done);
    if (status != RMPC_OK)
        done = (struct rmpc_result){.ret = (int32_t)status, .kind = RMPC_RESULT_REFUSED};
    *result = done;
}

/* Fetch what an op will need. */
__attribute__((always_inline)) static inline void prefetch(const struct rmpc_machine *machine, const struct rmpc_op *op)
{
    const struct rmpc_dmap *dmap = machine->host.dmap;
    const unsigned fields = op->op < RMPC_OP_END ? specs[op->op].fields : 0;
    const uint64_t pfn = fields & BYTES ? op->addr >> RMPC_PAGE_SHIFT : op->addr;

    if (fields & LEAF)
        __builtin_prefetch(rmpc_dmap_lookup(dmap, rmpc_dmap_address(dmap, pfn)).entry, 1);
    if ((fields & ENTRY) && machine->host.rmp)
        rmpc_rmp_prefetch(machine->host.rmp, pfn);
}

void rmpc_machine_run(struct rmpc_machine *machine, const struct rmpc_op *ops, size_t count,
                      struct rmpc_result *results)
{
    const size_t ahead = 8; /* ops: time enough to fetch what each of them needs */

    for (size_t i = 0; i < count; i++) {
        if (i + ahead < count)
            prefetch(machine, &ops[i + ahead]);
        rmpc_machine_apply(machine, &ops[i], &results[i]);
    }
}
