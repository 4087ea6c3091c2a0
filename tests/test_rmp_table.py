"""rmp §1.6: the contiguous table: coverage, placement, and the kernel's reasons to refuse it."""

from __future__ import annotations

import dataclasses

import pytest
from machines import (
    ASSIGNED,
    FAIL_INPUT,
    MIB,
    SMALL,
    SNP,
    SNP_CBIT,
    SNP_COVERED,
    SNP_TIGHT,
    SUCCESS,
    Host,
    build_map,
)

from rmpcore.machine import MachineError
from rmpcore.maps import MachineMap, MapError

EXAMPLE = build_map(
    [(0, 0xA0000), (0x1200000, 64 * MIB)],
    e820=[(0, 0xA0000, 1), (0x100000, 0x1004000, 2), (0x1200000, 64 * MIB, 1)],
    rmp=(0x100000, 0x1103FFF),
)
"""The example of §1.6: base 0x100000, END 0x1103fff: 16 MiB + 16 KiB cover 4 GiB."""


def test_example_covers_4g(backend: str) -> None:
    """rmp §1.6, §5: PA 0xfffff000 is covered (its entry is at 0x1103ff0), PA 0x1_0000_0000 is not."""
    host = Host(backend, EXAMPLE)
    host.machine.write_rmp(0xFFFFF, 1, 2)
    assert host.rmp(0xFFFFF) == (1, 2)
    assert host.rmp(0) == (0, 0)
    with pytest.raises(IndexError):
        host.rmp(0x100000)
    with pytest.raises(IndexError):
        host.machine.write_rmp(0x100000, 0, 0)
    assert host.update(0xFFFFF) == SUCCESS
    assert host.update(0x100000) == FAIL_INPUT


@pytest.mark.parametrize("pfn", [SNP_COVERED, 1 << 40, 1 << 52, (1 << 64) - 1])
def test_uncovered_frames(backend: str, pfn: int) -> None:
    """rmp §1.6: frames whose entry lies past END have none, however large the number."""
    host = Host(backend, SNP)
    with pytest.raises(IndexError):
        host.rmp(pfn)
    with pytest.raises(IndexError):
        host.machine.write_rmp(pfn, 1, 1)
    assert len(host.state().rmp) == 0


def test_whole_entry_must_be_inside(backend: str) -> None:
    """rmp §1.6: covered iff the whole entry is <= END; (0x100000 - 0x4000) / 16 = 0xfc00 frames."""
    host = Host(backend, SNP)
    host.machine.write_rmp(SNP_COVERED - 1, 5, 6)
    assert host.rmp(SNP_COVERED - 1) == (5, 6)
    with pytest.raises(IndexError):
        host.rmp(SNP_COVERED)


@pytest.mark.parametrize(("more", "covered"), [(0, 0), (8, 0), (15, 0), (16, 1), (31, 1)])
def test_entry_that_is_inside_in_part(backend: str, more: int, covered: int) -> None:
    """rmp §1.6: an entry whose last bytes lie past END does not count."""
    host = Host(backend, dataclasses.replace(SNP, rmp=(0x4000000, 0x40FFFFF + more)))
    assert host.update(SNP_COVERED - 1 + covered) == SUCCESS
    assert host.update(SNP_COVERED + covered) == FAIL_INPUT


@pytest.mark.parametrize("address", [1 << 52, 1 << 63, (1 << 64) - 4096])
def test_addresses_above_52_bits(backend: str, address: int) -> None:
    """rmp §1.6: a PA of 2**52 or more is uncovered, and does not wrap round to a low frame."""
    host = Host(backend, SNP)
    assert host.insn("RMPUPDATE", pa=address, gpa=0, assigned=1, size=0, asid=1) == FAIL_INPUT
    assert host.insn("PSMASH", pa=address & ~0x1FFFFF) == FAIL_INPUT
    assert len(host.state().rmp) == 0


def test_c_bit_is_removed_first(backend: str) -> None:
    """rmp §1.6: the C-bit is removed from PA before anything else."""
    host = Host(backend, SNP_CBIT)
    assert host.insn("RMPUPDATE", pa=SNP_CBIT.c_bit | 0x201000, gpa=0, assigned=1, size=0, asid=5) == SUCCESS
    assert host.rmp(0x201) == (ASSIGNED | 5 << 51, 0x0F)
    assert host.insn("RMPUPDATE", pa=SNP_CBIT.c_bit | 0x400000, gpa=0, assigned=1, size=1, asid=5) == SUCCESS
    assert host.insn("PSMASH", pa=SNP_CBIT.c_bit | 0x400000) == SUCCESS


def test_without_c_bit_the_same_address_is_uncovered(backend: str) -> None:
    """rmp §1.6: where encryption is off the bit is an address bit like any other."""
    host = Host(backend, SNP)
    assert host.insn("RMPUPDATE", pa=1 << 51 | 0x201000, gpa=0, assigned=1, size=0, asid=5) == FAIL_INPUT


def test_no_table_at_all(backend: str) -> None:
    """Without SNP no frame has an entry."""
    host = Host(backend, SMALL)
    with pytest.raises(IndexError):
        host.rmp(0)
    with pytest.raises(IndexError):
        host.machine.write_rmp(0, 0, 0)


def test_region_that_is_covered_in_part(backend: str) -> None:
    """rmp §1.6: 2 MiB operations need the whole region; the table ends in the middle of frames 0x3e00 to 0x3fff."""
    host = Host(backend, SNP_TIGHT)
    host.machine.write_rmp(0x3EFF, 0, 0)
    with pytest.raises(IndexError):
        host.rmp(0x3F00)
    assert host.update(0x3E00, assigned=1, size=1, asid=5) == FAIL_INPUT
    assert host.update(0x3C00, assigned=1, size=1, asid=5) == SUCCESS
    assert host.update(0x3EFF, assigned=1, asid=5) == SUCCESS
    assert host.update(0x3F00, assigned=1, asid=5) == FAIL_INPUT
    host.machine.write_rmp(0x3E00, 3, 0)
    assert host.insn("PSMASH", pa=0x3E00000) == FAIL_INPUT
    assert host.rmp(0x3E00) == (3, 0)


# probing: "the kernel refuses" (§1.6 size needed; host §1 last paragraph)


def hole_map(base: int, end: int, probed: bool = True) -> MachineMap:
    """Memory 0-32M and 48M-64M (max_pfn 0x4000), a reserved row between, the RMP as given."""
    return build_map(
        [(0, 32 * MIB), (48 * MIB, 16 * MIB)],
        e820=[(0, 32 * MIB, 1), (32 * MIB, 16 * MIB, 2), (48 * MIB, 16 * MIB, 1)],
        rmp=(base, end),
        rmp_probed=probed,
    )


BASE = 32 * MIB
NEEDED = 0x4000 * 16 + 0x4000  # max_pfn 0x4000


@pytest.mark.parametrize(
    ("base", "end", "accepted"),
    [
        (BASE, BASE + NEEDED - 1, True),
        (BASE, BASE + 16 * MIB - 1, True),
        # one 8 KiB block too small
        (BASE, BASE + NEEDED - 0x2000 - 1, False),
        (BASE, BASE + 0x4000 - 1, False),
        # reversed
        (BASE + 0x200000, BASE + 0x1FFFFF, False),
        (BASE + 0x200000, BASE - 1 + 0x2000, False),
    ],
)
def test_probing(backend: str, base: int, end: int, accepted: bool) -> None:
    """rmp §1.6: (number of frames) * 16 + 0x4000 bytes for max_pfn; base above end is refused."""
    map_ = hole_map(base, end)
    if accepted:
        assert Host(backend, map_).update(0x201) == SUCCESS
    else:
        with pytest.raises(MachineError):
            Host(backend, map_)


@pytest.mark.parametrize(
    ("base", "end"), [(0, 0), (0, 0x1FFF), (0x1000, 0xFFFFFF), (0x2000000, 0), (0x2000000, 0x1FFF)]
)
def test_probing_zero(backend: str, base: int, end: int) -> None:
    """host §1: base or end zero in bits 51:13: no memory was reserved for it."""
    map_ = build_map([(64 * MIB, 64 * MIB)], rmp=(base, end))
    with pytest.raises(MachineError, match="BIOS"):
        Host(backend, map_)


@pytest.mark.parametrize(("size", "accepted"), [(0x44000, False), (0x46000, True)])
def test_probing_for_itself(backend: str, size: int, accepted: bool) -> None:
    """rmp §1.6 "self cover": a table at 64M, above all memory, has to cover its own last byte.

    size 0x44000 would do for max_pfn 0x4000; but END >> 12 is 0x4043: 0x4043 * 16 + 0x4000 = 0x44430 is more.
    size 0x46000: END >> 12 is 0x4045: 0x44450 fits.
    """
    map_ = dataclasses.replace(SNP, rmp=(0x4000000, 0x4000000 + size - 1))
    if accepted:
        assert Host(backend, map_).update(0x201) == SUCCESS
    else:
        with pytest.raises(MachineError):
            Host(backend, map_)


@pytest.mark.parametrize(
    ("base", "size", "accepted"),
    [
        (BASE, 0x4000 + 16, True),
        (BASE, 0x4000 + 16 * 0x123, True),
        (BASE + 16, 0x4000 + 16, True),
        (BASE, 0x4000, False),  # no entry
        (BASE, 0x4000 + 15, False),
        (BASE, 0x4000 + 24, True),  # half an entry more: not covered
        (BASE + 8, 0x4000 + 16, False),
        (BASE, 16, False),
    ],
)
def test_not_probed(backend: str, base: int, size: int, accepted: bool) -> None:
    """A simulator's table: only the arithmetic has to work out."""
    map_ = hole_map(base, base + size - 1, probed=False)
    if not accepted:
        with pytest.raises(MachineError):
            Host(backend, map_)
        return
    host = Host(backend, map_)
    frames = (size - 0x4000) // 16
    host.machine.write_rmp(frames - 1, 1, 1)
    with pytest.raises(IndexError):
        host.rmp(frames)


def test_over_memory_is_refused() -> None:
    """A table over usable memory is a map that no machine has."""
    with pytest.raises(MapError):
        dataclasses.replace(SNP, rmp=(0x3F00000, 0x40FFFFF))


@pytest.mark.parametrize(
    "switches",
    [
        {"nonsense": 1},
        {"gpa_bits": 12},
        {"gpa_bits": 52},
        {"vmpl0_all": 256},
        {"rmpread": 2},
        {"overlap_inner": 0},
        {"overlap_inner": 256},
        {"psmash_unassigned": 0},
        {"psmash_immutable": 256},
        {"keep_same": 2},
        {"reserved_input": -1},
        {"asid_limit": 0x400},
        {"lock_follows_immutable": 2},
        {"subpage_count": 2},
    ],
)
def test_bad_switches(backend: str, switches: dict[str, int]) -> None:
    """rmp §5: an unknown switch, or a value that it cannot have, is an error."""
    with pytest.raises(MachineError):
        Host(backend, SNP, switches=switches)


BOUNDS = {
    **dict.fromkeys(
        (
            "rmpread",
            "keep_same",
            "reserved_input",
            "lock_follows_immutable",
            "subpage_count",
            "rmpquery",
            "inuse_first",
            "rescind_resets",
            "segmented",
            "segment_limit",
            "vmpl_sss",
            "hv_in_use_wr",
        ),
        (0, 1),
    ),
    **dict.fromkeys(("overlap_inner", "psmash_unassigned", "psmash_immutable"), (1, 255)),
    **dict.fromkeys(("vmpl0_all", "pvalidate_vmpl", "rmpquery_vmpl"), (0, 255)),
    "gpa_bits": (13, 51),
    "asid_limit": (0, 0x3FF),
    "segment_cached": (1, 512),
    "vmpls": (1, 4),
}
"""Least and greatest value of each switch that takes all that lies between."""


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_of_switches(backend: str, name: str) -> None:
    """rmp "Switches", column "values": the bounds themselves are allowed, what is next to them is not."""
    least, greatest = BOUNDS[name]
    for value in (least, greatest):
        assert Host(backend, SNP, switches={name: value}).update(0x201) == SUCCESS
    for value in (least - 1, greatest + 1):
        with pytest.raises(MachineError):
            Host(backend, SNP, switches={name: value})


@pytest.mark.parametrize(
    ("switches", "accepted"),
    [
        *(({"bookkeeping": value}, value in (0, 1, 512)) for value in (0, 1, 2, 511, 512, 513)),
        *(({"segment_min": value}, value in (30, 40)) for value in (29, 30, 40, 41)),  # to segment_max, which is 40
        *(({"segment_max": value}, value in (36, 51)) for value in (35, 36, 51, 52)),
        *(({"segment_unit": 20, "segment_min": value}, value == 10) for value in (9, 10)),
        ({"segment_min": 51, "segment_max": 51}, True),
        ({"segment_min": 52, "segment_max": 52}, False),
        *(({"segment_unit": value}, value == 20) for value in (1, 19, 20, 21)),
    ],
)
def test_values_of_other_switches(backend: str, switches: dict[str, int], accepted: bool) -> None:
    """rmp "Switches", and the two rules above its table."""
    if accepted:
        assert Host(backend, SNP, switches=switches).update(0x201) == SUCCESS
    else:
        with pytest.raises(MachineError):
            Host(backend, SNP, switches=switches)


@pytest.mark.parametrize("hardware", ["rome", "Turin", ""])
def test_unknown_hardware(backend: str, hardware: str) -> None:
    """Profiles are milan, genoa and turin."""
    with pytest.raises(MachineError):
        Host(backend, SNP, hardware=hardware)


@pytest.mark.parametrize("kernel", ["6.0", "5.15.100", "4.19", "", "six", "6"])
def test_kernels_before_the_first(backend: str, kernel: str) -> None:
    """direct-map §10: a kernel older than 6.1, or no version at all; the message lists the versions that matter."""
    with pytest.raises(MachineError) as error:
        Host(backend, SMALL, kernel=kernel)
    for version in ("6.1", "6.2", "6.6", "6.9", "6.13", "6.14", "6.15"):
        assert version in str(error.value)


@pytest.mark.parametrize(
    "kernel", ["6.1", "6.12.95+deb12-amd64", "6.18", "7.0", "7.3.4+deb13-amd64", "7.4", "10.0-rc1"]
)
def test_kernels(backend: str, kernel: str) -> None:
    """direct-map §10: any version from 6.1 on; newer than 7.3 takes the newest rules."""
    host = Host(backend, SMALL, kernel=kernel)
    major, minor = kernel.split("-")[0].split(".")[:2]
    version = (int(major), int(minor.split("+")[0]))
    host.call("set_memory_4k", pfn=0x400, pages=1)
    assert bool(host.leaf(0x400)[1] & 1 << 11) == (version >= (6, 15))
