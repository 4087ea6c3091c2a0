"""The hot paths against memory: split, PSMASH, RMPUPDATE.

All loops are in C (bench/core.c) and go over more data than the first-level cache holds.  Each runs in the same
session as its limit and after the same preparation, so that both find the caches alike.
"""

from __future__ import annotations

from typing import Any

import pytest

REGIONS = 4096  # 2 MiB regions in a loop: 16 MiB of table pages, 32 MiB of RMP entries
FRAMES = REGIONS * 512 // 4
ROUNDS = 15


def rounds(benchmark: Any, items: int, run: Any, prepare: Any = None) -> None:
    benchmark.extra_info["items"] = items
    benchmark.pedantic(run, setup=prepare, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="split")
def test_split_2m_to_4k(benchmark: Any, core: Any, machine: Any) -> None:
    done = []
    rounds(
        benchmark,
        REGIONS,
        lambda: done.append(core.lib.bench_split(machine, REGIONS)),
        lambda: assert_true(core.lib.bench_prepare_split(machine, REGIONS)),
    )
    assert set(done) == {REGIONS - 1 - REGIONS // 512}  # the first region is 4 KiB from boot


@pytest.mark.benchmark(group="split")
def test_split_limit(benchmark: Any, core: Any, machine: Any) -> None:
    rounds(
        benchmark,
        REGIONS,
        lambda: core.lib.bench_memset_tables(machine, REGIONS, 1),
        lambda: assert_true(core.lib.bench_prepare_split(machine, REGIONS)),
    )


@pytest.mark.benchmark(group="psmash")
def test_psmash(benchmark: Any, core: Any, machine: Any) -> None:
    rounds(
        benchmark,
        REGIONS,
        lambda: assert_true(core.lib.bench_psmash(machine, REGIONS) == 0),
        lambda: core.lib.bench_prepare_psmash(machine, REGIONS),
    )


@pytest.mark.benchmark(group="psmash")
def test_psmash_limit(benchmark: Any, core: Any, machine: Any) -> None:
    rounds(
        benchmark,
        REGIONS,
        lambda: core.lib.bench_memset_regions(machine, REGIONS, 1),
        lambda: core.lib.bench_prepare_psmash(machine, REGIONS),
    )


@pytest.mark.benchmark(group="rmpupdate")
def test_rmpupdate_4k(benchmark: Any, core: Any, machine: Any) -> None:
    def both() -> None:
        assert core.lib.bench_rmpupdate_4k(machine, FRAMES, 1) == 0
        assert core.lib.bench_rmpupdate_4k(machine, FRAMES, 0) == 0

    rounds(benchmark, 2 * FRAMES, both)


@pytest.mark.benchmark(group="rmpupdate")
def test_rmpupdate_limit(benchmark: Any, core: Any, machine: Any) -> None:
    rounds(benchmark, FRAMES, lambda: core.lib.bench_touch_entries(machine, FRAMES))


def assert_true(value: Any) -> None:
    assert value
