"""A picture of a comparison: a column for each policy, and how splits, reach and faults grow over its runs.

Lines are the medians of the seeds, with a grey band from the least to the most.  Black, white and grey only.

Needs matplotlib (``pip install 'rmpcore[plots]'``), which is loaded when a picture is drawn and not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmpcore.compare import SAMPLES, Measurement
from rmpcore.plot import STYLE, figure_file, require_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SOLID: Any = "-"
_DASHED: Any = (0, (3, 1.5))
_BAND = "0.78"
_ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Splits so far\n[leaves split]", "symlog", {"splits": _SOLID}),
    ("Reach [TLB entries],\nmissing [4 KiB frames]", "log", {"reach": _SOLID, "missing": _DASHED}),
    ("Faults so far\n[accesses]", "symlog", {"faults_neighbour": _SOLID, "faults_owner": _DASHED}),
)
"""Label of the y axis, its scale, and what is drawn: fields of a sample."""
_PROGRESS = np.arange(SAMPLES + 1) / SAMPLES


def curves(runs: Sequence[Measurement], name: str) -> npt.NDArray[np.float64]:
    """A field of the samples, one row a run, at the same places of progress."""
    rows = []
    for run in runs:
        places = [sample.progress for sample in run.series]
        rows.append(np.interp(_PROGRESS, places, [getattr(sample, name) for sample in run.series]))
    return np.array(rows)


def _panel(axes: Axes, runs: Sequence[Measurement], lines: dict[str, Any]) -> None:
    for name, style in lines.items():
        values = curves(runs, name)
        axes.fill_between(_PROGRESS * 100, values.min(axis=0), values.max(axis=0), color=_BAND, linewidth=0)
        axes.plot(_PROGRESS * 100, np.median(values, axis=0), linewidth=1.2, color="black", linestyle=style)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)


def plot_comparison(measurements: Sequence[Measurement], path: str, title: str, head: Sequence[str]) -> bytes:
    """The picture as the bytes of a file, SVG or PNG by the path's ending.  Raises :class:`~rmpcore.plot.PlotError`."""
    kind = require_plot(path)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    policies = list(dict.fromkeys(run.policy for run in measurements))
    with matplotlib.rc_context(STYLE | {"font.size": 8}):
        width, height = max(8.5, 1.5 + 1.3 * len(policies)), 8.0
        figure = Figure(figsize=(width, height), dpi=140)
        figure.subplots_adjust(
            left=0.85 / width,
            right=1 - 0.15 / width,
            top=1 - 1.75 / height,
            bottom=0.55 / height,
            wspace=0.08,
            hspace=0.1,
        )
        figure.text(0.15 / width, 1 - 0.15 / height, title, va="top", fontsize=13)
        figure.text(0.15 / width, 1 - 0.5 / height, "\n".join(head), va="top", family="monospace", fontsize=7.5)
        grid = figure.subplots(len(_ROWS), len(policies), sharex=True, sharey="row", squeeze=False)
        for panels, (label, scale, lines) in zip(grid, _ROWS, strict=True):
            for axes, policy in zip(panels, policies, strict=True):
                _panel(axes, [run for run in measurements if run.policy == policy], lines)
            panels[0].set_ylabel(label)
            panels[0].set_yscale(scale)
            if scale == "symlog":
                panels[0].set_ylim(bottom=0)
        for axes, policy in zip(grid[0], policies, strict=True):
            axes.set_title(policy, fontsize=9)
        for axes in grid[-1]:
            axes.set_xlim(0, 100)
            axes.set_xticks([0, 50, 100])
            for text, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
                text.set_horizontalalignment(side)
        figure.supxlabel("Progress of the run [%]", y=0.12 / height, fontsize=8)
        keys: list[Any] = [Line2D([], [], color="black", linestyle=style) for style in (_SOLID, _DASHED)]
        names = ["splits; reach; neighbours' faults", "missing; owners' faults", "least to most of the seeds"]
        figure.legend([*keys, Patch(color=_BAND)], names, loc="upper right", frameon=False)
        return figure_file(figure, kind)
