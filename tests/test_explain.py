"""Kernel logs in words: what is said of each real log agrees with what its reporters found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import IMMUTABLE, SNP, Host

from rmpcore.explain import Explanation, Finding, explain, explanation_text, explanation_to_json
from rmpcore.klog import kernel_log
from rmpcore.loglines import parse

DATA = Path(__file__).parent / "data/machines"
DUMPS = json.loads((DATA / "rmp-dumps.json").read_text(encoding="utf-8"))
RANGES = json.loads((DATA / "rmp-ranges.json").read_text(encoding="utf-8"))
PREFIXES = ("", "[ 1187.437064] ", "Feb 21 17:59:09 milan2 kernel: ", "<6>[    0.000000][    T0] ", "| > ")


def log_of(source: str, first: str = "") -> list[str]:
    (dump,) = (d for d in DUMPS if source in d["source"] and first in d["lines"][0])
    return list(dump["lines"])


def only(said: Explanation, kind: str) -> Finding:
    (finding,) = (finding for finding in said.findings if finding.kind == kind)
    return finding


def one(line: str) -> Finding:
    (finding,) = explain([line]).findings
    return finding


def hints(finding: Finding) -> str:
    return " | ".join(finding.look_at)


# --- real logs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dump", DUMPS, ids=lambda d: d["source"][-24:])
def test_every_real_log_is_explained_whatever_is_before_the_lines(dump: dict[str, Any], prefix: str) -> None:
    plain = [line.partition("] ")[2] if line.startswith("[") else line for line in dump["lines"]]
    expected, said = explain(dump["lines"]), explain([prefix + line for line in plain])
    assert said.findings == expected.findings
    assert said.findings
    assert (said.lines, said.passed_over) == (expected.lines, expected.passed_over)


def test_page_after_the_end_of_the_rmp() -> None:
    """AMDSEV 245: 255 followers and the head are the last MiB of the RMP; the failing frame is the next, HV-Fixed by
    SNP_INIT because the kernel had reserved it, and yet allocated."""
    said = explain(log_of("issues/245"))
    failed, region = said.findings
    assert (failed.line, failed.kind, region.line, region.kind) == (1, "update_failed", 2, "region")
    assert failed.fields == {"pfn": 0x56700, "level": 1, "ret": 2, "name": "FAIL_PERMISSION"}
    assert [hint[:5] for hint in failed.look_at] == ["row 1", "row 6"]
    assert (region.fields["pfn"], region.fields["assigned"]) == (0x56700, 256)
    assert region.fields["entries"] == [
        {"pfn": 0x56600, "count": 14, "lo": 0x80000000000007FD, "hi": 0, "state": "Firmware"}
    ]
    for words in (
        "frames 0x56600-0x5660d Firmware.",
        "counts 256 assigned frames with its own; 14 are in the log.",
        "frames 0x56600-0x566ff the last 1 MiB of it",
        "0x56700 is the first frame after it.",
        "RMPUPDATE was refused in line 1: the frame is HV-Fixed",
        "was reserved at SNP_INIT, yet got allocated",
    ):
        assert words in region.text
    assert "6.10 and 6.11" in hints(region)
    assert said.passed_over == 0


def test_vmsa_that_the_host_wrote() -> None:
    """The fault, the 4K leaf and the entry are one story: the page itself, a VMSA of the guest with ASID 2."""
    said = explain(log_of("2602.3/03780"))
    assert [(f.line, f.kind) for f in said.findings] == [(3, "fault"), (4, "walk"), (5, "entry")]
    fault, walk, entry = said.findings
    assert fault.text == "page fault at 0xff1276cbfdf36000: P W RMP: supervisor write, refused by the RMP"
    assert fault.look_at == ()
    assert (walk.fields["level"], walk.fields["frame"]) == (1, 0x40FDF36)
    assert "frame alone" in walk.text
    assert (entry.fields["state"], entry.fields["pfn"]) == ("Guest-Valid", 0x40FDF36)
    assert "guest with ASID 2, gpa 0xfffffffff000, 4 KiB, a VMSA" in entry.text
    assert "faulted in line 3 was to this page itself, which is a guest's" in entry.text
    assert "after the launch" in hints(entry)
    assert said.passed_over == 2


def test_psp_that_no_longer_answers() -> None:
    said = explain(log_of("20250906122145"))
    leak, region = only(said, "leak"), only(said, "region")
    assert "512 pages, frames 0x146800-0x1469ff" in leak.text
    assert "whole aligned 2 MiB" in leak.text
    assert "TMR" in leak.text
    assert hints(leak).startswith("line 1: the PSP no longer answers")
    assert "belongs to the leak in line 3" in region.text
    assert region.fields["entries"] == []
    assert "in use" not in region.text
    other = only(explain(["SEV-SNP: Leaking PFN range 0x40406-0x40407", HEADER]), "region")
    assert "leak" not in other.text
    shutdown = [finding for finding in said.findings if finding.kind == "firmware_failed"]
    assert [(f.fields["what"], f.fields["rc"]) for f in shutdown] == [("SHUTDOWN", -110), ("shutdown", -16)]


def test_frame_beside_the_rmp_that_the_log_has_placed() -> None:
    """Linux 88a921aa3c6b: no dump, but the RMP's end and the reserved 2 MiB are in the log."""
    said = explain(log_of("88a921aa3c6b"))
    table, block, failed = said.findings
    assert (table.fields["base"], table.fields["end"]) == (0x280D4800000, 0x28357EFFFFF)
    assert "its end, 0x28357f00000" in hints(table)
    assert "start" not in hints(table)
    assert "the RMP ends before 0x28357f00000" in block.text
    assert "lies after the end of the RMP, 0x28357efffff, in the same 2 MiB: HV-Fixed" in failed.text
    assert "6.12" in hints(failed)


def test_page_in_use() -> None:
    """Linux d81cadbe1642: a 4K leaf and an entry that is not assigned: the AVIC page of a running guest."""
    said = explain(log_of("d81cadbe1642"))
    region = only(said, "region")
    assert "line 3 went through a 4K leaf, so this frame alone counted: probably it is marked in use" in region.text
    assert "AVIC" in region.look_at[0]
    assert "CPUID 8000_001F EAX bit 30" in region.look_at[0]
    assert "another CPU changed" in region.look_at[1]
    assert "neighbour" not in region.text


def test_overlap_that_an_old_tree_retried() -> None:
    said = one(log_of("issues/143")[0])
    assert said.kind == "update_retried"
    assert (said.fields["pfn"], said.fields["max"], said.fields["name"]) == (0x37D4FE8, 96, "FAIL_OVERLAP")
    assert "96 times at most" in said.text
    assert said.look_at[0].startswith("row 8b") and "0x37d4e00" in said.look_at[0]
    assert "another core works on an entry of the same 2 MiB" in said.look_at[1]


def test_no_command_buffer() -> None:
    said = one(log_of("issues/205")[0])
    assert said.kind == "no_buffer"
    assert "one and a spare" in said.text


def test_dma_to_a_page_of_a_guest() -> None:
    """AMDSEV 109: the decoded form; the first page is the firmware's buffer for the IOMMU, which is why its gpa is
    odd."""
    said = explain(log_of("issues/109"))
    first, second, event = said.findings
    assert (first.fields["pfn"], first.fields["state"]) == (0x1001EA, "Firmware-IOMMU")
    assert (second.fields["pfn"], second.fields["state"]) == (0x1F52B8, "Hypervisor")
    assert "lo" not in first.fields and first.fields["gpa"] == 0x2000000001
    assert event.text.startswith("0000:c1:00.0 wrote by DMA to 0x740b8784")
    assert event.fields == {
        "device": "0000:c1:00.0",
        "event": "RMP_PAGE_FAULT",
        "vmg_tag": "0x0000",
        "gpa": "0x740b8784",
        "flags_rmp": "0x0000",
        "flags": "0x0020",
    }
    assert "made shared" in hints(event)
    assert said.passed_over == 2


def test_psmash_of_what_is_4k_already() -> None:
    said = explain(log_of("CABpDEun0KTeWXqRS0Xj5mDTajix", "psmash"))
    assert [(f.kind, f.fields["rc"]) for f in said.findings] == [("psmash_failed", 7)] * 5
    assert "2 MiB at frame 0x536cc00 (for frame 0x536cd60, gpa 0x191560000)" in said.findings[0].text
    assert "4K already" in said.findings[0].look_at[0]
    text = list(explanation_text(said))
    assert sum("4K already" in line for line in text) == 1
    assert sum("what line 1 says" in line for line in text) == 4
    assert text[-1] == "5 lines, 0 of them passed over"


def test_size_mismatch_is_normal() -> None:
    fault, psmash = explain(log_of("CABpDEun0KTeWXqRS0Xj5mDTajix", "VMEXIT")).findings
    assert fault.fields == {"code": 0xC80000005, "npt_level": 2, "rmp_level": 2, "private": 1}
    assert "P US RMP ENC SIZEM" in fault.text
    assert "an instruction (PVALIDATE, RMPADJUST) asked for 4 KiB" in fault.text
    assert "all is well" in hints(fault)
    assert "frame 0x1f5c00" in psmash.text


# --- faults --------------------------------------------------------------------------------------------------------

ADDRESS = "BUG: unable to handle page fault for address: ff1276cb40405abc"
FAULT = "#PF: error_code(0x80000003) - RMP violation"
LARGE = "PGD 5a31801067 P4D 5a31802067 PUD 40ccfb5063 PMD 80000000404001e3"
HUGE = "PGD 5a31801067 P4D 5a31802067 PUD 80000000400001e3"
HEADER = "SEV-SNP: PFN 0x40405 unassigned, dumping non-zero entries in 2M PFN region: [0x40400 - 0x40600]"
GUEST_PAGE = "SEV-SNP: PFN: 0x40407, [0x6028000000001001 - 0x000000000000000f]"


@pytest.mark.parametrize(("walk", "leaf"), [(LARGE, "2M"), (HUGE, "1G")])
def test_innocent_neighbour(walk: str, leaf: str) -> None:
    """rmp §3.4: through a large leaf all 512 frames count, and one of them is a guest's."""
    said = explain([ADDRESS, FAULT, walk, HEADER, GUEST_PAGE])
    region = only(said, "region")
    assert f"{leaf} leaf: the RMP was asked about all of frames 0x40400-0x405ff" in only(said, "walk").text
    assert only(said, "walk").fields["frame"] == 0x40405
    assert f"went through a {leaf} leaf, so the frame is an innocent neighbour" in region.text
    assert "assigned pages (Guest-Valid)" in region.text
    assert "frame 0x40407 Guest-Valid of ASID 5" in region.text
    assert "split" in region.look_at[0]


def test_large_leaf_without_an_address() -> None:
    said = explain([FAULT, LARGE, HEADER, GUEST_PAGE])
    assert "the 2 MiB of the address in frames 0x40400-0x405ff" in only(said, "walk").text
    assert "innocent neighbour" in only(said, "region").text


def test_large_leaf_and_nothing_assigned() -> None:
    """rmp §3.7: the in-use mark of a 2 MiB-aligned page."""
    region = only(explain([ADDRESS, FAULT, LARGE, HEADER]), "region")
    assert "met no neighbour" in region.text
    assert "2 MiB-aligned frame is a VMCB" in region.look_at[0]
    assert "erratum" in region.look_at[0]
    assert "HvInUseWrAllowed" in region.look_at[1]
    fixed = "SEV-SNP: PFN: 0x40407, [0x0000000000000004 - 0x0000000000000000]"
    region = only(explain([ADDRESS, FAULT, LARGE, HEADER, fixed]), "region")
    assert "frame 0x40407 HV-Fixed" in region.text
    assert "met no neighbour" in region.text


def test_small_leaf_among_assigned_pages() -> None:
    """Through a 4K leaf neighbours do not matter, however many are assigned."""
    walk = LARGE[:-16] + "40ccfb6063 PTE 8000000040405163"
    region = only(explain([ADDRESS, FAULT, walk, HEADER, GUEST_PAGE]), "region")
    assert "this frame alone counted" in region.text
    assert "neighbour" not in region.text


def test_large_leaf_with_its_own_pat_bit() -> None:
    """Bit 12 of a large entry is no part of the frame."""
    walk = only(explain([ADDRESS, FAULT, LARGE.replace("404001e3", "404011e3")]), "walk")
    assert (walk.fields["level"], walk.fields["frame"]) == (2, 0x40405)


def test_walks_and_dumps_that_belong_to_no_fault() -> None:
    """The second walk and the second dump are another's; so is what follows the address of a fault whose own line is
    missing."""
    small = LARGE[:-16] + "40ccfb6063 PTE 8000000040405163"
    said = explain([ADDRESS, FAULT, LARGE, small, HEADER, GUEST_PAGE, HEADER, GUEST_PAGE])
    assert said.passed_over == 1
    first, second = (finding for finding in said.findings if finding.kind == "region")
    assert "2M leaf" in first.text
    assert "fault" not in second.text
    assert "fault" not in only(explain([FAULT, ADDRESS, HEADER]), "region").text


def test_fault_without_a_walk() -> None:
    said = explain([FAULT, HEADER, GUEST_PAGE])
    assert "went, if through a large leaf, so the frame is an innocent neighbour" in only(said, "region").text
    assert "PGD" in hints(only(said, "fault"))


def test_fault_alone_asks_for_the_other_lines() -> None:
    fault = one(FAULT)
    assert fault.fields == {"code": 0x80000003, "address": None}
    assert "PGD" in fault.look_at[0] and "SEV-SNP line" in fault.look_at[1]
    assert "page tables" in hints(one("#PF: error_code(0x80000001) - RMP violation"))


def test_walk_that_ends_early() -> None:
    said = explain([ADDRESS, FAULT, "PGD 5a31801067 P4D 5a31802067 PUD 40ccfb5063 PMD 0"])
    assert "before a leaf" in only(said, "walk").text


def test_other_faults_are_none_of_ours() -> None:
    """Neither an ordinary fault nor its walk is explained, nor taken for a part of the RMP fault before."""
    said = explain([FAULT, ADDRESS, "#PF: error_code(0x0002) - not-present page", LARGE, HEADER, GUEST_PAGE])
    assert [finding.kind for finding in said.findings] == ["fault", "region"]
    assert "line 1" not in only(said, "region").text
    assert said.passed_over == 2


def test_dump_of_another_frame_is_not_the_faults() -> None:
    other = HEADER.replace("PFN 0x40405", "PFN 0x40406")
    said = explain([ADDRESS, FAULT, LARGE, other, GUEST_PAGE, HEADER, GUEST_PAGE])
    first, second = (finding for finding in said.findings if finding.kind == "region")
    assert "fault" not in first.text
    assert "innocent neighbour" in second.text


@pytest.mark.parametrize(
    ("lo", "hi", "words", "hint"),
    [
        (0x8000000000000005, 0, "Firmware: the firmware's", "has to be reclaimed first"),
        (0x8000000000000005, 0, "made so by the firmware", "reclaimed"),
        (0x8000000000000005, 0xF, "was to this page itself, which is the firmware's", "reclaimed"),
        (0xA000000000000005, 0xF, "Context: ", "reclaimed"),
        (0x8001000001234005, 0xF, "Metadata: ", "reclaimed"),
        (0x8001000001234005, 0xF, "context page at 0x1234000", "reclaimed"),
        (0x0000000000000001, 0, "inside a 2 MiB page (the entry of frame 0x40400 tells whose)", "SNP_PAGE_RECLAIM"),
        (0x0028000000001001, 0xF, "Guest-Invalid: page of the guest with ASID 5, gpa 0x1000, 4 KiB", "call trace"),
        (0x0028000000001003, 0xF, "2 MiB. The write", "call trace"),
        (0x0000000000000004, 0, "HV-Fixed", ""),
    ],
)
def test_owner_of_the_page_that_was_written(lo: int, hi: int, words: str, hint: str) -> None:
    line = f"SEV-SNP: PFN 0x40405, RMP entry: [{lo:#018x} - {hi:#018x}]"
    entry = only(explain([ADDRESS, FAULT, LARGE, line]), "entry")
    assert words in entry.text
    assert hint in hints(entry)
    assert ("line 2" in entry.text) == bool(lo & 1)
    assert ("by the firmware," in entry.text) == (lo == 0x8000000000000005 and hi == 0)
    alone = one(line)
    assert "line" not in alone.text
    assert alone.fields["lo"] == lo and alone.fields["hi"] == hi


def test_forms_of_early_trees() -> None:
    """Quadwords in the other order, and decoded fields."""
    old = one("RMPEntry paddr 0x20cee00000 000000000000000f 8000000000000ffd")
    new = one("SEV-SNP: PFN 0x20cee00, RMP entry: [0x8000000000000ffd - 0x000000000000000f]")
    assert (old.text, old.fields) == (new.text, new.fields)
    text = "RMPEntry paddr 0x20cee00000 [assigned=1 immutable=0 pagesize=1 gpa=0x80 asid=9 vmsa=1 validated=1]"
    assert "Guest-Valid: page of the guest with ASID 9, gpa 0x80000, 2 MiB, a VMSA" in one(text).text
    assert "Pre-Swap" in one(text.replace("immutable=0", "immutable=1")).text
    assert "Guest-Invalid" in one(text.replace("validated=1", "validated=0")).text
    assert "VMSA" not in one(text.replace("vmsa=1", "vmsa=0")).text
    assert "4 KiB" in one(text.replace("pagesize=1", "pagesize=0")).text


def test_dump_that_failed() -> None:
    assert "no entry for it" in one("SEV-SNP: Failed to read RMP entry for PFN 0x40405, error -14").text
    assert "SNP is off" in one("SEV-SNP: Failed to read RMP contents for PFN 0x40405, error -19").text
    assert "error 1" in one("SEV-SNP: Failed to read RMP entry for PFN 0x40405, error 1").text


# --- regions -------------------------------------------------------------------------------------------------------

FIRMWARE = 0x8000000000000005


def region_dump(first: int, pfns: range, head: int | None = None, pfn: int | None = None, hi: int = 0) -> list[str]:
    """A dump of Firmware pages; ``head``: the low quadword of the aligned entry."""
    asked = pfn if pfn is not None else first + 511
    lines = [f"SEV-SNP: PFN {asked:#x} unassigned, dumping non-zero entries in 2M PFN region: "]
    lines[0] += f"[{first:#x} - {first + 512:#x}]"
    for at in pfns:
        lo = head if head is not None and at == first else FIRMWARE
        lines.append(f"SEV-SNP: PFN: {at:#x}, [{lo:#018x} - {hi:#018x}]")
    return lines


def test_start_of_the_rmp() -> None:
    """The RMP begins in the middle of 2 MiB: its first MiB is the upper half, and the aligned entry counts it."""
    region = only(explain(region_dump(0x88800, range(0x88900, 0x88A00), pfn=0x88801)), "region")
    assert "frames 0x88900-0x889ff the first 1 MiB of it" in region.text
    assert "0x88801 is 255 frames before it" in region.text


def test_end_of_the_rmp_in_a_whole_dump() -> None:
    region = only(explain(region_dump(0x56600, range(0x56600, 0x56700), FIRMWARE | 255 << 3, pfn=0x56710)), "region")
    assert "0x56710 is 16 frames after it" in region.text
    assert "are in the log" not in region.text


@pytest.mark.parametrize(
    ("pfns", "head", "hi"),
    [
        (range(0x56600, 0x566FF), FIRMWARE | 254 << 3, 0),  # not whole MiB
        (range(0x56600, 0x56700), FIRMWARE | 255 << 3, 0xF),  # pages that the host gave to the firmware
        (range(0x56680, 0x56780), None, 0),  # from neither end of the region
        (range(0x56600, 0x56601), 0x0028000000001001 | 255 << 3, 0),  # a guest's
        (range(0x56600, 0x56700), FIRMWARE | 256 << 3, 0),  # one assigned frame more than that
        (range(0x56600, 0x56700, 2), FIRMWARE | 255 << 3, 0),  # not all in a row
    ],
)
def test_firmware_pages_that_are_not_the_rmp(pfns: range, head: int | None, hi: int) -> None:
    region = only(explain(region_dump(0x56600, pfns, head, hi=hi)), "region")
    assert "RMP itself" not in region.text


def test_start_of_the_rmp_in_a_dump_with_missing_lines() -> None:
    """The aligned entry counts 256, and which ones they are is not known."""
    head, *lines = region_dump(0x88800, range(0x88980, 0x88A00), pfn=0x88801)
    aligned = f"SEV-SNP: PFN: 0x88800, [{256 << 3:#018x} - 0x0000000000000000]"
    region = only(explain([head, aligned, *lines]), "region")
    assert region.fields["assigned"] == 256
    assert "RMP itself" not in region.text


def test_region_of_an_rmp_that_the_log_has_placed() -> None:
    place = "SEV-SNP: RMP table physical range [0x000000004de00000 - 0x00000000566fffff]"
    dump = region_dump(0x56600, range(0x56600, 0x56610), FIRMWARE | 255 << 3, pfn=0x56701)
    region = only(explain([place, *dump]), "region")
    assert "The Firmware pages are the RMP itself; the frame lies after the end of the RMP, 0x566fffff." in region.text
    assert "robably" not in region.text
    before = region_dump(0x88800, range(0x88900, 0x88910), pfn=0x88801)
    place = "SEV-SNP: RMP table physical range [0x0000000088900000 - 0x00000000a8efffff]"
    assert "before the start of the RMP, 0x88900000" in only(explain([place, *before]), "region").text


def test_runs_of_a_region() -> None:
    """Frames in a row in one state are one run; a 2 MiB entry, another ASID and a gap end it."""
    lines = [HEADER]
    for at, lo in (
        (0x40400, 0x0028000000001001),
        (0x40401, 0x0028000000002001),
        (0x40402, 0x0030000000003001),
        (0x40404, 0x0030000000003001),
        (0x40406, 0x0028000000001003),
        (0x40407, 0x3),
        (0x40408, 0x1),
        (0x40409, 0x1),
        *((0x40410 + 2 * index, 0x4) for index in range(5)),
    ):
        lines.append(f"SEV-SNP: PFN: {at:#x}, [{lo:#018x} - 0x0000000000000000]")
    region = only(explain(lines), "region")
    assert [(run["pfn"], run["count"], run["state"]) for run in region.fields["entries"]] == [
        (0x40400, 2, "Guest-Invalid"),
        (0x40402, 1, "Guest-Invalid"),
        (0x40404, 1, "Guest-Invalid"),
        (0x40406, 1, "Guest-Invalid"),
        (0x40407, 1, "Reclaim"),
        (0x40408, 2, "Reclaim"),
        *((0x40410 + 2 * index, 1, "HV-Fixed") for index in range(5)),
    ]
    assert "frames 0x40400-0x40401 Guest-Invalid of ASID 5, frame 0x40402 Guest-Invalid of ASID 6" in region.text
    assert "frame 0x40406 Guest-Invalid of ASID 5 (2 MiB)" in region.text
    assert "frame 0x40412 HV-Fixed, and 3 more." in region.text
    assert region.fields["assigned"] == 8


def test_mixed_dumps_are_told_apart() -> None:
    """Two CPUs dump at the same time; an entry belongs to the region that holds it, or stands for itself."""
    other = HEADER.replace("0x404", "0x804").replace("0x406", "0x806")
    alone = GUEST_PAGE.replace("0x40407", "0x90007")
    said = explain([HEADER, other, GUEST_PAGE, GUEST_PAGE.replace("0x404", "0x804"), alone])
    first, second = (finding for finding in said.findings if finding.kind == "region")
    assert [run["pfn"] for run in first.fields["entries"]] == [0x40407]
    assert [run["pfn"] for run in second.fields["entries"]] == [0x80407]
    assert only(said, "entry").fields["pfn"] == 0x90007


# --- instructions --------------------------------------------------------------------------------------------------


def failed(pfn: int, level: int, code: int) -> str:
    return f"SEV-SNP: RMPUPDATE failed for PFN {pfn:x}, pg_level: {level}, ret: {code}"


@pytest.mark.parametrize(
    ("pfn", "level", "code", "rows"),
    [
        (0x40200, 1, 1, ["row 4", "row 5"]),
        (0x40201, 2, 1, ["row 3", "row 4", "row 5"]),
        (0x40200, 2, 1, ["row 4", "row 5"]),
        (0x40200, 1, 2, ["row 1", "row 6"]),
        (0x40200, 1, 3, ["row 7"]),
        (0x40200, 1, 4, ["row 8:", "or for"]),
        (0x40201, 1, 4, ["row 8b", "or for"]),
        (0x40200, 2, 4, ["row 9", "or for"]),
        (0x40200, 1, 9, ["RMPUPDATE has no such code"]),
    ],
)
def test_causes_in_the_order_of_the_checks(pfn: int, level: int, code: int, rows: list[str]) -> None:
    """rmp §2.2, without the rows that the line itself rules out."""
    finding = one(failed(pfn, level, code))
    assert [hint[: len(row)] for hint, row in zip(finding.look_at, rows, strict=True)] == rows


@pytest.mark.parametrize(
    ("rc", "row"),
    [
        (1, "row 2"),
        (2, "row 1"),
        (3, "row 3"),
        (7, "row 4"),
        (-19, "SNP is off"),
        (-22, "the frame"),
        (5, "PSMASH has no"),
    ],
)
def test_causes_of_a_failed_psmash(rc: int, row: str) -> None:
    for line in (
        f"psmash failed, gpa 0x1000 pfn 0x40201 rc {rc}",
        f"kvm_amd: SEV: Unable to split RMP entry for GPA 0x1000 PFN 0x40201 ret {rc}",
    ):
        finding = one(line)
        assert finding.look_at[0].startswith(row)
        assert "frame 0x40200" in finding.text


def test_coverage_that_the_log_tells() -> None:
    """RMP_END leaves entries for frames up to 0x88fc00."""
    place = "SEV-SNP: RMP table physical range [0x000000004de00000 - 0x00000000566fffff]"
    inside = explain([place, failed(0x88FBFF, 1, 1)]).findings[1]
    outside = explain([place, failed(0x88FC00, 1, 1)]).findings[1]
    assert [hint[:5] for hint in inside.look_at] == ["row 4"]
    assert [hint[:5] for hint in outside.look_at] == ["row 4", "row 5"]
    assert "does not cover" in outside.text and "does not cover" not in inside.text
    assert "page of the RMP itself" in explain([place, failed(0x4DE00, 1, 2)]).findings[1].text
    assert "page of the RMP itself" in explain([place, failed(0x566FF, 1, 2)]).findings[1].text
    assert "lies after the end" in explain([place, failed(0x56700, 1, 2)]).findings[1].text
    assert "in the same 2 MiB" not in explain([place, failed(0x56800, 1, 2)]).findings[1].text
    assert "in the same 2 MiB" not in explain([place, failed(0x56700, 1, 3)]).findings[1].text
    block = "SEV-SNP: Reserving start/end of RMP table on a 2MB boundary [0x0000000056600000]"
    assert "beside an end of the RMP, in the same 2 MiB" in explain([block, failed(0x56701, 1, 2)]).findings[1].text


def test_update_refused_and_the_entry_after_it() -> None:
    line = "SEV-SNP: PFN 0x40405, RMP entry: [{:#018x} - 0x000000000000000f]"
    refused = explain([failed(0x40405, 1, 2), line.format(FIRMWARE)])
    assert "RMPUPDATE was refused in line 1: the entry is immutable." in refused.findings[1].text
    changed = explain([failed(0x40405, 1, 2), line.format(0x28000000001001)])
    assert "not by the entry as it is now" in changed.findings[1].text
    other = explain([failed(0x40406, 1, 2), line.format(FIRMWARE), line.format(FIRMWARE).replace("405,", "406,")])
    assert "refused" not in other.findings[1].text
    assert "refused in line 1" in other.findings[2].text
    twice = explain([failed(0x40405, 1, 2), line.format(FIRMWARE), line.format(FIRMWARE)])
    assert "refused" not in twice.findings[2].text
    large = explain([failed(0x40405, 1, 4), line.format(0x28000000001003)])
    assert "PSMASH has to be first" in large.findings[1].text
    assert "PSMASH" not in explain([failed(0x40405, 1, 4), line.format(1)]).findings[1].text


def test_update_refused_and_the_region_after_it() -> None:
    """The entry that is not assigned may be in the dump itself: HV-Fixed, or something else by now."""
    fixed = "SEV-SNP: PFN: 0x40405, [0x0000000000000004 - 0x0000000000000000]"
    region = only(explain([failed(0x40405, 1, 2), HEADER, fixed]), "region")
    assert "the frame is HV-Fixed, as its entry says." in region.text
    assert "e820" in hints(region)
    assert "6.12" not in hints(region)
    assert "end of the RMP" not in region.text
    region = only(explain([failed(0x40405, 1, 2), HEADER, fixed.replace("04 -", "01 -")]), "region")
    assert "not by the entry as it is now, Reclaim." in region.text
    region = only(explain([failed(0x40405, 1, 2), HEADER]), "region")
    assert "HV-Fixed, as on a host nothing else" in region.text
    for other in (failed(0x40405, 1, 3), failed(0x40406, 1, 2)):
        assert "HV-Fixed" not in only(explain([other, HEADER]), "region").text


def test_other_lines() -> None:
    split = one("SEV-SNP: Failed to split direct map for PFN 0x40405, ret: -12")
    assert "not executed" in split.text
    leak = one("SEV-SNP: Leaking PFN range 0x40405-0x40406")
    assert leak.fields == {"first": 0x40405, "end": 0x40406, "pages": 1}
    assert one("Leaking PFN range 0x40405-0x40406").text == leak.text
    assert "TMR" not in leak.text
    assert "line before" in hints(leak)
    status = one("ccp 0000:44:00.1: SEV-SNP: failed to INIT rc -5, error 0x3")
    assert status.fields == {"what": "INIT", "rc": -5, "status": 3}
    assert "INVALID_CONFIG" in status.text
    assert "no answer" not in status.text
    kvm = one("kvm_amd: SEV: Unexpected RMP fault, no assigned RMP entry found for GPA 0x1000 PFN 0x40405 error 0")
    assert kvm.fields == {"gpa": 0x1000, "pfn": 0x40405}
    hardware = one("AMD-Vi: Event logged [RMP_HW_ERROR device=0000:c1:00.0, vmg_tag=0x0000, spa=0x1000, flags=0x0020]")
    assert "for 0000:c1:00.0 at 0x1000" in hardware.text


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (0x580000007, "covered, ASID, gpa, immutable, size"),
        (0x1580000007, "RMPADJUST"),
        (0x180000007, "shared write"),
    ],
)
def test_nested_faults(code: int, hint: str) -> None:
    assert hint in hints(one(f"#VMEXIT (NPF) - PRIVATE, err {code:#x}"))


def test_size_mismatch_under_a_small_mapping() -> None:
    assert "instruction" not in one("#VMEXIT (NPF) - SIZEM, err 0xd80000005 npt_level 1, rmp_level 2, private 1").text


# --- where the RMP is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", RANGES["contiguous"], ids=lambda row: row["base"])
def test_published_tables(row: dict[str, Any]) -> None:
    base, end = int(row["base"], 16), int(row["end"], 16)
    finding = one(f"SEV-SNP: RMP table physical range [{base:#018x} - {end:#018x}]")
    assert finding.fields == {"base": base, "end": end, "frames": int(row["covers_bytes"], 16) >> 12}
    assert f"to {row['covers_bytes']}" in finding.text
    expected = [not row["base_2m_aligned"], not row["end_2m_aligned"]]
    assert ["its start" in hints(finding), "its end" in hints(finding)] == expected


def test_segments_of_a_real_host() -> None:
    (row,) = RANGES["segmented"]
    said = explain(row["lines"])
    assert said.passed_over == 0
    assert [finding.kind for finding in said.findings] == [
        "rmp_base_table",
        "reserved_block",
        "reserved_block",
        "segment_size",
        "rmp_segment",
        "rmp_segment",
        "rmp_segment",
    ]
    assert "segment table at 0x9ba04000" in said.findings[0].text
    assert "128 GiB" in said.findings[3].text
    assert "segment 8 of the RMP covers 0x10000000000-0x11fffffffff" in said.findings[5].text

    def last(line: str) -> str:
        return explain([*row["lines"], line]).findings[-1].text

    assert "does not cover" in last(failed(0x880000, 1, 1))
    assert "does not cover" not in last(failed(0x10000000, 1, 1))
    for frame in (0x8800, 0x55B00, 0x75AFF, 0x9BA00, 0x9BA04):
        assert "page of the RMP itself" in last(failed(frame, 1, 2))
    for frame in (0x87FF, 0x75B00, 0x9BA05):
        assert "page of the RMP itself" not in last(failed(frame, 1, 2))
    assert "after the end of the RMP, 0x9ba04fff" in last(failed(0x9BA05, 1, 2))


REFUSALS = {
    "Memory for the RMP table has not been reserved by BIOS": "no memory for the RMP",
    "RMP configuration not valid: base=0x2000000, end=0x1000000": "ends at 0x1000000, before it begins at 0x2000000",
    "Memory reserved for the RMP table does not cover full system RAM (expected 0x40804000 got 0x40704000)": (
        "it covers memory to 0x4070000000, not to 0x4080000000"
    ),
    "Segmented RMP does not cover full system RAM (expected 0x880000000 got 0x800000000)": (
        "cover memory to 0x800000000, and there is RAM to 0x880000000"
    ),
    "RMP segment size (35) is not within advertised bounds (min=36, max=40)": "2^35 bytes, CPUID 8000_0025 allows 2^36",
    "Invalid RMP size 0x40000000 for configured segment size 0x20000000": "table of 1 GiB needs only 512 MiB",
    "Invalid RMP segment base address 0x1000 for configured segment size 0x1000": "no entry for 0x1000",
    "RMP segment descriptor already exists at index 3": "segment 3 is described twice",
    "Failed to map RMP table": "RMP's table could not be mapped",
    "Failed to map RMP bookkeeping area": "RMP's bookkeeping area could not be mapped",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refusals_of_the_kernel(line: str) -> None:
    finding = one(f"[    0.4] SEV-SNP: {line}")
    assert finding.kind == "refusal"
    assert REFUSALS[line] in finding.text
    assert finding.text.endswith("; SNP stays off")
    assert "settings" in finding.look_at[0]


def test_warnings_of_the_kernel() -> None:
    assert "RMP_END" in one("Segmented RMP enabled but RMP_END MSR is non-zero").text
    assert "200 GiB" in one("SEV-SNP: RMP segment 8 mapped size (0x3200000000) reduced to 0x2000000000").text
    line = "AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode, SNP cannot be supported."
    assert "no passthrough" in hints(one(line))


# --- a machine's own log -------------------------------------------------------------------------------------------


def test_what_a_machine_logs_is_explained(backend: str) -> None:
    """A page that is the firmware's cannot be given to a guest: the machine logs it, and the log is understood."""
    host = Host(backend, SNP)
    assert host.call("rmp_make_firmware", pfn=0x1005, level=1) == 0
    host.machine.write_rmp(0x1406, IMMUTABLE, 0)
    host.events()
    assert host.call("rmp_make_private", pfn=0x1005, gpa=0x1000, level=1, asid=5) == -14
    assert host.call("rmp_make_private", pfn=0x1406, gpa=0x1000, level=1, asid=5) == -14
    said = explain(kernel_log(host.machine.take_events()))
    assert said.passed_over == 0
    kinds = [finding.kind for finding in said.findings]
    assert kinds == ["update_failed", "entry", "update_failed", "region"]
    entry, region = only(said, "entry"), only(said, "region")
    assert "Firmware: the firmware's" in entry.text
    assert "refused in line 1: the entry is immutable" in entry.text
    assert "by the firmware," not in entry.text  # VMPL0 has permissions: the host's RMPUPDATE made it so
    assert "refused in line 3: the frame is HV-Fixed, as its entry says" in region.text


# --- any input -----------------------------------------------------------------------------------------------------

FRAGMENTS = sorted(
    {line for dump in DUMPS for line in dump["lines"]}
    | {line for row in RANGES["segmented"] for line in row["lines"]}
    | set(REFUSALS)
    | {ADDRESS, FAULT, LARGE, HUGE, HEADER, GUEST_PAGE}
)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12))
def test_lines_in_any_order(lines: list[str]) -> None:
    said = explain(lines)
    assert said.lines == len(lines)
    assert 0 <= said.passed_over <= len(lines)
    assert all(1 <= finding.line <= len(lines) and finding.text for finding in said.findings)
    assert [finding.line for finding in said.findings] == sorted(finding.line for finding in said.findings)
    json.dumps(explanation_to_json(said))
    assert all("\n" not in line for line in explanation_text(said))


@given(
    line=st.sampled_from(FRAGMENTS),
    place=st.floats(0, 1),
    size=st.integers(0, 6),
    insert=st.text(alphabet="0123456789abcdefx-:[]{},\"' \0é", max_size=20),
    after=st.lists(st.sampled_from(FRAGMENTS), max_size=3),
)
def test_changed_lines(line: str, place: float, size: int, insert: str, after: list[str]) -> None:
    cut = int(place * len(line))
    said = explain([line[:cut] + insert + line[cut + size :], *after])
    json.dumps(explanation_to_json(said))
    assert list(explanation_text(said))


@given(st.text())
def test_other_text_is_passed_over(text: str) -> None:
    assert explain([text]).findings == () or parse(text) is not None


def test_numbers_that_are_too_long_are_no_numbers() -> None:
    for line in (
        "SEV-SNP: PFN 0x" + "1" * 17 + ", RMP entry: [0x1 - 0x0]",
        "psmash failed, gpa 0x1 pfn 0x1 rc " + "7" * 5000,
    ):
        assert explain([line]).findings == ()


def test_as_json() -> None:
    value: Any = json.loads(json.dumps(explanation_to_json(explain(log_of("2602.3/03780")))))
    assert (value["lines"], value["passed_over"]) == (6, 2)
    assert set(value["findings"][0]) == {"line", "kind", "fields", "text", "look_at"}
    assert value["findings"][2]["fields"]["entry"] == "assigned 4K gpa=0xfffffffff000 asid=2 vmsa validated vmpl0=rwuxs"
