"""Elementwise ops whose numbers are tensors with one element, as expressions: what data says is known when it is
computed, so that shapes and names never depend on it."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax._lazy import Array, Shaped, np
from brainsurgery_jax.dtypes import FLOAT32, FLOAT64, float_hint, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.expression.parse import parse_expression
from brainsurgery_jax.op import kernel
from brainsurgery_jax.ops.compute import compute_result
from brainsurgery_jax.ops.shape import with_shape
from brainsurgery_jax.protocol import TensorExpr, View

_NARROW, _WIDE = parse_expression("float32(n)"), parse_expression("float64(n)")


def scale(view: View, x: TensorExpr, *, by: TensorExpr) -> TensorExpr:
    """`x` times a number."""
    return _compute(view, "x * by", {"x": x}, {"by": by})


def lerp(view: View, x: TensorExpr, y: TensorExpr, *, t: TensorExpr) -> TensorExpr:
    """From `x` to `y`, from the nearer end, so that both are exact."""
    return _compute(view, "where(t < 0.5, x + (y - x) * t, y + (x - y) * (1 - t))", {"x": x, "y": y}, {"t": t})


def clamp(
    view: View, x: TensorExpr, *, min_: TensorExpr | float | None = None, max_: TensorExpr | float | None = None
) -> TensorExpr:
    """`x` within bounds."""
    text = "x" if min_ is None else "maximum(x, low)"
    text = text if max_ is None else f"minimum({text}, high)"
    bounds = {"low": min_, "high": max_}
    return _compute(view, text, {"x": x}, {name: n for name, n in bounds.items() if n is not None})


@kernel(elementwise=True)
def _alike(x: Shaped[Array, "..."], *others: Shaped[Array, "..."]) -> Array:
    """The first of tensors of one shape and dtype."""
    return x


def _compute(
    view: View, text: str, tensors: Mapping[str, TensorExpr], numbers: Mapping[str, TensorExpr | float]
) -> TensorExpr:
    """The value of an expression of floats of one shape and of numbers, rounded once to the dtype of the first."""
    first = next(iter(tensors.values()))
    dtype = first.aval.dtype
    view.apply(_alike, *tensors.values())  # as for every op by element, tensors are of one shape and dtype
    if not dtype.is_float:
        raise Refusal("dtype-unsupported", f"a number of a tensor is for floats, got {first.aval}",
                      hint=float_hint(dtype), kinds=("float",))  # fmt: skip
    made = {name: _number(view, n, wide=dtype.bits > 32) for name, n in numbers.items()}
    return compute_result(view, parse_expression(text), {**tensors, **made}, (), None, None, dtype)


def _number(view: View, x: TensorExpr | float, *, wide: bool) -> TensorExpr:
    """A number of the plan, or the only element of a tensor, as a scalar of the dtype that is computed in."""
    if isinstance(x, int | float):
        dtype = FLOAT64 if wide else FLOAT32
        return view.constant(np.asarray(x, to_numpy(dtype)), dtype)
    if x.aval.size != 1 or not (x.aval.dtype.is_float or x.aval.dtype.is_integer):
        raise Refusal("number-tensor", f"a number is a tensor with one element, got {x.aval}",
                      hint="Take one element, `alias::name::[0]`, or `reduce` it before.")  # fmt: skip
    one = view.apply(with_shape, x, shape=()) if x.aval.shape else x
    return compute_result(view, _WIDE if wide else _NARROW, {"n": one}, (), None, None, None)
