"""The kernel functions that recordings hold calls of, and what their arguments are, in order."""

from __future__ import annotations

_RANGE = ("pfn", "pages")
DMAP_CALLS = {
    "set_memory_4k": _RANGE,
    "set_direct_map_invalid_noflush": ("pfn",),
    "set_direct_map_default_noflush": ("pfn",),
    "set_direct_map_valid_noflush": ("pfn", "pages", "valid"),
}
SNP_CALLS = {
    "rmp_make_private": ("pfn", "gpa", "level", "asid", "immutable"),
    "rmp_make_shared": ("pfn", "level"),
    "psmash": ("pfn",),
    "snp_lookup_rmpentry": ("pfn",),
}
CPA_CALLS = dict.fromkeys(
    (
        "set_memory_ro",
        "set_memory_rw",
        "set_memory_rox",
        "set_memory_nx",
        "set_memory_x",
        "set_memory_np",
        "set_memory_p",
        "set_memory_np_noalias",
        "set_memory_global",
        "set_memory_nonglobal",
        "_set_memory_uc",
        "_set_memory_wc",
        "_set_memory_wb",
        "set_memory_encrypted",
        "set_memory_decrypted",
    ),
    _RANGE,
)
CALLS = DMAP_CALLS | SNP_CALLS | CPA_CALLS
"""All that the machines implement."""
