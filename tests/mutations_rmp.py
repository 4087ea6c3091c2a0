"""What breaks the rules of docs/rmp.md, one by one, in the C core: instructions, checks, tables, firmware."""

from __future__ import annotations

from mutation import Mutation, mutation

INSN = "csrc/rmp_insn.c"
CHECK = "csrc/rmp_check.c"
CHECK_INLINE = "include/rmpcore/rmp_check.h"
TABLE = "csrc/rmp_table.c"
INTERNAL = "csrc/rmp_internal.h"
FIRMWARE = "csrc/firmware.c"
EMULATE = "csrc/emulate.c"
HOST = "csrc/snp_host.c"
KERNEL = "csrc/kernel.c"
OP = "csrc/op.c"

CASES = "test_snp_consistency.py"
MATRIX = "test_transitions.py"
SEGMENTS = "test_segmented.py"
EXECUTE = "test_execute.py"
UPDATE = "test_rmpupdate.py"
SMASH = "test_psmash.py"
PLACE = "test_rmp_table.py"


HOST_CHECK = (
    "static struct rmpc_outcome check_host(const struct rmpc_rmp *rmp, const struct rmpc_access *access)\n{\n"
    "    enum rmpc_reason reason;\n\n"
)


def dropped(rule: str, file: str, condition: str, *tests: str) -> Mutation:
    """A condition that never holds."""
    return mutation(rule, file, f"if ({condition})", "if (0)", *tests)


MUTATIONS: tuple[Mutation, ...] = (
    # what is decided inline
    mutation(
        "rmp §3.1 inline, own entry",
        CHECK_INLINE,
        "|| (__atomic_load_n(&rmp->entries[pfn]",
        "|| 0 && (__atomic_load_n(&rmp->entries[pfn]",
        CASES,
    ),
    mutation("rmp §3.1 inline, region", CHECK_INLINE, "return level <= 1 ||", "return 1 ||", CASES),
    mutation(
        "rmp §3.1 inline, count",
        CHECK_INLINE,
        "(RMPC_RMP_ASSIGNED | RMPC_RMP_SUBPAGE_COUNT)",
        "RMPC_RMP_ASSIGNED",
        CASES,
    ),
    mutation(
        "rmp §3.1 inline, written unchecked",
        TABLE,
        "    rmp->raw = true;\n    rmpc_set_quick",
        "    rmpc_set_quick",
        CASES,
    ),
    mutation(
        "rmp §3.1 inline, without counts", TABLE, "counted = rmp->hardware.subpage_count && ", "counted = ", CASES
    ),
    mutation("rmp §3.7 inline, in use", TABLE, "in_use = rmp->in_use_count &&", "in_use = 0 &&", CASES),
    # the table
    mutation("rmp §1.6 rounded up from 6.10", TABLE, "kernel->rmp_end_blocks ? RMPC_PAGE_SIZE - 1 : 0", "0", SEGMENTS),
    mutation("rmp §1.7 clamped", TABLE, "bytes < UINT64_C(1) << shift ? bytes :", "1 ? bytes :", SEGMENTS),
    mutation(
        "rmp §1.7 exponent",
        TABLE,
        "(msrs->cfg & RMPC_RMP_CFG_SHIFT) >> 8",
        "(msrs->cfg & RMPC_RMP_CFG_SHIFT) >> 7",
        SEGMENTS,
    ),
    mutation(
        "rmp §1.7 bounds of hardware", TABLE, "shift < hardware->segment_min + hardware->segment_unit ||", "", SEGMENTS
    ),
    mutation(
        "rmp §1.7 upper bound of hardware",
        TABLE,
        "shift > hardware->segment_max + hardware->segment_unit ||",
        "",
        SEGMENTS,
    ),
    mutation("rmp §1.7 base", TABLE, "|| msrs->base % RST_ALIGN)", ")", SEGMENTS),
    mutation(
        "rmp §1.7 other bits of RMP_CFG",
        TABLE,
        "(msrs->cfg & ~(RMPC_RMP_CFG_SEGMENTED | RMPC_RMP_CFG_SHIFT)) ||",
        "",
        SEGMENTS,
    ),
    dropped("rmp §1.7 a part without segments", TABLE, "!hardware->segmented", SEGMENTS),
    dropped("rmp §1.7 reserved bits refuse", TABLE, "rst_entry(rst, i) & RMPC_RST_RESERVED", SEGMENTS),
    mutation("rmp §1.7 reserved segments", TABLE, "segment->reserved = raw & RMPC_RST_RESERVED;", "", SEGMENTS),
    mutation(
        "rmp §1.7 NumSegReduction",
        TABLE,
        "hardware->segment_limit ? hardware->segment_cached : RMPC_RST_ENTRIES",
        "RMPC_RST_ENTRIES",
        SEGMENTS,
    ),
    dropped(
        "rmp §1.7 the kernel's bounds",
        TABLE,
        "shift < hardware->segment_min || shift > hardware->segment_max",
        SEGMENTS,
    ),
    mutation(
        "rmp §1.7 the kernel's coverage",
        TABLE,
        "return end < max_pfn << RMPC_PAGE_SHIFT ? RMPC_ERR_RMP_COVER : RMPC_OK;",
        "return RMPC_OK;",
        SEGMENTS,
    ),
    mutation(
        "rmp §1.7 segments from 6.14", TABLE, "kernel->segmented_rmp ? probe_segmented", "1 ? probe_segmented", SEGMENTS
    ),
    # RMPUPDATE and PSMASH
    dropped(
        "rmp §2.2 row 1",
        INSN,
        "cpu->mode.asid) /* row 1 */\n        return rmpc_outcome_code(RMPC_CODE_FAIL_PERMISSION);\n"
        "    if (hardware->inuse_first && touches_in_use(rmp, pfn, large)",
        UPDATE,
    ),
    mutation(
        "rmp §2.2 row 7",
        INSN,
        "if (!rmp->hardware.inuse_first && touches_in_use(rmp, pfn, large)) /* row 7 */",
        "if (0)",
        CASES,
    ),
    mutation(
        "rmp §2.2 row 7, where the switch puts it",
        INSN,
        "if (hardware->inuse_first && touches_in_use(rmp, pfn, large)) /* row 7 */",
        "if (0)",
        CASES,
    ),
    mutation(
        "rmp §2.2 row 7 of a 2 MiB page",
        INSN,
        "rmpc_in_use(rmp, first, !large ? 1 :",
        "rmpc_in_use(rmp, first, 1 ? 1 :",
        CASES,
    ),
    mutation(
        "rmp §2.2 row 9",
        INSN,
        "} else if (!(head & RMPC_RMP_SIZE_2M) && others_assigned(rmp, place)) { /* row 9 */",
        "} else if (0) {",
        UPDATE,
    ),
    mutation(
        "rmp §2.2 row 9, by a count that is kept",
        INSN,
        "if (rmp->hardware.subpage_count && place->word",
        "if (place->word",
        UPDATE,
    ),
    mutation(
        "rmp §2.2 row 9, not by a count stored by hand",
        INSN,
        "!(__atomic_load_n(place->word, __ATOMIC_RELAXED) & WORD_RAW))",
        "1)",
        CASES,
    ),
    mutation(
        "rmp §2.2 row 9, of what is not the first entry",
        INSN,
        "return load_quad(&place->head->lo) & RMPC_RMP_SUBPAGE_COUNT;",
        "return load_quad(&place->head->lo) & (RMPC_RMP_SUBPAGE_COUNT | RMPC_RMP_ASSIGNED);",
        UPDATE,
    ),
    mutation(
        "rmp §1.2 a count by hand is trusted if right", TABLE, "    return stored == count;", "    return 1;", CASES
    ),
    mutation(
        "rmp §1.2 counts by hand, and the switch",
        TABLE,
        "    if (!rmp->hardware.subpage_count)\n        return;\n    rmp->raw",
        "    rmp->raw",
        CASES,
    ),
    mutation("rmp §1.2 the count goes up", INSN, "count += count < RMPC_REGION_FRAMES - 1;", "count += 0;", UPDATE),
    mutation("rmp §1.2 the count goes down", INSN, "count -= count > 0;", "count -= 0;", UPDATE),
    mutation("rmp §1.2 the head keeps its count", INSN, "new.lo |= old.lo & RMPC_RMP_SUBPAGE_COUNT;", "", UPDATE),
    mutation("rmp §2.2 inner entries", INSN, "other = {assigned ? RMPC_RMP_ASSIGNED : 0, 0}", "other = {0, 0}", UPDATE),
    mutation("rmp §2.2 keep", INSN, "new.hi = old.hi;", "", UPDATE),
    mutation(
        "rmp §1.6 weight of a 2 MiB page", INSN, "entry.lo & RMPC_RMP_SIZE_2M ? hardware->bookkeeping : 1;", "1;", CASES
    ),
    mutation(
        "rmp §1.6 the old owner's counter",
        INSN,
        "keep_book(rmp, rmpc_rmp_asid(old), 0 - weight(hardware, old));",
        "",
        CASES,
    ),
    mutation(
        "rmp §2.3 the counter",
        INSN,
        "keep_book(rmp, rmpc_rmp_asid(old), RMPC_REGION_FRAMES - rmp->hardware.bookkeeping);",
        "",
        CASES,
    ),
    mutation(
        "rmp §2.3 row 3",
        INSN,
        "if (rmpc_in_use(rmp, pfn, RMPC_REGION_FRAMES))\n        code",
        "if (0)\n        code",
        CASES,
    ),
    mutation("rmp §2.3 gpas rise", INSN, "gpa += step;", "", SMASH),
    mutation("rmp §2.3 gpas are cut", INSN, "rest | (gpa & gpa_mask)", "rest | gpa", SMASH),
    mutation("rmp §2.3 count 511", INSN, "place->entry->lo | RMPC_RMP_SUBPAGE_COUNT)", "place->entry->lo)", SMASH),
    # guests
    mutation("rmp §2.5 row 0, no SNP guest", INSN, "|| !cpu->mode.snp) /* row 0 */", ")", MATRIX, CASES),
    mutation("rmp §2.5 row 2", INSN, "if (cpu->mode.vmpl) /* row 2 */", "if (0)", MATRIX),
    mutation(
        "rmp §2.5 rows 3, 4",
        INSN,
        "if (ecx > 1 || edx > 1 || is_misaligned(ecx, gva)) /* rows 3, 4 */",
        "if (0)",
        MATRIX,
        EXECUTE,
    ),
    mutation(
        "rmp §2.5 row 7, the nested mapping",
        INSN,
        "if ((small || page->level == 1) && target->governing.large)",
        "if (small && target->governing.large)",
        MATRIX,
        CASES,
    ),
    mutation(
        "rmp §2.5 row 7, the operand",
        INSN,
        "if ((small || page->level == 1) && target->governing.large)",
        "if (page->level == 1 && target->governing.large)",
        MATRIX,
        CASES,
    ),
    mutation("rmp §2.5 row 8", INSN, "if (large && !target->governing.large) /* row 8 */", "if (0)", MATRIX),
    mutation("rmp §2.5 row 9", INSN, "== valid; /* row 9 */", "!= valid;", MATRIX),
    mutation("rmp §2.5 rescinding resets", INSN, "if (!valid && rmp->hardware.rescind_resets)", "if (0)", CASES),
    mutation(
        "rmp §2.5 writes the governing entry",
        INSN,
        "return target->governing.large ? target->place.head : target->place.entry;",
        "return target->place.entry;",
        MATRIX,
        CASES,
    ),
    mutation("rmp §2.6 row 1, reserved permissions", INSN, "|| (rdx & PERMISSION_RESERVED << 8)", "", MATRIX, EXECUTE),
    mutation("rmp §2.6 row 2", INSN, "<= cpu->mode.vmpl) /* row 2 */", "< cpu->mode.vmpl)", MATRIX),
    mutation("rmp §2.6 row 5", INSN, "if (!(entry.lo & RMPC_RMP_VALIDATED)) /* row 5 */", "if (0)", MATRIX),
    mutation("rmp §2.6 row 6", INSN, "if (large && !target->governing.large) /* row 6 */", "if (0)", MATRIX),
    mutation("rmp §2.6 row 7", INSN, "if (asked & ~permissions_of(entry, current)) /* row 7 */", "if (0)", MATRIX),
    mutation(
        "rmp §2.6 row 8, VMSA by VMPL0 only",
        INSN,
        "    if (!current)\n        entry.lo",
        "    if (1)\n        entry.lo",
        MATRIX,
    ),
    mutation(
        "rmp §2.7 a VMPL below",
        INSN,
        "if (vmpl < cpu->mode.vmpl && rmp->hardware.rmpquery_vmpl)",
        "if (0)",
        MATRIX,
        CASES,
    ),
    mutation("rmp §2.7 the part has it", INSN, "rmp && rmp->hardware.rmpquery)", "rmp != NULL)", CASES, EXECUTE),
    mutation(
        "rmp §3.5 nested faults of instructions",
        INSN,
        "RMPC_FAULT_P | RMPC_FAULT_US | RMPC_FAULT_ENC | info",
        "RMPC_FAULT_P | RMPC_FAULT_US | info",
        MATRIX,
    ),
    # checks
    mutation(
        "rmp §3.1 governed by the head",
        INTERNAL,
        "if ((head.lo & RMPC_RMP_ASSIGNED) && (head.lo & RMPC_RMP_SIZE_2M)) {",
        "if (0) {",
        MATRIX,
        CASES,
    ),
    mutation(
        "rmp §3.1 gpa and offset",
        INTERNAL,
        "governing.offset = (uint64_t)(place->entry - place->head) << RMPC_PAGE_SHIFT;",
        "",
        MATRIX,
        CASES,
    ),
    mutation("rmp §3.1 reverse map", INTERNAL, "return RMPC_REASON_GPA;", "return RMPC_REASON_NONE;", MATRIX, CASES),
    mutation("rmp §3.1 mutable", INTERNAL, "return RMPC_REASON_IMMUTABLE;", "return RMPC_REASON_NONE;", MATRIX, CASES),
    mutation("rmp §3.1 ASID 0 owns nothing", INTERNAL, "|| !asid || rmpc_rmp_asid", "|| rmpc_rmp_asid", MATRIX, CASES),
    mutation(
        "rmp §3.1 a count stored by hand is not trusted",
        INTERNAL,
        "(WORD_RAW | WORD_BUSY))",
        "WORD_BUSY)",
        CASES,
        MATRIX,
    ),
    mutation("rmp §3.1 all 512", CHECK, "any |= load_quad(&place->head[i].lo);", "any |= 0;", CASES, MATRIX),
    mutation(
        "rmp §3.4 a 4K mapping is asked about its page only",
        CHECK,
        "return level > 1 && region_assigned(rmp, &place) ?",
        "return region_assigned(rmp, &place) ?",
        CASES,
    ),
    mutation(
        "rmp §3.2 host reads",
        CHECK,
        HOST_CHECK + "    if (access->kind == RMPC_READ || access->kind == RMPC_FETCH)",
        HOST_CHECK + "    if (access->kind == RMPC_FETCH)",
        CASES,
    ),
    mutation("rmp §3.2 walks are 4K", CHECK, "is_walk(access) ? 1 : access->level", "access->level", CASES),
    mutation(
        "rmp §3.2 fetches are private",
        CHECK,
        "access->c || access->kind == RMPC_FETCH || is_walk(access)",
        "access->c || is_walk(access)",
        CASES,
    ),
    mutation(
        "rmp §3.2 walks are private",
        CHECK,
        "access->c || access->kind == RMPC_FETCH || is_walk(access)",
        "access->c || access->kind == RMPC_FETCH",
        CASES,
    ),
    mutation("rmp §3.2 sizes", CHECK, "if (governing.large != (access->level > 1))", "if (0)", MATRIX, CASES),
    mutation("rmp §3.3 SIZEM", CHECK, "governing.large ? RMPC_FAULT_SIZEM : 0", "0", MATRIX, CASES),
    mutation("rmp §3.2 validated", CHECK, "if (!(governing.entry.lo & RMPC_RMP_VALIDATED))", "if (0)", MATRIX),
    mutation(
        "rmp §3.2 VMPL",
        CHECK,
        "if (!vmpl_allows(&rmp->hardware, access, governing.entry.hi)) {",
        "if (0) {",
        CASES,
        MATRIX,
    ),
    mutation("rmp §3.2 write without read", CHECK, "&& (!(has & MAY_WRITE) || (has & MAY_READ))", "", CASES),
    mutation(
        "rmp §3.5 FINAL and WALK",
        CHECK,
        "is_walk(access) ? RMPC_FAULT_WALK : RMPC_FAULT_FINAL",
        "RMPC_FAULT_FINAL",
        CASES,
    ),
    mutation("rmp §3.7 in use", CHECK, "|| !write || rmp", "|| 1 || rmp", CASES),
    mutation(
        "rmp §3.7 the erratum", CHECK, "(level > 1 && rmpc_in_use(rmp, pfn & ~(RMPC_REGION_FRAMES - 1), 1))", "0", CASES
    ),
    mutation(
        "rmp §3.7 the VMSA's bit", CHECK, "reason = RMPC_REASON_NOT_VMSA;", "reason = RMPC_REASON_NONE;", CASES, MATRIX
    ),
    mutation("rmp §3.7 VM_HSAVE_PA is not 0", CHECK, "reason = RMPC_REASON_NULL;", "reason = RMPC_REASON_NONE;", CASES),
    mutation(
        "rmp §3.7 VMEXIT",
        CHECK,
        "for (rmp->in_use_count--; row < &rmp->in_use[rmp->in_use_count]; row++)\n        *row = row[1];",
        "",
        CASES,
    ),
    # firmware
    mutation(
        "rmp §4.1 lock of Reclaim",
        FIRMWARE,
        "return entry.lo & RMPC_RMP_LOCK ? RMPC_PAGE_INVALID : RMPC_PAGE_RECLAIM;",
        "return RMPC_PAGE_RECLAIM;",
        MATRIX,
        CASES,
        "test_dump_states.py",
    ),
    mutation(
        "rmp §4.1 tag of Metadata",
        FIRMWARE,
        "(gpa & TAG) == TAG_METADATA && (gpa & ~TAG)",
        "(gpa & ~TAG)",
        MATRIX,
        CASES,
    ),
    mutation("rmp §4.2 SNP_INIT: holes", FIRMWARE, "    fix_holes(firmware);\n", "", CASES),
    mutation("rmp §4.2 SNP_INIT: the RMP's own pages", FIRMWARE, "    take_own(rmp);\n", "", CASES),
    mutation(
        "rmp §4.2 SNP_INIT: counts", INTERNAL, "count += place->head[i].lo & RMPC_RMP_ASSIGNED;", "count += 0;", CASES
    ),
    mutation(
        "rmp §4.2 SNP_INIT: bookkeeping",
        FIRMWARE,
        "    memset(rmp->bookkeeping, 0, RMPC_RMP_ASIDS * sizeof(*rmp->bookkeeping));\n",
        "",
        CASES,
    ),
    mutation("rmp §4.2 SNP_INIT: 0xfd00000000", FIRMWARE, ", {0xfd00000000, UINT64_C(1) << 32}};", "};", SEGMENTS),
    mutation("rmp §4.2 the table's own pages", FIRMWARE, "|| rmpc_rmp_is_own(rmp, pfn) ||", "||", CASES, MATRIX),
    mutation(
        "rmp §4.2 a guest's context",
        FIRMWARE,
        "return *guest && page->state == RMPC_PAGE_CONTEXT ?",
        "return *guest ?",
        CASES,
        MATRIX,
    ),
    mutation(
        "rmp §4.2 ASIDs are owned once",
        FIRMWARE,
        "            return RMPC_FW_ASID_OWNED;",
        "            continue;",
        CASES,
    ),
    mutation(
        "rmp §4.2 ACTIVATE and the counter",
        FIRMWARE,
        "if (hardware->bookkeeping && firmware->rmp->bookkeeping[operands->asid])",
        "if (0)",
        CASES,
    ),
    mutation(
        "rmp §4.2 LAUNCH_UPDATE validates",
        FIRMWARE,
        "(page.entry.lo & ~FIXED) | RMPC_RMP_VALIDATED |",
        "(page.entry.lo & ~FIXED) |",
        MATRIX,
    ),
    mutation(
        "rmp §4.2 LAUNCH_UPDATE: VMSA",
        FIRMWARE,
        "(operands->type == TYPE_VMSA ? RMPC_RMP_VMSA : 0);\n    hi",
        "0;\n    hi",
        MATRIX,
    ),
    mutation(
        "rmp §4.2 RECLAIM: size first",
        FIRMWARE,
        "    if (large != ((page.entry.lo & RMPC_RMP_SIZE_2M) != 0))\n        return RMPC_FW_INVALID_PAGE_SIZE;\n"
        "    TRY(check_size(&page, large));\n",
        "    TRY(check_size(&page, large));\n",
        MATRIX,
        CASES,
    ),
    mutation(
        "rmp §4.2 RECLAIM: nothing to do",
        FIRMWARE,
        "if (!(page.entry.lo & RMPC_RMP_IMMUTABLE))\n        return RMPC_FW_SUCCESS;",
        "if (0)\n        return RMPC_FW_SUCCESS;",
        MATRIX,
    ),
    mutation("rmp §4.2 RECLAIM: the tag", FIRMWARE, "        lo &= ~TAG;\n", "", MATRIX, CASES),
    mutation(
        "rmp §4.2 MOVE: records are overwritten",
        FIRMWARE,
        "    drop_records(firmware, UINT64_MAX, dst->pfn);\n    for",
        "    for",
        MATRIX,
    ),
    mutation(
        "rmp §2.1 an injected 0 is used up before the operand",
        EMULATE,
        "        rmpc_take_injected(&cpu->inject);",
        "        ;",
        EXECUTE,
    ),
    mutation(
        "rmp §4.2 MOVE: what moves",
        FIRMWARE,
        "moved = RMPC_RMP_GPA | RMPC_RMP_VMSA | RMPC_RMP_VALIDATED;",
        "moved = RMPC_RMP_GPA | RMPC_RMP_VMSA;",
        MATRIX,
        CASES,
    ),
    mutation("rmp §4.2 UNSMASH: one high quadword", FIRMWARE, "|| entry.hi != first.hi ||", "||", MATRIX, CASES),
    mutation(
        "rmp §4.2 UNSMASH: gpas rise",
        FIRMWARE,
        "(first.lo & RMPC_RMP_GPA) + (i << RMPC_PAGE_SHIFT))",
        "(entry.lo & RMPC_RMP_GPA))",
        MATRIX,
        CASES,
    ),
    mutation("rmp §4.2 UNSMASH: the others", FIRMWARE, "entry.lo &= ~(RMPC_RMP_ASID | FIXED);", "", MATRIX, CASES),
    mutation(
        "rmp §4.2 SWAP_OUT: an entry is there",
        FIRMWARE,
        "    if (record_at(firmware, address))\n        return RMPC_FW_INVALID_MDATA_ENTRY;\n",
        "",
        CASES,
        MATRIX,
    ),
    mutation(
        "rmp §4.2 SWAP_IN: another guest's",
        FIRMWARE,
        "!record || record->context != guest->pfn",
        "!record",
        CASES,
        MATRIX,
    ),
    mutation(
        "rmp §4.2 SWAP_IN uses the record up",
        FIRMWARE,
        "    drop_record(firmware, record);\n    return RMPC_FW_SUCCESS;",
        "    return RMPC_FW_SUCCESS;",
        CASES,
        MATRIX,
    ),
    mutation(
        "rmp §4.2 SET_STATE",
        FIRMWARE,
        "(struct rmpc_rmp_entry){RMPC_RMP_IMMUTABLE, page",
        "(struct rmpc_rmp_entry){FIXED, page",
        MATRIX,
        CASES,
    ),
    # the decoder
    mutation(
        "rmp §2.1 the last of f2 and f3",
        EMULATE,
        "            repeat = bytes[i];",
        "            repeat = repeat ? repeat : bytes[i];",
        EXECUTE,
    ),
    mutation("rmp §2.1 REX", EMULATE, "if (long_mode && i < size && (bytes[i] & 0xf0) == 0x40)", "if (0)", EXECUTE),
    mutation("rmp §2.1 15 bytes", EMULATE, "i < MOST_BYTES - 2 &&", "", EXECUTE),
    mutation("rmp §2.1 ZF", EMULATE, "(eax ? 0 : ZF)", "0", EXECUTE),
    mutation("rmp §2.1 PF", EMULATE, "(low & 1 ? 0 : PF)", "(low & 1 ? PF : 0)", EXECUTE),
    mutation("rmp §2.1 RIP", EMULATE, "registers->rip += decoded->length;", "", EXECUTE),
    mutation(
        "rmp §2.1 short addresses",
        EMULATE,
        "decoded->short_address || mode == RMPC_MODE_PROTECTED",
        "mode == RMPC_MODE_PROTECTED",
        EXECUTE,
    ),
    mutation(
        "rmp §2.1 modes",
        EMULATE,
        "(mode == RMPC_MODE_PROTECTED && decoded->insn != RMPC_INSN_PVALIDATE)",
        "mode == RMPC_MODE_PROTECTED",
        EXECUTE,
    ),
    # the host
    mutation(
        "host §1 RMPREAD from 6.14",
        HOST,
        "host->rmp->hardware.rmpread && host->dmap->config.kernel.segmented_rmp",
        "host->rmp->hardware.rmpread",
        CASES,
    ),
    mutation("host §1 reclaim leaks the rest", HOST, "rmpc_snp_leak_pages(host, pfn + i, pages - i);", "", CASES),
    mutation(
        "host §1 marked pages are taken back", HOST, "hang = rmpc_snp_reclaim_pages(host, pfn, i);", "hang = 0;", CASES
    ),
    mutation("host §1 writes want RW", HOST, "if (!walk.rw || !(raw & RMPC_PTE_RW))", "if (0)", CASES),
    mutation("host §1 usable blocks only", HOST, "|| usable[u].base >= block.base + size)", ")", CASES, SEGMENTS),
    *(
        mutation(
            f"direct-map §10 {field} not {when} than 6.{minor}",
            KERNEL,
            f".{field} = from(major, minor, 6, {minor})",
            f".{field} = from(major, minor, 6, {minor + step})",
            CASES,
            SEGMENTS,
        )
        for field, minor in (("rmp_end_blocks", 10), ("rmp_end_reserved", 12), ("segmented_rmp", 14))
        for step, when in ((1, "later"), (-1, "earlier"))
    ),
)
