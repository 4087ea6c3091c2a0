"""Which rule a difference from a recorded kernel is about: a few words and the section of the documents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rmpcore.recorded_calls import SNP_CALLS

COUNTS = "the kernel's counts of leaves (direct-map §2.1.5, §4.4d, §8.4)"
RANGES = "the list of mapped frames (direct-map §2.1)"
READONLY = "whether the kernel is read-only already (direct-map §5)"
BOOT_LEAVES = "which leaves there are at boot (direct-map §2)"
LEAVES = "what is split or collapsed (direct-map §4.3, §4.4, §8)"
FRAMES = "frames of leaves (direct-map §1, §4.4)"
TABLES = "entries that point to tables (direct-map §1, §4.4e)"
FLAGS = {
    0: "P (direct-map §7)",
    1: "RW (direct-map §5, §7)",
    2: "US (direct-map §1)",
    3: "PWT (cache modes, direct-map §1, §7)",
    4: "PCD (cache modes, direct-map §1, §7)",
    5: "A (direct-map §1)",
    6: "D (direct-map §7: goes with RW from 6.6 on)",
    7: "PSE or PAT (direct-map §1: small and large form)",
    8: "G (direct-map §1: dropped with P)",
    9: "SOFTW1 (direct-map §1)",
    10: "SOFTW2 (direct-map §1)",
    11: "KERNEL_4K (direct-map §7: set_memory_4k from 6.15 on)",
    12: "PAT of a large page, or the frame (direct-map §1)",
    63: "NX (direct-map §5, §6, §7)",
}
"""What is about each flag of a leaf."""
CODES = {
    "RMPUPDATE": "the code of RMPUPDATE (rmp §2.2)",
    "PSMASH": "the code of PSMASH (rmp §2.3)",
    "RMPREAD": "the code of RMPREAD (rmp §2.4)",
}


def of_return(name: str) -> str:
    """What a call returns."""
    return f"what {name} returns ({'host §1' if name in SNP_CALLS else 'direct-map §4, §7'})"


def of_instructions(name: str) -> str:
    """Which instructions a call executes, and on what."""
    return f"what {name} executes (host §1)"


def of_leaves(recorded: npt.NDArray[np.void], ours: npt.NDArray[np.void], boot: bool) -> Iterator[str]:
    """One for each leaf that differs, in the order of :func:`rmpcore.state.diff_entries`."""
    left, right = (
        {(window, offset, -level): raw for window, level, offset, raw in entries.tolist()}
        for entries in (recorded, ours)
    )
    for key in sorted(left.keys() | right.keys()):
        if key not in left or key not in right:
            yield BOOT_LEAVES if boot else LEAVES
        elif changed := left[key] ^ right[key]:
            yield f"flag {FLAGS[bit]}" if (bit := _flag(changed, -key[2])) is not None else FRAMES


def _flag(changed: int, level: int) -> int | None:
    """The lowest flag that differs in a leaf.  Bit 12 is one in large leaves only."""
    flags = [bit for bit in FLAGS if changed >> bit & 1]
    return next((bit for bit in flags if bit != 12 or level > 1), None)
