"""What recipes compute, against NumPy or against the model itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

import brainsurgery_jax as bs
from brainsurgery_jax.plan.recipes import find_recipe
from tests.checkpoints import normal, read
from tests.merging import oracles
from tests.plans import models, recipe_inputs
from tests.plans.count_lines import ROOT, plan_lines

Arrays = Mapping[str, np.ndarray]


def made(name: str, folder: Path, **more: Any) -> tuple[Mapping[str, Any], Arrays]:
    """The settings that a recipe is run with, and what it writes."""
    settings = {**recipe_inputs.INPUTS[name](folder), **more}
    bs.load(f"recipe:{name}", **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}).run(
        durable=False
    )
    return settings, tensors(settings["out"])


def tensors(path: Any) -> Arrays:
    path = Path(path)
    weights = "adapter_model.safetensors" if (path / "adapter_config.json").exists() else "model.safetensors"
    return read(path / weights if path.is_dir() else path)


def test_task_arithmetic_adds_scaled_task_vectors(tmp_path: Path):
    settings, found = made("merge-task-arithmetic", tmp_path, scale=-0.5)
    base, *others = map(tensors, (settings["base"], *settings["models"]))
    for name, x in found.items():
        wanted = base[name] - 0.5 * sum(other[name] - base[name] for other in others)
        np.testing.assert_allclose(x, wanted, rtol=1e-6, atol=1e-6)


def test_magmax_takes_the_largest_change(tmp_path: Path):
    settings, found = made("merge-magmax", tmp_path)
    base, *others = map(tensors, (settings["base"], *settings["models"]))
    for name, x in found.items():
        wanted = oracles.magmax(base[name], [other[name] for other in others])
        np.testing.assert_allclose(x, wanted, rtol=1e-6, atol=1e-6)


def test_dare_draws_by_the_seed(tmp_path: Path):
    settings, found = made("merge-dare", tmp_path)
    base = tensors(settings["base"])
    assert any(not np.array_equal(found[n], base[n]) for n in base)
    given = {k: v for k, v in settings.items() if k != "out"}
    for seed, same in ((0, True), (1, False)):
        again = str(tmp_path / f"again{seed}.safetensors")
        bs.load("recipe:merge-dare", f"seed={seed}", **given, out=again).run(durable=False)
        assert all(np.array_equal(tensors(again)[n], found[n]) for n in base) is same


def test_magnitude_pruning_zeroes_the_smallest_entries(tmp_path: Path):
    settings, found = made("magnitude-pruning", tmp_path, share=0.25)
    before = tensors(settings["model"])
    pruned = [n for n in before if not np.array_equal(found[n], before[n])]
    assert pruned == [n for n in before if ("attn" in n or "mlp" in n) and n.endswith("weight")]
    for name in pruned:
        x = before[name]
        np.testing.assert_array_equal(found[name], np.where(np.abs(x) < np.quantile(np.abs(x), 0.25), 0, x))


def test_masks_by_magnitude_have_one_threshold_for_all_matrices(tmp_path: Path):
    settings, masks = made("magnitude-masks", tmp_path, share=0.25)
    before = tensors(settings["model"])
    masked = [n for n in before if ("attn" in n or "mlp" in n) and n.endswith("weight")]
    least = np.quantile(np.concatenate([np.abs(before[n]).reshape(-1) for n in masked]), 0.25)
    assert sorted(masks) == sorted(masked)
    for name in masked:
        np.testing.assert_array_equal(masks[name], np.abs(before[name]) >= least)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2)])
def test_masks_of_groups_keep_the_largest_of_each(n: int, m: int, tmp_path: Path):
    settings, masks = made("nm-masks", tmp_path, n=n, m=m)
    before = tensors(settings["model"])
    assert masks
    for name, mask in masks.items():
        groups, kept = np.abs(before[name]).reshape(-1, m), mask.reshape(-1, m).astype(bool)
        assert (kept.sum(-1) == n).all()
        assert (np.where(kept, groups, np.inf).min(-1) >= np.where(kept, 0, groups).max(-1)).all()


def test_a_mask_keeps_its_subnetwork_or_the_rest(tmp_path: Path):
    settings, kept = made("subnetwork-mask", tmp_path)
    _, rest = made("subnetwork-mask", tmp_path, keep=0, out=tmp_path / "rest.safetensors")
    before, masks = tensors(settings["model"]), tensors(settings["masks"])
    for name, x in before.items():
        mask = masks.get(name, np.ones_like(x))
        np.testing.assert_array_equal(kept[name], x * mask)
        np.testing.assert_array_equal(rest[name], x * (1 - mask) if name in masks else x)


def test_a_translator_becomes_one_matrix(tmp_path: Path):
    settings, found = made("tuned-lens", tmp_path)
    before, x = tensors(settings["lens"]), normal((4,), seed=77)
    for i in range(2):
        wanted = x + before[f"{i}.weight"] @ x + before[f"{i}.bias"]
        np.testing.assert_allclose(found[f"{i}.weight"] @ x + found[f"{i}.bias"], wanted, rtol=1e-5, atol=1e-6)


def test_folded_norms_leave_what_gpt2_computes(tmp_path: Path):
    settings, found = made("fold-norms", tmp_path)
    state = {name: torch.from_numpy(np.array(x)) for name, x in found.items()}
    head = state.pop("lm_head.weight")
    whole: Any = GPT2LMHeadModel.from_pretrained(settings["model"]).eval()
    model: Any = GPT2LMHeadModel.from_pretrained(settings["model"]).eval()
    model.transformer.load_state_dict(state)
    with torch.no_grad():
        wanted = whole(models.TOKENS).logits
        logits = model.transformer(models.TOKENS).last_hidden_state @ head.T
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert set(found["h.0.ln_1.weight"]) == {1.0}
    assert abs(found["wte.weight"].mean(axis=1)).max() < 1e-6
    assert not np.allclose(found["h.0.attn.c_attn.weight"], whole.transformer.h[0].attn.c_attn.weight.detach().numpy())


def test_steering_adds_a_vector_of_the_given_length(tmp_path: Path):
    settings, found = made("steering", tmp_path, strength=3)
    before, direction = tensors(settings["model"]), tensors(settings["concept"])["direction"]
    name = f"h.{settings['layer']}.mlp.c_proj.bias"
    wanted = before[name] + 3 * direction / np.linalg.norm(direction)
    np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-6)
    assert all(np.array_equal(found[n], x) for n, x in before.items() if n != name)


def test_a_transplant_takes_the_named_parts_alone(tmp_path: Path):
    settings, found = made("transplant", tmp_path)
    before, donor = tensors(settings["model"]), tensors(settings["donor"])
    assert all(np.array_equal(found[n], (donor if ".1.mlp." in n else before)[n]) for n in before)


def test_every_tensor_of_gpt2_gets_a_name_of_nnterp(tmp_path: Path):
    settings, found = made("nnterp-names", tmp_path)
    before = tensors(settings["model"])
    assert not [n for n in found if not n.startswith(("embed_tokens.", "wpe.", "layers.", "ln_final.", "lm_head."))]
    np.testing.assert_array_equal(found["layers.1.self_attn.c_attn.weight"], before["h.1.attn.c_attn.weight"])
    np.testing.assert_array_equal(found["layers.2.ln_1.bias"], before["h.2.ln_1.bias"])
    assert len(found) == len(before) + 1


def test_joined_experts_keep_their_rows_of_the_router(tmp_path: Path):
    settings, found = made("flexolmo-merge", tmp_path)
    a, b = tensors(settings["a"]), tensors(settings["b"])
    gate, up = "layers.0.mlp.gate.weight", "layers.0.mlp.experts.{}.up_proj.weight"
    np.testing.assert_array_equal(found[gate], np.concatenate([a[gate], b[gate][1:]]))
    for expert, source in enumerate((a[up.format(0)], a[up.format(1)], b[up.format(1)])):
        np.testing.assert_array_equal(found[up.format(expert)], source)


def test_an_extracted_adapter_holds_the_best_factors_of_every_change(tmp_path: Path):
    settings, _ = made("lora-extract", tmp_path)
    found = load_file(settings["out"] / "adapter_model.safetensors")
    base, tuned = (load_file(settings[key] / "model.safetensors") for key in ("base", "tuned"))
    module = "model.layers.1.mlp.up_proj"
    a, b = (found[f"base_model.model.{module}.lora_{k}.weight"].double() for k in "AB")
    change = tuned[f"{module}.weight"].double() - base[f"{module}.weight"].double()
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    torch.testing.assert_close(b @ a, u[:, :4] * s[:4] @ v[:4], rtol=1e-4, atol=1e-5)
    config = json.loads((settings["out"] / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 and "up_proj" in config["target_modules"]


def test_an_olmoe_starts_with_the_mlp_of_the_dense_model_in_every_expert(tmp_path: Path):
    settings, _ = made("olmoe", tmp_path)
    base, found = (load_file(settings[key] / "model.safetensors") for key in ("model", "out"))
    for expert in range(3):
        for part in ("gate_proj", "up_proj", "down_proj"):
            name = f"model.layers.1.mlp.experts.{expert}.{part}.weight"
            assert torch.equal(found[name], base[f"model.layers.1.mlp.{part}.weight"])
    assert found["model.layers.1.mlp.gate.weight"].shape[0] == 3
    config = json.loads((settings["out"] / "config.json").read_text())
    assert (config["model_type"], config["num_experts"], config["num_experts_per_tok"]) == ("olmoe", 3, 2)


def test_experts_differ_from_the_public_one_by_their_own_ranks(tmp_path: Path):
    settings, found = made("flexmore", tmp_path)
    before, up = tensors(settings["model"]), "layers.0.mlp.experts.{}.up_proj.weight"
    public = before[up.format(0)]
    for expert, rank in ((1, 1), (2, 1), (3, 3)):
        u, s, v = np.linalg.svd(before[up.format(expert)] - public, full_matrices=False)
        wanted = public + u[:, :rank] * s[:rank] @ v[:rank]
        np.testing.assert_allclose(found[up.format(expert)].astype(np.float32), wanted, rtol=2**-8, atol=1e-5)
    np.testing.assert_array_equal(found[up.format(0)].astype(np.float32), public.astype(found[up.format(0)].dtype))


PAPERS = {
    "task arithmetic": ("2212.04089", "merge-task-arithmetic"), "TIES": ("2306.01708", "merge-ties"),
    "LoRA": ("2106.09685", "lora-extract lora-fold"), "structured pruning": ("1905.10650", "head-pruning"),
    "pruning": ("1506.02626", "magnitude-pruning magnitude-masks"), "EWC": ("1612.00796", "ewc"),
    "continual learning": ("2407.06322", "merge-magmax"), "a survey of merging": ("2408.07666", "merge-dare"),
    "NeuroSurgeon": ("2309.00244", "subnetwork-mask"), "tuned lens": ("2303.08112", "tuned-lens"),
    "TransformerLens": ("TransformerLensOrg/TransformerLens", "fold-norms"), "MergeKit": ("2403.13257", "merge-slerp"),
    "EMMET": ("2403.14236", "emmet"), "Interpreto": ("2512.09730", "steering"), "NNsight": ("2407.14561", "transplant"),
    "nnterp": ("2511.14465", "nnterp-names"), "ROME": ("2202.05262", "rome"), "MEMIT": ("2210.07229", "memit"),
    "a survey of mixtures": ("2407.06204", "moe-upcycle"), "OLMoE": ("2409.02060", "olmoe expert-removal"),
    "FlexOlmo": ("2507.07024", "flexolmo-merge expert-removal"), "FlexMoRE": ("2602.08818", "flexmore"),
    "PHLoRA": ("2509.10971", "phlora-delta lora-extract"),
}  # fmt: skip
"""What the paper on BrainSurgery refers to and what manipulates weights, and the recipes that do it."""


@pytest.mark.parametrize("what", PAPERS)
def test_what_manipulates_weights_has_a_recipe_that_names_its_paper(what: str):
    paper, names = PAPERS[what]
    for name in names.split():
        recipe = find_recipe(name)
        assert paper in " ".join(recipe.about), name
        assert name in recipe_inputs.INPUTS  # it runs in tests/plans/test_recipes.py


@pytest.mark.parametrize(
    ("name", "most"), [("merge_ties", 6), ("rome", 8), ("memit", 10), ("lora_extract", 6), ("wanda", 6)]
)
def test_what_a_paper_describes_takes_few_lines(name: str, most: int):
    assert plan_lines((ROOT / f"plans/{name}.yaml").read_text(encoding="utf-8")) <= most


def test_a_removed_expert_takes_its_row_with_it(tmp_path: Path):
    settings, found = made("expert-removal", tmp_path)
    before, gate = tensors(settings["model"]), "layers.0.mlp.gate.weight"
    np.testing.assert_array_equal(found[gate], before[gate][:1])
    assert {n for n in before if n not in found} == {"layers.0.mlp.experts.1.up_proj.weight"}
