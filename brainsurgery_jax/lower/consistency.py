"""Notes on an output whose config disagrees with its names and shapes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from brainsurgery_jax.codes import CONFIG_KEY, quantized_among
from brainsurgery_jax.config_patch import merge_changes, patch_mapping, read_change, write_change
from brainsurgery_jax.errors import Diagnostic, is_converting, worded
from brainsurgery_jax.families.adapters import adapter_differences, read_adapter
from brainsurgery_jax.families.compare import differences
from brainsurgery_jax.families.model import ConfigDifference
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.lower.configs import CONFIG
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.lower.quantized_lists import list_differences
from brainsurgery_jax.lower.state import State, World
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.plan.source import flow_yaml
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.folder import ADAPTER_CONFIG
from brainsurgery_jax.store.weight_names import read_name
from brainsurgery_jax.wording import few


def consistency_notes(
    made: Publication, output: Output, state: State, world: World, label: str
) -> Iterator[Diagnostic]:
    """The notes on a publication. `output` is its entry in the plan: an output, or a step `save` (`label`)."""
    if not made.directory or any(expr.is_poison for expr in made.tensors.values()):
        return
    avals = {name: expr.aval for name, expr in made.tensors.items()}
    if (config := _config(made, CONFIG, world)) is not None:
        origins = {name: expr.name for name, expr in made.tensors.items() if expr.is_leaf}
        found = differences(config, avals, origins)
        if found and (shards := _some_shards(made, state)):
            yield _part_note(made, shards, label)
        else:
            listed = list_differences(config, made.tensors, _configs_before(state, world))
            found = (*found, *_unsaid_quantization(config, made, state, world), *listed)
            yield from _notes(found, _write_config(output, label), "config", made, output, label)
    if (config := _config(made, ADAPTER_CONFIG, world)) is not None:
        adapter = read_adapter(avals)
        found = adapter_differences(config, adapter)
        remedy = _write_adapter_config(made, output, label)
        yield from _notes(found, remedy, "options", made, output, label)
        if output.format is None and made.format.config_file != ADAPTER_CONFIG and adapter.factors:
            yield _unfound_note(made, output, label)


def _unsaid_quantization(
    config: Mapping[str, Any], made: Publication, state: State, world: World
) -> Iterator[ConfigDifference]:
    """That codes are written with a config that says nothing of them, although that of their checkpoint does."""
    found = None if CONFIG_KEY in config else next(_unchanged_codes(made), None)
    if found is None:
        return
    name, leaf = found
    said = _configs_before(state, world)(leaf)
    if said is not None and CONFIG_KEY in said:
        message = f"config.json has no {CONFIG_KEY}, but '{name}' is quantized, as that of its checkpoint says"
        yield ConfigDifference(message, {CONFIG_KEY: said[CONFIG_KEY]})


def _configs_before(state: State, world: World) -> Callable[[Expr], Mapping[str, Any] | None]:
    """What finds the config beside the checkpoint of a leaf."""
    read = cache(lambda origin: _parse(world.side_file(origin, CONFIG)))

    def find(leaf: Expr) -> Mapping[str, Any] | None:
        origins = (s.extras.origin for s in state.spaces.values() if (s.original or {}).get(leaf.name) is leaf)
        origin = next(origins, None)
        return None if origin is None else read(origin)

    return find


def _unchanged_codes(made: Publication) -> Iterator[tuple[str, Expr]]:
    """The tensors that are codes of a checkpoint as they stand, beside their scales."""
    for codes in quantized_among({name: expr.aval.dtype for name, expr in made.tensors.items()}):
        if (expr := made.tensors[codes.name]).is_leaf:
            yield codes.name, expr


def _unfound_note(made: Publication, output: Output, label: str) -> Diagnostic:
    """The note on an adapter in a folder where PEFT does not find its tensors."""
    message = f"{label}: {made.path}: adapter_config.json makes it an adapter, but PEFT will not find its tensors"
    hint = f"Write `format: peft` in {_PLACES[label]}."
    return Diagnostic("adapter-unfound", message, made.span, hint, "note")


def _config(made: Publication, name: str, world: World) -> Mapping[str, Any] | None:
    """The content of a config of the output; None if there will be none, or none that can be parsed."""
    text = made.side_files.get(name)
    if text is None and made.sidecars is not None and name in made.sidecars.copied:
        text = world.side_file(made.sidecars.folder, name)
    return _parse(text)


def _parse(text: bytes | None) -> Mapping[str, Any] | None:
    """The content of a config; None if there is none, or none that can be parsed."""
    try:
        found = None if text is None else parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class ShardSet(NamedTuple):
    """The common part of the paths of the shards of one model."""

    folder: str
    stem: str
    variant: str
    total: int | None


def _shard_set(path: str) -> ShardSet:
    file = read_name(os.path.basename(path))
    return ShardSet(os.path.dirname(path), file.stem, file.variant, file.total)


def _path_of(address: str) -> str:
    """The path of an address, without the slash that a folder may end in."""
    return os.path.normpath(parse_address(address).path)


def _some_shards(made: Publication, state: State) -> tuple[str, ...]:
    """The paths of the files that the tensors come from, if these are some of the shards of one model and the plan
    reads no others (it may have deleted their tensors)."""
    paths = {e.source.header.path: None for e in walk(made.tensors.values()) if e.is_leaf}
    files = {path: read_name(os.path.basename(path)) for path in map(_path_of, paths)}
    sets = {_shard_set(path) for path in files}
    if len(sets) != 1 or any(file.number is None for file in files.values()):
        return ()
    ((*_, total),) = sets
    read = {*files, *_paths_read(state, next(iter(sets)))}
    return () if total == len(read) else tuple(files)


def _paths_read(state: State, of: ShardSet) -> Iterator[str]:
    """The shards of a set that the plan reads."""
    originals = (space.names if space.original is None else space.original for space in state.spaces.values())
    paths = {e.source.header.path for names in originals for e in names.values() if e.is_leaf}
    return (file for path in paths if _shard_set(file := _path_of(path)) == of)


def _part_note(made: Publication, paths: Sequence[str], label: str) -> Diagnostic:
    """The note on a part of a model, from whose tensors the size of the whole model cannot be derived."""
    total = read_name(os.path.basename(paths[0])).total
    number = "is one" if len(paths) == 1 else f"are {len(paths)}"
    names = few([f"'{os.path.basename(path)}'" for path in paths])
    message = f"{names} {number} of {total} shards: this is a part of the model that config.json describes"
    folder = os.path.dirname(paths[0]) or "."
    hint = f"Name the folder with all shards as the input to write the whole model: '{folder}'."
    return Diagnostic("config-differs", f"{label}: {made.path}: {message}", made.span, hint, "note")


def _notes(
    found: Sequence[ConfigDifference], remedy: Remedy, key: str, made: Publication, output: Output, word: str
) -> Iterator[Diagnostic]:
    """A note for each difference. Its hint has one config change that resolves all of them."""
    patch: Mapping[str, Any] = {}
    for each in found:
        patch = patch_mapping(patch, each.patch)
    tail = "." if len(found) == 1 else ", which settles all that can be settled so."
    label = f"{word}.{key}" if (key,) in output.spans else word
    span = output.spans.get((key,), output.span)
    for each in found:
        hint = remedy(patch) + tail if each.patch and not each.moves else _other_remedy(each)
        yield Diagnostic("config-differs", f"{label}: {made.path}: {each.message}", span, hint, "note")


def _other_remedy(each: ConfigDifference) -> str:
    """The hint for a difference that no change to the config resolves."""
    if each.moves:
        steps = [f"- move: {flow_yaml({'from': old, 'to': new})}" for old, new in each.moves]
        head = "Number them anew, as the last steps before it is written:"
        return "\n".join([_NUMBER_FIRST if is_converting() else head, *steps])
    return _CLASSES if each.classes else _NO_VALUE


Remedy = Callable[[Mapping[str, Any]], str]
"""The beginning of a hint that contains a patch: always the whole patch, so that one change resolves every
difference."""


def _write_config(output: Output, word: str) -> Remedy:
    """The patch in the key `config` of an output; for a conversion, in the config of its source."""
    if is_converting():
        copy = worded(shell="`--config COPY`", python="`config=COPY`")
        return lambda patch: (
            f"Correct config.json of the source, or a copy that you name by {copy}: `{flow_yaml(patch)}`"
        )
    change = read_change(output.config)
    return lambda patch: f"Write `config: {flow_yaml(write_change(merge_changes(change, patch)))}` in {_PLACES[word]}"


def _write_adapter_config(made: Publication, output: Output, word: str) -> Remedy:
    """The patch in the options of an adapter; for an output of another format, as a step that changes its config."""
    if made.format.config_file != ADAPTER_CONFIG:
        alias = {} if output.alias is None else {"alias": output.alias}
        return lambda patch: f"Add `- config: {flow_yaml({**alias, 'patch': dict(patch)})}` before it is written"
    change = read_change(made.options.get("config") or {})
    return lambda patch: (
        f"Write `options: {{config: {flow_yaml(write_change(merge_changes(change, patch)))}}}` in {_PLACES[word]}"
    )


_NUMBER_FIRST = "Number them anew by a plan with these steps, and convert what it writes:"
_PLACES = {"output": "the output", "save": "the step `save`"}
_CLASSES = (
    "Write `model_type`, `architectures` and the keys of a class that has them into `config`, and name the tensors as "
    "that class does."
)
_NO_VALUE = "No value of the config says so: change the tensors."
