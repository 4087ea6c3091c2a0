"""validate(): the invariants of a direct map, and the name of the first that is broken."""

from __future__ import annotations

import dataclasses

import pytest
from machines import (
    GIB,
    HOLE,
    HOLE_2M,
    IMAGE,
    IMAGE_MOVED,
    LARGE_LEAF,
    NX,
    PC,
    SMALL,
    SMALL_CBIT,
    SMALL_LA57,
    SMALL_LEAF,
    SMALL_PTI,
    SMALL_RANDOM,
    SNP,
    TINY_4K,
    A,
    Host,
    P,
    changed,
    continued,
    inverted,
    small_pages,
    with_leaves,
    with_tables,
)

from rmpcore.maps import MachineMap
from rmpcore.ops import Flavour

MAPS = {
    "small": SMALL,
    "4k": TINY_4K,
    "five levels": SMALL_LA57,
    "c-bit": SMALL_CBIT,
    "pti": SMALL_PTI,
    "random": SMALL_RANDOM,
    "pc": PC,
    "hole": HOLE,
    "hole 2m": HOLE_2M,
    "image": IMAGE,
    "moved image": IMAGE_MOVED,
    "snp": SNP,
}


def broken(host: Host) -> str:
    """The name of the invariant that validate() finds broken; empty: none."""
    line = host.machine.validate()
    if line is None:
        return ""
    name, colon, details = line.partition(": ")
    assert colon and details and "\n" not in line, line
    return name


@pytest.mark.parametrize("name", MAPS)
def test_healthy(backend: str, name: str) -> None:
    """After boot, after changes of all sorts, after a collapse, and after loading the state."""
    host = Host(backend, MAPS[name], kernel="7.3")
    assert broken(host) == ""
    host.call("set_memory_4k", pfn=0x203, pages=3)
    host.call("set_memory_ro", pfn=0x3FF, pages=0x202)
    host.call("set_memory_np", pfn=0x400, pages=0x201)
    host.call("_set_memory_wc", pfn=0x610, pages=2)
    host.change("set_memory_x", [0x233, 0x455, 0x9F], Flavour.ARRAY)
    assert broken(host) == ""
    host.call("set_memory_rox", pfn=0x800, pages=1)
    host.call("set_memory_rox", pfn=0x800, pages=0x200)
    host.call("fail_alloc")
    host.call("set_memory_ro", pfn=0xE01, pages=1)
    assert broken(host) == ""
    assert broken(continued(host, host.state())) == ""


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ((0, 2, 0x600000), 0x800000 | LARGE_LEAF),
        ((0, 2, 0x600000), inverted(0x800000, NX | A)),
        ((0, 1, 0x410000), 0x411000 | SMALL_LEAF),
        ((0, 1, 0x410000), inverted(0x411000, NX | A)),
        ((0, 1, 0x5FF000), 0x1F_F000 | P),
    ],
)
def test_identity(backend: str, key: tuple[int, int, int], raw: int) -> None:
    """A leaf of the direct map that maps another frame than its own offset; not-present ones are decoded first."""
    host = small_pages(backend)
    assert broken(continued(host, with_leaves(host.state(), {key: raw}))) == "identity"


def test_identity_of_a_giga_page(backend: str) -> None:
    host = Host(backend, HOLE)
    assert broken(continued(host, with_leaves(host.state(), {(0, 3, GIB): 2 * GIB | LARGE_LEAF}))) == "identity"


def test_identity_with_the_c_bit(backend: str) -> None:
    """The C-bit is a flag and no part of the frame, in small and large, present and inverted leaves."""
    host = small_pages(backend, SMALL_CBIT)
    rows = {
        (0, 2, 0x600000): 0x600000 | LARGE_LEAF,
        (0, 1, 0x410000): 0x410000 | SMALL_LEAF,
        (0, 1, 0x411000): inverted(0x411000, NX | A) & ~SMALL_CBIT.c_bit,
        (0, 1, 0x412000): inverted(0x412000, NX | A) | SMALL_CBIT.c_bit,
    }
    assert broken(continued(host, with_leaves(host.state(), rows))) == ""


def test_the_c_bit_is_a_flag(backend: str) -> None:
    """direct-map §1: so an entry that has no other one is not present, and has its frame inverted."""
    host = small_pages(backend, SMALL_CBIT)
    c_bit = SMALL_CBIT.c_bit
    for raw, invariant in ((inverted(0x410000, 0) | c_bit, ""), (0x410000 | c_bit, "identity")):
        assert broken(continued(host, with_leaves(host.state(), {(0, 1, 0x410000): raw}))) == invariant


def test_identity_spares_entries_without_flags(backend: str) -> None:
    """An entry that is not zero and has no flags keeps its frame upright, yet reads as not present: it says nothing
    about its frame."""
    host = small_pages(backend)
    rows = {(0, 1, 0x410000): 0x410000, (0, 1, 0x411000): 0x777000}
    assert broken(continued(host, with_leaves(host.state(), rows))) == ""


@pytest.mark.parametrize("map_", [IMAGE, IMAGE_MOVED])
def test_identity_is_about_the_direct_map(backend: str, map_: MachineMap) -> None:
    """The high mapping maps frames elsewhere, and a strange one there is nobody's business."""
    host = Host(backend, map_)
    assert broken(continued(host, with_leaves(host.state(), {(1, 2, 0x1200000): 0x600000 | 0x1E3}))) == ""


def test_page_counts(backend: str) -> None:
    """Splits and collapses move the counts without changing their sum in 4 KiB pages, even where a counter wraps."""
    rox = {pfn: 0x121 for pfn in range(0x400, 0x600)} | {0x410: SMALL_LEAF}
    first = small_pages(backend, kernel="6.15", flags=rox)
    host = continued(first, changed(first.state(), counters={"direct_map_4k": 7}))
    assert broken(host) == ""
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.counters()["direct_map_4k"] == (1 << 64) + 7 - 512
    assert broken(host) == ""
    assert broken(continued(host, host.state())) == ""


def test_page_counts_of_uncounted_splits(backend: str) -> None:
    """A split that finds no large page counted moves nothing, so nothing is broken."""
    first = Host(backend)
    host = continued(first, changed(first.state(), counters={"direct_map_2m": 0}))
    host.call("set_memory_4k", pfn=0x400, pages=1)
    assert broken(host) == ""


def test_mapped(backend: str) -> None:
    """Mapped frames beyond max_pfn_mapped."""
    first = Host(backend, HOLE)
    assert broken(continued(first, changed(first.state(), max_pfn_mapped=0x13FFFF))) == "mapped"
    assert broken(continued(first, changed(first.state(), max_pfn_mapped=0x140001))) == ""


def test_the_first_is_named(backend: str) -> None:
    """Identity comes before the mapped list."""
    host = Host(backend)
    state = with_leaves(host.state(), {(0, 2, 0x600000): 0x800000 | LARGE_LEAF})
    assert broken(continued(host, changed(state, max_pfn_mapped=1))) == "identity"


def test_empty_tables_are_fine(backend: str) -> None:
    """A hole, an empty table, a missing table: what is not mapped is missing, and nothing is wrong with that."""
    host = small_pages(backend)
    holes = {(0, 1, pfn << 12): 0 for pfn in range(0x400, 0x600)} | {(0, 2, 0x800000): 0}
    state = with_leaves(host.state(), holes)
    assert broken(continued(host, state)) == ""
    assert broken(continued(host, with_tables(state, {(0, 2, 0x400000): 0}))) == ""


def test_nothing_is_mapped(backend: str) -> None:
    """Not a table: all is missing, also where the direct map begins inside a slot of the root."""
    for map_ in (SMALL_RANDOM, SMALL_LA57):
        first = Host(backend, map_)
        state = first.state()
        host = continued(first, changed(state, tables=state.tables[:0], leaves=state.leaves[:0]))
        assert broken(host) == ""
        assert host.machine.census() == {"4k": 0, "2m": 0, "1g": 0, "missing": 0}


def test_validate_changes_nothing(backend: str) -> None:
    host = Host(backend, dataclasses.replace(IMAGE, c_bit=1 << 47), kernel="7.3")
    before = host.state()
    assert host.machine.validate() is None
    assert host.state() == before
    assert host.events() == []
