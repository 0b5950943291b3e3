"""Two factors with another basis between them, and the same product."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import Field

from brainsurgery_jax._lazy import Array, Flag, Inexact
from brainsurgery_jax.dtypes import common_dtype_hint, float_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Word
from brainsurgery_jax.numerics.math import on_host, widen
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.op import Avals, Form, build, kernel
from brainsurgery_jax.protocol import Results, TensorExpr, View


class BasisParams(TypedDict):
    """Which factor takes the singular values."""

    values: str


def _check(avals: Avals, params: BasisParams) -> None:
    left, right = avals
    if left.dtype != right.dtype:
        raise Refusal("dtypes-differ", f"dtypes differ: {left} and {right}",
                      hint=common_dtype_hint(left.dtype, right.dtype))  # fmt: skip
    if not left.dtype.is_float:
        raise Refusal("dtype-unsupported", f"a singular value decomposition needs floating tensors, got {left}",
                      hint=float_hint(left.dtype), kinds=("float",))  # fmt: skip
    shapes = left.shape, right.shape
    if not 2 <= len(shapes[0]) == len(shapes[1]) <= 3 or shapes[0][:-2] != shapes[1][:-2] or not left.size * right.size:
        raise Refusal("shapes-differ", f"factors are two matrices, or two stacks of as many, got {left} and {right}",
                      key="right", hint="Reshape both: [m, r] and [r, n], or stacks of these.")  # fmt: skip
    if shapes[0][-1] != shapes[1][-2]:
        raise Refusal("shapes-differ", f"{left} and {right} cannot be multiplied: {shapes[0][-1]} against "
                      f"{shapes[1][-2]}", key="right", hint="Transpose one of them.")  # fmt: skip


def _workspace(avals: Avals, params: BasisParams) -> int:
    """Bytes for both factors in double precision, their orthogonal parts, and what LAPACK copies of them."""
    return 4 * 8 * sum(aval.size for aval in avals)


@kernel(
    result=lambda avals, params: avals,
    check=_check,
    host=lambda avals, params: True,
    workspace=_workspace,
    guarded=True,
    refusal="a factor holds NaN or infinity and cannot be factorized",
)
def rebase(
    left: Inexact[Array, "... m r"], right: Inexact[Array, "... r n"], *, values: str
) -> tuple[tuple[Array, Array], Flag]:
    """Factors of the same product, in the basis of its singular vectors."""
    xp = left.__array_namespace__()
    a, b = widen(left), xp.swapaxes(widen(right), -1, -2)
    fine = xp.isfinite(a).all() & xp.isfinite(b).all()
    if on_host(left) and not fine:
        return (left, right), fine  # LAPACK may not return from what is not finite
    (qa, ra), (qb, rb) = xp.linalg.qr(a), xp.linalg.qr(b)
    u, s, vt = xp.linalg.svd(ra @ xp.swapaxes(rb, -1, -2), full_matrices=False)
    shares = (xp.sqrt(s), xp.sqrt(s)) if values == "both" else (s, xp.ones_like(s))
    made = qa @ (u * shares[0][..., None, :])
    other = qb @ xp.swapaxes(shares[1][..., :, None] * vt, -1, -2)
    pads = [(0, 0)] * (left.ndim - 1) + [(0, left.shape[-1] - made.shape[-1])]  # the product may have a lower rank
    made, other = xp.pad(made, pads), xp.pad(other, pads)
    return (round_to(made, left.dtype), round_to(xp.swapaxes(other, -1, -2), right.dtype)), fine


@build(Form("refactor", ("left", "right"), ("to_left", "to_right"), "rebind", pattern="left", noun="factors"))
def refactor(
    view: View,
    name: str,
    left: TensorExpr,
    right: TensorExpr,
    *,
    values: Annotated[
        Literal["both", "left"], Word, Field(description="where singular values go: their roots into both, or all left")
    ] = "both",
) -> Results:
    """Give two factors another basis between them: `left @ right` stays, and is U S V^T by its singular values.

    With `values: both` the factors become U sqrt(S) and sqrt(S) V^T, with `left` U S and V^T, in their own shapes; of
    stacks [count, m, r] and [count, r, n], each pair by itself. The product itself is never made: both factors are
    orthogonalized, and the small matrix between them is decomposed. Computed in at least float32, rounded once.
    Where singular values are zero or equal, single vectors have no derivative: gradients are NaN there.
    Example: `refactor: {left: 'h.0.q', right: 'h.0.k', to_left: 'h.0.q', to_right: 'h.0.k'}`
    """
    return Results(view.apply_all(rebase, left, right, values=values))
