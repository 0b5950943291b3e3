"""Arithmetic on equal shapes: results are computed in at least float32 and rounded once to the tensor's own dtype."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from brainsurgery_jax._lazy import Array, Flag, Inexact, Num, Shaped, jax, jnp, np
from brainsurgery_jax.dtypes import BFLOAT16, FLOAT16, Aval, DType, float_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.numerics.math import kind, narrow_to, on_host, seal, to_float32, to_float64
from brainsurgery_jax.numerics.rounding import Overflow, cast_to, check_overflow, round_once, round_to
from brainsurgery_jax.op import Avals, DTypeName, Form, Number, NumberOrTensor, Params, op
from brainsurgery_jax.ops import _drawn

_BINARY = frozenset({"from_a", "from_b", "to"})
_BOTH = frozenset({"from", "to"})


def _into(name: str) -> Form:
    return Form(name, ("from_a", "from_b"), ("to",), "existing", slices=_BINARY)


def _onto(name: str) -> Form:
    return Form(name, ("to", "from"), ("to",), "existing", pattern="from", slices=_BOTH)


def _new(name: str, **keys: str) -> Form:
    return Form(name, ("from",), ("to",), "new", slices=frozenset({"from"}), keys=tuple(keys.items()))


def _in_place(name: str) -> Form:
    return Form(name, ("target",), ("target",), "existing", slices=frozenset({"target"}))


def _arithmetic(avals: Avals, params: Params) -> bool:
    """Whether numpy computes on these as fast as compiled code: on all but two of float16 and smaller floats.

    (A result of one such tensor is looked up in a table.)
    """
    dtype = avals[0].dtype
    return not dtype.is_float or dtype.bits >= 32 or dtype == BFLOAT16 or len(avals) == 1


@op(
    Form("assign", ("from",), ("to",), "existing", slices=_BOTH, fills=True),
    elementwise=True,
    noop=lambda avals, params: True,
)
def assign(x: Shaped[Array, "..."]) -> Array:
    """Copy values into a tensor (or part of one) that exists, with the same shape and dtype.

    Two keys say what happens where names differ. `missing`: a tensor that `to` could name and that gets no value keeps
    its own, or is an error. Keys of random numbers are passed over. `extra`: a match without a tensor to fill is an
    error, or ignored. With one of the keys in the step, a note lists what was kept and ignored.
    Example: `assign: {from: 'a::w::[:, :4]', to: 'a::v::[:, 4:8]'}`
    Example: `assign: {from: 'trained::(.*)', to: 'fresh::\\1', missing: keep, extra: ignore}`
    """
    return x


@op(_into("add"), _onto("add_"), elementwise=True, host=_arithmetic)
def add(x: Num[Array, "..."], y: Num[Array, "..."]) -> Array:
    """Add two tensors of equal shape and dtype. Integers wrap, booleans are or-ed.

    `add` writes into `to`, which must exist; `add_` adds `from` to `to`.
    Example: `add: {from_a: '(.*)\\.w', from_b: '\\1.delta', to: '\\1.w'}`
    Example: `add_: {from: 'delta::(.*)', to: 'base::\\1'}`
    """
    return round_once("add", x, y)


_NO_INTEGERS = "`{alias: ALIAS, name: PATTERN, kind: float}` leaves integers as they are; or cast them to a float first"


def _no_bool(avals: Avals, params: Params) -> None:
    if avals[0].dtype.is_bool:
        hint = "Cast first: `cast_: {target: ..., to: int8}`."
        found = f"this step cannot compute on booleans, got {avals[0]}"
        raise Refusal("dtype-unsupported", found, hint=hint, kinds=("float", "integer", "complex"))


@op(_into("subtract"), _onto("subtract_"), elementwise=True, check=_no_bool, host=_arithmetic)
def subtract(x: Num[Array, "..."], y: Num[Array, "..."]) -> Array:
    """Subtract the second tensor from the first (`subtract_`: `from` from `to`). Integers wrap.

    `subtract` writes into `to`, which must exist.
    Example: `subtract: {from_a: '(.*)\\.w', from_b: '\\1.base', to: '\\1.w'}`
    Example: `subtract_: {from: 'base::(.*)', to: 'tuned::\\1'}`
    """
    return round_once("subtract", x, y)


@op(_into("multiply"), _onto("multiply_"), elementwise=True, host=_arithmetic)
def multiply(x: Num[Array, "..."], y: Num[Array, "..."]) -> Array:
    """Multiply two tensors of equal shape and dtype. Integers wrap, booleans are and-ed.

    `multiply` writes into `to`, which must exist; `multiply_` multiplies `to` by `from`.
    Example: `multiply: {from_a: '(.*)\\.w', from_b: '\\1.mask', to: '\\1.w'}`
    Example: `multiply_: {from: 'mask::(.*)', to: 'base::\\1'}`
    """
    return round_once("multiply", x, y)


@op(
    _into("divide"),
    _onto("divide_"),
    elementwise=True,
    check=_no_bool,
    host=_arithmetic,
    guarded=True,
    refusal=f"dividing these integer tensors is not exact. {_NO_INTEGERS}",
)
def divide(x: Num[Array, "..."], y: Num[Array, "..."]) -> tuple[Array, Array]:
    """Divide the first tensor by the second (`divide_`: `to` by `from`).

    Floats by zero give infinity or NaN. Integers are divided where every result is an exact integer of their dtype, and
    refused otherwise. `divide` writes into `to`, which must exist.
    Example: `divide: {from_a: '(.*)\\.w', from_b: '\\1.scales', to: '\\1.w'}`
    Example: `divide_: {from: 'counts::(.*)', to: 'sums::\\1'}`
    """
    xp = x.__array_namespace__()
    if kind(x) not in ("int", "uint"):
        return round_once("divide", x, y), xp.ones((), dtype=np.bool_)
    divisor = xp.where(y == 0, xp.ones_like(y), y)
    quotient = x // divisor
    exact = (y != 0) & (quotient * divisor == x)
    if kind(x) == "int":
        exact &= (x != np.iinfo(x.dtype).min) | (y != -1)  # whose quotient is one too large
    return quotient, xp.all(exact)


def _continuous(avals: Avals, params: Params) -> None:
    if not avals[0].dtype.is_inexact:
        hint = float_hint(avals[0].dtype)
        found = f"lerp needs floating-point tensors, got {avals[0]}"
        raise Refusal("dtype-unsupported", found, hint=hint, kinds=("float", "complex"))


def _wide_workspace(avals: Avals, params: Params) -> int:
    """Bytes of both operands, a product and the result, in the next wider dtype."""
    return 4 * sum(max(8, 2 * a.dtype.bits // 8) * a.size for a in avals[:1])


@op(
    _into("lerp"),
    _onto("lerp_"),
    elementwise=True,
    check=_continuous,
    host=_arithmetic,
    workspace=_wide_workspace,
    with_tensors=_drawn.lerp,
)
def lerp(x: Inexact[Array, "..."], y: Inexact[Array, "..."], *, t: NumberOrTensor) -> Array:
    """Linear interpolation, `(1 - t) from_a + t from_b` (`lerp_`: `(1 - t) to + t from`).

    `t: 0` gives the first and `t: 1` the second, exactly, and equal values stay as they are; `t` outside of 0 to 1
    extrapolates. Computed in the next wider dtype and rounded once. `lerp` writes into `to`, which must exist. `t`
    may be a tensor with one element, by its alias and name (`t: 'a::share'`): then computed as `compute` does.
    Example: `lerp: {from_a: 'base::(.*)', from_b: 'tuned::\\1', to: 'work::\\1', t: 0.3}`
    Example: `lerp_: {from: 'tuned::(.*)', to: 'base::\\1', t: 0.3}`
    """
    if kind(x) == "complex" or x.dtype == np.float64 or on_host(x):
        wide = np.complex128 if kind(x) == "complex" else np.float32 if x.dtype.itemsize < 4 else np.float64
        return round_to(_between(x.astype(wide), y.astype(wide), t), x.dtype)
    return jax.lax.platform_dependent(
        x, y, t,
        cpu=lambda x, y, t: round_to(to_float32(_between(to_float64(x), to_float64(y), t)), x.dtype),
        default=lambda x, y, t: round_to(_between(x.astype(jnp.float32), y.astype(jnp.float32), t), x.dtype),
    )  # fmt: skip


def _between(x: Array, y: Array, t: Number) -> Array:
    """Interpolate from the nearer end, so that both ends are exact. Overwrites its arrays."""
    near = t < 0.5
    choose = (lambda a, b: a if near else b) if on_host(x) else (lambda a, b: jnp.where(near, a, b))
    start, other = choose(x, y), choose(y, x)
    other -= start
    other *= choose(t, 1 - t).astype(x.dtype)
    other = other if on_host(x) else seal(other)
    other += start
    return other if on_host(x) else seal(other)


_INEXACT = f"scaling this integer tensor is not exact. {_NO_INTEGERS}"


@op(
    _new("scale"),
    _in_place("scale_"),
    elementwise=True,
    check=_no_bool,
    host=_arithmetic,
    guarded=True,
    refusal=_INEXACT,
    with_tensors=_drawn.scale,
)
def scale(x: Num[Array, "..."], *, by: NumberOrTensor) -> tuple[Array, Array]:
    """Multiply by a number. Integer tensors are scaled where every result is an exact integer of their dtype.

    The number may be a tensor with one element, by its alias and name, which may use captures: `by: 'a::\\1.scale'`.
    Then only floats are scaled.
    Example: `scale: {from: delta, to: half_delta, by: 0.5}`
    Example: `scale_: {target: '.*bias', by: 0.5}`
    """
    xp = x.__array_namespace__()
    if kind(x) in ("int", "uint"):
        y = x.astype(np.float64) * by
        info = np.iinfo(x.dtype)
        # Beyond 2**53 a float64 no longer tells neighbouring integers apart.
        low, high = max(float(info.min), -(2.0**53)), min(float(info.max), 2.0**53)
        exact = xp.all((y == xp.round(y)) & (y >= low) & (y <= high) & (xp.abs(x.astype(np.float64)) <= 2.0**53))
        return y.astype(x.dtype), exact
    factor = narrow_to(by, np.dtype(np.float64 if x.dtype in (np.float64, np.complex128) else np.float32))
    if kind(x) == "complex":
        factor = factor.astype(x.dtype)
    return round_once("multiply", x, factor), xp.ones((), dtype=np.bool_)


class ClampParams(TypedDict, total=False):
    """The bounds of `clamp`; None: no bound."""

    min_: float | None
    max_: float | None


def _bounds(avals: Avals, params: ClampParams) -> None:
    _no_bool(avals, {})
    low, high = params.get("min_"), params.get("max_")
    if low is None and high is None:
        raise Refusal("clamp-bounds", "give at least one of min and max", key="min",
                      hint="Add `min: NUMBER`, `max: NUMBER`, or both.")  # fmt: skip
    if low is not None and high is not None and low > high:
        raise Refusal("clamp-bounds", f"min {low:g} is greater than max {high:g}", key="min", hint="Swap them.")
    if avals[0].dtype.is_complex:
        hint = "Leave them out of this step."
        raise Refusal("dtype-unsupported", f"complex numbers have no order, got {avals[0]}", hint=hint,
                      kinds=("float", "integer"))  # fmt: skip
    if avals[0].dtype.is_integer:
        for key, bound in (("min", low), ("max", high)):
            if bound is not None and abs(bound) != float("inf") and not float(bound).is_integer():
                hint = "Use a whole number, or cast to a floating dtype first."
                raise Refusal(
                    "inexact",
                    f"the bound {bound:g} is not an integer, but the tensor is {avals[0]}",
                    key=key,
                    hint=hint,
                    kinds=("float",),
                )


@op(_new("clamp"), _in_place("clamp_"), elementwise=True, check=_bounds, host=_arithmetic, with_tensors=_drawn.clamp)
def clamp(x: Num[Array, "..."], *, min_: NumberOrTensor | None = None, max_: NumberOrTensor | None = None) -> Array:
    """Limit values to `min` and `max`, either of which may be left out. NaN stays NaN.

    Bounds are rounded to the tensor's dtype; an integer tensor takes whole bounds and stays integer. A bound of floats
    may be a tensor with one element, by its alias and name: `max: 'a::\\1.limit'`.
    Example: `clamp: {from: w, to: w_clipped, min: -1, max: 1}`
    Example: `clamp_: {target: '.*bias', max: 1}`
    """
    low, high = (None if b is None else _round_bound(b, x) for b in (min_, max_))
    y = x if low is None else round_once("maximum", x, low)
    return y if high is None else round_once("minimum", y, high)


def _round_bound(value: Number, x: Array) -> Array:
    """A bound rounded to the dtype of `x`. A bound beyond its range has no effect, even without infinity."""
    xp, dtype = x.__array_namespace__(), x.dtype
    if kind(x) in ("int", "uint"):
        info = np.iinfo(dtype)
        return xp.clip(value, float(info.min), float(info.max)).astype(dtype)
    if dtype.name == "bfloat16" and not on_host(x):
        return round_to(narrow_to(value, np.dtype(np.float32)), dtype)
    if dtype.itemsize > 1:
        return xp.asarray(narrow_to(value, dtype))
    own = value.astype(dtype).astype(np.float32)
    return xp.where(xp.isnan(own), value.astype(np.float32) * np.float32(np.inf), own)


class CastParams(TypedDict):
    """What `cast` makes of values; `overflow` only if it is given."""

    dtype: DType
    overflow: NotRequired[str | None]


def _to_dtype(avals: Avals, params: CastParams) -> Avals:
    return (Aval(avals[0].shape, params["dtype"]),)


def _convertible(avals: Avals, params: CastParams) -> bool:
    """Whether numpy converts about as fast as compiled code, and rounds as we want: real numbers to integers, floats to
    floats, short ones by table.

    From float32 to float16 it takes 2 ns an element, and 60 where the result is subnormal.
    """
    source, target = avals[0].dtype, params["dtype"]
    slow = source.bits > 16 and target == FLOAT16
    if target.is_integer:
        return not source.is_complex
    return source.is_float and target.is_float and not slow


def _computable(avals: Avals, params: CastParams) -> None:
    if params["dtype"].is_opaque:
        raise Refusal(
            "dtype-unsupported", f"cannot cast to {params['dtype']}: there is no arithmetic for it", key="dtype"
        )
    check_overflow(avals[0].dtype, params["dtype"], params.get("overflow"))


def _truncates(avals: Avals, params: CastParams) -> Refusal | None:
    """What to note of floats that nothing has scaled, where they become integers."""
    source, target = avals[0].dtype, params["dtype"]
    if not source.is_float or not target.is_integer:
        return None
    message = f"{source} becomes {target} by rounding towards zero: every value between -1 and 1 becomes 0"
    return Refusal("cast-truncates", message, hint="Scale weights in an earlier step, or cast to a float dtype.")


@op(
    _new("cast"),
    Form("cast_", ("target",), ("target",), "rebind", keys=(("dtype", "to"),)),
    elementwise=True,
    result=_to_dtype,
    check=_computable,
    caution=_truncates,
    host=_convertible,
    guarded=True,
    refusal="a value does not fit the integer dtype, or is NaN. `overflow: saturate` takes the nearest value instead",
    noop=lambda avals, params: avals[0].dtype == params["dtype"],
)
def cast(x: Num[Array, "..."], *, dtype: DTypeName, overflow: Overflow | None = None) -> tuple[Array, Flag]:
    """Convert to another dtype: to floats by rounding to nearest even, to integers towards zero, to bool by `!= 0`.

    So weights between -1 and 1 become 0 in an integer dtype: scale them first. Complex numbers become their real parts.
    A value that an integer dtype cannot hold stops the run. A value beyond the range of a float dtype becomes infinity,
    or NaN if the dtype has none; in float8_e4m3fn, as in torch, the largest value. `overflow` changes that: `saturate`
    yields the nearest value (in an integer dtype 0 for NaN), `nan` infinity or NaN, `wrap` the lowest bits of integers.
    Example: `cast: {from: w, to: w_half, dtype: float16}`
    Example: `cast_: {target: '.*', to: bfloat16}`
    """
    return cast_to(x, dtype, overflow)
