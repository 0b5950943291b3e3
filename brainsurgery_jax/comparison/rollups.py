"""What differs between two checkpoints, as the cells of a heat map."""

from __future__ import annotations

from brainsurgery_jax.comparison import Difference
from brainsurgery_jax.numerics import rollups


def relative_change(found: Difference) -> dict[tuple[str, int | None], float]:
    """The relative change of what differs in value, by module and layer."""
    return rollups.relative_change(found.differing)
