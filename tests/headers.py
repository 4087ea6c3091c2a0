"""The public headers as data: what they declare, read with the C compiler's preprocessor and a C parser.

For bindings that are made from the headers alone, without a line copied by hand.  The system's headers are replaced by
stand-ins with the few names that ours use, so that what comes out says the same on every machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pycparser import c_ast, c_generator, c_parser

ROOT = Path(__file__).parents[1]
INCLUDE = ROOT / "include"
HEADERS = sorted((INCLUDE / "rmpcore").glob("*.h"))
INCLUDES = "".join(f"#include <rmpcore/{path.name}>\n" for path in HEADERS)

_TYPES = {
    "uint8_t": "unsigned char",
    "uint16_t": "unsigned short",
    "uint32_t": "unsigned int",
    "uint64_t": "unsigned long",
    "int32_t": "int",
    "uintptr_t": "unsigned long",
    "size_t": "unsigned long",
    "bool": "_Bool",
}
"""Parsed under their own names: what stands for them here is of no meaning."""
_STAND_INS = {
    "stdint.h": "#define UINT64_C(x) x##ULL\n#define UINT32_C(x) x##U\n#define UINT64_MAX 0xffffffffffffffffULL\n",
    "stddef.h": "#define NULL ((void *)0)\n",
    "stdbool.h": "#define true 1\n#define false 0\n",
    "assert.h": "#define static_assert(...) struct rmpc_nothing\n",
}


class Function(NamedTuple):
    """A public function."""

    name: str
    type: str
    """As a C type name: ``int (const struct rmpc_mem *, uint64_t)``."""
    inline: bool
    """The headers define it: the library has no such symbol."""


class Field(NamedTuple):
    """A field of a structure."""

    name: str
    type: str


def compiler() -> list[str]:
    """The C compiler as a command."""
    return ["cc"] if shutil.which("cc") else shlex.split(sysconfig.get_config_var("CC"))


def optimised() -> list[str]:
    """Flags for core code that a test compiles and runs: fast, or so that tools/coverage.py sees what was run (as
    setup.py does it)."""
    return ["-O0", "--coverage", "-Dalways_inline=unused"] if os.environ.get("RMPCORE_COVERAGE") else ["-O2"]


@cache
def preprocessed() -> str:
    """All public headers in one text, without directives and comments."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _STAND_INS.items():
            (Path(folder) / name).write_text(text)
        flags = ["-E", "-P", "-std=c11", "-nostdinc", f"-I{folder}", f"-I{INCLUDE}", "-D__attribute__(...)="]
        command = [*compiler(), *flags, "-x", "c", "-"]
        done = subprocess.run(command, input=INCLUDES, text=True, capture_output=True, check=True)
    return done.stdout


@cache
def declarations() -> tuple[c_ast.Node, ...]:
    """Structures, enums and functions in the order of the headers; of functions that are defined there the head."""
    typedefs = "".join(f"typedef {meaning} {name};\n" for name, meaning in _TYPES.items())
    found = []
    for node in c_parser.CParser().parse(typedefs + preprocessed()).ext:
        if isinstance(node, c_ast.FuncDef):
            found.append(node.decl)
        elif isinstance(node, c_ast.Decl) and getattr(node.type, "name", None) != "rmpc_nothing":
            found.append(node)
    return tuple(found)


def _type_name(node: c_ast.Node) -> str:
    """A type without the names of what has it."""
    text = c_generator.CGenerator().visit(c_ast.Typename(None, [], None, _nameless(node)))
    return re.sub(r"\s+", " ", text).strip()


def _nameless(node: c_ast.Node) -> c_ast.Node:
    if isinstance(node, c_ast.TypeDecl):
        return c_ast.TypeDecl(None, node.quals, None, node.type)
    if isinstance(node, c_ast.PtrDecl):
        return c_ast.PtrDecl(node.quals, _nameless(node.type))
    if isinstance(node, c_ast.ArrayDecl):
        return c_ast.ArrayDecl(_nameless(node.type), node.dim, node.dim_quals)
    if isinstance(node, c_ast.FuncDecl):
        params = [c_ast.Typename(None, [], None, _nameless(param.type)) for param in node.args.params]
        return c_ast.FuncDecl(c_ast.ParamList(params), _nameless(node.type))
    raise TypeError(f"the headers have a type that is not known here: {node}")


@cache
def functions() -> tuple[Function, ...]:
    """The public functions."""
    return tuple(
        Function(node.name, _type_name(node.type), "inline" in node.funcspec)
        for node in declarations()
        if isinstance(node.type, c_ast.FuncDecl)
    )


@cache
def structs() -> dict[str, tuple[Field, ...]]:
    """The public structures and their fields, by tag."""
    return {
        node.type.name: tuple(Field(field.name, _type_name(field.type)) for field in node.type.decls)
        for node in declarations()
        if isinstance(node.type, c_ast.Struct)
    }


@cache
def enums() -> dict[str, tuple[str, ...]]:
    """The public enums and the names of their values, by tag."""
    return {
        node.type.name: tuple(value.name for value in node.type.values.enumerators)
        for node in declarations()
        if isinstance(node.type, c_ast.Enum)
    }


def definitions() -> str:
    """What FFI.cdef() of the package cffi takes: all but what the headers define as inline functions."""
    inline = {function.name for function in functions() if function.inline}
    generator = c_generator.CGenerator()
    return "".join(f"{generator.visit(node)};\n" for node in declarations() if node.name not in inline)


class Constant(NamedTuple):
    """A macro that stands for an integer."""

    type: str
    value: int


@cache
def macros() -> dict[str, Constant]:
    """The public macros that are integer constants, with their types: the compiler's own word."""
    command = [*compiler(), "-std=c11", f"-I{INCLUDE}", "-x", "c", "-"]
    done = subprocess.run([*command, "-dM", "-E"], input=INCLUDES, text=True, capture_output=True, check=True)
    names = re.findall(r"^#define (RMPC_\w+)(?= |$)", done.stdout, re.MULTILINE)
    marked = INCLUDES + "".join(f'"macro {name}" {name};\n' for name in names)
    done = subprocess.run([*command, "-E", "-P"], input=marked, text=True, capture_output=True, check=True)
    bodies = dict(re.findall(r'^"macro (\w+)" ?(.*);$', done.stdout, re.MULTILINE))
    names = sorted(name for name, body in bodies.items() if _is_expression(body))
    kinds = {"int": "int", "unsigned": "unsigned", "uint64_t": "uint64_t"}
    choices = ", ".join(f'{kind}: "{name}"' for kind, name in kinds.items())
    lines = [f'show("{name}", _Generic(({name}), {choices}), (unsigned long long)({name}));' for name in names]
    source = f"""{INCLUDES}#include <stdio.h>
static void show(const char *name, const char *type, unsigned long long value)
{{
    printf("%s %s %llu\\n", name, type, value);
}}
int main(void)
{{
    {" ".join(lines)}
    return 0;
}}
"""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "macros"
        subprocess.run([*command, "-o", str(program)], input=source, text=True, check=True)
        shown = subprocess.run([str(program)], text=True, capture_output=True, check=True).stdout
    rows = (line.split() for line in shown.splitlines())
    return {name: Constant(kind, int(value)) for name, kind, value in rows}


def _is_expression(body: str) -> bool:
    """Is this what a macro for a value comes to, and not nothing or a piece of a declaration?"""
    try:
        c_parser.CParser().parse(f"int x = ({body});")
    except c_parser.ParseError:
        return False
    return True
