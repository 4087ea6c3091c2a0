"""Trace files: what is read from them, and what is refused with which words."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpcore.inputs import load_map
from rmpcore.ops import OP_DTYPE, OPS, RESULT_DTYPE, Op, OpError, format_op, make_op, pack_ops, parse_op, unpack_ops
from rmpcore.trace import MAX_LINE, Trace, TraceError, read_trace, write_results

EXAMPLES = Path(__file__).parents[1] / "examples"


def write(folder: Path, data: bytes | str, name: str = "t.trace") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:")
    assert "\n" not in text
    return text.removeprefix(str(path))


def test_ops_comments_and_blank_lines(tmp_path: Path) -> None:
    text = "# head\n\npsmash pfn=0x200\n  \t\nrmp_make_shared pfn=512 level=2M   # back\r\nlookup pfn=1"
    trace = read_trace(write(tmp_path, text))
    assert list(unpack_ops(trace.ops)) == [
        make_op("psmash", pfn=0x200),
        make_op("rmp_make_shared", pfn=0x200, level=2),
        make_op("lookup", pfn=1),
    ]
    assert trace.lines is not None
    assert trace.lines.tolist() == [3, 5, 6]
    assert trace.place(1) == f"{trace.source}:5"
    assert trace.op(2) == make_op("lookup", pfn=1)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_trace_without_ops(tmp_path: Path, text: str) -> None:
    assert len(read_trace(write(tmp_path, text))) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lookup pfn=1\nunlock pfn=1\n", ":2: unknown op 'unlock'"),
        ("lookup pfn=1 colour=2\n", ":1: lookup: unknown argument 'colour'"),
        ("\n\nlookup\n", ":3: lookup: argument pfn is missing"),
        ("lookup pfn=1 pfn=2\n", ":1: lookup: argument pfn is given twice"),
        ("lookup pfn=abc\n", ":1: lookup: pfn: not a number: 'abc'"),
        ("lookup pfn=0x10000000000000000\n", ":1: lookup: pfn: 0x10000000000000000 is outside 0..0xffffffffffffffff"),
        ("lookup pfn=-1\n", ":1: lookup: pfn: -1 is outside 0..0xffffffffffffffff"),
        ("lookup 5\n", ":1: lookup: '5' is not key=value"),
        ("rmp_make_shared pfn=0 level=3M\n", ":1: rmp_make_shared: level: not a number: '3M'"),
        ("# " + "x" * MAX_LINE + "\n", f":1: line is longer than {MAX_LINE} bytes"),
        ("lookup pfn=1\n" + "x" * 10 * MAX_LINE, f":2: line is longer than {MAX_LINE} bytes"),
        (b"# ok\n# \xff\n", ":2: not UTF-8"),
    ],
)
def test_refused_lines(tmp_path: Path, text: bytes | str, reason: str) -> None:
    assert refusal(write(tmp_path, text)) == reason


def test_unreadable_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == ": No such file or directory"
    assert refusal(tmp_path) == ": Is a directory"


def test_binary_trace(tmp_path: Path) -> None:
    ops = [make_op("psmash", pfn=0x200), make_op("inject", code=4, count=3), Op(99)]
    path = tmp_path / "t.npy"
    np.save(path, pack_ops(ops))
    trace = read_trace(path)
    assert list(unpack_ops(trace.ops)) == ops
    assert trace.lines is None
    assert trace.place(1) == f"{path}: op 1"


def test_refused_binary_traces(tmp_path: Path) -> None:
    ops = pack_ops([make_op("psmash", pfn=0x200)] * 4)
    good = io.BytesIO()
    np.save(good, ops)
    data = good.getvalue()
    assert refusal(write(tmp_path, data[:-1])) == ": 255 bytes of records, not 4 times 64"
    assert refusal(write(tmp_path, data + b"x")) == ": 257 bytes of records, not 4 times 64"
    assert refusal(write(tmp_path, data[:20])).startswith(": not a .npy file: ")
    for other in (np.zeros(3), ops.reshape(2, 2), np.zeros(3, dtype=OP_DTYPE.newbyteorder(">")), ops["addr"]):
        file = io.BytesIO()
        np.save(file, other)
        assert "not one dimension of op records" in refusal(write(tmp_path, file.getvalue()))
    pickled = io.BytesIO()
    np.save(pickled, np.array([object()], dtype=object), allow_pickle=True)
    assert "not one dimension of op records" in refusal(write(tmp_path, pickled.getvalue()))
    huge = data.replace(b"(4,), }          ", b"(999999999999,), }")
    assert huge != data
    assert "999999999999" in refusal(write(tmp_path, huge))


def test_results_in_words() -> None:
    ops = pack_ops([make_op("psmash", pfn=0x200), make_op("RMPUPDATE", pa=0, gpa=0, assigned=0, size=1, asid=0)])
    results = np.zeros(2, dtype=RESULT_DTYPE)
    results["ret"], results["kind"] = (0, 4), (0, 1)
    file = io.StringIO()
    write_results(file, ops, results)
    assert (
        file.getvalue()
        == "psmash pfn=0x200  = 0\nRMPUPDATE pa=0x0 gpa=0x0 assigned=0 size=2M asid=0  = 4 FAIL_OVERLAP\n"
    )


@pytest.mark.parametrize(
    ("name", "map_name"), [("one-guest", "dell-r6515-epyc7513-256g-snp"), ("tour-of-6t", "synthetic-6t")]
)
def test_examples_stay_in_usable_memory(name: str, map_name: str) -> None:
    """All but two frames are RAM: those two ask about the RMP itself and about what lies beyond it."""
    trace = read_trace(EXAMPLES / f"traces/{name}.trace")
    machine = load_map(EXAMPLES / f"maps/{map_name}.json")
    outside = []
    for op in unpack_ops(trace.ops):
        if format_op(op).split()[0] in ("inject", "fail_alloc"):
            continue
        pages = max(op.count, 512 if op.level == 2 else 1)
        if not any(base <= op.addr << 12 and op.addr + pages << 12 <= base + size for base, size in machine.memory):
            outside.append(op.addr)
    assert outside == ([0x6037FFFF, 0x60400000] if name == "tour-of-6t" else [])


def test_examples_are_what_their_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_trace.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "make_trace.py"), run_name="__main__")
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["one-guest.trace", "tour-of-6t.trace"]
    for name in written:
        assert (tmp_path / name).read_bytes() == (EXAMPLES / "traces" / name).read_bytes()


# --- fuzzing -------------------------------------------------------------------------------------------------------

VALID = (EXAMPLES / "traces/tour-of-6t.trace").read_bytes()
WORDS = st.sampled_from(
    [spec.name for spec in OPS]
    + sorted({arg.name for spec in OPS for arg in spec.args})
    + ["=", "=4K", "=2M", "=0", "=0x10", "=-1", "#", " ", "\n", "\t", "\0", "=999999999999999999999", "é"]
)


def same_or_refused(path: Path, data: bytes) -> Trace | None:
    path.write_bytes(data)
    try:
        return read_trace(path)
    except TraceError as e:
        assert "\n" not in str(e)
        return None


@given(
    st.one_of(
        st.text(max_size=60), st.lists(WORDS, max_size=12).map(" ".join), st.lists(WORDS, max_size=12).map("".join)
    )
)
@settings(max_examples=300)
def test_any_text_is_an_op_or_refused(text: str) -> None:
    try:
        op = parse_op(text)
    except OpError as e:
        assert "\n" not in str(e)
    else:
        assert parse_op(format_op(op)) == op


@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=100).map(lambda tail: b"\x93NUMPY\x01\x00" + tail)))
def test_any_bytes_are_a_trace_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    same_or_refused(tmp_path_factory.getbasetemp() / "any.trace", data)


@given(cut=st.integers(0, len(VALID)), size=st.integers(0, 4), insert=st.binary(max_size=6))
def test_a_changed_trace_is_a_trace_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, size: int, insert: bytes
) -> None:
    data = VALID[:cut] + insert + VALID[cut + size :]
    same_or_refused(tmp_path_factory.getbasetemp() / "changed.trace", data)


@given(cut=st.integers(0, 300), size=st.integers(0, 4), insert=st.binary(max_size=6))
def test_a_changed_binary_trace_is_a_trace_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, size: int, insert: bytes
) -> None:
    file = io.BytesIO()
    np.save(file, pack_ops([make_op("psmash", pfn=0x200)] * 5))
    data = file.getvalue()
    trace = same_or_refused(tmp_path_factory.getbasetemp() / "changed.npy", data[:cut] + insert + data[cut + size :])
    assert trace is None or trace.ops.dtype == OP_DTYPE
