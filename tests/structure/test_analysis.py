"""`standard_names`, `fold_lens` and `expert_ranks`, against torch and NumPy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations


def run(inputs: dict[str, Path], out: Path, *steps: Any, alias: str = "model") -> dict[str, torch.Tensor]:
    """Run a plan that writes a single file; its tensors."""
    bs.load({
        "inputs": [f"{name}::{path}" for name, path in inputs.items()], "transforms": list(steps),
        "output": {"path": str(out), "alias": alias},
    }).run(durable=False)  # fmt: skip
    return load_file(out)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-base", "llama", "llama-tied", "gemma2", "mixtral", "gpt_neox", "olmo2"])
def test_every_decoder_has_the_same_names_of_modules(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    found = run({"model": tmp_path / "whole"}, tmp_path / "out.safetensors", {"standard_names": {}})
    layers = {re.sub(r"layers\.\d+\.(\w+)\..*", r"layers.\1", key) for key in found}
    assert {"embed_tokens.weight", "ln_final.weight", "lm_head.weight", "layers.self_attn", "layers.mlp"} <= layers
    assert torch.equal(found["embed_tokens.weight"], model.get_input_embeddings().weight)
    head = model.get_output_embeddings()
    assert torch.equal(found["lm_head.weight"], (head or model.get_input_embeddings()).weight)
    before = load_file(tmp_path / "whole/model.safetensors")
    assert len(found) == len(before) + ("tied" in name or name in ("gpt2", "gpt2-base", "gemma2"))


DECODERS = [
    "gpt2", "gpt2-base", "llama", "llama-tied", "llama-biased", "llama-base", "mistral", "qwen2", "qwen3", "gemma",
    "gemma2", "gemma3", "olmo2", "olmo3", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "gpt_oss",
    "deepseek_v3", "phi3", "gpt_neox",
]  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_standard_names_lead_back_to_each_name_and_byte(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    run({"model": tmp_path / "whole"}, tmp_path / "standard.safetensors", {"standard_names": {}})
    inputs = {"model": tmp_path / "standard.safetensors", "original": tmp_path / "whole"}
    found = run(inputs, tmp_path / "back.safetensors", {"standard_names": {"alias": "model", "like": "original"}})
    before = load_file(tmp_path / "whole/model.safetensors")
    assert found.keys() == before.keys()
    assert all(torch.equal(found[key], value) for key, value in before.items())


def back(folder: Path, *steps: Any) -> dict[str, torch.Tensor]:
    """A tied Llama with standard names, changed by steps, with the names that it had."""
    make("llama-tied", folder / "whole")
    inputs = {"model": folder / "whole", "original": folder / "whole"}
    there, home = {"standard_names": {"alias": "model"}}, {"standard_names": {"alias": "model", "like": "original"}}
    return run(inputs, folder / "out.safetensors", there, *steps, home)


def test_a_layer_that_is_gone_does_not_hinder_the_way_back(tmp_path: Path) -> None:
    found = back(tmp_path, {"delete": {"target": r"model::layers\.0\..*"}})
    assert found
    assert not any(".layers.0." in name for name in found)


def test_a_head_that_is_no_longer_its_table_is_not_removed(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="lm_head"):
        back(tmp_path, {"scale_": {"target": r"model::lm_head\.weight", "by": 2}})


PROBE = {"copy": {"from": r"model::ln_final\.weight", "to": "model::probe.weight"}}


def test_a_tensor_that_the_model_before_did_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"'original' has no tensor whose standard name is 'probe\.weight'"):
        back(tmp_path, PROBE)


@pytest.mark.parametrize(
    "mended",
    [
        {"move": {"from": r"model::probe\.weight", "to": "aside::probe"}},
        {"delete": {"target": r"model::probe\.weight"}},
    ],
)
def test_such_a_tensor_may_be_put_aside_or_deleted(mended: dict[str, Any], tmp_path: Path) -> None:
    found = back(tmp_path, PROBE, {"prefixes": {"mode": "add", "alias": "aside"}}, mended)
    assert found.keys() == load_file(tmp_path / "whole/model.safetensors").keys()


def test_the_model_before_must_be_another_alias(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    with pytest.raises(PlanError, match="is both the model to rename and the one with the names"):
        edit(tmp_path / "whole", tmp_path / "out", {"standard_names": {"like": "model"}})


def test_an_encoder_has_no_standard_names(tmp_path: Path) -> None:
    make("bert", tmp_path / "whole")
    with pytest.raises(PlanError, match="there are no standard names for models of the family bert"):
        edit(tmp_path / "whole", tmp_path / "out", {"standard_names": {}})


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "gemma2", "gpt_neox", "olmo2"])
def test_a_folded_lens_reads_what_the_lens_and_the_head_read(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    lens = {
        f"{i}.{kind}": torch.randn(*shape) for i in range(2) for kind, shape in (("weight", (32, 32)), ("bias", (32,)))
    }
    save_file(lens, tmp_path / "lens.safetensors")
    inputs = {"model": tmp_path / "whole", "lens": tmp_path / "lens.safetensors"}
    found = run(inputs, tmp_path / "out.safetensors", {"fold_lens": {"lens": "lens", "alias": "model"}}, alias="lens")
    x = torch.randn(5, 32)
    base = model.base_model
    norm = next(getattr(base, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(base, n))
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None) or norm.eps
    for i in range(2):
        with torch.no_grad():
            h = x + x @ lens[f"{i}.weight"].T + lens[f"{i}.bias"]
            head = model.get_output_embeddings()
            wanted = head(norm(h))
        y = x @ found[f"{i}.weight"].T + found[f"{i}.bias"]
        y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt()
        made = y @ found["readout.weight"].T + found.get("readout.bias", torch.zeros(()))
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-3)


def test_a_lens_of_an_encoder_is_refused(tmp_path: Path) -> None:
    make("bert", tmp_path / "whole")
    save_file({"0.weight": torch.eye(32), "0.bias": torch.zeros(32)}, tmp_path / "lens.safetensors")
    inputs = {"model": tmp_path / "whole", "lens": tmp_path / "lens.safetensors"}
    with pytest.raises(PlanError, match="it is not known how a bert reads its last layer"):
        run(inputs, tmp_path / "out.safetensors", {"fold_lens": {"lens": "lens", "alias": "model"}}, alias="lens")


@pytest.mark.parametrize("name", ["flex_olmo", "mixtral", "qwen3_moe"])
def test_experts_get_differences_of_the_ranks_that_are_named(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"expert_ranks": {"rank": 5, "ranks": {2: 3}}})
    load(tmp_path / "out")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "out"))
    seen = 0
    for key, value in after.items():
        if (found := re.fullmatch(r"(.+\.experts\.)(\d)(\..+)", key)) is None or found[2] == "0":
            assert torch.equal(value, before[key])
            continue
        public = before[f"{found[1]}0{found[3]}"].numpy().astype(np.float64)
        u, s, v = np.linalg.svd(before[key].numpy() - public, full_matrices=False)
        rank = 3 if found[2] == "2" else 5
        wanted = public + (u[:, :rank] * s[:rank]) @ v[:rank]
        np.testing.assert_allclose(value.numpy(), wanted, atol=2e-3)
        seen += 1
    assert seen == 3 * 3 * 3


def test_experts_of_full_rank_compute_what_they_did(tmp_path: Path) -> None:
    model = make("flex_olmo", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"expert_ranks": {"ranks": {1: 40, 3: 40}, "public": 2}})
    assert_same(logits(load(tmp_path / "out")), logits(model), 1e-4)


def test_experts_in_float64_are_factorized_in_float64(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "whole")
    cast = {"cast_": {"target": r".*experts\..*", "to": "float64"}}
    edit(tmp_path / "whole", tmp_path / "out", cast, {"expert_ranks": {"rank": 40}})
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "out"))
    experts = [name for name in after if re.search(r"\.experts\.\d", name)]
    assert max(float((after[name] - before[name].double()).abs().max()) for name in experts) < 1e-13


@pytest.mark.parametrize(("asked", "why"), [
    ({"ranks": {1: 0}}, "expected numbers of experts and ranks from 1, got '1': 0"),
    ({}, "give rank, ranks or both"),
    ({"ranks": {0: 4}}, "expert 0 is the public one, which stays as it is"),
    ({"ranks": {4: 4}}, "there is no expert 4 of 4"),
    ({"rank": 4, "public": 4}, "there is no expert 4 of 4"),
])  # fmt: skip
def test_experts_that_there_are_not_get_no_rank(asked: Any, why: str, tmp_path: Path) -> None:
    make("mixtral", tmp_path / "whole")
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", {"expert_ranks": asked})


def test_stacked_experts_several_dtypes_and_integers_get_no_ranks(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "whole")
    cast = {"cast_": {"target": r".*layers\.0\..*\.experts\..*", "to": "bfloat16"}}
    with pytest.raises(PlanError, match="experts of 'model' are bfloat16 and float32"):
        edit(tmp_path / "whole", tmp_path / "out", cast, {"expert_ranks": {"rank": 4}})
    whole = {"cast_": {"target": r".*\.experts\..*", "to": "int32"}}
    with pytest.raises(PlanError, match="experts of 'model' are int32"):
        edit(tmp_path / "whole", tmp_path / "out", whole, {"expert_ranks": {"rank": 4}})
    with pytest.raises(PlanError, match="the experts of 'model' are in one tensor"):
        edit(tmp_path / "whole", tmp_path / "out", {"experts": {"names": "stacked"}}, {"expert_ranks": {"rank": 4}})
