"""`lora_merge` of stacked experts: what PEFT makes of its `target_parameters`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

import brainsurgery_jax as bs
from tests.adapters.models import QUIET

pytestmark = QUIET

SIZES: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 4,
}  # fmt: skip
NUMBER: dict[str, Any] = {"num_experts": 3, "moe_intermediate_size": 12}
LATENT: dict[str, Any] = {
    "q_lora_rank": None, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4,
}  # fmt: skip
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES), "gpt_oss": GptOssConfig(**SIZES), "qwen3_moe": Qwen3MoeConfig(**SIZES, **NUMBER),
    "olmoe": OlmoeConfig(**SIZES, num_experts=3),
    "deepseek_v3": DeepseekV3Config(**{**SIZES, "num_key_value_heads": 2, "head_dim": 2}, **LATENT, n_routed_experts=3,
                                    moe_intermediate_size=12, n_group=1, topk_group=1, first_k_dense_replace=0),
}  # fmt: skip
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def build(kind: str, folder: Path) -> PreTrainedModel:
    """A model with stacked experts, also as a folder `base`."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], torch_dtype=torch.float32).eval()
    (folder / "base").mkdir()
    save_file({n: x.clone() for n, x in model.state_dict().items()}, folder / "base/model.safetensors")
    model.config.save_pretrained(str(folder / "base"))
    return model


def adapt(model: PreTrainedModel, folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    """An adapter of these parameters in a folder `lora`, and what PEFT merges."""
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **config))
    adapted.save_pretrained(str(folder / "lora"))
    merged: Any = adapted
    return merged.merge_and_unload().state_dict()


def merge(folder: Path, *steps: Any) -> dict[str, torch.Tensor]:
    plan = {"inputs": [f"base::{folder}/base", f"lora::{folder}/lora"],
            "transforms": [*steps, {"lora_merge": {"base": "base", "adapters": "lora"}}],
            "output": {"path": f"{folder}/out", "alias": "base"}}  # fmt: skip
    bs.load(plan).run(durable=False)
    return load_file(folder / "out/model.safetensors")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("targets", [BOTH, BOTH[:1], BOTH[1:]])
def test_the_product_of_every_expert_is_added_as_peft_adds_it(kind: str, targets: list[str], tmp_path: Path):
    expected = adapt(build(kind, tmp_path), tmp_path, target_modules=["q_proj"], target_parameters=targets)
    found = merge(tmp_path)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=1e-6)


def test_a_rank_stabilized_scale_is_that_of_one_expert(tmp_path: Path):
    expected = adapt(build("mixtral", tmp_path), tmp_path, target_modules=["q_proj"], target_parameters=BOTH,
                     use_rslora=True)  # fmt: skip
    found = merge(tmp_path)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=1e-6)


def test_experts_in_tensors_of_their_own_are_refused_with_the_step_that_stacks_them(tmp_path: Path):
    model = build("mixtral", tmp_path)
    model.save_pretrained(str(tmp_path / "base"))
    expected = adapt(model, tmp_path, target_modules=["q_proj"], target_parameters=BOTH)
    with pytest.raises(bs.PlanError, match=r"'base' has no 'model.layers.0.mlp.experts.\w+', which 'lora'") as told:
        merge(tmp_path)
    step = "experts: {names: stacked, alias: base}"
    assert step in str(told.value)
    found = merge(tmp_path, {"experts": {"names": "stacked", "alias": "base"}})
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=1e-6)


def test_factors_that_fit_two_parameters_are_refused(tmp_path: Path):
    build("mixtral", tmp_path)
    (tmp_path / "lora").mkdir()
    head = "base_model.model.model.layers.0.mlp.experts."
    save_file({f"{head}lora_A.weight": torch.ones(6, 9), f"{head}lora_B.weight": torch.ones(8, 6)},
              tmp_path / "lora/adapter_model.safetensors")  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": BOTH}
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(bs.PlanError, match=r"which parameter of 'model.layers.0.mlp.experts' does 'lora' change"):
        merge(tmp_path)
