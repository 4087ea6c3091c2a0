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

_WALKED = ("UNCOVERED", "OWNER", "GPA", "IMMUTABLE", "SIZE", "RESERVED")
_NPF = tuple(f"NPF {reason}" for reason in _WALKED)
_CPA = ("0", "-12 ENOMEM", "-14 EFAULT", "refused BAD_ARGUMENT")
_UPDATES = ("0", "-12 ENOMEM", "-14 EFAULT", "-19 ENODEV", "hangs")
_HOST_FAULTS = ("#PF ASSIGNED", "#PF NEIGHBOUR", "#PF IN_USE", "#PF NOT_PRESENT", "#PF READ_ONLY")


def _codes(*codes: int) -> tuple[str, ...]:
    return ("0", *(outcome_name(Kind.CODE, code) for code in codes))


def _statuses(*statuses: int) -> tuple[str, ...]:
    return tuple(f"firmware {status:#x}" for status in (0, *statuses))


OUTCOMES: dict[OpCode, tuple[str, ...]] = {
    # rmp §2.2 to §2.7, and §1.7 for reserved bits of a segment
    OpCode.RMPUPDATE: (*_codes(1, 2, 3, 4), "#UD", "#GP", "#PF RESERVED"),
    OpCode.PSMASH: (*_codes(1, 2, 3, 7), "#UD", "#GP", "#PF RESERVED"),
    OpCode.RMPREAD: (*_codes(1, 2), "#UD", "#GP", "#PF RESERVED"),
    OpCode.PVALIDATE: (*_codes(1, 6), "#UD", "#GP", *_NPF),
    OpCode.RMPADJUST: (*_codes(1, 2, 6), "#UD", "#GP", "#VC NOT_VALIDATED", *_NPF),
    OpCode.RMPQUERY: (*_codes(2), "#UD", "#GP", "#VC NOT_VALIDATED", *_NPF),
    # rmp §3.2, §3.7
    OpCode.access: (
        *("ALLOWED", "#PF ASSIGNED", "#PF NEIGHBOUR", "#PF IN_USE", "#GP ASSIGNED", "#GP NULL", "#VC NOT_VALIDATED"),
        *(*_NPF, "NPF ASSIGNED", "NPF NEIGHBOUR", "NPF IN_USE", "NPF VMPL", "IOMMU ASSIGNED", "IOMMU NEIGHBOUR"),
        *(f"INVALID {reason}" for reason in ("UNCOVERED", "OWNER", "GPA", "IMMUTABLE", "NOT_VMSA", "ASSIGNED")),
    ),
    OpCode.VMRUN: (
        *("ALLOWED", "refused BAD_ARGUMENT", "refused QUEUE_FULL", "#GP ASSIGNED"),
        *(f"INVALID {reason}" for reason in ("UNCOVERED", "OWNER", "GPA", "IMMUTABLE", "NOT_VMSA", "ASSIGNED")),
    ),
    OpCode.VMEXIT: ("0", "refused BAD_ARGUMENT"),
    # rmp §4.2
    OpCode.SNP_INIT: _statuses(0x1, 0x3, 0x9),
    OpCode.SNP_SHUTDOWN: _statuses(0x1),
    OpCode.SNP_GCTX_CREATE: _statuses(0x1, 0x9, 0x17, 0x19, 0x1A),
    OpCode.SNP_ACTIVATE: _statuses(0x1, 0x3, 0x9, 0xC, 0xD, 0x10, 0x12),
    OpCode.SNP_DECOMMISSION: _statuses(0x1, 0x9, 0x10),
    OpCode.SNP_LAUNCH_UPDATE: _statuses(0x1, 0x8, 0x9, 0x10, 0x16, 0x19, 0x1A, 0x1C),
    OpCode.SNP_PAGE_RECLAIM: _statuses(0x1, 0x9, 0x19, 0x1A),
    OpCode.SNP_PAGE_SET_STATE: _statuses(0x1, 0x9, 0x1A),
    OpCode.SNP_PAGE_MOVE: _statuses(0x1, 0x8, 0x9, 0x10, 0x19, 0x1A, 0x1C),
    OpCode.SNP_PAGE_UNSMASH: _statuses(0x1, 0x9, 0x19, 0x1A),
    OpCode.SNP_MD_INIT: _statuses(0x1, 0x9, 0x10, 0x19, 0x1A),
    OpCode.SNP_PAGE_SWAP_OUT: _statuses(0x1, 0x8, 0x9, 0x10, 0x17, 0x19, 0x1A, 0x1B, 0x1C),
    OpCode.SNP_PAGE_SWAP_IN: _statuses(0x1, 0x8, 0x9, 0x10, 0x19, 0x1A, 0x1B, 0x1C),
    # host §1
    OpCode.rmpupdate: ("0", "-14 EFAULT", "-19 ENODEV", "hangs"),
    OpCode.rmp_make_private: _UPDATES,
    OpCode.rmp_make_firmware: _UPDATES,
    OpCode.rmp_make_shared: _UPDATES,
    OpCode.psmash: (*_codes(1, 2, 3, 7), "-22 EINVAL", "-19 ENODEV"),
    OpCode.snp_lookup_rmpentry: ("0", "-14 EFAULT", "-19 ENODEV", *_codes(1)[1:]),
    OpCode.adjust_direct_map: ("0", "-12 ENOMEM", "-22 EINVAL"),
    OpCode.rmp_mark_pages_firmware: (*_UPDATES, "refused BAD_ARGUMENT"),
    OpCode.snp_reclaim_pages: ("0", "-5 EIO", "-14 EFAULT", "hangs", "refused BAD_ARGUMENT"),
    OpCode.host_read: ("ALLOWED", "#PF NOT_PRESENT"),
    OpCode.host_write: ("ALLOWED", *_HOST_FAULTS),
    OpCode.kvm_read_guest: ("ALLOWED", "#PF NOT_PRESENT"),
    OpCode.kvm_write_guest: ("ALLOWED", *_HOST_FAULTS),
    OpCode.inject: ("0", "refused BAD_ARGUMENT", "refused QUEUE_FULL"),
    # direct-map §4 to §7
    **{spec.code: _CPA for spec in OPS if any(arg.name == "flavour" for arg in spec.args)},
    # rmp §4.1
    OpCode.page_state: tuple(state.name for state in PageState),
}
"""How each op can end, as far as the documents list it; "0" for what is not here."""


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
    """What has not come up, by sort: ops, how they can end, and states in which they have not been tried."""
    outcomes: dict[str, set[str]] = {}
    states: dict[str, set[str]] = {}
    for op, outcome, state in coverage:
        outcomes.setdefault(op, set()).add(outcome)
        states.setdefault(op, set()).add(state)
    missing: dict[str, list[str]] = {"op": [], "outcome of an op": [], "op in a state": []}
    for spec in OPS:
        name = spec.name
        if name not in states:
            missing["op"].append(name)
            continue
        ends = OUTCOMES.get(spec.code, ("0",))
        missing["outcome of an op"] += [f"{name}: {end}" for end in ends if end not in outcomes[name]]
        missing["op in a state"] += [
            f"{name} in {state}" for state in states_of(spec.code) if state not in states[name]
        ]
    return missing
