"""Which frames exist, and the allocator of pages for page tables.

Ranges of addresses and of frames are Python ``range`` objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rmpcore.maps import PAGE_SIZE, PHYSICAL_LIMIT, MachineMap

SECTION_FRAMES = 1 << 15
"""Frames of a 128 MiB section, the granule of the kernel's pfn_valid() (host §1)."""


def overlap(one: range, other: range) -> range:
    """What two ranges have in common; empty (false) when it is nothing."""
    return range(max(one.start, other.start), min(one.stop, other.stop))


def subtract(ranges: Iterable[range], holes: Iterable[range]) -> list[range]:
    """``ranges`` without ``holes``, in ascending order."""
    left = list(ranges)
    for hole in holes:
        left = [
            part
            for piece in left
            for part in (
                range(piece.start, min(piece.stop, hole.start)),
                range(max(piece.start, hole.stop), piece.stop),
            )
            if part
        ]
    return left


def round_down(value: int, unit: int) -> int:
    return value // unit * unit


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Memory:
    """The machine's RAM: what there is, what is free, which frames hold page tables."""

    def __init__(self, machine_map: MachineMap) -> None:
        self.ranges = [range(base, base + size) for base, size in machine_map.memory]
        """RAM, in bytes."""
        reserved = [range(base, base + size) for base, size in machine_map.reserved]
        self.free = subtract(self.ranges, reserved)
        """RAM that was not in use when the direct map was built, in bytes."""
        touched = [range(round_down(r.start, PAGE_SIZE), round_up(r.stop, PAGE_SIZE)) for r in reserved]
        self._free_pages = subtract(self.ranges, touched)
        self._sections = {
            section
            for r in self.ranges
            for section in range(
                r.start // PAGE_SIZE // SECTION_FRAMES, (r.stop - 1) // PAGE_SIZE // SECTION_FRAMES + 1
            )
        }
        self._in_use: set[int] = set()
        self._search_from = PHYSICAL_LIMIT
        """No page above this one is free."""
        self.fail_skip = 0
        """Allocations that still succeed ..."""
        self.fail_count = 0
        """... and how many fail after them."""

    def contains(self, address: int) -> bool:
        """Is this byte RAM?"""
        return any(address in r for r in self.ranges)

    def pfn_valid(self, pfn: int) -> bool:
        """host §1: section-granular; true for every frame of a section that contains memory."""
        return pfn // SECTION_FRAMES in self._sections

    def claim(self, address: int) -> None:
        """A page that holds a table from now on."""
        self._in_use.add(address)

    def release(self, address: int) -> None:
        """A page that holds no table any more: it counts as free again."""
        self._in_use.remove(address)
        self._search_from = max(self._search_from, address)

    def is_claimed(self, address: int) -> bool:
        return address in self._in_use

    def allocate(self) -> int | None:
        """The address of the highest free page, now in use; None when there is none or one is made to fail."""
        if self.fail_skip > 0:
            self.fail_skip -= 1
        elif self.fail_count > 0:
            self.fail_count -= 1
            return None
        for address in self._highest_first():
            if address not in self._in_use:
                self.claim(address)
                self._search_from = address
                return address
        self._search_from = 0
        return None

    def keep_off(self, blocks: Iterable[range]) -> None:
        """Nothing is allocated from these any more."""
        self._free_pages = subtract(self._free_pages, blocks)

    def _highest_first(self) -> Iterator[int]:
        for free in reversed(self._free_pages):
            yield from reversed(range(free.start, min(free.stop, self._search_from + PAGE_SIZE), PAGE_SIZE))
