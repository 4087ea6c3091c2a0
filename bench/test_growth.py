"""growth.py itself: what it makes of values that grow in a known way, and one point of each series."""

from __future__ import annotations

import growth
import numpy as np
import pytest

SIZES = growth.steps(1000, 1_000_000, 7)


def series(work: int = 1) -> growth.Series:
    return growth.Series("made up", "things", SIZES, lambda size: dict, usual=work)


@pytest.mark.parametrize(
    ("power", "log", "work", "verdict"),
    [
        (0, 0, 0, "constant"),
        (1, 0, 1, "linear"),
        (2, 0, 1, "faster than the work"),
        (1.5, 0, 1, "faster than the work"),
        (0.5, 0, 1, "less than linear"),
        (0, 0, 1, "constant"),
        (1, 3, 1, "n log n"),
        (1, 0, 0, "faster than the work"),
    ],
)
def test_verdict(power: float, log: int, work: int, verdict: str) -> None:
    """Only the upper half of the sizes counts: below it all is the same here."""
    n = np.array(SIZES, float)
    values = n**power * np.log(n) ** log
    values[: len(n) // 2] = 1.0
    found = growth.fit(SIZES, values.tolist(), work)
    assert found.verdict == verdict
    assert found.faster == (verdict == "faster than the work")
    if not log:
        assert found.exponent == pytest.approx(power, abs=1e-9)


def test_picture_is_the_same_each_time() -> None:
    points = [{"run": size * 1e-6, "memory": size * 100.0} for size in SIZES]
    measured = [growth.Measured(series(), points)]
    first = growth.picture(measured, "growth.svg")
    assert first == growth.picture(measured, "growth.svg")
    assert b"made up: time" in first and b"made up: memory" in first and b"<dc:date>" not in first


@pytest.mark.parametrize("name", [series.name for series in growth.SERIES])
def test_one_point(name: str) -> None:
    """Every op succeeds, and all that is measured is more than nothing; a series checks its own results."""
    chosen = next(series for series in growth.SERIES if series.name == name)
    figures = growth.measure(chosen, chosen.sizes[0], 0)
    assert figures and all(value > 0 for curve, value in figures.items() if not growth.is_memory(curve))
