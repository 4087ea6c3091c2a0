"""Real hosts' RMP entries (rmp-dumps.json): the state and the fields that each log's own words give them.

The words of the logs and mails are in the file, as ``lines`` and ``context``; what is asked of the decoder here is
written from those, not from the entry.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from machines import SNP, Host

from rmpcore.decode import decode_pte, decode_rmp_entry
from rmpcore.ops import Kind, Result
from rmpcore.page_state import PageState, page_state

DUMPS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data/machines/rmp-dumps.json").read_text(encoding="utf-8")
)
ENTRIES = {
    int(entry["pfn"], 16): (int(entry["lo"], 16), int(entry["hi"], 16)) for dump in DUMPS for entry in dump["entries"]
}
DECODED = {int(entry["pfn"], 16): entry for dump in DUMPS for entry in dump.get("decoded", ())}
ENTRY_LINE = re.compile(r"PFN:? (0x[0-9a-f]+),.*\[(0x[0-9a-f]{16}) - (0x[0-9a-f]{16})\]")

FIRMWARE = {"assigned": 1, "page_size": 0, "immutable": 1, "asid": 0, "gpa": 0, "vmsa": 0, "validated": 0, "lock": 1}
EXPECTED: dict[int, tuple[PageState, dict[str, int]]] = {
    # issue 245: "Head entry: assigned, immutable, sub-page count 255, top bit set"
    0x56600: (PageState.FIRMWARE, FIRMWARE | {"subpage_count": 255, "vmpl0": 0}),
    # "followers: assigned, immutable, top bit set"
    **{pfn: (PageState.FIRMWARE, FIRMWARE | {"subpage_count": 0, "vmpl0": 0}) for pfn in range(0x56601, 0x5660E)},
    # "assigned, 4K, GPA page 0xfffffffff, ASID 2, vmsa, validated, not immutable; VMPL0 byte 0x1f"
    0x40FDF36: (
        PageState.GUEST_VALID,
        {
            "assigned": 1,
            "page_size": 0,
            "immutable": 0,
            "subpage_count": 0,
            "gpa": 0xF_FFFF_FFFF,
            "asid": 2,
            "vmsa": 1,
            "validated": 1,
            "lock": 0,
            "vmpl0": 0x1F,
            "vmpl1": 0,
            "vmpl2": 0,
            "vmpl3": 0,
        },
    ),
}


def fields(lo: int, hi: int) -> dict[str, int]:
    return {field.name: field.value for field in decode_rmp_entry(lo, hi)}


def test_every_entry_of_the_file_is_here() -> None:
    """No dump is left out: 15 raw entries, 2 that a kernel had decoded, 10 logs."""
    assert set(ENTRIES) == set(EXPECTED)
    assert len(ENTRIES) == 15
    assert set(DECODED) == {0x1001EA, 0x1F52B8}
    assert len(DUMPS) == 10


@pytest.mark.parametrize("pfn", EXPECTED, ids=hex)
def test_state_and_fields(pfn: int) -> None:
    """rmp §1.1, §4.1: each raw entry is in the state, and has the values, that its log speaks of."""
    lo, hi = ENTRIES[pfn]
    state, values = EXPECTED[pfn]
    assert page_state(lo) == state
    named = fields(lo, hi)
    assert {name: named[name] for name in values} == values


def test_entries_are_those_of_the_lines() -> None:
    """The file's entries are what its lines show."""
    shown = {}
    for dump in DUMPS:
        for line in dump["lines"]:
            line = line.replace("RMP entry: ", "")
            if match := ENTRY_LINE.search(line):
                pfn, lo, hi = (int(text, 16) for text in match.groups())
                shown[pfn] = (lo, hi)
    assert shown == ENTRIES


def test_followers_and_head_are_a_mebibyte() -> None:
    """issue 245: "255 followers plus the head make exactly the 1 MiB tail of the RMP" (rmp §1.2)."""
    head = fields(*ENTRIES[0x56600])
    assert (head["subpage_count"] + 1) * 4096 == 1 << 20
    assert (0x56600 + head["subpage_count"] + 1) << 12 == 0x566F_FFFF + 1


def decoded_lo(entry: dict[str, Any]) -> int:
    """The low quadword that the printed fields make (rmp §1.1); issue 109 shows neither lock nor count."""
    lo = entry["assigned"] | entry["pagesize"] << 1 | entry["immutable"] << 2 | int(entry["gpa"], 16) << 12
    return int(lo | entry["asid"] << 51 | entry["vmsa"] << 61 | entry["validated"] << 62)


@pytest.mark.parametrize(
    ("pfn", "state"), [(0x1001EA, PageState.FIRMWARE_IOMMU), (0x1F52B8, PageState.HYPERVISOR)], ids=hex
)
def test_states_of_decoded_entries(pfn: int, state: PageState) -> None:
    """issue 109: "assigned, immutable, ASID 0 with a non-zero GPA field, which a plain firmware-state page would not
    have"; gpa 0x2000000001 is tag 2 and 1 (rmp §1.3).  The other one is all zero."""
    lo = decoded_lo(DECODED[pfn])
    # classifying does not look at lock for these
    assert page_state(lo) == page_state(lo | 1 << 63) == state
    named = fields(lo, 0)
    assert (named["gpa"], named["asid"]) == (int(DECODED[pfn]["gpa"], 16), DECODED[pfn]["asid"])
    for name, printed in (("assigned", "assigned"), ("page_size", "pagesize"), ("immutable", "immutable")):
        assert named[name] == DECODED[pfn][printed]


def test_the_vmsa_is_mapped_by_the_entry_of_the_log() -> None:
    """commit 9b9f7962e3e8: "The walk ends in a 4K PTE (present, writable, NX)", error code 0x80000003."""
    dumps = [dump for dump in DUMPS if "page_fault" in dump]
    assert len(dumps) == 2
    for dump in dumps:
        fault = dump["page_fault"]
        assert fault["leaf_level"] == "4K"
        pte = {field.name: field.value for field in decode_pte(int(fault["pte"], 16), 1)}
        assert (pte["P"], pte["RW"], pte["NX"]) == (1, 1, 1)
        (line,) = (line for line in dump["lines"] if "PFN 0x" in line)
        pfn = re.search(r"PFN (0x[0-9a-f]+)", line)
        assert pfn is not None
        assert pte["frame"] == int(pfn[1], 16)
        assert int(fault["error_code"], 16) == 1 << 31 | 3


@pytest.mark.parametrize("pfn", EXPECTED, ids=hex)
def test_machines_agree(backend: str, pfn: int) -> None:
    """op page_state gives the state of an entry that was stored as the dump has it; reading gives it back."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x201, *ENTRIES[pfn])
    assert host.rmp(0x201) == ENTRIES[pfn]
    assert host.do("page_state", pfn=0x201) == Result(EXPECTED[pfn][0], Kind.KERNEL)


@pytest.mark.parametrize("pfn", DECODED, ids=hex)
def test_machines_agree_on_decoded_entries(backend: str, pfn: int) -> None:
    """The same for the entries of issue 109."""
    host = Host(backend, SNP)
    lo = decoded_lo(DECODED[pfn])
    host.machine.write_rmp(0x201, lo, 0)
    assert host.do("page_state", pfn=0x201).ret == page_state(lo)


STATE_BITS = [0, 1, 2, 62, 63, 61]
"""assigned, page_size, immutable, validated, lock, vmsa"""


def by_the_table(lo: int) -> PageState:
    """rmp §4.1 once more, as the table of the specification has it, row by row."""
    assigned, immutable, validated, lock = lo & 1, lo >> 2 & 1, lo >> 62 & 1, lo >> 63
    asid, vmsa, gpa = lo >> 51 & 0x3FF, lo >> 61 & 1, lo >> 12 & (1 << 39) - 1
    found = PageState.INVALID
    match assigned, validated, asid > 0, immutable:
        case 0, 0, False, 0:
            found = PageState.HYPERVISOR
        case 0, 0, False, 1:
            found = PageState.HV_FIXED
        case 1, 0, False, 1 if gpa == 0:
            found = PageState.CONTEXT if vmsa else PageState.FIRMWARE
        case 1, 0, False, 1 if gpa >> 36 == 1 and gpa != 1 << 36:
            found = PageState.METADATA
        case 1, 0, False, 1 if gpa == 2 << 36 | 1 and not vmsa:
            found = PageState.FIRMWARE_IOMMU
        case 1, 0, False, 0 if not lock:
            found = PageState.RECLAIM
        case 1, 0, True, 1:
            found = PageState.PRE_GUEST
        case 1, 1, True, 1:
            found = PageState.PRE_SWAP
        case 1, 0, True, 0:
            found = PageState.GUEST_INVALID
        case 1, 1, True, 0:
            found = PageState.GUEST_VALID
    return found


def test_every_combination(backend: str) -> None:
    """rmp §4.1: all combinations of the bits that count with the gpas and ASIDs that make a difference."""
    host = Host(backend, SNP)
    gpas = [0, 1, 0x800, 1 << 36, 1 << 36 | 1, 2 << 36, 2 << 36 | 1, 2 << 36 | 2, 3 << 36 | 1, (1 << 39) - 1]
    seen = set()
    for bits in range(1 << len(STATE_BITS)):
        for gpa in gpas:
            for asid in (0, 1, 0x3FF):
                lo = sum((bits >> i & 1) << bit for i, bit in enumerate(STATE_BITS)) | gpa << 12 | asid << 51
                assert page_state(lo) == by_the_table(lo), hex(lo)
                host.machine.write_rmp(0x201, lo, 0)
                assert host.do("page_state", pfn=0x201).ret == by_the_table(lo), hex(lo)
                seen.add(by_the_table(lo))
    assert seen == set(PageState) - {PageState.DEFAULT}
