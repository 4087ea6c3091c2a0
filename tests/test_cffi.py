"""The C library as others see it: through its headers and its exported symbols alone, by a binding that shares nothing
with the package's own.

Every public function is called here at least once, and what it says is held against a rule or against the oracle.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import headers
import machines as m
import pytest
from cffi_library import Library, build
from cffi_machine import DIRTY, NO_PAGE, PAGE, CffiMachine, FunctionMachine

from rmpcore.cpu import Cpu, Page, Registers
from rmpcore.fuzzing.pair import difference
from rmpcore.fuzzing.units import DirectMapUnit, PolicyUnit, RmpUnit, Unit
from rmpcore.machine import POLICIES, Machine, MachineError, MachineLike
from rmpcore.maps import MachineMap, SegmentedRmp
from rmpcore.ops import OPS, EventKind, Kind, Op, Result, make_op, unpack_ops
from rmpcore.state import State, diff_entries, diff_states

PUBLIC = {function.name for function in headers.functions() if not function.inline}
CALLED: set[str] = set()
"""Functions that some test has to call."""


def calls(*names: str) -> Callable[[Any], Any]:
    """The test calls these functions, several in a string or one: it fails if it does not."""
    promised = " ".join(names).split()
    CALLED.update(promised)

    def mark(test: Any) -> Any:
        test.calls = promised
        return test

    return mark


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(build(tmp_path_factory.mktemp("library")))


@pytest.fixture
def library(shared: Library, request: pytest.FixtureRequest) -> Iterator[Library]:
    """The shared library; holds the test to its word about what it calls."""
    shared.called.clear()
    yield shared
    assert set(getattr(request.function, "calls", ())) <= shared.called


def test_every_public_function_is_called() -> None:
    """A function that is new in a header needs a test here that calls it."""
    assert sorted(PUBLIC - CALLED) == []
    assert sorted(CALLED - PUBLIC) == []


# ---- the library as a file ----


def test_nothing_of_the_packages_own_binding_is_used(library: Library) -> None:
    code = """
import sys
from pathlib import Path
from cffi_library import Library
from cffi_machine import CffiMachine
from machines import SNP
CffiMachine(Library(Path(sys.argv[1])), SNP).state()
sys.exit("rmpcore._native" in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(library.path)], check=True, env=environment)


def symbols(library: Library, which: str) -> set[str]:
    done = subprocess.run(["nm", "-D", which, str(library.path)], check=True, capture_output=True, text=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}


@pytest.mark.plain_build
def test_exports_are_what_the_headers_declare(library: Library) -> None:
    assert symbols(library, "--defined-only") == PUBLIC
    assert all(name.startswith("rmpc_") for name in PUBLIC)


@pytest.mark.plain_build
def test_imports_are_few(library: Library) -> None:
    """The four mem functions, and what sparse memory is made of.  Compilers that harden by default add checked forms of
    those; what every shared library gets for its start and its end is not ours."""
    needed = {"memcpy", "memset", "memmove", "memcmp", "mmap", "munmap", "madvise"}
    start = {"__gmon_start__", "__cxa_finalize", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    checked = {f"__{name}_chk" for name in needed} | {"__stack_chk_fail"}
    imports = symbols(library, "--undefined-only") - start - checked
    assert imports <= needed
    assert {"mmap", "munmap"} <= imports


@calls("rmpc_abi", "rmpc_version")
def test_version(library: Library) -> None:
    macros = headers.macros()
    assert library.rmpc_abi() == macros["RMPC_ABI"].value
    numbers = (macros[f"RMPC_VERSION_{part}"].value for part in ("MAJOR", "MINOR", "PATCH"))
    assert library.text(library.rmpc_version()) == ".".join(map(str, numbers))


# ---- names ----


def names_of(library: Library, function: Any, end: int) -> list[str]:
    names = [library.text(function(at)) for at in range(end)]
    assert None not in names and "" not in names
    return [str(name) for name in names]


@calls("rmpc_status_text", "rmpc_invariant_name", "rmpc_policy_name")
def test_names(library: Library) -> None:
    """Each value has a text of its own; what is no value is no reason to crash."""
    texts = names_of(library, library.rmpc_status_text, library.RMPC_STATUS_END)
    assert len(set(texts)) == len(texts)
    invariants = names_of(library, library.rmpc_invariant_name, library.RMPC_INVARIANT_END)
    assert len(set(invariants)) == len(invariants)
    assert sorted(names_of(library, library.rmpc_policy_name, library.RMPC_POLICY_END)) == sorted(POLICIES)
    for function, end, known in (
        (library.rmpc_status_text, library.RMPC_STATUS_END, texts),
        (library.rmpc_invariant_name, library.RMPC_INVARIANT_END, invariants),
    ):
        (unknown,) = {library.text(function(beyond)) for beyond in (end, 1 << 20, 0xFFFF_FFFF)}
        assert unknown and unknown not in known
    for beyond in (library.RMPC_POLICY_END, 1 << 20, 0xFFFF_FFFF):
        assert library.text(library.rmpc_policy_name(beyond)) is None


@calls("rmpc_op_name", "rmpc_op_flags", "rmpc_op_mode")
def test_ops(library: Library) -> None:
    """docs/formats.md's list of ops, which rmpcore.ops has."""
    known = {spec.code: (spec.name, spec.flag_mask, spec.mode_mask) for spec in OPS}
    for code in (*range(300), 1 << 16, 0xFFFF_FFFF):
        name = library.text(library.rmpc_op_name(code))
        assert (name, library.rmpc_op_flags(code), library.rmpc_op_mode(code)) == known.get(code, (None, 0, 0))


@calls("rmpc_kernel_init")
def test_kernels(library: Library) -> None:
    """direct-map §10: each change comes with its version and stays."""
    since = {
        "rox": 2,
        "primary_always": 2,
        "clear_d_with_rw": 6,
        "snp_host": 9,
        "rmp_end_blocks": 10,
        "rmp_end_reserved": 12,
        "set_valid": 13,
        "segmented_rmp": 14,
        "mark_4k": 15,
        "collapse": 15,
    }
    kernel = library.new("struct rmpc_kernel *")
    assert {field.name for field in headers.structs()["rmpc_kernel"]} == {"major", "minor", *since}
    for minor in range(1, 20):
        assert library.rmpc_kernel_init(kernel, 6, minor) == library.RMPC_OK
        assert {name: getattr(kernel, name) for name in since} == {name: minor >= at for name, at in since.items()}
    assert library.rmpc_kernel_init(kernel, 7, 0) == library.RMPC_OK and all(getattr(kernel, name) for name in since)
    for old in ((6, 0), (5, 19), (0, 0), (-1, 5), (6, -1)):
        assert library.rmpc_kernel_init(kernel, *old) == library.RMPC_ERR_KERNEL


# ---- memory ----


def two_ranges(library: Library) -> tuple[Any, tuple[Any, Any, Any]]:
    """Memory at 0x1000 to 0x3000 and 0x5000 to 0x6000, without an allocator; and what it needs to be kept: the bytes,
    the ranges, the first byte."""
    ffi = library.ffi
    raw = library.new("uint8_t[]", 4 * PAGE)
    start = raw + -int(ffi.cast("uintptr_t", raw)) % PAGE
    ranges = library.new("struct rmpc_range[]", [(0x1000, 0x2000, start), (0x5000, 0x1000, start + 0x2000)])
    return library.new("struct rmpc_mem *", {"ranges": ranges, "count": 2}), (raw, ranges, start)


@calls("rmpc_mem_check")
def test_memory_is_checked(library: Library) -> None:
    mem, kept = two_ranges(library)
    _, ranges, start = kept
    assert library.rmpc_mem_check(mem) == library.RMPC_OK
    bad: list[tuple[str, Any]] = [
        ("host", start + 1),
        ("host", library.ffi.NULL),
        ("base", 0x1800),
        ("size", 0),
        ("size", 0x1001),
        ("size", 0x5000),
        ("base", 0x6000),
        ("base", library.RMPC_PHYSICAL_LIMIT),
    ]
    for field, value in bad:
        good = getattr(ranges[0], field)
        setattr(ranges[0], field, value)
        assert library.rmpc_mem_check(mem) == library.RMPC_ERR_RANGE, (field, value)
        setattr(ranges[0], field, good)
    assert library.rmpc_mem_check(mem) == library.RMPC_OK
    ranges[1].base = library.RMPC_PHYSICAL_LIMIT - PAGE
    assert library.rmpc_mem_check(mem) == library.RMPC_OK
    ranges[1].size = 2 * PAGE
    assert library.rmpc_mem_check(mem) == library.RMPC_ERR_RANGE


@calls("rmpc_mem_at", "rmpc_mem_read", "rmpc_mem_write")
def test_memory_is_found(library: Library) -> None:
    mem, kept = two_ranges(library)
    start = kept[2]
    null = library.ffi.NULL
    assert library.rmpc_mem_at(mem, 0x1000, 0x2000) == start
    assert library.rmpc_mem_at(mem, 0x2FFF, 1) == start + 0x1FFF
    assert library.rmpc_mem_at(mem, 0x5008, 8) == start + 0x2008
    for pa, size in ((0xFFF, 1), (0xFFF, 2), (0x2FFF, 2), (0x3000, 1), (0x6000, 1), (NO_PAGE, 1), (0x1000, NO_PAGE)):
        assert library.rmpc_mem_at(mem, pa, size) == null, (pa, size)
    assert library.rmpc_mem_write(mem, 0x5FFD, b"abc", 3) == library.RMPC_OK
    assert library.ffi.buffer(start, 3 * PAGE)[0x2FFD:0x3000] == b"abc"
    assert library.rmpc_mem_write(mem, 0x5FFE, b"xyz", 3) == library.RMPC_ERR_RANGE
    out = library.new("char[]", b"???")
    assert library.rmpc_mem_read(mem, 0x5FFE, out, 3) == library.RMPC_ERR_RANGE
    assert library.ffi.buffer(out)[:] == b"???\0"
    assert library.rmpc_mem_read(mem, 0x5FFD, out, 3) == library.RMPC_OK
    assert library.ffi.buffer(out)[:] == b"abc\0"


@calls("rmpc_mem_alloc", "rmpc_mem_free")
def test_an_allocator_is_not_trusted(library: Library) -> None:
    """A page that is not memory, or no page, counts as none; failures on demand come after those that succeed."""
    mem, _kept = two_ranges(library)
    assert library.rmpc_mem_alloc(mem) == NO_PAGE
    library.rmpc_mem_free(mem, 0x1000)
    pages = iter([0x1000, 0x5000, 0x3000, 0x1001, 0x2000, NO_PAGE, 0x1000])
    freed: list[int] = []
    alloc = library.ffi.callback("uint64_t(void *)", lambda _: next(pages))
    free = library.ffi.callback("void(void *, uint64_t)", lambda _, page: freed.append(page))
    mem.alloc, mem.free = alloc, free
    mem.fail_skip, mem.fail_count = 1, 2
    got = [library.rmpc_mem_alloc(mem) for _ in range(9)]
    assert got == [0x1000, NO_PAGE, NO_PAGE, 0x5000, NO_PAGE, NO_PAGE, 0x2000, NO_PAGE, 0x1000]
    library.rmpc_mem_free(mem, 0x5000)
    assert freed == [0x5000]


@calls("rmpc_extents_check", "rmpc_extents_find")
def test_extents(library: Library) -> None:
    limit = library.RMPC_PHYSICAL_LIMIT
    good = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x2000), (limit - 0x1000, 0x1000)]
    extents = library.new("struct rmpc_extent[]", good)
    assert library.rmpc_extents_check(extents, 4) == library.RMPC_OK
    assert library.rmpc_extents_check(library.ffi.NULL, 0) == library.RMPC_OK
    bad = [
        [(0x2000, 0x1000), (0x1000, 0x1000)],
        [(0x1000, 0x2000), (0x2000, 0x1000)],
        [(0x1000, 0)],
        [(0x1800, 0x1000)],
        [(0x1000, 0x800)],
        [(limit - 0x1000, 0x2000)],
        [(limit, 0x1000)],
        [(0x1000, NO_PAGE & ~0xFFF)],
    ]
    for rows in bad:
        status = library.rmpc_extents_check(library.new("struct rmpc_extent[]", rows), len(rows))
        assert status == library.RMPC_ERR_RANGE, rows
    found = {0: 0, 0x1FFF: 0, 0x2000: 1, 0x3000: 2, 0x8000: 2, 0x9FFF: 2, 0xA000: 3, limit - 1: 3, limit: 4}
    assert {at: library.rmpc_extents_find(extents, 4, at) for at in found} == found


@calls("rmpc_pool_init", "rmpc_pool_alloc", "rmpc_pool_free")
def test_pool(library: Library) -> None:
    """The highest free page: not a reserved one, nor one that a reserved range touches, nor a busy one."""
    mem, _kept = two_ranges(library)
    memory = library.new("struct rmpc_extent[]", [(0x1000, 0x2000), (0x5000, 0x1000)])
    reserved = library.new("struct rmpc_extent[]", [(0x2FFF, 1)])
    pool = library.new("struct rmpc_pool *", {"mem": mem, "memory": memory, "memory_count": 2})
    library.rmpc_pool_init(pool)
    assert pool.next == 6
    assert [library.rmpc_pool_alloc(pool) for _ in range(4)] == [0x5000, 0x2000, 0x1000, NO_PAGE]
    library.rmpc_pool_free(pool, 0x1000)
    library.rmpc_pool_free(pool, 0x5000)
    library.rmpc_pool_free(pool, 0x9000)
    assert [library.rmpc_pool_alloc(pool) for _ in range(3)] == [0x5000, 0x1000, NO_PAGE]
    pool.reserved, pool.reserved_count = reserved, 1
    busy = library.new("uint64_t[]", [5])
    pool.busy, pool.busy_count = busy, 1
    library.rmpc_pool_init(pool)
    assert [library.rmpc_pool_alloc(pool) for _ in range(2)] == [0x1000, NO_PAGE]


@calls("rmpc_pool_init", "rmpc_pool_alloc", "rmpc_pool_free")
def test_pages_that_a_pool_does_not_take(library: Library) -> None:
    """What is not allocatable memory is not given out again; a free page written over does no other harm."""
    mem, kept = two_ranges(library)

    def write_over(link: int) -> None:
        """Fill page 0x5000, wherever in it the pool has its links."""
        where = library.ffi.cast("uint64_t *", kept[2] + 0x2000)
        for i in range(PAGE // 8):
            where[i] = link

    pool = library.new("struct rmpc_pool *", {"mem": mem, "next": 7})
    library.rmpc_pool_init(pool)
    assert pool.next == 0
    assert library.rmpc_pool_alloc(pool) == NO_PAGE
    memory = library.new("struct rmpc_extent[]", [(0x2000, 0x1000)])
    pool.memory, pool.memory_count = memory, 1
    library.rmpc_pool_init(pool)
    for page in (0x1000, 0x5000):  # memory, but not the pool's
        library.rmpc_pool_free(pool, page)
    assert [library.rmpc_pool_alloc(pool) for _ in range(2)] == [0x2000, NO_PAGE]
    reserved = library.new("struct rmpc_extent[]", [(0x2000, 0x10)])
    pool.reserved, pool.reserved_count = reserved, 1
    library.rmpc_pool_free(pool, 0x2000)
    assert library.rmpc_pool_alloc(pool) == NO_PAGE
    memory = library.new("struct rmpc_extent[]", [(0x1000, 0x2000), (0x5000, 0x1000)])
    pool.memory, pool.memory_count = memory, 2
    # a reserved range right behind a page does not touch it
    reserved[0] = (0x3000, 0x1000)
    library.rmpc_pool_free(pool, 0x2000)
    assert library.rmpc_pool_alloc(pool) == 0x2000
    reserved[0] = (0x2000, 0x10)
    # a page given back that is lower than one that never was out
    library.rmpc_pool_init(pool)
    library.rmpc_pool_free(pool, 0x1000)
    assert library.rmpc_pool_alloc(pool) == 0x5000
    library.rmpc_pool_init(pool)
    assert library.rmpc_pool_alloc(pool) == 0x5000
    library.rmpc_pool_free(pool, 0x5000)
    write_over(0x5000)
    assert [library.rmpc_pool_alloc(pool) for _ in range(3)] == [0x5000, 0x1000, NO_PAGE]
    for link in (NO_PAGE - 1, 0x9000, 0x4000, 0x5000, 0x1001, 0):
        pool.reserved_count = 0
        library.rmpc_pool_init(pool)
        given = [library.rmpc_pool_alloc(pool) for _ in range(3)]
        assert given == [0x5000, 0x2000, 0x1000]
        library.rmpc_pool_free(pool, 0x2000)
        library.rmpc_pool_free(pool, 0x5000)
        write_over(link)
        library.rmpc_pool_free(pool, 0x1000)
        again = [library.rmpc_pool_alloc(pool) for _ in range(5)]
        pages = [page for page in again if page != NO_PAGE]
        assert pages and len(set(pages)) == len(pages) and set(pages) <= set(given), hex(link)
    # no page at all
    library.rmpc_pool_init(pool)
    library.rmpc_pool_free(pool, 0x1800)
    assert pool.freed == NO_PAGE


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@calls("rmpc_pool_init", "rmpc_pool_alloc", "rmpc_pool_free")
def test_pages_given_back_in_any_order(library: Library, order: str) -> None:
    """mem.h: the highest free page, however pages have come back."""
    count = 300
    raw = library.new("uint8_t[]", (count + 1) * PAGE)
    start = raw + -int(library.ffi.cast("uintptr_t", raw)) % PAGE
    ranges = library.new("struct rmpc_range[]", [(0, count * PAGE, start)])
    mem = library.new("struct rmpc_mem *", {"ranges": ranges, "count": 1})
    memory = library.new("struct rmpc_extent[]", [(0, count * PAGE)])
    pool = library.new("struct rmpc_pool *", {"mem": mem, "memory": memory, "memory_count": 1})
    library.rmpc_pool_init(pool)
    pages = [page * PAGE for page in range(count)]
    assert [library.rmpc_pool_alloc(pool) for _ in pages] == pages[::-1]
    rng = random.Random(1)
    if order == "random":
        rng.shuffle(pages)
    elif order == "descending":
        pages.reverse()
    free: list[int] = []
    for page in pages:
        library.rmpc_pool_free(pool, page)
        free.append(page)
        if rng.random() < 0.3:
            highest = max(free)
            assert library.rmpc_pool_alloc(pool) == highest
            free.remove(highest)
    assert [library.rmpc_pool_alloc(pool) for _ in range(len(free) + 1)] == [*sorted(free, reverse=True), NO_PAGE]


@calls("rmpc_sparse_map", "rmpc_sparse_unmap")
def test_sparse_memory(library: Library) -> None:
    """More than any machine has, zeroed; what no address space can hold is an error."""
    size = 1 << 40
    part = library.new("struct rmpc_range *", {"base": 0, "size": size})
    for dense in (False, True):
        assert library.rmpc_sparse_map(part, dense) == library.RMPC_OK
        assert int(library.ffi.cast("uintptr_t", part.host)) % PAGE == 0
        for at in (0, size // 2 + 5, size - 1):
            byte = library.ffi.cast("uint8_t *", part.host) + at
            assert byte[0] == 0
            byte[0] = 1
        library.rmpc_sparse_unmap(part)
        assert part.host == library.ffi.NULL
    library.rmpc_sparse_unmap(part)
    part.size = 1 << 46
    for _ in range(5):  # more than the address space has, if they were not given back
        assert library.rmpc_sparse_map(part, False) == library.RMPC_OK
        library.rmpc_sparse_unmap(part)
    part.size, part.host = 1 << 56, library.ffi.cast("void *", PAGE)
    assert library.rmpc_sparse_map(part, True) == library.RMPC_ERR_NOMEM
    assert part.host == library.ffi.NULL


# ---- page tables in bytes ----


def oracle_of(map_: MachineMap, **options: Any) -> MachineLike:
    machine = Machine(map_, backend="oracle", **options)
    machine.record_events(True)
    return machine


def differences(mine: State, theirs: State) -> list[str]:
    return list(diff_states(mine, theirs, "cffi"))[:20]


WAYS = (("own", "highest"), ("own", "pool"), ("sparse", "highest"), ("sparse", "pool"))
BOOTED = {
    "small": m.SMALL,
    "4K": m.TINY_4K,
    "five levels": m.SMALL_LA57,
    "C-bit": m.SMALL_CBIT,
    "PC": m.PC,
    "hole": m.SNP_HOLE,
    "image": m.SNP_IMAGE,
    "random": m.SMALL_RANDOM,
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", BOOTED)
@calls("rmpc_dmap_boot", "rmpc_dmap_list", "rmpc_dmap_census", "rmpc_dmap_validate")
def test_boot(library: Library, name: str, way: tuple[str, str]) -> None:
    """direct-map §2, wherever memory and pages come from."""
    machine = CffiMachine(library, BOOTED[name], memory=way[0], pages=way[1])
    oracle = oracle_of(BOOTED[name])
    assert differences(machine.state(), oracle.state()) == []
    assert machine.census() == oracle.census()
    assert machine.validate() is None


def walked(machine: CffiMachine) -> set[tuple[int, int, int, int]]:
    """Entries of both windows that are not zero, found in the bytes as a processor finds them (direct-map §1)."""
    found: set[tuple[int, int, int, int]] = set()
    limit = 1 << (52 if machine.map.levels == 5 else 46)
    windows = ((machine.map.page_offset, limit, 5), (m.HIGH_MAPPING, 1 << 30, 2))

    def walk(table: int, level: int, va: int) -> None:
        shift = 12 + 9 * (level - 1)
        for at, raw in enumerate(struct.unpack("<512Q", machine.bytes_at(table, PAGE))):
            if not raw:
                continue
            first = va + (at << shift)
            if level == machine.map.levels and at >= 256:
                first |= m.U64 & ~((1 << (shift + 9)) - 1)
            for window, (origin, size, top) in enumerate(windows):
                if level <= top and first < origin + size and first + (1 << shift) > origin:
                    found.add((window, level, first - origin & m.U64, raw))
            if level > 1 and raw & m.P and not raw & m.PSE:
                walk(raw & m.FRAME_MASK & ~machine.map.c_bit, level - 1, first)

    walk(machine.dmap.root, machine.map.levels, 0)
    return found


@pytest.mark.parametrize("name", BOOTED)
@calls("rmpc_dmap_list", "rmpc_machine_apply")
def test_tables_are_in_the_bytes(library: Library, name: str) -> None:
    """What a walk in Python finds in the machine's bytes is what the library says, and no page is out that is no
    table."""
    machine = CffiMachine(library, BOOTED[name], kernel="6.15")
    for call, pfn, pages in (("ro", 0x233, 7), ("np", 0x3FF, 2), ("4k", 0x600, 0x200), ("rox", 0x800, 0x200)):
        assert machine.apply(make_op(f"set_memory_{call}", pfn=pfn, pages=pages)).ret == 0
    state = machine.state()
    assert walked(machine) == {*state.tables.tolist(), *state.leaves.tolist()}
    assert state.root in machine.pages.given
    if machine.map.image is None:
        mask = m.FRAME_MASK & ~machine.map.c_bit
        assert machine.pages.given == {state.root, *(raw & mask for raw in state.tables["raw"].tolist())}
        assert len(machine.pages.given) == state.counters["table_pages"]


@calls("rmpc_dmap_init")
def test_a_config_that_is_possible(library: Library) -> None:
    """dmap.h: what a direct map can be set up with; it is empty then, whatever was there before."""
    mem, _kept = two_ranges(library)
    mapped = library.new("struct rmpc_frames[]", 1)
    dmap = library.new("struct rmpc_dmap *")
    config = library.new("struct rmpc_dmap_config *", {"levels": 4, "large_level": 3, "page_offset": m.PAGE_OFFSET})
    config.supported_mask = config.default_mask = m.U64
    library.ffi.buffer(dmap)[:] = b"\xff" * library.ffi.sizeof("struct rmpc_dmap")
    assert library.rmpc_dmap_init(dmap, mem, config, mapped, 1, library.ffi.NULL) == library.RMPC_OK
    assert (dmap.root, dmap.mapped_count, dmap.mapped_room, dmap.max_pfn_mapped) == (NO_PAGE, 0, 1, 0)
    assert not any(library.ffi.buffer(library.ffi.addressof(dmap, "counters"))[:])
    assert not dmap.kernel_readonly and not dmap.page_total
    fields: list[tuple[str, Any]] = [("levels", 3), ("levels", 6), ("large_level", 0), ("large_level", 4)]
    # not on a 1 GiB line, in the user's half, without room above it
    fields += [("page_offset", 4096), ("page_offset", 1 << 40), ("page_offset", m.U64 & -m.GIB)]
    fields += [("page_offset", 0xFFFF_0000_0000_0000), ("page_offset", m.U64 & -(1 << 46))]
    fields += [("page_offset", m.PAGE_OFFSET + (1 << 29))]
    fields += [("c_bit", 1 << 31), ("c_bit", 1 << 52), ("c_bit", 3 << 47)]
    fields += [("cache_modes", [int(at == mode) for at in range(6)]) for mode in range(6)]
    # P to PSE and the frame are in every entry; G and NX need not be
    bits = (1, 1 << 7, 1 << 12, 1 << 51)
    fields += [(mask, m.U64 & ~bit) for mask in ("default_mask", "supported_mask") for bit in bits]
    for field, value in fields:
        bad = library.new("struct rmpc_dmap_config *", config[0])
        setattr(bad, field, value)
        status = library.rmpc_dmap_init(dmap, mem, bad, mapped, 1, library.ffi.NULL)
        assert status == library.RMPC_ERR_ARGUMENT, (field, value)
    # the first and the last place of a direct map, with 4 levels and with 5
    for levels, half, size in ((4, 47, 46), (5, 56, 52)):
        for page_offset, status in (
            (m.U64 & -(1 << half), "OK"),
            (m.U64 & -(1 << half) - m.GIB, "ERR_ARGUMENT"),
            (m.U64 & -(1 << size) - m.GIB, "OK"),
            (m.U64 & -(1 << size), "ERR_ARGUMENT"),
        ):
            moved = library.new("struct rmpc_dmap_config *", config[0])
            moved.levels, moved.page_offset = levels, page_offset
            got = library.rmpc_dmap_init(dmap, mem, moved, mapped, 1, library.ffi.NULL)
            assert got == getattr(library, f"RMPC_{status}"), (levels, hex(page_offset))
    # memory may end where the C-bit begins; it is one of bits 51:32
    last_page = library.new("struct rmpc_range *", ((1 << 32) - PAGE, PAGE, mem.ranges.host))
    edge = library.new("struct rmpc_mem *", {"ranges": last_page, "count": 1})
    for bit in (32, 51):
        encrypted = library.new("struct rmpc_dmap_config *", config[0])
        encrypted.c_bit = 1 << bit
        assert library.rmpc_dmap_init(dmap, edge, encrypted, mapped, 1, library.ffi.NULL) == library.RMPC_OK
    # the last of several ranges counts
    ranges = library.new("struct rmpc_range[]", [(0, PAGE, mem.ranges.host), (1 << 32, PAGE, mem.ranges.host)])
    edge.ranges, edge.count = ranges, 2
    for bit, status in ((32, "ERR_RANGE"), (33, "OK")):
        encrypted.c_bit = 1 << bit
        got = library.rmpc_dmap_init(dmap, edge, encrypted, mapped, 1, library.ffi.NULL)
        assert got == getattr(library, f"RMPC_{status}")
    # memory that is none comes before
    ranges[1].base = 1
    assert library.rmpc_dmap_init(dmap, edge, config, mapped, 1, library.ffi.NULL) == library.RMPC_ERR_RANGE
    # an embedder may have none at all
    mem.count = 0
    assert library.rmpc_dmap_init(dmap, mem, encrypted, mapped, 1, library.ffi.NULL) == library.RMPC_OK


@calls("rmpc_dmap_init", "rmpc_dmap_boot")
def test_what_no_direct_map_is_built_from(library: Library) -> None:
    machine = CffiMachine(library, m.SMALL)
    mapped = library.new("struct rmpc_frames[]", 1)
    dmap = library.new("struct rmpc_dmap *")
    config = library.new("struct rmpc_dmap_config *", machine.dmap.config)
    boot = library.new("struct rmpc_boot_memory *", {"max_pfn": 0x4000, "memory_count": 1, "e820_count": 1})
    memory, e820 = (
        library.new("struct rmpc_extent *", (0, 64 << 20)),
        library.new("struct rmpc_e820 *", (0, 64 << 20, 1)),
    )
    boot.memory, boot.e820 = memory, e820
    for room, fail, status in ((0, 0, "FULL"), (1, 1, "NOMEM")):
        machine.mem.fail_count = fail
        library.rmpc_dmap_init(dmap, machine.mem, config, mapped, room, library.ffi.NULL)
        assert library.rmpc_dmap_boot(dmap, boot) == getattr(library, f"RMPC_ERR_{status}")
    # §2.3: root and two tables are there, the one for the small pages at the lower range's end is not: no range follows
    two = library.new("struct rmpc_extent[]", [(0, (15 << 20) + PAGE), (32 << 20, 32 << 20)])
    boot.memory, boot.memory_count = two, 2
    machine.mem.fail_skip, machine.mem.fail_count = 3, 1
    library.rmpc_dmap_init(dmap, machine.mem, config, library.new("struct rmpc_frames[]", 4), 4, library.ffi.NULL)
    assert library.rmpc_dmap_boot(dmap, boot) == library.RMPC_ERR_NOMEM
    assert library.rmpc_dmap_lookup(dmap, m.PAGE_OFFSET + (62 << 20)).entry != library.ffi.NULL
    assert library.rmpc_dmap_lookup(dmap, m.PAGE_OFFSET + (32 << 20)).entry == library.ffi.NULL
    boot.memory, boot.memory_count = memory, 1
    nowhere = library.new("struct rmpc_extent *", (1 << 46, PAGE))
    empty = library.new("struct rmpc_extent *", (0, 0))
    library.rmpc_dmap_init(dmap, machine.mem, config, mapped, 1, library.ffi.NULL)
    refused: list[tuple[str, Any]] = [
        ("max_pfn", 0),
        ("max_pfn", (1 << 34) + 1),
        ("memory", empty),
        ("memory", nowhere),
    ]
    for field, value in refused:
        good = getattr(boot, field)
        setattr(boot, field, value)
        assert library.rmpc_dmap_boot(dmap, boot) == library.RMPC_ERR_RANGE, field
        setattr(boot, field, good)
    machine.mem.count = 0
    assert library.rmpc_dmap_init(dmap, machine.mem, config, mapped, 1, library.ffi.NULL) == library.RMPC_OK
    machine.mem.count = 1
    machine.mem.ranges.base = 1
    assert library.rmpc_dmap_init(dmap, machine.mem, config, mapped, 1, library.ffi.NULL) == library.RMPC_ERR_RANGE


@calls("rmpc_dmap_init", "rmpc_dmap_boot")
def test_a_boot_does_not_count_through_holes(library: Library) -> None:
    """direct-map §2.2: steps of 2 MiB from the top down, here of 4 PiB, to 64 MiB in which no block is free."""
    built = []
    for max_pfn in (0x4000, 1 << 40):
        machine = CffiMachine(library, m.SMALL_LA57)
        mapped = library.new("struct rmpc_frames[]", 4)
        dmap = machine.dmap
        all_of_it = library.new("struct rmpc_extent *", (0, 64 << 20))
        e820 = library.new("struct rmpc_e820 *", (0, 64 << 20, 1))
        boot = library.new("struct rmpc_boot_memory *", {"max_pfn": max_pfn, "memory_count": 1, "e820_count": 1})
        boot.memory, boot.reserved, boot.reserved_count, boot.e820 = all_of_it, all_of_it, 1, e820
        config = library.new("struct rmpc_dmap_config *", dmap.config)
        assert library.rmpc_dmap_init(dmap, machine.mem, config, mapped, 4, library.ffi.NULL) == library.RMPC_OK
        assert library.rmpc_dmap_boot(dmap, boot) == library.RMPC_OK
        built.append((walked(machine), list(dmap.counters.pages), dmap.max_pfn_mapped))
    assert built[0] == built[1]
    assert built[0][2] == 0x4000


def test_a_boot_without_memory(library: Library) -> None:
    """direct-map §2.2: the first MiB is mapped whatever is there, in small pages, since no memory range fills a large
    one (§2.1 step 2); a row of the e820 that has no bytes keeps nothing."""
    machine = CffiMachine(library, m.SMALL)
    dmap, mapped = machine.dmap, library.new("struct rmpc_frames[]", 1)
    config = library.new("struct rmpc_dmap_config *", dmap.config)
    assert library.rmpc_dmap_init(dmap, machine.mem, config, mapped, 1, library.ffi.NULL) == library.RMPC_OK
    # what is behind the last row of either list is none of it
    rows = library.new("struct rmpc_e820[]", [(0x10_0800, 0, 1), (0, 64 << 20, 1)])
    beyond = library.new("struct rmpc_extent *", (0, 64 << 20))
    boot = library.new("struct rmpc_boot_memory *", {"max_pfn": 0x4000, "e820": rows, "e820_count": 1})
    boot.memory = beyond
    assert library.rmpc_dmap_boot(dmap, boot) == library.RMPC_OK
    found = {row for row in walked(machine) if row[1] == 1}
    assert found == {(0, 1, pa, pa | m.SMALL_LEAF) for pa in range(0, 0x10_0000, PAGE)}
    assert [(frames.start, frames.end) for frames in mapped[0 : dmap.mapped_count]] == [(0, 0x100)]


@pytest.mark.parametrize(("count", "size"), [(1, 2 << 20), (2, 0)])
def test_a_row_behind_the_last_keeps_nothing(library: Library, count: int, size: int) -> None:
    """direct-map §2.1 step 4: the slot of the last 2 MiB, mapped first, is cleared if no row of the e820 is there, or
    one without bytes."""
    machine = CffiMachine(library, m.SMALL)
    dmap, mapped = machine.dmap, library.new("struct rmpc_frames[]", 4)
    config = library.new("struct rmpc_dmap_config *", dmap.config)
    assert library.rmpc_dmap_init(dmap, machine.mem, config, mapped, 4, library.ffi.NULL) == library.RMPC_OK
    rows = library.new("struct rmpc_e820[]", [(0, 62 << 20, 1), ((62 << 20) + PAGE, size, 1)])
    memory = library.new("struct rmpc_extent *", (0, 64 << 20))
    boot = library.new("struct rmpc_boot_memory *", {"max_pfn": 0x4000, "memory_count": 1, "e820_count": count})
    boot.memory, boot.e820 = memory, rows
    assert library.rmpc_dmap_boot(dmap, boot) == library.RMPC_OK
    assert library.rmpc_dmap_lookup(dmap, m.PAGE_OFFSET + (60 << 20)).level == 2
    assert library.rmpc_dmap_lookup(dmap, m.PAGE_OFFSET + (62 << 20)).entry == library.ffi.NULL


@calls("rmpc_dmap_lookup")
def test_lookup_points_into_the_tables(library: Library) -> None:
    """direct-map §3; the entry can be read and written in place."""
    machine = CffiMachine(library, m.SMALL_4K)
    walk = library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x233_000)
    assert (walk.level, walk.rw, walk.nx, walk.entry[0]) == (1, True, False, m.entry(0x233_000, m.SMALL_LEAF))
    walk.entry[0] = 0
    assert (0, 1, 0x233_000) not in {row[:3] for row in walked(machine)}
    empty = library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x233_000)
    assert (empty.level, empty.entry) == (1, walk.entry)
    assert library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + (1 << 40)).entry == library.ffi.NULL


@pytest.mark.parametrize("without_rw", [None, 4, 3, 2])
@pytest.mark.parametrize("with_nx", [None, 4, 3, 2])
@pytest.mark.parametrize("apart", [(), (3,), (2,), (1,), (3, 2, 1)], ids=str)
@calls("rmpc_dmap_lookup", "rmpc_dmap_put_root", "rmpc_dmap_put_table", "rmpc_dmap_put_leaf")
def test_walks_through_tables_anywhere(
    library: Library, apart: tuple[int, ...], with_nx: int | None, without_rw: int | None
) -> None:
    """direct-map §3: what a walk finds does not depend on the ranges of memory that the tables lie in.

    apart: levels of tables that are not in the root's range; with_nx, without_rw: levels of the entry that is so."""
    raw = library.new("uint8_t[]", 10 * PAGE)
    start = raw + -int(library.ffi.cast("uintptr_t", raw)) % PAGE
    ranges = library.new("struct rmpc_range[]", [(0x1000, 0x4000, start), (0x5000, 0x4000, start + 0x5000)])
    mem = library.new("struct rmpc_mem *", {"ranges": ranges, "count": 2})
    mapped = library.new("struct rmpc_frames[]", 1)
    config = library.new("struct rmpc_dmap_config *", CffiMachine(library, m.SMALL).dmap.config)
    dmap = library.new("struct rmpc_dmap *")
    assert library.rmpc_dmap_init(dmap, mem, config, mapped, 1, library.ffi.NULL) == library.RMPC_OK
    assert library.rmpc_dmap_put_root(dmap, 0x1000) == library.RMPC_OK
    flags = {
        level: (m.BOOT_TABLE & ~(m.RW if level == without_rw else 0)) | (m.NX if level == with_nx else 0)
        for level in (4, 3, 2)
    }
    for level in (4, 3, 2):
        page = {3: 0x2000, 2: 0x3000, 1: 0x4000}[level - 1] + (0x3000 if level - 1 in apart else 0)
        assert library.rmpc_dmap_put_table(dmap, m.PAGE_OFFSET, level, page | flags[level]) == library.RMPC_OK
    small = m.entry(0x5000, m.SMALL_LEAF)
    assert library.rmpc_dmap_put_leaf(dmap, m.PAGE_OFFSET + 0x5000, 1, small) == library.RMPC_OK
    assert library.rmpc_dmap_put_leaf(dmap, m.PAGE_OFFSET + m.GIB, 3, m.GIB | m.LARGE_LEAF) == library.RMPC_OK

    def found(offset: int) -> tuple[int, bool, bool, int | None]:
        walk = library.rmpc_dmap_lookup(dmap, m.PAGE_OFFSET + offset)
        return walk.level, walk.rw, walk.nx, walk.entry[0] if walk.entry else None

    assert found(0x5000) == (1, without_rw is None, with_nx is not None, small)
    assert found(0x6000) == (1, without_rw is None, with_nx is not None, 0)
    assert found(m.GIB) == (3, without_rw != 4, with_nx == 4, m.GIB | m.LARGE_LEAF)
    for nothing in (2 * m.MIB, 2 * m.GIB, 1 << 40):
        assert found(nothing) == (0, False, False, None)


@calls("rmpc_dmap_list")
def test_a_list_can_be_stopped(library: Library) -> None:
    machine = CffiMachine(library, m.SMALL)
    seen: list[int] = []

    def report(_: Any, entry: Any) -> bool:
        seen.append(entry.level)
        return len(seen) < 3

    listed = library.ffi.callback("bool(void *, const struct rmpc_dmap_entry *)", report)
    library.rmpc_dmap_list(machine.dmap, m.PAGE_OFFSET, 1 << 46, 5, listed, library.ffi.NULL)
    assert seen == [4, 3, 2]


@calls("rmpc_dmap_list")
def test_a_list_is_of_a_range(library: Library) -> None:
    """dmap.h: slots that overlap the range, by one byte or all of it, from the level asked for down."""
    machine = CffiMachine(library, m.SMALL)
    seen: list[tuple[int, int]] = []

    def report(_: Any, entry: Any) -> bool:
        seen.append((entry.level, entry.va - m.PAGE_OFFSET))
        return True

    listed = library.ffi.callback("bool(void *, const struct rmpc_dmap_entry *)", report)
    ranges = {
        (0, 2 * m.MIB): [0],
        (1, 2 * m.MIB): [0, 2],
        (2 * m.MIB - 1, 1): [0],
        (2 * m.MIB - 1, 2): [0, 2],
        (2 * m.MIB, 1): [2],
        (PAGE, 0): [],
        (62 * m.MIB, m.GIB): [62],
    }
    for (first, size), found in ranges.items():
        seen.clear()
        library.rmpc_dmap_list(machine.dmap, m.PAGE_OFFSET + first, size, 2, listed, library.ffi.NULL)
        assert seen == [(2, at * m.MIB) for at in found], (first, size)
    seen.clear()
    library.rmpc_dmap_list(machine.dmap, m.PAGE_OFFSET, 1, 3, listed, library.ffi.NULL)
    assert seen == [(3, 0), (2, 0)]


@calls("rmpc_dmap_init rmpc_dmap_list rmpc_dmap_census rmpc_dmap_put_high_path rmpc_dmap_put_table rmpc_dmap_put_leaf")
def test_a_direct_map_without_a_root(library: Library) -> None:
    """Between rmpc_dmap_init() and what builds it there is nothing, and nothing can be put there."""
    machine = CffiMachine(library, m.IMAGE)
    dmap = library.new("struct rmpc_dmap *")
    mapped = library.new("struct rmpc_frames[]", 1)
    config = library.new("struct rmpc_dmap_config *", machine.dmap.config)
    assert library.rmpc_dmap_init(dmap, machine.mem, config, mapped, 1, library.ffi.NULL) == library.RMPC_OK
    seen: list[int] = []
    listed = library.ffi.callback(
        "bool(void *, const struct rmpc_dmap_entry *)", lambda _, e: bool(seen.append(e.level))
    )
    library.rmpc_dmap_list(dmap, m.PAGE_OFFSET, 1 << 46, 5, listed, library.ffi.NULL)
    library.rmpc_dmap_list(machine.dmap, m.PAGE_OFFSET, 0, 5, listed, library.ffi.NULL)
    assert seen == []
    census = library.new("struct rmpc_census *", {"missing": 7})
    library.rmpc_dmap_census(dmap, census)
    assert library.ffi.buffer(census)[:] == bytes(library.ffi.sizeof("struct rmpc_census"))
    assert library.rmpc_dmap_put_high_path(dmap) == library.RMPC_ERR_STATE
    assert library.rmpc_dmap_put_root(dmap, 0x1000) == library.RMPC_OK
    high = m.HIGH_MAPPING
    # no page for a table of the way there: the slot stays empty, and may be filled later
    for tables in (1, 2):
        machine.mem.fail_skip, machine.mem.fail_count = tables - 1, 1
        assert library.rmpc_dmap_put_high_path(dmap) == library.RMPC_ERR_NOMEM
        assert dmap.counters.table_pages == tables
    assert library.rmpc_dmap_put_high_path(dmap) == library.RMPC_OK
    assert dmap.counters.table_pages == 3
    assert library.rmpc_dmap_put_leaf(dmap, high, 2, m.LARGE_LEAF) == library.RMPC_OK
    assert library.rmpc_dmap_put_root(dmap, 0x1000) == library.RMPC_OK
    # something else is where a table of that way has to be
    assert library.rmpc_dmap_put_table(dmap, high & -(1 << 39), 4, 0x2000 | m.BOOT_TABLE) == library.RMPC_OK
    assert library.rmpc_dmap_put_leaf(dmap, high, 3, 0) == library.RMPC_ERR_STATE
    assert library.rmpc_dmap_put_leaf(dmap, high, 3, m.LARGE_LEAF) == library.RMPC_OK
    assert library.rmpc_dmap_put_high_path(dmap) == library.RMPC_ERR_STATE


@calls("rmpc_dmap_add_mapped", "rmpc_dmap_is_mapped")
def test_mapped_ranges(library: Library) -> None:
    machine = CffiMachine(library, m.SMALL)
    dmap = machine.dmap
    dmap.mapped_count, dmap.mapped_room, dmap.max_pfn_mapped = 0, 2, 0

    def added(start: int, end: int) -> list[tuple[int, int]]:
        assert library.rmpc_dmap_add_mapped(dmap, start, end) == library.RMPC_OK
        return [(frames.start, frames.end) for frames in dmap.mapped[0 : dmap.mapped_count]]

    assert added(10, 10) == []
    assert added(10, 20) == [(10, 20)]
    assert added(30, 40) == [(10, 20), (30, 40)]
    assert added(20, 25) == [(10, 25), (30, 40)]
    assert library.rmpc_dmap_add_mapped(dmap, 50, 60) == library.RMPC_ERR_FULL
    assert added(25, 30) == [(10, 40)]
    assert dmap.max_pfn_mapped == 40
    assert [library.rmpc_dmap_is_mapped(dmap, pfn) for pfn in (9, 10, 39, 40)] == [False, True, True, False]
    assert not library.rmpc_dmap_is_mapped(dmap, (1 << 64) - 1)  # nothing comes after it
    # many of them; what is behind the array is not its own, and what is behind the last range is none
    room = 6
    frames = library.new("struct rmpc_frames[]", [(77 + at, 99 + at) for at in range(16)])
    dmap.mapped, dmap.mapped_count, dmap.mapped_room, dmap.max_pfn_mapped = frames, 0, room, 0
    assert not library.rmpc_dmap_is_mapped(dmap, 77)
    for start in (90, 50, 10, 70):
        added(start, start + 5)
    assert added(30, 35) == [(10, 15), (30, 35), (50, 55), (70, 75), (90, 95)]
    assert added(80, 85)[3:] == [(70, 75), (80, 85), (90, 95)]
    assert added(51, 54) == added(50, 55) == added(90, 95)
    assert added(34, 52) == [(10, 15), (30, 55), (70, 75), (80, 85), (90, 95)]
    assert added(1, 5) == [(1, 5), (10, 15), (30, 55), (70, 75), (80, 85), (90, 95)]
    pfns = [pfn for pfn in range(100) if library.rmpc_dmap_is_mapped(dmap, pfn)]
    assert pfns == [*range(1, 5), *range(10, 15), *range(30, 55), *range(70, 75), *range(80, 85), *range(90, 95)]
    assert dmap.max_pfn_mapped == 95
    assert added(12, 85) == [(1, 5), (10, 85), (90, 95)]
    assert added(0, 200) == [(0, 200)]
    assert dmap.max_pfn_mapped == 200
    assert all((frames[at].start, frames[at].end) == (77 + at, 99 + at) for at in range(room, 16))


@calls("rmpc_dmap_put_root", "rmpc_dmap_put_table", "rmpc_dmap_put_leaf")
def test_a_direct_map_put_together_by_hand(library: Library) -> None:
    machine = CffiMachine(library, m.SMALL)
    dmap, at = machine.dmap, m.PAGE_OFFSET
    table = m.BOOT_TABLE
    machine.bytes_at(0x1000, 3 * PAGE)[:] = 3 * DIRTY
    assert library.rmpc_dmap_put_root(dmap, 0x1001) == library.RMPC_ERR_RANGE
    assert library.rmpc_dmap_put_root(dmap, 64 << 20) == library.RMPC_ERR_RANGE
    assert library.rmpc_dmap_put_root(dmap, 0x1000) == library.RMPC_OK
    steps = (
        (library.rmpc_dmap_put_leaf, at, 2, 0 | m.LARGE_LEAF, "ERR_STATE"),
        (library.rmpc_dmap_put_table, at, 4, 64 << 20 | table, "ERR_RANGE"),
        (library.rmpc_dmap_put_table, at, 4, 0x2000 | table, "OK"),
        (library.rmpc_dmap_put_table, at, 4, 0x2000 | table, "ERR_STATE"),
        (library.rmpc_dmap_put_table, at + 0x1000, 3, 0x3000 | table, "ERR_ARGUMENT"),
        (library.rmpc_dmap_put_table, at, 3, 0x3000 | table | m.PSE, "ERR_STATE"),
        (library.rmpc_dmap_put_table, at, 3, 0x3000 | table, "OK"),
        (library.rmpc_dmap_put_table, at, 6, 0x4000 | table, "ERR_ARGUMENT"),
        (library.rmpc_dmap_put_leaf, at, 0, m.SMALL_LEAF, "ERR_ARGUMENT"),
        (library.rmpc_dmap_put_leaf, at & -(1 << 39), 4, m.RW, "ERR_ARGUMENT"),
        (library.rmpc_dmap_put_leaf, at, 2, 0x4000 | table, "ERR_STATE"),
        (library.rmpc_dmap_put_leaf, at + 0x20_0000, 2, 0x20_0000 | m.LARGE_LEAF, "OK"),
    )
    for put, va, level, raw, status in steps:
        assert put(dmap, va, level, raw) == getattr(library, f"RMPC_{status}"), (va, level, raw, status)
    put = {(0, 4, 0, 0x2000 | table), (0, 3, 0, 0x3000 | table), (0, 2, 0x20_0000, 0x20_0000 | m.LARGE_LEAF)}
    assert walked(machine) == put


@calls("rmpc_dmap_page_total", "rmpc_dmap_validate")
def test_invariants(library: Library) -> None:
    """What is broken in the bytes is found and named."""
    machine = CffiMachine(library, m.SMALL)
    counters = machine.dmap.counters
    some = library.new("struct rmpc_dmap_counters *", {"pages": [9, 5, 3, 2]})
    assert library.rmpc_dmap_page_total(some) == 5 + 3 * 512 + 2 * 512 * 512
    some.pages = [0, m.U64, 1, 0]
    assert library.rmpc_dmap_page_total(some) == 511
    counters.pages[3] += 1
    where = library.new("uint64_t *")
    scratch = library.new("uint64_t[]", 64)

    def broken() -> int:
        return int(library.rmpc_dmap_validate(machine.dmap, scratch, 64, where))

    where[0] = 7
    assert (broken(), where[0]) == (library.RMPC_BROKEN_PAGE_COUNTS, 0)
    counters.pages[3] -= 1
    assert broken() == library.RMPC_INVARIANTS_HOLD
    # the third table, of 2 MiB pages, is one too many
    counters.table_pages -= 1
    assert (broken(), where[0]) == (library.RMPC_BROKEN_TABLE_COUNT, m.PAGE_OFFSET)
    counters.table_pages += 1
    walk = library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x400_000)
    walk.entry[0] ^= 0x20_0000
    assert (broken(), where[0]) == (library.RMPC_BROKEN_IDENTITY, m.PAGE_OFFSET + 0x400_000)
    walk.entry[0] ^= 0x20_0000
    counters.table_pages += 1
    assert broken() == library.RMPC_BROKEN_TABLE_COUNT
    counters.table_pages -= 1
    root = machine.dmap.root
    machine.dmap.root = 1 << 40
    assert broken() == library.RMPC_BROKEN_ROOT
    machine.dmap.root = root
    # tables: one twice, one that is no memory, more than there is room to note
    tables = library.ffi.cast("uint64_t *", library.ffi.from_buffer(machine.bytes_at(root, PAGE)))
    free = next(at for at in range(512) if not tables[at])
    used = next(at for at in range(512) if tables[at])
    for raw, name in ((tables[used], "TABLE_SHARED"), (1 << 51 | m.BOOT_TABLE, "TABLE_PAGE")):
        tables[free] = raw
        assert broken() == getattr(library, f"RMPC_BROKEN_{name}")
        # what names no memory is as good as nothing
        assert machine.census()["missing"] == 0
        machine.state()
    tables[free] = 0
    assert library.rmpc_dmap_validate(machine.dmap, scratch, 1, where) == library.RMPC_BROKEN_TABLE_COUNT
    walk = library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x400_000)
    tables[used], kept = 1 << 51 | m.BOOT_TABLE, tables[used]
    assert library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x400_000).entry == library.ffi.NULL
    assert not any(machine.census().values())
    assert [row[1] for row in machine.state().tables.tolist()] == [4]
    tables[used] = kept
    assert library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x400_000).entry == walk.entry
    # dmap.h: leaves of levels 1 to 3 are counted; no entry of level 4 is a leaf
    census = machine.census()
    tables[used + 1] = m.RW
    assert machine.census() == census
    tables[used + 1] = 0
    # the list of mapped frames
    frames, count = machine.dmap.mapped[0], machine.dmap.mapped_count
    for start, end in ((5, 5), (6, 5)):
        machine.dmap.mapped[0].start, machine.dmap.mapped[0].end = start, end
        assert broken() == library.RMPC_BROKEN_MAPPED
    machine.dmap.mapped[0].start, machine.dmap.mapped[0].end = 0, 0x2000
    machine.dmap.mapped[1].start, machine.dmap.mapped[1].end = 0x2000, 0x4000
    machine.dmap.mapped_count = 2
    assert broken() == library.RMPC_BROKEN_MAPPED
    machine.dmap.mapped[1].start = 0x2001
    assert broken() == library.RMPC_INVARIANTS_HOLD
    machine.dmap.mapped[0].end, machine.dmap.mapped_count = 0x4000, count
    assert frames and machine.validate() is None


@calls("rmpc_dmap_validate")
@pytest.mark.parametrize("count", [2, 3, 4, 7, 12])
def test_any_two_tables_are_told_apart(library: Library, count: int) -> None:
    """dmap.h: of so many empty tables any two that are one, in any order of their addresses, are noticed, and where the
    walk meets it again; and none is where all differ."""
    machine = CffiMachine(library, m.SMALL)
    slots = [library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + (at << 21)).entry for at in range(1, count + 1)]
    machine.dmap.counters.table_pages += count
    scratch = library.new("uint64_t[]", 64)
    where = library.new("uint64_t *")
    rng = random.Random(count)
    for _ in range(4):
        pages = [page << 12 for page in rng.sample(range(0x200, 0x400), count)]
        machine.bytes_at(0x200000, 0x200000)[:] = bytes(0x200000)
        for first, again in [(0, 0), *itertools.combinations(range(count), 2)]:
            for slot, page in zip(slots, pages, strict=True):
                slot[0] = page | m.BOOT_TABLE
            slots[again][0] = slots[first][0]
            found = library.rmpc_dmap_validate(machine.dmap, scratch, 64, where)
            if first == again:
                assert found == library.RMPC_INVARIANTS_HOLD
            else:
                assert (found, where[0]) == (library.RMPC_BROKEN_TABLE_SHARED, m.PAGE_OFFSET + ((again + 1) << 21))


@calls("rmpc_dmap_put_root", "rmpc_dmap_put_table", "rmpc_dmap_validate")
def test_tables_in_any_order(library: Library) -> None:
    """A table that hangs in two places is found wherever the others lie."""
    machine = CffiMachine(library, m.SMALL)
    dmap, at = machine.dmap, m.PAGE_OFFSET
    pages = (0x9000, 0x3000, 0x7000, 0x5000, 0xB000, 0x6000)
    assert library.rmpc_dmap_put_root(dmap, 0x4000) == library.RMPC_OK
    assert library.rmpc_dmap_put_table(dmap, at, 4, 0x8000 | m.BOOT_TABLE) == library.RMPC_OK
    for number, page in enumerate(pages):
        assert library.rmpc_dmap_put_table(dmap, at + number * m.GIB, 3, page | m.BOOT_TABLE) == library.RMPC_OK
    assert machine.validate() is None
    slots = library.ffi.cast("uint64_t *", library.ffi.from_buffer(machine.bytes_at(0x8000, PAGE)))
    first = next(number for number in range(512) if slots[number])
    for page in (*pages, 0x4000, 0x8000):
        slots[first + len(pages)] = page | m.BOOT_TABLE
        assert str(machine.validate()).startswith("table-shared")
    slots[first + len(pages)] = 0
    # so it is in place of another one, when there are as many as there should be
    for number, page in itertools.permutations(range(len(pages)), 2):
        slots[first + number] = pages[page] | m.BOOT_TABLE
        where = at + max(number, page) * m.GIB
        assert machine.validate() == f"table-shared: at virtual address {where:#x}"
        slots[first + number] = pages[number] | m.BOOT_TABLE
    assert machine.validate() is None


@calls("rmpc_set_memory", "rmpc_change_page_attr")
def test_what_is_no_change_of_attributes(library: Library) -> None:
    machine = CffiMachine(library, m.SMALL)
    before = machine.state()
    page = library.new("struct rmpc_pages *", {"va": m.PAGE_OFFSET, "count": 1})
    outside = library.new("struct rmpc_pages *", {"va": 0x1000, "count": 1})
    for call in (library.RMPC_SET_MEMORY_END, 1 << 20, 0xFFFF_FFFF):
        assert library.rmpc_set_memory(machine.dmap, call, page[0]) == m.EFAULT
    assert library.rmpc_set_memory(machine.dmap, library.RMPC_SET_MEMORY_RO, outside[0]) == m.EFAULT
    for va in (m.HIGH_MAPPING + m.GIB, m.HIGH_MAPPING + m.GIB + PAGE, m.PAGE_OFFSET + (1 << 46) + PAGE):
        page_there = library.new("struct rmpc_pages *", {"va": va, "count": 1})
        assert library.rmpc_set_memory(machine.dmap, library.RMPC_SET_MEMORY_RO, page_there[0]) == m.EFAULT
    assert library.rmpc_change_page_attr(machine.dmap, page[0], 0x1000, 0) == m.EFAULT
    assert library.rmpc_change_page_attr(machine.dmap, page[0], 0, 0x1000) == m.EFAULT
    # cpa.h: what is not modelled comes before that there is nothing to do
    end, high_end = m.PAGE_OFFSET + (1 << 46), m.HIGH_MAPPING + m.GIB
    ranges: dict[tuple[int, int], int] = {(0x1000, 1): m.EFAULT, (0x1000, 0): m.EFAULT, (high_end + PAGE, 0): m.EFAULT}
    for origin, past in ((m.PAGE_OFFSET, end), (m.HIGH_MAPPING, high_end)):
        ranges |= {(origin, 1): 0, (past - PAGE, 1): 0, (past - PAGE, 2): m.EFAULT, (past, 0): 0, (past, 1): m.EFAULT}
    ranges[end + PAGE, 1] = ranges[end + PAGE, 0] = m.EFAULT
    for (va, count), answer in ranges.items():
        pages = library.new("struct rmpc_pages *", {"va": va, "count": count})
        assert library.rmpc_change_page_attr(machine.dmap, pages[0], 0, 0) == answer, (hex(va), count)
    inside = m.PAGE_OFFSET
    for addresses, answer in {
        (inside, inside + PAGE): 0,
        (0x1000,): m.EFAULT,
        (end,): m.EFAULT,
        (high_end,): m.EFAULT,
        (0x1000, inside): m.EFAULT,
        (inside, 0x1000): m.EFAULT,
    }.items():
        listed = library.new("uint64_t[]", addresses)
        pages = library.new("struct rmpc_pages *", {"count": len(addresses), "addresses": listed})
        assert library.rmpc_change_page_attr(machine.dmap, pages[0], 0, 0) == answer, addresses
    assert differences(machine.state(), before) == []


@calls("rmpc_set_direct_map_valid_noflush")
def test_frames_that_the_direct_map_has_no_room_for(library: Library) -> None:
    """direct-map, table of sizes: 2^46 bytes with 4 levels; §4: zero pages are allowed up to there."""
    machine = CffiMachine(library, m.SMALL, kernel="6.13")
    before = machine.state()
    frames = 1 << 34
    for pfn, pages, answer in (
        (frames, 0, 0),
        (frames, 1, m.EFAULT),
        (frames + 1, 0, m.EFAULT),
        (0, frames + 1, m.EFAULT),
        (1 << 52, 1, m.EFAULT),  # as an address it is 0 again
    ):
        assert library.rmpc_set_direct_map_valid_noflush(machine.dmap, pfn, pages, False) == answer, (pfn, pages)
    assert differences(machine.state(), before) == []


@calls("rmpc_dmap_lookup", "rmpc_machine_apply")
def test_a_table_outside_the_memory(library: Library) -> None:
    """What an embedder's own bytes may hold: a pointer to what is no memory is like a hole, for collapses too."""
    machine = CffiMachine(library, m.SMALL, kernel="6.15")
    slot = library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x600_000).entry
    slot[0] = 1 << 50 | m.SPLIT_TABLE
    assert machine.apply(make_op("set_memory_rox", pfn=0x400, pages=0x400)).ret == 0
    assert slot[0] == 1 << 50 | m.SPLIT_TABLE
    assert library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x400_000).entry[0] == 0x400_000 | 0x1A1


BOOT_TABLES = {
    "small": (m.SMALL, [4, 3, 2]),
    "4K": (m.TINY_4K, [4, 3, 2, *[1] * 8]),
    "five levels": (m.SMALL_LA57, [5, 4, 3, 2]),
    "PC": (m.PC, [4, 3, 2, 1, 1]),
    "hole": (m.HOLE_2M, [4, 3, 2, 2, 2, 2]),
    "image": (m.IMAGE, [4, 3, 2, 3, 2]),
}
"""Levels of the tables that are hung at boot, in order."""


@calls("rmpc_dmap_init", "rmpc_dmap_boot")
def test_tables_are_reported(library: Library) -> None:
    """direct-map §2.3, order of allocations; event.h: the level of the entries that a table will hold, and its page."""
    for map_, levels in BOOT_TABLES.values():
        machine = CffiMachine(library, map_)
        machine.record_events(True)
        root = machine.dmap.root
        config = library.new("struct rmpc_dmap_config *", machine.dmap.config)
        mapped = library.new("struct rmpc_frames[]", 4)
        assert library.rmpc_dmap_init(machine.dmap, machine.mem, config, mapped, 4, machine._events) == library.RMPC_OK
        machine._boot()
        events = machine.take_events()
        below = root - PAGE * len(levels)  # the first building took the pages from there up
        assert [(e["kind"], e["level"], e["a"]) for e in events] == [
            (EventKind.TABLE_ALLOC, level, below - PAGE * at) for at, level in enumerate(levels)
        ]


@pytest.mark.parametrize("name", BOOT_TABLES)
@calls("rmpc_dmap_init", "rmpc_dmap_boot")
def test_boot_without_the_nth_page(library: Library, name: str) -> None:
    """direct-map §2.3, "No page left"; dmap.h: RMPC_ERR_NOMEM.  Nothing is asked for after the page that there is not,
    and then the direct map may be set up again."""
    map_, levels = BOOT_TABLES[name]
    machine = CffiMachine(library, map_)
    machine.record_events(True)
    config = library.new("struct rmpc_dmap_config *", machine.dmap.config)
    mapped = library.new("struct rmpc_frames[]", 4)
    for enough in (*range(len(levels)), NO_PAGE):
        assert library.rmpc_dmap_init(machine.dmap, machine.mem, config, mapped, 4, machine._events) == library.RMPC_OK
        machine.mem.fail_skip, machine.mem.fail_count = enough, 1
        if enough == NO_PAGE:
            machine._boot()
        else:
            with pytest.raises(MachineError, match="no page left for a table"):
                machine._boot()
        wanted = [(EventKind.TABLE_ALLOC, level) for level in levels[:enough]]
        wanted += [(EventKind.ALLOC_FAIL, level) for level in levels[enough : enough + 1]]
        assert [(e["kind"], e["level"]) for e in machine.take_events()] == wanted
    machine.mem.fail_skip = machine.mem.fail_count = 0
    oracle = oracle_of(map_)
    assert differences_of_leaves(machine.state(), oracle.state()) == []
    assert machine.validate() is None


@calls("rmpc_dmap_init", "rmpc_dmap_boot")
def test_memory_that_no_direct_map_has_room_for(library: Library) -> None:
    """dmap.h: extents as rmpc_extents_check() wants them, at least one frame, and no byte beyond the limit, 2^46."""
    machine = CffiMachine(library, m.SMALL)
    config = library.new("struct rmpc_dmap_config *", machine.dmap.config)
    mapped = library.new("struct rmpc_frames[]", 4)
    low, end = (0, 16 * m.MIB), 1 << 46
    last = (end - 2 * m.MIB, 2 * m.MIB)
    cases: list[tuple[list[tuple[int, int]], int, str]] = [
        ([low, last], end >> 12, "OK"),
        ([low, last], (end >> 12) + 1, "ERR_RANGE"),
        ([low], 0, "ERR_RANGE"),
        ([low, low], 0x1000, "ERR_RANGE"),
        ([(0, 0x1800)], 0x1000, "ERR_RANGE"),
        ([(end - PAGE, 2 * PAGE)], 0x1000, "ERR_RANGE"),
        ([low, (end, PAGE)], 0x1000, "ERR_RANGE"),
        ([low, (end - PAGE, 2 * PAGE)], 0x1000, "ERR_RANGE"),
    ]
    for extents, max_pfn, status in cases:
        assert library.rmpc_dmap_init(machine.dmap, machine.mem, config, mapped, 4, library.ffi.NULL) == library.RMPC_OK
        boot = library.new("struct rmpc_boot_memory *", {"memory_count": len(extents), "max_pfn": max_pfn})
        memory = library.new("struct rmpc_extent[]", extents)
        boot.memory = memory
        answer = library.rmpc_dmap_boot(machine.dmap, boot)
        assert answer == getattr(library, f"RMPC_{status}"), (extents, max_pfn)
        assert (machine.dmap.root == NO_PAGE) == (status != "OK")


@calls("rmpc_dmap_list")
def test_a_list_that_is_stopped(library: Library) -> None:
    """dmap.h: report returns false to stop: nothing is reported after that, at whatever level it was."""
    # small pages below the first of two level-3 slots
    machine = CffiMachine(library, m.build_map([(0x1000, 0x9E000), (m.GIB, 4 * m.MIB)]))
    reported: list[tuple[int, int]] = []

    def report(_: Any, entry: Any) -> bool:
        reported.append((entry.level, entry.va))
        return len(reported) < stop

    callback = library.ffi.callback("bool(void *, const struct rmpc_dmap_entry *)", report)
    stop = 1 << 20
    library.rmpc_dmap_list(machine.dmap, m.PAGE_OFFSET, 1 << 46, 5, callback, library.ffi.NULL)
    whole = list(reported)
    assert {level for level, _ in whole} == {4, 3, 2, 1}
    for stop in (*range(1, 6), len(whole) - 1, len(whole)):
        reported.clear()
        library.rmpc_dmap_list(machine.dmap, m.PAGE_OFFSET, 1 << 46, 5, callback, library.ffi.NULL)
        assert reported == whole[:stop]


@calls("rmpc_dmap_boot", "rmpc_dmap_lookup")
def test_whole_gigabytes_of_small_pages(library: Library) -> None:
    """direct-map §2.3: a map with "4K" has no large page, however much memory lies around.  (The last round maps 1M to
    2.5G, and the second GiB has no table yet.)"""
    machine = CffiMachine(library, m.build_map([(0, 3 * m.GIB)], large_pages="4K"))
    for at in (0, m.GIB - PAGE, m.GIB, m.GIB + 512 * m.MIB, 2 * m.GIB - PAGE, 3 * m.GIB - PAGE):
        walk = library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + at)
        assert (walk.level, walk.entry[0]) == (1, at | m.SMALL_LEAF)
    assert machine.census() == {"4k": 3 * m.GIB // PAGE, "2m": 0, "1g": 0, "missing": 0}


@calls("rmpc_dmap_put_table", "rmpc_dmap_put_leaf", "rmpc_dmap_census", "rmpc_dmap_validate")
def test_neighbours_of_the_direct_map(library: Library) -> None:
    """Entries right before and behind the direct map's span are not its own, whatever they map."""
    for map_, size in ((m.SMALL_RANDOM, 1 << 46), (m.SMALL_LA57, 1 << 52)):
        machine = CffiMachine(library, map_)
        dmap, first = machine.dmap, map_.page_offset
        census = machine.census()
        pages = iter(range(0x10_0000, 0x20_0000, PAGE))
        for va in (first - m.GIB, first + size):
            for level in range(map_.levels, 3, -1):
                slot = va & -(1 << 12 + 9 * (level - 1)) & m.U64
                status = library.rmpc_dmap_put_table(dmap, slot, level, next(pages) | m.BOOT_TABLE)
                assert status in (library.RMPC_OK, library.RMPC_ERR_STATE)  # a table is there already
            assert library.rmpc_dmap_put_leaf(dmap, va, 3, 5 * m.GIB | m.LARGE_LEAF) == library.RMPC_OK
        assert machine.census() == census
        assert machine.validate() is None


@pytest.mark.parametrize("allowed", [True, False])
@calls("rmpc_adjust_direct_map", "rmpc_dmap_restore")
def test_restore_asks_first(library: Library, allowed: bool) -> None:
    """host §6.4: the large page comes back if the caller says that nobody minds."""
    machine = CffiMachine(library, m.SNP_HOLE, policy="split-restore")
    before = machine.state()
    assert library.rmpc_adjust_direct_map(machine.host, 0x233, 1) == 0
    split = machine.state()
    assert len(split.tables) == len(before.tables) + 2
    asked: list[tuple[int, int]] = []

    def may(_: Any, pfn: int, pages: int) -> bool:
        asked.append((pfn, pages))
        return allowed

    callback = library.ffi.callback("bool(const void *, uint64_t, uint64_t)", may)
    library.rmpc_dmap_restore(machine.dmap, 0x233, callback, library.ffi.NULL)
    after = machine.state()
    assert differences_of_leaves(after, before if allowed else split) == []
    assert asked == [(0x200, 0x200), (0, 1 << 18)][: 1 + allowed]
    if allowed:
        # the table does not fit together: the one above is not asked about
        assert library.rmpc_adjust_direct_map(machine.host, 0x233, 1) == 0
        library.rmpc_dmap_lookup(machine.dmap, m.PAGE_OFFSET + 0x234_000).entry[0] ^= m.NX
        asked.clear()
        library.rmpc_dmap_restore(machine.dmap, 0x233, callback, library.ffi.NULL)
        assert asked == [(0x200, 0x200)]


def differences_of_leaves(mine: State, theirs: State) -> list[str]:
    return list(diff_entries(mine.leaves, theirs.leaves, "mine", "theirs"))[:20]


# ---- the RMP ----


@calls("rmpc_hardware_init", "rmpc_hardware_check")
def test_hardware(library: Library) -> None:
    """docs/rmp.md, "Switches": the parts that are known, and the values that a switch takes."""
    profile = library.new("struct rmpc_hardware *")
    for part, rmpread in (("MILAN", 0), ("GENOA", 0), ("TURIN", 1)):
        assert library.rmpc_hardware_init(profile, getattr(library, f"RMPC_PART_{part}")) == library.RMPC_OK
        assert profile.rmpread == rmpread
        assert library.rmpc_hardware_check(profile) == library.RMPC_OK
    for part in (library.RMPC_PART_END, 1 << 20):
        assert library.rmpc_hardware_init(profile, part) == library.RMPC_ERR_ARGUMENT
    for name, value in (("gpa_bits", 12), ("gpa_bits", 52), ("asid_limit", 0x400), ("vmpls", 0), ("vmpls", 5)):
        library.rmpc_hardware_init(profile, library.RMPC_PART_MILAN)
        setattr(profile, name, value)
        assert library.rmpc_hardware_check(profile) == library.RMPC_ERR_ARGUMENT, (name, value)


@calls("rmpc_rmp_probe", "rmpc_rmp_measure", "rmpc_rmp_init")
def test_where_a_table_can_be(library: Library) -> None:
    """host §1: what the kernel refuses; rmp §1.6: how many frames a table covers."""
    machine = CffiMachine(library, m.SNP)
    kernel, profile = machine.dmap.config.kernel, machine.rmp.hardware
    base, end = m.SNP.rmp or (0, 0)

    def probed(base: int, end: int, max_pfn: int = 0x4000) -> int:
        msrs = library.new("struct rmpc_rmp_msrs *", (base, end, 0))
        where = (library.ffi.addressof(profile), library.ffi.addressof(kernel))
        return int(library.rmpc_rmp_probe(msrs, machine.mem, *where, max_pfn))

    assert probed(base, end) == library.RMPC_OK
    assert probed(0, 0) == library.RMPC_ERR_RMP_NONE
    assert probed(base, base - 1) == library.RMPC_ERR_RMP_ORDER
    assert probed(base, end, 0x10000) == library.RMPC_ERR_RMP_SMALL
    # not above its end, but of one byte; then one byte less than 0x10000 entries need, and as many as they need
    assert probed(base, base) == library.RMPC_ERR_RMP_SMALL
    assert probed(base, base + 0x10_4000 - 2, 0x10000) == library.RMPC_ERR_RMP_SMALL
    assert probed(base, base + 0x10_4000 - 1, 0x10000) == library.RMPC_OK
    # rmp §1.6: (END + 0xfff) >> 12 frames: RMP_END may be the first byte of a page that is no more to be covered, but
    # not the second
    for last, frames in ((0x7000, 7), (0x7001, 8)):
        first = last + 1 - 0x4000 - 16 * frames
        assert probed(first, last, 1) == library.RMPC_OK
        assert probed(first + 1, last, 1) == library.RMPC_ERR_RMP_SMALL
    # host §1: the address bits are 51:13, of both registers
    assert probed(1 << 13, (1 << 13) + 0x44_000 - 1) == library.RMPC_OK
    assert probed(1 << 13, 1 << 13) == library.RMPC_ERR_RMP_SMALL
    assert probed(1 << 52, end) == probed(base, 1 << 52) == probed(1 << 12, end) == library.RMPC_ERR_RMP_NONE
    # a profile that says of the segment table that it is larger than it can be
    profile.segment_limit, profile.segment_cached = 1, 1 << 16
    assert probed(base, end) == library.RMPC_ERR_ARGUMENT
    profile.segment_limit, profile.segment_cached = 0, 512

    def measured(base: int, end: int) -> tuple[int, int]:
        msrs, room = library.new("struct rmpc_rmp_msrs *", (base, end, 0)), library.new("struct rmpc_rmp_room *")
        status = library.rmpc_rmp_measure(msrs, machine.mem, library.ffi.addressof(profile), room)
        return status, room.words

    assert measured(base, end) == (library.RMPC_OK, -(-m.SNP_COVERED // 512))
    assert measured(base, base + 0x4000 + 15) == (library.RMPC_OK, 1)
    assert measured(base, base + 0x4000 + 14)[0] == library.RMPC_ERR_ARGUMENT
    assert measured(base + 8, end)[0] == library.RMPC_ERR_ARGUMENT
    assert measured(base, end + 1)[0] == library.RMPC_ERR_RANGE
    assert measured(base, base - 1)[0] == measured(base, 1 << 52)[0] == library.RMPC_ERR_ARGUMENT
    profile.vmpls, kept = 0, profile.vmpls
    assert measured(base, end)[0] == library.RMPC_ERR_ARGUMENT
    profile.vmpls = kept
    assert probed(base, end, 1 << 61) == library.RMPC_ERR_RMP_SMALL
    assert machine.rmp.frames == m.SNP_COVERED
    rmp, segment = library.new("struct rmpc_rmp *"), library.new("struct rmpc_rmp_segment[]", 1)
    msrs = library.new("struct rmpc_rmp_msrs *", (base, end + 1, 0))
    arguments = (machine.mem, library.ffi.addressof(profile), 0, segment, library.ffi.NULL)
    assert library.rmpc_rmp_init(rmp, msrs, *arguments) == library.RMPC_ERR_RANGE
    msrs.end = end
    assert library.rmpc_rmp_init(rmp, msrs, *arguments) == library.RMPC_OK
    assert (rmp.count, rmp.frames, segment[0].pa) == (1, m.SNP_COVERED, base + 0x4000)


@calls("rmpc_rmp_init", "rmpc_rmp_is_own")
def test_a_table_that_is_set_up(library: Library) -> None:
    """rmp_table.h: whatever lay in the structure; every frame's segment is 0.  rmp §3.6: pages that the table touches
    are its own, to RMP_END."""
    machine = CffiMachine(library, m.SNP)
    profile = library.ffi.addressof(machine.rmp.hardware)
    rmp, segment = library.new("struct rmpc_rmp *"), library.new("struct rmpc_rmp_segment[]", 1)
    base, words = (m.SNP.rmp or (0, 0))[0], library.new("uint32_t[]", 16)
    for first, last, own in (
        (base, base + 0x5000, (0, 5)),
        (base + 0xFF0, base + 0xFF0 + 0x4000 + 15, (0, 4)),
        (base + 0x1000, base + 0x1000 + 0x4000 + 15, (1, 5)),
    ):
        library.ffi.buffer(rmp)[:] = b"\xff" * library.ffi.sizeof("struct rmpc_rmp")
        msrs = library.new("struct rmpc_rmp_msrs *", (first, last, 0))
        assert library.rmpc_rmp_init(rmp, msrs, machine.mem, profile, 0, segment, words) == library.RMPC_OK
        assert (rmp.count, rmp.frames, rmp.in_use_count, rmp.raw) == (1, (last + 1 - first - 0x4000) // 16, 0, False)
        assert (segment[0].pa, segment[0].bytes) == (first + 0x4000, last + 1 - first - 0x4000)
        assert rmp.shift < 64 and (1 << 40) - 1 >> rmp.shift == 0
        pages = {page: own[0] <= page <= own[1] for page in range(-1, 8)}
        assert {page: library.rmpc_rmp_is_own(rmp, (base >> 12) + page) for page in pages} == pages
        # an address of 64 bits would come round to the table
        assert not library.rmpc_rmp_is_own(rmp, (1 << 52) + (base >> 12) + 1)


@calls("rmpc_rmp_init", "rmpc_rmp_touch", "rmpc_rmp_set", "rmpc_vmrun", "rmpc_vmexit")
def test_what_writes_may_pass_by(library: Library) -> None:
    """rmp_table.h, quick: how many entries a write by a 4K mapping and by a larger one may go by; none of them while a
    page in use would refuse it (rmp §3.7), none for large mappings when the head's count may be wrong (§1.2)."""
    outcome, refused = library.new("struct rmpc_outcome *"), library.new("uint64_t *")

    def quick(hardware: str, **switches: int) -> tuple[CffiMachine, Callable[[], tuple[int, int]]]:
        machine = CffiMachine(library, m.SNP, hardware=hardware, switches=switches)
        rmp = machine.rmp
        assert rmp.entries == rmp.segments[0].entries
        return machine, lambda: (rmp.quick[0], rmp.quick[1])

    all_of_them, small, none = (m.SNP_COVERED, m.SNP_COVERED), (m.SNP_COVERED, 0), (0, 0)
    assert quick("milan", subpage_count=0)[1]() == small
    for hardware, running in (("milan", none), ("turin", all_of_them)):
        machine, found = quick(hardware)
        assert found() == all_of_them
        assert library.rmpc_vmrun(machine.rmp, 0x1000, 0, 0, 0, 1, False, outcome, refused) == library.RMPC_OK
        assert found() == running
        assert library.rmpc_vmexit(machine.rmp, 0x1000) == library.RMPC_OK
        assert found() == all_of_them
        # of a frame that is not covered there is nothing to be told
        library.rmpc_rmp_touch(machine.rmp, m.SNP_COVERED)
        assert found() == all_of_them and not machine.rmp.raw
        library.rmpc_rmp_touch(machine.rmp, 0x800)
        assert found() == small
    machine, found = quick("milan")
    assert library.rmpc_rmp_set(machine.rmp, 0x800, (0, 0)) == library.RMPC_OK
    assert found() == small
    machine, found = quick("milan")
    msrs, profile = library.ffi.addressof(machine.rmp.msrs), library.ffi.addressof(machine.rmp.hardware)
    copies = (
        library.new("struct rmpc_rmp_msrs *", msrs[0]),
        machine.mem,
        library.new("struct rmpc_hardware *", profile[0]),
    )
    assert library.rmpc_rmp_init(machine.rmp, *copies, 0, machine.rmp.segments, library.ffi.NULL) == library.RMPC_OK
    assert found() == small


ONE, TWO_MIB = 1, 1 | 1 << 1  # assigned, of 4K and of 2M


@calls("rmpc_rmp_recount", "rmpc_rmp_set", "rmpc_rmp_touch")
@pytest.mark.parametrize(
    ("entries", "right"),
    [
        ({}, True),
        ({0x800: 0}, True),
        ({0x800: ONE}, True),
        ({0x800: 1 << 3, 0x801: ONE}, True),
        ({0x800: 1 << 3 | ONE, 0x9FF: ONE}, True),
        ({0x800: 511 << 3} | dict.fromkeys(range(0x801, 0xA00), ONE), True),
        ({0x800: TWO_MIB} | dict.fromkeys(range(0x801, 0xA00), ONE), True),
        ({0x800: 1 << 3}, False),
        ({0x801: ONE}, False),
        ({0x9FF: ONE}, False),
        ({0x800: 2 << 3, 0x801: ONE}, False),
        ({0x800: 511 << 3} | dict.fromkeys(range(0x802, 0xA00), ONE), False),
        ({0x800: TWO_MIB | 1 << 3} | dict.fromkeys(range(0x801, 0xA00), ONE), False),
        ({0x800: TWO_MIB | 511 << 3} | dict.fromkeys(range(0x801, 0xA00), ONE), False),
        ({0x800: TWO_MIB} | dict.fromkeys(range(0x801, 0x9FF), ONE), False),
        ({0x800: TWO_MIB}, False),
        ({0x800: 1 << 1, 0x801: ONE}, False),
        ({0x800: 1 << 1 | 1 << 3, 0x801: ONE}, True),
    ],
)
def test_counts_that_are_right_are_trusted_again(library: Library, entries: dict[int, int], right: bool) -> None:
    """rmp_table.h, rmpc_rmp_recount(): only where the count is what the entries say (rmp §1.2), of each region."""
    machine = CffiMachine(library, m.SNP)
    rmp = machine.rmp
    word = rmp.segments[0].regions + 0x800 // 512
    for pfn, low in entries.items():
        assert library.rmpc_rmp_set(rmp, pfn, (low, 0)) == library.RMPC_OK
    # the regions beside it, which are right
    for pfn in (0x600, 0xA00):
        assert library.rmpc_rmp_set(rmp, pfn, (ONE, 0)) == library.RMPC_OK
    assert rmp.raw
    library.rmpc_rmp_recount(rmp)
    assert rmp.raw != right
    assert rmp.quick[1] == (m.SNP_COVERED if right else 0)
    # what is trusted and what is not is judged alike: the others of the region
    for pfn in (0x600, 0x601, 0x800, 0x801, 0x9FE, 0xA00, 0xC00):
        first = pfn & ~511
        neighbours = {0x600: ONE, 0xA00: ONE} | entries
        may = not any(neighbours.get(other, 0) & ONE for other in range(first, first + 512))
        outcome = library.rmpc_rmp_check_host_write(rmp, pfn, 2, 0)
        assert (outcome.kind == library.RMPC_OUTCOME_ALLOWED) == may
    library.rmpc_rmp_touch(rmp, 0x800)
    assert rmp.raw and word[0] & 4
    library.rmpc_rmp_recount(rmp)
    assert bool(word[0] & 4) != right


@calls("rmpc_rmp_recount", "rmpc_rmp_set")
def test_without_counts_none_is_trusted(library: Library) -> None:
    """rmp_table.h: where the switch subpage_count is off, counts stored by hand stay as they are."""
    machine = CffiMachine(library, m.SNP, switches={"subpage_count": 0})
    assert library.rmpc_rmp_set(machine.rmp, 0x800, (1 << 3, 0)) == library.RMPC_OK
    assert library.rmpc_rmp_set(machine.rmp, 0x801, (ONE, 0)) == library.RMPC_OK
    library.rmpc_rmp_recount(machine.rmp)
    assert machine.rmp.raw
    assert library.rmpc_rmp_set(machine.rmp, 0x801, (0, 0)) == library.RMPC_OK
    outcome = library.rmpc_rmp_check_host_write(machine.rmp, 0x802, 2, 0)
    assert outcome.kind == library.RMPC_OUTCOME_ALLOWED


@calls("rmpc_rmp_measure", "rmpc_rmp_init")
def test_words_of_many_segments(library: Library) -> None:
    """rmp_table.h: a word for each 2 MiB region, segment after segment; none where nothing is covered; frames: one past
    the highest that is covered."""
    machine = CffiMachine(library, m.SNP)
    profile = library.new("struct rmpc_hardware *")
    library.rmpc_hardware_init(profile, library.RMPC_PART_TURIN)
    profile.segment_min, base = 30, 1 << 20
    # segments 0, 2 and 3 of 1 GiB; 1 and all from 4 on are not covered
    table = [2 << 20 | 1, 0, 8 << 20 | 1, 12 << 20 | 1]
    machine.bytes_at(base + 0x4000, 32)[:] = struct.pack("<4Q", *table)
    msrs, room = library.new("struct rmpc_rmp_msrs *", (base, 0, 30 << 8 | 1)), library.new("struct rmpc_rmp_room *")
    assert library.rmpc_rmp_measure(msrs, machine.mem, profile, room) == library.RMPC_OK
    assert (room.segments, room.words) == (512, 3 * 512)
    rmp, segments = library.new("struct rmpc_rmp *"), library.new("struct rmpc_rmp_segment[]", 512)
    for words in (library.new("uint32_t[]", room.words), library.ffi.NULL):
        assert library.rmpc_rmp_init(rmp, msrs, machine.mem, profile, 0, segments, words) == library.RMPC_OK
        assert (rmp.count, rmp.frames) == (512, 4 << 18)
        null = library.ffi.NULL
        expected = [words, null, words + 512, words + 1024] if words else [null] * 4
        assert [segment.regions for segment in segments[0:5]] == [*expected, null]
        assert [segment.frames for segment in segments[0:5]] == [1 << 18, 0, 1 << 18, 1 << 18, 0]


@calls("rmpc_rmp_measure", "rmpc_sparse_map", "rmpc_sparse_unmap")
def test_a_table_for_more_frames_than_there_are(library: Library) -> None:
    """rmp §1.6: frames below 2^40 are covered, however long the table is."""
    size = (1 << 44) + 0x4000 + PAGE
    part = library.new("struct rmpc_range *", {"base": 0, "size": size})
    assert library.rmpc_sparse_map(part, False) == library.RMPC_OK
    mem = library.new("struct rmpc_mem *", {"ranges": part, "count": 1})
    profile = library.new("struct rmpc_hardware *")
    library.rmpc_hardware_init(profile, library.RMPC_PART_MILAN)
    msrs, room = library.new("struct rmpc_rmp_msrs *", (0, size - 1, 0)), library.new("struct rmpc_rmp_room *")
    assert library.rmpc_rmp_measure(msrs, mem, profile, room) == library.RMPC_OK
    assert (room.segments, room.words) == (1, (1 << 40) // 512)
    library.rmpc_sparse_unmap(part)


@calls("rmpc_rmp_probe", "rmpc_rmp_measure")
def test_where_a_segmented_table_can_be(library: Library) -> None:
    """rmp §1.7: not where there is no memory: for the segment table, for the bookkeeping, for a segment."""
    machine = CffiMachine(library, m.SNP)
    profile = library.new("struct rmpc_hardware *")
    library.rmpc_hardware_init(profile, library.RMPC_PART_TURIN)
    profile.segment_min = 30
    kernel = library.new("struct rmpc_kernel *")
    library.rmpc_kernel_init(kernel, 6, 14)
    room = library.new("struct rmpc_rmp_room *")
    base, cfg = 1 << 20, 30 << 8 | 1

    def found(base: int, shift: int = 30) -> tuple[int, int]:
        msrs = library.new("struct rmpc_rmp_msrs *", (base, 0, shift << 8 | 1))
        probed = library.rmpc_rmp_probe(msrs, machine.mem, profile, kernel, 0x4000)
        return probed, library.rmpc_rmp_measure(msrs, machine.mem, profile, room)

    outside = 1 << 45
    assert found(outside) == (library.RMPC_ERR_RANGE, library.RMPC_ERR_RANGE)
    no_place = (library.RMPC_ERR_RMP_SEGMENT, library.RMPC_ERR_RMP_CONFIG)
    assert found(base, 52) == found(base, 29) == no_place
    # one entry: 1 GiB, its table where no memory is; then where memory is
    for at, status in ((outside, "ERR_RANGE"), (4 << 20, "OK")):
        machine.bytes_at(base + 0x4000, 8)[:] = struct.pack("<Q", at | 1)
        assert found(base) == (library.RMPC_OK, getattr(library, f"RMPC_{status}"))
    # memory in the last segment that addresses of 52 bits can name
    profile.segment_max = 51
    last = library.new("struct rmpc_rmp_msrs *", (base, 0, 51 << 8 | 1))
    machine.bytes_at(base + 0x4008, 16)[:] = struct.pack("<QQ", 4 << 20 | 1, 4 << 20 | 1)
    for top, status in (((1 << 39) + 5, "OK"), ((1 << 40) + 1, "ERR_RMP_COVER")):  # the next one is past them all
        probed = library.rmpc_rmp_probe(last, machine.mem, profile, kernel, top)
        assert probed == getattr(library, f"RMPC_{status}"), hex(top)
    # the bookkeeping lies in memory, the segment table after it does not; then the other way round
    msrs = library.new("struct rmpc_rmp_msrs *", (base, 0, cfg))
    before = CffiMachine(library, m.build_map([(0, 0x10_4000)], e820=[(0, 0x10_4000, 1)]))
    assert library.rmpc_rmp_measure(msrs, before.mem, profile, room) == library.RMPC_ERR_RANGE
    # nor does the last byte of it, when the kernel reads it
    half = CffiMachine(library, m.build_map([(0, 0x10_5000)], e820=[(0, 0x10_5000, 1)]))
    msrs.base = base + 0x800
    assert library.rmpc_rmp_probe(msrs, half.mem, profile, kernel, 0x105) == library.RMPC_ERR_RANGE
    msrs.base = base
    beyond = CffiMachine(library, m.build_map([(0x10_4000, 8 << 20)], e820=[(0x10_4000, 8 << 20, 1)]))
    beyond.bytes_at(base + 0x4000, 8)[:] = struct.pack("<Q", 4 << 20 | 1)
    assert library.rmpc_rmp_measure(msrs, beyond.mem, profile, room) == library.RMPC_ERR_RANGE


@calls("rmpc_rmp_init", "rmpc_machine_apply")
def test_a_table_without_words(library: Library) -> None:
    """rmp_table.h: words may be NULL; then each entry is looked at each time, and all comes to the same."""
    machine = CffiMachine(library, m.SNP)
    rmp = machine.rmp
    msrs = library.new("struct rmpc_rmp_msrs *", rmp.msrs)
    profile = library.new("struct rmpc_hardware *", rmp.hardware)
    arguments = (msrs, machine.mem, profile, 0, rmp.segments, library.ffi.NULL)
    assert library.rmpc_rmp_init(rmp, *arguments) == library.RMPC_OK
    machine.record_events(True)
    oracle = oracle_of(m.SNP)
    ops = [
        make_op("SNP_INIT"),
        make_op("rmp_make_private", pfn=0x233, gpa=0x5000, level=1, asid=5),
        make_op("rmp_make_private", pfn=0x400, gpa=0x20_0000, level=2, asid=5),
        *(
            make_op("access", who=0, access=1, pa=pfn << 12, level=level)
            for pfn in (0x232, 0x633)
            for level in (1, 2, 3)
        ),
        make_op("host_write", pfn=0x234),
        make_op("host_write", pfn=0x801),
        make_op("PSMASH", pa=0x400_000),
        make_op("rmp_make_shared", pfn=0x233, level=1),
        make_op("rmp_mark_pages_firmware", pfn=0x800, pages=2),
        make_op("SNP_PAGE_RECLAIM", pa=0x800_000),
        make_op("dump_rmpentry", pfn=0x633),
        make_op("SNP_SHUTDOWN", iommu=1),
        make_op("SNP_INIT"),
    ]
    for op in ops:
        assert machine.apply(op) == oracle.apply(op), op
        assert machine.take_events().tobytes() == oracle.take_events().tobytes(), op
    assert differences(machine.state(), oracle.state()) == []


@calls("rmpc_machine_apply")
def test_a_region_that_somebody_works_in(library: Library) -> None:
    """rmp §2.9: FAIL_INUSE, FAIL_OVERLAP if it is the firmware (§1.3), and nothing is looked at; what is changed
    is counted, and never comes back to "never changed"."""
    machine = CffiMachine(library, m.SNP)
    words = machine.rmp.segments[0].regions
    before = machine.state()
    update = {"gpa": 0x5000, "assigned": 1, "size": 0, "asid": 5}
    ops = (make_op("RMPUPDATE", pa=0x233_000, **update), make_op("PSMASH", pa=0x200_000))
    busy, firmware, step = 1, 2, 8  # as the words say it
    for word, code in ((busy, m.FAIL_INUSE), (busy | firmware, m.FAIL_OVERLAP)):
        for op in ops:
            words[1] = word
            result = machine.apply(op)
            assert (result.kind, result.ret) == (Kind.CODE, code)
            assert words[1] == word
    words[1] = 0
    assert machine.state().rmp.tolist() == before.rmp.tolist()
    words[1] = 2**32 - step
    assert machine.apply(ops[0]).ret == m.SUCCESS
    assert words[1] == step
    assert [pfn for pfn, _, _ in machine.state().rmp.tolist()] == [0x200, 0x233]


@calls("rmpc_rmp_get", "rmpc_rmp_set", "rmpc_rmp_touch", "rmpc_rmp_next_used", "rmpc_rmp_is_own")
def test_entries_are_in_the_bytes(library: Library) -> None:
    """rmp §1.6: RMP_BASE + 0x4000 + 16 times the frame, low quadword first."""
    machine = CffiMachine(library, m.SNP)
    base, end = m.SNP.rmp or (0, 0)

    def place(pfn: int) -> Any:
        return machine.bytes_at(base + 0x4000 + 16 * pfn, 16)

    machine.write_rmp(0x233, 0x1122, 0x3344)
    assert place(0x233)[:] == struct.pack("<QQ", 0x1122, 0x3344)
    place(0x800)[:] = struct.pack("<QQ", 0x55, 0x66)
    assert machine.read_rmp(0x800) == (0x55, 0x66)
    next_used = library.rmpc_rmp_next_used
    # a region that the library has not changed is not read before it is told
    assert (next_used(machine.rmp, 0), next_used(machine.rmp, 0x234)) == (0x233, m.SNP_COVERED)
    library.rmpc_rmp_touch(machine.rmp, 0x800)
    assert (next_used(machine.rmp, 0x234), next_used(machine.rmp, 0x801)) == (0x800, m.SNP_COVERED)
    library.rmpc_rmp_touch(machine.rmp, 1 << 40)
    # its count is not gone by any more (rmp §1.2), and the region is free to be changed
    place(0x803)[:] = struct.pack("<QQ", m.ASSIGNED, 0)
    place(0x800)[:] = bytes(16)
    library.rmpc_rmp_touch(machine.rmp, 0x800)
    assert library.rmpc_rmp_check_host_write(machine.rmp, 0x801, 2, 0).reason == library.RMPC_REASON_NEIGHBOUR
    assert machine.apply(make_op("RMPUPDATE", pa=0x805_000, gpa=0, assigned=0, size=0, asid=0)).ret == m.SUCCESS
    entry = library.new("struct rmpc_rmp_entry *", (7, 7))
    for pfn in (m.SNP_COVERED, 1 << 40, NO_PAGE):
        assert library.rmpc_rmp_get(machine.rmp, pfn, entry) == library.RMPC_ERR_ARGUMENT
        assert library.rmpc_rmp_set(machine.rmp, pfn, entry[0]) == library.RMPC_ERR_ARGUMENT
    assert (entry.lo, entry.hi) == (7, 7)
    own = {(base >> 12) - 1: False, base >> 12: True, end >> 12: True, (end >> 12) + 1: False, 1 << 52: False}
    assert {pfn: library.rmpc_rmp_is_own(machine.rmp, pfn) for pfn in own} == own


@calls("rmpc_rmpupdate", "rmpc_psmash", "rmpc_rmpread", "rmpc_pvalidate", "rmpc_rmpadjust", "rmpc_rmpquery")
def test_instructions_without_an_rmp(library: Library) -> None:
    """rmp §2.1: #UD.  What would be written is left alone."""
    cpu, null = library.new("struct rmpc_cpu *"), library.ffi.NULL
    state = library.new("struct rmpc_rmp_state *", (5, 6))
    rcx, rdx = library.new("uint64_t *", 7), library.new("uint64_t *", 8)
    outcomes = [
        library.rmpc_rmpupdate(null, cpu, 0, state[0]),
        library.rmpc_psmash(null, cpu, 0),
        library.rmpc_rmpread(null, cpu, 0, state),
    ]
    cpu.mode = (5, 0, False, True)
    outcomes += [
        library.rmpc_pvalidate(null, cpu, 0, 0, 1, null),
        library.rmpc_rmpadjust(null, cpu, 0, 0, 1, null),
        library.rmpc_rmpquery(null, cpu, 0, rcx, rdx, null),
    ]
    assert [(one.kind, one.code) for one in outcomes] == 6 * [(library.RMPC_OUTCOME_FAULT, library.RMPC_VECTOR_UD)]
    assert not any(one.transient or one.cf for one in outcomes)  # outcome.h: both are of codes
    assert (state.gpa, state.high, rcx[0], rdx[0]) == (5, 6, 7, 8)
    assert library.ffi.buffer(library.ffi.addressof(cpu, "counters"))[:] == bytes(48)


@calls("rmpc_pvalidate", "rmpc_rmpadjust", "rmpc_rmpquery")
def test_guest_addresses_without_a_page(library: Library) -> None:
    """rmp_insn.h: page NULL: #PF with error code 0."""
    machine, null = CffiMachine(library, m.SNP, hardware="genoa"), library.ffi.NULL
    rcx, rdx = library.new("uint64_t *", 7), library.new("uint64_t *", 1)
    machine.cpu.mode = (5, 0, False, True)
    for outcome in (
        library.rmpc_pvalidate(machine.rmp, machine.cpu, 0xABC000, 0, 1, null),
        library.rmpc_rmpadjust(machine.rmp, machine.cpu, 0xABC000, 0, 1, null),
        library.rmpc_rmpquery(machine.rmp, machine.cpu, 0xABC000, rcx, rdx, null),
    ):
        assert (outcome.kind, outcome.code) == (library.RMPC_OUTCOME_FAULT, library.RMPC_VECTOR_PF)
        assert (outcome.info, outcome.address) == (0, 0xABC000)


@calls("rmpc_cpu_inject")
def test_injected_codes_are_few(library: Library) -> None:
    cpu = library.new("struct rmpc_cpu *")
    for code, count in ((256, 1), (1 << 40, 1), (4, 0), (4, (1 << 20) + 1)):
        assert library.rmpc_cpu_inject(cpu, code, count) == library.RMPC_ERR_ARGUMENT
    assert cpu.inject.count == 0
    for number in range(library.RMPC_INJECT_RUNS):
        assert library.rmpc_cpu_inject(cpu, number, 1 << 20) == library.RMPC_OK
    assert library.rmpc_cpu_inject(cpu, 0, 1) == library.RMPC_ERR_FULL


@calls("rmpc_in_use_add", "rmpc_vmrun", "rmpc_vmexit")
def test_pages_in_use_are_few(library: Library) -> None:
    """rmp §3.7, and what no VMRUN can be."""
    machine = CffiMachine(library, m.SNP)
    outcome, refused = library.new("struct rmpc_outcome *"), library.new("uint64_t *")

    def run(vmcb: int, vmsa: int = 0, avic: int = 0) -> int:
        return int(library.rmpc_vmrun(machine.rmp, vmcb, vmsa, avic, 0, 1, False, outcome, refused))

    assert run(0x1000) == library.RMPC_OK and outcome.kind == library.RMPC_OUTCOME_ALLOWED
    assert run(0x1000) == run(0x2001) == run(0x2000, 0x3001) == run(0x2000, 0, 8) == library.RMPC_ERR_ARGUMENT
    machine.write_rmp(3, m.ASSIGNED, 0)
    assert run(0x2000, 0, 0x3000) == library.RMPC_OK
    assert (outcome.kind, refused[0]) == (library.RMPC_OUTCOME_INVALID, 0x3000)
    assert machine.state().in_use == ((1, 0, 0),)
    assert library.rmpc_vmexit(machine.rmp, 0x2000) == library.RMPC_ERR_ARGUMENT
    assert library.rmpc_vmexit(machine.rmp, 0x1000) == library.RMPC_OK
    for frames in ((1 << 40, 0, 0), (1, 1 << 40, 0), (1, 0, 1 << 40)):
        assert library.rmpc_in_use_add(machine.rmp, frames) == library.RMPC_ERR_ARGUMENT
    for number in range(library.RMPC_IN_USE):
        assert library.rmpc_in_use_add(machine.rmp, (0x100 + number, 0, 0)) == library.RMPC_OK
    assert library.rmpc_in_use_add(machine.rmp, (0x100, 0, 0)) == library.RMPC_ERR_ARGUMENT
    assert library.rmpc_in_use_add(machine.rmp, (0x99, 0, 0)) == library.RMPC_ERR_FULL
    assert run(0x1000) == library.RMPC_ERR_FULL


@calls("rmpc_machine_apply")
def test_nothing_is_written_past_a_table(library: Library) -> None:
    """rmp §4.2 SNP_INIT: a hole in memory whose last frame is the first that is not covered."""
    frames, hole, base = 0x3F08, 0x3F00, 1 << 32
    memory = [(0, hole << 12), (frames + 1 << 12, 16 * PAGE)]
    end = base + 0x4000 + 16 * frames
    machine = CffiMachine(library, m.build_map(memory, rmp=(base, end - 1), rmp_probed=False))
    machine.bytes_at(end, 16)[:] = bytes(range(16))
    assert machine.apply(make_op("SNP_INIT")).ret == 0
    assert machine.bytes_at(end - 16, 32)[:] == struct.pack("<QQ", m.IMMUTABLE, 0) + bytes(range(16))


@calls("rmpc_firmware_command")
def test_counters_that_are_cleared(library: Library) -> None:
    """rmp §1.6: 2048 counters, those of ASIDs that no processor has as well; not the segment table after them."""
    areas = SegmentedRmp(1 << 30, 30 << 8 | 1, ((1 << 30) + (2 << 20) | 1,))
    map_ = m.build_map([(0, 64 << 20)], segmented=areas, rmp_probed=False)
    machine = CffiMachine(library, map_, hardware="turin", kernel="6.14", switches={"segment_min": 30})
    counters, table = machine.bytes_at(1 << 30, 0x4000), machine.bytes_at((1 << 30) + 0x4000, 8)
    counters[:] = b"\xa5" * 0x4000
    before = table[:]
    # as a saved state has them; SNP_INIT leaves none
    assert library.rmpc_firmware_add_context(machine.firmware, (5, 5)) == library.RMPC_OK
    assert library.rmpc_firmware_add_record(machine.firmware, (0x80, 5, 1, 0x1000, 2)) == library.RMPC_OK
    operands = library.new("struct rmpc_operands *")
    assert library.rmpc_firmware_command(machine.firmware, library.RMPC_SNP_INIT, operands) == library.RMPC_FW_SUCCESS
    assert counters[:] == bytes(0x4000)
    assert (machine.firmware.context_count, machine.firmware.record_count) == (0, 0)
    assert table[:] == before != bytes(8)


@calls("rmpc_firmware_command")
def test_permissions_of_vmpl0_are_no_operand(library: Library) -> None:
    """firmware.h, permissions: at 1 to 3; rmp §4.2 SNP_LAUNCH_UPDATE: VMPL0's byte stays, the others are replaced."""
    machine = CffiMachine(library, m.SNP)
    machine.write_rmp(0x800, m.ASSIGNED | m.IMMUTABLE | m.LOCK | m.VMSA, 0)
    machine.write_rmp(0x801, m.ASSIGNED | m.IMMUTABLE | m.LOCK | 5 << 51, 0x8000_0000_FFFF_FF9F)
    machine.firmware.ready = True
    assert library.rmpc_firmware_add_context(machine.firmware, (0x800, 5)) == library.RMPC_OK
    fields = {"page": 0x801_000, "gctx": 0x800_000, "type": 1, "permissions": [0xE0, 1, 3, 7]}
    operands = library.new("struct rmpc_operands *", fields)
    status = library.rmpc_firmware_command(machine.firmware, library.RMPC_SNP_LAUNCH_UPDATE, operands)
    assert status == library.RMPC_FW_SUCCESS
    assert machine.read_rmp(0x801) == (m.ASSIGNED | m.VALIDATED | 5 << 51, 0x8000_0000_0703_019F)


@calls("rmpc_firmware_command", "rmpc_firmware_add_context", "rmpc_firmware_add_record")
def test_what_no_firmware_has(library: Library) -> None:
    machine = CffiMachine(library, m.SNP)
    before = machine.state()
    operands = library.new("struct rmpc_operands *")
    machine.firmware.ready = True
    for command in (0, 0x80, 0xFF, 1 << 20):
        status = library.rmpc_firmware_command(machine.firmware, command, operands)
        assert status == library.RMPC_FW_INVALID_PARAM
    machine.firmware.ready = False
    contexts = (((5, 5), "OK"), ((5, 6), "ERR_ARGUMENT"), ((4, 0), "ERR_ARGUMENT"), ((1 << 40, 0), "ERR_ARGUMENT"))
    for context, status in (*contexts, ((6, 0x400), "ERR_ARGUMENT"), ((6, 0), "OK"), ((7, 0x3FF), "OK")):
        assert library.rmpc_firmware_add_context(machine.firmware, context) == getattr(library, f"RMPC_{status}")
    records = (
        ((0x80, 5, 1, 0x1000, 2), "OK"),
        ((0x80, 5, 0, 0, 0), "ERR_ARGUMENT"),
        ((0x40, 5, 0, 0, 0), "ERR_ARGUMENT"),
        ((0xC1, 5, 0, 0, 0), "ERR_ARGUMENT"),
        ((0xC0, 1 << 40, 0, 0, 0), "ERR_ARGUMENT"),
        ((0xC0, 5, 16, 0, 0), "ERR_ARGUMENT"),
        ((0xC0, 5, 0, 1, 0), "ERR_ARGUMENT"),
        ((1 << 52, 5, 0, 0, 0), "ERR_ARGUMENT"),
    )
    for record, status in records:
        assert library.rmpc_firmware_add_record(machine.firmware, record) == getattr(library, f"RMPC_{status}"), record
    state = machine.state()
    assert (state.contexts, state.records) == (((5, 5), (6, 0), (7, 0x3FF)), ((0x80, 5, 1, 0x1000, 2),))
    assert differences(m.changed(state, contexts=(), records=()), before) == []
    machine.firmware.context_count, machine.firmware.record_count = library.RMPC_CONTEXTS, library.RMPC_RECORDS
    assert library.rmpc_firmware_add_context(machine.firmware, (8, 0)) == library.RMPC_ERR_FULL
    assert library.rmpc_firmware_add_record(machine.firmware, (0x100, 5, 0, 0, 0)) == library.RMPC_ERR_FULL


@calls("rmpc_access_is_valid", "rmpc_rmp_check", "rmpc_rmp_check_all")
def test_many_accesses_at_once(library: Library) -> None:
    """As one by one; the first that cannot be ends it."""
    machine = CffiMachine(library, m.SNP)
    machine.write_rmp(0x233, m.ASSIGNED, 0)
    host, write = library.RMPC_WHO_HOST, library.RMPC_WRITE
    rows = [{"pa": pfn << 12, "who": host, "kind": write, "level": level} for pfn in (0x232, 0x233) for level in (1, 2)]
    accesses = library.new("struct rmpc_access[]", [*rows, {"level": 4}, *rows])
    outcomes = library.new("struct rmpc_outcome[]", len(accesses))
    outcomes[4].code = 77
    done = library.new("size_t *")
    status = library.rmpc_rmp_check_all(machine.rmp, accesses, len(accesses), outcomes, done)
    assert (status, done[0], outcomes[4].code) == (library.RMPC_ERR_ARGUMENT, 4, 77)
    # rmp §3.2: the page itself, and by a large mapping what stands beside it
    reasons = [library.RMPC_REASON_NONE, library.RMPC_REASON_NEIGHBOUR, library.RMPC_REASON_ASSIGNED]
    assert [one.reason for one in outcomes[0:4]] == [*reasons, library.RMPC_REASON_ASSIGNED]
    assert [one.info for one in outcomes[0:4]] == [0, 0x8000_0003, 0x8000_0003, 0x8000_0003]
    for access, outcome in zip(accesses[0:4], outcomes[0:4], strict=True):
        assert library.rmpc_access_is_valid(library.new("struct rmpc_access *", access), 4)
        single = library.rmpc_rmp_check(machine.rmp, library.new("struct rmpc_access *", access))
        assert library.ffi.buffer(library.new("struct rmpc_outcome *", single))[:] == as_bytes(library, outcome)
    assert library.rmpc_rmp_check_all(machine.rmp, accesses, 0, outcomes, done) == library.RMPC_OK and done[0] == 0
    assert library.rmpc_rmp_check(library.ffi.NULL, accesses + 1).kind == library.RMPC_OUTCOME_ALLOWED
    # a part may have fewer VMPLs; without an RMP there are four
    machine.rmp.hardware.vmpls, guests = 2, library.new("struct rmpc_access[]", [{"level": 1, "vmpl": 3}])
    assert library.rmpc_rmp_check_all(machine.rmp, guests, 1, outcomes, done) == library.RMPC_ERR_ARGUMENT
    assert library.rmpc_rmp_check_all(library.ffi.NULL, guests, 1, outcomes, done) == library.RMPC_OK
    bad = ({"level": 0}, {"level": 4}, {"who": library.RMPC_WHO_END}, {"kind": library.RMPC_ACCESS_END}, {"vmpl": 4})
    for fields in bad:
        access = library.new("struct rmpc_access *", {"level": 1} | fields)
        assert not library.rmpc_access_is_valid(access, 4), fields


def as_bytes(library: Library, record: Any) -> bytes:
    return bytes(library.ffi.buffer(library.ffi.addressof(record)))


@calls("rmpc_rmp_check_host_write", "rmpc_rmp_is_hypervisors")
def test_writes_of_the_host(library: Library) -> None:
    """rmp §3.2, over whole regions: the short way is the long way, and the oracle's."""
    machine, oracle = CffiMachine(library, m.SNP), oracle_of(m.SNP)
    for one in (machine, oracle):
        one.write_rmp(0x233, m.ASSIGNED | 5 << 51, 0)
        one.write_rmp(0x600, m.ASSIGNED | m.SIZE_2M, 0)
    for pfn in (*range(0x1FE, 0x236), 0x3FF, 0x400, 0x5FF, 0x600, 0x601, 0x7FF, 0x800, m.SNP_COVERED, 1 << 39):
        for level in (1, 2, 3):
            short = library.rmpc_rmp_check_host_write(machine.rmp, pfn, level, 0xABC000)
            fields = {"pa": pfn << 12, "kind": library.RMPC_WRITE, "level": level, "va": 0xABC000}
            long = library.rmpc_rmp_check(machine.rmp, library.new("struct rmpc_access *", fields))
            assert as_bytes(library, short) == as_bytes(library, long), (pfn, level)
            op = make_op("access", who=0, access=1, pa=pfn << 12, level=level, gva=0xABC000)
            result = library.new("struct rmpc_result *")
            library.rmpc_result_of(short, result)
            assert Result(*(getattr(result, name) for name in Result._fields)) == oracle.apply(op), (pfn, level)
    free = {(0, 512): True, (0x200, 512): False, (0x400, 512): True, (0, 1024): False, (0x600, 512): False}
    free |= {(0x800, 1 << 18): True, (m.SNP_COVERED & ~0x1FF, 1024): True, (1 << 40, 512): True}
    assert {where: library.rmpc_rmp_is_hypervisors(machine.rmp, *where) for where in free} == free
    # a region of which the first page alone is covered
    rmp = (1 << 32, (1 << 32) + 0x4000 + 16 * 0x201 - 1)
    short = CffiMachine(library, m.build_map([(0, 64 << 20)], rmp=rmp, rmp_probed=False))
    assert library.rmpc_rmp_is_hypervisors(short.rmp, 0x200, 512)
    short.write_rmp(0x200, m.ASSIGNED, 0)
    assert not library.rmpc_rmp_is_hypervisors(short.rmp, 0x200, 512)


@calls("rmpc_rmp_end_blocks")
def test_blocks_at_the_ends(library: Library) -> None:
    """host §1: blocks that the table fills in part, if some byte of them is usable; no more are written than fit."""
    machine = CffiMachine(library, m.SNP_TIGHT)
    # a table in one piece has two ends, wherever its entries may be
    machine.rmp.segments[0].pa = (1 << 32) + 0x70_0000
    usable = library.new("struct rmpc_extent[]", [((1 << 32) - 0x1000, 0x1000), ((1 << 32) + 0x60000, 0x1000000)])
    blocks = library.new("struct rmpc_extent[]", [(7, 7)] * 3)
    assert library.rmpc_rmp_end_blocks(machine.rmp, usable, 2, blocks, 0) == 1
    assert (blocks[0].base, blocks[0].size) == (7, 7)
    assert library.rmpc_rmp_end_blocks(machine.rmp, usable, 2, blocks, 3) == 1
    assert [(one.base, one.size) for one in blocks[0:2]] == [(1 << 32, 0x20_0000), (7, 7)]
    assert library.rmpc_rmp_end_blocks(machine.rmp, usable, 1, blocks, 3) == 0
    # RMP_END is the last byte: this one is the first of a block, the next the first that could be usable
    machine.rmp.msrs.end = (1 << 32) + 0x40_0000
    assert library.rmpc_rmp_end_blocks(machine.rmp, usable, 2, blocks, 3) == 1
    assert blocks[0].base == (1 << 32) + 0x40_0000
    machine.rmp.msrs.end -= 1
    assert library.rmpc_rmp_end_blocks(machine.rmp, usable, 2, blocks, 3) == 0


@calls("rmpc_rmp_end_blocks")
def test_blocks_of_many_segments(library: Library) -> None:
    """host §1: both ends of each segment's table; each block once, in order, wherever the tables lie."""
    machine = CffiMachine(library, m.SNP)
    segments = library.new("struct rmpc_rmp_segment[]", 3)
    mib = 1 << 20
    for segment, (pa, size) in zip(segments, ((41 * mib, 2 * mib), (20 * mib, 3 * mib), (43 * mib, mib)), strict=True):
        segment.pa, segment.bytes = pa, size
    rmp = library.new("struct rmpc_rmp *", machine.rmp[0])
    rmp.segments, rmp.count = segments, 3
    # the bookkeeping ends in the block where the first segment's table begins
    rmp.msrs.base, rmp.msrs.cfg = 40 * mib, 1
    usable = library.new("struct rmpc_extent[]", [(0, 64 * mib)])
    blocks = library.new("struct rmpc_extent[]", [(7, 7)] * 5)
    expected = [22 * mib, 40 * mib, 42 * mib]
    assert library.rmpc_rmp_end_blocks(rmp, usable, 1, blocks, 5) == 3
    assert [(one.base, one.size) for one in blocks] == [*((base, 2 * mib) for base in expected), (7, 7), (7, 7)]
    # the first that there is room for, though one that comes before them is found last
    segments[2].pa = segments[2].bytes = 0
    for segment, pa in zip(segments, (41 * mib, 20 * mib), strict=False):
        segment.pa = pa
    for room in (1, 2):
        blocks = library.new("struct rmpc_extent[]", [(7, 7)] * 3)
        assert library.rmpc_rmp_end_blocks(rmp, usable, 1, blocks, room) == 3
        assert [one.base for one in blocks] == [*expected[:room], *[7] * (3 - room)]


@calls("rmpc_insn_decode")
def test_decoding(library: Library) -> None:
    """rmp §2.1: the bytes of the six, prefixes, and what is cut short."""
    ends = (("RMPUPDATE", "f2", "fe"), ("PSMASH", "f3", "ff"), ("RMPREAD", "f2", "fd"))
    for name, prefix, last in (*ends, ("PVALIDATE", "f2", "ff"), ("RMPADJUST", "f3", "fe"), ("RMPQUERY", "f3", "fd")):
        code = bytes.fromhex(f"{prefix}0f01{last}")
        insn = getattr(library, f"RMPC_INSN_{name}")
        for before, long_mode, expected in (
            (b"", True, (insn, 4, False)),
            (b"", False, (insn, 4, False)),
            (b"\x67", True, (insn, 5, True)),
        ):
            found = library.rmpc_insn_decode(before + code + b"\x90", len(before) + 5, long_mode)
            assert (found.insn, found.length, found.short_address) == expected
        rex = code[:1] + b"\x48" + code[1:]
        assert library.rmpc_insn_decode(rex, 5, True).insn == insn
        assert library.rmpc_insn_decode(rex, 5, False).insn == library.RMPC_INSN_NONE
        for size in range(4):
            found = library.rmpc_insn_decode(code, size, True)
            assert (found.insn, found.length) == (library.RMPC_INSN_NONE, 0)
    assert not library.rmpc_insn_decode(b"\x67", 0, True).short_address  # of no byte at all
    for other in ("0f01fe", "f20f01fc", "f20f00fe", "f390", "6666"):
        code = bytes.fromhex(other)
        assert library.rmpc_insn_decode(code, len(code), True).insn == library.RMPC_INSN_NONE


@calls("rmpc_insn_execute", "rmpc_result_of")
def test_execute(library: Library) -> None:
    """A page's life by bytes and registers (rmp §2), with the oracle beside it."""
    machine, oracle = CffiMachine(library, m.SNP, hardware="turin"), oracle_of(m.SNP, hardware="turin")
    pa, gva, guest = 0x400_000, 0x7F00_0000_0000, Cpu(asid=5)
    head, small = Page(pa, 0x20_0000, 2), Page(pa, 0x20_0000, 1)
    assign = struct.pack("<QQ", 0x20_0000, 1 | 1 << 8 | 5 << 32)
    steps: list[tuple[str, Registers, Cpu, bytes | None, Page | None]] = [
        ("f20f01fe", Registers(rax=pa, rcx=0x1000), Cpu(), None, None),
        ("f20f01fe", Registers(rax=pa, rcx=0x1000), Cpu(cpl=3), assign, None),
        ("f20f01fe", Registers(rax=pa, rcx=0x1000), Cpu(), assign, None),
        ("f20f01fd", Registers(rax=pa, rcx=0x1000), Cpu(), None, None),
        ("f20f01ff", Registers(rax=gva, rcx=0, rdx=1, rip=0x100), guest, None, small),
        ("f20f01ff", Registers(rax=gva, rcx=1, rdx=1, rip=0x100), guest, None, None),
        ("f20f01ff", Registers(rax=gva, rcx=1, rdx=1, rip=0x100), guest, None, head),
        ("f20f01ff", Registers(rax=gva, rcx=1, rdx=1, rip=0x100), guest, None, head),
        ("f30f01fe", Registers(rax=gva, rcx=1, rdx=1 | 7 << 8), guest, None, head),
        ("f30f01fd", Registers(rax=gva, rdx=1), guest, None, head),
        ("f30f01ff", Registers(rax=pa), Cpu(asid=5), None, None),
        ("f30f01ff", Registers(rax=pa), Cpu(mode=32), None, None),
        ("f3480f01ff", Registers(rax=pa, rflags=0x46), Cpu(), None, None),
        ("0f01fe", Registers(rax=pa), Cpu(), None, None),
    ]
    names = set()
    for code, registers, cpu, operand, page in steps:
        arguments = (bytes.fromhex(code), registers, cpu, operand, page)
        mine = machine.execute(*arguments)
        assert mine == oracle.execute(*arguments), arguments
        names.add(mine.name)
    assert len(names) == 7
    assert machine.read_rmp(pa >> 12)[0] & (m.ASSIGNED | m.SIZE_2M | m.VALIDATED) == m.ASSIGNED | m.VALIDATED
    assert differences(machine.state(), oracle.state()) == []


@calls("rmpc_insn_execute")
@pytest.mark.parametrize(("code", "asid"), [("f20f01fe", 0), ("f20f01fd", 0), ("f20f01ff", 5)])
@pytest.mark.parametrize("error", [None, 0x2])
def test_operands_that_fault(library: Library, code: str, asid: int, error: int | None) -> None:
    """rmp §2.1: #PF of a memory operand; registers stay, nothing is counted and no event given.  A callback that says
    nothing of the error code means 0."""
    machine, ffi = CffiMachine(library, m.SNP, hardware="turin"), library.ffi
    machine.record_events(True)
    before = machine.state()

    def refuse(user: Any, va: int, data: Any, code_out: Any) -> bool:
        if error is not None:
            code_out[0] = error
        return False

    memory = library.new("struct rmpc_memory *")
    memory.read = read = ffi.callback("bool(void *, uint64_t, struct rmpc_rmp_state *, uint64_t *)", refuse)
    memory.write = write = ffi.callback("bool(void *, uint64_t, const struct rmpc_rmp_state *, uint64_t *)", refuse)
    memory.translate = walk = ffi.callback("bool(void *, uint64_t, struct rmpc_page *, uint64_t *)", refuse)
    rcx = 0 if asid else 0x1000
    own = library.new("struct rmpc_registers *", (0x400_000, rcx, 1, 0x100, 2))
    machine.cpu.mode = (asid, 0, False, True)
    outcome = library.rmpc_insn_execute(
        machine.rmp,
        machine.cpu,
        library.RMPC_MODE_LONG,
        bytes.fromhex(code),
        4,
        own,
        memory,
        library.new("struct rmpc_decoded *"),
    )
    del read, write, walk
    assert (outcome.kind, outcome.code) == (library.RMPC_OUTCOME_FAULT, 14)
    assert (outcome.info, outcome.address) == (error or 0, 0x400_000 if asid else rcx)
    assert (own.rax, own.rcx, own.rdx, own.rip, own.rflags) == (0x400_000, rcx, 1, 0x100, 2)
    machine.cpu.mode = (0, 0, False, False)
    assert differences(machine.state(), before) == []
    assert len(machine.take_events()) == 0


@calls("rmpc_insn_execute")
def test_what_comes_before_a_walk_that_fails(library: Library) -> None:
    """rmp §2.1, steps 1 to 3 of execute: the walk's error code is the #PF's alone: not #GP(0)'s, nor a code's that
    happens to be 14 (switch pvalidate_vmpl)."""
    machine, ffi = CffiMachine(library, m.SNP, switches={"pvalidate_vmpl": 14}), library.ffi

    def refuse(user: Any, va: int, page: Any, code_out: Any) -> bool:
        code_out[0] = 0x2
        return False

    memory = library.new("struct rmpc_memory *")
    memory.translate = walk = ffi.callback("bool(void *, uint64_t, struct rmpc_page *, uint64_t *)", refuse)
    decoded = library.new("struct rmpc_decoded *")
    found = []
    for mode in ((5, 0, True, True), (5, 1, False, True), (5, 0, False, True)):
        own = library.new("struct rmpc_registers *", (0x400_000, 0, 1, 0x100, 2))
        machine.cpu.mode = mode
        code = bytes.fromhex("f20f01ff")
        outcome = library.rmpc_insn_execute(
            machine.rmp, machine.cpu, library.RMPC_MODE_LONG, code, 4, own, memory, decoded
        )
        found.append((outcome.kind, outcome.code, outcome.info))
    del walk
    fault = library.RMPC_OUTCOME_FAULT
    assert found == [(fault, 13, 0), (library.RMPC_OUTCOME_CODE, 14, 0), (fault, 14, 2)]


@calls("rmpc_machine_apply", "rmpc_machine_run")
def test_records_that_are_no_op(library: Library) -> None:
    """Refused, untouched; none at all is no op either."""
    machine = CffiMachine(library, m.SNP)
    before = machine.state()
    for op in (
        Op(0),
        Op(200),
        Op(0xFFFF),
        Op(1, reserved=1),
        Op(8, level=1),
        Op(18, id=256, count=1),
        Op(18, id=4, count=1, addr=1),
    ):
        assert machine.apply(op).kind == Kind.REFUSED, op
    library.rmpc_machine_run(machine.machine, library.ffi.NULL, 0, library.ffi.NULL)
    assert differences(machine.state(), before) == []


@calls("rmpc_pfn_valid", "rmpc_pages_valid", "rmpc_snp_leak_pages")
def test_valid_frames(library: Library) -> None:
    """host §1: whole 128 MiB sections that have memory; 2^20 pages at most."""
    machine = CffiMachine(library, m.SNP)
    valid = {0: True, 0x4000: True, 0x7FFF: True, 0x8000: False, 1 << 40: False, NO_PAGE: False}
    assert {pfn: library.rmpc_pfn_valid(machine.host, pfn) for pfn in valid} == valid
    many = {(0, 0x8000): True, (0, 0x8001): False, (0x7FFF, 1): True, (0x8000, 0): True, (0, 1 << 21): False}
    many |= {(NO_PAGE, 2): False}
    assert {where: library.rmpc_pages_valid(machine.host, *where) for where in many} == many
    kept, much = machine.host.memory, library.new("struct rmpc_extent[]", [(0, 8 << 30)])
    machine.host.memory = much
    for pages, valid_then in ((1 << 20, True), ((1 << 20) + 1, False)):
        assert library.rmpc_pages_valid(machine.host, 0, pages) == valid_then
    machine.host.memory = kept
    assert library.rmpc_snp_leak_pages(machine.host, 0x8000, 1) == library.RMPC_ERR_ARGUMENT
    assert library.rmpc_snp_leak_pages(machine.host, 0, (1 << 20) + 1) == library.RMPC_ERR_ARGUMENT
    assert machine.counters()["leaked_pages"] == 0
    assert library.rmpc_snp_leak_pages(machine.host, 5, 3) == library.RMPC_OK
    assert machine.counters()["leaked_pages"] == 3


@calls("rmpc_rmp_make_private", "rmpc_rmp_make_shared")
def test_policies_that_do_not_exist(library: Library) -> None:
    """snp_host.h, policy: RMP updates are -EINVAL, and nothing is done."""
    machine = CffiMachine(library, m.SNP)
    machine.record_events(True)
    before = machine.state()
    for policy in (library.RMPC_POLICY_END, 77):
        machine.host.policy = policy
        assert library.rmpc_rmp_make_private(machine.host, 0x233, 0x5000, 1, 5, False) == m.EINVAL
        assert library.rmpc_rmp_make_shared(machine.host, 0x400, 2) == m.EINVAL
    assert differences(machine.state(), before) == [] and len(machine.take_events()) == 0


@calls("rmpc_host_access", "rmpc_host_access_all", "rmpc_host_handle_fault")
def test_the_hosts_accesses(library: Library) -> None:
    """host §6.5: one by one and many at once; a fault that a policy repairs is tried again."""
    machine = CffiMachine(library, m.SNP, policy="fault-split")
    machine.write_rmp(0x233, m.ASSIGNED, 0)
    frames = [0x232, 0x233, 0x400, 0x4000, 0x234]
    pfns = library.new("uint64_t[]", frames)
    outcomes = library.new("struct rmpc_outcome[]", len(frames))
    library.rmpc_host_access_all(machine.host, pfns, len(frames), library.RMPC_HOST_WRITE, outcomes)
    level = library.new("int *")
    for pfn, outcome in zip(frames, outcomes, strict=True):
        single = library.rmpc_host_access(machine.host, pfn, library.RMPC_HOST_WRITE, level)
        assert as_bytes(library, single) == as_bytes(library, outcome)
    none, beside = library.RMPC_REASON_NONE, library.RMPC_REASON_NEIGHBOUR
    reasons = [beside, library.RMPC_REASON_ASSIGNED, none, library.RMPC_REASON_NOT_PRESENT, beside]
    assert [one.reason for one in outcomes] == reasons
    # all twice by now; who writes to a page that is not there is nobody's owner (host §6.3)
    counters = machine.counters()
    assert (counters["host_faults_neighbour"], counters["host_faults_owner"]) == (6, 2)
    fault = library.rmpc_host_access(machine.host, 0x232, library.RMPC_HOST_WRITE, level)
    assert level[0] == 2
    assert library.rmpc_host_handle_fault(machine.host, 0x232, fault, level[0])
    assert library.rmpc_host_access(machine.host, 0x232, library.RMPC_HOST_WRITE, level).reason == none
    assert level[0] == 1
    assert machine.counters()["fault_repairs"] == 1


@pytest.mark.parametrize("kind", ["HOST_READ", "HOST_WRITE", "KVM_READ", "KVM_WRITE"])
@calls("rmpc_host_access", "rmpc_host_access_all")
def test_many_of_the_hosts_accesses(library: Library, kind: str) -> None:
    """host §6.3, §6.5: many at once are what each is by itself, through a window as well; more than are fetched
    ahead, and through tables of each depth."""
    for policy, map_ in (("kmap", m.SNP), *(("upstream", map_) for map_ in (m.SNP, m.SNP_HOLE, m.SMALL))):
        machine, single = (CffiMachine(library, map_, policy=policy) for _ in range(2))
        for one in (machine, single):
            if map_ is not m.SMALL:
                one.write_rmp(0x233, m.ASSIGNED, 0)
            for op in (
                make_op("set_memory_4k", pfn=0x233, pages=1),
                make_op("set_memory_ro", pfn=0x235, pages=1),
                make_op("set_memory_np", pfn=0x236, pages=1),
            ):
                assert one.apply(op).ret == 0
            # what no op does: a table that is not memory
            walk = library.rmpc_dmap_lookup(one.dmap, one.map.page_offset + 0x3E0_0000)
            if walk.level == 2:
                walk.entry[0] = 1 << 51 | m.BOOT_TABLE
        strange = [0x232, 0x233, 0x400, 0x235, 0x236, 0x3E01, 0xFFFF, 0x4_5000, 1 << 30]
        # the first twelve are fetched at once, others while those before them are looked at
        frames = [*strange, *range(0x600, 0x620), *strange]
        pfns, outcomes = library.new("uint64_t[]", [*frames, 0]), library.new("struct rmpc_outcome[]", len(frames) + 1)
        which = getattr(library, f"RMPC_{kind}")
        library.rmpc_host_access_all(machine.host, library.ffi.NULL, 0, which, library.ffi.NULL)
        # what stands after those that are asked about is neither written nor counted
        outcomes[len(frames)].kind = library.RMPC_OUTCOME_FAULT
        library.rmpc_host_access_all(machine.host, pfns, len(frames), which, outcomes)
        assert outcomes[len(frames)].kind == library.RMPC_OUTCOME_FAULT
        level = library.new("int *")
        for pfn, outcome in zip(frames, outcomes[0 : len(frames)], strict=True):
            assert as_bytes(library, library.rmpc_host_access(single.host, pfn, which, level)) == as_bytes(
                library, outcome
            )
        assert machine.counters() == single.counters()


# ---- the same ops as the oracle ----

SWITCHED = (("bookkeeping", 512), ("inuse_first", 1), ("rmpquery", 1), ("subpage_count", 0))
SEGMENTED = (("segment_min", 30), ("segmented", 1))
UNITS: dict[str, Unit] = {
    "2M, 6.1": DirectMapUnit("2M", "6.1", 4, False, 1, 600),
    "image, five levels": DirectMapUnit("image", "6.15", 5, True, 2, 480),
    "moved image, C-bit": DirectMapUnit("moved image c-bit nopat", "7.3", 4, True, 3, 480),
    "1G": DirectMapUnit("1G nopat pti", "6.13", 4, False, 4, 300),
    "milan": RmpUnit("rmp", "contiguous", "milan", "6.12", (), 5, 3000),
    "genoa": RmpUnit("rmp", "contiguous c-bit", "genoa", "6.9", SWITCHED, 6, 3000),
    "turin": RmpUnit("rmp", "segmented", "turin", "6.14", SEGMENTED, 7, 1500),
    **{policy: PolicyUnit(policy, "2M", "6.15", "genoa", 8, 450) for policy in POLICIES},
    "partly covered": PolicyUnit("upstream", "partly covered", "6.9", "turin", 9, 450),
}


def pair_of(kind: type[CffiMachine], library: Library, unit: Any, **ways: str) -> tuple[CffiMachine, MachineLike]:
    """A machine of this kind and the oracle, as the unit starts, with events on."""
    options: dict[str, Any] = {"kernel": unit.kernel}
    if isinstance(unit, RmpUnit):
        options |= {"hardware": unit.part, "switches": dict(unit.switches)}
    elif isinstance(unit, PolicyUnit):
        options |= {"hardware": unit.part, "policy": unit.policy}
    elif unit.readonly:
        options["state"] = m.changed(oracle_of(unit.map, kernel=unit.kernel).state(), kernel_readonly=True)
    machine = kind(library, unit.map, **options, **ways)
    machine.record_events(True)
    return machine, oracle_of(unit.map, **options)


@pytest.mark.parametrize("name", UNITS)
@calls("rmpc_machine_run", "rmpc_dmap_validate")
def test_in_bulk(library: Library, name: str) -> None:
    """Results, events, states and invariants of random ops, half of them with the library's memory and pages."""
    memory, pages = WAYS[0] if list(UNITS).index(name) % 2 else WAYS[3]
    machine, oracle = pair_of(CffiMachine, library, UNITS[name], memory=memory, pages=pages)
    for ops in UNITS[name].chunks():
        found = difference((machine, oracle), ops)
        assert not found, (
            found,
            [str(op) for op in unpack_ops(ops[:40])],
            differences(machine.state(), oracle.state()),
        )


def by_function(library: Library, unit: Any) -> None:
    """Each op by the function that is for it.  (A refused access is no event here.)"""
    machine, oracle = pair_of(FunctionMachine, library, unit)
    for ops in unit.chunks():
        for op in unpack_ops(ops):
            expected = oracle.apply(op)
            if expected.kind != Kind.REFUSED:
                assert machine.apply(op) == expected, op
        events = oracle.take_events()
        assert machine.take_events().tolist() == events[events["kind"] != EventKind.FAULT].tolist()
        assert machine.validate() is None
        assert differences(machine.state(), oracle.state()) == []


CHANGES = ("2M, 6.1", "image, five levels", "moved image, C-bit")


@pytest.mark.parametrize("name", CHANGES)
@calls(
    "rmpc_set_memory rmpc_change_page_attr rmpc_dmap_lookup rmpc_set_direct_map_invalid_noflush",
    "rmpc_set_direct_map_default_noflush",
)
def test_direct_map_by_function(library: Library, name: str) -> None:
    by_function(library, UNITS[name])


@calls("rmpc_set_direct_map_valid_noflush")
def test_valid_noflush_by_function(library: Library) -> None:
    by_function(library, DirectMapUnit("4K", "6.13", 4, False, 10, 300))


@pytest.mark.parametrize("name", ["genoa", "turin"])
@calls(
    "rmpc_rmpupdate rmpc_psmash rmpc_rmpread rmpc_pvalidate rmpc_rmpadjust rmpc_rmpquery rmpc_rmp_check",
    "rmpc_result_of rmpc_vmrun rmpc_firmware_command rmpc_page_state_of rmpc_dump_rmpentry",
)
def test_rmp_by_function(library: Library, name: str) -> None:
    by_function(library, UNITS[name])


@pytest.mark.parametrize("name", POLICIES)
@calls(
    "rmpc_rmp_make_private rmpc_rmp_make_shared rmpc_host_psmash rmpc_host_access rmpc_rmp_mark_pages_firmware",
    "rmpc_snp_reclaim_pages",
)
def test_host_by_function(library: Library, name: str) -> None:
    by_function(library, UNITS[name])


@calls(
    "rmpc_rmp_make_firmware rmpc_snp_lookup_rmpentry rmpc_snp_leak_pages rmpc_host_rmpupdate",
    "rmpc_adjust_direct_map rmpc_cpu_inject rmpc_vmexit",
)
def test_rarer_calls_by_function(library: Library) -> None:
    machine, oracle = FunctionMachine(library, m.SNP), oracle_of(m.SNP)
    machine.record_events(True)
    for name, args in (
        ("rmp_make_firmware", {"pfn": 0x233, "level": 1}),
        ("rmp_make_firmware", {"pfn": 0x8000, "level": 1}),
        ("rmp_make_firmware", {"pfn": 0x400, "level": 2}),
        ("snp_lookup_rmpentry", {"pfn": 0x233}),
        ("snp_lookup_rmpentry", {"pfn": 0x401}),
        ("snp_lookup_rmpentry", {"pfn": m.SNP_COVERED}),
        ("dump_rmpentry", {"pfn": 0x234}),
        ("snp_leak_pages", {"pfn": 0x233, "pages": 2}),
        ("adjust_direct_map", {"pfn": 0x600, "level": 1}),
        ("adjust_direct_map", {"pfn": 0x8000, "level": 2}),
        ("inject", {"code": 4, "count": 2}),
        ("rmpupdate", {"pfn": 0x601, "gpa": 0x1000, "assigned": 1, "size": 0, "asid": 5}),
        ("rmpupdate", {"pfn": 0x401, "gpa": 0, "assigned": 0, "size": 0, "asid": 0}),
        ("VMRUN", {"vmcb": 0x700_000, "asid": 1, "plain": 1}),
        ("rmpupdate", {"pfn": 0x700, "gpa": 0, "assigned": 1, "size": 0, "asid": 0}),
        ("VMEXIT", {"vmcb": 0x700_000}),
        ("rmpupdate", {"pfn": 0x700, "gpa": 0, "assigned": 1, "size": 0, "asid": 0}),
    ):
        op = make_op(name, **args)
        assert machine.apply(op) == oracle.apply(op), op
    assert machine.take_events().tolist() == oracle.take_events().tolist()
    assert differences(machine.state(), oracle.state()) == []


@pytest.mark.parametrize(
    "name", ["image, five levels", "moved image, C-bit", "upstream", "split-restore", "unmap-flush"]
)
def test_pages_may_come_from_anywhere(library: Library, name: str) -> None:
    """An allocator that hands out the lowest page, dirty, and again at once what it got back: the same machine but for
    where its tables are."""
    machine, oracle = pair_of(CffiMachine, library, UNITS[name], pages="lowest")
    for ops in UNITS[name].chunks():
        for op in unpack_ops(ops):
            assert machine.apply(op) == oracle.apply(op), op
        assert machine.validate() is None
        mine, theirs = machine.state(), oracle.state()
        flags = m.U64 & ~(m.FRAME_MASK & ~machine.map.c_bit)
        assert list(diff_entries(mine.tables, theirs.tables, "cffi", "oracle", flags)) == []
        assert differences(m.changed(mine, root=theirs.root, tables=theirs.tables), theirs) == []
    assert (mine.tables["raw"] != theirs.tables["raw"]).any()


@calls(
    "rmpc_dmap_put_root rmpc_dmap_put_table rmpc_dmap_put_leaf rmpc_dmap_put_high_path rmpc_dmap_add_mapped",
    "rmpc_dmap_page_total rmpc_rmp_set rmpc_cpu_inject rmpc_in_use_add rmpc_firmware_add_context",
)
def test_a_state_is_put_back(library: Library) -> None:
    """What the oracle has come to is loaded through the C functions, and goes on alike."""
    unit = PolicyUnit("upstream", "image", "6.15", "genoa", 11, 300)
    oracle = oracle_of(unit.map, kernel=unit.kernel, hardware=unit.part)
    for ops in unit.chunks():
        oracle.run(ops)
    for line in (
        "SNP_INIT",
        "rmp_make_firmware pfn=0x610 level=4K",
        "SNP_GCTX_CREATE gctx=0x610000",
        "VMRUN vmcb=0x612000 asid=1 plain=1",
        "inject code=4 count=3",
        "cpa_address pfn=0x233",
    ):
        name, *words = line.split()
        args = {key: {"4K": 1}.get(value) or int(value, 0) for key, value in (word.split("=") for word in words)}
        oracle.apply(make_op(name, **args))
    state = oracle.state()
    assert state.contexts and state.in_use and state.inject and state.addresses
    machine = CffiMachine(library, unit.map, kernel=unit.kernel, hardware=unit.part, state=state)
    machine.record_events(True)
    assert differences(machine.state(), state) == []
    oracle.take_events()
    for ops in PolicyUnit("upstream", "image", "6.15", "genoa", 12, 300).chunks():
        assert difference((machine, oracle), ops) == ""
