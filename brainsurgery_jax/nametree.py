"""Tensor names as a tree, drawn for people (tree, compact) or given to programs (json)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any


def layer_of(name: str) -> int | None:
    """The first number among the parts of a name; None for a name without one."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def module_of(name: str) -> str:
    """The name with an asterisk for every number among its parts."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key to sort names by: numbers in them by their size, so that layer 2 comes before layer 10."""
    return tuple(map(_order_part, filter(None, re.split(r"(\d+)", name))))


def _order_part(part: str) -> tuple[int, int, str]:
    if not part.isdecimal():
        return 1, 0, part
    digits = part.lstrip("0")
    return 0, len(digits), digits


def group_by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their modules, as `module_of` says them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(module_of(name), []).append(name)
    return found


def pattern_of(module: str) -> str:
    """A regular expression for all names of a module."""
    return r"\d+".join(map(re.escape, module.split("*")))


class Tree:
    """A node: what is said of the tensor of this very name, if there is one, and what lies below it."""

    __slots__ = ("below", "leaf")

    def __init__(self) -> None:
        self.leaf: object = None
        self.below: dict[str, Tree] = {}


def build(leaves: Iterable[tuple[str, object]]) -> Tree:
    """The tree of dotted names. A name may also be the prefix of others."""
    root = Tree()
    parents: dict[str, Tree] = {}  # by name: neighbours share all of them, and 90,000 names have ten parts each
    for name, leaf in leaves:
        above, dot, segment = name.rpartition(".")
        parent = root if not dot else parents.get(above) or _parent(above, parents, root)
        if (node := parent.below.get(segment)) is None:
            node = parent.below[segment] = Tree()
        node.leaf = leaf
    return root


def _parent(name: str, parents: dict[str, Tree], root: Tree) -> Tree:
    """The node of a prefix of names, made with its own parents if it is not there."""
    if (node := parents.get(name)) is None:
        above, dot, segment = name.rpartition(".")
        parent = _parent(above, parents, root) if dot else root
        node = parents[name] = parent.below.setdefault(segment, Tree())
    return node


def draw(tree: Tree, *, compact: bool) -> list[str]:
    """Lines with box-drawing branches; `compact` folds neighbouring list items with equal content into `[i-j]`."""
    out: list[str] = []
    if not compact:
        _draw_below(tree, "", out)
        return out
    return _draw_compact(tree, {})


_Row = tuple[str, str, list[str]]
"""A label, what is said of it, and the lines below it."""

_NO_LINES: list[str] = []


def _draw_compact(tree: Tree, drawn: dict[tuple[object, ...], list[str]]) -> list[str]:
    """The lines below a node. Equal trees have the same list, which is drawn once: a mixture has 15,000 alike."""
    if not tree.below:
        return _NO_LINES
    rows = [(key, _describe(node.leaf), _draw_compact(node, drawn)) for key, node in _in_order(tree)]
    signature = tuple([(key, said, id(below)) for key, said, below in rows])
    if (lines := drawn.get(signature)) is None:
        lines = drawn[signature] = _lines_of(_fold(rows))
    return lines


def _lines_of(rows: Sequence[_Row]) -> list[str]:
    out: list[str] = []
    for at, (label, said, below) in enumerate(rows, 1):
        branch, stem = _TURN if at == len(rows) else _FORK
        out.append(f"{branch}{label}  {said}" if said else branch + label)
        out += [stem + line for line in below]
    return out


_FORK, _TURN = ("├── ", "│   "), ("└── ", "    ")
"""The branch to a child, and what stands before the lines below it; the second pair is the last child's."""


def _draw_below(tree: Tree, stem: str, out: list[str]) -> None:
    children = _in_order(tree)
    for at, (key, node) in enumerate(children, 1):
        branch, deeper = _TURN if at == len(children) else _FORK
        said = _describe(node.leaf)
        out.append(f"{stem}{branch}{_label(key)}  {said}" if said else f"{stem}{branch}{_label(key)}")
        if node.below:
            _draw_below(node, stem + deeper, out)


def plain(tree: Tree) -> object:
    """Nested dicts and lists for JSON: siblings 0..n are a list; a name that is also a prefix has its leaf under ""."""
    if not tree.below:
        return tree.leaf
    keys = list(tree.below)
    if tree.leaf is None and all(_is_index(k) for k in keys) and max(map(int, keys)) < 2 * len(keys) + 8:
        items: list[object] = [None] * (max(map(int, keys)) + 1)
        for key, node in tree.below.items():
            items[int(key)] = plain(node)
        return items
    own = {} if tree.leaf is None else {"": tree.leaf}
    return own | {key: plain(node) for key, node in tree.below.items()}


def to_json(value: object) -> str:
    """One line of JSON, keys sorted; NaN and infinity as text, so that every reader accepts it."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"))


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return str(value) if isinstance(value, complex) else value


@lru_cache(maxsize=4096)
def _is_index(segment: str) -> bool:
    return segment.isdecimal() and segment.isascii() and (segment[0] != "0" or segment == "0")


def _label(segment: str) -> str:
    return f"[{segment}]" if _is_index(segment) else segment


def _in_order(tree: Tree) -> list[tuple[str, Tree]]:
    """Children in order of first mention, list items by number."""
    if len(tree.below) == 1 or not any(map(_is_index, tree.below)):
        return list(tree.below.items())
    named = [(k, t) for k, t in tree.below.items() if not _is_index(k)]
    listed = sorted(((k, t) for k, t in tree.below.items() if _is_index(k)), key=lambda kt: int(kt[0]))
    return named + listed


def _fold(rows: Iterable[_Row]) -> list[_Row]:
    """Rows under their labels, runs of list items that say the same as one."""
    out: list[_Row] = []
    run: tuple[int, int] | None = None  # first and last index of the row before, if it is a list item
    for key, said, below in rows:
        if not _is_index(key):
            run = None
            out.append((key, said, below))
        elif run is not None and run[1] + 1 == int(key) and out[-1][1:] == (said, below):
            run = run[0], int(key)
            out[-1] = (f"[{run[0]}-{run[1]}]", said, below)
        else:
            run = int(key), int(key)
            out.append((_label(key), said, below))
    return out


def _describe(leaf: object) -> str:
    if isinstance(leaf, str):
        return leaf
    if isinstance(leaf, Mapping):
        return " ".join(f"{k}={_number(v)}" for k, v in leaf.items())
    return "" if leaf is None else str(leaf)


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def nest(flat: Mapping[str, object]) -> dict[str, object]:
    """Nested dicts along the dots of the names. Raises ValueError where a name is also the prefix of another."""
    root: dict[str, object] = {}
    leaves: set[tuple[str, ...]] = set()
    for name, value in flat.items():
        *parents, last = name.split(".")
        node: dict[str, Any] = root
        for depth, segment in enumerate(parents):
            if (*parents[: depth + 1],) in leaves:
                prefix = ".".join(parents[: depth + 1])
                raise ValueError(f"'{prefix}' is a tensor and the prefix of '{name}'; a tree cannot hold both")
            node = node.setdefault(segment, {})
        if last in node:
            raise ValueError(f"'{name}' is a tensor and the prefix of others; a tree cannot hold both")
        node[last] = value
        leaves.add((*parents, last))
    return root
