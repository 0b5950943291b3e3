"""Gemma 2 and 3."""

from __future__ import annotations

from brainsurgery_jax.families.model import ModelType
from brainsurgery_jax.families.tables.llama import BOTH_NORMS, LLAMA, QK_NORMS

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"

MODELS = (
    ModelType("gemma2", LLAMA, "Gemma2ForCausalLM", tied=True, cycle=(_LOCAL, _GLOBAL), features=BOTH_NORMS),
    ModelType(
        "gemma3_text", LLAMA, "Gemma3ForCausalLM", tied=True, cycle=(*[_LOCAL] * 5, _GLOBAL),
        period="sliding_window_pattern", features=BOTH_NORMS | QK_NORMS,
    ),
)  # fmt: skip
