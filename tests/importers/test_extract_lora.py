"""Command lines of mergekit-extract-lora become plans that write an adapter of the best approximation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.importers.mergekit import plan_of
from tests.checkpoints import normal, read, write
from tests.hints.calls import hint_of
from tests.importers.merges import INNER, WIDTH, put_models

WHOLE = "mergekit-extract-lora --model b --base-model a --out-path lora"


def extracted(folder: Path, command: str) -> dict[str, np.ndarray]:
    (folder / "plan.yaml").write_text(plan_of(command))
    bs.load("plan.yaml").run(durable=False)
    return read(folder / "lora" / "adapter_model.safetensors")


@pytest.mark.parametrize("rank", ["--max-rank 3", "--max-rank=3"])
def test_each_product_is_the_best_of_its_rank(here: Path, rank: str):
    held = put_models(here)
    found = extracted(here, f"{WHOLE} {rank} --no-lazy-unpickle")
    for name in ("model.layers.1.mlp.up_proj", "model.layers.3.self_attn.o_proj"):
        left, right = (found[f"base_model.model.{name}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        change = held["b"][f"{name}.weight"] - held["a"][f"{name}.weight"]
        u, s, v = np.linalg.svd(change, full_matrices=False)
        assert left.shape[0] == 3
        np.testing.assert_allclose(right @ left, u[:, :3] * s[:3] @ v[:3], atol=2e-4)


def test_without_a_rank_it_is_128(here: Path):
    put_models(here)
    text = plan_of(f"{WHOLE} --cuda --embed-lora --no-distribute-scale")
    assert "lora_extract: {base: base, tuned: tuned, to: adapter, rank: 128}" in text
    assert "# --cuda is ignored.\n# --no-distribute-scale is ignored.\n" in text
    assert "--embed-lora" not in text


def test_a_rank_that_no_matrix_has_gives_all_of_the_change(here: Path):
    held = put_models(here)
    found = extracted(here, WHOLE)
    name = "model.layers.1.mlp.down_proj"
    down, up = (found[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    assert len(down) == min(INNER, WIDTH)
    np.testing.assert_allclose(up @ down, held["b"][f"{name}.weight"] - held["a"][f"{name}.weight"], atol=1e-4)


def test_a_model_of_the_hub_comes_with_how_to_fetch_it(here: Path):
    put_models(here)
    text = plan_of(WHOLE.replace("--model b", "--model org/b"))
    assert "  - tuned::org/b  # hf download org/b --local-dir org/b\n" in text


REFUSED = {
    "misspelt": (WHOLE.replace("--out-path", "--out-pth"), "'--out-pth' cannot be imported. Did you mean"),
    "an open quote": (f"{WHOLE} 'x", "a quotation mark is not closed"),
    "no rank": (f"{WHOLE} --max-rank many", "--max-rank: expected a positive number, got 'many'"),
    "rank 0": (f"{WHOLE} --max-rank 0", "--max-rank: expected a positive number, got '0'"),
    "no model": (WHOLE.replace("--model b", "--model x"), "there is no model at 'x'"),
}


TABLES = {"model.embed_tokens", "lm_head"}
CHOICES = {
    "one": ("-i up_proj", lambda module: "up_proj" in module),
    "all but some": ("-e layers.0 -e=down", lambda module: "layers.0" not in module and "down" not in module),
    "some but some": ("--include-regex mlp --exclude-regex=down", lambda m: "mlp" in m and "down" not in m),
    "in any case": ("-i '(?i)UP_PROJ'", lambda module: "up_proj" in module),
    "the last word of tensors is of no module": ("-i weight", lambda module: False),
    "a dollar among characters": ("-i '[$]x|o_proj$'", lambda module: module.endswith("o_proj")),
    "by both ends": (
        r"-i '^model\.layers\.1|o_proj$'",
        lambda m: m.startswith("model.layers.1") or m.endswith("o_proj"),
    ),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_modules_are_chosen_by_regular_expressions_and_tables_always(here: Path, kind: str):
    held = put_models(here)
    switches, chosen = CHOICES[kind]
    found = extracted(here, f"{WHOLE} --max-rank 2 --device cpu -j 2 --no-quiet {switches}")
    modules = {name.removeprefix("base_model.model.").split(".lora_")[0].removesuffix(".weight") for name in found}
    known = {name.removesuffix(".weight") for name in held["a"]}
    assert modules == {module for module in known if chosen(module) or module in TABLES}
    assert "# --device is ignored.\n# --num-threads is ignored.\n" in (here / "plan.yaml").read_text()


def test_a_broken_expression_is_corrected(here: Path):
    put_models(here)
    says = "it is searched in the names of modules, such as `model.layers.0.mlp.up_proj`."
    hint = hint_of(lambda: plan_of(f"{WHOLE} -i '('"), says)
    assert "up_proj" in plan_of(f"{WHOLE} -i {hint.split('`')[1]}")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_imported_is_an_error_that_names_it(here: Path, kind: str):
    put_models(here)
    command, message = REFUSED[kind]
    with pytest.raises(bs.PlanError, match=message):
        plan_of(command)


def test_what_is_missing_is_added(here: Path):
    put_models(here)
    hint = hint_of(lambda: plan_of(WHOLE.replace(" --base-model a", "")), "Add `--base-model PATH`.")
    added = hint.split("`")[1].replace("PATH", "a")
    assert plan_of(WHOLE.replace(" --base-model a", "") + f" {added}") == plan_of(WHOLE)


def test_a_value_follows_its_option(here: Path):
    put_models(here)
    hint = hint_of(lambda: plan_of(f"{WHOLE} --max-rank"), "Write `--max-rank=VALUE`.")
    assert "rank: 7}" in plan_of(f"{WHOLE} {hint.split('`')[1].replace('VALUE', '7')}")


def test_tensors_are_chosen_in_the_plan(here: Path):
    put_models(here)
    says = "leave it out, and write `of: PATTERN` into the step `lora_extract` of the plan."
    hint_of(lambda: plan_of(f"{WHOLE} --skip-undecomposable"), says)
    text = plan_of(f"{WHOLE} --max-rank=3").replace("rank: 3", "rank: 3, of: 'base::.*up_proj.*'")
    (here / "plan.yaml").write_text(text)
    bs.load("plan.yaml").run(durable=False)
    assert all("up_proj" in name for name in read(here / "lora" / "adapter_model.safetensors"))


def test_singular_values_up_to_a_bound_are_left_out(here: Path):
    held = put_models(here)
    name = "model.layers.0.mlp.up_proj.weight"
    left, right = normal((INNER, 2), seed=1), normal((2, WIDTH), seed=2)
    changed = {n: x.astype(np.float32) for n, x in held["a"].items()}
    changed[name] = changed[name] + left @ right
    write(here / "b" / "model.safetensors", changed, {"format": "pt"})
    found = extracted(here, f"{WHOLE} --sv-epsilon 0.01")
    down, up = (found[f"base_model.model.model.layers.0.mlp.up_proj.lora_{x}.weight"] for x in "AB")
    assert len(found) == 2
    assert len(down) == 2
    np.testing.assert_allclose(up @ down, left @ right, atol=1e-4)


def test_modules_that_are_to_be_saved_are_kept_whole(here: Path):
    held = put_models(here)
    found = extracted(here, f"{WHOLE} --max-rank 2 --save-module up_proj --save-module=layers.1.mlp.down_proj")
    whole = {name.removeprefix("base_model.model.") for name in found if ".lora_" not in name and "norm" not in name}
    assert whole == {f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)} | {"model.layers.1.mlp.down_proj.weight"}
    assert all(np.array_equal(found[f"base_model.model.{name}"], held["b"][name]) for name in whole)


@pytest.mark.parametrize("value", ["much", "-1", "nan"])
def test_a_bound_that_is_none_is_refused(here: Path, value: str):
    put_models(here)
    with pytest.raises(bs.PlanError, match=f"expected a number that is not negative, got '{value}'"):
        plan_of(f"{WHOLE} --sv-epsilon={value}")
