"""A guest: one kernel in QEMU without KVM, with a bound on all that is waited for, and ended whatever happens."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rmpcore.kernel.errors import GuestError, KernelError
from rmpcore.kernel.image import Image
from rmpcore.kernel.initramfs import initramfs
from rmpcore.kernel.programs import program

CPU = "EPYC,-svm"
"""TCG has no SVM that a kernel could use; without it KVM stays away."""
_ALWAYS = "console=ttyS0 nokaslr panic=-1 loglevel=5"
"""nokaslr: symbols are where they were; panic=-1: a panic ends the guest at once (QEMU runs with -no-reboot)."""
_MEMORY = re.compile(r"[1-9][0-9]{0,5}[MG]")
_SHOWN = 24
_LAST_WORDS = 2.0
"""Seconds for QEMU to end after it has left the debugger."""


@dataclass(frozen=True)
class Layout:
    """The machine that QEMU makes, and what is said to the kernel."""

    memory: str = "4G"
    """As QEMU's -m has it: 3333M, 4G."""
    cmdline: str = ""
    cpu: str = CPU
    qemu: tuple[str, ...] = ()
    """Further arguments of QEMU, as -machine q35."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.memory, self.cpu, *self.qemu, self.cmdline)))

    def __post_init__(self) -> None:
        if _MEMORY.fullmatch(self.memory) is None:
            raise KernelError(f"memory {self.memory[:40]}: is not a number of M or G, as 4G")
        if not self.cmdline.isprintable() or not self.cmdline.isascii():
            raise KernelError(f"kernel command line {self.cmdline[:60]!r}: has characters that no kernel takes")


class Guest:
    """A running guest, for use with ``with``.

    ``script``: what its first process does (see :mod:`~rmpcore.kernel.initramfs`).  Its first serial port is the
    console, its second the file :attr:`port`."""

    def __init__(
        self,
        image: Image,
        layout: Layout,
        script: str,
        files: Mapping[str, bytes] | None = None,
        debug: bool = False,
    ) -> None:
        self._qemu, setpriv = program("qemu-system-x86_64"), program("setpriv")
        archive = initramfs(script, files)
        self._folder = tempfile.TemporaryDirectory(prefix="rmpcore-")
        folder = Path(self._folder.name)
        self.port = folder / "port"
        self.debug_socket = folder / "gdb"
        """Where a debugger finds QEMU, if ``debug``; the guest then waits for it before its first instruction."""
        self._console, self._errors, disk = folder / "console", folder / "errors", folder / "initramfs"
        disk.write_bytes(archive)
        self.port.touch()  # QEMU may end before it makes it
        command = [setpriv, "--pdeathsig", "KILL", "--", self._qemu, "-nodefaults", "-no-user-config"]
        command += ["-accel", "tcg", "-cpu", layout.cpu, "-m", layout.memory, *layout.qemu]
        command += ["-display", "none", "-no-reboot", "-kernel", str(image.path), "-initrd", str(disk)]
        command += ["-serial", f"file:{self._console}", "-serial", f"file:{self.port}"]
        command += ["-append", f"{_ALWAYS} {layout.cmdline}".strip()]
        if debug:
            command += ["-S", "-chardev", f"socket,path={self.debug_socket},server=on,wait=off,id=gdb"]
            command += ["-gdb", "chardev:gdb"]
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guest:
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.end()
        self._folder.cleanup()

    def end(self) -> None:
        """End it, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def console(self) -> tuple[str, ...]:
        """The last lines of the console, or what QEMU said if there is none."""
        for path in (self._console, self._errors):
            text = path.read_bytes().decode("utf-8", "backslashreplace") if path.exists() else ""
            lines = [line.rstrip() for line in text.splitlines() if line.strip()]
            if path == self._errors:
                lines = [line for line in lines if "TCG doesn't support" not in line]
            if lines:
                return tuple(lines[-_SHOWN:])
        return ()

    def error(self, reason: str) -> GuestError:
        """What to raise when the guest did not do what it has to."""
        return GuestError(reason, self.console())

    def ended(self) -> GuestError | None:
        """What to raise when the debugger has lost it; None: it still runs."""
        try:
            status = self._process.wait(_LAST_WORDS) if self._process is not None else 0
        except subprocess.TimeoutExpired:
            return None
        return self.error("the guest ended: a panic or a reset" if status == 0 else f"QEMU ended with status {status}")

    def wait(self, seconds: float) -> None:
        """Wait until it has switched itself off.  Raises GuestError if it does not."""
        end = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > end:
                raise self.error(f"the guest did not come to its end within {seconds:.0f} s")
            time.sleep(0.05)
        if self._process is not None and self._process.returncode:
            raise self.error(f"QEMU ended with status {self._process.returncode}")
