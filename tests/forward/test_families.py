"""The forward pass of each family against transformers, in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs
from brainsurgery_jax.comparison.logits import read_logits
from brainsurgery_jax.forward.architecture import FORWARDS

SIZES: Mapping[str, object] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 97, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
OLD_LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}

SHARED = {"shared_expert_intermediate_size": 28}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
LATENT: Mapping[str, object] = {
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip
DEEP_YARN = {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}


class Row(NamedTuple):
    """A model: its `model_type`, and the settings beside `SIZES`."""

    kind: str
    what: str = ""
    settings: Mapping[str, object] = {}

    def __str__(self) -> str:
        return f"{self.kind}-{self.what}" if self.what else self.kind


ROWS = (
    Row("llama"),
    Row("llama", "tied", {"tie_word_embeddings": True}),
    Row("llama", "llama3-rope", {"rope_parameters": OLD_LLAMA3}),
    Row("llama", "yarn", {"rope_parameters": YARN}),
    Row("llama", "linear-rope", {"rope_parameters": LINEAR}),
    Row("llama", "bias", {"attention_bias": True, "mlp_bias": True}),
    Row("mistral", "window", {"sliding_window": 5}),
    Row("ministral", "window", {"sliding_window": 5}),
    Row("qwen2"),
    Row("qwen2", "window", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    Row("qwen3"),
    Row("granite", "multipliers", GRANITE),
    Row("smollm3"),
    Row("phi3", "window", {"sliding_window": 5}),
    Row("olmo"),
    Row("olmo", "clipped", {"clip_qkv": 0.05}),
    Row("olmo2"),
    Row("olmo3", "window", {"sliding_window": 5}),
    Row("gemma"),
    Row("gemma", "old-activation", {"hidden_act": "gelu"}),
    Row("gemma2", "window", {"sliding_window": 5}),
    Row("gemma3_text", "window", {"sliding_window": 5}),
    Row("mixtral", "", EXPERTS),
    Row("qwen2_moe", "", {**EXPERTS, **SHARED}),
    Row("qwen2_moe", "window", {**EXPERTS, **SHARED, **QWEN_WINDOW, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    Row("deepseek_v3", "", LATENT),
    Row("deepseek_v3", "yarn", {**LATENT, "rope_parameters": DEEP_YARN, "attention_bias": True}),
    Row(
        "deepseek_v3",
        "plain-queries",
        {
            **LATENT,
            "q_lora_rank": None,
            "rope_interleave": False,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
    ),
    Row("gpt_oss", "window", {**EXPERTS, "sliding_window": 5}),
    Row(
        "gpt_oss",
        "plain-rope",
        {**EXPERTS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "swiglu_limit": 0.2},
    ),
    Row("qwen3_moe", "", EXPERTS),
    Row("qwen3_moe", "dense-layer", {**EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    Row("olmoe", "", EXPERTS),
    Row("flex_olmo", "", EXPERTS),
    Row("gpt2", "", GPT2),
    Row("gpt2", "by-layer", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    Row("gpt_neox", "parallel", {"rotary_pct": 0.5}),
    Row("gpt_neox", "in-turn", {"use_parallel_residual": False}),
)
EACH = pytest.mark.parametrize("row", ROWS, ids=str)
TOKENS = tuple(int(t) for t in np.random.default_rng(0).integers(3, 97, 20))


def model_of(row: Row) -> transformers.PreTrainedModel:
    """A tiny model with weights that make every part count."""
    torch.manual_seed(0)
    given = dict(row.settings) if row.kind == "gpt2" else {**SIZES, **row.settings}
    config = transformers.AutoConfig.for_model(row.kind, **given)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for weights in model.parameters():
            weights += torch.randn_like(weights) * 0.15
    for module in model.modules():
        if hasattr(module, "limit"):
            module.limit = given.get("swiglu_limit", module.limit)  # transformers 5.3 reads no config for it
    return model.float().eval()


@EACH
def test_logits_are_those_of_transformers(row: Row, tmp_path: Path) -> None:
    model = model_of(row)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    found = read_logits(tmp_path, TOKENS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
    assert np.abs(wanted).max() > 0.5


def test_every_family_has_a_row() -> None:
    assert {row.kind for row in ROWS} == set(FORWARDS)


def test_a_window_changes_the_logits(tmp_path: Path) -> None:
    model_of(Row("mistral", "", {"sliding_window": 5})).save_pretrained(tmp_path)
    narrow = read_logits(tmp_path, TOKENS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": None}))
    wide = read_logits(tmp_path, TOKENS)
    np.testing.assert_allclose(narrow[:5], wide[:5], atol=1e-5)
    assert np.abs(narrow[5:] - wide[5:]).max() > 1e-3


def test_configs_of_transformers_4_say_the_same(tmp_path: Path) -> None:
    model_of(Row("llama", "", {"rope_parameters": OLD_LLAMA3})).save_pretrained(tmp_path)
    now = read_logits(tmp_path, TOKENS)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    old = {**config, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert np.array_equal(read_logits(tmp_path, TOKENS), now)


def test_the_products_of_bfloat16_weights_are_as_exact_as_those_of_float32(tmp_path: Path) -> None:
    model = model_of(Row("llama")).bfloat16()
    model.save_pretrained(tmp_path / "narrow")
    model.float().save_pretrained(tmp_path / "wide")
    gap = bs.compare_logits(tmp_path / "narrow", tmp_path / "wide", tokens=TOKENS)
    assert gap.max_diff < 1e-4
    assert gap.agreement == 1.0


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_in_two_tensors_of_a_layer_compute_the_same(kind: str, tmp_path: Path) -> None:
    model_of(Row(kind, "", EXPERTS)).save_pretrained(tmp_path / "separate")
    steps = [{"experts": {"names": "stacked"}}]
    plan = {"inputs": [str(tmp_path / "separate")], "transforms": steps, "output": f"{tmp_path / 'stacked'}/"}
    bs.load(plan).run(durable=False)
    with safe_open(tmp_path / "stacked" / "model.safetensors", "np") as found:
        assert "model.layers.0.mlp.experts.gate_up_proj" in found.keys()  # noqa: SIM118 (it is no mapping)
    assert bs.compare_logits(tmp_path / "separate", tmp_path / "stacked", tokens=TOKENS).max_diff < 1e-5


def test_a_bias_of_the_head_is_added(tmp_path: Path) -> None:
    model = model_of(Row("llama"))
    bias = torch.randn(97)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "lm_head.bias": bias.numpy()}, tmp_path / "model.safetensors")
    with torch.no_grad():
        wanted = (model(torch.tensor([TOKENS])).logits[0] + bias).numpy()
    np.testing.assert_allclose(read_logits(tmp_path, TOKENS), wanted, atol=1e-5, rtol=1e-5)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    model_of(Row("deepseek_v3", "", LATENT)).save_pretrained(tmp_path)
    before = read_logits(tmp_path, TOKENS)
    tensors = load_file(tmp_path / "model.safetensors")
    further = {n.replace("layers.3.", "layers.4."): x for n, x in tensors.items() if "layers.3." in n}
    save_file({**tensors, **further, "model.layers.4.eh_proj.weight": np.ones((32, 64), np.float32)},
              tmp_path / "model.safetensors")  # fmt: skip
    assert np.array_equal(read_logits(tmp_path, TOKENS), before)
