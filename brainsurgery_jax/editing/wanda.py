"""Wanda: pruning by weights and activations. Sun et al., A simple and effective pruning approach for large language
models, 2023, https://arxiv.org/abs/2306.11695."""

from __future__ import annotations

from typing import TypedDict

from brainsurgery_jax._lazy import Array, Flag, np
from brainsurgery_jax.editing.arrays import anywhere, check_floats, check_shape, cut_along, like_first, namespace
from brainsurgery_jax.editing.sparsity import Sparsity, lowest
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.parts import Cuts
from brainsurgery_jax.numerics.math import widen
from brainsurgery_jax.op import Avals, Params, kernel


class WandaParams(TypedDict):
    """What is removed, and how the matrix lies."""

    sparsity: Sparsity
    transposed: bool


def check_inputs(avals: Avals, params: WandaParams) -> int:
    """The number of inputs of a matrix. Refused: what is none, or groups that do not divide it."""
    check_floats(avals)
    w = avals[0]
    if len(w.shape) != 2 or 0 in w.shape:
        raise Refusal("not-a-matrix", f"pruning needs a matrix, got {w}", hint="Narrow the pattern to matrices.")
    inputs = w.shape[0 if params["transposed"] else 1]
    if params["sparsity"].group and inputs % params["sparsity"].group:
        wrong = f"{w} has {inputs} inputs, no multiple of {params['sparsity'].group}"
        raise Refusal("shapes-differ", wrong, key="pattern", hint="Choose `ratio` for it, or narrow the pattern.")
    return inputs


def _check(avals: Avals, params: WandaParams) -> None:
    inputs = check_inputs(avals, params)
    hint = "They are the norms of the inputs [in]. A matrix [in, out], as in GPT-2, is `transposed: true`."
    check_shape("norms", avals[1], (inputs,), hint)


def _cuts(avals: Avals, params: WandaParams) -> Cuts:
    axis = 1 if params["transposed"] else 0
    return cut_along(avals[0].shape, axis, (axis, None))


def _space(avals: Avals, params: Params) -> int:
    return 24 * avals[0].size


@kernel("wanda", check=_check, result=like_first, host=anywhere, workspace=_space, parts=_cuts, guarded=True,
        refusal="a weight or a norm is NaN or infinite")  # fmt: skip
def prune(w: Array, norms: Array, *, sparsity: Sparsity, transposed: bool) -> tuple[Array, Flag]:
    """A matrix whose entries with the lowest `|W_ij| |X_j|` of each output are zero, `|X_j|` being the norm of input j
    over the data; with a pattern, of each group of neighbours."""
    xp = namespace(w)
    rows = w.T if transposed else w
    scores = abs(widen(rows)) * abs(widen(norms)).astype(widen(rows).dtype)[None, :]
    if sparsity.group:
        grouped = scores.reshape(scores.shape[0], -1, sparsity.group)
        removed = lowest(grouped, sparsity.removed).reshape(scores.shape)
    else:
        removed = lowest(scores, int(scores.shape[1] * sparsity.share))
    made = xp.where(removed, np.zeros((), w.dtype), rows)
    return (made.T if transposed else made), xp.isfinite(scores).all()
