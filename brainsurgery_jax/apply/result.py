"""The tree that `apply` returns: the structure that came in, that of `like`, or dicts and lists along the names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainsurgery_jax.apply.names import Named, aval_of, name_leaves
from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.nametree import nest
from brainsurgery_jax.prefixes import Shift, shift_between
from brainsurgery_jax.store import key_tree
from brainsurgery_jax.store.key_tree import KeyTree


def rebuild(values: Mapping[str, Any], came: Named | None, like: Any, tree: KeyTree) -> Any:
    """The tree of these leaves. `came` is the tree that the alias was bound to, if any; `tree` tells of the containers
    that names lie in by now."""
    if like is not None:
        return _fill(name_leaves("like", like), values)
    if came is not None and set(values) == set(came.tensors):
        return _unflatten(came, values)
    others = {} if came is None else came.others
    if doubles := [name for name in others if name in values]:
        text = f"'{doubles[0]}' is a leaf of the tree that is no array, and the plan makes a tensor of that name"
        raise PlanError([Diagnostic("tree-collides", text, hint="Choose another name.")])
    return _grow({**values, **others}, tree, flat=came is not None and came.dotted)


def _grow(leaves: dict[str, Any], tree: KeyTree, *, flat: bool) -> Any:
    """The leaves in the containers that the tree tells of, all others in dicts."""
    if flat:
        return leaves
    try:
        nest(leaves)  # refuses a leaf that is also the prefix of others
        empty = {name: leaf.value for name, leaf in tree.others.items() if name not in leaves}
        return key_tree.nest((tree.path(name), value) for name, value in {**leaves, **empty}.items())
    except ValueError as bad:
        hint = "Rename one of them, or give the structure of the result: `apply(..., like=tree)`."
        raise PlanError([Diagnostic("tree-collides", str(bad), hint=hint)]) from bad


def _unflatten(shape: Named, values: Mapping[str, Any]) -> Any:
    leaves = [shape.others[name] if name in shape.others else values[name] for name in shape.names]
    return shape.treedef.unflatten(leaves)


def _fill(like: Named, values: Mapping[str, Any]) -> Any:
    """The structure of `like` with these values. Raises PlanError with every leaf that does not fit."""
    if (found := shift_between(values, like.tensors)) is not None:
        raise PlanError([_apart(like, values, found)])
    problems = [p for name, leaf in like.tensors.items() if (p := _misfit(name, leaf, values))]
    for name in values:
        if name not in like.tensors:
            near = did_you_mean(name, like.tensors)
            problems.append(f"the plan makes '{name}', for which `like` has no leaf.{near}")
    if problems:
        hint = "Rename, delete or cast in the plan until names, shapes and dtypes agree."
        raise PlanError([Diagnostic("like-differs", f"apply: {p}", hint=hint) for p in problems])
    return _unflatten(like, values)


def _apart(like: Named, values: Mapping[str, Any], found: Shift) -> Diagnostic:
    """That all names begin otherwise than all leaves, and the step that renames them."""
    made = f"begin with '{found.drop}'" if found.drop else "do not"
    wanted = f"begin with '{found.add}'" if found.add else "do not"
    text = f"the names of the {len(values)} tensors that the plan makes {made}, those of the leaves of `like` {wanted}"
    return Diagnostic("like-differs", f"apply: {text}", hint=f"Add the step `{found.step}`.")


def _misfit(name: str, leaf: Any, values: Mapping[str, Any]) -> str:
    if name not in values:
        return f"`like` has a leaf '{name}', which the plan does not make.{did_you_mean(name, values)}"
    wanted, found = aval_of(leaf), aval_of(values[name])
    return "" if wanted == found else f"'{name}' is {found}, but {wanted} in `like`"
