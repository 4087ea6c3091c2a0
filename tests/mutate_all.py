"""Does a test notice every small change of the core?  ``python tests/mutate_all.py core --jobs 2``.

Mutants come from operators on the parsed text (c_mutants.py), not from rules; mutate.py has those.  Each runs the tape
(tape.py) first, whose expectation native and oracle have agreed on, then the tests that run its lines, those of few
lines first.  What compiles to the same object is no mutant.  A survivor has to be in tests/data/mutants-core.txt, with
the reason why no test can tell it.  Exit 1 for another survivor, for an explained one that is killed or no longer made,
and for a score below the limit.  ``oracle`` does the same to the oracle, with mutants from py_mutants.py.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any

import c_mutants
import numpy as np
import py_mutants
import pytest
from c_mutants import Mutant
from core_coverage import CoveredCore
from mutate import ALL_MUTATIONS
from mutation import COMPILE, PYTEST, ROOT, Binding, BuildError, Forks, Suite, Workshop, limited, without_core, words

LIMIT = 0.95
BATCH = 24
"""Mutants of one file that are compiled together."""
PATIENCE = 20
"""How much longer than without a mutant something may take before it is ended."""
RULES = (
    "boot", "collapse", "conform", "consistency", "cpa", "dump_states", "execute", "host", "lookup", "ops", "policies",
    "psmash", "pte_rules", "rmp_entry", "rmp_table", "rmpread", "rmpupdate", "segmented", "set_memory",
    "snp_consistency", "split_restore", "state", "transitions", "validate",
)  # fmt: skip
"""Tests of the rules; what is above the machines (traces, command line, reports) is left out."""
ALSO = ("native", "c_programs", "cffi")
"""Tests of what only C code can see."""
TESTS = {"core": (*RULES, *ALSO), "oracle": RULES}
SWITCH = f"""
#include <stdlib.h>
int {c_mutants.SWITCH};
__attribute__((constructor)) static void from_environment(void)
{{
    const char *number = getenv("{c_mutants.SWITCH.upper()}");
    {c_mutants.SWITCH} = number ? atoi(number) : 0;
}}
"""


def core_files() -> list[str]:
    paths = [path for part in ("csrc", "include") for path in (ROOT / part).rglob("*.[ch]")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def digest(text: str) -> bytes:
    """What a choice at random goes by: it stays the same when other mutants come and go."""
    return hashlib.sha256(text.encode()).digest()


def all_mutants(what: str) -> list[Any]:
    if what == "oracle":
        return py_mutants.oracle_mutants(ROOT)
    return [each for file in core_files() for each in c_mutants.mutants(file, (ROOT / file).read_bytes())]


class Coverage:
    """Which section of the tape, or test, runs which blocks of the healthy core, and how long it takes."""

    def __init__(
        self,
        source: CoreSource | OracleSource,
        names: list[str],
        runs: np.ndarray,
        seconds: list[float],
        lines: dict[tuple[str, int], set[int]],
    ) -> None:
        self._source = source
        self.names = names
        self.seconds = dict(zip(names, seconds, strict=True))
        self._runs = runs
        self._lines = lines
        cost = np.array(seconds) + 0.005
        self._order = np.argsort(cost * (20 + runs.sum(axis=1)), kind="stable")

    def of(self, mutant: Any) -> list[str]:
        """Those that run the mutant's lines, the likeliest to notice and the quickest first; all if it has none."""
        blocks = sorted(set().union(*(self._lines.get(line, set()) for line in self._source.lines(mutant))))
        some = self._runs[:, blocks].any(axis=1) if blocks else np.ones(len(self.names), dtype=bool)
        return [self.names[at] for at in self._order if some[at]]


class CoreSource:
    """Where the names of macros, enumerators and constants are used."""

    def __init__(self) -> None:
        self._uses: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        self._defines: dict[tuple[str, int], str] = {}
        for file in core_files():
            for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
                for word in re.findall(r"\w+", line):
                    self._uses[word].add((file, number))
                if match := re.match(r"#define (\w+) ", line):
                    self._defines[file, number] = match[1]

    def lines(self, mutant: Mutant) -> set[tuple[str, int]]:
        """Those whose code the mutant changes."""
        first, last = mutant.lines
        if last:
            return {(mutant.file, line) for line in range(first, last + 1)}
        found: set[tuple[str, int]] = set()
        names, done = {mutant.function}, set()
        while names:
            name = names.pop()
            done.add(name)
            found |= self._uses[name]
            names |= {self._defines[line] for line in self._uses[name] if line in self._defines} - done
        return found


class OracleSource:
    def lines(self, mutant: Any) -> set[tuple[str, int]]:
        return {(mutant.file, mutant.line)}


def explained_in(path: Path) -> dict[str, str]:
    """The survivors of a list, each with its reason: a reason starts at the margin, and the mutants stand under it.
    A name that ends in * is of all mutants that begin so."""
    found: dict[str, str] = {}
    reason, names = "", 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if not line.startswith("    "):
            reason, names = (line, 0) if names else (f"{reason} {line}".strip(), 0)
            continue
        name = line.strip()
        names += 1
        if not reason:
            raise SystemExit(f"{path}:{number}: a mutant without a reason")
        if name in found:
            raise SystemExit(f"{path}:{number}: {name} is there twice")
        found[name] = reason
    return found


def groups(explained: dict[str, str]) -> tuple[str, ...]:
    """How the names begin that are explained together."""
    return tuple(name[:-1] for name in explained if name.endswith("*"))


def is_explained(name: str, explained: dict[str, str]) -> bool:
    return name in explained or name.startswith(groups(explained))


def judged(outcomes: dict[str, str], explained: dict[str, str], made: set[str]) -> tuple[list[str], int]:
    """The report and the exit status.  outcomes: of those that were tried; made: the names of all mutants there are."""
    counted = Counter(outcome.split(":")[0] for outcome in outcomes.values())
    survivors = [name for name, outcome in outcomes.items() if outcome.startswith("survives")]
    lines = [f"SURVIVES {name} ({outcomes[name]})" for name in survivors if not is_explained(name, explained)]
    gone = [name for name in explained if name not in made and not name.endswith("*")]
    gone += [f"{group}*" for group in groups(explained) if not any(name.startswith(group) for name in made)]
    stale = [f"explained, but there is no such mutant: {name}" for name in gone]
    stale += [f"explained, but {outcomes[name]}: {name}" for name in explained
              if outcomes.get(name, "survives").startswith(("tape", "tests", "identical", "invalid"))]  # fmt: skip
    killed = counted["tape"] + counted["tests"]
    valid = killed + len(survivors)
    score = killed / valid if valid else 1.0
    lines += stale
    lines.append(
        f"{counted['invalid']} do not compile, {counted['identical']} compile to the same; of {valid} others the tape "
        f"kills {counted['tape']}, the tests {counted['tests']} more: {100 * score:.1f} %; {len(survivors)} survive, "
        f"{sum(is_explained(name, explained) for name in survivors)} of them explained"
    )
    return lines, 1 if len(lines) > 1 or score < LIMIT else 0


class Trials:
    """What core and oracle have in common."""

    backend: str

    def __init__(
        self, where: Path, args: argparse.Namespace, chosen: list[Any], explained: dict[str, str], made: set[str]
    ) -> None:
        self.explained = explained
        self.made = made
        self.where = where
        self.jobs = args.jobs
        self.args = args
        self.before: dict[str, str] = {}
        if args.log and args.log.exists():
            names = {each.name for each in chosen}
            known = dict(json.loads(line) for line in args.log.read_text().splitlines())
            self.before = {name: outcome for name, outcome in known.items() if name in names}
        self.chosen = [each for each in chosen if self.before.get(each.name, "survives").startswith("survives")]

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def prepare(self, suite: Suite) -> None:
        import tape

        self.suite = suite
        self.tape = tape
        self.build()
        self.sections = {section.name: section for section in tape.sections()}
        ops = sum(len(chunk) for section in self.sections.values() for chunk in section.chunks)
        self.say(f"built; the tape has {ops} ops in {len(self.sections)} sections")
        slices = [list(self.sections)[at :: self.jobs] for at in range(self.jobs)]
        cases = [self.played("native", list(self.sections)), *(self.played("oracle", names) for names in slices)]
        native, *oracle = [json.loads(given) for given in Forks(self.where, self.jobs).run(cases)]
        for name, digests in (pair for part in oracle for pair in part.items()):
            if native[name] != digests:
                raise SystemExit(f"native and oracle differ in {name}")
        self.expected = native
        self.say("native and oracle agree on it")
        self.tape_coverage = self.coverage(self.cover_tape)
        self.test_coverage = self.coverage(self.cover_tests) if self.args.coverage else None
        if self.test_coverage:
            self.say(f"{len(self.test_coverage.names)} tests covered")

    def build(self) -> None:
        raise NotImplementedError

    def load_healthy(self, place: Path, backend: str) -> None:
        raise NotImplementedError

    def played(self, backend: str, names: list[str]) -> Callable[[Path], str]:
        def case(place: Path) -> str:
            self.load_healthy(place, backend)
            return json.dumps({name: list(self.tape.digests(self.sections[name], backend)) for name in names})

        return case

    def coverage(self, cover: Callable[[], Iterator[tuple[str, Any, float]]]) -> Coverage:
        raise NotImplementedError

    def take(self) -> Any:
        """What ran since the last call, while it is being looked at."""
        raise NotImplementedError

    def cover_tape(self) -> Iterator[tuple[str, Any, float]]:
        for name, section in self.sections.items():
            start = time.process_time()
            if self.tape.differs(section, self.backend, self.expected[name]):
                raise SystemExit(f"what is looked at differs in {name}")
            yield name, self.take(), time.process_time() - start

    def cover_tests(self) -> Iterator[tuple[str, Any, float]]:
        items = list(self.suite.items.items())
        session = self.suite.session
        unhealthy: list[str] = []
        self.take()
        for (name, item), (_, following) in zip(items, [*items[1:], ("", None)], strict=True):
            start, failed = time.process_time(), session.testsfailed
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed == failed:
                yield name, self.take(), time.process_time() - start
            else:
                self.take()
                unhealthy.append(name)
        if unhealthy:
            raise SystemExit(f"without any mutant these fail: {' '.join(unhealthy)}")

    def batches(self) -> list[list[Any]]:
        raise NotImplementedError

    def trial(self, place: Path, batch: list[Any]) -> dict[str, str]:
        raise NotImplementedError

    def case(self, batch: list[Any]) -> Callable[[Path], str]:
        return lambda place: json.dumps(self.trial(place, batch))

    def try_all(self, suite: Suite) -> int:
        start = time.monotonic()
        self.prepare(suite)
        batches = self.batches()
        random.Random(self.args.seed).shuffle(batches)  # what is done when time is up is a fair sample
        outcomes = self.before
        for given in Forks(self.where, self.jobs).run([self.case(batch) for batch in batches]):
            tried = json.loads(given)
            outcomes |= tried
            if self.args.log:
                with self.args.log.open("a") as log:
                    log.writelines(json.dumps(pair) + "\n" for pair in tried.items())
            if time.monotonic() - start > self.args.seconds:
                break
        lines, code = judged(outcomes, self.explained, self.made)
        print("\n".join(lines))
        self.say(f"{len(outcomes)} of {len(self.made)} mutants in {time.monotonic() - start:.0f} s")
        return code

    def run_tape(self, phase: Path, mutant: Any) -> str:
        start = time.process_time()
        for name in self.tape_coverage.of(mutant):
            if time.process_time() - start > self.args.tape_budget:
                break
            phase.write_text(name)
            limited(0.5 + PATIENCE * self.tape_coverage.seconds[name])
            try:
                if self.tape.differs(self.sections[name], self.backend, self.expected[name]):
                    return "differs"
            except Exception as error:
                return f"raises {type(error).__name__}"
        return ""

    def tests_of(self, mutant: Any) -> list[pytest.Item]:
        """Those that run its lines, if that is known.  First come the files that mutate.py names for this one, unless
        it is known, and tests that share words with the mutant."""
        shared = words(mutant.name)
        if self.test_coverage:
            items = [self.suite.items[name] for name in self.test_coverage.of(mutant)]
            near = set()
        else:
            items = list(self.suite.items.values())
            near = {
                name.partition("::")[0] for each in ALL_MUTATIONS if each.file == mutant.file for name in each.tests
            } | {f"test_{name}.py" for name in ALSO}
        return sorted(items, key=lambda item: (item.path.name not in near, -len(shared & words(item.nodeid))))

    def run_tests(self, phase: Path, mutant: Any) -> str:
        start = time.process_time()
        items = self.tests_of(mutant)
        for number, item in enumerate(items):
            if time.process_time() - start > self.args.budget:
                return f"survives: {number} of {len(items)} tests"
            phase.write_text(item.nodeid.removeprefix("tests/"))
            if self.suite.fails(item, None):
                return "fails"
        return f"survives: all {len(items)} tests"


class CoreTrials(Trials):
    backend = "native"

    def build(self) -> None:
        (self.where / "switch.h").write_text(f"extern int {c_mutants.SWITCH};\n")
        switched = [*COMPILE, "-include", str(self.where / "switch.h")]
        self.workshop = Workshop(self.where / "base", self.jobs, switched, SWITCH)
        self.binding = Binding(self.where / "binding")
        self.covered = CoveredCore(self.where / "covered", self.jobs)
        self.plain = Workshop(self.where / "plain", self.jobs, ["gcc", "-std=c11", "-O2", "-w", "-fPIC"])

    def load_healthy(self, place: Path, backend: str) -> None:
        if backend == "native":
            self.binding.load(self.workshop.build(place))

    def take(self) -> Any:
        return self.covered.take()

    def coverage(self, cover: Callable[[], Iterator[tuple[str, Any, float]]]) -> Coverage:
        def case(place: Path) -> str:
            self.covered.open()
            self.binding.load(self.covered.path)
            self.use(self.covered.path)
            self.covered.take()
            rows = list(cover())
            np.save(self.where / "runs.npy", np.array([row[1] for row in rows]))
            lines = [[*line, *blocks] for line, blocks in self.covered.blocks_of_lines().items()]
            return json.dumps([[row[0] for row in rows], [row[2] for row in rows], lines])

        (given,) = Forks(self.where, 1).run([case])
        names, seconds, lines = json.loads(given)
        runs = np.load(self.where / "runs.npy")
        return Coverage(
            CoreSource(), names, runs, seconds, {(file, line): set(blocks) for file, line, *blocks in lines}
        )

    def use(self, core: Path) -> None:
        """The tests that build the core themselves take this one."""
        import test_c_programs
        import test_cffi

        test_cffi.build = lambda directory: core
        test_c_programs.SOURCES = [core, f"-Wl,-rpath,{core.parent}"]

    def batches(self) -> list[list[Mutant]]:
        by_file: defaultdict[str, list[Mutant]] = defaultdict(list)
        for each in self.chosen:
            if each.body is not None:
                by_file[each.file].append(each)
        together = [some[at : at + BATCH] for some in by_file.values() for at in range(0, len(some), BATCH)]
        return together + [[each] for each in self.chosen if each.body is None]

    def trial(self, place: Path, batch: list[Mutant]) -> dict[str, str]:
        text = (ROOT / batch[0].file).read_bytes()
        switched = batch[0].body is not None
        try:
            (place / "build").mkdir()
            made = c_mutants.together(text, batch) if switched else batch[0].applied(text)
            core = self.workshop.build(place / "build", batch[0].file, made)
        except BuildError:
            if len(batch) == 1:
                return {batch[0].name: "invalid"}
            found: dict[str, str] = {}
            half = len(batch) // 2
            for number, part in enumerate((batch[:half], batch[half:])):
                (place / str(number)).mkdir()
                found |= json.loads(next(Forks(place / str(number), 1).run([self.case(part)])))
            return found
        self.binding.load(core)
        switch = ctypes.c_int.in_dll(ctypes.CDLL(str(core)), c_mutants.SWITCH)
        outcomes = {}
        for number, mutant in enumerate(batch, 1):
            switch.value = number if switched else 0
            os.environ[c_mutants.SWITCH.upper()] = str(switch.value)
            outcomes[mutant.name] = self.outcome(place, mutant, core)
        return outcomes

    def outcome(self, place: Path, mutant: Mutant, core: Path) -> str:
        phase = place / "phase"
        (on_tape,) = Forks(place, 1).run([lambda _: self.run_tape(phase, mutant)])
        if on_tape:
            return f"tape: {phase.read_text()} {on_tape}"
        if self.args.tape_only:
            return "survives: the tape"
        if self.is_identical(place, mutant):
            return "identical"
        self.use(core)
        (in_tests,) = Forks(place, 1).run([lambda _: self.run_tests(phase, mutant)])
        return in_tests if in_tests.startswith("survives") else f"tests: {phase.read_text()} {in_tests}"

    def is_identical(self, place: Path, mutant: Mutant) -> bool:
        """Does it compile to the very same machine code?"""
        scratch = place / "scratch"
        scratch.mkdir(exist_ok=True)
        text = (ROOT / mutant.file).read_bytes()
        objects = self.plain.objects(scratch, mutant.file, mutant.applied(text))
        return all(path.read_bytes() == (self.plain.base / path.name).read_bytes() for path in objects.values())


class Mutated(importlib.machinery.SourceFileLoader):
    """Loads a module from a text that is in no file."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, self.path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    """Gives one module another text."""

    def __init__(self, name: str, path: str, text: str) -> None:
        self._name = name
        self._loader = Mutated(name, path, text)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self._loader) if fullname == self._name else None


class OracleTrials(Trials):
    backend = "oracle"

    def build(self) -> None:
        self.workshop = Workshop(self.where / "base", self.jobs)
        core = self.workshop.build(self.where)
        Binding(self.where / "binding").load(core)

    def load_healthy(self, place: Path, backend: str) -> None:
        pass

    def load(self, file: str = "", text: str = "") -> None:
        """Import the oracle anew, with another text of one module; tests that hold something of it get the new one."""
        for loaded in [name for name in sys.modules if name.startswith("rmpcore.oracle")]:
            del sys.modules[loaded]
        if file:
            sys.meta_path.insert(0, Finder(f"rmpcore.oracle.{Path(file).stem}", str(ROOT / file), text))
        for path in (ROOT / "src/rmpcore/oracle").glob("[a-z]*.py"):
            importlib.import_module(f"rmpcore.oracle.{path.stem}")
        for test in [module for name, module in sys.modules.items() if name.startswith("test_")]:
            for attribute, value in list(vars(test).items()):
                if str(getattr(value, "__module__", "")).startswith("rmpcore.oracle"):
                    setattr(test, attribute, getattr(sys.modules[value.__module__], attribute))

    def coverage(self, cover: Callable[[], Iterator[tuple[str, Any, float]]]) -> Coverage:
        def case(place: Path) -> str:
            self.load()
            self.seen: set[tuple[str, int]] = set()
            sys.settrace(self.note)
            threading.settrace(self.note)
            rows = list(cover())
            sys.settrace(None)
            return json.dumps([[row[0] for row in rows], [sorted(row[1]) for row in rows], [row[2] for row in rows]])

        (given,) = Forks(self.where, 1).run([case])
        names, seen, seconds = json.loads(given)
        functions = sorted({tuple(each) for row in seen for each in row})
        numbers = {each: number for number, each in enumerate(functions)}
        runs = np.zeros((len(names), len(functions) + 1), dtype=bool)
        lines: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        for at, row in enumerate(seen):
            runs[at, [numbers[tuple(each)] for each in row]] = True
        for (file, first, last), number in numbers.items():
            for line in range(first, last + 1):
                lines[file, line].add(number)
        return Coverage(OracleSource(), names, runs, seconds, dict(lines))

    def note(self, frame: Any, event: str, argument: Any) -> None:
        """A trace function for calls alone."""
        code = frame.f_code
        if "/oracle/" in code.co_filename:
            self.seen.add(code)

    def take(self) -> Any:
        taken = set()
        for code in self.seen:
            lines = [line for _, _, line in code.co_lines() if line]
            file = "src/rmpcore/oracle/" + Path(code.co_filename).name
            if code.co_name != "<module>" and lines:
                taken.add((file, min(lines), max(lines)))
        self.seen = set()
        return taken

    def batches(self) -> list[list[Any]]:
        return [[each] for each in self.chosen]

    def trial(self, place: Path, batch: list[Any]) -> dict[str, str]:
        (mutant,) = batch
        text = (ROOT / mutant.file).read_text()
        name = mutant.name
        phase = place / "phase"
        phase.write_text("import")

        def case(_: Path) -> str:
            limited(PATIENCE)
            try:
                self.load(mutant.file, mutant.applied(text))
            except Exception as error:
                return f"tape: import raises {type(error).__name__}"
            found = self.run_tape(phase, mutant)
            if found:
                return f"tape: {phase.read_text()} {found}"
            if self.args.tape_only:
                return "survives: the tape"
            found = self.run_tests(phase, mutant)
            return found if found.startswith("survives") else f"tests: {phase.read_text()} {found}"

        (given,) = Forks(place, 1).run([case])
        if given.startswith(("tape:", "tests:", "survives")):
            return {name: given}
        where = phase.read_text()
        return {name: f"{'tests' if '::' in where else 'tape'}: {where} {given}"}


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("core", "oracle"))
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--only", default="", help="mutants whose name contains this text")
    parser.add_argument("--names", help="file with names of mutants")
    parser.add_argument("--unexplained", action="store_true", help="leave out the survivors that are explained")
    parser.add_argument("--sample", type=int, default=0, help="so many of them, chosen at random (default all)")
    parser.add_argument("--seed", type=int, default=1, help="what the choice depends on (default 1)")
    parser.add_argument("--budget", type=float, default=20, help="seconds of tests for one mutant (default 20)")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no other mutant after so long (default all)")
    parser.add_argument("--explained", type=Path, help="the list of survivors (default tests/data/mutants-*.txt)")
    parser.add_argument("--log", type=Path, help="keep outcomes here; what was killed is not tried again")
    parser.add_argument("--tape-budget", type=float, default=60, help="seconds of the tape for one mutant (default 60)")
    parser.add_argument(
        "--coverage", action="store_true", help="look first which tests run which lines: pays for some hundred mutants"
    )
    parser.add_argument("--tape-only", action="store_true", help="no tests: what the tape does not kill survives")
    args = parser.parse_args()
    mutants = all_mutants(args.what)
    explained = explained_in(args.explained or ROOT / f"tests/data/mutants-{args.what}.txt")
    chosen = [each for each in mutants if args.only in each.name]
    if args.unexplained:
        chosen = [each for each in chosen if not is_explained(each.name, explained)]
    if args.names:
        wanted = set(Path(args.names).read_text().splitlines())
        chosen = [each for each in chosen if each.name in wanted]
    if args.sample:
        chosen = sorted(chosen, key=lambda each: digest(f"{args.seed} {each.name}"))[: args.sample]
    without_core()
    with tempfile.TemporaryDirectory(prefix="rmpcore-mutants-") as where:
        trials = (CoreTrials if args.what == "core" else OracleTrials)(
            Path(where), args, chosen, explained, {each.name for each in mutants}
        )
        suite = Suite(trials.try_all)
        tests = [f"tests/test_{name}.py" for name in TESTS[args.what]]
        # test_a_broken_rule breaks an oracle of its own, which was imported before
        only = "not oracle" if args.what == "core" else "not native and not broken_rule"
        # what looks at the library's symbols is about its build
        quick = "not plain_build and not long and not tools and not kernel"
        pytest.main([*PYTEST, "-m", quick, "-k", only, *tests], plugins=[suite])
    return 1 if suite.code is None else suite.code


if __name__ == "__main__":
    sys.exit(main())
