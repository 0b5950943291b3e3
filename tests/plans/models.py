"""Tiny models of real architectures, at random, saved under the tensor names of their families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LAYERS, WIDTH, HEADS = 3, 16, 4
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
TOKENS = torch.arange(10).reshape(2, 5)


def gpt2_config() -> GPT2Config:
    return GPT2Config(vocab_size=40, n_positions=16, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)


def gpt2(folder: Path) -> Path:
    """A bare GPT-2, with names as on the hub: `h.0.attn.c_attn.weight`."""
    torch.manual_seed(0)
    path = folder / "gpt2.safetensors"
    state = {name: torch.randn_like(tensor) for name, tensor in GPT2Model(gpt2_config()).state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    return path


def llama_pair(folder: Path) -> tuple[Path, Path]:
    """A Llama in bfloat16 and a fine-tuned twin; every tensor of the twin differs."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16()
    model.save_pretrained(folder / "base")
    return folder / "base", trained(folder / "base", folder / "tuned")


def dense(folder: Path) -> Path:
    """A dense Qwen3 in bfloat16, config beside it."""
    torch.manual_seed(2)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=False))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.bfloat16().save_pretrained(folder / "dense")
    return folder / "dense"


def olmoe(folder: Path) -> Path:
    """A mixture of four experts a layer, two of which each token takes."""
    torch.manual_seed(8)
    config = OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, eos_token_id=1)
    OlmoeForCausalLM(config).save_pretrained(folder / "olmoe")
    return folder / "olmoe"


def trained(folder: Path, target: Path) -> Path:
    """A checkpoint after some training: its tensors, and noise on every one of them."""
    torch.manual_seed(3)
    target.mkdir()
    tensors = load_file(folder / "model.safetensors")
    moved = {n: (t + 0.1 * torch.randn_like(t, dtype=torch.float32)).to(t.dtype) for n, t in tensors.items()}
    save_file(moved, target / "model.safetensors", metadata={"format": "pt"})
    return target


def narrow_gpt2() -> Any:
    """A GPT2LMHeadModel with 12 layers of 12 heads, as the real one has, but narrow; every parameter at random."""
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=24, n_layer=12, n_head=12)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def adapted(folder: Path, dtype: torch.dtype) -> Path:
    """A Llama in `dtype`, and beside it (`adapter`) a LoRA of rank 4 and alpha 8 on two projections of each layer."""
    base, _ = llama_pair(folder)
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    model.save_pretrained(base)
    lora = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    lora.save_pretrained(str(folder / "adapter"))
    return base


def direction(folder: Path) -> Path:
    """A file with a vector of the width of the models."""
    r = torch.randn(WIDTH, generator=torch.Generator().manual_seed(6))
    save_file({"r": r}, folder / "direction.safetensors")
    return folder / "direction.safetensors"
