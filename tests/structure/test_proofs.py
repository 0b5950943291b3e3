"""`prove: true`: steps that keep the logits prove it, and one that does not keep them is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

P = {"prove": True}


@pytest.mark.parametrize(("name", "steps"), [
    ("llama-tied", [{"untie": P}, {"tie": P}]),
    ("mistral", [{"fuse": P}, {"unfuse": P}]),
    ("mixtral", [{"experts": {"names": "stacked", **P}}, {"experts": {"names": "separate", **P}}]),
    ("qwen3", [{"upcycle": {"experts": 4, "router": "random", **P}}]),
    ("mistral", [{"upcycle": {"experts": 4, "shards": 2, **P}}]),
    ("llama", [{"layers": {"repeat": [1], "scale_copies": 0, **P}}]),
    ("mistral", [{"upcycle": {"experts": 4, "router": "zero"}}, {"expert_prune": {"drop": [1, 3], **P}}]),
])  # fmt: skip
def test_steps_that_keep_the_logits_prove_it(name: str, steps: list[Any], tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", *steps)
    assert_same(logits(load(tmp_path / "out")), logits(model))


@pytest.mark.parametrize(("name", "asked"), [
    ("llama", {"kv_groups": [0]}), ("qwen3", {"heads": {0: [0, 1], 1: [2, 3], 2: [0, 1]}}),
    ("gpt2", {"neurons": [0, 9]}),
    ("mistral", {"kv_groups": 1}), ("mixtral", {"neurons": 0.25}), ("llama", {"neurons": 0.3, "scores": "random"}),
    ("gpt2", {"neurons": 16}), ("qwen3_moe", {"neurons": 5}), ("gemma2", {"kv_groups": 1, "scores": "random"}),
])  # fmt: skip
def test_a_pruned_model_computes_what_it_did_without_what_these_units_add(
    name: str, asked: Any, tmp_path: Path
) -> None:
    make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {**asked, **P}})
    load(tmp_path / "out")


def test_joined_experts_are_proven_by_taking_them_out_again(tmp_path: Path) -> None:
    make("flex_olmo", tmp_path / "whole")
    asked = {"alias": "model", "others": ["other"], "public": 4}
    with pytest.raises(PlanError, match="has 4 experts, and the first 4 are said to be in both"):
        edit(tmp_path / "whole", tmp_path / "out", {"expert_join": asked}, other=tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"expert_join": {**asked, "public": 1, **P}}, other=tmp_path / "whole")
    assert load(tmp_path / "out").config.num_experts == 7


def test_experts_in_two_tensors_are_joined_and_proven_too(tmp_path: Path) -> None:
    make("gpt_oss", tmp_path / "whole")
    asked = {"alias": "model", "others": ["other"], "public": 3, **P}
    edit(tmp_path / "whole", tmp_path / "out", {"expert_join": asked}, other=tmp_path / "whole")
    found, before = (load(tmp_path / f).model.layers[1].mlp for f in ("out", "whole"))
    for name in ("experts.gate_up_proj", "experts.down_proj_bias", "router.bias"):
        old = before.get_parameter(name)
        assert torch.equal(found.get_parameter(name), torch.cat([old, old[3:]]))


def test_experts_of_gpt_oss_have_no_names_of_their_own(tmp_path: Path) -> None:
    make("gpt_oss", tmp_path / "whole")
    for step in ({"experts": {"names": "separate"}}, {"expert_ranks": {"rank": 2}}):
        with pytest.raises(PlanError, match="experts of a gpt_oss have no names of their own"):
            edit(tmp_path / "whole", tmp_path / "out", step)


def test_neurons_drawn_at_random_follow_the_seed_and_differ_from_layer_to_layer(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    for out in ("one", "two"):
        edit(tmp_path / "whole", tmp_path / out, {"prune": {"neurons": 0.5, "scores": "random"}})
    before, one, two = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    kept = []
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        kept.append([n for n in range(40) if any(torch.equal(before[name][n], row) for row in one[name])])
        assert len(kept[-1]) == 20
    assert kept[0] != kept[1] != kept[2]


@pytest.mark.parametrize(("name", "wrong", "why"), [
    ("llama", {"tie": {"replace": True, **P}}, r"tie: assert\.logits: the logits of .* the largest difference is"),
    ("mistral", {"upcycle": {"experts": 4, "drop": 0.5, **P}}, r"upcycle: assert\.logits: the logits of"),
    ("llama", {"upcycle": {"experts": 4, "to": "olmoe", **P}}, r"upcycle: assert\.logits: the logits of"),
    ("mixtral", {"expert_prune": {"drop": [1], **P}}, r"expert_prune: assert\.logits: the logits of"),
    ("llama", {"layers": {"drop": [1], **P}}, r"layers: assert\.logits: the logits of"),
    ("olmo2", {"prune": {"heads": [0, 1], **P}}, r"prune\.prove: a olmo2 normalizes over all heads"),
    ("gpt2", {"prune": {"heads": [1], **P}}, r"prune\.prove: no config says what is left"),
    ("gpt2", {"unfuse": P}, r"unfuse: assert\.logits: the forward pass of this family never reads"),
])  # fmt: skip
def test_a_step_that_changes_the_logits_is_stopped_by_its_proof(
    name: str, wrong: Any, why: str, tmp_path: Path
) -> None:
    make(name, tmp_path / "whole")
    with pytest.raises(PlanError, match=why):
        edit(tmp_path / "whole", tmp_path / "out", wrong)
    assert not (tmp_path / "out").exists()
