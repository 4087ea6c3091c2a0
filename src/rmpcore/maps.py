"""A machine's memory map: what the kernel knows about memory when it builds its direct map.

:class:`MachineMap` is the one form that both machines are built from.  It is read from the files that
people have by :mod:`rmpcore.inputs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

PAGE_SIZE = 4096
MIB = 1 << 20
PHYSICAL_LIMIT = 1 << 52
"""No frame lies at or above this address (bits 51:12 of an entry)."""
DIRECT_MAP_LIMIT = {4: 1 << 46, 5: 1 << 52}
"""Bytes that the direct map can cover: 64 TiB with four levels; with five, all physical memory."""
PAGE_OFFSETS = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
"""Where the direct map starts when the kernel does not randomise it, by paging levels."""
HIGH_BASE = 0xFFFF_FFFF_8000_0000
"""Where the high mapping of the kernel image starts."""
CACHEMODES_PAT = (0x00, 0x08, 0x10, 0x18, 0x98, 0x88)
"""PWT, PCD and PAT bits of WB, WC, UC-, UC, WT, WP on a machine with PAT (direct-map rules, section 1)."""
U64_MAX = (1 << 64) - 1
RMP_HEAD_SIZE = 0x5000
"""Bytes of a segmented RMP before any entry: 16 KiB of bookkeeping and the 4 KiB segment table."""
RST_ENTRIES = 512
RST_COVERED = 0xF_FFFF
"""Bits of a segment-table entry: the covered size in GiB."""
RST_BASE = 0x000F_FFFF_FFF0_0000
"""... and the address of the segment's table."""
NEEDED_BITS = 0x000F_FFFF_FFFF_F0FF
"""What no machine's entries can do without: P to PSE, and the frame.  (NX or G may be missing.)"""


class E820Type(IntEnum):
    """Types of an e820 row that the rules tell apart (others are kept as numbers)."""

    USABLE = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5
    PMEM = 7
    KERNEL_RESERVED = 128
    SOFT_RESERVED = 0xEFFF_FFFF


class MapError(ValueError):
    """A memory map that no machine can have, or that cannot be read."""


@dataclass(frozen=True)
class KernelImage:
    """Virtual addresses of the kernel image that the rules of protection and aliases need."""

    text: int
    etext: int
    start_rodata: int
    end_rodata: int
    brk_end: int
    phys_base: int = 0
    """What the image was moved by: physical = virtual - 0xffffffff80000000 + phys_base."""


@dataclass(frozen=True)
class SegmentedRmp:
    """A segmented RMP as firmware sets it up (rmp §1.7)."""

    base: int
    """RMP_BASE: 16 KiB of bookkeeping, then the segment table (RST)."""
    cfg: int
    """RMP_CFG: bit 0 segmented, bits 13:8 the exponent of a segment's size in bytes."""
    rst: tuple[int, ...]
    """The segment table's raw entries from the first on; those that are missing are 0."""

    @property
    def shift(self) -> int:
        """A segment covers 2 to this power bytes of addresses."""
        return self.cfg >> 8 & 0x3F

    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """(index, address of its table, bytes that it covers) of each segment that covers something."""
        return tuple(
            (index, entry & RST_BASE, min((entry & RST_COVERED) << 30, 1 << self.shift))
            for index, entry in enumerate(self.rst)
            if entry & RST_COVERED
        )

    def areas(self) -> tuple[tuple[int, int], ...]:
        """(base, size) of all memory that the table takes: the first 20 KiB, then each segment's table."""
        return ((self.base, RMP_HEAD_SIZE), *((base, covered >> 8) for _, base, covered in self.segments()))


@dataclass(frozen=True)
class MachineMap:
    """Memory of one machine.  Addresses and sizes in bytes; ranges are (base, size), sorted by base.

    Raises :class:`MapError` when the parts contradict each other.
    """

    name: str
    e820: tuple[tuple[int, int, int], ...]
    """(start, size, type), as the kernel has it after its early fix-ups; rows may not overlap."""
    memory: tuple[tuple[int, int], ...]
    """RAM: whole pages of usable and kernel-reserved rows, neighbours merged."""
    reserved: tuple[tuple[int, int], ...]
    """What is already in use when the direct map is built."""
    max_pfn: int
    """One past the highest frame of usable memory."""
    levels: int = 4
    page_offset: int = PAGE_OFFSETS[4]
    large_pages: str = "1G"
    """The largest page that the direct map may use: "1G", "2M" (nogbpages) or "4K"."""
    supported_mask: int = U64_MAX
    """Entry bits that may be set (the kernel's supported PTE mask)."""
    default_mask: int = U64_MAX
    """Entry bits of the boot-time mapping (lacks G with page-table isolation)."""
    cachemodes: tuple[int, ...] = CACHEMODES_PAT
    c_bit: int = 0
    """The memory-encryption bit as a mask, 0 where encryption is off."""
    image: KernelImage | None = None
    """The kernel's image; None: no high mapping and no protected ranges."""
    rmp: tuple[int, int] | None = None
    """RMP_BASE and RMP_END (the last byte, inclusive); None: no SNP."""
    segmented: SegmentedRmp | None = None
    """A segmented RMP instead of that one."""
    rmp_probed: bool = True
    """The kernel's checks of the RMP apply.  False: a simulator put the table where it likes, and only the
    arithmetic has to work out (recordings: the table lies outside the guest's memory)."""
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.levels not in DIRECT_MAP_LIMIT:
            raise MapError(f"paging levels is {self.levels}, not 4 or 5")
        if self.large_pages not in ("1G", "2M", "4K"):
            raise MapError(f"large pages is {self.large_pages!r}, not 1G, 2M or 4K")
        previous = 0
        for start, size, kind in sorted(self.e820):
            if start < 0 or size <= 0 or start + size > 1 << 64:
                raise MapError(f"e820 row {start:#x} with size {size:#x} is not a range of addresses")
            if start < previous:
                raise MapError(f"e820 row {start:#x}-{start + size - 1:#x} (type {kind}) overlaps the row before it")
            previous = start + size
        limit = DIRECT_MAP_LIMIT[self.levels]
        for what, ranges in (("memory", self.memory), ("reserved", self.reserved)):
            previous = 0
            for base, size in ranges:
                if base < 0 or size <= 0 or base + size > PHYSICAL_LIMIT:
                    raise MapError(f"{what} range {base:#x} with size {size:#x} is not physical memory")
                if base < previous:
                    raise MapError(f"{what} range {base:#x} overlaps or precedes the range before it")
                previous = base + size
        if not self.memory:
            raise MapError("there is no usable memory")
        for base, size in self.memory:
            if base % PAGE_SIZE or size % PAGE_SIZE:
                raise MapError(f"memory range {base:#x} with size {size:#x} is not whole pages")
        top = self.memory[-1][0] + self.memory[-1][1]
        if top > limit:
            raise MapError(f"memory ends at {top:#x}, above the {limit:#x} bytes that the direct map can cover")
        if not 0 < self.max_pfn <= limit // PAGE_SIZE:
            raise MapError(f"max_pfn {self.max_pfn:#x} is outside 1..{limit // PAGE_SIZE:#x}")
        kernel_half = (1 << 64) - (1 << (12 + 9 * self.levels - 1))
        if self.page_offset % (1 << 30) or self.page_offset < kernel_half:
            raise MapError(f"page offset {self.page_offset:#x} is not a 1 GiB-aligned kernel address")
        if self.page_offset + limit > 1 << 64:
            raise MapError(f"page offset {self.page_offset:#x} leaves no room for the direct map")
        for what, mask in (("supported", self.supported_mask), ("default", self.default_mask)):
            if not 0 <= mask <= U64_MAX or ~mask & NEEDED_BITS:
                raise MapError(f"{what} mask {mask:#x} lacks bits that every entry needs")
        if len(self.cachemodes) != 6 or any(bits & ~0x98 for bits in self.cachemodes):
            raise MapError("the cache modes are not six sets of PWT, PCD and PAT bits")
        if self.c_bit and (self.c_bit & (self.c_bit - 1) or not 1 << 32 <= self.c_bit < PHYSICAL_LIMIT):
            raise MapError(f"encryption mask {self.c_bit:#x} is not one bit of an address")
        if self.rmp is not None and self.segmented is not None:
            raise MapError("the RMP is either contiguous or segmented, not both")
        if self.rmp is not None:
            self._check_rmp(*self.rmp)
        if self.segmented is not None:
            self._check_segmented(self.segmented)

    def _check_rmp(self, base: int, end: int) -> None:
        if not 0 <= base < PHYSICAL_LIMIT or not 0 <= end < PHYSICAL_LIMIT:
            raise MapError(f"RMP {base:#x}-{end:#x} is not in physical memory")
        for start, size, kind in self.e820:
            if kind != E820Type.RESERVED and start <= end and base < start + size:
                raise MapError(
                    f"RMP {base:#x}-{end:#x} overlaps e820 row {start:#x}-{start + size - 1:#x} of type {kind}"
                )
        for start, size in self.memory:
            if start <= end and base < start + size:
                raise MapError(f"RMP {base:#x}-{end:#x} overlaps memory {start:#x}-{start + size - 1:#x}")

    def _check_segmented(self, rmp: SegmentedRmp) -> None:
        if len(rmp.rst) > RST_ENTRIES:
            raise MapError(f"the RMP's segment table has {len(rmp.rst)} entries, more than {RST_ENTRIES}")
        for value in (rmp.base, rmp.cfg, *rmp.rst):
            if not 0 <= value <= U64_MAX:
                raise MapError(f"segmented RMP: {value:#x} is not a value of 64 bits")
        previous = 0
        for base, size in sorted(rmp.areas()):
            self._check_rmp(base, base + size - 1)
            if base < previous:
                raise MapError(f"segmented RMP: the area from {base:#x} overlaps another one of its own")
            previous = base + size
