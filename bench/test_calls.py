"""What Python adds: a single call through the binding beside an empty method, arrays of ops beside a loop in C."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyximport
from conftest import against, memory_map

from rmpcore import Machine
from rmpcore.ops import OP_DTYPE, RESULT_DTYPE, Op, OpCode, OpFlag

GIB = 1 << 30
SIZE = 64 * GIB
MILLION = 1_000_000
CALLS = 20_000
MAP = memory_map(SIZE)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """bench/nothing.pyx, compiled."""
    importers = pyximport.install(build_dir=str(tmp_path_factory.mktemp("nothing")), language_level=3)
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("nothing").Nothing()
    finally:
        sys.path.pop(0)
        pyximport.uninstall(*importers)


def updates(count: int) -> np.ndarray[Any, np.dtype[np.void]]:
    """Random pages are assigned, or unassigned again."""
    rng = np.random.default_rng(1)
    ops = np.zeros(count, OP_DTYPE)
    ops["op"] = OpCode.RMPUPDATE
    ops["addr"] = rng.integers(0, (SIZE - GIB) >> 12, count) << 12
    assigned = rng.integers(0, 2, count).astype(bool)
    ops["flags"][assigned] = OpFlag.ASSIGNED
    ops["gpa"][assigned] = ops["addr"][assigned]
    ops["id"][assigned] = 5
    return ops


SINGLE = {
    "lookup": Op(OpCode.lookup, addr=0x100000),
    "snp_lookup_rmpentry": Op(OpCode.snp_lookup_rmpentry, addr=0x100000),
    "rmpupdate": Op(OpCode.RMPUPDATE, flags=OpFlag.ASSIGNED, addr=0x100000000, gpa=0x100000000, id=5),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("method", ["apply", "bare"])
def test_single_call(benchmark: Any, nothing: Any, name: str, method: str) -> None:
    """Beside apply: an empty method that takes an Op and gives a Result; beside bare: one that does not look at its
    argument and gives None."""
    op = Op(*map(int, SINGLE[name]))
    call, empty = Machine(MAP).apply, getattr(nothing, method)

    def run() -> None:
        for _ in range(CALLS):
            call(op)

    def limit() -> None:
        for _ in range(CALLS):
            empty(op)

    assert call(op).kind in (0, 1)
    beside = "empty method of the same signature" if method == "apply" else "empty method that takes nothing apart"
    benchmark.group = "call from Python"
    against(benchmark, run, limit, beside=beside, items=CALLS, most=1.5 if method == "apply" else None)


def test_bulk(benchmark: Any, core: Any) -> None:
    """A million RMPUPDATEs as an array of ops; beside it the C function that does arrays, on a machine like it."""
    ops = updates(MILLION)
    results = np.zeros(MILLION, RESULT_DTYPE)
    machine = Machine(MAP)
    bare = core.lib.bench_open(core.rows["rmpupdate_4k_64g"], False)
    assert bare != core.ffi.NULL
    source, target = core.ffi.from_buffer(ops), core.ffi.from_buffer(results, require_writable=True)

    def loop() -> None:
        core.lib.bench_apply(bare, source, MILLION, target)

    try:
        loop()
        assert np.array_equal(machine.run(ops), results)
        benchmark.group = "call from Python"
        against(
            benchmark,
            lambda: machine.run(ops),
            loop,
            beside="rmpc_machine_run() called from C",
            items=MILLION,
            most=1.05,
        )
    finally:
        core.lib.bench_close(bare)
