"""How time and memory of the native machine grow with what it is given: python bench/growth.py --out growth.json

Each point is measured in a process of its own, so that no series lives on another's memory or caches: several
repetitions, each on a fresh machine, and their medians.  Memory is what becomes resident between the inputs and the
end of the first repetition.  An exponent is the slope of a straight line through the upper half of the sizes, both
axes logarithmic.  It is held against the work: 1 where a series gives more to do, 0 where it only gives a larger
machine to do it on.

A table goes to standard output; --out writes all points, --plot a picture.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mixed import FIRST_FRAME, REGIONS, mixed_trace

import rmpcore
from rmpcore.fuzzing.maps import GIB, MIB, build_map
from rmpcore.inputs import MAP_FORMAT, map_from_json
from rmpcore.machine import MachineLike
from rmpcore.maps import MachineMap
from rmpcore.ops import OP_DTYPE, Kind, Op, OpCode, OpFlag, format_op, unpack_ops
from rmpcore.plot import STYLE, PlotError, figure_file, require_plot
from rmpcore.state import state_from_json, state_to_json
from rmpcore.trace import Trace, read_trace, write_results
from rmpcore.whole_file import WholeFile

ROOT = Path(__file__).resolve().parents[1]
REGION = 512  # frames
TIB = 1024 * GIB
SPENT = 0.2  # seconds: a point is repeated until it has taken so long,
FEWEST, MOST = 3, 25  # but so often at least and at most
NOISE = 0.2  # of an exponent: what caches alone make of it, as more and more lies outside them

Ops = npt.NDArray[np.void]
Figures = dict[str, float]
Repeat = Callable[[], Figures]


# ---- what is measured ----


def seconds(work: Callable[[], object]) -> float:
    """Of this thread alone: what else the machine has to do does not count."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


def seconds_by_the_clock(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make(op: OpCode, size: int, /, **fields: Any) -> Ops:
    """``size`` records of one op; fields are arrays, or one value for all."""
    ops = np.zeros(size, OP_DTYPE)
    ops["op"] = op
    for name, values in fields.items():
        ops[name] = values
    return ops


def run(machine: MachineLike, ops: Ops) -> float:
    """Seconds of a run in which every op has to succeed: what is refused at once costs nothing and says nothing."""
    results: list[Ops] = []
    spent = seconds(lambda: results.append(machine.run(ops)))
    done = results[0]
    failed = (done["kind"] == Kind.REFUSED) | (done["ret"] != 0)
    if failed.any():
        first = int(np.argmax(failed))
        raise RuntimeError(f"op {first} of {len(ops)}, {ops[first]}, gave {done[first]}")
    return spent


@functools.cache
def host_map(size: int) -> MachineMap:
    """Memory of this size around the hole below 4 GiB, and an RMP above it that covers all."""
    memory = [(0, size)] if size <= 2 * GIB else [(0, 2 * GIB), (4 * GIB, size - 2 * GIB)]
    top = memory[-1][0] + memory[-1][1]
    # an entry of 16 bytes for each page, those of the RMP among them
    table = -(-((top // 256 + 0x4000) * 256 // 255 + 1) // MIB) * MIB
    e820 = [*((base, length, 1) for base, length in memory), (top, table, 2)]
    return build_map(memory, e820=e820, rmp=(top, top + table - 1))


def random_regions(size: int, count: int) -> npt.NDArray[np.int64]:
    """First frames of different regions of such a memory, anywhere in its lower three quarters."""
    rng = np.random.default_rng(size)
    usable = [base // MIB // 2 + np.arange(length // MIB // 2) for base, length in host_map(size).memory]
    regions = np.concatenate(usable)
    return rng.choice(regions[8 : len(regions) * 3 // 4], count, replace=False) * REGION


def of_ops(count: int) -> Repeat:
    trace = mixed_trace(count)
    machine_map = host_map((FIRST_FRAME + REGIONS * REGION) * 4096)

    def repeat() -> Figures:
        before = resident()
        machine = rmpcore.Machine(machine_map)
        spent = seconds(lambda: machine.run(trace))
        return {"run": spent, "memory": resident() - before}

    return repeat


def of_size(size: int) -> Repeat:
    with_2m = dataclasses.replace(host_map(size), large_pages="2M")

    def repeat() -> Figures:
        figures: Figures = {}
        machines: list[MachineLike] = []

        def boot(machine_map: MachineMap) -> None:
            machines.append(rmpcore.Machine(machine_map))

        for name, machine_map in (("1G leaves", host_map(size)), ("2M leaves", with_2m)):
            before = resident()
            figures[f"boot, {name}"] = seconds(functools.partial(boot, machine_map))
            figures[f"memory, {name}"] = resident() - before
        figures["state()"] = seconds(machines[0].state)
        before = resident()
        figures["SNP_INIT"] = run(machines[0], make(OpCode.SNP_INIT, 1))
        figures["memory, SNP_INIT"] = resident() - before
        return figures

    return repeat


def of_place(size: int) -> Repeat:
    """The same ops wherever in a memory: 300 regions, touched before."""
    heads = random_regions(size, 300)
    rng = np.random.default_rng(1)
    pages = rng.permutation((heads[:, None] + np.arange(REGION)).ravel())
    asids = {"level": 1, "id": rng.integers(1, 100, len(pages)), "gpa": pages << 12}
    private = make(OpCode.rmp_make_private, len(pages), addr=pages, **asids)
    shared = make(OpCode.rmp_make_shared, len(pages), addr=pages, level=1)
    large = make(OpCode.rmp_make_private, len(heads), addr=heads, level=2, id=5, gpa=heads << 12)

    def repeat() -> Figures:
        machine = rmpcore.Machine(host_map(size))
        for ops in (private, shared, large):
            run(machine, ops)
        psmash = run(machine, make(OpCode.psmash, len(heads), addr=heads))
        run(machine, shared)
        return {
            "rmp_make_private": run(machine, private) / len(pages),
            "snp_lookup_rmpentry": run(machine, make(OpCode.snp_lookup_rmpentry, len(pages), addr=pages)) / len(pages),
            "lookup": run(machine, make(OpCode.lookup, len(pages), addr=pages)) / len(pages),
            "psmash": psmash / len(heads),
        }

    return repeat


def of_pieces(count: int) -> Repeat:
    """Memory in many pieces, each a row of e820: 3 MiB, then a hole of 1 MiB."""
    rows = [[hex(4 * MIB * i), hex(3 * MIB), "usable"] for i in range(count)]
    text = json.dumps({"format": MAP_FORMAT, "version": 1, "name": "pieces", "e820": rows})
    machine_map = map_from_json(text)

    def repeat() -> Figures:
        return {
            "boot": seconds(lambda: rmpcore.Machine(machine_map)),
            "map_from_json()": seconds(lambda: map_from_json(text)),
        }

    return repeat


def of_asids(count: int) -> Repeat:
    """The same ops whatever the number of guests that they are for."""
    pages = np.random.default_rng(1).permutation(100_000) + FIRST_FRAME
    private = make(OpCode.rmp_make_private, len(pages), level=1, addr=pages, gpa=pages << 12)
    private["id"] = np.arange(len(pages)) % count + 1
    shared = make(OpCode.rmp_make_shared, len(pages), level=1, addr=pages)

    def repeat() -> Figures:
        machine = rmpcore.Machine(host_map(8 * GIB))
        return {"rmp_make_private": run(machine, private), "rmp_make_shared": run(machine, shared)}

    return repeat


LAUNCHED = 8  # pages of each guest


def of_guests(count: int) -> Repeat:
    """The life of guests, all of them there at once; the firmware meets them in no order."""
    rng = np.random.default_rng(1)
    contexts = FIRST_FRAME + rng.permutation(count)
    asids = 1 + rng.permutation(count)
    pages = FIRST_FRAME + 16 * REGION + rng.permutation(count * LAUNCHED)
    owner = np.repeat(np.arange(count), LAUNCHED)
    firmware = make(OpCode.rmp_make_firmware, count, addr=contexts, level=1)
    create = make(OpCode.SNP_GCTX_CREATE, count, addr=contexts << 12)
    activate = make(OpCode.SNP_ACTIVATE, count, addr=contexts << 12, id=asids)
    private = make(OpCode.rmp_make_private, len(pages), addr=pages, level=1, id=asids[owner], flags=OpFlag.IMMUTABLE)
    launch = make(OpCode.SNP_LAUNCH_UPDATE, len(pages), addr=pages << 12, va=contexts[owner] << 12, level=1)
    decommission = make(OpCode.SNP_DECOMMISSION, count, addr=rng.permutation(contexts) << 12)

    def repeat() -> Figures:
        machine = rmpcore.Machine(host_map(8 * GIB))
        run(machine, make(OpCode.SNP_INIT, 1))
        run(machine, firmware)
        figures = {"SNP_GCTX_CREATE": run(machine, create), "SNP_ACTIVATE": run(machine, activate)}
        run(machine, private)
        figures["SNP_LAUNCH_UPDATE"] = run(machine, launch)
        figures["SNP_DECOMMISSION"] = run(machine, decommission)
        return figures

    return repeat


RECORDS = 64  # of metadata in a page


def of_records(count: int) -> Repeat:
    """Pages of one guest that are swapped out at the same time."""
    rng = np.random.default_rng(1)
    context = FIRST_FRAME << 12
    metadata = FIRST_FRAME + REGION + np.arange(-(-count // RECORDS))
    pages = FIRST_FRAME + 16 * REGION + np.arange(count)
    records = (metadata[0] << 12) + 64 * rng.permutation(count)
    firmware = make(OpCode.rmp_make_firmware, 1 + len(metadata), addr=[FIRST_FRAME, *metadata], level=1)
    private = make(OpCode.rmp_make_private, count, addr=pages, gpa=pages << 12, level=1, id=5, flags=OpFlag.IMMUTABLE)
    swap = {"va": context, "count": records}
    out = make(OpCode.SNP_PAGE_SWAP_OUT, count, addr=pages << 12, gpa=TIB, **swap)  # where the RMP does not reach
    back = rng.permutation(make(OpCode.SNP_PAGE_SWAP_IN, count, addr=TIB, gpa=pages << 12, **swap))

    def repeat() -> Figures:
        machine = rmpcore.Machine(host_map(8 * GIB))
        run(machine, make(OpCode.SNP_INIT, 1))
        run(machine, firmware)
        run(machine, make(OpCode.SNP_GCTX_CREATE, 1, addr=context))
        run(machine, make(OpCode.SNP_ACTIVATE, 1, addr=context, id=5))
        run(machine, make(OpCode.SNP_MD_INIT, len(metadata), addr=metadata << 12, va=context))
        run(machine, private)
        return {"SNP_PAGE_SWAP_OUT": run(machine, out), "SNP_PAGE_SWAP_IN": run(machine, back)}

    return repeat


def in_order(frames: npt.NDArray[np.int64], order: str) -> npt.NDArray[np.int64]:
    if order == "random":
        return np.random.default_rng(1).permutation(frames)
    return frames if order == "ascending" else frames[::-1]


def of_splits(order: str, count: int) -> Repeat:
    """2 MiB leaves split by a private page in each, put together again, split again."""
    regions = in_order(FIRST_FRAME + np.arange(count) * REGION, order)
    private = make(OpCode.rmp_make_private, count, addr=regions + 7, level=1, id=5)
    shared = make(OpCode.rmp_make_shared, count, addr=regions + 7, level=1)
    machine_map = host_map(8 * GIB + count * 4 * MIB)

    def repeat() -> Figures:
        before = resident()
        machine = rmpcore.Machine(machine_map, policy="split-restore")
        figures = {"n splits": run(machine, private)}
        figures["memory"] = resident() - before
        split = machine.counters()["level2_splits"]
        figures["n collapses"] = run(machine, shared)
        figures["n splits again"] = run(machine, private)
        counters = machine.counters()
        if not split == counters["level2_collapses"] == counters["level2_splits"] // 2 == count:
            raise RuntimeError(f"{count} splits and collapses were to be done, these were: {counters}")
        figures["validate()"] = seconds(machine.validate)
        figures["census()"] = seconds(machine.census)
        return figures

    return repeat


THREAD_OPS = 200_000
THREAD_CALLS = 50_000


def calls(machine: MachineLike) -> None:
    """Ops one by one."""
    # an op of this thread alone, down to its numbers: without a GIL threads that use one object wait for its counter
    op = Op(int(OpCode.lookup), addr=int(str(FIRST_FRAME)))
    for _ in range(THREAD_CALLS):
        machine.apply(op)


def of_threads(count: int) -> Repeat:
    """A machine to each thread; every one has the same to do.  Once before, for the system hands out memory to one
    thread of a process at a time."""
    trace = mixed_trace(THREAD_OPS)
    machines = [rmpcore.Machine(host_map((FIRST_FRAME + REGIONS * REGION) * 4096)) for _ in range(count)]
    for machine in machines:
        machine.run(trace)

    def rate(ops: int, work: Callable[[MachineLike], object]) -> float:
        threads = [threading.Thread(target=work, args=(machine,)) for machine in machines]

        def all_of_them() -> None:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return count * ops / seconds_by_the_clock(all_of_them)

    def repeat() -> Figures:
        return {
            "a machine each, ops/s": rate(THREAD_OPS, lambda machine: machine.run(trace)),
            "a machine each, one by one, ops/s": rate(THREAD_CALLS, calls),
        }

    return repeat


SHARED_OPS = 500_000


def of_shared_table(count: int) -> Repeat:
    """tests/c/threads.c: threads that share them out among them do instructions on the same few pages of one RMP."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("no C compiler: set CC")
    folder = tempfile.TemporaryDirectory()
    program = f"{folder.name}/threads"
    sources = [ROOT / "tests/c/threads.c", *sorted((ROOT / "csrc").glob("**/*.c"))]
    command = [*compiler.split(), "-O2", "-std=gnu11", "-pthread", "-I", str(ROOT / "include"), "-o", program]
    subprocess.run([*command, *map(str, sources)], check=True)

    def repeat(folder: tempfile.TemporaryDirectory[str] = folder) -> Figures:
        arguments = [program, str(SHARED_OPS), str(count)]
        spent = seconds_by_the_clock(lambda: subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL))
        return {"one RMP in C, ops/s": SHARED_OPS / spent}

    return repeat


def of_tables(count: int) -> Repeat:
    """A state with so many split 2 MiB leaves: 512 small ones from each."""
    regions = np.random.default_rng(1).permutation(FIRST_FRAME + np.arange(count) * REGION)
    private = make(OpCode.rmp_make_private, count, addr=regions, level=1, id=5)
    return of_state(host_map(8 * GIB + count * 4 * MIB), private)


def of_entries(count: int) -> Repeat:
    """A state with so many pages assigned."""
    pages = np.random.default_rng(1).permutation(FIRST_FRAME + np.arange(count))
    return of_state(host_map(16 * GIB), make(OpCode.RMPUPDATE, count, addr=pages << 12, flags=OpFlag.ASSIGNED, id=5))


def of_state(machine_map: MachineMap, ops: Ops) -> Repeat:
    def repeat() -> Figures:
        machine = rmpcore.Machine(machine_map)
        run(machine, ops)
        kept: list[Any] = []

        def keep(work: Callable[[], object]) -> float:
            return seconds(lambda: kept.append(work()))

        before = resident()
        figures = {"state()": keep(machine.state)}
        figures["memory"] = resident() - before
        figures["as JSON"] = keep(lambda: json.dumps(state_to_json(kept[0])))
        figures["from JSON"] = keep(lambda: state_from_json(json.loads(kept[1])))
        figures["Machine(state=)"] = keep(lambda: rmpcore.Machine(machine_map, state=kept[2]))
        if kept[3].state() != kept[0]:
            raise RuntimeError("the state that was loaded is not the one that was saved")
        return figures

    return repeat


def of_events(count: int) -> Repeat:
    """Commands that the firmware refuses report one event each and do nothing else."""
    machine = rmpcore.Machine(host_map(8 * GIB))
    ops = make(OpCode.SNP_DECOMMISSION, count)

    def repeat() -> Figures:
        machine.record_events(True)
        before = resident()
        run_time = seconds(lambda: machine.run(ops))
        taken: list[Ops] = []
        figures = {"run": run_time, "take_events()": seconds(lambda: taken.append(machine.take_events()))}
        figures["memory"] = resident() - before
        if len(taken[0]) != count:
            raise RuntimeError(f"{len(taken[0])} events, not {count}")
        return figures

    return repeat


def of_lines(count: int) -> Repeat:
    ops = mixed_trace(count)
    results = rmpcore.Machine(host_map((FIRST_FRAME + REGIONS * REGION) * 4096)).run(ops)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "trace")
    path.write_text("".join(f"{format_op(op)}\n" for op in unpack_ops(ops)))

    def repeat(folder: tempfile.TemporaryDirectory[str] = folder) -> Figures:
        traces: list[Trace] = []
        before = resident()
        figures = {"read_trace()": seconds(lambda: traces.append(read_trace(path)))}
        figures["memory"] = resident() - before
        if not np.array_equal(traces[0].ops, ops):
            raise RuntimeError("the trace that was read is not the one that was written")
        figures["write_results()"] = seconds(lambda: write_results(io.StringIO(), ops, results))
        return figures

    return repeat


# ---- the series ----


@dataclass(frozen=True)
class Series:
    """Sizes at which something is measured."""

    name: str
    axis: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Repeat]
    work: dict[str, int] = dataclasses.field(default_factory=dict)
    """Exponent of the work that a curve stands for, where that is not ``usual``."""
    usual: int = 1

    def expected(self, curve: str) -> int:
        return self.work.get(curve, self.usual)


def steps(first: int, last: int, count: int) -> tuple[int, ...]:
    """Sizes from the first to the last, at equal distances on a logarithmic scale."""
    return tuple(round(float(size)) for size in np.geomspace(first, last, count))


SIZES = (GIB, 4 * GIB, 16 * GIB, 64 * GIB, 256 * GIB, TIB, 4 * TIB, 12 * TIB)
SERIES = (
    # the trace goes over 2 GiB, however long it is
    Series("ops", "ops of a mixed trace", steps(1000, 1_000_000, 7), of_ops, {"memory": 0}),
    Series("memory", "bytes of memory", SIZES, of_size),
    Series("place", "bytes of memory, the same ops", SIZES, of_place, usual=0),
    Series("pieces", "pieces of memory", steps(24, 3072, 8), of_pieces),
    Series("ASIDs", "ASIDs, the same ops", steps(16, 1000, 7), of_asids, usual=0),
    Series("guests", "guests at once", steps(16, 1000, 7), of_guests),
    Series("records", "pages swapped out at once", steps(16, 1024, 7), of_records),
    *(
        Series(f"splits, {order}", "splits", steps(128, 16384, 8), functools.partial(of_splits, order))
        for order in ("ascending", "descending", "random")
    ),
    Series("tables", "tables of a state", steps(16, 512, 6), of_tables),
    Series("entries", "RMP entries of a state", steps(1000, 300_000, 6), of_entries),
    Series("events", "events", steps(1000, 1_000_000, 7), of_events),
    Series("lines", "lines of a text trace", steps(300, 30_000, 5), of_lines),
    Series("threads", "threads", (1, 2, 4), of_threads),
    Series("one table", "threads", (2, 4), of_shared_table),
)


# ---- one point, in a process of its own ----


def measure(series: Series, size: int, spent: float) -> Figures:
    """Medians of the repetitions; memory is that of the first, as later ones find some of theirs at hand."""
    repeat = series.prepare(size)
    rounds: list[Figures] = []
    started = time.perf_counter()
    while len(rounds) < FEWEST or (time.perf_counter() - started < spent and len(rounds) < MOST):
        rounds.append(repeat())
    return {
        name: rounds[0][name] if is_memory(name) else statistics.median(figures[name] for figures in rounds)
        for name in rounds[0]
    }


def is_memory(curve: str) -> bool:
    return curve.startswith("memory")


def is_rate(curve: str) -> bool:
    return curve.endswith("ops/s")


def measure_apart(series: Series, size: int, spent: float) -> Figures:
    command = [sys.executable, __file__, "--only", series.name, "--point", str(size), "--spent", str(spent)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"growth: {series.name} at {size} cannot be measured, see above")
    figures: Figures = json.loads(done.stdout)
    return figures


# ---- exponents ----


@dataclass(frozen=True)
class Fit:
    exponent: float
    verdict: str
    faster: bool
    """It grows faster than the work, by more than a logarithm and the noise."""


def fit(sizes: tuple[int, ...], values: list[float], work: int) -> Fit:
    half = slice(len(sizes) // 2, None)
    x = np.log(np.array(sizes[half], float))
    exponent = float(np.polyfit(x, np.log(np.array(values[half], float)), 1)[0])
    with_log = work + float(np.polyfit(x, np.log(x), 1)[0])
    if exponent > with_log + NOISE:
        return Fit(exponent, "faster than the work", True)
    if exponent > work + NOISE:
        return Fit(exponent, "n log n" if work else "log n", False)
    if work and exponent >= work - NOISE:
        return Fit(exponent, "linear", False)
    return Fit(exponent, "less than linear" if exponent > NOISE else "constant", False)


@dataclass(frozen=True)
class Measured:
    series: Series
    points: list[Figures]

    def curves(self) -> list[str]:
        return list(self.points[0])

    def values(self, curve: str) -> list[float]:
        return [point[curve] for point in self.points]

    def fit(self, curve: str) -> Fit | None:
        """None: threads have no exponent, as two cores are two."""
        return None if is_rate(curve) else fit(self.series.sizes, self.values(curve), self.series.expected(curve))


# ---- what comes out ----


def in_bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def in_words(curve: str, value: float) -> str:
    if is_memory(curve):
        return in_bytes(value)
    if is_rate(curve):
        return f"{value / 1e6:.3g} M/s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def size_in_words(series: Series, size: int) -> str:
    return in_bytes(size) if series.axis.startswith("bytes") else f"{size:,}"


def table(measured: Measured) -> str:
    """First, middle and last point of each curve, and its exponent."""
    series = measured.series
    shown = sorted({0, len(series.sizes) // 2, len(series.sizes) - 1})
    lines = [
        "".join(
            [
                f"{series.name}: {series.axis}".ljust(40),
                *(f"{size_in_words(series, series.sizes[i]):>12}" for i in shown),
            ]
        )
    ]
    for curve in measured.curves():
        values = measured.values(curve)
        line = "".join([f"  {curve:38}", *(f"{in_words(curve, values[i]):>12}" for i in shown)])
        found = measured.fit(curve)
        lines.append(line if found is None else f"{line}   n^{found.exponent:<5.2f} {found.verdict}")
    return "\n".join(lines)


def as_json(all_measured: list[Measured]) -> str:
    """Seconds, bytes and ops a second, by series and curve."""
    series = [
        {
            "name": measured.series.name,
            "axis": measured.series.axis,
            "sizes": measured.series.sizes,
            "curves": {
                curve: {
                    "unit": "bytes" if is_memory(curve) else "ops/s" if is_rate(curve) else "s",
                    "values": measured.values(curve),
                    "work": measured.series.expected(curve),
                }
                | (dataclasses.asdict(found) if (found := measured.fit(curve)) else {})
                for curve in measured.curves()
            },
        }
        for measured in all_measured
    ]
    host = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    return json.dumps({"format": "rmpcore-growth", "version": 1, "host": host, "series": series}, indent=1) + "\n"


LINES: tuple[Any, ...] = (
    {"linestyle": "-", "marker": "o"},
    {"linestyle": (0, (4, 2)), "marker": "s"},
    {"linestyle": (0, (1, 1)), "marker": "^"},
    {"linestyle": (0, (4, 1, 1, 1)), "marker": "D"},
    {"linestyle": "-", "marker": "x"},
)


def panels(all_measured: list[Measured]) -> list[tuple[str, Measured, list[str]]]:
    """What is drawn together: time, memory or a rate of a series, as title, series and curves."""
    found = []
    for measured in all_measured:
        curves = measured.curves()
        for title, mine in (
            ("time [s]", [c for c in curves if not is_memory(c) and not is_rate(c)]),
            ("memory [bytes]", [c for c in curves if is_memory(c)]),
            ("ops a second", [c for c in curves if is_rate(c)]),
        ):
            if mine:
                found.append((f"{measured.series.name}: {title}", measured, mine))
    return found


def picture(all_measured: list[Measured], path: str) -> bytes:
    """Small multiples, axes logarithmic but for rates.  Grey: as the work, through the end of a panel's first curve."""
    kind = require_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    drawn = panels(all_measured)
    columns = 4
    rows = -(-len(drawn) // columns)
    with matplotlib.rc_context(STYLE | {"font.size": 8}):
        figure = Figure(figsize=(13, 2.7 * rows), dpi=100, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, measured, curves) in zip(grid, drawn, strict=False):
            sizes = measured.series.sizes
            rate = is_rate(curves[0])
            axes.set(
                xscale="linear" if rate else "log", yscale="linear" if rate else "log", xlabel=measured.series.axis
            )
            axes.set_title(title, loc="left", fontsize=9)
            for curve, style in zip(curves, LINES, strict=False):
                found = measured.fit(curve)
                label = curve if found is None else f"{curve}: {found.exponent:.2f}"
                axes.plot(
                    sizes, measured.values(curve), color="black", linewidth=0.9, markersize=3, label=label, **style
                )
            if rate:
                axes.set(xlim=(0, sizes[-1] + 0.5), xticks=sizes, ylim=(0, axes.get_ylim()[1] * 1.2))
            else:
                last, work = measured.values(curves[0])[-1], measured.series.expected(curves[0])
                half = sizes[len(sizes) // 2 :]
                axes.plot(half, [last * (x / half[-1]) ** work for x in half], color="0.75", linewidth=4, zorder=0)
                low, high = axes.get_ylim()
                wider = max(1.0, (100 / (high / low)) ** 0.5)  # two decades at least: noise is no slope
                low, high = low / wider, high * wider
                axes.set_ylim(low, high * (high / low) ** (0.12 * len(curves)))  # room for the names
            axes.legend(loc="upper left", frameon=False, fontsize=7, labelspacing=0.2, borderaxespad=0.2)
            axes.spines[["top", "right"]].set_visible(False)
            axes.minorticks_off()
        for axes in grid[len(drawn) :]:
            axes.set_visible(False)
        return figure_file(figure, kind)


def main() -> None:
    by_name = {series.name: series for series in SERIES}
    parser = argparse.ArgumentParser(description="Time and memory of the native machine against the size of its input.")
    parser.add_argument("--out", metavar="FILE", help="all points and exponents as JSON")
    parser.add_argument("--plot", metavar="FILE", help="a picture, .svg or .png")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=by_name, help="this series alone; repeatable"
    )
    parser.add_argument("--spent", metavar="SECONDS", type=float, default=SPENT, help="repetitions of a point")
    parser.add_argument("--point", metavar="SIZE", type=int, help="one size of --only, here and now, as JSON")
    options = parser.parse_args()
    if options.point is not None:
        if len(options.only or ()) != 1 or options.point < 1:
            parser.error("--point needs --only NAME, once, and a size")
        print(json.dumps(measure(by_name[options.only[0]], options.point, options.spent)))
        return
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        path = options.out
        try:
            out = stack.enter_context(WholeFile(path)).file if path else None
            path = options.plot
            if path:
                require_plot(path)
            plot = stack.enter_context(WholeFile(path)).file if path else None
        except PlotError as e:
            parser.error(str(e))
        except OSError as e:
            parser.error(f"{path}: {e.strerror or e}")
        all_measured = []
        for name in options.only or by_name:
            series = by_name[name]
            all_measured.append(Measured(series, [measure_apart(series, size, options.spent) for size in series.sizes]))
            print(table(all_measured[-1]), flush=True)
        if out is not None:
            out.write(as_json(all_measured).encode())
        if plot is not None:
            plot.write(picture(all_measured, options.plot))
    faster = [f"{m.series.name}: {curve}" for m in all_measured for curve in m.curves() if grows_faster(m, curve)]
    print(f"{time.perf_counter() - started:.0f} s; faster than the work: {', '.join(faster) or 'nothing'}")


def grows_faster(measured: Measured, curve: str) -> bool:
    found = measured.fit(curve)
    return found is not None and found.faster


if __name__ == "__main__":
    main()
