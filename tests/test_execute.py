"""machine.execute(): the six instructions by their bytes, as an emulator meets them (rmp §2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import (
    ASSIGNED,
    FAIL_INPUT,
    FAIL_INUSE,
    FAIL_OVERLAP,
    FAIL_PERMISSION,
    GIB,
    IMMUTABLE,
    LOCK,
    PSMASH_REFUSED,
    SIZE_2M,
    SMALL,
    SNP,
    SNP_CBIT,
    SNP_COVERED,
    SUCCESS,
    U64,
    VALIDATED,
    VMSA,
    Host,
)

from rmpcore.cpu import Cpu, Executed, Page, Registers
from rmpcore.machine import BACKENDS
from rmpcore.ops import Event, EventKind, Kind, Reason, Result, ResultFlag

ASID_5 = 5 << 51
OPCODES = {
    "RMPUPDATE": bytes.fromhex("f20f01fe"),
    "PSMASH": bytes.fromhex("f30f01ff"),
    "RMPREAD": bytes.fromhex("f20f01fd"),
    "PVALIDATE": bytes.fromhex("f20f01ff"),
    "RMPADJUST": bytes.fromhex("f30f01fe"),
    "RMPQUERY": bytes.fromhex("f30f01fd"),
}
HOSTS = ("RMPUPDATE", "PSMASH", "RMPREAD")
GUESTS = ("PVALIDATE", "RMPADJUST", "RMPQUERY")
COUNTER = {name: name.lower() for name in OPCODES}

# RFLAGS (rmp §2.1: OF, ZF, AF, PF, SF follow EAX; CF is PVALIDATE's)
CF, PF, AF, ZF, SF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
ARITHMETIC = CF | PF | AF | ZF | SF | OF
GUEST = Cpu(asid=5)
GVA = 0x7F00_0000_7000
PFN = 0x201
PA = PFN << 12
GPA = 0x7000
PAGE = Page(PA, GPA, 1)
UD = Result(6, Kind.FAULT)
GP = Result(13, Kind.FAULT)
NONE = Result(0, Kind.KERNEL)


def host_of(backend: str, **options: Any) -> Host:
    """A part that has all six."""
    return Host(backend, SNP, **({"hardware": "turin"} | options))


def operand(gpa: int = 0, assigned: int = 0, size: int = 0, immutable: int = 0, asid: int = 0) -> bytes:
    """The 16 bytes of rmp §1.5."""
    return gpa.to_bytes(8, "little") + bytes([assigned, size, immutable, 0]) + asid.to_bytes(4, "little")


def valid(host: Host, permissions: int = 0x1F, lo: int = 0) -> None:
    """Page PFN is ASID 5's at GPA and validated."""
    host.machine.write_rmp(PFN, VALIDATED | ASSIGNED | GPA | ASID_5 | lo, permissions)


def arguments(name: str, **registers: int) -> dict[str, Any]:
    """What lets an instruction succeed on a machine with a valid page; registers as they would be."""
    fields = {"rip": 0x1000, "rflags": 0x2}
    if name in HOSTS:
        fields |= {"rax": PA, "rcx": 0xFFFF_8880_0000_1000}
        more: dict[str, Any] = {"operand": operand()} if name == "RMPUPDATE" else {}
    else:
        fields |= {"rax": GVA, "rdx": 0x101 if name == "RMPADJUST" else 1}
        more = {"cpu": GUEST, "page": PAGE}
    return {"registers": Registers(**(fields | registers))} | more


def execute(host: Host, code: bytes, **args: Any) -> Executed:
    """Execute, with zero registers unless they are given."""
    return host.machine.execute(code, args.pop("registers", Registers()), **args)


# --- decoding ---


@pytest.mark.parametrize("name", OPCODES)
def test_each_opcode(backend: str, name: str) -> None:
    """rmp §2.1: the bytes of each; what it does is what the op of that name does."""
    host = host_of(backend)
    valid(host)
    done = execute(host, OPCODES[name], **arguments(name))
    assert (done.name, done.length) == (name, 4)
    assert done.result.kind == Kind.CODE
    assert host.counters()[COUNTER[name]] == 1
    assert sum(host.counters()[counter] for counter in COUNTER.values()) == 1


PREFIXES = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67]


@pytest.mark.parametrize("name", OPCODES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_that_change_nothing(backend: str, name: str, prefix: int) -> None:
    """rmp §2.1: segment, operand-size and address-size prefixes, before or after the mandatory one."""
    host = host_of(backend)
    valid(host)
    mandatory, opcode = OPCODES[name][:1], OPCODES[name][1:]
    extra = bytes([prefix])
    # an address of 32 bits for the address-size prefix
    small = {"rcx": 0x1000} if name in HOSTS else {"rax": 0x7000}
    for code in (extra + mandatory + opcode, mandatory + extra + opcode, extra * 3 + mandatory + extra + opcode):
        done = execute(host, code, **arguments(name, **small))
        assert (done.name, done.length, done.result.kind) == (name, len(code), Kind.CODE)
        assert done.registers.rip == 0x1000 + len(code)


@pytest.mark.parametrize("name", OPCODES)
def test_rex(backend: str, name: str) -> None:
    """rmp §2.1: one REX prefix, 40 to 4f, directly before 0f 01; anywhere else it is an instruction of its own."""
    host = host_of(backend)
    valid(host)
    mandatory, opcode = OPCODES[name][:1], OPCODES[name][1:]
    for rex in range(0x40, 0x50):
        done = execute(host, mandatory + bytes([rex]) + opcode, **arguments(name))
        assert (done.name, done.length) == (name, 5), hex(rex)
    for code in (b"\x48" + mandatory + opcode, mandatory + b"\x48\x48" + opcode, mandatory + b"\x48\x66" + opcode):
        done = execute(host, code, **arguments(name))
        assert done == Executed(None, 0, NONE, arguments(name)["registers"]), code.hex()


@pytest.mark.parametrize("mode", [32, 16])
def test_no_rex_outside_64_bit_mode(backend: str, mode: int) -> None:
    """rmp §2.1: outside 64-bit mode 40 to 4f are INC and DEC."""
    host = host_of(backend)
    for rex in (0x40, 0x48, 0x4F):
        code = b"\xf2" + bytes([rex]) + b"\x0f\x01\xff"
        done = execute(host, code, cpu=Cpu(asid=5, mode=mode), page=PAGE)
        assert (done.name, done.length) == (None, 0)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("f2f30f01fe", "RMPADJUST"),
        ("f3f20f01fe", "RMPUPDATE"),
        ("f2f30f01ff", "PSMASH"),
        ("f3f20f01ff", "PVALIDATE"),
        ("f3f3f20f01fd", "RMPREAD"),
        ("f2f266f30f01fd", "RMPQUERY"),
        ("f2f3480f01fd", "RMPQUERY"),
    ],
)
def test_the_last_of_f2_and_f3_decides(backend: str, code: str, name: str) -> None:
    """rmp §2.1, x86: of several mandatory prefixes the last one counts."""
    host = host_of(backend)
    valid(host)
    raw = bytes.fromhex(code)
    done = execute(host, raw, **arguments(name))
    assert (done.name, done.length) == (name, len(raw))


NOT_THESE = [
    "0f01fe",
    "0f01ff",
    "0f01fd",  # no f2 or f3
    "660f01fe",
    "660f01ff",
    "480f01fe",
    "0f01fc",  # CLZERO
    "f30f01fc",
    "f20f01fc",  # RMPOPT, of the next generation
    "f20f01fb",
    "f30f01fa",  # MCOMMIT
    "0f01f9",  # RDTSCP
    "f20f01f8",
    "f30f01ee",
    "f20f01d9",  # VMGEXIT
    "f30f01d9",
    "f20f01c8",
    "f20f00fe",
    "f20f02ff",
    "f2ff01fe",
    "f0f20f01fe",
    "f2f00f01ff",  # LOCK
    "f266f00f01fd",
    "f0f30f01fd",
    "90",
    "c3",
    "cc",
    "f390",
    "c5f20f01fe",
    "d5f20f01fe",
    "f23f0f01fe",  # next to the REX prefixes
    "f2500f01fe",
    "f3500f01ff",
    "63f20f01fe",  # next to the prefixes
    "68f20f01fe",
]


@pytest.mark.parametrize("code", NOT_THESE)
@pytest.mark.parametrize("mode", [64, 32, 16])
def test_other_instructions(backend: str, code: str, mode: int) -> None:
    """Not one of the six: the emulator goes on by itself; nothing is touched, whatever follows the bytes."""
    host = host_of(backend)
    host.assign(PFN, gpa=GPA)
    before = host.state()
    host.events()
    registers = Registers(PA, 2, 3, 0x1000, 0xFFFF)
    for cpu in (Cpu(mode=mode), Cpu(asid=5, mode=mode), Cpu(cpl=3, mode=mode)):
        for tail in (b"", bytes(8), bytes.fromhex("f20f01fe")):
            done = execute(host, bytes.fromhex(code) + tail, registers=registers, cpu=cpu, operand=operand(), page=PAGE)
            assert done == Executed(None, 0, NONE, registers)
    assert host.state() == before
    assert host.events() == []


@pytest.mark.parametrize("third", range(256))
def test_every_third_byte(backend: str, third: int) -> None:
    """rmp §2.1: of the 256 instructions f2 0f 01 xx and f3 0f 01 xx six are these."""
    host = host_of(backend, kernel="6.12")
    names = {opcode: name for name, opcode in OPCODES.items()}
    for prefix in (0xF2, 0xF3):
        code = bytes([prefix, 0x0F, 0x01, third])
        # at CPL 3 all six fault before anything else happens, so this is about decoding alone
        for cpu in (Cpu(cpl=3), Cpu(asid=5, cpl=3)):
            done = execute(host, code, cpu=cpu, operand=operand(), page=PAGE)
            assert done.name == names.get(code)
            assert (done.result.kind == Kind.FAULT) == (code in names)


@pytest.mark.parametrize("name", OPCODES)
def test_truncation(backend: str, name: str) -> None:
    """A code that ends too early is none of them; bytes after the instruction are not looked at."""
    host = host_of(backend)
    valid(host)
    code = b"\x66" + OPCODES[name][:1] + b"\x48" + OPCODES[name][1:]
    assert len(code) == 6
    for length in range(len(code)):
        done = execute(host, code[:length], **arguments(name))
        assert done == Executed(None, 0, NONE, arguments(name)["registers"])
    assert host.counters()[COUNTER[name]] == 0
    done = execute(host, code + b"\xcc\xcc", **arguments(name))
    assert (done.name, done.length) == (name, 6)


@pytest.mark.parametrize("name", OPCODES)
def test_15_bytes_at_most(backend: str, name: str) -> None:
    """x86: no instruction is longer than 15 bytes."""
    host = host_of(backend)
    valid(host)
    for many, rex, found in ((11, b"", True), (10, b"\x41", True), (12, b"", False), (11, b"\x41", False)):
        code = b"\x2e" * many + OPCODES[name][:1] + rex + OPCODES[name][1:]
        done = execute(host, code, **arguments(name))
        assert (done.name, done.length) == ((name, len(code)) if found else (None, 0))


def decoded(code: bytes, mode: int) -> tuple[str | None, int]:
    """The rule of decoding, said once more: name and length."""
    at, mandatory, locked = 0, 0, False
    while at < len(code) and code[at] in (*PREFIXES, 0xF0, 0xF2, 0xF3):
        mandatory = code[at] if code[at] in (0xF2, 0xF3) else mandatory
        locked |= code[at] == 0xF0
        at += 1
    if mode == 64 and at < len(code) and 0x40 <= code[at] <= 0x4F:
        at += 1
    length = at + 3
    names = {opcode: name for name, opcode in OPCODES.items()}
    name = names.get(bytes([mandatory]) + code[at:length])
    return (name, length) if name and not locked and length <= 15 else (None, 0)


BYTES = st.sampled_from([*PREFIXES, 0xF0, 0xF2, 0xF3, 0xF2, 0xF3, 0x40, 0x48, 0x4F, 0x0F, 0x01])
CODES = st.builds(
    lambda head, tail: bytes(head) + tail,
    st.lists(BYTES, max_size=13),
    st.sampled_from([b"\x0f\x01" + bytes([third]) for third in (0xFC, 0xFD, 0xFE, 0xFF)] + [b"", b"\x0f\x01"]),
)


@settings(max_examples=400)
@given(code=CODES, mode=st.sampled_from([64, 32, 16]), asid=st.sampled_from([0, 5]))
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_decoding(backend_name: str, code: bytes, mode: int, asid: int) -> None:
    """Prefixes in any order and number, REX, LOCK, truncation: name and length by the rule."""
    done = execute(_MACHINES[backend_name], code, cpu=Cpu(asid=asid, cpl=3, mode=mode), page=PAGE)
    assert (done.name, done.length) == decoded(code, mode)


class _Machines(dict[str, Host]):
    """One machine each for the tests that change nothing."""

    def __missing__(self, backend: str) -> Host:
        self[backend] = host_of(backend)
        return self[backend]


_MACHINES = _Machines()


# --- modes, privilege, faults ---


@pytest.mark.parametrize("name", OPCODES)
@pytest.mark.parametrize(("mode", "only"), [(64, tuple(OPCODES)), (32, ("PVALIDATE",)), (16, ())])
def test_modes(backend: str, name: str, mode: int, only: tuple[str, ...]) -> None:
    """rmp §2.1: 64-bit mode only, but for PVALIDATE; none in real and virtual-8086 mode: #UD, before #GP."""
    host = host_of(backend)
    valid(host)
    args = arguments(name)
    cpu = args.pop("cpu", Cpu())._replace(mode=mode)
    done = execute(host, OPCODES[name], cpu=cpu, **args)
    assert (done.name, done.length) == (name, 4)
    if name in only:
        assert done.result.kind == Kind.CODE
    else:
        assert done.result == UD
        assert done.registers == args["registers"]
        user = execute(host, OPCODES[name], cpu=cpu._replace(cpl=3), **args)
        assert user.result == UD
        assert host.counters()[COUNTER[name]] == 0


@pytest.mark.parametrize("cpl", [1, 2, 3])
@pytest.mark.parametrize("name", OPCODES)
def test_privilege(backend: str, name: str, cpl: int) -> None:
    """rmp §2.2 row 0, §2.5 row 1: CPL other than 0: #GP(0), before the operand is looked at."""
    host = host_of(backend)
    valid(host)
    args = arguments(name)
    cpu = args.pop("cpu", Cpu())._replace(cpl=cpl)
    before = host.state()
    for missing in (False, True):
        if missing:
            args = {"registers": args["registers"]}
        done = execute(host, OPCODES[name], cpu=cpu, **args)
        assert done == Executed(name, 4, GP, args["registers"])
    assert host.state() == before


@pytest.mark.parametrize("name", OPCODES)
def test_without_snp(backend: str, name: str) -> None:
    """rmp §2.1: SNP not enabled: #UD, before #GP and before the operand."""
    host = Host(backend, SMALL, hardware="turin")
    args = {"registers": arguments(name)["registers"]}
    for cpl in (0, 3):
        for asid in (0, 5):
            done = execute(host, OPCODES[name], cpu=Cpu(asid=asid, cpl=cpl), **args)
            assert done == Executed(name, 4, UD, args["registers"])


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("cpu", [Cpu(), Cpu(asid=5, snp=False), Cpu(cpl=3), Cpu(asid=5, snp=False, cpl=3)])
def test_guest_instructions_outside_an_snp_guest(backend: str, name: str, cpu: Cpu) -> None:
    """rmp §2.5 row 0: not an SNP guest, or the host: #UD."""
    host = host_of(backend)
    valid(host)
    args = arguments(name)
    done = execute(host, OPCODES[name], **(args | {"cpu": cpu}))
    assert done == Executed(name, 4, UD, args["registers"])


@pytest.mark.parametrize("snp", [True, False])
@pytest.mark.parametrize("name", HOSTS)
def test_host_instructions_in_a_guest(backend: str, name: str, snp: bool) -> None:
    """rmp §2.2 row 1 is before row 2: FAIL_PERMISSION, though the operand cannot be read."""
    host = host_of(backend)
    valid(host)
    before = host.state().rmp.tolist()
    done = execute(host, OPCODES[name], registers=Registers(rax=PA, rip=7), cpu=Cpu(asid=1, snp=snp))
    assert done.result == Result(FAIL_PERMISSION, Kind.CODE)
    assert done.registers == Registers(FAIL_PERMISSION, 0, 0, 11, 0x2)
    assert done.memory is None
    assert host.state().rmp.tolist() == before
    assert host.counters()[COUNTER[name]] == 1


@pytest.mark.parametrize(
    ("hardware", "absent"), [("milan", {"RMPREAD", "RMPQUERY"}), ("genoa", {"RMPREAD"}), ("turin", set())]
)
@pytest.mark.parametrize("name", OPCODES)
def test_parts(backend: str, hardware: str, absent: set[str], name: str) -> None:
    """rmp §1.8: CPUID says what a part has; what it has not is #UD."""
    host = host_of(backend, hardware=hardware)
    valid(host)
    done = execute(host, OPCODES[name], **arguments(name))
    assert (done.result == UD) == (name in absent)
    assert done.name == name


def test_operand_of_rmpupdate(backend: str) -> None:
    """rmp §2.2 row 2: paging faults of the operand, before rows 3 to 9; CR2 is its address."""
    host = host_of(backend)
    registers = Registers(rax=SNP_COVERED << 12, rcx=0xFFFF_8880_1234_5678, rip=9)
    done = execute(host, OPCODES["RMPUPDATE"], registers=registers)
    assert done.result._replace(reason=0) == Result(14, Kind.FAULT, value=0, value2=0xFFFF_8880_1234_5678)
    assert (done.name, done.registers) == ("RMPUPDATE", registers)
    assert host.counters()["rmpupdate"] == 0


@pytest.mark.parametrize("name", GUESTS)
def test_translation_of_guest_instructions(backend: str, name: str) -> None:
    """rmp §2.5 row 5: the walk of the guest's address fails: #PF; after the rows before it."""
    host = host_of(backend)
    rdx = 0x101 if name == "RMPADJUST" else 1
    registers = Registers(rax=GVA, rdx=rdx)
    done = execute(host, OPCODES[name], registers=registers, cpu=GUEST)
    assert done.result._replace(reason=0) == Result(14, Kind.FAULT, value=0, value2=GVA)
    assert done.registers == registers
    assert host.counters()[COUNTER[name]] == 0


@pytest.mark.parametrize(
    ("name", "registers", "vmpl", "expected"),
    [
        ("PVALIDATE", Registers(rdx=1), 1, GP),  # row 2
        ("PVALIDATE", Registers(rcx=2, rdx=1), 3, GP),
        ("PVALIDATE", Registers(rcx=2), 0, Result(FAIL_INPUT, Kind.CODE)),  # row 3
        ("PVALIDATE", Registers(rdx=2), 0, Result(FAIL_INPUT, Kind.CODE)),
        ("PVALIDATE", Registers(rax=0x1000, rcx=1), 0, Result(FAIL_INPUT, Kind.CODE)),  # row 4
        ("RMPADJUST", Registers(rcx=2, rdx=0x101), 0, Result(FAIL_INPUT, Kind.CODE)),  # row 1
        ("RMPADJUST", Registers(rdx=4), 0, Result(FAIL_INPUT, Kind.CODE)),
        ("RMPADJUST", Registers(rax=0x1000, rcx=1, rdx=1), 0, Result(FAIL_INPUT, Kind.CODE)),
        ("RMPADJUST", Registers(rdx=0x100), 0, Result(FAIL_PERMISSION, Kind.CODE)),  # row 2
        ("RMPADJUST", Registers(rdx=0x101), 1, Result(FAIL_PERMISSION, Kind.CODE)),
    ],
)
def test_rows_before_the_walk(backend: str, name: str, registers: Registers, vmpl: int, expected: Result) -> None:
    """rmp §2.5 rows 2 to 4, §2.6 rows 1 and 2: they need no page, and are checked before the walk."""
    host = host_of(backend)
    for page in (None, PAGE):
        done = execute(host, OPCODES[name], registers=registers, cpu=Cpu(asid=5, vmpl=vmpl), page=page)
        assert done.result == expected
        if expected.kind == Kind.CODE:
            assert done.registers.rax == expected.ret
            assert done.registers.rip == 4
        else:
            assert done.registers == registers
    assert host.counters()[COUNTER[name]] == (2 if expected.kind == Kind.CODE else 0)


@pytest.mark.parametrize(
    "args",
    [
        {"cpu": Cpu(asid=5, vmpl=4)},
        {"cpu": Cpu(asid=5, vmpl=255)},
        {"cpu": GUEST, "page": Page(PA, GPA, 0)},
        {"cpu": GUEST, "page": Page(PA, GPA, 4)},
        {"cpu": GUEST, "page": Page(1 << 64, GPA, 1)},
        {"cpu": GUEST, "page": Page(PA, -1, 1)},
        {"cpu": Cpu(asid=1 << 32)},
        {"cpu": Cpu(asid=-1)},
        *({"registers": Registers(**{name: value})} for name in Registers._fields for value in (1 << 64, -1)),
    ],
)
def test_what_no_machine_has(backend: str, args: dict[str, Any]) -> None:
    """A VMPL or a level that does not exist, or a number that is too wide, is an error of the caller."""
    host = host_of(backend)
    before = host.machine.state()
    with pytest.raises(ValueError):
        execute(host, OPCODES["PVALIDATE"], **({"registers": Registers(rdx=1)} | args))
    assert host.machine.state() == before


@pytest.mark.parametrize("length", [0, 8, 15, 17])
def test_operands_have_16_bytes(backend: str, length: int) -> None:
    """An operand of another length is an error of the caller."""
    with pytest.raises(ValueError):
        execute(host_of(backend), OPCODES["RMPUPDATE"], operand=bytes(length))


def test_fewer_vmpls(backend: str) -> None:
    """The switch vmpls says how many there are."""
    host = host_of(backend, switches={"vmpls": 2})
    valid(host)
    args = arguments("RMPQUERY")
    assert execute(host, OPCODES["RMPQUERY"], **(args | {"cpu": Cpu(asid=5, vmpl=1)})).result.kind == Kind.CODE
    with pytest.raises(ValueError):
        execute(host, OPCODES["RMPQUERY"], **(args | {"cpu": Cpu(asid=5, vmpl=2)}))


def test_nested_faults_leave_the_registers(backend: str) -> None:
    """rmp §2.5 row 7, §3.5: #VMEXIT(NPF) with SIZEM, #VC: RIP and all else stay, so that the guest tries again."""
    host = host_of(backend)
    host.assign(0x200, size=1, gpa=GIB)
    host.assign(0x401, gpa=GPA)
    registers = Registers(GVA, 0, 0x101, 0x1000, 0xAFF)
    page = Page(0x201000, GIB + 0x1000, 2)
    for name in GUESTS:
        used = registers._replace(rdx=1) if name != "RMPADJUST" else registers
        level = 1 if name == "RMPQUERY" else 2
        done = execute(host, OPCODES[name], registers=used, cpu=GUEST, page=page._replace(level=level))
        fault = Result(0x400, Kind.NPF, reason=Reason.SIZE, value=0xC_8000_0005, value2=GIB + 0x1000)
        assert done == Executed(name, 4, fault, used)
    done = execute(host, OPCODES["RMPADJUST"], registers=registers, cpu=GUEST, page=Page(0x401000, GPA, 1))
    fault = Result(29, Kind.FAULT, reason=Reason.NOT_VALIDATED, value=0x404, value2=GVA)
    assert done == Executed("RMPADJUST", 4, fault, registers)
    assert all(host.counters()[COUNTER[name]] == 0 for name in GUESTS)


# --- results in registers, flags, memory ---


def flags_of(code: int, before: int, cf: int | None) -> int:
    """rmp §2.1: ZF, SF and PF of EAX, OF and AF 0; CF is PVALIDATE's own, the others leave it."""
    after = before & ~(ARITHMETIC if cf is not None else ARITHMETIC & ~CF)
    after |= ZF if code == 0 else 0
    after |= SF if code >> 31 & 1 else 0
    after |= PF if (code & 0xFF).bit_count() % 2 == 0 else 0
    return after | (cf or 0)


@pytest.mark.parametrize("before", [0x2, 0x2 | ARITHMETIC, 0x2 | CF, 0x246, 0x0020_0ED7, U64])
@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 0x7F, 0x80, 0xFE, 0xFF])
def test_flags_follow_the_code(backend: str, code: int, before: int) -> None:
    """rmp §2.1: EFLAGS OF, ZF, AF, PF, SF follow EAX; codes are injected into RMPUPDATE and PSMASH."""
    host = host_of(backend)
    for name in ("RMPUPDATE", "PSMASH"):
        if code:
            host.call("inject", code=code)
        elif name == "PSMASH":
            host.assign(0x400, size=1)
        registers = Registers(0x400000 if name == "PSMASH" else PA, 0x33, 0x44, 0x1000, before)
        done = execute(host, OPCODES[name], registers=registers, operand=operand())
        assert done.result == Result(code, Kind.CODE)
        assert done.registers == Registers(code, 0x33, 0x44, 0x1004, flags_of(code, before, None)), name


def test_known_flags(backend: str) -> None:
    """The same by hand: 0: ZF and PF; 1: none; 3 (two bits) PF; 4: none; 7: none."""
    host = host_of(backend)
    seen = {}
    for code in (0, 1, 3, 4, 6, 7):
        if code:
            host.call("inject", code=code)
        done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=PA), operand=operand())
        seen[code] = done.registers.rflags
    assert seen == {0: 0x46, 1: 0x02, 3: 0x06, 4: 0x02, 6: 0x06, 7: 0x02}


@pytest.mark.parametrize("before", [0x2, 0x2 | ARITHMETIC])
def test_carry_of_pvalidate(backend: str, before: int) -> None:
    """rmp §2.1, §2.5: CF = 1: the state was already as asked; 0 in every other case."""
    host = host_of(backend)
    host.assign(PFN, gpa=GPA)
    expected = [(0, 0), (0, 1)]
    for code, cf in expected:
        done = execute(host, OPCODES["PVALIDATE"], **arguments("PVALIDATE", rflags=before))
        assert done.result == Result(code, Kind.CODE, flags=ResultFlag.CF if cf else 0)
        assert done.registers == Registers(0, 0, 1, 0x1004, flags_of(0, before, cf))
    done = execute(host, OPCODES["PVALIDATE"], **arguments("PVALIDATE", rflags=before, rcx=1, rax=0))
    assert (done.registers.rax, done.registers.rflags) == (6, flags_of(6, before, 0))
    done = execute(host, OPCODES["PVALIDATE"], **arguments("PVALIDATE", rflags=before, rcx=2))
    assert (done.registers.rax, done.registers.rflags) == (1, flags_of(1, before, 0))


@pytest.mark.parametrize("name", ["RMPADJUST", "RMPQUERY", "RMPREAD"])
@pytest.mark.parametrize("before", [0x2, 0x3, 0x2 | ARITHMETIC])
def test_carry_of_the_others(backend: str, name: str, before: int) -> None:
    """rmp §2.1: CF carries a meaning for PVALIDATE only: the others leave it."""
    host = host_of(backend)
    valid(host)
    done = execute(host, OPCODES[name], **arguments(name, rflags=before))
    assert done.registers.rflags == flags_of(0, before, None)


def test_rax_is_zero_extended(backend: str) -> None:
    """rmp §2.1: the code is in EAX; its upper half is 0."""
    host = host_of(backend, switches={"pvalidate_vmpl": 0xC3})
    done = execute(host, OPCODES["PVALIDATE"], registers=Registers(rax=U64, rdx=1), cpu=Cpu(asid=5, vmpl=1), page=PAGE)
    assert done.result == Result(0xC3, Kind.CODE)
    assert done.registers.rax == 0xC3
    assert done.registers.rflags == 0x2 | PF
    done = execute(host, OPCODES["PSMASH"], registers=Registers(rax=U64 & ~0x1F_FFFF))
    assert done.registers.rax == FAIL_INPUT


@pytest.mark.parametrize(
    ("mode", "rip", "after"),
    [
        (64, 0x1000, 0x1004),
        (64, U64 - 1, 2),
        (64, 0xFFFF_FFFE, 0x1_0000_0002),
        (32, 0xFFFF_FFFE, 2),
        (32, 0x1000, 0x1004),
    ],
)
def test_rip(backend: str, mode: int, rip: int, after: int) -> None:
    """RIP goes on by the length, modulo 2**64, or 2**32 outside 64-bit mode."""
    host = host_of(backend)
    valid(host)
    args = arguments("PVALIDATE", rip=rip, rax=0x7000)
    done = execute(host, OPCODES["PVALIDATE"], **(args | {"cpu": Cpu(asid=5, mode=mode)}))
    assert done.registers.rip == after


def test_rmpupdate(backend: str) -> None:
    """rmp §1.5, §2.2: the operand's fields are what is stored; the event has the two quadwords."""
    host = host_of(backend)
    raw = operand(0x1234_5000, assigned=1, immutable=1, asid=0x155)
    done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=PA), operand=raw)
    assert done == Executed("RMPUPDATE", 4, Result(0, Kind.CODE), Registers(0, 0, 0, 4, 0x46))
    assert host.rmp(PFN) == (LOCK | IMMUTABLE | ASSIGNED | 0x1234_5000 | 0x155 << 51, 0x1F)
    assert host.events() == [Event(EventKind.RMPUPDATE, code=0, a=PA, b=0x1234_5000, c=1 | 1 << 16 | 0x155 << 32)]
    done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=0x400000), operand=operand(GIB, 1, 1, 0, 7))
    assert done.registers.rax == SUCCESS
    assert host.rmp(0x400) == (ASSIGNED | SIZE_2M | GIB | 7 << 51, 0x1F)
    done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=0x400000), operand=operand())
    assert done.registers.rax == FAIL_OVERLAP


def test_all_bits_of_the_operand(backend: str) -> None:
    """rmp §5 point 5: reserved bits are ignored, or FAIL_INPUT with reserved_input; the event has all of them."""
    raw = bytes.fromhex("000067000000000001000000050000ff"[:16]) + bytes([0xFF, 0xFE, 0xFE, 0xAA, 5, 0, 0, 0])
    assert len(raw) == 16
    for strict, code in ((0, SUCCESS), (1, FAIL_INPUT)):
        host = host_of(backend, switches={"reserved_input": strict})
        done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=PA), operand=raw)
        assert done.registers.rax == code
        (event,) = host.events()
        assert (event.b, event.c) == (0x67_0000, 0x5_AAFE_FEFF)
    assert Host(backend, SNP).rmp(PFN) == (0, 0)


def test_rmpread(backend: str) -> None:
    """rmp §1.5, §2.4: 16 bytes where RCX points, unless the code says that nothing was read."""
    host = host_of(backend)
    host.assign(0x200, size=1, gpa=0x4000_0000, asid=0x2A5)
    done = execute(host, OPCODES["RMPREAD"], registers=Registers(0x200000, 0x9000, 0, 0, 0x2))
    assert done.memory == bytes.fromhex("000000400000000001010000a5020000")
    assert done.registers == Registers(0, 0x9000, 0, 4, 0x46)
    for registers, cpu, code in (
        (Registers(rax=SNP_COVERED << 12), Cpu(), FAIL_INPUT),
        (Registers(rax=0x200000), Cpu(asid=1), FAIL_PERMISSION),
    ):
        done = execute(host, OPCODES["RMPREAD"], registers=registers, cpu=cpu)
        assert (done.registers.rax, done.memory) == (code, None)


def test_no_memory_but_from_rmpread(backend: str) -> None:
    """Only RMPREAD stores."""
    host = host_of(backend)
    valid(host)
    for name in OPCODES:
        done = execute(host, OPCODES[name], **arguments(name))
        assert (done.memory is not None) == (name == "RMPREAD")


def test_psmash(backend: str) -> None:
    """rmp §2.3: RAX is the 2 MiB-aligned address."""
    host = host_of(backend)
    host.assign(0x400, size=1, gpa=GIB)
    done = execute(host, OPCODES["PSMASH"], registers=Registers(0x400000, 1, 2, 3, 0x2))
    assert done == Executed("PSMASH", 4, Result(0, Kind.CODE), Registers(0, 1, 2, 7, 0x46))
    assert host.rmp(0x401) == (ASSIGNED | GIB + 0x1000 | ASID_5, 0x1F)
    done = execute(host, OPCODES["PSMASH"], registers=Registers(rax=0x400000))
    assert done.registers.rax == PSMASH_REFUSED
    done = execute(host, OPCODES["PSMASH"], registers=Registers(rax=0x400001))
    assert done.registers.rax == FAIL_INPUT


def test_in_use(backend: str) -> None:
    """rmp §3.7: a page in use: FAIL_INUSE, by these bytes as by the op."""
    host = host_of(backend)
    assert host.do("VMRUN", vmcb=PA, asid=1, plain=1).kind == Kind.ALLOWED
    done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=PA), operand=operand())
    assert done.registers == Registers(FAIL_INUSE, 0, 0, 4, 0x06)


def test_rmpadjust(backend: str) -> None:
    """rmp §2.6: RDX: target VMPL, permission byte, VMSA bit; registers but RAX, RIP and flags stay."""
    host = host_of(backend)
    valid(host)
    registers = Registers(GVA, 0, 0x1_0702, 0x1000, 0x2)
    done = execute(host, OPCODES["RMPADJUST"], registers=registers, cpu=GUEST, page=PAGE)
    assert done == Executed("RMPADJUST", 4, Result(0, Kind.CODE), Registers(0, 0, 0x1_0702, 0x1004, 0x46))
    assert host.rmp(PFN) == (VMSA | VALIDATED | ASSIGNED | GPA | ASID_5, 0x0007_001F)
    # VMPL2 holds read, write and user execution; it may give VMPL3 no more, and cannot touch the VMSA bit
    for rdx, code in ((0x0803, FAIL_PERMISSION), (0x0303, SUCCESS)):
        done = execute(
            host,
            OPCODES["RMPADJUST"],
            registers=registers._replace(rdx=rdx),
            cpu=Cpu(asid=5, vmpl=2),
            page=PAGE,
        )
        assert done.registers.rax == code
    assert host.rmp(PFN) == (VMSA | VALIDATED | ASSIGNED | GPA | ASID_5, 0x0307_001F)
    kinds = [(event.kind, event.code, event.a, event.b, event.c) for event in host.events()]
    assert kinds == [
        (EventKind.RMPADJUST, 0, GVA, 0, 0x1_0702),
        (EventKind.RMPADJUST, 2, GVA, 0, 0x0803),
        (EventKind.RMPADJUST, 0, GVA, 0, 0x0303),
    ]


def test_rmpquery(backend: str) -> None:
    """rmp §1.5, §2.7: RCX is the size, RDX VMPL, permission byte and vmsa; with another code they stay."""
    host = host_of(backend)
    valid(host, 0x0003_0F1F, VMSA)
    registers = Registers(GVA, U64, 1, 0x1000, 0x3)
    done = execute(host, OPCODES["RMPQUERY"], registers=registers, cpu=GUEST, page=PAGE)
    assert done.result == Result(0, Kind.CODE, value=0, value2=0x1_0F01)
    assert done.registers == Registers(0, 0, 0x1_0F01, 0x1004, 0x47)
    host.machine.write_rmp(0x200, VALIDATED | ASSIGNED | SIZE_2M | GIB | ASID_5, 0x1F)
    inner = Page(0x2FF000, GIB + 0xFF000, 2)
    done = execute(host, OPCODES["RMPQUERY"], registers=registers._replace(rdx=0), cpu=GUEST, page=inner)
    assert done.registers == Registers(0, 1, 0x1F00, 0x1004, 0x47)
    host.machine.write_rmp(0x200, 0, 0)
    done = execute(host, OPCODES["RMPQUERY"], registers=registers, cpu=Cpu(asid=5, vmpl=2), page=PAGE)
    assert done.result == Result(FAIL_PERMISSION, Kind.CODE)
    assert done.registers == Registers(2, U64, 1, 0x1004, 0x3)


def test_rmpquery_looks_at_dl_alone(backend: str) -> None:
    """rmp §1.5: RDX[7:0] is the VMPL asked about."""
    host = host_of(backend)
    valid(host, 0x0003_0F1F)
    registers = Registers(rax=GVA, rdx=U64 & ~0xFF | 2)
    done = execute(host, OPCODES["RMPQUERY"], registers=registers, cpu=GUEST, page=PAGE)
    assert (done.registers.rax, done.registers.rdx) == (0, 0x302)


@pytest.mark.parametrize("target", [4, 0x7F, 0x80, 0x81, 0xFF])
def test_rmpquery_of_no_vmpl(backend: str, target: int) -> None:
    """rmp §2.7 row 4: all of RDX[7:0] has to be below the number of VMPLs."""
    host = host_of(backend)
    valid(host, 0x0003_0F1F)
    registers = Registers(rax=GVA, rcx=7, rdx=target)
    done = execute(host, OPCODES["RMPQUERY"], registers=registers, cpu=GUEST, page=PAGE)
    assert done.result == Result(FAIL_PERMISSION, Kind.CODE)
    assert (done.registers.rcx, done.registers.rdx) == (7, target)


# --- addresses ---


def test_address_size_of_the_operand(backend: str) -> None:
    """67 in 64-bit mode: the memory operand's register counts with 32 bits; RAX, a physical address, is never cut."""
    host = host_of(backend)
    rcx = 0xFFFF_8880_1234_5678
    for code, address in ((b"", rcx), (b"\x67", 0x1234_5678), (b"\x67\x67", 0x1234_5678)):
        done = execute(host, code + OPCODES["RMPUPDATE"], registers=Registers(rax=PA, rcx=rcx))
        assert (done.result.ret, done.result.value2) == (14, address)
        assert done.registers.rcx == rcx
    for name in ("RMPUPDATE", "RMPREAD"):
        registers = Registers(rax=1 << 32 | PA)
        done = execute(host, b"\x67" + OPCODES[name], registers=registers, operand=operand())
        assert done.registers.rax == FAIL_INPUT  # not covered: 4 GiB is beyond the table
    done = execute(host, b"\x67" + OPCODES["PSMASH"], registers=Registers(rax=1 << 32))
    assert done.registers.rax == FAIL_INPUT


@pytest.mark.parametrize(
    ("mode", "prefix", "address"),
    [(64, b"", 0x7F01_8020_1000), (64, b"\x67", 0x8020_1000), (32, b"", 0x8020_1000), (32, b"\x67", 0x8020_1000)],
)
def test_address_size_of_guest_instructions(backend: str, mode: int, prefix: bytes, address: int) -> None:
    """rmp §2.1: rAX has the address size: with 67, and outside 64-bit mode, 32 bits of it count (here 31 and 32 are
    set)."""
    host = host_of(backend)
    registers = Registers(rax=0x7F01_8020_1000, rdx=1)
    done = execute(host, prefix + OPCODES["PVALIDATE"], registers=registers, cpu=Cpu(asid=5, mode=mode))
    assert done.result._replace(reason=0) == Result(14, Kind.FAULT, value2=address)
    assert done.registers == registers


@pytest.mark.parametrize("name", ["RMPADJUST", "RMPQUERY"])
def test_address_size_of_the_others(backend: str, name: str) -> None:
    """The same for the two that exist in 64-bit mode only: what CR2 of a #VC or #PF shows."""
    host = host_of(backend)
    host.assign(PFN, gpa=GPA)
    registers = Registers(rax=0x7F00_0020_1000, rdx=1)
    for prefix, address in ((b"", 0x7F00_0020_1000), (b"\x67", 0x0020_1000)):
        done = execute(host, prefix + OPCODES[name], registers=registers, cpu=GUEST)
        assert done.result.value2 == address
        done = execute(host, prefix + OPCODES[name], registers=registers, cpu=GUEST, page=PAGE)
        assert (done.result.ret, done.result.value2) == (29, address)


def test_alignment_is_of_the_address_that_counts(backend: str) -> None:
    """rmp §2.5 row 4: bits 20:12 of the address lie below bit 32, so the cut does not change them."""
    host = host_of(backend)
    for rax, code in ((0x7F00_0020_0000, 6), (0x7F00_0020_1000, FAIL_INPUT)):
        valid(host)
        done = execute(host, b"\x67" + OPCODES["PVALIDATE"], **arguments("PVALIDATE", rax=rax, rcx=1))
        assert done.registers.rax == code


def test_pvalidate_outside_64_bit_mode(backend: str) -> None:
    """rmp §2.1: PVALIDATE in any mode with rAX of address size; ECX and EDX as ever."""
    host = host_of(backend)
    host.assign(PFN, gpa=GPA)
    cpu = Cpu(asid=5, mode=32)
    registers = Registers(0xFFFF_FFFF_0000_7000, 1 << 32, 1 << 63 | 1, 0xFFFF_FFFF, 0x2)
    done = execute(host, OPCODES["PVALIDATE"], registers=registers, cpu=cpu, page=PAGE)
    assert done.result == Result(0, Kind.CODE)
    assert done.registers.rip == 3
    assert host.rmp(PFN)[0] == VALIDATED | ASSIGNED | GPA | ASID_5


def test_c_bit(backend: str) -> None:
    """rmp §1.6: the C-bit is taken out of RAX and of a page's address."""
    host = Host(backend, SNP_CBIT)
    c_bit = SNP_CBIT.c_bit
    registers = Registers(rax=c_bit | PA)
    done = execute(host, OPCODES["RMPUPDATE"], registers=registers, operand=operand(GPA, 1, 0, 0, 5))
    assert done.registers.rax == SUCCESS
    args = arguments("PVALIDATE") | {"page": Page(c_bit | PA, GPA, 1)}
    assert execute(host, OPCODES["PVALIDATE"], **args).result == Result(0, Kind.CODE)
    assert host.rmp(PFN)[0] == VALIDATED | ASSIGNED | GPA | ASID_5


# --- the same as the op ---


def cases() -> Iterator[tuple[str, dict[str, int], dict[str, Any]]]:
    """Ops beside what they are as bytes."""
    for rdx in (0, 1, 2):
        for rcx in (0, 1, 2):
            for vmpl in (0, 1):
                for asid in (5, 6):
                    for level in (1, 2):
                        op = {"gva": GVA & ~0x1F_FFFF, "rcx": rcx, "rdx": rdx, "pa": PA, "gpa": GPA}
                        op |= {"asid": asid, "level": level, "vmpl": vmpl}
                        registers = Registers(op["gva"], rcx, rdx)
                        more = {"registers": registers, "cpu": Cpu(asid=asid, vmpl=vmpl), "page": Page(PA, GPA, level)}
                        for name in GUESTS:
                            if name == "RMPQUERY":
                                yield name, {key: value for key, value in op.items() if key != "rcx"}, more
                            else:
                                yield name, op, more
    for pfn in (PFN, 0x200, 0x400, SNP_COVERED):
        yield "PSMASH", {"pa": pfn << 12}, {"registers": Registers(rax=pfn << 12)}
        yield "RMPREAD", {"pa": pfn << 12}, {"registers": Registers(rax=pfn << 12)}
        for assigned in (0, 1):
            for size in (0, 1):
                fields = {"gpa": GPA, "assigned": assigned, "size": size, "immutable": assigned, "asid": 5 * assigned}
                raw = operand(**fields)
                yield "RMPUPDATE", {"pa": pfn << 12} | fields, {"registers": Registers(rax=pfn << 12), "operand": raw}


def test_bytes_and_ops_do_the_same(backend: str) -> None:
    """Result, state, counters and events of an instruction do not depend on how it came."""
    by_op, by_bytes = host_of(backend), host_of(backend)
    many = 0
    for name, op, more in cases():
        for host in (by_op, by_bytes):
            host.machine.write_rmp(PFN, VALIDATED | ASSIGNED | GPA | ASID_5, 0x0F1F)
            host.machine.write_rmp(0x200, ASSIGNED, 0)
        result = by_op.do(name, **op)
        done = execute(by_bytes, OPCODES[name], **more)
        assert done.result == result, (name, op)
        many += 1
    assert many == 3 * 3 * 2 * 2 * 2 * 3 + 4 * 6
    assert by_op.state() == by_bytes.state()
    mine, theirs = by_op.events(), by_bytes.events()
    # the op RMPQUERY has no RCX to report
    assert [event._replace(b=0) if event.kind == EventKind.RMPQUERY else event for event in mine] == [
        event._replace(b=0) if event.kind == EventKind.RMPQUERY else event for event in theirs
    ]
    assert len(mine) > 100


def test_an_injected_0_reads_the_operand(backend: str) -> None:
    """docs/formats.md, inject: code 0 says "execute normally", so the operand counts."""
    host = host_of(backend)
    assert host.call("inject", code=0, count=1) == 0
    args = arguments("RMPUPDATE") | {"operand": operand(gpa=GPA, assigned=1, asid=5)}
    assert execute(host, OPCODES["RMPUPDATE"], **args).result.ret == SUCCESS
    assert host.rmp(PFN)[0] == ASSIGNED | GPA | ASID_5


def test_an_injected_zero_is_used_up(backend: str) -> None:
    """rmp §2.1 "inject": 0 executes normally; it is taken before the operand is read, and gone when that faults."""
    host = host_of(backend)
    for code in (0, FAIL_INUSE):
        assert host.call("inject", code=code, count=1) == 0
    done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=PA, rcx=0x1000))
    assert (done.result.ret, done.result.kind) == (14, Kind.FAULT)
    assert host.state().inject == ((FAIL_INUSE, 1),)


def test_an_injected_code_comes_before_the_operand(backend: str) -> None:
    """rmp §2.1 "inject": the code is the answer and nothing else happens, so the operand is not read; nor is it in a
    guest (row 3 of execute).  The event has zeros for what was not read."""
    host = host_of(backend)
    assert host.call("inject", code=FAIL_INUSE, count=1) == 0
    host.events()
    for cpu, code in ((Cpu(), FAIL_INUSE), (GUEST, FAIL_PERMISSION)):
        done = execute(host, OPCODES["RMPUPDATE"], registers=Registers(rax=PA, rcx=0x1000), cpu=cpu)
        assert done.result == Result(code, Kind.CODE)
        assert host.events() == [Event(EventKind.RMPUPDATE, code=code, a=PA)]
    assert host.state().inject == ()
