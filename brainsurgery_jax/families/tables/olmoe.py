"""OLMoE, whose queries and keys are normalized over all heads."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, PRE_NORMS, QK_NORMS

MODELS = (
    ModelType(
        "olmoe",
        LLAMA,
        "OlmoeForCausalLM",
        fixed_heads=True,
        roles={**PRE_NORMS, **ATTENTION, **QK_NORMS},
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="num_experts",
            chosen="num_experts_per_tok",
            width="intermediate_size",
            normalized="norm_topk_prob",
            of=("llama", "mistral"),
            adds={f"self_attn.{n}_norm.weight": f"self_attn.{n}_proj.weight" for n in "qk"},
        ),
    ),
)
