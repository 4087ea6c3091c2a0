"""Replaying a mixed trace on the C core, in one call, and on the oracle, which it is to leave far behind; its text."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from conftest import against
from mixed import FIRST_FRAME, REGIONS, mixed_trace

import rmpcore
from rmpcore.ops import unpack_ops
from rmpcore.trace import read_trace

MAP = Path(__file__).parents[1] / "examples/maps/dell-r6515-epyc7513-256g-snp.json"
MILLION = 1_000_000
ORACLE = 50_000  # what the oracle does of it in a bearable time
LINES = 20_000
ENTRY = 16
TABLES = 16 << 20
"""Bytes at the top of memory, where tables come from."""


def fresh(backend: str) -> Any:
    return rmpcore.Machine(rmpcore.load_map(MAP), backend=backend)


def touched() -> Any:
    """A native machine that has the memory it will need: what is timed is the core, not the system's page faults."""
    machine = fresh("native")
    base, _end = machine.map.rmp
    entries = base + 0x4000 + FIRST_FRAME * ENTRY  # of the trace's first frame
    for part in machine.memory():
        start = max(entries - part.base, 0) if part.base == base else max(len(part.bytes) - TABLES, 0)
        pages = part.bytes[start : start + max(TABLES, REGIONS * 512 * ENTRY) : 4096]
        pages[:] = pages.copy()
    return machine


def native_of(trace: npt.NDArray[np.void], rounds: int) -> list[float]:
    """Seconds that the C core takes for these ops."""
    times = []
    for _ in range(rounds):
        machine = touched()
        started = time.perf_counter()
        machine.run(trace)
        times.append(time.perf_counter() - started)
    return times


def test_mixed_trace(benchmark: Any) -> None:
    """A million ops in one call.  Limit: a copy of ops and results."""
    trace = mixed_trace(MILLION)
    results = touched().run(trace)
    benchmark.group = "replay"
    machines = []

    def prepare() -> None:
        machines.append(touched())

    def copy() -> None:
        trace.copy()
        results.copy()

    against(
        benchmark,
        lambda: machines.pop().run(trace),
        copy,
        beside="copy of ops and results",
        items=MILLION,
        rounds=5,
        prepare=prepare,
    )


def test_oracle(benchmark: Any) -> None:
    """The limit is the other way round here: the C core on the same ops, to be left far behind."""
    trace = mixed_trace(MILLION)[:ORACLE]
    native = statistics.median(native_of(trace, 9))
    benchmark.group = "replay"
    benchmark.pedantic(lambda m: m.run(trace), setup=lambda: ((fresh("oracle"),), {}), rounds=1, iterations=1)
    if benchmark.disabled:
        return
    ratio = benchmark.stats.stats.median / native
    benchmark.extra_info.update(items=ORACLE, limit=native, beside="the C core", ratio=ratio, least=1000)


def test_text(benchmark: Any, tmp_path: Path) -> None:
    """Reading a trace in text form.  Limit: splitting its lines into words."""
    path = tmp_path / "mixed.trace"
    ops = mixed_trace(LINES)
    path.write_text("".join(f"{op}\n" for op in unpack_ops(ops)))
    assert np.array_equal(read_trace(path).ops, ops)

    def split() -> None:
        with path.open() as file:
            for line in file:
                line.split()

    benchmark.group = "replay"
    against(benchmark, lambda: read_trace(path), split, beside="lines split into words", items=LINES, rounds=5)


def test_both_replay_the_same() -> None:
    trace = mixed_trace(5_000)
    native, oracle = fresh("native"), fresh("oracle")
    assert np.array_equal(native.run(trace), oracle.run(trace))
    assert native.state() == oracle.state()
