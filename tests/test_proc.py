"""The counters as the kernel shows them (direct-map §9)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from machines import SMALL, Host, changed

from rmpcore.proc import kernel_version, meminfo, vmstat
from rmpcore.start import read_start

GOLDEN = Path(__file__).parent / "data/golden"
STATE = Host("native", SMALL).state()


def test_meminfo_is_laid_out_as_in_proc() -> None:
    """The name and its colon fill 16 columns, the value 8, as in every line of /proc/meminfo."""
    state = changed(STATE, counters={"direct_map_4k": 56576, "direct_map_2m": 1234, "direct_map_1g": 30})
    assert meminfo(state, SMALL) == (
        "DirectMap4k:      226304 kB\nDirectMap2M:     2527232 kB\nDirectMap1G:    31457280 kB\n"
    )


def test_a_value_of_nine_digits_takes_the_room_it_needs() -> None:
    """6 TiB in 1 GiB pages."""
    state = changed(STATE, counters={"direct_map_1g": 6 << 10})
    assert meminfo(state, SMALL).splitlines()[2] == "DirectMap1G:    6442450944 kB"


@pytest.mark.parametrize(("large_pages", "lines"), [("1G", 3), ("2M", 2), ("4K", 2)])
def test_the_line_of_1g_pages_is_there_where_they_are_in_use(large_pages: str, lines: int) -> None:
    assert meminfo(STATE, dataclasses.replace(SMALL, large_pages=large_pages)).count("\n") == lines


@pytest.mark.parametrize("name", ["6.12_pc-8g_cpa", "7.3_pc-8g_giga", "6.1_pc-1g_kimg", "6.12_pc-8g-nogbpages_cpa"])
def test_meminfo_of_a_recorded_state(name: str) -> None:
    """Counts of a kernel in the kernel's units."""
    recorded = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    start = read_start(GOLDEN / f"{name}.json", "after")
    assert start.state is not None
    counts = recorded["after"]["page_counts"]
    values = [counts["4k"] * 4, counts["2m"] * 2048, counts["1g"] * 1048576][: 3 if recorded["direct_gbpages"] else 2]
    lines = meminfo(start.state, start.map).splitlines()
    assert [int(line.split()[1]) for line in lines] == values


SPLITS = "direct_map_level2_splits 3\ndirect_map_level3_splits 1\n"
COLLAPSES = "direct_map_level2_collapses 2\ndirect_map_level3_collapses 0\n"


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        ("6.1", SPLITS),
        ("6.14", SPLITS),
        ("6.9.12-amd64", SPLITS),
        ("6.15", SPLITS + COLLAPSES),
        ("6.18.15+deb13-amd64", SPLITS + COLLAPSES),
        ("7.3", SPLITS + COLLAPSES),
    ],
)
def test_vmstat_has_collapses_from_6_15(kernel: str, text: str) -> None:
    state = changed(STATE, counters={"level2_splits": 3, "level3_splits": 1, "level2_collapses": 2})
    assert vmstat(state, kernel) == text


def test_counters_follow_the_machine(backend: str) -> None:
    """64 MiB in 32 pages of 2 MiB, the first counted twice (direct-map §2.1.5); one of the others is split."""
    host = Host(backend, SMALL)
    host.call("set_memory_4k", pfn=0x400, pages=1)
    state = host.state()
    assert meminfo(state, SMALL).splitlines()[0] == f"DirectMap4k:        {512 * 4} kB"
    assert meminfo(state, SMALL).splitlines()[1] == f"DirectMap2M:       {32 * 2048} kB"
    assert vmstat(state, "6.12") == "direct_map_level2_splits 1\ndirect_map_level3_splits 0\n"


@pytest.mark.parametrize(
    ("text", "version"),
    [("6.12", (6, 12)), ("6.12.95+deb12-amd64", (6, 12)), ("7.3-rc1", (7, 3)), ("six", None), ("6", None), ("", None)],
)
def test_version_of_a_release(text: str, version: tuple[int, int] | None) -> None:
    assert kernel_version(text) == version
