"""Tiny models and adapters, made by transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

import brainsurgery_jax as bs

QUIET = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
"""PEFT asks transformers for what newer versions of that call otherwise, and warns of tied embeddings."""

Tensors = Mapping[str, torch.Tensor]
WORDS, LAYERS = 48, 2
SIZES: Mapping[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 40,
         "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def llama(**keys: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **keys}))


def qwen(**keys: Any) -> Any:
    """With biases."""
    return Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **keys}))


def gpt2() -> Any:
    """With matrices as [in, out], and a head that is its table of tokens."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=32, n_embd=32, n_layer=LAYERS, n_head=4))


ENCODER: Mapping[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 40,
           "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 20}  # fmt: skip

TIED_HEADS: Mapping[str, tuple[Callable[[], Any], str, str, str]] = {
    "BERT": (lambda: BertForMaskedLM(BertConfig(**ENCODER)), "word_embeddings", "decoder", "query"),
    "RoBERTa": (lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER)), "word_embeddings", "decoder", "query"),
    "ELECTRA": (
        lambda: ElectraForMaskedLM(ElectraConfig(**ENCODER, embedding_size=16)),
        "word_embeddings", "generator_lm_head", "query",
    ),
    "DistilBERT": (
        lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=WORDS, dim=32, hidden_dim=40, n_layers=2, n_heads=4)),
        "word_embeddings", "vocab_projector", "q_lin",
    ),
    "ALBERT": (
        lambda: AlbertForMaskedLM(AlbertConfig(**ENCODER, embedding_size=16)), "word_embeddings", "decoder", "query",
    ),
    "Mamba": (
        lambda: MambaForCausalLM(MambaConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, state_size=4)),
        "embeddings", "lm_head", "in_proj",
    ),
}  # fmt: skip
"""Models whose head is their table of tokens: with the last names of table and head, and of another matrix."""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12) % WORDS).logits


def disturb(model: Any, *names: str, by: float = 0.02, falling: bool = False) -> None:
    """Change the parameters whose names hold one of these words, or all of them. `falling`: by matrices of which each
    singular value is 0.7 times the one before."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names and not any(word in name for word in names):
                continue
            noise = torch.randn_like(parameter) * by
            if falling and noise.dim() == 2:
                u, s, v = torch.linalg.svd(noise, full_matrices=False)
                noise = u @ torch.diag(s[0] * 0.7 ** torch.arange(len(s))) @ v
            parameter.add_(noise)


def tuned(folder: Path, model: Any, *names: str, vocabulary: int = 0, falling: bool = False) -> Any:
    """A base (`base`), and the model that it becomes when these parameters change (`tuned`)."""
    torch.manual_seed(3)
    disturb(model)  # norms and biases that are no constants
    model.eval().save_pretrained(folder / "base")
    if vocabulary:
        model.resize_token_embeddings(vocabulary)
    disturb(model, *names, falling=falling)
    model.save_pretrained(folder / "tuned")
    return model


def extract(folder: Path, **keys: Any) -> Path:
    """The adapter that a plan takes out of `tuned`."""
    step = {"base": "base", "tuned": "tuned", "to": "adapter", **keys}
    plan = {
        "inputs": [f"{alias}::{folder / alias}" for alias in ("base", "tuned")],
        "transforms": [{"lora_extract": step}],
        "output": {"path": str(folder / "lora"), "alias": "adapter", "format": "peft"},
    }
    bs.load(plan).run(durable=False)
    return folder / "lora"


def with_adapter(folder: Path, adapter: Path, vocabulary: int = 0, kind: Any = AutoModelForCausalLM) -> Any:
    """The base with an adapter, as PEFT loads it: nothing missing, nothing left over."""
    base = kind.from_pretrained(folder / "base")
    if vocabulary:
        base.resize_token_embeddings(vocabulary)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    found = load_file(adapter / "adapter_model.safetensors")
    saved = {name for name in model.state_dict() if "lora_" in name or ".modules_to_save." in name}
    assert {name.replace(".default", "").replace(".modules_to_save", "") for name in saved} <= found.keys()
    return model


def adapted(folder: Path, model: Any, vocabulary: int = 0, name: str = "adapter", seed: int = 11, **keys: Any) -> Any:
    """A base (`base`) and an adapter with random factors; the model with its adapter."""
    torch.manual_seed(7)
    disturb(model)
    model.eval().save_pretrained(folder / "base")
    if vocabulary:
        model.resize_token_embeddings(vocabulary)
    torch.manual_seed(seed)
    both: Any = get_peft_model(
        model, LoraConfig(**{"init_lora_weights": False, "task_type": "CAUSAL_LM", **keys})
    ).eval()
    with torch.no_grad():
        for own, parameter in both.named_parameters():
            if "magnitude" in own:
                parameter.mul_(1.1)
            elif "lora_" in own or "modules_to_save" in own or "trainable_tokens" in own:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    both.save_pretrained(str(folder / name))
    return both


def merge(folder: Path, adapters: Any = "adapter", inputs: tuple[str, ...] = ("adapter",), **keys: Any) -> Tensors:
    """What `lora_merge` makes of `base` and adapters."""
    plan = {
        "inputs": [f"{alias}::{folder / alias}" for alias in ("base", *inputs)],
        "transforms": [{"lora_merge": {"base": "base", "adapters": adapters, "to": "merged", **keys}}],
        "output": {"path": str(folder / "out") + "/", "alias": "merged"},
    }
    bs.load(plan).run(durable=False)
    return load_file(folder / "out/model.safetensors")
