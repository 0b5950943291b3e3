"""The left side of an override, `transforms[0].scale.by`: its grammar, and putting a value at such a place."""

from __future__ import annotations

import re
from typing import NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, describe

KEYS = ("inputs", "transforms", "output", "outputs", "seed", "vars", "version")
"""The keys of a plan."""
MAX_PATH = 50  # segments; far from where a plan gets too deep to walk


class PathStep(NamedTuple):
    """One step down into a plan: a key or an index, where it is written, and the whole path up to it."""

    at: str | int
    span: Span
    path: str


_KEY = re.compile(r"[^.\s\[\]]+")
_NEXT = re.compile(r"\.(?P<key>[^.\s\[\]]+)|\.?\[(?P<index>[0-9]{1,9})\]|\.\Z")


def parse_path(path: str, name: str) -> tuple[PathStep, ...]:
    """The segments of a path: keys separated by dots, `[n]` for the items of a list. `name` stands in for a file."""
    found = _KEY.match(path)
    if found is None:
        raise _refusal(path, 0, name)
    segments = [PathStep(found[0], Span(name, 1, 1), found[0])]
    while (end := found.end()) < len(path):
        found = _NEXT.match(path, end)
        if found is None:
            raise _refusal(path, end, name)
        if found.lastgroup:  # else the dot at the end, which means nothing
            at = found["key"] or int(found["index"])
            segments.append(PathStep(at, Span(name, 1, found.start(found.lastgroup) + 1), path[: found.end()]))
    if len(segments) > MAX_PATH:
        message = f"this override path has {len(segments)} parts, and {MAX_PATH} is the most"
        hint = "Give a larger value at a shorter path, as in 'a={b: {c: 1}}'."
        raise PlanError([Diagnostic("override-syntax", message, Span(name, 1, 1), hint)])
    return tuple(segments)


def _refusal(path: str, at: int, name: str) -> PlanError:
    message, hint = _what_is_wrong(path, path[at:])
    return PlanError([Diagnostic("override-syntax", message, Span(name, 1, at + 1), hint)])


def _what_is_wrong(path: str, rest: str) -> tuple[str, str]:
    """Message and hint for the place where the grammar stopped; `rest` is what follows there."""
    if not path:
        return "there is no key before the '='", "Write path=value without spaces, such as output=out."
    if bracket := re.match(r"\.?\[([^\[\]]*)(\]?)", rest):
        return _what_is_wrong_with_index(path, bracket[1], closed=bool(bracket[2]), first=rest == path)
    if re.match(r"\.?\s", rest):
        return "a key cannot contain a space", "Write the path without spaces, or put the value into a plan file."
    if rest.startswith("]"):
        return "this ']' has no '['", "Write an index as [0]."
    if rest.startswith("."):
        return "there is an empty key here", "Start with a key, and put a single dot between keys."
    return "a '.' is missing here, between an index and a key", "Write transforms[0].scale, not transforms[0]scale."


def _what_is_wrong_with_index(path: str, index: str, *, closed: bool, first: bool) -> tuple[str, str]:
    if not closed:
        return "this '[' has no ']'", "Write an index as [0]."
    if first:
        return "the path starts with an index, but a plan is a mapping", f"Start with a key: transforms{path}."
    if re.fullmatch("-[0-9]+", index):
        return f"the index {index} is negative", "Count from the start of the list: [0] is its first item."
    return f"'{index}' is not an index", "Write an integer between [ and ], counted from 0; keys come after dots."


def put(old: Node | None, path: tuple[PathStep, ...], value: Node, above: str = "") -> Node:
    """The node with a value in place of what it holds at a path. What is missing or null on the way is made.

    `above` is how error messages call the node itself.
    """
    if not path:
        return value
    at, span, here = path[0]
    node = old
    if old is None or (isinstance(old, Scalar) and old.value is None):
        node = List((), span) if isinstance(at, int) else Map((), span)
    match node, at:
        case List(), int():
            old_item = _item(node, path[0], above)
            return List((*node.items[:at], put(old_item, path[1:], value, here), *node.items[at + 1 :]), node.span)
        case Map(), str():
            entries = {key.text: (key, inner) for key, inner in node.entries}
            old_key, old_value = entries.get(at, (None, None))
            key = old_key if old_key and path[1:] else Scalar(at, at, span)
            return Map(tuple((entries | {at: (key, put(old_value, path[1:], value, here))}).values()), node.span)
    assert node is not None, "what is missing is made"
    raise _unfit(node, path[0], above)


def _item(node: List, segment: PathStep, above: str) -> Node | None:
    """The item at an index, or None one behind the last."""
    size = len(node.items)
    assert isinstance(segment.at, int)
    if segment.at > size:
        message = f"index {segment.at} is beyond the end of '{above}', which is {describe(node)}"
        raise PlanError([Diagnostic("override-path", message, segment.span, _indices(size))])
    return node.items[segment.at] if segment.at < size else None


def _unfit(old: Node, segment: PathStep, above: str) -> PlanError:
    wanted = f"index [{segment.at}]" if isinstance(segment.at, int) else f"key '{segment.at}'"
    match old:
        case List():
            hint = f"Write {above}[{segment.at}]." if str(segment.at).isdecimal() else _indices(len(old.items))
        case Map():
            hint = f"Go on with a key, as in {above}.{old.entries[0][0].text if old.entries else 'name'}."
        case Scalar():
            hint = f"Replace it as a whole: '{above}={{key: value}}' or '{above}=[item, item]'."
    message = f"'{above}' is {describe(old)}, so it has no {wanted}"
    return PlanError([Diagnostic("override-path", message, segment.span, hint)])


def _indices(size: int) -> str:
    items = ("", "Its item is [0]; ")[size] if size < 2 else f"Its items are [0] to [{size - 1}]; "
    return f"{items}[{size}] appends one."
