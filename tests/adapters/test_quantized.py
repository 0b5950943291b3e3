"""Adapters belong to models of floats: codes of quantized weights are refused from headers, with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import normal, problems, run_plan

W = {"h.q_proj.weight": normal((32, 32)), "h.norm.weight": normal((32,), seed=1)}
TUNED = {**W, "h.q_proj.weight": W["h.q_proj.weight"] + normal((32, 1), seed=2) @ normal((1, 32), seed=3)}
KINDS: dict[str, Any] = {
    "fp8 blocks": {"to": "float8_e4m3fn", "per": "block", "block": [8, 8]}, "int8": {"to": "int8", "per": "channel"},
    "gptq": {"to": "gptq", "group": 8}, "mxfp4": {"to": "mxfp4"},
}  # fmt: skip
KIND = pytest.mark.parametrize("kind", KINDS)


def quantize(kind: str, *aliases: str) -> list[Any]:
    return [{"quantize": {"target": f"{alias}::.*q_proj\\.weight", **KINDS[kind]}} for alias in aliases]


@KIND
@pytest.mark.parametrize("of", [None, r"base::.*_proj\.weight"])
@pytest.mark.parametrize("aliases", [("base", "tuned"), ("base",)])
def test_an_adapter_is_not_taken_out_of_codes(kind: str, of: Any, aliases: Any, tmp_path: Path):
    step = {"base": "base", "tuned": "tuned", "to": "lora", "rank": 1} | ({} if of is None else {"of": of})
    tensors = {"base": W, "tuned": TUNED}
    (found,) = problems(tmp_path, tensors, [*quantize(kind, *aliases), {"lora_extract": step}])
    assert (found.code, found.severity) == ("scale-ignored", "error")
    assert all(f"`dequantize: {{target: '{alias}::.*', to: float32}}`" in found.hint for alias in aliases)


@KIND
def test_an_adapter_is_not_merged_into_codes(kind: str, tmp_path: Path):
    adapter = {"h.q_proj.lora_A.weight": normal((2, 32)), "h.q_proj.lora_B.weight": normal((32, 2))}
    steps = [*quantize(kind, "base"), {"lora_merge": {"base": "base", "adapters": "a"}}]
    (found,) = problems(tmp_path, {"base": W, "a": adapter}, steps)
    assert (found.code, found.hint) == (
        "scale-ignored",
        "Make floats of it before: `dequantize: {target: 'base::.*', to: float32}`.",
    )


def test_an_adapter_of_other_modules_is_merged_into_a_base_of_which_some_are_codes(tmp_path: Path):
    base = {**W, "h.k_proj.weight": normal((32, 32), seed=4)}
    adapter = {"h.k_proj.lora_A.weight": normal((2, 32)), "h.k_proj.lora_B.weight": normal((32, 2))}
    steps = [*quantize("int8", "base"), {"lora_merge": {"base": "base", "adapters": "a"}}]
    made = run_plan(tmp_path, {"base": base, "a": adapter}, steps)
    wanted = base["h.k_proj.weight"] + adapter["h.k_proj.lora_B.weight"] @ adapter["h.k_proj.lora_A.weight"]
    np.testing.assert_allclose(made["h.k_proj.weight"], wanted, atol=1e-5)


def test_models_that_are_dequantized_give_the_adapter_of_what_their_codes_stand_for(tmp_path: Path):
    floats = [{"dequantize": {"target": f"{alias}::.*", "to": "float32"}} for alias in ("base", "tuned")]
    extract = {"lora_extract": {"base": "base", "tuned": "tuned", "to": "lora", "rank": 32, "method": "exact"}}
    steps = [*quantize("int8", "base", "tuned"), *floats, extract, {"lora_merge": {"base": "base", "adapters": "lora"}}]
    made = run_plan(tmp_path, {"base": W, "tuned": TUNED}, steps)
    x = TUNED["h.q_proj.weight"]
    scale = np.abs(x).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(made["h.q_proj.weight"], np.round(x / scale) * scale, atol=1e-4)
