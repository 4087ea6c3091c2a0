"""Random calls of the host layer that meet each other: few regions, few pages of each, given away and taken back."""

from __future__ import annotations

import random

from rmpcore.maps import DIRECT_MAP_LIMIT, MachineMap
from rmpcore.ops import U64_MAX, Op, make_op

OFFSETS = (0, 1, 2, 0x1F, 0x100, 0x1FF)
"""Pages of a region that are used one by one."""
CHANGES = ("ro", "rw", "nx", "np", "p", "4k", "rox")
CODES = (1, 2, 3, 3, 4, 4, 4, 7, 255)


class HostGenerator:
    """Ops for one machine, which depend on the seed alone."""

    def __init__(self, seed: object, map_: MachineMap) -> None:
        self._rng = random.Random(repr(seed))
        frames = [base + size >> 12 for base, size in map_.memory if size >= 8 << 20]
        self._covers_much = sum(size for _, size in map_.memory) > 1 << 30
        self._top = DIRECT_MAP_LIMIT[map_.levels] >> 12
        end = self._rng.choice(frames) & ~0x1FF
        self._regions = [end - 0x200 * at for at in (1, 2, 2, 4)]
        if self._rng.random() < 0.5:
            # far apart, in large pages of their own
            self._regions = [(frame - 1) & ~0x1FF for frame in frames] + self._regions[:2]
        self._private: set[int] = set()

    def ops(self, count: int) -> list[Op]:
        made: list[Op] = []
        while len(made) < count:
            made += self._some()
        return made

    def first(self) -> list[Op]:
        """What makes the firmware ready, half of the time; seldom where it has a million entries to write."""
        return [make_op("SNP_INIT")] if self._rng.random() < (0.05 if self._covers_much else 0.5) else []

    def _page(self) -> int:
        rng = self._rng
        if self._private and rng.random() < 0.4:
            return rng.choice(sorted(self._private))
        if rng.random() < 0.02:
            return rng.choice((0, 0x3FFF, 0x7FFF, self._top - 1, self._top, 1 << 40, 1 << 52))
        return rng.choice(self._regions) + rng.choice(OFFSETS)

    def _some(self) -> list[Op]:
        rng = self._rng
        pfn = self._page()
        head = pfn & ~0x1FF
        kind = rng.random()
        if kind < 0.22:
            self._private.add(pfn)
            return [self._private_op(pfn, 1)]
        if kind < 0.42:
            self._private.discard(pfn)
            return [make_op("rmp_make_shared", pfn=pfn, level=1)]
        if kind < 0.50:
            return [self._private_op(head if rng.random() < 0.95 else pfn, 2)]
        if kind < 0.56:
            return [make_op("rmp_make_shared", pfn=head, level=2)]
        if kind < 0.60:
            return [make_op("psmash", pfn=head if rng.random() < 0.9 else pfn)]
        if kind < 0.64:
            pages = rng.choice((1, 1, 2, 3))
            if rng.random() < 0.1:
                return [make_op("rmp_make_firmware", pfn=pfn, level=1)]
            return [make_op(rng.choice(("rmp_mark_pages_firmware", "snp_reclaim_pages")), pfn=pfn, pages=pages)]
        if kind < 0.80:
            return [make_op(rng.choice(("host_write", "host_write", "host_read")), pfn=pfn)]
        if kind < 0.88:
            return [make_op(rng.choice(("kvm_write_guest", "kvm_write_guest", "kvm_read_guest")), pfn=pfn)]
        if kind < 0.91:
            return self._give_back()
        if kind < 0.9115:
            return self._region(head)
        return self._behind_its_back(pfn)

    def _private_op(self, pfn: int, level: int) -> Op:
        rng = self._rng
        gpa = rng.choice((0, 0x1000, 0x20_0000))
        immutable = int(rng.random() < 0.05)
        return make_op("rmp_make_private", pfn=pfn, gpa=gpa, level=level, asid=rng.choice((5, 6)), immutable=immutable)

    def _give_back(self) -> list[Op]:
        """All that may be private comes back."""
        pages = sorted(self._private)
        self._private.clear()
        ops = [make_op("rmp_make_shared", pfn=region, level=2) for region in self._regions]
        return ops + [make_op("rmp_make_shared", pfn=pfn, level=1) for pfn in pages]

    def _region(self, head: int) -> list[Op]:
        """A whole region, page by page."""
        order = list(range(head, head + 0x200))
        if self._rng.random() < 0.5:
            order.reverse()
        return [make_op("psmash", pfn=head)] + [make_op("rmp_make_shared", pfn=pfn, level=1) for pfn in order]

    def _behind_its_back(self, pfn: int) -> list[Op]:
        rng = self._rng
        kind = rng.random()
        if kind < 0.30:
            return [make_op("inject", code=rng.choice(CODES), count=rng.choice((1, 1, 2, 5)))]
        if kind < 0.50:
            return [make_op("fail_alloc", skip=rng.randrange(3), count=rng.choice((0, 1, 1, 2)))]
        if kind < 0.80:
            name = f"set_memory_{rng.choice(CHANGES)}"
            return [make_op(name, pfn=pfn, pages=rng.choice((1, 1, 2, 33, 0x200)))]
        if kind < 0.86:
            return [make_op("adjust_direct_map", pfn=pfn, level=rng.choice((1, 1, 2, 3)))]
        if kind < 0.9115:
            size = rng.randrange(2)
            return [make_op("rmpupdate", pfn=pfn, gpa=0, assigned=rng.randrange(2), size=size, asid=rng.choice((0, 5)))]
        if kind < 0.96:
            return [make_op("VMRUN", vmcb=pfn << 12 & U64_MAX, asid=1, plain=1), make_op("host_write", pfn=pfn)]
        return [make_op("VMEXIT", vmcb=pfn << 12 & U64_MAX)]
