"""rmp §1.7: the segmented RMP: where an entry is, what is covered, what is refused; and the kernels' probing."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from machines import (
    ASSIGNED,
    EFAULT,
    FAIL_INPUT,
    FAIL_OVERLAP,
    FAIL_PERMISSION,
    GIB,
    IMMUTABLE,
    LOCK,
    MIB,
    PSMASH_REFUSED,
    SIZE_2M,
    SMALL_CBIT,
    SNP,
    SUCCESS,
    VALIDATED,
    Host,
    build_map,
    changed,
    continued,
)

from rmpcore.machine import MachineError, RmpError
from rmpcore.maps import MachineMap, MapError, SegmentedRmp
from rmpcore.ops import AccessKind, EventKind, Kind, Reason, Result, Who
from rmpcore.page_state import PageState
from rmpcore.state import state_from_json, state_to_json

RANGES = json.loads((Path(__file__).parent / "data/machines/rmp-ranges.json").read_text(encoding="utf-8"))
TIB = 1 << 40
ASID_5 = 5 << 51
FIRMWARE_PAGE = LOCK | IMMUTABLE | ASSIGNED
BASE = 64 * MIB
TABLE_0 = 65 * MIB
TABLE_1 = 69 * MIB
TABLE_2 = 73 * MIB
SWITCHES = {"segment_min": 30}
PER_SEGMENT = GIB >> 12
ALLOWED = Result(0, Kind.ALLOWED)


def cfg(shift: int) -> int:
    """RMP_CFG: enabled, segments of 2 to this power bytes."""
    return 1 | shift << 8


def seg_map(*rst: int, shift: int = 30, **fields: Any) -> MachineMap:
    """64 MiB at 0, 64 MiB at 1 GiB, and 16 MiB for the RMP from 64 MiB on; what is left is soft reserved."""
    fields = {"segmented": SegmentedRmp(BASE, cfg(shift), rst)} | fields
    return build_map(
        [(0, 64 * MIB), (GIB, 64 * MIB)],
        e820=[
            (0, 64 * MIB, 1),
            (64 * MIB, 16 * MIB, 2),
            (80 * MIB, GIB - 80 * MIB, 0xEFFFFFFF),
            (GIB, 64 * MIB, 1),
            (GIB + 64 * MIB, GIB - 64 * MIB, 0xEFFFFFFF),
        ],
        **fields,
    )


def free_map(*rst: int, shift: int = 30, **fields: Any) -> MachineMap:
    """The same, not probed."""
    return seg_map(*rst, shift=shift, rmp_probed=False, **fields)


TWO = seg_map(TABLE_0 | 1, TABLE_1 | 1)
"""Two segments of 1 GiB, each covered throughout: frames 0 to 0x7ffff."""


def host_of(backend: str, map_: MachineMap = TWO, **options: Any) -> Host:
    """A part with segments, down to 1 GiB, and a kernel that knows them."""
    switches = SWITCHES | options.pop("switches", {})
    return Host(backend, map_, **({"kernel": "6.14", "hardware": "turin", "switches": switches} | options))


def is_covered(host: Host, pfn: int) -> bool:
    """Whether a frame has an entry; three ways to ask that have to agree."""
    try:
        host.rmp(pfn)
    except IndexError:
        covered = False
    else:
        covered = True
    state = host.call("page_state", pfn=pfn)
    assert (state != PageState.DEFAULT) == covered
    assert (host.update(pfn) == SUCCESS) == covered
    return covered


# --- where an entry is ---


def entry_address(rmp: SegmentedRmp, address: int) -> int | None:
    """rmp §1.7 "lookup", as the specification has it."""
    index, offset = address >> rmp.shift, address & (1 << rmp.shift) - 1
    for number, base, covered in rmp.segments():
        if number == index and offset < covered:
            return base + (offset >> 12) * 16
    return None


def test_example_of_the_manual(backend: str) -> None:
    """rmp §1.7: n=36 (64 GiB): PA 0x90_0080_0000 -> RST index 9, offset 0x80_0000, entry = base[9] + 0x8000."""
    base_9 = 80 * MIB
    rst = (TABLE_0 | 1, *(0,) * 8, base_9 | 1)
    rmp = SegmentedRmp(BASE, cfg(36), rst)
    assert entry_address(rmp, 0x90_0080_0000) == base_9 + 0x8000
    map_ = build_map([(0, 64 * MIB)], segmented=rmp, rmp_probed=False)
    host = Host(backend, map_, hardware="turin")
    assert is_covered(host, 0x90_0080_0000 >> 12)
    host.machine.write_rmp(0x90_0080_0000 >> 12, ASSIGNED | ASID_5, 0x1F)
    assert [row[0] for row in host.state().rmp.tolist() if row[1]] == [0x9000800]
    # 1 GiB of segment 9 is covered, all of segments 1 to 8 is not
    for pfn, covered in (
        (0x9000000, True),
        (0x903FFFF, True),
        (0x9040000, False),
        (0x8FFFFFF, False),
        (0x1000000, False),
    ):
        assert is_covered(host, pfn) == covered, hex(pfn)


REAL = RANGES["segmented"][0]


def number(text: str) -> int:
    return int(text, 16)


def real_rmp() -> SegmentedRmp:
    """The placement that a host printed."""
    rst = [0] * 10
    for segment in REAL["segments"]:
        first, last = (number(text) for text in segment["covers"])
        rst[segment["index"]] = number(segment["base"]) | (last + 1 - first) // GIB
    return SegmentedRmp(number(REAL["bookkeeping_base"]), cfg(REAL["segment_shift"]), tuple(rst))


def real_map(**fields: Any) -> MachineMap:
    """34 GiB of memory without the RMP's areas and the base table's whole 2 MiB block, and soft-reserved memory where
    segments 8 and 9 are."""
    reserved = [(number(s["base"]), number(s["end"]) + 1) for s in REAL["segments"]]
    reserved = sorted([*reserved, (0x9BA0_0000, 0x9BC0_0000)])
    edges = [0, *(edge for pair in reserved for edge in pair), 34 * GIB]
    rows = [(low, high - low) for low, high in pairwise(edges)]
    usable = rows[::2]
    e820 = [(*row, 1) for row in usable] + [(*row, 2) for row in rows[1::2]] + [(TIB, 256 * GIB, 0xEFFFFFFF)]
    return build_map(usable, e820=e820, segmented=real_rmp(), **fields)


def test_real_placement_is_consistent() -> None:
    """rmp-ranges.json: sizes of the tables are 4 MiB for each GiB; the segments cover what the kernel printed."""
    rmp = real_rmp()
    assert rmp.shift == 37
    printed = []
    for segment in REAL["segments"]:
        first, last = (number(text) for text in segment["covers"])
        base, end = number(segment["base"]), number(segment["end"])
        assert end + 1 - base == (last + 1 - first) // GIB * 4 * MIB
        assert first == segment["index"] << 37
        # the first entry at the base, the last one at the end of the table, the next page elsewhere or nowhere
        assert entry_address(rmp, first) == base
        assert entry_address(rmp, last) == end + 1 - 16
        assert entry_address(rmp, last + 1) != end + 1
        printed.append((segment["index"], base, last + 1 - first))
    assert rmp.segments() == tuple(printed)
    assert len(printed) == 3
    assert rmp.areas()[0] == (0x9BA0_0000, 0x5000)


def test_real_placement(backend: str) -> None:
    """rmp-ranges.json: segments 1 to 7 are absent, 8 and 9 cover from 1 TiB on; SNP_INIT and the two blocks that the
    kernel printed (0x55a00000, 0x75a00000)."""
    host = Host(backend, real_map(), hardware="turin", kernel="6.14")
    borders = {
        0: True,
        0x87_FFFF: True,
        0x88_0000: False,
        TIB >> 12: True,
        (TIB >> 12) - 1: False,
        0x11FF_FFFF: True,
        0x1200_0000: True,
        0x13FF_FFFF: True,
        0x1400_0000: False,
    }
    for pfn, covered in borders.items():
        assert is_covered(host, pfn) == covered, hex(pfn)
    assert host.do("SNP_INIT").ret == 0
    own = [range(0x9BA00, 0x9BA05)]
    own += [range(number(s["base"]) >> 12, (number(s["end"]) + 1) >> 12) for s in REAL["segments"]]
    rmp = {pfn: lo for pfn, lo, _ in host.state().rmp.tolist()}
    firmware = {pfn for pfn, lo in rmp.items() if lo & ASSIGNED}
    assert firmware == {pfn for area in own for pfn in area}
    lines = [line for line in REAL["lines"] if "Reserving" in line]
    blocks = [int(line.split("[0x")[1].rstrip("]"), 16) >> 12 for line in lines]
    assert blocks == [0x55A00, 0x75A00]
    fixed = {pfn for pfn, lo in rmp.items() if lo & ~(0x1FF << 3) == IMMUTABLE}
    in_blocks = {pfn for block in blocks for pfn in range(block, block + 0x200)} - firmware
    assert fixed == {*range(0xA0, 0xC0), *range(0x9BA05, 0x9BC00), *in_blocks}
    assert len(in_blocks) == 512


# --- coverage ---


def test_two_segments(backend: str) -> None:
    """rmp §1.7: segment i covers from i * 2**n on; each frame has an entry of its own, across the border too."""
    host = host_of(backend)
    frames = [0, 1, 0x3FFFE, 0x3FFFF, 0x40000, 0x40001, 0x7FFFF]
    for i, pfn in enumerate(frames, 1):
        host.machine.write_rmp(pfn, i << 12, i)
    assert host.state().rmp.tolist() == [(pfn, i << 12, i) for i, pfn in enumerate(frames, 1)]
    assert [host.rmp(pfn) for pfn in frames] == [(i << 12, i) for i, _ in enumerate(frames, 1)]
    for pfn in (0x80000, 1 << 39, 1 << 40, (1 << 52) - 1, 1 << 52, (1 << 64) - 1):
        with pytest.raises(IndexError):
            host.rmp(pfn)
        with pytest.raises(IndexError):
            host.machine.write_rmp(pfn, 1, 1)


@pytest.mark.parametrize(
    ("shift", "gib", "frames"),
    [
        (30, 1, 0x40000),
        (30, 2, 0x40000),  # clamped
        (30, 0xFFFFF, 0x40000),
        (30, 0x80000, 0x40000),  # the field's highest bit alone
        (31, 1, 0x40000),  # half of the segment
        (31, 2, 0x80000),
        (31, 3, 0x80000),  # clamped, though it is less than twice the segment
        (31, 5, 0x80000),
        (36, 1, 0x40000),
    ],
)
def test_clamping(backend: str, shift: int, gib: int, frames: int) -> None:
    """rmp §1.7: covered GiB, but no more than the segment; the table has 4 MiB for each GiB after that."""
    map_ = free_map(TABLE_0 | gib, shift=shift)
    assert map_.segmented is not None
    assert map_.segmented.areas() == ((BASE, 0x5000), (TABLE_0, frames * 16))
    host = host_of(backend, map_)
    assert [is_covered(host, pfn) for pfn in (0, frames - 1, frames)] == [True, True, False]


def test_a_window_that_is_not_covered(backend: str) -> None:
    """rmp §1.7: covered size 0: the segment is not covered, whatever its base; segments after it are."""
    host = host_of(backend, free_map(TABLE_0 | 1, TABLE_1, TABLE_2 | 1))
    expected = {0x3FFFF: True, 0x40000: False, 0x7FFFF: False, 0x80000: True, 0xBFFFF: True, 0xC0000: False}
    assert {pfn: is_covered(host, pfn) for pfn in expected} == expected


def test_segment_0_absent(backend: str) -> None:
    """rmp §1.7: the first segment need not be there; frames of a higher one do not fall back to it."""
    host = host_of(backend, free_map(0, TABLE_1 | 1))
    assert [is_covered(host, pfn) for pfn in (0, 0x3FFFF, 0x40000, 0x7FFFF)] == [False, False, True, True]


def test_the_last_of_512(backend: str) -> None:
    """rmp §1.7: 512 entries of the segment table; an index beyond it is uncovered."""
    host = host_of(backend, free_map(*(0,) * 511, TABLE_0 | 1))
    first = 511 * PER_SEGMENT
    assert [is_covered(host, pfn) for pfn in (0, first - 1, first, first + PER_SEGMENT - 1)] == [
        False,
        False,
        True,
        True,
    ]
    for pfn in (512 * PER_SEGMENT, 1024 * PER_SEGMENT - 1, 1 << 39):
        assert not is_covered(host, pfn)


def test_addresses_of_53_bits(backend: str) -> None:
    """rmp §1.7: with n = 51 entry 2 begins at 2**52, where no physical address is."""
    map_ = free_map(TABLE_0 | 1, TABLE_1 | 1, TABLE_2 | 1, shift=51)
    host = host_of(backend, map_, switches={"segment_max": 51})
    assert is_covered(host, 1 << 39)
    assert is_covered(host, (1 << 39) + PER_SEGMENT - 1)
    for pfn in ((1 << 39) + PER_SEGMENT, 1 << 40, (1 << 40) + 1):
        with pytest.raises(IndexError):
            host.rmp(pfn)
    assert host.update((1 << 40) + 1, assigned=1, asid=5) == FAIL_INPUT


@pytest.mark.parametrize(("limit", "cached", "covered"), [(0, 1, True), (1, 1, False), (1, 2, True), (0, 512, True)])
def test_num_seg_reduction(backend: str, limit: int, cached: int, covered: bool) -> None:
    """rmp §1.7: NumSegReduction 1: at most the cached number of segments may be used; 0: up to 512."""
    switches = {"segment_limit": limit, "segment_cached": cached}
    host = host_of(backend, free_map(TABLE_0 | 1, TABLE_1 | 1), switches=switches)
    assert is_covered(host, 0x3FFFF)
    assert is_covered(host, 0x40000) == covered


def test_c_bit(backend: str) -> None:
    """rmp §1.6: the C-bit is taken out of an address before it is split into index and offset."""
    map_ = seg_map(TABLE_0 | 1, TABLE_1 | 1, c_bit=SMALL_CBIT.c_bit)
    host = host_of(backend, map_)
    pa = SMALL_CBIT.c_bit | GIB | 0x5000
    assert host.insn("RMPUPDATE", pa=pa, gpa=0, assigned=1, size=0, asid=5) == SUCCESS
    assert host.rmp(0x40005) == (ASSIGNED | ASID_5, 0x1F)


# --- segments whose entry has reserved bits ---

RESERVED_1 = free_map(TABLE_0 | 1, TABLE_1 | 1 | 1 << 52)
RESERVED_PFN = 0x40001


@pytest.mark.parametrize("bit", range(52, 64))
def test_each_reserved_bit(backend: str, bit: int) -> None:
    """rmp §1.7: bits 63:52 of an entry are reserved: #PF with the RSV bit at access, where NumSegReduction is 0."""
    host = host_of(backend, free_map(TABLE_0 | 1, TABLE_1 | 1 | 1 << bit))
    result = host.do("RMPUPDATE", pa=RESERVED_PFN << 12, gpa=0, assigned=1, size=0, asid=5)
    assert (result.kind, result.ret, result.value, result.value2) == (Kind.FAULT, 14, 0x9, 0)


def test_reserved_bits_of_an_empty_entry(backend: str) -> None:
    """rmp §1.7: an entry that covers nothing is one of a window that is not covered, whatever its other bits."""
    host = host_of(backend, free_map(TABLE_0 | 1, TABLE_1 | 1 << 60))
    assert not is_covered(host, RESERVED_PFN)
    assert host.update(RESERVED_PFN, assigned=1, asid=5) == FAIL_INPUT


def test_instructions_on_a_reserved_segment(backend: str) -> None:
    """rmp §1.7: in the place of "uncovered": after all checks that need no entry; no count, no event."""
    host = host_of(backend, RESERVED_1)
    pa = RESERVED_PFN << 12
    fault = (Kind.FAULT, 14, 0x9, 0)
    update = {"gpa": 0, "assigned": 1, "size": 0, "asid": 5}
    assert host.insn("RMPUPDATE", pa=pa, **(update | {"guest": 1})) == FAIL_PERMISSION
    assert host.insn("RMPUPDATE", pa=pa, **(update | {"size": 1})) == FAIL_INPUT
    assert host.insn("RMPUPDATE", pa=pa, **(update | {"assigned": 0})) == FAIL_INPUT
    assert host.insn("PSMASH", pa=pa) == FAIL_INPUT
    assert host.insn("RMPREAD", pa=pa, guest=1) == FAIL_PERMISSION
    before = host.state()
    host.events()
    for name, args in (("RMPUPDATE", {"pa": pa} | update), ("PSMASH", {"pa": GIB}), ("RMPREAD", {"pa": pa})):
        result = host.do(name, **args)
        assert (result.kind, result.ret, result.value, result.value2) == fault, name
    large = host.do("RMPUPDATE", pa=GIB, **(update | {"size": 1}))
    assert (large.kind, large.ret, large.value, large.value2) == fault
    guest = {"gva": 0x7000, "pa": pa, "gpa": 0x7000, "asid": 5, "level": 1}
    for name, args in (
        ("PVALIDATE", {"rcx": 0, "rdx": 1}),
        ("RMPADJUST", {"rcx": 0, "rdx": 1}),
        ("RMPQUERY", {"rdx": 0}),
    ):
        assert host.do(name, **guest, **args) == Result(
            0x400, Kind.NPF, reason=Reason.RESERVED, value=0x4_0000_000D, value2=0x7000
        )
    assert host.state() == before
    assert host.events() == []
    assert host.do("PVALIDATE", **guest, rcx=2, rdx=1) == Result(FAIL_INPUT, Kind.CODE)
    assert host.do("RMPADJUST", **guest, rcx=0, rdx=0) == Result(FAIL_PERMISSION, Kind.CODE)


def test_accesses_to_a_reserved_segment(backend: str) -> None:
    """rmp §1.7: each check that looks up an entry: #PF with P and RSV, #NPF with RSV, neither with bit 31; whatever has
    no such code fails as ever."""
    host = host_of(backend, RESERVED_1)

    def do(who: Who, access: AccessKind = AccessKind.READ, **args: int) -> Result:
        fields = {"pa": RESERVED_PFN << 12, "level": 1, "gpa": 0x7000, "asid": 5, "gva": 0x99} | args
        return host.do("access", who=who, access=access, **fields)

    for level in (1, 2, 3):
        assert do(Who.HOST, AccessKind.WRITE, level=level) == Result(
            14, Kind.FAULT, reason=Reason.RESERVED, value=0xB, value2=0x99
        )
    assert do(Who.HOST, AccessKind.WRITE, user=1).value == 0xF
    assert do(Who.HOST, AccessKind.WALK).value == 0x9
    npf = Result(0x400, Kind.NPF, reason=Reason.RESERVED, value2=0x7000)
    assert do(Who.PLAIN, AccessKind.WRITE) == npf._replace(value=0x1_0000_000F)
    assert do(Who.PLAIN, AccessKind.WALK) == npf._replace(value=0x2_0000_000D)
    assert do(Who.SNP, AccessKind.WRITE, c=0) == npf._replace(value=0x1_0000_000F)
    assert do(Who.SNP, AccessKind.READ, c=1) == npf._replace(value=0x5_0000_000D)
    assert do(Who.SNP, AccessKind.FETCH) == npf._replace(value=0x5_0000_001D)
    assert do(Who.IOMMU, AccessKind.WRITE) == Result(
        0x0D, Kind.IOMMU, reason=Reason.RESERVED, value2=RESERVED_PFN << 12
    )
    for who in (Who.VMCB, Who.HSAVE, Who.VMSAVE):
        assert do(who) == Result(13, Kind.FAULT, reason=Reason.RESERVED)
    for who in (Who.AVIC, Who.VMSA_PLAIN, Who.VMSA_SNP):
        assert do(who) == Result(-1, Kind.INVALID, reason=Reason.RESERVED)
    # what needs no entry
    for who, access in ((Who.HOST, AccessKind.READ), (Who.PLAIN, AccessKind.FETCH), (Who.SNP, AccessKind.READ)):
        assert do(who, access) == ALLOWED
    assert do(Who.PSP, AccessKind.WRITE) == ALLOWED
    # the segment before it is as ever
    assert do(Who.HOST, AccessKind.WRITE, pa=0x3FFFF000, level=2) == ALLOWED


def test_firmware_and_kernel_on_a_reserved_segment(backend: str) -> None:
    """rmp §1.7: firmware: INVALID_ADDRESS; the kernel's look-up: -EFAULT; entries cannot be read; no state."""
    host = host_of(backend, RESERVED_1)
    assert host.do("SNP_INIT").ret == 0
    assert host.do("SNP_PAGE_RECLAIM", pa=RESERVED_PFN << 12) == Result(0x9, Kind.FIRMWARE)
    assert host.call("snp_lookup_rmpentry", pfn=RESERVED_PFN) == EFAULT
    assert host.call("page_state", pfn=RESERVED_PFN) == PageState.DEFAULT
    with pytest.raises(IndexError):
        host.rmp(RESERVED_PFN)
    with pytest.raises(IndexError):
        host.machine.write_rmp(RESERVED_PFN, 1, 1)
    assert all(pfn < 0x40000 for pfn, _, _ in host.state().rmp.tolist())


# --- refusals ---


def test_first_known_kernel(backend: str) -> None:
    """rmp §1.7: kernels before 6.14 do not know segments: nothing is reserved for an RMP.  Not probed: any kernel."""
    for kernel in ("6.12", "6.13"):
        with pytest.raises(RmpError):
            host_of(backend, TWO, kernel=kernel)
        assert is_covered(host_of(backend, dataclasses.replace(TWO, rmp_probed=False), kernel=kernel), 0x7FFFF)
    for kernel in ("6.14", "6.15", "7.3"):
        assert is_covered(host_of(backend, TWO, kernel=kernel), 0x7FFFF)


@pytest.mark.parametrize(("hardware", "known"), [("milan", False), ("genoa", False), ("turin", True)])
def test_parts_that_have_it(backend: str, hardware: str, known: bool) -> None:
    """rmp §1.7, §1.8: CPUID EAX[23]; Milan and Genoa do not have it; the switch says otherwise."""
    if known:
        assert is_covered(host_of(backend, hardware=hardware), 0)
    else:
        for probed in (True, False):
            with pytest.raises(RmpError):
                host_of(backend, dataclasses.replace(TWO, rmp_probed=probed), hardware=hardware)
    assert is_covered(host_of(backend, hardware=hardware, switches={"segmented": 1}), 0)
    with pytest.raises(RmpError):
        host_of(backend, hardware=hardware, switches={"segmented": 0})


def with_rmp(map_: MachineMap, **fields: Any) -> MachineMap:
    assert map_.segmented is not None
    return dataclasses.replace(map_, segmented=dataclasses.replace(map_.segmented, **fields))


@pytest.mark.parametrize("probed", [True, False])
@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (cfg(30), True),
        (cfg(31), True),
        (cfg(40), True),
        (cfg(41), False),
        (cfg(29), False),
        (cfg(0), False),
        (30 << 8, False),  # not enabled
        (cfg(30) | 2, False),
        (cfg(30) | 1 << 7, False),
        (cfg(30) | 1 << 14, False),
        (cfg(30) | 1 << 63, False),
    ],
)
def test_rmp_cfg(backend: str, value: int, accepted: bool, probed: bool) -> None:
    """rmp §1.7: RMP_CFG: bit 0, exponent in 13:8, nothing else; an exponent out of range is #GP."""
    shift = value >> 8 & 0x3F
    rst = (TABLE_0 | 1, TABLE_1 | 1) if shift <= 30 else (TABLE_0 | 2,)
    map_ = seg_map(*rst, shift=30, rmp_probed=probed)
    map_ = dataclasses.replace(map_, segmented=SegmentedRmp(BASE, value, rst))
    if accepted:
        assert is_covered(host_of(backend, map_), 0x40000)
    else:
        with pytest.raises(RmpError):
            host_of(backend, map_)


def test_bounds_of_the_exponent(backend: str) -> None:
    """rmp §1.7: CPUID 8000_0025: least and greatest exponent, both allowed; the profile's are 36 and 40."""
    map_ = free_map(TABLE_0 | 1, TABLE_1 | 1)
    for low, high, accepted in ((30, 30, True), (30, 51, True), (31, 40, False)):
        switches = {"segment_min": low, "segment_max": high}
        if accepted:
            assert is_covered(host_of(backend, map_, switches=switches), 0)
        else:
            with pytest.raises(RmpError):
                host_of(backend, map_, switches=switches)
    with pytest.raises(RmpError):
        Host(backend, map_, hardware="turin", kernel="6.14")
    for shift in (36, 40):
        assert is_covered(Host(backend, free_map(TABLE_0 | 1, shift=shift), hardware="turin", kernel="6.14"), 0)
    for shift in (35, 41):
        with pytest.raises(RmpError):
            Host(backend, free_map(TABLE_0 | 1, shift=shift), hardware="turin", kernel="6.14")


@pytest.mark.parametrize(
    ("switches", "shift", "hardware_takes", "kernel_takes"),
    [
        ({"segment_unit": 20, "segment_min": 30, "segment_max": 31}, 30, False, False),
        ({"segment_unit": 20, "segment_min": 30, "segment_max": 31}, 50, True, False),
        ({"segment_unit": 20, "segment_min": 30, "segment_max": 31}, 51, True, False),
        ({"segment_unit": 20, "segment_min": 30, "segment_max": 51}, 50, True, True),
        ({"segment_unit": 0, "segment_min": 30, "segment_max": 51}, 50, True, True),
    ],
)
def test_unit_of_the_exponent(
    backend: str, switches: dict[str, int], shift: int, hardware_takes: bool, kernel_takes: bool
) -> None:
    """rmp §5 point 9: CPUID's exponents may be of MiB to hardware; Linux compares them with the byte exponent."""
    for probed, accepted in ((False, hardware_takes), (True, kernel_takes)):
        map_ = seg_map(TABLE_0 | 2, shift=shift, rmp_probed=probed)
        if accepted:
            assert is_covered(host_of(backend, map_, switches=switches), 0)
        else:
            with pytest.raises(RmpError):
                host_of(backend, map_, switches=switches)


@pytest.mark.parametrize("off", [0x1000, 0x2000, 0x80000, 1, 16])
def test_base_is_aligned_to_1_mib(backend: str, off: int) -> None:
    """rmp §1.7: RMP_BASE is 1 MiB-aligned, verified when SNP is enabled."""
    map_ = with_rmp(dataclasses.replace(TWO, rmp_probed=False), base=78 * MIB + off)
    with pytest.raises(RmpError):
        host_of(backend, map_)
    assert is_covered(host_of(backend, with_rmp(TWO, base=78 * MIB)), 0)


def test_base_0(backend: str) -> None:
    """host §1: base without a bit of 51:13: the BIOS reserved nothing; not probed, a base of 0 is like any other."""
    rmp = SegmentedRmp(0, cfg(30), (2 * MIB | 1, 6 * MIB | 1))
    fields: dict[str, Any] = {"e820": [(0, 16 * MIB, 2), (16 * MIB, 48 * MIB, 1)], "segmented": rmp}
    with pytest.raises(RmpError, match="BIOS"):
        host_of(backend, build_map([(16 * MIB, 48 * MIB)], **fields))
    assert is_covered(host_of(backend, build_map([(16 * MIB, 48 * MIB)], rmp_probed=False, **fields)), 0x7FFFF)


@pytest.mark.parametrize(
    ("rst", "accepted"),
    [
        ((TABLE_0 | 1, TABLE_1 | 1), True),
        ((TABLE_0 | 1,), False),  # memory from 1 GiB on is not covered
        ((TABLE_0 | 1, TABLE_1), False),
        ((0, TABLE_1 | 1), True),  # the kernel does not notice a hole
        ((TABLE_0 | 1, 0, TABLE_1 | 1), False),  # begins above max_pfn
        ((TABLE_0 | 9, TABLE_1 | 9), True),  # clamped
        ((TABLE_0 | 9,), False),
    ],
)
def test_memory_must_be_covered(backend: str, rst: tuple[int, ...], accepted: bool) -> None:
    """rmp §1.7: the end of the last segment that begins below max_pfn has to reach it; only where the kernel probes."""
    if accepted:
        host_of(backend, seg_map(*rst))
    else:
        with pytest.raises(RmpError):
            host_of(backend, seg_map(*rst))
    host_of(backend, free_map(*rst))


def test_memory_in_the_second_of_larger_segments(backend: str) -> None:
    """rmp §1.7: the segment that begins below max_pfn has to reach it; one GiB of it is enough here."""
    memory = [(0, 64 * MIB), (2 * GIB, 64 * MIB)]
    e820 = [(0, 64 * MIB, 1), (64 * MIB, 32 * MIB, 2), (2 * GIB, 64 * MIB, 1)]

    def map_of(*rst: int) -> MachineMap:
        return build_map(memory, e820=e820, segmented=SegmentedRmp(BASE, cfg(31), rst))

    assert is_covered(host_of(backend, map_of(TABLE_0 | 2, TABLE_2 | 1)), 0x80000)
    with pytest.raises(RmpError):
        host_of(backend, map_of(TABLE_0 | 2))


@pytest.mark.parametrize(("rst", "accepted"), [((TABLE_0 | 1,), True), ((0, TABLE_1 | 1), False)])
def test_memory_that_ends_where_a_segment_begins(backend: str, rst: tuple[int, ...], accepted: bool) -> None:
    """rmp §1.7: only segments that begin below max_pfn count, and reaching it is enough."""
    e820 = [(0, 64 * MIB, 1), (64 * MIB, 32 * MIB, 2), (96 * MIB, GIB - 96 * MIB, 1)]
    memory = [(0, 64 * MIB), (96 * MIB, GIB - 96 * MIB)]
    map_ = build_map(memory, e820=e820, segmented=SegmentedRmp(BASE, cfg(30), rst))
    assert map_.max_pfn == PER_SEGMENT
    if accepted:
        assert is_covered(host_of(backend, map_), PER_SEGMENT - 1)
    else:
        with pytest.raises(RmpError):
            host_of(backend, map_)


@pytest.mark.parametrize("probed", [True, False])
@pytest.mark.parametrize("rst", [(), (0, 0), (TABLE_0, TABLE_1)])
def test_nothing_covered(backend: str, rst: tuple[int, ...], probed: bool) -> None:
    """rmp §1.7: a table that covers no frame is none."""
    with pytest.raises(RmpError):
        host_of(backend, seg_map(*rst, rmp_probed=probed))


def test_only_a_reserved_segment(backend: str) -> None:
    """rmp §1.7: a reserved segment's frames are not covered."""
    with pytest.raises(RmpError):
        host_of(backend, free_map(TABLE_0 | 1 | 1 << 63))


def test_nothing_below_the_limit(backend: str) -> None:
    """rmp §1.7: with NumSegReduction 1 entries from the cached number on are not there."""
    with pytest.raises(RmpError):
        host_of(backend, free_map(0, TABLE_1 | 1), switches={"segment_limit": 1, "segment_cached": 1})


@pytest.mark.parametrize(
    ("limit", "cached", "accepted"), [(0, 512, True), (1, 512, False), (1, 2, False), (1, 1, True)]
)
def test_reserved_bits_when_snp_is_enabled(backend: str, limit: int, cached: int, accepted: bool) -> None:
    """rmp §1.7: NumSegReduction 1: #GP when SNP is enabled, for entries that count; 0: #PF at the access."""
    switches = {"segment_limit": limit, "segment_cached": cached}
    if accepted:
        assert is_covered(host_of(backend, RESERVED_1, switches=switches), 0)
    else:
        with pytest.raises(RmpError):
            host_of(backend, RESERVED_1, switches=switches)


def test_reserved_bits_of_the_first_entry(backend: str) -> None:
    """rmp §1.7: entry 0 counts like the others."""
    with pytest.raises(RmpError):
        host_of(backend, free_map(TABLE_0 | 1 | 1 << 52, TABLE_1 | 1), switches={"segment_limit": 1})


def test_memory_in_a_segment_that_does_not_count(backend: str) -> None:
    """rmp §1.7, NumSegReduction 1: the first entry that is not cached covers no memory."""
    for cached in (1, 2):
        switches = {"segment_limit": 1, "segment_cached": cached}
        if cached == 2:
            assert is_covered(host_of(backend, TWO, switches=switches), 0x40000)
        else:
            with pytest.raises(RmpError):
                host_of(backend, TWO, switches=switches)


@pytest.mark.parametrize(
    "switches",
    [
        {"segmented": 2},
        {"segment_min": 29},
        {"segment_max": 52},
        {"segment_min": 41},  # above the greatest
        {"segment_min": 38, "segment_max": 37},
        {"segment_cached": 0},
        {"segment_cached": 513},
        {"segment_limit": 2},
        {"segment_unit": 1},
        {"segment_unit": 10},
    ],
)
def test_bad_switches(backend: str, switches: dict[str, int]) -> None:
    """rmp "Switches": values that a switch cannot have; least above greatest."""
    with pytest.raises(MachineError):
        Host(backend, SNP, hardware="turin", switches=switches)


# maps that nobody has


def test_not_both_kinds() -> None:
    """A map has one RMP."""
    with pytest.raises(MapError, match="both"):
        dataclasses.replace(TWO, rmp=(0x4800000, 0x4FFFFFF))


@pytest.mark.parametrize(("many", "accepted"), [(512, True), (513, False)])
def test_512_entries_at_most(many: int, accepted: bool) -> None:
    """rmp §1.7: the segment table has 512 entries."""
    rst = (TABLE_0 | 1, *(0,) * (many - 1))
    if accepted:
        assert len(seg_map(*rst).segmented.rst) == 512  # type: ignore[union-attr]
    else:
        with pytest.raises(MapError, match="513"):
            seg_map(*rst)


@pytest.mark.parametrize(
    "rst",
    [
        (BASE | 1,),  # over the base table
        (TABLE_0 | 1, TABLE_0 | 1),
        (TABLE_0 | 1, TABLE_0 + 3 * MIB | 1),
        (63 * MIB | 1,),  # over memory
        (60 * MIB | 1,),
        (77 * MIB | 1,),  # its last mebibyte is in the row after it
        ((1 << 52) - 3 * MIB | 1,),  # leaves physical memory
    ],
)
def test_areas(rst: tuple[int, ...]) -> None:
    """Areas of the table that overlap each other or usable memory, or leave physical memory."""
    with pytest.raises(MapError):
        seg_map(*rst)


def test_areas_that_touch() -> None:
    """Next to each other is not over each other; tables may lie outside every row."""
    assert seg_map(TABLE_0 | 1, TABLE_0 + 4 * MIB | 1, 4 * GIB | 1).segmented is not None
    assert seg_map(76 * MIB | 1).segmented is not None


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_values_of_64_bits(value: int) -> None:
    """Registers and entries have 64 bits."""
    for rmp in (SegmentedRmp(BASE, value, ()), SegmentedRmp(value, cfg(30), ()), SegmentedRmp(BASE, cfg(30), (value,))):
        with pytest.raises(MapError):
            build_map([(0, 64 * MIB)], segmented=rmp)


# --- the contiguous table's last frame ---


@pytest.mark.parametrize(
    ("kernel", "more", "accepted"),
    [("6.1", 0, True), ("6.9", 0, True), ("6.10", 0, False), ("6.12", 0, False), ("7.3", 0, False), ("6.10", -1, True)],
)
def test_last_frame_of_a_contiguous_table(backend: str, kernel: str, more: int, accepted: bool) -> None:
    """rmp §1.6: the frame of RMP_END counts as END >> 12 before 6.10, as (END + 0xfff) >> 12 from then on.

    1 MiB has room for 0xfc00 frames; a table whose last byte lies in frame 0xfc00 passes the older check only."""
    base = (0xFC01 + more) * 0x1000 - MIB
    map_ = build_map([(0, 64 * MIB)], rmp=(base, base + MIB - 1))
    assert map_.rmp is not None and map_.rmp[1] >> 12 == 0xFC00 + more
    if accepted:
        assert Host(backend, map_, kernel=kernel).insn("PSMASH", pa=0) == PSMASH_REFUSED
    else:
        with pytest.raises(RmpError):
            Host(backend, map_, kernel=kernel)


@pytest.mark.parametrize("placed", RANGES["contiguous"], ids=lambda placed: placed["base"])
@pytest.mark.parametrize("kernel", ["6.9", "6.12"])
def test_real_contiguous_placements(backend: str, kernel: str, placed: dict[str, Any]) -> None:
    """rmp-ranges.json: each printed placement passes both checks, covers what the file says, and reserves what the
    kernel printed where its base or end is odd."""
    base, end, covers = (number(placed[name]) for name in ("base", "end", "covers_bytes"))
    assert end + 1 - base == number(placed["size"])
    assert covers == (end + 1 - base - 0x4000) // 16 * 4096
    assert (base % (2 * MIB) == 0, (end + 1) % (2 * MIB) == 0) == (placed["base_2m_aligned"], placed["end_2m_aligned"])
    odd = {edge & ~(2 * MIB - 1) for edge in (base, end + 1) if edge % (2 * MIB)}
    assert {number(text) for text in placed["printed_2m_reservations"]} <= odd
    map_ = build_map([(0, 16 * MIB)], rmp=(base, end))
    host = Host(backend, map_, kernel=kernel)
    assert host.call("page_state", pfn=(covers >> 12) - 1) == PageState.HYPERVISOR
    assert host.call("page_state", pfn=covers >> 12) == PageState.DEFAULT


def test_the_list_of_placements_is_not_empty() -> None:
    """13 contiguous ones and a segmented one."""
    assert (len(RANGES["contiguous"]), len(RANGES["segmented"])) == (13, 1)


# --- instructions at the border of two segments ---


def test_rmpupdate_at_the_border(backend: str) -> None:
    """rmp §2.2: 2 MiB pages on both sides of a border do not know each other."""
    host = host_of(backend)
    host.assign(0x3FE00, size=1, gpa=GIB)
    host.assign(0x40000, size=1, gpa=2 * GIB)
    for head, gpa in ((0x3FE00, GIB), (0x40000, 2 * GIB)):
        assert host.rmp(head) == (ASSIGNED | SIZE_2M | gpa | ASID_5, 0x1F)
        assert {host.rmp(pfn) for pfn in range(head + 1, head + 512)} == {(ASSIGNED, 0)}
    assert len(host.state().rmp) == 1024
    assert host.update(0x3FFFF) == FAIL_OVERLAP
    assert host.insn("PSMASH", pa=0x40000000) == SUCCESS
    assert host.rmp(0x401FF) == (ASSIGNED | 2 * GIB + 0x1FF000 | ASID_5, 0x1F)
    assert host.rmp(0x3FE00)[0] & SIZE_2M
    assert host.update(0x40000) == SUCCESS
    assert host.rmp(0x40000) == (511 << 3, 0x1F)
    assert host.update(0x3FE00, size=1) == SUCCESS
    assert len(host.state().rmp) == 513


def test_counts_at_the_border(backend: str) -> None:
    """rmp §1.2: a page counts in the head of its own region, in its own segment."""
    host = host_of(backend)
    for pfn in (0x3FFFF, 0x40001, 0x40002):
        host.assign(pfn)
    assert [host.rmp(head)[0] >> 3 & 0x1FF for head in (0x3FE00, 0x40000)] == [1, 2]
    assert host.do("RMPREAD", pa=0x40000000).value2 == 1 << 9
    assert host.insn("PSMASH", pa=0x40000000) == PSMASH_REFUSED


def test_the_last_region_of_a_segment(backend: str) -> None:
    """rmp §1.7: where the next window is not covered the region before it is whole; the one after it is no region."""
    host = host_of(backend, free_map(TABLE_0 | 1, 0, TABLE_2 | 1))
    host.assign(0x3FE00, size=1)
    assert host.update(0x40000, assigned=1, size=1, asid=5) == FAIL_INPUT
    assert host.insn("PSMASH", pa=0x40000000) == FAIL_INPUT
    host.assign(0x80000, size=1)
    assert host.insn("PSMASH", pa=0x80000000) == SUCCESS


def test_guest_instructions_and_accesses_in_the_second_segment(backend: str) -> None:
    """rmp §2.5, §3: the entry of a page is found by its segment."""
    host = host_of(backend)
    host.assign(0x40201, gpa=0x7000)
    page = {"gva": 0x7000, "pa": 0x40201000, "gpa": 0x7000, "asid": 5, "level": 1}
    assert host.do("PVALIDATE", **page, rcx=0, rdx=1) == Result(0, Kind.CODE)
    assert host.rmp(0x40201)[0] == VALIDATED | ASSIGNED | 0x7000 | ASID_5
    assert host.rmp(0x201) == (0, 0)
    write = {"who": Who.HOST, "access": AccessKind.WRITE}
    reasons = [host.do("access", pa=pfn << 12, level=2, **write).reason for pfn in (0x40201, 0x40202, 0x202)]
    assert reasons == [Reason.ASSIGNED, Reason.NEIGHBOUR, Reason.NONE]
    assert host.do("host_write", pfn=0x40202).reason == Reason.NEIGHBOUR


def test_kernel_functions(backend: str) -> None:
    """host §1: from 6.14 a part with RMPREAD is asked by it, for the page and its 2 MiB-aligned one; 1 for a page that
    is not covered."""
    host = host_of(backend)
    assert host.call("rmp_make_private", pfn=0x40200, gpa=GIB, level=2, asid=5) == 0
    host.events()
    result = host.do("snp_lookup_rmpentry", pfn=0x40201)
    assert (result.ret, result.kind, result.level, result.flags) == (0, Kind.KERNEL, 2, 1)
    reads = [(event.code, event.a) for event in host.events() if event.kind == EventKind.RMPREAD]
    assert reads == [(0, 0x40201000), (0, 0x40200000)]
    assert host.counters()["rmpread"] == 2
    assert host.call("snp_lookup_rmpentry", pfn=0x80000) == FAIL_INPUT
    assert host.call("psmash", pfn=0x40200) == 0
    # an older kernel reads the table itself
    older = host_of(backend, dataclasses.replace(TWO, rmp_probed=False), kernel="6.13")
    assert older.call("snp_lookup_rmpentry", pfn=0x80000) == EFAULT
    assert older.counters()["rmpread"] == 0


# --- SNP_INIT ---


@pytest.mark.parametrize("reserved", [False, True])
def test_own_pages(backend: str, reserved: bool) -> None:
    """rmp §3.6: the base table and each segment's table become Firmware, and heads count them (rmp §1.2)."""
    host = host_of(backend, free_map(TABLE_0 | 1, TABLE_1 | 1 | (reserved << 60)))
    assert host.do("SNP_INIT").ret == 0
    rmp = {pfn: lo for pfn, lo, hi in host.state().rmp.tolist() if not hi}
    own = {*range(0x4000, 0x4005), *range(0x4100, 0x4500), *range(0x4500, 0x4900)}
    assert {pfn for pfn, lo in rmp.items() if lo & ASSIGNED} == own
    # 0x4000: four of the base table and 256 of the first table; 0x4200: 511; 0x4800: 255
    assert rmp[0x4000] == FIRMWARE_PAGE | 260 << 3
    assert rmp[0x4200] == FIRMWARE_PAGE | 511 << 3
    assert rmp[0x4800] == FIRMWARE_PAGE | 255 << 3
    assert rmp[0x4001] == rmp[0x48FF] == FIRMWARE_PAGE
    fixed = {pfn for pfn, lo in rmp.items() if lo == IMMUTABLE}
    assert fixed == {*range(0xA0, 0xC0), *range(0x4005, 0x4100), *range(0x4900, 0x5000)}
    assert host.update(0x4100) == FAIL_PERMISSION
    assert host.do("SNP_PAGE_RECLAIM", pa=TABLE_0) == Result(0x9, Kind.FIRMWARE)
    assert host.do("SNP_PAGE_RECLAIM", pa=BASE + 0x4000) == Result(0x9, Kind.FIRMWARE)
    assert host.do("SNP_PAGE_RECLAIM", pa=BASE + 0x5000) == Result(0x1A, Kind.FIRMWARE)


@pytest.mark.parametrize(("first", "last"), [(0x3FFF0, 0x40000), (0x3FFF0, 0x40204), (0x40010, 0x40204)])
def test_a_hole_over_two_segments(backend: str, first: int, last: int) -> None:
    """rmp §4.2 SNP_INIT, row 4: what is no DRAM is HV-Fixed on both sides of a segment's end, from the hole's first
    frame to its last."""
    top = last + 1 << 12
    map_ = build_map(
        [(0, 64 * MIB)],
        e820=[
            (0, 64 * MIB, 1),
            (64 * MIB, 16 * MIB, 2),
            (80 * MIB, (first << 12) - 80 * MIB, 0xEFFFFFFF),
            (top, 3 * GIB - top, 0xEFFFFFFF),
        ],
        segmented=SegmentedRmp(BASE, cfg(30), (TABLE_0 | 1, TABLE_1 | 1, TABLE_2 | 1)),
        rmp_probed=False,
    )
    host = host_of(backend, map_)
    assert host.do("SNP_INIT").ret == 0
    fixed = [pfn for pfn, lo, _ in host.state().rmp.tolist() if lo == IMMUTABLE and pfn >= 0x5000]
    assert fixed == list(range(first, last + 1))


def test_the_range_below_1_tib(backend: str) -> None:
    """rmp §4.2 SNP_INIT: 0xfd_0000_0000 to 0xfd_ffff_ffff is HV-Fixed, even where the e820 table has memory there."""
    last = 0xFD_0000_0000 + 4 * GIB
    rst = [0] * 512
    rst[505] = 77 * MIB | 2  # 2 GiB segments: from 0xfc_8000_0000
    rst[506] = TABLE_0 | 1  # from 0xfd_0000_0000
    rst[507] = TABLE_2 | 1  # from 0xfd_8000_0000
    rst[508] = TABLE_1 | 1  # from 0xfe_0000_0000
    map_ = build_map(
        [(0, 64 * MIB)],
        e820=[(0, 64 * MIB, 1), (64 * MIB, 16 * MIB, 2), (0xFC_C000_0000, 6 * GIB, 0xEFFFFFFF)],
        segmented=SegmentedRmp(BASE, cfg(31), tuple(rst)),
        rmp_probed=False,
    )
    host = host_of(backend, map_)
    assert host.do("SNP_INIT").ret == 0
    first = 0xFD_0000_0000 >> 12
    expected = {first: PageState.HV_FIXED, first + 0x3FFFF: PageState.HV_FIXED, last >> 12: PageState.HYPERVISOR}
    expected |= {first + 0x80000: PageState.HV_FIXED, first + 0xBFFFF: PageState.HV_FIXED}
    expected[first - 1] = PageState.HYPERVISOR
    assert {pfn: host.call("page_state", pfn=pfn) for pfn in expected} == expected
    assert host.rmp(first + 0x12345) == (IMMUTABLE, 0)


def test_blocks_at_the_ends_of_each_table(backend: str) -> None:
    """host §1: base, base + 0x5000, and both ends of each segment's table, where the block holds usable memory."""
    e820 = [
        (0, 64 * MIB, 1),
        (64 * MIB, MIB, 2),  # base table; 65 MiB to 66 MiB usable: block 64 MiB
        (65 * MIB, 2 * MIB, 1),
        (67 * MIB, 4 * MIB, 2),  # a table with two odd ends: blocks 66 and 70 MiB
        (71 * MIB, 9 * MIB, 1),
    ]
    memory = [(0, 64 * MIB), (65 * MIB, 2 * MIB), (71 * MIB, 9 * MIB)]
    map_ = build_map(memory, e820=e820, segmented=SegmentedRmp(BASE, cfg(30), (67 * MIB | 1, 200 * GIB)))
    for probed in (True, False):
        host = host_of(backend, dataclasses.replace(map_, rmp_probed=probed))
        assert host.do("SNP_INIT").ret == 0
        rmp = {pfn: lo & 7 for pfn, lo, _ in host.state().rmp.tolist() if pfn < 0x5000}
        reserved = {*range(0x4100, 0x4300), *range(0x4700, 0x4800)} if probed else set()
        fixed = {pfn for pfn, lo in rmp.items() if lo == IMMUTABLE}
        assert fixed == {*range(0xA0, 0xC0), *range(0x4005, 0x4100), *reserved}


# --- states ---


def test_save_and_load(backend: str) -> None:
    """A state with entries in both segments goes through JSON and into a new machine unchanged."""
    options: dict[str, Any] = {"hardware": "turin", "switches": SWITCHES, "kernel": "6.14"}
    host = host_of(backend)
    host.assign(0x3FE00, size=1, gpa=GIB)
    host.assign(0x40001, gpa=0x7000)
    host.machine.write_rmp(0x7FFFF, VALIDATED, 7)
    state = host.state()
    again = state_from_json(json.loads(json.dumps(state_to_json(state))))
    assert again == state
    loaded = continued(host, again, **options)
    assert loaded.state() == state
    assert loaded.rmp(0x7FFFF) == (VALIDATED, 7)
    assert loaded.update(0x40001) == host.update(0x40001) == SUCCESS
    assert loaded.state() == host.state()


def test_states_that_do_not_fit(backend: str) -> None:
    """A state with an entry for a frame that has none is refused."""
    options: dict[str, Any] = {"hardware": "turin", "switches": SWITCHES, "kernel": "6.14"}
    host = host_of(backend)
    host.machine.write_rmp(0x40000, 1, 0)
    state = host.state()
    for pfn in (0x80000, 1 << 39):
        rmp = state.rmp.copy()
        rmp["pfn"] = pfn
        with pytest.raises(MachineError):
            continued(host, changed(state, rmp=rmp), **options)
