"""Tiny models of many classes, as `transformers` saves them: their config.json, and the names and shapes beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import transformers

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.detect import open_source

_DECODER: Mapping[str, Any] = {
    "vocab_size": 91, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
_ENCODER: Mapping[str, Any] = {
    "vocab_size": 91, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 48,
}  # fmt: skip
_VISION: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_WIDE: Mapping[str, Any] = {"head_dim": 12}
_EXPERTS: Mapping[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT: Mapping[str, Any] = {
    "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "num_key_value_heads": 4,
}  # fmt: skip
_T5: Mapping[str, Any] = {
    "vocab_size": 91, "d_model": 32, "d_kv": 12, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
}  # fmt: skip
_WHISPER: Mapping[str, Any] = {
    "vocab_size": 91, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 44, "max_source_positions": 20,
    "max_target_positions": 24, "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
_GPT2: Mapping[str, Any] = {
    "vocab_size": 91, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 48, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

_PARTS: Mapping[str, Mapping[str, Any]] = {
    "text_config": {**_DECODER, "model_type": "llama"},
    "vision_config": {**_VISION, "model_type": "clip_vision_model"},
}

CLASSES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {**_DECODER, "tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", "LlamaForCausalLM", {**_DECODER, "attention_bias": True, "mlp_bias": True}),
    "llama-base": ("LlamaConfig", "LlamaModel", _DECODER),
    "llama-classes": ("LlamaConfig", "LlamaForSequenceClassification", {**_DECODER, "num_labels": 3}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_DECODER, **_WIDE}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_DECODER, **_WIDE}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**_DECODER, **_WIDE, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_DECODER, **_WIDE, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_DECODER, **_WIDE, "num_hidden_layers": 7}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", _DECODER),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", {**_DECODER, **_WIDE}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {**_DECODER, "num_hidden_layers": 4}),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", _DECODER),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _DECODER),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", {**_DECODER, "num_hidden_layers": 8}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**_DECODER, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig", "Qwen2MoeForCausalLM", {**_DECODER, **_EXPERTS, "shared_expert_intermediate_size": 28},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_DECODER, **_WIDE, **_EXPERTS}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2}),
    "flex_olmo": ("FlexOlmoConfig", "FlexOlmoForCausalLM", {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {**_DECODER, **_WIDE, "num_local_experts": 4}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {**_DECODER, **_LATENT}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _DECODER),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2),
    "gpt2-base": ("GPT2Config", "GPT2Model", _GPT2),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _ENCODER),
    "bert": ("BertConfig", "BertForMaskedLM", _ENCODER),
    "bert-classes": ("BertConfig", "BertForSequenceClassification", {**_ENCODER, "num_labels": 3}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", _ENCODER),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", {**_ENCODER, "embedding_size": 24}),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5-gated": ("T5Config", "T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "vit": ("ViTConfig", "ViTForImageClassification", {**_VISION, "num_labels": 3}),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", _WHISPER),
    "clip": ("CLIPConfig", "CLIPModel", {
        "text_config": {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2}, "vision_config": _VISION,
    }),
    "llava": ("LlavaConfig", "LlavaForConditionalGeneration", _PARTS),
    "opt": ("OPTConfig", "OPTForCausalLM", {
        "vocab_size": 91, "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 48, "word_embed_proj_dim": 32,
    }),
    # Families that the table does not have: nothing is said of them.
    "mamba": ("MambaConfig", "MambaForCausalLM", {"vocab_size": 91, "hidden_size": 32, "num_hidden_layers": 3}),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", {**_ENCODER, "pad_token_id": 0}),
}  # fmt: skip
UNKNOWN = ("mamba", "modernbert")


class Saved(NamedTuple):
    """A checkpoint: its config.json, and what its header tells."""

    config: dict[str, Any]
    avals: dict[str, Aval]


@cache
def _saved(name: str) -> Saved:
    config, model, sizes = CLASSES[name]
    made = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    with TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        found = json.loads((Path(folder) / "config.json").read_text())
        source = open_source(folder)
        avals = {name: info.aval for name, info in source.header.tensors.items()}
        source.close()
    return Saved(found, avals)


def saved(name: str) -> Saved:
    """The tiny model of that name, as copies that a test may change."""
    found = _saved(name)
    return Saved(json.loads(json.dumps(found.config)), dict(found.avals))
