"""The mutation tool itself: what its operators make, what it reports, and when it says no."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import c_mutants
import mutate_all
import py_mutants
import pytest
from headers import compiler

C_TEXT = """\
#include <stdint.h>

/* a == b, 1 + 1 */
#define LIMIT (UINT64_C(1) << 4)
enum { FIRST = 7 };
static_assert(sizeof(long) == 8, "8 > 4");

static int f(int a, int b)
{
    int words[4] = {0};
    const char *text = "a < b";

    if (a < b && text)
        return -a;
    while (b > 1)
        b -= 2;
    words[0] = ~b;
    g(a, b);
    return words[0] | FIRST;
}
"""


def changes(text: str, function: str | None = None) -> set[str]:
    """Before and after of each mutant, without the file's name."""
    made = c_mutants.mutants("x.c", text.encode())
    return {each.name.partition(": ")[2] for each in made if function in (None, each.function)}


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        ("return a < b;", "relation", {"a < b => a <= b", "a < b => a >= b"}),
        ("return a == b;", "relation", {"a == b => a != b"}),
        ("return a + b;", "arithmetic", {"a + b => a - b"}),
        ("return a % b;", "arithmetic", {"a % b => a * b"}),
        ("return a & b;", "bitwise", {"a & b => a | b"}),
        ("return a ^ b;", "bitwise", {"a ^ b => a | b"}),
        ("return a << b;", "shift", {"a << b => a >> b"}),
        ("return a && b;", "logic", {"a && b => a || b"}),
        ("a |= b;", "assignment", {"a |= b => a &= b"}),
        ("a++;", "assignment", {"a++ => a--"}),
        ("return !a + ~b - -a;", "unary", {"!a => a", "~b => b", "-a => a"}),
        ("a = 5;", "constant", {"a = 5 => a = 4", "a = 5 => a = 6", "a = 5 => a = 0"}),
        ("a = 0;", "constant", {"a = 0 => a = 1"}),
        ("a = 0x10;", "constant", {f"a = 0x10 => a = {n}" for n in ("0x0", "0xf", "0x11", "0x8", "0x20")}),
        ("a = 010;", "constant", {"a = 010 => a = 7", "a = 010 => a = 9", "a = 010 => a = 0"}),
        ("a = true;", "constant", {"a = true => a = false"}),
        ("if (a) b = a;", "condition", {"a => !(a)"}),
        ("if (a < b) b = a;", "condition", set()),
        ("b = a ? a : b;", "condition", {"a => !(a)"}),
        ("g(a, b); b = a;", "dropped", {"g(a, b); => ;", "b = a; => ;"}),
        ("while (a) { if (b) break; continue; }", "dropped", {"break; => ;", "continue; => ;"}),
        ("g(a, b, a + b);", "arguments", {"g(a, b, a + b) => g(b, a, a + b)"}),
    ],
)
def test_c_operators(code: str, kind: str, expected: set[str]) -> None:
    text = f"int f(int a, int b)\n{{\n    {code}\n    return 0;\n}}\n"
    made = c_mutants.mutants("x.c", text.encode())
    assert {each.name.partition(": ")[2] for each in made if each.kind == kind and each.lines == (3, 3)} == expected


def test_each_mutant_is_one_change_of_the_text() -> None:
    made = c_mutants.mutants("x.c", C_TEXT.encode())
    texts = {each.applied(C_TEXT.encode()) for each in made}
    assert len(texts) == len(made) == len({each.name for each in made})
    assert C_TEXT.encode() not in texts


def test_what_is_no_program_has_no_mutants() -> None:
    """Comments, texts, static assertions, sizes of arrays; the return at a function's end, which has to return."""
    made = changes(C_TEXT)
    assert not [each for each in made if "sizeof" in each or '"' in each or "words[4]" in each or "1 + 1" in each]
    assert "return words[0] | FIRST; => ;" not in made
    assert "return -a; => ;" in made
    assert {"FIRST = 7 => FIRST = 8", "FIRST = 7 => FIRST = 6"} <= changes(C_TEXT, "FIRST")
    assert "UINT64_C(1) << 4 => UINT64_C(1) << 5" in changes(C_TEXT, "LIMIT")


def test_names_do_not_move_with_the_lines() -> None:
    moved = C_TEXT.replace("static int f", "static int before(void)\n{\n    return 1 < 2;\n}\n\n\nstatic int f")
    assert changes(C_TEXT, "f") == changes(moved, "f")
    twice = "int f(int a)\n{\n    a++;\n    a++;\n    return a;\n}\n"
    assert {"a++ => a--", "a++ => a-- #2", "a++; => ;", "a++; => ; #2"} <= changes(twice)


def test_many_in_one_object(tmp_path: Path) -> None:
    """A switch turns on one of the mutants that were compiled together: each does what it does alone."""
    text = b"int total;\nint f(int a)\n{\n    return a * 3 + 1;\n}\nvoid add(int a)\n{\n    total += a;\n}\n"
    made = [each for each in c_mutants.mutants("x.c", text) if each.body is not None]

    def outcome(name: str, source: bytes, number: int) -> tuple[int, int]:
        (tmp_path / f"{name}.c").write_bytes(b"int rmpc_mutant;\n" + source)
        library = tmp_path / f"{name}.so"
        if not library.exists():
            command = [*compiler(), "-w", "-shared", "-fPIC", f"{name}.c", "-o", str(library)]
            subprocess.run(command, cwd=tmp_path, check=True)
        core = ctypes.CDLL(str(library))
        ctypes.c_int.in_dll(core, "rmpc_mutant").value = number
        total = ctypes.c_int.in_dll(core, "total")
        total.value = 100
        core.add(7)
        return core.f(5), total.value

    together = c_mutants.together(text, made)
    assert outcome("together", together, 0) == (16, 107)
    assert len(made) > 8
    for number, each in enumerate(made, 1):
        alone = outcome(f"alone{number}", each.applied(text), 0)
        assert alone == outcome("together", together, number) != (16, 107), each.name


PYTHON_TEXT = """\
def f(a: int | None, b: int = 3) -> int | None:
    if a < b and not b:
        return a + 1
    for each in (1 << 4, a & b):
        b |= each
    return None
"""


def test_python_operators() -> None:
    made = py_mutants.mutants("x.py", PYTHON_TEXT)
    after = {each.after(PYTHON_TEXT).replace("  ", " ") for each in made}
    assert {
        "if a <= b and not b:",
        "if a >= b and not b:",
        "if a < b or not b:",
        "return a - 1",
        "return a + 2",
        "return a + 0",
        "for each in (1 >> 4, a & b):",
        "for each in (1 << 4, a | b):",
        "for each in (1 << 5, a & b):",
        "for each in []:",
    } <= after
    assert "def f(a: int & None, b: int = 3) -> int | None:" not in after
    assert "def f(a: int | None, b: int = 3) -> int & None:" not in after
    assert all(each.applied(PYTHON_TEXT) != PYTHON_TEXT for each in made)
    assert len({each.name for each in made}) == len(made)


def test_python_names_do_not_move_with_the_lines() -> None:
    moved = "def before() -> int:\n    return 1 + 1\n\n\n" + PYTHON_TEXT
    names = {each.name for each in py_mutants.mutants("x.py", PYTHON_TEXT)}
    assert names == {each.name for each in py_mutants.mutants("x.py", moved) if " before: " not in each.name}


KILLED = {f"killed {number}": "tape: a section differs" for number in range(30)} | {
    "killed by a test": "tests: test_x.py::test_y fails",
    "no program": "invalid",
    "the same": "identical",
}


def test_all_killed() -> None:
    lines, code = mutate_all.judged(KILLED, {}, set(KILLED))
    assert code == 0
    assert lines == [
        "1 do not compile, 1 compile to the same; of 31 others the tape kills 30, the tests 1 more: 100.0 %; "
        "0 survive, 0 of them explained"
    ]


def test_survivor() -> None:
    outcomes = KILLED | {"planted": "survives: all 3 tests"}
    lines, code = mutate_all.judged(outcomes, {}, set(outcomes))
    assert code == 1
    assert lines[0] == "SURVIVES planted (survives: all 3 tests)"
    lines, code = mutate_all.judged(outcomes, {"planted": "it only costs time"}, set(outcomes))
    assert code == 0
    assert "1 survive, 1 of them explained" in lines[0]


def test_survivors_of_a_kind() -> None:
    """One reason for all mutants of a function; one that has none there is stale."""
    outcomes = KILLED | {"a.c hint: x => y": "survives: all 3 tests"}
    assert mutate_all.judged(outcomes, {"a.c hint: *": "it only costs time"}, set(outcomes))[1] == 0
    assert mutate_all.judged(outcomes, {"a.c h: *": "another function"}, set(outcomes))[1] == 1
    lines, code = mutate_all.judged(KILLED, {"a.c hint: *": "it only costs time"}, set(KILLED))
    assert (lines[0], code) == ("explained, but there is no such mutant: a.c hint: *", 1)


def test_stale_explanations() -> None:
    """A mutant that is no longer made, and one that a test has come to notice."""
    lines, code = mutate_all.judged(KILLED, {"gone": "it was the same", "killed 3": "no test can tell"}, set(KILLED))
    assert code == 1
    assert lines[:2] == [
        "explained, but there is no such mutant: gone",
        "explained, but tape: a section differs: killed 3",
    ]


def test_low_score() -> None:
    """Explanations do not replace tests."""
    survivors = {f"survivor {number}": "survives: all 3 tests" for number in range(2)}
    outcomes = KILLED | survivors
    assert mutate_all.judged(outcomes, dict.fromkeys(survivors, "why"), set(outcomes))[1] == 1


def test_list_of_explanations(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(
        "# about\nequal: both\nare 1\n    a.c f: x => y\n    a.c g: x => y #2\n\nspeed: slower\n    a.c h: 1 => 2\n"
    )
    assert mutate_all.explained_in(path) == {
        "a.c f: x => y": "equal: both are 1",
        "a.c g: x => y #2": "equal: both are 1",
        "a.c h: 1 => 2": "speed: slower",
    }
    path.write_text("    a.c f: x => y\n")
    with pytest.raises(SystemExit, match="without a reason"):
        mutate_all.explained_in(path)
    path.write_text("why\n    a.c f: x => y\n    a.c f: x => y\n")
    with pytest.raises(SystemExit, match="twice"):
        mutate_all.explained_in(path)


@pytest.mark.parametrize(("what", "path"), [("core", "csrc"), ("oracle", "src/rmpcore/oracle")])
def test_the_lists_are_of_this_core(what: str, path: str) -> None:
    """Each survivor that is explained is a mutant of the text as it is now."""
    explained = mutate_all.explained_in(mutate_all.ROOT / f"tests/data/mutants-{what}.txt")
    made = {each.name for each in mutate_all.all_mutants(what)}
    assert mutate_all.judged({}, explained, made)[0][:-1] == []
    assert any(name.startswith(path) for name in made)
