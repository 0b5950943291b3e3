"""Every recipe applied to trees under `jax.jit`, with and without 64 bits: those that need more than tensors, such as a
config, say so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import read
from tests.plans.recipe_inputs import INPUTS

NEEDS: Mapping[str, str] = {
    "lora-extract": "the shape of its result depends on values",
    "phlora-delta": "the shape of its result depends on values",
    "moe-upcycle": "came without a config.json",
    "olmoe": "came without a config.json",
    "expert-removal": "came without a config.json",
    "drop-layers": "came without a config.json",
    "head-pruning": "came without a config.json",
    "fold-norms": "came without a config.json",
    "lora-fold": "came without an adapter_config.json",
    "diff-check": "cannot print values while JAX traces",
}
"""What a trace of arrays alone does not have, in the words of the refusal."""
APPLIED = sorted(set(INPUTS) - set(NEEDS))
Trees = dict[str, dict[str, Any]]


def given(name: str, folder: Path) -> tuple[Any, Trees, Any]:
    """A recipe as a plan, the tensors of its inputs by alias, and where it writes."""
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in INPUTS[name](folder).items()}
    plan = bs.load(f"recipe:{name}", **settings)
    trees = {i.alias: {n: np.asarray(x) for n, x in bs.open(i.path).items()} for i in plan.data.inputs}
    return plan, trees, settings.get("out")


def written(out: str) -> Mapping[str, np.ndarray]:
    path = Path(out)
    return read(path / "model.safetensors" if path.is_dir() else path)


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Leaves by the names that a tree of dicts makes of them."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {n: x for key, inner in tree.items() for n, x in flat(inner, f"{name}.{key}" if name else key).items()}


def near(found: Any, wanted: Any) -> bool:
    """Whether two arrays agree up to the rounding of one product of matrices in their dtype."""
    wide = [np.asarray(x).astype(np.float64) for x in (found, wanted)]
    within = 2.0**-7 if np.asarray(wanted).dtype.itemsize == 2 else 1e-4
    return np.asarray(found).dtype == np.asarray(wanted).dtype and np.allclose(*wide, rtol=within, atol=within)


@pytest.mark.parametrize("wide", [False, True], ids=["default", "x64"])
@pytest.mark.parametrize("name", APPLIED)
def test_a_traced_recipe_gives_what_it_writes(name: str, wide: bool, tmp_path: Path) -> None:
    plan, trees, out = given(name, tmp_path)
    with jax.enable_x64(wide):
        made = flat(jax.jit(lambda trees: plan.apply(**trees, checks="skip"))(trees))
    plan.run(durable=False)
    wanted = written(out)
    assert set(made) == set(wanted)
    assert {n: made[n].shape for n in made} == {n: x.shape for n, x in wanted.items()}
    # Of factors another pair has the same product up to the tolerance of `phlora`, which has tests of its own.
    assert [n for n, x in wanted.items() if not near(made[n], x) and not n.startswith("factors.")] == []


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_a_recipe_that_needs_more_than_arrays_says_so(name: str, tmp_path: Path) -> None:
    plan, trees, _ = given(name, tmp_path)
    with pytest.raises(PlanError, match=NEEDS[name]):
        jax.jit(lambda trees: plan.apply(**trees, checks="skip"))(trees)
