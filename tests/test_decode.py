"""Raw values in words: held against real dumps, the recordings, and the layouts of direct-map §1, rmp §1.1 and §3.5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpcore.decode import (
    STATES,
    Field,
    decode_nested_fault,
    decode_page_fault,
    decode_pte,
    decode_rmp_entry,
    describe_nested_fault,
    describe_page_fault,
    describe_pte,
    describe_rmp_entry,
    describe_state,
    permissions,
    state_name,
)
from rmpcore.page_state import PageState, page_state

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
    assert gpa.meaning == "not an address: firmware type tag 2, the IOMMU's"
    assert describe_state(lo).startswith("Firmware-IOMMU: ")
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


# --- states of pages -----------------------------------------------------------------------------------------------


def test_every_state_has_a_name_of_the_abi() -> None:
    assert set(STATES) == set(PageState)
    names = [state_name(state) for state in PageState]
    assert names == [
        "Default",
        "Hypervisor",
        "HV-Fixed",
        "Firmware",
        "Context",
        "Metadata",
        "Reclaim",
        "Pre-Guest",
        "Pre-Swap",
        "Guest-Invalid",
        "Guest-Valid",
        "Firmware-IOMMU",
        "invalid",
    ]


@pytest.mark.parametrize(
    ("lo", "name"),
    [
        (0, "Hypervisor"),
        (0x4, "HV-Fixed"),
        (ENTRIES[0x56600][0], "Firmware"),
        (ENTRIES[0x56601][0], "Firmware"),
        (0x8000000000000005 | 1 << 61, "Context"),
        (0x8000000000000005 | 1 << 48 | 0x1234 << 12, "Metadata"),
        (0x8000000000000005 | 0x2000000001 << 12, "Firmware-IOMMU"),
        (0x1, "Reclaim"),
        (0x8028000000001005, "Pre-Guest"),
        (0xC028000000001005, "Pre-Swap"),
        (0x0028000000001001, "Guest-Invalid"),
        (ENTRIES[0x40FDF36][0], "Guest-Valid"),
        (1 << 62, "invalid"),
    ],
)
def test_state_of_an_entry(lo: int, name: str) -> None:
    """rmp §4.1; the raw values are what SNP_INIT writes, real dumps, and the rows' own fields."""
    assert describe_state(lo).partition(":")[0] == name == state_name(page_state(lo))


def gpa_of(lo: int) -> Field:
    return next(field for field in decode_rmp_entry(lo, 0) if field.name == "gpa")


def test_tags_of_the_firmware() -> None:
    """rmp §1.3: the top of the gpa field is a tag on pages of the firmware, and an address on any other."""
    firmware = 0x8000000000000005
    assert gpa_of(firmware).meaning == "guest physical address 0x0"
    metadata = "not an address: firmware type tag 1, metadata of the guest with its context page at 0x1234000"
    assert gpa_of(firmware | 1 << 48 | 0x1234 << 12).meaning == metadata
    assert gpa_of(firmware | 2 << 48 | 1 << 12).meaning == "not an address: firmware type tag 2, the IOMMU's"
    assert gpa_of(firmware | 5 << 48).meaning == "not an address: firmware type tag 5"
    for other in (1 << 51, 0x4, 0x1):  # a guest's, mutable, not assigned
        lo = (firmware ^ other) | 1 << 48
        assert gpa_of(lo).meaning == "guest physical address 0x1000000000000", hex(lo)


# --- codes of faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0x80000003, "P W RMP: supervisor write, refused by the RMP"),  # two real logs
        (0x80000007, "P W US RMP: user write, refused by the RMP"),
        (0x80000001, "P RMP: supervisor read, refused by the RMP"),
        (0x9, "P RSV: supervisor read, reserved bits in an entry"),
        (0x0, "0: supervisor read, the page is not present"),
        (0x2, "W: supervisor write, the page is not present"),
        (0x11, "P I/D: supervisor instruction fetch, refused by the page tables"),
        (0x8063, "P W PK SS SGX: supervisor write, refused by the page tables"),
        (0x80000103, "P W RMP other=0x100: supervisor write, refused by the RMP"),
    ],
)
def test_code_of_a_page_fault(code: int, text: str) -> None:
    assert describe_page_fault(code) == text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        # the real one of a PVALIDATE: neither FINAL nor WALK
        (0xC80000005, "P US RMP ENC SIZEM: private read, the RMP has a 2 MiB page where 4 KiB is mapped or asked for"),
        (0x580000007, "P W US RMP FINAL ENC: private write, refused by the RMP"),
        (0x680000005, "P US RMP WALK ENC: private read of a page table of the guest, refused by the RMP"),
        (0x180000007, "P W US RMP FINAL: shared write, refused by the RMP"),
        (0x1580000015, "P US I/D RMP FINAL ENC VMPL: private instruction fetch, the VMPL has no permission"),
        (0x3580000007, "P W US RMP FINAL ENC VMPL SSS: private write, the VMPL has no permission"),
        (0x50000000D, "P US RSV FINAL ENC: private read, reserved bits in an entry"),
        (0x100000006, "W US FINAL: shared write, not mapped"),
        (0x100000007, "P W US FINAL: shared write, refused by the nested page tables"),
        (0x3000100000004, "US FINAL IMPLICIT PRIVATE: shared read, not mapped"),
    ],
)
def test_code_of_a_nested_fault(code: int, text: str) -> None:
    assert describe_nested_fault(code) == text


@given(U64)
def test_every_bit_of_a_code_is_a_field(code: int) -> None:
    for fields in (decode_page_fault(code), decode_nested_fault(code)):
        assert sum(f.value if f.name == "other" else f.value << int(f.bits) for f in fields) == code
        assert len({f.name for f in fields}) == len(fields)
    for text in (describe_page_fault(code), describe_nested_fault(code), describe_state(code)):
        assert "\n" not in text
