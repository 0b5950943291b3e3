"""The reductions of expressions, on numpy arrays and on JAX arrays: sums in double precision, extremes, and places in
the order of the elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType
from typing import NamedTuple

from brainsurgery_jax._lazy import Array, jax, np
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.expression.on_the_way import SLAB
from brainsurgery_jax.expression.program import Literal, Node
from brainsurgery_jax.numerics.math import kind, narrow_to, on_host, quotient
from brainsurgery_jax.numerics.ranks import pick_places
from brainsurgery_jax.numerics.rounding import round_once
from brainsurgery_jax.numerics.selecting import interpolate, select_at
from brainsurgery_jax.numerics.squares import sum_squares

MANY = 1 << 20
"""Elements from which on places in their order are found by counts."""

Shape = tuple[int, ...]
Compute = Callable[[ModuleType, Node, Shape, "Sequence[Array]"], "Array"]
"""`(numpy or jax.numpy, node, shape of the result, operands) -> result`."""


class Over(NamedTuple):
    """What a reduction goes over, whether axes of size 1 remain, and the dtype of its sums (None: numpy's choice)."""

    axes: tuple[int, ...]
    keepdims: bool
    dtype: type[np.generic] | None


def reduce_over(fn: Callable[[ModuleType, Array, Over], Array]) -> Compute:
    """A reduction `fn(xp, x, over)` of floats in double precision, on accelerators in their own."""

    def compute(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
        (x,), made = xs, to_numpy(node.aval.dtype)
        axes, keepdims = node.params["axes"], node.params["keepdims"]
        plain = lambda x: narrow_to(fn(xp, x, Over(axes, keepdims, _double(x))), made)  # noqa: E731
        if on_host(x) or kind(x) not in ("float", "complex"):
            return plain(x)
        narrow = lambda x: fn(xp, x, Over(axes, keepdims, x.dtype.type)).astype(made)  # noqa: E731
        return jax.lax.platform_dependent(x, cpu=plain, default=narrow)

    return compute


def _double(x: Array) -> type[np.generic] | None:
    doubles: dict[str, type[np.generic]] = {"complex": np.complex128, "float": np.float64}
    return doubles.get(kind(x))


def add_up(xp: ModuleType, x: Array, over: Over) -> Array:
    """The sum."""
    return xp.sum(x, axis=over.axes, keepdims=over.keepdims, dtype=over.dtype)


def multiply_up(xp: ModuleType, x: Array, over: Over) -> Array:
    """The product."""
    return xp.prod(x, axis=over.axes, keepdims=over.keepdims, dtype=over.dtype)


def log_sum_exp(xp: ModuleType, x: Array, over: Over) -> Array:
    """The logarithm of the sum of exponentials, which are none above 1."""
    wide = over.dtype or np.float64
    largest = finite_or_zero(xp, xp.max(x, axis=over.axes, keepdims=True, initial=-np.inf))
    if not on_host(x):
        largest = jax.lax.stop_gradient(largest)
    total = xp.sum(xp.exp(x - largest), axis=over.axes, keepdims=True, dtype=wide)
    made = xp.log(total) + largest.astype(wide)
    return made if over.keepdims else xp.squeeze(made, over.axes)


def finite_or_zero(xp: ModuleType, x: Array) -> Array:
    """Numbers, and 0 for infinity and NaN."""
    return xp.where(xp.isfinite(x), x, xp.zeros_like(x))


def test_truth(name: str) -> Compute:
    """Whether any, or all, of the elements are true."""
    return lambda xp, node, shape, xs: getattr(xp, name)(
        xs[0], axis=node.params["axes"], keepdims=node.params["keepdims"]
    )


def average(xp: ModuleType, x: Array, over: Over) -> Array:
    """The mean."""
    total = add_up(xp, x, over._replace(dtype=over.dtype or np.float64))
    return quotient(total, _count(xp, x, over, total.dtype))


def _count(xp: ModuleType, x: Array, over: Over, dtype: np.dtype) -> Array:
    """How many elements a mean is of."""
    return xp.asarray(prod(x.shape[axis] for axis in over.axes), dtype)


def variance(xp: ModuleType, x: Array, over: Over) -> Array:
    """The mean of the squared distances from the mean."""
    total = _squares(xp, x, over, average(xp, x, over._replace(keepdims=True)))
    return quotient(total, _count(xp, x, over, total.dtype))


def deviation(xp: ModuleType, x: Array, over: Over) -> Array:
    """The root of the variance."""
    return xp.sqrt(variance(xp, x, over))


def norm(xp: ModuleType, x: Array, over: Over) -> Array:
    """The root of the sum of squared magnitudes."""
    return xp.sqrt(_squares(xp, x, over, None))


def _squares(xp: ModuleType, x: Array, over: Over, less: Array | None) -> Array:
    """The sum of squared magnitudes, of what is less a mean. Of numpy arrays some at a time, which makes no wider copy
    of all of them."""
    wide = over.dtype or np.float64
    cut = next((a for a in over.axes if x.shape[a] > 1), None)
    if not on_host(x) or cut is None or x.size <= SLAB:
        return _sum_squares(xp, x, wide, less, over)
    step = max(1, SLAB * x.shape[cut] // x.size)
    slabs = (x[(slice(None),) * cut + (slice(at, at + step),)] for at in range(0, x.shape[cut], step))
    return sum((_sum_squares(xp, slab, wide, less, over) for slab in slabs), np.zeros(()))


def _sum_squares(xp: ModuleType, x: Array, wide: type[np.generic], less: Array | None, over: Over) -> Array:
    if on_host(x) and less is None and wide is np.float64 and kind(x) != "complex":
        total = sum_squares(x, over.axes)
        return total if over.keepdims else np.squeeze(total, over.axes)
    x = x.astype(wide) if less is None else x.astype(wide) - less
    if kind(x) == "complex":
        squares = xp.square(xp.real(x)) + xp.square(xp.imag(x))
    else:
        squares = np.square(x, out=x) if on_host(x) and x.ndim else xp.square(x)
    return xp.sum(squares, axis=over.axes, keepdims=over.keepdims)


def keep_extreme(name: str) -> Compute:
    """The least (`min`) or greatest (`max`) element."""
    return lambda xp, node, shape, xs: getattr(xp, name)(
        xs[0], axis=node.params["axes"], keepdims=node.params["keepdims"]
    )


def _share(xp: ModuleType, q: Array) -> Array:
    """Shares of the elements as floats; those of a tensor that are beyond 0 and 1 give what 0 and 1 give."""
    return xp.clip(q if q.dtype.kind == "f" else q.astype(np.float32), 0, 1)


def place_of(node: Node, size: int) -> tuple[int, float] | None:
    """Where the middle, or the share of the elements that is a number of the expression, is in the sorted order of so
    many elements: a place, and how far it is from there to the next one. None where that is not known."""
    if len(node.operands) == 1:
        return (size - 1) // 2, 0.0 if size % 2 else 0.5
    share = node.operands[1]
    if not isinstance(share, Literal) or not 0 <= share.value <= 1:
        return None
    virtual = (size - 1) * float(share.value)
    place = int(virtual)
    return place, 1.0 if place >= size - 1 else virtual - place


def _pick_counted(node: Node, x: np.ndarray, place: int, between: float) -> np.ndarray:
    """The same of a large array: by counts, as in blocks."""
    found = pick_places(x, (place, min(place + 1, x.size - 1)))
    with np.errstate(all="ignore"):
        if found is None:
            return np.asarray(np.nan, x.dtype)
        middle = len(node.operands) == 1 and between
        return np.asarray(np.median(found) if middle else np.quantile(found, np.asarray(between)), x.dtype)


def _pick_traced(node: Node, x: jax.Array) -> Array | None:
    """The same without a sort, where the place is known."""
    size = prod(x.shape[a] for a in node.params["axes"])
    if not size or kind(x) != "float" or (found := place_of(node, size)) is None:
        return None
    place, between = found
    low, high = select_at(x, place, node.params["axes"])
    if len(node.operands) == 1:
        half = np.asarray(0.5, x.dtype)
        return round_once("multiply", round_once("add", low, high), half) if between else low
    return interpolate(low, high, between)


def keep_kth(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    """The k-th largest element."""
    (x,), axes = xs, node.params["axes"]
    size = prod(x.shape[a] for a in axes)
    place = size - node.params["count"]
    if not on_host(x):
        return select_at(x, place, axes)[0].reshape(shape)
    if not (left := [a for a in range(x.ndim) if a not in axes]) and size >= MANY:
        found = pick_places(x, (place,))
        return np.asarray(np.nan if found is None else found[0], x.dtype).reshape(shape)
    rows = np.transpose(x, (*left, *axes)).reshape(*(x.shape[a] for a in left), size)
    found = np.partition(rows, place, axis=-1)[..., place]
    if kind(x) == "float":
        found = np.where(np.isnan(rows).any(axis=-1), np.asarray(np.nan, x.dtype), found)
    return found.reshape(shape)


def pick_by_order(name: str) -> Compute:
    """The middle, or another place in the order of the elements."""

    def compute(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
        x = xs[0] if kind(xs[0]) == "float" else xs[0].astype(to_numpy(node.aval.dtype))
        if not on_host(x) and (found := _pick_traced(node, x)) is not None:
            return found.reshape(shape)
        is_large = on_host(x) and len(node.params["axes"]) == x.ndim and x.size >= MANY
        if on_host(x) and is_large and (known := place_of(node, x.size)) is not None:
            return _pick_counted(node, x, *known).reshape(shape)
        shares = [_share(xp, q) for q in xs[1:]]
        if xp is np and any(np.isnan(q).any() for q in shares):  # which numpy refuses
            return np.full(shape, np.nan, x.dtype)
        made = getattr(xp, name)(x, *shares, axis=node.params["axes"], keepdims=node.params["keepdims"])
        return made.reshape(shape)

    return compute


def softmax(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    """Exponentials that sum to one along axes."""
    (x,), axes = xs, node.params["axes"]
    if not on_host(x):
        return jax.nn.softmax(x, axis=axes)
    made = np.exp(x - np.max(x, axis=axes, keepdims=True, initial=-np.inf))
    return made / np.sum(made, axis=axes, keepdims=True, dtype=_double(x)).astype(x.dtype)
