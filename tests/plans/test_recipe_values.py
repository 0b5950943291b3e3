"""What recipes compute, against NumPy or against the model itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, OlmoeForCausalLM

import brainsurgery_jax as bs
from brainsurgery_jax.plan.recipes import find_recipe
from tests.checkpoints import normal, read, write
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


@pytest.mark.parametrize("expert", [0, 1, 3])
def test_a_removed_expert_takes_its_row_and_those_behind_it_keep_theirs(expert: int, tmp_path: Path):
    settings, _ = made("expert-removal", tmp_path, expert=expert)
    whole = OlmoeForCausalLM.from_pretrained(settings["model"]).state_dict()
    loaded: Any = OlmoeForCausalLM.from_pretrained(settings["out"], output_loading_info=True)
    fewer, told = loaded
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    kept = [n for n in range(4) if n != expert]
    for name, x in fewer.state_dict().items():
        wanted = whole[name][kept] if ".mlp.experts." in name or ".mlp.gate." in name else whole[name]
        assert torch.equal(x, wanted), name


# --- What recipes refuse ----------------------------------------------------------------------------------------------


def spoilt(name: str, folder: Path, alias: str, spoil: Callable[[dict[str, np.ndarray]], object], **more: Any) -> None:
    """Run a recipe with one of its inputs spoilt; nothing may be written."""
    settings = {**recipe_inputs.INPUTS[name](folder), **more}
    changed = {n: x.copy() for n, x in tensors(settings[alias]).items()}
    spoil(changed)
    settings[alias] = write(folder / "spoilt.safetensors", changed)
    bs.load(f"recipe:{name}", **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}).run(
        durable=False
    )


def refused(name: str, folder: Path, message: str, **more: Any) -> None:
    """Run a recipe that must be refused before it writes anything."""
    with pytest.raises(bs.PlanError, match=message):
        made(name, folder, **more)
    assert not (folder / "out.safetensors").exists()


def _with_nan(held: dict[str, np.ndarray]) -> None:
    held["h.1.mlp.c_fc.weight"][2, 3] = np.nan


@pytest.mark.parametrize("name", ["magnitude-masks", "magnitude-pruning", "nm-masks"])
def test_what_is_ranked_must_be_finite(name: str, tmp_path: Path):
    with pytest.raises(
        bs.PlanError, match=r"'h\.1\.mlp\.c_fc\.weight' has 1 value that is not finite, first at \[2, 3\]"
    ):
        spoilt(name, tmp_path, "model", _with_nan)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["magnitude-masks", "magnitude-pruning", "nm-masks"])
def test_norms_of_queries_and_keys_are_no_matrices_to_prune(name: str, tmp_path: Path):
    path = models.dense(tmp_path)
    before = tensors(path)
    _, found = made(name, tmp_path, model=path)
    norms = [n for n in before if "norm" in n]
    assert [n for n in norms if "self_attn" in n]
    if name == "magnitude-pruning":
        assert all(np.array_equal(found[n], before[n]) for n in norms)
    else:
        assert sorted(found) == [n for n in sorted(before) if ("self_attn" in n or "mlp" in n) and n not in norms]


@pytest.mark.parametrize("inner", [["block_sparse_moe.experts.1.w1", "block_sparse_moe.experts.1.w2"], ["fc1", "fc2"]])
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_the_mlp_of_mixtral_and_of_opt_is_pruned_as_its_attention(name: str, inner: list[str], tmp_path: Path):
    layer = "model.layers.0.{}".format
    weights = [layer("self_attn.o_proj"), *map(layer, inner)]
    held = {f"{w}.weight": normal((8, 8), seed=at) for at, w in enumerate(weights)}
    held |= {layer("block_sparse_moe.gate.weight"): normal((2, 8)), "lm_head.weight": normal((9, 8))}
    given: dict[str, np.ndarray] = {w: np.ones(8, np.float32) for w in weights}
    if name == "sparsegpt":
        given = {w: np.eye(8, dtype=np.float32) for w in weights}
    alias = "norms" if name == "wanda" else "hessians"
    settings = {"model": write(tmp_path / "model.safetensors", held), "out": str(tmp_path / "out.safetensors"),
                alias: write(tmp_path / "given.safetensors", given)}  # fmt: skip
    bs.load(f"recipe:{name}", **{key: str(value) for key, value in settings.items()}).run(durable=False)
    found = tensors(settings["out"])
    assert {n: np.mean(x == 0) for n, x in found.items()} == {n: 0.5 if n[:-7] in weights else 0.0 for n in held}


@pytest.mark.parametrize("other", [
    "self_attn.o_proj.bias", "post_feedforward_layernorm.weight", "post_self_attn_layernorm.weight",
    "linear_attn.out_proj.weight", "block_sparse_moe.experts.0.w2.weight", "mlp.experts.down_proj",
])  # fmt: skip
def test_what_else_writes_to_the_stream_is_not_abliterated_and_so_refused(other: str, tmp_path: Path):
    settings = recipe_inputs.INPUTS["abliteration"](tmp_path)
    held = {**tensors(settings["model"]), f"model.layers.0.{other}": normal((4, 4))}
    changed = {**settings, "model": write(tmp_path / "other.safetensors", held)}
    with pytest.raises(bs.PlanError, match=f"model.layers.0.{other}"):
        bs.load("recipe:abliteration", **{k: str(v) for k, v in changed.items()}).run(durable=False)


def test_experts_with_the_names_of_llamas_are_abliterated(tmp_path: Path):
    direction = write(tmp_path / "r.safetensors", {"r": normal((models.WIDTH,), seed=3)})
    settings = {"model": models.olmoe(tmp_path), "direction": direction, "out": tmp_path / "out"}
    bs.load("recipe:abliteration", **{k: str(v) for k, v in settings.items()}).run(durable=False)
    r = read(direction)["r"]
    for name, x in tensors(tmp_path / "out").items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert np.linalg.norm(r @ x) < 1e-4 * np.linalg.norm(r) * np.linalg.norm(x)


def test_biases_of_neurons_that_are_not_matched_are_refused(tmp_path: Path):
    settings = recipe_inputs.INPUTS["rebasin"](tmp_path)
    held = {**tensors(settings["b"]), "model.layers.0.mlp.up_proj.bias": normal((4,))}
    changed = {**settings, "b": write(tmp_path / "biased.safetensors", held)}
    with pytest.raises(bs.PlanError, match=r"'model\.layers\.0\.mlp\.up_proj\.bias' exists"):
        bs.load("recipe:rebasin", **{k: str(v) for k, v in changed.items()}).run(durable=False)


@pytest.mark.parametrize("shape", [(1,), ()])
def test_a_direction_of_another_length_is_refused(shape: tuple[int, ...], tmp_path: Path):
    settings = recipe_inputs.INPUTS["steering"](tmp_path)
    settings = {**settings, "concept": write(tmp_path / "other.safetensors", {"direction": np.ones(shape, np.float32)})}
    with pytest.raises(bs.PlanError):
        bs.load("recipe:steering", **{k: str(v) for k, v in settings.items()}).run(durable=False)


OF_FAMILIES = {
    "model.layers.0.block_sparse_moe.experts.1.w2.weight": True, "model.layers.0.block_sparse_moe.gate.weight": False,
    "gpt_neox.layers.0.attention.dense.weight": True, "model.decoder.layers.0.fc1.weight": True,
    "bert.encoder.layer.0.attention.output.LayerNorm.weight": False, "model.layers.0.mlp.gate_proj.weight": True,
    "bert.encoder.layer.0.output.dense.weight": True, "bert.encoder.layer.0.intermediate.dense.weight": True,
    "model.layers.0.self_attn.q_norm.weight": False, "model.layers.0.mlp.shared_expert_gate.weight": False,
    "lm_head.weight": False, "model.embed_tokens.weight": False, "model.layers.0.input_layernorm.weight": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["magnitude-masks", "magnitude-pruning", "nm-masks"])
def test_the_matrices_of_many_families_are_pruned_and_nothing_else(name: str, tmp_path: Path):
    held = {n: normal((4, 4), seed=at) for at, n in enumerate(OF_FAMILIES)}
    _, found = made(name, tmp_path, model=write(tmp_path / "many.safetensors", held))
    changed = [n for n in OF_FAMILIES if n in found and not np.array_equal(found[n], held[n])]
    assert changed == [n for n, is_matrix in OF_FAMILIES.items() if is_matrix]


def test_a_share_of_one_leaves_nothing(tmp_path: Path):
    _, pruned = made("magnitude-pruning", tmp_path, share=1)
    _, masks = made("magnitude-masks", tmp_path, share=1, out=tmp_path / "masks.safetensors")
    assert masks
    assert not any(x.any() for n, x in pruned.items() if n in masks)
    assert not any(x.any() for x in masks.values())


@pytest.mark.parametrize(("n", "m"), [(6, 4), (-1, 4)])
def test_a_group_cannot_keep_more_than_it_has(n: int, m: int, tmp_path: Path):
    refused("nm-masks", tmp_path, "does not hold", n=n, m=m)


def test_a_mask_without_a_weight_is_refused(tmp_path: Path):
    with pytest.raises(bs.PlanError, match=r"there is no 'x\.h\.1\.mlp\.c_fc\.weight' in 'model'"):
        spoilt("subnetwork-mask", tmp_path, "masks", lambda held: held.update(
            {"x.h.1.mlp.c_fc.weight": held.pop("h.1.mlp.c_fc.weight")}))  # fmt: skip
    assert not (tmp_path / "out.safetensors").exists()


def test_a_mask_of_other_values_than_zero_and_one_is_refused(tmp_path: Path):
    with pytest.raises(bs.PlanError, match=r"does not hold for 'h\.1\.mlp\.c_fc\.weight'"):
        spoilt("subnetwork-mask", tmp_path, "masks", lambda held: held["h.1.mlp.c_fc.weight"].fill(0.5))


def test_a_mask_of_another_shape_than_its_weight_is_refused(tmp_path: Path):
    def shorten(held: dict[str, np.ndarray]) -> None:
        held["h.1.mlp.c_fc.weight"] = held["h.1.mlp.c_fc.weight"][0]

    with pytest.raises(bs.PlanError, match="cannot reshape"):
        spoilt("subnetwork-mask", tmp_path, "masks", shorten)


def test_masks_keep_what_they_select_or_the_rest_and_nothing_else(tmp_path: Path):
    refused("subnetwork-mask", tmp_path, "does not hold", keep=2)


def test_memit_edits_all_five_layers_or_none(tmp_path: Path):
    def shorten(held: dict[str, np.ndarray]) -> None:
        for n in range(6, 9):
            del held[f"h.{n}.mlp.c_proj.weight"]

    with pytest.raises(bs.PlanError, match=r"3 tensors match .* not 5"):
        spoilt("memit", tmp_path, "model", shorten)


@pytest.mark.parametrize("rows", [{"first": 2, "last": 6}, {"first": 0, "last": 8}, {"first": 12, "last": 18}])
def test_rows_that_are_not_those_of_one_head_are_refused(rows: Mapping[str, int], tmp_path: Path):
    refused("surgery-validated", tmp_path, "does not hold", **rows)


def test_another_number_of_heads_than_that_of_the_config_is_refused(tmp_path: Path):
    settings = recipe_inputs.INPUTS["surgery-validated"](tmp_path)
    (Path(settings["model"]).parent / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 2}))
    with pytest.raises(bs.PlanError, match="the assert inside it holds, and should not"):
        bs.load(
            "recipe:surgery-validated", **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
        ).run(durable=False)


def test_models_that_differ_beside_their_experts_are_not_joined(tmp_path: Path):
    settings = dict(_joined_with(tmp_path, "layers.0.attn.weight", 1, 2))
    with pytest.raises(bs.PlanError, match=r"'layers\.0\.attn\.weight'"):
        bs.load("recipe:flexolmo-merge", **settings).run(durable=False)


def _joined_with(folder: Path, name: str, *seeds: int) -> Iterator[tuple[str, str]]:
    """The settings of `flexolmo-merge`, with a tensor more in each model."""
    for (key, path), seed in zip(recipe_inputs.INPUTS["flexolmo-merge"](folder).items(), (*seeds, None), strict=True):
        if seed is not None:
            write(path / "model.safetensors", {**tensors(path), name: normal((4, 4), seed=seed)})
        yield key, str(path)


def test_a_model_of_three_experts_is_not_joined(tmp_path: Path):
    settings = dict(recipe_inputs.INPUTS["flexolmo-merge"](tmp_path))
    more = {**tensors(settings["b"]), "layers.0.mlp.experts.2.up_proj.weight": normal((6, 4))}
    write(settings["b"] / "model.safetensors", more)
    with pytest.raises(bs.PlanError, match=r"names differ, only on the right: 'layers\.0\.mlp\.experts\.2\."):
        bs.load("recipe:flexolmo-merge", **{k: str(v) for k, v in settings.items()}).run(durable=False)


def test_all_experts_may_need_little(tmp_path: Path):
    settings, found = made("flexmore", tmp_path, small=r"\d+")
    before, up = tensors(settings["model"]), "layers.0.mlp.experts.{}.up_proj.weight"
    for expert in (1, 2, 3):
        u, s, v = np.linalg.svd(before[up.format(expert)] - before[up.format(0)], full_matrices=False)
        wanted = before[up.format(0)] + u[:, :1] * s[:1] @ v[:1]
        np.testing.assert_allclose(found[up.format(expert)].astype(np.float32), wanted, rtol=2**-8, atol=1e-5)


def test_gpt2_of_any_width_computes_what_it_did_after_its_values_were_rescaled(tmp_path: Path):
    torch.manual_seed(4)
    before = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=24, n_layer=2, n_head=3)).eval()
    before.transformer.save_pretrained(tmp_path / "gpt2")
    out = tmp_path / "out.safetensors"
    bs.load("recipe:bulk-regex", model=str(tmp_path / "gpt2/model.safetensors"), out=str(out)).run(durable=False)
    after = GPT2LMHeadModel(before.config).eval()
    after.transformer.load_state_dict(load_file(out))
    with torch.no_grad():
        assert torch.equal(after(models.TOKENS).logits, before(models.TOKENS).logits)
    name = "transformer.h.1.attn.c_proj.weight"
    assert not torch.equal(after.state_dict()[name], before.state_dict()[name])
