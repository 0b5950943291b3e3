"""Layers, experts, heads and neurons that data choose: the result is that of the same step with the numbers that NumPy
finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.structure.judged import edit, load, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

SCORES = np.array([0.5, -1, 3, 0.25], np.float32)


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    arrays = {
        "three": SCORES[:3], "four": SCORES, "numbers": np.array([2, 0], np.int32), "count": np.array(2, np.int64),
        "by_layer": np.stack([SCORES, -SCORES, SCORES[::-1]]), "wrong": np.array([1, np.nan, 0], np.float32),
        "long": np.zeros(5000, np.float32),
    }  # fmt: skip
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, tmp_path / "stats.safetensors")
    return tmp_path / "stats.safetensors"


def assert_equal_results(
    name: str, by_data: dict[str, Any], by_number: dict[str, Any], stats: Path, folder: Path, **settings: int
) -> None:
    make(name, folder / "whole", **settings)
    for out, (op, payload) in (("data", next(iter(by_data.items()))), ("number", next(iter(by_number.items())))):
        edit(folder / "whole", folder / out, {op: {**payload, "alias": "model"}}, stats=stats)
    found, wanted = (load_file(folder / out / "model.safetensors") for out in ("data", "number"))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    assert (folder / "data/config.json").read_text() == (folder / "number/config.json").read_text()


@pytest.mark.parametrize(
    ("by_data", "by_number"),
    [
        ({"drop": {"scores": "stats::three", "smallest": 1}}, {"drop": [1]}),
        ({"keep": {"scores": "stats::three", "largest": 2}}, {"keep": [0, 2]}),
        ({"drop": {"scores": "stats::three", "below": 0.75}}, {"drop": [0, 1]}),
        ({"keep": {"scores": "stats::three", "above": 0.4}}, {"keep": [0, 2]}),
        ({"drop": {"scores": "stats::three", "smallest": 0.4}}, {"drop": [1]}),
        ({"keep": {"scores": "stats::three", "smallest": "stats::count"}}, {"keep": [0, 1]}),
        ({"order": {"numbers": "stats::numbers"}}, {"order": [2, 0]}),
    ],
)
def test_data_choose_layers(by_data: Any, by_number: Any, stats: Path, tmp_path: Path) -> None:
    assert_equal_results("llama", {"layers": by_data}, {"layers": by_number}, stats, tmp_path)


@pytest.mark.parametrize(
    ("by_data", "by_number"),
    [
        ({"drop": {"scores": "stats::four", "smallest": 2}}, {"drop": [1, 3]}),
        ({"keep": {"numbers": "stats::numbers"}}, {"keep": [2, 0]}),
    ],
)
def test_data_choose_experts(by_data: Any, by_number: Any, stats: Path, tmp_path: Path) -> None:
    assert_equal_results("mixtral", {"expert_prune": by_data}, {"expert_prune": by_number}, stats, tmp_path)


@pytest.mark.parametrize(
    ("by_data", "by_number"),
    [
        ({"scores": "stats::four", "smallest": 1}, [1]),
        ({"scores": "stats::by_layer", "smallest": 2}, {0: [1, 3], 1: [0, 2], 2: [0, 2]}),
        ({"numbers": "stats::numbers"}, [0, 2]),
    ],
)
def test_data_choose_heads_for_all_layers_or_for_each(
    by_data: Any, by_number: Any, stats: Path, tmp_path: Path
) -> None:
    prunes = [{"prune": {"heads": given}} for given in (by_data, by_number)]
    assert_equal_results("llama", prunes[0], prunes[1], stats, tmp_path, num_key_value_heads=4)


def test_scores_may_be_computed_by_the_plan_itself(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "whole")
    norms = [float(layer.mlp.up_proj.weight.detach().norm()) for layer in model.model.layers]
    plan = bs.load({
        "inputs": [f"model::{tmp_path}/whole"],
        "transforms": [
            {"prefixes": {"mode": "add", "alias": "work"}},
            {"compute": {"from": {"w": r"model::model\.layers\.(\d+)\.mlp\.up_proj\.weight"},
                         "expr": "norm(w)", "to": r"work::norm.\1"}},
            {"stack": {"from": r"work::norm\.(?P<i>\d+)", "to": "work::norms", "over": "i"}},
            {"layers": {"drop": {"scores": "work::norms", "smallest": 1}, "alias": "model"}},
        ],
        "output": {"path": f"{tmp_path}/out/", "alias": "model"},
    })  # fmt: skip
    plan.run(durable=False)
    kept = [at for at in range(3) if at != int(np.argmin(norms))]
    found = load(tmp_path / "out")
    for layer, at in zip(found.model.layers, kept, strict=True):
        assert bool((layer.mlp.down_proj.weight == model.model.layers[at].mlp.down_proj.weight).all())


def test_scores_of_more_than_ten_layers_are_those_of_their_layers(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "whole", num_hidden_layers=12)
    norms = [float(layer.mlp.up_proj.weight.detach().double().norm()) for layer in model.model.layers]
    plan = bs.load({
        "inputs": [f"model::{tmp_path}/whole"],
        "transforms": [
            {"compute": {"from": {"w": r"model\.layers\.(?P<i>\d+)\.mlp\.up_proj\.weight"},
                         "expr": "stack_over(norm(w))", "to": "norms"}},
            {"layers": {"keep": {"scores": "norms", "largest": 3}}},
            {"delete": {"target": "norms"}},
        ],
        "output": f"{tmp_path}/out/",
    })  # fmt: skip
    plan.run(durable=False)
    kept = sorted(np.argsort(norms)[-3:])
    for layer, at in zip(load(tmp_path / "out").model.layers, kept, strict=True):
        assert bool((layer.mlp.up_proj.weight == model.model.layers[at].mlp.up_proj.weight).all())


def test_check_takes_a_choice_by_data_as_it_may_turn_out(stats: Path, tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    step = {"layers": {"drop": {"scores": "stats::three", "below": 9}, "alias": "model"}}
    plan = bs.load({"inputs": [f"model::{tmp_path}/whole", f"stats::{stats}"], "transforms": [step],
                    "output": {"path": f"{tmp_path}/out/", "alias": "model"}})  # fmt: skip
    plan.check()
    with pytest.raises(PlanError, match="no layer is left"):
        plan.run(durable=False)
    assert not (tmp_path / "out").exists()


SMALLEST = {"scores": "stats::three", "smallest": 1}


@pytest.mark.parametrize(
    "choice",
    [
        {"scores": "stats::three"}, {**SMALLEST, "numbers": "stats::numbers"}, {"scores": "stats::three", "least": 1},
        {"scores": "stats::three", "smallest": 0}, {"scores": "stats::three", "below": "stats::count"},
    ],
)  # fmt: skip
def test_a_choice_that_says_too_little_or_too_much_is_refused(choice: Any) -> None:
    plan = bs.load({"inputs": ["model::x/"], "transforms": [{"layers": {"drop": choice}}]})
    (wrong,) = [d for d in plan.errors if "layers" in d.message]
    assert "expected" in wrong.message and "{scores: TENSOR, smallest: 4}" in wrong.message


@pytest.mark.parametrize(
    ("choice", "why", "hint", "mended"),
    [
        ({"scores": "stats::three", "smallest": 4}, "4 of 3 units cannot", "Choose at most 3.", {"smallest": 2}),
        ({"scores": "stats::three", "smallest": 0.1}, "0.1 of 3 units are none", "Choose 1 to 3, or a larger share.",
         {"smallest": 0.4}),
        ({"scores": "stats::numbers", "smallest": 1}, "scores are a vector of floats", "Reduce them: `reduce:",
         {"scores": "stats::three"}),
        ({"scores": "stats::by_layer", "smallest": 1}, "no vector", "Name a vector with one entry for each unit",
         {"scores": "stats::three"}),
        ({"numbers": "stats::three"}, "no list of whole numbers", "Write `{scores: TENSOR, smallest: 4}`",
         {"numbers": None, **SMALLEST}),
        ({"scores": "stats::three", "smallest": "stats::four"}, "no whole number", "or write the number",
         {"smallest": 2}),
        ({"scores": "stats::long", "smallest": 0.9}, "4,500 units are more than", "`keep_largest_`", None),
        ({"scores": "stats::wrong", "smallest": 1}, "NaN or infinite", "", None),
    ],
)  # fmt: skip
def test_a_choice_that_means_nothing_is_refused_with_a_remedy(
    choice: Any, why: str, hint: str, mended: Any, stats: Path, tmp_path: Path
) -> None:
    make("llama", tmp_path / "whole")
    with pytest.raises(PlanError, match=why) as refused:
        edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": choice, "alias": "model"}}, stats=stats)
    assert any(hint in d.hint for d in refused.value.diagnostics)
    if mended is not None:
        drop = {key: value for key, value in {**choice, **mended}.items() if value is not None}
        edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": drop, "alias": "model"}}, stats=stats)
