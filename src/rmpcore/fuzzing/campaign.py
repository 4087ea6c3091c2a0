"""A campaign: units by number until there are enough ops or there is no more time, over any number of processes.

With an index (SQLite) it goes on where it stopped.  A difference ends it: the ops that lead there are made as few as
still show it, and saved as a trace with the state dump of the machine that it is done to.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from rmpcore.cluster import cluster_at
from rmpcore.fuzzing.coverage import Key
from rmpcore.fuzzing.pair import Done, attempt, run_unit, start_of
from rmpcore.fuzzing.shrink import shortest, shrink
from rmpcore.fuzzing.units import Ops, Plan
from rmpcore.fuzzing.workers import DEATHS, Death, Worker, Workers
from rmpcore.ops import format_op, pack_ops, unpack_ops
from rmpcore.replay import Disagreement, lockstep
from rmpcore.start import Start, dump_to_json, read_start
from rmpcore.trace import read_trace
from rmpcore.whole_file import WholeFile

_SHRINK_SECONDS = 600.0


class CampaignError(ValueError):
    """An index, a cluster or a saved difference that cannot be used."""


# --- the index -------------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE campaign (version TEXT, seed INTEGER, focus TEXT, profile TEXT);
CREATE TABLE unit (number INTEGER PRIMARY KEY, profile TEXT, ops INTEGER, seconds REAL, states INTEGER, differs TEXT);
CREATE TABLE coverage (op TEXT, outcome TEXT, state TEXT, count INTEGER, PRIMARY KEY (op, outcome, state));
CREATE TABLE event (kind TEXT PRIMARY KEY, count INTEGER);
"""


class Index:
    """What a campaign has done so far.  ``path`` ":memory:": it is forgotten afterwards."""

    def __init__(self, path: str, plan: Plan) -> None:
        try:
            import sqlite3
        except ImportError:
            raise CampaignError("a campaign needs SQLite, which this Python was built without") from None
        mine = (version("rmpcore"), plan.seed, plan.focus, plan.profile)
        try:
            self._db = sqlite3.connect(path)
            with self._db:
                if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    self._db.executescript(_SCHEMA)
                    self._db.execute("INSERT INTO campaign VALUES (?, ?, ?, ?)", mine)
                theirs = self._db.execute("SELECT version, seed, focus, profile FROM campaign").fetchone()
        except sqlite3.Error as e:
            raise CampaignError(f"{path}: not the index of a campaign: {e}") from None
        if theirs != mine:
            self.close()
            what = "version {}, seed {}, focus {}, profile {!r}"
            raise CampaignError(f"{path}: is of a campaign with {what.format(*theirs)}, not {what.format(*mine)}")

    def close(self) -> None:
        self._db.close()

    def numbers(self) -> set[int]:
        """Units that are done, and in which nothing differed."""
        return {number for (number,) in self._db.execute("SELECT number FROM unit WHERE differs = ''")}

    def add(self, number: int, profile: str, done: Done) -> None:
        """A unit is done.  One in which something differs counts for nothing, and is done again next time."""
        row = (number, profile, done.ops, done.seconds, done.states, done.differs)
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO unit VALUES (?, ?, ?, ?, ?, ?)", row)
            if done.differs:
                return
            upsert = "INSERT INTO {} VALUES ({}) ON CONFLICT DO UPDATE SET count = count + excluded.count"
            self._db.executemany(
                upsert.format("coverage", "?, ?, ?, ?"), [(*key, number) for key, number in done.coverage.items()]
            )
            self._db.executemany(upsert.format("event", "?, ?"), list(done.events.items()))

    def coverage(self) -> dict[Key, int]:
        rows = self._db.execute("SELECT op, outcome, state, count FROM coverage ORDER BY op, outcome, state")
        return {(op, outcome, state): number for op, outcome, state, number in rows}

    def events(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT kind, count FROM event ORDER BY kind").fetchall())

    def profiles(self) -> dict[str, tuple[int, int, float]]:
        """Units, ops and seconds of each kind of unit."""
        rows = self._db.execute("SELECT profile, ops, seconds FROM unit WHERE differs = ''").fetchall()
        kinds: dict[str, tuple[int, int, float]] = {}
        for profile, ops, seconds in rows:
            units, before, took = kinds.get(profile.split()[0], (0, 0, 0.0))
            kinds[profile.split()[0]] = (units + 1, before + ops, took + seconds)
        return kinds

    def ops(self) -> int:
        return sum(ops for _, ops, _ in self.profiles().values())

    def states(self) -> int:
        """How often whole states were compared."""
        return int(self._db.execute("SELECT coalesce(sum(states), 0) FROM unit WHERE differs = ''").fetchone()[0])


# --- a difference ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Ops after which native and oracle differ, or at which the process dies."""

    what: str
    """results, events, states or invariants; or the :class:`Death`."""
    start: Start
    ops: Ops
    before: int
    """How many ops there were at first."""
    disagreement: Disagreement | None
    """None: the process dies of it."""
    trace: Path | None = None
    """Where it is saved."""


def _patience(ops: Ops) -> float:
    """Seconds in which these ops are over on both, however busy the computer: what takes longer does not end."""
    return 120 + len(ops) / 500


def _disagreement(start: Start, ops: Ops) -> Disagreement | None:
    return lockstep(lambda backend: start.machine(start.rules, backend), ops, 1, lambda done: None).disagreement


def examine(start: Start, ops: Ops) -> tuple[str, Disagreement | None]:
    """What differs after these ops, with words for it; the ops are done in a process of their own."""
    with Worker() as worker:
        what = worker.call(attempt, start, ops, seconds=_patience(ops))
        if isinstance(what, Death) or not what:
            return str(what), None
        found = worker.call(_disagreement, start, ops, seconds=_patience(ops))
        return what, found if isinstance(found, Disagreement) else None


def reduce(start: Start, ops: Ops, since: int, progress: Callable[[int], object]) -> Finding | None:
    """As few ops as still show what these show.  None: they show nothing, done one array after another.

    since: the machines still agreed before that many last ops, 0 if that is not known."""
    end = time.monotonic() + _SHRINK_SECONDS
    with Worker() as worker:

        def outcome(some: Ops) -> str:
            answer = worker.call(attempt, start, some, seconds=_patience(some))
            return answer.how if isinstance(answer, Death) else str(answer)

        wanted = outcome(ops)
        if not wanted:
            return None
        dies = wanted in DEATHS

        def shows(length: int) -> bool:
            what = outcome(ops[:length])
            return what == wanted if dies else bool(what) and what not in DEATHS

        first = len(ops) - since if since else 0
        length = first + shortest(len(ops) - first, lambda more: shows(first + more))
        wanted = outcome(ops[:length])

        def still(some: list[int]) -> bool:
            progress(len(some))
            return time.monotonic() < end and outcome(ops[np.array(some)]) == wanted

        kept = shrink(range(length), still)
        few = ops[np.array(kept, dtype=np.intp)]
    what, disagreement = examine(start, few)
    return Finding(what, start, few, len(ops), disagreement)


def _dump(start: Start) -> dict[str, object]:
    machine = start.machine(start.rules, "oracle")
    return dump_to_json(machine, start.settle(start.rules), machine.state())


def save(finding: Finding, folder: Path, name: str) -> Finding:
    """Write the trace and, beside it, the dump of the machine that it starts on."""
    trace, dump = folder / f"{name}.trace", folder / f"{name}.json"
    lines = [f"# native and oracle differ ({finding.what}); made of {finding.before} ops, {finding.start.source}"]
    lines += [f"# rmpcore run {trace.name} --state {dump.name} --check", *map(format_op, unpack_ops(finding.ops))]
    os.makedirs(folder, exist_ok=True)
    texts = ("\n".join(lines), json.dumps(_dump(finding.start)))
    for path, text in zip((trace, dump), texts, strict=True):
        with WholeFile(path) as whole:
            whole.file.write(f"{text}\n".encode())
    return replace(finding, trace=trace)


def read_finding(path: str) -> tuple[Start, Ops]:
    """A saved difference: the machine that it starts on, and its ops."""
    dump = Path(path).with_suffix(".json")
    if not dump.is_file():
        raise CampaignError(f"{path}: there is no {dump.name} beside it, the dump of the machine that it starts on")
    return read_start(dump), read_trace(path).ops


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a campaign is."""

    ops: int
    """With those of earlier runs of the same campaign."""
    new_ops: int
    seconds: float
    reached: set[Key] = field(repr=False)
    """Combinations of op, outcome and state, so far."""

    @property
    def rate(self) -> float:
        """Ops a second, in this run."""
        return self.new_ops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Broken:
    """A unit in which something differs, or which its process did not survive."""

    number: int
    what: str
    done: Done | None


def _task(plan: Plan, number: int) -> Done:
    return run_unit(plan.unit(number))


def _on_cluster(plan: Plan, numbers: Iterator[int], address: str) -> Iterator[tuple[int, Any]]:
    with cluster_at(address, CampaignError) as client:
        from distributed import KilledWorker, as_completed

        asked: dict[Any, int] = {}
        waiting = as_completed()

        def ask() -> None:
            if (number := next(numbers, None)) is not None:
                future = client.submit(_task, plan, number, pure=False)
                asked[future.key] = number
                waiting.add(future)

        for _ in range(2 * max(1, sum(client.ncores().values()))):
            ask()
        for future in waiting:
            number = asked.pop(future.key)
            try:
                answer: object = future.result()
            except KilledWorker as e:
                answer = Death("crash", " ".join(str(e).split()))
            except (ImportError, RuntimeError) as e:
                why = " ".join(str(e).split())
                raise CampaignError(f"the cluster at {address} cannot do it (does it have rmpcore?): {why}") from None
            yield number, answer
            ask()


def run(
    plan: Plan,
    index: Index,
    *,
    ops: int | None,
    seconds: float | None,
    jobs: int = 1,
    cluster: str | None = None,
    report: Callable[[Progress], object] = lambda progress: None,
) -> Broken | None:
    """Do units until the campaign has so many ops, or so many seconds are over.  What went wrong, None if nothing did.

    jobs: so many processes; cluster: the address of a Dask scheduler, which does the units instead."""
    started = time.monotonic()
    before = index.ops()
    progress = Progress(before, 0, 0.0, set(index.coverage()))
    finished = index.numbers()

    def numbers() -> Iterator[int]:
        for number in count():
            if ops is not None and progress.ops >= ops:
                return
            if seconds is not None and time.monotonic() - started >= seconds:
                return
            if number not in finished:
                yield number

    with Workers[int](jobs) as workers:
        if cluster is not None:
            answers = _on_cluster(plan, numbers(), cluster)
        else:
            answers = workers.results(partial(_task, plan), numbers())
        for number, answer in answers:
            if isinstance(answer, Death):
                return Broken(number, str(answer), None)
            index.add(number, plan.unit(number).profile, answer)
            if answer.differs:
                return Broken(number, answer.differs, answer)
            progress.new_ops += answer.ops
            progress.ops = before + progress.new_ops
            progress.seconds = time.monotonic() - started
            progress.reached.update(answer.coverage)
            report(progress)
    return None


def _all_ops(plan: Plan, broken: Broken) -> Ops:
    parts, total = [], 0
    for part in plan.unit(broken.number).chunks():
        parts.append(part)
        total += len(part)
        if broken.done is not None and total >= broken.done.ops:
            break
    return np.concatenate(parts) if broken.done is None or broken.done.ops else pack_ops([])


def explain(plan: Plan, broken: Broken, folder: Path, progress: Callable[[int], object]) -> Finding | None:
    """Make what went wrong small and save it.  None: it does not come back from the state that the unit starts in."""
    start = start_of(plan.unit(broken.number))
    # what is saved is a state, so that is what is tried
    start = replace(start, state=start.machine(start.rules, "oracle").state())
    found = reduce(start, _all_ops(plan, broken), broken.done.since if broken.done is not None else 0, progress)
    return save(found, folder, f"fuzz-{plan.focus}-{plan.seed}-{broken.number}") if found is not None else None
