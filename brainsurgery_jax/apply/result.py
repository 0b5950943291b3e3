"""The tree that `apply` returns: the structure that came in, that of `like`, or dicts and lists along the names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from brainsurgery_jax.apply.applied import Applied
from brainsurgery_jax.apply.boxes import move_names
from brainsurgery_jax.apply.filling import Filling, match, report
from brainsurgery_jax.apply.names import Named, aval_of, name_leaves
from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.nametree import nest
from brainsurgery_jax.prefixes import Shift, shift_between
from brainsurgery_jax.store import key_tree
from brainsurgery_jax.store.key_tree import KeyTree


def rebuild(values: Mapping[str, object], came: Named | None, like: object, filling: Filling, applied: Applied) -> Any:
    """The tree of these leaves. `came` is the tree that the alias was bound to, if any; `filling`: that of `like`;
    `applied` tells how each leaf is computed, and of the containers that names lie in by now."""
    if like is not None:
        return _fill(name_leaves("like", like), values, filling)
    if came is not None and set(values) == set(came.tensors):
        return move_names(came.unflatten(values), came, applied.names)
    tree = applied.state.spaces[applied.alias].extras.tree
    others = {} if came is None else came.others
    if doubles := [name for name in others if name in values]:
        text = f"'{doubles[0]}' is a leaf of the tree that is no array, and the plan makes a tensor of that name"
        raise PlanError([Diagnostic("tree-collides", text, hint="Choose another name.")])
    return _grow({**values, **others}, tree, flat=came is not None and came.dotted)


def _grow(leaves: dict[str, object], tree: KeyTree, *, flat: bool) -> Any:
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


def _fill(like: Named, values: Mapping[str, object], filling: Filling) -> Any:
    """The structure of `like` with these values. Raises PlanError with every leaf that does not fit."""
    if (shift := shift_between(values, like.tensors)) is not None:
        raise PlanError([_apart(like, values, shift)])
    found = match(like, values)
    problems = [*_misfits(like, values, found.taken)]
    if filling.missing == "error":
        problems += [_absent(name, values) for name in found.missing]
    if filling.extra == "error":
        problems += [_spare(name, like) for name in found.extra]
    if problems:
        raise PlanError(problems)
    report("apply", filling, found)
    return like.unflatten({**like.tensors, **{leaf: values[name] for leaf, name in found.taken.items()}})


def _differs(text: str, hint: str) -> Diagnostic:
    return Diagnostic("like-differs", f"apply: {text}", hint=hint)


def _misfits(like: Named, values: Mapping[str, Any], taken: Mapping[str, str]) -> Iterator[Diagnostic]:
    for leaf, name in taken.items():
        wanted, found = aval_of(like.tensors[leaf]), aval_of(values[name])
        if wanted != found:
            hint = "Reshape or cast in the plan until shapes and dtypes agree."
            yield _differs(f"'{leaf}' is {found}, but {wanted} in `like`", hint=hint)


def _absent(name: str, values: Mapping[str, object]) -> Diagnostic:
    text = f"`like` has a leaf '{name}', which the plan does not make.{did_you_mean(name, values)}"
    return _differs(text, hint='Rename in the plan until names agree, or keep what `like` has: `missing="keep"`.')


def _spare(name: str, like: Named) -> Diagnostic:
    text = f"the plan makes '{name}', for which `like` has no leaf.{did_you_mean(name, like.tensors)}"
    return _differs(text, hint='Rename or delete in the plan until names agree, or leave it out: `extra="ignore"`.')


def _apart(like: Named, values: Mapping[str, object], found: Shift) -> Diagnostic:
    """That all names begin otherwise than all leaves, and the step that renames them."""
    made = f"begin with '{found.drop}'" if found.drop else "do not"
    wanted = f"begin with '{found.add}'" if found.add else "do not"
    text = f"the names of the {len(values)} tensors that the plan makes {made}, those of the leaves of `like` {wanted}"
    return Diagnostic("like-differs", f"apply: {text}", hint=f"Add the step `{found.step}`.")
