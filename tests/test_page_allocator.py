"""The page allocator of workloads (docs/workloads.md, section 2)."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import GIB, MIB, build_map

from rmpcore.maps import MachineMap
from rmpcore.page_allocator import MAX_ORDER, OutOfPagesError, PageAllocator, Pages, Runs, free_memory, single_pages
from rmpcore.placement import place_rmp

ORDERS = range(MAX_ORDER + 1)


class Plain:
    """The rules of docs/workloads.md §2.2 one block at a time, with lists that are never out of date."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self.lists: list[list[int]] = [[] for _ in ORDERS]
        for low, high in ranges:
            for pfn in range(low, high):
                self.free(pfn, 0)
        for blocks in self.lists:
            blocks.reverse()

    def alloc(self, order: int) -> int:
        for k in range(order, MAX_ORDER + 1):
            if self.lists[k]:
                pfn = self.lists[k].pop()
                while k > order:
                    k -= 1
                    self.lists[k].append(pfn + (1 << k))
                return pfn
        raise OutOfPagesError

    def free(self, pfn: int, order: int) -> None:
        while order < MAX_ORDER and pfn ^ 1 << order in self.lists[order]:
            self.lists[order].remove(pfn ^ 1 << order)
            pfn &= ~(1 << order)
            order += 1
        self.lists[order].append(pfn)


def blocks(allocator: PageAllocator) -> list[list[int]]:
    return [allocator.free_blocks(order) for order in ORDERS]


def runs(*pairs: tuple[int, int]) -> Runs:
    array: Pages = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Runs(array[:, 0], array[:, 1])


# Single blocks -----------------------------------------------------------------------------------------------------


def test_starts_with_the_largest_blocks() -> None:
    """§2.2: a block is aligned to its size."""
    found = blocks(PageAllocator([(3, 2056)]))
    assert found == [[3], [], [4], [8, 2048], [16], [32], [64], [128], [256], [512], [1024]]


def test_memory_from_4_gib_up_comes_first() -> None:
    """§2.2: ascending from 4 GiB, then ascending from below."""
    allocator = PageAllocator([(1024, 4096), (1 << 20, (1 << 20) + 2048)])
    found = [allocator.alloc(10) for _ in range(5)]
    assert found == [1 << 20, (1 << 20) + 1024, 1024, 2048, 3072]


def test_a_split_uses_the_lower_half() -> None:
    allocator = PageAllocator([(1024, 2048)])
    assert allocator.alloc(0) == 1024
    assert blocks(allocator) == [[1024 + (1 << order)] for order in range(MAX_ORDER)] + [[]]


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = PageAllocator([(0, 2048)])
    allocator.alloc(3)
    assert allocator.alloc(2) == 8
    assert allocator.alloc(10) == 1024


def test_among_equals_the_one_freed_last_is_taken() -> None:
    allocator = PageAllocator([(0, 1024)])
    pages = [allocator.alloc() for _ in range(8)]
    for pfn in (0, 4, 2, 6):
        allocator.free(pages[pfn])
    assert [allocator.alloc() for _ in range(4)] == [6, 2, 4, 0]


def test_a_block_freed_twice_has_its_later_place() -> None:
    """A place in a list that a block no longer has must not count."""
    allocator = PageAllocator([(0, 1024)])
    for _ in range(8):
        allocator.alloc()
    for pfn in (0, 2, 1):  # 0 is taken away by the merge with 1
        allocator.free(pfn)
    assert allocator.alloc() == 2
    assert [allocator.alloc(), allocator.alloc()] == [0, 1]
    for pfn in (4, 0, 6):
        allocator.free(pfn)
    assert [allocator.alloc() for _ in range(3)] == [6, 0, 4]


def test_a_place_in_the_list_counts_once() -> None:
    """The same in bulk: 0 was in the list before 4 came, and is there again."""
    allocator = PageAllocator([(0, 1024)])
    for _ in range(8):
        allocator.alloc()
    for pfn in (4, 0, 1):
        allocator.free(pfn)
    assert allocator.alloc(1) == 0
    allocator.free(0)
    assert allocator.alloc_pages(2).pages().tolist() == [0, 4]


@pytest.mark.parametrize("backwards", [False, True])
def test_all_that_is_given_back_merges(backwards: bool) -> None:
    allocator = PageAllocator([(3, 5000)])
    before = [sorted(found) for found in blocks(allocator)]
    taken = [allocator.alloc() for _ in range(4997)]
    assert sorted(taken) == list(range(3, 5000))
    for pfn in reversed(taken) if backwards else taken:
        allocator.free(pfn)
    assert [sorted(found) for found in blocks(allocator)] == before


def test_nothing_larger_than_4_mib() -> None:
    allocator = PageAllocator([(0, 2048)])
    allocator.free(allocator.alloc(10), 10)
    assert allocator.free_blocks(10) == [0, 1024]


def test_exhaustion_changes_nothing() -> None:
    allocator = PageAllocator([(0, 1536)])
    allocator.alloc()
    before = blocks(allocator)
    with pytest.raises(OutOfPagesError, match="no 1,536 free blocks of 4 KiB"):
        allocator.alloc_pages(1536)
    with pytest.raises(OutOfPagesError, match="no free block of 4096 KiB"):
        PageAllocator([(0, 512)]).alloc(10)
    with pytest.raises(OutOfPagesError):
        PageAllocator([]).alloc_scattered(0, np.random.default_rng(1))
    assert blocks(allocator) == before
    assert allocator.alloc_pages(1535).length.sum() == 1535
    with pytest.raises(OutOfPagesError):
        allocator.alloc()


def test_scattered_blocks_come_from_everywhere() -> None:
    """§2.2: each free block that could be had is as likely as the others, wherever it lies."""
    allocator, rng = PageAllocator([(0, 1 << 20)]), np.random.default_rng(7)
    first = [allocator.alloc_scattered(9, rng) for _ in range(400)]
    quarters = np.bincount(np.array(first) >> 18, minlength=4)
    assert all(60 < number < 140 for number in quarters)  # 100 each, with a deviation of 9
    assert sum(pfn & 512 for pfn in first) // 512 in range(140, 260)  # upper halves of 4 MiB
    rest = [allocator.alloc_scattered(9, rng) for _ in range(2048 - 400)]
    assert sorted(first + rest) == list(range(0, 1 << 20, 512))
    assert allocator.free_pages == 0


# Many at a time ----------------------------------------------------------------------------------------------------

_RANGES = st.sampled_from([[(0, 3000)], [(5, 1999), (2001, 4096)], [(1030, 1100), (2048, 6144)]])
_MOVES = st.lists(
    st.tuples(st.sampled_from(["alloc", "free", "pages", "runs", "scatter"]), st.integers(0, 700), st.integers(0, 9)),
    max_size=12,
)


@settings(max_examples=70)
@given(_RANGES, _MOVES, st.randoms(use_true_random=False))
def test_bulk_is_what_single_calls_do(
    ranges: list[tuple[int, int]], moves: list[tuple[str, int, int]], random: Random
) -> None:
    """§2.2: alloc_pages is so many alloc(order), free_runs is free of each page in order; lists in the same order."""
    allocator, plain = PageAllocator(ranges), Plain(ranges)
    held: list[int] = []
    for what, number, order in moves:
        room = sum(len(plain.lists[k]) << (k - order) for k in range(order, MAX_ORDER + 1))
        assert allocator.available(order) == room
        if what == "alloc" and room:
            pfn = plain.alloc(order)
            assert allocator.alloc(order) == pfn
            held += range(pfn, pfn + (1 << order))
        elif what == "pages":
            number = min(number, room)
            expected = [plain.alloc(order) for _ in range(number)]
            taken = allocator.alloc_pages(number, order)
            assert taken.blocks(order).tolist() == expected
            assert taken.pages().tolist() == [pfn + i for pfn in expected for i in range(1 << order)]
            held += taken.pages().tolist()
        elif what == "free" and held:
            pfn = held.pop(number % len(held))
            allocator.free(pfn)
            plain.free(pfn, 0)
        elif what == "runs" and held:
            held.sort()
            start = number % len(held)
            given_up, held = held[start : start + 2 * number], held[:start] + held[start + 2 * number :]
            pieces: list[list[int]] = []
            for pfn in given_up:
                if pieces and pieces[-1][-1] + 1 == pfn and random.random() < 0.95:
                    pieces[-1].append(pfn)
                else:
                    pieces.append([pfn])
            random.shuffle(pieces)
            allocator.free_runs(runs(*((piece[0], len(piece)) for piece in pieces)))
            for pfn in (pfn for piece in pieces for pfn in piece):
                plain.free(pfn, 0)
        assert blocks(allocator) == [found[::-1] for found in plain.lists]


def test_lists_stay_short() -> None:
    """A merge leaves a dead entry behind; they are cleared away, and the order of the live ones stays."""
    allocator, plain = PageAllocator([(0, 64)]), Plain([(0, 64)])
    for _ in range(64):
        allocator.alloc()
        plain.alloc(0)
    for pfn in (9, 20, 33):
        allocator.free(pfn)
        plain.free(pfn, 0)
    for _ in range(6_000):
        allocator.free(0)
        allocator.free(1)
        assert allocator.alloc(1) == 0
    assert sum(map(len, allocator._lists)) < 6_000
    assert blocks(allocator) == [found[::-1] for found in plain.lists]
    allocator.free_runs(single_pages(np.array([50, 40, 8])))
    assert allocator.free_blocks(0) == [40, 50, 33, 20]
    assert allocator.free_blocks(1) == [8]


# What is free at the start -----------------------------------------------------------------------------------------


def frames(ranges: list[tuple[int, int]]) -> set[int]:
    return {pfn for low, high in ranges for pfn in range(low, high)}


def bytes_of(*ranges: tuple[int, int]) -> set[int]:
    """Frames of (first, end) in bytes."""
    return frames([(low >> 12, high >> 12) for low, high in ranges])


RESERVED = build_map(
    [(0, 30 * MIB), (32 * MIB, 32 * MIB)],
    reserved=[(0, 0x1000), (0x500800, 0x1000)],
    e820=[(0, 30 * MIB, 1), (30 * MIB, 2 * MIB, 2), (32 * MIB, 32 * MIB, 1)],
    rmp=(30 * MIB + 0x1000, 31 * MIB - 1),
)
"""A reserved range that touches two pages, and an RMP of which neither end is 2 MiB-aligned."""


def test_what_is_not_free() -> None:
    """§2.1: memory less reserved pages, the first MiB, the RMP's 2 MiB blocks, and room for tables at the top."""
    expected = bytes_of((MIB, 0x500000), (0x502000, 30 * MIB), (32 * MIB, 62 * MIB))
    assert frames(free_memory(RESERVED)) == expected  # 64 MiB / 512 and 1 MiB are 2 MiB when rounded up
    allocator = PageAllocator(free_memory(RESERVED))
    assert set(allocator.alloc_pages(len(expected)).pages().tolist()) == expected
    assert allocator.free_pages == 0


@pytest.mark.parametrize(
    ("rmp", "missing"),
    [
        ((28 * MIB, 30 * MIB - 1), set()),
        ((28 * MIB, 29 * MIB - 1), bytes_of((29 * MIB, 30 * MIB))),
        ((29 * MIB, 30 * MIB - 1), bytes_of((28 * MIB, 29 * MIB))),
    ],
)
def test_blocks_around_the_ends_of_the_rmp(rmp: tuple[int, int], missing: set[int]) -> None:
    """§2.1, host §1: an end that is not 2 MiB-aligned costs its block."""
    base, size = rmp[0], rmp[1] + 1 - rmp[0]
    memory = [(0, base), (base + size, 256 * MIB - base - size)]
    map_ = build_map(memory, e820=[(a, n, 1) for a, n in memory] + [(base, size, 2)], rmp=rmp)
    covered = (size - 0x4000) // 16
    expected = bytes_of((MIB, base), (base + size, 254 * MIB)) - missing
    assert frames(free_memory(map_)) == {pfn for pfn in expected if pfn < covered}


def test_memory_without_an_entry_is_not_free() -> None:
    """§2.1: RMPUPDATE would answer FAIL_INPUT there."""
    map_ = build_map([(0, 64 * MIB)], rmp=(1 << 32, (1 << 32) + 0x4000 + 16 * 0x3000 - 1), rmp_probed=False)
    assert frames(free_memory(map_)) == bytes_of((MIB, 48 * MIB))


def test_a_segmented_rmp() -> None:
    """§2.1: both ends of each table."""
    map_: MachineMap = place_rmp(build_map([(0, 3 * GIB), (4 * GIB, GIB)]), segment_shift=32)
    free = frames(free_memory(map_))
    assert map_.segmented is not None
    for base, size in map_.segmented.areas():
        for end in (base, base + size):
            if end % (2 * MIB):
                block = end // (2 * MIB) * 512
                assert not free & set(range(block, block + 512))
    assert len(free) > 0.97 * 4 * GIB / 4096


def test_the_fixed_range_below_1_tib() -> None:
    """§2.1: SNP_INIT makes 0xfd00000000 to 0xfdffffffff HV-Fixed."""
    map_ = build_map([(0, GIB), (0xFC << 32, 4 << 32)])
    map_ = dataclasses.replace(map_, rmp=(1 << 44, (1 << 44) + (1 << 33) - 1), rmp_probed=False)
    assert not any(low < 0xFE << 20 and high > 0xFD << 20 for low, high in free_memory(map_))


def test_small_memory_has_nothing_free() -> None:
    assert free_memory(build_map([(0, 2 * MIB)], rmp=(1 << 32, (1 << 32) + MIB - 1), rmp_probed=False)) == []
