"""Adapters of every kind that PEFT saves: folded as PEFT merges them, by the plan for it, and by primitive steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError

# PEFT warns of tied embeddings.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

FOLD = Path(__file__).resolve().parents[2] / "plans/lora_fold.yaml"
LAYERS = 2
SIZES: Mapping[str, Any] = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": LAYERS,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
Tensors = Mapping[str, torch.Tensor]


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_positions=32, n_embd=32, n_layer=LAYERS, n_head=4))


def adapted(folder: Path, model: Any, vocabulary: int = 0, **keys: Any) -> Any:
    """A base (`base`) and an adapter with random factors (`adapter`); yields the model with its adapter."""
    torch.manual_seed(11)
    model.eval().save_pretrained(folder / "base")
    if vocabulary:
        model.resize_token_embeddings(vocabulary)
    both: Any = get_peft_model(model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **keys)).eval()
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.1)
            elif "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    both.save_pretrained(str(folder / "adapter"))
    return both


def merged(folder: Path, model: Any, vocabulary: int = 0, **keys: Any) -> Tensors:
    """The same; yields what PEFT merges of base and adapter."""
    return dict(adapted(folder, model, vocabulary, **keys).merge_and_unload().state_dict())


def run(folder: Path, *steps: Any, **output: Any) -> Tensors:
    """What a plan on `base` and `adapter` writes, all of the adapter read."""
    used = {"assert": {"reads": {"of": "adapter::.+", "ge": 1}}}
    plan = {
        "inputs": [f"base::{folder / 'base'}", f"adapter::{folder / 'adapter'}"],
        "transforms": [*steps, used],
        "output": {"path": str(folder / "out") + "/", "alias": "base", **output},
    }
    bs.load(plan).run(durable=False)
    return load_file(folder / "out/model.safetensors")


def fold(expr: str, pattern: str = "(.+)", kind: str = r".lora_X.weight", **more: str) -> Any:
    """A step that folds the modules which a pattern matches."""
    a, b = (kind.replace("X", letter) for letter in "AB")
    names = {
        "a": rf"adapter::base_model\.model\.{pattern}{a}".replace(".lora", r"\.lora").replace(".weight", r"\.weight"),
        "b": rf"adapter::base_model.model.\1{b}",
        "w": r"base::\1.weight",
        **more,
    }
    return {"compute": {"from": names, "to": r"base::\1.weight", "expr": expr}}


def same(ours: Tensors, theirs: Tensors) -> None:
    """Every tensor that we write is the one that PEFT has, within the rounding of float32."""
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    tied = {n for n in theirs if n not in ours}
    assert tied <= {"lm_head.weight"}, "PEFT has what we have not"


PLAIN: Mapping[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}


# --- The plan that folds an adapter -----------------------------------------------------------------------------------


def folded(folder: Path) -> Tensors:
    settings = {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "out": str(folder / "out") + "/"}
    bs.load(FOLD, **settings).run(durable=False)
    return load_file(folder / "out/model.safetensors")


@pytest.mark.parametrize(
    "keys",
    [{}, {"lora_alpha": 16}, {"r": 2}, {"rank_pattern": {"up_proj": 8, r"layers\.1\..*q_proj": 2}}, {"use_dora": True},
     {"use_rslora": True}, {"alpha_pattern": {"up_proj": 2}}, {"target_modules": ["embed_tokens", "q_proj"]},
     {"modules_to_save": ["lm_head"]}],
    ids=["plain", "another alpha", "another rank", "ranks by module", "DoRA", "rank-stabilized", "alphas by module",
         "embeddings", "whole modules"],
)  # fmt: skip
def test_an_adapter_is_folded_as_peft_merges_it(tmp_path: Path, keys: Any):
    theirs = merged(tmp_path, llama(), **{**PLAIN, **keys})
    same(folded(tmp_path), theirs)


def test_an_adapter_whose_biases_have_no_place_is_refused(tmp_path: Path):
    adapted(tmp_path, llama(), **PLAIN, lora_bias=True)
    with pytest.raises(PlanError, match=r"adds a bias, and 'model\.\S+' of 'base' has none"):
        folded(tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_its_config_is_refused(tmp_path: Path):
    adapted(tmp_path, llama(), **PLAIN)
    with pytest.raises(PlanError, match=r"'adapter' came without an adapter_config\.json"):
        bs.load(FOLD, base=str(tmp_path / "base"), adapter=str(tmp_path / "adapter/adapter_model.safetensors"),
                out=str(tmp_path / "out/")).explain()  # fmt: skip


# --- The same by steps of their own -----------------------------------------------------------------------------------


def test_dora_is_folded_as_peft_merges_it(tmp_path: Path):
    theirs = merged(tmp_path, llama(), **PLAIN, use_dora=True)
    m = r"adapter::base_model.model.\1.lora_magnitude_vector"
    changed = "(w + 2 * b @ a)"
    same(run(tmp_path, fold(f"reshape(m, (-1, 1)) * {changed} / norm({changed}, axis=1, keepdims=True)", m=m)), theirs)


def test_an_embedding_is_folded_as_peft_merges_it(tmp_path: Path):
    theirs = merged(tmp_path, llama(), r=4, lora_alpha=8, target_modules=["embed_tokens", "v_proj"])
    embedded = fold("w + 2 * (b @ a).T", kind=".lora_embedding_X")
    # PEFT saves the embedding itself, too; that it is the one of the base is part of the proof.
    whole = {"assert": {"equal": {"left": r"adapter::base_model\.model\.(.+)\.base_layer\.weight",
                                  "right": r"base::\1.weight"}}}  # fmt: skip
    same(run(tmp_path, whole, embedded, fold("w + 2 * b @ a")), theirs)


def test_transposed_matrices_are_folded_as_peft_merges_them(tmp_path: Path):
    keys = {**PLAIN, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    theirs = merged(tmp_path, gpt2(), **keys)
    same(run(tmp_path, fold("w + 2 * (b @ a).T")), theirs)


def test_patterns_and_added_tokens_are_folded_as_peft_merges_them(tmp_path: Path):
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
    theirs = merged(
        tmp_path, model, 64, r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True,
        rank_pattern={r"layers\.1\..*q_proj": 8, "down_proj": 2},
        alpha_pattern={r"layers\.1\..*q_proj": 64, r"layers\.0\.self_attn\.v_proj": 4},
        modules_to_save=["embed_tokens", "lm_head"],
    )  # fmt: skip
    odd = (r"(.*layers\.1\..*q_proj)", r"(.*layers\.0\.self_attn\.v_proj)")
    steps = [
        fold("w + 64 / sqrt(8) * b @ a", odd[0]),
        fold("w + 4 / sqrt(4) * b @ a", odd[1]),
        fold("w + 16 / sqrt(a.shape[0]) * b @ a", f"(?!{odd[0][1:-1]}|{odd[1][1:-1]})(.*)"),
        {"delete": {"target": r"base::model\.embed_tokens\.weight"}},
        {"copy": {"from": r"adapter::base_model\.model\.(model\.embed_tokens\.weight|lm_head\.weight)",
                  "to": r"base::\1"}},
    ]  # fmt: skip
    same(run(tmp_path, *steps, config={"tie_word_embeddings": False, "vocab_size": 64}), theirs)
