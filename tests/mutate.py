"""Is each rule held by a test?  ``python tests/mutate.py --jobs 2`` breaks one after another.

A mutation is one change of the C core that breaks one rule of docs/direct-map.md (here), docs/rmp.md
(mutations_rmp.py) or docs/host.md, section 6 (mutations_host.py).  Each is built into an extension module of its own
(only what the change touches is compiled again), and the tests named beside it run on it: one of them has to fail.
Exit 1 if a mutation survives, or if the text that it replaces is not there exactly once (then the core has changed:
adapt it).  A process that has imported the tests, but no core, is forked for each: most are noticed within a second.
Needs a C compiler and the generated src/rmpcore/_native.c, which any build leaves behind.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mutations_host
import mutations_rmp
import pytest
from mutation import PYTEST, ROOT, Binding, Forks, Mutation, Suite, Workshop, mutation, without_core, words

PTE = "include/rmpcore/pte.h"
CPA_H = "include/rmpcore/cpa.h"
CPA = "csrc/cpa.c"
DMAP = "csrc/dmap.c"
WALK = "csrc/dmap_internal.h"
KERNEL = "csrc/kernel.c"
MEM = "csrc/mem.c"
OP = "csrc/op.c"

BOOT = "test_boot.py"
COLLAPSE = "test_collapse.py"
CHANGE = "test_cpa.py"
ENTRIES = "test_pte_rules.py"
LOOKUP = "test_lookup.py"
OPS = "test_ops.py"
SET = "test_set_memory.py"
VALIDATE = "test_validate.py"


MUTATIONS = (
    # §1
    mutation(
        "§1 a frame without P is stored inverted",
        PTE,
        "        address = ~address;\n",
        "        address = address;\n",
        ENTRIES,
    ),
    mutation(
        "§1 a reader inverts it back",
        PTE,
        "uint64_t bits = raw && !(raw & RMPC_PTE_P) ? ~raw : raw;",
        "uint64_t bits = raw;",
        ENTRIES,
    ),
    mutation(
        "§1 no flags, no inversion",
        PTE,
        "if (flags && !(flags & RMPC_PTE_P))",
        "if (!(flags & RMPC_PTE_P))",
        ENTRIES,
    ),
    mutation(
        "§1 inverted at every level in bits 51:12",
        CPA,
        "rmpc_pte_make(pa, required, c_bit); /* e */",
        "rmpc_pte_make(pa, required, c_bit) & ~(required & RMPC_PTE_P ? 0 : (size - 1) & RMPC_PTE_ADDRESS);",
        ENTRIES,
    ),
    mutation(
        "§1 frame of a large page ends at its size",
        PTE,
        "mask &= ~(rmpc_level_size(level) - 1);",
        "mask &= ~UINT64_C(0);",
        ENTRIES,
    ),
    mutation(
        "§1 without PSE the frame is 51:12",
        PTE,
        "if ((level == 2 || level == 3) && (raw & RMPC_PTE_PSE))",
        "if (level == 2 || level == 3)",
        ENTRIES,
    ),
    mutation("§1 the C-bit is no frame", PTE, "mask = RMPC_PTE_ADDRESS & ~c_bit;", "mask = RMPC_PTE_ADDRESS;", ENTRIES),
    mutation(
        "§1 large to small: PAT_LARGE to PAT",
        PTE,
        "flags & RMPC_PTE_PAT_LARGE ? RMPC_PTE_PAT : 0;",
        "0;",
        ENTRIES,
    ),
    mutation(
        "§1 large to small: PSE dropped",
        PTE,
        "(flags & ~(RMPC_PTE_PSE | RMPC_PTE_PAT_LARGE)) | pat",
        "(flags & ~RMPC_PTE_PAT_LARGE) | pat",
        ENTRIES,
    ),
    mutation(
        "§1 large to small: PAT_LARGE dropped",
        PTE,
        "(flags & ~(RMPC_PTE_PSE | RMPC_PTE_PAT_LARGE)) | pat",
        "(flags & ~RMPC_PTE_PSE) | pat",
        ENTRIES,
    ),
    mutation(
        "§1 small to large: PAT to PAT_LARGE",
        PTE,
        "flags & RMPC_PTE_PAT ? RMPC_PTE_PAT_LARGE : 0;",
        "0;",
        ENTRIES,
    ),
    mutation(
        "§1 G goes with P",
        PTE,
        "return flags & RMPC_PTE_P ? flags : flags & ~RMPC_PTE_G;",
        "return flags;",
        ENTRIES,
    ),
    mutation("§1 table pointer at boot", PTE, "UINT64_C(0x067)", "UINT64_C(0x063)", BOOT),
    mutation("§1 table pointer of a split", PTE, "UINT64_C(0x063)", "UINT64_C(0x067)", ENTRIES),
    mutation("§1 PAGE_KERNEL", PTE, "UINT64_C(0x8000000000000163)", "UINT64_C(0x8000000000000123)", ENTRIES),
    mutation(
        "§1 C-bit of a split's table pointer",
        CPA,
        "*entry = page | RMPC_PTE_SPLIT_TABLE | dmap->config.c_bit;",
        "*entry = page | RMPC_PTE_SPLIT_TABLE;",
        ENTRIES,
    ),
    mutation(
        "§1 C-bit of leaves at boot",
        DMAP,
        "return (RMPC_PTE_KERNEL | dmap->config.c_bit | ",
        "return (RMPC_PTE_KERNEL | ",
        ENTRIES,
    ),
    mutation("§1 default mask at boot", DMAP, ") & dmap->config.default_mask;", ");", ENTRIES),
    mutation(
        "§1 supported mask later",
        CPA,
        ".set = request->set & dmap->config.supported_mask,",
        ".set = request->set,",
        SET,
    ),
    mutation("§1 cache modes: UC- is the third", CPA, "{ WB, WC, UC_MINUS }", "{ WB, WC, UC_MINUS = 3 }", SET),
    mutation("§1 cache modes: WC is the second", CPA, "{ WB, WC, UC_MINUS }", "{ WB, UC_MINUS = 2, WC = 4 }", SET),
    mutation(
        "§1 cache modes are the machine's",
        CPA,
        "request.set = config->cache_modes[WC];",
        "request.set = 0x08;",
        f"{SET}::test_cache_modes",
    ),
    # §2.  Some of its rows follow from others and cannot be seen alone: widening (§2.1.2) gives "middle" and "fall"
    # their sizes again, and sees to it that no table is ever in a slot that a larger page may take.
    mutation(
        "§2.1.1 head",
        DMAP,
        "smaller(up(start, SIZE_2M), end)",
        "smaller(up(start, SIZE_2M), start)",
        BOOT,
        "test_conform.py",
        "test_lockstep.py::test_boot_of_any_map",
    ),
    mutation("§2.1.1 rise", DMAP, "smaller(up(start, SIZE_1G), last_2m)", "smaller(up(start, SIZE_2M), end)", BOOT),
    mutation(
        "§2.1.1 rise not past the last 2M line",
        DMAP,
        "(up(start, SIZE_1G), last_2m)",
        "(up(start, SIZE_1G), end)",
        BOOT,
    ),
    mutation(
        "§2.1.1 middle",
        DMAP,
        "        down(end, SIZE_1G),\n",
        "        last_2m,\n",
        BOOT,
        "test_conform.py",
        "test_lockstep.py::test_boot_of_any_map",
    ),
    mutation("§2.1.1 tail", DMAP, "sizes[] = {1, 2, 3, 2, 1}", "sizes[] = {1, 2, 3, 2, 2}", BOOT),
    mutation("§2.1.1 1 GiB pages off", DMAP, "sizes[i] < large ? sizes[i] : large", "sizes[i]", BOOT),
    mutation("§2.1.2 widening", DMAP, "piece->largest = level;", ";", BOOT),
    mutation(
        "§2.1.2 only inside one memory range",
        DMAP,
        "           end <= memory->memory[i].base + memory->memory[i].size;",
        "           end;",
        BOOT,
    ),
    mutation("§2.1.3 merging", DMAP, "pieces[i + 1].largest == piece.largest", "0", BOOT),
    mutation(
        "§2.1.4 frame of a large leaf cut to its size",
        DMAP,
        "*slot = rmpc_pte_make(start, flags, dmap->config.c_bit);",
        "*slot = rmpc_pte_make(start > piece->start ? start : piece->start, flags, dmap->config.c_bit);",
        BOOT,
    ),
    mutation(
        "§2.1.4 slots past the end are cleared",
        DMAP,
        "                *slot = 0;\n",
        "                ;\n",
        BOOT,
    ),
    mutation("§2.1.4 usable memory stays", DMAP, "row->type != RMPC_E820_USABLE && ", "", BOOT),
    mutation("§2.1.4 ACPI memory stays", DMAP, "row->type != RMPC_E820_ACPI && ", "", BOOT),
    mutation("§2.1.4 kernel-reserved memory stays", DMAP, " && row->type != RMPC_E820_KERNEL_RESERVED", "", BOOT),
    mutation(
        "§2.1.4 memory anywhere in the slot",
        DMAP,
        "if (row->size && row->base < start + size && ",
        "if (row->size && row->base <= start && ",
        BOOT,
    ),
    mutation(
        "§2.1.5 what is there counts again",
        DMAP,
        "            if (!*slot)\n                *slot = rmpc_pte_make(start, flags, dmap->config.c_bit);\n"
        "            dmap->counters.pages[level]++;",
        "            dmap->counters.pages[level] += !*slot;\n"
        "            *slot = rmpc_pte_make(start, flags, dmap->config.c_bit);",
        BOOT,
    ),
    mutation("§2.1.5 whole tables count", DMAP, "dmap->counters.pages[below] += TABLE_ENTRIES;", "", BOOT),
    mutation(
        "§2.1.6 to the last address mapped",
        DMAP,
        "boot->last >> RMPC_PAGE_SHIFT)",
        "end >> RMPC_PAGE_SHIFT)",
        BOOT,
        "test_conform.py",
        "test_lockstep.py::test_boot_of_any_map",
    ),
    mutation(
        "§2.1.6 ranges are merged", DMAP, "dmap->mapped[last].start <= end", "dmap->mapped[last].start < end", BOOT
    ),
    mutation("§2.1.6 max_pfn_mapped grows", DMAP, "        dmap->max_pfn_mapped = end;\n", "        ;\n", BOOT),
    mutation("§2.2 the first MiB first", DMAP, "map_memory(&boot, 0, FIRST_MIB);", ";", BOOT),
    mutation(
        "§2.2 start point: a free block",
        DMAP,
        "if (r == memory->reserved_count || memory->reserved[r].base >= end)",
        "if (1)",
        BOOT,
    ),
    mutation(
        "§2.2 start point: without a free block",
        DMAP,
        "return top > FIRST_MIB ? top : FIRST_MIB;",
        "return FIRST_MIB;",
        BOOT,
        "test_conform.py",
        "test_lockstep.py::test_boot_of_any_map",
    ),
    mutation("§2.2 first step 2 MiB", DMAP, "    step = SIZE_2M;\n", "    step = SIZE_1G;\n", BOOT),
    mutation(
        "§2.2 down to a multiple of the step",
        DMAP,
        "down(end - 1, step) : FIRST_MIB",
        "end - step : FIRST_MIB",
        BOOT,
        "test_conform.py",
        "test_lockstep.py::test_boot_of_any_map",
    ),
    mutation(
        "§2.2 step times 256", DMAP, "step *= 256;", "step *= 512;", BOOT, "test_lockstep.py::test_boot_of_any_map"
    ),
    mutation("§2.2 only when a step was mapped", DMAP, "        if (mapped >= step)\n", "", BOOT),
    mutation("§2.2 the rest above", DMAP, "        map_memory_in(&boot, point, top);\n", "        ;\n", BOOT),
    mutation("§2.3 high mapping has no NX", DMAP, "dmap->config.c_bit) & ~RMPC_PTE_NX;", "dmap->config.c_bit);", BOOT),
    mutation(
        "§2.3 high mapping: _text down to 2M",
        DMAP,
        "va = down(image->text, SIZE_2M);",
        "va = up(image->text, SIZE_2M);",
        BOOT,
    ),
    mutation(
        "§2.3 high mapping: _brk_end up to 2M",
        DMAP,
        "va < image->brk_end &&",
        "va < down(image->brk_end, SIZE_2M) &&",
        BOOT,
    ),
    mutation(
        "§2.3 high mapping: phys_base",
        DMAP,
        "va - RMPC_HIGH_MAP + image->phys_base, flags",
        "va - RMPC_HIGH_MAP, flags",
        BOOT,
    ),
    mutation(
        "§2.3 a table takes no reserved page",
        MEM,
        "r < pool->reserved_count && pool->reserved[r].base < pa + RMPC_PAGE_SIZE",
        "0 && pool->reserved[r].base < pa + RMPC_PAGE_SIZE",
        BOOT,
        CHANGE,
    ),
    # §3
    mutation("§3.3 level 1: the slot even if zero", WALK, "if (level > 1 && !raw)", "if (!raw)", LOOKUP),
    mutation(
        "§3.2 a not-present entry above level 1 is found",
        PTE,
        "return level > 1 && (raw & RMPC_PTE_P) && (level",
        "return level > 1 && (level",
        LOOKUP,
    ),
    mutation("§3 RW is the AND", WALK, "        all &= raw;\n", "", LOOKUP),
    mutation("§3 NX is the OR", WALK, "        any |= raw;\n", "", LOOKUP),
    # §4
    mutation(
        "§4 nothing asked for, nothing touched",
        CPA,
        "if (!run.set && !run.clear && !run.force_split)",
        "if (0)",
        f"{SET}::test_nothing_to_do",
    ),
    mutation(
        "§4 array form: n is 1",
        CPA,
        "change_chunk(run, va, pages->addresses ? 1 : pages->count - i, &done, &pfn)",
        "change_chunk(run, va, pages->count - i, &done, &pfn)",
        SET,
    ),
    mutation("§4.1 a zero entry is a hole", CPA, "if (!walk.entry || !*walk.entry)", "if (!walk.entry)", CHANGE),
    mutation("§4.1 a zero entry among others is one", CPA, "while (i < n && entry[i]) {\n", "while (i < n) {\n", SET),
    mutation(
        "§4.1 the direct map may have holes",
        CPA,
        "if (run->primary && !in_direct_map(dmap, va))",
        "if (run->primary)",
        CHANGE,
    ),
    mutation("§4.1 elsewhere -EFAULT", CPA, "if (run->primary && !in_direct_map(dmap, va))", "if (0)", CHANGE),
    mutation(
        "§4.1 alias runs take holes as done",
        CPA,
        "if (run->primary && !in_direct_map(dmap, va))",
        "if (!in_direct_map(dmap, va))",
        f"{SET}::test_alias_goes_on_after_a_hole",
    ),
    mutation(
        "§4.1 up to max_pfn_mapped",
        CPA,
        "< dmap->max_pfn_mapped << RMPC_PAGE_SHIFT;",
        "< rmpc_dmap_limit(dmap);",
        CHANGE,
    ),
    mutation(
        "§4.2 clear, then set",
        CPA,
        "protect(run->dmap, (old & ~run->clear) | run->set, va",
        "protect(run->dmap, (old | run->set) & ~run->clear, va",
        SET,
    ),
    mutation(
        "§4.2 static protections",
        CPA,
        "protect(run->dmap, (old & ~run->clear) | run->set, va, pa, RMPC_PAGE_SIZE, 0);",
        "(old & ~run->clear) | run->set;",
        SET,
    ),
    mutation("§4.2 G dropped without P", CPA, "rmpc_pte_without_protnone(new), c_bit)", "new, c_bit)", SET),
    mutation(
        "§4.2 a flush only for another value",
        CPA,
        "run->changed = run->changed || raw != *entry;",
        "run->changed = true;",
        SET,
    ),
    mutation("§4.2 a flush for another value", CPA, "run->changed = run->changed || raw != *entry;", "", SET),
    mutation(
        "§4.2 a flush only for another value, among others",
        CPA,
        "run->changed = run->changed || differ;",
        "run->changed = true;",
        SET,
    ),
    mutation("§4.2 a flush for another value, among others", CPA, "run->changed = run->changed || differ;", "", SET),
    mutation(
        "§1 an address without P may turn over, among many pages",
        CPA,
        "block[i] >> 63 & ~((block[i] | set) >> 8)",
        "1 & ~((block[i] | set) >> 8)",
        SET,
    ),
    mutation(
        "§1 G is lost without P, among many pages",
        CPA,
        "block[i] >> 63 & ~((block[i] | set) >> 8)",
        "block[i] >> 63",
        SET,
    ),
    mutation(
        "§1 G is not given without P, among many pages",
        CPA,
        "~((block[i] | set) >> 8)",
        "~(block[i] >> 8)",
        SET,
    ),
    mutation(
        "§4.2 each of many pages is looked at",
        CPA,
        "if (!(plain[0] & plain[1]))",
        "if (!plain[0])",
        SET,
    ),
    mutation("§4.2 a flush for any of many pages", CPA, "*differ |= other[0] | other[1];", "*differ |= other[1];", SET),
    mutation(
        "§1 addresses of many pages are inverted with P",
        CPA,
        "& (RMPC_PTE_P | RMPC_PTE_RW | RMPC_PTE_NX))",
        "& (RMPC_PTE_RW | RMPC_PTE_NX))",
        SET,
    ),
    mutation(
        "§4.2 W^X among many pages",
        CPA,
        "& (RMPC_PTE_P | RMPC_PTE_RW | RMPC_PTE_NX))",
        "& RMPC_PTE_P)",
        SET,
    ),
    mutation(
        "§6 image frames among others",
        CPA,
        " && !is_in(image, pfn + i))",
        ")",
        SET,
    ),
    mutation("§4.3 n ends with the large page", CPA, "    i += done;\n", "    i += done + (done == 512);\n", SET),
    mutation(
        "§4.3 required: through small form",
        CPA,
        "(rmpc_pte_to_small(flags) & ~run->clear) | run->set",
        "(flags & ~RMPC_PTE_PSE & ~run->clear) | run->set",
        SET,
        ENTRIES,
    ),
    mutation(
        "§4.3 required: without G if without P",
        CPA,
        "required = rmpc_pte_without_protnone(rmpc_pte_to_large(required));",
        "required = rmpc_pte_to_large(required);",
        ENTRIES,
    ),
    mutation(
        "§4.3 required: PSE only with P",
        CPA,
        "    if (required & RMPC_PTE_P)\n        required",
        "    required",
        ENTRIES,
    ),
    mutation(
        "§4.3a violating as it is: split",
        CPA,
        "if (protect(dmap, flags, start, pa, size, size) != flags)",
        "if (0)",
        CHANGE,
    ),
    mutation(
        "§4.3a before b",
        CPA,
        "if (protect(dmap, flags, start, pa, size, size) != flags)",
        "if (required != flags && protect(dmap, flags, start, pa, size, size) != flags)",
        CHANGE,
    ),
    mutation("§4.3a protections enforced in the split", CPA, "run->enforce = true;", "", CHANGE),
    mutation(
        "§4.3a not for the children of 1 GiB",
        CPA,
        "if (run->enforce && level == 2) {",
        "if (run->enforce) {",
        CHANGE,
    ),
    mutation(
        "§4.3a for the rest of the run",
        CPA,
        "        table = split(run, walk.entry, va, walk.level); /* step 4 */\n",
        "        table = split(run, walk.entry, va, walk.level);\n        run->enforce = false;\n",
        f"{SET}::test_enforcement_lasts_for_the_run",
    ),
    mutation(
        "§4.3a inherited by aliases",
        CPA,
        "    run.primary = false;\n    return",
        "    run.primary = false;\n    run.enforce = false;\n    return",
        f"{SET}::test_aliases_inherit_enforcement",
    ),
    mutation("§4.3b nothing to do", CPA, "if (required == flags) /* b */", "if (0)", SET),
    mutation(
        "§4.3c not exactly the page: split",
        CPA,
        "if (va != start || pages << RMPC_PAGE_SHIFT != size)",
        "if (va != start)",
        CHANGE,
    ),
    mutation(
        "§4.3d protections for the whole page: split", CPA, "if (allowed != required) /* d */", "if (0)", CHANGE, SET
    ),
    mutation(
        "§4.3d large pages in part protected",
        CPA,
        "allowed = protect(dmap, required, start, pa, size, size);",
        "allowed = protect(dmap, required, start, pa, RMPC_PAGE_SIZE, RMPC_PAGE_SIZE);",
        CHANGE,
        SET,
    ),
    mutation(
        "§4.3e exactly the page: kept",
        CPA,
        "    *walk->entry = rmpc_pte_make(pa, required, c_bit); /* e */",
        "    return false;",
        CHANGE,
    ),
    mutation("§4.3e a flush is due", CPA, "    run->changed = true;\n    return true;", "    return true;", SET),
    mutation("§4.3 forced: split", CPA, "if (!run->force_split) { /* step 3 */", "if (1) {", CHANGE),
    mutation("§4.4 -ENOMEM without a page", CPA, "return -RMPC_ENOMEM;", "return -RMPC_EFAULT;", CHANGE),
    mutation("§4.4a consecutive frames", CPA, "level == 2 ? 12 : 21", "level == 2 ? 13 : 21", ENTRIES),
    mutation(
        "§4.4a flags in small form",
        CPA,
        "        flags = rmpc_pte_to_small(flags);\n    else if",
        "        ;\n    else if",
        CHANGE,
    ),
    mutation("§4.4b 512 frames apart", CPA, "level == 2 ? 12 : 21", "12", CHANGE),
    mutation(
        "§4.4b no PSE without P", CPA, "        flags &= ~RMPC_PTE_PSE;\n    flags", "        ;\n    flags", ENTRIES
    ),
    mutation(
        "§4.4c no G without P",
        CPA,
        "    flags = rmpc_pte_without_protnone(flags);\n\n    if (run->enforce",
        "    if (run->enforce",
        ENTRIES,
    ),
    mutation(
        "§4.4c inverted one by one",
        CPA,
        "table[i] = rmpc_pte_make(address + i * size, flags, c_bit);",
        "table[i] = rmpc_pte_make(address, flags, c_bit) + i * size;",
        ENTRIES,
    ),
    mutation(
        "§4.4d only mapped frames count",
        CPA,
        "if (!rmpc_dmap_is_mapped(dmap, rmpc_frame_of(dmap, va)) || !dmap->counters.pages[level])",
        "if (!dmap->counters.pages[level])",
        CHANGE,
    ),
    mutation(
        "§4.4d by the frame at hand",
        CPA,
        "count_split(dmap, va, level);",
        "count_split(dmap, va & -rmpc_level_size(level), level);",
        SET,
    ),
    mutation("§4.4d a count of 0 stays", CPA, " || !dmap->counters.pages[level])", ")", CHANGE),
    mutation("§4.4d the old level loses 1", CPA, "    dmap->counters.pages[level]--;\n", "", CHANGE),
    mutation(
        "§4.4d the level below gains 512", CPA, "    dmap->counters.pages[level - 1] += TABLE_ENTRIES;\n", "", CHANGE
    ),
    mutation("§4.4d, §9 splits are counted", CPA, "    dmap->counters.splits[level]++;\n", "", CHANGE),
    mutation("§4.4e all TLBs are flushed", CPA, "    flush_all(dmap);\n    return table;", "    return table;", CHANGE),
    mutation("§4.5 aliases after each chunk", CPA, "if (!error && run->check_aliases)", "if (0)", CHANGE),
    mutation("§4.6 no change, no flush", CPA, "if (!request->no_flush && run.changed)", "if (!request->no_flush)", SET),
    mutation("§4.6 on error all", CPA, "if (error || run->touched_alias || ", "if (run->touched_alias || ", SET),
    mutation("§4.6 with aliases all", CPA, "if (error || run->touched_alias || ", "if (error || ", SET),
    mutation("§4.6 many pages all", CPA, " || pages->count > RMPC_FLUSH_CEILING)", ")", SET),
    mutation("§4.6 33 are not many", CPA_H, "#define RMPC_FLUSH_CEILING 33", "#define RMPC_FLUSH_CEILING 32", SET),
    mutation("§4.6 34 are many", CPA_H, "#define RMPC_FLUSH_CEILING 33", "#define RMPC_FLUSH_CEILING 34", SET),
    mutation("§4.6 an array entry by entry", CPA, "events = pages->addresses ? pages->count : 1;", "events = 1;", SET),
    mutation(
        "§4.6 a cache mode set: caches",
        CPA,
        "const bool cache = run->set & CACHE_MODE;",
        "const bool cache = false;",
        SET,
    ),
    mutation(
        "§4.6 not for one cleared",
        CPA,
        "cache = run->set & CACHE_MODE;",
        "cache = (run->set | run->clear) & CACHE_MODE;",
        SET,
    ),
    mutation("§4.6 all caches on error", CPA, "if (cache && error) {", "if (0) {", SET),
    mutation("§4.6 caches on error only with a mode", CPA, "if (cache && error) {", "if (error) {", SET),
    mutation("§4.6 lines of present pages", CPA, "walk->entry && (*walk->entry & RMPC_PTE_P)", "walk->entry", SET),
    # W^X, as the kernel complains from 6.1 on
    mutation("§4 W^X: only when RW or NX changes", CPA, "((old ^ new) & both) && ", "", SET),
    mutation("§4 W^X: RW without NX", CPA, "(new & both) == RMPC_PTE_RW && ", "(new & RMPC_PTE_RW) && ", SET),
    mutation("§4 W^X: RW above", CPA, " && walk->rw &&", " &&", SET),
    mutation("§4 W^X: no NX above", CPA, " !walk->nx &&", "", SET),
    mutation("§4 W^X: NX supported", CPA, "(run->dmap->config.supported_mask & RMPC_PTE_NX))", "true)", SET),
    mutation("§4 W^X: large pages", CPA, "    detect_w_and_x(run, walk, start, flags, allowed);\n", "", SET),
    mutation(
        "§4 W^X: after protections",
        CPA,
        "detect_w_and_x(run, walk, start, flags, allowed)",
        "detect_w_and_x(run, walk, start, flags, required)",
        SET,
    ),
    mutation("§4 W^X: small pages", CPA, "    detect_w_and_x(run, walk, va, old, new);\n", "", SET),
    # §5
    mutation("§5 only flags that keep P", CPA, "if (!(flags & RMPC_PTE_P) || !image->text)", "if (!image->text)", SET),
    mutation("§5 row 1: NX on text", CPA, "if (overlap(va, va + size, image->text, image->etext))", "if (0)", SET),
    mutation("§5 row 1: from _text", CPA, "image->text, image->etext))", "image->text - 1, image->etext))", SET),
    mutation("§5 row 1: up to _etext", CPA, "image->text, image->etext))", "image->text, image->etext + 1))", SET),
    mutation("§5 rows 2, 4: once read-only", CPA, "if (!dmap->kernel_readonly)", "if (0)", CHANGE),
    mutation("§5 row 2: RW on text and rodata", CPA, "if (size != large_size && overlap(", "if (0 && overlap(", SET),
    mutation("§5 row 2: not the whole large page", CPA, "if (size != large_size && overlap(", "if (overlap(", SET),
    mutation("§5 row 2: mapped large", CPA, "if (walk.entry && walk.level > 1)", "if (walk.entry)", SET),
    mutation(
        "§5 row 2: from _text",
        CPA,
        "image->text, up_2m(image->end_rodata))",
        "image->start_rodata, up_2m(image->end_rodata))",
        SET,
    ),
    mutation(
        "§5 row 2: rodata's end up to 2M",
        CPA,
        "image->text, up_2m(image->end_rodata))",
        "image->text, image->end_rodata)",
        SET,
    ),
    mutation(
        "§5 row 4: RW on frames of rodata",
        CPA,
        "if (overlap(pfn, end_pfn, rmpc_frame_of(dmap, image->start_rodata)",
        "if (0 && overlap(pfn, end_pfn, rmpc_frame_of(dmap, image->start_rodata)",
        CHANGE,
    ),
    mutation(
        "§5 row 4: from __start_rodata",
        CPA,
        "if (overlap(pfn, end_pfn, rmpc_frame_of(dmap, image->start_rodata)",
        "if (overlap(pfn, end_pfn, 1 + rmpc_frame_of(dmap, image->start_rodata)",
        SET,
    ),
    mutation(
        "§5 row 4: up to __end_rodata",
        CPA,
        "rmpc_frame_of(dmap, image->end_rodata)",
        "rmpc_frame_of(dmap, image->end_rodata) + 1",
        SET,
    ),
    mutation(
        "§5 by any part of a large page",
        CPA,
        "uint64_t end_pfn = pfn + (size >> RMPC_PAGE_SHIFT);",
        "uint64_t end_pfn = pfn + 1;",
        CHANGE,
    ),
    # §6
    mutation(
        "§6 only mapped frames", CPA, "    if (!rmpc_dmap_is_mapped(dmap, pfn))\n        return 0;\n", "", CHANGE, SET
    ),
    mutation("§6 repeat on the direct map", CPA, "    if (!in_direct_map(dmap, va)) {\n", "    if (0) {\n", SET),
    mutation(
        "§6 repeat on the high mapping",
        CPA,
        "    if (is_in(image_frames(dmap), pfn) && !(va >= image->text",
        "    if (0 && !(va >= image->text",
        SET,
    ),
    mutation(
        "§6 from the frame of _text",
        CPA,
        "{rmpc_frame_of(dmap, image->text), ",
        "{rmpc_frame_of(dmap, image->text) + 1, ",
        CHANGE,
    ),
    mutation(
        "§6 up to _brk_end",
        CPA,
        "rmpc_frame_of(dmap, up_2m(image->brk_end) - 1) + 1}",
        "rmpc_frame_of(dmap, image->brk_end) + 1}",
        CHANGE,
    ),
    mutation("§6 NX stays out of what is set", CPA, "    run.set &= ~RMPC_PTE_NX;\n", "", SET),
    mutation("§6 NX stays out of what is cleared", CPA, "    run.clear &= ~RMPC_PTE_NX;\n", "", SET),
    mutation(
        "§6 errors on the direct map count",
        CPA,
        "        if (error)\n            return error;\n    }\n    if (is_in",
        "    }\n    if (is_in",
        SET,
    ),
    mutation(
        "§6 errors on the high mapping do not",
        CPA,
        "        alias_run(run, (pfn << RMPC_PAGE_SHIFT) + RMPC_HIGH_MAP",
        "        return alias_run(run, (pfn << RMPC_PAGE_SHIFT) + RMPC_HIGH_MAP",
        CHANGE,
    ),
    mutation("§6 phys_base", CPA, "+ RMPC_HIGH_MAP - image->phys_base, pages);", "+ RMPC_HIGH_MAP, pages);", CHANGE),
    mutation(
        "§6 an alias makes a full flush (direct map)",
        CPA,
        "        run->touched_alias = true;\n        error",
        "        error",
        SET,
    ),
    mutation(
        "§6 an alias makes a full flush (high mapping)",
        CPA,
        "        run->touched_alias = true;\n        /* the",
        "        /* the",
        SET,
    ),
    mutation(
        "§6 each small page beyond the mapped part has its own alias",
        CPA,
        "(!in_direct_map(dmap, va | (rmpc_level_size(2) - 1)) || is_in(image, pfn))",
        "is_in(image, pfn)",
        SET,
    ),
    mutation("§6 an alias run is no primary run", CPA, "    run.primary = false;\n", "", SET),
    mutation(
        "§6, §10 NX alone before 6.2",
        CPA,
        "run.check_aliases = run.check_aliases && (run.set | run.clear) != RMPC_PTE_NX;",
        "",
        SET,
    ),
    mutation("§6, §10 no primary run before 6.2", CPA, "        run.primary = run.check_aliases;\n", "", SET),
    # §7
    mutation("§7 set_memory_ro", CPA, "request.clear = RMPC_PTE_RW | (config", "request.clear = 0 & (config", SET),
    mutation(
        "§7 set_memory_ro: D",
        CPA,
        "RMPC_PTE_RW | (config->kernel.clear_d_with_rw ? RMPC_PTE_D : 0);",
        "RMPC_PTE_RW;",
        SET,
    ),
    mutation("§7 set_memory_rw", CPA, "request.set = RMPC_PTE_RW;", "request.set = RMPC_PTE_RW | RMPC_PTE_D;", SET),
    mutation(
        "§7 set_memory_rox: RW",
        CPA,
        "request.clear = RMPC_PTE_RW | RMPC_PTE_D | RMPC_PTE_NX;",
        "request.clear = RMPC_PTE_D | RMPC_PTE_NX;",
        SET,
    ),
    mutation(
        "§7 set_memory_rox: D",
        CPA,
        "request.clear = RMPC_PTE_RW | RMPC_PTE_D | RMPC_PTE_NX;",
        "request.clear = RMPC_PTE_RW | RMPC_PTE_NX;",
        SET,
    ),
    mutation(
        "§7 set_memory_rox: NX",
        CPA,
        "request.clear = RMPC_PTE_RW | RMPC_PTE_D | RMPC_PTE_NX;",
        "request.clear = RMPC_PTE_RW | RMPC_PTE_D;",
        SET,
    ),
    mutation("§7 set_memory_rox: collapse", CPA, "request.collapse = config->kernel.collapse;", "", COLLAPSE),
    mutation("§7 set_memory_nx", CPA, "request.set = RMPC_PTE_NX;", "request.clear = RMPC_PTE_NX;", SET),
    mutation("§7 set_memory_x", CPA, "request.clear = RMPC_PTE_NX;", "request.set = RMPC_PTE_NX;", SET),
    mutation(
        "§7 set_memory_np",
        CPA,
        "case RMPC_SET_MEMORY_NP:\n        request.clear = RMPC_PTE_P;",
        "case RMPC_SET_MEMORY_NP:\n        request.clear = RMPC_PTE_P | RMPC_PTE_RW;",
        SET,
    ),
    mutation("§7 set_memory_p", CPA, "request.set = RMPC_PTE_P;", "request.set = RMPC_PTE_P | RMPC_PTE_G;", SET),
    mutation(
        "§7 set_memory_np_noalias",
        CPA,
        "        request.no_aliases = true;\n        request.clear = RMPC_PTE_P;",
        "        request.clear = RMPC_PTE_P;",
        SET,
    ),
    mutation("§7 set_memory_4k: forced", CPA, "        request.force_split = true;\n", "", CHANGE),
    mutation("§7 set_memory_4k: the mark", CPA, "config->kernel.mark_4k ? RMPC_PTE_KERNEL_4K : 0;", "0;", CHANGE),
    mutation("§7 set_memory_global", CPA, "request.set = RMPC_PTE_G;", "request.set = 0;", SET),
    mutation("§7 set_memory_nonglobal", CPA, "request.clear = RMPC_PTE_G;", "request.clear = 0;", SET),
    mutation(
        "§7 _set_memory_wc: two runs", CPA, "        error = change(dmap, &request);\n", "        error = 0;\n", SET
    ),
    mutation(
        "§7 _set_memory_wc: not after an error",
        CPA,
        "        if (error)\n            return error;\n        request.set = config",
        "        request.set = config",
        SET,
    ),
    mutation(
        "§7 _set_memory_wc: the second clears",
        CPA,
        "        request.set = config->cache_modes[WC];\n        request.clear = CACHE_MODE;",
        "        request.set = config->cache_modes[WC];",
        SET,
    ),
    mutation(
        "§7 _set_memory_wb",
        CPA,
        "case RMPC_SET_MEMORY_WB:\n        request.clear = CACHE_MODE;",
        "case RMPC_SET_MEMORY_WB:\n        request.clear = RMPC_PTE_PCD;",
        SET,
    ),
    mutation("§7 set_memory_encrypted", CPA, "request.set = config->c_bit;", "request.clear = config->c_bit;", SET),
    mutation("§7 set_memory_decrypted", CPA, "request.clear = config->c_bit;", "request.set = config->c_bit;", SET),
    mutation(
        "§7 set_direct_map_invalid: D",
        CPA,
        "request.clear = bits | (dmap->config.kernel.clear_d_with_rw ? RMPC_PTE_D : 0);",
        "request.clear = bits;",
        ENTRIES,
    ),
    mutation(
        "§7 set_direct_map_*: P and RW",
        CPA,
        "const uint64_t bits = RMPC_PTE_P | RMPC_PTE_RW;",
        "const uint64_t bits = RMPC_PTE_P;",
        ENTRIES,
    ),
    mutation("§7 set_direct_map_*: no aliases", CPA, "        .no_aliases = true,\n", "", CHANGE),
    mutation("§7 set_direct_map_*: no final flush", CPA, "        .no_flush = true,\n", "", CHANGE, ENTRIES),
    mutation(
        "§7 C-bit may be in a mask, frames not", OP, "if (op->gpa & RMPC_PTE_ADDRESS & ~dmap", "if (0 & ~dmap", SET
    ),
    # §8
    mutation(
        "§8 only after a change",
        CPA,
        "if (request->collapse && run.changed && !error)",
        "if (request->collapse && !error)",
        COLLAPSE,
    ),
    mutation(
        "§8 only without error",
        CPA,
        "if (request->collapse && run.changed && !error)",
        "if (request->collapse && run.changed)",
        COLLAPSE,
    ),
    mutation(
        "§8 start rounded down",
        CPA,
        "const uint64_t first = pages->va & ~(span - 1);",
        "const uint64_t first = pages->va;",
        COLLAPSE,
    ),
    mutation(
        "§8 up to the end",
        CPA,
        "(pages->count << RMPC_PAGE_SHIFT) + span - 1) / span;",
        "(pages->count << RMPC_PAGE_SHIFT)) / span;",
        COLLAPSE,
    ),
    mutation(
        "§8 no further",
        CPA,
        "(pages->count << RMPC_PAGE_SHIFT) + span - 1) / span;",
        "(pages->count << RMPC_PAGE_SHIFT) + span) / span;",
        COLLAPSE,
    ),
    mutation(
        "§8.1 the entry points to a table",
        CPA,
        "if (!slot || !rmpc_pte_is_table(*slot, level))",
        "if (!slot || !*slot)",
        COLLAPSE,
    ),
    mutation("§8.1 first frame on the line", CPA, " || address % rmpc_level_size(level))", ")", COLLAPSE),
    mutation(
        "§8.1 first without KERNEL_4K",
        CPA,
        "if (level == 2 && dmap->config.kernel.mark_4k && (flags & RMPC_PTE_KERNEL_4K))",
        "if (0)",
        COLLAPSE,
    ),
    mutation("§8.1 present", CPA, "if ((flags & leaf) != leaf || ", "if (", COLLAPSE),
    mutation(
        "§8.1 all of the others",
        CPA,
        "for (unsigned i = 1; i < TABLE_ENTRIES; i++)\n        if ((table[i] & ~ignored) !=",
        "for (unsigned i = 1; i < TABLE_ENTRIES - 1; i++)\n        if ((table[i] & ~ignored) !=",
        COLLAPSE,
    ),
    mutation(
        "§8.1 from the second on",
        CPA,
        "for (unsigned i = 1; i < TABLE_ENTRIES; i++)\n        if ((table[i] & ~ignored) !=",
        "for (unsigned i = 2; i < TABLE_ENTRIES; i++)\n        if ((table[i] & ~ignored) !=",
        COLLAPSE,
    ),
    mutation(
        "§8.1 equal flags",
        CPA,
        "if ((table[i] & ~ignored) != rmpc_pte_make(address + i * rmpc_level_size(below), flags, c_bit))",
        "if ((table[i] ^ rmpc_pte_make(address + i * rmpc_level_size(below), flags, c_bit)) & RMPC_PTE_ADDRESS)",
        COLLAPSE,
    ),
    mutation(
        "§8.1 consecutive frames",
        CPA,
        "if ((table[i] & ~ignored) != rmpc_pte_make(address + i * rmpc_level_size(below), flags, c_bit))",
        "if ((table[i] ^ rmpc_pte_make(address + i * rmpc_level_size(below), flags, c_bit)) & ~RMPC_PTE_ADDRESS)",
        COLLAPSE,
    ),
    mutation(
        "§8.2 flags in large form", CPA, "rmpc_pte_to_large(flags) | RMPC_PTE_PSE", "flags | RMPC_PTE_PSE", COLLAPSE
    ),
    mutation("§8.2 PSE", CPA, "rmpc_pte_to_large(flags) | RMPC_PTE_PSE", "rmpc_pte_to_large(flags)", COLLAPSE),
    mutation("§8.3 one level up", CPA, "            collapse(dmap, va, 3, 0, &gone);", "            ;", COLLAPSE),
    mutation(
        "§8.3 after a success",
        CPA,
        "if (collapse(dmap, va, 2, 0, &gone) && dmap",
        "if ((collapse(dmap, va, 2, 0, &gone), true) && dmap",
        COLLAPSE,
    ),
    mutation(
        "§8.3 1 GiB pages in use",
        CPA,
        " && dmap->config.large_level == 3)\n            collapse",
        ")\n            collapse",
        COLLAPSE,
    ),
    mutation("§8.4 +1", CPA, "    dmap->counters.pages[level]++;\n", "", COLLAPSE),
    mutation("§8.4 -512", CPA, "    dmap->counters.pages[level - 1] -= TABLE_ENTRIES;\n", "", COLLAPSE),
    mutation("§8.4, §9 collapses are counted", CPA, "    dmap->counters.collapses[level]++;\n", "", COLLAPSE),
    mutation(
        "§8.4 only mapped frames count",
        CPA,
        "    if (!rmpc_dmap_is_mapped(dmap, rmpc_frame_of(dmap, va)))\n        return;\n",
        "",
        COLLAPSE,
    ),
    mutation("§8.4 one flush", CPA, "    flush_all(dmap);\n    while (page", "    while (page", COLLAPSE),
    mutation(
        "§8.4 no flush without collapse",
        CPA,
        "    if (page == RMPC_NO_PAGE)\n        return;\n    flush_all",
        "    flush_all",
        COLLAPSE,
    ),
    mutation("§8 tables are given back", CPA, "        rmpc_mem_free(dmap->mem, page);\n", "", COLLAPSE),
    mutation("§8, §9 table pages are counted", CPA, "        dmap->counters.table_pages--;\n", "", COLLAPSE),
    mutation(
        "§8 the highest free page first",
        MEM,
        "if (freed != RMPC_NO_PAGE && (fresh == RMPC_NO_PAGE || freed > fresh)) {",
        "if (freed != RMPC_NO_PAGE && fresh == RMPC_NO_PAGE) {",
        COLLAPSE,
    ),
    # §10: each switch one version too late, and one too early
    *(
        mutation(
            f"§10 {field} not {when} than 6.{minor}",
            KERNEL,
            f".{field} = from(major, minor, 6, {minor})",
            f".{field} = from(major, minor, 6, {minor + step})",
            *tests,
        )
        for field, minor, tests in (
            ("rox", 2, (SET,)),
            ("primary_always", 2, (SET,)),
            ("clear_d_with_rw", 6, (ENTRIES, SET)),
            ("snp_host", 9, (OPS, "test_host.py")),
            ("set_valid", 13, (OPS, CHANGE)),
            ("mark_4k", 15, (CHANGE,)),
            ("collapse", 15, (COLLAPSE,)),
        )
        for step, when in ((1, "later"), (-1, "earlier"))
    ),
    mutation(
        "§10 nothing before 6.1",
        KERNEL,
        "!from(major, minor, 6, 1)",
        "!from(major, minor, 6, 0)",
        "test_rmp_table.py",
    ),
)


ALL_MUTATIONS = MUTATIONS + mutations_rmp.MUTATIONS + mutations_host.MUTATIONS


class Trials:
    """Each mutation gets a fork of the process."""

    def __init__(self, where: Path, jobs: int, chosen: list[Mutation]) -> None:
        self.where = where
        self.jobs = jobs
        self.chosen = chosen
        self.tests = sorted({test for each in chosen for test in each.tests})

    def try_all(self, suite: Suite) -> int:
        start = time.monotonic()
        self.suite = suite
        self.workshop = Workshop(self.where / "base", self.jobs)
        self.binding = Binding(self.where / "binding")
        healthy = [self.case(None, (test,)) for test in self.tests]
        killers = Forks(self.where, self.jobs).run([*healthy, *(self.case(each, each.tests) for each in self.chosen)])
        for killer in itertools.islice(killers, len(healthy)):
            if killer:
                print(f"without any mutation {killer} fails")
                return 1
        survivors = 0
        for each, killer in zip(self.chosen, killers, strict=True):
            survivors += not killer
            print(f"{each.rule:52} {killer or 'SURVIVES ' + ' '.join(each.tests)}", flush=True)
        print(f"{len(self.chosen)} mutations, {survivors} survive, {time.monotonic() - start:.0f} s")
        return 1 if survivors else 0

    def case(self, change: Mutation | None, tests: tuple[str, ...]) -> Callable[[Path], str]:
        """Builds the core and runs the tests on it: the first that fails, "" if none does."""

        def case(place: Path) -> str:
            if change is None:
                core = self.workshop.build(place)
            else:
                text = (ROOT / change.file).read_text().replace(change.old, change.new)
                core = self.workshop.build(place, change.file, text.encode())
            self.binding.load(core)  # what cannot be loaded is no mutation
            return self.suite.first_failure(self.select(tests, change.rule if change else ""))

        return case

    def select(self, tests: tuple[str, ...], rule: str) -> list[pytest.Item]:
        """The tests of these names.  Those that share most words with the rule are the likeliest to fail."""
        return sorted(self.suite.named(tests), key=lambda item: -len(words(rule) & words(item.nodeid)))


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--only", default="", help="mutations whose rule contains this text")
    args = parser.parse_args()
    chosen = [each for each in ALL_MUTATIONS if args.only in each.rule]
    if not chosen:
        parser.error(f"no rule contains {args.only!r}")
    stale = [each for each in chosen if (ROOT / each.file).read_text().count(each.old) != 1]
    for each in stale:
        print(f"{each.rule}: {each.file} does not have exactly once: {each.old!r}")
    if stale:
        return 1
    without_core()
    with tempfile.TemporaryDirectory(prefix="rmpcore-mutate-") as where:
        trials = Trials(Path(where), args.jobs, chosen)
        suite = Suite(trials.try_all)
        pytest.main([*PYTEST, "-k", "not oracle", *(f"tests/{test}" for test in trials.tests)], plugins=[suite])
    return 1 if suite.code is None else suite.code


if __name__ == "__main__":
    sys.exit(main())
