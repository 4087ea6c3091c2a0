"""A machine's state in one canonical form: snapshot, digest, and a diff that names what differs.

Both machines produce a :class:`State`; nothing in here knows how either keeps its bytes.  The state is
everything that an op can change: every page-table entry that is not zero, every RMP entry that is not
zero, the kernel's counters and lists, and what is left of injected codes and allocation failures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpcore.decode import describe_pte, describe_rmp_entry
from rmpcore.inputs import Node
from rmpcore.maps import DIRECT_MAP_LIMIT, PAGE_SIZE, PHYSICAL_LIMIT, U64_MAX
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
    "level2_collapses",
    "level3_collapses",
    "flush_all",
    "flush_pages",
    "flush_cache",
    "flush_cache_all",
    "table_pages",
    "rmpupdate",
    "psmash",
    "rmpread",
    "pvalidate",
    "rmpadjust",
    "rmpquery",
    "rmpupdate_retries",
    "leaked_pages",
    "host_accesses",
    "host_faults_owner",
    "host_faults_neighbour",
    "fault_repairs",
    "forced_shared",
    "kmap_windows",
)
"""direct_map_*: the kernel's own count of leaves by size (double counting included); level*_splits:
/proc/vmstat direct_map_level*_splits; flush_all: full flushes; flush_pages: pages flushed one by one;
table_pages: page-table pages in use, root included; rmpupdate to rmpquery: instructions executed
(faulting ones not counted); rmpupdate_retries: RMPUPDATEs that rmpupdate() repeated; leaked_pages: snp_leak_pages;
the last six: the host's own accesses, their faults by victim, and what a policy does about them (docs/host.md,
section 6.5)."""

HIGH_WINDOW = 1 << 30
"""Bytes of the high mapping's window."""

_WINDOW_NAMES = ("direct map", "high mapping")
_SLOT_SHIFT = {1: 12, 2: 21, 3: 30, 4: 39, 5: 48}
_FRAMES = PHYSICAL_LIMIT // PAGE_SIZE
_MAX_RMP_ENTRIES = 1 << 26
"""RMP entries in a saved state: 1.5 GiB of them, so that a short file cannot ask for more memory than there is."""
_MAX_INJECT_RUNS = 64
_MAX_ADDRESSES = 1024
_SNP_LISTS = {"in_use": (3, 64), "contexts": (2, 1024), "records": (5, 1024), "bookkeeping": (2, 1024)}
"""Lists of numbers that the RMP and its firmware keep: numbers in a row, rows at most."""


class StateError(ValueError):
    """A saved state that cannot be read."""


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
    addresses: tuple[tuple[int, int], ...] = ()
    """What cpa_address has listed, as (frame, 1 for high) in order."""
    fail_alloc: tuple[int, int] = (0, 0)
    """Allocations of table pages that still succeed, and how many fail after them."""
    in_use: tuple[tuple[int, int, int], ...] = ()
    """Frames that a VMRUN has in use, as (VMCB, VMSA, AVIC page) in order; 0: none."""
    firmware_ready: bool = False
    """The firmware is initialised (SNP_INIT)."""
    contexts: tuple[tuple[int, int], ...] = ()
    """Guest contexts as (frame of the context page, ASID or 0), by frame."""
    records: tuple[tuple[int, int, int, int, int], ...] = ()
    """Metadata records of pages that are swapped out, as (address, frame of the context page, info, gpa, high
    quadword), by address.  info: bit 0 validated, 1 vmsa, 2 size 2M, 3 a metadata page."""
    bookkeeping: tuple[tuple[int, int], ...] = ()
    """The table's counters of pages by ASID that are not zero, as (ASID, count), by ASID."""
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
            rest += [f"address {pfn} {high}" for pfn, high in self.addresses]
            rest += [f"fail_alloc {self.fail_alloc[0]} {self.fail_alloc[1]}"]
            rest += [f"kernel_readonly {int(self.kernel_readonly)}"]
            for name in _SNP_LISTS:
                rest += [" ".join([name, *map(str, row)]) for row in getattr(self, name)]
            rest += [f"firmware_ready {int(self.firmware_ready)}"]
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
    for name in (
        *("mapped", "max_pfn_mapped", "kernel_readonly", "inject", "addresses", "fail_alloc", "firmware_ready"),
        *_SNP_LISTS,
    ):
        x, y = getattr(mine, name), getattr(theirs, name)
        if x != y:
            yield f"{name}: {a} {x}, {b} {y}"


_STATE_KEYS = {
    "root",
    "pfn_mapped",
    "max_pfn_mapped",
    "kernel_set_to_readonly",
    "counters",
    "tables",
    "leaves",
    "high_tables",
    "high_leaves",
    "rmp",
    "inject",
    "addresses",
    "fail_alloc",
    "firmware_ready",
    *_SNP_LISTS,
}


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


def entries_to_json(
    tables: npt.NDArray[np.void], leaves: npt.NDArray[np.void]
) -> tuple[list[list[object]], list[list[object]]]:
    """Table entries and leaves of one window as a recording has them, in the order in which they are given."""
    return [[row[1], hex(row[2]), hex(row[3])] for row in tables.tolist()], _entry_runs(leaves)


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
    (tables, leaves), (high_tables, high_leaves) = (
        entries_to_json(*(array[array["window"] == window] for array in (state.tables, state.leaves)))
        for window in (0, 1)
    )
    return {
        "root": hex(state.root),
        "pfn_mapped": [list(pair) for pair in state.mapped],
        "max_pfn_mapped": state.max_pfn_mapped,
        "kernel_set_to_readonly": int(state.kernel_readonly),
        "counters": {name: state.counters[name] for name in COUNTERS},
        "tables": tables,
        "leaves": leaves,
        "high_tables": high_tables,
        "high_leaves": high_leaves,
        "rmp": _rmp_runs(state.rmp),
        "inject": [list(pair) for pair in state.inject],
        "addresses": [[hex(pfn), high] for pfn, high in state.addresses],
        "fail_alloc": list(state.fail_alloc),
        "firmware_ready": int(state.firmware_ready),
        **{name: [[hex(number) for number in row] for row in getattr(state, name)] for name in _SNP_LISTS},
    }


def read_tables(node: Node, window: int, top: int, size: int) -> list[tuple[int, int, int, int]]:
    """Table entries as [level, offset, raw], of levels 2 to ``top``, with offsets below ``size``."""
    rows = []
    for item in node.items():
        level, offset, raw = item.items(3)
        number = level.integer(2, top)
        position = offset.integer(0, size - 1)
        # PAGE_OFFSET is a multiple of 1 GiB only, so a larger slot may begin anywhere on such a line.
        if position % (1 << min(_SLOT_SHIFT[number], 30)):
            offset.fail(f"{position:#x} is not the start of a level-{number} entry")
        rows.append((window, number, position, raw.integer(1)))
    return rows


def read_leaves(node: Node, window: int, top: int, size: int, room: dict[int, int]) -> list[npt.NDArray[np.void]]:
    """Runs of leaves as [level, offset, count, raw, step], entry by entry.

    ``room``: entries that the tables of each level have; a short file can not ask for more memory than those."""
    parts = []
    for item in node.items():
        level, offset, count, raw, step = item.items(5)
        number = level.integer(1, top)
        slot = 1 << _SLOT_SHIFT[number]
        start = offset.integer(0, size - 1)
        if start % slot:
            offset.fail(f"{start:#x} is not the start of a level-{number} entry")
        many = count.integer(1, (size - start) // slot)
        room[number] = room.get(number, 0) - many
        if room[number] < 0:
            count.fail(f"more level-{number} entries than the tables have room for")
        run = np.zeros(many, dtype=ENTRY_DTYPE)
        index = np.arange(many, dtype=np.uint64)
        run["window"], run["level"] = window, number
        run["offset"] = index * np.uint64(slot) + np.uint64(start)
        run["raw"] = index * np.uint64(step.integer(-U64_MAX) & U64_MAX) + np.uint64(raw.integer(1))
        if not run["raw"].all():
            raw.fail("the run goes through zero, and entries of value zero are not listed")
        parts.append(run)
    return parts


def room_in(rows: list[tuple[int, int, int, int]]) -> dict[int, int]:
    """Entries that the tables of each level have, by the table entries of one window."""
    levels = [level for _, level, _, _ in rows]
    return {level: 512 * levels.count(level + 1) for level in (1, 2, 3)}


def sorted_entries(entries: npt.NDArray[np.void], node: Node) -> npt.NDArray[np.void]:
    """Entries in the order of a state.  None may be there twice."""
    order = np.lexsort((entries["offset"], -entries["level"].astype(np.int8), entries["window"]))
    entries = entries[order]
    same = np.ones(max(len(entries) - 1, 0), dtype=bool)
    for name in ("window", "level", "offset"):
        same &= entries[name][1:] == entries[name][:-1]
    if same.any():
        twice = entries[int(np.argmax(same))]
        node.fail(f"the level-{twice['level']} entry at {int(twice['offset']):#x} is given twice")
    return entries


def read_pairs(node: Node) -> list[list[Node]]:
    """An array of pairs."""
    return [item.items(2) for item in node.items()]


def _read_rmp(node: Node) -> npt.NDArray[np.void]:
    """Runs of RMP entries as [pfn, count, lo, step, hi], entry by entry."""
    parts = [np.zeros(0, dtype=RMP_DTYPE)]
    total = after = 0
    for item in node.items():
        pfn, count, lo, step, hi = item.items(5)
        first = pfn.integer(after, _FRAMES - 1)
        many = count.integer(1, _FRAMES - first)
        after, total = first + many, total + many
        if total > _MAX_RMP_ENTRIES:
            count.fail(f"more than {_MAX_RMP_ENTRIES} RMP entries")
        run = np.zeros(many, dtype=RMP_DTYPE)
        index = np.arange(many, dtype=np.uint64)
        run["pfn"] = index + np.uint64(first)
        run["lo"] = index * np.uint64(step.integer(0)) + np.uint64(lo.integer())
        run["hi"] = hi.integer()
        if not (run["lo"] | run["hi"]).all():
            item.fail("the run has an entry that is zero, and those are not listed")
        parts.append(run)
    return np.concatenate(parts)


def _read_mapped(node: Node) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    after = 0
    for first, end in read_pairs(node):
        start = first.integer(after, _FRAMES - 1)
        ranges.append((start, end.integer(start + 1, _FRAMES)))
        after = ranges[-1][1] + 1  # neighbours are merged
    return tuple(ranges)


def _limited(node: Node, most: int) -> list[list[Node]]:
    pairs = read_pairs(node)
    if len(pairs) > most:
        node.fail(f"has {len(pairs)} elements, more than {most}")
    return pairs


def _read_rows(node: Node, width: int, most: int) -> tuple[Any, ...]:
    rows = [item.items(width) for item in node.items()]
    if len(rows) > most:
        node.fail(f"has {len(rows)} elements, more than {most}")
    return tuple(tuple(number.integer() for number in row) for row in rows)


def _only(node: Node, names: set[str]) -> None:
    for name in node.names():
        if name not in names:
            node.fail(f"{name[:40]!r} does not belong here")


def read_state(node: Node) -> State:
    """The state that :func:`state_to_json` wrote, as a value of a file."""
    _only(node, _STATE_KEYS)
    _only(node["counters"], set(COUNTERS))
    limit = max(DIRECT_MAP_LIMIT.values())
    rows = read_tables(node["tables"], 0, 5, 1 << 64)
    leaves = read_leaves(node["leaves"], 0, 3, limit, room_in(rows))
    high = read_tables(node["high_tables"], 1, 2, HIGH_WINDOW)
    leaves += read_leaves(node["high_leaves"], 1, 2, HIGH_WINDOW, room_in(high) | {2: 512})
    skip, count = node["fail_alloc"].items(2)
    return State(
        root=node["root"].integer(0, PHYSICAL_LIMIT - 1),
        tables=sorted_entries(np.array(rows + high, dtype=ENTRY_DTYPE), node["tables"]),
        leaves=sorted_entries(np.concatenate([np.zeros(0, dtype=ENTRY_DTYPE), *leaves]), node["leaves"]),
        rmp=_read_rmp(node["rmp"]),
        counters={name: node["counters"][name].integer() for name in COUNTERS},
        mapped=_read_mapped(node["pfn_mapped"]),
        max_pfn_mapped=node["max_pfn_mapped"].integer(0, _FRAMES),
        kernel_readonly=bool(node["kernel_set_to_readonly"].integer(0, 1)),
        inject=tuple(
            (code.integer(0, 255), many.integer(1, 1 << 20))
            for code, many in _limited(node["inject"], _MAX_INJECT_RUNS)
        ),
        addresses=tuple(
            (pfn.integer(0, _FRAMES - 1), high.integer(0, 1))
            for pfn, high in _limited(node["addresses"], _MAX_ADDRESSES)
        ),
        fail_alloc=(skip.integer(), count.integer()),
        firmware_ready=bool(node["firmware_ready"].integer(0, 1)),
        **{name: _read_rows(node[name], *shape) for name, shape in _SNP_LISTS.items()},
    )


def state_from_json(value: object, source: str = "state") -> State:
    """The state that :func:`state_to_json` made JSON values of.

    Raises :class:`StateError`, one line with the place, for anything else.  Whether table entries, leaves and RMP
    entries fit together and fit a machine is found when a machine is built from the state."""
    return read_state(Node(value, source, StateError))
