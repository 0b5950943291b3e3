"""Names of the leaves of a pytree: key paths joined with dots, as a checkpoint would spell them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import Array, jax, np
from brainsurgery_jax.dtypes import OF_ARRAYS, WIDER, Aval, DType
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.store.key_paths import ListIndex, Path

BOXES = ("Variable", "VariableState", "AxisMetadata")
"""Classes of Flax that wrap a leaf (or a small tree) and add a key of their own to its path."""


STREAM = "RngState"
"""The class of Flax whose variables are states of random numbers."""


class Named(NamedTuple):
    """A pytree taken apart: its leaves in order with their names; those that are arrays by name, and all others.

    `streams`: names of leaves that are states of random numbers in a Flax NNX module. `boxed`: whether Flax wraps any.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, Any]
    others: Mapping[str, object]
    treedef: Any
    dotted: bool
    streams: frozenset[str] = frozenset()
    boxed: bool = False
    tree: object = None  # as it came

    @property
    def avals(self) -> dict[str, Aval]:
        """Shapes and dtypes of the arrays, in the order of the tree."""
        return {name: aval_of(leaf) for name, leaf in self.tensors.items()}

    def unflatten(self, values: Mapping[str, object]) -> Any:
        """A tree of this structure with other values for its arrays, by name."""
        return self.treedef.unflatten([self.others[n] if n in self.others else values[n] for n in self.names])


def name_leaves(alias: str, tree: object) -> Named:
    """A pytree with its leaves named. Raises PlanError where two leaves have one name, and for a leaf that is
    an array of another library."""
    paths, random, boxed = _read_paths(tree)
    found, treedef = jax.tree_util.tree_flatten(tree)
    names = tuple(".".join(map(str, path)) for path in paths)
    refuse_twins(alias, names)
    leaves = dict(zip(names, found, strict=True))
    refuse_foreign(alias, leaves)
    tensors = {name: leaf for name, leaf in leaves.items() if is_tensor(leaf)}
    others = {name: leaf for name, leaf in leaves.items() if name not in tensors}
    streams = frozenset(name for name, path in zip(names, paths, strict=True) if path in random)
    dotted = isinstance(tree, dict) and _is_dotted(paths)
    return Named(names, tensors, others, treedef, dotted, streams, boxed, tree)


def _read_paths(tree: object) -> tuple[list[Path], set[Path], bool]:
    """The keys to each leaf without those that boxes of Flax add, those that lead to states of random numbers, and
    whether there are boxes."""
    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)[0]
    boxes = {p: node for p, node in nodes if is_box(node)}
    if not boxes:
        return [tuple(map(key_of, path)) for path, _ in nodes], set(), False
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    keys = [tuple(key_of(key) for depth, key in enumerate(p) if p[:depth] not in boxes) for p in paths]
    random = {p for p, node in boxes.items() if _is_stream(node)}
    found = {k for k, p in zip(keys, paths, strict=True) if any(p[:depth] in random for depth in range(len(p)))}
    return keys, found, bool(boxes)


def is_box(node: object) -> bool:
    """Whether a node of Flax wraps a leaf and adds a key of its own to its path."""
    return _is_box_type(type(node))


@cache
def _is_box_type(kind: type) -> bool:
    return any(c.__name__ in BOXES and c.__module__.startswith("flax.") for c in kind.__mro__)


def _is_stream(node: Any) -> bool:
    """Whether a variable, or the state of one, is that of random numbers."""
    kind = node.type if isinstance(getattr(node, "type", None), type) else type(node)
    return any(c.__name__ == STREAM and c.__module__.startswith("flax.") for c in kind.__mro__)


def key_of(key: Any) -> str | int:
    """A key as a name has it: a place in a sequence, an integer key of a dict, else text."""
    if isinstance(key, jax.tree_util.SequenceKey):
        return ListIndex(key.idx)
    if isinstance(key, jax.tree_util.FlattenedIndexKey):  # of a class that names no keys
        return ListIndex(key.key)
    found = next((getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)), key)
    return found if type(found) is int else str(found)


def _is_dotted(paths: list[Path]) -> bool:
    """Whether this is a flat mapping whose keys hold dots themselves, like a state dict."""
    return all(len(p) == 1 for p in paths) and any("." in str(p[0]) for p in paths)


def refuse_twins(alias: str, names: tuple[str, ...]) -> None:
    """Raises PlanError where two leaves have one name."""
    seen: set[str] = set()
    doubles = [n for n in names if n in seen or seen.add(n)]
    if doubles:
        hint = "Rename one of them: a key with a dot reads like a nested one."
        text = f"two leaves of the tree '{alias}' are called '{doubles[0]}'"
        raise PlanError([Diagnostic("names-collide", text, hint=hint)])


def refuse_foreign(alias: str, leaves: Mapping[str, Any]) -> None:
    """Refuse leaves that hold tensors and are no arrays of numpy or JAX: plans would pass them by without a word."""
    foreign = {name: leaf for name, leaf in leaves.items() if _is_foreign(leaf)}
    for name, leaf in foreign.items():
        kind = f"{type(leaf).__module__.partition('.')[0]}.{type(leaf).__name__}"
        where = f"leaf '{name}' of the tree '{alias}'" if name else f"the tree '{alias}'"
        if hasattr(leaf, "to_pytree"):
            hint = "Give its tensors: `.to_pytree()`."
        elif isinstance(leaf, Mapping):
            hint = "Give a dict of arrays by name."
        elif hasattr(leaf, "state_dict"):
            made = _array_of(*leaf.state_dict().values())
            hint = f"Give its arrays by name: `{{name: {made} for name, x in MODULE.state_dict().items()}}`."
        else:
            hint = f"Make it one: `{_array_of(leaf)}`."
        raise PlanError([Diagnostic("tree-leaf", f"{where} is a {kind}, no array of numpy or JAX", hint=hint)])


def _array_of(*leaves: Any) -> str:
    """The call that makes an array of a leaf `x` like these. Tensors of torch may need gradients, or lie on a device;
    numpy has no bfloat16 or float8 of its own, and in JAX 64 bits would become 32."""
    if not all(type(leaf).__module__.partition(".")[0] == "torch" for leaf in leaves):
        return "np.asarray(x)"
    narrow = any(str(leaf.dtype).startswith(("torch.bfloat16", "torch.float8")) for leaf in leaves)
    return "jnp.from_dlpack(x.detach())" if narrow else "np.asarray(x.detach().cpu())"


def _is_foreign(leaf: object) -> bool:
    """Whether a leaf is like an array, or a mapping of some, or a module of torch."""
    known = isinstance(leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct)
    like_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    return not known and (isinstance(leaf, Mapping) or like_array or hasattr(leaf, "state_dict"))


def is_tensor(leaf: object) -> bool:
    """Whether a leaf is something that a plan can name: an array, concrete, abstract or traced."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.name in OF_ARRAYS or leaf.dtype.name in WIDER
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def aval_of(leaf: Array | np.generic | jax.ShapeDtypeStruct) -> Aval:
    """Shape and dtype of an array; dtypes that we do not know (random keys, int4) are opaque: named and moved only."""
    name = leaf.dtype.name
    return Aval(tuple(leaf.shape), OF_ARRAYS.get(name) or DType(name, name, "", 8, None, "other"))
