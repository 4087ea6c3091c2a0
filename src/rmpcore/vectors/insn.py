"""Test vectors of level 1: the six instructions, row by row of their tables in docs/rmp.md §2.

Each function goes through one table and gives the cases of each row: what the row needs, what comes before and after it
in the order of checks, and the edges of sizes, frames and fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rmpcore.ops import Op, make_op
from rmpcore.vectors.draft import (
    ASID,
    C_BIT,
    FRAMES,
    FREE_STATES,
    GPA,
    GVA,
    HEAD,
    IMMUTABLE_STATES,
    INNER,
    LARGE,
    LARGE_GPA,
    LAST,
    MUTABLE_STATES,
    NEXT,
    OLD,
    PART,
    STATES,
    Draft,
    entry,
    guest,
    large,
    rmp,
)
from rmpcore.vectors.form import Items


def _update(pfn: int, size: int = 0, **fields: int) -> Op:
    """RMPUPDATE; assigns the page to the guest unless told otherwise."""
    given = {"pa": pfn << 12, "gpa": LARGE_GPA if size else GPA, "assigned": 1, "asid": ASID, "size": size}
    return make_op("RMPUPDATE", **(given | fields))


def _free(pfn: int, size: int = 0, **fields: int) -> Op:
    """RMPUPDATE that takes the page back."""
    return make_op("RMPUPDATE", **({"pa": pfn << 12, "gpa": 0, "assigned": 0, "asid": 0, "size": size} | fields))


def _size(size: int) -> str:
    return "2M" if size else "4K"


# --- RMPUPDATE -----------------------------------------------------------------------------------------------------


def rmpupdate() -> Iterator[Draft]:
    """rmp §2.2, row by row."""

    def case(row: str, name: str, about: str, op: Op, items: Items | None = None, machine: str = "main") -> Draft:
        return Draft(f"RMPUPDATE/row-{row}/{name}", f"rmp §2.2 row {row}", about, op, items or {}, machine)

    yield case("0", "no-rmp", "there is no RMP", _update(HEAD), machine="no-rmp")
    yield case(
        "0", "no-rmp-user", "there is no RMP, and CPL is 3: #UD comes first", _update(HEAD, user=1), {}, "no-rmp"
    )
    yield case("0", "user", "CPL is 3", _update(HEAD, user=1))
    yield case("0", "user-guest", "CPL is 3 and the ASID not 0: #GP comes first", _update(HEAD, user=1, guest=1))

    yield case("1", "plain", "a good input, in a guest", _update(HEAD, guest=1))
    yield case("1", "row-3", "before row 3: 2M and not aligned", _update(0x201, 1, guest=1))
    yield case("1", "row-5", "before row 5: not covered", _update(FRAMES, guest=1))
    yield case("1", "free", "taking a page back, in a guest", _free(0x201, guest=1), rmp({0x201: guest()}))

    for pfn, old in product((0x201, 0x2FF, 0x300, 0x3FF), ("hypervisor", "firmware", "guest-valid")):
        about = f"2M at frame {pfn:#x}, which holds {old}: before row 6"
        yield case("3", f"{pfn:x}-{old}", about, _update(pfn, 1), rmp({pfn: STATES[old]}))
    yield case("3", "free", "2M and not aligned, taking back", _free(0x201, 1), rmp({0x201: guest()}))
    yield case("3", "bit-12", "only bit 12 of the address is set", _update(0x001, 1))
    yield case("3", "bit-20", "only bit 20 of the address is set", _update(0x100, 1))

    for size, fields in product((0, 1), ({"immutable": 1}, {"asid": ASID}, {"immutable": 1, "asid": ASID})):
        for old in ("hypervisor", "firmware", "guest-valid"):
            what = "-".join(fields)
            state = rmp(large(STATES[old]) if size else {HEAD: STATES[old]})
            about = f"not assigned, but with {' and '.join(fields)}; the page holds {old}: before row 6"
            yield case("4", f"{what}-{_size(size)}-{old}", about, _free(HEAD, size, **fields), state)
    for asid in (0x400, 0xFFFF_FFFF):
        yield case("4", f"asid-{asid:x}", f"ASID {asid:#x}: above the greatest", _update(0x201, asid=asid))
    yield case("4", "asid-400-immutable-page", "before row 6", _update(0x201, asid=0x400), rmp({0x201: (4, 0)}))

    for pfn, size in ((FRAMES, 0), (PART, 1), (0xA00, 1), (0x1000, 0), (1 << 40, 0), (C_BIT >> 13, 0)):
        about = f"{_size(size)} at frame {pfn:#x}; frames 0 to {LAST:#x} are covered"
        yield case("5", f"{pfn:x}-{_size(size)}", about, _update(pfn, size))
        yield case("5", f"{pfn:x}-{_size(size)}-free", about, _free(pfn, size))
    yield case("5", "part-immutable", "before row 6", _update(PART, 1), rmp({PART: (4, 0)}))
    yield case("5", "last-4K", "the last frame that is covered", _update(LAST))
    yield case("5", "part-4K", "4K in the region of which a half is covered", _update(PART))
    yield case("5", "first", "frame 0", _update(0))

    news = {"assign": (_update, {}), "free": (_free, {}), "immutable": (_update, {"immutable": 1})}
    for old, pfn, (new, (make, fields)) in product(IMMUTABLE_STATES, (HEAD, 0x2FF), news.items()):
        if pfn != HEAD and new == "immutable":
            continue
        about = f"4K; the page holds {old}"
        yield case("6", f"{old}-{pfn:x}-{new}", about, make(pfn, **fields), rmp({pfn: STATES[old]}))
    for old, (new, (make, fields)) in product(IMMUTABLE_STATES, news.items()):
        state = rmp(large(STATES[old]))
        yield case("6", f"{old}-2M-{new}", f"2M; the region holds {old}", make(HEAD, 1, **fields), state)
    for old in ("hv-fixed", "firmware", "pre-swap"):
        state = rmp(large(STATES[old]))
        yield case("6", f"{old}-2M-4K", f"4K at the 2M entry of {old}: before row 8", _update(HEAD), state)
    state = rmp({HEAD: STATES["firmware"], 0x201: STATES["reclaim"]})
    yield case("6", "row-9", "2M, and another page is assigned: before row 9", _update(HEAD, 1), state)
    yield case("6", "in-use", "and in use: before row 7", _update(HEAD), rmp({HEAD: (4, 0)}, [(HEAD, 0, 0)]))
    state = rmp({0x2FF: STATES["hv-fixed"]})
    yield case("6", "elsewhere", "2M: another page of the region is immutable, not this one", _update(HEAD, 1), state)

    for what, row in (("vmcb", (0x201, 0, 0)), ("vmsa", (NEXT, 0x201, 0)), ("avic", (NEXT, 0, 0x201))):
        yield case("7", f"4K-{what}", f"the page is the {what} of a VMRUN", _update(0x201), rmp({}, [row]))
        yield case("7", f"2M-{what}", f"one page of the region is the {what}", _update(HEAD, 1), rmp({}, [row]))
        yield case("7", f"beside-{what}", "4K: another page of the region is in use", _update(0x202), rmp({}, [row]))
    for pfn in (HEAD, 0x2FF, 0x3FF):
        yield case("7", f"2M-{pfn:x}", f"2M: frame {pfn:#x} is in use", _update(HEAD, 1), rmp({}, [(pfn, 0, 0)]))
    for pfn in (0x1FF, NEXT):
        yield case(
            "7", f"2M-beside-{pfn:x}", "2M: the regions beside are in use", _update(HEAD, 1), rmp({}, [(pfn, 0, 0)])
        )
    yield case("7", "row-8", "before row 8", _update(HEAD), rmp(large(guest()), [(HEAD, 0, 0)]))
    yield case("7", "row-8b", "before row 8b", _update(0x201), rmp(large(guest()), [(0x201, 0, 0)]))
    yield case("7", "row-9", "before row 9", _update(HEAD, 1), rmp({0x201: guest()}, [(0x202, 0, 0)]))
    yield case("7", "row-3", "after row 3", _update(0x201, 1), rmp({}, [(0x201, 0, 0)]))
    yield case("7", "row-4", "after row 4", _free(0x201, asid=1), rmp({}, [(0x201, 0, 0)]))
    yield case("7", "free", "taking a page back", _free(0x201), rmp({0x201: guest()}, [(0x201, 0, 0)]))

    for old, (new, (make, fields)) in product(MUTABLE_STATES, news.items()):
        state = rmp(large(STATES[old]))
        yield case("8", f"{old}-{new}", f"the region is a 2M page: {old}", make(HEAD, **fields), state)
    yield case(
        "8", "same", "assigned to the same guest with the same gpa", _update(HEAD, gpa=LARGE_GPA), rmp(large(guest()))
    )
    state = rmp({HEAD: (LARGE, 0)})
    yield case("8", "unassigned", "an entry with page size 2M that is not assigned", _update(HEAD), state)

    for old, pfn, (new, (make, fields)) in product(("reclaim", "guest-valid"), INNER, news.items()):
        about = f"frame {pfn:#x}, inside a 2M page: {old}"
        yield case("8b", f"{old}-{pfn:x}-{new}", about, make(pfn, **fields), rmp(large(STATES[old])))
    for old in ("firmware", "pre-guest"):
        about = f"inside an immutable 2M page, {old}: row 6 looks at the page's own entry"
        yield case("8b", f"{old}-201", about, _update(0x201), rmp(large(STATES[old])))
    about = "the inner entry is zero: only the aligned page's entry decides"
    yield case("8b", "zero", about, _update(0x201), rmp({HEAD: guest(1)}))
    about = "the aligned page's entry has page size 2M, but is not assigned: allowed"
    yield case("8b", "head-unassigned", about, _update(0x201), rmp({HEAD: (LARGE, 0)}))
    yield case(
        "8b", "head-4K", "the aligned page's entry is an assigned 4K one: allowed", _update(0x201), rmp({HEAD: guest()})
    )
    yield case("8b", "next", "the page before a region that is 2M: allowed", _update(0x1FF), rmp(large(guest())))
    yield case("8b", "after", "the page after a region that is 2M: allowed", _update(NEXT), rmp(large(guest())))

    for other, old in product(INNER, ("reclaim", "firmware", "guest-valid")):
        state = rmp({HEAD: (8, 0), other: STATES[old]})
        yield case("9", f"{other:x}-{old}", f"frame {other:#x} holds {old}", _update(HEAD, 1), state)
    for other in INNER:
        state = rmp({HEAD: guest(count=1), other: guest()})
        yield case("9", f"{other:x}-own", "the aligned page is assigned too, 4K", _update(HEAD, 1), state)
        yield case("9", f"{other:x}-free", "taking 2M back", _free(HEAD, 1), state)
    yield case("9", "count-0", "an assigned page that the count misses", _update(HEAD, 1), rmp({0x2FF: guest()}))
    yield case(
        "9", "count-only", "a count of 5, but no page is assigned: allowed", _update(HEAD, 1), rmp({HEAD: (5 << 3, 0)})
    )
    yield case(
        "9", "own-only", "only the aligned page is assigned, 4K: allowed", _update(HEAD, 1), rmp({HEAD: guest()})
    )
    yield case("9", "large", "a 2M page: its inner pages do not count", _update(HEAD, 1, asid=8), rmp(large(guest())))
    for other in (0x1FF, NEXT):
        yield case(
            "9", f"beside-{other:x}", "a page beside the region: allowed", _update(HEAD, 1), rmp({other: guest()})
        )

    yield from _rmpupdate_writes()


def _rmpupdate_writes() -> Iterator[Draft]:
    """rmp §2.2 row 10: what is written."""

    def case(name: str, about: str, op: Op, items: Items | None = None, machine: str = "main") -> Draft:
        rule = "rmp §1.2" if name.startswith("count") else "rmp §2.2 row 10"
        return Draft(f"RMPUPDATE/row-10/{name}", rule, about, op, items or {}, machine)

    for old, pfn in product(FREE_STATES, (HEAD, 0x201)):
        state = rmp({pfn: STATES[old]})
        yield case(f"assign-{old}-{pfn:x}", "to a guest", _update(pfn), state)
        yield case(f"pre-guest-{old}-{pfn:x}", "to a guest, immutable", _update(pfn, immutable=1), state)
        yield case(f"firmware-{old}-{pfn:x}", "to the firmware", _update(pfn, asid=0, gpa=0, immutable=1), state)
        yield case(f"reclaim-{old}-{pfn:x}", "with ASID 0, not immutable", _update(pfn, asid=0, gpa=0), state)
        yield case(f"free-{old}-{pfn:x}", "nothing to take back", _free(pfn), state)
        yield case(f"assign-2M-{old}-{pfn:x}", "2M to a guest", _update(HEAD, 1), state)
    for size, new in product((0, 1), ("firmware", "pre-guest", "reclaim")):
        fields = {"asid": ASID if new == "pre-guest" else 0, "immutable": int(new != "reclaim")}
        yield case(f"{new}-{_size(size)}", f"{new}, {_size(size)}", _update(HEAD, size, **fields))
    for asid in (1, 0x1FF, 0x200, 0x3FF):
        yield case(f"asid-{asid:x}", f"ASID {asid:#x}", _update(0x201, asid=asid))
    for machine, gpa in product(
        ("main", "milan"), (0, 0x1000, 0xFFFF_FFFF_F000, 1 << 48, (1 << 51) - 0x1000, (1 << 64) - 1)
    ):
        yield case(
            f"gpa-{gpa:x}-{machine}", f"gpa {gpa:#x}, cut to what is stored", _update(0x201, gpa=gpa), {}, machine
        )
    yield case("gpa-low-bits", "bits 11:0 of the gpa are dropped", _update(0x201, gpa=GPA | 0xFFF))
    yield case("pa-low-bits", "bits 11:0 of the address are ignored", _update(0x201, pa=0x201FFF))
    yield case("pa-c-bit", "the C-bit is taken out of the address", _update(0x201, pa=0x201000 | C_BIT))
    yield case("pa-low-bits-2M", "2M: bits 11:0 of the address are ignored", _update(HEAD, 1, pa=0x200ABC))
    # No reading of them is documented, so they are ignored (switch reserved_input).
    yield case("reserved", "reserved bits of the flag bytes, and byte 0xB", _update(0x201, reserved=0xFFFE_FEFE))
    yield case("reserved-free", "the same, taking back", _free(0x201, reserved=0xFFFE_FEFE), rmp({0x201: guest()}))

    for old, pfn in product(MUTABLE_STATES, (HEAD, 0x201)):
        state = rmp(
            {pfn: STATES[old], HEAD: (STATES[old][0] + (3 << 3), STATES[old][1]) if pfn == HEAD else (3 << 3, 0)}
        )
        yield case(f"free-{old}-{pfn:x}", f"4K, from {old}", _free(pfn), state)
    for old in MUTABLE_STATES:
        yield case(f"free-2M-{old}", f"2M, from {old}", _free(HEAD, 1), rmp(large(STATES[old])))
    yield case("free-2M-asked", "2M asked of a region that is free: page size 0 is stored", _free(HEAD, 1))
    yield case("free-gpa", "taking back stores the gpa that is given", _free(0x201, gpa=GPA), rmp({0x201: guest()}))
    yield case("free-large-entry", "2M back where the inner entries are zero", _free(HEAD, 1), rmp({HEAD: guest(1)}))
    stale = {HEAD + i: (0x1000 * i, OLD) for i in (1, 2, 511)}
    yield case("stale", "2M: the inner entries hold old values, not assigned", _update(HEAD, 1), rmp(stale))
    stale |= {HEAD: guest(1)}
    yield case("stale-free", "2M back: the same", _free(HEAD, 1), rmp(stale))
    outside = {0x1FF: STATES["given-back"], NEXT: STATES["given-back"]}
    yield case("edges", "2M: the entries beside the region stay", _update(HEAD, 1), rmp(outside))

    # Keep or reset: validated, vmsa and permissions
    for size, field in product((0, 1), ("same", "immutable", "asid", "gpa", "size", "asid-0", "free")):
        mine = guest(size, vmsa=1)
        gpa = LARGE_GPA if size else GPA
        ops = {
            "same": _update(HEAD, size),
            "immutable": _update(HEAD, size, immutable=1),
            "asid": _update(HEAD, size, asid=8),
            "gpa": _update(HEAD, size, gpa=gpa + (0x20_0000 if size else 0x1000)),
            "size": _update(HEAD, 1, gpa=gpa),
            "asid-0": _update(HEAD, size, asid=0),
            "free": _free(HEAD, size, gpa=gpa),
        }
        if field == "size" and size:
            continue
        about = f"{_size(size)}, validated, vmsa and permissions set; what changes: {field}"
        yield case(f"keep-{_size(size)}-{field}", about, ops[field], rmp(large(mine) if size else {HEAD: mine}))
    state = rmp({0x201: entry(vmsa=1, validated=1, hi=OLD)})
    yield case("keep-firmware", "ASID 0 and the same: reset all the same", _update(0x201, asid=0, gpa=0), state)
    state = rmp({0x201: guest(vmsa=1)})
    yield case("keep-inner", "an inner page, the same", _update(0x201), state)
    yield case("keep-cut-gpa", "the gpa is the same once it is cut", _update(0x201, gpa=GPA | 1 << 51), state)
    yield case("keep-cut-gpa-milan", "the same with 48 bits", _update(0x201, gpa=GPA | 1 << 48), state, "milan")
    yield case("keep-low-bits", "the gpa differs in bits 11:0 only", _update(0x201, gpa=GPA | 0xABC), state)
    yield case("keep-not-validated", "the same; not validated", _update(0x201), rmp({0x201: guest(validated=0)}))
    yield case("reset-milan", "VMPL0's byte without shadow stacks", _update(0x201), {}, "milan")
    yield case("reset-free-milan", "the same, taking back", _free(0x201), rmp({0x201: guest()}), "milan")

    # The subpage count (rmp §1.2)
    for count, pfn in product((0, 1, 510, 511), INNER):
        state = rmp({HEAD: (count << 3, 0)})
        yield case(f"count-up-{count}-{pfn:x}", f"the count is {count}, a page is assigned", _update(pfn), state)
    for count, pfn in product((0, 1, 511), INNER):
        state = rmp({HEAD: (count << 3, 0), pfn: guest()})
        yield case(f"count-down-{count}-{pfn:x}", f"the count is {count}, a page is taken back", _free(pfn), state)
    state = rmp({HEAD: (3 << 3, 0), 0x201: guest()})
    yield case("count-again", "an assigned page is assigned to another", _update(0x201, asid=8), state)
    yield case("count-free-again", "a free page is taken back", _free(0x201), rmp({HEAD: (3 << 3, 0)}))
    for count in (0, 3, 511):
        state = rmp({HEAD: (count << 3, 0)})
        yield case(f"count-head-{count}", "the aligned page itself is assigned: its count stays", _update(HEAD), state)
        state = rmp({HEAD: guest(count=count)})
        yield case(f"count-head-free-{count}", "the aligned page itself is taken back", _free(HEAD), state)
        yield case(f"count-head-2M-{count}", "2M: the count becomes 0", _update(HEAD, 1), state)
    state = rmp({HEAD: guest(count=1), 0x201: guest()})
    yield case("count-head-assigned", "the aligned page is assigned too", _free(0x201), state)
    yield case("count-other-region", "only its own region counts", _update(0x3FF), rmp({NEXT: (8, 0)}))


# --- PSMASH --------------------------------------------------------------------------------------------------------


def psmash() -> Iterator[Draft]:
    """rmp §2.3, row by row."""

    def case(row: str, name: str, about: str, op: Op, items: Items | None = None, machine: str = "main") -> Draft:
        return Draft(f"PSMASH/row-{row}/{name}", f"rmp §2.3 row {row}", about, op, items or {}, machine)

    def op(pfn: int = HEAD, **fields: int) -> Op:
        return make_op("PSMASH", **({"pa": pfn << 12} | fields))

    whole = rmp(large(guest()))
    yield case("0", "no-rmp", "there is no RMP", op(), machine="no-rmp")
    yield case("0", "user", "CPL is 3", op(user=1), whole)
    yield case("0", "user-guest", "CPL is 3 and the ASID not 0: #GP comes first", op(user=1, guest=1), whole)
    yield case("1", "guest", "in a guest", op(guest=1), whole)
    yield case("1", "row-2", "before row 2", op(0x201, guest=1), whole)
    for pfn in (0x201, 0x300, 0x3FF):
        yield case("2", f"{pfn:x}", "a page inside the region", op(pfn), whole)
    for pa in (0x200001, 0x200800, 0x200FFF):
        yield case("2", f"pa-{pa:x}", "bits 11:0 count too", op(pa=pa), whole)
    for pfn in (PART, 0xA00, 1 << 40):
        yield case("2", f"{pfn:x}", "not covered, or not wholly", op(pfn))
    yield case("2", "part-2M", "a region of which a half is covered, with a 2M entry", op(PART), rmp({PART: guest(1)}))
    yield case("2", "row-3", "before row 3", op(0x201), rmp(large(guest()), [(0x201, 0, 0)]))
    yield case("2", "c-bit", "the C-bit is taken out: allowed", op(pa=0x200000 | C_BIT), whole)
    for pfn in (HEAD, 0x2FF, 0x3FF):
        yield case("3", f"{pfn:x}", f"frame {pfn:#x} is in use", op(), rmp(large(guest()), [(pfn, 0, 0)]))
        yield case("3", f"row-4-{pfn:x}", "before row 4", op(), rmp({HEAD: guest()}, [(pfn, 0, 0)]))
    yield case("3", "vmsa", "a VMSA of the region", op(), rmp(large(guest()), [(NEXT, 0x2FF, 0)]))
    yield case("3", "beside", "the region beside is in use: allowed", op(), rmp(large(guest()), [(NEXT, 0, 0)]))
    for old in STATES:
        yield case("4", f"4K-{old}", f"the page's entry is 4K: {old}", op(), rmp({HEAD: STATES[old]}))
    for old in IMMUTABLE_STATES:
        yield case("4", f"2M-{old}", f"an immutable 2M entry: {old}", op(), rmp(large(STATES[old])))
    yield case("4", "unassigned", "page size 2M, not assigned", op(), rmp({HEAD: (LARGE, 0)}))
    yield case("4", "inner", "512 assigned 4K pages", op(), rmp({HEAD + i: guest(gpa=i << 12) for i in range(512)}))
    for old in MUTABLE_STATES:
        yield case("5", old, f"2M: {old}", op(), rmp(large(STATES[old])))
    for asid in (1, 0x3FF):
        yield case("5", f"asid-{asid:x}", f"ASID {asid:#x}", op(), rmp(large(guest(asid=asid))))
    for gpa in (0, (1 << 51) - 0x20_0000, 1 << 47):
        yield case("5", f"gpa-{gpa:x}", f"gpa {gpa:#x}", op(), rmp(large(guest(gpa=gpa))))
    about = "the first gpa is in the middle of a 2 MiB page: the others wrap where the field ends"
    yield case("5", "gpa-wraps", about, op(), rmp(large(guest()) | {HEAD: guest(1, gpa=(1 << 51) - 0x10_0000)}))
    state = rmp(large(guest()) | {HEAD: guest(1, gpa=(1 << 48) - 0x10_0000)})
    yield case("5", "gpa-wraps-milan", "the same with 48 bits", op(), state, "milan")
    state = rmp({HEAD: guest(1, count=5, vmsa=1), 0x201: (0x7_0000_1000, OLD), 0x3FF: guest(asid=9)})
    yield case("5", "stale", "the inner entries and the count hold other values", op(), state)
    beside = {0x1FF: guest(asid=9), NEXT: guest(asid=9)}
    yield case("5", "edges", "the entries beside the region stay", op(), rmp(large(guest()) | beside))


# --- RMPREAD -------------------------------------------------------------------------------------------------------


def rmpread() -> Iterator[Draft]:
    """rmp §2.4, §1.5, on the part that has it."""

    def case(name: str, about: str, op: Op, items: Items | None = None, machine: str = "turin") -> Draft:
        rule = "rmp §1.5" if name.startswith("shows") else "rmp §2.4"
        return Draft(f"RMPREAD/{name}", rule, about, op, items or {}, machine)

    def op(pfn: int = 0x201, **fields: int) -> Op:
        return make_op("RMPREAD", **({"pa": pfn << 12} | fields))

    yield case("absent-milan", "the part has no RMPREAD: #UD", op(), machine="milan")
    yield case("absent-genoa", "the same", op(), machine="genoa")
    yield case("user", "CPL is 3: #GP", op(user=1))
    yield case("guest", "in a guest", op(guest=1), rmp({0x201: guest()}))
    yield case("guest-uncovered", "in a guest, and not covered", op(FRAMES, guest=1))
    for pfn in (FRAMES, 1 << 40):
        yield case(f"uncovered-{pfn:x}", "not covered", op(pfn))
    yield case("last", "the last frame that is covered", op(LAST), rmp({LAST: guest()}))
    yield case("low-bits", "bits 11:0 of the address are ignored", op(pa=0x201ABC), rmp({0x201: guest()}))
    yield case("c-bit", "the C-bit is taken out of the address", op(pa=0x201000 | C_BIT), rmp({0x201: guest()}))
    for old, pfn in product(STATES, (HEAD, 0x201)):
        yield case(f"shows-{old}-{pfn:x}", f"{old}", op(pfn), rmp({pfn: STATES[old]}))
    for old, pfn in product(("firmware", "guest-valid"), (HEAD, 0x201)):
        yield case(f"shows-2M-{old}-{pfn:x}", f"in a 2M page: {old}", op(pfn), rmp(large(STATES[old])))
    for count, state in product((0, 1, 511), ("hypervisor", "guest-valid")):
        lo, hi = STATES[state]
        about = f"the region status: a count of {count}"
        yield case(f"shows-count-{count}-{state}", about, op(HEAD), rmp({HEAD: (lo | count << 3, hi)}))
    yield case(
        "shows-count-inner", "no region status in a page that is not aligned", op(), rmp({0x201: guest(count=5)})
    )
    yield case("shows-asid", "the greatest ASID", op(), rmp({0x201: guest(asid=0x3FF)}))
    yield case("shows-gpa", "every bit of the gpa", op(), rmp({0x201: guest(gpa=0x7_FFFF_FFFF_F000)}))


# --- PVALIDATE, RMPADJUST, RMPQUERY --------------------------------------------------------------------------------


def _guest_op(name: str, pfn: int = 0x201, size: int = 0, **fields: int) -> Op:
    """A guest instruction on its page at a frame; 4K or 2M asked and mapped."""
    given = {"gva": GVA + (pfn % 512 << 12), "pa": pfn << 12, "gpa": GPA, "asid": ASID, "level": 2 if size else 1}
    given |= {"rcx": size} if name != "RMPQUERY" else {}
    given |= {"rdx": {"PVALIDATE": 1, "RMPADJUST": 0x0101, "RMPQUERY": 0}[name]}
    return make_op(name, **(given | fields))


def _guests_page(name: str, row: str, section: str) -> Iterator[Draft]:
    """The check that the page is the guest's, which the three instructions share: one outcome after the other."""

    def case(what: str, about: str, items: Items, **fields: int) -> Draft:
        op = _guest_op(name, **fields)
        return Draft(f"{name}/row-{row}/{what}", f"rmp §{section} row {row}", about, op, items)

    yield case("uncovered", "not covered", {}, pfn=FRAMES)
    yield case("uncovered-far", "an address above every memory", {}, pa=1 << 52)
    for old in ("hypervisor", "hv-fixed", "firmware", "context", "reclaim"):
        yield case(f"owner-{old}", f"not a guest's: {old}", rmp({0x201: STATES[old]}))
    yield case("owner-other", "another guest's", rmp({0x201: guest(asid=8)}))
    yield case("owner-asid-0", "ASID 0 owns nothing", rmp({0x201: entry(gpa=GPA, validated=1)}), asid=0)
    yield case(
        "owner-inner", "an inner page of another guest's 2M page", rmp(large(guest(asid=8))), gpa=LARGE_GPA + 0x1000
    )
    yield case("gpa", "another gpa", rmp({0x201: guest()}), gpa=GPA + 0x1000)
    yield case("gpa-owner", "another gpa and another owner: the owner comes first", rmp({0x201: guest(asid=8)}), gpa=0)
    yield case("gpa-2M", "2M: another gpa", rmp(large(guest())), pfn=HEAD, size=1, gpa=LARGE_GPA + 0x20_0000)
    yield case("gpa-inner", "inside a 2M page: the gpa without the offset", rmp(large(guest())), gpa=LARGE_GPA, level=2)
    for old in ("pre-guest", "pre-swap"):
        yield case(f"immutable-{old}", old, rmp({0x201: STATES[old]}))
    yield case(
        "immutable-gpa", "immutable, and another gpa: the gpa comes first", rmp({0x201: STATES["pre-swap"]}), gpa=0
    )
    yield case(
        "immutable-size",
        "immutable 2M, 4K asked: before the size",
        rmp(large(STATES["pre-swap"])),
        gpa=GPA & -0x20_0000 | 0x1000,
    )


def _sizes(name: str, row: str, section: str) -> Iterator[Draft]:
    """RMP 2M, and 4K asked for or mapped."""
    for pfn, level in product((HEAD, 0x201, 0x3FF), (1, 2, 3)):
        if name == "RMPQUERY" and level != 1:
            continue
        gpa = LARGE_GPA + (pfn - HEAD << 12)
        op = _guest_op(name, pfn, gpa=gpa, level=level)
        about = f"frame {pfn:#x} of a 2M page, a nested mapping of level {level}"
        yield Draft(
            f"{name}/row-{row}/{pfn:x}-level-{level}", f"rmp §{section} row {row}", about, op, rmp(large(guest()))
        )
    if name != "RMPQUERY":
        op = _guest_op(name, HEAD, 1, gpa=LARGE_GPA, level=1)
        about = "2M asked, and a nested mapping of 4K"
        yield Draft(f"{name}/row-{row}/nested", f"rmp §{section} row {row}", about, op, rmp(large(guest())))
    op = _guest_op(name, gpa=LARGE_GPA + 0x1000)
    about = "not validated either: the size comes first"
    state = rmp(large(guest(validated=0)))
    yield Draft(f"{name}/row-{row}/not-validated", f"rmp §{section} row {row}", about, op, state)


def pvalidate() -> Iterator[Draft]:
    """rmp §2.5, row by row."""

    def case(row: str, name: str, about: str, op: Op, items: Items | None = None, machine: str = "main") -> Draft:
        return Draft(f"PVALIDATE/row-{row}/{name}", f"rmp §2.5 row {row}", about, op, items or {}, machine)

    def op(pfn: int = 0x201, size: int = 0, **fields: int) -> Op:
        return _guest_op("PVALIDATE", pfn, size, **fields)

    mine = rmp({0x201: guest(validated=0)})
    yield case("0", "no-rmp", "there is no RMP", op(), machine="no-rmp")
    yield case("0", "plain", "a guest without SNP", op(plain=1), mine)
    yield case("0", "plain-user", "and CPL 3: #UD comes first", op(plain=1, user=1), mine)
    yield case("1", "user", "CPL is 3", op(user=1), mine)
    yield case("1", "user-vmpl", "CPL 3 and VMPL 1: both are #GP", op(user=1, vmpl=1), mine)
    for vmpl in (1, 2, 3):
        yield case("2", f"vmpl-{vmpl}", f"VMPL {vmpl}", op(vmpl=vmpl), mine)
    yield case("2", "row-3", "before row 3", op(vmpl=1, rcx=2), mine)
    for name, fields in (
        ("ecx-2", {"rcx": 2}),
        ("ecx-31", {"rcx": 1 << 31}),
        ("edx-2", {"rdx": 2}),
        ("edx-31", {"rdx": 1 << 31}),
    ):
        yield case("3", name, "a reserved bit", op(**fields), mine)
    yield case(
        "3", "high-halves", "the upper halves of RCX and RDX do not count", op(rcx=1 << 32, rdx=1 << 63 | 1), mine
    )
    yield case("3", "row-6", "before row 6", op(rcx=2), {})
    for page in (1, 0x100, 0x1FF):
        yield case(
            "4", f"{page:x}", f"page {page:#x} of a 2 MiB range", op(HEAD + page, 1, gpa=LARGE_GPA), rmp(large(guest()))
        )
    yield case(
        "4",
        "low-bits",
        "bits 11:0 do not count",
        op(HEAD, 1, gva=GVA + 0xFFF, gpa=LARGE_GPA),
        rmp(large(guest(validated=0))),
    )
    yield from _guests_page("PVALIDATE", "6", "2.5")
    yield from _sizes("PVALIDATE", "7", "2.5")
    for pfn, level in product((HEAD,), (1, 2, 3)):
        yield case("8", f"level-{level}", "2M asked of a 4K entry", op(pfn, 1, level=level), rmp({HEAD: guest()}))
    yield case("8", "invalid", "not validated: 6 all the same", op(HEAD, 1), rmp({HEAD: guest(validated=0)}))
    for validated, rdx in ((1, 1), (0, 0)):
        yield case("9", f"4K-{rdx}", "4K", op(rdx=rdx), rmp({0x201: guest(validated=validated)}))
        state = rmp(large(guest(validated=validated)))
        yield case("9", f"2M-{rdx}", "2M", op(HEAD, 1, rdx=rdx, gpa=LARGE_GPA), state)
    for rdx in (0, 1):
        for level in (1, 2, 3):
            about = f"4K, a nested mapping of level {level}; permissions and vmsa stay"
            yield case(
                "10",
                f"4K-{rdx}-level-{level}",
                about,
                op(rdx=rdx, level=level),
                rmp({0x201: guest(validated=1 - rdx, vmsa=1)}),
            )
        for level in (2, 3):
            state = rmp(large(guest(validated=1 - rdx, vmsa=1)))
            yield case(
                "10",
                f"2M-{rdx}-level-{level}",
                "2M: the inner entries stay",
                op(HEAD, 1, rdx=rdx, gpa=LARGE_GPA, level=level),
                state,
            )
        yield case(
            "10",
            f"head-{rdx}",
            "4K at an aligned page; the count stays",
            op(HEAD, rdx=rdx),
            rmp({HEAD: guest(validated=1 - rdx, count=5)}),
        )
    inner = op(0x201, 1, gva=GVA, gpa=LARGE_GPA + 0x1000)
    about = "2M, translated to a page inside: the governing entry is written"
    yield case("10", "2M-inner", about, inner, rmp(large(guest(validated=0))))
    yield case("10", "gpa-low-bits", "bits 11:0 of the gpa do not count", op(gpa=GPA | 0xABC), mine)
    yield case("10", "pa-c-bit", "the C-bit is taken out of the address", op(pa=0x201ABC | C_BIT), mine)


def rmpadjust() -> Iterator[Draft]:
    """rmp §2.6, row by row."""

    def case(row: str, name: str, about: str, op: Op, items: Items | None = None, machine: str = "main") -> Draft:
        return Draft(f"RMPADJUST/row-{row}/{name}", f"rmp §2.6 row {row}", about, op, items or {}, machine)

    def op(pfn: int = 0x201, size: int = 0, **fields: int) -> Op:
        return _guest_op("RMPADJUST", pfn, size, **fields)

    mine = rmp({0x201: guest()})
    yield case("0", "no-rmp", "there is no RMP", op(), machine="no-rmp")
    yield case("0", "plain", "a guest without SNP", op(plain=1), mine)
    yield case("0", "user", "CPL is 3", op(user=1), mine)
    bits = {
        "rcx-2": {"rcx": 2},
        "rcx-63": {"rcx": 1 << 63},
        "rdx-17": {"rdx": 1 << 17 | 0x101},
        "rdx-63": {"rdx": 1 << 63 | 0x101},
    }
    bits |= {f"rdx-{bit}": {"rdx": 1 << bit | 1} for bit in (13, 14, 15)}
    for name, fields in bits.items():
        yield case("1", name, "a reserved bit", op(**fields), mine)
    for target in (4, 0xFF):
        yield case("1", f"vmpl-{target:x}", f"target VMPL {target}", op(rdx=0x100 | target), mine)
    yield case("1", "unaligned", "2M and not aligned", op(0x201, 1), mine)
    yield case("1", "row-2", "before row 2", op(rdx=0x2000, vmpl=1), mine)
    for vmpl in range(4):
        for target in range(vmpl + 1):
            yield case(
                "2", f"{target}-from-{vmpl}", f"VMPL {vmpl} for VMPL {target}", op(rdx=0x100 | target, vmpl=vmpl), mine
            )
    yield case("2", "row-3", "before row 3", op(rdx=0x100), {})
    yield from _guests_page("RMPADJUST", "3", "2.6")
    yield from _sizes("RMPADJUST", "4", "2.6")
    yield case("5", "4K", "4K", op(), rmp({0x201: guest(validated=0)}))
    yield case("5", "2M", "2M", op(HEAD, 1, gpa=LARGE_GPA), rmp(large(guest(validated=0))))
    yield case("5", "row-6", "before row 6", op(HEAD, 1), rmp({HEAD: guest(validated=0)}))
    yield case("5", "row-7", "before row 7", op(vmpl=2, rdx=0x1F03), rmp({0x201: guest(validated=0)}))
    yield case("6", "4K", "2M asked of a 4K entry", op(HEAD, 1), rmp({HEAD: guest()}))
    yield case("6", "row-7", "before row 7", op(HEAD, 1, vmpl=2, rdx=0x1F03), rmp({HEAD: guest()}))
    for vmpl, bit in product((1, 2), range(5)):
        mask = 1 << bit
        state = rmp({0x201: guest(hi=OLD & ~(0xFF << 8 * vmpl) | (0x1F & ~mask) << 8 * vmpl)})
        yield case(
            "7", f"vmpl-{vmpl}-bit-{bit}", f"VMPL {vmpl} lacks bit {bit}", op(vmpl=vmpl, rdx=mask << 8 | 3), state
        )
    yield case("7", "vmpl-0", "VMPL0 lacks everything", op(rdx=0x0101), rmp({0x201: guest(hi=0)}))
    for target, permissions in product((1, 2, 3), (0, 1, 3, 0x1F)):
        yield case("8", f"vmpl-{target}-{permissions:x}", "from VMPL0", op(rdx=permissions << 8 | target), mine)
    for vmpl in (1, 2):
        yield case("8", f"vmpl-3-from-{vmpl}", f"from VMPL {vmpl}", op(vmpl=vmpl, rdx=0x0103), mine)
        about = f"from VMPL {vmpl}: the vmsa bit is ignored"
        yield case("8", f"vmsa-from-{vmpl}", about, op(vmpl=vmpl, rdx=1 << 16 | 0x0103), mine)
        yield case("8", f"vmsa-kept-from-{vmpl}", about, op(vmpl=vmpl, rdx=0x0103), rmp({0x201: guest(vmsa=1)}))
    yield case("8", "vmsa", "from VMPL0: vmsa is set", op(rdx=1 << 16 | 0x0101), mine)
    yield case("8", "vmsa-cleared", "from VMPL0: vmsa is cleared", op(), rmp({0x201: guest(vmsa=1)}))
    yield case(
        "8", "2M", "2M: the inner entries stay", op(HEAD, 1, gpa=LARGE_GPA, rdx=1 << 16 | 0x0302), rmp(large(guest()))
    )
    yield case("8", "level-2", "4K in a nested mapping of 2M", op(level=2), mine)
    yield case("8", "same", "nothing changes", op(rdx=0x0701), mine)


def rmpquery() -> Iterator[Draft]:
    """rmp §2.7, row by row."""

    def case(row: str, name: str, about: str, op: Op, items: Items | None = None, machine: str = "main") -> Draft:
        return Draft(f"RMPQUERY/row-{row}/{name}", f"rmp §2.7 row {row}", about, op, items or {}, machine)

    def op(pfn: int = 0x201, **fields: int) -> Op:
        return _guest_op("RMPQUERY", pfn, **fields)

    mine = rmp({0x201: guest(vmsa=1)})
    yield case("0", "no-rmp", "there is no RMP", op(), machine="no-rmp")
    yield case("0", "absent", "the part has no RMPQUERY", op(), mine, "milan")
    yield case("0", "plain", "a guest without SNP", op(plain=1), mine)
    yield case("0", "user", "CPL is 3", op(user=1), mine)
    yield from _guests_page("RMPQUERY", "1", "2.7")
    yield from _sizes("RMPQUERY", "2", "2.7")
    yield case("3", "4K", "4K", op(), rmp({0x201: guest(validated=0)}))
    yield case("3", "row-4", "before row 4", op(rdx=4), rmp({0x201: guest(validated=0)}))
    for target in (4, 0xFF):
        yield case("4", f"{target:x}", f"VMPL {target}", op(rdx=target), mine)
    for vmpl in (1, 2, 3):
        yield case("5", f"{vmpl}", f"VMPL {vmpl} asks about VMPL {vmpl - 1}", op(vmpl=vmpl, rdx=vmpl - 1), mine)
    for vmpl in range(4):
        for target in range(vmpl, 4):
            yield case(
                "6", f"{target}-from-{vmpl}", f"VMPL {vmpl} asks about VMPL {target}", op(vmpl=vmpl, rdx=target), mine
            )
    yield case("6", "bits", "the other bits of RDX are ignored", op(rdx=0xFFFF_FFFF_FFFF_FF01), mine)
    yield case("6", "no-vmsa", "vmsa is 0", op(rdx=1), rmp({0x201: guest()}))
    for pfn in (HEAD, 0x3FF):
        gpa = LARGE_GPA + (pfn - HEAD << 12)
        yield case(
            "6",
            f"2M-{pfn:x}",
            "in a 2M page: that of the governing entry",
            op(pfn, gpa=gpa, level=2, rdx=1),
            rmp(large(guest(vmsa=1))),
        )
