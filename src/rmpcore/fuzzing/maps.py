"""The small machines that random ops are done to: few ranges, round sizes, each with something that the others lack."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rmpcore.maps import PAGE_OFFSETS, U64_MAX, KernelImage, MachineMap, SegmentedRmp

MIB = 1 << 20
GIB = 1 << 30
NOPAT = (0x00, 0x10, 0x10, 0x18, 0x08, 0x10)
"""The cache modes of a machine without PAT (direct-map §1)."""
WITHOUT_G = U64_MAX & ~(1 << 8)
WITHOUT_NX = U64_MAX & ~(1 << 63)


def build_map(
    memory: Iterable[tuple[int, int]],
    reserved: Iterable[tuple[int, int]] = (),
    e820: Iterable[tuple[int, int, int]] | None = None,
    **fields: Any,
) -> MachineMap:
    """A map whose e820 table is its memory, all of it usable, unless another one is given."""
    memory = tuple(memory)
    if e820 is None:
        e820 = [(base, size, 1) for base, size in memory]
    fields.setdefault("name", "test")
    fields.setdefault("max_pfn", (memory[-1][0] + memory[-1][1]) >> 12)
    return MachineMap(memory=memory, reserved=tuple(reserved), e820=tuple(e820), **fields)


IMAGE_SYMBOLS = KernelImage(
    text=0xFFFF_FFFF_8100_0000,
    etext=0xFFFF_FFFF_8160_0000,
    start_rodata=0xFFFF_FFFF_8180_3000,
    end_rodata=0xFFFF_FFFF_8180_7000,
    brk_end=0xFFFF_FFFF_8234_5000,
)
"""Frames 0x1000 to 0x2344; read-only data is frames 0x1803 to 0x1806."""
IMAGE = build_map([(0, 64 * MIB)], reserved=[(0x1000000, 0x1345000)], image=IMAGE_SYMBOLS)
IMAGE_MOVED = build_map(
    [(0, 64 * MIB)],
    reserved=[(0x1800000, 0x1345000)],
    image=dataclasses.replace(IMAGE_SYMBOLS, phys_base=0x800000),
)
"""The same image 8 MiB further up: frames 0x1800 to 0x2b44."""

SNP_E820 = ((0, 64 * MIB, 1), (64 * MIB, MIB, 2))
SNP = build_map([(0, 64 * MIB)], e820=SNP_E820, rmp=(0x4000000, 0x40FFFFF))
"""64 MiB and a 1 MiB RMP above them.  (0x100000 - 0x4000) / 16 = 0xfc00 frames are covered; frames 0x4000 to
0x7fff share a section with memory, so they are valid though no memory is there."""
SNP_IMAGE = dataclasses.replace(IMAGE, e820=SNP_E820, rmp=(0x4000000, 0x40FFFFF))

_SMALL = build_map([(0, 16 * MIB), (18 * MIB, 6 * MIB)])
_SMALL_IMAGE = dataclasses.replace(IMAGE, memory=((0, 40 * MIB),), e820=((0, 40 * MIB, 1),), max_pfn=0x2800)
_GIGA = build_map([(0, 2 * GIB), (3 * GIB, GIB)])
DIRECT_MAPS: dict[str, MachineMap] = {
    "2M": _SMALL,
    "4K": dataclasses.replace(_SMALL, large_pages="4K"),
    "1G": _GIGA,
    "1G nopat pti": dataclasses.replace(_GIGA, cachemodes=NOPAT, default_mask=WITHOUT_G),
    "c-bit pti": dataclasses.replace(_SMALL, c_bit=1 << 51, default_mask=WITHOUT_G),
    "image": _SMALL_IMAGE,
    "image 4K": dataclasses.replace(_SMALL_IMAGE, large_pages="4K"),
    "image 1G": dataclasses.replace(_GIGA, image=IMAGE_SYMBOLS),
    "moved image c-bit nopat": dataclasses.replace(IMAGE_MOVED, c_bit=1 << 47, cachemodes=NOPAT),
    "image without NX": dataclasses.replace(_SMALL_IMAGE, supported_mask=WITHOUT_NX),
}
"""For changes of the direct map."""

_CONTIGUOUS = build_map(
    [(0, 20 * MIB)],
    e820=[(0, 20 * MIB, 1), (20 * MIB, 2 * MIB, 2)],
    # covers 21 MiB, its own first mebibyte among them
    rmp=(20 * MIB, 20 * MIB + 0x4000 + 16 * 0x1500 - 1),
    rmp_probed=False,
)
_SEGMENTED = build_map(
    [(0, 1000 * MIB), (2 * GIB, GIB)],
    e820=[(0, 1000 * MIB, 1), (1000 * MIB, 24 * MIB, 2), (2 * GIB, GIB, 1)],
    # segment 1 is not covered; 3 has reserved bits in its entry
    segmented=SegmentedRmp(1001 * MIB, 30 << 8 | 1, (1 | 1004 * MIB, 0, 1 | 1008 * MIB, 1 | 1012 * MIB | 1 << 60)),
)
RMPS: dict[str, MachineMap] = {
    "contiguous": _CONTIGUOUS,
    "contiguous c-bit": dataclasses.replace(_CONTIGUOUS, c_bit=1 << 51),
    "segmented": _SEGMENTED,
    "segmented c-bit": dataclasses.replace(_SEGMENTED, c_bit=1 << 47),
}
"""For what is done to the RMP."""

_GIGA_RMP = build_map(
    [(0, 2 * GIB), (3 * GIB, GIB)],
    e820=[(0, 2 * GIB, 1), (2 * GIB, 64 * MIB, 2), (3 * GIB, GIB, 1)],
    rmp=(2 * GIB, 2 * GIB + 64 * MIB - 1),
)
HOSTS: dict[str, MachineMap] = {
    "1G": _GIGA_RMP,
    "1G c-bit pti": dataclasses.replace(_GIGA_RMP, c_bit=1 << 51, default_mask=WITHOUT_G),
    "1G five levels": dataclasses.replace(_GIGA_RMP, levels=5, page_offset=PAGE_OFFSETS[5]),
    "2M": SNP,
    "image": SNP_IMAGE,
    "partly covered": _CONTIGUOUS,
}
"""For calls of the host layer."""

WORKLOAD_HOST = build_map(
    [(0, 256 * MIB)], e820=[(0, 256 * MIB, 1), (256 * MIB, 2 * MIB, 2)], rmp=(256 * MIB, 258 * MIB - 1)
)
