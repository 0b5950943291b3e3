"""Every mutator plants something into one of our plans, and what it plants is another plan or another input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.auditing.audit import MUTATORS, plant
from brainsurgery_jax.auditing.cases import Case, Mutant, Mutator, from_plan
from brainsurgery_jax.auditing.stand_ins import make_stand_ins
from tests.checkpoints import normal, write
from tests.plans.recipe_inputs import INPUTS

PLANS = ("bulk-regex", "surgery-validated", "moe-lowrank", "flexolmo-merge", "minilm-back", "merge-ties", "rome",
         "head-pruning", "drop-layers", "steering", "fold-norms", "moe-upcycle", "lora-fold")  # fmt: skip


def cases(folder: Path) -> Iterator[Case]:
    for name in PLANS:
        (place := folder / name).mkdir()
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in INPUTS[name](place).items()}
        plan = bs.load(f"recipe:{name}", **settings)
        yield from_plan(plan, make_stand_ins(plan).stand_ins)
    parts = {f"h.{i}.{n}_proj.weight": normal((6, 6), seed=i) for i in range(12) for n in ("gate", "up", "q", "k")}
    path = write(folder / "parts.safetensors", parts | {"h.12.up_proj.weight": normal((6, 6))})
    steps = [
        {"permute_": {"target": r"h\.\d+\.q_proj\.weight", "order": [1, 0]}},
        {"concat": {"from": ["h.0.gate_proj.weight", "h.0.up_proj.weight"], "to": "both", "dim": 0}},
        {"scale_": {"target": "h.3.gate_proj.weight", "by": 0.5}},
        {"add_": {"from": "h.1.gate_proj.weight", "to": "h.2.gate_proj.weight"}},
        {"compute": {"from": {"w": "h.5.up_proj.weight"}, "expr": "w - 0.5 * mean(w, axis=1, keepdims=True)"}},
    ]
    plan = bs.load({"inputs": [f"m::{path}"], "transforms": steps, "output": str(folder / "out.safetensors")})
    yield from_plan(plan, make_stand_ins(plan).stand_ins)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, Mutator, Mutant]]:
    found = cases(tmp_path_factory.mktemp("mutators"))
    return [(case, mutator, mutant) for case in found for mutator, mutant in plant(case, 3)]


def test_every_mutator_applies_to_one_of_our_plans(planted: list[tuple[Case, Mutator, Mutant]]):
    assert {m.name for m in MUTATORS} - {mutator.name for _, mutator, _ in planted} == set()


def test_every_mutant_is_another_case(planted: list[tuple[Case, Mutator, Mutant]]):
    for case, mutator, mutant in planted:
        assert not same(case, mutant.case), (mutator.name, mutant.what)


def test_no_two_errors_of_a_plan_are_told_alike(planted: list[tuple[Case, Mutator, Mutant]]):
    for case in {id(case): case for case, _, _ in planted}.values():
        told = [mutant.what for own, _, mutant in planted if own is case]
        assert len(told) == len(set(told))


def same(left: Case, right: Case) -> bool:
    """Whether plans are the same and inputs hold the same bytes."""
    if left._replace(stand_ins={}) != right._replace(stand_ins={}):
        return False
    pairs = ((left.stand_ins[key], right.stand_ins[key]) for key in left.stand_ins)
    return all(a.avals == b.avals and a.side == b.side and all(
        np.array_equal(x.view(np.uint8), b.tensors[n].view(np.uint8)) for n, x in a.tensors.items() if x.ndim
    ) for a, b in pairs)  # fmt: skip
