"""The runs that a campaign is made of: each is a machine and the ops that are done to it, and depends on nothing else.

split: changes of the direct map.  rmp, guest, firmware: instructions, accesses and commands on the RMP, with the host
around them, more of one or of the other.  host: calls of the host layer under a policy.  workload: a host's workload
under a policy.  A unit is small, so that any number of processes can share a campaign, and starts afresh.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rmpcore.fuzzing.dmap_ops import direct_map_ops, frames_of, image_frames
from rmpcore.fuzzing.host_ops import HostGenerator
from rmpcore.fuzzing.maps import DIRECT_MAPS, HOSTS, MIB, RMPS, WORKLOAD_HOST
from rmpcore.fuzzing.rmp_ops import FOCUSES, Generator
from rmpcore.machine import POLICIES
from rmpcore.maps import PAGE_OFFSETS, MachineMap
from rmpcore.ops import pack_ops
from rmpcore.start import Rules
from rmpcore.workload import PRESETS, resized, steps

Ops = npt.NDArray[np.void]


class Unit(Protocol):
    """What is run on one pair of machines."""

    @property
    def profile(self) -> str:
        """What units have in common that differ in their ops only."""

    @property
    def map(self) -> MachineMap:
        """The memory that both machines boot from."""

    @property
    def rules(self) -> Rules:
        """Kernel, hardware, switches and policy."""

    @property
    def readonly(self) -> bool:
        """The kernel has made its image read-only before the first op."""

    def chunks(self) -> Iterator[Ops]:
        """The unit's ops, in arrays of a good size."""


# --- split -----------------------------------------------------------------------------------------------------------

KERNELS = ("6.1", "6.2", "6.6", "6.9", "6.13", "6.15", "7.3")
AROUND_LINES = (0x200, 0x3FF, 0x400, 0x5FF, 0x601)
SPLIT_CHUNK = 60
SPLIT_OPS = 1200
MOST = (9, 9, 9, 9, 9, 36, 36, 36, 0x202)
"""Pages of one call at most, by chunk: little for the oracle to walk; beyond the ceiling of 33; a whole 2 MiB page."""


class DirectMapUnit(NamedTuple):
    """Changes of one direct map."""

    name: str
    kernel: str
    levels: int
    readonly: bool
    seed: object
    ops: int

    @property
    def profile(self) -> str:
        return f"split {self.name}, kernel {self.kernel}, {self.levels} levels"

    @property
    def map(self) -> MachineMap:
        return dataclasses.replace(DIRECT_MAPS[self.name], levels=self.levels, page_offset=PAGE_OFFSETS[self.levels])

    @property
    def rules(self) -> Rules:
        return Rules(self.kernel)

    def chunks(self) -> Iterator[Ops]:
        rng = random.Random(repr(self))
        # few large pages, so that calls meet what others have left
        frames = [*rng.sample(frames_of(self.map), 6), *AROUND_LINES, *image_frames(self.map)[::2]]
        if self.map.max_pfn > 0x40000:
            frames.append(0x40000)
        left = self.ops
        while left > 0:
            most, high = rng.choice(MOST), 0.25 if self.map.image else 0.02
            ops = direct_map_ops(rng, frames, min(SPLIT_CHUNK, left), most, high, 0.006)
            left -= len(ops)
            yield pack_ops(ops)


# --- rmp, guest, firmware --------------------------------------------------------------------------------------------

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
RMP_CHUNK = 1500
RMP_OPS = 6000


class RmpUnit(NamedTuple):
    """Instructions, accesses and commands on one RMP."""

    focus: str
    table: str
    part: str
    kernel: str
    switches: tuple[tuple[str, int], ...]
    seed: object
    ops: int

    @property
    def profile(self) -> str:
        return f"{self.focus} {self.part}, {self.table}"

    @property
    def map(self) -> MachineMap:
        return RMPS[self.table]

    @property
    def rules(self) -> Rules:
        return Rules(self.kernel, self.part, dict(self.switches))

    @property
    def readonly(self) -> bool:
        return False

    def chunks(self) -> Iterator[Ops]:
        generator = Generator(self, self.map, dict(self.switches), self.focus)
        left = self.ops
        while left > 0:
            ops = generator.ops(min(RMP_CHUNK, left))
            left -= len(ops)
            yield pack_ops(ops)


# --- host ------------------------------------------------------------------------------------------------------------

HOST_KERNELS = ("6.9", "6.12", "6.14", "6.15", "7.3")
HOST_CHUNK = 150
HOST_OPS = 1200


class PolicyUnit(NamedTuple):
    """Calls of the host layer under one policy."""

    policy: str
    name: str
    kernel: str
    part: str
    seed: object
    ops: int

    @property
    def profile(self) -> str:
        return f"host {self.policy}, {self.name}"

    @property
    def map(self) -> MachineMap:
        return HOSTS[self.name]

    @property
    def rules(self) -> Rules:
        return Rules(self.kernel, self.part, policy=self.policy)

    @property
    def readonly(self) -> bool:
        return False

    def chunks(self) -> Iterator[Ops]:
        generator = HostGenerator(self, self.map)
        left = self.ops
        first = generator.first()
        while left > 0:
            ops = first + generator.ops(min(HOST_CHUNK, left))
            left -= len(ops)
            first = []
            yield pack_ops(ops)


# --- workload --------------------------------------------------------------------------------------------------------

BUSY = resized(
    PRESETS["churn"],
    guests=1 << 20,
    together=3,
    memory=20 * MIB,
    touched=0.9,
    exits=300,
    changes=2,
    commands=20,
    host=16 * MIB,
    pressure=0.1,
)
"""Guests without end on a small host, so that its memory is used again and again."""
BACKINGS = ("4K", "2M")
WORKLOAD_OPS = 60_000


class WorkloadUnit(NamedTuple):
    """A host's workload under one policy."""

    policy: str
    backing: str
    kernel: str
    seed: int
    ops: int

    @property
    def profile(self) -> str:
        return f"workload {self.policy}, guests on {self.backing} pages"

    @property
    def map(self) -> MachineMap:
        return WORKLOAD_HOST

    @property
    def rules(self) -> Rules:
        return Rules(self.kernel, policy=self.policy)

    @property
    def readonly(self) -> bool:
        return False

    def chunks(self) -> Iterator[Ops]:
        left = self.ops
        for step in steps(resized(BUSY, backing=self.backing), self.map, self.seed):
            ops = step.ops[:left]
            left -= len(ops)
            yield ops
            if not left:
                return


# --- all of them -----------------------------------------------------------------------------------------------------

KINDS = ("split", "rmp", "guest", "firmware", "host", "workload")
FOCUS = {kind: (kind,) for kind in KINDS[:4]} | {"host": ("host", "workload"), "all": KINDS}
"""What units a campaign has, by what it is about."""


def _profiles(kind: str) -> list[tuple[object, ...]]:
    """What units of a kind are told apart by."""
    if kind == "split":
        return [(name, kernel, levels) for name in DIRECT_MAPS for kernel in KERNELS for levels in (4, 5)]
    if kind in FOCUSES:
        return [(table, part) for table in RMPS for part in PARTS]
    if kind == "host":
        # 4K leaves of whole gibibytes are slow to compare
        return [(policy, name) for policy in POLICIES for name in HOSTS if policy != "map-4k" or "1G" not in name]
    return [(policy, backing) for policy in POLICIES for backing in BACKINGS]


def _unit(kind: str, profile: tuple[object, ...], seed: str) -> Unit:
    """A unit of a profile; what the profile leaves open follows from the seed."""
    rng = random.Random(f"{seed} {kind}")
    if kind == "split":
        name, kernel, levels = profile
        return DirectMapUnit(str(name), str(kernel), int(str(levels)), rng.random() < 0.5, seed, SPLIT_OPS)
    first, second = map(str, profile)
    if kind in FOCUSES:
        segmented = "segmented" in first
        kernel = rng.choice(RMP_KERNELS[-2:] if segmented else RMP_KERNELS)
        # half of them with some switches the other way
        share = rng.choice((0.0, 0.3))
        switches = {name: rng.choice(values) for name, values in SWITCHES.items() if rng.random() < share}
        if segmented:
            switches |= {"segmented": 1, "segment_min": 30}
        return RmpUnit(kind, first, second, kernel, tuple(sorted(switches.items())), seed, RMP_OPS)
    kernel = rng.choice(HOST_KERNELS)
    if kind == "host":
        return PolicyUnit(first, second, kernel, rng.choice(PARTS), seed, HOST_OPS)
    return WorkloadUnit(first, second, kernel, rng.getrandbits(32), WORKLOAD_OPS)


@dataclass(frozen=True)
class Plan:
    """The units of a campaign, by number from 0 on: kinds in turn, each kind's profiles in a random order."""

    seed: int
    focus: str = "all"
    """One of :data:`FOCUS`."""
    profile: str = ""
    """Only units whose profile contains this text."""

    @cached_property
    def _wanted(self) -> list[tuple[str, list[tuple[object, ...]]]]:
        wanted = []
        for kind in FOCUS[self.focus]:
            profiles = [each for each in _profiles(kind) if self.profile in _unit(kind, each, "").profile]
            if profiles:
                wanted.append((kind, profiles))
        return wanted

    @property
    def empty(self) -> bool:
        """No profile contains the text."""
        return not self._wanted

    def unit(self, number: int) -> Unit:
        wanted = self._wanted
        kind, profiles = wanted[number % len(wanted)]
        turn, at = divmod(number // len(wanted), len(profiles))
        order = random.Random(f"{self.seed} {kind} {turn}").sample(profiles, len(profiles))
        return _unit(kind, order[at], f"{self.seed} {number}")
