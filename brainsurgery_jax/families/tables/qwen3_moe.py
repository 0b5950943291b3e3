"""Qwen 3 with experts."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, PRE_NORMS, QK_NORMS
from brainsurgery_jax.families.tables.qwen import settle_window

MODELS = (
    ModelType(
        "qwen3_moe",
        LLAMA,
        "Qwen3MoeForCausalLM",
        numbered=("mlp_only_layers",),
        windowed=True,
        settle=settle_window,
        roles={**PRE_NORMS, **ATTENTION, **QK_NORMS, **MLP},
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="num_experts",
            chosen="num_experts_per_tok",
            width="moe_intermediate_size",
            normalized="norm_topk_prob",
            of=("qwen3",),
        ),
    ),
)
