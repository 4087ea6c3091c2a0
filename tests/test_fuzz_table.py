"""The table of fuzz/README.md: each public function is called by the fuzzing harness, and the table says where."""

from __future__ import annotations

import re
from pathlib import Path

import headers

FUZZ = Path(__file__).parents[1] / "fuzz"
HARNESS = re.sub(r"/\*.*?\*/", "", (FUZZ / "harness.c").read_text(encoding="utf-8"), flags=re.DOTALL)
CORE = "".join(path.read_text(encoding="utf-8") for path in sorted((FUZZ.parent / "csrc").rglob("*.[ch]")))
CORE += "".join(path.read_text(encoding="utf-8") for path in headers.HEADERS)


def rows() -> list[tuple[str, list[str], str]]:
    """Function, entries, and through which function, of each row."""
    text = (FUZZ / "README.md").read_text(encoding="utf-8").partition("| function | entries | through |")[2]
    found = re.findall(r"^\| (rmpc_\w+) \| ([\w, ]*) \| ?(\w*) ?\|$", text, re.MULTILINE)
    assert len(found) == text.count("\n| rmpc_")
    return [(name, entries.split(", "), through) for name, entries, through in found]


def bodies() -> dict[str, str]:
    """The functions of the harness, and what is in each."""
    parts = re.split(
        r"^(?:static )?(?:[\w*]+ )+\**(\w+)\([^;{]*\)\n\{\n(.*?)^\}\n", HARNESS, flags=re.MULTILINE | re.DOTALL
    )
    return dict(zip(parts[1::3], parts[2::3], strict=True))


def entries() -> list[str]:
    """The harness's entries, in order."""
    (names,) = re.findall(r"entries\[\]\)\(struct input \*in\) = \{([\w, ]+)\};", HARNESS)
    return [str(name) for name in names.split(", ")]


def named_from(entry: str) -> set[str]:
    """All names that occur in an entry or in a function of the harness that it gets to."""
    known, todo, seen = bodies(), [entry], set[str]()
    names: set[str] = set()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        found = set(re.findall(r"\w+", known[function]))
        names |= found
        todo += (found & known.keys()) - set(entries())
    return names


def test_every_public_function_has_a_row() -> None:
    names = [name for name, _, _ in rows()]
    assert sorted(names) == sorted(function.name for function in headers.functions())


def test_rows_say_who_calls_what() -> None:
    """Each entry of a row names the function, or the one through which it is called; no other entry does."""
    reach = {entry: named_from(entry) for entry in entries()}
    assert len(reach) == 5
    for name, where, through in rows():
        called = through or name
        assert where == [entry for entry in entries() if called in reach[entry]], name
        assert where, name
        if through:
            assert not any(name in names for names in reach.values()), name
            assert len(re.findall(rf"\b{name}\(", CORE)) > 1, f"nobody in the core calls {name}"
