"""Where an RMP lies: what one covers, and where firmware would put one on a machine that has none.

:func:`place_rmp` turns any real memory map into one of an SNP host.  The sizes are rules of the hardware (rmp §1.6,
§1.7).  The position is an assumption, because firmware puts the table where its allocator finds room.  What published
hosts show (13 contiguous tables): a table lies below 4 GiB wherever one of its size finds room there (up to 1 GiB and
9 MiB), and larger ones lie near the top of memory.  So the rule here is: the highest place below 4 GiB that is large
enough, else the highest place of all.  For the three maps of ``examples/maps`` that have an RMP, of which one is made
up, that is exactly where it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rmpcore.maps import (
    MIB,
    PAGE_SIZE,
    PHYSICAL_LIMIT,
    RMP_HEAD_SIZE,
    RST_BASE,
    RST_COVERED,
    RST_ENTRIES,
    E820Type,
    MachineMap,
    MapError,
    SegmentedRmp,
)

GIB = 1 << 30
ASSUMPTION = (
    "The RMP's size is a rule of the hardware; its position is an assumption: the highest room below 4 GiB, else the "
    "highest of all."
)
"""What a placed map says of itself."""

_BOOKKEEPING = 0x4000
_LOW = 1 << 32
_MEMORY = (E820Type.USABLE, E820Type.KERNEL_RESERVED)
_SHIFTS = range(30, 52)
"""Exponents that a segment's size can have: RMP_CFG counts in bytes, a segment's entry in GiB."""


def coverage(machine_map: MachineMap) -> tuple[tuple[int, int], ...]:
    """The ranges of physical memory, (base, size), that a map's RMP has entries for (rmp §1.6, §1.7).

    Segments whose entry has reserved bits cover nothing that anyone may use."""
    if machine_map.rmp is not None:
        base, end = machine_map.rmp
        size = min(max(0, (end + 1 - base - _BOOKKEEPING) // 16) * PAGE_SIZE, PHYSICAL_LIMIT)
        return ((0, size),) if size else ()
    rmp = machine_map.segmented
    if rmp is None:
        return ()
    usable = [(index << rmp.shift, size) for index, _, size in rmp.segments() if not rmp.rst[index] >> 52]
    return tuple((base, min(size, PHYSICAL_LIMIT - base)) for base, size in usable if base < PHYSICAL_LIMIT)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass
class _Room:
    """Usable memory that is not in use when the kernel starts, as (first, end)."""

    free: list[tuple[int, int]]

    @classmethod
    def of(cls, machine_map: MachineMap) -> _Room:
        room = cls([(start, start + size) for start, size, kind in machine_map.e820 if kind == E820Type.USABLE])
        for base, size in machine_map.reserved:
            room.remove(base, size)
        return room

    def remove(self, base: int, size: int) -> None:
        pieces = [piece for low, high in self.free for piece in ((low, min(high, base)), (max(low, base + size), high))]
        self.free = sorted((low, high) for low, high in pieces if low < high)

    def highest(self, size: int, low: int, high: int) -> int | None:
        """The highest 1 MiB-aligned address between two limits at which so many bytes are free."""
        for first, end in reversed(self.free):
            base = (min(end, high) - size) // MIB * MIB
            if base >= max(first, low):
                return base
        return None

    def take(self, size: int, low: int = 0, high: int = 1 << 64) -> int | None:
        """Take room for so many bytes by the rule of position (see the top of this module)."""
        base = self.highest(size, low, min(high, _LOW))
        if base is None:
            base = self.highest(size, low, high)
        if base is not None:
            self.remove(base, size)
        return base


def _blocks(machine_map: MachineMap) -> list[tuple[int, int]]:
    """Memory as (first, end), with the firmware's own rows right above it: they are the same DRAM."""
    memory = [(base, base + size, True) for base, size in machine_map.memory]
    rows = [(start, start + size, kind in _MEMORY) for start, size, kind in machine_map.e820]
    blocks: list[tuple[int, int]] = []
    for first, end, is_memory in sorted(memory + rows):
        if blocks and first <= blocks[-1][1]:
            blocks[-1] = (blocks[-1][0], max(blocks[-1][1], end))
        elif is_memory:
            blocks.append((first, end))
    return blocks


def _carve(machine_map: MachineMap, areas: Iterable[tuple[int, int]]) -> MachineMap:
    """The map with some areas of usable memory made reserved."""
    e820, memory = list(machine_map.e820), list(machine_map.memory)
    for base, size in areas:
        row = next(row for row in e820 if row[0] <= base < row[0] + row[1])
        start, end, kind = row[0], row[0] + row[1], row[2]
        e820.remove(row)
        e820 += [
            (start, base - start, kind),
            (base, size, int(E820Type.RESERVED)),
            (base + size, end - base - size, kind),
        ]
        memory = [
            (low, high - low)
            for first, length in memory
            for low, high in ((first, min(first + length, base)), (max(first, base + size), first + length))
            if low < high
        ]
    e820 = sorted(row for row in e820 if row[1])
    top = max((start + size for start, size, kind in e820 if kind == E820Type.USABLE), default=0)
    return replace(machine_map, e820=tuple(e820), memory=tuple(memory), max_pfn=top // PAGE_SIZE)


def _place_contiguous(machine_map: MachineMap) -> MachineMap:
    top = _blocks(machine_map)[-1][1]
    size = _up(_up(top, PAGE_SIZE) // PAGE_SIZE * 16 + _BOOKKEEPING, MIB)
    base = _Room.of(machine_map).take(size)
    if base is None:
        raise MapError(f"no room for an RMP of {size >> 20} MiB in one piece of usable memory")
    return replace(_carve(machine_map, [(base, size)]), rmp=(base, base + size - 1))


def _place_segmented(machine_map: MachineMap, shift: int) -> MachineMap:
    blocks = _blocks(machine_map)
    count = _up(blocks[-1][1], 1 << shift) >> shift
    if count > RST_ENTRIES:
        raise MapError(f"segments of {1 << shift >> 30} GiB: {count} are needed, and there can be {RST_ENTRIES}")
    room = _Room.of(machine_map)
    # The firmware reserves whole MiB; only the first 20 KiB are used.
    head = room.take(_up(RMP_HEAD_SIZE, MIB))
    if head is None:
        raise MapError("no room for the RMP's base table")
    areas, rst = [(head, _up(RMP_HEAD_SIZE, MIB))], [0] * count
    for index in range(count):
        first, end = index << shift, (index + 1) << shift
        if not any(low < end and first < low + length for low, length in machine_map.memory):
            continue
        top = max(min(high, end) for low, high in blocks if low < end and first < high)
        gib = _up(top - first, GIB) >> 30
        size = gib << 22
        base = room.take(size, first, end)
        if base is None:
            base = room.take(size)
        if base is None:
            raise MapError(f"no room for the table of RMP segment {index}, {size >> 20} MiB")
        areas.append((base, size))
        rst[index] = base & RST_BASE | gib & RST_COVERED
    return replace(_carve(machine_map, areas), segmented=SegmentedRmp(head, shift << 8 | 1, tuple(rst)))


def place_rmp(machine_map: MachineMap, *, segment_shift: int | None = None) -> MachineMap:
    """The same machine with an RMP, contiguous, or in segments of 2 to the power ``segment_shift`` bytes.

    Contiguous: 16 KiB and 16 bytes for each frame up to the top of memory, rounded up to 1 MiB.  Segmented: 1 MiB for
    bookkeeping and segment table, and 4 MiB for each GiB of a segment up to its highest memory, in the memory of that
    segment where there is room.  The top of memory includes rows of the firmware that follow it without a gap.  What
    the tables take becomes reserved.  Raises :class:`MapError` when there is no room, or an RMP already."""
    if machine_map.rmp is not None or machine_map.segmented is not None:
        raise MapError("the map has an RMP already")
    if segment_shift is None:
        return _place_contiguous(machine_map)
    if segment_shift not in _SHIFTS:
        raise MapError(f"segments of 2^{segment_shift} bytes: the exponent is outside {_SHIFTS[0]}..{_SHIFTS[-1]}")
    return _place_segmented(machine_map, segment_shift)
