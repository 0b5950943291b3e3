"""Adapters of models whose modules transformers names otherwise than checkpoints do: PEFT knows those of modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    CLIPVisionConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import brainsurgery_jax as bs
from brainsurgery_jax.adapters.renaming import is_renamed_otherwise, module_name
from brainsurgery_jax.errors import PlanError
from tests.adapters.models import ENCODER, QUIET, SIZES, adapted, extract, logits, merge, tuned, with_adapter
from tests.checkpoints import normal, plan_of

pytestmark = QUIET

SIGHT: Mapping[str, Any] = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1,
         "num_attention_heads": 4, "image_size": 16, "patch_size": 8}  # fmt: skip


def llava(**keys: Any) -> Any:
    text, sight = LlamaConfig(**SIZES), CLIPVisionConfig(**SIGHT)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=sight, image_token_index=47, **keys)
    )


def qwen_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 40, "num_heads": 4, "out_hidden_size": 32}
    text = {**SIZES, "rope_parameters": rope}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config={**sight, "patch_size": 4})
    )


def neox(**keys: Any) -> Any:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**ENCODER, **keys))


def vit() -> Any:
    return ViTForImageClassification(ViTConfig(**{**SIGHT, "patch_size": 4}))


def answer(model: Any) -> torch.Tensor:
    """The logits for words, or for a picture."""
    if "pixel_values" not in str(getattr(model, "main_input_name", "")):
        return logits(model)
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)).logits


RENAMED: dict[str, tuple[Callable[[], Any], tuple[str, ...], list[str]]] = {
    "GPT-NeoX": (neox, ("lm_head", "query_key_value"), ["lm_head", "query_key_value"]),
    "GPT-NeoX, tied": (
        lambda: neox(tie_word_embeddings=True), ("embed_in", "query_key_value"), ["lm_head", "query_key_value"]
    ),
    "Llava": (llava, ("q_proj", "lm_head", "linear_1", "fc1", "norm"), ["q_proj", "lm_head"]),
    "Llava, tied": (lambda: llava(tie_word_embeddings=True), ("embed_tokens", "q_proj"), ["lm_head", "q_proj"]),
    "Qwen2.5-VL": (qwen_vl, ("q_proj", "qkv", "down_proj"), ["q_proj", "down_proj"]),
    "ViT": (vit, ("k_proj", "o_proj", "fc1", "fc2", "layernorm", "classifier"), ["q_proj", "o_proj", "fc1", "fc2"]),
}  # fmt: skip
"""Models, what of them is tuned, and what adapters of PEFT change."""


@pytest.mark.parametrize("kind", RENAMED)
def test_peft_finds_every_module_that_an_adapter_changes(kind: str, tmp_path: Path):
    make, names, _ = RENAMED[kind]
    model = tuned(tmp_path, make(), *names)
    found = with_adapter(tmp_path, extract(tmp_path, rank=64), kind=type(model))
    torch.testing.assert_close(answer(found), answer(model), rtol=1e-5, atol=2e-6)
    found, wanted = found.merge_and_unload(), dict(model.state_dict())
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", RENAMED)
def test_adapters_of_peft_are_merged_by_the_names_of_modules(kind: str, tmp_path: Path):
    make, _, targets = RENAMED[kind]
    model = make()
    theirs = adapted(tmp_path, model, r=4, lora_alpha=8, target_modules=targets, task_type=None)
    merge(tmp_path)
    torch.testing.assert_close(answer(type(model).from_pretrained(tmp_path / "out")), answer(theirs))


def test_what_is_merged_has_the_names_of_the_checkpoint(tmp_path: Path):
    adapted(tmp_path, llava(), r=4, target_modules=["q_proj"], task_type=None)
    base = load_file(tmp_path / "base/model.safetensors")
    assert merge(tmp_path).keys() == base.keys()
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in base


def test_names_that_modules_have_already_stay(tmp_path: Path):
    name = "model.language_model.layers.0.self_attn.q_proj"
    assert [module_name(kind, False, name) for kind in ("llava", "qwen2_5_vl")] == [name, name]
    assert module_name("llava", True, "language_model.model.norm") == "language_model.norm"


def test_a_model_of_which_the_names_of_modules_are_not_known_is_noted(tmp_path: Path):
    base = {"encoder.w.weight": normal((4, 3))}
    other = {"encoder.w.weight": normal((4, 3), seed=1)}
    step = {"lora_extract": {"base": "base", "tuned": "tuned", "to": "adapter", "rank": 1}}
    plan = plan_of(
        tmp_path, {"base": base, "tuned": other}, [{"config": {"alias": "base", "patch": {"model_type": "swin"}}}, step]
    )
    assert is_renamed_otherwise("swin")
    done = bs.load(plan | {"output": {"path": str(tmp_path / "lora"), "alias": "adapter", "format": "peft"}}).run(
        durable=False
    )
    assert "transformers gives modules of 'swin' other names than the checkpoint has" in str(done.notes)


# --- Modules that the base lacks --------------------------------------------------------------------------------------

W = {"h.0.w.weight": normal((4, 3)), "h.1.w.weight": normal((4, 3))}
FACTORS = {"lora_A.weight": normal((2, 3)), "lora_B.weight": normal((4, 2))}


@pytest.mark.parametrize(("others", "deletes"), [
    (("base_model.model.h.0.w", "base_model.model.k.w"), ""),
    (("h.0.w", "k.w"), ""),
    (("lora_unet_h_0_w", "lora_te_k"), r"lora_te_"),
    (("unet.h.0.w", "text_encoder.k"), r"text_encoder\\."),
    (("unet.h.0.w", "unet.k"), ""),
])  # fmt: skip
def test_deletion_is_the_remedy_only_for_adapters_of_several_models(others: Any, deletes: str, tmp_path: Path):
    adapter = {f"{stem}.{end}": x for stem in others for end, x in FACTORS.items()}
    step = {"lora_merge": {"base": "base", "adapters": "adapter", "config": {"lora_alpha": 2}}}
    with pytest.raises(PlanError, match="has no module") as caught:
        bs.load(plan_of(tmp_path, {"base": W, "adapter": adapter}, step)).explain()
    said = str(caught.value)
    assert ("`delete" in said) == bool(deletes)
    assert ("Is it the base that the adapter was trained on?" in said) != bool(deletes)
