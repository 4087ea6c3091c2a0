"""The rows of bench/rows.c: each path of the C core, and beside it its limit, in the same rounds.

All loops are in C.  Each round times the limit first and then the path itself, each after the same preparation, so that
both find the caches, and the machine's mood, alike.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import against
from instructions import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_row(benchmark: Any, core: Any, name: str) -> None:
    row = core.rows[name]
    machine = core.lib.bench_open(row, True)
    if machine == core.ffi.NULL:
        pytest.skip(f"this machine has no memory for the RMP of one of {row.gib} GiB")
    try:
        core.lib.bench_prepare(machine)
        items = core.lib.bench_run(machine)

        def run() -> None:
            assert core.lib.bench_run(machine) == items != 0

        benchmark.group = core.text(row.group)
        against(
            benchmark,
            run,
            lambda: core.lib.bench_bare(machine),
            beside=core.text(row.limit),
            items=items,
            prepare=lambda: core.lib.bench_prepare(machine),
            most=row.most or None,
        )
    finally:
        core.lib.bench_close(machine)
