"""Variables that a plan declares: their type, their default, and a line of help.

    vars: {base: <path>, rank: <integer> 16, name: {type: text, default: mine, help: a name}}

A type in angle brackets says what a value must be; without a default behind it, a value must be given. Paths are a
list, or a text with commas; they take the place of one item of a list. The mapping says the same, and has room for
help. Help may also stand in the comment at the top of a file, as a list item with the name: `# - rank: columns that are
kept`, or `# - a, b: models` for two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from brainsurgery_jax.errors import Diagnostic, Span, did_you_mean
from brainsurgery_jax.plan.scalars import read_scalar
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, get

TYPES: Mapping[str, str] = {
    "text": "text", "path": "a path", "paths": "paths", "number": "a number", "integer": "an integer",
    "boolean": "true or false",
}  # fmt: skip
"""The types of variables, each in words."""
KEYS = ("type", "default", "help")

_SHORT = re.compile(rf"<({'|'.join(TYPES)})>\s*(.*)", re.DOTALL)
_ITEM = re.compile(r"# - (\w+(?:, \w+)*): (.+)")


class Variable(NamedTuple):
    """A declared variable. `default` None: a value must be given."""

    name: str
    type: str
    default: Scalar | None
    help: str
    span: Span

    @property
    def takes_list(self) -> bool:
        """Whether its value is a list."""
        return self.type == "paths"

    @property
    def is_text(self) -> bool:
        """Whether its value is a text as it is given."""
        return self.type in ("text", "path")

    def __str__(self) -> str:
        """What it is, in words: its type, and its help."""
        return TYPES[self.type] + (f" ({self.help})" if self.help else "")


def declare(root: Map, text: str = "") -> Map:
    """The plan with all its declarations as mappings, with the help that the text of its file has at the top."""
    table = get(root, "vars")
    if not isinstance(table, Map):
        return root
    helps = read_help(text)
    entries = tuple((key, _spell_out(node, helps.get(key.text, ""))) for key, node in table.entries)
    return replace(root, entries=tuple((k, replace(table, entries=entries) if v is table else v) for k, v in
                                       root.entries))  # fmt: skip


def _spell_out(node: Node, told: str) -> Node:
    """A declaration in short form as a mapping; any other node as it is, but for the help that it lacks."""
    parts: list[tuple[str, Scalar]] = []
    match node:
        case Scalar(value=str(text)) if (found := _SHORT.fullmatch(text)) is not None:
            parts.append(("type", Scalar(found[1], found[1], node.span)))
            if found[2]:
                parts.append(("default", Scalar(read_scalar(found[2]), found[2], node.span)))
            before: tuple[tuple[Scalar, Node], ...] = ()
        case Map(entries) if get(node, "help") is None:
            before = entries
        case _:
            return node
    if told:
        parts.append(("help", Scalar(told, told, node.span)))
    return Map((*before, *((Scalar(key, key, node.span), value) for key, value in parts)), node.span)


def comment_of(text: str) -> list[str]:
    """The lines of the comment at the top of a plan file, with their marks."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.rstrip())
    return lines


def read_help(text: str) -> dict[str, str]:
    """The help for each variable in the comment at the top of a plan file; a list item goes on in indented lines."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in comment_of(text):
        if (item := _ITEM.fullmatch(line)) is not None:
            names = item[1].split(", ")
            found |= dict.fromkeys(names, item[2])
        elif names and line.startswith("#   "):
            found |= {name: f"{found[name]} {line[1:].strip()}" for name in names}
        else:
            names = []
    return found


def is_help(line: str) -> bool:
    """Whether a line of a comment is the help of a variable."""
    return _ITEM.fullmatch(line) is not None


def find_variable(key: Scalar, node: Node) -> Variable | None:
    """What a declaration says; None for a value, and for a mapping that is no declaration."""
    if not isinstance(node, Map) or any(find_mistakes(key, node)):
        return None
    kind, default, told = (get(node, part) for part in KEYS)
    return Variable(
        key.text,
        kind.text if isinstance(kind, Scalar) else "text",
        default if isinstance(default, Scalar) else None,
        told.text if isinstance(told, Scalar) else "",
        key.span,
    )


def variables_of(root: Map) -> dict[str, Variable]:
    """The variables that a plan declares, by name, as `declare` left them."""
    table = get(root, "vars")
    entries = table.entries if isinstance(table, Map) else ()
    return {key.text: found for key, node in entries if (found := find_variable(key, node)) is not None}


def find_mistakes(key: Scalar, node: Map) -> Iterator[Diagnostic]:
    """What is wrong with a declaration."""
    kind = get(node, "type")
    known = f"Types: {', '.join(TYPES)}."
    for part, value in node.entries:
        if part.text not in KEYS:
            near = did_you_mean(part.text, KEYS)
            yield Diagnostic("vars-form", f"vars.{key.text}: a declaration has no key '{part.text}'.{near}", part.span,
                             f"Its keys: {', '.join(KEYS)}.")  # fmt: skip
        elif not isinstance(value, Scalar):
            yield Diagnostic("vars-form", f"vars.{key.text}: '{part.text}' must be a single value", value.span, known)
    if isinstance(kind, Scalar) and kind.text not in TYPES:
        near = did_you_mean(kind.text, TYPES)
        yield Diagnostic("vars-form", f"vars.{key.text}: there is no type '{kind.text}'.{near}", kind.span, known)


def fit(value: Node, variable: Variable) -> Scalar | List | Diagnostic:
    """A value as its variable takes it (a number that is meant as text is text), or why it does not.

    Paths become inputs: those without an alias are called like the variable, and numbered.
    """
    if variable.takes_list:
        parts = value.text.split(",") if isinstance(value, Scalar) else []
        items = value.items if isinstance(value, List) else [Scalar(p.strip(), p.strip(), value.span) for p in parts]
        return List(tuple(_as_input(i, f"{variable.name}_{n}") for n, i in enumerate(items, 1)), value.span)
    assert isinstance(value, Scalar), "a list was refused"
    if value.value is None:
        value = replace(value, value=value.text)
    given = value.value
    if variable.is_text:
        return replace(value, value=value.text)
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    fits = {"number": is_number, "integer": is_number and isinstance(given, int), "boolean": isinstance(given, bool)}
    if fits[variable.type]:
        return value
    message = f"vars.{variable.name}: expected {variable}, got {given!r}"
    return Diagnostic("value-type", message, value.span)


def _as_input(node: Node, alias: str) -> Node:
    if not isinstance(node, Scalar) or "::" in node.text:
        return node
    return replace(node, value=f"{alias}::{node.text}", text=f"{alias}::{node.text}")
