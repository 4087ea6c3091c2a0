"""A foreign processor on the model's memory: Unicorn walks its page tables, runs code with the SNP instructions, and
gets the RMP's page faults."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from machines import (
    ASSIGNED,
    FAIL_INPUT,
    FAIL_PERMISSION,
    FRAME_MASK,
    GIB,
    HIGH_MAPPING,
    HOLE,
    IMAGE,
    MIB,
    NX,
    PC,
    PSMASH_REFUSED,
    RW,
    SMALL,
    SMALL_4K,
    SMALL_CBIT,
    SMALL_LA57,
    SMALL_PTI,
    SMALL_RANDOM,
    SNP,
    SNP_CBIT,
    SUCCESS,
    U64,
    VALIDATED,
    Host,
    P,
    leaves,
)

from rmpcore.cpu import Cpu, Page
from rmpcore.emu.unicorn import KERNEL_CODE, KERNEL_DATA, WALKERS, Emulator, EmulatorError, const, unicorn, x86
from rmpcore.fuzzing.dmap_ops import direct_map_ops, frames_of
from rmpcore.maps import MachineMap
from rmpcore.ops import Kind, Reason, Result, ResultFlag, make_op

ROOT = Path(__file__).parents[1]
FAIL_SIZEMISMATCH = 6
UD, DF, NP, GP, PF, VC = 6, 8, 11, 13, 14, 29
RF = 1 << 16
ZF, CF = 1 << 6, 1 << 0
NO_RESULT = 0xDEAD_BEEF_0000

# Frames that the tests use: code, the tables of the processor, its stack, and operands.
CODE, TABLES, STACK, DATA = 0x10, 0x20, 0x30, 0x38
REGION = 0x400
"""Its neighbours are written; one page of it is a guest's."""
PRIVATE = REGION + 7
REGISTERS = ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8", "RIP", "EFLAGS", "XMM0")

RESOLVE, GIVE_UP = 1, 0
HANDLER = bytes.fromhex(
    "50"  # push rax
    "0f20d0"  # mov rax, cr2
    "e680"  # out 0x80, al
    "84c0"  # test al, al
    "7407"  # jz +7
    "58"  # pop rax
    "4883c408"  # add rsp, 8
    "48cf"  # iretq
    "f4"  # hlt
)
HANDLER_OFFSET, HANDLER_HALT = 0x800, 0x800 + len(HANDLER)


class Guest:
    """A processor on a machine, with a page for its code and short hands for both."""

    def __init__(self, map_: MachineMap = SNP, hardware: str = "turin", **options: object) -> None:
        self.host = Host("native", map_, hardware=hardware)
        self.offset = map_.page_offset
        self.host.call("set_memory_x", pfn=CODE, pages=1)
        self.emulator = Emulator(self.host.machine, **options)  # type: ignore[arg-type]
        self.set(RSP=self.va(STACK + 1))

    def va(self, pfn: int, at: int = 0) -> int:
        return self.offset + (pfn << 12) + at

    def set(self, **registers: int) -> None:
        for name, value in registers.items():
            self.emulator.uc.reg_write(getattr(x86, f"UC_X86_REG_{name}"), value)

    def get(self, name: str) -> int:
        return int(self.emulator.uc.reg_read(getattr(x86, f"UC_X86_REG_{name}")))

    def registers(self) -> dict[str, int]:
        """Without RF, which IRETQ brings back and Unicorn clears at the end of a block only."""
        return {name: self.get(name) & ~(RF if name == "EFLAGS" else 0) for name in REGISTERS}

    def put(self, pa: int, data: bytes) -> None:
        """Straight into the machine's memory."""
        for base, array in self.host.machine.memory():
            if base <= pa < base + len(array):
                memoryview(array)[pa - base : pa - base + len(data)] = data

    def at(self, pa: int, size: int) -> bytes:
        """Straight from the machine's memory."""
        return next(
            bytes(array[pa - base : pa - base + size])
            for base, array in self.host.machine.memory()
            if base <= pa < base + len(array)
        )

    def run(self, code: str, at: int = 0, **registers: int) -> Result | None:
        """Run this code, in hex, from the page for code."""
        self.load(code, at)
        self.set(**registers)
        return self.emulator.run(self.va(CODE, at))

    def load(self, code: str, at: int = 0) -> None:
        self.put((CODE << 12) + at, bytes.fromhex(code))
        self.emulator.uc.ctl_flush_tb()

    def tables(self, handlers: dict[int, int] | None = None) -> None:
        self.emulator.load_tables(self.va(TABLES), handlers or {})

    def private(self, pfn: int = PRIVATE) -> None:
        """RMPUPDATE: the page is a guest's from now on."""
        fields = {"gpa": 0x7000, "assigned": 1, "size": 0, "asid": 5}
        assert self.emulator.apply(make_op("RMPUPDATE", pa=pfn << 12, **fields)).ret == SUCCESS


def refused(guest: Guest, address: int, reason: Reason) -> Result:
    """#PF of a host's write by the RMP (rmp §3.5)."""
    return Result(PF, Kind.FAULT, reason=reason, value=0x8000_0003, value2=address)


def page_fault(error: int, address: int) -> tuple[int, int, int, int]:
    return PF, Kind.FAULT, error, address


def short(result: Result | None) -> tuple[int, int, int, int] | None:
    """A fault without its reason, which a processor does not know."""
    return None if result is None else (result.ret, result.kind, result.value, result.value2)


# --- the walk ---

LOAD, STORE, JUMP = "488b07 f4", "488907 f4", "ffe7"  # mov rax, [rdi]; hlt / mov [rdi], rax; hlt / jmp rdi
AT_LOAD, AT_STORE, AT_JUMP = 0x100, 0x110, 0x120


def expected(guest: Guest, pfn: int) -> tuple[int, bool, bool, bool]:
    """(address reached, present, writable, executable) of a frame in the direct map, by the model's own lookup."""
    result = guest.host.do("lookup", pfn=pfn)
    raw, level = result.value, result.level
    if not raw & P:
        return 0, False, False, False
    inside = (1 << 9 * level + 3) - 1
    reached = raw & FRAME_MASK & ~guest.host.machine.map.c_bit & ~inside | (pfn << 12) & inside
    rw = bool(raw & RW) and bool(result.flags & ResultFlag.RW)
    return reached, True, rw, not raw & NX and not result.flags & ResultFlag.NX


def expected_high(found: dict[tuple[int, int], int], offset: int) -> tuple[int, bool, bool, bool]:
    """The same in the high mapping, from the state's leaves.  The kernel makes the tables above with all rights."""
    for level in (1, 2):
        inside = (1 << 9 * level + 3) - 1
        raw = found.get((level, offset & ~inside), 0)
        if raw & P:
            return raw & FRAME_MASK & ~inside | offset & inside, True, bool(raw & RW), not raw & NX
    return 0, False, False, False


def table_pages(guest: Guest) -> set[int]:
    state = guest.host.state()
    return {state.root >> 12, *(raw >> 12 & 0xFF_FFFF_FFFF for *_, raw in state.tables.tolist())}


def sample(guest: Guest, rng: random.Random, count: int) -> list[tuple[int, bool]]:
    """Frames of memory: those at lines that matter with both neighbours, and any."""
    map_ = guest.host.machine.map
    backed = [(base >> 12, base + size >> 12) for base, size in map_.memory]
    near = {pfn + near for pfn in frames_of(map_) for near in (-1, 0, 1)} | set(range(0x600, 0x800, 5))
    anywhere = {rng.randrange(*rng.choice(backed)) for _ in range(count)}
    rows = [(pfn, False) for pfn in sorted(near | anywhere) if any(start <= pfn < end for start, end in backed)]
    if map_.image is not None:
        first = map_.image.text - HIGH_MAPPING >> 12
        last = map_.image.brk_end - HIGH_MAPPING >> 12
        rows += [(pfn, True) for pfn in range(first - 1, last + 1, 3)]
    return rows


MAPS = {
    "small": SMALL,
    "4k": SMALL_4K,
    "la57": SMALL_LA57,
    "pti": SMALL_PTI,
    "random": SMALL_RANDOM,
    "pc": PC,
    "hole": HOLE,
    "image": IMAGE,
    "cbit": SMALL_CBIT,
}


@pytest.mark.parametrize(
    ("walker", "name"), [(walker, name) for walker in WALKERS for name in MAPS if (walker, name) != ("unicorn", "cbit")]
)
def test_walk(walker: str, name: str) -> None:
    """The model's tables as a processor reads them: frame, rights, error code and CR2 of thousands of addresses, fresh
    and after many changes.  (Unicorn's MMU has no encryption bit.)"""
    rng = random.Random(name)
    guest = Guest(MAPS[name], walker=walker, deliver=False)
    frames = [pfn for pfn in frames_of(MAPS[name]) if pfn & ~0x1FF != CODE & ~0x1FF]
    reached = {"read": 0, "absent": 0, "read-only": 0, "nx": 0, "executed": 0}
    for ops in (0, 60, 60):
        # not the page with this test's code
        for op in direct_map_ops(rng, frames, ops):
            if op.addr << 12 >= MIB:
                guest.emulator.apply(op)
        if ops:
            for name_, pfn in (("ro", 0x600), ("np", 0x610), ("x", 0x620), ("x", 0x7F0)):
                guest.emulator.apply(make_op(f"set_memory_{name_}", pfn=pfn, pages=16))
        guest.emulator.flush()
        walked(guest, rng, reached)
    assert guest.host.counters()["level2_splits"] or name == "4k"
    assert all(reached.values()), reached


def walked(guest: Guest, rng: random.Random, reached: dict[str, int]) -> None:
    """Read, write and execute each frame of a sample, and compare."""
    tables = table_pages(guest) | {CODE, STACK}
    in_high = leaves(guest.host.state(), 1)
    rows = sample(guest, rng, 150)
    for pfn, _ in rows:
        if pfn not in tables:
            guest.put((pfn << 12) + 0xF00, struct.pack("<QQ", 0xC0DE_0000_0000 | pfn, NO_RESULT) + b"\xf4")
    for at, code in ((AT_LOAD, LOAD), (AT_STORE, STORE), (AT_JUMP, JUMP)):
        guest.load(code, at)
    for pfn, high in rows:
        va = HIGH_MAPPING + (pfn << 12) if high else guest.va(pfn)
        pa, present, writable, executable = expected_high(in_high, pfn << 12) if high else expected(guest, pfn)
        where = f"{pfn:#x} {'high' if high else ''}"
        guest.set(RDI=va + 0xF00)
        fault = guest.emulator.run(guest.va(CODE, AT_LOAD))
        if not present:
            assert short(fault) == page_fault(0, va + 0xF00), where
        else:
            assert fault is None and guest.get("RAX") == int.from_bytes(guest.at(pa + 0xF00, 8), "little"), where
        reached["read" if present else "absent"] += 1
        if pfn in tables:
            continue
        token = rng.randrange(1 << 64)
        guest.set(RDI=va + 0xF08, RAX=token)
        fault = guest.emulator.run(guest.va(CODE, AT_STORE))
        if present and writable:
            assert fault is None and guest.at(pa + 0xF08, 8) == token.to_bytes(8, "little"), where
        else:
            assert short(fault) == page_fault(3 if present else 2, va + 0xF08), where
            reached["read-only"] += present
        guest.set(RDI=va + 0xF10)
        fault = guest.emulator.run(guest.va(CODE, AT_JUMP))
        if executable:
            assert fault is None and guest.get("RIP") == va + 0xF11, where
        else:
            assert short(fault) == page_fault(0x11 if present else 0x10, va + 0xF10), where
        reached["executed" if executable else "nx"] += present


@pytest.mark.parametrize("walker", WALKERS)
def test_sizes_of_leaves(walker: str) -> None:
    """One address through a 1G, a 2M and a 4K leaf: the same byte."""
    guest = Guest(HOLE, walker=walker, deliver=False)
    pa = GIB + 0x234_5678
    for level in (3, 2, 1):
        if level == 2:
            # a split of 1G gives 2M leaves, and 4K ones only around the page asked for (direct-map §4.3)
            guest.emulator.apply(make_op("set_memory_4k", pfn=GIB >> 12, pages=1))
        elif level == 1:
            guest.emulator.apply(make_op("set_memory_4k", pfn=pa >> 12, pages=1))
        assert guest.host.leaf(pa >> 12)[0] == level
        assert guest.run(STORE, RDI=guest.offset + pa, RAX=0x1111_2222_3333_4440 + level) is None
        assert guest.at(pa, 8) == (0x1111_2222_3333_4440 + level).to_bytes(8, "little")


@pytest.mark.parametrize("walker", WALKERS)
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_rights_of_tables(walker: str, level: int) -> None:
    """A right is there if the entries of all levels give it."""
    guest = Guest(walker=walker, deliver=False)
    user = map_user(guest, REGION)
    guest.put(REGION << 12, b"\xf4")
    assert guest.run(STORE, RDI=user + 8) is None and guest.run(JUMP, RDI=user) is None
    entry = (USER_TABLES + 4 - level << 12) + 8 * (USER >> 9 * level + 3 & 511)
    raw = int.from_bytes(guest.at(entry, 8), "little")
    for change, code, error in ((RW, STORE, 3), (NX, JUMP, 0x11)):
        guest.put(entry, (raw ^ change).to_bytes(8, "little"))
        guest.emulator.flush()
        assert guest.run(LOAD, RDI=user) is None
        assert short(guest.run(code, RDI=user + 8)) == page_fault(error, user + 8)
    guest.put(entry, (raw ^ P).to_bytes(8, "little"))
    guest.emulator.flush()
    assert short(guest.run(LOAD, RDI=user)) == page_fault(0, user)


@pytest.mark.parametrize("walker", WALKERS)
@pytest.mark.parametrize(("map_", "bits"), [(SMALL, 48), (SMALL_LA57, 57)])
def test_not_canonical(walker: str, map_: MachineMap, bits: int) -> None:
    """An address whose upper bits are not all alike is #GP(0), in both halves."""
    guest = Guest(map_, walker=walker, deliver=False)
    for va in (1 << bits - 1, U64 + 1 - (1 << bits - 1) - 8, 1 << 62):
        assert short(guest.run(LOAD, RDI=va)) == (GP, Kind.FAULT, 0, 0)
    for va in ((1 << bits - 1) - 8, U64 + 1 - (1 << bits - 1)):
        assert short(guest.run(LOAD, RDI=va)) == page_fault(0, va)


@pytest.mark.parametrize("walker", WALKERS)
def test_stale_translations(walker: str) -> None:
    """Unicorn caches translations, so a change that goes past the adapter is not seen; an op that flushes is."""
    guest = Guest(walker=walker, deliver=False)
    address = guest.va(0x600)
    assert guest.run(STORE, RDI=address, RAX=1) is None
    guest.host.call("set_memory_ro", pfn=0x600, pages=1)
    assert guest.run(STORE, RDI=address, RAX=2) is None and guest.at(0x60_0000, 1) == b"\2"
    guest.emulator.flush()
    assert short(guest.run(STORE, RDI=address, RAX=3)) == page_fault(3, address)
    assert guest.at(0x60_0000, 1) == b"\2"
    # rw: more rights need no flush of a translation that never was
    guest.emulator.apply(make_op("set_memory_rw", pfn=0x600, pages=1))
    assert guest.run(STORE, RDI=address, RAX=4) is None
    guest.emulator.apply(make_op("set_memory_ro", pfn=0x600, pages=1))
    assert short(guest.run(STORE, RDI=address, RAX=5)) == page_fault(3, address)


@pytest.mark.parametrize("walker", WALKERS)
def test_noflush_does_not_flush(walker: str) -> None:
    """direct-map §6: set_direct_map_invalid_noflush leaves the TLB alone, so the page can still be written."""
    guest = Guest(walker=walker, deliver=False)
    guest.emulator.apply(make_op("set_memory_4k", pfn=0x600, pages=1))
    assert guest.run(STORE, RDI=guest.va(0x600), RAX=1) is None
    guest.emulator.apply(make_op("set_direct_map_invalid_noflush", pfn=0x600))
    assert guest.run(STORE, RDI=guest.va(0x600), RAX=2) is None
    guest.emulator.flush()
    assert short(guest.run(STORE, RDI=guest.va(0x600), RAX=3)) == page_fault(2, guest.va(0x600))


# --- the RMP's page fault ---


def test_write_to_a_neighbour() -> None:
    """rmp §3.4: through a large mapping every page of the region is refused, through a small one the private page
    alone.  Nothing is written; reads pass."""
    guest = Guest(deliver=False)
    guest.private()
    for pfn, reason in ((REGION, Reason.NEIGHBOUR), (PRIVATE, Reason.ASSIGNED), (REGION + 511, Reason.NEIGHBOUR)):
        address = guest.va(pfn, 0xABC)
        assert guest.run(STORE, RDI=address, RAX=U64) == refused(guest, address, reason)
        assert guest.get("RIP") == guest.va(CODE)
        assert guest.at((pfn << 12) + 0xABC, 8) == bytes(8)
        assert guest.run(LOAD, RDI=address) is None
    assert guest.run(STORE, RDI=guest.va(REGION - 1), RAX=U64) is None
    assert guest.run(STORE, RDI=guest.va(REGION + 512), RAX=U64) is None
    guest.emulator.apply(make_op("adjust_direct_map", pfn=PRIVATE, level=1))
    assert guest.run(STORE, RDI=guest.va(REGION, 0xABC), RAX=U64) is None
    assert guest.at((REGION << 12) + 0xABC, 8) == b"\xff" * 8
    address = guest.va(PRIVATE, 0xABC)
    assert guest.run(STORE, RDI=address, RAX=U64) == refused(guest, address, Reason.ASSIGNED)


def test_unicorns_own_walker_does_not_ask_the_rmp() -> None:
    """What the difference between the walkers is."""
    guest = Guest(walker="unicorn", deliver=False)
    guest.private()
    assert guest.run(STORE, RDI=guest.va(PRIVATE), RAX=U64) is None


@pytest.mark.parametrize("op", ["RMPUPDATE", "VMRUN", "SNP_INIT"])
def test_what_the_rmp_allowed_is_not_kept(op: str) -> None:
    """TLB entries hold the result of the RMP's check (rmp §2.2): after an op that changes it there is a new one.  In
    use: rmp §3.7, without HvInUseWrAllowed; SNP_INIT makes the table's own pages Firmware (rmp §3.6)."""
    guest = Guest(hardware="genoa", deliver=False)
    pfn = SNP.rmp[0] >> 12 if op == "SNP_INIT" else REGION
    # the table's own pages lie above memory: mapped by hand of the test, in the user's half
    address = map_user(guest, pfn) if op == "SNP_INIT" else guest.va(pfn)
    assert guest.run(STORE, RDI=address + 0x800, RAX=0) is None
    if op == "RMPUPDATE":
        guest.private(pfn)
    elif op == "VMRUN":
        assert guest.emulator.apply(make_op("VMRUN", vmcb=pfn << 12, asid=1, plain=1)).kind == Kind.ALLOWED
    else:
        assert guest.emulator.apply(make_op("SNP_INIT")).ret == 0
    fault = guest.run(STORE, RDI=address + 0x800, RAX=U64)
    assert short(fault) == page_fault(0x8000_0003, address + 0x800)


def test_rmpupdate_in_code_flushes() -> None:
    """The same for the instruction itself: a write, RMPUPDATE of that page, and the write again."""
    guest = Guest(deliver=False)
    guest.put(DATA << 12, struct.pack("<QBBBBI", 0x7000, 1, 0, 0, 0, 5))
    address = guest.va(REGION, 0x10)
    fault = guest.run("4c8907 f20f01fe 4c8907", RDI=address, RAX=REGION << 12, RCX=guest.va(DATA), R8=U64)
    assert fault == refused(guest, address, Reason.ASSIGNED)
    assert guest.get("RIP") == guest.va(CODE, 7)


def test_a_guest_is_not_checked() -> None:
    """docs/unicorn.md: loads and stores in guest mode are not judged."""
    guest = Guest(cpu=Cpu(asid=5), deliver=False)
    guest.private()
    assert guest.run(STORE, RDI=guest.va(PRIVATE), RAX=U64) is None


def test_a_table_of_the_host_that_is_a_guests() -> None:
    """rmp §3.2: the walk itself is checked, also for a read."""
    guest = Guest(deliver=False)
    address = map_user(guest, REGION)
    assert guest.run(LOAD, RDI=address) is None
    guest.private(USER_TABLES + 3)
    assert guest.run(LOAD, RDI=address) == Result(PF, Kind.FAULT, 0, 0, Reason.ASSIGNED, 0x8000_0001, address)


def test_the_check_is_of_what_is_mapped() -> None:
    """Another mapping of a page is checked by its own size: 4K here, though the direct map has 2M."""
    guest = Guest(deliver=False)
    guest.private()
    address = map_user(guest, REGION)
    assert guest.run(STORE, RDI=address, RAX=U64) is None
    assert guest.at(REGION << 12, 8) == b"\xff" * 8
    address = map_user(guest, PRIVATE)
    assert guest.run(STORE, RDI=address, RAX=U64) == refused(guest, address, Reason.ASSIGNED)


USER = 0x7F00_0000_0000
USER_TABLES = 0x50


def map_user(guest: Guest, pfn: int, flags: int = 0x67) -> int:
    """A page of the lower half, mapped by tables that the test writes; the upper half stays the kernel's."""
    frames = [USER_TABLES + n for n in range(4)]
    guest.put(frames[0] << 12, guest.at(guest.host.machine.root, 0x1000))
    for frame, below, level in zip(frames, [*frames[1:], pfn], (4, 3, 2, 1), strict=True):
        slot = USER >> 9 * level + 3 & 511
        guest.put((frame << 12) + 8 * slot, (below << 12 | (flags if level == 1 else 0x67)).to_bytes(8, "little"))
    guest.set(CR3=frames[0] << 12)
    guest.emulator.flush()
    return USER


# Writers of [RDI]: the code before, the writing instruction, and how far from RDI its first byte goes.
OTHER_STACK = "4889fc"  # mov rsp, rdi
WRITERS = {
    "mov": ("", "48890f", 0),
    "mov byte": ("", "880f", 0),
    "mov word": ("", "66890f", 0),
    "xchg": ("", "48870f", 0),
    "lock cmpxchg": ("", "f0480fb10f", 0),
    "lock cmpxchg8b": ("", "f00fc70f", 0),
    "lock xadd": ("", "f0480fc10f", 0),
    "add": ("", "48830701", 0),
    "lock inc": ("", "f048ff07", 0),
    "sete": ("", "0f9407", 0),
    "bts": ("", "480fba2f21", 0),
    "movups": ("", "0f1107", 0),
    "movnti": ("", "480fc30f", 0),
    "pop": ("", "8f07", 0),
    "movsq": ("", "48a5", 0),
    "rep movsb": ("", "f3a4", 0),
    "stosq": ("48f7d0", "48ab", 0),  # not rax
    "rep stosb": ("48f7d0", "f3aa", 0),
    "push": (OTHER_STACK, "51", -8),
    "push memory": (OTHER_STACK, "ff36", -8),
    "pushf": (OTHER_STACK, "9c", -8),
    "call": (OTHER_STACK, "e800000000", -8),
    "enter": (OTHER_STACK, "c8100000", -8),
}
BACKGROUND = 0xA5A5_A5A5_A5A5_A5A5
START = {"RAX": BACKGROUND, "RBX": 0x77, "RCX": 40, "RDX": BACKGROUND & 0xFFFF_FFFF, "RBP": 0x1234, "EFLAGS": 0x2}


def prepared(writer: str, at: int) -> tuple[Guest, int]:
    """A guest about to execute a writer whose RDI is an address in the region; where its first byte goes."""
    guest = Guest()
    before, code, distance = WRITERS[writer]
    guest.tables({PF: guest.va(CODE, HANDLER_OFFSET)})
    guest.load(HANDLER.hex(), HANDLER_OFFSET)
    guest.load(before + code + "f4")
    guest.put(DATA << 12, bytes(range(256)) * 16)
    guest.put(REGION << 12, b"\xa5" * 0x20_0000)
    guest.set(**START, RSI=guest.va(DATA), RSP=guest.va(STACK, 0x800), RIP=guest.va(CODE))
    guest.set(RDI=guest.va(REGION, at), XMM0=0x1122334455667788_99AABBCCDDEEFF00)
    if before:
        assert guest.emulator.step() is None
    return guest, guest.va(REGION, at + distance)


def hypercall(guest: Guest) -> list[int]:
    """Port 0x80: the handler hands over CR2 in RAX, and is told whether to try again.  Gives the list of those asked
    for."""
    asked: list[int] = []

    def out(_uc: object, port: int, _size: int, _value: int, _data: object) -> None:
        assert port == 0x80
        asked.append(guest.get("RAX"))
        pfn = asked[-1] - guest.offset >> 12
        guest.emulator.apply(make_op("adjust_direct_map", pfn=pfn, level=1))
        again = guest.emulator.apply(make_op("host_write", pfn=pfn)).kind == Kind.ALLOWED
        guest.set(RAX=RESOLVE if again else GIVE_UP)

    guest.emulator.uc.hook_add(const.UC_HOOK_INSN, out, None, 1, 0, x86.UC_X86_INS_OUT)
    return asked


@pytest.mark.parametrize("at", [0x3000, 0x2FFD], ids=["one page", "two pages"])
@pytest.mark.parametrize("writer", WRITERS)
def test_writes_tried_again(writer: str, at: int) -> None:
    """A write that is refused, repaired and tried again leaves what it leaves without a fault: registers, flags and
    memory.  If it writes to its stack the test repairs, as the handler would need that stack."""
    plain, first = prepared(writer, at)
    assert plain.emulator.run() is None
    guest, _ = prepared(writer, at)
    guest.private()
    own_stack = WRITERS[writer][0] == OTHER_STACK
    if own_stack:
        guest.emulator.deliver = False
        assert guest.emulator.run() == refused(guest, first, Reason.NEIGHBOUR)
        guest.emulator.apply(make_op("adjust_direct_map", pfn=PRIVATE, level=1))
    asked = hypercall(guest)
    assert guest.emulator.run() is None
    assert asked == ([] if own_stack else [first])
    assert guest.registers() == plain.registers()
    region = (REGION << 12, 0x5000)
    assert guest.at(*region) == plain.at(*region)
    assert plain.at(*region) != b"\xa5" * 0x5000


@pytest.mark.parametrize("writer", WRITERS)
def test_refused_writes(writer: str) -> None:
    """A write to the private page itself changes neither memory nor a register, wherever in the page it begins."""
    for offset in (0x10, 0x123, 0xFE0):
        guest, first = prepared(writer, (PRIVATE - REGION << 12) + offset)
        guest.emulator.deliver = False
        guest.emulator.apply(make_op("adjust_direct_map", pfn=PRIVATE, level=1))
        guest.private()
        before, memory = guest.registers(), guest.at(REGION << 12, 0x20_0000)
        assert guest.emulator.run() == refused(guest, first, Reason.ASSIGNED)
        assert guest.registers() == before
        assert guest.at(REGION << 12, 0x20_0000) == memory


@pytest.mark.parametrize("writer", ["mov", "xchg", "add", "lock cmpxchg", "push", "movups", "sete", "pop"])
@pytest.mark.parametrize("private", [0, 1], ids=["first page", "second page"])
def test_writes_over_two_pages(writer: str, private: int) -> None:
    """One of both pages refuses: nothing of either is written, and CR2 is the first byte in the page that refused."""
    border = PRIVATE - private + 1 << 12
    distance = WRITERS[writer][2]
    size = {"sete": 1, "movups": 16}.get(writer, 8)
    guest, first = prepared(writer, border - (REGION << 12) - distance - (1 if size == 1 else size // 2 - 1))
    guest.emulator.deliver = False
    guest.emulator.apply(make_op("adjust_direct_map", pfn=PRIVATE, level=1))
    guest.private()
    memory = guest.at(REGION << 12, 0x20_0000)
    if size == 1 and private:
        assert guest.emulator.run() is None  # ends before the border
        return
    at = first if not private or first >= guest.offset + border else guest.offset + border
    assert guest.emulator.run() == refused(guest, at, Reason.ASSIGNED)
    assert guest.at(REGION << 12, 0x20_0000) == memory


def test_what_follows_a_refused_write_is_not_executed() -> None:
    """Not even while CR2 is looked for: a CALL whose return address would reach into the private page, to an OUT."""
    guest = Guest(deliver=False)
    guest.emulator.apply(make_op("adjust_direct_map", pfn=PRIVATE, level=1))
    guest.private()
    asked = hypercall(guest)
    guest.load("e680 f4", 0x45)
    fault = guest.run("e840000000", RSP=guest.va(PRIVATE, 4), RAX=guest.va(REGION))
    assert fault == refused(guest, guest.va(PRIVATE), Reason.ASSIGNED)
    assert guest.get("RSP") == guest.va(PRIVATE, 4)
    assert asked == []


def test_rep_stosb_stops_where_it_is_refused() -> None:
    """Registers say how far it has come, and it goes on from there."""
    guest = Guest(deliver=False)
    guest.emulator.apply(make_op("adjust_direct_map", pfn=PRIVATE, level=1))
    guest.private()
    start = guest.va(PRIVATE) - 0x30
    fault = guest.run("f3aa f4", RDI=start, RCX=0x50, RAX=0x41)
    assert fault == refused(guest, guest.va(PRIVATE), Reason.ASSIGNED)
    assert (guest.get("RDI"), guest.get("RCX"), guest.get("RIP")) == (guest.va(PRIVATE), 0x20, guest.va(CODE))
    assert guest.at((PRIVATE << 12) - 0x31, 0x52) == bytes(1) + b"A" * 0x30 + bytes(0x21)
    fields = {"gpa": 0, "assigned": 0, "size": 0, "asid": 0}
    guest.emulator.apply(make_op("RMPUPDATE", pa=PRIVATE << 12, **fields))
    assert guest.emulator.run() is None
    assert guest.at((PRIVATE << 12) - 0x31, 0x52) == bytes(1) + b"A" * 0x50 + bytes(1)


def test_the_handler() -> None:
    """The whole story in guest code: the write is delivered as #PF, with the frame that hardware pushes; the handler
    asks the host, which splits the direct map; IRETQ; the write succeeds.  For the private page it gives up."""
    guest = Guest()
    guest.tables({PF: guest.va(CODE, HANDLER_OFFSET)})
    guest.load(HANDLER.hex(), HANDLER_OFFSET)
    guest.private()
    asked = hypercall(guest)
    stack, address = guest.va(STACK, 0x808), guest.va(REGION, 0x345)
    assert guest.host.leaf(REGION)[0] == 2
    # clc; stc; mov [rdi], rax; mov ecx, 5; hlt
    assert guest.run("f8 f9 488907 b905000000 f4", RDI=address, RAX=U64, RSP=stack, EFLAGS=0x202) is None
    assert asked == [address] and guest.get("CR2") == address
    assert guest.host.leaf(REGION)[0] == 1
    assert guest.at((REGION << 12) + 0x345, 8) == b"\xff" * 8
    assert (guest.get("RCX"), guest.get("RSP"), guest.get("RIP")) == (5, stack, guest.va(CODE, 11))
    assert guest.registers()["EFLAGS"] == 0x203  # the carry and IF are back
    # the stack is cut to 16 bytes first; RAX of the handler lies below the frame
    frame = struct.unpack("<7Q", guest.at((STACK << 12) + 0x800 - 56, 56))
    rip, flags = guest.va(CODE, 2), 0x203 | RF
    assert frame == (U64, 0x8000_0003, rip, KERNEL_CODE, flags, stack, KERNEL_DATA)

    address = guest.va(PRIVATE, 0x345)
    assert guest.run("488907 f4", RDI=address, RAX=U64, RSP=stack) is None
    assert asked[1:] == [address]
    assert guest.get("RIP") == guest.va(CODE, HANDLER_HALT)
    assert not guest.get("EFLAGS") & 1 << 9  # an interrupt gate
    assert guest.at((PRIVATE << 12) + 0x345, 8) == bytes(8)


def test_code_that_writes_its_own_page() -> None:
    """The page that runs lies in the region: the write faults, is repaired, and the new code is what runs."""
    guest = Guest()
    guest.tables({PF: guest.va(CODE, HANDLER_OFFSET)})
    guest.load(HANDLER.hex(), HANDLER_OFFSET)
    guest.emulator.apply(make_op("set_memory_x", pfn=REGION, pages=512))
    assert guest.host.leaf(REGION)[0] == 2
    guest.private()
    asked = hypercall(guest)
    # mov byte [rip + 2], 7 (the mov's immediate); nop; mov al, 1; hlt
    guest.put(REGION << 12, bytes.fromhex("c605 02000000 07 90 b001 f4"))
    assert guest.emulator.run(guest.va(REGION)) is None
    assert asked == [guest.va(REGION, 9)]
    assert guest.get("RAX") & 0xFF == 7


def test_no_instruction_is_lost() -> None:
    """A thousand faults, trapped instructions and hypercalls among instructions that count: each is executed once."""
    rng = random.Random(1)
    guest = Guest()
    guest.tables({PF: guest.va(CODE, HANDLER_OFFSET)})
    guest.load(HANDLER.hex(), HANDLER_OFFSET)
    asked = hypercall(guest)
    # inc rcx; mov [rdi], rcx; inc rcx; psmash (of a bad address: FAIL_INPUT); inc rcx; dec rdx; jnz back; hlt
    guest.load("48ffc1 48890f 48ffc1 f30f01ff 48ffc1 48ffca 75eb f4")
    expected_faults = 0
    for count in range(1, 60):
        pfn = 0x600 + rng.randrange(0x3000 - 0x600)
        split = guest.host.leaf(pfn)[0] == 1
        private = pfn & ~0x1FF | 0x1FF
        if pfn == private:
            continue
        if not guest.host.rmp(private)[0] & ASSIGNED:
            guest.private(private)
        expected_faults += not split
        guest.set(RCX=0, RDX=count, RDI=guest.va(pfn), RAX=1)
        assert guest.emulator.run(guest.va(CODE)) is None
        assert (guest.get("RCX"), guest.get("RDX"), guest.get("RIP")) == (3 * count, 0, guest.va(CODE, 22))
        assert int.from_bytes(guest.at(pfn << 12, 8), "little") == 3 * count - 2
    assert len(asked) == expected_faults > 10


# --- fetches, steps ---


@pytest.mark.parametrize(
    ("code", "rip", "count"),
    [("48ffc1 48ffc1 48ffc1 48b811223344", 9, 3), ("90 48ffc1 48ffc1 48ffc1 48ffc1 9090", 15, 4)],
    ids=["inside an instruction", "between two"],
)
def test_running_into_a_page_that_is_not_executable(code: str, rip: int, count: int) -> None:
    """#PF of the fetch comes when the instruction's turn has come, though Unicorn reads ahead; CR2 is in the page."""
    guest = Guest(deliver=False)
    data = bytes.fromhex(code)
    start = 0x1000 - len(data)
    fault = guest.run(code, at=start, RCX=0)
    assert short(fault) == page_fault(0x11, guest.va(CODE + 1))
    assert (guest.get("RIP"), guest.get("RCX")) == (guest.va(CODE, start + rip), count)


def test_step() -> None:
    """One instruction at a time, also of code that has run before: RIP after each."""
    guest = Guest(deliver=False)
    assert guest.run("90 48ffc1 f20f01fd f3aa 488907 f4", RAX=U64, RCX=0, RDI=guest.va(REGION)) is None
    guest.private()
    guest.set(RIP=guest.va(CODE), RAX=U64, RCX=0, RDI=guest.va(REGION))
    for after in (1, 4, 8, 10):
        assert guest.emulator.step() is None
        assert guest.get("RIP") == guest.va(CODE, after)
        guest.set(RCX=0)
    assert guest.emulator.step() == refused(guest, guest.va(REGION), Reason.NEIGHBOUR)
    assert guest.get("RIP") == guest.va(CODE, 10)


def test_until() -> None:
    """run() stops before an address, also in code that has run past it, and is not stopped there the next time."""
    guest = Guest(deliver=False)
    assert guest.run("90 90 48ffc1 90 f4") is None
    assert guest.emulator.run(guest.va(CODE), until=guest.va(CODE, 2)) is None
    assert guest.get("RIP") == guest.va(CODE, 2)
    assert guest.emulator.run(guest.va(CODE)) is None
    assert guest.get("RIP") == guest.va(CODE, 7)


def test_stop() -> None:
    """A hook ends run() where its block ends; another run() goes on."""
    guest = Guest(deliver=False)
    stop = guest.emulator.stop
    guest.emulator.uc.hook_add(const.UC_HOOK_INSN, lambda *_: stop(), None, 1, 0, x86.UC_X86_INS_OUT)
    assert guest.run("e680 eb00 48ffc1 f4", RCX=0) is None  # out; jmp to the next; inc rcx; hlt
    assert (guest.get("RIP"), guest.get("RCX")) == (guest.va(CODE, 4), 0)
    assert guest.emulator.run() is None
    assert guest.get("RCX") == 1
    # also where the adapter goes step by step towards a page that cannot be fetched
    assert guest.run("90 e680 48ffc1 4890", at=0x1000 - 8, RCX=0) is None
    assert (guest.get("RIP"), guest.get("RCX")) == (guest.va(CODE, 0xFFB), 0)


# --- the six instructions ---

OPCODES = {
    "RMPUPDATE": "f20f01fe",
    "PSMASH": "f30f01ff",
    "RMPREAD": "f20f01fd",
    "PVALIDATE": "f20f01ff",
    "RMPADJUST": "f30f01fe",
    "RMPQUERY": "f30f01fd",
}
PFN, PA, GPA, ASID = 0x601, 0x60_1000, 0x7000, 5
GUEST = Cpu(asid=ASID)


def operand(gpa: int, assigned: int, size: int, immutable: int, asid: int) -> bytes:
    return struct.pack("<QBBBBI", gpa, assigned, size, immutable, 0, asid)


def test_a_life_of_a_page_in_code() -> None:
    """rmp §2.1 to §2.4: RMPUPDATE 2M, RMPUPDATE of an inner page, PSMASH, PSMASH again, RMPREAD, one after the other in
    code that keeps each EAX."""
    guest = Guest(deliver=False)
    guest.put(DATA << 12, operand(GIB, 1, 1, 0, ASID) + operand(0, 0, 0, 0, 0))
    code = (
        "f20f01fe 4189c0"  # rmpupdate; mov r8d, eax
        "4c89d8 4883c110 f20f01fe 4189c1"  # mov rax, r11; add rcx, 16; rmpupdate; mov r9d, eax
        "4c89d0 f30f01ff 89c3"  # mov rax, r10; psmash; mov ebx, eax
        "4c89d0 f30f01ff 89c5"  # mov rax, r10; psmash; mov ebp, eax
        "4c89d8 4889f9 f20f01fd"  # mov rax, r11; mov rcx, rdi; rmpread
        "f4"
    )
    base = 0x60_0000
    guest.set(RBX=U64, RBP=U64, R8=U64, R9=U64, R10=base, R11=PA)
    assert guest.run(code, RAX=base, RCX=guest.va(DATA), RDI=guest.va(DATA, 0x100), EFLAGS=0x893) is None
    # 8b: an inner page of a 2M entry overlaps; a second PSMASH has no 2M entry to break
    assert [guest.get(name) for name in ("R8", "R9", "RBX", "RBP", "RAX")] == [SUCCESS, 4, SUCCESS, PSMASH_REFUSED, 0]
    assert guest.at((DATA << 12) + 0x100, 16) == operand(GIB + 0x1000, 1, 0, 0, ASID)
    # ZF and PF for 0; OF, SF and AF are gone; CF, which RMPREAD leaves alone, is clear since the "add"
    assert guest.get("EFLAGS") == 0x46
    assert guest.get("RIP") == guest.va(CODE, len(bytes.fromhex(code)))
    assert guest.host.rmp(0x600) == (ASSIGNED | GIB | ASID << 51 | 511 << 3, 0x1F)
    assert guest.host.counters()["rmpupdate"] == 2 and guest.host.counters()["psmash"] == 2


@pytest.mark.parametrize("prefix", ["", "66", "2e", "67"])
def test_prefixes(prefix: str) -> None:
    """rmp §2.1: prefixes count to the length; with 67 RCX has 32 bits."""
    guest = Guest(deliver=False)
    guest.put(DATA << 12, operand(GPA, 1, 0, 0, ASID))
    fault = guest.run(f"{prefix} f20f01fe f4", RAX=PA, RCX=guest.va(DATA), EFLAGS=0x203)
    if prefix == "67":
        assert short(fault) == page_fault(0, guest.va(DATA) & 0xFFFF_FFFF)
        fault = guest.run(f"{prefix} f20f01fd f4", RAX=PA, RCX=guest.va(DATA))
        assert short(fault) == page_fault(2, guest.va(DATA) & 0xFFFF_FFFF)
    else:
        assert fault is None and guest.get("RAX") == SUCCESS
        assert guest.get("EFLAGS") == 0x247  # ZF and PF, and CF and IF as they were
        assert guest.get("RIP") == guest.va(CODE, len(prefix) // 2 + 5)


def test_operand_over_two_pages() -> None:
    """RMPUPDATE reads, and RMPREAD writes, 16 bytes that lie in two pages, or fault in the second."""
    guest = Guest(deliver=False)
    at = (DATA << 12) + 0xFFA
    guest.put(at, operand(GPA, 1, 0, 0, ASID))
    assert guest.run("f20f01fe f4", RAX=PA, RCX=guest.offset + at) is None
    assert guest.host.rmp(PFN)[0] == ASSIGNED | GPA | ASID << 51
    at += 0x1000
    assert guest.run("f20f01fd f4", RAX=PA, RCX=guest.offset + at) is None
    assert guest.at(at, 16) == operand(GPA, 1, 0, 0, ASID)
    guest.emulator.apply(make_op("set_memory_np", pfn=DATA + 1, pages=1))
    at = (DATA << 12) + 0xFFA
    fault = guest.run("f20f01fe f4", RAX=PA, RCX=guest.offset + at)
    assert short(fault) == page_fault(0, guest.va(DATA + 1))
    before = guest.at((DATA << 12) + 0xFF0, 16)
    fault = guest.run("f20f01fd f4", RAX=PA, RCX=guest.offset + at)
    assert short(fault) == page_fault(2, guest.va(DATA + 1))
    assert guest.at((DATA << 12) + 0xFF0, 16) == before
    assert (guest.get("RAX"), guest.get("RIP")) == (PA, guest.va(CODE))


def test_rmpread_writes_as_the_host_does() -> None:
    """Its 16 bytes are a write: refused where it is read-only, and by the RMP."""
    guest = Guest(deliver=False)
    guest.emulator.apply(make_op("set_memory_ro", pfn=DATA, pages=1))
    assert short(guest.run("f20f01fd f4", RAX=PA, RCX=guest.va(DATA, 8))) == page_fault(3, guest.va(DATA, 8))
    guest.private()
    address = guest.va(REGION, 0x20)
    assert guest.run("f20f01fd f4", RAX=PA, RCX=address) == refused(guest, address, Reason.NEIGHBOUR)
    assert guest.at((REGION << 12) + 0x20, 16) == bytes(16)


def test_injected_codes() -> None:
    """rmp §2.1: an injected code is the answer before the operand, row 2, is looked at; without one an operand that is
    not there is #PF, and the instruction is not counted."""
    guest = Guest(deliver=False)
    assert short(guest.run("f20f01fe f4", RAX=PA, RCX=8)) == page_fault(0, 8)
    assert guest.host.counters()["rmpupdate"] == 0
    guest.host.call("inject", code=3, count=1)
    assert guest.run("f20f01fe f4", RAX=PA, RCX=8) is None
    assert guest.get("RAX") == 3
    assert guest.host.counters()["rmpupdate"] == 1


@pytest.mark.parametrize("name", OPCODES)
def test_who_may_execute(name: str) -> None:
    """rmp §2.1: a guest's instruction in the host is #UD; the host's in a guest answers FAIL_PERMISSION."""
    guest = Guest(deliver=False)
    host_instruction = name in ("RMPUPDATE", "PSMASH", "RMPREAD")
    fault = guest.run(OPCODES[name] + "f4", RAX=PA & ~0x1F_FFFF, RCX=guest.va(DATA))
    if host_instruction:
        assert fault is None
        guest.emulator.cpu = GUEST
        assert guest.run(OPCODES[name] + "f4", RAX=PA, RCX=guest.va(DATA)) is None
        assert guest.get("RAX") == FAIL_PERMISSION
    else:
        assert short(fault) == (UD, Kind.FAULT, 0, 0)
        assert guest.get("RIP") == guest.va(CODE)


@pytest.mark.parametrize("name", OPCODES)
def test_cpl_3(name: str) -> None:
    """rmp §2.1: #GP(0) at CPL 3, to which an IRETQ of the code has gone; the fault is handed back, not delivered."""
    guest = Guest(cpu=Cpu() if name in ("RMPUPDATE", "PSMASH", "RMPREAD") else GUEST)
    guest.tables({})
    user = map_user(guest, REGION)
    guest.put(REGION << 12, bytes.fromhex(OPCODES[name]))
    stack = guest.va(STACK, 0x800)
    guest.put((STACK << 12) + 0x800, struct.pack("<5Q", user, 0x2B, 0x202, user + 0x800, 0x23))
    assert short(guest.run("48cf", RSP=stack, RAX=PA)) == (GP, Kind.FAULT, 0, 0)
    assert (guest.get("CS"), guest.get("RIP")) == (0x2B, user)


def test_user_accesses() -> None:
    """At CPL 3 the kernel's pages are not to be had, and the error code says who it was; the RMP's check too."""
    for address, error in ((SNP.page_offset + 0x123, 7), (USER + 0x1000, 6), (USER + 0x808, 0x8000_0007)):
        guest = Guest()
        guest.tables({})
        user = map_user(guest, REGION)
        guest.put(REGION << 12, bytes.fromhex("488907"))  # mov [rdi], rax
        guest.private(REGION)
        guest.put((STACK << 12) + 0x800, struct.pack("<5Q", user, 0x2B, 0x202, user + 0x800, 0x23))
        fault = guest.run("48cf", RSP=guest.va(STACK, 0x800), RDI=address)
        assert short(fault) == page_fault(error, address)


def test_pvalidate() -> None:
    """rmp §2.5 rows 10, 9 and 8: validated; again, which sets the carry; 2M over 4K."""
    guest = Guest(cpu=GUEST, nested=lambda pa: Page(pa, GPA, 1), deliver=False)
    guest.private(PFN)
    for flags, carry in ((0x3, 0), (0x2, CF)):
        assert guest.run("f20f01ff f4", RAX=guest.va(PFN), RCX=0, RDX=1, EFLAGS=flags) is None
        assert (guest.get("RAX"), guest.get("EFLAGS")) == (SUCCESS, 0x46 | carry)
        assert guest.host.rmp(PFN)[0] == VALIDATED | ASSIGNED | GPA | ASID << 51
    assert guest.run("f20f01ff f4", RAX=guest.va(0x600), RCX=1, RDX=1) == Result(
        0x400, Kind.NPF, reason=Reason.OWNER, value=0x4_8000_0005, value2=GPA
    )
    assert guest.run("f20f01ff f4", RAX=guest.va(PFN), RCX=1, RDX=1) is None
    assert guest.get("RAX") == FAIL_INPUT  # row 4
    guest.private(0x600)
    assert guest.run("f20f01ff f4", RAX=guest.va(0x600), RCX=1, RDX=1) is None
    assert guest.get("RAX") == FAIL_SIZEMISMATCH


def test_rmpadjust_and_rmpquery() -> None:
    """rmp §2.6, §2.7: VMPL1 gets read and write, and is asked about."""
    guest = Guest(cpu=GUEST, nested=lambda pa: Page(pa, GPA, 1), deliver=False)
    guest.host.machine.write_rmp(PFN, VALIDATED | ASSIGNED | GPA | ASID << 51, 0x1F)
    assert guest.run("f30f01fe f4", RAX=guest.va(PFN), RCX=0, RDX=0x0301) is None
    assert guest.get("RAX") == SUCCESS
    assert guest.host.rmp(PFN)[1] == 0x031F
    assert guest.run("f30f01fd f4", RAX=guest.va(PFN), RCX=U64, RDX=0x1) is None
    assert [guest.get(name) for name in ("RAX", "RCX", "RDX")] == [SUCCESS, 0, 0x0301]
    # at VMPL1, which is asked about VMPL0
    guest.emulator.cpu = Cpu(asid=ASID, vmpl=1)
    assert guest.run("f30f01fd f4", RAX=guest.va(PFN), RCX=U64, RDX=0) is None
    assert [guest.get(name) for name in ("RAX", "RCX", "RDX")] == [FAIL_PERMISSION, U64, 0]


def test_a_guests_address_that_is_not_there() -> None:
    """rmp §2.5 row 5: the guest's own tables have nothing: #PF; the nested ones: a nested fault, handed back."""
    guest = Guest(cpu=GUEST, nested=lambda pa: None, deliver=False)
    assert short(guest.run("f20f01ff f4", RAX=0x1000, RCX=0, RDX=1)) == page_fault(0, 0x1000)
    fault = guest.run("f20f01ff f4", RAX=guest.va(PFN), RCX=0, RDX=1)
    assert fault is not None and (fault.kind, fault.ret, fault.value2) == (Kind.NPF, 0x400, PA)
    assert (fault.value & 1, guest.get("RIP")) == (0, guest.va(CODE))


def test_vc_is_delivered() -> None:
    """rmp §2.6 row 5: #VC with error code 0x404 and CR2, through the IDT."""
    guest = Guest(cpu=GUEST, nested=lambda pa: Page(pa, GPA, 1))
    guest.tables({VC: guest.va(CODE, 0x400)})
    guest.load("f4", 0x400)
    guest.private(PFN)
    assert guest.run("f30f01fe", RAX=guest.va(PFN), RCX=0, RDX=0x0101, RSP=guest.va(STACK, 0x800)) is None
    assert guest.get("RIP") == guest.va(CODE, 0x401)
    assert struct.unpack("<2Q", guest.at((STACK << 12) + 0x800 - 48, 16)) == (0x404, guest.va(CODE))
    assert guest.get("CR2") == guest.va(PFN)


# --- other exceptions ---


@pytest.mark.parametrize(
    ("code", "vector", "error", "rip", "flags"),
    [
        ("0f0b", UD, None, 0, 0x2 | RF),  # ud2
        ("0f01d9", UD, None, 0, 0x2 | RF),  # vmmcall, which Unicorn does not have
        ("8ed8", GP, 0x7774, 0, 0x2 | RF),  # mov ds, eax: no such selector
        ("cc", 3, None, 1, 0x2),  # int3
        ("cd80", 0x80, None, 2, 0x2),  # int 0x80
    ],
)
def test_delivery(code: str, vector: int, error: int | None, rip: int, flags: int) -> None:
    """Frames of other exceptions, twice: with or without an error code, at the instruction or after it."""
    guest = Guest()
    guest.tables({vector: guest.va(CODE, 0x400)})
    guest.load("f4", 0x400)
    for _ in range(2):
        assert guest.run(code, RAX=0x7777, RSP=guest.va(STACK, 0x808), EFLAGS=0x2) is None
        assert guest.get("RIP") == guest.va(CODE, 0x401)
        frame = (*([] if error is None else [error]), guest.va(CODE, rip), KERNEL_CODE, flags)
        size = 8 * len(frame) + 16
        assert guest.get("RSP") == guest.va(STACK, 0x800 - size)
        pushed = struct.unpack(f"<{size // 8}Q", guest.at((STACK << 12) + 0x800 - size, size))
        assert pushed == (*frame, guest.va(STACK, 0x808), KERNEL_DATA)


def test_double_and_triple_fault() -> None:
    """No gate for #PF: #NP while it is delivered is #DF with error code 0; no gate for that: the processor gives up."""
    guest = Guest()
    guest.tables({DF: guest.va(CODE, 0x400), PF: 0})
    gate = (TABLES << 12) + 16 * PF
    guest.put(gate + 5, b"\x0e")  # not present
    guest.load("f4", 0x400)
    assert guest.run("488b07", RDI=8, RSP=guest.va(STACK, 0x800)) is None
    assert (guest.get("RIP"), guest.get("RSP")) == (guest.va(CODE, 0x401), guest.va(STACK, 0x800 - 48))
    assert struct.unpack("<2Q", guest.at((STACK << 12) + 0x800 - 48, 16)) == (0, guest.va(CODE))
    guest.tables({})
    with pytest.raises(EmulatorError, match="triple fault"):
        guest.run("488b07", RDI=8)


def test_a_benign_exception_gives_way() -> None:
    """#UD whose frame cannot be pushed: the #PF is delivered, not a #DF; with the same bad stack it ends in a triple
    fault, as a kernel without a stack for #DF has it."""
    guest = Guest()
    guest.tables({vector: guest.va(CODE, 0x400) for vector in (UD, DF, PF)})
    guest.private()
    with pytest.raises(EmulatorError, match="triple fault"):
        guest.run("0f0b", RSP=guest.va(REGION, 0x800))
    assert guest.get("CR2") == guest.va(REGION, 0x7D0)
    assert guest.at((REGION << 12) + 0x700, 0x100) == bytes(0x100)


# --- what is refused ---


def test_c_bit() -> None:
    """rmp §1.6: the walker takes the encryption bit out of entries, as a processor with SME does."""
    guest = Guest(SNP_CBIT, deliver=False)
    guest.private()
    assert guest.run(STORE, RDI=guest.va(0x600, 8), RAX=U64) is None
    assert guest.at(0x60_0008, 8) == b"\xff" * 8
    assert short(guest.run(STORE, RDI=guest.va(REGION), RAX=0)) == page_fault(0x8000_0003, guest.va(REGION))


def test_what_an_emulator_needs() -> None:
    with pytest.raises(EmulatorError, match="only a native machine"):
        Emulator(Host("oracle", SNP).machine)
    with pytest.raises(EmulatorError, match="no walker 'hardware': it is one of rmpcore, unicorn"):
        Emulator(Host("native", SNP).machine, walker="hardware")


def test_memory_that_is_not_there() -> None:
    """Data where no memory is: Unicorn says so.  A page table there: the adapter does."""
    guest = Guest(HOLE, deliver=False)
    address = map_user(guest, 3 * GIB >> 12)
    with pytest.raises(unicorn.UcError, match="READ_UNMAPPED"):
        guest.run(LOAD, RDI=address)
    guest.set(CR3=3 * GIB)
    guest.emulator.flush()
    with pytest.raises(EmulatorError, match="no memory at physical address 0xc0000"):
        guest.emulator.run(guest.va(CODE))


def test_without_unicorn() -> None:
    """One line that says what to install."""
    code = "import sys; sys.modules['unicorn'] = None\nimport rmpcore.emu.unicorn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == (
        'ImportError: rmpcore.emu.unicorn needs the package unicorn: pip install "rmpcore[emu]"'
    )


def test_machines_come_and_go() -> None:
    """The engine holds the machine's memory for as long as it lives."""
    guest = Guest(deliver=False)
    emulator = guest.emulator
    guest.run(STORE, RDI=guest.va(0x600), RAX=U64)
    del guest
    assert emulator.read(SNP.page_offset + 0x60_0000, 8) == b"\xff" * 8


# --- the example ---


def demo(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / "unicorn_demo.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_demo() -> None:
    """Addresses are PAGE_OFFSET and the frame; the entry is gpa 0x1000 of ASID 5, assigned (rmp §1.1)."""
    assert demo().splitlines() == [
        "RMPUPDATE in machine code: frame 0x140007 becomes private",
        f"    EAX = 0, RMP entry {ASSIGNED | 0x1000 | 5 << 51:#x}",
        "MOV to its neighbour, frame 0x140005, through a 1G mapping",
        f"    #PF: address {SNP.page_offset + 0x1_4000_5010:#x}, error code 0x80000003; the handler asks the host",
        "    adjust_direct_map pfn=0x140005 level=4K  = 0",
        "    host_write pfn=0x140005  = allowed level=4K",
        "    tried again: the memory holds 8877665544332211",
        "MOV to the private page itself, frame 0x140007, through a 4K mapping",
        f"    #PF: address {SNP.page_offset + 0x1_4000_7010:#x}, error code 0x80000003; the handler asks the host",
        "    adjust_direct_map pfn=0x140007 level=4K  = 0",
        "    host_write pfn=0x140007  = #PF error=0x80000003 ASSIGNED",
        "    the handler gave up: the memory holds 0000000000000000",
    ]


@pytest.mark.long
def test_times_of_the_demo() -> None:
    """One line each; the loops check themselves that they have done what is timed."""
    lines = demo("--time").splitlines()
    assert len(lines) == 7
    assert all(re.fullmatch(r".+ [0-9]+\.[0-9]{3} us", line) for line in lines)


def test_documented_calls() -> None:
    """docs/unicorn.md: its Python example runs."""
    text = (ROOT / "docs" / "unicorn.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
    assert done.stdout == "#PF at 0xffff888140005000, error code 0x80000003, NEIGHBOUR\n"
