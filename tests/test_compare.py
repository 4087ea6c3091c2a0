"""``rmpcore compare``: what is measured, that it does not matter where, and what is printed and drawn."""

from __future__ import annotations

import builtins
import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import MIB

from rmpcore import compare
from rmpcore.cli_compare import _table
from rmpcore.compare import NUMBERS, SAMPLES, CompareError, Measurement, Spread, Task, measure, summary
from rmpcore.compare_plot import curves, plot_comparison
from rmpcore.inputs import map_from_node, parse_json
from rmpcore.machine import BACKENDS, POLICIES, Machine
from rmpcore.maps import MapError
from rmpcore.ops import OpCode, make_op, pack_ops
from rmpcore.plot import PlotError, require_plot
from rmpcore.workload import PRESETS, Step, Workload, steps

MAP_FILE: dict[str, Any] = {
    "format": "rmpcore-machine-map",
    "version": 1,
    "name": "small",
    "e820": [
        ["0x0", "0xc0000000", "usable"],
        ["0xc0000000", "0x2000000", "reserved"],
        ["0x100000000", "0x40000000", "usable"],
    ],
    "rmp": {"base": "0xc0000000", "end": "0xc1ffffff"},
}
MAP = map_from_node(parse_json(json.dumps(MAP_FILE), "small.json", MapError))
"""4 GiB around a hole with the RMP in it: the direct map has leaves of 1G."""
SMALL = replace(
    PRESETS["one-guest"], memory=32 * MIB, vcpus=2, exits=600, changes=2, commands=20, strays=2, host=16 * MIB
)
SMALL_OPTIONS = tuple(
    ["--memory=32M", "--vcpus=2", "--exits=600", "--changes=2", "--commands=20", "--strays=2", "--host=16M"]
)
PRINTED = (
    "accesses done faults_owner faults_neighbour repairs forced_shared windows failed missing_peak",
    "splits_1g splits_2m collapses_1g collapses_2m flush_full flush_page flush_cpus updates",
    "pages_1g pages_2m pages_4k table_pages reach_boot reach_peak reach_end lost_end",
)
UNMAPPING = ("unmap", "unmap-flush")
Run = Callable[..., tuple[int, str, str]]


def task(policy: str = "upstream", seed: int = 1, workload: Workload = SMALL, **fields: Any) -> Task:
    return Task(MAP, workload, policy, seed, "6.12", "milan", **fields)


TASKS = [task(policy, seed) for policy in POLICIES for seed in (1, 2)]


@pytest.fixture(scope="module")
def runs() -> list[Measurement]:
    """Each policy with two seeds, in this process."""
    return compare.compare(TASKS)


def of(runs: list[Measurement], policy: str) -> list[Measurement]:
    return [run for run in runs if run.policy == policy]


@pytest.fixture(scope="module")
def said() -> list[Counter[str]]:
    """How many ops of each name the workload has, for both seeds."""
    counts = []
    for seed in (1, 2):
        count: Counter[str] = Counter()
        for step in steps(SMALL, MAP, seed):
            count.update(OpCode(code).name for code in step.ops["op"].tolist())
        counts.append(count)
    return counts


@pytest.fixture
def rmpcore_(rmpcore_: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run ``rmpcore compare`` in a folder with a small map; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Path("m.json").write_text(json.dumps(MAP_FILE), encoding="utf-8")
    return partial(rmpcore_, "compare", "--map", "m.json")


# --- what is measured ----------------------------------------------------------------------------------------------


def test_every_policy_gets_the_same_ops(runs: list[Measurement], said: list[Counter[str]]) -> None:
    for policy in POLICIES:
        assert [run.ops for run in of(runs, policy)] == [count.total() for count in said]


def test_accesses_and_windows_are_those_of_the_ops(runs: list[Measurement], said: list[Counter[str]]) -> None:
    """host §6.5; under kmap each access of KVM has its window (§6.3)."""
    for policy in POLICIES:
        for run, count in zip(of(runs, policy), said, strict=True):
            kvm = count["kvm_read_guest"] + count["kvm_write_guest"]
            assert run.accesses == count["host_read"] + count["host_write"] + kvm
            assert run.done == run.accesses - (run.faults_owner + run.faults_neighbour - run.repairs)
            assert run.windows == (kvm if policy == "kmap" else 0)


def test_neighbours_fault_where_nothing_is_split(runs: list[Measurement]) -> None:
    """host §3: under none and kmap the host's own pages fault, under fault-split each such fault is repaired."""
    for run in runs:
        if run.policy in ("none", "kmap"):
            assert run.faults_neighbour > 0 and run.repairs == 0
            assert run.splits_1g == run.splits_2m == run.flush_full == 0
        elif run.policy == "fault-split":
            assert run.faults_neighbour > 0
            assert run.done == run.accesses
            assert run.forced_shared > 0
        else:
            assert run.faults_neighbour == run.repairs == run.forced_shared == 0
            assert run.faults_owner == SMALL.strays
    for plain, kmap in zip(of(runs, "none"), of(runs, "kmap"), strict=True):
        assert kmap.faults_neighbour < plain.faults_neighbour


def test_no_call_fails(runs: list[Measurement]) -> None:
    for run in runs:
        assert (run.failed, run.leaked_pages, run.retries) == (0, 0, 0)


def test_updates_are_those_of_the_ops(said: list[Counter[str]], runs: list[Measurement]) -> None:
    """One RMPUPDATE a call; marking and reclaiming make one a page (host §1)."""
    pages: list[int] = []
    for seed in (1, 2):
        family = (OpCode.rmp_mark_pages_firmware, OpCode.snp_reclaim_pages)
        counts = [step.ops["count"][np.isin(step.ops["op"], family)] for step in steps(SMALL, MAP, seed)]
        pages.append(sum(int(count.sum()) for count in counts))
    calls = [count["rmp_make_private"] + count["rmp_make_shared"] for count in said]
    assert [run.updates for run in of(runs, "upstream")] == [a + b for a, b in zip(calls, pages, strict=True)]


def test_reach_follows_from_splits_and_collapses(runs: list[Measurement]) -> None:
    """A split makes 512 leaves of one, a collapse one of 512."""
    for run in runs:
        if run.policy in UNMAPPING:
            continue
        tables = run.splits_1g + run.splits_2m - run.collapses_1g - run.collapses_2m
        assert run.reach_end == run.reach_boot + 511 * tables == run.pages_1g + run.pages_2m + run.pages_4k
        assert run.reach_peak >= run.reach_end
        assert run.missing == run.missing_peak == 0
        # 512 frames of each 2M leaf that went, and nothing else, are in 4K leaves now.
        assert run.lost_end == 512 * (run.splits_2m - run.collapses_2m)


def test_leaves_and_missing_frames_cover_what_they_did_at_boot(runs: list[Measurement]) -> None:
    census = Machine(MAP).census()
    covered = (census["1g"] << 30) + (census["2m"] << 21) + (census["4k"] << 12)
    for run in runs:
        assert run.bytes_1g + run.bytes_2m + run.bytes_4k + (run.missing << 12) == covered


def test_map_4k_has_every_leaf_at_boot(runs: list[Measurement]) -> None:
    for run in of(runs, "map-4k"):
        assert run.reach_boot == run.reach_peak == run.reach_end == run.pages_4k == run.bytes_4k >> 12
        assert run.lost_end == run.splits_1g + run.splits_2m == 0


def test_private_pages_are_missing_when_unmapped(runs: list[Measurement]) -> None:
    """host §6.2: at the peak the whole guest is; at the end the region that stays the firmware's."""
    for run in runs:
        if run.policy in UNMAPPING:
            assert run.missing == 512
            assert run.missing_peak > (SMALL.memory >> 12) * 3 // 4
            assert max(sample.missing for sample in run.series) == run.missing_peak
            assert run.pages_4k < run.reach_peak <= run.reach_end


def test_split_restore_gives_all_back_but_what_is_marked(runs: list[Measurement]) -> None:
    """host §6.4: what is left is what the trusted region of the boot phase needs."""
    for run in of(runs, "split-restore"):
        machine = Machine(MAP, policy="split-restore")
        for step in steps(SMALL, MAP, run.seed):
            if step.phase == "boot":
                machine.run(step.ops)
        census = machine.census()
        assert (run.pages_4k, run.pages_2m, run.pages_1g) == (census["4k"], census["2m"], census["1g"])
        assert run.reach_boot < run.reach_end < run.reach_peak
        assert run.table_pages < run.table_pages_peak


def test_flushes_go_to_every_cpu() -> None:
    few, many = measure(task("unmap-flush", cpus=1)), measure(task("unmap-flush", cpus=8))
    assert few.flush_page > 0 and few.flush_full > 0
    assert few.flush_cpus == few.flush_full + few.flush_page
    assert many.flush_cpus == 8 * few.flush_cpus


def test_samples_are_spread_over_the_run(runs: list[Measurement]) -> None:
    for run in runs:
        places = [sample.progress for sample in run.series]
        assert places == sorted(places)
        assert (places[0], places[-1]) == (0, 1)
        assert len(places) <= SAMPLES + 2
        first, last = run.series[0], run.series[-1]
        assert (first.splits, first.reach, first.lost) == (0, run.reach_boot, 0)
        assert (last.splits, last.reach) == (run.splits_1g + run.splits_2m, run.reach_end)
        assert (last.faults_owner, last.faults_neighbour) == (run.faults_owner, run.faults_neighbour)


def scripted(monkeypatch: pytest.MonkeyPatch, parts: list[tuple[float, list[Any]]]) -> None:
    """Make every workload one of these ops."""

    def made(*_: object) -> Iterator[Step]:
        for progress, ops in parts:
            yield Step(pack_ops(ops), "run", progress)

    monkeypatch.setattr(compare, "steps", made)


def test_calls_that_fail_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    innocent = [
        make_op("SNP_INIT"),
        make_op("rmp_make_private", pfn=0x1000, gpa=0, level=1, asid=5, immutable=0),
        make_op("rmp_make_private", pfn=0x2000, gpa=0, level=2, asid=5, immutable=0),
        make_op("rmp_mark_pages_firmware", pfn=0x3000, pages=1),
        make_op("SNP_GCTX_CREATE", gctx=0x3000000),
        make_op("SNP_ACTIVATE", gctx=0x5000, asid=5),  # the firmware's status, not the kernel's
        make_op("host_write", pfn=0x1000),  # a fault
        make_op("snp_lookup_rmpentry", pfn=1 << 30),  # -EFAULT, of a function that changes nothing
    ]
    failing = [
        make_op("rmp_make_private", pfn=0x1001, gpa=0, level=2, asid=5, immutable=0),  # not aligned: -EFAULT
        make_op("psmash", pfn=0x4000),  # no 2M entry: a code
        make_op("rmp_make_private", pfn=0x2001, gpa=0, level=1, asid=5, immutable=0),  # overlaps: hangs
        make_op("snp_reclaim_pages", pfn=0x3000, pages=1),  # a guest's context: -EIO, and it leaks
        make_op("host_write", pfn=1 << 40),  # refused
    ]
    scripted(monkeypatch, [(0.5, innocent), (1.0, failing)])
    run = measure(task())
    assert (run.failed, run.leaked_pages, run.faults_owner) == (len(failing), 1, 1)
    scripted(monkeypatch, [(1.0, innocent)])
    assert measure(task()).failed == 0


def test_samples_go_by_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    write = make_op("host_write", pfn=0x1000)
    scripted(monkeypatch, [(n / 1000, [write]) for n in range(1, 1001)])
    told: list[float] = []
    run = measure(task(), told.append)
    assert [sample.progress for sample in run.series] == [-(-n * 1000 // SAMPLES) / 1000 for n in range(SAMPLES + 1)]
    assert told == [n / 1000 for n in range(1, 1001)]


def test_unmapping_is_seen_though_nothing_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves are counted anew whenever they may have changed."""
    pages = [make_op("rmp_make_private", pfn=0x1000 + n, gpa=0, level=1, asid=5, immutable=0) for n in range(4)]
    scripted(monkeypatch, [((n + 1) / 8, [page]) for n, page in enumerate(pages)])
    for policy in UNMAPPING:
        assert [sample.missing for sample in measure(task(policy)).series] == [0, 1, 2, 3, 4, 4]


def test_the_oracle_measures_the_same() -> None:
    tiny = replace(SMALL, memory=16 * MIB, touched=0.0, exits=10, changes=0, commands=2, host=MIB)
    native, oracle = (measure(task("unmap", workload=tiny, backend=backend)) for backend in BACKENDS)
    assert native == oracle


# --- where it runs -------------------------------------------------------------------------------------------------


def test_processes_give_the_same_numbers(runs: list[Measurement]) -> None:
    told: list[float] = []
    assert compare.compare(TASKS, jobs=2, report=told.append) == runs
    assert told == sorted(told) and told[-1] == 1


def test_a_cluster_gives_the_same_numbers(runs: list[Measurement]) -> None:
    from distributed import LocalCluster

    told: list[float] = []
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        assert compare.compare(TASKS, cluster=cluster.scheduler_address, report=told.append) == runs
    assert told == [n / len(TASKS) for n in range(1, len(TASKS) + 1)]


def test_progress_in_this_process() -> None:
    told: list[float] = []
    compare.compare(TASKS[:2], report=told.append)
    assert told == sorted(told) and told[-1] == 1 and 0.5 in told


def test_a_process_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def killing(*args: Any, **options: Any) -> Any:
        for process in multiprocessing.active_children():
            process.kill()
        return wait(*args, **options)

    wait = compare.wait
    monkeypatch.setattr(compare, "wait", killing)
    with pytest.raises(CompareError, match="a process died before its run was over"):
        compare.compare(TASKS, jobs=2)


def test_without_distributed_one_line_names_the_extra(rmpcore_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "distributed")
    expected = "rmpcore: a cluster needs distributed, which is not installed: pip install 'rmpcore[cluster]'\n"
    assert rmpcore_("--dask", "tcp://127.0.0.1:8786") == (2, "", expected)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)


# --- over seeds ----------------------------------------------------------------------------------------------------


def test_summary_is_median_and_range(runs: list[Measurement]) -> None:
    one = runs[0]
    group = [replace(one, seed=seed, done=done) for seed, done in enumerate((50, 10, 40, 20))]
    table = summary([*group, replace(one, policy="kmap")])
    assert list(table) == [one.policy, "kmap"]
    assert table[one.policy]["done"] == Spread(20, 10, 50)
    assert table["kmap"]["done"] == Spread(one.done, one.done, one.done)
    assert list(table["kmap"]) == list(NUMBERS)
    assert {part.name for part in fields(Measurement)} - set(NUMBERS) == {"policy", "seed", "series", "seconds"}


def test_table_shows_ranges_where_seeds_differ() -> None:
    rows = {
        "none": {"a": Spread(5, 5, 5), "b": Spread(1_000_000, 999_999, 1_000_000)},
        "kmap": {"a": Spread(9_000, 8_000, 9_500), "b": Spread(12_345, 12_000, 2_345_678)},
    }
    assert list(_table((("some", "A", "a"), ("other", "B", "b")), rows)) == [
        "                    some        other",
        "policy                 A            B",
        "none                   5    1,000,000",
        "kmap               9,000       12,345",
        "  min..max  8,000..9,500  0.01..2.35M",
    ]


# --- the command ---------------------------------------------------------------------------------------------------


def test_tables(rmpcore_: Run, runs: list[Measurement]) -> None:
    """What is printed is the same each time, fits a terminal, and is what was measured."""
    status, out, err = rmpcore_(*SMALL_OPTIONS, "--seeds", "2", "--jobs", "1")
    assert status == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith(f"machine     {MAP.name}: 4 GiB")
    assert re.fullmatch(r"[0-9,]+ ops in [0-9.]+ s, [0-9,]+ a second\n", err)
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0] in POLICIES]
    assert [row[0] for row in rows] == list(POLICIES) * 3
    table = summary(runs)
    for row, name in zip(rows, list(POLICIES) * 3, strict=True):
        assert row[0] == name
    for accesses, work, left in zip(rows[:9], rows[9:18], rows[18:], strict=True):
        numbers = {name: f"{spread.median:,}" for name, spread in table[accesses[0]].items()}
        for cells, names in zip((accesses, work, left), PRINTED, strict=True):
            assert cells[1:] == [numbers[name] for name in names.split()]
    assert rmpcore_(*SMALL_OPTIONS, "--seeds", "2", "--jobs", "2")[:2] == (0, out)


def test_json_and_csv_have_all_numbers(rmpcore_: Run, runs: list[Measurement]) -> None:
    options = (*SMALL_OPTIONS, "--seeds", "2", "--jobs", "1", "--policies", "upstream,none")
    wanted = [*of(runs, "upstream"), *of(runs, "none")]
    status, out, _ = rmpcore_(*options, "--json")
    document = json.loads(out)
    assert status == 0
    assert (document["kernel"], document["workload"]["memory"], document["cpus"]) == ("6.12", 32 * MIB, 128)
    assert [row["series"] for row in document["runs"]] == [[vars(s) for s in run.series] for run in wanted]
    assert [{name: row[name] for name in NUMBERS} for row in document["runs"]] == [
        {name: getattr(run, name) for name in NUMBERS} for run in wanted
    ]
    assert document["summary"]["none"]["done"] == vars(summary(runs)["none"]["done"])
    status, out, _ = rmpcore_(*options, "--csv")
    head, *rows = [line.split(",") for line in out.splitlines()]
    assert head == ["policy", "seed", *NUMBERS, "seconds"]
    assert [row[:-1] for row in rows] == [
        [run.policy, str(run.seed), *(str(getattr(run, name)) for name in NUMBERS)] for run in wanted
    ]


def test_a_map_without_an_rmp_gets_one(rmpcore_: Run) -> None:
    Path("m.json").write_text(json.dumps({**MAP_FILE, "rmp": None}), encoding="utf-8")
    status, _, err = rmpcore_(*SMALL_OPTIONS, "--seeds", "1", "--policies", "none")
    assert status == 0
    assert "m.json: has no RMP" in err.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--policies upstream,nope", f"--policies upstream,nope: no policy 'nope': it is one of {', '.join(POLICIES)}"),
        ("--json --csv", "either --json or --csv, not both"),
        ("--jobs 2 --dask tcp://127.0.0.1:1", "either --jobs or --dask, not both"),
        ("--plot p.pdf", "p.pdf: the name of a picture ends in .svg or .png"),
        ("--plot no/p.svg", "no/p.svg: No such file or directory"),
        ("--hardware venice", None),
        ("--kernel 5.1", None),
        ("--dask nowhere", "no Dask cluster at nowhere: missing port number in address 'nowhere'"),
        ("--dask=", "no Dask cluster at : no address"),
        ("--memory 1T --jobs 2 --plot p.svg", None),
        ("--memory 1T --jobs 1 --plot p.svg", None),
        ("--map nothing.json", "nothing.json: No such file or directory"),
    ],
)
def test_bad_options_are_one_line(rmpcore_: Run, options: str, reason: str | None) -> None:
    status, out, err = rmpcore_(*options.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("rmpcore: ")
    if reason is not None:
        assert err == f"rmpcore: {reason}\n"
    assert [path.name for path in Path().iterdir()] == ["m.json"]


# --- the picture ---------------------------------------------------------------------------------------------------


def test_plot_is_written_whole(rmpcore_: Run) -> None:
    options = (*SMALL_OPTIONS, "--seeds", "2", "--jobs", "1", "--policies", "none,unmap")
    for name in ("a.svg", "b.svg", "c.png"):
        assert rmpcore_(*options, "--plot", name)[0] == 0
    picture = Path("a.svg").read_bytes()
    assert picture.endswith(b"</svg>\n") and picture == Path("b.svg").read_bytes()
    for word in (">none<", ">unmap<", "one-guest on", "Progress of the run [%]", "[TLB entries]", "[accesses]"):
        assert word.encode() in picture
    # Black, white and grey only.
    for colour in re.findall(rb"#[0-9a-f]{6}", picture):
        assert colour[1:3] == colour[3:5] == colour[5:7]
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path().iterdir()) == ["a.svg", "b.svg", "c.png", "m.json"]


def test_plot_of_nothing_but_zeros(runs: list[Measurement]) -> None:
    still = replace(runs[0], series=tuple(replace(sample, faults_neighbour=0) for sample in runs[0].series))
    assert plot_comparison([still], "x.svg", "none", []).startswith(b"<?xml")


def test_curves_are_at_the_same_places(runs: list[Measurement]) -> None:
    values = curves(of(runs, "upstream"), "splits")
    assert values.shape == (2, SAMPLES + 1)
    for row, run in zip(values, of(runs, "upstream"), strict=True):
        assert (row[0], row[-1]) == (0, run.splits_1g + run.splits_2m)
        assert (np.diff(row) >= 0).all()


def test_without_matplotlib_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "matplotlib")
    with pytest.raises(PlotError, match=r"needs matplotlib, which is not installed: pip install 'rmpcore\[plots\]'"):
        require_plot("x.svg")
