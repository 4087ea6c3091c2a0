"""``rmpcore fuzz``: random ops on native and oracle, side by side, until there were enough."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from rmpcore.cli_common import BadInputError, Bar, bad_input, cpu_count, disagreement_to_json, print_disagreement
from rmpcore.fuzzing.campaign import Broken, Index, Progress, examine, explain, read_finding, run
from rmpcore.fuzzing.coverage import Key, unreached
from rmpcore.fuzzing.pair import run_unit
from rmpcore.fuzzing.units import FOCUS, Plan
from rmpcore.fuzzing.workers import Worker
from rmpcore.trace import read_trace

_OPS = 200_000
"""Ops of a campaign that nothing else limits."""
_SHOWN = 12
_QUIET = 60.0
"""Seconds between two lines of progress where there is no terminal."""
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,6})([smh]?)", text)
    if found is None or not int(found[1]):
        raise BadInputError(f"--time {text}: is not a time as 45s, 10m or 8h")
    return int(found[1]) * _UNITS[found[2]]


class _Report:
    """Rate and coverage: in the bar, or now and then in a line."""

    def __init__(self, bar: Bar, seconds: float | None) -> None:
        self._bar, self._seconds, self._said = bar, seconds, time.monotonic()

    def __call__(self, progress: Progress) -> None:
        words = f"{progress.ops:,} ops, {progress.rate:,.0f} a second, {len(progress.reached):,} combinations"
        self._bar(int(progress.seconds) if self._seconds is not None else progress.ops, words)
        if not sys.stderr.isatty() and time.monotonic() - self._said >= _QUIET:
            self._said = time.monotonic()
            click.echo(f"{progress.seconds:.0f} s: {words}", err=True)


def _coverage_lines(coverage: dict[Key, int], everything: bool) -> Iterator[str]:
    """For each op its outcomes; then what was not reached."""
    outcomes: dict[str, dict[str, int]] = {}
    for (op, outcome, _), number in coverage.items():
        row = outcomes.setdefault(op, {})
        row[outcome] = row.get(outcome, 0) + number
    for op, row in outcomes.items():
        counts = "  ".join(f"{outcome}: {number:,}" for outcome, number in sorted(row.items(), key=lambda x: -x[1]))
        yield f"{op:32}{counts}"
    missing = unreached(coverage)
    for what, rows in missing.items():
        if rows:
            yield f"not reached, {what}: {len(rows):,}"
            yield from (f"    {row}" for row in (rows if everything else rows[:_SHOWN]))
            if not everything and len(rows) > _SHOWN:
                yield f"    and {len(rows) - _SHOWN:,} more (--unreached lists all)"


def _replay(path: str) -> int:
    """Do a saved difference again; the exit status."""
    start, ops = read_finding(path)
    what, disagreement = examine(start, ops)
    if not what:
        click.echo(f"{path}: {len(ops):,} ops, no difference")
        return 0
    if disagreement is None:
        click.echo(f"{path}: {len(ops):,} ops: {what}")
    else:
        print_disagreement(disagreement_to_json(disagreement, read_trace(path)))
    return 1


def _unit(plan: Plan, number: int) -> Broken | None:
    """Do one unit alone."""
    with Worker() as worker:
        answer = worker.call(run_unit, plan.unit(number))
    click.echo(f"unit {number}: {plan.unit(number).profile}: {answer}")
    if not hasattr(answer, "differs"):
        return Broken(number, str(answer), None)
    return Broken(number, answer.differs, answer) if answer.differs else None


def _tell(plan: Plan, broken: Broken, folder: Path) -> None:
    """What went wrong, made small and saved."""
    unit = plan.unit(broken.number)
    at = f", in its first {broken.done.ops:,} ops" if broken.done is not None else ""
    click.echo(f"unit {broken.number} ({unit.profile}){at}: {broken.what}")
    with Bar(None, "making it small") as bar:
        found = explain(plan, broken, folder, lambda length: bar(0, f"making it small: {length:,} ops"))
    if found is None:
        click.echo(f"it does not come back from a saved state: --seed {plan.seed} --unit {broken.number} does it again")
        return
    click.echo(f"{found.before:,} ops became {len(found.ops)}: {found.trace}")
    if found.disagreement is None:
        click.echo(f"  {found.what}")
    else:
        print_disagreement(disagreement_to_json(found.disagreement, read_trace(str(found.trace))))


@click.command()
@click.option("--ops", type=click.IntRange(1), metavar="N", help=f"Until so many ops are done.  [default: {_OPS:,}]")
@click.option("--time", "time_text", metavar="TIME", help="For so long: 45s, 10m, 8h.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Other ops for another number.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes.  [default: as many as CPUs]")
@click.option("--dask", "cluster", metavar="ADDRESS", help="Let the Dask cluster at tcp://HOST:PORT do it.")
@click.option("--focus", type=click.Choice(list(FOCUS)), default="all", show_default=True, help="What it is about.")
@click.option("--profile", default="", metavar="TEXT", help='Only machines whose name has this in it, as "milan".')
@click.option("--index", "index_path", metavar="FILE", help="Keep what is done in this SQLite file, and go on.")
@click.option("--out", "folder", default=".", metavar="DIR", help="Where differences are saved.  [default: here]")
@click.option("--unreached", "everything", is_flag=True, help="List all combinations that were not reached.")
@click.option("--unit", "number", type=click.IntRange(0), metavar="N", help="Do this unit of the campaign alone.")
@click.option("--replay", "saved", metavar="FILE", help="Do a saved difference again instead.")
def fuzz(
    ops: int | None,
    time_text: str | None,
    seed: int,
    jobs: int | None,
    cluster: str | None,
    focus: str,
    profile: str,
    index_path: str | None,
    folder: str,
    everything: bool,
    number: int | None,
    saved: str | None,
) -> None:
    """Do random ops on native and oracle, and compare results, events and states.

    The first difference ends it (exit status 1): the ops that lead there are made few, and saved as FILE.trace with
    FILE.json, the machine that they start on.  The same seed gives the same ops, whatever the number of processes.
    """
    if jobs is not None and cluster is not None:
        raise BadInputError("either --jobs or --dask, not both")
    seconds = _seconds(time_text) if time_text is not None else None
    ops = ops if ops is not None or seconds is not None else _OPS
    plan = Plan(seed, focus, profile)
    with bad_input():
        if saved is not None:
            raise click.exceptions.Exit(_replay(saved))
        if plan.empty:
            raise BadInputError(f"--profile {profile}: no machine of focus {focus} has this in its name")
        if number is not None:
            broken = _unit(plan, number)
        else:
            with closing(Index(index_path or ":memory:", plan)) as index:
                total = int(seconds) if seconds is not None else ops
                with Bar(total, "fuzzing") as bar:
                    broken = run(
                        plan,
                        index,
                        ops=ops,
                        seconds=seconds,
                        jobs=jobs or cpu_count(),
                        cluster=cluster,
                        report=_Report(bar, seconds),
                    )
                if broken is None:
                    _print(index, everything)
        if broken is not None:
            _tell(plan, broken, Path(folder))
            raise click.exceptions.Exit(1)
    if number is None:
        click.echo("no difference")


def _print(index: Index, everything: bool) -> None:
    coverage = index.coverage()
    for line in _coverage_lines(coverage, everything):
        click.echo(line)
    click.echo("events".ljust(32) + "  ".join(f"{kind}: {number:,}" for kind, number in index.events().items()))
    for kind, (units, ops, seconds) in index.profiles().items():
        rate = ops / seconds if seconds else 0
        click.echo(f"{kind:32}{units:,} units, {ops:,} ops, {rate:,.0f} a second and process")
    combinations = f"{len(coverage):,} combinations of op, outcome and state"
    click.echo(f"{index.ops():,} ops, {index.states():,} comparisons of whole states, {combinations}")
