"""`execute`: plans within the plan, from each of four sources, with a default alias of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainsurgery_jax import api
from brainsurgery_jax.lower import Demand, lower
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.plan.endpoints import OUTPUT_KEYS
from brainsurgery_jax.plan.source import dump_yaml
from tests.null.world import Headers, after, before, complaints, found, planned, program

TWO = {"m.safetensors": {"w": "f32[4,3]"}, "n.safetensors": {"x": "f32[2]"}}


def world() -> Headers:
    return Headers(TWO)


def copied(name: str) -> dict[str, object]:
    return {"copy": {"from": "w", "to": name}}


def test_the_sources_run_in_a_fixed_order_whatever_the_order_in_the_file(tmp_path: Path):
    file = tmp_path / "sub.yaml"
    file.write_text(dump_yaml({"transforms": [copied("w4")]}))
    text = dump_yaml([copied("w3")])
    step = {"path": str(file), "plan-yaml": text, "plan": [copied("w2")], "transforms": copied("w1")}
    assert list(after({"execute": step}).spaces["m"].names)[-4:] == ["w1", "w2", "w3", "w4"]


def test_inputs_of_a_plan_within_are_loaded_and_its_output_is_saved():
    sub = {"inputs": ["n::n.safetensors"], "transforms": [{"scale_": {"target": "x", "by": 2}}], "output": "n::o/"}
    made = program({"execute": {"plan": sub}}, world=world())
    assert [(p.path, list(p.tensors)) for p in made.publications] == [("o/", ["x"])]


def test_the_default_alias_within_is_that_of_its_own_input():
    sub = {"inputs": ["n::n.safetensors"], "transforms": [{"assert": {"exists": "x"}}]}
    assert not complaints({"execute": {"plan": sub}}, world=world())


def test_without_an_input_of_its_own_the_only_alias_is_meant():
    assert not complaints({"execute": {"transforms": [{"assert": {"exists": "w"}}]}})


def test_with_several_aliases_and_no_input_of_its_own_references_need_an_alias():
    steps = ({"prefixes": {"mode": "add", "alias": "x"}}, {"execute": {"transforms": [{"assert": {"exists": "w"}}]}})
    assert complaints(*steps) == ["ref-no-alias"]


def test_aliases_made_within_are_known_after_it():
    sub = {"inputs": ["n::n.safetensors"]}
    assert not complaints({"execute": {"plan": sub}}, {"assert": {"exists": "n::x"}}, world=world())


def test_exit_within_ends_the_whole_plan():
    assert not complaints({"execute": {"transforms": ["exit"]}}, {"delete": {"target": "nowhere"}})


def test_the_summary_has_it_as_one_step():
    made = program({"execute": {"transforms": [copied("a"), copied("b")]}})
    assert [e.step.op.name for e in made.effects if e.step.op] == ["execute"]


def test_a_mistake_within_is_told_where_it_stands(tmp_path: Path):
    file = tmp_path / "sub.yaml"
    file.write_text("- delete: {target: w}\n- delete: {target: w}\n")
    (problem,) = found({"execute": {"path": str(file)}})
    assert problem.code == "no-match"
    assert str(problem.span) == f"{file}:2:20"


def test_a_mistake_in_the_text_of_a_plan_is_told_by_its_line():
    (problem,) = found({"execute": {"plan-yaml": "- delete: {target: w}\n- delet: {target: v}\n"}})
    assert problem.code == "op-unknown"
    assert str(problem.span).endswith("(plan-yaml):2:3")


@pytest.mark.parametrize(
    ("payload", "code", "text"),
    [
        ({}, "execute-empty", "no step to execute"),
        ({"plan-yaml": ""}, "execute-empty", "no step to execute"),
        ({"plan": {"transform": []}}, "key-unknown", "no key 'transform'. Did you mean 'transforms'"),
        ({"plan": {"inputs": ["a", "b::b"]}}, "inputs-form", "'a' needs an alias"),
        ({"plan": {"output": {"path": "x", "confg": {}}}}, "key-unknown", "unknown key 'confg'. Did you mean 'config'"),
        ({"plan": {"output": {"path": "x", "metadata": {"n": 1}}}}, "value-type", "a mapping of text to text"),
        ({"plan": 3}, "value-type", "expected a plan or a list of steps"),
        ({"plan-yaml": 3}, "value-type", "expected the text of a plan"),
        ({"path": "nowhere.yaml"}, "plan-file-missing", "nowhere.yaml"),
    ],
)
def test_what_cannot_be_executed_is_refused(payload: object, code: str, text: str):
    plan = api.load({"inputs": ["m::m.safetensors"], "transforms": [{"execute": payload}]})
    problems = plan.problems or found({"execute": payload})
    assert [p.code for p in problems] == [code]
    assert text in problems[0].message


def test_a_number_from_data_is_asked_for_within_as_elsewhere():
    plan = planned({"execute": {"transforms": [{"phlora": {"target": "w", "target_a": "a", "target_b": "b",
                                                           "rank": {"energy": 0.5}}}]}})  # fmt: skip
    state, there = before(plan, Headers(TWO))
    asked: list[Demand] = []
    lower(state, plan, there, lambda demand: asked.append(demand) or dict.fromkeys(demand.exprs, 1))
    assert [str(e.aval) for demand in asked for e in demand.exprs] == ["i64[]"]


def test_a_plan_that_executes_itself_is_one_mistake(tmp_path: Path):
    file = tmp_path / "self.yaml"
    file.write_text(f"inputs: [m.safetensors]\ntransforms:\n  - execute: {{path: {file}}}\n")
    (problem,) = found({"execute": {"path": str(file)}})
    assert (problem.code, str(problem.span)) == ("execute-nested", f"{file}:3:21")
    assert problem.message.endswith(f"plans execute each other without end: {file} -> {file}")


def test_files_that_execute_each_other_are_named_in_their_order(tmp_path: Path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"- execute: {{path: {two}}}\n")
    two.write_text(f"- execute: {{transforms: [{{execute: {{path: {one}}}}}]}}\n")
    (problem,) = found({"execute": {"path": str(one)}})
    assert problem.message.endswith(f"without end: {one} -> {two} -> {one}")


def test_a_plan_file_that_executes_itself_is_told_so_before_it_is_read_twice(tmp_path: Path):
    file = tmp_path / "self.yaml"
    file.write_text(f"inputs: [m.safetensors]\ntransforms:\n  - execute: {{path: {file}}}\n")
    plan = api.load(str(file)).data
    state, there = before(plan, Headers(TWO))
    (problem,) = lower(state, plan, there).diagnostics
    assert problem.message.endswith(f"without end: {file} -> {file}")


def test_a_file_may_be_executed_again_after_it_has_ended(tmp_path: Path):
    file = tmp_path / "twice.yaml"
    file.write_text("- scale_: {target: w, by: 2}\n")
    once = {"execute": {"path": str(file)}}
    assert not complaints(once, {"execute": {"transforms": [once, once]}})


def nested(levels: int, *steps: object) -> dict[str, object]:
    """Steps within as many levels of `execute`."""
    payload: list[object] = list(steps)
    for _ in range(levels):
        payload = [{"execute": {"transforms": payload}}]
    (outer,) = payload
    assert isinstance(outer, dict)
    return outer


def test_plans_within_plans_are_executed_to_a_depth_of_16():
    made = program(nested(16, copied("w9")))
    assert [(depth, e.step.op.name) for e in made.effects for depth, e in e.walk() if e.step.op][-2:] == [
        (15, "execute"), (16, "copy"),
    ]  # fmt: skip
    assert [e.created for outer in made.effects for _, e in outer.walk()][-1] == ("m::w9",)


def test_plans_that_are_nested_deeper_are_one_mistake():
    (problem,) = found(nested(17, copied("w9")), {"delete": {"target": "w9"}})
    assert problem.code == "execute-nested"
    assert "plans are nested more than 16 levels deep" in problem.message


def test_a_plan_within_a_plan_within_has_the_default_alias_of_its_own_input():
    sub = {"inputs": ["n::n.safetensors"], "transforms": [{"assert": {"exists": "x"}}]}
    assert not complaints(nested(2, {"execute": {"plan": sub}}, {"assert": {"exists": "n::x"}}), world=world())


def test_the_default_alias_outside_is_what_it_was_after_plans_within():
    two = {"execute": {"plan": {"inputs": ["n::n.safetensors"], "transforms": [{"assert": {"exists": "x"}}]}}}
    steps = [{"assert": {"exists": "w"}}, two, {"assert": {"exists": "w"}}]
    assert not complaints({"execute": {"transforms": steps}}, world=world())


def test_nothing_is_said_of_what_a_refused_plan_would_have_made(tmp_path: Path):
    file = tmp_path / "self.yaml"
    file.write_text(f"- execute: {{path: {file}}}\n- copy: {{from: w, to: w9}}\n")
    inner = [{"execute": {"path": str(file)}}, {"delete": {"target": "w8"}}]
    assert complaints({"execute": {"transforms": inner}}, {"delete": {"target": "w9"}}) == ["execute-nested"]


def test_the_output_of_a_plan_within_takes_every_key_of_an_output():
    there = world()
    there.contents = {"m.safetensors/config.json": b'{"n_layer": 2}'}
    output = {"path": "o/", "alias": "m", "format": "safetensors", "shard": "1MB", "overwrite": True,
              "sidecars": False, "config": {"n_layer": 1}, "metadata": {"epoch": "3"}, "options": {}}  # fmt: skip
    (made,) = program({"execute": {"plan": {"output": output}}}, world=there).publications
    assert (made.path, made.directory, made.shard_bytes, made.overwrite) == ("o/", True, 1 << 20, True)
    assert (made.metadata["epoch"], made.side_files) == ("3", {"config.json": b'{\n  "n_layer": 1\n}\n'})


def test_an_input_of_a_plan_within_may_be_a_mapping():
    sub = {"inputs": [{"alias": "n", "path": "n.safetensors"}], "transforms": [{"assert": {"exists": "x"}}]}
    assert not complaints({"execute": {"plan": sub}}, world=world())


OUTPUTS: dict[str, dict[str, object]] = {
    "path": {"path": "o.npz"},
    "alias": {"path": "o/", "alias": "n"},
    "format": {"path": "o/", "format": "orbax"},
    "shard": {"path": "o/", "shard": "1MB"},
    "overwrite": {"path": "o/", "overwrite": True},
    "sidecars": {"path": "o/", "sidecars": False},
    "config": {"path": "o/", "config": {"patch": {"n_layer": 1}, "remove": ["old"]}},
    "metadata": {"path": "o/", "metadata": {"epoch": "3"}},
    "options": {"path": "o.npz", "options": {"compression": True}},
    "asserts": {"path": "o/", "asserts": [{"exists": ".*"}]},
}
INPUTS = ("m::m.safetensors", "n::n.safetensors")


def with_config() -> Headers:
    there = world()
    there.contents = {f"{name}.safetensors/config.json": b'{"n_layer": 2, "old": 0}' for name in "mn"}
    return there


def published(*steps: object, output: object = None) -> Publication:
    made = program(*steps, output=output, inputs=INPUTS, world=with_config())
    assert not made.errors, made.errors
    (publication,) = made.publications
    return publication._replace(span=None)


def test_every_key_of_an_output_is_tried_in_a_plan_within():
    assert set(OUTPUTS) == set(OUTPUT_KEYS)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("step", ["output", "save"])
def test_what_a_plan_within_writes_must_satisfy_its_asserts(step: str, levels: int):
    """They are about the alias that is written, as those of an output of the plan itself."""
    for name, said in (("w", []), ("none", ["assert-failed"])):
        written = {"path": "o/", "alias": "m", "asserts": [{"exists": name}]}
        inner = {"save": written} if step == "save" else {"execute": {"plan": {"output": written}}}
        assert complaints(nested(levels, inner), inputs=INPUTS, world=world()) == said


@pytest.mark.parametrize("key", OUTPUTS)
@pytest.mark.parametrize("levels", [1, 3])
def test_an_output_of_a_plan_within_is_written_as_that_of_a_plan(key: str, levels: int):
    output = {"alias": "m", **OUTPUTS[key]}
    within = published(nested(levels - 1, {"execute": {"plan": {"output": output}}}))
    alone = published(output=output)
    assert {name: (e.aval, e.name) for name, e in within.tensors.items()} == {
        name: (e.aval, e.name) for name, e in alone.tensors.items()
    }
    assert within._replace(tensors={}) == alone._replace(tensors={})


def test_several_outputs_of_a_plan_within_are_saved_in_their_order():
    outputs = [{"path": "b/", "alias": "m"}, "n::a/"]
    made = program({"execute": {"plan": {"outputs": outputs}}}, inputs=INPUTS, world=with_config())
    assert [(p.path, list(p.tensors)) for p in made.publications] == [("b/", ["w"]), ("a/", ["x"])]
