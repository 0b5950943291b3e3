"""Configurations of mergekit become plans that give what NumPy computes from the published formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.importers.mergekit import plan_of
from brainsurgery_jax.importers.patterns import choose, numbers
from tests.checkpoints import normal, read, write
from tests.hints.calls import hint_of
from tests.importers.merges import (
    CASES,
    CONFIG,
    LAYERS,
    WORDS,
    Models,
    in_layer,
    layer_of,
    models,
    put_config,
    put_models,
)  # fmt: skip
from tests.merging import oracles

SNAPSHOTS = Path(__file__).parent / "snapshots"


def merged(folder: Path, config: Any) -> dict[str, np.ndarray]:
    """What the plan of a configuration writes into `merged`."""
    (folder / "plan.yaml").write_text(plan_of(put_config(folder, config).name))
    bs.load("plan.yaml").run(durable=False)
    return read(folder / "merged" / "model.safetensors")


def close(found: np.ndarray, exact: np.ndarray) -> None:
    """As exact as float32 can compute it, rounded once to its dtype."""
    rounding = 2.0**-8 if found.dtype.name == "bfloat16" else 2.0**-24
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=1.001 * rounding, atol=1e-6)


def compare(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, dtype: str) -> None:
    assert set(found) == set(expected)
    for name, exact in expected.items():
        assert found[name].dtype.name == dtype
        close(found[name], exact)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_the_plan_gives_what_the_formula_gives(here: Path, case: str, dtype: str):
    held = put_models(here, dtype)
    compare(merged(here, CASES[case].config), CASES[case].result(held), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["linear", "slices", "stacked", "task arithmetic"])
def test_transformers_loads_the_result(here: Path, case: str, dtype: str):
    import torch
    from transformers import LlamaForCausalLM

    put_models(here, dtype)
    merged(here, CASES[case].config)
    model, said = cast("tuple[Any, Any]", LlamaForCausalLM.from_pretrained("merged", output_loading_info=True))
    assert not (said["missing_keys"] or said["unexpected_keys"] or said["mismatched_keys"])
    assert (model.config.num_hidden_layers, model.dtype) == (CASES[case].layers, getattr(torch, dtype))
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(8)[None]).logits).all()


@pytest.mark.parametrize("case", CASES)
def test_every_plan_passes_the_check_and_reads_back(here: Path, case: str):
    put_models(here)
    (here / "plan.yaml").write_text(plan_of(put_config(here, CASES[case].config).name))
    assert [d for d in bs.check(bs.load("plan.yaml")) if d.severity == "error"] == []


WRITTEN = ["gradients", "slices", "stacked", "task arithmetic with everything", "slerp by layer"]


@pytest.mark.parametrize("case", WRITTEN)
def test_plans_read_as_if_written_by_hand(here: Path, case: str):
    put_models(here)
    found = plan_of(put_config(here, CASES[case].config).name).partition("\n")[2]
    path = SNAPSHOTS / f"{case.replace(' ', '_')}.yaml"
    if not path.exists():
        SNAPSHOTS.mkdir(exist_ok=True)
        path.write_text(found)
        pytest.fail(f"{path.name} was not there and is written now: read it, and run again")
    assert found == path.read_text()


# --- Dtypes -----------------------------------------------------------------------------------------------------------


def test_inputs_are_cast_before_they_are_merged(here: Path):
    held = put_models(here)
    rounded: Models = {m: {n: x.astype("bfloat16").astype(np.float64) for n, x in t.items()} for m, t in held.items()}
    case = CASES["linear"]
    compare(merged(here, {**case.config, "dtype": "bfloat16"}), case.result(rounded), dtype="bfloat16")


def test_the_output_may_have_a_dtype_of_its_own(here: Path):
    held = put_models(here, "bfloat16")
    case = CASES["linear"]
    found = merged(here, {**case.config, "dtype": "float32", "out_dtype": "bfloat16"})
    compare(found, case.result(held), dtype="bfloat16")
    assert json.loads((here / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("case", ["gradients", "stacked", "slices", "a model scaled"])
def test_tensors_of_one_model_have_the_dtype_too(here: Path, case: str):
    held = put_models(here, "bfloat16")
    compare(merged(here, {**CASES[case].config, "dtype": "float32"}), CASES[case].result(held), dtype="float32")


@pytest.mark.parametrize("case", ["linear", "task arithmetic"])
def test_models_of_different_dtypes_are_merged_in_the_wider(here: Path, case: str):
    held = put_models(here, {"a": "bfloat16", "b": "float32", "c": "bfloat16"})
    compare(merged(here, CASES[case].config), CASES[case].result(held), dtype="float32")
    assert json.loads((here / "merged" / "config.json").read_text())["dtype"] == "float32"


def test_a_dtype_that_the_models_have_costs_no_step(here: Path):
    put_models(here, "bfloat16")
    config = CASES["linear"].config
    plans = [plan_of(put_config(here, {**config, **more}).name) for more in ({}, {"dtype": "bfloat16"})]
    assert plans[0] == plans[1]


# --- Beside the tensors -----------------------------------------------------------------------------------------------


def test_lists_of_one_entry_a_layer_are_stacked_with_the_layers(here: Path):
    put_models(here, layer_types=["full", "sliding", "full", "last"])
    merged(here, CASES["stacked"].config)
    config = json.loads((here / "merged" / "config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == ["full", "sliding", "full", "sliding", "full", "last"]


@pytest.mark.parametrize(
    ("method", "given", "factor"),
    [("dare_ties", {}, "l1"), ("della_linear", {"rescale": True}, "l1"), ("dare_linear", {"rescale": False}, "'no'")],
)
def test_entries_that_are_dropped_at_random_are_made_up_for_as_mergekit_does(
    here: Path, method: str, given: dict[str, Any], factor: str
):
    config = {
        "merge_method": method,
        "base_model": "a",
        "models": models(b=0.5),
        "parameters": {"density": 0.5} | given,
    }
    put_models(here, "float32")
    assert f"rescale: {factor}" in str(plan_of(put_config(here, config).name))


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_with_nothing_said_adds_whole_task_vectors(here: Path, method: str):
    held = put_models(here)
    config = {"merge_method": method, "base_model": "a", "models": models(b=1), "parameters": {"normalize": False}}
    compare(merged(here, config), held["b"], dtype="float32")


def test_the_side_files_are_those_of_the_base(here: Path):
    put_models(here)
    for letter in "abc":
        (here / letter / "tokenizer.json").write_text("one")
    merged(here, {**CASES["base that is not merged"].config, "tokenizer_source": "base"})
    assert (here / "merged" / "tokenizer.json").read_text() == "one"


def test_tied_heads_stay_tied(here: Path):
    for letter in "ab":
        (here / letter).mkdir()
        write(here / letter / "model.safetensors", {"model.embed_tokens.weight": normal((WORDS, 4)),
                                                    "model.layers.0.w": normal((4, 4))})  # fmt: skip
    assert set(merged(here, CASES["linear"].config)) == {"model.embed_tokens.weight", "model.layers.0.w"}


def test_what_has_no_effect_is_noted(here: Path):
    put_models(here)
    config = {"merge_method": "task_arithmetic", "base_model": "a", "models": models(b=1), "tokenizer_source": "base"}
    text = plan_of(put_config(here, {**config, "parameters": {"density": 0.5, "int8_mask": True}}).name)
    assert "# density (merge.yml:9) has no effect on task_arithmetic.\n" in text
    assert "# int8_mask (merge.yml:10) has no effect on task_arithmetic.\n" in text
    assert "# The tokenizer files are copied from a.\n" in text


def test_the_union_of_equal_tokenizers_is_each_of_them(here: Path):
    put_models(here)
    for letter in "ab":
        (here / letter / "tokenizer.json").write_text("{}")
    text = plan_of(put_config(here, {**LINEAR, "tokenizer_source": "union"}).name)
    assert "# The models have one tokenizer, which is their union." in text and "vocab" not in text


def test_a_model_of_the_hub_comes_with_how_to_fetch_it(here: Path):
    config = {
        "merge_method": "linear",
        "models": [
            {"model": "org/one", "parameters": {"weight": 0.5}},
            {"model": "org/two", "parameters": {"weight": 0.5}},
        ],
    }
    text = plan_of(put_config(here, config).name)
    assert "  - a::org/one  # hf download org/one --local-dir org/one\n" in text
    assert "compute: {from: {a: 'a::.*', b: 'b::\\g<0>'}, expr: '(a + b) / 2', unmatched: error}" in text


# --- Models that differ in what they have -----------------------------------------------------------------------------

HEAD, BIAS = "lm_head.weight", "model.layers.1.self_attn.q_proj.bias"


def change(here: Path, letter: str, without: str = "", **more: tuple[int, ...]) -> None:
    """Rewrite a model without a tensor, or with more."""
    path = here / letter / "model.safetensors"
    held = {name: x for name, x in read(path).items() if name != without}
    write(path, held | {name: normal(shape) for name, shape in more.items()}, {"format": "pt"})


FIFTH = {f"model.layers.{LAYERS}.{n}": (2,) for n in ("mlp.up_proj.weight", "input_layernorm.weight")}
DIFFERENT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a layer more in the second": ("b", FIFTH, "model.layers.4.input_layernorm.weight"),
    "a layer more in the first": ("a", FIFTH, "model.layers.4.input_layernorm.weight"),
    "a tied second": ("b", {"without": HEAD}, HEAD),
    "a tied first": ("a", {"without": HEAD}, HEAD),
    "a bias in the second": ("b", {BIAS: (4,)}, BIAS),
    "a bias in the first": ("a", {BIAS: (4,)}, BIAS),
}
WHOLE = ("linear", "filters", "gradients", "task arithmetic", "task arithmetic with everything")


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("how", DIFFERENT)
def test_models_that_do_not_have_the_same_tensors_are_not_merged(here: Path, case: str, how: str):
    letter, changes, name = DIFFERENT[how]
    put_models(here)
    change(here, letter, **changes)
    with pytest.raises(bs.PlanError, match=name.replace(".", r"\.")):
        merged(here, CASES[case].config)
    assert not (here / "merged").exists()


def piece(*ranges: tuple[str, int, int]) -> dict[str, Any]:
    return {"sources": [{"model": m, "layer_range": [start, stop]} for m, start, stop in ranges]}


@pytest.mark.parametrize("how", ["a tied second", "a tied first", "a bias in the second", "a bias in the first"])
def test_slices_that_do_not_have_the_same_tensors_are_not_imported(here: Path, how: str):
    letter, changes, name = DIFFERENT[how]
    put_models(here)
    change(here, letter, **changes)
    slices = [piece(("a", 0, 2), ("b", 1, 3)), piece(("a", 1, 2), ("b", 0, 1))]
    config = {"merge_method": "linear", "parameters": {"weight": 1}, "slices": slices}
    with pytest.raises(bs.PlanError, match=rf"{name[-9:]}' that '[ab]' lacks, so they cannot be merged"):
        merged(here, config)


@pytest.mark.parametrize("how", ["a tied second", "a tied first"])
def test_a_stack_whose_ends_come_from_unlike_models_is_not_imported(here: Path, how: str):
    letter, changes, _ = DIFFERENT[how]
    put_models(here)
    change(here, letter, **changes)
    with pytest.raises(bs.PlanError, match=r"has 'lm_head\.weight' that '[ab]' lacks"):
        merged(here, CASES["stacked"].config)


def test_a_model_in_the_middle_of_a_stack_gives_its_layers_alone(here: Path):
    held = put_models(here)
    change(here, "b", without=HEAD)
    slices = [piece(("a", 0, 2)), piece(("b", 1, 2)), piece(("a", 2, 4))]
    found = merged(here, {"merge_method": "passthrough", "slices": slices})
    np.testing.assert_array_equal(found[HEAD], held["a"][HEAD].astype(np.float32))
    assert sum(name.endswith("up_proj.weight") for name in found) == 5


# --- Files from the wild ----------------------------------------------------------------------------------------------

WILD = """
# helper keys at the top, one of them used three times; anchors and merge keys
const_tag: &A a
const_tag: &B b
const_tag: &QK 0.8408964
scaled-env: &scaled
  parameters:
    scale:
      - {filter: q_proj, value: *QK}
      - {filter: k_proj, value: *QK}
      - value: 1.0
name: a-stack
chat_template: auto
slices:
  - sources:
      - {model: *A, layer_range: [0, 2]}
  - sources:
      - model: *B
        layer_range: [1, 3]
        note: the middle
        <<: *scaled
  - sources:
      - {model: *A, layer_range: [2, 4]}
merge_method: passthrough
base_model:
parameters: {t: 0.5}
dtype: float32
"""


def test_what_mergekit_ignores_is_ignored_with_a_note(here: Path):
    held = put_models(here)
    (here / "merge.yml").write_text(WILD)
    text = plan_of("merge.yml")
    for note in (
        "const_tag (merge.yml:5) is ignored.",
        "scaled-env (merge.yml:6) is ignored.",
        "name (merge.yml:12) is ignored.",
        "chat_template (merge.yml:13) has no effect: no model has a template.",
        "note (merge.yml:20) is ignored.",
        "t (merge.yml:26) has no effect on passthrough.",
    ):
        assert f"# {note}\n" in text
    (here / "plan.yaml").write_text(text)
    bs.load("plan.yaml").run(durable=False)
    a, b = held["a"], held["b"]
    expected = {n: x for n, x in a.items() if layer_of(n) is None}
    for at, (model, layer) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2), (a, 2), (a, 3)]):
        by = {"q_proj": 0.8408964, "k_proj": 0.8408964} if model is b else {}
        for name, x in model.items():
            if layer_of(name) == layer:
                expected[in_layer(name, at)] = x * next((v for k, v in by.items() if k in name), 1)
    compare(read(here / "merged" / "model.safetensors"), expected, dtype="float32")


def test_a_key_that_means_something_stands_once(here: Path):
    put_models(here)
    (here / "merge.yml").write_text("merge_method: linear\nmodels: []\nmodels: []\n")
    with pytest.raises(bs.PlanError, match="the key 'models' occurs twice"):
        plan_of("merge.yml")


def test_what_mergekit_takes_for_all_models_has_no_effect_below_one(here: Path):
    put_models(here)
    sce = {"merge_method": "sce", "base_model": "a", "models": models(b=None, c=None)}
    below = {**sce, "models": [{"model": m, "parameters": {"select_topk": 0.3}} for m in "bc"]}
    text = plan_of(put_config(here, below).name)
    assert "select_topk (merge.yml:6) has no effect below a model: mergekit takes it for all models." in text
    assert text.partition("inputs:")[2] == plan_of(put_config(here, sce).name).partition("inputs:")[2]


def test_slerp_with_t_below_a_model_alone_is_imported_once_t_is_given_for_all(here: Path):
    held = put_models(here)
    config = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b", "parameters": {"t": 0.2}}]}
    with pytest.raises(bs.PlanError, match="slerp needs a t") as told:
        plan_of(put_config(here, config).name)
    assert "`parameters: {t: 0.5}`" in told.value.diagnostics[0].hint
    made = merged(here, {**config, "parameters": {"t": 0.5}})
    compare(made, {n: oracles.slerp(None, [x, held["b"][n]], 0.5) for n, x in held["a"].items()}, dtype="float32")


# --- What cannot be said ----------------------------------------------------------------------------------------------

STACK = {"sources": [{"model": "a", "layer_range": [0, 2]}]}
LINEAR = {"merge_method": "linear", "models": models(a=0.5, b=0.5)}
REFUSED = {
    "slices of ties without the base": (
        {"merge_method": "ties", "base_model": "b", "slices": [STACK, STACK]},
        r"merge\.yml:\d+:\d+: the base 'b' is not among the sources of a slice",
    ),
    "a slice of one model": (
        {"merge_method": "karcher", "slices": [STACK, STACK]},
        r"merge\.yml:\d+:\d+: karcher merges several models, and a slice has 'a' alone",
    ),
    "more steps than a plan takes": (
        {"merge_method": "karcher", "models": models(a=None, b=None), "parameters": {"max_iter": 2000}},
        r"merge\.yml:\d+:\d+: max_iter: expected a number from 1 to 1000, got the value 2000",
    ),
    "half a step": (
        {"merge_method": "karcher", "models": models(a=None, b=None), "parameters": {"max_iter": 2.5}},
        "max_iter: expected one whole number, got the value 2.5",
    ),
    "steps by layer": (
        {"merge_method": "karcher", "models": models(a=None, b=None), "parameters": {"max_iter": [5, 10]}},
        "max_iter: expected one whole number, got a list",
    ),
    "a density beyond one in a list": (
        {"merge_method": "ties", "base_model": "a", "models": [{"model": "b", "parameters": {"density": [0.5, 2]}}]},
        r"density: expected a number from 0 to 1, got a list",
    ),
    "slerp without t": (
        {"merge_method": "slerp", "base_model": "a", "models": models(b=None)},
        "slerp needs a t: 0 is the first model, 1 the second",
    ),
    "ties without a base": ({**LINEAR, "merge_method": "ties"}, "ties needs a base model"),
    "unknown method": ({**LINEAR, "merge_method": "linera"}, "unknown merge method: .* Did you mean 'linear'"),
    "no method": ({"models": models(a=1)}, "there is no merge_method"),
    "misspelt key": ({**LINEAR, "dtypes": "float32"}, "'dtypes' of a configuration is not .* Did you mean 'dtype'"),
    "misspelt parameter": ({**LINEAR, "parameters": {"weigth": 1}}, "'weigth' of a linear .* Did you mean 'weight'"),
    "misplaced parameter": ({**LINEAR, "weight": 1}, "the key 'weight' of a configuration is not supported"),
    "key of a model": ({**LINEAR, "models": [{"model": "a", "weight": 1}]}, "the key 'weight' of a model is not"),
    "neither": ({"merge_method": "linear"}, "expected either `models` or `slices`, got neither"),
    "both": ({**LINEAR, "slices": [STACK]}, "expected either `models` or `slices`, got both"),
    "no list": ({"merge_method": "linear", "models": "a"}, "models: expected a list, got the text 'a'"),
    "no model": ({"merge_method": "linear", "models": [{}]}, "missing key 'model'"),
    "override": ({**LINEAR, "models": [{"model": {"path": "a", "revision": "x"}}]}, "expected the path of a model"),
    "template": ({**LINEAR, "chat_template": [1]}, "chat_template: expected a text, got a list"),
    "missing model": ({**LINEAR, "models": models(a=1, none=1)}, r"merge\.yml:6:3: there is no model at 'none'"),
    "no weight": ({**LINEAR, "models": models(a=1, b=None)}, r"merge\.yml:6:3: 'b' has no weight"),
    "no weight for the base": ({**LINEAR, "base_model": "c"}, r"merge\.yml:\d+:13: 'c' has no weight"),
    "no weight for some": (
        {**LINEAR, "models": models(a=1, b=[{"filter": "mlp", "value": 1}])},
        "'b' has no weight for 'model.embed_tokens.weight'",
    ),
    "ties without a weight": (
        {"merge_method": "ties", "base_model": "a", "models": models(a=None, b=None)},
        r"merge\.yml:\d+:3: 'b' has no weight for 'model\.",
    ),
    "nuslerp without a weight": ({"merge_method": "nuslerp", "models": models(a=1, b=None)}, "'b' has no weight for"),
    "slices without a weight": (
        {
            "merge_method": "dare_ties",
            "base_model": "a",
            "slices": [{"sources": [{"model": name, "layer_range": [0, 1]} for name in "ab"]}],
        },
        "'b' has no weight for",
    ),
    "ties without a weight for some": (
        {"merge_method": "ties", "base_model": "a", "models": models(b=[{"filter": "mlp", "value": 1}])},
        "'b' has no weight for 'model.embed_tokens.weight'",
    ),
    "weights of sum 0": ({**LINEAR, "models": models(a=1, b=-1)}, "the weights add up to 0"),
    "text for a weight": ({**LINEAR, "models": models(a="x")}, "weight: expected a number or a list of numbers"),
    "truth for a weight": ({**LINEAR, "models": models(a=True)}, "weight: expected a number"),
    "twice": ({**LINEAR, "models": [{"model": "a"}, {"model": "a"}]}, "'a' is merged with itself, which cannot"),
    "no finite weight": ({**LINEAR, "models": models(a=float("inf"))}, "weight: expected a number"),
    "number for a switch": ({**LINEAR, "parameters": {"normalize": 3}}, "normalize: expected true or false"),
    "condition without value": ({**LINEAR, "models": models(a=[{"filter": "x"}])}, "weight: missing key 'value'"),
    "dtype": ({**LINEAR, "dtype": "int8"}, "dtype: expected one of float16, bfloat16, .* got the text 'int8'"),
    "tokenizer": ({**LINEAR, "tokenizer_source": {"path": "a"}}, "expected the path of a model"),
    "tokenizer twice": (
        {**LINEAR, "tokenizer_source": "base", "tokenizer": {"source": "union"}},
        "expected a mapping under `tokenizer`, and no `tokenizer_source`",
    ),
    "token of another model": (
        {**LINEAR, "tokenizer": {"source": "union", "tokens": {"x": {"source": "c"}}}},
        "the row of 'x' comes from 'c', which is not merged",
    ),
    "token of no kind": (
        {**LINEAR, "tokenizer": {"source": "union", "tokens": {"x": {"source": {"kind": "mean"}}}}},
        r"expected \{kind: zero\}, or \{kind: model_token",
    ),
    "padding": ({**LINEAR, "tokenizer": {"pad_to_multiple_of": 0}}, "pad_to_multiple_of: expected a positive number"),
    "no base": ({"merge_method": "task_arithmetic", "models": models(a=1)}, "task_arithmetic needs a base model"),
    "two for passthrough": (
        {"merge_method": "passthrough", "models": [{"model": "a"}, {"model": "b"}]},
        "passthrough takes one model for each layer, got 2",
    ),
    "range": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [2, 1]}]}]},
        r"layer_range: expected \[FIRST, END\] with FIRST < END, got \[2, 1\]",
    ),
    "vast range": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 10**30]}]}]},
        r"layer_range: expected \[FIRST, END\]",
    ),
    "no range": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a"}]}]},
        "layer_range: .* got nothing",
    ),
    "beyond": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 9]}]}]},
        rf"layer_range \[0, 9\] goes beyond 'a', which has {LAYERS} layers",
    ),
    "unequal": (
        {
            "merge_method": "linear",
            "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 3]}]}],
        },
        "different numbers of layers",
    ),
    "base not in a slice": (
        {"merge_method": "task_arithmetic", "base_model": "c", "slices": [STACK]},
        "the base model is not a source of this slice",
    ),
    "hub for slices": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "org/one", "layer_range": [0, 2]}]}]},
        "'org/one' is not on this machine, .* depends on its names",
    ),
    "hub for filters": (
        {**LINEAR, "models": models(**{"org/one": [{"filter": "mlp", "value": 1}], "b": 1})},
        "'org/one' is not on this machine",
    ),
}


def test_weights_without_a_sum_are_added_up_where_the_remedy_is_followed(here: Path):
    held = put_models(here)
    config = {**LINEAR, "models": models(a=0.1, b=-0.1)}
    with pytest.raises(bs.PlanError, match="add up to 0") as told:
        plan_of(put_config(here, config).name)
    assert "`normalize: false`" in told.value.diagnostics[0].hint
    (here / "plan.yaml").write_text(plan_of(put_config(here, {**config, "parameters": {"normalize": False}}).name))
    bs.load("plan.yaml").run(durable=False)
    for name, x in read(here / "merged" / "model.safetensors").items():
        wanted = 0.1 * held["a"][name] - 0.1 * held["b"][name]
        np.testing.assert_allclose(x, wanted, atol=1e-6)


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_a_missing_weight_is_given_as_the_remedy_says(here: Path, method: str):
    put_models(here)
    some = [{"filter": "mlp", "value": 0.5}]

    def config(weight: object) -> str:
        own = {} if weight is None else {"parameters": {"weight": weight}}
        merged = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", **own}]
        return put_config(here, {"merge_method": method, "base_model": "a", "models": merged}).name

    assert "Add `parameters: {weight: 1.0}` to it" in hint_of(lambda: plan_of(config(None)), "Add")
    assert plan_of(config(1.0))
    hint_of(lambda: plan_of(config(some)), "Make its `weight` a list whose last item is `value: 1.0`")
    assert ("mlp" in (said := plan_of(config([*some, {"value": 1.0}])))) and "0.5" in said


def test_the_layers_of_a_slice_are_given_as_the_remedy_says(here: Path):
    put_models(here)

    def stacked(bounds: list[int]) -> str:
        piece = {"sources": [{"model": "a", "layer_range": bounds}]}
        return put_config(here, {"merge_method": "passthrough", "slices": [piece]}).name

    hint_of(lambda: plan_of(stacked([0, 0])), "`[0, 1]` is layer 0 alone")
    (here / "plan.yaml").write_text(plan_of(stacked([0, 1])))
    bs.load("plan.yaml").run(durable=False)
    layers = {name.split(".")[2] for name in read(here / "merged" / "model.safetensors") if ".layers." in name}
    assert layers == {"0"}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_imported_is_an_error_that_names_it(here: Path, kind: str):
    put_models(here)
    config, message = REFUSED[kind]
    with pytest.raises(bs.PlanError, match=message):
        plan_of(put_config(here, config).name)


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_quantized_models_become_floats_before_they_are_merged(here: Path, method: str, sliced: bool):
    put_models(here)
    codes = {"quantize": {"target": r"m::.*_proj\.weight", "to": "float8_e4m3fn", "per": "block", "block": [8, 8]}}
    bs.load({"inputs": ["m::b"], "transforms": [codes], "output": "q/"}).run(durable=False)
    floats = {"dequantize": {"target": "m::.*", "to": "float32"}}
    bs.load({"inputs": ["m::q"], "transforms": [floats], "output": "f/"}).run(durable=False)
    found = {}
    for name in "qf":
        given = models(**{"a": 0.5, name: 0.5})
        if sliced:
            given = [{"sources": [{**each, "layer_range": [1, 3]} for each in given]}]
        config = {
            "merge_method": method,
            "base_model": "a",
            "dtype": "float32",
            "slices" if sliced else "models": given,
        }
        (here / "plan.yaml").write_text(plan_of(put_config(here, config).name))
        bs.load("plan.yaml").run(durable=False, overwrite=True)
        found[name] = read(here / "merged" / "model.safetensors")
        assert "quantization_config" not in json.loads((here / "merged" / "config.json").read_text())
    assert found["q"].keys() == found["f"].keys()
    assert all((x == found["f"][name]).all() for name, x in found["q"].items())


def test_all_mistakes_are_told_at_once(here: Path):
    config = {
        "merge_method": "linear",
        "models": [{"modle": "a"}, {"model": "b", "parameters": {"weigth": 1}}],
        "dtyp": 1,
    }
    with pytest.raises(bs.PlanError) as caught:
        plan_of(put_config(here, config).name)
    assert [d.span.line for d in caught.value.diagnostics if d.span] == [7, 3, 3, 6]


@pytest.mark.parametrize("text", ["", "- a\n", "text\n", "a: [\n"])
def test_what_is_no_configuration_is_told(here: Path, text: str):
    (here / "merge.yml").write_text(text)
    with pytest.raises(bs.PlanError):
        plan_of("merge.yml")


def test_a_model_whose_ends_cannot_be_told_apart_is_refused(here: Path):
    for letter in "ab":
        (here / letter).mkdir()
        (here / letter / "config.json").write_text(json.dumps(dict(CONFIG)))
        write(here / letter / "model.safetensors", {f"model.layers.{i}.w": normal((2, 2)) for i in range(LAYERS)} |
              {"mystery": normal((2, 2))})  # fmt: skip
    slices = [{"sources": [{"model": m, "layer_range": [0, 2]}]} for m in "ab"]
    with pytest.raises(bs.PlanError, match="does 'mystery' of 'a' belong before its layers, or behind them"):
        plan_of(put_config(here, {"merge_method": "passthrough", "slices": slices}).name)


# --- Patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "pattern"),
    [(range(8, 24), r"[89]|1\d|2[0-3]"), (range(32), r"\d+"), (range(3), "[0-2]"), ([5], "5"), ([1, 4], "[14]"),
     (range(10, 30), r"[12]\d"), ([0, 11, 21, 31], "0|[1-3]1"), (range(95, 105), r"9[5-9]|10[0-4]")],
)  # fmt: skip
def test_numbers_are_chosen_by_a_short_pattern(chosen: range, pattern: str):
    assert numbers(chosen, 32) == pattern


def test_names_are_chosen_by_the_simplest_filter_that_will_do():
    names = ["a.mlp.w", "a.attn.w", "norm"]
    assert choose(names, names, ["mlp"]) == ".*"
    assert choose(["a.mlp.w"], names, ["mlp"]) == ".*mlp.*"
    assert choose(["a.attn.w", "norm"], names, ["mlp"]) == "(?!.*mlp).*"
    assert choose(["norm"], names, ["mlp"]) is None


def test_a_single_module_is_the_model(here: Path):
    held = put_models(here)
    inner = {"models": models(a=None, b=None), "parameters": {"weight": [{"filter": "mlp", "value": 3}, {"value": 1}]}}
    inner["models"][0]["parameters"] = {"weight": 1}
    found = merged(here, {"merge_method": "linear", "modules": {"default": inner}, "dtype": "float32"})
    for name, x in found.items():
        weights = (1, 3 if "mlp" in name else 1)
        close(x, (held["a"][name] * weights[0] + held["b"][name] * weights[1]) / sum(weights))


def test_several_modules_are_refused_with_what_to_write(here: Path):
    put_models(here)
    pieces = {name: {"models": models(a=1, b=1)} for name in ("text", "vision")}
    with pytest.raises(bs.PlanError, match="expected one module") as told:
        plan_of(put_config(here, {"merge_method": "linear", "modules": pieces}).name)
    assert "a step `merge` for each, whose key `of` has the pattern" in str(told.value)


def test_a_model_may_be_written_as_a_mapping(here: Path):
    put_models(here)
    listed = [{"model": {"model": {"path": x}}, "parameters": {"weight": 1}} for x in "ab"]
    assert "- a::a\n  - b::b\n" in plan_of(put_config(here, {"merge_method": "linear", "models": listed}).name)
