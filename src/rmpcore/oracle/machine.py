"""The oracle's machine: ops on the page tables, the RMP and the kernel of one memory map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from rmpcore.cpu import Cpu, Executed, Page, Registers
from rmpcore.machine import MachineError
from rmpcore.maps import DIRECT_MAP_LIMIT, PAGE_SIZE, PHYSICAL_LIMIT, MachineMap
from rmpcore.ops import (
    BY_CODE,
    EVENT_DTYPE,
    OP_DTYPE,
    RESULT_DTYPE,
    AccessKind,
    Flavour,
    Kind,
    Op,
    OpCode,
    OpFlag,
    OpSpec,
    Refusal,
    Result,
    ResultFlag,
    Who,
)
from rmpcore.oracle.access_check import Access, AccessChecks
from rmpcore.oracle.cpa import ChangePageAttributes, Spans
from rmpcore.oracle.dmap import HIGH_MAPPING, DirectMap
from rmpcore.oracle.emulate import LEVELS, Emulator
from rmpcore.oracle.fault import FaultError
from rmpcore.oracle.firmware import CONTEXTS_MAX, RECORD_SIZE, RECORDS_MAX, Firmware, Record
from rmpcore.oracle.guest_insn import GuestInstructions
from rmpcore.oracle.host_access import FaultHandler, HostAccesses
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import Memory
from rmpcore.oracle.policy import POLICY, DirectMapCalls
from rmpcore.oracle.profile import hardware_profile, kernel_profile
from rmpcore.oracle.rmp_check import IN_USE_ROWS_MAX, PagesInUse, Predicates
from rmpcore.oracle.rmp_entry import RmpEntry, field
from rmpcore.oracle.rmp_insn import INJECT_RUNS_MAX, RmpInput, SnpInstructions
from rmpcore.oracle.rmp_table import COUNTS, FRAMES, RmpTable, kernel_reserved, open_table
from rmpcore.oracle.snp_host import HangError, SnpHost
from rmpcore.oracle.validate import first_broken, pages_counted
from rmpcore.page_state import PageState, page_state
from rmpcore.state import COUNTERS, RMP_DTYPE, State, entries

INJECT_CODES = range(256)
INJECT_COUNTS = range(1, (1 << 20) + 1)
KERNEL_PAGES_MAX = 1 << 20
"""Of one call that takes pages one by one."""
ADDRESSES_MAX = 1024
ASIDS = range(1, 0x400)

_PLAIN = 25
"""Bit of an op's mode: the guest is none with SNP."""
_C = 24
"""Bit of an op's mode: the guest's mapping is private."""

_HOST_LAYER = frozenset(
    {
        OpCode.rmpupdate,
        OpCode.rmp_make_private,
        OpCode.rmp_make_firmware,
        OpCode.rmp_make_shared,
        OpCode.psmash,
        OpCode.snp_lookup_rmpentry,
        OpCode.adjust_direct_map,
        OpCode.dump_rmpentry,
        OpCode.snp_leak_pages,
        OpCode.rmp_mark_pages_firmware,
        OpCode.snp_reclaim_pages,
    }
)
_FIELDS = ("level", "id", "addr", "gpa", "count", "va", "rcx", "rdx", "reserved")
"""Of an op record, those that are not made of bits."""


def _unused(spec: OpSpec) -> Callable[[Op], tuple[int, ...]]:
    """What a record holds in the fields that its op has no use for."""
    used = {arg.field for arg in spec.args}
    return itemgetter(*(Op._fields.index(name) for name in _FIELDS if name not in used))


_UNUSED = {code: _unused(spec) for code, spec in BY_CODE.items()}
_MASKS = {code: (spec.flag_mask, spec.mode_mask) for code, spec in BY_CODE.items()}
"""Bits of ``flags`` and ``mode`` that an op has a use for."""


class RefusedError(Exception):
    """The model cannot do this op."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


class OracleMachine:
    """The slow machine; implements :class:`rmpcore.machine.MachineLike`."""

    def __init__(
        self,
        map: MachineMap,
        *,
        kernel: str = "6.12",
        hardware: str = "milan",
        switches: Mapping[str, int] | None = None,
        policy: str = "upstream",
        state: State | None = None,
    ) -> None:
        self._map = map
        self._policy = policy
        self._kernel = kernel_profile(kernel)
        self._hardware = hardware_profile(hardware, switches or {})
        self._journal = Journal()
        self._memory = Memory(map)
        self._table = open_table(map, self._kernel, self._hardware)
        self._in_use = PagesInUse()
        self._instructions = SnpInstructions(self._table, self._hardware, map.c_bit, self._in_use, self._journal)
        self._checks: AccessChecks | None = None
        predicates: Predicates | None = None
        if self._table is not None:
            predicates = Predicates(self._table, self._hardware, self._in_use)
            self._checks = AccessChecks(predicates, self._hardware)
        self._guests = GuestInstructions(predicates, self._hardware, map.c_bit, self._journal)
        self._emulator = Emulator(self._instructions, self._guests, self._hardware)
        self._firmware = Firmware(map, self._kernel, self._hardware, self._table, self._journal)
        # host §6.1
        paged = replace(map, large_pages="4K") if POLICY[policy].largest_is_4k else map
        self._dmap = DirectMap(paged, self._memory, self._journal)
        self._cpa = ChangePageAttributes(paged, self._kernel, self._dmap, self._memory, self._journal)
        self._calls = DirectMapCalls(self._memory, self._dmap, self._cpa)
        rules = POLICY[policy](self._calls)
        self._host = SnpHost(
            self._kernel,
            self._memory,
            self._table,
            self._instructions,
            self._firmware,
            rules,
            self._journal,
        )
        handler = FaultHandler(self._host, self._calls, self._journal)
        self._accesses = HostAccesses(map, self._dmap, self._checks, rules, handler, self._journal)
        self._do: dict[OpCode, Callable[[Op], Result]] = {
            OpCode.RMPUPDATE: self._insn_rmpupdate,
            OpCode.PSMASH: self._insn_psmash,
            OpCode.RMPREAD: self._insn_rmpread,
            OpCode.rmpupdate: self._rmpupdate,
            OpCode.rmp_make_private: self._rmp_make_private,
            OpCode.rmp_make_firmware: self._rmp_make_firmware,
            OpCode.rmp_make_shared: self._rmp_make_shared,
            OpCode.psmash: self._psmash,
            OpCode.snp_lookup_rmpentry: self._snp_lookup_rmpentry,
            OpCode.adjust_direct_map: self._adjust_direct_map,
            OpCode.dump_rmpentry: self._dump_rmpentry,
            OpCode.snp_leak_pages: self._snp_leak_pages,
            OpCode.lookup: self._lookup,
            OpCode.set_direct_map_invalid_noflush: self._set_direct_map_invalid_noflush,
            OpCode.set_direct_map_default_noflush: self._set_direct_map_default_noflush,
            OpCode.set_direct_map_valid_noflush: self._set_direct_map_valid_noflush,
            OpCode.inject: self._inject,
            OpCode.fail_alloc: self._fail_alloc,
            OpCode.cpa_address: self._cpa_address,
            OpCode.PVALIDATE: self._insn_pvalidate,
            OpCode.RMPADJUST: self._insn_rmpadjust,
            OpCode.RMPQUERY: self._insn_rmpquery,
            OpCode.VMRUN: self._vmrun,
            OpCode.VMEXIT: self._vmexit,
            OpCode.access: self._access,
            OpCode.host_read: partial(self._host_access, self._accesses.host_read),
            OpCode.host_write: partial(self._host_access, self._accesses.host_write),
            OpCode.kvm_read_guest: partial(self._host_access, self._accesses.kvm_read_guest),
            OpCode.kvm_write_guest: partial(self._host_access, self._accesses.kvm_write_guest),
            OpCode.rmp_mark_pages_firmware: self._rmp_mark_pages_firmware,
            OpCode.snp_reclaim_pages: self._snp_reclaim_pages,
            OpCode.page_state: self._page_state,
        }
        self._do |= {OpCode(code): self._firmware_command for code in self._firmware.commands}
        # direct-map §7: what names its pages in one of the three flavours.
        calls: dict[OpCode, Callable[[Spans], int]] = {
            OpCode.set_memory_4k: self._cpa.set_memory_4k,
            OpCode.set_memory_ro: self._cpa.set_memory_ro,
            OpCode.set_memory_rw: self._cpa.set_memory_rw,
            OpCode.set_memory_rox: self._cpa.set_memory_rox,
            OpCode.set_memory_nx: self._cpa.set_memory_nx,
            OpCode.set_memory_x: self._cpa.set_memory_x,
            OpCode.set_memory_np: self._cpa.set_memory_np,
            OpCode.set_memory_p: self._cpa.set_memory_p,
            OpCode.set_memory_np_noalias: self._cpa.set_memory_np_noalias,
            OpCode.set_memory_global: self._cpa.set_memory_global,
            OpCode.set_memory_nonglobal: self._cpa.set_memory_nonglobal,
            OpCode._set_memory_uc: self._cpa.set_memory_uc,
            OpCode._set_memory_wc: self._cpa.set_memory_wc,
            OpCode._set_memory_wb: self._cpa.set_memory_wb,
            OpCode.set_memory_encrypted: self._cpa.set_memory_encrypted,
            OpCode.set_memory_decrypted: self._cpa.set_memory_decrypted,
        }
        masked: dict[OpCode, Callable[[Spans, int], int]] = {
            OpCode.change_page_attr_set: self._cpa.change_page_attr_set,
            OpCode.change_page_attr_clear: self._cpa.change_page_attr_clear,
        }
        self._do |= {code: partial(self._change, call) for code, call in calls.items()}
        self._do |= {code: partial(self._change_masked, call) for code, call in masked.items()}
        self._addresses: list[tuple[int, int]] = []
        """What cpa_address has listed: frame, and 1 for its place in the high mapping."""
        if state is None:
            self._dmap.boot()
        else:
            self._load(state)
        if self._kernel.keeps_off_rmp_blocks:
            # Boot-time tables may lie there; nothing is put there afterwards.
            self._memory.keep_off(kernel_reserved(map, self._table))
        self._pages_at_first = pages_counted(self._journal.counters)

    @property
    def backend(self) -> str:
        return "oracle"

    @property
    def map(self) -> MachineMap:
        return self._map

    @property
    def kernel(self) -> str:
        return self._kernel.name

    @property
    def policy(self) -> str:
        return self._policy

    # -- ops ----------------------------------------------------------------------------------

    def apply(self, op: Op) -> Result:
        try:
            return self._do[self._checked(op)](op)
        except RefusedError as refused:
            return Result(int(refused.reason), int(Kind.REFUSED))
        except FaultError as fault:
            return fault.result
        except HangError as hang:
            return Result(hang.code, int(Kind.HANG))

    def run(self, ops: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        if not isinstance(ops, np.ndarray) or ops.dtype != OP_DTYPE or ops.ndim != 1:
            raise TypeError("ops has to be a one-dimensional array of OP_DTYPE records")
        return np.array([tuple(self.apply(Op(*record))) for record in ops.tolist()], dtype=RESULT_DTYPE)

    def _checked(self, op: Op) -> OpCode:
        """The op's number, when the list and this kernel have it and the record says nothing else."""
        spec: OpSpec | None = BY_CODE.get(op.op)  # type: ignore[call-overload]
        if spec is None or not self._exists(spec.code):
            raise RefusedError(Refusal.BAD_OP)
        flags, mode = _MASKS[spec.code]
        self._require(not op.flags & ~flags and not op.mode & ~mode and not any(_UNUSED[spec.code](op)))
        return spec.code

    def _exists(self, code: OpCode) -> bool:
        """direct-map §10."""
        if code in _HOST_LAYER:
            return self._kernel.has_snp_host
        if code == OpCode.set_direct_map_valid_noflush:
            return self._kernel.has_set_direct_map_valid
        if code == OpCode.set_memory_rox:
            return self._kernel.has_set_memory_rox
        return True

    def _require(self, condition: bool) -> None:
        if not condition:
            raise RefusedError(Refusal.BAD_ARGUMENT)

    # Instructions.

    def _insn_rmpupdate(self, op: Op) -> Result:
        return self._instructions.rmpupdate(op.addr, self._input(op, op.count), **_mode(op)).result

    def _insn_psmash(self, op: Op) -> Result:
        return self._instructions.psmash(op.addr, **_mode(op)).result

    def _insn_rmpread(self, op: Op) -> Result:
        return self._instructions.rmpread(op.addr, **_mode(op)).result

    @staticmethod
    def _input(op: Op, others: int = 0) -> RmpInput:
        return RmpInput.of(
            assigned=_flag(op, OpFlag.ASSIGNED),
            page_size=_flag(op, OpFlag.SIZE_2M),
            gpa=op.gpa,
            asid=op.id,
            immutable=_flag(op, OpFlag.IMMUTABLE),
            others=others,
        )

    def _guest_of(self, op: Op) -> tuple[Cpu, Page]:
        """Who executes a guest instruction, and what its address is translated to."""
        cpu = Cpu(asid=op.id, vmpl=_vmpl(op), cpl=3 * _flag(op, OpFlag.USER), snp=not field(op.mode, _PLAIN, _PLAIN))
        self._require(cpu.vmpl < self._hardware.vmpls and op.level in LEVELS)
        return cpu, Page(op.addr, op.gpa, op.level)

    def _insn_pvalidate(self, op: Op) -> Result:
        cpu, page = self._guest_of(op)
        return self._guests.pvalidate(cpu, op.va, op.rcx, op.rdx, page)

    def _insn_rmpadjust(self, op: Op) -> Result:
        cpu, page = self._guest_of(op)
        return self._guests.rmpadjust(cpu, op.va, op.rcx, op.rdx, page)

    def _insn_rmpquery(self, op: Op) -> Result:
        cpu, page = self._guest_of(op)
        return self._guests.rmpquery(cpu, op.va, op.rdx, page)

    def execute(
        self,
        code: bytes,
        registers: Registers,
        cpu: Cpu = Cpu(),  # noqa: B008 - immutable
        operand: bytes | None = None,
        page: Page | None = None,
    ) -> Executed:
        return self._emulator.execute(code, registers, cpu, operand, page)

    # Accesses, and what VMRUN checks.

    def _access(self, op: Op) -> Result:
        who, kind, vmpl = field(op.mode, 7, 0), field(op.mode, 15, 8), _vmpl(op)
        self._require(who <= Who.VMSAVE and kind <= AccessKind.SHADOW_STACK)
        self._require(vmpl < self._hardware.vmpls and op.level in LEVELS)
        # rmp §3.7: what VMRUN and VMSAVE need of a page is no matter of reads and writes.
        self._require(who < Who.VMCB or kind == AccessKind.READ)
        access = Access(
            self._frame(op.addr),
            AccessKind(kind),
            level=op.level,
            gpa=op.gpa,
            asid=op.id,
            private=bool(field(op.mode, _C, _C)),
            vmpl=vmpl,
            user=bool(_flag(op, OpFlag.USER)),
            gva=op.va,
            pa=op.addr,
        )
        return self._reported(op.addr, partial(self._checked_access, who, access))

    def _checked_access(self, who: int, access: Access) -> Result:
        # Without SNP nothing is checked.
        if self._checks is not None:
            self._checks.check(who, access)
        return Result(0, int(Kind.ALLOWED))

    def _reported(self, address: int, access: Callable[[], Result]) -> Result:
        """An access that is refused leaves an event."""
        try:
            return access()
        except FaultError as fault:
            self._journal.fault(address, fault.result)
            raise

    def _host_access(self, access: Callable[[int], Result], op: Op) -> Result:
        self._require(self._in_direct_map(op.addr, 1))
        return access(op.addr)

    def _vmrun(self, op: Op) -> Result:
        self._require(self._table is not None)
        vmcb, vmsa, avic = self._page(op.addr), self._page(op.va), self._page(op.count)
        self._require(vmcb not in self._in_use.rows)
        if len(self._in_use.rows) >= IN_USE_ROWS_MAX:
            raise RefusedError(Refusal.QUEUE_FULL)
        needed = [(Who.VMCB, vmcb, op.addr)]
        if avic:
            needed.append((Who.AVIC, avic, op.count))
        if vmsa:
            plain = field(op.mode, _PLAIN, _PLAIN)
            needed.append((Who.VMSA_PLAIN if plain else Who.VMSA_SNP, vmsa, op.va))
        for who, pfn, address in needed:
            access = Access(pfn, gpa=op.gpa, asid=op.id, pa=address)
            self._reported(address, partial(self._checked_access, who, access))
        self._in_use.start(vmcb, vmsa, avic)
        return Result(0, int(Kind.ALLOWED))

    def _vmexit(self, op: Op) -> Result:
        self._require(self._table is not None)
        vmcb = self._page(op.addr)
        self._require(vmcb in self._in_use.rows)
        self._in_use.end(vmcb)
        return Result(0)

    def _frame(self, address: int) -> int:
        """The frame of a system physical address; the C-bit is removed first (rmp §1.6)."""
        return (address & ~self._map.c_bit) // PAGE_SIZE

    def _page(self, address: int) -> int:
        """The same of an address that has to be a page's."""
        pfn = self._frame(address)
        self._require(address % PAGE_SIZE == 0 and pfn < FRAMES)
        return pfn

    # The firmware.

    def _firmware_command(self, op: Op) -> Result:
        return Result(self._firmware.command(op), int(Kind.FIRMWARE))

    def _page_state(self, op: Op) -> Result:
        if self._table is None or not self._table.covered(op.addr):
            return Result(int(PageState.DEFAULT))
        lo, _ = self._table.read(op.addr).encode()
        return Result(int(page_state(lo)))

    # The kernel's SNP layer.

    def _rmpupdate(self, op: Op) -> Result:
        return Result(self._host.rmpupdate(op.addr, self._input(op)))

    def _rmp_make_private(self, op: Op) -> Result:
        immutable = _flag(op, OpFlag.IMMUTABLE)
        return Result(self._host.rmp_make_private(op.addr, op.gpa, op.level, op.id, immutable))

    def _rmp_make_firmware(self, op: Op) -> Result:
        return Result(self._host.rmp_make_firmware(op.addr, op.level))

    def _rmp_make_shared(self, op: Op) -> Result:
        return Result(self._host.rmp_make_shared(op.addr, op.level))

    def _psmash(self, op: Op) -> Result:
        return Result(self._host.psmash(op.addr))

    def _snp_lookup_rmpentry(self, op: Op) -> Result:
        looked = self._host.snp_lookup_rmpentry(op.addr)
        flags = int(ResultFlag.ASSIGNED) if looked.assigned else 0
        return Result(looked.ret, level=looked.level, flags=flags)

    def _adjust_direct_map(self, op: Op) -> Result:
        return Result(self._calls.adjust_direct_map(op.addr, op.level))

    def _dump_rmpentry(self, op: Op) -> Result:
        self._host.dump_rmpentry(op.addr)
        return Result(0)

    def _snp_leak_pages(self, op: Op) -> Result:
        self._require_pages(op)
        self._host.snp_leak_pages(op.addr, op.count)
        return Result(0)

    def _rmp_mark_pages_firmware(self, op: Op) -> Result:
        self._require_pages(op)
        return Result(self._host.rmp_mark_pages_firmware(op.addr, op.count))

    def _snp_reclaim_pages(self, op: Op) -> Result:
        self._require_pages(op)
        return Result(self._host.snp_reclaim_pages(op.addr, op.count))

    def _require_pages(self, op: Op) -> None:
        """All of them have to be memory to the kernel."""
        self._require(op.count <= KERNEL_PAGES_MAX)
        self._require(all(self._memory.pfn_valid(pfn) for pfn in range(op.addr, op.addr + op.count)))

    # The direct map.

    def _in_direct_map(self, pfn: int, pages: int, high: int = 0) -> bool:
        """What lies beyond the direct map's area, or beyond the high mapping's, is not modelled."""
        if not high:
            return pfn + pages <= DIRECT_MAP_LIMIT[self._map.levels] // PAGE_SIZE
        if self._map.image is None:
            return False
        span = self._dmap.span(pfn, pages, high=True)
        return HIGH_MAPPING.start <= span.start and span.stop <= HIGH_MAPPING.stop

    def _spans(self, op: Op) -> Spans:
        """The addresses that an op of any flavour means; an array is used up by it."""
        high = _flag(op, OpFlag.HIGH)
        if op.level == Flavour.RANGE:
            self._require(self._in_direct_map(op.addr, op.count, high))
            return [self._dmap.span(op.addr, op.count, high=bool(high))]
        self._require(op.level in (Flavour.ARRAY, Flavour.PAGES))
        self._require(op.addr == 0 and not high and op.count <= len(self._addresses))
        meant = self._addresses[: op.count]
        # Pages are meant by frame: where they are is in the direct map.
        self._require(op.level == Flavour.ARRAY or not any(high for _, high in meant))
        self._addresses.clear()
        return [self._dmap.span(pfn, 1, high=bool(high)) for pfn, high in meant]

    def _change(self, call: Callable[[Spans], int], op: Op) -> Result:
        return Result(call(self._spans(op)))

    def _change_masked(self, call: Callable[[Spans, int], int], op: Op) -> Result:
        self._require(op.gpa & self._dmap.format.frame_mask == 0)
        return Result(call(self._spans(op), op.gpa))

    def _lookup(self, op: Op) -> Result:
        self._require(self._in_direct_map(op.addr, 1))
        found = self._dmap.lookup(self._dmap.virtual(op.addr))
        if found is None:
            return Result(0)
        flags = (ResultFlag.RW if found.rw else 0) | (ResultFlag.NX if found.nx else 0)
        return Result(0, level=found.level, flags=int(flags), value=found.raw)

    def _set_direct_map_invalid_noflush(self, op: Op) -> Result:
        self._require(self._in_direct_map(op.addr, 1))
        return Result(self._cpa.set_direct_map_invalid_noflush(op.addr))

    def _set_direct_map_default_noflush(self, op: Op) -> Result:
        self._require(self._in_direct_map(op.addr, 1))
        return Result(self._cpa.set_direct_map_default_noflush(op.addr))

    def _set_direct_map_valid_noflush(self, op: Op) -> Result:
        self._require(self._in_direct_map(op.addr, op.count))
        valid = bool(_flag(op, OpFlag.VALID))
        return Result(self._cpa.set_direct_map_valid_noflush(op.addr, op.count, valid))

    # Controls of the model.

    def _inject(self, op: Op) -> Result:
        # Without an RMP no instruction would ever take the code.
        self._require(self._table is not None and op.id in INJECT_CODES and op.count in INJECT_COUNTS)
        if len(self._instructions.injected) >= INJECT_RUNS_MAX:
            raise RefusedError(Refusal.QUEUE_FULL)
        self._instructions.injected.append([op.id, op.count])
        return Result(0)

    def _fail_alloc(self, op: Op) -> Result:
        self._memory.fail_skip, self._memory.fail_count = op.addr, op.count
        return Result(0)

    def _cpa_address(self, op: Op) -> Result:
        high = _flag(op, OpFlag.HIGH)
        self._require(self._in_direct_map(op.addr, 1, high))
        if len(self._addresses) >= ADDRESSES_MAX:
            raise RefusedError(Refusal.QUEUE_FULL)
        self._addresses.append((op.addr, high))
        return Result(0)

    # -- state --------------------------------------------------------------------------------

    def state(self) -> State:
        tables, leaves = self._dmap.rows()
        rmp = self._table.entries if self._table is not None else {}
        return State(
            root=self._dmap.root.address,
            tables=entries(tables),
            leaves=entries(leaves),
            rmp=np.array([(pfn, *rmp[pfn].encode()) for pfn in sorted(rmp)], dtype=RMP_DTYPE),
            counters=self.counters(),
            mapped=tuple((frames.start, frames.stop) for frames in self._dmap.mapped),
            max_pfn_mapped=self._dmap.max_pfn_mapped,
            kernel_readonly=self._dmap.kernel_readonly,
            inject=tuple((code, count) for code, count in self._instructions.injected),
            addresses=tuple(self._addresses),
            fail_alloc=(self._memory.fail_skip, self._memory.fail_count),
            in_use=tuple((vmcb, vmsa, avic) for vmcb, (vmsa, avic) in self._in_use.rows.items()),
            firmware_ready=self._firmware.ready,
            contexts=tuple(sorted(self._firmware.contexts.items())),
            records=tuple(_record_row(at, record) for at, record in sorted(self._firmware.records.items())),
            bookkeeping=tuple(sorted(self._table.counts.items())) if self._table is not None else (),
        )

    def counters(self) -> dict[str, int]:
        return self._journal.counters | {"table_pages": len(self._dmap.tables)}

    def census(self) -> dict[str, int]:
        return self._dmap.census()

    def _load(self, state: State) -> None:
        self._dmap.load(state)
        for name in COUNTERS:
            self._journal.counters[name] = state.counters.get(name, 0)
        for pfn, lo, hi in state.rmp.tolist():
            if self._table is None or not self._table.covered(pfn):
                raise MachineError(f"RMP entry of pfn {pfn:#x}: the table does not cover it")
            self._table.write(pfn, RmpEntry.decode(lo, hi))
        if state.inject and self._table is None:
            raise MachineError("injected codes, but no RMP")
        self._instructions.injected = [[code, count] for code, count in state.inject]
        self._addresses = [(pfn, high) for pfn, high in state.addresses]
        if len(self._addresses) > ADDRESSES_MAX:
            raise MachineError(f"{len(self._addresses)} listed addresses are more than {ADDRESSES_MAX}")
        for pfn, high in self._addresses:
            if high not in (0, 1) or not self._in_direct_map(pfn, 1, high):
                raise MachineError(f"listed address of pfn {pfn:#x} (high={high}): no mapping reaches it")
        self._memory.fail_skip, self._memory.fail_count = state.fail_alloc
        self._load_snp(state)

    def _load_snp(self, state: State) -> None:
        """What is beside the entries of the RMP."""
        lists = (state.in_use, state.contexts, state.records, state.bookkeeping)
        if self._table is None:
            if state.firmware_ready or any(lists):
                raise MachineError("pages in use, or work of the firmware, but no RMP")
            return
        self._load_in_use(state)
        self._firmware.ready = state.firmware_ready
        _check_rows("contexts", state.contexts, CONTEXTS_MAX)
        for pfn, asid in state.contexts:
            if pfn not in range(FRAMES) or (asid and asid not in ASIDS):
                raise MachineError(f"context of frame {pfn:#x} and ASID {asid}: there is no such page or ASID")
        self._firmware.contexts = dict(state.contexts)
        _check_rows("records", state.records, RECORDS_MAX)
        self._firmware.records = {row[0]: _record(row) for row in state.records}
        _check_rows("bookkeeping", state.bookkeeping, len(ASIDS))
        for asid, count in state.bookkeeping:
            if asid not in ASIDS or count not in range(1, COUNTS):
                raise MachineError(f"bookkeeping: ASID {asid} has count {count:#x}, which no counter shows")
        self._table.counts = dict(state.bookkeeping)

    def _load_in_use(self, state: State) -> None:
        if len(state.in_use) > IN_USE_ROWS_MAX:
            raise MachineError(f"{len(state.in_use)} rows of pages in use are more than {IN_USE_ROWS_MAX}")
        for vmcb, vmsa, avic in state.in_use:
            for pfn in (vmcb, vmsa, avic):
                if pfn not in range(FRAMES):
                    raise MachineError(f"page in use: there is no frame {pfn:#x}")
            if vmcb in self._in_use.rows:
                raise MachineError(f"the VMCB of frame {vmcb:#x} is in use twice")
            self._in_use.start(vmcb, vmsa, avic)

    def validate(self) -> str | None:
        return first_broken(self._map, self._memory, self._dmap, self._journal, self._pages_at_first)

    def record_events(self, on: bool) -> None:
        self._journal.listening = on
        if not on:
            self._journal.events.clear()

    def take_events(self) -> npt.NDArray[np.void]:
        events = np.array([tuple(event) for event in self._journal.events], dtype=EVENT_DTYPE)
        self._journal.events.clear()
        return events

    def read_rmp(self, pfn: int) -> tuple[int, int]:
        return self._covering(pfn).read(pfn).encode()

    def write_rmp(self, pfn: int, lo: int, hi: int) -> None:
        self._covering(pfn).write(pfn, RmpEntry.decode(lo, hi))

    def _covering(self, pfn: int) -> RmpTable:
        if self._table is None or pfn < 0 or not self._table.covered(pfn):
            raise IndexError(f"the RMP does not cover pfn {pfn:#x}")
        return self._table


def _flag(op: Op, flag: OpFlag) -> int:
    return 1 if op.flags & flag else 0


def _mode(op: Op) -> dict[str, bool]:
    """In which mode the instruction is executed."""
    return {"guest": bool(op.flags & OpFlag.GUEST), "user": bool(op.flags & OpFlag.USER)}


def _vmpl(op: Op) -> int:
    return field(op.mode, 23, 16)


def _check_rows(name: str, rows: tuple[tuple[int, ...], ...], most: int) -> None:
    """No more than there can be, and in ascending order of their first number."""
    if len(rows) > most:
        raise MachineError(f"{name}: {len(rows)} are more than {most}")
    keys = [row[0] for row in rows]
    if any(later <= earlier for earlier, later in pairwise(keys)):
        raise MachineError(f"{name}: not sorted, or one is there twice")


def _record_row(address: int, record: Record) -> tuple[int, int, int, int, int]:
    """A metadata record as a State has it."""
    info = record.validated + (record.vmsa << 1) + (record.page_size << 2) + (record.metadata << 3)
    return address, record.context, info, record.gpa_frame * PAGE_SIZE, record.permissions


def _record(row: tuple[int, int, int, int, int]) -> Record:
    address, context, info, gpa, permissions = row
    fits = address in range(PHYSICAL_LIMIT) and address % RECORD_SIZE == 0 and context in range(FRAMES)
    if not fits or info not in range(16) or gpa not in range(1 << 51) or gpa % PAGE_SIZE != 0:
        raise MachineError(f"the metadata record at {address:#x} is none that the firmware writes")
    return Record(
        context,
        validated=field(info, 0, 0),
        vmsa=field(info, 1, 1),
        page_size=field(info, 2, 2),
        metadata=field(info, 3, 3),
        gpa_frame=gpa // PAGE_SIZE,
        permissions=permissions,
    )
