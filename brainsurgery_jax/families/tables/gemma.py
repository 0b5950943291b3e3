"""Gemma 1, 2 and 3."""

from __future__ import annotations

from typing import Any

from brainsurgery_jax.families.model import ModelType, NormForm
from brainsurgery_jax.families.tables.llama import ATTENTION, BOTH_NORMS, LLAMA, MLP, PRE_NORMS, QK_NORMS
from brainsurgery_jax.layout.expressions import Config

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_COMMON_DEFAULTS = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256}
_COMMON: dict[str, Any] = {"tied": True, "norms": NormForm(unit=0), "scaled": True}


def _settle(config: Config) -> Config:
    # Old files say "gelu" and mean its approximation by tanh: transformers reads them so.
    return {**config, "hidden_act": "gelu_pytorch_tanh"} if config.get("hidden_act") == "gelu" else config


MODELS = (
    ModelType(
        "gemma", LLAMA, "GemmaForCausalLM", **_COMMON, roles={**PRE_NORMS, **ATTENTION, **MLP},
        defaults={"hidden_act": "gelu_pytorch_tanh"}, settle=_settle,
    ),
    ModelType(
        "gemma2", LLAMA, "Gemma2ForCausalLM", **_COMMON, windowed=True, cycle=(_LOCAL, _GLOBAL),
        roles={**BOTH_NORMS, **ATTENTION, **MLP},
        defaults={**_COMMON_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    ModelType(
        "gemma3_text", LLAMA, "Gemma3ForCausalLM", **_COMMON, windowed=True, cycle=(*[_LOCAL] * 5, _GLOBAL),
        period="sliding_window_pattern", roles={**BOTH_NORMS, **ATTENTION, **QK_NORMS, **MLP},
        defaults={**_COMMON_DEFAULTS, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
)  # fmt: skip
