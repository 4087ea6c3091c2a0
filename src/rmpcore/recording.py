"""States in a recording of a kernel: what was read out of its page tables, as a state of a machine."""

from __future__ import annotations

import numpy as np

from rmpcore.inputs import Node
from rmpcore.maps import DIRECT_MAP_LIMIT, PAGE_SIZE, MachineMap
from rmpcore.state import (
    COUNTERS,
    ENTRY_DTYPE,
    HIGH_WINDOW,
    RMP_DTYPE,
    State,
    read_leaves,
    read_pairs,
    read_tables,
    room_in,
    sorted_entries,
)

PAGE_COUNTS = ("direct_map_4k", "direct_map_2m", "direct_map_1g")
"""The counters that a recording holds."""
RECORDED_STATES = ("boot", "before", "after")


class RecordingError(ValueError):
    """A recording that cannot be read: one line with the file and what is wrong."""


def recorded_state(node: Node, machine: MachineMap) -> State:
    """A recorded state.  Only what is recorded is filled in; the high windows may be absent."""
    limit = DIRECT_MAP_LIMIT[machine.levels]
    rows = read_tables(node["tables"], 0, machine.levels, limit)
    node["leaves"].items(at_least=1)
    leaves = read_leaves(node["leaves"], 0, 3, limit, room_in(rows))
    high_tables, high_leaves = node.get("high_tables"), node.get("high_leaves")
    if (high_tables is None) != (high_leaves is None):
        node.fail("has one of high_tables and high_leaves without the other")
    if high_tables is not None and high_leaves is not None:
        high = read_tables(high_tables, 1, 2, HIGH_WINDOW)
        rows += high
        leaves += read_leaves(high_leaves, 1, 2, HIGH_WINDOW, room_in(high) | {2: 512})
    frames = limit // PAGE_SIZE
    mapped = [(first.integer(0, frames), end.integer(0, frames)) for first, end in read_pairs(node["pfn_mapped"])]
    counts = dict.fromkeys(COUNTERS, 0)
    for name in PAGE_COUNTS:
        counts[name] = node["page_counts"][name.rpartition("_")[2]].integer()
    return State(
        root=node["root"].integer(),
        tables=sorted_entries(np.array(rows, dtype=ENTRY_DTYPE), node["tables"]),
        leaves=sorted_entries(np.concatenate(leaves), node["leaves"]),
        rmp=np.zeros(0, dtype=RMP_DTYPE),
        counters=counts,
        mapped=tuple(mapped),
        max_pfn_mapped=node["max_pfn_mapped"].integer(0, frames),
        kernel_readonly=bool(node["kernel_set_to_readonly"].integer(0, 1)),
    )
