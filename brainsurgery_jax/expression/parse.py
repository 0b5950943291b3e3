"""Expressions over tensors, as `compute` takes them: read into a tree of a few allowed kinds, never run as Python.

Python's own parser reads the text, and every node that it finds must be on a list. What is refused says where it stands
in the text, by a caret. Length, depth and exponents are limited, so that no text takes long to read or to compute.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from textwrap import wrap
from types import EllipsisType

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.expression.functions import FUNCTIONS
from brainsurgery_jax.expression.signatures import Function

MOST_CHARACTERS = 1000
MOST_LEVELS = 100
WINDOW = 72
"""Characters of an expression that a message shows."""

ALLOWED = (
    "An expression has names, numbers, + - * / // % ** @, comparisons, & | ~ << >>, slices, .T, .shape and functions:\n"
    + "\n".join(wrap(", ".join(FUNCTIONS) + ".", 100))
)  # fmt: skip

NUMBER_HINT = "Write `${i}` for the number that `i` captured, `${config.num_hidden_layers}` for one of the config."
_NUMBER = re.compile(r"\$\{([^{}]{1,60})\}")
_STRANGE = re.compile(r"[^A-Za-z0-9_\s.,+\-*/%@()\[\]:<>=!&|~\"']")
_BINARY = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.BitAnd, ast.BitOr,
    ast.LShift, ast.RShift,
)  # fmt: skip
_UNARY = (ast.USub, ast.UAdd, ast.Invert)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_WORDS = {
    ast.BoolOp: "Write `&` for and, `|` for or, with both sides in parentheses: `(a > 0) & (a < 1)`.",
    ast.IfExp: "Write `where(condition, this, that)`.",
    ast.Lambda: ALLOWED,
}


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression: its text, the names that it asks for, its tree, and whether it works element by element.

    `numbers`: the names of numbers that each match has, and what stands between the braces: `${i + 1}`. `lets`: local
    names and their expressions. `at`: it is this part of the text, and ranges over a set.
    """

    text: str
    names: frozenset[str] = field(compare=False)
    tree: ast.expr = field(compare=False, repr=False)
    elementwise: bool = field(compare=False)
    numbers: tuple[tuple[str, str], ...] = ()
    lets: tuple[tuple[str, Expression], ...] = ()
    at: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.text

    def refusal(self, node: ast.expr, message: str, hint: str = "", code: str = "expression-value") -> Refusal:
        """A refusal that shows a node's place in the text."""
        return _refusal(code, self.text, node.col_offset, node.end_col_offset, message, hint)

    def source(self, node: ast.expr) -> str:
        """The text of a node."""
        return _shorten(self.text[node.col_offset : node.end_col_offset])


def parse_expression(text: str) -> Expression:
    """The expression that a text spells. Raises Refusal."""
    line = re.sub(r"\s", " ", text).strip()
    plain, numbers = _name_numbers(line)
    tree = _parse(plain, line)
    if _levels(tree) > MOST_LEVELS:
        hint = "Compute a part of it in a step of its own, under a new name."
        raise Refusal("expression-syntax", f"the expression is nested more than {MOST_LEVELS} deep", hint=hint)
    reading = _Reading(line)
    reading.value(tree)
    return Expression(line, frozenset(reading.names - {n for n, _ in numbers}), tree, reading.elementwise, numbers)


def check_again(expression: Expression) -> Expression:
    """An expression whose tree is another, with its own names and properties."""
    reading = _Reading(expression.text)
    reading.value(expression.tree)
    numbers = tuple((name, text) for name, text in expression.numbers if name in reading.names)
    names = frozenset(reading.names - {n for n, _ in numbers})
    return replace(expression, names=names, elementwise=reading.elementwise, numbers=numbers)


def _name_numbers(line: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A text with names of the same length in place of `${...}`, and these names with what is between the braces."""
    known: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        made = f"_{len(known)}".ljust(len(found[0]), "_")
        known[made] = found[1].strip()
        return made

    return _NUMBER.sub(name, line), tuple(known.items())


def _parse(plain: str, line: str) -> ast.expr:
    if len(line) > MOST_CHARACTERS:
        hint = "Compute a part of it in a step of its own, under a new name."
        found = f"the expression has {len(line):,} characters, more than {MOST_CHARACTERS:,}"
        raise Refusal("expression-syntax", found, hint=hint)
    if (strange := _STRANGE.search(plain)) is not None:
        at = strange.start()
        hint = {"^": "Powers are written `x ** 2`.", "$": f"{NUMBER_HINT}\n{ALLOWED}"}.get(line[at], ALLOWED)
        raise _refusal("expression-syntax", line, at, at + 1, f"'{line[at]}' has no meaning in an expression", hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's about odd but valid spellings
            return ast.parse(plain, mode="eval").body
    except SyntaxError as bad:
        at = min(max((bad.offset or 1) - 1, 0), len(line))
        hint = "Is a bracket or an operator missing there, or one too many? It is written as in Python and numpy."
        found = f"'{_shorten(line)}' is not an expression"
        raise _refusal("expression-syntax", line, at, at + 1, found, hint) from None
    except (ValueError, RecursionError, MemoryError):
        raise Refusal("expression-syntax", f"'{_shorten(line)}' is not an expression", hint=ALLOWED) from None


def _levels(tree: ast.expr) -> int:
    """How deep a tree is, found without recursion."""
    deepest, stack = 0, [(tree, 1)]
    while stack:
        node, level = stack.pop()
        deepest = max(deepest, level)
        stack.extend((child, level + 1) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
    return deepest


def _shorten(text: str) -> str:
    return text if len(text) <= WINDOW else text[: WINDOW - 4] + " ..."


def _refusal(code: str, line: str, start: int, stop: int | None, message: str, hint: str = "") -> Refusal:
    """A refusal whose hint shows the place by carets, of a long expression the part around it."""
    first = max(0, min(start - WINDOW // 2, len(line) - WINDOW))
    shown = line[first : first + WINDOW]
    carets = "^" * max(1, min((stop or start + 1), first + len(shown)) - start)
    pointer = f"{shown}\n{' ' * (start - first)}{carets}"
    return Refusal(code, message, key="expr", hint=f"{pointer}\n{hint}" if hint else pointer)


class _Reading:
    """Checks a tree node by node; what it asks for collects in `names`."""

    def __init__(self, text: str):
        self.text = text
        self.names: set[str] = set()
        self.elementwise = True

    def refusal(self, node: ast.expr, message: str, hint: str = ALLOWED) -> Refusal:
        return _refusal("expression-syntax", self.text, node.col_offset, node.end_col_offset, message, hint)

    def value(self, node: ast.expr) -> None:
        """Check a node that stands for a tensor or a number. Raises Refusal."""
        match node:
            case ast.Name(id=name):
                if name in FUNCTIONS:
                    raise self.refusal(node, f"'{name}' is a function", f"Write `{FUNCTIONS[name].usage}`.")
                self.names.add(name)
            case ast.Constant(value=bool() | int() | float()):
                pass
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _BINARY):
                self.elementwise &= not isinstance(op, ast.MatMult)
                self.value(left)
                self.value(right)
            case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _UNARY):
                self.value(operand)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, _COMPARISONS):
                self.value(left)
                self.value(right)
            case ast.Call():
                self.call(node)
            case ast.Attribute(value=inner, attr="T" | "shape"):
                self.elementwise = False
                self.value(inner)
            case ast.Subscript(value=inner, slice=index):
                self.elementwise = False
                self.value(inner)
                for part in index.elts if isinstance(index, ast.Tuple) else [index]:
                    self.index(part)
            case _:
                raise self._not_allowed(node)

    def _not_allowed(self, node: ast.expr) -> Refusal:
        shown = _shorten(self.text[node.col_offset : node.end_col_offset])
        hint = _WORDS.get(type(node), ALLOWED)
        match node:
            case ast.Compare():
                hint = "Compare two at a time: `(a < b) & (b < c)`."
            case ast.UnaryOp(op=ast.Not()):
                hint = "Write `~` for not."
            case ast.Attribute(attr=name) if name in FUNCTIONS:
                hint = f"Write `{FUNCTIONS[name].usage}`."
                return self.refusal(node, f"'.{name}' has no meaning in an expression", hint)
            case ast.Attribute() if all(map(str.isidentifier, shown.split("."))):
                pattern = shown.replace(".", r"\.")
                hint = f"Give the tensor a name without dots, `from: {{w: '{pattern}'}}`, and write `w` for it."
                return self.refusal(node, f"'{shown}' is no name in an expression", hint)
            case ast.Attribute(attr=name):
                return self.refusal(node, f"'.{name}' has no meaning in an expression", ALLOWED)
        return self.refusal(node, f"'{shown}' cannot stand in an expression", hint)

    def index(self, node: ast.expr) -> None:
        """Check one part of what stands in brackets."""
        match node:
            case ast.Slice(lower=lower, upper=upper, step=step):
                for bound in (lower, upper, step):
                    if bound is not None:
                        self.value(bound)
            case ast.Constant(value=None | EllipsisType()):
                pass
            case _:
                self.value(node)

    def call(self, node: ast.Call) -> None:
        if not isinstance(node.func, ast.Name):
            if isinstance(node.func, ast.Attribute):
                raise self._not_allowed(node.func)
            raise self._not_allowed(node)
        name = node.func.id
        if (function := FUNCTIONS.get(name)) is None:
            near = did_you_mean(name, FUNCTIONS, ours=True)
            raise self.refusal(node.func, f"there is no function '{name}'.{near}")
        self.elementwise &= function.elementwise
        self.arguments(node, name, function)

    def arguments(self, node: ast.Call, name: str, function: Function) -> None:
        """Check what a function is given against what it takes."""
        usage = f"Write `{function.usage}`."
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            raise self.refusal(node, f"'{name}' takes its arguments one by one", usage)
        low, high = function.tensors
        if not low <= len(node.args) <= high:
            wanted = f"{low}" if low == high else f"at least {low}" if high > 9 else f"{low} to {high}"
            found = f"'{name}' takes {wanted} argument{'s' * (wanted != '1')} without a name, got {len(node.args)}"
            raise self.refusal(node, found, usage)
        for at, argument in enumerate(node.args):
            match argument:
                case ast.Constant(value=str()) if function.text and not at:
                    pass
                case _:
                    self.argument(argument)
        given = [keyword.arg for keyword in node.keywords]
        for at, keyword in enumerate(node.keywords):
            if keyword.arg in given[:at]:
                raise self.refusal(keyword.value, f"'{name}' is given '{keyword.arg}' twice", usage)
            if keyword.arg not in function.keywords:
                near = did_you_mean(str(keyword.arg), function.keywords)
                raise self.refusal(keyword.value, f"'{name}' has no argument '{keyword.arg}'.{near}", usage)
            self.argument(keyword.value)

    def argument(self, node: ast.expr) -> None:
        match node:
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self.argument(part)
            case ast.Constant(value=None):
                pass
            case _:
                self.value(node)


def walk_names(tree: ast.expr) -> Iterator[ast.Name]:
    """The names of tensors in a tree, from left to right; those of functions left out."""
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
    yield from sorted(found, key=lambda n: n.col_offset)
