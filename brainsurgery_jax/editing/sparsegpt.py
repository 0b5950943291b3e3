"""SparseGPT: pruning that corrects the weights that stay, by the inverse of the Hessian of the inputs.

Frantar and Alistarh, SparseGPT: Massive language models can be accurately pruned in one-shot, 2023,
https://arxiv.org/abs/2301.00774, algorithm 1. Each weight is removed as by the optimal brain surgeon (Hassibi and
Stork, 1992), with the columns before it fixed.
"""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, Flag, jax, np
from brainsurgery_jax.editing.arrays import (
    anywhere,
    check_shape,
    double,
    is_positive,
    like_first,
    lower_factor,
    namespace,
    rounded,
    solve,
)
from brainsurgery_jax.editing.sparsity import Sparsity, lowest
from brainsurgery_jax.editing.wanda import WandaParams, check_inputs
from brainsurgery_jax.numerics.symmetry import is_symmetric, precision
from brainsurgery_jax.op import Avals, Number, Params, kernel

COLUMNS = 128
"""Columns whose mask is chosen together where a share is removed, as in the paper."""


def _check(avals: Avals, params: WandaParams) -> None:
    inputs = check_inputs(avals, params)
    hint = "It holds the inner products of the inputs [in, in]. A matrix [in, out], as in GPT-2, is `transposed: true`."
    check_shape("Hessians", avals[1], (inputs, inputs), hint)


def _space(avals: Avals, params: Params) -> int:
    return 8 * (4 * avals[0].size + 4 * avals[1].size)


_UNFIT = "the Hessian is not symmetric, is not positive (raise `damping`), or a tensor holds NaN or infinity"


@kernel("sparsegpt", check=_check, result=like_first, host=anywhere, workspace=_space, guarded=True, refusal=_UNFIT)
def prune_and_correct(
    w: Array, hessian: Array, *, sparsity: Sparsity, transposed: bool, damping: Number
) -> tuple[Array, Flag]:
    """A matrix with zeros, the other weights corrected. `hessian`: `X^T X` of the inputs X [samples, in]; of its mean
    diagonal `damping` is added to it. Inputs that are always zero lose their weights."""
    xp = namespace(w)
    rows, h = double(w.T if transposed else w), double(hessian)
    even = is_symmetric(h, precision(hessian.dtype))
    h = (h + h.T) / 2
    eye = np.eye(h.shape[0])
    dead = xp.diagonal(h) == 0
    h = h + xp.where(dead, 1.0, 0.0)[:, None] * eye
    h = h + damping * xp.diagonal(h).mean() * eye
    rows = xp.where(dead[None, :], 0.0, rows)
    made = _remove(rows, xp.where(even, _upper_factor(h), np.nan), sparsity)
    value, finite = rounded(made, w)
    return (value.T if transposed else value), finite


def _upper_factor(h: Array) -> Array:
    """The upper triangular U with `U^T U = inv(h)`; NaN where `h` is not positive definite."""
    xp = namespace(h)
    return xp.where(is_positive(h), lower_factor(solve(h, xp.eye(h.shape[0]))).T, np.nan)


def _remove(rows: Array, factor: Array, sparsity: Sparsity) -> Array:
    """The matrix [out, in] after all columns, block by block."""
    inputs = rows.shape[1]
    size = COLUMNS // sparsity.group * sparsity.group if 0 < sparsity.group <= COLUMNS else sparsity.group or COLUMNS
    done = []
    for start in range(0, inputs, size):
        stop = min(start + size, inputs)
        block, errors = _remove_block(rows[:, : stop - start], factor[start:stop, start:stop], sparsity)
        done.append(block)
        rows = rows[:, stop - start :] - errors @ factor[start:stop, stop:]
    return namespace(rows).concatenate(done, axis=1)


def _remove_block(block: Array, factor: Array, sparsity: Sparsity) -> tuple[Array, Array]:
    """A block of columns after its weights are removed, and the errors [out, columns] that later ones correct."""
    xp, width = namespace(block), block.shape[1]
    scales = xp.diagonal(factor)
    removed = xp.zeros(block.shape, np.bool_)
    if not sparsity.group:
        scores = (block / scales[None, :]) ** 2
        removed = lowest(scores.reshape(-1), int(block.size * sparsity.share)).reshape(block.shape)
    step = sparsity.group or width
    errors = []
    for start in range(0, width, step):
        stop = start + step
        if sparsity.group:
            scores = (block[:, start:stop] / scales[None, start:stop]) ** 2
            own = lowest(scores, sparsity.removed)
        else:
            own = removed[:, start:stop]
        block, found = _sweep(block, factor, own, start)
        errors.append(found)
    return block, xp.concatenate(errors, axis=1)


def _sweep(block: Array, factor: Array, removed: Array, start: int) -> tuple[Array, Array]:
    """The block after the columns from `start` on that have a mask, one after the other; each corrects those behind."""
    xp, width = namespace(block), removed.shape[1]
    if xp is np:
        block, errors = block.copy(), np.empty(removed.shape)
        for n in range(width):
            at = start + n
            gap = np.where(removed[:, n], block[:, at], 0.0) / factor[at, at]
            block[:, at:] -= np.outer(gap, factor[at, at:])
            block[:, at] = np.where(removed[:, n], 0.0, block[:, at])
            errors[:, n] = gap
        return block, errors

    columns = np.arange(block.shape[1], dtype=np.int32)

    def step(n: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # By masks: with indices of 64 bits, batched slices do not lower in JAX's default configuration.
        block, errors = state
        here, there = columns == n + np.int32(start), columns[:width] == n
        row = xp.where(here[:, None], factor, 0.0).sum(axis=0)  # zero before its diagonal
        own = xp.where(here[None, :], block, 0.0).sum(axis=1)
        mask = (removed & there[None, :]).any(axis=1)
        gap = xp.where(mask, own, 0.0) / xp.where(here, row, 0.0).sum()
        block = xp.where((here[None, :] & mask[:, None]), 0.0, block - xp.outer(gap, row))
        return block, xp.where(there[None, :], gap[:, None], errors)

    return jax.lax.fori_loop(np.int32(0), np.int32(width), step, (block, xp.zeros(removed.shape)))
