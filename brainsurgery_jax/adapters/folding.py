"""A step `lora_merge` at work: adapters become part of a model, as steps `compute`, one for each tensor that changes.

Each adapter changes a tensor `w` by its weight times what it makes of `w` alone, less `w`; with one adapter of weight 1
the result is what PEFT merges. LoRA: `w + s B A`, with `s = alpha / r`, or `alpha / sqrt(r)` (rank-stabilized). DoRA:
`m (w + s B A) / |w + s B A|`, the length taken over the inputs.

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

from brainsurgery_jax.adapters.agreement import AdapterFacts, check_agreement
from brainsurgery_jax.adapters.architecture import Architecture
from brainsurgery_jax.adapters.quantized import refuse_quantized
from brainsurgery_jax.adapters.reading import (
    AdaptedModule,
    ModuleFinder,
    fetch_factor,
    is_scaled_by_config,
    read_modules,
)
from brainsurgery_jax.adapters.settings import (
    ADAPTER_CONFIG,
    SCALES,
    AdapterSettings,
    read_settings,
    refuse_kind,
    refuse_misspelt,
    refuse_unscaled,
)
from brainsurgery_jax.adapters.stacked import StackedBase, StackedFactors, read_stacked
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import HEAD, value_for
from brainsurgery_jax.protocol import AddAlias, Bind, Edit, Expand, Substep, View
from brainsurgery_jax.select import Ref

Numbers = Mapping[str, float]

_WEIGHTED = re.compile(r"(.+?)(?:\.base_layer)*\.(?:lora[_.].*|modules_to_save(?:\.default)?\.weight|weight)")
"""Names of tensors by which the weight of a module changes."""


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
class FoldStep:
    """What a step says."""

    view: View
    base: str
    adapters: Numbers
    to: str
    config: Mapping[str, object] | None = None

    def edits(self) -> Iterator[Edit]:
        """What the step does. Raises Refusal."""
        refuse_misspelt(self.config or {})
        self._refuse_idle_scale()
        steps = [*self._untie(), *self._computations(), *self._reconfigure()]
        if self.to != self.base:
            if self.to in self.view.aliases():
                raise Refusal("alias-exists", f"there is an alias '{self.to}' already", key="to",
                              hint="Give another name, or leave `to` out to change the base itself.")  # fmt: skip
            yield AddAlias(self.to, like=self.base)
            for name in self.view.names(self.base):
                yield Bind(self.to, name, self.view.fetch(self.base, name, "base"), "new", (self.base, name))
        yield Expand(tuple(steps))

    # --- what is read

    @cached_property
    def model(self) -> Architecture:
        """The base."""
        known = self.view.config(self.base, "base")
        config = known[1] if known is not None and isinstance(known[1], Mapping) else {}
        shapes = {name: self._shape(self.base, name) for name in self.view.names(self.base)}
        return Architecture(config, shapes)

    @cached_property
    def finder(self) -> ModuleFinder:
        return ModuleFinder(self.base, self.model.shapes)

    def _shape(self, alias: str, name: str) -> tuple[int, ...]:
        return self.view.fetch(alias, name, "base" if alias == self.base else "adapters").aval.shape

    @cached_property
    def loaded(self) -> list[AdapterToMerge]:
        """The adapters, in their order."""
        return [self._load(alias, weight) for alias, weight in self.adapters.items()]

    def _load(self, alias: str, weight: float) -> AdapterToMerge:
        names = self.view.names(alias)
        settings = read_settings(self.view, alias, self.config or {}, "adapters", several=len(self.adapters) > 1)
        refuse_kind(settings, merges=True)
        self._refuse_codes(names)
        shapes = {name: self._shape(alias, name) for name in names}
        stacked = read_stacked(StackedBase(self.base, self.model, self.finder), alias, shapes, settings.config)
        taken = {name for factors in stacked for name in (factors.a, factors.b)}
        modules = read_modules(alias, [name for name in names if name not in taken])
        adapter = AdapterToMerge(settings, weight, modules, stacked)
        refuse_unscaled(settings, names, scaled=not adapter.is_scaled_by_config)
        ranks = {m: shapes[own.factors[0]][0] for m, own in modules.items() if own.factors is not None}
        ranks |= {f"{own.module}.{own.parameter}": own.rank(shapes[own.a][0]) for own in stacked}
        check_agreement(self.view, settings, AdapterFacts(modules, ranks))
        return adapter

    def _refuse_codes(self, names: Sequence[str]) -> None:
        """Refuse a base in which modules that an adapter has factors or weights for are quantized."""
        changed = {match[1] for name in names if (match := _WEIGHTED.fullmatch(name)) is not None}
        modules = {self.finder.find(module.removeprefix(HEAD)) for module in changed}
        held = [name for name in self.model.shapes if name.rpartition(".")[0] in modules]
        refuse_quantized(self.view, {self.base: held}, "base")

    def _refuse_idle_scale(self) -> None:
        """Refuse settings of the step by which no product counts, since tensors say by how much."""
        idle = next((key for key in SCALES if key in (self.config or {})), None)
        if idle is None or any(adapter.is_scaled_by_config for adapter in self.loaded):
            return
        parts = (own.parts.get("alpha") for adapter in self.loaded for own in adapter.modules.values())
        if (name := next(filter(None, parts), None)) is not None:
            hint = "Leave it out; or `delete` these tensors before, if they are wrong."
            message = f"'{idle}' of 'config' does not count: tensors such as '{name}' say by how much products count"
            raise Refusal("adapter-config", message, key="config", hint=hint)

    def _stacked_term(self, adapter: AdapterToMerge, own: StackedFactors, number: int) -> Term:
        """What an adapter does to stacked experts."""
        rank = own.rank(self._shape(adapter.alias, own.a)[0])
        fetch_factor(self.view, self.base, f"{own.module}.{own.parameter}", "base")
        for name in (own.a, own.b):
            fetch_factor(self.view, adapter.alias, name, "adapters")
        scale = self._scale_of(adapter, f"{own.module}.{own.parameter}", rank)
        operands = {f"a{number}": Ref(adapter.alias, own.a), f"b{number}": Ref(adapter.alias, own.b)}
        change = f"{scale} * {own.product(f'a{number}', f'b{number}', rank)}"
        return Term(operands, change=change, weight=adapter.weight)

    # --- which tensors change

    def _computations(self) -> Iterator[Substep]:
        """The steps that make the tensors of the result which differ from those of the base."""
        terms: dict[str, list[Term]] = {}
        for number, adapter in enumerate(self.loaded):
            for module, own in adapter.modules.items():
                found, known = self._find(adapter, module, own)
                for name, term in self._terms(adapter, module, own, known, number):
                    terms.setdefault(f"{found}.{name}", []).append(term)
            for own in adapter.stacked:
                term = self._stacked_term(adapter, own, number)
                terms.setdefault(f"{own.module}.{own.parameter}", []).append(term)
        for name, found in terms.items():
            yield self._compute(name, found)
        for adapter in self.loaded:
            for module, own in adapter.modules.items():
                if "tokens" in own.parts:
                    yield from self._place_tokens(adapter, self._find(adapter, module, own)[0], own.parts["tokens"])

    def _find(self, adapter: AdapterToMerge, module: str, own: AdaptedModule) -> tuple[str, str]:
        """The module of the result that a module of an adapter is, and the one of the base whose weight it has."""
        if (found := self.finder.find(module)) is not None:
            return found, found
        if (table := self.shared.get(module)) is not None:
            return module, table
        listed = adapter.config.get("modules_to_save")
        saved = isinstance(listed, list) and any(module.endswith(str(word)) for word in listed)
        if own.whole and not own.parts and saved:
            return self._name_as_base(module), ""
        name = next(iter((*own.parts.values(), *own.whole.values())))
        hint = "Is it the base that the adapter was trained on? `brainsurgery-jax inspect` lists its names."
        message = f"'{self.base}' has no module '{module}', which '{adapter.alias}' changes ('{name}')"
        raise Refusal("adapter-merge", message, key="adapters", hint=hint)

    def _name_as_base(self, module: str) -> str:
        """What a module that the base lacks is called in it."""
        return module.removeprefix(self.model.prefix)

    @cached_property
    def shared(self) -> dict[str, str]:
        """The heads that the base does not store, since they are its table of tokens, with that table."""
        heads = ((self.model.head_of(module), module) for module in self.finder.modules)
        return {head: table for head, table in heads if head is not None and head not in self.finder.modules}

    def _terms(
        self, adapter: AdapterToMerge, module: str, own: AdaptedModule, known: str, number: int
    ) -> Iterator[tuple[str, Term]]:  # fmt: skip
        """What an adapter does to the tensors of a module, by their last names."""
        weight = adapter.weight
        operand = lambda kind, name: {f"{kind}{number}": Ref(adapter.alias, name)}  # noqa: E731
        if own.factors is not None:
            yield "weight", self._product(adapter, module, own, known, number)
        for parameter, name in own.whole.items():
            yield parameter, Term(operand("t", name), value=f"t{number}", weight=weight)
        if (name := own.parts.get("bias")) is not None:
            yield "bias", Term(operand("t", name), value=f"t{number}", weight=weight)
        if (name := own.parts.get("factor_bias")) is not None:
            if f"{known}.bias" not in self.model.shapes:
                hint = "PEFT cannot merge it either. `delete` the bias, if it may be left out."
                message = f"'{name}' of '{adapter.alias}' adds a bias, and '{known}' of '{self.base}' has none"
                raise Refusal("adapter-merge", message, key="adapters", hint=hint)
            scale, more = self._scale(adapter, module, own, number)
            yield "bias", Term({**operand("f", name), **more}, change=f"{scale} * f{number}", weight=weight)

    def _scale(
        self, adapter: AdapterToMerge, module: str, own: AdaptedModule, number: int
    ) -> tuple[str, dict[str, Ref]]:  # fmt: skip
        """The factor of a product as an expression, with its operands."""
        assert own.factors is not None
        rank = self._shape(adapter.alias, own.factors[0])[0]
        if (name := own.parts.get("alpha")) is not None:
            return f"reshape(s{number}, (1,)) / {rank}", {f"s{number}": Ref(adapter.alias, name)}
        return self._scale_of(adapter, module, rank), {}

    @staticmethod
    def _scale_of(adapter: AdapterToMerge, name: str, rank: int) -> str:
        """The factor that a config says for a module or parameter."""
        usual = adapter.config.get("lora_alpha", 8 if adapter.config else rank)
        alpha = value_for(name, adapter.settings.pattern("alpha_pattern"), usual)
        return repr(alpha / (sqrt(rank) if adapter.config.get("use_rslora") else rank))

    def _product(
        self, adapter: AdapterToMerge, module: str, own: AdaptedModule, known: str, number: int
    ) -> Term:  # fmt: skip
        """What factors do to a weight."""
        assert own.factors is not None
        a, b = (f"{x}{number}" for x in "ab")
        operands = dict(zip((a, b), (Ref(adapter.alias, name) for name in own.factors), strict=True))
        scale, more = self._scale(adapter, module, own, number)
        shape = self._weight_shape(adapter, own, known)
        turned = own.is_table or (len(shape) == 2 and self.model.is_transposed(known))
        self._check_shapes(adapter, own, shape, turned=turned)
        rank, flat = self._shape(adapter.alias, own.factors[0])[0], len(shape) == 2
        if any(len(self._shape(adapter.alias, name)) != 2 for name in own.factors):
            a, b = f"reshape({a}, ({rank}, -1))", f"reshape({b}, (-1, {rank}))"
        change = f"{scale} * ({b} @ {a})" + (".T" if turned else "")
        change = change if flat else f"reshape({change}, {shape})"
        operands |= more
        if (name := own.parts.get("magnitude")) is None:
            return Term(operands, change=change, weight=adapter.weight)
        operands[f"m{number}"] = Ref(adapter.alias, name)
        axis, sizes = (0, "(1, -1)") if turned else (1, "(-1, 1)")
        rows = f"(w + {change})" if flat else f"reshape(w + {change}, ({shape[0]}, -1))"
        value = f"reshape(m{number}, {sizes}) * {rows} / norm({rows}, axis={axis}, keepdims=True)"
        return Term(operands, value=value if flat else f"reshape({value}, {shape})", weight=adapter.weight)

    def _weight_shape(self, adapter: AdapterToMerge, own: AdaptedModule, known: str) -> tuple[int, ...]:
        """The shape of the weight that factors are added to."""
        if (name := own.parts.get("weight")) is not None:
            return self._shape(adapter.alias, name)
        if f"{known}.weight" not in self.model.shapes:
            message = f"'{self.base}' has no '{known}.weight', to which '{adapter.alias}' adds a product"
            raise Refusal("tensor-missing", message, key="base")
        return fetch_factor(self.view, self.base, f"{known}.weight", "base").aval.shape

    def _check_shapes(
        self, adapter: AdapterToMerge, own: AdaptedModule, shape: Sequence[int], *, turned: bool
    ) -> None:  # fmt: skip
        """Refuse factors whose product has not the shape of the weight."""
        assert own.factors is not None
        for part in ("magnitude", "factor_bias"):
            if (name := own.parts.get(part)) is not None:
                fetch_factor(self.view, adapter.alias, name, "adapters")
        both = (fetch_factor(self.view, adapter.alias, name, "adapters") for name in own.factors)
        (rank, *inputs), (outputs, *ranks) = (found.aval.shape for found in both)
        made = (outputs, prod(inputs)) if not turned else (prod(inputs), outputs)
        wanted = (shape[0], prod(shape[1:]))
        if made != wanted or prod(ranks) != rank:
            shown = " and ".join(f"'{n}' {self.view.fetch(adapter.alias, n, 'adapters').aval}" for n in own.factors)
            hint = "Is it the base that the adapter was trained on? Grouped convolutions cannot be merged."
            message = f"{shown} of '{adapter.alias}' make no weight of shape {list(shape)}"
            raise Refusal("shapes-differ", message, key="adapters", hint=hint)

    # --- steps

    def _compute(self, name: str, terms: Sequence[Term]) -> Substep:
        """The step that makes a tensor. The base's own is `w`; what PEFT saved in its place counts as such."""
        start = self._replaced.get(name) or self._start(name)
        operands = {key: ref for term in terms for key, ref in term.operands.items()}
        if len(terms) == 1 and terms[0].weight == 1 and terms[0].value:
            expr = terms[0].value
        elif start is None or any(self._is_resized(term, name) for term in terms):
            names = ", ".join(f"'{ref.alias}'" for ref in operands.values())
            hint = "A tensor of another shape than the base's takes one adapter, of weight 1."
            raise Refusal("adapter-merge", f"'{name}' of {names} cannot be weighed: the base has no such tensor",
                          key="adapters", hint=hint)  # fmt: skip
        else:
            expr = "w" + "".join(_add(term) for term in terms)
        used = {"w": start} if start is not None and re.search(r"\bw\b", expr) else {}
        first, *rest = (used | operands).items()
        escaped = (first[0], Ref(first[1].alias, re.escape(str(first[1].name))))
        return Substep("compute", {"from": dict((escaped, *rest)), "expr": expr, "to": Ref(self.to, name)})

    def _start(self, name: str) -> Ref | None:
        """The tensor that a result is made of. A head that is a table in the base was copied from it."""
        there = name in self.model.shapes or name.removesuffix(".weight") in self.shared
        return Ref(self.to, name) if there else None

    def _start_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape that the base has for a tensor."""
        table = self.shared.get(name.removesuffix(".weight"))
        return self.model.shapes.get(name if table is None else f"{table}.weight")

    @cached_property
    def _replaced(self) -> dict[str, Ref]:
        """What adapters have in place of a weight of the base, by its name: PEFT saves a table whose vocabulary it
        found resized. Of several adapters, the first counts."""
        found: dict[str, Ref] = {}
        for adapter in self.loaded:
            for module, own in adapter.modules.items():
                if (name := own.parts.get("weight")) is not None:
                    found.setdefault(f"{self._find(adapter, module, own)[0]}.weight", Ref(adapter.alias, name))
        return found

    def _is_resized(self, term: Term, name: str) -> bool:
        """Whether an adapter has a whole tensor of another shape than the base's."""
        whole = term.operands.get(term.value)
        return whole is not None and self._shape(whole.alias, str(whole.name)) != self._start_shape(name)

    def _place_tokens(self, adapter: AdapterToMerge, module: str, name: str) -> Iterator[Substep]:
        """Steps that replace rows of a table, a run of neighbours each."""
        given = adapter.config.get("trainable_token_indices")
        own = next((v for k, v in given.items() if module.endswith(k)), None) if isinstance(given, Mapping) else given
        rows = own if isinstance(own, list) and all(type(row) is int and row >= 0 for row in own) else []
        if len(rows) != self._shape(adapter.alias, name)[0] or adapter.weight != 1:
            message = f"which rows of '{module}' the tensor '{name}' of '{adapter.alias}' replaces is not known"
            hint = f"{ADAPTER_CONFIG} has to list as many `trainable_token_indices`, and the weight has to be 1."
            raise Refusal("adapter-merge", message, key="adapters", hint=hint)
        starts = [at for at in range(len(rows)) if at == 0 or rows[at] != rows[at - 1] + 1]
        for start, stop in zip(starts, (*starts[1:], len(rows)), strict=True):
            source = f"{adapter.alias}::{re.escape(name)}::[{start}:{stop}]"
            target = f"{self.to}::{module}.weight::[{rows[start]}:{rows[stop - 1] + 1}]"
            yield Substep("compute", {"from": {"t": source}, "expr": "t", "to": target})

    # --- heads that are tables

    @cached_property
    def _modules_of_changes(self) -> dict[str, str]:
        """The modules whose weight differs in the result, by the alias of the adapter that changes them."""
        return {
            self._find(adapter, module, own)[0]: adapter.alias
            for adapter in self.loaded
            for module, own in adapter.modules.items()
            if own.factors is not None or "weight" in own.whole
        }

    def _part(self) -> Iterator[tuple[str, str]]:
        """Heads that were their table, and differ from it in the result; with that table."""
        for head, table in self.shared.items():
            kept = any(adapter.config.get("ensure_weight_tying") for adapter in self.loaded)
            if head in self._modules_of_changes or (table in self._modules_of_changes and not kept):
                yield head, table

    def _untie(self) -> Iterator[Substep]:
        """Steps that make a head a tensor of its own, if it will differ from its table: with an adapter of the table,
        PEFT changes the table alone."""
        for head, table in self._part():
            source, target = Ref(self.to, re.escape(f"{table}.weight")), Ref(self.to, f"{head}.weight")
            yield Substep("copy", {"from": source, "to": target})
            if head not in self._modules_of_changes:
                message = (
                    f"'{self._modules_of_changes[table]}' changes '{table}' alone; '{head}', which was the same, stays"
                )
                self.view.note("adapter-merge", message, "adapters")

    def _reconfigure(self) -> Iterator[Substep]:
        """The step that says in config.json what changed: that a head is no table any more, and a vocabulary's size."""
        patch: dict[str, object] = {}
        if any(self._part()):
            patch["tie_word_embeddings"] = False
        if "vocab_size" in self.model.config and (sizes := list(self._vocabularies())):
            patch["vocab_size"] = sizes[-1]
        changed = {key: value for key, value in patch.items() if self.model.config.get(key, True) != value}
        if changed and self.model.config:
            yield Substep("config", {"patch": changed, "alias": self.to})

    def _vocabularies(self) -> Iterator[int]:
        """The rows of the tables that adapters have in place of the base's."""
        for adapter in self.loaded:
            for module, own in adapter.modules.items():
                name = own.whole.get("weight") or own.parts.get("weight")
                if name is not None and self.model.is_table(module):
                    yield self._shape(adapter.alias, name)[0]


def _add(term: Term) -> str:
    """A term of a sum, behind what is changed."""
    factor = "" if term.weight == 1 else f"{term.weight!r} * "
    return f" + {factor}({term.change})" if term.change else f" + {factor}({term.value} - w)"
