"""A kernel log in words: what happened to the RMP, who owns the page, and what to look at.

Takes any text that has such lines in it (``dmesg``, a journal, an oops in a mail); lines that say nothing about the RMP
are passed over.  Lines count together: an RMP fault, the walk and the dump after it are one story, and a failed
RMPUPDATE is explained by where the RMP lies if the log says so.  What is said follows from the rules (docs/rmp.md,
whose sections are cited); where it is a suspicion, the text says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rmpcore.decode import (
    describe_nested_fault,
    describe_page_fault,
    describe_rmp_entry,
    describe_state,
    state_name,
)
from rmpcore.loglines import parse
from rmpcore.maps import MIB, RMP_HEAD_SIZE, RST_ENTRIES
from rmpcore.ops import CODE_NAMES, LEVEL_NAMES, STATUS_NAMES
from rmpcore.page_state import PageState, page_state

REGION = 512
"""Frames of 2 MiB."""
_REGION_BYTES = 2 * MIB
_MIB_FRAMES = 256
_GUESTS = (PageState.GUEST_VALID, PageState.GUEST_INVALID, PageState.PRE_GUEST, PageState.PRE_SWAP)
_Values = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one line says, with those that belong to it."""

    line: int
    kind: str
    fields: _Values
    text: str
    look_at: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """All that a log says."""

    findings: tuple[Finding, ...]
    lines: int
    passed_over: int
    """Lines that say nothing about the RMP."""


# --- words ---------------------------------------------------------------------------------------------------------


def _code(code: int) -> str:
    return f"{code} {CODE_NAMES[code]}" if code in CODE_NAMES else str(code)


def _frames(first: int, count: int) -> str:
    return f"frame {first:#x}" if count == 1 else f"frames {first:#x}-{first + count - 1:#x}"


def _bytes(value: int) -> str:
    return f"{value / (1 << 30):.4g} GiB" if value >= 1 << 30 else f"{value / MIB:.4g} MiB"


def _update_causes(pfn: int, level: int, code: int, covered: bool | None) -> list[str]:
    """Why RMPUPDATE answers a code, in the order of its checks (rmp §2.2); what cannot be is left out."""
    if code == 1:
        causes = ["row 4: a page is taken back (assigned 0) that is to keep an ASID or to be immutable"]
        if level > 1 and pfn % REGION:
            causes.insert(0, "row 3: a 2M page has to begin at a multiple of 2 MiB")
        return causes if covered else [*causes, "row 5: the RMP has no entry for the page"]
    if code == 2:
        return [
            "row 1: the instruction was executed inside a guest",
            "row 6: the old entry is immutable: the firmware's (Firmware, Context, Metadata), a guest's in Pre-Guest "
            "or Pre-Swap, or HV-Fixed memory",
        ]
    if code == 3:
        return [
            "row 7: the page is in use: VMCB, VMSA or AVIC page of a vCPU that runs, or another core works on the "
            "entry; the kernel does not try again"
        ]
    if code == 4:
        if level > 1:
            cause = "row 9: a 4K page of the region is assigned, and its 2 MiB-aligned entry is not one of 2 MiB"
        elif pfn % REGION == 0:
            cause = "row 8: the entry is one of 2 MiB: PSMASH first"
        else:
            cause = f"row 8b: the page is inside a 2 MiB entry, that of frame {pfn - pfn % REGION:#x}: PSMASH first"
        return [
            cause,
            "or for a moment only: the firmware or another core works on an entry of the same 2 MiB; if it stays, it "
            "is the row above, and a kernel that repeats without limit hangs",
        ]
    return ["RMPUPDATE has no such code"]


_PSMASH_CAUSES = {
    -22: ("the frame is not memory to the kernel",),
    -19: ("SNP is off",),
    1: ("row 2: the address is not a multiple of 2 MiB, or the RMP has no entry for it",),
    2: ("row 1: the instruction was executed inside a guest",),
    3: ("row 3: the entry is in use; try again",),
    7: (
        "row 4: the entry is 4K already, because another vCPU was first or it was assigned so: then only the nested "
        "mapping has to become 4K",
        "row 4: the entry is not assigned, or it is immutable",
    ),
}
"""Why PSMASH answers a code (rmp §2.3), or the kernel's function an error."""


def _owner(pfn: int, lo: int, hi: int | None) -> str:
    """Who has a page, by its entry."""
    state, gpa = page_state(lo), (lo >> 12 & 0x7F_FFFF_FFFF) << 12
    if state in _GUESTS:
        text = f"page of the guest with ASID {lo >> 51 & 0x3FF}, gpa {gpa:#x}, {'2 MiB' if lo & 2 else '4 KiB'}"
        return f"{state_name(state)}: {text}{', a VMSA' if lo >> 61 & 1 else ''}"
    if state == PageState.RECLAIM and pfn % REGION:
        aligned = f"the entry of frame {pfn - pfn % REGION:#x} tells whose"
        return f"Reclaim: given back by the firmware and not unassigned yet, or inside a 2 MiB page ({aligned})"
    if state == PageState.METADATA:
        return f"{describe_state(lo)} (the one with its context page at {gpa & (1 << 48) - 1:#x})"
    if state == PageState.FIRMWARE and hi == 0:
        return f"{describe_state(lo)}; made so by the firmware, as RMPUPDATE would have left VMPL0 its permissions"
    return describe_state(lo)


_BESIDE_RMP = (
    "the page allocator: memory beside the RMP that e820 has as reserved is HV-Fixed from SNP_INIT on, and no "
    "RMPUPDATE works there, so it must not be handed out",
    "the kernel: 6.10 and 6.11 reserve the 2 MiB around the ends of the RMP in e820 but may still allocate from it; "
    "from 6.12 they do not",
)
_IN_USE = (
    "whether the page is the AVIC backing page (or VMCB, VMSA) of a vCPU that runs: VMRUN marks it in use, and parts "
    "without HvInUseWrAllowed (CPUID 8000_001F EAX bit 30) do not let the host write it; AVIC has to be off there"
)
_CHANGED = "whether another CPU changed the entry between the fault and the dump"


# --- context -------------------------------------------------------------------------------------------------------


@dataclass
class _Fault:
    """An RMP fault of the host, and what later lines say of it."""

    line: int
    code: int
    address: int | None
    level: int = 0
    """Of the leaf; 0: not known."""
    frame: int | None = None
    dumped: bool = False

    def finding(self) -> Finding:
        where = f" at {self.address:#x}" if self.address is not None else ""
        look_at = []
        if not self.code & 2:
            look_at.append("the page tables: reads are never checked, so one of the tables is not the hypervisor's")
        if not self.level:
            look_at.append("the size of the mapping: the line PGD ... PTE is not in this log")
        if not self.dumped:
            look_at.append("the RMP entry of the page: the SEV-SNP line that follows a fault is not in this log")
        text = f"page fault{where}: {describe_page_fault(self.code)}"
        return Finding(self.line, "fault", {"code": self.code, "address": self.address}, text, tuple(look_at))


@dataclass
class _Table:
    """Where the RMP is, as far as the log has said.  Keys: the segment's index, -1 for the rest."""

    areas: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First byte, one past the last."""
    covered: dict[int, tuple[int, int]] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)
    """2 MiB regions (frame / 512) that the kernel reserved around the ends."""

    def covers(self, pfn: int) -> bool | None:
        """None: not known."""
        return any(first <= pfn << 12 < end for first, end in self.covered.values()) if self.covered else None

    def holds(self, pfn: int) -> bool:
        return any(first <= pfn << 12 < end for first, end in self.areas.values())

    def near(self, pfn: int) -> str:
        """Where a frame lies beside an end of the RMP that is in the same 2 MiB; empty if there is none."""
        low = pfn // REGION * _REGION_BYTES
        for first, end in self.areas.values():
            if low < end < low + _REGION_BYTES and pfn << 12 >= end:
                return f"after the end of the RMP, {end - 1:#x}"
            if low < first < low + _REGION_BYTES and pfn << 12 < first:
                return f"before the start of the RMP, {first:#x}"
        return "beside an end of the RMP" if pfn // REGION in self.blocks and not self.holds(pfn) else ""


@dataclass(frozen=True)
class _Update:
    """An RMPUPDATE that failed."""

    line: int
    pfn: int
    level: int
    code: int


@dataclass
class _Run:
    """Frames in a row whose entries are in one state and of one owner."""

    pfn: int
    count: int
    lo: int
    """Of the first."""
    hi: int

    def goes_on(self, pfn: int, lo: int, hi: int) -> bool:
        small = not (lo | self.lo) & 2
        owner = (page_state(lo), lo >> 51 & 0x3FF, hi)
        return small and pfn == self.pfn + self.count and owner == (page_state(self.lo), self.lo >> 51 & 0x3FF, self.hi)

    @property
    def state(self) -> str:
        return state_name(page_state(self.lo))

    def __str__(self) -> str:
        asid = self.lo >> 51 & 0x3FF
        size = " (2 MiB)" if self.lo & 2 else ""
        return f"{_frames(self.pfn, self.count)} {self.state}{f' of ASID {asid}' if asid else ''}{size}"


@dataclass
class _Region:
    """A dump of a 2 MiB region around a frame that is not assigned, and what came before it."""

    line: int
    pfn: int
    first: int
    end: int
    fault: _Fault | None
    update: _Update | None
    leak: int | None
    """Line of the leak that it belongs to."""
    table: _Table
    entries: list[tuple[int, int, int]] = field(default_factory=list)
    """Frame, low and high quadword."""

    def finding(self) -> Finding:
        runs: list[_Run] = []
        for pfn, lo, hi in self.entries:
            if runs and runs[-1].goes_on(pfn, lo, hi):
                runs[-1].count += 1
            else:
                runs.append(_Run(pfn, 1, lo, hi))
        seen = sum(lo & 1 for _, lo, _ in self.entries)
        head = next((lo for pfn, lo, _ in self.entries if pfn == self.first), 0)
        # The aligned entry counts the others (rmp §1.2), also those whose lines are missing.
        assigned = max(seen, (head >> 3 & 0x1FF) + (head & 1))
        region = _frames(self.first, self.end - self.first)
        parts, look_at = [f"Frame {self.pfn:#x} is not assigned."], list[str]()
        if runs:
            shown = ", ".join(map(str, runs[:8])) + (f", and {len(runs) - 8} more" if len(runs) > 8 else "")
            parts.append(f"Its 2 MiB, {region}: {shown}.")
        else:
            parts.append(f"No entry of its 2 MiB, {region}, is in the log: all are zero, or the lines are missing.")
        if assigned > seen:
            parts.append(f"The aligned entry counts {assigned} assigned frames with its own; {seen} are in the log.")
        own = self._own_table(assigned)
        if own:
            parts.append(own)
        if self.update is not None and self.update.code == 2:
            self._explain_update(self.update, bool(own), parts, look_at)
        if self.fault is not None:
            self._explain_fault(self.fault, assigned, runs, parts, look_at)
        if self.leak is not None:
            parts.append(f"The dump belongs to the leak in line {self.leak}.")
        fields = {
            "pfn": self.pfn,
            "first": self.first,
            "end": self.end,
            "assigned": assigned,
            "entries": [asdict(run) | {"state": run.state} for run in runs],
        }
        return Finding(self.line, "region", fields, " ".join(parts), tuple(look_at))

    def _own_table(self, assigned: int) -> str:
        """Whether all assigned frames are the first or the last ones of the RMP itself, which SNP_INIT makes Firmware
        without permissions (rmp §3.6)."""
        for _, lo, hi in self.entries:
            if lo & 1 and (hi or lo & 2 or page_state(lo) != PageState.FIRMWARE):
                return ""
        frames = [pfn for pfn, lo, _ in self.entries if lo & 1]
        if not frames:
            return ""
        if self.table.holds(frames[0]) and self.table.holds(frames[-1]):
            near = self.table.near(self.pfn)
            return f"The Firmware pages are the RMP itself{'; the frame lies ' + near if near else ''}."
        if assigned % _MIB_FRAMES or assigned >= REGION or frames != list(range(frames[0], frames[0] + len(frames))):
            return ""
        size = f"{assigned // _MIB_FRAMES} MiB"
        if frames[0] == self.first:
            end = self.first + assigned
            where = "the first frame after it" if self.pfn == end else f"{self.pfn - end} frames after it"
            own = f"{_frames(self.first, assigned)} the last {size}"
        elif frames[-1] == self.end - 1 and len(frames) == assigned:
            where = f"{frames[0] - self.pfn} frames before it"
            own = f"{_frames(frames[0], assigned)} the first {size}"
        else:
            return ""
        return f"Probably they are the RMP itself, {own} of it (SNP_INIT marks it so); {self.pfn:#x} is {where}."

    def _explain_update(self, update: _Update, beside: bool, parts: list[str], look_at: list[str]) -> None:
        own = next((lo for pfn, lo, _ in self.entries if pfn == self.pfn), None)
        refused = f"RMPUPDATE was refused in line {update.line}:"
        if own is not None and page_state(own) != PageState.HV_FIXED:
            parts.append(f"{refused} not by the entry as it is now, {state_name(page_state(own))}.")
            return
        why = "as its entry says" if own is not None else "as on a host nothing else refuses an unassigned frame so"
        parts.append(f"{refused} the frame is HV-Fixed, {why}.")
        if beside or self.table.near(self.pfn):
            parts.append("It shares its 2 MiB with an end of the RMP and was reserved at SNP_INIT, yet got allocated.")
            look_at += _BESIDE_RMP
        else:
            look_at.append("e820: whether the memory was reserved there when SNP_INIT ran, and who handed it out")

    def _explain_fault(
        self, fault: _Fault, assigned: int, runs: Sequence[_Run], parts: list[str], look_at: list[str]
    ) -> None:
        text = f"The fault in line {fault.line}"
        if fault.level == 1:
            parts.append(f"{text} went through a 4K leaf, so this frame alone counted: probably it is marked in use.")
            look_at += [_IN_USE, _CHANGED]
        elif assigned:
            owners = ", ".join(sorted({run.state for run in runs if run.lo & 1}))
            leaf = f"went through a {LEVEL_NAMES[fault.level]} leaf" if fault.level else "went, if through a large leaf"
            parts.append(f"{text} {leaf}, so the frame is an innocent neighbour of assigned pages ({owners}).")
            look_at += [
                "who made a page of the 2 MiB private while the direct map kept a large page over it: before a 4K "
                "RMPUPDATE the direct map has to be split (rmp §3.4)",
                _CHANGED,
            ]
        else:
            parts.append(f"{text} met no neighbour if this is the whole dump: probably a page is marked in use.")
            look_at += [
                "whether the 2 MiB-aligned frame is a VMCB, VMSA or AVIC page: while in use it makes host writes "
                "through a large page over it fault (erratum of parts without HvInUseWrAllowed, rmp §3.7)",
                _IN_USE,
                _CHANGED,
            ]


# --- lines that stand for themselves ---------------------------------------------------------------------------------

_SETUP = "the firmware's settings: SNP, and how much memory the RMP is to cover"
_REFUSALS: dict[str, Callable[[_Values], str]] = {
    "not_reserved": lambda v: "RMP_BASE or RMP_END is zero: there is no memory for the RMP",
    "bad_range": lambda v: f"the RMP ends at {v['end']:#x}, before it begins at {v['base']:#x}",
    "too_small": lambda v: (
        f"the RMP has {_bytes(v['got'])} and needs {_bytes(v['expected'])}: it covers memory to "
        f"{max(0, v['got'] - 0x4000) << 8:#x}, not to {max(0, v['expected'] - 0x4000) << 8:#x}"
    ),
    "short": lambda v: f"the segments cover memory to {v['got']:#x}, and there is RAM to {v['expected']:#x}",
    "segment_bounds": lambda v: (
        f"RMP_CFG has segments of 2^{v['size']} bytes, CPUID 8000_0025 allows 2^{v['min']} to 2^{v['limit']}"
    ),
    "segment_too_large": lambda v: f"a segment's table of {_bytes(v['got'])} needs only {_bytes(v['expected'])}",
    "segment_place": lambda v: f"the segment table has no entry for {v['base']:#x}",
    "segment_twice": lambda v: f"segment {v['index']} is described twice",
    "not_mapped": lambda v: f"the RMP's {v['what']} could not be mapped",
}
"""Why the kernel does not take the RMP."""


def _nested_fault(v: _Values) -> tuple[str, list[str]]:
    code = v["code"]
    text = f"nested page fault: {describe_nested_fault(code)}"
    if code >> 35 & 1:
        if v.get("npt_level", 0) > 1 and v.get("rmp_level", 0) > 1:
            text += "; mapping and entry are both 2 MiB, so an instruction (PVALIDATE, RMPADJUST) asked for 4 KiB"
        return text, ["what follows: if it is PSMASH and the guest goes on, all is well; guests do this normally"]
    if code >> 36 & 1:
        return text, ["the permissions that RMPADJUST gave the VMPL"]
    if code >> 34 & 1:
        return text, ["the entry, in this order: covered, ASID, gpa, immutable, size (rmp §3.2)"]
    return text, ["whether the page is the hypervisor's, as a shared write wants it"]


def _dump_error(v: _Values) -> tuple[str, list[str]]:
    why = {-14: "the RMP has no entry for it", -19: "SNP is off"}.get(v["error"], f"error {v['error']}")
    return f"the entry of frame {v['pfn']:#x} cannot be read: {why}", []


def _iommu_event(v: _Values) -> tuple[str, list[str]]:
    device = v.get("device") or v.get("at") or "a device"
    if v["event"] != "RMP_PAGE_FAULT":
        return f"the IOMMU could not use the RMP for {device} at {v.get('spa', 'an unknown address')}", []
    text = f"{device} wrote by DMA to {v.get('gpa', 'an unknown address')}, where a page is not the hypervisor's"
    return text, [
        "whether the buffer is private memory of a guest: DMA needs pages that the guest has made shared",
        "whether the IOMMU maps it by a large page: then an assigned page anywhere in the 2 MiB counts (rmp §3.1)",
        "whether it is a buffer of the IOMMU itself, which SNP_INIT made the firmware's (Firmware-IOMMU)",
    ]


def _psmash(v: _Values) -> str:
    return (
        f"PSMASH of the 2 MiB at frame {v['pfn'] - v['pfn'] % REGION:#x} (for frame {v['pfn']:#x}, gpa {v['gpa']:#x})"
    )


_PLAIN: dict[str, Callable[[_Values], tuple[str, Sequence[str]]]] = {
    "end_not_zero": lambda v: ("the RMP is segmented, and RMP_END, which then means nothing, is not zero", (_SETUP,)),
    "segment_cut": lambda v: (f"segment {v['index']} claims {v['mapped'] >> 30} GiB, more than a segment has", ()),
    "iommu_refusal": lambda v: (
        "the IOMMU is not set up as SNP needs it; SNP stays off",
        ("the kernel's command line: no passthrough (iommu=, amd_iommu=), page tables of version 1",),
    ),
    "nested_fault": _nested_fault,
    "kvm_fault": lambda v: (
        f"a nested RMP fault at gpa {v['gpa']:#x} that KVM does not expect",
        ("whether KVM's idea of private and shared, and its memory for the page, still agree with the RMP",),
    ),
    "iommu_event": _iommu_event,
    "dump_error": _dump_error,
    "psmash": lambda v: (f"{_psmash(v)} is tried", ()),
    "psmash_failed": lambda v: (
        f"{_psmash(v)} answered {v['rc']}",
        _PSMASH_CAUSES.get(v["rc"], ("PSMASH has no such code",)),
    ),
    "split_failed": lambda v: (
        f"the direct map over frame {v['pfn']:#x} could not be split ({v['ret']}), so RMPUPDATE was not executed",
        ("free memory: a split needs a page for the new table",),
    ),
    "no_buffer": lambda v: (
        "no command buffer is left: the driver has one and a spare, and a command was nested inside the second",
        ("RMPUPDATEs that failed just before: reclaiming pages after them takes commands",),
    ),
}


# --- the log -------------------------------------------------------------------------------------------------------


class _Log:
    """Goes through a log line by line, and remembers what later lines may need."""

    def __init__(self) -> None:
        self.found: list[Finding | _Region | _Fault] = []
        self._address: int | None = None
        self._fault: _Fault | None = None
        self._update: _Update | None = None
        self._regions: dict[int, _Region] = {}
        self._table = _Table()
        self._leak = (0, 0, 0)
        """Line, first frame and one past the last of the latest leak."""
        self._psp_line = 0

    def take(self, line: int, kind: str, v: _Values) -> bool:
        """Explain a line; False: it is not about the RMP after all."""
        if kind in _REFUSALS:
            self._say(line, "refusal", v | {"refusal": kind}, f"{_REFUSALS[kind](v)}; SNP stays off", [_SETUP])
        elif kind in _PLAIN:
            if kind == "iommu_event":
                found = dict(re.findall(r"(\w{1,20})=([0-9a-fx:.]{1,20})", v.pop("rest")))
                v |= {"at" if name == "device" else name: value for name, value in found.items()}
            self._say(line, kind, v, *_PLAIN[kind](v))
        else:
            handler: Callable[[int, _Values], bool | None] = getattr(self, f"on_{kind}")
            return handler(line, v) is not False
        return True

    def _say(self, line: int, kind: str, fields: _Values, text: str, look_at: Iterable[str] = ()) -> None:
        self.found.append(Finding(line, kind, fields, text, tuple(look_at)))

    # where the RMP is

    def on_rmp_table(self, line: int, v: _Values) -> None:
        base, end = v["base"], v["end"] + 1
        frames = max(0, end - base - 0x4000) // 16
        self._table = _Table({-1: (base, end)}, {-1: (0, frames << 12)})
        text = f"RMP of {_bytes(end - base)} at {base:#x}-{end - 1:#x}, covers {frames:#x} frames, to {frames << 12:#x}"
        look_at = [
            f"its {name}, {edge:#x}, which is not a multiple of 2 MiB: writes beside the RMP fault if a large page of "
            "the direct map goes over it, so kernels from 6.10 on reserve those 2 MiB"
            for name, edge in (("start", base), ("end", end))
            if edge % _REGION_BYTES
        ]
        self._say(line, "rmp_table", v | {"frames": frames}, text, look_at)

    def on_rmp_base_table(self, line: int, v: _Values) -> None:
        self._table = _Table({-1: (v["base"], v["base"] + RMP_HEAD_SIZE)})
        text = f"segmented RMP: bookkeeping at {v['base']:#x}, segment table at {v['base'] + 0x4000:#x}"
        self._say(line, "rmp_base_table", v, text)

    def on_segment_size(self, line: int, v: _Values) -> None:
        self._say(line, "segment_size", v, f"a segment of the RMP stands for {v['size']} GiB of addresses")

    def on_rmp_segment(self, line: int, v: _Values) -> None:
        if 0 <= v["index"] < RST_ENTRIES:
            self._table.areas[v["index"]] = (v["base"], v["end"] + 1)
            self._table.covered[v["index"]] = (v["first"], v["last"] + 1)
        text = f"segment {v['index']} of the RMP covers {v['first']:#x}-{v['last']:#x}, its table is at "
        self._say(line, "rmp_segment", v, f"{text}{v['base']:#x}-{v['end']:#x}")

    def on_reserved_block(self, line: int, v: _Values) -> None:
        base = v["base"] - v["base"] % _REGION_BYTES
        self._table.blocks.add(base // _REGION_BYTES)
        text = f"the 2 MiB at {base:#x} hold RAM and an end of the RMP, so the kernel reserves all of it"
        for first, end in self._table.areas.values():
            for word, edge in (("starts", first), ("ends before", end)):
                if base < edge < base + _REGION_BYTES:
                    text += f"; the RMP {word} {edge:#x}"
        self._say(line, "reserved_block", v, text, _BESIDE_RMP)

    # entries

    def _about(self, line: int, pfn: int, lo: int, hi: int | None, fields: _Values) -> None:
        """One entry, and the fault or the failed RMPUPDATE before it."""
        text, look_at = f"Frame {pfn:#x} is {_owner(pfn, lo, hi)}.", []
        if self._table.holds(pfn):
            text += " It is a page of the RMP itself."
        fault, update = self._before(pfn)
        if fault is not None and lo & 1:
            text += f" The write that faulted in line {fault.line} was to this page itself"
            if lo >> 51 & 0x3FF:
                text += ", which is a guest's."
                look_at.append("the call trace of the fault: that code still writes a page that was given to the guest")
                if lo >> 61 & 1:
                    look_at.append("for a VMSA: whether it is written once more after the launch gave it to the guest")
            elif page_state(lo) == PageState.RECLAIM:
                text += ", which nobody has unassigned."
                look_at.append("the RMPUPDATE to Hypervisor that has to follow SNP_PAGE_RECLAIM")
            else:
                text += ", which is the firmware's."
                look_at.append("the call trace of the fault: a page given to the firmware has to be reclaimed first")
        if update is not None and update.code == 2:
            text += f" RMPUPDATE was refused in line {update.line}: "
            text += "the entry is immutable." if lo & 4 else "not by the entry as it is now, which is not immutable."
        elif update is not None and update.code == 4 and update.level == 1 and lo & 2:
            text += (
                f" RMPUPDATE met an overlap in line {update.line}: the entry is of 2 MiB, and PSMASH has to be first."
            )
        self._say(line, "entry", {"pfn": pfn, **fields, "state": state_name(page_state(lo))}, text, look_at)

    def _before(self, pfn: int) -> tuple[_Fault | None, _Update | None]:
        """The fault and the failed RMPUPDATE that a dump of this frame belongs to."""
        fault, update = self._fault, self._update
        if fault is None or fault.frame not in (None, pfn):
            fault = None
        else:
            fault.dumped, self._fault = True, None
        if update is None or update.pfn != pfn:
            update = None
        else:
            self._update = None
        return fault, update

    def on_entry(self, line: int, v: _Values) -> None:
        lo, hi = v["lo"], v["hi"]
        self._about(line, v["pfn"], lo, hi, {"lo": lo, "hi": hi, "entry": describe_rmp_entry(lo, hi)})

    def on_old_entry(self, line: int, v: _Values) -> None:
        self.on_entry(line, v | {"pfn": v["address"] >> 12})

    def on_decoded(self, line: int, v: _Values) -> None:
        lo = (
            v["assigned"] & 1 | (v["pagesize"] & 1) << 1 | (v["immutable"] & 1) << 2 | (v["gpa"] & 0x7F_FFFF_FFFF) << 12
        )
        lo |= (v["asid"] & 0x3FF) << 51 | (v["vmsa"] & 1) << 61 | (v["validated"] & 1) << 62
        self._about(line, v["address"] >> 12, lo, None, v)

    def on_region(self, line: int, v: _Values) -> None:
        pfn, first, end = v["pfn"], v["first"], v["end"]
        leak = self._leak[0] if self._leak[1] <= pfn < self._leak[2] else None
        region = _Region(line, pfn, first, end, *self._before(pfn), leak, self._table)
        self._regions[first] = region
        self.found.append(region)

    def on_region_entry(self, line: int, v: _Values) -> None:
        region = self._regions.get(v["pfn"] - v["pfn"] % REGION)
        if region is None:
            self.on_entry(line, v)
        else:
            region.entries.append((v["pfn"], v["lo"], v["hi"]))

    # faults

    def on_address(self, line: int, v: _Values) -> None:
        self._address, self._fault = v["address"], None

    def on_fault(self, line: int, v: _Values) -> bool:
        address, self._address, self._fault = self._address, None, None
        if not v["code"] >> 31 & 1:
            return False
        self._fault = _Fault(line, v["code"], address)
        self.found.append(self._fault)
        return True

    def on_walk(self, line: int, v: _Values) -> bool:
        fault = self._fault
        if fault is None or fault.level:
            return False
        entries = ((level, v.get(name, 0)) for level, name in ((1, "pte"), (2, "pmd"), (3, "pud")))
        leaf = next(((level, raw) for level, raw in entries if raw & 1 and (level == 1 or raw & 0x80)), None)
        if leaf is None:
            text = "the walk ends before a leaf that is present, so the fault is about one of the tables"
            self._say(line, "walk", v, text, ["the frames of the tables in this line: one is not the hypervisor's"])
            return True
        fault.level, pages = leaf[0], 1 << 9 * (leaf[0] - 1)
        first = (leaf[1] & 0x000F_FFFF_FFFF_F000) >> 12 & -pages
        if pages == 1:
            fault.frame = first
            text = f"4K leaf for frame {first:#x}: the RMP was asked about that frame alone"
        else:
            region = f"the 2 MiB of the address in {_frames(first, pages)}"
            if fault.address is not None:
                fault.frame = first + (fault.address >> 12) % pages
                region = f"{_frames(fault.frame - fault.frame % REGION, REGION)} (the address is in {fault.frame:#x})"
            text = f"{LEVEL_NAMES[fault.level]} leaf: the RMP was asked about all of {region}; any assigned page there "
            text += "makes the write fault, so the frame may be an innocent neighbour"
        self._say(line, "walk", v | {"level": fault.level, "frame": fault.frame}, text)
        return True

    # instructions and firmware commands

    def on_update_failed(self, line: int, v: _Values) -> None:
        pfn, level, code = v["pfn"], v["level"], v["ret"]
        self._update = _Update(line, pfn, level, code)
        covered, near = self._table.covers(pfn), self._table.near(pfn)
        size = LEVEL_NAMES.get(level, str(level))
        text = f"RMPUPDATE of frame {pfn:#x} as a {size} page answered {_code(code)}, and the kernel gave up."
        look_at = _update_causes(pfn, level, code, covered)
        if covered is False:
            text += " The RMP does not cover the frame."
        if self._table.holds(pfn):
            text += " The frame is a page of the RMP itself."
        elif code == 2 and near:
            text += f" The frame lies {near}, in the same 2 MiB: HV-Fixed (row 6), if reserved when SNP_INIT ran."
            look_at += _BESIDE_RMP
        self._say(line, "update_failed", v | {"name": CODE_NAMES.get(code)}, text, look_at)

    def on_update_retried(self, line: int, v: _Values) -> None:
        pfn, code = v["pfn"], v["ret"]
        text = f"RMPUPDATE of frame {pfn:#x} answered {_code(code)}; this kernel tries again, {v['max']} times at most"
        look_at = _update_causes(pfn, v["level"], code, self._table.covers(pfn))
        self._say(line, "update_retried", v | {"name": CODE_NAMES.get(code)}, text, look_at)

    def on_leak(self, line: int, v: _Values) -> None:
        first, end = v["first"], v["end"]
        self._leak = (line, first, end)
        count = max(0, end - first)
        text = f"{count} pages, {_frames(first, count)}, could not be made the hypervisor's again: given up for good"
        if count == REGION and first % REGION == 0:
            text += "; a whole aligned 2 MiB, as the firmware's trusted memory region (TMR) is"
        look_at = "the line before that says why: a firmware command or an RMPUPDATE that failed"
        if self._psp_line:
            look_at = f"line {self._psp_line}: the PSP no longer answers, so nothing is reclaimed from it any more"
        self._say(line, "leak", v | {"pages": count}, text, [look_at])

    def on_psp_dead(self, line: int, v: _Values) -> None:
        self._psp_line = line
        text = f"the PSP did not answer command {v['command']:#x}: from here on every firmware command fails"
        self._say(line, "psp_dead", v, text, ["pages of the firmware that cannot be reclaimed now, and will be leaked"])

    def on_firmware_failed(self, line: int, v: _Values) -> None:
        status = v["status"]
        name = f" {STATUS_NAMES[status]}" if status in STATUS_NAMES else ""
        text = f"firmware command {v['what']} failed: the driver returned {v['rc']}, status {status:#x}{name}"
        if status == 0:
            text += " (the command got no answer)"
        look_at = [f"line {self._psp_line}: the PSP no longer answers"] if self._psp_line else []
        self._say(line, "firmware_failed", v, text, look_at)


def explain(lines: Iterable[str]) -> Explanation:
    """What the lines of a log say about the RMP, in order.  Never raises for what they hold."""
    log = _Log()
    number = known = 0
    for number, line in enumerate(lines, 1):
        said = parse(line)
        known += said is not None and log.take(number, *said)
    findings = tuple(item if isinstance(item, Finding) else item.finding() for item in log.found)
    return Explanation(findings, number, number - known)


def explanation_text(explanation: Explanation) -> Iterator[str]:
    """The findings for people, line by line."""
    said: dict[tuple[str, ...], int] = {}
    for finding in explanation.findings:
        yield f"line {finding.line}: {finding.text}"
        before = said.setdefault(finding.look_at, finding.line)
        for hint in finding.look_at if before == finding.line else (f"what line {before} says",):
            yield f"    look at: {hint}"
    yield f"{explanation.lines} lines, {explanation.passed_over} of them passed over"


def explanation_to_json(explanation: Explanation) -> dict[str, object]:
    """The same as JSON values."""
    return asdict(explanation)
