"""Plans that Python hands over: mappings, lists and scalars as plain data, numpy's among them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import Any, cast

from brainsurgery_jax.errors import Diagnostic, PlanError, Span


class _NotPlainError(Exception):
    def __init__(self, path: str, message: str, hint: str):
        self.path, self.message, self.hint = path, message, hint


def plain_data(plan: Mapping[str, object], head: str = "", below: str = "") -> dict[str, object]:
    """A plan as None, bool, int, float, str, date, list and dict; numpy scalars and 0-d arrays become numbers.

    `head` and `below` name places, see `by_path`. Raises PlanError where the plan holds any other object.
    """
    try:
        return _plain(plan, "")
    except _NotPlainError as bad:
        span = Span(head + bad.path.removeprefix(below) or "the plan", 0, 1)
        raise PlanError([Diagnostic("value-type", bad.message, span, bad.hint)]) from None


def _plain(value: object, path: str) -> Any:
    match value:
        case None | bool() | date():
            return value
        case Mapping():
            entries = cast("Mapping[object, object]", value).items()
            return {_key(k, path): _plain(v, f"{path}.{k}".lstrip(".")) for k, v in entries}
        case list() | tuple():
            items = enumerate(cast("Sequence[object]", value))
            return [_plain(item, f"{path}[{i}]") for i, item in items]
    return _scalar(value, path)


def _key(key: object, path: str) -> object:
    found = _plain(key, path)
    if isinstance(found, list | dict):
        raise _refusal(path, f"a key must be a text, found {key!r}", "Write the key as text: `str(key)`.")
    return found


def _scalar(value: Any, path: str) -> object:
    """A number or a text: also one of numpy, and of a class of its own, as members of an enum are."""
    if getattr(value, "ndim", None) == 0:
        with suppress(TypeError, ValueError):  # JAX traces it
            value = value.item()
    match value:
        case bool():
            return value
        case str():
            return str.__str__(value)  # not what its class prints
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case _:
            pass
    found = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    hint = "Convert it: `str(path)`, `float(number)`, `array.tolist()`."
    raise _refusal(path, f"a plan holds texts, numbers, lists and mappings, found an object of type {found}", hint)


def _refusal(path: str, message: str, hint: str) -> _NotPlainError:
    return _NotPlainError(path, message, hint)


def read_item(item: object) -> str:
    """The path or the override that an argument of `load` is. Raises PlanError for what is neither."""
    if isinstance(item, str | os.PathLike):
        return str(cast("str | os.PathLike[str]", item))
    if not isinstance(item, list | tuple):
        found = f"an object of type {type(item).__name__}"
        hint = "Give the path of a YAML file, a mapping, or an override such as 'vars.x=2'."
    elif any(isinstance(i, str | os.PathLike) for i in cast("Sequence[object]", item)):
        found, hint = "a list of paths or overrides", "Give them one by one: `load(*items)`."
    else:
        found = "a list"
        hint = "Put the steps into a mapping: `load({'inputs': [PATH], 'transforms': steps, 'output': PATH})`."
    raise PlanError([Diagnostic("plan-not-a-mapping", f"a plan must be a mapping, but this is {found}", None, hint)])
