"""Conformance to recordings of real kernels: does a machine do, entry by entry, what the kernel did?

A recording holds the page tables after boot and, in most kinds, the calls made into the kernel with the state
before and after them.  The machine boots from the recording's memory map and is compared; then it loads the state
before, replays the calls, and is compared after each and at the end.  Two things are not compared: the addresses
of table pages (the page allocator's business), and at boot the accessed and dirty bits that the CPU set in table
entries.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmpcore.inputs import Node, parse_json, read_text, recording_map
from rmpcore.machine import Machine, MachineError, MachineLike
from rmpcore.maps import DIRECT_MAP_LIMIT, PAGE_SIZE, U64_MAX, MachineMap
from rmpcore.ops import BY_NAME, EventKind, Kind, Op, OpError, ResultFlag, make_op
from rmpcore.state import COUNTERS, ENTRY_DTYPE, State, diff_entries

CALLS = (
    "set_memory_4k",
    "set_direct_map_invalid_noflush",
    "set_direct_map_default_noflush",
    "set_direct_map_valid_noflush",
    "rmp_make_private",
    "rmp_make_shared",
    "psmash",
    "snp_lookup_rmpentry",
)
"""Recorded calls that the machines implement; their arguments come in the order of the op list."""
SHOWN = 10
"""Differences that are kept in words; the others are only counted."""

_SNP_CALLS = CALLS[4:]
_INSTRUCTIONS = {"RMPUPDATE": EventKind.RMPUPDATE, "PSMASH": EventKind.PSMASH, "RMPREAD": EventKind.RMPREAD}
_ADDRESS_BITS = 0x000F_FFFF_FFFF_F000
_ACCESSED_DIRTY = 0x60
_SLOT_SHIFT = {1: 12, 2: 21, 3: 30, 4: 39, 5: 48}
_HIGH_WINDOW = 1 << 30
_PAGE_COUNTS = ("direct_map_4k", "direct_map_2m", "direct_map_1g")


class RecordingError(ValueError):
    """A recording that cannot be read: one line with the file and what is wrong."""


class _Instruction(NamedTuple):
    """An executed instruction: its number as an event, RAX, the 16-byte input, EAX."""

    kind: int
    rax: int
    low: int
    high: int
    ret: int

    def __str__(self) -> str:
        text = f"{EventKind(self.kind).name} rax={self.rax:#x}"
        if self.kind == EventKind.RMPUPDATE:
            text += f" input=[{self.low:#018x} - {self.high:#018x}]"
        return f"{text} ret={self.ret}"


@dataclass(frozen=True)
class _Call:
    place: str
    op: Op
    injected: tuple[int, ...]
    ret: tuple[int, ...]
    """The return value; of snp_lookup_rmpentry errno, assigned and level."""
    page_counts: tuple[int, ...]
    instructions: tuple[_Instruction, ...]


@dataclass
class Conformance:
    """What became of one recording on one backend."""

    file: str
    kernel: str
    kind: str
    """boot: no calls; snp, dmap: calls that are implemented; cpa: other calls."""
    backend: str
    compared: dict[str, int] = field(default_factory=dict)
    """How many values of each sort were compared."""
    differences: list[str] = field(default_factory=list)
    """The first of them in words."""
    different: int = 0
    """How many there are."""
    not_implemented: tuple[str, ...] = ()
    """Recorded calls that the machines cannot do; the recording then fails."""

    @property
    def passed(self) -> bool:
        return not self.different and not self.not_implemented and sum(self.compared.values()) > 0

    def count(self, what: str, number: int = 1) -> None:
        self.compared[what] = self.compared.get(what, 0) + number

    def differ(self, text: str) -> None:
        self.different += 1
        if len(self.differences) < SHOWN:
            self.differences.append(text)

    def check(self, what: str, place: str, recorded: object, ours: object) -> None:
        self.count(what)
        if recorded != ours:
            self.differ(f"{place}: recorded {recorded}, {self.backend} {ours}")


# --- reading -------------------------------------------------------------------------------------------------------


def _signed(node: Node) -> int:
    """A C int, which may have been written as an unsigned number."""
    value = node.integer(-(1 << 31), (1 << 32) - 1)
    return value - (1 << 32) if value >= 1 << 31 else value


def _table_rows(node: Node, window: int, top: int, size: int) -> list[tuple[int, int, int, int]]:
    rows = []
    for item in node.items():
        level, offset, raw = item.items(3)
        number = level.integer(2, top)
        position = offset.integer(0, size - 1)
        if position % (1 << _SLOT_SHIFT[number]):
            offset.fail(f"{position:#x} is not the start of a level-{number} entry")
        rows.append((window, number, position, raw.integer(1)))
    return rows


def _leaf_rows(node: Node, window: int, top: int, size: int, room: dict[int, int]) -> list[npt.NDArray[np.void]]:
    """The runs of a recording, entry by entry.  ``room``: entries that the tables of each level have."""
    parts = []
    for item in node.items():
        level, offset, count, raw, step = item.items(5)
        number = level.integer(1, top)
        slot = 1 << _SLOT_SHIFT[number]
        start = offset.integer(0, size - 1)
        if start % slot:
            offset.fail(f"{start:#x} is not the start of a level-{number} entry")
        entries = count.integer(1, (size - start) // slot)
        room[number] = room.get(number, 0) - entries
        if room[number] < 0:
            count.fail(f"more level-{number} entries than the recorded tables have room for")
        run = np.zeros(entries, dtype=ENTRY_DTYPE)
        index = np.arange(entries, dtype=np.uint64)
        run["window"], run["level"] = window, number
        run["offset"] = index * np.uint64(slot) + np.uint64(start)
        run["raw"] = index * np.uint64(step.integer(-U64_MAX) & U64_MAX) + np.uint64(raw.integer(1))
        if not run["raw"].all():
            raw.fail("the run goes through zero, and entries of value zero are not listed")
        parts.append(run)
    return parts


def _sorted(entries: npt.NDArray[np.void], node: Node) -> npt.NDArray[np.void]:
    order = np.lexsort((entries["offset"], -entries["level"].astype(np.int8), entries["window"]))
    entries = entries[order]
    same = np.ones(max(len(entries) - 1, 0), dtype=bool)
    for name in ("window", "level", "offset"):
        same &= entries[name][1:] == entries[name][:-1]
    if same.any():
        twice = entries[int(np.argmax(same))]
        node.fail(f"the level-{twice['level']} entry at {int(twice['offset']):#x} is given twice")
    return entries


def _read_state(node: Node, machine: MachineMap) -> State:
    """A recorded state.  Only what is recorded is filled in; the high windows may be absent."""
    limit = DIRECT_MAP_LIMIT[machine.levels]
    rows = _table_rows(node["tables"], 0, machine.levels, limit)
    tables_at = [level for _, level, _, _ in rows]
    room = {level: 512 * tables_at.count(level + 1) for level in (1, 2, 3)}
    node["leaves"].items(at_least=1)
    leaves = _leaf_rows(node["leaves"], 0, 3, limit, room)
    high_tables, high_leaves = node.get("high_tables"), node.get("high_leaves")
    if (high_tables is None) != (high_leaves is None):
        node.fail("has one of high_tables and high_leaves without the other")
    if high_tables is not None and high_leaves is not None:
        high = _table_rows(high_tables, 1, 2, _HIGH_WINDOW)
        rows += high
        leaves += _leaf_rows(high_leaves, 1, 2, _HIGH_WINDOW, {2: 512, 1: 512 * len(high)})
    frames = limit // PAGE_SIZE
    mapped = [(first.integer(0, frames), end.integer(0, frames)) for first, end in _pairs(node["pfn_mapped"])]
    counts = dict.fromkeys(COUNTERS, 0)
    for name in _PAGE_COUNTS:
        counts[name] = node["page_counts"][name.rpartition("_")[2]].integer()
    return State(
        root=node["root"].integer(),
        tables=_sorted(np.array(rows, dtype=ENTRY_DTYPE), node["tables"]),
        leaves=_sorted(np.concatenate(leaves), node["leaves"]),
        rmp=np.zeros(0, dtype=[("pfn", "<u8"), ("lo", "<u8"), ("hi", "<u8")]),
        counters=counts,
        mapped=tuple(mapped),
        max_pfn_mapped=node["max_pfn_mapped"].integer(0, frames),
        kernel_readonly=bool(node["kernel_set_to_readonly"].integer(0, 1)),
    )


def _pairs(node: Node) -> list[list[Node]]:
    return [item.items(2) for item in node.items()]


def _read_instruction(node: Node) -> _Instruction:
    name = node["insn"].text()
    if name not in _INSTRUCTIONS:
        node["insn"].fail(f"unknown instruction {name[:40]!r}")
    low = high = 0
    if name == "RMPUPDATE":
        text = node["input"].text()
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if len(data) != 16 or len(text) != 32:
            node["input"].fail("is not 16 bytes in hexadecimal")
        low, high = (int.from_bytes(half, "little") for half in (data[:8], data[8:]))
    return _Instruction(_INSTRUCTIONS[name], node["rax"].integer(), low, high, node["ret"].integer(0, 0xFFFF_FFFF))


def _read_call(node: Node) -> _Call:
    name = node["fn"].text()
    spec = BY_NAME[name]
    args = node["args"].items(len(spec.args))
    try:
        op = make_op(name, **{arg.name: value.integer() for arg, value in zip(spec.args, args, strict=True)})
    except OpError as e:
        node["args"].fail(str(e))
    injected, insns = node.get("injected"), node.get("insns")
    return _Call(
        place=f"{node.place} {op}",
        op=op,
        injected=tuple(code.integer(0, 255) for code in injected.items()) if injected is not None else (),
        ret=tuple(map(_signed, node["ret"].items(3) if name == "snp_lookup_rmpentry" else [node["ret"]])),
        page_counts=tuple(count.integer() for count in node["page_counts"].items(3)),
        instructions=tuple(map(_read_instruction, insns.items())) if insns is not None else (),
    )


# --- comparing -----------------------------------------------------------------------------------------------------


def _compare_entries(
    result: Conformance,
    what: str,
    place: str,
    recorded: npt.NDArray[np.void],
    ours: npt.NDArray[np.void],
    mask: int = U64_MAX,
) -> None:
    result.count(what, len(recorded))
    keys = ("window", "level", "offset")
    if len(recorded) == len(ours) and all(np.array_equal(recorded[key], ours[key]) for key in keys):
        bits = np.uint64(mask)
        if np.array_equal(recorded["raw"] & bits, ours["raw"] & bits):
            return
    for line in diff_entries(recorded, ours, "recorded", result.backend, mask):
        result.differ(f"{place}: {line}")


def _compare_states(result: Conformance, node: Node, recorded: State, machine: MachineLike, ignore: int = 0) -> None:
    """Compare everything that a recorded state holds.  ``ignore``: further bits of table entries to leave out."""
    ours = machine.state()
    tables, leaves = ours.tables, ours.leaves
    if node.get("high_leaves") is None:
        tables, leaves = tables[tables["window"] == 0], leaves[leaves["window"] == 0]
    place = node.place
    _compare_entries(result, "leaves", place, recorded.leaves, leaves)
    # The C-bit lies among the address bits and is a flag all the same (direct-map §1).
    mask = U64_MAX & ~(_ADDRESS_BITS & ~machine.map.c_bit) & ~ignore
    _compare_entries(result, "tables", place, recorded.tables, tables, mask)
    for name in _PAGE_COUNTS:
        result.check("counts", f"{place}: {name}", recorded.counters[name], ours.counters[name])
    result.check("ranges", f"{place}: pfn_mapped", recorded.mapped, ours.mapped)
    for name in ("max_pfn_mapped", "kernel_readonly"):
        result.check("values", f"{place}: {name}", getattr(recorded, name), getattr(ours, name))


def _replay(result: Conformance, machine: MachineLike, call: _Call, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Do one call and compare it.  ``counts``: our page counts before it; gives those after it."""
    for code in call.injected:
        machine.apply(make_op("inject", code=code))
    outcome = machine.apply(call.op)
    if outcome.kind != Kind.KERNEL:
        result.differ(f"{call.place}: recorded return {call.ret[0]}, {result.backend} {Kind(outcome.kind).name}")
    ours: tuple[int, ...] = (outcome.ret,)
    if len(call.ret) == 3 and call.ret[0] == 0:
        ours += (int(bool(outcome.flags & ResultFlag.ASSIGNED)), outcome.level)
    # Where the look-up failed, the other two are what the caller's memory held before.
    result.check("returns", f"{call.place}: return", call.ret[: len(ours)], ours)

    executed, tables_changed = [], False
    for kind, _, _, code, a, b, c in machine.take_events().tolist():
        if kind in _INSTRUCTIONS.values():
            low, high = (b, c) if kind == EventKind.RMPUPDATE else (0, 0)
            executed.append(_Instruction(kind, a, low, high, code))
        else:
            tables_changed = True
    for i, pair in enumerate(zip_longest(call.instructions, executed), 1):
        result.check("instructions", f"{call.place}: instruction {i}", *map(str, pair))

    # A whole state is costly to read.  Page counts move with splits only, which are events (direct-map §4.4), so
    # they are read after those, and wherever the recording has other figures than we had before.
    if tables_changed or call.injected or call.page_counts != counts:
        state = machine.state()
        counts = tuple(state.counters[name] for name in _PAGE_COUNTS)
        if state.inject:
            result.differ(f"{call.place}: {result.backend} executed fewer instructions than codes were injected")
    result.check("counts", f"{call.place}: page counts", call.page_counts, counts)
    return counts


def _kind(names: list[str]) -> str:
    if not names:
        return "boot"
    if not set(names) <= set(CALLS):
        return "cpa"
    return "snp" if set(names) & set(_SNP_CALLS) else "dmap"


def conform(path: str | os.PathLike[str], backend: str = "native") -> Conformance:
    """Hold one backend against one recording.  Raises :class:`RecordingError` when the file is malformed."""
    source = os.fspath(path)
    node = parse_json(read_text(path, RecordingError), source, RecordingError)
    machine_map = recording_map(node)
    kernel = node["kernel"].text()
    present = [node.get(name) is not None for name in ("before", "calls", "after")]
    if any(present) and not all(present):
        node.fail("has some but not all of before, calls and after")
    boot = _read_state(node["boot"], machine_map)
    call_nodes = node["calls"].items(at_least=1) if all(present) else []
    names = [call["fn"].text() for call in call_nodes]
    unknown = tuple(sorted(set(names) - set(CALLS)))
    calls = [_read_call(call) for call, name in zip(call_nodes, names, strict=True) if name in CALLS]
    before, after = (_read_state(node[name], machine_map) if names else boot for name in ("before", "after"))

    result = Conformance(source, kernel, _kind(names), backend, not_implemented=unknown)
    try:
        machine = Machine(machine_map, kernel=kernel, backend=backend)
        _compare_states(result, node["boot"], boot, machine, ignore=_ACCESSED_DIRTY)
        if calls and not unknown:
            machine = Machine(machine_map, kernel=kernel, backend=backend, state=before)
            machine.record_events(True)
            counts = tuple(before.counters[name] for name in _PAGE_COUNTS)
            for call in calls:
                counts = _replay(result, machine, call, counts)
            _compare_states(result, node["after"], after, machine)
    except MachineError as e:
        node.fail(str(e))
    return result
