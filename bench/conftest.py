"""Benchmarks: builds the C loops once, and prints each figure beside its limit of the same run.

Every benchmark belongs to a group; in each group the test whose name ends in ``_limit`` is what the others are
measured against.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cffi import FFI

ROOT = Path(__file__).resolve().parents[1]

CDEF = """
struct bench *bench_new(uint64_t gib);
void bench_free(struct bench *b);
int bench_prepare_split(struct bench *b, uint64_t n);
uint64_t bench_split(struct bench *b, uint64_t n);
void bench_memset_tables(struct bench *b, uint64_t n, int value);
void bench_prepare_psmash(struct bench *b, uint64_t n);
uint64_t bench_psmash(struct bench *b, uint64_t n);
void bench_memset_regions(struct bench *b, uint64_t n, int value);
uint64_t bench_rmpupdate_4k(struct bench *b, uint64_t n, int assigned);
void bench_touch_entries(struct bench *b, uint64_t n);
"""


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """bench/core.c and the C core, compiled as setup.py compiles them."""
    ffi = FFI()
    ffi.cdef(CDEF)
    ffi.set_source(
        "_bench_core",
        CDEF,
        sources=[str(ROOT / "bench/core.c"), *map(str, sorted((ROOT / "csrc").glob("**/*.c")))],
        include_dirs=[str(ROOT / "include")],
        extra_compile_args=["-O3", "-std=c11", "-D_DEFAULT_SOURCE"],
    )
    built = ffi.compile(tmpdir=str(tmp_path_factory.mktemp("bench")))
    spec = importlib.util.spec_from_file_location("_bench_core", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_bench_core"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(core: Any) -> Iterator[Any]:
    """A 16 GiB machine in C, all of whose memory has been touched."""
    bench = core.lib.bench_new(16)
    assert bench != core.ffi.NULL
    yield bench
    core.lib.bench_free(bench)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    medians: dict[str, dict[str, float]] = {}
    for run in session.benchmarks if session is not None else ():
        if run.group and run.stats.rounds:
            work = run.extra_info.get("items", 1)
            medians.setdefault(run.group, {})[run.name] = run.stats.median / work
    if medians:
        terminalreporter.section("ratios to the limit of the same run (medians)")
    for group, tests in sorted(medians.items()):
        limit = next((value for name, value in tests.items() if name.endswith("_limit")), None)
        for name, value in tests.items():
            ratio = "" if limit is None else f"{value / limit:10.2f} x limit"
            terminalreporter.write_line(f"{group:12} {name:32} {value * 1e9:12.1f} ns {ratio}")
