"""The command line: what it prints, how it ends, and that bad input is one line and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmpcore import start
from rmpcore.inputs import load_map
from rmpcore.machine import BACKENDS, Machine, MachineLike
from rmpcore.ops import RESULT_DTYPE, Op, OpCode, Result, make_op, pack_ops
from rmpcore.recorded_calls import CALLS
from rmpcore.replay import lockstep
from rmpcore.state import COUNTERS, ENTRY_DTYPE, RMP_DTYPE, State, state_from_json, state_to_json

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/data/golden"
MAPS = ROOT / "examples/maps"
MILAN = str(MAPS / "dell-r6515-epyc7513-256g-snp.json")
TRACES = ROOT / "examples/traces"
ONE_GUEST = str(TRACES / "one-guest.trace")
SMALL_MAP = {
    "format": "rmpcore-machine-map",
    "version": 1,
    "name": "small",
    "e820": [["0x0", "0x9f000", "usable"], ["0x100000", "0x3f00000", "usable"], ["0x4000000", "0x200000", "reserved"]],
    "rmp": {"base": "0x4000000", "end": "0x40fffff"},
}
DECODE_WHAT = "give one of LO [HI], --pte VALUE with --level, --pf CODE, --npf CODE and --log FILE"
NOT_A_SIZE = "is not a power of two in GiB or TiB, as 64G"
DUMPS = json.loads((ROOT / "tests/data/machines/rmp-dumps.json").read_text(encoding="utf-8"))
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small map and a short trace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.json").write_text(json.dumps(SMALL_MAP), encoding="utf-8")
    (tmp_path / "t.trace").write_text(
        "rmp_make_private pfn=0x1005 gpa=0x1000 level=4K asid=5\npsmash pfn=0x1000\n# end\nlookup pfn=0x1005\n",
        encoding="utf-8",
    )
    return tmp_path


def one_line(err: str) -> str:
    assert err.startswith("rmpcore: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err[len("rmpcore: ") : -1]


# --- run -----------------------------------------------------------------------------------------------------------


def test_run_with_check_on_the_milan_machine(rmpcore_: Run) -> None:
    """The README's first command: the example trace on the SNP host, both machines compared."""
    status, out, err = rmpcore_("run", ONE_GUEST, "--map", MILAN, "--check")
    assert (status, err) == (0, "")
    assert "native and oracle agree" in out
    assert "RMP 0x16000000-0x568fffff" in out


@pytest.mark.parametrize(
    "map_name", ["amd-snp-512g-rmp-unaligned-end", "dell-r7625-epyc9754-768g", "dell-r7425-epyc7601-1t"]
)
def test_other_machines_boot_alike(rmpcore_: Run, folder: Path, map_name: str) -> None:
    (folder / "l.trace").write_text("lookup pfn=0x100000\nadjust_direct_map pfn=0x100000 level=4K\n", encoding="utf-8")
    status, out, err = rmpcore_("run", "l.trace", "--map", MAPS / f"{map_name}.json", "--check", "--check-every", "1")
    assert (status, err) == (0, "")
    assert "native and oracle agree after every op (3 states compared)" in out


def test_summary_as_json(rmpcore_: Run, folder: Path, backend: str) -> None:
    """Worked out by hand: 62 MiB of 2M pages but for the first; one page split; PSMASH of a 4K entry gives 7."""
    status, out, err = rmpcore_("run", "t.trace", "--map", "small.json", "--backend", backend, "--json")
    assert (status, err) == (0, "")
    summary = json.loads(out)
    assert summary["machine"]["name"] == "small"
    assert summary["machine"]["rmp"] == {"base": 0x4000000, "end": 0x40FFFFF, "frames": 0xFC00}
    assert summary["backend"] == backend
    assert summary["ops"] == 3
    assert summary["outcomes"] == {
        "rmp_make_private": {"0": 1},
        "psmash": {"7 FAIL_BADADDR": 1},
        "lookup": {"0": 1},
    }
    before, after = summary["direct_map"]["before"], summary["direct_map"]["after"]
    assert (before["2M"], before["1G"]) == (31, 0)
    assert after == {"4K": before["4K"] + 512, "2M": 30, "1G": 0}
    assert summary["splits"] == {"1G": 0, "2M": 1}
    assert summary["flushes"] == {"full": 1, "pages": 0}
    assert summary["instructions"] == {"rmpupdate": 1, "psmash": 1, "rmpread": 0}
    assert summary["rmp_entries"] == 2  # the page, and the 2M-aligned entry that counts it
    assert summary["check"] is None


def test_results_and_dump(rmpcore_: Run, folder: Path, backend: str) -> None:
    status, _, _ = rmpcore_(
        "run", "t.trace", "--map", "small.json", "--backend", backend, "--results", "r.txt", "--dump", "d.json"
    )
    assert status == 0
    assert (folder / "r.txt").read_text(encoding="utf-8") == (
        "rmp_make_private pfn=0x1005 gpa=0x1000 level=4K asid=5  = 0\n"
        "psmash pfn=0x1000  = 7 FAIL_BADADDR\n"
        "lookup pfn=0x1005  = 0 level=4K entry=0x8000000001005163 rw=1 nx=0\n"
    )
    dump = json.loads((folder / "d.json").read_text(encoding="utf-8"))
    assert (dump["format"], dump["version"], dump["kernel"], dump["hardware"]) == ("rmpcore-state", 1, "6.12", "milan")
    assert load_map("d.json") == load_map("small.json")
    machine = Machine(load_map("small.json"), backend=backend)
    for op in (make_op("rmp_make_private", pfn=0x1005, gpa=0x1000, level=1, asid=5), make_op("psmash", pfn=0x1000)):
        machine.apply(op)
    assert dump["state"] == state_to_json(machine.state())
    assert sorted(path.name for path in folder.iterdir()) == ["d.json", "r.txt", "small.json", "t.trace"]


def from_json(value: dict[str, Any]) -> State:
    """Build a State from what :func:`state_to_json` wrote, to see that nothing is left out."""
    tables = [
        (window, level, int(offset, 16), int(raw, 16))
        for window, name in enumerate(("tables", "high_tables"))
        for level, offset, raw in value[name]
    ]
    leaves = [
        (window, level, int(offset, 16) + (i << 3 + 9 * level), int(raw, 16) + i * step)
        for window, name in enumerate(("leaves", "high_leaves"))
        for level, offset, count, raw, step in value[name]
        for i in range(count)
    ]
    rmp = [
        (int(pfn, 16) + i, int(lo, 16) + i * step, int(hi, 16))
        for pfn, count, lo, step, hi in value["rmp"]
        for i in range(count)
    ]
    return State(
        root=int(value["root"], 16),
        tables=np.array(tables, dtype=ENTRY_DTYPE),
        leaves=np.array(leaves, dtype=ENTRY_DTYPE),
        rmp=np.array(rmp, dtype=RMP_DTYPE),
        counters={name: value["counters"][name] for name in COUNTERS},
        mapped=tuple(map(tuple, value["pfn_mapped"])),
        max_pfn_mapped=value["max_pfn_mapped"],
        kernel_readonly=bool(value["kernel_set_to_readonly"]),
        inject=tuple(map(tuple, value["inject"])),
        addresses=tuple((int(pfn, 16), high) for pfn, high in value["addresses"]),
        fail_alloc=tuple(value["fail_alloc"]),
        firmware_ready=bool(value["firmware_ready"]),
        **{
            name: tuple(tuple(int(number, 16) for number in row) for row in value[name])
            for name in ("in_use", "contexts", "records", "bookkeeping")
        },
    )


def test_dumped_state_holds_everything(backend: str) -> None:
    """With inverted entries, smashed and 2M RMP entries, listed addresses, injected codes and allocation failures."""
    machine = Machine(load_map(GOLDEN / "6.12_pc-4g_snp.json"), backend=backend)
    for op in (
        make_op("rmp_make_private", pfn=0x100200, gpa=0x40000000, level=2, asid=5),
        make_op("rmp_make_private", pfn=0x100400, gpa=0x40200000, level=2, asid=5),
        make_op("psmash", pfn=0x100400),
        make_op("rmp_make_private", pfn=0x100600, gpa=0x1000, level=1, asid=5, immutable=1),
        make_op("set_direct_map_invalid_noflush", pfn=0x100601),
        make_op("set_direct_map_invalid_noflush", pfn=0x100602),
        make_op("inject", code=4, count=3),
        make_op("inject", code=3),
        make_op("fail_alloc", skip=2, count=1),
        make_op("cpa_address", pfn=0x100604),
        make_op("cpa_address", pfn=0x2000, high=1),
    ):
        machine.apply(op)
    state = machine.state()
    assert len(state.addresses) == 2
    value = json.loads(json.dumps(state_to_json(state)))
    assert from_json(value) == state
    assert state_from_json(value) == state
    assert len(value["rmp"]) < 12
    assert len(value["leaves"]) < 30


def test_one_guest_dumps_the_same_from_both_backends(rmpcore_: Run, folder: Path) -> None:
    for backend in BACKENDS:
        assert (
            rmpcore_(
                "run", ONE_GUEST, "--map", MILAN, "--backend", backend, "--dump", backend, "--results", f"{backend}.txt"
            )[0]
            == 0
        )
    assert (folder / "native").read_bytes() == (folder / "oracle").read_bytes()
    assert (folder / "native.txt").read_bytes() == (folder / "oracle.txt").read_bytes()
    value = json.loads((folder / "native").read_text(encoding="utf-8"))["state"]
    assert from_json(value).counters["rmpupdate_retries"] == 8 + 16 + 24 + 32  # the four storms of the trace


def test_verbose_run_shows_what_the_kernel_logs(rmpcore_: Run, folder: Path, backend: str) -> None:
    (folder / "v.trace").write_text("inject code=2\nrmp_make_shared pfn=0x1005 level=4K\n", encoding="utf-8")
    status, out, _ = rmpcore_("run", "v.trace", "--map", "small.json", "--backend", backend, "-v")
    assert status == 0
    assert "v.trace:2: rmp_make_shared pfn=0x1005 level=4K  = -14\n" in out
    assert "    SEV-SNP: RMPUPDATE failed for PFN 1005, pg_level: 1, ret: 2\n" in out
    assert "    split 2M leaf 0x80000000010001e3 at 0xffff888001000000 into table " in out


def test_binary_trace_switches_and_kernel(rmpcore_: Run, folder: Path, backend: str) -> None:
    """A stored GPA is cut to gpa_bits; set_direct_map_valid_noflush exists from 6.13."""
    ops = [make_op("RMPUPDATE", pa=0x1005000, gpa=0xFFFF_F000, assigned=1, size=0, asid=1)]
    ops.append(make_op("set_direct_map_valid_noflush", pfn=0x1005, pages=1, valid=0))
    np.save("t.npy", pack_ops(ops))
    args = ("run", "t.npy", "--map", "small.json", "--backend", backend, "--dump", "d.json")
    assert rmpcore_(*args, "--kernel", "6.13", "--hardware", "genoa", "--switch", "gpa_bits=0x10")[0] == 0
    dump = json.loads((folder / "d.json").read_text(encoding="utf-8"))
    assert dump["switches"] == {"gpa_bits": 16}
    assert dump["state"]["rmp"][-1][2:] == [hex(1 << 51 | 0xF000 | 1), 0, "0x1f"]
    status, _, err = rmpcore_(*args)
    assert status == 2
    text = "t.npy: op 1: set_direct_map_valid_noflush pfn=0x1005 pages=1 valid=0: not an op that this kernel has"
    assert one_line(err) == text


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["run"], "Missing argument 'TRACE'."),
        (["run", "t.trace"], "give --map or --state"),
        (["run", "t.trace", "--state", "absent"], "absent: No such file or directory"),
        (["run", "t.trace", "--state", "small.json"], "small.json: is not a state dump (run --dump writes one)"),
        (["run", "t.trace", "--state", "small.json", "--start", "boot"], "either --start or --state, not both"),
        (
            ["run", "t.trace", "--map", "small.json", "--start", "boot"],
            "small.json: is not a recording: boot, before, after are states of recordings",
        ),
        (["pages", "absent"], "absent: No such file or directory"),
        (["pages", "small.json", "--diff", "small.json", "--counters"], "one of --diff, --plot and --counters"),
        (["pages", "small.json", "--diff-state", "boot"], "--diff-state needs --diff"),
        (["pages", "small.json", "--counters", "--json"], "--json goes neither with --plot nor with --counters"),
        (["pages", "small.json", "--plot", "p.pdf"], "p.pdf: the name of a picture ends in .svg or .png"),
        (["pages", "small.json", "--plot", "no/p.svg"], "no/p.svg: No such file or directory"),
        (["pages", "small.json", "--diff", "deep.json"], "4 and 5 levels of paging cannot be compared"),
        (["selftest"], "Missing option '--map'."),
        (["selftest", "--map", "absent"], "absent: No such file or directory"),
        (["run", "t.trace", "--map", "absent"], "absent: No such file or directory"),
        (["run", "absent", "--map", "small.json"], "absent: No such file or directory"),
        (["run", "small.json", "--map", "small.json"], None),
        (
            ["run", "t.trace", "--map", "t.trace"],
            "t.trace: not a machine map: neither JSON, nor a kernel log with BIOS-e820 lines, nor /proc/iomem",
        ),
        (["run", "t.trace", "--map", "small.json", "--kernel", "5.19"], None),
        (["run", "t.trace", "--map", "small.json", "--hardware", "rome"], None),
        (["run", "t.trace", "--map", "small.json", "--backend", "fpga"], None),
        (["run", "t.trace", "--map", "small.json", "--switch", "gpa_bits"], "--switch gpa_bits: is not NAME=NUMBER"),
        (["run", "t.trace", "--map", "small.json", "--switch", "nothing=1"], None),
        (["run", "t.trace", "--map", "small.json", "--check-every", "3"], "--check-every needs --check"),
        (
            ["run", "t.trace", "--map", "small.json", "--check", "-v"],
            "--verbose goes neither with --check nor with --json",
        ),
        (["run", "t.trace", "--map", "small.json", "--results", "no/r.txt"], "no/r.txt: No such file or directory"),
        (["run", "t.trace", "--map", "small.json", "--dump", "."], ".: Is a directory"),
        (["run", "bad.trace", "--map", "small.json", "--results", "r.txt"], "bad.trace:2: unknown op 'jump'"),
        (
            ["run", "beyond.trace", "--map", "small.json", "--results", "r.txt", "--dump", "d.json"],
            "beyond.trace:3: lookup pfn=0x400000000: an argument is out of range",
        ),
        (
            ["run", "beyond.trace", "--map", "small.json", "--check"],
            "beyond.trace:3: lookup pfn=0x400000000: an argument is out of range",
        ),
        (
            ["run", "t.trace", "--map", "tight.json"],
            "tight.json: RMP 0x4000000-0x4005fff: the RMP does not cover all memory and itself",
        ),
        (["conform"], "Missing argument 'FILE...'."),
        (["conform", "absent"], "absent: No such file or directory"),
        (["decode", "-"], "standard input: none of 0 lines speaks of the RMP"),
        (["decode"], "standard input: none of 0 lines speaks of the RMP"),
        (["decode", "--log", "t.trace"], "t.trace: none of 4 lines speaks of the RMP"),
        (["decode", "--log", "absent"], "absent: No such file or directory"),
        (["decode", "--log", "."], ".: Is a directory"),
        (["decode", "--log", "t.trace", "0"], DECODE_WHAT),
        (["decode", "-", "--log", "t.trace"], DECODE_WHAT),
        (["decode", "-", "0"], "LO -: is not 64 bits in hexadecimal"),
        (["decode", "--pf", "0", "--npf", "0"], DECODE_WHAT),
        (["decode", "--pf", "x"], "--pf x: is not 64 bits in hexadecimal"),
        (["decode", "--npf", ""], "--npf : is not 64 bits in hexadecimal"),
        (["decode", "--pf", "0", "--level", "2M"], DECODE_WHAT),
        (["decode", "0xgg"], "LO 0xgg: is not 64 bits in hexadecimal"),
        (["decode", "0", "1" * 17], f"HI {'1' * 17}: is not 64 bits in hexadecimal"),
        (["decode", "--pte", "0x63"], "--pte needs --level"),
        (["decode", "0", "--level", "2M"], DECODE_WHAT),
        (["decode", "0", "--pte", "0", "--level", "2M"], DECODE_WHAT),
        (["place"], "Missing option '--map'."),
        (["place", "--map", "absent"], "absent: No such file or directory"),
        (["place", "--map", "small.json"], "small.json: the map has an RMP already"),
        (["place", "--map", "bare.json", "-o", "no/p.json"], "no/p.json: No such file or directory"),
        (["place", "--map", "bare.json", "--segments", "64M"], f"--segments 64M: {NOT_A_SIZE}"),
        (["place", "--map", "bare.json", "--segments", "3G"], f"--segments 3G: {NOT_A_SIZE}"),
        (["place", "--map", "bare.json", "--segments", "0G"], f"--segments 0G: {NOT_A_SIZE}"),
        (
            ["place", "--map", "bare.json", "--segments", "4096T"],
            "bare.json: segments of 2^52 bytes: the exponent is outside 30..51",
        ),
        (["place", "--map", "tiny.json"], "tiny.json: no room for an RMP of 1 MiB in one piece of usable memory"),
        (["fly"], "No such command 'fly'."),
        (["run", "a\nb\x1b[31m", "--map", "small.json"], "a\\nb\\x1b[31m: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(
    rmpcore_: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], reason: str | None
) -> None:
    (folder / "bad.trace").write_text("lookup pfn=1\njump pfn=1\n", encoding="utf-8")
    (folder / "beyond.trace").write_text("lookup pfn=1\n\nlookup pfn=0x400000000\n", encoding="utf-8")
    tight = SMALL_MAP | {"rmp": {"base": "0x4000000", "end": "0x4005fff"}}
    (folder / "tight.json").write_text(json.dumps(tight), encoding="utf-8")
    (folder / "deep.json").write_text(json.dumps(SMALL_MAP | {"levels": 5}), encoding="utf-8")
    (folder / "bare.json").write_text(json.dumps(SMALL_MAP | {"rmp": None}), encoding="utf-8")
    tiny = SMALL_MAP | {"rmp": None, "e820": [["0x0", "0x9f000", "usable"]]}
    (folder / "tiny.json").write_text(json.dumps(tiny), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    files = sorted(folder.iterdir())
    status, out, err = rmpcore_(*args)
    assert (status, out) == (2, "")
    text = one_line(err)
    if reason is not None:
        assert text == reason
    assert sorted(folder.iterdir()) == files


def test_unwritable_output_is_found_before_the_run(rmpcore_: Run, folder: Path) -> None:
    """An existing result stays as it was, and the run does not begin."""
    (folder / "r.txt").write_text("old", encoding="utf-8")
    status, out, err = rmpcore_("run", "t.trace", "--map", "small.json", "--results", "r.txt", "--dump", "no/d.json")
    assert (status, out) == (2, "")
    assert one_line(err) == "no/d.json: No such file or directory"
    assert (folder / "r.txt").read_text(encoding="utf-8") == "old"


def test_results_may_go_to_a_pipe(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rmpcore.cli", "run", "t.trace", "--map", "small.json", "--results", "/dev/stderr"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[1] == "psmash pfn=0x1000  = 7 FAIL_BADADDR"


def in_a_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"RMPCORE": f"{sys.executable} -m rmpcore.cli"}
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, env=env, check=False)


def test_closed_pipe_is_quiet(folder: Path) -> None:
    done = in_a_shell(f"$RMPCORE run {ONE_GUEST} --map {MILAN} -v | head -1", folder)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_full_disk_is_one_line(folder: Path) -> None:
    done = in_a_shell("$RMPCORE run t.trace --map small.json > /dev/full", folder)
    assert done.returncode == 2
    assert "No space left on device" in one_line(done.stderr)
    for trace in ("t.trace", ONE_GUEST):
        done = in_a_shell(f"$RMPCORE run {trace} --map {MILAN} --results /dev/full", folder)
        assert done.returncode == 2
        assert one_line(done.stderr) == "/dev/full: No space left on device"


@pytest.mark.plain_build
def test_6_tib_under_100_mb(folder: Path) -> None:
    """The map opens, the short trace runs, and the whole process stays under 100 MB."""
    # VmHWM: the highest resident set of this program alone (getrusage inherits the parent's over exec).
    code = (
        "import sys\n"
        "from rmpcore.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0], file=sys.stderr)\n"
    )
    args = ["run", str(TRACES / "tour-of-6t.trace"), "--map", str(MAPS / "synthetic-6t.json")]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "5.977 TiB of memory" in done.stdout
    assert int(done.stderr) < 100_000


# --- save and load -------------------------------------------------------------------------------------------------


def test_going_on_from_a_dump_is_going_on(rmpcore_: Run, folder: Path, backend: str) -> None:
    """Half a trace, saved, and the other half from there: the same state as from the whole trace.  No map is needed,
    and the rules are those of the dump."""
    ops = [
        "rmp_make_private pfn=0x1005 gpa=0x1000 level=4K asid=5",
        "inject code=4 count=3",
        "fail_alloc skip=1",
        "cpa_address pfn=0x1234",
        "set_memory_ro pfn=0 pages=1 flavour=array",
        "rmp_make_shared pfn=0x1005 level=4K",
        "set_memory_4k pfn=0x2000 pages=1",
    ]
    for name, lines in (("all", ops), ("one", ops[:4]), ("two", ops[4:])):
        (folder / f"{name}.trace").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rules = ["--kernel", "7.3", "--hardware", "genoa", "--switch", "gpa_bits=40"]
    first = ["run", "one.trace", "--map", "small.json", *rules, "--backend", backend, "--dump", "one.json"]
    assert rmpcore_(*first)[0] == 0
    status, out, err = rmpcore_("run", "two.trace", "--state", "one.json", "--check", "--dump", "two.json", "--json")
    assert (status, err) == (0, "")
    summary = json.loads(out)
    assert (summary["kernel"], summary["hardware"], summary["switches"]) == ("7.3", "genoa", {"gpa_bits": 40})
    assert summary["splits"] == {"1G": 0, "2M": 1}  # the second that is asked for finds no page for its table
    whole = ["run", "all.trace", "--map", "small.json", *rules, "--backend", backend, "--dump", "all.json"]
    assert rmpcore_(*whole)[0] == 0
    assert (folder / "two.json").read_bytes() == (folder / "all.json").read_bytes()
    same = ["run", "two.trace", "--state", "one.json", "--map", "small.json", *rules, "--dump", "again.json"]
    assert rmpcore_(*same)[0] == 0
    assert (folder / "again.json").read_bytes() == (folder / "all.json").read_bytes()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--kernel", "6.1"], "the state is of a machine with kernel 6.12, not 6.1"),
        (["--hardware", "genoa"], "the state is of a machine with hardware milan, not genoa"),
        (["--switch", "gpa_bits=40"], "the state is of a machine with switch gpa_bits=default, not 40"),
        (["--map", "other.json"], "the state is of another map than other.json (rmp differs)"),
    ],
)
def test_what_is_given_beside_a_dump_has_to_agree(rmpcore_: Run, folder: Path, args: list[str], reason: str) -> None:
    (folder / "other.json").write_text(json.dumps(SMALL_MAP | {"name": "other", "rmp": None}), encoding="utf-8")
    assert rmpcore_("run", "t.trace", "--map", "small.json", "--dump", "d.json")[0] == 0
    status, out, err = rmpcore_("run", "t.trace", "--state", "d.json", *args)
    assert (status, out) == (2, "")
    assert one_line(err) == f"d.json: {reason}"


def test_release_of_the_same_kernel_agrees_with_a_dump(rmpcore_: Run, folder: Path) -> None:
    assert rmpcore_("run", "t.trace", "--map", "small.json", "--dump", "d.json")[0] == 0
    assert rmpcore_("run", "t.trace", "--state", "d.json", "--kernel", "6.12.95+deb12-amd64")[0] == 0


DUMP_CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "version": (lambda d: d.update(version=2), "version: 0x2 is outside 0x1..0x1"),
    "map": (lambda d: d["map"].pop("memory"), "map: memory is missing"),
    "map's range": (lambda d: d["map"].update(max_pfn=0), "map: max_pfn 0x0 is outside 1..0x400000000"),
    "image": (lambda d: d["map"].update(image={}), "map.image: text is missing"),
    "switch": (lambda d: d["switches"].update(gpa_bits="x"), "switches.gpa_bits: 'x' is not a number in hexadecimal"),
    "switches": (lambda d: d.update(switches=[]), "switches: is not an object"),
    "state": (lambda d: d["state"].pop("addresses"), "state: addresses is missing"),
    "contradiction": (lambda d: d["state"].update(root="0x123"), ""),
    "hardware": (lambda d: d.update(hardware="rome"), ""),
}


@pytest.mark.parametrize("what", DUMP_CHANGES)
def test_malformed_dump_is_one_line(rmpcore_: Run, folder: Path, what: str, backend: str) -> None:
    change, reason = DUMP_CHANGES[what]
    assert rmpcore_("run", "t.trace", "--map", "small.json", "--dump", "d.json")[0] == 0
    dump = json.loads((folder / "d.json").read_text(encoding="utf-8"))
    change(dump)
    (folder / "bad.json").write_text(json.dumps(dump), encoding="utf-8")
    status, out, err = rmpcore_("run", "t.trace", "--state", "bad.json", "--backend", backend)
    assert (status, out) == (2, "")
    assert one_line(err).startswith(f"bad.json: {reason}")


def test_dump_as_a_map_boots(rmpcore_: Run, folder: Path) -> None:
    assert rmpcore_("run", "t.trace", "--map", "small.json", "--dump", "d.json")[0] == 0
    assert rmpcore_("run", "t.trace", "--map", "d.json", "--dump", "e.json")[0] == 0
    assert (folder / "d.json").read_bytes() == (folder / "e.json").read_bytes()


@pytest.mark.parametrize("name", ["6.12_pc-1g_kimg", "6.18_pc-8g-la57_dmap", "6.12_pc-4g_snp"])
def test_a_recorded_state_can_be_continued(rmpcore_: Run, folder: Path, name: str) -> None:
    """The recorded calls by hand, from the recorded state before them: what the kernel had after them.  The rules are
    those of the recorded kernel."""
    path = GOLDEN / f"{name}.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for call in recorded["calls"]:
        lines += [f"inject code={code}" for code in call.get("injected", [])]
        args = zip(CALLS[call["fn"]], call["args"], strict=True)
        lines.append(" ".join([call["fn"], *(f"{arg}={value}" for arg, value in args)]))
    (folder / "calls.trace").write_text("\n".join(lines) + "\n", encoding="utf-8")
    status, out, err = rmpcore_("run", "calls.trace", "--map", path, "--start", "before", "--check", "--dump", "d.json")
    assert (status, err) == (0, "")
    assert "native and oracle agree" in out
    state = json.loads((folder / "d.json").read_text(encoding="utf-8"))["state"]
    after = recorded["after"]
    assert [state["counters"][f"direct_map_{size}"] for size in ("4k", "2m", "1g")] == list(
        after["page_counts"].values()
    )
    for window in ("leaves", "high_leaves"):
        assert unrolled(state[window]) == unrolled(after[window])


def unrolled(runs: list[list[Any]]) -> set[tuple[int, int, int]]:
    return {
        (level, int(offset, 16) + (i << 3 + 9 * level), int(raw, 16) + i * step)
        for level, offset, count, raw, step in runs
        for i in range(count)
    }


def test_snp_ops_on_a_recorded_state(rmpcore_: Run, folder: Path) -> None:
    """Whatever was recorded; from its map alone the machine has no RMP."""
    (folder / "snp.trace").write_text("rmp_make_private pfn=0x3000 gpa=0 level=2M asid=5\n", encoding="utf-8")
    path = GOLDEN / "6.12_pc-1g_kimg.json"
    for start_args, outcome in (([], {"-19 ENODEV": 1}), (["--start", "after"], {"0": 1})):
        status, out, _ = rmpcore_("run", "snp.trace", "--map", path, *start_args, "--json")
        assert status == 0
        assert json.loads(out)["outcomes"] == {"rmp_make_private": outcome}


def test_recording_of_a_boot_has_one_state(rmpcore_: Run, folder: Path) -> None:
    path = GOLDEN / "6.1_pc-1g_boot.json"
    (folder / "l.trace").write_text("lookup pfn=0x3000\n", encoding="utf-8")
    assert rmpcore_("run", "l.trace", "--map", path, "--start", "boot", "--check")[0] == 0
    status, _, err = rmpcore_("run", "l.trace", "--map", path, "--start", "after")
    assert status == 2
    assert one_line(err) == f"{path}: after is missing"


# --- disagreement --------------------------------------------------------------------------------------------------


class Liar:
    """A machine that is like another, but for one op."""

    def __init__(self, machine: MachineLike, wrong: Callable[[MachineLike, Result], Result]) -> None:
        self._machine = machine
        self._wrong = wrong
        self.backend = "oracle"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    def apply(self, op: Any) -> Result:
        result = self._machine.apply(op)
        return self._wrong(self._machine, result) if op.op == OpCode.psmash else result

    def run(self, ops: Any) -> Any:
        return np.array([tuple(self.apply(Op(*row.item()))) for row in ops], dtype=RESULT_DTYPE)


def wrong_result(machine: MachineLike, result: Result) -> Result:
    return result._replace(ret=1)


def wrong_state(machine: MachineLike, result: Result) -> Result:
    machine.write_rmp(0x1006, 1, 0)
    return result


def wrong_events(machine: MachineLike, result: Result) -> Result:
    machine.apply(make_op("RMPUPDATE", pa=0x1009000, gpa=0, assigned=0, size=0, asid=0))
    return result


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[MachineLike, Result], Result]], None]:
    """Let the oracle of ``rmpcore run`` lie after each PSMASH."""

    def install(wrong: Callable[[MachineLike, Result], Result]) -> None:
        def build(machine_map: Any, *, backend: str = "native", **options: Any) -> Any:
            machine = Machine(machine_map, backend=backend, **options)
            return Liar(machine, wrong) if backend == "oracle" else machine

        monkeypatch.setattr(start, "Machine", build)

    return install


@pytest.mark.parametrize("every", [[], ["--check-every", "1"], ["--check-every", "100"]])
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (wrong_result, ["native = 7 FAIL_BADADDR", "oracle = 1 FAIL_INPUT"]),
        (
            wrong_state,
            [
                "RMP pfn 0x1006: native [0x0000000000000000 - 0x0000000000000000] empty, "
                "oracle [0x0000000000000001 - 0x0000000000000000] assigned 4K gpa=0x0 asid=0"
            ],
        ),
        (wrong_events, ["oracle event: RMPUPDATE rax=0x1009000", "counter rmpupdate: native 1, oracle 2"]),
    ],
)
def test_first_disagreement(
    rmpcore_: Run,
    folder: Path,
    liar: Callable[..., None],
    wrong: Callable[..., Result],
    expected: list[str],
    every: list[str],
) -> None:
    """Op, line, both results and what differs; exit status 1; no output file."""
    liar(wrong)
    status, out, err = rmpcore_("run", "t.trace", "--map", "small.json", "--check", *every, "--dump", "d.json")
    assert (status, err) == (1, "")
    assert out.startswith("native and oracle disagree after t.trace:2\n  psmash pfn=0x1000\n")
    for text in expected:
        assert text in out
    assert not (folder / "d.json").exists()
    status, out, _ = rmpcore_("run", "t.trace", "--map", "small.json", "--check", *every, "--json")
    assert status == 1
    found = json.loads(out)["check"]["disagreement"]
    assert (found["place"], found["index"], found["op"]) == ("t.trace:2", 1, "psmash pfn=0x1000")


def test_disagreement_before_the_first_op(folder: Path) -> None:
    def build(name: str) -> MachineLike:
        machine = Machine(load_map("small.json"), backend=name)
        if name == "oracle":
            machine.write_rmp(5, 1, 0)
        return machine

    run = lockstep(build, pack_ops([make_op("lookup", pfn=1)]), None, lambda done: None)
    assert run.disagreement is not None
    assert run.disagreement.index == -1
    assert len(run.disagreement.lines) == 1
    assert len(run.results) == 0


# --- conform -------------------------------------------------------------------------------------------------------


def test_conform_one_line_a_recording(rmpcore_: Run, backend: str) -> None:
    files = [GOLDEN / "6.1_pc-1g_boot.json", GOLDEN / "6.12_pc-1g_dmap.json"]
    status, out, err = rmpcore_("conform", *files, "--backend", backend)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0] == (
        f"PASS  {files[0]}  boot 6.1.0-56-amd64 {backend}: "
        "compared 1,502 leaves, 4 tables, 3 counts, 1 ranges, 2 values"
    )
    assert lines[1].startswith(f"PASS  {files[1]}  dmap 6.12.95+deb12-amd64 {backend}: compared ")


def test_conform_fails_with_the_first_differences(rmpcore_: Run, tmp_path: Path, backend: str) -> None:
    value = json.loads((GOLDEN / "6.1_pc-1g_boot.json").read_text(encoding="utf-8"))
    value["boot"]["leaves"][1][3] = "0x80000000002001e1"
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    value = json.loads((GOLDEN / "6.12_pc-1g_kimg.json").read_text(encoding="utf-8"))
    value["calls"][1]["fn"] = "set_memory_blue"
    value["calls"][0]["fn"] = "_set_memory_wt"
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps(value), encoding="utf-8")
    status, out, _ = rmpcore_("conform", path, unknown, "--backend", backend)
    lines = out.splitlines()
    assert status == 1
    assert lines[0].startswith(f"FAIL  {path}  boot ")
    assert lines[1] == (
        "    boot: direct map +0x200000 level 2M (pfn 0x200): recorded 0x80000000002001e1 "
        f"[frame 0x200 P A D PSE G NX], {backend} 0x80000000002001e3 [frame 0x200 P RW A D PSE G NX]"
    )
    assert lines[11] == "    and 500 more differences"
    assert lines[12] == "    510 about flag RW (direct-map §5, §7)"
    assert lines[13].startswith("FAIL  ")
    assert lines[14] == "    not implemented: _set_memory_wt, set_memory_blue"
    assert len(lines) == 15


def test_conform_as_json_and_with_a_bad_file(rmpcore_: Run, tmp_path: Path, backend: str) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"format": "rmpcore-kernel-capture"', encoding="utf-8")
    good = GOLDEN / "6.1_pc-1g_boot.json"
    status, out, err = rmpcore_("conform", bad, good, "--backend", backend, "--json")
    assert status == 2
    assert one_line(err) == f"{bad}:1: not JSON: Expecting ',' delimiter (column 36)"
    rows = json.loads(out)
    assert rows[0]["file"] == str(bad)
    assert rows[1]["passed"]
    assert rows[1]["compared"]["leaves"] == 1502


# --- decode --------------------------------------------------------------------------------------------------------


def test_decode_of_a_real_entry(rmpcore_: Run) -> None:
    status, out, err = rmpcore_("decode", "0x6010fffffffff001", "0x000000000000001f")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "assigned 4K gpa=0xfffffffff000 asid=2 vmsa validated vmpl0=rwuxs"
    assert any(line.split() == ["60:51", "asid", "2", "owner's", "address", "space", "id"] for line in lines)
    assert rmpcore_("decode", "6010fffffffff001", "1F")[1] == out


def test_decode_of_a_real_pte(rmpcore_: Run) -> None:
    status, out, _ = rmpcore_("decode", "--pte", "80000040fdf36163", "--level", "4K")
    assert status == 0
    assert out.splitlines()[0] == "frame 0x40fdf36 P RW A D G NX"
    status, out, _ = rmpcore_("decode", "--pte", "0x800ffdffffedc020", "--level", "2M", "--json")
    assert status == 0
    value = json.loads(out)
    assert value["summary"] == "frame 0x20000123 (inverted) not present A NX"
    frame = next(field for field in value["fields"] if field["name"] == "frame")
    assert frame == {
        "bits": "51:12",
        "name": "frame",
        "value": 0x20000123,
        "meaning": "2 MiB at 0x20000123000, stored inverted because the entry is not present",
    }
    assert rmpcore_("decode", "--pte", "8000000123163", "--level", "4K", "--c-bit", "51")[1].startswith(
        "frame 0x123 P RW A D G C\n"
    )


def test_decode_names_the_state(rmpcore_: Run) -> None:
    """In the words of the ABI; the state is a line of its own, and a member of the JSON object."""
    for lo, state in ((0x6010FFFFFFFFF001, "Guest-Valid"), (4, "HV-Fixed"), (0xC028000000001005, "Pre-Swap")):
        status, out, _ = rmpcore_("decode", hex(lo))
        assert status == 0
        assert out.splitlines()[1].startswith(f"  state {state}: ")
        assert json.loads(rmpcore_("decode", hex(lo), "--json")[1])["state"] == state
    assert "state" not in json.loads(rmpcore_("decode", "--pf", "3", "--json")[1])


def test_decode_of_fault_codes(rmpcore_: Run) -> None:
    status, out, _ = rmpcore_("decode", "--pf", "0x80000003")
    assert (status, out.splitlines()[0]) == (0, "P W RMP: supervisor write, refused by the RMP")
    assert "  31  RMP  1  the RMP forbids it" in out.splitlines()
    status, out, _ = rmpcore_("decode", "--npf", "c80000005", "--json")
    value = json.loads(out)
    assert value["summary"].startswith("P US RMP ENC SIZEM: ")
    assert {field["name"] for field in value["fields"] if field["value"]} == {"P", "US", "RMP", "ENC", "SIZEM"}


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes, terminal: bool = False) -> None:
    """Give the next command this standard input."""
    stdin = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stdin, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stdin)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump["source"][-24:])
def test_decode_of_a_log(rmpcore_: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dump: dict[str, Any]) -> None:
    """From a pipe, from standard input by name, and from a file: the same."""
    data = ("\n".join(dump["lines"]) + "\n").encode()
    (tmp_path / "log").write_bytes(data)
    feed(monkeypatch, data)
    status, out, err = rmpcore_("decode")
    assert (status, err) == (0, "")
    assert out.startswith("line ")
    assert f"\n{len(dump['lines'])} lines, " in out
    for args in (("decode", "-"), ("decode", "--log", "-"), ("decode", "--log", tmp_path / "log")):
        feed(monkeypatch, data)
        assert rmpcore_(*args) == (0, out, "")
    feed(monkeypatch, data)
    value = json.loads(rmpcore_("decode", "--json")[1])
    assert value["lines"] == len(dump["lines"])
    assert [f"line {item['line']}: {item['text']}" for item in value["findings"]] == [
        line for line in out.splitlines() if line.startswith("line ")
    ]


def test_decode_with_nothing_at_a_terminal(rmpcore_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"", terminal=True)
    status, out, err = rmpcore_("decode")
    assert (status, out, one_line(err)) == (2, "", DECODE_WHAT)
    monkeypatch.setattr(sys, "stdin", None)
    for args in ((), ("-",)):
        status, out, err = rmpcore_("decode", *args)
        assert (status, out, one_line(err)) == (2, "", DECODE_WHAT)


def test_decode_of_a_log_of_any_bytes(rmpcore_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8, a line that never seems to end, and no newline at the end."""
    line = b"SEV-SNP: PFN 0x40fdf36, RMP entry: [0x6010fffffffff001 - 0x000000000000001f]"
    feed(monkeypatch, b"\xff\xfe\x00\n" + b"x" * 1_000_000 + line + b"\n" + b"\x80 " + line)
    status, out, err = rmpcore_("decode", "-")
    assert (status, err) == (0, "")
    assert out.startswith("line 3: Frame 0x40fdf36 is Guest-Valid")
    assert out.endswith("3 lines, 2 of them passed over\n")


# --- place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [(), ("--segments", "64G"), ("--segments", "1t"), ("--segments", "128GiB")])
def test_placed_map_runs(rmpcore_: Run, folder: Path, segments: tuple[str, ...], backend: str) -> None:
    """What place writes is a map that run takes, with the kernel's checks of the RMP."""
    source = MAPS / "dell-r7425-epyc7601-1t.json"
    status, out, err = rmpcore_("place", "--map", source, *segments, "-o", "p.json")
    assert (status, err) == (0, "")
    assert out.startswith("p.json: RMP 0x")
    assert out.count("\n") == 1
    assert rmpcore_("place", "--map", source, *segments) == (0, (folder / "p.json").read_text(encoding="utf-8"), "")
    value = json.loads((folder / "p.json").read_text(encoding="utf-8"))
    assert value["source"] == "rmpcore place on dell-r7425-epyc7601-1t.json"
    assert "position is an assumption" in value["notes"]
    rules = ["--kernel", "6.14", "--hardware", "turin"] if segments else []
    args = ("run", "t.trace", "--map", "p.json", "--backend", backend, "--json", *rules)
    status, out, err = rmpcore_(*args, "--dump", "d.json")
    assert (status, err) == (0, "")
    summary = json.loads(out)
    assert summary["outcomes"]["rmp_make_private"] == {"0": 1}
    rmp = summary["machine"]["rmp"]
    if segments:
        assert rmp["base"] == int(value["rmp"]["base"], 16)
        assert len(rmp["segments"]) == len(value["rmp"]["segments"])
        assert sum(part["size"] for part in rmp["segments"]) == rmp["frames"] << 12
        assert rmp["frames"] << 12 == 0x10080000000
    else:
        assert rmp == {"base": 0xFF7F600000, "end": 0x1007FEFFFFF, "frames": 0x1008FC00}
    # The dump says all of the map: the run goes on from it.
    assert rmpcore_("run", "t.trace", "--state", "d.json", "--map", "p.json", "--backend", backend)[0] == 0


def test_summary_of_a_segmented_map(rmpcore_: Run, folder: Path, backend: str) -> None:
    rmpcore_("place", "--map", MAPS / "dell-r7425-epyc7601-1t.json", "--segments", "128G", "-o", "p.json")
    rules = ("--kernel", "6.14", "--hardware", "turin", "--backend", backend)
    status, out, _ = rmpcore_("run", "t.trace", "--map", "p.json", *rules)
    assert status == 0
    assert "RMP 0x6c900000 with 9 segments of 128 GiB for 1.002 TiB" in out
    status, out, _ = rmpcore_("selftest", "--map", "p.json", "--spots", "2", *rules)
    assert (status, out[:4]) == (0, "PASS")
    assert rmpcore_("pages", "p.json", *rules)[0] == 0
    assert rmpcore_("pages", "p.json", "--plot", "p.svg", *rules)[0] == 0


def test_segmented_map_on_a_part_that_has_none(rmpcore_: Run, folder: Path, backend: str) -> None:
    """The default profile is Milan; the refusal names the map and the reason."""
    rmpcore_("place", "--map", MAPS / "dell-r7425-epyc7601-1t.json", "--segments", "128G", "-o", "p.json")
    for command in (("run", "t.trace", "--map", "p.json"), ("selftest", "--map", "p.json"), ("pages", "p.json")):
        status, out, err = rmpcore_(*command, "--backend", backend)
        assert (status, out) == (2, "")
        assert one_line(err).startswith("p.json: ")


def test_recording_cannot_be_placed(rmpcore_: Run) -> None:
    """It has a kernel image, which a firmware's table does not."""
    status, _, err = rmpcore_("place", "--map", GOLDEN / "6.1_pc-1g_boot.json")
    assert status == 2
    assert one_line(err).endswith("a machine map cannot be written of it: reserved would be lost")


def test_hardware_help_names_all_profiles(rmpcore_: Run) -> None:
    for command in ("run", "pages", "selftest"):
        assert "milan, genoa or turin" in rmpcore_(command, "--help")[1]


def test_help_without_a_command(rmpcore_: Run) -> None:
    status, _, err = rmpcore_()
    assert status == 2
    assert "Commands:" in err
    assert rmpcore_("--help")[0] == 0
