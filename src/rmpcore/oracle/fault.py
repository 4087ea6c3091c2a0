"""What comes of an instruction or access that is not allowed: exceptions, #VMEXITs, IOMMU events (rmp §3.5)."""

from __future__ import annotations

from rmpcore.ops import Kind, Reason, Result

UNDEFINED_OPCODE = 6
GENERAL_PROTECTION = 13
PAGE_FAULT = 14
VMM_COMMUNICATION = 29
NESTED_PAGE_FAULT = 0x400
INVALID_VMEXIT = -1
RMP_FAULT = 0x0D
PAGE_NOT_VALIDATED = 0x404

# Bits of a #PF's error code, and of EXITINFO1 of an #NPF.
PRESENT = 1 << 0
WRITE = 1 << 1
USER = 1 << 2
RESERVED = 1 << 3
FETCH = 1 << 4
RMP = 1 << 31
# Bits of EXITINFO1 only.
FINAL = 1 << 32
WALK = 1 << 33
ENC = 1 << 34
SIZEM = 1 << 35
VMPL = 1 << 36
SSS = 1 << 37


class FaultError(Exception):
    """The instruction or access ends here; ``result`` says how."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result


def _fault(kind: Kind, ret: int, reason: Reason = Reason.NONE, value: int = 0, value2: int = 0) -> FaultError:
    return FaultError(Result(ret, int(kind), reason=int(reason), value=value, value2=value2))


def undefined_opcode() -> FaultError:
    """#UD."""
    return _fault(Kind.FAULT, UNDEFINED_OPCODE)


def general_protection(reason: Reason = Reason.NONE) -> FaultError:
    """#GP(0)."""
    return _fault(Kind.FAULT, GENERAL_PROTECTION, reason)


def page_fault(error: int, address: int, reason: Reason = Reason.NONE) -> FaultError:
    """#PF with its error code and CR2."""
    return _fault(Kind.FAULT, PAGE_FAULT, reason, error, address)


def reserved_bits() -> FaultError:
    """#PF of a host instruction whose way to the RMP entry goes through reserved bits (rmp §1.7)."""
    return page_fault(PRESENT | RESERVED, 0, Reason.RESERVED)


def not_validated(address: int) -> FaultError:
    """#VC, PAGE_NOT_VALIDATED."""
    return _fault(Kind.FAULT, VMM_COMMUNICATION, Reason.NOT_VALIDATED, PAGE_NOT_VALIDATED, address)


def nested_page_fault(info: int, gpa: int, reason: Reason) -> FaultError:
    """#VMEXIT(NPF) with EXITINFO1 and EXITINFO2."""
    return _fault(Kind.NPF, NESTED_PAGE_FAULT, reason, info, gpa)


def invalid_vmexit(reason: Reason) -> FaultError:
    """#VMEXIT(INVALID)."""
    return _fault(Kind.INVALID, INVALID_VMEXIT, reason)


def iommu_fault(address: int, reason: Reason) -> FaultError:
    """RMP_FAULT in the IOMMU's event log."""
    return _fault(Kind.IOMMU, RMP_FAULT, reason, value2=address)
