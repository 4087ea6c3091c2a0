"""The predicates that checks are made of (rmp §3.1), and which pages a running guest has in use (rmp §3.7)."""

from __future__ import annotations

from typing import NamedTuple

from rmpcore.maps import PAGE_SIZE
from rmpcore.ops import Reason
from rmpcore.oracle import fault
from rmpcore.oracle.profile import Hardware
from rmpcore.oracle.rmp_entry import RmpEntry
from rmpcore.oracle.rmp_table import REGION, RmpTable, region_of

IN_USE_ROWS_MAX = 64


class NotAllowedError(Exception):
    """A predicate does not hold."""

    def __init__(self, reason: Reason, bits: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        # rmp §1.7: a segment entry with reserved bits shows as such; everything else is an RMP violation.
        self.bits = (fault.RESERVED if reason == Reason.RESERVED else fault.RMP) | bits
        """What it puts into an error code or EXITINFO1."""


class PagesInUse:
    """rmp §3.7: what a VMRUN marks in use, until its #VMEXIT."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, int]] = {}
        """Frame of the VMCB -> frames of VMSA and AVIC page (0: none), in the order of the VMRUNs."""
        self.frames: frozenset[int] = frozenset()

    def start(self, vmcb: int, vmsa: int, avic: int) -> None:
        self.rows[vmcb] = (vmsa, avic)
        self._mark()

    def end(self, vmcb: int) -> None:
        del self.rows[vmcb]
        self._mark()

    def _mark(self) -> None:
        others = {pfn for row in self.rows.values() for pfn in row if pfn != 0}
        self.frames = frozenset(self.rows) | others

    def any_covered(self, table: RmpTable, frames: range) -> bool:
        """Is one of these frames in use?  What is not covered has no entry that could be marked."""
        return any(pfn in frames and table.covered(pfn) for pfn in self.frames)


class Governing(NamedTuple):
    """The entry that speaks for a page."""

    pfn: int
    """Whose entry it is."""
    entry: RmpEntry
    gpa: int
    """The guest physical address that it gives the page."""


class Predicates:
    """rmp §3.1 on one table; what does not hold is a NotAllowedError."""

    def __init__(self, table: RmpTable, hardware: Hardware, in_use: PagesInUse) -> None:
        self.table = table
        self._hardware = hardware
        self._in_use = in_use

    def governing(self, pfn: int) -> Governing:
        """The 2 MiB-aligned page's entry if that is an assigned 2M one, else the page's own."""
        first = pfn - pfn % REGION
        head = self.table.read(first)
        if head.assigned and head.page_size:
            return self._governing(first, head, pfn - first)
        return self._governing(pfn, self.table.read(pfn), 0)

    def _governing(self, pfn: int, entry: RmpEntry, offset: int) -> Governing:
        gpa = (entry.gpa_frame + offset) * PAGE_SIZE % (1 << self._hardware.gpa_bits)
        return Governing(pfn, entry, gpa)

    def covered(self, pfn: int) -> None:
        if self.table.in_reserved_segment(pfn):
            raise NotAllowedError(Reason.RESERVED)
        if not self.table.covered(pfn):
            raise NotAllowedError(Reason.UNCOVERED)

    def hypervisor_owned(self, pfn: int, level: int) -> None:
        """Uncovered, or assigned = 0; of a larger translation all pages of the 2 MiB region."""
        table = self.table
        if table.in_reserved_segment(pfn):
            raise NotAllowedError(Reason.RESERVED)
        if not table.covered(pfn):
            return
        if table.read(pfn).assigned:
            raise NotAllowedError(Reason.ASSIGNED)
        if level > 1 and table.assigned_in_region(pfn):
            raise NotAllowedError(Reason.NEIGHBOUR)

    def not_in_use(self, pfn: int, level: int) -> None:
        """rmp §3.7, the erratum: the page is not in use; nor, in a larger translation, the 2 MiB-aligned page of its
        region."""
        if self._hardware.hv_in_use_wr:
            return
        frames = self._in_use.frames
        if pfn in frames or (level > 1 and region_of(pfn)[0] in frames):
            raise NotAllowedError(Reason.IN_USE)

    def guests_page(self, pfn: int, gpa: int, asid: int) -> Governing:
        """Covered, guest-owned, reverse-map and mutable, in this order."""
        self.covered(pfn)
        page = self.governing(pfn)
        # ASID 0 is the host: it owns nothing as a guest.
        if not page.entry.assigned or page.entry.asid != asid or asid == 0:
            raise NotAllowedError(Reason.OWNER)
        if page.gpa != gpa - gpa % PAGE_SIZE:
            raise NotAllowedError(Reason.GPA)
        if page.entry.immutable:
            raise NotAllowedError(Reason.IMMUTABLE)
        return page
