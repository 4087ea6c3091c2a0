"""The six SNP instructions from their bytes, with the registers that hardware would leave (rmp §2.1)."""

from __future__ import annotations

from typing import NamedTuple

from rmpcore.cpu import Cpu, Executed, Page, Registers
from rmpcore.ops import Result, ResultFlag
from rmpcore.oracle import fault
from rmpcore.oracle.guest_insn import GuestInstructions
from rmpcore.oracle.profile import Hardware
from rmpcore.oracle.rmp_entry import field
from rmpcore.oracle.rmp_insn import RmpInput, SnpInstructions

LONGEST = 15
"""Bytes that an instruction can have."""
PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3})
REPEATS = frozenset({0xF2, 0xF3})
ADDRESS_SIZE = 0x67
REX = range(0x40, 0x50)
OPERAND_SIZE = 16
MODES = (16, 32, 64)
LEVELS = (1, 2, 3)
"""Of a nested mapping."""

INSTRUCTIONS = {
    (0xF2, 0x0F, 0x01, 0xFE): "RMPUPDATE",
    (0xF3, 0x0F, 0x01, 0xFF): "PSMASH",
    (0xF2, 0x0F, 0x01, 0xFD): "RMPREAD",
    (0xF2, 0x0F, 0x01, 0xFF): "PVALIDATE",
    (0xF3, 0x0F, 0x01, 0xFE): "RMPADJUST",
    (0xF3, 0x0F, 0x01, 0xFD): "RMPQUERY",
}

# Flags of rFLAGS.
_CF, _PF, _AF, _ZF, _SF, _OF = (1 << bit for bit in (0, 2, 4, 6, 7, 11))


class Decoded(NamedTuple):
    """Which of the six it is."""

    name: str
    length: int
    address_bits: int
    """Width of its addresses."""


def decode(code: bytes, mode: int) -> Decoded | None:
    """None: none of the six, or not all bytes are there."""
    at = 0
    repeat = 0
    while at < len(code) and code[at] in PREFIXES:
        if code[at] in REPEATS:
            # The last one decides.
            repeat = code[at]
        at += 1
    cuts_addresses = ADDRESS_SIZE in code[:at]
    if mode == 64 and at < len(code) and code[at] in REX:
        at += 1
    name = INSTRUCTIONS.get((repeat, *code[at : at + 3]))
    length = at + 3
    if name is None or length > LONGEST:
        return None
    return Decoded(name, length, 64 if mode == 64 and not cuts_addresses else 32)


class Emulator:
    """Does what a virtual machine monitor hands over."""

    def __init__(self, host: SnpInstructions, guest: GuestInstructions, hardware: Hardware) -> None:
        self._host = host
        self._guest = guest
        self._hardware = hardware

    def execute(
        self, code: bytes, registers: Registers, cpu: Cpu, operand: bytes | None, page: Page | None
    ) -> Executed:
        self._check(registers, cpu, operand, page)
        decoded = decode(code, cpu.mode)
        if decoded is None:
            return Executed(None, 0, Result(0), registers)
        try:
            result = self._do(decoded, registers, cpu, operand, page)
        except fault.FaultError as refused:
            return Executed(decoded.name, decoded.length, refused.result, registers)
        after = _registers(decoded, registers, cpu, result)
        return Executed(decoded.name, decoded.length, result, after, _memory(decoded, result))

    def _check(self, registers: Registers, cpu: Cpu, operand: bytes | None, page: Page | None) -> None:
        if cpu.mode not in MODES:
            raise ValueError(f"mode is {cpu.mode}, not 16, 32 or 64")
        if not 0 <= cpu.vmpl < self._hardware.vmpls:
            raise ValueError(f"VMPL is {cpu.vmpl}, not 0..{self._hardware.vmpls - 1}")
        if operand is not None and len(operand) != OPERAND_SIZE:
            raise ValueError(f"the operand has {len(operand)} bytes, not {OPERAND_SIZE}")
        if page is not None and page.level not in LEVELS:
            raise ValueError(f"the page's level is {page.level}, not 1, 2 or 3")
        quadwords = registers._asdict()
        if page is not None:
            quadwords |= {"page.pa": page.pa, "page.gpa": page.gpa}
        for name, value in quadwords.items():
            if field(value, 63, 0) != value:
                raise ValueError(f"{name} is {value:#x}, not a value of 64 bits")
        if field(cpu.asid, 31, 0) != cpu.asid:
            raise ValueError(f"ASID is {cpu.asid:#x}, not a value of 32 bits")

    def _do(self, decoded: Decoded, registers: Registers, cpu: Cpu, operand: bytes | None, page: Page | None) -> Result:
        # Real and virtual-8086 mode; then what needs 64-bit mode.
        if cpu.mode == 16 or (cpu.mode == 32 and decoded.name != "PVALIDATE"):
            raise fault.undefined_opcode()
        rax, rcx, rdx, *_ = registers
        address = field(rax, decoded.address_bits - 1, 0)
        in_guest, user = cpu.asid != 0, cpu.cpl != 0
        # The host is no SNP guest.
        cpu = cpu._replace(snp=cpu.snp and in_guest)
        match decoded.name:
            case "RMPUPDATE":
                new = _read_input(operand)
                operand_at = field(rcx, decoded.address_bits - 1, 0)
                return self._host.rmpupdate(rax, new, guest=in_guest, user=user, rcx=operand_at).result
            case "PSMASH":
                return self._host.psmash(rax, guest=in_guest, user=user).result
            case "RMPREAD":
                return self._host.rmpread(rax, guest=in_guest, user=user).result
            case "PVALIDATE":
                return self._guest.pvalidate(cpu, address, rcx, rdx, page)
            case "RMPADJUST":
                return self._guest.rmpadjust(cpu, address, rcx, rdx, page)
        return self._guest.rmpquery(cpu, address, rdx, page)


def _read_input(operand: bytes | None) -> RmpInput | None:
    if operand is None:
        return None
    return RmpInput.read(int.from_bytes(operand[:8], "little"), int.from_bytes(operand[8:], "little"))


def _memory(decoded: Decoded, result: Result) -> bytes | None:
    """What RMPREAD stores."""
    if decoded.name != "RMPREAD" or result.ret != 0:
        return None
    return result.value.to_bytes(8, "little") + result.value2.to_bytes(8, "little")


def _registers(decoded: Decoded, registers: Registers, cpu: Cpu, result: Result) -> Registers:
    """RAX is the code, the flags follow it, RIP is at the next instruction."""
    rip = (registers.rip + decoded.length) % (1 << (64 if cpu.mode == 64 else 32))
    flags = _flags(registers.rflags, result.ret)
    after = registers._replace(rax=result.ret, rip=rip, rflags=flags)
    if decoded.name == "PVALIDATE":
        carry = _CF if result.flags & ResultFlag.CF else 0
        after = after._replace(rflags=flags & ~_CF | carry)
    if decoded.name == "RMPQUERY" and result.ret == 0:
        after = after._replace(rcx=result.value, rdx=result.value2)
    return after


def _flags(before: int, eax: int) -> int:
    """ZF, SF and PF by EAX; OF and AF 0; CF and all else as before."""
    flags = before & ~(_OF | _SF | _ZF | _AF | _PF)
    if eax == 0:
        flags |= _ZF
    if field(eax, 31, 31):
        flags |= _SF
    if field(eax, 7, 0).bit_count() % 2 == 0:
        flags |= _PF
    return flags
