"""`lora_extract` and `lora_resize` of stacked experts: factors that PEFT loads by `target_parameters`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import brainsurgery_jax as bs
from tests.adapters.models import QUIET, extract, merge
from tests.adapters.test_stacked import BOTH, CONFIGS, build

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]
"""PEFT warns of patterns of parameters, and takes them."""

KINDS = pytest.mark.parametrize("kind", CONFIGS)
FIRST = "model.layers.0.mlp.experts."


def tuned(kind: str, folder: Path, *names: str, noise: float = 1e-4) -> Any:
    """A base (`base`), and the model that it becomes (`tuned`) by changes of rank 2 and some noise."""
    model = build(kind, folder)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name.endswith(names):
                low = torch.randn(*x.shape[:-1], 2) @ torch.randn(*x.shape[:-2], 2, x.shape[-1])
                x.add_(low * 0.02 + torch.randn_like(x) * noise)
    (folder / "tuned").mkdir()
    save_file({n: x.clone() for n, x in model.state_dict().items()}, folder / "tuned/model.safetensors")
    model.config.save_pretrained(str(folder / "tuned"))
    return model


def with_adapter(kind: str, folder: Path, adapter: Path) -> Any:
    """The base with an adapter, as PEFT loads it."""
    base = AutoModelForCausalLM.from_config(CONFIGS[kind], torch_dtype=torch.float32).eval()
    base.load_state_dict(load_file(folder / "base/model.safetensors"))
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    found = load_file(adapter / "adapter_model.safetensors")
    assert {n.replace(".default", "") for n in model.state_dict() if "lora_" in n} == found.keys()
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(16).reshape(2, 8)).logits


def config_of(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


def assert_same(found: Any, expected: Any, within: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=within)


CHANGED = {"all": ("q_proj.weight", *BOTH), "one": (BOTH[0],), "of-one-layer": (f"1.{BOTH[1]}",)}


@KINDS
@pytest.mark.parametrize("names", CHANGED.values(), ids=CHANGED)
def test_at_full_rank_peft_makes_the_tuned_experts_of_the_base(kind: str, names: tuple[str, ...], tmp_path: Path):
    model = tuned(kind, tmp_path, *names)
    adapter = extract(tmp_path, rank=24)
    torch.testing.assert_close(logits(with_adapter(kind, tmp_path, adapter)), logits(model), rtol=0, atol=1e-6)


@KINDS
@pytest.mark.parametrize("size", [{"rank": 2}, {"energy": 0.9}, {"budget": 700}, {"rank": 8, "least": 0.02}], ids=str)
def test_folding_back_gives_what_peft_merges(kind: str, size: dict[str, Any], tmp_path: Path):
    tuned(kind, tmp_path, "q_proj.weight", *BOTH)
    adapter = extract(tmp_path, **size)
    expected = with_adapter(kind, tmp_path, adapter).merge_and_unload().state_dict()
    assert_same(merge(tmp_path, "lora", ("lora",)), expected)


@KINDS
def test_each_expert_keeps_the_best_approximation_of_its_change(kind: str, tmp_path: Path):
    tuned(kind, tmp_path, *BOTH)
    made = with_adapter(kind, tmp_path, extract(tmp_path, rank=1)).merge_and_unload().state_dict()
    base, whole = (load_file(tmp_path / f"{of}/model.safetensors") for of in ("base", "tuned"))
    for name in (f"{FIRST}gate_up_proj", f"{FIRST}down_proj"):
        u, s, v = np.linalg.svd((whole[name] - base[name]).double().numpy(), full_matrices=False)
        best = u[..., :1] * s[:, None, :1] @ v[:, :1]
        np.testing.assert_allclose((made[name] - base[name]).numpy(), best, atol=1e-6)


def test_every_expert_keeps_its_share_of_the_energy_and_some_no_rank_more(tmp_path: Path):
    tuned("mixtral", tmp_path, BOTH[0], noise=0.008)
    adapter = extract(tmp_path, energy=0.97)
    base, whole = (load_file(tmp_path / f"{of}/model.safetensors") for of in ("base", "tuned"))
    name, factors = f"{FIRST}gate_up_proj", load_file(adapter / "adapter_model.safetensors")
    rank = len(factors[f"base_model.model.{FIRST}lora_A.weight"]) // 3
    s = np.linalg.svd((whole[name] - base[name]).double().numpy(), compute_uv=False) ** 2
    kept = s.cumsum(1) / s.sum(1, keepdims=True)
    assert (kept[:, rank - 1] >= 0.97).all() and (kept[:, rank - 2] < 0.97).any()


def test_a_budget_counts_the_factors_of_every_expert(tmp_path: Path):
    tuned("gpt_oss", tmp_path, "q_proj.weight", *BOTH, noise=0.01)
    factors = load_file(extract(tmp_path, budget=500) / "adapter_model.safetensors")
    assert 350 < sum(x.numel() for x in factors.values()) <= 500


def test_patterns_name_the_parameters(tmp_path: Path):
    tuned("mixtral", tmp_path, "q_proj.weight", "experts.gate_up_proj", "1.mlp.experts.down_proj", noise=0)
    config = config_of(extract(tmp_path, rank=8, least=1e-5))
    assert config["target_modules"] == ["q_proj"]
    assert config["target_parameters"] == ["gate_up_proj", "layers.1.mlp.experts.down_proj"]


def test_a_class_that_is_not_known_keeps_its_experts_whole(tmp_path: Path):
    tuned("mixtral", tmp_path, "q_proj.weight", *BOTH)
    for folder in ("base", "tuned"):
        path = tmp_path / folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "unheard_of"}))
    config = config_of(extract(tmp_path, rank=2))
    assert config["modules_to_save"] == ["experts"] and "target_parameters" not in config


# --- Another rank -----------------------------------------------------------------------------------------------------


def resize(folder: Path, step: dict[str, Any], tensors: str = "lora") -> Path:
    plan = {
        "inputs": [f"lora::{folder / tensors}"],
        "transforms": [{"lora_resize": {"adapter": "lora", **step}}],
        "output": {"path": str(folder / "small"), "alias": "lora", "format": "peft"},
    }
    bs.load(plan).run(durable=False)
    return folder / "small"


def trained(kind: str, folder: Path, **keys: Any) -> None:
    """A base (`base`), and an adapter (`lora`) with random factors."""
    config = LoraConfig(init_lora_weights=False, target_parameters=BOTH, target_modules=["q_proj"], **keys)
    get_peft_model(build(kind, folder), config).save_pretrained(str(folder / "lora"))


def merged(kind: str, folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    return with_adapter(kind, folder, adapter).merge_and_unload().state_dict()


UNEVEN = {"r": 3, "lora_alpha": 4, "rank_pattern": {"gate_up_proj": 5}, "alpha_pattern": {"down_proj": 2}}


@KINDS
@pytest.mark.parametrize("keys", [UNEVEN, {"r": 4, "lora_alpha": 3, "use_rslora": True}], ids=["patterns", "rslora"])
@pytest.mark.parametrize("step", [{"rank": 6}, {"energy": 1.0}], ids=str)
def test_another_rank_that_is_large_enough_changes_nothing(kind: str, keys: Any, step: Any, tmp_path: Path):
    trained(kind, tmp_path, **keys)
    wanted = merged(kind, tmp_path, tmp_path / "lora")
    assert_same(merged(kind, tmp_path, resize(tmp_path, step)), wanted)


@KINDS
def test_a_smaller_rank_is_the_best_approximation_of_the_product_of_each_expert(kind: str, tmp_path: Path):
    trained(kind, tmp_path, **UNEVEN)
    base = load_file(tmp_path / "base/model.safetensors")
    before, after = (merged(kind, tmp_path, of) for of in (tmp_path / "lora", resize(tmp_path, {"rank": 2})))
    for name in (f"{FIRST}gate_up_proj", f"{FIRST}down_proj"):
        u, s, v = np.linalg.svd((before[name] - base[name]).double().numpy(), full_matrices=False)
        best = u[..., :2] * s[:, None, :2] @ v[:, :2]
        np.testing.assert_allclose((after[name] - base[name]).numpy(), best, atol=1e-5)


def test_factors_of_experts_without_a_config_are_refused(tmp_path: Path):
    trained("mixtral", tmp_path, **UNEVEN)
    with pytest.raises(
        bs.PlanError, match=r"is a factor of stacked experts, and how many these are is not known"
    ) as told:
        resize(tmp_path, {"rank": 2}, "lora/adapter_model.safetensors")
    assert "Open the folder that holds the adapter" in str(told.value)
    resize(tmp_path, {"rank": 2})


def test_ranks_that_do_not_fit_the_factors_are_refused(tmp_path: Path):
    tuned("mixtral", tmp_path, *BOTH)
    adapter = extract(tmp_path, rank=3)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**config_of(adapter), "r": 2}))
    with pytest.raises(bs.PlanError, match=r"which parameter of '.*experts' do '.*' of 'lora' change") as told:
        resize(tmp_path, {"rank": 2})
    assert "Extract the adapter anew with the rank that is wanted" in str(told.value)
    shutil.rmtree(adapter)
    assert config_of(extract(tmp_path, rank=2))["r"] == 2
