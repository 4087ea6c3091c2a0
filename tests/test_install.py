"""The C library as strangers get it: their simulator (tests/foreign/) built in each way there is to link the library,
and run on the traces that the Python package runs; results, events and memory have to be the same.

Installed trees are made from a copy of the sources, so that nothing but what is copied can be needed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import machines as m
import pytest
from headers import compiler as c_compiler

import rmpcore
from rmpcore.fuzzing.host_ops import HostGenerator
from rmpcore.fuzzing.rmp_ops import Generator
from rmpcore.machine import Machine
from rmpcore.ops import EventKind, Kind, pack_ops

ROOT = Path(__file__).parents[1]
FOREIGN = ROOT / "tests/foreign"
CORE = sorted((ROOT / "csrc").glob("*.c"))
LIBRARY_SOURCES = ("cmake", "csrc", "include", "CMakeLists.txt", "LICENSE", "Makefile")
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
C11 = ["-std=c11", "-O1", *WARNINGS, "-Wconversion"]
CXX11 = ["-std=c++11", "-O1", *WARNINGS]
CC = c_compiler()


def run(*command: object, check: bool = True, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a command; its output.  A failure shows what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def abi_of(include: str | Path) -> str:
    """The ABI number that headers have."""
    return re.findall(r"(?m)^#define RMPC_ABI (\d+)$", (Path(include) / "rmpcore/api.h").read_text())[0]


def copy_sources(directory: Path) -> Path:
    """The part of the tree that the C library is made of, apart from it."""
    target = directory / "rmpcore-source"
    for name in LIBRARY_SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


# ---- what the simulator has to do ----


class Expected(NamedTuple):
    """What the Python package makes of a trace."""

    policy: str
    ops: bytes
    results: bytes
    events: bytes
    pages: dict[int, bytes]
    """Pages of memory that are not all zero, by address."""
    freed: frozenset[int]
    """Pages that were given back: what is in them is the allocator's business."""
    summary: list[str]


@functools.cache
def expected(policy: str) -> Expected:
    """Some thousand ops on a machine of this policy; with upstream mostly on the RMP, else calls of the host layer."""
    if policy == "upstream":
        ops = pack_ops(Generator("a stranger", m.SNP, {}).ops(6000))
    else:
        generator = HostGenerator("a stranger", m.SNP)
        ops = pack_ops(generator.first() + generator.ops(4000))
    machine = Machine(m.SNP, kernel="6.12", hardware="milan", policy=policy)
    boot = [int(machine.root)] + [int(raw) & m.FRAME_MASK for raw in machine.state().tables["raw"]]
    machine.record_events(True)
    results = machine.run(ops)
    events = machine.take_events()
    freed: set[int] = set()
    for kind, address in zip(events["kind"].tolist(), events["a"].tolist(), strict=True):
        if kind == EventKind.TABLE_FREE:
            freed.add(address)
        elif kind == EventKind.TABLE_ALLOC:
            freed.discard(address)
    pages = {}
    for base, content in machine.memory():
        rows = content.reshape(-1, 4096)
        pages |= {base + int(at) * 4096: rows[at].tobytes() for at in rows.any(axis=1).nonzero()[0]}
    counters, census = machine.counters(), machine.census()
    summary = [
        f"leaves {census['4k']} {census['2m']} {census['1g']} missing {census['missing']}",
        f"splits {counters['level2_splits']} tables {counters['table_pages']}",
        "instructions "
        + " ".join(str(counters[n]) for n in ("rmpupdate", "psmash", "rmpread", "pvalidate", "rmpadjust", "rmpquery")),
    ]
    assert set(boot).isdisjoint(freed)
    return Expected(policy, ops.tobytes(), results.tobytes(), events.tobytes(), pages, frozenset(freed), summary)


def records(data: bytes, size: int) -> list[bytes]:
    assert len(data) % size == 0
    return [data[at : at + size] for at in range(0, len(data), size)]


def assert_does_as_python(program: Path, tmp_path: Path, **environment: object) -> None:
    """Run the simulator on the traces and compare all that it leaves."""
    for policy in ("upstream", "split-restore"):
        want = expected(policy)
        out = tmp_path / policy
        out.mkdir()
        done = subprocess.run(
            [program, policy, out],
            input=want.ops,
            capture_output=True,
            env=os.environ | {name: str(value) for name, value in environment.items()},
        )
        assert (done.returncode, done.stderr.decode()) == (0, "")
        assert done.stdout.decode().splitlines() == want.summary
        assert records((out / "results").read_bytes(), 24) == records(want.results, 24)
        assert records((out / "events").read_bytes(), 32) == records(want.events, 32)
        pages = {int.from_bytes(row[:8], "little"): row[8:] for row in records((out / "pages").read_bytes(), 4104)}
        assert pages.keys() - want.freed == want.pages.keys() - want.freed
        assert [hex(pa) for pa in want.pages.keys() - want.freed if pages[pa] != want.pages[pa]] == []


def test_the_traces_reach_what_is_compared() -> None:
    """Every kind of result, and splits, tables that are given back, and entries of both halves of the RMP."""
    both = [expected(policy) for policy in ("upstream", "split-restore")]
    kinds = {record[4] for want in both for record in records(want.results, 24)}
    assert kinds == {int(kind) for kind in Kind}
    events = {int.from_bytes(record[:2], "little") for want in both for record in records(want.events, 32)}
    assert {EventKind.SPLIT, EventKind.COLLAPSE, EventKind.TABLE_FREE, EventKind.FAULT, EventKind.FLUSH_ALL} <= events
    for want in both:
        assert any(pa >= 64 * m.MIB for pa in want.pages)
        assert sum(pa < 64 * m.MIB for pa in want.pages) > 3  # more than the tables of a fresh machine


# ---- sources taken in: what every machine can do ----


def test_plain_sources(tmp_path: Path) -> None:
    """All of csrc/ handed to the compiler beside the simulator."""
    program = tmp_path / "simulator"
    run(*CC, *C11, f"-I{ROOT / 'include'}", FOREIGN / "main.c", *CORE, "-o", program)
    assert_does_as_python(program, tmp_path)


def amalgamate(directory: Path) -> Path:
    run(sys.executable, ROOT / "tools/amalgamate.py", directory)
    assert sorted(path.name for path in directory.iterdir()) == ["rmpcore.c", "rmpcore.h"]
    return directory


def test_amalgamation(tmp_path: Path) -> None:
    """Two files, which need nothing of the tree that they were made from."""
    sources = amalgamate(tmp_path / "taken-in")
    program = tmp_path / "simulator"
    run(*CC, *C11, "-DAMALGAMATED", f"-I{sources}", FOREIGN / "main.c", sources / "rmpcore.c", "-o", program)
    assert_does_as_python(program, tmp_path)


def test_amalgamation_is_freestanding(tmp_path: Path) -> None:
    sources = amalgamate(tmp_path / "taken-in")
    run(*CC, *C11, "-ffreestanding", "-c", sources / "rmpcore.c", "-o", tmp_path / "rmpcore.o")
    lines = run("nm", tmp_path / "rmpcore.o").stdout.splitlines()
    undefined = {line.split()[-1] for line in lines if line.split()[-2] == "U"}
    assert undefined - {"_GLOBAL_OFFSET_TABLE_"} <= {"memcpy", "memset", "memmove", "memcmp"}
    assert any(line.endswith(" T rmpc_machine_run") for line in lines)
    assert [line for line in lines if line.split()[-2] == "T" and not line.split()[-1].startswith("rmpc_")] == []


@pytest.mark.plain_build
def test_python_package(tmp_path: Path) -> None:
    """get_include() and get_library(): what an installed wheel has."""
    program = tmp_path / "simulator"
    run(*CC, *C11, f"-I{rmpcore.get_include()}", FOREIGN / "main.c", rmpcore.get_library(), "-o", program)
    assert_does_as_python(program, tmp_path)


@pytest.mark.plain_build
def test_a_library_of_another_abi_is_refused(tmp_path: Path) -> None:
    """The simulator's own first question: headers of one ABI, a library of another."""
    headers = tmp_path / "include/rmpcore"
    shutil.copytree(rmpcore.get_include() + "/rmpcore", headers)
    text, count = re.subn(r"(?m)^#define RMPC_ABI (\d+)$", "#define RMPC_ABI 7", (headers / "api.h").read_text())
    assert count == 1
    (headers / "api.h").write_text(text)
    program = tmp_path / "simulator"
    run(*CC, *C11, f"-I{headers.parent}", FOREIGN / "main.c", rmpcore.get_library(), "-o", program)
    done = run(program, "upstream", tmp_path, check=False)
    has = abi_of(rmpcore.get_include())
    line = f"built for ABI 7 of rmpcore, but the library has {has} (version {rmpcore.__version__})"
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (3, "", [line])


# ---- installed trees: what needs CMake, pkg-config and a C++ compiler ----


def pkg_config(directory: Path, *arguments: str) -> list[str]:
    """What pkg-config says about the rmpcore.pc of a directory."""
    return shlex.split(run("pkg-config", *arguments, "rmpcore", PKG_CONFIG_PATH=directory).stdout)


def needed(program: Path) -> list[str]:
    """The shared libraries that a program asks for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", program).stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """make install into a staging directory, moved elsewhere afterwards: as packages of distributions are made."""
    tmp_path = tmp_path_factory.mktemp("install")
    source = copy_sources(tmp_path)
    run("make", "-C", source, "install", "PREFIX=/opt/simulators", "LIBDIR=lib", f"DESTDIR={tmp_path / 'stage'}")
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["opt"]
    moved = tmp_path / "moved"
    (tmp_path / "stage/opt/simulators").rename(moved)
    shutil.rmtree(source)
    return moved


@pytest.mark.tools
def test_what_is_installed(installed: Path) -> None:
    version = rmpcore.__version__
    library = f"lib/librmpcore.so.{version}"
    found = {str(path.relative_to(installed)): path for path in installed.rglob("*") if not path.is_dir()}
    cmake = {name for name in found if name.startswith("lib/cmake/rmpcore/")}
    assert {"lib/cmake/rmpcore/rmpcore-config.cmake", "lib/cmake/rmpcore/rmpcore-config-version.cmake"} <= cmake
    assert found.keys() - cmake == {
        *(f"include/rmpcore/{path.name}" for path in (ROOT / "include/rmpcore").glob("*.h")),
        "lib/librmpcore.a",
        "lib/librmpcore.so",
        f"lib/librmpcore.so.{abi_of(ROOT / 'include')}",
        library,
        "lib/pkgconfig/rmpcore.pc",
    }
    assert {name for name, path in found.items() if path.resolve() == installed / library} == {
        name for name in found if ".so" in name
    }
    for path in found.values():
        if path.suffix in (".pc", ".cmake"):
            assert "/opt/simulators" not in path.read_text(), "the tree could not be moved"


@pytest.mark.tools
def test_the_shared_library_shows_its_own_names_only(installed: Path) -> None:
    library = installed / "lib/librmpcore.so"
    soname = re.findall(r"\(SONAME\).*\[(.+)\]", run("readelf", "-d", library).stdout)
    assert soname == [f"librmpcore.so.{abi_of(ROOT / 'include')}"]
    names = [line.split()[-1] for line in run("nm", "-D", "--defined-only", library).stdout.splitlines()]
    assert "rmpc_machine_run" in names and "rmpc_sparse_map" in names
    headers = "".join(path.read_text() for path in (installed / "include/rmpcore").glob("*.h"))
    assert [name for name in names if not name.startswith("rmpc_") or f"{name}(" not in headers] == []
    assert needed(library) == ["libc.so.6"]


@pytest.mark.tools
def test_pkg_config(installed: Path, tmp_path: Path) -> None:
    directory = installed / "lib/pkgconfig"
    program = tmp_path / "simulator"
    source = [*C11, FOREIGN / "main.c", "-o", program]
    flags, libraries = pkg_config(directory, "--cflags"), pkg_config(directory, "--libs")
    assert pkg_config(directory, "--modversion") == [rmpcore.__version__]
    run(*CC, *source, *flags, *libraries)
    assert f"librmpcore.so.{abi_of(ROOT / 'include')}" in needed(program)
    assert_does_as_python(program, tmp_path, LD_LIBRARY_PATH=installed / "lib")
    # it is these flags that do it
    assert "rmpcore.h" in run(*CC, *source, *libraries, check=False).stderr
    assert "rmpc_machine_run" in run(*CC, *source, *flags, check=False).stderr


@pytest.mark.tools
def test_pkg_config_static(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "simulator"
    flags = pkg_config(installed / "lib/pkgconfig", "--static", "--cflags", "--libs")
    run(*CC, *C11, "-static", FOREIGN / "main.c", *flags, "-o", program)
    assert needed(program) == []
    assert_does_as_python(program, tmp_path)


def cmake_build(tmp_path: Path, **settings: object) -> Path:
    """The foreign CMake project, built with these settings; its simulator."""
    build = tmp_path / "build"
    run("cmake", "-S", FOREIGN, "-B", build, *(f"-D{name}={value}" for name, value in settings.items()))
    run("cmake", "--build", build)
    return build / "simulator"


@pytest.mark.tools
@pytest.mark.parametrize(
    ("target", "language"),
    [("rmpcore::rmpcore", "C"), ("rmpcore::static", "C"), ("rmpcore::rmpcore", "CXX")],
)
@pytest.mark.parametrize("way", ["find_package", "add_subdirectory"])
def test_cmake(installed: Path, tmp_path: Path, way: str, target: str, language: str) -> None:
    where = {"CMAKE_PREFIX_PATH": installed} if way == "find_package" else {"RMPCORE_SOURCE": copy_sources(tmp_path)}
    program = cmake_build(tmp_path, RMPCORE_TARGET=target, LANGUAGE=language, **where)
    soname = f"librmpcore.so.{abi_of(ROOT / 'include')}"
    assert (soname in needed(program)) == (target == "rmpcore::rmpcore")
    assert_does_as_python(program, tmp_path)


@pytest.mark.tools
def test_find_package_of_another_version(installed: Path, tmp_path: Path) -> None:
    for number, wanted in enumerate(("9", "0.2", "0.0.9")):
        command = ["cmake", "-S", FOREIGN, "-B", tmp_path / str(number), f"-DRMPCORE_VERSION={wanted}"]
        done = run(*command, f"-DCMAKE_PREFIX_PATH={installed}", check=False)
        message = " ".join(done.stderr.split())
        assert done.returncode == 1
        assert f'compatible with requested version "{wanted}"' in message
        assert f"rmpcore-config.cmake, version: {rmpcore.__version__}" in message


@pytest.mark.tools
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_headers_are_cxx11(compiler: str, tmp_path: Path) -> None:
    """Each header alone; and a C++ program on the amalgamation, which is C."""
    if shutil.which(compiler) is None and compiler == "clang++":
        pytest.skip("clang++ is not installed here")
    for header in (ROOT / "include/rmpcore").glob("*.h"):
        source = tmp_path / "alone.cpp"
        source.write_text(f"#include <rmpcore/{header.name}>\n")
        run(compiler, *CXX11, f"-I{ROOT / 'include'}", "-fsyntax-only", source)
    sources = amalgamate(tmp_path / "taken-in")
    run(*CC, *C11, "-c", sources / "rmpcore.c", "-o", tmp_path / "rmpcore.o")
    program = tmp_path / "simulator"
    object_file = tmp_path / "main.o"
    run(compiler, *CXX11, "-DAMALGAMATED", f"-I{sources}", "-x", "c++", "-c", FOREIGN / "main.c", "-o", object_file)
    run(compiler, object_file, tmp_path / "rmpcore.o", "-o", program)
    assert_does_as_python(program, tmp_path)


@pytest.mark.tools
def test_pkg_config_of_the_wheel(tmp_path: Path) -> None:
    """The file that the wheel's pkg_config entry point names is one that pkg-config can use."""
    if Path(rmpcore.get_include()) == ROOT / "include":
        pytest.skip("the package is not installed but used out of its source tree, which has no pkg-config file")
    (entry,) = importlib.metadata.entry_points(group="pkg_config", name="rmpcore")
    directory = Path(str(importlib.resources.files(entry.value) / "rmpcore.pc")).parent
    assert pkg_config(directory, "--modversion") == [rmpcore.__version__]
    program = tmp_path / "simulator"
    run(*CC, *C11, FOREIGN / "main.c", *pkg_config(directory, "--cflags", "--libs"), "-o", program)
    assert needed(program) == ["libc.so.6"]
    assert_does_as_python(program, tmp_path)


# ---- the examples and the documents ----


STORY = [
    # nothing is assigned yet (rmp §3.1): a host may write, a guest with SNP may not touch (§3.2, list, row 2).
    # EXITINFO1 (§3.5): P, W, US, RMP, FINAL, ENC
    "host  writes the neighbour: done 0, 0",
    f"guest writes the page: #VMEXIT 0x400, {1 | 2 | 4 | 1 << 31 | 1 << 32 | 1 << 34:#x}",
    "host  RMPUPDATE, the page to the guest: EAX 0, 0",
    # through a 2M mapping all 512 entries count (§3.4); P, W, RMP
    f"host  writes the neighbour: exception 0xe, {1 | 2 | 1 << 31:#x}",
    # direct-map §4.3g: the split ends with a flush of all TLBs.  Nothing is left to change for Linux 6.12 after that,
    # so there is no second flush (§4.6)
    "host  splits its mapping",
    "    TLB flush: the host's entry goes",
    "    adjust_direct_map: 0",
    "host  writes the neighbour again: done 0, 0",
    "host  writes the page: exception 0xe, 0x80000003",
    # private, but not validated yet (§3.2, list, row 6), until the guest accepts it (§2.5)
    "guest writes the page: exception 0x1d, 0x404",
    "guest PVALIDATE: EAX 0, 0",
    "guest writes the page again: done 0, 0",
]


def test_two_cpus(tmp_path: Path) -> None:
    """examples/c/two_cpus.c tells the story that the rules give."""
    program = tmp_path / "two_cpus"
    run(*CC, *C11, f"-I{ROOT / 'include'}", ROOT / "examples/c/two_cpus.c", *CORE, "-o", program)
    assert run(program).stdout.splitlines() == STORY


def test_c_in_the_documents(tmp_path: Path) -> None:
    """The pieces of C in docs/embedding.md are C that a compiler takes, one after the other."""
    text = (ROOT / "docs/embedding.md").read_text()
    pieces = re.findall(r"^```c\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(pieces) > 3
    source = tmp_path / "embedding.c"
    source.write_text("\n".join(pieces))
    run(*CC, "-std=c11", *WARNINGS, "-Wno-unused-function", f"-I{ROOT / 'include'}", "-fsyntax-only", source)
