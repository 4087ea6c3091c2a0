"""rmpcore: AMD SEV-SNP's Reverse Map Table and the Linux direct map, bit for bit.

An op applied to a machine gives a result and a new state:

>>> import rmpcore
>>> machine = rmpcore.Machine(rmpcore.load_map("examples/maps/dell-r6515-epyc7513-256g-snp.json"))
>>> machine.apply(rmpcore.parse_op("rmp_make_private pfn=0x120000 gpa=0x1000 level=4K asid=5"))
"""

from pathlib import Path

from rmpcore.cpu import Cpu, Executed, Page, Registers
from rmpcore.inputs import load_map
from rmpcore.machine import BACKENDS, POLICIES, Machine, MachineError, MachineLike, MemoryRange, RmpError
from rmpcore.maps import KernelImage, MachineMap, MapError, SegmentedRmp
from rmpcore.ops import (
    EVENT_DTYPE,
    OP_DTYPE,
    OPS,
    RESULT_DTYPE,
    AccessKind,
    Event,
    EventKind,
    Kind,
    Op,
    OpCode,
    OpError,
    OpFlag,
    Reason,
    Refusal,
    Result,
    ResultFlag,
    Who,
    format_op,
    format_result,
    make_op,
    pack_ops,
    parse_op,
)
from rmpcore.page_state import PageState, page_state
from rmpcore.placement import place_rmp
from rmpcore.start import Start, read_start
from rmpcore.state import State, StateError, diff_states, state_from_json, state_to_json

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "EVENT_DTYPE",
    "OPS",
    "OP_DTYPE",
    "POLICIES",
    "RESULT_DTYPE",
    "AccessKind",
    "Cpu",
    "Event",
    "EventKind",
    "Executed",
    "KernelImage",
    "Kind",
    "Machine",
    "MachineError",
    "MachineLike",
    "MachineMap",
    "MapError",
    "MemoryRange",
    "Op",
    "OpCode",
    "OpError",
    "OpFlag",
    "Page",
    "PageState",
    "Reason",
    "Refusal",
    "Registers",
    "Result",
    "ResultFlag",
    "RmpError",
    "SegmentedRmp",
    "Start",
    "State",
    "StateError",
    "Who",
    "diff_states",
    "format_op",
    "format_result",
    "get_include",
    "get_library",
    "load_map",
    "make_op",
    "pack_ops",
    "page_state",
    "parse_op",
    "place_rmp",
    "read_start",
    "state_from_json",
    "state_to_json",
]


def get_include() -> str:
    """The directory to give a C compiler with -I for ``#include <rmpcore/rmpcore.h>``."""
    package = Path(__file__).parent / "include"
    # an editable install leaves the headers where they are in the source tree
    return str(package if package.is_dir() else Path(__file__).parents[2] / "include")


def get_library() -> str:
    """The C core as a static library, to link a C program against; its headers are in :func:`get_include`."""
    return str(Path(__file__).parent / "lib" / "librmpcore.a")
