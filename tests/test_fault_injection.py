"""There is no memory: each allocation of each op, of building and of loading a machine fails once.

direct-map §4.4, §4.6 and host §1, "fail_alloc", say what comes of it: -ENOMEM of whoever asked for a table, -EFAULT
where rmpupdate did; the entry that was to be split is untouched, and what was done before stays done.  At boot
(direct-map §2.3) there is no machine.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import headers
import machines as m
import pytest

from rmpcore.machine import BACKENDS, POLICIES, Machine, MachineError, MachineLike
from rmpcore.maps import PAGE_OFFSETS, MachineMap
from rmpcore.ops import OPS, Event, EventKind, Kind, Op, Result, make_op
from rmpcore.state import State, diff_states

ROOT = Path(__file__).parents[1]
BLOCK = 0x200

# ---- machines that ops are done on ----

MIXED = [
    make_op("set_memory_np", pfn=0x600, pages=BLOCK),
    make_op("set_memory_ro", pfn=0x800, pages=BLOCK),
    make_op("_set_memory_uc", pfn=0xA00, pages=BLOCK),
    make_op("set_memory_x", pfn=0xC00, pages=BLOCK),
    make_op("set_memory_nonglobal", pfn=0xE00, pages=BLOCK),
]
"""2 MiB pages with each attribute; 0x400 and 0x1000 have none."""
BLOCKS = (0x400, 0x600, 0x800, 0xA00, 0xC00, 0xE00)
SNP_MIXED = [
    *MIXED,
    make_op("SNP_INIT"),
    make_op("RMPUPDATE", pa=0x1400_000, gpa=0, assigned=1, size=0, asid=0, immutable=1),
    make_op("RMPUPDATE", pa=0x1401_000, gpa=0, assigned=1, size=0, asid=0, immutable=1),
    make_op("SNP_GCTX_CREATE", gctx=0x1400_000),
    make_op("SNP_ACTIVATE", gctx=0x1400_000, asid=6),
    make_op("SNP_MD_INIT", gctx=0x1400_000, pa=0x1401_000),
    make_op("RMPUPDATE", pa=0x1605_000, gpa=0x5000, assigned=1, size=0, asid=6),
    make_op("RMPUPDATE", pa=0x1800_000, gpa=0x20_0000, assigned=1, size=1, asid=6),
    make_op("RMPUPDATE", pa=0x1A01_000, gpa=0, assigned=1, size=0, asid=0, immutable=1),
    make_op("RMPUPDATE", pa=0x1A02_000, gpa=0, assigned=1, size=0, asid=0, immutable=1),
]
"""And pages of guests and of the firmware, some under large leaves: assigned by the bare instruction."""
GIGA = [
    make_op("set_memory_np", pfn=0x40000, pages=0x40000),
    make_op("set_memory_ro", pfn=0x80000, pages=0x40000),
]
"""1 GiB pages: 0x0 and 0x100000 as at boot, between them others."""
GIGA_BLOCKS = (0x0, 0x40000, 0x80000, 0x100000)


_RMP = 64 * m.MIB
SNP = m.build_map([(0, _RMP)], e820=[(0, _RMP, 1), (_RMP, m.MIB, 2)], rmp=(_RMP, _RMP + 0x4000 + 16 * 0x4045 - 1))
"""64 MiB, and an RMP that covers them and itself, and little more."""
SNP_CBIT = dataclasses.replace(SNP, c_bit=1 << 51)
SNP_IMAGE = dataclasses.replace(SNP, image=m.IMAGE_SYMBOLS, reserved=m.IMAGE.reserved)


class World(NamedTuple):
    """A machine, what was done on it, and where its large pages are."""

    map: MachineMap
    kernel: str
    before: Sequence[Op]
    blocks: Sequence[int]


WORLDS = {
    "2M": World(SNP, "6.12", SNP_MIXED, BLOCKS),
    "2M marked": World(SNP_CBIT, "7.3", SNP_MIXED, BLOCKS),
    "1G": World(m.HOLE, "6.13", GIGA, GIGA_BLOCKS),
    "image": World(SNP_IMAGE, "6.15", MIXED, (*BLOCKS, 0x1200, 0x1800)),
    "five levels": World(m.SMALL_LA57, "6.1", MIXED, BLOCKS),
}


class Pair:
    """Native and oracle in one state; both do what is asked for, and have to agree on all of it."""

    def __init__(self, map_: MachineMap, kernel: str, policy: str, state: State | None = None) -> None:
        self.policy = policy
        self.machines: list[MachineLike] = [
            Machine(map_, kernel=kernel, backend=backend, policy=policy, state=state) for backend in BACKENDS
        ]
        for machine in self.machines:
            machine.record_events(True)
        self.events: list[Event] = []

    def do(self, op: Op) -> Result:
        native, oracle = (machine.apply(op) for machine in self.machines)
        assert native == oracle, op
        mine, theirs = (machine.take_events() for machine in self.machines)
        assert mine.tobytes() == theirs.tobytes(), op
        self.events = [Event(*record) for record in mine.tolist()]
        return native

    def state(self) -> State:
        native, oracle = (machine.state() for machine in self.machines)
        assert native == oracle, list(diff_states(native, oracle))[:10]
        assert [machine.validate() for machine in self.machines] == [None, None]
        return native


def listed(world: World, name: str) -> list[list[Op]]:
    """Calls of an op, each with the addresses that it wants listed before it."""
    offset = 0x10
    pages = [block + offset for block in world.blocks]
    spec = next(spec for spec in OPS if spec.name == name)
    names = {arg.name for arg in spec.args}
    if "flavour" in names:
        more = {"mask": m.PCD | m.SOFTW1} if "mask" in names else {}
        addresses = [make_op("cpa_address", pfn=pfn) for pfn in pages]
        span = world.blocks[2] - world.blocks[0]
        return [
            [*addresses, make_op(name, pfn=0, pages=len(pages), flavour=1, **more)],
            [make_op(name, pfn=world.blocks[0] + offset, pages=span, **more)],
        ]
    fields = {
        "pages": 2,
        "level": 1,
        "size": 0,
        "asid": 6,
        "gpa": 0x5000,
        "assigned": 1,
        "valid": 0,
        "gctx": 0x1400_000,
    }
    fields |= {"pa": 0x1605_000, "src": 0x1605_000, "dst": 0x1606_000, "mdata": 0x1401_040, "vmcb": 0x1402_000}
    fields |= {"who": 0, "access": 1, "code": 0, "rdx": 1, "gva": 0x7000, "rcx": 0, "type": 1}
    firsts = {
        "psmash": [0x1800],
        "rmp_make_shared": [0x1605, 0x1800],
        "set_direct_map_valid_noflush": [pages[0], world.blocks[1] - 1],
        "snp_reclaim_pages": [0x1A01],
        "host_write": [0x1606, 0x1800],
        "kvm_write_guest": [0x1606, 0x1800],
    }.get(name, pages[:3])
    if "pfn" not in names or name in ("SNP_INIT",):
        firsts = [0]
    calls = []
    for pfn in firsts:
        values = {arg.name: fields[arg.name] for arg in spec.args if arg.default is None and arg.name != "pfn"}
        if "pfn" in names:
            values["pfn"] = pfn
        calls.append([make_op(name, **values)])
    return calls


def failing(pair: Pair, call: list[Op], skip: int) -> tuple[Result, State, bool]:
    """Do it with the allocation after ``skip`` others failing; its result, the state, and whether one did fail."""
    *before, op = call
    for address in before:
        assert pair.do(address).ret == 0
    pair.do(make_op("fail_alloc", skip=skip, count=1))
    result = pair.do(op)
    failed = [event for event in pair.events if event.kind == EventKind.ALLOC_FAIL]
    state = pair.state()
    assert state.fail_alloc[1] == 1 - len(failed)
    return result, state, bool(failed)


DIRECT = ("set_direct_map_invalid_noflush", "set_direct_map_default_noflush", "set_direct_map_valid_noflush")


def expected_error(op: Op, policy: str) -> tuple[int, int] | None:
    """Kind and ret of an op without a page for its table; None: it goes on, or has an error that says more."""
    name = next(spec.name for spec in OPS if spec.code == op.op)
    if name in (*DIRECT, "adjust_direct_map") or "flavour" in {
        arg.name for spec in OPS if spec.code == op.op for arg in spec.args
    }:
        # direct-map §4.4, host §1
        return Kind.KERNEL, m.ENOMEM
    if name in ("rmpupdate", "rmp_make_private", "rmp_make_firmware", "rmp_make_shared", "rmp_mark_pages_firmware"):
        # host §1, §6.2: the error of set_memory_4k() as it is, everywhere else -EFAULT
        return Kind.KERNEL, m.ENOMEM if policy == "rfc-v4" else m.EFAULT
    if name == "snp_reclaim_pages":
        return Kind.KERNEL, m.ENOMEM if policy == "rfc-v4" else m.EFAULT
    if name in ("host_write", "kvm_write_guest"):
        # host §6.3 step 2: the fault stays
        return Kind.FAULT, 14
    return None


def mapped(state: State, pfns: Sequence[int]) -> dict[int, int]:
    """What maps these frames: level, and the flags as a small page would have them (direct-map §1)."""
    found = {}
    leaves = {(level, offset): raw for window, level, offset, raw in state.leaves.tolist() if window == 0}
    for pfn in pfns:
        address = pfn << 12
        for level, size in ((1, 1 << 12), (2, 1 << 21), (3, 1 << 30)):
            raw = leaves.get((level, address & -size))
            if raw is not None:
                found[pfn] = small_flags(raw, level)
                break
    return found


def in_direct_map(state: State) -> bytes:
    """The leaves of that window."""
    return state.leaves[state.leaves["window"] == 0].tobytes()


def small_flags(raw: int, level: int) -> int:
    """direct-map §1, "Change of size".  KERNEL_4K says how a page is mapped, not what may be done with it."""
    flags = raw & ~m.FRAME_MASK & ~m.SOFTW3
    if level > 1 and raw & m.PSE:
        flags = flags & ~m.PSE | (m.PAT if raw & m.PAT_LARGE else 0)
    return flags


WC = make_op("_set_memory_wc", pfn=0, pages=1).op


def cached(flags: int, mode: int | None) -> int | None:
    """Flags of a small page with another cache mode."""
    return None if mode is None else flags & ~(m.PWT | m.PCD | m.PAT) | mode


def asked_for(op: Op, addresses: list[Op]) -> list[int]:
    """The frames of a call in the order in which it comes to them."""
    if addresses:
        return [address.addr for address in addresses]
    # of a long range the ends, a frame of each 2 MiB, and what is beside it
    return sorted({op.addr, op.addr + op.count - 1, *range(op.addr, op.addr + op.count, BLOCK)})


def check_call(world: World, policy: str, state: State, call: list[Op]) -> int:
    """Fail each allocation of a call in turn; how many there were."""
    op = call[-1]
    smooth = Pair(world.map, world.kernel, policy, state)
    for one in call[:-1]:
        smooth.do(one)
    good = smooth.do(op)
    end = smooth.state()
    needed = sum(event.kind == EventKind.TABLE_ALLOC for event in smooth.events)
    changes = "flavour" in {arg.name for spec in OPS if spec.code == op.op for arg in spec.args}
    for skip in range(needed + 1):
        pair = Pair(world.map, world.kernel, policy, state)
        result, after, failed = failing(pair, call, skip)
        about = (str(op), skip, result)
        assert failed == (skip < needed), about
        if not failed:
            assert result == good, about
            assert m.changed(after, fail_alloc=(0, 0)) == end, about
            break
        error = expected_error(op, policy)
        assert error is not None, about
        if world.map.image is not None and result == good:
            # §6: errors of the alias in the high mapping are ignored
            assert in_direct_map(after) == in_direct_map(end), about
        else:
            assert (result.kind, result.ret) == error, about
        if changes:
            # §4.4: what comes before is done, the rest untouched
            pfns = asked_for(op, call[:-1])
            before, now, then = (mapped(which, pfns) for which in (state, after, end))
            done = [now[pfn] != before[pfn] for pfn in pfns if before.get(pfn) != then.get(pfn)]
            assert op.op == WC or done == sorted(done, reverse=True), about
            # §7: _set_memory_wc makes pages UC- first
            between = m.PCD if op.op == WC else None
            assert all(now[pfn] in (before[pfn], then[pfn], cached(then[pfn], between)) for pfn in pfns), about
            assert after.addresses == ()
        # the same without a failure
        for one in call[:-1]:
            pair.do(one)
        again = pair.do(op)
        afterwards = pair.state()
        if op.op not in ONCE:
            assert again == good, about
            assert in_direct_map(afterwards) == in_direct_map(end), about
            assert afterwards.rmp.tobytes() == end.rmp.tobytes(), about
    return needed


ONCE = {make_op("snp_reclaim_pages", pfn=0, pages=1).op}
"""Pages that could not be given back are leaked (host §1): doing it again is another thing."""

ALLOCATING = {
    *(spec.name for spec in OPS if "flavour" in {arg.name for arg in spec.args}),
    *DIRECT,
    "rmpupdate",
    "rmp_make_private",
    "rmp_make_firmware",
    "rmp_make_shared",
    "adjust_direct_map",
    "rmp_mark_pages_firmware",
    "snp_reclaim_pages",
    "host_write",
    "kvm_write_guest",
}
"""Ops that may need a page for a table."""
NEVER_HERE = {"set_memory_encrypted", "set_memory_decrypted", "host_write", "kvm_write_guest"}
"""Of these those that need a C-bit, or another policy."""


NAMES = [spec.name for spec in OPS if spec.name != "fail_alloc"]


@pytest.mark.parametrize("name", NAMES)
def test_each_allocation_of_each_op(name: str) -> None:
    """As the head of this file says; an op that asks for no table does not notice."""
    needed = 0
    for kind in ("2M", "1G"):
        calls = listed(WORLDS[kind], name)
        for call in calls if kind == "2M" else calls[:1]:
            needed += check_call(WORLDS[kind], "upstream", prepared(kind), call)
    assert (needed > 0) == (name in ALLOCATING - NEVER_HERE)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(ALLOCATING))
@pytest.mark.parametrize("kind", ["2M marked", "image"])
def test_each_allocation_on_other_machines(kind: str, name: str) -> None:
    """The same, in all ways, where pages have a C-bit, a mark or an alias."""
    needed = 0
    for call in listed(WORLDS[kind], name):
        needed += check_call(WORLDS[kind], "upstream", prepared(kind), call)
    # not every kernel has them, not every machine an RMP and its firmware
    spared = {*NEVER_HERE, *DIRECT, "set_memory_rox", "snp_reclaim_pages"}
    assert needed or name in spared


@functools.cache
def prepared(kind: str) -> State:
    """A world's machine as it is before each call."""
    world = WORLDS[kind]
    pair = Pair(world.map, world.kernel, "upstream")
    for op in world.before:
        result = pair.do(op)
        assert result.ret == 0, (op, result)
    return pair.state()


POLICY_OPS = sorted(
    ALLOCATING - {spec.name for spec in OPS if "flavour" in {arg.name for arg in spec.args}} - set(DIRECT)
)


@pytest.mark.parametrize("kind", ["2M", pytest.param("2M marked", marks=pytest.mark.long)])
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "upstream"])
def test_each_allocation_under_each_policy(policy: str, kind: str) -> None:
    """host §6.2, §6.3: what a policy does with a table that is not to be had."""
    needed = dict.fromkeys(POLICY_OPS, 0)
    for name in POLICY_OPS:
        for call in listed(WORLDS[kind], name):
            needed[name] += check_call(WORLDS[kind], policy, prepared(kind), call)
    splits = {"rfc-v4", "unmap", "unmap-flush", "split-restore"}
    assert (needed["rmp_make_private"] > 0) == (policy in splits)
    assert (needed["host_write"] > 0) == (policy == "fault-split")


# ---- building ----

BUILT = {
    "2M": m.SMALL,
    "4K": m.TINY_4K,
    "1G": m.HOLE,
    "five levels": m.SMALL_LA57,
    "image": m.IMAGE,
    "random": m.SMALL_RANDOM,
}


def with_free_pages(map_: MachineMap, pages: int) -> MachineMap:
    """All of its memory reserved, but the topmost pages."""
    free = map_.memory[-1][0] + map_.memory[-1][1] - pages * 4096
    *below, (base, _) = map_.memory
    return dataclasses.replace(map_, reserved=(*below, (base, free - base)))


@pytest.mark.parametrize("name", BUILT)
def test_each_allocation_of_a_boot(backend: str, name: str) -> None:
    """direct-map §2.3: no page left at boot, no machine; with just enough pages there is one."""
    map_ = BUILT[name]
    needed = Machine(map_, backend=backend).counters()["table_pages"]
    for pages in range(1, needed):
        with pytest.raises(MachineError) as caught:
            Machine(with_free_pages(map_, pages), backend=backend)
        assert "\n" not in str(caught.value)
    machine = Machine(with_free_pages(map_, needed), backend=backend)
    assert machine.validate() is None
    assert machine.counters()["table_pages"] == needed
    assert machine.apply(make_op("set_memory_4k", pfn=0x400, pages=1)).ret == (m.ENOMEM if name != "4K" else 0)


@pytest.mark.parametrize("levels", [4, 5])
def test_each_allocation_of_a_state(backend: str, levels: int) -> None:
    """Tables of a state have their pages; those above the high mapping are allocated when it is loaded."""
    map_ = dataclasses.replace(m.IMAGE, levels=levels, page_offset=PAGE_OFFSETS[levels])
    state = Machine(map_, backend=backend).state()
    top = with_free_pages(map_, len(state.tables) + 1 + levels - 2)
    own = {row["raw"].item() & m.FRAME_MASK for row in state.tables} | {state.root}
    for more in range(levels - 2):
        # leave so many pages free that none of the state's tables is in
        free = range(map_.memory[-1][1] - 0x100_0000, map_.memory[-1][1] - 0x100_0000 + more * 4096)
        assert not own & set(free)
        reserved = [(0, free.start), (free.stop, map_.memory[-1][1] - free.stop)]
        with pytest.raises(MachineError) as caught:
            Machine(dataclasses.replace(map_, reserved=tuple(reserved)), backend=backend, state=state)
        assert "\n" not in str(caught.value)
    assert Machine(top, backend=backend, state=state).state() == state


# ---- the process itself has no memory ----

DRIVER = """
import ctypes, sys
sys.path[:0] = {paths!r}
import machines as m
from rmpcore.machine import Machine, MachineError
from rmpcore.ops import make_op
shim = ctypes.CDLL(None)
shim.failing_arm.argtypes = [ctypes.c_long]
shim.failing_done.restype = ctypes.c_long
shim.failing_maps.restype = ctypes.c_long

def each(what, errors):
    number = 0
    while True:
        maps = shim.failing_maps()
        shim.failing_arm(number)
        try:
            made, error = what(), None
        except errors as e:
            made, error = None, e
            assert "\\n" not in str(e)
        failed = shim.failing_done()
        if not failed:
            assert error is None, error
            return number, made
        if error is None:
            print("no error for allocation", number)
            sys.exit(1)
        del error
        assert shim.failing_maps() == maps, "a range of memory is left behind"
        number += 1

count, machine = each(lambda: Machine(m.SNP), (MachineError, MemoryError))
assert count >= 8, count
state = machine.state()
count, other = each(lambda: Machine(m.SNP, state=state), (MachineError, MemoryError))
assert count >= 9, count
assert other.state() == state
machine.record_events(True)
before = machine.state()
count, found = each(machine.state, MemoryError)
assert count >= 2, count
assert found == before
count, broken = each(machine.validate, MemoryError)
assert (count, broken) == (1, None)
# events that find no room are missed at once, not at the next look
def listen():
    machine.record_events(False)
    machine.record_events(True)
    assert machine.apply(make_op("set_memory_4k", pfn=0x400, pages=1)).ret == 0
    return machine.take_events()
shim.failing_arm(0)
try:
    events = listen()
except MemoryError:
    events = None
assert shim.failing_done() and events is None
assert machine.take_events().size == 0
assert machine.apply(make_op("set_memory_4k", pfn=0x600, pages=1)).ret == 0
assert machine.take_events()["kind"].tolist() == [6, 8, 4]
assert machine.validate() is None
print("done")
"""


@pytest.mark.plain_build
def test_no_memory_in_the_process(tmp_path: Path) -> None:
    """Each allocation of the binding fails once: MachineError or MemoryError, no crash, nothing left behind, and the
    machine goes on."""
    shim = tmp_path / "failing.so"
    source = ROOT / "tests/c/failing.c"
    subprocess.run(
        [*headers.compiler(), "-std=c11", "-O2", "-shared", "-fPIC", str(source), "-ldl", "-o", str(shim)], check=True
    )
    code = DRIVER.format(paths=[str(ROOT / "tests")])
    environment = os.environ | {"LD_PRELOAD": str(shim)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
