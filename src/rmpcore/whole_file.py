"""A file that appears whole or not at all."""

from __future__ import annotations

import os
from types import TracebackType


class WholeFile:
    """A file that is written beside its place and put there at the end, unless an exception comes first.

    What stops it from being written shows when it is opened.  Raises OSError, or ValueError for a path that is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._target = os.path.realpath(path)
        if os.path.isdir(self._target):
            raise IsADirectoryError(21, os.strerror(21))
        if os.path.exists(self._target) and not os.path.isfile(self._target):
            raise OSError(22, "is not a regular file")
        if os.path.exists(self._target) and not os.access(self._target, os.W_OK):
            raise PermissionError(13, os.strerror(13))
        folder, name = os.path.split(self._target)
        self._temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}.tmp")
        self.file = open(self._temporary, "xb")  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.file.close()
            if kind is None:
                os.replace(self._temporary, self._target)
        finally:
            if os.path.lexists(self._temporary):
                os.unlink(self._temporary)
