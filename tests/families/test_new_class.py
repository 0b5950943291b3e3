"""A class with the names of a known family is one entry: every step, `check` and the forward pass then know it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.families.model import ModelType
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, PRE_NORMS, QK_NORMS
from tests.structure.judged import TOKENS, edit, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

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


def test_without_an_entry_there_is_no_forward_pass(tmp_path: Path) -> None:
    save_under_new_name(tmp_path / "whole")
    with pytest.raises(bs.PlanError, match="model_type 'mymodel', which has no forward pass here"):
        bs.compare_logits(tmp_path / "whole", tmp_path / "whole", tokens=[3, 4])
