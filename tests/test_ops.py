"""The op list: text form, records, refusals, and the bulk form against single ops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import HOLE, SMALL, SMALL_LA57, SNP, U64, Host, record

from rmpcore.fuzzing.dmap_ops import random_trace
from rmpcore.machine import Machine, MachineLike
from rmpcore.maps import MachineMap
from rmpcore.ops import (
    BY_CODE,
    EVENT_DTYPE,
    OP_DTYPE,
    OPS,
    RESULT_DTYPE,
    Arg,
    Kind,
    Op,
    OpCode,
    OpError,
    OpFlag,
    OpSpec,
    Refusal,
    Result,
    Who,
    format_op,
    format_result,
    make_op,
    pack_ops,
    parse_op,
    unpack_ops,
    unpack_results,
)

FIELD_BITS = {"level": 8, "id": 32, "addr": 64, "gpa": 64, "count": 64, "va": 64, "rcx": 64, "rdx": 64}


def greatest(arg: Arg) -> int:
    """The greatest value of an argument, by its own field or its bits in a shared one."""
    if arg.bit:
        return 1
    return (1 << arg.mask.bit_count()) - 1 if arg.mask else (1 << FIELD_BITS[arg.field]) - 1


def ops_of(spec: OpSpec) -> st.SearchStrategy[Op]:
    """All ops of one kind, over the whole range of each argument."""
    values = {
        arg.name: st.integers(0, greatest(arg))
        if arg.default is None
        else st.integers(0, greatest(arg)) | st.just(arg.default)
        for arg in spec.args
    }
    return st.fixed_dictionaries(values).map(lambda args: make_op(spec.name, **args))


ANY_OP = st.one_of([ops_of(spec) for spec in OPS])
ANY_RECORD = st.builds(
    Op,
    op=st.integers(0, 0xFFFF),
    level=st.integers(0, 0xFF),
    flags=st.integers(0, 0xFF),
    id=st.integers(0, 0xFFFF_FFFF),
    addr=st.integers(0, U64),
    gpa=st.integers(0, U64),
    count=st.integers(0, U64),
    va=st.integers(0, U64),
    rcx=st.integers(0, U64),
    rdx=st.integers(0, U64),
    mode=st.integers(0, 0xFFFF_FFFF),
    reserved=st.integers(0, 0xFFFF_FFFF),
)


# text


@given(ANY_OP)
def test_text_round_trip(op: Op) -> None:
    """design "text form": every op reads back as it was written."""
    assert parse_op(format_op(op)) == op
    assert parse_op(str(op)) == op


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_every_op_has_a_text(spec: OpSpec) -> None:
    """The name comes first, each argument once."""
    op = make_op(spec.name, **{arg.name: 1 for arg in spec.args})
    words = format_op(op).split()
    assert words[0] == spec.name
    assert len({word.split("=")[0] for word in words[1:]}) == len(words) - 1


@pytest.mark.parametrize(
    ("text", "op"),
    [
        (
            "rmp_make_private pfn=0x120000 gpa=0x1000 level=4K asid=5 immutable=0",
            Op(OpCode.rmp_make_private, level=1, id=5, addr=0x120000, gpa=0x1000),
        ),
        ("rmp_make_private pfn=1 gpa=2 level=2M asid=3 immutable=1", Op(5, 2, OpFlag.IMMUTABLE, 3, 1, 2)),
        ("rmp_make_shared pfn=512 level=2", Op(7, level=2, addr=512)),
        ("PSMASH pa=0x200000", Op(2, addr=0x200000)),
        ("PSMASH pa=0x200000 guest=1 user=1", Op(2, flags=OpFlag.GUEST | OpFlag.USER, addr=0x200000)),
        ("psmash pfn=0x200", Op(8, addr=0x200)),
        (
            "RMPUPDATE pa=0x1000 gpa=0x2000 assigned=1 size=2M asid=7 reserved=0x100",
            Op(1, flags=OpFlag.ASSIGNED | OpFlag.SIZE_2M, id=7, addr=0x1000, gpa=0x2000, count=0x100),
        ),
        ("RMPUPDATE pa=0 gpa=0 assigned=0 size=4K asid=0", Op(1)),
        ("set_direct_map_valid_noflush pfn=7 pages=3 valid=1", Op(17, flags=OpFlag.VALID, addr=7, count=3)),
        ("inject code=4", Op(18, id=4, count=1)),
        ("inject code=4 count=1000", Op(18, id=4, count=1000)),
        ("fail_alloc", Op(19, count=1)),
        ("fail_alloc skip=2 count=0", Op(19, addr=2, count=0)),
        ("  lookup   pfn=0b101  ", Op(13, addr=5)),
    ],
)
def test_reading(text: str, op: Op) -> None:
    """Examples of the text form, with defaults, levels by name, other number bases."""
    assert parse_op(text) == op


@pytest.mark.parametrize(
    "text",
    [
        "RMPUPDAT pa=0",
        "psmash",
        "psmash pfn",
        "psmash pfn=",
        "psmash pfn=x",
        "psmash pfn=-1",
        "psmash pfn=0x10000000000000000",
        "psmash pfn=1 pfn=2",
        "psmash pfn=1 level=4K",
        "psmash pfn=1.5",
        "rmp_make_shared pfn=1",
        "rmp_make_shared pfn=1 level=4k",
        "rmp_make_shared pfn=1 level=256",
        "rmp_make_private pfn=1 gpa=0 level=4K asid=0x100000000",
        "rmp_make_private pfn=1 gpa=0 level=4K asid=1 immutable=2",
        "RMPUPDATE pa=0 gpa=0 assigned=0 size=1 asid=0",
        "RMPUPDATE pa=0 gpa=0 assigned=0 size=1G asid=0",
        "set_direct_map_valid_noflush pfn=1 pages=1",
    ],
)
def test_text_that_says_nothing(text: str) -> None:
    """Unknown op or argument, missing, doubled, out of range: OpError."""
    with pytest.raises(OpError):
        parse_op(text)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("nonsense", {}),
        ("psmash", {}),
        ("psmash", {"pfn": 1, "level": 1}),
        ("psmash", {"pfn": -1}),
        ("psmash", {"pfn": 1 << 64}),
        ("rmp_make_private", {"pfn": 0, "gpa": 0, "level": 1, "asid": 0, "immutable": 2}),
    ],
)
def test_make_op_refuses(name: str, args: dict[str, int]) -> None:
    """The same for ops built by name."""
    with pytest.raises(OpError):
        make_op(name, **args)


@pytest.mark.parametrize(
    ("op", "result", "text"),
    [
        (make_op("psmash", pfn=0), Result(0), "= 0"),
        (make_op("psmash", pfn=0), Result(-14), "= -14"),
        (make_op("psmash", pfn=0), Result(3), "= 3 FAIL_INUSE"),
        (make_op("PSMASH", pa=0), Result(4, Kind.CODE), "= 4 FAIL_OVERLAP"),
        (make_op("PSMASH", pa=0), Result(6, Kind.FAULT), "= #UD"),
        (make_op("PSMASH", pa=0), Result(13, Kind.FAULT), "= #GP"),
        (make_op("host_write", pfn=0), Result(0, Kind.ALLOWED, level=2), "= allowed level=2M"),
        (make_op("access", who=4, pa=0, level=1), Result(0, Kind.ALLOWED), "= allowed"),
        (
            make_op("host_write", pfn=0),
            Result(14, Kind.FAULT, reason=2, value=0x80000003),
            "= #PF error=0x80000003 NEIGHBOUR",
        ),
        (make_op("SNP_INIT"), Result(0x1A, Kind.FIRMWARE), "= firmware 0x1a INVALID_PAGE_STATE"),
        (make_op("VMRUN", vmcb=0, asid=1), Result(-1, Kind.INVALID, reason=11), "= #VMEXIT(INVALID) NOT_VMSA"),
        (make_op("access", who=3, pa=0, level=1), Result(13, Kind.IOMMU, reason=1), "= IOMMU event=0xd ASSIGNED"),
        (
            make_op("access", who=2, pa=0, level=1),
            Result(0x400, Kind.NPF, reason=8, value=0xC80000005),
            "= #NPF exitinfo1=0xc80000005 SIZE",
        ),
        (make_op("page_state", pfn=0), Result(10), "= 10 GUEST_VALID"),
        (make_op("RMPQUERY", gva=0, rdx=0, pa=0, gpa=0, asid=5, level=1), Result(2, Kind.CODE), "= 2 FAIL_PERMISSION"),
        (
            make_op("RMPQUERY", gva=0, rdx=0, pa=0, gpa=0, asid=5, level=1),
            Result(0, Kind.CODE, value=1, value2=0x0F00),
            "= 0 rcx=0x1 rdx=0xf00",
        ),
        (
            make_op("PVALIDATE", gva=0, rcx=0, rdx=0, pa=0, gpa=0, asid=5, level=1),
            Result(0, Kind.CODE, flags=8),
            "= 0 cf=1",
        ),
        (make_op("snp_lookup_rmpentry", pfn=0), Result(0, level=2, flags=1), "= 0 assigned=1 level=2M"),
        (make_op("snp_lookup_rmpentry", pfn=0), Result(-19), "= -19"),
        (make_op("lookup", pfn=0), Result(0), "= 0 none"),
    ],
)
def test_results_in_words(op: Op, result: Result, text: str) -> None:
    """design: "= 0", "= -14", "= 4 FAIL_OVERLAP" ..."""
    assert format_result(op, result) == text


# records


def test_record_layout() -> None:
    """The bulk form has fixed sizes, the same as in C: 64, 24 and 32 bytes, little-endian, no holes."""
    assert (OP_DTYPE.itemsize, RESULT_DTYPE.itemsize, EVENT_DTYPE.itemsize) == (64, 24, 32)
    quads = [0x1112131415161718 + number * 0x1010101010101010 for number in range(6)]
    op = Op(0x0102, 0x03, 0x04, 0x05060708, *quads, 0x71727374, 0x75767778)
    assert pack_ops([op]).tobytes().hex() == (
        "0201" + "03" + "04" + "08070605" + "1817161514131211" + "2827262524232221" + "3837363534333231"
        "4847464544434241" + "5857565554535251" + "6867666564636261" + "74737271" + "78777675"
    )


@given(st.lists(ANY_RECORD, max_size=20))
def test_pack_unpack(ops: list[Op]) -> None:
    """Records go through the array form unchanged, known ops or not."""
    array = pack_ops(ops)
    assert array.dtype == OP_DTYPE and len(array) == len(ops)
    assert list(unpack_ops(array)) == ops


ANY_RESULT = st.tuples(
    st.integers(-(1 << 31), (1 << 31) - 1), *[st.integers(0, 255)] * 4, *[st.integers(0, U64)] * 2
).map(lambda fields: Result(*fields))


@given(st.lists(ANY_RESULT, max_size=9))
def test_unpack_results(results: list[Result]) -> None:
    """The same for results."""
    array = np.array([tuple(result) for result in results], dtype=RESULT_DTYPE)
    assert list(unpack_results(array)) == results


# refusals


def refused(machine: MachineLike, op: Op) -> Refusal | None:
    """Why an op is refused; ``None`` if it is not.  A refusal leaves the state alone and gives no event."""
    before = machine.state()
    machine.take_events()
    result = machine.apply(op)
    if result.kind != Kind.REFUSED:
        return None
    assert result == Result(result.ret, Kind.REFUSED)
    assert machine.state() == before
    assert len(machine.take_events()) == 0
    return Refusal(result.ret)


@pytest.mark.parametrize("code", [0, 64, 65, 255, 256, 0xFFFF])
def test_unknown_ops(backend: str, code: int) -> None:
    """A record with an unknown op: BAD_OP."""
    assert code not in BY_CODE
    host = Host(backend, SNP)
    assert refused(host.machine, record(code)) is Refusal.BAD_OP
    assert refused(host.machine, record(code, addr=5, flags=0xFF)) is Refusal.BAD_OP


GOOD = {
    "RMPUPDATE": {"pa": 0x201000, "gpa": 0, "assigned": 1, "size": 0, "asid": 5},
    "PSMASH": {"pa": 0x200000},
    "RMPREAD": {"pa": 0x200000},
    "rmpupdate": {"pfn": 0x201, "gpa": 0, "assigned": 1, "size": 0, "asid": 5},
    "rmp_make_private": {"pfn": 0x201, "gpa": 0, "level": 1, "asid": 5},
    "rmp_make_firmware": {"pfn": 0x202, "level": 1},
    "rmp_make_shared": {"pfn": 0x203, "level": 1},
    "psmash": {"pfn": 0x200},
    "snp_lookup_rmpentry": {"pfn": 0x201},
    "adjust_direct_map": {"pfn": 0x401, "level": 1},
    "dump_rmpentry": {"pfn": 0x201},
    "snp_leak_pages": {"pfn": 0x201, "pages": 1},
    "lookup": {"pfn": 0x201},
    "set_memory_4k": {"pfn": 0x601, "pages": 1},
    "set_direct_map_invalid_noflush": {"pfn": 0x601},
    "set_direct_map_default_noflush": {"pfn": 0x601},
    "set_direct_map_valid_noflush": {"pfn": 0x601, "pages": 1, "valid": 0},
    "inject": {"code": 3},
    "fail_alloc": {},
    "change_page_attr_set": {"pfn": 0x601, "pages": 1, "mask": 0x200},
    "change_page_attr_clear": {"pfn": 0x601, "pages": 1, "mask": 0x200},
    "cpa_address": {"pfn": 0x601},
    "VMRUN": {"vmcb": 0x201000, "asid": 5, "plain": 1},
    "VMEXIT": {"vmcb": 0x202000},
    "access": {"who": Who.SNP, "pa": 0x201000, "level": 1, "asid": 5},
    "SNP_INIT": {},
    "SNP_SHUTDOWN": {},
    "SNP_GCTX_CREATE": {"gctx": 0x201000},
    "SNP_ACTIVATE": {"gctx": 0x201000, "asid": 5},
    "SNP_DECOMMISSION": {"gctx": 0x201000},
    "SNP_LAUNCH_UPDATE": {"gctx": 0x201000, "pa": 0x202000, "size": 0, "type": 1},
    "SNP_PAGE_RECLAIM": {"pa": 0x202000},
    "SNP_PAGE_SET_STATE": {"pa": 0x200000, "pages": 512},
    "SNP_PAGE_UNSMASH": {"pa": 0x200000},
    "SNP_MD_INIT": {"gctx": 0x201000, "pa": 0x202000},
    "SNP_PAGE_MOVE": {"gctx": 0x201000, "src": 0x202000, "dst": 0x203000, "size": 0},
    "rmp_mark_pages_firmware": {"pfn": 0x601, "pages": 1},
    "snp_reclaim_pages": {"pfn": 0x601, "pages": 1},
    **{name: {"pfn": 0x601} for name in ("host_read", "host_write", "kvm_read_guest", "kvm_write_guest", "page_state")},
    **{
        name: {"gva": 0x201000, "rdx": 1, "pa": 0x201000, "gpa": 0x201000, "asid": 5, "level": 1}
        for name in ("PVALIDATE", "RMPADJUST", "RMPQUERY")
    },
    **{
        name: {"gctx": 0x201000, "src": 0x202000, "dst": 0x203000, "mdata": 0x204000, "size": 0}
        for name in ("SNP_PAGE_SWAP_OUT", "SNP_PAGE_SWAP_IN")
    },
} | {spec.name: {"pfn": 0x601, "pages": 1} for spec in OPS if 20 <= spec.code <= 34}


def good_op(name: str) -> Op:
    """An op that no machine refuses."""
    more = {"rcx": 0} if name in ("PVALIDATE", "RMPADJUST") else {}
    return make_op(name, **GOOD[name] | more)


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_fields_that_an_op_does_not_use(backend: str, spec: OpSpec) -> None:
    """A flag bit outside the op's mask, or a non-zero field that it does not use: BAD_ARGUMENT; without them it is
    taken."""
    host = Host(backend, SNP, kernel="7.3")
    if spec.name == "VMEXIT":  # there is one to end
        host.do("VMRUN", **GOOD["VMRUN"] | GOOD["VMEXIT"])
    good = good_op(spec.name)
    assert refused(host.machine, good._replace(reserved=1)) is Refusal.BAD_ARGUMENT
    for bit in range(32):
        if not spec.mode_mask & 1 << bit:
            bad = good._replace(mode=good.mode | 1 << bit)
            assert refused(host.machine, bad) is Refusal.BAD_ARGUMENT, bit
    for bit in range(8):
        if not spec.flag_mask & 1 << bit:
            bad = good._replace(flags=good.flags | 1 << bit)
            assert refused(host.machine, bad) is Refusal.BAD_ARGUMENT, bit
    for field in set(FIELD_BITS) - {arg.field for arg in spec.args}:
        for value in (1, (1 << FIELD_BITS[field]) - 1):
            bad = good._replace(**{field: value})
            assert refused(host.machine, bad) is Refusal.BAD_ARGUMENT, field
    assert refused(host.machine, good) is None


VALID = make_op("set_direct_map_valid_noflush", **GOOD["set_direct_map_valid_noflush"])
HOST_LAYER = [
    "rmpupdate",
    "rmp_make_private",
    "rmp_make_firmware",
    "rmp_make_shared",
    "psmash",
    "snp_lookup_rmpentry",
    "adjust_direct_map",
    "dump_rmpentry",
    "snp_leak_pages",
    "rmp_mark_pages_firmware",
    "snp_reclaim_pages",
]


@pytest.mark.parametrize(("kernel", "exists"), [("6.1", False), ("6.12", False), ("6.13", True), ("7.3", True)])
def test_valid_noflush_from_6_13(backend: str, kernel: str, exists: bool) -> None:
    """direct-map §10: set_direct_map_valid_noflush from 6.13: BAD_OP before."""
    reason = refused(Host(backend, SNP, kernel=kernel).machine, VALID)
    assert reason is (None if exists else Refusal.BAD_OP)


@pytest.mark.parametrize("name", HOST_LAYER)
@pytest.mark.parametrize(("kernel", "exists"), [("6.1", False), ("6.6", False), ("6.8", False), ("6.9", True)])
def test_host_layer_from_6_9(backend: str, name: str, kernel: str, exists: bool) -> None:
    """direct-map §10: the SNP host layer from 6.9: BAD_OP before, with or without an RMP."""
    for map_ in (SNP, SMALL):
        host = Host(backend, map_, kernel=kernel)
        reason = refused(host.machine, make_op(name, **GOOD[name]))
        assert reason is (None if exists else Refusal.BAD_OP)


IN_THE_BASE = [
    spec.name for spec in OPS if spec.name not in HOST_LAYER and spec.code not in (VALID.op, OpCode.set_memory_rox)
]


@pytest.mark.parametrize("name", IN_THE_BASE)
def test_other_ops_exist_in_6_1(backend: str, name: str) -> None:
    """direct-map §10: everything else is in the base."""
    host = Host(backend, SNP, kernel="6.1")
    if name == "VMEXIT":
        host.do("VMRUN", **GOOD["VMRUN"] | GOOD["VMEXIT"])
    assert refused(host.machine, good_op(name)) is None


@pytest.mark.parametrize(
    ("code", "count", "reason"),
    [
        (0, 1, None),
        (255, 1, None),
        (256, 1, Refusal.BAD_ARGUMENT),
        (0xFFFF_FFFF, 1, Refusal.BAD_ARGUMENT),
        (4, 0, Refusal.BAD_ARGUMENT),
        (4, 1 << 20, None),
        (4, (1 << 20) + 1, Refusal.BAD_ARGUMENT),
        (4, U64, Refusal.BAD_ARGUMENT),
    ],
)
def test_inject_limits(backend: str, code: int, count: int, reason: Refusal | None) -> None:
    """inject: code 0..255, count 1..2**20."""
    assert refused(Host(backend, SNP).machine, make_op("inject", code=code, count=count)) is reason


def test_inject_queue(backend: str) -> None:
    """inject: 64 runs wait at most; one that is used up makes room."""
    host = Host(backend, SNP)
    for number in range(64):
        assert host.call("inject", code=number, count=1 + number % 2) == 0
    one_more = make_op("inject", code=9, count=1)
    assert refused(host.machine, one_more) is Refusal.QUEUE_FULL
    assert host.state().inject == tuple((number, 1 + number % 2) for number in range(64))
    host.update(0x201)
    assert refused(host.machine, one_more) is None
    assert host.state().inject[-1] == (9, 1)
    assert len(host.state().inject) == 64
    assert refused(host.machine, one_more) is Refusal.QUEUE_FULL
    host.update(0x201)
    assert refused(host.machine, one_more) is Refusal.QUEUE_FULL  # the run (1, 2) has one left


def test_inject_without_an_rmp(backend: str) -> None:
    """host §1, "Outcomes in the model": without an RMP no instruction would ever take the code."""
    host = Host(backend, SMALL)
    assert refused(host.machine, make_op("inject", code=4, count=3)) == Refusal.BAD_ARGUMENT
    assert host.state().inject == ()


@pytest.mark.parametrize(("map_", "limit"), [(SMALL, 1 << 34), (SMALL_LA57, 1 << 40)])
def test_direct_map_ops_stay_in_the_area(backend: str, map_: MachineMap, limit: int) -> None:
    """pfn + pages beyond the direct map's area: BAD_ARGUMENT; right at its end: not."""
    host = Host(backend, map_, kernel="7.3")
    for name in ("lookup", "set_direct_map_invalid_noflush", "set_direct_map_default_noflush"):
        assert refused(host.machine, make_op(name, pfn=limit - 1)) is None
        assert refused(host.machine, make_op(name, pfn=limit)) is Refusal.BAD_ARGUMENT
        assert refused(host.machine, make_op(name, pfn=U64)) is Refusal.BAD_ARGUMENT
    for name, more in (("set_memory_4k", {}), ("set_direct_map_valid_noflush", {"valid": 1})):
        assert refused(host.machine, make_op(name, pfn=limit - 2, pages=2, **more)) is None
        assert refused(host.machine, make_op(name, pfn=limit, pages=0, **more)) is None
        for pfn, pages in ((limit - 1, 2), (limit, 1), (limit + 1, 0), (U64, 1), (1, U64), (U64, U64)):
            op = make_op(name, pfn=pfn, pages=pages, **more)
            assert refused(host.machine, op) is Refusal.BAD_ARGUMENT, op


@given(ops=st.lists(ANY_RECORD | ANY_OP, min_size=1, max_size=8))
@pytest.mark.parametrize("fixed_backend", ["native", "oracle"])
def test_no_record_breaks_a_machine(fixed_backend: str, ops: list[Op]) -> None:
    """apply() never raises for what an op says; huge ranges of pages end early or are refused."""
    machine = Machine(SNP, kernel="7.3", backend=fixed_backend)
    for op in ops:
        known = op.op in (
            OpCode.set_memory_4k,
            OpCode.set_direct_map_valid_noflush,
            OpCode.snp_leak_pages,
            OpCode.rmp_mark_pages_firmware,
            OpCode.snp_reclaim_pages,
        )
        if known and op.count > 4096:
            op = op._replace(count=op.count % 4096)
        assert Kind(machine.apply(op).kind) in Kind


# bulk


@pytest.mark.parametrize("seed", range(4))
def test_run_is_apply_many_times(backend: str, seed: int) -> None:
    """run() gives the results of apply(), the same state and the same events."""
    ops = random_trace(seed, 400, SNP)
    single, bulk = Host(backend, SNP, kernel="7.3"), Host(backend, SNP, kernel="7.3")
    results = [single.machine.apply(op) for op in ops]
    array = bulk.machine.run(pack_ops(ops))
    assert array.dtype == RESULT_DTYPE
    assert list(unpack_results(array)) == results
    assert {Kind(result.kind) for result in results} >= {Kind.KERNEL, Kind.CODE, Kind.FAULT, Kind.REFUSED}
    assert bulk.state() == single.state()
    assert bulk.events() == single.events()


def test_run_in_pieces(backend: str) -> None:
    """run() of a trace in two pieces is run() of the whole; an empty one does nothing."""
    ops = pack_ops(random_trace(99, 300, SNP))
    whole, pieces = Host(backend, SNP), Host(backend, SNP)
    expected = whole.machine.run(ops)
    assert len(pieces.machine.run(ops[:0])) == 0
    got = np.concatenate([pieces.machine.run(ops[:123]), pieces.machine.run(ops[123:])])
    assert got.tobytes() == expected.tobytes()
    assert pieces.state() == whole.state()


def test_run_takes_a_view(backend: str) -> None:
    """An array that is not contiguous, or read-only, is an array of records all the same."""
    ops = pack_ops(random_trace(5, 200, SNP))
    straight = Host(backend, SNP).machine.run(np.ascontiguousarray(ops[::2]))
    frozen = ops.copy()
    frozen.setflags(write=False)
    assert Host(backend, SNP).machine.run(frozen[::2]).tobytes() == straight.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, dtype=np.uint64),
        np.zeros(3, dtype=RESULT_DTYPE),
        np.zeros((2, 2), dtype=OP_DTYPE),
        np.zeros(32, dtype=np.uint8),
        [tuple(make_op("lookup", pfn=0))],
        None,
    ],
    ids=["u64", "results", "2d", "bytes", "list", "none"],
)
def test_run_of_something_else(backend: str, array: object) -> None:
    """run() of another array: TypeError."""
    machine = Host(backend, SNP).machine
    with pytest.raises(TypeError):
        machine.run(array)  # type: ignore[arg-type]


# events, properties


def test_events_are_off_at_first(backend: str) -> None:
    """Events are collected from record_events(True) on; turning it off drops what was collected."""
    machine = Machine(SNP, backend=backend)
    op = make_op("rmp_make_private", pfn=0x401, gpa=0, level=1, asid=5)
    machine.apply(op)
    assert len(machine.take_events()) == 0
    machine.record_events(True)
    machine.apply(op)
    events = machine.take_events()
    assert events.dtype == EVENT_DTYPE and len(events) == 1
    assert len(machine.take_events()) == 0
    machine.apply(op)
    machine.record_events(False)
    assert len(machine.take_events()) == 0
    machine.apply(op)
    machine.record_events(True)
    assert len(machine.take_events()) == 0


def test_what_a_machine_says_of_itself(backend: str) -> None:
    """The interface: backend, map and kernel profile by name."""
    machine = Machine(HOLE, backend=backend, kernel="6.12.95+deb12-amd64")
    assert machine.backend == backend
    assert machine.map == HOLE
    assert machine.kernel == "6.12"
    assert isinstance(machine, MachineLike)
