"""`layers`, judged by the models that `transformers` makes of what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

DECODERS = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "olmo3", "mixtral", "qwen3_moe", "olmoe",
    "flex_olmo", "deepseek_v3", "gpt_neox", "bert", "phi3",
)  # fmt: skip
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "bert": "bert.encoder.layer"}


def blocks(model: Any, name: str) -> tuple[Any, str]:
    owner, _, last = BLOCKS.get(name, "model.layers").rpartition(".")
    return model.get_submodule(owner), last


def rearrange(model: Any, name: str, order: list[int]) -> Any:
    """The model with its layers in that order, as modules."""
    owner, last = blocks(model, name)
    setattr(owner, last, torch.nn.ModuleList([getattr(owner, last)[i] for i in order]))
    for key in ("num_hidden_layers", "n_layer"):
        if hasattr(model.config, key):
            setattr(model.config, key, len(order))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in order]
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_without_its_second_layer_computes_what_the_others_do(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": [1]}})
    count = model.config.num_hidden_layers
    wanted = rearrange(model, name, [0, *range(2, count)])
    found = load(tmp_path / "out")
    assert found.config.num_hidden_layers == count - 1
    with torch.no_grad():
        assert_same(logits(found), logits_without_cache(wanted))


def logits_without_cache(model: Any) -> torch.Tensor:
    from tests.structure.judged import TOKENS

    return model(TOKENS, **({} if "bert" in type(model).__name__.lower() else {"use_cache": False})).logits
