"""The functions that an expression of `compute` may call: how they are written, and what `jax.numpy` makes of types.

What computes them, on numpy or JAX arrays, is in `operations.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING

from brainsurgery_jax._lazy import jax, jnp
from brainsurgery_jax.expression import signatures as sign
from brainsurgery_jax.expression.linear import LINEAR_FUNCTIONS
from brainsurgery_jax.expression.ordering import ORDERING_FUNCTIONS
from brainsurgery_jax.expression.program import Static
from brainsurgery_jax.expression.signatures import AXES, MANY, Function
from brainsurgery_jax.numerics.equations import ADVICE, letter_sizes, read_equation

if TYPE_CHECKING:
    Axis = int | tuple[int, ...] | None

CASTS = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64",
)  # fmt: skip
"""Functions named after the dtypes that are computed in: they cast, and refuse what does not fit."""


def _of(name: str) -> Callable[..., jax.Array]:
    """A function of `jax.numpy`, looked up when it is called."""
    return lambda *xs, **keywords: getattr(jnp, name)(*xs, **keywords)


def _each(name: str, arguments: str, fn: Callable[..., jax.Array] | None = None) -> Function:
    count = arguments.count(",") + 1
    return Function(f"{name}({arguments})", fn or _of(name), (count, count), elementwise=True)


def _cast(name: str) -> Function:
    cast = _each(name, "x", lambda x: _real(jnp.asarray(x)).astype(name))
    return cast._replace(static=lambda keywords, args, rank: (("overflow", None),))


def _real(x: jax.Array) -> jax.Array:
    return x.real if jnp.issubdtype(x.dtype, jnp.complexfloating) else x


def _reduce(name: str, fn: Callable[..., jax.Array] | None = None, extra: str = "") -> Function:
    usage = f"{name}(x, axis=None, keepdims=False){extra}"
    return Function(usage, fn or _of(name), keywords=AXES, static=sign.reduce_axes, own=True, reduces=True)


def _picking(name: str) -> Callable[..., jax.Array]:
    """A reduction of `jax.numpy` that picks elements, so that it needs some."""

    def fn(x: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
        sign.need_elements(name, jnp.shape(x), axis)
        made = getattr(jnp, name)(x, axis=axis, keepdims=keepdims)
        return made if jnp.ndim(x) else made.reshape(())  # for some, JAX keeps an axis that was not there

    return fn


def _norm(x: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), axis=axis, keepdims=keepdims))


def _quantile(x: jax.Array, q: jax.Array | float, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    if isinstance(q, bool | complex) or (jnp.ndim(q) == 0 and not hasattr(q, "dtype") and not 0 <= q <= 1):
        raise ValueError(f"a share of the elements is a number from 0 to 1, got {q}")
    if jnp.ndim(q) > 1 or not jnp.issubdtype(jnp.result_type(q), jnp.number):
        raise ValueError("a share of the elements is a number from 0 to 1, or a vector of them")
    sign.need_elements("quantile", jnp.shape(x), axis)
    made = jnp.quantile(x, jnp.asarray(q, jnp.result_type(q, jnp.float32)), axis=axis, keepdims=keepdims)
    return made if jnp.ndim(x) else made.reshape(jnp.shape(q))


def _kth(x: jax.Array, k: object, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError("takes real tensors")
    sign.need_elements("largest", jnp.shape(x), axis)
    made = jnp.max(x, axis=axis, keepdims=keepdims)
    size = prod(x.shape[a] for a in sign.axes_of(axis, x.ndim))
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= size:
        raise ValueError(f"takes a whole number from 1 to {size:,}, how many elements it chooses from")
    return made


def _kth_static(keywords: sign.Keywords, args: Sequence[object], rank: int) -> Static:
    return ("count", args[1]), *sign.reduce_axes(keywords, args, rank)


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    if (jnp.ndim(x), jnp.ndim(y)) != (1, 1):
        raise ValueError("outer takes two vectors")
    return x[:, None] * y[None, :]


def _joining(fn: str) -> Callable[..., jax.Array]:
    """A function of several tensors, given one by one or as a list."""

    def join(*xs: jax.Array | tuple[jax.Array, ...], axis: int | None = 0) -> jax.Array:
        if axis is None:
            raise ValueError("takes a whole number as axis")
        return getattr(jnp, fn)(list(xs[0]) if len(xs) == 1 and isinstance(xs[0], tuple) else list(xs), axis=axis)

    return join


def _log_sum_exp(x: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    return jnp.sum(x * 1.0, axis=axis, keepdims=keepdims)


def _fill(*sizes: object) -> jax.Array:
    whole = _counts(*(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple) else sizes))
    return jnp.zeros(whole, jnp.float32)


def _linspace(start: object, stop: object, count: object) -> jax.Array:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError("takes a whole number as count")
    if not (isinstance(start, int | float) and isinstance(stop, int | float)):
        raise ValueError("takes numbers, no tensors")
    return jnp.zeros(count, jnp.float64)


def _span(keywords: sign.Keywords, args: Sequence[object], rank: int) -> Static:
    start, stop, count = args
    assert isinstance(start, int | float) and isinstance(stop, int | float)
    return (("span", (float(start), float(stop), count)),)


def _roll(x: jax.Array, shift: object, axis: Axis = None) -> jax.Array:
    if isinstance(shift, bool) or not isinstance(shift, int | tuple):
        raise ValueError("takes a whole number of places, or a list with one for each axis")
    return jnp.roll(x, shift, axis=axis)


def _read_shift(keywords: sign.Keywords, args: Sequence[object], rank: int) -> Static:
    axis = keywords.get("axis")
    along = None if axis is None else tuple(a % max(1, rank) for a in sign.whole_numbers(axis))
    return ("shift", args[1]), ("along", along)


def _kron(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.kron(x, y)


def _diagonal(keywords: sign.Keywords, args: Sequence[object], rank: int) -> Static:
    return (("k", keywords.get("k", 0)),)


def _einsum(equation: object, *xs: jax.Array) -> jax.Array:
    found = read_equation(equation) if isinstance(equation, str) else None
    if found is None:
        raise ValueError(f"the equation stands in quotes. {ADVICE}")
    sizes = letter_sizes(found, [jnp.shape(x) for x in xs])
    dtype = jnp.result_type(*xs)
    if not jnp.issubdtype(dtype, jnp.number):
        raise ValueError("takes tensors of numbers")
    return jnp.zeros(tuple(sizes[letter] for letter in found.result), dtype)


def _equation(keywords: sign.Keywords, args: Sequence[object], rank: int) -> Static:
    return (("equation", str(args[0]).replace(" ", "")),)


def _softmax(x: jax.Array, axis: Axis = -1) -> jax.Array:
    return jax.nn.softmax(x * 1.0, axis=axis)


def _counts(*numbers: object) -> tuple[int, ...]:
    whole = tuple(n for n in numbers if isinstance(n, int))
    if len(whole) < len(numbers):
        raise ValueError("takes whole numbers")
    return whole


def _reshape(x: jax.Array, *shape: int | tuple[int, ...]) -> jax.Array:
    sizes = shape[0] if len(shape) == 1 else shape
    if isinstance(sizes, tuple) and 0 in sizes and -1 in sizes:
        raise ValueError("beside a size of 0, -1 could be any size; write it out")
    return jnp.reshape(x, sizes)


def _repeat(x: jax.Array, times: object, axis: int | None = None) -> jax.Array:
    if not isinstance(times, int) or times < 0:
        raise ValueError("takes a whole number of times")
    return jnp.repeat(x, times, axis=axis)


def _take(x: jax.Array, indices: jax.Array, axis: int | None = None) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
        raise ValueError("takes whole numbers as indices")
    if jnp.size(indices):
        sign.need_elements("entries", jnp.shape(x), axis)
    return jnp.take(x, indices, axis=axis)


def _over(x: jax.Array) -> jax.Array:
    raise ValueError("ranges over all matches of a step, and cannot stand within another that does")


SETS = ("sum_over", "stack_over", "concat_over")
"""Functions that range over the matches of a step: what is computed of each is added, stacked along a new first axis,
or joined along the first."""

FUNCTIONS: dict[str, Function] = {
    **{name: _each(name, "x") for name in ("abs", "sqrt", "exp", "log", "sin", "cos", "tanh", "sign", "round",
                                           "floor", "ceil", "isfinite", "isnan", "zeros_like", "ones_like", "arccos",
                                           "arcsin", "log1p", "expm1")},
    "nan_to_num": _each("nan_to_num", "x")._replace(limits=True),
    "erf": _each("erf", "x", lambda x: jax.lax.erf(x * 1.0)),
    "arctan2": _each("arctan2", "y, x"),
    "sigmoid": _each("sigmoid", "x", lambda x: jax.nn.sigmoid(x * 1.0)),
    "minimum": _each("minimum", "x, y"),
    "maximum": _each("maximum", "x, y"),
    "clip": _each("clip", "x, low, high"),
    "where": _each("where", "condition, x, y"),
    "sum": _reduce("sum"),
    "mean": _reduce("mean"),
    "prod": _reduce("prod"),
    "any": _reduce("any"),
    "all": _reduce("all"),
    "logsumexp": _reduce("logsumexp", _log_sum_exp)._replace(own=False),
    "std": _reduce("std"),
    "var": _reduce("var"),
    "min": _reduce("min", _picking("min"), extra="` or, of two, `minimum(x, y)"),
    "max": _reduce("max", _picking("max"), extra="` or, of two, `maximum(x, y)"),
    "norm": _reduce("norm", _norm),
    "median": _reduce("median", _picking("median")),
    "quantile": Function("quantile(x, q, axis=None, keepdims=False)", _quantile, (2, 2), AXES, static=sign.reduce_axes,
                         own=True, reduces=True),
    "kth_largest": Function("kth_largest(x, 10, axis=None, keepdims=False)", _kth, (2, 2), AXES,
                            static=_kth_static, operands=1, own=True, reduces=True),
    "softmax": Function("softmax(x, axis=-1)", _softmax, keywords=("axis",), static=sign.along_axes(-1)),
    **LINEAR_FUNCTIONS,
    **ORDERING_FUNCTIONS,
    "matmul": Function("matmul(x, y)", _of("matmul"), (2, 2)),
    "dot": Function("dot(x, y)", _of("dot"), (2, 2)),
    "outer": Function("outer(x, y)", _outer, (2, 2)),
    "kron": Function("kron(x, y)", _kron, (2, 2)),
    "einsum": Function("einsum(\"oi,ir->or\", x, y)", _einsum, (2, 3), static=_equation, text=True),
    "transpose": Function("transpose(x, (1, 0))", _of("transpose"), (1, 2), lists=True,
                          static=sign.order_axes, operands=1),
    "reshape": Function("reshape(x, (2, -1))", _reshape, (2, 9), lists=True, operands=1),
    "concat": Function("concat(x, y, axis=0)", _joining("concatenate"), (1, MANY), ("axis",), lists=True,
                       static=sign.along(0)),
    "stack": Function("stack(x, y, axis=0)", _joining("stack"), (1, MANY), ("axis",), lists=True,
                      static=sign.along(0, 1)),
    "repeat": Function("repeat(x, 2, axis=0)", _repeat, (2, 2), ("axis",), static=sign.repeat_axes, operands=1),
    "roll": Function("roll(x, 1, axis=0)", _roll, (2, 2), ("axis",), lists=True, static=_read_shift, operands=1),
    "take": Function("take(x, indices, axis=None)", _take, (2, 2), ("axis",), static=sign.along(None), own=True),
    "flip": Function("flip(x, axis=0)", _of("flip"), keywords=("axis",), static=sign.along_axes(None)),
    "diag": Function("diag(x)", _of("diag")),
    "tril": Function("tril(x, k=0)", _of("tril"), keywords=("k",), static=_diagonal),
    "triu": Function("triu(x, k=0)", _of("triu"), keywords=("k",), static=_diagonal),
    "eye": Function("eye(4)", lambda *n: jnp.eye(*_counts(*n), dtype=jnp.float32), (1, 2),
                    static=sign.count_axes, operands=0),
    "zeros": Function("zeros(4, 3)", _fill, (1, 9), lists=True, operands=0),
    "ones": Function("ones(4, 3)", _fill, (1, 9), lists=True, operands=0),
    "linspace": Function("linspace(0, 1, 11)", _linspace, (3, 3), static=_span, operands=0,
                         widest=True),
    "arange": Function("arange(4)", lambda *n: jnp.arange(*_counts(*n), dtype=jnp.int64), (1, 3),
                       static=sign.count_axes, operands=0),
    **{name: Function(f"{name}(x)", _over) for name in SETS},
    **{name: _cast(name) for name in CASTS},
}  # fmt: skip

REDUCTIONS = frozenset(name for name, function in FUNCTIONS.items() if function.reduces)
"""Functions that leave out the axes that they go over."""
