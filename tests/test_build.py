"""The C core as a C programmer meets it: compiles alone and freestanding, needs nothing, holds no state."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from headers import compiler as c_compiler

import rmpcore

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "csrc").glob("*.c"))
HEADERS = sorted((ROOT / "include/rmpcore").glob("*.h"))
STRICT = ["-std=c11", "-ffreestanding", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
COMPILERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed here"),
    )
    for name in ("gcc", "clang")
]


def compile_c(compiler: str, source: Path, target: Path, *flags: str) -> None:
    subprocess.run(
        [compiler, *STRICT, *flags, f"-I{rmpcore.get_include()}", "-c", str(source), "-o", str(target)], check=True
    )


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("optimise", ["-O0", "-O2", "-O3"])
def test_core_is_freestanding(compiler: str, optimise: str, tmp_path: Path) -> None:
    """No symbol from outside but the four mem functions; no global data that can be written, even with -fPIC."""
    objects = []
    for source in CORE:
        target = tmp_path / f"{source.stem}.o"
        compile_c(compiler, source, target, optimise, "-fPIC", f"-I{ROOT / 'csrc'}")
        objects.append(str(target))
    whole = tmp_path / "core.o"
    subprocess.run(["ld", "-r", *objects, "-o", str(whole)], check=True)
    lines = subprocess.run(["nm", str(whole)], check=True, capture_output=True, text=True).stdout.splitlines()
    symbols = [(line.split()[-2], line.split()[-1]) for line in lines]
    undefined = {name for kind, name in symbols if kind == "U"}
    assert undefined - {"_GLOBAL_OFFSET_TABLE_"} <= {"memcpy", "memset", "memmove", "memcmp"}
    assert [name for kind, name in symbols if kind in "DdBbCGgSs"] == []
    assert [name for kind, name in symbols if kind == "T" and not name.startswith("rmpc_")] == []
    assert any(name == "rmpc_machine_apply" for _, name in symbols)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
def test_each_header_stands_alone(compiler: str, header: Path, tmp_path: Path) -> None:
    source = tmp_path / "alone.c"
    source.write_text(f"#include <rmpcore/{header.name}>\n#include <rmpcore/{header.name}>\nextern int unused;\n")
    compile_c(compiler, source, tmp_path / "alone.o")


def test_get_include_has_the_public_headers() -> None:
    found = {path.name for path in (Path(rmpcore.get_include()) / "rmpcore").glob("*.h")}
    assert found == {header.name for header in HEADERS}


def test_a_c_program_runs_on_the_core(tmp_path: Path) -> None:
    """examples/c/first.c: what the README shows, compiled with nothing but the core's sources."""
    program = tmp_path / "first"
    subprocess.run(
        [
            *c_compiler(),
            "-std=c11",
            f"-I{rmpcore.get_include()}",
            str(ROOT / "examples/c/first.c"),
            *map(str, CORE),
            *map(str, (ROOT / "csrc/hosted").glob("*.c")),
            "-o",
            str(program),
        ],
        check=True,
    )
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    # before: DirectMap as recorded from Linux 6.12 on this machine (tests/data/golden/6.12_pc-4g_boot.json);
    # after: one 1 GiB leaf became 512 of 2 MiB, and one of those 512 of 4 KiB
    assert done.stdout.splitlines() == [
        "before: level 1G, DirectMap4k 992, DirectMap2M 1022, DirectMap1G 4",
        "rmp_make_private: 0",
        "after: level 4K, DirectMap4k 1504, DirectMap2M 1533, DirectMap1G 3",
    ]
