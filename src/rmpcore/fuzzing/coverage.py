"""What a campaign has reached: how often which op had which outcome, in which state its page was before it.

The state of a page is, for what is done to the RMP, the state of its entry (rmp §4.1), and whether the head of its
2 MiB region is in another one ("mixed": half smashed, half given away); for what is done to the direct map, the leaf
that maps it; for the host, which sees both, both.  The native core is asked for it between the ops, by ops that change
nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rmpcore.machine import MachineLike
from rmpcore.ops import BY_CODE, LEVEL_NAMES, OP_DTYPE, OPS, U64_MAX, Kind, OpCode, OpSpec, Reason, Refusal
from rmpcore.page_state import PageState
from rmpcore.replay import outcome_name

Key = tuple[str, str, str]
"""Op, outcome, state."""

_ASKS = (OpCode.page_state, OpCode.page_state, OpCode.lookup)
"""Before each op: about its page, the head of its region, and its leaf."""
_EACH = len(_ASKS) + 1
_HEAD = 0x1FF
_P, _RW = 1 << 0, 1 << 1
_KEY = np.dtype(
    [
        ("op", "<u2"),
        ("kind", "u1"),
        ("ret", "<i4"),
        ("reason", "u1"),
        ("page", "u1"),
        ("mixed", "u1"),
        ("level", "u1"),
        ("flags", "u1"),
    ]
)
_DIRECT_MAP = {OpCode.lookup, OpCode.cpa_address, OpCode.set_memory_4k, *range(15, 18), *range(20, 37)}
"""Ops that know nothing of the RMP."""
_HOST = {*range(OpCode.rmpupdate, OpCode.snp_leak_pages + 1), *range(59, 61), 44, 45, 62, 63}
"""Ops that go by both: kernel functions on the RMP, and the host's own accesses."""
_NO_PAGE = {OpCode.inject, OpCode.fail_alloc, OpCode.SNP_INIT, OpCode.SNP_SHUTDOWN}
_LEAVES = ("none", *(f"{level}{how}" for level in ("4K", "2M", "1G") for how in ("", " ro", " np")))
_ENTRIES = tuple(
    f"{state.name}{mixed}" for state in PageState for mixed in ("", " mixed") if state != PageState.DEFAULT or not mixed
)


def _shift(spec: OpSpec) -> int:
    """How far the address field is shifted to give a frame; 63: the op has no page."""
    name = next((arg.name for arg in spec.args if arg.field == "addr"), "")
    return {"": 63, "skip": 63, "pfn": 0}.get(name, 12)


_SHIFTS = np.full(1 << 16, 63, dtype=np.uint64)
for _spec in OPS:
    _SHIFTS[_spec.code] = 63 if _spec.code in _NO_PAGE else _shift(_spec)


def states_of(code: int) -> tuple[str, ...]:
    """The states that an op can meet, as far as they count for it."""
    if code in _NO_PAGE or code not in BY_CODE:
        return ("-",)
    if code in _DIRECT_MAP:
        return _LEAVES
    if code in _HOST:
        return tuple(f"{entry}, {leaf}" for entry in _ENTRIES for leaf in _LEAVES)
    return _ENTRIES


def _outcome(op: int, kind: int, ret: int, reason: int) -> str:
    if kind == Kind.REFUSED:
        return f"refused {Refusal(ret).name}"
    if op == OpCode.page_state:
        name = PageState(ret).name
    elif kind in (Kind.KERNEL, Kind.CODE, Kind.FAULT, Kind.HANG):
        name = outcome_name(kind, ret)
    elif kind == Kind.FIRMWARE:
        name = f"firmware {ret:#x}"
    else:
        name = Kind(kind).name
    return f"{name} {Reason(reason).name}" if reason else name


def _label(row: tuple[int, ...]) -> Key:
    op, kind, ret, reason, page, mixed, level, flags = row
    entry = PageState(page).name + (" mixed" if mixed else "")
    leaf = LEVEL_NAMES[level] + ("" if flags == 3 else " ro" if flags & _P else " np") if level else "none"
    if op in _NO_PAGE or op not in BY_CODE:
        state = "-"
    elif op in _DIRECT_MAP:
        state = leaf
    else:
        state = f"{entry}, {leaf}" if op in _HOST else entry
    name = BY_CODE[OpCode(op)].name if op in BY_CODE else "no op"
    return name, _outcome(op, kind, ret, reason), state


class Coverage:
    """Counts what the ops of one machine meet."""

    def __init__(self) -> None:
        self.counts: dict[Key, int] = {}

    def run(self, machine: MachineLike, ops: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Do ops as ``machine.run(ops)`` does, and count them."""
        frames = np.where(_SHIFTS[ops["op"]] == 63, np.uint64(U64_MAX), ops["addr"] >> _SHIFTS[ops["op"]])
        asked = np.zeros(len(ops) * _EACH, dtype=OP_DTYPE)
        for at, (code, pages) in enumerate(zip(_ASKS, (frames, frames & ~np.uint64(_HEAD), frames), strict=True)):
            asked["op"][at::_EACH], asked["addr"][at::_EACH] = code, pages
        asked[_EACH - 1 :: _EACH] = ops
        results = machine.run(asked)
        mine = np.ascontiguousarray(results[_EACH - 1 :: _EACH])
        page, head, leaf = (results[at::_EACH] for at in range(_EACH - 1))
        keys = np.zeros(len(ops), dtype=_KEY)
        keys["op"] = ops["op"]
        for name in ("kind", "ret", "reason"):
            keys[name] = mine[name]
        for name, asked_of in (("page", page), ("mixed", head)):
            keys[name] = np.where(asked_of["kind"] == Kind.REFUSED, PageState.DEFAULT, asked_of["ret"])
        keys["mixed"] = keys["mixed"] != keys["page"]
        keys["mixed"][keys["page"] == PageState.DEFAULT] = 0
        keys["level"] = np.where(leaf["kind"] == Kind.REFUSED, 0, leaf["level"])
        keys["flags"] = leaf["value"] & np.uint64(_P | _RW)
        unique, counts = np.unique(keys, return_counts=True)
        for row, count in zip(unique.tolist(), counts.tolist(), strict=True):
            key = _label(row)
            self.counts[key] = self.counts.get(key, 0) + count
        return mine


def unreached(coverage: dict[Key, int]) -> dict[str, list[str]]:
    """What no op has met, by what it is: states, and outcomes that the documents know."""
    states: dict[str, set[str]] = {}
    for op, _, state in coverage:
        states.setdefault(op, set()).add(state)
    missing: dict[str, list[str]] = {"op": [], "op in state": []}
    for spec in OPS:
        if spec.name not in states:
            missing["op"].append(spec.name)
            continue
        rest = [state for state in states_of(spec.code) if state not in states[spec.name]]
        missing["op in state"] += [f"{spec.name} in {state}" for state in rest]
    return missing
