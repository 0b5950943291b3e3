"""Tiny random models of real architectures, made by `transformers` and saved as it saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

VOCABULARY, HIDDEN, MLP, HEADS, KV_HEADS, HEAD = 96, 32, 80, 4, 2, 12
TOKENS = np.array([[1, 5, 17, 60, 3, 88, 9, 2, 41, 7], [4, 90, 23, 23, 8, 11, 64, 35, 71, 6]], np.int32)

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
# Tunix's Llama 3 and Qwen 3 turn by this base whatever their configuration says.
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
_GEMMA = {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": 4, "tie_word_embeddings": True}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

# What is asked of each architecture beside the sizes above: a head that is no quotient of the width, ties, biases,
# enough layers for every cycle of layers to come round and leave a remainder.
_SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "llama": _ROPE,
    "llama-tied": {**_ROPE, "tie_word_embeddings": True},
    "mistral": {**_ROPE, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2-untied": {},
    "qwen3": {**_ROPE, "head_dim": HEAD, "tie_word_embeddings": True},
    "qwen3-untied": {**_ROPE, "head_dim": HEAD},
    "gemma2": {**_GEMMA, "num_hidden_layers": 4},
    "gemma3": {**_GEMMA, "num_hidden_layers": 7},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {**_ROPE, "head_dim": HEAD, "moe_intermediate_size": 40, "norm_topk_prob": True, **_EXPERTS},
    "olmo2": {},
    "olmo3": {"num_hidden_layers": 8, "sliding_window": 4},
    "olmoe": {**_EXPERTS},
    "gemma3-mha": {**_GEMMA, "num_key_value_heads": HEADS},
    # As wide as Gemma 2 2B, whose gates DeepMind holds in another order.
    "gemma2-wide": {**_GEMMA, "num_hidden_layers": 2, "hidden_size": 2304},
}
_CLASSES: Mapping[str, tuple[str, str]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM"),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "bert": ("BertConfig", "BertForMaskedLM"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
    "vit": ("ViTConfig", "ViTForImageClassification"),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification"),
    "clip": ("CLIPConfig", "CLIPModel"),
    "siglip": ("SiglipConfig", "SiglipModel"),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration"),
    "paligemma": ("PaliGemmaConfig", "PaliGemmaForConditionalGeneration"),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
}
_IMAGE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "image_size": 12,
    "patch_size": 4,
}
_VIT = {**_IMAGE, "intermediate_size": MLP, "num_labels": 5}
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 10,
    "projection_dim": 20,
    "projection_size": HIDDEN,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {
    "moe_intermediate_size": 20,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
_TOWERS = {"text_config": _TEXT, "vision_config": {**_IMAGE, "intermediate_size": MLP, "projection_dim": 20}}
_OTHERS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 3, "n_head": HEADS, "n_positions": 64},
    "bert": {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "intermediate_size": MLP,
        "max_position_embeddings": 64,
    },
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": HIDDEN,
        "d_kv": HEAD,
        "d_ff": MLP,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": HEADS,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "t5-tied": {
        "vocab_size": VOCABULARY,
        "d_model": HIDDEN,
        "d_kv": HEAD,
        "d_ff": MLP,
        "num_layers": 2,
        "num_heads": 4,
    },
    "vit": _VIT,
    "dinov2": {**_IMAGE, "mlp_ratio": 2, "num_labels": 5},
    "dinov2-swiglu": {**_IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": True},
    "dinov2_with_registers": {**_IMAGE, "mlp_ratio": 2, "num_register_tokens": 3},
    "clip": {**_TOWERS, "projection_dim": 20},
    "siglip": _TOWERS,
    "paligemma": {
        "text_config": {**_DECODER, "model_type": "gemma", "head_dim": HEAD, "num_hidden_layers": 2},
        "vision_config": {
            **_IMAGE,
            "model_type": "siglip_vision_model",
            "intermediate_size": 44,
            "vision_use_head": False,
            "projection_dim": HIDDEN,
        },
        "projection_dim": HIDDEN,
        "image_token_index": VOCABULARY - 1,
    },
    "deepseek_v2": {**_DECODER, **_LATENT, "q_lora_rank": None, "num_hidden_layers": 4},
    "deepseek_v3": {**_DECODER, **_LATENT, "q_lora_rank": 14, "num_hidden_layers": 4},
    "gpt_oss": {
        **_DECODER,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "head_dim": HEAD,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "whisper": {
        "vocab_size": VOCABULARY,
        "d_model": HIDDEN,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": MLP,
        "decoder_ffn_dim": 48,
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "max_target_positions": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
}
NAMES = (*_SPECIAL, *_OTHERS)


def config(name: str) -> Any:
    """The configuration of the tiny model of that name."""
    made = getattr(transformers, _CLASSES[name.partition("-")[0]][0])
    return made(**(_OTHERS[name] if name in _OTHERS else {**_DECODER, **_SPECIAL[name]}))


def model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with weights that no rule may confuse: random everywhere, norms near one, logits of usual size."""
    torch.manual_seed(NAMES.index(name))
    made = getattr(transformers, _CLASSES[name.partition("-")[0]][1])(config(name)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.to(dtype)


def tensors(name: str) -> Mapping[str, np.ndarray]:
    """What a saved model of that name holds, by the names that it is saved under."""
    with TemporaryDirectory() as folder:
        return load_file(save(name, Path(folder)) / "model.safetensors")


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The folder, with the model of that name in it as `save_pretrained` writes it."""
    model(name, dtype).save_pretrained(folder)
    return folder


def logits(name: str, tensors: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """What the model of that name says to `TOKENS`, with its own weights or with others."""
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    more = {"decoder_input_ids": tokens} if name.startswith("t5") else {}
    made = model(name)
    if tensors is not None:
        missing, _ = made.load_state_dict({n: torch.tensor(x) for n, x in tensors.items()}, strict=False)
        assert set(missing) <= {"lm_head.weight"}, missing
    with torch.no_grad():
        return made(input_ids=tokens, **more).logits.numpy()
