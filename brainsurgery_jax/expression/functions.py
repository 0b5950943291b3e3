"""The functions that an expression of `compute` may call: how they are written, and what `jax.numpy` makes of types.

What computes them, on numpy or JAX arrays, is in `operations.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax._lazy import jax, jnp

if TYPE_CHECKING:
    Axis = int | tuple[int, ...] | None


class Function(NamedTuple):
    """A function: how a call of it is written, and what gives the shape and dtype of its result.

    `tensors`: how many arguments stand without a name, at least and at most; `lists`: there may be lists among them.
    `keywords`: the names of the others. `elementwise`: it treats each element by itself.
    """

    usage: str
    fn: Callable[..., jax.Array]
    tensors: tuple[int, int] = (1, 1)
    keywords: tuple[str, ...] = ()
    elementwise: bool = False
    lists: bool = False


MANY = 99
_AXES = ("axis", "keepdims")

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
    return _each(name, "x", lambda x: _real(jnp.asarray(x)).astype(name))


def _real(x: jax.Array) -> jax.Array:
    return x.real if jnp.issubdtype(x.dtype, jnp.complexfloating) else x


def _reduce(name: str, fn: Callable[..., jax.Array] | None = None, extra: str = "") -> Function:
    return Function(f"{name}(x, axis=None, keepdims=False){extra}", fn or _of(name), keywords=_AXES)


def _norm(x: jax.Array, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), axis=axis, keepdims=keepdims))


def _quantile(x: jax.Array, q: jax.Array | float, axis: Axis = None, keepdims: bool = False) -> jax.Array:
    if isinstance(q, bool | complex) or (jnp.ndim(q) == 0 and not hasattr(q, "dtype") and not 0 <= q <= 1):
        raise ValueError(f"a share of the elements is a number from 0 to 1, got {q}")
    if jnp.ndim(q) > 1 or not jnp.issubdtype(jnp.result_type(q), jnp.number):
        raise ValueError("a share of the elements is a number from 0 to 1, or a vector of them")
    return jnp.quantile(x, jnp.asarray(q, jnp.result_type(q, jnp.float32)), axis=axis, keepdims=keepdims)


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


def _softmax(x: jax.Array, axis: Axis = -1) -> jax.Array:
    return jax.nn.softmax(x * 1.0, axis=axis)


def _counts(*numbers: object) -> tuple[int, ...]:
    whole = tuple(n for n in numbers if isinstance(n, int))
    if len(whole) < len(numbers):
        raise ValueError("takes whole numbers")
    return whole


def _reshape(x: jax.Array, *shape: int | tuple[int, ...]) -> jax.Array:
    return jnp.reshape(x, shape[0] if len(shape) == 1 else shape)


def _repeat(x: jax.Array, times: object, axis: int | None = None) -> jax.Array:
    if not isinstance(times, int) or times < 0:
        raise ValueError("takes a whole number of times")
    return jnp.repeat(x, times, axis=axis)


def _take(x: jax.Array, indices: jax.Array, axis: int | None = None) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
        raise ValueError("takes whole numbers as indices")
    return jnp.take(x, indices, axis=axis)


FUNCTIONS: dict[str, Function] = {
    **{name: _each(name, "x") for name in ("abs", "sqrt", "exp", "log", "sin", "cos", "tanh", "sign", "round",
                                           "floor", "ceil", "isfinite", "isnan", "zeros_like", "ones_like")},
    "sigmoid": _each("sigmoid", "x", lambda x: jax.nn.sigmoid(x)),
    "minimum": _each("minimum", "x, y"),
    "maximum": _each("maximum", "x, y"),
    "clip": _each("clip", "x, low, high"),
    "where": _each("where", "condition, x, y"),
    "sum": _reduce("sum"),
    "mean": _reduce("mean"),
    "std": _reduce("std"),
    "var": _reduce("var"),
    "min": _reduce("min", extra="` or, of two, `minimum(x, y)"),
    "max": _reduce("max", extra="` or, of two, `maximum(x, y)"),
    "norm": _reduce("norm", _norm),
    "median": _reduce("median"),
    "quantile": Function("quantile(x, q, axis=None, keepdims=False)", _quantile, (2, 2), _AXES),
    "softmax": Function("softmax(x, axis=-1)", _softmax, keywords=("axis",)),
    "matmul": Function("matmul(x, y)", _of("matmul"), (2, 2)),
    "dot": Function("dot(x, y)", _of("dot"), (2, 2)),
    "outer": Function("outer(x, y)", _outer, (2, 2)),
    "transpose": Function("transpose(x, (1, 0))", _of("transpose"), (1, 2), lists=True),
    "reshape": Function("reshape(x, (2, -1))", _reshape, (2, 9), lists=True),
    "concat": Function("concat(x, y, axis=0)", _joining("concatenate"), (1, MANY), ("axis",), lists=True),
    "stack": Function("stack(x, y, axis=0)", _joining("stack"), (1, MANY), ("axis",), lists=True),
    "repeat": Function("repeat(x, 2, axis=0)", _repeat, (2, 2), ("axis",)),
    "take": Function("take(x, indices, axis=None)", _take, (2, 2), ("axis",)),
    "flip": Function("flip(x, axis=0)", _of("flip"), keywords=("axis",)),
    "diag": Function("diag(x)", _of("diag")),
    "tril": Function("tril(x, k=0)", _of("tril"), keywords=("k",)),
    "triu": Function("triu(x, k=0)", _of("triu"), keywords=("k",)),
    "eye": Function("eye(4)", lambda *n: jnp.eye(*_counts(*n), dtype=jnp.float32), (1, 2)),
    "arange": Function("arange(4)", lambda *n: jnp.arange(*_counts(*n), dtype=jnp.int64), (1, 3)),
    **{name: _cast(name) for name in CASTS},
}  # fmt: skip
