"""From a YAML document to a plan: the forms of inputs, steps and outputs, their defaults, and variables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax import api
from brainsurgery_jax.errors import PlanError, Span
from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.plan.model import Output, PlanData, Step
from brainsurgery_jax.plan.source import Map, Scalar, compose, dump_yaml, plain


def load(text: str, **variables: object) -> api.Plan:
    root = compose(text, "plan.yaml")
    assert isinstance(root, Map)
    return api.load(root, **variables)


def parsed(text: str, **variables: object) -> PlanData:
    plan = load(text, **variables)
    assert plan.problems == ()
    return plan.data


def codes(text: str, **variables: object) -> list[str]:
    return [d.code for d in load(text, **variables).problems]


def steps(text: str) -> tuple[Step, ...]:
    return parsed(f"inputs: [p]\ntransforms: {text}").steps


# --- the document


def test_a_plan_may_hold_nothing_at_all():
    plan = parsed("seed:")
    assert (plan.inputs, plan.steps, plan.outputs, plan.seed) == ((), (), (), 0)


@pytest.mark.parametrize("key", ["inputs", "transforms", "output", "outputs", "seed", "version"])
def test_a_top_level_key_without_a_value_is_as_if_it_were_not_there(key: str):
    assert parsed(f"{key}:") == PlanData()


def test_an_unknown_top_level_key_is_a_mistake():
    assert codes("transfroms: []") == ["key-unknown"]


def test_the_version_of_the_language_may_be_said():
    assert parsed("version: 1") == PlanData()


@pytest.mark.parametrize("version", ["2", "'1'", "one", "[1]"])
def test_another_version_is_refused(version: str):
    assert codes(f"version: {version}") == ["plan-version"]


def test_the_seed_is_an_integer():
    assert parsed("seed: 7").seed == 7
    assert codes("seed: 7.5") == ["value-type"]
    assert codes("seed: true") == ["value-type"]


# --- inputs


@pytest.mark.parametrize(
    ("entry", "alias", "path"),
    [
        ("base::models/base", "base", "models/base"),
        ("models/base", "model", "models/base"),
        ("::models/base", "model", "models/base"),
        ("base::odd::path", "base", "odd::path"),
        (" base::p", " base", "p"),
    ],
)
def test_an_input_is_split_at_its_first_double_colon(entry: str, alias: str, path: str):
    (one,) = parsed(f"inputs: ['{entry}']").inputs
    assert (one.alias, one.path) == (alias, path)


def test_one_input_gives_the_default_alias():
    assert parsed("inputs: [base::p]").default_alias == "base"
    assert parsed("inputs: [a::p, b::q]").default_alias is None
    assert parsed("transforms: []").default_alias is None


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ("base::p", "inputs-form"),
        ("{base: p}", "inputs-form"),
        ("[7]", "inputs-form"),
        ("['']", "inputs-form"),
        ("['base::']", "inputs-form"),
        ("['::']", "inputs-form"),
        ("[a::p, q]", "inputs-form"),
        ("[a::p, a::q]", "alias-duplicate"),
    ],
)
def test_inputs_of_another_form_are_refused_once(inputs: str, code: str):
    assert codes(f"inputs: {inputs}") == [code]


def test_the_same_file_may_be_read_under_two_aliases():
    assert [i.alias for i in parsed("inputs: [a::p, b::p]").inputs] == ["a", "b"]


# --- steps


@pytest.mark.parametrize("text", ["dump", "[dump]", "[dump: ]", "[dump: {}]", "{dump: }", "[{dump: null}]"])
def test_a_step_without_a_payload_has_many_spellings(text: str):
    (step,) = steps(text)
    assert step.op is not None
    assert step.op.name == "dump"
    assert dict(step.params) == {}


def test_one_step_may_stand_without_a_list():
    (step,) = steps("{delete: {target: w}}")
    assert step.text == {"delete": {"target": "w"}}


@pytest.mark.parametrize("text", ["[7]", "[[dump]]", "[null]", "[{}]", "[{dump: , exit: }]"])
def test_what_is_no_step_is_refused(text: str):
    assert codes(f"inputs: [p]\ntransforms: {text}") == ["step-form"]


@pytest.mark.parametrize("name", ["load", "save"])
def test_a_path_alone_is_the_payload_of_load_and_save(name: str):
    (step,) = steps(f"[{name}: some/path]")
    assert step.params["path"] == "some/path"


def test_any_other_op_needs_a_mapping():
    assert codes("inputs: [p]\ntransforms: [delete: w]") == ["payload-type"]


def test_every_mistake_of_a_payload_is_told_at_its_own_place():
    problems = load("inputs: [p]\ntransforms:\n  - scale:\n      form: w\n      by: x\n").problems
    assert [(d.code, d.span.line) for d in problems if d.span] == [
        ("key-unknown", 4),
        ("key-missing", 3),
        ("value-type", 5),
    ]


def test_the_one_unknown_key_is_taken_for_the_one_that_is_missing():
    (problem,) = load("inputs: [p]\ntransforms: [cast_: {target: w, dtype: bfloat16}]\n").problems
    assert problem.message == "cast_.dtype: unknown key 'dtype'. Did you mean 'to'?"


def test_every_mistake_of_every_step_is_told_in_order():
    assert codes("inputs: [p]\ntransforms: [nope, {delete: {}}, 7, {delete: {target: 1}}]") == [
        "op-unknown",
        "key-missing",
        "step-form",
        "ref-type",
    ]


def test_mistakes_in_two_files_name_the_file_they_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("inputs: [p]\ntransforms:\n  - scal_: {}\n")
    (tmp_path / "two.yaml").write_text("transforms:\n  - \n  - delete: {tarket: w}\noutput: {path: 3}\n")
    problems = api.load("one.yaml", "two.yaml").problems
    assert [(d.span.file, d.span.line, d.code) for d in problems if d.span] == [
        ("one.yaml", 3, "op-unknown"),
        ("two.yaml", 3, "key-unknown"),
        ("two.yaml", 4, "value-type"),
    ]


def test_a_step_that_is_refused_keeps_its_text():
    (step,) = load("inputs: [p]\ntransforms: [{scale_: {target: w}}]").data.steps
    assert step.op is None
    assert step.text == {"scale_": {"target": "w"}}


@pytest.mark.parametrize(("written", "value"), [("2", 2.0), ("'2'", 2.0), ("1e-6", 1e-6), ("true", 1.0), (".5", 0.5)])
def test_a_number_may_be_written_in_all_ways_that_float_reads(written: str, value: float):
    (step,) = steps(f"[scale_: {{target: w, by: {written}}}]")
    assert step.params["by"] == value


@pytest.mark.parametrize("written", ["null", "x", "[1]", "{}"])
def test_what_float_cannot_read_is_no_number(written: str):
    assert codes(f"inputs: [p]\ntransforms: [scale_: {{target: w, by: {written}}}]") == ["value-type"]


@pytest.mark.parametrize("written", ["'0'", "0.0", "true", "null"])
def test_an_integer_must_be_one(written: str):
    assert codes(f"inputs: [p]\ntransforms: [concat: {{from: [a, b], to: c, dim: {written}}}]") == ["value-type"]


@pytest.mark.parametrize("written", ["bf16", "bfloat16", "' BFloat16 '"])
def test_a_dtype_has_several_names(written: str):
    (step,) = steps(f"[cast_: {{target: w, to: {written}}}]")
    assert str(step.params["dtype"]) == "bfloat16"


def test_a_reference_without_an_alias_means_the_only_input():
    (step,) = steps("[delete: {target: w}]")
    assert str(step.params["target"]) == "model::w"


def test_a_factor_without_an_alias_goes_where_its_source_is():
    text = "inputs: [a::p, b::q]\ntransforms: [phlora: {target_a: A, target_b: 'b::B', rank: 2, target: 'a::w'}]"
    (step,) = parsed(text).steps
    assert [str(step.params[k]) for k in ("target", "target_a", "target_b")] == ["a::w", "a::A", "b::B"]


def test_an_assert_holds_asserts():
    (step,) = steps("[assert: {all: [{exists: a}, {not: {exists: b}}]}]")
    outer = step.params["operator"]
    assert [inner.op.name for inner in outer.params["of"]] == ["exists", "not"]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("{}", "assert-form"),
        ("{exists: a, count: {of: a, is: 1}}", "assert-form"),
        ("{exist: a}", "assert-unknown"),
        ("{all: []}", "assert-form"),
        ("{all: {exists: a}}", "assert-form"),
        ("{not: [{exists: a}]}", "assert-form"),
        ("{count: {of: a}}", "key-missing"),
        ("{count: {of: a, is: one}}", "value-type"),
        ("{exists: {of: a}}", "ref-key"),
        ("{all: [{exists: a}, {exist: b}]}", "assert-unknown"),
    ],
)
def test_a_mistake_anywhere_in_an_assert_is_told(payload: str, code: str):
    assert codes(f"inputs: [p]\ntransforms: [assert: {payload}]") == [code]


# --- outputs


def test_an_output_may_be_a_path():
    (out,) = parsed("output: out").outputs
    assert out.path == "out"
    assert out.span is not None


def test_an_output_is_not_overwritten_and_takes_side_files_unless_the_plan_says_otherwise():
    (out,) = parsed("output: {path: out}").outputs
    assert (out.alias, out.format, out.shard, out.overwrite, out.sidecars) == (None, None, None, False, True)
    assert dict(out.metadata) == {}


def test_an_output_says_all_about_itself():
    text = "{path: out, alias: a, format: safetensors, shard: 2GB, overwrite: true, sidecars: false, metadata: {k: v}}"
    (out,) = parsed(f"output: {text}").outputs
    assert isinstance(out, Output)
    assert (out.path, out.alias, out.format, out.shard) == ("out", "a", "safetensors", "2GB")
    assert (out.overwrite, out.sidecars, dict(out.metadata)) == (True, False, {"k": "v"})


@pytest.mark.parametrize("nothing", ["", "null", "''", "{}"])
def test_nothing_under_output_means_that_nothing_is_written(nothing: str):
    assert parsed(f"output: {nothing}").outputs == ()


def test_several_outputs_go_into_a_list():
    assert [o.path for o in parsed("outputs: [a, {path: b}]").outputs] == ["a", "b"]


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("7", "output-form"),
        ("[out]", "output-form"),
        ("{alias: a}", "key-missing"),
        ("{path: ''}", "value-type"),
        ("{path: null}", "value-type"),
        ("{path: out, pth: x}", "key-unknown"),
        ("{path: out, shard: 5}", "value-type"),
        ("{path: out, overwrite: 'yes'}", "value-type"),
        ("{path: out, format: Safetensors}", "output-format"),
        ("{path: out, metadata: {k: 1}}", "value-type"),
    ],
)
def test_an_output_of_another_form_is_refused_once(output: str, code: str):
    assert codes(f"output: {output}") == [code]


def test_output_and_outputs_exclude_each_other():
    assert codes("output: a\noutputs: [b]") == ["output-form"]


# --- vars


def test_a_variable_alone_keeps_its_type_and_inside_a_text_its_spelling():
    text = "vars: {n: 3, layer: 07}\ntransforms: [scale_: {target: 'm::h.${vars.layer}', by: '${vars.n}'}]"
    (step,) = parsed(text).steps
    assert (str(step.params["target"]), step.params["by"]) == ("m::h.07", 3.0)


def test_a_keyword_of_load_sets_a_variable():
    text = "vars: {n: 3}\ninputs: [p]\ntransforms: [scale_: {target: w, by: '${vars.n}'}]"
    (step,) = parsed(text, n=5).steps
    assert step.params["by"] == 5.0


@pytest.mark.parametrize(
    "text",
    [
        "inputs: ['${vars.x}']\noutput: out",
        "inputs: [p]\ntransforms: [scale_: {target: '${vars.x}', by: 2}]",
        "inputs: [p]\ntransforms: [load: '${vars.x}']",
        "inputs: [p]\ntransforms: ['${vars.x}']",
        "inputs: [p]\noutput: '${vars.x}'",
        "inputs: [p]\noutput: {path: out, shard: '${vars.x}'}",
        "seed: '${vars.x}'",
    ],
)
def test_a_variable_without_a_value_is_told_once(text: str):
    assert codes(text) == ["vars-unknown"]


def test_a_variable_of_another_form_is_refused():
    assert codes("vars: [n]") == ["vars-form"]
    assert codes("vars: {n: [1]}") == ["vars-form"]


def test_variables_that_would_fill_the_memory_are_refused():
    plan = load(f"vars: {{x: {'y' * 20_000}}}\ntransforms: [{{delete: '{'${vars.x}' * 1000}'}}]")
    (problem,) = plan.problems
    assert problem.code == "yaml-too-large"
    assert "more than 10,000,000 characters" in problem.message


def test_a_template_with_braces_is_no_variable():
    (step,) = steps("[copy: {from: [h, $i, w], to: [g, '${i}', w]}]")
    assert step.params["to"].name == ("g", "${i}", "w")


def test_what_is_no_plan_at_all_is_refused_by_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text("- dump\n")
    with pytest.raises(PlanError, match="a plan must be a mapping, but this is a list of 1 item"):
        api.load("plan.yaml")


def test_a_misspelt_variable_is_not_unused_too():
    text = "inputs: [p]\nvars: {rank: 2}\ntransforms: [{scale_: {target: w, by: '${vars.rnk}'}}]"
    assert codes(text) == ["vars-unknown"]


def test_a_misspelt_key_is_not_missing_too():
    assert codes("inputs: [p]\ntransforms: [{delete: {targt: w}}]") == ["key-unknown"]


def test_a_variable_that_is_used_nowhere_is_a_mistake():
    text = "inputs: [p]\nvars: {by: 2, bye: 3}\ntransforms: [{scale_: {target: w, by: '${vars.by}'}}]"
    (problem,) = load(text).problems
    assert problem.code == "vars-unused"
    assert "Did you mean 'by'?" in problem.message


BY = {"inputs": ["p"], "vars": {"by": 2}, "transforms": [{"scale_": {"target": "w", "by": "${vars.by}"}}]}


@pytest.mark.parametrize(
    "override",
    [
        "transforms[0].scale_.by=3",
        "transforms[0]={delete: {target: w}}",
        "transforms=[]",
        {"transforms": [{"scale_": {"by": 3}}]},
    ],
)
def test_a_variable_whose_use_was_replaced_is_noted(override: Any):
    (note,) = (p for p in api.load(BY, override).problems if p.code != "steps-merged")
    assert (note.code, note.severity) == ("vars-unused", "note")
    assert "what used it was replaced by an override or a later file" in note.message


@pytest.mark.parametrize("override", ["vars.bye=3", {"vars": {"bye": 3}}])
def test_a_variable_that_an_override_adds_and_nothing_uses_is_a_mistake(override: Any):
    (problem,) = api.load(BY, override).problems
    assert (problem.code, problem.severity) == ("vars-unused", "error")


def test_a_step_that_two_files_make_together_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("inputs: [p]\ntransforms:\n  - delete: {target: v}\n")
    (tmp_path / "two.yaml").write_text("transforms:\n  - delete: {target: w}\n")
    (note,) = api.load("one.yaml", "two.yaml").problems
    assert (note.code, note.severity) == ("steps-merged", "note")
    assert "does not append" in note.hint


def test_the_keys_of_an_op_that_are_not_indented_are_named():
    (problem, *_) = load("inputs: [p]\ntransforms:\n  - scale_:\n    target: w\n    by: 2\n").problems
    assert problem.hint == "Indent the keys of 'scale_' deeper than 'scale_' itself."


def test_ops_are_found_by_the_words_of_other_tools():
    (problem,) = load("inputs: [p]\ntransforms: [{rename: {from: a, to: b}}]").problems
    assert "Did you mean 'move'?" in problem.message


# --- there and back

EXAMPLES = [
    plain(compose(text, "example") or Scalar("help", "help", Span("")))
    for op in (*OPS.values(), *ASSERTS.values())
    for text in re.findall(r"Example: `(.+?)`\s*(?:\n|$)", op.doc)
]
OUTPUTS = st.fixed_dictionaries(
    {"path": st.sampled_from(["out", "out.safetensors", "a b", "1", "~/x"])},
    optional={
        "alias": st.sampled_from(["m", "a"]), "overwrite": st.booleans(), "shard": st.just("2GB"),
        "metadata": st.dictionaries(st.text("ab:", max_size=3), st.text("1e-6 #", max_size=4), max_size=2),
    },
)  # fmt: skip
PLANS = st.fixed_dictionaries(
    {
        "inputs": st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(
            lambda all: [f"{a}::{a}.pt" for a in all]
        ),
        "transforms": st.lists(st.sampled_from(EXAMPLES), max_size=5),
    },
    optional={"outputs": st.lists(OUTPUTS, max_size=2), "seed": st.integers(), "version": st.just(1)},
)


def told(step: Step) -> str:
    """The parameters in print; those of `execute` hold nodes, which know where they stand."""
    return re.sub(r"Span\([^)]*\)", "", repr(step.params))


def without_places(plan: api.Plan) -> tuple[PlanData, list[tuple[str, str]]]:
    """The plan and its mistakes, wherever they stand."""
    data = replace(
        plan.data,
        inputs=tuple(i._replace(span=None) for i in plan.data.inputs),
        steps=tuple(replace(step, span=None, spans={}, params={"": told(step)}) for step in plan.data.steps),
        outputs=tuple(replace(out, span=None, spans={}) for out in plan.data.outputs),
    )
    return data, [(d.code, d.message) for d in plan.problems]


@given(PLANS)
def test_a_plan_that_is_written_as_yaml_and_read_again_is_the_same_plan(document: dict[str, object]):
    once = load(dump_yaml(document))
    flow = load(json.dumps(document))
    assert without_places(once) == without_places(api.load(document)) == without_places(flow)


@given(PLANS)
def test_the_steps_of_a_plan_as_data_make_the_same_steps_again(document: dict[str, object]):
    steps = load(dump_yaml(document)).data.steps
    again = load(dump_yaml({**document, "transforms": [step.text for step in steps]})).data.steps
    assert [(s.op, told(s), s.text) for s in again] == [(s.op, told(s), s.text) for s in steps]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{remove: 3}", "output.config.remove: expected a list of keys, got 3"),
        ("{remove: [3]}", "output.config.remove: expected a list of keys, got [3]"),
        ("{from: [a]}", "output.config.from: expected the name of a part of the config, got ['a']"),
        ("{patch: 16}", "output.config.patch: expected a mapping of keys to values, got 16"),
    ],
)
def test_a_change_in_full_that_is_none_is_a_mistake_at_its_place(change: str, message: str):
    (problem,) = load(f"output: {{path: out, config: {change}}}").problems
    assert (problem.code, problem.message) == ("value-type", message)
    assert problem.span == Span("plan.yaml", 1, 29)


# --- Texts that a comma cuts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "quoted"),
    [
        ("compute: {from: {a: a, b: b}, expr: maximum(a, b), to: c}", "expr: 'maximum(a, b)'"),
        ("compute: {from: {a: a}, expr: a + clip(a, 0, 1), to: c}", "expr: 'a + clip(a, 0, 1)'"),
        ("compute: {from: {a: a, b: b}, to: c, expr: f(a, b) - f(a, 1)}", "expr: 'f(a, b) - f(a, 1)'"),
        ("compute: {from: {a: a}, expr: where(a == 'x', a, 0), to: c}", "expr: 'where(a == ''x'', a, 0)'"),
        ("delete: {target: h.(a, b)}", "target: 'h.(a, b)'"),
    ],
)
def test_a_text_that_a_comma_cuts_is_one_mistake(step: str, quoted: str) -> None:
    (problem,) = load(f"inputs: [p]\ntransforms: [{step}]").problems
    assert (problem.code, problem.hint) == ("yaml-syntax", f"Quote it: `{quoted}`.")


def test_keys_that_close_no_bracket_stay_unknown() -> None:
    problems = load("inputs: [p]\ntransforms: [{delete: {target: h.(a, b, c}}]").problems
    assert [p.code for p in problems] == ["key-unknown", "key-unknown"]
    (problem,) = load("inputs: [p]\ntransforms: [{delete: {target: h.(a, b): 1}}]").problems[:1]
    assert problem.code == "key-unknown"
