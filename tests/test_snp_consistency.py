"""Stories that cross the parts of rmp: the list at the end of §5, pages in use, the RMP's own pages, real hosts' logs.

What a single page and a single action do is in test_transitions.py; here several of them follow each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import (
    ASSIGNED,
    EFAULT,
    FAIL_INPUT,
    FAIL_INUSE,
    FAIL_OVERLAP,
    FAIL_PERMISSION,
    GIB,
    IMMUTABLE,
    LOCK,
    MIB,
    PAGE_OFFSET,
    PSMASH_REFUSED,
    SIZE_2M,
    SMALL,
    SNP,
    SNP_CBIT,
    SNP_COVERED,
    SNP_HOLE,
    SNP_TIGHT,
    SUCCESS,
    VALIDATED,
    VMSA,
    Host,
    build_map,
    changed,
    continued,
)

from rmpcore.machine import MachineError
from rmpcore.maps import MachineMap
from rmpcore.ops import AccessKind, Event, EventKind, Kind, Reason, Refusal, Result, ResultFlag, Who
from rmpcore.page_state import PageState
from rmpcore.state import RMP_DTYPE

DUMPS = json.loads((Path(__file__).parent / "data/machines/rmp-dumps.json").read_text(encoding="utf-8"))
ASID_5 = 5 << 51
RMP_WRITE = 0x8000_0003  # #PF error: RMP, write, present (rmp §3.5)
RMP_READ = 0x8000_0001
FIRMWARE_PAGE = LOCK | IMMUTABLE | ASSIGNED
GUEST_INSN_NPF = 0x4_8000_0005
SIZEM_NPF = 0xC_8000_0005
NPF = 0x400
RMP_FAULT = 0x0D
TAG_METADATA = 1 << 48


def host_access(host: Host, pfn: int, level: int = 1, access: AccessKind = AccessKind.WRITE, **args: int) -> Result:
    """An access by physical address."""
    args = {"who": Who.HOST} | args
    return host.do("access", access=access, pa=pfn << 12, level=level, **args)


def guest(host: Host, name: str, pfn: int, gpa: int, level: int = 1, **args: int) -> Result:
    """A guest instruction of ASID 5 at VMPL 0."""
    args = {"gva": 0x7F00_0000_0000 | gpa, "asid": 5} | args
    return host.do(name, pa=pfn << 12, gpa=gpa, level=level, **args)


def state_of(host: Host, pfn: int) -> PageState:
    return PageState(host.call("page_state", pfn=pfn))


def command(host: Host, name: str, **args: int) -> int:
    """A firmware command's status."""
    result = host.do(name, **args)
    assert result == Result(result.ret, Kind.FIRMWARE), result
    return result.ret


def with_rmp(host: Host, rows: Iterable[tuple[int, int, int]], **fields: Any) -> Host:
    """A machine with these entries and these fields of the state."""
    table = np.array(sorted(rows), dtype=RMP_DTYPE)
    return continued(host, changed(host.state(), rmp=table, **fields))


ALLOWED = Result(0, Kind.ALLOWED)


# --- the list at the end of rmp §5 ---


@pytest.mark.parametrize("level", [2, 3])
def test_a_4k_page_and_its_neighbour(backend: str, level: int) -> None:
    """rmp §5: assign 4K at region+0x1000, host write to region+0x5000 by 4K mapping: ok; by 2M or 1G: #PF bit 31."""
    host = Host(backend, SNP)
    host.assign(0x201)
    assert host_access(host, 0x205) == ALLOWED
    refused = Result(14, Kind.FAULT, reason=Reason.NEIGHBOUR, value=RMP_WRITE)
    assert host_access(host, 0x205, level) == refused
    # the page itself faults by every mapping; other regions do not care
    for mapping in (1, level):
        assert host_access(host, 0x201, mapping) == refused._replace(reason=Reason.ASSIGNED)
    for pfn in (0x1FF, 0x400):
        assert host_access(host, pfn, level) == ALLOWED
    # "host reads never fault"
    assert host_access(host, 0x201, level, AccessKind.READ) == ALLOWED


def test_the_same_through_the_direct_map(backend: str) -> None:
    """rmp §3.4, host §1: a raw RMPUPDATE leaves the 2M leaf, and the neighbour faults; the kernel splits first."""
    host = Host(backend, SNP)
    host.assign(0x201)
    address = PAGE_OFFSET + 0x205000
    assert host.do("host_write", pfn=0x205) == Result(
        14, Kind.FAULT, 2, reason=Reason.NEIGHBOUR, value=RMP_WRITE, value2=address
    )
    assert host.do("host_read", pfn=0x205) == Result(0, Kind.ALLOWED, 2)
    assert host.call("rmp_make_private", pfn=0x401, gpa=0x7000, level=1, asid=5) == 0
    assert host.do("host_write", pfn=0x405) == Result(0, Kind.ALLOWED, 1)
    assert host.do("host_write", pfn=0x401) == Result(
        14, Kind.FAULT, 1, reason=Reason.ASSIGNED, value=RMP_WRITE, value2=PAGE_OFFSET + 0x401000
    )
    assert host.do("host_read", pfn=0x401) == Result(0, Kind.ALLOWED, 1)


def test_a_1g_leaf_is_judged_by_2m_pieces(backend: str) -> None:
    """rmp §3.1: 1 GiB host mappings are checked as 2 MiB: only the page's own 2 MiB counts."""
    host = Host(backend, SNP_HOLE)
    host.assign(0x40001)
    assert host.do("host_write", pfn=0x40005) == Result(
        14, Kind.FAULT, 3, reason=Reason.NEIGHBOUR, value=RMP_WRITE, value2=PAGE_OFFSET + 0x40005000
    )
    assert host.do("host_write", pfn=0x40200) == Result(0, Kind.ALLOWED, 3)


def test_a_2m_entry_hurts_no_neighbour(backend: str) -> None:
    """rmp §3.4: a region that is one assigned 2M entry faults as a whole, and rightly; no split is needed."""
    host = Host(backend, SNP)
    assert host.call("rmp_make_private", pfn=0x400, gpa=GIB, level=2, asid=5) == 0
    faults = [host.do("host_write", pfn=pfn) for pfn in (0x400, 0x401, 0x5FF)]
    assert [(f.ret, f.level, f.reason) for f in faults] == [(14, 2, Reason.ASSIGNED)] * 3
    for pfn in (0x3FF, 0x600):
        assert host.do("host_write", pfn=pfn) == Result(0, Kind.ALLOWED, 2)


def test_pre_swap_and_back(backend: str) -> None:
    """rmp §5: Guest-Valid, RMPUPDATE with only immutable set: Pre-Swap; RECLAIM: Guest-Valid again with permissions
    unchanged."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT") == 0
    host.assign(0x201, gpa=0x7000)
    valid = VALIDATED | ASSIGNED | 0x7000 | ASID_5
    host.machine.write_rmp(0x201, valid, 0x0703_0F1F)
    host.assign(0x201, gpa=0x7000, immutable=1)
    assert host.rmp(0x201) == (valid | IMMUTABLE | LOCK, 0x0703_0F1F)
    assert state_of(host, 0x201) == PageState.PRE_SWAP
    assert command(host, "SNP_PAGE_RECLAIM", pa=0x201000) == 0
    assert host.rmp(0x201) == (valid, 0x0703_0F1F)
    assert state_of(host, 0x201) == PageState.GUEST_VALID


def test_unsmash_reclaim_psmash(backend: str) -> None:
    """rmp §5: UNSMASH of 512 Pre-Swap pages, then RECLAIM(2M): Guest-Valid 2M; PSMASH: 512 Guest-Valid, gpas
    consecutive."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT") == 0
    for pfn in range(0x200, 0x400):
        host.assign(pfn, gpa=GIB + (pfn - 0x200) * 0x1000, immutable=1)
        lo, _ = host.rmp(pfn)
        host.machine.write_rmp(pfn, lo | VALIDATED, 0x0703_0F1F)
    assert host.rmp(0x200)[0] >> 3 & 0x1FF == 511
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x200000) == 0
    assert host.rmp(0x200) == (FIRMWARE_PAGE | SIZE_2M | VALIDATED | GIB | ASID_5, 0x0703_0F1F)
    # the others: assigned, no ASID, not immutable; validated stays, which is in no state at all (rmp §4.1)
    assert host.rmp(0x201) == (ASSIGNED | VALIDATED | GIB | 0x1000, 0x0703_0F1F)
    assert state_of(host, 0x201) == PageState.INVALID
    assert command(host, "SNP_PAGE_RECLAIM", pa=0x200001) == 0
    assert state_of(host, 0x200) == PageState.GUEST_VALID
    assert host.insn("PSMASH", pa=0x200000) == SUCCESS
    for i in range(512):
        count = 511 << 3 if i == 0 else 0
        assert host.rmp(0x200 + i) == (ASSIGNED | VALIDATED | GIB + i * 0x1000 | ASID_5 | count, 0x0703_0F1F)


@pytest.mark.parametrize(
    ("pfn", "lo", "hi", "status"),
    [
        (0x2FF, 0, 1 << 8, 0x1A),  # another high quadword
        (0x2FF, 1 << 51, 0, 0x1A),  # another ASID: 5 ^ 1
        (0x2FF, 0x1000, 0, 0x1A),  # not consecutive
        (0x2FF, VMSA, 0, 0x1A),
        (0x2FF, IMMUTABLE, 0, 0x1A),  # Guest-Valid among Pre-Swap
        (0x2FF, VALIDATED, 0, 0x1A),  # Pre-Guest among Pre-Swap
        (0x2FF, SIZE_2M, 0, 0x19),
        (0x200, SIZE_2M, 0, 0x19),
    ],
)
def test_unsmash_wants_512_alike(backend: str, pfn: int, lo: int, hi: int, status: int) -> None:
    """rmp §4.2 SNP_PAGE_UNSMASH: 4K each, one state, ASID and high quadword, vmsa 0, gpas consecutive."""
    base = Host(backend, SNP)
    raw = FIRMWARE_PAGE | VALIDATED | ASID_5
    rows = {0x200 + i: (raw | GIB + i * 0x1000, 0x1F) for i in range(512)}
    rows[0x200] = (rows[0x200][0] | 511 << 3, 0x1F)
    ok = with_rmp(base, [(at, *entry) for at, entry in rows.items()], firmware_ready=True)
    assert command(ok, "SNP_PAGE_UNSMASH", pa=0x200000) == 0
    rows[pfn] = (rows[pfn][0] ^ lo, rows[pfn][1] ^ hi)
    host = with_rmp(base, [(at, *entry) for at, entry in rows.items()], firmware_ready=True)
    before = host.state()
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x200000) == status
    assert host.state() == before


def test_unsmash_wants_an_aligned_gpa(backend: str) -> None:
    """rmp §4.2 SNP_PAGE_UNSMASH: the gpas start on a 2 MiB line."""
    raw = FIRMWARE_PAGE | ASID_5
    rows = [(0x200 + i, raw | GIB + 0x1000 + i * 0x1000 | (511 << 3) * (not i), 0x1F) for i in range(512)]
    host = with_rmp(Host(backend, SNP), rows, firmware_ready=True)
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x200000) == 0x1A


def test_pvalidate_sizes(backend: str) -> None:
    """rmp §5: PVALIDATE 4K in a 2M entry: NPF SIZEM; 2M on a 4K entry: 6; twice the same: CF=1."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1, gpa=GIB)
    host.assign(0x400, gpa=GIB + 0x20_0000)
    for pfn in (0x200, 0x2FF):
        gpa = GIB + (pfn - 0x200) * 0x1000
        assert guest(host, "PVALIDATE", pfn, gpa, 2, rcx=0, rdx=1) == Result(
            NPF, Kind.NPF, reason=Reason.SIZE, value=SIZEM_NPF, value2=gpa
        )
    assert guest(host, "PVALIDATE", 0x400, GIB + 0x20_0000, 2, rcx=1, rdx=1) == Result(6, Kind.CODE)
    first = guest(host, "PVALIDATE", 0x200, GIB, 2, rcx=1, rdx=1)
    second = guest(host, "PVALIDATE", 0x200, GIB, 2, rcx=1, rdx=1)
    assert (first, second) == (Result(0, Kind.CODE), Result(0, Kind.CODE, flags=ResultFlag.CF))
    assert host.counters()["pvalidate"] == 3


def test_sizem_story(backend: str) -> None:
    """rmp-dumps.json (Kalra, Oct 2022): the guest validates 4K pages of memory that was assigned as 2M: #VMEXIT(NPF)
    with EXITINFO1 0xc80000005; one PSMASH, and the guest goes on."""
    (dump,) = (d for d in DUMPS if "nested_fault" in d)
    assert int(dump["nested_fault"]["error_code"], 16) == SIZEM_NPF
    host = Host(backend, SNP, kernel="6.12")
    # gpa 0x7f790000, pfn 0x1f5d90 of the log, moved to a region of this machine at the same place inside 2 MiB
    pfn, gpa = 0x200 + (0x1F5D90 & 0x1FF), 0x7F790000
    host.assign(0x200, size=1, gpa=gpa & ~0x1F_FFFF)
    host.events()
    refused = guest(host, "PVALIDATE", pfn, gpa, 2, rcx=0, rdx=1)
    assert refused == Result(NPF, Kind.NPF, reason=Reason.SIZE, value=0xC_8000_0005, value2=gpa)
    # a fault is no execution: no event, no count
    assert host.events() == []
    assert host.counters()["pvalidate"] == 0
    assert host.call("psmash", pfn=0x200) == 0
    assert guest(host, "PVALIDATE", pfn, gpa, 1, rcx=0, rdx=1) == Result(0, Kind.CODE)
    assert state_of(host, pfn) == PageState.GUEST_VALID
    assert host.rmp(pfn)[0] == VALIDATED | ASSIGNED | gpa | ASID_5
    assert [e for e in host.events() if e.kind == EventKind.PVALIDATE] == [
        Event(EventKind.PVALIDATE, code=0, a=0x7F00_0000_0000 | gpa, b=0, c=1)
    ]


def test_psmash_rc_7_of_the_log(backend: str) -> None:
    """rmp-dumps.json (Gun, Oct 2022): PSMASH of entries that are 4K already: rc 7, here for each line's offset."""
    (dump,) = (d for d in DUMPS if "rc 7" in " ".join(d["lines"]))
    pfns = [int(line.split("pfn ")[1].split()[0], 16) for line in dump["lines"]]
    assert len(pfns) == 5
    host = Host(backend, SNP)
    host.assign(0x200, size=1, gpa=GIB)
    assert host.call("psmash", pfn=0x200) == 0
    for pfn in pfns:
        # Linux gives the instruction the 2 MiB base of the faulting page
        assert host.call("psmash", pfn=0x200 + (pfn & 0x1FF) & ~0x1FF) == PSMASH_REFUSED


# --- pages in use (rmp §3.7) ---

VMCB, AVIC, VMSA_PAGE = 0x601, 0x602, 0x603


def vmsa_host(backend: str, **options: Any) -> Host:
    """A machine with a VMSA of ASID 5 in frame VMSA_PAGE, at guest address 0xfffffffff000."""
    host = Host(backend, SNP, **options)
    host.assign(VMSA_PAGE, gpa=0xFFFF_FFFF_F000)
    lo, hi = host.rmp(VMSA_PAGE)
    host.machine.write_rmp(VMSA_PAGE, lo | VMSA | VALIDATED, hi)
    return host


def vmrun(host: Host, vmcb: int = VMCB, **args: int) -> Result:
    args = {"vmsa": VMSA_PAGE << 12, "gpa": 0xFFFF_FFFF_F000, "avic": AVIC << 12, "asid": 5} | args
    return host.do("VMRUN", vmcb=vmcb << 12, **args)


def test_vmrun_marks_and_vmexit_frees(backend: str) -> None:
    """rmp §3.7: VMCB, AVIC page and VMSA are in use (RMPUPDATE: FAIL_INUSE) until #VMEXIT."""
    host = vmsa_host(backend)
    before = host.state()
    assert vmrun(host) == ALLOWED
    assert host.state() == changed(before, in_use=((VMCB, VMSA_PAGE, AVIC),))
    for pfn in (VMCB, AVIC, VMSA_PAGE):
        assert host.update(pfn) == FAIL_INUSE
    assert host.update(0x604) == SUCCESS
    assert host.do("VMEXIT", vmcb=VMCB << 12) == Result(0, Kind.KERNEL)
    assert host.state().in_use == ()
    for pfn in (VMCB, AVIC, VMSA_PAGE):
        assert host.update(pfn) == SUCCESS
    assert host.do("VMEXIT", vmcb=VMCB << 12) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)


def test_vmrun_of_a_plain_guest(backend: str) -> None:
    """rmp §3.7: the VMSA of a guest without SNP has to be the hypervisor's; none need be there."""
    host = Host(backend, SNP)
    assert vmrun(host, plain=1, gpa=0) == ALLOWED
    assert vmrun(host, 0x701, vmsa=0, gpa=0, avic=0, asid=1) == ALLOWED
    assert host.state().in_use == ((VMCB, VMSA_PAGE, AVIC), (0x701, 0, 0))


def test_vmrun_order_of_the_checks(backend: str) -> None:
    """rmp §3.7: VMCB #GP, then the AVIC page, then the VMSA #VMEXIT(INVALID); nothing is marked on a failure."""
    host = vmsa_host(backend)
    for pfn in (VMCB, AVIC):
        host.assign(pfn)
    before = host.state()
    host.events()
    assert vmrun(host, gpa=0) == Result(13, Kind.FAULT, reason=Reason.ASSIGNED)
    assert vmrun(host, 0x700, gpa=0) == Result(-1, Kind.INVALID, reason=Reason.ASSIGNED)
    assert vmrun(host, 0x700, avic=0, gpa=0) == Result(-1, Kind.INVALID, reason=Reason.GPA)
    assert vmrun(host, 0x700, avic=0, asid=6) == Result(-1, Kind.INVALID, reason=Reason.OWNER)
    assert vmrun(host, 0x700, avic=0, plain=1) == Result(-1, Kind.INVALID, reason=Reason.ASSIGNED)
    assert host.state() == before
    faults = [event for event in host.events() if event.kind == EventKind.FAULT]
    assert [(e.level, e.code, e.c) for e in faults] == [
        (Kind.FAULT, 13, Reason.ASSIGNED),
        (Kind.INVALID, -1, Reason.ASSIGNED),
        (Kind.INVALID, -1, Reason.GPA),
        (Kind.INVALID, -1, Reason.OWNER),
        (Kind.INVALID, -1, Reason.ASSIGNED),
    ]


@pytest.mark.parametrize(
    ("flip", "reason"), [(VMSA, Reason.NOT_VMSA), (IMMUTABLE | LOCK, Reason.IMMUTABLE), (VALIDATED, None)]
)
def test_vmsa_of_an_snp_guest(backend: str, flip: int, reason: Reason | None) -> None:
    """rmp §3.7: covered, guest-owned, reverse-map, mutable, vmsa; validated is not asked for."""
    host = vmsa_host(backend)
    lo, hi = host.rmp(VMSA_PAGE)
    host.machine.write_rmp(VMSA_PAGE, lo ^ flip, hi)
    expected = ALLOWED if reason is None else Result(-1, Kind.INVALID, reason=reason)
    assert vmrun(host) == expected


def test_vmsa_uncovered(backend: str) -> None:
    """rmp §3.7: a VMSA outside the table: #VMEXIT(INVALID); VMCB and AVIC page outside are the hypervisor's."""
    host = Host(backend, SNP)
    assert vmrun(host, vmsa=SNP_COVERED << 12) == Result(-1, Kind.INVALID, reason=Reason.UNCOVERED)
    assert vmrun(host, SNP_COVERED, avic=(SNP_COVERED + 1) << 12, plain=1) == ALLOWED


def test_a_page_used_twice(backend: str) -> None:
    """rmp §3.7: a page stays in use as long as some VMRUN uses it; a VMCB can run only once."""
    host = Host(backend, SNP)
    for vmcb in (0x701, 0x702):
        assert vmrun(host, vmcb, plain=1) == ALLOWED
    assert vmrun(host, 0x702, plain=1) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)
    assert host.do("VMEXIT", vmcb=0x701000).ret == 0
    assert host.update(AVIC) == FAIL_INUSE
    assert host.update(0x701) == SUCCESS
    assert host.do("VMEXIT", vmcb=0x702000).ret == 0
    assert host.update(AVIC) == SUCCESS


def test_64_at_a_time(backend: str) -> None:
    """The model: 64 rows; one more is QUEUE_FULL before any check, a VMCB that runs is BAD_ARGUMENT before that."""
    host = Host(backend, SNP)
    host.assign(VMCB)
    for i in range(64):
        assert vmrun(host, 0x700 + i, vmsa=0, gpa=0, avic=0) == ALLOWED
    before = host.state()
    assert vmrun(host, VMCB) == Result(Refusal.QUEUE_FULL, Kind.REFUSED)
    assert vmrun(host, 0x73F) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)
    assert host.state() == before
    assert host.state().in_use == tuple((0x700 + i, 0, 0) for i in range(64))


@pytest.mark.parametrize(
    "args", [{"vmcb": 0x601001}, {"vmsa": 0x603800}, {"avic": 0x602FFF}, {"vmcb": 1 << 52}, {"avic": 1 << 63}]
)
def test_vmrun_addresses(backend: str, args: dict[str, int]) -> None:
    """The model: addresses are those of pages below 2**52."""
    host = Host(backend, SNP)
    fields = {"vmcb": 0x601000, "asid": 5, "plain": 1} | args
    assert host.do("VMRUN", **fields) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)


def test_vmrun_takes_the_c_bit_out(backend: str) -> None:
    """rmp §1.6: the C-bit is no part of a system physical address."""
    host = Host(backend, SNP_CBIT)
    c_bit = SNP_CBIT.c_bit
    assert host.do("VMRUN", vmcb=VMCB << 12 | c_bit, avic=AVIC << 12 | c_bit, asid=1).kind == Kind.ALLOWED
    assert host.state().in_use == ((VMCB, 0, AVIC),)
    assert host.do("VMEXIT", vmcb=VMCB << 12).ret == 0


@pytest.mark.parametrize("name", ["VMRUN", "VMEXIT"])
def test_vmrun_without_an_rmp(backend: str, name: str) -> None:
    """Without SNP there is nothing to mark."""
    args = {"vmcb": 0x601000} | ({"asid": 1} if name == "VMRUN" else {})
    assert Host(backend, SMALL).do(name, **args) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)


def in_use(host: Host, *pfns: int, **options: Any) -> Host:
    """The same machine with these frames in use as VMCBs."""
    return continued(host, changed(host.state(), in_use=tuple((pfn, 0, 0) for pfn in pfns)), **options)


def test_in_use_of_a_2m_update(backend: str) -> None:
    """rmp §2.2 row 7: for 2M any frame of the region; for 4K the frame itself."""
    host = in_use(Host(backend, SNP), 0x2FF)
    assert host.update(0x200, size=1) == FAIL_INUSE
    assert host.update(0x200) == SUCCESS
    assert host.update(0x2FE, assigned=1, asid=5) == SUCCESS
    assert host.update(0x400, size=1) == SUCCESS


@pytest.mark.parametrize("first", [0, 1])
def test_place_of_in_use(backend: str, first: int) -> None:
    """rmp §5 point 1: FAIL_INUSE after the refusals of rows 3 to 6, or, with inuse_first, before them."""
    options = {"switches": {"inuse_first": first}}
    host = Host(backend, SNP, **options)
    host.machine.write_rmp(0x201, ASSIGNED | IMMUTABLE | LOCK, 0)
    host = continued(host, changed(host.state(), in_use=((0x201, 0, 0), (SNP_COVERED, 0, 0))), **options)
    early = FAIL_INUSE if first else None
    assert host.update(0x201, size=1) == (early or FAIL_INPUT)  # row 3
    assert host.update(0x201, asid=5) == (early or FAIL_INPUT)  # row 4
    assert host.update(0x201) == (early or FAIL_PERMISSION)  # row 6
    assert host.update(SNP_COVERED) == FAIL_INPUT  # row 5: no entry, so nothing to be in use
    assert host.update(0x201, guest=1) == FAIL_PERMISSION  # row 1 is before either place


def test_in_use_before_overlap(backend: str) -> None:
    """rmp §2.2: row 7 comes before rows 8, 8b and 9."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    host.assign(0x401)
    host = in_use(host, 0x200, 0x2AA, 0x401)
    assert host.update(0x200) == FAIL_INUSE
    assert host.update(0x2AA) == FAIL_INUSE
    assert host.update(0x2AB) == FAIL_OVERLAP
    assert host.update(0x400, size=1) == FAIL_INUSE


def test_psmash_in_use(backend: str) -> None:
    """rmp §2.3 row 3: any frame of the region in use: FAIL_INUSE, after row 2 and before row 4; KVM repeats it."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    host = in_use(host, 0x3FF, 0x555)
    assert host.call("psmash", pfn=0x200) == FAIL_INUSE
    assert host.insn("PSMASH", pa=0x400000) == FAIL_INUSE
    assert host.insn("PSMASH", pa=0x401000) == FAIL_INPUT
    assert host.insn("PSMASH", pa=0x600000) == PSMASH_REFUSED


def test_rmpupdate_does_not_repeat_in_use(backend: str) -> None:
    """rmp §2.8: Linux never retries code 3: -EFAULT with a complaint."""
    host = in_use(Host(backend, SNP), 0x201)
    assert host.call("rmp_make_private", pfn=0x201, gpa=0, level=1, asid=5) == EFAULT
    events = host.events()
    assert [e.code for e in events if e.kind == EventKind.RMPUPDATE] == [FAIL_INUSE]
    assert [e.code for e in events if e.kind == EventKind.RMPUPDATE_FAILED] == [FAIL_INUSE]


def test_avic_page_of_the_dump(backend: str) -> None:
    """rmp-dumps.json (commit d81cadbe1642): a write to the AVIC page of a running guest: #PF 0x80000003 through a 4K
    mapping, while its entry is not assigned.  With HvInUseWrAllowed it passes."""
    (dump,) = (d for d in DUMPS if "AVIC" in d["source"])
    assert int(dump["page_fault"]["error_code"], 16) == RMP_WRITE
    assert dump["page_fault"]["leaf_level"] == "4K"
    for hardware, passes in (("milan", False), ("genoa", False), ("turin", True)):
        host = Host(backend, SNP, hardware=hardware)
        assert host.call("set_memory_4k", pfn=AVIC, pages=1) == 0
        assert host.do("VMRUN", vmcb=VMCB << 12, avic=AVIC << 12, asid=1, plain=1).kind == Kind.ALLOWED
        assert state_of(host, AVIC) == PageState.HYPERVISOR
        result = host.do("host_write", pfn=AVIC)
        address = PAGE_OFFSET + (AVIC << 12)
        fault = Result(14, Kind.FAULT, 1, reason=Reason.IN_USE, value=RMP_WRITE, value2=address)
        assert result == (Result(0, Kind.ALLOWED, 1) if passes else fault)
        assert host.do("host_read", pfn=AVIC).kind == Kind.ALLOWED


@pytest.mark.parametrize("hardware", ["genoa", "turin"])
def test_erratum_of_the_aligned_page(backend: str, hardware: str) -> None:
    """rmp §3.7: when a page in use is 2 MiB-aligned, host writes through a 2M or 1G mapping of its region fault; when
    it is not, only those to itself.  snp_safe_alloc_page picks such a page."""
    host = in_use(Host(backend, SNP), 0x200, 0x401, hardware=hardware)
    passes = hardware == "turin"
    fault = Result(14, Kind.FAULT, reason=Reason.IN_USE, value=RMP_WRITE)
    for who in (Who.HOST, Who.PLAIN):
        for level in (2, 3):
            other = host_access(host, 0x2FF, level, who=who)
            neighbour = host_access(host, 0x4FF, level, who=who)
            itself = host_access(host, 0x401, level, who=who)
            assert neighbour == ALLOWED
            assert (other == ALLOWED, itself == ALLOWED) == (passes, passes)
            if who == Who.HOST and not passes:
                assert other == itself == fault
        assert host_access(host, 0x2FF, 1, who=who) == ALLOWED
    # devices do not see the mark, and reads are never checked
    assert host_access(host, 0x200, 1, who=Who.IOMMU) == ALLOWED
    assert host_access(host, 0x200, 1, AccessKind.READ) == ALLOWED


def test_ownership_comes_before_in_use(backend: str) -> None:
    """rmp §3.2, §3.7: a page that is not the hypervisor's says so, in use or not."""
    host = Host(backend, SNP)
    host.assign(0x201)
    host = in_use(host, 0x200, 0x201)
    assert host_access(host, 0x201).reason == Reason.ASSIGNED
    assert host_access(host, 0x202, 2).reason == Reason.NEIGHBOUR
    assert host_access(host, 0x200, 1).reason == Reason.IN_USE


def test_in_use_survives_init_and_saving(backend: str) -> None:
    """rmp §4.2: SNP_INIT does not touch the marks; they are part of the state."""
    host = in_use(Host(backend, SNP), 0x201)
    assert command(host, "SNP_INIT") == 0
    assert host.state().in_use == ((0x201, 0, 0),)
    assert continued(host, host.state()).state() == host.state()


# --- page-table accesses, IOMMU, uncovered memory (rmp §3.2, §3.6) ---


@pytest.mark.parametrize("level", [1, 2, 3])
def test_host_page_tables(backend: str, level: int) -> None:
    """rmp §3.2: the host's page-table accesses are checked, A and D updates as writes; tables are 4 KiB pages."""
    host = Host(backend, SNP)
    host.assign(0x201)
    assert host_access(host, 0x201, level, AccessKind.WALK, gva=0x1234) == Result(
        14, Kind.FAULT, reason=Reason.ASSIGNED, value=RMP_READ, value2=0x1234
    )
    assert host_access(host, 0x201, level, AccessKind.WALK_WRITE, user=1) == Result(
        14, Kind.FAULT, reason=Reason.ASSIGNED, value=RMP_WRITE | 4
    )
    for access in (AccessKind.WALK, AccessKind.WALK_WRITE):
        assert host_access(host, 0x202, level, access) == ALLOWED


def test_walks_of_a_plain_guest(backend: str) -> None:
    """rmp §3.2: page-table accesses of a guest without SNP: hypervisor-owned, #NPF; A and D updates as 4K writes."""
    host = Host(backend, SNP)
    host.assign(0x201)
    walk = {"who": Who.PLAIN, "gpa": 0x5000, "asid": 9}
    assert host_access(host, 0x201, 1, AccessKind.WALK, **walk) == Result(
        NPF, Kind.NPF, reason=Reason.ASSIGNED, value=0x2_8000_0005, value2=0x5000
    )
    assert host_access(host, 0x201, 2, AccessKind.WALK_WRITE, **walk) == Result(
        NPF, Kind.NPF, reason=Reason.ASSIGNED, value=0x2_8000_0007, value2=0x5000
    )
    assert host_access(host, 0x202, 2, AccessKind.WALK, **walk).reason == Reason.NEIGHBOUR
    assert host_access(host, 0x202, 2, AccessKind.WALK_WRITE, **walk) == ALLOWED


def snp_access(host: Host, pfn: int, access: AccessKind, gpa: int, **args: int) -> Result:
    return host_access(host, pfn, access=access, **({"who": Who.SNP, "gpa": gpa, "asid": 5, "c": 1} | args))


def guest_page(host: Host, byte: int, vmpl: int = 1, pfn: int = 0x201) -> None:
    """A Guest-Valid page at 0x7000 with a VMPL's permission byte."""
    host.machine.write_rmp(pfn, VALIDATED | ASSIGNED | 0x7000 | ASID_5, byte << 8 * vmpl)


@pytest.mark.parametrize("sss", [0, 1])
@pytest.mark.parametrize("byte", range(32))
def test_each_permission_bit(backend: str, byte: int, sss: int) -> None:
    """rmp §1.1, §3.2: read 0, write 1, fetch 2 (CPL 3) or 3 (CPL 0-2), a guest's page walk: read, and write for A and
    D; shadow stack 4.  Write without read is illegal: each use of the page faults."""
    host = Host(backend, SNP, switches={"vmpl_sss": sss, "vmpl0_all": 0x1F})
    guest_page(host, byte)
    legal = byte & 3 != 2
    cases = {
        (AccessKind.READ, 0): byte & 1,
        (AccessKind.WRITE, 0): byte & 2,
        (AccessKind.FETCH, 0): byte & 8,
        (AccessKind.FETCH, 1): byte & 4,
        (AccessKind.WALK, 0): byte & 1,
        (AccessKind.WALK_WRITE, 0): byte & 3 == 3,
        (AccessKind.SHADOW_STACK, 0): byte & 16 if sss else byte & 2,
    }
    info = {
        AccessKind.READ: 0x11_0000_0000 | 4 << 32,
        AccessKind.WRITE: 0x15_0000_0002,
        AccessKind.FETCH: 0x15_0000_0010,
        AccessKind.WALK: 0x16_0000_0000,
        AccessKind.WALK_WRITE: 0x16_0000_0002,
        AccessKind.SHADOW_STACK: 0x35_0000_0002 if sss else 0x15_0000_0002,
    }
    for (access, user), permitted in cases.items():
        result = snp_access(host, 0x201, access, 0x7000, vmpl=1, user=user)
        if permitted and legal:
            assert result == ALLOWED
        else:
            value = 0x8000_0005 | info[access]
            assert result == Result(NPF, Kind.NPF, reason=Reason.VMPL, value=value, value2=0x7000), access


def test_walks_are_private_whatever_the_c_bit(backend: str) -> None:
    """rmp §3.2: instruction fetch and guest page-table access of an SNP guest are always private."""
    host = Host(backend, SNP)
    for access in (AccessKind.FETCH, AccessKind.WALK, AccessKind.WALK_WRITE):
        results = [snp_access(host, 0x201, access, 0x7000, c=c) for c in (0, 1)]
        assert results[0] == results[1]
        assert results[0].reason == Reason.OWNER
        assert results[0].value & 1 << 34
    for access in (AccessKind.READ, AccessKind.WRITE):
        assert snp_access(host, 0x201, access, 0x7000, c=0) == ALLOWED


def test_a_2m_head_that_is_not_assigned_governs_nothing(backend: str) -> None:
    """rmp §3.1: the head governs its region where it is an *assigned* 2M entry; this one was stored by hand."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x200, SIZE_2M, 0)
    host.machine.write_rmp(0x201, VALIDATED | ASSIGNED | 0x7000 | ASID_5, 0x1F)
    assert snp_access(host, 0x201, AccessKind.READ, 0x7000, vmpl=0) == ALLOWED
    assert guest(host, "PVALIDATE", 0x201, 0x7000, rcx=0, rdx=0) == Result(0, Kind.CODE)
    # rmp §2.2 row 8b, likewise
    assert host.update(0x233, assigned=1, asid=5) == SUCCESS


def test_a_page_that_was_assigned_by_hand_is_a_neighbour(backend: str) -> None:
    """rmp §3.1: by a 2M mapping every page of the region counts, also one that its head does not count, and after
    instructions that did nothing there, or something else."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x233, ASSIGNED | ASID_5, 0)

    def reason() -> int:
        return host_access(host, 0x232, 2, AccessKind.WRITE).reason

    assert host.insn("PSMASH", pa=0x200000) == PSMASH_REFUSED
    assert reason() == Reason.NEIGHBOUR
    assert host.update(0x200, size=1) == FAIL_OVERLAP
    assert reason() == Reason.NEIGHBOUR
    host.assign(0x240)
    assert host.update(0x240) == SUCCESS
    assert host.rmp(0x200) == (0, 0)
    assert reason() == Reason.NEIGHBOUR
    assert host.update(0x233) == SUCCESS
    assert reason() == Reason.NONE


def test_not_validated_is_a_vc(backend: str) -> None:
    """rmp §3.2: validated comes after ownership and before VMPL: #VC 0x404, CR2 = GVA."""
    host = Host(backend, SNP)
    host.assign(0x201, gpa=0x7000)
    assert snp_access(host, 0x201, AccessKind.WRITE, 0x7000, vmpl=3, gva=0xABC123) == Result(
        29, Kind.FAULT, reason=Reason.NOT_VALIDATED, value=0x404, value2=0xABC123
    )


def test_iommu(backend: str) -> None:
    """rmp §3.2: a DMA write to a page that is not the hypervisor's: event RMP_FAULT 0x0d; reads pass."""
    host = Host(backend, SNP)
    host.assign(0x201)
    host.events()
    fault = host.do("access", who=Who.IOMMU, access=AccessKind.WRITE, pa=0x201ABC, level=1)
    assert fault == Result(RMP_FAULT, Kind.IOMMU, reason=Reason.ASSIGNED, value2=0x201ABC)
    large = host_access(host, 0x202, 2, who=Who.IOMMU)
    assert large == Result(RMP_FAULT, Kind.IOMMU, reason=Reason.NEIGHBOUR, value2=0x202000)
    for access in AccessKind:
        reads = access in (AccessKind.READ, AccessKind.FETCH, AccessKind.WALK)
        assert (host_access(host, 0x201, 1, access, who=Who.IOMMU) == ALLOWED) == reads
    faults = [event for event in host.events() if event.kind == EventKind.FAULT]
    assert faults[0] == Event(EventKind.FAULT, level=Kind.IOMMU, code=RMP_FAULT, a=0x201ABC, b=0, c=Reason.ASSIGNED)
    assert len(faults) == 5


def test_dma_into_firmware_iommu_buffers(backend: str) -> None:
    """rmp §4.1, rmp-dumps.json issue 109: the IOMMU's buffers are firmware pages, so a device's write faults."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT", pfn=0x300, pages=2) == 0
    assert host_access(host, 0x300, who=Who.IOMMU).ret == RMP_FAULT
    assert host_access(host, 0x302, who=Who.IOMMU) == ALLOWED


@pytest.mark.parametrize("pfn", [SNP_COVERED, 1 << 39, (1 << 40) - 1])
def test_uncovered_memory(backend: str, pfn: int) -> None:
    """rmp §3.6: permanently the hypervisor's: RMPUPDATE gives FAIL_INPUT; host and shared writes pass; a private
    access fails (covered check)."""
    host = Host(backend, SNP)
    assert host.update(pfn, assigned=1, asid=5) == FAIL_INPUT
    for level in (1, 2, 3):
        for who in (Who.HOST, Who.PLAIN, Who.IOMMU):
            assert host_access(host, pfn, level, who=who) == ALLOWED
        assert host_access(host, pfn, level, who=Who.SNP, gpa=0x7000, asid=5) == ALLOWED
    for access in AccessKind:
        refused = snp_access(host, pfn, access, 0x7000)
        assert (refused.kind, refused.reason) == (Kind.NPF, Reason.UNCOVERED)
    assert guest(host, "PVALIDATE", pfn, 0x7000, rcx=0, rdx=1) == Result(
        NPF, Kind.NPF, reason=Reason.UNCOVERED, value=GUEST_INSN_NPF, value2=0x7000
    )
    assert state_of(host, pfn) == PageState.DEFAULT


def test_region_covered_in_part(backend: str) -> None:
    """rmp §3.1: hypervisor-owned looks at the entries that there are; frames 0x3e00 to 0x3eff of a 2 MiB region."""
    host = Host(backend, SNP_TIGHT)
    host.assign(0x3EFF)
    assert host_access(host, 0x3F00, 1) == ALLOWED
    assert host_access(host, 0x3E00, 2).reason == Reason.NEIGHBOUR
    assert host_access(host, 0x3C00, 2) == ALLOWED


def test_uncovered_page_beside_an_assigned_one(backend: str) -> None:
    """rmp §3.1: "uncovered, or assigned = 0": a page without an entry is the hypervisor's by any mapping."""
    host = Host(backend, SNP_TIGHT)
    host.assign(0x3EFF)
    assert host_access(host, 0x3F00, 2) == ALLOWED


def test_without_an_rmp(backend: str) -> None:
    """Nothing is checked where there is no RMP; guest instructions are #UD; every page is Default."""
    host = Host(backend, SMALL)
    for who in Who:
        kind = AccessKind.WRITE if who <= Who.PSP else AccessKind.READ
        assert host_access(host, 0x201, 1, kind, who=who, c=1 if who == Who.SNP else 0) == ALLOWED
    guest_insns = {"PVALIDATE": {"rcx": 2, "rdx": 0}, "RMPADJUST": {"rcx": 0, "rdx": 0}, "RMPQUERY": {"rdx": 0}}
    for name, args in guest_insns.items():
        assert guest(host, name, 0x201, 0x7000, user=1, **args) == Result(6, Kind.FAULT)
    assert state_of(host, 0x201) == PageState.DEFAULT
    assert command(host, "SNP_INIT") == 0x3
    assert command(host, "SNP_SHUTDOWN") == 0x1


@pytest.mark.parametrize(
    "args",
    [
        {"who": 11},
        {"access": 6},
        {"vmpl": 4},
        {"level": 0},
        {"level": 4},
        {"who": Who.VMCB, "access": AccessKind.WRITE},
        {"who": Who.VMSAVE, "access": AccessKind.FETCH},
    ],
)
def test_accesses_that_are_none(backend: str, args: dict[str, int]) -> None:
    """The model: BAD_ARGUMENT, with an RMP and an assigned page."""
    host = Host(backend, SNP)
    host.assign(0x201)
    fields = {"who": Who.HOST, "access": AccessKind.READ, "pa": 0x201000, "level": 1} | args
    assert host.do("access", **fields) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)


def test_save_area_at_0(backend: str) -> None:
    """rmp §3.7: VM_HSAVE_PA must not be 0: #GP."""
    host = Host(backend, SNP)
    assert host_access(host, 0, access=AccessKind.READ, who=Who.HSAVE) == Result(13, Kind.FAULT, reason=Reason.NULL)
    assert host_access(host, 0, access=AccessKind.READ, who=Who.VMSAVE) == ALLOWED
    assert host_access(host, 1, access=AccessKind.READ, who=Who.HSAVE) == ALLOWED


def test_accesses_change_nothing(backend: str) -> None:
    """Accesses are checks: nothing is written, and nothing counted but the host's own (host §6.5); a refused one is an
    event."""
    host = Host(backend, SNP)
    host.assign(0x201)
    host.events()
    before = host.state()
    for who in Who:
        for access in AccessKind if who <= Who.PSP else (AccessKind.READ,):
            for level in (1, 2, 3):
                host_access(host, 0x201, level, access, who=who, gpa=0x7000, asid=5, gva=0x99)
    assert host.state() == before
    host.do("host_write", pfn=0x201)
    host.do("host_read", pfn=0x201)
    assert host.state() == changed(before, counters={"host_accesses": 2, "host_faults_owner": 1})
    assert {event.kind for event in host.events()} == {EventKind.FAULT}


@pytest.mark.parametrize("kernel", ["6.12", "6.13"])
def test_direct_map_comes_first(backend: str, kernel: str) -> None:
    """rmp §3.2: RMP checks come below all ordinary paging checks: not present, then read-only, then the RMP."""
    host = Host(backend, SNP, kernel=kernel)
    host.assign(0x201)
    address = PAGE_OFFSET + 0x201000
    assert host.call("set_memory_ro", pfn=0x201, pages=1) == 0
    assert host.do("host_write", pfn=0x201) == Result(
        14, Kind.FAULT, 1, reason=Reason.READ_ONLY, value=3, value2=address
    )
    assert host.do("host_read", pfn=0x201) == Result(0, Kind.ALLOWED, 1)
    assert host.call("set_direct_map_invalid_noflush", pfn=0x201) == 0
    assert host.do("host_write", pfn=0x201) == Result(
        14, Kind.FAULT, 1, reason=Reason.NOT_PRESENT, value=2, value2=address
    )
    assert host.do("host_read", pfn=0x201) == Result(
        14, Kind.FAULT, 1, reason=Reason.NOT_PRESENT, value=0, value2=address
    )
    # no leaf at all: the level is 0
    nowhere = host.do("host_read", pfn=0x100000)
    assert nowhere == Result(14, Kind.FAULT, 0, reason=Reason.NOT_PRESENT, value=0, value2=PAGE_OFFSET + (1 << 32))
    assert host.do("host_read", pfn=1 << 34) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)


# --- SNP_INIT and the RMP's own pages (rmp §3.6, §4.2) ---


def test_init_writes_the_whole_table(backend: str) -> None:
    """rmp §4.2 SNP_INIT: DRAM is the hypervisor's, what is not DRAM HV-Fixed, the RMP's own pages Firmware; a 1 MiB RMP
    on a 2 MiB line has the head of issue 245: 255 others."""
    host = Host(backend, SNP)
    host.assign(0x200, size=1)
    host.machine.write_rmp(0x700, VALIDATED | VMSA, 0x1F)
    assert command(host, "SNP_INIT") == 0
    expected = {pfn: 4 for pfn in (*range(0xA0, 0xC0), *range(0x4100, SNP_COVERED))}
    expected |= {pfn: FIRMWARE_PAGE for pfn in range(0x4000, 0x4100)}
    expected[0x4000] = 0x8000_0000_0000_07FD
    assert host.state().rmp.tolist() == [(pfn, lo, 0) for pfn, lo in sorted(expected.items())]
    assert host.state().firmware_ready
    assert command(host, "SNP_INIT") == 0x1
    assert {state_of(host, pfn) for pfn in (0x4000, 0x40FF)} == {PageState.FIRMWARE}
    assert (state_of(host, 0xA0), state_of(host, 0x4100)) == (PageState.HV_FIXED,) * 2


def test_own_pages_are_protected(backend: str) -> None:
    """rmp §3.6: host write: #PF RMP, also through a 2M mapping that only overlaps the table's end; RMPUPDATE 2;
    firmware commands refuse the range."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT") == 0
    assert host_access(host, 0x4000).reason == Reason.ASSIGNED
    assert host_access(host, 0x4100) == ALLOWED
    assert host_access(host, 0x4100, 2).reason == Reason.NEIGHBOUR
    assert host_access(host, 0x4000, access=AccessKind.READ) == ALLOWED
    assert host.update(0x4001) == FAIL_PERMISSION
    before = host.state()
    for pfn in (0x4000, 0x4001, 0x40FF):
        assert command(host, "SNP_PAGE_RECLAIM", pa=pfn << 12) == 0x9
        assert command(host, "SNP_GCTX_CREATE", gctx=pfn << 12) == 0x9
    assert command(host, "SNP_PAGE_SET_STATE", pa=0x4000000, pages=512) == 0x9
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x4000000) == 0x9
    assert command(host, "SNP_PAGE_RECLAIM", pa=0x4100000) == 0x1A  # HV-Fixed, but not the table's
    assert host.state() == before


@pytest.mark.parametrize("left_out", [0x200, 0x400, 0x600, None])
def test_set_state_of_several_regions(backend: str, left_out: int | None) -> None:
    """rmp §4.2 SNP_PAGE_SET_STATE: Firmware to HV-Fixed, for a whole range; one region that is not firmware's, wherever
    it lies, and nothing is done."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT") == 0
    regions = range(0x200, 0x800, 0x200)
    for pfn in regions:
        if pfn != left_out:
            assert host.do("rmp_make_firmware", pfn=pfn, level=2).ret == 0
    before = host.state()
    status = command(host, "SNP_PAGE_SET_STATE", pa=0x200000, pages=3 * 512)
    if left_out is None:
        assert status == 0
        assert {state_of(host, pfn) for pfn in range(0x200, 0x800)} == {PageState.HV_FIXED}
    else:
        assert status == 0x1A
        assert host.state() == before


@pytest.mark.parametrize(("pfn", "pages"), [(0x300, 3), (0x400, 2), (0x3FF, 2), (0x4100, 1), (0x200, 0x600), (0, 2)])
def test_init_with_iommu_buffers(backend: str, pfn: int, pages: int) -> None:
    """rmp §4.2: the IOMMU's buffers become Firmware-IOMMU, and the regions' heads count them (rmp §1.2)."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT", pfn=pfn, pages=pages) == 0
    buffers = range(pfn, pfn + pages)
    for at in buffers:
        assert host.rmp(at)[0] & ~(0x1FF << 3) == 0x8002_0000_0000_1005
        assert state_of(host, at) == PageState.FIRMWARE_IOMMU
    for head in {at & ~0x1FF for at in buffers}:
        own = 255 if head == 0x4000 else 0
        assert host.rmp(head)[0] >> 3 & 0x1FF == own + sum(at & ~0x1FF == head != at for at in buffers)
    assert command(host, "SNP_SHUTDOWN", iommu=1) == 0
    assert {state_of(host, at) for at in buffers} == {PageState.RECLAIM}
    for at in buffers:
        # the count stays with the head: Reclaim pages are assigned
        assert host.rmp(at)[0] & ~(0x1FF << 3) == ASSIGNED
        assert host.update(at) == SUCCESS
    assert not host.state().firmware_ready


def test_shutdown_without_iommu(backend: str) -> None:
    """rmp §4.2 SNP_SHUTDOWN_EX: without the flag the buffers stay; with it, on a machine that was set up again, they
    go."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT", pfn=0x300, pages=1) == 0
    assert command(host, "SNP_SHUTDOWN") == 0
    assert state_of(host, 0x300) == PageState.FIRMWARE_IOMMU
    assert command(host, "SNP_SHUTDOWN", iommu=1) == 0x1


@pytest.mark.parametrize(
    ("pfn", "pages"),
    [
        (0x3FFF, 2),  # the RMP's first page
        (0x40FF, 1),
        (SNP_COVERED - 1, 2),
        (SNP_COVERED, 1),
        ((1 << 40) - 1, 2),
        (1 << 63, 1),
        (0x100, 1 << 63),
    ],
)
def test_init_with_bad_buffers(backend: str, pfn: int, pages: int) -> None:
    """rmp §4.2 SNP_INIT: each frame covered and none the RMP's own: INVALID_ADDRESS, and nothing is set up."""
    host = Host(backend, SNP)
    before = host.state()
    assert command(host, "SNP_INIT", pfn=pfn, pages=pages) == 0x9
    assert host.state() == before


def test_as_many_pages_as_a_command_takes(backend: str) -> None:
    """rmp §4.2 SNP_INIT, SNP_PAGE_SET_STATE: 2^20 pages, all of them covered; none more."""
    most, base = 1 << 20, 8 * GIB
    rmp = (base, base + 0x4000 + 16 * (most + 512) - 1)
    host = Host(backend, build_map([(0, 64 * MIB)], rmp=rmp, rmp_probed=False))
    assert command(host, "SNP_INIT", pages=most + 1) == 0x9
    assert host.rmp(0) == (0, 0)
    assert not host.state().firmware_ready
    assert command(host, "SNP_INIT", pages=most) == 0
    assert state_of(host, most - 1) == PageState.FIRMWARE_IOMMU
    # none of the regions is Firmware's
    assert command(host, "SNP_PAGE_SET_STATE", pa=0, pages=most) == 0x1A
    assert command(host, "SNP_PAGE_SET_STATE", pa=0, pages=most + 512) == 0x9


def test_pages_that_are_dram_in_part(backend: str) -> None:
    """rmp §4.2: a page that is not wholly DRAM is HV-Fixed; types 1, 128 and soft reserved are DRAM; reserved,
    ACPI (3), NVS (4) and others are not."""
    map_ = build_map(
        [(0x100000, 31 * MIB)],
        e820=[
            (0, 0x9FC00, 1),
            (0x9FC00, 0x400, 2),
            (0x100000, 31 * MIB, 1),
            (0x2000000, 0x1800, 128),
            (0x2001800, 0x800, 0xEFFFFFFF),
            (0x2002000, 0x1000, 128),
            (0x2003000, 0x1000, 5),
            (0x2004000, 0x1000, 7),
            (0x2005000, 0x800, 128),
            (0x2006000, 0x1000, 0xEFFFFFFF),
            (0x2007000, 0x1000, 3),
            (0x2008000, 0x1000, 4),
        ],
        rmp=(0x4000000, 0x40FFFFF),
    )
    host = Host(backend, map_)
    assert command(host, "SNP_INIT") == 0
    fixed = {pfn for pfn, lo, _ in host.state().rmp.tolist() if lo == 4}
    low = {pfn for pfn in fixed if pfn < 0x4000}
    assert low == {*range(0x9F, 0x100), 0x2003, 0x2004, 0x2005, *range(0x2007, 0x4000)}


def test_dram_from_a_pages_second_byte_on(backend: str) -> None:
    """rmp §4.2 SNP_INIT, row 4: a page that lacks only its first byte is not wholly DRAM."""
    map_ = build_map([(0, 2 * MIB)], e820=[(0, 2 * MIB, 1), (3 * MIB + 1, MIB - 1, 1)], rmp=(0x4000000, 0x40FFFFF))
    host = Host(backend, map_)
    assert command(host, "SNP_INIT") == 0
    assert [state_of(host, pfn) for pfn in (0x2FF, 0x300, 0x301)] == [
        PageState.HV_FIXED,
        PageState.HV_FIXED,
        PageState.HYPERVISOR,
    ]


@pytest.mark.parametrize(("end", "own"), [(0x14FFF, 5), (0x15000, 6), (0x15001, 6)])
def test_the_page_of_the_last_byte(backend: str, end: int, own: int) -> None:
    """rmp §4.2 SNP_INIT, row 1: the table's own pages are those from RMP_BASE to RMP_END, which is its last byte."""
    host = Host(backend, build_map([(MIB, 31 * MIB)], rmp=(0x10000, end), rmp_probed=False))
    assert command(host, "SNP_INIT") == 0
    assert [pfn for pfn, lo, _ in host.state().rmp.tolist() if lo & ASSIGNED] == list(range(0x10, 0x10 + own))


def test_own_pages_of_a_region_covered_in_part(backend: str) -> None:
    """rmp §1.2: the count is of the pages that are covered, though they be the region's first three alone."""
    frames = 0xC0003
    map_ = build_map([(0, 3 * GIB)], rmp=(3 * GIB, 3 * GIB + 0x4000 + 16 * frames - 1), rmp_probed=False)
    host = Host(backend, map_)
    assert command(host, "SNP_INIT") == 0
    assert [host.rmp(pfn) for pfn in (0xC0000, 0xC0001, 0xC0002)] == [
        (FIRMWARE_PAGE | 2 << 3, 0),
        (FIRMWARE_PAGE, 0),
        (FIRMWARE_PAGE, 0),
    ]


# --- the story of issue 245 ---

TAIL_245 = (0x4DE0_0000, 0x566F_FFFF)
TOP_245 = 0x8_8FC0_0000
ISSUE_245 = build_map(
    [(0, TAIL_245[0]), (0x5670_0000, TOP_245 - 0x5670_0000)],
    e820=[
        (0, TAIL_245[0], 1),
        (TAIL_245[0], TAIL_245[1] + 1 - TAIL_245[0], 2),
        (0x5670_0000, TOP_245 - 0x5670_0000, 1),
    ],
    rmp=TAIL_245,
)
"""The RMP of issue 189 with as much memory as it covers; the map around it is made up."""


@pytest.mark.parametrize(("kernel", "code"), [("6.9", 0), ("6.10", 2), ("6.11", 2), ("6.12", 2)])
def test_issue_245(backend: str, kernel: str, code: int) -> None:
    """rmp-dumps.json issue 245: the kernel reserved the whole 2 MiB at the RMP's end, SNP_INIT made the second MiB
    HV-Fixed, and RMPUPDATE of its first page answers 2 (FAIL_PERMISSION)."""
    (dump,) = (d for d in DUMPS if d["source"].endswith("/issues/245"))
    host = Host(backend, ISSUE_245, kernel=kernel)
    assert command(host, "SNP_INIT") == 0
    for entry in dump["entries"]:
        raw = (int(entry["lo"], 16), int(entry["hi"], 16))
        assert host.rmp(int(entry["pfn"], 16)) == raw
    assert len(dump["entries"]) == 14
    assert host.rmp(0x566FF) == (FIRMWARE_PAGE, 0)
    reserved = 4 if code else 0
    assert [host.rmp(pfn)[0] for pfn in (0x56700, 0x567FF, 0x56800, 0x4DDFF)] == [reserved, reserved, 0, 0]
    host.events()
    ret = host.call("rmp_make_private", pfn=0x56700, gpa=0x12345000, level=1, asid=7)
    assert ret == (EFAULT if code else 0)
    events = host.events()
    updates = [event for event in events if event.kind == EventKind.RMPUPDATE]
    assert [(event.code, event.a) for event in updates] == [(code, 0x5670_0000)]
    if code:
        after = events[events.index(updates[0]) + 1 :]
        assert after[0] == Event(EventKind.RMPUPDATE_FAILED, level=1, code=2, a=0x56700)
        assert after[1] == Event(EventKind.DUMP_REGION, a=0x56700, b=0x56600, c=0x56800)
        assert [event.a for event in after[2:]] == list(range(0x56600, 0x56800))
        assert after[2] == Event(EventKind.DUMP_ENTRY, a=0x56600, b=0x8000_0000_0000_07FD)
        assert after[2 + 256] == Event(EventKind.DUMP_ENTRY, a=0x56700, b=4)


def test_the_25_tib_machine_of_the_same_defect() -> None:
    """rmp-dumps.json commit 88a921aa3c6b: PFN 0x28357f7c lies in the 1 MiB after the RMP, in the block that the kernel
    printed as reserved."""
    (dump,) = (d for d in DUMPS if "88a921aa3c6b" in d["source"] and not d["entries"])
    end = 0x28357EFFFFF
    assert f"rmp_end={end:#x}" in dump["lines"][0]
    block = (end + 1) & ~(2 * MIB - 1)
    assert f"[{block:#018x}]" in dump["lines"][3]
    assert end < 0x28357F7C << 12 < block + 2 * MIB


UNALIGNED_END = build_map(
    [(0, 32 * MIB), (33 * MIB, MIB)],
    e820=[(0, 32 * MIB, 1), (32 * MIB, MIB, 2), (33 * MIB, MIB, 1)],
    rmp=(32 * MIB, 33 * MIB - 1),
)
"""The highest memory is the 1 MiB after the RMP's end: that is where pages for tables come from."""


@pytest.mark.parametrize(
    ("kernel", "inside"), [("6.9", True), ("6.10", True), ("6.11", True), ("6.12", False), ("7.3", False)]
)
def test_allocator_and_the_reserved_block(backend: str, kernel: str, inside: bool) -> None:
    """host §1: kernels 6.10 and 6.11 reserve the block in e820 only and still allocate from it; 6.12 does not."""
    host = Host(backend, UNALIGNED_END, kernel=kernel)
    assert command(host, "SNP_INIT") == 0
    assert host.rmp(0x2100)[0] == (0 if kernel == "6.9" else 4)
    assert host.rmp(0x2000) == (0x8000_0000_0000_07FD, 0)
    host.events()
    assert host.call("set_memory_4k", pfn=0x401, pages=1) == 0
    (table,) = (event.a for event in host.events() if event.kind == EventKind.TABLE_ALLOC)
    assert (table >= 33 * MIB) == inside
    if not inside:
        assert table == 32 * MIB - 0x1000


def test_no_block_without_probing(backend: str) -> None:
    """host §1: only the kernel's own probing reserves."""
    map_ = MachineMap(**{**UNALIGNED_END.__dict__, "rmp_probed": False})
    host = Host(backend, map_, kernel="6.12")
    assert command(host, "SNP_INIT") == 0
    assert host.rmp(0x2100)[0] == 0
    host.events()
    assert host.call("set_memory_4k", pfn=0x401, pages=1) == 0
    (table,) = (event.a for event in host.events() if event.kind == EventKind.TABLE_ALLOC)
    assert table >= 33 * MIB


def test_no_block_where_nothing_is_usable(backend: str) -> None:
    """host §1: a block is reserved if any byte of it is usable memory; SNP's has none, and HV-Fixed it is anyway."""
    host = Host(backend, SNP, kernel="6.12")
    host.events()
    assert host.call("set_memory_4k", pfn=0x401, pages=1) == 0
    assert host.counters()["table_pages"] > 0


def test_block_at_an_unaligned_base(backend: str) -> None:
    """host §1: both ends: a base that is no multiple of 2 MiB reserves the block before it."""
    map_ = build_map(
        [(0, 33 * MIB), (34 * MIB, MIB)],
        e820=[(0, 33 * MIB, 1), (33 * MIB, MIB, 2), (34 * MIB, MIB, 1)],
        rmp=(33 * MIB, 34 * MIB - 1),
    )
    for kernel, lo in (("6.9", 0), ("6.10", 4)):
        host = Host(backend, map_, kernel=kernel)
        assert command(host, "SNP_INIT") == 0
        assert [host.rmp(pfn)[0] for pfn in (0x1FFF, 0x2200)] == [0, 0]
        # the block's head is HV-Fixed or the hypervisor's, and counts the 256 pages of the table
        assert host.rmp(0x2000)[0] == lo | 256 << 3
        assert host.rmp(0x20FF)[0] == lo
        assert host.rmp(0x2100)[0] == FIRMWARE_PAGE


# --- firmware pages by the kernel (host §1) ---


def test_firmware_round_trip(backend: str) -> None:
    """rmp §4.2: RMPUPDATE to Firmware; PAGE_RECLAIM to Reclaim; RMPUPDATE to Hypervisor."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT") == 0
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=3) == 0
    assert {state_of(host, pfn) for pfn in (0x401, 0x402, 0x403)} == {PageState.FIRMWARE}
    assert host.rmp(0x400)[0] == 3 << 3
    host.events()
    assert host.call("snp_reclaim_pages", pfn=0x401, pages=3) == 0
    assert {state_of(host, pfn) for pfn in (0x401, 0x402, 0x403)} == {PageState.HYPERVISOR}
    assert host.rmp(0x400)[0] == 0
    steps = [(e.kind, e.code, e.a) for e in host.events() if e.kind in (EventKind.FIRMWARE, EventKind.RMPUPDATE)]
    assert steps == [
        step
        for pfn in (0x401, 0x402, 0x403)
        for step in ((EventKind.FIRMWARE, 0, 0xC7), (EventKind.RMPUPDATE, 0, pfn << 12))
    ]


def test_marking_undoes_what_it_did(backend: str) -> None:
    """host §1: on a failure the pages done so far are reclaimed, and the failure is the answer."""
    host = Host(backend, SNP)
    assert command(host, "SNP_INIT") == 0
    host.assign(0x403, immutable=1)
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=4) == EFAULT
    assert [state_of(host, pfn) for pfn in (0x401, 0x402, 0x403, 0x404)] == [
        PageState.HYPERVISOR,
        PageState.HYPERVISOR,
        PageState.PRE_GUEST,
        PageState.HYPERVISOR,
    ]
    assert host.counters()["leaked_pages"] == 0


def test_reclaiming_without_firmware_leaks(backend: str) -> None:
    """host §1: PAGE_RECLAIM fails: -EIO, that page and all that are left are leaked."""
    host = Host(backend, SNP)
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=3) == 0
    host.events()
    assert host.call("snp_reclaim_pages", pfn=0x401, pages=3) == -5
    assert [e for e in host.events() if e.kind == EventKind.LEAK] == [Event(EventKind.LEAK, a=0x401, b=3)]
    assert host.counters()["leaked_pages"] == 3
    assert {state_of(host, pfn) for pfn in (0x401, 0x402, 0x403)} == {PageState.FIRMWARE}


def test_tmr_of_the_dump_is_leaked(backend: str) -> None:
    """rmp-dumps.json (6.17, suspend): the 512 pages of the TMR cannot be reclaimed and are leaked at once."""
    (dump,) = (d for d in DUMPS if "bp@kernel.org" in d["source"])
    assert "Leaking PFN range 0x146800-0x146a00" in " ".join(dump["lines"])
    host = Host(backend, SNP, kernel="6.17")
    assert host.call("snp_reclaim_pages", pfn=0x800, pages=512) == -5
    assert [e for e in host.events() if e.kind == EventKind.LEAK] == [Event(EventKind.LEAK, a=0x800, b=512)]


# --- what firmware keeps beside the RMP (rmp §1.6, §4.2) ---


def firmware_host(backend: str, **options: Any) -> Host:
    """After SNP_INIT: context 0x800, firmware pages 0x801 to 0x80f."""
    host = Host(backend, SNP, **options)
    assert command(host, "SNP_INIT") == 0
    assert host.call("rmp_mark_pages_firmware", pfn=0x800, pages=16) == 0
    assert command(host, "SNP_GCTX_CREATE", gctx=0x800000) == 0
    return host


def activated(backend: str, **options: Any) -> Host:
    host = firmware_host(backend, **options)
    assert command(host, "SNP_ACTIVATE", gctx=0x800000, asid=5) == 0
    return host


def test_activate(backend: str) -> None:
    """rmp §4.2 SNP_ACTIVATE: ACTIVE, INVALID_ASID, ASID_OWNED in this order."""
    host = firmware_host(backend, switches={"asid_limit": 99})
    assert command(host, "SNP_GCTX_CREATE", gctx=0x801000) == 0
    assert host.state().contexts == ((0x800, 0), (0x801, 0))
    for asid in (0, 100, 0x3FF, 0x400, 0xFFFF_FFFF):
        assert command(host, "SNP_ACTIVATE", gctx=0x800000, asid=asid) == 0x0D
    assert command(host, "SNP_ACTIVATE", gctx=0x800000, asid=99) == 0
    assert command(host, "SNP_ACTIVATE", gctx=0x800000, asid=0) == 0x12
    assert command(host, "SNP_ACTIVATE", gctx=0x801000, asid=99) == 0x0C
    assert command(host, "SNP_ACTIVATE", gctx=0x801000, asid=98) == 0
    assert host.state().contexts == ((0x800, 99), (0x801, 98))
    assert command(host, "SNP_DECOMMISSION", gctx=0x800000) == 0
    assert host.state().contexts == ((0x801, 98),)
    assert state_of(host, 0x800) == PageState.FIRMWARE


@pytest.mark.parametrize(("unit", "count"), [(0, None), (1, 1), (512, 512)])
def test_bookkeeping_of_a_2m_page(backend: str, unit: int, count: int | None) -> None:
    """rmp §1.6, §5 point 7: pages by ASID; a 2M page counts 1 or 512 or nothing is kept; ACTIVATE wants 0, else
    INVALID_CONFIG."""
    host = firmware_host(backend, switches={"bookkeeping": unit})
    host.assign(0x400, size=1, gpa=GIB)
    host.assign(0x301, gpa=0x5000)
    host.assign(0x302, gpa=0x6000, asid=9)
    kept = () if count is None else ((5, count + 1), (9, 1))
    assert host.state().bookkeeping == kept
    assert command(host, "SNP_ACTIVATE", gctx=0x800000, asid=5) == (0 if count is None else 0x3)
    assert host.insn("PSMASH", pa=0x400000) == SUCCESS
    assert host.state().bookkeeping == (() if count is None else ((5, 513), (9, 1)))
    # a change of owner moves it; firmware pages (ASID 0) count nowhere; what is refused neither
    host.assign(0x301, gpa=0x5000, asid=9)
    host.assign(0x302, asid=0, immutable=1)
    assert host.update(0x302) == FAIL_PERMISSION
    assert host.update(0x400) == SUCCESS
    assert host.state().bookkeeping == (() if count is None else ((5, 511), (9, 1)))
    assert host.update(0x301) == SUCCESS
    assert host.state().bookkeeping == (() if count is None else ((5, 511),))


def test_bookkeeping_of_unsmash(backend: str) -> None:
    """rmp §1.6: UNSMASH takes 512 back and adds the unit of a 2M page."""
    switches = {"bookkeeping": 1}
    host = firmware_host(backend, switches=switches)
    for pfn in range(0x400, 0x600):
        host.assign(pfn, gpa=GIB + (pfn - 0x400) * 0x1000, immutable=1)
    assert host.state().bookkeeping == ((5, 512),)
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x400000) == 0
    assert host.state().bookkeeping == ((5, 1),)
    assert command(host, "SNP_PAGE_RECLAIM", pa=0x400001) == 0
    assert host.update(0x400, size=1) == SUCCESS
    assert host.state().bookkeeping == ()


def test_bookkeeping_wraps(backend: str) -> None:
    """rmp §1.6: 64-bit counters: an entry that was stored by hand was never counted, and taking it away wraps; SNP_INIT
    clears them."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x201, ASSIGNED | ASID_5 | 0x7000, 0x0F)
    assert host.state().bookkeeping == ()
    assert host.update(0x201) == SUCCESS
    assert host.state().bookkeeping == ((5, (1 << 64) - 1),)
    host.assign(0x301, asid=0x3FF)
    assert host.state().bookkeeping == ((5, (1 << 64) - 1), (0x3FF, 1))
    assert command(host, "SNP_INIT") == 0
    assert host.state().bookkeeping == ()


def swap_host(backend: str) -> Host:
    """Activated, with metadata page 0x801 and a Pre-Swap page 0x401 at 0x7000."""
    host = activated(backend)
    assert command(host, "SNP_MD_INIT", gctx=0x800000, pa=0x801000) == 0
    host.assign(0x401, gpa=0x7000)
    host.machine.write_rmp(0x401, VALIDATED | ASSIGNED | 0x7000 | ASID_5, 0x0703_0F1F)
    host.assign(0x401, gpa=0x7000, immutable=1)
    return host


def swap_out(host: Host, src: int = 0x401, mdata: int = 0x801040, **args: int) -> int:
    fields = {"gctx": 0x800000, "src": src << 12, "dst": 0x802000, "mdata": mdata, "size": 0} | args
    return command(host, "SNP_PAGE_SWAP_OUT", **fields)


def test_swap_out_and_in(backend: str) -> None:
    """rmp §4.2: Pre-Swap -> Pre-Guest with a record; a Pre-Guest page takes gpa, permissions and validated from it."""
    host = swap_host(backend)
    assert swap_out(host) == 0
    assert state_of(host, 0x401) == PageState.PRE_GUEST
    ((address, context, info, _, hi),) = host.state().records
    assert (address, context, info, hi) == (0x801040, 0x800, 1, 0x0703_0F1F)
    assert command(host, "SNP_PAGE_RECLAIM", pa=0x401000) == 0
    assert host.update(0x401) == SUCCESS
    host.assign(0x501, immutable=1)
    swap = {"gctx": 0x800000, "src": 0x802000, "dst": 0x501000, "mdata": 0x801040, "size": 0}
    assert command(host, "SNP_PAGE_SWAP_IN", **swap) == 0
    assert host.rmp(0x501) == (FIRMWARE_PAGE | VALIDATED | 0x7000 | ASID_5, 0x0703_0F1F)
    assert host.state().records == ()
    assert command(host, "SNP_PAGE_SWAP_IN", **swap) == 0x1B


def test_swap_in_over_a_vmsa(backend: str) -> None:
    """rmp §4.2 SNP_PAGE_SWAP_IN: vmsa is the record's, whatever the page had."""
    host = swap_host(backend)
    assert swap_out(host) == 0
    host.machine.write_rmp(0x501, FIRMWARE_PAGE | VMSA | ASID_5, 0)
    swap = {"gctx": 0x800000, "src": 0x802000, "dst": 0x501000, "mdata": 0x801040, "size": 0}
    assert command(host, "SNP_PAGE_SWAP_IN", **swap) == 0
    assert host.rmp(0x501)[0] == FIRMWARE_PAGE | VALIDATED | 0x7000 | ASID_5


@pytest.mark.parametrize(
    ("gpa", "state"),
    [
        (TAG_METADATA | 0x1000, PageState.METADATA),
        (TAG_METADATA | 1 << 47, PageState.METADATA),
        (TAG_METADATA | 1 << 50 | 0x1000, PageState.INVALID),
        (TAG_METADATA | 1 << 49 | 0x1000, PageState.INVALID),
    ],
)
def test_tags_are_three_bits(backend: str, gpa: int, state: PageState) -> None:
    """rmp §1.3: bits 50:48 of a firmware page's gpa are the tag, those below are not."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x801, FIRMWARE_PAGE | gpa, 0)
    assert state_of(host, 0x801) == state


def test_unsmash_leaves_the_next_region(backend: str) -> None:
    """rmp §4.2 SNP_PAGE_UNSMASH: 512 pages, no more."""
    host = firmware_host(backend)
    for pfn in range(0x400, 0x601):
        host.assign(pfn, gpa=GIB + (pfn - 0x400) * 0x1000, immutable=1)
    after = host.rmp(0x600)
    assert after[0] == FIRMWARE_PAGE | GIB + 0x200000 | ASID_5
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x400000) == 0
    assert host.rmp(0x600) == after
    assert host.rmp(0x5FF)[0] & (IMMUTABLE | LOCK) == 0


def test_records_are_in_order(backend: str) -> None:
    """rmp §4.2: sorted by address, whichever comes or goes; those of another guest stay when one is forgotten."""
    host = swap_host(backend)
    assert command(host, "SNP_GCTX_CREATE", gctx=0x805000) == 0
    assert command(host, "SNP_ACTIVATE", gctx=0x805000, asid=6) == 0
    assert command(host, "SNP_MD_INIT", gctx=0x805000, pa=0x806000) == 0
    for pfn in (0x402, 0x403, 0x404):
        host.assign(pfn, gpa=pfn << 12, immutable=1, asid=6 if pfn == 0x404 else 5)
    assert swap_out(host, 0x401, 0x801080) == 0
    assert swap_out(host, 0x404, 0x806000, gctx=0x805000) == 0
    assert swap_out(host, 0x402, 0x801040) == 0
    assert swap_out(host, 0x403, 0x8010C0) == 0
    order = [0x801040, 0x801080, 0x8010C0, 0x806000]
    assert [row[0] for row in host.state().records] == order
    host.assign(0x501, immutable=1)
    swap = {"gctx": 0x800000, "src": 0x802000, "dst": 0x501000, "mdata": 0x801080, "size": 0}
    assert command(host, "SNP_PAGE_SWAP_IN", **swap) == 0
    assert [row[0] for row in host.state().records] == [at for at in order if at != 0x801080]
    # a metadata page goes, another's records stay
    assert command(host, "SNP_DECOMMISSION", gctx=0x800000) == 0
    assert [row[:2] for row in host.state().records] == [(0x806000, 0x805)]
    assert host.state().contexts == ((0x805, 6),)


def test_a_context_that_was_stored_over(backend: str) -> None:
    """rmp §4.2, SNP_GCTX_CREATE: the page is Firmware again by hand: its context is a new one, without an ASID."""
    host = activated(backend)
    assert host.state().contexts == ((0x800, 5),)
    host.machine.write_rmp(0x800, FIRMWARE_PAGE, 0)
    assert command(host, "SNP_ACTIVATE", gctx=0x800000, asid=7) == 0x10
    assert command(host, "SNP_GCTX_CREATE", gctx=0x800000) == 0
    assert host.state().contexts == ((0x800, 0),)


def test_swapping_has_owners_and_sizes(backend: str) -> None:
    """rmp §4.2: SNP_PAGE_SWAP_OUT, _IN, _MOVE: not activated: INACTIVE; another guest's page: INVALID_PAGE_OWNER; 2M
    where nothing is aligned: INVALID_ADDRESS."""
    host = swap_host(backend)
    host.assign(0xA00, size=1, gpa=GIB, immutable=1)
    assert swap_out(host, 0xA00, size=1, dst=1 << 45) == 0
    swap = {"gctx": 0x800000, "src": (1 << 45) + 0x1000, "dst": 0xA00000, "mdata": 0x801040, "size": 1}
    assert command(host, "SNP_PAGE_SWAP_IN", **swap) == 0x9
    assert command(host, "SNP_PAGE_SWAP_IN", **swap | {"src": 1 << 45}) == 0
    assert swap_out(host) == 0
    host.assign(0x502, immutable=1, asid=9)
    swap = {"gctx": 0x800000, "src": 0x802000, "dst": 0x502000, "mdata": 0x801040, "size": 0}
    assert command(host, "SNP_PAGE_SWAP_IN", **swap) == 0x1C
    move = {"gctx": 0x800000, "src": 0x401000, "dst": 0x502000, "size": 0}
    assert command(host, "SNP_PAGE_MOVE", **move) == 0x1C
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x401000) == 0x9
    idle = continued(host, changed(host.state(), contexts=((0x800, 0),)))
    assert command(idle, "SNP_PAGE_SWAP_IN", **swap) == 0x08
    assert swap_out(idle, 0x401, 0x801080) == 0x08
    assert command(idle, "SNP_PAGE_MOVE", **move) == 0x08


@pytest.mark.parametrize("mdata", [0x801001, 0x801020, 0x801FFF])
def test_records_are_64_bytes_apart(backend: str, mdata: int) -> None:
    """rmp §4.2: a metadata record has 64 bytes: bits 5:0 of its address are 0."""
    host = swap_host(backend)
    before = host.state()
    assert swap_out(host, mdata=mdata) == 0x9
    assert host.state() == before
    assert swap_out(host, mdata=0x801FC0) == 0


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([("SNP_PAGE_RECLAIM", {"pa": 0x801000})], ()),
        ([("SNP_DECOMMISSION", {"gctx": 0x800000})], ()),
        ([("SNP_SHUTDOWN", {})], ()),
        ([("SNP_PAGE_MOVE", {"gctx": 0x800000, "src": 0x801000, "dst": 0x803000, "size": 0})], (0x803040,)),
        ([("SNP_PAGE_RECLAIM", {"pa": 0x802000})], (0x801040,)),
    ],
)
def test_what_becomes_of_records(backend: str, steps: list[tuple[str, dict[str, int]]], left: tuple[int, ...]) -> None:
    """rmp §4.2: records go with their page (RECLAIM), their guest (DECOMMISSION), the firmware (SHUTDOWN); they
    move with their page (MOVE)."""
    host = swap_host(backend)
    assert swap_out(host) == 0
    for name, args in steps:
        assert command(host, name, **args) == 0
    assert tuple(row[0] for row in host.state().records) == left


def test_metadata_that_holds_records_stays(backend: str) -> None:
    """The model: a metadata page that holds records, or takes this one, cannot be swapped out."""
    host = swap_host(backend)
    assert command(host, "SNP_MD_INIT", gctx=0x800000, pa=0x803000) == 0
    assert swap_out(host) == 0
    before = host.state()
    assert swap_out(host, 0x801, 0x803000) == 0x1A
    assert swap_out(host, 0x803, 0x803000) == 0x1A
    assert host.state() == before
    assert swap_out(host, 0x803, 0x801080) == 0
    assert state_of(host, 0x803) == PageState.FIRMWARE
    assert [row[2] & 8 for row in host.state().records] == [0, 8]
    swap = {"gctx": 0x800000, "src": 0x802000, "dst": 0x804000, "mdata": 0x801080, "size": 0}
    assert command(host, "SNP_PAGE_SWAP_IN", **swap) == 0
    assert host.rmp(0x804)[0] == FIRMWARE_PAGE | TAG_METADATA | 0x800 << 12


def test_launch_story(backend: str) -> None:
    """rmp §4.2: GCTX_CREATE, ACTIVATE, LAUNCH_UPDATE of a VMSA; the guest runs; DECOMMISSION and RECLAIM give all
    back."""
    host = activated(backend)
    host.assign(0x401, gpa=0xFFFF_FFFF_F000, immutable=1)
    launch = {"gctx": 0x800000, "pa": 0x401000, "size": 0, "type": 2, "vmpl1": 1, "vmpl2": 3, "vmpl3": 0x0F}
    assert command(host, "SNP_LAUNCH_UPDATE", **launch) == 0
    assert host.rmp(0x401) == (VMSA | VALIDATED | ASSIGNED | 0xFFFF_FFFF_F000 | ASID_5, 0x0F03_010F)
    assert host.do("VMRUN", vmcb=0x601000, vmsa=0x401000, gpa=0xFFFF_FFFF_F000, asid=5).kind == Kind.ALLOWED
    assert host.update(0x401) == FAIL_INUSE
    assert host.do("VMEXIT", vmcb=0x601000).ret == 0
    # dump of commit 9b9f7962e3e8: the host writes the VMSA that is the guest's already
    fault = host_access(host, 0x401)
    assert (fault.ret, fault.value, fault.reason) == (14, RMP_WRITE, Reason.ASSIGNED)
    assert host.update(0x401) == SUCCESS
    assert command(host, "SNP_DECOMMISSION", gctx=0x800000) == 0
    assert host.call("snp_reclaim_pages", pfn=0x800, pages=16) == 0
    assert {pfn for pfn, lo, _ in host.state().rmp.tolist() if lo & ASSIGNED} == set(range(0x4000, 0x4100))


def test_events_of_commands(backend: str) -> None:
    """Each command is reported with its status, number, addr and va, refused ones too."""
    host = Host(backend, SNP)
    host.events()
    assert command(host, "SNP_PAGE_UNSMASH", pa=0x200000) == 0x1
    assert command(host, "SNP_INIT") == 0
    assert command(host, "SNP_MD_INIT", gctx=0x800000, pa=0x801000) == 0x10
    assert command(host, "SNP_PAGE_RECLAIM", pa=0x201001) == 0x19
    assert command(host, "SNP_SHUTDOWN") == 0
    assert host.events() == [
        Event(EventKind.FIRMWARE, code=0x1, a=0xC8, b=0x200000),
        Event(EventKind.FIRMWARE, code=0, a=0x81),
        Event(EventKind.FIRMWARE, code=0x10, a=0xC3, b=0x801000, c=0x800000),
        Event(EventKind.FIRMWARE, code=0x19, a=0xC7, b=0x201001),
        Event(EventKind.FIRMWARE, code=0, a=0x86),
    ]


# --- switches of the new parts (rmp §5, "Switches") ---


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("rmpquery", (0, 1), (-1, 2)),
        ("inuse_first", (0, 1), (-1, 2)),
        ("pvalidate_vmpl", (0, 1, 255), (-1, 256)),
        ("rescind_resets", (0, 1), (-1, 2)),
        ("rmpquery_vmpl", (0, 2, 255), (-1, 256)),
        ("bookkeeping", (0, 1, 512), (-1, 2, 511, 513)),
        ("vmpls", (1, 2, 3, 4), (0, 5)),
        ("vmpl_sss", (0, 1), (-1, 2)),
        ("hv_in_use_wr", (0, 1), (-1, 2)),
    ],
)
def test_values_of_switches(backend: str, name: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    """rmp "Switches": the values that each can have, and none else."""
    for value in good:
        Host(backend, SNP, switches={name: value})
    for value in bad:
        with pytest.raises(MachineError):
            Host(backend, SNP, switches={name: value})


def valid_page(backend: str, permissions: int = 0x0103_071F, **options: Any) -> Host:
    """Page 0x201 validated by ASID 5 at 0x7000."""
    host = Host(backend, SNP, **({"hardware": "genoa"} | options))
    host.machine.write_rmp(0x201, VALIDATED | ASSIGNED | 0x7000 | ASID_5, permissions)
    return host


@pytest.mark.parametrize("code", [1, 2, 255])
def test_pvalidate_at_other_vmpls(backend: str, code: int) -> None:
    """rmp §2.5 row 2, §5 point 3: #GP(0), or a code that the switch pvalidate_vmpl names; before rows 3 and 4."""
    host = valid_page(backend, switches={"pvalidate_vmpl": code})
    before = host.state().rmp.tolist()
    for vmpl in (1, 2, 3):
        for rcx in (0, 2):
            assert guest(host, "PVALIDATE", 0x201, 0x7000, rcx=rcx, rdx=0, vmpl=vmpl) == Result(code, Kind.CODE)
    assert host.state().rmp.tolist() == before
    assert host.counters()["pvalidate"] == 6
    assert guest(host, "PVALIDATE", 0x201, 0x7000, rcx=0, rdx=0, vmpl=1, user=1) == Result(13, Kind.FAULT)


@pytest.mark.parametrize(("hardware", "byte"), [("milan", 0x0F), ("genoa", 0x1F), ("turin", 0x1F)])
def test_rescinding_and_permissions(backend: str, hardware: str, byte: int) -> None:
    """rmp §2.5, §5 point 3: rescinding leaves permissions; with rescind_resets VMPL0 has all, the others nothing."""
    for resets, hi in ((0, 0x0103_071F), (1, byte)):
        host = valid_page(backend, hardware=hardware, switches={"rescind_resets": resets})
        # validating what is valid already is no rescinding
        assert guest(host, "PVALIDATE", 0x201, 0x7000, rcx=0, rdx=1).flags == ResultFlag.CF
        assert host.rmp(0x201)[1] == 0x0103_071F
        assert guest(host, "PVALIDATE", 0x201, 0x7000, rcx=0, rdx=0) == Result(0, Kind.CODE)
        assert host.rmp(0x201) == (ASSIGNED | 0x7000 | ASID_5, hi)
        # nor is rescinding what is not valid, nor validating
        host.machine.write_rmp(0x201, ASSIGNED | 0x7000 | ASID_5, 0x0103_071F)
        assert guest(host, "PVALIDATE", 0x201, 0x7000, rcx=0, rdx=0).flags == ResultFlag.CF
        assert guest(host, "PVALIDATE", 0x201, 0x7000, rcx=0, rdx=1) == Result(0, Kind.CODE)
        assert host.rmp(0x201)[1] == 0x0103_071F


@pytest.mark.parametrize("code", [0, 1, 2, 255])
def test_rmpquery_of_a_higher_vmpl(backend: str, code: int) -> None:
    """rmp §2.7, §5 point 4: a target VMPL that is more privileged: code 2, or what rmpquery_vmpl says; 0: an answer."""
    host = valid_page(backend, switches={"rmpquery_vmpl": code})
    result = guest(host, "RMPQUERY", 0x201, 0x7000, rdx=1, vmpl=3)
    assert result == (Result(code, Kind.CODE) if code else Result(0, Kind.CODE, value2=0x0701))
    assert guest(host, "RMPQUERY", 0x201, 0x7000, rdx=3, vmpl=3) == Result(0, Kind.CODE, value2=0x0103)


def test_all_of_a_permission_byte(backend: str) -> None:
    """rmp §2.7 row 6, §2.6 row 8: the byte is given, and replaced, whole, with bits that only a hand can have set."""
    host = valid_page(backend, hardware="genoa")
    host.machine.write_rmp(0x201, host.rmp(0x201)[0], 0xFFFF_FF1F)
    assert guest(host, "RMPQUERY", 0x201, 0x7000, rdx=1) == Result(0, Kind.CODE, value2=0xFF01)
    assert guest(host, "RMPADJUST", 0x201, 0x7000, rcx=0, rdx=0x102) == Result(0, Kind.CODE)
    assert host.rmp(0x201)[1] == 0xFF01_FF1F


@pytest.mark.parametrize(("hardware", "there"), [("milan", False), ("genoa", True), ("turin", True)])
def test_rmpquery_where_it_is(backend: str, hardware: str, there: bool) -> None:
    """rmp §1.8: CPUID EAX[6]; the switch rmpquery overrides the profile."""
    for switches, expected in ((None, there), ({"rmpquery": 1}, True), ({"rmpquery": 0}, False)):
        host = valid_page(backend, hardware=hardware, switches=switches)
        result = guest(host, "RMPQUERY", 0x201, 0x7000, rdx=0)
        assert result == (Result(0, Kind.CODE, value2=0x1F00) if expected else Result(6, Kind.FAULT))


@pytest.mark.parametrize("vmpls", [1, 2, 3, 4])
def test_number_of_vmpls(backend: str, vmpls: int) -> None:
    """rmp §1.8, §2.6 row 1: CPUID EBX[15:12]: a target that does not exist is FAIL_INPUT (RMPQUERY: 2); nobody executes
    at a VMPL that does not exist."""
    host = valid_page(backend, switches={"vmpls": vmpls})
    for target in range(1, 5):
        exists = target < vmpls
        adjust = guest(host, "RMPADJUST", 0x201, 0x7000, rcx=0, rdx=0x100 | target)
        assert adjust == Result(SUCCESS if exists else FAIL_INPUT, Kind.CODE)
        assert guest(host, "RMPQUERY", 0x201, 0x7000, rdx=target).ret == (0 if exists else 2)
    refused = Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)
    insns = {"PVALIDATE": {"rcx": 2, "rdx": 0}, "RMPADJUST": {"rcx": 2, "rdx": 0}, "RMPQUERY": {"rdx": 0}}
    for name, args in insns.items():
        assert guest(host, name, 0x201, 0x7000, vmpl=vmpls, user=1, plain=1, **args) == refused
        assert guest(host, name, 0x201, 0x7000, vmpl=vmpls - 1, **args) != refused
        for level in (0, 4):
            assert guest(host, name, 0x201, 0x7000, level, **args) == refused
    assert snp_access(host, 0x201, AccessKind.READ, 0x7000, vmpl=vmpls) == refused
    assert snp_access(host, 0x201, AccessKind.READ, 0x7000, vmpl=0) == ALLOWED


@pytest.mark.parametrize(("hardware", "separate"), [("milan", False), ("genoa", True), ("turin", True)])
def test_shadow_stacks_of_the_parts(backend: str, hardware: str, separate: bool) -> None:
    """rmp §1.1, §1.8: CPUID VmplSSS: where it is, a shadow stack needs bit 4, elsewhere it is written like any page."""
    for byte, permitted in ((0x03, not separate), (0x11, separate)):
        host = valid_page(backend, byte, hardware=hardware)
        result = snp_access(host, 0x201, AccessKind.SHADOW_STACK, 0x7000)
        assert (result == ALLOWED) == permitted
        if not permitted:
            assert bool(result.value >> 37 & 1) == separate
            assert result.value >> 36 & 1


@pytest.mark.parametrize("bits", [13, 36, 48, 51])
def test_width_of_a_gpa(backend: str, bits: int) -> None:
    """rmp §2.2, §3.1: what is stored has gpa_bits bits; inside a 2M entry the sum wraps; the GPA asked for is compared
    as it is."""
    host = Host(backend, SNP, switches={"gpa_bits": bits})
    top = (1 << bits) - 0x1000
    host.machine.write_rmp(0x200, VALIDATED | ASSIGNED | SIZE_2M | top | ASID_5, 0x1F)
    for pfn, gpa in ((0x200, top), (0x201, 0), (0x202, 0x1000 % (1 << bits))):
        assert snp_access(host, pfn, AccessKind.READ, gpa, level=2) == ALLOWED
        assert snp_access(host, pfn, AccessKind.READ, gpa | 0xABC, level=2) == ALLOWED
        assert snp_access(host, pfn, AccessKind.READ, gpa + (1 << bits), level=2).reason == Reason.GPA


# --- the kernel's look-ups by RMPREAD (host §1) ---


@pytest.mark.parametrize(
    ("kernel", "hardware", "reads"),
    [("6.13", "turin", False), ("6.14", "turin", True), ("6.14", "genoa", False), ("7.3", "turin", True)],
)
def test_look_ups(backend: str, kernel: str, hardware: str, reads: bool) -> None:
    """host §1: from 6.14 on, where there is RMPREAD, snp_lookup_rmpentry and the dump's look-up execute it for the
    page and for the 2 MiB-aligned one; its code is the answer."""
    host = Host(backend, SNP, kernel=kernel, hardware=hardware)
    host.assign(0x200, size=1, gpa=GIB)
    host.events()
    for name in ("snp_lookup_rmpentry", "dump_rmpentry"):
        before = host.counters()["rmpread"]
        result = host.do(name, pfn=0x2AA)
        assert (result.ret, result.kind) == (0, Kind.KERNEL)
        if name == "snp_lookup_rmpentry":
            assert (result.level, result.flags) == (2, ResultFlag.ASSIGNED)
        events = host.events()
        seen = [(event.code, event.a) for event in events if event.kind == EventKind.RMPREAD]
        assert seen == ([(0, 0x2AA000), (0, 0x200000)] if reads else [])
        assert host.counters()["rmpread"] - before == len(seen)
        if name == "dump_rmpentry":
            # the line is raw as ever
            assert events[-1] == Event(EventKind.DUMP_ENTRY, a=0x2AA, b=ASSIGNED)
    code = FAIL_INPUT if reads else EFAULT
    assert host.call("snp_lookup_rmpentry", pfn=SNP_COVERED) == code
    host.events()
    host.call("dump_rmpentry", pfn=SNP_COVERED)
    assert host.events()[-1] == Event(EventKind.DUMP_ERROR, code=code, a=SNP_COVERED)


# --- states of a machine ---


@pytest.mark.parametrize(
    "fields",
    [
        {"in_use": ((1 << 40, 0, 0),)},
        {"in_use": ((0x201, 1 << 40, 0),)},
        {"in_use": ((0x201, 0, 1 << 40),)},
        {"in_use": tuple((pfn, 0, 0) for pfn in range(0x100, 0x141))},
        {"contexts": ((1 << 40, 0),)},
        {"contexts": tuple((pfn, 0) for pfn in range(1025))},
        {"records": ((1 << 52, 0, 0, 0, 0),)},
        {"records": tuple((at * 64, 0, 0, 0, 0) for at in range(1025))},
        {"records": ((0x44, 0, 0, 0, 0),)},
        {"records": ((0x40, 1 << 40, 0, 0, 0),)},
        {"records": ((0x40, 0, 1 << 4, 0, 0),)},
        {"records": ((0x40, 0, 0, 0x800, 0),)},
        {"records": ((0x40, 0, 0, 1 << 51, 0),)},
        {"contexts": ((6, 0), (5, 0))},
        {"records": ((0x40, 0, 0, 0, 0), (0x40, 0, 0, 0, 0))},
        {"bookkeeping": ((6, 1), (5, 1))},
        {"bookkeeping": ((5, 1), (5, 1))},
        {"bookkeeping": ((0x400, 1),)},
        {"bookkeeping": ((5, 0),)},
    ],
)
def test_states_that_do_not_fit(backend: str, fields: dict[str, Any]) -> None:
    """A state is refused that has frames at or above 2**40, more rows than a machine keeps, or rows out of order
    (docs/formats.md, "State dump"); and a record that firmware does not write: 64 bytes at their own multiple, four
    bits of info (rmp §4.2), bits 50:12 of a GPA (rmp §1.1)."""
    host = Host(backend, SNP)
    with pytest.raises(MachineError):
        continued(host, changed(host.state(), **fields))


def test_the_most_that_fits(backend: str) -> None:
    """64 VMRUNs, 1024 contexts and records: a state that is full is taken as it is; one more is RESOURCE_LIMIT."""
    host = swap_host(backend)
    full = changed(
        host.state(),
        in_use=tuple((pfn, 0, 0) for pfn in range(0x100, 0x140)),
        contexts=((0x800, 5), *((pfn, 0) for pfn in range(0x2000, 0x2000 + 1023))),
        records=tuple((0x2000_0000 + at * 64, 0x2000, at % 16, 0x7_FFFF_FFFF_F000, 0) for at in range(1024)),
    )
    host = continued(host, full)
    assert host.state() == full
    assert command(host, "SNP_GCTX_CREATE", gctx=0x802000) == 0x17
    assert swap_out(host) == 0x17
    assert host.state() == full


# --- entries from outside ---


def test_an_entry_stored_by_hand_stops_its_neighbours(backend: str) -> None:
    """rmp §3.1: all 512 entries of a region count for a large mapping, also where the aligned one has no count of them
    (a dump's entry, stored alone)."""
    host = Host(backend, SNP)
    neighbour = Result(14, Kind.FAULT, 2, reason=Reason.NEIGHBOUR, value=0x8000_0003, value2=PAGE_OFFSET + 0x40_5000)
    assert host.do("host_write", pfn=0x405) == Result(0, Kind.ALLOWED, 2)
    host.machine.write_rmp(0x433, ASSIGNED | 5 << 51, 0)
    assert host.do("host_write", pfn=0x405) == neighbour
    host.machine.write_rmp(0x433, 0, 0)
    assert host.do("host_write", pfn=0x405) == Result(0, Kind.ALLOWED, 2)
    # written whole by an instruction, the region's count is right again
    host.machine.write_rmp(0x433, ASSIGNED | 5 << 51, 0)
    host.machine.write_rmp(0x400, 2, 0)
    assert host.update(0x400, size=1) == 0
    assert host.do("host_write", pfn=0x405) == Result(0, Kind.ALLOWED, 2)


# rows of an RMP in a state, and whether neighbours in that region can be written to by a large mapping
LOADED = [
    ([(0x400, 1 << 3, 0), (0x433, ASSIGNED, 0)], False),
    ([(0x433, ASSIGNED, 0)], False),
    ([(0x400, 2 << 3, 0)], True),
]


@pytest.mark.parametrize(("rows", "writable"), LOADED)
@pytest.mark.parametrize("counted", [1, 0])
def test_counts_of_a_state(backend: str, rows: list[tuple[int, int, int]], writable: bool, counted: int) -> None:
    """rmp §3.1, §1.2: of a state's RMP the entries say whether a page is assigned, whatever the counts are that come
    with it; and so it is after instructions there, whether they count or not."""
    switches = {"subpage_count": counted}
    first = Host(backend, SNP, switches=switches)
    # a region with a right count beside it
    table = np.array([*rows, (0x800, 1 << 3, 0), (0x801, ASSIGNED, 0)], RMP_DTYPE)
    host = continued(first, changed(first.state(), rmp=table), switches=switches)

    def reason(pfn: int) -> int:
        return host.do("host_write", pfn=pfn).reason

    assert reason(0x405) == (Reason.NONE if writable else Reason.NEIGHBOUR)
    assert host.update(0x400, size=1) == (SUCCESS if writable else FAIL_OVERLAP)
    assert reason(0x805) == Reason.NEIGHBOUR
    assert host.update(0x801) == SUCCESS
    assert reason(0x805) == Reason.NONE
    assert host.update(0x433) == SUCCESS
    assert reason(0x405) == Reason.NONE
    host.assign(0x434)
    assert reason(0x405) == Reason.NEIGHBOUR
    assert host.update(0x400, size=1) == FAIL_OVERLAP


def test_a_part_without_counts_looks_at_all_entries(backend: str) -> None:
    """rmp §3.1, §1.2: a neighbour's entry stops the write also where no instruction counts subpages."""
    host = Host(backend, SNP, switches={"subpage_count": 0})
    host.assign(0x433)
    assert host.rmp(0x400)[0] == 0
    assert host.do("host_write", pfn=0x405).reason == Reason.NEIGHBOUR
    assert host.do("host_write", pfn=0x605) == Result(0, Kind.ALLOWED, 2)


def test_blocks_without_usable_memory_stay(backend: str) -> None:
    """host §1: a block at an end of the RMP is reserved only if some of it is usable memory; soft-reserved is not."""
    map_ = build_map(
        [(0, 64 * MIB), (66 * MIB, 16 * MIB)],
        e820=[
            (0, 64 * MIB, 1),
            (64 * MIB, MIB, 2),
            (65 * MIB, MIB, 0xEFFFFFFF),
            (66 * MIB, 16 * MIB, 1),
        ],
        rmp=(64 * MIB, 65 * MIB - 1),
    )
    host = Host(backend, map_, kernel="6.12")
    assert command(host, "SNP_INIT") == 0
    assert [host.rmp(pfn)[0] for pfn in (0x40FF, 0x4100, 0x41FF, 0x4200)] == [FIRMWARE_PAGE, 0, 0, 0]
