"""`if_missing: skip`: a step with a pattern does nothing where there is nothing for it."""

from __future__ import annotations

import pytest

from brainsurgery_jax import api
from tests.null.world import after, complaints, found, program


def test_a_step_that_matches_nothing_is_left_out():
    assert not complaints({"delete": {"target": "tmp.*", "if_missing": "skip"}})


def test_the_effect_says_that_it_was_left_out():
    (effect,) = program({"delete": {"target": "tmp.*", "if_missing": "skip"}}).effects
    assert effect.skipped == 1


def test_a_step_that_matches_is_done_as_ever():
    assert "w" not in after({"delete": {"target": "w", "if_missing": "skip"}}).spaces["m"].names


def test_matches_without_their_second_operand_are_left_out_and_the_others_done():
    step = {"scale": {"from": "(w|v)", "to": r"\1_2", "by": 2}}
    made = program(step, {"add_": {"from": "(w|v|b)", "to": r"\1_2", "if_missing": "skip"}})
    assert made.effects[1].changed == ("m::v_2", "m::w_2")
    assert made.effects[1].skipped == 1


def test_what_it_says_elsewhere_stays_a_mistake():
    assert complaints({"delete": {"target": "(", "if_missing": "skip"}}) == ["regex-syntax"]


@pytest.mark.parametrize("step", [{"zeroes": {"target": "z", "shape": [2], "if_missing": "skip"}}])
def test_a_step_without_a_pattern_does_not_have_it(step: object):
    problems = api.load({"inputs": ["m::m.safetensors"], "transforms": [step]}).problems
    assert [p.code for p in problems] == ["key-unknown"]


def test_any_other_word_is_refused():
    step = {"delete": {"target": "w", "if_missing": "ignore"}}
    (problem,) = api.load({"inputs": ["m::m.safetensors"], "transforms": [step]}).problems
    assert "expected 'error' or 'skip', got 'ignore'" in problem.message


def test_without_it_the_step_fails():
    assert [d.code for d in found({"delete": {"target": "tmp.*"}})] == ["no-match"]


def test_a_step_that_makes_one_tensor_of_several_is_left_out_as_a_whole():
    made = program({"concat": {"from": ["w", "nowhere"], "to": "x", "if_missing": "skip"}})
    assert [(e.created, e.skipped) for e in made.effects] == [((), 1)]


def test_compute_leaves_out_the_matches_without_their_second_operand():
    step = {"compute": {"from": {"x": "(w|v)", "y": r"\g<1>2"}, "to": r"\1.c", "expr": "x + y", "if_missing": "skip"}}
    made = program({"copy": {"from": "w", "to": "w2"}}, step)
    assert (made.effects[1].created, made.effects[1].skipped) == (("m::w.c",), 1)
