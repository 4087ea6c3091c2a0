"""Random ops on the RMP: instructions, accesses, firmware commands and the host around them.

A few frames around the lines that matter, guest addresses that mostly fit, and now and then a whole story (a guest's
context, a page that is swapped, 512 pages made one again), so that deep states are reached and not only refusals.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from rmpcore.maps import MachineMap
from rmpcore.ops import AccessKind, Op, Who, make_op

ASIDS = (5, 5, 5, 5, 6, 0, 0x3FF, 0x400)
ACCESS_LEVELS = (1, 1, 1, 2, 2, 3)
CONTEXTS = (0x610, 0x611, 0x612)
METADATA = (0x620, 0x621)
OWNED = (*CONTEXTS, *METADATA, 0x630)
"""Frames that mostly are the firmware's."""
RESERVED = (0, 0, 0, 0, 0, 1, 2, 1 << 8, 1 << 9, 1 << 16, 1 << 31)
PERMISSIONS = (0x00, 0x01, 0x02, 0x03, 0x07, 0x0F, 0x1F, 0x20)
REGION = 0x200
U64 = (1 << 64) - 1


FOCUSES = ("rmp", "guest", "firmware")
_PARTS_OF = {
    "rmp": ("rmpupdate", "psmash", "rmpread", "access", "host_write", "kernel", "large_story"),
    "guest": ("pvalidate", "rmpadjust", "rmpquery", "access", "vmrun", "vmexit", "guest_story", "large_story"),
    "firmware": ("firmware", "guest_story", "swap_story", "unsmash_story", "reclaim_story"),
}
_MORE = 4
"""How much more often something is done that is in the focus."""


class Generator:
    """Ops on one machine's RMP, more of some than of others."""

    def __init__(self, seed: object, map_: MachineMap, switches: dict[str, int], focus: str = "rmp") -> None:
        self.rng = random.Random(repr(seed))
        self.c_bit = map_.c_bit
        self.vmpls = switches.get("vmpls", 4)
        near = [0x400, 0x401, 0x433, 0x5FF, 0x600, 0x601, 0x800, 0x801, 0x9FF]
        edges = {0, 0x9F, 0xA0, 0x1FF, 0x200}
        ends = [base + size for base, size in map_.memory]
        areas = list(map_.segmented.areas()) if map_.segmented else []
        if map_.rmp is not None:
            base, end = map_.rmp
            areas.append((base, end + 1 - base))
            ends.append((end + 1 - base - 0x4000) // 16 << 12)
        if map_.segmented is not None:
            ends += [(index << map_.segmented.shift) + size for index, _, size in map_.segmented.segments()]
            ends += [index << map_.segmented.shift for index, _, _ in map_.segmented.segments()]
        for base, size in areas:
            ends += [base, base + size]
        for end in ends:
            edges |= {end >> 12, (end >> 12) - 1, end >> 12 & ~0x1FF, (end >> 12 & ~0x1FF) - REGION}
        self.near = near
        self.edges = [*sorted(pfn for pfn in edges if pfn >= 0), 1 << 40, (1 << 52) - 1]
        self._running: list[int] = []
        kinds: list[tuple[float, Callable[[], list[Op]]]] = [
            (5.0, self.rmpupdate),
            (0.6, self.psmash),
            (1.0, self.rmpread),
            (3.0, self.pvalidate),
            (2.0, self.rmpadjust),
            (1.0, self.rmpquery),
            (5.0, self.access),
            (1.0, self.host_write),
            (0.2, self.host_read),
            (0.4, self.vmrun),
            (0.4, self.vmexit),
            (3.0, self.firmware),
            (1.5, self.kernel),
            (0.3, self.page_state),
            (0.1, self.control),
            (0.25, self.guest_story),
            (0.15, self.large_story),
            (0.4, self.reclaim_story),
            (0.1, self.swap_story),
            (0.004, self.unsmash_story),
            (0.01, self.broken),
        ]
        self._kinds = [kind for _, kind in kinds]
        self._weights = [weight * (_MORE if kind.__name__ in _PARTS_OF[focus] else 1) for weight, kind in kinds]

    def ops(self, count: int) -> list[Op]:
        """So many ops, or a few more."""
        made: list[Op] = []
        while len(made) < count:
            made += self.rng.choices(self._kinds, self._weights)[0]()
        return made

    def rare(self) -> int:
        return int(self.rng.random() < 0.02)

    def often(self, chance: float = 0.5) -> int:
        return int(self.rng.random() < chance)

    def frame(self, aligned: float = 0.15) -> int:
        chance = self.rng.random()
        pfn = self.rng.choice(self.near if chance < 0.82 else self.edges if chance < 0.95 else OWNED)
        return pfn & ~0x1FF if self.rng.random() < aligned else pfn

    def mapped(self) -> int:
        return min(self.frame(), (1 << 34) - 1)

    def pa(self, pfn: int) -> int:
        pa = pfn << 12 & U64
        if self.c_bit and self.often(0.2):
            pa |= self.c_bit
        return pa | self.rng.choice((1, 0x800, 0xFFF)) if self.rare() else pa

    def gpa(self, pfn: int) -> int:
        """The address that a page mostly has in its guest: its own."""
        gpa = pfn << 12 & U64
        return gpa if self.often(0.93) else self.rng.choice((0, 0x1000, gpa ^ 0x20_0000, gpa | 0x123, U64))

    def rmpupdate(self) -> list[Op]:
        size = self.often(0.12)
        pfn = self.frame()
        if size and self.often(0.9):
            pfn &= ~0x1FF
        assigned = self.often(0.7)
        plain = self.often(0.85)
        asid = (5 if assigned else 0) if plain else self.rng.choice(ASIDS)
        if assigned and self.often(0.15):
            asid = 0
        return [
            make_op(
                "RMPUPDATE",
                pa=self.pa(pfn),
                gpa=self.gpa(pfn) if asid else 0,
                assigned=assigned,
                size=size,
                immutable=int(assigned and self.often(0.1)) if plain else self.often(),
                asid=asid,
                reserved=self.rng.choice(RESERVED),
                guest=self.rare(),
                user=self.rare(),
            )
        ]

    def psmash(self) -> list[Op]:
        return [make_op("PSMASH", pa=self.pa(self.frame(0.9)), guest=self.rare(), user=self.rare())]

    def rmpread(self) -> list[Op]:
        return [make_op("RMPREAD", pa=self.pa(self.frame()), guest=self.rare(), user=self.rare())]

    def host_write(self) -> list[Op]:
        return [make_op("host_write", pfn=self.mapped())]

    def host_read(self) -> list[Op]:
        return [make_op("host_read", pfn=self.mapped())]

    def page_state(self) -> list[Op]:
        return [make_op("page_state", pfn=self.frame())]

    def page(self, pfn: int) -> dict[str, int]:
        """Where a guest's address is translated to."""
        return {
            "pa": self.pa(pfn),
            "gpa": self.gpa(pfn),
            "asid": 5 if self.often(0.9) else self.rng.choice(ASIDS),
            "level": self.rng.choice(ACCESS_LEVELS),
            "user": self.rare(),
            "plain": self.rare(),
        }

    def gva(self, pfn: int) -> int:
        return pfn << 12 & U64 if self.often(0.9) else self.rng.choice((0, 0x1000, 0x20_0000, U64))

    def pvalidate(self) -> list[Op]:
        pfn = self.frame(0.3)
        rcx = self.often(0.3) if self.often(0.97) else self.rng.choice((2, 1 << 31, 1 << 32, (1 << 32) + 1))
        rdx = self.often(0.7) if self.often(0.97) else self.rng.choice((2, 3, 1 << 31, 1 << 32))
        vmpl = self.rng.randrange(self.vmpls) if self.rare() else 0
        return [make_op("PVALIDATE", gva=self.gva(pfn), rcx=rcx, rdx=rdx, vmpl=vmpl, **self.page(pfn))]

    def rmpadjust(self) -> list[Op]:
        pfn = self.frame(0.3)
        rcx = self.often(0.3) if self.often(0.97) else self.rng.choice((2, 1 << 32))
        rdx = self.rng.choice((1, 1, 2, 3, 0, 4, 0xFF)) | self.rng.choice(PERMISSIONS) << 8 | self.often(0.3) << 16
        rdx |= self.rng.choice((1 << 17, 1 << 63)) if self.rare() else 0
        vmpl = self.rng.choice((0, 0, 0, 1, 2)) % self.vmpls
        return [make_op("RMPADJUST", gva=self.gva(pfn), rcx=rcx, rdx=rdx, vmpl=vmpl, **self.page(pfn))]

    def rmpquery(self) -> list[Op]:
        pfn = self.frame(0.3)
        rdx = self.rng.choice((0, 1, 2, 3, 4)) | (self.rng.choice((1 << 8, 1 << 40)) if self.often(0.1) else 0)
        vmpl = self.rng.choice((0, 0, 1, 2)) % self.vmpls
        return [make_op("RMPQUERY", gva=self.gva(pfn), rdx=rdx, vmpl=vmpl, **self.page(pfn))]

    def access(self) -> list[Op]:
        who = self.rng.choice((*Who, Who.HOST, Who.HOST, Who.SNP, Who.SNP, Who.SNP))
        kind = self.rng.choice(tuple(AccessKind))
        if who >= Who.VMCB and self.often(0.97):
            kind = AccessKind.READ
        pfn = self.frame()
        where = self.page(pfn)
        del where["plain"]
        return [
            make_op(
                "access",
                who=who,
                access=kind,
                c=self.often(0.7),
                vmpl=self.rng.choice((0, 0, 1, 2, 3)) if not self.rare() else 4,
                gva=self.gva(pfn),
                **{**where, "user": self.often(0.3)},
            )
        ]

    def vmrun(self) -> list[Op]:
        vmcb, vmsa, avic = (self.frame() << 12 & U64 for _ in range(3))
        self._running = [*self._running[-5:], vmcb]
        return [
            make_op(
                "VMRUN",
                vmcb=vmcb | self.rare(),
                vmsa=vmsa * self.often(),
                avic=avic * self.often(0.3),
                gpa=self.gpa(vmsa >> 12),
                asid=5,
                plain=self.often(0.4),
            )
        ]

    def vmexit(self) -> list[Op]:
        if self._running and self.often(0.8):
            return [make_op("VMEXIT", vmcb=self.rng.choice(self._running))]
        return [make_op("VMEXIT", vmcb=self.frame() << 12 & U64)]

    def context(self) -> int:
        return (self.rng.choice(CONTEXTS) if self.often(0.95) else self.frame()) << 12 & U64

    def mdata(self) -> int:
        pfn = self.rng.choice(METADATA) if self.often(0.95) else self.frame()
        return (pfn << 12 | self.rng.choice((0, 64, 128, 4032)) | self.rare()) & U64

    def firmware(self) -> list[Op]:
        pfn, other = self.frame(), self.frame()
        size = self.often(0.1)
        pa = pfn << 12 & U64
        asid = self.rng.choice(ASIDS)
        name = self.rng.choice(
            ("RECLAIM",) * 6
            + ("LAUNCH_UPDATE",) * 4
            + ("GCTX_CREATE", "ACTIVATE", "DECOMMISSION", "MD_INIT", "SET_STATE", "UNSMASH")
            + ("MOVE", "MOVE", "SWAP_OUT", "SWAP_OUT", "SWAP_IN", "SWAP_IN")
        )
        if name == "RECLAIM":
            if self.often(0.3):
                pa = self.rng.choice((*CONTEXTS, *METADATA)) << 12
            return [make_op("SNP_PAGE_RECLAIM", pa=pa | size | (2 if self.rare() else 0))]
        if name == "LAUNCH_UPDATE":
            perms = {f"vmpl{n}": self.rng.choice(PERMISSIONS[:7]) if self.often(0.95) else 0xE0 for n in (1, 2, 3)}
            kind = self.rng.choice((1, 1, 2, 3, 4, 5, 6, 0, 7))
            return [make_op("SNP_LAUNCH_UPDATE", gctx=self.context(), pa=pa, size=size, type=kind, **perms)]
        if name == "GCTX_CREATE":
            return [make_op("SNP_GCTX_CREATE", gctx=self.context())]
        if name == "ACTIVATE":
            return [make_op("SNP_ACTIVATE", gctx=self.context(), asid=asid)]
        if name == "DECOMMISSION":
            return [make_op("SNP_DECOMMISSION", gctx=self.context())] if self.often(0.3) else []
        if name == "MD_INIT":
            return [make_op("SNP_MD_INIT", gctx=self.context(), pa=self.rng.choice(METADATA) << 12)]
        if name == "SET_STATE":
            return [make_op("SNP_PAGE_SET_STATE", pa=pa, pages=self.rng.choice((0, 1, 512, 1024)))]
        if name == "UNSMASH":
            return [make_op("SNP_PAGE_UNSMASH", pa=pa)]
        if name == "MOVE":
            return [make_op("SNP_PAGE_MOVE", gctx=self.context(), src=pa, dst=other << 12 & U64, size=size)]
        args = {"gctx": self.context(), "src": pa, "dst": other << 12 & U64, "mdata": self.mdata(), "size": size}
        return [make_op(f"SNP_PAGE_{name}", **args)]

    def kernel(self) -> list[Op]:
        pfn = self.mapped()
        level = self.rng.choice((1, 1, 1, 1, 2))
        name = self.rng.choice(
            (
                *("rmp_make_private", "rmp_make_shared", "rmp_make_firmware", "psmash", "rmpupdate", "mark", "reclaim"),
                *("snp_lookup_rmpentry", "dump_rmpentry", "adjust_direct_map"),
            )
        )
        if self.often(0.02):
            return [make_op("snp_leak_pages", pfn=pfn, pages=self.rng.choice((0, 1, 2)))]
        if name == "rmp_make_private":
            args = {"gpa": self.gpa(pfn), "level": level, "asid": 5, "immutable": self.often(0.2)}
            return [make_op(name, pfn=pfn, **args)]
        if name == "rmpupdate":
            asid = 5 * self.often()
            fields = {"gpa": self.gpa(pfn) * (asid > 0), "assigned": int(asid > 0), "size": level - 1, "asid": asid}
            return [make_op(name, pfn=pfn, **fields)]
        if name in ("rmp_make_shared", "rmp_make_firmware", "adjust_direct_map"):
            return [make_op(name, pfn=pfn, level=level)]
        if name == "mark":
            return [make_op("rmp_mark_pages_firmware", pfn=pfn, pages=self.rng.choice((0, 1, 1, 2, 3, 33)))]
        if name == "reclaim":
            return [make_op("snp_reclaim_pages", pfn=pfn, pages=self.rng.choice((0, 1, 1, 2, 3, 33)))]
        return [make_op(name, pfn=pfn)]

    def control(self) -> list[Op]:
        if self.often():
            return [make_op("inject", code=self.rng.choice((0, 3, 4, 4, 255)), count=self.rng.choice((1, 2, 3)))]
        if self.often(0.1):
            return [make_op("SNP_SHUTDOWN", iommu=self.often())]
        return [make_op("SNP_INIT", pfn=self.rng.choice((0, 0x630)), pages=self.rng.choice((0, 0, 3)))]

    def update(self, pfn: int, **args: int) -> Op:
        fields = {"gpa": 0, "assigned": 0, "size": 0, "asid": 0} | args
        return make_op("RMPUPDATE", pa=pfn << 12, **fields)

    def guest_story(self) -> list[Op]:
        """A context that is activated, and some pages that it gets."""
        context = self.rng.choice(CONTEXTS)
        ops = [
            make_op("SNP_INIT"),
            self.update(context, assigned=1, immutable=1),
            make_op("SNP_GCTX_CREATE", gctx=context << 12),
            make_op("SNP_ACTIVATE", gctx=context << 12, asid=self.rng.choice((5, 5, 6))),
        ]
        for pfn in self.rng.sample(self.near, 3):
            ops += [
                self.update(pfn, gpa=pfn << 12, assigned=1, asid=5, immutable=1),
                make_op("SNP_LAUNCH_UPDATE", gctx=context << 12, pa=pfn << 12, size=0, type=self.rng.randrange(1, 7)),
            ]
        return ops

    def reclaim_story(self) -> list[Op]:
        """Pages that become the hypervisor's again, whatever they were."""
        frames = self.rng.sample(self.near, 4)
        return [op for pfn in frames for op in (make_op("SNP_PAGE_RECLAIM", pa=pfn << 12), self.update(pfn))]

    def large_story(self) -> list[Op]:
        """A 2 MiB page of a guest, accepted, and used in pieces or whole."""
        head = self.rng.choice((0x400, 0x600, 0x800))
        gpa = head << 12
        used = [pfn for pfn in (*self.near, *CONTEXTS, *METADATA, 0x630, 0x631, 0x632, 0x640) if pfn & ~0x1FF == head]
        asked = {"gva": gpa, "pa": gpa, "gpa": gpa, "asid": 5, "level": 2}
        page = asked | {"rcx": 1}
        ops = [make_op("SNP_PAGE_RECLAIM", pa=gpa | 1), self.update(head, size=1)]
        ops += [op for pfn in used for op in (make_op("SNP_PAGE_RECLAIM", pa=pfn << 12), self.update(pfn))]
        ops += [
            self.update(head, gpa=gpa, size=1, assigned=1, asid=5),
            make_op("PVALIDATE", rdx=1, **page),
            make_op("RMPADJUST", rdx=self.rng.choice(PERMISSIONS) << 8 | 1, **page),
            make_op(
                "RMPQUERY", rdx=self.rng.randrange(self.vmpls), **{name: page[name] for name in page if name != "rcx"}
            ),
        ]
        return [*ops, make_op("PSMASH", pa=gpa)] if self.often(0.3) else ops

    def swap_story(self) -> list[Op]:
        """A page that leaves for a while, or moves."""
        context, metadata = self.rng.choice(CONTEXTS), self.rng.choice(METADATA)
        src, dst = self.rng.sample(self.near, 2)
        ops = [
            self.update(metadata, assigned=1, immutable=1),
            make_op("SNP_MD_INIT", gctx=context << 12, pa=metadata << 12),
            self.update(src, gpa=src << 12, assigned=1, asid=5, immutable=1),
            self.update(dst, gpa=src << 12, assigned=1, asid=5, immutable=1),
        ]
        if self.often():
            return [
                *ops,
                make_op("SNP_PAGE_MOVE", gctx=context << 12, src=src << 12, dst=dst << 12, size=0),
            ]
        spare = {"gctx": context << 12, "mdata": metadata << 12 | self.rng.choice((0, 64)), "size": 0}
        return [
            *ops,
            self.update(0x640, assigned=1, immutable=1),
            make_op("SNP_PAGE_SWAP_OUT", src=src << 12, dst=0x640 << 12, **spare),
            make_op("SNP_PAGE_SWAP_IN", src=0x640 << 12, dst=dst << 12, **spare),
        ]

    def unsmash_story(self) -> list[Op]:
        """A 2 MiB page in pieces, all of them made immutable, and one page again."""
        head = self.rng.choice((0x400, 0x800))
        gpa = head << 12
        fields = {"assigned": 1, "asid": 5}
        return [
            self.update(head, gpa=gpa, size=1, **fields),
            make_op("PVALIDATE", gva=gpa, rcx=1, rdx=1, pa=gpa, gpa=gpa, asid=5, level=2),
            make_op("PSMASH", pa=gpa),
            *(self.update(head + i, gpa=gpa + (i << 12), immutable=1, **fields) for i in range(REGION)),
            make_op("SNP_PAGE_UNSMASH", pa=gpa),
            make_op("SNP_PAGE_RECLAIM", pa=gpa | 1),
            make_op("PSMASH", pa=gpa),
        ]

    def broken(self) -> list[Op]:
        """A record that no machine takes."""
        op = self.rng.choice(self._kinds[:14])()
        field = self.rng.choice(("op", "level", "flags", "id", "gpa", "count", "va", "rcx", "rdx", "mode", "reserved"))
        return [one._replace(**{field: self.rng.choice((1, 2, 20, 0x80, 0xFF))}) for one in op]
