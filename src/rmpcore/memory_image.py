"""A machine's memory as a file that other programs read: raw, or an ELF core.  docs/formats.md, "Memory images".

Both are sparse.  What was never touched reads as zero and takes no room on disk, so the image of a machine with
terabytes of memory is as large as its page tables and its RMP.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from rmpcore.machine import MachineLike, MemoryRange
from rmpcore.maps import HIGH_BASE, PAGE_SIZE, U64_MAX
from rmpcore.whole_file import WholeFile

if TYPE_CHECKING:
    from rmpcore._native import NativeMachine

_PAGEMAP = "/proc/self/pagemap"
_IN_USE = 62
"""Bits 62 and 63 of a page's entry there: swapped out, in memory."""
_CHUNK = 1 << 20
"""Pages that are looked up at once."""
_PIECE = 1 << 12
"""Pages that are written at once."""

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_NHDR = struct.Struct("<III")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
"""64 bits, little-endian, version 1."""
_ET_CORE, _EM_X86_64, _EV_CURRENT = 4, 62, 1
_PT_LOAD, _PT_NOTE = 1, 4
_RWX = 7


class ImageError(ValueError):
    """An image that cannot be written."""


def _reason(e: Exception) -> str:
    return getattr(e, "strerror", None) or str(e)


def _touched(data: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Runs of pages, (first, end), that have been touched: only these have memory of their own."""
    pages, first_page = len(data) // PAGE_SIZE, data.ctypes.data // PAGE_SIZE
    for start in range(0, pages, _CHUNK):
        entries = np.zeros(min(pages - start, _CHUNK), np.uint64)
        try:
            with open(_PAGEMAP, "rb", buffering=0) as pagemap:
                pagemap.seek((first_page + start) * entries.itemsize)
                known = pagemap.readinto(entries.data)
        except OSError as e:
            raise ImageError(f"cannot tell which pages were touched: {_PAGEMAP}: {_reason(e)}") from None
        if known != entries.nbytes:
            raise ImageError(f"cannot tell which pages were touched: {_PAGEMAP} ends early")
        yield from _runs(entries >> np.uint64(_IN_USE) != 0, start)


def _runs(chosen: npt.NDArray[np.bool_], start: int) -> Iterator[tuple[int, int]]:
    """Runs of true values, (first, end), counted from ``start``."""
    if chosen.any():
        edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False)) + start
        yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _write_bytes(file: BinaryIO, data: npt.NDArray[np.uint8], offset: int) -> None:
    """Write a range's pages that are not zero to their place in the file, where its first byte is at ``offset``."""
    words = data.view(np.uint64).reshape(-1, PAGE_SIZE // 8)
    for first, end in _touched(data):
        for start in range(first, end, _PIECE):
            piece = words[start : min(end, start + _PIECE)]
            # a huge page of the host is touched as a whole
            for at, behind in _runs(np.bitwise_or.reduce(piece, axis=1) != 0, 0):
                file.seek(offset + (start + at) * PAGE_SIZE)
                file.write(piece[at:behind].data)


def _write_raw(machine: NativeMachine, file: BinaryIO) -> None:
    memory = machine.memory()
    for base, data in memory:
        _write_bytes(file, data, base)
    file.truncate(memory[-1].base + len(memory[-1].bytes))


def _direct_address(machine: NativeMachine, area: MemoryRange) -> int:
    """Where the direct map has a range.  It has none of the RMP: all ones, where no reader looks for anything."""
    if any(base == area.base for base, _ in machine.map.memory):
        return machine.map.page_offset + area.base
    return U64_MAX


def _vmcoreinfo(machine: NativeMachine) -> bytes:
    """What readers of kernel dumps look for to find and walk the page tables.

    They take swapper_pg_dir for an address in the kernel image; the model's root need not be in it, so its address
    there is one by arithmetic only."""
    where = machine.map
    phys_base = where.image.phys_base if where.image is not None else 0
    text = (
        f"OSRELEASE={machine.kernel}\nPAGESIZE={PAGE_SIZE}\n"
        f"SYMBOL(swapper_pg_dir)={(HIGH_BASE - phys_base + machine.root) & U64_MAX:x}\n"
        f"NUMBER(phys_base)={phys_base}\nNUMBER(pgtable_l5_enabled)={int(where.levels == 5)}\n"
        f"NUMBER(sme_mask)={where.c_bit}\n"
    )
    return text.encode("ascii")


def _note(name: bytes, data: bytes) -> bytes:
    """A note of type 0; name and data are padded to 4 bytes each."""
    head = _NHDR.pack(len(name) + 1, len(data), 0)
    return head + name.ljust((len(name) + 4) & ~3, b"\0") + data.ljust((len(data) + 3) & ~3, b"\0")


def _write_core(machine: NativeMachine, file: BinaryIO) -> None:
    memory = machine.memory()
    note = _note(b"VMCOREINFO", _vmcoreinfo(machine))
    headers = len(memory) + 1
    note_at = _EHDR.size + headers * _PHDR.size
    end = -(-(note_at + len(note)) // PAGE_SIZE) * PAGE_SIZE
    file.write(
        _EHDR.pack(
            *(_IDENT, _ET_CORE, _EM_X86_64, _EV_CURRENT, 0, _EHDR.size, 0, 0),
            *(_EHDR.size, _PHDR.size, headers, 0, 0, 0),
        )
    )
    file.write(_PHDR.pack(_PT_NOTE, 0, note_at, 0, 0, len(note), len(note), 4))
    offsets = []
    for area in memory:
        size = len(area.bytes)
        address = _direct_address(machine, area)
        file.write(_PHDR.pack(_PT_LOAD, _RWX, end, address, area.base, size, size, PAGE_SIZE))
        offsets.append(end)
        end += size
    file.write(note)
    for (_, data), offset in zip(memory, offsets, strict=True):
        _write_bytes(file, data, offset)
    file.truncate(end)


def write_image(machine: MachineLike, file: BinaryIO, raw: bool) -> None:
    """Write a native machine's memory into an empty file that can be sought in.

    raw: byte n of the file is byte n of physical memory; otherwise an ELF core, in which each range says where it is in
    physical memory.  No other thread may be in a call on the machine.  Raises :class:`ImageError`, and OSError."""
    if machine.backend != "native":
        raise ImageError(f"the {machine.backend} machine has no bytes: an image needs the native one")
    (_write_raw if raw else _write_core)(cast("NativeMachine", machine), file)


def _save(machine: MachineLike, path: str | os.PathLike[str], raw: bool) -> None:
    try:
        with WholeFile(path) as whole:
            write_image(machine, whole.file, raw)
    except ImageError:
        raise
    except (OSError, ValueError) as e:
        raise ImageError(f"{os.fspath(path)}: {_reason(e)}") from None


def save_raw(machine: MachineLike, path: str | os.PathLike[str]) -> None:
    """Save a native machine's memory as a raw image (:func:`write_image`).

    Raises :class:`ImageError`, and leaves no file behind then."""
    _save(machine, path, raw=True)


def save_core(machine: MachineLike, path: str | os.PathLike[str]) -> None:
    """Save a native machine's memory as an ELF core (:func:`write_image`).

    Raises :class:`ImageError`, and leaves no file behind then."""
    _save(machine, path, raw=False)
