"""The core beside what a user would take instead, in the same rounds: a naive C implementation (bench/naive.c), the
oracle, Unicorn's page walk, volatility3's, a kernel in QEMU under a debugger.

The time measured is the core's, the limit is the other's, so a ratio below 1 says that the core is faster.  Each test
first has both do the same, and compares what came of it.

The kernel is the one slow test: ``pytest -m kernel bench``.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cffi import FFI
from conftest import against, declarations, memory_map

import rmpcore
from rmpcore.conform import conform
from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.guest import Layout
from rmpcore.kernel.image import Image, find_image
from rmpcore.kernel.initramfs import busybox
from rmpcore.kernel.programs import program
from rmpcore.kernel.record import recording_text
from rmpcore.kernel.session import Recorded, Session
from rmpcore.memory_image import save_raw

BENCH = Path(__file__).parent
GIB = 1 << 30
REGION = 512
ADDRESS = 0x000F_FFFF_FFFF_F000
VALIDATED = 1 << 62


def same_ops(name: str, rows: list[dict[str, int]]) -> npt.NDArray[np.void]:
    return rmpcore.pack_ops(rmpcore.make_op(name, **row) for row in rows)


# --- naive C ---


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """bench/naive.c, optimised as the core is, and its calls inlined as in a program.  (FFI, library)"""
    library = tmp_path_factory.mktemp("naive") / "naive.so"
    options = ["-O3", "-std=c11", "-fPIC", "-fno-semantic-interposition", "-shared"]
    subprocess.run(["cc", *options, BENCH / "naive.c", "-o", library], check=True)
    ffi = FFI()
    ffi.cdef(declarations("naive.h"))
    return ffi, ffi.dlopen(str(library))


def random_instructions(rng: np.random.Generator, count: int) -> Iterator[tuple[str, dict[str, int]]]:
    """RMPUPDATE and PSMASH of few pages in four regions, so that they meet; good and bad input."""
    for _ in range(count):
        pfn = int(rng.integers(4)) * REGION + int(rng.choice([0, 0, 0, 1, 2, 511, int(rng.integers(512))]))
        if rng.random() < 0.01:
            pfn = 1 << 24
        if rng.random() < 0.15:
            yield "PSMASH", {"pa": pfn << 12}
            continue
        assigned, size = int(rng.random() < 0.6), int(rng.random() < 0.35)
        asid = int(rng.choice([0, 1, 2, 0x3FF, 0x400])) if assigned or rng.random() < 0.1 else 0
        gpa = int(rng.choice([0, 0x20_0000, 0x7_FFFF_FFFF_F000]))
        immutable = int(rng.random() < 0.04)
        yield (
            "RMPUPDATE",
            {"pa": pfn << 12, "gpa": gpa, "assigned": assigned, "size": size, "immutable": immutable, "asid": asid},
        )


def test_naive_is_right_about_the_rmp(naive: Any) -> None:
    """rmp §2.2, §2.3: the same codes, entries and counters.  In between guests accept pages, so that there is something
    to keep or to reset."""
    ffi, lib = naive
    rng = np.random.default_rng(9)
    seen = set()
    for _ in range(100):
        machine = rmpcore.Machine(memory_map(4 * REGION << 12), hardware="milan")
        other = ffi.gc(lib.naive_open(4 * REGION, 1), lib.naive_close)
        for name, args in random_instructions(rng, 200):
            code = machine.apply(rmpcore.make_op(name, **args)).ret
            assert getattr(lib, f"naive_{name.lower()}")(other, *args.values()) == code, (name, args)
            seen.add((name, code))
            if name == "RMPUPDATE" and not code and args["asid"] and rng.random() < 0.5:
                pfn = args["pa"] >> 12
                lo, _ = machine.read_rmp(pfn)
                machine.write_rmp(pfn, lo | VALIDATED, 0x0501)
                other.rmp[pfn].lo, other.rmp[pfn].hi = lo | VALIDATED, 0x0501
        entries = [(other.rmp[pfn].lo, other.rmp[pfn].hi) for pfn in range(4 * REGION)]
        assert entries == [machine.read_rmp(pfn) for pfn in range(4 * REGION)]
        counted = tuple((asid, other.assigned[asid]) for asid in range(1024) if other.assigned[asid])
        assert counted == machine.state().bookkeeping
    assert seen == {*(("RMPUPDATE", code) for code in (0, 1, 2, 4)), *(("PSMASH", code) for code in (0, 1, 7))}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_naive_is_right_about_the_direct_map(naive: Any, level: int) -> None:
    """direct-map §3, §4: the same leaves, rights above them and numbers of leaves, as booted and after splits."""
    ffi, lib = naive
    size = 2 * GIB if level == 3 else GIB >> 4
    machine = rmpcore.Machine(memory_map(size, ("4K", "2M", "1G")[level - 1]))
    other = ffi.gc(lib.naive_open(size >> 12, 1000), lib.naive_close)
    lib.naive_boot(other, level)
    rng = np.random.default_rng(9)
    for splits in (0, 12):
        for pfn, pages in zip(rng.integers(0, (size >> 12) - 700, splits), rng.integers(1, 700, splits), strict=True):
            call = rmpcore.make_op("set_memory_4k", pfn=int(pfn), pages=int(pages))
            assert lib.naive_set_memory_4k(other, pfn, pages) == machine.apply(call).ret == 0
        for pfn in rng.integers(0, size >> 12, 2000).tolist():
            found, leaf = machine.apply(rmpcore.make_op("lookup", pfn=pfn)), lib.naive_lookup(other, pfn)
            above = rmpcore.ResultFlag(found.flags)
            assert (leaf.level, leaf.entry[0]) == (found.level, found.value)
            assert (leaf.rw, leaf.nx) == (rmpcore.ResultFlag.RW in above, rmpcore.ResultFlag.NX in above)
        census = machine.census()
        assert list(other.count)[1:] == [census[name] for name in ("4k", "2m", "1g")]
    assert lib.naive_set_memory_4k(other, 0, size >> 12) == (0 if level < 3 else -12)  # too few pages for tables


@pytest.mark.parametrize(
    "name", ["psmash_cold", "psmash_warm", "rmpupdate_4k_64g", "split_2m_cold", "lookup_4k_at_once"]
)
def test_naive(benchmark: Any, core: Any, naive: Any, name: str) -> None:
    """Rows of bench/rows.c beside the same loop over the naive implementation, which has a malloc'd table, no atomics
    and no prefetch.  The core keeps out other threads and firmware, looks for pages in use, and asks the system for
    huge pages; GLIBC_TUNABLES=glibc.malloc.hugetlb=1 does that for malloc."""
    ffi, lib = naive
    row = core.rows[name]
    frames = row.gib * GIB >> 12
    machine, other = core.lib.bench_open(row, False), lib.naive_open(frames, frames // REGION + 100)
    if machine == core.ffi.NULL or other == ffi.NULL:
        pytest.skip("this machine has not enough memory for both")
    drawn = np.random.default_rng(9).integers(0, frames, 1 << 19, np.uint64)
    frame_list, total = ffi.from_buffer("uint64_t[]", drawn), ffi.new("uint64_t *")
    regions = row.argument

    def prepare() -> None:
        core.lib.bench_prepare(machine)
        if name.startswith("psmash"):
            lib.naive_prepare_psmash(other, regions)
        elif name.startswith("split"):
            lib.naive_prepare_2m_leaves(other, regions)

    def loop() -> int:
        if name.startswith("psmash"):
            return int(lib.naive_run_psmash(other, regions))
        if name.startswith("rmpupdate"):
            return int(lib.naive_run_rmpupdate_4k(other, frame_list, len(drawn)))
        if name.startswith("split"):
            return int(lib.naive_split_2m_leaves(other, regions))
        return int(lib.naive_run_lookup(other, frame_list, len(drawn), total))

    def run() -> None:
        assert core.lib.bench_run(machine) == items

    def limit() -> None:
        assert loop() == items

    try:
        if name.startswith("lookup"):
            lib.naive_boot(other, 1)
        prepare()
        items = core.lib.bench_run(machine)
        assert items
        benchmark.group = "alternatives"
        against(benchmark, run, limit, beside="naive C", items=items, rounds=9, prepare=prepare)
    finally:
        core.lib.bench_close(machine)
        lib.naive_close(other)


# --- the oracle ---


PAGES = np.random.default_rng(9).integers(0, 4 * GIB >> 12, 1000).tolist()
REGIONS = range(0, 50 * REGION, REGION)
TO_GUEST = {"assigned": 1, "asid": 5}
TO_GUESTS = [{"pa": pfn << 12, "gpa": pfn << 12, "size": 0, **TO_GUEST} for pfn in PAGES]
TO_HOST = [{"pa": pfn << 12, "gpa": 0, "size": 0, "assigned": 0, "asid": 0} for pfn in PAGES]
ORACLE: dict[str, tuple[npt.NDArray[np.void], npt.NDArray[np.void]]] = {
    "PSMASH": (
        same_ops("RMPUPDATE", [{"pa": pfn << 12, "gpa": 0, "size": 1, **TO_GUEST} for pfn in REGIONS]),
        same_ops("PSMASH", [{"pa": pfn << 12} for pfn in REGIONS]),
    ),
    "RMPUPDATE": (
        np.concatenate([same_ops("RMPUPDATE", TO_GUESTS), same_ops("RMPUPDATE", TO_HOST)]),
        same_ops("RMPUPDATE", TO_GUESTS),
    ),
    "set_memory_4k": (
        same_ops("lookup", []),
        same_ops("set_memory_4k", [{"pfn": pfn + 7, "pages": 1} for pfn in REGIONS]),
    ),
    "lookup": (same_ops("lookup", []), same_ops("lookup", [{"pfn": pfn} for pfn in PAGES])),
}
"""Name: ops that come before, ops that are measured."""


@pytest.mark.parametrize("name", ORACLE)
def test_oracle(benchmark: Any, name: str) -> None:
    """The same ops in one call of run() on both backends: 4 GiB of 2 MiB leaves.  The entries have been touched before,
    the pages for new tables have not."""
    before, ops = ORACLE[name]
    machines: dict[str, rmpcore.MachineLike] = {}

    def prepare() -> None:
        for backend in rmpcore.BACKENDS:
            machines[backend] = rmpcore.Machine(memory_map(4 * GIB, "2M"), backend=backend)
            machines[backend].run(before)

    prepare()
    native, oracle = (machines[backend].run(ops) for backend in ("native", "oracle"))
    assert np.array_equal(native, oracle) and not native["ret"].any()
    assert machines["native"].state() == machines["oracle"].state()
    benchmark.group = "alternatives"
    against(
        benchmark,
        lambda: machines["native"].run(ops),
        lambda: machines["oracle"].run(ops),
        beside="oracle",
        items=len(ops),
        rounds=5,
        prepare=prepare,
    )


# --- other walkers of the same tables ---


def lookups(machine: rmpcore.MachineLike, frames: list[int]) -> npt.NDArray[np.void]:
    """The ops, after a look at what they give: in a direct map of 4 KiB leaves, the frame itself."""
    ops = same_ops("lookup", [{"pfn": pfn} for pfn in frames])
    results = machine.run(ops)
    assert (results["level"] == 1).all() and (results["value"] & ADDRESS == np.array(frames) << 12).all()
    return ops


LOADS = 1 << 15
CODE, LIST, DATA = 0x100, 0x200, 0x400
"""Frames: of the loop, of its list of addresses, and the first of those that are loaded from."""
LOOP = bytes.fromhex(
    "488b06"  # mov rax, [rsi]
    "0fb600"  # movzx eax, byte [rax]
    "4801c2"  # add rdx, rax
    "4883c608"  # add rsi, 8
    "48ffc9"  # dec rcx
    "75ee"  # jnz -18
    "f4"  # hlt
)


@pytest.mark.parametrize("pages", ["distinct", "one"])
def test_unicorn(benchmark: Any, pages: str) -> None:
    """Unicorn's own MMU on the machine's tables (512 MiB of 4 KiB leaves), beside lookups in bulk of the same frames.

    distinct: a load of one byte from each of 32768 pages in random order, after a flush: each page is met once, so none
              is in Unicorn's TLB, however large that is.  A load's time contains the walk of four levels, the filling
              of the TLB, the load itself with its misses in the host's caches, a load of its address from a list (one
              in 512 misses in the TLB), and four more instructions
    one:      the same loop with all loads from one page: what of that time is not the walk

    A lookup's time contains reading the op and writing the result."""
    pytest.importorskip("unicorn", reason="the package unicorn is not installed")
    emulation = importlib.import_module("rmpcore.emu.unicorn")
    x86 = emulation.x86
    machine = rmpcore.Machine(memory_map(GIB // 2, "4K"))
    machine.apply(rmpcore.make_op("set_memory_x", pfn=CODE, pages=1))
    memory = machine.memory()[0].bytes  # type: ignore[attr-defined]
    rng = np.random.default_rng(9)
    frames = DATA + rng.permutation((GIB // 2 >> 12) - 2 * DATA)[:LOADS]  # the tables are at the top
    if pages == "one":
        frames[:] = DATA
    base = machine.map.page_offset
    memory[frames << 12] = rng.integers(0, 256, LOADS, np.uint8)
    memory[CODE << 12 :][: len(LOOP)] = np.frombuffer(LOOP, np.uint8)
    addresses = np.uint64(base) + (frames.astype(np.uint64) << np.uint64(12))
    memory[LIST << 12 :][: 8 * LOADS] = addresses.view(np.uint8)
    expected = int(memory[frames << 12].sum(dtype=np.uint64))
    emulator = emulation.Emulator(machine, walker="unicorn", deliver=False)

    def load_all() -> None:
        for name, value in (("RSI", base + (LIST << 12)), ("RCX", LOADS), ("RDX", 0)):
            emulator.uc.reg_write(getattr(x86, f"UC_X86_REG_{name}"), value)
        assert emulator.run(base + (CODE << 12)) is None
        assert emulator.uc.reg_read(x86.UC_X86_REG_RDX) == expected

    ops = lookups(machine, frames.tolist())
    benchmark.group = "alternatives"
    against(
        benchmark,
        lambda: machine.run(ops),
        load_all,
        beside=f"Unicorn, {pages} page{'s' if pages == 'distinct' else ''}",
        items=LOADS,
        prepare=emulator.flush,
    )


def test_volatility(benchmark: Any, tmp_path: Path) -> None:
    """volatility3's translate() on a memory image (256 MiB of 4 KiB leaves), one call an address as its plugins do,
    beside lookups in bulk.  It keeps tables that it has read, and after the first round has all of them."""
    pytest.importorskip("volatility3", reason="the package volatility3 is not installed")
    contexts = importlib.import_module("volatility3.framework.contexts")
    layers = importlib.import_module("volatility3.framework.layers.physical")
    intel = importlib.import_module("volatility3.framework.layers.intel")
    machine = rmpcore.Machine(memory_map(GIB // 4, "4K"))
    save_raw(machine, tmp_path / "raw")
    context = contexts.Context()
    context.config["file.location"] = (tmp_path / "raw").as_uri()
    context.add_layer(layers.FileLayer(context, "file", "file"))
    context.config["tables.memory_layer"] = "file"
    context.config["tables.page_map_offset"] = machine.root  # type: ignore[attr-defined]
    layer = intel.Intel32e(context, "tables", "tables")
    frames = np.random.default_rng(9).integers(0, GIB // 4 >> 12, 2000).tolist()
    addresses = [machine.map.page_offset + (pfn << 12) for pfn in frames]

    def translate_all() -> list[tuple[int, str]]:
        return [layer.translate(address) for address in addresses]

    assert translate_all() == [(pfn << 12, "file") for pfn in frames]
    ops = lookups(machine, frames)
    benchmark.group = "alternatives"
    against(benchmark, lambda: machine.run(ops), translate_all, beside="volatility3", items=len(ops))


# --- a kernel ---


def kernel_image() -> Image:
    """Debian's 6.12; skips where it cannot be had or be run."""
    try:
        for name in ("qemu-system-x86_64", "gdb", "setpriv"):
            program(name)
        busybox()
        return find_image("6.12")
    except KernelError as e:
        pytest.skip(str(e))


@pytest.mark.kernel
def test_kernel(benchmark: Any, tmp_path: Path) -> None:
    """set_memory_4k() of one page, which splits a 2 MiB leaf each time, called in a kernel in QEMU through the debugger
    (docs/kernel.md §6), beside the native machine that goes on from the same state.  20 calls a round.

    A call's time over there contains gdb's writes of the return address and the registers, the call in TCG with its
    flushes, the stop at the breakpoint, and a read of the kernel's counters.  All that the kernel wrote is held against
    the model afterwards."""
    with Session(kernel_image(), Layout(memory="2G", cmdline="nogbpages")) as session:
        session.begin()
        machine = rmpcore.Machine(session.map, kernel=session.image.release, state=session.before)
        large = session.before.leaves[(session.before.leaves["level"] == 2) & (session.before.leaves["window"] == 0)]
        frames = (large["offset"][-120:] >> 12).tolist()  # far above the kernel's image, whose pages have aliases
        calls = [[rmpcore.make_op("set_memory_4k", pfn=pfn, pages=1) for pfn in frames[i::6]] for i in range(6)]
        kernel, native = iter(calls), iter([rmpcore.pack_ops(ops) for ops in calls])
        made: list[Recorded] = []
        results: list[npt.NDArray[np.void]] = []
        benchmark.group = "alternatives"
        against(
            benchmark,
            lambda: results.append(machine.run(next(native))),
            lambda: made.extend(session.make(op) for op in next(kernel)),
            beside="a kernel in QEMU over gdb",
            items=20,
            rounds=5,
        )
        recording = session.finish(made)
    assert [call.ret for call in made] == np.concatenate(results)["ret"].tolist() == [0] * 120
    counters = machine.counters()
    assert made[-1].page_counts == tuple(counters[f"direct_map_{size}"] for size in ("4k", "2m", "1g"))
    assert counters["level2_splits"] - session.before.counters["level2_splits"] == 120
    (tmp_path / "recording.json").write_text(recording_text(recording), encoding="utf-8")
    result = conform(tmp_path / "recording.json")
    assert result.passed, result.differences
