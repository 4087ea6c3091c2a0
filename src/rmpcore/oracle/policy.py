"""What the host does about its direct map, policy by policy (host §6), and the calls that policies are made of."""

from __future__ import annotations

from rmpcore.oracle.cpa import EFAULT, ChangePageAttributes
from rmpcore.oracle.dmap import DirectMap
from rmpcore.oracle.mem import Memory
from rmpcore.oracle.rmp_insn import FAIL_INUSE, FAIL_OVERLAP, RmpInput
from rmpcore.oracle.rmp_table import REGION, RmpTable

EINVAL = -22
LEVEL_4K = 1
LEVEL_2M = 2


class DirectMapCalls:
    """Kernel functions on the direct map, by frame.  They give 0 or a negative errno."""

    def __init__(self, memory: Memory, dmap: DirectMap, cpa: ChangePageAttributes) -> None:
        self._memory = memory
        self._dmap = dmap
        self._cpa = cpa

    def pfn_valid(self, pfn: int) -> bool:
        return self._memory.pfn_valid(pfn)

    def check(self, pfn: int, level: int) -> int:
        """host §1: what adjust_direct_map() asks of frame and level."""
        if level > LEVEL_2M or not self.pfn_valid(pfn):
            return EINVAL
        if level == LEVEL_2M and (pfn % REGION != 0 or not self.pfn_valid(pfn + REGION - 1)):
            return EINVAL
        return 0

    def adjust_direct_map(self, pfn: int, level: int) -> int:
        """host §1; the same under every policy."""
        errno = self.check(pfn, level)
        # Hardware judges a 1 GiB mapping in 2 MiB pieces: for a 2M page there is nothing to split.
        if errno != 0 or level == LEVEL_2M:
            return errno
        found = self._dmap.lookup(self._dmap.virtual(pfn))
        if found is None or found.raw == 0 or found.level == 1:
            return 0
        return self.set_memory_4k(pfn)

    def set_memory_4k(self, pfn: int) -> int:
        """Of one page."""
        return self._cpa.set_memory_4k([self._dmap.span(pfn, 1)])

    # host §6.2: a page beyond the room of the direct map is -EFAULT.

    def set_memory_np(self, frames: range) -> int:
        return self._cpa.set_memory_np([self._span(frames)]) if self._in_room(frames) else EFAULT

    def set_memory_p(self, frames: range) -> int:
        return self._cpa.set_memory_p([self._span(frames)]) if self._in_room(frames) else EFAULT

    def set_direct_map_invalid_noflush(self, pfn: int) -> int:
        return self._cpa.set_direct_map_invalid_noflush(pfn) if self._in_room(range(pfn, pfn + 1)) else EFAULT

    def set_direct_map_default_noflush(self, pfn: int) -> int:
        return self._cpa.set_direct_map_default_noflush(pfn) if self._in_room(range(pfn, pfn + 1)) else EFAULT

    def restore_large_pages(self, pfn: int, table: RmpTable) -> None:
        """host §6.4, around a frame."""

        def assigned(frames: range) -> bool:
            # Whole 2 MiB regions, so a 2M entry that some of these frames lie in is the own entry of another one.
            return any(table.assigned_in_region(first) for first in range(frames.start, frames.stop, REGION))

        self._cpa.restore_large_pages(pfn, assigned)

    def _span(self, frames: range) -> range:
        return self._dmap.span(frames.start, len(frames))

    def _in_room(self, frames: range) -> bool:
        return self._span(frames).stop <= self._dmap.area.stop


class Policy:
    """`none`: nothing is split; only the checks of frame and level are made.  The others say what they do instead."""

    largest_is_4k = False
    """host §6.1."""
    opens_windows = False
    """host §6.3: KVM reaches the pages that guests share with it by windows."""
    repairs_faults = False
    """host §6.3: there is a fault handler."""
    repeated: int | None = FAIL_OVERLAP
    """host §6.2: RMPUPDATE is executed again while this is its code."""
    complains = True
    """host §6.2: other codes are a complaint, a dump and -EFAULT; if not, they are returned as they are."""

    def __init__(self, calls: DirectMapCalls) -> None:
        self._calls = calls

    def before(self, pfn: int, state: RmpInput) -> int:
        """Before the instruction; a return that is not 0 is that of rmpupdate(), which ends here."""
        return EFAULT if self._calls.check(pfn, level_of(state)) != 0 else 0

    def after(self, pfn: int, state: RmpInput, table: RmpTable) -> int:
        """After the instruction's code 0: the return of rmpupdate()."""
        return 0


class Kmap(Policy):
    """`kmap`: the direct map stays; KVM opens windows."""

    opens_windows = True


class FaultSplit(Policy):
    """`fault-split`: split when the fault comes."""

    repairs_faults = True


class Map4K(Policy):
    """`map-4k`: there is nothing to split."""

    largest_is_4k = True


class Upstream(Policy):
    """`upstream`: adjust_direct_map; an error is -EFAULT."""

    def before(self, pfn: int, state: RmpInput) -> int:
        return EFAULT if self._calls.adjust_direct_map(pfn, level_of(state)) != 0 else 0


class SplitRestore(Upstream):
    """`split-restore`: as upstream, and what is given back becomes large again."""

    def after(self, pfn: int, state: RmpInput, table: RmpTable) -> int:
        if not state.assigned:
            self._calls.restore_large_pages(pfn, table)
        return 0


class RfcV4(Policy):
    """`rfc-v4`: set_memory_4k() for one page, whatever the input's size and direction."""

    repeated = FAIL_INUSE
    complains = False

    def before(self, pfn: int, state: RmpInput) -> int:
        if not self._calls.pfn_valid(pfn):
            return EINVAL
        return self._calls.set_memory_4k(pfn)


class Unmap(Policy):
    """`unmap`: what is assigned leaves the direct map page by page, without a flush, and comes back likewise."""

    repeated = None
    complains = False

    def before(self, pfn: int, state: RmpInput) -> int:
        if not self._calls.pfn_valid(pfn):
            return EINVAL
        if not state.assigned:
            return 0
        for page in pages_of(pfn, state):
            if self._calls.set_direct_map_invalid_noflush(page) != 0:
                self._undo(range(pfn, page))
                return EFAULT
        return 0

    def _undo(self, frames: range) -> None:
        """Up to the first that fails itself."""
        for page in frames:
            if self._calls.set_direct_map_default_noflush(page) != 0:
                return

    def after(self, pfn: int, state: RmpInput, table: RmpTable) -> int:
        if state.assigned:
            return 0
        for page in pages_of(pfn, state):
            if self._calls.set_direct_map_default_noflush(page) != 0:
                return EFAULT
        return 0


class UnmapFlush(Policy):
    """`unmap-flush`: the whole range at once, with flushes; nothing is undone."""

    repeated = None
    complains = False

    def before(self, pfn: int, state: RmpInput) -> int:
        if not self._calls.pfn_valid(pfn):
            return EINVAL
        if not state.assigned:
            return 0
        return EFAULT if self._calls.set_memory_np(pages_of(pfn, state)) != 0 else 0

    def after(self, pfn: int, state: RmpInput, table: RmpTable) -> int:
        if state.assigned:
            return 0
        return EFAULT if self._calls.set_memory_p(pages_of(pfn, state)) != 0 else 0


POLICY: dict[str, type[Policy]] = {
    "none": Policy,
    "rfc-v4": RfcV4,
    "unmap": Unmap,
    "unmap-flush": UnmapFlush,
    "kmap": Kmap,
    "fault-split": FaultSplit,
    "map-4k": Map4K,
    "upstream": Upstream,
    "split-restore": SplitRestore,
}


def level_of(state: RmpInput) -> int:
    """The level that goes with the input's page size."""
    return LEVEL_2M if state.page_size == 1 else LEVEL_4K


def pages_of(pfn: int, state: RmpInput) -> range:
    """host §6.2, "Pages": the 512 from pfn on if the input's size is 2M, else the one."""
    return range(pfn, pfn + (REGION if state.page_size == 1 else 1))
