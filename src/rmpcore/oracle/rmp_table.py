"""The contiguous RMP: where an entry lives, what is covered, and what the kernel refuses (rmp §1.6)."""

from __future__ import annotations

from rmpcore.machine import RmpError
from rmpcore.maps import PHYSICAL_LIMIT, MachineMap
from rmpcore.oracle.mem import round_down
from rmpcore.oracle.rmp_entry import HYPERVISOR, RmpEntry

BOOKKEEPING = 0x4000
ENTRY_SIZE = 16
REGION = 512
"""Pages of a 2 MiB region."""
MSR_UNIT = 1 << 13
"""RMP_BASE and RMP_END hold bits 51:13."""


def region_of(pfn: int) -> range:
    """The frames of the 2 MiB region that a frame lies in."""
    first = round_down(pfn, REGION)
    return range(first, first + REGION)


class RmpTable:
    """The table from RMP_BASE to RMP_END (the last byte); only entries that are not zero are kept."""

    def __init__(self, base: int, end: int) -> None:
        self.base = base
        self.end = end
        self.entries: dict[int, RmpEntry] = {}

    def covered(self, pfn: int) -> bool:
        """rmp §1.6 "coverage": the whole entry lies at or below RMP_END."""
        entry_address = self.base + BOOKKEEPING + pfn * ENTRY_SIZE
        return pfn < PHYSICAL_LIMIT >> 12 and entry_address + ENTRY_SIZE - 1 <= self.end

    def read(self, pfn: int) -> RmpEntry:
        return self.entries.get(pfn, HYPERVISOR)

    def write(self, pfn: int, entry: RmpEntry) -> None:
        if entry == HYPERVISOR:
            self.entries.pop(pfn, None)
        else:
            self.entries[pfn] = entry


def open_table(machine_map: MachineMap) -> RmpTable | None:
    """The machine's RMP, empty; None where there is no SNP.  Raises RmpError when it is refused."""
    if machine_map.rmp is None:
        return None
    base, end = machine_map.rmp
    if machine_map.rmp_probed:
        _probe(base, end, machine_map.max_pfn)
    _check_arithmetic(base, end)
    return RmpTable(base, end)


def _probe(base: int, end: int, max_pfn: int) -> None:
    """The kernel's checks (host §1, "RMP set-up"), in order."""
    if base < MSR_UNIT or end < MSR_UNIT:
        raise RmpError(f"RMP {base:#x}-{end:#x}: memory for it was not reserved by the BIOS")
    if base > end:
        raise RmpError(f"RMP base {base:#x} is above its end {end:#x}")
    # It has to cover all memory and itself (rmp §1.6 "size needed", "self cover").
    frames = max(max_pfn, end >> 12)
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
