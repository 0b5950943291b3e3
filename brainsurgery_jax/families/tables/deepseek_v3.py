"""DeepSeek V3."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import LLAMA, PRE_NORMS

MODELS = (
    ModelType(
        "deepseek_v3",
        LLAMA,
        "DeepseekV3ForCausalLM",
        leading=("first_k_dense_replace",),
        features=PRE_NORMS | {"self_attn.kv_a_proj_with_mqa.weight"},
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="n_routed_experts",
            chosen="num_experts_per_tok",
            width="moe_intermediate_size",
            normalized="norm_topk_prob",
        ),
    ),
)
