"""Replaying a mixed trace: the C core in one call, and the oracle, which it is to leave far behind."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from mixed import mixed_trace

import rmpcore

MAP = Path(__file__).parents[1] / "examples/maps/dell-r6515-epyc7513-256g-snp.json"
MILLION = 1_000_000
ORACLE = 50_000  # what the oracle does of it in a bearable time


def fresh(backend: str) -> Any:
    return rmpcore.Machine(rmpcore.load_map(MAP), backend=backend)


def replay(benchmark: Any, backend: str, count: int, rounds: int) -> None:
    trace = mixed_trace(MILLION)[:count]
    benchmark.pedantic(lambda m: m.run(trace), setup=lambda: ((fresh(backend),), {}), rounds=rounds, iterations=1)
    benchmark.extra_info["items"] = count


def test_native_million(benchmark: Any) -> None:
    replay(benchmark, "native", MILLION, 5)


def test_oracle(benchmark: Any) -> None:
    """The limit is the other way round here: the C core on the same first ops, to be left far behind."""
    trace = mixed_trace(MILLION)[:ORACLE]
    times = []
    for _ in range(5):
        machine = fresh("native")
        started = time.perf_counter()
        machine.run(trace)
        times.append(time.perf_counter() - started)
    replay(benchmark, "oracle", ORACLE, 1)
    benchmark.extra_info["limit"] = statistics.median(times)


def test_both_replay_the_same() -> None:
    trace = mixed_trace(5_000)
    native, oracle = fresh("native"), fresh("oracle")
    assert np.array_equal(native.run(trace), oracle.run(trace))
    assert native.state() == oracle.state()
