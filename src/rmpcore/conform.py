"""Conformance to recordings of real kernels: does a machine do, entry by entry, what the kernel did?

A recording holds the page tables after boot and, in most kinds, the calls made into the kernel with the state
before and after them.  The machine boots from the recording's memory map and is compared; then it loads the state
before, replays the calls, and is compared after each and at the end.  Two things are not compared: the addresses
of table pages (the page allocator's business), and at boot the accessed and dirty bits that the CPU set in table
entries.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat, zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmpcore import rule_names
from rmpcore.inputs import Node, parse_json, read_text, recording_map
from rmpcore.machine import Machine, MachineError, MachineLike
from rmpcore.maps import HIGH_BASE, U64_MAX, MachineMap
from rmpcore.ops import EventKind, Kind, Op, OpError, ResultFlag, make_op
from rmpcore.recorded_calls import CALLS, DMAP_CALLS, SNP_CALLS
from rmpcore.recording import PAGE_COUNTS, RecordingError, recorded_state
from rmpcore.state import State, diff_entries

SHOWN = 10
"""Differences that are kept in words; the others are only counted."""

_INSTRUCTIONS = {"RMPUPDATE": EventKind.RMPUPDATE, "PSMASH": EventKind.PSMASH, "RMPREAD": EventKind.RMPREAD}
_ADDRESS_BITS = 0x000F_FFFF_FFFF_F000
_ACCESSED_DIRTY = 0x60
_LARGE = (1 << 21) - 1
_PAGES_OF_1G = 1 << 18


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
    name: str
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
    """boot: no calls; snp: calls of the SNP layer; dmap: set_memory_4k and set_direct_map_* only; kimg: calls on
    frames of the kernel image; giga: calls on whole 1 GiB pages; cpa: all others."""
    backend: str
    compared: dict[str, int] = field(default_factory=dict)
    """How many values of each sort were compared."""
    differences: list[str] = field(default_factory=list)
    """The first of them in words."""
    different: int = 0
    """How many there are."""
    subjects: dict[str, int] = field(default_factory=dict)
    """What they are about, with the section of the rule, and how many are."""
    not_implemented: tuple[str, ...] = ()
    """Recorded calls that the machines cannot do; the recording then fails."""

    @property
    def passed(self) -> bool:
        return not self.different and not self.not_implemented and sum(self.compared.values()) > 0

    def count(self, what: str, number: int = 1) -> None:
        self.compared[what] = self.compared.get(what, 0) + number

    def differ(self, text: str, subject: str | None = None) -> None:
        self.different += 1
        if subject is not None:
            self.subjects[subject] = self.subjects.get(subject, 0) + 1
        if len(self.differences) < SHOWN:
            self.differences.append(text)

    def check(self, what: str, place: str, recorded: object, ours: object, subject: str) -> None:
        self.count(what)
        if recorded != ours:
            self.differ(f"{place}: recorded {recorded}, {self.backend} {ours}", subject)


# --- reading -------------------------------------------------------------------------------------------------------


def _signed(node: Node) -> int:
    """A C int, which may have been written as an unsigned number."""
    value = node.integer(-(1 << 31), (1 << 32) - 1)
    return value - (1 << 32) if value >= 1 << 31 else value


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
    args = node["args"].items(len(CALLS[name]))
    try:
        op = make_op(name, **{arg: value.integer() for arg, value in zip(CALLS[name], args, strict=True)})
    except OpError as e:
        node["args"].fail(str(e))
    injected, insns = node.get("injected"), node.get("insns")
    return _Call(
        name=name,
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
    subjects: Iterable[str],
    mask: int = U64_MAX,
) -> None:
    """``subjects``: what each difference is about, in order; looked at only if there are any."""
    result.count(what, len(recorded))
    keys = ("window", "level", "offset")
    if len(recorded) == len(ours) and all(np.array_equal(recorded[key], ours[key]) for key in keys):
        bits = np.uint64(mask)
        if np.array_equal(recorded["raw"] & bits, ours["raw"] & bits):
            return
    for line, subject in zip(diff_entries(recorded, ours, "recorded", result.backend, mask), subjects, strict=False):
        result.differ(f"{place}: {line}", subject)


def _compare_states(result: Conformance, node: Node, recorded: State, machine: MachineLike, ignore: int = 0) -> None:
    """Compare everything that a recorded state holds.  ``ignore``: further bits of table entries to leave out."""
    ours = machine.state()
    tables, leaves = ours.tables, ours.leaves
    if node.get("high_leaves") is None:
        tables, leaves = tables[tables["window"] == 0], leaves[leaves["window"] == 0]
    place = node.place
    about = rule_names.of_leaves(recorded.leaves, leaves, boot=bool(ignore))
    _compare_entries(result, "leaves", place, recorded.leaves, leaves, about)
    # The C-bit lies among the address bits and is a flag all the same (direct-map §1).
    mask = U64_MAX & ~(_ADDRESS_BITS & ~machine.map.c_bit) & ~ignore
    _compare_entries(result, "tables", place, recorded.tables, tables, repeat(rule_names.TABLES), mask)
    for name in PAGE_COUNTS:
        result.check("counts", f"{place}: {name}", recorded.counters[name], ours.counters[name], rule_names.COUNTS)
    result.check("ranges", f"{place}: pfn_mapped", recorded.mapped, ours.mapped, rule_names.RANGES)
    for name, subject in (("max_pfn_mapped", rule_names.RANGES), ("kernel_readonly", rule_names.READONLY)):
        result.check("values", f"{place}: {name}", getattr(recorded, name), getattr(ours, name), subject)


def _about_instruction(call: str, recorded: _Instruction | None, ours: _Instruction | None) -> str:
    """What a difference of two instructions is about: the code alone, or which one it is and its input."""
    if recorded is None or ours is None or recorded[:-1] != ours[:-1]:
        return rule_names.of_instructions(call)
    return rule_names.CODES[EventKind(recorded.kind).name]


def _replay(result: Conformance, machine: MachineLike, call: _Call, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Do one call and compare it.  ``counts``: our page counts before it; gives those after it."""
    for code in call.injected:
        machine.apply(make_op("inject", code=code))
    outcome = machine.apply(call.op)
    returns = rule_names.of_return(call.name)
    if outcome.kind != Kind.KERNEL:
        kind = Kind(outcome.kind).name
        result.differ(f"{call.place}: recorded return {call.ret[0]}, {result.backend} {kind}", returns)
    ours: tuple[int, ...] = (outcome.ret,)
    if len(call.ret) == 3 and call.ret[0] == 0:
        ours += (int(bool(outcome.flags & ResultFlag.ASSIGNED)), outcome.level)
    # Where the look-up failed, the other two are what the caller's memory held before.
    result.check("returns", f"{call.place}: return", call.ret[: len(ours)], ours, returns)

    executed, tables_changed = [], False
    for kind, _, _, code, a, b, c in machine.take_events().tolist():
        if kind in _INSTRUCTIONS.values():
            low, high = (b, c) if kind == EventKind.RMPUPDATE else (0, 0)
            executed.append(_Instruction(kind, a, low, high, code))
        else:
            tables_changed = True
    for i, (theirs, mine) in enumerate(zip_longest(call.instructions, executed), 1):
        subject = _about_instruction(call.name, theirs, mine)
        result.check("instructions", f"{call.place}: instruction {i}", str(theirs), str(mine), subject)
    if call.injected and machine.state().inject:
        text = f"{call.place}: {result.backend} executed fewer instructions than codes were injected"
        result.differ(text, rule_names.of_instructions(call.name))

    # Page counts move with splits only, which are events (direct-map §4.4), so they are read after those, and wherever
    # the recording has other figures than we had before.
    if tables_changed or call.page_counts != counts:
        found = machine.counters()
        counts = tuple(found[name] for name in PAGE_COUNTS)
    result.check("counts", f"{call.place}: page counts", call.page_counts, counts, rule_names.COUNTS)
    return counts


def _touches_image(op: Op, machine_map: MachineMap) -> bool:
    """Whether a call is about frames of the kernel image (direct-map §6)."""
    image = machine_map.image
    if image is None:
        return False
    ends = (image.text, (image.brk_end - 1) | _LARGE)
    first, last = ((address - HIGH_BASE + image.phys_base & U64_MAX) >> 12 for address in ends)
    return op.addr <= last and first < op.addr + max(op.count, 1)


def _kind(names: set[str], calls: list[_Call], machine_map: MachineMap) -> str:
    if not names:
        return "boot"
    if names & set(SNP_CALLS):
        return "snp"
    if names <= set(DMAP_CALLS):
        return "dmap"
    if any(_touches_image(call.op, machine_map) for call in calls):
        return "kimg"
    return "giga" if any(call.op.count >= _PAGES_OF_1G for call in calls) else "cpa"


def conform(path: str | os.PathLike[str], backend: str = "native") -> Conformance:
    """Hold one backend against one recording.  Raises :class:`RecordingError` when the file is malformed."""
    source = os.fspath(path)
    node = parse_json(read_text(path, RecordingError), source, RecordingError)
    machine_map = recording_map(node)
    kernel = node["kernel"].text()
    present = [node.get(name) is not None for name in ("before", "calls", "after")]
    if any(present) and not all(present):
        node.fail("has some but not all of before, calls and after")
    boot = recorded_state(node["boot"], machine_map)
    call_nodes = node["calls"].items(at_least=1) if all(present) else []
    names = [call["fn"].text() for call in call_nodes]
    unknown = tuple(sorted(set(names) - set(CALLS)))
    calls = [_read_call(call) for call, name in zip(call_nodes, names, strict=True) if name in CALLS]
    before, after = (recorded_state(node[name], machine_map) if names else boot for name in ("before", "after"))

    result = Conformance(source, kernel, _kind(set(names), calls, machine_map), backend, not_implemented=unknown)
    try:
        machine = Machine(machine_map, kernel=kernel, backend=backend)
        _compare_states(result, node["boot"], boot, machine, ignore=_ACCESSED_DIRTY)
        if calls and not unknown:
            machine = Machine(machine_map, kernel=kernel, backend=backend, state=before)
            machine.record_events(True)
            counts = tuple(before.counters[name] for name in PAGE_COUNTS)
            for call in calls:
                counts = _replay(result, machine, call, counts)
            _compare_states(result, node["after"], after, machine)
    except MachineError as e:
        node.fail(str(e))
    return result
