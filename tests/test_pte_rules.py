"""direct-map §1: how entries are written, seen from outside through lookup and the state."""

from __future__ import annotations

import dataclasses

import pytest
from machines import (
    BOOT_TABLE,
    FRAME_MASK,
    GIB,
    HOLE,
    LARGE_LEAF,
    MIB,
    NX,
    PAT_LARGE,
    PSE,
    RW,
    SMALL,
    SMALL_CBIT,
    SMALL_LEAF,
    SMALL_PTI,
    SOFTW3,
    SPLIT_TABLE,
    U64,
    A,
    D,
    G,
    Host,
    P,
    continued,
    inverted,
    leaves,
    tables,
    with_leaves,
)

PAT = 1 << 7  # at level 1 the bit that is PSE above


@pytest.mark.parametrize(
    ("kernel", "after_invalid", "after_default"),
    [
        # 0x163 = G D A RW P; clear P and RW: 0x160; without P no G: 0x060; default sets P and RW: 0x063
        ("6.1", 0x060, 0x063),
        ("6.2", 0x060, 0x063),
        ("6.5", 0x060, 0x063),
        # from 6.6 D goes with RW and does not come back
        ("6.6", 0x020, 0x023),
        ("6.12", 0x020, 0x023),
        ("6.15", 0x020, 0x023),
        ("7.3", 0x020, 0x023),
    ],
)
def test_invalid_then_default(backend: str, kernel: str, after_invalid: int, after_default: int) -> None:
    """direct-map §1 (lost P loses G), §7, §10: 0x163 to 0x020 to 0x023; before 6.6 D stays."""
    host = Host(backend, kernel=kernel)
    assert host.leaf(0x203) == (2, 0x200000 | LARGE_LEAF)
    assert host.call("set_direct_map_invalid_noflush", pfn=0x203) == 0
    assert host.leaf(0x203) == (1, inverted(0x203000, NX | after_invalid))
    assert host.leaf(0x202) == (1, 0x202000 | SMALL_LEAF)
    assert host.call("set_direct_map_default_noflush", pfn=0x203) == 0
    assert host.leaf(0x203) == (1, 0x203000 | NX | after_default)


def test_invalid_twice(backend: str) -> None:
    """direct-map §1: reading undoes the inversion, so a second "invalid" finds nothing to change."""
    host = Host(backend)
    host.call("set_direct_map_invalid_noflush", pfn=0x203)
    before = host.state()
    host.call("set_direct_map_invalid_noflush", pfn=0x203)
    assert host.state() == before


def test_inverted_frame_by_hand(backend: str) -> None:
    """direct-map §1: frame 0x203 not present reads 0x000fffffffdfc000 in bits 51:12."""
    host = Host(backend)
    host.call("set_direct_map_invalid_noflush", pfn=0x203)
    # ~0x203000 = 0xffff_ffff_ffdf_cfff; bits 51:12 of it: 0x000f_ffff_ffdf_c000
    assert host.leaf(0x203)[1] == 0x800F_FFFF_FFDF_C020


def test_frame_zero_inverted(backend: str) -> None:
    """direct-map §1: frame 0 not present has all of bits 51:12 set."""
    host = Host(backend)
    host.call("set_direct_map_invalid_noflush", pfn=0)
    assert host.leaf(0) == (1, 0x800F_FFFF_FFFF_F020)


def test_no_inversion_without_flags(backend: str) -> None:
    """direct-map §1: only non-zero flags invert: an entry that loses all flags keeps its frame upright."""
    first = Host(backend)
    first.call("set_memory_4k", pfn=0x203, pages=1)
    bare = {(0, 1, 0x203000): 0x203000 | RW | P, (0, 1, 0x204000): 0x204000 | RW | P | A}
    host = continued(first, with_leaves(first.state(), bare))
    host.call("set_direct_map_invalid_noflush", pfn=0x203)
    host.call("set_direct_map_invalid_noflush", pfn=0x204)
    assert host.leaf(0x203) == (1, 0x203000)
    assert host.leaf(0x204) == (1, inverted(0x204000, A))


def test_large_not_present(backend: str) -> None:
    """direct-map §1, §4.3e: a large entry is inverted in bits 51:12, so bits 20:12 are all set; no PSE without P."""
    host = Host(backend, kernel="6.13")
    assert host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0) == 0
    # ~0x400000 & 51:12 = 0x000f_ffff_ffbf_f000; flags 0x1e3 to small 0x163, less P RW D: 0x120, less G: 0x020
    assert host.leaf(0x400) == (2, 0x800F_FFFF_FFBF_F020)
    assert host.leaf(0x5FF) == (2, 0x800F_FFFF_FFBF_F020)
    assert host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=1) == 0
    # P and RW set: 0x023; present again, so PSE: 0x0a3
    assert host.leaf(0x400) == (2, 0x400000 | NX | 0x0A3)


def test_giga_not_present(backend: str) -> None:
    """direct-map §1, §4.3e: the same at level 3; bits 29:12 are all set."""
    host = Host(backend, HOLE, kernel="7.3")
    assert host.call("set_direct_map_valid_noflush", pfn=0x40000, pages=0x40000, valid=0) == 0
    # ~0x4000_0000 & 51:12 = 0x000f_ffff_bfff_f000
    assert host.leaf(0x40000) == (3, 0x800F_FFFF_BFFF_F020)
    assert host.call("set_direct_map_valid_noflush", pfn=0x40000, pages=0x40000, valid=1) == 0
    assert host.leaf(0x7FFFF) == (3, GIB | NX | 0x0A3)


def test_split_not_present_2m(backend: str) -> None:
    """direct-map §4.4: children of a not-present leaf are inverted one by one."""
    host = Host(backend, kernel="6.13")
    host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0)
    assert host.call("set_direct_map_default_noflush", pfn=0x401) == 0
    assert host.leaf(0x400) == (1, inverted(0x400000, NX | 0x020))
    assert host.leaf(0x401) == (1, 0x401000 | NX | 0x023)
    assert host.leaf(0x402) == (1, inverted(0x402000, NX | 0x020))
    assert host.leaf(0x5FF) == (1, inverted(0x5FF000, NX | 0x020))


def test_split_not_present_1g(backend: str) -> None:
    """direct-map §4.4: level-2 children of a not-present 1 GiB leaf have no PSE, step 512 frames, inverted one by
    one."""
    host = Host(backend, HOLE, kernel="6.13")
    host.call("set_direct_map_valid_noflush", pfn=0x40000, pages=0x40000, valid=0)
    assert host.call("set_direct_map_default_noflush", pfn=0x40201) == 0
    assert host.leaf(0x40000) == (2, inverted(0x40000000, NX | 0x020))
    assert host.leaf(0x40200) == (1, inverted(0x40200000, NX | 0x020))
    assert host.leaf(0x40201) == (1, 0x40201000 | NX | 0x023)
    assert host.leaf(0x40400) == (2, inverted(0x40400000, NX | 0x020))
    assert host.leaf(0x7FFFF) == (2, inverted(0x7FE00000, NX | 0x020))


def test_split_of_an_odd_not_present_1g(backend: str) -> None:
    """direct-map §4.4b, c: a not-present 1 GiB leaf that still has PSE and G (as somebody else may have left it): the
    2 MiB children have neither."""
    first = Host(backend, HOLE, kernel="6.13")
    odd = ~GIB & FRAME_MASK & -GIB | NX | A | PSE | G
    host = continued(first, with_leaves(first.state(), {(0, 3, GIB): odd}))
    assert host.leaf(0x40000) == (3, odd)
    assert host.call("set_memory_4k", pfn=0x40000, pages=1) == 0
    assert host.leaf(0x40200) == (2, inverted(0x40200000, NX | A))
    assert host.leaf(0x40001) == (1, inverted(0x40001000, NX | A))


@pytest.mark.parametrize(("pfn", "level", "raw"), [(0x400, 2, 0x3FE000), (0x40000, 3, 0x3FFFE000)])
def test_split_of_a_leaf_with_reserved_bits(backend: str, pfn: int, level: int, raw: int) -> None:
    """direct-map §1, §4.4: bits between PAT_LARGE and the page's size are no frame, so they are flags, which are ORed
    in, whatever the child's number has there."""
    first = Host(backend, HOLE, kernel="6.12")
    size = 1 << 21 if level == 2 else GIB
    if level == 2:
        assert first.call("set_memory_4k", pfn=0, pages=1) == 0  # the first GiB in 2 MiB pages
    for odd in (1 << 13, raw & (size - 1)):
        state = with_leaves(first.state(), {(0, level, pfn << 12): pfn << 12 | odd | LARGE_LEAF})
        host = continued(first, state)
        assert host.call("set_memory_ro", pfn=pfn, pages=1) == 0
        step = 1 << 12 if level == 2 else 1 << 21
        for child in (1, 2, 3, 4, 255, 510, 511):
            flags = SMALL_LEAF if level == 2 else LARGE_LEAF
            assert host.leaf(pfn + child * step // 4096) == (level - 1, pfn << 12 | child * step | odd | flags)


def test_pat_moves_down(backend: str) -> None:
    """direct-map §1: PAT_LARGE (bit 12) becomes PAT (bit 7) when a 2 MiB leaf is split; the frame has no bit 12."""
    first = Host(backend)
    host = continued(first, with_leaves(first.state(), {(0, 2, 0x400000): 0x400000 | LARGE_LEAF | PAT_LARGE}))
    assert host.call("set_memory_4k", pfn=0x400, pages=1) == 0
    for pfn in (0x400, 0x401, 0x5FF):
        assert host.leaf(pfn) == (1, pfn << 12 | SMALL_LEAF | PAT)


def test_pat_stays_large_between_large_levels(backend: str) -> None:
    """direct-map §4.4: a 1 GiB leaf gives 2 MiB leaves with flags as they are: PAT_LARGE stays at bit 12."""
    first = Host(backend, HOLE)
    host = continued(first, with_leaves(first.state(), {(0, 3, GIB): GIB | LARGE_LEAF | PAT_LARGE}))
    assert host.call("set_memory_4k", pfn=0x40000, pages=1) == 0
    assert host.leaf(0x40200) == (2, 0x40200000 | LARGE_LEAF | PAT_LARGE)
    assert host.leaf(0x40001) == (1, 0x40001000 | SMALL_LEAF | PAT)


def test_pat_moves_up_and_is_swallowed(backend: str) -> None:
    """direct-map §1: a rewritten large leaf gets PAT back at bit 12; where it is not present, the inverted frame
    covers bit 12 and PAT is lost."""
    first = Host(backend, kernel="6.13")
    marked = 0x400000 | LARGE_LEAF | PAT_LARGE
    host = continued(first, with_leaves(first.state(), {(0, 2, 0x400000): marked & ~RW}))
    host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=1)
    assert host.leaf(0x400) == (2, marked)
    host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=0)
    assert host.leaf(0x400) == (2, inverted(0x400000, NX | A))
    host.call("set_direct_map_valid_noflush", pfn=0x400, pages=0x200, valid=1)
    assert host.leaf(0x400) == (2, 0x400000 | NX | 0x0A3)


def test_pat_at_level_1_is_kept(backend: str) -> None:
    """direct-map §1: bit 7 at level 1 is PAT, not PSE: changing a small page leaves it alone."""
    first = Host(backend)
    first.call("set_memory_4k", pfn=0x400, pages=1)
    host = continued(first, with_leaves(first.state(), {(0, 1, 0x400000): 0x400000 | SMALL_LEAF | PAT}))
    host.call("set_direct_map_invalid_noflush", pfn=0x400)
    assert host.leaf(0x400) == (1, inverted(0x400000, NX | A | PAT))


def test_boot_flags(backend: str) -> None:
    """direct-map §1: PAGE_KERNEL is 0x8000000000000163, the large form 0x80000000000001e3; boot tables 0x067."""
    state = Host(backend).state()
    assert leaves(state) == {(2, n * 2 * MIB): n * 2 * MIB | LARGE_LEAF for n in range(32)}
    assert {raw & ~FRAME_MASK for raw in tables(state).values()} == {BOOT_TABLE}


def test_split_table_flags(backend: str) -> None:
    """direct-map §1: a table hung by a split has 0x063, without US; the others keep 0x067."""
    host = Host(backend)
    host.call("set_memory_4k", pfn=0x400, pages=1)
    flags = {key: raw & ~FRAME_MASK for key, raw in tables(host.state()).items()}
    assert flags == {(4, 0): BOOT_TABLE, (3, 0): BOOT_TABLE, (2, 0x400000): SPLIT_TABLE}


def test_default_mask_without_global(backend: str) -> None:
    """direct-map §1: boot entries are cut to the default mask: without G 0x…0e3, and 0x…063 after a split."""
    host = Host(backend, SMALL_PTI)
    assert host.leaf(0x400) == (2, 0x400000 | NX | 0x0E3)
    host.call("set_memory_4k", pfn=0x400, pages=1)
    assert host.leaf(0x400) == (1, 0x400000 | NX | 0x063)


def test_small_pages_default_mask(backend: str) -> None:
    """direct-map §1: the same for small pages at boot."""
    host = Host(backend, dataclasses.replace(SMALL_PTI, large_pages="4K"))
    assert host.leaf(0x400) == (1, 0x400000 | NX | 0x063)


@pytest.mark.parametrize("supported", [True, False])
def test_set_bits_are_cut_to_the_supported_mask(backend: str, supported: bool) -> None:
    """direct-map §4: set bits are first cut to the supported mask (here: whether it has SOFTW3, set from 6.15)."""
    mask = U64 if supported else U64 & ~SOFTW3
    host = Host(backend, dataclasses.replace(SMALL, supported_mask=mask), kernel="6.15")
    assert host.call("set_memory_4k", pfn=0x400, pages=1) == 0
    assert host.leaf(0x400) == (1, 0x400000 | SMALL_LEAF | (SOFTW3 if supported else 0))
    assert host.leaf(0x401) == (1, 0x401000 | SMALL_LEAF)


def test_c_bit(backend: str) -> None:
    """direct-map §1: the C-bit lies inside 51:12 and counts as a flag: leaves and tables carry it, splits keep it."""
    c_bit = SMALL_CBIT.c_bit
    host = Host(backend, SMALL_CBIT)
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF | c_bit)
    assert {raw & ~FRAME_MASK | raw & c_bit for raw in tables(host.state()).values()} == {BOOT_TABLE | c_bit}
    assert host.call("set_memory_4k", pfn=0x400, pages=1) == 0
    assert host.leaf(0x5FF) == (1, 0x5FF000 | SMALL_LEAF | c_bit)
    hung = tables(host.state())[2, 0x400000]
    assert hung & ~FRAME_MASK | hung & c_bit == SPLIT_TABLE | c_bit


def test_c_bit_is_not_part_of_an_inverted_frame(backend: str) -> None:
    """direct-map §1: the C-bit stays a set flag through not-present and back."""
    c_bit = SMALL_CBIT.c_bit
    host = Host(backend, SMALL_CBIT, kernel="6.13")
    host.call("set_direct_map_invalid_noflush", pfn=0x400)
    assert host.leaf(0x400) == (1, inverted(0x400000, NX | A) | c_bit)
    host.call("set_direct_map_default_noflush", pfn=0x400)
    assert host.leaf(0x400) == (1, 0x400000 | NX | 0x023 | c_bit)
    host.call("set_direct_map_valid_noflush", pfn=0x600, pages=0x200, valid=0)
    assert host.leaf(0x600) == (2, inverted(0x600000, NX | A) | c_bit)
    host.call("set_direct_map_valid_noflush", pfn=0x600, pages=0x200, valid=1)
    assert host.leaf(0x600) == (2, 0x600000 | NX | 0x0A3 | c_bit)


def test_dirty_leaf_keeps_unrelated_bits(backend: str) -> None:
    """direct-map §1, §4.2: bits that no call names (accessed, software, protection key) stay as they are."""
    first = Host(backend)
    first.call("set_memory_4k", pfn=0x400, pages=1)
    extra = 1 << 9 | 1 << 10 | 1 << 57 | 1 << 58 | 0b1010 << 59
    host = continued(first, with_leaves(first.state(), {(0, 1, 0x400000): 0x400000 | SMALL_LEAF | extra}))
    host.call("set_direct_map_invalid_noflush", pfn=0x400)
    assert host.leaf(0x400) == (1, inverted(0x400000, NX | A | extra))
    host.call("set_direct_map_default_noflush", pfn=0x400)
    assert host.leaf(0x400) == (1, 0x400000 | NX | A | RW | P | extra)
    assert host.leaf(0x400)[1] & (D | PSE) == 0
