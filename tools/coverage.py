"""Which lines and branches of the C code the tests run: a table for each file, and all that is not reached.

    python tools/coverage.py [--jobs N] [--keep FOLDER]

Copies the tree into a folder of its own, builds the extension there with gcc --coverage, runs the tests of the C code
(the library that the tests compile for cffi and the programs of tests/c count as well), and merges what all of it has
counted.  What is not reached has to be named, with the reason, in tests/data/uncovered.txt.  The reason for what a race
between threads or a random sequence may reach begins with "sometimes": that it was reached this time is reported, and
is no error.  Any other name there that is reached goes.  Exit status 1: less than 98 % of lines or 95 % of branches,
something not reached that is not named, or named what is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
NAMED = ROOT / "tests/data/uncovered.txt"
LINES, BRANCHES = 98.0, 95.0
"""What has to be reached, in percent."""
PARTS = ("cmake", "csrc", "docs", "examples", "fuzz", "include", "src", "tests", "vectors")
FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.so", "*.a", "*.egg-info", "_native.c")
ABOUT_PYTHON = (
    *("cli", "compare", "debate", "decode", "explain", "inputs", "klog", "kernel_*", "packaging", "page_allocator"),
    *("pages", "placement", "proc", "selftest", "trace", "unicorn", "workload", "abi", "build", "install", "lockstep"),
)
"""Test modules that say nothing of the C code which others do not say."""
NOTHING_CHOSEN = 5
"""pytest's exit status when a module has no test of the kind."""


class Line(NamedTuple):
    """A line of code that was compiled."""

    file: str
    function: str
    number: int


class Counts:
    """How often each line and each branch was taken, over all copies of the code."""

    def __init__(self) -> None:
        self.lines: defaultdict[Line, int] = defaultdict(int)
        self.branches: dict[Line, list[int]] = {}

    def add(self, report: dict[str, Any], root: Path) -> None:
        """What gcov says of one compiled file."""
        for file in report["files"]:
            path = (Path(report["current_working_directory"]) / file["file"]).resolve()
            if not path.is_relative_to(root) or path.relative_to(root).parts[0] not in ("csrc", "include"):
                continue
            for row in file["lines"]:
                line = Line(str(path.relative_to(root)), row.get("function_name", ""), row["line_number"])
                self.lines[line] += row["count"]
                taken = [branch["count"] for branch in row["branches"] if not branch["throw"]]
                before = self.branches.get(line, [0] * len(taken))
                if len(before) != len(taken):
                    raise SystemExit(
                        f"{line.file}:{line.number}: compiled with {len(before)} and {len(taken)} branches"
                    )
                self.branches[line] = [a + b for a, b in zip(before, taken, strict=True)]


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run(command, check=True, env=os.environ | environment)


def measure(folder: Path, jobs: int) -> Path:
    """Build and test in a folder of its own; the tree there, with gcc's files beside what it compiled."""
    tree, site = folder / "tree", folder / "site"
    for part in PARTS:
        shutil.copytree(ROOT / part, tree / part, ignore=NOT_COPIED)
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    switch = {"RMPCORE_COVERAGE": "1"}
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    run(*pip, "--target", site, tree, **switch)
    marks = "not plain_build and not long and not tools and not kernel"
    # tests of the oracle alone run no C code
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={tree}")
    chosen = ("-m", marks, "-k", "not oracle", "-o", "tmp_path_retention_policy=all")

    def test(module: Path) -> None:
        # a process of its own, which writes its counts when it ends: pytest-xdist kills workers that are slow to end
        command = [*pytest, *chosen, f"--basetemp={folder / 'tmp' / module.stem}", str(module)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | switch | {"PYTHONPATH": str(site)}
        )
        if done.returncode not in (0, NOTHING_CHOSEN):
            raise SystemExit(f"{module.name} fails:\n{done.stdout}{done.stderr}")

    left_out = [f"test_{name}.py" for name in ABOUT_PYTHON]
    modules = [at for at in sorted(tree.glob("tests/test_*.py")) if not any(at.match(name) for name in left_out)]
    (folder / "tmp").mkdir()
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(test, modules):
            pass
    return tree


def collect(folder: Path, tree: Path) -> Counts:
    """Merge what was counted in all copies of the code: extension, shared library, programs."""
    counts = Counts()
    for data in sorted([*(tree / "build").rglob("*.gcda"), *(folder / "tmp").rglob("*.gcda")]):
        command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=data.parent)
        for report in done.stdout.splitlines():
            counts.add(json.loads(report), tree)
    return counts


def percent(reached: int, there: int) -> float:
    return 100 * reached / there if there else 100.0


def table(counts: Counts) -> tuple[list[str], float, float]:
    """Lines and branches of each file and of all, and the two percentages of all."""
    files: dict[str, list[int]] = {}
    for line, count in counts.lines.items():
        taken = counts.branches[line]
        row = files.setdefault(line.file, [0, 0, 0, 0])
        for at, number in enumerate((bool(count), 1, sum(map(bool, taken)), len(taken))):
            row[at] += number
    files = dict(sorted(files.items()))
    files["all"] = [sum(column) for column in zip(*files.values(), strict=True)]
    text = [f"{'':32}{'lines':>14}{'':9}{'branches':>14}"]
    for name, (lines, all_lines, branches, all_branches) in files.items():
        shares = (percent(lines, all_lines), percent(branches, all_branches))
        text.append(
            f"{name:32}{f'{lines}/{all_lines}':>14}{shares[0]:8.2f}%{f'{branches}/{all_branches}':>14}{shares[1]:8.2f}%"
        )
    return text, *shares


def unreached(counts: Counts, tree: Path) -> list[str]:
    """What is not reached, as the list names it: by function and text, so that it holds when lines move."""
    text = {path: (tree / path).read_text(encoding="utf-8").splitlines() for path in {at.file for at in counts.lines}}
    found = []
    for line, count in sorted(counts.lines.items()):
        taken = counts.branches[line]
        where = f"{line.file}: {line.function}: "
        words = " ".join(text[line.file][line.number - 1].split())
        if not count:
            found.append(f"{where}line: {words}")
        elif not all(taken):
            found.append(f"{where}{taken.count(0)} of {len(taken)} branches: {words}")
    return found


def named(lines: Iterable[str]) -> dict[str, str]:
    """The list: what is not reached at the margin, the reason indented below."""
    reasons: dict[str, str] = {}
    key = ""
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if line[0] != " ":
            key = line.strip()
            reasons[key] = ""
        else:
            reasons[key] += line.strip()
    return reasons


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes that run tests")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        tree = measure(folder, arguments.jobs)
        counts = collect(folder, tree)
        text, lines, branches = table(counts)
        found = unreached(counts, tree)
    reasons = named(NAMED.read_text(encoding="utf-8").splitlines())
    wrong = [f"not reached, and not named: {key}" for key in dict.fromkeys(found) if not reasons.get(key)]
    reached = [key for key in reasons if key not in found]
    by_chance = [key for key in reached if reasons[key].startswith("sometimes")]
    wrong += [f"named as not reached, but it is, or is not there: {key}" for key in reached if key not in by_chance]
    if lines < LINES or branches < BRANCHES:
        wrong.append(f"{lines:.2f} % of lines and {branches:.2f} % of branches, not {LINES} and {BRANCHES}")
    text += ["", "not reached:", *(f"  {key}" for key in found)]
    text += ["reached this time, or not there:", *(f"  {key}" for key in by_chance)] if by_chance else []
    print("\n".join([*text, *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
