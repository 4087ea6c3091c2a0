"""``rmpcore compare``: what each policy costs, and who could access what, as tables, JSON, CSV or a picture."""

from __future__ import annotations

import json
import statistics
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import click

from rmpcore.cli_common import BadInputError, Bar, Output, bad_input, cpu_count, size_text
from rmpcore.cli_workload import chosen, map_with_rmp, workload_options
from rmpcore.compare import NUMBERS, CompareError, Measurement, Spread, Task, compare, summary
from rmpcore.compare_plot import plot_comparison
from rmpcore.machine import BACKENDS, POLICIES
from rmpcore.plot import require_plot
from rmpcore.start import HARDWARE, KERNEL, Rules, Start
from rmpcore.workload import PRESETS, Workload

Column = tuple[str, str, str]
"""Two lines of a heading, and the number's name."""

_ACCESSES: tuple[Column, ...] = (
    ("", "accesses", "accesses"),
    ("", "done", "done"),
    ("faults:", "owner", "faults_owner"),
    ("faults:", "neighbour", "faults_neighbour"),
    ("", "repaired", "repairs"),
    ("forced", "shared", "forced_shared"),
    ("kmap", "windows", "windows"),
    ("failed", "calls", "failed"),
    ("missing", "peak", "missing_peak"),
)
_WORK: tuple[Column, ...] = (
    ("splits", "of 1G", "splits_1g"),
    ("splits", "of 2M", "splits_2m"),
    ("collapses", "to 1G", "collapses_1g"),
    ("collapses", "to 2M", "collapses_2m"),
    ("flushes:", "full", "flush_full"),
    ("flushes:", "of one page", "flush_page"),
    ("flushes:", "on all CPUs", "flush_cpus"),
    ("", "RMPUPDATEs", "updates"),
)
_LEFT: tuple[Column, ...] = (
    ("leaves", "1G", "pages_1g"),
    ("leaves", "2M", "pages_2m"),
    ("leaves", "4K", "pages_4k"),
    ("table", "pages", "table_pages"),
    ("reach", "at boot", "reach_boot"),
    ("reach", "peak", "reach_peak"),
    ("reach", "end", "reach_end"),
    ("lost", "4K frames", "lost_end"),
)
_TABLES = (
    (
        "Accesses of the host and KVM.  A fault's victim is the page's owner, or an innocent neighbour.",
        _ACCESSES,
    ),
    (
        "What the policy does, counted from boot to end.",
        _WORK,
    ),
    (
        "The direct map at the end.  Reach: TLB entries that cover it once.  Lost: in 4K leaves or missing since boot.",
        _LEFT,
    ),
)
_EXACT = 10_000
"""From here on a range is shown rounded."""
_CLOSE = 0.01
"""Seeds that differ by less than this part of the median are not worth a range."""
_WIDTH = 120
_BAR = 1000
"""Steps of the progress bar."""


def _range(low: int, high: int) -> str:
    """``8,050..8,200`` or ``12.31..12.45k``."""
    if high < _EXACT:
        return f"{low:,}..{high:,}"
    unit, name = next((unit, name) for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if high >= unit)
    return f"{low / unit:.2f}..{high / unit:.2f}{name}"


def _table(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Spread]]) -> Iterator[str]:
    """A table's lines: for each policy the median, and below it the range of what differs between seeds."""
    cells = [["", *(column[0] for column in columns)], ["policy", *(column[1] for column in columns)]]
    for policy, numbers in rows.items():
        spreads = [numbers[name] for _, _, name in columns]
        cells.append([policy, *(f"{spread.median:,}" for spread in spreads)])
        ranges = [_range(s.min, s.max) if s.max - s.min > _CLOSE * s.median else "" for s in spreads]
        if any(ranges):
            cells.append(["  min..max", *ranges])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        right = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join((first.ljust(widths[0]), *right)).rstrip()


def _amount(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _workload_words(workload: Workload) -> str:
    scattered = " from all over" if workload.scatter else ""
    each = (
        f"{workload.touched * 100:.4g}% of it accepted in {workload.backing} pages{scattered}",
        _amount(workload.vcpus, "vCPU"),
        _amount(workload.exits, "exit"),
        _amount(workload.changes, "change"),
        _amount(workload.commands, "firmware command"),
        _amount(workload.strays, "stray write"),
    )
    together = f" ({workload.together:,} at once)" if workload.guests > 1 else ""
    guests = f"{_amount(workload.guests, 'guest')}{together} with {size_text(workload.memory)}"
    host = f"host {size_text(workload.host)}, pressure {workload.pressure:g}"
    return f"{workload.name}: {guests}{' each' * (workload.guests > 1)}, {', '.join(each)}; {host}"


def _head(tasks: Sequence[Task], runs: Sequence[Measurement]) -> list[str]:
    """Machine, rules and workload, in lines of a name and words."""
    task = tasks[0]
    memory = size_text(sum(size for _, size in task.map.memory))
    ops = statistics.median_low(run.ops for run in runs)
    low, high = tasks[0].seed, tasks[-1].seed
    seeds = f"seed {low}"
    if low < high:
        seeds = f"seeds {low} to {high}; their median, and min..max where they are more than {_CLOSE:.0%} apart"
    rows = {
        "machine": f"{task.map.name}: {memory} of memory, {task.cpus:,} CPUs",
        "rules": f"kernel {task.kernel}, hardware {task.hardware}, {task.backend} machine",
        "workload": _workload_words(task.workload),
        "runs": f"{ops:,} ops under each policy; {seeds}",
    }
    return [
        line
        for name, words in rows.items()
        for line in textwrap.wrap(f"{name:<12}{words}", _WIDTH, subsequent_indent=" " * 12, break_on_hyphens=False)
    ]


def _tables(runs: Sequence[Measurement]) -> Iterator[str]:
    rows = summary(runs)
    for words, columns in _TABLES:
        yield ""
        yield words
        yield ""
        yield from _table(columns, rows)


def _json_text(tasks: Sequence[Task], runs: Sequence[Measurement]) -> str:
    task = tasks[0]
    document = {
        "machine": {"name": task.map.name, "memory": sum(size for _, size in task.map.memory)},
        "kernel": task.kernel,
        "hardware": task.hardware,
        "backend": task.backend,
        "cpus": task.cpus,
        "workload": asdict(task.workload),
        "summary": {
            policy: {name: asdict(spread) for name, spread in numbers.items()}
            for policy, numbers in summary(runs).items()
        },
        "runs": [asdict(run) for run in runs],
    }
    return json.dumps(document, indent=1)


def _csv_text(runs: Sequence[Measurement]) -> str:
    names = ("policy", "seed", *NUMBERS, "seconds")
    lines = [",".join(names), *(",".join(str(getattr(run, name)) for name in names) for run in runs)]
    return "\n".join(lines)


def _policies(text: str) -> list[str]:
    policies = list(dict.fromkeys(text.split(",")))
    for policy in policies:
        if policy not in POLICIES:
            raise BadInputError(f"--policies {text}: no policy {policy!r}: it is one of {', '.join(POLICIES)}")
    return policies


@click.command("compare")
@click.option("--map", "map_path", metavar="MAP", required=True, help="Map: JSON, kernel log, /proc/iomem, recording.")
@click.option(
    "--workload",
    "preset",
    type=click.Choice(list(PRESETS)),
    default="one-guest",
    show_default=True,
    help="What the host does; the next options change its numbers.",
)
@workload_options
@click.option("--policies", metavar="A,B,...", default=",".join(POLICIES), help="Only these.  [default: all]")
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), default=3, show_default=True, help="So many runs under each policy."
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes.  [default: as many as CPUs]")
@click.option("--dask", "cluster", metavar="ADDRESS", help="Let the Dask cluster at tcp://HOST:PORT do the runs.")
@click.option("--kernel", metavar="VERSION", help=f"Kernel whose rules hold.  [default: {KERNEL}]")
@click.option("--hardware", metavar="NAME", help=f"Profile: milan, genoa or turin.  [default: {HARDWARE}]")
@click.option("--backend", type=click.Choice(BACKENDS), default="native", show_default=True)
@click.option(
    "--cpus",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="CPUs of the machine: each flush goes to all.",
)
@click.option("--plot", "picture", metavar="FILE", help="Draw the runs into FILE.svg or FILE.png as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the course of each run.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, a line for each policy and seed.")
def compare_policies(
    map_path: str,
    preset: str,
    policies: str,
    seeds: int,
    jobs: int | None,
    cluster: str | None,
    kernel: str | None,
    hardware: str | None,
    backend: str,
    cpus: int,
    picture: str | None,
    as_json: bool,
    as_csv: bool,
    **options: Any,
) -> None:
    """Run one workload under each policy on the machine of MAP, and print what each costs and whom it hurts.

    Numbers are medians of the seeds, with the range below where the seeds differ.
    """
    if as_json and as_csv:
        raise BadInputError("either --json or --csv, not both")
    if jobs is not None and cluster is not None:
        raise BadInputError("either --jobs or --dask, not both")
    with ExitStack() as stack:
        stack.enter_context(bad_input())
        names = _policies(policies)
        workload = chosen(preset, **options)
        start = Start(map_path, map_with_rmp(map_path))
        rules = start.settle(Rules(kernel, hardware))
        # What no machine can be shows here, before there are processes.
        machine = start.machine(replace(rules, policy="none"), backend)
        tasks = [
            Task(machine.map, workload, policy, seed, machine.kernel, rules.hardware or HARDWARE, backend, cpus)
            for policy in names
            for seed in range(1, seeds + 1)
        ]
        picture_file = None
        if picture is not None:
            require_plot(picture)
            picture_file = stack.enter_context(Output(picture))
        started = time.perf_counter()
        try:
            with Bar(_BAR, "comparing") as bar:
                runs = compare(
                    tasks, jobs=jobs or cpu_count(), cluster=cluster, report=lambda done: bar(round(done * _BAR))
                )
        except CompareError as e:
            raise BadInputError(str(e)) from None
        seconds = time.perf_counter() - started
        head = _head(tasks, runs)
        if picture is not None and picture_file is not None:
            title = f"{workload.name} on {machine.map.name}"
            picture_file.fill_bytes(plot_comparison(runs, picture, title, head))
    if as_json:
        click.echo(_json_text(tasks, runs))
    elif as_csv:
        click.echo(_csv_text(runs))
    else:
        for line in (*head, *_tables(runs)):
            click.echo(line)
    ops = sum(run.ops for run in runs)
    click.echo(f"{ops:,} ops in {seconds:.1f} s, {ops / seconds:,.0f} a second", err=True)
