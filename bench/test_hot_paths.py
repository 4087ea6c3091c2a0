"""The hot paths against memory: building, splitting, PSMASH, RMPUPDATE, host writes.

All loops are in C (bench/core.c).  Each round times the limit first and then the path itself, each after the same
preparation, so that both find the caches, and the machine's mood, alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

TABLES = 64 * 512 + 64 + 1 + 1  # page-table pages of a 64 GiB direct map of 4 KiB leaves
FRAMES = 512 * 1024
ROUNDS = 25
# Regions in a loop.  warm: what it writes stays in the second-level cache; cold: it is far larger than any cache, as
# a page fresh from an allocator is to the kernel.
SIZES = {"warm": 256, "cold": 32_000}


def against(
    benchmark: Any,
    items: int,
    run: Callable[[], object],
    limit: Callable[[], object],
    prepare: Callable[[], object] = lambda: None,
) -> None:
    """Benchmark ``run``, and ``limit`` beside it; both do ``items`` pieces of work."""
    limits = []

    def both() -> None:
        prepare()
        started = time.perf_counter()
        limit()
        limits.append(time.perf_counter() - started)
        prepare()

    benchmark.pedantic(run, setup=both, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(items=items, limit=statistics.median(limits))


def check(value: object) -> None:
    assert value


@pytest.fixture(params=SIZES)
def regions(request: pytest.FixtureRequest) -> int:
    return SIZES[request.param]


def test_split_2m_to_4k(benchmark: Any, core: Any, machine: Any, regions: int) -> None:
    """Limit: a memset of the table pages."""
    splits = regions - 1 - regions // 512  # a region in each GiB is split by the preparation, the first at boot
    against(
        benchmark,
        splits,
        lambda: check(core.bench_split(machine, regions) == splits),
        lambda: core.bench_memset_tables(machine, splits, 1),
        lambda: check(core.bench_prepare_split(machine, regions)),
    )


def test_psmash(benchmark: Any, core: Any, machine: Any, regions: int) -> None:
    """Limit: a memset of the 8 KiB of entries."""
    against(
        benchmark,
        regions,
        lambda: check(core.bench_psmash(machine, regions) == 0),
        lambda: core.bench_memset_regions(machine, regions, 1),
        lambda: core.bench_prepare_psmash(machine, regions),
    )


def test_boot_4k_only(benchmark: Any, core: Any, machine: Any) -> None:
    """64 GiB mapped by 4 KiB leaves.  Limit: a memset of all table pages."""
    against(
        benchmark,
        TABLES,
        lambda: check(core.bench_boot(machine, 1) == TABLES),
        lambda: core.bench_memset_tables(machine, TABLES, 1),
    )


def test_rmpupdate_4k(benchmark: Any, core: Any, machine: Any) -> None:
    """Frames in order, assigned and unassigned.  Limit: a read and a write of the head's and the page's entry."""

    def update() -> None:
        check(core.bench_rmpupdate_4k(machine, FRAMES, 1) == 0)
        check(core.bench_rmpupdate_4k(machine, FRAMES, 0) == 0)

    def touch() -> None:
        core.bench_touch_entries(machine, FRAMES)
        core.bench_touch_entries(machine, FRAMES)

    against(benchmark, 2 * FRAMES, update, touch)


def test_rmpupdate_4k_random(benchmark: Any, core: Any, machine: Any) -> None:
    """Random frames, assigned and unassigned.  Limit: a read of the head's entry, and one atomic 16-byte
    read-modify-write of the page's."""
    check(core.bench_draw(machine, FRAMES))

    def update() -> None:
        check(core.bench_rmpupdate_random(machine, 1) == 0)
        check(core.bench_rmpupdate_random(machine, 0) == 0)

    def touch() -> None:
        core.bench_touch_random(machine)
        core.bench_touch_random(machine)

    against(benchmark, 2 * FRAMES, update, touch, lambda: core.bench_rmpupdate_random(machine, 0))


@pytest.mark.parametrize("leaf", [1, 2, 3], ids=["4K", "2M", "1G"])
def test_host_write(benchmark: Any, core: Any, machine: Any, leaf: int) -> None:
    """Writes of the host to random frames, through the direct map.  Limit: a bare walk of the same tables, and one load
    of the RMP entry."""
    check(core.bench_draw(machine, FRAMES))
    check(core.bench_boot(machine, leaf))
    against(
        benchmark,
        FRAMES,
        lambda: check(core.bench_host_writes(machine) == 0),
        lambda: core.bench_walks(machine),
    )
