"""A small buddy allocator: which frames a host gives to its kernel, its firmware and its guests.

The rules are in docs/workloads.md, section 2.  What is free follows from the set of free pages alone: the largest
aligned blocks of up to 4 MiB that are wholly free.  Only the order in which equal blocks are taken has a history.
"""

from __future__ import annotations

from array import array
from mmap import mmap
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmpcore.maps import MIB, PAGE_SIZE, MachineMap
from rmpcore.placement import GIB, coverage

Pages = npt.NDArray[np.int64]
"""Frame numbers, or numbers of blocks."""

MAX_ORDER = 10
"""The largest block has 2^10 pages: 4 MiB."""
_BLOCK_2M = 2 * MIB
_FIXED = (0xFD << 32, 0xFE << 32)
"""SNP_INIT makes this range HV-Fixed, whatever is there (rmp §4.2)."""
_SLACK = 4096
"""Entries of a list that may be out of date before it is tidied up."""


class OutOfPagesError(ValueError):
    """No free block is large enough."""


class Runs(NamedTuple):
    """Pages in order, as runs of consecutive frames."""

    first: Pages
    length: Pages

    def pages(self) -> Pages:
        """Every page's frame number."""
        before = np.cumsum(self.length) - self.length
        return np.repeat(self.first - before, self.length) + np.arange(self.length.sum())

    def blocks(self, order: int) -> Pages:
        """The first frames of the blocks that the runs are made of."""
        return Runs(self.first >> order, self.length >> order).pages() << order


def single_pages(pages: Pages) -> Runs:
    """Pages that need not follow each other, each a run of its own."""
    return Runs(pages, np.ones_like(pages))


def _without(ranges: list[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    pieces = [piece for a, b in ranges for piece in ((a, min(b, low)), (max(a, high), b))]
    return [(a, b) for a, b in pieces if a < b]


def _rmp_ends(machine_map: MachineMap) -> list[int]:
    if machine_map.rmp is not None:
        return [machine_map.rmp[0], machine_map.rmp[1] + 1]
    areas = machine_map.segmented.areas() if machine_map.segmented is not None else ()
    return [end for base, size in areas for end in (base, base + size)]


def free_memory(machine_map: MachineMap) -> list[tuple[int, int]]:
    """What the allocator starts with, as (first frame, frame after the last), ascending (docs/workloads.md §2.1)."""
    free = [(base, base + size) for base, size in machine_map.memory]
    for base, size in machine_map.reserved:
        free = _without(free, base // PAGE_SIZE * PAGE_SIZE, -(-(base + size) // PAGE_SIZE) * PAGE_SIZE)
    for end in _rmp_ends(machine_map):
        if end % _BLOCK_2M:
            free = _without(free, end // _BLOCK_2M * _BLOCK_2M, (end // _BLOCK_2M + 1) * _BLOCK_2M)
    memory = sum(size for _, size in machine_map.memory)
    tables = -(-(memory // 512 + memory // 512 // 512 + MIB) // _BLOCK_2M) * _BLOCK_2M
    while tables and free:
        low, high = free.pop()
        if high - low > tables:
            free.append((low, high - tables))
        tables -= min(tables, high - low)
    for low, high in ((0, MIB), _FIXED):
        free = _without(free, low, high)
    covered = [(base, base + size) for base, size in sorted(coverage(machine_map))]
    free = [(max(a, c), min(b, d)) for a, b in free for c, d in covered if max(a, c) < min(b, d)]
    return [(low // PAGE_SIZE, high // PAGE_SIZE) for low, high in free if low // PAGE_SIZE < high // PAGE_SIZE]


class PageAllocator:
    """Free blocks by order.

    A list may hold entries that are out of date: a block that a merge took away stays in its list, and counts only
    while its flag is set.  The entry nearest to the end is always that of the last time it was freed.
    """

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        top = max((high for _, high in ranges), default=0)
        # Flags in pages of their own take memory only where they are touched.
        self._free = [np.frombuffer(mmap(-1, (top >> order) + 2), dtype=np.bool_) for order in range(MAX_ORDER + 1)]
        self._lists = [array("q") for _ in range(MAX_ORDER + 1)]
        self._count = [0] * (MAX_ORDER + 1)
        # Lists are used from their end, so memory that comes first goes in last.
        limit = 4 * GIB // PAGE_SIZE
        wanted = [*_without(ranges, 0, limit), *_without(ranges, limit, max(top, limit))]
        bounds = np.array(wanted, dtype=np.int64).reshape(-1, 2)
        self.free_runs(Runs(bounds[:, 0], bounds[:, 1] - bounds[:, 0]))
        for blocks in self._lists:
            blocks.reverse()

    @property
    def free_pages(self) -> int:
        """How many pages are free."""
        return self.available(0)

    def available(self, order: int) -> int:
        """How many blocks of an order there are to be had."""
        return sum(self._count[k] << (k - order) for k in range(order, MAX_ORDER + 1))

    def free_blocks(self, order: int) -> list[int]:
        """First frames of the free blocks of just this order, the one that is taken next first."""
        latest = dict.fromkeys(reversed(self._lists[order]))
        return [block << order for block in latest if self._free[order][block]]

    def alloc(self, order: int = 0) -> int:
        """Take a block: the smallest that fits, among equals the one freed last.  Its first frame."""
        for k in range(order, MAX_ORDER + 1):
            if self._count[k]:
                block = self._pop(k)
                while k > order:
                    k -= 1
                    block *= 2
                    self._add(k, block + 1)
                return block << order
        raise OutOfPagesError(f"no free block of {PAGE_SIZE << order >> 10} KiB")

    def alloc_scattered(self, order: int, rng: np.random.Generator) -> int:
        """Take a block from a random place."""
        pick = int(rng.integers(max(1, self.available(order))))
        for k in range(order, MAX_ORDER + 1):
            if pick < self._count[k] << (k - order):
                blocks, free = self._lists[k], self._free[k]
                while not free[block := blocks[rng.integers(len(blocks))]]:
                    pass
                free[block] = False
                self._count[k] -= 1
                while k > order:
                    k -= 1
                    block = 2 * block + int(rng.integers(2))
                    self._add(k, block ^ 1)
                return block << order
            pick -= self._count[k] << (k - order)
        raise OutOfPagesError(f"no free block of {PAGE_SIZE << order >> 10} KiB")

    def free(self, pfn: int, order: int = 0) -> None:
        """Give a block back; it merges with its buddy as long as that one is free."""
        block = pfn >> order
        while order < MAX_ORDER and self._free[order][block ^ 1]:
            self._free[order][block ^ 1] = False
            self._count[order] -= 1
            block >>= 1
            order += 1
        self._add(order, block)

    def alloc_pages(self, count: int, order: int = 0) -> Runs:
        """What so many times ``alloc(order)`` gives, at little cost."""
        if count > self.available(order):
            raise OutOfPagesError(f"no {count:,} free blocks of {PAGE_SIZE << order >> 10} KiB")
        first, pages = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for k in range(order, MAX_ORDER + 1):
            wanted = min(-(-count // (1 << (k - order))), self._count[k])
            if not wanted:
                continue
            blocks = self._pop_many(k, wanted)
            used = np.full(wanted, 1 << k)
            rest = (wanted << (k - order)) - count
            count -= wanted << (k - order)
            first.append(blocks << k)
            pages.append(used)
            if rest > 0:
                used[-1] -= rest << order
                self._split(int(blocks[-1]), k, order, (1 << (k - order)) - rest)
                break
        return Runs(np.concatenate(first), np.concatenate(pages))

    def _split(self, block: int, k: int, order: int, used: int) -> None:
        """Put back what is left of a block of order k, of which the first ``used`` blocks of an order are taken."""
        while used << order < 1 << k:
            k -= 1
            block *= 2
            half = 1 << (k - order)
            if used <= half:
                self._add(k, block + 1)
            else:
                block, used = block + 1, used - half

    def free_runs(self, runs: Runs) -> None:
        """What ``free(page, 0)`` of every page in order does."""
        bits = int(np.bitwise_or.reduce(runs.first | runs.length))
        start = min((bits & -bits).bit_length() - 1, MAX_ORDER) if bits else 0
        low, high = runs.first >> start, (runs.first + runs.length) >> start
        # "when" is the place of a block's first page among all, "since" what to add to a frame number of the run to
        # get it.  What merges counts as freed with the part that came last.
        since = np.cumsum(runs.length) - runs.first - runs.length
        blocks = when = np.zeros(0, dtype=np.int64)
        for order in range(start, MAX_ORDER):
            more = low < high
            low, high, since = low[more], high[more], since[more]
            # What sticks out at either end of a run is in no larger block of the run.
            at_low = (low & 1).astype(np.bool_)
            at_high = (high & 1).astype(np.bool_) & (low + at_low < high)
            ends = np.concatenate((low[at_low], high[at_high] - 1))
            blocks = np.concatenate((blocks, ends))
            when = np.concatenate((when, np.concatenate((since[at_low], since[at_high])) + (ends << order)))
            low, high = (low + at_low) >> 1, (high - at_high) >> 1
            if len(blocks):
                blocks, when = self._free_order(order, blocks, when)
        whole = Runs(low, high - low)
        blocks = np.concatenate((blocks, whole.pages()))
        when = np.concatenate((when, np.repeat(since, whole.length) + (whole.pages() << MAX_ORDER)))
        self._free[MAX_ORDER][blocks] = True
        self._push(MAX_ORDER, blocks, when)

    def _free_order(self, order: int, blocks: Pages, when: Pages) -> tuple[Pages, Pages]:
        """Free blocks of an order; those of the next one that came together, and when."""
        free = self._free[order]
        free[blocks] = True
        pair = free[blocks ^ 1]
        joined = blocks[pair]
        free[joined] = free[joined ^ 1] = False
        alone = ~pair
        self._push(order, blocks[alone], when[alone])
        last_first = np.argsort(-when[pair])
        parents, at = np.unique(joined[last_first] >> 1, return_index=True)
        # Of the two blocks of each pair, those of this call were never counted.
        self._count[order] -= 2 * len(parents) - len(joined)
        return parents, when[pair][last_first][at]

    def _pop(self, order: int) -> int:
        blocks, free = self._lists[order], self._free[order]
        while not free[block := blocks.pop()]:
            pass
        free[block] = False
        self._count[order] -= 1
        return block

    def _pop_many(self, order: int, count: int) -> Pages:
        blocks, free = self._lists[order], self._free[order]
        parts = []
        self._count[order] -= count
        while count:
            top = np.frombuffer(blocks[-max(count, 64) :], dtype=np.int64)[::-1]
            live = np.flatnonzero(free[top])
            live = live[np.sort(np.unique(top[live], return_index=True)[1])][:count]
            del blocks[len(blocks) - (int(live[-1]) + 1 if len(live) == count else len(top)) :]
            free[top[live]] = False
            parts.append(top[live])
            count -= len(live)
        return np.concatenate(parts)

    def _add(self, order: int, block: int) -> None:
        self._free[order][block] = True
        self._lists[order].append(block)
        self._count[order] += 1
        self._tidy(order)

    def _push(self, order: int, blocks: Pages, when: Pages) -> None:
        self._lists[order].frombytes(blocks[np.argsort(when)].tobytes())
        self._count[order] += len(blocks)
        self._tidy(order)

    def _tidy(self, order: int) -> None:
        """Throw away what is out of date when that is most of a list."""
        blocks = self._lists[order]
        if len(blocks) > 2 * self._count[order] + _SLACK:
            latest = np.frombuffer(blocks[:], dtype=np.int64)[::-1]
            latest = latest[np.sort(np.unique(latest, return_index=True)[1])]
            blocks[:] = array("q", latest[self._free[order][latest]][::-1].tobytes())
