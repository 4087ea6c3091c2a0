"""direct-map §4 to §7 through every entry point: what each sets and clears, in three flavours, on both mappings of the
kernel image; large pages kept or split; errors; flushes of TLBs and caches; the W^X complaint."""

from __future__ import annotations

import dataclasses

import pytest
from machines import (
    EFAULT,
    ENOMEM,
    FRAME_MASK,
    GIB,
    HIGH_MAPPING,
    HOLE,
    IMAGE,
    IMAGE_MOVED,
    IMAGE_SYMBOLS,
    LARGE_LEAF,
    MIB,
    NX,
    PAGE_OFFSET,
    PAT,
    PAT_LARGE,
    PCD,
    PWT,
    RW,
    SMALL,
    SMALL_CBIT,
    SMALL_LA57,
    SMALL_LEAF,
    SMALL_PTI,
    SOFTW1,
    SOFTW2,
    SOFTW3,
    SPLIT_TABLE,
    U64,
    A,
    D,
    G,
    Host,
    P,
    build_map,
    changed,
    continued,
    entry,
    inverted,
    kinds,
    leaves,
    read_only,
    small_pages,
    tables,
    with_leaves,
    with_tables,
)

from rmpcore.maps import MachineMap
from rmpcore.ops import Event, EventKind, Flavour, Kind, Refusal

SPLIT_EVENTS = [EventKind.TABLE_ALLOC, EventKind.SPLIT, EventKind.FLUSH_ALL]
FLUSH_ALL = Event(EventKind.FLUSH_ALL)
CACHE = PWT | PCD | PAT
HIGH_SMALL = 0x163
HIGH_LARGE = 0x1E3

FLAVOURS = list(Flavour)
ARRAYS = [Flavour.ARRAY, Flavour.PAGES]

# §7 row by row: name, kernel, bits set, bits cleared, other arguments
ROWS = [
    ("set_memory_ro", "6.1", 0, RW, {}),
    ("set_memory_ro", "6.5", 0, RW, {}),
    ("set_memory_ro", "6.6", 0, RW | D, {}),
    ("set_memory_ro", "7.3", 0, RW | D, {}),
    ("set_memory_rw", "6.1", RW, 0, {}),
    ("set_memory_rw", "7.3", RW, 0, {}),
    ("set_memory_rox", "6.2", 0, RW | D | NX, {}),
    ("set_memory_rox", "6.14", 0, RW | D | NX, {}),
    ("set_memory_rox", "6.15", 0, RW | D | NX, {}),
    ("set_memory_nx", "6.1", NX, 0, {}),
    ("set_memory_nx", "6.2", NX, 0, {}),
    ("set_memory_x", "6.1", 0, NX, {}),
    ("set_memory_x", "6.2", 0, NX, {}),
    ("set_memory_np", "6.1", 0, P, {}),
    ("set_memory_np", "7.3", 0, P, {}),
    ("set_memory_p", "6.1", P, 0, {}),
    ("set_memory_p", "7.3", P, 0, {}),
    ("set_memory_np_noalias", "6.1", 0, P, {}),
    ("set_memory_np_noalias", "7.3", 0, P, {}),
    ("set_memory_4k", "6.1", 0, 0, {}),
    ("set_memory_4k", "6.14", 0, 0, {}),
    ("set_memory_4k", "6.15", SOFTW3, 0, {}),
    ("set_memory_4k", "7.3", SOFTW3, 0, {}),
    ("set_memory_global", "6.1", G, 0, {}),
    ("set_memory_global", "7.3", G, 0, {}),
    ("set_memory_nonglobal", "6.1", 0, G, {}),
    ("set_memory_nonglobal", "7.3", 0, G, {}),
    ("_set_memory_uc", "6.1", PCD, 0, {}),
    ("_set_memory_uc", "7.3", PCD, 0, {}),
    ("_set_memory_wc", "6.1", PWT, CACHE, {}),
    ("_set_memory_wc", "7.3", PWT, CACHE, {}),
    ("_set_memory_wb", "6.1", 0, CACHE, {}),
    ("_set_memory_wb", "7.3", 0, CACHE, {}),
    ("set_memory_encrypted", "6.12", 0, 0, {}),
    ("set_memory_decrypted", "6.12", 0, 0, {}),
    ("change_page_attr_set", "6.1", SOFTW1, 0, {"mask": SOFTW1}),
    ("change_page_attr_set", "7.3", NX | 1 << 58 | PAT, 0, {"mask": NX | 1 << 58 | PAT}),
    ("change_page_attr_clear", "6.1", 0, SOFTW1, {"mask": SOFTW1}),
    ("change_page_attr_clear", "7.3", 0, NX | 1 << 58 | PAT, {"mask": NX | 1 << 58 | PAT}),
]
FULL = NX | 1 << 58 | 1 << 57 | 0xFFF
BARE = P | A
GONE = NX | A | D | RW
BEFORE = {0x410: SMALL_LEAF, 0x411: FULL, 0x412: BARE, 0x413: GONE}
"""Flags of four neighbours: as booted; everything at once; next to nothing; not present."""
SCATTERED = [0x412, 0x410, 0x413, 0x411]


def after(flags: int, set_: int, clear: int) -> int:
    """§4.2 without static protections."""
    flags = flags & ~clear | set_
    return flags if flags & P else flags & ~G


def va(pfn: int) -> int:
    return PAGE_OFFSET + (pfn << 12)


def high_va(offset: int) -> int:
    return HIGH_MAPPING + offset


def flushes(pfns: list[int], flavour: Flavour) -> list[Event]:
    """§4.6: up to 33 pages in one run, or each entry of an array by itself."""
    if flavour == Flavour.RANGE:
        return [Event(EventKind.FLUSH_PAGES, a=va(pfns[0]), b=len(pfns))]
    return [Event(EventKind.FLUSH_PAGES, a=va(pfn), b=1) for pfn in pfns]


# §7: what each call sets and clears


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("name", "kernel", "set_", "clear", "args"), ROWS)
def test_row(
    backend: str, name: str, kernel: str, set_: int, clear: int, args: dict[str, int], flavour: Flavour
) -> None:
    """§7: the row's bits on four small pages and on no other; one flush of the pages if any entry's value changed;
    cache lines of the present ones if the bits set hold a cache mode (twice for the two runs of _set_memory_wc)."""
    host = small_pages(backend, kernel=kernel, flags=BEFORE)
    before = host.state()
    pfns = sorted(SCATTERED) if flavour == Flavour.RANGE else SCATTERED
    assert host.change(name, pfns, flavour, **args) == 0
    state = host.state()
    expected = leaves(before)
    for pfn, flags in BEFORE.items():
        expected[1, pfn << 12] = entry(pfn << 12, after(flags, set_, clear))
    assert leaves(state) == expected
    assert state.addresses == ()
    wanted: list[Event] = []
    if expected != leaves(before):
        wanted = flushes(pfns, flavour)
        if set_ & CACHE:
            present = [pfn for pfn in pfns if pfn != 0x413]
            if flavour == Flavour.RANGE:
                wanted.append(Event(EventKind.FLUSH_CACHE, a=va(0x410), b=3))
            else:
                wanted += [Event(EventKind.FLUSH_CACHE, a=va(pfn), b=1) for pfn in present]
        if name == "_set_memory_wc":
            wanted *= 2
    assert [event for event in host.events() if event.kind != EventKind.W_AND_X] == wanted
    counters = dict(before.counters)
    counters["flush_pages"] += sum(event.b for event in wanted if event.kind == EventKind.FLUSH_PAGES)
    counters["flush_cache"] += sum(event.b for event in wanted if event.kind == EventKind.FLUSH_CACHE)
    assert state.counters == counters


@pytest.mark.parametrize(("name", "kernel", "set_", "clear", "args"), ROWS)
def test_row_on_image_frames(backend: str, name: str, kernel: str, set_: int, clear: int, args: dict[str, int]) -> None:
    """§6, §7: a frame of the image, data so that nothing is protected: the high mapping follows, NX left out, unless
    the call looks for no aliases (np_noalias; NX alone before 6.2)."""
    host = Host(backend, IMAGE, kernel=kernel)
    assert host.call("set_memory_4k", pfn=0x1C00, pages=1) == 0
    before = with_leaves(host.state(), {(w, 1, 0x1C10000): 0x1C10000 | P | RW | SOFTW1 | D | A for w in (0, 1)})
    host = continued(host, before)
    assert host.change(name, [0x1C10], **args) == 0
    state = host.state()
    flags = P | RW | SOFTW1 | D | A
    assert leaves(state)[1, 0x1C10000] == entry(0x1C10000, after(flags, set_, clear))
    alone = name == "set_memory_np_noalias" or (kernel == "6.1" and set_ | clear == NX)
    alias = flags if alone else after(flags, set_ & ~NX, clear & ~NX)
    assert leaves(state, 1) == leaves(before, 1) | {(1, 0x1C10000): entry(0x1C10000, alias)}
    # an alias makes it a full flush
    events = [kind for kind in kinds(host.events()) if kind in (EventKind.FLUSH_ALL, EventKind.FLUSH_PAGES)]
    runs = 2 if name == "_set_memory_wc" else 1
    if after(flags, set_, clear) == flags:
        assert events == []
    else:
        assert events == [EventKind.FLUSH_PAGES if alone else EventKind.FLUSH_ALL] * runs


def test_row_of_an_older_kernel(backend: str) -> None:
    """§7, §10: set_memory_rox from 6.2."""
    host = Host(backend, kernel="6.1")
    before = host.state()
    result = host.do("set_memory_rox", pfn=0x400, pages=1)
    assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_OP)
    assert host.state() == before
    assert Host(backend, kernel="6.2").call("set_memory_rox", pfn=0x400, pages=1) == 0


def test_rox_takes_d_before_6_6_too(backend: str) -> None:
    """§7: rox always clears D; ro only from 6.6."""
    for kernel, name, flags in (("6.2", "set_memory_rox", 0x121), ("6.2", "set_memory_ro", NX | 0x161)):
        host = small_pages(backend, kernel=kernel)
        assert host.change(name, [0x410]) == 0
        assert host.leaf(0x410) == (1, 0x410000 | flags)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_nothing_to_do(backend: str, flavour: Flavour) -> None:
    """§4: no bit to set or clear: 0, nothing touched, even where the large page violates a protection."""
    host = read_only(backend, IMAGE, "6.12")
    before = host.state()
    assert host.change("change_page_attr_set", [0x1900], flavour, mask=0) == 0
    assert host.change("change_page_attr_clear", [0x1900], flavour, mask=0) == 0
    assert host.change("set_memory_encrypted", [0x1900], flavour) == 0
    assert host.change("set_memory_decrypted", [0x1900], flavour) == 0
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("bit", [12, 13, 21, 40, 51])
@pytest.mark.parametrize("name", ["change_page_attr_set", "change_page_attr_clear"])
def test_mask_of_the_frame_is_refused(backend: str, name: str, bit: int) -> None:
    """The mask is of flags; bits of the frame are none, but the C-bit is one where the machine has it."""
    host = Host(backend, kernel="6.12")
    before = host.state()
    result = host.do(name, pfn=0x400, pages=1, mask=1 << bit | P)
    assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_ARGUMENT)
    assert host.state() == before
    with_c_bit = Host(backend, SMALL_CBIT, kernel="6.12").do(name, pfn=0x400, pages=1, mask=1 << bit | P)
    assert with_c_bit.kind == (Kind.KERNEL if bit == 51 else Kind.REFUSED)


def test_set_bits_are_cut_to_the_supported_mask(backend: str) -> None:
    """§4: set bits are cut to the supported mask, clear bits are not; if nothing is left, nothing is touched."""
    mask = U64 & ~(SOFTW1 | G)
    host = Host(backend, dataclasses.replace(SMALL, supported_mask=mask))
    before = host.state()
    assert host.change("change_page_attr_set", [0x400], mask=SOFTW1) == 0
    assert host.change("set_memory_global", [0x400]) == 0
    assert host.state() == before
    assert host.change("change_page_attr_set", [0x400], mask=SOFTW1 | SOFTW2) == 0
    assert host.leaf(0x400) == (1, 0x400000 | SMALL_LEAF | SOFTW2)
    assert host.change("change_page_attr_clear", [0x400], mask=G | SOFTW1) == 0
    assert host.leaf(0x400) == (1, 0x400000 | SMALL_LEAF & ~G | SOFTW2)


def test_global_under_page_table_isolation(backend: str) -> None:
    """§1: boot entries are cut to the default mask, set bits to the supported mask, which keeps G."""
    host = Host(backend, SMALL_PTI, kernel="6.12")
    assert host.change("set_memory_global", [0x400]) == 0
    assert host.leaf(0x400) == (1, 0x400000 | SMALL_LEAF)
    assert host.leaf(0x401) == (1, 0x401000 | SMALL_LEAF & ~G)


def test_five_levels(backend: str) -> None:
    """§4 is the same with five levels."""
    host = Host(backend, SMALL_LA57, kernel="6.12")
    assert host.change("set_memory_ro", [0x400]) == 0
    assert host.leaf(0x400) == (1, 0x400000 | NX | 0x121)
    assert host.events()[-1] == Event(EventKind.FLUSH_PAGES, a=SMALL_LA57.page_offset + 0x400000, b=1)


# flavours: how pages are listed


@pytest.mark.parametrize("flavour", ARRAYS)
def test_array_takes_the_first_and_clears_the_list(backend: str, flavour: Flavour) -> None:
    """The first ``pages`` entries are meant; when the op is done the whole list is gone."""
    host = small_pages(backend)
    for pfn in (0x410, 0x420, 0x430):
        host.call("cpa_address", pfn=pfn)
    assert host.state().addresses == ((0x410, 0), (0x420, 0), (0x430, 0))
    assert host.call("set_memory_ro", pfn=0, pages=2, flavour=flavour) == 0
    assert [host.leaf(pfn)[1] & RW for pfn in (0x410, 0x420, 0x430)] == [0, 0, RW]
    assert host.state().addresses == ()


@pytest.mark.parametrize("flavour", ARRAYS)
def test_array_of_no_pages(backend: str, flavour: Flavour) -> None:
    """Zero pages of an array: 0, nothing changes, the list is cleared."""
    host = Host(backend)
    before = host.state()
    host.call("cpa_address", pfn=0x410)
    assert host.call("set_memory_4k", pfn=0, pages=0, flavour=flavour) == 0
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("flavour", ARRAYS)
def test_array_may_name_a_page_twice(backend: str, flavour: Flavour) -> None:
    """§4.6: an entry is flushed as often as it is listed."""
    host = small_pages(backend)
    assert host.change("set_memory_ro", [0x410, 0x410], flavour) == 0
    assert host.events() == flushes([0x410, 0x410], flavour)


@pytest.mark.parametrize("flavour", ARRAYS)
def test_array_is_cleared_after_an_error(backend: str, flavour: Flavour) -> None:
    """Whatever the op returned."""
    host = small_pages(backend)
    assert host.change("set_memory_ro", [0x410, 0x4000, 0x411], flavour) == EFAULT
    assert host.state().addresses == ()
    assert [host.leaf(pfn)[1] & RW for pfn in (0x410, 0x411)] == [0, RW]
    assert host.events() == [FLUSH_ALL]


@pytest.mark.parametrize(
    "fields",
    [
        {"flavour": 3, "pages": 1},
        {"flavour": 255, "pages": 1},
        {"flavour": 1, "pages": 4},
        {"flavour": 2, "pages": 4},
        {"flavour": 2, "pages": 3},
        {"flavour": 1, "pages": U64},
        {"flavour": 1, "pages": 1, "pfn": 1},
        {"flavour": 2, "pages": 1, "pfn": 0x410},
        {"flavour": 1, "pages": 1, "high": 1},
        {"flavour": 2, "pages": 1, "high": 1},
    ],
)
def test_refused_arrays(backend: str, fields: dict[str, int]) -> None:
    """No such flavour; more entries than listed; a frame or HIGH beside a list; a high address among pages: refused,
    and the list stays."""
    host = Host(backend, IMAGE)
    host.call("cpa_address", pfn=0x410)
    host.call("cpa_address", pfn=0x1203)
    host.call("cpa_address", pfn=0x1203, high=1)
    before = host.state()
    assert before.addresses == ((0x410, 0), (0x1203, 0), (0x1203, 1))
    for name in ("set_memory_4k", "set_memory_ro"):
        result = host.do(name, **({"pfn": 0} | fields))
        assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_ARGUMENT)
        assert host.state() == before
    # two of them are no high addresses
    assert host.call("set_memory_ro", pfn=0, pages=2, flavour=2) == 0


@pytest.mark.parametrize(("pfn", "map_"), [(0, IMAGE), (0x1203, IMAGE), (0x800, IMAGE_MOVED)])
def test_refused_high_address_that_is_the_first(backend: str, pfn: int, map_: MachineMap) -> None:
    """docs/formats.md, flavours: no high address among pages, neither the mapping's first."""
    host = Host(backend, map_)
    assert host.call("cpa_address", pfn=pfn, high=1) == 0
    before = host.state()
    for name in ("set_memory_4k", "set_memory_ro"):
        result = host.do(name, pfn=0, pages=1, flavour=2)
        assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_ARGUMENT)
        assert host.state() == before


def test_list_of_addresses_is_finite(backend: str) -> None:
    """1024 addresses, then the queue is full."""
    host = Host(backend)
    for pfn in range(1024):
        assert host.call("cpa_address", pfn=pfn) == 0
    result = host.do("cpa_address", pfn=0)
    assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.QUEUE_FULL)
    assert len(host.state().addresses) == 1024
    assert host.call("set_memory_4k", pfn=0, pages=1024, flavour=1) == 0
    assert [host.leaf(pfn)[0] for pfn in (0, 0x3FF, 0x400)] == [1, 1, 2]


@pytest.mark.parametrize("pfn", [1 << 34, (1 << 64) - 1])
def test_address_beyond_the_area(backend: str, pfn: int) -> None:
    """The same limits as for a call on one page."""
    result = Host(backend).do("cpa_address", pfn=pfn)
    assert (result.kind, result.ret) == (Kind.REFUSED, Refusal.BAD_ARGUMENT)
    assert Host(backend).call("cpa_address", pfn=(1 << 34) - 1) == 0


def test_list_survives_saving(backend: str) -> None:
    """State.addresses is loaded."""
    host = small_pages(backend)
    host.call("cpa_address", pfn=0x410)
    again = continued(host, host.state())
    assert again.state() == host.state()
    assert again.call("set_memory_ro", pfn=0, pages=1, flavour=1) == 0
    assert not again.leaf(0x410)[1] & RW


@pytest.mark.parametrize(
    ("map_", "pfn", "pages", "fine"),
    [
        (SMALL, 0x410, 1, False),
        (IMAGE, 0, 1, True),
        (IMAGE, 0x3FFFF, 1, True),
        (IMAGE, 0x3FFFF, 2, False),
        (IMAGE, 0x40000, 1, False),
        (IMAGE, U64, 1, False),
        (IMAGE, 1, U64, False),
        (IMAGE_MOVED, 0x7FF, 1, False),
        (IMAGE_MOVED, 0x7FF, 2, False),
        (IMAGE_MOVED, 0x800, 1, True),
        (IMAGE_MOVED, 0x407FF, 1, True),
        (IMAGE_MOVED, 0x40800, 1, False),
    ],
)
def test_limits_of_the_high_window(backend: str, map_: MachineMap, pfn: int, pages: int, fine: bool) -> None:
    """HIGH needs an image, and pages whose place is in its 1 GiB; a hole there is -EFAULT (§4.1)."""
    host = Host(backend, map_)
    before = host.state()
    result = host.do("set_memory_ro", pfn=pfn, pages=pages, high=1)
    wanted = (Kind.KERNEL, EFAULT) if fine else (Kind.REFUSED, Refusal.BAD_ARGUMENT)
    assert (result.kind, result.ret) == wanted
    assert host.state() == before
    if pages == 1:
        assert host.do("cpa_address", pfn=pfn, high=1).kind == (Kind.KERNEL if fine else Kind.REFUSED)


@pytest.mark.parametrize(("pfn", "fine"), [(0x3FFFF, True), (0x40000, True), (0x40001, False)])
def test_no_pages_at_the_end_of_the_high_window(backend: str, pfn: int, fine: bool) -> None:
    """As at the end of the direct map: no page is no page outside."""
    for map_, first in ((IMAGE, 0), (IMAGE_MOVED, 0x800)):
        result = Host(backend, map_).do("set_memory_ro", pfn=first + pfn, pages=0, high=1)
        assert (result.kind, result.ret) == ((Kind.KERNEL, 0) if fine else (Kind.REFUSED, Refusal.BAD_ARGUMENT))


# §6: a high primary address


@pytest.mark.parametrize("flavour", [Flavour.RANGE, Flavour.ARRAY])
@pytest.mark.parametrize(("map_", "base"), [(IMAGE, 0), (IMAGE_MOVED, 0x800)])
def test_high_primary(backend: str, map_: MachineMap, base: int, flavour: Flavour) -> None:
    """§6: the direct map follows the high mapping, splits and all, chunk by chunk; the flush is a full one."""
    host = Host(backend, map_, kernel="6.12")
    pfn = base + 0x1703
    assert host.change("set_memory_ro", [pfn], flavour, high=1) == 0
    state = host.state()
    frame = pfn << 12
    assert leaves(state)[1, frame] == frame | NX | 0x121
    assert leaves(state, 1)[1, 0x1703000] == frame | 0x121
    assert leaves(state, 1)[1, 0x1704000] == frame + 0x1000 | HIGH_SMALL
    assert len(leaves(state, 1)) == 9 + 512
    split = (pfn & ~0x1FF) << 12
    assert host.events() == [
        Event(EventKind.TABLE_ALLOC, level=1, a=0x3FFA000),
        Event(EventKind.SPLIT, level=2, a=high_va(0x1600000), b=split | HIGH_LARGE, c=0x3FFA000),
        FLUSH_ALL,
        Event(EventKind.TABLE_ALLOC, level=1, a=0x3FF9000),
        Event(EventKind.SPLIT, level=2, a=va(pfn & ~0x1FF), b=split | LARGE_LEAF, c=0x3FF9000),
        FLUSH_ALL,
        FLUSH_ALL,
    ]
    assert host.counts() == (1024, 31, 0)
    assert state.counters["flush_pages"] == 0


def test_high_primary_leaves_nx_out(backend: str) -> None:
    """§6: NX is taken out of both set and clear for the direct map; with it goes the only change, and no large page
    there is split; the flush is full all the same."""
    host = Host(backend, IMAGE, kernel="6.12")
    assert host.change("set_memory_nx", [0x1703], high=1) == 0
    assert leaves(host.state(), 1)[1, 0x1703000] == 0x1703000 | NX | HIGH_SMALL
    assert host.leaf(0x1703) == (2, 0x1600000 | LARGE_LEAF)
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.FLUSH_ALL]
    assert host.change("set_memory_rox", [0x1703], high=1) == 0
    assert leaves(host.state(), 1)[1, 0x1703000] == 0x1703000 | 0x121
    assert host.leaf(0x1703) == (1, 0x1703000 | NX | 0x121)
    assert host.change("change_page_attr_set", [0x1703], high=1, mask=NX | SOFTW1) == 0
    assert host.change("change_page_attr_clear", [0x1703], mask=NX | SOFTW1) == 0
    assert leaves(host.state(), 1)[1, 0x1703000] == 0x1703000 | NX | 0x121
    assert host.leaf(0x1703) == (1, 0x1703000 | 0x121)


def test_high_primary_outside_the_mapped_list(backend: str) -> None:
    """§6: frames that are not in the mapped list have no aliases."""
    first = Host(backend, IMAGE, kernel="6.12")
    host = continued(first, changed(first.state(), mapped=((0, 0x1703), (0x1704, 0x4000))))
    assert host.change("set_memory_ro", [0x1703], high=1) == 0
    assert host.leaf(0x1703) == (2, 0x1600000 | LARGE_LEAF)
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.FLUSH_PAGES]
    # §4.4: nor does a split at such a frame move the counters
    assert host.counts() == (0, 33, 0)


def test_high_primary_error_of_the_alias_counts(backend: str) -> None:
    """§6: only errors on the high mapping are ignored: no page for the direct map's table is -ENOMEM, what was done
    stays done, everything is flushed."""
    host = Host(backend, IMAGE, kernel="6.12")
    host.call("fail_alloc", skip=1, count=1)
    assert host.call("set_memory_ro", pfn=0x1703, pages=2, high=1) == ENOMEM
    high = leaves(host.state(), 1)
    assert [high[1, at] for at in (0x1703000, 0x1704000)] == [0x1703000 | 0x121, 0x1704000 | HIGH_SMALL]
    assert host.leaf(0x1703) == (2, 0x1600000 | LARGE_LEAF)
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL, EventKind.FLUSH_ALL]


def test_high_primary_across_large_pages(backend: str) -> None:
    """§4.3, §6: a 2 MiB page covered exactly is kept on both sides; its neighbours are split on both."""
    host = Host(backend, IMAGE, kernel="6.12")
    assert host.call("set_memory_ro", pfn=0x1BFF, pages=0x202, high=1) == 0
    state = host.state()
    for window, flags in ((0, NX | 0x121), (1, 0x121)):
        found = leaves(state, window)
        assert found[2, 0x1C00000] == 0x1C00000 | flags | 0x80
        assert found[1, 0x1BFF000] == 0x1BFF000 | flags
        assert found[1, 0x1E00000] == 0x1E00000 | flags
        assert (2, 0x1A00000) not in found and (2, 0x1E00000) not in found
    assert state.counters["level2_splits"] == 4


def test_high_hole_between(backend: str) -> None:
    """§4.1: in the high window a hole is -EFAULT, with the pages before it changed."""
    first = Host(backend, IMAGE, kernel="6.12")
    host = continued(first, with_leaves(first.state(), {(1, 2, 0x1A00000): 0}))
    assert host.call("set_memory_ro", pfn=0x19FF, pages=3, high=1) == EFAULT
    assert leaves(host.state(), 1)[1, 0x19FF000] == 0x19FF000 | 0x121
    assert host.leaf(0x19FF) == (1, 0x19FF000 | NX | 0x121)
    assert host.leaf(0x1A00) == (2, 0x1A00000 | LARGE_LEAF)
    assert host.events()[-1] == FLUSH_ALL


def test_high_frame_without_a_direct_map_entry(backend: str) -> None:
    """§6: the alias run on the direct map treats a hole as done."""
    first = Host(backend, IMAGE, kernel="6.12")
    host = continued(first, with_leaves(first.state(), {(0, 2, 0x1600000): 0}))
    assert host.change("set_memory_ro", [0x1703], high=1) == 0
    assert leaves(host.state(), 1)[1, 0x1703000] == 0x1703000 | 0x121
    assert host.leaf(0x1703) == (0, 0)


# §6: frames of the image by their address in the direct map


def test_image_frame_error_of_the_alias_is_ignored(backend: str) -> None:
    """§6: no page for the high mapping's table: 0, the direct map is changed, the rest of the request too."""
    host = Host(backend, IMAGE, kernel="6.12")
    host.call("fail_alloc", skip=1, count=2)
    assert host.call("set_memory_ro", pfn=0x1703, pages=2) == 0
    assert [host.leaf(pfn)[1] for pfn in (0x1703, 0x1704)] == [pfn << 12 | NX | 0x121 for pfn in (0x1703, 0x1704)]
    assert leaves(host.state(), 1)[2, 0x1600000] == 0x1600000 | HIGH_LARGE
    fail = Event(EventKind.ALLOC_FAIL, level=1)
    assert host.events()[3:] == [fail, fail, FLUSH_ALL]


def test_alias_goes_on_after_a_hole(backend: str) -> None:
    """§6 "treats holes as done": a large page of the direct map is changed in one chunk; in the high mapping it is
    small pages, one of them missing, and those behind it are changed all the same."""
    first = Host(backend, IMAGE, kernel="6.12")
    first.call("set_memory_4k", pfn=0x1C00, pages=1, high=1)
    state = with_leaves(first.state(), {(1, 1, 0x1C10000): 0})
    rows = {(0, 1, at): 0 for at in range(0x1C00000, 0x1E00000, 0x1000)} | {(0, 2, 0x1C00000): 0x1C00000 | LARGE_LEAF}
    host = continued(first, with_leaves(with_tables(state, {(0, 2, 0x1C00000): 0}), rows))
    assert host.call("set_memory_ro", pfn=0x1C00, pages=0x200) == 0
    assert host.leaf(0x1C00) == (2, 0x1C00000 | NX | 0x1A1)
    high = leaves(host.state(), 1)
    assert (1, 0x1C10000) not in high
    assert [high[1, at] for at in (0x1C0F000, 0x1C11000, 0x1DFF000)] == [
        at | 0x121 for at in (0x1C0F000, 0x1C11000, 0x1DFF000)
    ]


@pytest.mark.parametrize(
    ("offset", "again"),
    [(0xFFF000, True), (0x1000000, False), (0x1402000, False), (0x2344000, False), (0x2345000, True)],
)
def test_alias_by_address_and_by_frame(backend: str, offset: int, again: bool) -> None:
    """§6: a page of the high mapping that maps another frame of the image: it is the address asked for that has to be
    outside [_text, _brk_end), and the entry's frame whose place follows."""
    first = Host(backend, IMAGE, kernel="6.12")
    host = continued(first, with_leaves(first.state(), {(1, 2, 0xE00000): 0xE00000 | HIGH_LARGE}))
    for at in (offset, 0x1203000):
        assert host.call("set_memory_4k", pfn=at >> 12, pages=1, high=1) == 0
    host = continued(host, with_leaves(host.state(), {(1, 1, offset): 0x1203000 | HIGH_SMALL}))
    assert host.change("change_page_attr_set", [offset >> 12], high=1, mask=SOFTW1) == 0
    high = leaves(host.state(), 1)
    assert high[1, offset] == 0x1203000 | HIGH_SMALL | SOFTW1
    assert high[1, 0x1203000] == 0x1203000 | HIGH_SMALL | (SOFTW1 if again else 0)
    assert host.leaf(0x1203) == (1, 0x1203000 | SMALL_LEAF | SOFTW1)


@pytest.mark.parametrize(
    "frames", [(0x300, 0x1703, 0x302), (0x300, 0x301, 0x1703), (0x1703, 0x301, 0x302), (0xFFF, 0x1000, 0x302)]
)
def test_an_image_frame_among_others(backend: str, frames: tuple[int, ...]) -> None:
    """§6: of small pages side by side in one table, the one that maps a frame of the image has an alias, whichever it
    is, and it alone."""
    first = Host(backend, IMAGE, kernel="6.12")
    assert first.call("set_memory_4k", pfn=0x300, pages=1) == 0
    entries = {(0, 1, 0x300000 + i * 0x1000): frame << 12 | SMALL_LEAF for i, frame in enumerate(frames)}
    host = continued(first, with_leaves(first.state(), entries))
    assert host.call("change_page_attr_set", pfn=0x300, pages=3, mask=SOFTW1) == 0
    state = host.state()
    assert [host.leaf(0x300 + i)[1] for i in range(3)] == [frame << 12 | SMALL_LEAF | SOFTW1 for frame in frames]
    marked = [at >> 12 for (level, at), raw in leaves(state, 1).items() if level == 1 and raw & SOFTW1]
    assert marked == [frame for frame in frames if 0x1000 <= frame < 0x2400]


# kinds of entries that do not take a change as a booted page's does, by their flags; None: an empty entry
MIXED = (GONE, FULL, NX | G | A, A | D, None, SOFTW1, BARE)


@pytest.mark.parametrize("map_", [SMALL, IMAGE], ids=["no image", "image"])
@pytest.mark.parametrize(("name", "kernel", "set_", "clear", "args"), [row for row in ROWS if "crypted" not in row[0]])
def test_many_pages(
    backend: str, map_: MachineMap, name: str, kernel: str, set_: int, clear: int, args: dict[str, int]
) -> None:
    """§4.2, §7: of a whole table's pages each is changed as if it were alone, whichever are beside it: present, gone
    with and without a flag that stays, and holes, at all distances from one another's and from the table's ends."""
    before = dict.fromkeys(range(0x400, 0x600), SMALL_LEAF) | {0x400 + 9 * i: MIXED[i % len(MIXED)] for i in range(57)}
    first = small_pages(backend, map_, kernel=kernel)
    rows = {(0, 1, pfn << 12): 0 if flags is None else entry(pfn << 12, flags) for pfn, flags in before.items()}
    host = continued(first, with_leaves(first.state(), rows))
    assert host.call(name, pfn=0x401, pages=0x1FE, **args) == 0
    found = leaves(host.state())
    for pfn, flags in before.items():
        if 0x401 <= pfn < 0x5FF and flags is not None:
            flags = after(flags, set_, clear)
        assert found.get((1, pfn << 12)) == (None if flags is None else entry(pfn << 12, flags)), hex(pfn)
    touched = [(pfn, flags) for pfn, flags in before.items() if 0x401 <= pfn < 0x5FF and flags is not None]
    events = host.events()
    changes = any(flags != after(flags, set_, clear) for _, flags in touched)
    assert events.count(FLUSH_ALL) == changes * (2 if name == "_set_memory_wc" else 1)
    assert [(event.a, event.b, event.c) for event in events if event.kind == EventKind.W_AND_X] == [
        (va(pfn), flags, new)
        for pfn, flags in touched
        for new in [flags & ~clear | set_]
        if (flags ^ new) & (RW | NX) and new & (RW | NX) == RW
    ]


@pytest.mark.parametrize("at", range(24))
def test_one_of_many_pages_differs(backend: str, at: int) -> None:
    """§4.6: which one it is decides nothing: what was changed is flushed."""
    host = small_pages(backend, flags={pfn: SMALL_LEAF | SOFTW1 for pfn in range(0x410, 0x428) if pfn != 0x410 + at})
    assert host.call("change_page_attr_set", pfn=0x410, pages=24, mask=SOFTW1) == 0
    assert host.leaf(0x410 + at) == (1, (0x410 + at) << 12 | SMALL_LEAF | SOFTW1)
    assert host.events() == [Event(EventKind.FLUSH_PAGES, a=va(0x410), b=24)]
    assert host.call("change_page_attr_set", pfn=0x410, pages=24, mask=SOFTW1) == 0
    assert host.events() == []


@pytest.mark.parametrize("image", [True, False])
def test_a_page_that_loses_its_last_flag(backend: str, image: bool) -> None:
    """§1: without P a frame is stored inverted, but as it is where no flag is left, and the next change reads that so.
    Pages beside it are changed as ever."""
    first = Host(backend, IMAGE if image else SMALL, kernel="6.12")
    assert first.call("set_memory_4k", pfn=0x300, pages=1) == 0
    inverted = ~0x301000 & 0x000F_FFFF_FFFF_F000
    host = continued(first, with_leaves(first.state(), {(0, 1, 0x301000): inverted | SOFTW1}))
    assert host.call("change_page_attr_clear", pfn=0x300, pages=3, mask=SOFTW1) == 0
    found = leaves(host.state(), 0)
    assert [found[1, at] for at in (0x300000, 0x301000, 0x302000)] == [
        0x300000 | SMALL_LEAF,
        0x301000,
        0x302000 | SMALL_LEAF,
    ]
    host.events()
    assert host.call("change_page_attr_clear", pfn=0x300, pages=3, mask=SOFTW1) == 0
    assert leaves(host.state(), 0)[1, 0x301000] == inverted
    assert kinds(host.events()) == [EventKind.FLUSH_PAGES]


def test_image_that_ends_on_a_line(backend: str) -> None:
    """§6: nothing is rounded up where _brk_end lies on a 2 MiB line: the frame behind it has no alias, so the flush is
    of one page."""
    image = dataclasses.replace(IMAGE_SYMBOLS, brk_end=HIGH_MAPPING + 0x2400000)
    host = Host(backend, dataclasses.replace(IMAGE, image=image), kernel="6.12")
    for pfn, flush in ((0x23FF, EventKind.FLUSH_ALL), (0x2400, EventKind.FLUSH_PAGES)):
        host.events()
        assert host.change("set_memory_ro", [pfn]) == 0
        assert kinds(host.events())[-1] == flush


def test_image_of_which_the_direct_map_has_nothing(backend: str) -> None:
    """§4.1, §4.5: each page of a hole is done, and the image's have their aliases; the high mapping's page behind the
    image is none of them."""
    first = Host(backend, IMAGE, kernel="6.12")
    behind = with_leaves(first.state(), {(1, 2, 0x2400000): 0x2400000 | HIGH_LARGE})
    state = with_tables(behind, {(0, 4, 0): 0, (0, 3, 0): 0})
    state = with_leaves(state, {(0, 2, at): 0 for at in range(0, 64 * MIB, 2 * MIB)})
    host = continued(first, state)
    assert host.call("change_page_attr_set", pfn=0x1001, pages=3, mask=SOFTW1) == 0
    marked = {at >> 12 for (_, at), raw in leaves(host.state(), 1).items() if raw & SOFTW1}
    assert marked == {0x1001, 0x1002, 0x1003}
    assert host.call("change_page_attr_set", pfn=0x2380, pages=0x180, mask=SOFTW1) == 0
    high = leaves(host.state(), 1)
    assert {at >> 12 for (_, at), raw in high.items() if raw & SOFTW1} == marked | set(range(0x2380, 0x2400))
    assert high[2, 0x2400000] == 0x2400000 | HIGH_LARGE


@pytest.mark.parametrize("name", ["set_memory_nx", "set_memory_x"])
def test_nx_alone_has_no_alias_before_6_2(backend: str, name: str) -> None:
    """§6: from 6.2 NX alone is checked for aliases as well: nothing changes there, but the flush becomes full."""
    mask = {"mask": NX}
    other = {"set_memory_nx": "change_page_attr_set", "set_memory_x": "change_page_attr_clear"}[name]
    for kernel, flush in (("6.1", EventKind.FLUSH_PAGES), ("6.2", EventKind.FLUSH_ALL)):
        for call, args in ((name, {}), (other, mask)):
            host = Host(backend, IMAGE, kernel=kernel)
            host.call("set_memory_4k", pfn=0x1C10, pages=1)
            bits = SMALL_LEAF & ~NX if name == "set_memory_nx" else SMALL_LEAF
            host = continued(host, with_leaves(host.state(), {(0, 1, 0x1C10000): 0x1C10000 | bits}))
            before = leaves(host.state(), 1)
            assert host.change(call, [0x1C10], **args) == 0
            assert host.leaf(0x1C10) == (1, 0x1C10000 | bits ^ NX)
            assert leaves(host.state(), 1) == before
            assert [kind for kind in kinds(host.events()) if kind != EventKind.W_AND_X] == [flush]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("set_memory_nx", {"pages": 3}),
        ("set_memory_x", {"pages": 3}),
        ("set_memory_np_noalias", {"pages": 3}),
        ("change_page_attr_set", {"pages": 3, "mask": NX}),
        ("set_direct_map_invalid_noflush", {}),
        ("set_direct_map_default_noflush", {}),
    ],
)
def test_holes_outside_before_6_2(backend: str, name: str, args: dict[str, int]) -> None:
    """§6, §4.1: before 6.2 a request without alias check is no primary run: holes are done wherever they are."""
    for kernel, ret in (("6.1", 0), ("6.2", EFAULT)):
        host = Host(backend, kernel=kernel)
        before = host.state()
        assert host.call(name, pfn=0x4000, **args) == ret
        assert host.state() == before
    if name.startswith("set_memory"):
        for kernel, ret in (("6.1", 0), ("6.2", EFAULT)):
            assert Host(backend, IMAGE, kernel=kernel).call(name, pfn=0x2800, pages=1, high=1) == ret


def test_other_requests_are_primary_in_6_1(backend: str) -> None:
    """§4.1: NX together with another bit, and the other calls, as in any kernel."""
    host = Host(backend, kernel="6.1")
    assert host.call("change_page_attr_set", pfn=0x4000, pages=1, mask=NX | SOFTW1) == EFAULT
    assert host.call("set_memory_ro", pfn=0x4000, pages=1) == EFAULT


# §5: static protections


ODD = dataclasses.replace(
    IMAGE,
    image=dataclasses.replace(
        IMAGE_SYMBOLS,
        text=HIGH_MAPPING + 0x1012000,
        etext=HIGH_MAPPING + 0x1605000,
        start_rodata=HIGH_MAPPING + 0x1803000,
        end_rodata=HIGH_MAPPING + 0x1807000,
    ),
)
"""The image with text that starts and ends inside 2 MiB pages.  Read-only data is frames 0x1803 to 0x1806; RW leaves
the high mapping from 0x1012000 to 0x1a00000 by the second row."""
RODATA = range(0x1803, 0x1807)


@pytest.mark.parametrize("readonly", [False, True])
def test_text_stays_executable(backend: str, readonly: bool) -> None:
    """§5 row 1: NX is taken off [_text, _etext) of the high mapping, always; the pages on either side get it."""
    first = Host(backend, ODD, kernel="6.12")
    first.call("set_memory_4k", pfn=0x1000, pages=1, high=1)
    first.call("set_memory_4k", pfn=0x1600, pages=1, high=1)
    host = continued(first, changed(first.state(), kernel_readonly=readonly))
    assert host.call("set_memory_nx", pfn=0x1000, pages=0x800, high=1) == 0
    high = leaves(host.state(), 1)
    small = {at >> 12: bool(raw & NX) for (level, at), raw in high.items() if level == 1}
    for pfn in [*range(0x1000, 0x1200), *range(0x1600, 0x1800)]:
        assert small[pfn] == (not 0x1012 <= pfn < 0x1605), hex(pfn)
    # the text's whole 2 MiB pages are split for §4.3d, and stay as they are
    assert not any(small[pfn] for pfn in range(0x1200, 0x1600))


def test_text_of_the_direct_map_has_nx(backend: str) -> None:
    """§5 row 1 is about addresses of the high mapping: the same frames in the direct map keep NX and can lose it."""
    host = Host(backend, IMAGE, kernel="6.12")
    assert host.change("set_memory_ro", [0x1203]) == 0
    assert host.leaf(0x1203) == (1, 0x1203000 | NX | 0x121)
    assert host.change("set_memory_x", [0x1203]) == 0
    assert host.change("set_memory_nx", [0x1203]) == 0
    assert host.leaf(0x1203) == (1, 0x1203000 | NX | 0x121)
    assert leaves(host.state(), 1)[1, 0x1203000] == 0x1203000 | 0x121


def test_violating_large_text_is_split(backend: str) -> None:
    """§4.3a on the high mapping: a large text page with NX violates: split, and all its children lose NX."""
    first = Host(backend, IMAGE, kernel="6.12")
    host = continued(first, with_leaves(first.state(), {(1, 2, 0x1200000): 0x1200000 | NX | HIGH_LARGE}))
    assert host.change("set_memory_rw", [0x1210], high=1) == 0
    high = leaves(host.state(), 1)
    assert {high[1, at] for at in range(0x1200000, 0x1400000, 0x1000)} == {
        at | HIGH_SMALL for at in range(0x1200000, 0x1400000, 0x1000)
    }
    assert host.leaf(0x1210) == (2, 0x1200000 | LARGE_LEAF)


@pytest.mark.parametrize("start", [0x1000, 0x1600])
def test_violating_page_that_is_text_in_part(backend: str, start: int) -> None:
    """§4.3a, §5 row 1: while it is split each child is judged by its own address: those in [_text, _etext) lose NX."""
    first = Host(backend, ODD, kernel="6.12")
    host = continued(first, with_leaves(first.state(), {(1, 2, start << 12): start << 12 | NX | HIGH_LARGE}))
    assert host.change("set_memory_rw", [start], high=1) == 0
    high = leaves(host.state(), 1)
    for pfn in range(start, start + 0x200):
        flags = HIGH_SMALL if 0x1012 <= pfn < 0x1605 else NX | HIGH_SMALL
        assert high[1, pfn << 12] == pfn << 12 | flags, hex(pfn)


def test_enforced_split_of_the_high_mapping(backend: str) -> None:
    """§5 row 2, §4.3a: the large page with the read-only data violates by its frames.  While it is split, every child
    in [_text, end of rodata up to 2 MiB) is still mapped by a large page, so all of them lose RW; in the direct map
    (row 4 alone) only the read-only data does."""
    host = read_only(backend, IMAGE, "6.12")
    assert host.change("set_memory_x", [0x1900], high=1) == 0
    high = leaves(host.state(), 1)
    assert {at: high[1, at] for at in range(0x1800000, 0x1A00000, 0x1000)} == {
        at: at | HIGH_SMALL & ~RW for at in range(0x1800000, 0x1A00000, 0x1000)
    }
    # the alias run has nothing left to change, and finds the violation in the direct map
    for pfn in range(0x1800, 0x1A00):
        assert host.leaf(pfn) == (1, pfn << 12 | (SMALL_LEAF & ~RW if pfn in RODATA else SMALL_LEAF))


def test_second_row_ends_where_rodata_ends(backend: str) -> None:
    """§5 row 2: up to the end of rodata rounded up to 2 MiB, no further: a page above it that is split while
    protections are enforced stays writable."""
    image = dataclasses.replace(IMAGE_SYMBOLS, end_rodata=HIGH_MAPPING + 0x1A00000)
    host = read_only(backend, dataclasses.replace(IMAGE, image=image), "6.12")
    # 0x19ff is in a violating page; the run goes on into 0x1a00, whose split enforces too
    assert host.call("set_memory_global", pfn=0x19FF, pages=1, high=1) == 0
    assert host.call("set_memory_nonglobal", pfn=0x17FF, pages=0x202, high=1) == 0
    high = leaves(host.state(), 1)
    assert high[1, 0x1A00000] == 0x1A00000 | HIGH_SMALL & ~G
    assert high[1, 0x1BFF000] == 0x1BFF000 | HIGH_SMALL


def test_enforcement_lasts_for_the_run(backend: str) -> None:
    """§4.3a: once it has come up (here by NX on text), every later split of the run enforces: the next page of the text
    violates nothing by itself, but while it is split its children lose RW by row 2."""
    nx_text = {(1, 2, 0x1200000): 0x1200000 | NX | HIGH_LARGE}
    host = read_only(backend, IMAGE, "6.12", nx_text)
    assert host.call("set_memory_nonglobal", pfn=0x13FF, pages=2, high=1) == 0
    high = leaves(host.state(), 1)
    assert high[1, 0x1210000] == 0x1210000 | HIGH_SMALL & ~RW
    assert high[1, 0x1400000] == 0x1400000 | HIGH_SMALL & ~(RW | G)
    assert high[1, 0x1401000] == 0x1401000 | HIGH_SMALL & ~RW
    # a run that does not come upon a violation does not enforce
    host = read_only(backend, IMAGE, "6.12", nx_text)
    assert host.call("set_memory_nonglobal", pfn=0x1400, pages=1, high=1) == 0
    assert leaves(host.state(), 1)[1, 0x1401000] == 0x1401000 | HIGH_SMALL


def test_aliases_inherit_enforcement(backend: str) -> None:
    """§4.3a: the page with the read-only data violates in the direct map; the alias of the text page after it in the
    array is then split with RW taken away (row 2), which the direct map's own page keeps."""
    host = read_only(backend, IMAGE, "6.12")
    assert host.change("set_memory_nonglobal", [0x1900, 0x1210], Flavour.ARRAY) == 0
    assert leaves(host.state(), 1)[1, 0x1211000] == 0x1211000 | HIGH_SMALL & ~RW
    assert host.leaf(0x1211) == (1, 0x1211000 | SMALL_LEAF)
    host = read_only(backend, IMAGE, "6.12")
    assert host.change("set_memory_nonglobal", [0x1210, 0x1900], Flavour.ARRAY) == 0
    assert leaves(host.state(), 1)[1, 0x1211000] == 0x1211000 | HIGH_SMALL


@pytest.mark.parametrize("readonly", [False, True])
def test_small_text_can_be_writable(backend: str, readonly: bool) -> None:
    """§5 row 2 asks for a large page: a small page of the text can be made writable again; read-only data (row 4)
    cannot, once the kernel is read-only."""
    host = Host(backend, IMAGE, kernel="6.12")
    for pfn in (0x1203, 0x1804):
        assert host.call("set_memory_4k", pfn=pfn, pages=1, high=1) == 0
        assert host.change("set_memory_ro", [pfn], high=1) == 0
    host = continued(host, changed(host.state(), kernel_readonly=readonly))
    for pfn in (0x1203, 0x1804):
        assert host.change("set_memory_rw", [pfn], high=1) == 0
        flags = 0x121 if readonly and pfn == 0x1804 else 0x123
        assert leaves(host.state(), 1)[1, pfn << 12] == pfn << 12 | flags
        assert host.leaf(pfn) == (1, pfn << 12 | NX | flags)


def test_exact_large_text_can_be_writable(backend: str) -> None:
    """§5 row 2 "not for exactly the whole large page": a read-only large text page, asked for exactly, is rewritten
    with RW."""
    host = read_only(backend, IMAGE, "6.12", {(1, 2, 0x1200000): 0x1200000 | 0x1E1})
    assert host.call("set_memory_rw", pfn=0x1200, pages=0x200, high=1) == 0
    assert leaves(host.state(), 1)[2, 0x1200000] == 0x1200000 | 0x1E3
    assert host.counters()["level2_splits"] == 0


def test_rodata_in_both_windows(backend: str) -> None:
    """§5 row 4, §4.3d: a read-only large page that holds read-only data, asked for RW exactly: split, every page but
    the read-only data becomes writable."""
    for window, flags in ((0, NX), (1, 0)):
        host = read_only(
            backend,
            IMAGE,
            "6.12",
            {(0, 2, 0x1800000): 0x1800000 | NX | 0x1A1, (1, 2, 0x1800000): 0x1800000 | 0x1A1},
        )
        assert host.call("set_memory_rw", pfn=0x1800, pages=0x200, high=window) == 0
        found = leaves(host.state(), window)
        for pfn in range(0x1800, 0x1A00):
            assert found[1, pfn << 12] == pfn << 12 | flags | (0x121 if pfn in RODATA else 0x123), hex(pfn)


@pytest.mark.parametrize(("pfn", "writable"), [(0x1802, True), (0x1803, False), (0x1806, False), (0x1807, True)])
def test_edges_of_rodata(backend: str, pfn: int, writable: bool) -> None:
    """§5 row 4: frames of [__start_rodata, __end_rodata)."""
    host = Host(backend, IMAGE, kernel="6.12")
    host.call("set_memory_ro", pfn=0x1800, pages=16)
    host = continued(host, changed(host.state(), kernel_readonly=True))
    assert host.change("set_memory_rw", [pfn]) == 0
    assert bool(host.leaf(pfn)[1] & RW) == writable
    # nothing changed, so nothing is flushed
    assert bool(host.events()) == writable


def test_protections_need_p(backend: str) -> None:
    """§5 "only for flags that keep P": a not-present page of the read-only data keeps RW, and loses it with P's
    return."""
    host = Host(backend, IMAGE, kernel="6.12")
    host.call("set_memory_4k", pfn=0x1804, pages=1)
    host = continued(host, changed(host.state(), kernel_readonly=True))
    assert host.change("set_memory_np_noalias", [0x1804]) == 0
    assert host.leaf(0x1804) == (1, inverted(0x1804000, NX | 0x062))
    assert host.change("set_memory_p", [0x1804]) == 0
    assert host.leaf(0x1804) == (1, 0x1804000 | NX | 0x061)


def test_exact_request_for_not_present(backend: str) -> None:
    """§5, §4.3d: the same for a whole large page (read-only, so that it does not violate): kept large."""
    host = read_only(backend, IMAGE, "6.12", {(0, 2, 0x1800000): 0x1800000 | NX | 0x1A1})
    assert host.call("set_memory_np_noalias", pfn=0x1800, pages=0x200) == 0
    assert host.leaf(0x1800) == (2, inverted(0x1800000, NX | A))


def test_bios_area_may_have_nx(backend: str) -> None:
    """§5 row 3 does not apply on these kernels."""
    host = Host(backend, kernel="6.12")
    assert host.call("set_memory_x", pfn=0x9F, pages=0x63) == 0
    assert host.call("set_memory_nx", pfn=0x9F, pages=0x63) == 0
    assert all(host.leaf(pfn)[1] & NX for pfn in (0x9F, 0xA0, 0xFF, 0x100))


# §4.3: large pages


BOTH_SIZES = [(SMALL, 2, 0x400, 0x200), (HOLE, 3, 0x40000, 0x40000)]


@pytest.mark.parametrize(("map_", "level", "pfn", "pages"), BOTH_SIZES)
def test_exact_request_keeps_the_page(backend: str, map_: MachineMap, level: int, pfn: int, pages: int) -> None:
    """§4.3e: flags as asked, frame kept, nothing split, flush by the ceiling."""
    host = Host(backend, map_, kernel="6.12")
    counts = host.counts()
    for name, flags in (
        ("set_memory_ro", NX | 0x1A1),
        ("set_memory_x", 0x1A1),
        ("set_memory_nonglobal", 0x0A1),
        ("_set_memory_uc", 0x0B1),
        ("_set_memory_wc", 0x0A9),
        ("_set_memory_wb", 0x0A1),
        ("set_memory_rw", 0x0A3),
        ("set_memory_global", 0x1A3),
        ("set_memory_nx", NX | 0x1A3),
    ):
        assert host.call(name, pfn=pfn, pages=pages) == 0
        assert host.leaf(pfn) == (level, pfn << 12 | flags), name
    assert host.counts() == counts
    assert host.call("set_memory_np", pfn=pfn, pages=pages) == 0
    assert host.leaf(pfn) == (level, inverted(pfn << 12, NX | 0x022))
    assert host.call("set_memory_p", pfn=pfn, pages=pages) == 0
    assert host.leaf(pfn) == (level, pfn << 12 | NX | 0x0A3)
    assert host.counters()["flush_pages"] == 0
    assert host.counts() == counts


@pytest.mark.parametrize(("map_", "level", "pfn", "pages"), BOTH_SIZES)
@pytest.mark.parametrize(("from_start", "from_end"), [(1, 0), (0, 1), (1, 1)])
def test_partial_request_splits(
    backend: str, map_: MachineMap, level: int, pfn: int, pages: int, from_start: int, from_end: int
) -> None:
    """§4.3c: a page short at either end."""
    host = Host(backend, map_, kernel="6.12")
    assert host.call("set_memory_ro", pfn=pfn + from_start, pages=pages - from_start - from_end) == 0
    ends = ((pfn, from_start), (pfn + pages - 1, from_end))
    for at, spared in ends:
        small = level == 2 or spared
        flags = NX | (0x163 if spared else 0x121) | (0 if small else 0x80)
        found = host.leaf(at)
        assert found[0] == (1 if small else 2)
        assert found[1] & ~FRAME_MASK == flags
    splits = host.counters()
    # a 1 GiB page is split once, then a 2 MiB page at each end that is spared
    assert splits["level3_splits"] == (level == 3)
    assert splits["level2_splits"] == (1 if level == 2 else from_start + from_end)


@pytest.mark.parametrize(("map_", "level", "pfn", "pages"), BOTH_SIZES)
def test_request_over_two_large_pages(backend: str, map_: MachineMap, level: int, pfn: int, pages: int) -> None:
    """§4.3: n ends at the end of each large page: two pages asked for at once are both covered exactly."""
    host = Host(backend, map_, kernel="6.12")
    assert host.call("set_memory_ro", pfn=pfn, pages=2 * pages) == 0
    for at in (pfn, pfn + pages):
        assert host.leaf(at) == (level, at << 12 | NX | 0x1A1)
    assert host.events() == [FLUSH_ALL]


@pytest.mark.parametrize(("map_", "level", "pfn", "pages"), BOTH_SIZES)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_request_for_what_is_there(
    backend: str, map_: MachineMap, level: int, pfn: int, pages: int, flavour: Flavour
) -> None:
    """§4.3b: nothing differs: no split, no flush, whatever part of the large page is asked for."""
    host = Host(backend, map_, kernel="6.12")
    before = host.state()
    for name in ("set_memory_rw", "set_memory_nx", "set_memory_p", "set_memory_global", "_set_memory_wb"):
        assert host.change(name, [pfn + 7], flavour) == 0
        assert host.call(name, pfn=pfn, pages=pages) == 0
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("flavour", ARRAYS)
def test_arrays_never_keep_a_large_page(backend: str, flavour: Flavour) -> None:
    """§4: n is 1 in the array flavours, so no large page is ever covered exactly."""
    host = Host(backend, kernel="6.12")
    assert host.change("set_memory_ro", list(range(0x400, 0x600)), flavour) == 0
    assert host.leaf(0x400) == (1, 0x400000 | NX | 0x121)
    assert host.counters()["level2_splits"] == 1
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.FLUSH_ALL]


def test_violation_comes_before_no_change(backend: str) -> None:
    """§4.3a before §4.3b: set_memory_nx asks for nothing new of a direct-map page, but its 2 MiB page violates."""
    host = read_only(backend, IMAGE, "6.1")
    assert host.change("set_memory_nx", [0x1900]) == 0
    assert host.leaf(0x1804) == (1, 0x1804000 | SMALL_LEAF & ~RW)
    assert host.leaf(0x1900) == (1, 0x1900000 | SMALL_LEAF)
    assert kinds(host.events()) == SPLIT_EVENTS


def test_pat_in_large_form(backend: str) -> None:
    """§4.3: the mask is in small form: bit 7 is PAT, which a large page has at bit 12."""
    host = Host(backend, kernel="6.12")
    assert host.call("change_page_attr_set", pfn=0x400, pages=0x200, mask=PAT) == 0
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF | PAT_LARGE)
    assert host.call("change_page_attr_set", pfn=0x400, pages=1, mask=SOFTW1) == 0
    assert host.leaf(0x400) == (1, 0x400000 | SMALL_LEAF | PAT | SOFTW1)
    assert host.call("change_page_attr_set", pfn=0x600, pages=0x200, mask=PAT) == 0
    assert host.call("change_page_attr_clear", pfn=0x600, pages=0x200, mask=PAT) == 0
    assert host.leaf(0x600) == (2, 0x600000 | LARGE_LEAF)


def test_holes(backend: str) -> None:
    """§4.1: holes inside the mapped frames are passed over, page by page."""
    host = Host(backend, build_map([(0, 64 * MIB), (66 * MIB, 30 * MIB)]), kernel="6.12")
    assert host.call("set_memory_ro", pfn=0x3FFF, pages=0x202) == 0
    assert [host.leaf(pfn)[0] for pfn in (0x3FFF, 0x4000, 0x41FF, 0x4200)] == [1, 0, 0, 1]
    for pfn in (0x3FFF, 0x4200):
        assert host.leaf(pfn) == (1, pfn << 12 | NX | 0x121)
    assert host.change("set_memory_ro", [0x4100, 0x3FFE, 0x41FF], Flavour.ARRAY) == 0
    assert host.leaf(0x3FFE) == (1, 0x3FFE000 | NX | 0x121)
    assert host.events()[-3:] == flushes([0x4100, 0x3FFE, 0x41FF], Flavour.ARRAY)


# §4.1, §4.4: errors


@pytest.mark.parametrize("name", sorted({row[0] for row in ROWS if "crypted" not in row[0]}))
def test_outside_is_efault(backend: str, name: str) -> None:
    """§4.1: every call on a frame beyond max_pfn_mapped."""
    host = Host(backend, kernel="6.12")
    before = host.state()
    args = {"mask": SOFTW1} if "attr" in name else {}
    for flavour in FLAVOURS:
        assert host.change(name, [0x4000], flavour, **args) == EFAULT
    assert host.state() == before
    assert host.events() == []


def test_small_pages_beyond_the_mapped_part(backend: str) -> None:
    """§4.2, §4.5, §6: small pages go one by one, each with the alias of its own frame: here pages behind max_pfn_mapped
    that map frames of the direct map, not in a row; a large page there is not covered by one of them."""
    first = small_pages(backend, pfn=0x800)
    rows = {(0, 1, 0x800000): 0x400000 | SMALL_LEAF, (0, 1, 0x801000): 0x600000 | SMALL_LEAF}
    state = changed(with_leaves(first.state(), rows), max_pfn_mapped=0x7FF, mapped=((0, 0x7FF),))
    host = continued(first, state)
    assert host.call("set_memory_ro", pfn=0x800, pages=2) == 0
    for pfn in (0x400, 0x401, 0x600, 0x601):
        assert host.leaf(pfn) == (1, pfn << 12 | NX | (0x163 if pfn & 1 else 0x121)), hex(pfn)


@pytest.mark.parametrize(("pfn", "again"), [(0x1000, False), (0x1210, False), (0x2344, False), (0x2345, True)])
def test_alias_of_a_strange_frame(backend: str, pfn: int, again: bool) -> None:
    """§6, second row: it is the primary address that may not be in [_text, _brk_end), here of a page that maps another
    frame of the image; the frame's place in the direct map is the first row's."""
    first = Host(backend, IMAGE, kernel="6.12")
    assert first.call("set_memory_4k", pfn=pfn, pages=1, high=1) == 0
    state = with_leaves(first.state(), {(1, 1, pfn << 12): 0x1500000 | HIGH_SMALL})
    host = continued(first, state)
    assert host.call("set_memory_ro", pfn=pfn, pages=1, high=1) == 0
    high = leaves(host.state(), 1)
    assert high[1, pfn << 12] == 0x1500000 | HIGH_SMALL & ~(RW | D)
    assert host.leaf(0x1500) == (1, 0x1500000 | NX | 0x121)
    if again:
        assert high[1, 0x1500000] == 0x1500000 | HIGH_SMALL & ~(RW | D)
    else:
        assert high[2, 0x1400000] == 0x1400000 | HIGH_LARGE


def test_small_pages_across_the_end_of_the_mapped_part(backend: str) -> None:
    """§6: max_pfn_mapped lies inside a table: of its pages those behind it have an alias, by their frame."""
    first = small_pages(backend, pfn=0x600)
    state = with_leaves(first.state(), {(0, 1, 0x601000): 0x400000 | SMALL_LEAF})
    host = continued(first, changed(state, max_pfn_mapped=0x601, mapped=((0, 0x601),)))
    assert host.call("set_memory_ro", pfn=0x600, pages=2) == 0
    assert host.leaf(0x601) == host.leaf(0x400) == (1, 0x400000 | NX | 0x121)
    assert host.leaf(0x401) == (1, 0x401000 | SMALL_LEAF)


def test_hole_at_the_end_of_memory(backend: str) -> None:
    """§4.1: a hole counts as done up to max_pfn_mapped, also where that is inside a slot."""
    first = Host(backend, kernel="6.12")
    state = changed(with_leaves(first.state(), {(0, 2, 0x3E00000): 0}), max_pfn_mapped=0x3F00, mapped=((0, 0x3F00),))
    host = continued(first, state)
    assert host.call("set_memory_ro", pfn=0x3E00, pages=0x100) == 0
    assert host.call("set_memory_ro", pfn=0x3E00, pages=0x101) == EFAULT
    assert host.state() == state


def test_hole_of_one_page(backend: str) -> None:
    """§4.1: an empty slot of level 1 is one page."""
    first = small_pages(backend)
    host = continued(first, with_leaves(first.state(), {(0, 1, 0x410000): 0}))
    assert host.call("set_memory_ro", pfn=0x410, pages=2) == 0
    assert [host.leaf(pfn) for pfn in (0x410, 0x411)] == [(1, 0), (1, 0x411000 | NX | 0x121)]


def test_end_of_memory(backend: str) -> None:
    """§4.1, §4.6: what comes before the end is changed, and everything is flushed."""
    host = Host(backend, kernel="6.12")
    assert host.call("set_memory_ro", pfn=0x3E00, pages=0x201) == EFAULT
    assert host.leaf(0x3E00) == (2, 0x3E00000 | NX | 0x1A1)
    assert host.events() == [FLUSH_ALL]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_enomem_at_the_kth_table(backend: str, skip: int, flavour: Flavour) -> None:
    """§4.4: the pages before the failing split are changed, the entry of the failing one is untouched, counters and
    events of what was done stay; §4.6: a full flush if anything changed."""
    # a range needs pages for its two ends alone: 0x410 and 0xa10; what lies between is kept large
    pfns = [0x410, 0xA10] if flavour == Flavour.RANGE else [0x410, 0x610, 0x810, 0xA10]
    host = Host(backend, kernel="6.12")
    host.call("fail_alloc", skip=skip, count=1)
    ret = host.change("set_memory_ro", pfns, flavour)
    assert ret == (ENOMEM if skip < len(pfns) else 0)
    expected = {(2, at): at | LARGE_LEAF for at in range(0, 64 * MIB, 2 * MIB)}
    for pfn in pfns[:skip]:
        start = (pfn & ~0x1FF) << 12
        del expected[2, start]
        expected |= {(1, at): at | SMALL_LEAF for at in range(start, start + 2 * MIB, 0x1000)}
        expected[1, pfn << 12] = pfn << 12 | NX | 0x121
    if flavour == Flavour.RANGE and skip:
        expected |= {(1, at << 12): at << 12 | NX | 0x121 for at in range(0x410, 0x600)}
        expected |= {(2, at << 12): at << 12 | NX | 0x1A1 for at in (0x600, 0x800)}
        if skip > 1:
            expected |= {(1, at << 12): at << 12 | NX | 0x121 for at in range(0xA00, 0xA11)}
    assert leaves(host.state()) == expected
    splits = min(skip, len(pfns))
    assert host.counts() == (512 * splits, 33 - splits, 0)
    failed = [EventKind.ALLOC_FAIL] if ret else []
    assert kinds(host.events()) == SPLIT_EVENTS * splits + failed + [EventKind.FLUSH_ALL] * bool(skip)


def test_enomem_below_a_giga_page(backend: str) -> None:
    """§4.4: split once, no page for the second table."""
    host = Host(backend, HOLE, kernel="6.12")
    host.call("fail_alloc", skip=1, count=1)
    assert host.change("set_memory_ro", [0x40003]) == ENOMEM
    assert host.leaf(0x40003) == (2, GIB | LARGE_LEAF)
    assert host.counts() == (0, 512, 6)
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.ALLOC_FAIL]


def test_wc_stops_after_a_failed_first_run(backend: str) -> None:
    """§7: the second run only follows if the first returned 0."""
    host = small_pages(backend)
    assert host.call("_set_memory_wc", pfn=0x3FFE, pages=3) == EFAULT
    assert host.leaf(0x3FFF) == (1, 0x3FFF000 | SMALL_LEAF | PCD)
    assert kinds(host.events()) == [*SPLIT_EVENTS, EventKind.FLUSH_ALL, EventKind.FLUSH_CACHE_ALL]


# §4.6: flushes


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("pages", "single"), [(1, True), (33, True), (34, False)])
def test_flush_ceiling(backend: str, flavour: Flavour, pages: int, single: bool) -> None:
    """§4.6: up to 33 pages by themselves, more than 33 all at once."""
    host = small_pages(backend)
    before = host.counters()
    pfns = list(range(0x410, 0x410 + pages))
    assert host.change("set_memory_ro", pfns, flavour) == 0
    assert host.events() == (flushes(pfns, flavour) if single else [FLUSH_ALL])
    counters = host.counters()
    assert counters["flush_pages"] - before["flush_pages"] == (pages if single else 0)
    assert counters["flush_all"] - before["flush_all"] == (not single)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_change_no_flush(backend: str, flavour: Flavour) -> None:
    """§4.6: not even of caches, and not on error."""
    host = small_pages(backend, flags={0x410: SMALL_LEAF | PCD})
    assert host.change("_set_memory_uc", [0x410], flavour) == 0
    assert host.change("_set_memory_uc", [0x4000], flavour) == EFAULT
    assert host.events() == []


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_cache_of_many_pages(backend: str, flavour: Flavour) -> None:
    """§4.6: beyond the ceiling the TLBs are flushed at once, cache lines still page by page: of present pages only,
    in runs for a range."""
    host = small_pages(backend, flags={0x415: GONE, 0x420: GONE})
    host = continued(host, with_leaves(host.state(), {(0, 1, 0x430000): 0}))
    pfns = list(range(0x410, 0x440))
    assert host.change("_set_memory_uc", pfns, flavour) == 0
    here = [pfn for pfn in pfns if pfn not in (0x415, 0x420, 0x430)]
    runs = [(1040, 5), (1046, 10), (1057, 15), (1073, 15)] if flavour == Flavour.RANGE else [(pfn, 1) for pfn in here]
    assert host.events() == [FLUSH_ALL, *(Event(EventKind.FLUSH_CACHE, a=va(pfn), b=n) for pfn, n in runs)]
    assert host.counters()["flush_cache"] == len(here)
    # the hole between the pages is still one
    assert host.leaf(0x430) == (1, 0)
    assert host.counters()["flush_cache_all"] == 0


def test_cache_of_a_large_page(backend: str) -> None:
    """§4.6: pages of a large page are present pages too."""
    host = Host(backend, kernel="6.12")
    assert host.call("_set_memory_uc", pfn=0x3FF, pages=0x201) == 0
    assert host.events()[3:] == [FLUSH_ALL, Event(EventKind.FLUSH_CACHE, a=va(0x3FF), b=0x201)]


def test_cache_of_parts_of_large_pages(backend: str) -> None:
    """§4.6: the pages that were asked for and are present, of a large page that stays whole no others.

    Frames 0x600-0x7ff are an uncached large page already, so a change that makes 0x500-0x7ff or 0x600-0x9ff uncached
    does not split it.
    """
    host = Host(backend)
    assert host.call("_set_memory_uc", pfn=0x600, pages=0x200) == 0
    host.events()
    assert host.call("_set_memory_uc", pfn=0x500, pages=0x240) == 0
    flushed = [Event(EventKind.FLUSH_CACHE, a=va(0x500), b=0x240)]
    assert host.events()[-2:] == [FLUSH_ALL, *flushed]
    assert host.leaf(0x600)[0] == 2
    assert host.call("set_memory_np", pfn=0x810, pages=1) == 0
    host.events()
    assert host.call("_set_memory_uc", pfn=0x700, pages=0x140) == 0
    runs = [Event(EventKind.FLUSH_CACHE, a=va(0x700), b=0x110), Event(EventKind.FLUSH_CACHE, a=va(0x811), b=0x2F)]
    assert host.events()[-3:] == [FLUSH_ALL, *runs]
    assert host.leaf(0x600)[0] == 2
    assert host.counters()["flush_cache"] == 0x200 + 0x240 + 0x110 + 0x2F


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_cache_on_error(backend: str, flavour: Flavour) -> None:
    """§4.6: everything, TLBs and then caches; without a cache mode in the set bits no caches."""
    for name, args, caches in (
        ("_set_memory_uc", {}, 1),
        ("change_page_attr_set", {"mask": PWT}, 1),
        ("change_page_attr_set", {"mask": SOFTW1}, 0),
        ("change_page_attr_clear", {"mask": PCD | D}, 0),
    ):
        host = Host(backend, kernel="6.12")
        assert host.change(name, [0x3FFF, 0x4000], flavour, **args) == EFAULT
        assert host.events()[3:] == [FLUSH_ALL, *[Event(EventKind.FLUSH_CACHE_ALL)] * caches]
        assert host.counters()["flush_cache_all"] == caches
        assert host.counters()["flush_cache"] == 0


@pytest.mark.parametrize(
    ("mask", "flushed"), [(PWT, 1), (PCD, 1), (PAT, 1), (SOFTW1, 0), (G | SOFTW1, 0), (A | PAT, 1)]
)
def test_what_counts_as_a_cache_mode(backend: str, mask: int, flushed: int) -> None:
    """§4.6 "a cache mode in the set bits": PWT, PCD or PAT."""
    host = small_pages(backend, flags={0x410: BARE})
    assert host.change("change_page_attr_set", [0x410], mask=mask | SOFTW2) == 0
    cache = [Event(EventKind.FLUSH_CACHE, a=va(0x410), b=1)] * flushed
    assert host.events() == [*flushes([0x410], Flavour.RANGE), *cache]


def test_cache_of_the_high_mapping(backend: str) -> None:
    """§4.6: the primary addresses' lines, after the full flush for the alias."""
    host = Host(backend, IMAGE, kernel="6.12")
    assert host.call("_set_memory_uc", pfn=0x1C10, pages=2, high=1) == 0
    assert host.events()[6:] == [FLUSH_ALL, Event(EventKind.FLUSH_CACHE, a=high_va(0x1C10000), b=2)]
    assert leaves(host.state(), 1)[1, 0x1C11000] == 0x1C11000 | HIGH_SMALL | PCD
    assert host.leaf(0x1C11) == (1, 0x1C11000 | SMALL_LEAF | PCD)


# §1: cache modes are a table of the machine

NOPAT = (0x00, 0x10, 0x10, 0x18, 0x08, 0x10)
STRANGE = (0x00, 0x88, 0x18, 0x10, 0x98, 0x08)


@pytest.mark.parametrize(("modes", "uc", "wc"), [(None, PCD, PWT), (NOPAT, PCD, PCD), (STRANGE, PWT | PCD, PWT | PAT)])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_cache_modes(backend: str, modes: tuple[int, ...] | None, uc: int, wc: int, flavour: Flavour) -> None:
    """§1, §7: UC- and WC are looked up; a second run that changes nothing flushes nothing."""
    map_ = dataclasses.replace(SMALL, cachemodes=modes) if modes else SMALL
    host = small_pages(backend, map_)
    assert host.change("_set_memory_uc", [0x410, 0x411], flavour) == 0
    assert [host.leaf(pfn)[1] for pfn in (0x410, 0x411)] == [pfn << 12 | SMALL_LEAF | uc for pfn in (0x410, 0x411)]
    host.events()
    assert host.change("_set_memory_wc", [0x411, 0x412], flavour) == 0
    assert [host.leaf(pfn)[1] for pfn in (0x411, 0x412)] == [pfn << 12 | SMALL_LEAF | wc for pfn in (0x411, 0x412)]
    runs = 1 if uc == wc else 2
    assert kinds(host.events()).count(EventKind.FLUSH_CACHE) == runs * (1 if flavour == Flavour.RANGE else 2)
    assert host.change("_set_memory_wb", [0x410, 0x411, 0x412], flavour) == 0
    assert [host.leaf(pfn)[1] for pfn in (0x410, 0x412)] == [pfn << 12 | SMALL_LEAF for pfn in (0x410, 0x412)]


def test_cache_mode_of_a_large_page(backend: str) -> None:
    """§1, §4.3e: PAT goes to bit 12 of a large page."""
    host = Host(backend, dataclasses.replace(SMALL, cachemodes=STRANGE), kernel="6.12")
    assert host.call("_set_memory_wc", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF | PWT | PAT_LARGE)
    assert host.call("_set_memory_wb", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF)


# W^X


def w_and_x(host: Host) -> list[Event]:
    return [event for event in host.events() if event.kind == EventKind.W_AND_X]


@pytest.mark.parametrize("kernel", ["6.1", "6.2", "7.3"])
def test_writable_and_executable(backend: str, kernel: str) -> None:
    """A small page that comes to be writable and executable is reported, before and after; nothing is prevented.  It
    is reported before the flush."""
    host = small_pages(backend, kernel=kernel)
    assert host.change("set_memory_x", [0x410]) == 0
    assert host.events() == [
        Event(EventKind.W_AND_X, level=1, a=va(0x410), b=SMALL_LEAF, c=SMALL_LEAF & ~NX),
        *flushes([0x410], Flavour.RANGE),
    ]
    assert host.leaf(0x410) == (1, 0x410000 | SMALL_LEAF & ~NX)
    # no change of RW or NX: no complaint
    assert host.change("set_memory_nonglobal", [0x410]) == 0
    assert host.change("set_memory_x", [0x410]) == 0
    assert w_and_x(host) == []
    # from read-only
    assert host.change("set_memory_ro", [0x410]) == 0
    assert w_and_x(host) == []
    assert host.change("set_memory_rw", [0x410]) == 0
    old = host.leaf(0x410)[1] & ~FRAME_MASK & ~RW
    assert w_and_x(host) == [Event(EventKind.W_AND_X, level=1, a=va(0x410), b=old, c=old | RW)]
    # not writable, so no complaint
    assert host.change("set_memory_ro", [0x411]) == 0
    assert host.change("set_memory_x", [0x411]) == 0
    assert w_and_x(host) == []


def test_flags_in_the_complaint(backend: str) -> None:
    """The flags before G is dropped; a not-present page is judged like any other."""
    host = small_pages(backend, flags={0x410: GONE})
    assert host.change("change_page_attr_clear", [0x411], mask=NX | P) == 0
    assert host.change("set_memory_x", [0x410]) == 0
    assert w_and_x(host) == [
        Event(EventKind.W_AND_X, level=1, a=va(0x411), b=SMALL_LEAF, c=SMALL_LEAF & ~(NX | P)),
        Event(EventKind.W_AND_X, level=1, a=va(0x410), b=GONE, c=GONE & ~NX),
    ]


@pytest.mark.parametrize(("map_", "level", "pfn", "pages"), BOTH_SIZES)
def test_large_writable_and_executable(backend: str, map_: MachineMap, level: int, pfn: int, pages: int) -> None:
    """Large pages by the flags of their level; a page that is split (§4.3c) is judged at the small page alone."""
    host = Host(backend, map_, kernel="6.12")
    assert host.call("set_memory_x", pfn=pfn, pages=pages) == 0
    new = LARGE_LEAF & ~NX
    assert host.events() == [Event(EventKind.W_AND_X, level=level, a=va(pfn), b=LARGE_LEAF, c=new), FLUSH_ALL]
    assert host.call("set_memory_x", pfn=2 * pfn + 1, pages=1) == 0
    small = SMALL_LEAF & ~NX
    assert w_and_x(host) == [Event(EventKind.W_AND_X, level=1, a=va(2 * pfn + 1), b=SMALL_LEAF, c=small)]


def test_complaint_after_static_protections(backend: str) -> None:
    """Flags are judged as static protections leave them: read-only data asked to be writable stays read-only, in large
    and small pages, so only the pages around it are reported."""
    leaf = {(0, 2, 0x1800000): 0x1800000 | 0x1A1, (1, 2, 0x1800000): 0x1800000 | 0x1A1}
    host = read_only(backend, IMAGE, "6.12", leaf)
    assert host.call("set_memory_rw", pfn=0x1800, pages=0x200) == 0
    reported = [(event.level, event.a) for event in w_and_x(host)]
    others = [pfn for pfn in range(0x1800, 0x1A00) if pfn not in RODATA]
    assert [at for at in reported if at[1] < HIGH_MAPPING] == [(1, va(pfn)) for pfn in others]
    assert [at for at in reported if at[1] >= HIGH_MAPPING] == [(1, high_va(pfn << 12)) for pfn in others]


@pytest.mark.parametrize(("bits", "reported"), [(P | RW | A, True), (P | A, False), (P | RW | A | NX, False)])
def test_levels_above_can_forbid(backend: str, bits: int, reported: bool) -> None:
    """RW has to hold, and NX to be off, at all levels above."""
    host = small_pages(backend)
    raw = tables(host.state())[2, 0x400000]
    host = continued(host, with_tables(host.state(), {(0, 2, 0x400000): raw & FRAME_MASK | bits}))
    assert host.change("set_memory_x", [0x410]) == 0
    assert bool(w_and_x(host)) == reported


def test_machine_without_nx(backend: str) -> None:
    """Without NX among the supported bits nothing can be judged."""
    host = small_pages(backend, dataclasses.replace(SMALL, supported_mask=U64 & ~NX))
    assert host.change("set_memory_x", [0x410]) == 0
    assert kinds(host.events()) == [EventKind.FLUSH_PAGES]


def test_alias_is_judged_too(backend: str) -> None:
    """The high mapping of data is executable: making it writable there as well is reported there."""
    host = Host(backend, IMAGE, kernel="6.12")
    host.change("set_memory_ro", [0x1C10])
    host.events()
    assert host.change("set_memory_rw", [0x1C10]) == 0
    assert w_and_x(host) == [Event(EventKind.W_AND_X, level=1, a=high_va(0x1C10000), b=0x121, c=0x123)]


# the C-bit


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_decrypt_and_encrypt(backend: str, flavour: Flavour) -> None:
    """§7: the C-bit goes and comes back, frame and all other flags kept; a split leaves it on the others and on the
    table."""
    c_bit = SMALL_CBIT.c_bit
    host = Host(backend, SMALL_CBIT, kernel="6.12")
    assert host.change("set_memory_decrypted", [0x410], flavour) == 0
    assert host.leaf(0x410) == (1, 0x410000 | SMALL_LEAF)
    assert host.leaf(0x411) == (1, 0x411000 | SMALL_LEAF | c_bit)
    assert tables(host.state())[2, 0x400000] == 0x3FFC000 | SPLIT_TABLE | c_bit
    assert host.events()[3:] == flushes([0x410], flavour)
    assert host.change("set_memory_decrypted", [0x410], flavour) == 0
    assert host.events() == []
    assert host.change("set_memory_encrypted", [0x410], flavour) == 0
    assert host.leaf(0x410) == (1, 0x410000 | SMALL_LEAF | c_bit)
    assert host.events() == flushes([0x410], flavour)


def test_decrypt_a_large_page(backend: str) -> None:
    """§4.3e with the C-bit; by mask as well."""
    c_bit = SMALL_CBIT.c_bit
    host = Host(backend, SMALL_CBIT, kernel="6.12")
    assert host.call("set_memory_decrypted", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF)
    assert host.call("change_page_attr_set", pfn=0x400, pages=0x200, mask=c_bit) == 0
    assert host.leaf(0x400) == (2, 0x400000 | LARGE_LEAF | c_bit)
    assert host.call("set_memory_np", pfn=0x400, pages=0x200) == 0
    assert host.call("set_memory_decrypted", pfn=0x400, pages=0x200) == 0
    assert host.leaf(0x400)[1] & c_bit == 0
    assert host.call("set_memory_p", pfn=0x400, pages=0x200) == 0
    # G went with P
    assert host.leaf(0x400) == (2, 0x400000 | NX | 0x0E3)


def test_encryption_on_the_high_mapping(backend: str) -> None:
    """§7 "an ordinary change": aliases follow."""
    map_ = dataclasses.replace(IMAGE, c_bit=1 << 47)
    host = Host(backend, map_, kernel="6.12")
    assert host.change("set_memory_decrypted", [0x1C10]) == 0
    assert leaves(host.state(), 1)[1, 0x1C10000] == 0x1C10000 | HIGH_SMALL
    assert leaves(host.state(), 1)[1, 0x1C11000] == 0x1C11000 | HIGH_SMALL | 1 << 47
    assert kinds(host.events()) == [*SPLIT_EVENTS * 2, EventKind.FLUSH_ALL]


# KERNEL_4K


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("kernel", "mark"), [("6.14", 0), ("6.15", SOFTW3)])
def test_4k_in_every_flavour(backend: str, kernel: str, mark: int, flavour: Flavour) -> None:
    """§7, §10: forced split, and from 6.15 the mark on the pages asked for, in the high mapping too."""
    host = Host(backend, IMAGE, kernel=kernel)
    assert host.change("set_memory_4k", [0x1C10, 0x1C11], flavour) == 0
    high = leaves(host.state(), 1)
    for pfn in (0x1C0F, 0x1C10, 0x1C11, 0x1C12):
        bits = mark if pfn in (0x1C10, 0x1C11) else 0
        assert host.leaf(pfn) == (1, pfn << 12 | SMALL_LEAF | bits)
        assert high[1, pfn << 12] == pfn << 12 | HIGH_SMALL | bits
    assert kinds(host.events()) == SPLIT_EVENTS * 2 + [EventKind.FLUSH_ALL] * bool(mark)


def test_4k_of_the_high_mapping(backend: str) -> None:
    """§4.4 on the high mapping: forced, with the split of the direct map as its alias."""
    host = Host(backend, IMAGE, kernel="6.15")
    assert host.change("set_memory_4k", [0x1203], high=1) == 0
    assert leaves(host.state(), 1)[1, 0x1203000] == 0x1203000 | HIGH_SMALL | SOFTW3
    assert host.leaf(0x1203) == (1, 0x1203000 | SMALL_LEAF | SOFTW3)
    assert host.leaf(0x1204) == (1, 0x1204000 | SMALL_LEAF)
    assert kinds(host.events()) == [*SPLIT_EVENTS * 2, EventKind.FLUSH_ALL]


def test_cache_lines_behind_a_large_page(backend: str) -> None:
    """§4.6: from the middle of a large page to what is not present behind it."""
    first = Host(backend, kernel="6.12")
    rows = {(0, 2, 0x600000): inverted(0x600000, NX | A), (0, 2, 0x800000): 0}
    host = continued(first, with_leaves(first.state(), rows))
    host.call("set_memory_4k", pfn=0x4FF, pages=1)
    host.events()
    assert host.change("_set_memory_uc", [0x500, 0xA0F]) == 0
    lines = [(event.a, event.b) for event in host.events() if event.kind == EventKind.FLUSH_CACHE]
    assert lines == [(va(0x500), 0x100), (va(0xA00), 0x10)]
    host.call("_set_memory_wb", pfn=0xC00, pages=0x200)
    host.events()
    assert host.change("_set_memory_uc", [0xD00, 0xFFF]) == 0
    lines = [(event.a, event.b) for event in host.events() if event.kind == EventKind.FLUSH_CACHE]
    assert lines == [(va(0xD00), 0x300)]


def test_global_where_it_is_not_supported(backend: str) -> None:
    """§4: the bits to set are cut to the supported mask; with none left, nothing is touched: G is not lost."""
    host = Host(backend, dataclasses.replace(SMALL, supported_mask=U64 & ~G), kernel="6.12")
    before = host.state()
    assert host.call("set_memory_global", pfn=0x400, pages=1) == 0
    assert host.state() == before


def test_write_back_does_not_encrypt(backend: str) -> None:
    """§7: _set_memory_wb clears the cache mode and sets nothing."""
    host = Host(backend, SMALL_CBIT, kernel="6.12")
    assert host.call("set_memory_decrypted", pfn=0x400, pages=1) == 0
    raw = host.leaf(0x400)[1]
    assert host.call("_set_memory_wb", pfn=0x400, pages=1) == 0
    assert host.leaf(0x400)[1] == raw == 0x400000 | SMALL_LEAF


def test_cache_lines_of_a_leaf_that_goes_further(backend: str) -> None:
    """§4.6: cache lines of the pages asked for, not of all that the last leaf maps."""
    host = Host(backend, kernel="6.12")
    assert host.call("set_memory_np", pfn=0x600, pages=1) == 0
    assert host.change("_set_memory_uc", [0x800, 0x9FF]) == 0
    host.events()
    # the small pages before it are changed, the large one is what is wanted already
    assert host.call("set_memory_4k", pfn=0x7FF, pages=1) == 0
    host.events()
    assert host.change("_set_memory_uc", [0x7F0, 0x80F]) == 0
    assert host.leaf(0x800) == (2, 0x800000 | LARGE_LEAF | PCD)
    address = PAGE_OFFSET + (0x7F0 << 12)
    assert [(event.kind, event.a, event.b) for event in host.events()] == [
        (EventKind.FLUSH_PAGES, address, 0x20),
        (EventKind.FLUSH_CACHE, address, 0x20),
    ]
