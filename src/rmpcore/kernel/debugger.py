"""A debugger on a guest: gdb, driven through the script that runs inside it (gdb_agent.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.guest import Guest
from rmpcore.kernel.programs import program

_REGISTERS = ("rip", "rsp", "rax", "rcx", "rdx")
_QUICK = 60.0
"""Seconds for what needs no running guest."""
_AGENT = Path(__file__).with_name("gdb_agent.py")


class Debugger:
    """gdb on a guest that was started with ``debug``, for use with ``with``.

    Whatever takes too long ends the guest and raises GuestError with the guest's last words."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._gdb = program("gdb")
        self._folder = tempfile.TemporaryDirectory(prefix="rmpcore-")
        self._path = os.path.join(self._folder.name, "agent")
        self._process: subprocess.Popen[str] | None = None
        self._connection: socket.socket | None = None
        self._answers: Any = None

    def __enter__(self) -> Debugger:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def _start(self) -> None:
        command = [program("setpriv"), "--pdeathsig", "KILL", "--", self._gdb, "-nx", "-q", "-batch"]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path)
            listener.listen(1)
            listener.settimeout(0.2)
            self._process = subprocess.Popen(
                # strict: a gdb without Python then says so, instead of reading the script as gdb's own commands
                [*command, "-ex", "set script-extension strict", "-x", str(_AGENT)],
                env={**os.environ, "RMPCORE_DEBUGGER": self._path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            end = time.monotonic() + _QUICK
            while self._connection is None:
                try:
                    self._connection, _ = listener.accept()
                except TimeoutError:
                    self._still_starting(self._process, end)
        self._answers = self._connection.makefile("r", encoding="utf-8")
        while not self._guest.debug_socket.exists():
            if not self._guest.running or time.monotonic() > end:
                raise self._guest.ended() or self._guest.error("QEMU did not start")
            time.sleep(0.02)
        self._ask(_QUICK, do="connect", path=str(self._guest.debug_socket))

    def _still_starting(self, process: subprocess.Popen[str], end: float) -> None:
        if process.poll() is not None:
            words = (process.stderr.read() if process.stderr is not None else "").split("\n")
            if any("Python" in line for line in words):
                raise KernelError("this gdb has no Python in it: install the package gdb")
            raise KernelError(f"gdb ended at once: {words[0]}")
        if time.monotonic() > end:
            raise KernelError(f"gdb did not start within {_QUICK:.0f} s")

    def _ask(self, seconds: float, **request: object) -> Any:
        if self._connection is None:
            raise KernelError("gdb is not running")
        self._connection.settimeout(seconds)
        try:
            self._connection.sendall((json.dumps(request) + "\n").encode())
            line = self._answers.readline()
        except TimeoutError:
            self._guest.end()
            raise self._guest.error(f"the guest did not come back within {seconds:.0f} s") from None
        except OSError:
            line = ""
        # gdb may have gone in the midst of a line
        answer = json.loads(line) if line.endswith("\n") else {"error": "is gone"}
        if "error" in answer:
            raise self._guest.ended() or self._guest.error(f"gdb: {answer['error']}")
        return answer["is"]

    def stop_at(self, addresses: Iterable[int]) -> None:
        """Stop at these addresses from now on, and at no others."""
        self._ask(_QUICK, do="break", at=sorted(set(addresses)))

    def run(self, seconds: float, registers: Mapping[str, int] | None = None) -> dict[str, int]:
        """Set registers, in this order; go on until a breakpoint; give rip, rsp, rax, rcx and rdx."""
        stop = self._ask(seconds, do="run", set=list((registers or {}).items()), get=_REGISTERS)
        if stop is None:
            raise self._guest.ended() or self._guest.error("gdb: the guest is gone")
        found: dict[str, int] = stop
        return found

    def read(self, address: int, size: int, physical: bool = False) -> bytes:
        """Memory, by virtual or physical address."""
        return bytes.fromhex(self._ask(_QUICK, do="read", at=address, size=size, physical=physical))

    def write(self, address: int, data: bytes) -> None:
        """Write memory by virtual address, whether or not the guest may."""
        self._ask(_QUICK, do="write", at=address, bytes=data.hex())

    def integer(self, address: int, size: int = 8) -> int:
        """A variable of ``size`` bytes without a sign."""
        return int.from_bytes(self.read(address, size), "little")

    def table(self, address: int) -> npt.NDArray[np.uint64]:
        """The 512 entries of a page table, by physical address."""
        return np.frombuffer(self.read(address, 4096, physical=True), dtype="<u8")
