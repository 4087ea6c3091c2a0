"""The guest's instructions PVALIDATE, RMPADJUST and RMPQUERY: every check in the order of rmp §2.5 to §2.7."""

from __future__ import annotations

from rmpcore.cpu import Cpu, Page
from rmpcore.maps import PAGE_SIZE
from rmpcore.ops import EventKind, Kind, Reason, Result, ResultFlag
from rmpcore.oracle import fault
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.profile import Hardware
from rmpcore.oracle.rmp_check import Governing, NotAllowedError, Predicates
from rmpcore.oracle.rmp_entry import RmpEntry, field
from rmpcore.oracle.rmp_insn import FAIL_INPUT, FAIL_PERMISSION, SUCCESS

FAIL_SIZEMISMATCH = 6
SIZE_2M = 1


class GuestInstructions:
    """What an SNP guest executes on one RMP (None: SNP is not enabled).

    ``page`` is what the guest's address is translated to; None: the guest's page tables do not map it."""

    def __init__(self, predicates: Predicates | None, hardware: Hardware, c_bit: int, journal: Journal) -> None:
        self._predicates = predicates
        self._hardware = hardware
        self._c_bit = c_bit
        self._journal = journal

    # -- PVALIDATE, rmp §2.5 ------------------------------------------------------------------

    def pvalidate(self, cpu: Cpu, gva: int, rcx: int, rdx: int, page: Page | None) -> Result:
        predicates = self._enabled(cpu)
        done = self._pvalidate(predicates, cpu, gva, field(rcx, 31, 0), field(rdx, 31, 0), page)
        carry = 1 if done.flags & ResultFlag.CF else 0
        self._journal.counters["pvalidate"] += 1
        self._journal.event(EventKind.PVALIDATE, level=carry, code=done.ret, a=gva, b=rcx, c=rdx)
        return done

    def _pvalidate(self, predicates: Predicates, cpu: Cpu, gva: int, ecx: int, edx: int, page: Page | None) -> Result:
        hardware = self._hardware
        # Row 2: VMPL != 0.
        if cpu.vmpl != 0:
            if hardware.pvalidate_vmpl == 0:
                raise fault.general_protection()
            return _code(hardware.pvalidate_vmpl)
        # Row 3: reserved bits in ECX, EDX.
        if ecx > 1 or edx > 1:
            return _code(FAIL_INPUT)
        # Row 4: 2M and not aligned.
        if ecx == SIZE_2M and field(gva, 20, 12) != 0:
            return _code(FAIL_INPUT)
        # Rows 5 to 7.
        translated = _walk(page, gva)
        governing = self._guests_page(predicates, cpu, translated)
        self._not_too_large(governing, translated, ecx)
        # Row 8: asked 2M, the RMP says 4K.
        if ecx == SIZE_2M and not governing.entry.page_size:
            return _code(FAIL_SIZEMISMATCH)
        # Row 9: already so.
        if governing.entry.validated == edx:
            return Result(SUCCESS, int(Kind.CODE), flags=int(ResultFlag.CF))
        # Row 10: write validated.
        predicates.table.write(governing.pfn, self._validated(governing.entry, edx))
        return _code(SUCCESS)

    def _validated(self, entry: RmpEntry, validated: int) -> RmpEntry:
        """Whether rescinding touches permissions is uncertain (rmp §5 point 3)."""
        if self._hardware.rescind_resets and not validated:
            return entry._replace(validated=0, permissions=self._hardware.vmpl0_all)
        return entry._replace(validated=validated)

    # -- RMPADJUST, rmp §2.6 ------------------------------------------------------------------

    def rmpadjust(self, cpu: Cpu, gva: int, rcx: int, rdx: int, page: Page | None) -> Result:
        predicates = self._enabled(cpu)
        done = self._rmpadjust(predicates, cpu, gva, rcx, rdx, page)
        self._journal.counters["rmpadjust"] += 1
        self._journal.event(EventKind.RMPADJUST, code=done.ret, a=gva, b=rcx, c=rdx)
        return done

    def _rmpadjust(self, predicates: Predicates, cpu: Cpu, gva: int, rcx: int, rdx: int, page: Page | None) -> Result:
        target, permissions, vmsa = field(rdx, 7, 0), field(rdx, 15, 8), field(rdx, 16, 16)
        # Row 1: reserved bits; 2M and not aligned; no such VMPL.
        if rcx > 1 or field(rdx, 63, 17) != 0 or field(permissions, 7, 5) != 0:
            return _code(FAIL_INPUT)
        if rcx == SIZE_2M and field(gva, 20, 12) != 0:
            return _code(FAIL_INPUT)
        if target >= self._hardware.vmpls:
            return _code(FAIL_INPUT)
        # Row 2: target VMPL <= current VMPL.
        if target <= cpu.vmpl:
            return _code(FAIL_PERMISSION)
        # Rows 3 to 5, after the walk.
        translated = _walk(page, gva)
        governing = self._guests_page(predicates, cpu, translated)
        self._not_too_large(governing, translated, rcx)
        if not governing.entry.validated:
            raise fault.not_validated(gva)
        # Row 6: asked 2M, the RMP says 4K.
        if rcx == SIZE_2M and not governing.entry.page_size:
            return _code(FAIL_SIZEMISMATCH)
        # Row 7: a permission that the current VMPL does not hold itself.
        if permissions & ~governing.entry.permission_byte(cpu.vmpl):
            return _code(FAIL_PERMISSION)
        # Row 8: the target's byte; at VMPL0 also vmsa.
        entry = governing.entry.with_permission_byte(target, permissions)
        if cpu.vmpl == 0:
            entry = entry._replace(vmsa=vmsa)
        predicates.table.write(governing.pfn, entry)
        return _code(SUCCESS)

    # -- RMPQUERY, rmp §2.7 -------------------------------------------------------------------

    def rmpquery(self, cpu: Cpu, gva: int, rdx: int, page: Page | None) -> Result:
        if not self._hardware.rmpquery:
            raise fault.undefined_opcode()
        predicates = self._enabled(cpu)
        done = self._rmpquery(predicates, cpu, gva, field(rdx, 7, 0), page)
        self._journal.counters["rmpquery"] += 1
        self._journal.event(EventKind.RMPQUERY, code=done.ret, a=gva, b=done.value, c=done.value2)
        return done

    def _rmpquery(self, predicates: Predicates, cpu: Cpu, gva: int, target: int, page: Page | None) -> Result:
        hardware = self._hardware
        # The checks of RMPADJUST's rows 3 to 5; no size is asked for, so none can be too small.
        translated = _walk(page, gva)
        governing = self._guests_page(predicates, cpu, translated)
        self._not_too_large(governing, translated, SIZE_2M)
        if not governing.entry.validated:
            raise fault.not_validated(gva)
        # No such VMPL.
        if target >= hardware.vmpls:
            return _code(FAIL_PERMISSION)
        # A VMPL that is more privileged than the current one.
        if target < cpu.vmpl and hardware.rmpquery_vmpl:
            return _code(hardware.rmpquery_vmpl)
        # Size; target, permission byte and vmsa.
        entry = governing.entry
        rdx = target + (entry.permission_byte(target) << 8) + (entry.vmsa << 16)
        return Result(SUCCESS, int(Kind.CODE), value=entry.page_size, value2=rdx)

    # -- what all share -----------------------------------------------------------------------

    def _enabled(self, cpu: Cpu) -> Predicates:
        """#UD outside an SNP guest, then #GP outside CPL 0."""
        if self._predicates is None or not cpu.snp:
            raise fault.undefined_opcode()
        if cpu.cpl != 0:
            raise fault.general_protection()
        return self._predicates

    def _guests_page(self, predicates: Predicates, cpu: Cpu, page: Page) -> Governing:
        """Uncovered, unassigned, another ASID or GPA, immutable: #VMEXIT(NPF)."""
        try:
            return predicates.guests_page((page.pa & ~self._c_bit) // PAGE_SIZE, page.gpa, cpu.asid)
        except NotAllowedError as no:
            raise _nested(page, no) from None

    @staticmethod
    def _not_too_large(governing: Governing, page: Page, size: int) -> None:
        """The RMP says 2M; 4K is asked for, or is what the nested mapping has: #VMEXIT(NPF) with SIZEM."""
        if governing.entry.page_size and (size != SIZE_2M or page.level == 1):
            raise _nested(page, NotAllowedError(Reason.SIZE, fault.SIZEM))


def _code(code: int) -> Result:
    return Result(code, int(Kind.CODE))


def _walk(page: Page | None, gva: int) -> Page:
    if page is None:
        raise fault.page_fault(0, gva)
    return page


def _nested(page: Page, no: NotAllowedError) -> fault.FaultError:
    """rmp §3.5: a private access; real hardware shows no FINAL bit here."""
    info = fault.PRESENT | fault.USER | fault.ENC | no.bits
    return fault.nested_page_fault(info, page.gpa, no.reason)
