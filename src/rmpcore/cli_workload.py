"""``rmpcore workload``, and the options that choose a workload."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TextIO, TypeVar

import click
import numpy as np

from rmpcore.cli_common import BadInputError, Bar, Output, bad_input, place_on
from rmpcore.inputs import load_map
from rmpcore.maps import MachineMap
from rmpcore.ops import OPS, format_op, unpack_ops
from rmpcore.placement import ASSUMPTION
from rmpcore.workload import PRESETS, Step, Workload, resized, steps

_Command = TypeVar("_Command", bound=Callable[..., Any])

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_BAR = 10_000
"""Parts of a workload that a progress bar counts."""


def _size(text: str) -> int:
    """Bytes, as 512M, 4G or 1T."""
    found = re.fullmatch(r"([0-9]{1,12})([KMGT]?)(iB|B)?", text, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text} is not a size, as 512M or 4G")
    return int(found[1]) << _UNITS[found[2].upper()]


_OPTIONS = (
    click.option("--guests", type=click.IntRange(1), metavar="N", help="Guests in all."),
    click.option("--together", type=click.IntRange(1), metavar="N", help="Guests at once, at most."),
    click.option("--memory", type=_size, metavar="SIZE", help="Memory of each guest, as 512M or 32G."),
    click.option("--vcpus", type=click.IntRange(1), metavar="N", help="vCPUs of each guest."),
    click.option("--backing", type=click.Choice(["4K", "2M"]), help="What guest memory is made of."),
    click.option("--scatter/--no-scatter", default=None, help="Guest memory in 2 MiB blocks from random places."),
    click.option("--touched", type=click.FloatRange(0, 1), metavar="PART", help="Memory that a guest accepts, 0 to 1."),
    click.option("--exits", type=click.IntRange(0), metavar="N", help="VM exits of each guest."),
    click.option("--changes", type=click.IntRange(0), metavar="N", help="2 MiB made shared and private again."),
    click.option("--commands", type=click.IntRange(0), metavar="N", help="Firmware commands for each guest."),
    click.option("--strays", type=click.IntRange(0), metavar="N", help="Writes of KVM to a private page of a guest."),
    click.option("--host", type=_size, metavar="SIZE", help="The kernel's own memory."),
    click.option(
        "--pressure", type=click.FloatRange(0, 1), metavar="PART", help="Memory that is fragmented before, 0 to 1."
    ),
)


def workload_options(command: _Command) -> _Command:
    """Options that change a preset, for :func:`chosen`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(preset: str, **options: Any) -> Workload:
    """A preset with what the options change; ``None`` changes nothing.

    Guests that are all together in the preset stay so when there are more of them."""
    workload = PRESETS[preset]
    changes = {name: value for name, value in options.items() if value is not None}
    guests = changes.get("guests", workload.guests)
    if "together" not in changes:
        changes["together"] = guests if workload.together == workload.guests else min(workload.together, guests)
    return resized(workload, **changes)


def map_with_rmp(path: str) -> MachineMap:
    """A map; one that has no RMP gets one where ``rmpcore place`` puts it, which is said on stderr."""
    machine_map = load_map(path)
    if machine_map.rmp is None and machine_map.segmented is None:
        machine_map = place_on(path, machine_map)
        click.echo(f"rmpcore: {path}: has no RMP, so one is placed.  {ASSUMPTION}", err=True)
    return machine_map


def _watched(found: Iterator[Step], what: str) -> Iterator[Step]:
    with Bar(_BAR, what) as bar:
        for step in found:
            yield step
            bar(int(step.progress * _BAR))


def _write(file: TextIO, found: Iterator[Step]) -> None:
    for step in found:
        for op in unpack_ops(step.ops):
            file.write(format_op(op) + "\n")


@click.command()
@click.argument("preset", type=click.Choice(list(PRESETS)), default="one-guest")
@click.option("--map", "map_path", metavar="MAP", required=True, help="Map: JSON, kernel log, /proc/iomem, recording.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Other ops for another number.")
@click.option("-o", "--output", "output_path", metavar="FILE", help="Write the trace there, not to stdout.")
@click.option("--count", "only_count", is_flag=True, help="Print how many ops of each name there are instead.")
@workload_options
def workload(preset: str, map_path: str, seed: int, output_path: str | None, only_count: bool, **options: Any) -> None:
    """Write the ops of a host's workload on MAP as a trace, which rmpcore run takes.

    PRESET is one-guest, churn, dense-host or firmware-storm; the options change its numbers.
    """
    if only_count and output_path is not None:
        raise BadInputError("either --count or --output, not both")
    with ExitStack() as stack:
        stack.enter_context(bad_input())
        what = chosen(preset, **options)
        found = _watched(steps(what, map_with_rmp(map_path), seed), what.name)
        if only_count:
            counts: Counter[int] = Counter()
            for step in found:
                codes, numbers = np.unique(step.ops["op"], return_counts=True)
                counts.update(dict(zip(codes.tolist(), numbers.tolist(), strict=True)))
            for name, number in [*((spec.name, counts[spec.code]) for spec in OPS), ("ops in all", counts.total())]:
                if number:
                    click.echo(f"{number:>15,}  {name}")
        elif output_path is not None:
            output = stack.enter_context(Output(output_path))
            output.fill(lambda file: _write(file, found))
        else:
            _write(sys.stdout, found)
