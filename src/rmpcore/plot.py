"""A picture of a machine's memory: how the direct map covers it, and who owns it by the RMP.

Physical memory is laid out in rows like a page of text, the direct map on the left and the RMP on the right, cell by
cell at the same place.  A cell shows what most of it is; a dot in it says that smaller pages are among it, so that
one split page of a 6 TiB machine can still be seen.  The colours go from light to dark, and so do without colour.

Needs matplotlib (``pip install 'rmpcore[plots]'``), which is loaded when a picture is drawn and not before.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmpcore.maps import PAGE_SIZE
from rmpcore.pages import Pages, mapped_bytes
from rmpcore.placement import coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
STYLE: dict[Any, Any] = {"svg.hashsalt": "rmpcore", "svg.fonttype": "none"}
"""With this text stays text, and a picture is the same file each time."""
COLUMNS = 64
MAX_ROWS = 128
_SIZES = {3: "1G", 2: "2M", 1: "4K"}
_MAP_COLOURS = {3: "#cfe3f2", 2: "#5f9fce", 1: "#0b2f5c"}
_RMP_COLOURS = ("#f6ead7", "#f2b366", "#c8641b", "#5c1a08")
_RMP_NAMES = ("none assigned", "less than half", "half or more", "all assigned")
_BLANK = "#ffffff"
_HATCH = "#a8a8a8"


class PlotError(ValueError):
    """A picture that cannot be drawn."""


def plot_format(path: str) -> str:
    """The format that a file's name asks for.  Raises :class:`PlotError`."""
    ending = os.path.splitext(path)[1][1:].lower()
    if ending not in FORMATS:
        raise PlotError(f"{path}: the name of a picture ends in {' or '.join('.' + name for name in FORMATS)}")
    return ending


def require_plot(path: str) -> str:
    """:func:`plot_format`; raises :class:`PlotError` also where no picture can be drawn at all."""
    kind = plot_format(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotError("a picture needs matplotlib, which is not installed: pip install 'rmpcore[plots]'") from None
    return kind


def figure_file(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file, without dates and versions."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()


class Grid:
    """Where each part of physical memory is in the picture: rows of 64 cells, from the top down."""

    def __init__(self, top: int) -> None:
        row = COLUMNS * PAGE_SIZE
        while row * MAX_ROWS < top:
            row *= 2
        self.row = row
        """Bytes in a row: a power of two."""
        self.cell = row // COLUMNS
        self.rows = max(1, -(-top // row))

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Physical addresses between cells."""
        return np.arange(self.rows * COLUMNS + 1, dtype=np.float64) * self.cell

    def shape(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One value a cell, as rows."""
        return values.reshape(self.rows, COLUMNS)


def top_of(pages: Pages) -> int:
    """Where physical memory ends: RAM, or a mapping that goes beyond it."""
    base, size = pages.map.memory[-1]
    return max(base + size, pages.state.max_pfn_mapped * PAGE_SIZE)


def map_cells(pages: Pages, grid: Grid) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each cell the page size that most of it is mapped with (3, 2, 1; 0: absent), and the smallest size in it
    if that is another one (else 0)."""
    mapped = mapped_bytes(pages, grid.edges)
    absent = grid.cell - sum(mapped.values(), np.zeros(grid.rows * COLUMNS))
    kinds = np.array([0, 3, 2, 1])
    most = kinds[np.argmax(np.stack([absent, mapped[3], mapped[2], mapped[1]]), axis=0)]
    smallest = np.zeros(len(most), dtype=np.int64)
    for level in (3, 2, 1):
        smallest[mapped[level] > 0] = level
    smallest[smallest == most] = 0
    return grid.shape(most), grid.shape(smallest)


def rmp_cells(pages: Pages, grid: Grid) -> npt.NDArray[np.int64]:
    """For each cell 0: none of its frames are assigned, 1: less than half, 2: half or more, 3: all; -1: the RMP does
    not cover the cell, or what it covers is not memory."""
    cells = grid.rows * COLUMNS
    share = np.full(cells, -1, dtype=np.int64)
    covered = [
        (max(base, first), min(base + size, first + length))
        for first, length in coverage(pages.map)
        for base, size in pages.map.memory
        if base < first + length and first < base + size
    ]
    if not covered:
        return grid.shape(share)
    points = np.array(covered, dtype=np.float64)
    lengths = points[:, 1] - points[:, 0]
    sizes = np.cumsum(lengths)
    below = np.interp(grid.edges, points.ravel(), np.column_stack((sizes - lengths, sizes)).ravel())
    memory = np.diff(below) / PAGE_SIZE
    frames = pages.state.rmp["pfn"][pages.state.rmp["lo"] & np.uint64(1) != 0]
    index = frames // np.uint64(grid.cell // PAGE_SIZE)
    assigned = np.bincount(index[index < cells].astype(np.int64), minlength=cells)
    share[(memory > 0) | (assigned > 0)] = 0
    share[assigned > 0] = 1
    share[(assigned > 0) & (assigned * 2 >= memory)] = 2
    share[(assigned > 0) & (assigned >= memory)] = 3
    return grid.shape(share)


def _amount(size: float) -> str:
    for unit, bytes_ in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= bytes_:
            return f"{size / bytes_:.4g} {unit}"
    return f"{size / 1024:.4g} KiB" if size else "0"


def _ticks(grid: Grid) -> tuple[list[float], list[str]]:
    """Some ten round addresses down the side."""
    step = grid.row
    while grid.rows * grid.row / step > 14:
        step *= 2
    places = [address / grid.row for address in range(0, grid.rows * grid.row + 1, step)]
    unit, name = (1 << 40, "TiB") if grid.rows * grid.row > 2 << 40 else (1 << 30, "GiB")
    if grid.rows * grid.row < 2 << 30:
        unit, name = 1 << 20, "MiB"
    return places, [f"{place * grid.row / unit:.5g} {name}" for place in places]


def _axes(axes: Axes, grid: Grid, title: str) -> None:
    axes.set_facecolor(_BLANK)
    axes.patch.set(hatch="////", edgecolor=_HATCH, linewidth=0)
    axes.set_title(title, loc="left", fontsize=10)
    across = range(0, COLUMNS, COLUMNS // 4)
    axes.set_xticks([column - 0.5 for column in across], [f"+{_amount(column * grid.cell)}" for column in across])
    axes.tick_params(labelsize=8)
    axes.set_xlim(-0.5, COLUMNS - 0.5)
    axes.set_ylim(grid.rows - 0.5, -0.5)


def _image(axes: Axes, cells: npt.NDArray[np.int64], colours: Mapping[int, str]) -> None:
    """Draw each row's runs of equal cells as one rectangle each: a large picture would be a large file otherwise."""
    from matplotlib.collections import LineCollection, PolyCollection

    height, width = cells.shape
    flat = cells.ravel()
    new = np.flatnonzero((flat[1:] != flat[:-1]) | (np.arange(1, len(flat)) % width == 0)) + 1
    first = np.concatenate(([0], new))
    end = np.concatenate((new, [len(flat)]))
    for value, colour in colours.items():
        runs = flat[first] == value
        row, left, right = first[runs] // width - 0.5, first[runs] % width - 0.5, (end[runs] - 1) % width + 0.5
        corners = [(left, row), (right, row), (right, row + 1), (left, row + 1)]
        boxes = np.stack([np.column_stack(corner) for corner in corners], axis=1)
        axes.add_collection(PolyCollection(list(boxes), facecolors=colour, linewidths=0, antialiased=False))
    lines = [[(x - 0.5, -0.5), (x - 0.5, height - 0.5)] for x in range(width)]
    lines += [[(-0.5, y - 0.5), (width - 0.5, y - 0.5)] for y in range(height)]
    axes.add_collection(LineCollection(lines, colors="white", linewidths=0.3))


def plot(pages: Pages, path: str, title: str) -> bytes:
    """The picture as the bytes of a file, SVG or PNG by the path's ending.  Raises :class:`PlotError`."""
    kind = require_plot(path)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grid = Grid(top_of(pages))
    most, smallest = map_cells(pages, grid)
    owners = rmp_cells(pages, grid)
    with matplotlib.rc_context(STYLE | {"hatch.linewidth": 0.5}):
        figure = Figure(figsize=(11, 8.5), dpi=140)
        left, right = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=0.075, right=0.985, top=0.865, bottom=0.15, wspace=0.05)
        figure.suptitle(title, x=0.075, y=0.965, ha="left", fontsize=13)
        figure.text(
            0.075,
            0.915,
            f"Physical memory, to the right and then down: {_amount(grid.row)} a row, {_amount(grid.cell)} a cell",
            fontsize=9,
        )
        sizes = pages.state.counters
        counts = ", ".join(f"{name} {sizes[f'direct_map_{name.lower()}']:,}" for name in _SIZES.values())
        _axes(left, grid, f"Direct map (pages: {counts})")
        _image(left, most, _MAP_COLOURS)
        dot: dict[str, Any] = {
            "markersize": min(6.0, 200 / grid.rows),
            "markeredgecolor": "white",
            "markeredgewidth": 0.4,
        }
        for level in (2, 1):
            rows, columns = np.nonzero(smallest == level)
            left.plot(columns, rows, "s", color=_MAP_COLOURS[level], **dot)
        _axes(right, grid, _rmp_title(pages))
        _image(right, owners, dict(enumerate(_RMP_COLOURS)))
        places, names = _ticks(grid)
        left.set_yticks([place - 0.5 for place in places], names)

        blank = Patch(facecolor=_BLANK, edgecolor="#808080", hatch="//////")
        map_keys: list[Any] = [Patch(color=colour) for colour in _MAP_COLOURS.values()]
        map_keys += [Line2D([], [], marker="s", linestyle="", color=_MAP_COLOURS[1], markersize=4), blank]
        map_names = [f"{name} pages" for name in _SIZES.values()] + ["some smaller pages in it", "absent"]
        _legend(left, map_keys, map_names)
        rmp_keys = [*(Patch(color=colour) for colour in _RMP_COLOURS), blank]
        _legend(right, rmp_keys, [*_RMP_NAMES, "no entry, or no memory"])
        return figure_file(figure, kind)


def _rmp_title(pages: Pages) -> str:
    if pages.map.rmp is None and pages.map.segmented is None:
        return "RMP: none, no SNP"
    assigned = int(np.count_nonzero(pages.state.rmp["lo"] & np.uint64(1)))
    return f"RMP ({assigned:,} frames assigned, {_amount(assigned * PAGE_SIZE)})"


def _legend(axes: Axes, keys: list[Any], names: list[str]) -> None:
    axes.legend(keys, names, loc="upper left", bbox_to_anchor=(-0.01, -0.055), ncols=3, fontsize=8.5, frameon=False)
