"""Breadcrumbs: task vectors without their largest entries and without their smallest ones."""

from __future__ import annotations

from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.sparsify import KeepNone, Thinned
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


def _breadcrumbs(merging: Merging, *, consensus: bool) -> TensorExpr:
    ranks = [Kept(d, g) for d, g in zip(merging.numbers("density"), merging.numbers("gamma"), strict=True)]
    normalize = merging.flag("normalize")
    if merging.compat and all(int(rank.without * merging.aval.size) == 0 for rank in ranks):
        # Where mergekit leaves out none of the largest, it keeps none at all.
        return summed(merging, [Thinned(KeepNone())] * len(ranks), consensus=consensus, normalize=normalize)
    return summed(merging, bands(merging, ranks, bounds=2), consensus=consensus, normalize=normalize)


def breadcrumbs(merging: Merging) -> TensorExpr:
    """The share `gamma` of the largest entries is left out; then the share `density` is kept, the largest first."""
    return _breadcrumbs(merging, consensus=False)


def breadcrumbs_ties(merging: Merging) -> TensorExpr:
    """The same, then the sum of what agrees with the elected sign."""
    return _breadcrumbs(merging, consensus=True)


_PARAMETERS = task_parameters(
    density=DENSITY,
    gamma=MergeParameter(0.01, "share of the largest entries that are left out", each=True, low=0, high=1),
    normalize=MergeParameter(False, NORMALIZE),
    threshold=THRESHOLD,
)
_PAPER = "https://arxiv.org/abs/2312.06795"
BREADCRUMBS = MergeMethod(
    "breadcrumbs", breadcrumbs, "task vectors without their largest and smallest entries", _PAPER, _PARAMETERS,
    base="needed",
)  # fmt: skip
BREADCRUMBS_TIES = MergeMethod(
    "breadcrumbs_ties", breadcrumbs_ties, "the same, added up where signs agree", _PAPER, _PARAMETERS, base="needed"
)
