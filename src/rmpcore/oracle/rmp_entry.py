"""The raw 16-byte RMP entry of Zen 3 and Zen 4 (rmp §1.1)."""

from __future__ import annotations

from typing import NamedTuple

SUBPAGE_COUNT_MAX = 511


def field(value: int, high: int, low: int) -> int:
    """Bits ``high:low`` of a number, as manuals write it."""
    return (value >> low) % (1 << (high - low + 1))


class RmpEntry(NamedTuple):
    """One entry, field by field.  The default is the entry of zeros: the hypervisor's page."""

    assigned: int = 0
    page_size: int = 0
    """0: 4 KiB, 1: 2 MiB."""
    immutable: int = 0
    subpage_count: int = 0
    """In the entry of a 2 MiB-aligned page: how many others of its region are assigned (rmp §1.2)."""
    gpa_frame: int = 0
    """GPA[50:12]."""
    asid: int = 0
    vmsa: int = 0
    validated: int = 0
    lock: int = 0
    permissions: int = 0
    """The whole high quadword: VMPL0's permission byte in bits 7:0, the others' above it."""

    @classmethod
    def decode(cls, lo: int, hi: int) -> RmpEntry:
        return cls(
            assigned=field(lo, 0, 0),
            page_size=field(lo, 1, 1),
            immutable=field(lo, 2, 2),
            subpage_count=field(lo, 11, 3),
            gpa_frame=field(lo, 50, 12),
            asid=field(lo, 60, 51),
            vmsa=field(lo, 61, 61),
            validated=field(lo, 62, 62),
            lock=field(lo, 63, 63),
            permissions=hi,
        )

    def encode(self) -> tuple[int, int]:
        """The low and high quadword."""
        lo = (
            self.assigned
            + (self.page_size << 1)
            + (self.immutable << 2)
            + (self.subpage_count << 3)
            + (self.gpa_frame << 12)
            + (self.asid << 51)
            + (self.vmsa << 61)
            + (self.validated << 62)
            + (self.lock << 63)
        )
        return lo, self.permissions

    def permission_byte(self, vmpl: int) -> int:
        """What a VMPL may do with the page."""
        return field(self.permissions, 8 * vmpl + 7, 8 * vmpl)

    def with_permission_byte(self, vmpl: int, byte: int) -> RmpEntry:
        return self._replace(permissions=self.permissions + ((byte - self.permission_byte(vmpl)) << 8 * vmpl))


HYPERVISOR = RmpEntry()
