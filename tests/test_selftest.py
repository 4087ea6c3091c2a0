"""The self-test: it passes on real maps, and every kind of fault that it is for makes it fail."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import GIB, HOLE, IMAGE, PC, SMALL, SMALL_CBIT, SMALL_LA57, TINY_4K, Host, changed, with_leaves

from rmpcore.inputs import load_map
from rmpcore.machine import BACKENDS, Machine, MachineLike
from rmpcore.maps import MachineMap
from rmpcore.ops import BY_CODE, RESULT_DTYPE, Flavour, Op, OpCode, Result
from rmpcore.selftest import MARK, SelfTest, Spot, agreement, choose_spots, selftest, sums
from rmpcore.state import State

ROOT = Path(__file__).parents[1]
MAPS = {"small": SMALL, "small pages": TINY_4K, "pc": PC, "hole": HOLE, "image": IMAGE, "five levels": SMALL_LA57}
MAPS["c-bit"] = SMALL_CBIT


@pytest.mark.parametrize("name", MAPS)
def test_both_machines_pass_alike(name: str) -> None:
    """Small maps: every shape of direct map that the rules tell apart."""
    results = [selftest(Machine(MAPS[name], kernel="7.3", backend=backend), 45, 3) for backend in BACKENDS]
    for result in results:
        assert result.failures == []
        assert result.spots == {"range": 15, "array": 15, "pages": 15}
        assert result.pages > 500
    assert agreement(results) is None
    assert results[0].digests[0] != results[0].digests[1]


@pytest.mark.parametrize(
    "path",
    [
        "examples/maps/synthetic-6t.json",
        "examples/maps/dell-r7625-epyc9754-768g.json",
        "tests/data/machines/alienware-m18-ryzen7845hx-64g.json",
        "tests/data/golden/6.12_q35-holes-3g_boot.json",
        "tests/data/golden/7.3_pc-8g-la57_kimg.json",
        "tests/data/golden/6.1_pc-1g_boot.json",
    ],
)
def test_real_maps_pass(path: str, backend: str) -> None:
    result = selftest(Machine(load_map(ROOT / path), backend=backend), 30, 1)
    assert result.failures == []
    assert result.passed
    assert sum(result.spots.values()) == 30


def test_same_seed_same_spots() -> None:
    machine = Machine(HOLE)
    spots = [choose_spots(machine, 30, random.Random(seed)) for seed in (5, 5, 6)]
    assert spots[0] == spots[1] != spots[2]


def test_spots_are_of_three_flavours_and_apart() -> None:
    spots = choose_spots(Machine(HOLE), 60, random.Random(1))
    assert [spot.flavour for spot in spots] == [Flavour(i % 3) for i in range(60)]
    pages = [pfn for spot in spots for pfn in spot.pages]
    assert len(pages) == len(set(pages))
    memory = range(3 * GIB >> 12), range(4 * GIB >> 12, 5 * GIB >> 12)
    assert all(pfn in memory[0] or pfn in memory[1] for pfn in pages)
    ranges = [spot.pages for spot in spots if spot.flavour == Flavour.RANGE]
    assert all(pages == tuple(range(pages[0], pages[0] + len(pages))) for pages in ranges)
    assert any(len(pages) > 512 for pages in ranges)


def test_ranges_keep_large_pages_and_arrays_do_not(backend: str) -> None:
    """A range that covers a 2 MiB page exactly leaves it large (direct-map §4.3c); arrays go page by page."""
    result = selftest(Machine(HOLE, backend=backend), 60, 1)
    assert result.passed
    assert result.kept_large > 0
    assert result.kept_large % 512 == 0


def test_sums_of_a_machine_with_a_hole(backend: str) -> None:
    """4 GiB around a 1 GiB hole, in 1 GiB pages; then one page is forced small, which splits two large ones."""
    host = Host(backend, HOLE)
    found = sums(host.state(), 5 * GIB)
    assert (found.sizes, found.missing) == ({"4K": 0, "2M": 0, "1G": 4 * GIB}, GIB)
    host.call("set_memory_4k", pfn=0x40000, pages=1)
    found = sums(host.state(), 5 * GIB)
    assert (found.sizes, found.missing) == ({"4K": 2 << 20, "2M": GIB - (2 << 20), "1G": 3 * GIB}, GIB)


class Faulty:
    """A machine with one fault."""

    backend = "faulty"

    def __init__(self, machine: MachineLike, fault: dict[str, Callable[..., Any]]) -> None:
        self._machine, self._fault = machine, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    def apply(self, op: Op) -> Result:
        if "op" in self._fault:
            op = self._fault["op"](op)
        return self._machine.apply(op)

    def run(self, ops: Any) -> Any:
        results = [tuple(self.apply(Op(*row))) for row in ops.tolist()]
        return np.array(results, dtype=RESULT_DTYPE)

    def state(self) -> State:
        state = self._machine.state()
        return self._fault["state"](state) if "state" in self._fault else state

    def validate(self) -> str | None:
        return self._fault["validate"]() if "validate" in self._fault else self._machine.validate()


def instead(code: OpCode, **fields: Any) -> dict[str, Callable[..., Any]]:
    return {"op": lambda op: op._replace(**fields) if op.op == code else op}


SET, CLEAR = OpCode.change_page_attr_set, OpCode.change_page_attr_clear
FAULTS: dict[str, tuple[dict[str, Callable[..., Any]], str]] = {
    "the mark is not set": (instead(SET, gpa=0), "does not carry the mark"),
    "another mark is set too": (instead(SET, gpa=MARK | 1 << 10), "does not carry the mark"),
    "one page less": (
        {"op": lambda op: op._replace(count=max(op.count - 1, 0)) if op.op == SET else op},
        "does not carry the mark",
    ),
    "the mark stays": (instead(CLEAR, gpa=0), "is not as it was"),
    "more is cleared": (instead(CLEAR, gpa=MARK | 1 << 8), "is not as it was"),
    "the call is refused": (instead(CLEAR, gpa=1 << 20), "= refused BAD_ARGUMENT"),
    "an invariant": ({"validate": lambda: "identity: no"}, "before: identity: no"),
    "a leaf is gone": (
        {
            "state": lambda s: (
                with_leaves(s, {(0, 2, 0x600000): 0}) if s.counters["level2_splits"] and len(s.leaves) > 600 else s
            )
        },
        "during: ",
    ),
    "a leaf too many": ({"state": lambda s: with_leaves(s, {(0, 1, 0x600000): 0x600163})}, "before: 4K, 2M and 1G"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str) -> None:
    fault, words = FAULTS[name]
    result = selftest(Faulty(Machine(SMALL), fault), 12, 1)  # type: ignore[arg-type]
    assert not result.passed
    assert any(words in line for line in result.failures), result.failures
    assert len(result.failures) == min(result.failed, 10)


def test_a_large_page_that_should_be_split_is_found() -> None:
    """A mark on the whole 2 MiB page around a page of an array: the neighbours have it too, unasked."""

    def widen(op: Op) -> Op:
        if op.op == SET and op.level == Flavour.RANGE:
            first, end = op.addr & ~0x1FF, op.addr + op.count + 0x1FF & ~0x1FF
            return op._replace(addr=first, count=end - first)
        return op

    result = selftest(Faulty(Machine(SMALL), {"op": widen}), 12, 1)  # type: ignore[arg-type]
    assert any("is still in a 2M page" in line for line in result.failures), result.failures


def test_machines_that_differ_are_found() -> None:
    one, two = (
        selftest(Machine(SMALL, backend=backend), 6, seed) for backend, seed in zip(BACKENDS, (1, 2), strict=True)
    )
    assert agreement([one, two]) == "native and oracle are not in the same state"
    assert agreement([one]) is None


def test_no_present_page_is_no_test(backend: str) -> None:
    """A machine whose memory is all unmapped by hand has nothing to test, and that is no success."""
    machine = Machine(SMALL, backend=backend)
    empty = changed(machine.state(), leaves=machine.state().leaves[:0])
    result = selftest(Machine(SMALL, backend=backend, state=empty), 3, 1)
    assert result.failures == ["no memory to test: no spot is mapped and present"]


def test_spot_in_words() -> None:
    assert str(Spot(Flavour.ARRAY, (9, 7, 8))) == "array of 3 pages in 0x7-0x9"
    assert [BY_CODE[op.op].name for op in Spot(Flavour.PAGES, (9, 7)).ops("change_page_attr_set")] == [
        "cpa_address",
        "cpa_address",
        "change_page_attr_set",
    ]


def test_of_a_map_that_is_not_ram_at_the_start(backend: str) -> None:
    """Memory only above 16 MiB: the first MiB is mapped all the same (direct-map §2.2)."""
    late: MachineMap = dataclasses.replace(
        SMALL, memory=((16 << 20, 48 << 20),), e820=((16 << 20, 48 << 20, 1),), name="late"
    )
    result: SelfTest = selftest(Machine(late, backend=backend), 9, 1)
    assert result.failures == []
    assert result.sums["before"].missing == 15 << 20
