"""Quantized models are not merged: their codes would be those of one model, beside the scales of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.checkpoints import normal, problems, run_plan
from tests.hints.cases import quoted
from tests.merging.cases import merge
from tests.quantized import FORMATS

pytestmark = pytest.mark.usefixtures("here")

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear", "models": ["a", "b"]},
    "slerp": {"method": "slerp", "models": ["a", "b"], "parameters": {"t": 0.5}},
    "task_arithmetic": {"method": "task_arithmetic", "base": "a", "models": ["b"]},
}
NORM = {"norm": normal((3,))}


@pytest.mark.parametrize("which", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_models_whose_weights_are_codes_are_not_merged(method: str, which: str, tmp_path: Path):
    tensors = {alias: {**FORMATS[which].tensors, **NORM} for alias in "ab"}
    (found,) = problems(tmp_path, tensors, {"merge": {**METHODS[method], "to": "m"}})
    codes = next(iter(FORMATS[which].tensors))
    assert (found.code, found.severity) == ("scale-ignored", "error")
    assert f"'a::{codes}' holds codes, " in found.message
    assert quoted(found.hint) == [f"dequantize: {{target: '{alias}::.*', to: float32}}" for alias in "ab"]


@pytest.mark.parametrize("which", FORMATS)
def test_models_are_merged_once_the_steps_of_the_remedy_make_floats_of_their_codes(which: str, tmp_path: Path):
    quantized = FORMATS[which]
    tensors = {alias: {**quantized.tensors, **NORM} for alias in "ab"}
    keys = {**METHODS["linear"], "models": {"a": 1, "b": 2}, "to": "a", "parameters": {"normalize": False}}
    (found,) = problems(tmp_path, tensors, {"merge": keys})
    steps = [*map(yaml.safe_load, quoted(found.hint)), {"merge": keys}]
    made = run_plan(tmp_path, tensors, steps)
    assert made.keys() == {quantized.name, "norm"}
    assert made[quantized.name].tolist() == (3 * quantized.floats).tolist()


def test_what_is_no_code_is_merged_into_a_quantized_model(tmp_path: Path):
    tensors = {alias: {**FORMATS["gptq"].tensors, "norm": normal((3,), seed=seed)} for seed, alias in enumerate("ab")}
    made = run_plan(tmp_path, tensors, {"merge": {**METHODS["linear"], "to": "a", "of": "a::norm"}})
    np.testing.assert_allclose(made["norm"], (tensors["a"]["norm"] + tensors["b"]["norm"]) / 2, rtol=1e-6)
    assert all(np.array_equal(made[name], x) for name, x in FORMATS["gptq"].tensors.items())


def test_one_quantized_model_passes_through_as_it_is(tmp_path: Path):
    tensors = {"a": FORMATS["gptq"].tensors, "b": NORM}
    made = merge(tmp_path, tensors, {"method": "passthrough", "models": ["a"], "to": "m"})
    assert all(np.array_equal(made[name], x) for name, x in FORMATS["gptq"].tensors.items())


@pytest.mark.parametrize("which", FORMATS)
@pytest.mark.parametrize("of", ["a::.*(scale|SCB|absmax).*", "a::(?!norm).*"])
def test_neither_codes_nor_scales_are_merged_alone(of: Any, which: str, tmp_path: Path):
    tensors = {alias: {**FORMATS[which].tensors, **NORM} for alias in "ab"}
    found = problems(tmp_path, tensors, {"merge": {**METHODS["linear"], "to": "m", "of": of}})
    assert [bad.code for bad in found if bad.severity == "error"] == ["scale-ignored"]
