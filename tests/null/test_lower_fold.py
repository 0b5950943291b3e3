"""The fold over a plan's steps, without files and without arrays: what a step does, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brainsurgery_jax.engine.plan.segments import segments
from brainsurgery_jax.lower import lower, lower_step
from tests.null.world import MODEL, Headers, after, before, complaints, found, planned, program, tensor


def copied(source: str, name: str) -> dict[str, object]:
    return {"copy": {"from": source, "to": name}}


def test_lowering_one_step_after_the_other_gives_what_lowering_all_at_once_gives():
    steps = [copied("w", "x"), {"scale_": {"target": "x", "by": 2}}, {"move": {"from": "(.)", "to": r"a.\1"}}]
    plan = planned(*steps, output="out.safetensors")
    state, world = before(plan)
    for step in plan.steps:
        state = lower_step(state, step, world)
    assert lower(state, replace(plan, steps=()), world) == lower(before(plan, world)[0], plan, world)


def test_a_failing_step_keeps_the_tensors_that_it_did_not_name():
    state = after({"scale_": {"target": "w|v", "by": 2}}, {"add_": {"from": "b", "to": "w"}})
    assert [d.code for d in state.diagnostics] == ["shapes-differ"]
    assert tensor(state, "v").kind == "call"
    assert tensor(state, "b").kind == "leaf"


def test_the_state_before_a_step_is_as_it_was_after_it():
    plan = planned({"delete": {"target": "w"}})
    state, world = before(plan)
    lower_step(state, plan.steps[0], world)
    assert list(state.spaces["m"].names) == list(MODEL)


def test_lowering_opens_each_checkpoint_and_reads_no_tensor():
    world = Headers({"m.safetensors": MODEL})
    program({"scale_": {"target": "w", "by": 2}}, {"assert": {"iszero": "v"}}, output="out.safetensors", world=world)
    assert [s.bytes_read for s in world.sources.values()] == [0]


def test_exit_leaves_out_the_steps_behind_it():
    state = after({"exit": {}}, {"delete": {"target": ".*"}})
    assert list(state.spaces["m"].names) == list(MODEL)


def test_exit_still_writes_the_output():
    (written,) = program({"exit": {}}, {"delete": {"target": ".*"}}, output="out.safetensors").publications
    assert list(written.tensors) == list(MODEL)


def test_an_untouched_tensor_is_the_leaf_that_its_checkpoint_gave():
    plan = planned({"scale_": {"target": "w", "by": 2}})
    state, world = before(plan)
    moved = lower_step(state, plan.steps[0], world)
    assert tensor(moved, "v") is tensor(state, "v")


@pytest.mark.parametrize(
    "step",
    [
        {"cast_": {"target": "w", "to": "float32"}},
        {"reshape_": {"target": "w", "shape": [4, 3]}},
        {"assign": {"from": "w", "to": "w"}},
        {"copy": {"from": "w", "to": "w2"}},
        {"move": {"from": "w", "to": "w2"}},
    ],
)
def test_a_step_that_changes_no_value_yields_the_leaf_itself(step: dict[str, object]):
    state = after(step)
    assert tensor(state, "w2" if "w2" in state.spaces["m"].names else "w").kind == "leaf"


def test_the_same_work_on_the_same_tensor_is_one_expression():
    state = after(copied("w", "x"), {"scale_": {"target": "x", "by": 2}}, {"scale_": {"target": "w", "by": 2}})
    assert tensor(state, "x") is tensor(state, "w")


def test_both_factors_of_a_matrix_come_of_one_factorization():
    state = after({"phlora": {"target": "w", "target_a": "A", "target_b": "B", "rank": 2}})
    assert tensor(state, "A").srcs == tensor(state, "B").srcs
    assert (str(tensor(state, "A").aval), str(tensor(state, "B").aval)) == ("f32[2,3]", "f32[4,2]")


def test_items_of_a_value_step_see_each_others_results_in_sorted_order():
    world = Headers({"m.safetensors": {"a1": "f32[2]", "a2": "f32[2]", "a3": "f32[2]"}})
    state = after({"add_": {"from": "a(?P<n>[12])", "to": "a${n+1}"}}, world=world)
    first, second, third = (tensor(state, name) for name in ("a1", "a2", "a3"))
    assert second.srcs[1] is first
    assert third.srcs[1] is second


def test_moves_of_one_step_happen_at_once_so_names_can_be_shifted():
    world = Headers({"m.safetensors": {"t.0": "f32[2]", "t.1": "f32[3]"}})
    shifted = after({"move": {"from": r"t\.(?P<n>\d)", "to": "t.${n+1}"}}, world=world)
    assert {n: str(e.aval) for n, e in shifted.spaces["m"].names.items()} == {"t.1": "f32[2]", "t.2": "f32[3]"}


def test_a_moved_tensor_keeps_its_place_in_the_state_dict():
    assert list(after({"move": {"from": "v", "to": "renamed"}}).spaces["m"].names) == ["w", "renamed", "b", "ids"]


def test_a_slice_written_into_a_leaf_leaves_byte_runs_around_a_computed_block():
    state = after({"add_": {"from": "v::[1:3]", "to": "w::[1:3]"}})
    got = [(s.at, s.run.nbytes if s.run else None, s.stop - s.start) for s in segments(tensor(state, "w"))]
    assert got == [(0, 12, 3), (3, None, 6), (9, 12, 3)]


def test_only_the_slice_of_a_leaf_is_computed_on():
    state = after({"scale_": {"target": "w::[1:3]", "by": 2}})
    (block,) = [s for s in segments(tensor(state, "w")) if s.run is None]
    assert str(block.expr.srcs[0].aval) == "f32[2,3]"


def test_one_leaf_under_64_names_is_64_byte_runs_of_one_range():
    state = after(*[copied("w", f"w{i}") for i in range(64)])
    runs = {s.run for i in range(64) for s in segments(tensor(state, f"w{i}"))}
    assert [(r.offset, r.nbytes) for r in runs if r] == [(0, 48)]
    assert None not in runs


def test_concat_along_the_first_axis_is_byte_runs():
    state = after({"concat": {"from": ["w", "v"], "to": "wv"}})
    assert [s.run.nbytes if s.run else None for s in segments(tensor(state, "wv"))] == [48, 48]


def test_effects_tell_what_a_step_made_changed_and_removed():
    steps = (copied("w", "x"), {"scale_": {"target": "x", "by": 2}}, {"move": {"from": "x", "to": "y"}})
    made, scaled, moved = program(*steps).effects
    assert made.created == ("m::x",)
    assert scaled.changed == ("m::x",)
    assert (moved.created, moved.deleted) == (("m::y",), ("m::x",))


def test_a_verdict_that_headers_settle_leaves_nothing_to_check():
    assert program({"assert": {"dtype": {"of": "w|v", "is": "float32"}}}).checks == ()


def test_a_verdict_on_values_waits_for_the_run():
    (check,) = program({"assert": {"iszero": "w"}}).checks
    assert check.step.text == {"assert": {"iszero": "w"}}


def test_a_tensor_equals_its_untouched_copy_by_headers_alone_if_shapes_already_differ():
    world = Headers({"m.safetensors": {"a": "f32[2]", "b": "f32[3]"}})
    assert complaints({"assert": {"equal": {"left": "a", "right": "b"}}}, world=world) == ["assert-failed"]


def test_asserts_see_the_state_at_their_place():
    step = {"assert": {"count": {"of": "x", "is": 1}}}
    assert complaints(copied("w", "x"), step, {"delete": {"target": "x"}}) == []


def test_several_mistakes_are_told_in_the_order_of_the_plan():
    wrong = found(
        {"delete": {"target": "nope"}}, {"scale_": {"target": "n::w", "by": 2}}, copied("w", "v"), output="o.v1"
    )
    assert [d.code for d in wrong] == ["no-match", "alias-unknown", "dest-exists", "output-path"]
    places = [d.span.line for d in wrong if d.span]
    assert places == sorted(places)


def test_a_second_operand_may_serve_several_matches():
    state = after({"add": {"from_a": "(w|v)", "from_b": "w", "to": r"\1"}})
    assert tensor(state, "v").kind == "call"
