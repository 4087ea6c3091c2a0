"""The interface is the one that was kept (tests/data/abi.txt), by the compilers' own word as well."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import abi
import headers
import pytest

COMPILERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed here"),
    )
    for name in ("gcc", "clang")
]
FORMS = {
    "function": r"(\w+): (.+)",
    "inline": r"(\w+): (.+)",
    "struct": r"(\w+): size (\d+), align (\d+)",
    "field": r"(\w+)\.(\w+): at (\d+), size (\d+), (.+)",
    "enum": r"(\w+): size (\d+)",
    "value": r"\w+\.(\w+): (-?\d+)",
    "macro": r"(\w+): (\w+), (\w+)",
}


def asserted(line: str) -> str:
    """A line of the file as something that only a compiler that agrees with it takes."""
    kind, rest = line.split(" ", 1)
    found = re.fullmatch(FORMS[kind], rest)
    assert found is not None, line
    words = found.groups()
    if kind == "struct":
        claim = f"sizeof(struct {words[0]}) == {words[1]} && _Alignof(struct {words[0]}) == {words[2]}"
    elif kind == "enum":
        claim = f"sizeof(enum {words[0]}) == {words[1]}"
    elif kind == "value":
        claim = f"{words[0]} == {words[1]}"
    elif kind == "macro":
        claim = f"{words[0]} == {words[1]}ULL && {same(f'__typeof__({words[0]})', words[2])}"
    elif kind == "field":
        tag, field, offset, size, type_ = words
        it = f"((struct {tag} *)0)->{field}"
        claim = f"offsetof(struct {tag}, {field}) == {offset} && sizeof({it}) == {size}"
        claim += f" && {same(f'__typeof__({it})', type_)}"
    else:
        claim = same(f"__typeof__({words[0]})", words[1])
    return f'_Static_assert({claim}, "{line}");'


def same(one: str, other: str) -> str:
    return f"__builtin_types_compatible_p({one}, {other})"


def compiled(compiler: str, lines: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What a compiler says of a program that asserts these lines."""
    source = folder / "abi.c"
    text = [
        headers.INCLUDES,
        "#include <stddef.h>",
        f'_Static_assert(RMPC_ABI == {abi.number_of(lines)}, "{lines[0]}");',
    ]
    source.write_text("\n".join([*text, *map(asserted, lines[1:])]) + "\n")
    flags = ["-std=c11", "-fsyntax-only", f"-I{headers.INCLUDE}"]
    return subprocess.run([compiler, *flags, str(source)], capture_output=True, text=True)


def test_the_interface_is_the_one_that_was_kept() -> None:
    verdict = abi.difference(abi.kept(), abi.interface()).verdict()
    assert not verdict, verdict


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compilers_agree(compiler: str, tmp_path: Path) -> None:
    """Every size, offset, type and value of the file, without cffi or the parser."""
    done = compiled(compiler, abi.kept(), tmp_path)
    assert done.returncode == 0, done.stderr


BROKEN = {
    "function": (r"function rmpc_mem_at: void \*\(const ", r"function rmpc_mem_at: void *("),
    "inline": (r"inline rmpc_level_size: uint64_t ", r"inline rmpc_level_size: uint32_t "),
    "struct": (r"struct rmpc_op: size 64", r"struct rmpc_op: size 72"),
    "alignment": (r"struct rmpc_op: size 64, align 8", r"struct rmpc_op: size 64, align 4"),
    "offset": (r"field rmpc_op.id: at 4", r"field rmpc_op.id: at 8"),
    "size of a field": (r"(field rmpc_op.id: at 4, size) 4", r"\1 8"),
    "sign of a field": (r"(field rmpc_result.ret: .*) int32_t", r"\1 uint32_t"),
    "callback": (r"(field rmpc_mem.free: .*), uint64_t", r"\1, uint32_t"),
    "array": (r"(field rmpc_in.*runs.*\[)64", r"\g<1>63"),
    "enum": (r"enum rmpc_status: size 4", r"enum rmpc_status: size 8"),
    "value": (r"RMPC_ERR_FULL: 5", r"RMPC_ERR_FULL: 6"),
    "macro": (r"macro RMPC_PAGE_SIZE: 0x1000", r"macro RMPC_PAGE_SIZE: 0x2000"),
    "type of a macro": (r"(macro RMPC_PAGE_SIZE: .*) uint64_t", r"\1 int"),
    "removed": (r"function rmpc_mem_at:", r"function rmpc_mem_was_at:"),
    "number": (r"abi 1", r"abi 2"),
}


def broken(what: str) -> tuple[list[str], str]:
    """The file with one line changed, and that line."""
    old, new = BROKEN[what]
    lines = [re.sub(old, new, line) for line in abi.kept()]
    changed = [line for line, kept in zip(lines, abi.kept(), strict=True) if line != kept]
    assert len(changed) == 1, changed
    return lines, changed[0]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("what", BROKEN)
def test_compilers_refuse_another_interface(compiler: str, what: str, tmp_path: Path) -> None:
    lines, _ = broken(what)
    done = compiled(compiler, lines, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error:") == 1 or what in ("removed", "size of a field"), done.stderr


@pytest.mark.parametrize("what", [what for what in BROKEN if what != "number"])
def test_a_change_asks_for_a_new_number(what: str) -> None:
    lines, line = broken(what)
    same_number = abi.difference(lines, abi.kept())
    assert same_number.gone == [line] and len(same_number.new) == 1
    assert abi.RAISE in same_number.verdict()
    next_number = abi.difference(lines, [f"abi {abi.number_of(lines) + 1}", *abi.kept()[1:]])
    assert abi.RAISE not in next_number.verdict() and abi.WRITE.capitalize() in next_number.verdict()


def test_something_new_asks_for_no_new_number() -> None:
    verdict = abi.difference(abi.kept(), [*abi.kept(), "function rmpc_new: void (void)"]).verdict()
    assert abi.RAISE not in verdict and abi.WRITE.capitalize() in verdict
    assert abi.difference(abi.kept(), abi.kept()).verdict() == ""
    assert abi.RAISE in abi.difference(abi.kept(), ["abi 0", *abi.kept()[1:]]).verdict()


def test_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--write keeps what is new, but not what breaks programs under the same number."""
    now = abi.interface()
    monkeypatch.setattr(abi, "FILE", tmp_path / "abi.txt")
    monkeypatch.setattr("sys.argv", ["abi.py", "--write"])
    assert abi.main() == 0
    assert abi.kept() == now
    abi.FILE.write_text("\n".join(now[:-1]) + "\n")
    assert abi.main() == 0
    assert abi.kept() == now
    abi.FILE.write_text("\n".join([*now, "function rmpc_old: void (void)"]) + "\n")
    assert abi.main() == 1
    assert abi.RAISE in capsys.readouterr().out
    assert "function rmpc_old: void (void)" in abi.kept()
    abi.FILE.write_text("\n".join(["abi 0", *now[1:], "function rmpc_old: void (void)"]) + "\n")
    assert abi.main() == 0
    assert abi.kept() == now
