"""DARE: drop entries of task vectors at random and rescale the rest; then a plain sum, or that of TIES."""

from __future__ import annotations

from brainsurgery_jax.merging.method import MergeMethod, Merging, ModelTensor
from brainsurgery_jax.merging.randomness import draw
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.sparsify import KeepNone, KeepRandom, Sparsifier, Thinned
from brainsurgery_jax.merging.task_vectors import (
    DENSITY,
    NORMALIZE,
    RESCALE,
    summed,
    task_parameters,
    with_l1_factor,
)
from brainsurgery_jax.protocol import TensorExpr

RESCALINGS = ("inverse", "l1", "no")


def _dare(merging: Merging, *, consensus: bool) -> TensorExpr:
    how = merging.word("rescale", RESCALINGS)
    thinned = [
        _thin(merging, model, density, how)
        for model, density in zip(merging.models, merging.numbers("density"), strict=True)
    ]
    return summed(merging, thinned, consensus=consensus, normalize=merging.flag("normalize"))


def _thin(merging: Merging, model: ModelTensor, density: float, how: str) -> Thinned:
    """A task vector of which entries are kept with probability `density`."""
    if density in (0, 1):
        return Thinned(Sparsifier() if density else KeepNone())
    found = Thinned(KeepRandom(density=density, inverse=how == "inverse"), (draw(merging, model),))
    return with_l1_factor(merging, model, found) if how == "l1" else found


def dare_linear(merging: Merging) -> TensorExpr:
    """Each entry of a task vector is kept with probability `density`; then the weighted sum."""
    return _dare(merging, consensus=False)


def dare_ties(merging: Merging) -> TensorExpr:
    """The same, then the sum of what agrees with the elected sign."""
    return _dare(merging, consensus=True)


_PARAMETERS = task_parameters(
    density=DENSITY, rescale=MergeParameter("inverse", RESCALE), normalize=MergeParameter(False, NORMALIZE)
)
_PAPER = "https://arxiv.org/abs/2311.03099"
DARE_LINEAR = MergeMethod(
    "dare_linear", dare_linear, "task vectors with entries dropped at random", _PAPER, _PARAMETERS, base="needed"
)
DARE_TIES = MergeMethod(
    "dare_ties", dare_ties, "the same, added up where signs agree", _PAPER, _PARAMETERS, base="needed"
)
