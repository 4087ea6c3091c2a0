"""direct-map §2: building the direct map at boot.  The arithmetic of each example stands beside it."""

from __future__ import annotations

import dataclasses
import random

import pytest
from machines import (
    BOOT_TABLE,
    ENOMEM,
    FRAME_MASK,
    GIB,
    HIGH_MAPPING,
    HOLE,
    HOLE_2M,
    IMAGE,
    IMAGE_MOVED,
    KIB,
    LARGE_LEAF,
    MIB,
    PC,
    SMALL,
    SMALL_4K,
    SMALL_LA57,
    SMALL_LEAF,
    SMALL_RANDOM,
    G,
    Host,
    build_map,
    leaves,
    tables,
)

from rmpcore.machine import BACKENDS, MachineError
from rmpcore.maps import PAGE_OFFSETS, MachineMap


def large(start: int, end: int) -> dict[tuple[int, int], int]:
    """2 MiB leaves of [start, end)."""
    return {(2, at): at | LARGE_LEAF for at in range(start, end, 2 * MIB)}


def small(start: int, end: int) -> dict[tuple[int, int], int]:
    """4 KiB leaves of [start, end)."""
    return {(1, at): at | SMALL_LEAF for at in range(start, end, 4 * KIB)}


def giga(*numbers: int) -> dict[tuple[int, int], int]:
    """1 GiB leaves by number."""
    return {(3, n * GIB): n * GIB | LARGE_LEAF for n in numbers}


def test_one_range(backend: str) -> None:
    """§2.1.2 widening, §2.1.5 double counting, §2.2 order, on 64 MiB in one piece.

    map(0, 1M): one small piece, 0-2M is inside memory, so it is widened: one 2M leaf.                count 1
    The highest free 2M block ends at 64M.  Step 2M: map(62M, 64M): one 2M leaf.                      count 1
    2M mapped, step times 256 = 512M, next line below is 0, not below 1M: map(1M, 62M) is 1M-2M (widened) and
    2M-62M, merged: slot 0 exists and is counted again, 30 new ones.                                  count 31
    33 pages of 2M counted for 32.
    """
    host = Host(backend)
    state = host.state()
    assert leaves(state) == large(0, 64 * MIB)
    assert host.counts() == (0, 33, 0)
    assert state.mapped == ((0, 0x4000),)
    assert state.max_pfn_mapped == 0x4000
    assert not state.kernel_readonly


def test_tables_from_the_top(backend: str) -> None:
    """Table pages are the highest free frames, root first, then in the order in which slots are entered."""
    state = Host(backend).state()
    assert state.root == 0x3FFF000
    assert tables(state) == {(4, 0): 0x3FFE000 | BOOT_TABLE, (3, 0): 0x3FFD000 | BOOT_TABLE}
    assert state.counters["table_pages"] == 3


def test_counters_start_at_zero(backend: str) -> None:
    """§9: splits and flushes are counted once the system runs; boot counts none."""
    counters = Host(backend).counters()
    for name in ("level2_splits", "level3_splits", "flush_all", "flush_pages", "rmpupdate", "leaked_pages"):
        assert counters[name] == 0


def test_boot_gives_no_events(backend: str) -> None:
    """Events are reported from the first op on."""
    assert Host(backend).events() == []


def test_pc(backend: str) -> None:
    """§2.1: ranges that neither start nor end on a 2M line.

    map(0, 1M): not inside one range (memory starts at 0x1000), stays small: 256 pages.
    Highest free 2M block: 0x3c00000-0x3e00000.  Step 2M: that block, one 2M leaf.  Step 512M: map(1M, 0x3c00000): 1M-2M
    small, 256 pages; 2M-0x3c00000 29 large.  The rest, map(0x3e00000, 0x3fe0000): 0x1e0 = 480 small pages.
    """
    host = Host(backend, PC)
    state = host.state()
    assert leaves(state) == small(0, 2 * MIB) | large(2 * MIB, 0x3E00000) | small(0x3E00000, 0x3FE0000)
    assert host.counts() == (256 + 256 + 480, 1 + 29, 0)
    assert state.mapped == ((0, 0x3FE0),)
    assert state.max_pfn_mapped == 0x3FE0
    # root, level 3, level 2, and the level-1 tables of the first and the last 2 MiB; from 0x3fdf000 downward:
    # root, level 3, level 2 and the first level 1 by map(0, 1M), the last one at the end
    assert tables(state) == {
        (4, 0): 0x3FDE000 | BOOT_TABLE,
        (3, 0): 0x3FDD000 | BOOT_TABLE,
        (2, 0): 0x3FDC000 | BOOT_TABLE,
        (2, 0x3E00000): 0x3FDB000 | BOOT_TABLE,
    }
    assert state.root == 0x3FDF000


def test_merging(backend: str) -> None:
    """§2.1.3: pieces that widening made equal are one, so the page that both lie in is counted once.

    Memory 0-2G, reserved from 1.25G, max_pfn 1.5G+4K.  map(0, 1M): leaf 0.  Start 1.25G.  Step 2M: leaf 1.  Step 512M:
    down to 1G: leaf 1; 256M: the step stays: map(512M, 1G): leaf 0; 768M: map(1M, 512M): leaf 0.  The rest,
    map(1.25G, 1.5G+4K), is a rise and a tail, both widened to 1G: leaf 1.  6 counted.
    """
    map_ = build_map([(0, 2 * GIB)], reserved=[(1280 * MIB, 768 * MIB)], max_pfn=(1536 * MIB + 4 * KIB) >> 12)
    host = Host(backend, map_)
    assert leaves(host.state()) == giga(0, 1)
    assert host.counts() == (0, 0, 6)


def test_first_mib_is_always_mapped(backend: str) -> None:
    """§2.2: map(0, 1M) whatever the memory map says."""
    host = Host(backend, build_map([(4 * MIB, 4 * MIB)]))
    assert leaves(host.state()) == small(0, MIB) | large(4 * MIB, 8 * MIB)
    assert host.state().mapped == ((0, 0x100), (0x400, 0x800))
    assert host.counts() == (256, 2, 0)


def test_hole_with_giga_pages(backend: str) -> None:
    """§2.1, §2.2 on 0-3G and 4G-5G with 1G pages.

    map(0, 1M): 0-1G is inside memory: widened, a 1G leaf.                                            count 1
    Start point 5G.  Step 2M: map(5G-2M, 5G): {2M}, 4G-5G is memory: widened, 1G leaf 4.              count 1
    Step 512M: map(4.5G, 5G-2M): leaf 4 again.                                                        count 1
    512M mapped in all, step 128G: down to 1M: map(1M, 3G): leaf 0 again, 1, 2.                       count 3
    and map(4G, 4.5G): leaf 4 again.                                                                  count 1
    7 counted for 4.
    """
    host = Host(backend, HOLE)
    state = host.state()
    assert leaves(state) == giga(0, 1, 2, 4)
    assert host.counts() == (0, 0, 7)
    assert state.mapped == ((0, 0xC0000), (0x100000, 0x140000))
    assert state.max_pfn_mapped == 0x140000
    assert tables(state) == {(4, 0): (5 * GIB - 0x2000) | BOOT_TABLE}
    assert state.counters["table_pages"] == 2


def test_hole_without_giga_pages(backend: str) -> None:
    """§2.1.1 "without 1 GiB support the third piece carries {2M}".

    map(0, 1M) 1; map(5G-2M, 5G) 1; map(4.5G, 5G-2M) 255; map(1M, 3G) 1536, slot 0 again; map(4G, 4.5G) 256: 2049 for
    2048.
    """
    host = Host(backend, HOLE_2M)
    state = host.state()
    assert leaves(state) == large(0, 3 * GIB) | large(4 * GIB, 5 * GIB)
    assert host.counts() == (0, 1 + 1 + 255 + 1536 + 256, 0)
    # the root, a level-3 table, and level-2 tables for the first three and the fifth GiB
    assert state.counters["table_pages"] == 6


def test_small_pages_only(backend: str) -> None:
    """§2.1.2 with no large size at all: no piece gains any, nothing is visited twice.

    map(0, 1M) 256; map(62M, 64M) 512; map(1M, 62M) 61 * 256 = 15616: 16384 = 0x4000.
    """
    host = Host(backend, SMALL_4K)
    assert leaves(host.state()) == small(0, 64 * MIB)
    assert host.counts() == (0x4000, 0, 0)
    assert host.counters()["table_pages"] == 3 + 32


def test_five_levels(backend: str) -> None:
    """§2: five levels add one table on top and change nothing below."""
    four, five = Host(backend), Host(backend, SMALL_LA57)
    assert SMALL_LA57.page_offset == PAGE_OFFSETS[5]
    assert leaves(five.state()) == leaves(four.state())
    assert five.counts() == four.counts()
    assert tables(five.state()) == {
        (5, 0): 0x3FFE000 | BOOT_TABLE,
        (4, 0): 0x3FFD000 | BOOT_TABLE,
        (3, 0): 0x3FFC000 | BOOT_TABLE,
    }
    assert five.counters()["table_pages"] == 4


def test_random_page_offset(backend: str) -> None:
    """§2: PAGE_OFFSET on a 1G line that is no 512G line: the level-4 slot starts before the direct map."""
    state = Host(backend, SMALL_RANDOM).state()
    # 0xffff9a1240000000 is 0x12 * 4G + 1G = 73 GiB into its slot: offset -73G, modulo 2**64
    assert tables(state) == {
        (4, (1 << 64) - 73 * GIB): 0x3FFE000 | BOOT_TABLE,
        (3, 0): 0x3FFD000 | BOOT_TABLE,
    }
    assert leaves(state) == large(0, 64 * MIB)


def test_page_offset_at_the_end_of_a_slot(backend: str) -> None:
    """§2: a direct map whose second GiB lies in another level-4 slot has two level-3 tables."""
    offset = 0xFFFF_9A00_0000_0000 + 511 * GIB
    host = Host(backend, dataclasses.replace(HOLE, page_offset=offset))
    state = host.state()
    assert set(tables(state)) == {(4, (1 << 64) - 511 * GIB), (4, GIB)}
    assert leaves(state) == giga(0, 1, 2, 4)
    assert host.counts() == (0, 0, 7)
    assert state.counters["table_pages"] == 3


def test_widening_needs_one_range(backend: str) -> None:
    """§2.1.2: a 2 MiB span with one page missing lies in no single range, so neither piece beside the gap is widened.

    Memory 0-5M and 5M+4K-64M.  map(0, 1M) is widened: 1 large.  map(62M, 64M): 1.  map(1M, 5M): 1M-4M merged, large
    (2 counted); 4M-5M small (256).  map(5M+4K, 62M): up to 6M small (255), then 28 large.
    """
    host = Host(backend, build_map([(0, 5 * MIB), (5 * MIB + 4 * KIB, 59 * MIB - 4 * KIB)]))
    around = small(4 * MIB, 5 * MIB) | small(5 * MIB + 4 * KIB, 6 * MIB)
    assert leaves(host.state()) == large(0, 4 * MIB) | around | large(6 * MIB, 64 * MIB)
    assert host.counts() == (256 + 255, 1 + 1 + 2 + 28, 0)
    assert host.state().mapped == ((0, 0x500), (0x501, 0x4000))


def test_widening_a_tail_to_1g(backend: str) -> None:
    """§2.1.2: widening to 1G needs the whole GiB in one range; 2G-3G with its last page gone has none."""
    host = Host(backend, build_map([(0, 3 * GIB - 4 * KIB)]))
    expected = giga(0, 1) | large(2 * GIB, 3 * GIB - 2 * MIB) | small(3 * GIB - 2 * MIB, 3 * GIB - 4 * KIB)
    assert leaves(host.state()) == expected
    # map(0, 1M): 1G leaf 0.  The start point is 3G-2M.  Step 2M: 1 large; step 512M, down to 2.5G: 254 large.
    # 510M mapped is less than the step, so it stays: 2G-2.5G: 256 large; 1022M: step 128G.  map(1M, 2G): leaf 0
    # again, leaf 1. The rest: 511 small.
    assert host.counts() == (511, 1 + 254 + 256, 3)


def test_step_grows_only_when_enough_is_mapped(backend: str) -> None:
    """§2.2: the step is multiplied only when what was mapped so far is at least one step.

    Memory 0-2G and 4G-4.25G.  map(0, 1M): 1G leaf 0.  Step 2M: 1 large.  Step 512M: down to 4G: 127 large; 256M in
    all is less than 512M, the step stays.  2G-4G: nothing there.  map(1.5G, 2G): widened, leaf 1.  768M: step 128G:
    map(1M, 1.5G): leaves 0, 1 again. 1G pages: 1 + 1 + 2 = 4.  (A step that grew at 4G would count 3.)
    """
    host = Host(backend, build_map([(0, 2 * GIB), (4 * GIB, 256 * MIB)]))
    assert leaves(host.state()) == giga(0, 1) | large(4 * GIB, 4 * GIB + 256 * MIB)
    assert host.counts() == (0, 128, 4)


def test_start_point_is_the_highest_free_block(backend: str) -> None:
    """§2.2: the way down starts at the end of the highest *free* 2M block; what lies above is mapped last.

    Memory 0-2G, 1.25G-2G reserved but the last 64K.  map(0, 1M): leaf 0.  Start 1.25G.  Step 2M: leaf 1.  Step 512M:
    down to 1G: leaf 1. 256M: the step stays: map(512M, 1G): leaf 0.  768M: step 128G: map(1M, 512M): leaf 0.  The
    rest, map(1.25G, 2G): leaf 1.  6 counted.
    """
    host = Host(backend, build_map([(0, 2 * GIB)], reserved=[(1280 * MIB, 768 * MIB - 64 * KIB)]))
    assert leaves(host.state()) == giga(0, 1)
    assert host.counts() == (0, 0, 6)
    assert host.state().root == 2 * GIB - 4 * KIB


def test_start_point_without_a_free_block(backend: str) -> None:
    """§2.2: no free 2M block at all: the start point is max_pfn rounded down to 2M.

    Memory 0-63M, all reserved but the last 64K.  map(0, 1M) large 1; start 62M; map(60M, 62M) 1; map(1M, 60M) 30;
    map(62M, 63M) small.
    """
    host = Host(backend, build_map([(0, 63 * MIB)], reserved=[(0, 63 * MIB - 64 * KIB)]))
    assert leaves(host.state()) == large(0, 62 * MIB) | small(62 * MIB, 63 * MIB)
    assert host.counts() == (256, 1 + 1 + 30, 0)


def test_start_point_of_a_range_of_one_block(backend: str) -> None:
    """§2.2.2, §2.3: a block of 2 MiB may be all that a range has.

    Memory 2M+4K to 2M+68K, 4M-6M, and, reserved, 8M-12M without its page at 11M.  Start 6M: tables from 0x5ff000
    downward: root, level 3, level 2, level 1 of the first mebibyte; map(4M, 6M) needs none, then that of slot 2M, and
    that of slot 10M last.
    """
    lower = [(2 * MIB + 4 * KIB, 64 * KIB), (4 * MIB, 2 * MIB)]
    upper = [(8 * MIB, 3 * MIB), (11 * MIB + 4 * KIB, MIB - 4 * KIB)]
    state = Host(backend, build_map([*lower, *upper], reserved=[(8 * MIB, 4 * MIB)])).state()
    assert state.root == 0x5FF000
    assert tables(state) == {
        (4, 0): 0x5FE000 | BOOT_TABLE,
        (3, 0): 0x5FD000 | BOOT_TABLE,
        (2, 0): 0x5FC000 | BOOT_TABLE,
        (2, 2 * MIB): 0x5FB000 | BOOT_TABLE,
        (2, 10 * MIB): 0x5FA000 | BOOT_TABLE,
    }


def test_order_without_a_free_block(backend: str) -> None:
    """§2.2.5, §2.3: what lies above the start point is mapped last, also where nothing is free below it.

    Memory 0-5M and 5M+4K-63M, all reserved but the last 64K; start 62M.  Tables from 0x3eff000 downward: root, level 3,
    level 2, then the level-1 table around the gap by map(1M, 60M), then the one of map(62M, 63M).
    """
    gap = 5 * MIB
    memory = [(0, gap), (gap + 4 * KIB, 63 * MIB - gap - 4 * KIB)]
    state = Host(backend, build_map(memory, reserved=[(0, 63 * MIB - 64 * KIB)])).state()
    assert state.root == 0x3EFF000
    assert tables(state) == {
        (4, 0): 0x3EFE000 | BOOT_TABLE,
        (3, 0): 0x3EFD000 | BOOT_TABLE,
        (2, 4 * MIB): 0x3EFC000 | BOOT_TABLE,
        (2, 62 * MIB): 0x3EFB000 | BOOT_TABLE,
    }


def test_a_round_of_one_step(backend: str) -> None:
    """§2.2.3: a round does not go below 1 MiB, not even from where one step ends.

    Memory 0x1000-0x9f000 and 1M-2M, so all is small: map(0, 1M) 256; start 2M: map(1M, 2M) 256.
    """
    host = Host(backend, build_map([(0x1000, 0x9E000), (MIB, MIB)]))
    assert leaves(host.state()) == small(0, 2 * MIB)
    assert host.counts() == (512, 0, 0)


def test_start_point_of_reserved_memory_with_giga_pages(backend: str) -> None:
    """§2.2: the same with 1 GiB pages, whose counts show each step.

    Memory 0-2G, all reserved but the last 64K: start 2G.  map(0, 1M): leaf 0.  Step 2M: leaf 1.  Step 512M: down to
    1.5G: leaf 1.  512M: step 128G: map(1M, 1.5G): leaves 0, 1.  5 counted.
    """
    host = Host(backend, build_map([(0, 2 * GIB)], reserved=[(0, 2 * GIB - 64 * KIB)]))
    assert leaves(host.state()) == giga(0, 1)
    assert host.counts() == (0, 0, 5)


def test_rounds_end_on_multiples_of_the_step(backend: str) -> None:
    """§2.2: each round goes to the previous multiple of the step, however far that is.

    Memory 0-2.25G and 4G-4.25G.  map(0, 1M): leaf 0.  Step 2M: 1 large; step 512M: down to 4G: 127 large; 256M: the
    step stays.  Down to 2G: 2G-2.25G, 128 large.  512M: step 128G: map(1M, 2G): leaves 0, 1.
    """
    host = Host(backend, build_map([(0, 2 * GIB + 256 * MIB), (4 * GIB, 256 * MIB)]))
    upper = large(2 * GIB, 2 * GIB + 256 * MIB) | large(4 * GIB, 4 * GIB + 256 * MIB)
    assert leaves(host.state()) == giga(0, 1) | upper
    assert host.counts() == (0, 256, 3)


def test_head(backend: str) -> None:
    """§2.1.1: a range that starts inside a 2 MiB page: small pages up to the line."""
    host = Host(backend, build_map([(0, 4 * MIB), (7 * MIB, 57 * MIB)]))
    assert leaves(host.state()) == large(0, 4 * MIB) | small(7 * MIB, 8 * MIB) | large(8 * MIB, 64 * MIB)


def test_middle_is_whole_gigabytes(backend: str) -> None:
    """§2.1.1: of map(1M, 1.5G) only the first GiB may be one page.  (The round from 4G is so wide because of the memory
    above.)"""
    host = Host(backend, build_map([(0, GIB + 512 * MIB), (4 * GIB, GIB)]))
    assert leaves(host.state()) == giga(0, 4) | large(GIB, GIB + 512 * MIB)


def test_mapped_to_the_last_address(backend: str) -> None:
    """§2.1.6: a piece that was widened is mapped beyond its end, here beyond max_pfn."""
    host = Host(backend, build_map([(0, 64 * MIB)], max_pfn=0x3F80))
    assert leaves(host.state()) == large(0, 64 * MIB)
    assert host.state().mapped == ((0, 0x4000),)
    assert host.state().max_pfn_mapped == 0x4000


def clearing_map(kind: int, odd: tuple[tuple[int, int, int], ...] = ()) -> MachineMap:
    """64 MiB of memory whose last 2 MiB the e820 table calls ``kind``."""
    e820 = odd or ((62 * MIB, 2 * MIB, kind),)
    return build_map([(0, 64 * MIB)], e820=[(0, 62 * MIB, 1), *e820])


@pytest.mark.parametrize(
    ("kind", "stays"),
    [(1, True), (128, True), (3, True), (2, False), (4, False), (5, False), (7, False)],
)
def test_slots_past_the_end_are_cleared(backend: str, kind: int, stays: bool) -> None:
    """§2.1.4: the slot of 62M-64M, mapped first, is cleared by map(1M, 62M) unless usable (1), kernel-reserved (128) or
    ACPI (3) memory is in it.  What was counted stays counted, and the mapped list keeps it."""
    host = Host(backend, clearing_map(kind))
    assert leaves(host.state()) == large(0, 64 * MIB if stays else 62 * MIB)
    assert host.counts() == (0, 33, 0)
    assert host.state().mapped == ((0, 0x4000),)


@pytest.mark.parametrize("at", [62 * MIB, 63 * MIB, 64 * MIB - 4 * KIB])
def test_memory_anywhere_in_the_slot_keeps_it(backend: str, at: int) -> None:
    """§2.1.4: "anywhere in the slot's span": a single page is enough."""
    rows = [(62 * MIB, at - 62 * MIB, 2), (at, 4 * KIB, 1), (at + 4 * KIB, 64 * MIB - at - 4 * KIB, 2)]
    host = Host(backend, clearing_map(0, tuple(row for row in rows if row[1])))
    assert leaves(host.state()) == large(0, 64 * MIB)


def test_memory_next_to_the_slot_does_not_keep_it(backend: str) -> None:
    """§2.1.4: rows that end where the slot begins, and begin where it ends."""
    host = Host(backend, clearing_map(0, ((62 * MIB, 2 * MIB, 2), (64 * MIB, 2 * MIB, 1))))
    assert leaves(host.state()) == large(0, 62 * MIB)


def test_memory_that_ends_inside_a_round(backend: str) -> None:
    """§2.1.6, §2.2: memory 0-4M and 5M-8M: the round from 4M to 6M finds nothing of the first range, and the hole is
    not mapped."""
    host = Host(backend, build_map([(0, 4 * MIB), (5 * MIB, 3 * MIB)]))
    assert host.state().mapped == ((0, 0x400), (0x500, 0x800))
    assert leaves(host.state()) == large(0, 4 * MIB) | small(5 * MIB, 6 * MIB) | large(6 * MIB, 8 * MIB)


@pytest.mark.parametrize(("kind", "stays"), [(1, True), (2, False)])
def test_a_slot_with_a_table_is_cleared_too(backend: str, kind: int, stays: bool) -> None:
    """§2.1.4 at level 3: map(1M, 1G) clears the slot of 1G-2G, whose upper half was mapped by 2M leaves before."""
    upper = (GIB + 512 * MIB, 512 * MIB)
    host = Host(backend, build_map([(0, GIB), upper], e820=[(0, GIB, 1), (*upper, kind)]))
    expected = giga(0) | (large(upper[0], 2 * GIB) if stays else {})
    assert leaves(host.state()) == expected
    # map(0, 1M): leaf 0; 62M by 2M steps: 1 and 255; map(1M, 1G): leaf 0 again
    assert host.counts() == (0, 256, 2)


def test_pieces_without_a_page_touch_nothing(backend: str) -> None:
    """§2.1.4: a table in a slot that a piece touches stays, whatever the e820 table says of the slot.

    Memory 0-64M, 1G-1.5G and 1.75G-2G; the e820 table calls 1G-2G reserved.  map(0, 1M): 1 large; start 2G, step 2M: 1;
    step 512M: map(1.75G, 2G-2M): 127; 256M, the step stays: map(1G, 1.5G), whose head, first rise and middle are empty,
    goes down the table of slot 1: 256; the step grows: map(1M, 64M): 32, and clears slot 1.  Tables: root, level 3, and
    the level-2 ones of slots 0 and 1.
    """
    memory = [(0, 64 * MIB), (GIB, 512 * MIB), (GIB + 768 * MIB, 256 * MIB)]
    host = Host(backend, build_map(memory, e820=[(0, 64 * MIB, 1), (GIB, GIB, 2)]))
    assert leaves(host.state()) == large(0, 64 * MIB)
    assert host.counts() == (0, 1 + 1 + 127 + 256 + 32, 0)
    assert host.counters()["table_pages"] == 4


def test_large_leaf_is_masked_to_its_size(backend: str) -> None:
    """§2.1.4: the frame of a large leaf is the address masked to its size: leaf 4 is made by a piece that starts at
    5G-2M."""
    host = Host(backend, HOLE)
    assert host.leaf(0x100000) == (3, 4 * GIB | LARGE_LEAF)


def test_nothing_free_for_tables(backend: str) -> None:
    """No page for the root: the machine cannot be built."""
    with pytest.raises(MachineError):
        Host(backend, build_map([(0, 64 * MIB)], reserved=[(0, 64 * MIB)]))


@pytest.mark.parametrize(("free", "enough"), [(2, False), (3, True)])
def test_just_enough_free_for_tables(backend: str, free: int, enough: bool) -> None:
    """64 MiB need three table pages; two are too few, and a page touched by a reserved range is not free."""
    map_ = build_map([(0, 64 * MIB)], reserved=[(0, 64 * MIB - free * 4 * KIB - 1)])
    if enough:
        host = Host(backend, map_)
        assert host.counters()["table_pages"] == 3
        # of the next page down only the last byte is free, so it cannot become a table
        assert host.call("set_memory_4k", pfn=0, pages=1) == ENOMEM
    else:
        with pytest.raises(MachineError):
            Host(backend, map_)


def test_high_mapping(backend: str) -> None:
    """The high mapping at boot: 2M leaves 0x1e3 over [_text down to 2M, _brk_end up to 2M), its tables right after
    the root.

    _text 0x81000000, _brk_end 0x82345000: up to 0x82400000: 10 leaves, frames from 16M.  Tables: root, level 3, level
    2 of the high mapping, then level 3 and level 2 of the direct map.
    """
    host = Host(backend, IMAGE)
    state = host.state()
    assert leaves(state, 1) == {(2, at): at | 0x1E3 for at in range(0x1000000, 0x2400000, 2 * MIB)}
    assert tables(state, 1) == {}
    assert state.root == 0x3FFF000
    assert tables(state) == {(4, 0): 0x3FFC000 | BOOT_TABLE, (3, 0): 0x3FFB000 | BOOT_TABLE}
    assert state.counters["table_pages"] == 5
    assert host.counts() == (0, 33, 0)


def test_high_mapping_moved(backend: str) -> None:
    """The frame of a high leaf is virtual - 0xffffffff80000000 + phys_base."""
    state = Host(backend, IMAGE_MOVED).state()
    assert leaves(state, 1) == {(2, at): at + 8 * MIB | 0x1E3 for at in range(0x1000000, 0x2400000, 2 * MIB)}


def test_high_mapping_keeps_global(backend: str) -> None:
    """High leaves are not cut to the default mask: the recording of a kernel with page-table isolation has 0x1e3
    there."""
    state = Host(backend, dataclasses.replace(IMAGE, default_mask=(1 << 64) - 1 - G)).state()
    assert {raw & ~FRAME_MASK for raw in leaves(state, 1).values()} == {0x1E3}


def test_high_mapping_five_levels(backend: str) -> None:
    """With five levels the high mapping has a level-4 table too."""
    map_ = dataclasses.replace(IMAGE, levels=5, page_offset=PAGE_OFFSETS[5])
    state = Host(backend, map_).state()
    # root; 4, 3, 2 of the high mapping; 4, 3, 2 of the direct map
    assert state.counters["table_pages"] == 7
    assert tables(state)[5, 0] == 0x3FFB000 | BOOT_TABLE
    assert len(leaves(state, 1)) == 10


def test_image_that_starts_inside_a_large_page(backend: str) -> None:
    """_text is rounded down to 2M for the high mapping."""
    assert IMAGE.image is not None
    image = dataclasses.replace(IMAGE.image, text=HIGH_MAPPING + 0x1012000, brk_end=HIGH_MAPPING + 0x2400000)
    state = Host(backend, dataclasses.replace(IMAGE, image=image)).state()
    assert sorted(leaves(state, 1)) == [(2, at) for at in range(0x1000000, 0x2400000, 2 * MIB)]


def test_e820_rows_in_any_order() -> None:
    """§2.1.4: which slots past a piece stay is asked of the whole e820 table, wherever the row that says so stands.

    Each third piece of memory has no row, so what is mapped of it is cleared by the pieces below."""
    pieces = [(at * 64 * MIB, 2 * MIB + (at % 3) * 4 * KIB) for at in range(40)]
    rows = [(base, size, (1, 3, 128)[at % 3]) for at, (base, size) in enumerate(pieces)]
    whole = build_map(pieces, e820=rows)
    rows = [row for at, row in enumerate(rows) if at % 3] + [(base + 3 * MIB, MIB, 2) for base, _ in pieces]
    shuffled = random.Random(1).sample(rows, len(rows))
    maps = [build_map(pieces, e820=order) for order in (sorted(rows), sorted(rows, reverse=True), shuffled)]
    states = [Host(backend, machine_map).state() for backend in BACKENDS for machine_map in maps]
    assert len({state.digest() for state in states}) == 1
    assert len(leaves(states[0])) < len(leaves(Host("native", whole).state()))


def test_two_machines_of_one_map_are_equal(backend: str) -> None:
    """Nothing at boot depends on anything but the map."""
    assert Host(backend, PC).state().digest() == Host(backend, PC).state().digest()


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_boot_is_the_same_in_every_kernel(backend: str, kernel: str) -> None:
    """§10: no version in the list changes how the direct map is built."""
    assert Host(backend, PC, kernel=kernel).state() == Host(backend, PC).state()


def test_low_memory_only(backend: str) -> None:
    """§2.2: memory that ends below 1 MiB: the first map is all there is."""
    host = Host(backend, dataclasses.replace(SMALL, memory=((0, 512 * KIB),), e820=((0, 512 * KIB, 1),), max_pfn=0x80))
    assert leaves(host.state()) == small(0, MIB)
    assert host.state().mapped == ((0, 0x100),)
