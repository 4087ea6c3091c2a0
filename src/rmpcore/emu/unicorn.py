"""Unicorn as the processor of a machine: code runs in the machine's own memory, on the model's page tables.

Unicorn interprets x86 code and knows nothing of SNP.  The adapter gives it the RMP's check of writes, the six
instructions, and the delivery of exceptions through the IDT of the code that runs.  docs/unicorn.md says how, and what
is left out.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from rmpcore._native import NativeMachine
from rmpcore.cpu import Cpu, Page, Registers
from rmpcore.machine import MachineLike
from rmpcore.ops import AccessKind, Kind, Op, OpCode, OpFlag, Reason, Result, Who

try:
    # untyped on purpose: what the package has of types is not enough, and it may be missing where types are checked
    unicorn: Any = importlib.import_module("unicorn")
    const: Any = importlib.import_module("unicorn.unicorn_const")
    x86: Any = importlib.import_module("unicorn.x86_const")
except ImportError as error:
    raise ImportError('rmpcore.emu.unicorn needs the package unicorn: pip install "rmpcore[emu]"') from error

WALKERS = ("rmpcore", "unicorn")
"""Who walks the page tables: the adapter, which also asks the RMP, or Unicorn's own MMU, which does not."""
CPU_MODEL = x86.UC_CPU_X86_EPYC_ROME

_ADDRESS = 0x000F_FFFF_FFFF_F000
_IN_PAGE = 0xFFF
_P, _RW, _US, _PSE, _NX = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
_CR0_WP, _CR4_LA57 = 1 << 16, 1 << 12
_CR0 = 1 << 31 | _CR0_WP | 0x33
"""PG, WP, NE, ET, MP, PE."""
_CR4 = 0x6A0
"""OSXMMEXCPT, OSFXSR, PGE, PAE."""
_EFER, _EFER_VALUE = 0xC000_0080, 0xD01
"""NXE, LMA, LME, SCE."""
_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_UD, _DF, _NP, _GP, _PF, _VC = 6, 8, 11, 13, 14, 29
_NPF, _NPF_ABSENT = 0x400, 0x4_0000_0004
"""The code of #VMEXIT(NPF), and its EXITINFO1 where the nested tables have nothing: US, ENC (rmp §3.5)."""
_WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 29))
_CONTRIBUTORY = frozenset((0, 10, 11, 12, 13))
_TRAPS = frozenset((1, 3, 4, *range(32, 256)))
"""Vectors that Unicorn reports after the instruction: their saved RFLAGS have no RF."""
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
_LONGEST = 15
_SCRATCH = (1 << 52) - 0x2000
"""Physical address of two pages beyond all memory, for :meth:`Emulator._exact_address`."""

_GDT = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF)
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE = 0x08, 0x10, 0x23, 0x2B
"""Selectors of the GDT that :meth:`Emulator.load_tables` makes."""

_KINDS = {
    const.UC_MEM_READ: AccessKind.READ,
    const.UC_MEM_WRITE: AccessKind.WRITE,
    const.UC_MEM_FETCH: AccessKind.FETCH,
}
_MEM_HOOKS = {AccessKind.READ: const.UC_HOOK_MEM_READ, AccessKind.WRITE: const.UC_HOOK_MEM_WRITE}
_REGISTERS = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RIP, x86.UC_X86_REG_EFLAGS)
_FRAME = (x86.UC_X86_REG_RIP, x86.UC_X86_REG_RSP, x86.UC_X86_REG_EFLAGS, x86.UC_X86_REG_CS, x86.UC_X86_REG_SS)
_FLUSH_COUNTERS = ("flush_all", "flush_pages", "rmpupdate", "psmash")


class EmulatorError(RuntimeError):
    """The processor cannot go on: a triple fault, or memory that is not there."""


class Leaf(NamedTuple):
    """Where an address is translated to."""

    pa: int
    level: int
    """Of the leaf: 1 4K, 2 2M, 3 1G."""
    executable: bool


def same_page(level: int) -> Callable[[int], Page]:
    """A nested mapping for guests: guest physical is system physical, in pages of this level."""
    return lambda pa: Page(pa, pa, level)


@dataclass
class _Search:
    """For the address in a page where an instruction was refused."""

    page: int
    offset: int | None = None
    crossing: bool = False
    """The last write begins in one page and ends in the next."""


class Emulator:
    """A processor on a native machine.

    machine: what it runs on.  Change it through :meth:`apply` from now on, so that no stale translation stays
    cpu:     who executes: the host, or a guest (``Cpu(asid=5)``).  CPL and mode are Unicorn's own
    nested:  for a guest: which page of the guest and of the system a physical address is; None: a nested fault
    walker:  one of :data:`WALKERS`
    deliver: exceptions go through the IDT; else :meth:`run` returns them

    ``uc`` is the Unicorn engine: read and write registers there, add hooks as you like.
    """

    def __init__(
        self,
        machine: MachineLike,
        cpu: Cpu = Cpu(),  # noqa: B008 - immutable
        *,
        nested: Callable[[int], Page | None] = same_page(1),  # noqa: B008 - a function
        walker: str = "rmpcore",
        deliver: bool = True,
    ) -> None:
        if not isinstance(machine, NativeMachine):
            raise EmulatorError("only a native machine has memory that code can run in")
        if walker not in WALKERS:
            raise EmulatorError(f"no walker {walker!r}: it is one of {', '.join(WALKERS)}")
        self.machine = machine
        self.cpu = cpu
        self.nested = nested
        self.walker = walker
        self.deliver = deliver
        self._ranges = machine.memory()
        self._bases = [each.base for each in self._ranges]
        self._views = [memoryview(each.bytes) for each in self._ranges]  # type: ignore[arg-type]
        self._refused: tuple[Result, AccessKind] | None = None
        self._vector: int | None = None
        self._failure: EmulatorError | None = None
        self._search: _Search | None = None
        self._stopped = self._asked = False
        self._creeping: int | None = None
        self._stops: list[int] = []

        self.uc = unicorn.Uc(const.UC_ARCH_X86, const.UC_MODE_64)
        self.uc.ctl_set_cpu_model(CPU_MODEL)
        if walker == "rmpcore":
            self.uc.ctl_set_tlb_mode(const.UC_TLB_VIRTUAL)
            self.uc.hook_add(const.UC_HOOK_TLB_FILL, self._fill)
        self.uc.hook_add(const.UC_HOOK_INTR, self._interrupt)
        for each in self._ranges:
            self.uc.mem_map_ptr(each.base, len(each.bytes), const.UC_PROT_ALL, each.bytes.ctypes.data)
        self.uc.mem_map(_SCRATCH, 0x2000)
        self.uc.ctl_exits_enabled(True)
        self.uc.reg_write(x86.UC_X86_REG_CR3, machine.root)
        self.uc.reg_write(x86.UC_X86_REG_CR4, _CR4 | (_CR4_LA57 if machine.map.levels == 5 else 0))
        self.uc.msr_write(_EFER, _EFER_VALUE)
        self.uc.reg_write(x86.UC_X86_REG_CR0, _CR0)

    # --- what an embedder calls ---

    def apply(self, op: Op) -> Result:
        """Do an op on the machine; flush Unicorn's TLB if the op flushed the machine's, or may have changed what the
        RMP says of a write.  Safe in a hook."""
        before = self.machine.counters()
        result = self.machine.apply(op)
        after = self.machine.counters()
        if (
            any(after[name] != before[name] for name in _FLUSH_COUNTERS)
            or result.kind == Kind.FIRMWARE
            or op.op in (OpCode.VMRUN, OpCode.VMEXIT)
        ):
            self.flush()
        return result

    def flush(self) -> None:
        """Drop all translations.  Needed only after changes that went past :meth:`apply`."""
        self.uc.ctl(const.UC_CTL_TLB_FLUSH, const.UC_CTL_IO_WRITE)

    def run(self, start: int | None = None, until: int | None = None) -> Result | None:
        """Execute from start, or from RIP, up to until or HLT, or until a hook stops it.

        None: it stopped so.  Otherwise what happened at RIP and could not be delivered: a fault at CPL 3 or with
        ``deliver`` off, or a #VMEXIT of a guest's instruction.  Raises :class:`EmulatorError` for a triple fault, and
        UcError for what Unicorn itself cannot do."""
        if start is not None:
            self.uc.reg_write(x86.UC_X86_REG_RIP, start)
        self._stopped = self._asked = False
        with self._exits([] if until is None else [until]):
            while not self._stopped:
                result = self._go()
                if result is not None:
                    return result
        return None

    def stop(self) -> None:
        """Make :meth:`run` return; for hooks.  Unicorn executes its current block to the end."""
        self._asked = True
        self.uc.emu_stop()

    def step(self) -> Result | None:
        """Execute one instruction, or deliver its fault; otherwise as :meth:`run`."""
        self._asked = False
        self.uc.ctl_flush_tb()  # blocks that are translated already do not count
        return self._go(count=1)

    def translate(self, va: int, kind: AccessKind = AccessKind.READ, user: bool = False) -> Leaf | Result:
        """Walk the page tables at CR3 as the processor does for one access; the fault if it is not allowed."""
        levels = 5 if self.uc.reg_read(x86.UC_X86_REG_CR4) & _CR4_LA57 else 4
        width = 9 * levels + 12
        if va + (1 << width - 1) & (1 << 64) - 1 >= 1 << width:
            return Result(_GP, Kind.FAULT)  # not canonical
        encryption = self.machine.map.c_bit
        table = self.uc.reg_read(x86.UC_X86_REG_CR3) & _ADDRESS & ~encryption
        flags, above = ~0, 0
        for level in range(levels, 0, -1):
            slot = table + 8 * (va >> 9 * level + 3 & 511)
            refused = self._rmp_refuses(AccessKind.WALK, slot, 1, va, user)
            if refused is not None:
                return refused
            entry = int.from_bytes(self._physical(slot, 8), "little")
            if not entry & _P:
                return self._page_fault(va, kind, user, 0, Reason.NOT_PRESENT)
            flags &= entry
            above |= entry
            if level == 1 or (level <= 3 and entry & _PSE):
                break
            table = entry & _ADDRESS & ~encryption
        write = kind == AccessKind.WRITE
        if write and not flags & _RW and (user or self.uc.reg_read(x86.UC_X86_REG_CR0) & _CR0_WP):
            return self._page_fault(va, kind, user, _P, Reason.READ_ONLY)
        if (user and not flags & _US) or (kind == AccessKind.FETCH and above & _NX):
            return self._page_fault(va, kind, user, _P, Reason.NONE)
        inside = (1 << 9 * level + 3) - 1
        pa = entry & _ADDRESS & ~encryption & ~inside | va & inside
        if write:
            refused = self._rmp_refuses(kind, pa, level, va, user)
            if refused is not None:
                return refused
        return Leaf(pa, level, not above & _NX)

    def read(self, va: int, size: int, kind: AccessKind = AccessKind.READ) -> bytes | Result:
        """Bytes that the kernel reads at an address, or the fault that it gets."""
        parts = self._parts(va, size, kind)
        if isinstance(parts, Result):
            return parts
        return b"".join(bytes(self._physical(pa, length)) for pa, length in parts)

    def write(self, va: int, data: bytes) -> Result | None:
        """Write as the kernel does; nothing is written if any of it faults."""
        parts = self._parts(va, len(data), AccessKind.WRITE)
        if isinstance(parts, Result):
            return parts
        for pa, length in parts:
            self.uc.mem_write(pa, data[:length])
            data = data[length:]
        return None

    def load_tables(self, va: int, handlers: Mapping[int, int]) -> None:
        """Make a flat GDT and an IDT of interrupt gates in two pages of the machine's memory, and load both.

        handlers: address of the code for each vector"""
        gates = bytearray(0x1000)
        for vector, at in handlers.items():
            gate = (at & 0xFFFF, KERNEL_CODE, 0, 0x80 | _INTERRUPT_GATE, at >> 16 & 0xFFFF, at >> 32, 0)
            struct.pack_into("<HHBBHII", gates, 16 * vector, *gate)
        refused = self.write(va, bytes(gates)) or self.write(va + 0x1000, struct.pack("<6Q", *_GDT))
        if refused is not None:
            raise EmulatorError(f"no tables at {va:#x}: {refused}")
        self.uc.reg_write(x86.UC_X86_REG_IDTR, (0, va, 0xFFF, 0))
        self.uc.reg_write(x86.UC_X86_REG_GDTR, (0, va + 0x1000, 8 * len(_GDT) - 1, 0))
        self.uc.reg_write(x86.UC_X86_REG_CS, KERNEL_CODE)
        self.uc.reg_write(x86.UC_X86_REG_SS, KERNEL_DATA)

    # --- memory ---

    def _physical(self, pa: int, size: int) -> memoryview:
        at = bisect_right(self._bases, pa) - 1
        if at < 0 or pa + size > self._bases[at] + len(self._views[at]):
            raise EmulatorError(f"no memory at physical address {pa:#x}")
        offset = pa - self._bases[at]
        return self._views[at][offset : offset + size]

    def _parts(self, va: int, size: int, kind: AccessKind) -> list[tuple[int, int]] | Result:
        """Physical address and length of each page's share of a range, all of them allowed."""
        parts = []
        while size:
            length = min(size, 0x1000 - (va & _IN_PAGE))
            leaf = self.translate(va, kind)
            if isinstance(leaf, Result):
                return leaf
            parts.append((leaf.pa, length))
            va, size = va + length & (1 << 64) - 1, size - length
        return parts

    def _rmp_refuses(self, kind: AccessKind, pa: int, level: int, va: int, user: bool) -> Result | None:
        """What the RMP says of an access of the host (rmp §3.2).  A guest's are not checked."""
        if self.cpu.asid:
            return None
        op = Op(OpCode.access, level, OpFlag.USER if user else 0, addr=pa, va=va, mode=Who.HOST | kind << 8)
        result = self.machine.apply(op)
        return None if result.kind == Kind.ALLOWED else result

    @staticmethod
    def _page_fault(va: int, kind: AccessKind, user: bool, present: int, reason: Reason) -> Result:
        error = present | (kind == AccessKind.WRITE) << 1 | user << 2 | (kind == AccessKind.FETCH) << 4
        return Result(_PF, Kind.FAULT, reason=reason, value=error, value2=va)

    # --- hooks ---

    def _fill(self, _uc: Any, va: int, access: int, entry: Any, _data: Any) -> bool:
        """Unicorn's TLB has no translation.  Only a write asks for the right to write, so each page's first write is
        checked, and the answer stays in the TLB as it does in hardware."""
        kind = _KINDS[access]
        search = self._search
        if search is not None and (kind == AccessKind.WRITE or (va == search.page and kind == AccessKind.READ)):
            if va == search.page and search.crossing and search.offset is None:
                search.offset = 0
            entry.paddr = _SCRATCH if va == search.page else _SCRATCH + 0x1000
            entry.perms = const.UC_PROT_READ | const.UC_PROT_WRITE
            return True
        try:
            leaf = self.translate(va, kind, self._cpl() == 3)
        except EmulatorError as failure:
            self._failure = failure
            return False
        if isinstance(leaf, Result):
            self._refused = leaf, kind
            return False
        entry.paddr = leaf.pa
        entry.perms = const.UC_PROT_READ
        if kind == AccessKind.WRITE:
            entry.perms |= const.UC_PROT_WRITE
        if leaf.executable:
            entry.perms |= const.UC_PROT_EXEC
        return True

    def _interrupt(self, engine: Any, vector: int, _data: Any) -> None:
        self._vector = vector
        engine.emu_stop()

    # --- running ---

    def _cpl(self) -> int:
        return int(self.uc.reg_read(x86.UC_X86_REG_CS)) & 3

    @contextmanager
    def _exits(self, addresses: list[int]) -> Iterator[None]:
        """Let Unicorn stop before these addresses.  What is translated already knows nothing of them."""
        before, self._stops = self._stops, addresses
        self.uc.ctl_set_exits(addresses)
        if addresses:
            self.uc.ctl_flush_tb()
        try:
            yield
        finally:
            self._stops = before
            self.uc.ctl_set_exits(before)

    def _next(self) -> list[int]:
        """Where the instruction after the one at RIP may begin."""
        rip = self.uc.reg_read(x86.UC_X86_REG_RIP)
        return [rip + length & (1 << 64) - 1 for length in range(1, _LONGEST + 1)]

    def _go(self, count: int = 0) -> Result | None:
        """Run up to the next event and deal with it; what could not be delivered."""
        self._refused = self._vector = self._failure = None
        try:
            self.uc.emu_start(self.uc.reg_read(x86.UC_X86_REG_RIP), 0, count=count)
        except unicorn.UcError as stop:
            if stop.errno == const.UC_ERR_INSN_INVALID:
                return self._unknown_instruction()
            if self._failure is not None:
                raise self._failure from None
            if self._refused is None:
                raise
            return self._refused_access(*self._refused)
        if self._vector is not None:
            return self._exception(self._vector)
        self._stopped = True
        return None

    def _refused_access(self, fault: Result, kind: AccessKind) -> Result | None:
        """The walker has refused an access of the instruction at RIP, or of one that Unicorn has read ahead to."""
        rip = self.uc.reg_read(x86.UC_X86_REG_RIP)
        if fault.ret != _PF:
            return self._deliver(fault)
        address = fault.value2
        if kind != AccessKind.FETCH:
            address = self._exact_address(address, kind)
        elif address == rip & ~_IN_PAGE:
            address = rip
        elif self._creeping is None:
            return self._creep(rip)
        elif self._creeping != rip:
            return None  # that one instruction is done; what was refused comes after it
        return self._deliver(fault._replace(value2=address))

    def _creep(self, rip: int) -> Result | None:
        """Execute one instruction, and let Unicorn translate no more than that one."""
        self._creeping = rip
        try:
            with self._exits(self._next()):
                result = self._go(count=1)
        finally:
            self._creeping = None
        self._stopped = self._asked
        return result

    def _exact_address(self, page: int, kind: AccessKind) -> int:
        """The address in a page where the instruction at RIP was refused.

        Unicorn tells the page only.  So the instruction is tried once more, with scratch pages in place of this page
        and of all that it writes; a hook sees the address.  Then all is put back."""
        saved = self.uc.context_save()
        search = self._search = _Search(page)

        def look(engine: Any, _access: int, pa: int, size: int, _value: int, _data: Any) -> None:
            if search.offset is None and pa < _SCRATCH + 0x1000:
                search.offset = pa & _IN_PAGE
            search.crossing = (pa & _IN_PAGE) + size > 0x1000
            if search.offset is not None:
                engine.emu_stop()

        self.flush()
        hook = self.uc.hook_add(_MEM_HOOKS[kind], look, begin=_SCRATCH, end=_SCRATCH + 0x1FFF)
        try:
            with self._exits(self._next()):
                self.uc.emu_start(self.uc.reg_read(x86.UC_X86_REG_RIP), 0, count=1)
        except unicorn.UcError:
            pass  # it would fault elsewhere, too
        finally:
            self.uc.hook_del(hook)
            self._search = None
            self.flush()
            self.uc.context_restore(saved)
        return page | (search.offset or 0)

    # --- exceptions ---

    def _exception(self, vector: int) -> Result | None:
        """Unicorn has raised an exception by itself.  It keeps it as one that is being delivered, so that the next one
        would be a double fault; and only a saved context shows the error code."""
        error_code, in_delivery = _layout()
        saved = self.uc.context_save()
        words = ctypes.cast(saved.context, ctypes.POINTER(ctypes.c_int32))
        error = words[error_code] if vector in _WITH_ERROR_CODE else 0
        words[in_delivery] = -1
        self.uc.context_restore(saved)
        address = self.uc.reg_read(x86.UC_X86_REG_CR2) if vector == _PF else 0
        return self._deliver(Result(vector, Kind.FAULT, value=error, value2=address))

    def _unknown_instruction(self) -> Result | None:
        """One of the six, done by the machine; or #UD."""
        registers = Registers(*map(self.uc.reg_read, _REGISTERS))
        cpu = self.cpu._replace(cpl=self._cpl(), mode=64)
        code = self._code(registers.rip)
        done = self.machine.execute(code, registers, cpu)
        if done.name is None:
            return self._deliver(Result(_UD, Kind.FAULT))
        if done.result.kind == Kind.FAULT and done.result.ret == _PF:
            # it has got as far as its operand (rmp §2.1)
            if done.name == "RMPUPDATE":
                operand = self.read(done.result.value2, 16)
                if isinstance(operand, Result):
                    return self._deliver(operand)
                done = self.machine.execute(code, registers, cpu, operand)
            else:
                leaf = self.translate(done.result.value2)
                if isinstance(leaf, Result):
                    return self._deliver(leaf)
                page = self.nested(leaf.pa)
                if page is None:
                    return Result(_NPF, Kind.NPF, reason=Reason.NOT_PRESENT, value=_NPF_ABSENT, value2=leaf.pa)
                done = self.machine.execute(code, registers, cpu, page=page)
        if done.memory is not None:
            short = b"\x67" in code[: done.length - 3]
            refused = self.write(registers.rcx & (1 << 32) - 1 if short else registers.rcx, done.memory)
            if refused is not None:
                return self._deliver(refused)
        if done.result.kind != Kind.CODE:
            return self._deliver(done.result)
        for register, value in zip(_REGISTERS, done.registers, strict=True):
            self.uc.reg_write(register, value)
        if done.name in ("RMPUPDATE", "PSMASH") and not done.result.ret:
            self.flush()  # as processors do (rmp §2.2, TLBs)
        return None

    def _code(self, rip: int) -> bytes:
        """What can be fetched at RIP, as far as one instruction reaches."""
        here = min(_LONGEST, 0x1000 - (rip & _IN_PAGE))
        code = b""
        for at, size in ((rip, here), (rip + here & (1 << 64) - 1, _LONGEST - here)):
            more = self.read(at, size, AccessKind.FETCH)
            if isinstance(more, Result):
                break
            code += more
        return code

    def _deliver(self, fault: Result) -> Result | None:
        """Enter the handler of an exception; or hand back what has none."""
        if fault.kind != Kind.FAULT or not self.deliver or self._cpl() == 3:
            return fault
        while True:
            if fault.ret in (_PF, _VC):
                self.uc.reg_write(x86.UC_X86_REG_CR2, fault.value2)
            second = self._enter(fault.ret, fault.value)
            if second is None:
                return None
            if second.ret == _PF:
                self.uc.reg_write(x86.UC_X86_REG_CR2, second.value2)
            if fault.ret == _DF:
                raise EmulatorError(f"triple fault at {self.uc.reg_read(x86.UC_X86_REG_RIP):#x}")
            both = second.ret in _CONTRIBUTORY and fault.ret in (*_CONTRIBUTORY, _PF)
            if both or second.ret == fault.ret == _PF:
                second = Result(_DF, Kind.FAULT)
            fault = second

    def _enter(self, vector: int, error: int) -> Result | None:
        """Push the frame and go to the handler, at CPL 0; the fault that stood in the way."""
        _, base, limit, _ = self.uc.reg_read(x86.UC_X86_REG_IDTR)
        bad_gate = Result(_GP, Kind.FAULT, value=8 * vector + 2)
        if 16 * vector + 15 > limit:
            return bad_gate
        gate = self.read(base + 16 * vector, 16)
        if isinstance(gate, Result):
            return gate
        low, selector, stack, kind, middle, high, _ = struct.unpack("<HHBBHII", gate)
        if kind & 0x1F not in (_INTERRUPT_GATE, _TRAP_GATE) or stack & 7:
            return bad_gate
        if not kind & 0x80:
            return Result(_NP, Kind.FAULT, value=8 * vector + 2)
        rip, rsp, rflags, cs, ss = map(self.uc.reg_read, _FRAME)
        frame = [rip, cs, rflags if vector in _TRAPS else rflags | _RF, rsp, ss]
        if vector in _WITH_ERROR_CODE:
            frame.insert(0, error)
        top = (rsp & ~0xF) - 8 * len(frame) & (1 << 64) - 1
        refused = self.write(top, struct.pack(f"<{len(frame)}Q", *frame))
        if refused is not None:
            return refused
        rflags &= ~(_TF | _NT | _RF | _VM | (_IF if kind & 0xF == _INTERRUPT_GATE else 0))
        after = (high << 32 | middle << 16 | low, top, rflags, selector, ss)
        for register, value in zip(_FRAME, after, strict=True):
            self.uc.reg_write(register, value)
        return None


@functools.cache
def _layout() -> tuple[int, int]:
    """Where a saved context has the error code and the exception that is being delivered, in words of 32 bits.

    Unicorn does not say, so it is tried: a load of a bad selector changes these two."""
    selector = 0x7774
    engine = unicorn.Uc(const.UC_ARCH_X86, const.UC_MODE_64)
    engine.ctl_set_cpu_model(CPU_MODEL)
    engine.mem_map(0, 0x1000)
    engine.mem_write(0, bytes.fromhex("8ed8"))  # mov ds, eax
    engine.reg_write(x86.UC_X86_REG_RAX, selector)
    engine.hook_add(const.UC_HOOK_INTR, lambda engine, _vector, _data: engine.emu_stop())

    def words() -> tuple[int, ...]:
        saved = engine.context_save()
        return struct.unpack(f"<{saved.size // 4}i", ctypes.string_at(saved.context, saved.size & ~3))

    before = words()
    engine.emu_start(0, 0x800)
    after = words()
    changed = {at: (old, new) for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    error_code = [at for at, (_, new) in changed.items() if new == selector]
    in_delivery = [at for at, pair in changed.items() if pair == (-1, _GP)]
    if len(error_code) != 1 or len(in_delivery) != 1:
        raise EmulatorError(f"Unicorn {unicorn.__version__} keeps its exceptions in another way")
    return error_code[0], in_delivery[0]
