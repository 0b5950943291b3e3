"""Small formulas in layout files: integers, comparisons and square roots over named sizes. They never run as Python."""

from __future__ import annotations

import ast
import operator
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from brainsurgery_jax.errors import Refusal

Value = bool | int | float | str | None
Config = Mapping[str, object]
"""The content of a config.json."""

ALLOWED = "Allowed are names, numbers, + - * // %, comparisons, and, or, not, and sqrt, min, max, len, bfloat16."


def bfloat16(x: float) -> float:
    """The bfloat16 nearest to `x`, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", rounded))[0]


_BINARY: Mapping[type, Callable[..., Value]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_UNARY: Mapping[type, Callable[..., Any]] = {ast.USub: operator.neg, ast.Not: operator.not_}
_CALLS: Mapping[str, Callable[..., Value]] = {"sqrt": sqrt, "min": min, "max": max, "len": len, "bfloat16": bfloat16}


@dataclass(frozen=True, slots=True)
class SizeExpression:
    """A formula, and the names that it uses."""

    text: str
    names: frozenset[str]
    tree: ast.expr = field(compare=False, repr=False)

    def value(self, names: Mapping[str, Value]) -> Value:
        """The value of the formula. Raises Refusal if it has none."""
        try:
            return _evaluate(self.tree, names)
        except (TypeError, ValueError, ArithmeticError) as bad:
            known = ", ".join(f"{n} = {names[n]!r}" for n in sorted(self.names))
            raise Refusal("layout-value", f"'{self.text}' has no value for {known}: {bad}") from bad

    def integer(self, names: Mapping[str, Value]) -> int:
        """The value of a formula that must be a whole number, not negative."""
        value = self.value(names)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            known = ", ".join(f"{n} = {names[n]!r}" for n in sorted(self.names))
            found = f"'{self.text}' must be a whole number of at least 0, but is {value!r}"
            raise Refusal("layout-value", found + (f" ({known})" if known else ""))
        return value


def parse_expression(text: str) -> SizeExpression:
    """The formula that a text spells. Raises Refusal."""
    try:
        tree = _NamesOfParts().visit(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Refusal("layout-expression", f"'{text}' is not a formula", hint=ALLOWED) from None
    names: set[str] = set()
    for node in _parts(tree):
        _check(node, text)
        if isinstance(node, ast.Name):
            names.add(node.id)
    return SizeExpression(text.strip(), frozenset(names), tree)


class _NamesOfParts(ast.NodeTransformer):
    """Turns `vision_config.hidden_size` into one name: a field in a part of config.json."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        part = self.visit(node.value)
        return ast.Name(f"{part.id}.{node.attr}", ast.Load()) if isinstance(part, ast.Name) else node


def _parts(tree: ast.expr) -> list[ast.expr]:
    """Every expression in a tree but the names of functions."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [node for node in ast.walk(tree) if isinstance(node, ast.expr) and id(node) not in called]


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.Name() | ast.BoolOp():
            return
        case ast.Constant(value=value) if isinstance(value, bool | int | float | str | None):
            return
        case ast.BinOp(op=op) | ast.Compare(ops=[op]) if type(op) in _BINARY:
            return
        case ast.UnaryOp(op=op) if type(op) in _UNARY:
            return
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _CALLS:
            return
    hint = "Divide sizes with `//`." if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) else ALLOWED
    raise Refusal("layout-expression", f"'{ast.unparse(node)}' is not allowed in the formula '{text}'", hint=hint)


def _evaluate(node: ast.expr, names: Mapping[str, Value]) -> Value:
    match node:
        case ast.Name(id=name):
            return names[name]
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            return _BINARY[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_evaluate(operand, names))
        case ast.BoolOp(op=op, values=values):
            return _evaluate_bool(values, names, stop=isinstance(op, ast.Or))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _CALLS[name](*(_evaluate(a, names) for a in args))
    raise AssertionError(node)


def _evaluate_bool(values: list[ast.expr], names: Mapping[str, Value], *, stop: bool) -> Value:
    found: Value = not stop
    for value in values:
        found = _evaluate(value, names)
        if bool(found) is stop:
            break
    return found
