"""Ops on machines, many at a time: a plain replay, and both implementations in lockstep."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from rmpcore.klog import kernel_log
from rmpcore.machine import BACKENDS, MachineLike
from rmpcore.ops import BY_CODE, CODE_NAMES, RESULT_DTYPE, VECTOR_NAMES, Kind, Op, Result, format_result
from rmpcore.state import State, diff_states

Ops = npt.NDArray[np.void]
Progress = Callable[[int], None]
"""Called now and then with the number of ops done."""

_CHUNK = 1 << 10
_MAX_CHUNK = 1 << 16
_SHOWN = 40
_ENTRIES_PER_OP = 500
"""How many entries of the state an op may cost in lockstep, unless the caller says how often to compare."""


def refused(results: npt.NDArray[np.void]) -> int | None:
    """The index of the first op that the machine refused, None if there is none."""
    indices = np.flatnonzero(results["kind"] == Kind.REFUSED)
    return int(indices[0]) if len(indices) else None


def replay(machine: MachineLike, ops: Ops, progress: Progress, chunk: int = 0) -> Iterator[npt.NDArray[np.void]]:
    """Do the ops, and give the results as they come: at first few at a time, then more (or always ``chunk``)."""
    size, done = chunk or _CHUNK, 0
    while done < len(ops):
        results = machine.run(ops[done : done + size])
        done += len(results)
        progress(done)
        yield results
        size = chunk or min(2 * size, _MAX_CHUNK)


@dataclass(frozen=True)
class Disagreement:
    """The first op after which the two machines differ."""

    index: int
    """-1: they differ before the first op."""
    op: Op | None
    results: tuple[Result, ...]
    """As each backend has it, in the order of BACKENDS; empty before the first op."""
    lines: tuple[str, ...]
    """What differs: events, then the state, entry by entry."""
    more: int
    """How many further lines there are."""

    def outcome(self) -> list[str]:
        """Each backend's result in words."""
        if self.op is None:
            return []
        return [f"{name} {format_result(self.op, result)}" for name, result in zip(BACKENDS, self.results, strict=True)]


@dataclass
class Lockstep:
    """Both machines after a run in lockstep."""

    machines: tuple[MachineLike, ...]
    before: State
    results: npt.NDArray[np.void]
    states: int = 0
    """How often the whole states were compared."""
    widest: int = 0
    """The most ops that were done between two comparisons of the states."""
    disagreement: Disagreement | None = None


def _disagreement(
    index: int, op: Op | None, results: tuple[Result, ...], machines: tuple[MachineLike, ...]
) -> Disagreement | None:
    """What differs between two machines now: the events since they were last taken, and the states."""
    lines: list[str] = []
    events = [machine.take_events() for machine in machines]
    if not np.array_equal(events[0], events[1]):
        for name, log in zip(BACKENDS, events, strict=True):
            lines += [f"{name} event: {line}" for line in kernel_log(log, plain=True)] or [f"{name}: no event"]
    states = [machine.state() for machine in machines]
    more = 0
    if states[0] != states[1]:
        differences = diff_states(states[0], states[1], *BACKENDS)
        lines += islice(differences, _SHOWN)
        more = sum(1 for _ in differences)
    if not lines and len(set(results)) < 2:
        return None
    return Disagreement(index, op, results, tuple(lines), more)


def _pair(make: Callable[[str], MachineLike]) -> tuple[MachineLike, ...]:
    machines = tuple(make(name) for name in BACKENDS)
    for machine in machines:
        machine.record_events(True)
    return machines


def _locate(make: Callable[[str], MachineLike], ops: Ops, start: int, stop: int) -> Disagreement:
    """Do it again up to ``start``, then op by op."""
    machines = _pair(make)
    for machine in machines:
        machine.run(ops[:start])
        machine.take_events()
    for index in range(start, stop):
        op = Op(*ops[index].item())
        results = tuple(machine.apply(op) for machine in machines)
        found = _disagreement(index, op, results, machines)
        if found is not None:
            return found
    return Disagreement(stop - 1, None, (), ("the machines agree op by op, but not in bulk",), 0)


def lockstep(make: Callable[[str], MachineLike], ops: Ops, every: int | None, progress: Progress) -> Lockstep:
    """Run both implementations side by side.

    Results and events of all ops are compared; the whole states after every ``every`` ops and at the end.  None:
    after every op while the state is small, then the less often the larger it is.  ``make`` builds a machine by
    the name of its backend; a disagreement is located by doing the ops again.
    """
    machines = _pair(make)
    before = machines[0].state()
    parts = [np.zeros(0, dtype=RESULT_DTYPE)]
    run = Lockstep(machines, before, parts[0], states=1, disagreement=_disagreement(-1, None, (), machines))
    done, size = 0, len(before.leaves)
    while done < len(ops) and run.disagreement is None:
        part = ops[done : done + (every or max(1, size // _ENTRIES_PER_OP))]
        results = [machine.run(part) for machine in machines]
        events = [machine.take_events() for machine in machines]
        states = [machine.state() for machine in machines]
        same = np.array_equal(results[0], results[1]) and np.array_equal(events[0], events[1])
        if not same or states[0] != states[1]:
            run.disagreement = _locate(make, ops, done, done + len(part))
            break
        parts.append(results[0])
        done, size = done + len(part), len(states[0].leaves) + len(states[0].rmp)
        run.states, run.widest = run.states + 1, max(run.widest, len(part))
        progress(done)
        if refused(results[0]) is not None:
            break
    run.results = np.concatenate(parts)
    return run


def outcome_name(kind: int, ret: int) -> str:
    """A sort of outcome in a few words: "0", "-14 EFAULT", "4 FAIL_OVERLAP", "#UD"."""
    if kind == Kind.FAULT:
        return VECTOR_NAMES.get(ret, f"vector {ret}")
    if kind == Kind.HANG:
        return "hangs"
    if kind == Kind.REFUSED:
        return "refused"
    if ret < 0:
        return f"{ret} {errno.errorcode.get(-ret, '')}".rstrip()
    return f"{ret} {CODE_NAMES.get(ret, '')}".rstrip()


def outcomes(ops: Ops, results: npt.NDArray[np.void]) -> dict[str, dict[str, int]]:
    """How many ops ended how, by op name, in the order of the op list."""
    keys = np.zeros(len(results), dtype=[("op", "<u2"), ("kind", "u1"), ("ret", "<i4")])
    keys["op"], keys["kind"], keys["ret"] = ops["op"][: len(results)], results["kind"], results["ret"]
    table: dict[str, dict[str, int]] = {}
    unique, counts = np.unique(keys, return_counts=True)
    for (code, kind, ret), count in zip(unique.tolist(), counts.tolist(), strict=True):
        row = table.setdefault(BY_CODE[code].name if code in BY_CODE else f"op{code}", {})
        name = outcome_name(kind, ret)
        row[name] = row.get(name, 0) + count
    return table
