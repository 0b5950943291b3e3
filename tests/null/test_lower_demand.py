"""Steps whose shapes depend on data: their numbers are demanded once, and bounded where nothing may be computed."""

from __future__ import annotations

from dataclasses import replace

from brainsurgery_jax.lower import Demand, Program, lower, lower_step
from tests.null.world import MODEL, Headers, before, planned, tensor

PHLORA = {"phlora": {"target": "([wv])", "target_a": r"\1.A", "target_b": r"\1.B", "rank": {"energy": 0.9}}}


def world(*, provisional: bool) -> Headers:
    return Headers({"m.safetensors": MODEL}, provisional=provisional)


def test_a_rank_by_energy_is_demanded_once_for_all_tensors_of_the_step():
    plan = planned(PHLORA)
    state, files = before(plan, world(provisional=False))
    demand = lower_step(state, plan.steps[0], files)
    assert isinstance(demand, Demand)
    assert demand.step is plan.steps[0]
    assert [(str(e.aval), e.srcs[0].name) for e in demand.exprs] == [("i64[]", "v"), ("i64[]", "w")]


def test_with_the_numbers_known_the_step_is_lowered():
    plan = planned(PHLORA)
    state, files = before(plan, world(provisional=False))
    demand = lower_step(state, plan.steps[0], files)
    assert isinstance(demand, Demand)
    told = lower_step(replace(state, known=dict(zip(demand.exprs, (2, 1), strict=True))), plan.steps[0], files)
    assert not isinstance(told, Demand)
    assert {n: str(tensor(told, n).aval) for n in ("v.A", "v.B", "w.A", "w.B")} == {
        "v.A": "f32[2,3]", "v.B": "f32[4,2]", "w.A": "f32[1,3]", "w.B": "f32[4,1]",
    }  # fmt: skip
    assert not tensor(told, "w.A").provisional


def test_check_goes_on_with_the_largest_rank():
    lowered = provisional(PHLORA)
    assert [str(e.aval) for e in lowered.publications[0].tensors.values()] == [
        "bf16[3]", "i64[6]", "f32[3,3]", "f32[4,3]", "f32[3,3]", "f32[4,3]",
    ]  # fmt: skip
    assert all(e.provisional for n, e in lowered.publications[0].tensors.items() if n[0] in "wv")


def test_a_mistake_behind_an_unknown_rank_is_only_a_note():
    lowered = provisional(PHLORA, {"assert": {"shape": {"of": "w.A", "is": [2, 3]}}})
    assert [(d.code, d.severity) for d in lowered.diagnostics] == [("assert-failed", "note")]
    assert lowered.errors == ()


def test_a_mistake_elsewhere_behind_an_unknown_rank_is_an_error():
    lowered = provisional(PHLORA, {"assert": {"shape": {"of": "ids", "is": [2, 3]}}})
    assert [(d.code, d.severity) for d in lowered.diagnostics] == [("assert-failed", "error")]


def test_a_rank_by_energy_in_place_needs_no_number():
    plan = planned({"phlora_": {"target": "[wv]", "rank": {"energy": 0.9}}})
    state, files = before(plan, world(provisional=False))
    assert not isinstance(lower_step(state, plan.steps[0], files), Demand)


def provisional(*steps: object) -> Program:
    plan = planned(*steps, output="out.safetensors")
    state, files = before(plan, world(provisional=True))
    lowered = lower(state, plan, files)
    assert isinstance(lowered, Program)
    return lowered


def test_the_effect_of_a_step_tells_whether_its_sizes_wait_for_values():
    assert [e.staged for e in provisional(PHLORA, {"delete": {"target": "ids"}}).effects] == [True, False]
