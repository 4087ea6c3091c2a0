"""What the kernel would log: a machine's events as lines.

The complaints of the SNP layer are worded as in real logs.  Events that the kernel does not log (instructions,
flushes, splits) get a plain line of our own on request.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rmpcore.ops import CODE_NAMES, LEVEL_NAMES, Event, EventKind

_INSTRUCTIONS = (EventKind.RMPUPDATE, EventKind.PSMASH, EventKind.RMPREAD)


def _plain(event: Event) -> str:
    """A line for an event that the kernel does not log."""
    level = LEVEL_NAMES.get(event.level, str(event.level))
    if event.kind in _INSTRUCTIONS:
        text = f"{EventKind(event.kind).name} rax={event.a:#x}"
        if event.kind != EventKind.PSMASH:
            text += f" [{event.b:#018x} - {event.c:#018x}]"
        name = CODE_NAMES.get(event.code)
        return f"{text} = {event.code} {name}" if name else f"{text} = {event.code}"
    if event.kind == EventKind.FLUSH_ALL:
        return "flush all TLBs"
    if event.kind == EventKind.FLUSH_PAGES:
        return f"flush {event.b} pages from {event.a:#x}"
    if event.kind == EventKind.TABLE_ALLOC:
        return f"table for {level} entries at {event.a:#x}"
    if event.kind == EventKind.ALLOC_FAIL:
        return f"no page for a table of {level} entries"
    if event.kind == EventKind.SPLIT:
        return f"split {level} leaf {event.b:#018x} at {event.a:#x} into table {event.c:#x}"
    if event.kind == EventKind.FLUSH_CACHE:
        return f"flush cache lines of {event.b} pages from {event.a:#x}"
    if event.kind == EventKind.FLUSH_CACHE_ALL:
        return "flush all caches"
    if event.kind == EventKind.W_AND_X:
        return f"{level} entry at {event.a:#x} is writable and executable: flags {event.b:#018x} -> {event.c:#018x}"
    if event.kind == EventKind.COLLAPSE:
        return f"collapse table {event.c:#x} into {level} leaf {event.b:#018x} at {event.a:#x}"
    if event.kind == EventKind.TABLE_FREE:
        return f"table at {event.a:#x} given back"
    return f"event {event.kind}"


def kernel_log(events: npt.NDArray[np.void], plain: bool = False) -> Iterator[str]:
    """The lines that the kernel would log for these events; with ``plain``, a line for every other event too."""
    region: tuple[int, int] | None = None
    for record in events.tolist():
        event = Event(*record)
        if event.kind == EventKind.DUMP_ENTRY:
            # A region's entries come in rising order and hold every assigned one, so a PFN that does not rise
            # is the next dump, of one assigned entry.
            if region is not None and region[0] <= event.a < region[1]:
                yield f"SEV-SNP: PFN: {event.a:#x}, [{event.b:#018x} - {event.c:#018x}]"
                region = (event.a + 1, region[1])
                continue
            yield f"SEV-SNP: PFN {event.a:#x}, RMP entry: [{event.b:#018x} - {event.c:#018x}]"
        region = None
        if event.kind == EventKind.RMPUPDATE_FAILED:
            yield f"SEV-SNP: RMPUPDATE failed for PFN {event.a:x}, pg_level: {event.level}, ret: {event.code}"
        elif event.kind == EventKind.DUMP_REGION:
            region = (event.b, event.c)
            yield (
                f"SEV-SNP: PFN {event.a:#x} unassigned, dumping non-zero entries in 2M PFN region: "
                f"[{event.b:#x} - {event.c:#x}]"
            )
        elif event.kind == EventKind.DUMP_ERROR:
            yield f"SEV-SNP: Failed to read RMP entry for PFN {event.a:#x}, error {event.code}"
        elif event.kind == EventKind.LEAK:
            yield f"SEV-SNP: Leaking PFN range {event.a:#x}-{event.a + event.b:#x}"
        elif plain and event.kind != EventKind.DUMP_ENTRY:
            yield _plain(event)
