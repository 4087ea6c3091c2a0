"""What a machine is to the rest of the package: one interface, two implementations.

``Machine(map, backend="native")`` runs on the C core, ``backend="oracle"`` on the slow model in plain
Python that is written from the rules.  Everything above (traces, conformance, tests) uses this
interface and no other.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rmpcore.cpu import Cpu, Executed, Page, Registers
from rmpcore.maps import MachineMap
from rmpcore.ops import Op, Result
from rmpcore.state import State

BACKENDS = ("native", "oracle")
POLICIES = (
    "none",
    "rfc-v4",
    "unmap",
    "unmap-flush",
    "kmap",
    "fault-split",
    "map-4k",
    "upstream",
    "split-restore",
)
"""What the host does about its direct map (docs/host.md, sections 3 and 6)."""


class MachineError(ValueError):
    """A machine that cannot be built: unknown kernel or hardware, an RMP that the kernel would refuse, a
    state that contradicts itself, or no memory for it."""


class RmpError(MachineError):
    """The map's RMP is one that the kernel, or the arithmetic, refuses."""


class MemoryRange(NamedTuple):
    """A range of a native machine's memory."""

    base: int
    """Physical address of the first byte."""
    bytes: npt.NDArray[np.uint8]
    """The bytes themselves, not a copy: they stay the machine's for as long as someone holds the array."""


@runtime_checkable
class MachineLike(Protocol):
    """An op applied to a machine gives a result and a new state."""

    @property
    def backend(self) -> str:
        """The implementation's name, one of :data:`BACKENDS`."""

    @property
    def map(self) -> MachineMap:
        """The memory map that the machine was built from."""

    @property
    def kernel(self) -> str:
        """The kernel profile, as "6.12"."""

    @property
    def policy(self) -> str:
        """What the host does about its direct map, one of :data:`POLICIES`."""

    def apply(self, op: Op) -> Result:
        """Do one op.  Never raises for what an op says: see :class:`rmpcore.ops.Kind`."""

    def run(self, ops: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Do an array of :data:`~rmpcore.ops.OP_DTYPE` records in order; gives as many
        :data:`~rmpcore.ops.RESULT_DTYPE` records.  Raises TypeError for another array."""

    def execute(
        self,
        code: bytes,
        registers: Registers,
        cpu: Cpu = Cpu(),  # noqa: B008 - immutable
        operand: bytes | None = None,
        page: Page | None = None,
    ) -> Executed:
        """Decode one instruction and do it, if it is one of the six (see :mod:`rmpcore.cpu`).

        operand: the 16 bytes where RCX points, for RMPUPDATE; page: what rAX is translated to, for guest instructions;
        None: the translation fails, so the instruction raises #PF.  Raises ValueError for an operand, a VMPL, a level
        or a number that no machine has: registers and addresses have 64 bits, ASIDs 32."""

    def state(self) -> State:
        """Everything that an op can change, as it is now."""

    def counters(self) -> dict[str, int]:
        """The state's counters alone, :data:`rmpcore.state.COUNTERS`, at little cost."""

    def census(self) -> dict[str, int]:
        """What the direct map looks like now, counted by walking it: "4k", "2m", "1g" present leaves of that size, and
        "missing" 4 KiB frames under leaves that are not present.  The high mapping does not count."""

    def validate(self) -> str | None:
        """Check the invariants of the whole direct map; None, or one line that names the first that is broken."""

    def record_events(self, on: bool) -> None:
        """Collect events from now on (off at first).  Turning it off drops what was collected."""

    def take_events(self) -> npt.NDArray[np.void]:
        """The :data:`~rmpcore.ops.EVENT_DTYPE` records collected since the last call, in order."""

    def read_rmp(self, pfn: int) -> tuple[int, int]:
        """The raw RMP entry of a frame as (low, high) quadwords.  IndexError: not covered."""

    def write_rmp(self, pfn: int, lo: int, hi: int) -> None:
        """Store a raw RMP entry unchecked, as firmware or a dump would.  IndexError: not covered."""


def Machine(  # noqa: N802 - reads as the class that it stands for
    map: MachineMap,
    *,
    kernel: str = "6.12",
    hardware: str = "milan",
    backend: str = "native",
    switches: dict[str, int] | None = None,
    policy: str = "upstream",
    state: State | None = None,
) -> MachineLike:
    """Build a machine: boot its direct map from ``map``, or continue from ``state``.

    kernel:   version whose rules hold, "6.1" or later ("6.12", "6.12.95+deb12-amd64")
    hardware: profile of the SNP part: "milan", "genoa" or "turin"
    switches: overrides of single points of the hardware profile (see docs/rmp.md, "Switches")
    policy:   what the host does about its direct map, one of :data:`POLICIES`
    Raises :class:`MachineError`; :class:`~rmpcore.maps.MapError` comes from building the map.
    """
    if policy not in POLICIES:
        raise MachineError(f"no policy {policy!r}: it is one of {', '.join(POLICIES)}")
    if backend == "native":
        from rmpcore._native import NativeMachine

        return NativeMachine(map, kernel=kernel, hardware=hardware, switches=switches, policy=policy, state=state)
    if backend == "oracle":
        from rmpcore.oracle.machine import OracleMachine

        return OracleMachine(map, kernel=kernel, hardware=hardware, switches=switches, policy=policy, state=state)
    raise MachineError(f"unknown backend {backend!r}: it is one of {', '.join(BACKENDS)}")
