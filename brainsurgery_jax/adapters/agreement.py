"""Whether the config of an adapter agrees with its tensors: else PEFT computes something else, or stops."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.adapters.reading import AdaptedModule
from brainsurgery_jax.adapters.settings import ADAPTER_CONFIG, AdapterSettings
from brainsurgery_jax.errors import Refusal, refuse
from brainsurgery_jax.families.adapters import is_target, patterns_of, usual_rank, value_for, words_for
from brainsurgery_jax.protocol import View
from brainsurgery_jax.wording import few


class AdapterFacts(NamedTuple):
    """What the tensors of an adapter tell: its modules by name, and the rank of each product by the name of its module
    or parameter."""

    modules: Mapping[str, AdaptedModule]
    ranks: Mapping[str, int]


def check_agreement(view: View, settings: AdapterSettings, facts: AdapterFacts) -> None:
    """Refuse ranks, magnitudes and biases of which a config says otherwise; note factors that it does not name."""
    extras = [bad for rule in _PARTS for bad in _extras(settings, facts.modules, rule)]
    refuse([*_ranks(settings, facts.ranks), *extras])
    _note_targets(view, settings, facts)


def _ranks(settings: AdapterSettings, ranks: Mapping[str, int]) -> Iterator[Refusal]:
    """That products have other ranks than a config says, for which PEFT does not load them."""
    if (usual := settings.config.get("r")) is None:
        return
    said = {name: value_for(name, settings.pattern("rank_pattern"), usual) for name in ranks}
    wrong = [name for name, rank in ranks.items() if rank != said[name]]
    if wrong:
        first, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        message = (
            f"the factors of '{first}'{more} have rank {ranks[first]}, and the rank {settings.place} is {said[first]}"
        )
        right = usual_rank(ranks)
        odd = {name: rank for name, rank in ranks.items() if rank != right}
        patch: dict[str, object] = {"r": right}
        if odd or settings.pattern("rank_pattern"):
            patch["rank_pattern"] = patterns_of(odd, ranks)
        hint = f"PEFT scales by lora_alpha / r. Write the ranks that there are, {settings.correction(_text(patch))}, "
        hint += "and the `lora_alpha` that goes with them."
        yield Refusal("adapter-config", message, key=settings.key, hint=hint)


class PartRule(NamedTuple):
    """A setting that says that there are tensors of a part beside factors. `needed`: with it, PEFT has them of all."""

    setting: str
    part: str
    words: str
    needed: bool


_PARTS = (
    PartRule("use_dora", "magnitude", "magnitudes", needed=True),
    PartRule("lora_bias", "factor_bias", "biases", needed=False),  # tables have none
)


def _extras(settings: AdapterSettings, modules: Mapping[str, AdaptedModule], rule: PartRule) -> Iterator[Refusal]:
    """That a config says that factors have a part which they lack, or that they lack one which they have."""
    said = settings.config.get(rule.setting, False if settings.own else None)
    multiplied = {module: own for module, own in modules.items() if own.factors is not None}
    wrong = [module for module, own in multiplied.items() if (rule.part in own.parts) != bool(said)]
    some = 0 < len(wrong) < len(multiplied)
    if not wrong or said is None or (said and (some or not rule.needed)):
        return
    there = f"no {rule.words}" if said else rule.words
    now, right = ("true", "false") if said else ("false", "true")
    named = few([repr(module) for module in wrong])
    message = f"there are {there} of {named}, and {rule.setting} {settings.place} is {now}"
    meant = settings.correction(f"{rule.setting}: {right}")
    hint = f"Use the adapter as it was saved; or write what is meant: {meant}."
    yield Refusal("adapter-config", message, key=settings.key, hint=hint)


def _note_targets(view: View, settings: AdapterSettings, facts: AdapterFacts) -> None:
    """Say which factors PEFT would ignore."""
    targets = settings.config.get("target_modules")
    if targets is None or targets == "all-linear" or settings.config.get("target_parameters"):
        return
    missed = [m for m, own in facts.modules.items() if own.factors is not None and not is_target(m, targets)]
    if missed:
        message = f"{ADAPTER_CONFIG} of '{settings.alias}' does not name {few([repr(m) for m in missed])} among "
        message += "target_modules: PEFT ignores its factors, and this step does not"
        named = targets if isinstance(targets, list) else []
        patch = {"target_modules": [*named, *words_for(missed)]}
        if isinstance(targets, str):
            patch = {"target_modules": words_for(m for m, own in facts.modules.items() if own.factors is not None)}
        hint = f"If they count, write {settings.correction(_text(patch))}; if not, `delete` them before."
        view.note("config-differs", message, settings.key, hint)


def _text(patch: Mapping[str, object]) -> str:
    """The keys of a patch with their values, as a plan has them between braces."""
    return json.dumps(patch)[1:-1]
