"""Test vectors of level 1: what calls make of one page-table entry (docs/direct-map.md §1, §4, §7, §8)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rmpcore.maps import MachineMap
from rmpcore.ops import Op, make_op
from rmpcore.vectors.draft import (
    Draft,
)
from rmpcore.vectors.form import Items

_P, _RW, _US, _PWT, _PCD, _A, _D, _PSE, _G = (1 << bit for bit in range(9))
_SOFTW1, _SOFTW2, _SOFTW3, _PAT_LARGE = 1 << 9, 1 << 10, 1 << 11, 1 << 12
_SOFTW4, _PK, _NX = 1 << 57, 0xF << 59, 1 << 63
_FRAME = 0x000F_FFFF_FFFF_F000
KERNEL_LARGE = _P | _RW | _A | _D | _PSE | _G | _NX
"""PAGE_KERNEL of a large page (direct-map §1)."""
_MEMORY = ((0, 0xA0000), (0x100000, 0x7FF00000))
PAGES_MAP = MachineMap(
    name="pages",
    e820=tuple((base, size, 1) for base, size in _MEMORY),
    memory=_MEMORY,
    reserved=((0, 0x100000),),
    max_pfn=1 << 19,
)
"""2 GiB without the hole below 1 MiB: 4 KiB leaves, then leaves of 2 MiB, then one of 1 GiB."""
_TWO = 0x4000
"""The frame of a 2 MiB leaf there."""
_ONE = 0x40000
"""The frame of the 1 GiB leaf."""


def _leaf(pfn: int, level: int, flags: int) -> Items:
    """A leaf in place of the one that is there at boot; without P the frame is inverted (direct-map §1)."""
    address = pfn << 12
    raw = address | flags if flags & _P else ~address & _FRAME | flags
    return {("leaf", 0, level, address): (raw,)}


_LEAF_FLAGS = {
    "kernel": KERNEL_LARGE,
    "read-only": KERNEL_LARGE & ~(_RW | _D),
    "executable": KERNEL_LARGE & ~_NX,
    "not-global": KERNEL_LARGE & ~_G,
    "user": KERNEL_LARGE | _US,
    "not-accessed": KERNEL_LARGE & ~_A,
    "pwt-pcd": KERNEL_LARGE | _PWT | _PCD,
    "pat": KERNEL_LARGE | _PAT_LARGE,
    "pat-uc": KERNEL_LARGE | _PAT_LARGE | _PCD,
    "software": KERNEL_LARGE | _SOFTW1 | _SOFTW2 | _SOFTW4,
    "keys": KERNEL_LARGE | _PK,
    "not-present": _A | _NX,
    "not-present-rw": _RW | _A | _D | _NX,
}


CALLS = (
    "set_memory_ro",
    "set_memory_rw",
    "set_memory_nx",
    "set_memory_x",
    "set_memory_np",
    "set_memory_p",
    "set_memory_np_noalias",
    "set_memory_global",
    "set_memory_nonglobal",
    "_set_memory_uc",
    "_set_memory_wc",
    "_set_memory_wb",
)


def page_tables() -> Iterator[Draft]:
    """direct-map §1, §4.3, §4.4, §7: what calls make of one large page and its parts."""

    def case(name: str, rule: str, about: str, op: Op, items: Items, kernel: str = "6.12") -> Draft:
        return Draft(f"{name}-{kernel}", rule, about, op, items, f"pages-{kernel}")

    def call(name: str, pfn: int, pages: int = 1, **fields: int) -> Op:
        return make_op(name, pfn=pfn, pages=pages, **fields)

    for flags, kernel in (*product(_LEAF_FLAGS, ("6.12",)), *product(("kernel", "pat", "not-present"), ("6.18",))):
        leaf = _leaf(_TWO, 2, _LEAF_FLAGS[flags])
        about = f"a 2 MiB leaf, flags: {flags}"
        yield case(f"set_memory_4k/2M-{flags}", "direct-map §4.4", about, call("set_memory_4k", _TWO + 5), leaf, kernel)
    for flags in _LEAF_FLAGS:
        leaf = _leaf(_ONE, 3, _LEAF_FLAGS[flags])
        about = f"a 1 GiB leaf, flags: {flags}: it is split twice"
        yield case(f"set_memory_4k/1G-{flags}", "direct-map §4.4", about, call("set_memory_4k", _ONE + 0x405), leaf)
    for pages in (0, 2, 512, 513):
        leaf = _leaf(_TWO, 2, KERNEL_LARGE)
        about = f"{pages} pages from the first of a 2 MiB leaf"
        yield case(f"set_memory_4k/pages-{pages}", "direct-map §4.4", about, call("set_memory_4k", _TWO, pages), leaf)
    yield case(
        "set_memory_4k/1G-cross",
        "direct-map §4.4",
        "the last page of 1 GiB and the first of the next",
        call("set_memory_4k", _ONE - 1, 2),
        {},
    )

    for name, (what, pages) in product(CALLS, {"whole": 512, "part": 3}.items()):
        for flags in ("kernel", "pat", "not-present") if name.startswith("_") else ("kernel", "not-present"):
            leaf = _leaf(_TWO, 2, _LEAF_FLAGS[flags])
            about = f"{what} of a 2 MiB leaf, flags: {flags}"
            yield case(
                f"{name}/2M-{what}-{flags}",
                "direct-map §7",
                about,
                call(name, _TWO + 8 * (what == "part"), pages),
                leaf,
            )
    for name in ("set_memory_ro", "set_memory_rox", "set_memory_np"):
        leaf = _leaf(_TWO, 2, KERNEL_LARGE)
        yield case(
            f"{name}/2M-whole",
            "direct-map §7",
            "the whole of a 2 MiB leaf, before D went with RW",
            call(name, _TWO, 512),
            leaf,
            "6.1" if name != "set_memory_rox" else "6.2",
        )
    for name in ("set_memory_ro", "set_memory_np", "_set_memory_wc"):
        yield case(f"{name}/1G-whole", "direct-map §4.3", "the whole of a 1 GiB leaf", call(name, _ONE, 1 << 18), {})
        yield case(f"{name}/1G-2M", "direct-map §4.3", "2 MiB of a 1 GiB leaf", call(name, _ONE + 0x400, 512), {})
        yield case(f"{name}/1G-4K", "direct-map §4.3", "a page of a 1 GiB leaf", call(name, _ONE + 0x405), {})
        yield case(f"{name}/2M-2M", "direct-map §4.3", "two 2 MiB leaves", call(name, _TWO, 1024), {})
        yield case(
            f"{name}/2M-half", "direct-map §4.3", "a half of each of two 2 MiB leaves", call(name, _TWO + 256, 512), {}
        )
        yield case(f"{name}/4K", "direct-map §7", "a 4 KiB leaf", call(name, 0x80), {})
    yield case(
        "set_memory_rw/2M-part-same",
        "direct-map §4.3",
        "a part, and nothing to change: no split",
        call("set_memory_rw", _TWO + 8, 3),
        {},
    )

    for state, pfn, level in (("4K", 0x80, 1), ("2M", _TWO, 2), ("1G", _ONE, 3)):
        for name in ("set_direct_map_invalid_noflush", "set_direct_map_default_noflush"):
            op = make_op(name, pfn=pfn)
            yield case(f"{name}/{state}", "direct-map §7", f"a {state} leaf", op, {})
            leaf = _leaf(pfn, level, _LEAF_FLAGS["not-present"])
            yield case(f"{name}/{state}-not-present", "direct-map §7", f"a {state} leaf that is not present", op, leaf)
    for valid in (0, 1):
        op = make_op("set_direct_map_valid_noflush", pfn=_TWO, pages=512, valid=valid)
        for flags in ("kernel", "not-present"):
            yield case(
                f"set_direct_map_valid_noflush/{valid}-{flags}",
                "direct-map §7",
                f"the whole of a 2 MiB leaf, flags: {flags}",
                op,
                _leaf(_TWO, 2, _LEAF_FLAGS[flags]),
                "6.18",
            )

    # Small pages that become a large one (§8): they are made by a split, and the mark that it leaves is taken off.
    def small(change: dict[int, int] | None = None, flags: int = _P | _RW | _A | _D | _G | _NX) -> Items:
        pages = {_TWO + i: flags for i in range(512)} | (change or {})
        items: Items = {}
        for pfn, bits in pages.items():
            items |= _leaf(pfn, 1, bits)
        return items | {("leaf", 0, 2, _TWO << 12): (0,)}

    split = (make_op("set_memory_4k", pfn=_TWO, pages=1),)
    plain = _P | _RW | _A | _D | _G | _NX
    variants: dict[str, tuple[str, Items]] = {
        "good": ("512 equal pages", small()),
        "pat": ("PAT moves to its place in a large page", small(flags=plain | _PSE)),
        "mark-first": ("the first page shall stay small", small({_TWO: plain | _SOFTW3})),
        "mark-all": ("all shall stay small", small(flags=plain | _SOFTW3)),
        "one-np": ("one page is not present", small({_TWO + 9: _A | _NX})),
        "one-pcd": ("one page has another cache mode", small({_TWO + 511: plain | _PCD})),
        "one-d": ("one page is not dirty: the call makes them equal", small({_TWO + 9: plain & ~_D})),
    }
    for name, (about, items) in variants.items():
        op = make_op("set_memory_rox", pfn=_TWO, pages=512)
        draft = case(f"set_memory_rox/collapse-{name}", "direct-map §8", about, op, items, "6.18")
        yield Draft(draft.name, draft.rule, draft.about, draft.op, draft.items, draft.machine, split)
    draft = case(
        "set_memory_rox/collapse-old",
        "direct-map §8",
        "kernels before 6.15 leave small pages",
        make_op("set_memory_rox", pfn=_TWO, pages=512),
        small(),
        "6.12",
    )
    yield Draft(draft.name, draft.rule, draft.about, draft.op, draft.items, draft.machine, split)
