"""``rmpcore gen`` and ``rmpcore ver``: test vectors for other implementations, and the judge of their answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from rmpcore.cli_common import BadInputError, Bar, Output, bad_input, one_line, switch_values
from rmpcore.ops import BY_NAME, format_op
from rmpcore.vectors.form import FORMATS, VectorError, Vectors, read_vectors, write_vectors
from rmpcore.vectors.generate import HARDWARE, DisagreeError, generate
from rmpcore.vectors.verify import IGNORABLE, DeviceError, Verdict, ask, difference_lines, judge

_SHOWN = 8
"""Lines about one case."""


@contextmanager
def _vector_input() -> Iterator[None]:
    try:
        with bad_input():
            yield
    except (VectorError, DeviceError) as e:
        raise BadInputError(str(e)) from None


@click.command("gen")
@click.option("--level", type=click.IntRange(1, 2), default=1, show_default=True, help="1: bare entries; 2: machines.")
@click.option("--op", "ops", metavar="NAME", multiple=True, help="Only cases of this op; may be given again.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option(
    "--hardware",
    type=click.Choice(HARDWARE),
    help="Only what holds on this part.  [default: genoa, and what is another on milan and turin]",
)
@click.option(
    "--switch", "switches", metavar="NAME=NUMBER", multiple=True, help="Override a point of the hardware profile."
)
@click.option("-o", "--output", "output_path", metavar="FILE", help="Write the cases there.  [default: stdout]")
def gen(
    level: int,
    ops: tuple[str, ...],
    form: str,
    hardware: str | None,
    switches: tuple[str, ...],
    output_path: str | None,
) -> None:
    """Write test vectors: a state, one op, its result and what it changes, rule by rule.

    The expected values are the oracle's; exit status 1 if native differs from it.
    """
    for name in ops:
        if name not in BY_NAME:
            raise BadInputError(f"--op {name}: there is no such op")

    def make() -> Vectors:
        with Bar(None, "making cases") as bar:
            made = generate(
                level, hardware=hardware, switches=switch_values(switches), ops=ops, report=lambda done, _: bar(done)
            )
        if not made.cases:
            raise BadInputError("there are no such cases")
        return made

    try:
        with bad_input():
            if output_path is None:
                write_vectors(make(), sys.stdout, form)
                return
            with Output(output_path) as output:
                made = make()
                output.fill(lambda file: write_vectors(made, file, form))
    except DisagreeError as e:
        click.echo(f"rmpcore: {one_line(str(e))}", err=True)
        raise click.exceptions.Exit(1) from None
    click.echo(f"{output_path}: {len(made.cases):,} cases", err=True)


def _read(path: str) -> Vectors:
    if path == "-":
        return read_vectors(sys.stdin.buffer, "-")
    try:
        with open(path, "rb") as file:
            return read_vectors(file, path)
    except OSError as e:
        raise VectorError(f"{path}: {e.strerror or e}") from None
    except ValueError as e:
        raise VectorError(str(e)) from None


def _ignored(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in IGNORABLE:
            raise BadInputError(f"--ignore {name}: it is one of {', '.join(IGNORABLE)}")
    return names


def _print(vectors: Vectors, verdict: Verdict, shown: int) -> None:
    for case, _, found in verdict.failed[:shown]:
        click.echo(f"FAIL {case.name}: {case.about}")
        click.echo(f"     {format_op(case.op)}")
        lines = list(difference_lines(case, found))
        for line in lines[:_SHOWN]:
            click.echo(f"     {line}")
        if len(lines) > _SHOWN:
            click.echo(f"     and {len(lines) - _SHOWN:,} more lines")
    if len(verdict.failed) > shown:
        click.echo(f"and {len(verdict.failed) - shown:,} more cases that differ (--show says how many are told)")
    rules = verdict.by_rule()
    for rule, number in rules.items():
        click.echo(f"{number:6,} differ about {rule}: {vectors.rules[rule]}")
    if rules:
        click.echo("")
    rows = verdict.by_op()
    width = max(map(len, rows))
    click.echo(f"{'op':<{width}}  passed  differ  skipped")
    for name, (passed, failed, skipped) in rows.items():
        click.echo(f"{name:<{width}}  {passed:6,}  {failed:6,}  {skipped:7,}")
    total = len(vectors.cases)
    words = f"{len(verdict.passed):,} of {total:,} cases pass, {len(verdict.failed):,} differ"
    click.echo(words + f", {len(verdict.skipped):,} skipped" * bool(verdict.skipped))


@click.command("ver")
@click.argument("cases")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--timeout", type=click.FloatRange(0.1), default=10, show_default=True, help="Seconds that it may be silent."
)
@click.option("--no-skips", is_flag=True, help="A skipped case is a difference.")
@click.option("--ignore", default="", metavar="NAME,...", help="Do not compare these fields of RMP entries, or items.")
@click.option("--show", type=click.IntRange(0), default=10, show_default=True, help="Tell so many cases that differ.")
def ver(cases: str, command: tuple[str, ...], timeout: float, no_skips: bool, ignore: str, show: int) -> None:
    """Let the program COMMAND answer the cases in the file CASES (-: stdin), and say where it differs.

    It reads the cases on stdin, without what is expected, and answers on stdout: docs/vectors.md.  Exit status 1: it
    differs.  2: cases or answers that are none, or a program that dies, is silent or leaves cases out.
    """
    ignored = _ignored(ignore)
    with _vector_input():
        vectors = _read(cases)
        if not vectors.cases:
            raise VectorError(f"{cases}: has no cases")
        with Bar(len(vectors.cases), "answers") as bar:
            answers = ask(vectors, command, timeout, bar)
        verdict = judge(vectors, answers, ignored)
    _print(vectors, verdict, show)
    if ignored:
        click.echo(f"not compared: {', '.join(ignored)}")
    if verdict.failed or (no_skips and verdict.skipped):
        raise click.exceptions.Exit(1)
