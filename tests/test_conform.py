"""Recordings of real kernels: what passes, what must fail, and that no change of a recording goes unseen."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmpcore.conform import SHOWN, Conformance, conform
from rmpcore.oracle.cpa import ChangePageAttributes
from rmpcore.oracle.policy import DirectMapCalls
from rmpcore.oracle.profile import Kernel
from rmpcore.oracle.rmp_insn import SnpInstructions
from rmpcore.recording import RecordingError

GOLDEN = Path(__file__).parent / "data/golden"
RECORDINGS = sorted(path.stem for path in GOLDEN.glob("*.json"))
DMAP = "7.3_pc-8g_dmap"
SNP = "6.12_pc-4g_snp"
Change = Callable[[Any], Any]


@functools.cache
def text_of(name: str) -> str:
    return (GOLDEN / f"{name}.json").read_text(encoding="utf-8")


def recording(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text_of(name))
    return value


def run(folder: Path, value: dict[str, Any] | str, backend: str) -> Conformance:
    path = folder / "r.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return conform(path, backend)


def entries(state: dict[str, Any]) -> int:
    return sum(count for name in ("leaves", "high_leaves") for _, _, count, _, _ in state.get(name, []))


def test_there_are_recordings_of_all_kinds() -> None:
    assert len(RECORDINGS) == 33
    assert {name.split("_")[-1] for name in RECORDINGS} == {"boot", "snp", "dmap", "cpa", "giga", "kimg"}


@pytest.mark.parametrize("name", RECORDINGS)
def test_recording_passes(name: str, backend: str) -> None:
    result = conform(GOLDEN / f"{name}.json", backend)
    assert result.differences == []
    assert result.passed
    assert result.kind == name.split("_")[-1]
    value = recording(name)
    calls = value.get("calls", [])
    states = [value[key] for key in ("boot", "after") if key in value]
    assert result.compared["leaves"] == sum(map(entries, states))
    assert result.compared["tables"] == sum(
        len(state["tables"]) + len(state.get("high_tables", [])) for state in states
    )
    assert result.compared["counts"] == 3 * len(states) + len(calls)
    assert result.compared.get("returns", 0) == len(calls)
    assert result.compared.get("instructions", 0) == sum(len(call.get("insns", [])) for call in calls)


def set_in(*path: str | int, value: Any) -> Change:
    """A change: the value at a path of the recording."""

    def change(recorded: Any) -> None:
        for key in path[:-1]:
            recorded = recorded[key]
        recorded[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(recorded: Any) -> None:
        for key in path[:-1]:
            recorded = recorded[key]
        del recorded[path[-1]]

    return change


BOOT_CHANGES: dict[str, tuple[Change, str]] = {
    "a leaf's flags": (set_in("boot", "leaves", 0, 3, value="0x8000000000000161"), "boot: direct map +0x0 level 4K"),
    "a leaf's frame": (
        set_in("boot", "leaves", 1, 3, value="0x80000000004001e3"),
        "boot: direct map +0x200000 level 2M",
    ),
    "a leaf too few": (set_in("boot", "leaves", 0, 2, value=511), "boot: direct map +0x1ff000 level 4K"),
    "a run left out": (drop("boot", "leaves", 1), "boot: direct map +0x200000 level 2M"),
    "a table's flags": (set_in("boot", "tables", 1, 2, value="0x4402063"), "boot: direct map +0x0 level 1G"),
    "a table left out": (drop("boot", "tables", 0), "boot: direct map +0x0 level 512G"),
    "a count": (set_in("boot", "page_counts", "2m", value=511), "boot: direct_map_2m: recorded 511"),
    "mapped frames": (set_in("boot", "pfn_mapped", 0, 1, value=262111), "boot: pfn_mapped"),
    "the highest mapped frame": (set_in("boot", "max_pfn_mapped", value=262111), "boot: max_pfn_mapped"),
    "read-only": (set_in("boot", "kernel_set_to_readonly", value=1), "boot: kernel_readonly"),
    "the memory map": (set_in("memblock", "memory", 1, 1, value="0x3fedf000"), "boot: direct map +0x3ffdf000 level 4K"),
    "the kernel's mask": (
        set_in("default_kernel_pte_mask", value="0xfffffffffffffeff"),
        "boot: direct map +0x0 level 4K",
    ),
}


@pytest.mark.parametrize("what", BOOT_CHANGES)
def test_changed_boot_state_fails(tmp_path: Path, what: str, backend: str) -> None:
    change, where = BOOT_CHANGES[what]
    value = recording("6.1_pc-1g_boot")
    change(value)
    result = run(tmp_path, value, backend)
    assert not result.passed
    assert result.differences[0].startswith(where), result.differences
    assert len(result.differences) == min(result.different, SHOWN)
    assert sum(result.subjects.values()) == result.different


def test_what_the_cpu_or_the_allocator_decides_is_not_compared(tmp_path: Path, backend: str) -> None:
    """Addresses of table pages; at boot, accessed and dirty bits of table entries.  Not those of leaves."""
    value = recording("6.1_pc-1g_boot")
    value["boot"]["tables"][1][2] = "0x5555007"
    assert run(tmp_path, value, backend).passed
    value["boot"]["leaves"][1][3] = "0x80000000002001c3"
    assert run(tmp_path, value, backend).different == 510


CALL_CHANGES: dict[str, tuple[str, Change, str]] = {
    "a return": (
        DMAP,
        set_in("calls", 3, "ret", value=-12),
        "calls[3] set_direct_map_invalid_noflush pfn=0x49125: return",
    ),
    "a count": (
        DMAP,
        set_in("calls", 4, "page_counts", 0, value=6625),
        "calls[4] set_direct_map_default_noflush pfn=0x49125: page counts",
    ),
    "an argument": (DMAP, set_in("calls", 4, "args", 0, value=299302), "after: direct map +0x49125000 level 4K"),
    "a call left out": (DMAP, drop("calls", 3), "calls[3] set_direct_map_default_noflush pfn=0x49125: page counts"),
    "the last call left out": (DMAP, drop("calls", 20), "after: direct map"),
    "a leaf before": (
        DMAP,
        set_in("before", "leaves", 0, 3, value="0x8000000000000123"),
        "after: direct map +0x0 level 4K",
    ),
    "a leaf after": (
        DMAP,
        set_in("after", "leaves", 0, 3, value="0x8000000000000123"),
        "after: direct map +0x0 level 4K",
    ),
    "a high leaf after": (
        DMAP,
        set_in("after", "high_leaves", 0, 3, value="0x10001a3"),
        "after: high mapping +0x1000000 level 2M",
    ),
    "a high table after": (
        DMAP,
        set_in("after", "high_tables", 0, 2, value="0x101aa7067"),
        "after: high mapping +0x2000000 level 2M",
    ),
    "accessed bits after": (
        DMAP,
        set_in("after", "tables", 0, 2, value="0x4401047"),
        "after: direct map +0x0 level 512G",
    ),
    "a count after": (DMAP, set_in("after", "page_counts", "1g", value=4), "after: direct_map_1g: recorded 4"),
    "read-only after": (DMAP, set_in("after", "kernel_set_to_readonly", value=0), "after: kernel_readonly"),
    "the kernel": (DMAP, set_in("kernel", value="6.14"), "after: direct map"),
    "an input": (
        SNP,
        set_in("calls", 0, "insns", 0, "input", value="00f0026c4800000001000000bb000000"),
        "calls[0] rmp_make_private",
    ),
    "RAX": (SNP, set_in("calls", 0, "insns", 0, "rax", value="0x69cc7000"), "calls[0] rmp_make_private"),
    "EAX": (SNP, set_in("calls", 1051, "insns", 0, "ret", value=0), "calls[1051] psmash pfn=0x127200: instruction 1"),
    "another instruction": (
        SNP,
        set_in("calls", 1051, "insns", 0, "insn", value="RMPREAD"),
        "calls[1051] psmash pfn=0x127200: instruction 1",
    ),
    "an instruction too few": (
        SNP,
        drop("calls", 15, "insns", 3),
        "calls[15] rmp_make_private pfn=0x6f56a gpa=0x7000 level=4K asid=4: instruction 4: recorded None",
    ),
    "an instruction too many": (
        SNP,
        set_in("calls", 8, "insns", value=[{"insn": "PSMASH", "rax": "0x0", "ret": 0}]),
        "calls[8] rmp_make_private",
    ),
    "a code left out": (SNP, drop("calls", 15, "injected", 0), "calls[15] rmp_make_private"),
    "a code too many": (
        SNP,
        set_in("calls", 17, "injected", value=[2, 2]),
        "calls[17] rmp_make_shared pfn=0x6f56a level=4K: {backend} executed fewer",
    ),
    "a level": (
        SNP,
        set_in("calls", 5, "ret", value=[0, 1, 1]),
        "calls[5] snp_lookup_rmpentry pfn=0x122c00: return: recorded (0, 1, 1), {backend} (0, 1, 2)",
    ),
    "an owner": (SNP, set_in("calls", 5, "ret", value=[0, 0, 2]), "calls[5] snp_lookup_rmpentry pfn=0x122c00: return"),
    "an errno": (
        SNP,
        set_in("calls", 23, "ret", value=[-19, 0, 0]),
        "calls[23] snp_lookup_rmpentry pfn=0x10000000000: return: recorded (-19,)",
    ),
    "PSMASH left out": (
        SNP,
        drop("calls", 1050),
        "calls[1050] psmash pfn=0x127200: return: recorded (7,), {backend} (0,)",
    ),
}


@pytest.mark.parametrize("what", CALL_CHANGES)
def test_changed_calls_fail(tmp_path: Path, what: str, backend: str) -> None:
    name, change, where = CALL_CHANGES[what]
    value = recording(name)
    change(value)
    result = run(tmp_path, value, backend)
    assert not result.passed
    assert result.differences[0].startswith(where.format(backend=backend)), result.differences
    assert sum(result.subjects.values()) == result.different


def test_what_a_failed_look_up_left_in_memory_is_not_compared(tmp_path: Path, backend: str) -> None:
    value = recording(SNP)
    value["calls"][23]["ret"] = [0xFFFFFFF2, 255, -1]
    assert run(tmp_path, value, backend).passed


def test_one_unknown_call_makes_the_recording_fail(tmp_path: Path, backend: str) -> None:
    """It fails for what is missing, never silently; what it holds of the boot is compared all the same."""
    value = recording(DMAP)
    value["calls"][-1]["fn"] = "set_memory_blue"
    result = run(tmp_path, value, backend)
    assert not result.passed
    assert result.not_implemented == ("set_memory_blue",)
    assert result.kind == "cpa"
    assert result.compared["leaves"] == entries(value["boot"])
    assert "returns" not in result.compared
    assert result.differences == []


def test_call_that_the_kernel_does_not_have_fails(tmp_path: Path, backend: str) -> None:
    """set_memory_rox exists from 6.2 on (direct-map §10)."""
    value = recording("6.1_pc-1g_kimg")
    value["calls"][-1] |= {"fn": "set_memory_rox", "args": [0x1000, 1]}
    result = run(tmp_path, value, backend)
    assert not result.passed
    assert result.differences[0].startswith("calls[16] set_memory_rox pfn=0x1000 pages=1: recorded return 0, ")
    assert result.differences[0].endswith("REFUSED")


@pytest.mark.parametrize(
    ("name", "calls", "kind"),
    [
        (DMAP, [("set_memory_4k", [0x1000, 1 << 18])], "dmap"),
        (DMAP, [("set_memory_ro", [0x100000, 1])], "cpa"),
        (DMAP, [("set_memory_np_noalias", [0x100000, (1 << 18) - 1])], "cpa"),
        (DMAP, [("set_memory_ro", [0x100000, 1 << 18])], "giga"),
        (DMAP, [("set_memory_ro", [0xFFF, 1])], "cpa"),
        (DMAP, [("set_memory_ro", [0xFFF, 2])], "kimg"),
        (DMAP, [("set_memory_ro", [0x1000, 1 << 18])], "kimg"),
        (SNP, [("set_memory_ro", [0x1000, 1]), ("psmash", [0x1000])], "snp"),
    ],
)
def test_kind_by_content(tmp_path: Path, name: str, calls: list[tuple[str, list[int]]], kind: str) -> None:
    """The image of these recordings starts at frame 0x1000."""
    value = recording(name)
    value["calls"] = [value["calls"][0] | {"fn": fn, "args": args} for fn, args in calls]
    assert run(tmp_path, value, "native").kind == kind


REFUSED: dict[str, tuple[Change, str | None]] = {
    "format": (set_in("format", value="rmpcore-state"), "format: is 'rmpcore-state', not 'rmpcore-kernel-capture'"),
    "version": (set_in("version", value=2), "version: 0x2 is outside 0x1..0x1"),
    "kernel": (set_in("kernel", value="5.10"), None),
    "no kernel": (drop("kernel"), "kernel is missing"),
    "no boot": (drop("boot"), "boot is missing"),
    "no after": (drop("after"), "has some but not all of before, calls and after"),
    "no calls": (set_in("calls", value=[]), "calls: has 0 elements, not 1 or more"),
    "no leaves": (set_in("boot", "leaves", value=[]), "boot.leaves: has 0 elements, not 1 or more"),
    "one high list": (drop("after", "high_tables"), "after: has one of high_tables and high_leaves without the other"),
    "level": (set_in("boot", "leaves", 0, 0, value=4), "boot.leaves[0][0]: 0x4 is outside 0x1..0x3"),
    "offset": (
        set_in("boot", "leaves", 1, 1, value="0x201000"),
        "boot.leaves[1][1]: 0x201000 is not the start of a level-2 entry",
    ),
    "count": (set_in("boot", "leaves", 1, 2, value=1 << 40), None),
    "room": (
        set_in("boot", "leaves", 1, 2, value=1 << 20),
        "boot.leaves[1][2]: more level-2 entries than the tables have room for",
    ),
    "zero": (set_in("boot", "leaves", 0, 3, value="0x0"), "boot.leaves[0][3]: 0x0 is outside 0x1..0xffffffffffffffff"),
    "through zero": (
        set_in("boot", "leaves", 0, value=[1, "0x0", 3, "0x2000", -4096]),
        "boot.leaves[0][3]: the run goes through zero, and entries of value zero are not listed",
    ),
    "twice": (
        lambda r: r["boot"]["leaves"].append([3, "0x40000000", 1, "0x1e3", 0]),
        "boot.leaves: the level-3 entry at 0x40000000 is given twice",
    ),
    "table twice": (
        lambda r: r["boot"]["tables"].append(r["boot"]["tables"][0]),
        "boot.tables: the level-4 entry at 0x0 is given twice",
    ),
    "table's offset": (
        set_in("boot", "tables", 1, 1, value="0x1000"),
        "boot.tables[1][1]: 0x1000 is not the start of a level-3 entry",
    ),
    "counts": (drop("boot", "page_counts", "1g"), "boot.page_counts: 1g is missing"),
    "arguments": (set_in("calls", 0, "args", value=[]), "calls[0].args: has 0 elements, not 1"),
    "argument": (
        set_in("calls", 12, "args", 2, value=2),
        "calls[12].args: set_direct_map_valid_noflush: valid is 2, not 0 or 1",
    ),
    "return": (set_in("calls", 0, "ret", value=[0, 1, 1]), "calls[0].ret: is not a number"),
    "large return": (
        set_in("calls", 0, "ret", value=1 << 32),
        "calls[0].ret: 0x100000000 is outside -0x80000000..0xffffffff",
    ),
    "call's counts": (set_in("calls", 0, "page_counts", value=[1, 2]), "calls[0].page_counts: has 2 elements, not 3"),
    "instruction": (
        set_in("calls", 0, "insns", value=[{"insn": "CPUID"}]),
        "calls[0].insns[0].insn: unknown instruction 'CPUID'",
    ),
    "input": (
        set_in("calls", 0, "insns", value=[{"insn": "RMPUPDATE", "rax": "0x0", "ret": 0, "input": "00"}]),
        "calls[0].insns[0].input: is not 16 bytes in hexadecimal",
    ),
    "injected": (set_in("calls", 0, "injected", value=[256]), "calls[0].injected[0]: 0x100 is outside 0x0..0xff"),
    "before without a table": (drop("before", "tables", 0), None),
    "before outside memory": (set_in("before", "tables", 0, 2, value="0xffffff0000063"), None),
}


@pytest.mark.parametrize("what", REFUSED)
def test_malformed_recordings_are_refused(tmp_path: Path, what: str, backend: str) -> None:
    change, reason = REFUSED[what]
    value = recording(DMAP)
    change(value)
    with pytest.raises(RecordingError) as caught:
        run(tmp_path, value, backend)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'r.json'}: ")
    assert "\n" not in text
    if reason is not None:
        assert text == f"{tmp_path / 'r.json'}: {reason}"


BROKEN: dict[str, tuple[str, type, str, object, str]] = {
    "D stays where RW goes": (
        "6.12_pc-1g_dmap",
        Kernel,
        "dirty_leaves_with_rw",
        property(lambda self: False),
        "flag D (direct-map §7: goes with RW from 6.6 on)",
    ),
    "a split is not counted": (
        "6.12_pc-1g_dmap",
        ChangePageAttributes,
        "_count_split",
        lambda self, virtual, level: None,
        "the kernel's counts of leaves (direct-map §2.1.5, §4.4d, §8.4)",
    ),
    "nothing is collapsed": (
        "7.3_pc-1g_cpa",
        Kernel,
        "collapses",
        property(lambda self: False),
        "what is split or collapsed (direct-map §4.3, §4.4, §8)",
    ),
    "PSMASH always succeeds": (
        "6.12_pc-4g_snp",
        SnpInstructions,
        "_psmash",
        lambda self, table, pa, guest: 0,
        "the code of PSMASH (rmp §2.3)",
    ),
    "rmpupdate() splits nothing": (
        "7.3_pc-8g_snp",
        DirectMapCalls,
        "adjust_direct_map",
        lambda self, pfn, level: 0,
        "what is split or collapsed (direct-map §4.3, §4.4, §8)",
    ),
}
"""A rule of the oracle, broken: the recording that shows it, the class and attribute, what stands in, the subject."""


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_rule_is_named(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    name, owner, attribute, instead, subject = BROKEN[what]
    assert hasattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, instead)
    result = conform(GOLDEN / f"{name}.json", "oracle")
    assert not result.passed
    assert subject in result.subjects
    assert sum(result.subjects.values()) == result.different


def test_truncated_recording_is_refused_with_its_position(tmp_path: Path) -> None:
    text = text_of(DMAP)
    half = text[: len(text) // 2]
    with pytest.raises(RecordingError) as caught:
        run(tmp_path, half, "native")
    assert str(caught.value).startswith(f"{tmp_path / 'r.json'}:{half.count(chr(10)) + 1}: not JSON: ")


# --- fuzzing -------------------------------------------------------------------------------------------------------


@functools.cache
def short_recording() -> dict[str, Any]:
    """A recording with one call of each kind, to be quick."""
    value = recording(SNP)
    value["calls"] = value["calls"][:8] + value["calls"][15:16]
    return value


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["0x0", "0x1000", "0x8000000000000163", "psmash", "lookup", "6.12", "5.4", "RMPUPDATE"]),
    st.lists(st.integers(0, 3), max_size=5),
    st.just({}),
)


@given(data=st.data(), value=VALUES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_a_changed_recording_never_passes_by_accident(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any, backend: str
) -> None:
    """Another value in any place: refused, or judged; nothing else ever happens."""
    tree = copy.deepcopy(short_recording())
    node: Any = tree
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 3)):
            node = node[key]
            continue
        node[key] = value
        break
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    try:
        result = conform(path, backend)
    except RecordingError as e:
        assert str(e).startswith(f"{path}:")
        assert "\n" not in str(e)
    else:
        assert result.compared["leaves"] > 0


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    with pytest.raises(RecordingError):
        conform(path, "native")
