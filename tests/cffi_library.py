"""The core as a shared library, opened by cffi with what the public headers declare: no line of the Python package.

A second way into the C code, and one that another language would take: it can find what the package's own binding
hides, and it notes which functions were called.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import headers

SONAME = f"librmpcore.so.{headers.macros()['RMPC_ABI'].value}"


def build(directory: Path) -> Path:
    """Compile the shared library with nothing but a C compiler; its path."""
    target = directory / SONAME
    sources = [*headers.ROOT.glob("csrc/*.c"), *headers.ROOT.glob("csrc/hosted/*.c")]
    flags = ["-std=c11", "-fPIC", "-fvisibility=hidden", "-DRMPC_SHARED", f"-I{headers.INCLUDE}", *headers.optimised()]
    link = ["-shared", f"-Wl,-soname,{SONAME}", "-o", str(target)]
    subprocess.run([*headers.compiler(), *flags, *map(str, sorted(sources)), *link], check=True)
    return target


def declared() -> cffi.FFI:
    """An FFI that knows what the headers declare."""
    ffi = cffi.FFI()
    ffi.cdef(headers.definitions())
    return ffi


class Library:
    """The shared library.  ``library.rmpc_abi()`` calls a function, ``library.RMPC_OK`` is a constant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ffi = declared()
        self.called: set[str] = set()
        """Functions that were called, for whoever clears it."""
        self._lib: Any = self.ffi.dlopen(str(path))
        self._macros = headers.macros()

    def __getattr__(self, name: str) -> Any:
        if name in self._macros:
            return self._macros[name].value
        value = getattr(self._lib, name)
        if not isinstance(value, int):
            value = self._noted(name, value)
        self.__dict__[name] = value
        return value

    def _noted(self, name: str, function: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.called.add(name)
            return function(*arguments)

        return call

    def address(self, name: str) -> Any:
        """A function as a pointer, for others to call."""
        return getattr(self._lib, name)

    def new(self, kind: str, *init: Any) -> Any:
        """Zeroed memory that the caller owns, for as long as what this returns lives."""
        return self.ffi.new(kind, *init)

    def text(self, pointer: Any) -> str | None:
        """A C string."""
        return None if pointer == self.ffi.NULL else self.ffi.string(pointer).decode()
