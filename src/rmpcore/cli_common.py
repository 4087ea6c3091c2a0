"""What the commands share: bad input as one line, result files that appear whole, a progress bar, sizes."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import click

from rmpcore.conform import Conformance
from rmpcore.fuzzing.campaign import CampaignError
from rmpcore.machine import MachineError
from rmpcore.maps import MachineMap, MapError
from rmpcore.memory_image import ImageError
from rmpcore.pages import PagesError
from rmpcore.placement import place_rmp
from rmpcore.plot import PlotError
from rmpcore.recording import RecordingError
from rmpcore.replay import Disagreement
from rmpcore.state import StateError
from rmpcore.trace import Trace, TraceError
from rmpcore.whole_file import WholeFile
from rmpcore.workload import WorkloadError

if TYPE_CHECKING:
    from rich.progress import Progress


class BadInputError(click.ClickException):
    """What the user gave cannot be used."""

    exit_code = 2


def one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Output:
    """A result file that appears whole or not at all.  What stops it from being written shows when it is opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        with ExitStack() as stack, self._one_line():
            if os.path.exists(path) and not os.path.isfile(path):
                self.file: TextIO = stack.enter_context(open(path, "w", encoding="utf-8"))  # a pipe or a device
            else:
                whole = stack.enter_context(WholeFile(path))
                self.file = stack.enter_context(io.TextIOWrapper(whole.file, encoding="utf-8"))
            self._open = stack.pop_all()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as e:
            raise BadInputError(f"{self.path}: {getattr(e, 'strerror', None) or e}") from None

    def fill(self, write: Callable[[TextIO], object]) -> None:
        """Let ``write`` write the file."""
        try:
            write(self.file)
        except OSError as e:
            raise BadInputError(f"{self.path}: {e.strerror or e}") from None

    def fill_bytes(self, data: bytes) -> None:
        """Write a file that is not text."""
        self.fill(lambda file: file.buffer.write(data))

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._one_line():
            self._open.__exit__(kind, value, tb)


class Bar:
    """A progress bar for what takes more than a second, if there is a terminal to show it on."""

    def __init__(self, total: int | None, what: str) -> None:
        self._total, self._what = total, what
        self._started = time.monotonic()
        self._progress: Progress | None = None

    def __call__(self, done: int, what: str | None = None) -> None:
        """So much is done; ``what`` replaces the words before the bar."""
        if self._progress is None:
            if time.monotonic() - self._started < 1 or not sys.stderr.isatty():
                return
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(self._what, total=self._total)
            self._progress.start()
        self._progress.update(self._task, completed=done, description=what)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn what the readers and machines refuse into one line and exit status 2."""
    try:
        yield
    except (
        CampaignError,
        ImageError,
        MachineError,
        MapError,
        PagesError,
        PlotError,
        RecordingError,
        StateError,
        TraceError,
        WorkloadError,
    ) as e:
        raise BadInputError(str(e)) from None
    except ImportError as e:
        raise BadInputError(f"the backend cannot be loaded: {e}") from None


def switch_values(values: tuple[str, ...]) -> dict[str, int]:
    """What --switch says, each time that it is given."""
    switches = {}
    for text in values:
        name, _, value = text.partition("=")
        try:
            switches[name] = int(value, 0)
        except ValueError:
            raise BadInputError(f"--switch {text}: is not NAME=NUMBER") from None
    return switches


def cpu_count() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def size_text(bytes_: int) -> str:
    value, unit = float(bytes_), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}"


def place_on(path: str, machine_map: MachineMap, segment_shift: int | None = None) -> MachineMap:
    """The map with an RMP where firmware could put it; a refusal names the map's file."""
    try:
        return place_rmp(machine_map, segment_shift=segment_shift)
    except MapError as e:
        raise MapError(f"{path}: {e}") from None


def disagreement_to_json(found: Disagreement, trace: Trace) -> dict[str, Any]:
    """A disagreement as JSON values; ``trace`` says where its op stands."""
    return {
        "op": str(found.op) if found.op is not None else None,
        "index": found.index,
        "place": trace.place(found.index) if found.index >= 0 else None,
        "results": found.outcome(),
        "differences": list(found.lines),
        "more": found.more,
    }


def print_disagreement(found: dict[str, Any]) -> None:
    """The op after which native and oracle differ, both results, and what differs."""
    click.echo(f"native and oracle disagree after {found['place'] or 'building the machine'}")
    if found["op"] is not None:
        click.echo(f"  {found['op']}")
    for line in (*found["results"], *found["differences"]):
        click.echo(f"  {line}")
    if found["more"]:
        click.echo(f"  and {found['more']:,} more")


def print_conformance(result: Conformance) -> None:
    """One line, and below it what differs."""
    compared = ", ".join(f"{number:,} {what}" for what, number in result.compared.items())
    verdict = "PASS" if result.passed else "FAIL"
    click.echo(f"{verdict}  {result.file}  {result.kind} {result.kernel} {result.backend}: compared {compared}")
    if result.not_implemented:
        click.echo(f"    not implemented: {', '.join(map(repr, result.not_implemented)).replace(chr(39), '')}")
    for line in result.differences:
        click.echo(f"    {line}")
    if result.different > len(result.differences):
        click.echo(f"    and {result.different - len(result.differences):,} more differences")
    for subject, number in sorted(result.subjects.items(), key=lambda item: -item[1]):
        click.echo(f"    {number:,} about {subject}")
