"""What an SNP host does to its RMP: ops of guests that start, accept memory, run, and end (docs/workloads.md).

A workload never looks at results, so every policy gets the same ops.  :func:`steps` makes them, for any map with an
RMP, from a seed.  Pages come from :class:`~rmpcore.page_allocator.PageAllocator`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmpcore.maps import MIB, PAGE_SIZE, MachineMap
from rmpcore.ops import OP_DTYPE, OpCode, OpFlag
from rmpcore.page_allocator import (
    OutOfPagesError,
    PageAllocator,
    Pages,
    Runs,
    free_memory,
    single_pages,
)
from rmpcore.placement import GIB

Ops = npt.NDArray[np.void]

ASIDS = range(1, 510)
"""ASIDs that SNP guests can have."""
TRUSTED_PAGES = 512
"""The trusted memory region for SEV-ES (§1.1)."""
IMAGE_PAGES = 1024
"""The firmware image of a guest, 4 MiB (§1.2)."""
_IMAGE_GPA = (4 * GIB >> 12) - IMAGE_PAGES
LOW_PAGES = 31
"""Pages in low memory that are in the guest before it runs (§1.2): 29 zero pages, secrets, CPUID."""
_LOW_GPA = 0x800
_LOW_TYPES = (3,) * 28 + (5, 6, 3)
_RAM_HOLE = 2 * GIB >> 12
"""Guest memory from here on lies at 4 GiB."""
_VMSA_GPA = 0xFFFFFFFFF000
_NORMAL, _VMSA = 1, 2
"""Types of SNP_LAUNCH_UPDATE."""
_PAGES_2M = 512
_4K, _2M = 1, 2
_SMASHED = 10
"""Large regions, beside one a vCPU, in which a guest soon asks for 4K (§1.4)."""

_SLICE = 16
"""Regions of 2 MiB that a guest accepts or gives back in one turn."""
_EXITS, _COMMANDS, _STRAYS = 2048, 256, 256
"""The most of each in one turn."""
_ON_CPU = 16
"""vCPUs of a guest that run at once; the model has room for 64 (rmp §3.7)."""
_RENEWED = 64
"""Pages of its own that the kernel gives back and takes anew each turn."""
_REMEMBERED = 1 << 20
"""Pages of the kernel's own that it reads and writes: if it has more, a random part of them."""
_BYTES = np.dtype((np.void, OP_DTYPE.itemsize))
_STEP = 1 << 14
"""Ops in a step, if there are no more in one turn."""


class WorkloadError(ValueError):
    """A workload that cannot be, or not on this machine."""


_RANGES: dict[str, tuple[float, float]] = {
    "guests": (1, 1 << 20),
    "together": (1, len(ASIDS)),
    "memory": (16 * MIB, 1 << 46),
    "vcpus": (1, 512),
    "touched": (0, 1),
    "exits": (0, 1 << 32),
    "changes": (0, 1 << 32),
    "commands": (0, 1 << 32),
    "strays": (0, 1 << 32),
    "host": (MIB, 1 << 46),
    "pressure": (0, 1),
}


@dataclass(frozen=True)
class Workload:
    """What happens on a host.  Raises :class:`WorkloadError` when a number makes no sense."""

    name: str
    guests: int
    """How many guests there are in all."""
    together: int
    """How many of them are there at once, at most."""
    memory: int
    """Bytes of memory of each."""
    vcpus: int
    backing: str
    """"4K" or "2M": the pages that guest memory is made of."""
    scatter: bool
    """Guest memory comes in 2 MiB blocks from random places."""
    touched: float
    """The part of its memory that a guest accepts, 0 to 1."""
    exits: int
    """VM exits of each guest."""
    changes: int
    """Times that each guest makes 2 MiB shared, and private again."""
    commands: int
    """Firmware commands for each guest that need firmware pages."""
    strays: int
    """Writes of KVM to a private page of each guest."""
    host: int
    """Bytes of the kernel's own memory."""
    pressure: float
    """The part of free memory that the host fills with small blocks, of which it frees half, 0 to 1."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise WorkloadError(f"workload {self.name}: {name} is {value}, outside {low}..{high}")
        if self.together > self.guests:
            raise WorkloadError(f"workload {self.name}: {self.together} of {self.guests} guests cannot be together")
        if self.backing not in ("4K", "2M"):
            raise WorkloadError(f"workload {self.name}: backing is {self.backing!r}, not 4K or 2M")


def resized(workload: Workload, **changes: Any) -> Workload:
    """The same workload with other numbers.  Raises :class:`WorkloadError`."""
    unknown = sorted(changes.keys() - {part.name for part in fields(Workload)})
    if unknown:
        raise WorkloadError(f"a workload has no {unknown[0]}")
    return replace(workload, **changes)


PRESETS = {
    workload.name: workload
    for workload in (
        Workload(
            "one-guest",
            guests=1,
            together=1,
            memory=4 * GIB,
            vcpus=4,
            backing="4K",
            scatter=False,
            touched=1.0,
            exits=20_000,
            changes=16,
            commands=100,
            strays=2,
            host=256 * MIB,
            pressure=0.0,
        ),
        Workload(
            "churn",
            guests=24,
            together=6,
            memory=512 * MIB,
            vcpus=2,
            backing="4K",
            scatter=False,
            touched=0.8,
            exits=20_000,
            changes=8,
            commands=100,
            strays=2,
            host=512 * MIB,
            pressure=0.02,
        ),
        Workload(
            "dense-host",
            guests=64,
            together=64,
            memory=2 * GIB,
            vcpus=2,
            backing="4K",
            scatter=False,
            touched=0.75,
            exits=20_000,
            changes=4,
            commands=50,
            strays=2,
            host=GIB,
            pressure=0.0,
        ),
        Workload(
            "firmware-storm",
            guests=4,
            together=4,
            memory=128 * MIB,
            vcpus=1,
            backing="4K",
            scatter=False,
            touched=0.5,
            exits=20_000,
            changes=2,
            commands=20_000,
            strays=2,
            host=512 * MIB,
            pressure=0.02,
        ),
    )
}


@dataclass(frozen=True)
class Step:
    """The next ops of a workload."""

    ops: Ops
    phase: str
    """boot, run or end."""
    progress: float
    """How much of the workload is done after it, 0 to 1."""


def steps(workload: Workload, machine_map: MachineMap, seed: int) -> Iterator[Step]:
    """A workload's ops in order, the same ones for the same seed.

    Raises :class:`WorkloadError` at once when the map has no RMP, or too little memory."""
    if machine_map.rmp is None and machine_map.segmented is None:
        raise WorkloadError(f"map {machine_map.name} has no RMP")
    return _Host(workload, machine_map, np.random.Generator(np.random.PCG64(seed))).steps()


class _Piece(NamedTuple):
    """Private memory of a guest that has one fate."""

    gpas: Runs
    """Guest frames, ..."""
    frames: Runs
    """... and what they are backed with."""
    large: bool
    """Each run is one 2M entry of the RMP."""


@dataclass
class _Guest:
    asid: int
    response: int
    context: int
    launched: Pages
    """The firmware image and the low pages."""
    rest: Runs
    """What backs the rest of the 2 MiB with the low pages."""
    vmsas: Pages
    vmcbs: Pages
    ghcbs: Pages
    clocks: Pages
    """User memory that the guest shares with KVM: a page with the clocks of each vCPU."""
    pieces: list[_Piece] = field(default_factory=list)
    """What it has accepted.  First the rest of the 2 MiB with the low pages, then single regions, then the bulk."""

    @property
    def gctx(self) -> int:
        return self.context * PAGE_SIZE


def _op(code: OpCode, **columns: int) -> Ops:
    ops = np.zeros(1, dtype=OP_DTYPE)
    ops["op"] = code
    for name, value in columns.items():
        ops[name] = value
    return ops


def _rows(count: int, *codes: OpCode) -> Ops:
    """A row of ops for each of so many pages, say; columns are filled in by the caller."""
    ops = np.zeros((count, len(codes)), dtype=OP_DTYPE)
    ops["op"] = codes
    return ops


def _copy(ops: Ops) -> Ops:
    """A copy; NumPy copies records field by field, plain bytes at once."""
    copied: Ops = ops.view(_BYTES).copy().view(OP_DTYPE)
    return copied


def _joined(parts: list[Ops]) -> Ops:
    """Ops one after the other."""
    if len(parts) == 1:
        return parts[0]
    joined: Ops = np.concatenate([ops.view(_BYTES) for ops in parts]).view(OP_DTYPE)
    return joined


def _chosen(ops: Ops, wanted: npt.NDArray[np.bool_]) -> Ops:
    """Those of some rows of ops that are wanted, in order."""
    chosen: Ops = ops.view(_BYTES)[wanted].view(OP_DTYPE)
    return chosen


def _share(total: int, turn: int, turns: int) -> int:
    """How much of something belongs to one turn of several."""
    return total * (turn + 1) // turns - total * turn // turns


# What a host does with a page, or with a few -----------------------------------------------------------------------


_GIVE_BACK_4K = _rows(_SLICE * _PAGES_2M, OpCode.snp_lookup_rmpentry, OpCode.rmp_make_shared)
_GIVE_BACK_4K["level"][:, 1] = _4K


def _lookup_and_share(pages: Pages) -> Ops:
    """Each page is looked up and taken back at 4K."""
    ops = _copy(_GIVE_BACK_4K[: len(pages)])
    ops["addr"][:, 0] = ops["addr"][:, 1] = pages
    return ops.ravel()


_ACCEPT_4K = _rows(_SLICE * _PAGES_2M, OpCode.snp_lookup_rmpentry, OpCode.rmp_make_private, OpCode.PVALIDATE)
_ACCEPT_4K["level"][:, 1:] = _4K
_ACCEPT_4K["rdx"][:, 2] = 1


def _accept_4k(asid: int, gpas: Pages, pages: Pages) -> Ops:
    ops = _copy(_ACCEPT_4K[: len(pages)])
    addresses = gpas << 12
    ops["id"][:, 1] = ops["id"][:, 2] = asid
    ops["addr"][:, 0] = ops["addr"][:, 1] = pages
    ops["addr"][:, 2] = pages << 12
    ops["gpa"][:, 1] = ops["gpa"][:, 2] = ops["va"][:, 2] = addresses
    return ops.ravel()


def _accept_2m(asid: int, gpas: Pages, blocks: Pages) -> Ops:
    lookups = (OpCode.snp_lookup_rmpentry,) * _PAGES_2M
    ops = _rows(len(blocks), *lookups, OpCode.rmp_make_private, OpCode.PVALIDATE)
    addresses = gpas << 12
    ops["addr"][:, :_PAGES_2M] = blocks[:, None] + np.arange(_PAGES_2M)
    ops["addr"][:, _PAGES_2M] = blocks
    ops["addr"][:, _PAGES_2M + 1] = blocks << 12
    ops["level"][:, _PAGES_2M:] = _2M
    ops["id"][:, _PAGES_2M:] = asid
    ops["gpa"][:, _PAGES_2M:] = addresses[:, None]
    ops["va"][:, _PAGES_2M + 1] = addresses
    ops["rcx"][:, _PAGES_2M + 1] = 1
    ops["rdx"][:, _PAGES_2M + 1] = 1
    return ops.ravel()


def _accept_piece(asid: int, piece: _Piece) -> Ops:
    """A guest touches memory for the first time: the host gives it, the guest validates it."""
    if piece.large:
        return _accept_2m(asid, piece.gpas.first, piece.frames.first)
    return _accept_4k(asid, piece.gpas.pages(), piece.frames.pages())


def _give_back(piece: _Piece) -> Ops:
    """guest_memfd frees pages: a large one whole, after one look-up."""
    if not piece.large:
        return _lookup_and_share(piece.frames.pages())
    ops = _rows(len(piece.frames.first), OpCode.snp_lookup_rmpentry, OpCode.rmp_make_shared)
    ops["addr"] = piece.frames.first[:, None]
    ops["level"][:, 1] = _2M
    return ops.ravel()


def _rescind(asid: int, piece: _Piece) -> Ops:
    """The guest gives up memory before it asks the host to take it."""
    gpas = piece.gpas.first if piece.large else piece.gpas.pages()
    pages = piece.frames.first if piece.large else piece.frames.pages()
    ops = _rows(len(pages), OpCode.PVALIDATE)
    ops["addr"][:, 0] = pages << 12
    ops["gpa"][:, 0] = ops["va"][:, 0] = gpas << 12
    ops["id"], ops["level"], ops["rcx"] = asid, _2M if piece.large else _4K, int(piece.large)
    return ops.ravel()


def _smash(asid: int, piece: _Piece) -> Ops:
    """The guest asks for 4K inside a 2M entry: the host breaks it up, the guest goes on with what is valid already."""
    ops = _rows(len(piece.frames.first), OpCode.snp_lookup_rmpentry, OpCode.psmash, OpCode.PVALIDATE)
    ops["addr"][:, :2] = piece.frames.first[:, None]
    ops["addr"][:, 2] = piece.frames.first << 12
    ops["gpa"][:, 2] = ops["va"][:, 2] = piece.gpas.first << 12
    ops["id"][:, 2], ops["level"][:, 2], ops["rdx"][:, 2] = asid, _4K, 1
    return ops.ravel()


def _launch(guest: _Guest, pages: Pages, gpas: Pages, types: Pages) -> Ops:
    """Pages that are in a guest before it runs: written by the host, unless zero, given away, measured."""
    ops = _rows(
        len(pages),
        OpCode.snp_lookup_rmpentry,
        OpCode.host_write,
        OpCode.rmp_make_private,
        OpCode.SNP_LAUNCH_UPDATE,
    )
    ops["addr"][:, :3] = pages[:, None]
    ops["addr"][:, 3] = pages << 12
    ops["gpa"][:, 2] = gpas << 12
    ops["level"][:, 2], ops["level"][:, 3] = _4K, types
    ops["id"][:, 2], ops["flags"][:, 2] = guest.asid, OpFlag.IMMUTABLE
    ops["va"][:, 3] = guest.gctx
    wanted = np.ones(ops.shape, dtype=np.bool_)
    wanted[:, 0] = types != _VMSA
    wanted[:, 1] = types != 3
    return _chosen(ops, wanted)


class _Host:
    """The generator's state: what is allocated, and to whom."""

    def __init__(self, workload: Workload, machine_map: MachineMap, rng: np.random.Generator) -> None:
        self._workload = workload
        self._rng = rng
        self._allocator = PageAllocator(free_memory(machine_map))
        self._asids = list(reversed(ASIDS))
        self._live: list[Iterator[list[Ops]]] = []
        self._waiting = workload.guests
        self._accepted = 0
        regions = max(1, round(workload.memory * workload.touched / (2 * MIB)) - 1)
        self._regions = self._ram(regions)
        # Regions that are on their own: a window for changes of page states, and those that are broken up.
        self._window = min(regions, workload.changes, _SLICE)
        self._smashed = min(regions - self._window, workload.vcpus + _SMASHED) if workload.backing == "2M" else 0
        self._single = self._window + self._smashed
        most = (
            (workload.exits, _EXITS),
            (workload.commands, _COMMANDS),
            (workload.strays, _STRAYS),
            (workload.changes, 1),
        )
        self._run_turns = max(1, *(-(-total // turn) for total, turn in most))
        self._own = self._boot_memory(machine_map)

    # Phases --------------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """All of it."""
        turns = 2 + self._workload.guests * self._turns_of_life()
        yield from self._gather("boot", [self._boot()], 0, turns)
        yield from self._gather("run", self._run(), 1, turns)
        yield Step(self._own_accesses(_EXITS), "end", 1.0)

    def _gather(self, phase: str, parts: Iterable[list[Ops]], done: int, turns: int) -> Iterator[Step]:
        """Turns of guests in steps of a good size."""
        waiting: list[Ops] = []
        size = 0
        for part in parts:
            waiting += part
            size += sum(map(len, part))
            done += 1
            if size >= _STEP:
                yield Step(_joined(waiting), phase, min(1.0, done / turns))
                waiting, size = [], 0
        if waiting:
            yield Step(_joined(waiting), phase, min(1.0, done / turns))

    def _boot_memory(self, machine_map: MachineMap) -> Pages:
        """Take what the host needs for itself.  Its own pages, or a random part of them."""
        workload, allocator = self._workload, self._allocator
        host, guests = workload.host // PAGE_SIZE, _RENEWED + workload.together * self._footprint()
        try:
            self._trusted = allocator.alloc(9)
            own = self._fill(host * 8 // 7, 1 / 8)
            pressed = self._fill(int(allocator.available(3) * workload.pressure) * 8, 1 / 2)
            if allocator.free_pages < guests:
                raise OutOfPagesError
        except OutOfPagesError:
            need = (TRUSTED_PAGES + host * 8 // 7 + guests) * PAGE_SIZE / GIB
            have = sum(high - low for low, high in free_memory(machine_map)) * PAGE_SIZE / GIB
            raise WorkloadError(
                f"workload {workload.name}: host and {workload.together} guests at once need {need:.4g} GiB, "
                f"with pressure {workload.pressure}; map {machine_map.name} has {have:.4g} GiB"
            ) from None
        return np.concatenate((own, pressed))

    def _footprint(self) -> int:
        """The most pages that a guest takes at a time."""
        vcpus = 4 * self._workload.vcpus + 1
        private = _PAGES_2M * (len(self._regions) + 1) + IMAGE_PAGES
        return private + vcpus + 2 + _PAGES_2M + 3 * _COMMANDS

    def _fill(self, pages: int, freed: float) -> Pages:
        """Take blocks of orders 0 to 3, as much memory of each order, and give part of them back at random.  The pages
        that are left, or a random part of them."""
        allocator, rng = self._allocator, self._rng
        runs = allocator.alloc_pages(pages // 8, 3)
        shuffled = rng.permutation(len(runs.first))
        remembered, inside = _REMEMBERED / 2 / max(1, pages), np.arange(8)
        left = [np.zeros(0, dtype=np.int64)]
        for part in np.array_split(shuffled, len(shuffled) // 256 + 1):
            groups = Runs(runs.first[part], runs.length[part]).blocks(3)
            order = rng.integers(4, size=(len(groups), 1))
            block = inside >> order << order
            gone = np.take_along_axis(rng.random((len(groups), 8)) < freed, block, axis=1)
            each = groups[:, None] + inside
            allocator.free_runs(single_pages(rng.permutation(each[gone])))
            kept = each[~gone]
            left.append(kept[rng.random(len(kept)) < remembered] if remembered < 1 else kept)
        return np.concatenate(left)

    def _boot(self) -> list[Ops]:
        """The firmware sets up the RMP, the trusted region is marked, the kernel goes about its business."""
        trusted = _op(OpCode.rmp_mark_pages_firmware, addr=self._trusted, count=TRUSTED_PAGES)
        return [_op(OpCode.SNP_INIT), trusted, self._own_accesses(_EXITS)]

    def _run(self) -> Iterator[list[Ops]]:
        """Guests start one after the other, and those that are there take turns."""
        interval = max(1, self._turns_of_life() // self._workload.together)
        now = 0
        while self._waiting or self._live:
            if self._waiting and len(self._live) < self._workload.together and now % interval == 0:
                self._waiting -= 1
                self._live.append(self._life())
            for life in list(self._live):
                turn = next(life, None)
                if turn is None:
                    self._live.remove(life)
                elif turn:
                    yield turn
            now += 1

    # A guest's life ------------------------------------------------------------------------------------------------

    def _turns_of_life(self) -> int:
        accepted = 1 + self._single + -(-(len(self._regions) - self._single) // _SLICE)
        return 2 + 2 * accepted + self._run_turns

    def _life(self) -> Iterator[list[Ops]]:
        """One guest, turn by turn."""
        guest = self._new_guest()
        yield self._start(guest)
        yield from self._accept(guest)
        self._accepted += 1
        for turn in range(self._run_turns):
            yield self._turn(guest, turn)
        while self._accepted < self._workload.together:
            yield []  # the first ones stay until the host is full
        yield from self._end(guest)

    def _unaligned_page(self) -> int:
        """A page for a VMSA or a VMCB: of two, one that is not 2 MiB-aligned."""
        try:
            first = self._allocator.alloc(1)
            second = first + 1
        except OutOfPagesError:
            first, second = self._allocator.alloc(), self._allocator.alloc()
        if first % _PAGES_2M == 0:
            first, second = second, first
        self._allocator.free(second)
        return first

    def _new_guest(self) -> _Guest:
        allocator, vcpus = self._allocator, self._workload.vcpus
        response, context = allocator.alloc(), allocator.alloc()
        vmcbs = np.array([self._unaligned_page() for _ in range(vcpus)])
        vmsas = np.array([self._unaligned_page() for _ in range(vcpus)])
        shared = allocator.alloc_pages(2 * vcpus).pages()
        launched, rest = self._launch_memory()
        return _Guest(
            self._asids.pop(), response, context, launched, rest, vmsas, vmcbs, shared[:vcpus], shared[vcpus:]
        )

    def _launch_memory(self) -> tuple[Pages, Runs]:
        """What backs the image and the low pages, and the rest of the low pages' 2 MiB: with 2M backing they lie in
        2 MiB blocks, though their RMP entries are 4K."""
        allocator = self._allocator
        image_blocks = IMAGE_PAGES // _PAGES_2M
        if self._workload.backing == "2M" and allocator.available(9) > image_blocks:
            pages = allocator.alloc_pages(image_blocks + 1, 9).pages()
            low = pages[IMAGE_PAGES:]
            rest = Runs(low[LOW_PAGES : LOW_PAGES + 1], np.array([_PAGES_2M - LOW_PAGES]))
            return pages[: IMAGE_PAGES + LOW_PAGES], rest
        launched = allocator.alloc_pages(IMAGE_PAGES + LOW_PAGES).pages()
        return launched, allocator.alloc_pages(_PAGES_2M - LOW_PAGES)

    def _start(self, guest: _Guest) -> list[Ops]:
        """Response and context page, firmware image, low pages, VMSAs (§1.2)."""
        gpas = np.concatenate((_IMAGE_GPA + np.arange(IMAGE_PAGES), _LOW_GPA + np.arange(LOW_PAGES)))
        types = np.array((_NORMAL,) * IMAGE_PAGES + _LOW_TYPES)
        vmsas = guest.vmsas
        return [
            _op(OpCode.rmp_mark_pages_firmware, addr=guest.response, count=1),
            _op(OpCode.rmp_mark_pages_firmware, addr=guest.context, count=1),
            _op(OpCode.SNP_GCTX_CREATE, addr=guest.gctx),
            _op(OpCode.SNP_ACTIVATE, addr=guest.gctx, id=guest.asid),
            _launch(guest, guest.launched, gpas, types),
            _launch(guest, vmsas, np.full(len(vmsas), _VMSA_GPA >> 12), np.full(len(vmsas), _VMSA)),
        ]

    @staticmethod
    def _ram(count: int) -> Pages:
        """First guest frames of the regions of 2 MiB that are accepted whole."""
        index = np.arange(count)
        frames = (index + (index >= _LOW_GPA // _PAGES_2M)) * _PAGES_2M
        return frames + (frames >= _RAM_HOLE) * ((4 * GIB >> 12) - _RAM_HOLE)

    def _accept(self, guest: _Guest) -> Iterator[list[Ops]]:
        """The guest accepts memory: what the low pages leave of their region, single regions, then the bulk."""
        rest = _PAGES_2M - LOW_PAGES
        gpas = Runs(np.array([_LOW_GPA + LOW_PAGES]), np.array([rest]))
        guest.pieces.append(_Piece(gpas, guest.rest, large=False))
        yield [_accept_piece(guest.asid, guest.pieces[0])]
        done = 0
        while done < len(self._regions):
            count = 1 if done < self._single else _SLICE
            pieces = self._back(self._regions[done : done + count])
            guest.pieces += pieces
            done += count
            yield [_accept_piece(guest.asid, piece) for piece in pieces]

    def _back(self, regions: Pages) -> list[_Piece]:
        """Pages for regions of a guest: 2 MiB blocks as long as there are any, if it should have those."""
        workload, allocator = self._workload, self._allocator
        gpas = Runs(regions, np.full(len(regions), _PAGES_2M))
        large = workload.backing == "2M"
        whole = min(len(regions), allocator.available(9)) if large or workload.scatter else 0
        pieces = []
        if whole:
            if workload.scatter:
                blocks = np.array([allocator.alloc_scattered(9, self._rng) for _ in range(whole)])
            else:
                blocks = allocator.alloc_pages(whole, 9).blocks(9)
            frames = Runs(blocks, np.full(whole, _PAGES_2M))
            pieces.append(_Piece(Runs(gpas.first[:whole], gpas.length[:whole]), frames, large))
        if whole < len(regions):
            frames = allocator.alloc_pages(_PAGES_2M * (len(regions) - whole))
            pieces.append(_Piece(Runs(gpas.first[whole:], gpas.length[whole:]), frames, large=False))
        return pieces

    def _turn(self, guest: _Guest, turn: int) -> list[Ops]:
        """A guest's share of exits, with one change of page states, commands and strays at most (§1.4 to §1.6)."""
        workload, turns = self._workload, self._run_turns
        self._renew()
        ops = [self._smash_some(guest)] if turn == 0 else []
        shared = guest.clocks
        change = workload.changes * turn // turns
        changed = 1 + change % self._window if _share(workload.changes, turn, turns) else 0
        if changed:
            ops += self._to_shared(guest, changed, by_page=change % 2 == 1)
            bounce = self._allocator.alloc_pages(_PAGES_2M)
            shared = np.concatenate((shared, bounce.pages()))
        ops.append(self._exits(guest, _share(workload.exits, turn, turns), shared))
        ops.append(self._commands(_share(workload.commands, turn, turns)))
        ops.append(self._strays(guest, turn))
        if changed:
            self._allocator.free_runs(bounce)
            (guest.pieces[changed],) = self._back(guest.pieces[changed].gpas.first)
            ops.append(_accept_piece(guest.asid, guest.pieces[changed]))
        return ops

    def _end(self, guest: _Guest) -> Iterator[list[Ops]]:
        """Memory comes back, then the VMSAs, then what the firmware has of the guest (§1.7)."""
        allocator = self._allocator
        for piece in guest.pieces:
            ops = _give_back(piece)
            allocator.free_runs(piece.frames)
            yield [ops]
        vmsas = _rows(len(guest.vmsas), OpCode.rmp_make_shared)
        vmsas["addr"][:, 0], vmsas["level"] = guest.vmsas, _4K
        ops = _lookup_and_share(guest.launched)
        for pages in (guest.launched, guest.vmsas, guest.vmcbs, guest.ghcbs, guest.clocks):
            allocator.free_runs(single_pages(pages))
        allocator.free(guest.response)
        allocator.free(guest.context)
        self._asids.append(guest.asid)
        yield [
            ops,
            vmsas.ravel(),
            _op(OpCode.snp_reclaim_pages, addr=guest.response, count=1),
            _op(OpCode.SNP_DECOMMISSION, addr=guest.gctx),
            _op(OpCode.snp_reclaim_pages, addr=guest.context, count=1),
        ]

    # What happens while it runs ------------------------------------------------------------------------------------

    def _own_pages(self, *shape: int) -> Pages:
        """Pages of the kernel's own, each as likely as the other."""
        return self._own[self._rng.integers(len(self._own), size=shape)]

    def _own_accesses(self, count: int) -> Ops:
        """The kernel reads and writes its own memory."""
        ops = _rows(count, OpCode.host_write, OpCode.host_read)
        ops["addr"] = self._own_pages(count, 2)
        return ops.ravel()

    def _renew(self) -> None:
        """The kernel takes some pages and gives back others, so that the next single pages come from among its own."""
        chosen = self._rng.choice(len(self._own), min(_RENEWED, len(self._own)), replace=False)
        fresh = self._allocator.alloc_pages(len(chosen)).pages()
        self._allocator.free_runs(single_pages(self._own[chosen]))
        self._own[chosen] = fresh

    def _smash_some(self, guest: _Guest) -> Ops:
        """Some of the large regions soon hold pages that the guest wants to be 4K."""
        parts = [_rows(0).ravel()]
        for i in range(1 + self._window, 1 + self._single):
            if guest.pieces[i].large:
                parts.append(_smash(guest.asid, guest.pieces[i]))
                guest.pieces[i] = guest.pieces[i]._replace(large=False)
        return _joined(parts)

    def _to_shared(self, guest: _Guest, index: int, by_page: bool) -> list[Ops]:
        """The guest makes a region shared, as a whole or page by page; what backed it goes back to the host."""
        piece, ops = guest.pieces[index], []
        if piece.large and by_page:
            ops.append(_smash(guest.asid, piece))
            piece = piece._replace(large=False)
        self._allocator.free_runs(piece.frames)
        return [*ops, _rescind(guest.asid, piece), _give_back(piece)]

    def _exits(self, guest: _Guest, count: int, shared: Pages) -> Ops:
        """vCPUs run and exit: KVM reads and writes the GHCB, and does some work for itself or for the guest."""
        rng, vcpus = self._rng, len(guest.vmcbs)
        running = (rng.integers(vcpus) + np.arange(min(vcpus, _ON_CPU))) % vcpus
        exits = _rows(
            count,
            OpCode.VMEXIT,
            OpCode.kvm_read_guest,
            OpCode.host_write,
            OpCode.host_read,
            OpCode.kvm_write_guest,
            OpCode.VMRUN,
        )
        who = running[rng.integers(len(running), size=count)]
        exits["addr"][:, 0] = exits["addr"][:, 5] = guest.vmcbs[who] << 12
        exits["addr"][:, 1] = exits["addr"][:, 4] = guest.ghcbs[who]
        exits["addr"][:, 2:4] = self._own_pages(count, 2)
        # every fourth or so: a clock, or data in a bounce buffer, instead of a page of the kernel's
        other = rng.integers(4, size=count) == 0
        codes = rng.choice((int(OpCode.kvm_read_guest), int(OpCode.kvm_write_guest)), size=int(other.sum()))
        exits["op"][other, 3] = codes
        exits["addr"][other, 3] = shared[rng.integers(len(shared), size=len(codes))]
        self._enter(exits[:, 5], guest, who)
        first, last = _rows(len(running), OpCode.VMRUN), _rows(len(running), OpCode.VMEXIT)
        first["addr"][:, 0] = last["addr"][:, 0] = guest.vmcbs[running] << 12
        self._enter(first[:, 0], guest, running)
        return _joined([first.ravel(), exits.ravel(), last.ravel()])

    @staticmethod
    def _enter(vmruns: Ops, guest: _Guest, who: Pages) -> None:
        vmruns["va"], vmruns["gpa"], vmruns["id"] = guest.vmsas[who] << 12, _VMSA_GPA, guest.asid

    def _commands(self, count: int) -> Ops:
        """Firmware commands: each marks one to three pages, the kernel goes on, and they are reclaimed."""
        size = self._rng.integers(1, 4, size=count)
        used = np.arange(3) < size[:, None]
        taken = self._allocator.alloc_pages(int(size.sum()))
        pages = np.zeros((count, 3), dtype=np.int64)
        pages[used] = taken.pages()
        self._allocator.free_runs(taken)
        mark, reclaim = (OpCode.rmp_mark_pages_firmware,) * 3, (OpCode.snp_reclaim_pages,) * 3
        ops = _rows(count, *mark, *(OpCode.host_write,) * 3, OpCode.host_read, *reclaim)
        ops["addr"][:, :3] = ops["addr"][:, 7:] = pages
        ops["count"][:, :3] = ops["count"][:, 7:] = 1
        ops["addr"][:, 3:7] = self._own_pages(count, 4)
        wanted = np.concatenate((used, np.ones((count, 4), dtype=np.bool_), used), axis=1)
        return _chosen(ops, wanted)

    def _strays(self, guest: _Guest, turn: int) -> Ops:
        """KVM writes to a page that the guest did not share, near its first GHCB page: it faults under every policy."""
        strays, turns = self._workload.strays, self._run_turns
        pages = guest.pieces[0].frames.pages()
        ops = _rows(_share(strays, turn, turns), OpCode.kvm_write_guest)
        ops["addr"][:, 0] = pages[(strays * turn // turns + np.arange(len(ops))) % len(pages)]
        return ops.ravel()
