"""host §6: what each policy does at boot, at an RMP update and at the host's own accesses, and what is counted.

What split-restore gives back is in test_split_restore.py.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

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
    HIGH_MAPPING,
    IMMUTABLE,
    LARGE_LEAF,
    MIB,
    NX,
    PAGE_OFFSET,
    PSMASH_REFUSED,
    SIZE_2M,
    SMALL,
    SMALL_LEAF,
    SMALL_PTI,
    SNP,
    SNP_CBIT,
    SNP_HOLE,
    SNP_IMAGE,
    SNP_TIGHT,
    SOFTW3,
    A,
    Host,
    build_map,
    continued,
    inverted,
    kinds,
    leaves,
    with_leaves,
)

from rmpcore import cli
from rmpcore.machine import BACKENDS, POLICIES, Machine, MachineError, MachineLike
from rmpcore.maps import PAGE_OFFSETS, MachineMap, SegmentedRmp
from rmpcore.ops import (
    Event,
    EventKind,
    Kind,
    Op,
    OpCode,
    Reason,
    Refusal,
    Result,
    make_op,
    pack_ops,
    unpack_results,
)
from rmpcore.state import COUNTERS, State, diff_states

UPDATE = EventKind.RMPUPDATE
FAILED = EventKind.RMPUPDATE_FAILED
FLUSH_ALL = Event(EventKind.FLUSH_ALL)
ALLOC_FAIL = Event(EventKind.ALLOC_FAIL, level=1)
SPLIT_EVENTS = [EventKind.TABLE_ALLOC, EventKind.SPLIT, EventKind.FLUSH_ALL]
COMPLAINTS = {FAILED, EventKind.DUMP_ENTRY, EventKind.DUMP_REGION, EventKind.DUMP_ERROR}
RMP_WRITE = 0x8000_0003
INVALID = NX | A
"""What set_direct_map_invalid_noflush leaves of a page as booted (direct-map §7): without P, RW, D and so without G."""
DEFAULT = NX | 0x023
"""What set_direct_map_default_noflush makes of that: D and G do not come back."""
NOT_PRESENT = NX | 0x062
"""What set_memory_np leaves of a page as booted, small or large: without P, and so without G (and PSE)."""
PRESENT = NX | 0x063

KEEPS_LEAVES = ("none", "kmap", "fault-split", "map-4k")
COMPLAINS = (*KEEPS_LEAVES, "upstream", "split-restore")
"""Policies that repeat FAIL_OVERLAP, and turn every other code into a complaint and -EFAULT."""
UNMAPS = ("unmap", "unmap-flush")
RETURNS_CODES = ("rfc-v4", *UNMAPS)

VALID_WITHOUT_MEMORY = 0x5000
NOT_VALID = 0x8000
ROOM = 1 << 34
"""Frames that the direct map has room for with four levels (64 TiB)."""

ENDS_INSIDE = build_map(
    [(0, 64 * MIB - 0x20000)], e820=[(0, 64 * MIB - 0x20000, 1), (64 * MIB, MIB, 2)], rmp=(64 * MIB, 65 * MIB - 1)
)
"""Memory ends at frame 0x3fe0, in the middle of a 2 MiB page, which is therefore mapped by small ones."""
SNP_END_OF_ROOM = build_map(
    [(0, 64 * MIB), ((ROOM << 12) - 4 * MIB, 4 * MIB)], rmp=(1 << 45, (1 << 45) + (1 << 38) + 0x3FFF), rmp_probed=False
)
"""Memory up to the last frame that the direct map has room for; the RMP covers them all."""
SNP_LA57 = dataclasses.replace(SNP, levels=5, page_offset=PAGE_OFFSETS[5])
RESERVED_SEGMENT = build_map(
    [(0, 64 * MIB), (GIB, 64 * MIB)],
    e820=[(0, 64 * MIB, 1), (64 * MIB, 16 * MIB, 2), (GIB, 64 * MIB, 1)],
    segmented=SegmentedRmp(64 * MIB, 1 | 30 << 8, (65 * MIB | 1, 69 * MIB | 1 | 1 << 52)),
    rmp_probed=False,
)
"""The entry of the second segment (frames from 0x40000) has reserved bits, so instructions on it fault."""
SEGMENTED_PART: dict[str, Any] = {"kernel": "6.14", "hardware": "turin", "switches": {"segment_min": 30}}


def va(pfn: int) -> int:
    return PAGE_OFFSET + (pfn << 12)


def private(host: Host, pfn: int, **args: int) -> int:
    """rmp_make_private at 4K for ASID 5 unless told otherwise."""
    return host.call("rmp_make_private", **({"pfn": pfn, "gpa": 0x7000, "level": 1, "asid": 5} | args))


def shared(host: Host, pfn: int, level: int = 1) -> int:
    return host.call("rmp_make_shared", pfn=pfn, level=level)


def hangs(host: Host, name: str, **args: int) -> int:
    """A call that has to hang; the code that it gets for ever."""
    result = host.do(name, **args)
    assert result.kind == Kind.HANG, result
    return result.ret


def fault(reason: Reason, level: int, address: int, value: int = RMP_WRITE) -> Result:
    return Result(14, Kind.FAULT, level, reason=reason, value=value, value2=address)


def fault_event(pfn: int, reason: Reason, value: int = RMP_WRITE) -> Event:
    return Event(EventKind.FAULT, level=Kind.FAULT, code=14, a=pfn << 12, b=value, c=reason)


ALLOWED_4K = Result(0, Kind.ALLOWED, 1)
ALLOWED_2M = Result(0, Kind.ALLOWED, 2)
ACCESSES = ("host_read", "host_write", "kvm_read_guest", "kvm_write_guest")
WRITES = ("host_write", "kvm_write_guest")
ACCESS_CODES = {OpCode[name] for name in ACCESSES}
TALLY = (
    "host_accesses",
    "host_faults_owner",
    "host_faults_neighbour",
    "fault_repairs",
    "forced_shared",
    "kmap_windows",
)


def tally(host: Host) -> tuple[int, ...]:
    """The counters of host §6.5, in its order."""
    counters = host.counters()
    return tuple(counters[name] for name in TALLY)


# 6: which policies there are


def test_policies() -> None:
    """host §3: nine policies; §6: upstream unless told otherwise."""
    assert set(POLICIES) == {*KEEPS_LEAVES, *RETURNS_CODES, "upstream", "split-restore"}
    for backend in BACKENDS:
        assert Machine(SNP, backend=backend).policy == "upstream"


@pytest.mark.parametrize("policy", POLICIES)
def test_machine_knows_its_policy(backend: str, policy: str) -> None:
    """host §6: a machine has one policy, given when it is built."""
    assert Machine(SNP, backend=backend, policy=policy).policy == policy


@pytest.mark.parametrize("policy", ["nonsense", "", "Upstream", "unmap_flush", "upstream\n"])
def test_unknown_policy(backend: str, policy: str) -> None:
    """host §6: any other name is an error, in one line."""
    with pytest.raises(MachineError) as caught:
        Machine(SNP, backend=backend, policy=policy)
    assert "\n" not in str(caught.value)
    assert repr(policy) in str(caught.value)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("RMPUPDATE", {"pa": 0x403000, "gpa": 0, "assigned": 1, "size": 0, "asid": 5}),
        ("adjust_direct_map", {"pfn": 0x403, "level": 1}),
        ("psmash", {"pfn": 0x600}),
        ("SNP_INIT", {}),
        ("set_memory_np", {"pfn": 0x403, "pages": 1}),
    ],
)
def test_instructions_commands_and_adjust_are_the_same(
    backend: str, policy: str, name: str, args: dict[str, int]
) -> None:
    """host §6: the instructions themselves, the firmware's commands and adjust_direct_map() as an op."""
    start = Host(backend, SNP)
    start.assign(0x600, size=1)
    upstream = continued(start, start.state())
    host = continued(start, start.state(), policy=policy)
    assert host.do(name, **args) == upstream.do(name, **args)
    assert host.events() == upstream.events()
    assert host.state() == upstream.state()


# 6.1: boot


@pytest.mark.parametrize("map_", [SNP, SMALL, ENDS_INSIDE, SMALL_PTI, SNP_CBIT, SNP_IMAGE, SNP_LA57])
def test_map_4k_boots_small_pages(backend: str, map_: MachineMap) -> None:
    """host §6.1: as if the machine's largest page were 4K (direct-map §2.3)."""
    host = Host(backend, map_, policy="map-4k")
    state = host.state()
    assert {level for level, _ in leaves(state)} == {1}
    assert state == Machine(dataclasses.replace(map_, large_pages="4K"), backend=backend).state()
    assert host.machine.map == map_


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "map-4k"])
def test_the_others_boot_as_ever(backend: str, policy: str) -> None:
    """host §6.1: only map-4k boots otherwise."""
    for map_ in (SNP, SNP_HOLE):
        assert Machine(map_, backend=backend, policy=policy).state() == Machine(map_, backend=backend).state()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_goes_on_as_it_is(backend: str, policy: str) -> None:
    """host §6.1: a machine that continues from a state has the state's leaves, whatever the policy."""
    first = Host(backend, SNP)
    assert private(first, 0x403) == 0
    host = continued(first, first.state(), policy=policy)
    assert host.machine.policy == policy
    assert host.state() == first.state()
    assert host.leaf(0x600) == (2, 0x600000 | LARGE_LEAF)


def test_map_4k_on_large_leaves_does_not_split(backend: str) -> None:
    """host §6.1, §6.2: a continued map-4k machine keeps large leaves, and its rmpupdate() splits nothing."""
    host = continued(Host(backend, SNP), Host(backend, SNP).state(), policy="map-4k")
    assert private(host, 0x403) == 0
    assert kinds(host.events()) == [UPDATE]
    assert host.leaf(0x403) == (2, 0x400000 | LARGE_LEAF)


@pytest.mark.parametrize(("policy", "level"), [("upstream", 3), ("map-4k", 2)])
def test_map_4k_has_no_1g_pages(backend: str, policy: str, level: int) -> None:
    """host §6.1: under map-4k 1 GiB pages are not in use: a collapse after set_memory_rox (direct-map §8) ends at
    2 MiB, whatever the state that the machine continues from."""
    first = Host(backend, SNP_HOLE, kernel="6.15")
    assert first.call("set_memory_ro", pfn=0x40010, pages=1) == 0
    host = continued(first, first.state(), policy=policy)
    assert host.call("set_memory_rox", pfn=0x40000, pages=0x40000) == 0
    assert host.leaf(0x40010)[0] == level


# 6.2: what comes before everything


HOST_UPDATES = [
    ("rmpupdate", {"gpa": 0, "assigned": 1, "size": 0, "asid": 5}),
    ("rmp_make_private", {"gpa": 0, "level": 1, "asid": 5}),
    ("rmp_make_private", {"gpa": 0, "level": 2, "asid": 5}),
    ("rmp_make_firmware", {"level": 1}),
    ("rmp_make_shared", {"level": 1}),
    ("rmp_make_shared", {"level": 2}),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_enodev_first(backend: str, policy: str) -> None:
    """host §6.2: without SNP -ENODEV under every policy, before the frame is looked at."""
    host = Host(backend, SMALL, policy=policy)
    before = host.state()
    for name, args in HOST_UPDATES:
        for pfn in (0x400, NOT_VALID, 1 << 52):
            assert host.call(name, pfn=pfn, **args) == ENODEV
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pfn", [NOT_VALID, 1 << 40, 1 << 52, (1 << 64) - 1])
def test_frame_that_is_not_valid(backend: str, policy: str, pfn: int) -> None:
    """host §6.2: -EINVAL as it is in rfc-v4 and the unmap policies, -EFAULT in the rest; no instruction."""
    host = Host(backend, SNP, policy=policy)
    before = host.state()
    for name, args in HOST_UPDATES:
        assert host.call(name, pfn=pfn, **args) == (EINVAL if policy in RETURNS_CODES else EFAULT)
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("policy", COMPLAINS)
@pytest.mark.parametrize("pfn", [0x401, 0x5FF])
def test_2m_off_the_line_is_refused_in_advance(backend: str, policy: str, pfn: int) -> None:
    """host §6.2: the same checks of frame and level as in adjust_direct_map: -EFAULT without any instruction."""
    host = Host(backend, SNP, policy=policy)
    before = host.state()
    assert private(host, pfn, level=2) == EFAULT
    assert shared(host, pfn, level=2) == EFAULT
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_exception(backend: str, policy: str) -> None:
    """host §6.2: an instruction that raises an exception is -EFAULT under every policy, without complaint; psmash()
    too."""
    host = Host(backend, RESERVED_SEGMENT, policy=policy, **SEGMENTED_PART)
    assert host.call("psmash", pfn=0x40200) == EFAULT
    assert host.events() == []
    for name, args in HOST_UPDATES:
        assert host.call(name, pfn=0x40200, **args) == EFAULT
    assert not set(kinds(host.events())) & {UPDATE, *COMPLAINTS}
    counters = host.counters()
    assert (counters["rmpupdate"], counters["rmpupdate_retries"]) == (0, 0)
    # what the policy did before it stays
    unmapped = {"unmap": (1, inverted(0x40200000, INVALID)), "unmap-flush": (1, inverted(0x40200000, NOT_PRESENT))}
    level = 1 if policy not in KEEPS_LEAVES or policy == "map-4k" else 2
    plain = (level, 0x40200000 | (LARGE_LEAF if level == 2 else SMALL_LEAF))
    assert host.leaf(0x40200) == unmapped.get(policy, plain)


# 6.2: upstream and those that split nothing


@pytest.mark.parametrize("policy", ["upstream", "split-restore"])
@pytest.mark.parametrize("kernel", ["6.9", "6.12", "6.15"])
def test_splits_before_a_4k_entry(backend: str, policy: str, kernel: str) -> None:
    """host §6.2: adjust_direct_map, then the instruction; nothing for 2M."""
    host = Host(backend, SNP, policy=policy, kernel=kernel)
    assert private(host, 0x403) == 0
    mark = [EventKind.FLUSH_PAGES] if kernel == "6.15" else []
    assert kinds(host.events()) == [*SPLIT_EVENTS, *mark, UPDATE]
    assert private(host, 0x600, level=2) == 0
    assert kinds(host.events()) == [UPDATE]
    assert host.leaf(0x600) == (2, 0x600000 | LARGE_LEAF)


@pytest.mark.parametrize("policy", ["upstream", "split-restore"])
def test_error_of_the_split(backend: str, policy: str) -> None:
    """host §6.2: an error of adjust_direct_map: -EFAULT, and no instruction."""
    host = Host(backend, SNP, policy=policy)
    host.call("fail_alloc", count=2)
    assert private(host, 0x403) == EFAULT
    assert shared(host, 0x403) == EFAULT
    assert host.events() == [ALLOC_FAIL, ALLOC_FAIL]
    assert host.counters()["rmpupdate"] == 0


@pytest.mark.parametrize("policy", KEEPS_LEAVES)
def test_nothing_is_split(backend: str, policy: str) -> None:
    """host §6.2: the instruction alone, both ways and for both sizes."""
    host = Host(backend, SNP, policy=policy)
    before = host.state()
    host.call("fail_alloc")
    assert private(host, 0x403) == 0
    assert host.events() == [Event(UPDATE, a=0x403000, b=0x7000, c=1 | 5 << 32)]
    assert host.rmp(0x403)[0] == ASSIGNED | 0x7000 | 5 << 51
    assert host.call("rmp_make_firmware", pfn=0x600, level=2) == 0
    assert shared(host, 0x403) == 0
    assert private(host, VALID_WITHOUT_MEMORY) == 0
    assert kinds(host.events()) == [UPDATE] * 3
    state = host.state()
    assert (leaves(state), state.fail_alloc) == (leaves(before), (0, 1))


@pytest.mark.parametrize("policy", COMPLAINS)
@pytest.mark.parametrize("code", [FAIL_INPUT, FAIL_PERMISSION, FAIL_INUSE, 7, 255])
def test_complaint(backend: str, policy: str, code: int) -> None:
    """host §6.2: other codes: complaint, dump, -EFAULT."""
    host = Host(backend, SNP, policy=policy)
    assert host.call("adjust_direct_map", pfn=0x403, level=1) == 0
    host.call("inject", code=code)
    host.events()
    assert private(host, 0x403) == EFAULT
    assert host.events() == [
        Event(UPDATE, code=code, a=0x403000, b=0x7000, c=1 | 5 << 32),
        Event(FAILED, level=1, code=code, a=0x403),
        Event(EventKind.DUMP_REGION, a=0x403, b=0x400, c=0x600),
    ]
    assert host.counters()["rmpupdate_retries"] == 0


# 6.2: repeating


REPEATED = dict.fromkeys(COMPLAINS, FAIL_OVERLAP) | {"rfc-v4": FAIL_INUSE}


@pytest.mark.parametrize("policy", REPEATED)
def test_storm(backend: str, policy: str) -> None:
    """host §6.2: each repetition of an injected code counts; what comes before the instruction is done once."""
    host = Host(backend, SNP, policy=policy, kernel="6.12")
    host.call("inject", code=REPEATED[policy], count=7)
    assert private(host, 0x403) == 0
    events = host.events()
    assert kinds(events) == ([] if policy in KEEPS_LEAVES else SPLIT_EVENTS) + [UPDATE] * 8
    assert [event.code for event in events[-8:]] == [REPEATED[policy]] * 7 + [0]
    counters = host.counters()
    assert (counters["rmpupdate"], counters["rmpupdate_retries"]) == (8, 7)
    assert host.rmp(0x403)[0] & ASSIGNED


@pytest.mark.parametrize("policy", RETURNS_CODES)
@pytest.mark.parametrize("code", [FAIL_INPUT, FAIL_PERMISSION, FAIL_INUSE, FAIL_OVERLAP, 7, 255])
def test_codes_as_they_are(backend: str, policy: str, code: int) -> None:
    """host §6.2: returned as they are, positive; no complaint, no dump; the unmap policies never repeat."""
    host = Host(backend, SNP, policy=policy)
    assert host.call("set_memory_4k", pfn=0x403, pages=1) == 0
    host.call("inject", code=code)
    repeats = code == REPEATED.get(policy)
    for name, args in HOST_UPDATES[:2]:
        host.events()
        assert host.call(name, pfn=0x403, **args) == (0 if repeats else code)
        made = [event for event in host.events() if event.kind != EventKind.FLUSH_PAGES]
        assert kinds(made) == [UPDATE] * (2 if repeats else 1)
        assert made[0].code == code
        if repeats:
            break
        host.call("inject", code=code)
    assert host.counters()["rmpupdate_retries"] == int(repeats)


def test_storm_then_another_code(backend: str) -> None:
    """host §6.2 rfc-v4: FAIL_INUSE is repeated; FAIL_OVERLAP after it is the answer."""
    host = Host(backend, SNP, policy="rfc-v4")
    host.call("inject", code=FAIL_INUSE, count=2)
    host.call("inject", code=FAIL_OVERLAP, count=2)
    assert private(host, 0x403) == FAIL_OVERLAP
    assert host.counters()["rmpupdate_retries"] == 2
    assert host.state().inject == ((FAIL_OVERLAP, 1),)
    assert not set(kinds(host.events())) & COMPLAINTS


@pytest.mark.parametrize("policy", POLICIES)
def test_real_overlap(backend: str, policy: str) -> None:
    """host §6.2: a code that is repeated and was not injected is a HANG; others return 4."""
    host = Host(backend, SNP, policy=policy)
    host.assign(0x403)
    host.events()
    call = {"pfn": 0x400, "gpa": 0, "level": 2, "asid": 5}
    if policy in RETURNS_CODES:
        assert host.call("rmp_make_private", **call) == FAIL_OVERLAP
    else:
        assert hangs(host, "rmp_make_private", **call) == FAIL_OVERLAP
    events = host.events()
    assert [event.code for event in events if event.kind == UPDATE] == [FAIL_OVERLAP]
    assert events[-1].kind == UPDATE
    assert host.counters()["rmpupdate_retries"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_page_in_use(backend: str, policy: str) -> None:
    """host §6.2: FAIL_INUSE of a running vCPU's page: HANG with 3 under rfc-v4, 3 under the unmap policies, else a
    complaint."""
    host = Host(backend, SNP, policy=policy)
    assert host.do("VMRUN", vmcb=0x403000, asid=1, plain=1).kind == Kind.ALLOWED
    host.call("inject", code=FAIL_INUSE if policy == "rfc-v4" else FAIL_OVERLAP, count=2)
    call = {"pfn": 0x403, "gpa": 0, "level": 1, "asid": 5}
    if policy == "rfc-v4":
        assert hangs(host, "rmp_make_private", **call) == FAIL_INUSE
    elif policy in UNMAPS:
        assert [host.call("rmp_make_private", **call) for _ in range(3)] == [FAIL_OVERLAP, FAIL_OVERLAP, FAIL_INUSE]
    else:
        assert host.call("rmp_make_private", **call) == EFAULT
    assert bool(set(kinds(host.events())) & COMPLAINTS) == (policy not in RETURNS_CODES)
    assert host.counters()["rmpupdate_retries"] == (0 if policy in UNMAPS else 2)
    assert host.rmp(0x403) == (0, 0)


# 6.2: rfc-v4


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("kernel", ["6.12", "6.15"])
def test_rfc_splits_for_every_update(backend: str, level: int, assign: bool, kernel: str) -> None:
    """host §6.2 rfc-v4: set_memory_4k for one page at pfn, whatever the size and the direction, then the
    instruction."""
    host = Host(backend, SNP, policy="rfc-v4", kernel=kernel)
    assert (private(host, 0x400, level=level) if assign else shared(host, 0x400, level)) == 0
    mark = SOFTW3 if kernel == "6.15" else 0
    events = host.events()
    assert kinds(events[:3]) == SPLIT_EVENTS
    assert events[3:-1] == ([Event(EventKind.FLUSH_PAGES, a=va(0x400), b=1)] if mark else [])
    assert events[-1].kind == UPDATE
    # one page only: the others of the 2 MiB are small by the split, and unmarked; the next 2 MiB are untouched
    assert host.leaf(0x400) == (1, 0x400000 | SMALL_LEAF | mark)
    assert {host.leaf(pfn) for pfn in range(0x401, 0x600)} == {
        (1, pfn << 12 | SMALL_LEAF) for pfn in range(0x401, 0x600)
    }
    assert host.leaf(0x600) == (2, 0x600000 | LARGE_LEAF)
    # done already: nothing left to change
    assert shared(host, 0x400, level) == 0
    assert kinds(host.events()) == [UPDATE]


def test_rfc_marks_small_pages_too(backend: str) -> None:
    """host §6.2 rfc-v4: set_memory_4k goes to pages that are small already, where upstream looks first."""
    host = Host(backend, SNP, policy="rfc-v4", kernel="6.15")
    assert private(host, 0x403) == 0
    host.events()
    assert private(host, 0x404) == 0
    assert host.events()[:-1] == [Event(EventKind.FLUSH_PAGES, a=va(0x404), b=1)]
    assert host.leaf(0x404) == (1, 0x404000 | SMALL_LEAF | SOFTW3)


def test_rfc_off_the_line(backend: str) -> None:
    """host §6.2 rfc-v4: no check of the level: the instruction answers FAIL_INPUT; what was split stays."""
    host = Host(backend, SNP, policy="rfc-v4")
    assert private(host, 0x401, level=2) == FAIL_INPUT
    assert kinds(host.events()) == [*SPLIT_EVENTS, UPDATE]
    assert host.leaf(0x401)[0] == 1
    assert host.leaf(0x600)[0] == 2


def test_rfc_errors_of_set_memory_4k(backend: str) -> None:
    """host §6.2 rfc-v4: its error is returned as it is: -ENOMEM; -EFAULT where the direct map has nothing."""
    host = Host(backend, SNP, policy="rfc-v4")
    host.call("fail_alloc", count=2)
    assert private(host, 0x403) == ENOMEM
    assert shared(host, 0x600, level=2) == ENOMEM
    assert host.events() == [ALLOC_FAIL, ALLOC_FAIL]
    assert private(host, VALID_WITHOUT_MEMORY) == EFAULT
    assert host.events() == []
    assert host.counters()["rmpupdate"] == 0


def test_rfc_gives_nothing_back(backend: str) -> None:
    """host §6.2 rfc-v4: after code 0 nothing."""
    host = Host(backend, SNP, policy="rfc-v4")
    assert private(host, 0x403) == 0
    assert shared(host, 0x403) == 0
    assert host.leaf(0x403) == (1, 0x403000 | SMALL_LEAF)


# 6.2: unmap


@pytest.mark.parametrize("kernel", ["6.9", "6.12", "6.15"])
def test_unmap_one_page(backend: str, kernel: str) -> None:
    """host §6.2 unmap: set_direct_map_invalid_noflush before, set_direct_map_default_noflush after; the only flush is
    that of the split."""
    host = Host(backend, SNP, policy="unmap", kernel=kernel)
    assert private(host, 0x403) == 0
    events = host.events()
    assert kinds(events) == [*SPLIT_EVENTS, UPDATE]
    assert events[-1] == Event(UPDATE, a=0x403000, b=0x7000, c=1 | 5 << 32)
    assert host.leaf(0x403) == (1, inverted(0x403000, INVALID))
    for pfn in (0x402, 0x404):
        assert host.leaf(pfn) == (1, pfn << 12 | SMALL_LEAF)
    assert private(host, 0x404) == 0
    assert shared(host, 0x403) == 0
    assert kinds(host.events()) == [UPDATE, UPDATE]
    assert host.leaf(0x403) == (1, 0x403000 | DEFAULT)
    assert host.leaf(0x404) == (1, inverted(0x404000, INVALID))
    counters = host.counters()
    assert (counters["flush_all"], counters["flush_pages"], counters["level2_splits"]) == (1, 0, 1)


def test_unmap_512_pages(backend: str) -> None:
    """host §6.2 unmap: 512 pages from pfn on if the input's size is 2M, one by one, so the large page is split and
    never comes back."""
    host = Host(backend, SNP, policy="unmap")
    assert private(host, 0x400, level=2) == 0
    assert kinds(host.events()) == [*SPLIT_EVENTS, UPDATE]
    inside = {(1, pfn << 12) for pfn in range(0x400, 0x600)}
    found = leaves(host.state())
    assert {at: found[at] for at in inside} == {at: inverted(at[1], INVALID) for at in inside}
    assert found[2, 0x600000] == 0x600000 | LARGE_LEAF
    assert shared(host, 0x400, level=2) == 0
    assert kinds(host.events()) == [UPDATE]
    found = leaves(host.state())
    assert {at: found[at] for at in inside} == {at: at[1] | DEFAULT for at in inside}


def test_unmap_touches_nothing_else_when_giving_back(backend: str) -> None:
    """host §6.2 unmap: assigned 0: nothing before the instruction; of a page that was never unmapped, P and RW are
    there, so nothing changes after it either."""
    host = Host(backend, SNP, policy="unmap")
    before = leaves(host.state())
    assert shared(host, 0x403) == 0
    assert shared(host, 0x600, level=2) == 0
    assert kinds(host.events()) == [UPDATE, UPDATE]
    assert leaves(host.state()) == before


def test_unmap_off_the_line(backend: str) -> None:
    """host §6.2 unmap: 512 pages from pfn on, whatever the line; the instruction then answers FAIL_INPUT, and they stay
    unmapped, and what was split stays."""
    host = Host(backend, SNP, policy="unmap")
    assert private(host, 0x500, level=2) == FAIL_INPUT
    assert kinds(host.events()) == [*SPLIT_EVENTS, *SPLIT_EVENTS, UPDATE]
    found = leaves(host.state())
    for pfn in range(0x400, 0x800):
        flags = INVALID if 0x500 <= pfn < 0x700 else SMALL_LEAF
        assert found[1, pfn << 12] == (inverted(pfn << 12, flags) if flags == INVALID else pfn << 12 | flags)


def test_unmap_undoes_on_a_failure(backend: str) -> None:
    """host §6.2 unmap: the second split fails: default_noflush for those before it, -EFAULT, no instruction."""
    host = Host(backend, SNP, policy="unmap")
    host.call("fail_alloc", skip=1)
    assert private(host, 0x500, level=2) == EFAULT
    events = host.events()
    assert kinds(events) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL]
    found = leaves(host.state())
    for pfn in range(0x400, 0x600):
        assert found[1, pfn << 12] == pfn << 12 | (DEFAULT if pfn >= 0x500 else SMALL_LEAF)
    assert found[2, 0x600000] == 0x600000 | LARGE_LEAF
    assert host.counters()["rmpupdate"] == 0


def test_unmap_undoes_no_more_than_was_done(backend: str) -> None:
    """host §6.2 unmap: default_noflush for the pages before the one that fails, not for that one: it is read-only, and
    stays so."""
    host = Host(backend, SNP, policy="unmap")
    assert host.call("set_memory_ro", pfn=0x600, pages=0x200) == 0
    leaf = host.leaf(0x600)
    assert leaf[0] == 2
    host.call("fail_alloc", skip=1)
    host.events()
    assert private(host, 0x500, level=2) == EFAULT
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL]
    assert host.leaf(0x600) == leaf
    assert host.leaf(0x5FF) == (1, 0x5FF000 | DEFAULT)


def test_unmap_first_page_fails(backend: str) -> None:
    """host §6.2 unmap: nothing before it, nothing to undo."""
    host = Host(backend, SNP, policy="unmap")
    before = host.state()
    host.call("fail_alloc")
    assert private(host, 0x400, level=2) == EFAULT
    assert host.events() == [ALLOC_FAIL]
    assert host.state() == before


@pytest.mark.parametrize("fails", [1, 2])
def test_unmap_undo_that_fails(backend: str, fails: int) -> None:
    """host §6.2 unmap: the undo goes up to the first page that fails itself.  A large page that is invalid already
    needs no split to be made invalid, but one for a page of it to be mapped."""
    host = Host(backend, SNP, policy="unmap", kernel="6.13")
    assert host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0) == 0
    assert host.leaf(0x400) == (2, inverted(0x400000, INVALID))
    host.events()
    host.call("fail_alloc", count=fails)
    assert private(host, 0x500, level=2) == EFAULT
    if fails == 2:
        assert host.events() == [ALLOC_FAIL, ALLOC_FAIL]
        assert host.leaf(0x500) == (2, inverted(0x400000, INVALID))
    else:
        assert kinds(host.events()) == [EventKind.ALLOC_FAIL, *SPLIT_EVENTS]
        assert host.leaf(0x4FF) == (1, inverted(0x4FF000, INVALID))
        assert {host.leaf(pfn) for pfn in range(0x500, 0x600)} == {
            (1, pfn << 12 | DEFAULT) for pfn in range(0x500, 0x600)
        }
    assert host.leaf(0x600) == (2, 0x600000 | LARGE_LEAF)
    assert host.state().fail_alloc == (0, 0)


def test_unmap_past_the_end_of_memory(backend: str) -> None:
    """host §6.2 unmap: the first frame that the direct map has not is -EFAULT (direct-map §4.1), and those before it
    are mapped again."""
    host = Host(backend, ENDS_INSIDE, policy="unmap")
    assert private(host, 0x3E00, level=2) == EFAULT
    assert host.events() == []
    found = leaves(host.state())
    assert {found[1, pfn << 12] for pfn in range(0x3E00, 0x3FE0)} == {
        pfn << 12 | DEFAULT for pfn in range(0x3E00, 0x3FE0)
    }
    assert private(host, VALID_WITHOUT_MEMORY) == EFAULT
    assert host.counters()["rmpupdate"] == 0


def test_unmap_mapping_again_fails(backend: str) -> None:
    """host §6.2 unmap: after code 0 one page that fails: -EFAULT; those before it are mapped, the entry is
    given back."""
    host = Host(backend, ENDS_INSIDE, policy="unmap")
    host.assign(0x3E00, size=1)
    assert host.call("set_direct_map_invalid_noflush", pfn=0x3E05) == 0
    host.events()
    assert shared(host, 0x3E00, level=2) == EFAULT
    assert host.events() == [Event(UPDATE, a=0x3E00000, c=1 << 8)]
    assert host.leaf(0x3E05) == (1, 0x3E05000 | DEFAULT)
    assert host.rmp(0x3E00)[0] == 0


def test_unmap_mapping_again_without_a_table(backend: str) -> None:
    """host §6.2 unmap: the page's large leaf is not present, and there is no page to split it: after the instruction,
    -EFAULT, the leaf is left."""
    host = Host(backend, SNP, policy="unmap", kernel="6.13")
    assert host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0) == 0
    host.events()
    assert private(host, 0x403) == 0
    assert private(host, 0x404) == 0
    assert kinds(host.events()) == [UPDATE, UPDATE]
    host.call("fail_alloc")
    assert shared(host, 0x403) == EFAULT
    assert host.events() == [Event(UPDATE, a=0x403000), ALLOC_FAIL]
    assert host.rmp(0x403)[0] == 0
    assert host.leaf(0x403) == (2, inverted(0x400000, INVALID))
    assert shared(host, 0x404) == 0
    assert kinds(host.events()) == [UPDATE, *SPLIT_EVENTS]
    assert host.leaf(0x404) == (1, 0x404000 | DEFAULT)
    assert host.leaf(0x403) == (1, inverted(0x403000, INVALID))


@pytest.mark.parametrize("policy", UNMAPS)
@pytest.mark.parametrize("code", [FAIL_PERMISSION, FAIL_INUSE, FAIL_OVERLAP])
def test_unmapped_pages_stay_so_when_the_instruction_fails(backend: str, policy: str, code: int) -> None:
    """host §6.2: as in v5 to v7; and nothing is mapped again when giving back fails."""
    host = Host(backend, SNP, policy=policy)
    host.call("inject", code=code)
    assert private(host, 0x403) == code
    gone = (1, inverted(0x403000, INVALID if policy == "unmap" else NOT_PRESENT))
    assert host.leaf(0x403) == gone
    assert host.rmp(0x403) == (0, 0)
    assert private(host, 0x403) == 0
    host.call("inject", code=code)
    host.events()
    assert shared(host, 0x403) == code
    assert kinds(host.events()) == [UPDATE]
    assert host.leaf(0x403) == gone
    assert host.rmp(0x403)[0] & ASSIGNED


@pytest.mark.parametrize("policy", UNMAPS)
def test_firmware_page_that_is_not_given_back(backend: str, policy: str) -> None:
    """host §6.2: FAIL_PERMISSION of an immutable page is returned; it stays unmapped."""
    host = Host(backend, SNP, policy=policy)
    assert host.call("rmp_make_firmware", pfn=0x403, level=1) == 0
    assert shared(host, 0x403) == FAIL_PERMISSION
    assert not set(kinds(host.events())) & COMPLAINTS
    assert host.do("host_read", pfn=0x403).reason == Reason.NOT_PRESENT


@pytest.mark.parametrize("policy", UNMAPS)
def test_end_of_the_room(backend: str, policy: str) -> None:
    """host §6.2: a page beyond the room of the direct map: -EFAULT of the set_ functions; unmap maps those before it
    again."""
    host = Host(backend, SNP_END_OF_ROOM, policy=policy)
    last = ROOM - 0x100
    assert host.leaf(last) == (2, (ROOM << 12) - 2 * MIB | LARGE_LEAF)
    assert private(host, last, level=2) == EFAULT
    assert host.counters()["rmpupdate"] == 0
    if policy == "unmap":
        assert kinds(host.events()) == SPLIT_EVENTS
        for pfn in (last, ROOM - 1):
            assert host.leaf(pfn) == (1, pfn << 12 | DEFAULT)


# 6.2: unmap-flush


def test_unmap_flush_one_page(backend: str) -> None:
    """host §6.2 unmap-flush: set_memory_np and its flush, then the instruction; giving back: the instruction, then
    set_memory_p and its flush."""
    host = Host(backend, SNP, policy="unmap-flush")
    flush = Event(EventKind.FLUSH_PAGES, a=va(0x403), b=1)
    assert private(host, 0x403) == 0
    events = host.events()
    assert kinds(events[:3]) == SPLIT_EVENTS
    assert events[3:] == [flush, Event(UPDATE, a=0x403000, b=0x7000, c=1 | 5 << 32)]
    assert host.leaf(0x403) == (1, inverted(0x403000, NOT_PRESENT))
    assert shared(host, 0x403) == 0
    assert host.events() == [Event(UPDATE, a=0x403000), flush]
    assert host.leaf(0x403) == (1, 0x403000 | PRESENT)
    counters = host.counters()
    assert (counters["flush_all"], counters["flush_pages"]) == (1, 2)


def test_unmap_flush_a_large_page(backend: str) -> None:
    """host §6.2 unmap-flush: the range of 512 pages is exactly a 2 MiB page, which stays one; all TLBs are flushed
    because more than 33 pages were asked for (direct-map §4.6)."""
    host = Host(backend, SNP, policy="unmap-flush")
    assert private(host, 0x400, level=2) == 0
    assert host.events() == [FLUSH_ALL, Event(UPDATE, a=0x400000, b=0x7000, c=1 | 1 << 8 | 5 << 32)]
    assert host.leaf(0x400) == (2, inverted(0x400000, NOT_PRESENT))
    assert shared(host, 0x400, level=2) == 0
    assert host.events() == [Event(UPDATE, a=0x400000, c=1 << 8), FLUSH_ALL]
    assert host.leaf(0x400) == (2, 0x400000 | PRESENT | 0x80)
    assert host.counters()["level2_splits"] == 0


def test_unmap_flush_pages_that_are_mapped(backend: str) -> None:
    """host §6.2 unmap-flush: giving back what is mapped changes nothing, and flushes nothing."""
    host = Host(backend, SNP, policy="unmap-flush")
    before = leaves(host.state())
    assert shared(host, 0x403) == 0
    assert shared(host, 0x600, level=2) == 0
    assert kinds(host.events()) == [UPDATE, UPDATE]
    assert leaves(host.state()) == before


def test_unmap_flush_undoes_nothing(backend: str) -> None:
    """host §6.2 unmap-flush: an error of set_memory_np is -EFAULT, and nothing is undone; no instruction."""
    host = Host(backend, SNP, policy="unmap-flush")
    host.call("fail_alloc", skip=1)
    assert private(host, 0x500, level=2) == EFAULT
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL, EventKind.FLUSH_ALL]
    found = leaves(host.state())
    for pfn in range(0x400, 0x600):
        gone = inverted(pfn << 12, NOT_PRESENT)
        assert found[1, pfn << 12] == (gone if pfn >= 0x500 else pfn << 12 | SMALL_LEAF)
    assert found[2, 0x600000] == 0x600000 | LARGE_LEAF
    assert host.counters()["rmpupdate"] == 0
    host.call("fail_alloc")
    assert private(host, 0x603) == EFAULT
    assert host.events() == [ALLOC_FAIL]


def test_unmap_flush_off_the_line(backend: str) -> None:
    """host §6.2 unmap-flush: the range from pfn on; one flush; FAIL_INPUT, and it stays unmapped."""
    host = Host(backend, SNP, policy="unmap-flush")
    assert private(host, 0x500, level=2) == FAIL_INPUT
    assert kinds(host.events()) == [*SPLIT_EVENTS, *SPLIT_EVENTS, EventKind.FLUSH_ALL, UPDATE]
    found = leaves(host.state())
    assert {found[1, pfn << 12] for pfn in range(0x500, 0x700)} == {
        inverted(pfn << 12, NOT_PRESENT) for pfn in range(0x500, 0x700)
    }


def test_unmap_flush_mapping_again_fails(backend: str) -> None:
    """host §6.2 unmap-flush: an error of set_memory_p: -EFAULT after the instruction."""
    host = Host(backend, SNP, policy="unmap-flush")
    assert private(host, 0x400, level=2) == 0
    assert host.call("psmash", pfn=0x400) == 0
    host.call("fail_alloc")
    host.events()
    assert shared(host, 0x403) == EFAULT
    assert host.events() == [Event(UPDATE, a=0x403000), ALLOC_FAIL]
    assert host.rmp(0x403)[0] == 0
    assert host.leaf(0x403) == (2, inverted(0x400000, NOT_PRESENT))
    assert shared(host, 0x404) == 0
    assert kinds(host.events()) == [UPDATE, *SPLIT_EVENTS, EventKind.FLUSH_PAGES]
    assert host.leaf(0x404) == (1, 0x404000 | PRESENT)


def test_aliases_of_an_image_page(backend: str) -> None:
    """host §6.2, direct-map §7: the set_direct_map_ functions leave the high mapping alone, set_memory_np and
    set_memory_p take it along, and flush all then."""
    host = Host(backend, SNP_IMAGE, policy="unmap")
    high = leaves(host.state(), 1)
    assert private(host, 0x1203) == 0
    assert leaves(host.state(), 1) == high
    host = Host(backend, SNP_IMAGE, policy="unmap-flush")
    assert private(host, 0x1203) == 0
    events = host.events()
    assert kinds(events) == [*SPLIT_EVENTS, *SPLIT_EVENTS, EventKind.FLUSH_ALL, UPDATE]
    assert (events[1].a, events[4].a) == (va(0x1200), HIGH_MAPPING + 0x1200000)
    assert leaves(host.state(), 1)[1, 0x1203000] == inverted(0x1203000, 0x062)
    assert shared(host, 0x1203) == 0
    assert kinds(host.events()) == [UPDATE, EventKind.FLUSH_ALL]
    assert leaves(host.state(), 1)[1, 0x1203000] == 0x1203000 | 0x063


# 6.2: marking and reclaiming


@pytest.mark.parametrize("policy", POLICIES)
def test_marking_and_reclaiming(backend: str, policy: str) -> None:
    """host §1, §6.2: the round trip works under every policy."""
    host = Host(backend, SNP, policy=policy)
    assert host.do("SNP_INIT").ret == 0
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=3) == 0
    assert host.rmp(0x402)[0] & (ASSIGNED | IMMUTABLE) == ASSIGNED | IMMUTABLE
    readable = Reason.NOT_PRESENT if policy in UNMAPS else Reason.NONE
    assert host.do("host_read", pfn=0x402).reason == readable
    assert host.call("snp_reclaim_pages", pfn=0x401, pages=3) == 0
    assert host.rmp(0x402)[0] == 0
    for pfn in (0x400, 0x401, 0x403):
        assert host.do("host_write", pfn=pfn).kind == Kind.ALLOWED


@pytest.mark.parametrize("policy", RETURNS_CODES)
def test_marking_that_fails(backend: str, policy: str) -> None:
    """host §1, §6.2: any return that is not 0 is a failure: the pages done so far are reclaimed, and the positive code
    is the answer."""
    host = Host(backend, SNP, policy=policy)
    assert host.do("SNP_INIT").ret == 0
    host.call("inject", code=0)
    host.call("inject", code=FAIL_OVERLAP)
    host.events()
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=3) == FAIL_OVERLAP
    steps = [
        (event.kind, event.code, event.a)
        for event in host.events()
        if event.kind in (UPDATE, EventKind.FIRMWARE, EventKind.LEAK, *COMPLAINTS)
    ]
    assert steps == [
        (UPDATE, 0, 0x401000),
        (UPDATE, FAIL_OVERLAP, 0x402000),
        (EventKind.FIRMWARE, 0, 0xC7),
        (UPDATE, 0, 0x401000),
    ]
    assert [host.rmp(pfn)[0] for pfn in (0x401, 0x402, 0x403)] == [0, 0, 0]
    assert host.counters()["leaked_pages"] == 0
    expected = {"unmap": inverted(0x402000, INVALID), "unmap-flush": inverted(0x402000, NOT_PRESENT)}
    assert host.leaf(0x402) == (1, expected.get(policy, 0x402000 | SMALL_LEAF))
    assert host.do("host_read", pfn=0x401).kind == Kind.ALLOWED


@pytest.mark.parametrize(("policy", "ret"), [("rfc-v4", ENOMEM), ("unmap", EFAULT), ("unmap-flush", EFAULT)])
def test_marking_without_a_table(backend: str, policy: str, ret: int) -> None:
    """host §1, §6.2: the answer of rmp_make_private as it is."""
    host = Host(backend, SNP, policy=policy)
    host.call("fail_alloc", count=2)
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=3) == ret
    assert host.counters()["rmpupdate"] == 0


@pytest.mark.parametrize("policy", RETURNS_CODES)
def test_reclaiming_that_fails(backend: str, policy: str) -> None:
    """host §1, §6.2: rmp_make_shared that does not answer 0: this page and all that are left are leaked, and its code
    is the answer."""
    host = Host(backend, SNP, policy=policy)
    assert host.do("SNP_INIT").ret == 0
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=3) == 0
    host.call("inject", code=0)
    host.call("inject", code=FAIL_PERMISSION)
    host.events()
    assert host.call("snp_reclaim_pages", pfn=0x401, pages=3) == FAIL_PERMISSION
    events = host.events()
    assert FAILED not in kinds(events)
    assert [event for event in events if event.kind == EventKind.LEAK] == [Event(EventKind.LEAK, a=0x402, b=2)]
    assert host.counters()["leaked_pages"] == 2
    assert [host.rmp(pfn)[0] & ASSIGNED for pfn in (0x401, 0x402, 0x403)] == [0, 1, 1]


def test_marking_a_page_in_use_hangs_under_rfc(backend: str) -> None:
    """host §1, §6.2: a HANG of rmp_make_private is a HANG of the op, with the code repeated for ever."""
    host = Host(backend, SNP, policy="rfc-v4")
    assert host.do("SNP_INIT").ret == 0
    assert host.do("VMRUN", vmcb=0x402000, asid=1, plain=1).kind == Kind.ALLOWED
    assert hangs(host, "rmp_mark_pages_firmware", pfn=0x401, pages=3) == FAIL_INUSE
    assert not set(kinds(host.events())) & COMPLAINTS


@pytest.mark.parametrize("policy", COMPLAINS)
def test_marking_and_reclaiming_that_complain(backend: str, policy: str) -> None:
    """host §6.2: with a complaint, and -EFAULT; after which the page and the rest are leaked."""
    host = Host(backend, SNP, policy=policy)
    assert host.do("SNP_INIT").ret == 0
    host.call("inject", code=FAIL_INUSE)
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=2) == EFAULT
    assert FAILED in kinds(host.events())
    assert host.call("rmp_mark_pages_firmware", pfn=0x401, pages=2) == 0
    host.call("inject", code=FAIL_INUSE)
    assert host.call("snp_reclaim_pages", pfn=0x401, pages=2) == EFAULT
    assert FAILED in kinds(host.events())
    assert host.counters()["leaked_pages"] == 2


# 6.3: through the direct map, and not


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ACCESSES)
def test_outside_the_room(backend: str, policy: str, name: str) -> None:
    """host §6.3, §6.5: a frame outside the room of the direct map is refused, under kmap too; nothing is counted."""
    host = Host(backend, SNP, policy=policy)
    before = host.state()
    for pfn in (ROOM, 1 << 52, (1 << 64) - 1):
        assert host.do(name, pfn=pfn) == Result(Refusal.BAD_ARGUMENT, Kind.REFUSED)
    assert host.state() == before
    assert host.events() == []
    result = host.do(name, pfn=ROOM - 1)
    window = policy == "kmap" and name.startswith("kvm")
    assert result == (ALLOWED_4K if window else fault(Reason.NOT_PRESENT, 0, va(ROOM - 1), 2 if name in WRITES else 0))
    assert tally(host) == (1, 0, int(not window), 0, 0, int(window))


@pytest.mark.parametrize("kernel", ["6.1", "6.6", "7.3"])
@pytest.mark.parametrize("name", ACCESSES)
def test_in_every_kernel(backend: str, name: str, kernel: str) -> None:
    """host §6.3: the accesses exist in every kernel version."""
    assert Host(backend, SMALL, kernel=kernel).do(name, pfn=0x403) == ALLOWED_2M


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy not in ("kmap", "fault-split")])
@pytest.mark.parametrize("name", ACCESSES)
def test_through_the_direct_map(backend: str, policy: str, name: str) -> None:
    """host §6.3: kvm_read_guest and kvm_write_guest go through the direct map exactly like host_read and host_write."""
    write = name in WRITES
    host = Host(backend, SNP, policy=policy)
    level = 1 if policy == "map-4k" else 2
    allowed = Result(0, Kind.ALLOWED, level)
    assert host.do(name, pfn=0x405) == allowed
    host.assign(0x403)
    small = policy == "map-4k" or not write
    expected = allowed if small else fault(Reason.NEIGHBOUR, level, va(0x405))
    assert host.do(name, pfn=0x405) == expected
    assert host.do(name, pfn=0x403) == (fault(Reason.ASSIGNED, level, va(0x403)) if write else allowed)
    assert host.call("set_memory_ro", pfn=0x605, pages=1) == 0
    assert host.do(name, pfn=0x605) == (fault(Reason.READ_ONLY, 1, va(0x605), 3) if write else ALLOWED_4K)
    assert host.call("set_memory_np", pfn=0x606, pages=1) == 0
    assert host.do(name, pfn=0x606) == fault(Reason.NOT_PRESENT, 1, va(0x606), 2 if write else 0)
    assert host.do(name, pfn=0x100000) == fault(Reason.NOT_PRESENT, 0, va(0x100000), 2 if write else 0)
    owner, neighbour = (1, (0 if small else 1) + 1 + 2) if write else (0, 2)
    assert tally(host) == (6, owner, neighbour, 0, 0, 0)


@pytest.mark.parametrize(("map_", "start"), [(SNP, 0xFFFF_C900_0000_0000), (SNP_LA57, 0xFFA0_0000_0000_0000)])
def test_window(backend: str, map_: MachineMap, start: int) -> None:
    """host §6.3 kmap: a 4K mapping of its own: the leaf, a neighbour, a missing or read-only page do not matter, the
    page itself does; CR2 is the start of the vmalloc area, the result's level 4K."""
    host = Host(backend, map_, policy="kmap")
    host.assign(0x403)
    for pfn in (0x405, 0x100000, SNP_TIGHT.max_pfn):
        assert host.do("kvm_read_guest", pfn=pfn) == ALLOWED_4K
        assert host.do("kvm_write_guest", pfn=pfn) == ALLOWED_4K
    assert host.call("set_memory_ro", pfn=0x605, pages=1) == 0
    assert host.call("set_memory_np", pfn=0x606, pages=1) == 0
    for pfn in (0x605, 0x606):
        assert host.do("kvm_write_guest", pfn=pfn) == ALLOWED_4K
    assert host.do("kvm_read_guest", pfn=0x403) == ALLOWED_4K
    host.events()
    assert host.do("kvm_write_guest", pfn=0x403) == fault(Reason.ASSIGNED, 1, start)
    assert host.events() == [fault_event(0x403, Reason.ASSIGNED)]
    assert tally(host) == (10, 1, 0, 0, 0, 10)


@pytest.mark.parametrize("policy", ["kmap", "upstream"])
def test_frame_with_the_c_bit(backend: str, policy: str) -> None:
    """rmp §1.6: the C-bit is taken out of an address first: with five levels the room has frames that hold it, whose
    entry, and so whose owner, is that of the frame without it."""
    host = Host(backend, dataclasses.replace(SNP_LA57, c_bit=1 << 51), policy=policy)
    host.assign(0x403)
    for pfn, owner in ((0x403 | 1 << 39, 1), (0x404 | 1 << 39, 0)):
        result = host.do("kvm_write_guest", pfn=pfn)
        if policy == "kmap":
            assert result == (fault(Reason.ASSIGNED, 1, 0xFFA0_0000_0000_0000) if owner else ALLOWED_4K)
        else:
            assert result.reason == Reason.NOT_PRESENT
    assert tally(host)[:3] == ((2, 1, 0) if policy == "kmap" else (2, 1, 1))


def test_kmap_leaves_the_hosts_own_accesses(backend: str) -> None:
    """host §6.3: host_read and host_write go through the direct map under kmap too; no window is opened."""
    host = Host(backend, SNP, policy="kmap")
    assert private(host, 0x403) == 0
    assert host.do("host_write", pfn=0x405) == fault(Reason.NEIGHBOUR, 2, va(0x405))
    assert host.do("host_read", pfn=0x403) == ALLOWED_2M
    assert tally(host) == (2, 0, 1, 0, 0, 0)


def test_window_without_an_rmp(backend: str) -> None:
    """host §6.3: a write is checked as in section 1 step 3: only where the machine has an RMP."""
    host = Host(backend, SMALL, policy="kmap")
    assert host.do("kvm_write_guest", pfn=0x403) == ALLOWED_4K
    assert tally(host) == (1, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("hardware", ["milan", "turin"])
def test_window_of_a_page_in_use(backend: str, hardware: str) -> None:
    """host §6.3, rmp §3.2: "in use" is checked for the page itself, unless HvInUseWrAllowed."""
    host = Host(backend, SNP, policy="kmap", hardware=hardware)
    assert host.do("VMRUN", vmcb=0x400000, asid=1, plain=1).kind == Kind.ALLOWED
    assert host.do("kvm_write_guest", pfn=0x401) == ALLOWED_4K
    refused = fault(Reason.IN_USE, 1, 0xFFFF_C900_0000_0000)
    assert host.do("kvm_write_guest", pfn=0x400) == (refused if hardware == "milan" else ALLOWED_4K)


@pytest.mark.parametrize("policy", ["kmap", "upstream"])
def test_window_on_a_reserved_segment(backend: str, policy: str) -> None:
    """host §6.3: section 1 step 3 gives 0xb there, window or not; a 4K write fails too, so it is the owner's."""
    host = Host(backend, RESERVED_SEGMENT, policy=policy, **SEGMENTED_PART)
    window = policy == "kmap"
    expected = fault(Reason.RESERVED, 1 if window else 2, 0xFFFF_C900_0000_0000 if window else va(0x40201), 0xB)
    assert host.do("kvm_write_guest", pfn=0x40201) == expected
    assert host.do("kvm_read_guest", pfn=0x40201).kind == Kind.ALLOWED
    assert tally(host) == (2, 1, 0, 0, 0, 2 * window)


# 6.3: the victim


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("policy", UNMAPS)
def test_missing_because_it_is_private(backend: str, policy: str, name: str) -> None:
    """host §6.3: a page that is missing because it is private counts for its owner, for reads too; one that was left
    unmapped without being assigned is a neighbour."""
    host = Host(backend, SNP, policy=policy)
    assert private(host, 0x403) == 0
    host.call("inject", code=FAIL_PERMISSION)
    assert private(host, 0x404) == FAIL_PERMISSION
    value = 2 if name in WRITES else 0
    host.events()
    assert host.do(name, pfn=0x403) == fault(Reason.NOT_PRESENT, 1, va(0x403), value)
    assert tally(host)[:3] == (1, 1, 0)
    assert host.do(name, pfn=0x404) == fault(Reason.NOT_PRESENT, 1, va(0x404), value)
    assert tally(host)[:3] == (2, 1, 1)
    assert host.events() == [fault_event(pfn, Reason.NOT_PRESENT, value) for pfn in (0x403, 0x404)]
    assert host.do(name, pfn=0x405) == ALLOWED_4K


@pytest.mark.parametrize("name", WRITES)
def test_read_only(backend: str, name: str) -> None:
    """host §6.3: READ_ONLY of an unassigned page: a neighbour; of an assigned one: the owner."""
    host = Host(backend, SNP)
    assert host.call("set_memory_ro", pfn=0x400, pages=0x200) == 0
    host.assign(0x403)
    for pfn, counted in ((0x405, (1, 0, 1)), (0x403, (2, 1, 1))):
        assert host.do(name, pfn=pfn) == fault(Reason.READ_ONLY, 2, va(pfn), 3)
        assert tally(host)[:3] == counted


def test_inner_page_of_a_2m_entry_is_its_owners(backend: str) -> None:
    """host §6.3, rmp §3.1: an inner entry has assigned 1, so a 4K write is refused as well."""
    host = Host(backend, SNP)
    assert private(host, 0x400, level=2) == 0
    assert host.do("host_write", pfn=0x5FF) == fault(Reason.ASSIGNED, 2, va(0x5FF))
    assert tally(host) == (1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize("hardware", ["milan", "turin"])
def test_in_use_by_vmrun(backend: str, hardware: str) -> None:
    """host §6.3: the page in use is its owner's, its neighbours by the erratum are not; missing pages likewise."""
    host = Host(backend, SNP, hardware=hardware, kernel="6.13")
    assert host.do("VMRUN", vmcb=0x400000, asid=1, plain=1).kind == Kind.ALLOWED
    refused = hardware == "milan"
    for pfn in (0x400, 0x401):
        assert host.do("host_write", pfn=pfn) == (fault(Reason.IN_USE, 2, va(pfn)) if refused else ALLOWED_2M)
    assert tally(host)[:3] == ((2, 1, 1) if refused else (2, 0, 0))
    assert host.call("set_direct_map_invalid_noflush", pfn=0x400) == 0
    assert host.do("host_read", pfn=0x400).reason == Reason.NOT_PRESENT
    assert tally(host)[:3] == ((3, 2, 1) if refused else (3, 0, 1))


def test_without_an_rmp(backend: str) -> None:
    """host §6.3: without an RMP every victim is a neighbour."""
    host = Host(backend, SMALL, policy="fault-split")
    assert host.call("set_memory_ro", pfn=0x403, pages=1) == 0
    assert host.do("host_write", pfn=0x403) == fault(Reason.READ_ONLY, 1, va(0x403), 3)
    assert host.do("host_read", pfn=0x5000).reason == Reason.NOT_PRESENT
    assert tally(host) == (2, 0, 2, 0, 0, 0)


@pytest.mark.parametrize("policy", ["upstream", "fault-split"])
def test_uncovered_page(backend: str, policy: str) -> None:
    """rmp §3.1: a page that is not covered is the hypervisor's by any mapping, so no entry makes it fault; missing, it
    is a neighbour (host §6.3)."""
    host = Host(backend, SNP_TIGHT, policy=policy)
    host.assign(0x3E03)
    host.events()
    assert host.do("host_write", pfn=0x3F80) == ALLOWED_2M
    assert host.events() == []
    assert host.do("host_write", pfn=NOT_VALID).reason == Reason.NOT_PRESENT
    assert tally(host) == (2, 0, 1, 0, 0, 0)


# 6.3: the fault handler


def faulting(backend: str, map_: MachineMap = SNP, **options: Any) -> Host:
    return Host(backend, map_, policy="fault-split", **options)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("kernel", ["6.12", "6.15"])
def test_handler_splits_for_a_neighbour(backend: str, name: str, kernel: str) -> None:
    """host §6.3 step 2: the leaf's level is above the entry's: set_memory_4k for the page, and the access is made
    again; the fault is counted, and its event comes before what the handler does."""
    host = faulting(backend, kernel=kernel)
    assert private(host, 0x403) == 0
    entry = host.rmp(0x403)
    host.events()
    assert host.do(name, pfn=0x405) == ALLOWED_4K
    events = host.events()
    assert events[0] == fault_event(0x405, Reason.NEIGHBOUR)
    assert kinds(events[1:4]) == SPLIT_EVENTS
    mark = SOFTW3 if kernel == "6.15" else 0
    assert events[4:] == ([Event(EventKind.FLUSH_PAGES, a=va(0x405), b=1)] if mark else [])
    assert host.leaf(0x405) == (1, 0x405000 | SMALL_LEAF | mark)
    assert host.leaf(0x403) == (1, 0x403000 | SMALL_LEAF)
    assert host.rmp(0x403) == entry
    assert tally(host) == (1, 0, 1, 1, 0, 0)
    # and once it is split, no neighbour faults any more
    assert host.do(name, pfn=0x406) == ALLOWED_4K
    assert host.events() == []


def test_handler_in_a_1g_page(backend: str) -> None:
    """host §6.3 step 2: a 1 GiB leaf is split down to 4K at once."""
    host = faulting(backend, SNP_HOLE)
    host.assign(0x40001)
    host.events()
    assert host.do("host_write", pfn=0x40005) == ALLOWED_4K
    assert kinds(host.events()) == [EventKind.FAULT, *SPLIT_EVENTS, *SPLIT_EVENTS]
    assert tally(host) == (1, 0, 1, 1, 0, 0)


@pytest.mark.parametrize("name", WRITES)
def test_handler_takes_the_page(backend: str, name: str) -> None:
    """host §6.3: step 2, and at the next try step 5: rmp_make_shared: the page is taken from whoever has it."""
    host = faulting(backend)
    host.assign(0x403)
    host.events()
    assert host.do(name, pfn=0x403) == ALLOWED_4K
    events = host.events()
    assert kinds(events) == [EventKind.FAULT, *SPLIT_EVENTS, EventKind.FAULT, UPDATE]
    assert events[0] == events[4] == fault_event(0x403, Reason.ASSIGNED)
    assert events[5] == Event(UPDATE, a=0x403000)
    assert host.rmp(0x403)[0] == 0
    assert tally(host) == (1, 2, 0, 2, 1, 0)


def test_handler_smashes_a_2m_entry(backend: str) -> None:
    """host §6.3 step 4: psmash of the 2 MiB-aligned frame, then step 5 in the same fault; the 511 other pages are then
    4K entries, for which the next fault splits (step 2)."""
    host = faulting(backend)
    host.assign(0x400, size=1)
    host.events()
    assert host.do("host_write", pfn=0x403) == ALLOWED_4K
    events = host.events()
    assert kinds(events) == [EventKind.FAULT, EventKind.PSMASH, UPDATE, EventKind.FAULT, *SPLIT_EVENTS]
    assert events[:4] == [
        fault_event(0x403, Reason.ASSIGNED),
        Event(EventKind.PSMASH, a=0x400000),
        Event(UPDATE, a=0x403000),
        fault_event(0x403, Reason.NEIGHBOUR),
    ]
    assert host.rmp(0x403)[0] == 0
    assert host.rmp(0x404)[0] & (ASSIGNED | SIZE_2M) == ASSIGNED
    assert tally(host) == (1, 1, 1, 2, 1, 0)


def test_handler_2m_entry_in_a_1g_page(backend: str) -> None:
    """host §6.3 step 2: 1 GiB is above 2 MiB, so the split comes first; then psmash and rmp_make_shared."""
    host = faulting(backend, SNP_HOLE)
    host.assign(0x40000, size=1)
    host.events()
    assert host.do("host_write", pfn=0x40003) == ALLOWED_4K
    assert kinds(host.events()) == [
        EventKind.FAULT,
        *SPLIT_EVENTS,
        *SPLIT_EVENTS,
        EventKind.FAULT,
        EventKind.PSMASH,
        UPDATE,
    ]
    assert tally(host) == (1, 2, 0, 2, 1, 0)


def test_handler_looks_up_through_rmpread(backend: str) -> None:
    """host §6.3 step 1: snp_lookup_rmpentry as the kernel has it: from 6.14 on with RMPREAD."""
    host = faulting(backend, kernel="6.14", hardware="turin")
    host.assign(0x403)
    host.events()
    assert host.do("host_write", pfn=0x405) == ALLOWED_4K
    events = host.events()
    assert kinds(events) == [EventKind.FAULT, EventKind.RMPREAD, EventKind.RMPREAD, *SPLIT_EVENTS]
    assert [event.a for event in events[1:3]] == [0x405000, 0x400000]
    assert host.counters()["rmpread"] == 2


@pytest.mark.parametrize("hardware", ["milan", "turin"])
def test_handler_step_1_fails(backend: str, hardware: str) -> None:
    """host §6.3 step 1: the look-up of a page that is not covered fails: the fault stays.  (Such a page faults only if
    its leaf maps another one.)"""
    first = Host(backend, SNP_TIGHT, hardware=hardware, kernel="6.14")
    assert first.call("set_memory_4k", pfn=0x3F80, pages=1) == 0
    first.assign(0x403)
    state = with_leaves(first.state(), {(0, 1, 0x3F80000): 0x403000 | SMALL_LEAF})
    host = continued(first, state, policy="fault-split", hardware=hardware)
    assert host.do("host_write", pfn=0x3F80) == fault(Reason.ASSIGNED, 1, va(0x3F80))
    events = host.events()
    assert events[0] == fault_event(0x3F80, Reason.ASSIGNED)
    assert {event.kind for event in events[1:]} == ({EventKind.RMPREAD} if hardware == "turin" else set())
    assert host.rmp(0x403)[0] & ASSIGNED
    assert tally(host)[0] == 1
    assert tally(host)[3:] == (0, 0, 0)


def test_handler_step_2_fails(backend: str) -> None:
    """host §6.3 step 2: an error of set_memory_4k: the fault stays; it is there once, and the next access may do."""
    host = faulting(backend)
    host.assign(0x403)
    host.call("fail_alloc")
    host.events()
    assert host.do("host_write", pfn=0x405) == fault(Reason.NEIGHBOUR, 2, va(0x405))
    assert host.events() == [fault_event(0x405, Reason.NEIGHBOUR), ALLOC_FAIL]
    assert tally(host) == (1, 0, 1, 0, 0, 0)
    assert host.do("host_write", pfn=0x405) == ALLOWED_4K
    assert tally(host) == (2, 0, 2, 1, 0, 0)


def test_handler_step_2_fails_half_way(backend: str) -> None:
    """host §6.3 step 2: the second split of a 1 GiB leaf fails: the first stays, the fault too, with the level that the
    leaf had."""
    host = faulting(backend, SNP_HOLE)
    host.assign(0x40001)
    host.call("fail_alloc", skip=1)
    host.events()
    assert host.do("host_write", pfn=0x40005) == fault(Reason.NEIGHBOUR, 3, va(0x40005))
    assert kinds(host.events())[:5] == [EventKind.FAULT, *SPLIT_EVENTS, EventKind.ALLOC_FAIL]
    assert host.leaf(0x40005)[0] == 2
    assert tally(host) == (1, 0, 1, 0, 0, 0)


def test_handler_step_3(backend: str) -> None:
    """host §6.3 step 3: a page in use is not assigned: after the split there is nothing to repair."""
    host = faulting(backend)
    assert host.do("VMRUN", vmcb=0x403000, asid=1, plain=1).kind == Kind.ALLOWED
    host.events()
    assert host.do("host_write", pfn=0x403) == fault(Reason.IN_USE, 1, va(0x403))
    assert kinds(host.events()) == [EventKind.FAULT, *SPLIT_EVENTS, EventKind.FAULT]
    assert tally(host) == (1, 2, 0, 1, 0, 0)
    assert host.do("host_write", pfn=0x403) == fault(Reason.IN_USE, 1, va(0x403))
    assert host.events() == [fault_event(0x403, Reason.IN_USE)]
    assert tally(host) == (2, 3, 0, 1, 0, 0)


def test_handler_helps_against_the_erratum(backend: str) -> None:
    """host §6.3 step 2, rmp §3.7: a neighbour of an aligned page in use gets a leaf of its own."""
    host = faulting(backend)
    assert host.do("VMRUN", vmcb=0x400000, asid=1, plain=1).kind == Kind.ALLOWED
    assert host.do("host_write", pfn=0x405) == ALLOWED_4K
    assert tally(host) == (1, 0, 1, 1, 0, 0)


def test_handler_step_3_at_2m(backend: str) -> None:
    """host §6.3 steps 2 and 3: an unassigned page under an entry that says 2M (stored by hand): no split, not
    assigned, the fault stays."""
    host = faulting(backend)
    host.machine.write_rmp(0x400, SIZE_2M, 0)
    host.machine.write_rmp(0x403, ASSIGNED, 0)
    assert host.do("host_write", pfn=0x405) == fault(Reason.NEIGHBOUR, 2, va(0x405))
    assert host.events() == [fault_event(0x405, Reason.NEIGHBOUR)]
    assert tally(host) == (1, 0, 1, 0, 0, 0)


def test_handler_step_4_fails(backend: str) -> None:
    """host §6.3 step 4: psmash() that does not answer 0: the fault stays, the entry too; it is not repeated."""
    host = faulting(backend)
    host.assign(0x400, size=1)
    host.call("inject", code=FAIL_INUSE)
    host.events()
    assert host.do("host_write", pfn=0x403) == fault(Reason.ASSIGNED, 2, va(0x403))
    assert host.events() == [
        fault_event(0x403, Reason.ASSIGNED),
        Event(EventKind.PSMASH, code=FAIL_INUSE, a=0x400000),
    ]
    assert tally(host) == (1, 1, 0, 0, 0, 0)
    assert host.do("host_write", pfn=0x403) == ALLOWED_4K
    immutable = faulting(backend)
    immutable.assign(0x400, size=1, immutable=1)
    assert immutable.do("host_write", pfn=0x403).kind == Kind.FAULT
    assert immutable.events()[-1] == Event(EventKind.PSMASH, code=PSMASH_REFUSED, a=0x400000)
    assert immutable.rmp(0x400)[0] & SIZE_2M
    assert tally(immutable) == (1, 1, 0, 0, 0, 0)


def test_handler_step_5_fails(backend: str) -> None:
    """host §6.3 step 5: rmp_make_shared of a firmware page fails, with the policy's complaint: the fault stays."""
    host = faulting(backend)
    host.assign(0x403, asid=0, immutable=1)
    host.events()
    assert host.do("host_write", pfn=0x403) == fault(Reason.ASSIGNED, 1, va(0x403))
    events = host.events()
    assert kinds(events) == [
        EventKind.FAULT,
        *SPLIT_EVENTS,
        EventKind.FAULT,
        UPDATE,
        FAILED,
        EventKind.DUMP_ENTRY,
    ]
    assert events[5] == Event(UPDATE, code=FAIL_PERMISSION, a=0x403000)
    assert host.rmp(0x403)[0] & ASSIGNED
    assert tally(host) == (1, 2, 0, 1, 0, 0)


def test_handler_step_5_fails_after_step_4(backend: str) -> None:
    """host §6.3: what psmash did stays when rmp_make_shared fails; nothing is counted as forced."""
    host = faulting(backend)
    host.assign(0x400, size=1)
    host.call("inject", code=0)
    host.call("inject", code=FAIL_PERMISSION)
    assert host.do("host_write", pfn=0x403) == fault(Reason.ASSIGNED, 2, va(0x403))
    assert host.rmp(0x403)[0] & (ASSIGNED | SIZE_2M) == ASSIGNED
    assert tally(host) == (1, 1, 0, 0, 0, 0)


def test_handler_repeats_as_rmpupdate_does(backend: str) -> None:
    """host §6.3 step 5 is rmpupdate() of the policy: FAIL_OVERLAP is repeated and counted."""
    host = faulting(backend)
    host.call("set_memory_4k", pfn=0x403, pages=1)
    host.assign(0x403)
    host.call("inject", code=FAIL_OVERLAP, count=3)
    assert host.do("host_write", pfn=0x403) == ALLOWED_4K
    assert host.counters()["rmpupdate_retries"] == 3
    assert tally(host) == (1, 1, 0, 1, 1, 0)


def test_handler_is_for_rmp_faults_only(backend: str) -> None:
    """host §6.3: a #PF without bit 31 does not go to it: not present, read-only, a reserved segment; and not of
    access."""
    host = faulting(backend)
    host.assign(0x403)
    assert host.call("set_memory_ro", pfn=0x400, pages=0x200) == 0
    assert host.call("set_memory_np", pfn=0x600, pages=0x200) == 0
    host.events()
    assert host.do("host_write", pfn=0x403) == fault(Reason.READ_ONLY, 2, va(0x403), 3)
    assert host.do("host_write", pfn=0x603) == fault(Reason.NOT_PRESENT, 2, va(0x603), 2)
    assert host.do("access", who=0, access=1, pa=0x405000, level=2).reason == Reason.NEIGHBOUR
    assert set(kinds(host.events())) == {EventKind.FAULT}
    assert tally(host) == (2, 1, 1, 0, 0, 0)
    host = faulting(backend, RESERVED_SEGMENT, **SEGMENTED_PART)
    assert host.do("host_write", pfn=0x40201) == fault(Reason.RESERVED, 2, va(0x40201), 0xB)
    assert host.events() == [fault_event(0x40201, Reason.RESERVED, 0xB)]
    assert tally(host) == (1, 1, 0, 0, 0, 0)


def test_handler_does_not_see_reads(backend: str) -> None:
    """rmp §3.4: reads never fault, so nothing is repaired."""
    host = faulting(backend)
    host.assign(0x403)
    for name in ("host_read", "kvm_read_guest"):
        assert host.do(name, pfn=0x403) == ALLOWED_2M
    assert tally(host) == (2, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy not in ("fault-split", "map-4k")])
def test_no_other_policy_has_a_handler(backend: str, policy: str) -> None:
    """host §6.3: under fault-split only."""
    host = Host(backend, SNP, policy=policy)
    host.assign(0x403)
    host.events()
    assert host.do("host_write", pfn=0x405) == fault(Reason.NEIGHBOUR, 2, va(0x405))
    assert host.events() == [fault_event(0x405, Reason.NEIGHBOUR)]
    assert tally(host) == (1, 0, 1, 0, 0, 0)


# 6.5: census and counters


def counted_census(state: State) -> dict[str, int]:
    """What host §6.5 says of a state's leaves in the window of the direct map."""
    census = {"4k": 0, "2m": 0, "1g": 0, "missing": 0}
    for (level, _), raw in leaves(state).items():
        if raw & 1:
            census[("4k", "2m", "1g")[level - 1]] += 1
        else:
            census["missing"] += 512 ** (level - 1)
    return census


def test_census(backend: str) -> None:
    """host §6.5: present leaves of each size, and 4K frames under leaves that are not present; holes count nowhere."""
    host = Host(backend, SNP_HOLE, policy="unmap-flush", kernel="6.13")
    boot = host.machine.census()
    assert boot["1g"] + boot["2m"] / 512 + boot["4k"] / 512 / 512 == 4
    assert boot["missing"] == 0
    assert private(host, 0x40003) == 0
    now = boot | {"1g": boot["1g"] - 1, "2m": boot["2m"] + 511, "4k": boot["4k"] + 511, "missing": 1}
    assert host.machine.census() == now
    assert private(host, 0x40200, level=2) == 0
    now |= {"2m": now["2m"] - 1, "missing": 513}
    assert host.machine.census() == now
    assert host.call("set_direct_map_valid_noflush", pfn=0x80000, pages=1 << 18, valid=0) == 0
    now |= {"1g": now["1g"] - 1, "missing": 513 + 512 * 512}
    assert host.machine.census() == now == counted_census(host.state())


def test_census_of_the_direct_map_only(backend: str) -> None:
    """host §6.5: the high mapping does not count."""
    host = Host(backend, SNP_IMAGE)
    assert host.machine.census() == {"4k": 0, "2m": 32, "1g": 0, "missing": 0}
    assert len(leaves(host.state(), 1)) > 0


def test_kernel_counts_are_not_the_census(backend: str) -> None:
    """direct-map §2.1.5: a page that was visited twice at boot counts twice for the kernel, once in the census."""
    host = Host(backend, SNP)
    assert host.counts() == (0, 33, 0)
    assert host.machine.census()["2m"] == 32


def test_counters_are_the_states(backend: str) -> None:
    """host §6.5: all of COUNTERS."""
    host = faulting(backend)
    assert private(host, 0x403) == 0
    host.do("host_write", pfn=0x403)
    host.do("host_write", pfn=0x600)
    counters = host.machine.counters()
    assert tuple(counters) == COUNTERS
    assert counters == host.state().counters
    assert counters["table_pages"] == 4


# state dumps


DUMP_MAP = {
    "format": "rmpcore-machine-map",
    "version": 1,
    "name": "small",
    "e820": [["0x0", "0x4000000", "usable"], ["0x4000000", "0x100000", "reserved"]],
    "rmp": {"base": "0x4000000", "end": "0x40fffff"},
}


class CommandLine:
    """The command line in a folder with a small map."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        monkeypatch.chdir(folder)
        (folder / "map.json").write_text(json.dumps(DUMP_MAP), encoding="utf-8")
        self.folder = folder

    def trace(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def __call__(self, *args: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["rmpcore", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = self._capsys.readouterr()
        return int(caught.value.code or 0), out, err


@pytest.fixture
def rmpcore(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("policy", POLICIES)
def test_dump_keeps_its_policy(rmpcore: CommandLine, backend: str, policy: str) -> None:
    """formats: half a trace, saved, and the other half from there, under the dump's policy without its being named."""
    lines = [
        "rmp_make_private pfn=0x1003 gpa=0x1000 level=4K asid=5",
        "host_write pfn=0x1005",
        "kvm_write_guest pfn=0x1005",
        "rmp_make_private pfn=0x1400 gpa=0x200000 level=2M asid=5",
        "rmp_make_shared pfn=0x1003 level=4K",
        "host_read pfn=0x1003",
        "rmp_make_shared pfn=0x1400 level=2M",
    ]
    rmpcore.trace("one.trace", *lines[:3])
    rmpcore.trace("two.trace", *lines[3:])
    rmpcore.trace("all.trace", *lines)
    given = ["--backend", backend, "--policy", policy]
    assert rmpcore("run", "one.trace", "--map", "map.json", *given, "--dump", "one.json")[0] == 0
    assert json.loads((rmpcore.folder / "one.json").read_text(encoding="utf-8"))["policy"] == policy
    status, out, err = rmpcore("run", "two.trace", "--state", "one.json", "--check", "--dump", "two.json", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["policy"] == policy
    assert rmpcore("run", "all.trace", "--map", "map.json", *given, "--dump", "all.json")[0] == 0
    assert (rmpcore.folder / "two.json").read_bytes() == (rmpcore.folder / "all.json").read_bytes()
    assert rmpcore("run", "two.trace", "--state", "one.json", *given)[0] == 0


def test_dump_refuses_another_policy(rmpcore: CommandLine) -> None:
    """formats: what is given beside a dump has to say the same as the dump."""
    rmpcore.trace("t.trace", "psmash pfn=0x1000")
    assert rmpcore("run", "t.trace", "--map", "map.json", "--policy", "kmap", "--dump", "d.json")[0] == 0
    for policy in ("upstream", "none"):
        status, out, err = rmpcore("run", "t.trace", "--state", "d.json", "--policy", policy)
        assert (status, out) == (2, "")
        assert err == f"rmpcore: d.json: the state is of a machine with policy kmap, not {policy}\n"


def test_dump_with_an_unknown_policy(rmpcore: CommandLine) -> None:
    """formats, host §6: one line with the file's name."""
    rmpcore.trace("t.trace", "psmash pfn=0x1000")
    assert rmpcore("run", "t.trace", "--map", "map.json", "--dump", "d.json")[0] == 0
    path = rmpcore.folder / "d.json"
    dump = json.loads(path.read_text(encoding="utf-8"))
    assert dump["policy"] == "upstream"
    path.write_text(json.dumps(dump | {"policy": "nonsense"}), encoding="utf-8")
    status, out, err = rmpcore("run", "t.trace", "--state", "d.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("rmpcore: d.json: ")
    assert "nonsense" in err
    status, out, err = rmpcore("run", "t.trace", "--map", "map.json", "--policy", "nonsense")
    assert (status, out) == (2, "")


# both machines on random traces


RANDOM = build_map(
    [(0, 12 * MIB)],
    e820=[(0, 12 * MIB, 1), (16 * MIB, MIB, 2)],
    rmp=(16 * MIB, 16 * MIB + 0x4000 + 16 * 0xC00 - 1),
    rmp_probed=False,
)
RANDOM_GIGA = build_map(
    [(0, 2 * GIB)],
    e820=[(0, 2 * GIB, 1), (2 * GIB, 9 * MIB, 2)],
    rmp=(2 * GIB, 2 * GIB + 0x4000 + 16 * 0x80000 - 1),
    rmp_probed=False,
)
"""Of both the RMP covers memory and nothing else, so that a state of it is short."""
RANDOM_FRAMES = (0x400, 0x400, 0x401, 0x403, 0x5FF, 0x600, 0x600, 0x605, 0x7FF, 0x800, 0xBFF)
CHUNK = 25


def random_host_ops(rng: random.Random, base: int, ops: int) -> list[Op]:
    """Host-layer ops and accesses on a few pages of three 2 MiB regions, which collide; with codes, failing allocations
    and pages in use."""
    frames = [base + pfn for pfn in RANDOM_FRAMES]
    made: list[Op] = [make_op("SNP_INIT")]

    def pfn(level: int = 1) -> int:
        at = rng.choice(frames)
        return at & ~0x1FF if level == 2 and rng.random() < 0.9 else at

    def update(name: str) -> Op:
        level = rng.choice((1, 1, 1, 1, 2))
        return make_op(name, pfn=pfn(level), level=level)

    def make_private() -> Op:
        level = rng.choice((1, 1, 1, 1, 2))
        args = {"gpa": rng.choice((0x7000, 0x20_0000)), "asid": rng.choice((5, 5, 6)), "level": level}
        return make_op("rmp_make_private", pfn=pfn(level), immutable=int(rng.random() < 0.05), **args)

    def whole() -> list[Op]:
        """A region taken back, whatever it was; then, it may be, a 2 MiB page of a guest, and something on top."""
        head = pfn() & ~0x1FF
        inside = sorted({at for at in frames if at & ~0x1FF == head} | {head})
        back = [make_op("SNP_PAGE_RECLAIM", pa=head << 12 | 1), make_op("rmp_make_shared", pfn=head, level=2)]
        back += [make_op("snp_reclaim_pages", pfn=at, pages=1) for at in inside]
        private = make_op("rmp_make_private", pfn=head, gpa=0x20_0000, level=2, asid=5)
        on_top = rng.choice(("psmash", "host_write", "kvm_write_guest", "snp_lookup_rmpentry"))
        return back if rng.random() < 0.4 else [*back, private, make_op(on_top, pfn=head)]

    choices: list[tuple[float, Any]] = [
        (5, lambda: [make_private()]),
        (5, lambda: [update("rmp_make_shared")]),
        (1, lambda: [update("rmp_make_firmware")]),
        (1.2, whole),
        (1.5, lambda: [make_op("psmash", pfn=pfn(2))]),
        (1, lambda: [make_op("rmp_mark_pages_firmware", pfn=pfn(), pages=rng.choice((1, 1, 2, 3)))]),
        (1, lambda: [make_op("snp_reclaim_pages", pfn=pfn(), pages=rng.choice((1, 1, 2, 3)))]),
        (6, lambda: [make_op(rng.choice(ACCESSES[1::2]), pfn=pfn() ^ rng.choice((0, 0, 2)))]),
        (1, lambda: [make_op(rng.choice(ACCESSES[::2]), pfn=pfn())]),
        (0.5, lambda: [make_op(rng.choice(ACCESSES), pfn=rng.choice((base + 0xC00, 0x100000, ROOM)))]),
        (1, lambda: [make_op("inject", code=rng.choice((0, 1, 2, 3, 3, 4, 4)), count=rng.choice((1, 1, 2)))]),
        (1, lambda: [make_op("fail_alloc", skip=rng.choice((0, 0, 1, 2)), count=rng.choice((1, 1, 2)))]),
        (0.2, lambda: [make_op("VMRUN", vmcb=pfn() << 12, asid=1, plain=1)]),
        (0.6, lambda: [make_op("VMEXIT", vmcb=at << 12) for at in frames]),
        (0.3, lambda: [make_op("adjust_direct_map", pfn=pfn(), level=1)]),
        (0.3, lambda: [make_op(rng.choice(("set_memory_ro", "set_memory_rw")), pfn=pfn(), pages=1)]),
        (0.3, lambda: [make_op("set_direct_map_default_noflush", pfn=pfn())]),
        (
            0.2,
            lambda: [
                make_op("rmp_make_private", pfn=rng.choice((base + 0xC00, 0x1200, NOT_VALID)), gpa=0, level=1, asid=5)
            ],
        ),
        (0.2, lambda: [make_op("snp_lookup_rmpentry", pfn=pfn())]),
    ]
    weights = [weight for weight, _ in choices]
    while len(made) < ops:
        made += rng.choices(choices, weights)[0][1]()
    return made[:ops]


def step(native: MachineLike, oracle: MachineLike, ops: list[Op], done: int) -> list[Result]:
    """Do ops on both: results, events, states, census and counters have to be equal.  The results."""
    array = pack_ops(ops)
    mine, theirs = list(unpack_results(native.run(array))), list(unpack_results(oracle.run(array)))
    where = f"after {done} ops, in {[str(op) for op in ops]}"
    assert mine == theirs, where
    events = [[Event(*record) for record in machine.take_events().tolist()] for machine in (native, oracle)]
    assert events[0] == events[1], where
    state, other = native.state(), oracle.state()
    assert state == other, [where, *list(diff_states(state, other))[:20]]
    assert native.counters() == oracle.counters() == state.counters
    assert native.census() == oracle.census() == counted_census(state)
    return mine


@pytest.mark.parametrize(("map_", "length"), [(RANDOM, 1000), (RANDOM_GIGA, 500)], ids=["2M", "1G"])
@pytest.mark.parametrize("policy", POLICIES)
def test_random_traces(policy: str, map_: MachineMap, length: int) -> None:
    """host §6: native and oracle agree in every result, event and state; census and counters are those of the state;
    host_accesses less the faults that stayed were done (§6.5)."""
    if policy == "map-4k":
        map_ = RANDOM  # for 2 GiB of small pages the oracle takes too long
    rng = random.Random(f"{policy} {length}")
    options: dict[str, Any] = {"kernel": rng.choice(("6.12", "6.15")), "hardware": rng.choice(("milan", "turin"))}
    native, oracle = (Machine(map_, backend=backend, policy=policy, **options) for backend in BACKENDS)
    for machine in (native, oracle):
        machine.record_events(True)
    ops = random_host_ops(rng, 0x40000 if map_ is RANDOM_GIGA else 0, length)
    results: list[Result] = []
    for at in range(0, len(ops), CHUNK):
        results += step(native, oracle, ops[at : at + CHUNK], at)
    for machine in (native, oracle):
        assert machine.validate() is None
    outcomes = Counter(result.kind for op, result in zip(ops, results, strict=True) if op.op in ACCESS_CODES)
    counters = native.counters()
    faults = counters["host_faults_owner"] + counters["host_faults_neighbour"]
    assert outcomes[Kind.ALLOWED] + outcomes[Kind.FAULT] == counters["host_accesses"]
    assert outcomes[Kind.ALLOWED] == counters["host_accesses"] - (faults - counters["fault_repairs"])
    # the trace gets somewhere
    assert outcomes[Kind.ALLOWED] > length // 50
    assert outcomes[Kind.FAULT] > length // 100
    assert counters["rmpupdate"] > length // 4
