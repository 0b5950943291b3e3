"""OLMo 1, whose norms have no weights, 2 and 3."""

from __future__ import annotations

from brainsurgery_jax.families.model import LAYER_NORM, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, POST_NORMS, QK_NORMS, ROPE

_ROLES = {**POST_NORMS, **ATTENTION, **QK_NORMS, **MLP}

MODELS = (
    ModelType("olmo", LLAMA, "OlmoForCausalLM", roles={**ATTENTION, **MLP}, norms=LAYER_NORM),
    ModelType("olmo2", LLAMA, "Olmo2ForCausalLM", roles=_ROLES, defaults={**ROPE, "rms_norm_eps": 1e-5}),
    ModelType(
        "olmo3",
        LLAMA,
        "Olmo3ForCausalLM",
        windowed=True,
        cycle=(*["sliding_attention"] * 3, "full_attention"),
        roles=_ROLES,
        defaults={"rope_theta": 5e5},
    ),
)
