"""The host's instructions RMPUPDATE, PSMASH and RMPREAD: every check in the order of the tables of rmp §2."""

from __future__ import annotations

from typing import NamedTuple

from rmpcore.maps import PAGE_SIZE
from rmpcore.ops import EventKind, Kind, Result
from rmpcore.oracle import fault
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.profile import Hardware
from rmpcore.oracle.rmp_check import PagesInUse
from rmpcore.oracle.rmp_entry import SUBPAGE_COUNT_MAX, RmpEntry, field
from rmpcore.oracle.rmp_table import REGION, RmpTable, region_of

SUCCESS = 0
FAIL_INPUT = 1
FAIL_PERMISSION = 2
FAIL_INUSE = 3
FAIL_OVERLAP = 4

INJECT_RUNS_MAX = 64


class RmpInput(NamedTuple):
    """RMPUPDATE's 16 bytes (rmp §1.5): the two quadwords, and the fields in them."""

    gpa: int
    high: int
    assigned: int
    page_size: int
    immutable: int
    asid: int

    @classmethod
    def read(cls, gpa: int, high: int) -> RmpInput:
        return cls(
            gpa,
            high,
            assigned=field(high, 0, 0),
            page_size=field(high, 8, 8),
            immutable=field(high, 16, 16),
            asid=field(high, 63, 32),
        )

    @classmethod
    def of(
        cls, *, assigned: int, page_size: int, gpa: int = 0, asid: int = 0, immutable: int = 0, others: int = 0
    ) -> RmpInput:
        """``others`` is laid over the high quadword; all fields are then read from that."""
        return cls.read(gpa, assigned | page_size << 8 | immutable << 16 | asid << 32 | others)

    @property
    def has_reserved_bits(self) -> bool:
        """rmp §5 point 5: bits 7:1 of the flag bytes, byte 0xB, GPA bits 11:0."""
        flag_bytes = (field(self.high, low + 7, low) for low in (0, 8, 16))
        return any(byte > 1 for byte in flag_bytes) or field(self.high, 31, 24) != 0 or field(self.gpa, 11, 0) != 0


class Executed(NamedTuple):
    """What an RMPUPDATE or PSMASH answered, and whether that was injected."""

    code: int
    injected: bool = False

    @property
    def result(self) -> Result:
        return Result(self.code, int(Kind.CODE))


class RmpRead(NamedTuple):
    """RMPREAD's code and its 16 bytes."""

    code: int
    low: int = 0
    high: int = 0

    @property
    def result(self) -> Result:
        return Result(self.code, int(Kind.CODE), value=self.low, value2=self.high)


class SnpInstructions:
    """The host's SNP instructions on one RMP (None: SNP is not enabled)."""

    def __init__(
        self, table: RmpTable | None, hardware: Hardware, c_bit: int, in_use: PagesInUse, journal: Journal
    ) -> None:
        self._table = table
        self._hardware = hardware
        self._c_bit = c_bit
        self._in_use = in_use
        self._journal = journal
        self.injected: list[list[int]] = []
        """Codes still to be injected: runs of [code, count]."""

    @property
    def has_rmpread(self) -> bool:
        return bool(self._hardware.rmpread)

    # -- RMPUPDATE, rmp §2.2 ------------------------------------------------------------------

    def rmpupdate(
        self, pa: int, new: RmpInput | None, *, guest: bool = False, user: bool = False, rcx: int = 0
    ) -> Executed:
        """``new`` None: the 16 bytes at ``rcx`` cannot be read."""
        table = self._enabled(user)
        code = self._next_injected()
        done = Executed(code, True) if code else Executed(self._rmpupdate(table, pa, new, guest, rcx))
        self._journal.counters["rmpupdate"] += 1
        gpa, high = (new.gpa, new.high) if new is not None else (0, 0)
        self._journal.event(EventKind.RMPUPDATE, code=done.code, a=pa, b=gpa, c=high)
        return done

    def _rmpupdate(self, table: RmpTable, pa: int, new: RmpInput | None, guest: bool, rcx: int) -> int:
        hardware = self._hardware
        # Row 1: executed while in a guest.
        if guest:
            return FAIL_PERMISSION
        # Row 2: read 16 bytes at RCX.
        if new is None:
            raise fault.page_fault(0, rcx)
        pfn = self._frame(pa)
        # Row 7, where the switch puts it.
        if hardware.inuse_first and self._is_in_use(table, pfn, new):
            return FAIL_INUSE
        aligned = pfn % REGION == 0
        # Row 3: a 2 MiB page has to be aligned.
        if new.page_size == 1 and not aligned:
            return FAIL_INPUT
        # Row 4: what is not assigned has neither owner nor lock; then the switches asid_limit and reserved_input.
        if new.assigned == 0 and (new.immutable == 1 or new.asid != 0):
            return FAIL_INPUT
        if new.asid > hardware.asid_limit:
            return FAIL_INPUT
        if hardware.reserved_input and new.has_reserved_bits:
            return FAIL_INPUT
        # Row 5: not covered; of a 2 MiB page the whole region has to be.
        self._reach(table, pfn)
        if not (table.region_covered(pfn) if new.page_size == 1 else table.covered(pfn)):
            return FAIL_INPUT
        # Row 6: immutable.
        old = table.read(pfn)
        if old.immutable == 1:
            return FAIL_PERMISSION
        # Row 7: the page is in use.
        if not hardware.inuse_first and self._is_in_use(table, pfn, new):
            return FAIL_INUSE
        region = region_of(pfn)
        head = table.read(region[0])
        if new.page_size == 0:
            # Row 8: 4 KiB over a 2 MiB entry.
            if aligned and old.page_size == 1:
                return FAIL_OVERLAP
            # Row 8b: 4 KiB inside an assigned 2 MiB entry.
            if not aligned and head.assigned == 1 and head.page_size == 1:
                return hardware.overlap_inner
        # Row 9: 2 MiB over 4 KiB pages of which some other is assigned.
        elif old.page_size == 0 and table.assigned_in_region(pfn) - {pfn}:
            return FAIL_OVERLAP
        # Row 10: write.
        entry = self._written(old, new)
        if new.page_size == 1:
            table.write(pfn, entry)
            inner = RmpEntry(assigned=new.assigned)
            for other in region[1:]:
                table.write(other, inner)
        elif aligned:
            table.write(pfn, entry._replace(subpage_count=old.subpage_count))
        else:
            table.write(pfn, entry)
            if hardware.subpage_count:
                # rmp §1.2: the aligned page's entry counts the other pages that are assigned.
                count = head.subpage_count + new.assigned - old.assigned
                table.write(region[0], head._replace(subpage_count=min(max(count, 0), SUBPAGE_COUNT_MAX)))
        table.count(old, -1)
        table.count(entry)
        return SUCCESS

    def _is_in_use(self, table: RmpTable, pfn: int, new: RmpInput) -> bool:
        """Of 4K the page itself, of 2M any page of the region."""
        return self._in_use.any_covered(table, region_of(pfn) if new.page_size == 1 else range(pfn, pfn + 1))

    def _written(self, old: RmpEntry, new: RmpInput) -> RmpEntry:
        """The entry by rmp §2.2's write rules; its subpage_count is 0."""
        hardware = self._hardware
        # assigned, asid, immutable, gpa and page_size are taken from new; unassigning forces page_size to 0.
        fresh = RmpEntry(
            assigned=new.assigned,
            page_size=new.page_size if new.assigned == 1 else 0,
            immutable=new.immutable,
            gpa_frame=new.gpa % (1 << hardware.gpa_bits) // PAGE_SIZE,
            asid=new.asid,
            lock=new.immutable if hardware.lock_follows_immutable else 0,
            # Reset: validated and vmsa 0, VMPL0 everything, VMPL1..3 nothing.
            permissions=hardware.vmpl0_all,
        )
        same = (
            old.asid == fresh.asid
            and old.gpa_frame == fresh.gpa_frame
            and old.page_size == fresh.page_size
            and old.assigned == fresh.assigned
        )
        if hardware.keep_same and same and fresh.asid != 0:
            return fresh._replace(validated=old.validated, vmsa=old.vmsa, permissions=old.permissions)
        return fresh

    # -- PSMASH, rmp §2.3 ---------------------------------------------------------------------

    def psmash(self, pa: int, *, guest: bool = False, user: bool = False) -> Executed:
        table = self._enabled(user)
        code = self._next_injected()
        done = Executed(code, True) if code else Executed(self._psmash(table, pa, guest))
        self._journal.counters["psmash"] += 1
        self._journal.event(EventKind.PSMASH, code=done.code, a=pa)
        return done

    def _psmash(self, table: RmpTable, pa: int, guest: bool) -> int:
        hardware = self._hardware
        # Row 1: executed while in a guest.
        if guest:
            return FAIL_PERMISSION
        # Row 2: bits 20:0 not all zero, or not covered.
        if field(pa, 20, 0) != 0:
            return FAIL_INPUT
        pfn = self._frame(pa)
        self._reach(table, pfn)
        if not table.region_covered(pfn):
            return FAIL_INPUT
        # Row 3: a page of the region is in use.
        region = region_of(pfn)
        if self._in_use.any_covered(table, region):
            return FAIL_INUSE
        # Row 4: not an assigned 2 MiB entry, or immutable.
        old = table.read(pfn)
        if old.assigned == 0 or old.page_size == 0:
            return hardware.psmash_unassigned
        if old.immutable == 1:
            return hardware.psmash_immutable
        # Row 5: 512 entries with consecutive GPAs, all else as it was.
        small = old._replace(page_size=0, subpage_count=0)
        for i, page in enumerate(region):
            gpa_frame = (old.gpa_frame + i) % (1 << (hardware.gpa_bits - 12))
            table.write(page, small._replace(gpa_frame=gpa_frame))
        if hardware.subpage_count:
            table.write(pfn, table.read(pfn)._replace(subpage_count=SUBPAGE_COUNT_MAX))
        table.count(old, -1)
        table.count(small, REGION)
        return SUCCESS

    # -- RMPREAD, rmp §2.4 --------------------------------------------------------------------

    def rmpread(self, pa: int, *, guest: bool = False, user: bool = False) -> RmpRead:
        if not self.has_rmpread:
            raise fault.undefined_opcode()
        table = self._enabled(user)
        done = self._rmpread(table, pa, guest)
        self._journal.counters["rmpread"] += 1
        self._journal.event(EventKind.RMPREAD, code=done.code, a=pa, b=done.low, c=done.high)
        return done

    def _rmpread(self, table: RmpTable, pa: int, guest: bool) -> RmpRead:
        if guest:
            return RmpRead(FAIL_PERMISSION)
        pfn = self._frame(pa)
        self._reach(table, pfn)
        if not table.covered(pfn):
            return RmpRead(FAIL_INPUT)
        entry = table.read(pfn)
        # rmp §1.5: bit 1 of byte 0x9, "some other page of this page's region is assigned".
        status = int(pfn % REGION == 0 and entry.subpage_count != 0)
        high = entry.assigned + (entry.page_size << 8) + (status << 9) + (entry.immutable << 16) + (entry.asid << 32)
        return RmpRead(SUCCESS, entry.gpa_frame * PAGE_SIZE, high)

    # -- what all share -----------------------------------------------------------------------

    def _enabled(self, user: bool) -> RmpTable:
        """Row 0: #UD without SNP, then #GP outside CPL 0."""
        if self._table is None:
            raise fault.undefined_opcode()
        if user:
            raise fault.general_protection()
        return self._table

    def _frame(self, pa: int) -> int:
        """The frame of an address; the C-bit is removed first (rmp §1.6)."""
        return (pa & ~self._c_bit) // PAGE_SIZE

    @staticmethod
    def _reach(table: RmpTable, pfn: int) -> None:
        """rmp §1.7: reserved bits on the way to the entry are a #PF."""
        if table.in_reserved_segment(pfn):
            raise fault.reserved_bits()

    def _next_injected(self) -> int:
        """The code to answer instead of executing; 0: execute."""
        if not self.injected:
            return SUCCESS
        run = self.injected[0]
        run[1] -= 1
        if run[1] == 0:
            self.injected.pop(0)
        return run[0]
