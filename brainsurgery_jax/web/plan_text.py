"""Steps and inputs written into the text of a plan, whose other lines and comments stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from brainsurgery_jax.plan.source import dump_yaml


def add_steps(text: str, steps: Sequence[object]) -> str:
    """The text with steps at the end of its transforms."""
    return _add(text, "transforms", steps) if steps else text


def add_input(text: str, path: str) -> str:
    """The text with a checkpoint at the end of its inputs; the first needs no alias, others get one."""
    found = _data(text).get("inputs")
    if not found:
        return _add(text, "inputs", [path], first=True)
    known = [str(item).partition("::")[0] for item in found] if isinstance(found, list) else []
    alias = next(name for n in range(2, 100) if (name := f"model_{n}") not in known)
    return _add(_name_first(text), "inputs", [f"{alias}::{path}"])


def _name_first(text: str) -> str:
    """The text with the alias `model` for an only input without one: of several, each needs one."""
    node = _node_at(text, "inputs")
    first = node.value[0] if isinstance(node, yaml.SequenceNode) and len(node.value) == 1 else None
    if not isinstance(first, yaml.ScalarNode) or "::" in first.value:
        return text
    at = first.start_mark.index + (1 if first.style in ("'", '"') else 0)
    return f"{text[:at]}model::{text[at:]}"


def move_step(text: str, at: int, by: int) -> str:
    """The text with a step and the lines below it moved up (-1) or down (1); as it is where that cannot be."""
    spans, lines = _spans(text), text.splitlines()
    first, second = sorted((at, at + by))
    if first < 0 or second >= len(spans):
        return text
    (start, middle), (_, end) = spans[first], spans[second]
    return "\n".join([*lines[:start], *lines[middle:end], *lines[start:middle], *lines[end:]]) + "\n"


def remove_step(text: str, at: int) -> str:
    """The text without a step; as it is where there is none."""
    spans, lines = _spans(text), text.splitlines()
    if not 0 <= at < len(spans):
        return text
    start, end = spans[at]
    kept = [*lines[:start], *lines[end:]]
    if len(spans) == 1:  # a bare key would hold nothing
        kept = [line for line in kept if line.rstrip() != "transforms:"]
    return "\n".join(kept) + "\n"


def _spans(text: str) -> list[tuple[int, int]]:
    """First line and end of each step of a block list; none if the steps are written in brackets."""
    node = _node_at(text, "transforms")
    if not isinstance(node, yaml.SequenceNode) or node.flow_style or not node.value:
        return []
    lines, column = text.splitlines(), node.start_mark.column
    starts = [_line_of_dash(lines, column, item.start_mark.line) for item in node.value]
    ends = [*starts[1:], _end_of_block(lines, node)]
    return list(zip(starts, ends, strict=True)) if len(set(starts)) == len(starts) else []


def _line_of_dash(lines: list[str], column: int, at: int) -> int:
    """The line with the dash of an item of a block list, which may stand above the item."""
    while lines[at][:column].strip() or lines[at][column : column + 1] != "-":
        at -= 1
    return at


def _end_of_block(lines: list[str], node: yaml.SequenceNode) -> int:
    """The line after the last that belongs to a block list."""
    last = node.value[-1]
    at = last.end_mark.line + (1 if last.end_mark.column else 0)
    while at and not lines[at - 1].strip():
        at -= 1
    return at


def _data(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _add(text: str, key: str, items: Sequence[object], *, first: bool = False) -> str:
    """The text with items at the end of the list at a key of the document."""
    lines = text.splitlines()
    node = _node_at(text, key)
    if isinstance(node, yaml.SequenceNode) and node.value and node.flow_style:
        end = node.end_mark.index - 1
        comma = "" if text[:end].rstrip().endswith(",") else ", "
        brackets = yaml.safe_dump([*items], default_flow_style=True, width=1 << 20, allow_unicode=True, sort_keys=False)
        return f"{text[:end]}{comma}{brackets.strip()[1:-1]}{text[end:]}"
    made = dump_yaml([*items]).rstrip().splitlines()
    if isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        indent = " " * node.start_mark.column
        at = _end_of_block(lines, node)
        return "\n".join([*lines[:at], *(indent + line for line in made), *lines[at:]]) + "\n"
    block = [f"{key}:", *("  " + line for line in made)]
    kept = [line for line in lines if not line.startswith(f"{key}:")] if _is_bare(node) else lines
    return "\n".join([*block, *kept] if first else [*kept, *block]) + "\n"


def _is_bare(node: yaml.Node | None) -> bool:
    """Whether a key stands there with nothing below it."""
    return node is not None and not node.value


def _node_at(text: str, key: str) -> yaml.Node | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    entries = root.value if isinstance(root, yaml.MappingNode) else ()
    return next((value for name, value in entries if name.value == key), None)
