"""The invariants of a direct map, each with a name; whoever calls learns the first that is broken."""

from __future__ import annotations

from collections.abc import Mapping

from rmpcore.maps import DIRECT_MAP_LIMIT, PAGE_SIZE, MachineMap
from rmpcore.oracle.dmap import ADDRESSES, COUNTER, SIZE, SLOTS, DirectMap, Table
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import Memory


class BrokenError(Exception):
    """An invariant does not hold; the text is its name and where."""


def pages_counted(counters: Mapping[str, int]) -> int:
    """All that the kernel counts, in 4 KiB pages: splits and collapses only move it between the levels."""
    return sum(counters[name] * (SIZE[level] // PAGE_SIZE) for level, name in COUNTER.items())


def first_broken(
    machine_map: MachineMap, memory: Memory, dmap: DirectMap, journal: Journal, pages_at_first: int
) -> str | None:
    """The first broken invariant as "name: details", in the order of this module; None when all hold."""
    try:
        walk = Walk(memory, dmap)
        leaves = sorted(walk.leaves)
        _check_leaves(dmap, leaves)
        _check_coverage(DIRECT_MAP_LIMIT[machine_map.levels], leaves)
        _check_counts(walk, dmap, journal, pages_at_first)
        _check_mapped(dmap)
    except BrokenError as broken:
        return str(broken)
    return None


Leaf = tuple[int, int, int]
"""Offset of a leaf's first byte from PAGE_OFFSET, level, raw entry."""


class Walk:
    """One visit of all that the root reaches."""

    def __init__(self, memory: Memory, dmap: DirectMap) -> None:
        self._memory = memory
        self._dmap = dmap
        self.seen: set[int] = set()
        """Addresses of the tables visited."""
        self.leaves: list[Leaf] = []
        """Every entry of the direct map that is not zero and points to no table."""
        root = dmap.root
        if not memory.contains(root.address):
            raise BrokenError(f"root: the page at {root.address:#x} is not memory")
        self.seen.add(root.address)
        self._visit(root, 0)

    def _visit(self, table: Table, start: int) -> None:
        """One table, whose slots start at virtual address ``start``, and all below it."""
        dmap, level, size = self._dmap, table.level, SIZE[table.level]
        for index, raw in table.slots.items():
            virtual = start + index * size
            if level == dmap.root.level and index >= SLOTS // 2:
                # The upper half of the top table lies at the top of the address space.
                virtual += ADDRESSES - SLOTS * size
            if dmap.is_table(raw, level):
                self._visit(self._pointed_to(raw, level, virtual), virtual)
            elif virtual in dmap.area:
                self.leaves.append((virtual - dmap.page_offset, level, raw))

    def _pointed_to(self, raw: int, level: int, virtual: int) -> Table:
        address = self._dmap.format.read(raw, level).frame * PAGE_SIZE
        where = f"the level-{level} entry {raw:#018x} of {virtual:#x}"
        # A table is a page of memory ...
        if not self._memory.contains(address):
            raise BrokenError(f"table-page: {where} points outside memory")
        # ... and hangs in one place.
        if address in self.seen:
            raise BrokenError(f"table-shared: {where} points to a table that another entry points to")
        self.seen.add(address)
        return self._dmap.tables[address]


def _check_leaves(dmap: DirectMap, leaves: list[Leaf]) -> None:
    for offset, level, raw in leaves:
        if level not in COUNTER:
            raise BrokenError(f"leaf-level: {raw:#018x} at +{offset:#x} is a leaf of level {level}")
        entry = dmap.format.read(raw, level)
        # An entry that kept its frame but no flag cannot be read back (direct-map §1).
        if entry.flags and entry.frame != offset // PAGE_SIZE:
            raise BrokenError(f"identity: {raw:#018x} at +{offset:#x} level {level} maps frame {entry.frame:#x}")


def _check_coverage(limit: int, leaves: list[Leaf]) -> None:
    """What is mapped and what is missing between is the whole area: no leaf lies in another."""
    mapped = missing = end = 0
    for offset, level, _ in leaves:
        mapped += SIZE[level]
        missing += max(offset - end, 0)
        end = offset + SIZE[level]
    missing += max(limit - end, 0)
    if mapped + missing != limit:
        raise BrokenError(f"coverage: {mapped:#x} bytes mapped and {missing:#x} missing are not {limit:#x}")


def _check_counts(walk: Walk, dmap: DirectMap, journal: Journal, pages_at_first: int) -> None:
    if len(dmap.tables) != len(walk.seen):
        raise BrokenError(f"table-count: {len(dmap.tables)} pages are counted, {len(walk.seen)} are reached")
    pages = pages_counted(journal.counters)
    # The kernel's counters are unsigned longs, so the sum is one too.
    if (pages - pages_at_first) % (1 << 64) != 0:
        raise BrokenError(f"page-counts: the counters stand for {pages} pages, at first for {pages_at_first}")


def _check_mapped(dmap: DirectMap) -> None:
    end = 0
    for frames in dmap.mapped:
        if not end <= frames.start <= frames.stop:
            raise BrokenError(f"mapped: {frames.start:#x}-{frames.stop:#x} is not sorted after what precedes it")
        end = frames.stop
    if end > dmap.max_pfn_mapped:
        raise BrokenError(f"mapped: the ranges end at {end:#x}, past max_pfn_mapped {dmap.max_pfn_mapped:#x}")
