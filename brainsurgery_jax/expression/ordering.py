"""Places in the order of the elements along an axis: sorting, the largest, where they are; and running sums.

NaN counts as greater than all numbers, as in numpy and JAX; of equal elements the first comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from brainsurgery_jax._lazy import Array, jax, jnp, np
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.expression import cut_rules as cut
from brainsurgery_jax.expression.on_the_way import Operands, nbytes
from brainsurgery_jax.expression.operation import Operation
from brainsurgery_jax.expression.program import Node, Static
from brainsurgery_jax.expression.reductions import Compute, Shape
from brainsurgery_jax.expression.signatures import Function, Keywords, along, axis_of, need_elements, reduce_axis
from brainsurgery_jax.numerics.math import find_extreme, kind, on_host

INDEX = 8
"""Bytes of a place in an axis."""


# --- Types ------------------------------------------------------------------------------------------------------------


def _top(values: bool) -> Callable[..., jax.Array]:
    def fn(x: jax.Array, k: object, axis: int | None = -1) -> jax.Array:
        if axis is None or not jnp.ndim(x):
            raise ValueError("takes a whole number as axis, of a tensor that has it")
        need_elements("largest", jnp.shape(x), axis)
        size = x.shape[axis]
        if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= size:
            raise ValueError(f"takes a whole number from 1 to {size}, the size of axis {axis}, as count")
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise ValueError("takes real tensors")
        at = axis % x.ndim
        return jnp.zeros((*x.shape[:at], k, *x.shape[at + 1 :]), x.dtype if values else jnp.int64)

    return fn


def _top_static(keywords: Keywords, args: Sequence[object], rank: int) -> Static:
    return ("count", args[1]), ("axis", axis_of(keywords.get("axis", -1), rank))


def _along_one(name: str) -> Callable[..., jax.Array]:
    """A function of `jax.numpy` that takes one axis, or none for all elements."""

    def fn(x: jax.Array, **keywords: object) -> jax.Array:
        if not isinstance(keywords.get("axis", 0), int | None) or isinstance(keywords.get("axis"), bool):
            raise ValueError("takes a whole number as axis")
        return getattr(jnp, name)(x, **keywords)

    return fn


def _running_sum(x: jax.Array, **keywords: object) -> jax.Array:
    """Of integers in 64 bits, as numpy's."""
    sums = {"uint": np.uint64, "int": np.int64}
    return _along_one("cumsum")(x.astype(sums.get(kind(x), x.dtype)), **keywords)


def _place_of(name: str) -> Callable[..., jax.Array]:
    """Where an extreme is, of which there must be one."""

    def fn(x: jax.Array, **keywords: object) -> jax.Array:
        need_elements(name, jnp.shape(x), keywords.get("axis"))
        return _along_one(name)(x, **keywords)

    return fn


_PLACE = Function("", _place_of("argmax"), keywords=("axis", "keepdims"), static=reduce_axis, own=True)

ORDERING_FUNCTIONS: Mapping[str, Function] = {
    "argmax": _PLACE._replace(usage="argmax(x, axis=None, keepdims=False)"),
    "argmin": _PLACE._replace(usage="argmin(x, axis=None, keepdims=False)", fn=_place_of("argmin")),
    "sort": Function("sort(x, axis=-1)", _along_one("sort"), keywords=("axis",), static=along(-1)),
    "argsort": Function("argsort(x, axis=-1)", _along_one("argsort"), keywords=("axis",), static=along(-1), own=True),
    "ranks": Function("ranks(x, axis=-1)", _along_one("argsort"), keywords=("axis",), static=along(-1), own=True),
    "topk": Function("topk(x, 10, axis=-1)", _top(values=True), (2, 2), ("axis",), static=_top_static, operands=1),
    "argtopk": Function("argtopk(x, 10, axis=-1)", _top(values=False), (2, 2), ("axis",), static=_top_static,
                        operands=1, own=True),
    "cumsum": Function("cumsum(x, axis=None)", _running_sum, keywords=("axis",), static=along(None), own=True),
}  # fmt: skip
"""How they are called."""


# --- Operations -------------------------------------------------------------------------------------------------------


def _place(name: str) -> Compute:
    return lambda xp, node, shape, xs: find_extreme(name, xs[0], node.params["axis"], keepdims=node.params["keepdims"])


def _sort(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xp.sort(xs[0], axis=node.params["axis"], stable=True)


def _argsort(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xp.argsort(xs[0], axis=node.params["axis"], stable=True)


def _ranks(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    """The place that each element has in the sorted order."""
    x, axis = (xs[0], node.params["axis"]) if node.params["axis"] is not None else (xp.reshape(xs[0], (-1,)), 0)
    order = xp.argsort(x, axis=axis, stable=True)
    return xp.argsort(order, axis=axis, stable=True)


def _argtopk(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return _largest(xp, node, xs[0])


def _topk(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xp.take_along_axis(xs[0], _largest(xp, node, xs[0]), axis=node.params["axis"])


def _largest(xp: ModuleType, node: Node, x: Array) -> Array:
    """Where the largest elements are, the first of equal ones first."""
    axis, count = node.params["axis"], node.params["count"]
    assert axis is not None
    if on_host(x):
        return np.moveaxis(_largest_of_rows(np.moveaxis(x, axis, -1), count), -1, axis)
    rising = jnp.argsort(jnp.flip(x, axis), axis=axis, stable=True)
    last = x.shape[axis] - 1 - jnp.flip(rising, axis)
    return jax.lax.slice_in_dim(last, 0, count, axis=axis)


def _largest_of_rows(x: np.ndarray, count: int) -> np.ndarray:
    """Where the largest elements of each row are: those above the last that counts, and of its equals the first."""
    size, lead = x.shape[-1], x.shape[:-1]
    keys = _keys(x).reshape(-1, size)
    least = np.partition(keys, size - count, axis=-1)[:, size - count, None]
    chosen = keys > least
    equal = keys == least
    room = count - np.count_nonzero(chosen, axis=-1, keepdims=True)
    chosen |= equal & (np.cumsum(equal, axis=-1) <= room)
    places = np.nonzero(chosen)[1].reshape(-1, count)
    falling = np.argsort(~np.take_along_axis(keys, places, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(places, falling, axis=-1).reshape(*lead, count)


def _keys(x: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the elements: 0 and -0 are equal, NaN is the greatest."""
    if kind(x) != "float":
        return x.astype(np.uint8) if kind(x) == "bool" else x
    signed = np.dtype(f"i{x.dtype.itemsize}")
    bits = (x + np.zeros((), x.dtype)).view(signed)
    keys = bits ^ ((bits >> (8 * x.dtype.itemsize - 1)) & np.iinfo(signed).max)
    keys[np.isnan(x)] = np.iinfo(signed).max
    return keys


def _cumsum(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    """Running sums, of floats in double precision, of integers in 64 bits."""
    (x,), axis = xs, node.params["axis"]
    doubles = {"float": np.float64, "complex": np.complex128}
    plain = lambda x: jnp.cumsum(x, axis=axis).astype(x.dtype)  # noqa: E731
    wide = doubles.get(kind(x))
    if on_host(x):
        return np.cumsum(x, axis=axis, dtype=wide)
    if wide is None:
        return jnp.cumsum(x, axis=axis, dtype=to_numpy(node.aval.dtype))
    double = lambda x: jnp.cumsum(x, axis=axis, dtype=wide).astype(x.dtype)  # noqa: E731
    return jax.lax.platform_dependent(x, cpu=double, default=plain)


# --- Cuts, and bytes on the way ---------------------------------------------------------------------------------------


def _along(node: Node, shapes: cut.Shapes, axis: int) -> cut.Axes | None:
    """Every axis but that of the order."""
    own = node.params["axis"]
    return None if own is None or axis == own else (axis, *(None for _ in shapes[1:]))


def _beside(node: Node, shapes: cut.Shapes, axis: int) -> cut.Axes | None:
    """Every axis but the one that is looked along, which the result may lack."""
    own = node.params["axis"]
    if own is None:
        return None
    kept = [a for a in range(len(shapes[0])) if node.params["keepdims"] or a != own]
    return None if kept[axis] == own else (kept[axis],)


def _copy(node: Node, xs: Operands, shape: Shape) -> int:
    """The operand once more, in another order of the axes."""
    return sum(nbytes(s, node.work) for s, _ in xs)


def _sorting(node: Node, xs: Operands, shape: Shape) -> int:
    """The operand in another order of the axes, and half as many elements or places again."""
    return _copy(node, xs, shape) + nbytes(shape, node.aval.dtype)


def _twice(node: Node, xs: Operands, shape: Shape) -> int:
    """The same, and the places in their order."""
    return _sorting(node, xs, shape) + 2 * nbytes(shape, node.aval.dtype)


def _selecting(node: Node, xs: Operands, shape: Shape) -> int:
    """Keys twice, what is chosen and running counts of it, and places."""
    elements = sum(nbytes(s, node.work) // max(1, node.work.bits // 8) for s, _ in xs)
    return 2 * _copy(node, xs, shape) + elements * (INDEX + 3) + 4 * nbytes(shape, node.aval.dtype)


def _wide_copy(node: Node, xs: Operands, shape: Shape) -> int:
    """The result in double precision."""
    return 2 * nbytes(shape, node.aval.dtype) + _copy(node, xs, shape)


ORDERING: Mapping[str, Operation] = {
    "argmax": Operation(_place("argmax"), _beside, _copy, sealed=False),
    "argmin": Operation(_place("argmin"), _beside, _copy, sealed=False),
    "sort": Operation(_sort, _along, _sorting, sealed=False),
    "argsort": Operation(_argsort, _along, _sorting, sealed=False),
    "ranks": Operation(_ranks, _along, _twice, sealed=False),
    "topk": Operation(_topk, _along, _selecting, sealed=False),
    "argtopk": Operation(_argtopk, _along, _selecting, sealed=False),
    "cumsum": Operation(_cumsum, _along, _wide_copy),
}
"""What computes them."""
