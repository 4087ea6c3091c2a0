"""Test vectors: the released set, what each case has to be about, and the judge of other implementations' answers.

The devices under test of examples/dut are built and judged here: as they are, and with each mistake that they can make.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from headers import compiler

from rmpcore.machine import Machine, MachineLike
from rmpcore.ops import Kind, Result
from rmpcore.vectors import draft, whole
from rmpcore.vectors import generate as generating
from rmpcore.vectors.form import (
    KINDS,
    Answer,
    AnswerReader,
    Case,
    Items,
    VectorError,
    Vectors,
    case_text,
    items_of,
    read_vectors,
    vector_lines,
)
from rmpcore.vectors.generate import Generator, generate, level2_parts
from rmpcore.vectors.verify import Verdict, difference_lines, differences, judge

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / "vectors/level1.txt"
SCHEMA = ROOT / "vectors/schema.json"
DUT = ROOT / "examples/dut"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def released() -> Vectors:
    """The released cases."""
    with RELEASED.open("rb") as file:
        return read_vectors(file, str(RELEASED))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a few cases."""
    path = tmp_path_factory.mktemp("vectors") / "psmash.txt"
    path.write_text(text(generate(1, ops=["PSMASH"], hardware="genoa")), encoding="utf-8")
    return path


def text(vectors: Vectors, form: str = "text", expected: bool = True) -> str:
    return "".join(f"{line}\n" for line in vector_lines(vectors, form, expected))


def again(vectors: Vectors, form: str) -> Vectors:
    """What is read of what is written."""
    return read_vectors(io.BytesIO(text(vectors, form).encode()), "x")


def answers_text(cases: Iterable[Case]) -> str:
    """The expected answers, cut out of the text of the cases."""
    lines = ["rmpcore-answers version=1"]
    for case in cases:
        words = list(case_text(case))
        start = next(i for i, line in enumerate(words) if line.startswith("result "))
        lines += [f"answer {case.name}", *words[start:]]
    return "\n".join(lines) + "\n"


def read_answers(vectors: Vectors, answers: str) -> dict[str, Answer]:
    reader = AnswerReader("device", (case.name for case in vectors.cases))
    for line in answers.splitlines(keepends=True):
        reader.feed(line.encode())
    reader.end()
    return reader.answers


# --- the released set ----------------------------------------------------------------------------------------------


def test_gen_writes_the_released_set_again(released: Vectors) -> None:
    """Byte for byte; and both forms say the same."""
    made = generate(1)
    assert text(made).encode() == RELEASED.read_bytes()
    assert made.cases == released.cases
    assert made.rules == released.rules
    assert made.machines == released.machines
    assert replace(again(made, "jsonl"), format="text") == released


SECTIONS = {
    "2.2": ("RMPUPDATE", {"2"}),
    "2.3": ("PSMASH", set()),
    "2.5": ("PVALIDATE", {"5"}),
    "2.6": ("RMPADJUST", set()),
    "2.7": ("RMPQUERY", set()),
}
"""Tables of docs/rmp.md, and rows that no case can be about: the walk of an address is not the RMP's."""


@pytest.mark.parametrize("section", SECTIONS)
def test_each_row_of_a_table_has_cases(released: Vectors, section: str) -> None:
    document = (ROOT / "docs/rmp.md").read_text(encoding="utf-8")
    part = document.partition(f"\n### {section} ")[2].partition("\n### ")[0]
    rows = set(re.findall(r"^\| (\d+b?) \|", part, re.MULTILINE))
    _, without = SECTIONS[section]
    cited = {case.rule.rpartition(" ")[2] for case in released.cases if case.rule.startswith(f"rmp §{section} row ")}
    assert cited == rows - without


def test_each_rule_is_in_the_documents() -> None:
    for rule in {**draft.RULES, **whole.RULES}:
        document, section = re.match(r"(rmp|direct-map|host) §([\d.]+)", rule).groups()  # type: ignore[union-attr]
        headings = (ROOT / f"docs/{document}.md").read_text(encoding="utf-8")
        heading = rf"^#+ {re.escape(section)}\.? |^{section.rpartition('.')[2]}\. "
        assert re.search(heading, headings, re.MULTILINE), rule


def code(value: int) -> Callable[[Result], bool]:
    return lambda result: (result.kind, result.ret) == (Kind.CODE, value)


def fault(vector: int) -> Callable[[Result], bool]:
    return lambda result: (result.kind, result.ret) == (Kind.FAULT, vector)


def npf(info: int) -> Callable[[Result], bool]:
    return lambda result: (result.kind, result.value) == (Kind.NPF, info)


OUTCOMES: dict[str, tuple[Callable[[Result], bool], ...]] = {
    # rmp §2.2
    "RMPUPDATE/row-0": (fault(6), fault(13)),
    "RMPUPDATE/row-1": (code(2),),
    "RMPUPDATE/row-3": (code(1),),
    "RMPUPDATE/row-4": (code(1),),
    "RMPUPDATE/row-5": (code(1),),
    "RMPUPDATE/row-6": (code(2),),
    "RMPUPDATE/row-7": (code(3),),
    "RMPUPDATE/row-8": (code(4),),
    "RMPUPDATE/row-8b": (code(4),),
    "RMPUPDATE/row-9": (code(4),),
    "RMPUPDATE/row-10": (code(0),),
    # rmp §2.3
    "PSMASH/row-0": (fault(6), fault(13)),
    "PSMASH/row-1": (code(2),),
    "PSMASH/row-2": (code(1),),
    "PSMASH/row-3": (code(3),),
    "PSMASH/row-4": (code(7),),
    "PSMASH/row-5": (code(0),),
    # rmp §2.5
    "PVALIDATE/row-0": (fault(6),),
    "PVALIDATE/row-1": (fault(13),),
    "PVALIDATE/row-2": (fault(13),),
    "PVALIDATE/row-3": (code(1),),
    "PVALIDATE/row-4": (code(1),),
    "PVALIDATE/row-6": (npf(0x480000005),),
    "PVALIDATE/row-7": (npf(0xC80000005),),
    "PVALIDATE/row-8": (code(6),),
    "PVALIDATE/row-9": (lambda result: code(0)(result) and result.flags != 0,),
    "PVALIDATE/row-10": (lambda result: code(0)(result) and result.flags == 0,),
    # rmp §2.6
    "RMPADJUST/row-0": (fault(6), fault(13)),
    "RMPADJUST/row-1": (code(1),),
    "RMPADJUST/row-2": (code(2),),
    "RMPADJUST/row-3": (npf(0x480000005),),
    "RMPADJUST/row-4": (npf(0xC80000005),),
    "RMPADJUST/row-5": (fault(29),),
    "RMPADJUST/row-6": (code(6),),
    "RMPADJUST/row-7": (code(2),),
    "RMPADJUST/row-8": (code(0),),
    # rmp §2.7
    "RMPQUERY/row-0": (fault(6), fault(13)),
    "RMPQUERY/row-1": (npf(0x480000005),),
    "RMPQUERY/row-2": (npf(0xC80000005),),
    "RMPQUERY/row-3": (fault(29),),
    "RMPQUERY/row-4": (code(2),),
    "RMPQUERY/row-5": (code(2),),
    "RMPQUERY/row-6": (code(0),),
}
"""What each row of the tables answers, as the documents have it."""

BESIDE = {
    "RMPUPDATE/row-5": {"last-4K", "part-4K", "first"},
    "RMPUPDATE/row-6": {"elsewhere"},
    "RMPUPDATE/row-7": {"beside-vmcb", "beside-vmsa", "beside-avic", "2M-beside-1ff", "2M-beside-400"},
    "RMPUPDATE/row-8b": {"head-unassigned", "head-4K", "next", "after"},
    "RMPUPDATE/row-9": {"count-only", "own-only", "large", "beside-1ff", "beside-400"},
    "PSMASH/row-2": {"c-bit"},
    "PSMASH/row-3": {"beside"},
}
"""Cases just beside a row: the instruction is done."""

OTHERWISE = {
    "RMPUPDATE/row-7/row-3": code(1),
    "RMPUPDATE/row-7/row-4": code(1),
    "PVALIDATE/row-3/high-halves": code(0),
    "PVALIDATE/row-4/low-bits": code(0),
}
"""Cases beside a row with an outcome of their own."""


def test_each_case_comes_to_the_row_that_it_names(released: Vectors) -> None:
    seen = set()
    for case in released.cases:
        row, _, name = case.name.rpartition("/")
        if row not in OUTCOMES:
            continue
        seen.add(row)
        if case.name in OTHERWISE:
            assert OTHERWISE[case.name](case.result), case
        elif name in BESIDE.get(row, ()):
            assert code(0)(case.result), case
        else:
            assert any(fits(case.result) for fits in OUTCOMES[row]), case
        if case.result.kind != Kind.CODE or case.result.ret != 0:
            assert not case.changes, case
    assert seen == set(OUTCOMES)


def test_no_case_is_one_that_the_model_refuses(released: Vectors) -> None:
    assert not [case.name for case in released.cases if case.result.kind == Kind.REFUSED]


def schema() -> jsonschema.Draft202012Validator:
    value = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(value)
    return jsonschema.Draft202012Validator(value)


def test_lines_keep_to_the_schema(released: Vectors) -> None:
    """JSON lines: some cases of each op, answers, skips; and a schema that refuses something."""
    validator = schema()
    some = replace(released, cases=released.cases[::12])
    for expected in (True, False):
        for line in vector_lines(some, "jsonl", expected):
            validator.validate(json.loads(line))
    for line in ('{"format": "rmpcore-answers", "version": 1}', '{"skip": "a"}'):
        validator.validate(json.loads(line))
    case = json.loads(list(vector_lines(some, "jsonl"))[-1])
    validator.validate({"answer": case["case"], "result": case["result"], "changes": case["changes"]})
    for broken in (
        case | {"more": 1},
        case | {"before": [{"is": "nothing"}]},
        case | {"before": [{"is": "rmp", "lo": "1"}]},
        case | {"result": {"kind": "CODE"}},
        case | {"result": {"kind": "CODE", "ret": 0}},
    ):
        assert not validator.is_valid(broken)


def test_the_schema_knows_all_items() -> None:
    value = json.loads(SCHEMA.read_text(encoding="utf-8"))
    known = {item["properties"]["is"]["const"]: set(item["properties"]) for item in value["$defs"]["item"]["oneOf"]}
    assert known == {
        kind.name: {"is", *kind.keys, *kind.values, *(("n", "step") if kind.run else ())}
        | (set() if kind.zero else {"gone"})
        for kind in KINDS.values()
    }


# --- gen -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def level2() -> Vectors:
    """Cases of level 2 with items of every kind."""
    ops = ["rmp_make_private", "SNP_PAGE_SWAP_OUT", "VMRUN", "VMEXIT", "fail_alloc", "cpa_address", "inject"]
    return generate(2, ops=[*ops, "set_memory_rox", "RMPUPDATE", "SNP_DECOMMISSION"])


def test_level_2_says_everything(level2: Vectors) -> None:
    """Its cases have items of all kinds, and both forms say the same."""
    kinds = {key[0] for case in level2.cases for key in (*case.before, *case.changes)}
    assert kinds == set(KINDS)
    for form in ("text", "jsonl"):
        assert replace(again(level2, form), format="text") == level2
    validator = schema()
    for line in list(vector_lines(level2, "jsonl"))[::9]:
        validator.validate(json.loads(line))


def test_setup_leads_to_the_state_before(level2: Vectors) -> None:
    """From boot, on the other implementation."""
    generator = Generator(level2_parts("genoa"), {})
    for case in level2.cases[::7]:
        machine = generator.machine(case.machine, "native")
        for op in case.setup:
            assert machine.apply(op).kind != Kind.REFUSED
        assert items_of(machine.state(), KINDS) == case.before, case.name


def test_gen_for_one_part(rmpcore_: Run) -> None:
    """Milan has no RMPQUERY, and cuts the gpa to 48 bits; nothing of other parts is left."""
    status, out, err = rmpcore_("gen", "--op", "RMPQUERY", "--hardware", "milan")
    assert (status, err) == (0, "")
    vectors = read_vectors(io.BytesIO(out.encode()), "x")
    assert {case.machine for case in vectors.cases} == {"milan", "no-rmp"}
    assert all(fault(6)(case.result) for case in vectors.cases)


def test_gen_with_a_switch(rmpcore_: Run) -> None:
    _, out, _ = rmpcore_("gen", "--op", "PSMASH", "--switch", "psmash_unassigned=2", "--format", "jsonl")
    vectors = read_vectors(io.BytesIO(out.encode()), "x")
    found = {case.name: case.result.ret for case in vectors.cases}
    assert (found["PSMASH/row-4/4K-hypervisor"], found["PSMASH/row-4/2M-pre-swap"]) == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--op", "PSMASH2"], "--op PSMASH2: there is no such op"),
        (["--op", "SNP_INIT"], "there are no such cases"),
        (["--switch", "gpa_bits"], "--switch gpa_bits: is not NAME=NUMBER"),
        (["--op", "PSMASH", "--switch", "gpa_bits=3"], "switch gpa_bits"),
        (["--op", "PSMASH", "-o", "/no/such/folder/x"], "/no/such/folder/x: No such file or directory"),
    ],
)
def test_gen_refuses(rmpcore_: Run, arguments: list[str], words: str) -> None:
    status, out, err = rmpcore_("gen", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"rmpcore: {words}")
    assert err.count("\n") == 1


class Wrong:
    """A native machine that answers PSMASH with success and does nothing, or forgets what it did."""

    def __init__(self, machine: MachineLike, before: MachineLike | None) -> None:
        self._machine, self._before = machine, before

    def apply(self, op: object) -> Result:
        result = self._machine.apply(op)  # type: ignore[arg-type]
        return result if self._before is not None else result._replace(ret=9)

    def state(self) -> object:
        return (self._before or self._machine).state()


@pytest.mark.parametrize("state", [False, True])
def test_gen_writes_nothing_where_native_and_oracle_differ(
    rmpcore_: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: bool
) -> None:
    def make(*args: object, backend: str, **options: object) -> object:
        made = [Machine(*args, backend=backend, **options) for _ in range(2)]  # type: ignore[arg-type]
        return Wrong(made[0], made[1] if state else None) if backend == "native" else made[0]

    monkeypatch.setattr(generating, "Machine", make)
    status, out, err = rmpcore_("gen", "--op", "PSMASH", "-o", tmp_path / "x")
    assert (status, out) == (1, "")
    assert err.startswith("rmpcore: PSMASH/row-")
    assert ("oracle" in err, err.count("\n")) == (True, 1)
    assert not list(tmp_path.iterdir())


# --- devices under test --------------------------------------------------------------------------------------------

PAGE_TABLES = ("set_memory", "_set_memory", "set_direct_map")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The C device, as it is, and one that makes the mistake whose number is in its environment."""
    folder = tmp_path_factory.mktemp("dut")
    flags = {"rmp": [], "broken": ['-DBREAK=atoi(getenv("MISTAKE"))']}
    for name, extra in flags.items():
        source = str(DUT / "rmp.c")
        subprocess.run([*compiler(), "-std=c11", "-O2", *extra, source, "-o", str(folder / name)], check=True)
    return {name: folder / name for name in flags}


def mistakes() -> list[str]:
    source = (DUT / "rmp.c").read_text(encoding="utf-8")
    return re.findall(r"^    ([A-Z][A-Z0-9_]*)\b", source.partition("NOTHING,")[2].partition("};")[0], re.MULTILINE)


def test_the_c_device_passes(rmpcore_: Run, programs: dict[str, Path]) -> None:
    status, out, err = rmpcore_("ver", RELEASED, "--", programs["rmp"])
    assert (status, err) == (0, "")
    for name, passed, differ, skipped in re.findall(r"^(\w+) +([\d,]+) +([\d,]+) +([\d,]+)$", out, re.MULTILINE):
        assert differ == "0"
        assert (passed == "0") == name.startswith(PAGE_TABLES) == (skipped != "0"), name
    assert re.search(r"^1,130 of 1,264 cases pass, 0 differ, 134 skipped$", out, re.MULTILINE)


def test_the_devices_have_nothing_of_rmpcore() -> None:
    """They would prove nothing otherwise."""
    for path in DUT.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        used = [line for line in lines if line.lstrip().startswith(("#include", "use ", "extern", "mod "))]
        assert used
        assert not [line for line in used if "rmpc" in line]


@pytest.fixture(scope="module")
def broken(released: Vectors, programs: dict[str, Path]) -> Callable[[str], Verdict]:
    """Judge the device with a mistake."""
    questions = text(released, expected=False)
    names = mistakes()

    def run(mistake: str) -> Verdict:
        environment = os.environ | {"MISTAKE": str(1 + names.index(mistake))}
        done = subprocess.run(
            [programs["broken"]], input=questions, env=environment, capture_output=True, text=True, check=True
        )
        return judge(released, read_answers(released, done.stdout))

    return run


CLASSIC = {
    "OVERLAP_8B": "rmp §2.2 row 8b",
    "OVERLAP_9": "rmp §2.2 row 9",
    "IMMUTABLE_WRITE": "rmp §2.2 row 6",
    "LOW_BITS": "rmp §2.2 row 10",
    "COUNT_UP": "rmp §1.2",
    "SMASH_GPA": "rmp §2.3 row 5",
    "VALID_FLAG": "rmp §2.5 row 9",
    "NEIGHBOUR": "rmp §3.1",
}
"""Mistakes that are made easily, and the rule that they break."""
OTHERS = {
    "OVERLAP_8": "rmp §2.2 row 8",
    "OVERLAP_BY_COUNT": "rmp §2.2 row 9",
    "ROWS_6_7": "rmp §2.2 row 6",
    "IN_USE_2M": "rmp §2.2 row 7",
    "ROW_4": "rmp §2.2 row 4",
    "ASID_LIMIT": "rmp §2.2 row 4",
    "GPA_WIDTH": "rmp §2.2 row 10",
    "KEEP_ALWAYS": "rmp §2.2 row 10",
    "KEEP_NEVER": "rmp §2.2 row 10",
    "FREE_SIZE": "rmp §2.2 row 10",
    "INNER_ZERO": "rmp §2.2 row 10",
    "INNER_FULL": "rmp §2.2 row 10",
    "COUNT_WRAPS": "rmp §1.2",
    "LOCK_BIT": "rmp §2.2 row 10",
    "C_BIT_KEPT": "rmp §1.6",
    "COVERED_ONE_MORE": "rmp §2.2 row 5",
    "PART_COVERED": "rmp §2.2 row 5",
    "SMASH_COUNT": "rmp §2.3 row 5",
    "SMASH_IMMUTABLE": "rmp §2.3 row 4",
    "SMASH_RESETS": "rmp §2.3 row 5",
    "SMASH_IN_USE": "rmp §2.3 row 3",
    "STATUS_INNER": "rmp §1.5",
    "INNER_GOVERNS": "rmp §3.2 snp private",
    "GPA_OFFSET": "rmp §3.2 snp private",
    "VALID_SIZE": "rmp §2.5 row 8",
    "RESCIND_RESETS": "rmp §2.5 row 10",
    "ADJUST_SAME_VMPL": "rmp §2.6 row 2",
    "ADJUST_MORE": "rmp §2.6 row 7",
    "ADJUST_VMSA": "rmp §2.6 row 8",
    "NEIGHBOUR_HEAD": "rmp §3.1",
    "WALK_LARGE": "rmp §3.2 host",
    "IN_USE_WRITE": "rmp §3.7",
    "WRITE_ONLY": "rmp §3.2 snp private",
    "CHECK_ORDER": "rmp §3.2 snp private",
    "FETCH_USER": "rmp §3.2 snp private",
    "USER_BIT": "rmp §3.2 host",
}


def test_all_mistakes_have_their_rule() -> None:
    assert sorted(mistakes()) == sorted({**CLASSIC, **OTHERS})


def check_mistake(verdict: Verdict, rule: str) -> None:
    assert rule in verdict.by_rule()
    case, _, found = next(row for row in verdict.failed if row[0].rule == rule)
    assert all(line.endswith(f"({rule})") for line in difference_lines(case, found))


@pytest.mark.parametrize("mistake", CLASSIC)
def test_a_classic_mistake_is_caught(broken: Callable[[str], Verdict], mistake: str) -> None:
    check_mistake(broken(mistake), CLASSIC[mistake])


@pytest.mark.long
@pytest.mark.parametrize("mistake", OTHERS)
def test_each_other_mistake_is_caught(broken: Callable[[str], Verdict], mistake: str) -> None:
    check_mistake(broken(mistake), OTHERS[mistake])


@pytest.mark.tools
def test_the_rust_device_passes(rmpcore_: Run, tmp_path: Path) -> None:
    program = tmp_path / "rmp-rs"
    subprocess.run(["rustc", "-O", "--edition", "2021", str(DUT / "rmp.rs"), "-o", str(program)], check=True)
    status, out, _ = rmpcore_("ver", RELEASED, "--", program)
    assert status == 0
    for name in ("RMPUPDATE", "PSMASH", "RMPREAD", "PVALIDATE", "RMPADJUST"):
        assert re.search(rf"^{name} +[1-9][\d,]* +0 +0$", out, re.MULTILINE)
    assert re.search(r"^access +139 +0 +273$", out, re.MULTILINE)


# --- ver -----------------------------------------------------------------------------------------------------------


def device(tmp_path: Path, answers: str | bytes) -> list[str]:
    """A program that reads nothing and says this."""
    path = tmp_path / "answers.txt"
    path.write_bytes(answers if isinstance(answers, bytes) else answers.encode())
    return ["cat", str(path)]


def small_answers(small: Path) -> tuple[Vectors, str]:
    vectors = read_vectors(io.BytesIO(small.read_bytes()), "x")
    return vectors, answers_text(vectors.cases)


def test_expected_answers_pass(rmpcore_: Run, small: Path, tmp_path: Path) -> None:
    vectors, answers = small_answers(small)
    status, out, err = rmpcore_("ver", small, "--", *device(tmp_path, answers))
    assert (status, err) == (0, "")
    total = len(vectors.cases)
    assert out.splitlines() == [
        "op      passed  differ  skipped",
        f"PSMASH  {total:6}       0        0",
        f"{total} of {total} cases pass, 0 differ",
    ]


def test_answers_in_any_order_and_as_json(rmpcore_: Run, small: Path, tmp_path: Path) -> None:
    vectors, _ = small_answers(small)
    lines = ['{"format": "rmpcore-answers", "version": 1}']
    for line in list(vector_lines(vectors, "jsonl"))[:0:-1]:
        value = json.loads(line)
        if "case" in value:
            lines.append(json.dumps({"answer": value["case"], "result": value["result"], "changes": value["changes"]}))
    assert rmpcore_("ver", small, "--", *device(tmp_path, "\n".join(lines) + "\n"))[0] == 0


def test_cases_on_stdin(small: Path, tmp_path: Path) -> None:
    _, answers = small_answers(small)
    command = [sys.executable, "-m", "rmpcore.cli", "ver", "-", "--", *device(tmp_path, answers)]
    with small.open("rb") as file:
        assert subprocess.run(command, stdin=file, capture_output=True, check=False).returncode == 0


def test_skips(rmpcore_: Run, small: Path, tmp_path: Path) -> None:
    vectors, _ = small_answers(small)
    answers = answers_text(vectors.cases[1:]) + f"skip {vectors.cases[0].name}\n"
    command = device(tmp_path, answers)
    status, out, _ = rmpcore_("ver", small, "--", *command)
    assert status == 0
    assert out.endswith(f"{len(vectors.cases) - 1} of {len(vectors.cases)} cases pass, 0 differ, 1 skipped\n")
    assert rmpcore_("ver", small, "--no-skips", "--", *command)[0] == 1


def test_reasons_may_be_left_out(released: Vectors) -> None:
    """They are rmpcore's own; but a wrong one is a difference."""
    case = next(case for case in released.cases if case.result.reason == 6)
    words = answers_text([case])
    one = replace(released, cases=(case,))
    assert judge(one, read_answers(one, words.replace(" reason=GPA", ""))).passed
    assert judge(one, read_answers(one, words.replace(" reason=GPA", " reason=OWNER"))).failed


def test_differences_in_words(released: Vectors) -> None:
    """Field by field, with the rule; entries in a row are one line; what is not listed has to be as before."""

    def lines(name: str, change: Callable[[Items], None], **result: int) -> list[str]:
        case = next(case for case in released.cases if case.name == name)
        changes = dict(case.changes)
        change(changes)
        fields = {
            "kind": case.result.kind,
            "ret": case.result.ret,
            "level": 0,
            "assigned": 0,
            "rw": 0,
            "nx": 0,
            "cf": 0,
        }
        fields |= {"value": case.result.value, "value2": case.result.value2} | result
        return list(difference_lines(case, differences(case, Answer(name, False, fields, changes))))

    smash = "PSMASH/row-5/guest-valid"
    assert lines(smash, lambda changes: None) == []
    assert lines(smash, lambda changes: None, ret=7) == ["result is 7 FAIL_BADADDR, expected 0 (rmp §2.3 row 5)"]

    def same_gpa(changes: Items) -> None:
        for pfn in range(0x201, 0x400):
            lo, hi = changes["rmp", pfn] or (0, 0)
            changes["rmp", pfn] = lo - (pfn - 0x200 << 12), hi

    assert lines(smash, same_gpa) == [
        "entries 0x201 to 0x3ff: gpa is 0x12200000, expected 0x12201000, ... (rmp §2.3 row 5)"
    ]
    refused = "RMPUPDATE/row-8b/guest-valid-201-assign"
    assert lines(refused, lambda changes: changes.update({("rmp", 0x201): (5, 0)})) == [
        "entry 0x201: immutable is 1, expected 0, as before (rmp §2.2 row 8b)"
    ]
    forgotten = lines("RMPUPDATE/row-10/asid-1ff", lambda changes: changes.pop(("rmp", 0x200)) and None)
    assert forgotten == ["entry 0x200: subpage_count is 0, expected 1 (rmp §2.2 row 10)"]
    split = "set_memory_4k/2M-kernel-6.12"
    missing = lines(split, lambda changes: changes.pop(("leaf", 0, 2, 0x4000000)) and None)
    assert missing == ["leaf 2M +0x4000000 is there, expected not there (direct-map §4.4)"]
    flag = lines(split, lambda changes: changes.update({("leaf", 0, 1, 0x4005000): (0x4005163,)}))
    assert flag == ["leaf 4K +0x4005000: NX is 0, expected 1 (direct-map §4.4)"]


def test_differences_of_whole_machines(level2: Vectors) -> None:
    """Counters, things that come and go; where a table's page is does not count."""

    def lines(name: str, key: tuple[object, ...], value: tuple[int, ...] | None) -> list[str]:
        case = next(case for case in level2.cases if case.name == name)
        answers = read_answers(replace(level2, cases=(case,)), answers_text([case]))
        assert not differences(case, answers[name])
        answers[name].changes[key] = value
        return list(difference_lines(case, differences(case, answers[name])))

    private = "rmp_make_private/4K-pc-6.12"
    case = next(case for case in level2.cases if case.name == private)
    table = next(key for key in case.changes if key[0] == "table")
    (raw,) = case.changes[table] or (0,)
    assert lines(private, table, (raw ^ 0x5000,)) == []
    assert lines(private, table, (raw ^ 4,)) == [
        "table 2M +0x5800000: flags is 0x67, expected 0x63 (host §1 update)".replace("0x5800000", f"{table[3]:#x}")
    ]
    assert lines(private, ("counter", "flush_all"), (0,)) == [
        "counter name=flush_all: value is 0, expected 1 (host §1 update)"
    ]
    assert lines("VMEXIT/good-pc-6.12", ("in_use", 0x3005), (1, 2)) == [
        "in_use vmcb=0x3005 is there, expected not there (rmp §3.7)"
    ]


def test_what_is_ignored(rmpcore_: Run, small: Path, tmp_path: Path) -> None:
    _, answers = small_answers(small)
    wrong = answers.replace("lo=0x4038000012200ff9", "lo=0x4038000012200001")
    assert wrong != answers
    command = device(tmp_path, wrong)
    status, out, _ = rmpcore_("ver", small, "--", *command)
    assert status == 1
    assert "entry 0x200: subpage_count is 0, expected 0x1ff (rmp §2.3 row" in out
    status, out, _ = rmpcore_("ver", small, "--ignore", "subpage_count", "--", *command)
    assert status == 0
    assert out.endswith("not compared: subpage_count\n")
    assert rmpcore_("ver", small, "--ignore", "colour", "--", "cat")[0] == 2


def bad_answers(small: Path) -> Iterator[tuple[str, str]]:
    vectors, answers = small_answers(small)
    first, second = (case.name for case in vectors.cases[:2])
    head = "rmpcore-answers version=1\n"
    end = "result kind=CODE ret=0\nend\n"
    yield "", "1: is empty"
    yield "hello\n", "1: begins with 'hello', not 'rmpcore-answers'"
    yield head.replace("1", "2"), "1: rmpcore-answers of version 2: this rmpcore reads version 1"
    yield f"{head}answer no/such\n", "2: there is no case no/such"
    yield f"{head}skip {first}\nanswer {first}\n", f"3: a second answer to {first}"
    yield f"{head}answer {first}\nend\n", f"3: the answer to {first} has no result"
    yield f"{head}answer {first}\nresult ret=0\n", "3: result: kind is missing"
    yield f"{head}answer {first}\nresult kind=CODE ret=x\n", "3: result: ret: 'x' is not a number"
    yield f"{head}answer {first}\nresult kind=WELL ret=0\n", "3: result: 'WELL' is no kind"
    yield f"{head}answer {first}\nresult kind=CODE ret=0\nrmp pfn=1 low=1\n", "4: rmp: unknown key 'low'"
    yield f"{head}answer {first}\nresult kind=CODE ret=0\nrmp pfn=1 n=9999999\n", "4: rmp: n is 9999999, outside"
    yield f"{head}answer {first}\nresult kind=CODE ret=0\nrmp pfn=1\nrmp pfn=1\n", "5: rmp pfn=1 is given twice"
    yield f"{head}answer {first}\nresult kind=CODE ret=0\nentry pfn=1\n", "4: 'entry' does not belong here"
    yield f"{head}answer {first}\nresult kind=CODE ret=0\nanswer {second}\n", f"4: answer {first} of line 2 has no end"
    yield (
        f"{head}answer {first}\n{end}answer {second}\nresult kind=CODE ret=0\n",
        f"6: answer {second} of line 5 has no end",
    )
    yield answers[:-2], "the last line is cut off"
    yield f"{head}what {first}\n", "2: 'what' is neither answer nor skip"
    yield f"{head}answer {first}\nresult kind=CODE ret=0 value=0x1ffffffffffffffff\n", "3: result: value: "
    yield '{"format": "rmpcore-answers", "version": 1}\n[]\n', "2: not a JSON object"
    yield '{"format": "rmpcore-answers", "version": 1}\n{"answer"\n', "2: not JSON"
    yield '{"format": "rmpcore-answers", "version": 1}\n{"skip": 5}\n', "2: '5' is no name"
    yield head, f"ended with status 0 after 0 of {len(vectors.cases)} answers; the first that is missing is {first}"


def test_bad_answers_are_one_line(rmpcore_: Run, small: Path, tmp_path: Path) -> None:
    for answers, words in bad_answers(small):
        status, out, err = rmpcore_("ver", small, "--", *device(tmp_path, answers))
        assert (status, out) == (2, ""), answers
        assert err.startswith("rmpcore: cat:"), answers
        assert words in err
        assert err.count("\n") == 1


def test_an_answer_that_is_not_text(rmpcore_: Run, small: Path, tmp_path: Path) -> None:
    status, _, err = rmpcore_("ver", small, "--", *device(tmp_path, b"rmpcore-answers version=1\n\xff\xfe\n"))
    assert (status, err) == (2, "rmpcore: cat:2: not UTF-8\n")


def test_a_device_that_hands_back_what_it_gets_fails(rmpcore_: Run, small: Path) -> None:
    """The questions have no answers in them."""
    status, _, err = rmpcore_("ver", small, "--", "cat")
    assert (status, err) == (2, "rmpcore: cat:1: begins with 'rmpcore-vectors', not 'rmpcore-answers'\n")
    vectors, _ = small_answers(small)
    assert "result" not in text(vectors, expected=False)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "ended with status 3 after 0 of"),
        ("kill -KILL $$", "was killed by SIGKILL after 0 of"),
        ("cat {answers}; exit 3", "ended with status 3 after {total} of {total} answers"),
        ("sleep 60", "said nothing for 0.5 s after 0 of"),
        ("head -4 {answers}; sleep 60", "said nothing for 0.5 s after 1 of"),
        ("cat {answers}; exec >&-; sleep 60", "closed its output, and still ran after 0.5 s"),
    ],
)
def test_a_device_that_dies_or_is_silent(rmpcore_: Run, small: Path, tmp_path: Path, script: str, words: str) -> None:
    vectors, answers = small_answers(small)
    path = device(tmp_path, answers)[1]
    command = ["sh", "-c", script.format(answers=path)]
    status, out, err = rmpcore_("ver", small, "--timeout", "0.5", "--", *command)
    assert (status, out) == (2, "")
    assert err.startswith(f"rmpcore: sh: {words.format(total=len(vectors.cases))}")
    assert err.count("\n") == 1


def test_a_device_that_is_none(rmpcore_: Run, small: Path) -> None:
    status, _, err = rmpcore_("ver", small, "--", "/no/such/program")
    assert (status, err) == (2, "rmpcore: /no/such/program: cannot be started: No such file or directory\n")


def bad_cases(small: Path) -> Iterator[tuple[str, str]]:
    cases = small.read_text(encoding="utf-8")
    lines = cases.splitlines(keepends=True)
    half = cases.index("\ncase ", len(cases) // 2) + 1
    start = next(i for i, line in enumerate(lines) if line.startswith("case "))
    yield "", "1: is empty"
    yield "hello\n", "1: begins with 'hello', not 'rmpcore-vectors'"
    yield cases.replace("version=1", "version=2", 1), "1: rmpcore-vectors of version 2: this rmpcore reads version 1"
    yield cases[:half], "the first line says 59: the file is cut off"
    yield cases[: half + 30], "the last line is cut off"
    yield "".join(lines[: start + 2]), f"{start + 2}: case {lines[start].split()[1]} of line {start + 1} has no end"
    yield cases.replace("machine=genoa", "machine=rome"), "there is no machine 'rome'"
    yield cases.replace("rule rmp §2.3 row 1\n", "rule rmp §9\n"), "there is no rule 'rmp §9'"
    yield cases.replace("op PSMASH", "op PSMASHED", 1), "unknown op 'PSMASHED'"
    yield cases.replace("op PSMASH pa=0x200000\n", "", 1), "has no op"
    yield cases.replace("op PSMASH pa=0x200000\n", "op PSMASH pa=0x200000\nrule x\n", 1), "rule after op"
    yield cases.replace("\nend\ncase", "\ncase", 1), "has no end"
    yield cases.replace("cases=", "cases=x"), "1: cases in the first line is 'x"
    yield "".join([*lines, *lines[start : start + 6]]), f"case {lines[start].split()[1]} is there twice"


def test_bad_cases_are_one_line(rmpcore_: Run, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "cases.txt"
    for cases, words in bad_cases(small):
        path.write_text(cases, encoding="utf-8")
        status, out, err = rmpcore_("ver", path, "--", "cat")
        assert (status, out) == (2, ""), words
        assert err.startswith(f"rmpcore: {path}:"), words
        assert words in err
        assert err.count("\n") == 1
    status, _, err = rmpcore_("ver", tmp_path / "nothing", "--", "cat")
    assert (status, err) == (2, f"rmpcore: {tmp_path / 'nothing'}: No such file or directory\n")


def test_nothing_that_is_written_is_read_with_a_traceback(small: Path) -> None:
    """Each line left out, doubled or cut: read, or refused with its place."""
    lines = small.read_bytes().splitlines(keepends=True)[:40]
    for i in range(len(lines)):
        for change in ([], [lines[i]] * 2, [lines[i][: len(lines[i]) // 2] + b"\n"], [b"\0\n"]):
            with pytest.raises(VectorError, match=r"^x:\d+: "):
                read_vectors([*lines[:i], *change, *lines[i + 1 :]], "x")


def test_a_closed_pipe(small: Path, tmp_path: Path) -> None:
    """Nobody reads what gen or ver prints: no traceback."""
    _, answers = small_answers(small)
    commands = (["gen", "--op", "PSMASH"], ["ver", str(small), "--", *device(tmp_path, answers)])
    for command in commands:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "rmpcore.cli", *command], stdout=write, stderr=subprocess.PIPE, check=False
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (1, b"")


# --- docs/vectors.md -----------------------------------------------------------------------------------------------


def blocks() -> list[list[str]]:
    found = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs/vectors.md").read_text(encoding="utf-8"), re.M | re.S)
    return [block.splitlines() for block in found]


def is_command(line: str) -> bool:
    return line.startswith(("cc ", "rmpcore ", "./", "rustc "))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the document's reader has it, with rmpcore on the path."""
    for name in ("examples", "vectors"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "rmpcore").write_text(f'#!/bin/sh\nexec {sys.executable} -m rmpcore.cli "$@"\n')
    (tools / "rmpcore").chmod(0o755)
    if not shutil.which("cc"):
        (tools / "cc").write_text(f'#!/bin/sh\nexec {" ".join(compiler())} "$@"\n')
        (tools / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_document(rust: bool) -> int:
    """Run the commands of a kind and hold what is shown below them against what they print; how many there were."""
    commands, printed = 0, ""
    for block in blocks():
        if not all(map(is_command, block)):
            for line in block if not rust else ():
                assert line == "..." or line in printed.splitlines() or line.startswith(("FAIL", "op ")), line
            continue
        if any(line.startswith("rustc") for line in block) != rust:
            continue
        for line in block:
            done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
            expected = 1 if "./broken" in line and line.startswith("rmpcore") else 0
            assert done.returncode == expected, (line, done.stdout, done.stderr)
            printed += done.stdout
            commands += 1
    return commands


@pytest.mark.long
def test_the_commands_of_the_document(clone: Path) -> None:
    assert check_document(rust=False) == 10


@pytest.mark.tools
def test_the_rust_commands_of_the_document(clone: Path) -> None:
    assert check_document(rust=True) == 2
