"""direct-map §3: walking the direct map."""

from __future__ import annotations

import dataclasses

import pytest
from machines import (
    GIB,
    HOLE,
    LARGE_LEAF,
    NX,
    PC,
    RW,
    SMALL,
    SMALL_4K,
    SMALL_LA57,
    SMALL_LEAF,
    A,
    Host,
    P,
    continued,
    inverted,
    tables,
    with_leaves,
    with_tables,
)

from rmpcore.maps import PAGE_OFFSETS, MachineMap
from rmpcore.ops import Kind, Reason, Refusal, ResultFlag


def test_leaf_of_each_level(backend: str) -> None:
    """§3: a leaf above level 1 is the answer for every frame that it covers."""
    host = Host(backend, HOLE)
    assert host.leaf(0x40000) == host.leaf(0x7FFFF) == (3, GIB | LARGE_LEAF)
    host.call("set_memory_4k", pfn=0x40000, pages=1)
    assert host.leaf(0x40000) == (1, 0x40000000 | SMALL_LEAF)
    assert host.leaf(0x401FF) == (1, 0x401FF000 | SMALL_LEAF)
    assert host.leaf(0x40200) == host.leaf(0x403FF) == (2, 0x40200000 | LARGE_LEAF)
    assert host.leaf(0x80000) == (3, 2 * GIB | LARGE_LEAF)


@pytest.mark.parametrize(
    "pfn",
    [
        0xC0000,  # HOLE: an empty level-3 slot
        0xFFFFF,
        0x140000,  # beyond memory, in the same level-3 table
        1 << 27,  # an empty level-4 slot
        (1 << 34) - 1,  # the last frame that the direct map's area has room for
    ],
)
def test_nothing_there(backend: str, pfn: int) -> None:
    """§3: an empty entry at any level above 1: nothing there."""
    host = Host(backend, HOLE)
    assert host.leaf(pfn) == (0, 0)


def test_empty_level_2_slot(backend: str) -> None:
    """§3: the slot past the last 2 MiB leaf."""
    host = Host(backend)
    assert host.leaf(0x3FFF)[0] == 2
    assert host.leaf(0x4000) == (0, 0)


def test_level_1_slot_even_if_zero(backend: str) -> None:
    """§3: at level 1 the slot itself, even if it is zero: memory ends at 0x3fe0000 inside a level-1 table."""
    host = Host(backend, PC)
    assert host.leaf(0x3FDF) == (1, 0x3FDF000 | SMALL_LEAF)
    assert host.leaf(0x3FE0) == (1, 0)
    assert host.leaf(0x3FFF) == (1, 0)
    assert host.leaf(0x4000) == (0, 0)


@pytest.mark.parametrize(("map_", "pfn", "pages", "level"), [(SMALL, 0x400, 0x200, 2), (HOLE, 0x40000, 0x40000, 3)])
def test_not_present_large_entry(backend: str, map_: MachineMap, pfn: int, pages: int, level: int) -> None:
    """§3: a not-present entry that is not empty is found at its own level."""
    host = Host(backend, map_, kernel="6.13")
    host.call("set_direct_map_valid_noflush", pfn=pfn, pages=pages, valid=0)
    assert host.leaf(pfn + pages - 1) == (level, inverted(pfn << 12, NX | A))


def test_not_present_small_entry(backend: str) -> None:
    """§3: the same at level 1."""
    host = Host(backend, SMALL_4K)
    host.call("set_direct_map_invalid_noflush", pfn=0x123)
    assert host.leaf(0x123) == (1, inverted(0x123000, NX | A))


@pytest.mark.parametrize(
    ("table", "clear", "set_", "rw", "nx"),
    [
        (None, 0, 0, True, False),
        ((0, 4, 0), RW, 0, False, False),
        ((0, 3, 0), RW, 0, False, False),
        ((0, 2, 0x400000), RW, 0, False, False),
        ((0, 4, 0), 0, NX, True, True),
        ((0, 3, 0), 0, NX, True, True),
        ((0, 2, 0x400000), 0, NX, True, True),
        ((0, 3, 0), RW, NX, False, True),
    ],
)
def test_effective_rights(
    backend: str, table: tuple[int, int, int] | None, clear: int, set_: int, rw: bool, nx: bool
) -> None:
    """§3: effective RW is the AND, effective NX the OR, over the levels above the leaf."""
    host = Host(backend)
    host.call("set_memory_4k", pfn=0x400, pages=1)
    if table is not None:
        state = host.state()
        raw = tables(state)[table[1:]]
        host = continued(host, with_tables(state, {table: raw & ~clear | set_}))
    result = host.do("lookup", pfn=0x400)
    assert (result.ret, result.level, result.value) == (0, 1, 0x400000 | SMALL_LEAF)
    assert result.flags == (ResultFlag.RW if rw else 0) | (ResultFlag.NX if nx else 0)
    # host §6.3 row 2: what the host writes needs RW at each level, #PF with error 3 otherwise
    write = host.do("host_write", pfn=0x400)
    assert (write.kind, write.reason, write.value) == (
        (Kind.ALLOWED, Reason.NONE, 0) if rw else (Kind.FAULT, Reason.READ_ONLY, 3)
    )


def test_rights_of_the_levels_above_only(backend: str) -> None:
    """§3: a table two levels below the root does not count for a leaf beside it."""
    host = Host(backend)
    host.call("set_memory_4k", pfn=0x400, pages=1)
    state = host.state()
    raw = tables(state)[2, 0x400000]
    host = continued(host, with_tables(state, {(0, 2, 0x400000): raw & ~RW | NX}))
    assert host.do("lookup", pfn=0x600).flags == ResultFlag.RW


def test_own_bits_of_the_leaf_do_not_count(backend: str) -> None:
    """§3: a leaf that is read-only and not executable in itself."""
    first = Host(backend)
    host = continued(first, with_leaves(first.state(), {(0, 2, 0x400000): 0x400000 | LARGE_LEAF & ~RW}))
    result = host.do("lookup", pfn=0x400)
    assert result.value & (P | RW | NX) == P | NX
    assert result.flags == ResultFlag.RW


def test_lookup_changes_nothing(backend: str) -> None:
    """§3: looking is free: no table is made, no event given."""
    host = Host(backend, HOLE)
    before = host.state()
    host.events()
    for pfn in (0, 0x40000, 0xC0000, 1 << 30):
        host.do("lookup", pfn=pfn)
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize(("map_", "limit"), [(SMALL, 1 << 34), (SMALL_LA57, 1 << 40)])
def test_area_of_the_direct_map(backend: str, map_: MachineMap, limit: int) -> None:
    """What lies beyond the direct map's area is not modelled: refused."""
    host = Host(backend, map_)
    assert host.leaf(limit - 1) == (0, 0)
    for pfn in (limit, (1 << 64) - 1):
        result = host.do("lookup", pfn=pfn)
        assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_ARGUMENT)


@pytest.mark.parametrize(
    "page_offset", [PAGE_OFFSETS[4], 0xFFFF_9A12_4000_0000, 0xFFFF_9A00_0000_0000 + 511 * GIB, 0xFFFF_8000_0000_0000]
)
def test_any_page_offset(backend: str, page_offset: int) -> None:
    """§3: the walk is by virtual address, wherever the direct map starts."""
    host = Host(backend, dataclasses.replace(HOLE, page_offset=page_offset))
    for number in (0, 1, 2, 4):
        assert host.leaf(number << 18) == (3, number << 30 | LARGE_LEAF)
    assert host.leaf(3 << 18) == (0, 0)
    host.call("set_memory_4k", pfn=0x40201, pages=1)
    assert host.leaf(0x40201) == (1, 0x40201000 | SMALL_LEAF)
    assert host.leaf(0x40000) == (2, 0x40000000 | LARGE_LEAF)


def test_five_levels(backend: str) -> None:
    """§3: the same walk with one level more."""
    host = Host(backend, SMALL_LA57)
    assert host.leaf(0x600) == (2, 0x600000 | LARGE_LEAF)
    assert host.leaf(1 << 37) == (0, 0)
    assert host.do("lookup", pfn=0x600).flags == ResultFlag.RW
