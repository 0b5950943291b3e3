"""The config.json beside an output: what the plan changes in it, and its dtype, which is kept true to the tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from brainsurgery_jax.config_patch import DTYPE_KEYS, KEYS, Change, apply_change, read_change
from brainsurgery_jax.dtypes import Aval, DType, parse_dtype
from brainsurgery_jax.errors import Refusal, StoreError, did_you_mean
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.state import World
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.store.detect import OutputKind
from brainsurgery_jax.store.peft import ADAPTER_CONFIG, IN_METADATA

CONFIG = "config.json"


def read_config(metadata: Mapping[str, str], origin: str | None, world: World) -> tuple[str, Any] | None:
    """What the config of a checkpoint holds, and the name of its file: of an adapter its own, which travels with the
    metadata, else that of a model. None if there is none. Raises Refusal."""
    found = (
        (ADAPTER_CONFIG, metadata.get(IN_METADATA))
        if IN_METADATA in metadata
        else (CONFIG, side_file(origin, CONFIG, world))
    )
    if found[1] is None:
        found = (ADAPTER_CONFIG, side_file(origin, ADAPTER_CONFIG, world))
    file, text = found
    try:
        return None if text is None else (file, json.loads(text))
    except ValueError as error:
        raise Refusal("io-input", f"the {file} of '{origin}' is not JSON: {error}", hint="Correct its text.") from error


def changed_config(
    output: Output, kind: OutputKind, tensors: Mapping[str, Expr], origin: str | None, world: World
) -> bytes | None:
    """The config.json of an output, where it differs from that of the checkpoint it comes from. Raises Refusal."""
    if not kind.directory:
        if output.config:
            message = f"'{kind.path}' is a single file, which has no {CONFIG}"
            hint = "Write to a folder: a path without suffix, or one that ends in a slash."
            raise Refusal("output-config", message, key="config", hint=hint)
        return None
    found = side_file(origin, CONFIG, world) if output.config or output.sidecars else None
    try:
        base = {} if found is None else json.loads(found)
    except ValueError as error:
        if not output.config:  # copied as it is
            return None
        hint = "Mend the file, or write the output without `config`."
        raise Refusal(
            "output-config", f"the {CONFIG} of '{origin}' is not JSON: {error}", key="config", hint=hint
        ) from error
    followed = _with_dtype(base, tensors, origin, world) if output.sidecars else base
    changed = apply_change(followed, change_of(output, base)) if output.config else followed
    if changed == base:
        return found if output.config else None
    return (json.dumps(changed, indent=2) + "\n").encode()


def change_of(output: Output, base: Any) -> Change:
    """The change that an output's `config` writes. Raises Refusal where it is half in full and half not."""
    mixed = [key for key in KEYS if key in output.config and not set(output.config) <= set(KEYS) and key not in base]
    if mixed:
        others = ", ".join(f"'{key}'" for key in output.config if key not in KEYS)
        message = f"'{mixed[0]}' stands beside {others}: a change in full has no keys but {', '.join(KEYS)}"
        hint = "Put the values to set under `patch`: `config: {remove: [...], patch: {KEY: VALUE}}`."
        raise Refusal("output-config", message, key="config", hint=hint)
    return read_change(output.config)


def doubts(output: Output, origin: str | None, world: World) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """What may not be meant in an output's `config`: the path of a key, what is told of it, and what to do."""
    found = side_file(origin, CONFIG, world) if output.config else None
    if found is None:
        return
    base = json.loads(found)
    change = change_of(output, base)
    whole = apply_change(base, change._replace(patch={}))
    lead = ("patch",) if change != Change(patch=output.config) else ()
    for place, near in _look_alikes(whole, change.patch, ()):
        message = f"'{'.'.join(place)}' is added: {CONFIG} has no such key. Did you mean '{near}'?"
        yield (*lead, *place), message, "A key that is to be new is right as it is."
    for place in _emptied(whole, change.patch, ()):
        key = ".".join(place)
        message = f"'{key}' is set to null, and stays in {CONFIG}: loaders may ask for its parts"
        yield (*lead, *place), message, f"To remove it write `config: {{remove: [{key}]}}`."


def _look_alikes(base: Any, patch: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in patch.items() if isinstance(base, dict) else ():
        if key in base and isinstance(value, Mapping):
            yield from _look_alikes(base[key], value, (*place, key))
        elif key not in base and (near := next((known for known in base if _is_like(key, known)), "")):
            yield (*place, key), near


def _is_like(key: str, known: str) -> bool:
    """Whether two keys have the same words but for letters: `bos_token_id` is not misspelt for `eos_token_id`."""
    words, others = key.lower().split("_"), known.lower().split("_")
    if len(words) != len(others):
        return "".join(words) == "".join(others)
    pairs = zip(words, others, strict=True)
    return all(a == b or (min(len(a), len(b)) > 3 and bool(did_you_mean(a, [b]))) for a, b in pairs)


def _emptied(base: Any, patch: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys that a patch sets to null, and that hold a mapping."""
    for key, value in patch.items() if isinstance(base, dict) else ():
        if isinstance(base.get(key), dict):
            if value is None:
                yield (*place, key)
            elif isinstance(value, Mapping):
                yield from _emptied(base[key], value, (*place, key))


def side_file(origin: str | None, name: str, world: World) -> bytes | None:
    """What a small file of a checkpoint holds; None if there is none. Raises Refusal."""
    if origin is None:
        return None
    try:
        return world.side_file(origin, name)
    except StoreError as bad:
        raise Refusal("io-input", f"{bad.path}: {bad.problem}", key="config", hint=bad.remedy) from bad


def _with_dtype(base: Any, tensors: Mapping[str, Expr], origin: str | None, world: World) -> Any:
    """The config with the dtype of the tensors, if it named that of the checkpoint's tensors and these have another.

    Loaders take a model in the dtype that its config names: after a cast, a stale one would undo it.
    """
    if origin is None or not any(True for _ in _dtypes(base)):
        return base
    after = _only_float(e.aval for e in tensors.values() if e.kind != "poison")
    before = _only_float(info.aval for info in world.open(origin).header.tensors.values())
    return base if after is None or before is None or after == before else _renamed(base, before, after)


def _dtypes(base: Any) -> Iterator[str]:
    """The dtypes that a config and its parts name."""
    if isinstance(base, dict):
        yield from (base[key] for key in DTYPE_KEYS if isinstance(base.get(key), str))
        for part in _parts(base):
            yield from _dtypes(base[part])


def _parts(base: Mapping[str, Any]) -> list[str]:
    """The keys of the parts of a config that describe a model within the model."""
    return [key for key, value in base.items() if key.endswith("_config") and isinstance(value, dict)]


def _renamed(base: Mapping[str, Any], before: DType, after: DType) -> dict[str, Any]:
    own = {key: after.name for key in DTYPE_KEYS if isinstance(base.get(key), str) and parse_dtype(base[key]) == before}
    return {**base, **own, **{key: _renamed(base[key], before, after) for key in _parts(base)}}


def _only_float(avals: Iterable[Aval]) -> DType | None:
    """The one floating dtype of a model's tensors, if there is just one that models are loaded in."""
    found = {aval.dtype for aval in avals if aval.dtype.kind == "float"}
    return found.pop() if len(found) == 1 and min(d.bits for d in found) >= 16 else None
