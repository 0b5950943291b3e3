"""TIES: trim task vectors to their largest entries, elect a sign for each entry, average what agrees with it."""

from __future__ import annotations

from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.task_vectors import (
    DENSITY,
    NORMALIZE,
    THRESHOLD,
    Kept,
    bands,
    summed,
    task_parameters,
)
from brainsurgery_jax.protocol import TensorExpr


def ties(merging: Merging) -> TensorExpr:
    """The largest entries of each task vector (all of those that are equal to the least of them), then a vote."""
    thinned = bands(merging, [Kept(density) for density in merging.numbers("density")], bounds=1)
    return summed(merging, thinned, consensus=True, normalize=merging.flag("normalize"))


TIES = MergeMethod(
    "ties", ties, "trimmed task vectors, averaged where signs agree", "https://arxiv.org/abs/2306.01708",
    task_parameters(density=DENSITY, normalize=MergeParameter(True, NORMALIZE), threshold=THRESHOLD), base="needed",
)  # fmt: skip
