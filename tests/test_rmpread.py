"""rmp §2.4 and §1.5: RMPREAD."""

from __future__ import annotations

import pytest
from machines import (
    ASSIGNED,
    FAIL_INPUT,
    FAIL_PERMISSION,
    IMMUTABLE,
    LOCK,
    SIZE_2M,
    SNP,
    SNP_COVERED,
    SUCCESS,
    U64,
    VALIDATED,
    VMSA,
    Host,
)

from rmpcore.ops import Event, EventKind, Kind

# the second quadword of the output (§1.5)
OUT_ASSIGNED = 1
OUT_2M = 1 << 8
OUT_STATUS = 1 << 9
OUT_IMMUTABLE = 1 << 16


def out_asid(asid: int) -> int:
    return asid << 32


def reader(backend: str) -> Host:
    return Host(backend, SNP, switches={"rmpread": 1})


def read(host: Host, pfn: int, **args: int) -> tuple[int, int, int]:
    result = host.do("RMPREAD", pa=pfn << 12, **args)
    assert result.kind == Kind.CODE, result
    return result.ret, result.value, result.value2


@pytest.mark.parametrize("hardware", ["milan", "genoa"])
def test_not_on_these_parts(backend: str, hardware: str) -> None:
    """rmp §1.8: Milan and Genoa do not have it: #UD; the switch turns it on."""
    host = Host(backend, SNP, hardware=hardware)
    result = host.do("RMPREAD", pa=0x200000)
    assert (result.kind, result.ret) == (Kind.FAULT, 6)
    result = host.do("RMPREAD", pa=0x200000, user=1)
    assert (result.kind, result.ret) == (Kind.FAULT, 6)
    assert host.events() == []
    assert host.counters()["rmpread"] == 0
    assert read(Host(backend, SNP, hardware=hardware, switches={"rmpread": 1}), 0x200) == (SUCCESS, 0, 0)


def test_output_format(backend: str) -> None:
    """rmp §1.5: address at 0; assigned, size, immutable in bytes 8, 9, 10; ASID at 12."""
    host = reader(backend)
    host.assign(0x201, gpa=0x1234_5000, asid=0x155, immutable=1)
    assert read(host, 0x201) == (SUCCESS, 0x1234_5000, OUT_ASSIGNED | OUT_IMMUTABLE | out_asid(0x155))


def test_2m_entry_and_its_inner_pages(backend: str) -> None:
    """rmp §2.4: an inner page of a 2M entry shows assigned, ASID 0, 4K, address 0."""
    host = reader(backend)
    host.assign(0x200, gpa=0x4000_0000, size=1)
    assert read(host, 0x200) == (SUCCESS, 0x4000_0000, OUT_ASSIGNED | OUT_2M | out_asid(5))
    assert read(host, 0x201) == (SUCCESS, 0, OUT_ASSIGNED)


def test_region_status(backend: str) -> None:
    """rmp §1.5: byte 9 bit 1: the page is 2M-aligned and some other page of its region is assigned."""
    host = reader(backend)
    host.assign(0x203)
    assert read(host, 0x200) == (SUCCESS, 0, OUT_STATUS)
    assert read(host, 0x201) == (SUCCESS, 0, 0)
    host.assign(0x200)
    assert read(host, 0x200) == (SUCCESS, 0, OUT_ASSIGNED | OUT_STATUS | out_asid(5))
    host.update(0x203)
    assert read(host, 0x200) == (SUCCESS, 0, OUT_ASSIGNED | out_asid(5))


def test_status_only_for_aligned_pages(backend: str) -> None:
    """rmp §1.5: the same field in another page's entry says nothing."""
    host = reader(backend)
    host.machine.write_rmp(0x200, 1 << 3, 0)
    host.machine.write_rmp(0x201, 1 << 3, 0)
    assert read(host, 0x200)[2] == OUT_STATUS
    assert read(host, 0x201)[2] == 0


def test_what_is_not_shown(backend: str) -> None:
    """rmp §1.5: neither validated, vmsa, lock nor permissions."""
    host = reader(backend)
    host.machine.write_rmp(0x201, VALIDATED | VMSA | LOCK, U64)
    assert read(host, 0x201) == (SUCCESS, 0, 0)


def test_raw_entry_of_all_ones(backend: str) -> None:
    """rmp §1.5: each field where it belongs, and nothing else: 39 bits of address, 10 bits of ASID."""
    host = reader(backend)
    host.machine.write_rmp(0x200, U64, U64)
    assert read(host, 0x200) == (
        SUCCESS,
        0x7F_FFFF_FFFF << 12,
        OUT_ASSIGNED | OUT_2M | OUT_STATUS | OUT_IMMUTABLE | out_asid(0x3FF),
    )
    host.machine.write_rmp(0x201, ASSIGNED | SIZE_2M | IMMUTABLE, 0)
    assert read(host, 0x201) == (SUCCESS, 0, OUT_ASSIGNED | OUT_2M | OUT_IMMUTABLE)


def test_low_bits_of_the_address_are_ignored(backend: str) -> None:
    """rmp §2.4: any byte of the page will do."""
    host = reader(backend)
    host.assign(0x201, gpa=0x7000)
    assert host.do("RMPREAD", pa=0x201FFF).value == 0x7000


def test_codes(backend: str) -> None:
    """rmp §2.4: in a guest 2, uncovered 1, in this order; nothing is read then."""
    host = reader(backend)
    assert read(host, SNP_COVERED) == (FAIL_INPUT, 0, 0)
    assert read(host, 1 << 41) == (FAIL_INPUT, 0, 0)
    assert read(host, SNP_COVERED, guest=1) == (FAIL_PERMISSION, 0, 0)
    assert read(host, 0x201, guest=1) == (FAIL_PERMISSION, 0, 0)


def test_events_and_counter(backend: str) -> None:
    """Each execution is reported with the 16 bytes that were written, and counted; the state stays."""
    host = reader(backend)
    host.assign(0x201, gpa=0x7000)
    before = host.state().rmp.tolist()
    host.events()
    read(host, 0x201)
    read(host, SNP_COVERED)
    assert host.events() == [
        Event(EventKind.RMPREAD, code=0, a=0x201000, b=0x7000, c=OUT_ASSIGNED | out_asid(5)),
        Event(EventKind.RMPREAD, code=1, a=SNP_COVERED << 12),
    ]
    assert host.counters()["rmpread"] == 2
    assert host.state().rmp.tolist() == before
