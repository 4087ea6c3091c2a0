"""A file ends too early: each kind that is read, cut at every line, small ones at every byte.

A text trace, a kernel log and /proc/iomem are lists of lines: what is left is a valid shorter one, or the last line is
refused by FILE:LINE.  JSON and .npy say how long they are: every cut is refused.  Memory images are only written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmpcore.conform import conform
from rmpcore.explain import explain
from rmpcore.inputs import load_map, map_from_iomem, map_from_log
from rmpcore.machine import Machine
from rmpcore.maps import MachineMap, MapError
from rmpcore.ops import make_op, pack_ops
from rmpcore.recording import RecordingError
from rmpcore.start import Rules, dump_to_json, read_start
from rmpcore.state import StateError
from rmpcore.trace import TraceError, read_trace

ROOT = Path(__file__).parents[1]
TRACES = sorted((ROOT / "examples/traces").glob("*.trace"))
MAPS = [
    *sorted((ROOT / "examples/maps").glob("*.json")),
    ROOT / "tests/data/machines/alienware-m18-ryzen7845hx-64g.json",
]
GOLDEN = sorted((ROOT / "tests/data/golden").glob("*.json"))
SMALL_FILE = 1600
"""Bytes of a file that is cut at every byte."""
LOG = """\
[    0.000000] Command line: quiet
[    0.000000] BIOS-provided physical RAM map:
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable
[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x00000000037fffff] usable
[    0.000000] BIOS-e820: [gap 0x0000000003800000-0x00000000038fffff]
[    0.000000] BIOS-e820: [mem 0x0000000003900000-0x00000000039fffff] ACPI data
[    0.000000] BIOS-e820: [mem 0x0000000003a00000-0x0000000003afffff] type 20
[    0.000000] BIOS-e820: [mem 0x0000000004000000-0x00000000040fffff] reserved
[    0.000000] SEV-SNP: RMP table physical range [0x0000000004000000 - 0x00000000040fffff]
[    0.000000] last line
"""
IOMEM = """\
00000000-00000fff : Reserved
00001000-0009ffff : System RAM
00100000-037fffff : System RAM
  01000000-01ffffff : Kernel code
03900000-039fffff : ACPI Tables
e0000000-efffffff : PCI MMCONFIG 0000 [bus 00-ff]
"""


def line_ends(data: bytes) -> list[int]:
    """Where each line is over, its end of line counted."""
    return [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]


def cuts(data: bytes, most: int = SMALL_FILE) -> Iterator[int]:
    """Where to cut: at every byte, in a long file before and after each end of line and in the middle of each line."""
    if len(data) <= most:
        yield from range(len(data))
        return
    start = 0
    for end in line_ends(data):
        yield from {start, (start + end) // 2, end - 1}
        start = end


def one_line(error: ValueError, path: Path) -> str:
    """What is said after the file's name."""
    text = str(error)
    assert text.startswith(f"{path}:") and "\n" not in text
    return text.removeprefix(f"{path}:")


# ---- traces ----


@pytest.mark.parametrize("source", TRACES, ids=lambda path: path.stem)
def test_text_trace(source: Path, tmp_path: Path) -> None:
    """docs/formats.md, "Traces": the ops of the whole lines, and of the last one what is left of it: an op with fewer
    digits, or FILE:LINE."""
    data = source.read_bytes()
    whole = read_trace(source)
    assert whole.lines is not None
    path = tmp_path / "cut"
    refused = taken = 0
    # of a long trace what it begins with
    for at in range(min(len(data), SMALL_FILE)):
        path.write_bytes(data[:at])
        last = data.count(b"\n", 0, at) + 1
        before = int(np.searchsorted(whole.lines, last))
        try:
            trace = read_trace(path)
        except TraceError as e:
            assert one_line(e, path).startswith(f"{last}: "), at
            refused += 1
            continue
        taken += 1
        assert trace.ops[:before].tobytes() == whole.ops[:before].tobytes(), at
        rest = data[:at].rpartition(b"\n")[2].partition(b"#")[0].strip()
        assert len(trace) == before + bool(rest), at
        if rest:
            assert trace.ops["op"][before] == whole.ops["op"][before], at
        if data[at : at + 1] == b"\n" and rest:
            assert trace.ops.tobytes() == whole.ops[: before + 1].tobytes(), at
    assert refused and taken


def test_lines_of_a_long_trace(tmp_path: Path) -> None:
    """As many ops as there are whole lines with ops."""
    source = ROOT / "examples/traces/one-guest.trace"
    data = source.read_bytes()
    whole = read_trace(source)
    assert whole.lines is not None
    path = tmp_path / "cut"
    ends = line_ends(data)
    for number in [*range(1, len(ends), 370), *range(len(ends) - 5, len(ends))]:
        path.write_bytes(data[: ends[number - 1]])
        trace = read_trace(path)
        assert trace.ops.tobytes() == whole.ops[: int(np.searchsorted(whole.lines, number, "right"))].tobytes()


def test_binary_trace(tmp_path: Path) -> None:
    """Its head says how many records there are; nothing at all is a text trace without ops."""
    file = io.BytesIO()
    np.save(file, pack_ops([make_op("psmash", pfn=0x200), make_op("lookup", pfn=1), make_op("SNP_INIT")]))
    data = file.getvalue()
    path = tmp_path / "cut"
    for at in range(len(data)):
        path.write_bytes(data[:at])
        if at == 0:
            assert len(read_trace(path)) == 0
            continue
        with pytest.raises(TraceError) as caught:
            read_trace(path)
        assert one_line(caught.value, path), at


# ---- maps ----


def table(machine: MachineMap) -> list[tuple[int, int, int]]:
    return list(machine.e820)


@pytest.mark.parametrize(("reader", "text"), [(map_from_log, LOG), (map_from_iomem, IOMEM)], ids=["log", "iomem"])
def test_lists_of_lines(reader: Callable[[str, str], MachineMap], text: str) -> None:
    """docs/formats.md, "Kernel log", "/proc/iomem": the whole lines count, a line that is begun and means nothing is
    refused by FILE:LINE.  Without a line of usable memory there is no map."""
    whole = reader(text, "f")
    taken = 0
    for at in range(len(text)):
        last = text.count("\n", 0, at) + 1
        lines, rest = text[:at].rpartition("\n")[::2]
        try:
            found = reader(text[:at], "f")
        except MapError as e:
            assert str(e).startswith("f:") and "\n" not in str(e)
            # either what is cut, or what is missing for it
            assert str(e).startswith((f"f:{last}:", "f: ")), (at, str(e))
            continue
        taken += 1
        assert found.max_pfn <= whole.max_pfn
        try:
            before = table(reader(lines, "f"))
        except MapError:
            continue
        # at most one more row than the whole lines give
        assert len(set(table(found)) - set(before)) <= 1, (at, rest)
    assert taken
    assert table(reader(text, "f")) == table(whole)


@pytest.mark.parametrize("source", MAPS, ids=lambda path: path.stem)
def test_maps(source: Path, tmp_path: Path) -> None:
    """JSON that stops is no JSON, wherever it stops."""
    refused_everywhere(source.read_bytes(), tmp_path / "cut", load_map, (MapError,))


def refused_everywhere(
    data: bytes, path: Path, read: Callable[[Path], Any], errors: tuple[type[ValueError], ...], most: int = SMALL_FILE
) -> None:
    data = data.rstrip()
    for at in cuts(data, most):
        path.write_bytes(data[:at])
        with pytest.raises(errors) as caught:
            read(path)
        assert one_line(caught.value, path), at


# ---- recordings and dumps ----


@pytest.mark.parametrize("source", GOLDEN, ids=lambda path: path.stem)
def test_recordings(source: Path, tmp_path: Path) -> None:
    """The same of recordings, for who replays them and for who starts from one."""
    data = source.read_bytes()
    path = tmp_path / "cut"
    ends = line_ends(data.rstrip())
    step = max(1, len(data) * len(ends) // 1_000_000)
    for at in [0, 1, *ends[::step], len(data.rstrip()) - 1]:
        path.write_bytes(data[:at])
        with pytest.raises((RecordingError, MapError)) as caught:
            conform(path)
        assert one_line(caught.value, path)
        with pytest.raises(MapError) as caught_too:
            read_start(path, "boot")
        assert one_line(caught_too.value, path)


@pytest.mark.parametrize("indent", [None, 1])
def test_dumps(indent: int | None, tmp_path: Path) -> None:
    """docs/formats.md, "State dump": whole, or refused."""
    machine = Machine(map_from_log(LOG))
    machine.apply(make_op("SNP_INIT"))
    machine.apply(make_op("rmp_make_private", pfn=0x405, gpa=0x5000, level=1, asid=5))
    text = json.dumps(dump_to_json(machine, Rules(hardware="milan"), machine.state()), indent=indent)
    refused_everywhere(text.encode(), tmp_path / "cut", read_start, (MapError, StateError), 1 << 20)


# ---- kernel logs that speak of the RMP ----


def test_logs_to_explain() -> None:
    """rmpcore decode --log: a log may end anywhere; what was said before stays said."""
    dumps = json.loads((ROOT / "tests/data/machines/rmp-dumps.json").read_text(encoding="utf-8"))
    text = "\n".join(line for dump in dumps for line in dump["lines"])
    lines = len(explain(text.splitlines()).findings)
    assert lines
    for at in range(0, len(text), 7):
        found = explain(text[:at].splitlines())
        assert len(found.findings) <= lines


# ---- the command line ----

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_command_line(rmpcore_: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Status 2, one line, nothing on stdout, no output file."""
    monkeypatch.chdir(tmp_path)
    Path("small.log").write_text(LOG, encoding="utf-8")
    Path("good.trace").write_text("lookup pfn=1\n", encoding="utf-8")
    assert rmpcore_("run", "good.trace", "--map", "small.log", "--dump", "good.dump")[0] == 0

    def cut(source: str | Path, name: str) -> str:
        data = Path(source).read_bytes().rstrip()
        Path(name).write_bytes(data[: int(len(data) * share)])
        return name

    np.save("good.npy", pack_ops([make_op("lookup", pfn=1)] * 50))
    words = cut(ROOT / "examples/maps/dell-r6515-epyc7513-256g-snp.json", "map.json")
    recording = cut(ROOT / "tests/data/golden/6.1_pc-1g_cpa.json", "recording.json")
    outputs = ("--results", "r.txt", "--dump", "d.json", "--image", "i.raw")
    commands: list[tuple[str, ...]] = [
        ("run", "good.trace", "--map", words, *outputs),
        ("run", "good.trace", "--map", recording, "--start", "before", *outputs),
        ("run", "good.trace", "--state", cut("good.dump", "dump.json"), *outputs),
        ("run", cut("good.npy", "cut.npy"), "--map", "small.log", *outputs),
        ("conform", recording),
        ("pages", "dump.json", "--plot", "p.svg"),
        ("selftest", "--map", words),
        ("place", "--map", words, "-o", "p.json"),
        ("workload", "--map", words, "-o", "w.trace"),
        ("compare", "--map", words, "--plot", "c.svg"),
    ]
    Path("cut.trace").write_text("lookup pfn=1\nlookup pf", encoding="utf-8")
    commands.append(("run", "cut.trace", "--map", "small.log", *outputs))
    files = sorted(tmp_path.iterdir())
    for command in commands:
        status, out, err = rmpcore_(*command)
        assert (status, out, err.count("\n")) == (2, "", 1), command
        assert err.startswith("rmpcore: ")
        assert sorted(tmp_path.iterdir()) == files, command
