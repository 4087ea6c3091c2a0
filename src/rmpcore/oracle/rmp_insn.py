"""RMPUPDATE, PSMASH and RMPREAD: every check in the order of the tables of rmp §2."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rmpcore.ops import EventKind
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.profile import Hardware
from rmpcore.oracle.rmp_entry import SUBPAGE_COUNT_MAX, RmpEntry, field
from rmpcore.oracle.rmp_table import REGION, RmpTable, region_of

SUCCESS = 0
FAIL_INPUT = 1
FAIL_PERMISSION = 2
FAIL_OVERLAP = 4

UNDEFINED_OPCODE = 6
GENERAL_PROTECTION = 13

INJECT_RUNS_MAX = 64


class FaultError(Exception):
    """The instruction raised an exception instead of giving a code."""

    def __init__(self, vector: int) -> None:
        super().__init__(vector)
        self.vector = vector


@dataclass(frozen=True)
class RmpInput:
    """RMPUPDATE's 16 bytes (rmp §1.5): the guest physical address, then the high quadword."""

    gpa: int
    high: int

    @classmethod
    def of(cls, *, assigned: int, page_size: int, gpa: int = 0, asid: int = 0, immutable: int = 0) -> RmpInput:
        return cls(gpa, assigned | page_size << 8 | immutable << 16 | asid << 32)

    def _byte(self, offset: int) -> int:
        return self.high.to_bytes(8, "little")[offset - 8]

    @property
    def assigned(self) -> int:
        return self._byte(0x8) & 1

    @property
    def page_size(self) -> int:
        return self._byte(0x9) & 1

    @property
    def immutable(self) -> int:
        return self._byte(0xA) & 1

    @property
    def asid(self) -> int:
        return field(self.high, 63, 32)

    @property
    def has_reserved_bits(self) -> bool:
        """rmp §5 point 5: bits 7:1 of the flag bytes, byte 0xB, GPA bits 11:0."""
        return (
            any(self._byte(offset) > 1 for offset in (0x8, 0x9, 0xA))
            or self._byte(0xB) != 0
            or field(self.gpa, 11, 0) != 0
        )


@dataclass(frozen=True)
class Executed:
    """What an RMPUPDATE or PSMASH answered, and whether that was injected."""

    code: int
    injected: bool = False


@dataclass(frozen=True)
class RmpRead:
    """RMPREAD's code and its 16 bytes."""

    code: int
    low: int = 0
    high: int = 0


class SnpInstructions:
    """The host's SNP instructions on one RMP (None: SNP is not enabled)."""

    def __init__(self, table: RmpTable | None, hardware: Hardware, c_bit: int, journal: Journal) -> None:
        self._table = table
        self._hardware = hardware
        self._c_bit = c_bit
        self._journal = journal
        self.injected: list[list[int]] = []
        """Codes still to be injected: runs of [code, count]."""

    # -- RMPUPDATE, rmp §2.2 ------------------------------------------------------------------

    def rmpupdate(self, pa: int, new: RmpInput, *, guest: bool = False, user: bool = False) -> Executed:
        table = self._enabled(user)
        code = self._next_injected()
        done = Executed(code, True) if code else Executed(self._rmpupdate(table, pa, new, guest))
        self._journal.counters["rmpupdate"] += 1
        self._journal.event(EventKind.RMPUPDATE, code=done.code, a=pa, b=new.gpa, c=new.high)
        return done

    def _rmpupdate(self, table: RmpTable, pa: int, new: RmpInput, guest: bool) -> int:
        hardware = self._hardware
        # Row 1: executed while in a guest.
        if guest:
            return FAIL_PERMISSION
        pfn = self._frame(pa)
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
        if not table.covered(region_of(pfn)[-1] if new.page_size == 1 else pfn):
            return FAIL_INPUT
        # Row 6: immutable.
        old = table.read(pfn)
        if old.immutable == 1:
            return FAIL_PERMISSION
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
        elif old.page_size == 0 and any(table.read(other).assigned for other in region[1:]):
            return FAIL_OVERLAP
        # Row 10: write.
        entry = self._written(old, new)
        if new.page_size == 1:
            table.write(pfn, replace(entry, subpage_count=0))
            for other in region[1:]:
                table.write(other, RmpEntry(assigned=new.assigned))
        elif aligned:
            table.write(pfn, replace(entry, subpage_count=old.subpage_count))
        else:
            table.write(pfn, replace(entry, subpage_count=0))
            if hardware.subpage_count:
                # rmp §1.2: the aligned page's entry counts the other pages that are assigned.
                count = head.subpage_count + new.assigned - old.assigned
                table.write(region[0], replace(head, subpage_count=min(max(count, 0), SUBPAGE_COUNT_MAX)))
        return SUCCESS

    def _written(self, old: RmpEntry, new: RmpInput) -> RmpEntry:
        """The entry by rmp §2.2's write rules, but for its subpage_count."""
        hardware = self._hardware
        # assigned, asid, immutable, gpa and page_size are taken from new; unassigning forces page_size to 0.
        fresh = RmpEntry(
            assigned=new.assigned,
            page_size=new.page_size if new.assigned == 1 else 0,
            immutable=new.immutable,
            gpa_frame=new.gpa % (1 << hardware.gpa_bits) >> 12,
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
            return replace(fresh, validated=old.validated, vmsa=old.vmsa, permissions=old.permissions)
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
        pfn = self._frame(pa)
        region = region_of(pfn)
        if field(pa, 20, 0) != 0 or not table.covered(region[-1]):
            return FAIL_INPUT
        # Row 4: not an assigned 2 MiB entry, or immutable.
        old = table.read(pfn)
        if old.assigned == 0 or old.page_size == 0:
            return hardware.psmash_unassigned
        if old.immutable == 1:
            return hardware.psmash_immutable
        # Row 5: 512 entries with consecutive GPAs, all else as it was.
        for i, page in enumerate(region):
            is_counted = i == 0 and hardware.subpage_count
            table.write(
                page,
                replace(
                    old,
                    page_size=0,
                    gpa_frame=(old.gpa_frame + i) % (1 << (hardware.gpa_bits - 12)),
                    subpage_count=SUBPAGE_COUNT_MAX if is_counted else 0,
                ),
            )
        return SUCCESS

    # -- RMPREAD, rmp §2.4 --------------------------------------------------------------------

    def rmpread(self, pa: int, *, guest: bool = False, user: bool = False) -> RmpRead:
        if not self._hardware.rmpread:
            raise FaultError(UNDEFINED_OPCODE)
        table = self._enabled(user)
        done = self._rmpread(table, pa, guest)
        self._journal.counters["rmpread"] += 1
        self._journal.event(EventKind.RMPREAD, code=done.code, a=pa, b=done.low, c=done.high)
        return done

    def _rmpread(self, table: RmpTable, pa: int, guest: bool) -> RmpRead:
        if guest:
            return RmpRead(FAIL_PERMISSION)
        pfn = self._frame(pa)
        if not table.covered(pfn):
            return RmpRead(FAIL_INPUT)
        entry = table.read(pfn)
        # rmp §1.5: bit 1 of byte 0x9, "some other page of this page's region is assigned".
        status = int(pfn % REGION == 0 and entry.subpage_count != 0)
        high = entry.assigned + (entry.page_size << 8) + (status << 9) + (entry.immutable << 16) + (entry.asid << 32)
        return RmpRead(SUCCESS, entry.gpa_frame << 12, high)

    # -- what all share -----------------------------------------------------------------------

    def _enabled(self, user: bool) -> RmpTable:
        """Row 0: #UD without SNP, then #GP outside CPL 0."""
        if self._table is None:
            raise FaultError(UNDEFINED_OPCODE)
        if user:
            raise FaultError(GENERAL_PROTECTION)
        return self._table

    def _frame(self, pa: int) -> int:
        """The frame of an address; the C-bit is removed first (rmp §1.6)."""
        return (pa & ~self._c_bit) >> 12

    def _next_injected(self) -> int:
        """The code to answer instead of executing; 0: execute."""
        if not self.injected:
            return SUCCESS
        run = self.injected[0]
        run[1] -= 1
        if run[1] == 0:
            self.injected.pop(0)
        return run[0]
