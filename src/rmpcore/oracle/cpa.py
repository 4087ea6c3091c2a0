"""Changing attributes of mapped pages: split, protect, alias (direct-map §4-§6), and the calls that do so (§7)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from rmpcore.maps import PAGE_SIZE, MachineMap
from rmpcore.ops import EventKind
from rmpcore.oracle.dmap import COUNTER, HIGH_MAPPING, SIZE, SLOTS, DirectMap, Found
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import Memory, overlap, round_down, round_up
from rmpcore.oracle.profile import Kernel
from rmpcore.oracle.pte import NOTHING, SPLIT_POINTER, Flags, drop_protnone, to_large, to_small

ENOMEM = -12
EFAULT = -14
SINGLE_FLUSH_MAX = 33
"""§4.6: more pages than this are not flushed one by one."""


class CpaError(Exception):
    """The run stops here; what was done stays done."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


@dataclass(frozen=True)
class Request:
    """What is asked for each page of a range."""

    set: Flags = NOTHING
    clear: Flags = NOTHING
    force_split: bool = False

    def apply(self, flags: Flags) -> Flags:
        """(flags without clear) with set."""
        return flags - self.clear | self.set

    def without_nx(self) -> Request:
        """§6: NX is taken out of both set and clear."""
        return Request(self.set - {"NX"}, self.clear - {"NX"}, self.force_split)


@dataclass
class Run:
    """One walk over a range, and what it did."""

    request: Request
    primary: bool
    enforce: bool = False
    """§4.3a came up: from then on, splits of 2 MiB pages enforce static protections."""
    changed: bool = False
    """Some entry was rewritten: a flush is needed."""
    touched_aliases: bool = False


@dataclass(frozen=True)
class Chunk:
    """Pages that are done: the first one's frame, and how many."""

    frame: int
    pages: int


@dataclass(frozen=True)
class LargeLeaf:
    """A 2 MiB or 1 GiB entry at hand."""

    found: Found
    virtual: int
    frame: int
    flags: Flags

    @property
    def level(self) -> int:
        return self.found.level

    @property
    def pages(self) -> int:
        return SIZE[self.level] // PAGE_SIZE


class ChangePageAttributes:
    """The kernel's engine, on one machine's page tables."""

    def __init__(
        self, machine_map: MachineMap, kernel: Kernel, dmap: DirectMap, memory: Memory, journal: Journal
    ) -> None:
        self._supported_mask = machine_map.supported_mask
        self._kernel = kernel
        self._dmap = dmap
        self._memory = memory
        self._journal = journal

    # -- §7: entry points ---------------------------------------------------------------------

    def set_memory_4k(self, pfn: int, pages: int) -> int:
        """Forced split; from 6.15 the pages are marked to stay small."""
        mark = frozenset({"SOFTW3"}) if self._kernel.marks_kernel_4k else NOTHING
        return self.change(self._dmap.virtual(pfn), pages, Request(set=mark, force_split=True))

    def set_direct_map_invalid_noflush(self, pfn: int, pages: int = 1) -> int:
        """P and RW go, from 6.6 also D."""
        clear = frozenset({"P", "RW", "D"}) if self._kernel.dirty_leaves_with_rw else frozenset({"P", "RW"})
        return self.change(self._dmap.virtual(pfn), pages, Request(clear=clear), check_aliases=False, final_flush=False)

    def set_direct_map_default_noflush(self, pfn: int, pages: int = 1) -> int:
        """P and RW come; what else went does not come back."""
        request = Request(set=frozenset({"P", "RW"}))
        return self.change(self._dmap.virtual(pfn), pages, request, check_aliases=False, final_flush=False)

    def set_direct_map_valid_noflush(self, pfn: int, pages: int, valid: bool) -> int:
        """One of the two above, for several pages."""
        if valid:
            return self.set_direct_map_default_noflush(pfn, pages)
        return self.set_direct_map_invalid_noflush(pfn, pages)

    # -- §4: changing attributes --------------------------------------------------------------

    def change(
        self, start: int, pages: int, request: Request, *, check_aliases: bool = True, final_flush: bool = True
    ) -> int:
        """Change ``pages`` pages from virtual address ``start``; gives 0 or a negative errno."""
        # Set bits are first cut to the supported mask.
        supported = self._dmap.format.cut(request.set, self._supported_mask)
        request = Request(supported, request.clear, request.force_split)
        # Nothing to set, clear or split: touch nothing.
        if not request.set and not request.clear and not request.force_split:
            return 0
        run = Run(request, primary=True)
        errno = 0
        try:
            self._walk(run, start, pages, check_aliases)
        except CpaError as error:
            errno = error.errno
        if final_flush:
            self._flush(run, start, pages, errno)
        return errno

    def _flush(self, run: Run, start: int, pages: int, errno: int) -> None:
        """§4.6."""
        if not run.changed:
            return
        if errno != 0 or run.touched_aliases or pages > SINGLE_FLUSH_MAX:
            self._journal.flush_all()
        else:
            self._journal.flush_pages(start, pages)

    def _walk(self, run: Run, start: int, pages: int, check_aliases: bool) -> None:
        """Loop until the pages are used up."""
        virtual, left = start, pages
        while left > 0:
            chunk = self._change_at(run, virtual, left)
            # §4.5: after each chunk of a primary run with alias checking.
            if run.primary and check_aliases:
                self._change_aliases(run, virtual, chunk)
            virtual += chunk.pages * PAGE_SIZE
            left -= chunk.pages

    def _change_at(self, run: Run, virtual: int, left: int) -> Chunk:
        """The pages at ``virtual`` that one step can do."""
        while True:
            # §4.1: look up.
            found = self._dmap.lookup(virtual)
            if found is None or found.raw == 0:
                return self._hole(run, virtual)
            # §4.2: a small page.
            if found.level == 1:
                return self._change_small(run, virtual, found)
            # §4.3: a large page.
            entry = self._dmap.format.read(found.raw, found.level)
            leaf = LargeLeaf(found, round_down(virtual, SIZE[found.level]), entry.frame, entry.flags)
            if run.request.force_split:
                self._split(run, leaf, virtual)
                continue
            chunk = self._change_large(run, leaf, virtual, left)
            if chunk is not None:
                return chunk

    def _hole(self, run: Run, virtual: int) -> Chunk:
        """§4.1: nothing there."""
        dmap = self._dmap
        frame = (virtual - dmap.page_offset) // PAGE_SIZE
        if not run.primary or virtual in self._direct_map_in_use():
            return Chunk(frame, 1)
        raise CpaError(EFAULT)

    def _direct_map_in_use(self) -> range:
        """[PAGE_OFFSET, PAGE_OFFSET + max_pfn_mapped pages)."""
        return range(self._dmap.page_offset, self._dmap.virtual(self._dmap.max_pfn_mapped))

    def _change_small(self, run: Run, virtual: int, found: Found) -> Chunk:
        """§4.2: apply, then static protections, then drop G if P is gone.  Write if the value differs."""
        entry = self._dmap.format.read(found.raw, 1)
        flags = self._protect(run.request.apply(entry.flags), virtual, entry.frame, 1, whole_large_page=False)
        self._write(run, found, entry.frame, drop_protnone(flags))
        return Chunk(entry.frame, 1)

    def _change_large(self, run: Run, leaf: LargeLeaf, virtual: int, left: int) -> Chunk | None:
        """§4.3, not forced; None: the page was split and has to be looked up again."""
        inside = (virtual - leaf.virtual) // PAGE_SIZE
        pages = min(left, leaf.pages - inside)
        done = Chunk(leaf.frame + inside, pages)
        # Required flags: to small form, apply, back to large form, no G without P, PSE with P.
        required = drop_protnone(to_large(run.request.apply(to_small(leaf.flags))))
        if "P" in required:
            required |= {"PSE"}
        # a. The existing flags violate static protections.
        if self._protect_whole(leaf, leaf.flags) != leaf.flags:
            run.enforce = True
            self._split(run, leaf, virtual)
            return None
        # b. Nothing to do.
        if required == leaf.flags:
            return done
        # c. The request does not cover exactly this large page.
        if pages != leaf.pages:
            self._split(run, leaf, virtual)
            return None
        # d. Static protections would alter the required flags.
        if self._protect_whole(leaf, required) != required:
            self._split(run, leaf, virtual)
            return None
        # e. Rewrite the large entry.
        leaf.found.table.put(leaf.found.index, self._dmap.format.write(leaf.frame, required))
        run.changed = True
        return done

    def _write(self, run: Run, found: Found, frame: int, flags: Flags) -> None:
        raw = self._dmap.format.write(frame, flags)
        if raw != found.raw:
            found.table.put(found.index, raw)
            run.changed = True

    def _split(self, run: Run, leaf: LargeLeaf, virtual: int) -> None:
        """§4.4: a table of 512 smaller entries takes the place of a large one."""
        dmap, journal = self._dmap, self._journal
        level = leaf.level
        address = self._memory.allocate()
        if address is None:
            journal.event(EventKind.ALLOC_FAIL, level=level - 1)
            raise CpaError(ENOMEM)
        journal.event(EventKind.TABLE_ALLOC, level=level - 1, a=address)
        if level == 2:
            flags = to_small(leaf.flags)
        elif "P" in leaf.flags:
            flags = leaf.flags
        else:
            flags = leaf.flags - {"PSE"}
        flags = drop_protnone(flags)
        table = dmap.add_table(address, level - 1)
        frames_each = SIZE[level - 1] // PAGE_SIZE
        for i in range(SLOTS):
            frame = leaf.frame + i * frames_each
            child = flags
            if run.enforce and level == 2:
                # §4.3a.  Of a 1 GiB page the 2 MiB children are judged when the loop looks them up.
                child = self._protect(flags, leaf.virtual + i * PAGE_SIZE, frame, 1, whole_large_page=False)
            table.put(i, dmap.format.write(frame, child))
        self._count_split(virtual, level)
        pointer = dmap.format.write(address // PAGE_SIZE, SPLIT_POINTER | dmap.format.encrypted)
        leaf.found.table.put(leaf.found.index, pointer)
        journal.event(EventKind.SPLIT, level=level, a=leaf.virtual, b=leaf.found.raw, c=address)
        journal.flush_all()

    def _count_split(self, virtual: int, level: int) -> None:
        """§4.4: the kernel's counts, for mapped frames of the direct map and of the kernel image."""
        dmap, counters = self._dmap, self._journal.counters
        if virtual in dmap.area:
            frame = (virtual - dmap.page_offset) // PAGE_SIZE
        elif dmap.image is not None and virtual in HIGH_MAPPING:
            frame = dmap.image_frame(virtual)
        else:
            return
        if dmap.is_mapped(frame) and counters[COUNTER[level]] != 0:
            counters[COUNTER[level]] -= 1
            counters[COUNTER[level - 1]] += SLOTS
            counters[f"level{level}_splits"] += 1

    # -- §5: static protections ---------------------------------------------------------------

    def _protect_whole(self, leaf: LargeLeaf, flags: Flags) -> Flags:
        """Static protections for the whole of a large page."""
        return self._protect(flags, leaf.virtual, leaf.frame, leaf.pages, whole_large_page=True)

    def _protect(self, flags: Flags, virtual: int, frame: int, pages: int, *, whole_large_page: bool) -> Flags:
        """``flags`` without what is forbidden for these pages."""
        dmap = self._dmap
        image = dmap.image
        # Only for flags that keep P.
        if "P" not in flags or image is None:
            return flags
        addresses = range(virtual, virtual + pages * PAGE_SIZE)
        forbidden: set[str] = set()
        # NX on the high kernel mapping of the text.
        if overlap(addresses, range(image.text, image.etext)):
            forbidden.add("NX")
        if dmap.kernel_readonly:
            # RW on the high mapping up to the end of rodata, but not for exactly the whole of a large
            # page, and only while the address is mapped by a large page.
            read_only = range(image.text, round_up(image.end_rodata, SIZE[2]))
            if not whole_large_page and overlap(addresses, read_only) and self._is_large(virtual):
                forbidden.add("RW")
            # RW on the frames of rodata, wherever they are mapped.
            first, end = dmap.image_frame(image.start_rodata), dmap.image_frame(image.end_rodata)
            if overlap(range(frame, frame + pages), range(first, end)):
                forbidden.add("RW")
        return flags - forbidden

    def _is_large(self, virtual: int) -> bool:
        found = self._dmap.lookup(virtual)
        return found is not None and found.level > 1

    # -- §6: aliases --------------------------------------------------------------------------

    def _change_aliases(self, run: Run, virtual: int, chunk: Chunk) -> None:
        """The other places where the frames just changed are mapped; the first one decides for all of them."""
        dmap = self._dmap
        if not dmap.is_mapped(chunk.frame):
            return
        # Primary address outside the direct map: repeat there.
        if virtual not in self._direct_map_in_use():
            self._alias_run(run, dmap.virtual(chunk.frame), chunk.pages)
        # Frame inside the kernel image, primary address outside it: repeat on the high mapping, errors ignored.
        image = dmap.image
        if image is None or virtual in range(image.text, image.brk_end):
            return
        last_byte = round_up(image.brk_end, SIZE[2]) - 1
        if chunk.frame in range(dmap.image_frame(image.text), dmap.image_frame(last_byte) + 1):
            with suppress(CpaError):
                self._alias_run(run, dmap.high_virtual(chunk.frame), chunk.pages)

    def _alias_run(self, run: Run, virtual: int, pages: int) -> None:
        """The same again for other addresses: checks no further aliases, and makes the final flush a full one."""
        run.touched_aliases = True
        alias = Run(run.request.without_nx(), primary=False, enforce=run.enforce)
        self._walk(alias, virtual, pages, check_aliases=False)
