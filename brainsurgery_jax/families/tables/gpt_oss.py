"""GPT-OSS, whose experts always lie in two tensors for each layer, with biases, and gate and up in turn."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import LLAMA

MODELS = (
    ModelType(
        "gpt_oss",
        LLAMA,
        "GptOssForCausalLM",
        cycle=("sliding_attention", "full_attention"),
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="num_local_experts",
            chosen="num_experts_per_tok",
            width="intermediate_size",
            router="router.weight",
            transposed=True,
        ),
    ),
)
