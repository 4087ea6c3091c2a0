"""The fuzzing harness of fuzz/: its corpus through a plain build, and, with the tools, under libFuzzer and AFL++."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import headers
import pytest

ROOT = Path(__file__).parents[1]
FUZZ = ROOT / "fuzz"
CORPUS = sorted((FUZZ / "corpus").iterdir())
CLEAN = f"{len(CORPUS)} inputs, nothing broken"
SECONDS = 20


def make(target: str, build: Path, core: Path = ROOT, **variables: str) -> Path:
    """Build one target of fuzz/Makefile, without optimisation unless asked to; the program."""
    command = ["make", "-s", "-C", str(FUZZ), f"BUILD={build}", f"CORE={core}"]
    variables = {"OPT": "-O0"} | variables
    command += [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run([*command, str(build / target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return build / target


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a build of the harness; bytes that are no text do not matter."""
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=300, env=os.environ | environment
    )


def replayed(program: Path, **environment: str) -> None:
    """The whole corpus, in one process: nothing is broken."""
    done = run([str(program), *map(str, CORPUS)], **environment)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [CLEAN]), done.stderr


def test_the_corpus_is_small() -> None:
    assert 100 < len(CORPUS) < 400
    assert sum(path.stat().st_size for path in CORPUS) < 300_000
    assert {path.name for path in CORPUS if path.name.startswith("fixed-")} == {
        f"fixed-{name}" for name in ("boot", "c-bit", "hole", "mapped", "mask", "probe")
    }


def test_replay(tmp_path: Path) -> None:
    """Every input of the corpus through the harness as a plain program."""
    replayed(make("replay", tmp_path, CC=headers.compiler()[0]))


@pytest.mark.tools
def test_libfuzzer(tmp_path: Path) -> None:
    """The corpus, and some seconds of new inputs, under both sanitizers."""
    fuzzer = make("libfuzzer", tmp_path, OPT="-O2")
    done = run([str(fuzzer), "-timeout=60", *map(str, CORPUS)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("Executed ") == len(CORPUS)
    found = tmp_path / "found"
    found.mkdir()
    limits = [f"-max_total_time={SECONDS}", "-max_len=4096", "-timeout=60", f"-artifact_prefix={tmp_path}/"]
    done = run([str(fuzzer), *limits, str(found), str(FUZZ / "corpus")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"seed corpus: files: {len(CORPUS)}" in done.stderr


@pytest.mark.tools
@pytest.mark.skipif(shutil.which("afl-clang-fast") is None, reason="no afl-clang-fast (package afl++)")
def test_afl(tmp_path: Path) -> None:
    """AFL++'s build, which runs one input after the other in one process too."""
    replayed(make("afl", tmp_path), ASAN_OPTIONS="symbolize=0")


def changed_core(folder: Path, path: str, old: str, new: str) -> Path:
    """A copy of the core with one place changed."""
    for part in ("csrc", "include"):
        shutil.copytree(ROOT / part, folder / part)
    text = (folder / path).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (folder / path).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def caught(program: Path, said: Callable[[str], bool]) -> bool:
    """Does some input of the corpus end the program, and say so?"""
    done = run([str(program), *map(str, CORPUS)], ASAN_OPTIONS="symbolize=0")
    return done.returncode != 0 and said(done.stderr)


@pytest.mark.tools
def test_a_read_out_of_bounds_is_caught(tmp_path: Path) -> None:
    """rmp §2.1, broken: an instruction that ends after its first opcode bytes is decoded past its end."""
    core = changed_core(tmp_path / "core", "csrc/emulate.c", " && i + 2 < size", "")
    assert caught(make("libfuzzer", tmp_path, core), lambda text: "AddressSanitizer: heap-buffer-overflow" in text)


@pytest.mark.tools
def test_a_broken_invariant_is_caught(tmp_path: Path) -> None:
    """rmp §1.1, broken: PSMASH that leaves the subpage count alone.  No sanitizer sees that."""
    old = "    if (rmp->hardware.subpage_count)\n        store_quad(&place->entry->lo, place->entry->lo |"
    new = old.replace("rmp->hardware.subpage_count", "0")
    core = changed_core(tmp_path / "core", "csrc/rmp_insn.c", old, new)
    program = make("replay", tmp_path, core, CC=headers.compiler()[0])
    assert caught(program, lambda text: "does not hold: rmpc_rmp_subpages(*head)" in text)


@pytest.mark.tools
def test_a_refused_op_that_left_a_trace_is_caught(tmp_path: Path) -> None:
    """op.h, broken: an op is refused, and the state is not untouched."""
    old = "    if (status != RMPC_OK)\n        done = (struct rmpc_result)"
    core = changed_core(tmp_path / "core", "csrc/op.c", old, old.replace("done =", "machine->host.retries++, done ="))
    program = make("replay", tmp_path, core, CC=headers.compiler()[0])
    assert caught(program, lambda text: "h->retries == g->retries" in text)
