"""Every hint that the package can print, as the texts in its code tell: pieces that are computed are left open."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "brainsurgery_jax"
NAMES = ("hint", "remedy")
POSITIONS: Mapping[str, tuple[int, ...]] = {
    "RefError": (2,), "Diagnostic": (3,), "complain": (2, 3), "_refused": (2,), "_refusal": (2,), "_refuse": (2,),
    "refused": (2,), "refuse": (2,), "refuse_given": (1,),
    "note": (3,), "fail": (1,), "_wrong": (3,), "wrong": (1,), "_Trap": (2,),
}  # fmt: skip
"""Calls whose hint may be given without its name, and where."""


class Hint(NamedTuple):
    """A hint: the file that it is written in, and its text, `{}` for what is computed."""

    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"

    def is_in(self, printed: str) -> bool:
        """Whether a printed hint is this one, or holds it. What is to be cast is named where a step fails."""
        return _pattern(self.text).search(printed) is not None


@cache  # there are more of them than `re` keeps
def _pattern(text: str) -> re.Pattern[str]:
    pieces = map(re.escape, text.replace("{target: ...,", "{target: {},").split("{}"))
    return re.compile(".*".join(pieces), re.DOTALL)


@cache
def catalogue() -> frozenset[Hint]:
    """All hints of the package."""
    return frozenset(
        Hint(str(path.relative_to(PACKAGE)), text)
        for path in PACKAGE.rglob("*.py")
        for text in _hints(ast.parse(path.read_text(encoding="utf-8")))
        if " " in text.replace("{}", "").strip(" .:`") and not text.startswith("the ")  # what a complaint is about
    )


def _hints(tree: ast.Module) -> Iterator[str]:
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        for value in _given(node):
            yield from _texts(value, constants)


def _given(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions whose values are hints."""
    match node:
        case ast.Call(func=func, args=args, keywords=keywords):
            yield from (k.value for k in keywords if k.arg in NAMES)
            places = POSITIONS.get(func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", ""), ())
            yield from (args[at] for at in places if at < len(args))
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in NAMES:
            yield value
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            yield from (v for t, v in zip(targets, values, strict=True) if getattr(t, "id", "") in NAMES)
        case ast.FunctionDef(name=name) if name.endswith("_hint") or name in (
            "remedy",
            "of_kind",
            "of_pattern",
            "of_box",
            "after",
        ):
            yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None)


def _texts(value: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """The texts that an expression can be."""
    match value:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)
        case ast.IfExp(body=body, orelse=orelse):
            yield from (*_texts(body, constants), *_texts(orelse, constants))
        case ast.BoolOp(values=values):
            for each in values:
                yield from _texts(each, constants)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from (*_texts(left, constants), *_texts(right, constants))
        case ast.Name(id=name) if name in constants:
            yield from _texts(constants[name], {})
