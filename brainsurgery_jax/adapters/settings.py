"""Which settings of an adapter_config.json say what an adapter does, and with which it is no plain LoRA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Refusal, did_you_mean, refuse
from brainsurgery_jax.families.adapters import HEAD, SETTING_TYPES, wrong_settings
from brainsurgery_jax.protocol import View

ADAPTER_CONFIG = "adapter_config.json"

OF_FLOATS = "an adapter belongs to floats"

SCALES = ("lora_alpha", "alpha_pattern", "use_rslora")
"""Settings that decide by how much products count."""

_READ = (*SCALES, "rank_pattern", "use_dora", "fan_in_fan_out", "init_lora_weights")
"""Settings that decide what an adapter does to a base."""

_LIKE_THEM = ("lora_dropout", "lora_bias", "lora_ga_config", "layers_pattern")
"""Others of PEFT with names like these, besides those that are refused."""

_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start factors after which an adapter belongs to its base as it is."""

_VARIANTS = ("kasa_config", "velora_config", "monteclora_config", "arrow_config", "use_bdlora")
"""Settings under which there is more to an adapter than its two factors."""

_PLACES = ("use_qalora", "layer_replication", "alora_invocation_tokens")
"""Settings under which the product of the factors is not what is added to the weights of modules."""


class AdapterSettings(NamedTuple):
    """What is said of an adapter: by its adapter_config.json, if it has its `own`, and by a step instead. `key`: that
    of the step which names the adapter. `several`: the step names others as well."""

    alias: str
    key: str
    config: Mapping[str, Any]
    own: bool
    several: bool = False

    @property
    def place(self) -> str:
        """Where it is said, in words."""
        return f"in {ADAPTER_CONFIG} of '{self.alias}'"

    def correction(self, patch: str) -> str:
        """How a plan corrects settings, `patch` being their text: in the step, unless this is about others, too."""
        if self.several and self.own:
            return f"`config: {{alias: {self.alias}, patch: {{{patch}}}}}` as a step before"
        return f"`config: {{{patch}}}`"

    def pattern(self, key: str) -> Mapping[str, Any]:
        """A rank_pattern or alpha_pattern."""
        return self.config.get(key) or {}


def read_settings(
    view: View, alias: str, given: Mapping[str, object], key: str, *, several: bool = False
) -> AdapterSettings:
    """The settings of an adapter. `given`: those of the step. Raises Refusal for values that PEFT does not take."""
    known = view.config(alias, key)
    own = known[1] if known is not None and known[0] == ADAPTER_CONFIG else None
    config = {**(own if isinstance(own, Mapping) else {}), **given}
    found = AdapterSettings(alias, key, config, isinstance(own, Mapping), several)
    if config.get("peft_type", "LORA") == "LORA":  # others give settings of these names other types
        refuse(_wrong_type(found, name, found.place) for name, _ in wrong_settings(config))
    return found


def _wrong_type(settings: AdapterSettings, name: str, place: str) -> Refusal:
    """That PEFT does not take the value of a setting."""
    kind = SETTING_TYPES[name]
    hint = f"Write {settings.correction(f'{name}: {kind.example}')}, with what training had."
    message = f"'{name}' {place} is {settings.config[name]!r}, and PEFT takes {kind.wanted}"
    return Refusal("adapter-config", message, key=settings.key, hint=hint)


def refuse_misspelt(config: Mapping[str, object]) -> None:
    """Refuse a key of a step's `config` that is nearly one which counts, and a value that PEFT does not take."""
    for key in sorted(config.keys() - {*_READ, *_LIKE_THEM, *_VARIANTS, *_PLACES}):
        if near := did_you_mean(key, _READ):
            raise Refusal("adapter-config", f"'config' has the key '{key}', which PEFT does not know.{near}",
                          key="config", hint=f"Keys that count here: {', '.join(_READ)}.")  # fmt: skip
    given = AdapterSettings("", "config", config, own=False)
    refuse(_wrong_type(given, name, "of 'config'") for name, _ in wrong_settings(config))


def refuse_kind(settings: AdapterSettings, *, merges: bool) -> None:
    """Refuse an adapter of which it is not known what it does to a base. `merges`: its products are added to the
    weights of modules."""
    config, told = settings.config, settings.place
    kind, start = config.get("peft_type", "LORA"), config.get("init_lora_weights")
    wanted = (*_VARIANTS, *(_PLACES if merges else ()))
    odd = next((key for key in wanted if not any(config.get(key) is unset for unset in (None, False))), None)
    if kind != "LORA" or odd is not None:
        found = f"'peft_type' {told} is {kind}" if odd is None else f"'{odd}' {told} is set"
        message = f"{found}: that is no LoRA which {'can be added to a base' if merges else 'two factors make alone'}"
        hint = "Merge it by `peft`, and start from its result."
        raise Refusal("adapter-merge", message, key=settings.key, hint=hint)
    if not any(start is known or start == known for known in _KEEPS_BASE):
        message = f"'init_lora_weights' {told} is {start!r}: it changed the base before training"
        hint = "Convert it by `peft` (`path_initial_model_for_weight_conversion`), or merge it by `peft`."
        raise Refusal("adapter-merge", message, key=settings.key, hint=hint)


def refuse_unscaled(settings: AdapterSettings, names: Iterable[str], *, scaled: bool) -> None:
    """Refuse an adapter of PEFT without a config. `names`: those of its tensors as they are, where products count by
    what a config says; `scaled`: their tensors say it."""
    if settings.own or "lora_alpha" in settings.config or scaled or not any(n.startswith(HEAD) for n in names):
        return
    hint = "Open the folder that holds it, or write what it says: `config: {lora_alpha: 16}`."
    message = f"'{settings.alias}' came without an {ADAPTER_CONFIG}, so by how much its product counts is not known"
    raise Refusal("adapter-merge", message, key=settings.key, hint=hint)
