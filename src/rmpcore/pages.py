"""A direct map in ranges, in the style of the kernel's page-table dump, and what differs between two of them.

Neighbouring entries of one level with the same attributes make one range.  Where nothing is mapped there is a range
too: a hole, of the level at which the walk ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmpcore.maps import DIRECT_MAP_LIMIT, HIGH_BASE, U64_MAX, MachineMap
from rmpcore.state import COUNTERS, HIGH_WINDOW, State

WINDOWS = ("direct_map", "high_mapping")
_TITLES = {"direct_map": "Direct Map", "high_mapping": "High Kernel Mapping"}
_RANGE_DTYPE = np.dtype(
    [("start", "<u8"), ("end", "<u8"), ("level", "u1"), ("hole", "?"), ("flags", "<u8"), ("moved", "<u8")]
)
"""start, end: offsets in the window.  moved: by how much the frame differs from where the window says it should be."""
_FRAME_MASK = 0x000F_FFFF_FFFF_F000
_P, _RW, _US, _PWT, _PCD, _A, _D, _BIT7, _G = (1 << bit for bit in range(9))
_PAT_LARGE, _NX = 1 << 12, 1 << 63
_SOFTWARE = ((9, "SOFTW1"), (10, "SOFTW2"), (11, "SOFTW3"), (57, "SOFTW4"), (58, "SOFTW5"))
_COLUMNS = ("USR", "RW", "PWT", "PCD", "PSE", "PAT", "GLB", "NX", "A", "D")
_WIDTH = 3 + sum(len(name) + 1 for name in _COLUMNS)
"""Characters of the attributes: "np" or blank, then the columns."""
_UNITS = "KMGTPE"


class PagesError(ValueError):
    """Two direct maps that cannot be compared."""


@dataclass(frozen=True)
class Pages:
    """What of a machine is shown: its map, and its state."""

    map: MachineMap
    state: State

    def size(self, window: int) -> int:
        """Bytes of the address space that a window covers."""
        return HIGH_WINDOW if window else DIRECT_MAP_LIMIT[self.map.levels]

    def base(self, window: int) -> int:
        """The virtual address where a window starts."""
        return HIGH_BASE if window else self.map.page_offset

    def physical(self, window: int) -> int:
        """The physical address that a window's first byte is to map."""
        return self.map.image.phys_base if window and self.map.image is not None else 0

    def windows(self) -> tuple[int, ...]:
        """The direct map, and the high mapping if there is something in it."""
        return (0, 1) if (self.state.leaves["window"] == 1).any() else (0,)


class PageRange(NamedTuple):
    """Neighbouring entries of one level with the same attributes, or a hole."""

    start: int
    """Virtual address."""
    end: int
    """One past the last byte."""
    level: int
    """Of the entries; of a hole, the level at which the walk ends."""
    hole: bool
    flags: int
    physical: int
    """What the first byte maps; 0 for a hole."""
    moved: bool
    """It maps other frames than this window should."""
    c_bit: int
    levels: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def level_name(self) -> str:
        """pte, pmd, pud, p4d, pgd: the kernel's names; the topmost level is pgd."""
        return "pgd" if self.level == self.levels else ("pte", "pmd", "pud", "p4d")[self.level - 1]

    @property
    def present(self) -> bool:
        return bool(self.flags & _P)

    @property
    def attributes(self) -> list[str]:
        """Attributes in words, in the order of the columns; none for a hole."""
        if self.hole:
            return []
        flags, large = self.flags, self.level > 1
        columns = {
            "USR": flags & _US,
            "RW": flags & _RW,
            "ro": not flags & _RW,
            "PWT": flags & _PWT,
            "PCD": flags & _PCD,
            "PSE": large and flags & _BIT7,
            "PAT": flags & _PAT_LARGE if large else flags & _BIT7,
            "GLB": self.present and flags & _G,
            "NX": flags & _NX,
            "x": not flags & _NX,
            "A": flags & _A,
            "D": flags & _D,
        }
        words = [] if self.present else ["np"]
        words += [word for word, value in columns.items() if value]
        if not self.present and flags & _G:
            words.append("PROTNONE")
        words += [name for bit, name in _SOFTWARE if flags >> bit & 1]
        if flags >> 59 & 15:
            words.append(f"PKEY={flags >> 59 & 15}")
        if flags & self.c_bit:
            words.append("C")
        if self.moved:
            words.append(f"maps={self.physical:#x}")
        return words

    def words(self) -> str:
        """Attributes in columns and the level: ``    RW         PSE     GLB NX A D pmd``."""
        attributes = self.attributes
        if self.hole:
            return f"{'':<{_WIDTH}}{self.level_name}"
        shown = {"ro": "RW", "x": "NX"}
        columns = {shown.get(word, word): word for word in attributes}
        text = f"{'np' if 'np' in columns else '':<3}"
        for name in _COLUMNS:
            text += f"{columns.pop(name, ''):<{len(name) + 1}}"
        columns.pop("np", None)
        return f"{text}{' '.join([self.level_name, *columns.values()])}"


def size_text(size: int) -> str:
    """A size in the largest unit that it is whole in: ``612K``, ``2M``, ``1G``."""
    unit = 0
    size >>= 10
    while size % 1024 == 0 and size and unit < len(_UNITS) - 1:
        size, unit = size >> 10, unit + 1
    return f"{size}{_UNITS[unit]}"


def _leaf_ranges(pages: Pages, window: int) -> npt.NDArray[np.void]:
    """The leaves of a window as ranges, neighbours merged (direct-map §1 says what is flag and what is frame)."""
    leaves = pages.state.leaves[pages.state.leaves["window"] == window]
    leaves = leaves[np.argsort(leaves["offset"], kind="stable")]
    raw, level = leaves["raw"], leaves["level"].astype(np.uint64)
    size = np.uint64(1) << (np.uint64(12) + np.uint64(9) * (level - np.uint64(1)))
    mask = np.full(len(raw), _FRAME_MASK, dtype=np.uint64)
    large = (level > 1) & (raw & np.uint64(_BIT7) != 0)
    mask[large] &= ~(size[large] - np.uint64(1))
    flags = raw & ~(mask & np.uint64(U64_MAX & ~pages.map.c_bit))
    frame = np.where(raw & np.uint64(_P) != 0, raw, ~raw) & mask & np.uint64(U64_MAX & ~pages.map.c_bit)
    ranges = np.zeros(len(raw), dtype=_RANGE_DTYPE)
    ranges["start"], ranges["end"], ranges["level"], ranges["flags"] = (
        leaves["offset"],
        leaves["offset"] + size,
        leaves["level"],
        flags,
    )
    ranges["moved"] = frame - (leaves["offset"] + np.uint64(pages.physical(window)))
    ranges["moved"][flags == 0] = 0  # an entry without flags is not inverted: its frame says nothing
    return _merged(ranges)


def _merged(ranges: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Neighbours that are alike, made one."""
    if not len(ranges):
        return ranges
    breaks = ranges["start"][1:] != ranges["end"][:-1]
    for name in ("level", "hole", "flags", "moved"):
        breaks |= ranges[name][1:] != ranges[name][:-1]
    first = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    merged = ranges[first]
    merged["end"] = ranges["end"][np.concatenate((first[1:] - 1, [len(ranges) - 1]))]
    return merged


def _table_starts(pages: Pages, window: int) -> dict[int, list[int]]:
    """Where the slots of table entries start, by level, in rising order.  They may start before the window."""
    tables = pages.state.tables[pages.state.tables["window"] == window]
    return {
        level: np.sort(tables["offset"][tables["level"] == level].astype(np.int64)).tolist()
        for level in range(2, pages.map.levels + 1)
    }


def _hole_pieces(
    start: int, end: int, starts: dict[int, list[int]], top: int
) -> Iterator[tuple[int, int, int, bool, int, int]]:
    """A hole cut into pieces by the level at which the walk ends: one below the deepest table entry over it.

    ``top``: the level of the entries of the table over the whole window."""
    while start < end:
        level, stop = top, end
        for table in range(2, top + 1):
            index = bisect_right(starts[table], start)
            if index and start < (slot_end := starts[table][index - 1] + (1 << 12 + 9 * (table - 1))):
                level, stop = table - 1, min(stop, slot_end)
                break
        # A deeper table may begin further on in the same slot.
        for table in range(2, level + 1):
            index = bisect_right(starts[table], start)
            if index < len(starts[table]):
                stop = min(stop, starts[table][index])
        yield start, stop, level, True, 0, 0
        start = stop


def _ranges(pages: Pages, window: int) -> npt.NDArray[np.void]:
    """All of a window in ranges, holes included, without gaps."""
    leaves = _leaf_ranges(pages, window)
    bounds = np.concatenate(([0], leaves["end"])), np.concatenate((leaves["start"], [pages.size(window)]))
    gaps = np.flatnonzero(bounds[0] < bounds[1])
    starts = _table_starts(pages, window)
    top = 2 if window else pages.map.levels
    holes = [
        piece for gap in gaps.tolist() for piece in _hole_pieces(int(bounds[0][gap]), int(bounds[1][gap]), starts, top)
    ]
    ranges = np.concatenate((leaves, np.array(holes, dtype=_RANGE_DTYPE)))
    return _merged(ranges[np.argsort(ranges["start"], kind="stable")])


def _named(pages: Pages, window: int, rows: npt.NDArray[np.void]) -> Iterator[PageRange]:
    base, physical = pages.base(window), pages.physical(window)
    for start, end, level, hole, flags, moved in rows.tolist():
        first = 0 if hole else (start + physical + moved) & U64_MAX
        yield PageRange(
            base + start, base + end, level, hole, flags, first, moved != 0, pages.map.c_bit, pages.map.levels
        )


def page_ranges(pages: Pages, window: int = 0) -> list[PageRange]:
    """A window in ranges: 0 the direct map, 1 the high mapping of the kernel image."""
    return list(_named(pages, window, _ranges(pages, window)))


def mapped_bytes(pages: Pages, edges: npt.NDArray[np.float64]) -> dict[int, npt.NDArray[np.float64]]:
    """How many bytes between each two physical addresses are mapped (and present) in pages of each level."""
    rows = _leaf_ranges(pages, 0)
    rows = rows[rows["flags"] & np.uint64(_P) != 0]
    mapped = {}
    for level in (1, 2, 3):
        part = rows[rows["level"] == level]
        size = (part["end"] - part["start"]).astype(np.float64)
        below = np.cumsum(size)
        points = np.column_stack((part["start"], part["end"])).astype(np.float64).ravel()
        values = np.column_stack((below - size, below)).ravel()
        mapped[level] = np.diff(np.interp(edges, points, values)) if len(part) else np.zeros(len(edges) - 1)
    return mapped


def _line(start: int, end: int, text: str) -> str:
    return f"{start:#018x}-{end:#018x} {size_text(end - start):>10} {text}".rstrip()


def pages_text(pages: Pages) -> Iterator[str]:
    """The lines of a whole dump."""
    for window in pages.windows():
        yield f"---[ {_TITLES[WINDOWS[window]]} ]---"
        for item in page_ranges(pages, window):
            yield _line(item.start, item.end, item.words())


class Difference(NamedTuple):
    """A range that differs between two sources."""

    start: int
    end: int
    old: PageRange
    """What the first source has there (cut to the range)."""
    new: PageRange


def diff_ranges(old: Pages, new: Pages, window: int = 0) -> list[Difference]:
    """The ranges of a window that differ, by offset: addresses are those of ``old``."""
    if old.map.levels != new.map.levels:
        raise PagesError(f"{old.map.levels} and {new.map.levels} levels of paging cannot be compared")
    sides = [_ranges(pages, window) for pages in (old, new)]
    cuts = np.union1d(sides[0]["start"], sides[1]["start"])
    ends = np.append(cuts[1:], sides[0]["end"][-1])
    parts = []
    for side in sides:
        part = side[np.searchsorted(side["start"], cuts, side="right") - 1].copy()
        part["start"], part["end"] = cuts, ends
        parts.append(part)
    differ = np.zeros(len(cuts), dtype=bool)
    for name in ("level", "hole", "flags", "moved"):
        differ |= parts[0][name] != parts[1][name]
    parts = [part[differ] for part in parts]
    same = parts[0]["end"][:-1] == parts[0]["start"][1:]
    for part in parts:
        for name in ("level", "hole", "flags", "moved"):
            same &= part[name][1:] == part[name][:-1]
    first = np.concatenate(([0], np.flatnonzero(~same) + 1)) if len(parts[0]) else np.zeros(0, dtype=np.int64)
    last = np.concatenate((first[1:] - 1, [len(parts[0]) - 1])) if len(first) else first
    for part in parts:
        part["end"][first] = part["end"][last]
    pair = [_named(pages, window, part[first]) for pages, part in zip((old, new), parts, strict=True)]
    return [Difference(mine.start, mine.end, mine, theirs) for mine, theirs in zip(*pair, strict=True)]


def _high_too(old: Pages, new: Pages) -> tuple[int, ...]:
    return tuple(sorted(set(old.windows()) | set(new.windows())))


def counter_changes(old: State, new: State) -> dict[str, tuple[int, int]]:
    """The counters that differ, each with both values."""
    values = {name: (old.counters[name], new.counters[name]) for name in COUNTERS}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def diff_text(old: Pages, new: Pages) -> Iterator[str]:
    """The lines of a comparison: ranges with old and new side by side, then the counters.  None: all is alike."""
    for window in _high_too(old, new):
        differences = diff_ranges(old, new, window)
        if not differences:
            continue
        yield f"---[ {_TITLES[WINDOWS[window]]} ]---"
        left = [item.old.words() for item in differences]
        width = max(map(len, left))
        for item, words in zip(differences, left, strict=True):
            yield _line(item.start, item.end, f"{words:<{width}} | {item.new.words()}")
    changes = counter_changes(old.state, new.state)
    if changes:
        yield "---[ Counters ]---"
        for name, (before, after) in changes.items():
            yield f"{name:<18} {before:>14} | {after:>14}   {after - before:+d}"


def range_to_json(item: PageRange) -> dict[str, object]:
    """A range as JSON values."""
    value: dict[str, object] = {
        "start": hex(item.start),
        "end": hex(item.end),
        "size": item.size,
        "level": item.level_name,
        "hole": item.hole,
    }
    if not item.hole:
        value |= {"attributes": item.attributes, "flags": hex(item.flags), "physical": hex(item.physical)}
    return value


def pages_to_json(pages: Pages) -> dict[str, object]:
    """A whole dump as JSON values."""
    windows = {WINDOWS[w]: [range_to_json(item) for item in page_ranges(pages, w)] for w in pages.windows()}
    return {**windows, "counters": dict(pages.state.counters)}


def diff_to_json(old: Pages, new: Pages) -> dict[str, object]:
    """A comparison as JSON values."""
    windows = {
        WINDOWS[window]: [
            {"start": hex(d.start), "end": hex(d.end), "old": range_to_json(d.old), "new": range_to_json(d.new)}
            for d in diff_ranges(old, new, window)
        ]
        for window in _high_too(old, new)
    }
    return {**windows, "counters": {name: list(pair) for name, pair in counter_changes(old.state, new.state).items()}}
