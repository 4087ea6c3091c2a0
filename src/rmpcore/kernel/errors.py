"""What stops a kernel from being recorded."""

from __future__ import annotations


class KernelError(ValueError):
    """Something that a recording needs is missing or cannot be used: one line that says what."""


class GuestError(KernelError):
    """The guest, or its debugger, did not do what it has to; the last lines of the guest's console go with it."""

    def __init__(self, reason: str, console: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.console = console
