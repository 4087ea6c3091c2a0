"""What mutation tests share: builds of a broken core, and a fork of the process for each of them.

mutate.py breaks each rule once, by hand; mutate_all.py makes every small change that its operators know.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import gc
import importlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
COMPILE = ["gcc", "-std=c11", "-O0", "-w", "-Werror=incompatible-pointer-types", "-Werror=int-conversion", "-fPIC"]
SECONDS = 20
"""Of processor time, for one test; the slowest needs 5.  A mutation may make the core loop for ever: that is noticed,
too.  A test that waits for something has ten times as long by the clock."""


class Mutation(NamedTuple):
    """One change of the C core that breaks one rule.

    rule: document and section, and what is broken; tests: files, or file::test."""

    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutation(rule: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(rule, file, old, new, tests)


class BuildError(Exception):
    """A compiler's or a linker's complaint."""


def call(command: list[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.c"))


def object_of(source: str) -> str:
    return source.replace("/", "-").removesuffix(".c") + ".o"


class Workshop:
    """Builds shared libraries of a broken core.  The binding is built once, and finds the core's functions in whichever
    library was opened before it."""

    def __init__(self, where: Path, jobs: int, compile_: list[str] = COMPILE, more: str = "") -> None:
        where.mkdir(exist_ok=True)
        self.base = where
        self.compile = compile_
        self.more: list[str] = []
        for name in ("csrc", "include"):
            shutil.copytree(ROOT / name, self.base / name)
        if more:
            (where / "more.c").write_text(more)
            call([*COMPILE, "-c", "more.c", "-o", "more.o"], where)
            self.more = [str(where / "more.o")]
        commands = [[*self.compile, "-Iinclude", "-MMD", "-c", source, "-o", object_of(source)] for source in sources()]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda command: call(command, self.base), commands))
        self.readers = {
            source: (self.base / object_of(source)).with_suffix(".d").read_text().split() for source in sources()
        }

    def objects(self, place: Path, file: str, text: bytes) -> dict[str, Path]:
        """The objects with another text of one file.  Only what reads that file is compiled again."""
        objects = {source: self.base / object_of(source) for source in sources()}
        if file:
            for part in ("csrc", "include"):
                shutil.copytree(self.base / part, place / part, dirs_exist_ok=True)
            (place / file).write_bytes(text)
            for source in objects:
                if file in self.readers[source]:
                    objects[source] = place / object_of(source)
                    call([*self.compile, "-Iinclude", "-c", source, "-o", str(objects[source])], place)
        return objects

    def build(self, place: Path, file: str = "", text: bytes = b"") -> Path:
        """The core as a shared library."""
        library = place / "core.so"
        objects = map(str, self.objects(place, file, text).values())
        call(["gcc", "-shared", *objects, *self.more, "-o", str(library)], place)
        return library


class Binding:
    """The compiled Cython module, which takes the core from whichever library was opened before."""

    def __init__(self, where: Path) -> None:
        where.mkdir(exist_ok=True)
        self.directory = where
        generated = ROOT / "src/rmpcore/_native.c"
        if not generated.is_file():
            generated = where / "_native.c"
            pyx = str(ROOT / "src/rmpcore/_native.pyx")
            call([sys.executable, "-m", "cython", "-3", pyx, "-o", str(generated)], ROOT)
        target = where / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        includes = [f"-I{ROOT / 'include'}", f"-I{sysconfig.get_path('include')}"]
        call([*COMPILE, *includes, "-shared", str(generated), "-o", str(target)], where)

    def load(self, core: Path) -> None:
        """Import rmpcore._native on this core, in a process that has not imported it."""
        ctypes.CDLL(str(core), mode=ctypes.RTLD_GLOBAL)
        sys.modules.pop("rmpcore._native", None)
        sys.modules["rmpcore"].__path__.insert(0, str(self.directory))
        importlib.import_module("rmpcore._native")


def without_core() -> None:
    """From here on importing the binding fails, until a child has loaded its own."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "src"))
    sys.modules["rmpcore._native"] = None  # type: ignore[assignment]
    sys.dont_write_bytecode = True


PYTEST = ["-qq", "-s", "--no-header", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:faulthandler"]


class Forks:
    """Runs each of many cases in a fork of this process, so many at a time."""

    def __init__(self, where: Path, jobs: int) -> None:
        self.where = where
        self.jobs = jobs

    def run(self, cases: list[Callable[[Path], str]]) -> Iterator[str]:
        """What each case in turn gives.  It gets a directory of its own, which is gone afterwards."""
        gc.freeze()  # what is here stays: a child that looked for garbage in it would have to copy it
        running: dict[int, int] = {}
        given: dict[int, str] = {}
        waiting = enumerate(cases)
        try:
            for number in range(len(cases)):
                while number not in given:
                    for ready, case in itertools.islice(waiting, self.jobs - len(running)):
                        running[self._fork(self.where / str(ready), case)] = ready
                    pid, status = os.wait()
                    ended = running.pop(pid)
                    given[ended] = self._given(self.where / str(ended), os.waitstatus_to_exitcode(status))
                    shutil.rmtree(self.where / str(ended))
                yield given.pop(number)
        finally:
            for _ in running:
                os.wait()

    def _given(self, place: Path, code: int) -> str:
        """What the child has left: an error that is not the mutation's, its word, or neither, as it was ended."""
        if (place / "error").exists():
            raise SystemExit((place / "error").read_text()[-2000:])
        if (place / "given").exists():
            return (place / "given").read_text()
        return "no end" if code in (-signal.SIGPROF, -signal.SIGALRM) else f"crash ({code})"

    def _fork(self, place: Path, case: Callable[[Path], str]) -> int:
        """Starts a process that does the case, and ends there whatever happens."""
        place.mkdir()
        pid = os.fork()
        if pid:
            return pid
        try:
            Path("/proc/self/oom_score_adj").write_text("1000")  # a loop that allocates: this process goes, no other
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            tempfile.tempdir = str(place)
            (place / "given").write_text(case(place))
        except BaseException as error:
            (place / "error").write_text(str(error) if isinstance(error, SystemExit) else traceback.format_exc())
        finally:
            os._exit(0)


def limited(seconds: float) -> None:
    """Nothing handles these signals: they end the process."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, max(10 * seconds, 30))


class Suite:
    """A pytest plugin: the tests are imported and collected once, then it does what it was made for instead of running
    them."""

    def __init__(self, then: Callable[[Suite], int]) -> None:
        self._then = then
        self.code: int | str | None = None

    def pytest_collection(self) -> None:
        """Hypothesis takes the same examples each time, and keeps none."""
        settings.register_profile("mutation", settings.get_profile("rmpcore"), derandomize=True, database=None)
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None  # a file of tests that cannot be imported: pytest says so, and stops
        self.session = session
        self.items = {item.nodeid.removeprefix("tests/"): item for item in session.items}
        try:
            self.code = self._then(self)
        except SystemExit as stop:
            self.code = str(stop)
        return True

    def named(self, tests: tuple[str, ...]) -> list[pytest.Item]:
        """The tests of these names, each once: all of a file, or of a function."""
        return list(
            {
                name: item
                for test in tests
                for name, item in self.items.items()
                if test in (name.partition("::")[0], name.partition("[")[0])
            }.values()
        )

    def fails(self, item: pytest.Item, following: pytest.Item | None) -> bool:
        limited(SECONDS)
        self.session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return self.session.testsfailed > 0

    def first_failure(self, items: list[pytest.Item]) -> str:
        for item, following in itertools.zip_longest(items, items[1:]):
            if self.fails(item, following):
                return item.nodeid.removeprefix("tests/")
        return ""


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]{3,}", text.lower()))
