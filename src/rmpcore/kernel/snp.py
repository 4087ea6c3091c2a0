"""SNP host code on a machine without SNP: switched on by its variables, its instructions done by the native model.

The kernel believes that it is an SNP host when the confidential-computing vendor and one flag say so, and finds RMP
entries where its own pointer says.  The table is memory that the kernel's allocator gave; what the model's instructions
write in its RMP is copied there, so that the kernel reads what it would read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rmpcore.cpu import Registers
from rmpcore.kernel.debugger import Debugger
from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.symbols import Symbols
from rmpcore.maps import MachineMap
from rmpcore.ops import Kind, make_op
from rmpcore.state import State

if TYPE_CHECKING:
    from rmpcore._native import NativeMachine

HARDWARE = "milan"
"""The kernel reads raw entries, and those of Milan are the ones that are known."""
_ENTRY = 16
_HEAD = 0x4000
_REGION = 512
_FUNCTIONS = ("rmpupdate", "psmash", "rmp_make_private", "rmp_make_shared", "snp_lookup_rmpentry", "__rmpupdate")
"""Functions of the kernel's SNP code that may hold an instruction."""
_CODES = {b"\xf2\x0f\x01\xfe": "RMPUPDATE", b"\xf3\x0f\x01\xff": "PSMASH", b"\xf2\x0f\x01\xfd": "RMPREAD"}
"""rmp §2.1."""
_VENDOR_AMD = 1
_SEGMENT_SHIFT = 52
_CODES_AT_ONCE = 4096
"""Instructions that one call may execute.  rmpupdate() repeats for ever what fails with FAIL_OVERLAP."""

_LOGGED = re.compile(r"# (RMPUPDATE|PSMASH|RMPREAD) pa=(0x[0-9a-f]+).*?  = (\d+)(?:.*  \((\d+) times more\))?")
"""An instruction in the module's log; what the kernel repeats is one line with a count."""

Call = Callable[..., int]


@dataclass(frozen=True)
class Executed:
    """An instruction that was done, as a recording has it."""

    name: str
    rax: int
    input: bytes | None
    ret: int

    def to_json(self) -> dict[str, object]:
        value: dict[str, object] = {"insn": self.name, "rax": hex(self.rax)}
        if self.input is not None:
            value["input"] = self.input.hex()
        return {**value, "ret": self.ret}


def _find_instructions(debugger: Debugger, symbols: Symbols) -> dict[int, str]:
    """The SNP instructions in a kernel's code, by address."""
    sites = {}
    for name in _FUNCTIONS:
        start = symbols.get(name)
        if start is None:
            continue
        code = debugger.read(start, min(symbols.end(name) - start, 4096))
        for pattern, instruction in _CODES.items():
            at = code.find(pattern)
            while at >= 0:
                sites[start + at] = instruction
                at = code.find(pattern, at + 1)
    if not {"RMPUPDATE", "PSMASH"} <= set(sites.values()):
        raise KernelError(f"{symbols.source}: the kernel has no SNP host code")
    return sites


def _note(executed: list[Executed], one: Executed) -> None:
    executed.append(one)
    if len(executed) > _CODES_AT_ONCE:
        raise KernelError(f"{one.name} rax={one.rax:#x}: the kernel would repeat it for ever")


class SnpHost(Protocol):
    """Whoever does the SNP instructions of a kernel whose SNP host code is switched on."""

    sites: dict[int, str]
    """The instructions' addresses, and what they are."""
    executed: list[Executed]
    """Those of the call that was made last."""

    def start(self, state: State) -> None:
        """The state from which calls go on."""

    def begin(self, injected: tuple[int, ...]) -> None:
        """Before a call: codes that its next instructions give instead of being done."""

    def service(self, stop: dict[str, int]) -> dict[str, int]:
        """At the breakpoint on an instruction: gives the registers to go on with."""

    @property
    def waiting(self) -> bool:
        """Injected codes are left over."""


class ModelHost:
    """The native model does the instructions, out here."""

    def __init__(self, debugger: Debugger, symbols: Symbols, call: Call, machine_map: MachineMap) -> None:
        """Switch it on.  ``call``: calls a function of the kernel.  The map has an RMP for frames 0 to max_pfn."""
        self._debugger, self._symbols = debugger, symbols
        self._map = machine_map
        self._frames = machine_map.max_pfn + 1
        self.sites = _find_instructions(debugger, symbols)
        self.executed: list[Executed] = []
        vzalloc = symbols.get("vzalloc_noprof", "vzalloc")
        if vzalloc is None:
            raise KernelError(f"{symbols.source}: the kernel has no vzalloc()")

        def allocate(size: int) -> int:
            address = call(vzalloc, size)
            if not address:
                raise KernelError(f"the kernel has no {size} bytes for a table: give it more memory")
            return address

        self._table = allocate(self._frames * _ENTRY)
        self._switch_on(allocate)
        self._machine: NativeMachine | None = None

    def _switch_on(self, allocate: Callable[[int], int]) -> None:
        """The variables of docs/host.md's functions: up to 6.13 one table, from 6.14 one segment for all memory."""

        def put(name: str, value: int, size: int = 8) -> None:
            self._debugger.write(self._symbols[name], value.to_bytes(size, "little"))

        if self._symbols.get("rmptable") is not None:
            put("rmptable_max_pfn", self._frames - 1)
            put("rmptable", self._table)
        else:
            descriptor, pointers = allocate(4096), allocate(4096)
            words = (self._table, self._frames, self._frames * _ENTRY)
            self._debugger.write(descriptor, b"".join(word.to_bytes(8, "little") for word in words))
            self._debugger.write(pointers, descriptor.to_bytes(8, "little"))
            put("rst_max_index", 1)
            put("rmp_segment_shift", _SEGMENT_SHIFT)
            put("rmp_segment_mask", (1 << _SEGMENT_SHIFT) - 1)
            put("rmp_segment_table", pointers)
        put("cc_vendor", _VENDOR_AMD, 4)
        flags = self._debugger.integer(self._symbols["cc_flags"], 1)
        put("cc_flags", flags | 1, 1)

    def start(self, state: State) -> None:
        from rmpcore._native import NativeMachine  # only now, so that the command line loads without it

        machine = NativeMachine(
            self._map, kernel=self._symbols.source, hardware=HARDWARE, switches=None, policy="upstream", state=state
        )
        if self._map.rmp is None:
            raise KernelError("the map has no RMP")
        base = self._map.rmp[0]
        self._rmp = next(
            part.bytes[base - part.base :]
            for part in machine.memory()
            if part.base <= base < part.base + len(part.bytes)
        )
        self._machine = machine

    def begin(self, injected: tuple[int, ...]) -> None:
        self.executed = []
        for code in injected:
            self._model().apply(make_op("inject", code=code))

    def _model(self) -> NativeMachine:
        if self._machine is None:
            raise KernelError("the model has no state yet")
        return self._machine

    @property
    def waiting(self) -> bool:
        return bool(self._model().state().inject)

    def service(self, stop: dict[str, int]) -> dict[str, int]:
        name = self.sites[stop["rip"]]
        operand = self._debugger.read(stop["rcx"], _ENTRY) if name == "RMPUPDATE" else None
        code = next(code for code, instruction in _CODES.items() if instruction == name)
        registers = Registers(stop["rax"], stop["rcx"], stop["rdx"], stop["rip"])
        region = (stop["rax"] >> 12) // _REGION * _REGION
        before = self._entries(region)
        done = self._model().execute(code, registers, operand=operand)
        if done.result.kind != Kind.CODE:
            raise KernelError(f"{name} rax={stop['rax']:#x}: the model gives no code but {done.result}")
        self._copy(region, before)
        if done.memory is not None:
            self._debugger.write(stop["rcx"], done.memory)
        _note(self.executed, Executed(name, stop["rax"], operand, done.result.ret))
        return {"rax": done.registers.rax, "rip": stop["rip"] + done.length}

    def _entries(self, region: int) -> bytes:
        """The raw entries of a 2 MiB region; none where the table ends before it."""
        first, last = (_HEAD + frame * _ENTRY for frame in (region, min(region + _REGION, self._frames)))
        return self._rmp[first:last].tobytes() if first < last else b""

    def _copy(self, region: int, before: bytes) -> None:
        """Copy what has changed in a region to the kernel's table."""
        after = self._entries(region)
        changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
        if len(changed):
            first, last = int(changed[0]), int(changed[-1]) + 1
            self._debugger.write(self._table + region * _ENTRY + first, after[first:last])


class ModuleHost:
    """A module in the guest does the instructions, and this looks on; what they gave is in the module's log."""

    def __init__(self, debugger: Debugger, symbols: Symbols) -> None:
        self._debugger = debugger
        self.sites = _find_instructions(debugger, symbols)
        self.executed: list[Executed] = []
        self.waiting = False

    def start(self, state: State) -> None:
        pass

    def begin(self, injected: tuple[int, ...]) -> None:
        if injected:
            raise KernelError("codes cannot be injected where a module does the instructions")
        self.executed = []

    def service(self, stop: dict[str, int]) -> dict[str, int]:
        name = self.sites[stop["rip"]]
        operand = self._debugger.read(stop["rcx"], _ENTRY) if name == "RMPUPDATE" else None
        _note(self.executed, Executed(name, stop["rax"], operand, 0))
        return {}

    @staticmethod
    def complete(calls: list[list[Executed]], log: list[str]) -> list[list[Executed]]:
        """The instructions of each call with the codes that the module's log says they gave."""
        rows = [_LOGGED.match(line) for line in log]
        codes = iter(
            [
                (row[1], int(row[2], 16), int(row[3]))
                for row in rows
                if row is not None
                for _ in range(1 + min(int(row[4] or 0), _CODES_AT_ONCE))
            ]
        )
        completed: list[list[Executed]] = []
        for call in calls:
            completed.append([])
            for one in call:
                name, rax, ret = next(codes, ("nothing", 0, 0))
                if (name, rax) != (one.name, one.rax):
                    raise KernelError(
                        f"the module logged {name} pa={rax:#x}, and the kernel executed {one.name} pa={one.rax:#x}"
                    )
                completed[-1].append(replace(one, ret=ret))
        left = next(codes, None)
        if left is not None:
            raise KernelError(f"the module logged {left[0]} pa={left[1]:#x}, which no call executed")
        return completed
