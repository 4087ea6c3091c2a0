"""The policies of docs/host.md, section 6, held against each other: the same workload on the same machine under each.

One :class:`Task` is one policy and one seed; :func:`measure` runs it from boot to end and gives plain numbers, the
ones of host §4.  Tasks know nothing of each other, so :func:`compare` may run them in this process, on all cores or
on a Dask cluster, and gives the same numbers each way.

Needs distributed for a cluster (``pip install 'rmpcore[cluster]'``), which is loaded then and not before.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpcore.cluster import cluster_at
from rmpcore.machine import Machine, MachineLike
from rmpcore.maps import MachineMap
from rmpcore.ops import RMP_CALLS, Kind, OpCode
from rmpcore.workload import Workload, steps

SAMPLES = 48
"""How often a run is looked at on its way."""

Report = Callable[[float], object]
"""Called now and then with the fraction that is done, 0 to 1."""

_UNMAPPING = ("unmap", "unmap-flush")
_CALLS = np.zeros(max(OpCode) + 1, dtype=np.bool_)
_CALLS[list(RMP_CALLS)] = True


class CompareError(ValueError):
    """A comparison that could not be made: no cluster, or a process that died."""


@dataclass(frozen=True)
class Task:
    """One run: what it takes to repeat it anywhere."""

    map: MachineMap
    workload: Workload
    policy: str
    seed: int
    kernel: str
    hardware: str
    backend: str = "native"
    cpus: int = 128
    """CPUs that each flush goes to."""


@dataclass(frozen=True)
class Sample:
    """A run on its way; splits and faults are those so far."""

    progress: float
    splits: int
    reach: int
    faults_owner: int
    faults_neighbour: int
    missing: int
    lost: int
    table_pages: int


@dataclass(frozen=True)
class Measurement:
    """What one run came to.  Everything that is counted is counted from boot on; peaks are those of the samples."""

    policy: str
    seed: int
    ops: int
    accesses: int
    """The host's and KVM's own (host §6.5)."""
    done: int
    """... that got through in the end."""
    faults_owner: int
    faults_neighbour: int
    repairs: int
    forced_shared: int
    windows: int
    failed: int
    """Calls of the rmpupdate() family, of psmash() and for firmware pages that did not answer 0, and ops of any sort
    that hang or were refused."""
    leaked_pages: int
    missing: int
    """4 KiB frames that the direct map does not map at the end, under leaves that are not present."""
    missing_peak: int
    splits_1g: int
    splits_2m: int
    collapses_1g: int
    collapses_2m: int
    flush_full: int
    flush_page: int
    """Pages flushed one by one."""
    flush_cpus: int
    """Both, on every CPU."""
    updates: int
    """RMPUPDATEs executed."""
    retries: int
    pages_1g: int
    """Present leaves of that size at the end."""
    pages_2m: int
    pages_4k: int
    bytes_1g: int
    bytes_2m: int
    bytes_4k: int
    table_pages: int
    table_pages_peak: int
    reach_boot: int
    """Present leaves of all sizes, which is how many TLB entries cover all mapped memory once."""
    reach_peak: int
    reach_end: int
    lost_peak: int
    """4 KiB frames under 4K leaves or missing, less those at boot."""
    lost_end: int
    series: tuple[Sample, ...]
    seconds: float = field(compare=False)
    """Making the ops and doing them, by the clock."""


NUMBERS = tuple(part.name for part in fields(Measurement) if part.name not in ("policy", "seed", "series", "seconds"))
"""The names of a measurement's counts."""


class _Watch:
    """Looks at a machine from boot on, and counts from there."""

    def __init__(self, machine: MachineLike, policy: str) -> None:
        self._machine, self._unmaps = machine, policy in _UNMAPPING
        self._boot, self.census = machine.counters(), machine.census()
        self.grown = dict.fromkeys(self._boot, 0)
        """Each counter's growth up to the last look."""
        self._small = self.census["4k"] + self.census["missing"]
        self._changes = self._count_changes()
        self.samples = [self._sample(0.0)]

    def _count_changes(self) -> list[int]:
        return [self.grown[f"level{level}_{what}"] for level in (2, 3) for what in ("splits", "collapses")]

    def _sample(self, progress: float) -> Sample:
        return Sample(
            progress,
            splits=self.grown["level2_splits"] + self.grown["level3_splits"],
            reach=self.census["4k"] + self.census["2m"] + self.census["1g"],
            faults_owner=self.grown["host_faults_owner"],
            faults_neighbour=self.grown["host_faults_neighbour"],
            missing=self.census["missing"],
            lost=self.census["4k"] + self.census["missing"] - self._small,
            table_pages=self._boot["table_pages"] + self.grown["table_pages"],
        )

    def look(self, progress: float) -> None:
        counters = self._machine.counters()
        self.grown = {name: counters[name] - self._boot[name] for name in counters}
        # To walk a large direct map of 4K leaves takes long.  Unless a policy unmaps, only these changes move leaves.
        changes = self._count_changes()
        if self._unmaps or changes != self._changes:
            self._changes, self.census = changes, self._machine.census()
        self.samples.append(self._sample(progress))


def _failed(ops: npt.NDArray[np.void], results: npt.NDArray[np.void]) -> int:
    kind = results["kind"]
    unusual = (results["ret"] != 0) | (kind != Kind.KERNEL)
    return int(np.count_nonzero(unusual & _CALLS[ops["op"]] | (kind == Kind.HANG) | (kind == Kind.REFUSED)))


def measure(task: Task, report: Report | None = None) -> Measurement:
    """One run.  Raises :class:`~rmpcore.workload.WorkloadError` and :class:`~rmpcore.machine.MachineError`."""
    machine = Machine(task.map, kernel=task.kernel, hardware=task.hardware, backend=task.backend, policy=task.policy)
    watch = _Watch(machine, task.policy)
    started = time.perf_counter()
    ops = failed = 0
    for step in steps(task.workload, task.map, task.seed):
        results = machine.run(step.ops)
        ops += len(results)
        failed += _failed(step.ops, results)
        if len(watch.samples) <= step.progress * SAMPLES < SAMPLES:
            watch.look(step.progress)
        if report is not None:
            report(step.progress)
    watch.look(1.0)
    seconds = time.perf_counter() - started

    grown, census, samples, last = watch.grown, watch.census, watch.samples, watch.samples[-1]
    faults = grown["host_faults_owner"] + grown["host_faults_neighbour"]
    return Measurement(
        policy=task.policy,
        seed=task.seed,
        ops=ops,
        accesses=grown["host_accesses"],
        done=grown["host_accesses"] - (faults - grown["fault_repairs"]),
        faults_owner=grown["host_faults_owner"],
        faults_neighbour=grown["host_faults_neighbour"],
        repairs=grown["fault_repairs"],
        forced_shared=grown["forced_shared"],
        windows=grown["kmap_windows"],
        failed=failed,
        leaked_pages=grown["leaked_pages"],
        missing=last.missing,
        missing_peak=max(sample.missing for sample in samples),
        splits_1g=grown["level3_splits"],
        splits_2m=grown["level2_splits"],
        collapses_1g=grown["level3_collapses"],
        collapses_2m=grown["level2_collapses"],
        flush_full=grown["flush_all"],
        flush_page=grown["flush_pages"],
        flush_cpus=(grown["flush_all"] + grown["flush_pages"]) * task.cpus,
        updates=grown["rmpupdate"],
        retries=grown["rmpupdate_retries"],
        pages_1g=census["1g"],
        pages_2m=census["2m"],
        pages_4k=census["4k"],
        bytes_1g=census["1g"] << 30,
        bytes_2m=census["2m"] << 21,
        bytes_4k=census["4k"] << 12,
        table_pages=last.table_pages,
        table_pages_peak=max(sample.table_pages for sample in samples),
        reach_boot=samples[0].reach,
        reach_peak=max(sample.reach for sample in samples),
        reach_end=last.reach,
        lost_peak=max(sample.lost for sample in samples),
        lost_end=last.lost,
        series=tuple(samples),
        seconds=seconds,
    )


# --- many runs -----------------------------------------------------------------------------------------------------

_shared: Any = None
"""In a process of its own: how far each task is, for all to see."""


def _join(shared: Any) -> None:
    global _shared
    _shared = shared
    # Ctrl-C ends this process at once, and in silence.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _measure_in_process(index: int, task: Task) -> Measurement:
    def report(progress: float) -> None:
        _shared[index] = progress

    return measure(task, report)


def _in_processes(tasks: Sequence[Task], jobs: int, report: Report) -> list[Measurement]:
    context = multiprocessing.get_context("spawn")
    shared = context.Array("d", len(tasks), lock=False)
    pool = ProcessPoolExecutor(jobs, context, _join, (shared,))
    try:
        futures = [pool.submit(_measure_in_process, index, task) for index, task in enumerate(tasks)]
        running = set(futures)
        while running:
            done, running = wait(running, timeout=0.2, return_when="FIRST_EXCEPTION")
            for future in done:
                future.result()
            report(sum(shared) / len(tasks))
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise CompareError("a process died before its run was over; too little memory?  --jobs 1 takes least") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _on_cluster(tasks: Sequence[Task], address: str, report: Report) -> list[Measurement]:
    with cluster_at(address, CompareError) as client:
        from distributed import KilledWorker, as_completed

        futures = client.map(measure, tasks, pure=False)
        runs: dict[Any, Measurement] = {}
        try:
            for future, run in as_completed(futures, with_results=True):
                runs[future.key] = run
                report(len(runs) / len(tasks))
        except (ImportError, RuntimeError, CancelledError, KilledWorker) as e:
            why = " ".join(str(e).split())
            raise CompareError(f"the cluster at {address} cannot do it (does it have rmpcore?): {why}") from None
    return [runs[future.key] for future in futures]


def compare(
    tasks: Sequence[Task], *, jobs: int = 1, cluster: str | None = None, report: Report = lambda progress: None
) -> list[Measurement]:
    """Run all tasks; the measurements come in the tasks' order.

    jobs: so many processes, 1: this one; cluster: the address of a Dask scheduler, which does them instead.  Raises
    :class:`CompareError` and what :func:`measure` raises.  With processes, the caller's main module has to be one that
    can be imported again (:mod:`multiprocessing`, "spawn")."""
    if cluster is not None:
        return _on_cluster(tasks, cluster, report)
    jobs = min(jobs, len(tasks))
    if jobs > 1:
        return _in_processes(tasks, jobs, report)
    done: list[Measurement] = []
    for task in tasks:
        done.append(measure(task, lambda progress: report((len(done) + progress) / len(tasks))))
    return done


# --- over seeds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """One number of one policy over all seeds."""

    median: int
    """With an even number of seeds the lower one of the two in the middle, so that it is one that occurred."""
    min: int
    max: int


def summary(measurements: Sequence[Measurement]) -> dict[str, dict[str, Spread]]:
    """For each policy, in order, each of :data:`NUMBERS` over the seeds."""
    runs: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        runs.setdefault(measurement.policy, []).append(measurement)
    table = {}
    for policy, group in runs.items():
        values = {name: [getattr(run, name) for run in group] for name in NUMBERS}
        table[policy] = {name: Spread(statistics.median_low(v), min(v), max(v)) for name, v in values.items()}
    return table
