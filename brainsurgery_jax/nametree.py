"""Tensor names as a tree, drawn for people (tree, compact) or given to programs (json)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


class Tree:
    """A node: what is said of the tensor of this very name, if there is one, and what lies below it."""

    __slots__ = ("below", "leaf")

    def __init__(self) -> None:
        self.leaf: Any = None
        self.below: dict[str, Tree] = {}


def build(leaves: Iterable[tuple[str, Any]]) -> Tree:
    """The tree of dotted names. A name may also be the prefix of others."""
    root = Tree()
    for name, leaf in leaves:
        node = root
        for segment in name.split("."):
            node = node.below.setdefault(segment, Tree())
        node.leaf = leaf
    return root


def draw(tree: Tree, *, compact: bool) -> list[str]:
    """Lines with box-drawing branches; `compact` folds neighbouring list items with equal content into `[i-j]`."""
    rows = _folded(tree) if compact else [(_label(k), t) for k, t in _ordered(tree)]
    out = []
    for at, (label, node) in enumerate(rows):
        last = at == len(rows) - 1
        said = f"  {_said(node.leaf)}" if node.leaf is not None else ""
        out.append(("└── " if last else "├── ") + label + said)
        out.extend(("    " if last else "│   ") + line for line in draw(node, compact=compact))
    return out


def plain(tree: Tree) -> Any:
    """Nested dicts and lists for JSON: siblings 0..n are a list; a name that is also a prefix has its leaf under ""."""
    if not tree.below:
        return tree.leaf
    keys = list(tree.below)
    if tree.leaf is None and all(_is_index(k) for k in keys) and max(map(int, keys)) < 2 * len(keys) + 8:
        items: list[Any] = [None] * (max(map(int, keys)) + 1)
        for key, node in tree.below.items():
            items[int(key)] = plain(node)
        return items
    own = {} if tree.leaf is None else {"": tree.leaf}
    return own | {key: plain(node) for key, node in tree.below.items()}


def to_json(value: Any) -> str:
    """One line of JSON, keys sorted; NaN and infinity as text, so that every reader accepts it."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return str(value) if isinstance(value, complex) else value


def _is_index(segment: str) -> bool:
    return segment.isascii() and segment.isdigit() and str(int(segment)) == segment


def _label(segment: str) -> str:
    return f"[{segment}]" if _is_index(segment) else segment


def _ordered(tree: Tree) -> list[tuple[str, Tree]]:
    """Children in order of first mention, list items by number."""
    named = [(k, t) for k, t in tree.below.items() if not _is_index(k)]
    listed = sorted(((k, t) for k, t in tree.below.items() if _is_index(k)), key=lambda kt: int(kt[0]))
    return named + listed


def _folded(tree: Tree) -> list[tuple[str, Tree]]:
    out: list[tuple[str, Tree]] = []
    run: tuple[int, int, list[str]] | None = None  # first index, last index, content
    for key, node in _ordered(tree):
        content = [_said(node.leaf), *draw(node, compact=True)] if _is_index(key) else None
        if content is not None and run is not None and run[1] + 1 == int(key) and run[2] == content:
            run = (run[0], int(key), content)
            out[-1] = (f"[{run[0]}-{run[1]}]", node)
            continue
        run = (int(key), int(key), content) if content is not None else None
        out.append((_label(key), node))
    return out


def _said(leaf: Any) -> str:
    if isinstance(leaf, Mapping):
        return " ".join(f"{k}={_number(v)}" for k, v in leaf.items())
    return "" if leaf is None else str(leaf)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
