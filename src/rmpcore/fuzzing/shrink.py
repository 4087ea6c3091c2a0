"""Delta debugging: fewer items that still show what many have shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrink(items: Sequence[T], still: Callable[[list[T]], bool]) -> list[T]:
    """Leave out as many items as can be left out, larger parts first, until no single one can be.

    ``still`` says whether fewer items still show it; it is never asked about none at all.  One that has had enough
    says no to everything, and what is left then is returned."""
    kept, parts = list(items), 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        at = 0
        before = len(kept)
        while at < len(kept):
            rest = kept[:at] + kept[at + size :]
            if rest and still(rest):
                kept = rest
            else:
                at += size
        if size > 1:
            parts = max(2, min(2 * parts, len(kept)))
        elif len(kept) == before:
            break
    return kept


def shortest(length: int, still: Callable[[int], bool]) -> int:
    """The least number of first items that show it, found by halving; all ``length`` of them do."""
    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        if still(middle):
            high = middle
        else:
            low = middle + 1
    return high
