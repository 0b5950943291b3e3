"""What computes the operations of an expression, on numpy arrays and on JAX arrays, and what is known of each.

On numpy every operation is rounded as IEEE 754 says, one after the other; sums are kept in double precision. On traced
arrays results are sealed, so that XLA rounds them as well; there functions such as `exp` are XLA's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import jax, jnp, np
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.expression import cut_rules as cut
from brainsurgery_jax.expression.program import Literal, Node, Operand
from brainsurgery_jax.numerics.math import kind, on_host, quotient, seal
from brainsurgery_jax.numerics.rounding import cast_to

SLAB = 1 << 20
"""Elements of which squares are summed at a time."""

Shape = tuple[int, ...]
Compute = Callable[[Any, Node, Shape, Sequence[Any]], Any]
"""`(numpy or jax.numpy, node, shape of the result, operands) -> result`."""


class Operation(NamedTuple):
    """An operation: what computes it, how cuts of its result pass to its operands, bytes that it takes on the way.

    `passing`: for each byte of its largest operand or its result, as numpy computes. `view`: it looks at the elements
    of its operand in another way, where numpy can. `sealed`: it rounds.
    """

    compute: Compute
    cut: cut.Rule = cut.elementwise
    passing: float = 0
    view: bool = False
    sealed: bool = True


# --- Elementwise ------------------------------------------------------------------------------------------------------


def _look_up(name: str) -> Compute:
    """A function of the namespace."""
    return lambda xp, node, shape, xs: getattr(xp, name)(*xs)


def _add(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    x, y = xs
    if on_host(x) or not any(isinstance(p, Literal) and p.value == 0 for p in node.operands):
        return xp.add(x, y)
    total = xp.add(x, y)  # XLA leaves a sum with zero out, which keeps -0
    return xp.where(total == 0, xp.zeros_like(total), total) if kind(total) == "float" else total


def _divide(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    return quotient(*xs)


def _power(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
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
    return xp.power(x, xp.maximum(y, 0) if kind(y) == "int" else y)  # negative ones were told apart (`_ranges`)


def _whole_power(x: Any, exponent: int, inverse: bool) -> Any:
    """By repeated squares in double precision: rounded to float32, as exact as the C library is, and much faster."""
    made = np.ones_like(x)
    while exponent:
        if exponent & 1:
            made = made * x
        exponent >>= 1
        x = x * x if exponent else x
    return 1 / made if inverse else made


def _floor_divide(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    x, y = xs
    if not on_host(x) and kind(x) == "float":
        return _divide_with_rest(x, y)[0]
    if on_host(x) and kind(x) == "float" and _is_power_of_two(node.operands[1]):
        return _floor_quotient(x, y) + x * 0  # infinity has no floored quotient
    return xp.floor_divide(x, y)


def _remainder(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
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


def _floor_quotient(x: Any, y: Any) -> Any:
    """The floored quotient of finite numpy floats by a power of two."""
    made = np.floor(x / y)
    return np.where((made == 0) & (x < 0), np.asarray(-1, x.dtype), made)  # the quotient may be too small to be one


def _divide_with_rest(x: Any, y: Any) -> tuple[Any, Any]:
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


def _sign(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    (x,) = xs
    made = xp.sign(x)
    return made if on_host(x) or kind(x) != "float" else xp.where(x == 0, xp.zeros_like(x), made)


def _sigmoid(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    (x,) = xs
    if not on_host(x):
        return jax.nn.sigmoid(x)
    falling = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, falling) / (1 + falling)


def _clip(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    x, low, high = xs
    return xp.minimum(xp.maximum(x, low), high)


def _where(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
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


def _cast(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    return cast_to(xs[0], node.aval.dtype, node.get("overflow"))[0]


def _fill_with(value: int) -> Compute:
    return lambda xp, node, shape, xs: xp.full(shape, value, to_numpy(node.aval.dtype))


# --- Reductions -------------------------------------------------------------------------------------------------------


def _reduce(fn: Callable[[Any, Any, Any], Any]) -> Compute:
    """A reduction `fn(xp, x, keywords)` of floats in double precision, on accelerators in their own."""

    def compute(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
        (x,), made = xs, to_numpy(node.aval.dtype)
        keywords = {"axis": node.get("axes"), "keepdims": node.get("keepdims")}
        plain = lambda x: fn(xp, x, keywords | {"dtype": _double(x)}).astype(made)  # noqa: E731
        if on_host(x) or kind(x) not in ("float", "complex"):
            return plain(x)
        narrow = lambda x: fn(xp, x, keywords | {"dtype": x.dtype}).astype(made)  # noqa: E731
        return jax.lax.platform_dependent(x, cpu=plain, default=narrow)

    return compute


def _double(x: Any) -> Any:
    return {"complex": np.complex128, "float": np.float64}.get(kind(x))


def _sum(xp: Any, x: Any, keywords: Any) -> Any:
    return xp.sum(x, **keywords)


def _mean(xp: Any, x: Any, keywords: Any) -> Any:
    axis = keywords["axis"]
    total = xp.sum(x, **keywords | {"dtype": keywords["dtype"] or np.float64})
    return quotient(total, xp.asarray(prod(x.shape[a] for a in axis), total.dtype))


def _variance(xp: Any, x: Any, keywords: Any) -> Any:
    mean = _mean(xp, x, keywords | {"keepdims": True})
    total = _squares(xp, x, keywords, mean)
    return quotient(total, xp.asarray(prod(x.shape[a] for a in keywords["axis"]), total.dtype))


def _deviation(xp: Any, x: Any, keywords: Any) -> Any:
    return xp.sqrt(_variance(xp, x, keywords))


def _norm(xp: Any, x: Any, keywords: Any) -> Any:
    return xp.sqrt(_squares(xp, x, keywords, None))


def _squares(xp: Any, x: Any, keywords: Any, less: Any) -> Any:
    """The sum of squared magnitudes, of what is less a mean. Of numpy arrays some at a time, which makes no wider copy
    of all of them."""
    axes, wide = keywords["axis"], keywords["dtype"] or np.float64
    cut = next((a for a in axes if x.shape[a] > 1), None)
    if not on_host(x) or cut is None or x.size <= SLAB:
        return _sum_squares(xp, x, wide, less, keywords)
    step = max(1, SLAB * x.shape[cut] // x.size)
    slabs = (x[(slice(None),) * cut + (slice(at, at + step),)] for at in range(0, x.shape[cut], step))
    return sum(_sum_squares(xp, slab, wide, less, keywords) for slab in slabs)


def _sum_squares(xp: Any, x: Any, wide: Any, less: Any, keywords: Any) -> Any:
    x = x.astype(wide) if less is None else x.astype(wide) - less
    if kind(x) == "complex":
        squares = xp.square(x.real) + xp.square(x.imag)
    else:
        squares = np.square(x, out=x) if on_host(x) and x.ndim else xp.square(x)
    return xp.sum(squares, axis=keywords["axis"], keepdims=keywords["keepdims"])


def _extreme(name: str) -> Compute:
    return lambda xp, node, shape, xs: getattr(xp, name)(xs[0], axis=node.get("axes"), keepdims=node.get("keepdims"))


def _share(xp: Any, q: Any) -> Any:
    """Shares of the elements as floats; those of a tensor that are beyond 0 and 1 give what 0 and 1 give."""
    return xp.clip(q if q.dtype.kind == "f" else q.astype(np.float32), 0, 1)


def _pick_by_order(name: str) -> Compute:
    """The middle, or another place in the order of the elements."""

    def compute(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
        x = xs[0].astype(to_numpy(node.aval.dtype), copy=False)
        shares = [_share(xp, q) for q in xs[1:]]
        if xp is np and any(np.isnan(q).any() for q in shares):  # which numpy refuses
            return np.full(shape, np.nan, x.dtype)
        made = getattr(xp, name)(x, *shares, axis=node.get("axes"), keepdims=node.get("keepdims"))
        return made.reshape(shape)

    return compute


def _softmax(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    (x,), axes = xs, node.get("axes")
    if not on_host(x):
        return jax.nn.softmax(x, axis=axes)
    made = np.exp(x - np.max(x, axis=axes, keepdims=True))
    return made / np.sum(made, axis=axes, keepdims=True, dtype=_double(x)).astype(x.dtype)


# --- Contractions, and what moves elements ----------------------------------------------------------------------------


def _outer(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    return xs[0][:, None] * xs[1][None, :]


def _item(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    return xs[0][tuple(_slice(p, n) for p, n in _with_sizes(node.get("parts"), xs[0].shape))]


def _slice(part: Any, size: int) -> Any:
    if not isinstance(part, tuple):
        return part
    start, stop, step = part
    return slice(start, None if stop < 0 else stop, step)


def _with_sizes(parts: Sequence[Any], shape: Shape) -> Any:
    sizes = iter(shape)
    return [(p, 1 if p is None else next(sizes)) for p in parts]


def _take(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    table, indices = xs
    axis = node.get("axis")
    size = table.size if axis is None else table.shape[axis]
    if kind(indices) == "int":
        indices = xp.where(indices < 0, indices + size, indices)
    if not on_host(indices) and size < 1 << 31:
        indices = indices.astype(np.int32)  # of 64 bits, the backward pass in JAX's default configuration has none
    return xp.take(table, indices, axis=axis, mode="clip")


def _counts(name: str, dtype: str) -> Compute:
    return lambda xp, node, shape, xs: getattr(xp, name)(*node.get("counts"), dtype=dtype)


def _move(compute: Compute, rule: cut.Rule, *, view: bool = False) -> Operation:
    return Operation(compute, rule, view=view, sealed=False)


_NAMED = (
    "subtract", "multiply", "negative", "invert", "bitwise_and", "bitwise_or", "left_shift", "right_shift",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "abs", "sqrt", "exp", "log", "sin", "cos",
    "tanh", "round", "floor", "ceil", "isfinite", "isnan", "minimum", "maximum",
)  # fmt: skip
"""Operations that numpy and `jax.numpy` have under these names."""


def _repeat(xp: Any, node: Node, shape: Shape, xs: Sequence[Any]) -> Any:
    return xp.repeat(xs[0], node.get("times"), axis=node.get("axis"))


OPERATIONS: Mapping[str, Operation] = {
    **{name: Operation(_look_up(name)) for name in _NAMED},
    "add": Operation(_add),
    "positive": Operation(lambda xp, node, shape, xs: xs[0], sealed=False),
    "divide": Operation(_divide),
    "power": Operation(_power, passing=8),
    "floor_divide": Operation(_floor_divide),
    "remainder": Operation(_remainder),
    "sign": Operation(_sign),
    "sigmoid": Operation(_sigmoid, passing=3),
    "clip": Operation(_clip, passing=1),
    "where": Operation(_where, passing=3, sealed=False),
    "cast": Operation(_cast, passing=2, sealed=False),
    "zeros_like": Operation(_fill_with(0), sealed=False),
    "ones_like": Operation(_fill_with(1), sealed=False),
    "number": Operation(lambda xp, node, shape, xs: xs[0], cut.none, sealed=False),
    "sum": Operation(_reduce(_sum), cut.reduction),
    "mean": Operation(_reduce(_mean), cut.reduction),
    "std": Operation(_reduce(_deviation), cut.reduction),
    "var": Operation(_reduce(_variance), cut.reduction),
    "norm": Operation(_reduce(_norm), cut.reduction),
    "min": Operation(_extreme("min"), cut.reduction),
    "max": Operation(_extreme("max"), cut.reduction),
    "median": Operation(_pick_by_order("median"), cut.reduction, passing=1),
    "quantile": Operation(_pick_by_order("quantile"), cut.reduction, passing=1),
    "softmax": Operation(_softmax, cut.normalize, passing=1),
    "matmul": Operation(_look_up("matmul"), cut.product),
    "dot": Operation(_look_up("dot"), cut.product),
    "outer": Operation(_outer, cut.outer),
    "transpose": _move(lambda xp, node, shape, xs: xp.transpose(xs[0], node.get("order")), cut.transpose, view=True),
    "reshape": _move(lambda xp, node, shape, xs: xp.reshape(xs[0], shape), cut.reshape, view=True),
    "concat": _move(lambda xp, node, shape, xs: xp.concatenate(xs, axis=node.get("axis")), cut.concat),
    "stack": _move(lambda xp, node, shape, xs: xp.stack(xs, axis=node.get("axis")), cut.stack),
    "repeat": _move(_repeat, cut.repeat),
    "flip": _move(lambda xp, node, shape, xs: xp.flip(xs[0], node.get("axes")), cut.flip, view=True),
    "diag": _move(lambda xp, node, shape, xs: xp.diag(xs[0]), cut.none),
    "tril": _move(lambda xp, node, shape, xs: xp.tril(xs[0], node.get("k")), cut.triangle),
    "triu": _move(lambda xp, node, shape, xs: xp.triu(xs[0], node.get("k")), cut.triangle),
    "item": _move(_item, cut.item, view=True),
    "take": _move(_take, cut.take),
    "eye": _move(_counts("eye", "float32"), cut.none),
    "arange": _move(_counts("arange", "int64"), cut.none),
}  # fmt: skip
"""By the name that a node calls it."""
