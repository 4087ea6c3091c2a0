"""The full matrix of rmp §4: every page state with every instruction, access and firmware command.

``TABLE`` is written from the specification (rmp §2, §3, §4.2), one line for an action and the shapes of entry that it
meets, one cell for each state that the page is in before.  A cell says what comes of it: the state afterwards, or the
refusal.  Whatever is refused leaves the whole machine as it was.  The functions named ``*_effect`` say, from the same
sections, what an action that is allowed writes, bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from machines import MIB, SNP, Host, build_map, changed

from rmpcore.machine import MachineLike
from rmpcore.ops import AccessKind, Kind, Op, OpCode, Reason, Result, ResultFlag, Who, make_op
from rmpcore.page_state import PageState, page_state
from rmpcore.state import COUNTERS, RMP_DTYPE, State, diff_states

# --- the states and how an entry of each looks (rmp §1.1, §4.1) ---

COLUMNS = {
    "Df": PageState.DEFAULT,
    "Hv": PageState.HYPERVISOR,
    "Hf": PageState.HV_FIXED,
    "Fw": PageState.FIRMWARE,
    "Cx": PageState.CONTEXT,
    "Md": PageState.METADATA,
    "Rc": PageState.RECLAIM,
    "PG": PageState.PRE_GUEST,
    "PS": PageState.PRE_SWAP,
    "GI": PageState.GUEST_INVALID,
    "GV": PageState.GUEST_VALID,
    "Fi": PageState.FIRMWARE_IOMMU,
    "In": PageState.INVALID,  # assigned, validated, ASID 0: an inner entry after UNSMASH of validated pages
    "Im": PageState.INVALID,  # assigned, immutable, ASID 0, a gpa without a tag
    "Iu": PageState.INVALID,  # not assigned, validated, with an ASID
}


class Entry(NamedTuple):
    """A raw RMP entry field by field (rmp §1.1); the gpa as an address."""

    assigned: int = 0
    size: int = 0
    immutable: int = 0
    subpages: int = 0
    gpa: int = 0
    asid: int = 0
    vmsa: int = 0
    validated: int = 0
    lock: int = 0
    hi: int = 0


@cache
def raw(entry: Entry) -> tuple[int, int]:
    """The two quadwords of an entry."""
    lo = entry.assigned | entry.size << 1 | entry.immutable << 2 | entry.subpages << 3 | entry.gpa
    return lo | entry.asid << 51 | entry.vmsa << 61 | entry.validated << 62 | entry.lock << 63, entry.hi


def alter(entry: Entry, **fields: int) -> Entry:
    """The entry with other values in some fields."""
    return entry._replace(**fields)


ASID = 5
GPA = 0x4000_0000
ALL = 0x1F  # VMPL0's byte on Genoa
PERMISSIONS = 0x0001_031F  # VMPL0 everything, VMPL1 read and write, VMPL2 read, VMPL3 nothing
TAG_METADATA = 1 << 48
TAG_IOMMU = 2 << 48

LOCKED = Entry(assigned=1, immutable=1, lock=1)
INNER = Entry(assigned=1)  # the other 511 of a 2 MiB page (rmp §2.2)

CONTEXT = 0x800  # of the guest with ASID 5
CONTEXT_7 = 0x801
CONTEXT_IDLE = 0x802  # not activated
MDATA_PAGE = 0x803
PRE_GUEST_PAGE = 0x804
NO_CONTEXT = 0x805
FIRMWARE_PAGE = 0x806
PRE_SWAP_PAGE = 0x807
METADATA_PAGE = 0x808

METADATA = alter(LOCKED, gpa=TAG_METADATA | CONTEXT << 12)
PRE_GUEST = alter(LOCKED, asid=ASID, hi=ALL)
PRE_SWAP = alter(PRE_GUEST, validated=1, hi=PERMISSIONS)


def entry_of(column: str, gpa: int) -> Entry:
    """The entry of a 4 KiB page in a state; ``gpa`` counts where a guest owns the page."""
    guest = Entry(assigned=1, gpa=gpa, asid=ASID, hi=ALL)
    return {
        "Hv": Entry(),
        "Hf": Entry(immutable=1),
        "Fw": alter(LOCKED, hi=ALL),
        "Cx": alter(LOCKED, vmsa=1, hi=ALL),
        "Md": alter(METADATA, hi=ALL),
        "Rc": Entry(assigned=1, hi=ALL),
        "PG": alter(PRE_GUEST, gpa=gpa),
        "PS": alter(PRE_SWAP, gpa=gpa),
        "GI": guest,
        "GV": alter(guest, validated=1, hi=PERMISSIONS),
        "Fi": alter(LOCKED, gpa=TAG_IOMMU | 0x1000),
        "In": Entry(assigned=1, validated=1, hi=ALL),
        "Im": alter(LOCKED, gpa=0x7000),
        "Iu": Entry(validated=1, asid=ASID),
    }[column]


# --- where the page is ---

COVERED = 0x1300
MAP = build_map([(0, 24 * MIB)], rmp=(1 << 32, (1 << 32) + 0x4000 + 16 * COVERED - 1), rmp_probed=False, max_pfn=0x1800)
"""Frames 0 to 0x12ff are covered: the region from 0x1200 in part, those from 0x1400 not at all."""
REGION = 0x200
PAGE = 0x2A5
UNCOVERED_REGION = 0x1400
UNCOVERED_PAGE = 0x14A5

SHAPES = {
    "4K": "a 4K entry of a page that is not 2 MiB-aligned, all others of the region the hypervisor's",
    "head": "a 4K entry of a 2 MiB-aligned page, all others the hypervisor's",
    "2M": "the 2M entry of a region",
    "inner": "a page inside a region with a 2M entry in that state",
    "full": "the first of 512 4K entries that are all in that state, gpas consecutive",
}
_EXISTS = {
    "4K": set(COLUMNS),
    "head": set(COLUMNS),
    # not assigned: always 4K (rmp §2.2); a context page is always 4K (rmp §4.1)
    "2M": set(COLUMNS) - {"Df", "Hv", "Hf", "Cx", "Iu"},
    "inner": set(COLUMNS) - {"Df", "Hv", "Hf", "Cx", "Iu"},
    "full": set(COLUMNS) - {"Df"},
}


def gpa_of(pfn: int) -> int:
    """Guest address of a page: regions are mapped from GPA on."""
    return GPA + (pfn & 0x1FF) * 0x1000


@dataclass(frozen=True)
class Layout:
    """A page in a state, with what is around it."""

    column: str
    shape: str
    pfn: int
    entries: dict[int, Entry]

    @property
    def own(self) -> Entry:
        return self.entries.get(self.pfn, Entry())

    @property
    def governing(self) -> int:
        """The frame whose entry speaks for the page (rmp §3.1)."""
        return self.pfn & ~0x1FF if self.entries.get(self.pfn & ~0x1FF, Entry()).size else self.pfn


@cache
def lay(column: str, shape: str) -> Layout:
    """A page in a state and a shape; subpage counts are right (rmp §1.2)."""
    if column == "Df":
        return Layout(column, shape, UNCOVERED_PAGE if shape == "4K" else UNCOVERED_REGION, {})
    if shape == "4K":
        entry = entry_of(column, gpa_of(PAGE))
        return Layout(column, shape, PAGE, {REGION: Entry(subpages=entry.assigned), PAGE: entry})
    head = entry_of(column, gpa_of(REGION))
    if shape == "head":
        return Layout(column, shape, REGION, {REGION: head})
    if shape == "full":
        entries = {pfn: entry_of(column, gpa_of(pfn)) for pfn in range(REGION, REGION + 512)}
        entries[REGION] = alter(head, subpages=511 * head.assigned)
        return Layout(column, shape, REGION, entries)
    entries = {pfn: INNER for pfn in range(REGION, REGION + 512)}
    entries[REGION] = alter(head, size=1)
    return Layout(column, shape, REGION if shape == "2M" else PAGE, entries)


# --- machines ---

SWITCHES = {"rmpread": 1}
BOOKKEEPING = ((5, 1 << 40), (6, 1 << 41))
RECORD = MDATA_PAGE << 12 | 0x40


@dataclass(frozen=True)
class Given:
    """What of the state is not in the RMP."""

    ready: bool = True
    contexts: tuple[tuple[int, int], ...] = ((CONTEXT, ASID), (CONTEXT_7, 7), (CONTEXT_IDLE, 0))
    records: tuple[tuple[int, int, int, int, int], ...] = ()
    in_use: tuple[tuple[int, int, int], ...] = ()
    bookkeeping: tuple[tuple[int, int], ...] = BOOKKEEPING


FIXED: dict[int, Entry] = {
    CONTEXT: alter(LOCKED, vmsa=1, hi=ALL, subpages=8),
    CONTEXT_7: alter(LOCKED, vmsa=1, hi=ALL),
    CONTEXT_IDLE: alter(LOCKED, vmsa=1, hi=ALL),
    MDATA_PAGE: METADATA,
    PRE_GUEST_PAGE: alter(PRE_GUEST, gpa=0x5000_4000),
    NO_CONTEXT: LOCKED,
    FIRMWARE_PAGE: alter(LOCKED, hi=ALL),
    PRE_SWAP_PAGE: alter(PRE_SWAP, gpa=0x5000_7000, vmsa=1, hi=0x0705_031F),
    METADATA_PAGE: METADATA,
}
"""Pages that take part in commands besides the one in question."""


class World:
    """One machine that is put into each case's state, and taken back to it afterwards."""

    def __init__(self, backend: str, split: bool) -> None:
        host = Host(backend, MAP, hardware="genoa", switches=SWITCHES)
        if split:
            for pfn in (PAGE, UNCOVERED_PAGE):
                assert host.call("set_memory_4k", pfn=pfn, pages=1) == 0
        self.backend = backend
        self.base = host.state()
        self.machine: MachineLike = host.machine
        self.counters = self.base.counters
        self.now: tuple[dict[int, Entry], Given] | None = None

    def put(self, entries: dict[int, Entry], given: Given) -> Given:
        """Make the machine's state this one; the ASIDs' counters go on from where they are."""
        zero = Entry()
        if self.now is not None and replace(given, bookkeeping=self.now[1].bookkeeping) == self.now[1]:
            given = self.now[1]
        if self.now is None or self.now[1] != given:
            host = Host(
                self.backend, MAP, hardware="genoa", switches=SWITCHES, state=expected_state(self.base, entries, given)
            )
            self.machine = host.machine
            self.machine.record_events(False)
            self.counters = self.base.counters
        else:
            was = self.now[0]
            for pfn in was.keys() | entries.keys():
                new = entries.get(pfn, zero)
                if was.get(pfn, zero) != new:
                    self.machine.write_rmp(pfn, *raw(new))
        self.now = entries, given
        return given


def expected_state(base: State, entries: dict[int, Entry], given: Given) -> State:
    rows = [(pfn, *raw(entry)) for pfn, entry in sorted(entries.items()) if raw(entry) != (0, 0)]
    return changed(
        base,
        rmp=np.array(rows, dtype=RMP_DTYPE),
        firmware_ready=given.ready,
        contexts=given.contexts,
        records=given.records,
        in_use=given.in_use,
        bookkeeping=given.bookkeeping,
    )


# --- what an allowed action writes ---

Change = tuple[dict[int, Entry], Given]
Effect = Callable[[Layout, dict[int, Entry], Given], Change]


def rmpupdate_effect(new: Entry) -> Effect:
    """rmp §2.2 row 10 and write rules; rmp §1.2 for the count, rmp §1.6 for the bookkeeping."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        old = page.own
        wanted = asked(page, new)
        keep = wanted.asid != 0 and all(
            getattr(old, name) == getattr(wanted, name) for name in ("asid", "gpa", "size", "assigned")
        )
        stored = alter(
            wanted,
            size=wanted.size & wanted.assigned,
            lock=wanted.immutable,
            subpages=0 if wanted.size else old.subpages,
            validated=old.validated if keep else 0,
            vmsa=old.vmsa if keep else 0,
            hi=old.hi if keep else ALL,
        )
        entries = dict(entries)
        entries[page.pfn] = stored
        if wanted.size:
            entries |= {pfn: Entry(assigned=wanted.assigned) for pfn in range(page.pfn + 1, page.pfn + 512)}
        elif page.pfn != REGION:
            head = entries.get(REGION, Entry())
            entries[REGION] = alter(head, subpages=head.subpages + wanted.assigned - old.assigned)
        counters = dict(given.bookkeeping)
        for entry, sign in ((old, -1), (stored, 1)):
            if entry.assigned and entry.asid:
                counters[entry.asid] = counters.get(entry.asid, 0) + sign * (512 if entry.size else 1)
        return entries, replace(given, bookkeeping=tuple(sorted((a, n) for a, n in counters.items() if n)))

    return effect


def psmash_effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
    """rmp §2.3: 512 entries, gpa + i * 4K, all else as in the 2M entry; the first one's count is 511."""
    head = page.own
    pages = {page.pfn + i: alter(head, size=0, gpa=head.gpa + i * 0x1000, subpages=0) for i in range(512)}
    pages[page.pfn] = alter(head, size=0, subpages=511)
    return entries | pages, given


def governing_effect(**fields: int) -> Effect:
    """Fields of the entry that speaks for the page."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        return entries | {page.governing: alter(page.entries[page.governing], **fields)}, given

    return effect


def own_effect(**fields: int) -> Effect:
    """Fields of the page's own entry."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        return entries | {page.pfn: alter(page.own, **fields)}, given

    return effect


def permission_effect(vmpl: int, byte: int, **fields: int) -> Effect:
    """rmp §2.6 row 8: the target's byte; from VMPL0 vmsa too."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        old = page.entries[page.governing]
        hi = old.hi & ~(0xFF << 8 * vmpl) | byte << 8 * vmpl
        return entries | {page.governing: alter(old, hi=hi, **fields)}, given

    return effect


def nothing(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
    return entries, given


def launch_effect(vmsa: int | None = None) -> Effect:
    """rmp §4.2 SNP_LAUNCH_UPDATE: Guest-Valid, the bytes of VMPL1 to VMPL3 from the command."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        old = page.own
        hi = old.hi & ~0xFFFF_FF00 | 0x0201_0700
        new = alter(old, immutable=0, lock=0, validated=1, hi=hi, vmsa=old.vmsa if vmsa is None else vmsa)
        return entries | {page.pfn: new}, given

    return effect


def reclaim_effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
    """rmp §4.2 SNP_PAGE_RECLAIM: not immutable any more; a metadata page's tag goes."""
    old = page.own
    gpa = old.gpa & ~(7 << 48) if page.column == "Md" else old.gpa
    return entries | {page.pfn: alter(old, immutable=0, lock=0, gpa=gpa)}, given


def set_state_effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
    """rmp §4.2 SNP_PAGE_SET_STATE: all 512 HV-Fixed, what the high quadword holds stays."""
    region = range(page.pfn, page.pfn + 512)
    return entries | {pfn: Entry(immutable=1, hi=entries.get(pfn, Entry()).hi) for pfn in region}, given


def unsmash_effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
    """rmp §4.2 SNP_PAGE_UNSMASH: the first 2M with count 0; the others assigned with ASID 0, not immutable."""
    pages = {pfn: alter(page.entries[pfn], asid=0, immutable=0, lock=0) for pfn in range(page.pfn + 1, page.pfn + 512)}
    return entries | pages | {page.pfn: alter(page.own, size=1, subpages=0)}, given


def move_effect(src: int | None, dst: int | None) -> Effect:
    """rmp §4.2 SNP_PAGE_MOVE; ``None`` stands for the page in question."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        from_, to = (page.pfn if pfn is None else pfn for pfn in (src, dst))
        old, target = entries[from_], entries[to]
        if old.asid == 0:  # metadata
            pair = {from_: alter(old, gpa=0, vmsa=0), to: alter(target, gpa=old.gpa, vmsa=0)}
        else:
            moved = alter(target, gpa=old.gpa, vmsa=old.vmsa, validated=old.validated, hi=old.hi, immutable=0, lock=0)
            pair = {from_: alter(old, validated=0, immutable=0, lock=0), to: moved}
        return entries | pair, given

    return effect


def swap_out_effect(src: int | None = None, mdata: int | None = MDATA_PAGE) -> Effect:
    """rmp §4.2 SNP_PAGE_SWAP_OUT: validated is cleared, a metadata page becomes Firmware; a record is written."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        from_ = page.pfn if src is None else src
        record = (page.pfn if mdata is None else mdata) << 12 | 0x40
        old = entries[from_]
        if old.asid == 0:
            row = (record, CONTEXT, 8, 0, 0)
            new = alter(old, gpa=0, vmsa=0)
        else:
            row = (record, CONTEXT, old.validated | old.vmsa << 1 | old.size << 2, old.gpa, old.hi)
            new = alter(old, validated=0)
        return entries | {from_: new}, replace(given, records=(row,))

    return effect


def swap_in_effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
    """rmp §4.2 SNP_PAGE_SWAP_IN: gpa, vmsa, permissions and validated from the record, which is gone then."""
    ((_, context, info, gpa, hi),) = given.records
    if info & 8:
        new = alter(page.own, gpa=TAG_METADATA | context << 12)
    else:
        new = alter(page.own, gpa=gpa, hi=hi, validated=info & 1, vmsa=info >> 1 & 1)
    return entries | {page.pfn: new}, replace(given, records=())


def init_effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
    """rmp §4.2 SNP_INIT: DRAM is the hypervisor's, what is not DRAM (here the range below 1 MiB) HV-Fixed."""
    return {pfn: Entry(immutable=1) for pfn in range(0xA0, 0xC0)}, Given(contexts=(), bookkeeping=())


def shutdown_effect(iommu: int) -> Effect:
    """rmp §4.2 SNP_SHUTDOWN_EX: with the flag Firmware-IOMMU becomes Reclaim."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        given = replace(given, ready=False, contexts=(), records=())
        if not iommu:
            return entries, given
        ours = {
            pfn: alter(entry, immutable=0, lock=0, gpa=0)
            for pfn, entry in entries.items()
            if entry.gpa == TAG_IOMMU | 0x1000
        }
        return entries | ours, given

    return effect


def context_effect(asid: int | None, **fields: int) -> Effect:
    """The page's row in the list of contexts: another ASID, or gone (``None``); and its entry."""

    def effect(page: Layout, entries: dict[int, Entry], given: Given) -> Change:
        rows = dict(given.contexts)
        rows.pop(page.pfn, None)
        if asid is not None:
            rows[page.pfn] = asid
        entries = entries | {page.pfn: alter(page.own, **fields)}
        return entries, replace(given, contexts=tuple(sorted(rows.items())))

    return effect


# --- results ---

STATUS = {
    "plt": 0x01,
    "ina": 0x08,
    "adr": 0x09,
    "gst": 0x10,
    "par": 0x16,
    "siz": 0x19,
    "sta": 0x1A,
    "rec": 0x1B,
    "own": 0x1C,
}
"""Statuses of firmware commands (AMD's ABI specification 56860)."""
REASONS = {
    "asg": Reason.ASSIGNED,
    "nbr": Reason.NEIGHBOUR,
    "use": Reason.IN_USE,
    "unc": Reason.UNCOVERED,
    "own": Reason.OWNER,
    "gpa": Reason.GPA,
    "imm": Reason.IMMUTABLE,
    "siz": Reason.SIZE,
    "SZM": Reason.SIZE,  # with the bit SIZEM
    "val": Reason.NOT_VALIDATED,
    "vpl": Reason.VMPL,
    "nvm": Reason.NOT_VMSA,
}
# EXITINFO1 and #PF error codes (rmp §3.5)
BIT_P, BIT_W, BIT_US, BIT_ID = 1, 2, 4, 16
BIT_RMP, BIT_FINAL, BIT_WALK, BIT_ENC, BIT_SIZEM, BIT_VMPL, BIT_SSS = (1 << bit for bit in range(31, 38))
INSTRUCTIONS = ("RMPUPDATE", "PSMASH", "RMPREAD", "PVALIDATE", "RMPADJUST", "RMPQUERY")
WRITES = (AccessKind.WRITE, AccessKind.WALK_WRITE, AccessKind.SHADOW_STACK)
WALKS = (AccessKind.WALK, AccessKind.WALK_WRITE)


def faulted(op: Op, cell: str) -> Result:
    """The result of a guest instruction or an access that is not allowed, from rmp §3.2, §3.5 and §3.7."""
    reason = REASONS[cell]
    if op.op in (OpCode.PVALIDATE, OpCode.RMPADJUST, OpCode.RMPQUERY):
        if reason == Reason.NOT_VALIDATED:
            return Result(29, Kind.FAULT, reason=reason, value=0x404, value2=op.va)
        info = 0xC_8000_0005 if cell == "SZM" else 0x4_8000_0005
        return Result(0x400, Kind.NPF, reason=reason, value=info, value2=op.gpa)
    who, access, private = Who(op.mode & 0xFF), AccessKind(op.mode >> 8 & 0xFF), op.mode >> 24 & 1
    error = BIT_P | BIT_RMP | (BIT_W if access in WRITES else 0)
    if who == Who.HOST:
        return Result(14, Kind.FAULT, reason=reason, value=error, value2=op.va)
    if who == Who.IOMMU:
        return Result(0x0D, Kind.IOMMU, reason=reason, value2=op.addr)
    if who in (Who.VMCB, Who.HSAVE, Who.VMSAVE):
        return Result(13, Kind.FAULT, reason=reason)
    if who in (Who.AVIC, Who.VMSA_PLAIN, Who.VMSA_SNP):
        return Result(-1, Kind.INVALID, reason=reason)
    if who == Who.SNP:
        private |= access in (AccessKind.FETCH, *WALKS)
        if reason == Reason.NOT_VALIDATED:
            return Result(29, Kind.FAULT, reason=reason, value=0x404, value2=op.va)
    info = error | BIT_US | (BIT_WALK if access in WALKS else BIT_FINAL)
    info |= (BIT_ID if access == AccessKind.FETCH else 0) | (BIT_ENC if private else 0)
    info |= (BIT_SIZEM if cell == "SZM" else 0) | (BIT_VMPL if cell == "vpl" else 0)
    info |= BIT_SSS if cell == "vpl" and access == AccessKind.SHADOW_STACK else 0
    return Result(0x400, Kind.NPF, reason=reason, value=info, value2=op.gpa)


def rmpread_result(page: Layout, op: Op) -> Result:
    """rmp §1.5: the entry of the page itself; bit 1 of byte 9 for an aligned page with other assigned ones."""
    own = page.own
    region = own.subpages > 0 and page.pfn == REGION
    second = own.assigned | (own.size | region << 1) << 8 | own.immutable << 16 | own.asid << 32
    return Result(0, Kind.CODE, value=own.gpa, value2=second)


def rmpquery_result(page: Layout, op: Op) -> Result:
    """rmp §1.5: the size; RDX: VMPL, its permission byte, vmsa."""
    entry = page.entries[page.governing]
    vmpl = op.rdx & 0xFF
    return Result(0, Kind.CODE, value=entry.size, value2=vmpl | (entry.hi >> 8 * vmpl & 0xFF) << 8 | entry.vmsa << 16)


def allowed(page: Layout, op: Op) -> Result:
    return Result(0, Kind.ALLOWED)


def code_0(page: Layout, op: Op) -> Result:
    return Result(0, Kind.CODE)


def status_0(page: Layout, op: Op) -> Result:
    return Result(0, Kind.FIRMWARE)


@dataclass(frozen=True)
class Action:
    """What is done to a page."""

    op: Callable[[Layout], Op]
    effect: Effect = nothing
    success: Callable[[Layout, Op], Result] = code_0
    to: str = ""
    """The state that ``*`` in a cell stands for."""
    given: Callable[[Layout], Given] = field(default=lambda page: Given())
    partner: dict[int, Entry] = field(default_factory=dict)
    vmsa: bool = False
    """The page's entry has vmsa set."""
    split: bool = False
    """The direct map has small pages there."""


# --- the actions ---


def asked(page: Layout, new: Entry) -> Entry:
    """RMPUPDATE's input: ``new``, whose gpa 1 stands for the one that the page has already."""
    return alter(new, gpa=gpa_of(page.pfn)) if new.gpa == 1 else new


def rmpupdate(new: Entry, to: str = "", **args: int) -> Action:
    def op(page: Layout) -> Op:
        wanted = asked(page, new)
        return make_op(
            "RMPUPDATE",
            pa=page.pfn << 12,
            gpa=wanted.gpa,
            assigned=wanted.assigned,
            size=wanted.size,
            immutable=wanted.immutable,
            asid=wanted.asid,
            **args,
        )

    return Action(op, rmpupdate_effect(new), to=to)


def insn(name: str, success: Callable[[Layout, Op], Result] = code_0, effect: Effect = nothing, **args: int) -> Action:
    """PSMASH and RMPREAD."""
    return Action(lambda page: make_op(name, pa=page.pfn << 12, **args), effect, success)


def guest_insn(
    name: str,
    effect: Effect = nothing,
    success: Callable[[Layout, Op], Result] = code_0,
    vmsa: bool = False,
    **args: int,
) -> Action:
    """PVALIDATE, RMPADJUST, RMPQUERY of the page's own guest through a 4K mapping unless told otherwise."""

    def op(page: Layout) -> Op:
        defaults = {"gva": GVA, "pa": page.pfn << 12, "gpa": gpa_of(page.pfn), "asid": ASID, "level": 1}
        return make_op(name, **(defaults | args))

    return Action(op, effect, success, vmsa=vmsa)


def access(
    who: Who, kind: AccessKind = AccessKind.READ, vmsa: bool = False, next_page: bool = False, **args: int
) -> Action:
    def op(page: Layout) -> Op:
        pfn = page.pfn + next_page
        defaults = {"pa": pfn << 12, "level": 1, "gpa": gpa_of(pfn), "asid": ASID, "gva": GVA}
        return make_op("access", **({"who": who, "access": kind} | defaults | args))

    return Action(op, success=allowed, vmsa=vmsa)


def command(
    name: str,
    effect: Effect = nothing,
    given: Callable[[Layout], Given] | Given | None = None,
    partner: dict[int, Entry] | None = None,
    page_arg: str = "pa",
    low: int = 0,
    **args: int,
) -> Action:
    """A firmware command; ``page_arg`` is the argument that the page's address is, ``low`` is added to it."""

    def op(page: Layout) -> Op:
        own = {page_arg: page.pfn << 12 | low} if page_arg else {}
        return make_op(name, **(own | args))

    before = given if callable(given) else lambda page: given or Given()
    return Action(op, effect, status_0, given=before, partner=partner or {})


def using(action: Action, pfn: int | None = None) -> Action:
    """The same with the page (or a frame of its region) in use as a VMCB."""
    return replace(
        action, given=lambda page: Given(in_use=((page.pfn if pfn is None or page.column == "Df" else pfn, 0, 0),))
    )


def not_ready(action: Action) -> Action:
    return replace(action, given=lambda page: Given(ready=False))


def as_context(asid: int) -> Callable[[Layout], Given]:
    """The page is in the list of contexts, whatever its entry says (one that is not covered cannot be)."""

    def given(page: Layout) -> Given:
        rows = Given().contexts
        return Given(contexts=rows if page.column == "Df" else tuple(sorted((*rows, (page.pfn, asid)))))

    return given


GVA = 0x7F00_0020_0000  # 2 MiB-aligned
GVA_ODD = GVA + 0x3000
TARGETS = {
    "Hv": Entry(),
    "GI": Entry(assigned=1, asid=6, gpa=0x6000_0000),
    "PG": Entry(assigned=1, asid=6, gpa=0x6000_0000, immutable=1),
    "Fw": Entry(assigned=1, immutable=1),
    "Rc": Entry(assigned=1),
}
"""Inputs of RMPUPDATE by the state that they lead to."""


def to_each(size: int, change: Callable[[Action], Action] = lambda action: action) -> tuple[Action, ...]:
    return tuple(change(rmpupdate(alter(new, size=size), to=column)) for column, new in TARGETS.items())


SAME = Entry(assigned=1, asid=ASID, gpa=1)
ONLY_IMMUTABLE = alter(SAME, immutable=1)
GCTX = CONTEXT << 12
LAUNCH = {"gctx": GCTX, "type": 1, "vmpl1": 7, "vmpl2": 1, "vmpl3": 2}
OUTSIDE = UNCOVERED_PAGE + 1
RECORD_4K = (RECORD, CONTEXT, 3, 0x9876_5000, 0x0102_041F)
RECORD_OUT = (RECORD, CONTEXT, 0, 0x9876_5000, 0x0102_041F)
RECORD_2M = (RECORD, CONTEXT, 5, 0x8000_0000, 0x0102_041F)
RECORD_PAGE = (RECORD, CONTEXT, 8, 0, 0)


def region_2m(entry: Entry) -> dict[int, Entry]:
    """The region from 0x400 as one 2M entry."""
    return {pfn: INNER for pfn in range(0x401, 0x600)} | {0x400: alter(entry, size=1)}


PG_2M = region_2m(alter(PRE_GUEST, gpa=0x8000_0000))
PS_2M = region_2m(alter(PRE_SWAP, gpa=0x8000_0000))
FW_2M = region_2m(LOCKED)


def move(
    src: int | None, dst: int | None, size: int = 0, gctx: int = CONTEXT, partner: dict[int, Entry] | None = None
) -> Action:
    """SNP_PAGE_MOVE; ``None``: the page in question."""

    def op(page: Layout) -> Op:
        from_, to = (page.pfn if pfn is None else pfn for pfn in (src, dst))
        return make_op("SNP_PAGE_MOVE", gctx=gctx << 12, src=from_ << 12, dst=to << 12, size=size)

    return Action(op, move_effect(src, dst), status_0, partner=partner or {})


def swap(
    name: str,
    effect: Effect,
    src: int | None = None,
    dst: int | None = None,
    mdata: int | None = MDATA_PAGE,
    size: int = 0,
    gctx: int = CONTEXT,
    record: tuple[int, int, int, int, int] | None = None,
    partner: dict[int, Entry] | None = None,
) -> Action:
    """SNP_PAGE_SWAP_OUT and SNP_PAGE_SWAP_IN; ``None``: the page in question."""

    def op(page: Layout) -> Op:
        from_, to, where = (page.pfn if pfn is None else pfn for pfn in (src, dst, mdata))
        return make_op(name, gctx=gctx << 12, src=from_ << 12, dst=to << 12, mdata=where << 12 | 0x40, size=size)

    given = Given(records=(record,) if record else ())
    return Action(op, effect, status_0, given=lambda page: given, partner=partner or {})


OUT, IN = "SNP_PAGE_SWAP_OUT", "SNP_PAGE_SWAP_IN"
VMPL_PAIRS = [(vmpl, target) for vmpl in range(4) for target in range(4)]

ACTIONS: dict[str, tuple[Action, ...]] = {
    # rmp §2.2
    "RMPUPDATE 4K": to_each(0),
    "RMPUPDATE 2M": to_each(1),
    "RMPUPDATE 4K, same fields": (rmpupdate(SAME),),
    "RMPUPDATE 2M, same fields": (rmpupdate(alter(SAME, size=1)),),
    "RMPUPDATE 4K, immutable only": (rmpupdate(ONLY_IMMUTABLE),),
    "RMPUPDATE 2M, immutable only": (rmpupdate(alter(ONLY_IMMUTABLE, size=1)),),
    "RMPUPDATE 4K, bad input": (
        rmpupdate(Entry(immutable=1)),
        rmpupdate(Entry(asid=ASID)),
        rmpupdate(Entry(asid=ASID, immutable=1)),
    ),
    "RMPUPDATE 2M, bad input": (rmpupdate(Entry(size=1, immutable=1)), rmpupdate(Entry(size=1, asid=1))),
    "RMPUPDATE 4K, in a guest": (rmpupdate(TARGETS["GI"], guest=1), rmpupdate(Entry(asid=1), guest=1)),
    "RMPUPDATE 4K, at CPL 3": (rmpupdate(TARGETS["GI"], user=1), rmpupdate(Entry(), user=1, guest=1)),
    "RMPUPDATE 4K, page in use": to_each(0, using),
    "RMPUPDATE 4K, next page in use": to_each(0, lambda action: using(action, REGION + 0x1B3)),
    "RMPUPDATE 2M, a page in use": to_each(1, lambda action: using(action, REGION + 0x1B3)),
    # rmp §2.3, §2.4
    "PSMASH": (insn("PSMASH", effect=psmash_effect),),
    "PSMASH, a page in use": (using(insn("PSMASH", effect=psmash_effect), REGION + 0x1B3),),
    "PSMASH, in a guest": (insn("PSMASH", guest=1),),
    "PSMASH, at CPL 3": (insn("PSMASH", user=1),),
    "RMPREAD": (insn("RMPREAD", rmpread_result),),
    "RMPREAD, in a guest": (insn("RMPREAD", guest=1),),
    "RMPREAD, at CPL 3": (insn("RMPREAD", user=1),),
    # rmp §2.5
    "PVALIDATE 4K": (
        guest_insn("PVALIDATE", governing_effect(validated=1), rcx=0, rdx=1),
        guest_insn("PVALIDATE", governing_effect(validated=1), rcx=0, rdx=1, gva=GVA_ODD),
        # only ECX and EDX count
        guest_insn("PVALIDATE", governing_effect(validated=1), rcx=1 << 40, rdx=1 << 32 | 1),
    ),
    "PVALIDATE 4K, nested 2M": (
        guest_insn("PVALIDATE", governing_effect(validated=1), rcx=0, rdx=1, level=2),
        guest_insn("PVALIDATE", governing_effect(validated=1), rcx=0, rdx=1, level=3),
    ),
    "PVALIDATE 4K, rescind": (guest_insn("PVALIDATE", governing_effect(validated=0), rcx=0, rdx=0),),
    "PVALIDATE 2M": (
        guest_insn("PVALIDATE", governing_effect(validated=1), rcx=1, rdx=1, level=2),
        guest_insn("PVALIDATE", governing_effect(validated=1), rcx=1, rdx=1, level=3),
    ),
    "PVALIDATE 2M, rescind": (guest_insn("PVALIDATE", governing_effect(validated=0), rcx=1, rdx=0, level=2),),
    "PVALIDATE 2M, nested 4K": (guest_insn("PVALIDATE", rcx=1, rdx=1, level=1),),
    "PVALIDATE, VMPL 1 to 3": tuple(guest_insn("PVALIDATE", rcx=0, rdx=1, vmpl=vmpl) for vmpl in (1, 2, 3)),
    "PVALIDATE, plain guest": (guest_insn("PVALIDATE", rcx=0, rdx=1, plain=1, user=1, vmpl=1),),
    "PVALIDATE, at CPL 3": (guest_insn("PVALIDATE", rcx=2, rdx=1, user=1),),
    "PVALIDATE, bad input": (
        guest_insn("PVALIDATE", rcx=2, rdx=1),
        guest_insn("PVALIDATE", rcx=0, rdx=2),
        guest_insn("PVALIDATE", rcx=0x8000_0000, rdx=0),
        guest_insn("PVALIDATE", rcx=0, rdx=0x8000_0001),
        guest_insn("PVALIDATE", rcx=1, rdx=1, gva=GVA_ODD, level=2),
    ),
    "PVALIDATE, another ASID": (
        guest_insn("PVALIDATE", rcx=0, rdx=1, asid=6),
        guest_insn("PVALIDATE", rcx=0, rdx=1, asid=0),
    ),
    "PVALIDATE, another GPA": (guest_insn("PVALIDATE", rcx=0, rdx=1, gpa=GPA - 0x1000),),
    # rmp §2.6
    "RMPADJUST 4K": tuple(
        guest_insn("RMPADJUST", permission_effect(target, 1, vmsa=0), rcx=0, rdx=0x100 | target) for target in (1, 2, 3)
    ),
    "RMPADJUST 4K, VMPL 1 and 2": tuple(
        guest_insn("RMPADJUST", permission_effect(target, 1), vmsa=True, rcx=0, rdx=0x100 | target, vmpl=vmpl)
        for vmpl, target in VMPL_PAIRS
        if 0 < vmpl < target
    ),
    "RMPADJUST 4K, to VMSA": (guest_insn("RMPADJUST", permission_effect(1, 0x1F, vmsa=1), rcx=0, rdx=0x1_1F01),),
    "RMPADJUST 4K, VMPL 1, to VMSA": (guest_insn("RMPADJUST", permission_effect(2, 3), rcx=0, rdx=0x1_0302, vmpl=1),),
    "RMPADJUST 4K, nested 2M": (guest_insn("RMPADJUST", permission_effect(1, 1), rcx=0, rdx=0x101, level=2),),
    "RMPADJUST 2M": (guest_insn("RMPADJUST", permission_effect(1, 1), rcx=1, rdx=0x101, level=2),),
    "RMPADJUST, target not lower": tuple(
        guest_insn("RMPADJUST", rcx=0, rdx=0x100 | target, vmpl=vmpl) for vmpl, target in VMPL_PAIRS if target <= vmpl
    ),
    "RMPADJUST, more than it holds": (
        guest_insn("RMPADJUST", rcx=0, rdx=0x0402, vmpl=1),
        guest_insn("RMPADJUST", rcx=0, rdx=0x0203, vmpl=2),
        guest_insn("RMPADJUST", rcx=0, rdx=0x1003, vmpl=2),
    ),
    "RMPADJUST, bad input": (
        guest_insn("RMPADJUST", rcx=2, rdx=0x101),
        guest_insn("RMPADJUST", rcx=1 << 63, rdx=0x101),
        guest_insn("RMPADJUST", rcx=0, rdx=0x2_0101),
        guest_insn("RMPADJUST", rcx=0, rdx=1 << 63 | 0x101),
        guest_insn("RMPADJUST", rcx=0, rdx=0x2001),
        guest_insn("RMPADJUST", rcx=0, rdx=0x8001),
        guest_insn("RMPADJUST", rcx=0, rdx=0x104),
        guest_insn("RMPADJUST", rcx=1, rdx=0x101, gva=GVA_ODD, level=2),
        guest_insn("RMPADJUST", rcx=2, rdx=0x100, vmpl=3),
    ),
    "RMPADJUST, plain guest": (guest_insn("RMPADJUST", rcx=0, rdx=0x101, plain=1, user=1),),
    "RMPADJUST, at CPL 3": (guest_insn("RMPADJUST", rcx=0, rdx=0x101, user=1),),
    # rmp §2.7
    "RMPQUERY, nested 4K": tuple(
        guest_insn("RMPQUERY", success=rmpquery_result, rdx=target, vmpl=vmpl)
        for vmpl, target in VMPL_PAIRS
        if vmpl <= target
    ),
    "RMPQUERY, nested 2M": (guest_insn("RMPQUERY", success=rmpquery_result, rdx=1, level=2),),
    "RMPQUERY of a VMSA": (guest_insn("RMPQUERY", success=rmpquery_result, vmsa=True, rdx=0),),
    "RMPQUERY, target higher": tuple(
        guest_insn("RMPQUERY", rdx=target, vmpl=vmpl) for vmpl, target in VMPL_PAIRS if target < vmpl
    ),
    "RMPQUERY, no such VMPL": (guest_insn("RMPQUERY", rdx=4), guest_insn("RMPQUERY", rdx=0xFF, vmpl=3)),
    "RMPQUERY, plain guest": (guest_insn("RMPQUERY", rdx=0, plain=1, user=1),),
    "RMPQUERY, at CPL 3": (guest_insn("RMPQUERY", rdx=0, user=1),),
    # rmp §3.2: the host, guests without SNP, devices, the AMD-SP
    "never checked": (
        access(Who.HOST),
        access(Who.HOST, AccessKind.FETCH, level=3),
        access(Who.PLAIN),
        access(Who.PLAIN, AccessKind.FETCH, c=1),
        access(Who.SNP, c=0, vmpl=3),
        access(Who.IOMMU),
        access(Who.PSP, AccessKind.WRITE),
        access(Who.PSP, AccessKind.READ, level=2),
    ),
    "write, 4K mapping": (
        access(Who.HOST, AccessKind.WRITE),
        access(Who.HOST, AccessKind.WALK),
        access(Who.HOST, AccessKind.WALK_WRITE, level=3),
        access(Who.PLAIN, AccessKind.WRITE),
        access(Who.PLAIN, AccessKind.WRITE, c=1),
        access(Who.PLAIN, AccessKind.WALK),
        access(Who.PLAIN, AccessKind.WALK_WRITE, level=2),
        access(Who.SNP, AccessKind.WRITE, c=0),
        access(Who.IOMMU, AccessKind.WRITE),
    ),
    "write, 2M mapping": (
        access(Who.HOST, AccessKind.WRITE, level=2),
        access(Who.HOST, AccessKind.WRITE, level=3),
        access(Who.PLAIN, AccessKind.WRITE, level=2),
        access(Who.PLAIN, AccessKind.WRITE, level=3),
        access(Who.SNP, AccessKind.WRITE, c=0, level=2),
        access(Who.IOMMU, AccessKind.WRITE, level=2),
    ),
    "write to the next page, 4K mapping": (
        access(Who.HOST, AccessKind.WRITE, next_page=True),
        access(Who.IOMMU, AccessKind.WRITE, next_page=True),
        access(Who.HOST, AccessKind.WALK_WRITE, next_page=True, level=2),
    ),
    "write to the next page, 2M mapping": (
        access(Who.HOST, AccessKind.WRITE, next_page=True, level=2),
        access(Who.HOST, AccessKind.WRITE, next_page=True, level=3),
        access(Who.PLAIN, AccessKind.WRITE, next_page=True, level=2),
        access(Who.SNP, AccessKind.WRITE, next_page=True, c=0, level=3),
        access(Who.IOMMU, AccessKind.WRITE, next_page=True, level=2),
    ),
    "use as VMCB, AVIC, plain VMSA, save area": (
        access(Who.VMCB),
        access(Who.AVIC),
        access(Who.VMSA_PLAIN),
        access(Who.HSAVE),
        access(Who.VMSAVE),
    ),
    # rmp §3.2, §3.3: an SNP guest's private accesses
    "private, permitted, 4K mapping": (
        *(access(Who.SNP, kind, c=1) for kind in AccessKind),
        access(Who.SNP, AccessKind.FETCH, c=0),
        access(Who.SNP, AccessKind.FETCH, c=1, user=1),
        access(Who.SNP, AccessKind.WALK, c=0),
        access(Who.SNP, AccessKind.READ, c=1, vmpl=1),
        access(Who.SNP, AccessKind.WRITE, c=1, vmpl=1),
        access(Who.SNP, AccessKind.WALK_WRITE, c=1, vmpl=1),
        access(Who.SNP, AccessKind.READ, c=1, vmpl=2),
        access(Who.SNP, AccessKind.WALK, c=1, vmpl=2),
    ),
    "private, permitted, 2M mapping": (
        access(Who.SNP, AccessKind.READ, c=1, level=2),
        access(Who.SNP, AccessKind.WRITE, c=1, level=3),
        access(Who.SNP, AccessKind.FETCH, c=1, level=2),
    ),
    "private, not permitted": (
        access(Who.SNP, AccessKind.FETCH, c=1, vmpl=1),
        access(Who.SNP, AccessKind.FETCH, c=1, vmpl=1, user=1),
        access(Who.SNP, AccessKind.SHADOW_STACK, c=1, vmpl=1),
        access(Who.SNP, AccessKind.WRITE, c=1, vmpl=2),
        access(Who.SNP, AccessKind.WALK_WRITE, c=1, vmpl=2),
        *(access(Who.SNP, kind, c=1, vmpl=3) for kind in AccessKind),
    ),
    "private, another ASID": (access(Who.SNP, AccessKind.READ, c=1, asid=6), access(Who.SNP, c=1, asid=0)),
    "private, another GPA": (access(Who.SNP, AccessKind.WRITE, c=1, gpa=GPA - 0x1000),),
    "use as VMSA": (access(Who.VMSA_SNP),),
    "use as VMSA, vmsa set": (access(Who.VMSA_SNP, vmsa=True),),
    # through the direct map
    "host_read": (
        Action(lambda page: make_op("host_read", pfn=page.pfn), success=lambda page, op: Result(0, Kind.ALLOWED, 2)),
    ),
    "host_write, 2M pages": (
        Action(lambda page: make_op("host_write", pfn=page.pfn), success=lambda page, op: Result(0, Kind.ALLOWED, 2)),
    ),
    "host_write to the next page, 2M pages": (
        Action(
            lambda page: make_op("host_write", pfn=page.pfn + 1), success=lambda page, op: Result(0, Kind.ALLOWED, 2)
        ),
    ),
    "host_write to the next page, 4K pages": (
        Action(
            lambda page: make_op("host_write", pfn=page.pfn + 1),
            success=lambda page, op: Result(0, Kind.ALLOWED, 1),
            split=True,
        ),
    ),
    "host_write, 4K pages": (
        Action(
            lambda page: make_op("host_write", pfn=page.pfn),
            success=lambda page, op: Result(0, Kind.ALLOWED, 1),
            split=True,
        ),
    ),
    # rmp §4.2: the AMD-SP
    "SNP_INIT": (not_ready(command("SNP_INIT", init_effect, page_arg="")),),
    "SNP_INIT, again": (command("SNP_INIT", page_arg=""),),
    "SNP_SHUTDOWN with IOMMU": (command("SNP_SHUTDOWN", shutdown_effect(1), page_arg="", iommu=1),),
    "SNP_SHUTDOWN": (command("SNP_SHUTDOWN", shutdown_effect(0), page_arg=""),),
    "not ready": tuple(
        not_ready(action)
        for action in (
            command("SNP_SHUTDOWN", page_arg=""),
            command("SNP_GCTX_CREATE", page_arg="gctx"),
            command("SNP_ACTIVATE", page_arg="gctx", asid=9),
            command("SNP_DECOMMISSION", page_arg="gctx"),
            command("SNP_LAUNCH_UPDATE", **LAUNCH, size=0),
            command("SNP_PAGE_RECLAIM"),
            command("SNP_PAGE_SET_STATE", pages=512),
            move(None, PRE_GUEST_PAGE),
            command("SNP_PAGE_UNSMASH"),
            command("SNP_MD_INIT", gctx=GCTX),
            swap(OUT, nothing, dst=FIRMWARE_PAGE),
            swap(IN, nothing, src=OUTSIDE),
        )
    ),
    "SNP_GCTX_CREATE": (command("SNP_GCTX_CREATE", context_effect(0, vmsa=1), page_arg="gctx"),),
    "SNP_ACTIVATE": (command("SNP_ACTIVATE", context_effect(9), given=as_context(0), page_arg="gctx", asid=9),),
    "SNP_DECOMMISSION": (
        command("SNP_DECOMMISSION", context_effect(None, vmsa=0), given=as_context(0), page_arg="gctx"),
        command("SNP_DECOMMISSION", context_effect(None, vmsa=0), given=as_context(9), page_arg="gctx"),
    ),
    "a page that is no context": (
        command("SNP_ACTIVATE", page_arg="gctx", asid=9),
        command("SNP_DECOMMISSION", page_arg="gctx"),
        command("SNP_LAUNCH_UPDATE", page_arg="gctx", pa=PRE_GUEST_PAGE << 12, size=0, type=1),
        command("SNP_MD_INIT", page_arg="gctx", pa=FIRMWARE_PAGE << 12),
    ),
    "SNP_LAUNCH_UPDATE 4K": (
        command("SNP_LAUNCH_UPDATE", launch_effect(), **LAUNCH, size=0),
        *(command("SNP_LAUNCH_UPDATE", launch_effect(), **(LAUNCH | {"type": kind}), size=0) for kind in (3, 4, 5, 6)),
        command("SNP_LAUNCH_UPDATE", launch_effect(vmsa=1), **(LAUNCH | {"type": 2}), size=0),
    ),
    "SNP_LAUNCH_UPDATE 2M": tuple(
        command("SNP_LAUNCH_UPDATE", launch_effect(), **(LAUNCH | {"type": kind}), size=1) for kind in (1, 3, 4)
    ),
    "SNP_LAUNCH_UPDATE 2M, 4K only": tuple(
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"type": kind}), size=1) for kind in (2, 5, 6)
    ),
    "SNP_LAUNCH_UPDATE 4K, another guest": (
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"gctx": CONTEXT_7 << 12}), size=0),
    ),
    "SNP_LAUNCH_UPDATE, not activated": (
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"gctx": CONTEXT_IDLE << 12}), size=0),
    ),
    "SNP_LAUNCH_UPDATE, bad parameter": (
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"type": 0}), size=0),
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"type": 7}), size=0),
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"vmpl1": 0x20}), size=0),
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"vmpl3": 0x80}), size=1),
    ),
    "SNP_LAUNCH_UPDATE, no context": (
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"gctx": NO_CONTEXT << 12}), size=0),
        command("SNP_LAUNCH_UPDATE", **(LAUNCH | {"gctx": FIRMWARE_PAGE << 12}), size=1),
    ),
    "SNP_PAGE_RECLAIM 4K": (command("SNP_PAGE_RECLAIM", reclaim_effect),),
    "SNP_PAGE_RECLAIM 2M": (command("SNP_PAGE_RECLAIM", reclaim_effect, low=1),),
    "bits below the page": (
        command("SNP_PAGE_RECLAIM", low=2),
        command("SNP_PAGE_RECLAIM", low=0x801),
        command("SNP_GCTX_CREATE", page_arg="gctx", low=1),
        command("SNP_ACTIVATE", page_arg="gctx", low=0x800, asid=9),
        command("SNP_LAUNCH_UPDATE", **LAUNCH, size=0, low=1),
        command("SNP_PAGE_SET_STATE", pages=512, low=0x10),
        command("SNP_PAGE_UNSMASH", low=0x20),
        command("SNP_MD_INIT", gctx=GCTX, low=0x40),
    ),
    "SNP_PAGE_SET_STATE": (command("SNP_PAGE_SET_STATE", set_state_effect, pages=512),),
    "SNP_PAGE_SET_STATE, bad length": tuple(
        command("SNP_PAGE_SET_STATE", pages=pages) for pages in (0, 1, 511, 513, (1 << 20) + 512, 1 << 63)
    ),
    "SNP_PAGE_MOVE 4K to Pre-Guest": (move(None, PRE_GUEST_PAGE),),
    "SNP_PAGE_MOVE 4K to Firmware": (move(None, FIRMWARE_PAGE),),
    "SNP_PAGE_MOVE 4K from Pre-Guest": (move(PRE_GUEST_PAGE, None),),
    "SNP_PAGE_MOVE 4K from Pre-Swap": (move(PRE_SWAP_PAGE, None),),
    "SNP_PAGE_MOVE 4K from Metadata": (move(METADATA_PAGE, None),),
    "SNP_PAGE_MOVE 4K to itself": (move(None, None),),
    "SNP_PAGE_MOVE 4K, another guest": (move(None, PRE_GUEST_PAGE, gctx=CONTEXT_7),),
    "SNP_PAGE_MOVE 4K to Firmware, another guest": (move(None, FIRMWARE_PAGE, gctx=CONTEXT_7),),
    "SNP_PAGE_MOVE 4K, not activated": (move(None, PRE_GUEST_PAGE, gctx=CONTEXT_IDLE),),
    "SNP_PAGE_MOVE 2M to Pre-Guest": (move(None, 0x400, size=1, partner=PG_2M),),
    "SNP_PAGE_MOVE 2M to Firmware": (move(None, 0x400, size=1, partner=FW_2M),),
    "SNP_PAGE_MOVE 2M from Pre-Swap": (move(0x400, None, size=1, partner=PS_2M),),
    "SNP_PAGE_UNSMASH": (command("SNP_PAGE_UNSMASH", unsmash_effect),),
    "SNP_MD_INIT": (command("SNP_MD_INIT", own_effect(gpa=METADATA.gpa), gctx=GCTX),),
    "SNP_PAGE_SWAP_OUT 4K": (
        swap(OUT, swap_out_effect(), dst=FIRMWARE_PAGE),
        swap(OUT, swap_out_effect(), dst=OUTSIDE),
    ),
    "SNP_PAGE_SWAP_OUT 2M": (swap(OUT, swap_out_effect(), dst=0x400, size=1, partner=FW_2M),),
    "SNP_PAGE_SWAP_OUT 4K, another guest": (swap(OUT, nothing, dst=FIRMWARE_PAGE, gctx=CONTEXT_7),),
    "SNP_PAGE_SWAP_OUT 4K, record exists": (swap(OUT, nothing, dst=FIRMWARE_PAGE, record=RECORD_4K),),
    "SNP_PAGE_SWAP_OUT 4K into": (swap(OUT, swap_out_effect(src=PRE_SWAP_PAGE), src=PRE_SWAP_PAGE),),
    "SNP_PAGE_SWAP_OUT 4K, record in": (
        swap(OUT, swap_out_effect(src=PRE_GUEST_PAGE, mdata=None), src=PRE_GUEST_PAGE, dst=FIRMWARE_PAGE, mdata=None),
    ),
    "SNP_PAGE_SWAP_IN 4K, validated": (swap(IN, swap_in_effect, src=OUTSIDE, record=RECORD_4K),),
    "SNP_PAGE_SWAP_IN 4K, not validated": (swap(IN, swap_in_effect, src=FIRMWARE_PAGE, record=RECORD_OUT),),
    "SNP_PAGE_SWAP_IN 4K, metadata": (swap(IN, swap_in_effect, src=OUTSIDE, record=RECORD_PAGE),),
    "SNP_PAGE_SWAP_IN 2M, validated": (
        swap(IN, swap_in_effect, src=UNCOVERED_REGION + 0x200, size=1, record=RECORD_2M),
    ),
    "SNP_PAGE_SWAP_IN 4K, record of 2M": (swap(IN, nothing, src=OUTSIDE, record=RECORD_2M),),
    "SNP_PAGE_SWAP_IN 4K, no record": (swap(IN, nothing, src=OUTSIDE),),
    "SNP_PAGE_SWAP_IN 4K, another guest": (swap(IN, nothing, src=OUTSIDE, gctx=CONTEXT_7, record=RECORD_4K),),
}

TABLE = """
action                                      | shapes       | Df  Hv  Hf  Fw  Cx  Md  Rc  PG  PS  GI  GV  Fi  In  Im  Iu

RMPUPDATE 4K                                | 4K head full | 1   *   2   2   2   2   *   2   2   *   *   2   *   2   *
RMPUPDATE 4K                                | 2M           | -   -   -   2   -   2   4   2   2   4   4   2   4   2   -
RMPUPDATE 4K                                | inner        | -   -   -   4   -   4   4   4   4   4   4   4   4   4   -
RMPUPDATE 2M                                | 4K           | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
RMPUPDATE 2M                                | head         | 1   *   2   2   2   2   *   2   2   *   *   2   *   2   *
RMPUPDATE 2M                                | full         | -   *   2   2   2   2   4   2   2   4   4   2   4   2   *
RMPUPDATE 2M                                | 2M           | -   -   -   2   -   2   *   2   2   *   *   2   *   2   -
RMPUPDATE 2M                                | inner        | -   -   -   1   -   1   1   1   1   1   1   1   1   1   -
RMPUPDATE 4K, same fields                   | 4K head full | 1   GI  2   2   2   2   GI  2   2   GI  GV  2   GI  2   GI
RMPUPDATE 4K, same fields                   | 2M           | -   -   -   2   -   2   4   2   2   4   4   2   4   2   -
RMPUPDATE 4K, same fields                   | inner        | -   -   -   4   -   4   4   4   4   4   4   4   4   4   -
RMPUPDATE 2M, same fields                   | head         | 1   GI  2   2   2   2   GI  2   2   GI  GI  2   GI  2   GI
RMPUPDATE 2M, same fields                   | 2M           | -   -   -   2   -   2   GI  2   2   GI  GV  2   GI  2   -
RMPUPDATE 4K, immutable only                | 4K head full | 1   PG  2   2   2   2   PG  2   2   PG  PS  2   PG  2   PG
RMPUPDATE 4K, immutable only                | 2M           | -   -   -   2   -   2   4   2   2   4   4   2   4   2   -
RMPUPDATE 2M, immutable only                | head         | 1   PG  2   2   2   2   PG  2   2   PG  PG  2   PG  2   PG
RMPUPDATE 2M, immutable only                | 2M           | -   -   -   2   -   2   PG  2   2   PG  PS  2   PG  2   -
RMPUPDATE 4K, bad input                     | 4K head full | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
RMPUPDATE 4K, bad input                     | 2M inner     | -   -   -   1   -   1   1   1   1   1   1   1   1   1   -
RMPUPDATE 2M, bad input                     | 4K head full | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
RMPUPDATE 2M, bad input                     | 2M inner     | -   -   -   1   -   1   1   1   1   1   1   1   1   1   -
RMPUPDATE 4K, in a guest                    | 4K head      | 2   2   2   2   2   2   2   2   2   2   2   2   2   2   2
RMPUPDATE 4K, in a guest                    | 2M inner     | -   -   -   2   -   2   2   2   2   2   2   2   2   2   -
RMPUPDATE 4K, at CPL 3                      | 4K head      | GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP
RMPUPDATE 4K, at CPL 3                      | 2M inner     | -   -   -   GP  -   GP  GP  GP  GP  GP  GP  GP  GP  GP  -
RMPUPDATE 4K, page in use                   | 4K head      | 1   3   2   2   2   2   3   2   2   3   3   2   3   2   3
RMPUPDATE 4K, page in use                   | 2M           | -   -   -   2   -   2   3   2   2   3   3   2   3   2   -
RMPUPDATE 4K, page in use                   | inner        | -   -   -   3   -   3   3   3   3   3   3   3   3   3   -
RMPUPDATE 4K, next page in use              | 4K head      | 1   *   2   2   2   2   *   2   2   *   *   2   *   2   *
RMPUPDATE 4K, next page in use              | 2M           | -   -   -   2   -   2   4   2   2   4   4   2   4   2   -
RMPUPDATE 2M, a page in use                 | 4K           | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
RMPUPDATE 2M, a page in use                 | head         | 1   3   2   2   2   2   3   2   2   3   3   2   3   2   3
RMPUPDATE 2M, a page in use                 | full         | -   3   2   2   2   2   3   2   2   3   3   2   3   2   3
RMPUPDATE 2M, a page in use                 | 2M           | -   -   -   2   -   2   3   2   2   3   3   2   3   2   -

PSMASH                                      | 4K           | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
PSMASH                                      | head full    | 1   7   7   7   7   7   7   7   7   7   7   7   7   7   7
PSMASH                                      | 2M           | -   -   -   7   -   7   Rc  7   7   GI  GV  7   In  7   -
PSMASH                                      | inner        | -   -   -   1   -   1   1   1   1   1   1   1   1   1   -
PSMASH, a page in use                       | 4K           | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
PSMASH, a page in use                       | head full    | 1   3   3   3   3   3   3   3   3   3   3   3   3   3   3
PSMASH, a page in use                       | 2M           | -   -   -   3   -   3   3   3   3   3   3   3   3   3   -
PSMASH, in a guest                          | 4K head      | 2   2   2   2   2   2   2   2   2   2   2   2   2   2   2
PSMASH, in a guest                          | 2M inner     | -   -   -   2   -   2   2   2   2   2   2   2   2   2   -
PSMASH, at CPL 3                            | 4K head      | GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP
PSMASH, at CPL 3                            | 2M inner     | -   -   -   GP  -   GP  GP  GP  GP  GP  GP  GP  GP  GP  -

RMPREAD                                     | 4K head full | 1   =   =   =   =   =   =   =   =   =   =   =   =   =   =
RMPREAD                                     | 2M inner     | -   -   -   =   -   =   =   =   =   =   =   =   =   =   -
RMPREAD, in a guest                         | 4K head      | 2   2   2   2   2   2   2   2   2   2   2   2   2   2   2
RMPREAD, at CPL 3                           | 4K head      | GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP

PVALIDATE 4K                                | 4K head full | unc own own own own own own imm imm GV  cf  own own own own
PVALIDATE 4K                                | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
PVALIDATE 4K, nested 2M                     | 4K head      | unc own own own own own own imm imm GV  cf  own own own own
PVALIDATE 4K, nested 2M                     | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
PVALIDATE 4K, rescind                       | 4K head      | unc own own own own own own imm imm cf  GI  own own own own
PVALIDATE 4K, rescind                       | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
PVALIDATE 2M                                | 4K head full | unc own own own own own own imm imm 6   6   own own own own
PVALIDATE 2M                                | 2M inner     | -   -   -   own -   own own imm imm GV  cf  own own own -
PVALIDATE 2M, rescind                       | 4K head      | unc own own own own own own imm imm 6   6   own own own own
PVALIDATE 2M, rescind                       | 2M inner     | -   -   -   own -   own own imm imm cf  GI  own own own -
PVALIDATE 2M, nested 4K                     | 4K head      | unc own own own own own own imm imm 6   6   own own own own
PVALIDATE 2M, nested 4K                     | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
PVALIDATE, VMPL 1 to 3                      | 4K head      | GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP
PVALIDATE, VMPL 1 to 3                      | 2M inner     | -   -   -   GP  -   GP  GP  GP  GP  GP  GP  GP  GP  GP  -
PVALIDATE, plain guest                      | 4K head      | UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD
PVALIDATE, at CPL 3                         | 4K head      | GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP
PVALIDATE, bad input                        | 4K head      | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
PVALIDATE, bad input                        | 2M inner     | -   -   -   1   -   1   1   1   1   1   1   1   1   1   -
PVALIDATE, another ASID                     | 4K head      | unc own own own own own own own own own own own own own own
PVALIDATE, another ASID                     | 2M inner     | -   -   -   own -   own own own own own own own own own -
PVALIDATE, another GPA                      | 4K head      | unc own own own own own own gpa gpa gpa gpa own own own own
PVALIDATE, another GPA                      | 2M inner     | -   -   -   own -   own own gpa gpa gpa gpa own own own -

RMPADJUST 4K                                | 4K head      | unc own own own own own own imm imm val GV  own own own own
RMPADJUST 4K                                | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
RMPADJUST 4K, VMPL 1 and 2                  | 4K head      | unc own own own own own own imm imm val GV  own own own own
RMPADJUST 4K, VMPL 1 and 2                  | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
RMPADJUST 4K, to VMSA                       | 4K head      | unc own own own own own own imm imm val GV  own own own own
RMPADJUST 4K, VMPL 1, to VMSA               | 4K head      | unc own own own own own own imm imm val GV  own own own own
RMPADJUST 4K, nested 2M                     | 4K head      | unc own own own own own own imm imm val GV  own own own own
RMPADJUST 4K, nested 2M                     | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
RMPADJUST 2M                                | 4K head      | unc own own own own own own imm imm val 6   own own own own
RMPADJUST 2M                                | 2M inner     | -   -   -   own -   own own imm imm val GV  own own own -
RMPADJUST, target not lower                 | 4K head      | 2   2   2   2   2   2   2   2   2   2   2   2   2   2   2
RMPADJUST, target not lower                 | 2M inner     | -   -   -   2   -   2   2   2   2   2   2   2   2   2   -
RMPADJUST, more than it holds               | 4K head      | unc own own own own own own imm imm val 2   own own own own
RMPADJUST, bad input                        | 4K head      | 1   1   1   1   1   1   1   1   1   1   1   1   1   1   1
RMPADJUST, bad input                        | 2M inner     | -   -   -   1   -   1   1   1   1   1   1   1   1   1   -
RMPADJUST, plain guest                      | 4K head      | UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD
RMPADJUST, at CPL 3                         | 4K head      | GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP

RMPQUERY, nested 4K                         | 4K head      | unc own own own own own own imm imm val =   own own own own
RMPQUERY, nested 4K                         | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
RMPQUERY, nested 2M                         | 4K head      | unc own own own own own own imm imm val =   own own own own
RMPQUERY, nested 2M                         | 2M inner     | -   -   -   own -   own own imm imm val =   own own own -
RMPQUERY of a VMSA                          | 4K head      | unc own own own own own own imm imm val =   own own own own
RMPQUERY, target higher                     | 4K head      | unc own own own own own own imm imm val 2   own own own own
RMPQUERY, no such VMPL                      | 4K head      | unc own own own own own own imm imm val 2   own own own own
RMPQUERY, plain guest                       | 4K head      | UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD  UD
RMPQUERY, at CPL 3                          | 4K head      | GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP  GP

never checked                               | 4K head      | =   =   =   =   =   =   =   =   =   =   =   =   =   =   =
never checked                               | 2M inner     | -   -   -   =   -   =   =   =   =   =   =   =   =   =   -
write, 4K mapping                           | 4K head      | =   =   =   asg asg asg asg asg asg asg asg asg asg asg =
write, 4K mapping                           | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -
write, 2M mapping                           | 4K head full | =   =   =   asg asg asg asg asg asg asg asg asg asg asg =
write, 2M mapping                           | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -
write to the next page, 4K mapping          | 4K head      | =   =   =   =   =   =   =   =   =   =   =   =   =   =   =
write to the next page, 4K mapping          | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -
write to the next page, 2M mapping          | 4K head      | =   =   =   nbr nbr nbr nbr nbr nbr nbr nbr nbr nbr nbr =
write to the next page, 2M mapping          | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -
use as VMCB, AVIC, plain VMSA, save area    | 4K head      | =   =   =   asg asg asg asg asg asg asg asg asg asg asg =
use as VMCB, AVIC, plain VMSA, save area    | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -

private, permitted, 4K mapping              | 4K head      | unc own own own own own own imm imm val =   own own own own
private, permitted, 4K mapping              | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
private, permitted, 2M mapping              | 4K head      | unc own own own own own own imm imm siz siz own own own own
private, permitted, 2M mapping              | 2M inner     | -   -   -   own -   own own imm imm val =   own own own -
private, not permitted                      | 4K head      | unc own own own own own own imm imm val vpl own own own own
private, not permitted                      | 2M inner     | -   -   -   own -   own own imm imm SZM SZM own own own -
private, another ASID                       | 4K head      | unc own own own own own own own own own own own own own own
private, another ASID                       | 2M inner     | -   -   -   own -   own own own own own own own own own -
private, another GPA                        | 4K head      | unc own own own own own own gpa gpa gpa gpa own own own own
private, another GPA                        | 2M inner     | -   -   -   own -   own own gpa gpa gpa gpa own own own -
use as VMSA                                 | 4K head      | unc own own own own own own imm imm nvm nvm own own own own
use as VMSA                                 | 2M inner     | -   -   -   own -   own own imm imm nvm nvm own own own -
use as VMSA, vmsa set                       | 4K head      | unc own own own own own own imm imm =   =   own own own own

host_read                                   | 4K head      | =   =   =   =   =   =   =   =   =   =   =   =   =   =   =
host_read                                   | 2M inner     | -   -   -   =   -   =   =   =   =   =   =   =   =   =   -
host_write, 2M pages                        | 4K head full | =   =   =   asg asg asg asg asg asg asg asg asg asg asg =
host_write, 2M pages                        | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -
host_write, 4K pages                        | 4K head      | =   =   =   asg asg asg asg asg asg asg asg asg asg asg =
host_write, 4K pages                        | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -
host_write to the next page, 2M pages       | 4K head      | =   =   =   nbr nbr nbr nbr nbr nbr nbr nbr nbr nbr nbr =
host_write to the next page, 2M pages       | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -
host_write to the next page, 4K pages       | 4K head      | =   =   =   =   =   =   =   =   =   =   =   =   =   =   =
host_write to the next page, 4K pages       | 2M inner     | -   -   -   asg -   asg asg asg asg asg asg asg asg asg -

SNP_INIT                                    | 4K head      | Df  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv
SNP_INIT                                    | 2M inner     | -   -   -   Hv  -   Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  Hv  -
SNP_INIT, again                             | 4K           | plt plt plt plt plt plt plt plt plt plt plt plt plt plt plt
SNP_SHUTDOWN with IOMMU                     | 4K head      | Df  Hv  Hf  Fw  Cx  Md  Rc  PG  PS  GI  GV  Rc  In  Im  Iu
SNP_SHUTDOWN with IOMMU                     | 2M           | -   -   -   Fw  -   Md  Rc  PG  PS  GI  GV  Rc  In  Im  -
SNP_SHUTDOWN                                | 4K           | Df  Hv  Hf  Fw  Cx  Md  Rc  PG  PS  GI  GV  Fi  In  Im  Iu
not ready                                   | 4K head      | plt plt plt plt plt plt plt plt plt plt plt plt plt plt plt
not ready                                   | 2M inner     | -   -   -   plt -   plt plt plt plt plt plt plt plt plt -
SNP_GCTX_CREATE                             | 4K head full | adr sta sta Cx  sta sta sta sta sta sta sta sta sta sta sta
SNP_GCTX_CREATE                             | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_GCTX_CREATE                             | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_ACTIVATE                                | 4K head      | adr gst gst gst Cx  gst gst gst gst gst gst gst gst gst gst
SNP_DECOMMISSION                            | 4K head      | adr gst gst gst Fw  gst gst gst gst gst gst gst gst gst gst
a page that is no context                   | 4K head      | adr gst gst gst gst gst gst gst gst gst gst gst gst gst gst
a page that is no context                   | 2M inner     | -   -   -   gst -   gst gst gst gst gst gst gst gst gst -
SNP_LAUNCH_UPDATE 4K                        | 4K head      | adr sta sta sta sta sta sta GV  sta sta sta sta sta sta sta
SNP_LAUNCH_UPDATE 4K                        | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_LAUNCH_UPDATE 4K                        | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_LAUNCH_UPDATE 2M                        | 4K           | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_LAUNCH_UPDATE 2M                        | head full    | adr siz siz siz siz siz siz siz siz siz siz siz siz siz siz
SNP_LAUNCH_UPDATE 2M                        | 2M           | -   -   -   sta -   sta sta GV  sta sta sta sta sta sta -
SNP_LAUNCH_UPDATE 2M                        | inner        | -   -   -   adr -   adr adr adr adr adr adr adr adr adr -
SNP_LAUNCH_UPDATE 2M, 4K only               | 4K           | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_LAUNCH_UPDATE 2M, 4K only               | head         | adr siz siz siz siz siz siz siz siz siz siz siz siz siz siz
SNP_LAUNCH_UPDATE 2M, 4K only               | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_LAUNCH_UPDATE 4K, another guest         | 4K head      | adr sta sta sta sta sta sta own sta sta sta sta sta sta sta
SNP_LAUNCH_UPDATE, not activated            | 4K head      | adr ina ina ina ina ina ina ina ina ina ina ina ina ina ina
SNP_LAUNCH_UPDATE, not activated            | 2M inner     | -   -   -   ina -   ina ina ina ina ina ina ina ina ina -
SNP_LAUNCH_UPDATE, bad parameter            | 4K head      | adr par par par par par par par par par par par par par par
SNP_LAUNCH_UPDATE, no context               | 4K head      | adr gst gst gst gst gst gst gst gst gst gst gst gst gst gst
SNP_PAGE_RECLAIM 4K                         | 4K head full | adr =   sta Rc  sta Rc  =   GI  GV  =   =   sta =   sta =
SNP_PAGE_RECLAIM 4K                         | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_RECLAIM 4K                         | inner        | -   -   -   =   -   =   =   =   =   =   =   =   =   =   -
SNP_PAGE_RECLAIM 2M                         | 4K head full | adr siz siz siz siz siz siz siz siz siz siz siz siz siz siz
SNP_PAGE_RECLAIM 2M                         | 2M           | -   -   -   Rc  -   Rc  =   GI  GV  =   =   sta =   sta -
SNP_PAGE_RECLAIM 2M                         | inner        | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
bits below the page                         | 4K head      | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
bits below the page                         | 2M inner     | -   -   -   adr -   adr adr adr adr adr adr adr adr adr -
SNP_PAGE_SET_STATE                          | 4K           | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_PAGE_SET_STATE                          | head         | adr sta sta sta sta sta sta sta sta sta sta sta sta sta sta
SNP_PAGE_SET_STATE                          | full         | -   sta sta Hf  sta sta sta sta sta sta sta sta sta sta sta
SNP_PAGE_SET_STATE                          | 2M           | -   -   -   Hf  -   sta sta sta sta sta sta sta sta sta -
SNP_PAGE_SET_STATE                          | inner        | -   -   -   adr -   adr adr adr adr adr adr adr adr adr -
SNP_PAGE_SET_STATE, bad length              | head         | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_PAGE_SET_STATE, bad length              | 2M           | -   -   -   adr -   adr adr adr adr adr adr adr adr adr -
SNP_PAGE_MOVE 4K to Pre-Guest               | 4K head full | adr sta sta sta sta sta sta GI  GI  sta sta sta sta sta sta
SNP_PAGE_MOVE 4K to Pre-Guest               | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_MOVE 4K to Pre-Guest               | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_PAGE_MOVE 4K to Firmware                | 4K head      | adr sta sta sta sta Fw  sta sta sta sta sta sta sta sta sta
SNP_PAGE_MOVE 4K from Pre-Guest             | 4K head      | adr sta sta sta sta sta sta GI  sta sta sta sta sta sta sta
SNP_PAGE_MOVE 4K from Pre-Swap              | 4K head      | adr sta sta sta sta sta sta GV  sta sta sta sta sta sta sta
SNP_PAGE_MOVE 4K from Metadata              | 4K head      | adr sta sta Md  sta sta sta sta sta sta sta sta sta sta sta
SNP_PAGE_MOVE 4K from Metadata              | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_MOVE 4K to itself                  | 4K head      | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_PAGE_MOVE 4K to itself                  | 2M           | -   -   -   adr -   adr adr adr adr adr adr adr adr adr -
SNP_PAGE_MOVE 4K, another guest             | 4K head      | adr sta sta sta sta sta sta own own sta sta sta sta sta sta
SNP_PAGE_MOVE 4K to Firmware, another guest | 4K head      | adr sta sta sta sta own sta sta sta sta sta sta sta sta sta
SNP_PAGE_MOVE 4K, not activated             | 4K head      | adr sta sta sta sta sta sta ina ina sta sta sta sta sta sta
SNP_PAGE_MOVE 2M to Pre-Guest               | 4K           | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_PAGE_MOVE 2M to Pre-Guest               | head full    | adr siz siz siz siz siz siz siz siz siz siz siz siz siz siz
SNP_PAGE_MOVE 2M to Pre-Guest               | 2M           | -   -   -   sta -   sta sta GI  GI  sta sta sta sta sta -
SNP_PAGE_MOVE 2M to Firmware                | 2M           | -   -   -   sta -   Fw  sta sta sta sta sta sta sta sta -
SNP_PAGE_MOVE 2M from Pre-Swap              | 2M           | -   -   -   sta -   sta sta GV  sta sta sta sta sta sta -
SNP_PAGE_MOVE 2M from Pre-Swap              | inner        | -   -   -   adr -   adr adr adr adr adr adr adr adr adr -
SNP_PAGE_UNSMASH                            | 4K           | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_PAGE_UNSMASH                            | head         | adr sta sta sta sta sta sta sta sta sta sta sta sta sta sta
SNP_PAGE_UNSMASH                            | full         | -   sta sta sta sta sta sta PG  PS  sta sta sta sta sta sta
SNP_PAGE_UNSMASH                            | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_UNSMASH                            | inner        | -   -   -   adr -   adr adr adr adr adr adr adr adr adr -
SNP_MD_INIT                                 | 4K head full | adr sta sta Md  sta sta sta sta sta sta sta sta sta sta sta
SNP_MD_INIT                                 | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_MD_INIT                                 | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_PAGE_SWAP_OUT 4K                        | 4K head      | adr sta sta sta sta Fw  sta PG  PG  sta sta sta sta sta sta
SNP_PAGE_SWAP_OUT 4K                        | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_SWAP_OUT 4K                        | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_PAGE_SWAP_OUT 2M                        | 4K           | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_PAGE_SWAP_OUT 2M                        | head full    | adr siz siz siz siz siz siz siz siz siz siz siz siz siz siz
SNP_PAGE_SWAP_OUT 2M                        | 2M           | -   -   -   sta -   sta sta PG  PG  sta sta sta sta sta -
SNP_PAGE_SWAP_OUT 4K, another guest         | 4K head      | adr sta sta sta sta own sta own own sta sta sta sta sta sta
SNP_PAGE_SWAP_OUT 4K, record exists         | 4K head      | adr sta sta sta sta rec sta rec rec sta sta sta sta sta sta
SNP_PAGE_SWAP_OUT 4K into                   | 4K head      | Df  sta sta Fw  sta sta sta sta sta sta sta sta sta sta sta
SNP_PAGE_SWAP_OUT 4K into                   | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_SWAP_OUT 4K into                   | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_PAGE_SWAP_OUT 4K, record in             | 4K head      | adr sta sta sta sta Md  sta sta sta sta sta sta sta sta sta
SNP_PAGE_SWAP_OUT 4K, record in             | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_PAGE_SWAP_IN 4K, validated              | 4K head      | adr sta sta sta sta sta sta PS  sta sta sta sta sta sta sta
SNP_PAGE_SWAP_IN 4K, validated              | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_SWAP_IN 4K, validated              | inner        | -   -   -   sta -   sta sta sta sta sta sta sta sta sta -
SNP_PAGE_SWAP_IN 4K, not validated          | 4K head      | adr sta sta sta sta sta sta PG  sta sta sta sta sta sta sta
SNP_PAGE_SWAP_IN 4K, metadata               | 4K head      | adr sta sta Md  sta sta sta sta sta sta sta sta sta sta sta
SNP_PAGE_SWAP_IN 4K, metadata               | 2M           | -   -   -   siz -   siz siz siz siz siz siz siz siz siz -
SNP_PAGE_SWAP_IN 2M, validated              | 4K           | adr adr adr adr adr adr adr adr adr adr adr adr adr adr adr
SNP_PAGE_SWAP_IN 2M, validated              | head full    | adr siz siz siz siz siz siz siz siz siz siz siz siz siz siz
SNP_PAGE_SWAP_IN 2M, validated              | 2M           | -   -   -   sta -   sta sta PS  sta sta sta sta sta sta -
SNP_PAGE_SWAP_IN 4K, record of 2M           | 4K head      | adr siz siz siz siz siz siz siz siz siz siz siz siz siz siz
SNP_PAGE_SWAP_IN 4K, no record              | 4K head      | adr rec rec rec rec rec rec rec rec rec rec rec rec rec rec
SNP_PAGE_SWAP_IN 4K, another guest          | 4K head      | adr rec rec rec rec rec rec rec rec rec rec rec rec rec rec
"""
"""``-``: no such entry; ``*``: the state asked for; ``=``: done, and nothing changes; ``cf``: the same with CF = 1.
A number is the code in EAX; GP and UD are exceptions.  Other words: :data:`STATUS` for firmware commands,
:data:`REASONS` for accesses and guest instructions."""


@dataclass(frozen=True)
class Row:
    """A line of the table for one shape."""

    action: str
    shape: str
    cells: dict[str, str]


def rows() -> Iterator[Row]:
    lines = [line for line in TABLE.splitlines() if line.strip()]
    assert lines[0].split("|")[2].split() == list(COLUMNS)
    for line in lines[1:]:
        action, shapes, cells = (part.strip() for part in line.split("|"))
        for shape in shapes.split():
            here = dict(zip(COLUMNS, cells.split(), strict=True))
            if shape == "full":
                here["Df"] = "-"
            yield Row(action, shape, here)


ROWS = list(rows())


def wanted(
    action: Action, page: Layout, op: Op, cell: str, entries: dict[int, Entry], given: Given
) -> tuple[Result, Change]:
    """Result and new state that a cell stands for."""
    cell = action.to if cell == "*" else cell
    if cell in ("UD", "GP"):
        return Result({"UD": 6, "GP": 13}[cell], Kind.FAULT), (entries, given)
    if cell.isdigit():
        return Result(int(cell), Kind.CODE), (entries, given)
    if cell in COLUMNS:
        return action.success(page, op), action.effect(page, entries, given)
    if cell == "=":
        return action.success(page, op), (entries, given)
    if cell == "cf":
        return Result(0, Kind.CODE, flags=ResultFlag.CF), (entries, given)
    if BY_NAME_OF_COMMAND.get(op.op):
        return Result(STATUS[cell], Kind.FIRMWARE), (entries, given)
    if op.op in (OpCode.host_read, OpCode.host_write):
        level = 1 if action.split else 2
        address = MAP.page_offset + (op.addr << 12)
        fault = Result(14, Kind.FAULT, level, reason=REASONS[cell], value=BIT_P | BIT_W | BIT_RMP, value2=address)
        return fault, (entries, given)
    return faulted(op, cell), (entries, given)


BY_NAME_OF_COMMAND = {code: code.name for code in OpCode if code.name.startswith("SNP_")}

_WORLDS: dict[tuple[str, bool], World] = {}


def world_of(backend: str, split: bool) -> World:
    """One machine for all cases of an implementation."""
    if (backend, split) not in _WORLDS:
        _WORLDS[backend, split] = World(backend, split)
    return _WORLDS[backend, split]


def differences(state: State, base: State, entries: dict[int, Entry], given: Given) -> list[str]:
    """Where the state is not as it should be, its counters left out."""
    if given.records and given.records[0][2] & 8 and len(state.records) == 1:
        # what of a metadata page's record stands in gpa and high quadword has no meaning
        given = replace(given, records=(given.records[0][:3] + state.records[0][3:],))
    should = expected_state(changed(base, counters=state.counters), entries, given)
    same = np.array_equal(state.rmp, should.rmp)
    same &= np.array_equal(state.leaves, should.leaves) and np.array_equal(state.tables, should.tables)
    lists = ("firmware_ready", "contexts", "records", "in_use", "bookkeeping")
    same &= all(getattr(state, name) == getattr(should, name) for name in lists)
    same &= (state.mapped, state.inject, state.addresses) == (should.mapped, should.inject, should.addresses)
    return [] if same else list(diff_states(state, should, "is", "should be"))[:4]


def run_case(backend: str, action: Action, row: Row, column: str) -> list[str]:
    """Put the machine into the state, act, and say what is not as the table has it."""
    page = lay(column, row.shape)
    if action.vmsa and column in ("PG", "PS", "GI", "GV"):
        entry = alter(page.entries[page.governing], vmsa=1)
        page = replace(page, entries=page.entries | {page.governing: entry})
    entries = FIXED | action.partner | page.entries
    world = world_of(backend, action.split)
    given = world.put(entries, action.given(page))
    machine = world.machine
    op = action.op(page)
    cell = row.cells[column]
    expected, (new_entries, new_given) = wanted(action, page, op, cell, entries, given)
    result = machine.apply(op)
    after = machine.state()
    problems = []
    if result != expected:
        problems.append(f"{op}: {result}, not {expected}")
    problems += [f"{op}: {line}" for line in differences(after, world.base, new_entries, new_given)]
    counted = {
        name: after.counters[name] - world.counters[name]
        for name in COUNTERS
        if after.counters[name] != world.counters[name]
    }
    world.counters = after.counters
    counts = [OpCode(op.op).name.lower()] if expected.kind == Kind.CODE else []
    if op.op in (OpCode.host_read, OpCode.host_write):
        counts.append("host_accesses")
        if expected.kind == Kind.FAULT:
            counts.append("host_faults_owner" if expected.reason == Reason.ASSIGNED else "host_faults_neighbour")
    if counted != dict.fromkeys(counts, 1):
        problems.append(f"{op}: counted {counted}")
    lo, _ = raw(new_entries.get(page.pfn, Entry()))
    to = PageState.DEFAULT if column == "Df" else page_state(lo)
    named = machine.apply(make_op("page_state", pfn=page.pfn))
    if not problems and named != Result(to, Kind.KERNEL):
        problems.append(f"state afterwards: {named}, not {to!r}")
    # what the cell says about the state has to be what the effect gives, else the table is wrong
    spoken = action.to if cell == "*" else cell
    if spoken in COLUMNS and row.shape != "inner":
        assert to == COLUMNS[spoken], f"{row.action}, {row.shape}, {column}: the effect gives {to!r}"
    if problems:
        world.now = None
    else:
        world.now = new_entries, new_given
    return [f"{column}: {problem}" for problem in problems]


CASES = [
    pytest.param(action, row, id=f"{row.action}-{row.shape}-{number}")
    for row in ROWS
    for number, action in enumerate(ACTIONS[row.action])
]


@pytest.mark.parametrize(("action", "row"), CASES)
def test_matrix(backend: str, action: Action, row: Row) -> None:
    """rmp §2, §3, §4.2: each cell of a line of the table."""
    columns = [column for column, cell in row.cells.items() if cell != "-"]
    assert set(columns) == _EXISTS[row.shape]
    problems = [problem for column in columns for problem in run_case(backend, action, row, column)]
    assert not problems, "\n".join(problems)


def test_matrix_is_complete() -> None:
    """Each action is in the table; each instruction, access and firmware command is among the actions; each state is
    left or reached by something."""
    assert {row.action for row in ROWS} == set(ACTIONS)
    assert len({(row.action, row.shape) for row in ROWS}) == len(ROWS)
    page = lay("GI", "4K")
    codes = {action.op(page).op for actions in ACTIONS.values() for action in actions}
    assert codes == {
        *(OpCode[name] for name in INSTRUCTIONS),
        *BY_NAME_OF_COMMAND,
        OpCode.access,
        OpCode.host_read,
        OpCode.host_write,
    }
    assert len(BY_NAME_OF_COMMAND) == 13
    makes = [action.op(page) for actions in ACTIONS.values() for action in actions]
    assert {op.mode & 0xFF for op in makes if op.op == OpCode.access} == set(Who)
    assert {op.mode >> 8 & 0xFF for op in makes if op.op == OpCode.access} == set(AccessKind)
    reached = {cell for row in ROWS for cell in row.cells.values()} & set(COLUMNS) | set(TARGETS)
    assert reached >= set(COLUMNS) - {"In", "Im", "Iu", "Fi"}
    cells = sum(len(ACTIONS[row.action]) * sum(cell != "-" for cell in row.cells.values()) for row in ROWS)
    assert cells > 5000


@pytest.mark.parametrize("shape", SHAPES)
def test_states_are_what_they_are_called(backend: str, shape: str) -> None:
    """rmp §4.1: the entries that the cases start from are in the states that they stand for."""
    world = world_of(backend, False)
    seen = set()
    for column in _EXISTS[shape]:
        page = lay(column, shape)
        world.put(FIXED | page.entries, Given())
        result = world.machine.apply(make_op("page_state", pfn=page.pfn))
        own = PageState.RECLAIM if shape == "inner" else COLUMNS[column]
        assert result == Result(own, Kind.KERNEL), column
        head = page.pfn if shape == "4K" else page.pfn & ~0x1FF
        seen.add(world.machine.apply(make_op("page_state", pfn=head)).ret)
    assert seen == {COLUMNS[column] for column in _EXISTS[shape]}


# --- pages that no layout above has: entries that were stored by hand, regions that are covered in part ---

IN_PART = 0x1200
"""A 2 MiB-aligned frame; of its region 256 frames are covered."""


def one_command(
    backend: str, name: str, entries: dict[int, Entry], switches: dict[str, int] | None = None, **args: int
) -> tuple[int, Host]:
    """The status of a command on a machine with these entries beside those of :data:`FIXED`, and the machine."""
    base = Host(backend, MAP, hardware="genoa", switches=switches).state()
    given = Given() if switches is None else Given(bookkeeping=())
    host = Host(
        backend,
        MAP,
        hardware="genoa",
        switches=switches,
        state=expected_state(base, FIXED | entries, given),
    )
    before = host.state()
    result = host.do(name, **args)
    if result.ret:
        assert host.state() == before
    return result.ret, host


INVALID_PAGE_STATE, INVALID_ADDRESS, INVALID_PAGE_OWNER, INVALID_PAGE_SIZE = 0x1A, 0x9, 0x1C, 0x19


def test_regions_in_part(backend: str) -> None:
    """rmp §4.2, check A: a 2 MiB page needs all of its region covered."""
    head = {IN_PART: alter(PRE_GUEST, gpa=GPA)}
    unsmash, _ = one_command(backend, "SNP_PAGE_UNSMASH", head, pa=IN_PART << 12)
    large = {"gctx": CONTEXT << 12, "type": 1, "size": 1}
    update, _ = one_command(backend, "SNP_LAUNCH_UPDATE", head, pa=IN_PART << 12, **large)
    assert (unsmash, update) == (INVALID_ADDRESS, INVALID_ADDRESS)


def test_2m_entries_off_their_line(backend: str) -> None:
    """rmp §4.2: a size of 2M at a page that is not 2 MiB-aligned, which no instruction writes."""
    off = {PAGE: alter(LOCKED, size=1)}
    reclaim, _ = one_command(backend, "SNP_PAGE_RECLAIM", off, pa=PAGE << 12 | 1)
    assert reclaim == INVALID_ADDRESS
    region = {pfn: LOCKED for pfn in range(REGION, REGION + 512)} | {REGION: alter(LOCKED, subpages=511)}
    for entries, status in ((region, 0), (region | off, INVALID_PAGE_STATE)):
        found, _ = one_command(backend, "SNP_PAGE_SET_STATE", entries, pa=REGION << 12, pages=512)
        assert found == status


def test_smashed_pages_of_a_vmsa(backend: str) -> None:
    """rmp §4.2 SNP_PAGE_UNSMASH: none of the pages is a VMSA."""
    pages = {REGION + i: alter(PRE_GUEST, gpa=GPA + (i << 12)) for i in range(512)}
    pages[REGION] = alter(pages[REGION], subpages=511)
    vmsas = {pfn: alter(entry, vmsa=1) for pfn, entry in pages.items()}
    for entries, status in ((pages, 0), (vmsas, INVALID_PAGE_STATE)):
        found, _ = one_command(backend, "SNP_PAGE_UNSMASH", entries, pa=REGION << 12)
        assert found == status


def test_unsmash_without_counters(backend: str) -> None:
    """rmp §1.6, switch bookkeeping 0: no counter is kept, so none moves."""
    pages = {REGION + i: alter(PRE_GUEST, gpa=GPA + (i << 12)) for i in range(512)}
    pages[REGION] = alter(pages[REGION], subpages=511)
    status, host = one_command(backend, "SNP_PAGE_UNSMASH", pages, {"bookkeeping": 0}, pa=REGION << 12)
    assert status == 0
    assert host.state().bookkeeping == ()


def test_metadata_of_another_guest_is_not_swapped_out(backend: str) -> None:
    """rmp §4.2 SNP_PAGE_SWAP_OUT: the owner of src, if it is Metadata, has to be gctx as well."""
    others = alter(METADATA, gpa=TAG_METADATA | CONTEXT_7 << 12)
    for entry, status in ((METADATA, 0), (others, INVALID_PAGE_OWNER)):
        found, _ = one_command(
            backend,
            "SNP_PAGE_SWAP_OUT",
            {PAGE: entry},
            gctx=CONTEXT << 12,
            src=PAGE << 12,
            dst=FIRMWARE_PAGE << 12,
            mdata=RECORD,
            size=0,
        )
        assert found == status


def test_records_that_are_moved(backend: str) -> None:
    """rmp §4.2 SNP_PAGE_MOVE: the records in src go along, all of them and no others: not those of a page before it,
    and none that SWAP_IN has taken out already."""
    metadata = {METADATA_PAGE: METADATA, PAGE: METADATA, 0: METADATA}
    swaps = ((PRE_SWAP_PAGE, MDATA_PAGE, 0x40), (PRE_GUEST_PAGE, METADATA_PAGE, 0), (PAGE, METADATA_PAGE, 0x80))
    _, host = one_command(backend, "page_state", metadata, pfn=0)
    for src, mdata, offset in swaps:
        where = {"gctx": CONTEXT << 12, "src": src << 12, "dst": FIRMWARE_PAGE << 12, "size": 0}
        assert host.do("SNP_PAGE_SWAP_OUT", **where, mdata=mdata << 12 | offset).ret == 0

    def move(src: int, dst: int) -> list[int]:
        assert host.do("SNP_PAGE_MOVE", gctx=CONTEXT << 12, src=src << 12, dst=dst << 12, size=0).ret == 0
        return [row[0] for row in host.state().records]

    def back(mdata: int, dst: int) -> list[int]:
        where = {"gctx": CONTEXT << 12, "src": OUTSIDE << 12, "dst": dst << 12, "size": 0}
        assert host.do("SNP_PAGE_SWAP_IN", **where, mdata=mdata).ret == 0
        return [row[0] for row in host.state().records]

    other = MDATA_PAGE << 12 | 0x40
    assert move(METADATA_PAGE, FIRMWARE_PAGE) == [other, FIRMWARE_PAGE << 12, FIRMWARE_PAGE << 12 | 0x80]
    assert back(FIRMWARE_PAGE << 12 | 0x80, PAGE) == [other, FIRMWARE_PAGE << 12]
    assert back(FIRMWARE_PAGE << 12, PRE_GUEST_PAGE) == [other]
    assert move(FIRMWARE_PAGE, METADATA_PAGE) == [other]
    assert back(other, PRE_SWAP_PAGE) == []
    assert move(0, FIRMWARE_PAGE) == []


def test_records_that_are_overwritten(backend: str) -> None:
    """rmp §4.2 SNP_PAGE_MOVE: the records in src come in the place of any in dst; a loaded state can have those."""
    start = one_command(backend, "page_state", {PAGE: METADATA}, pfn=0)[1].state()
    old, new = FIRMWARE_PAGE << 12, PAGE << 12
    rows = {at: (at, CONTEXT, 0, 0, at % 4096) for at in (old | 0x40, old | 0x80, new | 0x40, new | 0xC0)}
    host = Host(backend, MAP, hardware="genoa", state=replace(start, records=tuple(rows[at] for at in sorted(rows))))
    assert host.do("SNP_PAGE_MOVE", gctx=CONTEXT << 12, src=new, dst=old, size=0).ret == 0
    moved = [(old | at % 4096, *rows[at][1:]) for at in (new | 0x40, new | 0xC0)]
    assert host.state().records == tuple(moved)


def test_lists_of_the_firmware_are_in_order(backend: str) -> None:
    """§4.2: guests are found by frame and records by address, in whatever order they come and go."""
    host = Host(backend, SNP)
    firmware = {"kind": Kind.FIRMWARE, "ret": 0}

    def command(name: str, **args: int) -> dict[str, int]:
        result = host.do(name, **args)
        return {"kind": result.kind, "ret": result.ret}

    assert command("SNP_INIT") == firmware
    first, rng = 0x400, random.Random(1)
    assert host.call("rmp_mark_pages_firmware", pfn=first, pages=80) == 0
    guests = {first + frame: asid for asid, frame in enumerate(rng.sample(range(60), 60), 1)}
    for pfn, asid in guests.items():
        assert command("SNP_GCTX_CREATE", gctx=pfn << 12) == firmware
        assert command("SNP_ACTIVATE", gctx=pfn << 12, asid=asid) == firmware
    assert host.state().contexts == tuple(sorted(guests.items()))
    for pfn in rng.sample(sorted(guests), 40):
        assert command("SNP_DECOMMISSION", gctx=pfn << 12) == firmware
        assert command("SNP_DECOMMISSION", gctx=pfn << 12) != firmware
        del guests[pfn]
    assert host.state().contexts == tuple(sorted(guests.items()))

    context, asid = max(guests.items())
    for pfn in (first + 61, first + 63):
        assert command("SNP_MD_INIT", gctx=context << 12, pa=pfn << 12) == firmware
    places = [((first + 61 + page) << 12) + slot * 64 for page in (0, 2) for slot in range(64)]
    records = {}
    for number, mdata in enumerate(rng.sample(places, 100)):
        pfn = 0x800 + number
        assert host.call("rmp_make_private", pfn=pfn, gpa=pfn << 12, level=1, asid=asid, immutable=1) == 0
        swap = {"gctx": context << 12, "mdata": mdata, "size": 0}
        assert command("SNP_PAGE_SWAP_OUT", src=pfn << 12, dst=1 << 40, **swap) == firmware
        assert command("SNP_PAGE_SWAP_OUT", src=pfn << 12, dst=1 << 40, **swap) != firmware
        records[mdata] = pfn
    assert [(row[0], row[3] >> 12) for row in host.state().records] == sorted(records.items())
    for mdata, pfn in rng.sample(sorted(records.items()), 60):
        swap = {"gctx": context << 12, "mdata": mdata, "size": 0}
        assert command("SNP_PAGE_SWAP_IN", src=1 << 40, dst=pfn << 12, **swap) == firmware
        assert command("SNP_PAGE_SWAP_IN", src=1 << 40, dst=pfn << 12, **swap) != firmware
        del records[mdata]
    assert [(row[0], row[3] >> 12) for row in host.state().records] == sorted(records.items())
    assert command("SNP_PAGE_RECLAIM", pa=(first + 61) << 12) == firmware
    left = {mdata: pfn for mdata, pfn in records.items() if mdata >> 12 != first + 61}
    assert 0 < len(left) < len(records)
    assert [(row[0], row[3] >> 12) for row in host.state().records] == sorted(left.items())
