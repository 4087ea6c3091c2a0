"""Guests, debuggers and ``rmpcore kernel`` with programs that only pretend.

Everything that can go wrong around a kernel ends in one line, in time, and leaves no process and no file.  Nothing here
needs QEMU, gdb, a kernel or the network."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rmpcore import cli, cli_kernel
from rmpcore.kernel import debugger as debuggers
from rmpcore.kernel import guest as guests
from rmpcore.kernel import image as images
from rmpcore.kernel import initramfs as first_files
from rmpcore.kernel import programs
from rmpcore.kernel import symbols as kernel_symbols
from rmpcore.kernel.debugger import Debugger
from rmpcore.kernel.errors import GuestError, KernelError
from rmpcore.kernel.guest import Guest, Layout
from rmpcore.kernel.image import Image, cache_folder
from rmpcore.kernel.symbols import symbols_of

GOLDEN = Path(__file__).parent / "data/golden"
IMAGE = Image(Path("vmlinuz"), "6.12.95+deb12-amd64", "ab" * 32)
Run = Callable[..., tuple[int, str, str]]


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is searched for programs first.  Each that runs notes itself in ``pids``; at the end none is left
    over, and no temporary file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # of util-linux; what it asks the kernel for matters only if rmpcore itself is killed
    script(folder, "setpriv", f'echo "$*" >> {tmp_path}/commands\nshift 3\nexec "$@"')
    monkeypatch.setattr(first_files, "busybox", lambda: b"busybox")
    # of its own, for a socket's path must be short
    scratch = tempfile.mkdtemp(prefix="rmpcore-")
    monkeypatch.setattr(tempfile, "tempdir", scratch)
    yield folder
    monkeypatch.undo()
    left = os.listdir(scratch)
    shutil.rmtree(scratch)
    assert left == []
    pids = tmp_path / "pids"
    for pid in pids.read_text(encoding="utf-8").split() if pids.exists() else ():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def qemu(folder: Path, text: str) -> None:
    """A QEMU that knows its console, its second port and the debugger's socket by its arguments, and then does this."""
    script(
        folder,
        "qemu-system-x86_64",
        f"""echo $$ >> {folder.parent}/pids
for word in "$@"; do case "$word" in
file:*) if [ "$console" ]; then port="${{word#file:}}"; else console="${{word#file:}}"; fi;;
socket,path=*) gdb="${{word#socket,path=}}"; gdb="${{gdb%%,*}}";;
esac; done
{text}""",
    )


HANGS = 'echo one > "$console"; : > "$port"; test "$gdb" && : > "$gdb"\nexec sleep 60'


def failing(function: Callable[[], object]) -> GuestError:
    with pytest.raises(GuestError) as caught:
        function()
    assert str(caught.value).isprintable()
    return caught.value


def refused(function: Callable[[], object]) -> str:
    with pytest.raises(KernelError) as caught:
        function()
    assert str(caught.value).isprintable()
    return str(caught.value)


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Some programs are not there."""
    which = shutil.which
    monkeypatch.setattr(
        programs.shutil, "which", lambda name, path=None: None if name in missing else which(name, path=path)
    )


# --- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["1G", "3333M", "999999M", "4G"])
def test_sizes_of_memory(memory: str) -> None:
    assert Layout(memory).memory == memory


@pytest.mark.parametrize(
    "memory",
    ["", "4", "0G", "04G", "4g", "4K", "4T", "-4G", "4G ", "4G\n", "4.5G", "4 G", "1234567G", "4G,slots=2", "٤G"],
)
def test_bad_sizes_of_memory(memory: str) -> None:
    with pytest.raises(KernelError, match="is not a number of M or G, as 4G"):
        Layout(memory)


@pytest.mark.parametrize("cmdline", ["", "nopat", "memmap=1M$0x30000000 mem=2G", 'a="b c",d'])
def test_kernel_command_lines(cmdline: str) -> None:
    assert Layout(cmdline=cmdline).cmdline == cmdline


@pytest.mark.parametrize("cmdline", ["a\nb", "a\0b", "\x7f", "\u00e9", "a\tb", "\x1b[2J"])
def test_bad_kernel_command_lines(cmdline: str) -> None:
    assert "has characters that no kernel takes" in refused(lambda: Layout(cmdline=cmdline))


# --- guests --------------------------------------------------------------------------------------------------------


def run_guest(**options: Any) -> None:
    """Run a guest to its end."""
    with Guest(IMAGE, Layout("1G", "nopat", qemu=("-machine", "q35")), "poweroff -f\n", **options) as guest:
        guest.wait(30)
        assert not guest.running


def test_what_qemu_is_told(bin_: Path, tmp_path: Path) -> None:
    qemu(bin_, f'for word in "$@"; do echo "$word"; done > {tmp_path}/told\necho a > "$console"')
    run_guest(debug=True)
    assert (tmp_path / "commands").read_text(encoding="utf-8").startswith("--pdeathsig KILL -- ")
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    pairs = dict(pairwise(told))
    assert (pairs["-accel"], pairs["-m"], pairs["-machine"], pairs["-kernel"]) == ("tcg", "1G", "q35", "vmlinuz")
    assert pairs["-append"].split()[-1] == "nopat"
    assert {"nokaslr", "console=ttyS0", "panic=-1"} <= set(pairs["-append"].split())
    assert "-no-reboot" in told and "-S" in told
    assert not any("kvm" in word for word in told)


def test_a_guest_that_ends_by_itself(bin_: Path) -> None:
    qemu(bin_, 'echo fine > "$console"')
    run_guest()


def test_a_qemu_that_fails_says_why(bin_: Path) -> None:
    qemu(bin_, "echo >&2\necho \"qemu: TCG doesn't support it\" >&2\necho 'qemu: no such CPU' >&2\nexit 1")
    error = failing(run_guest)
    assert str(error) == "QEMU ended with status 1"
    assert error.console == ("qemu: no such CPU",)


def test_the_last_lines_of_the_console(bin_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without empty ones and carriage returns; bytes that are no text are shown as numbers."""
    monkeypatch.setattr(guests, "_SHOWN", 12)
    lines = "".join(f"line {i}\\r\\n\\n" for i in range(30))
    qemu(bin_, f"printf '{lines}panic \\377\\n' > \"$console\"\necho 'not this' >&2\nexit 7")
    error = failing(run_guest)
    assert str(error) == "QEMU ended with status 7"
    assert error.console == (*(f"line {i}" for i in range(19, 30)), "panic \\xff")


def test_a_guest_that_hangs_is_ended(bin_: Path) -> None:
    qemu(bin_, f"printf 'booting\\nstuck\\n' > \"$console\"\ntouch {bin_}/runs\nexec sleep 60")
    with Guest(IMAGE, Layout(), "") as guest:
        while not (bin_ / "runs").exists():
            time.sleep(0.01)
        error = failing(lambda: guest.wait(0.2))
    assert str(error) == "the guest did not come to its end within 0 s"
    assert error.console == ("booting", "stuck")
    assert not guest.running


def test_a_guest_is_ended_whatever_happens(bin_: Path) -> None:
    qemu(bin_, HANGS)
    with pytest.raises(KeyboardInterrupt), Guest(IMAGE, Layout(), "") as guest:
        assert guest.running
        raise KeyboardInterrupt
    assert not guest.running
    guest.end()  # once more does no harm


@pytest.mark.parametrize("missing", ["qemu-system-x86_64", "setpriv"])
def test_what_is_missing_shows_before_a_guest_starts(bin_: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    qemu(bin_, HANGS)
    without(monkeypatch, missing)
    assert refused(run_guest).startswith(f"{missing} is not there: install the package ")
    assert not (bin_.parent / "pids").exists()


# --- symbols, asked of a guest -------------------------------------------------------------------------------------


def kallsyms(count: int = 1500) -> str:
    rows = [
        "ffffffff81000000 T init_mem_mapping",
        *(f"{0xFFFFFFFF81100000 + 16 * i:016x} t f{i}" for i in range(count)),
    ]
    return "\r\n".join(rows) + "\r\n"


def test_symbols_are_asked_of_a_guest_once(bin_: Path) -> None:
    (bin_ / "list").write_bytes(kallsyms().encode())
    qemu(bin_, f'cp {bin_}/list "$port"; echo booted > "$console"')
    assert symbols_of(IMAGE)["f2"] == 0xFFFFFFFF81100020
    qemu(bin_, "exit 1")
    assert symbols_of(IMAGE)["f2"] == 0xFFFFFFFF81100020
    assert (bin_.parent / "pids").read_text(encoding="utf-8").count("\n") == 1


@pytest.mark.parametrize(
    ("does", "text"),
    [
        ('head -c 20000 "{list}" > "$port"', "the kernel's list of symbols is not whole"),
        (': > "$port"', "the kernel's list of symbols is not whole"),
        ("", "the kernel's list of symbols is not whole"),
        ('cp "{list}" "$port"; exit 1', "QEMU ended with status 1"),
        ('cp "{list}" "$port"; echo stuck > "$console"; exec sleep 60', "the guest did not come to its end"),
    ],
)
def test_an_answer_that_breaks_off(bin_: Path, monkeypatch: pytest.MonkeyPatch, does: str, text: str) -> None:
    monkeypatch.setattr(kernel_symbols, "_SECONDS", 0.3 if "sleep" in does else 20.0)
    (bin_ / "list").write_bytes(kallsyms().encode())
    qemu(bin_, does.replace("{list}", f"{bin_}/list"))
    assert text in refused(lambda: symbols_of(IMAGE))
    assert list((cache_folder() / "symbols").iterdir()) == []


# --- debuggers -----------------------------------------------------------------------------------------------------


def gdb(folder: Path, text: str) -> None:
    script(folder, "gdb", f"echo $$ >> {folder.parent}/pids\n{text}")


def agent(folder: Path, text: str) -> None:
    """A gdb whose script is another one: Python with a connection to the debugger and its requests, line by line."""
    (folder / "agent.py").write_text(
        "import json, os, socket, sys, time\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        'connection.connect(os.environ["RMPCORE_DEBUGGER"])\n'
        'stream = connection.makefile("rw", encoding="utf-8")\n'
        "def answer(value):\n    stream.write(value + chr(10))\n    stream.flush()\n"
        f"{text}\n",
        encoding="utf-8",
    )
    gdb(folder, f'exec "{sys.executable}" "{folder}/agent.py"')


def debug(use: Callable[[Debugger], object] = lambda debugger: None) -> None:
    """Start a guest and a debugger on it."""
    with Guest(IMAGE, Layout(), "", debug=True) as guest, Debugger(guest) as debugger:
        use(debugger)


@pytest.fixture
def guest(bin_: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A QEMU that waits for its debugger for ever."""
    qemu(bin_, HANGS)
    monkeypatch.setattr(debuggers, "_QUICK", 20.0)
    monkeypatch.setattr(guests, "_LAST_WORDS", 0.1)
    return bin_


def test_a_gdb_without_python(guest: Path) -> None:
    """Without "strict" such a gdb reads the script as commands of its own, and does not speak of Python."""
    gdb(
        guest,
        'case "$*" in *" -ex set script-extension strict -x "*)\n'
        "echo 'Scripting in the \"Python\" language is not supported in this copy of GDB.';; *)\n"
        "echo 'gdb_agent.py:1: Error in sourced command file:'; echo 'Undefined command: \"\".  Try \"help\".';;\n"
        "esac >&2; exit 1",
    )
    assert refused(debug) == "this gdb has no Python in it: install the package gdb"


@pytest.mark.parametrize("status", [0, 1])
def test_a_gdb_that_ends_at_once(guest: Path, status: int) -> None:
    gdb(guest, f"echo 'gdb: cannot load libx.so' >&2; echo more >&2; exit {status}")
    assert refused(debug) == "gdb ended at once: gdb: cannot load libx.so"


def test_a_gdb_that_never_connects(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debuggers, "_QUICK", 0.3)
    gdb(guest, "exec sleep 60")
    assert refused(debug) == "gdb did not start within 0 s"


def test_a_missing_gdb(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "gdb")
    assert refused(debug) == "gdb is not there: install the package gdb"


def test_a_gdb_that_goes_away(guest: Path) -> None:
    agent(guest, "stream.readline()")
    error = failing(debug)
    assert (str(error), error.console) == ("gdb: is gone", ("one",))


def test_a_gdb_that_goes_away_in_the_midst_of_an_answer(guest: Path) -> None:
    agent(guest, "stream.readline(); stream.write('{\"is\": nu'); stream.flush()")
    assert str(failing(debug)) == "gdb: is gone"


def test_a_gdb_that_went_away_before_it_was_asked(guest: Path) -> None:
    agent(guest, "stream.readline(); answer('{\"is\": null}')")

    def use(debugger: Debugger) -> None:
        assert debugger._process is not None
        debugger._process.wait()
        assert str(failing(lambda: debugger.read(0, 8))) == "gdb: is gone"

    debug(use)


def test_a_gdb_that_says_no(guest: Path) -> None:
    agent(guest, "for line in stream: answer(json.dumps({'error': 'Connection refused.'}))")
    error = failing(debug)
    assert (str(error), error.console) == ("gdb: Connection refused.", ("one",))


def test_a_gdb_that_never_answers(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent(guest, "answer('{\"is\": null}')\ntime.sleep(60)")

    def use(debugger: Debugger) -> None:
        monkeypatch.setattr(debuggers, "_QUICK", 0.3)
        error = failing(lambda: debugger.read(0, 8))
        assert (str(error), error.console) == ("the guest did not come back within 0 s", ("one",))
        assert not debugger._guest.running

    debug(use)


def test_a_qemu_that_does_not_listen(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes where it is waited for."""
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0], sleep=lambda _: late.append(late.pop() + 5))
    monkeypatch.setattr(debuggers, "time", clock)
    agent(guest, "time.sleep(60)")
    qemu(guest, "exec sleep 60")
    assert str(failing(debug)) == "QEMU did not start"


def test_a_qemu_that_fails_before_it_listens(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_LAST_WORDS", 20.0)
    agent(guest, "time.sleep(60)")
    qemu(guest, "echo 'qemu: bad -m' >&2; exit 1")
    error = failing(debug)
    assert (str(error), error.console) == ("QEMU ended with status 1", ("qemu: bad -m",))


def test_a_call_that_does_not_come_back_ends_the_guest(guest: Path) -> None:
    agent(guest, "answer('{\"is\": null}')\nfor line in stream: time.sleep(60)")

    def use(debugger: Debugger) -> None:
        error = failing(lambda: debugger.run(0.3, {"rip": 1}))
        assert str(error) == "the guest did not come back within 0 s"
        assert not debugger._guest.running

    debug(use)


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("exit 0", "the guest ended: a panic or a reset"),
        ("exit 134", "QEMU ended with status 134"),
        ("exec sleep 60", "gdb: the guest is gone"),
    ],
)
@pytest.mark.parametrize("answer", ["{'is': None}", "{'error': 'Remote connection closed'}"])
def test_a_guest_that_ends_during_a_call(
    guest: Path, monkeypatch: pytest.MonkeyPatch, end: str, text: str, answer: str
) -> None:
    """Whatever gdb makes of it, what QEMU says counts, and what the console said last is waited for."""
    monkeypatch.setattr(guests, "_LAST_WORDS", 5.0 if end.startswith("exit") else 0.1)
    qemu(guest, f': > "$gdb"; until test -e {guest}/run; do sleep 0.05; done; sleep 0.1; echo one > "$console"; {end}')
    agent(
        guest,
        "stream.readline(); answer('{\"is\": null}')\n"
        f"stream.readline(); open('{guest}/run', 'w').close(); answer(json.dumps({answer}))\nstream.readline()",
    )
    error = failing(lambda: debug(lambda debugger: debugger.run(5)))
    if "error" in answer and end.startswith("exec"):
        text = "gdb: Remote connection closed"
    assert str(error) == text
    assert error.console in (("one",), ()) if end.startswith("exec") else error.console == ("one",)


def test_what_is_asked_and_answered(guest: Path) -> None:
    """The requests as the script inside gdb takes them."""
    answers: list[object] = [None, None, {"rip": 1, "rsp": 2, "rax": 3, "rcx": 4, "rdx": 5}, "0102", None, "ff" * 4096]
    agent(
        guest,
        f"asked = open('{guest}/asked', 'w')\n"
        f"for line, value in zip(stream, json.loads({json.dumps(answers)!r})):\n"
        "    asked.write(line); asked.flush(); answer(json.dumps({'is': value}))\n",
    )

    def use(debugger: Debugger) -> None:
        debugger.stop_at([32, 16, 16])
        assert debugger.run(5, {"rsp": 7, "rip": 8}) == answers[2]
        assert debugger.integer(0xFFFFFFFF82000000, 2) == 0x0201
        debugger.write(64, b"\x12\x34")
        table = debugger.table(4096)
        assert (table.dtype, table.tolist()) == (np.dtype("<u8"), [(1 << 64) - 1] * 512)

    debug(use)
    asked = [json.loads(line) for line in (guest / "asked").read_text(encoding="utf-8").splitlines()]
    assert asked[0]["do"] == "connect"
    assert asked[1:] == [
        {"do": "break", "at": [16, 32]},
        {"do": "run", "set": [["rsp", 7], ["rip", 8]], "get": ["rip", "rsp", "rax", "rcx", "rdx"]},
        {"do": "read", "at": 0xFFFFFFFF82000000, "size": 2, "physical": False},
        {"do": "write", "at": 64, "bytes": "1234"},
        {"do": "read", "at": 4096, "size": 4096, "physical": True},
    ]


# gdb's own Python, as far as the script uses it.  gdb.GdbError is no gdb.error (gdb's manual, "Exception Handling").
GDB_MODULE = """
import os
class error(RuntimeError): pass
class MemoryError(error): pass
class GdbError(Exception): pass
_physical = False
_registers = {"rip": 0xfff0, "rsp": 8, "rax": -1, "rcx": 3, "rdx": 4}
_stops = []
_thread = 1
_memory = {False: bytearray(range(256)), True: bytearray(256)}

def execute(command, to_string=False):
    global _physical, _thread
    words = command.split()
    with open(os.environ["COMMANDS"], "a") as log:
        log.write(command + chr(10))
    if command.startswith("maintenance packet Qqemu.PhyMemMode:"):
        if os.environ.get("OLD_QEMU"):
            return 'sending: "..."\\nreceived: ""\\n'
        _physical = command.endswith("1")
        return 'sending: "..."\\nreceived: "OK"\\n'
    if words[0] == "delete":
        _stops.clear()
    elif words[0] == "hbreak":
        _stops.append(int(words[1][1:], 16))
    elif words[0] == "set" and words[1][0] == "$":
        _registers[words[1][1:]] = int(words[3], 16)
    elif words[0] == "continue":
        if not _stops:
            _thread = None
        else:
            _registers["rip"] = _stops.pop(0)
    elif words[0] == "target" and words[2].startswith("/nowhere"):
        raise error("/nowhere: No such file\\n or directory.")
    return ""

def parse_and_eval(text):
    return _registers[text.rpartition("$")[2]]

def selected_thread():
    return _thread

class _Inferior:
    def read_memory(self, at, size):
        if at + size > 256:
            raise MemoryError("Cannot access memory at address %#x" % at)
        return memoryview(bytes(_memory[_physical][at : at + size]))
    def write_memory(self, at, data):
        _memory[_physical][at : at + len(data)] = data

def selected_inferior():
    return _Inferior()
"""


@pytest.fixture
def inside(guest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real script in a gdb that is made up; gives the commands that it was told."""
    (guest / "gdb.py").write_text(GDB_MODULE, encoding="utf-8")
    (guest / "start.py").write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(guest)!r})\nrunpy.run_path(sys.argv[sys.argv.index('-x') + 1])\n",
        encoding="utf-8",
    )
    gdb(guest, f'exec "{sys.executable}" "{guest}/start.py" "$@"')
    monkeypatch.setenv("COMMANDS", str(guest / "commands"))
    return guest / "commands"


def test_the_script_inside_gdb(inside: Path) -> None:
    def use(debugger: Debugger) -> None:
        debugger.stop_at([0x2000, 0x1000])
        stop = debugger.run(20, {"rsp": 0x7FF0, "rip": 0x55})
        assert stop == {"rip": 0x1000, "rsp": 0x7FF0, "rax": (1 << 64) - 1, "rcx": 3, "rdx": 4}
        assert debugger.read(16, 4) == bytes((16, 17, 18, 19))
        assert debugger.read(16, 4, physical=True) == bytes(4)
        debugger.write(17, b"\xaa\xbb")
        assert debugger.integer(16, 4) == 0x13BBAA10
        assert debugger.read(16, 4, physical=True) == bytes(4)  # it wrote by virtual address

    debug(use)
    commands = inside.read_text(encoding="utf-8").splitlines()
    assert commands.index("delete") < commands.index("hbreak *0x1000") < commands.index("hbreak *0x2000")
    # the newest frame before each register, or gdb writes it somewhere in the stack
    at = commands.index("set $rsp = 0x7ff0")
    assert commands[at - 1 : at + 4] == ["frame 0", "set $rsp = 0x7ff0", "frame 0", "set $rip = 0x55", "continue"]


def test_memory_that_cannot_be_read(inside: Path) -> None:
    """The debugger goes on afterwards, and reads by virtual address again."""

    def use(debugger: Debugger) -> None:
        for physical in (False, True):
            error = failing(lambda physical=physical: debugger.read(0x1000, 8, physical))
            assert str(error) == "gdb: Cannot access memory at address 0x1000"
        assert debugger.read(1, 2) == b"\x01\x02"

    debug(use)


def test_a_guest_that_is_gone_inside_gdb(inside: Path) -> None:
    assert str(failing(lambda: debug(lambda debugger: debugger.run(20)))) == "gdb: the guest is gone"


def test_a_qemu_that_cannot_show_physical_memory(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD_QEMU", "1")
    error = failing(lambda: debug(lambda debugger: debugger.read(0, 8, physical=True)))
    assert str(error) == "gdb: this QEMU cannot show physical memory"


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``rmpcore kernel``; gives exit status, stdout and stderr."""

    def command(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rmpcore", "kernel", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return command


def one_line(err: str) -> str:
    assert err.startswith("rmpcore: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err[len("rmpcore: ") : -1]


@pytest.fixture
def vmlinuz(tmp_path: Path, bin_: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image by the kernel's boot protocol, in the working directory, and its symbols in the cache."""
    monkeypatch.chdir(tmp_path)
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    data[0x300:0x314] = b"6.12.95+deb12-amd64 "
    (tmp_path / "vmlinuz").write_bytes(data)
    return tmp_path / "vmlinuz"


@pytest.mark.parametrize("command", [(), ("record",), ("check",), ("fuzz",)])
def test_help(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command, "--help")
    assert (status, err) == (0, "")
    options = {
        (): ("record", "check", "fuzz"),
        ("record",): (
            "--kernel",
            "--image",
            "--memory",
            "--cmdline",
            "--la57",
            "--calls",
            "--seed",
            "--ops",
            "--module",
        ),
        ("check",): ("--kernel", "--image", "--memory", "--qemu", "--calls", "--keep"),
        ("fuzz",): ("--kernel", "--rounds", "--calls", "--seed", "--from", "--output"),
    }
    assert all(option in out for option in options[command])


@pytest.mark.parametrize("given", [(), ("--kernel", "6.12", "--image", "vmlinuz")])
def test_one_of_kernel_and_image(run: Run, vmlinuz: Path, given: tuple[str, ...]) -> None:
    status, out, err = run("record", *given, "-o", "r.json")
    assert (status, out, one_line(err)) == (2, "", "give one of --kernel and --image")
    assert not Path("r.json").exists()


def test_a_recording_has_to_go_somewhere(run: Run, vmlinuz: Path) -> None:
    status, _, err = run("record", "--image", "vmlinuz")
    assert status == 2
    assert "--output" in err


BAD = {
    "memory": (["--memory", "4X"], "memory 4X: is not a number of M or G, as 4G"),
    "command line": (["--cmdline", "a\nb"], "kernel command line 'a\\nb': has characters that no kernel takes"),
    "no trace": (["--ops", "none.trace"], "none.trace: No such file or directory"),
    "no op": (["--ops", "bad.trace"], "bad.trace:2: unknown op 'frobnicate'"),
    "no call": (
        ["--ops", "insn.trace"],
        "insn.trace:1: RMPUPDATE pa=0x1000 gpa=0x0 assigned=1",
    ),
    "an inject too many": (["--ops", "inject.trace"], "inject.trace: ends with an inject, and no call follows it"),
    "no module": (["--module", "none.ko"], "none.ko: No such file or directory"),
    "no image": (["--image", "none"], "none: No such file or directory"),
    "a folder": (["--image", "."], ".: Is a directory"),
    "no kernel image": (["--image", "bad.trace"], "bad.trace: is not a kernel image for x86 (vmlinuz, bzImage)"),
}


@pytest.mark.parametrize("command", ["record", "check"])
@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(run: Run, vmlinuz: Path, what: str, command: str) -> None:
    Path("bad.trace").write_text("psmash pfn=0x200\nfrobnicate\n", encoding="utf-8")
    Path("insn.trace").write_text("RMPUPDATE pa=0x1000 gpa=0 assigned=1 size=4K asid=1\n", encoding="utf-8")
    Path("inject.trace").write_text("psmash pfn=0x200\ninject code=1\n", encoding="utf-8")
    options, text = BAD[what]
    before = sorted(os.listdir())
    image = [] if "--image" in options else ["--image", "vmlinuz"]
    output = ["-o", "r.json"] if command == "record" else []
    status, out, err = run(command, *image, *options, *output)
    assert (status, out) == (2, "")
    assert one_line(err).startswith(text)
    assert sorted(os.listdir()) == before
    assert not (vmlinuz.parent / "pids").exists()


@pytest.mark.parametrize(
    ("output", "text"), [("none/r.json", "No such file or directory"), (".", "Is a directory"), ("", "Is a directory")]
)
def test_where_no_recording_can_go(run: Run, vmlinuz: Path, output: str, text: str) -> None:
    """It shows before a kernel is booted."""
    status, out, err = run("record", "--image", "vmlinuz", "-o", output)
    assert (status, out, one_line(err)) == (2, "", f"{output}: {text}")
    assert not (vmlinuz.parent / "pids").exists()


MISSING = {
    "qemu-system-x86_64": "qemu-system-x86_64 is not there: install the package qemu-system-x86",
    "busybox": "busybox is not there: install the package busybox-static",
    "setpriv": "setpriv is not there: install the package util-linux",
    "gdb": "gdb is not there: install the package gdb",
}


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("command", ["record", "check"])
def test_missing_programs(
    run: Run, vmlinuz: Path, bin_: Path, monkeypatch: pytest.MonkeyPatch, missing: str, command: str
) -> None:
    qemu(bin_, HANGS)
    (cache_folder() / "symbols").mkdir()
    image = images.read_image(vmlinuz)
    (cache_folder() / "symbols" / f"{image.digest}.txt").write_text(kallsyms(), encoding="utf-8")
    without(monkeypatch, missing)
    if missing == "busybox":
        monkeypatch.setattr(first_files, "busybox", lambda: programs.program("busybox"))
    status, out, err = run(command, "--image", "vmlinuz", *(("-o", "r.json") if command == "record" else ()))
    assert (status, out, one_line(err)) == (2, "", MISSING[missing])
    assert not Path("r.json").exists()


@pytest.mark.parametrize("command", ["record", "check", "fuzz"])
def test_without_any_program_no_kernel_is_fetched(
    run: Run, vmlinuz: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(images, "_KEYRING", str(vmlinuz))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(programs.shutil, "which", lambda name, path=None: None)
    status, out, err = run(command, "--kernel", "6.12", *(("-o", "r.json") if command == "record" else ()))
    assert (status, out, one_line(err)) == (2, "", "apt-get is not there: install the package apt")


def stuck(*args: object, **options: object) -> dict[str, object]:
    raise GuestError("the guest did not come back within 60 s", ("[ 1.0] Linux version 6.12", "BUG: \x1b[31mpanic"))


def test_the_last_words_of_a_guest(run: Run, vmlinuz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indented, before the one line; not the user's fault, so the status is 1.  Nothing that a terminal would obey."""
    monkeypatch.setattr(cli_kernel, "record", stuck)
    text = "    [ 1.0] Linux version 6.12\n    BUG: \\x1b[31mpanic\nrmpcore: the guest did not come back within 60 s\n"
    assert run("record", "--image", "vmlinuz", "-o", "r.json") == (1, "", text)
    assert not Path("r.json").exists()
    assert run("check", "--image", "vmlinuz", "--keep", "kept") == (1, "", text)
    assert list(Path("kept").iterdir()) == []


def test_a_guest_that_hangs_while_its_symbols_are_asked(
    run: Run, vmlinuz: Path, bin_: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, all the way from a program that fails."""
    qemu(bin_, "echo 'Kernel panic - not syncing' > \"$console\"; exit 1")
    text = "    Kernel panic - not syncing\nrmpcore: QEMU ended with status 1\n"
    assert run("record", "--image", "vmlinuz", "-o", "r.json") == (1, "", text)
    assert run("check", "--image", "vmlinuz") == (1, "", text)
    assert not Path("r.json").exists()


def golden(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return value


def test_a_recording_is_written_and_summed_up(run: Run, vmlinuz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for reaches the recording; figures are those of the recorded kernel, counted by hand."""
    value, given = golden("6.12_pc-4g_snp"), {}

    def record(image: Any, layout: Any, source: Any, module: Any, progress: Any) -> dict[str, Any]:
        given.update(image=image, layout=layout, source=source, module=module)
        return value

    monkeypatch.setattr(cli_kernel, "record", record)
    Path("m.ko").write_bytes(b"module")
    options = ["--memory", "3333M", "--cmdline", "nopat", "--la57", "--qemu", "-machine", "--qemu", "q35"]
    status, out, err = run(
        "record", "--image", "vmlinuz", *options, "--calls", "7", "--seed", "3", "--module", "m.ko", "-o", "r.json"
    )
    assert (status, err) == (0, "")
    assert json.loads(Path("r.json").read_text(encoding="utf-8")) == value
    assert given["image"].release == "6.12.95+deb12-amd64"
    assert given["layout"] == Layout("3333M", "nopat", "EPYC,-svm,+la57", ("-machine", "q35"))
    assert (given["source"].count, given["module"]) == (7, b"module")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["kernel", "direct", "calls", "executed"]
    counts = [value[when]["page_counts"] for when in ("boot", "before", "after")]
    assert lines[1].split(None, 2)[2] == ", ".join(
        f"{size.upper()} {' -> '.join(f'{count[size]:,}' for count in counts)}" for size in ("4k", "2m", "1g")
    )
    assert lines[2].split()[1] == "1,057,"


@pytest.mark.parametrize("keep", [True, False])
def test_a_check_passes_or_not(run: Run, vmlinuz: Path, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    value = golden("6.12_pc-1g_dmap")
    monkeypatch.setattr(cli_kernel, "record", lambda *args: value)
    options = ("--keep", "kept") if keep else ()
    status, out, err = run("check", "--image", "vmlinuz", *options)
    assert (status, err) == (0, "")
    assert [line[:4] for line in out.splitlines()] == ["PASS", "PASS"]  # native and oracle
    value["calls"][3]["ret"] = -12
    status, out, err = run("check", "--image", "vmlinuz", *options)
    assert (status, err) == (1, "")
    assert sum(line.startswith("FAIL") for line in out.splitlines()) == 2
    assert (sorted(os.listdir("kept")) if keep else []) == (["6.12.95+deb12-amd64.json"] if keep else [])


@pytest.mark.parametrize(
    "command", [("check", "--image", "vmlinuz", "--keep"), ("fuzz", "--kernel", "./vmlinuz", "-o")]
)
def test_a_file_where_a_folder_should_be(
    run: Run, vmlinuz: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """It shows before a kernel is booted."""
    monkeypatch.setattr(cli_kernel, "record", stuck)
    monkeypatch.setattr(cli_kernel, "run_round", stuck)
    status, out, err = run(*command, "vmlinuz")
    assert (status, out, one_line(err)) == (2, "", "vmlinuz: File exists")
