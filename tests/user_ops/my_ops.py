"""Three ops of one's own: a computation, a rearrangement, and an assert."""

from __future__ import annotations

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.moves import Permute
from brainsurgery_jax.op import Form, Number, SlicedPattern, assertion, op
from brainsurgery_jax.protocol import Every, Known, Pending, Reduction


def _positive(avals, params):
    if params["cap"] <= 0:
        raise Refusal("my-cap", f"expected a positive cap, got {params['cap']:g}", key="cap", hint="Try 30.")


@op(
    Form("soft_cap", ("from",), ("to",), "new"),
    Form("soft_cap_", ("target",), ("target",), "existing", slices=frozenset({"target"})),
    elementwise=True,
    check=_positive,
)
def soft_cap(x, *, cap: Number):
    """Bend values smoothly into the range from -cap to cap: cap * tanh(x / cap), computed in float32.

    Example: `soft_cap: {from: w, to: w_capped, cap: 30}`
    Example: `soft_cap_: {target: '.*bias', cap: 30}`
    """
    import jax.numpy as jnp

    bound = cap.astype(jnp.float32)
    return (bound * jnp.tanh(x.astype(jnp.float32) / bound)).astype(x.dtype)


def _reversed(avals, params):
    return Permute(tuple(reversed(range(len(avals[0].shape)))))


@op(Form("reverse_axes", ("from",), ("to",), "new"), moves=_reversed)
def reverse_axes(x):
    """Reverse the order of the axes.

    Example: `reverse_axes: {from: '(.*)\\.kernel', to: '\\1.weight'}`
    """
    return x.T


@assertion()
def bounded(view, *, of: SlicedPattern, by: Number):
    """All elements are at most `by` in magnitude. NaN never is.

    Example: `assert: {bounded: {of: '.*bias', by: 30}}`
    """
    within = Reduction(
        block=lambda x: bool((abs(x) <= by).all()),
        merge=lambda a, b: a and b,
        finish=bool,
        empty=True,
        traced=lambda x: (abs(x) <= by).all(),
    )

    def judge(item):
        why = f"'{item.name}' exceeds {by:g}"
        return Pending((item.expr,), within, lambda holds: Known(holds, "" if holds else why))

    return Every(tuple(judge(item) for item in view.select(of, "of")))
