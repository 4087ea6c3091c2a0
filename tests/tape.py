"""A tape: seeded ops for many machines, and what is to come of them.

A section is one machine and some ops.  What it gives is kept as digests: of results and events after each chunk, of
the state, the verdict and the census at its end.  Native and oracle have to give the same; then a broken one that
gives anything else has been noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rmpcore.fuzzing.pair import start_of
from rmpcore.fuzzing.units import Plan, Unit

SEED = 1
SHORT = {
    "split": (140, 30),
    "rmp": (24, 4000),
    "guest": (24, 4000),
    "firmware": (24, 4000),
    "host": (54, 60),
    "workload": (18, 2000),
}
"""How many units of each kind of a campaign are on the tape, and how many ops of each: all profiles once or more."""


class Section(NamedTuple):
    name: str
    unit: Unit
    chunks: list[npt.NDArray[np.void]]


def sections() -> Iterator[Section]:
    for kind, (count, ops) in SHORT.items():
        plan = Plan(SEED, profile=f"{kind} ")
        for number in range(count):
            unit = plan.unit(number)._replace(ops=ops)  # type: ignore[attr-defined]
            if "1G" not in unit.profile or kind != "host":  # 4K leaves of whole gibibytes are slow to look at
                yield Section(f"{unit.profile}, {number}", unit, list(unit.chunks()))


def digests(section: Section, backend: str) -> Iterator[str]:
    start = start_of(section.unit)
    made = start.machine(start.rules, backend)
    made.record_events(True)
    for ops in section.chunks:
        seen = hashlib.sha256(made.run(ops).tobytes())
        seen.update(made.take_events().tobytes())
        yield seen.hexdigest()[:16]
    end = [made.state().digest(), made.validate(), made.census(), made.counters()]
    yield hashlib.sha256(json.dumps(end, sort_keys=True).encode()).hexdigest()[:16]


def differs(section: Section, backend: str, expected: list[str]) -> bool:
    """Does it give anything else?  Looks no further than the first difference."""
    return any(mine != theirs for mine, theirs in zip(digests(section, backend), expected, strict=True))
