"""`fold_norm`, judged by the models that `transformers` makes of what it writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

UNTIED = (
    "llama", "llama-biased", "mistral", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe", "olmoe", "gemma3", "granite",
    "ministral", "qwen2_moe", "deepseek_v3", "gpt_neox",
)  # fmt: skip
READ = (
    "input_layernorm.weight",
    "ln_1.weight",
    "ln_2.weight",
    "ln_f.weight",
    "model.norm.weight",
    "final_layer_norm.weight",
)


@pytest.mark.parametrize("name", [*UNTIED, "gpt2", "llama-tied", "gemma", "gemma2"])
def test_folded_norms_leave_the_logits_what_they_were(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    untie = [] if name in UNTIED else [{"untie": {}}]
    edit(tmp_path / "whole", tmp_path / "out", *untie, {"fold_norm": {"prove": True}})
    found = load(tmp_path / "out")
    assert_same(logits(found), logits(model))
    unit = 0.0 if "gemma" in name else 1.0
    norms = [w for n, w in found.named_parameters() if n.endswith(READ)]
    assert len(norms) > 1
    for weight in norms:
        assert torch.equal(weight, torch.full_like(weight, unit))


def test_the_last_norm_stays_if_that_is_meant(tmp_path: Path) -> None:
    model = make("llama-tied", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"fold_norm": {"final": False, "prove": True}})
    found = load(tmp_path / "out")
    assert_same(logits(found), logits(model))
    assert torch.equal(found.model.norm.weight, model.model.norm.weight)


def test_a_fold_that_changes_the_model_is_not_published(tmp_path: Path) -> None:
    make("gpt2", tmp_path / "whole")
    tiny = {"fill_": {"target": r"transformer\.ln_f\.weight::[0]", "mode": "constant", "value": 1e-38}}
    large = {"fill_": {"target": r"transformer\.ln_f\.bias::[0]", "mode": "constant", "value": 10}}
    with pytest.raises(PlanError, match=r"fold_norm: assert\.logits"):
        edit(tmp_path / "whole", tmp_path / "out", {"untie": {}}, tiny, large, {"fold_norm": {"prove": True}})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prove", [False, True])
def test_a_gain_of_zero_which_no_bias_passes_is_refused(prove: bool, tmp_path: Path) -> None:
    make("gpt2", tmp_path / "whole")
    zero = {"fill_": {"target": r"transformer\.ln_f\.weight::[0]", "mode": "constant", "value": 0}}
    with pytest.raises(PlanError, match=r"fold_norm: assert\.holds: 'g != 0' does not hold"):
        edit(tmp_path / "whole", tmp_path / "out", {"untie": {}}, zero, {"fold_norm": {"prove": prove}})
    assert not (tmp_path / "out").exists()


def test_norms_that_do_not_fold_are_refused(tmp_path: Path) -> None:
    for name, why in (("olmo2", "norms of a olmo2 do not fold"), ("llama-tied", "has no 'lm_head.weight' to go into")):
        make(name, tmp_path / name)
        with pytest.raises(PlanError, match=why):
            edit(tmp_path / name, tmp_path / "out", {"fold_norm": {}})


@pytest.mark.parametrize(
    ("name", "step", "why"),
    [
        ("gpt2", {"unfuse": {}}, "has no 'transformer.h.*.attn.c_attn.weight', which reads a norm"),
        ("gpt_oss", {}, "are in one tensor"),
    ],
)
def test_a_norm_whose_readers_are_not_there_is_refused(
    name: str, step: dict[str, Any], why: str, tmp_path: Path
) -> None:
    make(name, tmp_path / "whole", tie_word_embeddings=False)
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", *([step] if step else []), {"fold_norm": {}})
