"""The kernel's SNP layer of 6.9 and later, function by function (host §1), under one policy (host §6).

Returns are 0 or a negative errno; the codes of the instructions stay positive.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmpcore.maps import PAGE_SIZE
from rmpcore.ops import EventKind, Op, OpCode
from rmpcore.oracle.cpa import EFAULT
from rmpcore.oracle.dmap import ADDRESSES
from rmpcore.oracle.fault import FaultError
from rmpcore.oracle.firmware import Firmware, Status
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import Memory
from rmpcore.oracle.policy import EINVAL, LEVEL_2M, LEVEL_4K, Policy, level_of
from rmpcore.oracle.profile import Kernel
from rmpcore.oracle.rmp_entry import HYPERVISOR, field
from rmpcore.oracle.rmp_insn import SUCCESS, RmpInput, RmpRead, SnpInstructions
from rmpcore.oracle.rmp_table import RmpTable, region_of

EIO = -5
ENODEV = -19


class HangError(Exception):
    """The function would repeat its RMPUPDATE for ever."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Looked:
    """What snp_lookup_rmpentry() gives."""

    ret: int
    """0, a negative errno, or RMPREAD's code."""
    assigned: int = 0
    level: int = 0


def page_size(level: int) -> int:
    """4K -> 0, everything else -> 1."""
    return 0 if level == LEVEL_4K else 1


class SnpHost:
    """The host kernel of one machine."""

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        table: RmpTable | None,
        instructions: SnpInstructions,
        firmware: Firmware,
        policy: Policy,
        journal: Journal,
    ) -> None:
        self._uses_rmpread = kernel.uses_rmpread and instructions.has_rmpread
        self._memory = memory
        self._table = table
        self._instructions = instructions
        self._firmware = firmware
        self._policy = policy
        self._journal = journal

    def rmpupdate(self, pfn: int, state: RmpInput) -> int:
        """host §6.2.  Raises :class:`HangError` where the kernel would never come back."""
        policy = self._policy
        if self._table is None:
            return ENODEV
        errno = policy.before(pfn, state)
        if errno != 0:
            return errno
        try:
            code = self._executed(pfn, state)
        except FaultError:
            return EFAULT
        if code == SUCCESS:
            return policy.after(pfn, state, self._table)
        if not policy.complains:
            return code
        self._journal.event(EventKind.RMPUPDATE_FAILED, level=level_of(state), code=code, a=pfn)
        self.dump_rmpentry(pfn)
        return EFAULT

    def _executed(self, pfn: int, state: RmpInput) -> int:
        """The code of RMPUPDATE, executed again while it is the one that the policy repeats on."""
        done = self._instructions.rmpupdate(pfn * PAGE_SIZE, state)
        while done.code == self._policy.repeated:
            if not done.injected:
                raise HangError(done.code)
            self._journal.counters["rmpupdate_retries"] += 1
            done = self._instructions.rmpupdate(pfn * PAGE_SIZE, state)
        return done.code

    def rmp_make_private(self, pfn: int, gpa: int, level: int, asid: int, immutable: int) -> int:
        state = RmpInput.of(assigned=1, page_size=page_size(level), gpa=gpa, asid=asid, immutable=immutable)
        return self.rmpupdate(pfn, state)

    def rmp_make_firmware(self, pfn: int, level: int) -> int:
        return self.rmp_make_private(pfn, 0, level, 0, 1)

    def rmp_make_shared(self, pfn: int, level: int) -> int:
        return self.rmpupdate(pfn, RmpInput.of(assigned=0, page_size=page_size(level)))

    def psmash(self, pfn: int) -> int:
        if self._table is None:
            return ENODEV
        if not self._memory.pfn_valid(pfn):
            return EINVAL
        try:
            return self._instructions.psmash(pfn * PAGE_SIZE).code
        except FaultError:
            return EFAULT

    def snp_lookup_rmpentry(self, pfn: int) -> Looked:
        if self._table is None:
            return Looked(ENODEV)
        return self._looked_by_rmpread(pfn) if self._uses_rmpread else self._looked_up(self._table, pfn)

    def _looked_up(self, table: RmpTable, pfn: int) -> Looked:
        if not table.covered(pfn):
            return Looked(EFAULT)
        # assigned comes from the page's own entry, the level from the 2 MiB-aligned one's page size.
        head = table.read(region_of(pfn)[0])
        level = LEVEL_2M if head.page_size == 1 else LEVEL_4K
        return Looked(0, table.read(pfn).assigned, level)

    def _looked_by_rmpread(self, pfn: int) -> Looked:
        """The same from 6.14 on, by two RMPREADs; the first code that is not 0 is returned."""
        try:
            own = self._rmpread(pfn)
            if own.code != SUCCESS:
                return Looked(own.code)
            head = self._rmpread(region_of(pfn)[0])
        except FaultError:
            return Looked(EFAULT)
        if head.code != SUCCESS:
            return Looked(head.code)
        level = LEVEL_2M if field(head.high, 8, 8) == 1 else LEVEL_4K
        return Looked(0, field(own.high, 0, 0), level)

    def _rmpread(self, pfn: int) -> RmpRead:
        # The kernel's address is 64 bits wide, whatever frame it was asked for.
        return self._instructions.rmpread(pfn * PAGE_SIZE % ADDRESSES)

    def dump_rmpentry(self, pfn: int) -> None:
        # Looked up whether or not anybody reads the lines: an RMPREAD counts.
        looked = self.snp_lookup_rmpentry(pfn)
        if not self._journal.listening:
            return
        # A failed lookup: one line with the error.
        if self._table is None or looked.ret != 0:
            self._journal.event(EventKind.DUMP_ERROR, code=looked.ret, a=pfn)
            return
        # Assigned: one line.  (RMPREAD takes an address modulo 2^64, so it may have read another frame's entry.)
        if looked.assigned and not self._table.covered(pfn):
            self._journal.event(EventKind.DUMP_ERROR, code=EFAULT, a=pfn)
            return
        if looked.assigned:
            self._dump_line(self._table, pfn)
            return
        # Not assigned: a header line, then each non-zero entry of the 2 MiB region.
        region = region_of(pfn)
        self._journal.event(EventKind.DUMP_REGION, a=pfn, b=region.start, c=region.stop)
        for page in region:
            if self._table.covered(page) and self._table.read(page) != HYPERVISOR:
                self._dump_line(self._table, page)

    def _dump_line(self, table: RmpTable, pfn: int) -> None:
        lo, hi = table.read(pfn).encode()
        self._journal.event(EventKind.DUMP_ENTRY, a=pfn, b=lo, c=hi)

    def snp_leak_pages(self, pfn: int, pages: int) -> None:
        self._journal.event(EventKind.LEAK, a=pfn, b=pages)
        for page in range(pfn, pfn + pages):
            self.dump_rmpentry(page)
        self._journal.counters["leaked_pages"] += pages

    # -- pages of the firmware ----------------------------------------------------------------

    def rmp_mark_pages_firmware(self, pfn: int, pages: int) -> int:
        """Private, 4K, ASID 0, immutable, one by one; on failure reclaim those done."""
        for done in range(pages):
            try:
                ret = self.rmp_make_firmware(pfn + done, LEVEL_4K)
            except HangError:
                self.snp_reclaim_pages(pfn, done)
                raise
            if ret != 0:
                self.snp_reclaim_pages(pfn, done)
                return ret
        return 0

    def snp_reclaim_pages(self, pfn: int, pages: int) -> int:
        """PAGE_RECLAIM each page, then make it shared; what fails is leaked from there on."""
        for page in range(pfn, pfn + pages):
            left = pfn + pages - page
            if self._firmware.command(Op(OpCode.SNP_PAGE_RECLAIM, addr=page * PAGE_SIZE)) != Status.SUCCESS:
                self.snp_leak_pages(page, left)
                return EIO
            ret = self.rmp_make_shared(page, LEVEL_4K)
            if ret != 0:
                self.snp_leak_pages(page, left)
                return ret
        return 0
