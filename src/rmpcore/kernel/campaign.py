"""Random kernels, machines and calls, recorded and held against both models; what differs is made small and kept."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmpcore.conform import Conformance, conform
from rmpcore.fuzzing.shrink import shrink
from rmpcore.kernel.calls import ListedCalls, SafeCalls, Source, Wanted
from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.guest import CPU, Layout
from rmpcore.kernel.image import Image
from rmpcore.kernel.record import record, recording_text
from rmpcore.machine import BACKENDS
from rmpcore.whole_file import WholeFile

LA57 = ",+la57"
LAYOUTS = (
    Layout("1G"),
    Layout("4G"),
    Layout("3333M"),
    Layout("5G", qemu=("-machine", "q35")),
    Layout("2G", "nopat"),
    Layout("4G", "nogbpages"),
    Layout("6G", cpu=CPU + LA57),
    Layout("3G", "memmap=1M$0x30000000 memmap=12K$0x31234000 memmap=5M$0x4fe00000", qemu=("-machine", "q35")),
    Layout("4G", "mem=2500M"),
    Layout("2G", "pti=on"),
    Layout(
        "3G",
        qemu=(
            *("-object", "memory-backend-ram,id=m0,size=1G", "-numa", "node,memdev=m0"),
            *("-object", "memory-backend-ram,id=m1,size=2G", "-numa", "node,memdev=m1"),
        ),
    ),
    Layout("2G", qemu=("-m", "slots=2,maxmem=8G")),
)
"""Machines of a campaign: small and large, odd sizes, holes, five levels, no 1 GiB pages, no PAT, page-table isolation,
less memory than there is, two NUMA nodes, room to plug memory in."""
BOOTS = 30
"""Guests that may be started to make a difference small."""

Report = Callable[[str], object]


@dataclass(frozen=True)
class Round:
    """One recording of a campaign."""

    number: int
    image: Image
    layout: Layout
    seed: int
    calls: int
    results: tuple[Conformance, ...]
    kept: Path | None
    """Where the recording is, made small, if a model differs from it."""


def hold(recording: dict[str, object], path: Path) -> tuple[Conformance, ...]:
    """Write a recording, and hold both models against it."""
    _keep(recording, path)
    return tuple(conform(path, backend) for backend in BACKENDS)


def _differs(results: Sequence[Conformance]) -> bool:
    return not all(result.passed for result in results)


def _shown_at(results: Sequence[Conformance]) -> int | None:
    """The first call at which a difference shows before the end."""
    found = [re.match(r".*?calls\[(\d+)\]", line) for result in results for line in result.differences[:1]]
    return min((int(match[1]) for match in found if match is not None), default=None)


class _Small:
    """Fewer and fewer calls that still show a difference; each try is a guest of its own."""

    def __init__(self, image: Image, layout: Layout, frames: list[tuple[int, int]], folder: Path) -> None:
        self._image, self._layout, self._frames = image, layout, frames
        self._path = folder / "try.json"
        self._left = BOOTS
        self.recording: dict[str, object] | None = None

    def _still(self, wanted: list[Wanted]) -> bool:
        if not self._left:
            return False
        self._left -= 1
        source: Source = ListedCalls(wanted, self._frames)
        try:
            recording = record(self._image, self._layout, source)
            differs = _differs(hold(recording, self._path))
        except KernelError:
            return False  # what is left out was needed for the rest
        if differs:
            self.recording = recording
        return differs

    def shrink(self, wanted: list[Wanted], shown_at: int | None) -> None:
        if shown_at is not None and self._still(wanted[: shown_at + 1]):
            wanted = wanted[: shown_at + 1]
        shrink(wanted, self._still)


def run_round(number: int, images: Sequence[Image], seed: int, calls: int, folder: Path, report: Report) -> Round:
    """One round: kernel and layout in turn, calls by seed.  A difference is made small and kept in ``folder``."""
    image = images[number % len(images)]
    layout = LAYOUTS[number // len(images) % len(LAYOUTS)]
    own = random.Random(f"{seed} {number}").getrandbits(32)
    source = SafeCalls(calls, own)
    with tempfile.TemporaryDirectory(prefix="rmpcore-") as scratch:
        recording = record(image, layout, source)
        results = hold(recording, Path(scratch) / "recording.json")
        kept = None
        if _differs(results):
            kept = folder / f"difference-{seed}-{number}-{image.release}.json"
            _keep(recording, kept)
            report(f"round {number}: a difference; making it small, which takes up to {BOOTS} guests")
            small = _Small(image, layout, source.frames, Path(scratch))
            small.shrink(source.made, _shown_at(results))
            if small.recording is not None:
                _keep(small.recording, kept)
    return Round(number, image, layout, own, len(source.made), results, kept)


def _keep(recording: dict[str, object], path: Path) -> None:
    os.makedirs(path.parent, exist_ok=True)
    with WholeFile(path) as whole:
        whole.file.write(recording_text(recording).encode())
