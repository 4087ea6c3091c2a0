"""Memory maps from JSON, kernel logs, /proc/iomem and recordings; expectations are the machines' own figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpcore.inputs import (
    Node,
    dumped_map,
    load_map,
    map_file,
    map_from_iomem,
    map_from_json,
    map_from_log,
    map_from_recording,
    map_to_json,
)
from rmpcore.maps import CACHEMODES_PAT, MIB, PAGE_OFFSETS, MachineMap, MapError, SegmentedRmp

ROOT = Path(__file__).parents[1]
GOLDEN = sorted((ROOT / "tests/data/golden").glob("*.json"))
MACHINES = sorted([*(ROOT / "examples/maps").glob("*.json"), *(ROOT / "tests/data/machines").glob("*g.json")])
MILAN = ROOT / "examples/maps/dell-r6515-epyc7513-256g-snp.json"
OLD_NAMES = {"usable": "usable", "reserved": "reserved", "acpi": "ACPI data", "nvs": "ACPI NVS"}
NEW_NAMES = {"usable": "System RAM", "reserved": "device reserved", "acpi": "ACPI data", "nvs": "ACPI NVS"}
IOMEM_NAMES = {
    "usable": "System RAM",
    "reserved": "Reserved",
    "acpi": "ACPI Tables",
    "nvs": "ACPI Non-volatile Storage",
}


def rows_of(path: Path) -> list[tuple[int, int, str]]:
    """First and last byte and type name of each row of a machine map."""
    rows = json.loads(path.read_text(encoding="utf-8"))["e820"]
    return [(int(start, 16), int(start, 16) + int(size, 16) - 1, kind) for start, size, kind in rows]


def log_of(path: Path, prefix: str = "", names: dict[str, str] = OLD_NAMES) -> str:
    gap = "" if names is OLD_NAMES else " "
    lines = [f"{prefix}BIOS-e820: [mem {a:#018x}-{b:#018x}] {gap}{names[kind]}" for a, b, kind in rows_of(path)]
    return "\n".join(
        [f"{prefix}BIOS-provided physical RAM map:", *lines, f"{prefix}NX (Execute Disable) protection: active"]
    )


def same_memory(one: MachineMap, other: MachineMap) -> bool:
    return (one.e820, one.memory, one.reserved, one.max_pfn) == (
        other.e820,
        other.memory,
        other.reserved,
        other.max_pfn,
    )


def refusal(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(MapError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def a_map(**changes: Any) -> str:
    """A small good map with changes; a change to ... removes the key."""
    rows = [["0x0", "0x9f000", "usable"], ["0x100000", "0x3f00000", "usable"], ["0x4000000", "0x100000", "reserved"]]
    value: dict[str, Any] = {"format": "rmpcore-machine-map", "version": 1, "name": "small", "e820": rows}
    value |= changes
    return json.dumps({key: item for key, item in value.items() if item is not ...})


# --- machine maps --------------------------------------------------------------------------------------------------


def test_milan_host() -> None:
    """last_pfn = 0x407f100 and the RMP range are what the machine's own boot log says."""
    machine = load_map(MILAN)
    assert machine.name == "dell-r6515-epyc7513-256g-snp"
    assert machine.max_pfn == 0x407F100
    assert machine.rmp == (0x16000000, 0x568FFFFF)
    assert machine.rmp_probed
    assert machine.reserved == ((0, MIB),)
    assert machine.image is None
    assert (machine.levels, machine.page_offset, machine.large_pages) == (4, PAGE_OFFSETS[4], "1G")


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_every_map_is_read(path: Path) -> None:
    machine = load_map(path)
    usable = [(start, last + 1) for start, last, kind in rows_of(path) if kind == "usable"]
    assert machine.max_pfn == usable[-1][1] >> 12
    # Page 0 and what the BIOS area takes is all that may be missing, and what is cut to whole pages.
    total = sum(end - start for start, end in usable)
    assert total - (1 << 20) <= sum(size for _, size in machine.memory) <= total - 0x1000


def test_early_fix_ups() -> None:
    """Usable memory of page 0 becomes reserved; of [0xa0000, 0x100000) it goes away; other rows stay."""
    rows = [["0x0", "0xb0000", "usable"], ["0xb0000", "0x8000", "reserved"], ["0xb8000", "0x1000000", "usable"]]
    machine = map_from_json(a_map(e820=rows))
    assert machine.e820 == ((0, 0x1000, 2), (0x1000, 0x9F000, 1), (0xB0000, 0x8000, 2), (0x100000, 0xFB8000, 1))
    assert machine.memory == ((0x1000, 0x9F000), (0x100000, 0xFB8000))


def test_memory_is_whole_pages_with_neighbours_merged() -> None:
    rows = [
        ["0x100000", "0x1800", "usable"],
        ["0x101800", "0x2000", 128],
        ["0x103800", "0x400", "usable"],
        ["0x200800", "0xc00", "usable"],
        ["0x300000", "0x1000", 5],
    ]
    machine = map_from_json(a_map(e820=rows))
    assert machine.memory == ((0x100000, 0x3000),)
    assert machine.max_pfn == 0x201


def test_options_of_a_map() -> None:
    options = {
        "levels": 5,
        "large_pages": "2M",
        "supported_mask": "0xfffffffffffffeff",
        "default_mask": "0xfffffffffffffeff",
        "cachemodes": [0, 16, 16, 24, 8, 16],
        "c_bit": "0x8000000000000",
        "rmp": {"base": "0x4000000", "end": "0x40fffff"},
        "rmp_probed": False,
        "anything": {"else": 1},
    }
    machine = map_from_json(a_map(**options))
    assert (machine.levels, machine.page_offset, machine.large_pages) == (5, PAGE_OFFSETS[5], "2M")
    assert machine.supported_mask == machine.default_mask == 0xFFFFFFFFFFFFFEFF
    assert machine.cachemodes == (0, 16, 16, 24, 8, 16)
    assert machine.c_bit == 1 << 51
    assert machine.rmp == (0x4000000, 0x40FFFFF)
    assert not machine.rmp_probed
    moved = map_from_json(a_map(page_offset="0xffff9a1240000000", rmp=None))
    assert moved.page_offset == 0xFFFF_9A12_4000_0000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "other"}, "map: format: is 'other', not 'rmpcore-machine-map'"),
        ({"format": ...}, "map: format is missing"),
        ({"version": 2}, "map: version: 0x2 is outside 0x1..0x1"),
        ({"version": True}, "map: version: is not a number"),
        ({"name": ...}, "map: name is missing"),
        ({"name": 5}, "map: name: is not a string"),
        ({"notes": []}, "map: notes: is not a string"),
        ({"e820": {}}, "map: e820: is not an array"),
        ({"e820": []}, "map: e820: has 0 elements, not 1 or more"),
        ({"e820": [["0x0", "0x1000"]]}, "map: e820[0]: has 2 elements, not 3"),
        ({"e820": [["0x0", "0x1000", "edible"]]}, "map: e820[0][2]: unknown type 'edible'"),
        ({"e820": [["0x0", "0x1000", 0]]}, "map: e820[0][2]: 0x0 is outside 0x1..0xffffffff"),
        ({"e820": [["1000", "0x1000", "usable"]]}, "map: e820[0][0]: '1000' is not a number in hexadecimal"),
        ({"e820": [[1.5, "0x1000", "usable"]]}, "map: e820[0][0]: is not a number"),
        ({"e820": [["0x0", "0x0", "usable"]]}, "map: e820[0][1]: 0x0 is outside 0x1..0x10000000000000000"),
        ({"e820": [["0xfffffffffffff000", "0x2000", 2]]}, "map: e820[0][1]: 0x2000 is outside 0x1..0x1000"),
        ({"e820": [["0x0", "0x1000", "usable"]]}, "map: there is no usable memory"),
        (
            {
                "e820": [
                    ["0x0", "0x9f000", "usable"],
                    ["0x100000", "0x1000000", "usable"],
                    ["0x200000", "0x1000", "reserved"],
                ]
            },
            "map: e820 row 0x200000-0x200fff (type 2, e820[2]) overlaps 0x100000-0x10fffff (type 1, e820[1])",
        ),
        ({"rmp": "none"}, "map: rmp: is not an object"),
        ({"rmp": {"base": "0x4000000"}}, "map: rmp: end is missing"),
        (
            {"rmp": {"base": "0x3ff0000", "end": "0x40fffff"}},
            "map: RMP 0x3ff0000-0x40fffff overlaps e820 row 0x100000-0x3ffffff of type 1",
        ),
        ({"levels": 3}, "map: levels: 0x3 is outside 0x4..0x5"),
        ({"large_pages": "512G"}, "map: large pages is '512G', not 1G, 2M or 4K"),
        ({"large_pages": 2}, "map: large_pages: is not a string"),
        ({"page_offset": "0x1000"}, "map: page offset 0x1000 is not a 1 GiB-aligned kernel address"),
        ({"cachemodes": [0, 8]}, "map: cachemodes: has 2 elements, not 6 or more"),
        ({"rmp_probed": 1}, "map: rmp_probed: is not true or false"),
    ],
)
def test_refused_maps(changes: dict[str, Any], reason: str) -> None:
    assert refusal(map_from_json, a_map(**changes)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": "rmpcore-machine-map",\n "version": 1', "m:2: not JSON: Expecting ',' delimiter (column 14)"),
        ('{"a": 1, "a": 2}', "m: not JSON: an object has the same name twice"),
        ('{"a": NaN}', "m: not JSON: NaN is not a number"),
        ('{"a": ' + "[" * 100000, "m: not JSON that anyone needs: nested too deep"),
        ("[]", "m: is not an object"),
        ("", "m:1: not JSON: Expecting value (column 1)"),
    ],
)
def test_refused_json(text: str, reason: str) -> None:
    assert refusal(map_from_json, text, "m") == reason


def test_number_of_a_million_digits_is_refused() -> None:
    assert refusal(map_from_json, '{"a": ' + "9" * 1000000 + "}", "m").startswith("m: not JSON: ")


# --- kernel logs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "[    0.000000] ", "May 04 12:22:28 host kernel: ", "<6>[    0.000000][    T0] "]
)
@pytest.mark.parametrize("names", [OLD_NAMES, NEW_NAMES], ids=["old", "new"])
@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_log_of_a_machine(path: Path, prefix: str, names: dict[str, str]) -> None:
    assert same_memory(map_from_log(log_of(path, prefix, names)), load_map(path))


@pytest.mark.parametrize(
    "line",
    [
        "SEV-SNP: RMP table physical range [0x0000000016000000 - 0x00000000568fffff]",
        "[    0.000000] SEV-SNP: RMP table physical range [0x0000000016000000 - 0x00000000568fffff]",
        "[    3.412345] SEV-SNP: RMP table physical address 0x0000000016000000 - 0x00000000568fffff",
        "[    3.412345] SEV-SNP: RMP table physical address [0x0000000016000000 - 0x00000000568fffff]",
    ],
)
def test_log_that_names_the_rmp(line: str) -> None:
    """The wording of two generations of the series."""
    expected = load_map(MILAN)
    for text in (f"{line}\n{log_of(MILAN)}", f"{log_of(MILAN)}\n{line}\n", f"{line}\n{log_of(MILAN)}\n{line}\n"):
        machine = map_from_log(text)
        assert machine.rmp == expected.rmp
        assert same_memory(machine, expected)


def test_other_tables_of_a_log_do_not_count() -> None:
    """Lines of the other tables that a kernel prints: after memmap=, after the boot loader's data, after updates."""
    other = """
[    0.000000] user-defined physical RAM map:
[    0.000000] user: [mem 0x0000000100000000-0x000000013fffffff] persistent (type 12)
[    0.000000] reserve setup_data: [mem 0x0000000000000000-0x000000000009ffff] usable
[    0.000000] e820: update [mem 0x28357e00000-0x28357ffffff] usable ==> reserved
"""
    assert same_memory(map_from_log(log_of(MILAN) + other), load_map(MILAN))


def test_gaps_and_rarer_types() -> None:
    """From 7.0 on kernels print the gaps between rows too; types as real machines had them."""
    text = """
BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff]  System RAM
BIOS-e820: [mem 0x000000000009fc00-0x000000000009ffff]  device reserved
BIOS-e820: [gap 0x00000000000a0000-0x00000000000effff]
BIOS-e820: [mem 0x00000000000f0000-0x00000000000fffff]  device reserved
BIOS-e820: [mem 0x0000000000100000-0x000000007ffdbfff] usable
BIOS-e820: [mem 0x00000000cbcf0000-0x00000000cbdeffff] type 20
BIOS-e820: [mem 0x0000000880000000-0x00000027ffffffff] persistent (type 7)
BIOS-e820: [mem 0x000000c080000000-0x000000c47fffffff] soft reserved
BIOS-e820: [mem 0x0000010000000000-0x000001002fffffff] unusable
"""
    machine = map_from_log(text)
    kinds = [kind for _, _, kind in machine.e820]
    assert kinds == [2, 1, 2, 2, 1, 20, 7, 0xEFFFFFFF, 5]
    assert machine.memory == ((0x1000, 0x9E000), (0x100000, 0x7FEDC000))
    assert machine.max_pfn == 0x7FFDC


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dmesg without a table\n", "log: no BIOS-e820 lines"),
        ("\nBIOS-e820: [mem 0x0-0xfff] edible\n", "log:2: unknown e820 type 'edible'"),
        ("BIOS-e820: [mem 0x0-\n", "log:1: BIOS-e820 line is not understood"),
        ("BIOS-e820: [mem 0x2000-0x1fff] usable\n", "log:1: range 0x2000-0x1fff ends before it starts"),
        (
            "BIOS-e820: [mem 0x100000-0x1fffff] usable\n\nBIOS-e820: [mem 0x1ff000-0x2fffff] reserved\n",
            "log:3: e820 row 0x1ff000-0x2fffff (type 2, line 3) overlaps 0x100000-0x1fffff (type 1, line 1)",
        ),
        (
            "BIOS-e820: [mem 0x100000-0x1fffff] usable\nSEV-SNP: RMP table physical range [0x300000 - 0x3fffff]\n"
            "SEV-SNP: RMP table physical range [0x400000 - 0x4fffff]\n",
            "log:3: a second, other RMP",
        ),
        (
            "SEV-SNP: Segmented RMP base table physical range [0x000000009ba00000 - 0x000000009ba05000]\n"
            "BIOS-e820: [mem 0x100000-0x1fffff] usable\n",
            "log: the RMP is segmented, and the lines about its segments are missing",
        ),
        ("BIOS-e820: [mem 0x0-0xfff] usable\n", "log: there is no usable memory"),
    ],
)
def test_refused_logs(text: str, reason: str) -> None:
    assert refusal(map_from_log, text) == reason


# --- segmented RMP -------------------------------------------------------------------------------------------------

(REAL_SEGMENTED,) = json.loads((ROOT / "tests/data/machines/rmp-ranges.json").read_text(encoding="utf-8"))["segmented"]
TURIN = "\n".join(
    [
        "BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable",
        "BIOS-e820: [mem 0x0000000000100000-0x00000000087fffff] usable",
        "BIOS-e820: [mem 0x0000000008800000-0x0000000010ffffff] reserved",
        "BIOS-e820: [mem 0x0000000011000000-0x00000000359fffff] usable",
        "BIOS-e820: [mem 0x0000000035a00000-0x0000000075afffff] reserved",
        "BIOS-e820: [mem 0x0000000075b00000-0x000000009b9fffff] usable",
        "BIOS-e820: [mem 0x000000009ba00000-0x00000000ffffffff] reserved",
        "BIOS-e820: [mem 0x0000000100000000-0x000000087fffffff] usable",
    ]
)
"""Memory as the host whose segments are REAL_SEGMENTED may have had it; only its top (34 GiB) is known."""
TURIN_RMP = SegmentedRmp(0x9BA00000, 37 << 8 | 1, (0x8800022, *[0] * 7, 0x55B00080, 0x35A00080))


@pytest.mark.parametrize("prefix", ["", "[    0.512345] ", "May 04 12:22:28 host kernel: "])
def test_log_of_a_segmented_rmp(prefix: str) -> None:
    """The lines of a real host: 34 GiB of segment 0, all of segments 8 and 9, which begin at 1 TiB."""
    lines = [prefix + line for line in REAL_SEGMENTED["lines"]]
    for text in (f"{TURIN}\n" + "\n".join(lines), "\n".join([*reversed(lines), TURIN, *lines])):
        machine = map_from_log(text)
        assert machine.rmp is None
        assert machine.segmented == TURIN_RMP
    assert TURIN_RMP.shift == REAL_SEGMENTED["segment_shift"]
    expected = [(part["index"], int(part["base"], 16), part["covers"]) for part in REAL_SEGMENTED["segments"]]
    assert expected == [
        (index, base, [hex(index << 37), hex((index << 37) + size - 1)]) for index, base, size in TURIN_RMP.segments()
    ]


def test_log_of_an_entry_that_covers_more_than_a_segment() -> None:
    """The kernel prints what it cuts: 200 GiB in the entry, 128 GiB that count."""
    lines = [line for line in REAL_SEGMENTED["lines"] if "segment 9" not in line]
    lines.insert(-1, "SEV-SNP: RMP segment 8 mapped size (0x3200000000) reduced to 0x2000000000")
    machine = map_from_log("\n".join([TURIN, *lines]))
    assert machine.segmented == SegmentedRmp(0x9BA00000, 37 << 8 | 1, (0x8800022, *[0] * 7, 0x55B000C8))
    assert machine.segmented.segments()[1] == (8, 0x55B00000, 128 << 30)


SEGMENT_0 = "SEV-SNP: RMP segment 0 physical address [0x8800000 - 0x10ffffff] covering [0x0 - 0x87fffffff]"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Segmented RMP base", "Another base", "segments of an RMP without the line that says where its base table is"),
        ("Segmented RMP using", "Using", "the RMP is segmented, and the lines about its segments are missing"),
        ("RMP segment", "segment", "the RMP is segmented, and the lines about its segments are missing"),
        ("using 128GB", "using 96GB", "segments of 96 GiB are not a power of two"),
        ("using 128GB", "using 0GB", "segments of 0 GiB are not a power of two"),
        ("using 128GB", "using -128GB", "segments of -128 GiB are not a power of two"),
        (
            "using 128GB",
            "using 64GB",
            "segment 8 cannot cover 0x10000000000-0x11fffffffff with segments of 64 GiB",
        ),
        (
            "segment 9",
            "segment 10",
            "segment 10 cannot cover 0x12000000000-0x13fffffffff with segments of 128 GiB",
        ),
        ("0x10ffffff]", "0x10fffffe]", "1: a table at 0x8800000-0x10fffffe does not cover 0x0-0x87fffffff"),
        ("[0x8800000 ", "[0x8800800 ", "1: a table at 0x8800800-0x10ffffff does not cover 0x0-0x87fffffff"),
        ("0x87fffffff]", "0x87ffffffe]", "1: a table at 0x8800000-0x10ffffff does not cover 0x0-0x87ffffffe"),
        ("using 128GB", "using 16GB", "segment 0 cannot cover 0x0-0x87fffffff with segments of 16 GiB"),
        (
            "[0x8800000 - 0x10ffffff] covering [0x0 - 0x87fffffff]",
            "[0x8800000 - 0x89fffff] covering [0x0 - 0x1fffffff]",
            "1: a table at 0x8800000-0x89fffff does not cover 0x0-0x1fffffff",
        ),
        (
            "[0x8800000 - 0x10ffffff]",
            "[0x8800800 - 0x110007ff]",
            "1: a table at 0x8800800-0x110007ff does not cover 0x0-0x87fffffff",
        ),
        (
            "segment 9 physical address [0x35a00000 - 0x559fffff] covering [0x12000000000 - 0x13fffffffff]",
            "segment 512 physical address [0x35a00000 - 0x559fffff] covering [0x400000000000 - 0x401fffffffff]",
            "segment 512 cannot cover 0x400000000000-0x401fffffffff with segments of 128 GiB",
        ),
        ("segment 8", "segment 9", "3: a second, other segment 9"),
        (
            "SEV-SNP: Segmented RMP using",
            "SEV-SNP: Segmented RMP using 64GB segments\nSegmented RMP using",
            "8: a second, other size of a segment",
        ),
        (
            "SEV-SNP: Reserving",
            "SEV-SNP: RMP table physical range [0x16000000 - 0x568fffff]\n",
            "5: an RMP that is segmented, and one that is not",
        ),
        (
            "SEV-SNP: Reserving",
            "SEV-SNP: Segmented RMP base table physical range [0x0 - 0x5000]\n",
            "5: a second, other RMP",
        ),
    ],
)
def test_logs_that_contradict_themselves(old: str, new: str, reason: str) -> None:
    order = sorted(REAL_SEGMENTED["lines"], key=lambda line: "covering" not in line)
    text = "\n".join(order).replace(old, new) + f"\n{TURIN}\n"
    found = refusal(map_from_log, text)
    assert found == ("log:" if reason[0].isdecimal() else "log: ") + reason


def test_tables_of_a_log_have_to_be_reserved() -> None:
    text = TURIN.replace("0x0000000010ffffff] reserved", "0x0000000010ffffff] usable")
    found = refusal(map_from_log, "\n".join([text, *REAL_SEGMENTED["lines"]]))
    assert found == "log: RMP 0x8800000-0x10ffffff overlaps e820 row 0x8800000-0x10ffffff of type 1"


U12 = st.one_of(st.just(0), st.integers(0, 0xFFF))
ROWS = [["0x0", "0x9f000", "usable"], ["0x100000", "0x3f00000", "usable"], ["0x4000000", "0x4000000", "reserved"]]
SEGMENTS = [{"index": 0, "base": "0x4100000", "gib": 1}, {"index": 3, "base": "0x4500000", "gib": 0, "reserved": 5}]


def segmented(**changes: Any) -> str:
    rmp = {"base": "0x4000000", "cfg": "0x2401", "segments": SEGMENTS} | changes
    return a_map(e820=ROWS, rmp={key: item for key, item in rmp.items() if item is not ...})


def test_segmented_rmp_of_a_map() -> None:
    machine = map_from_json(segmented())
    assert machine.rmp is None
    assert machine.segmented == SegmentedRmp(0x4000000, 0x2401, (0x4100001, 0, 0, 5 << 52 | 0x4500000))
    assert map_from_json(segmented(segments=[])).segmented == SegmentedRmp(0x4000000, 0x2401, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cfg": ...}, "map: rmp: cfg is missing"),
        ({"base": ...}, "map: rmp: base is missing"),
        ({"segments": ...}, "map: rmp: end is missing"),
        ({"end": "0x40fffff"}, "map: rmp: has segments and an end: either or"),
        ({"segments": {}}, "map: rmp.segments: is not an array"),
        ({"segments": [{"index": 0, "gib": 1}]}, "map: rmp.segments[0]: base is missing"),
        ({"segments": [{"index": 0, "base": 0}]}, "map: rmp.segments[0]: gib is missing"),
        ({"segments": [{"base": 0, "gib": 1}]}, "map: rmp.segments[0]: index is missing"),
        (
            {"segments": [{"index": 512, "base": 0, "gib": 1}]},
            "map: rmp.segments[0].index: 0x200 is outside 0x0..0x1ff",
        ),
        (
            {"segments": [{"index": 0, "base": "0x4180000", "gib": 1}]},
            "map: rmp.segments[0].base: 0x4180000 is not a multiple of 1 MiB",
        ),
        (
            {"segments": [{"index": 0, "base": "0x10000000000000", "gib": 1}]},
            "map: rmp.segments[0].base: 0x10000000000000 is outside 0x0..0xffffffff00000",
        ),
        (
            {"segments": [{"index": 0, "base": 0, "gib": 1 << 20}]},
            "map: rmp.segments[0].gib: 0x100000 is outside 0x0..0xfffff",
        ),
        (
            {"segments": [{"index": 0, "base": 0, "gib": 0, "reserved": 4096}]},
            "map: rmp.segments[0].reserved: 0x1000 is outside 0x0..0xfff",
        ),
        (
            {"segments": [SEGMENTS[0], SEGMENTS[0]]},
            "map: rmp.segments[1].index: segment 0 is described twice",
        ),
        (
            {"segments": [{"index": 0, "base": "0x3f00000", "gib": 1}]},
            "map: RMP 0x3f00000-0x42fffff overlaps e820 row 0x100000-0x3ffffff of type 1",
        ),
    ],
)
def test_refused_segmented_maps(changes: dict[str, Any], reason: str) -> None:
    assert refusal(map_from_json, segmented(**changes)) == reason


def dumped(machine: MachineMap) -> MachineMap:
    """Written into a dump as JSON text, and read again."""
    return dumped_map(Node(json.loads(json.dumps(map_to_json(machine))), "dump", MapError))


@pytest.mark.parametrize("path", [*MACHINES, *GOLDEN[:6]], ids=lambda path: path.stem)
def test_dumped_maps_are_read_as_they_were(path: Path) -> None:
    machine = load_map(path)
    assert dumped(machine) == machine


@given(
    cfg=st.builds(lambda rest, shift: rest & ~0x3F00 | shift << 8, st.integers(0, (1 << 64) - 1), st.integers(30, 51)),
    rst=st.lists(st.builds(lambda reserved, base: reserved << 52 | base << 20, U12, st.integers(0, 0xFFFF_FFFF))),
    covered=st.integers(0, 1),
)
def test_any_segment_table_is_kept_to_the_bit(cfg: int, rst: list[int], covered: int) -> None:
    """Reserved bits, entries that cover nothing but have an address, and zeros at the end; in dump and map file."""
    rmp = SegmentedRmp(0x4000000, cfg, (0x4100000 | covered, *rst))
    machine = replace(map_from_json(a_map(e820=ROWS)), segmented=rmp)
    assert dumped(machine) == machine
    assert map_from_json(map_file(machine, {})) == machine


def test_rmp_in_memory_is_refused() -> None:
    """docs/formats.md: memory and RMP are different bytes, also in a dump, which gives memory apart from its rows."""
    value: dict[str, Any] = map_to_json(load_map(MILAN))
    base, size = (int(number, 16) for number in value["memory"][0])
    value["memory"][0] = [hex(base), hex(0x16001000 - base)]
    value["memory"] = value["memory"][:1]
    assert size < 0x16001000 - base
    with pytest.raises(MapError) as caught:
        dumped_map(Node(value, "dump", MapError))
    assert str(caught.value) == f"dump: RMP 0x16000000-0x568fffff overlaps memory {base:#x}-0x16000fff"


def test_old_dumps_are_still_read() -> None:
    """A map dumped before there were segments: rmp is null, or base and end."""
    for path in (MILAN, ROOT / "examples/maps/dell-r7425-epyc7601-1t.json"):
        machine = load_map(path)
        value: dict[str, Any] = map_to_json(machine)
        expected = {"base": hex(machine.rmp[0]), "end": hex(machine.rmp[1])} if machine.rmp is not None else None
        assert value["rmp"] == expected
        assert "segmented" not in value


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_map_file_says_all(path: Path) -> None:
    machine = load_map(path)
    text = map_file(machine, {"notes": 'a "e820": null'})
    assert map_from_json(text) == machine
    assert json.loads(text)["notes"] == 'a "e820": null'


def test_map_file_of_a_recording_is_refused() -> None:
    """A firmware table has no kernel image."""
    machine = load_map(ROOT / "tests/data/golden/6.1_pc-1g_boot.json")
    assert refusal(map_file, machine, {}).endswith(
        "6.1_pc-1g_boot.json: a machine map cannot be written of it: reserved would be lost"
    )


# --- /proc/iomem ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_iomem_of_a_machine(path: Path) -> None:
    lines = [f"{a:08x}-{b:08x} : {IOMEM_NAMES[kind]}\n" for a, b, kind in rows_of(path)]
    assert same_memory(map_from_iomem("".join(lines)), load_map(path))


IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
000a0000-000bffff : PCI Bus 0000:00
000f0000-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-bffdffff : System RAM
  01000000-01e00fff : Kernel code
  02000000-02a6cfff : Kernel rodata
bffe0000-bfffffff : Reserved
c0000000-febfffff : PCI Bus 0000:00
  fd000000-fdffffff : 0000:00:01.0
  fe000000-fe003fff : Reserved
fec00000-fec003ff : IOAPIC 0
100000000-23fffffff : System RAM
  140000000-14fffffff : Crash kernel
"""


def test_only_outer_lines_of_memory_count() -> None:
    machine = map_from_iomem(IOMEM)
    assert machine.memory == ((0x1000, 0x9E000), (0x100000, 0xBFEE0000), (0x100000000, 0x140000000))
    assert machine.max_pfn == 0x240000
    assert (0xFE000000, 0x4000, 2) not in machine.e820


def test_iomem_read_without_root() -> None:
    hidden = re.sub(r"[0-9a-f]+-[0-9a-f]+ :", "00000000-00000000 :", IOMEM)
    assert refusal(map_from_iomem, hidden, "f") == "f: all addresses are zero: /proc/iomem was read without root"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("00001000-0009fbff : System RAM\nhello\n", "iomem:2: not a line of /proc/iomem"),
        ("00001000-0009fbff : PCI Bus 0000:00\n", "iomem: no memory in it"),
        (
            "00100000-001fffff : System RAM\n00180000-0027ffff : Reserved\n",
            "iomem:2: e820 row 0x180000-0x27ffff (type 2, line 2) overlaps 0x100000-0x1fffff (type 1, line 1)",
        ),
        ("00100000-000fffff : System RAM\n", "iomem:1: range 0x100000-0xfffff ends before it starts"),
    ],
)
def test_refused_iomem(text: str, reason: str) -> None:
    assert refusal(map_from_iomem, text) == reason


# --- recordings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_map_of_a_recording(path: Path) -> None:
    recording = json.loads(path.read_text(encoding="utf-8"))
    machine = load_map(path)
    assert machine.max_pfn == recording["max_pfn"]
    assert machine.levels == recording["machine"]["paging_levels"]
    assert machine.page_offset == int(recording["page_offset"], 16)
    assert machine.large_pages == ("1G" if recording["direct_gbpages"] else "2M")
    assert machine.memory == tuple((int(base, 16), int(size, 16)) for base, size in recording["memblock"]["memory"])
    assert machine.reserved == tuple((int(base, 16), int(size, 16)) for base, size in recording["memblock"]["reserved"])
    assert machine.image is not None
    assert machine.image.brk_end == int(recording["symbols"]["_brk_end"], 16)
    if "pti" in path.name:
        assert machine.default_mask == 0xFFFFFFFFFFFFFEFF
    if "nopat" in path.name:
        assert machine.cachemodes == (0x00, 0x10, 0x10, 0x18, 0x08, 0x10)
    else:
        assert machine.cachemodes == CACHEMODES_PAT
    if "snp" in path.name:
        assert machine.rmp is not None
        base, end = machine.rmp
        assert end + 1 - base == 0x4000 + 16 * (machine.max_pfn + 1)
        assert not machine.rmp_probed
    else:
        assert machine.rmp is None


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_firmware_rules_give_what_real_kernels_had(path: Path) -> None:
    """A kernel's own e820 table, read as a firmware table, gives its memblock memory and its max_pfn."""
    recording = json.loads(path.read_text(encoding="utf-8"))
    machine = map_from_json(a_map(e820=recording["e820"]))
    assert machine.e820 == tuple((int(start, 16), int(size, 16), kind) for start, size, kind in recording["e820"])
    assert machine.memory == tuple((int(base, 16), int(size, 16)) for base, size in recording["memblock"]["memory"])
    assert machine.max_pfn == recording["max_pfn"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("max_pfn", 0, "r: max_pfn: 0x0 is outside 0x1..0x400000000"),
        ("page_offset", "0x0", "r: page offset 0x0 is not a 1 GiB-aligned kernel address"),
        ("direct_gbpages", "yes", "r: direct_gbpages: is not true or false"),
        ("symbols", {}, "r: symbols: _text is missing"),
        ("machine", {"paging_levels": 6}, "r: machine.paging_levels: 0x6 is outside 0x4..0x5"),
        ("cachemode2pte", ["0x0"], "r: cachemode2pte: has 1 elements, not 6 or more"),
        (
            "e820",
            [["0x0", "0x2000", 1], ["0x1000", "0x1000", 2]],
            "r: e820 row 0x1000-0x1fff (type 2) overlaps the row before it",
        ),
    ],
)
def test_refused_recordings(key: str, value: Any, reason: str) -> None:
    recording = json.loads((ROOT / "tests/data/golden/6.1_pc-1g_boot.json").read_text(encoding="utf-8"))
    recording[key] = value
    assert refusal(map_from_recording, json.dumps(recording), "r") == reason


# --- telling them apart --------------------------------------------------------------------------------------------


def test_load_map_tells_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "host.txt"
    for text in (log_of(MILAN, "[    0.000000] "), IOMEM, a_map()):
        path.write_text(text, encoding="utf-8")
        assert load_map(path).source == str(path)
    assert load_map(path).name == "small"
    path.write_text(IOMEM, encoding="utf-8")
    assert load_map(path).name == "host"


def test_log_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "dmesg"
    path.write_bytes(b"EFI: \xff\xfe\n" + log_of(MILAN).encode())
    assert same_memory(load_map(path), load_map(MILAN))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", ": not a machine map: neither JSON, nor a kernel log with BIOS-e820 lines, nor /proc/iomem"),
        (
            b"psmash pfn=1\n",
            ": not a machine map: neither JSON, nor a kernel log with BIOS-e820 lines, nor /proc/iomem",
        ),
        (b"ok\n\xff\n", ":2: not UTF-8"),
        (
            b'{"format": "rmpcore-rmp-ranges"}',
            ": format: is 'rmpcore-rmp-ranges', not 'rmpcore-machine-map', 'rmpcore-kernel-capture' or 'rmpcore-state'",
        ),
        (b"{}", ": format is missing"),
    ],
)
def test_files_that_are_no_map(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    assert refusal(load_map, path) == f"{path}{reason}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(load_map, tmp_path / "absent") == f"{tmp_path}/absent: No such file or directory"
    assert refusal(load_map, tmp_path) == f"{tmp_path}: Is a directory"
    assert refusal(load_map, "a\0b").endswith(": embedded null byte")


# --- fuzzing -------------------------------------------------------------------------------------------------------

READERS = {"json": map_from_json, "log": map_from_log, "iomem": map_from_iomem, "recording": map_from_recording}
VALID = {
    "json": MILAN.read_text(encoding="utf-8"),
    "log": log_of(MILAN, "[    0.000000] ") + "\nSEV-SNP: RMP table physical range [0x16000000 - 0x568fffff]\n",
    "iomem": IOMEM,
    "recording": (ROOT / "tests/data/golden/6.1_pc-1g_boot.json").read_text(encoding="utf-8"),
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0x0", "0x1000", "usable"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def read_or_refuse(reader: Callable[[str, str], MachineMap], text: str) -> None:
    try:
        reader(text, "f")
    except MapError as e:
        assert str(e).startswith("f:")
        assert "\n" not in str(e)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_map_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.map"
    path.write_bytes(data)
    try:
        load_map(path)
    except MapError as e:
        assert "\n" not in str(e)


@pytest.mark.parametrize("kind", READERS)
@given(
    place=st.floats(0, 1),
    size=st.integers(0, 4),
    insert=st.text(alphabet="0123456789abcdefx-:[]{},\"' \n\0é", max_size=4),
)
def test_a_changed_file_is_a_map_or_refused(kind: str, place: float, size: int, insert: str) -> None:
    text = VALID[kind]
    cut = int(place * len(text))
    read_or_refuse(READERS[kind], text[:cut] + insert + text[cut + size :])


@pytest.mark.parametrize("kind", ["json", "recording"])
@given(data=st.data(), value=JSON)
def test_a_wrong_value_anywhere_is_refused_or_harmless(kind: str, data: st.DataObject, value: Any) -> None:
    """Put another JSON value in any place of a good file."""
    tree = json.loads(VALID[kind])
    tree.pop("boot", None)
    node: Any = tree
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = value
        break
    read_or_refuse(READERS[kind], json.dumps(tree))
