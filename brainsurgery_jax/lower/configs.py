"""The configs of an alias and of an output: the file beside the checkpoint, the changes of the plan, and the dtype in
config.json, which is kept consistent with the tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from brainsurgery_jax.config_patch import DTYPE_KEYS, Doubt, apply_change, find_doubts, is_same, read_for
from brainsurgery_jax.dtypes import Aval, DType, parse_dtype
from brainsurgery_jax.errors import Refusal, StoreError
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.lower.state import Extras, World
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.store.detect import OutputKind
from brainsurgery_jax.store.peft import ADAPTER_CONFIG, IN_METADATA

CONFIG = "config.json"


def read_config(extras: Extras, world: World) -> tuple[str, Any] | None:
    """The name and current content of the config of an alias: for an adapter its own config, which may be stored in the
    metadata, else that of the model. None if there is none. Raises Refusal."""
    if (changed := _last_changed(extras)) is not None:
        return changed
    found = (
        (ADAPTER_CONFIG, extras.metadata.get(IN_METADATA))
        if IN_METADATA in extras.metadata
        else (CONFIG, side_file(extras.origin, CONFIG, world))
    )
    if found[1] is None:
        found = (ADAPTER_CONFIG, side_file(extras.origin, ADAPTER_CONFIG, world))
    file, text = found
    try:
        return None if text is None else (file, parse_json(text))
    except ValueError as error:
        message = f"the {file} of '{extras.origin}' is not JSON: {error}"
        raise Refusal("io-input", message, hint="Correct its text.") from error


def _mapping(text: str | bytes) -> dict[str, Any]:
    """The object of a JSON text. Raises ValueError, for other values, too."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not an object")
    return found


def _last_changed(extras: Extras) -> tuple[str, Any] | None:
    """The config that steps changed; if they changed two, that of the adapter."""
    files = (ADAPTER_CONFIG, CONFIG) if IN_METADATA in extras.metadata else (CONFIG, ADAPTER_CONFIG)
    return next(((file, extras.configs[file]) for file in files if file in extras.configs), None)


def change_config(
    output: Output, kind: OutputKind, tensors: Mapping[str, Expr], extras: Extras, world: World
) -> bytes | None:
    """The config.json of an output, or None if it equals that of the original checkpoint. Raises Refusal."""
    if not kind.directory:
        if output.config:
            message = f"'{kind.path}' is a single file, which has no {CONFIG}"
            hint = "Write to a folder: a path without suffix, or one that ends in a slash."
            raise Refusal("output-config", message, key="config", hint=hint)
        return None
    own = extras.configs.get(CONFIG)
    asked = bool(output.config) or own is not None
    found = side_file(extras.origin, CONFIG, world) if asked or output.sidecars else None
    try:
        original = {} if found is None else _mapping(found)
    except ValueError as error:
        if not asked:  # copied as it is
            return None
        hint = "Correct the file, or write the output without `config`."
        raise Refusal(
            "output-config", f"the {CONFIG} of '{extras.origin}' is not JSON: {error}", key="config", hint=hint
        ) from error
    base = original if own is None else own
    followed = _with_dtype(base, tensors, extras.origin, world) if output.sidecars else base
    changed = _change(followed, output, base) if output.config else followed
    if is_same(changed, original):
        return found if asked else None
    return dump_config(changed)


def dump_config(config: Any) -> bytes:
    """The text of a config file."""
    return (json.dumps(config, indent=2) + "\n").encode()


def _change(config: Any, output: Output, base: Any) -> Any:
    """A config with the change in an output's key `config`. Raises Refusal for that key."""
    try:
        return apply_change(config, read_for(output.config, base))
    except Refusal as bad:
        message = bad.message if bad.key == "config" else f"{bad.key}: {bad.message}"
        raise Refusal(bad.code, message, key="config", hint=bad.hint) from bad


def doubts(output: Output, extras: Extras, world: World) -> Iterator[Doubt]:
    """What may not be meant in an output's `config`, with the keys that lead to it there."""
    if not output.config:
        return
    base: Any = extras.configs.get(CONFIG)
    if base is None:
        if (found := side_file(extras.origin, CONFIG, world)) is None:
            return
        base = parse_json(found)
    change = read_for(output.config, base)
    lead = ("patch",) if change.patch != output.config else ()
    for doubt in find_doubts(base, change, CONFIG):
        yield doubt._replace(place=(*lead, *doubt.place))


def side_file(origin: str | None, name: str, world: World) -> bytes | None:
    """The content of a side file of a checkpoint; None if it does not exist. Raises Refusal."""
    if origin is None:
        return None
    try:
        return world.side_file(origin, name)
    except StoreError as bad:
        raise Refusal("io-input", f"{bad.path}: {bad.problem}", key="config", hint=bad.remedy) from bad


def _with_dtype(base: Any, tensors: Mapping[str, Expr], origin: str | None, world: World) -> Any:
    """The config with its dtype updated, if it named the dtype of the original tensors and the new ones have another.

    Loaders convert a model to the dtype in its config: a stale one would undo a cast.
    """
    if origin is None or not any(True for _ in _dtypes(base)):
        return base
    after = _only_float(e.aval for e in tensors.values() if not e.is_poison)
    before = _only_float(info.aval for info in world.open(origin).header.tensors.values())
    return base if after is None or before is None or after == before else _rename_dtypes(base, before, after)


def _dtypes(base: Any) -> Iterator[str]:
    """The dtypes named in a config and its sections."""
    if isinstance(base, dict):
        yield from (base[key] for key in DTYPE_KEYS if isinstance(base.get(key), str))
        for part in _parts(base):
            yield from _dtypes(base[part])


def _parts(base: Mapping[str, Any]) -> list[str]:
    """The keys of the sections of a config that describe a model within the model."""
    return [key for key, value in base.items() if key.endswith("_config") and isinstance(value, dict)]


def _rename_dtypes(base: Mapping[str, Any], before: DType, after: DType) -> dict[str, Any]:
    own = {key: after.name for key in DTYPE_KEYS if isinstance(base.get(key), str) and parse_dtype(base[key]) == before}
    return {**base, **own, **{key: _rename_dtypes(base[key], before, after) for key in _parts(base)}}


def _only_float(avals: Iterable[Aval]) -> DType | None:
    """The floating dtype of a model's tensors, if all share one that models are loaded in."""
    found = {aval.dtype for aval in avals if aval.dtype.is_float}
    return found.pop() if len(found) == 1 and min(d.bits for d in found) >= 16 else None
