"""The state: digest, diff, loading, and states that contradict themselves."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import (
    GIB,
    HOLE,
    IMAGE,
    LARGE_LEAF,
    NX,
    PC,
    PSE,
    SMALL,
    SMALL_CBIT,
    SMALL_LA57,
    SMALL_RANDOM,
    SNP,
    SNP_COVERED,
    SNP_HOLE,
    SNP_IMAGE,
    Host,
    P,
    changed,
    continued,
    leaves,
    tables,
    with_leaves,
    with_tables,
)

from rmpcore.fuzzing.dmap_ops import random_trace
from rmpcore.machine import BACKENDS, MachineError
from rmpcore.maps import MachineMap
from rmpcore.ops import pack_ops
from rmpcore.state import (
    COUNTERS,
    RMP_DTYPE,
    State,
    StateError,
    diff_states,
    entries,
    state_from_json,
    state_to_json,
)


def busy(backend: str, map_: MachineMap = SNP_IMAGE, seed: int = 7, length: int = 120, kernel: str = "7.3") -> Host:
    """A machine to which much has happened."""
    host = Host(backend, map_, kernel=kernel)
    host.machine.run(pack_ops(random_trace(seed, length, map_)))
    host.events()
    return host


def rmp_rows(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(list(rows), dtype=RMP_DTYPE)


# digest and diff

BASE_LEAF = 0x400000 | LARGE_LEAF
CHANGES: dict[str, tuple[Callable[[State], State], tuple[str, ...]]] = {
    "leaf value": (
        lambda s: with_leaves(s, {(0, 2, 0x400000): BASE_LEAF & ~NX}),
        ("direct map", "+0x400000", "2M", "pfn 0x400", f"{BASE_LEAF:#018x}", f"{BASE_LEAF & ~NX:#018x}"),
    ),
    "leaf gone": (lambda s: with_leaves(s, {(0, 2, 0x400000): 0}), ("+0x400000", "2M", f"{0:#018x}", "none")),
    "leaf added": (
        lambda s: with_leaves(s, {(0, 3, 7 * GIB): 7 * GIB | LARGE_LEAF}),
        ("1G", "pfn 0x1c0000", f"{7 * GIB | LARGE_LEAF:#018x}"),
    ),
    "high leaf": (
        lambda s: with_leaves(s, {(1, 2, 0x1000000): 0x1000000 | 0x1E1}),
        ("high mapping", "+0x1000000", "2M", f"{0x1000000 | 0x1E1:#018x}", f"{0x1000000 | 0x1E3:#018x}"),
    ),
    "table pointer": (
        lambda s: with_tables(s, {(0, 3, 0): 0x123067}),
        ("direct map", "+0x0", "1G", f"{0x123067:#018x}"),
    ),
    "root": (lambda s: changed(s, root=0x1000), ("root", "0x1000", "0x3fff000")),
    "rmp low": (
        lambda s: changed(s, rmp=rmp_rows((0x201, 5, 0), (0x202, 0, 9))),
        ("RMP", "0x201", f"{1:#018x}", f"{5:#018x}"),
    ),
    "rmp high": (
        lambda s: changed(s, rmp=rmp_rows((0x201, 1, 0), (0x202, 0, 8))),
        ("RMP", "0x202", f"{8:#018x}", f"{9:#018x}"),
    ),
    "rmp gone": (lambda s: changed(s, rmp=rmp_rows((0x202, 0, 9))), ("RMP", "0x201", "empty")),
    "rmp frame": (lambda s: changed(s, rmp=rmp_rows((0x203, 1, 0), (0x202, 0, 9))), ("RMP", "0x203")),
    "mapped": (lambda s: changed(s, mapped=((0, 0x3FFF),)), ("mapped",)),
    "mapped split": (lambda s: changed(s, mapped=((0, 0x1000), (0x1001, 0x4000))), ("mapped",)),
    "max_pfn_mapped": (lambda s: changed(s, max_pfn_mapped=0x4001), ("max_pfn_mapped",)),
    "kernel_readonly": (lambda s: changed(s, kernel_readonly=True), ("kernel_readonly",)),
    "inject": (lambda s: changed(s, inject=((3, 1),)), ("inject",)),
    "inject count": (lambda s: changed(s, inject=((3, 2),)), ("inject",)),
    "inject runs": (lambda s: changed(s, inject=((3, 1), (3, 1))), ("inject",)),
    "addresses": (lambda s: changed(s, addresses=((5, 0),)), ("addresses",)),
    "addresses high": (lambda s: changed(s, addresses=((5, 1),)), ("addresses",)),
    "fail skip": (lambda s: changed(s, fail_alloc=(1, 0)), ("fail_alloc",)),
    "fail count": (lambda s: changed(s, fail_alloc=(0, 1)), ("fail_alloc",)),
} | {
    f"counter {name}": (lambda s, name=name: changed(s, counters={name: s.counters[name] + 1}), ("counter", name))
    for name in COUNTERS
}


def base_state() -> State:
    host = Host("oracle", SNP_IMAGE)
    host.machine.write_rmp(0x201, 1, 0)
    host.machine.write_rmp(0x202, 0, 9)
    return host.state()


def test_digest_tells_each_change() -> None:
    """Each kind of change gives a digest of its own."""
    base = base_state()
    digests = {name: change(base).digest() for name, (change, _) in CHANGES.items()} | {"base": base.digest()}
    for (a, x), (b, y) in itertools.combinations(digests.items(), 2):
        assert x != y, (a, b)


@pytest.mark.parametrize("name", CHANGES)
def test_diff_names_the_change(name: str) -> None:
    """The diff has one or two lines, which say where, at which level, and both raw values."""
    base = base_state()
    change, words = CHANGES[name]
    lines = list(diff_states(base, change(base), "before", "after"))
    assert 1 <= len(lines) <= 2
    for word in words:
        assert word in "\n".join(lines)
    if "counter" not in name and "root" not in name:
        assert any("before" in line and "after" in line for line in lines)
    assert base != change(base)


def test_diff_of_equal_states() -> None:
    """No lines, equal digests, equality; and a state is not equal to something else."""
    one, two = base_state(), base_state()
    assert list(diff_states(one, two)) == []
    assert one.digest() == two.digest()
    assert one == two
    assert one != "state"


def test_counter_in_the_diff_has_both_values() -> None:
    """A counter's line says what each has."""
    base = base_state()
    (line,) = diff_states(base, changed(base, counters={"flush_all": 77}))
    assert "flush_all" in line and "77" in line and "0" in line


# what a state says


def test_state_is_sorted_and_has_no_zeros(backend: str) -> None:
    """Canonical form: by window, level from the top, offset; the RMP by frame; zero entries are not listed."""
    state = busy(backend).state()
    for array in (state.tables, state.leaves):
        rows = [(window, -level, offset) for window, level, offset, _ in array.tolist()]
        assert rows == sorted(set(rows))
        assert all(raw for *_, raw in array.tolist())
    frames = [pfn for pfn, _, _ in state.rmp.tolist()]
    assert frames == sorted(set(frames)) and frames
    assert all(lo or hi for _, lo, hi in state.rmp.tolist())
    assert set(state.counters) == set(COUNTERS)


def test_state_is_a_snapshot(backend: str) -> None:
    """A state does not change when the machine goes on."""
    host = busy(backend)
    state = host.state()
    digest, leaf_bytes = state.digest(), state.leaves.tobytes()
    host.call("set_memory_4k", pfn=0, pages=0x600)
    host.machine.write_rmp(0x777, 1, 2)
    assert state.leaves.tobytes() == leaf_bytes
    assert changed(state).digest() == digest
    assert host.state().digest() != digest


def test_rmp_entry_that_becomes_zero_is_gone(backend: str) -> None:
    """Non-zero entries only: an entry that is stored as zero again leaves the state."""
    host = Host(backend, SNP)
    before = host.state()
    host.machine.write_rmp(0x777, 0, 1)
    assert host.state().rmp.tolist() == [(0x777, 0, 1)]
    host.machine.write_rmp(0x777, 0, 0)
    assert host.state() == before


def test_table_pages_is_the_number_of_tables(backend: str) -> None:
    """table_pages: the root, one for each pointer, and the way to the high mapping (two tables with four levels)."""
    for map_, high_way in ((SNP, 0), (SNP_IMAGE, 2)):
        state = busy(backend, map_).state()
        assert state.counters["table_pages"] == 1 + len(state.tables) + high_way


# loading

MAPS = {
    "snp": SNP,
    "snp image": SNP_IMAGE,
    "snp hole": SNP_HOLE,
    "pc": PC,
    "hole": HOLE,
    "image": IMAGE,
    "five levels": SMALL_LA57,
    "random offset": SMALL_RANDOM,
    "c-bit": SMALL_CBIT,
}


@pytest.mark.parametrize("name", MAPS)
def test_load_gives_the_same_state(backend: str, name: str) -> None:
    """A machine made from a state is in that state."""
    host = busy(backend, MAPS[name])
    state = host.state()
    again = continued(host, state)
    assert list(diff_states(again.state(), state, "loaded", "saved")) == []
    assert again.state() == state
    assert again.events() == []


@pytest.mark.parametrize("name", MAPS)
def test_load_from_the_other_backend(name: str) -> None:
    """States are the same thing to both machines."""
    for mine, other in (BACKENDS, BACKENDS[::-1]):
        state = busy(mine, MAPS[name]).state()
        loaded = Host(other, MAPS[name], kernel="7.3", state=state).state()
        assert list(diff_states(loaded, state, other, mine)) == []


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_continuing_is_going_on(backend: str, name: str, kernel: str) -> None:
    """What follows after loading is what would have followed: results, events, state, table pages too."""
    host = busy(backend, MAPS[name], kernel=kernel)
    other = continued(host, host.state())
    more = pack_ops(random_trace(8, 120, MAPS[name]))
    assert host.machine.run(more).tobytes() == other.machine.run(more).tobytes()
    assert host.events() == other.events()
    assert list(diff_states(host.state(), other.state(), "went on", "continued")) == []


def test_loading_does_not_touch_the_state(backend: str) -> None:
    """The state object may be used again."""
    host = busy(backend)
    state = host.state()
    other = continued(host, state)
    other.call("set_memory_4k", pfn=0, pages=0x600)
    other.machine.write_rmp(0x777, 1, 2)
    assert changed(state).digest() == state.digest()
    assert continued(host, state).state() == state


def test_missing_counters_are_zero(backend: str) -> None:
    """Counters that a state does not have are 0; table_pages is counted anew."""
    state = Host(backend, SNP).state()
    state.counters.clear()
    state.counters["flush_all"] = 3
    state.counters["table_pages"] = 99
    host = Host(backend, SNP, state=state)
    assert host.counters() == dict.fromkeys(COUNTERS, 0) | {"flush_all": 3, "table_pages": 3}


def test_controls_are_loaded(backend: str) -> None:
    """What is left of injected codes and failures goes on to work."""
    first = Host(backend, SNP)
    host = continued(first, changed(first.state(), inject=((3, 1), (0, 1), (1, 2)), fail_alloc=(1, 1)))
    assert [host.update(0x201) for _ in range(5)] == [3, 0, 1, 1, 0]
    assert host.call("set_memory_4k", pfn=0x400, pages=1) == 0
    assert host.call("set_memory_4k", pfn=0x600, pages=1) == -12


def test_empty_table_is_fine(backend: str) -> None:
    """A table page whose entries are all zero contradicts nothing."""
    first = Host(backend, SNP)
    first.call("set_memory_4k", pfn=0x400, pages=1)
    nothing = {(0, 1, at): 0 for at in range(0x400000, 0x600000, 0x1000)}
    host = continued(first, with_leaves(first.state(), nothing))
    assert host.leaf(0x400) == (1, 0)
    assert (2, 0x400000) in tables(host.state())
    assert not any(0x400000 <= at < 0x600000 for _, at in leaves(host.state()))


def test_tables_in_other_frames(backend: str) -> None:
    """Tables may be anywhere in memory; new ones take the highest frame that none of them uses."""
    first = Host(backend, SNP)
    state = changed(with_tables(first.state(), {(0, 3, 0): 0x3FFF000 | 0x067, (0, 4, 0): 0x5000 | 0x067}), root=0x6000)
    host = continued(first, state)
    assert host.leaf(0x400) == (2, BASE_LEAF)
    host.call("set_memory_4k", pfn=0x400, pages=1)
    assert tables(host.state())[2, 0x400000] == 0x3FFE000 | 0x063


@pytest.mark.parametrize("map_", [SNP, SMALL_LA57], ids=["four levels", "five levels"])
def test_bit_7_above_level_3_is_no_pse(backend: str, map_: MachineMap) -> None:
    """direct-map §1: bit 7 is PSE at levels 2 and 3; further up an entry that is present points to a table."""
    first = Host(backend, map_)
    rows = {(0, level, at): raw | PSE for (level, at), raw in tables(first.state()).items() if level > 3}
    assert len(rows) == map_.levels - 3
    state = with_tables(first.state(), rows)
    host = continued(first, state)
    assert host.state() == state
    assert host.machine.validate() is None
    assert host.leaf(0x400) == (2, BASE_LEAF)


# saving


@pytest.mark.parametrize("name", MAPS)
def test_json_gives_the_same_state(backend: str, name: str) -> None:
    """What is written as JSON is read back as it was, through text too."""
    state = busy(backend, MAPS[name]).state()
    state = changed(state, inject=((3, 1), (0, 2)), addresses=((0x400, 0), (0x1000, 1)), fail_alloc=(3, 4))
    again = state_from_json(json.loads(json.dumps(state_to_json(state))))
    assert list(diff_states(again, state, "loaded", "saved")) == []
    assert again == state
    for array in ("tables", "leaves", "rmp"):
        assert getattr(again, array).dtype == getattr(state, array).dtype


def test_json_of_a_machine_without_anything(backend: str) -> None:
    """No leaf, no RMP entry: empty arrays of the right kind."""
    state = Host(backend, SMALL).state()
    empty = changed(state, leaves=state.leaves[:0], tables=state.tables[:0], mapped=(), kernel_readonly=True)
    assert state_from_json(state_to_json(empty)) == empty


def saved() -> dict[str, Any]:
    """A state with something of everything, as JSON values."""
    state = busy("native").state()
    state = changed(state, inject=((3, 1),), addresses=((0x400, 0),), fail_alloc=(1, 1))
    value: dict[str, Any] = json.loads(json.dumps(state_to_json(state)))
    return value


NOT_STATES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a key is missing": (lambda v: v.pop("addresses"), "addresses is missing"),
    "a key too many": (lambda v: v.update(colour=1), "'colour' does not belong here"),
    "a counter is missing": (lambda v: v["counters"].pop("flush_cache"), "counters: flush_cache is missing"),
    "a counter too many": (lambda v: v["counters"].update(x=1), "counters: 'x' does not belong here"),
    "counters is a list": (lambda v: v.update(counters=[]), "counters: is not an object"),
    "a negative counter": (lambda v: v["counters"].update(psmash=-1), "counters.psmash: -0x1 is outside"),
    "true is no number": (lambda v: v.update(max_pfn_mapped=True), "max_pfn_mapped: is not a number"),
    "text that is no number": (lambda v: v.update(root="12"), "root: '12' is not a number in hexadecimal"),
    "root above memory": (lambda v: v.update(root=1 << 52), "root: 0x10000000000000 is outside 0x0..0xfffffffffffff"),
    "read-only": (lambda v: v.update(kernel_set_to_readonly=2), "kernel_set_to_readonly: 0x2 is outside 0x0..0x1"),
    "a range that is empty": (lambda v: v.update(pfn_mapped=[[5, 5]]), "pfn_mapped[0][1]: 0x5 is outside 0x6.."),
    "ranges out of order": (lambda v: v.update(pfn_mapped=[[9, 10], [1, 2]]), "pfn_mapped[1][0]: 0x1 is outside 0xb.."),
    "ranges that touch": (lambda v: v.update(pfn_mapped=[[1, 2], [2, 3]]), "pfn_mapped[1][0]: 0x2 is outside 0x3.."),
    "a table of level 1": (lambda v: v["tables"][0].__setitem__(0, 1), "tables[0][0]: 0x1 is outside 0x2..0x5"),
    "a table entry of zero": (lambda v: v["tables"][0].__setitem__(2, 0), "tables[0][2]: 0x0 is outside 0x1.."),
    "a table twice": (lambda v: v["tables"].append(v["tables"][0]), "tables: the level-4 entry at 0x0 is given twice"),
    "a leaf of level 4": (lambda v: v["leaves"][0].__setitem__(0, 4), "leaves[0][0]: 0x4 is outside 0x1..0x3"),
    "a leaf between slots": (
        lambda v: v["leaves"].append([2, "0x1000", 1, "0x1e3", 0]),
        ": 0x1000 is not the start of a level-2 entry",
    ),
    "a leaf twice": (
        lambda v: v["high_leaves"].append(v["high_leaves"][0]),
        ": the level-2 entry at 0x1200000 is given twice",
    ),
    "a run without tables for it": (
        lambda v: v["leaves"].append([1, "0x0", 1 << 30, "0x163", 4096]),
        "more level-1 entries than the tables have room for",
    ),
    "a run without end": (lambda v: v["leaves"].append([1, "0x0", 1 << 62, "0x163", 4096]), "is outside 0x1.."),
    "a run through zero": (
        lambda v: v["leaves"].append([3, "0x80000000", 2, "0x40000000", -0x40000000]),
        "the run goes through zero",
    ),
    "a high leaf of level 3": (lambda v: v["high_leaves"][0].__setitem__(0, 3), "high_leaves[0][0]: 0x3 is outside"),
    "an RMP run of zeros": (lambda v: v.update(rmp=[["0x1", 2, "0x0", 0, "0x0"]]), "rmp[0]: the run has an entry"),
    "RMP runs out of order": (
        lambda v: v.update(rmp=[["0x5", 2, "0x1", 0, "0x0"], ["0x6", 1, "0x1", 0, "0x0"]]),
        "rmp[1][0]: 0x6 is outside 0x7..",
    ),
    "more RMP entries than can be": (
        lambda v: v.update(rmp=[["0x0", 1 << 40, "0x1", 0, "0x0"]]),
        "rmp[0][1]: more than",
    ),
    "an RMP run past the end": (
        lambda v: v.update(rmp=[["0xffffffffff", 2, "0x1", 0, "0x0"]]),
        "rmp[0][1]: 0x2 is outside 0x1..0x1",
    ),
    "a code": (lambda v: v.update(inject=[[256, 1]]), "inject[0][0]: 0x100 is outside 0x0..0xff"),
    "no code": (lambda v: v.update(inject=[[3, 0]]), "inject[0][1]: 0x0 is outside 0x1.."),
    "too many codes": (lambda v: v.update(inject=[[3, 1]] * 65), "inject: has 65 elements, more than 64"),
    "too many addresses": (
        lambda v: v.update(addresses=[[1, 0]] * 1025),
        "addresses: has 1025 elements, more than 1024",
    ),
    "high": (lambda v: v.update(addresses=[[1, 2]]), "addresses[0][1]: 0x2 is outside 0x0..0x1"),
    "fail_alloc": (lambda v: v.update(fail_alloc=[1]), "fail_alloc: has 1 elements, not 2"),
}


@pytest.mark.parametrize("name", NOT_STATES)
def test_what_is_no_state_is_refused_in_one_line(name: str) -> None:
    change, words = NOT_STATES[name]
    value = saved()
    assert state_from_json(value) is not None
    change(value)
    with pytest.raises(StateError) as caught:
        state_from_json(value, "s.json")
    assert str(caught.value).startswith("s.json: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], 3, "state", {}])
def test_other_values_are_no_states(value: object) -> None:
    with pytest.raises(StateError):
        state_from_json(value)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


@given(data=st.data(), junk=JUNK)
@settings(max_examples=80)
def test_any_other_value_anywhere_is_a_state_or_refused(data: st.DataObject, junk: object) -> None:
    tree = json.loads(saved_once())
    node = tree
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 3)):
            node = node[key]
            continue
        node[key] = junk
        break
    try:
        state = state_from_json(tree)
    except StateError as e:
        assert "\n" not in str(e)
        return
    assert state_from_json(json.loads(json.dumps(state_to_json(state)))) == state


@functools.cache
def saved_once() -> str:
    return json.dumps(saved())


# contradictions


def small_state(backend: str) -> State:
    """SNP_IMAGE with one split 2 MiB page."""
    host = Host(backend, SNP_IMAGE, kernel="6.12")
    host.call("set_memory_4k", pfn=0x400, pages=1)
    return host.state()


def twice(state: State, row: tuple[int, int, int, int]) -> State:
    return changed(state, leaves=entries([*state.leaves.tolist(), row]))


CONTRADICTIONS: dict[str, tuple[Callable[[State], State], str]] = {
    "root between pages": (lambda s: changed(s, root=0x3FFF800), "0x3fff800"),
    "root outside memory": (lambda s: changed(s, root=0x4000000), "0x4000000"),
    "root far outside": (lambda s: changed(s, root=1 << 51), f"{1 << 51:#x}"),
    "table outside memory": (lambda s: with_tables(s, {(0, 2, 0x400000): 0x4000063}), "0x400000"),
    "table is the root": (lambda s: with_tables(s, {(0, 2, 0x400000): s.root | 0x063}), "0x400000"),
    "one frame for two tables": (
        lambda s: with_tables(s, {(0, 2, 0x400000): tables(s)[3, 0] & ~0xFFF | 0x063}),
        "0x",
    ),
    "two pointers to one table": (
        lambda s: with_leaves(
            with_tables(s, {(0, 2, 0x600000): tables(s)[2, 0x400000]}),
            {(0, 2, 0x600000): 0},
        ),
        "0x",
    ),
    "leaves without their table": (lambda s: with_tables(s, {(0, 2, 0x400000): 0}), "0x400000"),
    "table without its parent": (lambda s: with_tables(s, {(0, 3, 0): 0}), "0x"),
    "leaf of another GiB without a table": (
        lambda s: with_leaves(s, {(0, 2, 5 * GIB): 5 * GIB | LARGE_LEAF}),
        "0x1400",
    ),
    "high leaf without its table": (lambda s: with_leaves(s, {(1, 1, 0x1000000): 0x1000163}), "0x1000000"),
    "leaf where a table is": (lambda s: with_leaves(s, {(0, 2, 0x400000): BASE_LEAF}), "0x400000"),
    "leaf twice": (lambda s: twice(s, (0, 2, 0x600000, 0x600000 | LARGE_LEAF)), "0x600000"),
    "pointer without P": (lambda s: with_tables(s, {(0, 2, 0x400000): tables(s)[2, 0x400000] & ~P}), "0x400000"),
    "pointer with PSE": (lambda s: with_tables(s, {(0, 2, 0x400000): tables(s)[2, 0x400000] | PSE}), "0x400000"),
    "pointer with PSE at level 3": (lambda s: with_tables(s, {(0, 3, 0): tables(s)[3, 0] | PSE}), "0x0"),
    "leaf at level 4": (lambda s: with_leaves(s, {(0, 4, 512 * GIB): 512 * GIB | LARGE_LEAF}), f"{512 * GIB:#x}"),
    "present large leaf without PSE": (lambda s: with_leaves(s, {(0, 2, 0x600000): 0x600163}), "0x600000"),
    "present 1G leaf without PSE": (lambda s: with_leaves(s, {(0, 3, 5 * GIB): 5 * GIB | 0x163}), f"{5 * GIB:#x}"),
    "leaf inside a slot": (lambda s: with_leaves(s, {(0, 2, 0x700000): 0x600000 | LARGE_LEAF}), "0x700000"),
    "small leaf inside a slot": (lambda s: with_leaves(s, {(0, 1, 0x400800): 0x400163}), "0x400800"),
    "table inside a slot": (lambda s: with_tables(s, {(0, 2, 0x700000): 0x5063}), "0x700000"),
    "leaf outside the direct map": (lambda s: with_leaves(s, {(0, 3, 1 << 46): LARGE_LEAF}), f"{1 << 46:#x}"),
    "high leaf outside its window": (lambda s: with_leaves(s, {(1, 2, GIB): 0x1E3}), f"{GIB:#x}"),
    "high leaf of level 3": (lambda s: with_leaves(s, {(1, 3, 0): 0x1E3}), "0x0"),
    "rmp entry that is not covered": (lambda s: changed(s, rmp=rmp_rows((SNP_COVERED, 1, 0))), f"{SNP_COVERED:#x}"),
    "rmp entry far away": (lambda s: changed(s, rmp=rmp_rows((1 << 52, 1, 0))), f"{1 << 52:#x}"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(backend: str, name: str) -> None:
    """A state that contradicts itself or its map is refused with the entry's name."""
    state = small_state(backend)
    break_it, where = CONTRADICTIONS[name]
    with pytest.raises(MachineError, match=where):
        Host(backend, SNP_IMAGE, kernel="6.12", state=break_it(state))
    assert Host(backend, SNP_IMAGE, kernel="6.12", state=state).state() == state


def test_rmp_without_a_table(backend: str) -> None:
    """RMP entries on a machine without SNP."""
    state = changed(Host(backend, SMALL).state(), rmp=rmp_rows((1, 1, 0)))
    with pytest.raises(MachineError):
        Host(backend, SMALL, state=state)


def test_state_of_another_machine(backend: str) -> None:
    """Tables of a larger machine lie outside a smaller one's memory."""
    state = Host(backend, HOLE).state()
    with pytest.raises(MachineError):
        Host(backend, SMALL, state=state)


def test_no_memory_for_the_high_way(backend: str) -> None:
    """The tables on the way to the high mapping are allocated when all else is placed; without a free frame that
    fails."""
    full = [(0, IMAGE.memory[0][1] - 0x3000)]
    host = Host(backend, SMALL)
    state = with_leaves(host.state(), {(1, 2, 0): 0x1E3})
    assert leaves(Host(backend, SMALL, state=state).state(), 1) == {(2, 0): 0x1E3}
    with pytest.raises(MachineError):
        Host(backend, dataclasses.replace(SMALL, reserved=tuple(full)), state=state)
