"""The workbench without a browser: names as a tree, the text of a plan, undo, runs in the background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("nicegui", reason="NiceGUI is not installed: pip install 'brainsurgery-jax[web]'")

import yaml

from brainsurgery_jax.api import load
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.plan.recipes import find_recipe, recipe_names
from brainsurgery_jax.provenance.lock import read_lock
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.names import BranchedNames
from brainsurgery_jax.web.plan_text import add_input, add_steps
from brainsurgery_jax.web.step_form import find_form, has_switch, list_choices, list_forms
from brainsurgery_jax.web.workbench import Workbench
from tests.web.conftest import write_model

PLAN = "inputs: [model.safetensors]\ntransforms:\n- scale_: {target: wte.weight, by: 2}\noutput: out.safetensors\n"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.safetensors")
    return Workbench(Root("."))


def tree(*names: str) -> BranchedNames:
    return BranchedNames({name: Aval((2, 3), FLOAT32) for name in names})


# --- the tree of names


def test_layers_that_hold_the_same_are_one_node():
    names = [f"h.{layer}.{part}" for layer in range(4) for part in ("w", "b")] + ["h.4.w"]
    (top,) = tree(*names).children()
    assert (top.label, top.tensors, top.nbytes, top.has_children) == ("h", 9, 9 * 24, True)
    assert [(b.label, b.copies, b.tensors, b.pattern) for b in tree(*names).children("h", "h")] == [
        ("[0-3]", 4, 8, r"h\.\d+"), ("4", 1, 1, r"h\.4"),
    ]  # fmt: skip


def test_a_tensor_may_be_the_prefix_of_another():
    (top,) = tree("a", "a.b").children()
    assert (top.tensors, top.aval is not None, top.has_children) == (2, True, True)


def test_tensors_that_differ_in_shape_are_no_copies():
    avals = {"h.0.w": Aval((2,), FLOAT32), "h.1.w": Aval((3,), FLOAT32)}
    assert [b.copies for b in BranchedNames(avals).children("h", "h")] == [1, 1]


def test_a_search_takes_both_languages_of_references(bench: Workbench):
    one = bench.open("model.safetensors")
    expected = [f"h.{layer}.attn.weight" for layer in range(3)]
    assert one.search(r"h\.\d+\.attn\.weight") == one.search("[h, $i, attn, weight]") == expected
    assert len(one.search("")) == 11 and one.search("nothing") == []
    with pytest.raises(ValueError, match=r"unterminated|unbalanced|missing"):
        one.search("(")


# --- the text of a plan


def test_a_step_is_added_below_the_others_and_comments_stay():
    text = "# why\ninputs: [a]\ntransforms:\n  - delete: {target: x}  # this\n\noutput: b\n"
    added = add_steps(text, [{"scale_": {"target": "y", "by": 2}}])
    assert added.startswith("# why\n") and "# this\n  - scale_:" in added and added.endswith("\noutput: b\n")
    assert yaml.safe_load(added)["transforms"] == [{"delete": {"target": "x"}}, {"scale_": {"target": "y", "by": 2}}]


@pytest.mark.parametrize(
    "text", ["transforms: [{help: {}}]\noutput: a\n", "transforms: [{help: {}},\n  ]\noutput: a\n"]
)
def test_a_step_is_added_to_a_list_in_brackets(text: str):
    added = yaml.safe_load(add_steps(text, [{"scale_": {"target": "a, b]", "by": 2}}]))
    assert added == {"transforms": [{"help": {}}, {"scale_": {"target": "a, b]", "by": 2}}], "output": "a"}


@pytest.mark.parametrize("text", ["", "transforms:\n", "inputs: [a]\n", "transforms: []\n"])
def test_the_first_step_is_added_to_any_plan(text: str):
    assert yaml.safe_load(add_steps(text, [{"help": {}}]))["transforms"] == [{"help": {}}]


def test_the_second_input_gets_an_alias():
    text = add_input(add_input("", "a.safetensors"), "b.safetensors")
    assert yaml.safe_load(text) == {"inputs": ["model::a.safetensors", "model_2::b.safetensors"]}
    assert load(yaml.safe_load(text)).problems == ()
    quoted = add_input("inputs: ['a b.safetensors']  # mine\n", "c.safetensors")
    assert yaml.safe_load(quoted)["inputs"] == ["model::a b.safetensors", "model_2::c.safetensors"]


# --- the form


@pytest.mark.parametrize("name", sorted(OPS))
def test_the_form_offers_switches_for_booleans_and_choices_for_literals(name: str):
    for field in OPS[name].step_fields():
        if isinstance(field.default, bool):
            assert has_switch(field), field.key
        if field.key == "if_missing":
            assert list_choices(field) == ["error", "skip"]


def test_the_form_offers_every_op_assert_and_recipe():
    offered = list_forms()
    assert {name for name in offered if " " not in name} == OPS.keys() - {"assert"}
    assert [name for name in offered if name.startswith("assert ")] == [f"assert {name}" for name in sorted(ASSERTS)]
    assert [name for name in offered if name.startswith("recipe ")] == [f"recipe {name}" for name in recipe_names()]


@pytest.mark.parametrize("name", sorted(ASSERTS))
def test_the_form_asks_for_the_keys_of_an_assert_and_makes_its_step(name: str):
    form = find_form(f"assert {name}")
    payload: dict[str, object] = {one.key: "x" for one in form.keys if one.required}
    bare = ASSERTS[name].bare
    assert form.make(payload) == {"assert": {name: payload[bare] if bare else payload}}


@pytest.mark.parametrize("name", recipe_names())
def test_the_form_asks_for_the_variables_of_a_recipe_and_makes_its_step(name: str):
    form = find_form(f"recipe {name}")
    variables = find_recipe(name).variables
    assert [(one.key, one.required) for one in form.keys] == [(n, v.default is None) for n, v in variables.items()]
    assert [one.default for one in form.keys] == [v.default and v.default.text for v in variables.values()]
    assert form.make({"x": 1}) == {"execute": {"recipe": {name: {"x": 1}}}}


# --- undo and runs


def test_a_change_is_undone_and_done_again(bench: Workbench):
    bench.write("a: 1\n")
    bench.write("a: 2\n")
    bench.undo()
    assert (bench.text, bench.can_undo, bench.can_redo) == ("a: 1\n", True, True)
    bench.redo()
    assert (bench.text, bench.can_redo) == ("a: 2\n", False)
    bench.undo()
    bench.write("a: 3\n")
    assert not bench.can_redo


def test_what_is_typed_without_a_pause_is_undone_at_once(bench: Workbench):
    bench.write("a: 1\n")
    for text in ("b", "b:", "b: 2"):
        bench.write(text, typing=True)
    bench.pause()
    bench.write("b: 23", typing=True)
    bench.undo()
    assert bench.text == "b: 2"
    bench.undo()
    assert bench.text == "a: 1\n"


def test_what_a_run_would_do_is_told_before_it_does_anything(bench: Workbench):
    bench.write(PLAN)
    found = bench.look_ahead(overwrite=False)
    assert (found.diagnostics, found.writes, found.effects[0].changed) == (
        (),
        ("out.safetensors",),
        ("model::wte.weight",),
    )
    assert not Path("out.safetensors").exists()


def test_a_run_in_the_background_writes_what_the_plan_says(bench: Workbench):
    bench.write(PLAN)
    bench.run(overwrite=False)
    bench.wait()
    assert (bench.progress.state, bench.progress.share, bench.progress.active) == ("done", 1.0, False)
    before, after = load_file("model.safetensors"), load_file("out.safetensors")
    np.testing.assert_array_equal(after["wte.weight"], 2 * before["wte.weight"])


def test_an_output_is_replaced_only_where_that_is_agreed_to(bench: Workbench):
    bench.write(PLAN)
    save_file({"w": np.zeros(2, "f4")}, "out.safetensors")
    bench.run(overwrite=False)
    bench.wait()
    assert bench.progress.state == "failed" and list(load_file("out.safetensors")) == ["w"]
    bench.run(overwrite=True)
    bench.wait()
    assert bench.progress.state == "done" and "wte.weight" in load_file("out.safetensors")


def test_a_run_with_a_lock_writes_one_beside_the_output_and_says_so_before(bench: Workbench):
    bench.write(PLAN)
    assert bench.look_ahead(lock=True).writes == ("out.safetensors", "out.safetensors.lock.json")
    bench.run(overwrite=False, lock=True)
    bench.wait()
    assert bench.progress.state == "done"
    assert list(read_lock("out.safetensors").inputs) == ["model"]
    assert bench.find_lock("out.safetensors") == "out.safetensors.lock.json"


def test_a_run_without_a_lock_writes_none(bench: Workbench):
    bench.write(PLAN)
    bench.run(overwrite=False)
    bench.wait()
    assert not Path("out.safetensors.lock.json").exists()


def test_the_lock_of_a_folder_is_in_it(bench: Workbench):
    bench.write(PLAN.replace("out.safetensors", "out/"))
    bench.run(overwrite=False, lock=True)
    bench.wait()
    assert Path(bench.find_lock("out/")).is_file()


def test_a_run_that_is_cancelled_publishes_nothing(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    bench.write(PLAN)
    heard = type(bench.progress).hear
    monkeypatch.setattr(type(bench.progress), "hear", lambda self, event: bench.cancel() or heard(self, event))
    bench.run(overwrite=False)
    bench.wait()
    assert bench.progress.state == "cancelled" and not Path("out.safetensors").exists()


def test_a_checkpoint_that_is_opened_again_is_read_anew(bench: Workbench):
    bench.open("model.safetensors")
    save_file({"w": np.zeros((2, 2), "f4")}, "model.safetensors")
    assert list(bench.open("model.safetensors").avals) == ["w"]
    assert bench.opened.spectrum("model.safetensors", "w").values.tolist() == [0.0, 0.0]


# --- what is parsed


def test_a_change_is_parsed_once_for_all_that_is_shown_of_it(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    parsed = list[object]()

    def count(root: object) -> object:
        parsed.append(root)
        return load(root)

    monkeypatch.setattr("brainsurgery_jax.web.workbench.api.load", count)
    bench.write(PLAN)
    assert bench.check() == ()
    assert len(bench.steps()) == 1
    assert bench.refer("model.safetensors", "w") == "w"
    assert len(parsed) == 1
    bench.write("transforms: {")
    assert [one.code for one in bench.check()] == ["yaml-syntax"] and bench.steps() == []
    assert len(parsed) == 1


def test_a_mistake_after_a_step_does_not_stop_a_trial_up_to_it(bench: Workbench):
    later = "- scale_: {target: no.such.tensor, by: 2}\n- nonsense: {}\n"
    bench.write(PLAN.replace("output:", later + "output:"))
    tried = bench.try_plan(1)
    assert tried.path == "plan after step 1"
    before, after = load_file("model.safetensors"), load_file(tried.checkpoint.path)
    np.testing.assert_array_equal(after["wte.weight"], 2 * before["wte.weight"])
    with pytest.raises(PlanError, match=r"no\.such\.tensor"):
        bench.try_plan(2)
    with pytest.raises(PlanError, match="nonsense"):
        bench.try_plan()
    bench.close_all()
