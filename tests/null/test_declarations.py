"""Declared variables: their types, their defaults, their help, and how values are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainsurgery_jax import api
from brainsurgery_jax.errors import Diagnostic, speaking

STEP = {"scale_": {"target": "w", "by": "${vars.by}"}}


def plan(declared: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": ["m::m.safetensors"], "vars": {"by": declared}, "transforms": [STEP], **more}


def scaled(*items: Any, **values: Any) -> Any:
    """The factor of the step, or the only mistake."""
    loaded = api.load(*items, **values)
    (step,) = loaded.data.steps
    return loaded.problems[0] if loaded.problems else step.params["by"]


@pytest.mark.parametrize("declared", ["<number> 0.5", {"type": "number", "default": 0.5, "help": "a factor"}])
def test_a_declared_variable_has_its_default(declared: Any):
    assert scaled(plan(declared)) == 0.5


@pytest.mark.parametrize("item", ["by=2", "vars.by=2"])
def test_a_variable_is_given_with_and_without_vars_before_its_name(item: str):
    assert scaled(plan("<number>"), item) == scaled(plan("<number>"), by=2) == 2


def test_a_key_of_plans_is_no_variable():
    loaded = api.load(
        {"vars": {"seed": 3}, "transforms": [{"scale_": {"target": "m::w", "by": "${vars.seed}"}}]}, "seed=7"
    )
    assert (loaded.data.seed, loaded.data.steps[0].params["by"]) == (7, 3)


def test_a_variable_without_a_value_is_one_mistake_with_its_help():
    missing = scaled(plan({"type": "number", "help": "a factor"}))
    assert isinstance(missing, Diagnostic)
    assert (missing.code, missing.message) == ("vars-missing", "vars: 'by' has no value; it is a number (a factor)")
    assert missing.hint == "Give it as a keyword: `load(..., by=...)`."


def test_in_a_shell_the_remedy_is_an_override():
    with speaking("shell"):
        assert scaled(plan("<number>")).hint == "Give it on the command line: `by=...`."


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("number", "x", "expected a number, got 'x'"),
        ("number", "true", "expected a number, got True"),
        ("number", "null", "expected a number, got 'null'"),
        ("integer", "1.5", "expected an integer, got 1.5"),
        ("boolean", "1", "expected true or false, got 1"),
    ],
)
def test_a_value_of_another_type_is_refused_where_it_stands(kind: str, given: str, message: str):
    problem = scaled(plan(f"<{kind}>"), f"by={given}")
    assert (problem.code, problem.message) == ("value-type", f"vars.by: {message}")
    assert problem.span.file == f"override 'by={given}'"


def test_a_default_of_another_type_is_refused():
    assert scaled(plan("<integer> many")).message == "vars.by: expected an integer, got 'many'"


def test_what_is_meant_as_text_is_text_though_it_reads_as_a_number():
    loaded = api.load({"vars": {"out": "<path>"}, "inputs": ["m"], "output": "${vars.out}"}, "out=007")
    assert (loaded.problems, loaded.data.outputs[0].path) == ((), "007")


def test_a_text_in_other_brackets_is_a_value():
    loaded = api.load({"vars": {"out": "<eos>"}, "inputs": ["m"], "output": "${vars.out}"})
    assert loaded.data.outputs[0].path == "<eos>"


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"type": "nummer"}, "vars.by: there is no type 'nummer'. Did you mean 'number'?"),
        ({"typ": "number"}, "vars.by: a declaration has no key 'typ'. Did you mean 'type'?"),
        ({"default": [1]}, "vars.by: 'default' must be a single value"),
    ],
)
def test_a_wrong_declaration_is_one_mistake(declared: Any, message: str):
    problem = scaled(plan(declared))
    assert (problem.code, problem.message) == ("vars-form", message)


def test_a_declared_variable_that_nothing_uses_is_told():
    loaded = api.load({"inputs": ["m"], "vars": {"rank": "<integer>"}, "output": "out.safetensors"})
    assert [p.code for p in loaded.problems] == ["vars-unused"]


@pytest.mark.parametrize("given", ["of=[12]", "vars.of=[12]", "of='[12]'", "of=[a-z]+ {x"])
def test_brackets_are_text_where_a_variable_is_text(given: str):
    loaded = api.load(
        {"inputs": ["m"], "vars": {"of": "<text>"}, "transforms": [{"delete": {"target": "${vars.of}"}}]}, given
    )
    assert loaded.problems == ()
    assert loaded.data.steps[0].params["target"].name == given.partition("=")[2].strip("'")


def test_a_list_for_a_text_is_refused_by_the_name_of_its_variable():
    problem = scaled(plan({"type": "text", "help": "a pattern"}), by=[1, 2])
    assert isinstance(problem, Diagnostic)
    assert problem.message == "vars.by: expected text (a pattern), got a list"
    assert (
        problem.hint
        == "Write `by: ...` with a single value. A text in brackets, such as a pattern, stands in quotes: `by: '[12]'`."
    )


# --- Help from comments -----------------------------------------------------------------------------------------------

FILE = """\
# What it does.
#
# - by: a factor that goes on
#   in a second line
# - path, other: not declared here
#
# More words.
vars: {by: <number>}
inputs: [m::m.safetensors]
transforms:
  - scale_: {target: w, by: '${vars.by}'}
"""


def test_help_stands_in_the_comment_at_the_top_of_a_file(tmp_path: Path):
    (tmp_path / "plan.yaml").write_text(FILE)
    assert scaled(tmp_path / "plan.yaml").message.endswith("a number (a factor that goes on in a second line)")
    assert scaled(tmp_path / "plan.yaml", by="x").message.endswith("in a second line), got 'x'")
    assert scaled(tmp_path / "plan.yaml", by=3) == 3


def test_a_later_file_may_give_a_value(tmp_path: Path):
    (tmp_path / "plan.yaml").write_text(FILE)
    (tmp_path / "values.yaml").write_text("vars: {by: 4}\n")
    assert scaled(tmp_path / "plan.yaml", tmp_path / "values.yaml") == 4


# --- Lists of paths ---------------------------------------------------------------------------------------------------

MERGE = {
    "inputs": ["base::b", "${vars.models}"],
    "vars": {"models": "<paths>"},
    "output": {"path": "o", "alias": "base"},
}


@pytest.mark.parametrize("given", ["models=x/,code::y/", "models=[x/, 'code::y/']"])
def test_paths_are_inputs_of_their_own(given: str):
    loaded = api.load(MERGE, given)
    assert loaded.problems == ()
    assert [(i.alias, i.path) for i in loaded.data.inputs] == [("base", "b"), ("models_1", "x/"), ("code", "y/")]


def test_paths_from_python_are_a_list():
    assert [i.path for i in api.load(MERGE, models=["x", "y"]).data.inputs] == ["b", "x", "y"]


def test_paths_within_a_text_are_refused():
    loaded = api.load({**MERGE, "output": {"path": "${vars.models}/out", "alias": "base"}}, "models=x,y")
    assert [(p.code, p.message) for p in loaded.problems] == [
        ("vars-form", "'models' is a list of paths, which can only be an item of its own in a list")
    ]


def test_a_list_that_no_declaration_allows_is_refused():
    assert [p.code for p in api.load({"vars": {"models": ["a"]}, "transforms": []}).problems] == ["vars-form"]


def test_a_variable_called_like_a_key_of_plans_is_given_by_its_whole_path():
    loaded = plan(0.5, output="${vars.output}")
    loaded["vars"]["output"] = "<path>"
    with speaking("shell"):
        (missing,) = api.load(loaded).problems
    assert missing.hint == "Give it on the command line: `vars.output=...`."
    found = api.load(loaded, "vars.output=o.safetensors")
    assert not found.problems
    assert [output.path for output in found.data.outputs] == ["o.safetensors"]
