"""What ROME, MEMIT and EMMET have in common: a matrix is to give new values for some keys.

Of a matrix W [out, in], keys K [n, in] and values V [n, out], the residuals are `R = V - K W^T` [n, out]: how far its
outputs are from the values. A method gives the change of W from K, R and the covariance C of other keys [in, in].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypedDict

from brainsurgery_jax._lazy import Array, Flag
from brainsurgery_jax.editing.arrays import EPS, check_floats, check_shape, double, namespace, rounded
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.numerics.symmetry import precision
from brainsurgery_jax.op import Avals

NOT_POSITIVE = "the covariance is not symmetric and positive definite to the precision of its dtype"
"""Why an edit is refused that must solve with a covariance."""


class FactParams(TypedDict):
    """How the matrix lies."""

    transposed: bool


class Memories(NamedTuple):
    """Keys [n, in], residuals [n, out] and the covariance [in, in], if there is one, in float64; `precision` and
    `known_to` are those of the dtypes in which keys and the covariance are stored."""

    keys: Array
    residuals: Array
    covariance: Array | None
    precision: float
    known_to: float = EPS


def check_facts(avals: Avals, params: FactParams) -> None:
    """Refuse tensors that do not fit each other. Raises Refusal."""
    check_floats(avals)
    w, keys, values, *covariance = avals
    if len(w.shape) != 2 or len(keys.shape) not in (1, 2):
        hint = "Keys are [in], or [n, in] for n facts. Narrow the pattern to matrices."
        raise Refusal("not-a-matrix", f"facts are edited in a matrix by vectors, got {w} and keys {keys}", hint=hint)
    outputs, inputs = reversed(w.shape) if params["transposed"] else w.shape
    count = keys.shape[:-1]
    hint = "Keys are [n, in], values [n, out], the covariance [in, in]; of a single fact [in] and [out]."
    if outputs != inputs and (keys.shape[-1], values.shape[-1:]) == (outputs, (inputs,)):
        lies, turned = ("[in, out]", "[out, in]") if params["transposed"] else ("[out, in]", "[in, out]")
        hint = (
            f"Of a matrix {lies} these are values and keys: exchange `keys` and `values`. If it is {turned}, write "
            f"`transposed: {str(not params['transposed']).lower()}`; those of GPT-2 are [in, out]."
        )
    check_shape("keys", keys, (*count, inputs), hint)
    check_shape("values", values, (*count, outputs), hint)
    for aval in covariance:
        check_shape("covariances", aval, (inputs, inputs), hint)


def fact_space(avals: Avals, params: FactParams) -> int:
    """Bytes besides operands and result: the matrix and its change, and some covariances, in double precision."""
    w, keys, *_ = avals
    square = keys.shape[-1] ** 2
    return 8 * (4 * w.size + 5 * square + 4 * sum(a.size for a in avals[1:3]))


def edit_facts(
    update: Callable[[Memories], Array], operands: tuple[Array, ...], *, residual: bool, transposed: bool
) -> tuple[Array, Flag]:
    """The matrix after a change, and whether it is finite. `residual`: the values are residuals themselves."""
    w, keys, values, *covariance = operands
    matrix = double(w).T if transposed else double(w)
    xp = namespace(matrix)
    k, v = (xp.atleast_2d(double(x)) for x in (keys, values))
    residuals = v if residual else v - k @ matrix.T
    facts = Memories(k, residuals, None, precision(keys.dtype))
    for c in covariance:
        facts = facts._replace(covariance=double(c), known_to=precision(c.dtype))
    made = matrix + update(facts)
    return rounded(made.T if transposed else made, w)
