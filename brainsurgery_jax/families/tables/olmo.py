"""OLMo 1, whose norms have no weights, 2 and 3."""

from __future__ import annotations

from brainsurgery_jax.families.model import LAYER_NORM, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, POST_NORMS, QK_NORMS, ROPE
from brainsurgery_jax.layout.expressions import Config

_ROLES = {**POST_NORMS, **ATTENTION, **QK_NORMS, **MLP}


def _settle(config: Config) -> Config:
    return {**config, "rms_norm_eps": 1e-5}  # no key says it


MODELS = (
    ModelType("olmo", LLAMA, "OlmoForCausalLM", roles={**ATTENTION, **MLP}, norms=LAYER_NORM, settle=_settle),
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
