"""The plans that merge models, against what NumPy says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import read, write
from tests.importers.merges import LAYERS, layer_of, shapes
from tests.merging import oracles as by
from tests.merging.cases import normal
from tests.plans.count_lines import plan_lines

PLANS = Path(__file__).resolve().parents[2] / "plans"
Models = Mapping[str, np.ndarray]


class MergePlan(NamedTuple):
    """A plan, and what an oracle says of a tensor of its models. `listed`: those given under `models`."""

    name: str
    models: tuple[str, ...]
    oracle: Callable[[str, Models], np.ndarray]
    settings: Mapping[str, Any] = {}
    listed: tuple[str, ...] = ()


def _t(name: str) -> float:
    place = (layer_of(name) or 0) / (LAYERS - 1) if layer_of(name) is not None else 1.0
    return 0 if "embed" in name else place if "attn" in name and layer_of(name) is not None else 0.25 + 0.5 * place


MERGES = (
    MergePlan("merge_ties", ("base", "a", "b"), settings={"density": 0.2}, listed=("a", "b"),
              oracle=lambda n, x: by.ties(x["base"], [x["a"], x["b"]], (1, 1), (0.2, 0.2))),
    MergePlan("merge_slerp", ("a", "b"), lambda n, x: by.slerp(None, [x["a"], x["b"]], _t(n))),
    MergePlan("merge_stock", ("base", "a", "b"), lambda n, x: by.model_stock(x["base"], [x["a"], x["b"]]),
              listed=("a", "b")),
    MergePlan("merge_fisher", ("a", "b", "fa", "fb"),
              lambda n, x: by.fisher(None, [x["a"], x["b"]], [x["fa"] ** 2, x["fb"] ** 2])),
)  # fmt: skip


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: merge.name)
def test_a_merge_is_what_numpy_says(merge: MergePlan, tmp_path: Path):
    held: dict[str, dict[str, np.ndarray]] = {}
    settings: dict[str, Any] = {"out": str(tmp_path / "out.safetensors"), **merge.settings}
    for seed, alias in enumerate(merge.models):
        held[alias] = {n: normal(shape, seed=50 * seed + at) for at, (n, shape) in enumerate(shapes().items())}
        stored = {n: x**2 for n, x in held[alias].items()} if alias.startswith("f") else held[alias]
        settings[alias] = str(write(tmp_path / f"{alias}.safetensors", stored))
    if merge.listed:
        settings["models"] = [settings.pop(alias) for alias in merge.listed]
    bs.load(PLANS / f"{merge.name}.yaml", **settings).run(durable=False)
    made = read(settings["out"])
    for name, x in made.items():
        wanted = merge.oracle(name, {alias: tensors[name] for alias, tensors in held.items()})
        np.testing.assert_allclose(x, wanted, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: merge.name)
def test_a_merge_takes_few_lines(merge: MergePlan):
    assert plan_lines((PLANS / f"{merge.name}.yaml").read_text(encoding="utf-8")) <= 9


def test_ties_takes_six_lines_at_most():
    assert plan_lines((PLANS / "merge_ties.yaml").read_text(encoding="utf-8")) <= 6
