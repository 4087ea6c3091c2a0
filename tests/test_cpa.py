"""direct-map §4 to §7: changing attributes, splitting, static protections, aliases, flushes."""

from __future__ import annotations

import dataclasses

import pytest
from machines import (
    EFAULT,
    ENOMEM,
    FRAME_MASK,
    GIB,
    HIGH_MAPPING,
    HOLE,
    IMAGE,
    IMAGE_MOVED,
    LARGE_LEAF,
    MIB,
    NX,
    PAGE_OFFSET,
    PC,
    PCD,
    RW,
    SMALL_LEAF,
    SOFTW3,
    SPLIT_TABLE,
    A,
    Host,
    P,
    build_map,
    changed,
    continued,
    inverted,
    kinds,
    leaves,
    tables,
    with_leaves,
)

from rmpcore.maps import KernelImage, MachineMap
from rmpcore.ops import Event, EventKind, Kind, Refusal

SPLIT_EVENTS = [EventKind.TABLE_ALLOC, EventKind.SPLIT, EventKind.FLUSH_ALL]
UNMARKED = ["6.1", "6.12", "6.14"]
MARKED = ["6.15", "7.3"]


def mark_of(kernel: str) -> int:
    """The flag that set_memory_4k leaves on each page (§7, §10)."""
    return SOFTW3 if kernel in MARKED else 0


# §4.4: the split


@pytest.mark.parametrize("kernel", UNMARKED + MARKED)
def test_split_2m(backend: str, kernel: str) -> None:
    """§4.4: 512 level-1 entries, flags in small form, frames consecutive; counters -1 and +512; one flush of
    everything."""
    host = Host(backend, kernel=kernel)
    assert host.call("set_memory_4k", pfn=0x403, pages=1) == 0
    mine = {(1, at): at | SMALL_LEAF for at in range(0x400000, 0x600000, 0x1000)}
    mine[1, 0x403000] |= mark_of(kernel)
    others = {(2, at): at | LARGE_LEAF for at in range(0, 64 * MIB, 2 * MIB) if at != 0x400000}
    assert leaves(host.state()) == mine | others
    assert tables(host.state())[2, 0x400000] == 0x3FFC000 | SPLIT_TABLE
    assert host.counts() == (512, 33 - 1, 0)
    counters = host.counters()
    assert (counters["level2_splits"], counters["level3_splits"]) == (1, 0)
    assert counters["table_pages"] == 4
    assert counters["flush_all"] == 1


def test_events_of_a_split_2m(backend: str) -> None:
    """§4.4: table page, split, flush, in this order, with addresses and raw values."""
    host = Host(backend, kernel="6.12")
    host.call("set_memory_4k", pfn=0x403, pages=1)
    assert host.events() == [
        Event(EventKind.TABLE_ALLOC, level=1, a=0x3FFC000),
        Event(EventKind.SPLIT, level=2, a=PAGE_OFFSET + 0x400000, b=0x400000 | LARGE_LEAF, c=0x3FFC000),
        Event(EventKind.FLUSH_ALL),
    ]


def test_split_1g_twice(backend: str) -> None:
    """§4.4: a forced 1 GiB page is split twice: 512 level-2 entries with step 512 frames, then one of them."""
    host = Host(backend, HOLE, kernel="6.12")
    assert host.call("set_memory_4k", pfn=0x40203, pages=1) == 0
    found = leaves(host.state())
    assert [found[2, at] for at in range(GIB, 2 * GIB, 2 * MIB) if at != GIB + 2 * MIB] == [
        at | LARGE_LEAF for at in range(GIB, 2 * GIB, 2 * MIB) if at != GIB + 2 * MIB
    ]
    assert [found[1, at] for at in range(GIB + 2 * MIB, GIB + 4 * MIB, 0x1000)] == [
        at | SMALL_LEAF for at in range(GIB + 2 * MIB, GIB + 4 * MIB, 0x1000)
    ]
    assert len(found) == 3 + 511 + 512
    # 7 pages of 1G were counted at boot (test_boot)
    assert host.counts() == (512, 512 - 1, 7 - 1)
    counters = host.counters()
    assert (counters["level3_splits"], counters["level2_splits"], counters["flush_all"]) == (1, 1, 2)
    # the root is the highest frame of memory, the level-3 table the next below
    top = 5 * GIB
    assert host.events() == [
        Event(EventKind.TABLE_ALLOC, level=2, a=top - 0x3000),
        Event(EventKind.SPLIT, level=3, a=PAGE_OFFSET + GIB, b=GIB | LARGE_LEAF, c=top - 0x3000),
        Event(EventKind.FLUSH_ALL),
        Event(EventKind.TABLE_ALLOC, level=1, a=top - 0x4000),
        Event(EventKind.SPLIT, level=2, a=PAGE_OFFSET + GIB + 2 * MIB, b=GIB + 2 * MIB | LARGE_LEAF, c=top - 0x4000),
        Event(EventKind.FLUSH_ALL),
    ]


def test_range_across_2m_lines(backend: str) -> None:
    """§4: a forced range is walked page by page; each large page on the way is split once."""
    host = Host(backend, kernel="6.12")
    assert host.call("set_memory_4k", pfn=0x3FF, pages=514) == 0
    assert host.counts() == (3 * 512, 33 - 3, 0)
    assert host.counters()["level2_splits"] == 3
    assert kinds(host.events()) == SPLIT_EVENTS * 3
    assert host.leaf(0x1FF)[0] == 2
    assert [host.leaf(pfn)[0] for pfn in (0x200, 0x3FF, 0x400, 0x5FF, 0x600, 0x7FF)] == [1] * 6
    assert host.leaf(0x800)[0] == 2


def test_range_across_a_1g_line(backend: str) -> None:
    """§4: two pages on either side of a 1 GiB line cost four splits."""
    host = Host(backend, HOLE, kernel="6.12")
    assert host.call("set_memory_4k", pfn=0x3FFFF, pages=2) == 0
    assert host.counts() == (2 * 512, 2 * 512 - 2, 7 - 2)
    assert [host.leaf(pfn)[0] for pfn in (0x3FDFF, 0x3FE00, 0x3FFFF, 0x40000, 0x401FF, 0x40200)] == [2, 1, 1, 1, 1, 2]
    counters = host.counters()
    assert (counters["level3_splits"], counters["level2_splits"], counters["flush_all"]) == (2, 2, 4)
    assert counters["table_pages"] == 2 + 4


def test_already_small(backend: str) -> None:
    """§4.2: nothing differs, so nothing is written and nothing flushed (before 6.15)."""
    host = Host(backend, kernel="6.12")
    host.call("set_memory_4k", pfn=0x400, pages=1)
    before = host.state()
    host.events()
    assert host.call("set_memory_4k", pfn=0x400, pages=512) == 0
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("kernel", UNMARKED + MARKED)
def test_no_pages(backend: str, kernel: str) -> None:
    """§4: zero pages: 0, and nothing touched."""
    host = Host(backend, kernel=kernel)
    before = host.state()
    assert host.call("set_memory_4k", pfn=0x400, pages=0) == 0
    assert host.state() == before
    assert host.events() == []


def test_every_page(backend: str) -> None:
    """§4: all of memory: 32 splits; the counter keeps the one page that boot counted twice."""
    host = Host(backend, kernel="6.12")
    assert host.call("set_memory_4k", pfn=0, pages=0x4000) == 0
    assert host.counts() == (32 * 512, 1, 0)
    assert leaves(host.state()) == {(1, at): at | SMALL_LEAF for at in range(0, 64 * MIB, 0x1000)}


def test_table_pages_in_order(backend: str) -> None:
    """Each split takes the highest frame that is free: 0x3ffc after the three of boot, then downward."""
    host = Host(backend, kernel="6.12")
    host.call("set_memory_4k", pfn=0x800, pages=1)
    host.call("set_memory_4k", pfn=0x400, pages=1)
    hung = tables(host.state())
    assert hung[2, 0x800000] & FRAME_MASK == 0x3FFC000
    assert hung[2, 0x400000] & FRAME_MASK == 0x3FFB000


# §4.4: the counters


def test_counter_at_zero_is_left_alone(backend: str) -> None:
    """§4.4 "only if counter[level] was not 0": neither count moves, and no split is counted; the split happens."""
    first = Host(backend, kernel="6.12")
    host = continued(first, changed(first.state(), counters={"direct_map_2m": 0, "direct_map_4k": 7}))
    assert host.call("set_memory_4k", pfn=0x400, pages=1) == 0
    assert host.leaf(0x400)[0] == 1
    counters = host.counters()
    assert host.counts() == (7, 0, 0)
    assert counters["level2_splits"] == 0
    assert (counters["flush_all"], counters["table_pages"]) == (1, 4)


def test_counter_runs_down_to_zero(backend: str) -> None:
    """§4.4: with one 2M page counted, the first split moves the counters and the second does not."""
    first = Host(backend, kernel="6.12")
    host = continued(first, changed(first.state(), counters={"direct_map_2m": 1}))
    host.call("set_memory_4k", pfn=0x400, pages=1)
    host.call("set_memory_4k", pfn=0x600, pages=1)
    assert host.counts() == (512, 0, 0)
    assert host.counters()["level2_splits"] == 1
    assert host.counters()["flush_all"] == 2


def test_giga_counter_at_zero(backend: str) -> None:
    """§4.4 at level 3: the 1G split moves nothing; the 2M split below finds counter 2M at 0 and moves nothing
    either."""
    first = Host(backend, HOLE, kernel="6.12")
    host = continued(first, changed(first.state(), counters={"direct_map_1g": 0}))
    host.call("set_memory_4k", pfn=0x40000, pages=1)
    assert host.counts() == (0, 0, 0)
    assert host.counters()["level3_splits"] == 0
    assert host.counters()["level2_splits"] == 0


def test_frames_outside_the_mapped_list_are_not_counted(backend: str) -> None:
    """§4.4: "and its frame is in the mapped list": the counters move only for those."""
    first = Host(backend, kernel="6.12")
    host = continued(first, changed(first.state(), mapped=((0x600, 0x800),)))
    host.call("set_memory_4k", pfn=0x400, pages=1)
    assert host.counts() == (0, 33, 0)
    host.call("set_memory_4k", pfn=0x600, pages=1)
    assert host.counts() == (512, 32, 0)


# §4.1: holes and the end


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_hole_is_skipped(backend: str, kernel: str) -> None:
    """§4.1: nothing there, inside the mapped frames: one page counts as done; the pages before and after are
    changed."""
    host = Host(backend, build_map([(0, 64 * MIB), (66 * MIB, 30 * MIB)]), kernel=kernel)
    assert host.call("set_memory_4k", pfn=0x3FFF, pages=0x202) == 0
    assert [host.leaf(pfn)[0] for pfn in (0x3FFF, 0x4000, 0x41FF, 0x4200)] == [1, 0, 0, 1]
    assert host.counters()["level2_splits"] == 2


@pytest.mark.parametrize("name", ["set_memory_4k", "set_direct_map_invalid_noflush", "set_direct_map_default_noflush"])
def test_only_a_hole(backend: str, name: str) -> None:
    """§4.1: a call on a hole alone succeeds and does nothing."""
    host = Host(backend, HOLE)
    before = host.state()
    pages = {"pages": 1} if name == "set_memory_4k" else {}
    assert host.call(name, pfn=0xC0000, **pages) == 0
    assert host.state() == before
    assert host.events() == []


FAR = build_map([(0, 64 * MIB), (1 << 45, 64 * MIB)])
"""A hole of 32 TiB, which nobody counts through page by page in the time of a test."""


@pytest.mark.parametrize("image", [None, IMAGE.image])
def test_a_hole_of_terabytes(image: KernelImage | None) -> None:
    """§4.1, §4.6: pages of a hole count as done, and have no cache lines to flush; the C core passes over them."""
    host = Host("native", dataclasses.replace(FAR, image=image), kernel="7.3")
    far = 1 << 33
    assert host.call("_set_memory_uc", pfn=0x3E00, pages=far - 0x3E00 + 0x200) == 0
    assert [host.leaf(pfn)[0] for pfn in (0x3E00, 0x4000, far - 1, far)] == [2, 0, 0, 2]
    assert [host.leaf(pfn)[1] & PCD for pfn in (0x3C00, 0x3E00, far, far + 0x200)] == [0, PCD, PCD, 0]
    flushed = [(event.a - PAGE_OFFSET >> 12, event.b) for event in host.events() if event.kind == EventKind.FLUSH_CACHE]
    assert flushed == [(0x3E00, 0x200), (far, 0x200)]


def test_a_call_on_all_addresses() -> None:
    """§4.1, §10: before 6.2 a change of NX alone does not end where the direct map does."""
    host = Host("native", HOLE, kernel="6.1")
    assert host.call("set_memory_x", pfn=0, pages=1 << 34) == 0
    assert {raw & NX for raw in leaves(host.state()).values()} == {0}
    host = Host("native", HOLE, kernel="6.2")
    assert host.call("set_memory_x", pfn=0, pages=1 << 34) == EFAULT


def test_zero_entry_is_a_hole(backend: str) -> None:
    """§4.1: a level-1 entry that is zero is treated as nothing there."""
    first = Host(backend, kernel="7.3")
    first.call("set_memory_4k", pfn=0x400, pages=1)
    host = continued(first, with_leaves(first.state(), {(0, 1, 0x405000): 0}))
    before = host.state()
    assert host.call("set_memory_4k", pfn=0x405, pages=1) == 0
    assert host.call("set_direct_map_default_noflush", pfn=0x405) == 0
    assert host.state() == before


@pytest.mark.parametrize(
    ("name", "pages"),
    [
        ("set_memory_4k", {"pages": 1}),
        ("set_direct_map_invalid_noflush", {}),
        ("set_direct_map_default_noflush", {}),
        ("set_direct_map_valid_noflush", {"pages": 3, "valid": 0}),
        ("set_direct_map_valid_noflush", {"pages": 3, "valid": 1}),
    ],
)
@pytest.mark.parametrize("pfn", [0x4000, 0x4001, 0x100000, (1 << 34) - 3])
def test_outside_is_efault(backend: str, name: str, pages: dict[str, int], pfn: int) -> None:
    """§4.1: nothing there, at or above max_pfn_mapped: -EFAULT."""
    host = Host(backend, kernel="6.13")
    before = host.state()
    assert host.call(name, pfn=pfn, **pages) == EFAULT
    assert host.state() == before
    assert host.events() == []


def test_empty_level_1_slot_beyond_the_end_is_efault(backend: str) -> None:
    """§4.1: the same for a zero level-1 entry: PC's memory ends inside a level-1 table."""
    host = Host(backend, PC)
    assert host.call("set_memory_4k", pfn=0x3FDF, pages=1) == 0
    assert host.call("set_memory_4k", pfn=0x3FE0, pages=1) == EFAULT


@pytest.mark.parametrize(("kernel", "flushes"), [("6.12", 1), ("7.3", 2)])
def test_running_over_the_end(backend: str, kernel: str, flushes: int) -> None:
    """§4.1, §4.6: what was done before the end stays done; on error everything is flushed, if something had changed
    (before 6.15 set_memory_4k changes no small entry, so only the split has flushed)."""
    host = Host(backend, kernel=kernel)
    assert host.call("set_memory_4k", pfn=0x3FFE, pages=5) == EFAULT
    assert host.leaf(0x3FFE) == (1, 0x3FFE000 | SMALL_LEAF | mark_of(kernel))
    assert host.leaf(0x3FFF) == (1, 0x3FFF000 | SMALL_LEAF | mark_of(kernel))
    counters = host.counters()
    assert (counters["level2_splits"], counters["flush_all"], counters["flush_pages"]) == (1, flushes, 0)


def test_bound_is_max_pfn_mapped(backend: str) -> None:
    """§4.1: the bound for holes is max_pfn_mapped; what is mapped above it is changed all the same."""
    first = Host(backend, HOLE, kernel="6.12")
    host = continued(first, changed(first.state(), max_pfn_mapped=0xC0001))
    assert host.call("set_memory_4k", pfn=0xC0000, pages=1) == 0
    assert host.call("set_memory_4k", pfn=0xC0001, pages=1) == EFAULT
    assert host.call("set_memory_4k", pfn=0x100000, pages=1) == 0
    assert host.leaf(0x100000)[0] == 1


@pytest.mark.parametrize(("pfn", "pages"), [(1 << 34, 1), (0, (1 << 34) + 1), ((1 << 34) - 1, 2), (1, (1 << 64) - 1)])
def test_beyond_the_area_is_refused(backend: str, pfn: int, pages: int) -> None:
    """Frames beyond the direct map's area are not modelled: refused, even where pfn + pages does not fit 64 bits."""
    host = Host(backend, kernel="6.13")
    before = host.state()
    for result in (
        host.do("set_memory_4k", pfn=pfn, pages=pages),
        host.do("set_direct_map_valid_noflush", pfn=pfn, pages=pages, valid=0),
    ):
        assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_ARGUMENT)
    assert host.state() == before


# §4.4, §4.6: no memory


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_enomem_at_the_kth_table(backend: str, kernel: str, skip: int) -> None:
    """§4.4: the loop stops there, what was done stays done, the entry is untouched; §4.6: flush everything if
    changed."""
    host = Host(backend, kernel=kernel)
    host.call("fail_alloc", skip=skip, count=1)
    assert host.state().fail_alloc == (skip, 1)
    assert host.call("set_memory_4k", pfn=0x400, pages=4 * 512) == ENOMEM
    expected = {(2, at): at | LARGE_LEAF for at in range(0, 64 * MIB, 2 * MIB)}
    for number in range(skip):
        start = 0x400000 + number * 2 * MIB
        del expected[2, start]
        expected |= {(1, at): at | SMALL_LEAF | mark_of(kernel) for at in range(start, start + 2 * MIB, 0x1000)}
    assert leaves(host.state()) == expected
    assert host.counts() == (skip * 512, 33 - skip, 0)
    assert host.state().fail_alloc == (0, 0)
    # fail_alloc itself reports nothing
    changed_something = bool(skip) and kernel in MARKED
    expected_events = SPLIT_EVENTS * skip + [EventKind.ALLOC_FAIL] + [EventKind.FLUSH_ALL] * changed_something
    events = host.events()
    assert kinds(events) == expected_events
    assert events[3 * skip] == Event(EventKind.ALLOC_FAIL, level=1)
    assert host.counters()["flush_all"] == skip + changed_something
    assert host.call("set_memory_4k", pfn=0x400, pages=4 * 512) == 0
    assert host.counts() == (4 * 512, 33 - 4, 0)


def test_enomem_between_the_two_splits_of_1g(backend: str) -> None:
    """§4.4: the 1 GiB page is split to 2 MiB, then no page is left: 2 MiB leaves stay."""
    host = Host(backend, HOLE, kernel="6.12")
    host.call("fail_alloc", skip=1, count=1)
    assert host.call("set_memory_4k", pfn=0x40003, pages=1) == ENOMEM
    assert host.leaf(0x40003) == (2, GIB | LARGE_LEAF)
    assert host.counts() == (0, 512, 6)
    events = host.events()
    assert kinds(events) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL]
    assert events[-1].level == 1


def test_enomem_for_the_1g_table(backend: str) -> None:
    """§4.4: the event names the level of the entries that the table would have held."""
    host = Host(backend, HOLE, kernel="6.12")
    host.call("fail_alloc")
    assert host.call("set_memory_4k", pfn=0x40003, pages=1) == ENOMEM
    assert host.leaf(0x40003) == (3, GIB | LARGE_LEAF)
    assert host.events() == [Event(EventKind.ALLOC_FAIL, level=2)]


@pytest.mark.parametrize("name", ["set_direct_map_invalid_noflush", "set_direct_map_valid_noflush"])
def test_enomem_without_final_flush(backend: str, name: str) -> None:
    """§7 "no final flush": not on error either."""
    host = Host(backend, kernel="6.13")
    host.call("fail_alloc", skip=1, count=1)
    if name == "set_direct_map_invalid_noflush":
        assert host.call(name, pfn=0x400) == 0
        assert host.call(name, pfn=0x600) == ENOMEM
    else:
        assert host.call(name, pfn=0x5FF, pages=2, valid=0) == ENOMEM
        assert host.leaf(0x5FF) == (1, inverted(0x5FF000, NX | A))
    assert host.leaf(0x600) == (2, 0x600000 | LARGE_LEAF)
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL]


def test_memory_runs_out(backend: str) -> None:
    """§4.4: with four free frames, three of them in the tables of boot, the second split finds none."""
    host = Host(backend, build_map([(0, 64 * MIB)], reserved=[(0, 64 * MIB - 0x4000)]), kernel="6.12")
    assert host.call("set_memory_4k", pfn=0x400, pages=1) == 0
    assert tables(host.state())[2, 0x400000] & FRAME_MASK == 0x3FFC000
    assert host.call("set_memory_4k", pfn=0x600, pages=1) == ENOMEM
    assert host.events()[-1] == Event(EventKind.ALLOC_FAIL, level=1)


def test_fail_alloc_counts_down(backend: str) -> None:
    """fail_alloc: skip counts down first, then count; a new one replaces the old."""
    host = Host(backend, kernel="6.12")
    host.call("fail_alloc", skip=2, count=2)
    left = []
    for pfn in (0x400, 0x600, 0x800, 0xA00, 0xC00):
        ret = host.call("set_memory_4k", pfn=pfn, pages=1)
        left.append((ret, host.state().fail_alloc))
    assert left == [(0, (1, 2)), (0, (0, 2)), (ENOMEM, (0, 1)), (ENOMEM, (0, 0)), (0, (0, 0))]
    host.call("fail_alloc", skip=0, count=9)
    host.call("fail_alloc", skip=4, count=1)
    assert host.state().fail_alloc == (4, 1)


# §4.6: flushes


@pytest.mark.parametrize(
    ("pages", "single"), [(1, True), (2, True), (33, True), (34, False), (512, False), (513, False)]
)
def test_flush_ceiling(backend: str, pages: int, single: bool) -> None:
    """§4.6: up to 33 pages page by page, more than 33 all at once."""
    host = Host(backend, kernel="6.15")
    host.call("set_memory_4k", pfn=0x400, pages=1024)
    unmarked = {(0, 1, pfn << 12): pfn << 12 | SMALL_LEAF for pfn in range(0x400, 0x800)}
    host = continued(host, with_leaves(host.state(), unmarked))
    before = host.counters()
    assert host.call("set_memory_4k", pfn=0x400, pages=pages) == 0
    after = host.counters()
    if single:
        assert host.events() == [Event(EventKind.FLUSH_PAGES, a=PAGE_OFFSET + 0x400000, b=pages)]
    else:
        assert host.events() == [Event(EventKind.FLUSH_ALL)]
    assert after["flush_pages"] - before["flush_pages"] == (pages if single else 0)
    assert after["flush_all"] - before["flush_all"] == (0 if single else 1)


def test_flush_counts_the_pages_asked_for(backend: str) -> None:
    """§4.6: 40 pages asked for, one of them changed: everything is flushed."""
    first = Host(backend, kernel="6.15")
    first.call("set_memory_4k", pfn=0x400, pages=40)
    host = continued(first, with_leaves(first.state(), {(0, 1, 0x407000): 0x407000 | SMALL_LEAF}))
    host.call("set_memory_4k", pfn=0x400, pages=40)
    assert host.events() == [Event(EventKind.FLUSH_ALL)]
    assert host.leaf(0x407) == (1, 0x407000 | SMALL_LEAF | SOFTW3)


@pytest.mark.parametrize("kernel", UNMARKED + MARKED)
def test_mark_makes_a_flush(backend: str, kernel: str) -> None:
    """§7, §10: from 6.15 set_memory_4k sets KERNEL_4K, which is a change, so a flush follows the split's own."""
    host = Host(backend, kernel=kernel)
    host.call("set_memory_4k", pfn=0x405, pages=1)
    after_split = [Event(EventKind.FLUSH_PAGES, a=PAGE_OFFSET + 0x405000, b=1)] if kernel in MARKED else []
    assert host.events()[3:] == after_split
    assert host.leaf(0x405) == (1, 0x405000 | SMALL_LEAF | mark_of(kernel))
    assert host.leaf(0x406) == (1, 0x406000 | SMALL_LEAF)
    # the second call finds the mark in place
    host.call("set_memory_4k", pfn=0x405, pages=1)
    assert host.events() == []


def test_mark_on_a_page_that_is_already_small(backend: str) -> None:
    """§7: no split is needed; the neighbour gets its mark and its flush."""
    host = Host(backend, kernel="7.3")
    host.call("set_memory_4k", pfn=0x405, pages=1)
    host.events()
    assert host.call("set_memory_4k", pfn=0x406, pages=2) == 0
    assert host.events() == [Event(EventKind.FLUSH_PAGES, a=PAGE_OFFSET + 0x406000, b=2)]
    assert host.counters()["flush_pages"] == 1 + 2


def test_mark_on_a_not_present_page(backend: str) -> None:
    """§4.2: a not-present page is not zero: it takes the mark and stays inverted."""
    host = Host(backend, kernel="6.15")
    host.call("set_direct_map_invalid_noflush", pfn=0x405)
    host.call("set_memory_4k", pfn=0x405, pages=1)
    assert host.leaf(0x405) == (1, inverted(0x405000, NX | A | SOFTW3))
    host.call("set_direct_map_default_noflush", pfn=0x405)
    assert host.leaf(0x405) == (1, 0x405000 | NX | 0x023 | SOFTW3)


def test_noflush_calls_do_not_flush(backend: str) -> None:
    """§7: "invalid", "default" and "valid" flush only where they split."""
    host = Host(backend, kernel="6.13")
    host.call("set_direct_map_invalid_noflush", pfn=0x405)
    assert kinds(host.events()) == SPLIT_EVENTS
    host.call("set_direct_map_default_noflush", pfn=0x405)
    host.call("set_direct_map_invalid_noflush", pfn=0x406)
    host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0)
    host.call("set_direct_map_valid_noflush", pfn=0x600, pages=0x200, valid=0)
    assert host.events() == []
    assert host.counters()["flush_all"] == 1


# §4.3: large pages, not forced


def test_nothing_to_do_comes_before_the_split(backend: str) -> None:
    """§4.3b before §4.3c: "default" on one page of a present large page: required = existing, so no split."""
    host = Host(backend, HOLE, kernel="6.13")
    before = host.state()
    assert host.call("set_direct_map_default_noflush", pfn=0x40003) == 0
    assert host.call("set_direct_map_valid_noflush", pfn=0x3FFFF, pages=0x40002, valid=1) == 0
    assert host.state() == before
    assert host.events() == []


def test_partial_request_splits(backend: str) -> None:
    """§4.3c: one page fewer than the large page, at either end."""
    for pfn, pages in ((0x400, 0x1FF), (0x401, 0x1FF)):
        host = Host(backend, kernel="6.13")
        assert host.call("set_direct_map_valid_noflush", pfn=pfn, pages=pages, valid=0) == 0
        for at in range(0x400, 0x600):
            gone = pfn <= at < pfn + pages
            assert host.leaf(at) == (1, inverted(at << 12, NX | A) if gone else at << 12 | SMALL_LEAF)


def test_exact_request_keeps_the_large_page(backend: str) -> None:
    """§4.3e: exactly the large page: rewritten, no split, the count stays."""
    host = Host(backend, kernel="6.13")
    assert host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0) == 0
    assert host.leaf(0x400) == (2, inverted(0x400000, NX | A))
    assert host.counts() == (0, 33, 0)
    assert host.events() == []


def test_mixed_request(backend: str) -> None:
    """§4.3: n is cut at the end of each large page: split, rewrite, split for a range that overhangs by a page each
    side."""
    host = Host(backend, kernel="6.13")
    assert host.call("set_direct_map_valid_noflush", pfn=0x3FF, pages=0x202, valid=0) == 0
    assert host.leaf(0x3FE) == (1, 0x3FE000 | SMALL_LEAF)
    assert host.leaf(0x3FF) == (1, inverted(0x3FF000, NX | A))
    assert host.leaf(0x400) == (2, inverted(0x400000, NX | A))
    assert host.leaf(0x600) == (1, inverted(0x600000, NX | A))
    assert host.leaf(0x601) == (1, 0x601000 | SMALL_LEAF)
    assert host.counters()["level2_splits"] == 2
    assert host.call("set_direct_map_valid_noflush", pfn=0x3FF, pages=0x202, valid=1) == 0
    assert host.leaf(0x400) == (2, 0x400000 | NX | 0x0A3)
    assert host.leaf(0x600) == (1, 0x600000 | NX | 0x023)
    assert host.counters()["level2_splits"] == 2


def test_1g_page_for_a_2m_request(backend: str) -> None:
    """§4.3c then §4.3e: the 1 GiB page is split; of the new 2 MiB pages the request covers one exactly."""
    host = Host(backend, HOLE, kernel="6.13")
    assert host.call("set_direct_map_valid_noflush", pfn=0x40200, pages=0x200, valid=0) == 0
    assert host.leaf(0x40000) == (2, GIB | LARGE_LEAF)
    assert host.leaf(0x40200) == (2, inverted(0x40200000, NX | A))
    assert host.counts() == (0, 512, 6)
    assert kinds(host.events()) == SPLIT_EVENTS


def test_forced_even_if_exact(backend: str) -> None:
    """§4.3 "forced: split, always"."""
    host = Host(backend, kernel="6.12")
    assert host.call("set_memory_4k", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x400)[0] == 1


def test_forced_on_a_not_present_large_page(backend: str) -> None:
    """§4.4: a not-present large page is split as well; its children stay not present."""
    host = Host(backend, kernel="6.13")
    host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0)
    assert host.call("set_memory_4k", pfn=0x400, pages=1) == 0
    assert host.leaf(0x4FF) == (1, inverted(0x4FF000, NX | A))
    assert host.counts() == (512, 32, 0)
    raw_event = host.events()[1]
    assert raw_event == Event(
        EventKind.SPLIT, level=2, a=PAGE_OFFSET + 0x400000, b=inverted(0x400000, NX | A), c=0x3FFC000
    )


# §6: aliases in the high mapping


def test_alias_is_split_too(backend: str) -> None:
    """§6: a frame of the image: the same is done on the high mapping, right after the page of the direct map; both
    splits count."""
    host = Host(backend, IMAGE, kernel="6.12")
    assert host.call("set_memory_4k", pfn=0x1203, pages=1) == 0
    state = host.state()
    high = leaves(state, 1)
    assert {at: high[1, at] for at in range(0x1200000, 0x1400000, 0x1000)} == {
        at: at | 0x163 for at in range(0x1200000, 0x1400000, 0x1000)
    }
    assert len(high) == 9 + 512
    # tables: five at boot
    assert tables(state, 1) == {(2, 0x1200000): 0x3FF9000 | SPLIT_TABLE}
    assert host.counts() == (2 * 512, 33 - 2, 0)
    assert host.events() == [
        Event(EventKind.TABLE_ALLOC, level=1, a=0x3FFA000),
        Event(EventKind.SPLIT, level=2, a=PAGE_OFFSET + 0x1200000, b=0x1200000 | LARGE_LEAF, c=0x3FFA000),
        Event(EventKind.FLUSH_ALL),
        Event(EventKind.TABLE_ALLOC, level=1, a=0x3FF9000),
        Event(EventKind.SPLIT, level=2, a=HIGH_MAPPING + 0x1200000, b=0x1200000 | 0x1E3, c=0x3FF9000),
        Event(EventKind.FLUSH_ALL),
    ]


def test_alias_makes_the_flush_a_full_one(backend: str) -> None:
    """§4.6, §6: one page is marked (6.15), but an alias was touched: everything is flushed, not one page."""
    host = Host(backend, IMAGE, kernel="6.15")
    host.call("set_memory_4k", pfn=0x1203, pages=1)
    assert kinds(host.events()) == SPLIT_EVENTS * 2 + [EventKind.FLUSH_ALL]
    assert leaves(host.state(), 1)[1, 0x1203000] == 0x1203000 | 0x163 | SOFTW3
    assert leaves(host.state(), 1)[1, 0x1204000] == 0x1204000 | 0x163
    assert host.counters()["flush_pages"] == 0


@pytest.mark.parametrize(
    ("map_", "pfn", "offset"),
    [
        (IMAGE, 0xFFF, None),
        (IMAGE, 0x1000, 0x1000000),
        # _brk_end is 0x...82345000: up to the 2 MiB line above it
        (IMAGE, 0x2345, 0x2345000),
        (IMAGE, 0x23FF, 0x23FF000),
        (IMAGE, 0x2400, None),
        # moved up by 8 MiB
        (IMAGE_MOVED, 0x17FF, None),
        (IMAGE_MOVED, 0x1800, 0x1000000),
        (IMAGE_MOVED, 0x2BFF, 0x23FF000),
        (IMAGE_MOVED, 0x2C00, None),
    ],
)
def test_frames_of_the_image(backend: str, map_: MachineMap, pfn: int, offset: int | None) -> None:
    """§6: from the first frame of _text to the frame of the last byte before _brk_end rounded up to 2 MiB,
    inclusive."""
    host = Host(backend, map_, kernel="7.3")
    assert host.call("set_memory_4k", pfn=pfn, pages=1) == 0
    marked = {key[1]: raw for key, raw in leaves(host.state(), 1).items() if key[0] == 1 and raw & SOFTW3}
    assert marked == ({} if offset is None else {offset: pfn << 12 | 0x163 | SOFTW3})


def test_range_into_the_image(backend: str) -> None:
    """§4.5: the alias check is made for each chunk: only pages of the image are repeated."""
    host = Host(backend, IMAGE, kernel="7.3")
    assert host.call("set_memory_4k", pfn=0xFFE, pages=4) == 0
    high = leaves(host.state(), 1)
    assert [high[1, at] & SOFTW3 for at in (0x1000000, 0x1001000, 0x1002000)] == [SOFTW3, SOFTW3, 0]
    # the image's page of the direct map is its own 2 MiB page: two splits there, one above
    assert host.counters()["level2_splits"] == 3


def test_noflush_calls_leave_the_alias_alone(backend: str) -> None:
    """§7: "no alias check": the page goes from the direct map only."""
    host = Host(backend, IMAGE, kernel="6.13")
    before = leaves(host.state(), 1)
    host.call("set_direct_map_invalid_noflush", pfn=0x1203)
    host.call("set_direct_map_valid_noflush", pfn=0x1400, pages=0x200, valid=0)
    assert leaves(host.state(), 1) == before
    assert host.counters()["level2_splits"] == 1


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_errors_of_an_alias_are_ignored(backend: str, kernel: str) -> None:
    """§6 "errors ignored": no page for the high mapping's table: the call succeeds all the same."""
    host = Host(backend, IMAGE, kernel=kernel)
    host.call("fail_alloc", skip=1, count=1)
    assert host.call("set_memory_4k", pfn=0x1203, pages=1) == 0
    assert leaves(host.state(), 1)[2, 0x1200000] == 0x1200000 | 0x1E3
    assert host.leaf(0x1203) == (1, 0x1203000 | SMALL_LEAF | mark_of(kernel))
    final = [EventKind.FLUSH_ALL] if kernel in MARKED else []
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL, *final]


def test_hole_in_the_alias_is_done(backend: str) -> None:
    """§6: an alias run treats holes as done."""
    first = Host(backend, IMAGE, kernel="7.3")
    host = continued(first, with_leaves(first.state(), {(1, 2, 0x1200000): 0}))
    assert host.call("set_memory_4k", pfn=0x1203, pages=1) == 0
    assert len(leaves(host.state(), 1)) == 9
    assert host.leaf(0x1203) == (1, 0x1203000 | SMALL_LEAF | SOFTW3)


def test_no_alias_for_frames_outside_the_mapped_list(backend: str) -> None:
    """§6 "if they are in the mapped list"."""
    first = Host(backend, IMAGE, kernel="7.3")
    host = continued(first, changed(first.state(), mapped=((0, 0x1200),)))
    before = leaves(host.state(), 1)
    assert host.call("set_memory_4k", pfn=0x1203, pages=1) == 0
    assert leaves(host.state(), 1) == before
    assert host.call("set_memory_4k", pfn=0x1103, pages=1) == 0
    assert leaves(host.state(), 1) != before


# §5: static protections (read-only data is frames 0x1803 to 0x1806)


def read_only(backend: str, kernel: str, on: bool = True) -> Host:
    """A machine with the image whose kernel has made it read-only."""
    first = Host(backend, IMAGE, kernel=kernel)
    return continued(first, changed(first.state(), kernel_readonly=on))


RODATA = range(0x1803, 0x1807)


def test_violating_large_page_is_split(backend: str) -> None:
    """§4.3a before §4.3b: "default" on a page that needs nothing still splits, because the large page is writable where
    read-only data lies; protections are enforced while splitting."""
    host = read_only(backend, "6.12")
    assert host.call("set_direct_map_default_noflush", pfn=0x1900) == 0
    for pfn in range(0x1800, 0x1A00):
        expected = pfn << 12 | SMALL_LEAF
        assert host.leaf(pfn) == (1, expected & ~RW if pfn in RODATA else expected)
    assert kinds(host.events()) == SPLIT_EVENTS
    assert host.leaf(0x1A00)[0] == host.leaf(0x17FF)[0] == 2


def test_no_protection_before_read_only(backend: str) -> None:
    """§5 "once the kernel is read-only": before that there is nothing to enforce."""
    host = read_only(backend, "6.12", on=False)
    before = host.state()
    assert host.call("set_direct_map_default_noflush", pfn=0x1900) == 0
    assert host.state() == before


def test_other_large_pages_are_not_touched(backend: str) -> None:
    """§5: a large page without read-only data keeps to §4.3b."""
    host = read_only(backend, "6.12")
    before = host.state()
    assert host.call("set_direct_map_default_noflush", pfn=0x1A00) == 0
    assert host.state() == before


@pytest.mark.parametrize(
    ("kernel", "gone", "back"), [("6.1", 0x060, 0x061), ("6.6", 0x020, 0x021), ("7.3", 0x020, 0x021)]
)
def test_default_cannot_make_rodata_writable(backend: str, kernel: str, gone: int, back: int) -> None:
    """§5: RW is removed on frames of read-only data, by frame, so in the direct map too; flags without P are let be."""
    host = read_only(backend, kernel)
    host.call("set_direct_map_invalid_noflush", pfn=0x1804)
    assert host.leaf(0x1804) == (1, inverted(0x1804000, NX | gone))
    host.call("set_direct_map_default_noflush", pfn=0x1804)
    assert host.leaf(0x1804) == (1, 0x1804000 | NX | back)
    host.call("set_direct_map_invalid_noflush", pfn=0x1807)
    host.call("set_direct_map_default_noflush", pfn=0x1807)
    assert host.leaf(0x1807)[1] & (P | RW) == P | RW


def test_protected_page_of_an_exact_request(backend: str) -> None:
    """§4.3d: a read-only large page violates nothing and is covered exactly, but with RW it would violate: split,
    then page by page."""
    first = read_only(backend, "6.13")
    read_only_leaf = 0x1800000 | LARGE_LEAF & ~(RW | 0x040)
    host = continued(first, with_leaves(first.state(), {(0, 2, 0x1800000): read_only_leaf}))
    assert host.call("set_direct_map_valid_noflush", pfn=0x1800, pages=0x200, valid=1) == 0
    for pfn in range(0x1800, 0x1A00):
        assert host.leaf(pfn) == (1, pfn << 12 | NX | (0x121 if pfn in RODATA else 0x123))
    assert kinds(host.events()) == SPLIT_EVENTS


def test_exact_request_without_present(backend: str) -> None:
    """§4.3a again: the whole page is asked to go; it violates as it is, so it is split first and then goes page by
    page."""
    host = read_only(backend, "6.13")
    assert host.call("set_direct_map_valid_noflush", pfn=0x1800, pages=0x200, valid=0) == 0
    for pfn in range(0x1800, 0x1A00):
        assert host.leaf(pfn) == (1, inverted(pfn << 12, NX | A))


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_forced_split_protects_the_pages_it_walks(backend: str, kernel: str) -> None:
    """§4.2, §4.3 "forced: split, always": no protection while splitting; each page walked loses RW if it is read-only
    data, in the high mapping too.  That is a change, and an alias was touched: a full flush."""
    host = read_only(backend, kernel)
    assert host.call("set_memory_4k", pfn=0x1800, pages=5) == 0
    high = leaves(host.state(), 1)
    for pfn in range(0x1800, 0x1A00):
        flags = 0x163
        if pfn < 0x1805:
            flags |= mark_of(kernel)
            if pfn in RODATA:
                flags &= ~RW
        assert host.leaf(pfn) == (1, pfn << 12 | NX | flags)
        assert high[1, pfn << 12] == pfn << 12 | flags
    assert kinds(host.events()) == SPLIT_EVENTS * 2 + [EventKind.FLUSH_ALL]


def test_rodata_of_a_moved_image(backend: str) -> None:
    """§5 "by frame": the frames follow phys_base."""
    first = Host(backend, IMAGE_MOVED, kernel="6.12")
    host = continued(first, changed(first.state(), kernel_readonly=True))
    host.call("set_direct_map_default_noflush", pfn=0x2100)
    protected = [pfn for pfn in range(0x2000, 0x2200) if not host.leaf(pfn)[1] & RW]
    assert protected == [0x2003, 0x2004, 0x2005, 0x2006]


def test_giga_page_with_rodata(backend: str) -> None:
    """§4.3a at level 3: the 1 GiB page violates and is split; only small entries can be put right while splitting, so
    the 2 MiB child still violates and is split in turn, and its read-only data loses RW."""
    image = dataclasses.replace(IMAGE, memory=((0, GIB),), e820=((0, GIB, 1),), max_pfn=0x40000)
    first = Host(backend, image, kernel="6.12")
    assert first.leaf(0x1900)[0] == 3
    host = continued(first, changed(first.state(), kernel_readonly=True))
    assert host.call("set_direct_map_default_noflush", pfn=0x1900) == 0
    assert host.leaf(0x1A00) == (2, 0x1A00000 | LARGE_LEAF)
    assert host.leaf(0x1600) == (2, 0x1600000 | LARGE_LEAF)
    for pfn in range(0x1800, 0x1A00):
        expected = pfn << 12 | SMALL_LEAF
        assert host.leaf(pfn) == (1, expected & ~RW if pfn in RODATA else expected)
    assert kinds(host.events()) == SPLIT_EVENTS * 2


def test_giga_page_with_rodata_away_from_the_request(backend: str) -> None:
    """§4.3a: the violating 1 GiB page is split for a page elsewhere in it; that page's own 2 MiB page violates
    nothing and stays, and so does the one with the read-only data, which nobody looked at."""
    image = dataclasses.replace(IMAGE, memory=((0, GIB),), e820=((0, GIB, 1),), max_pfn=0x40000)
    first = Host(backend, image, kernel="6.12")
    host = continued(first, changed(first.state(), kernel_readonly=True))
    assert host.call("set_direct_map_default_noflush", pfn=0x20000) == 0
    assert host.leaf(0x20000) == (2, 0x20000000 | LARGE_LEAF)
    assert host.leaf(0x1800) == (2, 0x1800000 | LARGE_LEAF)
    assert kinds(host.events()) == SPLIT_EVENTS
