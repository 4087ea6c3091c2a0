"""What depends on the kernel's version and on the hardware: names in, switches out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from rmpcore.machine import MachineError

CHANGES = {
    (6, 1): "the base of the rules",
    (6, 2): "set_memory_rox, aliases of changes of NX alone",
    (6, 6): "D leaves together with RW",
    (6, 9): "SNP host support",
    (6, 13): "set_direct_map_valid_noflush",
    (6, 14): "segmented RMP, RMPREAD",
    (6, 15): "collapse, KERNEL_4K mark",
}
"""direct-map §10: from which version on something is different."""


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


HARDWARE = {
    "milan": Hardware(gpa_bits=48, vmpl0_all=0x0F),
    "genoa": Hardware(gpa_bits=51, vmpl0_all=0x1F),
}

_CODES = range(1, 256)
_YES_NO = range(2)
ALLOWED = {
    "gpa_bits": range(13, 52),
    "vmpl0_all": range(256),
    "rmpread": _YES_NO,
    "overlap_inner": _CODES,
    "psmash_unassigned": _CODES,
    "psmash_immutable": _CODES,
    "keep_same": _YES_NO,
    "reserved_input": _YES_NO,
    "asid_limit": range(0x400),
    "lock_follows_immutable": _YES_NO,
    "subpage_count": _YES_NO,
}


def hardware_profile(name: str, switches: Mapping[str, int]) -> Hardware:
    """The profile "milan" or "genoa" with single switches overridden."""
    if name not in HARDWARE:
        raise MachineError(f"unknown hardware {name!r}: it is one of {', '.join(HARDWARE)}")
    for switch, value in switches.items():
        if switch not in ALLOWED:
            known = ", ".join(field.name for field in fields(Hardware))
            raise MachineError(f"unknown switch {switch!r}: it is one of {known}")
        allowed = ALLOWED[switch]
        if not isinstance(value, int) or value not in allowed:
            raise MachineError(f"switch {switch} is {value!r}, not {allowed[0]}..{allowed[-1]}")
    return replace(HARDWARE[name], **switches)
