"""The small machines that the tests use, and short hands to drive one and look at its state.

The maps are chosen so that what a rule does to them can be worked out by hand: few ranges, round sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from rmpcore.fuzzing.maps import (  # noqa: F401 - some of them for the tests alone
    GIB,
    IMAGE,
    IMAGE_MOVED,
    IMAGE_SYMBOLS,
    MIB,
    SNP,
    SNP_IMAGE,
    build_map,
)
from rmpcore.machine import Machine
from rmpcore.maps import PAGE_OFFSETS, MachineMap
from rmpcore.ops import Event, EventKind, Flavour, Kind, Op, Result, make_op
from rmpcore.state import State, entries

KIB = 1 << 10
U64 = (1 << 64) - 1
FRAME_MASK = 0x000F_FFFF_FFFF_F000

# Flags of a page-table entry (direct-map §1)
P = 1 << 0
RW = 1 << 1
PWT = 1 << 3
PCD = 1 << 4
A = 1 << 5
D = 1 << 6
PSE = 1 << 7
PAT = 1 << 7  # at level 1 the bit that is PSE above
G = 1 << 8
SOFTW1 = 1 << 9
SOFTW2 = 1 << 10
SOFTW3 = 1 << 11
PAT_LARGE = 1 << 12
NX = 1 << 63
SMALL_LEAF = 0x8000_0000_0000_0163
LARGE_LEAF = 0x8000_0000_0000_01E3
BOOT_TABLE = 0x067
SPLIT_TABLE = 0x063

# Errnos that kernel functions return
ENOMEM = -12
EFAULT = -14
ENODEV = -19
EINVAL = -22

# Codes in EAX (rmp §2.1)
SUCCESS = 0
FAIL_INPUT = 1
FAIL_PERMISSION = 2
FAIL_INUSE = 3
FAIL_OVERLAP = 4
PSMASH_REFUSED = 7

# RMP entry, low quadword (rmp §1.1)
ASSIGNED = 1 << 0
SIZE_2M = 1 << 1
IMMUTABLE = 1 << 2
VMSA = 1 << 61
VALIDATED = 1 << 62
LOCK = 1 << 63

PAGE_OFFSET = PAGE_OFFSETS[4]
HIGH_MAPPING = 0xFFFF_FFFF_8000_0000


SMALL = build_map([(0, 64 * MIB)])
"""64 MiB in one piece, nothing reserved."""
SMALL_4K = dataclasses.replace(SMALL, large_pages="4K")
TINY_4K = build_map([(0, 16 * MIB)], large_pages="4K")
SMALL_LA57 = dataclasses.replace(SMALL, levels=5, page_offset=PAGE_OFFSETS[5])
SMALL_CBIT = dataclasses.replace(SMALL, c_bit=1 << 51)
SMALL_PTI = dataclasses.replace(SMALL, default_mask=U64 & ~G)
SMALL_RANDOM = dataclasses.replace(SMALL, page_offset=0xFFFF_9A12_4000_0000)

PC = build_map(
    [(0x1000, 0x9E000), (0x100000, 0x3EE0000)],
    reserved=[(0, 0x1000), (0x9F000, 0x61000), (0x1000000, 0x1000000)],
    e820=[
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xF0000, 0x10000, 2),
        (0x100000, 0x3EE0000, 1),
        (0x3FE0000, 0x20000, 2),
    ],
)
"""64 MiB as a PC has them: neither range starts or ends on a 2 MiB line."""

HOLE = build_map([(0, 3 * GIB), (4 * GIB, GIB)])
"""4 GiB around the hole below 4 GiB."""
HOLE_2M = dataclasses.replace(HOLE, large_pages="2M")

SNP_COVERED = 0xFC00
SNP_TIGHT = build_map([(0, 64 * MIB)], rmp=(1 << 32, (1 << 32) + 0x4000 + 16 * 0x3F00 - 1), rmp_probed=False)
"""The RMP ends in the middle of the last 2 MiB of memory: frames 0 to 0x3eff are covered."""
SNP_CBIT = dataclasses.replace(SNP, c_bit=1 << 51)
SNP_HOLE = build_map(
    [(0, 3 * GIB), (4 * GIB, GIB)],
    e820=[(0, 3 * GIB, 1), (3 * GIB, 32 * MIB, 2), (4 * GIB, GIB, 1)],
    rmp=(3 * GIB, 3 * GIB + 32 * MIB - 1),
)
"""1 GiB leaves, a hole with the RMP in it, and more memory above 4 GiB."""


class Host:
    """A machine under test."""

    def __init__(self, backend: str, map_: MachineMap = SMALL, **options: Any) -> None:
        self.machine = Machine(map_, backend=backend, **options)
        self.machine.record_events(True)

    def do(self, name: str, **args: int) -> Result:
        """Apply an op."""
        return self.machine.apply(make_op(name, **args))

    def call(self, name: str, **args: int) -> int:
        """Apply a kernel function (or control) that must not be refused; what it returns."""
        result = self.do(name, **args)
        assert result.kind == Kind.KERNEL, result
        return result.ret

    def change(
        self, name: str, pfns: Sequence[int], flavour: Flavour = Flavour.RANGE, high: int = 0, **args: int
    ) -> int:
        """Call a function that changes attributes, in one of its flavours; a range is from the first frame to the
        last."""
        if flavour == Flavour.RANGE:
            return self.call(name, pfn=pfns[0], pages=pfns[-1] + 1 - pfns[0], high=high, **args)
        for pfn in pfns:
            assert self.call("cpa_address", pfn=pfn, high=high) == 0
        return self.call(name, pfn=0, pages=len(pfns), flavour=flavour, **args)

    def insn(self, name: str, **args: int) -> int:
        """Execute an instruction that must not fault; the code in EAX."""
        result = self.do(name, **args)
        assert result.kind == Kind.CODE, result
        return result.ret

    def update(self, pfn: int, **args: int) -> int:
        """RMPUPDATE of a frame, unassigned 4K and all zero unless told otherwise; the code."""
        fields = {"gpa": 0, "assigned": 0, "size": 0, "asid": 0} | args
        return self.insn("RMPUPDATE", pa=pfn << 12, **fields)

    def assign(self, pfn: int, **args: int) -> None:
        """Assign a 4K page (``size=1``: 2M) to ASID 5, which must succeed."""
        assert self.update(pfn, **({"assigned": 1, "asid": 5} | args)) == SUCCESS

    def events(self) -> list[Event]:
        """What was reported since the last call."""
        return [Event(*record) for record in self.machine.take_events().tolist()]

    def state(self) -> State:
        return self.machine.state()

    def counters(self) -> dict[str, int]:
        return self.state().counters

    def counts(self) -> tuple[int, int, int]:
        """The kernel's counts of 4K, 2M and 1G leaves."""
        counters = self.counters()
        return counters["direct_map_4k"], counters["direct_map_2m"], counters["direct_map_1g"]

    def rmp(self, pfn: int) -> tuple[int, int]:
        return self.machine.read_rmp(pfn)

    def leaf(self, pfn: int) -> tuple[int, int]:
        """Level and raw value of what lookup finds for a frame; (0, 0): nothing there."""
        result = self.do("lookup", pfn=pfn)
        assert result.kind == Kind.KERNEL and result.ret == 0, result
        return result.level, result.value


def leaves(state: State, window: int = 0) -> dict[tuple[int, int], int]:
    """Leaves of a window by (level, offset)."""
    return {(level, offset): raw for w, level, offset, raw in state.leaves.tolist() if w == window}


def tables(state: State, window: int = 0) -> dict[tuple[int, int], int]:
    """Entries that point to a table by (level, offset)."""
    return {(level, offset): raw for w, level, offset, raw in state.tables.tolist() if w == window}


def changed(state: State, **fields: Any) -> State:
    """A copy of a state with some fields replaced.  ``counters`` is merged into the old ones."""
    if "counters" in fields:
        fields["counters"] = state.counters | fields["counters"]
    return dataclasses.replace(state, **fields)


def with_leaves(state: State, replace: dict[tuple[int, int, int], int]) -> State:
    """A copy in which leaves, by (window, level, offset), have another raw value; zero removes one."""
    rows = {row[:3]: row[3] for row in state.leaves.tolist()} | replace
    return changed(state, leaves=entries([(*key, raw) for key, raw in rows.items() if raw]))


def with_tables(state: State, replace: dict[tuple[int, int, int], int]) -> State:
    """As :func:`with_leaves` for the entries that point to a table."""
    rows = {row[:3]: row[3] for row in state.tables.tolist()} | replace
    return changed(state, tables=entries([(*key, raw) for key, raw in rows.items() if raw]))


def continued(host: Host, state: State, **options: Any) -> Host:
    """A machine of the same backend, map and kernel that starts from a state."""
    options = {"kernel": host.machine.kernel} | options
    return Host(host.machine.backend, host.machine.map, state=state, **options)


def small_pages(
    backend: str, map_: MachineMap = SMALL, kernel: str = "6.12", pfn: int = 0x400, flags: dict[int, int] | None = None
) -> Host:
    """A machine in which the 2 MiB page at a frame is mapped by small pages without KERNEL_4K, some of them with other
    flags."""
    first = Host(backend, map_, kernel=kernel)
    assert first.call("set_memory_4k", pfn=pfn, pages=1) == 0
    fresh = first.leaf(pfn)[1] & ~SOFTW3
    rows = {(0, 1, at << 12): entry(at << 12, bits) for at, bits in (flags or {}).items()}
    return continued(first, with_leaves(first.state(), {(0, 1, pfn << 12): fresh} | rows))


def entry(address: int, flags: int) -> int:
    """An entry with this address and these flags (direct-map §1)."""
    return address | flags if flags & P or not flags else inverted(address, flags)


def read_only(
    backend: str, map_: MachineMap, kernel: str, change: dict[tuple[int, int, int], int] | None = None
) -> Host:
    """A machine whose kernel has made its image read-only, some leaves of it replaced."""
    first = Host(backend, map_, kernel=kernel)
    return continued(first, changed(with_leaves(first.state(), change or {}), kernel_readonly=True))


def inverted(address: int, flags: int) -> int:
    """A not-present entry: the frame is stored inverted in bits 51:12, whatever the level (direct-map §1)."""
    return (~address & FRAME_MASK) | flags


def kinds(events: Iterable[Event]) -> list[EventKind]:
    """Just the kinds of events."""
    return [EventKind(event.kind) for event in events]


def record(code: int, **fields: int) -> Op:
    """A raw op record, checked by nobody."""
    return Op(code, **fields)
