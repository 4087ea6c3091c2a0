"""Raw values in words: one page-table entry or one RMP entry, as a short line or field by field.

The layouts are direct-map §1 and rmp §1.1.  This module imports nothing of the package, so that anything may use it.
"""

from __future__ import annotations

from typing import NamedTuple

_FRAME_MASK = 0x000F_FFFF_FFFF_F000
_LEAF_SHIFT = {2: 21, 3: 30}
_PRESENT = 1 << 0
_PSE = 1 << 7
_PAT_LARGE = 1 << 12
_SIZES = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB", 4: "512 GiB", 5: "256 TiB"}

_PTE_BITS = (
    (0, "P", "present"),
    (1, "RW", "writable"),
    (2, "US", "user may use it"),
    (3, "PWT", "cache mode"),
    (4, "PCD", "cache mode"),
    (5, "A", "accessed"),
    (6, "D", "dirty"),
)
_PTE_HIGH_BITS = (
    (9, "SOFTW1", "software: CPA self-test mark"),
    (10, "SOFTW2", "software"),
    (11, "SOFTW3/KERNEL_4K", 'software: "keep this page small" from kernel 6.15'),
    (57, "SOFTW4", "software"),
    (58, "SOFTW5", "software"),
)

PERMISSION_LETTERS = "rwuxs"
"""Letters of a VMPL permission byte, bit 0 first: read, write, execute at CPL 3 (u), execute at CPL 0-2 (x),
supervisor shadow stack (s)."""


class Field(NamedTuple):
    """One field of a raw value."""

    bits: str
    """Where it is: "63", "51:12"; of an RMP entry's high quadword with "hi " in front."""
    name: str
    value: int
    meaning: str


def _is_table(raw: int, level: int) -> bool:
    return level > 1 and bool(raw & _PRESENT) and not (level in _LEAF_SHIFT and raw & _PSE)


def _frame(raw: int, level: int, c_bit: int) -> tuple[int, int]:
    """The frame number that an entry holds, and the mask of bits that hold it (direct-map §1, masks and inversion)."""
    mask = _FRAME_MASK
    if level in _LEAF_SHIFT and raw & _PSE:
        mask &= -(1 << _LEAF_SHIFT[level])
    mask &= ~c_bit
    if raw and not raw & _PRESENT:
        raw = ~raw
    return (raw & mask) >> 12, mask


def decode_pte(raw: int, level: int, c_bit: int = 0) -> list[Field]:
    """A page-table entry field by field; ``c_bit`` is the machine's encryption bit as a mask, if it has one."""
    present = bool(raw & _PRESENT)
    large = level in _LEAF_SHIFT and bool(raw & _PSE)
    fields = [Field(str(bit), name, raw >> bit & 1, meaning) for bit, name, meaning in _PTE_BITS]
    if level == 1:
        fields.append(Field("7", "PAT", raw >> 7 & 1, "cache mode"))
    elif level in _LEAF_SHIFT:
        fields.append(Field("7", "PSE", raw >> 7 & 1, f"large page: maps {_SIZES[level]} itself"))
    else:
        fields.append(Field("7", "bit7", raw >> 7 & 1, "no large pages at this level"))
    if raw and not present:
        fields.append(Field("8", "PROTNONE", raw >> 8 & 1, "software, because the entry is not present"))
    else:
        fields.append(Field("8", "G", raw >> 8 & 1, "global: survives a change of address space"))
    fields += [Field(str(bit), name, raw >> bit & 1, meaning) for bit, name, meaning in _PTE_HIGH_BITS if bit < 12]
    if large:
        fields.append(Field("12", "PAT_LARGE", raw >> 12 & 1, "cache mode"))
    frame, mask = _frame(raw, level, c_bit)
    if raw == 0:
        meaning = "none: the entry is empty"
    elif _is_table(raw, level):
        meaning = f"the next table is at {frame << 12:#x}"
    elif present:
        meaning = f"{_SIZES[level]} at {frame << 12:#x}"
    else:
        meaning = f"{_SIZES[level]} at {frame << 12:#x}, stored inverted because the entry is not present"
    low = (mask & -mask).bit_length() - 1
    fields.append(Field(f"51:{low}", "frame", frame, meaning))
    if c_bit:
        bit = c_bit.bit_length() - 1
        fields.append(Field(str(bit), "C", int(bool(raw & c_bit)), "memory encrypted"))
    fields.append(Field("56:52", "IGN", raw >> 52 & 0x1F, "no meaning here"))
    fields += [Field(str(bit), name, raw >> bit & 1, meaning) for bit, name, meaning in _PTE_HIGH_BITS if bit > 12]
    fields.append(Field("62:59", "PKEY", raw >> 59 & 15, "protection key"))
    fields.append(Field("63", "NX", raw >> 63 & 1, "not executable"))
    return fields


def describe_pte(raw: int, level: int, c_bit: int = 0) -> str:
    """One short line: ``frame 0x120000 P RW A D PSE G NX``, ``table 0x1c3000 P RW A D``, ``none``."""
    if raw == 0:
        return "none"
    frame, _ = _frame(raw, level, c_bit)
    if _is_table(raw, level):
        words = [f"table {frame << 12:#x}"]
    elif raw & _PRESENT:
        words = [f"frame {frame:#x}"]
    else:
        words = [f"frame {frame:#x} (inverted) not present"]
    for field in decode_pte(raw, level, c_bit):
        if not field.value or field.name == "frame":
            continue
        words.append(f"{field.name}={field.value}" if field.name in ("IGN", "PKEY") else field.name)
    return " ".join(words)


def permissions(byte: int) -> str:
    """A VMPL permission byte as letters: ``rwux-``; bits that have no letter are added in hex."""
    text = "".join(letter if byte >> bit & 1 else "-" for bit, letter in enumerate(PERMISSION_LETTERS))
    return text if byte < 1 << len(PERMISSION_LETTERS) else f"{text}+{byte & 0xE0:#x}"


def decode_rmp_entry(lo: int, hi: int) -> list[Field]:
    """A raw 16-byte RMP entry (Zen 3 and Zen 4) field by field."""
    assigned, immutable, asid = lo & 1, lo >> 2 & 1, lo >> 51 & 0x3FF
    gpa = lo >> 12 & 0x7F_FFFF_FFFF
    if not assigned:
        owner = "the hypervisor's"
    elif asid == 0x3FF:
        owner = "not the hypervisor's"
    elif asid:
        owner = "a guest's"
    else:
        owner = "the firmware's, or inside a 2 MiB page"
    if assigned and immutable and asid == 0 and gpa >> 36:
        gpa_meaning = f"not an address: firmware type tag {gpa >> 36}"
    else:
        gpa_meaning = f"guest physical address {gpa << 12:#x}"
    fields = [
        Field("0", "assigned", assigned, owner),
        Field("1", "page_size", lo >> 1 & 1, "2 MiB" if lo & 2 else "4 KiB"),
        Field("2", "immutable", immutable, "software may not change it" if immutable else "software may change it"),
        Field("11:3", "subpage_count", lo >> 3 & 0x1FF, "other assigned pages of the 2 MiB region (aligned page only)"),
        Field("50:12", "gpa", gpa, gpa_meaning),
        Field("60:51", "asid", asid, "busy mark of the firmware" if asid == 0x3FF else "owner's address space id"),
        Field("61", "vmsa", lo >> 61 & 1, "may be used as a VMSA" if lo >> 61 & 1 else "may not be used as a VMSA"),
        Field("62", "validated", lo >> 62 & 1, "accepted by the guest" if lo >> 62 & 1 else "not accepted by a guest"),
        Field("63", "lock", lo >> 63 & 1, "written equal to immutable"),
    ]
    for vmpl in range(4):
        byte = hi >> 8 * vmpl & 0xFF
        fields.append(Field(f"hi {8 * vmpl + 7}:{8 * vmpl}", f"vmpl{vmpl}", byte, permissions(byte)))
    fields += [
        Field("hi 32", "implicit_key", hi >> 32 & 1, "implicit key select"),
        Field("hi 48:33", "reserved", hi >> 33 & 0xFFFF, "no known meaning"),
        Field("hi 53:49", "root_port", hi >> 49 & 0x1F, "root-port id, unused on Genoa"),
        Field("hi 61:54", "ide_stream", hi >> 54 & 0xFF, "PCIe IDE stream id, unused on Genoa"),
        Field("hi 63:62", "migration", hi >> 62 & 3, "page migration"),
    ]
    return fields


def describe_rmp_entry(lo: int, hi: int) -> str:
    """One short line: ``assigned 4K gpa=0x1000 asid=5 validated vmpl0=rwux-``, ``empty``."""
    if lo == 0 and hi == 0:
        return "empty"
    words: list[str] = []
    for field in decode_rmp_entry(lo, hi):
        if field.name == "assigned":
            words.append("assigned" if field.value else "not assigned")
        elif field.name == "page_size":
            words.append("2M" if field.value else "4K")
        elif field.name == "gpa":
            words.append(f"gpa={field.value << 12:#x}")
        elif field.name == "asid":
            words.append(f"asid={field.value}")
        elif not field.value:
            continue
        elif field.name.startswith("vmpl"):
            words.append(f"{field.name}={field.meaning}")
        elif field.name in ("immutable", "vmsa", "validated", "lock", "implicit_key"):
            words.append(field.name)
        elif field.name == "subpage_count":
            words.append(f"subpages={field.value}")
        else:
            words.append(f"{field.name}={field.value:#x}")
    return " ".join(words)
