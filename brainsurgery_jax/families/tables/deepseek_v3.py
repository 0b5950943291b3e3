"""DeepSeek V3."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, PRE_NORMS
from brainsurgery_jax.layout.expressions import Config

_LATENT = {
    "q": ATTENTION["q"], "q_a": "self_attn.q_a_proj", "q_a_norm": "self_attn.q_a_layernorm",
    "q_b": "self_attn.q_b_proj", "kv_a": "self_attn.kv_a_proj_with_mqa", "kv_a_norm": "self_attn.kv_a_layernorm",
    "kv_b": "self_attn.kv_b_proj", "o": ATTENTION["o"],
}  # fmt: skip


def _settle(config: Config) -> Config:
    further = config.get("num_nextn_predict_layers", config.get("num_mtp_layers", 1))
    return {**config, "num_nextn_predict_layers": further, "num_key_value_heads": None}


MODELS = (
    ModelType(
        "deepseek_v3",
        LLAMA,
        "DeepseekV3ForCausalLM",
        leading=("first_k_dense_replace",),
        settle=_settle,
        defaults={
            "first_k_dense_replace": 3,
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        roles={
            **PRE_NORMS,
            **_LATENT,
            **MLP,
            **{f"shared.{role}": f"mlp.shared_experts.{role}_proj" for role in MLP},
            "correction": "mlp.gate.e_score_correction_bias",
        },
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="n_routed_experts",
            chosen="num_experts_per_tok",
            width="moe_intermediate_size",
            normalized="norm_topk_prob",
            sigmoid=True,
        ),
    ),
)
