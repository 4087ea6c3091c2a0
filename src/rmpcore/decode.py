"""Raw values in words: a page-table entry, an RMP entry or a fault's code, as a short line or field by field.

The layouts are direct-map §1, rmp §1.1 and §1.3, and rmp §3.5.  This module imports nothing of the package but the
states of a page, so that anything may use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rmpcore.page_state import PageState, page_state

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


STATES: dict[PageState, tuple[str, str]] = {
    PageState.DEFAULT: ("Default", "the RMP has no entry for the page: it is the hypervisor's for good"),
    PageState.HYPERVISOR: ("Hypervisor", "the hypervisor's"),
    PageState.HV_FIXED: ("HV-Fixed", "the hypervisor's; no RMPUPDATE may change it until the next SNP_INIT"),
    PageState.FIRMWARE: ("Firmware", "the firmware's; only its own commands give it back"),
    PageState.CONTEXT: ("Context", "the firmware's context page of a guest"),
    PageState.METADATA: ("Metadata", "the firmware's records of a guest's swapped pages"),
    PageState.RECLAIM: ("Reclaim", "given back by the firmware and not yet unassigned, or inside a 2 MiB page"),
    PageState.PRE_GUEST: ("Pre-Guest", "a guest's, which may not use it yet"),
    PageState.PRE_SWAP: ("Pre-Swap", "a guest's, accepted by it and frozen"),
    PageState.GUEST_INVALID: ("Guest-Invalid", "a guest's, not accepted by it"),
    PageState.GUEST_VALID: ("Guest-Valid", "a guest's, accepted by it"),
    PageState.FIRMWARE_IOMMU: ("Firmware-IOMMU", "the firmware's buffer for the IOMMU's events"),
    PageState.INVALID: ("invalid", "an entry that no state has"),
}
"""Names of the states in the words of AMD's ABI specification, and what they mean."""

PAGE_FAULT_BITS = (
    (0, "P", "the page is present"),
    (1, "W", "write"),
    (2, "US", "at CPL 3"),
    (3, "RSV", "reserved bits are set in an entry"),
    (4, "I/D", "instruction fetch"),
    (5, "PK", "protection key"),
    (6, "SS", "shadow-stack access"),
    (15, "SGX", "SGX access control"),
    (31, "RMP", "the RMP forbids it"),
)
"""Bits of a #PF error code."""

NESTED_FAULT_BITS = (
    *PAGE_FAULT_BITS[:5],
    (6, "SS", "shadow-stack access"),
    (31, "RMP", "the RMP forbids it"),
    (32, "FINAL", "at the final address"),
    (33, "WALK", "at a page table of the guest"),
    (34, "ENC", "private: the guest's C-bit was set"),
    (35, "SIZEM", "the RMP's page is 2 MiB; the nested mapping or the operand is 4 KiB"),
    (36, "VMPL", "the page's permissions for the VMPL forbid it"),
    (37, "SSS", "supervisor shadow-stack attribute"),
    (48, "IMPLICIT", "KVM's own: an implicit access"),
    (49, "PRIVATE", "KVM's own: a private access"),
)
"""Bits of EXITINFO1 of a nested page fault."""


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


def _gpa_meaning(lo: int) -> str:
    """What the gpa field of an entry holds; on pages of the firmware its top is a tag (rmp §1.3)."""
    gpa = lo >> 12 & 0x7F_FFFF_FFFF
    tag, rest = gpa >> 36, gpa & (1 << 36) - 1
    if not (lo & 1 and lo & 4 and lo >> 51 & 0x3FF == 0 and tag):
        return f"guest physical address {gpa << 12:#x}"
    if tag == 1:
        return f"not an address: firmware type tag 1, metadata of the guest with its context page at {rest << 12:#x}"
    return f"not an address: firmware type tag {tag}" + (", the IOMMU's" if tag == 2 else "")


def state_name(state: PageState) -> str:
    """A page's state in the words of the ABI: ``Guest-Valid``."""
    return STATES[state][0]


def describe_state(lo: int) -> str:
    """The state of an entry by its low quadword, and what it means."""
    name, meaning = STATES[page_state(lo)]
    return f"{name}: {meaning}"


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
    fields = [
        Field("0", "assigned", assigned, owner),
        Field("1", "page_size", lo >> 1 & 1, "2 MiB" if lo & 2 else "4 KiB"),
        Field("2", "immutable", immutable, "software may not change it" if immutable else "software may change it"),
        Field("11:3", "subpage_count", lo >> 3 & 0x1FF, "other assigned pages of the 2 MiB region (aligned page only)"),
        Field("50:12", "gpa", gpa, _gpa_meaning(lo)),
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


def _code_fields(code: int, bits: Iterable[tuple[int, str, str]]) -> list[Field]:
    fields = []
    rest = code
    for bit, name, meaning in bits:
        fields.append(Field(str(bit), name, code >> bit & 1, meaning))
        rest &= ~(1 << bit)
    if rest:
        fields.append(Field("others", "other", rest, "bits without a name here"))
    return fields


def decode_page_fault(code: int) -> list[Field]:
    """The error code of a #PF bit by bit."""
    return _code_fields(code, PAGE_FAULT_BITS)


def decode_nested_fault(code: int) -> list[Field]:
    """EXITINFO1 of a #VMEXIT(NPF) bit by bit."""
    return _code_fields(code, NESTED_FAULT_BITS)


def _code_names(fields: Iterable[Field]) -> str:
    names = [
        f"{field.name}={field.value:#x}" if field.name == "other" else field.name for field in fields if field.value
    ]
    return " ".join(names) or "0"


def _access(code: int) -> str:
    return "instruction fetch" if code & 1 << 4 else "write" if code & 1 << 1 else "read"


def describe_page_fault(code: int) -> str:
    """One short line: ``P W RMP: supervisor write, refused by the RMP``."""
    text = f"{_code_names(decode_page_fault(code))}: {'user' if code & 1 << 2 else 'supervisor'} {_access(code)}"
    if code & 1 << 31:
        text += ", refused by the RMP"
    elif code & 1 << 3:
        text += ", reserved bits in an entry"
    else:
        text += ", refused by the page tables" if code & 1 else ", the page is not present"
    return text


def describe_nested_fault(code: int) -> str:
    """One short line: ``P US RMP ENC SIZEM: private read, RMP 2 MiB but 4 KiB mapped or asked``."""
    text = f"{_code_names(decode_nested_fault(code))}: {'private' if code >> 34 & 1 else 'shared'} {_access(code)}"
    if code >> 33 & 1:
        text += " of a page table of the guest"
    if code >> 35 & 1:
        return f"{text}, the RMP has a 2 MiB page where 4 KiB is mapped or asked for"
    if code >> 36 & 1:
        return f"{text}, the VMPL has no permission"
    if code >> 31 & 1:
        return f"{text}, refused by the RMP"
    if code >> 3 & 1:
        return f"{text}, reserved bits in an entry"
    return f"{text}, refused by the nested page tables" if code & 1 else f"{text}, not mapped"
