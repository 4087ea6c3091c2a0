/* The kernel's SNP host layer (host section 1) under the policies that were proposed for it (section 6). */
#include "rmpcore/snp_host.h"

#include "dmap_internal.h"
#include "rmp_internal.h"
#include "rmpcore/cpa.h"

bool rmpc_pfn_valid(const struct rmpc_host *host, uint64_t pfn)
{
    const unsigned frames_shift = RMPC_SECTION_SHIFT - RMPC_PAGE_SHIFT;
    uint64_t section;
    size_t i;

    if (pfn >= RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT)
        return false;
    section = pfn >> frames_shift << RMPC_SECTION_SHIFT;
    i = rmpc_extents_find(host->memory, host->memory_count, section);
    return i < host->memory_count && host->memory[i].base < section + (UINT64_C(1) << RMPC_SECTION_SHIFT);
}

const char *rmpc_policy_name(unsigned policy)
{
    static const char names[RMPC_POLICY_END][16] = {
        [RMPC_POLICY_UPSTREAM] = "upstream",       [RMPC_POLICY_NONE] = "none",
        [RMPC_POLICY_RFC_V4] = "rfc-v4",           [RMPC_POLICY_UNMAP] = "unmap",
        [RMPC_POLICY_UNMAP_FLUSH] = "unmap-flush", [RMPC_POLICY_KMAP] = "kmap",
        [RMPC_POLICY_FAULT_SPLIT] = "fault-split", [RMPC_POLICY_MAP_4K] = "map-4k",
        [RMPC_POLICY_SPLIT_RESTORE] = "split-restore"};

    return policy < RMPC_POLICY_END ? names[policy] : NULL;
}

/* Can there be an entry of this level at this frame?  (Where a 2 MiB frame is valid, pfn + 511 is: sections hold whole
 * ones.) */
static bool is_place_for(const struct rmpc_host *host, uint64_t pfn, int level)
{
    if (level > 2 || !rmpc_pfn_valid(host, pfn))
        return false;
    return level < 2 || pfn % RMPC_REGION_FRAMES == 0;
}

int rmpc_adjust_direct_map(struct rmpc_host *host, uint64_t pfn, int level)
{
    struct rmpc_walk walk;

    if (!is_place_for(host, pfn, level))
        return -RMPC_EINVAL;
    if (level == 2) /* needs no split: hardware judges even a 1 GiB mapping in 2 MiB pieces */
        return 0;
    walk = rmpc_dmap_lookup(host->dmap, rmpc_dmap_address(host->dmap, pfn));
    if (!walk.entry || !*walk.entry || walk.level == 1)
        return 0;
    return rmpc_set_memory(host->dmap, RMPC_SET_MEMORY_4K, rmpc_dmap_pages(host->dmap, pfn, 1));
}

/* ---- rmpupdate(): section 6.2 ---- */

/* Take pages out of the direct map, one by one; on a failure those that are out go back in. */
static int unmap_pages(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages)
{
    for (uint64_t i = 0; i < pages; i++) {
        if (!rmpc_set_direct_map_invalid_noflush(dmap, pfn + i))
            continue;
        for (uint64_t done = 0; done < i && !rmpc_set_direct_map_default_noflush(dmap, pfn + done);)
            done++;
        return -RMPC_EFAULT;
    }
    return 0;
}

static int map_pages(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages)
{
    for (uint64_t i = 0; i < pages; i++)
        if (rmpc_set_direct_map_default_noflush(dmap, pfn + i))
            return -RMPC_EFAULT;
    return 0;
}

static int set_present(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages, bool present)
{
    const enum rmpc_set_memory call = present ? RMPC_SET_MEMORY_P : RMPC_SET_MEMORY_NP;

    return rmpc_set_memory(dmap, call, rmpc_dmap_pages(dmap, pfn, pages)) ? -RMPC_EFAULT : 0;
}

/* What comes before the instruction. */
static int before_update(struct rmpc_host *host, uint64_t pfn, uint64_t pages, bool assign)
{
    const int level = pages > 1 ? 2 : 1;

    switch (host->policy) {
    case RMPC_POLICY_UPSTREAM:
    case RMPC_POLICY_SPLIT_RESTORE:
        return rmpc_adjust_direct_map(host, pfn, level) ? -RMPC_EFAULT : 0;
    case RMPC_POLICY_NONE:
    case RMPC_POLICY_KMAP:
    case RMPC_POLICY_FAULT_SPLIT:
    case RMPC_POLICY_MAP_4K:
        return is_place_for(host, pfn, level) ? 0 : -RMPC_EFAULT;
    case RMPC_POLICY_RFC_V4:
    case RMPC_POLICY_UNMAP:
    case RMPC_POLICY_UNMAP_FLUSH:
        break;
    case RMPC_POLICY_END:
    default:
        return -RMPC_EINVAL;
    }
    if (!rmpc_pfn_valid(host, pfn))
        return -RMPC_EINVAL;
    if (host->policy == RMPC_POLICY_RFC_V4) /* one page, whatever the entry's size */
        return rmpc_set_memory(host->dmap, RMPC_SET_MEMORY_4K, rmpc_dmap_pages(host->dmap, pfn, 1));
    if (!assign)
        return 0;
    return host->policy == RMPC_POLICY_UNMAP ? unmap_pages(host->dmap, pfn, pages)
                                             : set_present(host->dmap, pfn, pages, false);
}

static bool may_restore(const void *user, uint64_t pfn, uint64_t pages)
{
    return rmpc_rmp_is_hypervisors(user, pfn, pages);
}

/* What comes after a success. */
static int after_update(struct rmpc_host *host, uint64_t pfn, uint64_t pages, bool assign)
{
    if (assign)
        return 0;
    if (host->policy == RMPC_POLICY_UNMAP)
        return map_pages(host->dmap, pfn, pages);
    if (host->policy == RMPC_POLICY_UNMAP_FLUSH)
        return set_present(host->dmap, pfn, pages, true);
    if (host->policy == RMPC_POLICY_SPLIT_RESTORE)
        rmpc_dmap_restore(host->dmap, pfn, may_restore, host->rmp);
    return 0;
}

/* The code after which a policy executes the instruction again; 0: none. */
static uint32_t repeated_code(enum rmpc_policy policy)
{
    if (policy == RMPC_POLICY_RFC_V4)
        return RMPC_CODE_FAIL_INUSE;
    return policy == RMPC_POLICY_UNMAP || policy == RMPC_POLICY_UNMAP_FLUSH ? 0 : RMPC_CODE_FAIL_OVERLAP;
}

/* Does a policy's rmpupdate() return codes as they are? */
static bool returns_codes(enum rmpc_policy policy)
{
    return repeated_code(policy) != RMPC_CODE_FAIL_OVERLAP;
}

int rmpc_host_rmpupdate(struct rmpc_host *host, uint64_t pfn, struct rmpc_rmp_state input)
{
    const bool assign = input.high & RMPC_STATE_ASSIGNED;
    const uint64_t pages = input.high & RMPC_STATE_SIZE_2M ? RMPC_REGION_FRAMES : 1;
    const uint32_t repeated = repeated_code(host->policy);
    struct rmpc_outcome outcome;
    int ret;

    if (!host->rmp)
        return -RMPC_ENODEV;
    ret = before_update(host, pfn, pages, assign);
    if (ret)
        return ret;
    for (;;) {
        outcome = rmpc_rmpupdate(host->rmp, host->cpu, pfn << RMPC_PAGE_SHIFT, input);
        if (outcome.kind != RMPC_OUTCOME_CODE)
            return -RMPC_EFAULT;
        if (outcome.code == RMPC_CODE_SUCCESS)
            return after_update(host, pfn, pages, assign);
        if (outcome.code != repeated)
            break;
        /* the kernel repeats until somebody else lets go; here nobody else is there */
        if (!outcome.transient)
            return RMPC_HANGS + (int)outcome.code;
        host->retries++;
    }
    if (returns_codes(host->policy))
        return (int)outcome.code;
    rmpc_report(host->events, RMPC_EVENT_RMPUPDATE_FAILED, pages > 1 ? 2 : 1, (int32_t)outcome.code, pfn, 0, 0);
    rmpc_dump_rmpentry(host, pfn);
    return -RMPC_EFAULT;
}

int rmpc_rmp_make_private(struct rmpc_host *host, uint64_t pfn, uint64_t gpa, int level, uint32_t asid, bool immutable)
{
    return rmpc_host_rmpupdate(host, pfn, rmpc_rmp_state_make(gpa, 1, level != 1, immutable, asid));
}

int rmpc_rmp_make_firmware(struct rmpc_host *host, uint64_t pfn, int level)
{
    return rmpc_rmp_make_private(host, pfn, 0, level, 0, true);
}

int rmpc_rmp_make_shared(struct rmpc_host *host, uint64_t pfn, int level)
{
    return rmpc_host_rmpupdate(host, pfn, rmpc_rmp_state_make(0, 0, level != 1, 0, 0));
}

int rmpc_host_psmash(struct rmpc_host *host, uint64_t pfn)
{
    struct rmpc_outcome outcome;

    if (!host->rmp)
        return -RMPC_ENODEV;
    if (!rmpc_pfn_valid(host, pfn))
        return -RMPC_EINVAL;
    outcome = rmpc_psmash(host->rmp, host->cpu, pfn << RMPC_PAGE_SHIFT);
    return outcome.kind == RMPC_OUTCOME_CODE ? (int)outcome.code : -RMPC_EFAULT;
}

/* What the kernel learns of one entry: 0, -EFAULT, or RMPREAD's code. */
static int read_entry(struct rmpc_host *host, uint64_t pfn, struct rmpc_rmp_state *state)
{
    struct rmpc_rmp_entry entry;
    struct rmpc_outcome outcome;

    if (host->rmp->hardware.rmpread && host->dmap->config.kernel.segmented_rmp) {
        outcome = rmpc_rmpread(host->rmp, host->cpu, pfn << RMPC_PAGE_SHIFT, state);
        return outcome.kind == RMPC_OUTCOME_CODE ? (int)outcome.code : -RMPC_EFAULT;
    }
    if (rmpc_rmp_get(host->rmp, pfn, &entry) != RMPC_OK)
        return -RMPC_EFAULT;
    *state = rmpc_rmp_state_make(0, (entry.lo & RMPC_RMP_ASSIGNED) != 0, (entry.lo & RMPC_RMP_SIZE_2M) != 0, 0, 0);
    return 0;
}

int rmpc_snp_lookup_rmpentry(struct rmpc_host *host, uint64_t pfn, bool *assigned, int *level)
{
    struct rmpc_rmp_state state, head;
    int ret;

    if (!host->rmp)
        return -RMPC_ENODEV;
    ret = read_entry(host, pfn, &state);
    if (!ret)
        ret = read_entry(host, pfn & ~(RMPC_REGION_FRAMES - 1), &head);
    if (ret)
        return ret;
    *assigned = state.high & RMPC_STATE_ASSIGNED;
    *level = head.high & RMPC_STATE_SIZE_2M ? 2 : 1;
    return 0;
}

void rmpc_dump_rmpentry(struct rmpc_host *host, uint64_t pfn)
{
    uint64_t start = pfn & ~(RMPC_REGION_FRAMES - 1);
    struct rmpc_rmp_entry entry;
    bool assigned;
    int level;
    int error = rmpc_snp_lookup_rmpentry(host, pfn, &assigned, &level);

    if (error) {
        rmpc_report(host->events, RMPC_EVENT_DUMP_ERROR, 0, error, pfn, 0, 0);
        return;
    }
    if (assigned) {
        /* RMPREAD takes an address modulo 2^64: it may have read another frame's entry */
        if (rmpc_rmp_get(host->rmp, pfn, &entry) == RMPC_OK)
            rmpc_report(host->events, RMPC_EVENT_DUMP_ENTRY, 0, 0, pfn, entry.lo, entry.hi);
        else
            rmpc_report(host->events, RMPC_EVENT_DUMP_ERROR, 0, -RMPC_EFAULT, pfn, 0, 0);
        return;
    }
    rmpc_report(host->events, RMPC_EVENT_DUMP_REGION, 0, 0, pfn, start, start + RMPC_REGION_FRAMES);
    for (uint64_t i = start; i < start + RMPC_REGION_FRAMES && rmpc_rmp_get(host->rmp, i, &entry) == RMPC_OK; i++)
        if (entry.lo | entry.hi)
            rmpc_report(host->events, RMPC_EVENT_DUMP_ENTRY, 0, 0, i, entry.lo, entry.hi);
}

bool rmpc_pages_valid(const struct rmpc_host *host, uint64_t pfn, uint64_t pages)
{
    if (pages > UINT64_C(1) << 20)
        return false;
    for (uint64_t i = 0; i < pages; i++)
        if (!rmpc_pfn_valid(host, pfn + i))
            return false;
    return true;
}

enum rmpc_status rmpc_snp_leak_pages(struct rmpc_host *host, uint64_t pfn, uint64_t pages)
{
    if (!rmpc_pages_valid(host, pfn, pages))
        return RMPC_ERR_ARGUMENT;
    rmpc_report(host->events, RMPC_EVENT_LEAK, 0, 0, pfn, pages, 0);
    for (uint64_t i = 0; i < pages; i++)
        rmpc_dump_rmpentry(host, pfn + i);
    host->leaked_pages += pages;
    return RMPC_OK;
}

int rmpc_rmp_mark_pages_firmware(struct rmpc_host *host, uint64_t pfn, uint64_t pages)
{
    for (uint64_t i = 0; i < pages; i++) {
        int ret = rmpc_rmp_make_firmware(host, pfn + i, 1);
        int hang;

        if (!ret)
            continue;
        /* what cannot be taken back is leaked; the first failure is what counts */
        hang = rmpc_snp_reclaim_pages(host, pfn, i);
        return hang >= RMPC_HANGS ? hang : ret;
    }
    return 0;
}

int rmpc_snp_reclaim_pages(struct rmpc_host *host, uint64_t pfn, uint64_t pages)
{
    for (uint64_t i = 0; i < pages; i++) {
        const struct rmpc_operands operands = {.page = (pfn + i) << RMPC_PAGE_SHIFT};
        int ret = -RMPC_EIO;

        if (rmpc_firmware_command(host->firmware, RMPC_SNP_PAGE_RECLAIM, &operands) == RMPC_FW_SUCCESS)
            ret = rmpc_rmp_make_shared(host, pfn + i, 1);
        if (ret >= RMPC_HANGS)
            return ret;
        if (ret) {
            rmpc_snp_leak_pages(host, pfn + i, pages - i);
            return ret;
        }
    }
    return 0;
}

/* ---- the host's accesses: sections 1 and 6.3 ---- */

/* Through the direct map. */
static inline struct rmpc_outcome access_page(const struct rmpc_host *host, uint64_t pfn, bool write, int *level)
{
    const uint64_t va = rmpc_dmap_address(host->dmap, pfn);
    const struct rmpc_walk walk = rmpc_walk_to(host->dmap, va, 1);
    const uint64_t raw = walk.entry ? *walk.entry : 0;
    const uint64_t error = write ? RMPC_FAULT_W : 0;

    *level = raw ? walk.level : 0;
    if (!(raw & RMPC_PTE_P))
        return rmpc_outcome_fault(RMPC_VECTOR_PF, error, va, RMPC_REASON_NOT_PRESENT);
    if (!write)
        return (struct rmpc_outcome){.kind = RMPC_OUTCOME_ALLOWED};
    if (!walk.rw || !(raw & RMPC_PTE_RW))
        return rmpc_outcome_fault(RMPC_VECTOR_PF, error | RMPC_FAULT_P, va, RMPC_REASON_READ_ONLY);
    pfn = (rmpc_pte_address(raw, walk.level, host->dmap->config.c_bit) >> RMPC_PAGE_SHIFT) |
          (pfn & ((rmpc_level_size(walk.level) >> RMPC_PAGE_SHIFT) - 1));
    if (!host->rmp || is_surely_hypervisors(host->rmp, pfn, walk.level))
        return (struct rmpc_outcome){.kind = RMPC_OUTCOME_ALLOWED};
    return rmpc_rmp_check_host_write(host->rmp, pfn, walk.level, va);
}

/* The frame without the memory-encryption bit. */
static uint64_t frame_in_memory(const struct rmpc_host *host, uint64_t pfn)
{
    return pfn & ~(host->dmap->config.c_bit >> RMPC_PAGE_SHIFT);
}

/* Through a window of kmap: a 4K mapping at an address that matters to nobody. */
static struct rmpc_outcome access_window(struct rmpc_host *host, uint64_t pfn, bool write, int *level)
{
    const bool five = host->dmap->config.levels == 5;
    const uint64_t vmalloc = five ? UINT64_C(0xffa0000000000000) : UINT64_C(0xffffc90000000000);

    host->counters.windows++;
    *level = 1;
    if (!write)
        return (struct rmpc_outcome){.kind = RMPC_OUTCOME_ALLOWED};
    return rmpc_rmp_check_host_write(host->rmp, frame_in_memory(host, pfn), 1, vmalloc);
}

static bool writes(enum rmpc_host_access_kind kind)
{
    return kind == RMPC_HOST_WRITE || kind == RMPC_KVM_WRITE;
}

static bool opens_window(const struct rmpc_host *host, enum rmpc_host_access_kind kind)
{
    return host->policy == RMPC_POLICY_KMAP && (kind == RMPC_KVM_READ || kind == RMPC_KVM_WRITE);
}

/* Whose fault was it?  What a 4K leaf would not help either is the owner's. */
__attribute__((cold)) static void count_fault(struct rmpc_host *host, uint64_t pfn)
{
    if (rmpc_rmp_check_host_write(host->rmp, frame_in_memory(host, pfn), 1, 0).kind == RMPC_OUTCOME_ALLOWED)
        host->counters.faults_neighbour++;
    else
        host->counters.faults_owner++;
}

struct rmpc_outcome rmpc_host_access(struct rmpc_host *host, uint64_t pfn, enum rmpc_host_access_kind kind, int *level)
{
    struct rmpc_outcome outcome;

    if (opens_window(host, kind))
        outcome = access_window(host, pfn, writes(kind), level);
    else
        outcome = access_page(host, pfn, writes(kind), level);
    if (outcome.kind != RMPC_OUTCOME_ALLOWED)
        count_fault(host, pfn);
    return outcome;
}

bool rmpc_host_handle_fault(struct rmpc_host *host, uint64_t pfn, struct rmpc_outcome fault, int level)
{
    bool assigned;
    int entry_level;

    if (host->policy != RMPC_POLICY_FAULT_SPLIT || !(fault.info & RMPC_FAULT_RMP) ||
        rmpc_snp_lookup_rmpentry(host, pfn, &assigned, &entry_level))
        return false;
    if (level > entry_level) {
        if (rmpc_set_memory(host->dmap, RMPC_SET_MEMORY_4K, rmpc_dmap_pages(host->dmap, pfn, 1)))
            return false;
    } else {
        if (!assigned || (entry_level == 2 && rmpc_host_psmash(host, pfn & ~(RMPC_REGION_FRAMES - 1))) ||
            rmpc_rmp_make_shared(host, pfn, 1))
            return false;
        host->counters.forced_shared++;
    }
    host->counters.repairs++;
    return true;
}

/* Fetch what access_page() will need: the page's last table entry, if that is not near, and its RMP entry. */
__attribute__((always_inline)) static inline void prefetch_page(const struct rmpc_host *host, uint64_t pfn, bool write)
{
    const uint64_t va = rmpc_dmap_address(host->dmap, pfn);
    const struct rmpc_walk walk = rmpc_walk_to(host->dmap, va, 2);
    const struct rmpc_rmp_entry *entry = write && host->rmp ? rmpc_rmp_entry_of(host->rmp, pfn) : NULL;
    const uint64_t *table = NULL;

    if (walk.entry && walk.level == 2 && rmpc_pte_is_table(*walk.entry, 2))
        table = rmpc_table_at(host->dmap, *walk.entry);
    if (table)
        __builtin_prefetch(&table[rmpc_table_index(va, 1)]);
    if (entry)
        __builtin_prefetch(table ? entry : entry - pfn % RMPC_REGION_FRAMES);
}

void rmpc_host_access_all(struct rmpc_host *host, const uint64_t *pfns, size_t count, enum rmpc_host_access_kind kind,
                          struct rmpc_outcome *outcomes)
{
    const size_t ahead = 12; /* pages: so many loads are under way at once */
    const bool write = writes(kind);
    int level;

    if (opens_window(host, kind)) {
        for (size_t i = 0; i < count; i++)
            outcomes[i] = rmpc_host_access(host, pfns[i], kind, &level);
        return;
    }
    for (size_t i = 0; i < count && i < ahead; i++)
        prefetch_page(host, pfns[i], write);
    for (size_t i = 0; i < count; i++) {
        if (i + ahead < count)
            prefetch_page(host, pfns[i + ahead], write);
        outcomes[i] = access_page(host, pfns[i], write, &level);
    }
    for (size_t i = 0; i < count; i++)
        if (outcomes[i].kind != RMPC_OUTCOME_ALLOWED)
            count_fault(host, pfns[i]);
}

/* Add the block that holds an end of a table, in order, if it is one to reserve; the new count. */
static size_t add_block(uint64_t end, const struct rmpc_extent *usable, size_t count, struct rmpc_extent *blocks,
                        size_t room, size_t have)
{
    const uint64_t size = RMPC_REGION_FRAMES << RMPC_PAGE_SHIFT;
    const struct rmpc_extent block = {end / size * size, size};
    size_t place = have < room ? have : room;
    size_t u = rmpc_extents_find(usable, count, block.base);

    if (end % size == 0 || u == count || usable[u].base >= block.base + size)
        return have;
    for (size_t i = 0; i < place; i++)
        if (blocks[i].base == block.base)
            return have;
    for (; place && blocks[place - 1].base > block.base; place--)
        if (place < room)
            blocks[place] = blocks[place - 1];
    if (place < room)
        blocks[place] = block;
    return have + 1;
}

size_t rmpc_rmp_end_blocks(const struct rmpc_rmp *rmp, const struct rmpc_extent *usable, size_t count,
                           struct rmpc_extent *blocks, size_t room)
{
    size_t have = 0;

    have = add_block(rmp->msrs.base, usable, count, blocks, room, have);
    if (!(rmp->msrs.cfg & RMPC_RMP_CFG_SEGMENTED))
        return add_block(rmp->msrs.end + 1, usable, count, blocks, room, have);
    have = add_block(rmp->msrs.base + RMPC_RMP_BOOKKEEPING + RMPC_PAGE_SIZE, usable, count, blocks, room, have);
    for (size_t i = 0; i < rmp->count; i++) {
        have = add_block(rmp->segments[i].pa, usable, count, blocks, room, have);
        have = add_block(rmp->segments[i].pa + rmp->segments[i].bytes, usable, count, blocks, room, have);
    }
    return have;
}
