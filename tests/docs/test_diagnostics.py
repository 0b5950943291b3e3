"""Every code of a diagnostic has a section that shows its message, and every section a code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from brainsurgery_jax.plan.parse import OUTPUT_KEYS
from tests.docs.write import ROOT

PACKAGE = ROOT / "brainsurgery_jax"
CODE = re.compile(r"[a-z]+(-[a-z]+)*")
STORES = {f"output-{key}" for key in ("format", "shard", "path", "options")}
"""Codes made of a key, in `lower.outputs`: what a store says of that key."""


def codes() -> set[str]:
    """Every code that the package can print: whatever is given as a parameter or a field of that name."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    places: dict[str, int] = {}
    found = STORES | {text for tree in trees for node in tree.body for text in _constant(node)}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names, defaults = _parameters(node)
            if "code" in names:
                places[_owner(node, trees)] = names.index("code")
                found |= {*_texts(defaults.get("code"))}
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if (at := places.get(_name(node.func))) is not None:
            given = [node.args[at]] if len(node.args) > at else []
            given += [k.value for k in node.keywords if k.arg == "code"]
            found |= {text for value in given for text in _texts(value)}
    return found


def _constant(node: ast.stmt) -> Iterator[str]:
    """A code that a module calls CODE."""
    if isinstance(node, ast.Assign) and [_name(t) for t in node.targets] == ["CODE"]:
        yield from _texts(node.value)


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> tuple[list[str], dict[str, ast.expr]]:
    """The parameters of a function (a method without `self`), or the fields of a class, with their defaults."""
    if isinstance(node, ast.ClassDef):
        fields = {_name(f.target): f.value for f in node.body if isinstance(f, ast.AnnAssign)}
        return list(fields), {name: value for name, value in fields.items() if value is not None}
    names = [a.arg for a in node.args.args]
    defaults = dict(zip(reversed(names), reversed(node.args.defaults), strict=False))
    return [name for name in names if name != "self"], defaults


def _owner(node: ast.FunctionDef | ast.ClassDef, trees: list[ast.Module]) -> str:
    """How it is called: by its name, or for `__init__` by that of its class."""
    if node.name != "__init__":
        return node.name
    classes = (c for tree in trees for c in ast.walk(tree) if isinstance(c, ast.ClassDef))
    return next(c.name for c in classes if node in c.body)


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _texts(value: ast.expr | None) -> Iterator[str]:
    """The texts that an expression can be: of a constant, or of both arms of a choice."""
    if isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and CODE.fullmatch(value.value):
        yield value.value


def told() -> dict[str, str]:
    """The sections of the page, by code."""
    page = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (.*)\n", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    assert sorted(codes() - set(told())) == []
    assert sorted(set(told()) - codes()) == []


@pytest.mark.parametrize("code", sorted(told()))
def test_a_section_shows_its_message_as_it_is_printed(code: str) -> None:
    shown = re.findall(r"^```(?:text|console)\n(.*?)^```", told()[code], re.MULTILINE | re.DOTALL)
    assert any(f"[{code}]" in text for text in shown)


@pytest.mark.parametrize("code", sorted(told()))
def test_a_section_says_what_is_wrong_before_it_shows_an_example(code: str) -> None:
    assert re.match(r"\n(?:`|[A-Z])[^\n]+\n", told()[code])


def test_the_keys_of_an_output_that_stores_judge_are_its_keys() -> None:
    assert {code.removeprefix("output-") for code in STORES} <= set(OUTPUT_KEYS)


def test_the_planted_mistakes_are_explained() -> None:
    snapshot = (Path(__file__).parents[1] / "null/snapshots/planted_mistakes.txt").read_text(encoding="utf-8")
    assert set(re.findall(r"\[([a-z-]+)\]$", snapshot, re.MULTILINE)) <= set(told())
