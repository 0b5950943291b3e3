"""GPT-OSS, whose experts always lie in two tensors for each layer, with biases, and gate and up in turn."""

from __future__ import annotations

from brainsurgery_jax.families.model import Experts, ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, PRE_NORMS

MODELS = (
    ModelType(
        "gpt_oss",
        LLAMA,
        "GptOssForCausalLM",
        windowed=True,
        cycle=("sliding_attention", "full_attention"),
        roles={**PRE_NORMS, **ATTENTION, "sinks": "self_attn.sinks"},
        defaults={
            "rope_theta": 1.5e5,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "sliding_window": 128,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
        experts=Experts(
            block="mlp",
            parts={name: name for name in ("gate_proj", "up_proj", "down_proj")},
            count="num_local_experts",
            chosen="num_experts_per_tok",
            width="intermediate_size",
            router="router.weight",
            transposed=True,
            clamped=True,
        ),
    ),
)
