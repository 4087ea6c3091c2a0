"""Systematic mutants of C text: each is one small change that a careless hand could have made.

What is changed is found in a parse (tree-sitter), never in comments, texts, static assertions, sizes of arrays, #if or
#include.  A mutant's name says file, function, what stood there and what stands there now; if that comes up more than
once in the function, also which of them.  It has no line number: it stays the same when lines move.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import tree_sitter
import tree_sitter_c
from tree_sitter import Node


class Mutant(NamedTuple):
    """function: or the macro, enumerator or constant; start, end: the bytes of the file that ``new`` replaces; lines:
    those of the statement around them; body: the bytes of the function's body, None outside any."""

    name: str
    kind: str
    file: str
    function: str
    start: int
    end: int
    new: str
    lines: tuple[int, int]
    body: tuple[int, int] | None

    def applied(self, text: bytes) -> bytes:
        return text[: self.start] + self.new.encode() + text[self.end :]


OPERATORS = {
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "%": ("*",),
    "&": ("|",),
    "|": ("&",),
    "^": ("|",),
    "<<": (">>",),
    ">>": ("<<",),
    "&&": ("||",),
    "||": ("&&",),
}
ASSIGNMENTS = {
    "+=": "-=",
    "-=": "+=",
    "*=": "/=",
    "/=": "*=",
    "%=": "*=",
    "&=": "|=",
    "|=": "&=",
    "^=": "|=",
    "<<=": ">>=",
    ">>=": "<<=",
    "++": "--",
    "--": "++",
}
RELATIONS = ("<", "<=", ">", ">=", "==", "!=")
KINDS = {
    **dict.fromkeys(RELATIONS, "relation"),
    **dict.fromkeys("+-*/%", "arithmetic"),
    **dict.fromkeys("&|^", "bitwise"),
    **dict.fromkeys(("<<", ">>"), "shift"),
    **dict.fromkeys(("&&", "||"), "logic"),
}
QUIET = ("comment", "string_literal", "concatenated_string", "static_assert_declaration", "preproc_include",
         "preproc_if", "preproc_elif", "preproc_function_def", "gnu_asm_expression", "attribute_specifier",
         "bitfield_clause", "sizeof_expression", "preproc_call", "char_literal")  # fmt: skip
BLOCK = "compound_statement"
SIMPLE = ("identifier", "number_literal", "field_expression")
NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([uUlL]*)")
LANGUAGE = tree_sitter.Language(tree_sitter_c.language())


def parse(text: bytes) -> Node:
    return tree_sitter.Parser(LANGUAGE).parse(text).root_node


def mutants(file: str, text: bytes) -> list[Mutant]:
    """All mutants of one file, in the order of the text."""
    # a macro in the place of a declaration is no C to a parser that does not expand it
    plain = re.sub(rb"^RMPC_(BEGIN|END)_DECLS$", lambda match: b" " * len(match[0]), text, flags=re.MULTILINE)
    found = list(_Finder(file, plain).all())
    counted: Counter[str] = Counter()
    named = []
    for each in sorted(found, key=lambda each: (each.start, each.end)):
        counted[each.name] += 1
        number = f" #{counted[each.name]}" if counted[each.name] > 1 else ""
        named.append(each._replace(name=each.name + number))
    return named


SWITCH = "rmpc_mutant"
"""The variable that says which of the mutants in a text is on: its place in the list, from 1."""


def together(text: bytes, chosen: list[Mutant]) -> bytes:
    """The text with all of these mutants of functions in it, of which a switch turns one on: each function has a body
    for each of its mutants, and its own.  What is compiled once serves many."""
    bodies: dict[tuple[int, int], list[bytes]] = {}
    for number, each in enumerate(chosen, 1):
        assert each.body is not None
        start, end = each.body
        mutated = each.applied(text)[start : end + len(each.applied(text)) - len(text)]
        bodies.setdefault(each.body, []).append(f"if ({SWITCH} == {number}) ".encode() + mutated + b"\n")
    for (start, end), variants in sorted(bodies.items(), reverse=True):
        text = text[:start] + b"{" + b"else ".join(variants) + b"else " + text[start:end] + b"}" + text[end:]
    return text


AROUND = 32
"""Characters that a name shows on each side of what is changed."""


def _line(text: bytes) -> str:
    return " ".join(re.sub(r"/\*.*?\*/", "", text.decode(), flags=re.DOTALL).split())


def _shown(before: bytes, change: bytes, after: bytes) -> str:
    """What stands around a change, in one line."""
    left, right = _line(before + b"|")[:-1], _line(b"|" + after)[1:]
    if len(left) > AROUND:
        left = "..." + left[-AROUND:]
    if len(right) > AROUND:
        right = right[:AROUND] + "..."
    middle = _line(change)
    if len(middle) > 2 * AROUND + 3:
        middle = f"{middle[:AROUND]}...{middle[-AROUND:]}"
    return f"{left}{middle}{right}" or "(nothing)"


class _Finder:
    def __init__(self, file: str, text: bytes) -> None:
        self._file = file
        self._text = text
        self._shift = 0
        """Where the text that is being parsed starts in the file."""
        self._function = "-"
        self._lines = (0, 0)
        self._body: tuple[int, int] | None = None

    def all(self) -> Iterator[Mutant]:
        yield from self._visit(parse(self._text))

    def _of(self, node: Node) -> str:
        return (node.text or b"").decode()

    def _make(self, kind: str, whole: Node, start: int, end: int, new: str) -> Mutant:
        """whole: the expression that the name shows, before and after."""
        text = whole.text or b""
        before, after = text[: start - whole.start_byte], text[end - whole.start_byte :]
        old = text[start - whole.start_byte : end - whole.start_byte]
        change = f"{_shown(before, old, after)} => {_shown(before, new.encode(), after)}"
        name = f"{self._file} {self._function}: {change}"
        at = (start + self._shift, end + self._shift)
        return Mutant(name, kind, self._file, self._function, *at, new, self._lines, self._body)

    def _visit(self, node: Node) -> Iterator[Mutant]:
        if node.type in QUIET:
            return
        if node.type == "preproc_def":
            yield from self._macro(node)
            return
        if node.type in ("call_expression", "declaration", "expression_statement") and self._of(node).startswith(
            "static_assert"
        ):
            return
        if node.type == "array_declarator":
            size = node.child_by_field_name("size")
            for child in node.children:
                if child != size:
                    yield from self._visit(child)
            return
        outside = (self._function, self._lines, self._body)
        if node.type == "function_definition":
            self._function = self._named(node)
            body = node.child_by_field_name("body")
            self._body = None if body is None else (body.start_byte, body.end_byte)
            self._lines = (node.start_point.row + 1, node.end_point.row + 1)
        elif self._body is None and not self._shift and node.type in ("enumerator", "init_declarator"):
            self._function = self._named(node) if node.type == "init_declarator" else self._of(node).split()[0]
            self._lines = (0, 0)
        elif self._body is not None and node.type.endswith(("_statement", "declaration")) and node.type != BLOCK:
            self._lines = self._head(node)
        yield from self._here(node)
        for child in node.children:
            yield from self._visit(child)
        self._function, self._lines, self._body = outside

    def _named(self, node: Node) -> str:
        inner: Node | None = node.child_by_field_name("declarator")
        while inner is not None and inner.type != "identifier":
            inner = inner.child_by_field_name("declarator")
        return "-" if inner is None else self._of(inner)

    def _head(self, node: Node) -> tuple[int, int]:
        """Lines of a statement, without those of the statements in it."""
        last = node.end_point.row
        for field in ("body", "consequence"):
            inner = node.child_by_field_name(field)
            if inner is not None and node.type != "do_statement":
                last = inner.start_point.row
        return node.start_point.row + 1, last + 1

    def _macro(self, node: Node) -> Iterator[Mutant]:
        value = node.child_by_field_name("value")
        if value is None or value.text is None:
            return
        name = node.child_by_field_name("name")
        before = b"int x = "
        body = re.sub(rb"/\*.*", b"", value.text)
        tree = parse(before + body + b";")
        if tree.has_error:
            return
        inner = _Finder(self._file, self._text)
        inner._shift = value.start_byte - len(before)
        inner._function = "" if name is None else self._of(name)
        inner._lines = (0, 0)
        for each in inner._visit(tree):
            yield each._replace(lines=(0, 0), body=None)

    def _here(self, node: Node) -> Iterator[Mutant]:
        kind = node.type
        if kind == "binary_expression":
            yield from self._operator(node)
        elif kind in ("assignment_expression", "update_expression"):
            operator = node.child_by_field_name("operator")
            if operator is not None and operator.type in ASSIGNMENTS:
                new = ASSIGNMENTS[operator.type]
                yield self._make("assignment", node, operator.start_byte, operator.end_byte, new)
        elif kind == "unary_expression":
            operator = node.child_by_field_name("operator")
            if operator is not None and operator.type in ("!", "~", "-"):
                yield self._make("unary", node, operator.start_byte, operator.end_byte, "")
        elif kind == "number_literal":
            yield from self._number(node)
        elif kind in ("true", "false"):
            yield self._make("constant", self._around(node), node.start_byte, node.end_byte,
                             "false" if kind == "true" else "true")  # fmt: skip
        elif kind in ("if_statement", "while_statement", "do_statement", "for_statement", "conditional_expression"):
            yield from self._condition(node)
        elif kind == "argument_list":
            yield from self._swap(node)
        if kind in ("expression_statement", "return_statement", "break_statement", "continue_statement"):
            yield from self._drop(node)

    def _operator(self, node: Node) -> Iterator[Mutant]:
        operator = node.child_by_field_name("operator")
        if operator is None:
            return
        for new in OPERATORS.get(operator.type, ()):
            yield self._make(KINDS[operator.type], node, operator.start_byte, operator.end_byte, new)

    def _around(self, node: Node) -> Node:
        """What shows where a constant is: the expression that it is part of, within one line."""
        while node.parent is not None and node.parent.type.endswith(
            ("_expression", "argument_list", "init_declarator", "initializer_pair", "initializer_list", "enumerator",
             "return_statement")
        ):  # fmt: skip
            if self._shift and node.parent.type == "init_declarator":
                break  # what a macro's value was made into, to be parsed
            node = node.parent
            if node.type not in ("parenthesized_expression", "unary_expression", "argument_list"):
                break
        return node

    def _number(self, node: Node) -> Iterator[Mutant]:
        match = NUMBER.fullmatch(self._of(node))
        if match is None:
            return
        octal = re.fullmatch("0[0-9]+", match[1])
        value = int(match[1], 8 if octal else 0)
        values = {value + 1, value - 1, 0} - {value, -1}
        is_hex = match[1].lower().startswith("0x")
        if is_hex and value > 1:
            values |= {value << 1, value >> 1}
        for new in sorted(values):
            if new >= 1 << 64:
                continue
            text = f"{new:#x}" if is_hex else str(new)
            yield self._make("constant", self._around(node), node.start_byte, node.end_byte, text + match[2])

    def _condition(self, node: Node) -> Iterator[Mutant]:
        condition = node.child_by_field_name("condition")
        if condition is None:
            return
        while condition.type == "parenthesized_expression":
            condition = condition.named_children[0]
        if condition.type == "binary_expression":
            operator = condition.child_by_field_name("operator")
            if operator is not None and operator.type in RELATIONS:
                return  # its operator is turned round already
        if condition.type == "unary_expression" and self._of(condition).startswith("!"):
            return
        yield self._make("condition", condition, condition.start_byte, condition.end_byte, f"!({self._of(condition)})")

    def _swap(self, node: Node) -> Iterator[Mutant]:
        call = node.parent
        arguments = node.named_children
        for left, right in pairwise(arguments):
            texts = self._of(left), self._of(right)
            if left.type in SIMPLE and right.type in SIMPLE and texts[0] != texts[1] and call is not None:
                between = self._text_between(left, right)
                new = f"{texts[1]}{between}{texts[0]}"
                yield self._make("arguments", call, left.start_byte, right.end_byte, new)

    def _text_between(self, left: Node, right: Node) -> str:
        parent = left.parent
        assert parent is not None and parent.text is not None
        return parent.text[left.end_byte - parent.start_byte : right.start_byte - parent.start_byte].decode()

    def _drop(self, node: Node) -> Iterator[Mutant]:
        if node.type == "return_statement" and node.parent is not None:
            outer = node.parent.parent
            if outer is not None and outer.type == "function_definition" and node == node.parent.named_children[-1]:
                return  # without it the function would return nothing at all: no program
        if node.named_child_count == 0 and node.type == "expression_statement":
            return  # an empty statement
        if node.type == "break_statement" and node.parent is not None and node.parent.type == "case_statement":
            siblings = node.parent.parent.named_children if node.parent.parent is not None else []
            if siblings and siblings[-1] == node.parent:
                return  # the last of a switch
        yield self._make("dropped", node, node.start_byte, node.end_byte, ";")
