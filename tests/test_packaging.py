"""What is installed is what is in the tree: no package, header or type stub forgotten.  .ci/wheels tests the wheels."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import rmpcore

ROOT = Path(__file__).parents[1]
INSTALLED = Path(rmpcore.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    """A package that pyproject.toml does not list is in no wheel; tests that run in the tree would not see it."""
    found = {".".join(path.parent.relative_to(ROOT / "src").parts) for path in ROOT.glob("src/**/__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_file_is_installed() -> None:
    sources = {path.relative_to(ROOT / "src/rmpcore") for path in ROOT.glob("src/rmpcore/**/*.py")}
    sources |= {path.relative_to(ROOT / "src/rmpcore") for path in ROOT.glob("src/rmpcore/**/*.pyi")}
    assert sources, "the tests are not in their tree"
    missing = [str(path) for path in [*sources, Path("py.typed")] if not (INSTALLED / path).is_file()]
    assert missing == []
    assert Path(rmpcore.get_library()).is_file()
    for header in ROOT.glob("include/rmpcore/*.h"):
        assert (Path(rmpcore.get_include()) / "rmpcore" / header.name).read_text() == header.read_text()


def test_every_extra_of_a_message_exists() -> None:
    """A message that says ``pip install 'rmpcore[x]'`` names an extra that there is."""
    named = {
        (path.name, extra)
        for path in ROOT.glob("src/rmpcore/**/*.py")
        for extra in re.findall(r"rmpcore\[(\w+)\]", path.read_text())
    }
    assert named, "no message names an extra"
    unknown = {(name, extra) for name, extra in named if extra not in PROJECT["project"]["optional-dependencies"]}
    assert unknown == set()
