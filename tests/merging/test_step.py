"""What a step `merge` says beside its method: parameters by model, pattern and depth, which tensors, which dtype."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.merging.settings import depths_of
from tests.checkpoints import normal, plan_of, problems, read, write
from tests.hints.calls import hint_of
from tests.hints.cases import quoted
from tests.merging.cases import merge

pytestmark = pytest.mark.usefixtures("here")

ZEROS = {"embed.w": np.zeros(2, np.float32), **{f"h.{i}.{x}": np.zeros(2, np.float32) for i in range(3) for x in "ab"},
         "norm": np.zeros(2, np.float32)}  # fmt: skip
ONES = {name: x + 1 for name, x in ZEROS.items()}
TWO = {"zeros": ZEROS, "ones": ONES}
SLERP = {"method": "linear", "to": "m", "parameters": {"normalize": False}}


def shares(tmp_path: Path, weight: Any) -> dict[str, float]:
    """The share of the ones in each tensor, for a weight."""
    made = merge(tmp_path, TWO, {**SLERP, "models": {"zeros": 0, "ones": {"weight": weight}}})
    return {name: float(x[0]) for name, x in made.items()}


def test_a_list_goes_from_the_first_layer_to_the_last(tmp_path: Path):
    found = shares(tmp_path, [0.25, 0.5])
    assert found["embed.w"] == found["h.0.a"] == found["h.0.b"] == 0.25
    assert found["h.1.a"] == 0.375
    assert found["h.2.b"] == found["norm"] == 0.5


def test_the_first_pattern_that_matches_counts(tmp_path: Path):
    found = shares(tmp_path, {r"h\.1\..*": 0.5, r".*\.a": [0, 0.25], ".*": 0.125})
    assert found["h.1.a"] == found["h.1.b"] == 0.5
    assert (found["h.0.a"], found["h.2.a"], found["h.2.b"], found["norm"]) == (0, 0.25, 0.125, 0.125)


def test_what_no_pattern_matches_has_the_default(tmp_path: Path):
    assert shares(tmp_path, {"norm": 0.5})["h.0.a"] == 1


def test_every_stack_of_layers_has_its_own_depth():
    found = depths_of(["enc.0.w", "enc.1.w", "dec.0.experts.7.w", "dec.4.w", "shared.word_embedding", "head"])
    assert found == {
        "enc.0.w": 0, "enc.1.w": 1, "dec.0.experts.7.w": 0, "dec.4.w": 1, "shared.word_embedding": 0, "head": 1
    }  # fmt: skip


STEPS = {
    "linear": {"models": {"a": [0.25, 0.75], "b": 0.5}},
    "ties": {"base": "base", "models": {"a": {"weight": [0.25, 0.75], "density": 0.5}, "b": 0.5}},
    "slerp": {"models": ["a", "b"], "parameters": {"t": {".*wi.*": 0.25, ".*": [0, 1]}}},
    "breadcrumbs": {"base": "base", "models": ["a", "b"], "parameters": {"density": [0.25, 0.5, 0.5], "gamma": 0.1}},
    "model_stock": {"base": "base", "models": ["a", "b"]},
}
SHAPES = {"wi.kernel": (4, 6), "wo.kernel": (6, 4), "norm.scale": (4,)}


def layered(axis: int | None) -> dict[str, dict[str, np.ndarray]]:
    """Models of five layers: each by itself, or all in tensors, along an axis."""
    made = {}
    for seed, alias in enumerate(("base", "a", "b")):
        layers = {name: [normal(shape, seed=100 * seed + 10 * at + len(shape)) for at in range(5)]
                  for name, shape in SHAPES.items()}  # fmt: skip
        made[alias] = {"embed": normal((7, 4), seed=seed), "norm": normal((4,), seed=50 + seed)}
        for name, each in layers.items():
            if axis is None:
                made[alias] |= {f"layers.{at}.{name}": x for at, x in enumerate(each)}
            else:
                made[alias][f"layers.{name}"] = np.stack(each, axis=axis)
    return made


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_list_makes_of_stacked_layers_what_it_makes_of_each(axis: int, method: str, tmp_path: Path):
    keys = {"method": method, "to": "m", **STEPS[method]}
    more = {"layer_axis": axis} if method == "model_stock" else {}  # which has no lists that would ask for layers
    (tmp_path / "each").mkdir()
    each, stacked = merge(tmp_path / "each", layered(None), keys), merge(tmp_path, layered(axis), {**keys, **more})
    for name in ("embed", "norm"):
        assert np.array_equal(stacked[name], each[name])
    for name in SHAPES:
        wanted = np.stack([each[f"layers.{at}.{name}"] for at in range(5)], axis=axis)
        assert np.array_equal(stacked[f"layers.{name}"], wanted), name


SQUARE = {alias: {"h.w": np.full((3, 2), value, np.float32)} for alias, value in (("zeros", 0), ("ones", 1))}
SQUARE_STEP: dict[str, Any] = {**SLERP, "models": {"zeros": 0, "ones": {"weight": [0.25, 0.5]}}}


def test_where_shapes_do_not_tell_the_axis_of_layers_the_step_says_it(tmp_path: Path):
    hint = hint_of(lambda: merge(tmp_path, SQUARE, SQUARE_STEP), "Say it: `layer_axis: 0`.")
    axis = int(hint.split("layer_axis: ")[1][0])
    made = merge(tmp_path, SQUARE, {**SQUARE_STEP, "layer_axis": axis})
    assert made["h.w"].tolist() == [[0.25, 0.25], [0.375, 0.375], [0.5, 0.5]]
    assert merge(tmp_path, SQUARE, {**SQUARE_STEP, "layer_axis": -1})["h.w"].tolist() == [[0.25, 0.5]] * 3


def test_an_axis_that_a_tensor_lacks_is_refused(tmp_path: Path):
    says = "Name the axis along which all of `of` have their layers."
    hint_of(lambda: merge(tmp_path, SQUARE, {**SQUARE_STEP, "layer_axis": 2}), says)
    assert merge(tmp_path, SQUARE, {**SQUARE_STEP, "layer_axis": 1})["h.w"][0].tolist() == [0.25, 0.5]


def test_a_config_tells_how_many_layers_a_stack_has(tmp_path: Path):
    for alias, tensors in SQUARE.items():
        (tmp_path / alias).mkdir()
        write(tmp_path / alias / "model.safetensors", tensors)
        (tmp_path / alias / "config.json").write_text('{"num_hidden_layers": 2}')
    plan = {"inputs": [f"{alias}::{tmp_path / alias}" for alias in SQUARE], "transforms": [{"merge": SQUARE_STEP}],
            "output": {"path": str(tmp_path / "m.safetensors"), "alias": "m"}}  # fmt: skip
    bs.load(plan).run(durable=False)
    assert read(tmp_path / "m.safetensors")["h.w"].tolist() == [[0.25, 0.5]] * 3


def test_a_list_is_refused_where_no_tensor_has_layers(tmp_path: Path):
    models = {alias: {"w": tensors["h.w"]} for alias, tensors in SQUARE.items()}
    with pytest.raises(PlanError, match="a list by layer, and no name has the number of a layer"):
        merge(tmp_path, models, SQUARE_STEP)


def test_a_number_after_the_word_for_layers_is_that_of_a_layer():
    names = ["layers_0.w", "layers_4.w", "Block_1.wi_0", "Block_3.wi_1", "final_norm.w_2"]
    assert depths_of(names) == {"layers_0.w": 0, "layers_4.w": 1, "Block_1.wi_0": 1 / 3, "Block_3.wi_1": 1,
                                "final_norm.w_2": 1}  # fmt: skip


def test_of_takes_some_names_and_leaves_the_others(tmp_path: Path):
    keys = {"method": "linear", "models": ["zeros", "ones"], "to": "zeros", "of": r"zeros::h\..*"}
    made = merge(tmp_path, TWO, keys)
    assert made["h.1.a"].tolist() == [0.5, 0.5]
    assert made["norm"].tolist() == [0, 0]


def test_the_result_has_the_dtype_of_the_base_or_the_one_that_is_said(tmp_path: Path):
    base = {"w": normal((4, 3)).astype(ml_dtypes.bfloat16)}
    tuned = {"w": normal((4, 3), seed=1)}
    keys = {"method": "task_arithmetic", "base": "base", "models": ["tuned"], "to": "m"}
    tensors = {"base": base, "tuned": tuned}
    assert merge(tmp_path, tensors, keys)["w"].dtype == ml_dtypes.bfloat16
    made = merge(tmp_path, tensors, {**keys, "dtype": "float32"})["w"]
    np.testing.assert_allclose(made, tuned["w"], rtol=0, atol=1e-6)


def test_a_tensor_that_one_model_lacks_is_refused_kept_or_dropped(tmp_path: Path):
    tensors = {"zeros": ZEROS, "ones": {name: x for name, x in ONES.items() if name != "norm"}}
    keys = {"method": "linear", "models": ["zeros", "ones"], "to": "m"}
    (problem,) = problems(tmp_path, tensors, {"merge": keys})
    assert problem.code == "tensor-missing" and problem.message.startswith("merge.models: 'norm' does not exist")
    assert (
        "If it is not to be there: `unmatched: keep` takes them into 'm' as they are, `unmatched: drop`" in problem.hint
    )
    more = {"zeros": ZEROS, "ones": {**ONES, "head": ONES["norm"]}}
    assert [d.code for d in problems(tmp_path, more, {"merge": keys})] == ["unmatched"]
    assert merge(tmp_path, tensors, {**keys, "unmatched": "keep"})["norm"].tolist() == [0, 0]
    assert "norm" not in merge(tmp_path, tensors, {**keys, "unmatched": "drop"})


def test_a_tensor_of_another_shape_is_refused_left_out_or_merged_in_part(tmp_path: Path):
    tensors = {"base": {"w": np.zeros((2, 3), np.float32)}, "a": {"w": np.ones((2, 3), np.float32)},
               "b": {"w": np.full((1, 4), 2, np.float32)}}  # fmt: skip
    keys = {"method": "task_arithmetic", "base": "base", "models": ["a", "b"], "to": "m"}
    assert [d.code for d in problems(tmp_path, tensors, {"merge": keys})] == ["shapes-differ"]
    assert merge(tmp_path, tensors, {**keys, "on_mismatch": "skip"})["w"].tolist() == [[1, 1, 1]] * 2
    assert merge(tmp_path, tensors, {**keys, "on_mismatch": "common"})["w"].tolist() == [[3, 3, 3], [0, 0, 0]]
    without = {"method": "linear", "models": ["a", "b"], "to": "m", "on_mismatch": "common"}
    assert merge(tmp_path, tensors, without)["w"].tolist() == [[1.5, 1.5, 1.5]]


def test_a_refusal_of_other_shapes_counts_the_tensors(tmp_path: Path):
    tensors = {"a": {f"h.{i}": np.ones(2, np.float32) for i in range(4)},
               "b": {f"h.{i}": np.ones(2 + (i > 0), np.float32) for i in range(4)}}  # fmt: skip
    (problem,) = problems(tmp_path, tensors, {"merge": {"method": "linear", "models": ["a", "b"], "to": "m"}})
    assert problem.message == "merge.models: 'h.1' is f32[2] in 'a' and f32[3] in 'b', and 2 more tensors differ"


def test_all_mistakes_in_the_parameters_of_a_step_are_told_at_once(tmp_path: Path):
    keys = {
        "method": "ties", "base": "zeros", "to": "m",
        "models": {"ones": {"weigt": 1, "density": {"h": [0.5, 2]}}}, "parameters": {"density": -1, "lamda": 1},
    }  # fmt: skip
    found = problems(tmp_path, TWO, {"merge": keys})
    assert [d.code for d in found] == ["merge-parameter"] * 4
    told = "\n".join(d.message for d in found)
    for part in ("got -1", "no parameter 'lamda'", "no parameter 'weigt'", "from 0 to 1, got 2"):
        assert part in told


def test_unknown_models_are_told_with_all_other_mistakes(tmp_path: Path):
    keys = {"method": "ties", "base": "zero", "models": {"ones": {"density": 3}, "twos": 1}, "to": "m"}
    told = "\n".join(d.message for d in problems(tmp_path, TWO, {"merge": keys}))
    assert all(part in told for part in ("got 3", "'zero'", "'twos'")), told


@pytest.mark.parametrize("parameter", [
    {"t": True}, {"t": "much"}, {"t": [0, True]}, {"t": 10**400}, {"t": -(10**400)}, {"t": [0, 10**400]},
])  # fmt: skip
def test_a_number_is_asked_for_where_a_number_is_meant(parameter: Any, tmp_path: Path):
    keys = {"method": "slerp", "models": ["ones", "zeros"], "to": "m", "parameters": parameter}
    assert {d.code for d in problems(tmp_path, TWO, {"merge": keys})} == {"merge-parameter"}


@pytest.mark.parametrize("given", ["yes", 0.5, 1, [True, False]])
def test_true_or_false_is_asked_for_where_that_is_meant(given: Any, tmp_path: Path):
    keys = {"method": "linear", "models": ["ones", "zeros"], "to": "m", "parameters": {"normalize": given}}
    (problem,) = problems(tmp_path, TWO, {"merge": keys})
    assert "'normalize' is true or false" in problem.message


@pytest.mark.parametrize("keys", [
    {"parameters": {"density": None}}, {"models": {"ones": {"density": None}}}, {"models": {"ones": None}},
    {"parameters": {"density": {r"h\..*": None, ".*": 1}}}, {"parameters": {"density": [1, None]}},
    {"parameters": None}, {"parameters": {"threshold": None}}, {"parameters": {"normalize": None}},
])  # fmt: skip
def test_a_parameter_without_a_value_is_refused(keys: Any, tmp_path: Path):
    step = {"method": "ties", "base": "zeros", "models": ["ones"], "to": "m"}
    (found,) = problems(tmp_path, TWO, {"merge": {**step, **keys}})
    assert (found.severity, bool(found.hint)) == ("error", True)
    assert re.search("no value|got None", found.message)


def test_what_no_pattern_of_a_model_matches_has_the_value_for_all_models(tmp_path: Path):
    models = {"ones": {"weight": {r".*\.a": 0.1}}, "zeros": {"weight": 0.3}}
    made = merge(tmp_path, TWO, {"method": "linear", "models": models, "parameters": {"weight": 0.7}, "to": "m"})
    np.testing.assert_allclose(made["h.0.a"], [0.1 / 0.4] * 2, rtol=1e-6)
    np.testing.assert_allclose(made["h.0.b"], [0.7] * 2, rtol=1e-6)


def test_of_one_layer_alone_the_last_value_of_a_list_counts(tmp_path: Path):
    models = {alias: {"h.0.w": x["norm"], "head": x["norm"]} for alias, x in TWO.items()}
    keys = {"method": "slerp", "models": ["zeros", "ones"], "to": "m", "parameters": {"t": [0, 1]}}
    assert merge(tmp_path, models, keys)["h.0.w"].tolist() == [1, 1]


def test_a_pattern_of_a_parameter_that_matches_nothing_is_told(tmp_path: Path):
    keys = {"method": "linear", "models": {"ones": {"weight": {r"h\.7.*": 0}}, "zeros": 1}, "to": "m"}
    (note,) = bs.check(bs.load(plan_of(tmp_path, TWO, {"merge": keys})))
    assert (note.severity, note.message) == (
        "note", r"merge.models: pattern 'h\.7.*' matches no tensor that is merged")  # fmt: skip


def test_a_model_is_no_pattern_of_names(tmp_path: Path):
    given = {alias: tmp_path / f"{alias}.safetensors" for alias in TWO}
    keys = {"method": "linear", "models": [f"ones::{given['ones']}", f"zeros::{given['zeros']}"], "to": "m"}
    assert merge(tmp_path, TWO, keys)["norm"].tolist() == [0.5, 0.5]
    (problem,) = problems(tmp_path, TWO, {"merge": {**keys, "models": ["ones::h.*", "zeros"]}})
    assert problem.code == "merge-models" and "not from 'h.*'" in problem.message


# --- Tensors that hold all layers

STACKS = {alias: {"layers.w": normal((3, 4, 5), seed=seed), "layers.b": normal((3, 5), seed=seed + 9)}
          for seed, alias in enumerate(("base", "a", "b"))}  # fmt: skip


def with_config(
    tmp_path: Path, models: dict[str, dict[str, np.ndarray]], keys: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Merge models that are folders whose config says that there are three layers."""
    for alias, tensors in models.items():
        (tmp_path / alias).mkdir(exist_ok=True)
        write(tmp_path / alias / "model.safetensors", tensors)
        (tmp_path / alias / "config.json").write_text('{"num_hidden_layers": 3}')
    plan = {"inputs": [f"{alias}::{tmp_path / alias}" for alias in models], "transforms": [{"merge": keys}],
            "output": {"path": str(tmp_path / "made"), "alias": "m", "overwrite": True}}  # fmt: skip
    bs.load(plan).run(durable=False)
    return read(tmp_path / "made" / "model.safetensors")


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "model_stock", "bitdelta", "karcher", "ties", "slerp"])
def test_a_method_that_looks_at_whole_tensors_takes_the_layers_of_a_stack_by_themselves(method: str, tmp_path: Path):
    keys: dict[str, Any] = {"method": method, "models": ["a", "b"], "to": "m"}
    if method not in ("karcher", "slerp"):
        keys["base"] = "base"
    if method == "bitdelta":
        keys["models"] = ["a"]
    parameters = {"slerp": {"t": 0.3}, "ties": {"density": 0.5}}.get(method)
    if parameters is not None:
        keys["parameters"] = parameters
    made = with_config(tmp_path, STACKS, keys)
    apart = {alias: {f"{name}.{i}": x[name][i] for name in x for i in range(3)} for alias, x in STACKS.items()}
    wanted = merge(tmp_path, apart, keys)
    for name, x in made.items():
        np.testing.assert_allclose(x, np.stack([wanted[f"{name}.{i}"] for i in range(3)]), rtol=1e-6, atol=1e-7)


def notes(tmp_path: Path, models: dict[str, dict[str, np.ndarray]], keys: dict[str, Any]) -> Any:
    plan = plan_of(tmp_path, models, {"merge": keys})
    plan["output"]["alias"] = "m"
    return bs.check(bs.load(plan))


def test_stacks_of_which_nothing_tells_the_layers_are_told(tmp_path: Path):
    keys = {"method": "tsv_m", "base": "base", "models": ["a", "b"], "to": "m"}
    square = {alias: {"layers.w": x["layers.w"][:, :3]} for alias, x in STACKS.items()}
    (note,) = notes(tmp_path, square, keys)
    assert (
        note.message == "merge.method: the tensors of 'layers' may hold all layers, and tsv_m merges each as one tensor"
    )
    assert note.hint == "To merge them layer by layer say `layer_axis: 0` or `layer_axis: 1`."
    assert notes(tmp_path, square, {**keys, "layer_axis": 0}) == ()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_each_layer_of_a_stack_has_random_choices_of_its_own(method: str, tmp_path: Path):
    ones = {"layers.w": np.ones((3, 32, 32), np.float32), "layers.b": np.ones((3, 32), np.float32)}
    models = {"base": {name: 0 * x for name, x in ones.items()}, "a": ones}
    parameters = {"density": 0.5, **({"epsilon": 0.2} if method == "della" else {})}
    made = with_config(tmp_path, models, {"method": method, "base": "base", "models": {"a": parameters}, "to": "m"})
    kept = made["layers.w"] != 0
    assert all(0.4 < (kept[i] == kept[j]).mean() < 0.6 for i, j in ((0, 1), (1, 2), (0, 2)))


def test_what_a_stack_has_for_all_layers_is_merged_as_one(tmp_path: Path):
    models = {alias: {**x, "layers.u": x["layers.w"][..., :2], "layers.shared": np.arange(7, dtype=np.float32) + at}
              for at, (alias, x) in enumerate(STACKS.items())}  # fmt: skip
    keys = {"method": "slerp", "models": ["a", "b"], "parameters": {"t": 0.3}, "to": "m"}
    made = with_config(tmp_path, models, keys)
    apart = {alias: {"w": x["layers.w"][0], "shared": x["layers.shared"]} for alias, x in models.items()}
    wanted = merge(tmp_path, apart, keys)
    np.testing.assert_allclose(made["layers.w"][0], wanted["w"], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(made["layers.shared"], wanted["shared"])


def test_where_layers_are_numbered_no_other_tensor_holds_all(tmp_path: Path):
    models = {alias: {**{f"h.{i}.w": x["layers.w"][i] for i in range(3)}, "classifier.layers.w": x["layers.w"][0, :3],
                      "classifier.layers.u": x["layers.w"][0, :3, :2]} for alias, x in STACKS.items()}  # fmt: skip
    keys = {"method": "slerp", "models": ["a", "b"], "parameters": {"t": 0.3}, "to": "m"}
    made = with_config(tmp_path, models, keys)["classifier.layers.w"]
    wanted = merge(tmp_path, {alias: {"w": x["classifier.layers.w"]} for alias, x in models.items()}, keys)["w"]
    np.testing.assert_array_equal(made, wanted)


def test_without_a_config_shapes_tell_the_layers_of_a_stack(tmp_path: Path):
    shapes = {"q": (16, 4, 32), "o": (32, 4, 16), "norm": (16, 4)}
    models = {alias: {f"layers.{n}": normal(size, seed=seed) for n, size in shapes.items()}
              for seed, alias in enumerate(("a", "b"))}  # fmt: skip
    keys = {"method": "karcher", "models": ["a", "b"], "to": "m"}
    (note,) = notes(tmp_path, models, keys)
    assert note.message.endswith("by shapes 'layers' holds 4, along axis 1")
    assert note.hint == "If so, say `layer_axis: 1`."
    assert notes(tmp_path, models, {**keys, "layer_axis": 1}) == ()
    made, said = merge(tmp_path, models, keys), merge(tmp_path, models, {**keys, "layer_axis": 1})
    apart = {alias: {f"{n}.{i}": x[:, i] for n, x in own.items() for i in range(4)} for alias, own in models.items()}
    wanted = merge(tmp_path, apart, keys)
    for name, x in made.items():
        np.testing.assert_array_equal(x, said[name])
        each = np.stack([wanted[f"{name}.{i}"] for i in range(4)], axis=1)
        np.testing.assert_allclose(x, each, rtol=1e-6, atol=1e-7)


def test_a_config_is_read_only_where_there_are_stacks(tmp_path: Path):
    for alias, tensors in TWO.items():
        (tmp_path / alias).mkdir()
        write(tmp_path / alias / "model.safetensors", tensors)
        (tmp_path / alias / "config.json").write_text('{"num_hidden_layers": 4,}')
    plan = {"inputs": [f"{alias}::{tmp_path / alias}" for alias in TWO],
            "transforms": [{"merge": {"method": "karcher", "models": ["ones", "zeros"], "to": "m"}}],
            "output": {"path": str(tmp_path / "m.safetensors"), "alias": "m"}}  # fmt: skip
    bs.load(plan).run(durable=False)
    assert read(tmp_path / "m.safetensors")["norm"].shape == (2,)


def test_an_axis_of_layers_along_which_sizes_differ_is_refused(tmp_path: Path):
    keys = {"method": "karcher", "models": ["a", "b"], "to": "m", "layer_axis": -1}
    models = {alias: {**x, "layers.u": np.ones((3, 7), np.float32)} for alias, x in STACKS.items()}
    (problem,) = problems(tmp_path, models, {"merge": keys})
    assert problem.message.startswith("merge.layer_axis: the tensors of 'layers' have no axis -1 of one size")


def test_one_mistake_in_the_parameters_of_several_models_is_told_once(tmp_path: Path):
    keys = {"method": "linear", "models": {"ones": {"weight": "much"}, "zeros": {"weight": "much"}}, "to": "m"}
    assert len(problems(tmp_path, TWO, {"merge": keys})) == 1


def test_scalars_are_merged_and_whole_numbers_taken_over(tmp_path: Path):
    tensors = {alias: {"s": np.asarray(x, np.float32), "ids": np.arange(3)} for alias, x in (("a", 1), ("b", 3))}
    made = merge(tmp_path, tensors, {"method": "karcher", "models": ["a", "b"], "to": "m"})
    assert (made["s"].shape, float(made["s"])) == ((), 2)
    assert made["ids"].tolist() == [0, 1, 2]


def test_whole_numbers_are_taken_from_another_model_as_the_remedy_says(tmp_path: Path):
    tensors = {alias: {"w": np.full(2, x, np.float32), "it's": np.full(3, x), "empty": np.ones((x, 0), np.float32)}
               for alias, x in (("a", 1), ("b", 3))}  # fmt: skip
    keys = {"method": "linear", "models": ["a", "b"], "to": "m"}
    (said,) = problems(tmp_path, tensors, {"merge": keys})
    assert (said.code, said.severity) == ("merge-kept", "note")
    steps = [{"merge": keys}, yaml.safe_load(quoted(said.hint)[0])]
    plan = plan_of(tmp_path, tensors, steps)
    plan["output"]["alias"] = "m"
    bs.load(plan).run(durable=False)
    made = read(plan["output"]["path"])
    assert made.keys() == tensors["a"].keys()
    assert (made["w"].tolist(), made["it's"].tolist(), made["empty"].shape) == ([2, 2], [3, 3, 3], (1, 0))


def test_nan_stays_where_it_is(tmp_path: Path):
    tensors = {alias: {"w": normal((8, 8), seed=seed)} for seed, alias in enumerate(("base", "a", "b"))}
    tensors["a"]["w"][3, 4] = np.nan
    for method in ("task_arithmetic", "ties", "ram", "breadcrumbs_ties"):
        made = merge(tmp_path, tensors, {"method": method, "base": "base", "models": ["a", "b"], "to": "m"})["w"]
        assert np.isnan(made).any(), method


def test_infinity_stays_but_in_the_model_that_the_mean_starts_from(tmp_path: Path):
    tensors = {"a": {"w": np.array([1, np.inf, 2, np.nan], np.float32)},
               "b": {"w": np.array([3, 4, -np.inf, 5], np.float32)}}  # fmt: skip
    keys = {"method": "linear", "to": "m"}
    by_a = merge(tmp_path, tensors, {**keys, "models": {"a": 0.75, "b": 0.25}})["w"]
    by_b = merge(tmp_path, tensors, {**keys, "models": {"a": 0.25, "b": 0.75}})["w"]
    np.testing.assert_array_equal(by_a, [1.5, np.nan, -np.inf, np.nan])
    np.testing.assert_array_equal(by_b, [2.5, np.inf, np.nan, np.nan])


def test_layers_below_a_merge_may_be_merged_again(tmp_path: Path):
    steps = [
        {"merge": {"method": "linear", "models": ["zeros", "ones"], "to": "half"}},
        {"merge": {"method": "linear", "models": ["half", "ones"], "to": "most"}},
    ]
    plan = plan_of(tmp_path, TWO, steps)
    plan["output"]["alias"] = "most"
    bs.load(plan).run(durable=False)
    assert bs.open(plan["output"]["path"])["h.1.a"].tolist() == [0.75, 0.75]


@pytest.mark.parametrize("models", [[], {}, ["ones", "ones"], [3], 5, {"ones": "much"}, {"ones": True}])
def test_models_that_are_none_are_refused(models: Any, tmp_path: Path):
    with pytest.raises(PlanError, match=r"aliases|no-match|merge-models"):
        bs.load(plan_of(tmp_path, TWO, {"merge": {"method": "linear", "models": models, "to": "m"}})).check()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_as_mergekit_rounds_task_vectors_are_rounded_at_every_step(dtype: Any, tmp_path: Path):
    x = {alias: normal((9, 5), seed=seed).astype(dtype) for seed, alias in enumerate(("base", "a", "b"))}
    keys = {"method": "task_arithmetic", "base": "base", "models": {"a": 0.3, "b": 0.7}, "to": "m"}
    made = merge(tmp_path, {alias: {"w": w} for alias, w in x.items()}, {**keys, "compat": "mergekit"})["w"]
    parts = [np.asarray(w, dtype) * (x[alias] - x["base"]) for alias, w in (("a", 0.3), ("b", 0.7))]
    total = (parts[0].astype(np.float32) + parts[1].astype(np.float32)).astype(dtype)
    assert np.array_equal(made, x["base"] + total)


def test_as_mergekit_has_it_breadcrumbs_without_extremes_keeps_nothing(tmp_path: Path):
    tensors = {alias: {"w": normal((8,), seed=seed)} for seed, alias in enumerate(("base", "a"))}
    keys = {"method": "breadcrumbs", "base": "base", "models": ["a"], "to": "m"}
    made = merge(tmp_path, tensors, {**keys, "compat": "mergekit"})["w"]
    assert np.array_equal(made, tensors["base"]["w"])
    assert not np.array_equal(merge(tmp_path, tensors, keys)["w"], made)


@pytest.mark.parametrize(
    ("keys", "at"),
    [
        ({"method": "task_arithmetic", "base": "bse", "models": ["ones"]}, "base"),
        ({"method": "linear", "models": ["ones", "m"]}, "models"),
    ],
)
def test_an_alias_that_does_not_exist_is_told_at_its_key_with_those_that_do(
    keys: dict[str, Any], at: str, tmp_path: Path
):
    with pytest.raises(PlanError, match=rf"merge\.{at}: unknown alias") as told:
        merge(tmp_path, TWO, {**keys, "to": "m"})
    (found,) = told.value.diagnostics
    assert found.hint == "Known: zeros, ones."


def test_factors_of_adapters_are_no_models_to_merge_and_are_added_to_one_as_the_note_says(tmp_path: Path):
    rng = np.random.default_rng(3)
    w = rng.normal(size=(4, 3)).astype(np.float32)
    factors = {x: (rng.normal(size=(2, 3)), rng.normal(size=(4, 2))) for x in "ab"}
    write(tmp_path / "m.safetensors", {"h.w.weight": w})
    for name, alpha in (("a", 8), ("b", 2)):
        (folder := tmp_path / name).mkdir()
        first, second = (x.astype(np.float32) for x in factors[name])
        held = {f"base_model.model.h.w.lora_{k}.weight": x for k, x in (("A", first), ("B", second))}
        write(folder / "adapter_model.safetensors", held)
        says = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["w"]}
        (folder / "adapter_config.json").write_text(json.dumps(says))
    inputs = [f"a::{tmp_path}/a", f"b::{tmp_path}/b", f"m::{tmp_path}/m.safetensors"]
    step: dict[str, Any] = {"merge": {"method": "linear", "models": {"a": 0.5, "b": 0.5}, "to": "a"}}
    (note,) = [d for d in bs.check(bs.load({"inputs": inputs, "transforms": [step]})) if d.code == "merge-factors"]
    assert "their product is no merge of the products" in note.message
    (told,) = re.findall("`(.*?)`", note.hint)
    step = yaml.safe_load(told.replace("MODEL", "m").replace("WEIGHT", "0.5"))
    out = str(tmp_path / "out.safetensors")
    bs.load({"inputs": inputs, "transforms": [step], "output": {"path": out, "alias": "m"}}).run(durable=False)
    products = {x: second @ first for x, (first, second) in factors.items()}
    wanted = w + 0.5 * 8 / 2 * products["a"] + 0.5 * 2 / 2 * products["b"]
    np.testing.assert_allclose(read(tmp_path / "out.safetensors")["h.w.weight"], wanted, rtol=1e-5, atol=1e-5)


def _with_config(path: Path, config: dict[str, Any]) -> str:
    path.mkdir()
    write(path / "model.safetensors", {"w": normal((4, 3), seed=1)})
    (path / "config.json").write_text(json.dumps(config))
    return f"{path.name}::{path}"


def _noted(inputs: list[str], **keys: Any) -> list[bs.Diagnostic]:
    step = {"merge": {"method": "linear", "models": {"a": 0.5, "b": 0.5}, "to": "m", **keys}}
    return [d for d in bs.check(bs.load({"inputs": inputs, "transforms": [step]})) if d.code == "merge-config"]


def test_models_that_use_their_tensors_otherwise_are_told_and_config_sets_what_the_result_does(tmp_path: Path):
    inputs = [
        _with_config(tmp_path / "a", {"rope_theta": 1e4, "num_attention_heads": 4, "use_cache": True}),
        _with_config(tmp_path / "b", {"rope_theta": 5e5, "num_attention_heads": 4, "use_cache": False}),
    ]
    (note,) = _noted(inputs)
    said = "merge.models: the configs of '{}' and '{}' differ: rope_theta {} and {}. The result has the first"
    assert note.message == said.format("a", "b", 1e4, 5e5)
    (into,) = _noted(inputs, to="b")
    assert into.message == said.format("b", "a", 5e5, 1e4)
    merged = {"merge": {"method": "linear", "models": {"a": 0.5, "b": 0.5}, "to": "m"}}
    steps = [merged, {"config": {"alias": "m", "patch": {"rope_theta": 5e5}}}]
    output = {"path": f"{tmp_path}/out/", "alias": "m"}
    bs.load({"inputs": inputs, "transforms": steps, "output": output}).run(durable=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_theta"] == 5e5


OLD_ROPE = {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}


@pytest.mark.parametrize(("own", "other"), [
    (OLD_ROPE, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4}}),
    ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
    ({"head_dim": None, "num_attention_heads": 4}, {"head_dim": 8, "num_attention_heads": 4}),
    ({"text_config": {"rope_theta": 1e4}}, {"rope_theta": 1e4}),
    ({"rope_theta": 1e4}, {}),
])  # fmt: skip
def test_configs_that_say_the_same_in_other_words_are_no_news(own: Any, other: Any, tmp_path: Path):
    assert not _noted([_with_config(tmp_path / "a", own), _with_config(tmp_path / "b", other)])


@pytest.mark.parametrize(("own", "other", "told"), [
    (OLD_ROPE, {"rope_theta": 1e6}, "rope_type 'yarn' and 'default'"),
    (OLD_ROPE, {**OLD_ROPE, "rope_scaling": {"type": "yarn", "factor": 8.0}}, "factor 4.0 and 8.0"),
    ({"model_type": "llama", "hidden_act": "silu"}, {"model_type": "mistral", "hidden_act": "gelu"},
     "model_type 'llama' and 'mistral', hidden_act 'silu' and 'gelu'"),
    ({"text_config": {"num_key_value_heads": 2}}, {"text_config": {"num_key_value_heads": 4}},
     "num_key_value_heads 2 and 4"),
])  # fmt: skip
def test_a_note_says_each_setting_that_differs(own: Any, other: Any, told: str, tmp_path: Path):
    (note,) = _noted([_with_config(tmp_path / "a", own), _with_config(tmp_path / "b", other)])
    assert f" differ: {told}. The result" in note.message
