"""The ranks of the factors of an adapter: one that a plan names, or those that an energy or a budget asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from brainsurgery_jax.adapters.changes import WeightChange
from brainsurgery_jax.adapters.kernels import pooled, rank_above, share_budget, spectrum
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.ops.lowrank import energy_rank
from brainsurgery_jax.ops.sets import entry
from brainsurgery_jax.protocol import View


class Extent(NamedTuple):
    """How large factors are: a rank, or a share of the energy of each matrix, or parameters of all together.

    `least`: with a rank, singular values up to this are left out. `whole`: the last parts of the names of modules that
    are kept whole.
    """

    rank: int | None = None
    energy: float | None = None
    budget: int | None = None
    least: float | None = None
    whole: tuple[str, ...] = ()

    def __str__(self) -> str:
        return next(f"{key} {value:,}" for key, value in self._asdict().items() if value is not None)

    def keeps_whole(self, module: str) -> bool:
        """Whether a module is one of those that are kept whole."""
        return any(f".{module}".endswith(f".{word}") for word in self.whole)


class RankChoice(NamedTuple):
    """How the ranks of changes are chosen."""

    view: View
    extent: Extent

    def ranks(self, changes: Mapping[str, WeightChange]) -> dict[str, int]:
        """The rank of each change: 0 where it is left out, all of it where factors take more than the tensor."""
        extent = self.extent
        if extent.rank is not None and extent.least is None:
            self._tell_cut(changes, extent.rank)
            return {name: min(extent.rank, change.full) for name, change in changes.items()}
        if self.view.provisional:  # which tensors differ is not known yet
            return {name: change.full for name, change in changes.items()}
        if extent.energy is not None:
            return {name: self._largest(c, energy_rank, energy=extent.energy) for name, c in changes.items()}
        if extent.rank is not None:
            found = {name: self._largest(c, rank_above, least=extent.least) for name, c in changes.items()}
            return {name: min(extent.rank, rank) for name, rank in found.items()}
        return self._share(changes)

    def _tell_cut(self, changes: Mapping[str, WeightChange], rank: int) -> None:
        """Say which matrices have fewer rows or columns than the rank that the plan names."""
        small = {name: change.full for name, change in changes.items() if change.full < rank}
        if not small or self.view.provisional:  # which tensors differ is not known yet
            return
        name, full = next(iter(small.items()))
        others = f" (and {len(small) - 1} more)" if len(small) > 1 else ""
        message = f"rank {rank} is more than '{name}'{others} can have: all of it is kept, at rank {full}"
        self.view.note("adapter-extract", message, "rank")

    def _largest(self, change: WeightChange, rank_of: Kernel[..., Any], **keys: object) -> int:
        """The rank that the data ask for, of stacked experts the largest."""
        found = [self.view.apply(rank_of, delta, **keys) for delta in change.deltas]
        return max(self.view.number(rank, change.full) for rank in found)

    def _share(self, changes: Mapping[str, WeightChange]) -> dict[str, int]:
        """Ranks that share a budget of parameters."""
        if not changes:
            return {}
        budget = self.extent.budget
        costs = tuple(change.cost for change in changes.values())
        each = [[self.view.apply(spectrum, delta) for delta in change.deltas] for change in changes.values()]
        spectra = [own[0] if len(own) == 1 else self.view.apply(pooled, *own) for own in each]
        ranks = self.view.apply(share_budget, *spectra, costs=costs, budget=budget)
        found = {
            name: self.view.number(self.view.apply(entry, ranks, axis=0, at=at), change.full)
            for at, (name, change) in enumerate(changes.items())
        }
        if not any(found.values()):
            hint = f"The smallest matrix takes {min(costs):,} parameters at rank 1: give at least as many."
            raise Refusal("adapter-extract", f"no matrix fits into {budget:,} parameters", key="budget", hint=hint)
        return found

    def is_low(self, change: WeightChange, rank: int) -> bool:
        """Whether factors of this rank take fewer parameters than the tensor. A rank that the plan names is kept, and
        so is one that is not known yet."""
        return self.extent.rank is not None or self.view.provisional or rank * change.cost < change.size
