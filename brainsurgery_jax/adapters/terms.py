"""What adapters do to the tensors of a base: expressions of `compute`, by the name of the tensor.

LoRA: `w + s B A`, with `s = alpha / r`, or `alpha / sqrt(r)` (rank-stabilized). DoRA: `m (w + s B A) / |w + s B A|`,
the length taken over the inputs.

References: Hu et al., LoRA, 2021, https://arxiv.org/abs/2106.09685; Kalajdzievski, rsLoRA, 2023,
https://arxiv.org/abs/2312.03732; Liu et al., DoRA, 2024, https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Any, NamedTuple

from brainsurgery_jax.adapters.architecture import Architecture, read_architecture
from brainsurgery_jax.adapters.reading import (
    AdaptedModule,
    ModuleFinder,
    deletion,
    differing_head,
    fetch_factor,
    is_scaled_by_config,
    part_of_pipeline,
)
from brainsurgery_jax.adapters.settings import AdapterSettings
from brainsurgery_jax.adapters.stacked import StackedFactors
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import is_within, value_for
from brainsurgery_jax.protocol import TensorExpr, View
from brainsurgery_jax.select import Ref


class AdapterToMerge(NamedTuple):
    """An adapter: its settings, its modules by name, and its weight in the result."""

    settings: AdapterSettings
    weight: float
    modules: Mapping[str, AdaptedModule]
    stacked: Sequence[StackedFactors] = ()

    @property
    def alias(self) -> str:
        return self.settings.alias

    @property
    def config(self) -> Mapping[str, Any]:
        """What adapter_config.json says, and the step instead."""
        return self.settings.config

    @property
    def is_scaled_by_config(self) -> bool:
        """Whether its config decides by how much a product counts."""
        return is_scaled_by_config(self.modules.values(), stacked=bool(self.stacked))


class Term(NamedTuple):
    """What an adapter does to a tensor: an expression of its `change`, or the whole new `value`; and the operands, by
    the names that these have in the expression."""

    operands: Mapping[str, Ref]
    change: str = ""
    value: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class AdaptedBase:
    """The model that adapters change."""

    view: View
    alias: str

    @cached_property
    def architecture(self) -> Architecture:
        """What it is by what its config says and the shapes that it has."""
        return read_architecture(self.view, self.alias)

    @cached_property
    def finder(self) -> ModuleFinder:
        """What finds its modules."""
        heads = (f"{head}.weight" for head in self.shared)
        return ModuleFinder(self.alias, (*self.architecture.shapes, *heads), self.architecture.module_of)

    def shape(self, alias: str, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the base, or of an adapter."""
        return self.view.fetch(alias, name, "base" if alias == self.alias else "adapters").aval.shape

    @property
    def shared(self) -> Mapping[str, str]:
        """The heads that the base does not store, since they are its table of tokens, with that table."""
        return self.architecture.tied

    def find(self, adapter: AdapterToMerge, module: str, own: AdaptedModule) -> tuple[str, str]:
        """The module of the result that a module of an adapter is, and the one of the base whose weight it has."""
        if (found := self.finder.find(module)) is not None:
            return found, self.shared.get(found, found)
        if own.whole and not own.parts and is_within(module, adapter.config.get("modules_to_save")):
            return self._name_as_base(module), ""
        raise self._refuse_missing(adapter)

    def _refuse_missing(self, adapter: AdapterToMerge) -> Refusal:
        """That the base lacks modules. Those of another model may go; any other belongs to what was trained."""
        there = {module: self.finder.find(module) for module in adapter.modules}
        gone = [module for module, found in there.items() if found is None]
        first = adapter.modules[gone[0]].names[0]
        hint = "Is it the base that the adapter was trained on? `brainsurgery-jax inspect` lists its names."
        begins = {module: part_of_pipeline(own.names[0]) for module, own in adapter.modules.items()}
        here = {begins[module] for module, found in there.items() if found is not None}
        part = begins[gone[0]]
        if part is not None and here and part not in here:
            step = deletion(adapter.alias, f"{re.escape(part)}.*")
            hint = f"It is for several models, and others of its modules are there: {step}."
        more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
        message = f"'{self.alias}' has no module '{gone[0]}'{more}, which '{adapter.alias}' changes ('{first}')"
        return Refusal("adapter-merge", message, key="adapters", hint=hint)

    def _name_as_base(self, module: str) -> str:
        """What a module that the base lacks is called in it."""
        return module.removeprefix(self.architecture.prefix)


@dataclass(frozen=True)
class AdapterTerms:
    """What an adapter does to the tensors of a base. `number`: its own in the names of operands."""

    base: AdaptedBase
    adapter: AdapterToMerge
    number: int

    def terms(self) -> Iterator[tuple[str, Term]]:
        """Each with the name of the tensor of the result."""
        places = self._places()
        for module, own in self.adapter.modules.items():
            found, known = places[module]
            for name, term in self._of_module(module, own, known):
                yield f"{found}.{name}", term
        for own in self.adapter.stacked:
            yield f"{own.module}.{own.parameter}", self._stacked(own)

    def _places(self) -> Mapping[str, tuple[str, str]]:
        """For each module of the adapter that of the result, and the one of the base whose weight it has. That no two
        are one is seen before any shape: of an adapter for several models, one module may fit and the other not."""
        places: dict[str, tuple[str, str]] = {}
        changed: dict[str, str] = {}
        for module, own in self.adapter.modules.items():
            places[module] = self.base.find(self.adapter, module, own)
            if (other := changed.setdefault(places[module][0], module)) != module:
                raise self._refuse_both(places[module][0], other, module)
        return places

    def _refuse_both(self, found: str, *modules: str) -> Refusal:
        """That two modules of an adapter are one of the base, as in adapters for two models that are alike."""
        one, other = (self.adapter.modules[module].names[0] for module in modules)
        alias, both = self.adapter.alias, " and ".join(f"'{module}'" for module in modules)
        message = f"{both} of '{alias}' are one module of '{self.base.alias}', '{found}'"
        hint = f"Before, {deletion(alias, f'{re.escape(differing_head(one, other))}.*')}."
        return Refusal("adapter-merge", message, key="adapters", hint=hint)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(self.adapter.alias, name)

    def _factor(self, name: str) -> TensorExpr:
        return fetch_factor(self.base.view, self.adapter.alias, name, "adapters")

    def _operands(self, **names: str) -> dict[str, Ref]:
        """Tensors of the adapter, by a letter and its number."""
        return {f"{letter}{self.number}": Ref(self.adapter.alias, name) for letter, name in names.items()}

    def _stacked(self, own: StackedFactors) -> Term:
        """What an adapter does to stacked experts."""
        rank = own.rank(self._shape(own.a)[0])
        fetch_factor(self.base.view, self.base.alias, f"{own.module}.{own.parameter}", "base")
        for name in (own.a, own.b):
            self._factor(name)
        scale = self._scale_of(f"{own.module}.{own.parameter}", rank)
        operands = self._operands(a=own.a, b=own.b)
        change = f"{scale} * {own.product(f'a{self.number}', f'b{self.number}', rank)}"
        return Term(operands, change=change, weight=self.adapter.weight)

    def _of_module(self, module: str, own: AdaptedModule, known: str) -> Iterator[tuple[str, Term]]:
        """What it does to the tensors of a module, by their last names."""
        weight = self.adapter.weight
        if own.factors is not None:
            yield "weight", self._product(module, own, known)
        for parameter, name in own.whole.items():
            yield parameter, Term(self._operands(t=name), value=f"t{self.number}", weight=weight)
        if (name := own.parts.get("bias")) is not None:
            yield "bias", Term(self._operands(t=name), value=f"t{self.number}", weight=weight)
        if (name := own.parts.get("factor_bias")) is not None:
            if f"{known}.bias" not in self.base.architecture.shapes:
                hint = "PEFT cannot merge it either. `delete` the bias, if it may be left out."
                message = (
                    f"'{name}' of '{self.adapter.alias}' adds a bias, and '{known}' of '{self.base.alias}' has none"
                )
                raise Refusal("adapter-merge", message, key="adapters", hint=hint)
            scale, more = self._scale(module, own)
            yield "bias", Term({**self._operands(f=name), **more}, change=f"{scale} * f{self.number}", weight=weight)

    def _scale(self, module: str, own: AdaptedModule) -> tuple[str, dict[str, Ref]]:
        """The factor of a product as an expression, with its operands."""
        assert own.factors is not None
        rank = self._shape(own.factors[0])[0]
        if rank and (name := own.parts.get("alpha")) is not None:
            return f"reshape(s{self.number}, (1,)) / {rank}", self._operands(s=name)
        return self._scale_of(module, rank), {}

    def _scale_of(self, name: str, rank: int) -> str:
        """The factor that a config says for a module or parameter; any for an empty product."""
        if not rank:
            return "1.0"
        usual = self.adapter.config.get("lora_alpha", 8 if self.adapter.config else rank)
        alpha = value_for(name, self.adapter.settings.pattern("alpha_pattern"), usual)
        return repr(alpha / (sqrt(rank) if self.adapter.config.get("use_rslora") else rank))

    def _product(self, module: str, own: AdaptedModule, known: str) -> Term:
        """What factors do to a weight."""
        assert own.factors is not None
        a, b = (f"{x}{self.number}" for x in "ab")
        scale, operands = self._scale(module, own)
        operands |= self._operands(**dict(zip("ab", own.factors, strict=True)))
        shape = self._weight_shape(own, known)
        turned = own.is_table or (len(shape) == 2 and self.base.architecture.is_transposed(known))
        self._check_shapes(own, shape, turned=turned)
        rank, flat = self._shape(own.factors[0])[0], len(shape) == 2
        if any(len(self._shape(name)) != 2 for name in own.factors):
            a, b = f"reshape({a}, ({rank}, -1))", f"reshape({b}, (-1, {rank}))"
        change = f"{scale} * ({b} @ {a})" + (".T" if turned else "")
        change = change if flat else f"reshape({change}, {shape})"
        if (name := own.parts.get("magnitude")) is None:
            return Term(operands, change=change, weight=self.adapter.weight)
        operands |= self._operands(m=name)
        axis, sizes = (0, "(1, -1)") if turned else (1, "(-1, 1)")
        rows = f"(w + {change})" if flat else f"reshape(w + {change}, ({shape[0]}, -1))"
        value = f"reshape(m{self.number}, {sizes}) * {rows} / norm({rows}, axis={axis}, keepdims=True)"
        return Term(operands, value=value if flat else f"reshape({value}, {shape})", weight=self.adapter.weight)

    def _weight_shape(self, own: AdaptedModule, known: str) -> tuple[int, ...]:
        """The shape of the weight that factors are added to."""
        if (name := own.parts.get("weight")) is not None:
            return self._shape(name)
        if f"{known}.weight" not in self.base.architecture.shapes:
            message = f"'{self.base.alias}' has no '{known}.weight', to which '{self.adapter.alias}' adds a product"
            raise Refusal("tensor-missing", message, key="base")
        return fetch_factor(self.base.view, self.base.alias, f"{known}.weight", "base").aval.shape

    def _check_shapes(self, own: AdaptedModule, shape: Sequence[int], *, turned: bool) -> None:
        """Refuse factors whose product has not the shape of the weight."""
        assert own.factors is not None
        for part in ("magnitude", "factor_bias"):
            if (name := own.parts.get(part)) is not None:
                self._factor(name)
        avals = [self._factor(name).aval for name in own.factors]
        (rank, *inputs), (outputs, *ranks) = (aval.shape for aval in avals)
        made = (outputs, prod(inputs)) if not turned else (prod(inputs), outputs)
        wanted = (shape[0], prod(shape[1:]))
        if made != wanted or prod(ranks) != rank:
            shown = " and ".join(f"'{name}' {aval}" for name, aval in zip(own.factors, avals, strict=True))
            hint = "Is it the base that the adapter was trained on? Grouped convolutions cannot be merged."
            message = f"{shown} of '{self.adapter.alias}' make no weight of shape {list(shape)}"
            raise Refusal("shapes-differ", message, key="adapters", hint=hint)
