"""Native and oracle on a long seeded run of random ops: ``python tests/lockstep.py dmap --ops 1000000 --jobs 2``.

dmap: changes of the direct map.  rmp: instructions, accesses, firmware commands and the host around them.  policy: the
host layer under each policy.  workload: a host's workload under each policy, as many ops for each.
The run is cut into units of one profile (map, kernel, hardware) and one seed each, which start afresh.  In a unit both
machines get the same ops in bulk; results, events, states and validate() are compared after every chunk.  Exit 1 with
a short report on the first difference: the unit, the op, and as few ops before it as still show it.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import machines as m
import numpy as np
import numpy.typing as npt
from random_host import HostGenerator
from random_ops import direct_map_ops, frames_of, image_frames
from random_rmp import Generator

from rmpcore.machine import BACKENDS, POLICIES, Machine, MachineLike
from rmpcore.maps import PAGE_OFFSETS, MachineMap, SegmentedRmp
from rmpcore.ops import (
    EventKind,
    Kind,
    Op,
    OpCode,
    Reason,
    Refusal,
    Result,
    format_result,
    pack_ops,
    unpack_ops,
    unpack_results,
)
from rmpcore.state import diff_states
from rmpcore.workload import PRESETS, resized, steps

Records = npt.NDArray[np.void]

KERNELS = ("6.1", "6.2", "6.6", "6.9", "6.13", "6.15", "7.3")
NOPAT = (0x00, 0x10, 0x10, 0x18, 0x08, 0x10)
WITHOUT_G = m.U64 & ~m.G
SMALL = m.build_map([(0, 16 * m.MIB), (18 * m.MIB, 6 * m.MIB)])
IMAGE = dataclasses.replace(m.IMAGE, memory=((0, 40 * m.MIB),), e820=((0, 40 * m.MIB, 1),), max_pfn=0x2800)
GIGA = m.build_map([(0, 2 * m.GIB), (3 * m.GIB, m.GIB)])
MAPS: dict[str, MachineMap] = {
    "2M": SMALL,
    "4K": dataclasses.replace(SMALL, large_pages="4K"),
    "1G": GIGA,
    "1G nopat pti": dataclasses.replace(GIGA, cachemodes=NOPAT, default_mask=WITHOUT_G),
    "c-bit pti": dataclasses.replace(SMALL, c_bit=1 << 51, default_mask=WITHOUT_G),
    "image": IMAGE,
    "image 4K": dataclasses.replace(IMAGE, large_pages="4K"),
    "image 1G": dataclasses.replace(GIGA, image=m.IMAGE_SYMBOLS),
    "moved image c-bit nopat": dataclasses.replace(m.IMAGE_MOVED, c_bit=1 << 47, cachemodes=NOPAT),
    "image without NX": dataclasses.replace(IMAGE, supported_mask=m.U64 & ~m.NX),
}
AROUND_LINES = (0x200, 0x3FF, 0x400, 0x5FF, 0x601)
CHUNK = 60
CHUNKS = 20
MOST = (9, 9, 9, 9, 9, 36, 36, 36, 0x202)
"""Pages of one call at most, by chunk: little for the oracle to walk; beyond the ceiling of 33; a whole 2 MiB page."""


class Unit(Protocol):
    """What is run on one pair of machines."""

    @property
    def profile(self) -> str:
        """What units have in common that differ in the seed only."""

    def pair(self) -> tuple[MachineLike, MachineLike]:
        """Native and oracle, as the unit starts, with events on."""

    def chunks(self) -> Iterator[list[Op]]:
        """The unit's ops, which depend on nothing but the unit."""


def pair_of(map_: MachineMap, **options: Any) -> tuple[MachineLike, MachineLike]:
    """Native and oracle, with events on."""
    native, oracle = (Machine(map_, backend=backend, **options) for backend in BACKENDS)
    native.record_events(True)
    oracle.record_events(True)
    return native, oracle


class DirectMapUnit(NamedTuple):
    """Changes of one direct map."""

    name: str
    kernel: str
    levels: int
    readonly: bool
    seed: int
    ops: int

    @property
    def profile(self) -> str:
        return f"{self.name} {self.kernel} {self.levels}"

    @property
    def map(self) -> MachineMap:
        base = MAPS[self.name]
        return dataclasses.replace(base, levels=self.levels, page_offset=PAGE_OFFSETS[self.levels])

    def pair(self) -> tuple[MachineLike, MachineLike]:
        pair = []
        for backend in ("native", "oracle"):
            machine = Machine(self.map, backend=backend, kernel=self.kernel)
            if self.readonly:
                state = m.changed(machine.state(), kernel_readonly=True)
                machine = Machine(self.map, backend=backend, kernel=self.kernel, state=state)
            machine.record_events(True)
            pair.append(machine)
        return pair[0], pair[1]

    def chunks(self) -> Iterator[list[Op]]:
        rng = random.Random(repr(self))
        # few large pages, so that calls meet what others have left
        frames = [*rng.sample(frames_of(self.map), 6), *AROUND_LINES, *image_frames(self.map)[::2]]
        if self.map.max_pfn > 0x40000:
            frames.append(0x40000)
        left = self.ops
        while left > 0:
            ops = direct_map_ops(
                rng, frames, min(CHUNK, left), rng.choice(MOST), 0.25 if self.map.image else 0.02, 0.006
            )
            left -= len(ops)
            yield ops


def direct_map_units(total: int, seed: int) -> Iterator[Unit]:
    """Units of all profiles in turn until there are enough ops."""
    rng = random.Random(seed)
    number = 0
    while total > 0:
        profiles = [(name, kernel, levels) for name in MAPS for kernel in KERNELS for levels in (4, 5)]
        rng.shuffle(profiles)
        for name, kernel, levels in profiles:
            ops = min(CHUNK * CHUNKS, total)
            if ops:
                yield DirectMapUnit(name, kernel, levels, rng.random() < 0.5, seed * 1_000_000 + number, ops)
            number += 1
            total -= ops


CONTIGUOUS = m.build_map(
    [(0, 20 * m.MIB)],
    e820=[(0, 20 * m.MIB, 1), (20 * m.MIB, 2 * m.MIB, 2)],
    # covers 21 MiB, its own first mebibyte among them
    rmp=(20 * m.MIB, 20 * m.MIB + 0x4000 + 16 * 0x1500 - 1),
    rmp_probed=False,
)
SEGMENTED = m.build_map(
    [(0, 1000 * m.MIB), (2 * m.GIB, m.GIB)],
    e820=[(0, 1000 * m.MIB, 1), (1000 * m.MIB, 24 * m.MIB, 2), (2 * m.GIB, m.GIB, 1)],
    # segment 1 is not covered; 3 has reserved bits in its entry
    segmented=SegmentedRmp(
        1001 * m.MIB, 30 << 8 | 1, (1 | 1004 * m.MIB, 0, 1 | 1008 * m.MIB, 1 | 1012 * m.MIB | 1 << 60)
    ),
)
TABLES = {
    "contiguous": CONTIGUOUS,
    "contiguous c-bit": dataclasses.replace(CONTIGUOUS, c_bit=1 << 51),
    "segmented": SEGMENTED,
    "segmented c-bit": dataclasses.replace(SEGMENTED, c_bit=1 << 47),
}
PARTS = ("milan", "genoa", "turin")
RMP_KERNELS = ("6.9", "6.10", "6.12", "6.14", "6.15")
SWITCHES: dict[str, tuple[int, ...]] = {
    "rmpread": (0, 1),
    "overlap_inner": (1, 4),
    "psmash_unassigned": (2, 7),
    "psmash_immutable": (2, 7),
    "keep_same": (0, 1),
    "reserved_input": (0, 1),
    "asid_limit": (5, 0x3FF),
    "lock_follows_immutable": (0, 1),
    "subpage_count": (0, 1),
    "rmpquery": (0, 1),
    "inuse_first": (0, 1),
    "pvalidate_vmpl": (0, 2),
    "rescind_resets": (0, 1),
    "rmpquery_vmpl": (0, 2),
    "bookkeeping": (0, 1, 512),
    "vmpls": (1, 2, 4),
    "vmpl_sss": (0, 1),
    "hv_in_use_wr": (0, 1),
}
RMP_CHUNK = 500
RMP_CHUNKS = 12


class RmpUnit(NamedTuple):
    """Instructions, accesses and commands on one RMP."""

    table: str
    part: str
    kernel: str
    switches: tuple[tuple[str, int], ...]
    seed: int
    ops: int

    @property
    def profile(self) -> str:
        return f"{self.part} {self.table.split()[0]}"

    @property
    def map(self) -> MachineMap:
        return TABLES[self.table]

    def pair(self) -> tuple[MachineLike, MachineLike]:
        return pair_of(self.map, kernel=self.kernel, hardware=self.part, switches=dict(self.switches))

    def chunks(self) -> Iterator[list[Op]]:
        generator = Generator(self, self.map, dict(self.switches))
        left = self.ops
        while left > 0:
            ops = generator.ops(min(RMP_CHUNK, left))
            left -= len(ops)
            yield ops


def rmp_units(total: int, seed: int) -> Iterator[Unit]:
    """Units of all parts and tables in turn, half of them with some switches the other way."""
    rng = random.Random(seed)
    number = 0
    while total > 0:
        for table in TABLES:
            for part in PARTS:
                kernel = rng.choice(RMP_KERNELS[-2:] if "segmented" in table else RMP_KERNELS)
                switches = {name: rng.choice(values) for name, values in SWITCHES.items() if rng.random() < 0.3}
                if number % 2:
                    switches = {}
                if "segmented" in table:
                    switches |= {"segmented": 1, "segment_min": 30}
                ops = min(RMP_CHUNK * RMP_CHUNKS, total)
                if ops > 0:
                    items = tuple(sorted(switches.items()))
                    yield RmpUnit(table, part, kernel, items, seed * 1_000_000 + number, ops)
                number += 1
                total -= ops


GIGA_E820 = [(0, 2 * m.GIB, 1), (2 * m.GIB, 64 * m.MIB, 2), (3 * m.GIB, m.GIB, 1)]
GIGA_RMP = m.build_map(
    [(0, 2 * m.GIB), (3 * m.GIB, m.GIB)], e820=GIGA_E820, rmp=(2 * m.GIB, 2 * m.GIB + 64 * m.MIB - 1)
)
HOSTS: dict[str, MachineMap] = {
    "1G": GIGA_RMP,
    "1G c-bit pti": dataclasses.replace(GIGA_RMP, c_bit=1 << 51, default_mask=WITHOUT_G),
    "1G five levels": dataclasses.replace(GIGA_RMP, levels=5, page_offset=PAGE_OFFSETS[5]),
    "2M": m.SNP,
    "image": m.SNP_IMAGE,
    "partly covered": CONTIGUOUS,
}
HOST_KERNELS = ("6.9", "6.12", "6.14", "6.15", "7.3")
HOST_CHUNK = 150
HOST_CHUNKS = 8


class PolicyUnit(NamedTuple):
    """Calls of the host layer under one policy."""

    policy: str
    name: str
    kernel: str
    part: str
    seed: int
    ops: int

    @property
    def profile(self) -> str:
        return self.policy

    @property
    def map(self) -> MachineMap:
        return HOSTS[self.name]

    def pair(self) -> tuple[MachineLike, MachineLike]:
        return pair_of(self.map, kernel=self.kernel, hardware=self.part, policy=self.policy)

    def chunks(self) -> Iterator[list[Op]]:
        generator = HostGenerator(self, self.map)
        left = self.ops
        yield generator.first()
        while left > 0:
            ops = generator.ops(min(HOST_CHUNK, left))
            left -= len(ops)
            yield ops


def policy_units(total: int, seed: int) -> Iterator[Unit]:
    """Units of all policies in turn."""
    rng = random.Random(seed)
    number = 0
    while total > 0:
        for policy in POLICIES:
            # 4K leaves of whole gibibytes are slow to compare
            name = rng.choice([name for name in HOSTS if policy != "map-4k" or "1G" not in name])
            ops = min(HOST_CHUNK * HOST_CHUNKS, total)
            if ops > 0:
                yield PolicyUnit(
                    policy, name, rng.choice(HOST_KERNELS), rng.choice(PARTS), seed * 1_000_000 + number, ops
                )
            number += 1
            total -= ops


WORKLOAD_HOST = m.build_map(
    [(0, 256 * m.MIB)], e820=[(0, 256 * m.MIB, 1), (256 * m.MIB, 2 * m.MIB, 2)], rmp=(256 * m.MIB, 258 * m.MIB - 1)
)
BUSY = resized(
    PRESETS["churn"],
    guests=1 << 20,
    together=3,
    memory=20 * m.MIB,
    touched=0.9,
    exits=300,
    changes=2,
    commands=20,
    host=16 * m.MIB,
    pressure=0.1,
)
"""Guests without end on a small host, so that its memory is used again and again."""
WORKLOAD_CHUNK = 1 << 15
LARGEST_REPORT = 20_000
"""Ops that a difference is looked for in one by one: it may take that many times that many."""


class WorkloadUnit(NamedTuple):
    """A host's workload under one policy."""

    policy: str
    backing: str
    seed: int
    ops: int

    @property
    def profile(self) -> str:
        return self.policy

    def pair(self) -> tuple[MachineLike, MachineLike]:
        return pair_of(WORKLOAD_HOST, policy=self.policy)

    def chunks(self) -> Iterator[list[Op]]:
        waiting: list[Op] = []
        left = self.ops
        for step in steps(resized(BUSY, backing=self.backing), WORKLOAD_HOST, self.seed):
            waiting += unpack_ops(step.ops)
            while min(left, len(waiting)) >= min(left, WORKLOAD_CHUNK) > 0:
                chunk = waiting[: min(left, WORKLOAD_CHUNK)]
                del waiting[: len(chunk)]
                left -= len(chunk)
                yield chunk
            if not left:
                return


def workload_units(total: int, seed: int) -> Iterator[Unit]:
    """So many ops under each policy, half of them with guests on 2M pages."""
    for policy in POLICIES:
        for number, backing in enumerate(("4K", "2M")):
            yield WorkloadUnit(policy, backing, seed + number, total // 2)


WHAT = {"dmap": direct_map_units, "rmp": rmp_units, "policy": policy_units, "workload": workload_units}


def difference(native: MachineLike, oracle: MachineLike, ops: list[Op]) -> tuple[str, Records, Records]:
    """Do a chunk on both: what differs afterwards (empty: nothing), the results, the events."""
    array = pack_ops(ops)
    results, events = native.run(array), native.take_events()
    if results.tobytes() != oracle.run(array).tobytes():
        return "results", results, events
    if events.tobytes() != oracle.take_events().tobytes():
        return "events", results, events
    if native.validate() is not None or oracle.validate() is not None:
        return f"invariants: native {native.validate()}, oracle {oracle.validate()};", results, events
    return ("" if native.state() == oracle.state() else "states"), results, events


def differs(unit: Unit, ops: list[Op]) -> bool:
    native, oracle = unit.pair()
    return any(difference(native, oracle, [op])[0] for op in ops)


def report(unit: Unit, ops: list[Op]) -> str:
    """The first op that tells the two apart, after as few others as still lead there."""
    native, oracle = unit.pair()
    for number, op in enumerate(ops):
        if difference(native, oracle, [op])[0]:
            ops = ops[: number + 1]
            break
    else:
        return f"{unit}: differs in bulk only: run() is not apply()"
    size = len(ops) // 2
    while size:
        at = 0
        while at < len(ops) - 1:
            fewer = ops[:at] + ops[min(at + size, len(ops) - 1) :]
            if differs(unit, fewer):
                ops = fewer
            else:
                at += size
        size //= 2
    native, oracle = unit.pair()
    for op in ops[:-1]:
        difference(native, oracle, [op])
    last = ops[-1]
    mine, theirs = native.apply(last), oracle.apply(last)
    lines = [f"{unit}", *(f"  {op}" for op in ops)]
    lines += [f"native: {mine} {format_result(last, mine)}", f"oracle: {theirs} {format_result(last, theirs)}"]
    for machine in (native, oracle):
        lines += [f"{machine.backend} events:", *(f"  {event}" for event in machine.take_events().tolist()[:40])]
    lines += [f"{machine.backend} validate(): {machine.validate()}" for machine in (native, oracle)]
    return "\n".join([*lines, *list(diff_states(native.state(), oracle.state()))[:40]])


def run(unit: Unit) -> tuple[str, int, Counter[tuple[str, str]], Counter[str], str]:
    """The profile, number of ops done, how often each op had which outcome, how many events of each kind, report on a
    difference."""
    native, oracle = unit.pair()
    done: list[Op] = []
    outcomes: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    for ops in unit.chunks():
        done += ops
        found, results, events = difference(native, oracle, ops)
        if found:
            where = (
                report(unit, done) if len(done) <= LARGEST_REPORT else f"{unit}: in the {len(ops)} ops to {len(done)}"
            )
            return unit.profile, len(done), outcomes, kinds, f"{found} differ\n{where}"
        for op, result in zip(ops, unpack_results(results), strict=True):
            name = OpCode(op.op).name if op.op in OpCode.__members__.values() else "no op"
            outcomes[name, outcome(result)] += 1
        kinds.update(EventKind(kind).name for kind in events["kind"].tolist())
    return unit.profile, len(done), outcomes, kinds, ""


def outcome(result: Result) -> str:
    if result.kind == Kind.REFUSED:
        return Refusal(result.ret).name
    name = "" if result.kind in (Kind.KERNEL, Kind.CODE, Kind.FIRMWARE) else f"{Kind(result.kind).name} "
    return f"{name}{result.ret} {Reason(result.reason).name}" if result.reason else f"{name}{result.ret}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=WHAT, help="what the ops are about")
    parser.add_argument("--ops", type=int, default=100_000, help="how many ops, for workload under each policy")
    parser.add_argument("--seed", type=int, default=1, help="what the ops depend on (default 1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    args = parser.parse_args()
    start = time.monotonic()
    profiles: Counter[str] = Counter()
    outcomes: Counter[tuple[str, str]] = Counter()
    events: Counter[str] = Counter()
    with multiprocessing.Pool(args.jobs) as pool:
        for profile, done, counted, seen, found in pool.imap_unordered(run, WHAT[args.what](args.ops, args.seed)):
            profiles[profile] += done
            outcomes.update(counted)
            events.update(seen)
            if found:
                pool.terminate()
                print(found)
                return 1
    seconds = time.monotonic() - start
    for name in sorted({name for name, _ in outcomes}):
        counts = {how: count for (op, how), count in sorted(outcomes.items()) if op == name}
        print(f"{name:32}" + "  ".join(f"{how}: {count}" for how, count in counts.items()))
    print("events".ljust(32) + "  ".join(f"{name}: {count}" for name, count in sorted(events.items())))
    if args.what != "dmap":
        print("ops".ljust(32) + "  ".join(f"{name}: {count}" for name, count in sorted(profiles.items())))
    total = profiles.total()
    print(f"{total} ops, {len(profiles)} profiles, no difference; {total / seconds:.0f} ops a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
