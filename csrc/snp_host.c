/* The kernel's SNP host layer (host section 1). */
#include "rmpcore/snp_host.h"

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

int rmpc_adjust_direct_map(struct rmpc_host *host, uint64_t pfn, int level)
{
    struct rmpc_walk walk;

    if (level > 2 || !rmpc_pfn_valid(host, pfn))
        return -RMPC_EINVAL;
    if (level == 2) {
        /* a 2M entry needs no split: hardware judges even a 1 GiB mapping in 2 MiB pieces */
        bool whole = pfn % RMPC_REGION_FRAMES == 0 && rmpc_pfn_valid(host, pfn + RMPC_REGION_FRAMES - 1);
        return whole ? 0 : -RMPC_EINVAL;
    }
    walk = rmpc_dmap_lookup(host->dmap, rmpc_dmap_address(host->dmap, pfn));
    if (!walk.entry || !*walk.entry || walk.level == 1)
        return 0;
    return rmpc_set_memory(host->dmap, RMPC_SET_MEMORY_4K, rmpc_dmap_pages(host->dmap, pfn, 1));
}

int rmpc_host_rmpupdate(struct rmpc_host *host, uint64_t pfn, struct rmpc_rmp_state input)
{
    const struct rmpc_cpu kernel = {false, false};
    int level = input.high & RMPC_STATE_SIZE_2M ? 2 : 1;
    struct rmpc_outcome outcome;

    if (!host->rmp)
        return -RMPC_ENODEV;
    if (rmpc_adjust_direct_map(host, pfn, level))
        return -RMPC_EFAULT;
    for (;;) {
        outcome = rmpc_rmpupdate(host->rmp, kernel, pfn << RMPC_PAGE_SHIFT, input);
        if (outcome.code != RMPC_CODE_FAIL_OVERLAP)
            break;
        /* the kernel repeats until somebody else lets go; here nobody else is there */
        if (!outcome.injected)
            return RMPC_HANGS;
        host->retries++;
    }
    if (outcome.code == RMPC_CODE_SUCCESS)
        return 0;
    rmpc_report(host->events, RMPC_EVENT_RMPUPDATE_FAILED, level, (int32_t)outcome.code, pfn, 0, 0);
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
    const struct rmpc_cpu kernel = {false, false};

    if (!host->rmp)
        return -RMPC_ENODEV;
    if (!rmpc_pfn_valid(host, pfn))
        return -RMPC_EINVAL;
    return (int)rmpc_psmash(host->rmp, kernel, pfn << RMPC_PAGE_SHIFT).code;
}

int rmpc_snp_lookup_rmpentry(const struct rmpc_host *host, uint64_t pfn, bool *assigned, int *level)
{
    struct rmpc_rmp_entry entry, head;

    if (!host->rmp)
        return -RMPC_ENODEV;
    if (rmpc_rmp_get(host->rmp, pfn, &entry) != RMPC_OK ||
        rmpc_rmp_get(host->rmp, pfn & ~(RMPC_REGION_FRAMES - 1), &head) != RMPC_OK)
        return -RMPC_EFAULT;
    *assigned = entry.lo & RMPC_RMP_ASSIGNED;
    *level = head.lo & RMPC_RMP_SIZE_2M ? 2 : 1;
    return 0;
}

void rmpc_dump_rmpentry(const struct rmpc_host *host, uint64_t pfn)
{
    uint64_t start = pfn & ~(RMPC_REGION_FRAMES - 1);
    struct rmpc_rmp_entry entry;

    if (!host->rmp || rmpc_rmp_get(host->rmp, pfn, &entry) != RMPC_OK) {
        int error = host->rmp ? -RMPC_EFAULT : -RMPC_ENODEV;
        rmpc_report(host->events, RMPC_EVENT_DUMP_ERROR, 0, error, pfn, 0, 0);
        return;
    }
    if (entry.lo & RMPC_RMP_ASSIGNED) {
        rmpc_report(host->events, RMPC_EVENT_DUMP_ENTRY, 0, 0, pfn, entry.lo, entry.hi);
        return;
    }
    rmpc_report(host->events, RMPC_EVENT_DUMP_REGION, 0, 0, pfn, start, start + RMPC_REGION_FRAMES);
    for (uint64_t i = start; i < start + RMPC_REGION_FRAMES && rmpc_rmp_get(host->rmp, i, &entry) == RMPC_OK; i++)
        if (entry.lo | entry.hi)
            rmpc_report(host->events, RMPC_EVENT_DUMP_ENTRY, 0, 0, i, entry.lo, entry.hi);
}

enum rmpc_status rmpc_snp_leak_pages(struct rmpc_host *host, uint64_t pfn, uint64_t pages)
{
    if (pages > UINT64_C(1) << 20)
        return RMPC_ERR_ARGUMENT;
    for (uint64_t i = 0; i < pages; i++)
        if (!rmpc_pfn_valid(host, pfn + i))
            return RMPC_ERR_ARGUMENT;
    rmpc_report(host->events, RMPC_EVENT_LEAK, 0, 0, pfn, pages, 0);
    for (uint64_t i = 0; i < pages; i++)
        rmpc_dump_rmpentry(host, pfn + i);
    host->leaked_pages += pages;
    return RMPC_OK;
}
