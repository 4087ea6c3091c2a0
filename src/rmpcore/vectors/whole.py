"""Test vectors of level 2: whole machines, from their boot through a few ops to the one that the case is about.

Calls that change the direct map (docs/direct-map.md §4 to §8), the kernel's SNP layer (docs/host.md §1), the firmware's
commands (docs/rmp.md §4.2), and failures of memory and instructions in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

from rmpcore.maps import KernelImage, MachineMap
from rmpcore.ops import AccessKind, Op, Who, make_op
from rmpcore.vectors.draft import Draft
from rmpcore.vectors.pages import CALLS

_MIB = 1 << 20
_PC_E820 = (
    (0, 0x9FC00, 1),
    (0x9FC00, 0x400, 2),
    (0xF0000, 0x10000, 2),
    (0x100000, 0x3F00000, 1),
    (0x4000000, 0x100000, 2),
)
_IMAGE = KernelImage(
    text=0xFFFF_FFFF_8100_0000,
    etext=0xFFFF_FFFF_8160_0000,
    start_rodata=0xFFFF_FFFF_8180_3000,
    end_rodata=0xFFFF_FFFF_8180_7000,
    brk_end=0xFFFF_FFFF_8234_5000,
)
PC = MachineMap(
    name="pc",
    e820=_PC_E820,
    memory=((0x1000, 0x9E000), (0x100000, 0x3F00000)),
    reserved=((0, 0x1000), (0x9F000, 0x61000), (0x1000000, 0x1345000)),
    max_pfn=0x4000,
    image=_IMAGE,
    rmp=(0x4000000, 0x404BFFF),
)
"""64 MiB as a PC has them, a kernel image from frame 0x1000 on, and an RMP above."""
GIGA = MachineMap(
    name="giga",
    e820=((0, 0xA0000, 1), (0x100000, 0x7FF00000, 1), (0x80000000, 0x1000000, 2), (1 << 32, 1 << 30, 1)),
    memory=((0, 0xA0000), (0x100000, 0x7FF00000), (1 << 32, 1 << 30)),
    reserved=((0, 0x100000),),
    max_pfn=0x140000,
    c_bit=1 << 51,
    rmp=(0x80000000, 0x80FFFFFF),
    rmp_probed=False,
)
"""Leaves of all sizes, a hole, memory encryption, and an RMP that covers all but the upper part."""

RULES = {
    "direct-map §3": "looking a frame up",
    "direct-map §4": "changing attributes: kept, rewritten, split, flushed, counted",
    "direct-map §4.4": "a split: no page for its table",
    "direct-map §5": "static protections of the kernel image",
    "direct-map §6": "the same frame in the other mapping",
    "direct-map §7": "which bits a call sets and clears",
    "direct-map §8": "512 small pages become a large one",
    "host §1 adjust": "what adjust_direct_map splits, and what it refuses",
    "host §1 update": "rmpupdate and what calls it: repeated, complained about, given up",
    "host §1 psmash": "the kernel's psmash",
    "host §1 look-up": "the kernel's look-up and dump of an entry",
    "host §1 firmware pages": "pages marked for the firmware, reclaimed, leaked",
    "host §1 accesses": "the host's own reads and writes",
    "host §1 controls": "what makes instructions and allocations fail",
    "rmp §1.6": "the table's counters of pages by ASID",
    "rmp §3.7": "VMRUN and #VMEXIT: pages in use",
    "rmp §4.1": "the states of an entry",
    "rmp §4.2": "the firmware's commands: checks in order, and effects",
}
"""What the rules are about that the cases of level 2 name."""

_FREE = 0x2C05
"""A frame of the PC that has nothing to do with the image, inside a 2 MiB leaf."""
_LEAF = 0x2C00
_TEXT = 0x1005
_RODATA = 0x1804
_BRK = 0x2300
_CALLS = ("set_memory_4k", *CALLS)
_NEWER = ("set_memory_rox",)
"""From 6.2 on."""


def _op(name: str, **args: int) -> Op:
    return make_op(name, **args)


def _listed(*frames: int) -> tuple[Op, ...]:
    return tuple(_op("cpa_address", pfn=pfn) for pfn in frames)


def direct_map() -> Iterator[Draft]:
    """direct-map §4 to §8, on both maps."""

    def case(name: str, rule: str, about: str, op: Op, *setup: Op, machine: str = "pc-6.12") -> Draft:
        return Draft(f"{name}-{machine}", rule, about, op, {}, machine, setup)

    split = _op("set_memory_4k", pfn=_FREE, pages=1)
    absent = _op("set_memory_np", pfn=_LEAF, pages=512)
    read_only = _op("set_memory_ro", pfn=_FREE, pages=1)
    for machine, names in (("pc-6.1", _CALLS), ("pc-6.12", _CALLS + _NEWER), ("pc-6.18", _CALLS + _NEWER)):
        for name in names:

            def call(pfn: int, pages: int, name: str = name, **fields: int) -> Op:
                return _op(name, pfn=pfn, pages=pages, **fields)

            rows: list[tuple[str, str, str, Op, Sequence[Op]]] = [
                ("part", "direct-map §4", "three pages of a 2 MiB leaf", call(_FREE, 3), ()),
                ("whole", "direct-map §4", "the whole of a 2 MiB leaf", call(_LEAF, 512), ()),
                ("cross", "direct-map §4", "the ends of two 2 MiB leaves", call(_LEAF + 510, 4), ()),
                ("many", "direct-map §4", "34 pages: more than are flushed one by one", call(_LEAF, 34), ()),
                ("none", "direct-map §4", "no pages", call(_FREE, 0), ()),
                ("after-split", "direct-map §4", "pages that were split before", call(_FREE, 3), (split,)),
                ("absent", "direct-map §4", "a part of a 2 MiB leaf that is not present", call(_FREE, 1), (absent,)),
                ("twice", "direct-map §4", "a page that is read-only already", call(_FREE, 1), (read_only,)),
                ("no-page", "direct-map §4.4", "no page for the table", call(_FREE, 1), (_op("fail_alloc"),)),
                (
                    "no-second-page",
                    "direct-map §4.4",
                    "no page for the second table",
                    call(_LEAF + 510, 4),
                    (_op("fail_alloc", skip=1),),
                ),
                ("text", "direct-map §6", "frames of the kernel's text", call(_TEXT, 2), ()),
                ("rodata", "direct-map §6", "frames of the kernel's read-only data", call(_RODATA, 1), ()),
                ("brk", "direct-map §6", "frames after the image, in its last 2 MiB", call(0x2400, 1), ()),
                ("high", "direct-map §6", "the image's own mapping", call(_TEXT, 2, high=1), ()),
                ("high-brk", "direct-map §6", "the end of the image's own mapping", call(_BRK, 512, high=1), ()),
                ("array", "direct-map §4", "three addresses", call(0, 3, flavour=1), _listed(_FREE, 0x3005, _LEAF)),
                ("pages", "direct-map §4", "three frames", call(0, 3, flavour=2), _listed(_FREE, _FREE, 0x3005)),
                ("beyond", "direct-map §4", "frames without memory, above it", call(0x3FFF, 3), ()),
            ]
            if machine != "pc-6.12":
                rows = [row for row in rows if row[0] in ("part", "whole", "absent", "text", "high", "twice")]
            for what, rule, about, op, setup in rows:
                yield case(f"{name}/{what}", rule, about, op, *setup, machine=machine)

    for name, machine in product(
        ("set_memory_4k", "set_memory_ro", "set_memory_np", "_set_memory_wc"), ("giga-6.12", "giga-6.18")
    ):
        for what, about, pfn, pages in (
            ("1G-page", "a page of a 1 GiB leaf", 0x40405, 1),
            ("1G-whole", "the whole of a 1 GiB leaf", 0x100000, 1 << 18),
            ("1G-2M", "2 MiB of a 1 GiB leaf", 0x40400, 512),
            ("1G-cross", "from 2 MiB leaves into a 1 GiB leaf", 0x3FFFF, 2),
            ("hole", "from memory into a hole", 0x7FFFF, 3),
            ("boot-4K", "4 KiB leaves, and a hole below 1 MiB", 0x9F, 2),
        ):
            if name == "set_memory_4k" and pages > 512:
                continue
            yield case(f"{name}/{what}", "direct-map §4", about, _op(name, pfn=pfn, pages=pages), machine=machine)
        setup = (_op("fail_alloc", skip=1),)
        yield case(
            f"{name}/1G-no-second-page",
            "direct-map §4.4",
            "1 GiB is split, 2 MiB is not",
            _op(name, pfn=0x40405, pages=1),
            *setup,
            machine=machine,
        )
    for name, pages, machine in product(
        ("set_memory_decrypted", "set_memory_encrypted"), (1, 512), ("giga-6.12", "pc-6.12")
    ):
        op = _op(name, pfn=0x600 if machine.startswith("giga") else _LEAF, pages=pages)
        yield case(f"{name}/{pages}", "direct-map §7", "the encryption bit, where there is one", op, machine=machine)
    again = _op("set_memory_decrypted", pfn=0x605, pages=1)
    yield case(
        "set_memory_encrypted/again",
        "direct-map §7",
        "what was decrypted",
        _op("set_memory_encrypted", pfn=0x605, pages=1),
        again,
        machine="giga-6.12",
    )
    for mask in (0x200, 0x18, 1 << 63, 0x1E3 | 1 << 63, 0xF << 59):
        for name in ("change_page_attr_set", "change_page_attr_clear"):
            op = _op(name, pfn=_FREE, pages=2, mask=mask)
            yield case(f"{name}/{mask:x}", "direct-map §4", f"bits {mask:#x} of two pages", op)

    for kernel, what in product(("6.1", "6.12", "6.18"), ("4K", "2M", "absent", "no-page", "text")):
        pfn = {"4K": 0x12, "text": _TEXT}.get(what, _FREE)
        setup = {"absent": (absent,), "no-page": (_op("fail_alloc"),)}.get(what, ())
        for name in ("set_direct_map_invalid_noflush", "set_direct_map_default_noflush"):
            yield case(
                f"{name}/{what}",
                "direct-map §7",
                f"one page: {what}",
                _op(name, pfn=pfn),
                *setup,
                machine=f"pc-{kernel}",
            )
    invalid = _op("set_direct_map_invalid_noflush", pfn=_FREE)
    yield case(
        "set_direct_map_default_noflush/again",
        "direct-map §7",
        "what was made invalid",
        _op("set_direct_map_default_noflush", pfn=_FREE),
        invalid,
    )
    for valid, pages in product((0, 1), (0, 1, 34, 512)):
        op = _op("set_direct_map_valid_noflush", pfn=_LEAF, pages=pages, valid=valid)
        yield case(
            f"set_direct_map_valid_noflush/{valid}-{pages}", "direct-map §7", f"{pages} pages", op, machine="pc-6.18"
        )
        if pages == 512:
            yield case(
                f"set_direct_map_valid_noflush/{valid}-{pages}-absent",
                "direct-map §7",
                "a leaf that is not present",
                op,
                absent,
                machine="pc-6.18",
            )
    for what, pfn, setup in (
        ("4K", 0x12, ()),
        ("2M", _FREE, ()),
        ("text", _TEXT, ()),
        ("split", _FREE, (split,)),
        ("absent", _FREE, (absent,)),
        ("nothing", 0x40000, ()),
    ):
        yield case(f"lookup/{what}", "direct-map §3", what, _op("lookup", pfn=pfn), *setup)

    # Collapse (§8): small pages that nothing keeps small were made by a change that was taken back.
    restored = (
        _op("set_memory_nx", pfn=_FREE, pages=1),
        _op("set_memory_ro", pfn=_FREE, pages=1),
        _op("set_memory_rw", pfn=_FREE, pages=1),
    )
    whole = _op("set_memory_rox", pfn=_LEAF, pages=512)
    for machine in ("pc-6.12", "pc-6.18"):
        yield case("set_memory_rox/collapse", "direct-map §8", "equal small pages", whole, *restored, machine=machine)
    yield case(
        "set_memory_rox/kept-small", "direct-map §8", "pages that shall stay small", whole, split, machine="pc-6.18"
    )
    op = _op("set_memory_rox", pfn=_LEAF, pages=511)
    yield case("set_memory_rox/one-less", "direct-map §8", "all but the last page", op, *restored, machine="pc-6.18")
    op = _op("set_memory_rox", pfn=0x100000, pages=1 << 18)
    small = (_op("set_memory_ro", pfn=0x100005, pages=1), _op("set_memory_rw", pfn=0x100005, pages=1))
    yield case(
        "set_memory_rox/collapse-1G",
        "direct-map §8",
        "small pages of 1 GiB: two levels",
        op,
        *small,
        machine="giga-6.18",
    )


# --- the kernel's SNP layer ----------------------------------------------------------------------------------------


def _private(pfn: int, level: int = 1, **fields: int) -> Op:
    given = {"gpa": 0x40000000 + (pfn % 512 << 12 if level == 1 else 0), "asid": 5, "level": level}
    return _op("rmp_make_private", pfn=pfn, **(given | fields))


def host() -> Iterator[Draft]:
    """host §1."""

    def case(name: str, rule: str, about: str, op: Op, *setup: Op, machine: str = "pc-6.12") -> Draft:
        return Draft(f"{name}-{machine}", f"host §1 {rule}", about, op, {}, machine, setup)

    updates: dict[str, Callable[[int, int], Op]] = {
        "rmp_make_private": lambda pfn, level: _private(pfn, level),
        "rmp_make_firmware": lambda pfn, level: _op("rmp_make_firmware", pfn=pfn, level=level),
        "rmp_make_shared": lambda pfn, level: _op("rmp_make_shared", pfn=pfn, level=level),
        "rmpupdate": lambda pfn, level: _op(
            "rmpupdate", pfn=pfn, gpa=0x40000000, assigned=1, asid=5, size=int(level > 1)
        ),
    }
    for name, make in updates.items():
        rows: list[tuple[str, str, Op, Sequence[Op]]] = [
            ("4K", "a page of a 2 MiB leaf", make(_FREE, 1), ()),
            ("4K-small", "a page of a 4 KiB leaf", make(0x12, 1), ()),
            ("2M", "2 MiB", make(_LEAF, 2), ()),
            ("2M-unaligned", "2M, and the frame is not aligned", make(_FREE, 2), ()),
            ("4K-hole", "a frame without memory, in a section with some", make(0x5000, 1), ()),
            ("4K-invalid", "a frame of a section without memory", make(0x10000, 1), ()),
            ("2M-uncovered", "2M that is not covered", make(0x4800, 2), ()),
            ("4K-own", "a page that is a guest's", make(_FREE, 1), (_private(_FREE),)),
            ("2M-own", "a region that is a guest's", make(_LEAF, 2), (_private(_LEAF, 2),)),
            ("4K-inside", "inside a 2M page: repeated for ever", make(_FREE, 1), (_private(_LEAF, 2),)),
            ("4K-head", "at a 2M page: repeated for ever", make(_LEAF, 1), (_private(_LEAF, 2),)),
            ("2M-over", "2M over a 4K page: repeated for ever", make(_LEAF, 2), (_private(_FREE),)),
            ("immutable", "an immutable page", make(_FREE, 1), (_private(_FREE, immutable=1),)),
            ("no-page", "no page for the split", make(_FREE, 1), (_op("fail_alloc"),)),
            ("storm", "three overlaps that pass", make(_FREE, 1), (_op("inject", code=4, count=3),)),
            ("fails", "the instruction fails", make(_FREE, 1), (_op("inject", code=1),)),
            ("in-use", "in use: not repeated", make(_FREE, 1), (_op("inject", code=3),)),
            (
                "absent",
                "a page that the direct map lacks",
                make(_FREE, 1),
                (_op("set_memory_np", pfn=_LEAF, pages=512),),
            ),
        ]
        for what, about, op, setup in rows:
            yield case(f"{name}/{what}", "update", about, op, *setup)
        yield case(f"{name}/no-rmp", "update", "there is no RMP", make(_FREE, 1), machine="no-rmp-6.12")
        yield case(f"{name}/1G", "update", "a page of a 1 GiB leaf", make(0x40405, 1), machine="giga-6.12")
        yield case(
            f"{name}/2M-of-1G", "update", "2 MiB of a 1 GiB leaf: no split", make(0x40400, 2), machine="giga-6.12"
        )
    yield case("rmp_make_private/level-1G", "update", "level 1G acts as 2M", _private(_LEAF, 3))
    for asid in (1, 0x3FF, 0x400):
        draft = case(f"rmp_make_private/asid-{asid:x}", "update", "an ASID", _private(_FREE, asid=asid))
        yield draft
    for level, pfn in product((1, 2, 3), (_FREE, _LEAF, 0x12, 0x10000)):
        yield case(
            f"adjust_direct_map/{level}-{pfn:x}",
            "adjust",
            f"level {level}",
            _op("adjust_direct_map", pfn=pfn, level=level),
        )
    no_page = _op("fail_alloc")
    yield case(
        "adjust_direct_map/no-page",
        "adjust",
        "no page for the table",
        _op("adjust_direct_map", pfn=_FREE, level=1),
        no_page,
    )
    yield case(
        "adjust_direct_map/no-rmp",
        "adjust",
        "works without an RMP",
        _op("adjust_direct_map", pfn=_FREE, level=1),
        machine="no-rmp-6.12",
    )

    smash = _op("psmash", pfn=_LEAF)
    rows = [
        ("good", "a 2M page", smash, (_private(_LEAF, 2),)),
        ("4K", "4K pages", smash, (_private(_LEAF),)),
        ("free", "a free page", smash, ()),
        ("unaligned", "a frame inside", _op("psmash", pfn=_FREE), (_private(_LEAF, 2),)),
        ("immutable", "an immutable 2M page", smash, (_private(_LEAF, 2, immutable=1),)),
        ("in-use", "in use", smash, (_private(_LEAF, 2), _op("inject", code=3))),
        ("invalid", "a frame of a section without memory", _op("psmash", pfn=0x10000), ()),
    ]
    for what, about, op, setup in rows:
        yield case(f"psmash/{what}", "psmash", about, op, *setup)
    yield case("psmash/no-rmp", "psmash", "there is no RMP", smash, machine="no-rmp-6.12")

    for name, machine in product(("snp_lookup_rmpentry", "dump_rmpentry"), ("pc-6.12", "turin-6.18")):
        for what, pfn, setup in (
            ("free", _FREE, ()),
            ("4K", _FREE, (_private(_FREE),)),
            ("2M", _LEAF, (_private(_LEAF, 2),)),
            ("inside", _FREE, (_private(_LEAF, 2),)),
            ("neighbour", _LEAF, (_private(_FREE),)),
            ("uncovered", 0x20000, ()),
        ):
            yield case(f"{name}/{what}", "look-up", what, _op(name, pfn=pfn), *setup, machine=machine)
    yield case(
        "snp_lookup_rmpentry/no-rmp",
        "look-up",
        "there is no RMP",
        _op("snp_lookup_rmpentry", pfn=_FREE),
        machine="no-rmp-6.12",
    )

    init = _op("SNP_INIT")
    mark = _op("rmp_mark_pages_firmware", pfn=_FREE, pages=3)
    reclaim = _op("snp_reclaim_pages", pfn=_FREE, pages=3)
    rows = [
        ("mark/good", "three pages", mark, (init,)),
        (
            "mark/third",
            "the third page cannot be had: the others are reclaimed",
            mark,
            (init, _private(_FREE + 2, immutable=1)),
        ),
        (
            "mark/third-leaks",
            "the same, and the firmware is not ready: they leak",
            mark,
            (_private(_FREE + 2, immutable=1),),
        ),
        ("mark/no-page", "no page for the split", mark, (init, no_page)),
        ("reclaim/good", "three pages", reclaim, (init, mark)),
        ("reclaim/not-ready", "the firmware is not ready: all leak", reclaim, (mark,)),
        (
            "reclaim/guest",
            "a guest's page among them",
            reclaim,
            (init, _op("rmp_mark_pages_firmware", pfn=_FREE, pages=1), _private(_FREE + 1)),
        ),
        ("reclaim/free", "pages that are free", reclaim, (init,)),
        ("reclaim/fails", "giving back fails: leaked", reclaim, (init, mark, _op("inject", code=1))),
        ("leak/two", "two pages", _op("snp_leak_pages", pfn=_FREE, pages=2), (init, mark)),
        ("leak/none", "no pages", _op("snp_leak_pages", pfn=_FREE, pages=0), ()),
    ]
    for what, about, op, setup in rows:
        yield case(f"firmware-pages/{what}", "firmware pages", about, op, *setup)

    for name in ("host_read", "host_write", "kvm_read_guest", "kvm_write_guest"):
        for what, pfn, setup in (
            ("free", _FREE, ()),
            ("own", _FREE, (_private(_FREE),)),
            ("beside", _FREE + 1, (_private(_FREE),)),
            ("beside-unsplit", _FREE + 1, (_op("RMPUPDATE", pa=_FREE << 12, gpa=0, assigned=1, size=0, asid=5),)),
            ("inside-2M", _FREE, (_private(_LEAF, 2),)),
            ("absent", _FREE, (_op("set_memory_np", pfn=_FREE, pages=1),)),
            ("read-only", _FREE, (_op("set_memory_ro", pfn=_FREE, pages=1),)),
            ("nothing", 0x40000, ()),
        ):
            yield case(f"{name}/{what}", "accesses", what, _op(name, pfn=pfn), *setup)
    for what, op, setup in (
        ("inject/first", _op("inject", code=4, count=3), ()),
        ("inject/second", _op("inject", code=3), (_op("inject", code=4, count=3),)),
        ("fail_alloc/first", _op("fail_alloc", skip=2, count=3), ()),
        ("fail_alloc/again", _op("fail_alloc", count=1), (_op("fail_alloc", skip=2, count=3),)),
        ("cpa_address/first", _op("cpa_address", pfn=_FREE), ()),
        ("cpa_address/second", _op("cpa_address", pfn=_TEXT, high=1), _listed(_FREE)),
        (
            "RMPUPDATE/injected",
            _op("RMPUPDATE", pa=_FREE << 12, gpa=0, assigned=1, size=0, asid=5),
            (_op("inject", code=3),),
        ),
        (
            "RMPUPDATE/injected-0",
            _op("RMPUPDATE", pa=_FREE << 12, gpa=0, assigned=1, size=0, asid=5),
            (_op("inject", code=0),),
        ),
        ("PSMASH/injected", _op("PSMASH", pa=_LEAF << 12), (_op("inject", code=3, count=2),)),
    ):
        yield case(what, "controls", "a control, or what it makes of an instruction", op, *setup)


# --- firmware ------------------------------------------------------------------------------------------------------

_GCTX, _OTHER, _MD, _DATA = 0x2800, 0x2801, 0x2802, 0x2803
"""Frames for two contexts, metadata, and what is swapped out."""
_INIT = _op("SNP_INIT")
_FIRMWARE = _op("rmp_mark_pages_firmware", pfn=_GCTX, pages=4)
_CREATE = _op("SNP_GCTX_CREATE", gctx=_GCTX << 12)
_ACTIVATE = _op("SNP_ACTIVATE", gctx=_GCTX << 12, asid=5)
_GUEST = (_INIT, _FIRMWARE, _CREATE, _ACTIVATE)


def _launch(pfn: int, size: int = 0, **fields: int) -> Op:
    return _op("SNP_LAUNCH_UPDATE", **({"gctx": _GCTX << 12, "pa": pfn << 12, "size": size, "type": 1} | fields))


def _pages(pfn: int, **fields: int) -> tuple[Op, ...]:
    return (*_GUEST, _private(pfn, immutable=1, **fields))


def firmware() -> Iterator[Draft]:
    """rmp §4.2, §4.1, §3.7, §1.6."""

    def cases(
        command: str, rows: Iterable[tuple[str, str, Op, Sequence[Op]]], rule: str = "rmp §4.2"
    ) -> Iterator[Draft]:
        for name, about, op, setup in rows:
            for machine in ("pc-6.12",) if name not in ("good", "2M") else ("pc-6.12", "turin-6.18"):
                yield Draft(f"{command}/{name}-{machine}", rule, about, op, {}, machine, tuple(setup))

    gctx, other, data, page = _GCTX << 12, _OTHER << 12, _DATA << 12, _FREE << 12
    bare = (
        _CREATE,
        _ACTIVATE,
        _op("SNP_DECOMMISSION", gctx=gctx),
        _launch(_FREE),
        _op("SNP_PAGE_RECLAIM", pa=page),
        _op("SNP_PAGE_SET_STATE", pa=_LEAF << 12, pages=512),
        _op("SNP_PAGE_MOVE", gctx=gctx, src=page, dst=data, size=0),
        _op("SNP_PAGE_UNSMASH", pa=_LEAF << 12),
        _op("SNP_MD_INIT", gctx=gctx, pa=_MD << 12),
        _op("SNP_PAGE_SWAP_OUT", gctx=gctx, src=page, dst=data, mdata=_MD << 12, size=0),
        _op("SNP_PAGE_SWAP_IN", gctx=gctx, src=data, dst=page, mdata=_MD << 12, size=0),
        _op("SNP_SHUTDOWN"),
    )
    for op in bare:
        name = str(op).partition(" ")[0]
        yield from cases(name, [("not-ready", "the firmware is not ready", op, ())])
        yield Draft(f"{name}/no-rmp", "rmp §4.2", "there is no RMP", op, {}, "no-rmp-6.12")
        yield from cases(name, [("ready", "the pages are not what it takes", op, (_INIT,))])

    assigned = (_private(_FREE), _private(0x3000, 2))
    yield from cases(
        "SNP_INIT",
        [
            ("good", "an empty table", _INIT, ()),
            ("again", "ready already", _INIT, (_INIT,)),
            ("pages", "pages that are assigned", _INIT, assigned),
            ("iommu", "the IOMMU's buffers", _op("SNP_INIT", pfn=_LEAF, pages=4), ()),
            ("iommu-own", "buffers on the table's own pages", _op("SNP_INIT", pfn=0x4000, pages=1), ()),
            ("iommu-uncovered", "buffers that are not covered", _op("SNP_INIT", pfn=0x47FF, pages=2), ()),
            ("iommu-many", "too many", _op("SNP_INIT", pfn=0, pages=(1 << 20) + 1), ()),
        ],
    )
    yield from cases(
        "SNP_SHUTDOWN",
        [
            ("good", "a guest is there", _op("SNP_SHUTDOWN"), _GUEST),
            ("iommu", "buffers are given back", _op("SNP_SHUTDOWN", iommu=1), (_op("SNP_INIT", pfn=_LEAF, pages=4),)),
            ("iommu-0", "buffers are kept", _op("SNP_SHUTDOWN"), (_op("SNP_INIT", pfn=_LEAF, pages=4),)),
        ],
    )
    create = _op("SNP_GCTX_CREATE", gctx=other)
    yield from cases(
        "SNP_GCTX_CREATE",
        [
            ("good", "a firmware page", _CREATE, (_INIT, _FIRMWARE)),
            ("second", "another one", create, _GUEST),
            ("again", "a page that is a context", _CREATE, _GUEST),
            ("guest", "a guest's page", _op("SNP_GCTX_CREATE", gctx=page), (_INIT, _private(_FREE))),
            (
                "2M",
                "a 2M page",
                _op("SNP_GCTX_CREATE", gctx=_LEAF << 12),
                (_INIT, _op("rmp_make_firmware", pfn=_LEAF, level=2)),
            ),
            ("unaligned", "bits 11:0", _op("SNP_GCTX_CREATE", gctx=gctx + 8), (_INIT, _FIRMWARE)),
            ("own", "one of the table's own pages", _op("SNP_GCTX_CREATE", gctx=0x4000000), (_INIT,)),
            ("uncovered", "not covered", _op("SNP_GCTX_CREATE", gctx=0x4800 << 12), (_INIT,)),
        ],
    )
    yield from cases(
        "SNP_ACTIVATE",
        [
            ("good", "a fresh context", _ACTIVATE, _GUEST[:3]),
            ("again", "activated already", _op("SNP_ACTIVATE", gctx=gctx, asid=6), _GUEST),
            ("asid-0", "ASID 0", _op("SNP_ACTIVATE", gctx=gctx, asid=0), _GUEST[:3]),
            ("asid-400", "an ASID above the greatest", _op("SNP_ACTIVATE", gctx=gctx, asid=0x400), _GUEST[:3]),
            ("owned", "another context has it", _op("SNP_ACTIVATE", gctx=other, asid=5), (*_GUEST, create)),
            ("counter", "the ASID has pages", _ACTIVATE, (*_GUEST[:3], _private(_FREE))),
            ("no-context", "a firmware page that is no context", _op("SNP_ACTIVATE", gctx=other, asid=6), _GUEST),
        ],
    )
    yield from cases(
        "SNP_DECOMMISSION",
        [
            ("good", "an active guest", _op("SNP_DECOMMISSION", gctx=gctx), _GUEST),
            ("inactive", "one that is not", _op("SNP_DECOMMISSION", gctx=gctx), _GUEST[:3]),
            ("no-context", "no context", _op("SNP_DECOMMISSION", gctx=other), _GUEST),
        ],
    )
    large = (*_GUEST, _private(_LEAF, 2, immutable=1))
    yield from cases(
        "SNP_LAUNCH_UPDATE",
        [
            ("good", "a Pre-Guest page", _launch(_FREE, vmpl1=1, vmpl2=3, vmpl3=0x1F), _pages(_FREE)),
            ("2M", "a 2M page", _launch(_LEAF, 1), large),
            *((f"type-{kind}", f"type {kind}", _launch(_FREE, type=kind), _pages(_FREE)) for kind in (0, 2, 3, 6, 7)),
            *((f"2M-type-{kind}", f"2M of type {kind}", _launch(_LEAF, 1, type=kind), large) for kind in (2, 4, 5, 6)),
            ("permissions", "a reserved bit in a permission byte", _launch(_FREE, vmpl2=0x20), _pages(_FREE)),
            ("size-4K", "4K asked of a 2M page", _launch(_LEAF), large),
            ("size-2M", "2M asked of a 4K page", _launch(_LEAF, 1), _pages(_LEAF)),
            ("unaligned-2M", "2M and not aligned", _launch(_FREE, 1), large),
            ("inactive", "not activated", _launch(_FREE), (*_GUEST[:3], _private(_FREE, immutable=1))),
            ("state", "a page that is not Pre-Guest", _launch(_FREE), (*_GUEST, _private(_FREE))),
            ("owner", "another guest's page", _launch(_FREE), _pages(_FREE, asid=6)),
        ],
    )
    frozen = (*_pages(_FREE), _launch(_FREE), _private(_FREE, immutable=1))
    yield from cases(
        "SNP_PAGE_RECLAIM",
        [
            ("good", "a firmware page", _op("SNP_PAGE_RECLAIM", pa=data), (_INIT, _FIRMWARE)),
            ("pre-guest", "a Pre-Guest page", _op("SNP_PAGE_RECLAIM", pa=page), _pages(_FREE)),
            ("pre-swap", "a Pre-Swap page", _op("SNP_PAGE_RECLAIM", pa=page), frozen),
            ("2M", "a 2M page", _op("SNP_PAGE_RECLAIM", pa=_LEAF << 12 | 1), large),
            ("size", "4K asked of a 2M page", _op("SNP_PAGE_RECLAIM", pa=_LEAF << 12), large),
            (
                "mutable",
                "a page that is not immutable: nothing to do",
                _op("SNP_PAGE_RECLAIM", pa=page),
                (*_GUEST, _private(_FREE)),
            ),
            ("context", "a context", _op("SNP_PAGE_RECLAIM", pa=gctx), _GUEST),
            ("bits", "bits 11:1", _op("SNP_PAGE_RECLAIM", pa=data | 2), (_INIT, _FIRMWARE)),
            ("own", "one of the table's own pages", _op("SNP_PAGE_RECLAIM", pa=0x4000000), (_INIT,)),
        ],
    )
    fixed = _op("SNP_PAGE_SET_STATE", pa=_LEAF << 12, pages=512)
    yield from cases(
        "SNP_PAGE_SET_STATE",
        [
            ("good", "512 firmware pages", fixed, (_INIT, _op("rmp_mark_pages_firmware", pfn=_LEAF, pages=512))),
            ("2M", "a 2M firmware page", fixed, (_INIT, _op("rmp_make_firmware", pfn=_LEAF, level=2))),
            ("one-less", "one of them is free", fixed, (_INIT, _op("rmp_mark_pages_firmware", pfn=_LEAF, pages=511))),
            ("pages-0", "no pages", _op("SNP_PAGE_SET_STATE", pa=_LEAF << 12, pages=0), (_INIT,)),
            ("pages-511", "no multiple of 512", _op("SNP_PAGE_SET_STATE", pa=_LEAF << 12, pages=511), (_INIT,)),
            ("unaligned", "not aligned", _op("SNP_PAGE_SET_STATE", pa=page, pages=512), (_INIT,)),
        ],
    )
    two = (*_pages(_FREE), _private(_FREE + 1, immutable=1), _launch(_FREE))
    move = _op("SNP_PAGE_MOVE", gctx=gctx, src=page, dst=page + 0x1000, size=0)
    metadata = _op("SNP_MD_INIT", gctx=gctx, pa=_MD << 12)
    freeze = _private(_FREE, immutable=1)
    yield from cases(
        "SNP_PAGE_MOVE",
        [
            ("good", "Pre-Swap to Pre-Guest", move, (*two, freeze)),
            ("pre-guest", "Pre-Guest to Pre-Guest", move, two[:-1]),
            ("not-frozen", "a page that the guest may use", move, two),
            ("same", "to itself", _op("SNP_PAGE_MOVE", gctx=gctx, src=page, dst=page, size=0), two),
            (
                "metadata",
                "a metadata page",
                _op("SNP_PAGE_MOVE", gctx=gctx, src=_MD << 12, dst=data, size=0),
                (*_GUEST, metadata),
            ),
            ("owner", "to another guest's page", move, (*_pages(_FREE), _private(_FREE + 1, asid=6, immutable=1))),
            (
                "size",
                "2M asked of 4K pages",
                _op("SNP_PAGE_MOVE", gctx=gctx, src=_LEAF << 12, dst=0x3000 << 12, size=1),
                two,
            ),
        ],
    )
    whole = (*_GUEST, *(_private(_LEAF + i, immutable=1) for i in range(512)))
    join = _op("SNP_PAGE_UNSMASH", pa=_LEAF << 12)
    yield from cases(
        "SNP_PAGE_UNSMASH",
        [
            ("good", "512 Pre-Guest pages", join, whole),
            ("one-less", "one is missing", join, whole[:-1]),
            ("one-owner", "one is another guest's", join, (*whole[:-1], _private(_LEAF + 511, immutable=1, asid=6))),
            ("one-gpa", "one has another gpa", join, (*whole[:-1], _private(_LEAF + 511, immutable=1, gpa=0))),
            ("one-mutable", "one is not immutable", join, (*whole[:-1], _private(_LEAF + 511))),
            ("large", "a 2M page", join, large),
            ("unaligned", "not aligned", _op("SNP_PAGE_UNSMASH", pa=page), whole),
        ],
    )
    yield from cases(
        "SNP_MD_INIT",
        [
            ("good", "a firmware page", metadata, _GUEST),
            ("again", "a metadata page", metadata, (*_GUEST, metadata)),
            ("guest", "a guest's page", _op("SNP_MD_INIT", gctx=gctx, pa=page), _pages(_FREE)),
            ("no-context", "no context", _op("SNP_MD_INIT", gctx=other, pa=_MD << 12), _GUEST),
        ],
    )
    out = _op("SNP_PAGE_SWAP_OUT", gctx=gctx, src=page, dst=data, mdata=_MD << 12, size=0)
    swapped = (*_GUEST, metadata, _private(_FREE, immutable=1), _launch(_FREE), freeze)
    yield from cases(
        "SNP_PAGE_SWAP_OUT",
        [
            ("good", "a Pre-Swap page", out, swapped),
            (
                "uncovered",
                "to memory that is not covered",
                _op("SNP_PAGE_SWAP_OUT", gctx=gctx, src=page, dst=0x4800 << 12, mdata=_MD << 12, size=0),
                swapped,
            ),
            (
                "taken",
                "a record is there",
                _op("SNP_PAGE_SWAP_OUT", gctx=gctx, src=page, dst=data, mdata=_MD << 12, size=0),
                (*swapped, out),
            ),
            (
                "second",
                "the second record",
                _op("SNP_PAGE_SWAP_OUT", gctx=gctx, src=page, dst=data, mdata=_MD << 12 | 0x40, size=0),
                (*swapped, out),
            ),
            (
                "mdata",
                "a record that is not aligned",
                _op("SNP_PAGE_SWAP_OUT", gctx=gctx, src=page, dst=data, mdata=_MD << 12 | 8, size=0),
                swapped,
            ),
            ("no-metadata", "no metadata page", out, (*_GUEST, _private(_FREE, immutable=1))),
            ("mutable", "a page that the guest may use", out, swapped[:-1]),
        ],
    )
    back = _op("SNP_PAGE_SWAP_IN", gctx=gctx, src=data, dst=page, mdata=_MD << 12, size=0)
    reused = (_op("SNP_PAGE_RECLAIM", pa=page), _op("rmp_make_shared", pfn=_FREE, level=1), freeze)
    yield from cases(
        "SNP_PAGE_SWAP_IN",
        [
            ("good", "into a fresh page", back, (*swapped, out, *reused)),
            ("no-record", "no record", back, swapped),
            (
                "size",
                "2M asked of a 4K record",
                _op("SNP_PAGE_SWAP_IN", gctx=gctx, src=_LEAF << 12, dst=_LEAF << 12, mdata=_MD << 12, size=1),
                (*swapped, out),
            ),
            (
                "state",
                "into a page that is free",
                _op("SNP_PAGE_SWAP_IN", gctx=gctx, src=data, dst=0x3005 << 12, mdata=_MD << 12, size=0),
                (*swapped, out),
            ),
        ],
    )
    good = _op("VMRUN", vmcb=0x3005000, vmsa=page, gpa=0x40005000, avic=0x3006000, asid=5)
    saved = (*_pages(_FREE), _launch(_FREE, type=2))
    yield from cases(
        "VMRUN",
        [
            ("good", "an SNP guest", good, saved),
            ("no-vmsa", "a VMSA that is none", good, (*_pages(_FREE), _launch(_FREE))),
            ("gpa", "another gpa", good._replace(gpa=0), saved),
            ("vmcb", "the VMCB is a guest's page", good, (*saved, _private(0x3005))),
            ("avic", "the AVIC page is a guest's", good, (*saved, _private(0x3006))),
            ("plain", "a guest without SNP", _op("VMRUN", vmcb=0x3005000, vmsa=0x3007000, asid=9, plain=1), ()),
            (
                "plain-vmsa",
                "whose VMSA is a guest's page",
                _op("VMRUN", vmcb=0x3005000, vmsa=0x3007000, asid=9, plain=1),
                (_private(0x3007),),
            ),
        ],
        "rmp §3.7",
    )
    yield from cases(
        "VMEXIT", [("good", "the pages are free again", _op("VMEXIT", vmcb=0x3005000), (*saved, good))], "rmp §3.7"
    )
    update = _op("RMPUPDATE", pa=0x3005000, gpa=0, assigned=1, size=0, asid=5)
    yield from cases("RMPUPDATE", [("in-use", "the VMCB of a VMRUN", update, (*saved, good))], "rmp §3.7")
    psmash = _op("PSMASH", pa=_LEAF << 12)
    yield from cases("PSMASH", [("counter", "the ASID's counter", psmash, (_private(_LEAF, 2),))], "rmp §1.6")
    write = _op("access", who=Who.HOST, access=AccessKind.WRITE, pa=0x4000000, level=2)
    yield from cases("access", [("own-pages", "the table's own pages", write, (_INIT,))], "rmp §4.2")
    for pfn in (0, 0x4000, 0x4900, _LEAF, _GCTX, _MD, _FREE):
        op = _op("page_state", pfn=pfn)
        yield from cases(
            "page_state", [(f"{pfn:x}", "after the start of a guest", op, (*_pages(_FREE), metadata))], "rmp §4.1"
        )
