"""``rmpcore kernel``: record a real kernel in QEMU, hold the models against it, and do that over and over."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from rmpcore.cli_common import BadInputError, Bar, Output, bad_input, one_line, print_conformance
from rmpcore.kernel.calls import SafeCalls, Source, calls_of
from rmpcore.kernel.campaign import LA57, hold, run_round
from rmpcore.kernel.errors import GuestError, KernelError
from rmpcore.kernel.guest import CPU, Layout
from rmpcore.kernel.image import Image, find_image, read_image
from rmpcore.kernel.record import record, recording_text
from rmpcore.trace import read_trace

_Command = TypeVar("_Command", bound=Callable[..., Any])

KERNELS = ("6.12", "7")
"""What is checked where nothing else is said: the table before it had segments, and after."""
_KERNEL_HELP = "Version (7, 6.12, 6.12.95+deb12-amd64), fetched from Debian if it is not in the cache; or a vmlinuz."

_MACHINE = (
    click.option("--memory", default="4G", show_default=True, metavar="SIZE", help="The guest's memory, as 3333M, 4G."),
    click.option("--cmdline", default="", metavar="TEXT", help="Kernel command line: nogbpages, nopat, mem=2G, ..."),
    click.option("--la57", is_flag=True, help="Five levels of page tables."),
    click.option("--cpu", default=CPU, show_default=True, metavar="MODEL", help="QEMU's CPU model."),
    click.option("--qemu", multiple=True, metavar="ARG", help="A further argument of QEMU, once for each."),
)
_CALLS = (
    click.option("--calls", type=click.IntRange(0), default=1000, show_default=True, help="Random calls to make."),
    click.option(
        "--seed", type=click.IntRange(0), default=1, show_default=True, help="Other calls for another number."
    ),
    click.option("--ops", "ops_path", metavar="TRACE", help="Make the calls of a trace instead."),
    click.option(
        "--module", "module_path", metavar="FILE", help="Module that does the instructions (examples/linux-module)."
    ),
)


_kernels_option = click.option(
    "--kernel",
    "versions",
    metavar="VERSION|FILE",
    multiple=True,
    help=f"{_KERNEL_HELP}  [default: {' and '.join(KERNELS)}]",
)


def _options(*groups: tuple[Callable[[_Command], _Command], ...]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


@contextmanager
def _guests() -> Iterator[None]:
    """What stops a recording, in one line; what a guest said last goes before it, and the status is 1 then."""
    try:
        with bad_input():
            yield
    except GuestError as e:
        for line in e.console:
            click.echo(f"    {one_line(line)}", err=True)
        click.echo(f"rmpcore: {one_line(str(e))}", err=True)
        raise click.exceptions.Exit(1) from None
    except KernelError as e:
        raise BadInputError(str(e)) from None


def _image(kernel: str | None, image: str | None) -> Image:
    if (kernel is None) == (image is None):
        raise BadInputError("give one of --kernel and --image")
    return read_image(image) if image is not None else find_image(kernel or "")


def _layout(memory: str, cmdline: str, la57: bool, cpu: str, qemu: tuple[str, ...]) -> Layout:
    return Layout(memory, cmdline, cpu + LA57 if la57 else cpu, qemu)


def _source(calls: int, seed: int, ops_path: str | None, module: bytes | None) -> Source:
    return SafeCalls(calls, seed, inject=module is None) if ops_path is None else calls_of(read_trace(ops_path))


def _module(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise KernelError(f"{path}: {e.strerror}") from None


def _folder(path: str) -> Path:
    """A folder for recordings, made if it is not there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise KernelError(f"{path}: {e.strerror}") from None
    return Path(path)


def _summary(recording: dict[str, Any], seconds: float) -> Iterator[tuple[str, str]]:
    counts = [state["page_counts"] for name in ("boot", "before", "after") if (state := recording.get(name))]
    calls = recording.get("calls", [])
    yield "kernel", f"{recording['kernel']}, {recording['machine']['paging_levels']} levels, {seconds:.0f} s"
    yield "direct map", ", ".join(f"{size.upper()} {' -> '.join(f'{c[size]:,}' for c in counts)}" for size in counts[0])
    ok = sum(call["ret"] in (0, [0, 0, 1], [0, 1, 1], [0, 1, 2]) for call in calls)
    yield "calls", f"{len(calls):,}, of them {ok:,} returned 0"
    executed = Counter((insn["insn"], insn["ret"]) for call in calls for insn in call.get("insns", []))
    yield "executed", ", ".join(f"{n:,} {name} = {ret}" for (name, ret), n in sorted(executed.items())) or "nothing"


@click.group()
def kernel() -> None:
    """A real kernel on top of the model: its own code runs in QEMU, its SNP instructions run in the model."""


@kernel.command(name="record")
@click.option("--kernel", "version", metavar="VERSION|FILE", help=_KERNEL_HELP)
@click.option("--image", metavar="FILE", help="A kernel image (vmlinuz, bzImage).")
@_options(_MACHINE, _CALLS)
@click.option("-o", "--output", "output_path", required=True, metavar="FILE", help="Write the recording there.")
def record_kernel(
    version: str | None,
    image: str | None,
    calls: int,
    seed: int,
    ops_path: str | None,
    module_path: str | None,
    output_path: str,
    **machine: Any,
) -> None:
    """Record a kernel: its direct map at boot, and what it writes, executes and returns when its functions are called.

    --calls 0 records the boot alone.  rmpcore conform holds a recording against the models.
    """
    with _guests(), Output(output_path) as output:
        module = _module(module_path)
        source = _source(calls, seed, ops_path, module)
        started = time.monotonic()
        with Bar(source.count, "calls") as bar:
            made = record(_image(version, image), _layout(**machine), source, module, bar)
        output.fill(lambda file: file.write(recording_text(made)))
        for name, text in _summary(made, time.monotonic() - started):
            click.echo(f"{name:<12}{text}")


@kernel.command()
@_kernels_option
@click.option("--image", "images", metavar="FILE", multiple=True, help="A kernel image (vmlinuz, bzImage).")
@_options(_MACHINE, _CALLS)
@click.option("--keep", metavar="FOLDER", help="Keep the recordings there.")
def check(
    versions: tuple[str, ...],
    images: tuple[str, ...],
    calls: int,
    seed: int,
    ops_path: str | None,
    module_path: str | None,
    keep: str | None,
    **machine: Any,
) -> None:
    """Record kernels and hold both models against each recording.  Exit status 1 if anything differs."""
    passed = True
    with _guests(), ExitStack() as stack:
        module, layout = _module(module_path), _layout(**machine)
        found = [*map(find_image, versions or (() if images else KERNELS)), *map(read_image, images)]
        folder = _folder(keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="rmpcore-")))
        for one in found:
            source = _source(calls, seed, ops_path, module)
            with Bar(source.count, one.release) as bar:
                made = record(one, layout, source, module, bar)
            for result in hold(made, folder / f"{one.release}.json"):
                print_conformance(result)
                passed &= result.passed
    if not passed:
        raise click.exceptions.Exit(1)


@kernel.command()
@_kernels_option
@click.option("--rounds", type=click.IntRange(1), default=24, show_default=True, help="Recordings to make.")
@click.option("--calls", type=click.IntRange(1), default=400, show_default=True, help="Random calls in each.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Other calls for another number.")
@click.option("--from", "first", type=click.IntRange(0), default=0, help="Go on from this round.")
@click.option(
    "-o", "--output", "folder", default=".", show_default=True, metavar="FOLDER", help="Where differences are kept."
)
def fuzz(versions: tuple[str, ...], rounds: int, calls: int, seed: int, first: int, folder: str) -> None:
    """Record random calls on one kernel and machine after the other; keep what a model does otherwise, made small."""
    differing, made, began = 0, 0, time.monotonic()
    with _guests():
        _folder(folder)
        images = [find_image(version) for version in versions or KERNELS]
        for number in range(first, first + rounds):
            try:
                done = run_round(number, images, seed, calls, Path(folder), click.echo)
            except GuestError as e:
                raise GuestError(f"round {number}: {e}", e.console) from None
            made += done.calls
            verdict = "FAIL" if done.kept is not None else "PASS"
            compared = sum(sum(result.compared.values()) for result in done.results)
            head = f"{verdict}  round {number}: {done.image.release} on {done.layout}"
            click.echo(f"{head}: {done.calls:,} calls, {compared:,} values")
            if done.kept is not None:
                differing += 1
                click.echo(f"    kept as {done.kept}; try: rmpcore conform {done.kept}")
                for line in [line for result in done.results for line in result.differences][:5]:
                    click.echo(f"    {line}")
    seconds = time.monotonic() - began
    click.echo(f"{rounds:,} rounds, {made:,} calls, {differing:,} with a difference, {seconds:.0f} s")
    if differing:
        raise click.exceptions.Exit(1)
