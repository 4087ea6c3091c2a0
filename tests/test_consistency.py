"""What must hold whatever happens: the list at the end of rmp §5, and invariants under random ops."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from machines import (
    ASSIGNED,
    FAIL_INPUT,
    FAIL_OVERLAP,
    FAIL_PERMISSION,
    FRAME_MASK,
    GIB,
    HOLE,
    IMMUTABLE,
    LOCK,
    MIB,
    PC,
    PSE,
    SIZE_2M,
    SMALL_CBIT,
    SMALL_LA57,
    SMALL_RANDOM,
    SNP,
    SNP_COVERED,
    SNP_HOLE,
    SNP_IMAGE,
    SUCCESS,
    VALIDATED,
    Host,
    P,
    build_map,
    leaves,
    tables,
)

from rmpcore.fuzzing.dmap_ops import frames_of, random_ops
from rmpcore.fuzzing.host_ops import HostGenerator
from rmpcore.fuzzing.rmp_ops import FOCUSES, Generator
from rmpcore.maps import MachineMap
from rmpcore.ops import EventKind, OpCode, make_op, pack_ops
from rmpcore.state import State

ASID_5 = 5 << 51
PAGES_OF = {1: 1, 2: 512, 3: 512 * 512}


# rmp §5, one by one


def test_2m_assign_then_4k_then_psmash(backend: str) -> None:
    """rmp §5: 2M assign: 511 sub-entries assigned=1, asid 0; RMPUPDATE 4K at the aligned page: 4; PSMASH, then the
    same: 0."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    assert [host.rmp(pfn) for pfn in range(0x201, 0x400)] == [(ASSIGNED, 0)] * 511
    assert host.update(0x200, assigned=1, asid=5) == FAIL_OVERLAP
    assert host.insn("PSMASH", pa=0x200000) == SUCCESS
    assert host.update(0x200, assigned=1, asid=5) == SUCCESS


def test_2m_assign_over_one_assigned_page(backend: str) -> None:
    """rmp §5: 2M assign while one 4K page of the region is assigned: 4."""
    host = Host(backend, SNP)
    host.assign(0x2FF)
    assert host.update(0x200, assigned=1, asid=5, size=1) == FAIL_OVERLAP


def test_the_simple_refusals(backend: str) -> None:
    """rmp §5: unassign with asid != 0: 1.  Any RMPUPDATE on immutable: 2.  On uncovered: 1.  Misaligned 2M: 1."""
    host = Host(backend, SNP)
    assert host.update(0x201, asid=5) == FAIL_INPUT
    host.assign(0x201, immutable=1)
    for args in ({}, {"assigned": 1, "asid": 5}, {"assigned": 1, "asid": 5, "immutable": 1}):
        assert host.update(0x201, **args) == FAIL_PERMISSION
    assert host.update(SNP_COVERED, assigned=1, asid=5) == FAIL_INPUT
    assert host.update(0x301, assigned=1, asid=5, size=1) == FAIL_INPUT


def test_guest_valid_to_pre_swap(backend: str) -> None:
    """rmp §5: Guest-Valid, RMPUPDATE with only immutable set: Pre-Swap, permissions unchanged."""
    host = Host(backend, SNP)
    host.assign(0x201, gpa=0x7000)
    guest_valid = VALIDATED | ASSIGNED | 0x7000 | ASID_5
    host.machine.write_rmp(0x201, guest_valid, 0x0703_0F1F)
    host.assign(0x201, gpa=0x7000, immutable=1)
    assert host.rmp(0x201) == (guest_valid | IMMUTABLE | LOCK, 0x0703_0F1F)


def test_psmash_of_a_guest_valid_2m(backend: str) -> None:
    """rmp §5: Guest-Valid 2M; PSMASH: 512 Guest-Valid, gpas consecutive."""
    host = Host(backend, SNP)
    host.assign(0x200, gpa=GIB, size=1)
    host.machine.write_rmp(0x200, VALIDATED | ASSIGNED | SIZE_2M | GIB | ASID_5, 0x0F)
    assert host.insn("PSMASH", pa=0x200000) == SUCCESS
    for i in range(512):
        lo, hi = host.rmp(0x200 + i)
        count = 511 << 3 if i == 0 else 0
        assert (lo, hi) == (VALIDATED | ASSIGNED | GIB + i * 0x1000 | ASID_5 | count, 0x0F)


def test_coverage_of_the_example(backend: str) -> None:
    """rmp §5: RMP_BASE 0x100000, END 0x1103FFF: PA 0xfffff000 covered, PA 0x1_0000_0000 not."""
    map_ = build_map([(32 * MIB, 32 * MIB)], rmp=(0x100000, 0x1103FFF))
    host = Host(backend, map_)
    assert host.update(0xFFFFF, assigned=1, asid=5) == SUCCESS
    assert host.update(0x100000, assigned=1, asid=5) == FAIL_INPUT


# invariants


def check_rmp(state: State, covered: int) -> None:
    """What holds for a table that only RMPUPDATE and PSMASH have written (rmp §1.2, §2.2, §2.3)."""
    entries = {pfn: (lo, hi) for pfn, lo, hi in state.rmp.tolist()}
    regions = sorted({pfn & ~0x1FF for pfn in entries})
    for region in regions:
        low = [entries.get(pfn, (0, 0))[0] for pfn in range(region, min(region + 512, covered))]
        count = low[0] >> 3 & 0x1FF
        if low[0] & SIZE_2M:
            # a 2M entry is assigned, counts nothing, and its 511 others are assigned and nothing else
            assert low[0] & ASSIGNED
            assert count == 0
            assert low[1:] == [ASSIGNED] * 511
        else:
            assert count == sum(lo & ASSIGNED for lo in low[1:])
        for lo in low:
            assert bool(lo & LOCK) == bool(lo & IMMUTABLE)
            if not lo & ASSIGNED:
                assert lo & (SIZE_2M | IMMUTABLE | 0x3FF << 51) == 0
        assert not any(lo & SIZE_2M or lo >> 3 & 0x1FF for lo in low[1:])


def check_direct_map(state: State, map_: MachineMap, weight: int) -> None:
    """What holds for tables that were built at boot and then only split, unmapped and mapped (direct-map §1, §2,
    §4)."""
    own = leaves(state)
    seen: set[int] = set()
    covered = 0
    for (level, offset), raw in own.items():
        # a leaf holds its own frame, upright when present, inverted when not
        size = PAGES_OF[level] << 12
        address = raw if raw & P else ~raw
        mask = FRAME_MASK & ~map_.c_bit
        if raw & P and level > 1:
            mask &= -size
            assert raw & PSE
        elif level > 1:
            assert not raw & PSE
        assert address & mask == offset
        assert offset % size == 0
        assert raw & P or not raw & 1 << 8
        covered += PAGES_OF[level]
        seen.add(offset >> 12)
    assert len(seen) == len(own)
    # nothing is ever lost or mapped twice: first MiB and memory, page for page
    mapped = sum(end - start for start, end in state.mapped)
    assert covered == mapped
    # a split moves one count of a large page to 512 of the next size, so the sum of pages stays what it was at boot
    counters = state.counters
    total = counters["direct_map_4k"] + 512 * counters["direct_map_2m"] + 512 * 512 * counters["direct_map_1g"]
    assert total == weight
    # each pointer leads to a page of its own, inside memory
    pages = [raw & FRAME_MASK & ~map_.c_bit for raw in (*tables(state).values(), *tables(state, 1).values())]
    pages.append(state.root)
    assert len(set(pages)) == len(pages)
    assert all(any(base <= page < base + size for base, size in map_.memory) for page in pages)


MAPS = {
    "snp": SNP,
    "snp hole": SNP_HOLE,
    "snp image": SNP_IMAGE,
    "pc": PC,
    "hole": HOLE,
    "five levels": SMALL_LA57,
    "random offset": SMALL_RANDOM,
    "c-bit": SMALL_CBIT,
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_invariants(backend: str, name: str, kernel: str) -> None:
    """After every few random ops: identity, completeness and sums of the direct map; counts and sub-entries of the
    RMP."""
    map_ = MAPS[name]
    host = Host(backend, map_, kernel=kernel, hardware="genoa")
    boot = host.counts()
    # splits of the high mapping move the same counters, so they start from the same sum
    weight = boot[0] + 512 * boot[1] + 512 * 512 * boot[2]
    covered = 0 if map_.rmp is None else (map_.rmp[1] + 1 - map_.rmp[0] - 0x4000) // 16
    rng = random.Random(len(name))
    frames = frames_of(map_)
    for _ in range(12):
        ops = [op for _ in range(25) for op in random_ops(rng, frames)]
        host.machine.run(pack_ops(ops))
        state = host.state()
        check_direct_map(state, map_, weight)
        check_rmp(state, covered)
    assert state.counters["level2_splits"] > 0
    if map_.rmp is not None:
        assert len(state.rmp) > 0


def test_counters_and_events_tell_the_same(backend: str) -> None:
    """Each instruction, flush, split, table page and leak is counted as often as it is reported."""
    host = Host(backend, SNP_IMAGE, kernel="7.3", switches={"rmpread": 1})
    before = host.counters()
    rng = random.Random(3)
    frames = frames_of(SNP_IMAGE)
    leaks = [make_op("snp_leak_pages", pfn=pfn, pages=3) for pfn in (0x601, 0x9FF)]
    host.machine.run(pack_ops([op for _ in range(600) for op in random_ops(rng, frames)] + leaks))
    after = host.counters()
    events = host.events()
    seen = Counter(EventKind(event.kind) for event in events)
    split = Counter(event.level for event in events if event.kind == EventKind.SPLIT)
    expected = {
        "rmpupdate": seen[EventKind.RMPUPDATE],
        "psmash": seen[EventKind.PSMASH],
        "rmpread": seen[EventKind.RMPREAD],
        "flush_all": seen[EventKind.FLUSH_ALL],
        "flush_pages": sum(event.b for event in events if event.kind == EventKind.FLUSH_PAGES),
        "flush_cache": sum(event.b for event in events if event.kind == EventKind.FLUSH_CACHE),
        "table_pages": seen[EventKind.TABLE_ALLOC] - seen[EventKind.TABLE_FREE],
        "leaked_pages": sum(event.b for event in events if event.kind == EventKind.LEAK),
        "level2_splits": split[2],
    }
    assert {name: after[name] - before[name] for name in expected} == expected
    assert seen[EventKind.SPLIT] == seen[EventKind.TABLE_ALLOC]
    assert all(expected.values())
    assert seen[EventKind.ALLOC_FAIL]


def test_every_op_is_reached() -> None:
    """The random ops are of every kind, so that what is checked with them is checked for all."""
    rng = random.Random(1)
    frames = frames_of(SNP)
    reached = {op.op for _ in range(2000) for op in random_ops(rng, frames)}
    reached |= {op.op for focus in FOCUSES for op in Generator(1, SNP, {}, focus).ops(5000)}
    reached |= {op.op for op in HostGenerator(1, SNP).ops(2000)}
    assert reached >= set(OpCode)
