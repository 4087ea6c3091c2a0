"""A kernel that is held: booted, its boot-time direct map read, and stopped where its functions can be called.

The first stop is init_mem_mapping(), which builds the direct map, and its return.  The second is the entry of the sync
system call, which the guest's first process makes: from there calls are made in process context, by setting the
registers of the calling convention and returning to the breakpoint.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from rmpcore.inputs import Node, parse_json, recording_map
from rmpcore.kernel.debugger import Debugger
from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.guest import Guest, Layout
from rmpcore.kernel.image import Image
from rmpcore.kernel.snp import Executed, ModelHost, ModuleHost, SnpHost
from rmpcore.kernel.symbols import symbols_of
from rmpcore.kernel.tables import read_mappings
from rmpcore.maps import CACHEMODES_PAT, HIGH_BASE, MachineMap
from rmpcore.ops import BY_CODE, Op, OpCode
from rmpcore.recorded_calls import CALLS, SNP_CALLS
from rmpcore.recording import RecordingError, recorded_state

_BOOT_SECONDS = 180.0
_CALL_SECONDS = 60.0
_SCRIPT = "while true; do sync; done\n"
_MODULE_SCRIPT = (
    "insmod /rmpcore.ko || poweroff -nf\nsync\ngrep '^# [RP]' /proc/rmpcore/log > /dev/ttyS1\necho end > /dev/ttyS1\n"
    + _SCRIPT
)
"""The module's log lists each instruction that it did on a line of its own: "# RMPUPDATE ..."
Where it does not load, that is the last that the guest says; -n: without a sync."""
_STACK_ROOM = 0x200
"""Bytes of the stopped process's stack that stay as they are."""
_STRUCT_PAGE = 64
_NAMES = (
    *("_text", "_etext", "__start_rodata", "__end_rodata", "__end_rodata_hpage_align"),
    *("_end", "__init_begin", "__init_end"),
)
"""Addresses that go into a recording; _brk_end is a variable, and its value goes in."""
_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_U64 = (1 << 64) - 1
_P, _RW, _D, _FRAME = 1 << 0, 1 << 1, 1 << 6, 0x000F_FFFF_FFFF_F000
_GFP_KERNEL = 0xCC0


def _signed(value: int) -> int:
    """A C int in a register."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


@dataclass(frozen=True)
class Recorded:
    """A call and what came of it."""

    fn: str
    args: tuple[int, ...]
    ret: int | tuple[int, ...]
    page_counts: tuple[int, ...]
    instructions: tuple[Executed, ...] = ()
    injected: tuple[int, ...] = ()

    def to_json(self) -> dict[str, object]:
        ret = list(self.ret) if isinstance(self.ret, tuple) else self.ret
        value: dict[str, object] = {"fn": self.fn, "args": list(self.args), "ret": ret}
        value["page_counts"] = list(self.page_counts)
        if self.injected:
            value["injected"] = list(self.injected)
        return {**value, "insns": [one.to_json() for one in self.instructions]} if self.instructions else value


def call_arguments(op: Op) -> tuple[str, tuple[int, ...]]:
    """The kernel function that an op names, and its arguments as a recording has them.  Raises KernelError."""
    spec = BY_CODE[OpCode(op.op)]
    if spec.name not in CALLS:
        raise KernelError(f"{op}: is no call that can be made into a running kernel; those are {', '.join(CALLS)}")
    given = {arg.name: arg.find(getattr(op, arg.field)) for arg in spec.args}
    if given.get("high") or given.get("flavour"):
        raise KernelError(f"{op}: only calls on a range of pages of the direct map can be made")
    return spec.name, tuple(given[name] for name in CALLS[spec.name])


class Session:
    """A kernel that is held at the sync system call, for use with ``with``."""

    def __init__(self, image: Image, layout: Layout, module: bytes | None = None) -> None:
        """``module``: a kernel module that is loaded first and does the SNP instructions in the guest."""
        self.image, self.layout, self._module = image, layout, module
        self.symbols = symbols_of(image)
        self._stack = ExitStack()
        self._snp: SnpHost | None = None

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            script, files = (_SCRIPT, {}) if self._module is None else (_MODULE_SCRIPT, {"rmpcore.ko": self._module})
            self._guest = stack.enter_context(Guest(self.image, self.layout, script, files, debug=True))
            self._debugger = stack.enter_context(Debugger(self._guest))
            self._boot()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, value, tb)

    # --- what the kernel's memory says ---------------------------------------------------------------------------

    def _value(self, name: str, size: int = 8) -> int:
        return self._debugger.integer(self.symbols[name], size)

    def _run_to(self, address: int, registers: dict[str, int] | None = None) -> dict[str, int]:
        self._debugger.stop_at([address])
        stop = self._debugger.run(_BOOT_SECONDS, registers)
        if stop["rip"] != address:
            raise self._guest.error(f"the guest stopped at {stop['rip']:#x}, not at {address:#x}")
        return stop

    def _boot(self) -> None:
        stop = self._run_to(self.symbols["init_mem_mapping"])
        e820, memblock = self._e820(), self._memblock()
        self._run_to(self._debugger.integer(stop["rsp"]))
        five = self.symbols.get("__pgtable_l5_enabled") is not None and self._value("__pgtable_l5_enabled", 4)
        self._levels = 5 if five else 4
        self.page_offset = self._value("page_offset_base")
        supported, default = self._value("__supported_pte_mask"), self._value("__default_kernel_pte_mask")
        self.recording: dict[str, object] = {
            "format": "rmpcore-kernel-capture",
            "version": 1,
            "kernel": self.image.release,
            "machine": {
                "memory": self.layout.memory,
                "paging_levels": self._levels,
                "kernel_cmdline": self.layout.cmdline,
                "qemu_cpu": self.layout.cpu,
                "qemu_args": list(self.layout.qemu),
            },
            "page_offset": hex(self.page_offset),
            "phys_base": hex(self._value("phys_base")),
            "max_pfn": self._value("max_pfn"),
            "direct_gbpages": bool(self._value("direct_gbpages", 4)),
            "supported_pte_mask": hex(supported),
            "sme_me_mask": hex(self._value("sme_me_mask")),
            **({"default_kernel_pte_mask": hex(default)} if default != supported else {}),
        }
        symbols = {name: hex(self.symbols[name]) for name in _NAMES}
        symbols["_brk_end"] = hex(self._value("_brk_end"))
        boot = self._state()
        self._home = self.symbols["__x64_sys_sync"]
        self._stack_pointer = self._run_to(self._home)["rsp"]
        self._top = self._stack_pointer - _STACK_ROOM & ~0xF
        modes = [self._debugger.integer(self.symbols["__cachemode2pte_tbl"] + 2 * i, 2) for i in range(8)]
        if tuple(modes[: len(CACHEMODES_PAT)]) != CACHEMODES_PAT:
            self.recording["cachemode2pte"] = [hex(mode) for mode in modes]
        self.recording |= {"e820": e820, "symbols": symbols, "memblock": memblock, "boot": boot}
        self.map: MachineMap = recording_map(self._node(), rmp=True)

    def _e820(self) -> list[list[object]]:
        """struct e820_table: a count of 32 bits, then packed rows of address, size, and a type of 32 bits."""
        table = self._value("e820_table")
        count = self._debugger.integer(table, 4)
        data = self._debugger.read(table + 4, count * 20)
        rows = [data[i : i + 20] for i in range(0, len(data), 20)]
        return [
            [
                hex(int.from_bytes(row[:8], "little")),
                hex(int.from_bytes(row[8:16], "little")),
                int.from_bytes(row[16:], "little"),
            ]
            for row in rows
        ]

    def _memblock(self) -> dict[str, object]:
        """struct memblock: bottom_up, current_limit, then two of count, max, total, regions, name."""
        at = self.symbols["memblock"]

        def ranges(kind: int) -> list[list[str]]:
            count, regions = self._debugger.integer(kind), self._debugger.integer(kind + 24)
            data = self._debugger.read(regions, count * 24)
            words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
            return [[hex(words[i]), hex(words[i + 1])] for i in range(0, len(words), 3)]

        return {
            "bottom_up": bool(self._debugger.integer(at, 1)),
            "memory": ranges(at + 16),
            "reserved": ranges(at + 56),
        }

    def page_counts(self) -> tuple[int, ...]:
        """Pages of the direct map by size, 4K, 2M, 1G, as the kernel counts them."""
        data = self._debugger.read(self.symbols["direct_pages_count"] + 8, 24)
        return tuple(int.from_bytes(data[i : i + 8], "little") for i in (0, 8, 16))

    def _state(self) -> dict[str, object]:
        root = self.symbols["init_top_pgt"] - HIGH_BASE + self._value("phys_base") & _U64
        mapped = self._debugger.read(self.symbols["pfn_mapped"], 16 * self._value("nr_pfn_mapped", 4))
        words = [int.from_bytes(mapped[i : i + 8], "little") for i in range(0, len(mapped), 8)]
        return {
            "root": hex(root),
            "pfn_mapped": [words[i : i + 2] for i in range(0, len(words), 2)],
            "max_pfn_mapped": self._value("max_pfn_mapped"),
            "kernel_set_to_readonly": self._value("kernel_set_to_readonly", 4),
            "page_counts": dict(zip(("4k", "2m", "1g"), self.page_counts(), strict=True)),
            **read_mappings(self._debugger.table, root, self._levels, self.page_offset),
        }

    def _node(self) -> Node:
        """What has been recorded so far, read back as the file will be."""
        return parse_json(json.dumps(self.recording), self.image.release, RecordingError)

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(self, function: int, *args: int) -> int:
        """Call a function of the kernel; gives RAX."""
        registers = dict(zip(_REGISTERS, (arg & _U64 for arg in args), strict=False))
        self._debugger.write(self._top - 8, self._home.to_bytes(8, "little"))
        registers |= {"rsp": self._top - 8, "rip": function}
        while True:
            stop = self._debugger.run(_CALL_SECONDS, registers)
            if stop["rip"] == self._home and stop["rsp"] == self._top:
                return stop["rax"]
            if self._snp is None or stop["rip"] not in self._snp.sites:
                raise self._guest.error(f"the guest stopped at {stop['rip']:#x} in the midst of a call")
            registers = self._snp.service(stop)

    def claim(self, pfn: int, pages: int) -> bool:
        """Take frames from the kernel's allocator, so that nobody else uses them; False: not all are to be had."""
        if not any(base <= pfn << 12 and (pfn + pages) << 12 <= base + size for base, size in self.map.memory):
            return False
        function = self.symbols.get("alloc_contig_range_noprof", "alloc_contig_range")
        if function is None:
            raise KernelError(f"{self.image.release}: the kernel cannot give frames that are asked for")
        # The third argument is a migrate type in older kernels and flags in newer ones; 0 does for both.
        return _signed(self.call(function, pfn, pfn + pages, 0, _GFP_KERNEL)) == 0

    @property
    def has_snp(self) -> bool:
        """The kernel has SNP host code (6.9 and later, if it was built in)."""
        return self.symbols.get("rmp_make_private") is not None

    def use_snp(self) -> None:
        """Switch the kernel's SNP host code on; before the first state is taken."""
        if not self.has_snp:
            raise KernelError(f"{self.image.release}: the kernel has no SNP host code (6.9 and later have it)")
        if self._module is not None:
            self._snp = ModuleHost(self._debugger, self.symbols)
        else:
            self._snp = ModelHost(self._debugger, self.symbols, self.call, self.map)
        self._debugger.stop_at([self._home, *self._snp.sites])

    def _take_before(self) -> None:
        self.recording["before"] = self._state()
        self.before = recorded_state(self._node()["before"], self.map)

    def _set_dirty(self) -> bool:
        """Set D in leaves that may be written and lack it.  The CPU does so when the kernel next uses the page, which
        may be amid the calls: a loaded module's start code leaves such pages behind.  True: something was set."""
        leaves, tables = (rows[rows["window"] == 0].tolist() for rows in (self.before.leaves, self.before.tables))
        frames = {(level, offset): raw & _FRAME for _, level, offset, raw in tables}
        clean = [row for row in leaves if row[3] & (_P | _RW | _D) == _P | _RW]
        for _, level, offset, raw in clean:
            shift = 3 + 9 * level
            table = frames[level + 1, offset >> shift + 9 << shift + 9]
            entry = self.page_offset + table + 8 * (offset >> shift & 511)
            self._debugger.write(entry, (raw | _D).to_bytes(8, "little"))
        return bool(clean)

    def begin(self) -> None:
        """Take the state before the calls."""
        self._take_before()
        if self._set_dirty():
            self._take_before()
        if self._snp is not None:
            self._snp.start(self.before)

    def make(self, op: Op, injected: tuple[int, ...] = ()) -> Recorded:
        """Make the call that an op names."""
        name, args = call_arguments(op)
        function = self.symbols.get(name)
        if function is None:
            raise KernelError(f"{op}: {self.image.release} has no {name}()")
        snp = self._snp
        if snp is None and (name in SNP_CALLS or injected):
            raise KernelError(f"{op}: the kernel's SNP host code is not switched on")
        if snp is not None:
            snp.begin(injected)
        scratch = self._top + 0x40
        if name == "snp_lookup_rmpentry":
            self._debugger.write(scratch, bytes(16))
            error = _signed(self.call(function, args[0], scratch, scratch + 8))
            data = self._debugger.read(scratch, 16)
            ret: int | tuple[int, ...] = (error, data[0], int.from_bytes(data[8:12], "little"))
        else:
            ret = _signed(self.call(function, *self._registers(name, args)))
        if snp is not None and injected and snp.waiting:
            raise KernelError(f"{op}: executes fewer instructions than codes were injected")
        executed = tuple(snp.executed) if snp is not None else ()
        return Recorded(name, args, ret, self.page_counts(), executed, injected)

    def _registers(self, name: str, args: tuple[int, ...]) -> tuple[int, ...]:
        """What the kernel's function takes: an address, a struct page, or the frame number itself."""
        if name in SNP_CALLS:
            return args
        if name.startswith("set_direct_map_"):
            return (self._value("vmemmap_base") + args[0] * _STRUCT_PAGE, *args[1:])
        return (self.page_offset + (args[0] << 12), *args[1:])

    def finish(self, calls: list[Recorded]) -> dict[str, object]:
        """Take the state after the calls; gives the whole recording."""
        self.recording["after"] = self._state()
        if isinstance(self._snp, ModuleHost):
            completed = self._snp.complete([list(call.instructions) for call in calls], self._module_log())
            calls = [replace(call, instructions=tuple(done)) for call, done in zip(calls, completed, strict=True)]
        self.recording["calls"] = [call.to_json() for call in calls]
        return self.recording

    def _module_log(self) -> list[str]:
        """Let the process return from its system call and send the module's log."""
        self._debugger.stop_at([self._home])
        self._debugger.run(_BOOT_SECONDS, {"rsp": self._stack_pointer, "rip": self._home})
        lines = self._guest.port.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines or lines[-1].strip() != "end":
            raise self._guest.error("the module's log did not arrive")
        return lines
