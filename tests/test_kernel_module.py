"""examples/linux-module in a real kernel: the kernel's own functions, on an RMP that the C core keeps in the guest.

A machine of each backend starts from what the debugger reads of the guest, and has to say what the guest then does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kernel_guest import ROOT, Steps, Trace, build, expanded, headers, left_running, require_programs

from rmpcore.conform import conform
from rmpcore.kernel.errors import GuestError
from rmpcore.kernel.guest import Layout
from rmpcore.kernel.image import Image, find_image
from rmpcore.kernel.session import Session
from rmpcore.klog import kernel_log
from rmpcore.machine import BACKENDS, Machine
from rmpcore.maps import MachineMap
from rmpcore.ops import EventKind, Kind, Op, OpCode, OpFlag, format_result, parse_op
from rmpcore.state import State, diff_entries

pytestmark = pytest.mark.kernel

VERSION = "6.12"
MEMORY = "1G"
CALLS = 1500
LIMIT = 20
"""overlap_limit while there are random calls; at other times it is the module's own."""
OWN_LIMIT = 1000
"""As examples/linux-module/README.md has it."""
INSTRUCTIONS = {"RMPUPDATE": EventKind.RMPUPDATE, "PSMASH": EventKind.PSMASH}
SIZES = ("direct_map_4k", "direct_map_2m", "direct_map_1g")
Said = dict[str, list[str]]

RANDOM_CALLS = f"""
echo 1 > /proc/sys/kernel/printk
insmod /rmpcore.ko overlap_limit={LIMIT} || poweroff -nf
N=$(sed -n '1s/.* \\(0x[0-9a-f]*\\) frames/\\1/p' $log)
for block in {" ".join(Trace.BLOCKS)}; do eval "$block=$(frames 9)"; done
W=$(frames 10)
sync
dmesg -c > /dev/null
cat > /trace <<END
%s
END
{{
    tell wrote; cat /trace > $call && echo all
    tell log; cat $log
    tell state; cat /proc/rmpcore/state
    tell dmesg; dmesg -c | grep 'SEV-SNP: '
}} > /dev/ttyS1 2>&1
sync
"""
ERRORS = """
try() { tell "$1"; shift; dmesg -c > /dev/null; echo "$*" > $call; dmesg -c; tail -n 1 $log; }
{
    tell reload; rmmod rmpcore && insmod /rmpcore.ko && cat /proc/rmpcore/state && echo empty
    A=$(frames 9) B=$(frames 9) C=$(frames 9)
    tell frames; printf 'A=%d\\nB=%d\\nC=%d\\n' $A $B $C
    echo "rmp_make_private pfn=$((A+3)) gpa=0x3000 level=4K asid=5" > $call
    try overlap-2m "rmp_make_private pfn=$A gpa=0x200000 level=2M asid=5"
    echo "rmp_make_private pfn=$B gpa=0x200000 level=2M asid=5" > $call
    try overlap-4k "rmp_make_shared pfn=$((B+9)) level=4K"
    echo "rmp_make_private pfn=$C gpa=0 level=4K asid=0 immutable=1" > $call
    try immutable "rmp_make_private pfn=$C gpa=0x1000 level=4K asid=6"
    try uncovered "rmp_make_private pfn=$((N+1)) gpa=0x1000 level=4K asid=6"
    try no-section "rmp_make_private pfn=$((N+0x10000)) gpa=0x1000 level=4K asid=6"
    try lookup "snp_lookup_rmpentry pfn=$((N+1))"
    try psmash-4k "psmash pfn=$((A+3))"
    try psmash-no-section "psmash pfn=$((N+0x10000))"
    try misaligned "RMPUPDATE pa=$(((A+1)*4096)) gpa=0 assigned=1 size=2M asid=5"
} > /dev/ttyS1 2>&1
"""
BAD_LINES = {
    "nonsense": "no such call: nonsense",
    "psmash": "psmash: argument pfn is missing",
    "psmash pfn": "psmash: pfn is not key=value",
    "psmash pfn=-1": "psmash: pfn cannot be -1",
    "psmash pfn=1 pfn=2": "psmash: argument pfn is given twice",
    "psmash pfn=1 gpa=2": "psmash: unknown argument gpa",
    "rmp_make_shared pfn=1 level=9K": "rmp_make_shared: level cannot be 9K",
    "set_memory_4k pfn=1 pages=0": "set_memory_4k: not all of these are frames of memory",
    "set_memory_np pfn=0x1000000 pages=1": "set_memory_np: not all of these are frames of memory",
    "inject code=256": "inject: ",
    "alloc order=11": "alloc: order is 11, and at most 10",
}
"""Lines that say nothing that can be done, and what the kernel's log has to say of each."""
REFUSED = "".join(f'bad {number} "{line}"\n' for number, line in enumerate(BAD_LINES))
REMOVED = """
bad() { tell "bad $1"; dmesg -c > /dev/null; echo "$2" > $call && echo taken; dmesg -c; }
{
%s
    tell alive; echo "snp_lookup_rmpentry pfn=1" > $call; tail -n 1 $log
    rmmod rmpcore
    tell off; insmod /rmpcore.ko host=0
    A=$(frames 0)
    for name in psmash snp_lookup_rmpentry; do echo "$name pfn=$A" > $call; tail -n 1 $log; done
    echo "rmp_make_private pfn=$A gpa=0 level=4K asid=1" > $call; tail -n 1 $log
    echo "rmp_make_shared pfn=$A level=4K" > $call; tail -n 1 $log
    rmmod rmpcore
    tell on-again; insmod /rmpcore.ko; cat /proc/rmpcore/state
    A=$(frames 0)
    echo "rmp_make_private pfn=$A gpa=0x5000 level=4K asid=7" > $call; tail -n 1 $log
    echo "snp_lookup_rmpentry pfn=$A" > $call; tail -n 1 $log
    rmmod rmpcore; tell gone; ls /proc/rmpcore
} > /dev/ttyS1 2>&1
sync
"""


@dataclass(frozen=True)
class Subject:
    """The kernel and the module built for it."""

    arguments: dict[str, str]
    """Of make, for modules of this kernel."""
    image: Image
    module: bytes
    path: Path


@dataclass(frozen=True)
class Story:
    """What was seen of one guest."""

    release: str
    map: MachineMap
    trace: list[str]
    before: State
    after: State
    calls: Said
    """What the guest said of the random calls."""
    errors: Said
    """And of single ones."""
    left: list[str]
    """What of it still ran when it was done with."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    require_programs()
    arguments = headers(VERSION)
    folder = tmp_path_factory.mktemp("module")
    module = build(arguments, folder)
    release = Path(arguments["KDIR"]).name.removeprefix("linux-headers-")
    return Subject(arguments, find_image(release), module, folder / "rmpcore.ko")


@pytest.fixture(scope="module")
def story(subject: Subject) -> Story:
    """One guest for most of the tests: random calls, then errors, then a module that comes and goes."""
    trace = list(Trace(1, CALLS).lines())
    script = RANDOM_CALLS % "\n".join(trace) + ERRORS + REMOVED % REFUSED
    with Steps(subject.image, Layout(MEMORY, "log_buf_len=16M"), subject.module, script) as guest:
        guest.begin()
        guest.go_on()
        calls, after = guest.heard(), guest.look()
        assert left_running()
        guest.go_on()
        errors = guest.heard()
    return Story(subject.image.release, guest.map, trace, guest.before, after, calls, errors, left_running())


# --- the kernel's headers ------------------------------------------------------------------------------------------


def kernel_headers(scratch: Path, *arguments: object) -> tuple[int, str, str]:
    """Run the tool where apt knows of no archive, and nothing is in the cache."""
    (scratch / "apt.conf").write_text('Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "/dev/null";')
    environment = os.environ | {"APT_CONFIG": str(scratch / "apt.conf"), "XDG_CACHE_HOME": str(scratch / "cache")}
    command = [sys.executable, ROOT / "tools/kernel_headers.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


def test_headers_are_kept(subject: Subject, tmp_path: Path) -> None:
    """What is there is not asked for again."""
    arguments = "".join(f"{name}={value}\n" for name, value in subject.arguments.items())
    folder = Path(subject.arguments["KDIR"]).parents[3]
    assert kernel_headers(tmp_path, VERSION, folder) == (0, arguments, "")


def test_half_a_folder_is_none(tmp_path: Path) -> None:
    """Where a run was ended its scratch folder stays behind, which is not taken for a release."""
    (tmp_path / "headers/.scratch" / f"{VERSION}.1-amd64").mkdir(parents=True)
    status, out, err = kernel_headers(tmp_path, VERSION, tmp_path / "headers")
    assert (status, out) == (2, "")
    assert err.startswith("kernel_headers: this machine's apt knows no mirror of Debian")
    assert err.count("\n") == 1


@pytest.mark.parametrize("version", ["6", "six", "6.12/../x"])
def test_what_is_no_version(version: str, tmp_path: Path) -> None:
    status, out, err = kernel_headers(tmp_path, version)
    assert (status, out, err) == (2, "", f"kernel_headers: {version}: is not a version as 6.12\n")


# --- random calls --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """What was executed: its kind, RAX, its input's two halves, and the code."""

    kind: EventKind
    rax: int
    low: int
    high: int
    code: int


@dataclass
class Called:
    """A line of the module's log, with the instructions before it and how often each was executed."""

    op: Op
    answer: str
    counts: tuple[int, ...]
    instructions: list[tuple[Instruction, int]]


def read_instruction(text: str) -> tuple[Instruction, int]:
    """A line of the log about an instruction; the layout of the input is rmp §1.5."""
    found = re.fullmatch(r"# ((RMPUPDATE|PSMASH) .*?)  = (\d+)(?: FAIL_\w+)?(?:  \((\d+) times more\))?", text)
    assert found is not None, text
    op = parse_op(found[1])
    low = high = 0
    if found[2] == "RMPUPDATE":
        assigned, large, immutable = (
            bool(op.flags & flag) for flag in (OpFlag.ASSIGNED, OpFlag.SIZE_2M, OpFlag.IMMUTABLE)
        )
        low, high = op.gpa, assigned | large << 8 | immutable << 16 | op.id << 32
    return Instruction(INSTRUCTIONS[found[2]], op.addr, low, high, int(found[3])), 1 + int(found[4] or 0)


def read_log(lines: list[str]) -> Iterator[Called]:
    instructions = []
    for line in lines:
        text, _, rest = line.partition("  # ")
        if line.startswith(("# rmpcore: ", "# alloc ")):
            continue
        if line.startswith("# "):
            instructions.append(read_instruction(line))
        elif line.startswith("inject "):
            yield Called(parse_op(line), "", (), [])
        else:
            found = re.fullmatch(r"(= .*)  4k=(\d+) 2m=(\d+) 1g=(\d+)", rest)
            assert found is not None, line
            yield Called(parse_op(text), found[1], tuple(map(int, found.groups()[1:])), instructions)
            instructions = []
    assert not instructions


def executed(events: np.ndarray) -> list[Instruction]:
    rows = [row for row in events.tolist() if row[0] in INSTRUCTIONS.values()]
    return [
        Instruction(EventKind(kind), a, *((b, c) if kind == EventKind.RMPUPDATE else (0, 0)), code)
        for kind, _, _, code, a, b, c in rows
    ]


def complaints(lines: list[str]) -> list[str]:
    """The kernel's complaints, each as one text; without those about the code with which the module ends repeating."""
    texts = "\n".join(lines).split("SEV-SNP: RMPUPDATE failed for ")
    assert texts[0] == ""
    return [text.rstrip("\n") for text in texts[1:] if ", ret: 255" not in text.partition("\n")[0]]


def test_the_random_calls_are_what_they_should_be(story: Story) -> None:
    """All were made, and among them was everything that the other tests compare."""
    called = list(read_log(story.calls["log"]))
    assert story.calls["wrote"] == ["all"]
    names = {"N": story.map.max_pfn + 1}
    allocated = [int(line.partition("pfn=")[2], 0) for line in story.calls["log"] if line.startswith("# alloc ")]
    names |= dict(zip((*Trace.BLOCKS, "W"), allocated, strict=True))
    assert [call.op for call in called] == [parse_op(expanded(line, names)) for line in story.trace]
    assert len(called) >= CALLS
    codes = Counter((one.kind.name, one.code) for call in called for one, _ in call.instructions)
    # rmp §2.2: FAIL_INPUT, FAIL_PERMISSION, FAIL_OVERLAP; §2.3: FAIL_BADADDR; 3 and 6 are injected only
    assert {("RMPUPDATE", code) for code in (0, 1, 2, 3, 4, 6)} | {("PSMASH", code) for code in (0, 1, 7)} <= set(codes)
    answers = Counter(call.answer for call in called)
    assert min(answers[text] for text in ("= 0", "= -14", "= -22", "= hangs, FAIL_OVERLAP for ever")) >= 2
    assert min(answers[f"= 0 assigned={a} level={level}"] for a, level in ((0, "4K"), (1, "4K"), (1, "2M"))) >= 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_calls(story: Story, backend: str) -> None:
    """host §1, direct-map §4, rmp §2: each return, instruction and count of leaves; at the end the whole RMP, the whole
    direct map, and what the kernel complained about."""
    machine = Machine(story.map, kernel=story.release, backend=backend, state=story.before)
    machine.record_events(True)
    log = []
    for number, call in enumerate(read_log(story.calls["log"])):
        result = machine.apply(call.op)
        if call.op.op == OpCode.inject:
            continue
        place = f"{number}: {call.op}"
        assert call.answer == format_result(call.op, result), place
        events = machine.take_events()
        log += kernel_log(events)
        ours = executed(events)
        theirs = [one for one, times in call.instructions for _ in range(times)]
        if result.kind == Kind.HANG:  # the model executes once what is repeated for ever, and the module LIMIT times
            ours += [ours[-1]] * (LIMIT - 1)
        assert theirs == ours, place
        assert call.counts == tuple(machine.counters()[name] for name in SIZES), place
    state = machine.state()
    entries = [re.fullmatch(r"pfn=(\w+) lo=(\w+) hi=(\w+)", line) for line in story.calls["state"]]
    assert [tuple(int(text, 0) for text in found.groups()) for found in entries] == state.rmp.tolist()
    assert len(entries) > 100
    leaves, theirs = (one.leaves[one.leaves["window"] == 0] for one in (state, story.after))
    assert list(diff_entries(theirs, leaves, "kernel", backend)) == []
    said = [re.sub(r"^\[ *\d+\.\d+\] ", "", line) for line in story.calls["dmesg"]]
    assert complaints(said) == complaints(log)


# --- single errors -------------------------------------------------------------------------------------------------


def said_of(story: Story, name: str) -> tuple[list[str], str]:
    """The kernel's log about a call, from it and from the module, and the module's line."""
    *lines, last = story.errors[name]
    texts = [re.sub(r"^\[ *\d+\.\d+\] ", "", line) for line in lines]
    return [text for text in texts if text.startswith(("SEV-SNP: ", "rmpcore: "))], last


def frame(story: Story, name: str, more: int = 0) -> int:
    if name == "N":
        return story.map.max_pfn + 1 + more
    return int(dict(line.split("=") for line in story.errors["frames"])[name]) + more


@pytest.mark.parametrize(
    ("name", "block", "more", "level", "call"),
    [
        ("overlap-2m", "A", 0, 2, "rmp_make_private pfn={:#x} gpa=0x200000 level=2M asid=5"),
        ("overlap-4k", "B", 9, 1, "rmp_make_shared pfn={:#x} level=4K"),
    ],
)
def test_overlap_is_ended(story: Story, name: str, block: str, more: int, level: int, call: str) -> None:
    """rmp §2.2 rows 8b and 9, host §1: the kernel would repeat it for ever.  The module ends it, and both say so."""
    pfn = frame(story, block, more)
    messages, line = said_of(story, name)
    assert re.fullmatch(
        rf"rmpcore: RMPUPDATE of {pfn << 12:#x} at rmpupdate\S*: "
        rf"FAIL_OVERLAP \(4\) {OWN_LIMIT} times, really for ever; ended with code 255",
        messages[0],
    )
    assert messages[1] == f"SEV-SNP: RMPUPDATE failed for PFN {pfn:x}, pg_level: {level}, ret: 255"
    assert line.startswith(f"{call.format(pfn)}  # = hangs, FAIL_OVERLAP for ever  4k=")


@pytest.mark.parametrize(
    ("name", "block", "more", "code", "call"),
    [
        # rmp §2.2 row 6, and row 5
        ("immutable", "C", 0, 2, "rmp_make_private pfn={:#x} gpa=0x1000 level=4K asid=6"),
        ("uncovered", "N", 1, 1, "rmp_make_private pfn={:#x} gpa=0x1000 level=4K asid=6"),
    ],
)
def test_refused_instructions(story: Story, name: str, block: str, more: int, code: int, call: str) -> None:
    """host §1: any code but 0 and FAIL_OVERLAP is complained about, and the return is -EFAULT."""
    pfn = frame(story, block, more)
    messages, line = said_of(story, name)
    assert messages[0] == f"SEV-SNP: RMPUPDATE failed for PFN {pfn:x}, pg_level: 1, ret: {code}"
    assert line.startswith(f"{call.format(pfn)}  # = -14  4k=")


def test_an_immutable_entry_is_dumped(story: Story) -> None:
    """rmp §1.1: bit 0 is assigned, bit 2 immutable."""
    messages, _ = said_of(story, "immutable")
    found = re.fullmatch(rf"SEV-SNP: PFN {frame(story, 'C'):#x}, RMP entry: \[(0x\w+) - 0x\w+\]", messages[1])
    assert found is not None
    assert int(found[1], 0) & 0b101 == 0b101


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        # host §1: not valid, so adjust_direct_map fails and nothing is executed; outside the table; not valid
        ("no-section", "= -14"),
        ("lookup", "= -14"),
        ("psmash-no-section", "= -22"),
        # an instruction's code is no complaint: rmp §2.3, a page that is not 2 MiB-aligned, and §2.2 row 3
        ("psmash-4k", "= 1 FAIL_INPUT"),
        ("misaligned", "= 1 FAIL_INPUT"),
    ],
)
def test_refused_without_a_word(story: Story, name: str, answer: str) -> None:
    messages, line = said_of(story, name)
    assert messages == []
    assert f"  # {answer}  4k=" in line


@pytest.mark.parametrize(("number", "reason"), list(enumerate(BAD_LINES.values())))
def test_bad_lines(story: Story, number: int, reason: str) -> None:
    """The README's word: EINVAL, with the reason in the kernel's log."""
    write, *log = story.errors[f"bad {number}"]
    assert write.endswith("write error: Invalid argument")
    assert f"rmpcore: {reason}" in log[0]
    assert len(log) == 1


def test_the_guest_lives_on_after_bad_lines(story: Story) -> None:
    (line,) = story.errors["alive"]
    assert line.startswith("snp_lookup_rmpentry pfn=0x1  # = 0 assigned=0 level=4K  4k=")


def test_removing_the_module_puts_things_back(story: Story) -> None:
    """host §1: -ENODEV without SNP.  (A module with host=0 makes the calls and does not switch SNP on.)"""
    assert [re.findall(r"# (.*)  4k=", line) for line in story.errors["off"]] == [["= -19"]] * 4
    assert story.errors["reload"] == ["empty"]


def test_the_module_comes_again(story: Story) -> None:
    answers = [line.partition("  # ")[2].partition("  4k=")[0] for line in story.errors["on-again"]]
    assert answers == ["= 0", "= 0 assigned=1 level=4K"]
    assert story.errors["gone"] == ["ls: /proc/rmpcore: No such file or directory"]


# --- recordings ----------------------------------------------------------------------------------------------------


def test_a_recording_with_the_module(subject: Subject, tmp_path: Path) -> None:
    """The command line's way: the debugger makes the calls, the module in the guest does the instructions."""
    recording = tmp_path / "recording.json"
    command = [sys.executable, "-m", "rmpcore.cli", "kernel", "record", "--kernel", subject.image.release]
    command += ["--module", str(subject.path), "--memory", MEMORY, "--calls", "300", "-o", str(recording)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for backend in BACKENDS:
        result = conform(recording, backend)
        assert result.differences == []
        assert result.passed
        assert result.compared["returns"] == 300
        assert result.compared["instructions"] > 50


# --- what goes wrong -----------------------------------------------------------------------------------------------


def of_another_kernel(subject: Subject) -> bytes:
    """The module as if another kernel's headers had given other checksums (struct modversion_info: 8 bytes, name)."""
    at = subject.module.index(b"module_layout\0") - 8
    return subject.module[:at] + bytes([subject.module[at] ^ 1]) + subject.module[at + 1 :]


def test_a_guest_is_ended(story: Story) -> None:
    """It would have run for ever."""
    assert story.left == []


@pytest.mark.parametrize(
    ("cmdline", "module", "reason", "words"),
    [
        ("", of_another_kernel, "the guest ended", "rmpcore: disagrees about version of symbol module_layout"),
        ("rdinit=/nothing", lambda subject: subject.module, "the guest ended", "Kernel panic - not syncing"),
    ],
    ids=["module-of-another-kernel", "panic"],
)
def test_a_guest_that_ends(
    subject: Subject, cmdline: str, module: Callable[[Subject], bytes], reason: str, words: str
) -> None:
    """The guest's last lines say why, and nothing is left running."""
    with (
        pytest.raises(GuestError, match=reason) as caught,
        Session(subject.image, Layout(MEMORY, cmdline), module(subject)),
    ):
        pass
    assert any(words in line for line in caught.value.console), caught.value.console
    assert left_running() == []
