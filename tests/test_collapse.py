"""direct-map §8: large pages put back together after set_memory_rox, from 6.15."""

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
    HOLE_2M,
    IMAGE,
    MIB,
    NX,
    PAGE_OFFSET,
    PAT,
    PAT_LARGE,
    SMALL,
    SMALL_CBIT,
    SMALL_LEAF,
    SMALL_PTI,
    SOFTW1,
    SOFTW3,
    SPLIT_TABLE,
    Host,
    P,
    changed,
    continued,
    entry,
    inverted,
    kinds,
    leaves,
    small_pages,
    tables,
    with_leaves,
    with_tables,
)

from rmpcore.maps import MachineMap
from rmpcore.ops import Event, EventKind, Flavour

ROX = 0x121
"""Flags that set_memory_rox leaves of a small page as booted: G A P."""
ROX_LARGE = 0x1A1
FLUSH_ALL = Event(EventKind.FLUSH_ALL)
ARRAYS = [Flavour.ARRAY, Flavour.PAGES]


def va(pfn: int) -> int:
    return PAGE_OFFSET + (pfn << 12)


def ready(
    backend: str, kernel: str = "6.15", flags: dict[int, int] | None = None, map_: MachineMap = SMALL, **raw: int
) -> Host:
    """Frames 0x400 to 0x5ff small, read-only and executable already, but for 0x410, which is as booted."""
    rox = {pfn: ROX for pfn in range(0x400, 0x600)} | {0x410: SMALL_LEAF} | (flags or {})
    return small_pages(backend, map_, kernel, flags=rox)


@pytest.mark.parametrize("kernel", ["6.15", "6.16", "7.3"])
def test_collapse(backend: str, kernel: str) -> None:
    """§8: the last page that was different becomes equal: one leaf for the table, flags in large form with PSE;
    counters +1 and -512; the ordinary flush, the collapse, one full flush, then the table's page is given back."""
    host = ready(backend, kernel)
    before = host.state()
    assert (host.counts(), before.counters["table_pages"]) == ((512, 32, 0), 4)
    assert host.change("set_memory_rox", [0x410]) == 0
    state = host.state()
    assert host.leaf(0x410) == (2, 0x400000 | ROX_LARGE)
    assert tables(state) == {key: raw for key, raw in tables(before).items() if key != (2, 0x400000)}
    assert len(leaves(state)) == 32
    assert host.events() == [
        Event(EventKind.FLUSH_PAGES, a=va(0x410), b=1),
        Event(EventKind.COLLAPSE, level=2, a=va(0x400), b=0x400000 | ROX_LARGE, c=0x3FFC000),
        FLUSH_ALL,
        Event(EventKind.TABLE_FREE, a=0x3FFC000),
    ]
    assert host.counts() == (0, 33, 0)
    expected = dict(before.counters)
    expected |= {"direct_map_4k": 0, "direct_map_2m": 33, "level2_collapses": 1, "table_pages": 3}
    expected["flush_all"] += 1
    expected["flush_pages"] += 1
    assert state.counters == expected
    assert host.machine.validate() is None


def test_whole_page_at_once(backend: str) -> None:
    """§8 on a page that was split by a change of one page."""
    host = Host(backend, kernel="6.15")
    assert host.change("set_memory_ro", [0x410]) == 0
    host.events()
    assert host.call("set_memory_rox", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x400) == (2, 0x400000 | ROX_LARGE)
    assert kinds(host.events()) == [
        EventKind.FLUSH_ALL,
        EventKind.COLLAPSE,
        EventKind.FLUSH_ALL,
        EventKind.TABLE_FREE,
    ]


@pytest.mark.parametrize("kernel", ["6.2", "6.12", "6.14"])
def test_not_before_6_15(backend: str, kernel: str) -> None:
    """§8, §10."""
    host = ready(backend, kernel)
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410) == (1, 0x410000 | ROX)
    assert kinds(host.events()) == [EventKind.FLUSH_PAGES]


@pytest.mark.parametrize("name", ["set_memory_ro", "set_memory_x", "change_page_attr_clear"])
def test_only_after_rox(backend: str, name: str) -> None:
    """§8: the same outcome by another call does not collapse."""
    start = {"set_memory_ro": SMALL_LEAF & ~NX, "set_memory_x": ROX | NX, "change_page_attr_clear": ROX | SOFTW1}
    host = ready(backend, flags={0x410: start[name]})
    args = {"mask": SOFTW1} if "attr" in name else {}
    assert host.change(name, [0x410], **args) == 0
    assert host.leaf(0x410) == (1, 0x410000 | ROX)
    assert EventKind.COLLAPSE not in kinds(host.events())


def test_not_when_nothing_changed(backend: str) -> None:
    """§8 "that changed something": pages that fit already are left alone."""
    host = ready(backend, flags={0x410: ROX})
    before = host.state()
    assert host.call("set_memory_rox", pfn=0x400, pages=0x200) == 0
    assert host.state() == before
    assert host.events() == []


def test_not_after_an_error(backend: str) -> None:
    """§8 "without error": -EFAULT at the end of memory, and -ENOMEM."""
    rox = {pfn: ROX for pfn in range(0x3E00, 0x4000)} | {0x3F00: SMALL_LEAF}
    host = small_pages(backend, kernel="6.15", pfn=0x3E00, flags=rox)
    assert host.call("set_memory_rox", pfn=0x3F00, pages=0x101) == EFAULT
    assert host.leaf(0x3F00) == (1, 0x3F00000 | ROX)
    assert kinds(host.events()) == [EventKind.FLUSH_ALL]
    host = ready(backend)
    host.call("fail_alloc")
    assert host.call("set_memory_rox", pfn=0x410, pages=0x1F1) == ENOMEM
    assert host.leaf(0x410) == (1, 0x410000 | ROX)
    assert kinds(host.events()) == [EventKind.ALLOC_FAIL, EventKind.FLUSH_ALL]


@pytest.mark.parametrize("odd", [0x401, 0x455, 0x5FF])
@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"flags": ROX & ~P},
        {"flags": ROX | SOFTW1},
        {"flags": ROX | 1 << 58},
        {"flags": ROX | SOFTW3},
        {"flags": ROX | PAT},
        {"flags": ROX, "frame": -1},
        {"flags": ROX, "frame": 1},
        {"flags": ROX, "frame": 0x200},
    ],
)
def test_one_page_that_does_not_fit(backend: str, odd: int, raw: dict[str, int]) -> None:
    """§8: the other 511 have to be present, with the same flags and consecutive frames."""
    host = ready(backend)
    value = entry(odd + raw.get("frame", 0) << 12, raw["flags"]) if raw else 0
    host = continued(host, with_leaves(host.state(), {(0, 1, odd << 12): value}))
    counts = host.counts()
    assert host.change("set_memory_rox", [0x410]) == 0
    # G goes with P, but only where a change goes
    assert host.leaf(0x410) == (1, 0x410000 | ROX)
    assert host.leaf(odd)[1] == value
    assert host.counts() == counts
    assert kinds(host.events()) == [EventKind.FLUSH_PAGES]


@pytest.mark.parametrize("flags", [ROX & ~P, ROX | SOFTW1, ROX | SOFTW3])
def test_first_page_that_does_not_fit(backend: str, flags: int) -> None:
    """§8: the others are held against the first one."""
    host = ready(backend, flags={0x400: flags})
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410)[0] == 1


def test_none_present(backend: str) -> None:
    """§8: 512 pages that fit but are not present, changed by rox all the same."""
    host = ready(backend, flags={pfn: NX | 0x022 for pfn in range(0x400, 0x600)})
    assert host.call("set_memory_rox", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x410) == (1, inverted(0x410000, 0x020))
    assert kinds(host.events()) == [EventKind.FLUSH_ALL]


def test_marked_pages_stay_small(backend: str) -> None:
    """§8: all equal, but with KERNEL_4K: set_memory_4k asked for small pages, so small they stay."""
    host = Host(backend, kernel="6.15")
    assert host.call("set_memory_4k", pfn=0x400, pages=0x200) == 0
    host.events()
    assert host.call("set_memory_rox", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x410) == (1, 0x410000 | ROX | SOFTW3)
    assert kinds(host.events()) == [EventKind.FLUSH_ALL]


@pytest.mark.parametrize("shift", [1, 0x1FF, -1])
def test_frames_off_the_line(backend: str, shift: int) -> None:
    """§8: consecutive frames that do not start on a 2 MiB line."""
    host = ready(backend)
    rows = {(0, 1, pfn << 12): (pfn + shift) << 12 | ROX for pfn in range(0x400, 0x600)}
    rows[0, 1, 0x410000] = 0x410 + shift << 12 | SMALL_LEAF
    host = continued(host, with_leaves(host.state(), rows))
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410) == (1, (0x410 + shift) << 12 | ROX)


def test_another_2m_frame_is_fine(backend: str) -> None:
    """§8 asks for an aligned frame, not for the page's own."""
    host = ready(backend)
    rows = {(0, 1, pfn << 12): (pfn + 0x200) << 12 | ROX for pfn in range(0x400, 0x600)}
    rows[0, 1, 0x410000] = 0x610000 | SMALL_LEAF
    host = continued(host, with_leaves(host.state(), rows))
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410) == (2, 0x600000 | ROX_LARGE)


@pytest.mark.parametrize(
    ("map_", "extra", "large"),
    [(SMALL, PAT, PAT_LARGE), (SMALL, SOFTW1 | 1 << 59, SOFTW1 | 1 << 59), (SMALL_CBIT, 1 << 51, 1 << 51)],
)
def test_flags_in_large_form(backend: str, map_: MachineMap, extra: int, large: int) -> None:
    """§8 "flags to large form": PAT moves to bit 12; all others stay, the C-bit too."""
    rox = {pfn: ROX | extra for pfn in range(0x400, 0x600)} | {0x410: SMALL_LEAF | extra}
    host = small_pages(backend, map_, "6.15", flags=rox)
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410) == (2, 0x400000 | ROX_LARGE | large)
    assert host.events()[-1] == Event(EventKind.TABLE_FREE, a=0x3FFC000)


def test_page_table_isolation(backend: str) -> None:
    """§8 with flags that lack G."""
    rox = {pfn: 0x021 for pfn in range(0x400, 0x600)} | {0x410: NX | 0x063}
    host = small_pages(backend, SMALL_PTI, "6.15", flags=rox)
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410) == (2, 0x400000 | 0x0A1)


def test_leaf_is_no_table(backend: str) -> None:
    """§8 "has to point to a table": a large leaf over a frame that happens to be another page's table."""
    host = ready(backend)
    moved = with_tables(host.state(), {(0, 2, 0x400000): 0x2000000 | SPLIT_TABLE})
    host = continued(host, with_leaves(moved, {(0, 1, 0x410000): 0x410000 | ROX}))
    assert host.call("set_memory_rox", pfn=0x2000, pages=0x200) == 0
    assert host.leaf(0x2000) == (2, 0x2000000 | ROX_LARGE)
    assert kinds(host.events()) == [EventKind.FLUSH_ALL]


def test_start_is_rounded_down_and_the_end_is_not_exceeded(backend: str) -> None:
    """§8: each 2 MiB span of the request, its start rounded down: the last page of one span and the first of the next
    name both; the span after them, which would fit, is not looked at."""
    rows: dict[int, int] = {}
    host = Host(backend, kernel="6.15")
    for base in (0x400, 0x600, 0x800):
        host.call("set_memory_4k", pfn=base, pages=1)
        rows |= {pfn: ROX for pfn in range(base, base + 0x200)}
    rows |= {0x5FF: SMALL_LEAF, 0x600: SMALL_LEAF}
    host = continued(
        host, with_leaves(host.state(), {(0, 1, pfn << 12): pfn << 12 | flags for pfn, flags in rows.items()})
    )
    assert host.call("set_memory_rox", pfn=0x5FF, pages=2) == 0
    assert [host.leaf(pfn)[0] for pfn in (0x400, 0x600, 0x800)] == [2, 2, 1]
    # one flush for all, tables in the order in which they fell out of use
    assert host.events() == [
        Event(EventKind.FLUSH_PAGES, a=va(0x5FF), b=2),
        Event(EventKind.COLLAPSE, level=2, a=va(0x400), b=0x400000 | ROX_LARGE, c=0x3FFC000),
        Event(EventKind.COLLAPSE, level=2, a=va(0x600), b=0x600000 | ROX_LARGE, c=0x3FFB000),
        FLUSH_ALL,
        Event(EventKind.TABLE_FREE, a=0x3FFC000),
        Event(EventKind.TABLE_FREE, a=0x3FFB000),
    ]
    assert host.counters()["level2_collapses"] == 2


def test_range_that_ends_on_a_line(backend: str) -> None:
    """§8: a request up to a 2 MiB line does not reach the span behind it."""
    host = Host(backend, kernel="6.15")
    for base in (0x400, 0x600):
        host.call("set_memory_4k", pfn=base, pages=1)
    rows = {(0, 1, pfn << 12): pfn << 12 | ROX for pfn in range(0x400, 0x800)}
    rows[0, 1, 0x410000] = 0x410000 | SMALL_LEAF
    host = continued(host, with_leaves(host.state(), rows))
    assert host.call("set_memory_rox", pfn=0x410, pages=0x1F0) == 0
    assert [host.leaf(pfn)[0] for pfn in (0x400, 0x600)] == [2, 1]


@pytest.mark.parametrize("flavour", ARRAYS)
def test_arrays(backend: str, flavour: Flavour) -> None:
    """§8: the span of each entry, in the order of the array."""
    host = Host(backend, kernel="6.15")
    for base in (0x400, 0x600):
        host.call("set_memory_4k", pfn=base, pages=1)
    rows = {(0, 1, pfn << 12): pfn << 12 | ROX for pfn in range(0x400, 0x800)}
    rows[0, 1, 0x700000] = 0x700000 | SMALL_LEAF
    host = continued(host, with_leaves(host.state(), rows))
    assert host.change("set_memory_rox", [0x700, 0x432, 0x701], flavour) == 0
    assert host.events() == [
        *(Event(EventKind.FLUSH_PAGES, a=va(pfn), b=1) for pfn in (0x700, 0x432, 0x701)),
        Event(EventKind.COLLAPSE, level=2, a=va(0x600), b=0x600000 | ROX_LARGE, c=0x3FFB000),
        Event(EventKind.COLLAPSE, level=2, a=va(0x400), b=0x400000 | ROX_LARGE, c=0x3FFC000),
        FLUSH_ALL,
        Event(EventKind.TABLE_FREE, a=0x3FFB000),
        Event(EventKind.TABLE_FREE, a=0x3FFC000),
    ]


def test_freed_pages_are_used_again(backend: str) -> None:
    """A freed page is a free frame like any other: the next table takes the highest."""
    host = Host(backend, kernel="6.15")
    for base in (0x400, 0x600, 0x800):
        host.call("set_memory_ro", pfn=base, pages=1)
    hung = tables(host.state())
    assert [hung[2, at] & FRAME_MASK for at in (0x400000, 0x600000, 0x800000)] == [0x3FFC000, 0x3FFB000, 0x3FFA000]
    assert host.call("set_memory_rox", pfn=0x600, pages=0x200) == 0
    assert host.call("set_memory_rox", pfn=0x400, pages=0x200) == 0
    host.events()
    for base, page in ((0xA00, 0x3FFC000), (0xC00, 0x3FFB000), (0xE00, 0x3FF9000)):
        host.call("set_memory_ro", pfn=base, pages=1)
        assert tables(host.state())[2, base << 12] & FRAME_MASK == page
    assert host.counters()["table_pages"] == 3 + 4
    assert host.machine.validate() is None


def test_freed_pages_after_loading(backend: str) -> None:
    """The same after the state went through State: what is in no table is free."""
    first = Host(backend, kernel="6.15")
    first.call("set_memory_ro", pfn=0x400, pages=1)
    first.call("set_memory_ro", pfn=0x600, pages=1)
    host = continued(first, first.state())
    assert host.call("set_memory_rox", pfn=0x400, pages=0x200) == 0
    assert host.call("set_memory_ro", pfn=0x800, pages=1) == 0
    assert tables(host.state())[2, 0x800000] & FRAME_MASK == 0x3FFC000


def test_count_only_of_mapped_frames(backend: str) -> None:
    """§8 "counters move back" where a split would have moved them: frames outside the mapped list do not count."""
    host = ready(backend)
    host = continued(host, changed(host.state(), mapped=((0, 0x400), (0x600, 0x4000))))
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410)[0] == 2
    assert host.counts() == (512, 32, 0)
    assert host.counters()["level2_collapses"] == 0
    assert host.counters()["table_pages"] == 3


def test_counter_wraps(backend: str) -> None:
    """Fewer small pages counted than a table has: the kernel's counter is an unsigned long, and wraps."""
    host = ready(backend)
    host = continued(host, changed(host.state(), counters={"direct_map_4k": 7}))
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.counts() == ((1 << 64) + 7 - 512, 33, 0)


# one level up


def giga_ready(backend: str, map_: MachineMap = HOLE, replace: dict[int, int] | None = None) -> Host:
    """1 GiB to 2 GiB by 2 MiB pages, read-only and executable, the first of them by small ones, of which 0x40010 is as
    booted."""
    first = Host(backend, map_, kernel="6.15")
    first.call("set_memory_4k", pfn=0x40000, pages=1)
    rows = {(0, 2, at): at | ROX_LARGE for at in range(GIB + 2 * MIB, 2 * GIB, 2 * MIB)}
    rows |= {(0, 2, at): raw for at, raw in (replace or {}).items()}
    rows |= {(0, 1, at): at | ROX for at in range(GIB, GIB + 2 * MIB, 0x1000)}
    rows[0, 1, GIB + 0x10000] = GIB + 0x10000 | SMALL_LEAF
    return continued(first, with_leaves(first.state(), rows))


def test_giga(backend: str) -> None:
    """§8: "after a success, the same one level up"; both tables go, level 2's first; one flush for all."""
    host = giga_ready(backend)
    assert host.counts() == (512, 511, 6)
    top = 5 * GIB
    assert host.change("set_memory_rox", [0x40010]) == 0
    assert host.leaf(0x40010) == (3, GIB | ROX_LARGE)
    assert host.events() == [
        Event(EventKind.FLUSH_PAGES, a=va(0x40010), b=1),
        Event(EventKind.COLLAPSE, level=2, a=va(0x40000), b=GIB | ROX_LARGE, c=top - 0x4000),
        Event(EventKind.COLLAPSE, level=3, a=va(0x40000), b=GIB | ROX_LARGE, c=top - 0x3000),
        FLUSH_ALL,
        Event(EventKind.TABLE_FREE, a=top - 0x4000),
        Event(EventKind.TABLE_FREE, a=top - 0x3000),
    ]
    counters = host.counters()
    assert host.counts() == (0, 0, 7)
    assert (counters["level2_collapses"], counters["level3_collapses"], counters["table_pages"]) == (1, 1, 2)
    assert host.machine.validate() is None


def test_giga_whole(backend: str) -> None:
    """§8: a request for all of it; the spans after the first find a 1 GiB leaf, and no table."""
    host = Host(backend, HOLE, kernel="6.15")
    assert host.call("set_memory_ro", pfn=0x40010, pages=1) == 0
    assert host.call("set_memory_rox", pfn=0x40000, pages=0x40000) == 0
    assert host.leaf(0x40000) == (3, GIB | ROX_LARGE)
    assert kinds(host.events())[-6:] == [
        EventKind.FLUSH_ALL,
        EventKind.COLLAPSE,
        EventKind.COLLAPSE,
        EventKind.FLUSH_ALL,
        EventKind.TABLE_FREE,
        EventKind.TABLE_FREE,
    ]


def test_giga_needs_giga_pages(backend: str) -> None:
    """§8: "and 1 GiB pages in use"."""
    host = giga_ready(backend, HOLE_2M)
    assert host.change("set_memory_rox", [0x40010]) == 0
    assert host.leaf(0x40010) == (2, GIB | ROX_LARGE)
    assert host.counters()["level3_collapses"] == 0


def test_giga_needs_a_collapse_below(backend: str) -> None:
    """§8 "after a success": 512 fitting 2 MiB pages without any collapse among them are left alone."""
    host = Host(backend, HOLE, kernel="6.15")
    assert host.call("set_memory_ro", pfn=0x40000, pages=0x200) == 0
    host.events()
    assert host.call("set_memory_rox", pfn=0x40000, pages=0x40000) == 0
    assert host.leaf(0x40000) == (2, GIB | ROX_LARGE)
    assert kinds(host.events()) == [EventKind.FLUSH_ALL]


@pytest.mark.parametrize("at", [GIB + 2 * MIB, GIB + 512 * MIB, 2 * GIB - 2 * MIB])
@pytest.mark.parametrize(
    "what",
    [
        "absent",
        "not present",
        "other flags",
        "kernel 4k",
        "pat",
        "other frame",
    ],
)
def test_one_2m_page_that_does_not_fit(backend: str, at: int, what: str) -> None:
    """§8: all 512 have to be present leaves with equal flags and consecutive frames."""
    raw = {
        "absent": 0,
        "not present": entry(at, ROX_LARGE & ~(P | 0x80 | 0x100)),
        "other flags": at | ROX_LARGE | SOFTW1,
        "kernel 4k": at | ROX_LARGE | SOFTW3,
        "pat": at | ROX_LARGE | PAT_LARGE,
        "other frame": at - 2 * MIB | ROX_LARGE,
    }[what]
    host = giga_ready(backend, replace={at: raw})
    assert host.change("set_memory_rox", [0x40010]) == 0
    assert host.leaf(0x40010) == (2, GIB | ROX_LARGE)
    assert host.counts() == (0, 512, 6)
    assert host.counters()["level3_collapses"] == 0


def test_flags_of_a_giga_page(backend: str) -> None:
    """§8, §1: bit 12 of a 2 MiB leaf is a flag and no part of its frame; it stays where it is."""
    first = giga_ready(backend)
    rows = {(0, 2, at): at | ROX_LARGE | PAT_LARGE for at in range(GIB + 2 * MIB, 2 * GIB, 2 * MIB)}
    rows |= {(0, 1, at): at | ROX | PAT for at in range(GIB, GIB + 2 * MIB, 0x1000)}
    rows[0, 1, GIB + 0x10000] = GIB + 0x10000 | SMALL_LEAF | PAT
    host = continued(first, with_leaves(first.state(), rows))
    assert host.change("set_memory_rox", [0x40010]) == 0
    assert host.leaf(0x40010) == (3, GIB | ROX_LARGE | PAT_LARGE)


def test_a_table_among_them(backend: str) -> None:
    """§8 "present leaves": another 2 MiB page that is still split stands in the way."""
    host = giga_ready(backend)
    host.call("set_memory_4k", pfn=0x40200, pages=1)
    assert host.change("set_memory_rox", [0x40010]) == 0
    assert host.leaf(0x40010) == (2, GIB | ROX_LARGE)


def test_giga_off_the_line(backend: str) -> None:
    """§8 "1 GiB-aligned": 2 MiB pages of consecutive frames that start elsewhere."""
    first = giga_ready(backend)
    rows = {(0, 2, at): at + 2 * MIB | ROX_LARGE for at in range(GIB + 2 * MIB, 2 * GIB, 2 * MIB)}
    rows |= {(0, 1, at): at + 2 * MIB | ROX for at in range(GIB, GIB + 2 * MIB, 0x1000)}
    rows[0, 1, GIB + 0x10000] = GIB + 2 * MIB + 0x10000 | SMALL_LEAF
    host = continued(first, with_leaves(first.state(), rows))
    assert host.change("set_memory_rox", [0x40010]) == 0
    assert host.leaf(0x40010) == (2, GIB + 2 * MIB | ROX_LARGE)


# aliases


def test_high_mapping(backend: str) -> None:
    """§8 on the high mapping: the addresses of the request are put together there; the alias's are not."""
    first = Host(backend, IMAGE, kernel="6.15")
    assert first.call("set_memory_4k", pfn=0x1C00, pages=1, high=1) == 0
    rows = {(w, 1, pfn << 12): pfn << 12 | ROX for w in (0, 1) for pfn in range(0x1C00, 0x1E00)}
    rows[1, 1, 0x1C10000] = 0x1C10000 | 0x163
    host = continued(first, with_leaves(first.state(), rows))
    counts = host.counts()
    table = tables(host.state(), 1)[2, 0x1C00000] & FRAME_MASK
    assert host.change("set_memory_rox", [0x1C10], high=1) == 0
    state = host.state()
    assert leaves(state, 1)[2, 0x1C00000] == 0x1C00000 | ROX_LARGE
    assert tables(state, 1) == {}
    assert leaves(state)[1, 0x1C10000] == 0x1C10000 | ROX
    assert host.events() == [
        FLUSH_ALL,
        Event(EventKind.COLLAPSE, level=2, a=HIGH_MAPPING + 0x1C00000, b=0x1C00000 | ROX_LARGE, c=table),
        FLUSH_ALL,
        Event(EventKind.TABLE_FREE, a=table),
    ]
    assert host.counts() == (counts[0] - 512, counts[1] + 1, 0)


def test_image_frames(backend: str) -> None:
    """§8 on the direct map: the high mapping follows the change (§6), but stays in small pages."""
    first = Host(backend, IMAGE, kernel="6.15")
    assert first.call("set_memory_4k", pfn=0x1C00, pages=1) == 0
    rows = {(w, 1, pfn << 12): pfn << 12 | ROX for w in (0, 1) for pfn in range(0x1C00, 0x1E00)}
    rows[0, 1, 0x1C10000] = 0x1C10000 | SMALL_LEAF
    host = continued(first, with_leaves(first.state(), rows))
    assert host.change("set_memory_rox", [0x1C10]) == 0
    assert host.leaf(0x1C10) == (2, 0x1C00000 | ROX_LARGE)
    assert leaves(host.state(), 1)[1, 0x1C10000] == 0x1C10000 | ROX


def test_five_levels(backend: str) -> None:
    """§8 is the same with five levels."""
    map_ = dataclasses.replace(SMALL, levels=5, page_offset=0xFF11_0000_0000_0000)
    host = ready(backend, map_=map_)
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410) == (2, 0x400000 | ROX_LARGE)


def test_failed_allocations_do_not_matter(backend: str) -> None:
    """§8 needs no page."""
    host = ready(backend)
    host.call("fail_alloc", skip=0, count=5)
    assert host.change("set_memory_rox", [0x410]) == 0
    assert host.leaf(0x410)[0] == 2
    assert host.state().fail_alloc == (0, 5)
