"""What a machine reports beside its state: counters, and events in the order in which they happen."""

from __future__ import annotations

from rmpcore.ops import Event, EventKind, Result
from rmpcore.state import COUNTERS


class Journal:
    """The counters of one machine, and its events while somebody listens."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        """All counters of a State; ``table_pages`` is filled in when a State is made."""
        self.listening = False
        self.events: list[Event] = []

    def event(self, kind: EventKind, *, level: int = 0, code: int = 0, a: int = 0, b: int = 0, c: int = 0) -> None:
        """Something happened; :class:`EventKind` says what the fields are."""
        if self.listening:
            self.events.append(Event(int(kind), level, 0, code, a, b, c))

    def fault(self, address: int, refused: Result) -> None:
        """An access to a physical address was refused."""
        kind, code, value, reason = refused.kind, refused.ret, refused.value, refused.reason
        self.event(EventKind.FAULT, level=kind, code=code, a=address, b=value, c=reason)

    def flush_all(self) -> None:
        """All TLB entries on all CPUs."""
        self.counters["flush_all"] += 1
        self.event(EventKind.FLUSH_ALL)

    def flush_pages(self, virtual: int, pages: int) -> None:
        """``pages`` pages from ``virtual``, one by one, on all CPUs."""
        self.counters["flush_pages"] += pages
        self.event(EventKind.FLUSH_PAGES, a=virtual, b=pages)

    def flush_cache(self, virtual: int, pages: int) -> None:
        """Cache lines of ``pages`` pages from ``virtual``, on all CPUs."""
        self.counters["flush_cache"] += pages
        self.event(EventKind.FLUSH_CACHE, a=virtual, b=pages)

    def flush_cache_all(self) -> None:
        """All caches on all CPUs."""
        self.counters["flush_cache_all"] += 1
        self.event(EventKind.FLUSH_CACHE_ALL)
