"""A mixed trace: what a busy host does to RMP and direct map, in random order, seeded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rmpcore.ops import OP_DTYPE, OpCode

FIRST_FRAME = 0x100000  # 4 GiB, where the large piece of memory starts on server machines
REGIONS = 1024  # 2 GiB

# op, share, level, whether it works on whole 2 MiB regions
MIX = (
    (OpCode.rmp_make_private, 30, 1, False),
    (OpCode.rmp_make_shared, 30, 1, False),
    (OpCode.rmp_make_private, 2, 2, True),
    (OpCode.rmp_make_shared, 2, 2, True),
    (OpCode.psmash, 2, 0, True),
    (OpCode.snp_lookup_rmpentry, 14, 0, False),
    (OpCode.lookup, 10, 0, False),
    (OpCode.set_direct_map_invalid_noflush, 4, 0, False),
    (OpCode.set_direct_map_default_noflush, 4, 0, False),
    (OpCode.set_memory_4k, 2, 0, False),
)


def mixed_trace(count: int, seed: int = 1) -> npt.NDArray[np.void]:
    """``count`` ops over 2 GiB of memory from 4 GiB on."""
    rng = np.random.default_rng(seed)
    shares = np.array([row[1] for row in MIX], float)
    rows = rng.choice(len(MIX), count, p=shares / shares.sum())
    ops = np.zeros(count, OP_DTYPE)
    frames = FIRST_FRAME + rng.integers(0, REGIONS * 512, count)
    for index, (op, _, level, whole) in enumerate(MIX):
        mine = rows == index
        ops["op"][mine] = op
        ops["level"][mine] = level
        ops["addr"][mine] = frames[mine] // 512 * 512 if whole else frames[mine]
        if op == OpCode.rmp_make_private:
            ops["id"][mine] = rng.integers(1, 100, mine.sum())
            ops["gpa"][mine] = frames[mine] << 12
        elif op == OpCode.set_memory_4k:
            ops["count"][mine] = rng.integers(1, 1024, mine.sum())
    return ops
