# cython: language_level=3, freethreading_compatible=True, boundscheck=False, wraparound=False
"""The native machine: the C core on sparse memory, as a Python class."""

import re

import numpy as np

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from rmpcore._rmpc cimport *

from rmpcore.cpu import Cpu, Executed, Registers
from rmpcore.machine import MachineError, MemoryRange, RmpError
from rmpcore.maps import E820Type
from rmpcore.ops import EVENT_DTYPE, OP_DTYPE, RESULT_DTYPE, Op, OpCode, OpFlag, Result
from rmpcore.state import ENTRY_DTYPE, RMP_DTYPE, State

_CHANGES = "6.1, 6.2, 6.6, 6.9, 6.10, 6.12, 6.13, 6.14, 6.15"
_PARTS = {"milan": RMPC_PART_MILAN, "genoa": RMPC_PART_GENOA, "turin": RMPC_PART_TURIN}
_INSTRUCTIONS = (None, "RMPUPDATE", "PSMASH", "RMPREAD", "PVALIDATE", "RMPADJUST", "RMPQUERY")
_MODES = {64: RMPC_MODE_LONG, 32: RMPC_MODE_PROTECTED, 16: RMPC_MODE_REAL}
_DRAM = (E820Type.USABLE, E820Type.KERNEL_RESERVED, E820Type.SOFT_RESERVED)


cdef extern from "Python.h":
    # not Cython's declaration: it takes an object, which gcc 14 does not pass for a type
    object PyType_GenericAlloc(PyTypeObject *type, Py_ssize_t items)


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define RMPC_HAS_GIL 0
    #else
    #define RMPC_HAS_GIL 1
    #endif
    """
    const bint RMPC_HAS_GIL


@cython.final
cdef class Lock:
    # For one thread at a time.  Before Python 3.13 a mutex takes 40 ns, as long as many an op: who keeps the GIL meanwhile
    # needs none while nobody else has it.
    cdef cython.pymutex mutex
    cdef bint taken
    cdef char apart[128]  # from the next machine's lock, for threads with a machine each

    cdef inline bint is_needed(self) noexcept:
        return not RMPC_HAS_GIL or self.taken

    cdef inline void take(self) noexcept:
        self.mutex.acquire()
        self.taken = True

    cdef inline void give(self) noexcept:
        self.taken = False
        self.mutex.release()

    def __enter__(self):
        self.take()

    def __exit__(self, *raised):
        self.give()


cdef struct buffer:
    # Fixed-size records that grow as they come; lost: memory ran out, some are missing.
    char *data
    size_t item
    size_t count
    size_t room
    bint lost


cdef void *append(buffer *b) noexcept nogil:
    # Room for one more record, NULL if there is none.
    cdef size_t room
    cdef void *data
    if b.count == b.room:
        room = b.room * 2 if b.room else 64
        data = realloc(b.data, room * b.item)
        if data == NULL:
            b.lost = True
            return NULL
        b.data = <char *>data
        b.room = room
    b.count += 1
    return b.data + (b.count - 1) * b.item


cdef object take(buffer *b, object dtype):
    # The records as a new array; the buffer is empty afterwards.
    cdef bint lost = b.lost
    cdef size_t size = b.count * b.item
    array = np.frombuffer(b.data[:size], dtype=dtype).copy() if size else np.empty(0, dtype)
    b.count = 0
    b.lost = False
    if lost:
        raise MemoryError("no memory to collect all records of a machine")
    return array


cdef void on_event(void *user, const rmpc_event *event) noexcept nogil:
    cdef rmpc_event *slot = <rmpc_event *>append(<buffer *>user)
    if slot != NULL:
        slot[0] = event[0]


cdef packed struct table_entry:
    # One row of ENTRY_DTYPE.
    uint8_t window
    uint8_t level
    uint64_t offset
    uint64_t raw


cdef struct lister:
    buffer *tables
    buffer *leaves
    uint8_t window
    uint64_t origin


cdef c_bool on_entry(void *user, const rmpc_dmap_entry *entry) noexcept nogil:
    cdef lister *l = <lister *>user
    cdef table_entry *row = <table_entry *>append(l.tables if entry.table else l.leaves)
    if row == NULL:
        return False
    row.window = l.window
    row.level = <uint8_t>entry.level
    row.offset = entry.va - l.origin
    row.raw = entry.raw
    return True


def op_table():
    """The C core's own list of ops: {code: (name, flag bits, mode bits)}."""
    cdef unsigned code
    table = {}
    for code in range(256):
        if rmpc_op_name(code) != NULL:
            table[code] = (rmpc_op_name(code).decode(), rmpc_op_flags(code), rmpc_op_mode(code))
    return table


cdef inline _put(row, Py_ssize_t i, value):
    Py_INCREF(value)
    PyTuple_SET_ITEM(row, i, value)


cdef _result(rmpc_result *result):
    # As Result(...), which is Python code and would take longer than most ops.
    row = PyType_GenericAlloc(<PyTypeObject *>Result, 7)
    _put(row, 0, result.ret)
    _put(row, 1, result.kind)
    _put(row, 2, result.level)
    _put(row, 3, result.flags)
    _put(row, 4, result.reason)
    _put(row, 5, result.value)
    _put(row, 6, result.value2)
    return row


cdef struct surroundings:
    # What execute() was given beside registers: the operand in memory, and where the guest's address lies.
    const unsigned char *operand
    const rmpc_page *page
    rmpc_rmp_state written
    bint has_written


cdef c_bool read_operand(void *user, uint64_t va, rmpc_rmp_state *out, uint64_t *error) noexcept nogil:
    cdef surroundings *around = <surroundings *>user
    error[0] = 0
    if around.operand == NULL:
        return False
    memcpy(out, around.operand, sizeof(rmpc_rmp_state))
    return True


cdef c_bool write_operand(void *user, uint64_t va, const rmpc_rmp_state *data, uint64_t *error) noexcept nogil:
    cdef surroundings *around = <surroundings *>user
    around.written = data[0]
    around.has_written = True
    return True


cdef c_bool find_page(void *user, uint64_t va, rmpc_page *page, uint64_t *error) noexcept nogil:
    cdef surroundings *around = <surroundings *>user
    error[0] = 0
    if around.page == NULL:
        return False
    page[0] = around.page[0]
    return True


cdef _merged(extents):
    """(base, size) ranges sorted and merged."""
    rows = []
    last = None
    for base, size in sorted(extents):
        if last is not None and base <= last[1]:
            last[1] = max(last[1], base + size)
        else:
            last = [base, base + size]
            rows.append(last)
    return [(start, end - start) for start, end in rows]


cdef _without(extents, holes):
    """The same less some holes, sorted."""
    for hole, length in holes:
        parts = []
        for base, size in extents:
            parts.append((base, min(base + size, hole) - base))
            start = max(base, hole + length)
            parts.append((start, base + size - start))
        extents = [(base, size) for base, size in parts if size > 0]
    return sorted(extents)


cdef str text_of(rmpc_status status):
    return rmpc_status_text(status).decode()


cdef _sorted(array):
    order = np.lexsort((array["offset"], -array["level"].astype(np.int8), array["window"]))
    return array[order]


cdef class _Bytes:
    # One range of a machine's memory as a buffer, which keeps the machine alive.
    cdef NativeMachine machine
    cdef size_t index

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef rmpc_range *part = &self.machine.ranges[self.index]
        PyBuffer_FillInfo(view, self, part.host, <Py_ssize_t>part.size, 0, flags)


cdef class NativeMachine:
    """A machine on the C core; see rmpcore.machine.MachineLike for what each method does.

    Calls on one machine from several threads wait for each other.
    """

    cdef object _map
    cdef str _kernel
    cdef Lock lock
    cdef rmpc_range *ranges
    cdef size_t range_count
    cdef rmpc_extent *ram
    cdef rmpc_extent *reserved
    cdef rmpc_e820 *e820
    cdef rmpc_frames *mapped
    cdef rmpc_extent *dram
    cdef uint64_t *busy
    cdef uint32_t *words
    cdef rmpc_rmp_segment *segments
    cdef rmpc_mem mem
    cdef rmpc_pool pool
    cdef rmpc_events events
    cdef buffer recorded
    cdef rmpc_dmap dmap
    cdef rmpc_rmp rmp
    cdef rmpc_cpu cpu
    cdef rmpc_firmware firmware
    cdef rmpc_machine machine

    def __cinit__(self, map, *, kernel="6.12", hardware="milan", switches=None, policy="upstream",
                  state=None):  # noqa: A002
        cdef rmpc_dmap_config config
        cdef rmpc_hardware profile
        self._map = map
        self.lock = Lock()
        self.recorded.item = sizeof(rmpc_event)
        self.events.user = &self.recorded
        self._choose(policy)
        self._configure(&config, kernel)
        self._profile(&profile, hardware, {} if switches is None else switches)
        self._reserve()
        rooms = 16 + len(map.memory) + (len(state.mapped) if state is not None else 0)
        self.mapped = <rmpc_frames *>self._calloc(rooms, sizeof(rmpc_frames))
        self._must(rmpc_dmap_init(&self.dmap, &self.mem, &config, self.mapped, rooms, &self.events), "direct map")
        self.machine.mem = &self.mem
        self.machine.host.dmap = &self.dmap
        self.machine.host.memory = self.ram
        self.machine.host.memory_count = len(map.memory)
        self.machine.host.events = &self.events
        self.machine.host.cpu = &self.cpu
        self.machine.host.firmware = &self.firmware
        self.cpu.events = &self.events
        self.firmware.events = &self.events
        self._place_rmp(&profile, &config.kernel)
        if state is None:
            self._boot()
        blocks = self._end_blocks(&config.kernel)
        self._set_dram(blocks)
        if config.kernel.rmp_end_reserved:
            self._set_reserved(_merged([*map.reserved, *blocks]))
        if state is not None:
            self._load(state)

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.range_count):
            rmpc_sparse_unmap(&self.ranges[i])
        for p in (<size_t>self.ranges, <size_t>self.ram, <size_t>self.reserved, <size_t>self.e820,
                  <size_t>self.mapped, <size_t>self.busy, <size_t>self.words, <size_t>self.segments,
                  <size_t>self.dram):
            PyMem_Free(<void *><size_t>p)
        free(self.recorded.data)

    cdef void *_calloc(self, size_t count, size_t size) except NULL:
        cdef void *p = PyMem_Calloc(count if count else 1, size)
        if p == NULL:
            raise MemoryError
        return p

    cdef int _must(self, rmpc_status status, str what) except -1:
        if status != RMPC_OK:
            raise MachineError(f"{what}: {text_of(status)}")
        return 0

    cdef int _choose(self, policy) except -1:
        cdef unsigned number
        for number in range(<unsigned>RMPC_POLICY_END):
            if rmpc_policy_name(number).decode() == policy:
                self.machine.host.policy = <rmpc_policy>number
                return 0
        raise MachineError(f"no policy {policy!r}")

    cdef int _configure(self, rmpc_dmap_config *config, kernel) except -1:
        cdef int i
        map = self._map  # noqa: A001
        version = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", kernel) if isinstance(kernel, str) else None
        if version is None or rmpc_kernel_init(&config.kernel, int(version[1]), int(version[2])) != RMPC_OK:
            raise MachineError(f"no rules for kernel {kernel!r}: give 6.1 or later (rules change at {_CHANGES})")
        self._kernel = f"{config.kernel.major}.{config.kernel.minor}"
        config.levels = map.levels
        config.large_level = {"4K": 1, "2M": 2, "1G": 3}[map.large_pages]
        if self.machine.host.policy == RMPC_POLICY_MAP_4K:
            config.large_level = 1
        config.page_offset = map.page_offset
        config.supported_mask = map.supported_mask
        config.default_mask = map.default_mask
        config.c_bit = map.c_bit
        for i, bits in enumerate(map.cachemodes):
            config.cache_modes[i] = bits
        config.image = rmpc_image(0, 0, 0, 0, 0, 0)
        if map.image is not None:
            config.image.text = map.image.text
            config.image.etext = map.image.etext
            config.image.start_rodata = map.image.start_rodata
            config.image.end_rodata = map.image.end_rodata
            config.image.brk_end = map.image.brk_end
            config.image.phys_base = map.image.phys_base
        return 0

    cdef int _profile(self, rmpc_hardware *profile, hardware, switches) except -1:
        cdef rmpc_hardware alone
        if hardware not in _PARTS:
            raise MachineError(f"no hardware profile {hardware!r}: it is one of {', '.join(_PARTS)}")
        rmpc_hardware_init(profile, <rmpc_part><int>_PARTS[hardware])
        defaults = dict(profile[0])
        known = dict(defaults)
        for name, value in switches.items():
            if name not in known:
                raise MachineError(f"no switch {name!r}: it is one of {', '.join(sorted(known))}")
            if not isinstance(value, int) or not 0 <= value <= 0xFFFFFFFF:
                raise MachineError(f"switch {name}: {value!r} is not a value that it takes")
            known[name] = int(value)
            alone = defaults | {name: int(value)}
            # what a segment may be is said by several together
            if not name.startswith("segment_") and rmpc_hardware_check(&alone) != RMPC_OK:
                raise MachineError(f"switch {name}: {value} is not a value that it takes")
        profile[0] = known
        if rmpc_hardware_check(profile) != RMPC_OK:
            raise MachineError("the switches segment_* do not go together")
        return 0

    cdef int _reserve(self) except -1:
        # Host memory for RAM and, apart from it, for the RMP.
        cdef size_t i
        map = self._map  # noqa: A001
        wanted = [(base, size, True) for base, size in map.memory]
        areas = map.segmented.areas() if map.segmented is not None else ()
        if map.rmp is not None:
            base, end = map.rmp
            areas = ((base, end + 1 - base),)
        for base, size in areas:
            first = base // 4096 * 4096
            if size > 0:
                wanted.append((first, (base + size + 4095) // 4096 * 4096 - first, False))
        wanted.sort()
        self.ranges = <rmpc_range *>self._calloc(len(wanted), sizeof(rmpc_range))
        for i, (base, size, dense) in enumerate(wanted):
            self.ranges[i].base = base
            self.ranges[i].size = size
            if rmpc_sparse_map(&self.ranges[i], dense) != RMPC_OK:
                raise MachineError(f"no address space for {size:#x} bytes of simulated memory")
            self.range_count = i + 1
        self.ram = <rmpc_extent *>self._calloc(len(map.memory), sizeof(rmpc_extent))
        for i, (base, size) in enumerate(map.memory):
            self.ram[i] = rmpc_extent(base, size)
        self._set_reserved(map.reserved)
        self.e820 = <rmpc_e820 *>self._calloc(len(map.e820), sizeof(rmpc_e820))
        for i, (base, size, kind) in enumerate(map.e820):
            self.e820[i] = rmpc_e820(base, size, kind & 0xFFFFFFFF)
        self.pool.mem = &self.mem
        self.pool.memory = self.ram
        self.pool.memory_count = len(map.memory)
        rmpc_pool_init(&self.pool)
        self.mem.ranges = self.ranges
        self.mem.count = self.range_count
        self.mem.alloc = rmpc_pool_alloc
        self.mem.free = rmpc_pool_free
        self.mem.user = &self.pool
        return 0

    cdef rmpc_extent *_extents(self, ranges) except NULL:
        cdef size_t i
        cdef rmpc_extent *extents = <rmpc_extent *>self._calloc(len(ranges), sizeof(rmpc_extent))
        for i, (base, size) in enumerate(ranges):
            extents[i] = rmpc_extent(base, size)
        return extents

    cdef int _set_reserved(self, ranges) except -1:
        # What the allocator leaves alone.
        cdef rmpc_extent *extents = self._extents(ranges)
        PyMem_Free(self.reserved)
        self.reserved = extents
        self.pool.reserved = extents
        self.pool.reserved_count = len(ranges)
        return 0

    cdef _end_blocks(self, const rmpc_kernel *kernel):
        # The 2 MiB blocks that this kernel reserves at the ends of the RMP.
        cdef rmpc_extent blocks[2 * 513]
        cdef rmpc_extent *usable
        cdef size_t count
        cdef size_t i
        if self.machine.host.rmp == NULL or not self._map.rmp_probed or not kernel.rmp_end_blocks:
            return []
        rows = _merged([(base, size) for base, size, kind in self._map.e820 if kind == E820Type.USABLE])
        usable = self._extents(rows)
        count = rmpc_rmp_end_blocks(&self.rmp, usable, len(rows), blocks, 2 * 513)
        PyMem_Free(usable)
        return [(blocks[i].base, blocks[i].size) for i in range(count)]

    cdef int _set_dram(self, blocks) except -1:
        # What SNP_INIT leaves to the hypervisor: DRAM that is not on the kernel's list of reserved ranges.
        rows = _merged([(base, size) for base, size, kind in self._map.e820 if kind in _DRAM])
        rows = _without(rows, blocks)
        self.dram = self._extents(rows)
        self.firmware.dram = self.dram
        self.firmware.dram_count = len(rows)
        return 0

    cdef int _place_rmp(self, const rmpc_hardware *profile, const rmpc_kernel *kernel) except -1:
        cdef rmpc_rmp_msrs msrs = rmpc_rmp_msrs(0, 0, 0)
        cdef rmpc_rmp_room room
        cdef rmpc_status status
        map = self._map  # noqa: A001
        if map.rmp is None and map.segmented is None:
            return 0
        if map.segmented is not None:
            msrs.base, msrs.cfg = map.segmented.base, map.segmented.cfg
            name = f"segmented RMP {msrs.base:#x}"
            if not msrs.cfg & 1:
                raise RmpError(f"{name}: RMP_CFG {msrs.cfg:#x} is not that of a segmented RMP")
            self._write_segment_table(map.segmented)
        else:
            msrs.base, msrs.end = map.rmp
            name = f"RMP {msrs.base:#x}-{msrs.end:#x}"
        # hardware refuses a segmented table before any kernel sees it, a kernel a contiguous one that hardware takes
        status = RMPC_OK
        if map.rmp is not None and map.rmp_probed:
            status = rmpc_rmp_probe(&msrs, &self.mem, profile, kernel, map.max_pfn)
        if status == RMPC_OK:
            status = rmpc_rmp_measure(&msrs, &self.mem, profile, &room)
        if status == RMPC_OK and map.segmented is not None and map.rmp_probed:
            status = rmpc_rmp_probe(&msrs, &self.mem, profile, kernel, map.max_pfn)
        if status == RMPC_OK:
            self.segments = <rmpc_rmp_segment *>self._calloc(room.segments, sizeof(rmpc_rmp_segment))
            self.words = <uint32_t *>self._calloc(room.words, sizeof(uint32_t))
            status = rmpc_rmp_init(&self.rmp, &msrs, &self.mem, profile, map.c_bit, self.segments, self.words)
        if status != RMPC_OK:
            raise RmpError(f"{name}: {text_of(status)}")
        self.machine.host.rmp = &self.rmp
        self.firmware.rmp = &self.rmp
        return 0

    cdef int _write_segment_table(self, segmented) except -1:
        # As firmware leaves it in memory, where the C core reads it.
        cdef bytes table = np.array(segmented.rst, dtype="<u8").tobytes()
        self._must(rmpc_mem_write(&self.mem, segmented.base + 0x4000, <const char *>table, len(table)), "segment table")
        return 0

    cdef int _boot(self) except -1:
        cdef rmpc_boot_memory boot
        cdef rmpc_status status
        boot.memory = self.ram
        boot.memory_count = self.pool.memory_count
        boot.reserved = self.reserved
        boot.reserved_count = self.pool.reserved_count
        boot.e820 = self.e820
        boot.e820_count = len(self._map.e820)
        boot.max_pfn = self._map.max_pfn
        with nogil:
            status = rmpc_dmap_boot(&self.dmap, &boot)
        self._must(status, "building the direct map")
        return 0

    # ---- a saved state ----

    cdef int _load(self, state) except -1:
        cdef size_t i
        cdef uint64_t frame
        frames = [state.root] + [raw & RMPC_PTE_ADDRESS & ~self._map.c_bit for raw in state.tables["raw"].tolist()]
        self._check_table_pages(state, frames)
        self.busy = <uint64_t *>self._calloc(len(frames), sizeof(uint64_t))
        for i, frame in enumerate(sorted(frames)):
            self.busy[i] = frame >> 12
        self.pool.busy = self.busy
        self.pool.busy_count = len(frames)
        self._must(rmpc_dmap_put_root(&self.dmap, state.root), f"state: root table {state.root:#x}")
        for window in (0, 1):
            tables = state.tables[state.tables["window"] == window]
            leaves = state.leaves[state.leaves["window"] == window]
            if window == 1 and (len(tables) or len(leaves) or self._map.image is not None):
                self._must(rmpc_dmap_put_high_path(&self.dmap), "state: tables above the high mapping")
            # parents first
            self._put(tables[np.argsort(-tables["level"].astype(np.int8), kind="stable")], True)
            self._put(leaves, False)
        if len(state.tables) + len(state.leaves) != sum(
            int((array["window"] <= 1).sum()) for array in (state.tables, state.leaves)
        ):
            raise MachineError("state: an entry is neither in the direct map nor in the high mapping")
        self._load_counts(state)
        self._load_rmp(state)
        return 0

    cdef int _check_table_pages(self, state, frames) except -1:
        whose = ["root table"] + [
            f"table entry at +{row['offset']:#x} level {row['level']}" for row in state.tables
        ]
        seen = {}
        for frame, name in zip(frames, whose, strict=True):
            if frame % 4096 or not any(base <= frame < base + size for base, size in self._map.memory):
                raise MachineError(f"state: {name}: table page {frame:#x} is not a page of memory")
            if frame in seen:
                raise MachineError(f"state: {name}: table page {frame:#x} is also that of {seen[frame]}")
            seen[frame] = name
        return 0

    cdef int _put(self, rows, bint tables) except -1:
        cdef rmpc_status status = RMPC_OK
        cdef uint64_t va
        cdef uint64_t raw
        cdef int level
        limit = rmpc_dmap_limit(&self.dmap)
        kind = "table entry" if tables else "leaf"
        for window, lvl, offset, value in rows.tolist():
            level = lvl
            raw = value
            where = f"state: {kind} {raw:#x} at {('direct map', 'high mapping')[window]} +{offset:#x} level {level}"
            if window == 0:
                va = (self._map.page_offset + offset) & 0xFFFFFFFFFFFFFFFF
                # the slot that holds the map's first byte may begin before it
                outside = offset >= limit and offset < (1 << 64) - (1 << (12 + 9 * (max(lvl, 1) - 1)))
            else:
                va = (RMPC_HIGH_MAP + offset) & 0xFFFFFFFFFFFFFFFF
                outside = offset >= RMPC_HIGH_SIZE or level > 2
            if outside:
                raise MachineError(f"{where}: outside its window")
            if tables:
                status = rmpc_dmap_put_table(&self.dmap, va, level, raw)
            else:
                status = rmpc_dmap_put_leaf(&self.dmap, va, level, raw)
            self._must(status, where)
        return 0

    cdef int _load_counts(self, state) except -1:
        counters = state.counters
        for start, end in state.mapped:
            self._must(rmpc_dmap_add_mapped(&self.dmap, start, end), "state: mapped ranges")
        self.dmap.max_pfn_mapped = state.max_pfn_mapped
        self.dmap.kernel_readonly = bool(state.kernel_readonly)
        for level, name in ((1, "4k"), (2, "2m"), (3, "1g")):
            self.dmap.counters.pages[level] = counters.get(f"direct_map_{name}", 0)
        self.dmap.page_total = rmpc_dmap_page_total(&self.dmap.counters)
        for level in (2, 3):
            self.dmap.counters.splits[level] = counters.get(f"level{level}_splits", 0)
            self.dmap.counters.collapses[level] = counters.get(f"level{level}_collapses", 0)
        self.dmap.counters.flush_all = counters.get("flush_all", 0)
        self.dmap.counters.flush_pages = counters.get("flush_pages", 0)
        self.dmap.counters.flush_cache = counters.get("flush_cache", 0)
        self.dmap.counters.flush_cache_all = counters.get("flush_cache_all", 0)
        self.machine.host.leaked_pages = counters.get("leaked_pages", 0)
        self.machine.host.retries = counters.get("rmpupdate_retries", 0)
        self.machine.host.counters = rmpc_host_counters(
            counters.get("host_accesses", 0), counters.get("host_faults_owner", 0),
            counters.get("host_faults_neighbour", 0), counters.get("fault_repairs", 0),
            counters.get("forced_shared", 0), counters.get("kmap_windows", 0))
        self.mem.fail_skip, self.mem.fail_count = state.fail_alloc
        for pfn, high in state.addresses:
            if self.apply(Op(OpCode.cpa_address, 0, OpFlag.HIGH if high else 0, 0, pfn)).kind:
                raise MachineError(f"state: listed address of frame {pfn:#x} is not one that can be listed")
        return 0

    cdef int _load_rmp(self, state) except -1:
        cdef rmpc_insn_counters *c = &self.cpu.counters
        c.rmpupdate, c.psmash, c.rmpread, c.pvalidate, c.rmpadjust, c.rmpquery = [
            state.counters.get(name, 0)
            for name in ("rmpupdate", "psmash", "rmpread", "pvalidate", "rmpadjust", "rmpquery")
        ]
        if self.machine.host.rmp == NULL:
            if len(state.rmp) or state.inject or state.in_use or state.firmware_ready or state.bookkeeping:
                raise MachineError("state: it is of a machine with an RMP, the map has none")
            if state.contexts or state.records:
                raise MachineError("state: the firmware knows guests, the map has no RMP")
            return 0
        for pfn, lo, hi in state.rmp.tolist():
            if rmpc_rmp_set(&self.rmp, pfn, rmpc_rmp_entry(lo, hi)) != RMPC_OK:
                raise MachineError(f"state: the RMP does not cover frame {pfn:#x}")
        rmpc_rmp_recount(&self.rmp)
        for code, count in state.inject:
            self._must(rmpc_cpu_inject(&self.cpu, code, count), "state: injected codes")
        for vmcb, vmsa, avic in state.in_use:
            self._must(rmpc_in_use_add(&self.rmp, rmpc_in_use(vmcb, vmsa, avic)), f"state: VMCB {vmcb:#x} in use")
        self.firmware.ready = bool(state.firmware_ready)
        for pfn, asid in state.contexts:
            self._must(rmpc_firmware_add_context(&self.firmware, rmpc_context(pfn, asid)), f"state: context {pfn:#x}")
        for row in state.records:
            self._must(rmpc_firmware_add_record(&self.firmware, rmpc_record(row[0], row[1], row[2], row[3], row[4])),
                       f"state: metadata record {row[0]:#x}")
        last = 0
        for asid, count in state.bookkeeping:
            if not last < asid < 1024 or not 0 < count < 1 << 64:
                raise MachineError(f"state: {count} pages of ASID {asid} cannot be, or not after those of ASID {last}")
            self.rmp.bookkeeping[<size_t>asid] = count
            last = asid
        return 0

    # ---- MachineLike ----

    @property
    def backend(self):
        return "native"

    @property
    def map(self):
        return self._map

    @property
    def kernel(self):
        return self._kernel

    @property
    def policy(self):
        return rmpc_policy_name(self.machine.host.policy).decode()

    def apply(self, op):
        cdef rmpc_op record
        cdef rmpc_result result
        cdef bint needed
        cdef tuple fields = <tuple>op if isinstance(op, tuple) else tuple(op)
        # field by field: to unpack a subclass of tuple takes an iterator
        if len(fields) != 12:
            raise ValueError(f"an op has 12 fields, not {len(fields)}")
        record.op = fields[0]
        record.level = fields[1]
        record.flags = fields[2]
        record.id = fields[3]
        record.addr = fields[4]
        record.gpa = fields[5]
        record.count = fields[6]
        record.va = fields[7]
        record.rcx = fields[8]
        record.rdx = fields[9]
        record.mode = fields[10]
        record.reserved = fields[11]
        needed = self.lock.is_needed()
        if needed:
            self.lock.take()
        rmpc_machine_apply(&self.machine, &record, &result)
        if needed:
            self.lock.give()
        return _result(&result)

    def execute(self, code, registers, cpu=Cpu(), operand=None, page=None):
        cdef rmpc_registers r
        cdef rmpc_page where
        cdef surroundings around
        cdef rmpc_memory memory = rmpc_memory(read_operand, write_operand, find_page, &around)
        cdef rmpc_decoded decoded
        cdef rmpc_outcome outcome
        cdef rmpc_result result = rmpc_result(0, 0, 0, 0, 0, 0, 0)
        cdef const unsigned char[::1] bytes_of_code = code if len(code) else b"\0"
        cdef const unsigned char[::1] bytes_of_operand
        cdef size_t size = len(code)
        if operand is not None and len(operand) != 16:
            raise ValueError(f"the operand has {len(operand)} bytes, not 16")
        if cpu.mode not in _MODES:
            raise ValueError(f"mode {cpu.mode} is not 64, 32 or 16")
        if not 0 <= cpu.vmpl < (self.rmp.hardware.vmpls if self.machine.host.rmp != NULL else 4):
            raise ValueError(f"there is no VMPL {cpu.vmpl}")
        if page is not None and page.level not in (1, 2, 3):
            raise ValueError(f"{page.level} is no level of a nested mapping")
        for value in (*registers, *(page[:2] if page is not None else ())):
            if not 0 <= value < 1 << 64:
                raise ValueError(f"{value:#x} does not fit into a register")
        if not 0 <= cpu.asid < 1 << 32:
            raise ValueError(f"there is no ASID {cpu.asid:#x}")
        r = rmpc_registers(registers.rax, registers.rcx, registers.rdx, registers.rip, registers.rflags)
        around.operand = NULL
        around.page = NULL
        around.has_written = False
        if operand is not None:
            bytes_of_operand = operand
            around.operand = &bytes_of_operand[0]
        if page is not None:
            where = rmpc_page(page.pa, page.gpa, page.level)
            around.page = &where
        with self.lock:
            self.cpu.mode = rmpc_mode(cpu.asid, cpu.vmpl, cpu.cpl != 0, cpu.snp)
            outcome = rmpc_insn_execute(self.machine.host.rmp, &self.cpu, _MODES[cpu.mode], &bytes_of_code[0], size, &r,
                                        &memory, &decoded)
        if decoded.insn == RMPC_INSN_NONE:
            return Executed(None, 0, Result(0), registers)
        rmpc_result_of(outcome, &result)
        done = result.kind == 1 and result.ret == 0
        name = _INSTRUCTIONS[<int>decoded.insn]
        if done and name == "RMPQUERY":
            result.value, result.value2 = r.rcx, r.rdx
        if done and name == "RMPREAD":
            result.value, result.value2 = around.written.gpa, around.written.high
        return Executed(
            name,
            decoded.length,
            _result(&result),
            Registers(r.rax, r.rcx, r.rdx, r.rip, r.rflags),
            (<char *>&around.written)[:16] if around.has_written else None,
        )

    def run(self, ops):
        cdef const unsigned char[::1] source
        cdef unsigned char[::1] target
        cdef size_t count
        if not isinstance(ops, np.ndarray) or ops.dtype != OP_DTYPE or ops.ndim != 1:
            raise TypeError("ops is not a one-dimensional array of OP_DTYPE records")
        ops = np.ascontiguousarray(ops)
        results = np.empty(len(ops), RESULT_DTYPE)
        count = len(ops)
        if count == 0:
            return results
        source = ops.view(np.uint8)
        target = results.view(np.uint8)
        with self.lock, nogil:
            rmpc_machine_run(&self.machine, <const rmpc_op *>&source[0], count, <rmpc_result *>&target[0])
        return results

    def state(self):
        with self.lock:
            return self._state()

    cdef _state(self):
        cdef buffer tables = buffer(NULL, sizeof(table_entry), 0, 0, False)
        cdef buffer leaves = buffer(NULL, sizeof(table_entry), 0, 0, False)
        cdef buffer entries = buffer(NULL, 3 * sizeof(uint64_t), 0, 0, False)
        cdef lister l
        cdef rmpc_rmp_entry entry
        cdef uint64_t pfn
        cdef uint64_t *row
        cdef size_t i
        try:
            with nogil:
                l = lister(&tables, &leaves, 0, self.dmap.config.page_offset)
                rmpc_dmap_list(&self.dmap, l.origin, rmpc_dmap_limit(&self.dmap), 5, on_entry, &l)
                l = lister(&tables, &leaves, 1, RMPC_HIGH_MAP)
                rmpc_dmap_list(&self.dmap, l.origin, RMPC_HIGH_SIZE, 2, on_entry, &l)
                if self.machine.host.rmp != NULL:
                    pfn = rmpc_rmp_next_used(&self.rmp, 0)
                    while pfn < self.rmp.frames:
                        row = <uint64_t *>append(&entries)
                        if row == NULL:
                            break
                        rmpc_rmp_get(&self.rmp, pfn, &entry)
                        row[0] = pfn
                        row[1] = entry.lo
                        row[2] = entry.hi
                        pfn = rmpc_rmp_next_used(&self.rmp, pfn + 1)
            table_rows = take(&tables, ENTRY_DTYPE)
            leaf_rows = take(&leaves, ENTRY_DTYPE)
            rmp_rows = take(&entries, RMP_DTYPE)
        finally:
            free(tables.data)
            free(leaves.data)
            free(entries.data)
        return State(
            root=self.dmap.root,
            tables=_sorted(table_rows),
            leaves=_sorted(leaf_rows),
            rmp=rmp_rows,
            counters=self._counters(),
            mapped=tuple([(self.dmap.mapped[i].start, self.dmap.mapped[i].end)
                          for i in range(self.dmap.mapped_count)]),
            max_pfn_mapped=self.dmap.max_pfn_mapped,
            kernel_readonly=bool(self.dmap.kernel_readonly),
            inject=tuple([(self.cpu.inject.runs[i].code, self.cpu.inject.runs[i].count)
                          for i in range(self.cpu.inject.count)]),
            addresses=tuple([self._listed(self.machine.addresses[i]) for i in range(self.machine.address_count)]),
            fail_alloc=(self.mem.fail_skip, self.mem.fail_count),
            in_use=tuple([(self.rmp.in_use[i].vmcb, self.rmp.in_use[i].vmsa, self.rmp.in_use[i].avic)
                          for i in range(self.rmp.in_use_count)]),
            firmware_ready=bool(self.firmware.ready),
            contexts=tuple([(self.firmware.contexts[i].pfn, self.firmware.contexts[i].asid)
                            for i in range(self.firmware.context_count)]),
            records=tuple([(self.firmware.records[i].address, self.firmware.records[i].context,
                            self.firmware.records[i].info, self.firmware.records[i].gpa, self.firmware.records[i].hi)
                           for i in range(self.firmware.record_count)]),
            bookkeeping=self._bookkeeping(),
        )

    cdef _counters(self):
        cdef rmpc_dmap_counters *c = &self.dmap.counters
        cdef rmpc_host_counters *h = &self.machine.host.counters
        return {
            "direct_map_4k": c.pages[1],
            "direct_map_2m": c.pages[2],
            "direct_map_1g": c.pages[3],
            "level2_splits": c.splits[2],
            "level3_splits": c.splits[3],
            "level2_collapses": c.collapses[2],
            "level3_collapses": c.collapses[3],
            "flush_all": c.flush_all,
            "flush_pages": c.flush_pages,
            "flush_cache": c.flush_cache,
            "flush_cache_all": c.flush_cache_all,
            "table_pages": c.table_pages,
            "rmpupdate": self.cpu.counters.rmpupdate,
            "psmash": self.cpu.counters.psmash,
            "rmpread": self.cpu.counters.rmpread,
            "pvalidate": self.cpu.counters.pvalidate,
            "rmpadjust": self.cpu.counters.rmpadjust,
            "rmpquery": self.cpu.counters.rmpquery,
            "rmpupdate_retries": self.machine.host.retries,
            "leaked_pages": self.machine.host.leaked_pages,
            "host_accesses": h.accesses,
            "host_faults_owner": h.faults_owner,
            "host_faults_neighbour": h.faults_neighbour,
            "fault_repairs": h.repairs,
            "forced_shared": h.forced_shared,
            "kmap_windows": h.windows,
        }

    def counters(self):
        with self.lock:
            return self._counters()

    def census(self):
        cdef rmpc_census census
        with self.lock, nogil:
            rmpc_dmap_census(&self.dmap, &census)
        return {"4k": census.leaves[1], "2m": census.leaves[2], "1g": census.leaves[3], "missing": census.missing}

    cdef _bookkeeping(self):
        cdef size_t asid
        if self.machine.host.rmp == NULL:
            return ()
        return tuple([(asid, self.rmp.bookkeeping[asid]) for asid in range(1, 1024) if self.rmp.bookkeeping[asid]])

    cdef _listed(self, uint64_t va):
        # An address of cpa_address as (frame, 1 for high).
        if va >= RMPC_HIGH_MAP:
            return ((va - RMPC_HIGH_MAP + self.dmap.config.image.phys_base) >> 12, 1)
        return ((va - self.dmap.config.page_offset) >> 12, 0)

    def validate(self):
        cdef uint64_t where
        cdef rmpc_invariant broken
        cdef uint64_t *scratch
        with self.lock:
            room = self.dmap.counters.table_pages
            scratch = <uint64_t *>self._calloc(room, sizeof(uint64_t))
            with nogil:
                broken = rmpc_dmap_validate(&self.dmap, scratch, self.dmap.counters.table_pages, &where)
            PyMem_Free(scratch)
        if broken == RMPC_INVARIANTS_HOLD:
            return None
        return f"{rmpc_invariant_name(broken).decode()}: at virtual address {where:#x}"

    def record_events(self, on):
        with self.lock:
            self.events.report = NULL
            if on:
                self.events.report = on_event
            else:
                self.recorded.count = 0
                self.recorded.lost = False

    def take_events(self):
        with self.lock:
            return take(&self.recorded, EVENT_DTYPE)

    @property
    def root(self):
        return self.dmap.root

    def memory(self):
        cdef _Bytes held
        cdef size_t i
        parts = []
        for i in range(self.range_count):
            held = _Bytes.__new__(_Bytes)
            held.machine = self
            held.index = i
            parts.append(MemoryRange(self.ranges[i].base, np.frombuffer(held, np.uint8)))
        return tuple(parts)

    def read_rmp(self, pfn):
        cdef rmpc_rmp_entry entry
        self._covered(pfn)
        with self.lock:
            rmpc_rmp_get(&self.rmp, pfn, &entry)
        return entry.lo, entry.hi

    def write_rmp(self, pfn, lo, hi):
        cdef rmpc_rmp_entry entry
        self._covered(pfn)
        entry.lo = lo
        entry.hi = hi
        with self.lock:
            rmpc_rmp_set(&self.rmp, pfn, entry)

    cdef int _covered(self, pfn) except -1:
        cdef rmpc_rmp_entry entry
        if self.machine.host.rmp == NULL or not 0 <= pfn < 1 << 40 or rmpc_rmp_get(&self.rmp, pfn, &entry) != RMPC_OK:
            raise IndexError(f"the RMP has no entry for frame {pfn:#x}")
        return 0
