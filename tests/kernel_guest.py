"""A kernel with examples/linux-module in it, whose first process goes on in steps; between them the test looks.

The kernel's page tables are read through the debugger; all else the guest itself sends through its second serial port.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rmpcore.kernel.debugger import Debugger
from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.guest import Guest, Layout
from rmpcore.kernel.image import Image
from rmpcore.kernel.initramfs import busybox
from rmpcore.kernel.programs import program
from rmpcore.kernel.session import Session
from rmpcore.recording import recorded_state
from rmpcore.state import State

ROOT = Path(__file__).parents[1]
MODULE = ROOT / "examples/linux-module"
_STEP_SECONDS = 180.0
SHELL = """
call=/proc/rmpcore/call
log=/proc/rmpcore/log
tell() { echo "=== $1"; }
frames() { echo "alloc order=$1" > $call; sed -n 's/^# alloc order=.* pfn=//p' $log | tail -n 1; }
"""
"""For the guest's script.  tell: begins a part of what the guest says; frames: 2^N frames of the kernel's."""


def require_programs() -> None:
    """Skip, with what is missing, unless a kernel can be built for and run here."""
    try:
        for name in ("qemu-system-x86_64", "gdb", "setpriv", "dpkg-deb", "apt-get", "apt-cache"):
            program(name)
        busybox()
    except KernelError as e:
        pytest.skip(str(e))
    for name in ("gcc", "make"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not there: install the package {name}")


def headers(version: str) -> dict[str, str]:
    """What tools/kernel_headers.py says: the arguments of make by name."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools/kernel_headers.py", version], capture_output=True, text=True, check=False
    )
    if "which is not there" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def build(arguments: dict[str, str], folder: Path) -> bytes:
    """Build the module.  A warning is a failure."""
    command = ["make", "-C", MODULE, f"BUILD={folder}", *(f"{name}={value}" for name, value in arguments.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout.lower()
    return (folder / "rmpcore.ko").read_bytes()


def left_running() -> list[str]:
    """Programs of guests that are still children of this process."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # it has just ended
            continue
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid() and state != "Z" and name.startswith(("qemu", "gdb", "setpriv")):
            names.append(name)
    return names


class Steps(Session):
    """A kernel whose first process runs a script that says ``sync`` wherever the test has something to look at."""

    def __init__(self, image: Image, layout: Layout, module: bytes, script: str) -> None:
        super().__init__(image, layout)
        self._script, self._files = SHELL + script + "while true; do sync; done\n", {"rmpcore.ko": module}
        self._heard = 0

    def __enter__(self) -> Steps:
        with ExitStack() as stack:
            guest = Guest(self.image, self.layout, self._script, self._files, debug=True)
            self._guest = stack.enter_context(guest)
            self._debugger = stack.enter_context(Debugger(self._guest))
            self._boot()
            self._stack = stack.pop_all()
        return self

    def go_on(self) -> None:
        """Let the process run to its next ``sync``."""
        self._debugger.run(_STEP_SECONDS)

    def heard(self) -> dict[str, list[str]]:
        """What the guest has said since the last time, as lines by part."""
        data = self._guest.port.read_bytes()
        text, self._heard = data[self._heard :].decode("ascii").replace("\r", ""), len(data)
        parts = (part.splitlines() for part in text.split("=== ")[1:])
        return {part[0]: part[1:] for part in parts}

    def look(self) -> State:
        """The kernel's state as it is now."""
        self.recording["after"] = self._state()
        return recorded_state(self._node()["after"], self.map)


class Trace:
    """Random calls, as lines of a shell that knows the first frames of blocks of 512 by the names of BLOCKS, of one of
    1024 by the name W, and by the name N how many frames have an entry.

    A and B are for small pages.  The others are for large ones, one after the other: a block that was smashed, or that
    overlaps, does not become a large page again."""

    BLOCKS = "ABCDEFGHIJKL"

    def __init__(self, seed: int, count: int) -> None:
        self._random, self._count, self._made = random.Random(seed), count, 0

    def _one(self) -> tuple[str, int]:
        """A frame, as a block and what is to be added.  The first ones are asked for most, so that calls meet."""
        rng = self._random
        block = rng.choices(("A", "B", self._large_block(), "W"), (8, 8, 3, 1))[0]
        if block == "W":
            return block, rng.randrange(1024)
        return block, rng.choice((0, 0, 0, 1, 2, 3, 511, rng.randrange(512)))

    @staticmethod
    def _written(frame: tuple[str, int]) -> str:
        return f"pfn=$(({frame[0]}+{frame[1]}))"

    def _large_block(self) -> str:
        return self.BLOCKS[2 + (len(self.BLOCKS) - 2) * self._made // self._count]

    def _large(self) -> str:
        rng = self._random
        return self._written((rng.choice(("A", *5 * self._large_block())), rng.choice((0, 0, 0, 0, 0, 1))))

    def _nowhere(self) -> str:
        """A frame with no entry, or with the last one; the section of some has no memory."""
        return self._written(("N", self._random.choice((-1, 0, 1, 14, 0x10000, 1 << 40))))

    def lines(self) -> Iterator[str]:
        for self._made in range(self._count):  # noqa: B020 - as far as it has come
            yield from self._call()

    def _call(self) -> Iterator[str]:
        rng = self._random
        what = rng.choices(
            ("private", "large", "shared", "shared-large", "psmash", "lookup", "inject", "map", "immutable", "nowhere"),
            (22, 10, 16, 9, 6, 10, 3, 16, 2, 6),
        )[0]
        frame = self._written(self._one())
        asid = f"asid={rng.choice((0, 1, 5, 186, 1006))}"
        if what == "private":
            yield f"rmp_make_private {frame} gpa={rng.randrange(1 << 20) << 12:#x} level=4K {asid}"
        elif what == "large":
            yield f"rmp_make_private {self._large()} gpa={rng.randrange(1 << 11) << 21:#x} level=2M {asid}"
        elif what == "shared":
            yield f"rmp_make_shared {frame} level=4K"
        elif what == "shared-large":
            yield f"rmp_make_shared {self._large()} level={rng.choice(('2M', '2M', '2M', '1G'))}"
        elif what == "psmash":
            yield f"psmash {self._large()}"
        elif what == "lookup":
            large = self._written((self._large_block(), rng.randrange(512)))
            yield f"snp_lookup_rmpentry {rng.choice((frame, large))}"
        elif what == "inject":
            code = rng.choice((1, 2, 3, 4, 6, 0))
            yield f"inject code={code} count={rng.choice((1, 2, 5)) if code == 4 else 1}"
            yield rng.choice((f"rmp_make_shared {frame} level=4K", f"psmash {self._written(self._one())}"))
        elif what == "map":
            yield self._on_map()
        elif what == "immutable":
            # no call undoes it, so it stays away from the blocks where calls are to meet
            frame = self._written(("W", rng.randrange(1024)))
            yield f"rmp_make_private {frame} gpa=0 level=4K asid=0 immutable=1"
        else:
            where = self._nowhere()
            yield rng.choice(
                (
                    f"rmp_make_private {where} gpa=0x1000 level=4K asid=1",
                    f"rmp_make_shared {where} level=4K",
                    f"psmash {where}",
                    f"snp_lookup_rmpentry {where}",
                )
            )

    def _on_map(self) -> str:
        """Calls on the direct map: of a page, of some, or across a border of 2 MiB."""
        rng = self._random
        if rng.random() < 0.2:
            name = rng.choice(("set_direct_map_invalid_noflush", "set_direct_map_default_noflush"))
            return f"{name} {self._written(self._one())}"
        name = f"set_memory_{rng.choice(('4k', 'ro', 'rw', 'np', 'p', 'ro', 'rw', 'np', 'p', 'x', 'nx'))}"
        block, first = self._one()
        if rng.random() < 0.3:
            block, first = "W", rng.choice((0, 500, 511, 512, rng.randrange(1024)))
        room = (1024 if block == "W" else 512) - first
        pages = min(rng.choice((1, 1, rng.randint(1, 40), 512)), room)
        return f"{name} {self._written((block, first))} pages={pages}"


def expanded(line: str, names: dict[str, int]) -> str:
    """A line of a trace as the guest's shell made it."""
    return re.sub(r"\$\(\((\w+)\+(-?\d+)\)\)", lambda found: str(names[found[1]] + int(found[2])), line)
