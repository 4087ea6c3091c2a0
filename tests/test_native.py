"""The native machine as a Python object: its op list, arguments, threads and memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from machines import SMALL, SNP

import rmpcore
from rmpcore import ops
from rmpcore.machine import Machine


def test_op_list_is_the_same_in_c_and_python() -> None:
    from rmpcore import _native  # not above: a mutation test loads its own after the tests were collected

    assert _native.op_table() == {spec.code: (spec.name, spec.flag_mask, spec.mode_mask) for spec in ops.OPS}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.uint8),
        np.zeros((2, 2), ops.OP_DTYPE),
        np.zeros(3, ops.RESULT_DTYPE),
        [(1, 0, 0, 0, 0, 0, 0)],
        None,
    ],
)
def test_run_takes_op_records_only(array: object) -> None:
    machine = Machine(SMALL)
    with pytest.raises(TypeError):
        machine.run(array)  # type: ignore[arg-type]


def test_run_takes_strided_and_empty_arrays() -> None:
    machine = Machine(SMALL)
    array = ops.pack_ops([ops.make_op("lookup", pfn=pfn) for pfn in range(8)])
    assert (machine.run(array[::2]) == machine.run(array)[::2]).all()
    assert len(machine.run(array[:0])) == 0


@pytest.mark.parametrize(
    "op",
    [
        *((), (1, 2), (1,) * 11, (1,) * 13, [1, *(0,) * 10], None, 1),
        *((1 << 16, *(0,) * 11), (1, *(0,) * 3, -1, *(0,) * 7), (1, *(0,) * 3, 1 << 64, *(0,) * 7), ("a",) * 12),
    ],
)
def test_apply_refuses_what_is_no_op(op: object) -> None:
    machine = Machine(SMALL)
    before = machine.state()
    with pytest.raises((TypeError, ValueError, OverflowError)):
        machine.apply(op)  # type: ignore[arg-type]
    assert machine.state() == before


def test_apply_takes_any_sequence_of_an_ops_fields() -> None:
    op = ops.make_op("lookup", pfn=0x300)
    results = [Machine(SMALL).apply(form) for form in (op, tuple(op), list(op))]  # type: ignore[arg-type]
    assert results[0] == results[1] == results[2] and isinstance(results[0], ops.Result)
    assert results[0].value and results[0]._asdict().keys() == set(ops.Result._fields)


def test_threads_share_a_machine() -> None:
    """Each call is whole: 4 threads toggling the same region leave a state that one thread could leave."""
    machine = Machine(SNP)
    base = 0x1000
    assign = [ops.make_op("rmp_make_private", pfn=base + i, gpa=0, level=1, asid=1) for i in range(64)]
    free = [ops.make_op("rmp_make_shared", pfn=base + i, level=1) for i in range(64)]
    batch = ops.pack_ops(assign + free)
    failed = []

    def work() -> None:
        for _ in range(50):
            if machine.run(batch)["ret"].any():
                failed.append(1)
            machine.state()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert machine.state().counters["rmpupdate"] == 4 * 50 * len(batch)


def test_single_calls_wait_for_arrays_of_ops() -> None:
    """Ops one by one beside arrays of them, which run without the GIL: each is counted."""
    machine = Machine(SNP)
    assign = ops.make_op("rmp_make_private", pfn=0x1000, gpa=0, level=1, asid=1)
    free = ops.make_op("rmp_make_shared", pfn=0x1000, level=1)
    batch = ops.pack_ops([assign, free] * 20_000)
    arrays = 10
    single = 0
    started = threading.Event()

    def work() -> None:
        started.set()
        for _ in range(arrays):
            machine.run(batch)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    while thread.is_alive() or not single:
        machine.apply(free)
        single += 1
    thread.join()
    assert machine.counters()["rmpupdate"] == arrays * len(batch) + single


def test_no_address_space_is_one_clear_error() -> None:
    """A machine larger than a process's address space is refused, not crashed on."""
    limit = rmpcore.maps.PHYSICAL_LIMIT
    huge = rmpcore.MachineMap(
        name="huge",
        e820=((0, limit, 1),),
        memory=((0, limit),),
        reserved=(),
        max_pfn=limit >> 12,
        levels=5,
        page_offset=rmpcore.maps.PAGE_OFFSETS[5],
    )
    with pytest.raises(rmpcore.MachineError, match="no address space"):
        Machine(huge)
