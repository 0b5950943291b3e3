"""Mistral and Ministral."""

from __future__ import annotations

from brainsurgery_jax.families.model import ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, COMMON, LLAMA, MLP, PRE_NORMS

_ROLES = {**PRE_NORMS, **ATTENTION, **MLP}

MODELS = (
    ModelType(
        "mistral", LLAMA, "MistralForCausalLM", windowed=True, roles=_ROLES, defaults={**COMMON, "sliding_window": 4096}
    ),
    ModelType("ministral", LLAMA, "MinistralForCausalLM", windowed=True, roles=_ROLES),
)
