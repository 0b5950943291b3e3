"""Units of an axis, such as heads, chosen by their scores: how many stay is known, which ones only data tell."""

from __future__ import annotations

from typing import Annotated, TypedDict

from pydantic import Field, StrictInt

from brainsurgery_jax._lazy import Array, Flag, Inexact, Shaped, jax, jnp, np
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.numerics.math import keep_subnormal, on_host
from brainsurgery_jax.op import Avals, Form, op
from brainsurgery_jax.ops.shape import Dim, axis_of

Keep = Annotated[StrictInt, Field(gt=0, description="how many units stay")]
Outer = Annotated[StrictInt, Field(gt=0, description="how often all units come one after another along the axis")]


class ChoiceParams(TypedDict):
    """How many units of which axis stay, and how often they come."""

    keep: int
    dim: int
    outer: int


def _check(avals: Avals, params: ChoiceParams) -> None:
    x, scores = avals
    axis = axis_of(params["dim"], x)
    if len(scores.shape) != 1 or not scores.dtype.is_float:
        raise Refusal("choice-scores", f"scores are a vector of floating numbers, got {scores}", key="scores",
                      hint="Reduce them to one axis: `reduce: {from: ..., to: ..., mode: norm, dim: 1}`.")  # fmt: skip
    units = scores.shape[0] * params["outer"]
    if not units or x.shape[axis] % units:
        of = f"{params['outer']} x {scores.shape[0]}"
        raise Refusal("choice-scores", f"axis {axis} of {x} is not made of {of} equal units", key="scores",
                      hint="Give one score for each unit.")  # fmt: skip
    if params["keep"] > scores.shape[0]:
        raise Refusal("choice-scores", f"{params['keep']} of {scores.shape[0]} units cannot stay", key="keep",
                      hint=f"Keep at most {scores.shape[0]}.")  # fmt: skip


def _result(avals: Avals, params: ChoiceParams) -> tuple[Aval, ...]:
    _check(avals, params)
    x, scores = avals
    axis = axis_of(params["dim"], x)
    size = x.shape[axis] // scores.shape[0] * params["keep"]
    return (Aval((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype),)


@op(
    Form("keep_largest", ("from", "scores"), ("to",), "new", pattern="from"),
    Form("keep_largest_", ("target", "scores"), ("target",), "rebind", pattern="target"),
    result=_result,
    host=lambda avals, params: True,
    guarded=True,
    refusal="a score is NaN or infinite, so that no order is known",
)
def keep_largest(
    x: Shaped[Array, "..."], scores: Inexact[Array, " n"], *, keep: Keep, dim: Dim = 0, outer: Outer = 1
) -> tuple[Array, Flag]:
    """Keep the units of an axis with the largest scores, in the order in which they are; of equal ones the first.

    An axis of 64 entries with 8 scores has units of 8 entries, such as heads. With `outer: 3` all units come three
    times one after another, as in fused queries, keys and values. Scores are compared in float32.
    Example: `keep_largest: {from: 'h\\.(\\d+)\\.fc\\.weight', scores: 'h.\\1.score', to: 'h.\\1.few.weight', keep: 64}`
    Example: `keep_largest_: {target: 'h\\.(\\d+)\\.fc\\.weight', scores: 'h.\\1.score', keep: 64, dim: 0}`
    """
    xp = np if on_host(x) else jnp
    axis, count = dim % x.ndim, scores.shape[0]
    ranked = scores.astype(np.float32)
    if on_host(scores):
        chosen = np.sort(np.argsort(-ranked, kind="stable")[:keep])
    else:
        first = lambda ranked: jax.lax.sort((-ranked, jax.lax.iota(np.int32, count)), num_keys=1, is_stable=True)[1]  # noqa: E731
        chosen = jnp.sort(keep_subnormal(first, np.int32, ranked)[:keep])
    units = (*x.shape[:axis], outer, count, x.shape[axis] // (outer * count), *x.shape[axis + 1 :])
    made = xp.take(x.reshape(units), chosen, axis=axis + 1)
    whole = made.reshape((*x.shape[:axis], -1, *x.shape[axis + 1 :])) if x.size else made.reshape(x.shape)
    return whole, xp.isfinite(ranked).all()
