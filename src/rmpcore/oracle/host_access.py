"""The host reads and writes memory through its direct map: paging first, then the RMP (rmp §3.2, §3.4)."""

from __future__ import annotations

from rmpcore.maps import PAGE_SIZE
from rmpcore.ops import AccessKind, Kind, Reason, Result, Who
from rmpcore.oracle import fault
from rmpcore.oracle.access_check import Access, AccessChecks
from rmpcore.oracle.dmap import SIZE, DirectMap, Found


class HostAccesses:
    """Accesses of the host to one frame each.  A refused one is a FaultError, with the leaf's level if there is one."""

    def __init__(self, dmap: DirectMap, checks: AccessChecks | None) -> None:
        self._dmap = dmap
        self._checks = checks

    def read(self, pfn: int) -> Result:
        """Reads are not checked against the RMP."""
        found = self._present(self._dmap.virtual(pfn), 0)
        return _allowed(found)

    def write(self, pfn: int) -> Result:
        virtual = self._dmap.virtual(pfn)
        found = self._present(virtual, fault.WRITE)
        entry = self._dmap.format.read(found.raw, found.level)
        # RW at the leaf and at every level above.
        if not found.rw or "RW" not in entry.flags:
            raise _at(found, fault.page_fault(fault.PRESENT | fault.WRITE, virtual, Reason.READ_ONLY))
        # Hypervisor-owned, by the size of the translation.
        if self._checks is not None:
            frame = entry.frame + virtual % SIZE[found.level] // PAGE_SIZE
            try:
                self._checks.check(Who.HOST, Access(frame, AccessKind.WRITE, found.level, gva=virtual))
            except fault.FaultError as refused:
                raise _at(found, refused) from None
        return _allowed(found)

    def _present(self, virtual: int, error: int) -> Found:
        """The leaf at an address; what is not present is a #PF with this error code."""
        found = self._dmap.lookup(virtual)
        not_present = fault.page_fault(error, virtual, Reason.NOT_PRESENT)
        if found is None or found.raw == 0:
            raise not_present
        if "P" not in self._dmap.format.read(found.raw, found.level).flags:
            raise _at(found, not_present)
        return found


def _allowed(found: Found) -> Result:
    return Result(0, int(Kind.ALLOWED), level=found.level)


def _at(found: Found, refused: fault.FaultError) -> fault.FaultError:
    """The same, with the level of the leaf."""
    return fault.FaultError(refused.result._replace(level=found.level))
