"""A kernel's page tables, read out of physical memory: all entries of the direct map and of the high mapping."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rmpcore.maps import DIRECT_MAP_LIMIT, HIGH_BASE
from rmpcore.state import ENTRY_DTYPE, HIGH_WINDOW, entries_to_json

ReadTable = Callable[[int], npt.NDArray[np.uint64]]
"""The 512 entries of the table at a physical address."""
_FRAME = np.uint64(0x000F_FFFF_FFFF_F000)
_SHIFT = {1: 12, 2: 21, 3: 30, 4: 39, 5: 48}
_PRESENT, _PSE = 1 << 0, 1 << 7


class _Window:
    """Entries that map addresses from ``base`` on, ``size`` bytes; tables of levels above ``top`` are not listed."""

    def __init__(self, read: ReadTable, levels: int, number: int, base: int, size: int, top: int) -> None:
        self._read, self._number, self._base, self._size, self._top = read, number, base, size, top
        self.tables: list[npt.NDArray[np.void]] = []
        self.leaves: list[npt.NDArray[np.void]] = []
        self._levels = levels

    def walk(self, root: int) -> None:
        # The kernel's half of the address space ends where 64 bits end.
        self._walk(root, self._levels, (1 << 64) - (512 << _SHIFT[self._levels]))

    def _walk(self, table: int, level: int, start: int) -> None:
        """``start``: the address that the table's first entry maps."""
        raw = self._read(table)
        slot = 1 << _SHIFT[level]
        offsets = [start + index * slot - self._base for index in range(512)]
        inside = np.array([-slot < offset < self._size for offset in offsets]) & (raw != 0)
        points = np.zeros(512, dtype=bool)
        if level > 1:
            points = inside & (raw & np.uint64(_PRESENT) != 0)
            if level <= 3:
                points &= raw & np.uint64(_PSE) == 0
        rows = np.zeros(512, dtype=ENTRY_DTYPE)
        rows["window"], rows["level"], rows["raw"] = self._number, level, raw
        rows["offset"] = np.array([max(offset, 0) for offset in offsets], dtype=np.uint64)
        self.leaves.append(rows[inside & ~points])
        if level <= self._top:
            self.tables.append(rows[points])
        for index in np.flatnonzero(points).tolist():
            self._walk(int(raw[index] & _FRAME), level - 1, start + index * slot)


def _listed(window: _Window) -> tuple[list[list[object]], list[list[object]]]:
    """Tables and leaves as a recording has them: from the top level down for tables, by offset for all."""
    parts = [np.concatenate([np.zeros(0, dtype=ENTRY_DTYPE), *rows]) for rows in (window.tables, window.leaves)]
    return entries_to_json(*(part[np.lexsort((-part["level"].astype(np.int8), part["offset"]))] for part in parts))


def read_mappings(read: ReadTable, root: int, levels: int, page_offset: int) -> dict[str, object]:
    """The direct map and the high mapping as a recording has them: tables, leaves, high_tables, high_leaves."""
    direct = _Window(read, levels, 0, page_offset, DIRECT_MAP_LIMIT[levels], levels)
    high = _Window(read, levels, 1, HIGH_BASE, HIGH_WINDOW, 2)
    direct.walk(root)
    high.walk(root)
    (tables, leaves), (high_tables, high_leaves) = _listed(direct), _listed(high)
    return {"tables": tables, "leaves": leaves, "high_tables": high_tables, "high_leaves": high_leaves}
