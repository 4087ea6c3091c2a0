"""The host's own accesses, through its direct map or a window: paging first, then the RMP (host §1, §6.3; rmp §3.4)."""

from __future__ import annotations

from collections.abc import Callable

from rmpcore.maps import PAGE_SIZE, MachineMap
from rmpcore.ops import AccessKind, Kind, Reason, Result, Who
from rmpcore.oracle import fault
from rmpcore.oracle.access_check import Access, AccessChecks
from rmpcore.oracle.dmap import SIZE, DirectMap, Found
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.policy import LEVEL_2M, LEVEL_4K, DirectMapCalls, Policy
from rmpcore.oracle.rmp_table import region_of
from rmpcore.oracle.snp_host import HangError, SnpHost

VMALLOC_START = {4: 0xFFFF_C900_0000_0000, 5: 0xFFA0_0000_0000_0000}
"""host §6.3: where a window is said to be, by paging levels."""


class FaultHandler:
    """host §6.3: what `fault-split` does about a #PF with the RMP bit."""

    def __init__(self, host: SnpHost, calls: DirectMapCalls, journal: Journal) -> None:
        self._host = host
        self._calls = calls
        self._journal = journal

    def says_try_again(self, pfn: int, leaf_level: int) -> bool:
        """False: the fault stays."""
        # 1: look the entry up.
        looked = self._host.snp_lookup_rmpentry(pfn)
        if looked.ret != 0:
            return False
        # 2: the leaf is larger than the entry: split.
        if leaf_level > looked.level:
            return self._calls.set_memory_4k(pfn) == 0
        # 3: not assigned: there is nothing to repair.
        if not looked.assigned:
            return False
        # 4: a 2M entry: PSMASH.
        if looked.level == LEVEL_2M and self._host.psmash(region_of(pfn)[0]) != 0:
            return False
        # 5: take the page from whoever has it.
        try:
            if self._host.rmp_make_shared(pfn, LEVEL_4K) != 0:
                return False
        except HangError:
            return False
        self._journal.counters["forced_shared"] += 1
        return True


class HostAccesses:
    """Accesses of the host to one frame each.  A refused one is a FaultError, with the leaf's level if there is one."""

    def __init__(
        self,
        machine_map: MachineMap,
        dmap: DirectMap,
        checks: AccessChecks | None,
        policy: Policy,
        handler: FaultHandler,
        journal: Journal,
    ) -> None:
        self._c_bit = machine_map.c_bit
        self._window = VMALLOC_START[machine_map.levels]
        self._dmap = dmap
        self._checks = checks
        self._policy = policy
        self._handler = handler
        self._journal = journal

    def host_read(self, pfn: int) -> Result:
        return self._access(pfn, self._read)

    def host_write(self, pfn: int) -> Result:
        return self._access(pfn, self._write)

    def kvm_read_guest(self, pfn: int) -> Result:
        return self._access(pfn, self._read_by_window if self._policy.opens_windows else self._read)

    def kvm_write_guest(self, pfn: int) -> Result:
        return self._access(pfn, self._write_by_window if self._policy.opens_windows else self._write)

    def _access(self, pfn: int, access: Callable[[int], Result]) -> Result:
        """The whole access, again and again while the fault handler says so."""
        counters = self._journal.counters
        counters["host_accesses"] += 1
        while True:
            try:
                return access(pfn)
            except fault.FaultError as refused:
                self._journal.fault(pfn * PAGE_SIZE, refused.result)
                counters["host_faults_owner" if self._is_owners_fault(pfn) else "host_faults_neighbour"] += 1
                if not self._is_repaired(pfn, refused.result):
                    raise
                counters["fault_repairs"] += 1

    def _is_owners_fault(self, pfn: int) -> bool:
        """host §6.3, "Victim": would a write through a 4K leaf be refused too?"""
        try:
            self._check_write(self._frame(pfn), LEVEL_4K, 0)
        except fault.FaultError:
            return True
        return False

    def _is_repaired(self, pfn: int, refused: Result) -> bool:
        if not self._policy.repairs_faults or not refused.value & fault.RMP:
            return False
        return self._handler.says_try_again(pfn, refused.level)

    # -- through the direct map, host §1 ------------------------------------------------------

    def _read(self, pfn: int) -> Result:
        """Reads are not checked against the RMP."""
        found = self._present(self._dmap.virtual(pfn), 0)
        return _allowed(found.level)

    def _write(self, pfn: int) -> Result:
        virtual = self._dmap.virtual(pfn)
        found = self._present(virtual, fault.WRITE)
        entry = self._dmap.format.read(found.raw, found.level)
        # RW at the leaf and at every level above.
        if not found.rw or "RW" not in entry.flags:
            read_only = fault.page_fault(fault.PRESENT | fault.WRITE, virtual, Reason.READ_ONLY)
            raise _at(found.level, read_only)
        # Hypervisor-owned, by the size of the translation.
        frame = entry.frame + virtual % SIZE[found.level] // PAGE_SIZE
        self._check_write(frame, found.level, virtual)
        return _allowed(found.level)

    def _present(self, virtual: int, error: int) -> Found:
        """The leaf at an address; what is not present is a #PF with this error code."""
        found = self._dmap.lookup(virtual)
        not_present = fault.page_fault(error, virtual, Reason.NOT_PRESENT)
        if found is None or found.raw == 0:
            raise not_present
        if "P" not in self._dmap.format.read(found.raw, found.level).flags:
            raise _at(found.level, not_present)
        return found

    # -- by a window, host §6.3 ---------------------------------------------------------------

    def _read_by_window(self, pfn: int) -> Result:
        self._journal.counters["kmap_windows"] += 1
        return _allowed(LEVEL_4K)

    def _write_by_window(self, pfn: int) -> Result:
        self._journal.counters["kmap_windows"] += 1
        self._check_write(self._frame(pfn), LEVEL_4K, self._window)
        return _allowed(LEVEL_4K)

    # -- what all share -----------------------------------------------------------------------

    def _check_write(self, frame: int, level: int, virtual: int) -> None:
        """host §1 step 3.  Without an RMP nothing is checked."""
        if self._checks is None:
            return
        try:
            self._checks.check(Who.HOST, Access(frame, AccessKind.WRITE, level, gva=virtual))
        except fault.FaultError as refused:
            raise _at(level, refused) from None

    def _frame(self, pfn: int) -> int:
        """The frame that a leaf of its own would map: the C-bit is no part of it."""
        return (pfn * PAGE_SIZE & ~self._c_bit) // PAGE_SIZE


def _allowed(level: int) -> Result:
    return Result(0, int(Kind.ALLOWED), level=level)


def _at(level: int, refused: fault.FaultError) -> fault.FaultError:
    """The same, with the level of the leaf."""
    return fault.FaultError(refused.result._replace(level=level))
