"""What adapter_config.json says counts alike in every step on adapters, and is refused where it cannot be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

import brainsurgery_jax as bs
from brainsurgery_jax.errors import Diagnostic
from tests.adapters.models import QUIET, adapted, llama, logits, with_adapter
from tests.checkpoints import normal, problems, read, run_plan, write

pytestmark = QUIET

NAME = "base_model.model.w.lora_{}.weight"
FACTORS = {NAME.format("A"): normal((2, 3)), NAME.format("B"): normal((4, 2), seed=1)}
BASE = {"w.weight": normal((4, 3), seed=2)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["w"]}
STEPS: dict[str, Any] = {
    "lora_merge": {"lora_merge": {"base": "base", "adapters": "a"}},
    "lora_resize": {"lora_resize": {"adapter": "a", "rank": 1}},
}
BOTH = pytest.mark.parametrize("op", STEPS)


def plan(folder: Path, op: str, config: Any, tensors: Any = FACTORS) -> Any:
    (folder / "a").mkdir()
    write(folder / "a/adapter_model.safetensors", tensors)
    (folder / "a/adapter_config.json").write_text(json.dumps(config))
    base = write(folder / "base.safetensors", BASE)
    alias = "base" if op == "lora_merge" else "a"
    output = {"path": str(folder / "out") + "/", "alias": alias}
    return bs.load({"inputs": [f"base::{base}", f"a::{folder / 'a'}"], "transforms": [STEPS[op]], "output": output})


def said(folder: Path, op: str, config: Any, tensors: Any = FACTORS) -> Diagnostic:
    """What a check says of a step on an adapter."""
    return bs.check(plan(folder, op, config, tensors))[0]


@BOTH
@pytest.mark.parametrize(("wrong", "why"), [
    ({"lora_alpha": None}, "'lora_alpha' in adapter_config.json of 'a' is None, and PEFT takes a number"),
    ({"lora_alpha": "8"}, "is '8', and PEFT takes a number"),
    ({"lora_alpha": float("nan")}, "is nan, and PEFT takes a number"),
    ({"alpha_pattern": {"w": "5"}}, "and PEFT takes a mapping of patterns to alphas"),
    ({"alpha_pattern": [5]}, "and PEFT takes a mapping of patterns to alphas"),
    ({"rank_pattern": {"w": 2.0}}, "and PEFT takes a mapping of patterns to ranks"),
    ({"r": None}, "'r' in adapter_config.json of 'a' is None, and PEFT takes a whole number"),
    ({"r": "2"}, "is '2', and PEFT takes a whole number"),
    ({"use_rslora": "yes"}, "and PEFT takes true or false"),
    ({"fan_in_fan_out": 1}, "and PEFT takes true or false"),
    ({"use_dora": "no"}, "and PEFT takes true or false"),
    ({"target_modules": 3}, "and PEFT takes a list of names, or a regular expression"),
    ({"trainable_token_indices": 3}, "and PEFT takes a list of rows, or one for each table"),
])  # fmt: skip
def test_a_setting_of_another_type_is_refused_by_every_step(op: str, wrong: Any, why: str, tmp_path: Path):
    found = said(tmp_path, op, {**CONFIG, **wrong})
    assert (found.code, found.severity) == ("adapter-config", "error") and why in found.message


@BOTH
@pytest.mark.parametrize(("wrong", "why"), [
    ({"peft_type": "IA3"}, "'peft_type' in adapter_config.json of 'a' is IA3"),
    ({"peft_type": "ADALORA", "rank_pattern": {"w.lora_E": [True, False]}}, "'peft_type' in adapter_config.json of 'a' "
     "is ADALORA"),
    *(({"init_lora_weights": start}, f"is '{start}': it changed the base before training")
      for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")),
    *(({key: {}}, f"'{key}' in adapter_config.json of 'a' is set")
      for key in ("kasa_config", "velora_config", "monteclora_config", "arrow_config", "use_bdlora")),
])  # fmt: skip
def test_what_is_no_plain_lora_is_refused_by_every_step(op: str, wrong: Any, why: str, tmp_path: Path):
    found = said(tmp_path, op, {**CONFIG, **wrong})
    assert found.code == "adapter-merge" and why in found.message and "delete" not in found.hint


@BOTH
def test_settings_that_are_null_or_false_are_not_set(op: str, tmp_path: Path):
    unset = {
        "kasa_config": None,
        "velora_config": None,
        "use_bdlora": False,
        "rank_pattern": None,
        "alpha_pattern": None,
    }
    assert not [d for d in bs.check(plan(tmp_path, op, {**CONFIG, **unset})) if d.severity == "error"]


@BOTH
@pytest.mark.parametrize("wrong", [{"r": 8}, {"rank_pattern": {"w": 4}}])
def test_ranks_that_the_factors_do_not_have_are_refused(op: str, wrong: Any, tmp_path: Path):
    found = said(tmp_path, op, {**CONFIG, **wrong})
    assert found.code == "adapter-config" and "the factors of 'w' have rank 2, and the rank" in found.message


def test_peft_does_not_load_ranks_that_the_factors_do_not_have(tmp_path: Path):
    adapted(tmp_path, llama(), r=4, target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 8}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter"))


def test_the_config_of_one_of_several_adapters_is_corrected_by_the_step_that_the_hint_names(tmp_path: Path):
    first, second = tmp_path / "one", tmp_path / "two"
    for folder, config in ((first, {**CONFIG, "r": 8}), (second, CONFIG)):
        folder.mkdir()
        plan(folder, "lora_merge", config)
    merge = {"lora_merge": {"base": "base", "adapters": ["a", "b"]}}
    inputs = [f"base::{first / 'base.safetensors'}", f"a::{first / 'a'}", f"b::{second / 'a'}"]
    output = {"path": str(tmp_path / "out.safetensors"), "alias": "base"}
    (found,) = bs.check(bs.load({"inputs": inputs, "transforms": [merge], "output": output}))
    step = yaml.safe_load(found.hint.split("`")[1])
    assert step == {"config": {"alias": "a", "patch": {"r": 2}}}
    bs.load({"inputs": inputs, "transforms": [step, merge], "output": output}).run(durable=False)
    a, b = (FACTORS[NAME.format(x)].astype(np.float64) for x in "AB")
    made = read(tmp_path / "out.safetensors")["w.weight"]
    np.testing.assert_allclose(made, BASE["w.weight"] + 6 * b @ a, rtol=1e-5)


@BOTH
@pytest.mark.parametrize(("use", "there"), [(True, False), (False, True), (None, True)])
def test_magnitudes_of_which_a_config_says_otherwise_are_refused(
    op: str, use: bool | None, there: bool, tmp_path: Path
) -> None:
    magnitude = {"base_model.model.w.lora_magnitude_vector": np.ones(4, np.float32)} if there else {}
    config = CONFIG if use is None else {**CONFIG, "use_dora": use}
    found = said(tmp_path, op, config, {**FACTORS, **magnitude})
    assert found.code == "adapter-config" and f"there are {'' if there else 'no '}magnitudes of 'w'" in found.message


@BOTH
def test_magnitudes_of_some_modules_count_for_these(op: str, tmp_path: Path):
    names = {"w": FACTORS, "v": {name.replace("model.w", "model.v"): x for name, x in FACTORS.items()}}
    tensors = {**names["w"], **names["v"], "base_model.model.w.lora_magnitude_vector": np.ones(4, np.float32)}
    config = {**CONFIG, "use_dora": True, "target_modules": ["w", "v"]}
    made = plan(tmp_path, op, config, tensors)
    write(tmp_path / "base.safetensors", {**BASE, "v.weight": BASE["w.weight"]})
    assert [d for d in bs.check(made) if d.severity == "error"] == []


@BOTH
def test_biases_of_factors_that_peft_would_ignore_are_refused(op: str, tmp_path: Path):
    biased = {**FACTORS, "base_model.model.w.lora_B.bias": np.ones(4, np.float32)}
    found = said(tmp_path, op, CONFIG, biased)
    assert found.code == "adapter-config" and "there are biases of 'w', and lora_bias" in found.message


@BOTH
@pytest.mark.parametrize("targets", [["v", "q"], r".*\.v"])
def test_factors_that_peft_would_ignore_are_noted(op: str, targets: Any, tmp_path: Path):
    found = said(tmp_path, op, {**CONFIG, "target_modules": targets})
    assert (found.code, found.severity) == ("config-differs", "note")
    assert "does not name 'w' among target_modules" in found.message


@BOTH
@pytest.mark.parametrize("targets", [["w"], "all-linear", "w", None])
def test_factors_of_modules_that_a_config_names_are_not_noted(op: str, targets: Any, tmp_path: Path):
    notes = bs.check(plan(tmp_path, op, {**CONFIG, "target_modules": targets}))
    assert not [d for d in notes if d.message.startswith("lora_")]


@BOTH
@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight"])
def test_factors_of_integers_are_refused(op: str, part: str, tmp_path: Path):
    name = f"base_model.model.w.{part}"
    found = said(tmp_path, op, CONFIG, {**FACTORS, name: (FACTORS[name] * 50).astype(np.int8)})
    assert found.code == "dtype-unsupported" and f"factors are floats, and '{name}' is i8" in found.message


def test_integers_that_are_cast_are_merged_without_wrapping(tmp_path: Path):
    ints = {name: (x * 50).astype(np.int8) for name, x in FACTORS.items()}
    steps = [{"cast_": {"target": "a::.*", "to": "float32"}},
             {"lora_merge": {"base": "base", "adapters": "a", "config": {"lora_alpha": 6}}}]  # fmt: skip
    made = run_plan(tmp_path, {"base": BASE, "a": ints}, steps)
    a, b = (ints[NAME.format(x)].astype(np.float64) for x in "AB")
    np.testing.assert_allclose(made["w.weight"], BASE["w.weight"] + 3 * b @ a, rtol=1e-6)


def test_a_resized_adapter_whose_config_names_no_rank_counts_as_before(tmp_path: Path):
    plan(tmp_path, "lora_resize", {key: x for key, x in CONFIG.items() if key != "r"}).run(durable=False)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (1, 3)


def test_a_resized_adapter_without_a_config_counts_as_the_step_says(tmp_path: Path):
    model = adapted(tmp_path, llama(), r=8, lora_alpha=24, target_modules=["q_proj", "up_proj"])
    wanted = logits(model)
    (tmp_path / "adapter/adapter_config.json").unlink()
    step = {"lora_resize": {"adapter": "a", "rank": 16, "config": {"lora_alpha": 24}}}
    bs.load({"inputs": [f"a::{tmp_path / 'adapter'}"], "transforms": [step],
             "output": {"path": str(tmp_path / "out"), "format": "peft"}}).run(durable=False)  # fmt: skip
    torch.testing.assert_close(logits(with_adapter(tmp_path, tmp_path / "out")), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("adapters", "why"), [
    (["a", "a"], "'a' is named twice: name it once, with the weight of both, `{a: 2}`"),
    ({"a": float("nan")}, "the weight of 'a' is nan, and weights are finite"),
    ({"a": float("inf")}, "the weight of 'a' is inf, and weights are finite"),
])  # fmt: skip
def test_adapters_that_cannot_be_weighed_are_named(adapters: Any, why: str, tmp_path: Path):
    step = {"lora_merge": {"base": "base", "adapters": adapters}}
    (found,) = problems(tmp_path, {"base": BASE, "a": FACTORS}, step)
    assert why in found.message


@BOTH
def test_a_pattern_that_would_be_matched_for_ever_is_stopped(op: str, tmp_path: Path):
    long = f"base_model.model.{'a' * 60}b.lora_{{}}.weight"
    factors = {long.format("A"): FACTORS[NAME.format("A")], long.format("B"): FACTORS[NAME.format("B")]}
    endless = {**CONFIG, "rank_pattern": {"(a|a)*(a|aa)*(a+)+$": 2}}
    assert said(tmp_path, op, endless, factors).code == "regex-timeout"
