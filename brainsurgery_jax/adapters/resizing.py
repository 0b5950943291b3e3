"""A step `lora_resize` at work: the factors of an adapter at another rank, and a config that scales them as before.

The product of each pair is factorized anew without being formed: `b = Qb Rb`, `a.T = Qa Ra`, and the small SVD of
`Rb Ra.T`. Reference: Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from brainsurgery_jax.adapters.agreement import AdapterFacts, check_agreement
from brainsurgery_jax.adapters.kernels import product_rank, refactor
from brainsurgery_jax.adapters.ranks import Extent
from brainsurgery_jax.adapters.reading import AdaptedModule, fetch_factor, is_scaled_by_config, read_modules
from brainsurgery_jax.adapters.settings import (
    ADAPTER_CONFIG,
    AdapterSettings,
    read_settings,
    refuse_kind,
    refuse_misspelt,
    refuse_unscaled,
)
from brainsurgery_jax.adapters.stacked import Factors, Wrapped, cut_factors, join_factors, read_wrapped
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import Adapter, FactorTensor, keep_scales, patterns_of, read_adapter, usual_rank
from brainsurgery_jax.merging.tensors import common_work, in_dtype
from brainsurgery_jax.ops.elementwise import scale
from brainsurgery_jax.ops.shape import with_shape
from brainsurgery_jax.protocol import AddAlias, Bind, Edit, SetConfig, TensorExpr, View


class FactorPair(NamedTuple):
    """The factors of a module as matrices, one pair for each stacked expert, and their names: of `a` and of `b`."""

    names: tuple[str, str]
    parts: Sequence[Factors]

    @property
    def rank(self) -> int:
        return self.parts[0][1].aval.shape[0]

    @property
    def full(self) -> int:
        """The largest rank that the product can have."""
        b, a = self.parts[0]
        return min(b.aval.shape[0], a.aval.shape[1])


@dataclass(frozen=True)
class ResizeStep:
    """What a step says."""

    view: View
    adapter: str
    to: str
    extent: Extent
    config: Mapping[str, object] | None = None

    def edits(self) -> Iterator[Edit]:
        """What the step does. Raises Refusal."""
        refuse_misspelt(self.config or {})
        refuse_kind(self.settings, merges=False)
        pairs = {m: self._pair(own) for m, own in self.modules.items() if own.factors is not None}
        pairs |= {own.parameter: self._stacked_pair(own) for own in self.stacked}
        if not pairs:
            raise Refusal("adapter-merge", f"'{self.adapter}' holds no factors", key="adapter",
                          hint="Name the alias of an adapter.")  # fmt: skip
        self._check(pairs)
        ranks = self._ranks(pairs)
        results = dict(self._results(pairs, ranks))
        if self.to != self.adapter:
            if self.to in self.view.aliases():
                raise Refusal("alias-exists", f"there is an alias '{self.to}' already", key="to",
                              hint="Give another name, or leave `to` out to change the adapter itself.")  # fmt: skip
            yield AddAlias(self.to, like=self.adapter)
        for name in self.view.names(self.adapter):
            expr = results.get(name) or self.view.fetch(self.adapter, name, "adapter")
            if name in results or self.to != self.adapter:
                yield Bind(self.to, name, expr, "rebind", (self.adapter, name))
        if self.settings.own or self.config:
            config = {**_said_ranks(pairs), **self.settings.config}
            yield SetConfig(self.to, keep_scales(config, self._resized(results, ranks)), ADAPTER_CONFIG)

    @cached_property
    def settings(self) -> AdapterSettings:
        """What adapter_config.json says, and the step instead."""
        return read_settings(self.view, self.adapter, self.config or {}, "adapter")

    def _check(self, pairs: Mapping[str, FactorPair]) -> None:
        """Refuse factors whose scale is not known, or of which the config says otherwise."""
        by_config = is_scaled_by_config(self.modules.values(), stacked=bool(self.stacked))
        refuse_unscaled(self.settings, list(self._shapes), scaled=not by_config)
        ranks = {module: pair.rank for module, pair in pairs.items()}
        check_agreement(self.view, self.settings, AdapterFacts(self.modules, ranks))

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        names = self.view.names(self.adapter)
        return {name: self.view.fetch(self.adapter, name, "adapter").aval.shape for name in names}

    @cached_property
    def stacked(self) -> list[Wrapped]:
        return read_wrapped(self.adapter, self._shapes, self.settings.config)

    @cached_property
    def modules(self) -> dict[str, AdaptedModule]:
        taken = {name for own in self.stacked for name in (own.a, own.b)}
        return read_modules(self.adapter, [name for name in self._shapes if name not in taken], "adapter")

    def _resized(self, results: Mapping[str, TensorExpr], ranks: Mapping[str, int]) -> Adapter:
        """The adapter with its new ranks, those of stacked experts by parameter."""
        avals = {n: (results.get(n) or self.view.fetch(self.adapter, n)).aval for n in self._shapes}
        taken = {own.parameter: (FactorTensor(ranks[own.parameter], own.a, avals.pop(own.a)),) for own in self.stacked}
        found = read_adapter({n: aval for n, aval in avals.items() if all(n != own.b for own in self.stacked)})
        return found._replace(factors={**found.factors, **taken})

    def _stacked_pair(self, own: Wrapped) -> FactorPair:
        b, a = (fetch_factor(self.view, self.adapter, name, "adapter") for name in (own.b, own.a))
        return FactorPair((own.a, own.b), cut_factors(self.view, b, a, own.experts))

    def _pair(self, own: AdaptedModule) -> FactorPair:
        assert own.factors is not None
        a, b = (fetch_factor(self.view, self.adapter, name, "adapter") for name in own.factors)
        rank = a.aval.shape[0]
        flat_a = self._with_shape(a, (rank, prod(a.aval.shape[1:])))
        flat_b = self._with_shape(b, (b.aval.shape[0], prod(b.aval.shape[1:])))
        if flat_b.aval.shape[1] != rank:
            hint = "Use the adapter as it was saved."
            message = f"'{own.factors[0]}' {a.aval} and '{own.factors[1]}' {b.aval} are no factors of one product"
            raise Refusal("shapes-differ", message, key="adapter", hint=hint)
        return FactorPair(own.factors, [(flat_b, flat_a)])

    def _with_shape(self, x: TensorExpr, shape: tuple[int, ...]) -> TensorExpr:
        return x if x.aval.shape == shape else self.view.apply(with_shape, x, shape=shape)

    def _ranks(self, pairs: Mapping[str, FactorPair]) -> dict[str, int]:
        """The new rank of each module: of what is asked no more than its product can have."""
        if self.extent.rank is not None:
            return {module: min(self.extent.rank, pair.full) for module, pair in pairs.items()}
        return {module: self._rank_by_energy(pair) for module, pair in pairs.items()}

    def _rank_by_energy(self, pair: FactorPair) -> int:
        """The least rank that keeps the share that is asked for, in each of stacked experts."""
        wanted = [
            self.view.apply(product_rank, *self._in_one_dtype(*part), energy=self.extent.energy) for part in pair.parts
        ]
        return max(self.view.number(rank, min(pair.rank, pair.full)) for rank in wanted)

    def _in_one_dtype(self, b: TensorExpr, a: TensorExpr) -> Factors:
        work = common_work([b.aval.dtype, a.aval.dtype])
        return self.view.apply(in_dtype, b, dtype=work), self.view.apply(in_dtype, a, dtype=work)

    def _results(self, pairs: Mapping[str, FactorPair], ranks: Mapping[str, int]) -> Iterator[tuple[str, TensorExpr]]:
        """The tensors that differ, by name: factors, and the `alpha` of kohya, which goes with the rank."""
        for module, pair in pairs.items():
            if (rank := ranks[module]) == pair.rank:
                continue
            made = [self.view.apply_all(refactor, *self._in_one_dtype(*part), rank=rank) for part in pair.parts]
            b, a = join_factors(self.view, [(b, a) for b, a in made]) if len(made) > 1 else made[0]
            for name, x in zip(pair.names, (a, b), strict=True):
                old = self.view.fetch(self.adapter, name, "adapter").aval
                columns = rank * len(made)
                shape = (columns, *old.shape[1:]) if name == pair.names[0] else (old.shape[0], columns, *old.shape[2:])
                yield name, self._with_shape(self.view.apply(in_dtype, x, dtype=old.dtype), shape)
            alpha = self.modules[module].parts.get("alpha") if module in self.modules else None
            if alpha is not None:
                found = self.view.fetch(self.adapter, alpha, "adapter")
                yield alpha, self.view.apply(scale, found, by=rank / pair.rank)


def _said_ranks(pairs: Mapping[str, FactorPair]) -> dict[str, object]:
    """What a config has to say of the ranks that there are."""
    ranks = {module: pair.rank for module, pair in pairs.items()}
    usual = usual_rank(ranks)
    return {"r": usual, "rank_pattern": patterns_of({m: r for m, r in ranks.items() if r != usual}, ranks)}
