"""Operators of `assert` on the small files beside a checkpoint."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from brainsurgery_jax.op import Name, assertion
from brainsurgery_jax.protocol import Known, Verdict, View

Setting = Annotated[Any, Field(description="a value of YAML; null: the key is null, or not there")]
Settings = Annotated[tuple[Any, ...], Field(description="values, one of which it must be")]

MOST_CHARACTERS = 200
"""Of a value in a message."""


@assertion()
def config(view: View, *, of: Name, is_: Setting = None, in_: Settings = ()) -> Verdict:
    """A key in config.json of a model (adapter_config.json of an adapter) has the value `is`, or one of those `in`.

    `of` is the key, with dots to one within another, behind the alias. The file is that of the checkpoint which the
    alias came from; a key that it does not have is null.
    Example: `assert: {config: {of: num_hidden_layers, is: 24}}`
    """
    found = view.config(of.alias, "of")
    key = view.literal(of, "of")
    if found is None:
        return Known(False, f"'{of.alias}' came without a config.json, so '{key}' is not known")
    file, settings = found
    value = _value(settings, key)
    allowed = [*in_, *([is_] if is_ is not None or not in_ else [])]
    if any(_is_same(value, one) for one in allowed):
        return Known(True)
    wanted = f"not {_shown(allowed[0])}" if len(allowed) == 1 else f"none of {', '.join(map(_shown, allowed))}"
    return Known(False, f"'{key}' in {file} of '{of.alias}' is {_shown(value)}, {wanted}")


def _value(settings: Any, path: str) -> Any:
    """What stands under a key; None if nothing does."""
    for key in path.split("."):
        if isinstance(settings, list) and key.isdecimal() and int(key) < len(settings):
            settings = settings[int(key)]
        else:
            settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values are the same in JSON, where true is not 1, and 16 is 16.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
