"""rmp §1.1: the raw 16-byte entry of Zen 3 and Zen 4, as RMPUPDATE and PSMASH leave it."""

from __future__ import annotations

import pytest
from machines import ASSIGNED, IMMUTABLE, LOCK, SIZE_2M, SNP, SUCCESS, U64, VALIDATED, VMSA, Host

PERMISSIONS_ALL = {"milan": 0x0F, "genoa": 0x1F}


@pytest.mark.parametrize("hardware", ["milan", "genoa"])
def test_assigned_entry(backend: str, hardware: str) -> None:
    """rmp §1.1: assigned bit 0, gpa 50:12 (the address without a shift), asid 60:51; VMPL0 has everything (§2.2)."""
    host = Host(backend, SNP, hardware=hardware)
    host.assign(0x201, gpa=0x1234_5000, asid=0x155)
    assert host.rmp(0x201) == (1 | 0x1234_5000 | 0x155 << 51, PERMISSIONS_ALL[hardware])


def test_entry_by_hand(backend: str) -> None:
    """rmp §1.1: asid 5 is 5 * 2**51 = 0x28_0000_0000_0000."""
    host = Host(backend, SNP)
    host.assign(0x201, gpa=0x7000, asid=5)
    assert host.rmp(0x201) == (0x0028_0000_0000_7001, 0x0F)


def test_page_size_bit(backend: str) -> None:
    """rmp §1.1: page_size is bit 1."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1, gpa=0x4000_0000, asid=1)
    assert host.rmp(0x200) == (ASSIGNED | SIZE_2M | 0x4000_0000 | 1 << 51, 0x0F)


def test_immutable_and_lock(backend: str) -> None:
    """rmp §1.1, §1.3: a firmware page is 0x8000000000000005: lock (63) is written equal to immutable (2)."""
    host = Host(backend, SNP)
    assert host.update(0x201, assigned=1, immutable=1) == SUCCESS
    assert host.rmp(0x201) == (0x8000_0000_0000_0005, 0x0F)


def test_lock_switch(backend: str) -> None:
    """rmp §5: with lock_follows_immutable off, bit 63 is always written 0."""
    host = Host(backend, SNP, switches={"lock_follows_immutable": 0})
    assert host.update(0x201, assigned=1, immutable=1) == SUCCESS
    assert host.rmp(0x201) == (ASSIGNED | IMMUTABLE, 0x0F)


def test_lock_switch_clears_an_old_lock(backend: str) -> None:
    """rmp §5: "always written 0" also where the entry had it."""
    host = Host(backend, SNP, switches={"lock_follows_immutable": 0})
    host.machine.write_rmp(0x201, ASSIGNED | LOCK, 0)
    assert host.update(0x201, assigned=1, immutable=1) == SUCCESS
    assert host.rmp(0x201)[0] == ASSIGNED | IMMUTABLE


@pytest.mark.parametrize("asid", [1, 0x200, 0x3FF])
def test_asid_field(backend: str, asid: int) -> None:
    """rmp §1.1: asid has 10 bits, 60:51, and touches neither gpa nor vmsa."""
    host = Host(backend, SNP)
    host.assign(0x201, asid=asid)
    assert host.rmp(0x201)[0] == ASSIGNED | asid << 51


@pytest.mark.parametrize(
    ("hardware", "switches", "gpa", "field"),
    [
        # rmp §2.2: an all-ones address reads 0xfffffffff on Milan (36 bits) and 0x7fffffffff on Genoa (39 bits)
        ("milan", None, U64, 0xF_FFFF_FFFF),
        ("genoa", None, U64, 0x7F_FFFF_FFFF),
        ("milan", None, 1 << 48, 0),
        ("milan", None, 1 << 47, 1 << 35),
        ("genoa", None, 1 << 50, 1 << 38),
        ("genoa", None, 1 << 51, 0),
        ("milan", {"gpa_bits": 51}, 1 << 50, 1 << 38),
        ("genoa", {"gpa_bits": 48}, 1 << 50, 0),
        ("milan", {"gpa_bits": 13}, U64, 1),
        # the usual place of a VMSA (workloads, B)
        ("milan", None, 0xFFFF_FFFF_F000, 0xF_FFFF_FFFF),
        ("genoa", None, 0xFFFF_FFFF_F000, 0xF_FFFF_FFFF),
    ],
)
def test_gpa_width(backend: str, hardware: str, switches: dict[str, int] | None, gpa: int, field: int) -> None:
    """rmp §2.2: the stored gpa is cut to the part's width; bits 11:0 of the input are no part of it."""
    host = Host(backend, SNP, hardware=hardware, switches=switches)
    host.assign(0x201, gpa=gpa, asid=1)
    assert host.rmp(0x201)[0] == ASSIGNED | field << 12 | 1 << 51


def test_raw_entry_is_kept_as_stored(backend: str) -> None:
    """rmp §1.1: all 64 bits of the low quadword are fields, the high one is opaque: what firmware stores reads back."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x205, U64, U64)
    host.machine.write_rmp(0x206, VALIDATED | VMSA, 0x8000_0000_0000_0000)
    assert host.rmp(0x205) == (U64, U64)
    assert host.rmp(0x206) == (VALIDATED | VMSA, 0x8000_0000_0000_0000)
    assert host.rmp(0x204) == host.rmp(0x207) == (0, 0)


@pytest.mark.parametrize(("switch", "value"), [("vmpl0_all", 0), ("vmpl0_all", 0x1F), ("vmpl0_all", 0xFF)])
def test_vmpl0_switch(backend: str, switch: str, value: int) -> None:
    """rmp §2.2: what "VMPL0 all" is belongs to the hardware profile; VMPL1 to VMPL3 get nothing."""
    host = Host(backend, SNP, switches={switch: value})
    host.assign(0x201)
    assert host.rmp(0x201)[1] == value
