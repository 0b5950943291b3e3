"""Qwen 2 with experts, and one that all tokens take."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, PRE_NORMS
from brainsurgery_jax.families.tables.qwen import settle_window

MODELS = (
    ModelType(
        "qwen2_moe",
        LLAMA,
        "Qwen2MoeForCausalLM",
        numbered=("mlp_only_layers",),
        windowed=True,
        settle=settle_window,
        roles={
            **PRE_NORMS,
            **ATTENTION,
            **MLP,
            **{f"shared.{role}": f"mlp.shared_expert.{role}_proj" for role in MLP},
            "shared_gate": "mlp.shared_expert_gate",
        },
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="num_experts",
            chosen="num_experts_per_tok",
            width="moe_intermediate_size",
            normalized="norm_topk_prob",
        ),
    ),
)
