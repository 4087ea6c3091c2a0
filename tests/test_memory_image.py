"""Memory images, read by programs that know nothing of rmpcore: volatility3 walks the page tables in them, drgn does
(it has five levels, too), readelf reads the core's headers.

What they have to find: at which level a page is, and whether it is present, comes from the model's own lookup; where
it is, from what a direct map is, physical = virtual - PAGE_OFFSET, and likewise for the high mapping; the bytes there
from the machine's memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import (
    FRAME_MASK,
    GIB,
    HIGH_MAPPING,
    HOLE,
    HOLE_2M,
    IMAGE,
    IMAGE_MOVED,
    MIB,
    PC,
    SMALL,
    SMALL_4K,
    SMALL_LA57,
    SMALL_PTI,
    SMALL_RANDOM,
    SNP,
    SNP_CBIT,
    SNP_HOLE,
    SNP_IMAGE,
    U64,
    G,
    Host,
    P,
    build_map,
    continued,
    leaves,
    with_leaves,
)
from volatility3.framework import contexts, exceptions, interfaces
from volatility3.framework.layers import elf, intel, physical

import rmpcore
from rmpcore import cli, memory_image
from rmpcore._native import NativeMachine
from rmpcore.fuzzing.dmap_ops import direct_map_ops, frames_of
from rmpcore.fuzzing.host_ops import HostGenerator
from rmpcore.fuzzing.rmp_ops import Generator
from rmpcore.maps import DIRECT_MAP_LIMIT, PAGE_OFFSETS, MachineMap, SegmentedRmp
from rmpcore.memory_image import ImageError, save_core, save_raw
from rmpcore.ops import OpCode, make_op, pack_ops

MAPS = Path(__file__).parents[1] / "examples/maps"
SAVE: dict[str, Callable[[Any, Path], None]] = {"raw": save_raw, "core": save_core}
CHANGES = (OpCode.change_page_attr_set, OpCode.change_page_attr_clear)
SIZES = {1: 12, 2: 21, 3: 30}
"""Address bits of a page of each level."""


# --- machines with a past ---


def real(name: str, **fields: Any) -> MachineMap:
    return dataclasses.replace(rmpcore.load_map(MAPS / f"{name}.json"), **fields)


MILAN = real("dell-r6515-epyc7513-256g-snp")
WIDE = build_map([(0, 3 * GIB), (4 * GIB, 12 * GIB)])
"""So wide that the ops leave some 1 GiB leaves alone."""
LA57_WIDE = dataclasses.replace(WIDE, levels=5, page_offset=PAGE_OFFSETS[5])
LA57_IMAGE = dataclasses.replace(SNP_IMAGE, levels=5, page_offset=PAGE_OFFSETS[5])
FOUR_LEVELS = {
    "small 4K": (SMALL_4K, "6.12"),
    "pti": (SMALL_PTI, "6.6"),
    "randomised": (SMALL_RANDOM, "7.3"),
    "pc": (PC, "6.1"),
    "wide": (WIDE, "6.12"),
    "wide 7.3": (WIDE, "7.3"),
    "hole 2M": (HOLE_2M, "6.15"),
    "image": (IMAGE, "6.12"),
    "image moved": (IMAGE_MOVED, "7.3"),
    "snp": (SNP_IMAGE, "6.12"),
    "snp hole": (SNP_HOLE, "6.12"),
    "c-bit": (SNP_CBIT, "6.12"),
    "256 GiB, snp": (MILAN, "6.12"),
    "512 GiB, snp": (real("amd-snp-512g-rmp-unaligned-end"), "6.9"),
}
FIVE_LEVELS = {
    "small": (SMALL_LA57, "6.12"),
    "wide": (LA57_WIDE, "7.3"),
    "image": (LA57_IMAGE, "6.12"),
    "256 GiB": (dataclasses.replace(MILAN, levels=5, page_offset=PAGE_OFFSETS[5]), "6.18"),
}


def table_pages(machine: NativeMachine) -> set[int]:
    """Frames of the tables that a state shows."""
    raw = machine.state().tables["raw"] & np.uint64(FRAME_MASK & ~machine.map.c_bit)
    return {machine.root >> 12, *(raw >> np.uint64(12)).tolist()}


class Bytes:
    """A machine's memory by physical address."""

    def __init__(self, machine: NativeMachine) -> None:
        self._ranges = machine.memory()

    def at(self, address: int, size: int = 8) -> Any:
        """The bytes themselves, or None where not all of them are memory."""
        for base, data in self._ranges:
            if base <= address and address + size <= base + len(data):
                return data[address - base : address - base + size]
        return None


def lived(map_: MachineMap, kernel: str, seed: int) -> NativeMachine:
    """A machine after many random ops: changes of the direct map, then a host with guests."""
    machine = NativeMachine(map_, kernel=kernel)
    ops = direct_map_ops(random.Random(seed), frames_of(map_), 300, collapses=0.01)
    # a change of the frame itself would map the page elsewhere
    ops = [op for op in ops if op.op not in CHANGES or not op.gpa & FRAME_MASK & ~map_.c_bit]
    if map_.rmp is not None:
        ops += HostGenerator(seed, map_).ops(300)
    machine.run(pack_ops(ops))
    return machine


# --- addresses, and what has to be found there ---


def lookup(machine: NativeMachine, frame: int) -> tuple[int, int]:
    """Level and raw value that the model finds for a frame in the direct map."""
    result = machine.apply(make_op("lookup", pfn=frame))
    return result.level, result.value


@dataclasses.dataclass(frozen=True)
class Probe:
    """An address, and what is there."""

    address: int
    level: int
    """Of the leaf; 0: there is none."""
    raw: int
    physical: int | None


def probes(machine: NativeMachine, rng: random.Random, count: int = 500) -> list[Probe]:
    """First and last bytes of leaves of both windows, their neighbours, edges of memory and what is behind them."""
    map_ = machine.map
    rows = machine.state().leaves.tolist()
    picked = rng.sample(rows, min(len(rows), count))
    # not-present leaves are few among the many
    picked += [row for row in rows if not row[3] & P][:count]
    picked += [row for row in rows if row[1] > 1][:200]
    high = {(level, offset): raw for window, level, offset, raw in rows if window == 1}
    limit = DIRECT_MAP_LIMIT[map_.levels]
    phys_base = map_.image.phys_base if map_.image is not None else 0
    direct: set[int] = set()
    kernel: set[int] = set()
    for window, level, offset, _ in picked:
        size = 1 << SIZES[level]
        spots = {offset, offset + 8, offset + size - 8, offset + size, offset - 8, offset + rng.randrange(size) & ~7}
        (kernel if window else direct).update(spots)
    for frame in frames_of(map_):
        direct |= {(frame << 12) + at for at in (0, 8, 0xFF8)}
    direct |= {rng.randrange(limit) & ~7 for _ in range(100)}
    kernel |= {rng.randrange(GIB) & ~7 for _ in range(100)}

    found = []
    for offset in sorted(direct):
        if 0 <= offset < limit:
            level, raw = lookup(machine, offset >> 12)
            address = map_.page_offset + offset
            found.append(Probe(address, level, raw, offset if raw & P else None))
    for offset in sorted(kernel):
        if 0 <= offset < GIB:
            near = [(level, high.get((level, offset >> SIZES[level] << SIZES[level]), 0)) for level in (1, 2)]
            level, raw = next((one for one in near if one[1]), (0, 0))
            found.append(Probe(HIGH_MAPPING + offset, level, raw, offset + phys_base if raw & P else None))
    return found


def mark(machine: NativeMachine, found: list[Probe]) -> int:
    """Write something of its own to each mapped address that is memory and no page table."""
    memory, tables, marked = Bytes(machine), table_pages(machine), 0
    for probe in found:
        if probe.physical is None or probe.physical >> 12 in tables:
            continue
        page = memory.at(probe.physical & ~0xFFF, 4096)
        # the high mapping's tables are in no state, but they are not empty; nor is what was marked before
        if page is not None and not (page.any() and not bytes(page[:8]).startswith(b"MARK")):
            page[:8] = np.frombuffer(b"MARK" + struct.pack("<I", probe.physical >> 12 & 0xFFFF_FFFF), np.uint8)
            page[-8:] = np.frombuffer(struct.pack("<Q", ~probe.physical & U64), np.uint8)
            marked += 1
    return marked


# --- volatility3 ---


class FiveLevels(intel.Intel32e):
    """volatility3 has no layer for five levels; its walk takes a list of levels."""

    _maxvirtaddr = 57
    _structure = [("page map layer 5", 9, False), *intel.Intel32e._structure]  # noqa: RUF012 - as in its base


class Encrypting(intel.Intel32e):
    """Bit 51 is the C-bit, and no address."""

    _maxphyaddr = 51


class Image:
    """volatility3's layers on an image."""

    def __init__(self, path: Path, kind: str) -> None:
        self.context = contexts.Context()
        self.context.config["file.location"] = path.resolve().as_uri()
        self._add(physical.FileLayer(self.context, "file", "file"))
        self.physical = "file"
        if kind == "core":
            self.context.config["elf.base_layer"] = "file"
            self._add(elf.Elf64Layer(self.context, "elf", "elf"))
            self.physical = "elf"

    def _add(self, layer: interfaces.layers.DataLayerInterface) -> None:
        self.context.add_layer(layer)

    def read(self, address: int, size: int) -> bytes:
        """Physical memory."""
        return bytes(self.context.layers[self.physical].read(address, size))

    def tables(self, kind: type[intel.Intel], root: int) -> intel.Intel:
        """The page tables at a root."""
        name = kind.__name__
        self.context.config[f"{name}.memory_layer"] = self.physical
        self.context.config[f"{name}.page_map_offset"] = root
        self._add(kind(self.context, name, name))
        layer = self.context.layers[name]
        assert isinstance(layer, intel.Intel)
        return layer


def walk(layer: intel.Intel, address: int) -> tuple[int | None, int]:
    """Where a walk ends: physical address and size of the page in bits; None: where it stopped."""
    try:
        found, size, _ = layer._translate(address)
    except exceptions.PagedInvalidAddressException as e:
        return None, int(e.invalid_bits)
    return found, size.bit_length() - 1


def compare_walks(layer: intel.Intel, found: list[Probe], memory: Bytes) -> Counter[str]:
    """Hold each walk, and the bytes at its end, against what is expected; what was seen."""
    seen: Counter[str] = Counter()
    for probe in found:
        where, bits = walk(layer, probe.address)
        assert where == probe.physical, (hex(probe.address), hex(probe.raw))
        if probe.raw:
            assert bits == SIZES[probe.level], (hex(probe.address), hex(probe.raw))
        seen[f"{probe.level} {'present' if probe.physical is not None else 'absent'}"] += 1
        data = memory.at(where) if where is not None else None
        if data is not None:
            assert layer.read(probe.address, 8) == data.tobytes(), hex(probe.address)
            seen["bytes"] += bool(data.any())
    return seen


def walked(tmp_path: Path, map_: MachineMap, kernel: str, kind: str, layer: type[intel.Intel]) -> Counter[str]:
    machine = lived(map_, kernel, seed=61)
    rng = random.Random(6)
    found = probes(machine, rng)
    assert mark(machine, found) > 50
    path = tmp_path / f"image.{kind}"
    SAVE[kind](machine, path)
    seen = compare_walks(Image(path, kind).tables(layer, machine.root), found, Bytes(machine))
    path.unlink()
    assert len(found) > 1000
    assert seen["bytes"] > 100
    return seen


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("name", FOUR_LEVELS)
def test_volatility_walks_the_tables(tmp_path: Path, name: str, kind: str) -> None:
    """direct-map §1, §3: each walk ends where the model's lookup does: frame, page size, or nothing; the bytes there
    are the machine's."""
    map_, kernel = FOUR_LEVELS[name]
    seen = walked(tmp_path, map_, kernel, kind, Encrypting if map_.c_bit else intel.Intel32e)
    assert seen["1 present"] and seen["1 absent"]
    if map_.large_pages != "4K":
        assert seen["2 present"]
    if map_.large_pages == "1G" and map_.memory[-1][1] > GIB:
        assert seen["3 present"]


@pytest.mark.parametrize("name", FIVE_LEVELS)
def test_volatility_walks_five_levels(tmp_path: Path, name: str) -> None:
    map_, kernel = FIVE_LEVELS[name]
    assert walked(tmp_path, map_, kernel, "core", FiveLevels)["1 present"]


def test_large_leaves_that_are_not_present(tmp_path: Path) -> None:
    """direct-map §4.3e: a leaf of 2 MiB, and one of 1 GiB, made not-present as a whole stops a walk at its level."""
    host = Host("native", HOLE)
    assert host.call("set_memory_np", pfn=0x40000, pages=0x40000) == 0
    assert host.call("set_memory_4k", pfn=0x80000, pages=1) == 0
    assert host.call("set_memory_np", pfn=0x80200, pages=0x200) == 0
    path = tmp_path / "np.raw"
    save_raw(host.machine, path)
    layer = Image(path, "raw").tables(intel.Intel32e, host.machine.root)  # type: ignore[attr-defined]
    ends = {frame: walk(layer, HOLE.page_offset + (frame << 12)) for frame in (0x40000, 0x7FFFF, 0x80200, 0x803FF)}
    assert ends == {0x40000: (None, 30), 0x7FFFF: (None, 30), 0x80200: (None, 21), 0x803FF: (None, 21)}
    for frame, bits in ((0x3FFFF, 30), (0x80000, 12), (0x80400, 21)):
        assert walk(layer, HOLE.page_offset + (frame << 12)) == (frame << 12, bits)


def test_inverted_frames_are_read_as_the_kernel_reads_them(tmp_path: Path) -> None:
    """direct-map §1: a not-present entry holds its frame inverted.  volatility3's Linux layer reads entries with bit 8
    as PROTNONE pages and turns their frames back; its plain layer finds nothing there, as a CPU would.  No call of the
    kernel leaves bit 8 there ("losing P"), so half of the entries get it here."""
    first = Host("native", SMALL_4K)
    frames = range(0x400, 0x500)
    assert first.call("set_memory_np", pfn=0x400, pages=0x100) == 0
    state = first.state()
    rows = {(0, 1, frame << 12): leaves(state)[1, frame << 12] | G for frame in frames[1::2]}
    marked = continued(first, with_leaves(state, rows)).machine
    assert isinstance(marked, NativeMachine)
    save_core(marked, tmp_path / "np.core")
    image = Image(tmp_path / "np.core", "core")
    linux = image.tables(intel.LinuxIntel32e, marked.root)
    plain = image.tables(intel.Intel32e, marked.root)
    for frame in frames:
        address = SMALL_4K.page_offset + (frame << 12)
        assert walk(plain, address) == (None, 12)
        assert walk(linux, address) == ((frame << 12, 12) if frame & 1 else (None, 12))


# --- drgn ---


def program_headers(path: Path) -> list[tuple[int, ...]]:
    """type, flags, offset, vaddr, paddr, filesz, memsz, align of each, as the ELF specification has them."""
    data = path.open("rb").read(1 << 16)
    at, size, count = (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54))
    assert size == 56
    return [struct.unpack_from("<IIQQQQQQ", data, at + size * number) for number in range(count)]


def without_addresses(path: Path) -> None:
    """Take the virtual addresses out of a core, so that a reader has only the page tables to find anything."""
    with path.open("r+b") as file:
        for number in range(len(program_headers(path))):
            file.seek(64 + 56 * number + 16)
            file.write(b"\xff" * 8)


DRGN = {name: FOUR_LEVELS[name] for name in ("wide", "wide 7.3", "image moved", "snp", "256 GiB, snp")} | {
    f"5 levels, {name}": case for name, case in FIVE_LEVELS.items()
}


@pytest.mark.parametrize("name", DRGN)
def test_drgn_walks_the_tables(tmp_path: Path, name: str) -> None:
    """drgn finds the root, the number of levels and the tables by itself, in an image with 4 and with 5 levels; it
    reads the machine's bytes at each mapped address, and nothing where nothing is mapped."""
    drgn = pytest.importorskip("drgn", reason="drgn is not installed")
    map_, kernel = DRGN[name]
    machine = lived(map_, kernel, seed=62)
    found = probes(machine, random.Random(7))
    assert mark(machine, found) > 50
    path = tmp_path / "drgn.core"
    save_core(machine, path)
    without_addresses(path)
    program = drgn.Program()
    program.set_core_dump(path)
    memory = Bytes(machine)
    seen: Counter[str] = Counter()
    for probe in found:
        data = memory.at(probe.physical) if probe.physical is not None else None
        if probe.physical is None:
            with pytest.raises(drgn.FaultError, match="not mapped"):
                program.read(probe.address, 8)
            seen["absent"] += 1
        elif data is not None:
            assert program.read(probe.address, 8) == data.tobytes(), hex(probe.address)
            assert program.read(probe.physical, 8, True) == data.tobytes()
            seen["marked" if data.any() else "zero"] += 1
    assert seen["marked"] > 100 and seen["absent"] > 100, seen


def test_drgn_reads_the_direct_map_by_the_addresses_of_the_segments(tmp_path: Path) -> None:
    """As in a kernel's own dump, RAM is found by its address in the direct map even where no page is present; an RMP
    has no such address."""
    drgn = pytest.importorskip("drgn", reason="drgn is not installed")
    host = Host("native", SNP)
    memory = Bytes(host.machine)  # type: ignore[arg-type]
    memory.at(0x610000)[:] = np.frombuffer(b"in place", np.uint8)
    assert host.call("set_memory_np", pfn=0x610, pages=1) == 0
    save_core(host.machine, tmp_path / "snp.core")
    program = drgn.Program()
    program.set_core_dump(tmp_path / "snp.core")
    assert program.read(SNP.page_offset + 0x610000, 8) == b"in place"
    assert SNP.rmp is not None
    for address in (0, SNP.rmp[0], SNP.page_offset + SNP.rmp[0]):
        with pytest.raises(drgn.FaultError, match="not mapped"):
            program.read(address, 8)


# --- the files themselves ---


def chequered(map_: MachineMap, **options: Any) -> NativeMachine:
    """A machine with bytes at the edges of each range, and here and there between."""
    machine = NativeMachine(map_, **options)
    rng = random.Random(3)
    for base, data in machine.memory():
        # an RMP and the tables are left alone
        if any(start == base for start, _ in map_.memory):
            tables = table_pages(machine)
            for page in {0, len(data) // 4096 - 1, *(rng.randrange(len(data) // 4096) for _ in range(20))}:
                if (base >> 12) + page not in tables:
                    data[page * 4096 : page * 4096 + 4096] = np.frombuffer(rng.randbytes(4096), np.uint8)
    return machine


FILES = {"pc": PC, "snp": SNP, "4K": SMALL_4K, "apart": build_map([(0x3000, 0x5000), (MIB, MIB), (9 * MIB, 8 * MIB)])}


@pytest.mark.parametrize("name", FILES)
def test_raw_image_is_physical_memory(tmp_path: Path, name: str) -> None:
    """Byte n of the file is byte n of physical memory; what is no memory is zero."""
    machine = chequered(FILES[name])
    save_raw(machine, tmp_path / "m.raw")
    image = np.memmap(tmp_path / "m.raw", np.uint8, "r")
    end = 0
    for base, data in machine.memory():
        assert not image[end:base].any()
        assert (image[base : base + len(data)] == data).all()
        end = base + len(data)
    assert len(image) == end


@pytest.mark.parametrize("name", FILES)
def test_core_has_a_segment_for_each_range(tmp_path: Path, name: str) -> None:
    """A PT_LOAD for each range, with its physical address, and for RAM the one in the direct map."""
    map_ = FILES[name]
    machine = chequered(map_)
    save_core(machine, tmp_path / "m.core")
    note, *loads = program_headers(tmp_path / "m.core")
    assert note[0] == 4
    image = np.memmap(tmp_path / "m.core", np.uint8, "r")
    assert len(loads) == len(machine.memory())
    for load, (base, data) in zip(loads, machine.memory(), strict=True):
        ram = any(start == base for start, _ in map_.memory)
        address = map_.page_offset + base if ram else U64
        assert load[0] == 1
        assert load[3:] == (address, base, len(data), len(data), 4096)
        assert load[2] % 4096 == 0
        assert (image[load[2] : load[2] + len(data)] == data).all()
    assert loads[-1][2] + loads[-1][5] == len(image)


def test_core_says_where_the_tables_are(tmp_path: Path) -> None:
    """The note that dumps of Linux have, with what is needed to walk: readers subtract the start of the kernel's
    mapping from swapper_pg_dir and add phys_base."""
    for map_ in (SMALL_LA57, IMAGE_MOVED, WIDE, SNP_CBIT):
        machine = NativeMachine(map_)
        save_core(machine, tmp_path / "m.core")
        _, _, offset, _, _, size, _, _ = program_headers(tmp_path / "m.core")[0]
        data = (tmp_path / "m.core").open("rb").read(offset + size)[offset:]
        assert struct.unpack_from("<III", data) == (len("VMCOREINFO") + 1, len(data.rstrip(b"\0")) - 24, 0)
        assert data[12:24] == b"VMCOREINFO\0\0"
        lines = data[24:].rstrip(b"\0").decode().splitlines()
        values = dict(line.split("=") for line in lines)
        phys_base = int(values["NUMBER(phys_base)"])
        assert phys_base == (map_.image.phys_base if map_.image else 0)
        root = int(values["SYMBOL(swapper_pg_dir)"], 16) - HIGH_MAPPING + phys_base & U64
        assert root == machine.root == machine.state().root
        assert values["NUMBER(pgtable_l5_enabled)"] == str(map_.levels - 4)
        assert values["NUMBER(sme_mask)"] == str(map_.c_bit)
        assert (values["OSRELEASE"], values["PAGESIZE"]) == ("6.12", "4096")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are not installed")
def test_readelf_reads_the_core(tmp_path: Path) -> None:
    save_core(NativeMachine(SNP), tmp_path / "snp.core")
    done = subprocess.run(
        ["readelf", "--headers", "--notes", "--wide", tmp_path / "snp.core"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert done.stderr == ""
    assert re.search(r"Type: +CORE", done.stdout)
    assert re.search(r"Machine: +Advanced Micro Devices X86-64", done.stdout)
    assert re.search(r"VMCOREINFO +0x", done.stdout)
    loads = [[int(word, 16) for word in line.split()[1:6]] for line in done.stdout.splitlines() if " LOAD " in line]
    assert [load[1:] for load in loads] == [
        [SNP.page_offset, 0, 64 * MIB, 64 * MIB],
        [U64, 64 * MIB, MIB, MIB],
    ]


# --- the RMP in an image ---


def entry_at(map_: MachineMap, pfn: int) -> int | None:
    """rmp §1.6, §1.7: where the entry of a frame is."""
    if map_.rmp is not None:
        at = map_.rmp[0] + 0x4000 + 16 * pfn
        return at if at + 16 <= map_.rmp[1] + 1 else None
    assert map_.segmented is not None
    index, offset = divmod(pfn << 12, 1 << map_.segmented.shift)
    for number, base, covered in map_.segmented.segments():
        if number == index and offset < covered:
            return base + 16 * (offset >> 12)
    return None


SEGMENTED = build_map(
    [(0, 64 * MIB), (GIB, 64 * MIB)],
    e820=[(0, 64 * MIB, 1), (64 * MIB, 16 * MIB, 2), (GIB, 64 * MIB, 1)],
    segmented=SegmentedRmp(64 * MIB, 1 | 30 << 8, (69 * MIB | 1, 65 * MIB | 1)),
)
"""Two segments of 1 GiB, whose tables lie the other way round."""


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("form", ["contiguous", "segmented"])
def test_rmp_in_the_image(tmp_path: Path, form: str, kind: str) -> None:
    """rmp §1.6, §1.7: each entry is where the table has it; the bookkeeping counts lie before it; a segmented one has
    its segment table there."""
    map_ = SNP if form == "contiguous" else SEGMENTED
    switches = {} if form == "contiguous" else {"segment_min": 30}
    options = {"kernel": "6.12"} if form == "contiguous" else {"kernel": "6.14", "hardware": "turin"}
    machine = NativeMachine(map_, switches=switches, **options)  # type: ignore[arg-type]
    machine.run(pack_ops(Generator(4, map_, {}).ops(3000)))
    for pfn in range(0x40000, 0x40010) if form == "segmented" else ():
        machine.apply(make_op("RMPUPDATE", pa=pfn << 12, gpa=0, assigned=1, size=0, asid=9))
    path = tmp_path / f"rmp.{kind}"
    SAVE[kind](machine, path)
    image = Image(path, kind)
    state = machine.state()
    assert len(state.rmp) > 20
    frames = set(state.rmp["pfn"].tolist()) | set(range(0x3F0, 0xA10)) | {0, 0x4000, SEGMENTED.max_pfn, 0xFBFF, 0xFC00}
    covered = 0
    for pfn in frames:
        at = entry_at(map_, pfn)
        if at is None:
            with pytest.raises(IndexError):
                machine.read_rmp(pfn)
        else:
            assert struct.unpack("<QQ", image.read(at, 16)) == machine.read_rmp(pfn), hex(pfn)
            covered += 1
    assert covered > 1500
    base = map_.rmp[0] if map_.rmp is not None else map_.segmented.base if map_.segmented is not None else 0
    counts = np.frombuffer(image.read(base, 0x4000), "<u8")
    assert {asid: int(counts[asid]) for asid in np.flatnonzero(counts)} == dict(state.bookkeeping)
    assert state.bookkeeping
    if map_.segmented is not None:
        table = np.frombuffer(image.read(base + 0x4000, 0x1000), "<u8")
        assert tuple(table[:2].tolist()) == map_.segmented.rst
        assert not table[2:].any()


# --- what it costs ---


def disk(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("kind", SAVE)
def test_zeros_take_no_room(tmp_path: Path, kind: str) -> None:
    """A page that was touched, but is zero, is a hole like one that was not: 1 MiB of 64 stays, and the tables."""
    machine = NativeMachine(SMALL_4K)
    data = machine.memory()[0].bytes
    data[: 32 * MIB] = 1
    data[: 31 * MIB] = 0
    save = SAVE[kind]
    save(machine, tmp_path / "m")
    assert (tmp_path / "m").stat().st_size >= 64 * MIB
    assert MIB <= disk(tmp_path / "m") < 2 * MIB


@pytest.mark.plain_build
def test_a_tebibyte_is_small(tmp_path: Path) -> None:
    """Only what was touched is kept: 1 TiB in less than 1 MiB."""
    machine = NativeMachine(real("dell-r7425-epyc7601-1t"))
    save_core(machine, tmp_path / "1t.core")
    assert (tmp_path / "1t.core").stat().st_size > 1000 * GIB
    assert disk(tmp_path / "1t.core") < MIB


@pytest.mark.long
@pytest.mark.plain_build
@pytest.mark.parametrize("kind", SAVE)
def test_6_tib_are_saved_and_walked(tmp_path: Path, kind: str) -> None:
    machine = lived(real("synthetic-6t"), "6.12", seed=63)
    found = probes(machine, random.Random(8))
    path = tmp_path / f"6t.{kind}"
    SAVE[kind](machine, path)
    assert path.stat().st_size > 5 << 40
    assert disk(path) < 64 * MIB
    seen = compare_walks(Image(path, kind).tables(intel.Intel32e, machine.root), found, Bytes(machine))
    assert seen["3 present"]


# --- what must fail ---


def only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("save", SAVE.values(), ids=list(SAVE))
def test_only_the_native_machine_has_bytes(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    with pytest.raises(ImageError, match="the oracle machine has no bytes: an image needs the native one"):
        save(rmpcore.Machine(SMALL, backend="oracle"), tmp_path / "m")
    only(tmp_path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [32 * MIB, 63 * MIB], ids=["in the tables", "at its end"])
@pytest.mark.parametrize("save", SAVE.values(), ids=list(SAVE))
def test_a_failure_leaves_the_old_file(tmp_path: Path, save: Callable[[Any, Path], None], size: int) -> None:
    """A write that fails: one error that names the file; what was there before is as it was, and nothing beside it."""
    machine = NativeMachine(SMALL)
    machine.memory()[0].bytes[48 * MIB] = 1
    (tmp_path / "m").write_text("old", encoding="utf-8")
    with largest_file(size), pytest.raises(ImageError, match=r"/m: File too large$"):
        save(machine, tmp_path / "m")
    assert (tmp_path / "m").read_text(encoding="utf-8") == "old"
    only(tmp_path, "m")
    save(machine, tmp_path / "m")
    assert (tmp_path / "m").stat().st_size >= 64 * MIB
    only(tmp_path, "m")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    machine = NativeMachine(SMALL)
    os.mkfifo(tmp_path / "pipe")
    for place, reason in (
        (tmp_path / "nowhere/m.raw", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "is not a regular file"),
        (Path("/dev/full"), "is not a regular file"),
        (tmp_path / "a\0b", "embedded null byte"),
    ):
        with pytest.raises(ImageError) as caught:
            save_raw(machine, place)
        assert str(caught.value) == f"{place}: {reason}"
    only(tmp_path, "pipe")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to("real")
    save_raw(NativeMachine(SMALL), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_size == 64 * MIB


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 64], ids=["missing", "empty", "short"])
def test_without_a_page_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    """Where the system does not tell which pages were touched, that is said."""
    pagemap = tmp_path / "pagemap"
    if content is not None:
        pagemap.write_bytes(content)
    monkeypatch.setattr(memory_image, "_PAGEMAP", str(pagemap))
    reason = "No such file or directory" if content is None else "ends early"
    with pytest.raises(ImageError, match=f"^cannot tell which pages were touched: {pagemap}:? {reason}$"):
        save_raw(NativeMachine(SMALL), tmp_path / "m.raw")
    only(tmp_path, *(["pagemap"] if content is not None else []))


# --- the command line ---

TRACE = "rmp_make_private pfn=0x1005 gpa=0x1000 level=4K asid=5\nset_memory_ro pfn=0x2000 pages=3\n"
SMALL_MAP = {
    "format": "rmpcore-machine-map",
    "version": 1,
    "name": "small",
    "e820": [["0x0", "0x9f000", "usable"], ["0x100000", "0x3f00000", "usable"], ["0x4000000", "0x200000", "reserved"]],
    "rmp": {"base": "0x4000000", "end": "0x40fffff"},
}


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a trace on a small machine in a folder of its own; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Path("small.json").write_text(json.dumps(SMALL_MAP), encoding="utf-8")
    Path("t.trace").write_text(TRACE, encoding="utf-8")

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rmpcore", "run", "t.trace", "--map", "small.json", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["alone", "checked"])
@pytest.mark.parametrize(("name", "kind"), [("m.raw", "raw"), ("m.core", "core"), ("m", "core"), ("raw", "core")])
def test_command_line(run: Callable[..., tuple[int, str, str]], name: str, kind: str, check: tuple[str, ...]) -> None:
    """The suffix says which form; the summary names the root, from which a walk finds what the trace did."""
    status, out, err = run("--image", name, "--json", *check)
    assert (status, err) == (0, "")
    image = json.loads(out)["image"]
    assert image["file"] == name
    opened = Image(Path(name), kind)
    layer = opened.tables(intel.Intel32e, image["root"])
    for frame, bits in ((0x1005, 12), (0x11FF, 12), (0x1200, 21), (0x2002, 12)):
        assert walk(layer, PAGE_OFFSETS[4] + (frame << 12)) == (frame << 12, bits)
    assert opened.read(0x4000000 + 0x4000 + 16 * 0x1005, 1)[0] & 1 == 1
    only(Path(), name, "small.json", "t.trace")


def test_command_line_says_where_the_root_is(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = run("--image", "m.raw")
    assert status == 0
    (root,) = re.findall(r"^image +m\.raw, root of the page tables \(CR3\) (0x[0-9a-f]+)$", out, re.MULTILINE)
    layer = Image(Path("m.raw"), "raw").tables(intel.Intel32e, int(root, 16))
    assert walk(layer, PAGE_OFFSETS[4] + 0x1005000) == (0x1005000, 12)
    assert json.loads(run("--json")[1])["image"] is None


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--image", "nowhere/m.raw"), "nowhere/m.raw: No such file or directory"),
        (("--image", "."), ".: Is a directory"),
        (("--image", "/dev/full"), "/dev/full: No space left on device"),
        (("--image", "m", "--backend", "oracle"), "--image needs the native machine: the oracle has no bytes"),
        (("--image", "m", "--dump", "m"), "m: File exists"),
        (("--image", "m", "--switch", "subpage_count=9"), "switch subpage_count: 9 is not a value that it takes"),
    ],
)
def test_command_line_refuses(run: Callable[..., tuple[int, str, str]], args: tuple[str, ...], reason: str) -> None:
    """One line, exit status 2, and nothing written."""
    status, out, err = run(*args)
    assert (status, out, err) == (2, "", f"rmpcore: {reason}\n")
    only(Path(), "small.json", "t.trace")


def test_command_line_with_a_full_disk(run: Callable[..., tuple[int, str, str]]) -> None:
    with largest_file(MIB):
        status, _, err = run("--image", "m.core")
    assert (status, err) == (2, "rmpcore: m.core: File too large\n")
    only(Path(), "small.json", "t.trace")
