"""Edits under `jit` are those of a run, and no run holds more than was projected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import normal, plan_of, run_plan
from tests.editing.test_methods import covariance
from tests.engine.test_memory import check

Tensors = dict[str, np.ndarray]


@pytest.mark.parametrize("keys", [{"ratio": 0.5}, {"pattern": "2:4"}], ids=str)
def test_sparsegpt_under_jit_goes_on_from_block_to_block(keys: dict[str, Any], tmp_path: Path) -> None:
    tensors = {"w": normal((4, 300)), "h": covariance(300, 700)}
    steps = [{"sparsegpt_": {"target": "w", "hessian": "h", **keys}}]
    wanted = run_plan(tmp_path, tensors, steps)["w"]
    plan = bs.load({"transforms": steps})
    found = jax.jit(lambda tree: plan.apply(tree, checks="skip"))({n: jnp.asarray(x) for n, x in tensors.items()})["w"]
    assert ((np.asarray(found) == 0) == (wanted == 0)).all()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def tensors(rows: int, columns: int) -> Tensors:
    w = np.resize(normal((1 << 16,)), (rows, columns))
    facts = {"keys": normal((2, columns)), "values": normal((2, rows)), "c": np.eye(columns, dtype=np.float32)}
    return {"w": w, "old": w, "fisher": w**2, "r": normal((rows,)), "x": np.abs(normal((columns,))), **facts}


EDITS: dict[str, dict[str, Any]] = {
    "ablate_": {"direction": "r"}, "consolidate_": {"old": "old", "fisher": "fisher"},
    "wanda_": {"norms": "x", "ratio": 0.5}, "emmet_": {"keys": "keys", "values": "values", "covariance": "c"},
    "memit_": {"keys": "keys", "values": "values", "covariance": "c"},
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_holds_no_more_than_projected(name: str, tmp_path: Path) -> None:
    step = {name: {"target": "w", **EDITS[name]}}
    check((plan_of(tmp_path, tensors(6000, 900), step), plan_of(tmp_path, tensors(60, 40), step)))


@pytest.mark.parametrize("name", ["ablate_", "consolidate_", "wanda_"])
def test_rows_are_held_only_some_at_a_time(name: str, tmp_path: Path) -> None:
    step = {name: {"target": "w", **EDITS[name]}}
    long, short = (bs.load(plan_of(tmp_path, tensors(n, 1000), step)).explain().peak_in_all for n in (12000, 6000))
    assert long < 1.1 * short
