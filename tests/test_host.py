"""host §1: the kernel's SNP layer, each function and each of its returns."""

from __future__ import annotations

import pytest
from machines import (
    ASSIGNED,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOMEM,
    FAIL_INPUT,
    FAIL_INUSE,
    FAIL_OVERLAP,
    FAIL_PERMISSION,
    GIB,
    HOLE,
    IMMUTABLE,
    LARGE_LEAF,
    LOCK,
    MIB,
    NX,
    PAGE_OFFSET,
    PC,
    PSMASH_REFUSED,
    SIZE_2M,
    SMALL,
    SMALL_LEAF,
    SNP,
    SNP_COVERED,
    SNP_HOLE,
    SNP_IMAGE,
    SNP_TIGHT,
    VALIDATED,
    A,
    Host,
    build_map,
    inverted,
    kinds,
    leaves,
)

from rmpcore.maps import MachineMap
from rmpcore.ops import Event, EventKind, Kind, Refusal, ResultFlag

ASID_5 = 5 << 51
SPLIT_EVENTS = [EventKind.TABLE_ALLOC, EventKind.SPLIT, EventKind.FLUSH_ALL]
UPDATE = EventKind.RMPUPDATE
FAILED = EventKind.RMPUPDATE_FAILED

# Frames of SNP and what "valid" makes of them: memory ends at 0x4000, its section at 0x8000, the table at 0xfc00.
VALID_WITHOUT_MEMORY = 0x5000
NOT_VALID = 0x8000


def private(host: Host, pfn: int, **args: int) -> int:
    """rmp_make_private at 4K for ASID 5 unless told otherwise."""
    return host.call("rmp_make_private", **({"pfn": pfn, "gpa": 0x7000, "level": 1, "asid": 5} | args))


# pfn valid


@pytest.mark.parametrize(
    ("map_", "pfn", "valid"),
    [
        (SNP, 0x3FFF, True),
        (SNP, 0x4000, True),
        (SNP, 0x7FFF, True),
        (SNP, 0x8000, False),
        (SNP, 1 << 40, False),
        (SNP, 1 << 52, False),
        (SNP, (1 << 64) - 1, False),
        (HOLE, 0xBFFFF, True),
        (HOLE, 0xC0000, False),
        (HOLE, 0xFFFFF, False),
        (HOLE, 0x100000, True),
        (HOLE, 0x140000, False),
        # a single page makes its whole section valid
        (build_map([(0, 64 * MIB), (256 * MIB, 4096)]), 0x17FFF, True),
        (build_map([(0, 64 * MIB), (256 * MIB, 4096)]), 0x8000, False),
        (build_map([(0, 64 * MIB), (256 * MIB, 4096)]), 0xFFFF, False),
        (build_map([(0, 64 * MIB), (256 * MIB, 4096)]), 0x10000, True),
    ],
)
def test_pfn_valid(backend: str, map_: MachineMap, pfn: int, valid: bool) -> None:
    """host §1: "pfn valid" is by 128 MiB sections that contain memory at boot, not by pages."""
    host = Host(backend, map_)
    assert host.call("adjust_direct_map", pfn=pfn, level=1) == (0 if valid else EINVAL)


# adjust_direct_map


@pytest.mark.parametrize("level", [3, 4, 5, 255])
def test_adjust_level_above_2m(backend: str, level: int) -> None:
    """host §1 adjust_direct_map: level above 2M: -EINVAL."""
    host = Host(backend)
    assert host.call("adjust_direct_map", pfn=0x400, level=level) == EINVAL
    assert host.events() == []


@pytest.mark.parametrize(
    ("pfn", "ret"), [(0x400, 0), (0x401, EINVAL), (0x5FF, EINVAL), (VALID_WITHOUT_MEMORY & ~0x1FF, 0), (0x8000, EINVAL)]
)
def test_adjust_2m_splits_nothing(backend: str, pfn: int, ret: int) -> None:
    """host §1 adjust_direct_map: level 2M: -EINVAL unless aligned (and pfn+511 valid); otherwise done, nothing to
    split."""
    host = Host(backend)
    before = host.state()
    assert host.call("adjust_direct_map", pfn=pfn, level=2) == ret
    assert host.state() == before
    assert host.events() == []


def test_adjust_2m_in_a_1g_page(backend: str) -> None:
    """host §1: hardware judges a 1 GiB mapping in 2 MiB pieces, so it stays."""
    host = Host(backend, HOLE)
    assert host.call("adjust_direct_map", pfn=0x40000, level=2) == 0
    assert host.leaf(0x40000)[0] == 3


@pytest.mark.parametrize("kernel", ["6.9", "6.12", "6.15", "7.3"])
def test_adjust_4k_splits(backend: str, kernel: str) -> None:
    """host §1: level 4K over a large page: set_memory_4k on one page (with its mark and flush from 6.15)."""
    host = Host(backend, kernel=kernel)
    assert host.call("adjust_direct_map", pfn=0x403, level=1) == 0
    mark = 1 << 11 if kernel in ("6.15", "7.3") else 0
    assert host.leaf(0x403) == (1, 0x403000 | SMALL_LEAF | mark)
    assert host.leaf(0x404) == (1, 0x404000 | SMALL_LEAF)
    events = host.events()
    assert kinds(events[:3]) == SPLIT_EVENTS
    assert events[3:] == ([Event(EventKind.FLUSH_PAGES, a=PAGE_OFFSET + 0x403000, b=1)] if mark else [])
    # the neighbour is level 1 by now: done, and left without a mark
    before = host.state()
    assert host.call("adjust_direct_map", pfn=0x404, level=1) == 0
    assert host.state() == before
    assert host.events() == []


def test_adjust_4k_from_1g(backend: str) -> None:
    """host §1: one page of a 1 GiB leaf: two splits."""
    host = Host(backend, HOLE)
    assert host.call("adjust_direct_map", pfn=0x40003, level=1) == 0
    assert kinds(host.events()) == SPLIT_EVENTS * 2
    assert host.counts() == (512, 511, 6)


@pytest.mark.parametrize("pfn", [0x4000, VALID_WITHOUT_MEMORY])
def test_adjust_4k_nothing_there(backend: str, pfn: int) -> None:
    """host §1: nothing there: done."""
    host = Host(backend)
    assert host.call("adjust_direct_map", pfn=pfn, level=1) == 0
    assert host.events() == []


def test_adjust_4k_zero_entry(backend: str) -> None:
    """host §1: a zero level-1 entry: done."""
    host = Host(backend, PC)
    assert host.call("adjust_direct_map", pfn=0x3FE0, level=1) == 0
    assert host.events() == []


def test_adjust_4k_on_a_not_present_page(backend: str) -> None:
    """host §1: level 1, present or not: done; a not-present large page is split."""
    host = Host(backend, kernel="6.13")
    host.call("set_direct_map_invalid_noflush", pfn=0x403)
    host.call("set_direct_map_valid_noflush", pfn=0x600, pages=0x200, valid=0)
    before = host.state()
    assert host.call("adjust_direct_map", pfn=0x403, level=1) == 0
    assert host.state() == before
    assert host.call("adjust_direct_map", pfn=0x603, level=1) == 0
    assert host.leaf(0x603) == (1, inverted(0x603000, NX | A))


def test_adjust_returns_the_error_of_set_memory_4k(backend: str) -> None:
    """host §1: -ENOMEM is passed on."""
    host = Host(backend)
    host.call("fail_alloc")
    assert host.call("adjust_direct_map", pfn=0x403, level=1) == ENOMEM
    assert host.leaf(0x403) == (2, 0x400000 | LARGE_LEAF)


# rmpupdate and the three functions on top of it


def test_private_4k(backend: str) -> None:
    """host §1: split, then the instruction with assigned 1, asid, gpa, size 4K."""
    host = Host(backend, SNP, kernel="6.12")
    assert private(host, 0x403) == 0
    assert host.rmp(0x403) == (ASSIGNED | 0x7000 | ASID_5, 0x0F)
    events = host.events()
    assert kinds(events) == [*SPLIT_EVENTS, UPDATE]
    assert events[-1] == Event(UPDATE, code=0, a=0x403000, b=0x7000, c=1 | 5 << 32)
    assert host.leaf(0x403)[0] == 1


def test_private_input_as_recorded(backend: str) -> None:
    """host §1: the input of a real kernel's call: pfn 1793616, gpa 7346651136, level 4K, asid 9, immutable 1
    gave 0000e5b5010000000100010009000000."""
    host = Host(backend, SNP_HOLE)
    assert private(host, 0x403, gpa=7346651136, asid=9, immutable=1) == 0
    event = host.events()[-1]
    raw = event.b.to_bytes(8, "little") + event.c.to_bytes(8, "little")
    assert raw.hex() == "0000e5b5010000000100010009000000"


def test_private_2m(backend: str) -> None:
    """host §1: level 2M: no split, size 2M."""
    host = Host(backend, SNP)
    assert private(host, 0x400, level=2, gpa=0x4000_0000) == 0
    assert host.events() == [Event(UPDATE, code=0, a=0x400000, b=0x4000_0000, c=1 | 1 << 8 | 5 << 32)]
    assert host.rmp(0x400)[0] == ASSIGNED | SIZE_2M | 0x4000_0000 | ASID_5
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_everything_but_4k_is_2m(backend: str, level: int) -> None:
    """host §1: "page size from level (4K → 0, everything else → 1)": 1G acts as 2M."""
    host = Host(backend, SNP)
    assert private(host, 0x400, level=level) == 0
    assert host.rmp(0x400)[0] & SIZE_2M
    assert host.call("rmp_make_shared", pfn=0x400, level=level) == 0
    assert host.call("rmp_make_firmware", pfn=0x600, level=level) == 0
    assert host.rmp(0x600)[0] & SIZE_2M
    assert [event.c & 1 << 8 for event in host.events()] == [1 << 8] * 3


def test_firmware(backend: str) -> None:
    """host §1 rmp_make_firmware: gpa 0, asid 0, immutable 1."""
    host = Host(backend, SNP, kernel="6.12")
    assert host.call("rmp_make_firmware", pfn=0x403, level=1) == 0
    assert host.events()[-1] == Event(UPDATE, code=0, a=0x403000, b=0, c=1 | 1 << 16)
    assert host.rmp(0x403) == (LOCK | ASSIGNED | IMMUTABLE, 0x0F)


@pytest.mark.parametrize("level", [1, 2])
def test_shared(backend: str, level: int) -> None:
    """host §1 rmp_make_shared: input all zero but the size."""
    host = Host(backend, SNP, kernel="6.12")
    private(host, 0x400, level=level)
    host.events()
    assert host.call("rmp_make_shared", pfn=0x400, level=level) == 0
    assert host.events() == [Event(UPDATE, code=0, a=0x400000, b=0, c=0 if level == 1 else 1 << 8)]
    assert host.state().rmp.tolist() == [(0x400, 0, 0x0F)]


def test_shared_splits_too(backend: str) -> None:
    """host §1, workloads 0.1: the check is made on returns to shared as well."""
    host = Host(backend, SNP)
    assert host.call("rmp_make_shared", pfn=0x403, level=1) == 0
    assert kinds(host.events()) == [*SPLIT_EVENTS, UPDATE]
    assert host.leaf(0x403)[0] == 1


def test_large_pages_do_not_come_back(backend: str) -> None:
    """workloads 0.1: nothing restores large leaves."""
    host = Host(backend, SNP)
    private(host, 0x403)
    host.call("rmp_make_shared", pfn=0x403, level=1)
    assert host.leaf(0x403)[0] == 1
    assert host.counts() == (512, 32, 0)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("assigned", [0, 1])
def test_rmpupdate_itself(backend: str, size: int, assigned: int) -> None:
    """host §1 rmpupdate(): the input goes to the instruction as it is; the level for the direct map comes from the
    size."""
    host = Host(backend, SNP, kernel="6.12")
    args = {"gpa": 0x6000, "assigned": assigned, "size": size, "asid": 5 * assigned, "immutable": assigned}
    assert host.call("rmpupdate", pfn=0x400, **args) == 0
    expected = Event(UPDATE, a=0x400000, b=0x6000, c=assigned | size << 8 | assigned << 16 | (5 * assigned) << 32)
    assert host.events()[-1] == expected
    assert host.leaf(0x400)[0] == (2 if size else 1)


def test_rmpupdate_bad_input_is_judged_by_hardware(backend: str) -> None:
    """host §1: unassigned with an ASID reaches the instruction, which says FAIL_INPUT: complaint, -EFAULT."""
    host = Host(backend, SNP, kernel="6.12")
    assert host.call("rmpupdate", pfn=0x403, gpa=0, assigned=0, size=0, asid=5) == EFAULT
    assert kinds(host.events()) == [*SPLIT_EVENTS, UPDATE, FAILED, EventKind.DUMP_REGION]


HOST_UPDATES = [
    ("rmpupdate", {"gpa": 0, "assigned": 1, "size": 0, "asid": 5}),
    ("rmp_make_private", {"gpa": 0, "level": 1, "asid": 5}),
    ("rmp_make_firmware", {"level": 1}),
    ("rmp_make_shared", {"level": 1}),
]


@pytest.mark.parametrize(("name", "args"), HOST_UPDATES)
def test_enodev_before_anything(backend: str, name: str, args: dict[str, int]) -> None:
    """host §1 rmpupdate: -ENODEV without SNP, before the direct map is touched and before the frame is checked."""
    host = Host(backend, SMALL)
    before = host.state()
    for pfn in (0x403, NOT_VALID, 1 << 52):
        assert host.call(name, pfn=pfn, **args) == ENODEV
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize(("name", "args"), HOST_UPDATES)
@pytest.mark.parametrize("pfn", [NOT_VALID, 1 << 40, 1 << 52, (1 << 64) - 1])
def test_invalid_frame(backend: str, name: str, args: dict[str, int], pfn: int) -> None:
    """host §1 rmpupdate: adjust_direct_map fails: -EFAULT, instruction not executed, no complaint."""
    host = Host(backend, SNP)
    before = host.state()
    assert host.call(name, pfn=pfn, **args) == EFAULT
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("pfn", [0x401, 0x5FF])
def test_misaligned_2m(backend: str, pfn: int) -> None:
    """host §1: as recorded from 7.3: level 2M at an odd frame: -EFAULT without any instruction."""
    host = Host(backend, SNP)
    assert private(host, pfn, level=2) == EFAULT
    assert host.call("rmp_make_shared", pfn=pfn, level=2) == EFAULT
    assert host.events() == []


def test_no_memory_for_the_split(backend: str) -> None:
    """host §1: -ENOMEM of the split becomes -EFAULT; the instruction is not executed."""
    host = Host(backend, SNP, kernel="6.12")
    host.call("fail_alloc")
    assert private(host, 0x403) == EFAULT
    assert host.events() == [Event(EventKind.ALLOC_FAIL, level=1)]
    assert host.counters()["rmpupdate"] == 0
    assert len(host.state().rmp) == 0


def test_update_where_no_memory_is(backend: str) -> None:
    """host §1: a valid frame without memory: the direct map has nothing there; the instruction is executed."""
    host = Host(backend, SNP)
    assert private(host, VALID_WITHOUT_MEMORY) == 0
    assert kinds(host.events()) == [UPDATE]


def test_update_of_an_uncovered_page(backend: str) -> None:
    """host §1: FAIL_INPUT from the instruction: the kernel complains; its dump cannot read the entry either."""
    host = Host(backend, SNP_TIGHT, kernel="6.12")
    assert private(host, 0x3F80) == EFAULT
    events = host.events()
    assert kinds(events) == [*SPLIT_EVENTS, UPDATE, FAILED, EventKind.DUMP_ERROR]
    assert events[-2] == Event(FAILED, level=1, code=FAIL_INPUT, a=0x3F80)
    assert events[-1] == Event(EventKind.DUMP_ERROR, code=EFAULT, a=0x3F80)
    # the split stays
    assert host.leaf(0x3F80)[0] == 1


def test_complaint_on_an_assigned_page(backend: str) -> None:
    """host §1 rmpupdate: another non-zero code: print, dump the entry, -EFAULT."""
    host = Host(backend, SNP)
    host.call("rmp_make_firmware", pfn=0x403, level=1)
    host.events()
    assert host.call("rmp_make_shared", pfn=0x403, level=1) == EFAULT
    assert host.events() == [
        Event(UPDATE, code=FAIL_PERMISSION, a=0x403000),
        Event(FAILED, level=1, code=FAIL_PERMISSION, a=0x403),
        Event(EventKind.DUMP_ENTRY, a=0x403, b=LOCK | ASSIGNED | IMMUTABLE, c=0x0F),
    ]
    assert host.counters()["rmpupdate_retries"] == 0


def test_complaint_at_2m(backend: str) -> None:
    """host §1: the complaint names the level that rmpupdate() was called with."""
    host = Host(backend, SNP)
    host.call("rmp_make_firmware", pfn=0x400, level=2)
    host.events()
    assert host.call("rmp_make_shared", pfn=0x400, level=3) == EFAULT
    assert host.events()[1] == Event(FAILED, level=2, code=FAIL_PERMISSION, a=0x400)


@pytest.mark.parametrize("code", [FAIL_INPUT, FAIL_PERMISSION, FAIL_INUSE, 7, 255])
def test_injected_failure(backend: str, code: int) -> None:
    """workloads 0.2: any other non-zero answer gives one error for all causes; an unassigned page's region is
    dumped."""
    host = Host(backend, SNP, kernel="6.12")
    private(host, 0x410)
    host.call("inject", code=code)
    host.events()
    assert private(host, 0x403) == EFAULT
    assert host.events() == [
        Event(UPDATE, code=code, a=0x403000, b=0x7000, c=1 | 5 << 32),
        Event(FAILED, level=1, code=code, a=0x403),
        Event(EventKind.DUMP_REGION, a=0x403, b=0x400, c=0x600),
        Event(EventKind.DUMP_ENTRY, a=0x400, b=1 << 3, c=0),
        Event(EventKind.DUMP_ENTRY, a=0x410, b=ASSIGNED | 0x7000 | ASID_5, c=0x0F),
    ]
    assert host.rmp(0x403) == (0, 0)


# FAIL_OVERLAP: the storm and the hang


@pytest.mark.parametrize("count", [1, 3, 300])
def test_storm(backend: str, count: int) -> None:
    """host §1 rmpupdate: repeat while the code is 4; the direct map is adjusted once."""
    host = Host(backend, SNP, kernel="6.12")
    host.call("inject", code=4, count=count)
    assert private(host, 0x403) == 0
    events = host.events()
    assert kinds(events) == SPLIT_EVENTS + [UPDATE] * (count + 1)
    assert [event.code for event in events[3:]] == [4] * count + [0]
    assert len({event[4:] for event in events[3:]}) == 1
    counters = host.counters()
    assert (counters["rmpupdate"], counters["rmpupdate_retries"]) == (count + 1, count)
    assert host.state().inject == ()
    assert host.rmp(0x403)[0] & ASSIGNED


def test_storm_with_pauses(backend: str) -> None:
    """A 0 in the queue is a normal execution: it ends the first call's storm, and what follows waits for the next
    call."""
    host = Host(backend, SNP)
    for code, count in ((4, 2), (0, 1), (4, 1)):
        host.call("inject", code=code, count=count)
    assert private(host, 0x403) == 0
    assert host.state().inject == ((4, 1),)
    assert private(host, 0x404) == 0
    counters = host.counters()
    assert (counters["rmpupdate"], counters["rmpupdate_retries"]) == (3 + 2, 2 + 1)


def test_storm_then_failure(backend: str) -> None:
    """host §1: after the storm another code ends the loop as ever."""
    host = Host(backend, SNP)
    host.call("inject", code=4, count=2)
    host.call("inject", code=3, count=1)
    assert private(host, 0x403) == EFAULT
    assert host.counters()["rmpupdate_retries"] == 2
    assert [event.code for event in host.events() if event.kind == FAILED] == [3]


@pytest.mark.parametrize("pfn", [0x400, 0x403])
def test_hang(backend: str, pfn: int) -> None:
    """rmp §2.2 "Linux loops for ever on code 4": a real overlap never ends: one execution, no complaint, no dump; the
    split that adjust_direct_map made stays."""
    host = Host(backend, SNP, kernel="6.12")
    private(host, 0x400, level=2)
    host.events()
    result = host.do("rmp_make_shared", pfn=pfn, level=1)
    assert (result.kind, result.ret) == (Kind.HANG, FAIL_OVERLAP)
    assert kinds(host.events()) == [*SPLIT_EVENTS, UPDATE]
    counters = host.counters()
    assert (counters["rmpupdate"], counters["rmpupdate_retries"]) == (2, 0)
    assert host.leaf(pfn)[0] == 1
    assert host.rmp(0x400)[0] & SIZE_2M


def test_hang_of_2m_over_4k(backend: str) -> None:
    """rmp §2.2 row 9 reached through the host layer."""
    host = Host(backend, SNP)
    private(host, 0x403)
    result = host.do("rmp_make_private", pfn=0x400, gpa=0, level=2, asid=5)
    assert (result.kind, result.ret) == (Kind.HANG, FAIL_OVERLAP)


def test_storm_before_a_hang(backend: str) -> None:
    """An injected 4 is repeated and counted; the real one after it is not."""
    host = Host(backend, SNP)
    private(host, 0x403)
    host.call("inject", code=4, count=5)
    result = host.do("rmp_make_private", pfn=0x400, gpa=0, level=2, asid=5)
    assert (result.kind, result.ret) == (Kind.HANG, FAIL_OVERLAP)
    counters = host.counters()
    assert (counters["rmpupdate"], counters["rmpupdate_retries"]) == (1 + 6, 5)


def test_inner_page_with_another_code_fails_instead(backend: str) -> None:
    """rmp §5: where hardware answers 8b with another code the kernel does not hang but complains."""
    host = Host(backend, SNP, switches={"overlap_inner": 3})
    private(host, 0x400, level=2)
    host.events()
    assert private(host, 0x403) == EFAULT
    assert kinds(host.events())[-3:] == [UPDATE, FAILED, EventKind.DUMP_ENTRY]


# psmash


def test_psmash(backend: str) -> None:
    """host §1 psmash: the instruction's code, positive; the direct map is not touched."""
    host = Host(backend, SNP)
    assert host.call("psmash", pfn=0x400) == PSMASH_REFUSED
    private(host, 0x400, level=2)
    host.events()
    assert host.call("psmash", pfn=0x400) == 0
    assert host.call("psmash", pfn=0x401) == FAIL_INPUT
    assert host.events() == [
        Event(EventKind.PSMASH, code=0, a=0x400000),
        Event(EventKind.PSMASH, code=FAIL_INPUT, a=0x401000),
    ]
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF)
    assert host.counters()["psmash"] == 3


def test_psmash_errors(backend: str) -> None:
    """host §1 psmash: -ENODEV without SNP, first; -EINVAL for an invalid frame; no instruction either way."""
    assert Host(backend, SMALL).call("psmash", pfn=0x400) == ENODEV
    assert Host(backend, SMALL).call("psmash", pfn=NOT_VALID) == ENODEV
    host = Host(backend, SNP)
    for pfn in (NOT_VALID, 1 << 40, 1 << 52, (1 << 64) - 1):
        assert host.call("psmash", pfn=pfn) == EINVAL
    assert host.events() == []


def test_psmash_does_not_retry(backend: str) -> None:
    """host §1: FAIL_INUSE goes to the caller."""
    host = Host(backend, SNP)
    private(host, 0x400, level=2)
    host.call("inject", code=FAIL_INUSE, count=2)
    assert [host.call("psmash", pfn=0x400) for _ in range(3)] == [FAIL_INUSE, FAIL_INUSE, 0]


# snp_lookup_rmpentry


def lookup(host: Host, pfn: int) -> tuple[int, bool, int]:
    result = host.do("snp_lookup_rmpentry", pfn=pfn)
    assert result.kind == Kind.KERNEL
    return result.ret, bool(result.flags & ResultFlag.ASSIGNED), result.level


def test_lookup(backend: str) -> None:
    """host §1: assigned from the page's own entry, level from the 2 MiB-aligned one."""
    host = Host(backend, SNP)
    assert lookup(host, 0x403) == (0, False, 1)
    private(host, 0x403)
    assert lookup(host, 0x403) == (0, True, 1)
    assert lookup(host, 0x400) == (0, False, 1)
    private(host, 0x600, level=2)
    assert lookup(host, 0x600) == lookup(host, 0x601) == lookup(host, 0x7FF) == (0, True, 2)
    host.call("psmash", pfn=0x600)
    assert lookup(host, 0x600) == lookup(host, 0x601) == (0, True, 1)
    host.call("rmp_make_shared", pfn=0x601, level=1)
    assert lookup(host, 0x601) == (0, False, 1)


def test_lookup_mixed_by_hand(backend: str) -> None:
    """host §1: an unassigned page under a 2M head shows level 2M; the page's own size does not matter."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x400, ASSIGNED | SIZE_2M, 0)
    host.machine.write_rmp(0x601, ASSIGNED | SIZE_2M, 0)
    assert lookup(host, 0x403) == (0, False, 2)
    assert lookup(host, 0x601) == (0, True, 1)


def test_lookup_errors(backend: str) -> None:
    """host §1: -ENODEV without SNP or table, -EFAULT outside the table; level and assigned are 0 then."""
    assert lookup(Host(backend, SMALL), 0x403) == (ENODEV, False, 0)
    host = Host(backend, SNP)
    assert lookup(host, SNP_COVERED - 1) == (0, False, 1)
    for pfn in (SNP_COVERED, 1 << 40, 1 << 52, (1 << 64) - 1):
        assert lookup(host, pfn) == (EFAULT, False, 0)
    assert host.events() == []


# dump_rmpentry


def test_dump_assigned(backend: str) -> None:
    """host §1 dump_rmpentry: assigned: one line with both quadwords."""
    host = Host(backend, SNP)
    private(host, 0x403)
    host.events()
    assert host.call("dump_rmpentry", pfn=0x403) == 0
    assert host.events() == [Event(EventKind.DUMP_ENTRY, a=0x403, b=ASSIGNED | 0x7000 | ASID_5, c=0x0F)]


def test_dump_region(backend: str) -> None:
    """host §1: not assigned: a header line, then each non-zero entry of the 2 MiB region (either quadword)."""
    host = Host(backend, SNP)
    host.machine.write_rmp(0x3FF, ASSIGNED, 0)
    host.machine.write_rmp(0x400, 0, 1)
    host.machine.write_rmp(0x402, VALIDATED, 0)
    host.machine.write_rmp(0x5FF, ASSIGNED, 0x0F)
    host.machine.write_rmp(0x600, ASSIGNED, 0)
    assert host.call("dump_rmpentry", pfn=0x402) == 0
    assert host.events() == [
        Event(EventKind.DUMP_REGION, a=0x402, b=0x400, c=0x600),
        Event(EventKind.DUMP_ENTRY, a=0x400, b=0, c=1),
        Event(EventKind.DUMP_ENTRY, a=0x402, b=VALIDATED, c=0),
        Event(EventKind.DUMP_ENTRY, a=0x5FF, b=ASSIGNED, c=0x0F),
    ]


def test_dump_of_an_empty_region(backend: str) -> None:
    """host §1: the header alone."""
    host = Host(backend, SNP)
    assert host.call("dump_rmpentry", pfn=0x5FF) == 0
    assert host.events() == [Event(EventKind.DUMP_REGION, a=0x5FF, b=0x400, c=0x600)]


def test_dump_at_the_end_of_the_table(backend: str) -> None:
    """host §1: of a region that is covered in part, the covered entries."""
    host = Host(backend, SNP_TIGHT)
    host.machine.write_rmp(0x3E01, VALIDATED, 0)
    host.machine.write_rmp(0x3EFF, VALIDATED, 0)
    assert host.call("dump_rmpentry", pfn=0x3E80) == 0
    assert host.events() == [
        Event(EventKind.DUMP_REGION, a=0x3E80, b=0x3E00, c=0x4000),
        Event(EventKind.DUMP_ENTRY, a=0x3E01, b=VALIDATED),
        Event(EventKind.DUMP_ENTRY, a=0x3EFF, b=VALIDATED),
    ]


def test_dump_error(backend: str) -> None:
    """host §1: a failed lookup: one line with the error; the function itself returns nothing."""
    host = Host(backend, SMALL)
    assert host.call("dump_rmpentry", pfn=0x403) == 0
    assert host.events() == [Event(EventKind.DUMP_ERROR, code=ENODEV, a=0x403)]
    host = Host(backend, SNP)
    for pfn in (SNP_COVERED, 1 << 52, (1 << 64) - 1):
        assert host.call("dump_rmpentry", pfn=pfn) == 0
        assert host.events() == [Event(EventKind.DUMP_ERROR, code=EFAULT, a=pfn)]


def test_dump_of_another_frames_entry(backend: str) -> None:
    """host §1: the address of this frame is, modulo 2^64, another one's, of which RMPREAD says "assigned"; the line is
    of the raw entry, and there is none."""
    host = Host(backend, SNP, kernel="6.14", hardware="turin")
    host.assign(0x403)
    pfn = (1 << 52) + 0x403
    host.events()
    assert host.call("dump_rmpentry", pfn=pfn) == 0
    events = [event for event in host.events() if event.kind != EventKind.RMPREAD]
    assert events == [Event(EventKind.DUMP_ERROR, code=EFAULT, a=pfn)]


# snp_leak_pages


def test_leak(backend: str) -> None:
    """host §1 snp_leak_pages: a counter, and each entry dumped."""
    host = Host(backend, SNP)
    private(host, 0x403)
    host.events()
    assert host.call("snp_leak_pages", pfn=0x402, pages=2) == 0
    head = Event(EventKind.DUMP_ENTRY, a=0x400, b=1 << 3)
    page = Event(EventKind.DUMP_ENTRY, a=0x403, b=ASSIGNED | 0x7000 | ASID_5, c=0x0F)
    assert host.events() == [
        Event(EventKind.LEAK, a=0x402, b=2),
        Event(EventKind.DUMP_REGION, a=0x402, b=0x400, c=0x600),
        head,
        page,
        page,
    ]
    assert host.counters()["leaked_pages"] == 2
    host.call("snp_leak_pages", pfn=0x403, pages=1)
    assert host.counters()["leaked_pages"] == 3


@pytest.mark.parametrize(
    ("pfn", "pages"),
    [
        (NOT_VALID, 1),
        (NOT_VALID - 1, 2),
        (0, (1 << 20) + 1),
        (0, (1 << 64) - 1),
        ((1 << 64) - 1, 2),
        (1 << 52, 1),
    ],
)
def test_leak_of_what_is_no_memory(backend: str, pfn: int, pages: int) -> None:
    """Every frame must be valid and there may be at most 2**20: refused otherwise, and nothing counted."""
    host = Host(backend, SNP)
    before = host.state()
    result = host.do("snp_leak_pages", pfn=pfn, pages=pages)
    assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_ARGUMENT)
    assert host.state() == before
    assert host.events() == []


def test_leak_up_to_the_last_valid_frame(backend: str) -> None:
    """The last frame of the last section is valid."""
    host = Host(backend, SNP)
    assert host.call("snp_leak_pages", pfn=NOT_VALID - 2, pages=2) == 0
    assert host.counters()["leaked_pages"] == 2


def test_leak_without_snp(backend: str) -> None:
    """host §1: the dump of each page says that there is no table."""
    host = Host(backend, SMALL)
    assert host.call("snp_leak_pages", pfn=0x403, pages=1) == 0
    assert host.events() == [
        Event(EventKind.LEAK, a=0x403, b=1),
        Event(EventKind.DUMP_ERROR, code=ENODEV, a=0x403),
    ]


# together


def test_giga_page_host(backend: str) -> None:
    """workloads 0.1: at most one 1G split per GiB and one 2M split per 2 MiB, not per operation."""
    host = Host(backend, SNP_HOLE, kernel="6.12")
    for pfn in range(0x40000, 0x40400, 16):
        assert private(host, pfn, gpa=pfn << 12) == 0
    counters = host.counters()
    assert (counters["level3_splits"], counters["level2_splits"]) == (1, 2)
    assert counters["rmpupdate"] == 64
    assert host.counts() == (1024, 510, 6)


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_page_of_the_kernel_image(backend: str, kernel: str) -> None:
    """direct-map §6 through the host layer: a page of the image splits the high mapping too."""
    host = Host(backend, SNP_IMAGE, kernel=kernel)
    assert private(host, 0x1203) == 0
    mark = 1 << 11 if kernel == "7.3" else 0
    assert leaves(host.state(), 1)[1, 0x1203000] == 0x1203000 | 0x163 | mark
    final = [EventKind.FLUSH_ALL] if mark else []
    assert kinds(host.events()) == [*SPLIT_EVENTS, *SPLIT_EVENTS, *final, UPDATE]


def test_firmware_region_of_512_pages(backend: str) -> None:
    """workloads A.2.3: 512 x A4(0, 0, 1): one split; the head's entry counts 511."""
    host = Host(backend, SNP_HOLE, kernel="6.12")
    for pfn in range(0x40200, 0x40400):
        assert host.call("rmp_make_firmware", pfn=pfn, level=1) == 0
    assert host.rmp(0x40200) == (LOCK | ASSIGNED | IMMUTABLE | 511 << 3, 0x0F)
    assert host.rmp(0x403FF) == (LOCK | ASSIGNED | IMMUTABLE, 0x0F)
    assert host.counts() == (512, 511, 6)
    assert host.leaf(0x40400) == (2, 0x40400000 | LARGE_LEAF)
    assert host.leaf(0x80000) == (3, 2 * GIB | LARGE_LEAF)
