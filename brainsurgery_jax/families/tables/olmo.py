"""OLMo 2 and 3."""

from __future__ import annotations

from brainsurgery_jax.families.model import ModelType
from brainsurgery_jax.families.tables.llama import LLAMA, POST_NORMS, QK_NORMS, ROPE

MODELS = (
    ModelType(
        "olmo2", LLAMA, "Olmo2ForCausalLM", defaults={**ROPE, "rms_norm_eps": 1e-5}, features=POST_NORMS | QK_NORMS
    ),
    ModelType(
        "olmo3",
        LLAMA,
        "Olmo3ForCausalLM",
        cycle=(*["sliding_attention"] * 3, "full_attention"),
        features=POST_NORMS | QK_NORMS,
    ),
)
