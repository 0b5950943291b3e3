"""Names of axes that Flax's boxes carry beside their arrays: they go where the axes go.

A Linen box (`Partitioned`) has `names`, an NNX variable the metadata `out_sharding`. Steps that move elements or
compute each by itself are followed axis by axis. What comes of any other step keeps the names if it has the shape of
the leaf that it replaces; else its axes have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import jax
from brainsurgery_jax.apply.names import Named, is_box
from brainsurgery_jax.graph.expr import Expr, walk

Axes = tuple[int | None, ...]
"""Of each axis of a tensor the axis of the leaf that it was."""

METADATA = ("out_sharding", "sharding_names", "sharding")
"""What versions of Flax NNX call the names of axes in the metadata of a variable."""


def move_names(tree: object, came: Named, names: Mapping[str, Expr]) -> object:
    """The tree that came in, with its new leaves, and with names of axes for these. `names`: how each is computed."""
    if not came.boxed:
        return tree
    boxes, treedef = jax.tree_util.tree_flatten(tree, is_leaf=is_box)
    leaves = iter(came.names)
    moved = []
    for box in boxes:
        own = [next(leaves) for _ in jax.tree_util.tree_leaves(box)]
        name = own[0] if len(own) == 1 and is_box(box) else ""
        e = names.get(name)
        moved.append(box if e is None or e.is_given else _rename(box, _axes_from(e, name, came)))
    return jax.tree_util.tree_unflatten(treedef, moved)


def _axes_from(e: Expr, name: str, came: Named) -> Axes:
    """The axes that the leaf `name` had, by those of what replaces it."""
    shape = tuple(came.tensors[name].shape)
    known: dict[Expr, Axes] = {}
    for node in walk([e]):
        if node.is_given and node.name == name:
            known[node] = tuple(range(len(shape)))
        elif node.is_call and (found := _through(node, known)) is not None:
            known[node] = found
    unknown: Axes = tuple(range(len(shape))) if e.aval.shape == shape else (None,) * len(e.aval.shape)
    return known.get(e, unknown)


def _through(call: Expr, known: Mapping[Expr, Axes]) -> Axes | None:
    """The axes of the result of a call that can be followed."""
    at = next((i for i, s in enumerate(call.srcs) if s in known), None)
    if at is None or call.kernel is None:
        return None
    if call.moves is None:
        return known[call.srcs[at]] if call.kernel.elementwise else None
    avals = tuple(s.aval for s in call.srcs)
    made: list[int | None] = [None] * len(call.aval.shape)
    same = len(avals[at].shape) == len(made)
    for axis, there in enumerate(call.moves.axes(avals)[at]):
        if there is not None:
            made[there] = known[call.srcs[at]][axis]
    for axis, was in enumerate(known[call.srcs[at]]):  # a part of an axis, or a longer one, is still that axis
        if same and not call.moves.flat_only and made[axis] is None and was not in made:
            made[axis] = was
    return tuple(made)


def _rename(box: Any, axes: Axes) -> Any:
    """A box whose axes are these of what it held before."""
    if (names := getattr(box, "names", None)) is not None and hasattr(box, "replace"):
        return box.replace(names=_pick(names, axes))
    if hasattr(box, "set_metadata"):
        for key in METADATA:
            if (names := box.get_metadata().get(key)) is not None:
                box.set_metadata(key, _pick(names, axes))
    return box


def _pick(names: Sequence[object], axes: Axes) -> Sequence[object] | jax.sharding.PartitionSpec:
    found = [None if at is None or at >= len(names) else names[at] for at in axes]
    return jax.sharding.PartitionSpec(*found) if isinstance(names, jax.sharding.PartitionSpec) else tuple(found)
