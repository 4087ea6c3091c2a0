"""What a run of the benchmarks says: docs/performance.md, or how it differs from the run that is kept.

    python bench/report.py write RUN.json [--instructions FILE]     the table of docs/performance.md, and the baseline
    python bench/report.py compare RUN.json [--instructions FILE]   ratios beside those of bench/baseline.json

RUN.json is what ``pytest bench --benchmark-json`` writes.  Ratios are compared: times are those of one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "bench/baseline.json"
PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- written by bench/report.py -->\n", "<!-- end -->\n"
NOTABLE = 1.15
"""Ratios of two runs on a noisy machine differ by less than this for no reason."""


def read_run(path: Path, instructions: Path | None) -> dict[str, dict[str, Any]]:
    """{name: figures} of a run, those of rows.c first; times in nanoseconds for one piece of work."""
    counts = json.loads(instructions.read_text()) if instructions else {}
    rows = {}
    found = json.loads(path.read_text())["benchmarks"]
    for bench in sorted(found, key=lambda each: not each["name"].startswith("test_row[")):
        info = bench["extra_info"]
        name = re.sub(r"^test_(?:row\[(.*)\]$)?", r"\1", bench["name"])  # rows.c's names are its own
        items = info.get("items", 1)
        rows[name] = {
            "ns": bench["stats"]["median"] / items * 1e9,
            "limit": info["limit"] / items * 1e9 if "limit" in info else None,
            "beside": info.get("beside", ""),
            "ratio": info.get("ratio"),
            "most": info.get("most"),
            "least": info.get("least"),
            "instructions": counts.get(name),
        }
    return rows


def figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def bound(row: dict[str, Any]) -> str:
    if row["most"] is not None:
        return f"at most {row['most']:g}"
    return f"at least {row['least']:g}" if row["least"] is not None else ""


def on_what() -> str:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return (
        f"{cpu}, {os.cpu_count()} processors of it, {gib:.0f} GiB; {system}; "
        f"{compiler}; Python {platform.python_version()}"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| path | ns | limit | ns | ratio | asked | instructions |",
        "|---|---:|---|---:|---:|---|---:|",
    ]
    for name, row in rows.items():
        cells = [name, figure(row["ns"]), row["beside"], figure(row["limit"]), figure(row["ratio"]), bound(row)]
        lines.append(f"| {' | '.join([*cells, figure(row['instructions'])])} |")
    return "\n".join(lines) + "\n"


def write(rows: dict[str, dict[str, Any]]) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}Measured on: {on_what()}.\n\n{table(rows)}{END}{after}")
    kept = {name: {key: row[key] for key in ("ratio", "instructions")} for name, row in rows.items()}
    BASELINE.write_text(json.dumps(kept, indent=1) + "\n")


def compare(rows: dict[str, dict[str, Any]]) -> None:
    """Print what has changed since the run that is kept."""
    kept = json.loads(BASELINE.read_text())
    print(f"{'path':32} {'ratio':>8} {'was':>8} {'':12} {'instructions':>12} {'was':>10}")
    for name, row in rows.items():
        was = kept.get(name, {})
        remark = "new" if name not in kept else ""
        if was.get("ratio") and row["ratio"]:
            change = row["ratio"] / was["ratio"]
            remark = "slower" if change > NOTABLE else "faster" if change < 1 / NOTABLE else ""
        cells = [f"{figure(row['ratio']):>8} {figure(was.get('ratio')):>8} {remark:12}"]
        cells.append(f"{figure(row['instructions']):>12} {figure(was.get('instructions')):>10}")
        print(f"{name:32} {' '.join(cells)}".rstrip())
    for name in kept.keys() - rows.keys():
        print(f"{name:32} not measured")


def main() -> int:
    parser = argparse.ArgumentParser(description="What a run of the benchmarks says.")
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("run", type=Path, metavar="RUN.json")
    parser.add_argument("--instructions", type=Path, metavar="FILE", help="what bench/instructions.py has counted")
    args = parser.parse_args()
    rows = read_run(args.run, args.instructions)
    {"write": write, "compare": compare}[args.what](rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
