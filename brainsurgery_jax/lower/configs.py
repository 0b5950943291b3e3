"""The config.json beside an output: what the plan changes in it, and its dtype, which is kept true to the tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from brainsurgery_jax.dtypes import Aval, DType, parse_dtype
from brainsurgery_jax.errors import Refusal, StoreError, did_you_mean
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.state import World
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.store.detect import OutputKind
from brainsurgery_jax.store.peft import ADAPTER_CONFIG, IN_METADATA

CONFIG = "config.json"
DTYPE_KEYS = ("torch_dtype", "dtype")


def read_config(metadata: Mapping[str, str], origin: str | None, world: World) -> tuple[str, Any] | None:
    """What the config of a checkpoint holds, and the name of its file: of an adapter its own, which travels with the
    metadata, else that of a model. None if there is none. Raises Refusal."""
    found = (ADAPTER_CONFIG, metadata.get(IN_METADATA)) if IN_METADATA in metadata else (CONFIG, _read(origin, world))
    if found[1] is None:
        found = (ADAPTER_CONFIG, _read(origin, world, ADAPTER_CONFIG))
    file, text = found
    try:
        return None if text is None else (file, json.loads(text))
    except ValueError as error:
        raise Refusal("io-input", f"the {file} of '{origin}' is not JSON: {error}", hint="Mend the file.") from error


def changed_files(
    output: Output, kind: OutputKind, tensors: Mapping[str, Expr], origin: str | None, world: World
) -> dict[str, bytes]:
    """The small files of an output that differ from those of the checkpoint it comes from. Raises Refusal."""
    if not kind.directory:
        if output.config:
            message = f"'{kind.path}' is a single file, which has no {CONFIG}"
            hint = "Write to a folder: a path without suffix, or one that ends in a slash."
            raise Refusal("output-config", message, key="config", hint=hint)
        return {}
    found = _read(origin, world) if output.config or output.sidecars else None
    try:
        base = {} if found is None else json.loads(found)
    except ValueError as error:
        if not output.config:  # copied as it is
            return {}
        hint = "Mend the file, or write the output without `config`."
        raise Refusal(
            "output-config", f"the {CONFIG} of '{origin}' is not JSON: {error}", key="config", hint=hint
        ) from error
    patched = _patched(_with_dtype(base, tensors, origin, world) if output.sidecars else base, output.config)
    if patched == base:
        return {CONFIG: found} if output.config and found is not None else {}
    return {CONFIG: (json.dumps(patched, indent=2) + "\n").encode()}


def look_alikes(output: Output, origin: str | None, world: World) -> Iterator[tuple[tuple[str, ...], str]]:
    """The paths of the keys that an output's `config` adds beside one that is nearly the same; with that one."""
    found = _read(origin, world) if output.config else None
    return _look_alikes(json.loads(found), output.config, ()) if found is not None else iter(())


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


def _read(origin: str | None, world: World, name: str = CONFIG) -> bytes | None:
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
    keys = [key for key in DTYPE_KEYS if isinstance(base, dict) and isinstance(base.get(key), str)]
    if not keys or origin is None:
        return base
    after = _only_float(e.aval for e in tensors.values() if e.kind != "poison")
    before = _only_float(info.aval for info in world.open(origin).header.tensors.values())
    if after is None or before is None or after == before:
        return base
    return base | {key: after.name for key in keys if parse_dtype(base[key]) == before}


def _only_float(avals: Iterable[Aval]) -> DType | None:
    """The one floating dtype of a model's tensors, if there is just one that models are loaded in."""
    found = {aval.dtype for aval in avals if aval.dtype.kind == "float"}
    return found.pop() if len(found) == 1 and min(d.bits for d in found) >= 16 else None


def _patched(base: Any, patch: Any) -> Any:
    """A config with a plan's changes in it: mappings key by key, anything else replaced."""
    if not (isinstance(base, dict) and isinstance(patch, Mapping)):
        return patch
    return {**base, **{key: _patched(base.get(key, {}), value) for key, value in patch.items()}}
