"""The RMP: where an entry lives, what is covered, and what hardware and kernel refuse (rmp §1.6, §1.7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from rmpcore.machine import RmpError
from rmpcore.maps import MIB, PAGE_SIZE, PHYSICAL_LIMIT, RMP_HEAD_SIZE, E820Type, MachineMap, SegmentedRmp
from rmpcore.oracle.mem import overlap, round_down, round_up
from rmpcore.oracle.profile import Hardware, Kernel
from rmpcore.oracle.rmp_entry import HYPERVISOR, RmpEntry, field

BOOKKEEPING = 0x4000
ENTRY_SIZE = 16
REGION = 512
"""Pages of a 2 MiB region."""
BLOCK = REGION * PAGE_SIZE
FRAMES = PHYSICAL_LIMIT // PAGE_SIZE
"""No frame from this one on has an entry."""
MSR_UNIT = 1 << 13
"""RMP_BASE and RMP_END hold bits 51:13."""
COUNTS = 1 << 64
"""The bookkeeping counters are quadwords."""


def region_of(pfn: int) -> range:
    """The frames of the 2 MiB region that a frame lies in."""
    first = round_down(pfn, REGION)
    return range(first, first + REGION)


class RmpTable(ABC):
    """Entries by frame, of which only those that are not zero are kept, and the counters beside them."""

    def __init__(self, areas: Iterable[range], counted: int) -> None:
        self.areas = list(areas)
        """The memory that the table takes, in bytes."""
        self.own_frames = [
            range(area.start // PAGE_SIZE, round_up(area.stop, PAGE_SIZE) // PAGE_SIZE) for area in areas
        ]
        self.entries: dict[int, RmpEntry] = {}
        self.assigned: dict[int, set[int]] = {}
        """The frames with assigned = 1, by the first frame of their 2 MiB region: what the entries say once more."""
        self.counts: dict[int, int] = {}
        """The bookkeeping counters that are not 0, by ASID."""
        self.counted = counted
        """What a 2M entry counts; 0: counters are not kept."""

    @abstractmethod
    def covered_frames(self) -> list[range]:
        """All frames that have an entry."""

    @abstractmethod
    def covered(self, pfn: int) -> bool:
        """Does the frame have an entry?"""

    def in_reserved_segment(self, pfn: int) -> bool:
        """Does the way to the frame's entry go through reserved bits?"""
        return False

    def region_covered(self, pfn: int) -> bool:
        """Does the whole 2 MiB region have entries?  Coverage ends somewhere: the last page decides."""
        return self.covered(region_of(pfn)[-1])

    def is_own(self, pfn: int) -> bool:
        """Is the page one of the table's own?"""
        return any(pfn in frames for frames in self.own_frames)

    def read(self, pfn: int) -> RmpEntry:
        return self.entries.get(pfn, HYPERVISOR)

    def write(self, pfn: int, entry: RmpEntry) -> None:
        if entry == HYPERVISOR:
            self.entries.pop(pfn, None)
        else:
            self.entries[pfn] = entry
        if entry.assigned:
            self.assigned.setdefault(pfn - pfn % REGION, set()).add(pfn)
        else:
            self.assigned_in_region(pfn).discard(pfn)

    def clear(self) -> None:
        """All entries and counters become zero."""
        self.entries.clear()
        self.assigned.clear()
        self.counts.clear()

    def assigned_in_region(self, pfn: int) -> set[int]:
        """The assigned frames of the 2 MiB region that a frame lies in."""
        return self.assigned.get(pfn - pfn % REGION, set())

    def count(self, entry: RmpEntry, times: int = 1) -> None:
        """rmp §1.6: an assigned entry with an ASID counts 1, as a 2M entry what the hardware says; ``times`` may be
        negative."""
        if self.counted and entry.assigned and entry.asid:
            each = self.counted if entry.page_size else 1
            count = (self.counts.get(entry.asid, 0) + each * times) % COUNTS
            if count:
                self.counts[entry.asid] = count
            else:
                self.counts.pop(entry.asid, None)


class ContiguousTable(RmpTable):
    """The table from RMP_BASE to RMP_END (the last byte), rmp §1.6."""

    def __init__(self, base: int, end: int, counted: int) -> None:
        super().__init__([range(base, end + 1)], counted)
        # "Coverage": the whole entry lies at or below RMP_END.
        self._frames = range(min((end + 1 - base - BOOKKEEPING) // ENTRY_SIZE, FRAMES))

    def covered_frames(self) -> list[range]:
        return [self._frames]

    def covered(self, pfn: int) -> bool:
        return pfn in self._frames


class Segment(NamedTuple):
    """One entry of the segment table that covers something."""

    number: int
    frames: range
    """The frames that it covers."""
    area: range
    """The memory of its table, in bytes."""
    reserved: bool
    """Bits of the entry are set that have to be zero."""


class SegmentedTable(RmpTable):
    """The tables of the segments, rmp §1.7."""

    def __init__(self, base: int, shift: int, segments: list[Segment], counted: int) -> None:
        super().__init__([range(base, base + RMP_HEAD_SIZE), *(segment.area for segment in segments)], counted)
        self._frames_each = (1 << shift) // PAGE_SIZE
        self._segments = {segment.number: segment for segment in segments}

    def covered_frames(self) -> list[range]:
        return [segment.frames for segment in self._segments.values() if not segment.reserved]

    def covered(self, pfn: int) -> bool:
        segment = self._segment(pfn)
        return segment is not None and not segment.reserved

    def in_reserved_segment(self, pfn: int) -> bool:
        segment = self._segment(pfn)
        return segment is not None and segment.reserved

    def _segment(self, pfn: int) -> Segment | None:
        """rmp §1.7 "lookup": i = PA >> n, and the offset has to be inside the covered size."""
        segment = self._segments.get(pfn // self._frames_each)
        return segment if segment is not None and pfn in segment.frames else None


def open_table(machine_map: MachineMap, kernel: Kernel, hardware: Hardware) -> RmpTable | None:
    """The machine's RMP, empty; None where there is no SNP.  Raises RmpError when it is refused."""
    if machine_map.segmented is not None:
        return _open_segmented(machine_map, machine_map.segmented, kernel, hardware)
    if machine_map.rmp is None:
        return None
    base, end = machine_map.rmp
    if machine_map.rmp_probed:
        _probe(base, end, machine_map.max_pfn, kernel)
    _check_arithmetic(base, end)
    return ContiguousTable(base, end, hardware.bookkeeping)


def _probe(base: int, end: int, max_pfn: int, kernel: Kernel) -> None:
    """The kernel's checks (host §1, "RMP set-up"), in order."""
    if base < MSR_UNIT or end < MSR_UNIT:
        raise RmpError(f"RMP {base:#x}-{end:#x}: memory for it was not reserved by the BIOS")
    if base > end:
        raise RmpError(f"RMP base {base:#x} is above its end {end:#x}")
    # It has to cover all memory and itself (rmp §1.6 "size needed", "self cover").
    last = round_up(end, PAGE_SIZE) if kernel.rounds_rmp_end_up else round_down(end, PAGE_SIZE)
    frames = max(max_pfn, last // PAGE_SIZE)
    needed = frames * ENTRY_SIZE + BOOKKEEPING
    size = end - base + 1
    if size < needed:
        raise RmpError(
            f"RMP {base:#x}-{end:#x} is too small: it has {size:#x} bytes, {frames:#x} frames need {needed:#x}"
        )


def _check_arithmetic(base: int, end: int) -> None:
    """Whoever placed it, a table starts on a 16-byte line and holds one entry at least."""
    if base % ENTRY_SIZE or end + 1 - base < BOOKKEEPING + ENTRY_SIZE:
        raise RmpError(f"RMP {base:#x}-{end:#x} has no whole 16-byte entry after its first 16 KiB")


def _open_segmented(machine_map: MachineMap, rmp: SegmentedRmp, kernel: Kernel, hardware: Hardware) -> SegmentedTable:
    """rmp §1.7: what the part refuses, then what the kernel refuses, in order."""
    segments = _segments(rmp, hardware.segment_cached if hardware.segment_limit else len(rmp.rst))
    _check_part(rmp, segments, hardware, machine_map.rmp_probed and not kernel.knows_segmented_rmp)
    if machine_map.rmp_probed:
        _probe_segmented(rmp, segments, hardware, machine_map.max_pfn)
    table = SegmentedTable(rmp.base, rmp.shift, segments, hardware.bookkeeping)
    if not any(table.covered_frames()):
        raise RmpError(f"segmented RMP {rmp.base:#x}: its segment table covers no frame")
    return table


def _segments(rmp: SegmentedRmp, limit: int) -> list[Segment]:
    """The segments that cover something, of the first ``limit`` entries."""
    return [
        Segment(
            index,
            overlap(
                range((index << rmp.shift) // PAGE_SIZE, ((index << rmp.shift) + covered) // PAGE_SIZE), range(FRAMES)
            ),
            # 16 bytes for each 4 KiB: 4 MiB for each GiB.
            range(base, base + covered // PAGE_SIZE * ENTRY_SIZE),
            field(rmp.rst[index], 63, 52) != 0,
        )
        for index, base, covered in rmp.segments()
        if index < limit
    ]


def _check_part(rmp: SegmentedRmp, segments: list[Segment], hardware: Hardware, unknown_to_kernel: bool) -> None:
    where = f"segmented RMP {rmp.base:#x}"
    # 1: no segmented RMP on this part, or for this kernel.
    if not hardware.segmented:
        raise RmpError(f"{where}: the part has no segmented RMP")
    if unknown_to_kernel:
        raise RmpError(f"{where}: memory for an RMP was not reserved by the BIOS, to a kernel older than 6.14")
    # 2: RMP_CFG.
    if rmp.cfg % 2 == 0 or rmp.cfg != 1 + (rmp.shift << 8):
        raise RmpError(f"{where}: RMP_CFG {rmp.cfg:#x} does not enable it, or has reserved bits")
    low, high = hardware.segment_min + hardware.segment_unit, hardware.segment_max + hardware.segment_unit
    if not low <= rmp.shift <= high:
        raise RmpError(f"{where}: segments of 2^{rmp.shift} bytes are outside the part's 2^{low} to 2^{high}")
    # 3: RMP_BASE.
    if rmp.base % MIB != 0:
        raise RmpError(f"{where}: the base is not a multiple of 1 MiB")
    # 4: reserved bits where they are found at once.
    for segment in segments:
        if hardware.segment_limit and segment.reserved:
            entry = rmp.rst[segment.number]
            raise RmpError(f"{where}: entry {segment.number} of the segment table, {entry:#x}, has reserved bits")


def _probe_segmented(rmp: SegmentedRmp, segments: list[Segment], hardware: Hardware, max_pfn: int) -> None:
    """The kernel's checks."""
    where = f"segmented RMP {rmp.base:#x}"
    # 5: nothing reserved.
    if field(rmp.base, 51, 13) == 0:
        raise RmpError(f"{where}: memory for it was not reserved by the BIOS")
    # 6: the exponent, as the kernel reads CPUID.
    if not hardware.segment_min <= rmp.shift <= hardware.segment_max:
        raise RmpError(
            f"{where}: segments of 2^{rmp.shift} bytes are outside the kernel's "
            f"2^{hardware.segment_min} to 2^{hardware.segment_max}"
        )
    # 7: the end of the last segment that begins inside memory.
    end = 0
    for segment in segments:
        if segment.frames.start < max_pfn:
            end = segment.frames.stop
    if end < max_pfn:
        raise RmpError(f"{where} covers memory up to frame {end:#x} only, which goes on to {max_pfn:#x}")


def kernel_reserved(machine_map: MachineMap, table: RmpTable | None) -> list[range]:
    """The 2 MiB blocks that the kernel keeps away from everybody else, in bytes (rmp §3.6): those which an end of a
    table cuts, as far as they hold usable memory."""
    if table is None or not machine_map.rmp_probed:
        return []
    usable = [range(start, start + size) for start, size, kind in machine_map.e820 if kind == E820Type.USABLE]
    ends = {end for area in table.areas for end in (area.start, area.stop) if end % BLOCK != 0}
    starts = sorted({round_down(end, BLOCK) for end in ends})
    blocks = [range(start, start + BLOCK) for start in starts]
    return [block for block in blocks if any(overlap(block, row) for row in usable)]
