"""Steps whose shapes depend on data: their numbers are demanded once, and bounded where nothing may be computed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import Demand, Program, State, World, fold, lower, lower_step, lower_steps
from brainsurgery_jax.plan.model import PlanData, Step
from tests.null.world import Headers, before, planned, program, tensor

PHLORA = {"phlora": {"target": "([wv])", "target_a": r"\1.A", "target_b": r"\1.B", "rank": {"energy": 0.9}}}


class Answers:
    """Answers each demand with the next of these numbers for all its expressions, and notes what was asked."""

    def __init__(self, *numbers: int):
        self.numbers, self.asked = list(numbers), list[Demand]()

    def __call__(self, demand: Demand) -> Mapping[Expr, int]:
        self.asked.append(demand)
        return dict.fromkeys(demand.exprs, self.numbers.pop(0))


@pytest.fixture
def lowered_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ops of all steps that are lowered, each time that they are."""
    lowered: list[str] = []

    class Counted(fold.StepView):
        def __init__(self, state: State, step: Step, world: World):
            super().__init__(state, step, world)
            lowered.append("" if step.op is None else step.op.name)

    monkeypatch.setattr(fold, "StepView", Counted)
    return lowered


def ranked(name: str) -> dict[str, object]:
    """A step whose shapes depend on data."""
    return {"phlora": {"target": name, "target_a": f"{name}.A", "target_b": f"{name}.B", "rank": {"energy": 0.9},
                       "delete_original": False, "require_missing_dest": False}}  # fmt: skip


def test_a_rank_by_energy_is_demanded_once_for_all_tensors_of_the_step():
    plan = planned(PHLORA)
    answer = Answers(2)
    lower_step(*starting(plan), answer)
    (demand,) = answer.asked
    assert demand.step is plan.steps[0]
    assert [(str(e.aval), e.srcs[0].name) for e in demand.exprs] == [("i64[]", "v"), ("i64[]", "w")]


def test_with_the_numbers_known_the_step_is_lowered():
    plan = planned(PHLORA)
    state, world = before(plan)
    told = lower_step(state, plan.steps[0], world, lambda demand: dict(zip(demand.exprs, (2, 1), strict=True)))
    assert {n: str(tensor(told, n).aval) for n in ("v.A", "v.B", "w.A", "w.B")} == {
        "v.A": "f32[2,3]", "v.B": "f32[4,2]", "w.A": "f32[1,3]", "w.B": "f32[4,1]",
    }  # fmt: skip
    assert not tensor(told, "w.A").provisional


def test_a_demand_carries_the_state_before_its_step():
    plan = planned({"copy": {"from": "w", "to": "x"}}, ranked("x"))
    state, world = before(plan)
    answer = Answers(1)
    lower_steps(state, plan.steps, world, answer)
    assert "x" in answer.asked[0].state.spaces["m"].names
    assert "x.A" not in answer.asked[0].state.spaces["m"].names


def test_every_number_costs_its_own_step_once_more_and_no_other(lowered_steps: list[str]):
    scaled = [{"scale": {"from": "w", "to": f"w{i}", "by": i + 2}} for i in range(20)]
    plan = planned(*scaled, *(ranked(f"w{i}") for i in range(9)), output="out.safetensors")
    state, world = before(plan)
    answer = Answers(*[1] * 9)
    lower(state, plan, world, answer)
    assert lowered_steps == ["scale"] * 20 + ["phlora", "phlora"] * 9
    assert len(answer.asked) == 9


def test_one_number_of_one_tensor_under_two_names_is_demanded_once():
    plan = planned({"copy": {"from": "w", "to": "x"}}, ranked("w"), ranked("x"))
    state, world = before(plan)
    answer = Answers(1)
    lower(state, plan, world, answer)
    assert len(answer.asked) == 1


def test_numbers_of_plans_within_a_plan_lower_no_other_step_again(lowered_steps: list[str]):
    scaled = [{"scale_": {"target": "w", "by": by}} for by in (2, 3, 4)]
    inner = [step for by in scaled for step in (by, ranked("w"))]
    plan = planned({"execute": {"transforms": inner}})
    state, world = before(plan)
    answer = Answers(1, 2, 3)
    lower_steps(state, plan.steps, world, answer)
    assert len(answer.asked) == 3
    assert lowered_steps == ["execute", *(["scale_", "phlora", "phlora"] * 3)]


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
    answer = Answers()
    lower_step(*starting(planned({"phlora_": {"target": "[wv]", "rank": {"energy": 0.9}}})), answer)
    assert answer.asked == []


def starting(plan: PlanData) -> tuple[State, Step, Headers]:
    state, world = before(plan)
    return state, plan.steps[0], world


def provisional(*steps: object) -> Program:
    return program(*steps, output="out.safetensors")


def test_the_effect_of_a_step_tells_whether_its_sizes_wait_for_values():
    assert [e.staged for e in provisional(PHLORA, {"delete": {"target": "ids"}}).effects] == [True, False]
