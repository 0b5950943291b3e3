"""Every code of a diagnostic has a section that shows its message, and every section a code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from brainsurgery_jax.plan.endpoints import OUTPUT_KEYS
from tests.docs.write import ROOT

PACKAGE = ROOT / "brainsurgery_jax"
CODE = re.compile(r"[a-z]+(-[a-z]+)*")
STORES = {f"output-{key}" for key in ("format", "shard", "path", "options")}
"""Codes made of a key, in `lower.outputs`: what a store says of that key."""


@cache
def codes() -> frozenset[str]:
    """Every code that the package can print: whatever is given as a parameter or a field of that name."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    constants = {name: text for tree in trees for node in tree.body for name, text in _constant(node)}
    nodes = [node for tree in trees for node in ast.walk(tree)]
    owners = {f: c.name for c in nodes if isinstance(c, ast.ClassDef) for f in c.body if _is_init(f)}
    places: dict[str, set[int]] = {}
    found = set(STORES)
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names, defaults = _parameters(node)
            if "code" in names:
                places.setdefault(owners.get(node, node.name), set()).add(names.index("code"))
                found |= {*_texts(defaults.get("code"), constants)}
    for node in (node for node in nodes if isinstance(node, ast.Call)):
        for at in places.get(_name(node.func), ()):
            given = [node.args[at]] if len(node.args) > at else []
            given += [k.value for k in node.keywords if k.arg == "code"]
            found |= {text for value in given for text in _texts(value, constants)}
    return frozenset(found)


def _is_init(node: ast.stmt) -> bool:
    """Whether it is the function by whose parameters a class is called."""
    return isinstance(node, ast.FunctionDef) and node.name == "__init__"


def _constant(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """A text that a module gives a name."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
        yield from ((_name(target), text) for target in node.targets for text in _texts(node.value, {}))


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> tuple[list[str], dict[str, ast.expr]]:
    """The parameters of a function (a method without `self`), or the fields of a class, with their defaults."""
    if isinstance(node, ast.ClassDef):
        fields = {_name(f.target): f.value for f in node.body if isinstance(f, ast.AnnAssign)}
        return list(fields), {name: value for name, value in fields.items() if value is not None}
    names = [a.arg for a in node.args.args]
    defaults = dict(zip(reversed(names), reversed(node.args.defaults), strict=False))
    keywords = [a.arg for a in node.args.kwonlyargs]
    defaults |= {k: v for k, v in zip(keywords, node.args.kw_defaults, strict=True) if v is not None}
    return [name for name in (*names, *keywords) if name != "self"], defaults


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _texts(value: ast.expr | None, constants: dict[str, str]) -> Iterator[str]:
    """The texts that an expression can be: of a constant, by its name or not, or of both arms of a choice."""
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            yield from (*_texts(body, constants), *_texts(orelse, constants))
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case ast.Constant(value=str(text)) if CODE.fullmatch(text):
            yield text


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
