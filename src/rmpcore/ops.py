"""The op list: one instruction, kernel call or model control each, its text form and its bulk form.

An op applied to a machine gives a result and a new state.  This module says which ops there are, which
arguments each takes, and how ops, results and events are written as text and as fixed-size records.
Both machines (native and oracle) take exactly these records; ``include/rmpcore/op.h`` has the same
layout in C, and a test holds the two lists against each other.

Names: the mnemonic in capitals is the instruction (``PSMASH pa=0x200000``) or, with SNP in front, the firmware
command (``SNP_MD_INIT``); a lower-case name is the Linux function (``psmash pfn=0x200``), an access (``host_write``) or
a control of the model (``inject``, ``fail_alloc``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmpcore.page_state import PageState

OP_DTYPE = np.dtype(
    [
        ("op", "<u2"),
        ("level", "u1"),
        ("flags", "u1"),
        ("id", "<u4"),
        ("addr", "<u8"),
        ("gpa", "<u8"),
        ("count", "<u8"),
        ("va", "<u8"),
        ("rcx", "<u8"),
        ("rdx", "<u8"),
        ("mode", "<u4"),
        ("reserved", "<u4"),
    ]
)
RESULT_DTYPE = np.dtype(
    [
        ("ret", "<i4"),
        ("kind", "u1"),
        ("level", "u1"),
        ("flags", "u1"),
        ("reason", "u1"),
        ("value", "<u8"),
        ("value2", "<u8"),
    ]
)
EVENT_DTYPE = np.dtype(
    [
        ("kind", "<u2"),
        ("level", "u1"),
        ("reserved", "u1"),
        ("code", "<i4"),
        ("a", "<u8"),
        ("b", "<u8"),
        ("c", "<u8"),
    ]
)

U64_MAX = (1 << 64) - 1


class OpError(ValueError):
    """An op, or a line of a trace, that does not say something a machine can do."""


class OpCode(IntEnum):
    """The op's number in the bulk form."""

    RMPUPDATE = 1
    PSMASH = 2
    RMPREAD = 3
    rmpupdate = 4
    rmp_make_private = 5
    rmp_make_firmware = 6
    rmp_make_shared = 7
    psmash = 8
    snp_lookup_rmpentry = 9
    adjust_direct_map = 10
    dump_rmpentry = 11
    snp_leak_pages = 12
    lookup = 13
    set_memory_4k = 14
    set_direct_map_invalid_noflush = 15
    set_direct_map_default_noflush = 16
    set_direct_map_valid_noflush = 17
    inject = 18
    fail_alloc = 19
    set_memory_ro = 20
    set_memory_rw = 21
    set_memory_rox = 22
    set_memory_nx = 23
    set_memory_x = 24
    set_memory_np = 25
    set_memory_p = 26
    set_memory_np_noalias = 27
    set_memory_global = 28
    set_memory_nonglobal = 29
    _set_memory_uc = 30
    _set_memory_wc = 31
    _set_memory_wb = 32
    set_memory_encrypted = 33
    set_memory_decrypted = 34
    change_page_attr_set = 35
    change_page_attr_clear = 36
    cpa_address = 37
    PVALIDATE = 38
    RMPADJUST = 39
    RMPQUERY = 40
    VMRUN = 41
    VMEXIT = 42
    access = 43
    host_read = 44
    host_write = 45
    SNP_INIT = 46
    SNP_SHUTDOWN = 47
    SNP_GCTX_CREATE = 48
    SNP_ACTIVATE = 49
    SNP_DECOMMISSION = 50
    SNP_LAUNCH_UPDATE = 51
    SNP_PAGE_RECLAIM = 52
    SNP_PAGE_SET_STATE = 53
    SNP_PAGE_MOVE = 54
    SNP_PAGE_UNSMASH = 55
    SNP_MD_INIT = 56
    SNP_PAGE_SWAP_OUT = 57
    SNP_PAGE_SWAP_IN = 58
    rmp_mark_pages_firmware = 59
    snp_reclaim_pages = 60
    page_state = 61
    kvm_read_guest = 62
    kvm_write_guest = 63


class OpFlag(IntFlag):
    """Bits of an op record's ``flags``."""

    ASSIGNED = 1 << 0
    SIZE_2M = 1 << 1
    IMMUTABLE = 1 << 2
    VALID = 1 << 3
    GUEST = 1 << 4
    USER = 1 << 5
    HIGH = 1 << 6


class Flavour(IntEnum):
    """How a call says which pages it means (``level`` of its record)."""

    RANGE = 0
    """pages consecutive pages from pfn."""
    ARRAY = 1
    """An array of addresses: the first ``pages`` that cpa_address has listed; pfn is 0."""
    PAGES = 2
    """An array of pages, likewise; they are meant by frame, so none may be listed as high."""


class Who(IntEnum):
    """Who makes an access, or what a page is used as (``mode`` bits 7:0; rmp §3.2, §3.7)."""

    HOST = 0
    PLAIN = 1
    """A guest without SNP."""
    SNP = 2
    IOMMU = 3
    PSP = 4
    VMCB = 5
    AVIC = 6
    VMSA_PLAIN = 7
    """The VMSA of a guest without SNP."""
    VMSA_SNP = 8
    HSAVE = 9
    VMSAVE = 10


class AccessKind(IntEnum):
    """What an access does (``mode`` bits 15:8)."""

    READ = 0
    WRITE = 1
    FETCH = 2
    WALK = 3
    """Reading a page-table entry."""
    WALK_WRITE = 4
    """Setting A or D in a page-table entry."""
    SHADOW_STACK = 5


class Reason(IntEnum):
    """Why an access was not allowed (``reason`` of a result)."""

    NONE = 0
    ASSIGNED = 1
    """The page itself is not the hypervisor's."""
    NEIGHBOUR = 2
    """The page is the hypervisor's, another one of its 2 MiB region is not, and the mapping is large."""
    IN_USE = 3
    UNCOVERED = 4
    OWNER = 5
    """Not assigned, or to another ASID."""
    GPA = 6
    IMMUTABLE = 7
    SIZE = 8
    NOT_VALIDATED = 9
    VMPL = 10
    NOT_VMSA = 11
    NULL = 12
    RESERVED = 13
    """Reserved bits in the entry of the segment table."""
    NOT_PRESENT = 14
    READ_ONLY = 15


class Kind(IntEnum):
    """What a result's ``ret`` is."""

    KERNEL = 0
    """A kernel function's return: 0, a negative errno, or (psmash) a positive instruction code."""
    CODE = 1
    """An SNP instruction's code in EAX."""
    FAULT = 2
    """An exception; ``ret`` is the vector (6 #UD, 13 #GP, 14 #PF, 29 #VC), ``value`` the error code, ``value2`` CR2 for
    #PF and #VC."""
    HANG = 3
    """The kernel function would repeat its RMPUPDATE for ever; ``ret`` is the code it keeps getting."""
    REFUSED = 4
    """The model cannot do this op; ``ret`` is a :class:`Refusal`.  The state is untouched."""
    NPF = 5
    """#VMEXIT(NPF); ``ret`` is its code, 0x400, ``value`` EXITINFO1, ``value2`` the guest physical address."""
    INVALID = 6
    """#VMEXIT(INVALID); ``ret`` is its code, -1."""
    IOMMU = 7
    """An event of the IOMMU; ``ret`` is its code (0xd RMP_FAULT), ``value2`` the address."""
    FIRMWARE = 8
    """A firmware command's status."""
    ALLOWED = 9
    """The access passes; ``level``: of the leaf that it went through (host_* and kvm_*_guest)."""


class Refusal(IntEnum):
    """Why an op was refused (the numbers of ``enum rmpc_status`` in include/rmpcore/status.h)."""

    BAD_ARGUMENT = 1
    BAD_OP = 2
    QUEUE_FULL = 5


class ResultFlag(IntFlag):
    """Bits of a result record's ``flags``."""

    ASSIGNED = 1 << 0
    """snp_lookup_rmpentry: the page is assigned."""
    RW = 1 << 1
    """lookup: RW holds at every level above the leaf."""
    NX = 1 << 2
    """lookup: NX is set at some level above the leaf."""
    CF = 1 << 3
    """PVALIDATE: the page was as asked already."""


class EventKind(IntEnum):
    """What a machine reports beside its results; the fields that each kind uses are given here."""

    RMPUPDATE = 1
    """code: EAX; a: RAX (page address); b, c: low and high quadword of the 16-byte input."""
    PSMASH = 2
    """code: EAX; a: RAX."""
    RMPREAD = 3
    """code: EAX; a: RAX; b, c: the 16 bytes written (0 unless code is 0)."""
    FLUSH_ALL = 4
    """All TLB entries on all CPUs."""
    FLUSH_PAGES = 5
    """Page by page on all CPUs; a: first virtual address; b: pages."""
    TABLE_ALLOC = 6
    """A page for a page table; level: of the entries it will hold; a: physical address."""
    ALLOC_FAIL = 7
    """No page was to be had for a table; level: of the entries it would have held."""
    SPLIT = 8
    """level: of the leaf that was split; a: its virtual address; b: its raw value; c: the new table."""
    RMPUPDATE_FAILED = 9
    """The kernel's complaint; level, a: as passed to rmpupdate(); code: EAX."""
    DUMP_ENTRY = 10
    """One RMP entry in a dump; a: PFN; b, c: low and high quadword."""
    DUMP_REGION = 11
    """Head line of a region's dump; a: the PFN asked for; b, c: first PFN and one past the last."""
    DUMP_ERROR = 12
    """The entry cannot be read; a: PFN; code: negative errno."""
    LEAK = 13
    """snp_leak_pages; a: first PFN; b: pages."""
    FLUSH_CACHE = 14
    """Cache lines of present pages on all CPUs; a: first virtual address; b: pages."""
    FLUSH_CACHE_ALL = 15
    """All caches on all CPUs."""
    W_AND_X = 16
    """The kernel's W^X complaint; level, a: virtual address of the entry's first byte; b, c: flags before, after."""
    COLLAPSE = 17
    """level: of the leaf that was made; a: its virtual address; b: its raw value; c: the table that it replaces."""
    TABLE_FREE = 18
    """A page-table page is given back; a: physical address."""
    PVALIDATE = 19
    """code: EAX; level: CF; a: RAX; b, c: RCX and RDX."""
    RMPADJUST = 20
    """code: EAX; a: RAX; b, c: RCX and RDX."""
    RMPQUERY = 21
    """code: EAX; a: RAX; b, c: RCX and RDX afterwards (0 unless code is 0)."""
    FIRMWARE = 22
    """code: status; a: number of the command; b, c: addr and va of the op."""
    FAULT = 23
    """An access was refused.  level: kind of the result; code: its ret; a: physical address; b: value; c: reason."""


LEVEL_NAMES = {1: "4K", 2: "2M", 3: "1G", 4: "512G", 5: "256T"}
_LEVEL_NUMBERS = {name: number for number, name in LEVEL_NAMES.items()}

CODE_NAMES = {
    1: "FAIL_INPUT",
    2: "FAIL_PERMISSION",
    3: "FAIL_INUSE",
    4: "FAIL_OVERLAP",
    6: "FAIL_SIZEMISMATCH",
    7: "FAIL_BADADDR",
}
VECTOR_NAMES = {6: "#UD", 13: "#GP", 14: "#PF", 29: "#VC"}
STATUS_NAMES = {
    0x00: "SUCCESS",
    0x01: "INVALID_PLATFORM_STATE",
    0x02: "INVALID_GUEST_STATE",
    0x03: "INVALID_CONFIG",
    0x08: "INACTIVE",
    0x09: "INVALID_ADDRESS",
    0x0C: "ASID_OWNED",
    0x0D: "INVALID_ASID",
    0x10: "INVALID_GUEST",
    0x12: "ACTIVE",
    0x16: "INVALID_PARAM",
    0x17: "RESOURCE_LIMIT",
    0x19: "INVALID_PAGE_SIZE",
    0x1A: "INVALID_PAGE_STATE",
    0x1B: "INVALID_MDATA_ENTRY",
    0x1C: "INVALID_PAGE_OWNER",
}
"""Statuses of firmware commands that the model gives, named as in Linux's include/uapi/linux/psp-sev.h."""


RMP_CALLS = (
    OpCode.rmpupdate,
    OpCode.rmp_make_private,
    OpCode.rmp_make_firmware,
    OpCode.rmp_make_shared,
    OpCode.psmash,
    OpCode.rmp_mark_pages_firmware,
    OpCode.snp_reclaim_pages,
)
"""Kernel functions that end in an instruction on the RMP, whose code they may return."""


class Op(NamedTuple):
    """One op, field by field as in :data:`OP_DTYPE`."""

    op: int
    level: int = 0
    flags: int = 0
    id: int = 0
    addr: int = 0
    gpa: int = 0
    count: int = 0  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    va: int = 0
    rcx: int = 0
    rdx: int = 0
    mode: int = 0
    reserved: int = 0

    def __str__(self) -> str:
        return format_op(self)


class Result(NamedTuple):
    """One result, field by field as in :data:`RESULT_DTYPE`."""

    ret: int
    kind: int = Kind.KERNEL
    level: int = 0
    flags: int = 0
    reason: int = 0
    value: int = 0
    value2: int = 0


class Event(NamedTuple):
    """One event, field by field as in :data:`EVENT_DTYPE`."""

    kind: int
    level: int = 0
    reserved: int = 0
    code: int = 0
    a: int = 0
    b: int = 0
    c: int = 0


@dataclass(frozen=True)
class Arg:
    """One named argument of an op.

    ``field`` is the record field that holds it, ``bit`` the flag for a yes/no argument, ``mask`` its bits where
    it shares the field with others, ``default`` what stands in when the text leaves it out (``None``: it has to be
    given), ``names`` its values' names.
    """

    name: str
    field: str
    doc: str
    bit: int = 0
    default: int | None = None
    mask: int = 0
    names: type[IntEnum] | None = None

    @property
    def limit(self) -> int:
        """The greatest value."""
        if self.bit:
            return 1
        return self.mask // (self.mask & -self.mask) if self.mask else _FIELD_MAX[self.field]

    def place(self, value: int) -> int:
        """The value at its bits of the field."""
        if self.bit:
            return int(self.bit) if value else 0
        return value * (self.mask & -self.mask) if self.mask else value

    def find(self, field: int) -> int:
        """The value in a field."""
        if self.bit:
            return int(bool(field & self.bit))
        return (field & self.mask) // (self.mask & -self.mask) if self.mask else field


@dataclass(frozen=True)
class OpSpec:
    """An op of the list: its name, its arguments in order, and what it is."""

    code: OpCode
    args: tuple[Arg, ...]
    doc: str

    @property
    def name(self) -> str:
        return self.code.name

    @property
    def flag_mask(self) -> int:
        """The flag bits that the op uses; a record with any other bit is refused."""
        return self._mask("flags")

    @property
    def mode_mask(self) -> int:
        """The same for the bits of ``mode``."""
        return self._mask("mode")

    def _mask(self, field: str) -> int:
        mask = 0
        for arg in self.args:
            if arg.field == field:
                mask |= int(arg.bit | arg.mask)
        return mask


_PFN = Arg("pfn", "addr", "frame number: physical address >> 12")
_PA = Arg("pa", "addr", "physical address in bytes (RAX)")
_GPA = Arg("gpa", "gpa", "guest physical address in bytes")
_LEVEL = Arg("level", "level", "4K, 2M or the kernel's number (1, 2)")
_PAGES = Arg("pages", "count", "number of 4 KiB pages")
_ASID = Arg("asid", "id", "address space id of the guest, 0 for the host")
_ASSIGNED = Arg("assigned", "flags", "1: not the hypervisor's", bit=OpFlag.ASSIGNED)
_SIZE = Arg("size", "flags", "4K or 2M", bit=OpFlag.SIZE_2M)
_IMMUTABLE = Arg("immutable", "flags", "1: software may not change the entry", bit=OpFlag.IMMUTABLE, default=0)
_VALID = Arg("valid", "flags", "1: make present, 0: make not present", bit=OpFlag.VALID)
_RESERVED = Arg("reserved", "count", "extra bits of the input's high quadword", default=0)
_HIGH = Arg("high", "flags", "1: the frame's address in the high mapping of the image", bit=OpFlag.HIGH, default=0)
_FLAVOUR = Arg("flavour", "level", "range, array, pages or the number (0, 1, 2)", default=0, names=Flavour)
_MASK = Arg("mask", "gpa", "entry bits in small form; none of the frame's but the encryption bit")
_CPA = (_PFN, _PAGES, _HIGH, _FLAVOUR)
_VMPL = Arg("vmpl", "mode", "VMPL of whoever executes", default=0, mask=0xFF0000)
_PLAIN = Arg("plain", "mode", "1: the guest is none with SNP", bit=1 << 25, default=0)
_GVA = Arg("gva", "va", "guest virtual address (rAX)")
_RCX = Arg("rcx", "rcx", "size: 0 4K, 1 2M")
_RDX = Arg("rdx", "rdx", "PVALIDATE: 1 validate, 0 rescind; else 7:0 VMPL, 15:8 permissions, 16 VMSA")
_GUEST_PA = Arg("pa", "addr", "system physical address that the guest's address is translated to")
_GUEST_GPA = Arg("gpa", "gpa", "guest physical address that it is translated to")
_NESTED = Arg("level", "level", "size of the nested mapping: 4K, 2M, 1G")
_GCTX = Arg("gctx", "va", "address of the guest's context page")
_GCTX_PAGE = Arg("gctx", "addr", "address of the guest's context page")
_FW_PA = Arg("pa", "addr", "address of the page")
_SRC = Arg("src", "addr", "address of the source page")
_DST = Arg("dst", "gpa", "address of the destination page")
_MDATA = Arg("mdata", "count", "address of the 64-byte metadata record")
_GUEST = Arg("guest", "flags", "1: executed with a non-zero current ASID", bit=OpFlag.GUEST, default=0)
_USER = Arg("user", "flags", "1: executed at CPL 3", bit=OpFlag.USER, default=0)
_TRANSLATED = (_GUEST_PA, _GUEST_GPA, _ASID, _NESTED, _VMPL, _USER, _PLAIN)

OPS: tuple[OpSpec, ...] = (
    OpSpec(
        OpCode.RMPUPDATE,
        (_PA, _GPA, _ASSIGNED, _SIZE, _IMMUTABLE, _ASID, _RESERVED, _GUEST, _USER),
        "the instruction RMPUPDATE",
    ),
    OpSpec(OpCode.PSMASH, (_PA, _GUEST, _USER), "the instruction PSMASH"),
    OpSpec(OpCode.RMPREAD, (_PA, _GUEST, _USER), "the instruction RMPREAD"),
    OpSpec(
        OpCode.rmpupdate,
        (_PFN, _GPA, _ASSIGNED, _SIZE, _IMMUTABLE, _ASID),
        "kernel: direct map adjusted, then RMPUPDATE repeated while it overlaps",
    ),
    OpSpec(OpCode.rmp_make_private, (_PFN, _GPA, _LEVEL, _ASID, _IMMUTABLE), "kernel: give a page to a guest"),
    OpSpec(OpCode.rmp_make_firmware, (_PFN, _LEVEL), "kernel: give a page to the firmware"),
    OpSpec(OpCode.rmp_make_shared, (_PFN, _LEVEL), "kernel: take a page back for the hypervisor"),
    OpSpec(OpCode.psmash, (_PFN,), "kernel: break a 2 MiB RMP entry into 512"),
    OpSpec(OpCode.snp_lookup_rmpentry, (_PFN,), "kernel: is the page assigned, and at which level"),
    OpSpec(OpCode.adjust_direct_map, (_PFN, _LEVEL), "kernel: split the direct map for an RMP update"),
    OpSpec(OpCode.dump_rmpentry, (_PFN,), "kernel: print the entry, or its region's non-zero entries"),
    OpSpec(OpCode.snp_leak_pages, (_PFN, _PAGES), "kernel: give up on pages that cannot be made shared"),
    OpSpec(OpCode.lookup, (_PFN,), "kernel: lookup_address() of the frame in the direct map"),
    OpSpec(OpCode.set_memory_4k, _CPA, "kernel: force 4 KiB mappings"),
    OpSpec(OpCode.set_direct_map_invalid_noflush, (_PFN,), "kernel: unmap one page"),
    OpSpec(OpCode.set_direct_map_default_noflush, (_PFN,), "kernel: map one page again"),
    OpSpec(OpCode.set_direct_map_valid_noflush, (_PFN, _PAGES, _VALID), "kernel: unmap or map pages"),
    OpSpec(
        OpCode.inject,
        (
            Arg("code", "id", "code in EAX; 0: execute normally"),
            Arg("count", "count", "how many instructions", default=1),
        ),
        "model: the next RMPUPDATEs and PSMASHes answer this code and do nothing else",
    ),
    OpSpec(
        OpCode.fail_alloc,
        (
            Arg("skip", "addr", "allocations that still succeed", default=0),
            Arg("count", "count", "allocations that then fail", default=1),
        ),
        "model: make the allocator of table pages fail (replaces an earlier fail_alloc)",
    ),
    OpSpec(OpCode.set_memory_ro, _CPA, "kernel: not writable"),
    OpSpec(OpCode.set_memory_rw, _CPA, "kernel: writable"),
    OpSpec(OpCode.set_memory_rox, _CPA, "kernel: not writable, executable (from 6.2)"),
    OpSpec(OpCode.set_memory_nx, _CPA, "kernel: not executable"),
    OpSpec(OpCode.set_memory_x, _CPA, "kernel: executable"),
    OpSpec(OpCode.set_memory_np, _CPA, "kernel: not present"),
    OpSpec(OpCode.set_memory_p, _CPA, "kernel: present"),
    OpSpec(OpCode.set_memory_np_noalias, _CPA, "kernel: not present here, other mappings left alone"),
    OpSpec(OpCode.set_memory_global, _CPA, "kernel: global"),
    OpSpec(OpCode.set_memory_nonglobal, _CPA, "kernel: not global"),
    OpSpec(OpCode._set_memory_uc, _CPA, "kernel: uncached (UC-)"),
    OpSpec(OpCode._set_memory_wc, _CPA, "kernel: write-combining"),
    OpSpec(OpCode._set_memory_wb, _CPA, "kernel: write-back"),
    OpSpec(OpCode.set_memory_encrypted, _CPA, "kernel: encryption bit on, where memory encryption is active"),
    OpSpec(OpCode.set_memory_decrypted, _CPA, "kernel: encryption bit off, where memory encryption is active"),
    OpSpec(OpCode.change_page_attr_set, (_PFN, _PAGES, _MASK, _HIGH, _FLAVOUR), "kernel: set entry bits"),
    OpSpec(OpCode.change_page_attr_clear, (_PFN, _PAGES, _MASK, _HIGH, _FLAVOUR), "kernel: clear entry bits"),
    OpSpec(OpCode.cpa_address, (_PFN, _HIGH), "model: list an address for the array flavours"),
    OpSpec(OpCode.PVALIDATE, (_GVA, _RCX, _RDX, *_TRANSLATED), "the instruction PVALIDATE"),
    OpSpec(OpCode.RMPADJUST, (_GVA, _RCX, _RDX, *_TRANSLATED), "the instruction RMPADJUST"),
    OpSpec(OpCode.RMPQUERY, (_GVA, _RDX, *_TRANSLATED), "the instruction RMPQUERY"),
    OpSpec(
        OpCode.VMRUN,
        (
            Arg("vmcb", "addr", "address of the VMCB"),
            Arg("vmsa", "va", "address of the VMSA; 0: none", default=0),
            Arg("gpa", "gpa", "guest physical address of the VMSA", default=0),
            Arg("avic", "count", "address of the AVIC backing page; 0: none", default=0),
            _ASID,
            _PLAIN,
        ),
        "the checks of VMRUN; its pages are in use afterwards",
    ),
    OpSpec(
        OpCode.VMEXIT, (Arg("vmcb", "addr", "address of the VMCB"),), "the end of a VMRUN: its pages are free again"
    ),
    OpSpec(
        OpCode.access,
        (
            Arg("who", "mode", "whose access, or what the page is used as", mask=0xFF, names=Who),
            Arg("access", "mode", "what it does", mask=0xFF00, names=AccessKind, default=0),
            Arg("pa", "addr", "system physical address in bytes"),
            Arg("level", "level", "size of the translation: 4K, 2M, 1G"),
            Arg("gpa", "gpa", "guest physical address in bytes", default=0),
            Arg("asid", "id", "ASID of the guest", default=0),
            Arg("c", "mode", "1: the guest's mapping is private", bit=1 << 24, default=0),
            _VMPL,
            _USER,
            Arg("gva", "va", "virtual address, for CR2", default=0),
        ),
        "the RMP check of one access",
    ),
    OpSpec(OpCode.host_read, (_PFN,), "the host reads through the direct map"),
    OpSpec(OpCode.host_write, (_PFN,), "the host writes through the direct map"),
    OpSpec(
        OpCode.SNP_INIT,
        (
            Arg("pfn", "addr", "first frame of the IOMMU's buffers", default=0),
            Arg("pages", "count", "how many frames they have", default=0),
        ),
        "firmware: set up the whole RMP",
    ),
    OpSpec(
        OpCode.SNP_SHUTDOWN,
        (Arg("iommu", "mode", "1: give the IOMMU's buffers back", bit=1 << 26, default=0),),
        "firmware: SNP_SHUTDOWN_EX",
    ),
    OpSpec(OpCode.SNP_GCTX_CREATE, (_GCTX_PAGE,), "firmware: make a firmware page a guest's context"),
    OpSpec(OpCode.SNP_ACTIVATE, (_GCTX_PAGE, _ASID), "firmware: bind a guest to an ASID"),
    OpSpec(OpCode.SNP_DECOMMISSION, (_GCTX_PAGE,), "firmware: forget a guest"),
    OpSpec(
        OpCode.SNP_LAUNCH_UPDATE,
        (
            _GCTX,
            _FW_PA,
            _SIZE,
            Arg("type", "level", "1 normal, 2 VMSA, 3 zero, 4 unmeasured, 5 secrets, 6 CPUID"),
            *(
                Arg(f"vmpl{vmpl}", "count", f"permission byte of VMPL{vmpl}", default=0, mask=0xFF << 8 * vmpl)
                for vmpl in (1, 2, 3)
            ),
        ),
        "firmware: give a page to a guest before it runs",
    ),
    OpSpec(
        OpCode.SNP_PAGE_RECLAIM,
        (Arg("pa", "addr", "address of the page; bit 0: it is 2 MiB"),),
        "firmware: give a page back to the host",
    ),
    OpSpec(OpCode.SNP_PAGE_SET_STATE, (_FW_PA, _PAGES), "firmware: make firmware pages HV-Fixed"),
    OpSpec(OpCode.SNP_PAGE_MOVE, (_GCTX, _SRC, _DST, _SIZE), "firmware: move a page of a guest, or of metadata"),
    OpSpec(OpCode.SNP_PAGE_UNSMASH, (_FW_PA,), "firmware: make one 2 MiB entry of 512"),
    OpSpec(OpCode.SNP_MD_INIT, (_GCTX, _FW_PA), "firmware: make a firmware page a metadata page"),
    OpSpec(OpCode.SNP_PAGE_SWAP_OUT, (_GCTX, _SRC, _DST, _MDATA, _SIZE), "firmware: swap a page out"),
    OpSpec(OpCode.SNP_PAGE_SWAP_IN, (_GCTX, _SRC, _DST, _MDATA, _SIZE), "firmware: swap a page in"),
    OpSpec(OpCode.rmp_mark_pages_firmware, (_PFN, _PAGES), "kernel: give pages to the firmware"),
    OpSpec(OpCode.snp_reclaim_pages, (_PFN, _PAGES), "kernel: take pages back from the firmware"),
    OpSpec(OpCode.page_state, (_PFN,), "model: which state the page's entry is in"),
    OpSpec(OpCode.kvm_read_guest, (_PFN,), "KVM reads a page that a guest shares with it"),
    OpSpec(OpCode.kvm_write_guest, (_PFN,), "KVM writes a page that a guest shares with it"),
)
BY_CODE = {spec.code: spec for spec in OPS}
BY_NAME = {spec.name: spec for spec in OPS}

_FIELD_MAX = {
    "level": 0xFF,
    "flags": 0xFF,
    "id": 0xFFFF_FFFF,
    "addr": U64_MAX,
    "gpa": U64_MAX,
    "count": U64_MAX,
    "va": U64_MAX,
    "rcx": U64_MAX,
    "rdx": U64_MAX,
    "mode": 0xFFFF_FFFF,
}


def _number(text: str, what: str, limit: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise OpError(f"{what}: not a number: {text!r}") from None
    if not 0 <= value <= limit:
        raise OpError(f"{what}: {text} is outside 0..{limit:#x}")
    return value


def _level(text: str, what: str) -> int:
    if text in _LEVEL_NUMBERS:
        return _LEVEL_NUMBERS[text]
    return _number(text, what, 0xFF)


_IN_HEX = ("addr", "gpa", "va", "rcx", "rdx")


def make_op(name: str, **args: int) -> Op:
    """Build an op by name: ``make_op("psmash", pfn=0x200)``.

    Yes/no arguments and ``size`` (0: 4K, 1: 2M) are 0 or 1.  Raises :class:`OpError` on an unknown op or argument,
    a missing argument, or a value outside its field.
    """
    spec = BY_NAME.get(name)
    if spec is None:
        raise OpError(f"unknown op {name!r}")
    record = dict.fromkeys(_FIELD_MAX, 0)
    for arg in spec.args:
        value = args.pop(arg.name, arg.default)
        if value is None:
            raise OpError(f"{name}: argument {arg.name} is missing")
        if arg.bit and value not in (0, 1):
            raise OpError(f"{name}: {arg.name} is {value}, not 0 or 1")
        if not 0 <= value <= arg.limit:
            raise OpError(f"{name}: {arg.name} is outside 0..{arg.limit:#x}")
        record[arg.field] |= arg.place(value)
    if args:
        raise OpError(f"{name}: unknown argument {min(args)}")
    return Op(spec.code, **record)


def parse_op(text: str) -> Op:
    """Read one op from its text form, ``name key=value ...``.  Raises :class:`OpError`."""
    name, *words = text.split() or [""]
    values: dict[str, int] = {}
    spec = BY_NAME.get(name)
    if spec is None:
        raise OpError(f"unknown op {name!r}")
    known = {arg.name: arg for arg in spec.args}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise OpError(f"{name}: {word!r} is not key=value")
        if key not in known:
            raise OpError(f"{name}: unknown argument {key!r}")
        if key in values:
            raise OpError(f"{name}: argument {key} is given twice")
        what = f"{name}: {key}"
        arg = known[key]
        if arg.name == "size":
            if value not in ("4K", "2M"):
                raise OpError(f"{what}: {value!r} is not 4K or 2M")
            values[key] = int(value == "2M")
        elif arg.names is not None and value.upper() in arg.names.__members__:
            values[key] = arg.names[value.upper()]
        elif arg.name == "level":
            values[key] = _level(value, what)
        else:
            values[key] = _number(value, what, arg.limit)
    return make_op(name, **values)


def format_op(op: Op) -> str:
    """The text form of an op; ``parse_op(format_op(op)) == op`` for every op of the list."""
    spec = BY_CODE.get(op.op)  # type: ignore[call-overload]
    if spec is None:
        return f"op{op.op}"
    words = [spec.name]
    for arg in spec.args:
        value = arg.find(getattr(op, arg.field))
        if value == arg.default:
            continue
        if arg.name == "size":
            text = "2M" if value else "4K"
        elif arg.names is not None and value in arg.names.__members__.values():
            text = arg.names(value).name.lower()
        elif arg.name == "level":
            text = LEVEL_NAMES.get(value, str(value))
        elif not arg.bit and (arg.field in _IN_HEX or arg.name in ("reserved", "avic", "mdata")):
            text = f"{value:#x}"
        else:
            text = str(value)
        words.append(f"{arg.name}={text}")
    return " ".join(words)


def format_result(op: Op, result: Result) -> str:
    """A result as a person reads it: ``= 0``, ``= -14``, ``= 4 FAIL_OVERLAP``, ``= 0 assigned=1 level=4K``."""
    ret = result.ret
    reason = f" {Reason(result.reason).name}" if result.reason in Reason.__members__.values() and result.reason else ""
    if result.kind == Kind.FAULT:
        code = f" error={result.value:#x}" if ret in (14, 29) else ""
        return f"= {VECTOR_NAMES.get(ret, f'vector {ret}')}{code}{reason}"
    if result.kind == Kind.NPF:
        return f"= #NPF exitinfo1={result.value:#x}{reason}"
    if result.kind == Kind.INVALID:
        return f"= #VMEXIT(INVALID){reason}"
    if result.kind == Kind.IOMMU:
        return f"= IOMMU event={ret:#x}{reason}"
    if result.kind == Kind.FIRMWARE:
        return f"= firmware {ret:#x} {STATUS_NAMES.get(ret, 'unknown')}"
    if result.kind == Kind.ALLOWED:
        return f"= allowed level={LEVEL_NAMES[result.level]}" if result.level in LEVEL_NAMES else "= allowed"
    if result.kind == Kind.HANG:
        return f"= hangs, {CODE_NAMES.get(ret, ret)} for ever"
    if result.kind == Kind.REFUSED:
        why = Refusal(ret).name if ret in Refusal.__members__.values() else str(ret)
        return f"= refused {why}"
    text = f"= {ret}"
    if op.op == OpCode.page_state:
        return f"{text} {PageState(ret).name}" if ret in PageState.__members__.values() else text
    positive_code = result.kind == Kind.CODE or (op.op in RMP_CALLS and ret > 0)
    if positive_code and ret in CODE_NAMES:
        return f"{text} {CODE_NAMES[ret]}"
    if ret != 0:
        return text
    if op.op == OpCode.snp_lookup_rmpentry:
        assigned = int(bool(result.flags & ResultFlag.ASSIGNED))
        return f"{text} assigned={assigned} level={LEVEL_NAMES.get(result.level, result.level)}"
    if op.op == OpCode.lookup:
        if result.level == 0:
            return f"{text} none"
        rw = int(bool(result.flags & ResultFlag.RW))
        nx = int(bool(result.flags & ResultFlag.NX))
        return f"{text} level={LEVEL_NAMES[result.level]} entry={result.value:#018x} rw={rw} nx={nx}"
    if op.op == OpCode.RMPREAD:
        return f"{text} lo={result.value:#018x} hi={result.value2:#018x}"
    if op.op == OpCode.PVALIDATE:
        return f"{text} cf={int(bool(result.flags & ResultFlag.CF))}"
    if op.op == OpCode.RMPQUERY:
        return f"{text} rcx={result.value:#x} rdx={result.value2:#x}"
    return text


def pack_ops(ops: Iterable[Op]) -> npt.NDArray[np.void]:
    """Ops as one array of :data:`OP_DTYPE` records."""
    return np.array([tuple(op) for op in ops], dtype=OP_DTYPE)


def unpack_ops(array: npt.NDArray[np.void]) -> Iterator[Op]:
    """The ops of an :data:`OP_DTYPE` array, one by one."""
    for record in array.tolist():
        yield Op(*record)


def unpack_results(array: npt.NDArray[np.void]) -> Iterator[Result]:
    """The results of a :data:`RESULT_DTYPE` array, one by one."""
    for record in array.tolist():
        yield Result(*record)
