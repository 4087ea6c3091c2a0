"""What only a C program can see: bytes in simulated memory, calls in bulk, many threads on one table (tests/c/)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from headers import compiler, optimised

import rmpcore

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "csrc").glob("*.c"), *(ROOT / "csrc/hosted").glob("*.c")]


def run(name: str, tmp_path: Path, *arguments: str) -> str:
    """Build a program of tests/c with the core's sources, and run it; what it prints."""
    program = tmp_path / name
    flags = ["-std=c11", *optimised(), f"-I{rmpcore.get_include()}", "-lpthread"]
    sources = [ROOT / f"tests/c/{name}.c", *SOURCES]
    subprocess.run([*compiler(), *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_layout(tmp_path: Path) -> None:
    """rmp §1.1, §1.6, §1.7: entries and counters are where the rules say, byte for byte."""
    assert run("layout", tmp_path) == ""


def test_checks_in_bulk(tmp_path: Path) -> None:
    """rmp §3.2: many accesses in one call, as one by one; entries that were written past the library (§3.1)."""
    assert run("checks", tmp_path) == ""


def test_threads_on_one_table(tmp_path: Path) -> None:
    """rmp §2.9: nothing is lost, torn or done twice.  (.ci/run does the same ten times as long, under TSan.)"""
    assert run("threads", tmp_path, "1000000", "4").startswith("1000000 operations, 4 threads: ")
