"""Which calls are made into a kernel: those of a trace, or random ones that a running kernel survives.

A running kernel uses its memory, so a call that takes a page away, or the right to write it, may only be about frames
that the kernel's allocator has given for it.  On frames of the kernel image, and on frames that do not exist, only
calls are made that leave everything correct.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.session import Session, call_arguments
from rmpcore.kernel.snp import HARDWARE
from rmpcore.machine import Machine, MachineLike
from rmpcore.maps import HIGH_BASE
from rmpcore.ops import CODE_NAMES, Kind, Op, OpCode, make_op
from rmpcore.recorded_calls import CALLS, SNP_CALLS
from rmpcore.trace import Trace

_PAGES_2M, _PAGES_1G = 1 << 9, 1 << 18
_U64 = (1 << 64) - 1
_MAX_CODE, _MAX_CODES = 255, 4096
"""The highest code that a recording can hold, and as many as one call may execute instructions."""

TAKES_AWAY = frozenset(
    {
        "set_memory_ro",
        "set_memory_rox",
        "set_memory_np",
        "set_memory_np_noalias",
        "set_direct_map_invalid_noflush",
        "set_direct_map_valid_noflush",
    }
)
"""Calls after which the kernel could not use a page of its own."""


@dataclass(frozen=True)
class Wanted:
    """A call to be made."""

    op: Op
    injected: tuple[int, ...] = ()
    """Codes that its instructions give instead of being done."""
    place: str = ""
    """Where it stands in a trace, with a colon behind it."""


class Source(Protocol):
    """Where calls come from."""

    @property
    def count(self) -> int:
        """How many there will be, at most."""

    def needs_snp(self, session: Session) -> bool:
        """Whether the kernel's SNP host code has to be switched on."""

    def prepare(self, session: Session) -> None:
        """Take the frames that calls will need."""

    def calls(self, session: Session) -> Iterator[Wanted]:
        """The calls, one after the other; the session has taken its first state."""


class Foresight:
    """The model, ahead of the kernel by one call: a call that would never return must not be made."""

    def __init__(self, session: Session) -> None:
        self._machine: MachineLike = Machine(
            session.map, kernel=session.image.release, hardware=HARDWARE, state=session.before
        )

    def outcome(self, wanted: Wanted) -> Kind:
        """KERNEL: the kernel's function returns; from then on the model counts the call as made.  HANG: it never does.
        REFUSED: the model cannot do it, or not with these codes."""
        forced = [self._machine.apply(make_op("inject", code=code)) for code in wanted.injected]
        kinds = {Kind(result.kind) for result in forced} | {Kind.KERNEL}
        return Kind.REFUSED if kinds != {Kind.KERNEL} else Kind(self._machine.apply(wanted.op).kind)


def _claimed(op: Op) -> tuple[int, int] | None:
    """The frames (first, end) that nobody else may use while an op is made."""
    name, args = call_arguments(op)
    if name not in TAKES_AWAY:
        return None
    pages = args[1] if len(args) > 1 else 1
    return (args[0], args[0] + pages) if pages else None


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


class ListedCalls:
    """Calls that were chosen before.  ``frames``: what is taken for them, as (first, end); None: what they need."""

    def __init__(self, wanted: Sequence[Wanted], frames: Sequence[tuple[int, int]] | None = None) -> None:
        self._wanted = wanted
        self._frames = frames

    @property
    def count(self) -> int:
        return len(self._wanted)

    def needs_snp(self, session: Session) -> bool:
        return any(OpCode(wanted.op.op).name in SNP_CALLS or wanted.injected for wanted in self._wanted)

    def prepare(self, session: Session) -> None:
        frames = self._frames
        if frames is None:
            frames = _merged(found for wanted in self._wanted if (found := _claimed(wanted.op)) is not None)
        for first, end in frames:
            if not session.claim(first, end - first):
                raise KernelError(
                    f"frames {first:#x} to {end - 1:#x} are in use by the kernel, or are no memory: "
                    "a call would take them away from it"
                )

    def calls(self, session: Session) -> Iterator[Wanted]:
        foresight = Foresight(session)
        for wanted in self._wanted:
            outcome = foresight.outcome(wanted)
            if outcome == Kind.HANG:
                raise KernelError(f"{wanted.place}{wanted.op}: the kernel would never return from it")
            if outcome != Kind.KERNEL:
                raise KernelError(f"{wanted.place}{wanted.op}: the model of {session.image.release} cannot do it")
            yield wanted


def calls_of(trace: Trace) -> ListedCalls:
    """The calls of a trace; ``inject`` ops in it are for the call that follows.  Raises KernelError."""
    listed: list[Wanted] = []
    codes: list[int] = []
    for index in range(len(trace)):
        op, place = trace.op(index), f"{trace.place(index)}: "
        if op.op == OpCode.inject:
            if op.id > _MAX_CODE or len(codes) + op.count > _MAX_CODES:
                raise KernelError(f"{place}{op}: codes are at most {_MAX_CODE}, and {_MAX_CODES} of them for a call")
            codes += [op.id] * op.count
            continue
        try:
            call_arguments(op)
        except KernelError as e:
            raise KernelError(f"{place}{e}") from None
        listed.append(Wanted(op, tuple(codes), place))
        codes = []
    if codes:
        raise KernelError(f"{trace.source}: ends with an inject, and no call follows it")
    return ListedCalls(listed)


class SafeCalls:
    """Random calls.  The same seed, kernel and machine give the same calls."""

    BLOCKS = 10
    """2 MiB blocks that are asked for."""

    def __init__(self, count: int, seed: int, inject: bool = True) -> None:
        """``inject``: codes may be forced on instructions."""
        self._count, self._inject = count, inject
        self._rng = random.Random(seed)
        self._blocks: list[int] = []
        self._giga: int | None = None
        self.made: list[Wanted] = []
        """The calls that were chosen."""

    @property
    def count(self) -> int:
        return self._count

    def needs_snp(self, session: Session) -> bool:
        return session.has_snp

    @property
    def frames(self) -> list[tuple[int, int]]:
        """The frames that were taken, as (first, end)."""
        giga = [(self._giga, self._giga + _PAGES_1G)] if self._giga is not None else []
        return giga + [(pfn, pfn + _PAGES_2M) for pfn in self._blocks]

    # --- frames --------------------------------------------------------------------------------------------------

    def prepare(self, session: Session) -> None:
        rng, found = self._rng, session.map
        frames = [(base >> 12, base + size >> 12) for base, size in found.memory if base >= 1 << 24 or size > 1 << 25]
        aligned = [
            pfn
            for first, end in frames
            for pfn in range(-(-first // _PAGES_2M) * _PAGES_2M, end - _PAGES_2M + 1, _PAGES_2M)
        ]
        whole = [pfn for pfn in aligned if pfn % _PAGES_1G == 0 and pfn + _PAGES_1G - _PAGES_2M in set(aligned)]
        rng.shuffle(whole)
        self._giga = next((pfn for pfn in whole[:2] if session.claim(pfn, _PAGES_1G)), None)
        inside = range(self._giga, self._giga + _PAGES_1G) if self._giga is not None else range(0)
        rest = [pfn for pfn in aligned if pfn not in inside]
        for pfn in rng.sample(rest, min(4 * self.BLOCKS, len(rest))):
            if len(self._blocks) < self.BLOCKS and session.claim(pfn, _PAGES_2M):
                self._blocks.append(pfn)
        if not self._blocks:
            raise KernelError("the kernel has no 2 MiB block of memory to spare: give it more memory")
        image = found.image
        if image is None:
            raise KernelError("the map has no kernel image")

        def frame(address: int) -> int:
            return (address - HIGH_BASE + image.phys_base & _U64) >> 12

        self._text = range(frame(image.text), frame(image.etext))
        self._rodata = range(frame(image.start_rodata), frame(image.end_rodata))
        self._image = range(frame(image.text), frame(image.brk_end))
        memory = sorted(frames)
        gaps = [(end, first) for (_, end), (first, _) in pairwise(memory) if first > end]
        self._nowhere = [*gaps, (found.max_pfn, found.max_pfn + 2 * _PAGES_2M)]
        self._names = [name for name in CALLS if name not in SNP_CALLS and session.symbols.get(name) is not None]

    def _block(self) -> int:
        """One of the blocks; the first are asked for most, so that calls meet."""
        return self._blocks[min(int(self._rng.expovariate(0.5)), len(self._blocks) - 1)]

    def _frame(self) -> int:
        rng = self._rng
        if self._giga is not None and rng.random() < 0.15:
            return self._giga + rng.choice((0, _PAGES_2M, rng.randrange(_PAGES_1G)))
        # few frames of a block, so that they are asked for again
        return self._block() + rng.choice((0, 0, 1, rng.randrange(8), 511, rng.randrange(_PAGES_2M)))

    def _range(self) -> tuple[int, int]:
        """Frames that are ours: a page, some, a whole 2 MiB page, or several."""
        rng = self._rng
        start, room = (self._block(), _PAGES_2M)
        if self._giga is not None and rng.random() < 0.3:
            start, room = self._giga, _PAGES_1G
        way = rng.random()
        if way < 0.3:
            return start + rng.randrange(room), 1
        if way < 0.6 or (way < 0.8 and room == _PAGES_2M):
            first = rng.randrange(min(room, 4 * _PAGES_2M))
            return start + first, rng.randint(1, min(room - first, 700))
        if room == _PAGES_2M:
            return start, _PAGES_2M
        if way < 0.95:
            return start + _PAGES_2M * rng.randrange(64), _PAGES_2M * rng.randint(1, 3)
        return start, _PAGES_1G

    # --- calls ---------------------------------------------------------------------------------------------------

    def calls(self, session: Session) -> Iterator[Wanted]:
        foresight = Foresight(session)
        while len(self.made) < self._count:
            wanted = self._snp() if session.has_snp and self._rng.random() < 0.5 else self._attributes()
            if foresight.outcome(wanted) == Kind.KERNEL:
                self.made.append(wanted)
                yield wanted

    def _one_of(self, names: Sequence[str]) -> str:
        return self._rng.choice([name for name in names if name in self._names])

    def _attributes(self) -> Wanted:
        rng, where = self._rng, self._rng.random()
        if where < 0.70:
            return self._on_own_frames()
        if where < 0.92:
            return self._on_image()
        first, end = rng.choice(self._nowhere)
        pfn = rng.randrange(first, end)
        return Wanted(_call(rng.choice(self._names), pfn, rng.randint(1, min(end - pfn, 600)), rng.randrange(2)))

    def _on_own_frames(self) -> Wanted:
        rng, name = self._rng, self._rng.choice(self._names)
        pfn, pages = self._range()
        if name == "set_memory_4k" or name.startswith("_set_memory_"):
            pages = min(pages, 4 * _PAGES_2M)  # each page costs, as a table entry or as a flush of its lines
        return Wanted(_call(name, pfn, pages, rng.randrange(2)))

    def _on_image(self) -> Wanted:
        rng = self._rng
        names = [name for name in self._names if name not in TAKES_AWAY]
        frames = self._image
        if rng.random() < 0.25:
            # What is read-only in the image may be made so again.
            frames, names = rng.choice((self._text, self._rodata)), ["set_memory_ro", "set_memory_rox"]
        pfn = frames[rng.randrange(len(frames))]
        if rng.random() < 0.5:
            pfn = min(max(pfn // _PAGES_2M * _PAGES_2M, frames[0]), frames[-1])
        pages = min(rng.choice((1, rng.randint(1, 40), _PAGES_2M)), frames[-1] + 1 - pfn)
        return Wanted(_call(self._one_of(names), pfn, pages, 1))

    def _snp(self) -> Wanted:
        rng, way = self._rng, self._rng.random()
        pfn = self._frame()
        if way < 0.05:
            pfn = self._image[rng.randrange(len(self._image))]
        elif way < 0.10:
            first, end = rng.choice(self._nowhere)
            pfn = rng.randrange(first, end)
        level = rng.choices((1, 2, 3), (60, 38, 2))[0]
        if level == 2 and rng.random() < 0.8:
            pfn -= pfn % _PAGES_2M
        what = rng.choices(("rmp_make_private", "rmp_make_shared", "psmash", "snp_lookup_rmpentry"), (4, 3, 1, 3))[0]
        if what == "snp_lookup_rmpentry":
            return Wanted(make_op(what, pfn=pfn))
        if what == "psmash":
            op = make_op(what, pfn=pfn if rng.random() < 0.3 else pfn - pfn % _PAGES_2M)
        elif what == "rmp_make_shared":
            op = make_op(what, pfn=pfn, level=level)
        else:
            asid = rng.choice((0, 1, 5, rng.randint(1, 1006)))
            gpa = rng.randrange(1 << rng.randint(20, 39)) << 12
            op = make_op(what, pfn=pfn, gpa=gpa, level=level, asid=asid, immutable=int(rng.random() < 0.08))
        return Wanted(op, self._injected(op))

    def _injected(self, op: Op) -> tuple[int, ...]:
        """Codes for the instructions of a call that surely executes one."""
        rng = self._rng
        ours = op.addr // _PAGES_2M * _PAGES_2M in self._blocks and (op.level < 2 or op.addr % _PAGES_2M == 0)
        if not ours or not self._inject or op.level > 2 or rng.random() > 0.08:
            return ()
        if op.op == OpCode.psmash:
            return (rng.choice((1, 2, 3, 7)),)
        retries = (4,) * rng.randint(0, 4)
        return (*retries, rng.choice([0, *(code for code in CODE_NAMES if code != 4)]))


def _call(name: str, pfn: int, pages: int, valid: int) -> Op:
    given = {"pfn": pfn, "pages": pages, "valid": valid}
    return make_op(name, **{arg: given[arg] for arg in CALLS[name]})
