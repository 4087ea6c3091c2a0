"""Changing attributes of mapped pages: split, protect, alias (direct-map §4-§6), the calls that do so (§7), and
making large pages of small ones again (§8, and host §6.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rmpcore.maps import PAGE_SIZE, MachineMap
from rmpcore.ops import EventKind
from rmpcore.oracle.dmap import COUNTER, HIGH_MAPPING, SIZE, SLOTS, DirectMap, Found, Table
from rmpcore.oracle.journal import Journal
from rmpcore.oracle.mem import Memory, overlap, round_down, round_up
from rmpcore.oracle.profile import Kernel
from rmpcore.oracle.pte import NOTHING, SPLIT_POINTER, Flags, Pte, drop_protnone, to_large, to_small

ENOMEM = -12
EFAULT = -14
SINGLE_FLUSH_MAX = 33
"""§4.6: more pages than this are not flushed one by one."""
CACHE_BITS: Flags = frozenset({"PWT", "PCD", "PAT"})
JUST_NX: Flags = frozenset({"NX"})

Spans = Sequence[range]
"""The virtual addresses that a call means: one span in the range flavour, in the array flavours one page each."""


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
        return Request(self.set - JUST_NX, self.clear - JUST_NX, self.force_split)

    def is_empty(self) -> bool:
        """Nothing to set, clear or split."""
        return not self.set and not self.clear and not self.force_split


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
    errno: int = 0


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


@dataclass(frozen=True)
class Slot:
    """An entry where it is."""

    table: Table
    index: int
    raw: int


class ChangePageAttributes:
    """The kernel's engine, on one machine's page tables."""

    def __init__(
        self, machine_map: MachineMap, kernel: Kernel, dmap: DirectMap, memory: Memory, journal: Journal
    ) -> None:
        self._supported_mask = machine_map.supported_mask
        self._nx_supported = bool(dmap.format.cut(JUST_NX, machine_map.supported_mask))
        self._gigabyte_pages = machine_map.large_pages == "1G"
        # §1: the cache modes' bits, as flags of a small entry.
        modes = [dmap.format.small_flags(bits) for bits in machine_map.cachemodes]
        _, self._write_combining, self._uncached_minus, *_ = modes
        # §7: what is no longer writable is, from 6.6, no longer dirty either.
        self._writable: Flags = frozenset({"RW", "D"}) if kernel.dirty_leaves_with_rw else frozenset({"RW"})
        # §1: KERNEL_4K, where there is such a mark.
        self._small_mark: Flags = frozenset({"SOFTW3"}) if kernel.marks_kernel_4k else NOTHING
        self._kernel = kernel
        self._dmap = dmap
        self._memory = memory
        self._journal = journal

    # -- §7: entry points ---------------------------------------------------------------------

    def set_memory_ro(self, spans: Spans) -> int:
        return self.change(spans, Request(clear=self._writable))

    def set_memory_rw(self, spans: Spans) -> int:
        return self.change(spans, Request(set=frozenset({"RW"})))

    def set_memory_rox(self, spans: Spans) -> int:
        """From 6.15 a collapse follows what changed something without error."""
        run = self._run(spans, Request(clear=frozenset({"RW", "D", "NX"})))
        if self._kernel.collapses and run.changed and run.errno == 0:
            self._collapse(spans)
        return run.errno

    def set_memory_nx(self, spans: Spans) -> int:
        return self.change(spans, Request(set=JUST_NX))

    def set_memory_x(self, spans: Spans) -> int:
        return self.change(spans, Request(clear=JUST_NX))

    def set_memory_np(self, spans: Spans) -> int:
        return self.change(spans, Request(clear=frozenset({"P"})))

    def set_memory_p(self, spans: Spans) -> int:
        return self.change(spans, Request(set=frozenset({"P"})))

    def set_memory_np_noalias(self, spans: Spans) -> int:
        return self.change(spans, Request(clear=frozenset({"P"})), check_aliases=False)

    def set_memory_4k(self, spans: Spans) -> int:
        """Forced split; from 6.15 the pages are marked to stay small."""
        return self.change(spans, Request(set=self._small_mark, force_split=True))

    def set_memory_global(self, spans: Spans) -> int:
        return self.change(spans, Request(set=frozenset({"G"})))

    def set_memory_nonglobal(self, spans: Spans) -> int:
        return self.change(spans, Request(clear=frozenset({"G"})))

    def set_memory_uc(self, spans: Spans) -> int:
        return self.change(spans, Request(set=self._uncached_minus))

    def set_memory_wc(self, spans: Spans) -> int:
        """Two runs: the second only after a first without error."""
        errno = self.set_memory_uc(spans)
        if errno != 0:
            return errno
        return self.change(spans, Request(set=self._write_combining, clear=CACHE_BITS))

    def set_memory_wb(self, spans: Spans) -> int:
        return self.change(spans, Request(clear=CACHE_BITS))

    def set_memory_encrypted(self, spans: Spans) -> int:
        """Where memory is not encrypted there is no C-bit, so nothing to set."""
        return self.change(spans, Request(set=self._dmap.format.encrypted))

    def set_memory_decrypted(self, spans: Spans) -> int:
        return self.change(spans, Request(clear=self._dmap.format.encrypted))

    def change_page_attr_set(self, spans: Spans, mask: int) -> int:
        """The engine itself; the mask has no bits of a frame."""
        return self.change(spans, Request(set=self._dmap.format.small_flags(mask)))

    def change_page_attr_clear(self, spans: Spans, mask: int) -> int:
        return self.change(spans, Request(clear=self._dmap.format.small_flags(mask)))

    def set_direct_map_invalid_noflush(self, pfn: int, pages: int = 1) -> int:
        """P and RW go, from 6.6 also D."""
        request = Request(clear=self._writable | {"P"})
        return self.change([self._dmap.span(pfn, pages)], request, check_aliases=False, final_flush=False)

    def set_direct_map_default_noflush(self, pfn: int, pages: int = 1) -> int:
        """P and RW come; what else went does not come back."""
        request = Request(set=frozenset({"P", "RW"}))
        return self.change([self._dmap.span(pfn, pages)], request, check_aliases=False, final_flush=False)

    def set_direct_map_valid_noflush(self, pfn: int, pages: int, valid: bool) -> int:
        """One of the two above, for several pages."""
        if valid:
            return self.set_direct_map_default_noflush(pfn, pages)
        return self.set_direct_map_invalid_noflush(pfn, pages)

    # -- §4: changing attributes --------------------------------------------------------------

    def change(self, spans: Spans, request: Request, *, check_aliases: bool = True, final_flush: bool = True) -> int:
        """Change all pages of ``spans``, in order; gives 0 or a negative errno."""
        return self._run(spans, request, check_aliases=check_aliases, final_flush=final_flush).errno

    def _run(self, spans: Spans, request: Request, *, check_aliases: bool = True, final_flush: bool = True) -> Run:
        # Set bits are first cut to the supported mask.
        supported = self._dmap.format.cut(request.set, self._supported_mask)
        request = Request(supported, request.clear, request.force_split)
        primary = True
        if not self._kernel.checks_aliases_of_nx:
            # §10, before 6.2: a change of NX alone checks no aliases, and what checks none is not a primary run.
            primary = check_aliases = check_aliases and request.set | request.clear != JUST_NX
        run = Run(request, primary)
        # Nothing to set, clear or split: touch nothing.
        if request.is_empty():
            return run
        try:
            for span in spans:
                self._walk(run, span.start, len(span) // PAGE_SIZE, check_aliases)
        except CpaError as error:
            run.errno = error.errno
        if final_flush:
            self._flush(run, spans)
        return run

    def _flush(self, run: Run, spans: Spans) -> None:
        """§4.6: nothing when nothing changed; TLBs, then the caches when the set bits hold a cache mode."""
        journal = self._journal
        if not run.changed:
            return
        pages = sum(len(span) // PAGE_SIZE for span in spans)
        if run.errno != 0 or run.touched_aliases or pages > SINGLE_FLUSH_MAX:
            journal.flush_all()
        else:
            for span in spans:
                journal.flush_pages(span.start, len(span) // PAGE_SIZE)
        if not run.request.set & CACHE_BITS:
            return
        if run.errno != 0:
            journal.flush_cache_all()
            return
        for span in spans:
            for present in self._present_parts(span):
                journal.flush_cache(present.start, len(present) // PAGE_SIZE)

    def _present_parts(self, span: range) -> Iterator[range]:
        """The parts of a span that are present, each as long as can be."""
        start = virtual = span.start
        while virtual < span.stop:
            found = self._dmap.lookup(virtual)
            size = SIZE[1] if found is None else SIZE[found.level]
            following = min(round_down(virtual, size) + size, span.stop)
            if found is None or "P" not in self._dmap.format.read(found.raw, found.level).flags:
                if start < virtual:
                    yield range(start, virtual)
                start = following
            virtual = following
        if start < virtual:
            yield range(start, virtual)

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
        self._report_w_and_x(found, virtual, entry.flags, flags)
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
        allowed = self._protect_whole(leaf, required)
        self._report_w_and_x(leaf.found, leaf.virtual, leaf.flags, allowed)
        if allowed != required:
            self._split(run, leaf, virtual)
            return None
        # e. Rewrite the large entry.
        leaf.found.table.put(leaf.found.index, self._dmap.format.write(leaf.frame, required))
        run.changed = True
        return done

    def _report_w_and_x(self, found: Found, virtual: int, old: Flags, new: Flags) -> None:
        """The kernel's complaint about what becomes writable and executable.  It prevents nothing."""
        if (old ^ new).isdisjoint({"RW", "NX"}) or "RW" not in new or "NX" in new or not self._nx_supported:
            return
        # The levels above may take away the one or the other.
        if found.rw and not found.nx:
            value = self._dmap.format.value
            self._journal.event(EventKind.W_AND_X, level=found.level, a=virtual, b=value(old), c=value(new))

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
        """§4.4: the kernel's counts move down one level, if there is something to move."""
        counters = self._journal.counters
        if self._is_counted(virtual) and counters[COUNTER[level]] != 0:
            self._move_counts(level, -1)
            counters[f"level{level}_splits"] += 1

    def _move_counts(self, level: int, leaves: int) -> None:
        """So many leaves of ``level`` more, and what they are made of less (or the other way)."""
        counters = self._journal.counters
        for name, change in ((COUNTER[level], leaves), (COUNTER[level - 1], -leaves * SLOTS)):
            # The kernel's counter is an unsigned long.
            counters[name] = (counters[name] + change) % (1 << 64)

    def _is_counted(self, virtual: int) -> bool:
        """§4.4: the kernel counts mapped frames of the direct map and of the kernel image."""
        dmap = self._dmap
        if virtual in dmap.area:
            return dmap.is_mapped((virtual - dmap.page_offset) // PAGE_SIZE)
        return dmap.image is not None and virtual in HIGH_MAPPING and dmap.is_mapped(dmap.image_frame(virtual))

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

    # -- §8: collapse -------------------------------------------------------------------------

    def _collapse(self, spans: Spans) -> None:
        """Each 2 MiB span of the request, its start rounded down; after a success the same one level up."""
        replaced: list[Table] = []
        for span in spans:
            for virtual in range(round_down(span.start, SIZE[2]), span.stop, SIZE[2]):
                for level in (2, 3):
                    table = self._collapse_at(virtual, level)
                    if table is None:
                        break
                    replaced.append(table)
        self._give_back(replaced)

    def _give_back(self, replaced: list[Table]) -> None:
        """One full flush for all; only then are the tables' pages free."""
        if not replaced:
            return
        self._journal.flush_all()
        for table in replaced:
            self._journal.event(EventKind.TABLE_FREE, a=table.address)
            self._dmap.remove_table(table)

    def _collapse_at(self, virtual: int, level: int) -> Table | None:
        """Make a large page of the table under the entry of ``level``; gives the table that it replaces, if it can."""
        # 1 GiB pages have to be in use.
        if level == 3 and not self._gigabyte_pages:
            return None
        # The entry must point to a table.
        entry = self._entry_at(virtual, level)
        if entry is None or not self._dmap.is_table(entry.raw, level):
            return None
        below = self._dmap.below(entry.raw)
        first = self._uniform(below)
        # Not where small pages are marked to stay small.
        if first is None or (level == 2 and "SOFTW3" in first.flags):
            return None
        return self._replace_by_leaf(entry, virtual, first)

    def _entry_at(self, virtual: int, level: int) -> Slot | None:
        """The entry of one level on the way to an address, if the way gets there."""
        table = self._dmap.table_for(virtual, level)
        if table is None:
            return None
        index = table.index(virtual)
        return Slot(table, index, table.get(index))

    def _uniform(self, table: Table, aside: Flags = NOTHING) -> Pte | None:
        """The first entry of a table that maps what one large page could map; flags set aside do not count."""
        pages_each = SIZE[table.level] // PAGE_SIZE
        read = self._dmap.format.read
        frame, flags = read(table.get(0), table.level)
        first = Pte(frame, flags - aside)
        # The frame has to be aligned to the large page.
        if first.frame % (SLOTS * pages_each) != 0:
            return None
        # All present, 2 MiB entries also leaves, with the same flags and consecutive frames.
        if "P" not in first.flags or (table.level == 2 and "PSE" not in first.flags):
            return None
        for i in range(1, SLOTS):
            frame, flags = read(table.get(i), table.level)
            if Pte(frame, flags - aside) != Pte(first.frame + i * pages_each, first.flags):
                return None
        return first

    def _replace_by_leaf(self, entry: Slot, virtual: int, first: Pte) -> Table:
        """A leaf like the first entry of the table takes the table's place; gives the table."""
        dmap, level = self._dmap, entry.table.level
        below = dmap.below(entry.raw)
        # A 2 MiB leaf takes the flags in large form, with PSE; those of a 1 GiB leaf have it already.
        flags = to_large(first.flags) | {"PSE"} if level == 2 else first.flags
        leaf = dmap.format.write(first.frame, flags)
        entry.table.put(entry.index, leaf)
        start = round_down(virtual, SIZE[level])
        self._count_collapse(start, level)
        self._journal.event(EventKind.COLLAPSE, level=level, a=start, b=leaf, c=below.address)
        return below

    def _count_collapse(self, virtual: int, level: int) -> None:
        """The counts of a split move back."""
        if self._is_counted(virtual):
            self._move_counts(level, +1)
            self._journal.counters[f"level{level}_collapses"] += 1

    # -- host §6.4: split-restore -------------------------------------------------------------

    def restore_large_pages(self, pfn: int, assigned: Callable[[range], bool]) -> None:
        """Undo the splits around a frame, where ``assigned`` says of none of the pages that it is."""
        replaced: list[Table] = []
        # 1 and 2 are of the 2 MiB, 3 of the 1 GiB.
        for level in (2, 3):
            table = self._restore_at(pfn, level, assigned)
            if table is not None:
                replaced.append(table)
        # 4: flush, then free.
        self._give_back(replaced)

    def _restore_at(self, pfn: int, level: int, assigned: Callable[[range], bool]) -> Table | None:
        """The table that a large page of ``level`` replaces, if it can."""
        dmap = self._dmap
        # 3: the largest page at boot is 1G.
        if level == 3 and not self._gigabyte_pages:
            return None
        # The entry points to a table, by the flags that a split leaves.
        entry = self._entry_at(dmap.virtual(pfn), level)
        if entry is None or dmap.format.read(entry.raw, level).flags != SPLIT_POINTER | dmap.format.encrypted:
            return None
        # All 512 fit together.  KERNEL_4K counts for nothing in small pages.  (3: while the 2 MiB of the frame are in
        # small pages, their entry is none with PSE.)
        aside = self._small_mark if level == 2 else NOTHING
        first = self._uniform(dmap.below(entry.raw), aside)
        if first is None:
            return None
        # No page is assigned.
        pages = SIZE[level] // PAGE_SIZE
        start = round_down(pfn, pages)
        if assigned(range(start, start + pages)):
            return None
        return self._replace_by_leaf(entry, dmap.virtual(pfn), first)
