"""The adapter_config.json of an output for PEFT: that of the input, with the changes of the plan, and with values that
follow from names and shapes where neither sets them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from brainsurgery_jax.config_patch import apply_change, read_change
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Refusal, StoreError
from brainsurgery_jax.families.adapters import Adapter, derive_config, read_adapter, wrong_settings
from brainsurgery_jax.graph.expr import Bound
from brainsurgery_jax.lower.configs import side_file
from brainsurgery_jax.lower.state import Extras, World
from brainsurgery_jax.plan.source import flow_yaml
from brainsurgery_jax.store.folder import ADAPTER_CONFIG
from brainsurgery_jax.store.peft import IN_METADATA
from brainsurgery_jax.store.safetensors.header import json_object


def adapter_config(change: Mapping[str, Any], avals: Mapping[str, Aval], extras: Extras, world: World) -> bytes:
    """The adapter_config.json of an output. `change` is the option `config`; `extras` are those of the tensors' alias.
    Raises Refusal for a value that PEFT needs and that cannot be derived."""
    found = side_file(extras.origin, ADAPTER_CONFIG, world) or extras.metadata.get(IN_METADATA, "").encode()
    try:
        original = json_object(found, extras.origin or ADAPTER_CONFIG, "config") if found else {}
    except StoreError as bad:
        raise Refusal("adapter-config", f"{bad.path}: {bad.problem}", key="options", hint=bad.remedy) from bad
    base = extras.configs.get(ADAPTER_CONFIG, original)
    try:
        asked = read_change(change)
        config = apply_change(base, asked)
    except ValueError as bad:
        raise Refusal("output-options", f"option 'config': {bad}", key="options") from bad
    except Refusal as bad:
        message = f"option 'config': {bad.key}: {bad.message}"
        raise Refusal("output-options", message, key="options", hint=bad.hint) from bad
    if config.get("peft_type", "LORA") == "LORA":
        adapter = read_adapter(avals)
        _check_settings(asked.patch)
        derived = _derive(adapter, config)
        added = {k: v for k, v in derived.items() if config.get(k) is None and k not in asked.patch}
        config |= added
        depends = "r" in added and any(isinstance(rank, Bound) for rank in adapter.ranks.values())
        several = len(adapter.ranks) > 1 and "alpha_pattern" not in config
        if depends and (several or "lora_alpha" not in config):
            raise _depends_on_data()
        if "lora_alpha" not in config and not base:
            raise _lacks_alpha(config)
        if "rank_pattern" in added and "alpha_pattern" not in config:
            raise _lacks_pattern(config)
    return found if found and config == original else dump_adapter_config(config)


def dump_adapter_config(config: Mapping[str, object]) -> bytes:
    """The text of an adapter_config.json."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _derive(adapter: Adapter, config: Mapping[str, object]) -> dict[str, object]:
    """The values that follow from names and shapes. Raises Refusal if these are not LoRA's and the config is
    incomplete."""
    if adapter.factors and not adapter.others:
        if "peft_type" not in config:
            _refuse_unpaired(adapter)
        return derive_config(adapter)
    if config.get("peft_type") is not None:
        return {}
    what = f"'{adapter.others[0]}' is no tensor of a LoRA adapter" if adapter.others else "there are no factors of LoRA"
    hint = (
        "LoRA's are called base_model.model.MODULE.lora_A.weight and ...lora_B.weight. Rename them; for another kind "
        "of adapter give its whole config: `options: {config: {peft_type: ..., ...}}`; or write safetensors."
    )
    raise Refusal("adapter-config", f"{ADAPTER_CONFIG} cannot be created: {what}", key="format", hint=hint)


def _check_settings(asked: Mapping[str, Any]) -> None:
    """Refuse settings that PEFT cannot load."""
    for key, kind in wrong_settings({key: value for key, value in asked.items() if value is not None}):
        hint = f"Give `{key}` as PEFT's LoraConfig takes it; or leave it out, where it follows from the tensors."
        message = f"option 'config': '{key}' is {asked[key]!r}, and PEFT takes {kind.wanted}"
        raise Refusal("adapter-config", message, key="options", hint=hint)


def _refuse_unpaired(adapter: Adapter) -> None:
    """Refuse a factor without the other, or of another rank, where no config says that this is meant."""
    for module, (first, *others) in adapter.factors.items():
        odd = next((other for other in others if other.rank != first.rank), None)
        if others and odd is None:
            continue
        hint = "PEFT multiplies `lora_B @ lora_A`. Rename the factor that belongs to it, or delete this one."
        found = f"is the only factor of '{module}'" if odd is None else f"does not fit '{odd.name}' {odd.aval}"
        message = f"{ADAPTER_CONFIG} cannot be made: '{first.name}' {first.aval} {found}"
        raise Refusal("adapter-config", message, key="format", hint=hint)


def _depends_on_data() -> Refusal:
    """That alphas are needed for ranks that only data tell."""
    message = "the alphas are not known: PEFT multiplies by alpha / r, and only data tell the ranks"
    hint = (
        "`lora_extract` chooses ranks and alphas together; or name the rank; or scale as you mean by `alpha_pattern`."
    )
    return Refusal("adapter-config", message, key="options", hint=hint)


def _lacks_alpha(config: Mapping[str, object]) -> Refusal:
    """The refusal of an unknown scale. Its hint has the config for a scale of 1."""
    message = "lora_alpha is not known: PEFT multiplies the product of the factors by lora_alpha / r"
    hint = (
        f"For factors whose product is the change itself, as `phlora` makes them, write "
        f"`options: {{config: {flow_yaml(_scales(config, config.get('r')))}}}`: a scale of 1."
    )
    return Refusal("adapter-config", message, key="options", hint=hint)


def _lacks_pattern(config: Mapping[str, Any]) -> Refusal:
    """The refusal of one lora_alpha for modules of several ranks. Its hint has the config that scales all of them
    alike."""
    alpha, rank = config.get("lora_alpha", 8), config["r"]
    shown = ", ".join(f"{r} ({word})" for word, r in list(config["rank_pattern"].items())[:3])
    message = (
        f"alpha_pattern is not known: beside the rank {rank} there are {shown}, and PEFT multiplies by lora_alpha / r"
    )
    hint = (
        f"To scale all modules alike write `options: {{config: {flow_yaml(_scales(config, alpha))}}}` in the output; "
        f"or `alpha_pattern: {{}}` to use lora_alpha {alpha} for all of them."
    )
    return Refusal("adapter-config", message, key="options", hint=hint)


def _scales(config: Mapping[str, Any], alpha: Any) -> dict[str, Any]:
    """The alphas that scale every module as `alpha` scales modules of the usual rank."""
    pattern = {word: alpha * rank / config["r"] for word, rank in (config.get("rank_pattern") or {}).items()}
    whole = {word: int(a) if a == int(a) else a for word, a in pattern.items()}
    return {"lora_alpha": alpha} | ({"alpha_pattern": whole} if whole else {})
