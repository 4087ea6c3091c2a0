"""``rmpcore fuzz`` on cores with a bug in them: each is found, and few ops are left of what led there.

The bugs are of different kinds: wrong arithmetic in an instruction, a check that is missing, a count that is wrong
after a failed allocation, a pointer to nothing.  The package is copied with a core that has the bug.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutation import Binding, Mutation, Workshop, mutation

import rmpcore

CPA = "csrc/cpa.c"
INSN = "csrc/rmp_insn.c"
BUGS = {
    "arithmetic": mutation(
        "rmp §2.3 row 5: guest addresses of the 512 entries are consecutive",
        INSN,
        "const quads step = {RMPC_PAGE_SIZE, 0};",
        "const quads step = {2 * RMPC_PAGE_SIZE, 0};",
    ),
    "missing check": mutation(
        "rmp §2.3 row 4: PSMASH of an immutable page is refused",
        INSN,
        "    else if (old.lo & RMPC_RMP_IMMUTABLE)\n        code = hardware->psmash_immutable;\n",
        "",
    ),
    "state after an error": mutation(
        "direct-map §4.4: a split that finds no page changes no count",
        CPA,
        "        return NULL;\n    table = rmpc_table_at(dmap, page);",
        "        return count_split(dmap, va, level), NULL;\n    table = rmpc_table_at(dmap, page);",
    ),
    "crash": mutation(
        "rmp §2.4: RMPREAD of a page that the table does not cover is FAIL_INPUT",
        INSN,
        "    } else if (!find(rmp, pfn, &place)) {\n        if (is_in",
        "    } else if (!find(rmp, pfn, &place) && (place.entry = NULL)) {\n        if (is_in",
    ),
}
OPS = 300_000
"""Half a minute's work or so on two cores."""
MOST = 10

pytestmark = [pytest.mark.long, pytest.mark.plain_build]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"), 2)


@pytest.fixture(scope="module")
def binding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's extension without a core."""
    return next(Binding(tmp_path_factory.mktemp("binding")).directory.glob("_native*.so"))


@pytest.fixture
def buggy(workshop: Workshop, binding: Path, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment in which the package has a core with this bug: whatever is loaded first."""
    bug: Mutation = request.param
    healthy = (workshop.base / bug.file).read_text()
    assert healthy.count(bug.old) == 1
    package = tmp_path / "buggy" / "rmpcore"
    shutil.copytree(Path(rmpcore.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "_native*.so"))
    shutil.copy(binding, package)
    core = workshop.build(tmp_path, bug.file, healthy.replace(bug.old, bug.new).encode())
    return os.environ | {"PYTHONPATH": str(package.parent), "LD_PRELOAD": str(core)}


def rmpcore_(environment: dict[str, str], folder: Path, *args: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rmpcore.cli", *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("buggy", BUGS.values(), ids=BUGS, indirect=True)
def test_a_planted_bug_is_found_and_made_small(buggy: dict[str, str], tmp_path: Path) -> None:
    status, out = rmpcore_(buggy, tmp_path, "fuzz", "--ops", str(OPS), "--jobs", "2")
    print(out)
    assert status == 1, out
    [(_, after, name)] = re.findall(r"^([\d,]+) ops became (\d+): (\S+\.trace)$", out, re.M)
    assert int(after) <= MOST, out
    trace = tmp_path / name
    assert len([line for line in trace.read_text().splitlines() if not line.startswith("#")]) == int(after)
    # what is saved shows it again, and shows nothing on the core as it is
    status, out = rmpcore_(buggy, tmp_path, "fuzz", "--replay", name)
    assert status == 1, out
    status, out = rmpcore_(dict(os.environ), tmp_path, "fuzz", "--replay", name)
    assert (status, out) == (0, f"{name}: {after} ops, no difference\n")
    # it is an ordinary trace with an ordinary dump
    status, out = rmpcore_(
        dict(os.environ), tmp_path, *re.findall(r"^# rmpcore (run .*)$", trace.read_text(), re.M)[0].split()
    )
    assert status == 0, out
