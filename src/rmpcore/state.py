"""A machine's state in one canonical form: snapshot, digest, and a diff that names what differs.

Both machines produce a :class:`State`; nothing in here knows how either keeps its bytes.  The state is
everything that an op can change: every page-table entry that is not zero, every RMP entry that is not
zero, the kernel's counters and lists, and what is left of injected codes and allocation failures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rmpcore.decode import describe_pte, describe_rmp_entry
from rmpcore.ops import LEVEL_NAMES

ENTRY_DTYPE = np.dtype([("window", "u1"), ("level", "u1"), ("offset", "<u8"), ("raw", "<u8")])
"""A page-table entry.  window: 0 the direct map (offset = virtual - PAGE_OFFSET), 1 the high kernel
mapping (offset = virtual - 0xffffffff80000000; entries of levels 2 and 1 only).  offset: of the first
byte that the entry maps.  Sorted by window, then level from the top down, then offset."""
RMP_DTYPE = np.dtype([("pfn", "<u8"), ("lo", "<u8"), ("hi", "<u8")])
"""A non-zero raw RMP entry, sorted by PFN."""

COUNTERS = (
    "direct_map_4k",
    "direct_map_2m",
    "direct_map_1g",
    "level2_splits",
    "level3_splits",
    "flush_all",
    "flush_pages",
    "table_pages",
    "rmpupdate",
    "psmash",
    "rmpread",
    "rmpupdate_retries",
    "leaked_pages",
)
"""direct_map_*: the kernel's own count of leaves by size (double counting included); level*_splits:
/proc/vmstat direct_map_level*_splits; flush_all: full flushes; flush_pages: pages flushed one by one;
table_pages: page-table pages in use, root included; rmpupdate, psmash, rmpread: instructions executed
(faulting ones not counted); rmpupdate_retries: RMPUPDATEs that rmpupdate() repeated; leaked_pages: snp_leak_pages."""

_WINDOW_NAMES = ("direct map", "high mapping")


def entries(rows: list[tuple[int, int, int, int]]) -> npt.NDArray[np.void]:
    """Rows (window, level, offset, raw) as a sorted :data:`ENTRY_DTYPE` array."""
    rows = sorted(rows, key=lambda row: (row[0], -row[1], row[2]))
    return np.array(rows, dtype=ENTRY_DTYPE)


@dataclass(eq=False)
class State:
    """All that an op can change, in canonical form."""

    root: int
    """Physical address of the top-level table."""
    tables: npt.NDArray[np.void]
    """Entries that point to a table."""
    leaves: npt.NDArray[np.void]
    """All other non-zero entries."""
    rmp: npt.NDArray[np.void]
    counters: dict[str, int]
    mapped: tuple[tuple[int, int], ...]
    """Mapped frame ranges, half open, sorted and merged (the kernel's pfn_mapped)."""
    max_pfn_mapped: int
    kernel_readonly: bool
    """The kernel image is already read-only (kernel_set_to_readonly)."""
    inject: tuple[tuple[int, int], ...] = ()
    """Codes still to be injected, as (code, count) in order."""
    fail_alloc: tuple[int, int] = (0, 0)
    """Allocations of table pages that still succeed, and how many fail after them."""
    _digest: str | None = field(default=None, init=False, repr=False)

    def digest(self) -> str:
        """SHA-256 over the whole state, in hex."""
        if self._digest is None:
            h = hashlib.sha256()
            h.update(b"rmpcore-state-1\0")
            for name, array in (("tables", self.tables), ("leaves", self.leaves), ("rmp", self.rmp)):
                h.update(f"{name} {len(array)}\n".encode())
                h.update(np.ascontiguousarray(array).tobytes())
            rest = [f"root {self.root:#x}", f"max_pfn_mapped {self.max_pfn_mapped}"]
            rest += [f"{name} {self.counters[name]}" for name in COUNTERS]
            rest += [f"mapped {start} {end}" for start, end in self.mapped]
            rest += [f"inject {code} {count}" for code, count in self.inject]
            rest += [f"fail_alloc {self.fail_alloc[0]} {self.fail_alloc[1]}"]
            rest += [f"kernel_readonly {int(self.kernel_readonly)}"]
            h.update("\n".join(rest).encode())
            self._digest = h.hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]


def _keyed(array: npt.NDArray[np.void], keys: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {row[:keys]: row[keys:] for row in array.tolist()}


def diff_entries(
    mine: npt.NDArray[np.void], theirs: npt.NDArray[np.void], a: str, b: str, mask: int = (1 << 64) - 1
) -> Iterator[str]:
    """Lines that name each page-table entry that differs.

    ``mask`` limits what of the raw values is compared (table pointers of a recording: flags only)."""
    left, right = _keyed(mine, 3), _keyed(theirs, 3)
    for key in sorted(left.keys() | right.keys(), key=lambda k: (k[0], k[2], -k[1])):
        x, y = left.get(key, (0,))[0], right.get(key, (0,))[0]
        if (x ^ y) & mask == 0 and (key in left) == (key in right):
            continue
        window, level, offset = key
        where = f"{_WINDOW_NAMES[window]} +{offset:#x} level {LEVEL_NAMES.get(level, level)}"
        if window == 0:
            where += f" (pfn {offset >> 12:#x})"
        yield f"{where}: {a} {x:#018x} [{describe_pte(x, level)}], {b} {y:#018x} [{describe_pte(y, level)}]"


def diff_states(mine: State, theirs: State, a: str = "native", b: str = "oracle") -> Iterator[str]:
    """Lines that say where two states differ: entry by entry, counter by counter.  None: they are equal."""
    if mine.root != theirs.root:
        yield f"root table: {a} {mine.root:#x}, {b} {theirs.root:#x}"
    yield from diff_entries(mine.tables, theirs.tables, a, b)
    yield from diff_entries(mine.leaves, theirs.leaves, a, b)
    left, right = _keyed(mine.rmp, 1), _keyed(theirs.rmp, 1)
    for key in sorted(left.keys() | right.keys()):
        x, y = left.get(key, (0, 0)), right.get(key, (0, 0))
        if x != y:
            yield (
                f"RMP pfn {key[0]:#x}: {a} [{x[0]:#018x} - {x[1]:#018x}] {describe_rmp_entry(*x)}, "
                f"{b} [{y[0]:#018x} - {y[1]:#018x}] {describe_rmp_entry(*y)}"
            )
    for name in COUNTERS:
        if mine.counters[name] != theirs.counters[name]:
            yield f"counter {name}: {a} {mine.counters[name]}, {b} {theirs.counters[name]}"
    for name in ("mapped", "max_pfn_mapped", "kernel_readonly", "inject", "fail_alloc"):
        x, y = getattr(mine, name), getattr(theirs, name)
        if x != y:
            yield f"{name}: {a} {x}, {b} {y}"


def _runs(keys: npt.NDArray[np.bool_], rise: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
    """Cut an array into runs (first index, count, step).

    ``keys[i]``: element i + 1 may follow element i in a run; ``rise[i]``: by how much its value is higher."""
    change = np.flatnonzero((keys[1:] != keys[:-1]) | (rise[1:] != rise[:-1])) + 1
    bounds = np.concatenate(([0], change, [len(keys)]))
    i, total = 0, len(keys) + 1
    while i < total:
        if i == total - 1 or not keys[i]:
            yield i, 1, 0
            i += 1
            continue
        end = int(bounds[np.searchsorted(bounds, i, side="right")])
        step = int(rise[i])
        yield i, end - i + 1, step - (1 << 64) if step >> 63 else step
        i = end + 1


def _entry_runs(entries: npt.NDArray[np.void]) -> list[list[object]]:
    """Entries as [level, first offset, count, first raw value, step], as in the recordings of kernels."""
    if not len(entries):
        return []
    slot = np.uint64(1) << (np.uint64(12) + np.uint64(9) * (entries["level"][1:].astype(np.uint64) - np.uint64(1)))
    rise = entries["raw"][1:] - entries["raw"][:-1]
    follows = entries["level"][1:] == entries["level"][:-1]
    follows &= entries["offset"][1:] - entries["offset"][:-1] == slot
    follows &= (rise == slot) | (rise == 0) | (rise + slot == 0)
    rows: list[list[object]] = []
    for first, count, step in _runs(follows, rise):
        _, level, offset, raw = entries[first].item()
        rows.append([level, hex(offset), count, hex(raw), step])
    return rows


def _rmp_runs(rmp: npt.NDArray[np.void]) -> list[list[object]]:
    """RMP entries as [first pfn, count, first low quadword, step, high quadword]."""
    if not len(rmp):
        return []
    rise = rmp["lo"][1:] - rmp["lo"][:-1]
    follows = rmp["pfn"][1:] - rmp["pfn"][:-1] == 1
    follows &= rmp["hi"][1:] == rmp["hi"][:-1]
    follows &= (rise == 0x1000) | (rise == 0)
    rows: list[list[object]] = []
    for first, count, step in _runs(follows, rise):
        pfn, lo, hi = rmp[first].item()
        rows.append([hex(pfn), count, hex(lo), step, hex(hi)])
    return rows


def state_to_json(state: State) -> dict[str, object]:
    """A state as JSON values, nothing left out: a recorded state of a kernel, with what else a machine has.

    Entries are written in runs; offsets are from PAGE_OFFSET, of the high mapping from 0xffffffff80000000."""
    windows = [[array[array["window"] == window] for window in (0, 1)] for array in (state.tables, state.leaves)]
    tables = [[[row[1], hex(row[2]), hex(row[3])] for row in part.tolist()] for part in windows[0]]
    leaves = [_entry_runs(part) for part in windows[1]]
    return {
        "root": hex(state.root),
        "pfn_mapped": [list(pair) for pair in state.mapped],
        "max_pfn_mapped": state.max_pfn_mapped,
        "kernel_set_to_readonly": int(state.kernel_readonly),
        "counters": {name: state.counters[name] for name in COUNTERS},
        "tables": tables[0],
        "leaves": leaves[0],
        "high_tables": tables[1],
        "high_leaves": leaves[1],
        "rmp": _rmp_runs(state.rmp),
        "inject": [list(pair) for pair in state.inject],
        "fail_alloc": list(state.fail_alloc),
    }
