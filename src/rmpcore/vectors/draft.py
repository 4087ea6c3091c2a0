"""What a test vector is before anything comes out: a state, an op, the rule that they are about.

The entries that cases begin with are built here, from the layout of docs/rmp.md §1.1 and the states of §4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rmpcore.ops import Op
from rmpcore.vectors.form import Items

FRAMES = 0x900
"""Frames that the RMP covers: four regions of 2 MiB and half of one."""
C_BIT = 1 << 51
LAST = FRAMES - 1
PART = 0x800
"""The region of which a half is covered."""
HEAD = 0x200
"""The aligned page of the region that most cases are about."""
INNER = (0x201, 0x300, 0x3FF)
"""Pages inside it: the first, one in the middle, the last."""
NEXT = 0x400
"""The aligned page of the region after it."""
ASID = 7
GPA = 0x1234_5000
LARGE_GPA = GPA & -0x20_0000
"""Of a 2M page: the one that GPA lies in."""
OLD = 0x8155_0001_0305_071F
"""A high quadword in which every field has something: it shows what is kept and what is reset."""
ALL = 0x1F
GVA = 0x7F00_0020_0000

ASSIGNED, LARGE, IMMUTABLE, VMSA, VALIDATED, LOCK = 1, 2, 4, 1 << 61, 1 << 62, 1 << 63

Entry = tuple[int, int]


@dataclass(frozen=True)
class Draft:
    """A case without what is to come out."""

    name: str
    rule: str
    about: str
    op: Op
    items: Items
    machine: str = "main"
    """main: the part that is asked for; milan, turin: this part; no-rmp; pages-KERNEL: a direct map alone."""
    setup: tuple[Op, ...] = ()


RULES = {
    "rmp §1.2": "the subpage count of the aligned page's entry",
    "rmp §1.6": "which pages are covered; the C-bit is taken out of an address",
    "rmp §2.2 row 0": "no SNP: #UD; CPL not 0: #GP",
    "rmp §2.2 row 1": "executed with an ASID that is not 0",
    "rmp §2.2 row 3": "a 2M page has to be 2 MiB-aligned",
    "rmp §2.2 row 4": "what is not assigned is neither immutable nor has an ASID; the greatest ASID",
    "rmp §2.2 row 5": "the page, for 2M its region, has to be covered",
    "rmp §2.2 row 6": "the old entry is immutable",
    "rmp §2.2 row 7": "the page, for 2M any page of its region, is in use",
    "rmp §2.2 row 8": "4K over the 2M entry of an aligned page",
    "rmp §2.2 row 8b": "a 4K page inside an assigned 2M entry",
    "rmp §2.2 row 9": "2M over a region in which another page is assigned",
    "rmp §2.2 row 10": "what is written, kept and reset",
    "rmp §2.3 row 0": "no SNP: #UD; CPL not 0: #GP",
    "rmp §2.3 row 1": "executed with an ASID that is not 0",
    "rmp §2.3 row 2": "the address has to be 2 MiB-aligned, its region covered",
    "rmp §2.3 row 3": "a page of the region is in use",
    "rmp §2.3 row 4": "it takes an assigned 2M entry that is not immutable",
    "rmp §2.3 row 5": "512 entries with gpas that rise, all else as it was",
    "rmp §2.4": "RMPREAD",
    "rmp §1.5": "the 16 bytes that RMPREAD shows",
    "rmp §2.5 row 0": "not in an SNP guest: #UD",
    "rmp §2.5 row 1": "CPL not 0: #GP",
    "rmp §2.5 row 2": "VMPL not 0",
    "rmp §2.5 row 3": "reserved bits in ECX or EDX",
    "rmp §2.5 row 4": "2M, and the address is not aligned",
    "rmp §2.5 row 6": "not covered, not the guest's, another gpa, immutable: in this order",
    "rmp §2.5 row 7": "4K asked or mapped, the RMP has 2M",
    "rmp §2.5 row 8": "2M asked, the RMP has 4K",
    "rmp §2.5 row 9": "it is as asked already: CF",
    "rmp §2.5 row 10": "validated of the governing entry is written",
    "rmp §2.6 row 0": "not in an SNP guest: #UD; CPL not 0: #GP",
    "rmp §2.6 row 1": "reserved bits; 2M and not aligned; no such VMPL",
    "rmp §2.6 row 2": "the target VMPL is not below the current one's privilege",
    "rmp §2.6 row 3": "not covered, not the guest's, another gpa, immutable: in this order",
    "rmp §2.6 row 4": "4K asked or mapped, the RMP has 2M",
    "rmp §2.6 row 5": "not validated",
    "rmp §2.6 row 6": "2M asked, the RMP has 4K",
    "rmp §2.6 row 7": "a permission that the current VMPL lacks itself",
    "rmp §2.6 row 8": "the target's byte; at VMPL0 vmsa too",
    "rmp §2.7 row 0": "no RMPQUERY or not in an SNP guest: #UD; CPL not 0: #GP",
    "rmp §2.7 row 1": "not covered, not the guest's, another gpa, immutable: in this order",
    "rmp §2.7 row 2": "the nested mapping is 4K, the RMP has 2M",
    "rmp §2.7 row 3": "not validated",
    "rmp §2.7 row 4": "no such VMPL",
    "rmp §2.7 row 5": "a VMPL that is more privileged than the current one",
    "rmp §2.7 row 6": "page size, permission byte, vmsa",
    "rmp §3.1": "hypervisor-owned; the governing entry",
    "rmp §3.2 host": "what is checked of the host's accesses",
    "rmp §3.2 plain": "what is checked of a guest without SNP",
    "rmp §3.2 snp shared": "an SNP guest's access with C = 0",
    "rmp §3.2 snp private": "an SNP guest's private access: the private list, in its order",
    "rmp §3.2 iommu": "what is checked of the IOMMU's accesses",
    "rmp §3.2 psp": "nothing is checked of the AMD-SP's accesses",
    "rmp §3.6": "firmware's, HV-Fixed and uncovered pages",
    "rmp §3.7": "pages that VMRUN and VMSAVE use; pages in use",
    "rmp §4.1": "the states of an entry",
    "direct-map §4.3": "what is done with a large page: kept, rewritten, split",
    "direct-map §4.4": "a split: the entries of the new table",
    "direct-map §7": "which bits a call sets and clears",
    "direct-map §8": "512 small pages become a large one",
}
"""What the rules are about that the cases of level 1 name."""


def entry(
    *,
    assigned: int = 1,
    size: int = 0,
    immutable: int = 0,
    gpa: int = 0,
    asid: int = 0,
    vmsa: int = 0,
    validated: int = 0,
    count: int = 0,
    hi: int = 0,
) -> Entry:
    """An entry by its fields (rmp §1.1); lock as firmware keeps it, equal to immutable where the page is assigned."""
    lo = assigned | size << 1 | immutable << 2 | count << 3 | gpa & 0x7_FFFF_FFFF_F000 | asid << 51
    return lo | vmsa << 61 | validated << 62 | (assigned and immutable) << 63, hi


def guest(size: int = 0, **fields: int) -> Entry:
    """A guest's page; Guest-Valid with every permission unless told otherwise."""
    gpa = LARGE_GPA if size else GPA
    return entry(**({"asid": ASID, "gpa": gpa, "validated": 1, "hi": OLD, "size": size} | fields))


STATES: dict[str, Entry] = {
    "hypervisor": (0, 0),
    "given-back": (0, ALL),
    "hv-fixed": entry(assigned=0, immutable=1),
    "firmware": entry(immutable=1),
    "context": entry(immutable=1, vmsa=1),
    "metadata": entry(immutable=1, gpa=1 << 48 | 0x5000),
    "firmware-iommu": entry(immutable=1, gpa=2 << 48 | 0x1000),
    "reclaim": entry(),
    "pre-guest": guest(validated=0, immutable=1),
    "pre-swap": guest(immutable=1),
    "guest-invalid": guest(validated=0),
    "guest-valid": guest(),
    "guest-vmsa": guest(vmsa=1),
}
"""An entry of each state (rmp §4.1)."""
IMMUTABLE_STATES = [name for name, (lo, _) in STATES.items() if lo & IMMUTABLE]
FREE_STATES = [name for name, (lo, _) in STATES.items() if not lo & (ASSIGNED | IMMUTABLE)]
MUTABLE_STATES = [name for name, (lo, _) in STATES.items() if lo & (ASSIGNED | IMMUTABLE) == ASSIGNED]


def large(state: Entry, head: int = HEAD) -> dict[int, Entry]:
    """A whole region as one 2M entry of that state, as RMPUPDATE leaves it (rmp §2.2)."""
    lo, hi = state
    gpa = lo & 0x7_FFFF_FFFF_F000
    first = lo - gpa + (gpa & -0x20_0000) | LARGE
    return {head: (first, hi)} | {head + i: (lo & ASSIGNED, 0) for i in range(1, 512) if lo & ASSIGNED}


def rmp(entries: dict[int, Entry], in_use: Iterable[tuple[int, int, int]] = ()) -> Items:
    """A state that is entries, and rows of pages in use."""
    items: Items = {("rmp", pfn): values for pfn, values in entries.items() if any(values)}
    return items | {("in_use", row[0]): row[1:] for row in in_use}
