"""Configurations of mergekit-moe with random routers become plans that give a Mixtral of the models' MLPs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.importers.mergekit import plan_of
from tests.checkpoints import normal, read, write
from tests.hints.calls import hint_of
from tests.importers.merges import LAYERS, WIDTH, Tensors, put_config, put_models

EXPERTS = [{"source_model": m, "positive_prompts": [""]} for m in "bcb"]
MOE: dict[str, Any] = {"base_model": "a", "gate_mode": "random", "experts": EXPERTS}
MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def made(folder: Path, text: str) -> Tensors:
    (folder / "plan.yaml").write_text(text)
    bs.load("plan.yaml").run(durable=False)
    return read(folder / "merged" / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_are_the_mlps_and_the_rest_is_the_base(here: Path, dtype: str):
    held = put_models(here, dtype)
    found = made(here, plan_of(put_config(here, {**MOE, "experts_per_token": 1}).name))
    expected = {name: x for name, x in held["a"].items() if ".mlp." not in name}
    for i in range(LAYERS):
        for e, letter in enumerate("bcb"):
            for short, long in MATRICES.items():
                name = f"model.layers.{i}.block_sparse_moe.experts.{e}.{short}.weight"
                expected[name] = held[letter][f"model.layers.{i}.mlp.{long}.weight"]
    routers = {f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(LAYERS)}
    assert set(found) == set(expected) | routers
    for name, x in expected.items():
        assert found[name].astype(np.float64).tolist() == x.tolist()
    assert all(found[name].shape == (3, WIDTH) and found[name].astype(np.float64).std() > 0 for name in routers)
    says = json.loads((here / "merged" / "config.json").read_text())
    assert (says["model_type"], says["num_local_experts"], says["num_experts_per_tok"]) == ("mixtral", 3, 1)


def test_routers_are_drawn_as_mergekit_draws_them(here: Path):
    put_models(here)
    found = made(here, plan_of(put_config(here, MOE).name))
    drawn = np.concatenate([x.ravel() for name, x in found.items() if name.endswith(".gate.weight")])
    assert 0.8 < drawn.astype(np.float64).std() < 1.2  # a normal distribution of deviation 1, of 192 numbers


def test_transformers_loads_the_result(here: Path):
    import torch
    from transformers import MixtralForCausalLM

    put_models(here)
    made(here, plan_of(put_config(here, {**MOE, "dtype": "bfloat16"}).name))
    model, said = cast("tuple[Any, Any]", MixtralForCausalLM.from_pretrained("merged", output_loading_info=True))
    assert not (said["missing_keys"] or said["unexpected_keys"] or said["mismatched_keys"])
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["hidden", "cheap_embed", None])
def test_routers_of_prompts_are_given_by_hand(here: Path, mode: str | None):
    put_models(here)
    config = {key: value for key, value in MOE.items() if key != "gate_mode"} | ({"gate_mode": mode} if mode else {})
    hint_of(lambda: plan_of(put_config(here, config).name), "write `router: r` in the step `upcycle`")
    routers = {f"model.layers.{i}.block_sparse_moe.gate.weight": normal((3, WIDTH), seed=i) for i in range(LAYERS)}
    write(here / "routers.safetensors", routers)
    text = plan_of(put_config(here, MOE).name).replace("per_token: 2", "per_token: 2, router: r")
    found = made(here, text.replace("inputs:\n", "inputs:\n  - r::routers.safetensors\n"))
    assert all(found[name].tolist() == x.tolist() for name, x in routers.items())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a key": ({**MOE, "shared_experts": []}, "the key 'shared_experts' of a mergekit-moe configuration cannot"),
    "one expert": ({**MOE, "experts": EXPERTS[:1]}, "expected a list of two models or more"),
    "no mapping": ({**MOE, "experts": ["a", "b"]}, "experts: expected a mapping, got the text 'a'"),
    "no model": ({**MOE, "experts": [{}, {}]}, "source_model: expected the path of a model, got nothing"),
    "noise": ({**MOE, "experts": [{"source_model": "b", "noise_scale": 1}, *EXPERTS]}, "the key 'noise_scale' of a"),
    "too many": ({**MOE, "experts_per_token": 4}, "experts_per_token: expected a number from 1 to 3"),
    "hub": ({**MOE, "base_model": "org/one"}, "'org/one' is not on this machine, .* depends on its config.json"),
    "dtype": ({**MOE, "dtype": "int8"}, "dtype: expected one of float16, bfloat16, float32, got the text 'int8'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_imported_is_an_error_that_names_it(here: Path, kind: str):
    put_models(here)
    config, message = REFUSED[kind]
    with pytest.raises(bs.PlanError, match=message):
        plan_of(put_config(here, config).name)


def test_a_base_of_another_family_is_a_plan_by_hand(here: Path):
    held = put_models(here, model_type="qwen3")
    hint_of(lambda: plan_of(put_config(here, MOE).name), "a step `upcycle`, and `assign` for the matrices of each")
    steps: list[Any] = [{"upcycle": {"experts": 2, "per_token": 1, "alias": "a"}}]
    for m in MATRICES.values():
        to = rf"a::model.layers.\1.mlp.experts.1.{m}.weight"
        steps.append({"assign": {"from": rf"b::model\.layers\.(\d+)\.mlp\.{m}\.weight", "to": to}})
    bs.load({"inputs": ["a::a", "b::b"], "transforms": steps, "output": {"path": "out/", "alias": "a"}}).run()
    found = read(here / "out" / "model.safetensors")["model.layers.2.mlp.experts.1.up_proj.weight"]
    assert found.tolist() == held["b"]["model.layers.2.mlp.up_proj.weight"].tolist()


def test_keys_that_are_supported_are_listed(here: Path):
    put_models(here)
    hint = hint_of(lambda: plan_of(put_config(here, {**MOE, "top": 1}).name), "Supported: base_model, experts, ")
    assert "experts_per_token" in hint
    assert "per_token: 1" in plan_of(put_config(here, {**MOE, "experts_per_token": 1}).name)
