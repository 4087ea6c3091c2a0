"""A self-test of a machine's direct map, in the spirit of the kernel's own test of its attribute changes.

Random spots of random length, in three flavours (a range, an array of addresses, an array of pages), get a mark that
means nothing to anybody else; then every page is looked up.  The marks are taken away, and every page is looked up
again.  Before, during and after that the leaves of the direct map have to add up with what is missing, and the
machine's own invariants have to hold.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from rmpcore.machine import MachineLike
from rmpcore.maps import PAGE_SIZE
from rmpcore.ops import LEVEL_NAMES, Flavour, Kind, Op, Result, format_result, make_op, pack_ops
from rmpcore.state import State

MARK = 1 << 9
"""SOFTW1: the kernel's own test marks pages with it too (direct-map §1)."""
SHORT = 100
"""Pages of a short spot at most."""
LONG = 2048
"""Pages of a long one: whole 2 MiB pages are among them."""
SHOWN = 10
_PAGES_OF = {1: 1, 2: 1 << 9, 3: 1 << 18}
_FRAME_MASK = 0x000F_FFFF_FFFF_F000
_PSE, _PAT_LARGE = 1 << 7, 1 << 12


@dataclass(frozen=True)
class Spot:
    """Pages that are marked with one call."""

    flavour: Flavour
    pages: tuple[int, ...]
    """Frames; of a range, in rising order without gaps."""

    def __str__(self) -> str:
        first, last = min(self.pages), max(self.pages)
        return f"{self.flavour.name.lower()} of {len(self.pages)} pages in {first:#x}-{last:#x}"

    def ops(self, name: str) -> list[Op]:
        """The call that sets or clears the mark, after what lists its addresses."""
        if self.flavour == Flavour.RANGE:
            return [make_op(name, pfn=self.pages[0], pages=len(self.pages), mask=MARK)]
        ops = [make_op("cpa_address", pfn=pfn) for pfn in self.pages]
        return [*ops, make_op(name, pfn=0, pages=len(self.pages), mask=MARK, flavour=self.flavour)]


@dataclass(frozen=True)
class Sums:
    """Bytes of the direct map by page size, and bytes below the highest mapped frame where nothing is mapped."""

    sizes: dict[str, int]
    missing: int


@dataclass
class SelfTest:
    """What became of a test of one machine."""

    backend: str
    spots: dict[str, int] = field(default_factory=dict)
    """How many there were, by flavour."""
    pages: int = 0
    kept_large: int = 0
    """Of them pages that were marked inside a large page, because a range covered it whole."""
    sums: dict[str, Sums] = field(default_factory=dict)
    """before, during, after."""
    digests: list[str] = field(default_factory=list)
    """Of the states during and after: both backends have to have the same."""
    failures: list[str] = field(default_factory=list)
    """The first of them in words."""
    failed: int = 0

    @property
    def passed(self) -> bool:
        return not self.failed

    def fail(self, text: str) -> None:
        self.failed += 1
        if len(self.failures) < SHOWN:
            self.failures.append(text)


def _flags(raw: int, level: int, c_bit: int) -> int:
    """An entry's flags in small form (direct-map §1): what they are does not depend on the size of the page."""
    if level > 1 and raw & _PSE:
        mask = _FRAME_MASK & ~(_PAGES_OF[level] * PAGE_SIZE - 1)
        flags = raw & ~(mask & ~c_bit)
        return flags & ~(_PSE | _PAT_LARGE) | (flags & _PAT_LARGE) >> 5
    return raw & ~(_FRAME_MASK & ~c_bit)


def _look_up(machine: MachineLike, pages: tuple[int, ...]) -> list[Result]:
    results = machine.run(pack_ops(make_op("lookup", pfn=pfn) for pfn in pages))
    return [Result(*record) for record in results.tolist()]


def choose_spots(machine: MachineLike, count: int, rng: random.Random) -> list[Spot]:
    """Random spots of pages that are mapped and present; no page is in two of them."""
    memory = machine.map.memory
    weights = [size for _, size in memory]
    used: set[int] = set()
    spots: list[Spot] = []
    for number in range(count * 20):
        if len(spots) == count:
            break
        flavour = Flavour(len(spots) % 3)
        base, size = rng.choices(memory, weights)[0]
        first = base // PAGE_SIZE + rng.randrange(size // PAGE_SIZE)
        length = rng.randint(1, SHORT)
        if flavour == Flavour.RANGE and rng.random() < 0.3:
            length = rng.randint(SHORT, LONG)
            first -= first % _PAGES_OF[2] if number % 2 else 0
        stretch = range(first, min(first + length, (base + size) // PAGE_SIZE))
        pages = tuple(stretch)
        if flavour != Flavour.RANGE:
            pages = tuple(rng.sample(stretch, rng.randint(1, len(stretch))))
        if not used.isdisjoint(pages):
            continue
        if any(not (found.level and found.value & 1) or found.value & MARK for found in _look_up(machine, pages)):
            continue
        used.update(pages)
        spots.append(Spot(flavour, pages))
    return spots


def sums(state: State, limit: int) -> Sums:
    """What the leaves of the direct map cover, size by size, and what they leave out below ``limit``."""
    leaves = state.leaves[state.leaves["window"] == 0]
    start, level = leaves["offset"].astype(np.int64), leaves["level"].astype(np.int64)
    order = np.argsort(start, kind="stable")
    start, level = start[order], level[order]
    size = np.int64(1) << (12 + 9 * (level - 1))
    sizes = {LEVEL_NAMES[number]: int(size[level == number].sum()) for number in (1, 2, 3)}
    # Each gap is measured by itself; where leaves overlapped there would be none, and the sum would be too high.
    gaps = np.concatenate((start, [limit])) - np.concatenate(([0], start + size))
    return Sums(sizes, int(gaps[gaps > 0].sum()))


def _take_stock(result: SelfTest, machine: MachineLike, when: str) -> None:
    state = machine.state()
    limit = state.max_pfn_mapped * PAGE_SIZE
    found = result.sums[when] = sums(state, limit)
    total = sum(found.sizes.values()) + found.missing
    if total != limit:
        result.fail(f"{when}: 4K, 2M and 1G pages and what is missing are {total:#x} bytes, not {limit:#x}")
    if found.missing != result.sums["before"].missing:
        result.fail(f"{when}: {found.missing:#x} bytes are missing, not {result.sums['before'].missing:#x}")
    broken = machine.validate()
    if broken is not None:
        result.fail(f"{when}: {broken}")
    if when != "before":
        result.digests.append(state.digest())


def _change(result: SelfTest, machine: MachineLike, spot: Spot, name: str) -> None:
    for op in spot.ops(name):
        done = machine.apply(op)
        if done.kind != Kind.KERNEL or done.ret != 0:
            result.fail(f"{spot}: {op} {format_result(op, done)}")
            return


def _inside(spot: Spot, pfn: int, level: int) -> bool:
    """Whether the large page around a frame is wholly part of a range."""
    count = _PAGES_OF[level]
    first = pfn - pfn % count
    return spot.flavour == Flavour.RANGE and spot.pages[0] <= first and first + count - 1 <= spot.pages[-1]


def selftest(machine: MachineLike, spots: int, seed: int) -> SelfTest:
    """Mark, check, revert, check.  The same seed gives the same spots on machines that are alike."""
    result = SelfTest(machine.backend)
    c_bit = machine.map.c_bit
    _take_stock(result, machine, "before")
    chosen = choose_spots(machine, spots, random.Random(seed))
    if not chosen:
        result.fail("no memory to test: no spot is mapped and present")
    flags: list[list[int]] = []
    for spot in chosen:
        name = spot.flavour.name.lower()
        result.spots[name] = result.spots.get(name, 0) + 1
        result.pages += len(spot.pages)
        flags.append([_flags(found.value, found.level, c_bit) for found in _look_up(machine, spot.pages)])

    for spot in chosen:
        _change(result, machine, spot, "change_page_attr_set")
    for spot, before in zip(chosen, flags, strict=True):
        for pfn, old, found in zip(spot.pages, before, _look_up(machine, spot.pages), strict=True):
            if found.level > 1:
                result.kept_large += 1
            if not found.level or _flags(found.value, found.level, c_bit) != old | MARK:
                result.fail(f"{spot}: pfn {pfn:#x} does not carry the mark: {found.value:#018x}")
            elif found.level > 1 and not _inside(spot, pfn, found.level):
                result.fail(f"{spot}: pfn {pfn:#x} is still in a {LEVEL_NAMES[found.level]} page")
    _take_stock(result, machine, "during")

    for spot in chosen:
        _change(result, machine, spot, "change_page_attr_clear")
    for spot, before in zip(chosen, flags, strict=True):
        for pfn, old, found in zip(spot.pages, before, _look_up(machine, spot.pages), strict=True):
            if not found.level or _flags(found.value, found.level, c_bit) != old:
                result.fail(f"{spot}: pfn {pfn:#x} is not as it was: {found.value:#018x}")
    _take_stock(result, machine, "after")
    return result


def agreement(results: list[SelfTest]) -> str | None:
    """Whether machines that were tested alike are in the same state; None, or what is not so."""
    if len({tuple(result.digests) for result in results}) > 1:
        return f"{' and '.join(result.backend for result in results)} are not in the same state"
    return None
