"""A class with the names of a known family is one entry: every step, `check` and the forward pass then know it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import brainsurgery_jax as bs
from brainsurgery_jax.comparison.logits import read_logits
from brainsurgery_jax.families.model import ModelType, NormForm
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, PRE_NORMS, QK_NORMS
from tests.structure.judged import TOKENS, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

NEMOTRON = ModelType(
    "nemotron", LLAMA, "NemotronForCausalLM", norms=NormForm(centred=True, unit=0), keys={"rms_norm_eps": "norm_eps"},
    roles={**PRE_NORMS, **ATTENTION, "up": MLP["up"], "down": MLP["down"]},
    defaults={"norm_eps": 1e-5, "hidden_act": "relu2", "partial_rotary_factor": 0.5},
)  # fmt: skip
NEW = ModelType("mymodel", LLAMA, "MyModelForCausalLM", roles={**PRE_NORMS, **ATTENTION, **QK_NORMS, **MLP})


def save_under_new_name(folder: Path) -> torch.Tensor:
    """A Qwen 3 that says it is the new class; its logits."""
    model = make("qwen3", folder)
    config = json.loads((folder / "config.json").read_text())
    named = {**config, "model_type": NEW.name, "architectures": [NEW.causal]}
    (folder / "config.json").write_text(json.dumps(named))
    return logits(model)


def test_an_entry_gives_a_class_its_forward_pass_and_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = save_under_new_name(tmp_path / "whole")
    monkeypatch.setitem(MODELS, NEW.name, NEW)  # what a file in families/tables does
    steps = (
        {"fold_norm": {"prove": True}},
        {"refactor_attention": {"products": "ov", "prove": True}},
        {"layers": {"repeat": [0], "scale_copies": 0, "prove": True}},
    )
    edit(tmp_path / "whole", tmp_path / "out", *steps)
    gap = bs.compare_logits(tmp_path / "whole", tmp_path / "out", tokens=TOKENS[0].tolist())
    assert gap.max_diff < 1e-4
    assert wanted.abs().max() > 1


def test_an_entry_declares_what_its_class_computes_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nemotron, which no file knows: LayerNorm with a gain less 1, half of each head turned, no gate, squared ReLU."""
    wanted = save_nemotron(tmp_path / "whole")
    monkeypatch.setitem(MODELS, NEMOTRON.name, NEMOTRON)
    np.testing.assert_allclose(read_logits(tmp_path / "whole", TOKENS[0].tolist()), wanted, atol=1e-5, rtol=1e-5)
    for step in ("fold_norm", "centre_writing", "refactor_attention"):
        more = {"products": "ov"} if step == "refactor_attention" else {}
        edit(tmp_path / "whole", tmp_path / step, {step: {"prove": True, **more}})
        np.testing.assert_allclose(logits(load(tmp_path / step))[0].numpy(), wanted, atol=1e-4, rtol=1e-4)
    folded = load_file(tmp_path / "fold_norm" / "model.safetensors")
    assert not folded["model.layers.0.input_layernorm.weight"].any()
    assert folded["model.layers.0.input_layernorm.bias"].any()


def save_nemotron(folder: Path) -> np.ndarray:
    """A tiny Nemotron; its logits [tokens, words]."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "vocab_size": 91, "max_position_embeddings": 64,
    }  # fmt: skip
    model = transformers.NemotronForCausalLM(transformers.NemotronConfig(**sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn_like(weight) * 0.2
    model.save_pretrained(folder)
    return logits(model)[0].numpy()


def test_without_an_entry_there_is_no_forward_pass(tmp_path: Path) -> None:
    save_under_new_name(tmp_path / "whole")
    with pytest.raises(bs.PlanError, match="model_type 'mymodel', which has no forward pass here"):
        bs.compare_logits(tmp_path / "whole", tmp_path / "whole", tokens=[3, 4])
