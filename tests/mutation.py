"""One change of the C core that breaks one rule (see mutate.py)."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """rule: document and section, and what is broken; tests: files, or file::test."""

    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutation(rule: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(rule, file, old, new, tests)
