"""A byte is wrong: in a saved state, in page tables and RMP as they lie in memory, in a record of an op.

Native and oracle answer alike, and never crash: both refuse (MachineError or StateError, in one line), or both take it,
and have the same state and the same broken invariant then.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import machines as m
import numpy as np
import numpy.typing as npt
import pytest

from rmpcore.machine import BACKENDS, Machine, MachineError, MachineLike
from rmpcore.maps import MachineMap, MapError
from rmpcore.ops import OP_DTYPE, OPS, Op, make_op, pack_ops
from rmpcore.start import Rules, dump_to_json, read_start
from rmpcore.state import State, StateError, diff_states

END = 8 * m.MIB
TINY = m.build_map(
    [(0, END)],
    e820=[(0, END, 1), (END, 0x10000, 2)],
    rmp=(END, END + 0x4000 + 16 * 0x810 - 1),
)
"""8 MiB, and an RMP that covers them and itself, and little more."""
FIVE = m.build_map([(0, END)], levels=5, page_offset=0xFF11_0000_0000_0000, c_bit=1 << 51)

Masks = Callable[[int], tuple[int, ...]]
THOROUGH = [
    pytest.param(lambda at: (1 << at % 8,), id="one bit"),
    pytest.param(lambda at: (0xFF, *(1 << bit for bit in range(8))), id="all bits", marks=pytest.mark.long),
]
"""Which bits of byte number ``at`` are flipped, together or one after the other."""

TAPE = [
    make_op("set_memory_4k", pfn=0x400, pages=1),
    make_op("set_memory_np", pfn=0x600, pages=0x200),
    make_op("set_memory_np", pfn=0x406, pages=1),
    make_op("set_memory_ro", pfn=0x405, pages=1),
    make_op("cpa_address", pfn=0x123),
    make_op("fail_alloc", skip=2, count=1),
]
SNP_TAPE = [
    make_op("SNP_INIT"),
    make_op("rmp_mark_pages_firmware", pfn=0x400, pages=3),
    make_op("SNP_GCTX_CREATE", gctx=0x400_000),
    make_op("SNP_GCTX_CREATE", gctx=0x402_000),
    make_op("SNP_ACTIVATE", gctx=0x400_000, asid=6),
    make_op("SNP_MD_INIT", gctx=0x400_000, pa=0x401_000),
    make_op("rmp_make_private", pfn=0x200, gpa=0x20_0000, level=2, asid=5),
    make_op("rmp_make_private", pfn=0x405, gpa=0x5000, level=1, asid=6),
    make_op("PVALIDATE", gva=0x7000, rcx=0, rdx=1, pa=0x405_000, gpa=0x5000, asid=6, level=1),
    make_op("rmp_make_private", pfn=0x405, gpa=0x5000, level=1, asid=6, immutable=1),
    make_op("SNP_PAGE_SWAP_OUT", gctx=0x400_000, src=0x405_000, dst=0x80_0000_0000, mdata=0x401_040, size=0),
    make_op("VMRUN", vmcb=0x601_000, asid=1, plain=1),
    make_op("inject", code=4, count=3),
]


class Start(NamedTuple):
    """A state that much has led to, small enough to flip each byte of it."""

    map: MachineMap
    state: State

    def machine(self, backend: str, state: State | None = None) -> MachineLike:
        machine = Machine(self.map, backend=backend, state=self.state if state is None else state)
        machine.record_events(True)
        return machine


@functools.cache
def start(name: str) -> Start:
    map_ = {"snp": TINY, "image": m.IMAGE, "five levels": FIVE}[name]
    machine = Machine(map_)
    for op in [*(SNP_TAPE if map_.rmp else ()), *TAPE]:
        result = machine.apply(op)
        assert result.ret == 0, (op, result)
    state = machine.state()
    # a few entries of each table are enough; HV-Fixed frames are all alike
    number = state.leaves["offset"] >> np.where(state.leaves["level"] == 1, 12, 21).astype(np.uint64) & 0x1FF
    kept = np.isin(number, (0, 2, 3, 5, 6, 8, 0x1FF))
    rmp = state.rmp[(state.rmp["pfn"] < 0x802) & ((state.rmp["pfn"] & 0x1FF) < 8)]
    return Start(map_, m.changed(state, leaves=state.leaves[kept], rmp=rmp))


STARTS = ("snp", "image", "five levels")


def test_starts_are_deep() -> None:
    """There is something of everything to be flipped."""
    state = start("snp").state
    assert all((state.in_use, state.contexts, state.records, state.bookkeeping, state.inject, state.addresses))
    assert {1, 2} <= set(start("image").state.leaves["level"].tolist())
    assert set(start("image").state.leaves["window"].tolist()) == {0, 1}
    for name in STARTS:
        assert len(start(name).state.leaves) < 40
        for backend in BACKENDS:
            assert start(name).machine(backend).state() == start(name).state


class Answer(NamedTuple):
    """What a backend makes of a state."""

    state: State | None
    """None: it is refused."""
    broken: str | None = None
    """The invariant that validate() names."""


def answer(what: Start, backend: str, state: State) -> Answer:
    try:
        machine = what.machine(backend, state)
    except MachineError as e:
        assert str(e) and "\n" not in str(e)
        return Answer(None)
    return Answer(machine.state(), invariant(machine))


def invariant(machine: MachineLike) -> str | None:
    """The name of the broken invariant: the rest of the line is each machine's own words."""
    line = machine.validate()
    assert line is None or "\n" not in line
    return line.partition(":")[0] if line else None


def alike(what: Start, state: State, about: object) -> bool:
    """Both take the state, and are in the same one, or both refuse it; do they take it?"""
    native, oracle = (answer(what, backend, state) for backend in BACKENDS)
    assert (native.state is None) == (oracle.state is None), about
    assert native.broken == oracle.broken, about
    if native.state is not None and oracle.state is not None:
        assert native.state == oracle.state, (about, list(diff_states(native.state, oracle.state))[:5])
    return native.state is not None


def flipped(data: bytes, masks: Masks) -> Iterator[tuple[int, int, bytes]]:
    """Each byte wrong once for each mask: its place, the mask, all bytes."""
    for at in range(len(data)):
        for mask in masks(at):
            yield at, mask, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


@pytest.mark.parametrize("masks", THOROUGH)
@pytest.mark.parametrize("part", ["tables", "leaves", "rmp"])
@pytest.mark.parametrize("name", STARTS)
def test_entries_of_a_state(name: str, part: str, masks: Masks) -> None:
    """direct-map §1 to §3, rmp §1.1: entries that fit no machine are refused by both, all others kept to the bit."""
    what = start(name)
    rows: npt.NDArray[np.void] = getattr(what.state, part)
    taken = refused = 0
    for at, mask, data in flipped(rows.tobytes(), masks):
        state = m.changed(what.state, **{part: np.frombuffer(data, rows.dtype)})
        if alike(what, state, (rows[at // rows.dtype.itemsize], at % rows.dtype.itemsize, hex(mask))):
            taken += 1
        else:
            refused += 1
    if len(rows):
        # flags, and the level of a table
        assert taken and refused


@pytest.mark.parametrize("masks", THOROUGH)
def test_bytes_of_a_dump(masks: Masks, tmp_path: Path) -> None:
    """docs/formats.md, "State dump": refused in one line with the file's name, or a machine that both can be."""
    what = start("snp")
    text = json.dumps(dump_to_json(what.machine("native"), Rules(hardware="milan"), what.state), indent=0)
    path = tmp_path / "dump"
    taken = refused = 0
    for at, mask, data in flipped(text.encode(), masks):
        path.write_bytes(data)
        about = (text[max(at - 40, 0) : at + 20], at, hex(mask))
        try:
            begun = read_start(path)
            rules = begun.settle(Rules())
        except (StateError, MapError) as e:
            assert str(e).startswith(f"{path}:") and "\n" not in str(e), about
            refused += 1
            continue
        machines = []
        for backend in BACKENDS:
            try:
                machines.append(begun.machine(rules, backend))
            except MachineError as e:
                assert "\n" not in str(e), about
        assert len(machines) in (0, 2), about
        taken += bool(machines)
        refused += not machines
        if machines:
            states = [machine.state() for machine in machines]
            assert states[0] == states[1], (about, list(diff_states(*states))[:5])
            assert invariant(machines[0]) == invariant(machines[1]), about
    assert taken and refused


def bytes_at(machine: MachineLike, address: int, size: int) -> npt.NDArray[np.uint8]:
    """A native machine's memory, in place."""
    for part in machine.memory():  # type: ignore[attr-defined]
        if part.base <= address and address + size <= part.base + len(part.bytes):
            return part.bytes[address - part.base :][:size]
    raise IndexError(address)


AFTERWARDS = pack_ops(
    [
        make_op("lookup", pfn=0x405),
        make_op("host_write", pfn=0x405),
        make_op("host_read", pfn=0x201),
        make_op("set_memory_4k", pfn=0x200, pages=1),
        make_op("set_memory_p", pfn=0x406, pages=0x210),
        make_op("set_memory_rox", pfn=0x400, pages=0x200),
        make_op("set_direct_map_default_noflush", pfn=0x406),
        make_op("lookup", pfn=0x7FF),
    ]
)


@pytest.mark.parametrize("masks", THOROUGH)
@pytest.mark.parametrize("name", STARTS)
def test_bytes_of_page_tables(name: str, masks: Masks) -> None:
    """Whoever shares the memory may write anything there.  Nothing leaves the machine's memory for it, and what a
    machine says of it is what both say of that state, or neither takes it."""
    what = start(name)
    mask_of_frame = m.FRAME_MASK & ~what.map.c_bit
    pages = [what.state.root, *(raw & mask_of_frame for raw in what.state.tables["raw"].tolist())]
    taken = refused = 0
    for page in pages:
        data = bytes(bytes_at(what.machine("native"), page, 4096))
        used = {at for at in range(4096) if any(data[at & ~7 : (at & ~7) + 8])}
        for at in sorted(used | {0, 7, 2040, 4095}):
            for mask in masks(at):
                machine = what.machine("native")
                bytes_at(machine, page, 4096)[at] ^= mask
                about = (hex(page), at, hex(mask))
                state, broken = machine.state(), invariant(machine)
                if alike(what, state, about):
                    taken += 1
                    (again,) = {answer(what, backend, state).broken for backend in BACKENDS}
                    # the tables above the high mapping are no part of a state
                    assert broken == again or broken in ("table-count", "table-page", "table-shared"), about
                else:
                    refused += 1
                    assert broken, about
                machine.run(AFTERWARDS)
                machine.state()
                invariant(machine)
                machine.census()
    assert taken and refused


RMP_AFTERWARDS = pack_ops(
    [
        make_op("snp_lookup_rmpentry", pfn=0x405),
        make_op("dump_rmpentry", pfn=0x407),
        make_op("PSMASH", pa=0x20_0000),
        make_op("PVALIDATE", gva=0x7000, rcx=0, rdx=0, pa=0x405_000, gpa=0x5000, asid=6, level=1),
        make_op("RMPADJUST", gva=0x7000, rcx=0, rdx=0x101, pa=0x405_000, gpa=0x5000, asid=6, level=1),
        make_op("access", who=0, access=1, pa=0x407_000, level=2),
        make_op("access", who=2, access=1, pa=0x405_000, level=1, gpa=0x5000, asid=6, c=1),
        make_op("SNP_PAGE_RECLAIM", pa=0x401_000),
        make_op("SNP_DECOMMISSION", gctx=0x402_000),
        make_op("RMPUPDATE", pa=0x407_000, gpa=0, assigned=1, size=0, asid=7),
        make_op("rmp_make_shared", pfn=0x200, level=2),
        make_op("page_state", pfn=0x405),
        make_op("SNP_SHUTDOWN", iommu=1),
    ]
)


@pytest.mark.parametrize("masks", THOROUGH)
def test_bytes_of_the_rmp(masks: Masks) -> None:
    """rmp §1.1: any 16 bytes are an entry.  What instructions, accesses and firmware make of it is the same."""
    what = start("snp")
    results = set()
    for pfn in (0x200, 0x400, 0x401, 0x402, 0x405, 0x407):
        entry = Machine(TINY, state=what.state).read_rmp(pfn)
        for at, mask, data in flipped(np.array(entry, "<u8").tobytes(), masks):
            about = (hex(pfn), at, hex(mask))
            machines = [what.machine(backend) for backend in BACKENDS]
            for machine in machines:
                machine.write_rmp(pfn, *np.frombuffer(data, "<u8").tolist())
            place = TINY.rmp[0] + 0x4000 + 16 * pfn if TINY.rmp else 0
            assert bytes(bytes_at(machines[0], place, 16)) == data, about
            native, oracle = (machine.run(RMP_AFTERWARDS).tobytes() for machine in machines)
            assert native == oracle, about
            native, oracle = (machine.take_events().tobytes() for machine in machines)
            assert native == oracle, about
            states = [machine.state() for machine in machines]
            assert states[0] == states[1], (about, list(diff_states(*states))[:5])
            results.add(native)
    assert len(results) > 20


def records() -> list[Op]:
    """An op of each kind that does something."""
    fields = {"pfn": 0x405, "pa": 0x405_000, "pages": 2, "level": 1, "asid": 6, "gpa": 0x5000, "gctx": 0x400_000}
    fields |= {"src": 0x405_000, "dst": 0x406_000, "mdata": 0x401_040, "vmcb": 0x602_000, "who": 0, "access": 1}
    fields |= {"mask": m.NX, "code": 2, "rdx": 1, "type": 1, "gva": 0x7000, "count": 1}
    return [
        make_op(
            spec.name,
            **{arg.name: fields.get(arg.name, 0) for arg in spec.args if arg.default is None or arg.name in ("count",)},
        )
        for spec in OPS
    ]


@pytest.mark.parametrize("masks", THOROUGH)
@pytest.mark.parametrize("number", range(len(OPS)), ids=[spec.name for spec in OPS])
def test_bytes_of_a_record(number: int, masks: Masks) -> None:
    """docs/formats.md, "Op records": any 64 bytes are done or refused, and by both alike."""
    what = start("snp")
    data = pack_ops(records()[number : number + 1]).tobytes()
    machines = [what.machine(backend) for backend in BACKENDS]
    for at, mask, record in flipped(data, masks):
        op = np.frombuffer(record, OP_DTYPE)
        native, oracle = (machine.run(op).tobytes() for machine in machines)
        assert native == oracle, (Op(*op[0].item()), at, hex(mask))
        native, oracle = (machine.take_events().tobytes() for machine in machines)
        assert native == oracle, (Op(*op[0].item()), at, hex(mask))
    states = [machine.state() for machine in machines]
    assert states[0] == states[1], list(diff_states(*states))[:5]
    assert invariant(machines[0]) == invariant(machines[1])
