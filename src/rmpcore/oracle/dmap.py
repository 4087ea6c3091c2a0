"""The kernel's page tables: building the direct map at boot (direct-map §2), looking an address up (§3), and
taking them from and putting them into a State.

A table is an object with a dict of its non-zero slots.  A slot holds the raw 64 bits, as memory does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rmpcore.machine import MachineError
from rmpcore.maps import DIRECT_MAP_LIMIT, MIB, PAGE_SIZE, E820Type, KernelImage, MachineMap
from rmpcore.ops import LEVEL_NAMES
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import Memory, overlap, round_down, round_up
from rmpcore.oracle.pte import BOOT_POINTER, PAGE_KERNEL, PAGE_KERNEL_EXEC, Flags, PteFormat
from rmpcore.state import State

SIZE = {1: 1 << 12, 2: 1 << 21, 3: 1 << 30, 4: 1 << 39, 5: 1 << 48}
"""Bytes that one slot of each level covers."""
SLOTS = 512
COUNTER = {1: "direct_map_4k", 2: "direct_map_2m", 3: "direct_map_1g"}
"""The kernel's count of leaves of each level."""
CENSUS = {1: "4k", 2: "2m", 3: "1g"}
"""What a census calls the present leaves of each level."""

HIGH_BASE = 0xFFFF_FFFF_8000_0000
HIGH_MAPPING = range(HIGH_BASE, HIGH_BASE + SIZE[3])
"""The 1 GiB window that the kernel image is mapped in."""
ADDRESSES = 1 << 64
_MAPPED_WHATEVER_E820_SAYS = MIB
_STEP_GROWTH = 256
_E820_KEEPS = (E820Type.USABLE, E820Type.KERNEL_RESERVED, E820Type.ACPI)

Sizes = frozenset[int]
"""The levels of the large pages that a piece of memory may use: {}, {2} or {2, 3}."""
Row = tuple[int, int, int, int]
"""A row of a State: window, level, offset, raw."""
DIRECT_MAP_WINDOW = 0
"""The window of a row that is no part of the high mapping."""


@dataclass
class Table:
    """One page of ``SLOTS`` entries of one level."""

    address: int
    level: int
    slots: dict[int, int] = field(default_factory=dict)
    """The raw entries that are not zero."""

    def index(self, virtual: int) -> int:
        """The slot that a virtual address falls into."""
        return virtual // SIZE[self.level] % SLOTS

    def get(self, index: int) -> int:
        return self.slots.get(index, 0)

    def put(self, index: int, raw: int) -> None:
        if raw == 0:
            self.slots.pop(index, None)
        else:
            self.slots[index] = raw


@dataclass(frozen=True)
class Found:
    """What a look-up ends at."""

    table: Table
    index: int
    raw: int
    rw: bool
    """Effective RW: the AND over the levels above."""
    nx: bool
    """Effective NX: the OR over the levels above."""

    @property
    def level(self) -> int:
        return self.table.level


class DirectMap:
    """The page tables of one machine, with the kernel's lists and figures about them."""

    def __init__(self, machine_map: MachineMap, memory: Memory, journal: Journal) -> None:
        self.format = PteFormat(machine_map.c_bit)
        self.page_offset = machine_map.page_offset
        self.image: KernelImage | None = machine_map.image
        self.area = range(self.page_offset, self.page_offset + DIRECT_MAP_LIMIT[machine_map.levels])
        """Virtual addresses that belong to the direct map."""
        self.tables: dict[int, Table] = {}
        """Every table in use, by its physical address."""
        self.mapped: list[range] = []
        """Mapped frames (the kernel's pfn_mapped): sorted, merged."""
        self.max_pfn_mapped = 0
        self.kernel_readonly = False
        self._map = machine_map
        small = PAGE_KERNEL | self.format.encrypted
        # §1: boot-time entries are cut to the default mask.
        self._boot_flags = {
            level: self.format.cut(flags, machine_map.default_mask)
            for level, flags in ((1, small), (2, small | {"PSE"}), (3, small | {"PSE"}))
        }
        self._memory = memory
        self._journal = journal
        self.root: Table

    # -- addresses ----------------------------------------------------------------------------

    def virtual(self, pfn: int) -> int:
        """Where a frame is in the direct map."""
        return self.page_offset + pfn * PAGE_SIZE

    def span(self, pfn: int, pages: int, *, high: bool = False) -> range:
        """The virtual addresses of consecutive frames, in the direct map or in the high mapping."""
        start = self.high_virtual(pfn) if high else self.virtual(pfn)
        return range(start, start + pages * PAGE_SIZE)

    def high_virtual(self, pfn: int) -> int:
        """Where a frame of the kernel image is in the high mapping."""
        assert self.image is not None
        return pfn * PAGE_SIZE - self.image.phys_base + HIGH_BASE

    def image_frame(self, virtual: int) -> int:
        """The frame behind an address of the kernel image."""
        assert self.image is not None
        return (virtual - HIGH_BASE + self.image.phys_base) // PAGE_SIZE

    def is_mapped(self, pfn: int) -> bool:
        """Is the frame in the list of mapped frames?"""
        return any(pfn in frames for frames in self.mapped)

    # -- §2: building it at boot --------------------------------------------------------------

    def boot(self) -> None:
        """Make the tables as the kernel does, in its order."""
        self.root = self._new_table(self._map.levels)
        if self.image is not None:
            self._map_kernel_image(self.image)
        # §2.2: the first MiB, whatever the memory map.
        self._map_range(range(0, _MAPPED_WHATEVER_E820_SAYS))
        self._map_top_down(_MAPPED_WHATEVER_E820_SAYS, self._map.max_pfn * PAGE_SIZE)

    def _map_kernel_image(self, image: KernelImage) -> None:
        """The high mapping: 2 MiB pages from _text rounded down to _brk_end rounded up."""
        start, end = round_down(image.text, SIZE[2]), round_up(image.brk_end, SIZE[2])
        if start not in HIGH_MAPPING or end not in range(start, HIGH_MAPPING.stop + 1):
            raise MachineError(f"kernel image {image.text:#x}-{image.brk_end:#x} is not inside the high mapping")
        table = self._high_table()
        # The image's own tables are not cut to the default mask: with page-table isolation they have G.
        flags = PAGE_KERNEL_EXEC | {"PSE"} | self.format.encrypted
        for virtual in range(start, end, SIZE[2]):
            raw = self.format.write_at_boot(self.image_frame(virtual), flags, 2)
            table.put(table.index(virtual), raw)

    def _high_table(self) -> Table:
        """The level-2 table of the high mapping; what is missing on the way to it is made, from the top down."""
        table = self.root
        while table.level > 2:
            table = self._enter(table, table.index(HIGH_BASE))
        return table

    def _map_top_down(self, bottom: int, top: int) -> None:
        """§2.2: from the top of memory down to 1 MiB, in growing steps."""
        begin = last = self._start_point(bottom, top)
        step = SIZE[2]
        done = 0
        while last > bottom:
            # Down to the previous multiple of the step, not below the bottom.
            start = max(round_down(last - 1, step), bottom)
            done += self._map_memory_in(range(start, last))
            last = start
            # All that was mapped so far is at least one step: the next is 256 times as large.
            if done >= step:
                step *= _STEP_GROWTH
        self._map_memory_in(range(begin, top))

    def _start_point(self, bottom: int, top: int) -> int:
        """The end of the highest free, 2 MiB-aligned 2 MiB block; without one, the top rounded down to 2 MiB."""
        for free in reversed(self._memory.free):
            usable = overlap(free, range(bottom, top))
            end = round_down(usable.stop, SIZE[2])
            if end - SIZE[2] >= usable.start:
                return end
        return max(round_down(top, SIZE[2]), bottom)

    def _map_memory_in(self, window: range) -> int:
        """map() for the part of each memory range in the window, ascending; gives the bytes."""
        done = 0
        for ram in self._memory.ranges:
            part = overlap(ram, window)
            if part:
                self._map_range(part)
                done += part.stop - part.start
        return done

    def _map_range(self, wanted: range) -> None:
        """§2.1: map() for one range."""
        last = wanted.stop
        for piece, sizes in self._merged(self._widened(self._pieces(wanted))):
            # 4, 5: fill tables; the counters take what was visited.
            last = self._fill(self.root, piece, sizes)
        # 6: the range joins the list of mapped frames.
        self._add_mapped(range(wanted.start // PAGE_SIZE, last // PAGE_SIZE))

    def _pieces(self, wanted: range) -> Iterator[tuple[range, Sizes]]:
        """§2.1 step 1: at most five pieces, each with the sizes that it may use."""
        at, end = wanted.start, wanted.stop
        cuts: list[tuple[int, Sizes]] = [
            # Head, up to the next 2 MiB line: small pages.
            (min(round_up(at, SIZE[2]), end), self._allowed()),
            # Up to the next 1 GiB line or the last 2 MiB line: 2 MiB pages.
            (min(round_up(at, SIZE[3]), round_down(end, SIZE[2])), self._allowed(2)),
            # Whole GiBs: 1 GiB pages.
            (round_down(end, SIZE[3]), self._allowed(2, 3)),
            # The rest that is aligned to 2 MiB.
            (round_down(end, SIZE[2]), self._allowed(2)),
            # Tail: small pages.
            (end, self._allowed()),
        ]
        for cut, sizes in cuts:
            if at < cut:
                yield range(at, cut), sizes
                at = cut

    def _allowed(self, *levels: int) -> Sizes:
        """These levels as far as the machine uses such pages."""
        used = {"1G": {2, 3}, "2M": {2}, "4K": set[int]()}[self._map.large_pages]
        return frozenset(levels) & used

    def _widened(self, pieces: Iterator[tuple[range, Sizes]]) -> Iterator[tuple[range, Sizes]]:
        """§2.1 step 2: a size is allowed too when the piece, rounded outward to it, lies in one memory range."""
        for piece, sizes in pieces:
            gained = {
                level
                for level in self._allowed(2, 3) - sizes
                if self._in_one_range(round_down(piece.start, SIZE[level]), round_up(piece.stop, SIZE[level]))
            }
            yield piece, sizes | gained

    def _in_one_range(self, start: int, end: int) -> bool:
        return any(ram.start <= start and end <= ram.stop for ram in self._memory.ranges)

    @staticmethod
    def _merged(pieces: Iterator[tuple[range, Sizes]]) -> list[tuple[range, Sizes]]:
        """§2.1 step 3: neighbours with the same sizes become one."""
        merged: list[tuple[range, Sizes]] = []
        for piece, sizes in pieces:
            if merged and merged[-1][1] == sizes:
                merged[-1] = (range(merged[-1][0].start, piece.stop), sizes)
            else:
                merged.append((piece, sizes))
        return merged

    def _fill(self, table: Table, piece: range, sizes: Sizes) -> int:
        """§2.1 step 4 for one table: ``piece`` is physical.  Gives the end of the last leaf visited."""
        level, size = table.level, SIZE[table.level]
        first_slot = round_down(self.page_offset + piece.start, size) - self.page_offset
        last = piece.stop
        for slot in range(first_slot, piece.stop, size):
            index = table.index(self.page_offset + slot)
            raw = table.get(index)
            if level == 1 or level in sizes:
                # A leaf that exists is kept, and counted; else one is written, and counted.
                if raw == 0:
                    self._write_leaf(table, index, slot)
                elif self.is_table(raw, level):
                    last = self._fill(self.below(raw), overlap(piece, range(slot, slot + size)), sizes)
                    continue
                self._journal.counters[COUNTER[level]] += 1
                last = slot + size
            else:
                last = self._fill(self._enter(table, index), overlap(piece, range(slot, slot + size)), sizes)
        if level <= 3:
            self._clear_past(table, slot)
        return last

    def _write_leaf(self, table: Table, index: int, physical: int) -> None:
        raw = self.format.write_at_boot(physical // PAGE_SIZE, self._boot_flags[table.level], table.level)
        table.put(index, raw)

    def _clear_past(self, table: Table, last_slot: int) -> None:
        """Step 4, the end: slots past the piece are cleared where the e820 table has no memory to keep."""
        last_index = table.index(self.page_offset + last_slot)
        for index in [index for index in table.slots if index > last_index]:
            start = last_slot + (index - last_index) * SIZE[table.level]
            if not self._e820_keeps(range(start, start + SIZE[table.level])):
                table.put(index, 0)

    def _e820_keeps(self, span: range) -> bool:
        return any(
            kind in _E820_KEEPS and overlap(span, range(start, start + size)) for start, size, kind in self._map.e820
        )

    def _add_mapped(self, frames: range) -> None:
        """Sort and merge; max_pfn_mapped grows."""
        merged: list[range] = []
        for each in sorted([*self.mapped, frames], key=lambda r: r.start):
            if merged and each.start <= merged[-1].stop:
                merged[-1] = range(merged[-1].start, max(merged[-1].stop, each.stop))
            else:
                merged.append(each)
        self.mapped = merged
        self.max_pfn_mapped = max(self.max_pfn_mapped, frames.stop)

    # -- tables -------------------------------------------------------------------------------

    def is_table(self, raw: int, level: int) -> bool:
        """Does an entry point to a table?  Present ones do above level 1, but for the large pages of levels 2 and 3."""
        return level > 1 and self._points(self.format.read(raw, level).flags, level)

    @staticmethod
    def _points(flags: Flags, level: int) -> bool:
        return "P" in flags and not (level in (2, 3) and "PSE" in flags)

    def below(self, raw: int) -> Table:
        """The table that an entry points to."""
        return self.tables[self.format.read(raw, 4).frame * PAGE_SIZE]

    def _enter(self, table: Table, index: int) -> Table:
        """The table under a slot; a new one when there is none."""
        raw = table.get(index)
        if raw != 0 and self.is_table(raw, table.level):
            return self.below(raw)
        below = self._new_table(table.level - 1)
        table.put(index, self.format.write(below.address // PAGE_SIZE, BOOT_POINTER | self.format.encrypted))
        return below

    def _new_table(self, level: int) -> Table:
        address = self._memory.allocate()
        if address is None:
            raise MachineError("there is no free memory for the page tables")
        return self.add_table(address, level)

    def add_table(self, address: int, level: int) -> Table:
        """A page of memory becomes an empty table."""
        table = Table(address, level)
        self.tables[address] = table
        return table

    def remove_table(self, table: Table) -> None:
        """Its page is free again."""
        del self.tables[table.address]
        self._memory.release(table.address)

    # -- §3: lookup ---------------------------------------------------------------------------

    def lookup(self, virtual: int) -> Found | None:
        """Walk from the top; None: there is nothing."""
        table, rw, nx = self.root, True, False
        while True:
            index = table.index(virtual)
            raw = table.get(index)
            # At level 1 the slot itself, even if it is zero.
            if table.level == 1:
                return Found(table, index, raw, rw, nx)
            # An empty entry at any level: nothing there.
            if raw == 0:
                return None
            # A leaf, or a not-present non-empty entry: that entry and its level.
            frame, flags = self.format.read(raw, table.level)
            if not self._points(flags, table.level):
                return Found(table, index, raw, rw, nx)
            rw = rw and "RW" in flags
            nx = nx or "NX" in flags
            table = self.tables[frame * PAGE_SIZE]

    def table_for(self, virtual: int, level: int) -> Table | None:
        """The table of one level on the way to an address."""
        table = self.root
        while table.level > level:
            raw = table.get(table.index(virtual))
            if raw == 0 or not self.is_table(raw, table.level):
                return None
            table = self.below(raw)
        return table

    # -- State: out ---------------------------------------------------------------------------

    def rows(self) -> tuple[list[Row], list[Row]]:
        """Every entry that points to a table, and every other entry that is not zero, of both windows."""
        tables: list[Row] = []
        leaves: list[Row] = []
        half = SLOTS // 2
        for index in self.root.slots:
            # The upper half of the top table lies at the top of the address space.
            base = (index if index < half else index - SLOTS) * SIZE[self.root.level] % ADDRESSES
            self._collect(self.root, index, base, 0, self.area, tables, leaves)
        high = self.table_for(HIGH_BASE, 2)
        if high is not None:
            for index in high.slots:
                self._collect(high, index, HIGH_BASE + index * SIZE[2], 1, HIGH_MAPPING, tables, leaves)
        return tables, leaves

    def _collect(
        self, table: Table, index: int, base: int, window: int, area: range, tables: list[Row], leaves: list[Row]
    ) -> None:
        """The rows of one slot, which starts at ``base``, and of all below it, as far as they lie in the area."""
        if not overlap(range(base, base + SIZE[table.level]), area):
            return
        raw = table.get(index)
        row = (window, table.level, (base - area.start) % ADDRESSES, raw)
        if self.is_table(raw, table.level):
            tables.append(row)
            below = self.below(raw)
            for i in below.slots:
                self._collect(below, i, base + i * SIZE[below.level], window, area, tables, leaves)
        else:
            leaves.append(row)

    def census(self) -> dict[str, int]:
        """host §6.5: the present leaves of each size, and the 4K frames under leaves that are not present."""
        found = {**dict.fromkeys(CENSUS.values(), 0), "missing": 0}
        _, leaves = self.rows()
        for window, level, _, raw in leaves:
            if window != DIRECT_MAP_WINDOW:
                continue
            if "P" in self.format.read(raw, level).flags:
                found[CENSUS[level]] += 1
            else:
                found["missing"] += SIZE[level] // PAGE_SIZE
        return found

    # -- State: in ----------------------------------------------------------------------------

    def load(self, state: State) -> None:
        """Make the tables of a State.  Raises MachineError that names the entry which contradicts the others."""
        tables, leaves = _rows_of(state.tables), _rows_of(state.leaves)
        self._claim(state.root, "the root table")
        for row in tables:
            self._check_place(row, is_table=True)
            self._check_pointer(row)
            self._claim(self._pointed_to(row), f"the table of {_name(row)}")
        for row in leaves:
            self._check_place(row, is_table=False)
            self._check_leaf(row)
        self.root = self.add_table(state.root, self._map.levels)
        placed: set[tuple[int, int]] = set()
        for window in (0, 1):
            own_tables = [row for row in tables if row[0] == window]
            own_leaves = [row for row in leaves if row[0] == window]
            if window == 1 and (own_tables or own_leaves or self.image is not None):
                # The way to the high mapping is not part of a State: made when all else has its place.
                self._high_table()
            for row in own_tables:
                self._place(row, placed)
                self.add_table(self._pointed_to(row), row[1] - 1)
            for row in own_leaves:
                self._place(row, placed)
        self.mapped = [range(start, end) for start, end in state.mapped]
        self.max_pfn_mapped = state.max_pfn_mapped
        self.kernel_readonly = state.kernel_readonly

    def _pointed_to(self, row: Row) -> int:
        return self.format.read(row[3], row[1]).frame * PAGE_SIZE

    def _claim(self, address: int, what: str) -> None:
        if address % PAGE_SIZE != 0:
            raise MachineError(f"{what} is at {address:#x}, which is not a page's address")
        if not self._memory.contains(address):
            raise MachineError(f"{what} is at {address:#x}, outside memory")
        if self._memory.is_claimed(address):
            raise MachineError(f"{what} is at {address:#x}, where another table is")
        self._memory.claim(address)

    def _address_of(self, row: Row) -> int:
        window, _, offset, _ = row
        return (HIGH_BASE if window == 1 else self.page_offset) + offset

    def _check_place(self, row: Row, *, is_table: bool) -> None:
        window, level, _, _ = row
        if window not in (0, 1):
            raise MachineError(f"{_name(row)}: there is no window {window}")
        lowest = 2 if is_table else 1
        highest = 2 if window == 1 else self._map.levels if is_table else 3
        if level not in range(lowest, highest + 1):
            what = "points to a table" if is_table else "is a leaf"
            raise MachineError(f"{_name(row)} {what}, which it cannot at that level")
        virtual = self._address_of(row) % ADDRESSES
        if virtual % SIZE[level] != 0:
            raise MachineError(f"{_name(row)}: the offset is not the start of a slot")
        area = HIGH_MAPPING if window == 1 else self.area
        if not overlap(range(virtual, virtual + SIZE[level]), area):
            raise MachineError(f"{_name(row)} is outside its window")

    def _check_pointer(self, row: Row) -> None:
        _, level, _, raw = row
        if not self.is_table(raw, level):
            raise MachineError(f"{_name(row)} is {raw:#018x}, which does not point to a table")

    def _check_leaf(self, row: Row) -> None:
        _, level, _, raw = row
        if self.is_table(raw, level):
            raise MachineError(f"{_name(row)} is {raw:#018x}, present but not a large page")

    def _place(self, row: Row, placed: set[tuple[int, int]]) -> None:
        _, level, _, raw = row
        virtual = self._address_of(row) % ADDRESSES
        table = self.table_for(virtual, level)
        if table is None:
            raise MachineError(f"{_name(row)}: the table that should hold it is missing")
        slot = (table.address, table.index(virtual))
        if slot in placed:
            raise MachineError(f"{_name(row)} is given twice")
        placed.add(slot)
        table.put(table.index(virtual), raw)


def _rows_of(array: npt.NDArray[np.void]) -> list[Row]:
    """The rows of a State's array, from the top level down."""
    rows: list[Row] = array.tolist()
    return sorted(rows, key=lambda row: -row[1])


def _name(row: Row) -> str:
    window, level, offset, _ = row
    where = "high mapping" if window == 1 else "direct map"
    return f"{where} +{offset:#x} level {LEVEL_NAMES.get(level, level)}"
