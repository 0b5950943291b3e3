"""Which settings of an adapter_config.json say what an adapter does to a base, and with which it cannot be merged."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.errors import Refusal, did_you_mean

ADAPTER_CONFIG = "adapter_config.json"

_READ = ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "init_lora_weights")
"""Settings that decide what an adapter does to a base."""

_LIKE_THEM = ("lora_dropout", "lora_bias", "lora_ga_config", "layers_pattern")
"""Others of PEFT with names like these, besides those that are refused."""

_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start factors after which an adapter belongs to its base as it is."""

_OTHERS = ("use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens")
"""Settings under which an adapter is no product that is added to the weights of modules."""


def refuse_misspelt(config: Mapping[str, object]) -> None:
    """Refuse a key of a step's `config` that is nearly one which counts, and a `lora_alpha` that is no number."""
    for key in sorted(config.keys() - {*_READ, *_LIKE_THEM, *_OTHERS}):
        if near := did_you_mean(key, _READ):
            raise Refusal("adapter-config", f"'config' has the key '{key}', which PEFT does not know.{near}",
                          key="config", hint=f"Keys that count here: {', '.join(_READ)}.")  # fmt: skip
    alpha = config.get("lora_alpha", 0)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise Refusal("adapter-config", f"'lora_alpha' of 'config' is {alpha!r}, and PEFT takes a number", key="config",
                      hint="Write `config: {lora_alpha: 16}`, with the number that training had.")  # fmt: skip


def refuse_kind(alias: str, config: Mapping[str, object]) -> None:
    """Refuse an adapter of which it is not known what it does to a base."""
    told = f"in {ADAPTER_CONFIG} of '{alias}'"
    kind, start = config.get("peft_type", "LORA"), config.get("init_lora_weights")
    odd = next((key for key in _OTHERS if config.get(key)), None)
    if kind != "LORA" or odd is not None:
        found = f"'peft_type' {told} is {kind}" if odd is None else f"'{odd}' {told} is set"
        raise Refusal("adapter-merge", f"{found}: that is no LoRA which can be added to a base", key="adapters",
                      hint="Merge it by `peft`, and start from its result.")  # fmt: skip
    if not any(start is known or start == known for known in _KEEPS_BASE):
        message = f"'init_lora_weights' {told} is {start!r}: it changed the base before training"
        hint = "Convert it by `peft` (`path_initial_model_for_weight_conversion`), or merge it by `peft`."
        raise Refusal("adapter-merge", message, key="adapters", hint=hint)
