"""Native and oracle side by side: one unit from its start to its end, or to the ops after which they differ."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rmpcore.fuzzing.coverage import Coverage, Key
from rmpcore.fuzzing.units import Ops, Unit
from rmpcore.machine import BACKENDS, MachineLike
from rmpcore.ops import EventKind
from rmpcore.start import Start
from rmpcore.state import State

ENTRIES_PER_OP = 500
"""How many entries of the state an op may cost: the larger the state, the more ops between two comparisons."""

Machines = tuple[MachineLike, MachineLike]


def start_of(unit: Unit) -> Start:
    """Where a unit starts: its map is booted, and the kernel's image made read-only where it says so."""
    start = Start(unit.profile, unit.map, unit.rules)
    if not unit.readonly:
        return start
    state = start.machine(start.rules, "oracle").state()
    return dataclasses.replace(start, state=dataclasses.replace(state, kernel_readonly=True))


def machines(start: Start) -> Machines:
    """Native and oracle as they start, with events on."""
    native, oracle = (start.machine(start.rules, backend) for backend in BACKENDS)
    native.record_events(True)
    oracle.record_events(True)
    return native, oracle


def differing_states(pair: Machines) -> tuple[str, State]:
    """What is wrong ("states" that differ, "invariants" that one of the two has broken, ""), and the oracle's state."""
    native, oracle = pair
    state = oracle.state()
    if native.state() != state:
        return "states", state
    return ("" if native.validate() is None and oracle.validate() is None else "invariants"), state


def difference(pair: Machines, ops: Ops) -> str:
    """Do ops in bulk on both: what differs afterwards (results, events, states, invariants), "" if nothing does."""
    mine, theirs = (machine.run(ops) for machine in pair)
    if mine.tobytes() != theirs.tobytes():
        return "results"
    if pair[0].take_events().tobytes() != pair[1].take_events().tobytes():
        return "events"
    return differing_states(pair)[0]


def attempt(start: Start, ops: Ops) -> str:
    """:func:`difference` of these ops from the start."""
    return difference(machines(start), ops)


@dataclass
class Done:
    """A unit, as far as it went."""

    ops: int = 0
    seconds: float = 0.0
    states: int = 0
    """How often the whole states were compared."""
    coverage: dict[Key, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    differs: str = ""
    """What differs after ``ops`` ops, and did not before the last ``since``; "": nothing."""
    since: int = 0


def run_unit(unit: Unit) -> Done:
    """Do a unit.  Results and events are compared chunk by chunk, states the less often the larger they are."""
    started = time.monotonic()
    done, coverage = Done(), Coverage()
    pair = native, oracle = machines(start_of(unit))
    done.differs, state = differing_states(pair)
    kinds: npt.NDArray[np.int64] = np.zeros(max(EventKind) + 1, dtype=np.int64)
    for ops in unit.chunks() if not done.differs else ():
        done.ops += len(ops)
        done.since += len(ops)
        results = coverage.run(native, ops)
        events = native.take_events()
        if results.tobytes() != oracle.run(ops).tobytes():
            done.differs = "results"
        elif events.tobytes() != oracle.take_events().tobytes():
            done.differs = "events"
        elif done.since * ENTRIES_PER_OP >= len(state.leaves) + len(state.rmp):
            done.differs, state = differing_states(pair)
            done.states += 1
            done.since = done.since if done.differs else 0
        kinds += np.bincount(events["kind"], minlength=len(kinds))
        if done.differs:
            break
    if done.since and not done.differs:
        done.differs, _ = differing_states(pair)
        done.states += 1
    done.coverage = coverage.counts
    done.events = {EventKind(kind).name: int(count) for kind, count in enumerate(kinds) if count}
    done.seconds = time.monotonic() - started
    return done
