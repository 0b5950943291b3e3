"""FlexOlmo: OLMo 2 with experts."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, POST_NORMS, QK_NORMS

MODELS = (
    ModelType(
        "flex_olmo",
        LLAMA,
        "FlexOlmoForCausalLM",
        roles={**POST_NORMS, **ATTENTION, **QK_NORMS},
        defaults={"rope_theta": 5e5},
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="num_experts",
            chosen="num_experts_per_tok",
            width="intermediate_size",
            normalized="norm_topk_prob",
            of=("olmo2",),
        ),
    ),
)
