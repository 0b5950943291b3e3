"""Notes on a checkpoint that is to be written: where its config says otherwise than the names and shapes beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from brainsurgery_jax.config_patch import Change, merge_changes, patch_mapping, read_change, write_change
from brainsurgery_jax.errors import Diagnostic
from brainsurgery_jax.families.adapters import adapter_differences, read_adapter
from brainsurgery_jax.families.compare import differences
from brainsurgery_jax.families.model import ConfigDifference
from brainsurgery_jax.graph.expr import walk
from brainsurgery_jax.lower.configs import CONFIG
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.lower.state import World
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.plan.source import flow_yaml
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.folder import ADAPTER_CONFIG
from brainsurgery_jax.store.weight_names import WeightFile, read_name


def consistency_notes(made: Publication, output: Output, world: World, label: str = "output") -> Iterator[Diagnostic]:
    """The notes on a publication; `output` is what the plan says of it, as an output or a step `save` (`label`)."""
    if not made.directory or any(expr.is_poison for expr in made.tensors.values()):
        return
    avals = {name: expr.aval for name, expr in made.tensors.items()}
    if (config := _config(made, CONFIG, world)) is not None:
        origins = {name: expr.name for name, expr in made.tensors.items() if expr.is_leaf}
        change = read_change(output.config)
        found = differences(config, avals, origins)
        if found and (shard := _lone_shard(made)):
            yield _part_note(made, *shard, label)
        else:
            yield from _notes(found, change, "config", made, output, label)
    if (config := _config(made, ADAPTER_CONFIG, world)) is not None:
        own = made.format.config_file == ADAPTER_CONFIG
        change = read_change(made.options.get("config") or {}) if own else None
        yield from _notes(adapter_differences(config, read_adapter(avals)), change, "options", made, output, label)


def _config(made: Publication, name: str, world: World) -> Mapping[str, Any] | None:
    """What a config of the output will hold; None if there will be none, or none that is understood."""
    text = made.side_files.get(name)
    if text is None and made.sidecars is not None and name in made.sidecars.copied:
        text = world.side_file(made.sidecars.folder, name)
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _lone_shard(made: Publication) -> tuple[str, WeightFile] | None:
    """The path of the only file that the tensors come from, and what its name tells, if it is one of several shards."""
    paths = {e.source.header.path for e in walk(made.tensors.values()) if e.source is not None}
    if len(paths) != 1:
        return None
    path = parse_address(paths.pop()).path
    file = read_name(os.path.basename(path))
    return (path, file) if file.number is not None and file.total != 1 else None


def _part_note(made: Publication, path: str, file: WeightFile, label: str) -> Diagnostic:
    """The note on a part of a model, whose tensors do not say how large the whole is."""
    message = f"'{file.name}' is one of {file.total} shards: this is a part of the model that config.json describes"
    hint = f"Name the folder with all shards as the input to write the whole model: '{os.path.dirname(path) or '.'}'."
    return Diagnostic("config-differs", f"{label}: {made.path}: {message}", made.span, hint, "note")


def _notes(
    found: Iterable[ConfigDifference], change: Change | None, key: str, made: Publication, output: Output, word: str
) -> Iterator[Diagnostic]:
    """A note for each difference, with the change that settles all of them."""
    patch: Mapping[str, Any] = {}
    for each in (found := tuple(found)):
        patch = patch_mapping(patch, each.patch)
    label = f"{word}.{key}" if (key,) in output.spans else word
    span = output.spans.get((key,), output.span)
    for each in found:
        hint = _remedy(each, patch, change, key, _PLACES[word], alone=len(found) == 1)
        yield Diagnostic("config-differs", f"{label}: {made.path}: {each.message}", span, hint, "note")


def _remedy(
    each: ConfigDifference, patch: Mapping[str, Any], change: Change | None, key: str, place: str, *, alone: bool
) -> str:
    """What to write; of a patch all of it, so that one change settles every difference."""
    if each.moves:
        steps = [f"- move: {flow_yaml({'from': old, 'to': new})}" for old, new in each.moves]
        return "\n".join(["Number them anew, as the last steps before it is written:", *steps])
    if not each.patch:
        return _CLASSES if each.classes else _NO_VALUE
    if change is None:
        return f"A step `save` copies the config as it is: write an output with `config: {flow_yaml(dict(patch))}`."
    config = f"config: {flow_yaml(write_change(merge_changes(change, patch)))}"
    spelled = config if key == "config" else f"options: {{{config}}}"
    return f"Write `{spelled}` in {place}" + ("." if alone else ", which settles all that can be settled so.")


_PLACES = {"output": "the output", "save": "the step `save`"}
_CLASSES = (
    "Write `model_type`, `architectures` and the keys of a class that has them into `config`, and name the tensors as "
    "that class does."
)
_NO_VALUE = "No value of the config says so: change the tensors."
