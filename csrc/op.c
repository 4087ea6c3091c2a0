/* Ops: checking a record, and handing it to the function that does it. */
#include "rmpcore/op.h"

/* Fields beside flags that an op uses.  MAPPED: addr and count are frames of the direct map (or, with the flag high,
 * of the high mapping). */
enum field { LEVEL = 1, ID = 2, ADDR = 4, GPA = 8, COUNT = 16, MAPPED = 32, CPA = ADDR | COUNT | LEVEL };

/* Which kernel has the op. */
enum need { ANY, SNP_HOST, SET_VALID, ROX };

/* The name is an array: a pointer would need relocation, and make the table writable data. */
static const struct {
    char name[32];
    unsigned fields;
    unsigned flags;
    enum need need;
} specs[RMPC_OP_END] = {
    [RMPC_OP_INSN_RMPUPDATE] = {"RMPUPDATE", ADDR | GPA | ID | COUNT,
                                RMPC_OP_ASSIGNED | RMPC_OP_SIZE_2M | RMPC_OP_IMMUTABLE | RMPC_OP_GUEST | RMPC_OP_USER,
                                ANY},
    [RMPC_OP_INSN_PSMASH] = {"PSMASH", ADDR, RMPC_OP_GUEST | RMPC_OP_USER, ANY},
    [RMPC_OP_INSN_RMPREAD] = {"RMPREAD", ADDR, RMPC_OP_GUEST | RMPC_OP_USER, ANY},
    [RMPC_OP_RMPUPDATE] = {"rmpupdate", ADDR | GPA | ID, RMPC_OP_ASSIGNED | RMPC_OP_SIZE_2M | RMPC_OP_IMMUTABLE,
                           SNP_HOST},
    [RMPC_OP_RMP_MAKE_PRIVATE] = {"rmp_make_private", ADDR | GPA | LEVEL | ID, RMPC_OP_IMMUTABLE, SNP_HOST},
    [RMPC_OP_RMP_MAKE_FIRMWARE] = {"rmp_make_firmware", ADDR | LEVEL, 0, SNP_HOST},
    [RMPC_OP_RMP_MAKE_SHARED] = {"rmp_make_shared", ADDR | LEVEL, 0, SNP_HOST},
    [RMPC_OP_PSMASH] = {"psmash", ADDR, 0, SNP_HOST},
    [RMPC_OP_SNP_LOOKUP_RMPENTRY] = {"snp_lookup_rmpentry", ADDR, 0, SNP_HOST},
    [RMPC_OP_ADJUST_DIRECT_MAP] = {"adjust_direct_map", ADDR | LEVEL, 0, SNP_HOST},
    [RMPC_OP_DUMP_RMPENTRY] = {"dump_rmpentry", ADDR, 0, SNP_HOST},
    [RMPC_OP_SNP_LEAK_PAGES] = {"snp_leak_pages", ADDR | COUNT, 0, SNP_HOST},
    [RMPC_OP_LOOKUP] = {"lookup", ADDR | MAPPED, 0, ANY},
    [RMPC_OP_SET_MEMORY_4K] = {"set_memory_4k", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_DIRECT_MAP_INVALID_NOFLUSH] = {"set_direct_map_invalid_noflush", ADDR | MAPPED, 0, ANY},
    [RMPC_OP_SET_DIRECT_MAP_DEFAULT_NOFLUSH] = {"set_direct_map_default_noflush", ADDR | MAPPED, 0, ANY},
    [RMPC_OP_SET_DIRECT_MAP_VALID_NOFLUSH] = {"set_direct_map_valid_noflush", ADDR | MAPPED | COUNT, RMPC_OP_VALID, SET_VALID},
    [RMPC_OP_INJECT] = {"inject", ID | COUNT, 0, ANY},
    [RMPC_OP_FAIL_ALLOC] = {"fail_alloc", ADDR | COUNT, 0, ANY},
    [RMPC_OP_SET_MEMORY_RO] = {"set_memory_ro", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_RW] = {"set_memory_rw", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_ROX] = {"set_memory_rox", CPA, RMPC_OP_HIGH, ROX},
    [RMPC_OP_SET_MEMORY_NX] = {"set_memory_nx", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_X] = {"set_memory_x", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_NP] = {"set_memory_np", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_P] = {"set_memory_p", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_NP_NOALIAS] = {"set_memory_np_noalias", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_GLOBAL] = {"set_memory_global", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_NONGLOBAL] = {"set_memory_nonglobal", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_UC] = {"_set_memory_uc", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_WC] = {"_set_memory_wc", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_WB] = {"_set_memory_wb", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_ENCRYPTED] = {"set_memory_encrypted", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_SET_MEMORY_DECRYPTED] = {"set_memory_decrypted", CPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_CHANGE_PAGE_ATTR_SET] = {"change_page_attr_set", CPA | GPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_CHANGE_PAGE_ATTR_CLEAR] = {"change_page_attr_clear", CPA | GPA, RMPC_OP_HIGH, ANY},
    [RMPC_OP_CPA_ADDRESS] = {"cpa_address", ADDR, RMPC_OP_HIGH, ANY},
};

const char *rmpc_op_name(unsigned op)
{
    return op < RMPC_OP_END && specs[op].name[0] ? specs[op].name : NULL;
}

unsigned rmpc_op_flags(unsigned op)
{
    return op < RMPC_OP_END ? specs[op].flags : 0;
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
        ((unused & ADDR) && op->addr) || ((unused & GPA) && op->gpa) || ((unused & COUNT) && op->count))
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
    pages->addresses = op->level == RMPC_FLAVOUR_RANGE ? NULL : machine->addresses;
    pages->count = op->count;
    pages->va = 0;
    if (op->level == RMPC_FLAVOUR_RANGE)
        return address_of(machine->host.dmap, op->addr, op->flags & RMPC_OP_HIGH, op->count, &pages->va);
    if (op->level >= RMPC_FLAVOUR_END || op->addr || (op->flags & RMPC_OP_HIGH) || op->count > machine->address_count)
        return false;
    for (uint64_t i = 0; op->level == RMPC_FLAVOUR_PAGES && i < op->count; i++)
        if (machine->addresses[i] >= RMPC_HIGH_MAP)
            return false;
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

static void from_outcome(struct rmpc_outcome outcome, struct rmpc_result *result)
{
    result->kind = outcome.vector ? RMPC_RESULT_FAULT : RMPC_RESULT_CODE;
    result->ret = (int32_t)(outcome.vector ? outcome.vector : outcome.code);
}

static void from_update(int ret, struct rmpc_result *result)
{
    result->ret = ret;
    if (ret == RMPC_HANGS) {
        result->kind = RMPC_RESULT_HANG;
        result->ret = RMPC_CODE_FAIL_OVERLAP;
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

/* RMPC_OK: done, and result says how it went. */
static enum rmpc_status apply(struct rmpc_machine *machine, const struct rmpc_op *op, struct rmpc_result *result)
{
    struct rmpc_host *host = &machine->host;
    struct rmpc_dmap *dmap = host->dmap;
    const struct rmpc_cpu cpu = {op->flags & RMPC_OP_GUEST, op->flags & RMPC_OP_USER};
    const bool immutable = op->flags & RMPC_OP_IMMUTABLE;
    struct rmpc_rmp_state state = rmpc_rmp_state_make(op->gpa, op->flags & RMPC_OP_ASSIGNED,
                                                      op->flags & RMPC_OP_SIZE_2M, immutable, op->id);
    bool assigned = false;
    int level = 0;

    switch ((enum rmpc_op_code)op->op) {
    case RMPC_OP_INSN_RMPUPDATE:
        state.high |= op->count;
        from_outcome(rmpc_rmpupdate(host->rmp, cpu, op->addr, state), result);
        break;
    case RMPC_OP_INSN_PSMASH:
        from_outcome(rmpc_psmash(host->rmp, cpu, op->addr), result);
        break;
    case RMPC_OP_INSN_RMPREAD:
        state = (struct rmpc_rmp_state){0, 0};
        from_outcome(rmpc_rmpread(host->rmp, cpu, op->addr, &state), result);
        result->value = state.gpa;
        result->value2 = state.high;
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
        return host->rmp ? rmpc_rmp_inject(host->rmp, op->id, op->count) : RMPC_ERR_ARGUMENT;
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

void rmpc_machine_run(struct rmpc_machine *machine, const struct rmpc_op *ops, size_t count,
                      struct rmpc_result *results)
{
    for (size_t i = 0; i < count; i++)
        rmpc_machine_apply(machine, &ops[i], &results[i]);
}
