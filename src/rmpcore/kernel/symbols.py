"""Addresses of a kernel's functions and variables.

Distributions' System.map files may be empty, so the kernel is asked: it is booted once, without moving itself, and
sends /proc/kallsyms out of its second serial port.  The answer is kept in the cache folder, by the image's digest.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.guest import Guest, Layout
from rmpcore.kernel.image import Image, cache_folder
from rmpcore.whole_file import WholeFile

_SCRIPT = "cat /proc/kallsyms > /dev/ttyS1\npoweroff -f\n"
_SECONDS = 240.0
_ROW = re.compile(r"([0-9a-f]{16}) [A-Za-z] ([^\s\[\]]+)")
_ENOUGH = 1000


class Symbols:
    """Addresses by name.  Names that stand for several places keep the first."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._addresses: dict[str, int] = {}
        for line in text.splitlines():
            row = _ROW.fullmatch(line.strip())
            if row is not None:
                self._addresses.setdefault(row[2], int(row[1], 16))
        if len(self._addresses) < _ENOUGH or not self.get("init_mem_mapping"):
            raise KernelError(f"{source}: the kernel's list of symbols is not whole, or holds no addresses")

    def get(self, *names: str) -> int | None:
        """The address of the first of some names that the kernel has."""
        return next((self._addresses[name] for name in names if name in self._addresses), None)

    def __getitem__(self, name: str) -> int:
        address = self.get(name)
        if address is None:
            raise KernelError(f"{self.source}: the kernel has no symbol {name}")
        return address

    @cached_property
    def _sorted(self) -> list[int]:
        return sorted(set(self._addresses.values()))

    def end(self, name: str) -> int:
        """Where the next symbol begins."""
        start = self[name]
        after = bisect_right(self._sorted, start)
        return self._sorted[after] if after < len(self._sorted) else start


def _ask(image: Image) -> str:
    with Guest(image, Layout("1G"), _SCRIPT) as guest:
        guest.wait(_SECONDS)
        return guest.port.read_text(encoding="utf-8", errors="replace").replace("\r", "")


def symbols_of(image: Image) -> Symbols:
    """The symbols of a kernel: kept ones if they are whole, or else it is booted and asked."""
    folder = cache_folder() / "symbols"
    folder.mkdir(exist_ok=True)
    kept: Path = folder / f"{image.digest}.txt"
    if kept.exists():
        with suppress(KernelError):
            return Symbols(kept.read_text(encoding="utf-8", errors="replace"), image.release)
    text = _ask(image)
    symbols = Symbols(text, image.release)
    with WholeFile(kept) as whole:
        whole.file.write(text.encode())
    return symbols
