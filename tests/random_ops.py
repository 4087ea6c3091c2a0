"""Random ops that reach deep states: few frames around the lines that matter, few values for everything else."""

from __future__ import annotations

import random

from rmpcore.maps import DIRECT_MAP_LIMIT, MachineMap
from rmpcore.ops import OPS, Op, OpCode, OpSpec, make_op

PAGES = (0, 1, 1, 1, 2, 7, 33, 34, 511, 512, 512, 513, 1024)
LEVELS = (1, 1, 1, 2, 2, 3, 0)
ASIDS = (0, 5, 5, 5, 6, 0x3FF, 0x400, 0xFFFF_FFFF)
GPAS = (0, 0x1000, 0x7000, 0x4000_0000, 0x4000_0123, 0xFFFF_FFFF_F000, (1 << 64) - 1)
RESERVED = (0, 0, 0, 0, 1, 2, 1 << 8, 1 << 9, 1 << 16, 1 << 23, 1 << 31, 1 << 42, (1 << 64) - 1)
COUNTS = (1, 1, 2, 5)
CODES = (0, 0, 1, 3, 4, 4, 4, 255)
LARGE_VALID = 1 << 18
"""Pages of a whole 1 GiB leaf, worth asking for in set_direct_map_valid_noflush alone."""


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
        first = (map_.image.text - 0xFFFF_FFFF_8000_0000 + map_.image.phys_base) >> 12
        rodata = (map_.image.start_rodata - 0xFFFF_FFFF_8000_0000 + map_.image.phys_base) >> 12
        frames |= {first - 1, first, first + 0x200, rodata - 1, rodata, rodata + 1, rodata & ~0x1FF, rodata + 0x30}
    if map_.rmp is not None:
        covered = (map_.rmp[1] + 1 - map_.rmp[0] - 0x4000) // 16
        frames |= {covered - 1, covered, covered & ~0x1FF, (covered & ~0x1FF) - 0x200}
    limit = DIRECT_MAP_LIMIT[map_.levels] >> 12
    frames |= {limit - 1, limit, 1 << 40, 1 << 52, (1 << 64) - 1}
    # the first region comes up more often than the rest: what lies on top of each other is what is interesting
    return [*sorted(frames), 0x200, 0x200, 0x201, 0x233, 0x400, 0x600]


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
        pfn, pages = pfn & ~(LARGE_VALID - 1), LARGE_VALID
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
    }
    if rng.random() < 0.4:
        # a plain request to a guest or back, so that updates often succeed
        values |= {"asid": 5 * values["assigned"], "immutable": values["immutable"] * values["assigned"]}
    return {arg.name: values[arg.name] for arg in spec.args}


_WEIGHTS = [
    {OpCode.inject: 0.4, OpCode.fail_alloc: 0.3, OpCode.snp_leak_pages: 0.2, OpCode.lookup: 0.5}.get(spec.code, 1.0)
    for spec in OPS
]


def random_op(rng: random.Random, frames: list[int]) -> Op:
    """One op; now and then a record that no machine takes."""
    spec = rng.choices(OPS, _WEIGHTS)[0]
    op = make_op(spec.name, **arguments(rng, spec, frames))
    if rng.random() < 0.02:
        field = rng.choice(("op", "level", "flags", "id", "gpa"))
        op = op._replace(**{field: rng.choice((1, 2, 20, 0x80, 0xFF))})
    if op.op == OpCode.set_memory_4k and op.count > 2048:
        op = op._replace(count=2048)
    return op


def random_trace(seed: int, length: int, map_: MachineMap) -> list[Op]:
    """A trace that depends on nothing but its arguments."""
    rng = random.Random(seed)
    frames = frames_of(map_)
    return [random_op(rng, frames) for _ in range(length)]
