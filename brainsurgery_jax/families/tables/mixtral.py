"""Mixtral."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, PRE_NORMS

MODELS = (
    ModelType(
        "mixtral",
        LLAMA,
        "MixtralForCausalLM",
        windowed=True,
        roles={**PRE_NORMS, **ATTENTION},
        defaults={"rope_theta": 1e6},
        experts=Experts(
            block="block_sparse_moe",
            parts={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
            count="num_local_experts",
            chosen="num_experts_per_tok",
            width="intermediate_size",
            of=("mistral", "llama"),
            biased=False,
        ),
    ),
)
