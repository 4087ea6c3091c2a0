"""Raw values in words: held against real dumps, the recordings, and the layouts of direct-map §1 and rmp §1.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpcore.decode import Field, decode_pte, decode_rmp_entry, describe_pte, describe_rmp_entry, permissions

DATA = Path(__file__).parent / "data"
DUMPS = json.loads((DATA / "machines/rmp-dumps.json").read_text(encoding="utf-8"))
ENTRIES = {int(entry["pfn"], 16): (int(entry["lo"], 16), int(entry["hi"], 16)) for d in DUMPS for entry in d["entries"]}
U64 = st.integers(0, (1 << 64) - 1)


def named(fields: list[Field]) -> dict[str, int]:
    return {field.name: field.value for field in fields}


def test_tail_of_the_rmp() -> None:
    """AMDSEV issue 245: 255 followers and the head make the 1 MiB tail of the RMP, firmware pages all of them."""
    head = named(decode_rmp_entry(*ENTRIES[0x56600]))
    assert head["assigned"] == head["immutable"] == head["lock"] == 1
    assert head["subpage_count"] == 255
    assert head["gpa"] == head["asid"] == head["validated"] == head["vmsa"] == head["page_size"] == 0
    assert describe_rmp_entry(*ENTRIES[0x56600]) == "assigned 4K immutable subpages=255 gpa=0x0 asid=0 lock"
    followers = [pfn for pfn in ENTRIES if 0x56600 < pfn <= 0x5660D]
    assert len(followers) == 13
    for pfn in followers:
        assert describe_rmp_entry(*ENTRIES[pfn]) == "assigned 4K immutable gpa=0x0 asid=0 lock"


def test_vmsa_of_a_genoa_host() -> None:
    """The host wrote a VMSA page: 4K, the fixed VMSA address in 48 bits, ASID 2, validated, VMPL0 byte 0x1f."""
    lo, hi = ENTRIES[0x40FDF36]
    assert describe_rmp_entry(lo, hi) == "assigned 4K gpa=0xfffffffff000 asid=2 vmsa validated vmpl0=rwuxs"
    fields = named(decode_rmp_entry(lo, hi))
    assert (fields["gpa"], fields["asid"], fields["vmpl0"]) == (0xFFFFFFFFF, 2, 0x1F)
    assert fields["immutable"] == fields["lock"] == fields["vmpl1"] == 0


def test_entries_that_a_kernel_decoded() -> None:
    """AMDSEV issue 109 printed fields only; the GPA field of the first holds the firmware's IOMMU tag (rmp §1.3)."""
    (dump,) = (d for d in DUMPS if "decoded" in d)
    tagged = dump["decoded"][0]
    lo = tagged["assigned"] | tagged["immutable"] << 2 | int(tagged["gpa"], 16) << 12
    gpa = next(field for field in decode_rmp_entry(lo, 0) if field.name == "gpa")
    assert gpa.value == 0x2000000001
    assert gpa.meaning == "not an address: firmware type tag 2"
    assert describe_rmp_entry(0, 0) == "empty"


def test_busy_entry_of_the_firmware() -> None:
    """rmp §1.1: ASID 0x3ff is the firmware's mark for an entry that it is working on."""
    asid = next(field for field in decode_rmp_entry(0x3FF << 51 | 1, 0) if field.name == "asid")
    assert asid.value == 0x3FF
    assert "busy" in asid.meaning


@pytest.mark.parametrize(
    ("byte", "text"), [(0, "-----"), (0x0F, "rwux-"), (0x1F, "rwuxs"), (0x05, "r-u--"), (0x81, "r----+0x80")]
)
def test_permission_letters(byte: int, text: str) -> None:
    assert permissions(byte) == text


def test_every_bit_of_an_rmp_entry_is_named_once() -> None:
    lo, hi = 0, 0
    for field in decode_rmp_entry((1 << 64) - 1, (1 << 64) - 1):
        bits = field.bits.removeprefix("hi ")
        high, low = (int(part) for part in (bits.split(":") if ":" in bits else (bits, bits)))
        mask = ((1 << (high - low + 1)) - 1) << low
        if field.bits.startswith("hi "):
            assert not hi & mask
            hi |= mask
        else:
            assert not lo & mask
            lo |= mask
        assert field.value == mask >> low
    assert lo == hi == (1 << 64) - 1


@pytest.mark.parametrize("fault", [d["page_fault"] for d in DUMPS if "page_fault" in d])
def test_walks_of_real_faults(fault: dict[str, str]) -> None:
    """Both walks end in a 4K entry: present, writable, accessed, dirty, global, NX."""
    raw = int(fault["pte"], 16)
    assert fault["leaf_level"] == "4K"
    assert describe_pte(raw, 1) == f"frame {raw >> 12 & 0xFFFFFFFFFF:#x} P RW A D G NX"


@pytest.mark.parametrize(
    ("raw", "level", "text"),
    [
        # PAGE_KERNEL and its large form
        (0x8000000000000163, 1, "frame 0x0 P RW A D G NX"),
        (0x80000001000001E3, 3, "frame 0x100000 P RW A D PSE G NX"),
        # bit 7 is PSE at levels 2-3, PAT at level 1; bit 12 is PAT_LARGE only where PSE is set
        (0x80000000000000E3, 1, "frame 0x0 P RW A D PAT NX"),
        (0x00000000002011E3, 2, "frame 0x200 P RW A D PSE G PAT_LARGE"),
        (0x0000000000201163, 1, "frame 0x201 P RW A D G"),
        # table pointers of the boot code and of a split
        (0x13FFFF067, 3, "table 0x13ffff000 P RW US A D"),
        (0x13BD97063, 2, "table 0x13bd97000 P RW A D"),
        (0x3C01067, 4, "table 0x3c01000 P RW US A D"),
        (0x4201067, 5, "table 0x4201000 P RW US A D"),
        # a not-present entry stores its frame inverted; bit 8 is then PROTNONE
        (0x800FFFFFFEDCB020, 1, "frame 0x1234 (inverted) not present A NX"),
        (0x800FFFFFFFFFF120, 1, "frame 0x0 (inverted) not present A PROTNONE NX"),
        # a large page that was made not-present has no PSE: read with the full mask
        (0x800FFFFF801FF020, 2, "frame 0x7fe00 (inverted) not present A NX"),
        # software bits, protection key
        (0x7E00000000000E01, 1, "frame 0x0 P SOFTW1 SOFTW2 SOFTW3/KERNEL_4K SOFTW4 SOFTW5 PKEY=15"),
        (0, 1, "none"),
        (0, 4, "none"),
    ],
)
def test_pte_in_one_line(raw: int, level: int, text: str) -> None:
    assert describe_pte(raw, level) == text


def test_encryption_bit_is_a_flag() -> None:
    """direct-map §1: the C-bit lies inside the frame's bits, and is kept with the flags."""
    raw = 0x8000000000000163 | 1 << 51 | 0x1234000
    assert describe_pte(raw, 1, 1 << 51) == "frame 0x1234 P RW A D G C NX"
    inverted = 0x800FFFFFFEDCB020 & ~(1 << 51)
    assert describe_pte(inverted, 1, 1 << 51) == "frame 0x1234 (inverted) not present A NX"


def recorded_leaves() -> list[tuple[str, int, int, int]]:
    """The first leaf of every run of the direct map in every recording: (file, level, offset, raw)."""
    rows = []
    for path in sorted((DATA / "golden").glob("*.json")):
        recording = json.loads(path.read_text(encoding="utf-8"))
        for name in ("boot", "before", "after"):
            for level, offset, _, raw, _ in recording.get(name, {}).get("leaves", []):
                rows.append((path.name, level, int(offset, 16), int(raw, 16)))
    return rows


def test_direct_map_of_real_kernels_maps_each_frame_to_itself() -> None:
    """Offset = physical: so the frame read out of every leaf, inverted ones too, is its offset's."""
    leaves = recorded_leaves()
    assert any(not raw & 1 for _, _, _, raw in leaves)
    assert {level for _, level, _, _ in leaves} == {1, 2, 3}
    for name, level, offset, raw in leaves:
        assert named(decode_pte(raw, level))["frame"] == offset >> 12, (name, level, hex(offset), hex(raw))


@given(U64, st.integers(1, 5))
def test_pte_fields_put_together_give_the_entry(raw: int, level: int) -> None:
    total = 0
    for field in decode_pte(raw, level):
        high, low = (int(part) for part in (field.bits.split(":") if ":" in field.bits else (field.bits, field.bits)))
        value = field.value
        if field.name == "frame":
            value = field.value << 12 >> low
            if raw and not raw & 1:
                value = ~value & ((1 << (high - low + 1)) - 1)
        total |= value << low
    large = level in (2, 3) and raw & 0x80
    unnamed = (0x1FE000 if level == 2 else 0x3FFFE000) if large else 0
    assert total == raw & ~unnamed


@given(U64, U64, st.integers(1, 5))
def test_any_value_is_one_line(lo: int, hi: int, level: int) -> None:
    for text in (describe_rmp_entry(lo, hi), describe_pte(lo, level)):
        assert text
        assert "\n" not in text
