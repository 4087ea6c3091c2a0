"""What a case is, and how cases and answers are written and read, as text or JSON lines (docs/vectors.md).

A case is a state, one op, its result and what it changes.

A state is items: an entry of the RMP, a leaf, a counter.  An item has a kind and named numbers; some of them are its
key.  Text and JSON lines say the same items under the same names, with the numbers written alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from rmpcore.ops import Kind, Op, OpError, Reason, Result, ResultFlag, format_op, parse_op
from rmpcore.state import COUNTERS, State

VERSION = 1
CASES_FORMAT = "rmpcore-vectors"
ANSWERS_FORMAT = "rmpcore-answers"
FORMATS = ("text", "jsonl")
MAX_LINE = 1 << 16
"""Bytes of a text line."""
MAX_JSON_LINE = 1 << 24
_ID = re.compile(r"[A-Za-z0-9_./+-]{1,200}")
_NUMBER = re.compile(r"-?(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})")
_MAX_RUN = 1 << 20
_U64 = (1 << 64) - 1


class VectorError(ValueError):
    """Cases or answers that cannot be read."""


@dataclass(frozen=True)
class ItemKind:
    """What an item of this kind is called, and by which numbers it is found."""

    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    zero: bool
    """An item whose values are all 0 is the same as none."""
    run: str = ""
    """The key that goes up in a run, by 1 or (of a leaf) by what it spans; the first value goes up by ``step``."""


_KINDS = (
    ItemKind("rmp", ("pfn",), ("lo", "hi"), zero=True, run="pfn"),
    ItemKind("in_use", ("vmcb",), ("vmsa", "avic"), zero=False),
    ItemKind("leaf", ("window", "level", "offset"), ("raw",), zero=True, run="offset"),
    ItemKind("table", ("window", "level", "offset"), ("raw",), zero=True),
    ItemKind("counter", ("name",), ("value",), zero=True),
    ItemKind("book", ("asid",), ("count",), zero=True),
    ItemKind("firmware", (), ("ready",), zero=True),
    ItemKind("context", ("pfn",), ("asid",), zero=False),
    ItemKind("record", ("pa",), ("gctx", "info", "gpa", "hi"), zero=False),
    ItemKind("inject", ("at",), ("code", "count"), zero=False),
    ItemKind("address", ("at",), ("pfn", "high"), zero=False),
    ItemKind("fail_alloc", (), ("skip", "count"), zero=True),
    ItemKind("mapped", ("first",), ("end",), zero=False),
    ItemKind("kernel", (), ("root", "max_pfn_mapped", "readonly"), zero=True),
)
KINDS = {kind.name: kind for kind in _KINDS}
LEVEL1_KINDS = ("rmp", "in_use", "leaf")
"""What cases of level 1 are about."""

Key = tuple[Any, ...]
"""An item's kind and its keys."""
Items = dict[Key, tuple[int, ...] | None]
"""Values by key; None: the item is gone."""


@dataclass(frozen=True)
class Machine:
    """The machine that cases are about, in words and numbers: lines of a word and key=value."""

    name: str
    lines: tuple[tuple[str, Mapping[str, str]], ...]

    @property
    def c_bit(self) -> int:
        """The encryption bit."""
        return next((int(keys["c_bit"], 0) for word, keys in self.lines if word == "map" and "c_bit" in keys), 0)


@dataclass(frozen=True)
class Case:
    """One test vector."""

    name: str
    machine: str
    rule: str
    """What it is about, as the documents are cited: "rmp §2.2 row 8b"."""
    about: str
    """What is special about this one."""
    setup: tuple[Op, ...]
    """Ops that lead from the machine's start to the state before."""
    before: Items
    op: Op
    result: Result
    changes: Items


@dataclass(frozen=True)
class Vectors:
    """A file of cases."""

    level: int
    rules: Mapping[str, str]
    """What each rule that a case names is about, in a few words."""
    machines: Mapping[str, Machine]
    cases: tuple[Case, ...]
    format: str = "text"


@dataclass
class Answer:
    """What an implementation says to one case."""

    name: str
    skipped: bool = False
    result: dict[str, int] = field(default_factory=dict)
    changes: Items = field(default_factory=dict)


# --- numbers, items, results ---------------------------------------------------------------------------------------


def number_text(value: int) -> str:
    """Decimal below ten, else hexadecimal."""
    return str(value) if value < 10 else hex(value)


def _number(text: object, what: str) -> int:
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise VectorError(f"{what}: {str(text)[:40]!r} is not a number")
    value = int(text, 16 if "x" in text else 10)
    if not -(1 << 31) <= value <= _U64:
        raise VectorError(f"{what}: {text} does not fit 64 bits")
    return value


def _span(level: int) -> int:
    return 1 << 12 + 9 * (level - 1)


def add_item(items: Items, word: str, fields: Mapping[str, object]) -> None:
    """Put one item, or a run of them, as it is written, among others.  Raises :class:`VectorError`."""
    kind = KINDS[word]
    known = {*kind.keys, *kind.values, "gone", *(("n", "step") if kind.run else ())}
    for name in fields:
        if name not in known:
            raise VectorError(f"{word}: unknown key {name[:40]!r}")
    values = {
        name: text if name == "name" else _number(text, f"{word}: {name}") & _U64 for name, text in fields.items()
    }
    if word == "counter" and values.get("name") not in COUNTERS:
        raise VectorError(f"counter: {str(values.get('name'))[:40]!r} is none")
    count, step = int(values.get("n", 1)), int(values.get("step", 0))  # type: ignore[call-overload]
    if not 1 <= count <= _MAX_RUN:
        raise VectorError(f"{word}: n is {count}, outside 1..{_MAX_RUN}")
    keys = [values.get(name, 0) for name in kind.keys]
    rest = [int(values.get(name, 0)) for name in kind.values]  # type: ignore[call-overload]
    if kind.run == "offset" and keys[1] not in (1, 2, 3, 4, 5):
        raise VectorError(f"{word}: level is {keys[1]}, not 1 to 5")
    rise = _span(keys[1]) if kind.run == "offset" else 1  # type: ignore[arg-type]
    for i in range(count):
        key = (word, *keys[:-1], keys[-1] + i * rise) if kind.run else (word, *keys)  # type: ignore[operator]
        if key in items:
            raise VectorError(f"{key_text(key)} is given twice")
        if values.get("gone"):
            items[key] = (0,) * len(rest) if kind.zero else None
        else:
            items[key] = (rest[0] + i * step & _U64, *rest[1:])


def key_text(key: Key) -> str:
    """An item's name for people."""
    word, *keys = key
    names = KINDS[word].keys
    return " ".join([word, *(f"{n}={k if n == 'name' else number_text(k)}" for n, k in zip(names, keys, strict=True))])


def item_lines(items: Items) -> Iterator[tuple[str, dict[str, str]]]:
    """Items as they are written: sorted, in runs, without what is 0."""
    rows = sorted(items.items(), key=lambda row: (list(KINDS).index(row[0][0]), row[0][1:]))
    i = 0
    while i < len(rows):
        (word, *keys), values = rows[i]
        kind = KINDS[word]
        fields = dict(zip(kind.keys, keys, strict=True))
        n = 1
        if values is None:
            fields["gone"] = 1
        else:
            fields |= dict(zip(kind.values, values, strict=True))
            if kind.run:
                n, step = _run(rows, i)
                fields |= {"step": step} if n > 1 else {}
        text = {k: v if k == "name" else number_text(v) for k, v in fields.items() if v or k in kind.keys[-1:]}
        if n > 1:
            text["n"] = str(n)
        yield word, text
        i += n


def _run(rows: list[tuple[Key, tuple[int, ...] | None]], start: int) -> tuple[int, int]:
    """How many rows from one on are a run, and by how much its first value rises."""
    key, values = rows[start]
    if values is None:
        return 1, 0
    rise = _span(key[2]) if key[0] == "leaf" else 1
    n, step = 1, 0
    for other, theirs in rows[start + 1 :]:
        if theirs is None or other[:-1] != key[:-1] or other[-1] != key[-1] + n * rise or theirs[1:] != values[1:]:
            break
        if n == 1:
            step = theirs[0] - values[0] & _U64
        if theirs[0] != values[0] + n * step & _U64:
            break
        n += 1
    # Two that happen to lie side by side are no run, unless they rise as frames do.
    if n == 2 and step not in (0, 0x1000, rise):
        return 1, 0
    return n, step


_FLAGS = {"assigned": ResultFlag.ASSIGNED, "rw": ResultFlag.RW, "nx": ResultFlag.NX, "cf": ResultFlag.CF}
RESULT_KEYS = ("kind", "ret", "level", *_FLAGS, "value", "value2", "reason")


def result_fields(result: Result) -> dict[str, str]:
    """A result as it is written."""
    fields = {"kind": Kind(result.kind).name, "ret": str(result.ret)}
    numbers = {"level": result.level} | {name: int(bool(result.flags & bit)) for name, bit in _FLAGS.items()}
    numbers |= {"value": result.value, "value2": result.value2}
    fields |= {name: number_text(value) for name, value in numbers.items() if value}
    return fields | ({"reason": Reason(result.reason).name} if result.reason else {})


def read_result(fields: Mapping[str, object]) -> dict[str, int]:
    """The numbers of a result that is written; a reason only if it is said.  Raises :class:`VectorError`."""
    read = dict.fromkeys(RESULT_KEYS[:-1], 0)
    for name, text in fields.items():
        if name not in RESULT_KEYS:
            raise VectorError(f"result: unknown key {name[:40]!r}")
        names = {"kind": Kind, "reason": Reason}.get(name)
        if names is None:
            read[name] = _number(text, f"result: {name}")
        elif isinstance(text, str) and text in names.__members__:
            read[name] = int(names[text])
        else:
            raise VectorError(f"result: {str(text)[:40]!r} is no {name}")
    for name in ("kind", "ret"):
        if name not in fields:
            raise VectorError(f"result: {name} is missing")
    if not -(1 << 31) <= read["ret"] < 1 << 32:
        raise VectorError(f"result: ret {read['ret']} does not fit 32 bits")
    read["ret"] -= (1 << 32) * (read["ret"] >= 1 << 31)
    return read


def as_result(fields: Mapping[str, int]) -> Result:
    """The result record that the numbers say."""
    flags = sum(int(bit) for name, bit in _FLAGS.items() if fields[name])
    return Result(
        fields["ret"],
        fields["kind"],
        fields["level"] & 0xFF,
        flags,
        fields.get("reason", 0),
        fields["value"],
        fields["value2"],
    )


def items_of(state: State, kinds: Iterable[str]) -> Items:
    """A state's items of some kinds."""
    items: Items = {}
    for name, array in (("rmp", state.rmp), ("leaf", state.leaves), ("table", state.tables)):
        keys = len(KINDS[name].keys)
        items |= {(name, *row[:keys]): row[keys:] for row in array.tolist()}
    items |= {("counter", name): (value,) for name, value in state.counters.items() if value}
    lists = {
        "in_use": state.in_use,
        "context": state.contexts,
        "record": state.records,
        "book": state.bookkeeping,
        "mapped": state.mapped,
    }
    for name, rows in lists.items():
        items |= {(name, row[0]): tuple(row[1:]) for row in rows}
    for name, queue in (("inject", state.inject), ("address", state.addresses)):
        items |= {(name, at): tuple(row) for at, row in enumerate(queue)}
    items["fail_alloc",] = state.fail_alloc
    items["firmware",] = (int(state.firmware_ready),)
    items["kernel",] = (state.root, state.max_pfn_mapped, int(state.kernel_readonly))
    wanted = set(kinds)
    return {
        key: values
        for key, values in items.items()
        if key[0] in wanted and not (KINDS[key[0]].zero and values is not None and not any(values))
    }


def changed_items(before: Items, after: Items) -> Items:
    """What is another one afterwards, or new, or gone."""
    changes = {key: values for key, values in after.items() if before.get(key) != values}
    for key, values in before.items():
        if key not in after and values is not None:
            changes[key] = (0,) * len(values) if KINDS[key[0]].zero else None
    return changes


# --- writing -------------------------------------------------------------------------------------------------------


def _words(word: str, fields: Mapping[str, str]) -> str:
    return " ".join([word, *(f"{name}={text}" for name, text in fields.items())])


def _header(vectors: Vectors) -> dict[str, int]:
    return {"version": VERSION, "level": vectors.level, "cases": len(vectors.cases)}


def case_text(case: Case, expected: bool = True) -> Iterator[str]:
    """The lines of a case; ``expected``: with what is to come out."""
    yield f"case {case.name} machine={case.machine}"
    yield f"rule {case.rule}"
    yield f"about {case.about}"
    yield from (f"setup {format_op(op)}" for op in case.setup)
    yield from (_words(*line) for line in item_lines(case.before))
    yield f"op {format_op(case.op)}"
    if expected:
        yield _words("result", result_fields(case.result))
        yield from (_words(*line) for line in item_lines(case.changes))
    yield "end"


def _json_items(items: Items) -> list[dict[str, str]]:
    return [{"is": word} | fields for word, fields in item_lines(items)]


def case_json(case: Case, expected: bool = True) -> dict[str, object]:
    """A case as JSON values."""
    value: dict[str, object] = {
        "case": case.name,
        "machine": case.machine,
        "rule": case.rule,
        "about": case.about,
        "setup": [format_op(op) for op in case.setup],
        "before": _json_items(case.before),
        "op": format_op(case.op),
    }
    if expected:
        value |= {"result": result_fields(case.result), "changes": _json_items(case.changes)}
    return value


def vector_lines(vectors: Vectors, form: str = "text", expected: bool = True) -> Iterator[str]:
    """All lines of a file of cases, without their ends.  ``expected`` False: the questions alone."""
    if form == "jsonl":
        yield json.dumps({"format": CASES_FORMAT, **_header(vectors)})
        for rule, text in vectors.rules.items():
            yield json.dumps({"rule": rule, "text": text}, ensure_ascii=False)
        for machine in vectors.machines.values():
            lines = [{"is": word} | dict(keys) for word, keys in machine.lines]
            yield json.dumps({"machine": machine.name, "lines": lines}, ensure_ascii=False)
        for case in vectors.cases:
            yield json.dumps(case_json(case, expected), ensure_ascii=False)
        return
    yield " ".join([CASES_FORMAT, *(f"{name}={value}" for name, value in _header(vectors).items())])
    yield from (f"rule {rule}: {text}" for rule, text in vectors.rules.items())
    for machine in vectors.machines.values():
        yield f"machine {machine.name}"
        yield from (_words(word, keys) for word, keys in machine.lines)
        yield "end"
    for case in vectors.cases:
        yield from case_text(case, expected)


# --- reading -------------------------------------------------------------------------------------------------------


def _split(words: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for word in words.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise VectorError(f"{word[:40]!r} is not key=value")
        if name in fields:
            raise VectorError(f"key {name[:40]!r} is given twice")
        fields[name] = value
    return fields


def _json_line(line: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise VectorError("a name is given twice")
        return dict(pairs)

    try:
        value = json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        if isinstance(e, VectorError):
            raise
        raise VectorError("not JSON") from None
    if not isinstance(value, dict):
        raise VectorError("not a JSON object")
    return value


def _json_fields(value: object, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise VectorError(f"{what} is not an object of strings")
    return value


def _json_list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise VectorError(f"{what} is not an array")
    return value


def _add_json_items(items: Items, value: object, what: str) -> None:
    for item in _json_list(value, what):
        fields = dict(_json_fields(item, what))
        word = fields.pop("is", None)
        if word not in KINDS:
            raise VectorError(f"{what}: {str(word)[:40]!r} is no kind of item")
        add_item(items, word, fields)


def _check_header(name: object, wanted: str, version: object) -> None:
    if name != wanted:
        raise VectorError(f"begins with {str(name)[:40]!r}, not {wanted!r}")
    if str(version) != str(VERSION):
        raise VectorError(f"{wanted} of version {str(version)[:20]}: this rmpcore reads version {VERSION}")


def _name(text: object) -> str:
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise VectorError(f"{str(text)[:40]!r} is no name")
    return text


def _small(text: object, what: str) -> int:
    if isinstance(text, bool) or not re.fullmatch("[0-9]{1,9}", str(text)):
        raise VectorError(f"{what} is {str(text)[:40]!r}, not a number")
    return int(str(text))


def _op(text: object) -> Op:
    if not isinstance(text, str):
        raise VectorError("op is not a string")
    try:
        return parse_op(text)
    except OpError as e:
        raise VectorError(str(e)) from None


@dataclass
class _Draft:
    """A machine, case or answer of which some lines have been read."""

    kind: str
    name: str
    line: int
    fields: dict[str, str] = field(default_factory=dict)
    lines: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    rule: str = ""
    about: str = ""
    setup: list[Op] = field(default_factory=list)
    before: Items = field(default_factory=dict)
    op: Op | None = None
    result: dict[str, int] | None = None
    changes: Items = field(default_factory=dict)


class _Reader:
    """What the readers of cases and of answers share: lines, places, the header."""

    def __init__(self, source: str, wanted: str) -> None:
        self.source = source
        self.number = 0
        self._wanted = wanted
        self._header: dict[str, Any] | None = None
        self._draft: _Draft | None = None
        self.jsonl = False

    def fail(self, reason: object) -> VectorError:
        return VectorError(f"{self.source}:{max(self.number, 1)}: {reason}")

    @staticmethod
    def _unfinished(draft: _Draft) -> str:
        return f"{draft.kind} {draft.name} of line {draft.line} has no end"

    def feed(self, raw: bytes) -> None:
        """Take the next line."""
        self.number += 1
        try:
            if len(raw) > (MAX_JSON_LINE if self.jsonl or raw[:1] == b"{" else MAX_LINE):
                raise VectorError("the line is too long")
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise VectorError("not UTF-8") from None
            if not raw.endswith(b"\n") and line:
                raise VectorError("the last line is cut off")
            if not line or (line.startswith("#") and not self.jsonl):
                return
            if self._header is None:
                self._begin(line)
            elif self.jsonl:
                self._json(_json_line(line))
            else:
                word, _, rest = line.partition(" ")
                if word in ("machine", "case", "answer", "skip") and self._draft is not None:
                    raise VectorError(self._unfinished(self._draft))
                self._text(word, rest.strip())
        except VectorError as e:
            raise self.fail(e) from None

    def _begin(self, line: str) -> None:
        self.jsonl = line.startswith("{")
        if self.jsonl:
            header = _json_line(line)
            name = header.pop("format", None)
        else:
            name, _, rest = line.partition(" ")
            header = dict(_split(rest)) if name == self._wanted else {}
        _check_header(name, self._wanted, header.get("version"))
        self._header = header

    def _open(self, kind: str, name: str) -> _Draft:
        self._draft = _Draft(kind, _name(name), self.number)
        return self._draft

    def _json(self, value: dict[str, Any]) -> None:
        raise NotImplementedError

    def _text(self, word: str, rest: str) -> None:
        raise NotImplementedError

    def _line_of(self, draft: _Draft, word: str, rest: str) -> None:
        """A line inside a case or answer that is a result or an item."""
        if word == "result":
            if draft.result is not None:
                raise VectorError("a second result")
            draft.result = read_result(_split(rest))
        elif word in KINDS:
            into = draft.changes if draft.op is not None or draft.kind == "answer" else draft.before
            add_item(into, word, _split(rest))
        else:
            raise VectorError(f"{word[:40]!r} does not belong here")

    def end(self) -> None:
        """There are no more lines."""
        if self._header is None:
            raise self.fail(f"is empty, and does not begin with {self._wanted!r}")
        if self._draft is not None:
            raise self.fail(self._unfinished(self._draft))


class _CaseReader(_Reader):
    def __init__(self, source: str) -> None:
        super().__init__(source, CASES_FORMAT)
        self.rules: dict[str, str] = {}
        self.machines: dict[str, Machine] = {}
        self.cases: dict[str, Case] = {}

    def _text(self, word: str, rest: str) -> None:
        draft = self._draft
        if draft is None:
            if word == "rule":
                name, _, text = rest.partition(": ")
                self.rules[name] = text
                return
            if word not in ("machine", "case"):
                raise VectorError(f"{word[:40]!r} is neither rule nor machine nor case")
            name, _, fields = rest.partition(" ")
            self._open(word, name).fields = _split(fields)
        elif word == "end":
            self._finish(draft)
            self._draft = None
        elif draft.kind == "machine":
            draft.lines.append((word, _split(rest)))
        elif word in ("rule", "about", "setup", "op") and draft.op is not None:
            raise VectorError(f"{word} after op")
        elif word == "rule":
            draft.rule = rest
        elif word == "about":
            draft.about = rest
        elif word == "setup":
            draft.setup.append(_op(rest))
        elif word == "op":
            draft.op = _op(rest)
        else:
            self._line_of(draft, word, rest)

    def _json(self, value: dict[str, Any]) -> None:
        if "rule" in value and "case" not in value:
            self.rules[str(value["rule"])] = str(value.get("text"))
            return
        if "machine" in value and "case" not in value:
            draft = self._open("machine", value["machine"])
            for line in _json_list(value.get("lines"), "lines"):
                fields = dict(_json_fields(line, "lines"))
                draft.lines.append((fields.pop("is", ""), fields))
        elif "case" in value:
            draft = self._open("case", value["case"])
            draft.fields = {"machine": str(value.get("machine"))}
            draft.rule = str(value.get("rule"))
            draft.about = str(value.get("about"))
            draft.setup = [_op(op) for op in _json_list(value.get("setup"), "setup")]
            _add_json_items(draft.before, value.get("before"), "before")
            draft.op = _op(value.get("op"))
            draft.result = read_result(_json_fields(value.get("result"), "result"))
            _add_json_items(draft.changes, value.get("changes"), "changes")
        else:
            raise VectorError("is neither a rule nor a machine nor a case")
        self._finish(draft)
        self._draft = None

    def _finish(self, draft: _Draft) -> None:
        name = draft.name
        if draft.kind == "machine":
            if name in self.machines:
                raise VectorError(f"machine {name} is there twice")
            self.machines[name] = Machine(name, tuple(draft.lines))
            return
        if name in self.cases:
            raise VectorError(f"case {name} is there twice")
        if draft.op is None or draft.result is None:
            raise VectorError(f"case {name} has no {'op' if draft.op is None else 'result'}")
        machine = draft.fields.get("machine", "")
        if machine not in self.machines:
            raise VectorError(f"case {name}: there is no machine {machine[:40]!r}")
        if draft.rule not in self.rules:
            raise VectorError(f"case {name}: there is no rule {draft.rule[:80]!r}")
        self.cases[name] = Case(
            name=name,
            machine=machine,
            rule=draft.rule,
            about=draft.about,
            setup=tuple(draft.setup),
            before=draft.before,
            op=draft.op,
            result=as_result(draft.result),
            changes=draft.changes,
        )

    def vectors(self) -> Vectors:
        self.end()
        assert self._header is not None
        try:
            said = _small(self._header.get("cases"), "cases in the first line")
            level = _small(self._header.get("level"), "level in the first line")
        except VectorError as e:
            raise VectorError(f"{self.source}:1: {e}") from None
        if said != len(self.cases):
            raise self.fail(f"{len(self.cases)} cases, and the first line says {said}: the file is cut off")
        return Vectors(level, self.rules, self.machines, tuple(self.cases.values()), "jsonl" if self.jsonl else "text")


def read_vectors(lines: Iterable[bytes], source: str) -> Vectors:
    """The cases of a file, text or JSON lines.  Raises :class:`VectorError`, one line with the place."""
    reader = _CaseReader(source)
    for line in lines:
        reader.feed(line)
    return reader.vectors()


class AnswerReader(_Reader):
    """Answers as they come, line by line."""

    def __init__(self, source: str, names: Iterable[str]) -> None:
        super().__init__(source, ANSWERS_FORMAT)
        self._names = set(names)
        self.answers: dict[str, Answer] = {}

    def _open(self, kind: str, name: str) -> _Draft:
        draft = super()._open(kind, name)
        if name not in self._names:
            raise VectorError(f"there is no case {name[:200]}")
        if name in self.answers:
            raise VectorError(f"a second answer to {name}")
        return draft

    def _text(self, word: str, rest: str) -> None:
        draft = self._draft
        if draft is None:
            if word == "skip":
                self._finish(self._open(word, rest))
            elif word == "answer":
                self._open(word, rest)
            else:
                raise VectorError(f"{word[:40]!r} is neither answer nor skip")
        elif word == "end":
            self._finish(draft)
        else:
            self._line_of(draft, word, rest)

    def _json(self, value: dict[str, Any]) -> None:
        if "skip" in value:
            self._finish(self._open("skip", value["skip"]))
            return
        if "answer" not in value:
            raise VectorError("is neither an answer nor a skip")
        draft = self._open("answer", value["answer"])
        draft.result = read_result(_json_fields(value.get("result"), "result"))
        _add_json_items(draft.changes, value.get("changes"), "changes")
        self._finish(draft)

    def _finish(self, draft: _Draft) -> None:
        if draft.kind == "answer" and draft.result is None:
            raise VectorError(f"the answer to {draft.name} has no result")
        self.answers[draft.name] = Answer(draft.name, draft.kind == "skip", draft.result or {}, draft.changes)
        self._draft = None


def write_vectors(vectors: Vectors, file: TextIO, form: str) -> None:
    """Write a file of cases."""
    for line in vector_lines(vectors, form):
        file.write(line + "\n")
