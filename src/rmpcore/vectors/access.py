"""Test vectors of level 1: who may access what (docs/rmp.md §3), and the state of a page (§4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rmpcore.ops import AccessKind, Op, Who, make_op
from rmpcore.vectors.draft import (
    ALL,
    ASID,
    ASSIGNED,
    C_BIT,
    FRAMES,
    GPA,
    GVA,
    HEAD,
    IMMUTABLE,
    INNER,
    LARGE,
    LARGE_GPA,
    LAST,
    LOCK,
    NEXT,
    PART,
    STATES,
    VALIDATED,
    VMSA,
    Draft,
    entry,
    guest,
    large,
    rmp,
)
from rmpcore.vectors.form import Items


def page_state() -> Iterator[Draft]:
    """rmp §4.1: the state of an entry."""

    def case(name: str, about: str, lo: int, pfn: int = 0x201) -> Draft:
        return Draft(f"page_state/{name}", "rmp §4.1", about, make_op("page_state", pfn=pfn), rmp({pfn: (lo, 0)}))

    for name, (lo, _) in STATES.items():
        yield case(name, name, lo)
        yield case(f"{name}-2M", f"{name} with page size 2M", lo | LARGE)
        if name in ("given-back", "metadata", "guest-vmsa"):
            continue
        yield case(f"{name}-count", f"{name} with a subpage count", lo | 3 << 3, HEAD)
        yield case(f"{name}-lock", f"{name} with the other lock bit", lo ^ LOCK)
        yield case(f"{name}-vmsa", f"{name} with the other vmsa bit", lo ^ VMSA)
        yield case(f"{name}-validated", f"{name} with the other validated bit", lo ^ VALIDATED)
    yield case("metadata-gpa-0", "tag 1, but no context", (1 << 48) | ASSIGNED | IMMUTABLE | LOCK)
    yield case("tag-3", "a tag that no state has", (3 << 48) | ASSIGNED | IMMUTABLE | LOCK)
    yield case("iommu-2", "tag 2 with another number", (2 << 48) | 0x2005 | LOCK)
    yield Draft("page_state/uncovered", "rmp §4.1", "not covered", make_op("page_state", pfn=FRAMES), {})


_CHECKED_SHARED = ("write", "walk", "walk_write", "shadow_stack", "read", "fetch")


def _access(who: str, access: str, pfn: int, level: int, **fields: int) -> Op:
    given = {"who": Who[who.upper()], "access": AccessKind[access.upper()], "pa": pfn << 12, "level": level}
    return make_op("access", **(given | fields))


def host_access() -> Iterator[Draft]:
    """rmp §3.2, §3.1: whoever may only write what is the hypervisor's."""

    def case(who: str, name: str, about: str, op: Op, items: Items, rule: str = "", machine: str = "main") -> Draft:
        return Draft(f"access/{who}/{name}", rule or f"rmp §3.2 {who}", about, op, items, machine)

    neighbour, own = rmp({HEAD: (8, 0), 0x2FF: guest()}), rmp({0x201: guest()})
    for who, fields in (("host", {"gva": 0xFFFF_8880_0020_1000}), ("plain", {"gpa": GPA, "asid": 5}), ("iommu", {})):
        for access, level in product(_CHECKED_SHARED, (1, 2, 3) if who == "host" else (1, 2)):
            if access in ("read", "fetch") and level != 2:  # never checked, so the largest difference is enough
                continue
            name = f"{access}-level-{level}"
            about = f"{access} through a translation of level {level}"
            op = _access(who, access, 0x201, level, **fields)
            yield case(who, f"{name}-own", f"{about}; the page is a guest's", op, own)
            yield case(who, f"{name}-neighbour", f"{about}; a neighbour is a guest's", op, neighbour)
    for state, level in product(STATES, (1, 2)):
        op = _access("host", "write", 0x201, level)
        yield case(
            "host", f"{state}-level-{level}", f"the page is {state}", op, rmp({0x201: STATES[state]}), "rmp §3.6"
        )
        op = _access("host", "write", 0x205, level)
        yield case(
            "host",
            f"beside-{state}-level-{level}",
            f"the page beside is {state}",
            op,
            rmp({0x201: STATES[state]}),
            "rmp §3.1",
        )
    for pfn, level in product((HEAD, 0x201, 0x3FF), (1, 2)):
        op = _access("host", "write", pfn, level)
        yield case("host", f"2M-{pfn:x}-level-{level}", "in a 2M page", op, rmp(large(guest())), "rmp §3.1")
    for pfn in (HEAD, *INNER, 0x1FF, NEXT):
        op = _access("host", "write", 0x205, 2)
        yield case(
            "host",
            f"scan-{pfn:x}",
            f"2M; frame {pfn:#x} is a guest's, and no count says so",
            op,
            rmp({pfn: guest()}),
            "rmp §3.1",
        )
        op = _access("host", "write", 0x205, 3)
        yield case(
            "host",
            f"scan-{pfn:x}-1G",
            "the same through 1G, which is judged in pieces of 2M",
            op,
            rmp({pfn: guest()}),
            "rmp §3.1",
        )
    yield case(
        "host",
        "count-only",
        "2M: a count, but no assigned page",
        _access("host", "write", 0x205, 2),
        rmp({HEAD: (5 << 3, 0)}),
        "rmp §3.1",
    )
    for pfn, level in ((FRAMES, 1), (FRAMES, 2), (1 << 40, 1), (LAST, 2)):
        yield case(
            "host",
            f"uncovered-{pfn:x}-{level}",
            "at the end of what is covered",
            _access("host", "write", pfn, level),
            rmp({PART: (0, 0)}),
            "rmp §3.6",
        )
    op = _access("host", "write", FRAMES, 2)
    yield case(
        "host",
        "part",
        "not covered, 2M; a covered page of the region is a guest's",
        op,
        rmp({LAST: guest()}),
        "rmp §3.6",
    )
    op = _access("host", "write", 0x201, 1, user=1, gva=0x1000)
    yield case("host", "user", "at CPL 3: bit 2 of the error code", op, own)
    yield case(
        "host",
        "c-bit",
        "the C-bit is taken out of the address",
        _access("host", "write", C_BIT >> 12 | 0x201, 1),
        own,
        "rmp §1.6",
    )
    yield case(
        "plain",
        "c",
        "a plain guest's C-bit shows in EXITINFO1",
        _access("plain", "write", 0x201, 1, gpa=GPA, c=1, asid=5),
        own,
    )
    for access in ("read", "write"):
        yield case("psp", access, "never checked", _access("psp", access, 0x201, 1), own)
    yield case("host", "no-rmp", "there is no RMP", _access("host", "write", 0x201, 2), {}, machine="no-rmp")

    # In use (rmp §3.7)
    for machine, pfn, level in product(("main", "turin"), (HEAD, 0x201), (1, 2, 3)):
        for target in (HEAD, 0x201, 0x205):
            if level == 3 and target != 0x205:
                continue
            name = f"in-use-{pfn:x}-{target:x}-level-{level}-{machine}"
            about = f"frame {pfn:#x} is in use; a write to {target:#x}, level {level}"
            op = _access("host", "write", target, level)
            yield case("host", name, about, op, rmp({}, [(pfn, 0, 0)]), "rmp §3.7", machine)
    op = _access("host", "read", 0x201, 1)
    yield case("host", "in-use-read", "a read of a page in use", op, rmp({}, [(0x201, 0, 0)]), "rmp §3.7")
    op = _access("host", "walk_write", 0x205, 2)
    yield case("host", "in-use-walk-write", "A and D are written as 4K", op, rmp({}, [(HEAD, 0, 0)]), "rmp §3.7")
    for who, access in (("plain", "write"), ("plain", "walk_write"), ("iommu", "write"), ("host", "walk")):
        op = _access(who, access, 0x201, 1, gpa=GPA)
        yield case(who, f"in-use-{access}", "the page is in use", op, rmp({}, [(0x201, 0, 0)]), "rmp §3.7")
    op = _access("host", "write", 0x201, 1)
    yield case(
        "host",
        "in-use-own",
        "in use, and a guest's: ownership comes first",
        op,
        rmp({0x201: guest()}, [(0x201, 0, 0)]),
        "rmp §3.7",
    )


def guest_access() -> Iterator[Draft]:
    """rmp §3.2: the accesses of an SNP guest, shared and private; rmp §3.7: what VMRUN uses."""

    def case(name: str, about: str, op: Op, items: Items, kind: str = "private", machine: str = "main") -> Draft:
        rule = "rmp §3.7" if kind == "vmrun" else f"rmp §3.2 snp {kind}"
        return Draft(f"access/{kind}/{name}", rule, about, op, items, machine)

    def op(access: str, pfn: int = 0x201, level: int = 1, **fields: int) -> Op:
        return _access("snp", access, pfn, level, **({"gpa": GPA, "asid": ASID, "c": 1, "gva": GVA} | fields))

    kinds = tuple(kind.name.lower() for kind in AccessKind)
    for access in ("read", "write", "shadow_stack"):
        for level, (name, items) in product(
            (1, 2), {"own": rmp({0x201: guest()}), "other": rmp({0x205: guest()}), "free": {}}.items()
        ):
            yield case(
                f"{access}-{name}-level-{level}", f"C = 0, {name}", op(access, level=level, c=0), items, "shared"
            )
    yield case("in-use", "C = 0, the page is in use", op("write", c=0), rmp({}, [(0x201, 0, 0)]), "shared")
    yield case(
        "in-use-turin", "the same where it is allowed", op("write", c=0), rmp({}, [(0x201, 0, 0)]), "shared", "turin"
    )
    for access in ("fetch", "walk", "walk_write"):
        yield case(f"{access}-c-0", "private whatever C is", op(access, c=0), {}, "private")
        yield case(
            f"{access}-c-0-mine", "private whatever C is", op(access, c=0), rmp({0x201: guest(hi=ALL)}), "private"
        )

    for access in kinds:
        yield case(f"{access}-uncovered", "not covered", op(access, FRAMES), {})
        yield case(f"{access}-free", "not assigned", op(access), {})
        yield case(f"{access}-good", "allowed", op(access), rmp({0x201: guest(hi=ALL)}))
        yield case(f"{access}-not-validated", "not validated", op(access), rmp({0x201: guest(validated=0)}))
        yield case(
            f"{access}-size",
            "a 2M page, a nested mapping of 4K",
            op(access, gpa=LARGE_GPA + 0x1000),
            rmp(large(guest())),
        )
        yield case(f"{access}-vmpl", "VMPL1 has no permission", op(access, vmpl=1), rmp({0x201: guest(hi=ALL)}))
    for old in STATES:
        yield case(f"state-{old}", old, op("read"), rmp({0x201: STATES[old]}))
    yield case("owner-other", "another guest's", op("read"), rmp({0x201: guest(asid=8)}))
    yield case(
        "owner-asid-0", "ASID 0 owns nothing", op("read", asid=0), rmp({0x201: entry(gpa=GPA, validated=1, hi=ALL)})
    )
    yield case("gpa", "another gpa", op("read", gpa=GPA + 0x1000), rmp({0x201: guest()}))
    yield case("gpa-owner", "the owner comes before the gpa", op("read", gpa=0), rmp({0x201: guest(asid=8)}))
    yield case("gpa-low-bits", "bits 11:0 do not count", op("read", gpa=GPA | 0xFFF), rmp({0x201: guest()}))
    yield case("immutable-gpa", "the gpa comes before immutable", op("read", gpa=0), rmp({0x201: STATES["pre-swap"]}))
    yield case(
        "immutable-size", "immutable comes before the size", op("read", level=2), rmp({0x201: STATES["pre-swap"]})
    )
    yield case(
        "size-validated", "the size comes before validated", op("read", level=2), rmp({0x201: guest(validated=0)})
    )
    yield case(
        "validated-vmpl", "validated comes before VMPL", op("read", vmpl=3), rmp({0x201: guest(validated=0, hi=ALL)})
    )
    for pfn, level in product((HEAD, 0x201, 0x3FF), (1, 2, 3)):
        gpa = LARGE_GPA + (pfn - HEAD << 12)
        about = f"frame {pfn:#x} of a 2M page, a nested mapping of level {level}"
        yield case(f"2M-{pfn:x}-level-{level}", about, op("write", pfn, level, gpa=gpa), rmp(large(guest())))
        about = f"frame {pfn:#x} of 4K pages, a nested mapping of level {level}"
        yield case(f"4K-{pfn:x}-level-{level}", about, op("write", pfn, level), rmp({pfn: guest()}))
    yield case(
        "2M-gpa", "an inner page, the gpa without its offset", op("read", 0x201, 2, gpa=LARGE_GPA), rmp(large(guest()))
    )
    about = "the aligned page's 2M entry is not assigned: it does not govern"
    yield case("2M-unassigned", about, op("read"), rmp({HEAD: (LARGE, 0), 0x201: guest()}))
    about = "an inner entry that says otherwise: the aligned page's 2M entry governs"
    yield case(
        "2M-stale", about, op("read", 0x201, 2, gpa=LARGE_GPA + 0x1000), rmp({HEAD: guest(1), 0x201: guest(asid=9)})
    )
    top = (1 << 51) - 0x10_0000
    yield case(
        "2M-gpa-wraps",
        "the expected gpa wraps where the field ends",
        op("read", 0x301, 2, gpa=0x1000),
        rmp(large(guest()) | {HEAD: guest(1, gpa=top)}),
    )

    for vmpl, bits in product((0, 2), (0, 1, 2, 3, 4, 8, 0x10, 0x1D)):
        state = rmp({0x201: guest(hi=bits << 8 * vmpl | 0x1F << 8 * (vmpl ^ 1))})
        for access, user in (*((kind, 0) for kind in kinds), ("fetch", 1)):
            if vmpl == 0 and access not in ("read", "write"):
                continue
            name = f"byte-{bits:x}-vmpl-{vmpl}-{access}{'-user' * user}"
            yield case(name, f"VMPL{vmpl}'s byte is {bits:#x}", op(access, vmpl=vmpl, user=user), state)
    for bits in (2, 3, 0x10, 0x11):
        yield case(
            f"shadow-stack-{bits:x}-milan",
            "without VmplSSS: checked as a write",
            op("shadow_stack"),
            rmp({0x201: guest(hi=bits)}),
            machine="milan",
        )

    for who in ("vmcb", "avic", "vmsa_plain", "hsave", "vmsave"):
        for name, items in {
            "free": {},
            "guest": rmp({0x201: guest()}),
            "neighbour": rmp({0x205: guest()}),
            "inner": rmp(large(guest())),
        }.items():
            yield case(f"{who}-{name}", f"{who}: {name}", _access(who, "read", 0x201, 1), items, "vmrun")
        yield case(f"{who}-uncovered", f"{who}: not covered", _access(who, "read", FRAMES, 1), {}, "vmrun")
        yield case(f"{who}-0", f"{who}: address 0", _access(who, "read", 0, 1), {}, "vmrun")
        yield case(
            f"{who}-level",
            f"{who}: as 4K, whatever the level",
            _access(who, "read", 0x201, 2),
            rmp({0x205: guest()}),
            "vmrun",
        )
    vmsa = {
        "good": guest(vmsa=1),
        "no-vmsa": guest(),
        "not-validated": guest(vmsa=1, validated=0),
        "other": guest(vmsa=1, asid=8),
    }
    vmsa |= {
        "immutable": guest(vmsa=1, immutable=1),
        "free": (0, 0),
        "gpa": guest(vmsa=1, gpa=0),
        "context": STATES["context"],
    }
    for name, value in vmsa.items():
        yield case(
            f"vmsa_snp-{name}",
            f"an SNP guest's VMSA: {name}",
            _access("vmsa_snp", "read", 0x201, 1, gpa=GPA, asid=ASID),
            rmp({0x201: value}),
            "vmrun",
        )
    yield case(
        "vmsa_snp-uncovered",
        "an SNP guest's VMSA: not covered",
        _access("vmsa_snp", "read", FRAMES, 1, gpa=GPA, asid=ASID),
        {},
        "vmrun",
    )
    yield case(
        "vmsa_snp-2M",
        "inside a 2M page: as 4K, on the governing entry",
        _access("vmsa_snp", "read", 0x201, 1, gpa=LARGE_GPA + 0x1000, asid=ASID),
        rmp(large(guest(vmsa=1))),
        "vmrun",
    )
