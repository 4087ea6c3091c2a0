"""A machine on the shared library, as a simulator would build one: its own memory, its own pages, the C functions.

It does what rmpcore.machine.MachineLike says, so that whatever drives the package's machines drives this one, but it
knows the core by the public headers alone: nothing here may use the package's binding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from mmap import MAP_PRIVATE, mmap
from typing import Any

import numpy as np
import numpy.typing as npt
from cffi_library import Library

from rmpcore.cpu import Cpu, Executed, Page, Registers
from rmpcore.machine import MachineError
from rmpcore.maps import E820Type, MachineMap
from rmpcore.ops import BY_CODE, EVENT_DTYPE, OP_DTYPE, RESULT_DTYPE, Flavour, Kind, Op, Result, ResultFlag, make_op
from rmpcore.state import RMP_DTYPE, State, entries

Extents = list[tuple[int, int]]
"""(first byte, byte after the last), in ascending order."""

PAGE = 4096
NO_PAGE = (1 << 64) - 1
DIRTY = b"\xa5" * PAGE
"""What a page is full of before it becomes a table: the core has to clear what it is given."""
LARGE_LEVEL = {"4K": 1, "2M": 2, "1G": 3}
CPU_MODES = {64: "RMPC_MODE_LONG", 32: "RMPC_MODE_PROTECTED", 16: "RMPC_MODE_REAL"}
INSTRUCTIONS = ("RMPUPDATE", "PSMASH", "RMPREAD", "PVALIDATE", "RMPADJUST", "RMPQUERY")
DRAM = (E820Type.USABLE, E820Type.KERNEL_RESERVED, E820Type.SOFT_RESERVED)
SIZES = {"4k": 1, "2m": 2, "1g": 3}
FLUSHES = ("flush_all", "flush_pages", "flush_cache", "flush_cache_all")
BY_HOST = {
    "host_accesses": "accesses",
    "host_faults_owner": "faults_owner",
    "host_faults_neighbour": "faults_neighbour",
    "fault_repairs": "repairs",
    "forced_shared": "forced_shared",
    "kmap_windows": "windows",
}


def merged(ranges: Iterable[tuple[int, int]]) -> Extents:
    """Sorted, and those that meet as one."""
    rows: list[list[int]] = []
    for start, end in sorted(ranges):
        if rows and start <= rows[-1][1]:
            rows[-1][1] = max(rows[-1][1], end)
        else:
            rows.append([start, end])
    return [(start, end) for start, end in rows]


def without(ranges: Extents, holes: Iterable[tuple[int, int]]) -> Extents:
    """What the holes leave of the ranges."""
    for low, high in holes:
        pieces = [piece for a, b in ranges for piece in ((a, min(b, low)), (max(a, high), b))]
        ranges = [(a, b) for a, b in pieces if a < b]
    return ranges


class Pages:
    """An allocator of pages for tables, in Python.

    highest: always the highest free page, as direct-map §2.3 has it; otherwise what was given back last, or the lowest
    page that was never out."""

    def __init__(self, free: Extents, busy: Iterable[int], highest: bool) -> None:
        self._free = free
        self._busy = set(busy)
        self._highest = highest
        self._back: list[int] = []
        self._fresh = self._in_order(free)
        self.given: set[int] = set()
        """Pages that are out."""

    def _in_order(self, free: Extents) -> Iterator[int]:
        for low, high in reversed(free) if self._highest else free:
            yield from range(high - PAGE, low - PAGE, -PAGE) if self._highest else range(low, high, PAGE)

    def _is_free(self, page: int) -> bool:
        return any(low <= page < high for low, high in self._free)

    def alloc(self) -> int:
        # what never was out is lower than all that came back
        if self._back:
            page = -heappop(self._back) if self._highest else self._back.pop()
        else:
            fresh = (page for page in self._fresh if page not in self._busy and self._is_free(page))
            page = next(fresh, NO_PAGE)
        if page != NO_PAGE:
            assert page not in self.given
            self.given.add(page)
        return page

    def free(self, page: int) -> None:
        self.given.discard(page)
        if not self._is_free(page):
            return
        if self._highest:
            heappush(self._back, -page)
        else:
            self._back.append(page)

    def keep_off(self, holes: Extents) -> None:
        """These are not given out any more."""
        self._free = without(self._free, holes)


class CffiMachine:
    """A machine with memory and pages of its own.

    memory: "own" (a buffer of Python for each range) or "sparse" (the library's)
    pages:  "highest" or "lowest" (see Pages), or "pool" (the library's)
    """

    backend = "cffi"

    def __init__(
        self,
        library: Library,
        map: MachineMap,
        *,
        kernel: str = "6.12",
        hardware: str = "milan",
        switches: Mapping[str, int] | None = None,
        policy: str = "upstream",
        state: State | None = None,
        memory: str = "own",
        pages: str = "highest",
    ) -> None:
        self._lib = library
        self._ffi = library.ffi
        self.map = map
        self.policy = policy
        self._kept: list[Any] = []
        self._reported: list[bytes] = []
        self._events = self._new("struct rmpc_events *")
        self._on_event = self._callback("void(void *, const struct rmpc_event *)", self._report)
        self._config = self._configured(kernel)
        self._ram = self._extents([(base, base + size) for base, size in map.memory])
        self.mem = self._new("struct rmpc_mem *")
        self._reserve(memory)
        self.cpu = self._new("struct rmpc_cpu *", {"events": self._events})
        self.rmp = self._ffi.NULL
        if map.rmp is not None or map.segmented is not None:
            self._place_rmp(hardware, switches or {})
        blocks = self._end_blocks()
        self._allocate_from(pages, state)
        self.dmap = self._new("struct rmpc_dmap *")
        rooms = 16 + len(map.memory) + (len(state.mapped) if state is not None else 0)
        mapped = self._new("struct rmpc_frames[]", rooms)
        status = library.rmpc_dmap_init(self.dmap, self.mem, self._config, mapped, rooms, self._events)
        self._must(status, "direct map")
        # rmp §4.2: DRAM is the hypervisor's after SNP_INIT, but for what the kernel reserves
        dram = without(merged((base, base + size) for base, size, kind in map.e820 if kind in DRAM), blocks)
        self.firmware = self._new(
            "struct rmpc_firmware *",
            {"rmp": self.rmp, "dram": self._extents(dram), "dram_count": len(dram), "events": self._events},
        )
        self.machine = self._new("struct rmpc_machine *")
        self.machine.mem = self.mem
        self.host = self._ffi.addressof(self.machine, "host")
        self.host.dmap, self.host.rmp, self.host.cpu, self.host.firmware = self.dmap, self.rmp, self.cpu, self.firmware
        self.host.memory, self.host.memory_count = self._ram, len(map.memory)
        self.host.policy = self._policies().index(policy)
        self.host.events = self._events
        if state is None:
            self._boot()
        if self._config.kernel.rmp_end_reserved:
            self._keep_off(blocks)
        if state is not None:
            self._load(state)

    # ---- building ----

    def _new(self, kind: str, *init: Any) -> Any:
        """Memory that lives as long as the machine."""
        self._kept.append(self._lib.new(kind, *init))
        return self._kept[-1]

    def _callback(self, kind: str, function: Any, error: int | None = None) -> Any:
        self._kept.append(self._ffi.callback(kind, function, error))
        return self._kept[-1]

    def _extents(self, ranges: Sequence[tuple[int, int]]) -> Any:
        return self._new("struct rmpc_extent[]", [(start, end - start) for start, end in ranges])

    def _must(self, status: int, what: str) -> None:
        if status != self._lib.RMPC_OK:
            raise MachineError(f"{what}: {self._lib.text(self._lib.rmpc_status_text(status))}")

    def _policies(self) -> list[str | None]:
        return [self._lib.text(self._lib.rmpc_policy_name(at)) for at in range(self._lib.RMPC_POLICY_END)]

    def _configured(self, kernel: str) -> Any:
        config = self._new("struct rmpc_dmap_config *")
        major, minor = re.findall(r"\d+", kernel)[:2]
        rules = self._ffi.addressof(config, "kernel")
        self._must(self._lib.rmpc_kernel_init(rules, int(major), int(minor)), f"kernel {kernel}")
        config.levels = self.map.levels
        # host §6.1: one policy boots without large pages
        config.large_level = 1 if self.policy == "map-4k" else LARGE_LEVEL[self.map.large_pages]
        config.page_offset = self.map.page_offset
        config.supported_mask, config.default_mask = self.map.supported_mask, self.map.default_mask
        config.c_bit = self.map.c_bit
        config.cache_modes = list(self.map.cachemodes)
        if self.map.image is not None:
            config.image = vars(self.map.image)
        return config

    @property
    def kernel(self) -> str:
        return f"{self._config.kernel.major}.{self._config.kernel.minor}"

    def _reserve(self, memory: str) -> None:
        """Host memory for RAM and for the RMP."""
        areas = list(self.map.segmented.areas()) if self.map.segmented is not None else []
        if self.map.rmp is not None:
            areas.append((self.map.rmp[0], self.map.rmp[1] + 1 - self.map.rmp[0]))
        wanted = [(base // PAGE * PAGE, -(-(base + size) // PAGE) * PAGE) for base, size in areas if size > 0]
        wanted = sorted([*wanted, *((base, base + size) for base, size in self.map.memory)])
        self._ranges = self._new("struct rmpc_range[]", len(wanted))
        for part, (start, end) in zip(self._ranges, wanted, strict=True):
            part.base, part.size = start, end - start
            if memory == "sparse":
                self._must(self._lib.rmpc_sparse_map(self._ffi.addressof(part), True), "memory")
                self._kept.append(self._ffi.gc(self._ffi.addressof(part), self._unmap))
            else:
                ours = self._ffi.from_buffer("uint8_t[]", mmap(-1, part.size, MAP_PRIVATE))
                self._kept.append(ours)
                part.host = ours
        self.mem.ranges, self.mem.count = self._ranges, len(wanted)
        self._must(self._lib.rmpc_mem_check(self.mem), "memory")

    def _unmap(self, part: Any) -> None:
        self._lib.rmpc_sparse_unmap(part)

    def bytes_at(self, pa: int, size: int) -> Any:
        """Simulated memory in place, found without the library."""
        for part in self._ranges:
            if part.base <= pa and pa + size <= part.base + part.size:
                return self._ffi.buffer(self._ffi.cast("uint8_t *", part.host) + (pa - part.base), size)
        raise IndexError(f"no memory at {pa:#x}")

    def _place_rmp(self, hardware: str, switches: Mapping[str, int]) -> None:
        lib = self._lib
        profile = self._new("struct rmpc_hardware *")
        part = getattr(lib, f"RMPC_PART_{hardware.upper()}")
        self._must(lib.rmpc_hardware_init(profile, part), hardware)
        for name, value in switches.items():
            setattr(profile, name, value)
        self._must(lib.rmpc_hardware_check(profile), "switches")
        msrs = self._new("struct rmpc_rmp_msrs *")
        if self.map.segmented is not None:
            msrs.base, msrs.cfg = self.map.segmented.base, self.map.segmented.cfg
            table = np.array(self.map.segmented.rst, "<u8").tobytes()
            self._must(lib.rmpc_mem_write(self.mem, msrs.base + lib.RMPC_RMP_BOOKKEEPING, table, len(table)), "table")
        elif self.map.rmp is not None:
            msrs.base, msrs.end = self.map.rmp
        if self.map.rmp_probed:
            kernel = self._ffi.addressof(self._config, "kernel")
            self._must(lib.rmpc_rmp_probe(msrs, self.mem, profile, kernel, self.map.max_pfn), "RMP")
        room = self._new("struct rmpc_rmp_room *")
        self._must(lib.rmpc_rmp_measure(msrs, self.mem, profile, room), "RMP")
        segments = self._new("struct rmpc_rmp_segment[]", room.segments)
        words = self._new("uint32_t[]", room.words)
        self.rmp = self._new("struct rmpc_rmp *")
        status = lib.rmpc_rmp_init(self.rmp, msrs, self.mem, profile, self.map.c_bit, segments, words)
        self._must(status, "RMP")

    def _end_blocks(self) -> Extents:
        """host §1: what this kernel reserves at the ends of the RMP."""
        if not self.rmp or not self.map.rmp_probed or not self._config.kernel.rmp_end_blocks:
            return []
        usable = merged((base, base + size) for base, size, kind in self.map.e820 if kind == E820Type.USABLE)
        blocks = self._new("struct rmpc_extent[]", 2 * 513)
        count = self._lib.rmpc_rmp_end_blocks(self.rmp, self._extents(usable), len(usable), blocks, len(blocks))
        return [(block.base, block.base + block.size) for block in blocks[0:count]]

    def _allocate_from(self, pages: str, state: State | None) -> None:
        """Where pages for tables come from; those that a state's tables lie in are taken."""
        reserved = [(base, base + size) for base, size in self.map.reserved]
        mask = self._lib.RMPC_PTE_ADDRESS & ~self.map.c_bit
        busy = [] if state is None else sorted([state.root, *(raw & mask for raw in state.tables["raw"].tolist())])
        if pages == "pool":
            self.pool = self._new("struct rmpc_pool *", {"mem": self.mem, "memory": self._ram})
            self.pool.memory_count = len(self.map.memory)
            self.pool.reserved, self.pool.reserved_count = self._extents(reserved), len(reserved)
            self.pool.busy, self.pool.busy_count = self._new("uint64_t[]", [at // PAGE for at in busy]), len(busy)
            self._lib.rmpc_pool_init(self.pool)
            self.mem.alloc, self.mem.free = self._lib.address("rmpc_pool_alloc"), self._lib.address("rmpc_pool_free")
            self.mem.user = self.pool
            return
        touched = [(start // PAGE * PAGE, -(-end // PAGE) * PAGE) for start, end in reserved]
        free = without([(base, base + size) for base, size in self.map.memory], touched)
        self.pages = Pages(free, busy, pages == "highest")
        self.mem.alloc = self._callback("uint64_t(void *)", self._alloc, NO_PAGE)
        self.mem.free = self._callback("void(void *, uint64_t)", lambda _, page: self.pages.free(page))

    def _alloc(self, _: Any) -> int:
        page = self.pages.alloc()
        if page != NO_PAGE:
            self.bytes_at(page, PAGE)[:] = DIRTY
        return page

    def _keep_off(self, blocks: Extents) -> None:
        if self.mem.user:
            reserved = merged([*((base, base + size) for base, size in self.map.reserved), *blocks])
            self.pool.reserved, self.pool.reserved_count = self._extents(reserved), len(reserved)
        else:
            self.pages.keep_off(blocks)

    def _boot(self) -> None:
        reserved, e820 = self.map.reserved, self.map.e820
        boot = self._new(
            "struct rmpc_boot_memory *",
            {
                "memory": self._ram,
                "memory_count": len(self.map.memory),
                "reserved": self._extents([(base, base + size) for base, size in reserved]),
                "reserved_count": len(reserved),
                "e820": self._new("struct rmpc_e820[]", [(base, size, kind & 0xFFFFFFFF) for base, size, kind in e820]),
                "e820_count": len(e820),
                "max_pfn": self.map.max_pfn,
            },
        )
        self._must(self._lib.rmpc_dmap_boot(self.dmap, boot), "building the direct map")

    # ---- a saved state ----

    def _load(self, state: State) -> None:
        lib, dmap = self._lib, self.dmap
        origins = (self.map.page_offset, lib.RMPC_HIGH_MAP)
        self._must(lib.rmpc_dmap_put_root(dmap, state.root), "root table")
        if self.map.image is not None:
            self._must(lib.rmpc_dmap_put_high_path(dmap), "tables above the high mapping")
        # a State has its entries from the top level down
        for rows, put in ((state.tables, lib.rmpc_dmap_put_table), (state.leaves, lib.rmpc_dmap_put_leaf)):
            for window, level, offset, raw in rows.tolist():
                self._must(put(dmap, origins[window] + offset & NO_PAGE, level, raw), f"entry at +{offset:#x}")
        for start, end in state.mapped:
            self._must(lib.rmpc_dmap_add_mapped(dmap, start, end), "mapped ranges")
        dmap.max_pfn_mapped = state.max_pfn_mapped
        dmap.kernel_readonly = state.kernel_readonly
        counters = state.counters
        for name, level in SIZES.items():
            dmap.counters.pages[level] = counters[f"direct_map_{name}"]
        dmap.page_total = lib.rmpc_dmap_page_total(self._ffi.addressof(dmap, "counters"))
        for level in (2, 3):
            dmap.counters.splits[level] = counters[f"level{level}_splits"]
            dmap.counters.collapses[level] = counters[f"level{level}_collapses"]
        for name in FLUSHES:
            setattr(dmap.counters, name, counters[name])
        for name in INSTRUCTIONS:
            setattr(self.cpu.counters, name.lower(), counters[name.lower()])
        for name, field in BY_HOST.items():
            setattr(self.host.counters, field, counters[name])
        self.host.retries, self.host.leaked_pages = counters["rmpupdate_retries"], counters["leaked_pages"]
        self.mem.fail_skip, self.mem.fail_count = state.fail_alloc
        for pfn, high in state.addresses:
            assert self.apply(make_op("cpa_address", pfn=pfn, high=high)).kind == lib.RMPC_RESULT_KERNEL
        for pfn, lo, hi in state.rmp.tolist():
            self.write_rmp(pfn, lo, hi)
        for code, count in state.inject:
            self._must(lib.rmpc_cpu_inject(self.cpu, code, count), "injected codes")
        for frames in state.in_use:
            self._must(lib.rmpc_in_use_add(self.rmp, frames), "pages in use")
        self.firmware.ready = state.firmware_ready
        for context in state.contexts:
            self._must(lib.rmpc_firmware_add_context(self.firmware, context), "contexts")
        for record in state.records:
            self._must(lib.rmpc_firmware_add_record(self.firmware, record), "records")
        for asid, count in state.bookkeeping:
            self.rmp.bookkeeping[asid] = count

    # ---- MachineLike ----

    def apply(self, op: Op) -> Result:
        record = self._lib.new("struct rmpc_op *", tuple(op))
        result = self._lib.new("struct rmpc_result *")
        self._lib.rmpc_machine_apply(self.machine, record, result)
        return self._result(result)

    def _result(self, result: Any) -> Result:
        return Result(*(getattr(result, name) for name in Result._fields))

    def run(self, ops: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        assert ops.dtype == OP_DTYPE
        results = np.empty(len(ops), RESULT_DTYPE)
        source = self._ffi.from_buffer("struct rmpc_op[]", np.ascontiguousarray(ops).view(np.uint8))
        target = self._ffi.from_buffer("struct rmpc_result[]", results.view(np.uint8), require_writable=True)
        self._lib.rmpc_machine_run(self.machine, source, len(ops), target)
        return results

    def execute(
        self,
        code: bytes,
        registers: Registers,
        cpu: Cpu = Cpu(),  # noqa: B008 - immutable
        operand: bytes | None = None,
        page: Page | None = None,
    ) -> Executed:
        lib, ffi = self._lib, self._ffi
        stored: list[bytes] = []

        def read(user: Any, va: int, out: Any, error: Any) -> bool:
            error[0] = 0
            if operand is not None:
                ffi.memmove(out, operand, 16)
            return operand is not None

        def write(user: Any, va: int, data: Any, error: Any) -> bool:
            stored.append(bytes(ffi.buffer(data)))
            return True

        def translate(user: Any, va: int, out: Any, error: Any) -> bool:
            error[0] = 0
            if page is not None:
                out.pa, out.gpa, out.level = page
            return page is not None

        memory = lib.new("struct rmpc_memory *")
        memory.read = reader = ffi.callback("bool(void *, uint64_t, struct rmpc_rmp_state *, uint64_t *)", read)
        memory.write = writer = ffi.callback("bool(void *, uint64_t, const struct rmpc_rmp_state *, uint64_t *)", write)
        memory.translate = walker = ffi.callback("bool(void *, uint64_t, struct rmpc_page *, uint64_t *)", translate)
        own = lib.new("struct rmpc_registers *", tuple(registers))
        decoded = lib.new("struct rmpc_decoded *")
        self.cpu.mode = (cpu.asid, cpu.vmpl, cpu.cpl != 0, cpu.snp)
        mode = getattr(lib, CPU_MODES[cpu.mode])
        outcome = lib.rmpc_insn_execute(self.rmp, self.cpu, mode, code, len(code), own, memory, decoded)
        self.cpu.mode = (0, 0, False, False)
        del reader, writer, walker
        if decoded.insn == lib.RMPC_INSN_NONE:
            return Executed(None, 0, Result(0), registers)
        result = lib.new("struct rmpc_result *")
        lib.rmpc_result_of(outcome, result)
        name = INSTRUCTIONS[decoded.insn - 1]
        if result.kind == lib.RMPC_RESULT_CODE and result.ret == 0:
            if name == "RMPQUERY":
                result.value, result.value2 = own.rcx, own.rdx
            if name == "RMPREAD":
                result.value, result.value2 = (int.from_bytes(stored[0][at : at + 8], "little") for at in (0, 8))
        left = Registers(own.rax, own.rcx, own.rdx, own.rip, own.rflags)
        return Executed(name, decoded.length, self._result(result), left, stored[0] if stored else None)

    def state(self) -> State:
        dmap, firmware, rmp = self.dmap, self.firmware, self.rmp
        tables: list[tuple[int, int, int, int]] = []
        leaves: list[tuple[int, int, int, int]] = []
        limit = 1 << (52 if self.map.levels == 5 else 46)
        for window, origin, size, top in ((0, self.map.page_offset, limit, 5), (1, 0xFFFF_FFFF_8000_0000, 1 << 30, 2)):

            def report(_: Any, entry: Any, window: int = window, origin: int = origin) -> bool:
                row = (window, entry.level, entry.va - origin & NO_PAGE, entry.raw)
                (tables if entry.table else leaves).append(row)
                return True

            listed = self._ffi.callback("bool(void *, const struct rmpc_dmap_entry *)", report)
            self._lib.rmpc_dmap_list(dmap, origin, size, top, listed, self._ffi.NULL)
        in_use = rmp.in_use[0 : rmp.in_use_count] if rmp else ()
        inject = self.cpu.inject
        listed_now = self.machine.addresses[0 : self.machine.address_count]
        return State(
            root=dmap.root,
            tables=entries(tables),
            leaves=entries(leaves),
            rmp=np.array(list(self._rmp_rows()), RMP_DTYPE),
            counters=self.counters(),
            mapped=tuple((frames.start, frames.end) for frames in dmap.mapped[0 : dmap.mapped_count]),
            max_pfn_mapped=dmap.max_pfn_mapped,
            kernel_readonly=dmap.kernel_readonly,
            inject=tuple((run.code, run.count) for run in inject.runs[0 : inject.count]),
            addresses=tuple(self._place(va) for va in listed_now),
            fail_alloc=(self.mem.fail_skip, self.mem.fail_count),
            in_use=tuple((pages.vmcb, pages.vmsa, pages.avic) for pages in in_use),
            firmware_ready=firmware.ready,
            contexts=tuple((one.pfn, one.asid) for one in firmware.contexts[0 : firmware.context_count]),
            records=tuple(
                (one.address, one.context, one.info, one.gpa, one.hi)
                for one in firmware.records[0 : firmware.record_count]
            ),
            bookkeeping=tuple(
                (asid, rmp.bookkeeping[asid]) for asid in range(1, 1024) if rmp and rmp.bookkeeping[asid]
            ),
        )

    def _rmp_rows(self) -> Iterator[tuple[int, int, int]]:
        if not self.rmp:
            return
        entry = self._lib.new("struct rmpc_rmp_entry *")
        frames = self.rmp.frames
        pfn = self._lib.rmpc_rmp_next_used(self.rmp, 0)
        while pfn < frames:
            self._must(self._lib.rmpc_rmp_get(self.rmp, pfn, entry), "RMP entry")
            yield pfn, entry.lo, entry.hi
            pfn = self._lib.rmpc_rmp_next_used(self.rmp, pfn + 1)

    def _place(self, va: int) -> tuple[int, int]:
        """A listed address as (frame, 1 for high)."""
        if va >= self._lib.RMPC_HIGH_MAP:
            return va - self._lib.RMPC_HIGH_MAP + self._config.image.phys_base >> 12, 1
        return va - self.map.page_offset >> 12, 0

    def counters(self) -> dict[str, int]:
        counters = self.dmap.counters
        return {
            **{f"direct_map_{name}": counters.pages[level] for name, level in SIZES.items()},
            **{f"level{level}_splits": counters.splits[level] for level in (2, 3)},
            **{f"level{level}_collapses": counters.collapses[level] for level in (2, 3)},
            **{name: getattr(counters, name) for name in (*FLUSHES, "table_pages")},
            **{name.lower(): getattr(self.cpu.counters, name.lower()) for name in INSTRUCTIONS},
            **{name: getattr(self.host.counters, field) for name, field in BY_HOST.items()},
            "rmpupdate_retries": self.host.retries,
            "leaked_pages": self.host.leaked_pages,
        }

    def census(self) -> dict[str, int]:
        census = self._lib.new("struct rmpc_census *")
        self._lib.rmpc_dmap_census(self.dmap, census)
        return {**{name: census.leaves[level] for name, level in SIZES.items()}, "missing": census.missing}

    def validate(self) -> str | None:
        where = self._lib.new("uint64_t *")
        room = self.dmap.counters.table_pages
        broken = self._lib.rmpc_dmap_validate(self.dmap, self._lib.new("uint64_t[]", room), room, where)
        if broken == self._lib.RMPC_INVARIANTS_HOLD:
            return None
        return f"{self._lib.text(self._lib.rmpc_invariant_name(broken))}: at virtual address {where[0]:#x}"

    def _report(self, _: Any, event: Any) -> None:
        self._reported.append(bytes(self._ffi.buffer(event)))

    def record_events(self, on: bool) -> None:
        self._events.report = self._on_event if on else self._ffi.NULL
        self._reported.clear()

    def take_events(self) -> npt.NDArray[np.void]:
        events = np.frombuffer(b"".join(self._reported), EVENT_DTYPE)
        self._reported.clear()
        return events

    def read_rmp(self, pfn: int) -> tuple[int, int]:
        entry = self._lib.new("struct rmpc_rmp_entry *")
        if not self.rmp or self._lib.rmpc_rmp_get(self.rmp, pfn, entry) != self._lib.RMPC_OK:
            raise IndexError(f"the RMP has no entry for frame {pfn:#x}")
        return entry.lo, entry.hi

    def write_rmp(self, pfn: int, lo: int, hi: int) -> None:
        entry = self._lib.new("struct rmpc_rmp_entry *", (lo, hi))
        if not self.rmp or self._lib.rmpc_rmp_set(self.rmp, pfn, entry[0]) != self._lib.RMPC_OK:
            raise IndexError(f"the RMP has no entry for frame {pfn:#x}")


KERNEL_CALLS = {
    "rmp_make_private": ("gpa", "level", "asid", "immutable"),
    "rmp_make_firmware": ("level",),
    "rmp_make_shared": ("level",),
    "psmash": (),
    "adjust_direct_map": ("level",),
    "rmp_mark_pages_firmware": ("pages",),
    "snp_reclaim_pages": ("pages",),
    "set_direct_map_invalid_noflush": (),
    "set_direct_map_default_noflush": (),
    "set_direct_map_valid_noflush": ("pages", "valid"),
}
"""Kernel functions that return a number, and what they take after the frame."""
HOST_ACCESSES = {
    "host_read": "RMPC_HOST_READ",
    "host_write": "RMPC_HOST_WRITE",
    "kvm_read_guest": "RMPC_KVM_READ",
    "kvm_write_guest": "RMPC_KVM_WRITE",
}


class FunctionMachine(CffiMachine):
    """A machine that does an op by the function that is for it, as a simulator calls it, and not by
    rmpc_machine_apply().

    It takes what no machine refuses.  A refused access is an outcome, but no event: whoever calls the functions has the
    outcome in hand."""

    def apply(self, op: Op) -> Result:
        spec = BY_CODE[op.op]  # type: ignore[index]
        name = spec.name
        args = {arg.name: arg.find(getattr(op, arg.field)) for arg in spec.args}
        if name in KERNEL_CALLS:
            return self._kernel_call(name, args)
        if name in HOST_ACCESSES:
            return self._host_access(args["pfn"], getattr(self._lib, HOST_ACCESSES[name]))
        if name.startswith("SNP_"):
            return self._command(name, op, args)
        if name.startswith(("set_memory_", "_set_memory_", "change_page_attr_")):
            return self._change(name, args)
        if name in INSTRUCTIONS[:3]:
            return self._host_instruction(name, args)
        if name in INSTRUCTIONS[3:]:
            return self._guest_instruction(name, args)
        others = {
            "rmpupdate": self._rmpupdate,
            "snp_lookup_rmpentry": self._lookup_rmpentry,
            "lookup": self._lookup,
            "access": self._access,
            "VMRUN": self._vmrun,
            "page_state": self._page_state,
        }
        if name in others:
            return others[name](args)
        status = {
            "dump_rmpentry": lambda: self._lib.rmpc_dump_rmpentry(self.host, args["pfn"]) or 0,
            "snp_leak_pages": lambda: self._lib.rmpc_snp_leak_pages(self.host, args["pfn"], args["pages"]),
            "inject": lambda: self._lib.rmpc_cpu_inject(self.cpu, args["code"], args["count"]),
            "VMEXIT": lambda: self._lib.rmpc_vmexit(self.rmp, args["vmcb"]),
        }
        if name in status:
            self._must(status[name](), name)
            return Result(0)
        return super().apply(op)

    def _returned(self, ret: int) -> Result:
        hangs = self._lib.RMPC_HANGS
        return Result(ret - hangs, Kind.HANG) if ret >= hangs else Result(ret)

    def _became(self, outcome: Any) -> Result:
        result = self._lib.new("struct rmpc_result *")
        self._lib.rmpc_result_of(outcome, result)
        return self._result(result)

    def _input(self, args: Mapping[str, int]) -> Any:
        high = args["assigned"] | args["size"] << 8 | args["immutable"] << 16 | args["asid"] << 32
        return self._lib.new("struct rmpc_rmp_state *", (args["gpa"], high | args.get("reserved", 0)))[0]

    def _kernel_call(self, name: str, args: Mapping[str, int]) -> Result:
        function = getattr(self._lib, "rmpc_host_psmash" if name == "psmash" else f"rmpc_{name}")
        whose = self.dmap if name.startswith("set_") else self.host
        return self._returned(function(whose, args["pfn"], *(args[more] for more in KERNEL_CALLS[name])))

    def _host_access(self, pfn: int, kind: int) -> Result:
        """Until it passes, or nobody repairs what stands in its way (host §6.5)."""
        level = self._lib.new("int *")
        self.host.counters.accesses += 1
        while True:
            outcome = self._lib.rmpc_host_access(self.host, pfn, kind, level)
            if outcome.kind == self._lib.RMPC_OUTCOME_ALLOWED:
                break
            if not self._lib.rmpc_host_handle_fault(self.host, pfn, outcome, level[0]):
                break
        return self._became(outcome)._replace(level=level[0])

    def _command(self, name: str, op: Op, args: Mapping[str, int]) -> Result:
        operands = self._lib.new(
            "struct rmpc_operands *",
            {
                "page": op.addr,
                "gctx": op.va,
                "dst": args.get("dst", 0),
                "mdata": args.get("mdata", 0),
                "pages": args.get("pages", 0),
                "asid": args.get("asid", 0),
                "type": args.get("type", 0),
                "permissions": [0, *(args.get(f"vmpl{vmpl}", 0) for vmpl in (1, 2, 3))],
                "large": bool(args.get("size", 0)),
                "iommu": bool(args.get("iommu", 0)),
            },
        )
        command = getattr(self._lib, f"RMPC_{name}")
        return Result(self._lib.rmpc_firmware_command(self.firmware, command, operands), Kind.FIRMWARE)

    def _change(self, name: str, args: Mapping[str, int]) -> Result:
        pages = self._lib.new("struct rmpc_pages *", {"count": args["pages"]})
        if args["flavour"] != Flavour.RANGE:
            pages.addresses = self.machine.addresses
        elif args["high"]:
            pages.va = self._lib.RMPC_HIGH_MAP + (args["pfn"] << 12) - self._config.image.phys_base
        else:
            pages.va = self.map.page_offset + (args["pfn"] << 12)
        if name.startswith("change_page_attr_"):
            bits = (args["mask"], 0) if name.endswith("_set") else (0, args["mask"])
            ret = self._lib.rmpc_change_page_attr(self.dmap, pages[0], *bits)
        else:
            call = getattr(self._lib, f"RMPC_{name.lstrip('_').upper()}")
            ret = self._lib.rmpc_set_memory(self.dmap, call, pages[0])
        if pages.addresses:
            self.machine.address_count = 0
        return Result(ret)

    def _host_instruction(self, name: str, args: Mapping[str, int]) -> Result:
        self.cpu.mode = (args["guest"], 0, bool(args["user"]), True)
        where = (self.rmp, self.cpu, args["pa"])
        if name == "RMPREAD":
            out = self._lib.new("struct rmpc_rmp_state *")
            result = self._became(self._lib.rmpc_rmpread(*where, out))
            code = result.kind == Kind.CODE
            result = result._replace(value=out.gpa, value2=out.high) if code else result
        elif name == "PSMASH":
            result = self._became(self._lib.rmpc_psmash(*where))
        else:
            result = self._became(self._lib.rmpc_rmpupdate(*where, self._input(args)))
        self.cpu.mode = (0, 0, False, False)
        return result

    def _guest_instruction(self, name: str, args: Mapping[str, int]) -> Result:
        # ASID 0 is the host's; a guest never has it
        self.cpu.mode = (args["asid"] or 0xFFFFFFFF, args["vmpl"], bool(args["user"]), not args["plain"])
        page = self._lib.new("struct rmpc_page *", (args["pa"], args["gpa"], args["level"]))
        function = getattr(self._lib, f"rmpc_{name.lower()}")
        if name == "RMPQUERY":
            rcx, rdx = self._lib.new("uint64_t *"), self._lib.new("uint64_t *", args["rdx"])
            result = self._became(function(self.rmp, self.cpu, args["gva"], rcx, rdx, page))
            if result.kind == Kind.CODE and result.ret == 0:
                result = result._replace(value=rcx[0], value2=rdx[0])
        else:
            result = self._became(function(self.rmp, self.cpu, args["gva"], args["rcx"], args["rdx"], page))
        self.cpu.mode = (0, 0, False, False)
        return result

    def _rmpupdate(self, args: Mapping[str, int]) -> Result:
        return self._returned(self._lib.rmpc_host_rmpupdate(self.host, args["pfn"], self._input(args)))

    def _lookup_rmpentry(self, args: Mapping[str, int]) -> Result:
        assigned, level = self._lib.new("bool *"), self._lib.new("int *")
        ret = self._lib.rmpc_snp_lookup_rmpentry(self.host, args["pfn"], assigned, level)
        return Result(ret, level=level[0], flags=ResultFlag.ASSIGNED if assigned[0] else 0)

    def _lookup(self, args: Mapping[str, int]) -> Result:
        walk = self._lib.rmpc_dmap_lookup(self.dmap, self.map.page_offset + (args["pfn"] << 12))
        if not walk.entry:
            return Result(0)
        flags = (ResultFlag.RW if walk.rw else 0) | (ResultFlag.NX if walk.nx else 0)
        return Result(0, level=walk.level, flags=flags, value=walk.entry[0])

    def _access(self, args: Mapping[str, int]) -> Result:
        fields = {name: args[name] for name in ("pa", "gpa", "asid", "who", "level", "vmpl")}
        fields |= {"va": args["gva"], "kind": args["access"], "user": bool(args["user"]), "c": bool(args["c"])}
        access = self._lib.new("struct rmpc_access *", fields)
        assert self._lib.rmpc_access_is_valid(access, self.rmp.hardware.vmpls if self.rmp else 4)
        return self._became(self._lib.rmpc_rmp_check(self.rmp, access))

    def _vmrun(self, args: Mapping[str, int]) -> Result:
        outcome, refused = self._lib.new("struct rmpc_outcome *"), self._lib.new("uint64_t *")
        pages = (args["vmcb"], args["vmsa"], args["avic"], args["gpa"])
        status = self._lib.rmpc_vmrun(self.rmp, *pages, args["asid"], not args["plain"], outcome, refused)
        self._must(status, "VMRUN")
        return self._became(outcome[0])

    def _page_state(self, args: Mapping[str, int]) -> Result:
        entry = self._lib.new("struct rmpc_rmp_entry *")
        if not self.rmp or self._lib.rmpc_rmp_get(self.rmp, args["pfn"], entry) != self._lib.RMPC_OK:
            return Result(self._lib.RMPC_PAGE_DEFAULT)
        return Result(self._lib.rmpc_page_state_of(entry[0]))
