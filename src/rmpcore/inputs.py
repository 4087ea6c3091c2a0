"""Memory maps from the files that people have: JSON, a kernel log, /proc/iomem, a recording of a kernel, a dump.

:func:`load_map` tells them apart by their content.  A firmware table (the first three) gets the kernel's early
fix-ups, and stands for a machine whose kernel image is not placed: only the first MiB is in use when the direct
map is built.  A recording brings all of that itself, and a state dump holds the map that its machine had.

Every refusal is one line, ``FILE:LINE: reason`` where lines exist, else ``FILE: place: reason``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from rmpcore.loglines import parse
from rmpcore.maps import (
    DIRECT_MAP_LIMIT,
    MIB,
    PAGE_OFFSETS,
    PAGE_SIZE,
    PHYSICAL_LIMIT,
    RST_BASE,
    RST_COVERED,
    RST_ENTRIES,
    U64_MAX,
    E820Type,
    KernelImage,
    MachineMap,
    MapError,
    SegmentedRmp,
)
from rmpcore.recorded_calls import SNP_CALLS

MAX_FILE = 1 << 28
"""No map, log or recording is longer than this (256 MiB); what is longer is another kind of file."""
MAP_FORMAT = "rmpcore-machine-map"
RECORDING_FORMAT = "rmpcore-kernel-capture"
STATE_FORMAT = "rmpcore-state"
RECORDING_RMP_BASE = 1 << 40
"""Where a recording's RMP is put: outside the guest's memory, wherever it really was."""

_TYPES = {
    "usable": E820Type.USABLE,
    "system ram": E820Type.USABLE,
    "reserved": E820Type.RESERVED,
    "device reserved": E820Type.RESERVED,
    "acpi": E820Type.ACPI,
    "acpi data": E820Type.ACPI,
    "nvs": E820Type.NVS,
    "acpi nvs": E820Type.NVS,
    "unusable": E820Type.UNUSABLE,
    "pmem": E820Type.PMEM,
    "soft reserved": E820Type.SOFT_RESERVED,
}
"""Types by name, as in a machine map and as kernels print them (from 7.0 on "System RAM", "device reserved")."""
_IOMEM_TYPES = {
    "system ram": E820Type.USABLE,
    "reserved": E820Type.RESERVED,
    "acpi tables": E820Type.ACPI,
    "acpi non-volatile storage": E820Type.NVS,
    "unusable memory": E820Type.UNUSABLE,
    "persistent memory": E820Type.PMEM,
    "soft reserved": E820Type.SOFT_RESERVED,
}
_NUMBERED_TYPE = re.compile(r"(?:persistent )?\(?type (\d{1,10})\)?")
_LOG_MARK = "BIOS-e820:"
_LOG_ROW = re.compile(r"BIOS-e820:\s*\[mem 0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\]\s+(\S.*?)\s*$")
_LOG_GAP = re.compile(r"BIOS-e820:\s*\[gap ")
_IOMEM_ROW = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*\S)\s*$")


class Node:
    """A value of a JSON file that knows where it stands, so that what is wrong with it can be said in one line."""

    def __init__(self, value: Any, source: str, error: type[ValueError], place: str = "") -> None:
        self.value = value
        self.source = source
        self.place = place
        self._error = error

    def fail(self, reason: str) -> NoReturn:
        place = f"{self.place}: " if self.place else ""
        raise self._error(f"{self.source}: {place}{reason}")

    def _typed(self, kind: type, what: str) -> Any:
        if not isinstance(self.value, kind) or (kind is int and isinstance(self.value, bool)):
            self.fail(f"is not {what}")
        return self.value

    def get(self, key: str) -> Node | None:
        """The member of that name, None if the object has none."""
        if key not in self._typed(dict, "an object"):
            return None
        return Node(self.value[key], self.source, self._error, f"{self.place}.{key}" if self.place else key)

    def __getitem__(self, key: str) -> Node:
        member = self.get(key)
        if member is None:
            self.fail(f"{key} is missing")
        return member

    def names(self) -> list[str]:
        """The names of an object's members."""
        return list(self._typed(dict, "an object"))

    def items(self, length: int | None = None, at_least: int = 0) -> list[Node]:
        """The elements of an array, of exactly ``length`` if given."""
        values = self._typed(list, "an array")
        if length is not None and len(values) != length:
            self.fail(f"has {len(values)} elements, not {length}")
        if len(values) < at_least:
            self.fail(f"has {len(values)} elements, not {at_least} or more")
        return [Node(value, self.source, self._error, f"{self.place}[{i}]") for i, value in enumerate(values)]

    def integer(self, low: int = 0, high: int = U64_MAX) -> int:
        """A number: an integer, or a string in hexadecimal ("0x1000")."""
        if isinstance(self.value, str):
            if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", self.value):
                self.fail(f"{self.value[:40]!r} is not a number in hexadecimal")
            number = int(self.value, 16)
        else:
            number = self._typed(int, "a number")
        if not low <= number <= high:
            self.fail(f"{number:#x} is outside {low:#x}..{high:#x}")
        return number

    def text(self) -> str:
        value: str = self._typed(str, "a string")
        return value

    def boolean(self) -> bool:
        value: bool = self._typed(bool, "true or false")
        return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same name twice")
    return members


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def parse_json(text: str, source: str, error: type[ValueError]) -> Node:
    """Read a JSON object, strictly.  Raises ``error`` with the position of what is wrong."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as e:
        raise error(f"{source}:{e.lineno}: not JSON: {e.msg} (column {e.colno})") from None
    except RecursionError:
        raise error(f"{source}: not JSON that anyone needs: nested too deep") from None
    except ValueError as e:
        raise error(f"{source}: not JSON: {e}") from None
    node = Node(value, source, error)
    if not isinstance(value, dict):
        node.fail("is not an object")
    return node


def read_text(path: str | os.PathLike[str], error: type[ValueError]) -> str:
    """A whole file as text.  Raises ``error`` when it cannot be read, is too long or is not UTF-8."""
    source = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as e:
        raise error(f"{source}: {getattr(e, 'strerror', None) or e}") from None
    if len(data) > MAX_FILE:
        raise error(f"{source}: longer than {MAX_FILE >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        if _LOG_MARK.encode() in data:
            # A kernel log can quote any bytes; the lines that count are ASCII.
            return data.decode("utf-8", "replace")
        line = data.count(b"\n", 0, e.start) + 1
        raise error(f"{source}:{line}: not UTF-8") from None


@dataclass(frozen=True)
class _Row:
    """One row of a firmware table, and where it was found."""

    start: int
    size: int
    kind: int
    place: str
    """Line number, or the place in a JSON file."""

    def __str__(self) -> str:
        place = f"line {self.place}" if self.place.isdecimal() else self.place
        return f"{self.start:#x}-{self.start + self.size - 1:#x} (type {self.kind}, {place})"


@dataclass
class _Firmware:
    """What a firmware table says, before it becomes a map."""

    name: str
    rows: list[_Row]
    rmp: tuple[int, int] | SegmentedRmp | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _check_overlaps(rows: Iterable[_Row], source: str) -> None:
    last: _Row | None = None
    for row in sorted(rows, key=lambda row: row.start):
        if last is not None and row.start < last.start + last.size:
            where = f":{row.place}" if row.place.isdecimal() else ""
            raise MapError(f"{source}{where}: e820 row {row} overlaps {last}")
        last = row


def _fix_up(rows: Iterable[_Row]) -> Iterator[tuple[int, int, int]]:
    """The kernel's early changes: usable memory of page 0 becomes reserved, of the BIOS area goes away."""
    for row in rows:
        if row.kind != E820Type.USABLE:
            yield row.start, row.size, row.kind
            continue
        pieces = ((0, PAGE_SIZE, E820Type.RESERVED), (PAGE_SIZE, 0xA0000, row.kind), (MIB, 1 << 64, row.kind))
        for low, high, kind in pieces:
            start, end = max(row.start, low), min(row.start + row.size, high)
            if start < end:
                yield start, end - start, kind


def _memory(e820: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Usable and kernel-reserved rows, neighbours merged, cut to whole pages (direct-map §2)."""
    merged: list[list[int]] = []
    for start, size, kind in sorted(e820):
        if kind not in (E820Type.USABLE, E820Type.KERNEL_RESERVED):
            continue
        if merged and merged[-1][1] == start:
            merged[-1][1] = start + size
        else:
            merged.append([start, start + size])
    pages = ((-(-start // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE) for start, end in merged)
    return [(start, end - start) for start, end in pages if start < end]


def _rmp_options(rmp: tuple[int, int] | SegmentedRmp | None) -> dict[str, Any]:
    return {"segmented": rmp} if isinstance(rmp, SegmentedRmp) else {"rmp": rmp}


def _build(firmware: _Firmware, source: str) -> MachineMap:
    _check_overlaps(firmware.rows, source)
    e820 = sorted(_fix_up(firmware.rows))
    usable = [start + size for start, size, kind in e820 if kind == E820Type.USABLE]
    try:
        return MachineMap(
            name=firmware.name,
            e820=tuple(e820),
            memory=tuple(_memory(e820)),
            # The kernel image is not placed: only the first MiB is in use (a documented assumption).
            reserved=((0, MIB),),
            max_pfn=max(usable, default=0) // PAGE_SIZE,
            source=source,
            **_rmp_options(firmware.rmp),
            **firmware.options,
        )
    except MapError as e:
        raise MapError(f"{source}: {e}") from None


def _stem(source: str) -> str:
    return os.path.splitext(os.path.basename(source))[0] or source


def _type_number(text: str) -> int | None:
    number = _NUMBERED_TYPE.fullmatch(text)
    return int(number[1]) if number else _TYPES.get(text.lower())


def _json_row(node: Node) -> _Row:
    start, size, kind = node.items(3)
    first = start.integer()
    length = size.integer(1, (1 << 64) - first)
    if isinstance(kind.value, str):
        number = _type_number(kind.value)
        if number is None:
            kind.fail(f"unknown type {kind.value[:40]!r}")
    else:
        number = kind.integer(1, 0xFFFF_FFFF)
    return _Row(first, length, number, node.place)


def _cachemodes(node: Node) -> tuple[int, ...]:
    return tuple(item.integer(0, 0xFF) for item in node.items(at_least=6)[:6])


_JSON_OPTIONS: dict[str, Callable[[Node], Any]] = {
    "levels": lambda node: node.integer(4, 5),
    "page_offset": lambda node: node.integer(),
    "large_pages": lambda node: node.text(),
    "supported_mask": lambda node: node.integer(),
    "default_mask": lambda node: node.integer(),
    "cachemodes": _cachemodes,
    "c_bit": lambda node: node.integer(),
    "rmp_probed": lambda node: node.boolean(),
}
"""Keys of a machine map that are options of :class:`MachineMap` under the same name."""


def _segment(node: Node) -> tuple[int, int]:
    """Index and raw value of an entry of the segment table."""
    reserved = node.get("reserved")
    value = node["gib"].integer(0, RST_COVERED) | (reserved.integer(0, 0xFFF) << 52 if reserved is not None else 0)
    base = node["base"].integer(0, RST_BASE)
    if base & ~RST_BASE:
        node["base"].fail(f"{base:#x} is not a multiple of 1 MiB")
    return node["index"].integer(0, RST_ENTRIES - 1), value | base


def _read_rmp(node: Node) -> tuple[int, int] | SegmentedRmp | None:
    """Where the RMP is: null, or one of two objects.

    Contiguous: ``{"base", "end"}``, RMP_BASE and RMP_END (the last byte).

    Segmented: ``{"base", "cfg", "segments"}``: RMP_BASE, RMP_CFG (bit 0 segmented, 13:8 the exponent of the segment
    size), and for each entry of the segment table that is not zero ``{"index", "base", "gib"}``: where the segment's
    table is, and how many GiB it covers.  ``"reserved"`` holds the entry's bits 63:52 where they are not zero, so every
    raw entry can be written; one that is zero may be (the last one is, if zero, where a map has such a one)."""
    if node.value is None:
        return None
    base = node["base"].integer()
    segments = node.get("segments")
    if segments is None:
        return base, node["end"].integer()
    if node.get("end") is not None:
        node.fail("has segments and an end: either or")
    entries: dict[int, int] = {}
    for item in segments.items():
        index, entry = _segment(item)
        if index in entries:
            item["index"].fail(f"segment {index} is described twice")
        entries[index] = entry
    rst = [entries.get(index, 0) for index in range(max(entries, default=-1) + 1)]
    return SegmentedRmp(base, node["cfg"].integer(), tuple(rst))


def rmp_to_json(machine_map: MachineMap) -> dict[str, object] | None:
    """A map's RMP in the form that :func:`_read_rmp` reads."""
    if machine_map.rmp is not None:
        return {"base": hex(machine_map.rmp[0]), "end": hex(machine_map.rmp[1])}
    rmp = machine_map.segmented
    if rmp is None:
        return None
    segments: list[dict[str, object]] = []
    for index, entry in enumerate(rmp.rst):
        if entry or index == len(rmp.rst) - 1:
            segments.append({"index": index, "base": hex(entry & RST_BASE), "gib": entry & RST_COVERED})
            if entry >> 52:
                segments[-1]["reserved"] = hex(entry >> 52)
    return {"base": hex(rmp.base), "cfg": hex(rmp.cfg), "segments": segments}


def check_format(node: Node, name: str) -> None:
    """Refuse a file that is not of this format, in version 1."""
    if node["format"].text() != name:
        node["format"].fail(f"is {node['format'].text()[:40]!r}, not {name!r}")
    node["version"].integer(1, 1)


def _map_from_json_node(node: Node) -> MachineMap:
    check_format(node, MAP_FORMAT)
    for key in ("source", "cpu", "notes"):
        member = node.get(key)
        if member is not None:
            member.text()
    firmware = _Firmware(node["name"].text(), [_json_row(row) for row in node["e820"].items(at_least=1)])
    rmp = node.get("rmp")
    if rmp is not None:
        firmware.rmp = _read_rmp(rmp)
    for key, read in _JSON_OPTIONS.items():
        member = node.get(key)
        if member is not None:
            firmware.options[key] = read(member)
    firmware.options.setdefault("page_offset", PAGE_OFFSETS[firmware.options.get("levels", 4)])
    return _build(firmware, node.source)


def map_from_json(text: str, source: str = "map") -> MachineMap:
    """A machine from a JSON object of format ``rmpcore-machine-map``."""
    return _map_from_json_node(parse_json(text, source, MapError))


def _row_of_line(low: str, high: str, kind: int, number: int, source: str) -> _Row:
    start, last = int(low, 16), int(high, 16)
    if start > last:
        raise MapError(f"{source}:{number}: range {start:#x}-{last:#x} ends before it starts")
    return _Row(start, last - start + 1, kind, str(number))


class _LogRmp:
    """What a kernel log says of the RMP, put together.  Lines that are repeated count once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._contiguous: tuple[int, int] | None = None
        self._base: int | None = None
        self._size: int | None = None
        """Bytes of a segment."""
        self._segments: dict[int, tuple[int, int, int]] = {}
        """Index: address of the table, first byte covered, bytes covered."""
        self._uncut: dict[int, int] = {}
        """Bytes that an entry claims to cover where that is more than a segment."""
        self._line = 0

    def read(self, line: str, number: int) -> None:
        """Take what a line says.  Raises :class:`MapError` where it says something else than one before."""
        said = parse(line)
        if said is None:
            return
        self._line = number
        kind, value = said
        if kind == "rmp_table":
            self._contiguous = self._same(self._contiguous, (value["base"], value["end"]), "RMP")
        elif kind == "rmp_base_table":
            self._base = self._same(self._base, value["base"], "RMP")
        elif kind == "segment_size":
            self._size = self._same(self._size, value["size"] << 30, "size of a segment")
        elif kind == "segment_cut":
            self._uncut[value["index"]] = value["mapped"]
        elif kind == "rmp_segment":
            index, table, first = value["index"], value["base"], value["first"]
            covered = value["last"] + 1 - first
            if covered <= 0 or covered % (1 << 30) or value["end"] + 1 - table != covered >> 8 or table & ~RST_BASE:
                self._fail(f"a table at {table:#x}-{value['end']:#x} does not cover {first:#x}-{value['last']:#x}")
            self._segments[index] = self._same(self._segments.get(index), (table, first, covered), f"segment {index}")
        if self._contiguous is not None and self._base is not None:
            self._fail("an RMP that is segmented, and one that is not")

    def _same(self, old: Any, new: Any, what: str) -> Any:
        if old not in (None, new):
            self._fail(f"a second, other {what}")
        return new

    def _fail(self, reason: str) -> NoReturn:
        raise MapError(f"{self._source}:{self._line}: {reason}")

    def rmp(self) -> tuple[int, int] | SegmentedRmp | None:
        """The RMP that all lines together describe."""
        if self._base is None:
            if self._size is not None or self._segments:
                raise MapError(f"{self._source}: segments of an RMP without the line that says where its base table is")
            return self._contiguous
        size = self._size
        if size is None or not self._segments:
            raise MapError(f"{self._source}: the RMP is segmented, and the lines about its segments are missing")
        if size <= 0 or size & (size - 1) or size >> 64:
            raise MapError(f"{self._source}: segments of {size >> 30} GiB are not a power of two")
        entries: dict[int, int] = {}
        for index, (table, first, covered) in self._segments.items():
            if not 0 <= index < RST_ENTRIES or first != index * size or covered > size:
                raise MapError(
                    f"{self._source}: segment {index} cannot cover {first:#x}-{first + covered - 1:#x} "
                    f"with segments of {size >> 30} GiB"
                )
            entries[index] = table | self._uncut.get(index, covered) >> 30 & RST_COVERED
        rst = [entries.get(index, 0) for index in range(max(entries) + 1)]
        return SegmentedRmp(self._base, size.bit_length() - 1 << 8 | 1, tuple(rst))


def map_from_log(text: str, source: str = "log") -> MachineMap:
    """A machine from a kernel log: its BIOS-e820 lines, and where it says that the RMP is.

    The log may come with or without time stamps and prefixes, and hold other tables too ("user:", "extended
    physical RAM map"): the firmware's counts.
    """
    firmware, rmp = _Firmware(_stem(source), []), _LogRmp(source)
    for number, line in enumerate(text.split("\n"), 1):
        if _LOG_MARK in line and not _LOG_GAP.search(line):
            row = _LOG_ROW.search(line)
            if row is None:
                raise MapError(f"{source}:{number}: BIOS-e820 line is not understood")
            kind = _type_number(row[3])
            if kind is None:
                raise MapError(f"{source}:{number}: unknown e820 type {row[3][:40]!r}")
            firmware.rows.append(_row_of_line(row[1], row[2], kind, number, source))
        else:
            rmp.read(line, number)
    if not firmware.rows:
        raise MapError(f"{source}: no BIOS-e820 lines")
    firmware.rmp = rmp.rmp()
    return _build(firmware, source)


def map_from_iomem(text: str, source: str = "iomem") -> MachineMap:
    """A machine from /proc/iomem.  Only the outer lines count; what is no memory (PCI and others) is left out."""
    firmware = _Firmware(_stem(source), [])
    all_zero = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = _IOMEM_ROW.fullmatch(line.lstrip())
        if row is None:
            raise MapError(f"{source}:{number}: not a line of /proc/iomem")
        all_zero = all_zero and int(row[1], 16) == int(row[2], 16) == 0
        kind = _IOMEM_TYPES.get(row[3].lower())
        if kind is not None and not line[0].isspace():
            firmware.rows.append(_row_of_line(row[1], row[2], kind, number, source))
    if not firmware.rows:
        raise MapError(f"{source}: no memory in it")
    if all_zero:
        raise MapError(f"{source}: all addresses are zero: /proc/iomem was read without root")
    return _build(firmware, source)


def _ranges(node: Node) -> tuple[tuple[int, int], ...]:
    pairs = [item.items(2) for item in node.items()]
    return tuple((base.integer(0, PHYSICAL_LIMIT - 1), size.integer(1, PHYSICAL_LIMIT)) for base, size in pairs)


def recording_map(node: Node, rmp: bool = False) -> MachineMap:
    """The machine that a recording was made on (golden format).

    It has an RMP if SNP calls were recorded, or if ``rmp`` asks for one."""
    check_format(node, RECORDING_FORMAT)
    levels = node["machine"]["paging_levels"].integer(4, 5)
    memblock, symbols = node["memblock"], node["symbols"]
    if memblock["bottom_up"].boolean():
        memblock["bottom_up"].fail("a direct map built from the bottom up is not modelled")
    supported = node["supported_pte_mask"].integer()
    default, modes, calls = node.get("default_kernel_pte_mask"), node.get("cachemode2pte"), node.get("calls")
    e820 = [row.items(3) for row in node["e820"].items()]
    options: dict[str, Any] = {
        "name": _stem(node.source),
        "e820": tuple(
            (start.integer(), size.integer(1, 1 << 64), kind.integer(1, 0xFFFF_FFFF)) for start, size, kind in e820
        ),
        "memory": _ranges(memblock["memory"]),
        "reserved": _ranges(memblock["reserved"]),
        "max_pfn": node["max_pfn"].integer(1, DIRECT_MAP_LIMIT[levels] // PAGE_SIZE),
        "levels": levels,
        "page_offset": node["page_offset"].integer(),
        "large_pages": "1G" if node["direct_gbpages"].boolean() else "2M",
        "supported_mask": supported,
        "default_mask": default.integer() if default is not None else supported,
        "c_bit": node["sme_me_mask"].integer(),
        "image": KernelImage(
            text=symbols["_text"].integer(),
            etext=symbols["_etext"].integer(),
            start_rodata=symbols["__start_rodata"].integer(),
            end_rodata=symbols["__end_rodata"].integer(),
            brk_end=symbols["_brk_end"].integer(),
            phys_base=node["phys_base"].integer(),
        ),
        "source": node.source,
    }
    if modes is not None:
        options["cachemodes"] = _cachemodes(modes)
    if calls is not None and any(call["fn"].text() in SNP_CALLS for call in calls.items()):
        rmp = True
    if rmp:
        # FORMAT: the RMP covered frames 0 to max_pfn inclusive and lay outside the guest's memory.
        end = RECORDING_RMP_BASE + 0x4000 + 16 * (options["max_pfn"] + 1) - 1
        options |= {"rmp": (RECORDING_RMP_BASE, end), "rmp_probed": False}
    try:
        return MachineMap(**options)
    except MapError as e:
        node.fail(str(e))


def map_from_recording(text: str, source: str = "recording") -> MachineMap:
    """The machine that a recording of a kernel was made on."""
    return recording_map(parse_json(text, source, MapError))


def map_to_json(machine_map: MachineMap) -> dict[str, object]:
    """A map as JSON values, exact to the last field (but for its source)."""
    image = machine_map.image
    return {
        "name": machine_map.name,
        "e820": [[hex(start), hex(size), kind] for start, size, kind in machine_map.e820],
        "memory": [[hex(base), hex(size)] for base, size in machine_map.memory],
        "reserved": [[hex(base), hex(size)] for base, size in machine_map.reserved],
        "max_pfn": machine_map.max_pfn,
        "levels": machine_map.levels,
        "page_offset": hex(machine_map.page_offset),
        "large_pages": machine_map.large_pages,
        "supported_mask": hex(machine_map.supported_mask),
        "default_mask": hex(machine_map.default_mask),
        "cachemodes": list(machine_map.cachemodes),
        "c_bit": hex(machine_map.c_bit),
        "image": {name: hex(value) for name, value in asdict(image).items()} if image is not None else None,
        "rmp": rmp_to_json(machine_map),
        "rmp_probed": machine_map.rmp_probed,
    }


def dumped_map(node: Node) -> MachineMap:
    """The map that :func:`map_to_json` wrote into a state dump."""
    image = node["image"]
    rows = [row.items(3) for row in node["e820"].items()]
    options = {key: read(node[key]) for key, read in _JSON_OPTIONS.items()}
    if image.value is not None:
        options["image"] = KernelImage(**{part.name: image[part.name].integer() for part in fields(KernelImage)})
    options |= _rmp_options(_read_rmp(node["rmp"]))
    try:
        return MachineMap(
            name=node["name"].text(),
            e820=tuple((base.integer(), size.integer(1), kind.integer(1, 0xFFFF_FFFF)) for base, size, kind in rows),
            memory=_ranges(node["memory"]),
            reserved=_ranges(node["reserved"]),
            max_pfn=node["max_pfn"].integer(),
            source=node.source,
            **options,
        )
    except MapError as e:
        node.fail(str(e))


_TYPE_NAMES: dict[int, str] = {
    E820Type.USABLE: "usable",
    E820Type.RESERVED: "reserved",
    E820Type.ACPI: "acpi",
    E820Type.NVS: "nvs",
    E820Type.UNUSABLE: "unusable",
    E820Type.PMEM: "pmem",
}


def _layout(value: object, margin: str = "") -> str:
    """JSON as people write it: what holds other objects or arrays on several lines, all else on one."""
    inner = f"{margin}  "
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
        items = [f"{inner}{json.dumps(name)}: {_layout(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_layout(item, inner)}" for item in value) + f"\n{margin}]"
    return json.dumps(value)


def map_file(machine_map: MachineMap, about: dict[str, str]) -> str:
    """The text of a machine map, with texts (source, notes) for people.

    Raises :class:`MapError` if such a file cannot say all that the map says (a recording's has a kernel image)."""
    exact = map_to_json(machine_map)
    rows = [[hex(start), hex(size), _TYPE_NAMES.get(kind, kind)] for start, size, kind in machine_map.e820]
    options = {key: exact[key] for key in ("rmp", *_JSON_OPTIONS)}
    head = {"format": MAP_FORMAT, "version": 1, "name": machine_map.name}
    text = _layout({**head, **about, "e820": rows, **options}) + "\n"
    source = machine_map.source or machine_map.name
    again = map_from_json(text, source)
    for part in fields(MachineMap):
        if part.compare and getattr(again, part.name) != getattr(machine_map, part.name):
            raise MapError(f"{source}: a machine map cannot be written of it: {part.name} would be lost")
    return text


def map_from_node(node: Node) -> MachineMap:
    """A machine from a JSON file of one of the three formats."""
    kind = node["format"].text()
    if kind == MAP_FORMAT:
        return _map_from_json_node(node)
    if kind == RECORDING_FORMAT:
        return recording_map(node)
    if kind == STATE_FORMAT:
        check_format(node, STATE_FORMAT)
        return dumped_map(node["map"])
    node["format"].fail(f"is {kind[:40]!r}, not {MAP_FORMAT!r}, {RECORDING_FORMAT!r} or {STATE_FORMAT!r}")


def is_json(text: str) -> bool:
    """Whether the text of a map is JSON; the other forms are lines."""
    return text.lstrip().startswith("{")


def map_from_lines(text: str, source: str) -> MachineMap:
    """A machine from a kernel log or /proc/iomem, told apart by content."""
    if _LOG_MARK in text:
        return map_from_log(text, source)
    first = text.lstrip("\n").partition("\n")[0]
    if _IOMEM_ROW.fullmatch(first.lstrip()):
        return map_from_iomem(text, source)
    raise MapError(f"{source}: not a machine map: neither JSON, nor a kernel log with BIOS-e820 lines, nor /proc/iomem")


def load_map(path: str | os.PathLike[str]) -> MachineMap:
    """A machine from a file of any of these kinds, told apart by content.  Raises :class:`MapError`."""
    source = os.fspath(path)
    text = read_text(path, MapError)
    return map_from_node(parse_json(text, source, MapError)) if is_json(text) else map_from_lines(text, source)
