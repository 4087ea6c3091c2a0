"""Where a machine starts: a map to boot, a state of a recording, or a state dump; and the dump's form.

A dump holds all that goes on: the map, kernel and hardware of the machine, and its state.  What holds in a dump may
be said again by whoever continues from it, but not otherwise: another kernel or another map would be another
machine.  A recording's state may be continued with any kernel's rules.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from rmpcore.inputs import (
    RECORDING_FORMAT,
    STATE_FORMAT,
    Node,
    check_format,
    dumped_map,
    is_json,
    map_from_lines,
    map_from_node,
    map_to_json,
    parse_json,
    read_text,
    recording_map,
)
from rmpcore.machine import Machine, MachineError, MachineLike, RmpError
from rmpcore.maps import MachineMap, MapError
from rmpcore.proc import kernel_version
from rmpcore.recording import RECORDED_STATES, recorded_state
from rmpcore.state import State, StateError, read_state, state_to_json

KERNEL = "6.12"
HARDWARE = "milan"
POLICY = "upstream"
"""What holds where nothing else is said."""


@dataclass(frozen=True)
class Rules:
    """Whose rules hold; None: nothing is said."""

    kernel: str | None = None
    hardware: str | None = None
    switches: dict[str, int] = field(default_factory=dict)
    policy: str | None = None


@dataclass(frozen=True)
class Start:
    """Where a machine starts."""

    source: str
    map: MachineMap
    rules: Rules = Rules()
    state: State | None = None
    """None: the map is booted."""
    what: str = "boot"
    """boot; before, after and boot of a recording; dump."""

    def settle(self, wanted: Rules) -> Rules:
        """The rules that hold: what is wanted, then what the file says, then the defaults.

        Raises :class:`StateError` where something else than a dump's own rules is wanted."""
        mine = self.rules
        if self.what == "dump":
            if wanted.kernel is not None and kernel_version(wanted.kernel) != kernel_version(mine.kernel or ""):
                self._disagree(f"kernel {mine.kernel}", wanted.kernel)
            if wanted.hardware not in (None, mine.hardware):
                self._disagree(f"hardware {mine.hardware}", wanted.hardware)
            if wanted.policy not in (None, mine.policy):
                self._disagree(f"policy {mine.policy}", wanted.policy)
            for name, value in wanted.switches.items():
                if mine.switches.get(name) != value:
                    self._disagree(f"switch {name}={mine.switches.get(name, 'default')}", str(value))
        return Rules(
            wanted.kernel or mine.kernel or KERNEL,
            wanted.hardware or mine.hardware or HARDWARE,
            mine.switches | wanted.switches,
            wanted.policy or mine.policy or POLICY,
        )

    def _disagree(self, mine: str, wanted: str | None) -> None:
        raise StateError(f"{self.source}: the state is of a machine with {mine}, not {wanted}")

    def require_map(self, other: MachineMap) -> None:
        """Refuse a dump's continuation on another map (names do not count)."""
        for part in fields(MachineMap):
            if part.name in ("name", "source"):
                continue
            if getattr(self.map, part.name) != getattr(other, part.name):
                raise StateError(
                    f"{self.source}: the state is of another map than {other.source} ({part.name} differs)"
                )

    def machine(self, rules: Rules, backend: str) -> MachineLike:
        """Build the machine.  Raises MachineError with the file's name where the file is to blame."""
        try:
            return Machine(
                self.map,
                kernel=rules.kernel or KERNEL,
                hardware=rules.hardware or HARDWARE,
                backend=backend,
                switches=rules.switches,
                policy=rules.policy or POLICY,
                state=self.state,
            )
        except RmpError as e:
            raise MachineError(f"{self.map.source}: {e}") from None
        except MachineError as e:
            raise MachineError(f"{self.source}: {e}" if self.state is not None else str(e)) from None


def _read_dump(node: Node) -> Start:
    check_format(node, STATE_FORMAT)
    switches = {name: node["switches"][name].integer() for name in node["switches"].names()}
    rules = Rules(node["kernel"].text(), node["hardware"].text(), switches, node["policy"].text())
    return Start(node.source, dumped_map(node["map"]), rules, read_state(node["state"]), "dump")


def _read_recording(node: Node, which: str | None, rmp: bool) -> Start:
    rules = Rules(node["kernel"].text())
    machine_map = recording_map(node, rmp)
    if which is None:
        return Start(node.source, machine_map, rules)
    return Start(node.source, machine_map, rules, recorded_state(node[which], machine_map), which)


def read_start(
    path: str | os.PathLike[str], which: str | None = None, *, resume: bool = True, rmp: bool = False
) -> Start:
    """Where a machine starts that a file describes.

    A map is booted, and a dump continued from its state (booted too unless ``resume``).  A recording is booted, or
    continued from its state ``which``; with ``rmp`` it gets an RMP, so that SNP ops work, even if no SNP calls were
    recorded.  Raises :class:`~rmpcore.maps.MapError` or :class:`StateError`."""
    source = os.fspath(path)
    text = read_text(path, MapError)
    node = parse_json(text, source, MapError) if is_json(text) else None
    kind = node["format"].value if node is not None else None
    if which is not None and kind != RECORDING_FORMAT:
        raise MapError(f"{source}: is not a recording: {', '.join(RECORDED_STATES)} are states of recordings")
    if node is None:
        return Start(source, map_from_lines(text, source))
    if kind == STATE_FORMAT and resume:
        return _read_dump(Node(node.value, source, StateError))
    if kind == RECORDING_FORMAT:
        return _read_recording(node, which, rmp)
    return Start(source, map_from_node(node))


def dump_to_json(machine: MachineLike, rules: Rules, state: State) -> dict[str, object]:
    """A state dump: the machine as it is now, and all that is needed to go on."""
    return {
        "format": STATE_FORMAT,
        "version": 1,
        "map": map_to_json(machine.map),
        "kernel": machine.kernel,
        "hardware": rules.hardware,
        "switches": rules.switches,
        "policy": machine.policy,
        "state": state_to_json(state),
    }
