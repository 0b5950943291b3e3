"""Steps and inputs written into the text of a plan, whose other lines and comments stay as they are."""

from __future__ import annotations

from typing import Any

import yaml

from brainsurgery_jax.plan.source import dump_yaml


def add_step(text: str, step: dict[str, Any]) -> str:
    """The text with a step at the end of its transforms."""
    return _add(text, "transforms", step)


def add_input(text: str, path: str) -> str:
    """The text with a checkpoint at the end of its inputs; the first needs no alias, others get one."""
    found = _data(text).get("inputs")
    if not found:
        return _add(text, "inputs", path, first=True)
    known = [str(item).partition("::")[0] for item in found] if isinstance(found, list) else []
    alias = next(name for n in range(2, 100) if (name := f"model_{n}") not in known)
    return _add(text, "inputs", f"{alias}::{path}")


def _data(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _add(text: str, key: str, item: object, *, first: bool = False) -> str:
    """The text with an item at the end of the list at a key of the document."""
    lines = text.splitlines()
    node = _node_at(text, key)
    made = dump_yaml([item]).rstrip().splitlines()
    if isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        last = node.value[-1]
        indent = " " * node.start_mark.column
        at = last.end_mark.line + (1 if last.end_mark.column else 0)
        while at and not lines[at - 1].strip():
            at -= 1
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
