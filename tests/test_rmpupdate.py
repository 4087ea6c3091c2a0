"""rmp §2.2: RMPUPDATE, each check in its order, and what is written."""

from __future__ import annotations

from typing import Any

import pytest
from machines import (
    ASSIGNED,
    FAIL_INPUT,
    FAIL_INUSE,
    FAIL_OVERLAP,
    FAIL_PERMISSION,
    IMMUTABLE,
    LOCK,
    SIZE_2M,
    SMALL,
    SNP,
    SNP_COVERED,
    SUCCESS,
    U64,
    VALIDATED,
    VMSA,
    Host,
)

from rmpcore.ops import Event, EventKind, Kind

ASID_5 = 5 << 51
COUNT_SHIFT = 3
COUNT_MASK = 0x1FF << COUNT_SHIFT


def count(host: Host, aligned: int = 0x200) -> int:
    """The subpage count in the entry of a 2 MiB-aligned page."""
    return (host.rmp(aligned)[0] & COUNT_MASK) >> COUNT_SHIFT


def everything(host: Host) -> list[tuple[int, int, int]]:
    return [(pfn, lo, hi) for pfn, lo, hi in host.state().rmp.tolist()]


# row 0


@pytest.mark.parametrize("flags", [{}, {"user": 1}, {"guest": 1}, {"user": 1, "guest": 1}])
def test_row_0_not_enabled(backend: str, flags: dict[str, int]) -> None:
    """rmp §2.2 row 0: no RMP: #UD, before the #GP of user mode and before row 1."""
    host = Host(backend, SMALL)
    for name, args in (("RMPUPDATE", {"gpa": 0, "assigned": 0, "size": 0, "asid": 0}), ("PSMASH", {}), ("RMPREAD", {})):
        result = host.do(name, pa=0x200000, **args, **flags)
        assert (result.kind, result.ret) == (Kind.FAULT, 6)
    assert host.events() == []
    counters = host.counters()
    assert counters["rmpupdate"] == counters["psmash"] == counters["rmpread"] == 0


@pytest.mark.parametrize("guest", [0, 1])
def test_row_0_user_mode(backend: str, guest: int) -> None:
    """rmp §2.2 row 0: CPL 3: #GP, before row 1; not counted, no event, and it takes no injected code."""
    host = Host(backend, SNP, switches={"rmpread": 1})
    host.call("inject", code=3)
    for name, args in (("RMPUPDATE", {"gpa": 0, "assigned": 1, "size": 0, "asid": 1}), ("PSMASH", {}), ("RMPREAD", {})):
        result = host.do(name, pa=0x200000, user=1, guest=guest, **args)
        assert (result.kind, result.ret) == (Kind.FAULT, 13)
    assert host.events() == []
    counters = host.counters()
    assert counters["rmpupdate"] == counters["psmash"] == counters["rmpread"] == 0
    assert everything(host) == []
    assert host.state().inject == ((3, 1),)


# rows 1 to 9, one at a time.  Each row's case violates that row and none before it; VIOLATED_TOO adds later ones.


def test_row_1_guest(backend: str) -> None:
    """rmp §2.2 row 1: executed in a guest: FAIL_PERMISSION, before the misaligned size of row 3."""
    host = Host(backend, SNP)
    assert host.update(0x201, assigned=1, asid=5, guest=1) == FAIL_PERMISSION
    assert host.update(0x201, size=1, guest=1) == FAIL_PERMISSION
    assert host.update(SNP_COVERED, guest=1) == FAIL_PERMISSION
    assert everything(host) == []


@pytest.mark.parametrize("pfn", [0x201, 0x300, 0x3FF])
def test_row_3_misaligned(backend: str, pfn: int) -> None:
    """rmp §2.2 row 3: 2M and SPA[20:12] not 0: FAIL_INPUT."""
    host = Host(backend, SNP)
    assert host.update(pfn, assigned=1, size=1, asid=5) == FAIL_INPUT
    assert host.update(pfn, size=1) == FAIL_INPUT
    assert everything(host) == []


def test_row_3_before_row_6(backend: str) -> None:
    """rmp §2.2: row 3 (FAIL_INPUT) wins over row 6 (FAIL_PERMISSION)."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x201, ASSIGNED | IMMUTABLE, 0)
    assert host.update(0x201, size=1) == FAIL_INPUT


def test_low_bits_of_the_address_are_ignored(backend: str) -> None:
    """rmp §2.2: bits 11:0 of RAX take no part, in 2M updates neither."""
    host = Host(backend, SNP)
    assert host.insn("RMPUPDATE", pa=0x201FFF, gpa=0, assigned=1, size=0, asid=5) == SUCCESS
    assert host.rmp(0x201)[0] == ASSIGNED | ASID_5
    assert host.insn("RMPUPDATE", pa=0x400ABC, gpa=0, assigned=1, size=1, asid=5) == SUCCESS
    assert host.rmp(0x400)[0] == ASSIGNED | SIZE_2M | ASID_5


@pytest.mark.parametrize(
    "args", [{"immutable": 1}, {"asid": 1}, {"asid": 5, "immutable": 1}, {"asid": 0x3FF}, {"immutable": 1, "size": 1}]
)
def test_row_4(backend: str, args: dict[str, int]) -> None:
    """rmp §2.2 row 4: unassigned with immutable or an ASID: FAIL_INPUT."""
    host = Host(backend, SNP)
    assert host.update(0x200, **args) == FAIL_INPUT
    assert everything(host) == []


def test_row_4_before_row_6(backend: str) -> None:
    """rmp §2.2, §5: "unassign with asid != 0: 1", on an immutable entry too."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x201, ASSIGNED | IMMUTABLE | LOCK, 0x0F)
    assert host.update(0x201, asid=5) == FAIL_INPUT
    assert host.update(0x201, immutable=1) == FAIL_INPUT


@pytest.mark.parametrize(
    ("limit", "asid", "code"),
    [
        (None, 0x3FF, SUCCESS),
        (None, 0x400, FAIL_INPUT),
        (None, 0xFFFF_FFFF, FAIL_INPUT),
        (None, 0x8000_0001, FAIL_INPUT),
        (0x63, 0x63, SUCCESS),
        (0x63, 0x64, FAIL_INPUT),
        (0, 0, SUCCESS),
        (0, 1, FAIL_INPUT),
    ],
)
def test_asid_limit(backend: str, limit: int | None, asid: int, code: int) -> None:
    """rmp §2.2 row 4, §5: an ASID above the limit is FAIL_INPUT; all 32 bits of it count."""
    host = Host(backend, SNP, switches=None if limit is None else {"asid_limit": limit})
    assert host.update(0x201, assigned=1, asid=asid) == code
    assert (everything(host) != []) == (code == SUCCESS)


RESERVED_BITS = [1 << bit for bit in (*range(1, 8), *range(9, 16), *range(17, 24), *range(24, 32))]


@pytest.mark.parametrize("bit", RESERVED_BITS)
def test_reserved_bits_switch(backend: str, bit: int) -> None:
    """rmp §5: reserved bits of bytes 8 to 11 are ignored, or FAIL_INPUT with the switch reserved_input."""
    strict = Host(backend, SNP, switches={"reserved_input": 1})
    assert strict.update(0x201, assigned=1, asid=5, reserved=bit) == FAIL_INPUT
    assert everything(strict) == []
    host = Host(backend, SNP)
    assert host.update(0x201, assigned=1, asid=5, reserved=bit) == SUCCESS
    assert host.rmp(0x201) == (ASSIGNED | ASID_5, 0x0F)


@pytest.mark.parametrize("gpa", [0x1001, 0x1800, 0x1FFF])
def test_reserved_bits_of_the_gpa(backend: str, gpa: int) -> None:
    """rmp §5: bits 11:0 of the guest address likewise."""
    strict = Host(backend, SNP, switches={"reserved_input": 1})
    assert strict.update(0x201, assigned=1, asid=5, gpa=gpa) == FAIL_INPUT
    assert strict.update(0x201, assigned=1, asid=5, gpa=0x1000) == SUCCESS
    host = Host(backend, SNP)
    assert host.update(0x201, assigned=1, asid=5, gpa=gpa) == SUCCESS
    assert host.rmp(0x201)[0] == ASSIGNED | 0x1000 | ASID_5


def test_reserved_overlaps_the_fields(backend: str) -> None:
    """rmp §1.5: the extra bits are OR-ed into the high quadword before it is decoded: bit 0 of bytes 8, 9, 10 and the
    ASID."""
    host = Host(backend, SNP, switches={"reserved_input": 1})
    assert host.update(0x200, reserved=1 | 1 << 8 | 1 << 16 | 7 << 32) == SUCCESS
    assert host.rmp(0x200)[0] == LOCK | ASSIGNED | SIZE_2M | IMMUTABLE | 7 << 51
    assert host.update(0x401, asid=5, assigned=1, reserved=2 << 32) == SUCCESS
    assert host.rmp(0x401)[0] == ASSIGNED | 7 << 51
    assert host.update(0x402, assigned=1, asid=5, reserved=1 << 42) == FAIL_INPUT
    assert host.events()[0].c == 1 | 1 << 8 | 1 << 16 | 7 << 32


def test_row_5_uncovered(backend: str) -> None:
    """rmp §2.2 row 5: beyond RMP_END: FAIL_INPUT."""
    host = Host(backend, SNP)
    assert host.update(SNP_COVERED - 1, assigned=1, asid=5) == SUCCESS
    assert host.update(SNP_COVERED, assigned=1, asid=5) == FAIL_INPUT
    # the last 2 MiB region, frames 0xfa00 to 0xfbff, is covered as a whole
    assert host.update(SNP_COVERED - 0x400, assigned=1, asid=5, size=1) == SUCCESS
    assert host.update(SNP_COVERED, assigned=1, asid=5, size=1) == FAIL_INPUT


@pytest.mark.parametrize(
    "args", [{}, {"assigned": 1, "asid": 5}, {"size": 1}, {"assigned": 1, "size": 1}, {"assigned": 1, "immutable": 1}]
)
def test_row_6_immutable(backend: str, args: dict[str, int]) -> None:
    """rmp §2.2 row 6: "any RMPUPDATE on immutable: 2"."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x200, ASSIGNED | IMMUTABLE | LOCK | ASID_5, 0x0F)
    assert host.update(0x200, **args) == FAIL_PERMISSION
    assert everything(host) == [(0x200, ASSIGNED | IMMUTABLE | LOCK | ASID_5, 0x0F)]


def test_row_6_hv_fixed(backend: str) -> None:
    """rmp §3.6: immutable without assigned ("HV-Fixed") is refused as well."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x201, IMMUTABLE, 0)
    assert host.update(0x201, assigned=1, asid=5) == FAIL_PERMISSION


def test_lock_alone_does_not_refuse(backend: str) -> None:
    """rmp §2.2 row 6 looks at immutable (bit 2), not at lock (bit 63)."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x201, ASSIGNED | LOCK, 0)
    assert host.update(0x201) == SUCCESS
    assert host.rmp(0x201)[0] == 0


@pytest.mark.parametrize("args", [{}, {"assigned": 1, "asid": 5}, {"assigned": 1, "immutable": 1}])
def test_row_8_aligned_page_of_a_2m_entry(backend: str, args: dict[str, int]) -> None:
    """rmp §2.2 row 8: 4K at the aligned page of a 2M entry: FAIL_OVERLAP."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    before = everything(host)
    assert host.update(0x200, **args) == FAIL_OVERLAP
    assert everything(host) == before


def test_row_6_before_row_8(backend: str) -> None:
    """rmp §2.2: an immutable 2M entry: FAIL_PERMISSION, not FAIL_OVERLAP."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1, immutable=1)
    assert host.update(0x200) == FAIL_PERMISSION


@pytest.mark.parametrize("switches", [None, {"overlap_inner": 1}, {"overlap_inner": 3}, {"overlap_inner": 255}])
@pytest.mark.parametrize("pfn", [0x201, 0x2FF, 0x3FF])
@pytest.mark.parametrize("args", [{}, {"assigned": 1, "asid": 5}])
def test_row_8b_inside_a_2m_entry(
    backend: str, switches: dict[str, int] | None, pfn: int, args: dict[str, int]
) -> None:
    """rmp §2.2 row 8b: 4K inside an assigned 2M entry: FAIL_OVERLAP, or what the switch overlap_inner says."""
    host = Host(backend, SNP, switches=switches)
    host.assign(0x200, size=1)
    before = everything(host)
    assert host.update(pfn, **args) == (switches or {}).get("overlap_inner", FAIL_OVERLAP)
    assert everything(host) == before
    assert host.update(0x400, **args) == SUCCESS


def test_row_8_is_not_switched(backend: str) -> None:
    """rmp §5: overlap_inner is the code of row 8b alone."""
    host = Host(backend, SNP, switches={"overlap_inner": 9})
    host.assign(0x200, size=1)
    assert host.update(0x200) == FAIL_OVERLAP
    host.assign(0x401)
    assert host.update(0x400, assigned=1, size=1, asid=5) == FAIL_OVERLAP


def test_row_6_before_row_8b(backend: str) -> None:
    """rmp §2.2: an inner entry that is immutable itself (stored by hand): row 6 comes first."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    host.machine.write_rmp(0x210, ASSIGNED | IMMUTABLE, 0)
    assert host.update(0x210) == FAIL_PERMISSION


def test_row_8b_needs_an_assigned_2m_entry(backend: str) -> None:
    """rmp §2.2 row 8b: a 4K aligned page, assigned or not, does not stand in the way."""
    host = Host(backend, SNP)
    host.assign(0x200)
    assert host.update(0x201, assigned=1, asid=5) == SUCCESS
    assert host.update(0x3FF, assigned=1, asid=5) == SUCCESS


@pytest.mark.parametrize("other", [0x201, 0x300, 0x3FF])
@pytest.mark.parametrize("args", [{"assigned": 1, "asid": 5}, {}, {"assigned": 1, "immutable": 1}])
def test_row_9_assigned_page_in_the_region(backend: str, other: int, args: dict[str, int]) -> None:
    """rmp §2.2 row 9: 2M while some other 4K entry of the region is assigned: FAIL_OVERLAP, to unassign too."""
    host = Host(backend, SNP)
    host.assign(other)
    before = everything(host)
    assert host.update(0x200, size=1, **args) == FAIL_OVERLAP
    assert everything(host) == before
    assert host.update(other) == SUCCESS
    assert host.update(0x200, size=1, **args) == SUCCESS


def test_row_9_without_counts(backend: str) -> None:
    """rmp §2.2 row 9: so do they where nothing is counted."""
    host = Host(backend, SNP, switches={"subpage_count": 0})
    host.assign(0x201)
    assert host.update(0x200, assigned=1, size=1, asid=5) == FAIL_OVERLAP
    assert host.update(0x201) == SUCCESS
    assert host.update(0x200, assigned=1, size=1, asid=5) == SUCCESS


def test_row_9_looks_at_the_entries_themselves(backend: str) -> None:
    """rmp §2.2 row 9: the assigned bits of the 511 others decide, not the count in the aligned entry."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x200, 7 << COUNT_SHIFT, 0)
    assert host.update(0x200, assigned=1, size=1, asid=5) == SUCCESS
    host.machine.write_rmp(0x401, ASSIGNED, 0)
    assert host.update(0x400, assigned=1, size=1, asid=5) == FAIL_OVERLAP


def test_row_9_own_page_and_other_regions_do_not_count(backend: str) -> None:
    """rmp §2.2 row 9: "some *other* 4K entry of the region": the aligned page itself and the neighbours' pages are no
    obstacle."""
    host = Host(backend, SNP)
    host.assign(0x1FF)
    host.assign(0x400)
    host.assign(0x200)
    assert host.update(0x200, assigned=1, size=1, asid=5) == SUCCESS


def test_row_9_not_for_an_old_2m_entry(backend: str) -> None:
    """rmp §2.2 row 9: "while the old aligned entry is not a 2M one": a 2M entry can be changed and given back at 2M."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    assert host.update(0x200, assigned=1, size=1, asid=6) == SUCCESS
    assert host.rmp(0x200)[0] == ASSIGNED | SIZE_2M | 6 << 51
    assert host.rmp(0x3FF) == (ASSIGNED, 0)
    assert host.update(0x200, size=1) == SUCCESS
    assert everything(host) == [(0x200, 0, 0x0F)]


def test_row_6_before_row_9(backend: str) -> None:
    """rmp §2.2: an immutable aligned page in a region with assigned pages: FAIL_PERMISSION."""
    host = Host(backend, SNP)
    host.assign(0x201)
    host.assign(0x200, immutable=1)
    assert host.update(0x200, assigned=1, size=1, asid=5) == FAIL_PERMISSION


# row 10: what is written


def test_write_4k(backend: str) -> None:
    """rmp §2.2 row 10: assigned, asid, immutable, gpa, page_size come from the input; one entry is written."""
    host = Host(backend, SNP)
    assert host.update(0x201, assigned=1, gpa=0x7000, asid=5, immutable=1) == SUCCESS
    # of the aligned page only the count changes
    assert everything(host) == [
        (0x200, 1 << COUNT_SHIFT, 0),
        (0x201, LOCK | ASSIGNED | IMMUTABLE | 0x7000 | ASID_5, 0x0F),
    ]


def test_write_2m(backend: str) -> None:
    """rmp §2.2: the 511 others become zero but for assigned: 1, asid 0, immutable 0."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x2AA, VALIDATED | VMSA | 0x5000, 0x0F0F)
    assert host.update(0x200, assigned=1, gpa=0x4000_0000, asid=5, immutable=1, size=1) == SUCCESS
    first = (0x200, LOCK | ASSIGNED | SIZE_2M | IMMUTABLE | 0x4000_0000 | ASID_5, 0x0F)
    assert everything(host) == [first, *((pfn, ASSIGNED, 0) for pfn in range(0x201, 0x400))]


def test_unassign_2m(backend: str) -> None:
    """rmp §2.2: new.assigned = 0: stored page_size is 0; the 511 others are all zero."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1, gpa=0x4000_0000)
    assert host.update(0x200, size=1) == SUCCESS
    assert everything(host) == [(0x200, 0, 0x0F)]


def test_unassign_2m_clears_stale_entries(backend: str) -> None:
    """rmp §2.2: the 511 others become all zero also where they held something without being assigned."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x2AA, VALIDATED | 0x5000, 0x0F0F)
    assert host.update(0x200, size=1) == SUCCESS
    assert everything(host) == [(0x200, 0, 0x0F)]


def test_unassign_4k(backend: str) -> None:
    """rmp §2.2: giving back: low quadword 0; reset permissions stay in the high one."""
    host = Host(backend, SNP)
    host.assign(0x201, gpa=0x7000)
    assert host.update(0x201) == SUCCESS
    assert host.rmp(0x201) == (0, 0x0F)
    assert host.rmp(0x200) == (0, 0)


def test_unassign_takes_the_gpa_of_the_input(backend: str) -> None:
    """rmp §2.2: "gpa is taken from new", also where assigned is 0."""
    host = Host(backend, SNP)
    assert host.update(0x201, gpa=0x1234_5000) == SUCCESS
    assert host.rmp(0x201) == (0x1234_5000, 0x0F)


@pytest.mark.parametrize(("hardware", "everything_for_vmpl0"), [("milan", 0x0F), ("genoa", 0x1F)])
def test_reset_on_unassigned_page(backend: str, hardware: str, everything_for_vmpl0: int) -> None:
    """rmp §2.2: unassigned to unassigned is a write like any other (asid = 0: reset)."""
    host = Host(backend, SNP, hardware=hardware)
    host.machine.write_rmp(0x201, VALIDATED | VMSA, 0xFFFF_FFFF_FFFF_FFFF)
    assert host.update(0x201) == SUCCESS
    assert host.rmp(0x201) == (0, everything_for_vmpl0)


# keep or reset

VALID_PAGE = VALIDATED | VMSA | ASSIGNED | 0x7000 | ASID_5
PERMISSIONS = 0xC000_0001_0703_0F1F


def valid_page(backend: str, **options: Any) -> Host:
    """Page 0x201 validated by guest 5 at 0x7000, with permissions for all VMPLs."""
    host = Host(backend, SNP, **options)
    host.assign(0x201, gpa=0x7000)
    host.machine.write_rmp(0x201, VALID_PAGE, PERMISSIONS)
    return host


def test_keep_when_nothing_changes(backend: str) -> None:
    """rmp §2.2 keep-or-reset: asid, gpa, page_size, assigned as they were: validated, vmsa, permissions stay."""
    host = valid_page(backend)
    host.assign(0x201, gpa=0x7000)
    assert host.rmp(0x201) == (VALID_PAGE, PERMISSIONS)


def test_keep_for_pre_swap(backend: str) -> None:
    """rmp §2.2, §5: Guest-Valid with only immutable set becomes Pre-Swap: everything kept."""
    host = valid_page(backend)
    host.assign(0x201, gpa=0x7000, immutable=1)
    assert host.rmp(0x201) == (VALID_PAGE | IMMUTABLE | LOCK, PERMISSIONS)


@pytest.mark.parametrize(
    ("args", "lo"),
    [
        ({"assigned": 1, "asid": 6, "gpa": 0x7000}, ASSIGNED | 0x7000 | 6 << 51),
        ({"assigned": 1, "asid": 5, "gpa": 0x8000}, ASSIGNED | 0x8000 | ASID_5),
        ({"assigned": 1, "asid": 0, "gpa": 0x7000}, ASSIGNED | 0x7000),
        ({"gpa": 0x7000}, 0x7000),
        ({}, 0),
    ],
)
def test_reset_when_something_changes(backend: str, args: dict[str, int], lo: int) -> None:
    """rmp §2.2 keep-or-reset: another asid, gpa or owner, or asid 0: validated = vmsa = 0, VMPL0 all, the others
    none."""
    host = valid_page(backend)
    assert host.update(0x201, **args) == SUCCESS
    assert host.rmp(0x201) == (lo, 0x0F)


def test_reset_when_the_size_changes(backend: str) -> None:
    """rmp §2.2: resizing the aligned page from 4K to 2M resets."""
    host = Host(backend, SNP)
    host.assign(0x200, gpa=0x4000_0000)
    host.machine.write_rmp(0x200, VALIDATED | ASSIGNED | 0x4000_0000 | ASID_5, PERMISSIONS)
    host.assign(0x200, gpa=0x4000_0000, size=1)
    assert host.rmp(0x200) == (ASSIGNED | SIZE_2M | 0x4000_0000 | ASID_5, 0x0F)


def test_asid_0_resets_even_if_the_same(backend: str) -> None:
    """rmp §2.2: "or asid = 0": a firmware page written again with the same fields is reset."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x201, VALIDATED | VMSA | ASSIGNED, PERMISSIONS)
    assert host.update(0x201, assigned=1) == SUCCESS
    assert host.rmp(0x201) == (ASSIGNED, 0x0F)


def test_keep_at_2m(backend: str) -> None:
    """rmp §2.2: a 2M entry is kept likewise; its 511 others are written anew."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1, gpa=0x4000_0000)
    raw = VALIDATED | ASSIGNED | SIZE_2M | 0x4000_0000 | ASID_5
    host.machine.write_rmp(0x200, raw, PERMISSIONS)
    host.machine.write_rmp(0x2AA, VALIDATED | ASSIGNED | 0x5000, 0x0F)
    host.assign(0x200, size=1, gpa=0x4000_0000, immutable=1)
    assert host.rmp(0x200) == (raw | IMMUTABLE | LOCK, PERMISSIONS)
    assert host.rmp(0x2AA) == (ASSIGNED, 0)


def test_same_gpa_after_the_cut(backend: str) -> None:
    """rmp §2.2: "same" compares with the gpa as it is stored: an address that differs above the width is the same."""
    host = valid_page(backend)
    host.assign(0x201, gpa=1 << 48 | 0x7000)
    assert host.rmp(0x201) == (VALID_PAGE, PERMISSIONS)
    host.assign(0x201, gpa=0x7FFF)
    assert host.rmp(0x201) == (VALID_PAGE, PERMISSIONS)


def test_keep_same_switch(backend: str) -> None:
    """rmp §5: with keep_same off every write resets."""
    host = valid_page(backend, switches={"keep_same": 0})
    host.assign(0x201, gpa=0x7000, immutable=1)
    assert host.rmp(0x201) == (LOCK | IMMUTABLE | ASSIGNED | 0x7000 | ASID_5, 0x0F)


def test_count_takes_no_part_in_same(backend: str) -> None:
    """rmp §2.2: the subpage count of the aligned page is no reason to reset, and is kept by a 4K write of that page."""
    host = Host(backend, SNP)
    host.assign(0x200, gpa=0x7000)
    host.assign(0x201)
    raw = VALIDATED | ASSIGNED | 0x7000 | ASID_5 | 1 << COUNT_SHIFT
    host.machine.write_rmp(0x200, raw, PERMISSIONS)
    host.assign(0x200, gpa=0x7000)
    assert host.rmp(0x200) == (raw, PERMISSIONS)


# subpage count (§1.2)


def test_count_of_other_pages(backend: str) -> None:
    """rmp §1.2: the number of *other* assigned 4K pages, in the aligned page's entry."""
    host = Host(backend, SNP)
    assert count(host) == 0
    host.assign(0x200)
    assert count(host) == 0
    for number, pfn in enumerate((0x201, 0x202, 0x3FF), start=1):
        host.assign(pfn)
        assert count(host) == number
    # another region has its own
    assert count(host, 0x400) == 0


def test_count_of_a_page_written_again(backend: str) -> None:
    """rmp §1.2: new.assigned - old.assigned: a second assign adds nothing."""
    host = Host(backend, SNP)
    host.assign(0x201)
    host.assign(0x201, asid=6)
    assert count(host) == 1
    assert host.update(0x201) == SUCCESS
    assert host.update(0x201) == SUCCESS
    assert count(host) == 0


def test_count_stays_with_the_aligned_page(backend: str) -> None:
    """rmp §1.2: a 4K write of the aligned page keeps the count, assigned or given back."""
    host = Host(backend, SNP)
    host.assign(0x201)
    host.assign(0x202)
    host.assign(0x200)
    assert host.rmp(0x200)[0] == ASSIGNED | ASID_5 | 2 << COUNT_SHIFT
    assert host.update(0x200) == SUCCESS
    assert host.rmp(0x200) == (2 << COUNT_SHIFT, 0x0F)


def test_count_of_a_full_region(backend: str) -> None:
    """rmp §1.2: 512 A4 as for the firmware's region: the head has count 511."""
    host = Host(backend, SNP)
    for pfn in range(0x200, 0x400):
        assert host.update(pfn, assigned=1, immutable=1) == SUCCESS
    assert host.rmp(0x200) == (LOCK | IMMUTABLE | ASSIGNED | 511 << COUNT_SHIFT, 0x0F)


def test_count_of_2m_is_zero(backend: str) -> None:
    """rmp §1.2: zero while the region is one 2M entry."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x200, 99 << COUNT_SHIFT, 0)
    host.assign(0x200, size=1)
    assert count(host) == 0
    host.machine.write_rmp(0x200, ASSIGNED | SIZE_2M | 99 << COUNT_SHIFT, 0)
    assert host.update(0x200, size=1) == SUCCESS
    assert count(host) == 0


def test_count_saturates(backend: str) -> None:
    """rmp §1.2: it stays in 0..511 whatever was stored by hand."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x200, 511 << COUNT_SHIFT, 0)
    host.assign(0x201)
    assert host.rmp(0x200)[0] == 511 << COUNT_SHIFT
    host.machine.write_rmp(0x200, 0, 0)
    assert host.update(0x201) == SUCCESS
    assert host.rmp(0x200)[0] == 0


def test_count_switch(backend: str) -> None:
    """rmp §1.2 [inferred]: with subpage_count off 4K writes leave the field alone; a 2M write still stores 0."""
    host = Host(backend, SNP, switches={"subpage_count": 0})
    host.machine.write_rmp(0x200, 3 << COUNT_SHIFT, 0)
    host.assign(0x201)
    assert host.rmp(0x200)[0] == 3 << COUNT_SHIFT
    assert host.update(0x201) == SUCCESS
    host.assign(0x200)
    assert host.rmp(0x200)[0] == ASSIGNED | ASID_5 | 3 << COUNT_SHIFT
    host.assign(0x200, size=1)
    assert count(host) == 0


def test_failed_update_leaves_the_count(backend: str) -> None:
    """rmp §2.2: a refused update changes nothing at all."""
    host = Host(backend, SNP)
    host.assign(0x201, immutable=1)
    before = everything(host)
    assert host.update(0x201) == FAIL_PERMISSION
    assert everything(host) == before


# events, counters, injection


def test_event_and_counter(backend: str) -> None:
    """Each execution is reported with RAX, the input and EAX, and counted, successful or not."""
    host = Host(backend, SNP)
    host.update(0x201, assigned=1, asid=5, gpa=0x7123, immutable=1)
    host.update(0x202, size=1)
    host.update(0x203, assigned=1, asid=0xFFFF_FFFF)
    assert host.events() == [
        Event(EventKind.RMPUPDATE, code=0, a=0x201000, b=0x7123, c=1 | 1 << 16 | 5 << 32),
        Event(EventKind.RMPUPDATE, code=1, a=0x202000, b=0, c=1 << 8),
        Event(EventKind.RMPUPDATE, code=1, a=0x203000, b=0, c=1 | 0xFFFF_FFFF << 32),
    ]
    assert host.counters()["rmpupdate"] == 3


@pytest.mark.parametrize("code", [1, 2, FAIL_INUSE, 4, 7, 255])
def test_injected_code(backend: str, code: int) -> None:
    """An injected code is EAX and nothing else happens; then execution is normal again."""
    host = Host(backend, SNP)
    host.call("inject", code=code)
    assert host.update(0x201, assigned=1, asid=5) == code
    assert everything(host) == []
    assert host.events() == [Event(EventKind.RMPUPDATE, code=code, a=0x201000, b=0, c=1 | 5 << 32)]
    assert host.counters()["rmpupdate"] == 1
    assert host.update(0x201, assigned=1, asid=5) == SUCCESS


def test_injected_runs_in_order(backend: str) -> None:
    """Runs are taken from the front; code 0 executes normally; what is left is part of the state."""
    host = Host(backend, SNP)
    host.call("inject", code=3, count=2)
    host.call("inject", code=0, count=1)
    host.call("inject", code=3, count=1)
    assert host.state().inject == ((3, 2), (0, 1), (3, 1))
    codes = []
    for _ in range(5):
        codes.append(host.update(0x201, assigned=1, asid=5))
    assert codes == [3, 3, SUCCESS, 3, SUCCESS]
    assert host.state().inject == ()


def test_runs_of_one_code_do_not_merge(backend: str) -> None:
    """Two runs of the same code stay two."""
    host = Host(backend, SNP)
    host.call("inject", code=4, count=2)
    host.call("inject", code=4, count=3)
    assert host.state().inject == ((4, 2), (4, 3))
    host.update(0x201)
    assert host.state().inject == ((4, 1), (4, 3))


def test_injection_comes_before_row_1(backend: str) -> None:
    """The code is taken before the check for a guest, and before any check of the input."""
    host = Host(backend, SNP)
    host.call("inject", code=7, count=2)
    assert host.update(0x201, guest=1) == 7
    assert host.update(0x201, size=1) == 7
    assert host.update(0x201, guest=1) == FAIL_PERMISSION


def test_rmpread_takes_no_injected_code(backend: str) -> None:
    """Only RMPUPDATE and PSMASH take them."""
    host = Host(backend, SNP, switches={"rmpread": 1})
    host.call("inject", code=3)
    assert host.insn("RMPREAD", pa=0x201000) == SUCCESS
    assert host.state().inject == ((3, 1),)
    assert host.insn("PSMASH", pa=0x200000) == 3
    assert host.state().inject == ()


def test_instructions_in_every_kernel(backend: str) -> None:
    """Instructions do not depend on the kernel: 6.1 has no host layer, the machine has an RMP all the same."""
    host = Host(backend, SNP, kernel="6.1")
    host.assign(0x201)
    assert host.rmp(0x201) == (ASSIGNED | ASID_5, 0x0F)
    assert host.leaf(0x201)[0] == 2


def test_gpa_of_all_ones(backend: str) -> None:
    """rmp §2.2 [real dumps]: the largest input address on Milan, and U64 as raw input in the event."""
    host = Host(backend, SNP)
    host.assign(0x201, gpa=U64)
    assert host.rmp(0x201)[0] == ASSIGNED | 0xF_FFFF_FFFF << 12 | ASID_5
    assert host.events()[0].b == U64
