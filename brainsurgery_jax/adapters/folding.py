"""A step `lora_merge` at work: adapters become part of a model, as steps `compute`, one for each tensor that changes.

Each adapter changes a tensor `w` by its weight times what it makes of `w` alone, less `w`; with one adapter of weight 1
the result is what PEFT merges.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from brainsurgery_jax.adapters.agreement import AdapterFacts, check_agreement
from brainsurgery_jax.adapters.reading import read_modules
from brainsurgery_jax.adapters.settings import (
    ADAPTER_CONFIG,
    OF_FLOATS,
    SCALES,
    read_settings,
    refuse_kind,
    refuse_misspelt,
    refuse_unscaled,
)
from brainsurgery_jax.adapters.stacked import StackedBase, read_stacked
from brainsurgery_jax.adapters.terms import AdaptedBase, AdapterTerms, AdapterToMerge, Term
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import HEAD
from brainsurgery_jax.ops._quantization import refuse_quantized
from brainsurgery_jax.protocol import AddAlias, Bind, Edit, Expand, Substep, View
from brainsurgery_jax.select import Ref

Numbers = Mapping[str, float]
Changes = Mapping[str, Sequence[Term]]

_WEIGHTED = re.compile(r"(.+?)(?:\.base_layer)*\.(?:lora[_.].*|modules_to_save(?:\.default)?\.weight|weight)")
"""Names of tensors by which the weight of a module changes."""


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
        changes = self._changes()
        steps = [*self._untie(changes), *self._computations(changes), *self._reconfigure()]
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
    def model(self) -> AdaptedBase:
        """The base."""
        return AdaptedBase(self.view, self.base)

    @cached_property
    def loaded(self) -> list[AdapterToMerge]:
        """The adapters, in their order."""
        return [self._load(alias, weight) for alias, weight in self.adapters.items()]

    def _load(self, alias: str, weight: float) -> AdapterToMerge:
        names = self.view.names(alias)
        settings = read_settings(self.view, alias, self.config or {}, "adapters", several=len(self.adapters) > 1)
        refuse_kind(settings, merges=True)
        self._refuse_codes(names)
        shapes = {name: self.model.shape(alias, name) for name in names}
        base = StackedBase(self.base, self.model.architecture, self.model.finder)
        stacked = read_stacked(base, alias, shapes, settings.config)
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
        modules = {self.model.finder.find(module.removeprefix(HEAD)) for module in changed}
        held = [name for name in self.model.architecture.shapes if name.rpartition(".")[0] in modules]
        refuse_quantized(self.view, {self.base: held}, "base", OF_FLOATS)

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

    # --- which tensors change

    def _changes(self) -> Changes:
        """What adapters do to the tensors of the result which differ from those of the base."""
        changes: dict[str, list[Term]] = {}
        for number, adapter in enumerate(self.loaded):
            for name, term in AdapterTerms(self.model, adapter, number).terms():
                changes.setdefault(name, []).append(term)
        return changes

    def _computations(self, changes: Changes) -> Iterator[Substep]:
        """The steps that make these tensors."""
        for name, terms in changes.items():
            yield self._compute(name, terms)
        for head, _ in self._part():
            if f"{head}.bias" not in changes:
                yield from self._copy_bias(head)
        for adapter in self.loaded:
            for module, own in adapter.modules.items():
                if "tokens" in own.parts:
                    found, _ = self.model.find(adapter, module, own)
                    yield from self._place_tokens(adapter, found, own.parts["tokens"])

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
        return Ref(self.to, name) if self._start_shape(name) is not None else None

    def _start_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape that the base has for a tensor; None if it has none."""
        known = self.model.architecture
        head, _, parameter = name.rpartition(".")
        if name in known.shapes or head not in self.model.shared:
            return known.shapes.get(name)
        bias = known.bias_of(head) if parameter == "bias" else None
        return known.shapes.get(bias or "" if parameter == "bias" else f"{self.model.shared[head]}.weight")

    @cached_property
    def _replaced(self) -> dict[str, Ref]:
        """What adapters have in place of a weight of the base, by its name: PEFT saves a table whose vocabulary it
        found resized. Of several adapters, the first counts."""
        found: dict[str, Ref] = {}
        for adapter in self.loaded:
            for module, own in adapter.modules.items():
                if (name := own.parts.get("weight")) is not None:
                    found.setdefault(f"{self.model.find(adapter, module, own)[0]}.weight", Ref(adapter.alias, name))
        return found

    def _is_resized(self, term: Term, name: str) -> bool:
        """Whether an adapter has a whole tensor of another shape than the base's."""
        whole = term.operands.get(term.value)
        return whole is not None and self.model.shape(whole.alias, str(whole.name)) != self._start_shape(name)

    def _place_tokens(self, adapter: AdapterToMerge, module: str, name: str) -> Iterator[Substep]:
        """Steps that replace rows of a table, a run of neighbours each."""
        given = adapter.config.get("trainable_token_indices")
        own = next((v for k, v in given.items() if module.endswith(k)), None) if isinstance(given, Mapping) else given
        rows = own if isinstance(own, list) and all(type(row) is int and row >= 0 for row in own) else []
        if len(rows) != self.model.shape(adapter.alias, name)[0] or adapter.weight != 1:
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
            self.model.find(adapter, module, own)[0]: adapter.alias
            for adapter in self.loaded
            for module, own in adapter.modules.items()
            if own.factors is not None or "weight" in own.whole
        }

    def _part(self) -> Iterator[tuple[str, str]]:
        """Heads that were their table, and differ from it in the result; with that table."""
        for head, table in self.model.shared.items():
            kept = any(adapter.config.get("ensure_weight_tying") for adapter in self.loaded)
            if head in self._modules_of_changes or (table in self._modules_of_changes and not kept):
                yield head, table

    def _untie(self, changes: Changes) -> Iterator[Substep]:
        """Steps that make a head a tensor of its own, if it will differ from its table: with an adapter of the table,
        PEFT changes the table alone."""
        for head, table in self._part():
            source, target = Ref(self.to, re.escape(f"{table}.weight")), Ref(self.to, f"{head}.weight")
            yield Substep("copy", {"from": source, "to": target})
            if f"{head}.bias" in changes:
                yield from self._copy_bias(head)
            if head not in self._modules_of_changes:
                message = (
                    f"'{self._modules_of_changes[table]}' changes '{table}' alone; '{head}', which was the same, stays"
                )
                self.view.note("adapter-merge", message, "adapters")

    def _copy_bias(self, head: str) -> Iterator[Substep]:
        """The step that gives a head which is no table any more the bias that was tied, too."""
        if (bias := self.model.architecture.bias_of(head)) is not None:
            yield Substep("copy", {"from": Ref(self.to, re.escape(bias)), "to": Ref(self.to, f"{head}.bias")})

    def _reconfigure(self) -> Iterator[Substep]:
        """The step that says in config.json what changed: that a head is no table any more, and a vocabulary's size."""
        patch: dict[str, object] = {}
        if any(self._part()):
            patch["tie_word_embeddings"] = False
        if "vocab_size" in self.model.architecture.config and (sizes := list(self._vocabularies())):
            patch["vocab_size"] = sizes[-1]
        changed = {key: value for key, value in patch.items() if self.model.architecture.config.get(key, True) != value}
        if changed and self.model.architecture.config:
            yield Substep("config", {"patch": changed, "alias": self.to})

    def _vocabularies(self) -> Iterator[int]:
        """The rows of the tables that adapters have in place of the base's."""
        for adapter in self.loaded:
            for module, own in adapter.modules.items():
                name = own.whole.get("weight") or own.parts.get("weight")
                if name is not None and self.model.architecture.is_table(module):
                    yield self.model.shape(adapter.alias, name)[0]


def _add(term: Term) -> str:
    """A term of a sum, behind what is changed."""
    factor = "" if term.weight == 1 else f"{term.weight!r} * "
    return f" + {factor}({term.change})" if term.change else f" + {factor}({term.value} - w)"
