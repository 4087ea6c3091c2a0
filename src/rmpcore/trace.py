"""Trace files: ops one a line, or an array of op records.

Text: one op a line as :func:`rmpcore.ops.parse_op` reads it; ``#`` starts a comment; blank lines are allowed.
Binary: a .npy file that holds one dimension of :data:`rmpcore.ops.OP_DTYPE`.
Every refusal is one line, ``FILE:LINE: reason``.
"""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TextIO

import numpy as np
import numpy.typing as npt

from rmpcore.ops import OP_DTYPE, Op, OpError, format_op, format_result, pack_ops, parse_op, unpack_ops, unpack_results

MAX_LINE = 4096
"""Bytes in a line of a trace; the longest op needs some 200."""
_NPY_MAGIC = b"\x93NUMPY"
_CHUNK = 1 << 14
"""Ops that are held as Python objects at a time: a million of them would take 200 MB."""


class TraceError(ValueError):
    """A trace that cannot be read."""


@dataclass(frozen=True)
class Trace:
    """The ops of a trace file, and the line that each came from."""

    source: str
    ops: npt.NDArray[np.void]
    lines: npt.NDArray[np.uint32] | None
    """None: a binary trace has no lines."""

    def __len__(self) -> int:
        return len(self.ops)

    def op(self, index: int) -> Op:
        """One op of the trace."""
        return Op(*self.ops[index].item())

    def place(self, index: int) -> str:
        """Where an op stands, as ``FILE:LINE``."""
        return f"{self.source}:{self.lines[index]}" if self.lines is not None else f"{self.source}: op {index}"


def _lines(file: IO[bytes], source: str) -> Iterator[tuple[int, int, str]]:
    """Each line that holds an op: its number, how many bytes were read, the text without its comment."""
    number = position = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        position += len(raw)
        if len(raw) > MAX_LINE:
            raise TraceError(f"{source}:{number}: line is longer than {MAX_LINE} bytes")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise TraceError(f"{source}:{number}: not UTF-8") from None
        text = text.partition("#")[0].strip()
        if text:
            yield number, position, text


def _read_text(file: IO[bytes], source: str, progress: Callable[[int], object]) -> Trace:
    ops: list[Op] = []
    packed: list[npt.NDArray[np.void]] = []
    lines = array("I")
    for number, position, text in _lines(file, source):
        try:
            ops.append(parse_op(text))
        except OpError as e:
            raise TraceError(f"{source}:{number}: {e}") from None
        lines.append(number)
        if len(ops) == _CHUNK:
            packed.append(pack_ops(ops))
            ops.clear()
            progress(position)
    packed.append(pack_ops(ops))
    return Trace(source, np.concatenate(packed), np.array(lines, dtype=np.uint32))


def _read_npy(file: IO[bytes], source: str) -> Trace:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers written by Python 2, which are read all the same
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(file)
    except Exception as e:  # NumPy's reader of headers raises many kinds, and all mean the same here
        raise TraceError(f"{source}: not a .npy file: {' '.join(str(e).split())[:200]}") from None
    if dtype != OP_DTYPE or len(shape) != 1:
        raise TraceError(f"{source}: holds {dtype} of shape {shape}, not one dimension of op records")
    data = file.read()
    if len(data) != shape[0] * OP_DTYPE.itemsize:
        raise TraceError(f"{source}: {len(data)} bytes of records, not {shape[0]} times {OP_DTYPE.itemsize}")
    return Trace(source, np.frombuffer(data, dtype=OP_DTYPE), None)


def _silent(done: int) -> None:
    pass


def read_trace(path: str | os.PathLike[str], progress: Callable[[int], object] = _silent) -> Trace:
    """Read a trace of either kind, told apart by its first bytes.  Raises :class:`TraceError`.

    ``progress`` is called now and then with the number of bytes read.
    """
    source = os.fspath(path)
    try:
        with open(path, "rb") as file:
            if file.peek(len(_NPY_MAGIC)).startswith(_NPY_MAGIC):
                return _read_npy(file, source)
            return _read_text(file, source, progress)
    except (OSError, ValueError) as e:
        if isinstance(e, TraceError):
            raise
        raise TraceError(f"{source}: {getattr(e, 'strerror', None) or e}") from None


def write_results(
    file: TextIO,
    ops: npt.NDArray[np.void],
    results: npt.NDArray[np.void],
    progress: Callable[[int], object] = _silent,
) -> None:
    """Write each op with its result, one a line: ``psmash pfn=0x200  = 0``.

    ``progress`` is called now and then with the number of ops written.
    """
    for start in range(0, len(ops), _CHUNK):
        part = slice(start, start + _CHUNK)
        for op, result in zip(unpack_ops(ops[part]), unpack_results(results[part]), strict=True):
            file.write(f"{format_op(op)}  {format_result(op, result)}\n")
        progress(start + _CHUNK)
