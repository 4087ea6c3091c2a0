"""``rmpcore fuzz``: units, coverage, processes that die, delta debugging, the index, and what the command refuses."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpcore.fuzzing.campaign import CampaignError, Finding, Index, Progress, reduce, run, save
from rmpcore.fuzzing.coverage import OUTCOMES, Coverage, states_of, unreached
from rmpcore.fuzzing.maps import RMPS, SNP
from rmpcore.fuzzing.pair import Done, attempt, run_unit, start_of
from rmpcore.fuzzing.shrink import shortest, shrink
from rmpcore.fuzzing.units import FOCUS, KINDS, DirectMapUnit, Plan, PolicyUnit, RmpUnit, Unit
from rmpcore.fuzzing.workers import Death, Worker, Workers
from rmpcore.machine import Machine
from rmpcore.ops import OPS, OpCode, make_op, pack_ops
from rmpcore.start import Start

SMALL_UNITS: tuple[Unit, ...] = (
    DirectMapUnit("image", "6.15", 4, True, 1, 180),
    RmpUnit("rmp", "contiguous", "genoa", "6.12", (), 2, 1500),
    RmpUnit("firmware", "segmented", "turin", "6.14", (("segment_min", 30), ("segmented", 1)), 3, 1500),
    PolicyUnit("split-restore", "2M", "6.15", "milan", 4, 300),
)
"""Short ones of each kind."""


def ops_of(unit: Unit) -> np.ndarray:
    return np.concatenate(list(unit.chunks()))


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("focus", FOCUS)
def test_units_follow_from_seed_and_number(focus: str) -> None:
    plan = Plan(7, focus)
    assert [plan.unit(n) for n in range(40)] == [Plan(7, focus).unit(n) for n in range(40)]
    assert len({repr(plan.unit(n)) for n in range(40)}) == 40
    assert [plan.unit(n) for n in range(40)] != [Plan(8, focus).unit(n) for n in range(40)]
    assert [plan.unit(n).profile.split()[0] for n in range(12)] == [*FOCUS[focus]] * (12 // len(FOCUS[focus]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_profile_comes_up_equally_often(kind: str) -> None:
    plan = Plan(1, "all" if kind in ("host", "workload") else kind)
    seen: Counter[str] = Counter()
    number = 0
    while not seen or min(seen.values()) < 2 or max(seen.values()) != min(seen.values()):
        profile = plan.unit(number).profile
        seen[profile] += profile.startswith(kind)
        seen += Counter()
        number += 1
        assert number < 3000
    assert set(seen.values()) == {2}


def test_ops_of_a_unit_are_the_same_each_time() -> None:
    for unit in SMALL_UNITS:
        assert ops_of(unit).tobytes() == ops_of(unit).tobytes()
    first, second = SMALL_UNITS[1], RmpUnit("rmp", "contiguous", "genoa", "6.12", (), 5, 1500)
    assert ops_of(first).tobytes() != ops_of(second).tobytes()


def test_a_profile_is_chosen_by_a_part_of_its_name() -> None:
    plan = Plan(1, "all", "segmented c-bit")
    assert {plan.unit(n).profile for n in range(60)} == {
        f"{focus} {part}, segmented c-bit"
        for focus in ("rmp", "guest", "firmware")
        for part in ("milan", "genoa", "turin")
    }
    assert Plan(1, "host", "segmented").empty and not plan.empty


@pytest.mark.parametrize("unit", SMALL_UNITS, ids=lambda unit: unit.profile)
def test_a_unit_finds_no_difference(unit: Unit) -> None:
    done = run_unit(unit)
    assert (done.differs, done.ops, sum(done.coverage.values())) == ("", len(ops_of(unit)), len(ops_of(unit)))
    assert done.states > 0 and done.since == 0 and done.events


# --- coverage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", SMALL_UNITS, ids=lambda unit: unit.profile)
def test_counting_changes_nothing(unit: Unit) -> None:
    """Results, events and state with the questions between the ops are those without."""
    start, ops = start_of(unit), ops_of(unit)
    plain, counted = (start.machine(start.rules, "native") for _ in range(2))
    plain.record_events(True)
    counted.record_events(True)
    assert Coverage().run(counted, ops).tobytes() == plain.run(ops).tobytes()
    assert counted.take_events().tobytes() == plain.take_events().tobytes()
    assert counted.state() == plain.state()


def test_the_state_of_a_page_before_the_op() -> None:
    """Worked out by hand: RMPUPDATE of one page of a region makes it mixed, and a split changes its leaf."""
    machine, coverage = Machine(SNP, kernel="6.12"), Coverage()
    update = {"gpa": 0x200000, "assigned": 1, "size": 0, "asid": 5}
    ops = [
        make_op("RMPUPDATE", pa=0x201000, **update),
        make_op("RMPUPDATE", pa=0x201000, **update),
        make_op("host_write", pfn=0x202),
        make_op("rmp_make_private", pfn=0x202, gpa=0x1000, level=1, asid=5),
        make_op("host_write", pfn=0x201),
        make_op("set_memory_np", pfn=0x202, pages=1),
        make_op("set_memory_p", pfn=0x202, pages=1),
        make_op("PSMASH", pa=1 << 45),
        make_op("inject", code=3),
    ]
    coverage.run(machine, pack_ops(ops))
    assert coverage.counts == {
        ("RMPUPDATE", "0", "HYPERVISOR"): 1,
        ("RMPUPDATE", "0", "GUEST_INVALID mixed"): 1,
        ("host_write", "#PF NEIGHBOUR", "HYPERVISOR, 2M"): 1,
        ("rmp_make_private", "0", "HYPERVISOR, 2M"): 1,
        ("host_write", "#PF ASSIGNED", "GUEST_INVALID mixed, 4K"): 1,
        ("set_memory_np", "0", "4K"): 1,
        ("set_memory_p", "0", "4K np"): 1,
        ("PSMASH", "1 FAIL_INPUT", "DEFAULT"): 1,
        ("inject", "0", "-"): 1,
    }


def test_states_that_are_reached_are_states_that_can_be() -> None:
    for unit in SMALL_UNITS:
        for op, _, state in run_unit(unit).coverage:
            assert op == "no op" or state in states_of(OpCode[op]), (op, state)


def test_what_was_not_reached() -> None:
    assert unreached({})["op"] == [spec.name for spec in OPS]
    whole = {
        (spec.name, end, state): 1
        for spec in OPS
        for end in OUTCOMES.get(spec.code, ("0",))
        for state in states_of(spec.code)
    }
    assert unreached(whole) == {"op": [], "outcome of an op": [], "op in a state": []}
    whole = {key: n for key, n in whole.items() if key[0] != "PSMASH" or key[2] != "GUEST_VALID mixed"}
    whole = {key: n for key, n in whole.items() if key[0] != "PSMASH" or key[1] != "3 FAIL_INUSE"}
    assert unreached(whole) == {
        "op": [],
        "outcome of an op": ["PSMASH: 3 FAIL_INUSE"],
        "op in a state": ["PSMASH in GUEST_VALID mixed"],
    }


@pytest.mark.long
def test_outcomes_that_the_documents_list_have_the_names_that_are_counted() -> None:
    """A slip of the pen in the list would be reported as never reached: most of it comes up in a short run."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for number in range(24):
        unit = Plan(2, "all", "").unit(number)
        if not unit.profile.startswith(("workload", "split")):
            counts.update(run_unit(unit).coverage)
    known = sum(len(ends) for code, ends in OUTCOMES.items() if not 14 <= code <= 36)
    missing = [row for row in unreached(dict(counts))["outcome of an op"]]
    assert len(missing) < known / 4, missing


# --- delta debugging -------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.sets(st.integers(0, 59), min_size=1, max_size=5))
def test_shrink_leaves_what_is_needed(length: int, wanted: set[int]) -> None:
    needed = {each % length for each in wanted}
    assert shrink(range(length), lambda some: needed <= set(some)) == sorted(needed)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 20))
def test_no_single_item_can_go(items: list[int], sum_: int) -> None:
    """Where items stand for each other, what is left is not the least, but nothing of it can be left out."""
    if sum(items) < sum_:
        return
    kept = shrink(items, lambda some: sum(some) >= sum_)
    assert sum(kept) >= sum_
    assert all(sum(kept) - item < sum_ for item in kept) or len(kept) == 1


def test_shrink_that_has_had_enough() -> None:
    asked = 0

    def still(some: list[int]) -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    assert 0 < len(shrink(range(100), still)) < 100


@given(st.integers(0, 100), st.integers(0, 100))
def test_shortest(length: int, first: int) -> None:
    if first <= length:
        assert shortest(length, lambda some: some >= first) == first


# --- processes -------------------------------------------------------------------------------------------------------


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # a sanitizer would take another one for itself


def leave() -> None:
    os._exit(3)


def complain() -> None:
    raise ValueError("no such unit")


def square(number: int) -> int:
    if number == 3:
        crash()
    if number == 5:
        time.sleep(100)
    return number * number


def test_a_worker_survives_what_it_does() -> None:
    with Worker() as worker:
        assert worker.call(square, 2) == 4
        assert worker.call(crash) == Death("crash", "signal 9")
        assert worker.call(leave) == Death("crash", "exit status 3")
        assert worker.call(time.sleep, 100, seconds=0.2) == Death("hang", "no end after 0 s")
        with pytest.raises(ValueError, match="no such unit"):
            worker.call(complain)
        assert worker.call(square, 4) == 16


def test_workers_do_all_tasks_but_those_that_kill() -> None:
    with Workers[int](2) as workers:
        assert dict(workers.results(square, iter((1, 2)))) == {1: 1, 2: 4}  # it takes time until they are there
        results = dict(workers.results(square, iter((0, 5, 1, 2, 4, 6)), seconds=4.0))
        results |= dict(workers.results(square, iter((3, 7))))
    assert results == {n: n * n for n in range(8)} | {
        3: Death("crash", "signal 9"),
        5: Death("hang", "no end after 4 s"),
    }


# --- campaigns -------------------------------------------------------------------------------------------------------

PLAN = Plan(3, "guest", "milan")


def campaign(path: str, ops: int, jobs: int = 1) -> tuple[int, dict[tuple[str, str, str], int], dict[str, int]]:
    told: list[Progress] = []
    index = Index(path, PLAN)
    assert run(PLAN, index, ops=ops, seconds=None, jobs=jobs, report=told.append) is None
    result = index.ops(), index.coverage(), index.events()
    assert told == [] or (told[-1].ops, len(told[-1].reached)) == (result[0], len(result[1]))
    index.close()
    return result


def test_a_campaign_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """In parts it is what it is in one piece, whatever the number of processes."""
    path = str(tmp_path / "index.sqlite")
    ops, coverage, _ = campaign(path, 6000)
    again, _, _ = campaign(path, 6000)
    assert again == ops >= 6000
    assert campaign(path, 12_000)[0] >= 12_000
    parts = campaign(path, 18_000)
    assert parts == campaign(":memory:", 18_000, jobs=1)
    assert sum(parts[1].values()) == parts[0] > ops and len(parts[1]) >= len(coverage)


def test_an_index_is_of_one_campaign(tmp_path: Path) -> None:
    path = str(tmp_path / "index.sqlite")
    Index(path, PLAN).close()
    with pytest.raises(
        CampaignError, match=r"is of a campaign with version .*, seed 3, focus guest, profile 'milan', not"
    ):
        Index(path, Plan(4, "guest", "milan"))
    (tmp_path / "text").write_text("this is no database, but long enough to be looked at as one\n" * 20)
    with pytest.raises(CampaignError, match="not the index of a campaign"):
        Index(str(tmp_path / "text"), PLAN)
    with pytest.raises(CampaignError, match="not the index of a campaign"):
        Index(str(tmp_path / "none" / "index"), PLAN)
    sqlite3.connect(tmp_path / "other").executescript("CREATE TABLE campaign (name TEXT)").close()
    with pytest.raises(CampaignError, match="not the index of a campaign"):
        Index(str(tmp_path / "other"), PLAN)


def test_a_unit_that_differs_counts_for_nothing_and_is_done_again(tmp_path: Path) -> None:
    index = Index(str(tmp_path / "index.sqlite"), PLAN)
    done = Done(ops=10, seconds=1.0, states=1, coverage={("PSMASH", "0", "DEFAULT"): 10}, differs="states", since=10)
    index.add(0, "guest milan, contiguous", done)
    assert (index.ops(), index.coverage(), index.numbers(), index.states()) == (0, {}, set(), 0)
    done.differs = ""
    index.add(0, "guest milan, contiguous", done)
    assert (index.ops(), index.coverage(), index.numbers(), index.states()) == (10, done.coverage, {0}, 1)


def test_time_limits_a_campaign() -> None:
    index = Index(":memory:", PLAN)
    assert run(PLAN, index, ops=None, seconds=0.0) is None
    assert index.ops() == 0


def test_a_cluster_does_the_same(tmp_path: Path) -> None:
    from distributed import LocalCluster

    index, mine = (Index(":memory:", PLAN) for _ in range(2))
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        assert run(PLAN, index, ops=12_000, seconds=None, cluster=cluster.scheduler_address) is None
    units = index.numbers()
    assert run(PLAN, mine, ops=index.ops(), seconds=None) is None
    assert units <= set(range(len(units) + 4))
    if units == mine.numbers():
        assert (index.coverage(), index.events()) == (mine.coverage(), mine.events())


def test_a_cluster_that_is_not_there() -> None:
    for address in ("", "nonsense"):
        with pytest.raises(CampaignError, match="no Dask cluster at"):
            run(PLAN, Index(":memory:", PLAN), ops=1, seconds=None, cluster=address)


# --- a difference ----------------------------------------------------------------------------------------------------


def test_nothing_differs_nothing_to_make_small() -> None:
    unit = SMALL_UNITS[1]
    assert attempt(start_of(unit), ops_of(unit)) == ""
    assert reduce(start_of(unit), ops_of(unit)[:50], 0, lambda length: None) is None


# --- the command -----------------------------------------------------------------------------------------------------


def rmpcore_(folder: Path, *args: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "rmpcore.cli", "fuzz", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command(tmp_path: Path) -> None:
    status, out, err = rmpcore_(tmp_path, "--ops", "12000", "--focus", "rmp", "--jobs", "2", "--index", "i.sqlite")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "no difference"
    ops, states, combinations = re.fullmatch(
        r"([\d,]+) ops, (\d+) comparisons of whole states, ([\d,]+) combinations of op, outcome and state", lines[-2]
    ).groups()
    assert int(ops.replace(",", "")) >= 12_000 and int(states) >= 4 and int(combinations.replace(",", "")) > 100
    [psmash] = [line for line in lines if line.startswith("PSMASH ")]
    assert {"0:", "1 FAIL_INPUT:", "7 FAIL_BADADDR:"} <= set(re.findall(r"(?:\d \w+|\d+|#\w+):", psmash))
    assert any(re.fullmatch(r"not reached, op in a state: [\d,]+", line) for line in lines)
    assert any(re.fullmatch(r"    and [\d,]+ more \(--unreached lists all\)", line) for line in lines)
    # all is done already, so this only prints
    status, all_of_it, err = rmpcore_(
        tmp_path, "--ops", "12000", "--focus", "rmp", "--index", "i.sqlite", "--unreached"
    )
    assert (status, err) == (0, "") and len(all_of_it.splitlines()) > len(lines)
    assert [line for line in lines if "more (--unreached" not in line] == [
        line for line in all_of_it.splitlines() if line in set(lines)
    ]


def test_one_unit_alone(tmp_path: Path) -> None:
    status, out, err = rmpcore_(tmp_path, "--seed", "5", "--unit", "1")
    assert (status, err) == (0, "")
    assert out.startswith(f"unit 1: {Plan(5).unit(1).profile}: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--time", "soon"], "--time soon: is not a time as 45s, 10m or 8h"),
        (["--time", "0"], "--time 0: is not a time as 45s, 10m or 8h"),
        (["--profile", "itanium"], "--profile itanium: no machine of focus all has this in its name"),
        (["--jobs", "2", "--dask", "tcp://a:1"], "either --jobs or --dask, not both"),
        (
            ["--replay", "none.trace"],
            "none.trace: there is no none.json beside it, the dump of the machine that it starts on",
        ),
        (
            ["--index", "none/index.sqlite"],
            "none/index.sqlite: not the index of a campaign: unable to open database file",
        ),
        (["--dask", ""], "no Dask cluster at : no address"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, args: list[str], message: str) -> None:
    assert rmpcore_(tmp_path, *args) == (2, "", f"rmpcore: {message}\n")


def test_a_saved_difference_is_an_ordinary_trace(tmp_path: Path) -> None:
    """Saved by hand, as there is none: it can be replayed, and is refused when it is cut."""
    start = Start("by hand", RMPS["contiguous"])
    ops = pack_ops([make_op("PSMASH", pa=0x400000), make_op("host_write", pfn=0x233)])
    found = save(Finding("results", start, ops, 100, None), tmp_path / "out", "saved")
    assert found.trace == tmp_path / "out" / "saved.trace"
    assert found.trace.read_text().splitlines() == [
        "# native and oracle differ (results); made of 100 ops, by hand",
        "# rmpcore run saved.trace --state saved.json --check",
        "PSMASH pa=0x400000",
        "host_write pfn=0x233",
    ]
    assert rmpcore_(tmp_path / "out", "--replay", "saved.trace") == (0, "saved.trace: 2 ops, no difference\n", "")
    dump = tmp_path / "out" / "saved.json"
    dump.write_text(dump.read_text()[:-50])
    status, out, err = rmpcore_(tmp_path / "out", "--replay", "saved.trace")
    assert (status, out) == (2, "") and err.startswith("rmpcore: saved.json")


def test_a_python_without_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such ones are built: all but the campaigns works there."""
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    with pytest.raises(CampaignError, match="a campaign needs SQLite, which this Python was built without"):
        Index(":memory:", PLAN)
