"""Page-table entries: frames and named flags, and how they become 64 bits (direct-map §1)."""

from __future__ import annotations

from typing import NamedTuple

Flags = frozenset[str]

FRAME_BITS = range(12, 52)
LEVEL_SHIFT = {1: 12, 2: 21, 3: 30}
"""Lowest bit of the frame in a leaf of each level."""

_COMMON = {
    0: "P", 1: "RW", 2: "US", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 8: "G", 9: "SOFTW1", 10: "SOFTW2", 11: "SOFTW3",
    57: "SOFTW4", 58: "SOFTW5", 59: "PKEY0", 60: "PKEY1", 61: "PKEY2", 62: "PKEY3", 63: "NX",
}  # fmt: skip
_PRESENT = 1 << 0
_PSE = 1 << 7
_SMALL = {7: "PAT"}
_LARGE = {7: "PSE", 12: "PAT_LARGE"}

NOTHING: Flags = frozenset()
ENCRYPTED = "C"
"""The C-bit, wherever the machine has it: a flag, not a part of the frame."""
PAGE_KERNEL: Flags = frozenset({"P", "RW", "A", "D", "G", "NX"})
PAGE_KERNEL_EXEC: Flags = PAGE_KERNEL - {"NX"}
BOOT_POINTER: Flags = frozenset({"P", "RW", "US", "A", "D"})
"""0x067: a table that the boot code hung."""
SPLIT_POINTER: Flags = frozenset({"P", "RW", "A", "D"})
"""0x063: a table that a split hung."""


def to_small(flags: Flags) -> Flags:
    """Large -> small: PSE and PAT_LARGE go, PAT_LARGE becomes PAT."""
    moved = {"PAT"} if "PAT_LARGE" in flags else NOTHING
    return flags - {"PSE", "PAT_LARGE"} | moved


def to_large(flags: Flags) -> Flags:
    """Small -> large: PAT becomes PAT_LARGE.  PSE is not set by this."""
    moved = {"PAT_LARGE"} if "PAT" in flags else NOTHING
    return flags - {"PAT"} | moved


def drop_protnone(flags: Flags) -> Flags:
    """A flag set without P has no G, which would read as PROTNONE."""
    return flags if "P" in flags else flags - {"G"}


class Pte(NamedTuple):
    """An entry as the rules see it."""

    frame: int
    flags: Flags


class PteFormat:
    """The 64 bits of an entry, on a machine whose C-bit is the mask ``c_bit`` (0: none)."""

    def __init__(self, c_bit: int) -> None:
        self._c_bit = c_bit
        self.encrypted: Flags = frozenset({ENCRYPTED}) if c_bit else NOTHING
        """What every entry of the kernel's own mappings carries."""
        self._bits = {name: bit for table in (_COMMON, _SMALL, _LARGE) for bit, name in table.items()}
        if c_bit:
            self._bits[ENCRYPTED] = c_bit.bit_length() - 1
        for bit in range(64):
            # Bits that the rules do not name are flags all the same when they lie outside the frame.
            self._bits[f"BIT{bit}"] = bit
        self._frame_masks = {
            lowest: ((1 << FRAME_BITS.stop) - (1 << lowest)) & ~c_bit for lowest in LEVEL_SHIFT.values()
        }
        """The bits of the frame, by the lowest of them."""
        self._names_seen: dict[tuple[int, bool], Flags] = {}
        self._values_seen: dict[Flags, int] = {}

    def read(self, raw: int, level: int) -> Pte:
        """Frame and flags of a raw entry found at ``level``."""
        has_pse = level in (2, 3) and raw & _PSE
        frame_mask = self._frame_masks[LEVEL_SHIFT[level] if has_pse else 12]
        # An entry that is not zero and not present stores its frame inverted; reading undoes it.
        inverted = raw != 0 and not raw & _PRESENT
        frame = (~raw if inverted else raw) & frame_mask
        return Pte(frame >> 12, self._names(raw & ~frame_mask, level == 1))

    def write(self, frame: int, flags: Flags) -> int:
        """The raw entry: the mask is bits 51:12 whatever the level."""
        return self._compose(frame, flags, 12)

    def write_at_boot(self, frame: int, flags: Flags, level: int) -> int:
        """The same by the boot code, which masks its large entries to the level's size."""
        return self._compose(frame, flags, LEVEL_SHIFT[level])

    @property
    def frame_mask(self) -> int:
        """The bits of a small entry that are its frame."""
        return self._frame_masks[12]

    def small_flags(self, bits: int) -> Flags:
        """The flags that these bits are in a small entry."""
        return self._names(bits & ~self.frame_mask, small=True)

    def value(self, flags: Flags) -> int:
        """The bits that these flags are."""
        seen = self._values_seen.get(flags)
        if seen is None:
            seen = 0
            for name in flags:
                seen |= 1 << self._bits[name]
            self._values_seen[flags] = seen
        return seen

    def cut(self, flags: Flags, mask: int) -> Flags:
        """The flags whose bits are in ``mask``."""
        return frozenset(name for name in flags if self._is_set(mask, self._bits[name]))

    def _compose(self, frame: int, flags: Flags, lowest_frame_bit: int) -> int:
        address = frame << 12
        if flags and "P" not in flags:
            address = ~address
        return address & self._frame_masks[lowest_frame_bit] | self.value(flags)

    @staticmethod
    def _is_set(value: int, bit: int) -> bool:
        return value >> bit & 1 == 1

    def _names(self, bits: int, small: bool) -> Flags:
        seen = self._names_seen.get((bits, small))
        if seen is None:
            table = _COMMON | (_SMALL if small else _LARGE)
            if self._c_bit:
                table = table | {self._c_bit.bit_length() - 1: ENCRYPTED}
            seen = frozenset(table.get(bit, f"BIT{bit}") for bit in range(64) if self._is_set(bits, bit))
            self._names_seen[bits, small] = seen
        return seen
