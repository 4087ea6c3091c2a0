"""The native machine: the C core on sparse memory, as a Python class."""

import numpy as np
import numpy.typing as npt

from rmpcore.cpu import Cpu, Executed, Page, Registers
from rmpcore.machine import MemoryRange
from rmpcore.maps import MachineMap
from rmpcore.ops import Op, Result
from rmpcore.state import State

def op_table() -> dict[int, tuple[str, int, int]]:
    """The C core's own list of ops: {code: (name, flag bits, mode bits)}."""

class NativeMachine:
    """A machine on the C core; see rmpcore.machine.MachineLike for what each method does.

    Calls on one machine from several threads wait for each other.
    """

    def __init__(
        self,
        map: MachineMap,
        *,
        kernel: str = "6.12",
        hardware: str = "milan",
        switches: dict[str, int] | None = None,
        policy: str = "upstream",
        state: State | None = None,
    ) -> None: ...
    @property
    def backend(self) -> str: ...
    @property
    def map(self) -> MachineMap: ...
    @property
    def kernel(self) -> str: ...
    @property
    def policy(self) -> str: ...
    def apply(self, op: Op) -> Result: ...
    def run(self, ops: npt.NDArray[np.void]) -> npt.NDArray[np.void]: ...
    def execute(
        self,
        code: bytes,
        registers: Registers,
        cpu: Cpu = ...,
        operand: bytes | None = None,
        page: Page | None = None,
    ) -> Executed: ...
    def state(self) -> State: ...
    def counters(self) -> dict[str, int]: ...
    def census(self) -> dict[str, int]: ...
    def validate(self) -> str | None: ...
    def record_events(self, on: bool) -> None: ...
    def take_events(self) -> npt.NDArray[np.void]: ...
    @property
    def root(self) -> int:
        """Physical address of the direct map's root table: what CR3 holds."""

    def memory(self) -> tuple[MemoryRange, ...]:
        """The machine's memory in place, RAM and RMP, in rising order.

        Bytes written here are written past the library.  Do so while no other thread is in a call on the machine, leave
        the page tables to the ops, and give RMP entries with :meth:`write_rmp`, or :meth:`state` does not know of
        them."""

    def read_rmp(self, pfn: int) -> tuple[int, int]: ...
    def write_rmp(self, pfn: int, lo: int, hi: int) -> None: ...
