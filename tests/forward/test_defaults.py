"""Keys that a config.json leaves out: the class of the model in `transformers` says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from brainsurgery_jax.comparison.logits import read_logits

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 7, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1,
    "sliding_window": 4096, "pad_token_id": 0, "rms_norm_eps": 1e-6,
}  # fmt: skip
TOKENS = list(range(3, 43))
NEWER = {"olmo3": {"rope_theta": 5e5}}
"""Defaults of a class that were others in older versions of transformers (5.3: 1e4)."""


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mixtral", {}),
        ("smollm3", {}),
        ("olmo3", {}),
        ("flex_olmo", {}),
        ("gemma2", {}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ],
)
def test_keys_that_are_left_out_are_those_of_the_class(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps({"model_type": kind, **SIZES, **more})
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(text), **NEWER.get(kind, {})}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        wanted = model.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    np.testing.assert_allclose(read_logits(tmp_path, TOKENS), wanted, rtol=2e-3, atol=2e-3)
