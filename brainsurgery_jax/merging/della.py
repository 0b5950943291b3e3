"""DELLA: drop entries of task vectors at random, those of small magnitude in their row rather than large ones."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.dare import RESCALINGS
from brainsurgery_jax.merging.method import MergeMethod, Merging, ModelTensor
from brainsurgery_jax.merging.randomness import draw
from brainsurgery_jax.merging.rows import by_rows, in_work
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.sparsify import KeepGiven, KeepNone, Sparsifier, Thinned
from brainsurgery_jax.merging.task_vectors import (
    DENSITY,
    NORMALIZE,
    RESCALE,
    summed,
    task_parameters,
    with_l1_factor,
)
from brainsurgery_jax.merging.tensors import constant_of, kept_where, namespace
from brainsurgery_jax.numerics.math import on_host
from brainsurgery_jax.protocol import TensorExpr


def _ranks(size: Array) -> Array:
    """The place of each entry in the order of its row, the first of equal ones lowest."""
    if not on_host(size) or size.dtype != np.float32:
        xp = namespace(size)
        return xp.argsort(xp.argsort(size, axis=-1, stable=True), axis=-1, stable=True)
    # Bits of numbers without a sign are in their order; with the places below them they are sorted without a function.
    keys = np.asarray(size).view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(size.shape[-1], dtype=np.uint64)
    keys.sort(axis=-1)
    ranks = np.empty(size.shape, np.uint32)
    places: np.ndarray = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    np.put_along_axis(ranks, places, np.arange(size.shape[-1], dtype=np.uint32)[(None,) * (size.ndim - 1)], axis=-1)
    return ranks


@by_rows("della_kept", in_work)
def della_kept(base: Array, x: Array, drawn: Array, *, density: float, epsilon: float, inverse: bool) -> Array:
    """A task vector in which entries are kept by the rank of their magnitude in the row, the first of equal ones
    lowest: with probabilities from `density - epsilon` to `density + epsilon`."""
    xp = namespace(base)
    delta = x - base
    n = delta.shape[-1]
    ranks = _ranks(abs(delta)).astype(delta.dtype)
    share = ranks / constant_of(n - 1, ranks) if n > 1 else xp.full_like(ranks, 0.5)
    probability = constant_of(density - epsilon, delta) + constant_of(2 * epsilon, delta) * share
    kept = kept_where(drawn < probability, delta)
    return kept / probability if inverse else kept


def _sparse(merging: Merging, model: ModelTensor, how: str) -> Thinned:
    density, epsilon = merging.number("density", model), merging.number("epsilon", model)
    if density in (0, 1):  # where mergekit does not look at epsilon, either
        return Thinned(Sparsifier() if density else KeepNone())
    if density - epsilon <= 0 or density + epsilon >= 1:
        message = f"probabilities from {density - epsilon:g} to {density + epsilon:g} of '{model.alias}' are none"
        hint = "`density - epsilon` must be above 0, `density + epsilon` below 1. Density 0 keeps nothing, 1 all."
        raise Refusal("merge-parameter", message, key="models", hint=hint)
    assert merging.base is not None
    operands = [merging.in_dtype(e, merging.work) for e in (merging.base.expr, model.expr, draw(merging, model))]
    delta = merging.view.apply(della_kept, *operands, density=density, epsilon=epsilon, inverse=how == "inverse")
    found = Thinned(KeepGiven(), (delta,))
    return with_l1_factor(merging, model, found) if how == "l1" else found


def _della(merging: Merging, *, consensus: bool) -> TensorExpr:
    how = merging.word("rescale", RESCALINGS)
    thinned = [_sparse(merging, model, how) for model in merging.models]
    return summed(merging, thinned, consensus=consensus, normalize=merging.flag("normalize"))


def della(merging: Merging) -> TensorExpr:
    """Entries are kept at random by rank, then added up where they agree with the elected sign."""
    return _della(merging, consensus=True)


def della_linear(merging: Merging) -> TensorExpr:
    """Entries are kept at random by rank; then the weighted sum."""
    return _della(merging, consensus=False)


def _parameters(*, normalize: bool) -> dict[str, MergeParameter]:
    epsilon = MergeParameter(0.15, "probabilities go from `density - epsilon` to `density + epsilon`", each=True, low=0)
    return task_parameters(
        density=DENSITY, epsilon=epsilon, rescale=MergeParameter("inverse", RESCALE),
        normalize=MergeParameter(normalize, NORMALIZE),
    )  # fmt: skip


_PAPER = "https://arxiv.org/abs/2406.11617"
DELLA = MergeMethod(
    "della", della, "task vectors with entries dropped by magnitude and chance, averaged where signs agree", _PAPER,
    _parameters(normalize=True), base="needed",
)  # fmt: skip
DELLA_LINEAR = MergeMethod(
    "della_linear", della_linear, "the same, added up", _PAPER, _parameters(normalize=False), base="needed"
)
