"""Benchmarks: builds the C loops once, and prints each figure beside its limit of the same run.

A benchmark leaves in extra_info how many items a round does ("items") and the limit's median time ("limit").
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
uint64_t bench_boot(struct bench *b, int large_level);
void bench_memset_tables(struct bench *b, uint64_t n, int value);
void bench_prepare_psmash(struct bench *b, uint64_t n);
uint64_t bench_psmash(struct bench *b, uint64_t n);
void bench_memset_regions(struct bench *b, uint64_t n, int value);
uint64_t bench_rmpupdate_4k(struct bench *b, uint64_t n, int assigned);
void bench_touch_entries(struct bench *b, uint64_t n);
int bench_draw(struct bench *b, uint64_t n);
uint64_t bench_rmpupdate_random(struct bench *b, int assigned);
uint64_t bench_touch_random(struct bench *b);
uint64_t bench_host_writes(struct bench *b);
uint64_t bench_walks(struct bench *b);
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
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
def core(built: Any) -> Any:
    """The functions of bench/core.c."""
    return built.lib


@pytest.fixture
def machine(built: Any, core: Any) -> Iterator[Any]:
    """A 64 GiB machine in C; its RMP and the part of its memory that page tables need have been touched."""
    bench = core.bench_new(64)
    assert bench != built.ffi.NULL
    yield bench
    core.bench_free(bench)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    runs = [run for run in (session.benchmarks if session is not None else ()) if run.stats.rounds]
    if runs:
        terminalreporter.section("medians beside their limits")
    for run in runs:
        items, limit = run.extra_info.get("items", 1), run.extra_info.get("limit")
        line = f"{run.name:42} {run.stats.median / items * 1e9:12.1f} ns"
        if limit is not None:
            line += f"   limit {limit / items * 1e9:10.1f} ns   ratio {run.stats.median / limit:8.2f}"
        terminalreporter.write_line(line)
