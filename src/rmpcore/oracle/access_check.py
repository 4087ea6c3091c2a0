"""Who is checked for what (rmp §3.2, §3.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rmpcore.maps import PAGE_SIZE
from rmpcore.ops import AccessKind, Reason, Who
from rmpcore.oracle import fault
from rmpcore.oracle.profile import Hardware
from rmpcore.oracle.rmp_check import Governing, NotAllowedError, Predicates
from rmpcore.oracle.rmp_entry import field

_WRITES = frozenset({AccessKind.WRITE, AccessKind.WALK_WRITE, AccessKind.SHADOW_STACK})
_WALKS = frozenset({AccessKind.WALK, AccessKind.WALK_WRITE})
_READS = frozenset({AccessKind.READ, AccessKind.FETCH})
_ALWAYS_PRIVATE = frozenset({AccessKind.FETCH, AccessKind.WALK, AccessKind.WALK_WRITE})

# Bits of a permission byte (rmp §1.1).
MAY_READ = 0
MAY_WRITE = 1
MAY_EXECUTE_AS_USER = 2
MAY_EXECUTE_AS_SUPERVISOR = 3
MAY_USE_SHADOW_STACK = 4


class Access(NamedTuple):
    """One access to the page of frame ``pfn``."""

    pfn: int
    kind: AccessKind = AccessKind.READ
    level: int = 1
    """Of the translation."""
    gpa: int = 0
    asid: int = 0
    private: bool = False
    """The C-bit of the guest's mapping."""
    vmpl: int = 0
    user: bool = False
    gva: int = 0
    pa: int = 0
    """The address as it was given, with a C-bit that the frame lacks."""


class AccessChecks:
    """The tables of rmp §3.2 and §3.7.  An access that they do not allow is a FaultError; nothing changes."""

    def __init__(self, predicates: Predicates, hardware: Hardware) -> None:
        self._predicates = predicates
        self._hardware = hardware
        self._by_who: dict[int, Callable[[Access], None]] = {
            Who.HOST: self._host,
            Who.PLAIN: self._plain_guest,
            Who.SNP: self._snp_guest,
            Who.IOMMU: self._iommu,
            Who.PSP: self._psp,
            Who.VMCB: self._hypervisors_or_gp,
            Who.AVIC: self._hypervisors_or_invalid,
            Who.VMSA_PLAIN: self._hypervisors_or_invalid,
            Who.VMSA_SNP: self._vmsa_snp,
            Who.HSAVE: self._hsave,
            Who.VMSAVE: self._hypervisors_or_gp,
        }

    def check(self, who: int, access: Access) -> None:
        self._by_who[who](access)

    # -- rmp §3.2 -----------------------------------------------------------------------------

    def _host(self, access: Access) -> None:
        """Read, fetch: none.  Write, and page-table accesses: hypervisor-owned, else #PF."""
        if access.kind in _READS:
            return
        try:
            # Page tables are 4 KiB pages.
            self._hypervisors(access, 1 if access.kind in _WALKS else access.level)
        except NotAllowedError as no:
            user = fault.USER if access.user else 0
            error = fault.PRESENT | _write_bit(access) | user | no.bits
            raise fault.page_fault(error, access.gva, no.reason) from None

    def _plain_guest(self, access: Access) -> None:
        """Write, and page-table accesses: hypervisor-owned, else #NPF."""
        if access.kind in _READS:
            return
        try:
            # Updates of A and D are checked as 4 KiB.
            self._hypervisors(access, 1 if access.kind == AccessKind.WALK_WRITE else access.level)
        except NotAllowedError as no:
            raise _nested(access, access.private, no) from None

    def _snp_guest(self, access: Access) -> None:
        # Instruction fetches and page-table accesses are private whatever the C-bit.
        private = access.private or access.kind in _ALWAYS_PRIVATE
        try:
            if private:
                self._private(access)
            elif access.kind != AccessKind.READ:
                self._hypervisors(access, access.level)
        except NotAllowedError as no:
            raise _nested(access, private, no) from None

    def _iommu(self, access: Access) -> None:
        """A write: hypervisor-owned, else an event of the IOMMU."""
        if access.kind not in _WRITES:
            return
        try:
            self._predicates.hypervisor_owned(access.pfn, access.level)
        except NotAllowedError as no:
            raise fault.iommu_fault(access.pa, no.reason) from None

    def _psp(self, access: Access) -> None:
        """Not checked by hardware."""

    def _hypervisors(self, access: Access, level: int) -> None:
        """Hypervisor-owned; and a write not in use."""
        self._predicates.hypervisor_owned(access.pfn, level)
        if access.kind in _WRITES:
            self._predicates.not_in_use(access.pfn, level)

    def _private(self, access: Access) -> None:
        """Covered, guest-owned, reverse-map, mutable, page-size; then validated; then VMPL."""
        page = self._predicates.guests_page(access.pfn, access.gpa, access.asid)
        self._page_size(page, access.level)
        if not page.entry.validated:
            raise fault.not_validated(access.gva)
        self._vmpl(access, page.entry.permission_byte(access.vmpl))

    @staticmethod
    def _page_size(page: Governing, level: int) -> None:
        """rmp §3.3: a nested mapping of 2M or 1G needs a 2M entry, one of 4K a 4K entry."""
        if page.entry.page_size and level == 1:
            raise NotAllowedError(Reason.SIZE, fault.SIZEM)
        if not page.entry.page_size and level > 1:
            raise NotAllowedError(Reason.SIZE)

    def _vmpl(self, access: Access, byte: int) -> None:
        """The permission byte of the current VMPL allows the access kind."""
        own_bit = access.kind == AccessKind.SHADOW_STACK and self._hardware.vmpl_sss
        # rmp §1.1: write without read is illegal, and shows on use.
        is_legal = _has(byte, MAY_READ) or not _has(byte, MAY_WRITE)
        if not is_legal or not all(_has(byte, bit) for bit in self._needed(access)):
            raise NotAllowedError(Reason.VMPL, fault.VMPL | (fault.SSS if own_bit else 0))

    def _needed(self, access: Access) -> tuple[int, ...]:
        """rmp §3.2, notes: which permissions an access takes."""
        match access.kind:
            case AccessKind.READ | AccessKind.WALK:
                return (MAY_READ,)
            case AccessKind.FETCH:
                return (MAY_EXECUTE_AS_USER,) if access.user else (MAY_EXECUTE_AS_SUPERVISOR,)
            case AccessKind.WALK_WRITE:
                return (MAY_READ, MAY_WRITE)
            case AccessKind.SHADOW_STACK if self._hardware.vmpl_sss:
                return (MAY_USE_SHADOW_STACK,)
        return (MAY_WRITE,)

    # -- rmp §3.7 -----------------------------------------------------------------------------

    def _hypervisors_or_gp(self, access: Access) -> None:
        try:
            self._predicates.hypervisor_owned(access.pfn, 1)
        except NotAllowedError as no:
            raise fault.general_protection(no.reason) from None

    def _hsave(self, access: Access) -> None:
        """Hypervisor-owned, not 0."""
        if access.pfn == 0 and access.pa % PAGE_SIZE == 0:
            raise fault.general_protection(Reason.NULL)
        self._hypervisors_or_gp(access)

    def _hypervisors_or_invalid(self, access: Access) -> None:
        try:
            self._predicates.hypervisor_owned(access.pfn, 1)
        except NotAllowedError as no:
            raise fault.invalid_vmexit(no.reason) from None

    def _vmsa_snp(self, access: Access) -> None:
        """Covered, guest-owned, reverse-map, mutable, vmsa."""
        try:
            page = self._predicates.guests_page(access.pfn, access.gpa, access.asid)
        except NotAllowedError as no:
            raise fault.invalid_vmexit(no.reason) from None
        if not page.entry.vmsa:
            raise fault.invalid_vmexit(Reason.NOT_VMSA)


def _has(byte: int, bit: int) -> bool:
    return field(byte, bit, bit) == 1


def _write_bit(access: Access) -> int:
    return fault.WRITE if access.kind in _WRITES else 0


def _nested(access: Access, private: bool, no: NotAllowedError) -> fault.FaultError:
    """rmp §3.5: EXITINFO1 of an access that is not allowed."""
    info = fault.PRESENT | fault.USER | _write_bit(access) | no.bits
    info |= fault.FETCH if access.kind == AccessKind.FETCH else 0
    info |= fault.WALK if access.kind in _WALKS else fault.FINAL
    info |= fault.ENC if private else 0
    return fault.nested_page_fault(info, access.gpa, no.reason)
