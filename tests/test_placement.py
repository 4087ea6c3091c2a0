"""An RMP put on a map that has none: held against the placements of real hosts, and the rules of rmp §1.6, §1.7."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import GIB, MIB, build_map

from rmpcore.inputs import load_map, map_file, map_from_json
from rmpcore.machine import Machine
from rmpcore.maps import MachineMap, MapError, SegmentedRmp
from rmpcore.pages import Pages
from rmpcore.placement import coverage, place_rmp
from rmpcore.plot import COLUMNS, Grid, rmp_cells, top_of

ROOT = Path(__file__).parents[1]
MAPS = sorted([*(ROOT / "examples/maps").glob("*.json"), *(ROOT / "tests/data/machines").glob("*g.json")])
RANGES = json.loads((ROOT / "tests/data/machines/rmp-ranges.json").read_text(encoding="utf-8"))["contiguous"]
WITH_RMP = [path for path in MAPS if load_map(path).rmp is not None]


def by_name(path: Path) -> str:
    return path.stem


def bare(path: Path) -> MachineMap:
    """The map of a file without its RMP: where that was, there is usable memory, in one piece with its neighbours."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rmp = value["rmp"]
    value["rmp"] = None
    rows: list[list[str]] = []
    for start, size, kind in value["e820"]:
        if rmp is not None and start == rmp["base"]:
            assert int(start, 16) + int(size, 16) == int(rmp["end"], 16) + 1
            kind = "usable"
        if rows and rows[-1][2] == kind == "usable" and int(rows[-1][0], 16) + int(rows[-1][1], 16) == int(start, 16):
            rows[-1][1] = hex(int(rows[-1][1], 16) + int(size, 16))
        else:
            rows.append([start, size, kind])
    value["e820"] = rows
    return map_from_json(json.dumps(value), path.name)


def areas(placed: MachineMap) -> list[tuple[int, int]]:
    """What is reserved for the RMP, (base, size)."""
    if placed.rmp is not None:
        return [(placed.rmp[0], placed.rmp[1] + 1 - placed.rmp[0])]
    assert placed.segmented is not None
    return [(base, max(size, MIB)) for base, size in placed.segmented.areas()]


def check(before: MachineMap, placed: MachineMap) -> None:
    """What holds wherever the RMP is."""
    taken = areas(placed)
    usable = [(start, start + size) for start, size, kind in before.e820 if kind == 1]
    for base, size in taken:
        assert base % MIB == size % MIB == 0
        assert any(first <= base and base + size <= end for first, end in usable)
        assert (base, size, 2) in placed.e820
        assert not any(base < start + length and start < base + size for start, length in before.reserved)
    assert sum(size for _, size in before.memory) - sum(size for _, size in placed.memory) == sum(s for _, s in taken)
    # Each byte of e820 is of the kind that it was, but for the RMP; and memory is what e820 says.
    assert sum(size for _, size, _ in placed.e820) == sum(size for _, size, _ in before.e820)
    again = map_from_json(map_file(replace(placed, reserved=((0, MIB),)), {}))
    assert replace(again, reserved=placed.reserved) == placed
    # All memory is covered, and the table itself.
    covered = coverage(placed)
    for base, size in (*placed.memory, *taken):
        assert sum(max(0, min(base + size, low + n) - max(base, low)) for low, n in covered) == size


@pytest.mark.parametrize("path", WITH_RMP, ids=by_name)
def test_rmp_of_a_real_host_is_found_again(path: Path) -> None:
    """Taken away and placed again, it is where it was, to the byte (one of the three maps is made up)."""
    assert place_rmp(bare(path)) == load_map(path)
    assert len(WITH_RMP) == 3


@pytest.mark.parametrize("path", MAPS, ids=by_name)
def test_contiguous_on_every_map(path: Path) -> None:
    before = bare(path)
    placed = place_rmp(before)
    check(before, placed)
    assert placed.segmented is None


@pytest.mark.parametrize("shift", [30, 36, 37, 40, 51])
@pytest.mark.parametrize("path", MAPS, ids=by_name)
def test_segmented_on_every_map(path: Path, shift: int) -> None:
    before = bare(path)
    if before.max_pfn << 12 > 512 << shift:
        with pytest.raises(MapError, match=r"^segments of 1 GiB: \d+ are needed, and there can be 512$"):
            place_rmp(before, segment_shift=shift)
        return
    placed = place_rmp(before, segment_shift=shift)
    check(before, placed)
    assert placed.rmp is None
    assert placed.segmented is not None
    assert placed.segmented.cfg == shift << 8 | 1
    for index, base, size in placed.segmented.segments():
        held = [
            (max(first, index << shift), min(first + length, (index + 1) << shift)) for first, length in before.memory
        ]
        # These machines have room in each segment that is not smaller than a few GiB.
        if shift > 30:
            assert index << shift <= base < (index + 1) << shift
        assert any(low < high for low, high in held)
        assert max(high for low, high in held if low < high) <= (index << shift) + size


def test_where_published_tables_lie() -> None:
    """The rule of position, on the 13 hosts whose map is not known: small ones below 4 GiB, large ones above."""
    for row in RANGES:
        assert (int(row["size"], 16) <= 0x40900000) == (int(row["end"], 16) < 4 * GIB), row
    assert len(RANGES) == 13


def test_dell_of_1_tib_by_hand() -> None:
    """The top is 0x10080000000 with the reserved 512 KiB on top of memory: 0x10080000 frames, so 0x100804000 bytes,
    4105 MiB.  Nothing below 4 GiB is so large; the last row ends at 0x1007ff80000, and the MiB below that at
    0x1007ff00000."""
    placed = place_rmp(bare(ROOT / "examples/maps/dell-r7425-epyc7601-1t.json"))
    assert placed.rmp == (0x1007FF00000 - 4105 * MIB, 0x1007FF00000 - 1)


SMALL = build_map(
    [(0x1000, 0x9F000), (MIB, 255 * MIB), (4 * GIB, 2 * GIB)],
    reserved=[(0, MIB)],
    e820=[(0, 0x1000, 2), (0x1000, 0x9F000, 1), (MIB, 255 * MIB, 1), (4 * GIB, 2 * GIB, 1)],
)
"""256 MiB and 2 GiB above 4 GiB: 6 GiB of addresses, 0x180000 frames, 24 MiB and 16 KiB of table, so 25 MiB."""


def test_small_machine_by_hand() -> None:
    placed = place_rmp(SMALL)
    assert placed.rmp == (231 * MIB, 256 * MIB - 1)
    assert placed.e820 == (
        (0, 0x1000, 2),
        (0x1000, 0x9F000, 1),
        (MIB, 230 * MIB, 1),
        (231 * MIB, 25 * MIB, 2),
        (4 * GIB, 2 * GIB, 1),
    )
    assert placed.memory == ((0x1000, 0x9F000), (MIB, 230 * MIB), (4 * GIB, 2 * GIB))
    assert placed.max_pfn == SMALL.max_pfn
    assert coverage(placed) == ((0, (25 * MIB - 0x4000) // 16 * 4096),)


def test_small_machine_in_segments_by_hand() -> None:
    """Segments of 2 GiB: 0 covers 1 GiB (256 MiB of memory), 1 nothing, 2 both GiB.  The head takes the last MiB below
    4 GiB, the 4 MiB of segment 0 go below it, the 8 MiB of segment 2 to the end of its own memory."""
    placed = place_rmp(SMALL, segment_shift=31)
    assert placed.segmented == SegmentedRmp(255 * MIB, 31 << 8 | 1, (251 * MIB | 1, 0, 6 * GIB - 8 * MIB | 2))
    assert placed.memory == ((0x1000, 0x9F000), (MIB, 250 * MIB), (4 * GIB, 2 * GIB - 8 * MIB))
    assert placed.max_pfn == (6 * GIB - 8 * MIB) >> 12
    assert coverage(placed) == ((0, GIB), (4 * GIB, 2 * GIB))


def test_memory_that_is_in_use_is_left_alone() -> None:
    """The kernel's image in the last MiB below 4 GiB moves the table down."""
    busy = replace(SMALL, reserved=((0, MIB), (255 * MIB + 0x1000, 0x2000)))
    assert place_rmp(busy).rmp == (230 * MIB, 255 * MIB - 1)


def test_high_memory_where_low_memory_is_too_small() -> None:
    """24 MiB below 4 GiB; the table of 25 MiB is at the end of memory, which is one frame short of a MiB."""
    rows = [(MIB, 24 * MIB, 1), (4 * GIB, 2 * GIB - 0x1000, 1)]
    placed = place_rmp(build_map([(start, size) for start, size, _ in rows], e820=rows))
    assert placed.rmp == (6 * GIB - 26 * MIB, 6 * GIB - MIB - 1)
    assert placed.e820[-1] == (6 * GIB - MIB, MIB - 0x1000, 1)


@pytest.mark.parametrize("kind", [1, 128])
def test_memory_without_a_usable_row_counts_too(kind: int) -> None:
    """Rows that the kernel itself reserved are memory; and a map's memory need not be in its e820 table at all."""
    rows = [(MIB, 128 * MIB, 1), (GIB, GIB, kind), (2 * GIB, MIB, 3)]
    placed = place_rmp(build_map([(MIB, 128 * MIB), (GIB, GIB)], e820=rows), segment_shift=30)
    assert placed.segmented is not None
    assert [size for _, _, size in placed.segmented.segments()] == [GIB, GIB]
    machine = build_map([(MIB, 128 * MIB), (2 * GIB, GIB)], e820=rows[:1], max_pfn=0x8100)
    assert place_rmp(machine).rmp == (129 * MIB - 13 * MIB, 129 * MIB - 1)


def test_segment_without_room_goes_elsewhere() -> None:
    """Segment 1 has one MiB of memory, and its table needs four."""
    rows = [(MIB, 512 * MIB, 1), (GIB, MIB, 1)]
    placed = place_rmp(build_map([(start, size) for start, size, _ in rows], e820=rows), segment_shift=30)
    assert placed.segmented is not None
    # The highest MiB is that of segment 1, and the head takes it: nothing usable is left there.
    assert placed.segmented.segments() == ((0, 509 * MIB, GIB), (1, 505 * MIB, GIB))
    assert placed.segmented.base == GIB
    assert placed.max_pfn == 505 * MIB >> 12


@pytest.mark.parametrize(
    ("machine", "shift", "reason"),
    [
        (replace(place_rmp(SMALL)), None, "the map has an RMP already"),
        (replace(place_rmp(SMALL, segment_shift=36)), 36, "the map has an RMP already"),
        (SMALL, 29, "segments of 2^29 bytes: the exponent is outside 30..51"),
        (SMALL, 52, "segments of 2^52 bytes: the exponent is outside 30..51"),
        (build_map([(0, MIB)]), None, "no room for an RMP of 1 MiB in one piece of usable memory"),
        (build_map([(0x1000, 2 * MIB - 0x2000)]), 36, "no room for the RMP's base table"),
        (build_map([(0, 4 * MIB)]), 36, "no room for the table of RMP segment 0, 4 MiB"),
        (
            build_map([(MIB, 64 * MIB), (600 * GIB, MIB)]),
            30,
            "segments of 1 GiB: 601 are needed, and there can be 512",
        ),
    ],
)
def test_refused(machine: MachineMap, shift: int | None, reason: str) -> None:
    if reason.startswith("no room for an RMP"):
        machine = replace(machine, reserved=((0x1000, 0x1000),))
    with pytest.raises(MapError) as caught:
        place_rmp(machine, segment_shift=shift)
    assert str(caught.value) == reason


@given(
    gaps=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 900), st.booleans()), min_size=1, max_size=12),
    shift=st.sampled_from([None, 30, 31, 36]),
    used=st.tuples(st.integers(0, 500), st.integers(1, 300)),
)
def test_any_memory(gaps: list[tuple[int, int, bool]], shift: int | None, used: tuple[int, int]) -> None:
    """Rows of usable and reserved memory in units of 1.5 MiB, above the first MiB: placed by the rules, or refused."""
    unit, at, rows = 3 * MIB // 2, MIB, []
    for gap, size, is_usable in gaps:
        at += gap * unit
        rows.append((at, size * unit, 1 if is_usable else 2))
        at += size * unit
    memory = [(start, size) for start, size, kind in rows if kind == 1]
    if not memory:
        return
    joined: list[tuple[int, int]] = []
    for start, size in memory:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((start, size))
    reserved = [(used[0] * MIB, used[1] * MIB)]
    before = build_map(joined, e820=rows, reserved=reserved)
    try:
        placed = place_rmp(before, segment_shift=shift)
    except MapError as e:
        assert "\n" not in str(e)
        return
    check(before, placed)
    if placed.rmp is not None:
        base, end = placed.rmp
        # No MiB above, on the same side of 4 GiB, has room; and above 4 GiB it is only if there is none below.
        limit = 4 * GIB if end < 4 * GIB else 1 << 40
        size = end + 1 - base
        for first, length, kind in rows:
            top = min(first + length, limit) // MIB * MIB
            for other in range(max(base + MIB, -(-first // MIB) * MIB), top - size + 1 if kind == 1 else 0, MIB):
                assert other < reserved[0][0] + reserved[0][1] and reserved[0][0] < other + size


@pytest.mark.parametrize("path", MAPS, ids=by_name)
def test_machines_take_what_is_placed(path: Path, backend: str) -> None:
    """The kernel's own checks of the RMP pass."""
    Machine(place_rmp(bare(path)), backend=backend)
    placed = place_rmp(bare(path), segment_shift=36)
    machine = Machine(placed, backend=backend, kernel="6.14", hardware="turin")
    last = placed.max_pfn - 1
    assert machine.read_rmp(last) == (0, 0)
    covered = coverage(placed)[-1]
    with pytest.raises(IndexError):
        machine.read_rmp(sum(covered) >> 12)


def test_coverage_of_odd_tables() -> None:
    """An entry with reserved bits covers nothing, one that claims more than a segment covers one segment."""
    rows = [(0, 64 * MIB, 1), (64 * MIB, 128 * MIB, 2)]
    table = build_map([(0, 64 * MIB)], e820=rows)
    assert coverage(table) == ()
    rst = (64 * MIB | 3, 1 << 52 | 70 * MIB | 1, 74 * MIB | 1, 80 * MIB)
    odd = replace(table, segmented=SegmentedRmp(90 * MIB, 30 << 8 | 1, rst))
    assert coverage(odd) == ((0, GIB), (2 * GIB, GIB))
    assert coverage(replace(table, rmp=(64 * MIB, 64 * MIB + 0x3FFF))) == ()
    assert coverage(replace(table, rmp=(64 * MIB, 64 * MIB + 0x400F))) == ((0, 0x1000),)


def test_picture_of_a_segmented_rmp(backend: str) -> None:
    """2 GiB in cells of 1 MiB, segments of 1 GiB, of which only the second is covered."""
    rows = [(0, 2 * GIB, 1), (3 * GIB, 64 * MIB, 2)]
    rmp = SegmentedRmp(3 * GIB, 30 << 8 | 1, (0, 3 * GIB + 4 * MIB | 1))
    machine_map = build_map([(0, 2 * GIB)], e820=rows, segmented=rmp, rmp_probed=False)
    machine = Machine(machine_map, backend=backend, hardware="turin", switches={"segment_min": 30})
    for index in range(128):
        machine.write_rmp((GIB >> 12) + index, 1, 0)
    pages = Pages(machine_map, machine.state())
    grid = Grid(top_of(pages))
    cells = rmp_cells(pages, grid).ravel()
    per_gib = GIB // grid.cell
    assert len(cells) == grid.rows * COLUMNS
    assert set(cells[:per_gib]) == {-1}
    whole = 128 * 4096 // grid.cell
    expected = 2 if whole == 0 else 3
    assert cells[per_gib] == expected
    assert set(np.delete(cells, range(per_gib + max(whole, 1)))) == {0}
