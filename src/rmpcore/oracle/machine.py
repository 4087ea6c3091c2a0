"""The oracle's machine: ops on the page tables, the RMP and the kernel of one memory map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from rmpcore.machine import MachineError
from rmpcore.maps import DIRECT_MAP_LIMIT, PAGE_SIZE, MachineMap
from rmpcore.ops import (
    BY_CODE,
    EVENT_DTYPE,
    OP_DTYPE,
    RESULT_DTYPE,
    Flavour,
    Kind,
    Op,
    OpCode,
    OpFlag,
    OpSpec,
    Refusal,
    Result,
    ResultFlag,
)
from rmpcore.oracle.cpa import ChangePageAttributes, Spans
from rmpcore.oracle.dmap import HIGH_MAPPING, DirectMap
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import Memory
from rmpcore.oracle.profile import hardware_profile, kernel_profile
from rmpcore.oracle.rmp_entry import RmpEntry
from rmpcore.oracle.rmp_insn import INJECT_RUNS_MAX, FaultError, RmpInput, SnpInstructions
from rmpcore.oracle.rmp_table import RmpTable, open_table
from rmpcore.oracle.snp_host import HangError, SnpHost
from rmpcore.oracle.validate import first_broken, pages_counted
from rmpcore.state import COUNTERS, RMP_DTYPE, State, entries

INJECT_CODES = range(256)
INJECT_COUNTS = range(1, (1 << 20) + 1)
LEAK_PAGES_MAX = 1 << 20
ADDRESSES_MAX = 1024

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
    }
)


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
        state: State | None = None,
    ) -> None:
        self._map = map
        self._kernel = kernel_profile(kernel)
        profile = hardware_profile(hardware, switches or {})
        self._journal = Journal()
        self._memory = Memory(map)
        self._table = open_table(map)
        self._instructions = SnpInstructions(self._table, profile, map.c_bit, self._journal)
        self._dmap = DirectMap(map, self._memory, self._journal)
        self._cpa = ChangePageAttributes(map, self._kernel, self._dmap, self._memory, self._journal)
        self._host = SnpHost(self._memory, self._table, self._instructions, self._dmap, self._cpa, self._journal)
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
        }
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

    # -- ops ----------------------------------------------------------------------------------

    def apply(self, op: Op) -> Result:
        try:
            return self._do[self._checked(op)](op)
        except RefusedError as refused:
            return Result(int(refused.reason), int(Kind.REFUSED))
        except FaultError as fault:
            return Result(fault.vector, int(Kind.FAULT))
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
        used = {arg.field for arg in spec.args}
        unused = {"level", "id", "addr", "gpa", "count"} - used
        if op.flags & ~int(spec.flag_mask) or any(getattr(op, name) != 0 for name in unused):
            raise RefusedError(Refusal.BAD_ARGUMENT)
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
        state = self._input(op)
        # ``reserved`` is laid over the input's high quadword; all fields are then read from that.
        state = RmpInput(state.gpa, state.high | op.count)
        done = self._instructions.rmpupdate(op.addr, state, **_mode(op))
        return Result(done.code, int(Kind.CODE))

    def _insn_psmash(self, op: Op) -> Result:
        return Result(self._instructions.psmash(op.addr, **_mode(op)).code, int(Kind.CODE))

    def _insn_rmpread(self, op: Op) -> Result:
        done = self._instructions.rmpread(op.addr, **_mode(op))
        return Result(done.code, int(Kind.CODE), value=done.low, value2=done.high)

    @staticmethod
    def _input(op: Op) -> RmpInput:
        return RmpInput.of(
            assigned=_flag(op, OpFlag.ASSIGNED),
            page_size=_flag(op, OpFlag.SIZE_2M),
            gpa=op.gpa,
            asid=op.id,
            immutable=_flag(op, OpFlag.IMMUTABLE),
        )

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
        return Result(looked.errno, level=looked.level, flags=flags)

    def _adjust_direct_map(self, op: Op) -> Result:
        return Result(self._host.adjust_direct_map(op.addr, op.level))

    def _dump_rmpentry(self, op: Op) -> Result:
        self._host.dump_rmpentry(op.addr)
        return Result(0)

    def _snp_leak_pages(self, op: Op) -> Result:
        self._require(op.count <= LEAK_PAGES_MAX)
        self._require(all(self._memory.pfn_valid(pfn) for pfn in range(op.addr, op.addr + op.count)))
        self._host.snp_leak_pages(op.addr, op.count)
        return Result(0)

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
            counters=self._journal.counters | {"table_pages": len(self._dmap.tables)},
            mapped=tuple((frames.start, frames.stop) for frames in self._dmap.mapped),
            max_pfn_mapped=self._dmap.max_pfn_mapped,
            kernel_readonly=self._dmap.kernel_readonly,
            inject=tuple((code, count) for code, count in self._instructions.injected),
            addresses=tuple(self._addresses),
            fail_alloc=(self._memory.fail_skip, self._memory.fail_count),
        )

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
