"""Instructions that the core executes for one piece of work of each row: they repeat where times do not.

    python bench/instructions.py --out FILE [ROW...]

Counts them with valgrind's cachegrind in bench/main.c: a row prepared and run once, less the row prepared alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = re.findall(r'^    \{"(\w+)", "', (ROOT / "bench/rows.c").read_text(), re.MULTILINE)
HUGE = "1024g"
"""What is left out: rows that execute the same as another, on more memory."""


def build(place: Path) -> Path:
    program = place / "main"
    sources = [ROOT / "bench/main.c", ROOT / "bench/rows.c", *sorted((ROOT / "csrc").glob("**/*.c"))]
    options = ["-O3", "-std=c11", f"-I{ROOT / 'include'}"]
    subprocess.run(["cc", *options, *sources, "-o", program], check=True)
    return program


def counted(program: Path, what: str, row: str) -> tuple[int, int]:
    """(instructions of the whole process, pieces of work)."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    ran = subprocess.run([*command, program, "--once", what, row], check=True, capture_output=True, text=True)
    refs = re.search(r"I\s+refs:\s+([\d,]+)", ran.stderr)
    assert refs is not None, ran.stderr
    return int(refs[1].replace(",", "")), int(ran.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description="Instructions for one piece of work of each row of bench/rows.c.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="these rows only")
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: no instructions are counted", file=sys.stderr)
        return 2
    chosen = [name for name in args.rows or ROWS if HUGE not in name]
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}")
    found = {}
    with tempfile.TemporaryDirectory() as place:
        program = build(Path(place))
        for row in chosen:
            before, _ = counted(program, "prepare", row)
            after, items = counted(program, "run", row)
            found[row] = (after - before) / items
            print(f"{row:24} {found[row]:10.1f}", flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
