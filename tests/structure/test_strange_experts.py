"""Experts of classes that are not known: the message says what a step has to say of them, and that is enough."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import brainsurgery_jax as bs
from tests.structure.judged import edit, save_random

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
                         "num_key_value_heads": 4, "intermediate_size": 24, "moe_intermediate_size": 8,
                         "max_position_embeddings": 64}  # fmt: skip
ROUTED: dict[str, Any] = {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                          "n_shared_experts": 1, "first_k_dense_replace": 1}  # fmt: skip
LATENT: dict[str, Any] = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                          "v_head_dim": 4}  # fmt: skip
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepseekV2": ("n_routed_experts", ROUTED | LATENT),
    "Dots1": ("n_routed_experts", ROUTED),
    "Glm4Moe": ("n_routed_experts", ROUTED),
    "Ernie4_5_Moe": ("moe_num_experts", {"moe_num_experts": 6, "moe_k": 2, "moe_num_shared_experts": 1,
                                         "moe_layer_start_index": 1, "moe_layer_end_index": 2}),
}  # fmt: skip


def make(name: str, folder: Path) -> None:
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(**SIZES, **CLASSES[name][1])
    save_random(getattr(transformers, f"{name}ForCausalLM")(config), folder)


def family_of(text: str) -> Any:
    """What the message says about experts."""
    found = re.search(r"`family: (\{.*\})`", text)
    assert found is not None, text
    return json.loads(found[1])


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_message_says_of_experts_is_all_that_the_step_needs(name: str, tmp_path: Path):
    key, _ = CLASSES[name]
    make(name, tmp_path / "model")
    with pytest.raises(bs.PlanError, match=r"how experts of the model_type .* are named is not known") as told:
        edit(tmp_path / "model", tmp_path / "out", {"expert_prune": {"drop": [1]}})
    edit(tmp_path / "model", tmp_path / "out", {"expert_prune": {"drop": [1], "family": family_of(str(told.value))}})
    made, source = bs.open(tmp_path / "out"), bs.open(tmp_path / "model")
    dropped = {name for name in source if name not in made}
    assert dropped == {name for name in source if ".experts.5." in name}
    for name_, x in made.items():
        moved = re.sub(r"experts\.([1-4])\.", lambda m: f"experts.{int(m[1]) + 1}.", name_)
        wanted = source[moved]
        if x.shape != wanted.shape:
            axis = wanted.shape.index(6)
            wanted = wanted.take([0, 2, 3, 4, 5], axis=axis)
        assert (x == wanted).all(), name_
    again, info = getattr(transformers, f"{name}ForCausalLM").from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert getattr(again.config, key) == 5
    assert again(torch.arange(9)[None]).logits.isfinite().all()


@pytest.mark.parametrize("name", ["MiniMax", "GraniteMoe"])
def test_experts_whose_names_do_not_show_their_parts_are_to_be_described(name: str, tmp_path: Path):
    config = getattr(transformers, f"{name}Config")(**SIZES, num_local_experts=6, num_experts_per_tok=2)
    save_random(getattr(transformers, f"{name}ForCausalLM")(config), tmp_path / "model")
    with pytest.raises(bs.PlanError, match=rf"model_type {name.lower()} .*\n.*by its key `family`\.$"):
        edit(tmp_path / "model", tmp_path / "out", {"expert_prune": {"drop": [1]}})
