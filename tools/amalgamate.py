"""The C core as two files, for a project that takes its sources in: ``python tools/amalgamate.py DIRECTORY``.

Writes DIRECTORY/rmpcore.h, all public headers, and DIRECTORY/rmpcore.c, all of csrc/.  csrc/hosted/, which needs an
operating system, is left out, and sparse.h with it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADERS = ROOT / "include"
SOURCES = ROOT / "csrc"
LOCAL = re.compile(r'#include "(.+)"\n')


def inlined(path: Path, seen: set[Path]) -> str:
    """A file with the files of ours that it includes in the place of their first include."""
    text = []
    for line in path.read_text().splitlines(keepends=True):
        include = LOCAL.fullmatch(line)
        if not include:
            text.append(line)
            continue
        (found,) = (at for at in (path.parent / include[1], HEADERS / include[1]) if at.is_file())
        if found not in seen:
            seen.add(found)
            text.append(inlined(found, seen))
    return "".join(text)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    licence = "".join(f" * {line}".rstrip() + "\n" for line in (ROOT / "LICENSE").read_text().splitlines())
    top = f"/*\n * rmpcore in two files, made by tools/amalgamate.py.\n *\n{licence} */\n"
    seen: set[Path] = set()
    header = inlined(HEADERS / "rmpcore/rmpcore.h", seen)
    (directory / "rmpcore.h").write_text(top + header)
    parts = [inlined(source, seen) for source in sorted(SOURCES.glob("*.c"))]
    (directory / "rmpcore.c").write_text("\n".join([top + '#include "rmpcore.h"\n', *parts]))


if __name__ == "__main__":
    main()
