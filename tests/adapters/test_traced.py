"""Adapters in `plan.apply`, under `jax.jit` too: what reads no file and no config works there, or says why not."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import normal

BASE = {"h.w.weight": normal((6, 5)), "h.w.bias": normal((6,), seed=1)}
LORA = {"h.w.lora_A.weight": normal((2, 5), seed=2), "h.w.lora_B.weight": normal((6, 2), seed=3)}


EXTRACT = {"base": "base", "tuned": "tuned", "rank": 1}


def plan(step: Any, alias: str, *inputs: str) -> Any:
    """A step on trees, of which the result is an alias."""
    given = [f"{name}::given-as-a-tree" for name in inputs]
    return bs.load({"inputs": given, "transforms": [step], "output": {"path": "o", "alias": alias}})


def test_a_merge_under_jit_is_that_outside_and_has_gradients():
    step = {"lora_merge": {"base": "base", "adapters": {"lora": 0.5}, "config": {"lora_alpha": 4}}}
    made = plan(step, "base", "base", "lora")
    wanted = BASE["h.w.weight"] + LORA["h.w.lora_B.weight"] @ LORA["h.w.lora_A.weight"]
    np.testing.assert_allclose(made.apply(base=BASE, lora=LORA)["h.w.weight"], wanted, atol=1e-6)
    merge = lambda lora: made.apply(base=BASE, lora=lora)["h.w.weight"]  # noqa: E731
    np.testing.assert_allclose(jax.jit(merge)(LORA), wanted, atol=1e-6)
    grown = jax.grad(lambda lora: merge(lora).sum())(LORA)
    np.testing.assert_allclose(grown["h.w.lora_B.weight"], np.ones((6, 5)) @ LORA["h.w.lora_A.weight"].T, atol=1e-5)


def test_an_extraction_outside_of_a_trace_gives_factors():
    tuned = {**BASE, "h.w.weight": BASE["h.w.weight"] + normal((6, 1)) @ normal((1, 5))}
    made = plan({"lora_extract": {**EXTRACT, "to": "lora"}}, "lora", "base", "tuned")
    factors = made.apply(base=BASE, tuned=tuned)["base_model"]["model"]["h"]["w"]
    product = np.asarray(factors["lora_B"]["weight"]) @ np.asarray(factors["lora_A"]["weight"])
    np.testing.assert_allclose(product, tuned["h.w.weight"] - BASE["h.w.weight"], atol=1e-5)


def test_which_tensors_differ_cannot_be_told_under_a_trace():
    made = plan({"lora_extract": {**EXTRACT, "to": "lora"}}, "lora", "base", "tuned")
    with pytest.raises(PlanError, match="depends on values") as caught:
        jax.jit(lambda tree: made.apply(base=BASE, tuned=tree, checks="skip"))(BASE)
    assert [d.code for d in caught.value.diagnostics] == ["apply-values"]
