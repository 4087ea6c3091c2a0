"""Which lines of the C core a piece of Python runs: a build by clang that flags its basic blocks (needs objdump too).

The flags can be read and cleared from within the process, so each of a thousand tests costs next to nothing.  (Flags,
not counters: those have eight bits, and what PSMASH does 512 times would not have run.)
"""

from __future__ import annotations

import bisect
import ctypes
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mutation import ROOT, Workshop, call, sources

COMPILE = [
    "clang",
    "-std=c11",
    "-O0",
    "-w",
    "-g",
    "-fPIC",
    "-fsanitize-coverage=inline-bool-flag,pc-table,no-prune",
]
HOOKS = r"""
#include <stdint.h>
uint8_t *flags_start, *flags_stop;
const uintptr_t *blocks;
void __sanitizer_cov_bool_flag_init(uint8_t *start, uint8_t *stop)
{
    flags_start = start;
    flags_stop = stop;
}
void __sanitizer_cov_pcs_init(const uintptr_t *start, const uintptr_t *stop)
{
    (void)stop;
    blocks = start;
}
"""


class CoveredCore:
    """A healthy core that notes what runs."""

    def __init__(self, where: Path, jobs: int) -> None:
        workshop = Workshop(where, jobs, COMPILE)
        (where / "hooks.c").write_text(HOOKS)
        call(["gcc", "-O1", "-fPIC", "-c", "hooks.c", "-o", "hooks.o"], where)
        self.path = where / "core.so"
        objects = [str(path) for path in workshop.objects(where, "", b"").values()]
        call(["clang", "-shared", *objects, "hooks.o", "-o", str(self.path)], where)

    def open(self) -> None:
        """In the process that is going to be looked at, before the binding is loaded."""
        library = ctypes.CDLL(str(self.path), mode=ctypes.RTLD_GLOBAL)
        start = ctypes.c_void_p.in_dll(library, "flags_start").value
        stop = ctypes.c_void_p.in_dll(library, "flags_stop").value
        pcs = ctypes.c_void_p.in_dll(library, "blocks").value
        assert start and stop and pcs
        self._flags = np.ctypeslib.as_array((ctypes.c_uint8 * (stop - start)).from_address(start))
        pairs = np.ctypeslib.as_array((ctypes.c_uint64 * (2 * (stop - start))).from_address(pcs))
        maps = Path("/proc/self/maps").read_text().splitlines()
        base = min(int(line.split("-")[0], 16) for line in maps if line.endswith(str(self.path)))
        self._pcs = [int(pc) - base for pc in pairs[::2]]

    def take(self) -> npt.NDArray[np.bool_]:
        """The blocks that ran since the last call."""
        seen = self._flags > 0
        self._flags[:] = 0
        return seen

    def blocks_of_lines(self) -> dict[tuple[str, int], set[int]]:
        """For each file and line the blocks that have code of it.  (objdump gives a header by its last name alone.)"""
        decoded = subprocess.run(
            ["objdump", "--dwarf=decodedline", str(self.path)], capture_output=True, text=True, check=True
        ).stdout
        paths = {
            path.name: str(path.relative_to(ROOT))
            for part in ("csrc", "include")
            for path in (ROOT / part).rglob("*.[ch]")
        }
        order = sorted(range(len(self._pcs)), key=lambda block: self._pcs[block])
        starts = [self._pcs[block] for block in order]
        found: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        for row in decoded.splitlines():
            fields = row.split()
            if len(fields) >= 3 and fields[1].isdigit() and fields[2].startswith("0x"):
                at = bisect.bisect_right(starts, int(fields[2], 16)) - 1
                if at >= 0:
                    found[paths[Path(fields[0]).name], int(fields[1])].add(order[at])
        lost = set(sources()) - {file for file, _ in found}
        if lost:
            raise SystemExit(f"objdump names no line of {' '.join(sorted(lost))}")
        return dict(found)
