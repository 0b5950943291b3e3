"""The reductions of expressions as passes over blocks, so that no operand of them is held whole.

One block gives the bits that numpy gives at once. Several are summed one by one, in double precision as well: the last
bit of a long sum may differ from that of numpy's order, and is rounded away where the result is float32 or shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.dtypes import Aval, to_numpy
from brainsurgery_jax.expression.cut_rules import elementwise
from brainsurgery_jax.expression.evaluate import evaluate
from brainsurgery_jax.expression.liveness import peak
from brainsurgery_jax.expression.operations import OPERATIONS
from brainsurgery_jax.expression.program import Computation, Literal, Node
from brainsurgery_jax.expression.ranges import find_guarded
from brainsurgery_jax.expression.reductions import finite_or_zero, place_of
from brainsurgery_jax.numerics.places import PlaceSearch
from brainsurgery_jax.numerics.ranks import find_places
from brainsurgery_jax.numerics.squares import PASSING, goes_by_pieces, sum_squares
from brainsurgery_jax.numerics.sums import Key, Merged, Total, Values, add_up, keep_extreme, reduce_axes
from brainsurgery_jax.op import Passes
from brainsurgery_jax.reduction import Answer, Reduction

Shape = tuple[int, ...]


def can_fold(node: Node, shape: Shape) -> bool:
    """Whether an operation on a tensor of a shape is computed by passes over its blocks."""
    return node.op in _FOLDS and bool(prod(shape)) and _FOLDS[node.op].fits(node, shape)


def _always(node: Node, shape: Shape) -> bool:
    return True


def _is_of_all(node: Node, shape: Shape) -> bool:
    """Whether a reduction goes over all axes: places are found in one sorted order alone."""
    return len(node.params["axes"]) == len(shape)


def _has_place(node: Node, shape: Shape) -> bool:
    """Whether a quantile over all axes is that of a number of the expression."""
    share = node.operands[-1]
    return _is_of_all(node, shape) and isinstance(share, Literal) and 0 <= share.value <= 1


def can_derive(node: Node, operand: Computation) -> bool:
    """Whether the passes of a fold make its operand themselves, a piece at a time: their answer is the same wherever
    blocks are cut, and each element of the operand is made of one element of one tensor."""
    return _FOLDS[node.op].any_cut and not find_guarded(operand) and _for_elements(operand) is not None


def passes_of(program: Computation, shape: Shape) -> Passes:
    """The passes that compute the last operation of a program on a tensor of a shape. The others make its operand."""
    *before, node = program.nodes
    passes = _FOLDS[node.op].passes(node, shape)
    each = _for_elements(Computation(tuple(before)))
    assert each is not None, "`can_derive` was asked"
    return passes if len(before) == 1 else tuple(partial(_derive, each, one) for one in passes)


def _for_elements(program: Computation) -> Computation | None:
    """A program for tensors of any length, if it makes each element of its result of one element of one tensor."""
    rest = [node for node in program.nodes if not node.is_leaf]
    if len(program.nodes) - len(rest) != 1 or any(node.aval.shape != program.aval.shape for node in rest):
        return None
    if not all(node.sources and OPERATIONS[node.op].cut is elementwise for node in rest):
        return None
    return Computation(tuple(node._replace(aval=Aval((1,), node.aval.dtype)) for node in program.nodes))


def _derive(each: Computation, make: Callable[[Any], Reduction], before: object) -> Reduction:
    """A pass over what a program makes of each element, while it is in the cache."""
    reduction = make(before)

    def block(x: np.ndarray) -> Any:
        pieces = (x[at : at + PIECE] for at in range(0, x.size, PIECE))
        with np.errstate(all="ignore"):
            return reduce(reduction.merge, (reduction.block(np.asarray(evaluate(each, [y])[0])) for y in pieces))

    made = peak(each) + each.aval.nbytes
    return reduction._replace(block=block, passing=(reduction.passing or 0) + made)


PIECE = 1 << 18
"""Elements that are made together."""


def _finish(node: Node, value: np.ndarray | float) -> np.ndarray:
    return np.asarray(value).astype(to_numpy(node.aval.dtype), copy=False).reshape(node.aval.shape)


def _wide(node: Node) -> np.dtype:
    """The dtype in which sums of an operand are kept: numpy's own for integers."""
    own = {"complex": "complex128", "float": "float64", "uint": "uint64"}
    return np.dtype(own.get(node.work.kind, "int64"))


def _real_or_complex(node: Node) -> np.dtype:
    return np.dtype(np.complex128 if node.work.is_complex else np.float64)


def _add(
    node: Node, shape: Shape, wide: np.dtype, finish: Callable[[np.ndarray], Answer]
) -> Reduction[Merged, Answer | None]:
    axes = node.params["axes"]

    def step(x: np.ndarray, key: Key) -> Values:
        return (np.sum(x, axis=axes, keepdims=True, dtype=wide),)

    return reduce_axes(shape, axes, [add_up(wide)], step, finish)


def _sum(node: Node, shape: Shape) -> Passes:
    return (lambda _: _add(node, shape, _wide(node), partial(_finish, node)),)


def _count(node: Node, shape: Shape) -> int:
    return prod(shape[axis] for axis in node.params["axes"])


def _mean_of(
    node: Node, shape: Shape, finish: Callable[[np.ndarray], np.ndarray] = lambda mean: mean
) -> Reduction[Merged, np.ndarray | None]:
    """What `finish` makes of the mean with the reduced axes kept, in double precision."""
    wide, count = _real_or_complex(node), _count(node, shape)
    return _add(node, shape, wide, lambda total: finish(np.divide(total, np.asarray(count, total.dtype))))


def _mean(node: Node, shape: Shape) -> Passes:
    return (lambda _: _mean_of(node, shape, partial(_finish, node)),)


def _squares(
    node: Node, shape: Shape, less: np.ndarray | None, finish: Callable[[np.ndarray], np.ndarray]
) -> Reduction[Merged, np.ndarray | None]:
    """The sum of squared magnitudes, of what is less a mean."""
    axes, wide = node.params["axes"], _real_or_complex(node)
    plain = less is None and not node.work.is_complex

    def step(x: np.ndarray, key: Key) -> Values:
        if plain:
            return (sum_squares(x, axes),)
        y = x.astype(wide) if less is None else x.astype(wide) - less[key]
        squares = np.square(np.real(y)) + np.square(np.imag(y)) if node.work.is_complex else np.square(y, out=y)
        return (np.sum(squares, axis=axes, keepdims=True),)

    made = reduce_axes(shape, axes, [add_up(np.dtype(np.float64))], step, finish)
    return made._replace(passing=PASSING) if plain and goes_by_pieces(len(shape), axes) else made


def _norm(node: Node, shape: Shape) -> Passes:
    return (lambda _: _squares(node, shape, None, lambda total: _finish(node, np.sqrt(total))),)


def _variance(root: bool) -> Callable[[Node, Shape], Passes]:
    """The mean first, then the squares of what is less the mean."""

    def passes(node: Node, shape: Shape) -> Passes:
        count = _count(node, shape)

        def finish(total: np.ndarray) -> np.ndarray:
            found = np.divide(total, np.asarray(count, total.dtype))
            return _finish(node, np.sqrt(found) if root else found)

        return (lambda _: _mean_of(node, shape)), (lambda mean: _squares(node, shape, mean, finish))

    return passes


def _join_up(name: str, start: float, wide: Callable[[Node], np.dtype]) -> Callable[[Node, Shape], Passes]:
    """One pass that joins elements by an operation in which order does not matter."""

    def passes(node: Node, shape: Shape) -> Passes:
        axes, dtype, join = node.params["axes"], wide(node), getattr(np, name)

        def step(x: np.ndarray, key: Key) -> Values:
            return (np.asarray(join.reduce(x, axis=axes, keepdims=True, dtype=dtype)),)

        total = Total(dtype, start, join)
        return (lambda _: reduce_axes(shape, axes, [total], step, partial(_finish, node)),)

    return passes


def _truth(node: Node) -> np.dtype:
    return np.dtype(np.bool_)


def _log_sum_exp(node: Node, shape: Shape) -> Passes:
    """The largest first, then the exponentials of what is less the largest."""
    axes, dtype = node.params["axes"], to_numpy(node.work)

    def largest(x: np.ndarray, key: Key) -> Values:
        return (np.max(x, axis=axes, keepdims=True),)

    def exponentials(most: np.ndarray) -> Reduction[Merged, np.ndarray | None]:
        less = finite_or_zero(np, most)

        def step(x: np.ndarray, key: Key) -> Values:
            shifted = x - less[key]
            return (np.asarray(np.sum(np.exp(shifted, out=shifted), axis=axes, keepdims=True, dtype=np.float64)),)

        def finish(total: np.ndarray) -> np.ndarray:
            return _finish(node, np.log(total) + less.astype(np.float64))

        return reduce_axes(shape, axes, [add_up(np.dtype(np.float64))], step, finish)

    return (lambda _: reduce_axes(shape, axes, [keep_extreme("max", dtype)], largest, lambda most: most)), exponentials


def _extreme(name: str) -> Callable[[Node, Shape], Passes]:
    def passes(node: Node, shape: Shape) -> Passes:
        axes, dtype = node.params["axes"], to_numpy(node.work)

        def step(x: np.ndarray, key: Key) -> Values:
            return (getattr(np, name)(x, axis=axes, keepdims=True),)

        return (lambda _: reduce_axes(shape, axes, [keep_extreme(name, dtype)], step, partial(_finish, node)),)

    return passes


def _quantile(node: Node, shape: Shape) -> Passes:
    """Linear interpolation between two neighbours, by numpy's own function on these two alone."""
    found, last = place_of(node, prod(shape)), prod(shape) - 1
    assert found is not None
    place, between = found[0], np.asarray(found[1])
    return _order(node, shape, (place, min(place + 1, last)), lambda found: np.quantile(found, between))


def _kth(node: Node, shape: Shape) -> Passes:
    return _order(node, shape, (prod(shape) - node.params["count"],), lambda found: found)


def _median(node: Node, shape: Shape) -> Passes:
    size = prod(shape)
    return _order(node, shape, ((size - 1) // 2, size // 2), lambda found: np.median(found))


def _order(node: Node, shape: Shape, places: tuple[int, ...], finish: Callable[[np.ndarray], np.ndarray]) -> Passes:
    dtype = to_numpy(node.aval.dtype)

    def at_once(found: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return _finish(node, finish(found))

    def cast(reduction: Reduction) -> Reduction:
        passing = (reduction.passing or 0) + dtype.itemsize * (node.work != node.aval.dtype)
        return reduction._replace(block=lambda x: reduction.block(x.astype(dtype, copy=False)), passing=passing)

    nan = _finish(node, np.nan if np.issubdtype(dtype, np.floating) else 0)
    if PlaceSearch.pays(dtype, prod(shape)):
        passes = PlaceSearch(dtype, places, prod(shape), at_once, nan).passes()
    else:
        passes = find_places(dtype, places, at_once, nan)
    return tuple(lambda before, one=one: cast(one(before)) for one in passes)


class FoldRule(NamedTuple):
    """The passes of an operation over a tensor of a shape, and when there are any. `any_cut`: they give the same bits
    wherever the blocks of a tensor are cut."""

    passes: Callable[[Node, Shape], Passes]
    fits: Callable[[Node, Shape], bool] = _always
    any_cut: bool = False


_FOLDS: Mapping[str, FoldRule] = {
    "sum": FoldRule(_sum),
    "mean": FoldRule(_mean),
    "prod": FoldRule(_join_up("multiply", 1, _wide)),
    "any": FoldRule(_join_up("logical_or", False, _truth)),
    "all": FoldRule(_join_up("logical_and", True, _truth)),
    "logsumexp": FoldRule(_log_sum_exp),
    "norm": FoldRule(_norm),
    "std": FoldRule(_variance(root=True)),
    "var": FoldRule(_variance(root=False)),
    "min": FoldRule(_extreme("min")),
    "max": FoldRule(_extreme("max")),
    "kth_largest": FoldRule(_kth, _is_of_all, any_cut=True),
    "median": FoldRule(_median, _is_of_all, any_cut=True),
    "quantile": FoldRule(_quantile, _has_place, any_cut=True),
}
