"""What depends on the kernel's version and on the hardware: names in, switches out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from rmpcore.machine import MachineError

CHANGES = {
    (6, 1): "the base of the rules",
    (6, 2): "set_memory_rox, aliases of changes of NX alone",
    (6, 6): "D leaves together with RW",
    (6, 9): "SNP host support",
    (6, 10): "RMP_END rounded up, 2 MiB blocks at a table's ends reserved",
    (6, 12): "nothing allocated from those blocks",
    (6, 13): "set_direct_map_valid_noflush",
    (6, 14): "segmented RMP, RMPREAD",
    (6, 15): "collapse, KERNEL_4K mark",
}
"""direct-map §10, rmp §1.6, §1.7: from which version on something is different."""


@dataclass(frozen=True)
class Kernel:
    """A kernel profile (direct-map §10)."""

    major: int
    minor: int

    @property
    def name(self) -> str:
        return f"{self.major}.{self.minor}"

    def since(self, major: int, minor: int) -> bool:
        return (self.major, self.minor) >= (major, minor)

    @property
    def has_set_memory_rox(self) -> bool:
        """From 6.2: set_memory_rox exists."""
        return self.since(6, 2)

    @property
    def checks_aliases_of_nx(self) -> bool:
        """From 6.2: a change of NX alone looks for aliases too; a run that looks for none is still a primary run."""
        return self.since(6, 2)

    @property
    def dirty_leaves_with_rw(self) -> bool:
        """From 6.6: what takes RW away takes D too."""
        return self.since(6, 6)

    @property
    def has_snp_host(self) -> bool:
        """From 6.9: the host layer of host §1 exists."""
        return self.since(6, 9)

    @property
    def rounds_rmp_end_up(self) -> bool:
        """From 6.10: a frame that RMP_END only begins has to be covered too (rmp §1.6)."""
        return self.since(6, 10)

    @property
    def reserves_rmp_blocks(self) -> bool:
        """From 6.10: the 2 MiB blocks at both ends of a table are reserved in the e820 table."""
        return self.since(6, 10)

    @property
    def keeps_off_rmp_blocks(self) -> bool:
        """From 6.12: nothing is allocated from those blocks any more."""
        return self.since(6, 12)

    @property
    def knows_segmented_rmp(self) -> bool:
        """From 6.14: a segmented RMP is found (rmp §1.7)."""
        return self.since(6, 14)

    @property
    def uses_rmpread(self) -> bool:
        """From 6.14: entries are looked up by RMPREAD where the part has it."""
        return self.since(6, 14)

    @property
    def has_set_direct_map_valid(self) -> bool:
        """From 6.13: set_direct_map_valid_noflush exists."""
        return self.since(6, 13)

    @property
    def marks_kernel_4k(self) -> bool:
        """From 6.15: set_memory_4k sets SOFTW3, "keep this page small"."""
        return self.since(6, 15)

    @property
    def collapses(self) -> bool:
        """From 6.15: set_memory_rox makes large pages of small ones."""
        return self.since(6, 15)


def kernel_profile(version: str) -> Kernel:
    """The profile of "6.12" or "6.12.95+deb12-amd64".  A version newer than all changes has the newest rules."""
    known = ", ".join(f"{major}.{minor}" for major, minor in CHANGES)
    match = re.match(r"([0-9]+)\.([0-9]+)", version)
    if match is None:
        raise MachineError(f"kernel {version!r} is not a version; the rules change at {known}")
    kernel = Kernel(int(match[1]), int(match[2]))
    if not kernel.since(*min(CHANGES)):
        raise MachineError(f"kernel {version!r} is older than the rules, which change at {known}")
    return kernel


@dataclass(frozen=True)
class Hardware:
    """A hardware profile: one field for each switch (rmp §5).  Yes/no switches are 1 and 0."""

    gpa_bits: int
    """Width to which the stored GPA is cut."""
    vmpl0_all: int
    """The permission byte "everything" of VMPL0."""
    rmpread: int = 0
    """RMPREAD exists."""
    overlap_inner: int = 4
    """Code of RMPUPDATE row 8b."""
    psmash_unassigned: int = 7
    """PSMASH's code for what is not an assigned 2 MiB entry."""
    psmash_immutable: int = 7
    """PSMASH's code for an immutable entry."""
    keep_same: int = 1
    """RMPUPDATE keeps validated, vmsa and permissions when nothing else changes; 0: it always resets them."""
    reserved_input: int = 0
    """RMPUPDATE refuses reserved bits in its input."""
    asid_limit: int = 0x3FF
    """The highest ASID that RMPUPDATE takes."""
    lock_follows_immutable: int = 1
    """Bit 63 of an entry is written equal to immutable; 0: it is written 0."""
    subpage_count: int = 1
    """The count of rmp §1.2 is maintained."""
    rmpquery: int = 0
    """RMPQUERY exists."""
    inuse_first: int = 0
    """RMPUPDATE's row 7 (FAIL_INUSE) comes before row 3; 0: after row 6."""
    pvalidate_vmpl: int = 0
    """What PVALIDATE does outside VMPL0: 0 #GP(0), else this code."""
    rescind_resets: int = 0
    """PVALIDATE that clears validated resets the permissions too."""
    rmpquery_vmpl: int = 2
    """RMPQUERY's code for a VMPL below the current one; 0: it answers."""
    bookkeeping: int = 512
    """What a 2M entry counts for its ASID (rmp §1.6); 0: nothing is counted."""
    segmented: int = 0
    """The part has the segmented RMP (rmp §1.7)."""
    segment_min: int = 36
    """CPUID's least exponent of a segment's size ..."""
    segment_max: int = 40
    """... and its greatest."""
    segment_cached: int = 512
    """Segment entries that hardware caches."""
    segment_limit: int = 0
    """NumSegReduction: no other entries may be used."""
    segment_unit: int = 0
    """CPUID's exponents are of bytes; 20: of MiB."""
    vmpls: int = 4
    """How many VMPLs there are."""
    vmpl_sss: int = 0
    """VmplSSS: shadow stacks have a permission of their own."""
    hv_in_use_wr: int = 0
    """HvInUseWrAllowed: a page in use stands in no write's way (rmp §3.7)."""


HARDWARE = {
    "milan": Hardware(gpa_bits=48, vmpl0_all=0x0F),
    "genoa": Hardware(gpa_bits=51, vmpl0_all=0x1F, rmpquery=1, vmpl_sss=1),
    # rmp §1.4: the raw entry is not public, so it is Genoa's; only what RMPREAD shows of it is meant.
    "turin": Hardware(gpa_bits=51, vmpl0_all=0x1F, rmpread=1, rmpquery=1, segmented=1, vmpl_sss=1, hv_in_use_wr=1),
}

_CODES = range(1, 256)
_BYTE = range(256)
_YES_NO = range(2)
GIB_EXPONENT = 30
_EXPONENTS = range(10, 52)
ALLOWED: dict[str, Sequence[int]] = {
    "gpa_bits": range(13, 52),
    "vmpl0_all": _BYTE,
    "rmpread": _YES_NO,
    "overlap_inner": _CODES,
    "psmash_unassigned": _CODES,
    "psmash_immutable": _CODES,
    "keep_same": _YES_NO,
    "reserved_input": _YES_NO,
    "asid_limit": range(0x400),
    "lock_follows_immutable": _YES_NO,
    "subpage_count": _YES_NO,
    "rmpquery": _YES_NO,
    "inuse_first": _YES_NO,
    "pvalidate_vmpl": _BYTE,
    "rescind_resets": _YES_NO,
    "rmpquery_vmpl": _BYTE,
    "bookkeeping": (0, 1, 512),
    "segmented": _YES_NO,
    "segment_min": _EXPONENTS,
    "segment_max": _EXPONENTS,
    "segment_cached": range(1, 513),
    "segment_limit": _YES_NO,
    "segment_unit": (0, 20),
    "vmpls": range(1, 5),
    "vmpl_sss": _YES_NO,
    "hv_in_use_wr": _YES_NO,
}


def _described(allowed: Sequence[int]) -> str:
    """The values that a switch may have, as a person writes them."""
    if isinstance(allowed, range):
        return f"{allowed[0]}..{allowed[-1]}"
    return " or ".join(str(value) for value in allowed)


def hardware_profile(name: str, switches: Mapping[str, int]) -> Hardware:
    """The profile "milan", "genoa" or "turin" with single switches overridden."""
    if name not in HARDWARE:
        raise MachineError(f"unknown hardware {name!r}: it is one of {', '.join(HARDWARE)}")
    for switch, value in switches.items():
        if switch not in ALLOWED:
            known = ", ".join(field.name for field in fields(Hardware))
            raise MachineError(f"unknown switch {switch!r}: it is one of {known}")
        allowed = ALLOWED[switch]
        if not isinstance(value, int) or value not in allowed:
            raise MachineError(f"switch {switch} is {value!r}, not {_described(allowed)}")
    hardware = replace(HARDWARE[name], **switches)
    if hardware.segment_min + hardware.segment_unit < GIB_EXPONENT:
        raise MachineError(f"switch segment_min is {hardware.segment_min}: no segment is smaller than 1 GiB")
    if hardware.segment_min > hardware.segment_max:
        raise MachineError(
            f"switch segment_min is {hardware.segment_min}, more than segment_max {hardware.segment_max}"
        )
    return hardware
