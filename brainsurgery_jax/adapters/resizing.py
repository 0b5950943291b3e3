"""A step `lora_resize` at work: the factors of an adapter at another rank, and a config that scales them as before.

The product of each pair is factorized anew without being formed: `b = Qb Rb`, `a.T = Qa Ra`, and the small SVD of
`Rb Ra.T`. Reference: Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from brainsurgery_jax.adapters.extraction import ADAPTER_CONFIG, Extent
from brainsurgery_jax.adapters.kernels import product_rank, refactor
from brainsurgery_jax.adapters.reading import AdaptedModule, read_modules
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import keep_scales, read_adapter
from brainsurgery_jax.merging.tensors import common_work, in_dtype
from brainsurgery_jax.ops.elementwise import scale
from brainsurgery_jax.ops.shape import with_shape
from brainsurgery_jax.protocol import AddAlias, Bind, Edit, SetConfig, TensorExpr, View


class FactorPair(NamedTuple):
    """The factors of a module as matrices: `b` [outputs, r] and `a` [r, inputs], and their names."""

    names: tuple[str, str]
    b: TensorExpr
    a: TensorExpr

    @property
    def rank(self) -> int:
        return self.a.aval.shape[0]

    @property
    def full(self) -> int:
        """The largest rank that the product can have."""
        return min(self.b.aval.shape[0], self.a.aval.shape[1])


@dataclass(frozen=True)
class ResizeStep:
    """What a step says."""

    view: View
    adapter: str
    to: str
    extent: Extent

    def edits(self) -> Iterator[Edit]:
        """What the step does. Raises Refusal."""
        pairs = {m: self._pair(own) for m, own in self.modules.items() if own.factors is not None}
        if not pairs:
            raise Refusal("adapter-merge", f"'{self.adapter}' holds no factors", key="adapter",
                          hint="Name the alias of an adapter.")  # fmt: skip
        ranks = self._ranks(pairs)
        results = dict(self._results(pairs, ranks))
        if self.to != self.adapter:
            if self.to in self.view.aliases():
                raise Refusal("alias-exists", f"there is an alias '{self.to}' already", key="to",
                              hint="Give another name, or leave `to` out to change the adapter itself.")  # fmt: skip
            yield AddAlias(self.to)
        for name in self.view.names(self.adapter):
            expr = results.get(name) or self.view.fetch(self.adapter, name, "adapter")
            if name in results or self.to != self.adapter:
                yield Bind(self.to, name, expr, "rebind", (self.adapter, name))
        known = self.view.config(self.adapter, "adapter")
        if known is not None and known[0] == ADAPTER_CONFIG and isinstance(known[1], Mapping):
            avals = {n: (results.get(n) or self.view.fetch(self.adapter, n)).aval for n in self._name}
            yield SetConfig(self.to, keep_scales(known[1], read_adapter(avals)), ADAPTER_CONFIG)

    @cached_property
    def modules(self) -> dict[str, AdaptedModule]:
        return read_modules(self.adapter, self.view.names(self.adapter))

    @cached_property
    def _name(self) -> tuple[str, ...]:
        return tuple(self.view.names(self.adapter))

    def _pair(self, own: AdaptedModule) -> FactorPair:
        assert own.factors is not None
        a, b = (self.view.fetch(self.adapter, name, "adapter") for name in own.factors)
        rank = a.aval.shape[0]
        flat_a = self._with_shape(a, (rank, prod(a.aval.shape[1:])))
        flat_b = self._with_shape(b, (b.aval.shape[0], prod(b.aval.shape[1:])))
        if flat_b.aval.shape[1] != rank:
            hint = "Use the adapter as it was saved."
            message = f"'{own.factors[0]}' {a.aval} and '{own.factors[1]}' {b.aval} are no factors of one product"
            raise Refusal("shapes-differ", message, key="adapter", hint=hint)
        return FactorPair(own.factors, flat_b, flat_a)

    def _with_shape(self, x: TensorExpr, shape: tuple[int, ...]) -> TensorExpr:
        return x if x.aval.shape == shape else self.view.apply(with_shape, x, shape=shape)

    def _ranks(self, pairs: Mapping[str, FactorPair]) -> dict[str, int]:
        """The new rank of each module: of what is asked no more than its product can have."""
        if self.extent.rank is not None:
            return {module: min(self.extent.rank, pair.full) for module, pair in pairs.items()}
        wide = {module: self._in_one_dtype(pair) for module, pair in pairs.items()}
        wanted = {m: self.view.apply(product_rank, b, a, energy=self.extent.energy) for m, (b, a) in wide.items()}
        return {m: self.view.number(rank, min(pairs[m].rank, pairs[m].full)) for m, rank in wanted.items()}

    def _in_one_dtype(self, pair: FactorPair) -> tuple[TensorExpr, TensorExpr]:
        work = common_work([pair.b.aval.dtype, pair.a.aval.dtype])
        return self.view.apply(in_dtype, pair.b, dtype=work), self.view.apply(in_dtype, pair.a, dtype=work)

    def _results(self, pairs: Mapping[str, FactorPair], ranks: Mapping[str, int]) -> Iterator[tuple[str, TensorExpr]]:
        """The tensors that differ, by name: factors, and the `alpha` of kohya, which goes with the rank."""
        for module, pair in pairs.items():
            rank = ranks[module]
            if rank == pair.rank:
                continue
            b, a = self.view.apply_all(refactor, *self._in_one_dtype(pair), rank=rank)
            for name, x in zip(pair.names, (a, b), strict=True):
                old = self.view.fetch(self.adapter, name, "adapter").aval
                is_a = name == pair.names[0]
                shape = (rank, *old.shape[1:]) if is_a else (old.shape[0], rank, *old.shape[2:])
                short = self.view.apply(in_dtype, x, dtype=old.dtype)
                yield name, self._with_shape(short, shape)
            if (alpha := self.modules[module].parts.get("alpha")) is not None:
                found = self.view.fetch(self.adapter, alpha, "adapter")
                yield alpha, self.view.apply(scale, found, by=rank / pair.rank)
