"""What breaks the rules of docs/host.md, section 6, one by one, in the C core: policies and the host's own accesses."""

from __future__ import annotations

from mutation import Mutation, mutation

HOST = "csrc/snp_host.c"
CPA = "csrc/cpa.c"
CHECK = "csrc/rmp_check.c"
DMAP = "csrc/dmap.c"
OP = "csrc/op.c"

POLICIES = "test_policies.py"
RESTORE = "test_split_restore.py"


MUTATIONS: tuple[Mutation, ...] = (
    # before the instruction
    mutation(
        "host §6.2 upstream splits",
        HOST,
        "return rmpc_adjust_direct_map(host, pfn, level) ? -RMPC_EFAULT : 0;",
        "return 0;",
        POLICIES,
        RESTORE,
    ),
    mutation(
        "host §6.2 none checks the frame",
        HOST,
        "return is_place_for(host, pfn, level) ? 0 : -RMPC_EFAULT;",
        "return 0;",
        POLICIES,
    ),
    mutation(
        "host §6.2 invalid frames",
        HOST,
        "if (!rmpc_pfn_valid(host, pfn))\n        return -RMPC_EINVAL;\n    if (host->policy",
        "if (host->policy",
        POLICIES,
    ),
    mutation(
        "host §6.2 rfc-v4 splits",
        HOST,
        "RMPC_SET_MEMORY_4K, rmpc_dmap_pages(host->dmap, pfn, 1));\n    if (!assign)",
        "RMPC_SET_MEMORY_P, rmpc_dmap_pages(host->dmap, pfn, 1));\n    if (!assign)",
        POLICIES,
    ),
    mutation(
        "host §6.2 rfc-v4 splits for one page",
        HOST,
        "rmpc_dmap_pages(host->dmap, pfn, 1));\n    if (!assign)",
        "rmpc_dmap_pages(host->dmap, pfn, pages));\n    if (!assign)",
        POLICIES,
    ),
    mutation("host §6.2 only assigning unmaps", HOST, "if (!assign)\n        return 0;", "", POLICIES),
    mutation(
        "host §6.2 undone in order",
        HOST,
        "done < i && !rmpc_set_direct_map_default_noflush(dmap, pfn + done);",
        "done < i && 0;",
        POLICIES,
    ),
    mutation(
        "host §6.2 undone up to the first failure",
        HOST,
        "done < i && !rmpc_set_direct_map_default_noflush(dmap, pfn + done);",
        "done < i && (rmpc_set_direct_map_default_noflush(dmap, pfn + done), true);",
        POLICIES,
    ),
    mutation(
        "host §6.2 unmap-flush takes the range",
        HOST,
        "rmpc_set_memory(dmap, call, rmpc_dmap_pages(dmap, pfn, pages))",
        "rmpc_set_memory(dmap, call, rmpc_dmap_pages(dmap, pfn, 1))",
        POLICIES,
    ),
    mutation(
        "host §6.2 which calls unmap-flush makes",
        HOST,
        "present ? RMPC_SET_MEMORY_P : RMPC_SET_MEMORY_NP",
        "present ? RMPC_SET_MEMORY_P : RMPC_SET_MEMORY_NP_NOALIAS",
        POLICIES,
    ),
    # the instruction
    mutation(
        "host §6.2 rfc-v4 repeats FAIL_INUSE",
        HOST,
        "return RMPC_CODE_FAIL_INUSE;",
        "return RMPC_CODE_FAIL_OVERLAP;",
        POLICIES,
    ),
    mutation(
        "host §6.2 unmap never repeats",
        HOST,
        "policy == RMPC_POLICY_UNMAP || policy == RMPC_POLICY_UNMAP_FLUSH ? 0 : RMPC_CODE_FAIL_OVERLAP",
        "RMPC_CODE_FAIL_OVERLAP",
        POLICIES,
    ),
    mutation(
        "host §6.2 the code that hangs",
        HOST,
        "return RMPC_HANGS + (int)outcome.code;",
        "return RMPC_HANGS + 4;",
        POLICIES,
    ),
    mutation("host §6.2 codes as they are", HOST, "if (returns_codes(host->policy))", "if (0)", POLICIES),
    mutation("host §6.2 repetitions count", HOST, "host->retries++;", "", POLICIES),
    # after it
    mutation(
        "host §6.2 assigning gives nothing back", HOST, "    if (assign)\n        return 0;\n", "", POLICIES, RESTORE
    ),
    mutation(
        "host §6.2 unmap maps again",
        HOST,
        "if (host->policy == RMPC_POLICY_UNMAP)\n        return map_pages(host->dmap, pfn, pages);",
        "",
        POLICIES,
    ),
    mutation(
        "host §6.2 what cannot be mapped again",
        HOST,
        "if (rmpc_set_direct_map_default_noflush(dmap, pfn + i))\n            return -RMPC_EFAULT;",
        "rmpc_set_direct_map_default_noflush(dmap, pfn + i);",
        POLICIES,
    ),
    mutation(
        "host §6.2 unmap-flush maps again",
        HOST,
        "if (host->policy == RMPC_POLICY_UNMAP_FLUSH)\n        return set_present(host->dmap, pfn, pages, true);",
        "",
        POLICIES,
    ),
    mutation(
        "host §6.2 split-restore restores",
        HOST,
        "rmpc_dmap_restore(host->dmap, pfn, may_restore, host->rmp);",
        ";",
        RESTORE,
    ),
    # accesses
    mutation("host §6.3 windows", HOST, "host->policy == RMPC_POLICY_KMAP &&", "0 &&", POLICIES),
    mutation(
        "host §6.3 windows for shared pages only",
        HOST,
        "&& (kind == RMPC_KVM_READ || kind == RMPC_KVM_WRITE);",
        ";",
        POLICIES,
    ),
    mutation(
        "host §6.3 a window is 4K",
        HOST,
        "frame_in_memory(host, pfn), 1, vmalloc)",
        "frame_in_memory(host, pfn), 2, vmalloc)",
        POLICIES,
    ),
    mutation("host §6.3 level in a window", HOST, "*level = 1;", "*level = 2;", POLICIES),
    mutation(
        "host §6.3 address of a window",
        HOST,
        "five = host->dmap->config.levels == 5",
        "five = host->dmap->config.levels == 4",
        POLICIES,
    ),
    mutation(
        "host §6.3 reads in a window", HOST, "    *level = 1;\n    if (!write)", "    *level = 1;\n    if (0)", POLICIES
    ),
    mutation(
        "host §6.3 victim by a 4K leaf",
        HOST,
        "frame_in_memory(host, pfn), 1, 0).kind",
        "frame_in_memory(host, pfn), 2, 0).kind",
        POLICIES,
    ),
    mutation("host §6.3 handler under one policy", HOST, "host->policy != RMPC_POLICY_FAULT_SPLIT ||", "", POLICIES),
    mutation("host §6.3 handler wants the RMP bit", HOST, "!(fault.info & RMPC_FAULT_RMP) ||", "", POLICIES),
    mutation(
        "host §6.3 handler row 1",
        HOST,
        "rmpc_snp_lookup_rmpentry(host, pfn, &assigned, &entry_level))\n        return false;",
        "(rmpc_snp_lookup_rmpentry(host, pfn, &assigned, &entry_level) && (assigned = true, entry_level = 1, 0)))\n"
        "        return false;",
        POLICIES,
    ),
    mutation("host §6.3 handler row 2", HOST, "if (level > entry_level) {", "if (level >= entry_level) {", POLICIES),
    mutation("host §6.3 handler row 2, larger only", HOST, "if (level > entry_level) {", "if (level > 1) {", POLICIES),
    mutation("host §6.3 handler row 3", HOST, "if (!assigned ||", "if (", POLICIES),
    mutation(
        "host §6.3 handler row 4",
        HOST,
        "(entry_level == 2 && rmpc_host_psmash(host, pfn & ~(RMPC_REGION_FRAMES - 1))) ||",
        "",
        POLICIES,
    ),
    mutation(
        "host §6.3 handler row 5",
        HOST,
        "rmpc_rmp_make_shared(host, pfn, 1))\n            return false;",
        "0)\n            return false;",
        POLICIES,
    ),
    mutation("host §6.5 repairs", HOST, "host->counters.repairs++;", "", POLICIES),
    mutation("host §6.5 forced shared", HOST, "host->counters.forced_shared++;", "", POLICIES),
    mutation("host §6.5 windows", HOST, "host->counters.windows++;", "", POLICIES),
    mutation("host §6.5 accesses", OP, "host->counters.accesses++;", "", POLICIES),
    mutation("host §6.5 owner's faults", HOST, "host->counters.faults_owner++;", ";", POLICIES),
    mutation("host §6.5 neighbours' faults", HOST, "host->counters.faults_neighbour++;", ";", POLICIES),
    mutation("host §6.5 census in the window", DMAP, "first + (rmpc_dmap_limit(dmap) - 1)", "UINT64_MAX", POLICIES),
    mutation(
        "host §6.5 missing frames", DMAP, "census->missing += size >> RMPC_PAGE_SHIFT;", "census->missing++;", POLICIES
    ),
    # split-restore
    mutation(
        "host §6.4 a page of the range is assigned",
        CPA,
        "!may_restore(user, pfn & ~(pages - 1), pages) ||",
        "",
        RESTORE,
    ),
    mutation(
        "host §6.4 all of the range",
        CPA,
        "!may_restore(user, pfn & ~(pages - 1), pages) ||",
        "!may_restore(user, pfn & ~(pages - 1), 512) ||",
        RESTORE,
    ),
    mutation(
        "host §6.4 tables of splits only",
        CPA,
        "(*slot & ~(RMPC_PTE_ADDRESS & ~dmap->config.c_bit)) != (RMPC_PTE_SPLIT_TABLE | dmap->config.c_bit) ||",
        "",
        RESTORE,
    ),
    mutation("host §6.4 KERNEL_4K aside", CPA, "level == 2 ? mark : 0, &gone)", "0, &gone)", RESTORE),
    mutation(
        "host §6.4 without KERNEL_4K",
        CPA,
        "rmpc_pte_flags(table[0], below, c_bit) & ~ignored;",
        "rmpc_pte_flags(table[0], below, c_bit);",
        RESTORE,
    ),
    mutation(
        "host §6.4 row 3", CPA, "level == 2 || (level == 3 && dmap->config.large_level == 3)", "level == 2", RESTORE
    ),
    mutation(
        "host §6.4 row 3, where 1G was",
        CPA,
        "level == 2 || (level == 3 && dmap->config.large_level == 3)",
        "level <= 3",
        RESTORE,
    ),
    mutation(
        "host §6.4 row 3, leaves at level 2",
        CPA,
        "        if (!rmpc_pte_is_table(*slot, level))\n            continue;",
        "        if (!rmpc_pte_is_table(*slot, level))\n            break;",
        RESTORE,
    ),
    mutation(
        "host §6.4 uncovered frames",
        CHECK,
        "if (find(rmp, pfn + i, &place) && region_assigned(rmp, &place))",
        "if (!find(rmp, pfn + i, &place) || region_assigned(rmp, &place))",
        RESTORE,
    ),
    mutation(
        "host §6.4 each region of the range",
        CHECK,
        "for (uint64_t i = 0; i < pages; i += RMPC_REGION_FRAMES)",
        "for (uint64_t i = 0; i < pages; i += pages)",
        RESTORE,
    ),
    mutation(
        "host §6.4 row 4",
        CPA,
        "    flush_all(dmap);\n    while (page != RMPC_NO_PAGE) {",
        "    while (page != RMPC_NO_PAGE) {",
        RESTORE,
    ),
)
