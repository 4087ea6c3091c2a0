"""What an emulator hands over with an instruction that it does not know, and what it gets back.

``machine.execute(code, registers, ...)`` decodes the six SNP instructions from their bytes (rmp §2.1), does them on the
machine's RMP, and gives the registers as hardware would leave them.
"""

from __future__ import annotations

from typing import NamedTuple

from rmpcore.ops import Result


class Registers(NamedTuple):
    """The registers that the SNP instructions read or write, 64 bits each."""

    rax: int = 0
    rcx: int = 0
    rdx: int = 0
    rip: int = 0
    rflags: int = 0x2


class Cpu(NamedTuple):
    """Who executes."""

    asid: int = 0
    """0: the host."""
    vmpl: int = 0
    cpl: int = 0
    snp: bool = True
    """The guest is one with SNP; of no meaning for the host."""
    mode: int = 64
    """64: long mode; 32: protected or compatibility mode; 16: real or virtual-8086 mode."""


class Page(NamedTuple):
    """What a guest's address is translated to."""

    pa: int
    """System physical address in bytes."""
    gpa: int
    """Guest physical address in bytes."""
    level: int
    """Size of the nested mapping: 1 4K, 2 2M, 3 1G."""


class Executed(NamedTuple):
    """What came of an instruction."""

    name: str | None
    """Which of the six it is; None: none of them."""
    length: int
    """Its bytes, prefixes included."""
    result: Result
    """As of the op of the same name."""
    registers: Registers
    """Afterwards; as they were if an exception or a nested fault came of it."""
    memory: bytes | None = None
    """The 16 bytes that RMPREAD stores where RCX points."""
