"""Native and oracle in lockstep: the same ops on both, and result, events and whole state compared after each.

The two were written from the same rules without a look at each other, so a difference is a mistake in one of them (or
in the rules).  The profiles vary kernel, hardware, switches, paging levels, image and RMP.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machines import (
    HOLE,
    HOLE_2M,
    IMAGE,
    IMAGE_MOVED,
    IMAGE_SYMBOLS,
    PC,
    SMALL_LA57,
    SMALL_PTI,
    SMALL_RANDOM,
    SNP,
    SNP_CBIT,
    SNP_HOLE,
    SNP_IMAGE,
    SNP_TIGHT,
    TINY_4K,
    U64,
    G,
    changed,
)

from rmpcore.fuzzing.dmap_ops import (
    ASIDS,
    CODES,
    COUNTS,
    CPA,
    GIB_PAGES,
    GPAS,
    LEVELS,
    MASKS,
    PAGES,
    RESERVED,
    direct_map_ops,
    frames_of,
    random_trace,
    tamed,
)
from rmpcore.machine import BACKENDS, Machine, MachineError, MachineLike
from rmpcore.maps import PAGE_OFFSETS, MachineMap
from rmpcore.ops import Op, OpSpec, format_op, format_result, make_op, pack_ops, unpack_results
from rmpcore.state import State, diff_states


class Profile(NamedTuple):
    """What a pair of machines is made of."""

    map: MachineMap
    kernel: str
    hardware: str = "milan"
    switches: dict[str, int] | None = None
    readonly: bool = False

    def machine(self, backend: str, state: State | None = None) -> MachineLike:
        machine = Machine(
            self.map,
            backend=backend,
            kernel=self.kernel,
            hardware=self.hardware,
            switches=self.switches,
            state=state,
        )
        machine.record_events(True)
        return machine

    def pair(self) -> tuple[MachineLike, MachineLike]:
        """Native and oracle, booted; with the kernel made read-only where the profile says so."""
        native, oracle = self.machine("native"), self.machine("oracle")
        if self.readonly:
            native = self.machine("native", changed(native.state(), kernel_readonly=True))
            oracle = self.machine("oracle", changed(oracle.state(), kernel_readonly=True))
        return native, oracle


ALL_SWITCHED = {
    "gpa_bits": 40,
    "vmpl0_all": 0x55,
    "rmpread": 1,
    "overlap_inner": 3,
    "psmash_unassigned": 2,
    "psmash_immutable": 2,
    "keep_same": 0,
    "reserved_input": 1,
    "asid_limit": 0x63,
    "lock_follows_immutable": 0,
    "subpage_count": 0,
}
NOPAT = (0x00, 0x10, 0x10, 0x18, 0x08, 0x10)
GIGA_IMAGE = dataclasses.replace(HOLE, image=IMAGE_SYMBOLS)
IMAGE_CBIT = dataclasses.replace(IMAGE_MOVED, c_bit=1 << 47, default_mask=U64 & ~G, cachemodes=NOPAT)
PROFILES = {
    "6.1 image readonly": Profile(IMAGE_MOVED, "6.1", readonly=True),
    "6.2 giga image nopat": Profile(dataclasses.replace(GIGA_IMAGE, cachemodes=NOPAT), "6.2"),
    "6.14 five levels image readonly": Profile(
        dataclasses.replace(IMAGE, levels=5, page_offset=PAGE_OFFSETS[5]), "6.14", readonly=True
    ),
    "6.15 giga image readonly": Profile(GIGA_IMAGE, "6.15", readonly=True),
    "7.3 image c-bit pti nopat": Profile(IMAGE_CBIT, "7.3", readonly=True),
    "6.1 pc": Profile(PC, "6.1"),
    "6.1 snp": Profile(SNP, "6.1", "genoa"),
    "6.6 image readonly": Profile(SNP_IMAGE, "6.6", readonly=True),
    "6.9 snp": Profile(SNP, "6.9"),
    "6.12 hole": Profile(SNP_HOLE, "6.12", "genoa", {"rmpread": 1}),
    "6.12 image": Profile(SNP_IMAGE, "6.12"),
    "6.12 tight switched": Profile(SNP_TIGHT, "6.12", "milan", ALL_SWITCHED),
    "6.12 c-bit": Profile(SNP_CBIT, "6.12", "genoa"),
    "6.13 five levels": Profile(SMALL_LA57, "6.13"),
    "6.13 4k": Profile(TINY_4K, "6.13"),
    "6.13 hole 2m": Profile(HOLE_2M, "6.13"),
    "6.15 hole": Profile(HOLE, "6.15"),
    "6.15 moved image readonly": Profile(IMAGE_MOVED, "6.15", readonly=True),
    "6.15 random offset": Profile(SMALL_RANDOM, "6.15"),
    "7.3 image readonly": Profile(SNP_IMAGE, "7.3", "genoa", {"rmpread": 1}, readonly=True),
    "7.3 pti": Profile(SMALL_PTI, "7.3"),
    "7.3 snp hole": Profile(SNP_HOLE, "7.3", "milan", {"rmpread": 1}),
}


def same_state(native: MachineLike, oracle: MachineLike, after: str) -> None:
    """Fails with the lines of the diff."""
    mine, theirs = native.state(), oracle.state()
    if mine != theirs:
        lines = list(diff_states(mine, theirs))
        raise AssertionError("\n".join([f"states differ after {after}:", *lines[:20]]))


def same_verdict(native: MachineLike, oracle: MachineLike, after: str) -> None:
    """validate(): no op breaks an invariant."""
    assert (native.validate(), oracle.validate()) == (None, None), f"an invariant is broken after {after}"


def same_events(native: MachineLike, oracle: MachineLike, after: str) -> None:
    mine, theirs = native.take_events().tolist(), oracle.take_events().tolist()
    assert mine == theirs, f"events differ after {after}"


class Lockstep(RuleBasedStateMachine):
    """Each rule does one thing to both machines; frames are given by their number in the profile's pool."""

    profile: Profile

    @initialize()
    def boot(self) -> None:
        self.native, self.oracle = self.profile.pair()
        self.frames = frames_of(self.profile.map)
        self.last = "boot"

    def both(self, op: Op) -> None:
        self.last = format_op(op)
        mine, theirs = self.native.apply(op), self.oracle.apply(op)
        assert mine == theirs, (
            f"{self.last}: native {mine} {format_result(op, mine)}, oracle {theirs} {format_result(op, theirs)}"
        )

    def frame(self, number: int, aligned: bool) -> int:
        pfn = self.frames[number % len(self.frames)]
        return pfn & ~0x1FF if aligned else pfn

    def has_rmp(self) -> bool:
        return hasattr(self, "native") and self.profile.map.rmp is not None

    number = st.integers(0, 63)
    bits = st.booleans()

    @rule(
        name=st.sampled_from(["rmp_make_private", "rmp_make_private", "rmp_make_firmware", "rmp_make_shared"]),
        number=number,
        aligned=bits,
        level=st.sampled_from(LEVELS),
        gpa=st.sampled_from(GPAS),
        asid=st.sampled_from(ASIDS),
        immutable=st.sampled_from([0, 0, 0, 1]),
    )
    def make(self, name: str, number: int, aligned: bool, level: int, gpa: int, asid: int, immutable: int) -> None:
        args = {"pfn": self.frame(number, aligned), "level": level}
        if name == "rmp_make_private":
            args |= {"gpa": gpa, "asid": asid, "immutable": immutable}
        self.both(make_op(name, **args))

    @rule(
        instruction=bits,
        number=number,
        aligned=bits,
        low=st.sampled_from([0, 0, 0, 1, 0xFFF, 1 << 51, 1 << 63]),
        gpa=st.sampled_from(GPAS),
        assigned=st.sampled_from([0, 1, 1]),
        size=st.sampled_from([0, 0, 1]),
        immutable=st.sampled_from([0, 0, 0, 1]),
        asid=st.sampled_from(ASIDS),
        reserved=st.sampled_from(RESERVED) | st.integers(0, U64),
        mode=st.sampled_from([0, 0, 0, 0, 1, 2, 3]),
    )
    def update(
        self,
        instruction: bool,
        number: int,
        aligned: bool,
        low: int,
        gpa: int,
        assigned: int,
        size: int,
        immutable: int,
        asid: int,
        reserved: int,
        mode: int,
    ) -> None:
        pfn = self.frame(number, aligned)
        args = {"gpa": gpa, "assigned": assigned, "size": size, "immutable": immutable, "asid": asid}
        if instruction:
            more = {"reserved": reserved, "guest": mode & 1, "user": mode >> 1}
            self.both(make_op("RMPUPDATE", pa=pfn << 12 & U64 | low, **args, **more))
        else:
            self.both(make_op("rmpupdate", pfn=pfn, **args))

    @rule(
        name=st.sampled_from(["PSMASH", "RMPREAD"]), number=number, aligned=bits, low=st.sampled_from([0, 0, 0, 0x800])
    )
    def instruction(self, name: str, number: int, aligned: bool, low: int) -> None:
        self.both(make_op(name, pa=self.frame(number, aligned) << 12 & U64 | low))

    @rule(
        name=st.sampled_from(["psmash", "psmash", "snp_lookup_rmpentry", "dump_rmpentry", "lookup"]),
        number=number,
        aligned=bits,
    )
    def look(self, name: str, number: int, aligned: bool) -> None:
        self.both(make_op(name, pfn=self.frame(number, aligned)))

    @rule(number=number, level=st.sampled_from(LEVELS))
    def adjust(self, number: int, level: int) -> None:
        self.both(make_op("adjust_direct_map", pfn=self.frame(number, False), level=level))

    @rule(number=number, pages=st.sampled_from(PAGES))
    def leak(self, number: int, pages: int) -> None:
        self.both(make_op("snp_leak_pages", pfn=self.frame(number, False), pages=pages))

    @rule(number=number, aligned=bits, pages=st.sampled_from(PAGES))
    def set_memory_4k(self, number: int, aligned: bool, pages: int) -> None:
        self.both(make_op("set_memory_4k", pfn=self.frame(number, aligned), pages=pages))

    @rule(number=number, name=st.sampled_from(["set_direct_map_invalid_noflush", "set_direct_map_default_noflush"]))
    def set_direct_map(self, number: int, name: str) -> None:
        self.both(make_op(name, pfn=self.frame(number, False)))

    @rule(
        number=number,
        align=st.sampled_from([1, 512, 1 << 18]),
        pages=st.sampled_from([*PAGES, GIB_PAGES]),
        valid=bits,
    )
    def set_direct_map_valid(self, number: int, align: int, pages: int, valid: bool) -> None:
        pfn = self.frame(number, False) // align * align
        self.both(make_op("set_direct_map_valid_noflush", pfn=pfn, pages=pages, valid=int(valid)))

    @rule(
        spec=st.sampled_from(CPA),
        number=number,
        before=st.sampled_from([0, 0, 0, 1, 7, 0x200]),
        aligned=bits,
        pages=st.sampled_from(PAGES),
        high=st.sampled_from([0, 0, 0, 1]),
        mask=st.sampled_from(MASKS),
    )
    def change(self, spec: OpSpec, number: int, before: int, aligned: bool, pages: int, high: int, mask: int) -> None:
        """A range, often one that crosses a 2 MiB line."""
        pfn = max(self.frame(number, aligned) - before, 0)
        args = {"pfn": pfn, "pages": pages, "high": high}
        if spec.args[2].name == "mask":
            args["mask"] = mask
        self.both(make_op(spec.name, **args))

    @rule(number=number, before=st.sampled_from([0, 0, 1]), high=st.sampled_from([0, 0, 1]))
    def list_address(self, number: int, before: int, high: int) -> None:
        self.both(make_op("cpa_address", pfn=max(self.frame(number, False) - before, 0), high=high))

    @rule(
        spec=st.sampled_from(CPA),
        flavour=st.sampled_from([1, 1, 2]),
        more=st.sampled_from([0, 0, 0, -1, 1]),
        mask=st.sampled_from(MASKS),
    )
    def change_listed(self, spec: OpSpec, flavour: int, more: int, mask: int) -> None:
        args = {"pfn": 0, "pages": max(len(self.native.state().addresses) + more, 0), "flavour": flavour}
        if spec.args[2].name == "mask":
            args["mask"] = mask
        self.both(make_op(spec.name, **args))

    @rule(code=st.sampled_from(CODES), count=st.sampled_from(COUNTS))
    def inject(self, code: int, count: int) -> None:
        self.both(make_op("inject", code=code, count=count))

    @rule(skip=st.sampled_from([0, 0, 1, 2, 3]), count=st.sampled_from([0, 1, 1, 2]))
    def fail_alloc(self, skip: int, count: int) -> None:
        self.both(make_op("fail_alloc", skip=skip, count=count))

    @precondition(lambda self: self.has_rmp())
    @rule(number=number, aligned=bits, lo=st.sampled_from([0, 1, 3, 5, 7, 2, 4, 511 << 3, U64]), hi=st.integers(0, U64))
    def write_rmp(self, number: int, aligned: bool, lo: int, hi: int) -> None:
        """What firmware or a dump would leave: odd combinations of assigned, size, immutable, count."""
        pfn = self.frame(number, aligned)
        outcomes: list[tuple[int, int] | None] = []
        for machine in (self.native, self.oracle):
            try:
                machine.write_rmp(pfn, lo, hi)
                outcomes.append(machine.read_rmp(pfn))
            except IndexError:
                outcomes.append(None)
        self.last = f"write_rmp {pfn:#x} {lo:#x} {hi:#x}"
        assert outcomes[0] == outcomes[1], self.last

    @rule(
        op=st.integers(0, 40),
        level=st.integers(0, 4),
        flags=st.integers(0, 127),
        id_=st.sampled_from([0, 0, 5, 0x400]),
        number=number,
        gpa=st.sampled_from([0, 0, 0x1000]),
        count=st.sampled_from([0, 0, 1, 2, 600]),
    )
    def odd_record(self, op: int, level: int, flags: int, id_: int, number: int, gpa: int, count: int) -> None:
        """A record as a bulk user might have made it: most are refused, for the same reason by both."""
        self.both(tamed(Op(op, level, flags, id_, self.frame(number, False), gpa, count)))

    @rule(seed=st.integers(0, 1 << 32), length=st.integers(0, 30))
    def bulk(self, seed: int, length: int) -> None:
        """A random trace in one call."""
        ops = random_trace(seed, length, self.profile.map)
        self.last = f"run of {length} ops, seed {seed}"
        array = pack_ops(ops)
        assert self.native.run(array).tobytes() == self.oracle.run(array).tobytes(), self.last

    @rule(seed=st.integers(0, 1 << 32), length=st.integers(0, 15))
    def bulk_of_changes(self, seed: int, length: int) -> None:
        """The same with ops on the direct map alone."""
        ops = direct_map_ops(random.Random(seed), self.frames, length)
        self.last = f"run of {length} direct-map ops, seed {seed}"
        array = pack_ops(ops)
        assert self.native.run(array).tobytes() == self.oracle.run(array).tobytes(), self.last

    @rule(swap=bits)
    def reload(self, swap: bool) -> None:
        """Both go on from the state of one of them."""
        state = (self.oracle if swap else self.native).state()
        self.native, self.oracle = self.profile.machine("native", state), self.profile.machine("oracle", state)
        self.last = "loading the state"

    @invariant()
    def same(self) -> None:
        if hasattr(self, "native"):
            same_events(self.native, self.oracle, self.last)
            same_state(self.native, self.oracle, self.last)
            same_verdict(self.native, self.oracle, self.last)


@pytest.mark.parametrize("name", PROFILES)
def test_step_by_step(name: str) -> None:
    """Hypothesis looks for a sequence of ops that tells the two apart, and shortens it."""
    machine: Any = type("Lockstep", (Lockstep,), {"profile": PROFILES[name]})
    case = machine.TestCase
    case.settings = settings(max_examples=6, stateful_step_count=25)
    case().runTest()


PAGE_COUNTS = (
    1,
    2,
    0x1FF,
    0x200,
    0x201,
    0x3E0,
    0x400,
    0x1000,
    0x3FFF,
    0x1FE00,
    0x20000,
    0x3FE00,
    0x40000,
    0x60001,
    0x80000,
)
"""Sizes of ranges and gaps around 2 MiB, 512 MiB (a step of the way down) and 1 GiB."""


@st.composite
def memory_maps(draw: st.DrawFn) -> MachineMap:
    """Up to five ranges of memory, some of them of a kind that the e820 table does not keep, some of them reserved."""
    large_pages = draw(st.sampled_from(["1G", "1G", "2M", "4K"]))
    sizes = st.sampled_from([n for n in PAGE_COUNTS if large_pages != "4K" or n <= 0x1000])
    at = draw(st.sampled_from([0, 0, 1, 0x100, 0x200]))
    e820: list[tuple[int, int, int]] = []
    reserved: list[tuple[int, int]] = []
    for gap in draw(st.lists(st.sampled_from([0]) | sizes, min_size=1, max_size=5)):
        pages = draw(sizes)
        line = draw(st.sampled_from([1, 1, 0x200, 0x40000])) if large_pages != "4K" else 1
        at = -(-at // line) * line
        kind = draw(st.sampled_from([1, 1, 1, 1, 3, 128, 2, 5]))
        e820.append((at << 12, pages << 12, kind))
        if draw(st.booleans()):
            kept = min(pages - 1, draw(st.sampled_from([0, 1, 3, 0x80, 0x300])))
            reserved.append((at << 12, pages - kept << 12))
        at += pages + gap
    levels = draw(st.sampled_from([4, 4, 5]))
    return MachineMap(
        name="any",
        e820=tuple(e820),
        memory=tuple((start, size) for start, size, _ in e820),
        reserved=tuple(reserved),
        max_pfn=e820[-1][0] + e820[-1][1] >> 12,
        levels=levels,
        page_offset=PAGE_OFFSETS[levels] + draw(st.sampled_from([0, 0, 1 << 30, 510 << 30])),
        large_pages=large_pages,
        default_mask=draw(st.sampled_from([U64, U64 & ~0x100])),
        c_bit=draw(st.sampled_from([0, 0, 1 << 47])),
        image=draw(st.sampled_from([None, None, IMAGE_SYMBOLS])),
    )


@given(memory_maps())
@settings(max_examples=200)
def test_boot_of_any_map(map_: MachineMap) -> None:
    """direct-map §2 on maps of all shapes: both boot to the same state, or both find no page for a table."""
    machines: list[MachineLike | None] = []
    for backend in BACKENDS:
        try:
            machines.append(Machine(map_, backend=backend))
        except MachineError:
            machines.append(None)
    native, oracle = machines
    assert (native is None) == (oracle is None)
    if native is not None and oracle is not None:
        same_state(native, oracle, "boot")


def first_difference(profile: Profile, ops: list[Op]) -> str:
    """The first op after which the two differ, found one op at a time."""
    native, oracle = profile.pair()
    for number, op in enumerate(ops):
        mine, theirs = native.apply(op), oracle.apply(op)
        if mine != theirs:
            return f"op {number} {op}: native {mine}, oracle {theirs}"
        same_events(native, oracle, f"op {number} {op}")
        same_state(native, oracle, f"op {number} {op}")
        same_verdict(native, oracle, f"op {number} {op}")
    return "nothing differs op by op: run() is not apply()"


@pytest.mark.parametrize("name", PROFILES)
def test_long_traces(name: str) -> None:
    """A seeded trace through run(): results, events and end state are equal."""
    profile = PROFILES[name]
    ops = random_trace(2024, 1500, profile.map)
    native, oracle = profile.pair()
    same_state(native, oracle, "boot")
    same_verdict(native, oracle, "boot")
    array = pack_ops(ops)
    mine, theirs = native.run(array), oracle.run(array)
    equal = mine.tobytes() == theirs.tobytes() and native.take_events().tobytes() == oracle.take_events().tobytes()
    if not equal or native.state() != oracle.state():
        raise AssertionError(first_difference(profile, ops))
    same_verdict(native, oracle, "the trace")
    assert len({(result.kind, result.ret) for result in unpack_results(mine)}) > 5
