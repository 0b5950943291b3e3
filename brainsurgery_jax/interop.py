"""Checkpoints and the trees of JAX programs: Flax modules filled from files, pytrees written to files.

Names are key paths joined by dots, as everywhere: what `plan.apply` calls a leaf is what a file calls it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple, TypedDict, Unpack

from brainsurgery_jax._lazy import jax, jnp, nnx, np
from brainsurgery_jax.api import Report, load
from brainsurgery_jax.apply.filling import EXACT, Filling, Matches, checked, match, report
from brainsurgery_jax.apply.key_trees import take_apart
from brainsurgery_jax.apply.names import Named, aval_of, name_leaves
from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.nametree import module_of, nest
from brainsurgery_jax.prefixes import Shift, shift_between
from brainsurgery_jax.store.detect import output_kind
from brainsurgery_jax.store.formats import find_format
from brainsurgery_jax.store.io.in_memory import MemorySource
from brainsurgery_jax.store.key_tree import NO_TREE
from brainsurgery_jax.tensors import Tensors
from brainsurgery_jax.world import Files

TREE = "<pytree>"
"""What messages call a tree that has no path."""

Config = Mapping[str, object] | str | None
"""A config.json: its content, or its path."""


def to_nnx(checkpoint: Tensors, model: Any, *, cast: bool = False, lift: bool = False, filling: Filling = EXACT) -> Any:
    """A module like `model`, which may be abstract (`nnx.eval_shape`), with the leaves of a checkpoint. `lift`: these
    may lie below keys that the model does not have. `filling`: what becomes of leaves and tensors without a partner."""
    graph, random, state = nnx.split(model, nnx.RngState, ...)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree_util.tree_leaves(random)):
        found = "the module is abstract, and so would its random streams stay: no checkpoint of parameters holds them"
        hint = "Give a module with streams of its own, `to_nnx(make())`, not `nnx.eval_shape(make)`."
        raise PlanError([Diagnostic("tree-differs", found, hint=hint)])
    streams = name_leaves("model", random).names
    tree = Target(name_leaves("model", state), "model", "to_nnx", streams)
    return nnx.merge(graph, random, _fill(checkpoint, tree, filling, cast=cast, lift=lift))


def to_linen(
    checkpoint: Tensors, template: Any = None, *, cast: bool = False, lift: bool = False, filling: Filling = EXACT
) -> Any:
    """The variables of a Linen module: nested dicts, or the structure of `template`; the others as in `to_nnx`."""
    if template is None:
        return nest({name: _put(checkpoint[name], None) for name in checkpoint})
    tree = Target(name_leaves("template", template), "template", "to_linen")
    return _fill(checkpoint, tree, filling, cast=cast, lift=lift)


class Target(NamedTuple):
    """A tree to be filled, what it is called, by which call, and the names of its streams that are passed over."""

    tree: Named
    what: str
    call: str
    streams: tuple[str, ...] = ()


def _fill(checkpoint: Tensors, target: Target, filling: Filling, *, cast: bool, lift: bool) -> Any:
    """The tree with the leaves of the checkpoint. Raises PlanError with every leaf that does not fit."""
    tree, what = target.tree, target.what
    found = shift_between(checkpoint.avals, tree.tensors)
    if found is not None and lift and not found.add:
        checkpoint = checkpoint.below(found.drop.removesuffix("."))
    elif found is not None:
        raise PlanError([_apart(checkpoint, tree, what, found)])
    matches = match(tree, checkpoint.avals, target.streams)
    problems = [
        *_absent(checkpoint, target, matches, checked(filling)),
        *_misfits(checkpoint, target, matches, cast),
        *_spare(target, matches, filling),
    ]
    if problems:
        raise PlanError([Diagnostic("tree-differs", f"{checkpoint.path}: {p}") for p in problems])
    report(target.call, filling, matches)
    taken = {leaf: _put(checkpoint[name], tree.tensors[leaf]) for leaf, name in matches.taken.items()}
    return tree.unflatten({**tree.tensors, **taken})


def _apart(checkpoint: Tensors, tree: Named, what: str, found: Shift) -> Diagnostic:
    """That all names begin otherwise than all leaves, and what to call instead."""
    names = f"begin with '{found.drop}'" if found.drop else "do not"
    leaves = f"begin with '{found.add}'" if found.add else "do not"
    keys = found.add.split(".")[:-1]
    part = what + "".join(f".{key}" if what == "model" else f"[{key!r}]" for key in keys)
    below = f".below({found.drop.removesuffix('.')!r})" if found.drop else ""
    verb = "to_nnx" if what == "model" else "to_linen"
    text = f"the names of its {len(checkpoint)} tensors {names}, those of the {len(tree.tensors)} leaves of the {what} "
    hint = f"Take the parts that fit: `checkpoint{below}.{verb}({part})`."
    return Diagnostic("tree-differs", f"{checkpoint.path}: {text}{leaves}", hint=hint)


def _absent(checkpoint: Tensors, target: Target, matches: Matches, filling: Filling) -> Iterator[str]:
    """What is wrong with leaves for which there is no tensor: one message for all that are alike."""
    tree, what = target.tree, target.what
    if filling.missing == "error":
        for first, more in _alike(matches.missing, module_of):
            near = did_you_mean(first, checkpoint.avals)
            yield f"has no tensor '{first}'{more}, for which the {what} has a leaf.{near}"
        return
    abstract = (name for name in matches.missing if isinstance(tree.tensors[name], jax.ShapeDtypeStruct))
    for first, more in _alike(abstract, module_of):
        yield f"has no tensor '{first}'{more}, for which the {what} has a leaf without a value that could be kept"


def _spare(target: Target, matches: Matches, filling: Filling) -> Iterator[str]:
    """What is wrong with tensors for which there is no leaf."""
    tree, what = target.tree, target.what
    if filling.extra == "error":
        for first, more in _alike(matches.extra, module_of):
            yield f"'{first}'{more} is a tensor for which the {what} has no leaf.{did_you_mean(first, tree.tensors)}"
    elif tree.tensors and not matches.taken:
        yield f"no tensor has the name of a leaf of the {what}, so that none would be taken"


def _misfits(checkpoint: Tensors, target: Target, matches: Matches, cast: bool) -> Iterator[str]:
    """What keeps the leaves from being filled: one message for all that differ in the same way."""
    avals, what = checkpoint.avals, target.what
    found = {leaf: avals[name] for leaf, name in matches.taken.items()}
    wanted = {leaf: aval_of(target.tree.tensors[leaf]) for leaf in found}
    for name, aval in found.items():
        if aval.shape != wanted[name].shape:
            yield f"'{name}' is {aval}, but {wanted[name]} in the {what}"
    other = [n for n, a in found.items() if a.shape == wanted[n].shape and a.dtype != wanted[n].dtype and not cast]
    for first, more in _alike(other, lambda name: (found[name].dtype, wanted[name].dtype)):
        told = f"'{first}' is {found[first]}, but {wanted[first]} in the {what}"
        yield f"{told}{more}. With `cast=True` {'they are' if more else 'it is'} cast"


def _alike(names: Iterable[str], kind: Callable[[str], Hashable]) -> Iterator[tuple[str, str]]:
    """The first name of each kind, and how many more there are."""
    kinds: dict[Hashable, list[str]] = {}
    for name in names:
        kinds.setdefault(kind(name), []).append(name)
    for first, *rest in kinds.values():
        yield first, f" (and {len(rest)} more alike)" if rest else ""


def _put(array: np.ndarray, leaf: Any) -> jax.Array:
    """An array where the leaf is that it replaces, and of its dtype."""
    with jax.enable_x64(True):  # a float64 tensor stays one, whatever the caller's flag
        if leaf is None:
            return jnp.asarray(array)
        array = array if array.dtype == leaf.dtype else array.astype(leaf.dtype)
        chosen = isinstance(leaf, jax.ShapeDtypeStruct) or (isinstance(leaf, jax.Array) and leaf.committed)
        sharding = leaf.sharding if chosen else None
        return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def apply_layout(
    checkpoint: Tensors, call: str, layout: str, config: Config, options: Mapping[str, object] | None
) -> Tensors:
    """The checkpoint, which has Hugging Face names, as a layout arranges it; for a call of this name."""
    beside = os.path.join(checkpoint.path, "config.json")
    found = config if config is not None or not os.path.exists(beside) else beside
    step = {"name": layout, "config": found, "options": options}
    plan = load({"inputs": [f"model::{checkpoint.path}"], "transforms": [_step(step)]})
    whole = set(checkpoint) == set(checkpoint.source.header.tensors)
    try:
        tree = name_leaves("model", plan.apply() if whole else plan.apply(dict(checkpoint)))
    except PlanError as bad:
        raise bad.of_call(call) from bad
    arrays = {name: tree.tensors[name] for name in tree.names}
    return Tensors(MemorySource(checkpoint.path, arrays, tree.avals, checkpoint.metadata), tree.avals)


class OutputKeywords(TypedDict, total=False):
    """The keys of a plan's output that `save` takes."""

    format: str | None
    metadata: Mapping[str, str] | None
    options: Mapping[str, object] | None
    shard: str | None


class _Output(NamedTuple):
    path: str
    overwrite: bool
    format: str | None = None
    metadata: Mapping[str, str] | None = None
    options: Mapping[str, object] | None = None
    shard: str | None = None


def save(
    path: str | os.PathLike[str],
    tree: object,
    *,
    layout: str | None = None,
    config: Config = None,
    layout_options: Mapping[str, object] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    **keys: Unpack[OutputKeywords],
) -> Report:
    """Write a pytree to a checkpoint, whole or not at all, as the output of a plan is written.

    Leaves may be arrays of JAX or numpy, keys of random numbers and Python numbers; for the format `orbax` also text.
    There the result is the tree that orbax would save, with lists, tuples, named tuples, None and empty containers;
    other formats keep notes of them. NNX states, optax states and a TrainState are saved as they are.

    **Arguments**: the path and `format`, `shard`, `metadata`, `options`, `overwrite` are those of a plan's output.
    `layout` names the layout that the tree is in, with its `layout_options`; the tree is then written with Hugging Face
    names and shapes, for which `config` is the model's config.json (with a path, the files beside it are copied into an
    output folder). `durable` flushes files to disk before publishing.
    **Returns** a `Report`.
    **Raises** PlanError for a leaf that is no array, a dtype that the format lacks, a tree that does not fit the
    layout; StoreError for what cannot be written.
    **Example**:

    >>> import numpy as np
    >>> bs.save("tree.safetensors", {"layer": {"w": np.ones((2, 2), np.float32)}}).published
    (('tree.safetensors', 16, 1),)
    >>> list(bs.open("tree.safetensors"))
    ['layer.w']
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"save takes a path first, got a {type(path).__name__}. Write bs.save(path, tree).")
    path = os.fspath(path)
    output = _Output(path, overwrite, **keys)
    found = take_apart(TREE, tree)
    texts = {} if _holds_texts(path, output.format) else found.texts
    if strange := {**found.strange, **texts}:
        raise PlanError([_no_array(name, leaf) for name, leaf in strange.items()])
    if not found.tensors:
        raise PlanError([Diagnostic("output-empty", "save: the tree has no leaves")])
    place = os.path.dirname(os.path.abspath(config)) if layout is not None and isinstance(config, str) else TREE
    step = {"name": layout, "inverse": True, "config": config, "options": layout_options}
    plan = {
        "inputs": [f"model::{place}"],
        "transforms": [] if layout is None else [_step(step)],
        "output": _drop_unset(output._asdict()) | {"sidecars": place != TREE, "metadata": output.metadata or {}},
    }
    avals = {name: aval_of(leaf) for name, leaf in found.tensors.items()}
    source = MemorySource(place, found.tensors, avals, {}, found.key_tree if layout is None else NO_TREE)
    with closing(Files(overwrite=overwrite, sources={os.path.realpath(place): source})) as world:
        try:
            return load(plan).run(overwrite=overwrite, durable=durable, world=world)
        except PlanError as bad:
            raise bad.of_call("save") from bad


def _step(layout: Mapping[str, object]) -> dict[str, object]:
    return {"layout": _drop_unset(layout)}


def _drop_unset(keys: Mapping[str, object]) -> dict[str, object]:
    found = {key: value for key, value in keys.items() if value is not None}
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in found.items()}


def _holds_texts(path: str, format: str | None) -> bool:
    """Whether a checkpoint at a path holds leaves that are text. A path or format that is wrong is told of later."""
    try:
        return output_kind(path, None if format is None else find_format(format), None).format.trees
    except ValueError:
        return True


def _no_array(name: str, leaf: object) -> Diagnostic:
    hint = "Leave it out, or make it an array: `jnp.asarray(...)`."
    return Diagnostic("tree-leaf", f"save: '{name}' is a {type(leaf).__name__}, no array", hint=hint)
