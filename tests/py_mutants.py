"""Systematic mutants of the oracle: cosmic-ray's operators, those that stand for one slip, on its parso trees.

A mutant's name says file, function, operator, the line as it was and, if the name comes up more than once, which of
them it is.  It has no line number: it stays the same when lines move.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import parso
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.provider import OperatorProvider

OPERATORS = (
    *(f"ReplaceComparisonOperator_{pair}" for pair in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
        "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Mod_Mul", "LShift_RShift", "RShift_LShift",
        "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitOr", "Pow_Mul")),
    *(f"ReplaceUnaryOperator_{what}" for what in ("Delete_USub", "Delete_Invert", "Delete_Not")),
    "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop",
)  # fmt: skip


class Mutant(NamedTuple):
    """occurrence: which of the operator's places in the whole file; line: where."""

    name: str
    file: str
    operator: str
    occurrence: int
    line: int

    def applied(self, text: str) -> str:
        mutated = MutationVisitor.mutate_code(text, _operator(self.operator), self.occurrence)
        assert mutated is not None
        return str(mutated)

    def after(self, text: str) -> str:
        """The line that is changed, as it is then."""
        pairs = zip(text.splitlines(), self.applied(text).splitlines(), strict=False)
        return next((" ".join(after.split()) for before, after in pairs if before != after), "")


def _operator(name: str) -> Any:
    return _PROVIDER[name]()


_PROVIDER = OperatorProvider()


def mutants(file: str, text: str) -> list[Mutant]:
    """All mutants of a file.  None in annotations and decorators, which are not run, or say nothing of the rules."""
    operators = {name: _operator(name) for name in OPERATORS}
    occurrences: Counter[str] = Counter()
    names: Counter[str] = Counter()
    found = []
    lines = text.splitlines()

    def visit(node: Any, function: str, quiet: bool) -> None:
        if node.type in ("funcdef", "classdef"):
            function = f"{function}.{node.name.value}" if function != "-" else str(node.name.value)
        quiet = quiet or _says_types(node)
        for name, operator in operators.items():
            for start, _ in operator.mutation_positions(node):
                if not quiet:
                    short = name.replace("Operator", "").removeprefix("Replace")
                    label = f"{file} {function}: {short} in {' '.join(lines[start[0] - 1].split())}"
                    names[label] += 1
                    number = f" #{names[label]}" if names[label] > 1 else ""
                    found.append(Mutant(label + number, file, name, occurrences[name], start[0]))
                occurrences[name] += 1
        for child in getattr(node, "children", ()):
            visit(child, function, quiet)

    visit(parso.parse(text), "-", False)
    return found


def _says_types(node: Any) -> bool:
    """An annotation, or a decorator."""
    parent = node.parent
    if node.type == "decorator":
        return True
    if parent is None:
        return False
    if parent.type == "tfpdef":
        return node is parent.children[-1]
    if parent.type == "annassign":
        return node is parent.children[1]
    if parent.type == "funcdef":
        before = node.get_previous_sibling()
        return before is not None and before.type == "operator" and before.value == "->"
    return False


def oracle_mutants(root: Path) -> list[Mutant]:
    paths = sorted((root / "src/rmpcore/oracle").glob("*.py"))
    return [each for path in paths for each in mutants(str(path.relative_to(root)), path.read_text())]
