"""Runs inside gdb, in gdb's own Python: takes requests from a socket, one JSON value a line, and answers likewise.

gdb's Python may be another one than rmpcore's, so this file stands alone: :mod:`rmpcore.kernel.debugger` is the other
end, and says what the requests are.  Addresses are virtual unless a request says "physical"; bytes are hexadecimal.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import gdb

_U64 = (1 << 64) - 1
_SETTINGS = (
    "set confirm off",
    "set pagination off",
    "set architecture i386:x86-64",
    "set osabi none",
    # memory is written behind gdb's back, and page tables change what is where
    "set code-cache off",
    "set stack-cache off",
)


def _register(name: str) -> int:
    return int(gdb.parse_and_eval(f"(unsigned long) ${name}")) & _U64


def _set(name: str, value: int) -> None:
    # A written stack pointer makes gdb choose another frame, and the next write would go to where that one saved the
    # register: so the newest frame first, each time.
    gdb.execute("frame 0", to_string=True)
    gdb.execute(f"set ${name} = {value:#x}", to_string=True)


def _physical(on: bool) -> None:
    answer = gdb.execute(f"maintenance packet Qqemu.PhyMemMode:{int(on)}", to_string=True)
    if '"OK"' not in answer:
        raise gdb.GdbError("this QEMU cannot show physical memory")


def _connect(request: dict[str, Any]) -> object:
    for setting in _SETTINGS:
        gdb.execute(setting, to_string=True)
    gdb.execute(f"target remote {request['path']}", to_string=True)
    return None


_stops: list[int] = []
"""Addresses of the breakpoints."""


def _break(request: dict[str, Any]) -> object:
    _stops[:] = request["at"]
    gdb.execute("delete", to_string=True)
    for address in request["at"]:
        gdb.execute(f"hbreak *{address:#x}", to_string=True)
    return None


def _run(request: dict[str, Any]) -> object:
    """Set registers, go on until a breakpoint, and give registers; null if the guest is gone."""
    for name, value in request["set"]:
        _set(name, value)
    start = _register("rip")
    # A step from a breakpoint may end where it began, when the timer of QEMU's CPU cuts in: gdb would take that for the
    # next time that the breakpoint is met.
    while start in _stops and gdb.selected_thread() is not None and _register("rip") == start:
        gdb.execute("stepi", to_string=True)
    gdb.execute("continue", to_string=True)
    if gdb.selected_thread() is None:
        return None
    return {name: _register(name) for name in request["get"]}


def _read(request: dict[str, Any]) -> object:
    physical = request["physical"]
    if physical:
        _physical(True)
    try:
        return bytes(gdb.selected_inferior().read_memory(request["at"], request["size"])).hex()
    finally:
        if physical:
            _physical(False)


def _write(request: dict[str, Any]) -> object:
    gdb.selected_inferior().write_memory(request["at"], bytes.fromhex(request["bytes"]))
    return None


_DO = {"connect": _connect, "break": _break, "run": _run, "read": _read, "write": _write}


def _serve() -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["RMPCORE_DEBUGGER"])
        with connection.makefile("rw", encoding="utf-8") as stream:
            for line in stream:
                request = json.loads(line)
                try:
                    answer = {"is": _DO[request["do"]](request)}
                except (gdb.error, gdb.GdbError) as e:  # the second is none of the first
                    answer = {"error": " ".join(str(e).split())}
                stream.write(json.dumps(answer) + "\n")
                stream.flush()


_serve()
