"""Breadcrumbs: task vectors without their largest entries and without their smallest ones."""

from __future__ import annotations

from collections.abc import Sequence

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

ROUNDING = 1e-9
"""What `1 - density` may be below `gamma` by rounding alone."""


def _breadcrumbs(merging: Merging, *, consensus: bool) -> TensorExpr:
    ranks = [Kept(d, g) for d, g in zip(merging.numbers("density"), merging.numbers("gamma"), strict=True)]
    normalize = merging.flag("normalize")
    if merging.everything and merging is merging.everything[0]:
        _tell_cut(merging.everything)
    if merging.compat and all(int(rank.without * merging.aval.size) == 0 for rank in ranks):
        # Where mergekit leaves out none of the largest, it keeps none at all.
        return summed(merging, [Thinned(KeepNone())] * len(ranks), consensus=consensus, normalize=normalize)
    return summed(merging, bands(merging, ranks, bounds=2), consensus=consensus, normalize=normalize)


def _tell_cut(mergings: Sequence[Merging]) -> None:
    """Say where `gamma` counts for less than it says, as `density` keeps more than it would leave. Raises Refusal."""
    cut = [(merging, model, density, gamma)
           for merging in mergings for model in merging.models
           for density, gamma in [(merging.number("density", model), merging.number("gamma", model))]
           if density and gamma > 1 - density + ROUNDING]  # fmt: skip
    if not cut:
        return
    merging, model, density, gamma = cut[0]
    count = len({m.name for m, *_ in cut} - {merging.name})
    others = f", and for {count} more tensor{'s' * (count > 1)}" if count else ""
    counts = f"counts as {1 - density:.6g}" if density < 1 else "has no effect"
    message = f"`gamma: {gamma:g}` {counts} for '{merging.name}' of '{model.alias}'{others}: `density: {density:g}`"
    hint = f"To leave out the largest entries, keep fewer: `parameters: {{density: {1 - gamma:.6g}}}`, or less."
    merging.view.note("merge-parameter", f"{message} keeps the rest", "parameters", hint)


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
