"""The states that a page's RMP entry can be in (rmp §4.1), and which one a raw entry is in.

This module imports nothing of the package, so that anything may use it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple


class PageState(IntEnum):
    """States of AMD's ABI specification 56860, in the order of rmp §4.1."""

    DEFAULT = 0
    """No entry: the RMP does not cover the page."""
    HYPERVISOR = 1
    HV_FIXED = 2
    FIRMWARE = 3
    CONTEXT = 4
    METADATA = 5
    RECLAIM = 6
    PRE_GUEST = 7
    PRE_SWAP = 8
    GUEST_INVALID = 9
    GUEST_VALID = 10
    FIRMWARE_IOMMU = 11
    INVALID = 12
    """An entry that fits no state."""


class _Entry(NamedTuple):
    """What of an entry decides on its state."""

    assigned: bool
    validated: bool
    owned: bool
    """The ASID is not 0."""
    immutable: bool
    lock: bool
    vmsa: bool
    tag: int
    """Top three bits of the gpa field: the firmware's type tag, where the page is the firmware's."""
    rest: int
    """The gpa field without them."""


def _is_firmwares(entry: _Entry) -> bool:
    return entry.assigned and not entry.validated and not entry.owned and entry.immutable


def _is_guests(entry: _Entry, *, validated: bool, immutable: bool) -> bool:
    return entry.assigned and entry.owned and entry.validated == validated and entry.immutable == immutable


def _is_hosts(entry: _Entry, *, immutable: bool) -> bool:
    return not (entry.assigned or entry.validated or entry.owned) and entry.immutable == immutable


_ROWS: tuple[tuple[PageState, Callable[[_Entry], bool]], ...] = (
    (PageState.HYPERVISOR, lambda e: _is_hosts(e, immutable=False)),
    (PageState.HV_FIXED, lambda e: _is_hosts(e, immutable=True)),
    (PageState.FIRMWARE, lambda e: _is_firmwares(e) and e.tag == e.rest == 0 and not e.vmsa),
    (PageState.CONTEXT, lambda e: _is_firmwares(e) and e.tag == e.rest == 0 and e.vmsa),
    (PageState.METADATA, lambda e: _is_firmwares(e) and e.tag == 1 and e.rest != 0),
    (
        PageState.RECLAIM,
        lambda e: e.assigned and not (e.validated or e.owned or e.immutable or e.lock),
    ),
    (PageState.PRE_GUEST, lambda e: _is_guests(e, validated=False, immutable=True)),
    (PageState.PRE_SWAP, lambda e: _is_guests(e, validated=True, immutable=True)),
    (PageState.GUEST_INVALID, lambda e: _is_guests(e, validated=False, immutable=False)),
    (PageState.GUEST_VALID, lambda e: _is_guests(e, validated=True, immutable=False)),
    (PageState.FIRMWARE_IOMMU, lambda e: _is_firmwares(e) and (e.tag, e.rest) == (2, 1) and not e.vmsa),
)
"""The rows of rmp §4.1 in the firmware's order: the first that fits counts."""


def page_state(lo: int) -> PageState:
    """The state of an entry by its low quadword; the high one does not count."""
    entry = _Entry(
        assigned=bool(lo & 1),
        validated=bool(lo >> 62 & 1),
        owned=lo >> 51 & 0x3FF != 0,
        immutable=bool(lo >> 2 & 1),
        lock=bool(lo >> 63),
        vmsa=bool(lo >> 61 & 1),
        tag=lo >> 48 & 7,
        rest=lo >> 12 & (1 << 36) - 1,
    )
    return next((state for state, fits in _ROWS if fits(entry)), PageState.INVALID)
