"""The firmware's commands: page states and their transitions (rmp §4.2), as far as the RMP is concerned."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from rmpcore.maps import PAGE_SIZE, PHYSICAL_LIMIT, E820Type, MachineMap
from rmpcore.ops import EventKind, Op, OpCode, OpFlag
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import overlap, round_down, round_up, subtract
from rmpcore.oracle.profile import Hardware, Kernel
from rmpcore.oracle.rmp_entry import RmpEntry, field
from rmpcore.oracle.rmp_table import FRAMES, REGION, RmpTable, kernel_reserved, region_of
from rmpcore.page_state import PageState, page_state

CONTEXTS_MAX = 1024
RECORDS_MAX = 1024
PAGES_MAX = 1 << 20
"""Of one SNP_INIT or SNP_PAGE_SET_STATE."""
RECORD_SIZE = 64
TAG_UNIT = 1 << 36
"""rmp §1.3: the type tag is the top of the gpa field, field bits 38:36."""
TAG_METADATA = 1
TAG_IOMMU = 2
VMSA_PAGE = 2
ONLY_SMALL = frozenset({VMSA_PAGE, 5, 6})
"""Types of launch page that have to be 4K: VMSA, secrets, CPUID."""

LEGACY_VIDEO = range(0xA0000, 0xC0000)
ALWAYS_FIXED = range(0xFD_0000_0000, 0xFE_0000_0000)
"""rmp §4.2: HV-Fixed whatever is there."""
_DRAM = (E820Type.USABLE, E820Type.KERNEL_RESERVED, E820Type.SOFT_RESERVED)

# rmp §1.3: what SNP_INIT writes.
HV_FIXED = RmpEntry(immutable=1)
FIRMWARE = RmpEntry(assigned=1, immutable=1, lock=1)
FIRMWARE_IOMMU = FIRMWARE._replace(gpa_frame=TAG_IOMMU * TAG_UNIT + 1)


class Status(IntEnum):
    """Statuses of the firmware's ABI."""

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_CONFIG = 0x03
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    INVALID_GUEST = 0x10
    ACTIVE = 0x12
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    INVALID_PAGE_SIZE = 0x19
    INVALID_PAGE_STATE = 0x1A
    INVALID_MDATA_ENTRY = 0x1B
    INVALID_PAGE_OWNER = 0x1C


class StatusError(Exception):
    """The command ends with a status other than success."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class Record(NamedTuple):
    """A metadata record: what a page was that is swapped out."""

    context: int
    """Frame of the guest's context page."""
    validated: int
    vmsa: int
    page_size: int
    metadata: int
    gpa_frame: int
    permissions: int


def _require(condition: bool, status: Status) -> None:
    if not condition:
        raise StatusError(status)


def _immutable(entry: RmpEntry, value: int) -> RmpEntry:
    """The firmware writes lock equal to immutable in every state that it creates."""
    return entry._replace(immutable=value, lock=value)


def _state(entry: RmpEntry) -> PageState:
    return page_state(entry.encode()[0])


def _require_state(entry: RmpEntry, *states: PageState) -> None:
    _require(_state(entry) in states, Status.INVALID_PAGE_STATE)


class Firmware:
    """The AMD-SP of one machine.  ``command`` does a command's op and gives its status."""

    def __init__(
        self, machine_map: MachineMap, kernel: Kernel, hardware: Hardware, table: RmpTable | None, journal: Journal
    ) -> None:
        self._map = machine_map
        self._kernel = kernel
        self._hardware = hardware
        self._maybe_table = table
        self._journal = journal
        self.ready = False
        """SNP_INIT is done."""
        self.contexts: dict[int, int] = {}
        """Frame of a guest's context page -> its ASID; 0: not activated."""
        self.records: dict[int, Record] = {}
        """Metadata records, by their address."""
        self.commands: dict[int, tuple[int, Callable[[Op], None]]] = {
            OpCode.SNP_INIT: (0x81, self._init),
            OpCode.SNP_SHUTDOWN: (0x86, self._shutdown),
            OpCode.SNP_GCTX_CREATE: (0x93, self._gctx_create),
            OpCode.SNP_ACTIVATE: (0x91, self._activate),
            OpCode.SNP_DECOMMISSION: (0x90, self._decommission),
            OpCode.SNP_LAUNCH_UPDATE: (0xA1, self._launch_update),
            OpCode.SNP_PAGE_RECLAIM: (0xC7, self._page_reclaim),
            OpCode.SNP_PAGE_SET_STATE: (0xC6, self._page_set_state),
            OpCode.SNP_PAGE_MOVE: (0xC2, self._page_move),
            OpCode.SNP_PAGE_UNSMASH: (0xC8, self._page_unsmash),
            OpCode.SNP_MD_INIT: (0xC3, self._md_init),
            OpCode.SNP_PAGE_SWAP_OUT: (0xC0, self._page_swap_out),
            OpCode.SNP_PAGE_SWAP_IN: (0xC1, self._page_swap_in),
        }
        """Each command's number and what it does."""

    def command(self, op: Op) -> int:
        number, do = self.commands[op.op]
        status = Status.SUCCESS
        try:
            self._platform(op)
            do(op)
        except StatusError as error:
            status = error.status
        self._journal.event(EventKind.FIRMWARE, code=int(status), a=number, b=op.addr, c=op.va)
        return int(status)

    # -- what commands check, in this order ---------------------------------------------------

    def _platform(self, op: Op) -> None:
        """The platform state: SNP_INIT comes before all others."""
        is_init = op.op == OpCode.SNP_INIT
        if self._maybe_table is None:
            raise StatusError(Status.INVALID_CONFIG if is_init else Status.INVALID_PLATFORM_STATE)
        _require(self.ready != is_init, Status.INVALID_PLATFORM_STATE)

    @property
    def _table(self) -> RmpTable:
        assert self._maybe_table is not None, "_platform() has looked"
        return self._maybe_table

    def _address(self, address: int) -> int:
        """A system physical address without the C-bit."""
        return address & ~self._map.c_bit

    def _frame(self, address: int) -> int:
        """The frame of a page's address, which the RMP need not cover."""
        address = self._address(address)
        pfn = address // PAGE_SIZE
        _require(address % PAGE_SIZE == 0 and address < PHYSICAL_LIMIT, Status.INVALID_ADDRESS)
        _require(not self._table.in_reserved_segment(pfn), Status.INVALID_ADDRESS)
        _require(not self._table.is_own(pfn), Status.INVALID_ADDRESS)
        return pfn

    def _page(self, address: int) -> int:
        """The frame of a page that has an entry."""
        pfn = self._frame(address)
        _require(self._table.covered(pfn), Status.INVALID_ADDRESS)
        return pfn

    def _metadata_page(self, mdata: int) -> int:
        """The frame of the page that a metadata record lies in."""
        address = self._address(mdata)
        _require(address % RECORD_SIZE == 0, Status.INVALID_ADDRESS)
        return self._page(round_down(address, PAGE_SIZE))

    def _guest(self, gctx: int) -> int:
        """The frame of a guest's context page."""
        pfn = self._page(gctx)
        is_context = pfn in self.contexts and _state(self._table.read(pfn)) == PageState.CONTEXT
        _require(is_context, Status.INVALID_GUEST)
        return pfn

    def _whole(self, pfn: int, size: int) -> None:
        """A 2 MiB page is aligned and covered to its end."""
        self._aligned(pfn, size)
        _require(not size or self._table.region_covered(pfn), Status.INVALID_ADDRESS)

    def _sized(self, pfn: int, size: int) -> RmpEntry:
        """The page's entry, which has to have the size that is asked for."""
        self._whole(pfn, size)
        entry = self._table.read(pfn)
        _require(entry.page_size == size, Status.INVALID_PAGE_SIZE)
        return entry

    @staticmethod
    def _aligned(pfn: int, size: int) -> None:
        _require(not size or pfn % REGION == 0, Status.INVALID_ADDRESS)

    def _active(self, guest: int) -> int:
        """The ASID of a guest that has one."""
        asid = self.contexts[guest]
        _require(asid != 0, Status.INACTIVE)
        return asid

    @staticmethod
    def _owned(entry: RmpEntry, asid: int) -> None:
        _require(entry.asid == asid, Status.INVALID_PAGE_OWNER)

    @staticmethod
    def _owned_metadata(entry: RmpEntry, guest: int) -> None:
        """A metadata page names its guest's context page beside the tag."""
        _require(entry.gpa_frame % TAG_UNIT == guest % TAG_UNIT, Status.INVALID_PAGE_OWNER)

    # -- the platform -------------------------------------------------------------------------

    def _init(self, op: Op) -> None:
        """All covered -> Hypervisor (DRAM) or HV-Fixed; the RMP -> Firmware; the IOMMU's -> Firmware-IOMMU."""
        table = self._table
        _require(op.count <= PAGES_MAX, Status.INVALID_ADDRESS)
        _require(op.count == 0 or op.addr + op.count <= FRAMES, Status.INVALID_ADDRESS)
        iommu = range(op.addr, op.addr + op.count)
        _require(all(table.covered(pfn) and not table.is_own(pfn) for pfn in iommu), Status.INVALID_ADDRESS)
        table.clear()
        for frames in self._fixed_frames():
            self._write_all(frames, HV_FIXED)
        for frames in table.own_frames:
            self._write_all(frames, FIRMWARE)
        self._write_all(iommu, FIRMWARE_IOMMU)
        # rmp §1.2: the firmware counts what it itself assigns.
        for first, assigned in table.assigned.items():
            table.write(first, table.read(first)._replace(subpage_count=len(assigned - {first})))
        self._forget_guests()
        self.ready = True

    def _write_all(self, frames: range, entry: RmpEntry) -> None:
        """Write an entry for those of the frames that have one."""
        for covered in self._table.covered_frames():
            for pfn in overlap(frames, covered):
                self._table.write(pfn, entry)

    def _fixed_frames(self) -> list[range]:
        """What is not wholly DRAM, and what is never the hypervisor's to give away."""
        rows = sorted((start, start + size) for start, size, kind in self._map.e820 if kind in _DRAM)
        merged: list[range] = []
        for start, stop in rows:
            if merged and merged[-1].stop == start:
                merged[-1] = range(merged[-1].start, stop)
            else:
                merged.append(range(start, stop))
        holes = [LEGACY_VIDEO, ALWAYS_FIXED]
        if self._kernel.reserves_rmp_blocks:
            holes += kernel_reserved(self._map, self._table)
        parts = subtract(merged, holes)
        dram = [range(round_up(part.start, PAGE_SIZE) // PAGE_SIZE, part.stop // PAGE_SIZE) for part in parts]
        return subtract([range(FRAMES)], [frames for frames in dram if frames])

    def _shutdown(self, op: Op) -> None:
        """With the IOMMU flag: Firmware-IOMMU -> Reclaim."""
        if op.mode:
            table = self._table
            for pfn in [pfn for assigned in table.assigned.values() for pfn in assigned]:
                entry = table.read(pfn)
                if _state(entry) == PageState.FIRMWARE_IOMMU:
                    table.write(pfn, _immutable(entry, 0)._replace(gpa_frame=0))
        self._forget_guests()
        self.ready = False

    def _forget_guests(self) -> None:
        self.contexts.clear()
        self.records.clear()

    # -- guests -------------------------------------------------------------------------------

    def _gctx_create(self, op: Op) -> None:
        """Firmware 4K -> Context."""
        pfn = self._page(op.addr)
        entry = self._table.read(pfn)
        _require(entry.page_size == 0, Status.INVALID_PAGE_SIZE)
        _require_state(entry, PageState.FIRMWARE)
        _require(len(self.contexts) < CONTEXTS_MAX, Status.RESOURCE_LIMIT)
        self._table.write(pfn, entry._replace(vmsa=1))
        self.contexts[pfn] = 0

    def _activate(self, op: Op) -> None:
        """Bind an ASID, whose bookkeeping counter has to be 0."""
        guest, asid = self._guest(op.addr), op.id
        _require(self.contexts[guest] == 0, Status.ACTIVE)
        _require(1 <= asid <= self._hardware.asid_limit, Status.INVALID_ASID)
        _require(asid not in self.contexts.values(), Status.ASID_OWNED)
        _require(not self._table.counted or asid not in self._table.counts, Status.INVALID_CONFIG)
        self.contexts[guest] = asid

    def _decommission(self, op: Op) -> None:
        """Context -> Firmware."""
        guest = self._guest(op.addr)
        self._table.write(guest, self._table.read(guest)._replace(vmsa=0))
        del self.contexts[guest]
        self.records = {at: record for at, record in self.records.items() if record.context != guest}

    def _launch_update(self, op: Op) -> None:
        """Pre-Guest -> Guest-Valid."""
        size, kind = _size(op), op.level
        permissions = {vmpl: field(op.count, 8 * vmpl + 7, 8 * vmpl) for vmpl in (1, 2, 3)}
        pfn = self._page(op.addr)
        guest = self._guest(op.va)
        _require(1 <= kind <= 6, Status.INVALID_PARAM)
        _require(all(field(byte, 7, 5) == 0 for byte in permissions.values()), Status.INVALID_PARAM)
        asid = self._active(guest)
        entry = self._sized(pfn, size)
        _require(not size or kind not in ONLY_SMALL, Status.INVALID_PAGE_SIZE)
        _require_state(entry, PageState.PRE_GUEST)
        self._owned(entry, asid)
        entry = _immutable(entry, 0)._replace(validated=1, vmsa=1 if kind == VMSA_PAGE else entry.vmsa)
        for vmpl, byte in permissions.items():
            entry = entry.with_permission_byte(vmpl, byte)
        self._table.write(pfn, entry)

    # -- pages --------------------------------------------------------------------------------

    def _page_reclaim(self, op: Op) -> None:
        """Metadata, Firmware -> Reclaim; Pre-Guest -> Guest-Invalid; Pre-Swap -> Guest-Valid."""
        size = field(op.addr, 0, 0)
        pfn = self._page(op.addr - size)
        entry = self._table.read(pfn)
        # Here the size comes before the alignment.
        _require(entry.page_size == size, Status.INVALID_PAGE_SIZE)
        self._whole(pfn, size)
        # Not immutable: nothing to do.
        if entry.immutable == 0:
            return
        _require_state(entry, PageState.METADATA, PageState.FIRMWARE, PageState.PRE_GUEST, PageState.PRE_SWAP)
        if _state(entry) == PageState.METADATA:
            entry = entry._replace(gpa_frame=entry.gpa_frame % TAG_UNIT)
            self.records = {at: record for at, record in self.records.items() if at // PAGE_SIZE != pfn}
        self._table.write(pfn, _immutable(entry, 0))

    def _page_set_state(self, op: Op) -> None:
        """Firmware -> HV-Fixed, by whole 2 MiB regions."""
        table = self._table
        first, pages = self._page(op.addr), op.count
        _require(first % REGION == 0 and pages % REGION == 0 and 0 < pages <= PAGES_MAX, Status.INVALID_ADDRESS)
        regions = [region_of(pfn) for pfn in range(first, first + pages, REGION)]
        _require(all(table.region_covered(region[0]) for region in regions), Status.INVALID_ADDRESS)
        _require(not any(overlap(range(first, first + pages), own) for own in table.own_frames), Status.INVALID_ADDRESS)
        for region in regions:
            _require(self._is_firmware_region(region), Status.INVALID_PAGE_STATE)
        for region in regions:
            for pfn in region:
                table.write(pfn, HV_FIXED._replace(permissions=table.read(pfn).permissions))

    def _is_firmware_region(self, region: range) -> bool:
        """One 2M page of the firmware, or 512 of 4K."""
        head = self._table.read(region[0])
        if head.page_size:
            return _state(head) == PageState.FIRMWARE
        entries = (self._table.read(pfn) for pfn in region)
        return all(_state(entry) == PageState.FIRMWARE and entry.page_size == 0 for entry in entries)

    def _page_move(self, op: Op) -> None:
        """Move a page's contents, and what its entry says, to another page."""
        size = _size(op)
        src, dst = self._page(op.addr), self._page(op.gpa)
        guest = self._guest(op.va)
        _require(src != dst, Status.INVALID_ADDRESS)
        source, target = self._sized(src, size), self._sized(dst, size)
        if _state(source) == PageState.METADATA:
            # src Metadata -> Firmware, dst Firmware -> Metadata.
            _require_state(target, PageState.FIRMWARE)
            self._owned_metadata(source, guest)
            self._table.write(src, source._replace(gpa_frame=0, vmsa=0))
            self._table.write(dst, target._replace(gpa_frame=source.gpa_frame, vmsa=0))
            self._move_records(src, dst)
            return
        # src -> Guest-Invalid; dst Pre-Guest -> Guest-Valid (src Pre-Swap) or Guest-Invalid (src Pre-Guest).
        _require_state(source, PageState.PRE_GUEST, PageState.PRE_SWAP)
        _require_state(target, PageState.PRE_GUEST)
        asid = self._active(guest)
        self._owned(source, asid)
        self._owned(target, asid)
        moved = _immutable(target, 0)._replace(
            gpa_frame=source.gpa_frame,
            vmsa=source.vmsa,
            validated=source.validated,
            permissions=source.permissions,
        )
        self._table.write(dst, moved)
        self._table.write(src, _immutable(source, 0)._replace(validated=0))

    def _move_records(self, src: int, dst: int) -> None:
        """Those of src go along; what dst has is overwritten."""
        kept = {at: record for at, record in self.records.items() if at // PAGE_SIZE not in (src, dst)}
        moved = {at + (dst - src) * PAGE_SIZE: record for at, record in self.records.items() if at // PAGE_SIZE == src}
        self.records = kept | moved

    def _page_unsmash(self, op: Op) -> None:
        """512 x 4K -> one 2M of the same state."""
        table = self._table
        first = self._page(op.addr)
        _require(first % REGION == 0 and table.region_covered(first), Status.INVALID_ADDRESS)
        region = region_of(first)
        entries = [table.read(pfn) for pfn in region]
        _require(all(entry.page_size == 0 for entry in entries), Status.INVALID_PAGE_SIZE)
        head, *others = entries
        # All the same: state, ASID, high quadword; no VMSA; GPAs consecutive from a 2 MiB line.
        _require_state(head, PageState.PRE_GUEST, PageState.PRE_SWAP)
        _require(head.gpa_frame % REGION == 0, Status.INVALID_PAGE_STATE)
        for i, entry in enumerate(entries):
            same = (
                _state(entry) == _state(head)
                and entry.asid == head.asid
                and entry.permissions == head.permissions
                and entry.vmsa == 0
                and entry.gpa_frame == head.gpa_frame + i
            )
            _require(same, Status.INVALID_PAGE_STATE)
        table.write(first, head._replace(page_size=1, subpage_count=0))
        for pfn, entry in zip(region[1:], others, strict=True):
            table.write(pfn, _immutable(entry, 0)._replace(asid=0))
        table.count(head, -REGION)
        table.count(table.read(first))

    # -- metadata and swapping ----------------------------------------------------------------

    def _md_init(self, op: Op) -> None:
        """Firmware -> Metadata."""
        pfn = self._page(op.addr)
        guest = self._guest(op.va)
        entry = self._table.read(pfn)
        _require(entry.page_size == 0, Status.INVALID_PAGE_SIZE)
        _require_state(entry, PageState.FIRMWARE)
        self._make_metadata(pfn, guest)

    def _make_metadata(self, pfn: int, guest: int) -> None:
        tagged = TAG_METADATA * TAG_UNIT + guest % TAG_UNIT
        self._table.write(pfn, self._table.read(pfn)._replace(gpa_frame=tagged))

    def _page_swap_out(self, op: Op) -> None:
        """src Pre-Swap or Pre-Guest -> Pre-Guest; src Metadata -> Firmware.  Fills a metadata record."""
        table, size = self._table, _size(op)
        mdata = self._address(op.count)
        src, dst, holder = self._page(op.addr), self._frame(op.gpa), self._metadata_page(op.count)
        guest = self._guest(op.va)
        source = self._sized(src, size)
        if table.covered(dst):
            self._sized(dst, size)
        is_metadata = _state(source) == PageState.METADATA and not size
        if not is_metadata:
            _require_state(source, PageState.PRE_GUEST, PageState.PRE_SWAP)
        if table.covered(dst):
            _require_state(table.read(dst), PageState.FIRMWARE)
        _require_state(table.read(holder), PageState.METADATA)
        self._owned_metadata(table.read(holder), guest)
        if is_metadata:
            self._owned_metadata(source, guest)
        else:
            self._owned(source, self._active(guest))
        _require(mdata not in self.records, Status.INVALID_MDATA_ENTRY)
        _require(len(self.records) < RECORDS_MAX, Status.RESOURCE_LIMIT)
        # The model keeps records apart from the pages, so those of a metadata page cannot be swapped out with it.
        if is_metadata:
            holds_records = any(at // PAGE_SIZE == src for at in self.records)
            _require(not holds_records and src != holder, Status.INVALID_PAGE_STATE)
        self.records[mdata] = Record(
            guest, source.validated, source.vmsa, size, int(is_metadata), source.gpa_frame, source.permissions
        )
        table.write(src, source._replace(gpa_frame=0, vmsa=0) if is_metadata else source._replace(validated=0))

    def _page_swap_in(self, op: Op) -> None:
        """dst Pre-Guest -> Pre-Swap if the record says validated, else it stays; metadata: Firmware -> Metadata."""
        size = _size(op)
        mdata = self._address(op.count)
        src, dst, _ = self._frame(op.addr), self._page(op.gpa), self._metadata_page(op.count)
        guest = self._guest(op.va)
        record = self.records.get(mdata)
        if record is None or record.context != guest:
            raise StatusError(Status.INVALID_MDATA_ENTRY)
        _require(record.page_size == size, Status.INVALID_PAGE_SIZE)
        target = self._sized(dst, size)
        self._aligned(src, size)
        if record.metadata:
            _require_state(target, PageState.FIRMWARE)
            self._make_metadata(dst, guest)
        else:
            _require_state(target, PageState.PRE_GUEST)
            self._owned(target, self._active(guest))
            swapped_in = target._replace(
                gpa_frame=record.gpa_frame,
                vmsa=record.vmsa,
                validated=record.validated,
                permissions=record.permissions,
            )
            self._table.write(dst, swapped_in)
        del self.records[mdata]


def _size(op: Op) -> int:
    """0: 4K, 1: 2M."""
    return 1 if op.flags & OpFlag.SIZE_2M else 0
