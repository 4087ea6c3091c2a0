"""Benchmarks: builds the C loops once, and prints each figure beside its limit of the same run.

A benchmark leaves in extra_info: "items", pieces of work in a round; "limit", the median time of what it is held
against; "beside", what that is; "ratio", the median of the rounds' ratios; "most" or "least", what it may be.
"""

from __future__ import annotations

import importlib.util
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

from rmpcore.fuzzing.maps import build_map
from rmpcore.maps import MachineMap

ROOT = Path(__file__).resolve().parents[1]


def declarations(header: str) -> str:
    """A header of bench/ as cffi takes it: without comments and guards."""
    text = (ROOT / "bench" / header).read_text()
    return re.sub(r"/\*.*?\*/|^#.*?$", "", text, flags=re.DOTALL | re.MULTILINE)


def memory_map(size: int, large_pages: str = "1G") -> MachineMap:
    """RAM from 0 in one piece, as bench/rows.c has it, and above it an RMP that covers it exactly."""
    return build_map(
        [(0, size)], large_pages=large_pages, rmp=(size, size + 0x4000 + (size >> 8) - 1), rmp_probed=False
    )


@dataclass
class Core:
    """bench/rows.c and the C core, compiled as setup.py compiles them."""

    ffi: Any
    lib: Any

    def __post_init__(self) -> None:
        rows = (self.lib.bench_row(i) for i in range(self.lib.bench_row_count()))
        self.rows = {self.text(row.name): row for row in rows}

    def text(self, chars: Any) -> str:
        return self.ffi.string(chars).decode()


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    ffi = FFI()
    ffi.cdef(declarations("rows.h"))
    ffi.set_source(
        "_bench_rows",
        '#include "rows.h"',
        sources=[str(ROOT / "bench/rows.c"), *map(str, sorted((ROOT / "csrc").glob("**/*.c")))],
        include_dirs=[str(ROOT / "include"), str(ROOT / "bench")],
        extra_compile_args=["-O3", "-std=c11"],
    )
    built = ffi.compile(tmpdir=str(tmp_path_factory.mktemp("bench")))
    spec = importlib.util.spec_from_file_location("_bench_rows", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_bench_rows"] = module
    spec.loader.exec_module(module)
    return Core(module.ffi, module.lib)


def against(
    benchmark: Any,
    run: Callable[[], object],
    limit: Callable[[], object],
    *,
    beside: str,
    items: int = 1,
    rounds: int = 15,
    prepare: Callable[[], object] = lambda: None,
    most: float | None = None,
) -> None:
    """Benchmark ``run``; each round times ``limit`` first, both after the same preparation."""
    limits: list[float] = []

    def both() -> None:
        prepare()
        started = time.perf_counter()
        limit()
        limits.append(time.perf_counter() - started)
        prepare()

    benchmark.pedantic(run, setup=both, rounds=rounds, warmup_rounds=1)
    if benchmark.disabled:  # --benchmark-disable: once, for errors
        return
    limits = limits[-rounds:]
    ratio = statistics.median(ran / limit for ran, limit in zip(benchmark.stats.stats.data, limits, strict=True))
    benchmark.extra_info.update(items=items, limit=statistics.median(limits), beside=beside, ratio=ratio, most=most)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    runs = [run for run in (session.benchmarks if session is not None else ()) if run.stats.rounds]
    if runs:
        terminalreporter.section("medians beside their limits")
    for run in runs:
        info = run.extra_info
        items = info.get("items", 1)
        line = f"{run.name.removeprefix('test_'):42} {run.stats.median / items * 1e9:12.1f} ns"
        if "limit" in info:
            line += f"   limit {info['limit'] / items * 1e9:10.1f} ns   ratio {info['ratio']:8.3g}"
            line += f"   at most {info['most']:.2f}" if info.get("most") else ""
        terminalreporter.write_line(line)
