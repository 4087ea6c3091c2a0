"""The first files of a guest: a static busybox, what else is given, and a script that is run as its first process.

The archive is a cpio of the "newc" kind (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.programs import PACKAGES, program

_PT_INTERP = 3


def _entry(number: int, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    text = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(text), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + text
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def _is_static(program: bytes) -> bool:
    """Whether an ELF program needs no loader: no program header of it is a PT_INTERP."""
    at, size, count = (int.from_bytes(program[a : a + n], "little") for a, n in ((0x20, 8), (0x36, 2), (0x38, 2)))
    types = [int.from_bytes(program[at + i * size : at + i * size + 4], "little") for i in range(count)]
    return program[:5] == b"\x7fELF\x02" and _PT_INTERP not in types


def busybox() -> bytes:
    """A busybox that needs no libraries."""
    path = Path(program("busybox"))
    data = path.read_bytes()
    if not _is_static(data):
        raise KernelError(f"{path} needs libraries: install the package {PACKAGES['busybox']}")
    return data


def initramfs(script: str, files: Mapping[str, bytes] | None = None) -> bytes:
    """The archive.  ``script``: lines for busybox's shell, whose commands are found by name; /proc is mounted.

    ``files``: what else there is, by path without the first slash."""
    init = f"#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\n{script}"
    folder, device, runs = stat.S_IFDIR | 0o755, stat.S_IFCHR | 0o600, stat.S_IFREG | 0o755
    rows: list[tuple[str, int, bytes, tuple[int, int]]] = [
        *((name, folder, b"", (0, 0)) for name in ("bin", "dev", "proc")),
        ("dev/console", device, b"", (5, 1)),
        ("dev/ttyS1", device, b"", (4, 65)),
        ("bin/busybox", runs, busybox(), (0, 0)),
        ("init", runs, init.encode(), (0, 0)),
        *((name, runs, data, (0, 0)) for name, data in (files or {}).items()),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]
    return b"".join(_entry(number, *row) for number, row in enumerate(rows, 1))
