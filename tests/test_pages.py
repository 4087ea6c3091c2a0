"""The direct map in ranges, what differs between two, and the picture."""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from machines import (
    GIB,
    HOLE,
    IMAGE,
    IMAGE_MOVED,
    MIB,
    PAGE_OFFSET,
    SMALL,
    SMALL_CBIT,
    SMALL_LA57,
    SMALL_RANDOM,
    SNP,
    SNP_HOLE,
    SNP_TIGHT,
    Host,
    build_map,
    changed,
    with_leaves,
    with_tables,
)

from rmpcore.cli import cli
from rmpcore.maps import MachineMap
from rmpcore.pages import (
    Pages,
    PagesError,
    diff_ranges,
    diff_text,
    diff_to_json,
    mapped_bytes,
    page_ranges,
    pages_text,
    pages_to_json,
    size_text,
)
from rmpcore.plot import COLUMNS, MAX_ROWS, Grid, PlotError, map_cells, plot, plot_format, rmp_cells, top_of
from rmpcore.start import Rules, read_start

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/data/golden"
LARGEST = ROOT / "examples/maps/synthetic-6t.json"


def pages_of(host: Host) -> Pages:
    return Pages(host.machine.map, host.state())


def booted(map_: MachineMap, backend: str = "native", **options: Any) -> Pages:
    return pages_of(Host(backend, map_, **options))


def lines_of(pages: Pages) -> list[str]:
    return list(pages_text(pages))


# ranges


def test_dump_of_a_small_machine(backend: str) -> None:
    """64 MiB of 2 MiB pages; what follows is a hole of each level at which the walk ends: the rest of the table of
    2 MiB entries, of 1 GiB entries, of the root."""
    assert lines_of(booted(SMALL, backend)) == [
        "---[ Direct Map ]---",
        "0xffff888000000000-0xffff888004000000        64M        RW         PSE     GLB NX A D pmd",
        "0xffff888004000000-0xffff888040000000       960M                                      pmd",
        "0xffff888040000000-0xffff890000000000       511G                                      pud",
        "0xffff890000000000-0xffffc88000000000     65024G                                      pgd",
    ]


def test_five_levels_have_a_p4d(backend: str) -> None:
    names = [item.level_name for item in page_ranges(booted(SMALL_LA57, backend))]
    assert names == ["pmd", "pmd", "pud", "p4d", "pgd"]
    assert page_ranges(booted(SMALL_LA57, backend))[-1].end == 0xFF11_0000_0000_0000 + (1 << 52)


def test_offset_that_is_not_on_a_line_of_the_root(backend: str) -> None:
    """0xffff9a1240000000 lies 73 GiB into a slot of 512 GiB: the root's first hole starts where that slot ends."""
    ranges = page_ranges(booted(SMALL_RANDOM, backend))
    start = SMALL_RANDOM.page_offset
    assert [item.level_name for item in ranges] == ["pmd", "pmd", "pud", "pgd"]
    assert ranges[2].end == -(-start // (512 * GIB)) * 512 * GIB
    assert ranges[-1].end == start + (64 << 40)


def test_ranges_follow_each_other_without_a_gap(backend: str) -> None:
    host = Host(backend, IMAGE, kernel="7.3")
    for name, pfn, pages in (("set_memory_ro", 0x210, 900), ("set_memory_np", 0x3000, 7), ("set_memory_4k", 0x3400, 1)):
        host.call(name, pfn=pfn, pages=pages)
    for window, base, size in ((0, PAGE_OFFSET, 64 << 40), (1, 0xFFFF_FFFF_8000_0000, GIB)):
        ranges = page_ranges(pages_of(host), window)
        assert (ranges[0].start, ranges[-1].end) == (base, base + size)
        for one, two in itertools.pairwise(ranges):
            assert one.end == two.start
            assert (one.level, one.hole, one.flags) != (two.level, two.hole, two.flags)


def test_what_is_changed_shows(backend: str) -> None:
    """Each attribute in its column.  What the kernel drops with another bit is gone too: D with RW (from 6.6), G with
    P.  UC- is PCD; WP is PAT and PWT."""
    host = Host(backend, SMALL, kernel="7.3")
    for name, pfn, args in (
        ("set_memory_ro", 0x400, {}),
        ("set_memory_x", 0x401, {}),
        ("set_memory_np", 0x402, {}),
        ("_set_memory_uc", 0x403, {}),
        ("set_memory_nonglobal", 0x404, {}),
        ("change_page_attr_set", 0x405, {"mask": 0x88 | 1 << 2}),
        ("change_page_attr_set", 0x406, {"mask": 1 << 9 | 1 << 58 | 1 << 59}),
        ("change_page_attr_clear", 0x407, {"mask": 1 << 5}),
        ("set_memory_4k", 0x408, {}),
    ):
        host.call(name, pfn=pfn, pages=1, **args)
    text = [re.sub(r"^\S+ +(\S+) ", r"\1 ", line) for line in lines_of(pages_of(host))[2:12]]
    assert text == [
        "4K        ro                 GLB NX A   pte",
        "4K        RW                 GLB x  A D pte",
        "4K np     RW                     NX A D pte",
        "4K        RW     PCD         GLB NX A D pte",
        "4K        RW                     NX A D pte",
        "4K    USR RW PWT         PAT GLB NX A D pte",
        "4K        RW                 GLB NX A D pte SOFTW1 SOFTW5 PKEY=1",
        "4K        RW                 GLB NX   D pte",
        "4K        RW                 GLB NX A D pte SOFTW3",
        "2012K        RW                 GLB NX A D pte",
    ]
    attributes = [item.attributes for item in page_ranges(pages_of(host))[1:7]]
    assert attributes == [
        ["ro", "GLB", "NX", "A"],
        ["RW", "GLB", "x", "A", "D"],
        ["np", "RW", "NX", "A", "D"],
        ["RW", "PCD", "GLB", "NX", "A", "D"],
        ["RW", "NX", "A", "D"],
        ["USR", "RW", "PWT", "PAT", "GLB", "NX", "A", "D"],
    ]


def test_cache_mode_of_a_large_page(backend: str) -> None:
    """PAT is bit 12 where PSE is set; a large page that is not present has no PSE."""
    host = Host(backend, SMALL)
    host.call("change_page_attr_set", pfn=0x400, pages=512, mask=0x80)
    host.call("set_memory_np", pfn=0x600, pages=512)
    ranges = page_ranges(pages_of(host))
    assert ranges[1].attributes == ["RW", "PSE", "PAT", "GLB", "NX", "A", "D"]
    assert ranges[2].attributes == ["np", "RW", "NX", "A", "D"]
    assert [item.size for item in ranges[1:3]] == [2 * MIB, 2 * MIB]
    assert [item.physical for item in ranges[1:3]] == [4 * MIB, 6 * MIB]


def test_encryption_bit_is_a_flag_and_not_part_of_the_frame(backend: str) -> None:
    host = Host(backend, SMALL_CBIT)
    host.call("set_memory_decrypted", pfn=0x400, pages=512)
    ranges = page_ranges(pages_of(host))
    assert [item.size for item in ranges[:3]] == [4 * MIB, 2 * MIB, 58 * MIB]
    assert ["C" in item.attributes for item in ranges[:3]] == [True, False, True]
    assert ranges[2].physical == 6 * MIB


def test_high_mapping_of_a_moved_image(backend: str) -> None:
    """Virtual 0xffffffff81000000 is physical 24 MiB there; nothing of it counts as being elsewhere."""
    pages = booted(IMAGE_MOVED, backend)
    ranges = [item for item in page_ranges(pages, 1) if not item.hole]
    assert ranges[0].start == 0xFFFF_FFFF_8100_0000
    assert ranges[0].physical == 24 * MIB
    assert not any(item.moved for item in ranges)
    assert "---[ High Kernel Mapping ]---" in lines_of(pages)
    assert "---[ High Kernel Mapping ]---" not in lines_of(booted(SMALL, backend))


def test_leaf_that_maps_another_frame_is_shown() -> None:
    pages = booted(SMALL)
    other = with_leaves(pages.state, {(0, 2, 4 * MIB): 0x80000000012001E3})
    item = page_ranges(Pages(SMALL, other))[1]
    assert (item.size, item.moved, item.physical) == (2 * MIB, True, 0x1200000)
    assert lines_of(Pages(SMALL, other))[2].endswith("NX A D pmd maps=0x1200000")


def test_empty_table_is_a_hole_of_its_entries() -> None:
    """A table without entries at 4 MiB, in the middle of a hole of 2 MiB entries."""
    state = booted(SMALL).state
    holes = with_leaves(state, {(0, 2, offset): 0 for offset in (2 * MIB, 4 * MIB, 6 * MIB)})
    pages = Pages(SMALL, with_tables(holes, {(0, 2, 4 * MIB): 0x5063}))
    assert [(item.size, item.hole, item.level_name) for item in page_ranges(pages)[:5]] == [
        (2 * MIB, False, "pmd"),
        (2 * MIB, True, "pmd"),
        (2 * MIB, True, "pte"),
        (2 * MIB, True, "pmd"),
        (56 * MIB, False, "pmd"),
    ]


def test_state_without_leaves() -> None:
    pages = booted(SMALL)
    nothing = changed(pages.state, leaves=pages.state.leaves[:0])
    assert [item.size for item in page_ranges(Pages(SMALL, nothing))] == [GIB, 511 * GIB, (127 * 512) * GIB]


@pytest.mark.parametrize(
    ("size", "text"),
    [(4096, "4K"), (612 << 10, "612K"), (2 * MIB, "2M"), (3 * GIB, "3G"), (1025 << 20, "1025M"), (1 << 52, "4P")],
)
def test_size_in_the_largest_unit(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("name", ["6.12_pc-1g_kimg", "7.3_pc-8g-la57_kimg", "6.12_pc-4g-pti_cpa", "7.3_pc-8g_giga"])
@pytest.mark.parametrize("which", ["boot", "before", "after"])
def test_ranges_of_recordings_hold_every_entry(name: str, which: str) -> None:
    """Each recorded leaf lies in one range, of its level and with its flags (decoded here on their own)."""
    recorded = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))[which]
    start = read_start(GOLDEN / f"{name}.json", which)
    assert start.state is not None
    ranges = [item for item in page_ranges(Pages(start.map, start.state)) if not item.hole]
    base = start.map.page_offset
    total = 0
    for level, offset, count, raw, _ in recorded["leaves"]:
        size = 1 << 12 + 9 * (level - 1)
        first, value = base + int(offset, 16), int(raw, 16)
        (item,) = (item for item in ranges if item.start <= first < item.end)
        assert first + count * size <= item.end
        low = 0x1FFF if level > 1 and value & 0x80 else 0xFFF
        assert (item.level, item.flags & low) == (level, value & low)
        total += count * size
    assert total == sum(item.size for item in ranges)


def test_dump_as_json(backend: str) -> None:
    host = Host(backend, SMALL)
    host.call("set_memory_ro", pfn=0x400, pages=512)
    value = json.loads(json.dumps(pages_to_json(pages_of(host))))
    assert value["direct_map"][1] == {
        "start": "0xffff888000400000",
        "end": "0xffff888000600000",
        "size": 2 * MIB,
        "level": "pmd",
        "hole": False,
        "attributes": ["ro", "PSE", "GLB", "NX", "A"],
        "flags": "0x80000000000001a1",
        "physical": "0x400000",
    }
    assert value["direct_map"][3]["hole"]
    assert "attributes" not in value["direct_map"][3]
    assert "high_mapping" not in value
    assert value["counters"]["direct_map_2m"] == host.counters()["direct_map_2m"]


# differences


def test_difference_is_only_what_changed(backend: str) -> None:
    """Ten pages of a large page lose RW and D: the page is split, and on both sides of them only the level differs."""
    host = Host(backend, SMALL)
    old = pages_of(host)
    host.call("set_memory_ro", pfn=0x410, pages=10)
    new = pages_of(host)
    rows = [(d.start - PAGE_OFFSET >> 12, d.end - PAGE_OFFSET >> 12) for d in diff_ranges(old, new)]
    assert rows == [(0x400, 0x410), (0x410, 0x41A), (0x41A, 0x600)]
    assert [d.old.level_name for d in diff_ranges(old, new)] == ["pmd"] * 3
    assert [d.new.level_name for d in diff_ranges(old, new)] == ["pte"] * 3
    assert list(diff_text(old, new)) == [
        "---[ Direct Map ]---",
        *(
            f"0xffff888000{a}000-0xffff888000{b}000 {size:>10} "
            f"       RW         PSE     GLB NX A D pmd |        {text} pte"
            for a, b, size, text in (
                ("400", "410", "64K", "RW                 GLB NX A D"),
                ("410", "41a", "40K", "ro                 GLB NX A  "),
                ("41a", "600", "1944K", "RW                 GLB NX A D"),
            )
        ),
        "---[ Counters ]---",
        "direct_map_4k                   0 |            512   +512",
        "direct_map_2m                  33 |             32   -1",
        "level2_splits                   0 |              1   +1",
        "flush_all                       0 |              1   +1",
        "flush_pages                     0 |             10   +10",
        "table_pages                     3 |              4   +1",
    ]


def test_difference_is_the_other_way_round_when_asked_so(backend: str) -> None:
    host = Host(backend, IMAGE)
    old = pages_of(host)
    host.call("set_memory_np", pfn=0x1000, pages=3)
    new = pages_of(host)
    for window in (0, 1):
        there, back = diff_ranges(old, new, window), diff_ranges(new, old, window)
        assert there
        assert [(d.start, d.end) for d in there] == [(d.start, d.end) for d in back]
        assert [d.old.words() for d in there] == [d.new.words() for d in back]


def test_no_difference() -> None:
    pages = booted(IMAGE)
    assert diff_ranges(pages, pages) == []
    assert list(diff_text(pages, pages)) == []


def test_holes_differ_too() -> None:
    """More memory: what is a hole in one is mapped in the other."""
    more = booted(dataclasses.replace(SMALL, memory=((0, 66 * MIB),), e820=((0, 66 * MIB, 1),), max_pfn=0x4200))
    (found,) = diff_ranges(booted(SMALL), more)
    assert (found.old.hole, found.new.hole) == (True, False)
    assert (found.start, found.end) == (PAGE_OFFSET + 64 * MIB, PAGE_OFFSET + 66 * MIB)


def test_maps_at_different_offsets_are_compared_by_memory() -> None:
    """The same memory: only the hole above it ends elsewhere in the root's entries."""
    assert all(d.old.hole and d.new.hole for d in diff_ranges(booted(SMALL), booted(SMALL_RANDOM)))


def test_paging_depths_cannot_be_compared() -> None:
    with pytest.raises(PagesError, match="4 and 5 levels"):
        diff_ranges(booted(SMALL), booted(SMALL_LA57))


def test_difference_as_json(backend: str) -> None:
    host = Host(backend, SMALL)
    old = pages_of(host)
    host.call("set_memory_ro", pfn=0x400, pages=512)
    value = json.loads(json.dumps(diff_to_json(old, pages_of(host))))
    (found,) = value["direct_map"]
    assert (found["start"], found["end"]) == ("0xffff888000400000", "0xffff888000600000")
    assert (found["old"]["attributes"][0], found["new"]["attributes"][0]) == ("RW", "ro")
    assert value["counters"] == {"flush_all": [0, 1]}


# pictures


def test_grid_is_sixty_four_to_a_hundred_and_twenty_eight_rows() -> None:
    for top in (64 * MIB, 9 * GIB, 256 * GIB, 0x6037FFFFFFF, 1 << 46, 1 << 52, (1 << 40) + 4096):
        grid = Grid(top)
        assert MAX_ROWS // 2 <= grid.rows <= MAX_ROWS
        assert grid.row == COLUMNS * grid.cell
        assert grid.rows * grid.row >= top > (grid.rows - 1) * grid.row
    assert Grid(9 * GIB).cell == 2 * MIB
    assert Grid(0x6037FFFFFFF).cell == GIB
    assert Grid(4096).cell == 4096


def test_bytes_by_size(backend: str) -> None:
    host = Host(backend, HOLE)
    host.call("set_memory_4k", pfn=0x40000, pages=1)
    host.call("set_memory_np", pfn=0x40001, pages=2)
    mapped = mapped_bytes(pages_of(host), np.array([0, GIB, 2 * GIB, 3 * GIB, 4 * GIB, 5 * GIB], dtype=np.float64))
    assert mapped[3].tolist() == [GIB, 0, GIB, 0, GIB]
    assert mapped[2].tolist() == [0, GIB - 2 * MIB, 0, 0, 0]
    assert mapped[1].tolist() == [0, 2 * MIB - 2 * 4096, 0, 0, 0]


def test_cells_show_what_most_is_and_what_is_smaller(backend: str) -> None:
    """4 GiB and a hole in cells of 1 MiB; then one page is made small: its 2 MiB are two cells of small pages, and the
    rest of its GiB is 2 MiB pages.  In cells of 16 MiB the small ones are only a dot."""
    host = Host(backend, HOLE)
    host.call("set_memory_4k", pfn=0x40000, pages=1)
    pages = pages_of(host)
    grid = Grid(top_of(pages))
    assert (grid.cell, grid.rows) == (MIB, 80)
    most, smallest = (cells.ravel() for cells in map_cells(pages, grid))
    assert set(most[:1024]) == {3}
    assert most[1024:1027].tolist() == [1, 1, 2]
    assert set(most[1026:2048]) == {2}
    assert set(most[3072:4096]) == {0}
    assert set(smallest) == {0}
    grid.cell, grid.row, grid.rows = 16 * MIB, 1 * GIB, 5
    most, smallest = map_cells(pages, grid)
    assert most[:, 0].tolist() == [3, 2, 3, 0, 3]
    assert np.argwhere(smallest).tolist() == [[1, 0]]
    assert smallest[1, 0] == 1


def test_rmp_cells(backend: str) -> None:
    """64 MiB in cells of 8 KiB.  The 4 KiB of one cell, both halves of another, and 2 MiB in one go."""
    host = Host(backend, SNP)
    host.assign(0x101)
    host.assign(0x102)
    host.assign(0x103)
    host.assign(0x400, size=1)
    pages = pages_of(host)
    grid = Grid(top_of(pages))
    assert grid.cell == 8192
    cells = rmp_cells(pages, grid).ravel()
    assert cells[0x7F:0x83].tolist() == [0, 2, 3, 0]
    assert set(cells[0x200:0x300]) == {3}
    assert set(np.delete(cells, [0x80, 0x81, *range(0x200, 0x300)])) == {0}


def test_rmp_cell_with_less_than_half(backend: str) -> None:
    """5 GiB in cells of 1 MiB: 1 of 256 frames is some, 127 are still less than half, 128 are half."""
    host = Host(backend, SNP_HOLE)
    for cell, count in ((1, 1), (2, 127), (3, 128), (4, 255), (5, 256)):
        for index in range(count):
            host.machine.write_rmp((cell << 8) + index, 1, 0)
    pages = pages_of(host)
    cells = rmp_cells(pages, Grid(top_of(pages))).ravel()
    assert cells[:7].tolist() == [0, 1, 1, 2, 2, 3, 0]
    assert set(cells[3072:4096]) == {-1}  # no memory: the hole with the RMP in it
    assert set(cells[4096:]) == {0}


def test_rmp_that_covers_a_part(backend: str) -> None:
    """Frames from 0x3f00 on have no entry; without an RMP none has."""
    pages = booted(SNP_TIGHT, backend)
    cells = rmp_cells(pages, Grid(top_of(pages))).ravel()
    assert (set(cells[: 0x3F00 // 2]), set(cells[0x3F00 // 2 :])) == ({0}, {-1})
    pages = booted(SMALL, backend)
    assert set(rmp_cells(pages, Grid(top_of(pages))).ravel()) == {-1}


def busy_6t() -> Pages:
    start = read_start(LARGEST)
    host = Host("native", start.map)
    host.call("rmp_make_private", pfn=0x10000005, gpa=0x1000, level=1, asid=5)
    host.call("rmp_make_private", pfn=0x8000000, gpa=0x200000, level=2, asid=5)
    return pages_of(host)


def test_picture_of_6_tib_as_svg() -> None:
    """Text stays text, the axis is in TiB, the legend is there; the same state gives the same bytes, and not many."""
    pages = busy_6t()
    data = plot(pages, "x.svg", "the largest")
    text = data.decode("utf-8")
    root = ET.fromstring(text)
    words = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    for word in ("the largest", "0 TiB", "6 TiB", "1G pages", "2M pages", "4K pages", "absent", "all assigned"):
        assert word in words
    assert "Physical memory, to the right and then down: 64 GiB a row, 1 GiB a cell" in words
    assert "RMP (513 frames assigned, 2.004 MiB)" in words
    assert plot(pages, "x.svg", "the largest") == data
    assert len(data) < 500_000


def test_picture_of_8_gib_as_png(tmp_path: Path) -> None:
    """The axis goes to 9 GiB; the file is a PNG with all colours of the legend in it, each of another lightness."""
    from matplotlib.image import imread

    start = read_start(GOLDEN / "7.3_pc-8g_snp.json", "before")
    machine = start.machine(start.settle(Rules()), "native")
    path = tmp_path / "p.png"
    path.write_bytes(plot(Pages(machine.map, machine.state()), str(path), "8 GiB"))
    picture = imread(path)
    assert picture.shape[0] > 1000 and picture.shape[1] > 1400
    seen = {tuple(colour) for colour in np.unique((picture[..., :3].reshape(-1, 3) * 255).round().astype(int), axis=0)}
    for colours in (("cfe3f2", "5f9fce", "0b2f5c"), ("f6ead7", "f2b366", "c8641b", "5c1a08")):
        parts = [tuple(bytes.fromhex(colour)) for colour in colours]
        assert set(parts) <= seen
        grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in parts]
        assert all(one - two > 30 for one, two in itertools.pairwise(grey))


@pytest.mark.parametrize("map_", [SMALL, build_map([(0, 1 * MIB)]), SMALL_LA57, HOLE], ids=lambda m: str(m.max_pfn))
def test_any_machine_can_be_drawn(map_: MachineMap) -> None:
    assert plot(booted(map_), "x.svg", "any").startswith(b"<?xml")


@pytest.mark.parametrize("name", ["p.pdf", "p", "svg", ".svg.gz"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(PlotError, match=r"ends in \.svg or \.png"):
        plot_format(name)
    assert plot_format("P.SVG") == "svg"


# command line


def invoke(*args: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_pages_of_a_map(backend: str) -> None:
    lines = invoke("pages", LARGEST, "--backend", backend).splitlines()
    assert lines[0] == "---[ Direct Map ]---"
    assert lines[6] == "0xffff888100000000-0xffff897d00000000      1008G        RW         PSE     GLB NX A D pud"


def test_pages_of_two_states_of_a_recording(backend: str) -> None:
    path = GOLDEN / "6.12_pc-1g_kimg.json"
    text = invoke("pages", path, "--state", "before", "--diff", path, "--diff-state", "after", "--backend", backend)
    lines = text.splitlines()
    assert lines[0] == "---[ Direct Map ]---"
    assert "direct_map_4k                5600 |          10720   +5120" in lines
    assert "---[ High Kernel Mapping ]---" in lines
    value = json.loads(invoke("pages", path, "--state", "before", "--diff", path, "--diff-state", "after", "--json"))
    assert len(value["direct_map"]) + len(value["high_mapping"]) == len([line for line in lines if "0xf" in line])
    assert invoke("pages", path, "--state", "after", "--diff", path, "--diff-state", "after") == "no difference\n"


def test_pages_of_a_saved_state(tmp_path: Path) -> None:
    """The dump stands for itself: its map and kernel are in it."""
    (tmp_path / "t.trace").write_text("set_memory_ro pfn=0x100000 pages=512\n", encoding="utf-8")
    dump = tmp_path / "d.json"
    invoke("run", tmp_path / "t.trace", "--map", LARGEST, "--kernel", "7.3", "--dump", dump)
    value = json.loads(invoke("pages", dump, "--json"))
    assert (value["map"], value["kernel"]) == ("synthetic-6t", "7.3")
    assert ["ro", "PSE", "GLB", "NX", "A"] in [row.get("attributes") for row in value["direct_map"]]
    counters = invoke("pages", dump, "--counters").splitlines()
    assert counters[3:] == [
        "direct_map_level2_splits 0",
        "direct_map_level3_splits 1",
        "direct_map_level2_collapses 0",
        "direct_map_level3_collapses 0",
    ]
    assert "level3_splits                   0 |              1   +1" in invoke("pages", LARGEST, "--diff", dump)


def test_counters_of_a_recording_follow_its_kernel() -> None:
    text = invoke("pages", GOLDEN / "6.12_pc-8g_giga.json", "--state", "after", "--counters")
    assert text.splitlines()[3:] == ["direct_map_level2_splits 0", "direct_map_level3_splits 0"]


def test_plot_is_written(tmp_path: Path) -> None:
    for name in ("p.svg", "p.png"):
        assert invoke("pages", GOLDEN / "6.12_pc-4g_snp.json", "--state", "after", "--plot", tmp_path / name) == ""
    assert (tmp_path / "p.svg").read_text(encoding="utf-8").count("6.12_pc-4g_snp, recorded state after") >= 1
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    result = CliRunner().invoke(cli, ["pages", str(LARGEST), "--plot", str(tmp_path / "p.svg")])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "Error: a picture needs matplotlib, which is not installed: pip install 'rmpcore[plots]'"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--backend", "oracle", "--seed", "7", "--spots", "12", "--kernel", "7.3")])
def test_selftest_command(options: tuple[str, ...]) -> None:
    lines = invoke("selftest", "--map", GOLDEN / "6.12_pc-1g_kimg.json", *options).splitlines()
    backends = ("oracle",) if options else ("native", "oracle")
    verdicts = [line for line in lines if not line.startswith(" ")]
    assert len(verdicts) == len(backends)
    spots = "12 spots (4 range, 4 array, 4 pages)" if options else "100 spots (34 range, 33 array, 33 pages)"
    for verdict, backend in zip(verdicts, backends, strict=True):
        assert verdict.startswith(f"PASS  {backend}: {spots}, ")


def test_selftest_command_fails_with_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Different spots on the two machines: each passes, and they are not in the same state."""
    from rmpcore import cli as module
    from rmpcore.selftest import SelfTest, selftest

    def other_seed(machine: Any, spots: int, seed: int) -> SelfTest:
        return selftest(machine, spots, seed + (machine.backend == "oracle"))

    monkeypatch.setattr(module, "test_machine", other_seed)
    result = CliRunner().invoke(cli, ["selftest", "--map", str(GOLDEN / "6.12_pc-1g_kimg.json"), "--spots", "6"])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "FAIL  native and oracle are not in the same state"
