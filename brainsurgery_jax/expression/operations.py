"""What computes the operations of an expression, on numpy arrays and on JAX arrays, and what is known of each.

On numpy every operation is rounded as IEEE 754 says, one after the other; sums are kept in double precision. On traced
arrays results are sealed, so that XLA rounds them as well; there functions such as `exp` are XLA's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType

from brainsurgery_jax._lazy import Array, Flag, jax, jnp, np
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.expression import cut_rules as cut
from brainsurgery_jax.expression import on_the_way
from brainsurgery_jax.expression import reductions as reduce
from brainsurgery_jax.expression.linear import LINEAR
from brainsurgery_jax.expression.on_the_way import of_largest
from brainsurgery_jax.expression.operation import Guard, Operation
from brainsurgery_jax.expression.ordering import ORDERING
from brainsurgery_jax.expression.program import IndexPart, Literal, Node, Operand
from brainsurgery_jax.expression.reductions import Compute, Shape
from brainsurgery_jax.numerics.math import kind, on_host, quotient, seal
from brainsurgery_jax.numerics.rounding import cast_to

# --- Elementwise ------------------------------------------------------------------------------------------------------


def _look_up(name: str) -> Compute:
    """A function of the namespace."""
    return lambda xp, node, shape, xs: getattr(xp, name)(*xs)


def _add(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    x, y = xs
    if on_host(x) or not any(isinstance(p, Literal) and p.value == 0 for p in node.operands):
        return xp.add(x, y)
    total = xp.add(x, y)  # XLA leaves a sum with zero out, which keeps -0
    return xp.where(total == 0, xp.zeros_like(total), total) if kind(total) == "float" else total


def _divide(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return quotient(*xs)


def _power(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    """As numpy: squares, roots and reciprocals are what they are called, and rounded once."""
    x, y = xs
    exponent = node.operands[1].value if isinstance(node.operands[1], Literal) else None
    if kind(x) in ("float", "complex"):
        match exponent:
            case 2:
                return x * x
            case 0.5:
                return xp.sqrt(x)
            case -1:
                return quotient(xp.ones_like(x), x)
    if x.dtype == np.float32 and isinstance(exponent, int) and on_host(x):
        return _whole_power(x.astype(np.float64), abs(exponent), exponent < 0)
    return xp.power(x, xp.maximum(y, 0) if kind(y) == "int" else y)  # negative ones were told apart (`ranges`)


def _whole_power(x: np.ndarray, exponent: int, inverse: bool) -> np.ndarray:
    """By repeated squares in double precision: rounded to float32, as exact as the C library is, and much faster."""
    made = np.ones_like(x)
    while exponent:
        if exponent & 1:
            made = made * x
        exponent >>= 1
        x = x * x if exponent else x
    return 1 / made if inverse else made


def _floor_divide(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    x, y = xs
    if not on_host(x) and kind(x) == "float":
        return _divide_with_rest(x, y)[0]
    if on_host(x) and kind(x) == "float" and _is_power_of_two(node.operands[1]):
        return _floor_quotient(x, y) + x * 0  # infinity has no floored quotient
    return xp.floor_divide(x, y)


def _remainder(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    x, y = xs
    if not on_host(x) and kind(x) == "float":
        return _divide_with_rest(x, y)[1]
    if _is_power_of_two(node.operands[1]) and kind(x) in ("int", "uint"):
        return xp.bitwise_and(x, y - 1)
    if _is_power_of_two(node.operands[1]) and kind(x) == "float":
        return x - _floor_quotient(x, y) * y
    return xp.remainder(x, y)


def _is_power_of_two(operand: Operand) -> bool:
    """Whether a divisor is 1, 2, 4, ...: then numpy's own function is a hundred times as slow as it need be."""
    value = operand.value if isinstance(operand, Literal) else 0
    return type(value) is int and value > 0 and value & (value - 1) == 0


def _floor_quotient(x: Array, y: Array) -> np.ndarray:
    """The floored quotient of finite numpy floats by a power of two."""
    made = np.floor(x / y)
    return np.where((made == 0) & (x < 0), np.asarray(-1, x.dtype), made)  # the quotient may be too small to be one


def _divide_with_rest(x: Array, y: Array) -> tuple[jax.Array, jax.Array]:
    """Floored quotient and remainder of traced floats, to the bits of numpy's."""
    x, y = jnp.broadcast_arrays(x, y)
    rest = jax.lax.rem(x, y)
    ratio = quotient(seal(x - rest), y)
    off = (rest != 0) & ((y < 0) != (rest < 0))
    rest, ratio = jnp.where(off, rest + y, rest), jnp.where(off, ratio - 1, ratio)
    rest = jnp.where(rest == 0, jnp.copysign(jnp.zeros_like(rest), y), rest)
    floored = jnp.floor(ratio)
    floored = jnp.where(ratio - floored > 0.5, floored + 1, floored)
    direct = quotient(x, y)
    floored = jnp.where(ratio == 0, jnp.copysign(jnp.zeros_like(x), direct), floored)
    return jnp.where(y == 0, direct, floored), jnp.where(y == 0, jnp.full_like(rest, np.nan), rest)


def _sign(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    (x,) = xs
    made = xp.sign(x)
    return made if on_host(x) or kind(x) != "float" else xp.where(x == 0, xp.zeros_like(x), made)


def _sigmoid(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    (x,) = xs
    if not on_host(x):
        return jax.nn.sigmoid(x)
    falling = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, falling) / (1 + falling)


def _erf(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    (x,) = xs
    return import_module("scipy.special").erf(x) if on_host(x) else jax.lax.erf(x)


def _clip(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    x, low, high = xs
    return xp.minimum(xp.maximum(x, low), high)


def _where(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    condition, x, y = xs
    if kind(condition) != "bool":
        condition = condition != 0
    if not on_host(x) or x.dtype.itemsize not in (4, 8) or kind(x) == "complex":
        return xp.where(condition, x, y)
    # By bits, which is six times as fast as numpy's own on conditions in no order.
    bits, signed = np.dtype(f"u{x.dtype.itemsize}"), np.dtype(f"i{x.dtype.itemsize}")
    mask = np.negative(condition.astype(signed)).view(bits)
    one, other = x.view(bits), y.view(bits)
    return (other ^ ((one ^ other) & mask)).view(x.dtype)


def _nan_to_num(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    """For infinity the largest number of the dtype that the operand is stored in, not of the wider one here."""
    most = node.params["largest"]
    return xs[0] if most is None else xp.nan_to_num(xs[0], posinf=most, neginf=-most)


def _cast(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return _cast_or_refuse(xp, node, shape, xs)[0]


def _fill_with(value: int) -> Compute:
    return lambda xp, node, shape, xs: xp.full(shape, value, to_numpy(node.aval.dtype))


# --- Contractions, and what moves elements ----------------------------------------------------------------------------


def _outer(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xs[0][:, None] * xs[1][None, :]


def _item(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xs[0][tuple(map(_slice, node.params["parts"]))]


def _slice(part: IndexPart) -> int | slice | None:
    if not isinstance(part, tuple):
        return part
    start, stop, step = part
    return slice(start, None if stop < 0 else stop, step)


def _take(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    table, indices = xs
    axis = node.params["axis"]
    size = table.size if axis is None else table.shape[axis]
    if kind(indices) == "int":
        indices = xp.where(indices < 0, indices + size, indices)
    if not on_host(indices) and size < 1 << 31:
        indices = indices.astype(np.int32)  # of 64 bits, the backward pass in JAX's default configuration has none
    return xp.take(table, indices, axis=axis, mode="clip")


def _counts(name: str, dtype: str) -> Compute:
    return lambda xp, node, shape, xs: getattr(xp, name)(*node.params["counts"], dtype=dtype)


def _move(compute: Compute, rule: cut.Rule) -> Operation:
    return Operation(compute, rule, sealed=False)


def _linspace(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xp.asarray(np.linspace(*node.params["span"]).astype(to_numpy(node.aval.dtype)))


def _kron(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    """Blocks of the second, one for each element of the first."""
    rank = max(x.ndim for x in xs)
    x, y = (xp.reshape(x, (1,) * (rank - x.ndim) + x.shape) for x in xs)
    x = xp.reshape(x, tuple(n for size in x.shape for n in (size, 1)))
    y = xp.reshape(y, tuple(n for size in y.shape for n in (1, size)))
    return xp.reshape(x * y, shape)


def _roll(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xp.roll(xs[0], node.params["shift"], axis=node.params["along"])


def _einsum(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    equation = node.params["equation"]
    return np.einsum(equation, *xs, optimize=True) if xp is np else xp.einsum(equation, *xs)


def _view(compute: Compute, rule: cut.Rule, *, needs_order: bool = False) -> Operation:
    return Operation(compute, rule, sealed=False, view=True, needs_order=needs_order)


# --- What some values stop --------------------------------------------------------------------------------------------


def _guard(compute: Compute, fits: Callable[[ModuleType, Node, Sequence[Array]], Flag]) -> Guard:
    return lambda xp, node, shape, xs: (compute(xp, node, shape, xs), fits(xp, node, xs))


def _has_divisor(xp: ModuleType, node: Node, xs: Sequence[Array]) -> Flag:
    return xp.all(xs[1] != 0)


def _has_exponent(xp: ModuleType, node: Node, xs: Sequence[Array]) -> Flag:
    return xp.all(xs[1] >= 0)


def _has_entries(xp: ModuleType, node: Node, xs: Sequence[Array]) -> Flag:
    axis = node.params["axis"]
    size = xs[0].size if axis is None else xs[0].shape[axis]
    return xp.all((xs[1] >= -size) & (xs[1] < size))


def _cast_or_refuse(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> tuple[Array, Flag]:
    return cast_to(xs[0], node.aval.dtype, node.params["overflow"])


_NAMED = (
    "subtract", "multiply", "negative", "invert", "bitwise_and", "bitwise_or", "left_shift", "right_shift",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "abs", "sqrt", "exp", "log", "sin", "cos",
    "tanh", "round", "floor", "ceil", "isfinite", "isnan", "minimum", "maximum", "arccos", "arcsin", "arctan2", "log1p",
    "expm1",
)  # fmt: skip
"""Operations that numpy and `jax.numpy` have under these names."""


def _repeat(xp: ModuleType, node: Node, shape: Shape, xs: Sequence[Array]) -> Array:
    return xp.repeat(xs[0], node.params["times"], axis=node.params["axis"])


def _product(name: str, rule: cut.Rule) -> Operation:
    return Operation(_look_up(name), rule, on_the_way.product, contracts=True, orders=True)


def _join(name: str, rule: cut.Rule) -> Operation:
    compute: Compute = lambda xp, node, shape, xs: getattr(xp, name)(xs, axis=node.params["axis"])  # noqa: E731
    return Operation(compute, rule, sealed=False, orders=True)


OPERATIONS: Mapping[str, Operation] = {
    **{name: Operation(_look_up(name)) for name in _NAMED},
    "add": Operation(_add),
    "positive": Operation(lambda xp, node, shape, xs: xs[0], sealed=False),
    "divide": Operation(_divide),
    "power": Operation(_power, on_the_way=on_the_way.power, guard=_guard(_power, _has_exponent)),
    "floor_divide": Operation(_floor_divide, guard=_guard(_floor_divide, _has_divisor)),
    "remainder": Operation(_remainder, guard=_guard(_remainder, _has_divisor)),
    "sign": Operation(_sign),
    "sigmoid": Operation(_sigmoid, on_the_way=of_largest(3)),
    "erf": Operation(_erf),
    "nan_to_num": Operation(_nan_to_num),
    "clip": Operation(_clip, on_the_way=of_largest(1)),
    "where": Operation(_where, on_the_way=of_largest(3), sealed=False, uncast=(0,)),
    "cast": Operation(_cast, on_the_way=on_the_way.cast, sealed=False, uncast=(0,), guard=_cast_or_refuse),
    "zeros_like": Operation(_fill_with(0), sealed=False),
    "ones_like": Operation(_fill_with(1), sealed=False),
    "number": Operation(lambda xp, node, shape, xs: xs[0], cut.none, sealed=False),
    "sum": Operation(reduce.reduce_over(reduce.add_up), cut.reduction),
    "mean": Operation(reduce.reduce_over(reduce.average), cut.reduction),
    "prod": Operation(reduce.reduce_over(reduce.multiply_up), cut.reduction),
    "any": Operation(reduce.test_truth("any"), cut.reduction, sealed=False),
    "all": Operation(reduce.test_truth("all"), cut.reduction, sealed=False),
    "logsumexp": Operation(reduce.reduce_over(reduce.log_sum_exp), cut.reduction, of_largest(2)),
    "std": Operation(reduce.reduce_over(reduce.deviation), cut.reduction, on_the_way.squares),
    "var": Operation(reduce.reduce_over(reduce.variance), cut.reduction, on_the_way.squares),
    "norm": Operation(reduce.reduce_over(reduce.norm), cut.reduction, on_the_way.norm),
    "min": Operation(reduce.keep_extreme("min"), cut.reduction),
    "max": Operation(reduce.keep_extreme("max"), cut.reduction),
    "median": Operation(reduce.pick_by_order("median"), cut.reduction, of_largest(1)),
    "quantile": Operation(reduce.pick_by_order("quantile"), cut.reduction, of_largest(1), uncast=(1,)),
    "kth_largest": Operation(reduce.keep_kth, cut.reduction, of_largest(3), sealed=False),
    "softmax": Operation(reduce.softmax, cut.normalize, of_largest(1)),
    "matmul": _product("matmul", cut.product),
    "dot": _product("dot", cut.dot),
    "outer": Operation(_outer, cut.outer),
    "transpose": _view(lambda xp, node, shape, xs: xp.transpose(xs[0], node.params["order"]), cut.transpose),
    "reshape": _view(lambda xp, node, shape, xs: xp.reshape(xs[0], shape), cut.reshape, needs_order=True),
    "concat": _join("concatenate", cut.concat),
    "stack": _join("stack", cut.stack),
    "repeat": _move(_repeat, cut.repeat)._replace(orders=True),
    "flip": _view(lambda xp, node, shape, xs: xp.flip(xs[0], node.params["axes"]), cut.flip),
    "diag": _move(lambda xp, node, shape, xs: xp.diag(xs[0]), cut.none),
    "tril": _move(lambda xp, node, shape, xs: xp.tril(xs[0], node.params["k"]), cut.triangle),
    "triu": _move(lambda xp, node, shape, xs: xp.triu(xs[0], node.params["k"]), cut.triangle),
    "item": _view(_item, cut.item),
    "take": Operation(_take, cut.take, on_the_way.take, sealed=False, uncast=(1,),
                      guard=_guard(_take, _has_entries), orders=True),
    "roll": _move(_roll, cut.roll)._replace(orders=True),
    "kron": Operation(_kron, cut.kron, orders=True),
    "einsum": Operation(_einsum, cut.einsum, on_the_way.contraction, contracts=True, orders=True),
    **LINEAR,
    **ORDERING,
    "zeros": _move(_fill_with(0), cut.elementwise),
    "ones": _move(_fill_with(1), cut.elementwise),
    "linspace": _move(_linspace, cut.none),
    "eye": _move(_counts("eye", "float32"), cut.none),
    "arange": _move(_counts("arange", "int64"), cut.none),
}  # fmt: skip
"""By the name that a node calls it."""
