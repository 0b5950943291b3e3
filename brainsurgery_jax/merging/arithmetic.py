"""Task arithmetic: the sum of what models differ by from their base."""

from __future__ import annotations

from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.sparsify import Sparsifier, Thinned
from brainsurgery_jax.merging.task_vectors import NORMALIZE, summed, task_parameters
from brainsurgery_jax.protocol import TensorExpr


def task_arithmetic(merging: Merging) -> TensorExpr:
    """`base + lambda * sum(weight * (x - base))`."""
    whole = [Thinned(Sparsifier())] * len(merging.models)
    return summed(merging, whole, consensus=False, normalize=merging.flag("normalize"))


TASK_ARITHMETIC = MergeMethod(
    "task_arithmetic", task_arithmetic, "base plus the weighted sum of task vectors",
    "https://arxiv.org/abs/2212.04089", task_parameters(normalize=MergeParameter(False, NORMALIZE)), base="needed",
    by_element=True,
)  # fmt: skip
