"""`${env.NAME}` and `${vars.NAME}`: what stands for what, and what is said where nothing does."""

from __future__ import annotations

from typing import Any

import pytest

from brainsurgery_jax import api
from brainsurgery_jax.plan.source import Map, compose, dump_yaml, plain
from brainsurgery_jax.plan.variables import with_variables

ENVIRONMENT = {"HOME": "/home/ada", "RANK": "8", "EMPTY": ""}


def filled(plan: dict[str, Any]) -> tuple[Any, list[str]]:
    root = compose(dump_yaml(plan), "plan.yaml")
    assert isinstance(root, Map)
    made, problems = with_variables(root, ENVIRONMENT)
    return plain(made), [str(p) for p in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${env.HOME}/m", "/home/ada/m"),
        ("${oc.env:HOME}/m", "/home/ada/m"),
        ("${oc.env:NOWHERE,/tmp}/m", "/tmp/m"),
        ("${oc.env:HOME,/tmp}/m", "/home/ada/m"),
        ("a${env.EMPTY}b", "ab"),
        ("${env.HOME}${env.RANK}", "/home/ada8"),
    ],
)
def test_variables_of_the_environment_are_put_in(text: str, value: str):
    assert filled({"inputs": [text]}) == ({"inputs": [value]}, [])


def test_a_variable_of_the_environment_is_text():
    assert filled({"seed": "${env.RANK}"}) == ({"seed": "8"}, [])


def test_a_plan_variable_may_be_made_of_the_environment():
    made, problems = filled({"vars": {"out": "${env.HOME}/out"}, "output": "${vars.out}"})
    assert (made["output"], problems) == ("/home/ada/out", [])


def test_what_the_environment_puts_in_is_not_filled_again():
    root = compose("inputs: ['${env.A}']", "plan.yaml")
    assert isinstance(root, Map)
    made, _ = with_variables(root, {"A": "${env.A}"})
    assert plain(made) == {"inputs": ["${env.A}"]}


def test_a_variable_that_the_environment_lacks_is_an_error_with_a_suggestion():
    _, (problem,) = filled({"inputs": ["${env.HOMES}"]})
    assert "the environment has no variable 'HOMES'. Did you mean 'HOME'?" in problem
    assert "`os.environ['HOMES'] = ...`" in problem


def test_a_variable_may_stand_in_a_formula():
    (step,) = api.load(
        {
            "inputs": ["p"],
            "vars": {"shift": 4},
            "transforms": [{"move": {"from": "h.(?P<i>.)", "to": "${i+${vars.shift}}"}}],
        }
    ).data.steps
    assert step.params["to"].name == "${i+4}"


def test_captures_of_a_template_are_left_alone():
    step = {"move": {"from": "h.(?P<i>[0-9]+)", "to": "x.${i}"}}
    assert filled({"transforms": [step]}) == ({"transforms": [step]}, [])


def test_a_variable_without_vars_before_its_name_is_told_where_the_value_is_wanted_and_only_there():
    step = {"scale_": {"target": "w", "by": "${x}"}}
    (problem,) = api.load({"inputs": ["m::m.safetensors"], "vars": {"x": 2}, "transforms": [step]}).problems
    assert (problem.code, problem.hint) == ("value-type", "A variable of the plan is written ${vars.x}.")
