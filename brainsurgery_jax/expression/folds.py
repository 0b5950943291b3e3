"""The reductions of expressions as passes over blocks, so that no operand of them is held whole.

One block gives the bits that numpy gives at once. Several are summed one by one, in double precision as well: the last
bit of a long sum may differ from that of numpy's order, and is rounded away where the result is float32 or shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

from brainsurgery_jax._lazy import np
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.expression.program import Literal, Node
from brainsurgery_jax.numerics.math import quotient
from brainsurgery_jax.numerics.ranks import find_places
from brainsurgery_jax.numerics.sums import Key, Values, add_up, keep_extreme, reduce_axes
from brainsurgery_jax.op import Passes
from brainsurgery_jax.protocol import Reduction

Shape = tuple[int, ...]


def can_fold(node: Node, shape: Shape) -> bool:
    """Whether an operation on a tensor of a shape is computed by passes over its blocks."""
    if node.op not in _PASSES or not prod(shape):
        return False
    if node.op in ("median", "quantile"):
        return len(node.get("axes")) == len(shape) and _has_place(node)
    return True


def _has_place(node: Node) -> bool:
    """Whether a quantile is that of a number of the expression."""
    share = node.operands[-1] if node.op == "quantile" else Literal.of(0.5)
    return isinstance(share, Literal) and 0 <= share.value <= 1


def passes_of(node: Node, shape: Shape) -> Passes:
    """The passes that compute an operation on a tensor of a shape."""
    return _PASSES[node.op](node, shape)


def _finish(node: Node, value: Any) -> Any:
    return np.asarray(value).astype(to_numpy(node.aval.dtype), copy=False).reshape(node.aval.shape)


def _wide(node: Node) -> Any:
    """The dtype in which sums of an operand are kept: numpy's own for integers."""
    own = {"complex": np.complex128, "float": np.float64, "uint": np.uint64}
    return np.dtype(own.get(node.work.kind, np.int64))


def _real_or_complex(node: Node) -> Any:
    return np.dtype(np.complex128 if node.work.is_complex else np.float64)


def _add(node: Node, shape: Shape, wide: Any, finish: Callable[[Any], Any]) -> Reduction:
    axes = node.get("axes")

    def step(x: Any, key: Key) -> Values:
        return (np.sum(x, axis=axes, keepdims=True, dtype=wide),)

    return reduce_axes(shape, axes, [add_up(wide)], step, finish)


def _sum(node: Node, shape: Shape) -> Passes:
    return (lambda _: _add(node, shape, _wide(node), partial(_finish, node)),)


def _count(node: Node, shape: Shape) -> int:
    return prod(shape[axis] for axis in node.get("axes"))


def _mean_of(node: Node, shape: Shape) -> Reduction:
    """The mean with the reduced axes kept, in double precision."""
    wide, count = _real_or_complex(node), _count(node, shape)
    return _add(node, shape, wide, lambda total: quotient(total, np.asarray(count, total.dtype)))


def _mean(node: Node, shape: Shape) -> Passes:
    def only(_: Any) -> Reduction:
        made = _mean_of(node, shape)
        return made._replace(finish=lambda found: _finish(node, made.finish(found)))

    return (only,)


def _squares(node: Node, shape: Shape, less: Any, finish: Callable[[Any], Any]) -> Reduction:
    """The sum of squared magnitudes, of what is less a mean."""
    axes, wide = node.get("axes"), _real_or_complex(node)

    def step(x: Any, key: Key) -> Values:
        y = x.astype(wide) if less is None else x.astype(wide) - less[key]
        squares = np.square(y.real) + np.square(y.imag) if y.dtype.kind == "c" else np.square(y, out=y)
        return (np.sum(squares, axis=axes, keepdims=True),)

    return reduce_axes(shape, axes, [add_up(np.dtype(np.float64))], step, finish)


def _norm(node: Node, shape: Shape) -> Passes:
    return (lambda _: _squares(node, shape, None, lambda total: _finish(node, np.sqrt(total))),)


def _variance(root: bool) -> Callable[[Node, Shape], Passes]:
    """The mean first, then the squares of what is less the mean."""

    def passes(node: Node, shape: Shape) -> Passes:
        count = _count(node, shape)

        def finish(total: Any) -> Any:
            found = quotient(total, np.asarray(count, total.dtype))
            return _finish(node, np.sqrt(found) if root else found)

        return (lambda _: _mean_of(node, shape)), (lambda mean: _squares(node, shape, mean, finish))

    return passes


def _extreme(name: str) -> Callable[[Node, Shape], Passes]:
    def passes(node: Node, shape: Shape) -> Passes:
        axes, dtype = node.get("axes"), to_numpy(node.work)

        def step(x: Any, key: Key) -> Values:
            return (getattr(np, name)(x, axis=axes, keepdims=True),)

        return (lambda _: reduce_axes(shape, axes, [keep_extreme(name, dtype)], step, partial(_finish, node)),)

    return passes


def _quantile(node: Node, shape: Shape) -> Passes:
    """Linear interpolation between two neighbours, by numpy's own function on these two alone."""
    share = node.operands[1]
    assert isinstance(share, Literal)
    virtual = (prod(shape) - 1) * float(share.value)
    place, last = int(virtual), prod(shape) - 1
    between = np.asarray(1.0 if place >= last else virtual - place)
    return _order(node, (place, min(place + 1, last)), lambda found: np.quantile(found, between))


def _median(node: Node, shape: Shape) -> Passes:
    size = prod(shape)
    return _order(node, ((size - 1) // 2, size // 2), lambda found: np.median(found))


def _order(node: Node, places: tuple[int, ...], finish: Callable[[Any], Any]) -> Passes:
    dtype = to_numpy(node.aval.dtype)

    def at_once(found: Any) -> Any:
        with np.errstate(all="ignore"):
            return _finish(node, finish(found))

    def cast(reduction: Reduction) -> Reduction:
        passing = (reduction.passing or 0) + dtype.itemsize * (node.work != node.aval.dtype)
        return reduction._replace(block=lambda x: reduction.block(x.astype(dtype, copy=False)), passing=passing)

    passes = find_places(dtype, places, at_once, _finish(node, np.nan))
    return tuple(lambda before, one=one: cast(one(before)) for one in passes)


_PASSES: Mapping[str, Callable[[Node, Shape], Passes]] = {
    "sum": _sum,
    "mean": _mean,
    "norm": _norm,
    "std": _variance(root=True),
    "var": _variance(root=False),
    "min": _extreme("min"),
    "max": _extreme("max"),
    "median": _median,
    "quantile": _quantile,
}
