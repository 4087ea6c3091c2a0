"""Another implementation's answers to test vectors, judged: who differs where, in the words of the rules.

The device under test is a program that reads cases on stdin and answers on stdout.  It gets the questions alone,
without what is to come out.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rmpcore.decode import decode_pte, decode_rmp_entry
from rmpcore.ops import BY_CODE, format_result
from rmpcore.vectors.form import (
    KINDS,
    Answer,
    AnswerReader,
    Case,
    Items,
    Key,
    Vectors,
    as_result,
    key_text,
    number_text,
    vector_lines,
)

_FRAME = 0x000F_FFFF_FFFF_F000
RMP_FIELDS = tuple(field.name for field in decode_rmp_entry(0, 0))
_PLURAL = {"entry": "entries"}
IGNORABLE = (*RMP_FIELDS, *KINDS)
"""What ``--ignore`` takes: fields of an RMP entry, and kinds of items."""


class DeviceError(Exception):
    """The device under test did not do its part: it died, fell silent, or left cases out."""


@dataclass(frozen=True)
class Difference:
    """One thing that is other than expected."""

    what: str
    """"entry", "leaf 2M", "counter flush_all", "result": what it is, and below which field of it."""
    place: int | None
    """Number of the first entry, for those that lie in a row."""
    stride: int
    field: str
    got: str
    expected: str
    as_before: bool = False


@dataclass
class Verdict:
    """What became of all cases."""

    passed: list[Case] = field(default_factory=list)
    skipped: list[Case] = field(default_factory=list)
    failed: list[tuple[Case, Answer, list[Difference]]] = field(default_factory=list)

    def by_op(self) -> dict[str, tuple[int, int, int]]:
        """Passed, failed and skipped cases of each op."""
        counts: dict[str, list[int]] = {}
        lists = (self.passed, [case for case, _, _ in self.failed], self.skipped)
        for column, cases in enumerate(lists):
            for case in cases:
                counts.setdefault(op_name(case), [0, 0, 0])[column] += 1
        return {name: (row[0], row[1], row[2]) for name, row in sorted(counts.items())}

    def by_rule(self) -> dict[str, int]:
        """How many cases differ, by the rule that they are about; the most first."""
        counts: dict[str, int] = {}
        for case, _, _ in self.failed:
            counts[case.rule] = counts.get(case.rule, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def op_name(case: Case) -> str:
    return BY_CODE[case.op.op].name  # type: ignore[index]


# --- comparing -----------------------------------------------------------------------------------------------------


def _value(key: Key, changes: Items, before: Items) -> tuple[int, ...] | None:
    """What an item is afterwards."""
    value = changes[key] if key in changes else before.get(key)
    return (0,) * len(KINDS[key[0]].values) if value is None and KINDS[key[0]].zero else value


def _entry_fields(key: Key, value: tuple[int, ...] | None, c_bit: int) -> dict[str, int]:
    """An item's values by the names that people have for them."""
    if value is None:
        return {}
    if key[0] == "rmp":
        return {field.name: field.value << 12 * (field.name == "gpa") for field in decode_rmp_entry(*value)}
    if key[0] == "table":
        # Where a table's page is comes from the page allocator, which is nobody's business (direct-map §2.3).
        return {"flags": value[0] & ~(_FRAME & ~c_bit)}
    if key[0] == "leaf" and value[0]:
        return {field.name: field.value for field in decode_pte(value[0], key[2], c_bit)} | {"raw": value[0]}
    return dict(zip(KINDS[key[0]].values, value, strict=True))


def _what(key: Key) -> tuple[str, int | None, int]:
    """An item's name for people; number and stride, if it is one of many in a row."""
    if key[0] == "rmp":
        return "entry", key[1], 1
    if key[0] in ("leaf", "table"):
        size = {1: "4K", 2: "2M", 3: "1G"}.get(key[2], f"level {key[2]}")
        where = "of the high mapping " if key[1] else ""
        return f"{key[0]} {where}{size} +", key[3], 1 << 12 + 9 * (key[2] - 1)
    return key_text(key), None, 0


def _item_differences(case: Case, answer: Answer, ignore: Collection[str], c_bit: int) -> Iterator[Difference]:
    for key in sorted(
        case.changes.keys() | answer.changes.keys(), key=lambda key: (list(KINDS).index(key[0]), key[1:])
    ):
        if key[0] in ignore:
            continue
        wanted, got = (_value(key, changes, case.before) for changes in (case.changes, answer.changes))
        if wanted == got:
            continue
        what, place, stride = _what(key)
        fields = [_entry_fields(key, value, c_bit) for value in (got, wanted, case.before.get(key))]
        is_there, is_wanted = (_there(key, value) for value in (got, wanted))
        if is_there != is_wanted and (not KINDS[key[0]].zero or key[0] in ("leaf", "table")):
            texts = ["there" if there else "not there" for there in (is_there, is_wanted)]
            yield Difference(what, place, stride, "", texts[0], texts[1], key not in case.changes)
            continue
        for name in fields[1]:
            mine, theirs = fields[1].get(name), fields[0].get(name)
            if mine != theirs and name not in ignore and (name != "raw" or _same_but_raw(*fields[:2])):
                texts = [number_text(value) if value is not None else "missing" for value in (theirs, mine)]
                before = fields[2].get(name, 0 if KINDS[key[0]].zero else None)
                yield Difference(what, place, stride, name, texts[0], texts[1], as_before=mine == before)


def _there(key: Key, value: tuple[int, ...] | None) -> bool:
    """Whether there is such an item at all; an RMP entry always is."""
    return value is not None and (key[0] == "rmp" or any(value) or not KINDS[key[0]].zero)


def _same_but_raw(a: dict[str, int], b: dict[str, int]) -> bool:
    """Whether two leaves differ in what has no name of its own."""
    return all(value == b.get(name) for name, value in a.items() if name != "raw")


def _result_differences(case: Case, answer: Answer) -> Iterator[Difference]:
    got, wanted = as_result(answer.result), case.result
    if "reason" not in answer.result or not wanted.reason:
        got = got._replace(reason=wanted.reason)
    if got == wanted:
        return
    texts = [format_result(case.op, result).removeprefix("= ") for result in (got, wanted)]
    if texts[0] != texts[1]:
        yield Difference("result", None, 0, "", texts[0], texts[1])
        return
    for name, mine, theirs in zip(wanted._fields, wanted, got, strict=True):
        if mine != theirs:
            yield Difference("result", None, 0, name, number_text(theirs), number_text(mine))


def differences(case: Case, answer: Answer, ignore: Collection[str] = (), c_bit: int = 0) -> list[Difference]:
    """What of an answer is other than expected; the result first."""
    return [*_result_differences(case, answer), *_item_differences(case, answer, ignore, c_bit)]


def difference_lines(case: Case, found: Sequence[Difference]) -> Iterator[str]:
    """Differences in words; entries in a row that differ in the same field are one line."""
    rest = list(found)
    while rest:
        first = rest.pop(0)
        last, values = first, {(first.got, first.expected)}
        for other in list(rest):
            if last.place is None or other.place != last.place + last.stride:
                continue
            if (other.what, other.field, other.stride) == (first.what, first.field, first.stride):
                last = other
                values.add((other.got, other.expected))
                rest.remove(other)
        where = first.what
        if last.place is not None:
            where = _PLURAL.get(where, where) if last is not first else where
            where += f"{'' if where.endswith('+') else ' '}{first.place:#x}"
            where += f" to {last.place:#x}" if last is not first else ""
        got, expected = (
            text if len({pair[i] for pair in values}) == 1 else f"{text}, ..."
            for i, text in enumerate((first.got, first.expected))
        )
        subject = f"{where}: {first.field}" if first.field else where
        before = ", as before" if first.as_before else ""
        yield f"{subject} is {got}, expected {expected}{before} ({case.rule})"


def judge(vectors: Vectors, answers: dict[str, Answer], ignore: Collection[str] = ()) -> Verdict:
    """Hold answers against the cases.  All of them have to be there."""
    verdict = Verdict()
    for case in vectors.cases:
        answer = answers[case.name]
        if answer.skipped:
            verdict.skipped.append(case)
        elif found := differences(case, answer, ignore, vectors.machines[case.machine].c_bit):
            verdict.failed.append((case, answer, found))
        else:
            verdict.passed.append(case)
    return verdict


# --- the device under test -----------------------------------------------------------------------------------------


def _ended(status: int) -> str:
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"ended with status {status}"


def ask(vectors: Vectors, command: Sequence[str], timeout: float, report: Callable[[int], object]) -> dict[str, Answer]:
    """Let a program answer all cases.

    Raises :class:`DeviceError` when it cannot be started, dies, is silent for ``timeout`` seconds or leaves cases out,
    and VectorError for what it says wrong, with the line of its output."""
    try:
        device = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    except (OSError, ValueError) as e:
        raise DeviceError(f"{command[0]}: cannot be started: {getattr(e, 'strerror', None) or e}") from None
    assert device.stdin is not None and device.stdout is not None
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    questions, output = device.stdin, device.stdout

    def write() -> None:
        # A device that reads no further shows in its answers.
        try:
            for line in vector_lines(vectors, vectors.format, expected=False):
                questions.write(line.encode() + b"\n")
            questions.close()
        except (BrokenPipeError, ValueError):
            pass

    def read() -> None:
        while line := output.readline(1 << 24):
            lines.put(line)
        lines.put(b"")

    threads = [threading.Thread(target=target, daemon=True) for target in (write, read)]
    reader = AnswerReader(command[0], (case.name for case in vectors.cases))
    try:
        for thread in threads:
            thread.start()
        while True:
            try:
                line = lines.get(timeout=timeout)
            except queue.Empty:
                raise DeviceError(_left(vectors, reader, command[0], f"said nothing for {timeout:g} s")) from None
            if not line:
                break
            reader.feed(line)
            report(len(reader.answers))
        try:
            status = device.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{command[0]}: closed its output, and still ran after {timeout:g} s") from None
        if status != 0 or len(reader.answers) < len(vectors.cases):
            if status == 0:
                reader.end()
            raise DeviceError(_left(vectors, reader, command[0], _ended(status)))
        reader.end()
    finally:
        if device.poll() is None:
            os.killpg(device.pid, signal.SIGKILL)
        device.wait()
    return reader.answers


def _left(vectors: Vectors, reader: AnswerReader, name: str, end: str) -> str:
    missing = [case.name for case in vectors.cases if case.name not in reader.answers]
    answered = f"{end} after {len(reader.answers)} of {len(vectors.cases)} answers"
    return f"{name}: {answered}" + (f"; the first that is missing is {missing[0]}" if missing else "")
