"""Real kernels in QEMU: each test here boots one.  What needs no guest is in test_kernel_units.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rmpcore.conform import conform
from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.image import Image, find_image
from rmpcore.kernel.initramfs import busybox
from rmpcore.kernel.programs import program
from rmpcore.machine import BACKENDS

pytestmark = pytest.mark.kernel

RMPCORE = Path(sys.executable).with_name("rmpcore")
OLD, NEW = "6.12", "7"
"""One table for all memory, and a segmented one."""
KNOWN = {OLD: (OLD,), NEW: ("7.3", "7.2", "7.1", "7")}
"""What is taken for each: while Debian has them, kernels that were looked at before."""


def image_of(version: str) -> Image:
    """A kernel; skips where it cannot be had or be run."""
    reason = ""
    try:
        for name in ("qemu-system-x86_64", "gdb", "setpriv"):
            program(name)
        busybox()
    except KernelError as e:
        pytest.skip(str(e))
    for one in KNOWN[version]:
        try:
            return find_image(one)
        except KernelError as e:
            reason = str(e)
    pytest.skip(reason)


def rmpcore(*args: str | Path, status: int = 0) -> tuple[str, str]:
    done = subprocess.run([RMPCORE, *args], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == status, done.stderr or done.stdout
    return done.stdout, done.stderr


def guests() -> list[str]:
    """QEMUs and gdbs of ours that run on this machine, by their command lines."""
    rows = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, timeout=60, check=True).stdout
    return [row for row in rows.splitlines() if "rmpcore-" in row and ("qemu-system" in row or "gdb_agent" in row)]


def recording(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_kernel_does_what_both_models_say(tmp_path: Path, version: str) -> None:
    """The claim of the project, on a kernel that this machine fetched: a thousand calls, and no difference."""
    release = image_of(version).release
    out, _ = rmpcore("kernel", "check", "--kernel", release, "--seed", "2026", "--keep", tmp_path)
    path = tmp_path / f"{release}.json"
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["PASS", "PASS"]
    assert all("1,000 returns" in line and str(path) in line for line in lines)
    value = recording(path)
    assert len(value["calls"]) == 1000
    names = {call["fn"] for call in value["calls"]}
    assert {"rmp_make_private", "rmp_make_shared", "psmash", "snp_lookup_rmpentry", "set_memory_ro"} <= names
    codes = {(insn["insn"], insn["ret"]) for call in value["calls"] for insn in call.get("insns", [])}
    assert {("RMPUPDATE", 0), ("RMPUPDATE", 2), ("RMPUPDATE", 4), ("PSMASH", 0), ("PSMASH", 7)} <= codes
    assert value["after"]["page_counts"] != value["before"]["page_counts"]
    assert not guests()


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (OLD, ("--memory", "3G", "--cmdline", "memmap=1M$0x30000000 nopat", "--qemu", "-machine", "--qemu", "q35")),
        (NEW, ("--memory", "6G", "--la57", "--cmdline", "nogbpages pti=on")),
    ],
)
def test_other_machines(tmp_path: Path, version: str, options: tuple[str, ...]) -> None:
    path, release = tmp_path / "r.json", image_of(version).release
    rmpcore("kernel", "record", "--kernel", release, "--calls", "100", "-o", path, *options)
    value = recording(path)
    assert value["machine"]["paging_levels"] == (5 if "--la57" in options else 4)
    assert value["direct_gbpages"] == (version == OLD)
    assert ("cachemode2pte" in value) == (version == OLD)
    assert ("default_kernel_pte_mask" in value) == (version == NEW)
    for backend in BACKENDS:
        result = conform(path, backend)
        assert result.passed, result.differences


def test_a_trace_and_what_the_kernel_must_not_be_asked(tmp_path: Path) -> None:
    release = image_of(OLD).release
    trace, path = tmp_path / "t.trace", tmp_path / "t.json"
    run = ("kernel", "record", "--kernel", release, "--memory", "1G", "--ops", trace, "-o", path)

    trace.write_text(
        "rmp_make_private pfn=0x10000 gpa=0x200000 level=2M asid=5\n"
        "snp_lookup_rmpentry pfn=0x10007\n"
        "psmash pfn=0x10000\n"
        "inject code=4 count=3\ninject code=0\n"
        "rmp_make_shared pfn=0x10007 level=4K\n"
        "rmp_make_private pfn=0x10009 gpa=0x209000 level=4K asid=5 immutable=1\n"
        "rmp_make_shared pfn=0x10009 level=4K\n"
        "set_memory_ro pfn=0x10200 pages=512\n"
    )
    rmpcore(*run)
    value = recording(path)
    assert [call["ret"] for call in value["calls"]] == [0, [0, 1, 2], 0, 0, 0, -14, 0]
    assert [[insn["ret"] for insn in call.get("insns", [])] for call in value["calls"]] == [
        *([0], [], [0], [4, 4, 4, 0]),
        *([0], [2], []),
    ]
    assert conform(path).passed

    kept = path.read_bytes()
    refusals = {
        "set_memory_np pfn=0x1000 pages=1\n": "frames 0x1000 to 0x1000 are in use by the kernel",
        "rmp_make_private pfn=0x10000 gpa=0x200000 level=2M asid=5\nrmp_make_shared pfn=0x10001 level=4K\n": (
            f"{trace}:2: rmp_make_shared pfn=0x10001 level=4K: the kernel would never return from it"
        ),
    }
    for text, reason in refusals.items():
        trace.write_text(text)
        _, err = rmpcore(*run, status=2)
        assert reason in err and err.count("\n") == 1
        assert path.read_bytes() == kept
    assert not guests()


def test_a_guest_that_panics_is_told_with_its_last_lines(tmp_path: Path) -> None:
    release = image_of(OLD).release
    _, err = rmpcore(
        *("kernel", "record", "--kernel", release, "--memory", "1G", "--cmdline", "rdinit=/nothing"),
        *("-o", tmp_path / "r.json"),
        status=1,
    )
    assert "Kernel panic - not syncing" in err
    assert err.splitlines()[-1] == "rmpcore: the guest ended: a panic or a reset"
    assert not list(tmp_path.iterdir()) and not guests()


def test_nothing_is_left_of_a_command_that_is_killed(tmp_path: Path) -> None:
    release = image_of(OLD).release
    command = [RMPCORE, "kernel", "record", "--kernel", release, "--memory", "1G", "-o", tmp_path / "r.json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            if len(guests()) >= 2 or process.poll() is not None:
                break
            os.sched_yield()
        process.kill()
    for _ in range(100):
        if not guests():
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert not guests()
