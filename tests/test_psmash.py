"""rmp §2.3: PSMASH."""

from __future__ import annotations

import pytest
from machines import (
    ASSIGNED,
    FAIL_INPUT,
    FAIL_OVERLAP,
    FAIL_PERMISSION,
    IMMUTABLE,
    LOCK,
    PSMASH_REFUSED,
    SIZE_2M,
    SNP,
    SNP_COVERED,
    SUCCESS,
    VALIDATED,
    VMSA,
    Host,
)

from rmpcore.ops import Event, EventKind

ASID_5 = 5 << 51
COUNT_511 = 511 << 3


def smash(host: Host, pfn: int, **args: int) -> int:
    return host.insn("PSMASH", pa=pfn << 12, **args)


def test_effect(backend: str) -> None:
    """rmp §2.3: 512 entries of 4K, gpa of entry i is gpa + i * 4K, the rest as in the 2M entry; the first one counts
    511."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1, gpa=0x4000_0000)
    assert smash(host, 0x200) == SUCCESS
    expected = [(0x200, ASSIGNED | 0x4000_0000 | ASID_5 | COUNT_511, 0x0F)]
    expected += [(0x200 + i, ASSIGNED | 0x4000_0000 + i * 0x1000 | ASID_5, 0x0F) for i in range(1, 512)]
    assert host.state().rmp.tolist() == expected


def test_everything_is_copied(backend: str) -> None:
    """rmp §2.3: validated, vmsa, permissions stay, in all 512."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1, gpa=0x4000_0000)
    raw = VALIDATED | VMSA | ASSIGNED | 0x4000_0000 | ASID_5
    host.machine.write_rmp(0x200, raw | SIZE_2M, 0xC000_0001_0703_0F1F)
    assert smash(host, 0x200) == SUCCESS
    assert host.rmp(0x200) == (raw | COUNT_511, 0xC000_0001_0703_0F1F)
    assert host.rmp(0x201) == (raw + 0x1000, 0xC000_0001_0703_0F1F)
    assert host.rmp(0x3FF) == (raw + 511 * 0x1000, 0xC000_0001_0703_0F1F)


def test_stale_entries_and_count_are_overwritten(backend: str) -> None:
    """rmp §2.3: entries i > 0 have count 0, whatever stood in the 2M entry or in them."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x200, ASSIGNED | SIZE_2M | ASID_5 | 33 << 3, 0x0F)
    host.machine.write_rmp(0x2AA, VALIDATED | LOCK | 99 << 3, 0xFFFF)
    assert smash(host, 0x200) == SUCCESS
    assert host.rmp(0x200)[0] == ASSIGNED | ASID_5 | COUNT_511
    assert host.rmp(0x2AA) == (ASSIGNED | 0xAA << 12 | ASID_5, 0x0F)


def test_lock_is_copied(backend: str) -> None:
    """rmp §2.3: a lock bit without immutable is part of "everything else"."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x200, LOCK | ASSIGNED | SIZE_2M | ASID_5, 0x0F)
    assert smash(host, 0x200) == SUCCESS
    assert host.rmp(0x3FF)[0] == LOCK | ASSIGNED | 511 << 12 | ASID_5


@pytest.mark.parametrize(("hardware", "bits"), [("milan", 48), ("genoa", 51)])
def test_gpa_does_not_leave_its_field(backend: str, hardware: str, bits: int) -> None:
    """rmp §1.1, §2.2: gpa + i is cut to the part's width: an entry near the top wraps inside the field."""
    host = Host(backend, SNP, hardware=hardware)
    top = (1 << bits) - 0x1000
    host.assign(0x200, size=1, gpa=top)
    assert smash(host, 0x200) == SUCCESS
    assert host.rmp(0x200)[0] == ASSIGNED | top | ASID_5 | COUNT_511
    assert host.rmp(0x201)[0] == ASSIGNED | ASID_5
    assert host.rmp(0x202)[0] == ASSIGNED | 0x1000 | ASID_5


def test_pages_are_separate_afterwards(backend: str) -> None:
    """rmp §5: after PSMASH an RMPUPDATE of 4K at the aligned page succeeds; before it was FAIL_OVERLAP."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    assert host.update(0x200) == FAIL_OVERLAP
    assert host.update(0x233) == FAIL_OVERLAP
    assert smash(host, 0x200) == SUCCESS
    assert host.update(0x200) == SUCCESS
    assert host.update(0x233) == SUCCESS
    assert host.rmp(0x200)[0] == 510 << 3
    assert host.update(0x200, assigned=1, size=1, asid=5) == FAIL_OVERLAP


@pytest.mark.parametrize("address", [0x201000, 0x200001, 0x2FF000, 0x300000, 0x200800])
def test_row_2_misaligned(backend: str, address: int) -> None:
    """rmp §2.3 row 2: any of bits 20:0 set: FAIL_INPUT, even inside a 2M entry."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    before = host.state().rmp.tolist()
    assert host.insn("PSMASH", pa=address) == FAIL_INPUT
    assert host.state().rmp.tolist() == before


@pytest.mark.parametrize("pfn", [SNP_COVERED, 1 << 39, (1 << 52) - 0x200])
def test_row_2_uncovered(backend: str, pfn: int) -> None:
    """rmp §2.3 row 2: uncovered: FAIL_INPUT."""
    assert smash(Host(backend, SNP), pfn) == FAIL_INPUT


def test_row_1_before_row_2(backend: str) -> None:
    """rmp §2.3 row 1: in a guest: FAIL_PERMISSION, before the address is looked at."""
    host = Host(backend, SNP)
    assert smash(host, 0x201, guest=1) == FAIL_PERMISSION
    assert smash(host, SNP_COVERED, guest=1) == FAIL_PERMISSION
    host.assign(0x200, size=1)
    assert smash(host, 0x200, guest=1) == FAIL_PERMISSION
    assert host.rmp(0x200)[0] & SIZE_2M


@pytest.mark.parametrize("switches", [None, {"psmash_unassigned": 2}, {"psmash_immutable": 2}])
@pytest.mark.parametrize("raw", [0, ASSIGNED | ASID_5, SIZE_2M, VALIDATED, ASSIGNED | IMMUTABLE | LOCK, IMMUTABLE])
def test_row_4_not_a_2m_entry(backend: str, switches: dict[str, int] | None, raw: int) -> None:
    """rmp §2.3 row 4: not an assigned 2M entry: 7, or what psmash_unassigned says; that comes before immutable."""
    host = Host(backend, SNP, switches=switches)
    host.machine.write_rmp(0x200, raw, 0)
    assert smash(host, 0x200) == (switches or {}).get("psmash_unassigned", PSMASH_REFUSED)
    assert host.rmp(0x200) == (raw, 0)


@pytest.mark.parametrize("switches", [None, {"psmash_immutable": 2}, {"psmash_unassigned": 2}])
def test_row_4_immutable(backend: str, switches: dict[str, int] | None) -> None:
    """rmp §2.3 row 4: an immutable 2M entry: 7, or what psmash_immutable says."""
    host = Host(backend, SNP, switches=switches)
    host.assign(0x200, size=1, immutable=1)
    before = host.state().rmp.tolist()
    assert smash(host, 0x200) == (switches or {}).get("psmash_immutable", PSMASH_REFUSED)
    assert host.state().rmp.tolist() == before


def test_twice(backend: str) -> None:
    """rmp §2.3 row 4: the second PSMASH finds a 4K entry."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    assert smash(host, 0x200) == SUCCESS
    assert smash(host, 0x200) == PSMASH_REFUSED


def test_count_switch(backend: str) -> None:
    """rmp §1.2 [inferred]: with subpage_count off PSMASH leaves 0 everywhere."""
    host = Host(backend, SNP, switches={"subpage_count": 0})
    host.assign(0x200, size=1)
    assert smash(host, 0x200) == SUCCESS
    assert host.rmp(0x200)[0] == ASSIGNED | ASID_5
    assert host.rmp(0x201)[0] == ASSIGNED | ASID_5 | 0x1000


def test_other_regions_are_left_alone(backend: str) -> None:
    """rmp §2.3: 512 entries and no more."""
    host = Host(backend, SNP)
    host.assign(0x400, size=1)
    smash(host, 0x400)
    assert [row[0] for row in host.state().rmp.tolist()] == list(range(0x400, 0x600))


def test_events_and_counter(backend: str) -> None:
    """Each execution is reported with RAX and EAX and counted."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    host.events()
    smash(host, 0x200)
    smash(host, 0x201)
    host.call("inject", code=3)
    smash(host, 0x400)
    assert host.events() == [
        Event(EventKind.PSMASH, code=0, a=0x200000),
        Event(EventKind.PSMASH, code=1, a=0x201000),
        Event(EventKind.PSMASH, code=3, a=0x400000),
    ]
    assert host.counters()["psmash"] == 3


def test_the_last_covered_region(backend: str) -> None:
    """rmp §1.6: 0xfa00 to 0xfbff is the last region whose entries all lie inside the table."""
    host = Host(backend, SNP)
    last = SNP_COVERED - 0x200
    host.assign(last, size=1)
    assert smash(host, last) == SUCCESS
    assert host.rmp(SNP_COVERED - 1)[0] == ASSIGNED | 511 << 12 | ASID_5
