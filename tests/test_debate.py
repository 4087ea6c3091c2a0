"""Every command of docs/debate.md prints what stands below it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "debate.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
LONG = ("churn", "dense-host")
"""Workloads that take half a minute."""


def examples() -> list[tuple[str, str]]:
    """Each command of the page, with what it prints."""
    return re.findall(r"^```\n\$ (rmpcore [^\n]+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_no_example_is_overlooked() -> None:
    """Each block of the page is a command with its output."""
    assert len(examples()) == PAGE.count("```") // 2 >= 6
    assert all(output for _, output in examples())


@pytest.mark.parametrize(
    ("command", "output"),
    [
        pytest.param(
            command,
            output,
            id=command.partition("--workload ")[2],
            marks=[pytest.mark.long] if any(name in command for name in LONG) else [],
        )
        for command, output in examples()
    ],
)
def test_command(command: str, output: str, tmp_path: Path) -> None:
    """The numbers are those of the page; a picture is drawn too, but not compared: fonts differ."""
    words = shlex.split(command)
    if "--plot" in words:
        at = words.index("--plot") + 1
        assert (ROOT / words[at]).is_file()
        words[at] = str(tmp_path / Path(words[at]).name)
    done = subprocess.run(
        [sys.executable, "-m", "rmpcore.cli", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == output
    if "--plot" in words:
        assert Path(words[at]).stat().st_size > 10_000


def test_readme_shows_a_table_of_the_page() -> None:
    """The README's excerpt: the first command's lines 9 to 19."""
    words, output = examples()[0]
    shown = README.partition(f"{words.partition(' --workload')[0]} | sed -n 9,19p\n")[2].splitlines()[:11]
    assert [line.removeprefix("    ") for line in shown] == output.splitlines()[8:19]
