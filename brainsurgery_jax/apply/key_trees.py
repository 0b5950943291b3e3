"""Pytrees as orbax saves them: what lies where, of what type, and the leaves that hold no array."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import Array, jax, jnp, np
from brainsurgery_jax.apply.names import is_box, is_tensor, key_of, refuse_foreign, refuse_twins
from brainsurgery_jax.dtypes import BY_NAME, OF_ARRAYS, WIDER, to_numpy
from brainsurgery_jax.store.key_paths import BoxKey, ListIndex, Path, TupleIndex, name_of
from brainsurgery_jax.store.key_tree import JAX, NUMPY, SCALAR, TEXT, KeyTree, LeafType, OtherLeaf, told


class Empty(NamedTuple):
    """Stands for a node without children, of a kind of `key_tree.EMPTY`."""

    kind: str


@dataclass(slots=True)
class Apart:
    """A pytree taken apart: arrays by name, with what its tree tells beside them, and leaves that nothing can hold."""

    tensors: dict[str, Array | np.generic] = field(default_factory=dict)
    types: dict[str, LeafType] = field(default_factory=dict)
    others: dict[str, OtherLeaf] = field(default_factory=dict)
    strange: dict[str, object] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, str]:
        """The leaves that are text."""
        return {name: leaf.text for name, leaf in self.others.items() if leaf.kind == TEXT}

    @property
    def key_tree(self) -> KeyTree:
        """What the tree tells beside its arrays."""
        return KeyTree(told(self.paths), self.others, self.types, known=True)


def take_apart(alias: str, tree: object) -> Apart:
    """A pytree taken apart. Keys of random numbers are the numbers that they consist of, Python numbers arrays without
    axes, narrow types wider ones. Raises PlanError for arrays of other libraries, and for two leaves of one name."""
    found = [*_walk(tree, ())]
    refuse_twins(alias, tuple(name_of(path) for path, _ in found))
    refuse_foreign(alias, {name_of(path): leaf for path, leaf in found if not isinstance(leaf, Empty)})
    apart = Apart(paths={name_of(path): path for path, _ in found})
    for path, leaf in found:
        _add(apart, name_of(path), leaf)
    return apart


def tree_beside(tree: object) -> KeyTree:
    """The containers on the way to the leaves of a pytree, and its empty nodes: what `apply` gives back of it. Boxes
    are gone once names change; a tree that is empty itself is none of its nodes."""
    found = [(tuple(key for key in path if not isinstance(key, BoxKey)), leaf) for path, leaf in _walk(tree, ())]
    found = [(path, leaf) for path, leaf in found if path or not isinstance(leaf, Empty)]
    others = {name_of(path): OtherLeaf(leaf.kind) for path, leaf in found if isinstance(leaf, Empty)}
    return KeyTree(told({name_of(path): path for path, _ in found}), others)


def _add(apart: Apart, name: str, leaf: object) -> None:
    if isinstance(leaf, Empty):
        apart.others[name] = OtherLeaf(leaf.kind)
    elif isinstance(leaf, str):
        apart.others[name] = OtherLeaf(TEXT, leaf)
    elif (made := _tensor(leaf)) is not None:
        apart.tensors[name], apart.types[name] = made
    else:
        apart.strange[name] = leaf


def _tensor(leaf: Any) -> tuple[Array | np.generic, LeafType] | None:
    """An array that a store can hold, and what it is; None if a leaf is no such thing."""
    if type(leaf) in (bool, int, float):
        array = np.asarray(leaf)
        return (array, LeafType(SCALAR)) if array.dtype.name in OF_ARRAYS else None
    if not hasattr(leaf, "dtype"):
        return None
    holder = LeafType(JAX if isinstance(leaf, jax.Array) else NUMPY, sharding=_sharding(leaf))
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf), holder._replace(key=str(jax.random.key_impl(leaf)))
    if (wide := WIDER.get(leaf.dtype.name)) is not None:
        return np.asarray(leaf).astype(to_numpy(BY_NAME[wide])), holder._replace(stored=leaf.dtype.name)
    if isinstance(leaf, np.generic):  # as orbax takes it
        return (leaf, LeafType(SCALAR)) if is_tensor(leaf) else None
    return (leaf, holder) if is_tensor(leaf) else None


def _sharding(leaf: object) -> str:
    """Where an array of JAX is, as orbax spells it, if it is on one device; else empty."""
    if not isinstance(leaf, jax.Array) or len(devices := leaf.devices()) != 1:
        return ""
    return json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": str(next(iter(devices)))})


def _walk(node: object, path: Path) -> Iterator[tuple[Path, object]]:
    """The leaves as orbax sees them: nodes without children are leaves, too."""
    children = None if isinstance(node, _leaf_types()) else _children(node)
    if children is None:
        yield path, node
    elif not children:
        yield path, Empty(_kind(node))
    else:
        for key, child in children:
            yield from _walk(child, (*path, key))


@cache
def _leaf_types() -> tuple[type, ...]:
    """Types of which it is known without asking that they are leaves."""
    return (np.ndarray, np.generic, int, float, str, jax.Array, jax.ShapeDtypeStruct)


def _children(node: Any) -> list[tuple[str | int, object]] | None:
    """The children of a node with their keys; None for a leaf."""
    if type(node) is dict and all(type(key) is str for key in node):
        return [(key, node[key]) for key in sorted(node)]
    if type(node) in (list, tuple):
        kind = TupleIndex if type(node) is tuple else ListIndex
        return [(kind(at), child) for at, child in enumerate(node)]
    found = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda inner: inner is not node)[0]
    if found and not found[0][0]:
        return None
    return [(BoxKey(key_of(key)) if is_box(node) else key_of(key), child) for (key,), child in found]


def _kind(node: object) -> str:
    """What orbax calls a node without children: of named tuples and classes it keeps None."""
    if isinstance(node, tuple):
        return "None" if hasattr(node, "_fields") else "Tuple"
    return "Dict" if isinstance(node, Mapping) else "List" if isinstance(node, list) else "None"
