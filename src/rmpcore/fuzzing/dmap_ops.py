"""Random ops that reach deep states: few frames around the lines that matter, few values for everything else."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rmpcore.maps import DIRECT_MAP_LIMIT, MachineMap
from rmpcore.ops import BY_NAME, OPS, Flavour, Op, OpCode, OpSpec, make_op

PAGES = (0, 1, 1, 1, 2, 7, 33, 34, 511, 512, 512, 513, 1024)
LEVELS = (1, 1, 1, 2, 2, 3, 0)
ASIDS = (0, 5, 5, 5, 6, 0x3FF, 0x400, 0xFFFF_FFFF)
GPAS = (0, 0x1000, 0x7000, 0x4000_0000, 0x4000_0123, 0xFFFF_FFFF_F000, (1 << 64) - 1)
RESERVED = (0, 0, 0, 0, 1, 2, 1 << 8, 1 << 9, 1 << 16, 1 << 23, 1 << 31, 1 << 42, (1 << 64) - 1)
COUNTS = (1, 1, 2, 5)
CODES = (0, 0, 1, 3, 4, 4, 4, 255)
GIB_PAGES = 1 << 18
"""Pages of a whole 1 GiB leaf: asked for exactly, it can be kept."""
HIGH_MAPPING = 0xFFFF_FFFF_8000_0000
ACCESSED = 1 << 5
MASKS = (
    *(1 << bit for bit in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 57, 58, 59, 62, 63)),
    0x98,
    0x103,
    0x043,
    1 << 63 | 1 << 1,
    1 << 63 | 1 << 9,
    1 << 63 | 0xFDF,
    0,
    1 << 12,
    1 << 51,
    1 << 47,
)
"""Masks for change_page_attr: single flags, some together, two of the frame (the C-bit on some machines).  None has the
accessed bit: an entry that lost its last flag would forget which frame it maps, in the kernel as in the model."""
PLAIN = 1 << 63 | 0x023
ALL_FLAGS = 0xFFF0_0000_0000_0FFF
CPA = tuple(spec for spec in OPS if any(arg.name == "flavour" for arg in spec.args))
DIRECT_MAP = (
    *CPA,
    *(
        BY_NAME[name]
        for name in (
            "set_direct_map_invalid_noflush",
            "set_direct_map_default_noflush",
            "set_direct_map_valid_noflush",
        )
    ),
)


def frames_of(map_: MachineMap) -> list[int]:
    """Frames around 2 MiB and 1 GiB lines, at the ends of memory and of the table, in holes, in the image, beyond
    all."""
    frames = {0, 1, 0x1FF, 0x200, 0x201, 0x233, 0x3FF, 0x400, 0x401, 0x5FF, 0x600, map_.max_pfn - 1, map_.max_pfn}
    for base, size in map_.memory:
        end = base + size >> 12
        frames |= {base >> 12, end - 1, end, end + 0x200, end & ~0x1FF, (end & ~0x1FF) + 1}
        if size > 1 << 30:
            frames |= {0x3FFFF, 0x40000, 0x40001, 0x40200, 0x7FFFF}
    if map_.image is not None:
        frames |= set(image_frames(map_))
    if map_.rmp is not None:
        covered = (map_.rmp[1] + 1 - map_.rmp[0] - 0x4000) // 16
        frames |= {covered - 1, covered, covered & ~0x1FF, (covered & ~0x1FF) - 0x200}
    limit = DIRECT_MAP_LIMIT[map_.levels] >> 12
    frames |= {limit - 1, limit, 1 << 40, 1 << 52, (1 << 64) - 1}
    # the first region comes up more often than the rest: what lies on top of each other is what is interesting
    return [*sorted(frames), 0x200, 0x200, 0x201, 0x233, 0x400, 0x600]


def image_frames(map_: MachineMap) -> list[int]:
    """Frames at the edges of the kernel image's text, read-only data and end."""
    if map_.image is None:
        return []
    image = map_.image
    first, text_end, rodata, brk_end = (
        at - HIGH_MAPPING + image.phys_base >> 12 for at in (image.text, image.etext, image.start_rodata, image.brk_end)
    )
    frames = {first - 1, first, first + 0x200, text_end - 1, text_end, brk_end - 1, brk_end, (brk_end | 0x1FF) + 1}
    return sorted(frames | {rodata - 1, rodata, rodata + 1, rodata & ~0x1FF, rodata + 0x30})


def span(rng: random.Random, frames: Sequence[int], most: int = 1024) -> tuple[int, int]:
    """A range of pages: any, whole large pages, or one that crosses a 2 MiB or 1 GiB line."""
    pfn = rng.choice(frames)
    kind = rng.randrange(8)
    if kind == 0:
        return pfn & ~0x1FF, 0x200 * rng.choice((1, 1, 2))
    if kind == 1:
        before, after = rng.choice((1, 2, 7, 0x200)), rng.choice((1, 2, 7, 33, 0x200))
        return max((pfn & ~0x1FF) - before, 0), min(before + after, most)
    return pfn, min(rng.choice(PAGES), most)


def cpa_arguments(
    rng: random.Random, spec: OpSpec, frames: Sequence[int], most: int = 1024, high: float = 0.25
) -> dict[str, int]:
    """Values for a range."""
    pfn, pages = span(rng, frames, most)
    values = {"pfn": pfn, "pages": pages, "high": int(rng.random() < high), "flavour": Flavour.RANGE}
    values |= {"mask": rng.choice(MASKS), "valid": rng.randrange(2)}
    return {arg.name: values[arg.name] for arg in spec.args}


def array_ops(
    rng: random.Random, spec: OpSpec, frames: Sequence[int], most: int = 40, high_share: float = 0.25
) -> list[Op]:
    """Some addresses listed, and a call on them; now and then on more than there are, or on high ones as pages."""
    count = min(rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 5)) if rng.random() < 0.95 else rng.choice((33, 34, 40)), most)
    high = rng.random() < high_share
    base = rng.choice(frames)
    ops = []
    for number in range(count):
        pfn = base + number if rng.random() < 0.5 else rng.choice(frames)
        ops.append(make_op("cpa_address", pfn=pfn & (1 << 64) - 1, high=int(high and rng.random() < 0.5)))
    args = cpa_arguments(rng, spec, frames) | {"pfn": 0, "high": 0}
    pages = count if rng.random() < 0.9 else max(count + rng.choice((-1, 1)), 0)
    args |= {"flavour": Flavour.ARRAY if high else rng.choice((Flavour.ARRAY, Flavour.PAGES)), "pages": pages}
    return [*ops, make_op(spec.name, **args)]


def collapsing_ops(rng: random.Random, frames: Sequence[int], high: float) -> list[Op]:
    """A 2 MiB or 1 GiB page made equal all over, then rox: it collapses unless it has a hole."""
    pages = GIB_PAGES if 0x40000 in frames and rng.random() < 0.1 else 0x200
    where = {
        "pfn": rng.choice(frames) & ~(pages - 1),
        "pages": pages,
        "high": int(pages == 0x200 and rng.random() < high),
    }
    return [
        make_op("change_page_attr_set", mask=PLAIN, **where),
        make_op("change_page_attr_clear", mask=ALL_FLAGS & ~PLAIN, **where),
        make_op("set_memory_rox", **where),
    ]


def direct_map_ops(
    rng: random.Random,
    frames: Sequence[int],
    length: int,
    most: int = 1024,
    high: float = 0.25,
    collapses: float = 0.03,
) -> list[Op]:
    """Changes of the direct map and lookups, some of them with failing allocations.

    most: pages of one call; high: share of calls on the high mapping; collapses: how often pages are made equal."""
    ops: list[Op] = []
    while len(ops) < length:
        spec = rng.choice(DIRECT_MAP)
        chance = rng.random()
        if chance < 0.05:
            ops.append(make_op("fail_alloc", skip=rng.choice((0, 0, 1, 2)), count=rng.choice((0, 1, 1, 2))))
        if chance > 0.9:
            ops.append(make_op("lookup", pfn=rng.choice(frames)))
        elif chance > 0.75 and spec in CPA:
            ops += array_ops(rng, spec, frames, min(40, most), high)
        else:
            ops.append(make_op(spec.name, **cpa_arguments(rng, spec, frames, most, high)))
            if rng.random() < collapses:
                ops += collapsing_ops(rng, frames, high)
    return ops[:length]


def arguments(rng: random.Random, spec: OpSpec, frames: list[int]) -> dict[str, int]:
    """Values for an op's arguments."""
    pfn = rng.choice(frames)
    if rng.random() < 0.3:
        pfn &= ~0x1FF
    pa = pfn << 12 & (1 << 64) - 1
    if rng.random() < 0.1:
        pa |= rng.choice((1, 0x800, 0xFFF, 1 << 51))
    pages = rng.choice(PAGES)
    if spec.code == OpCode.set_direct_map_valid_noflush and rng.random() < 0.1:
        pfn, pages = pfn & ~(GIB_PAGES - 1), GIB_PAGES
    values = {
        "pfn": pfn,
        "pa": pa,
        "gpa": rng.choice(GPAS) + (rng.randrange(512) << 12 if rng.random() < 0.3 else 0) & (1 << 64) - 1,
        "level": rng.choice(LEVELS),
        "pages": pages,
        "asid": rng.choice(ASIDS),
        "assigned": rng.randrange(2),
        "size": int(rng.random() < 0.4),
        "immutable": int(rng.random() < 0.2),
        "valid": rng.randrange(2),
        "reserved": rng.choice(RESERVED) if rng.random() < 0.2 else 0,
        "guest": int(rng.random() < 0.03),
        "user": int(rng.random() < 0.03),
        "code": rng.choice(CODES),
        "count": rng.choice(COUNTS),
        "skip": rng.choice((0, 0, 1, 2)),
        "high": int(rng.random() < 0.2),
    }
    if rng.random() < 0.4:
        # a plain request to a guest or back, so that updates often succeed
        values |= {"asid": 5 * values["assigned"], "immutable": values["immutable"] * values["assigned"]}
    return {arg.name: values[arg.name] for arg in spec.args}


KNOWN = tuple(spec for spec in OPS if spec.code <= OpCode.cpa_address)
"""The rest is :mod:`rmpcore.fuzzing.rmp_ops`'s."""
_WEIGHTS = [
    {OpCode.inject: 0.4, OpCode.fail_alloc: 0.3, OpCode.snp_leak_pages: 0.2, OpCode.lookup: 0.5}.get(
        spec.code, 0.5 if spec in CPA else 1.0
    )
    for spec in KNOWN
]


def random_ops(rng: random.Random, frames: list[int]) -> list[Op]:
    """An op, with those that it needs before it; now and then a record that no machine takes."""
    spec = rng.choices(KNOWN, _WEIGHTS)[0]
    if spec in CPA:
        if rng.random() < 0.2:
            return array_ops(rng, spec, frames)
        op = make_op(spec.name, **cpa_arguments(rng, spec, frames))
        if rng.random() < 0.05 and spec.code != OpCode.set_memory_4k:
            op = op._replace(addr=op.addr & ~(GIB_PAGES - 1), count=GIB_PAGES)
    else:
        op = make_op(spec.name, **arguments(rng, spec, frames))
    if rng.random() < 0.02:
        field = rng.choice(("op", "level", "flags", "id", "gpa"))
        op = op._replace(**{field: rng.choice((1, 2, 20, 0x80, 0xFF))})
    return [tamed(op)]


def tamed(op: Op) -> Op:
    """An op without what would take too long, or cost an entry its last flag (see MASKS)."""
    if op.op == OpCode.set_memory_4k and op.count > 2048:
        op = op._replace(count=2048)
    if op.op == OpCode.change_page_attr_clear:
        op = op._replace(gpa=op.gpa & ~ACCESSED)
    return op


def random_trace(seed: int, length: int, map_: MachineMap) -> list[Op]:
    """A trace that depends on nothing but its arguments."""
    rng = random.Random(seed)
    frames = frames_of(map_)
    ops: list[Op] = []
    while len(ops) < length:
        ops += random_ops(rng, frames)
    return ops[:length]
