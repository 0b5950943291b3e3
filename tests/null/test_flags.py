"""`set`: preview, verbose and dry-run; what they print is exact, and a dry run leaves nothing behind."""

from __future__ import annotations

from brainsurgery_jax import api
from brainsurgery_jax.lower import Program, lower, start
from brainsurgery_jax.protocol import Flags, PendingReport
from brainsurgery_jax.rendering.text import as_text
from tests.null.world import Headers, after, complaints, program

SCALE = {"scale": {"from": "w", "to": "half", "by": 0.5}}


def said(*steps: object) -> list[str]:
    """What the steps print, as far as it needs no values."""
    checks = program(*steps).checks
    return [as_text(c.says.document({})) for c in checks if isinstance(c.says, PendingReport) and not c.questions]


def test_set_without_keys_prints_the_flags():
    assert said("set") == ["dry-run: false\npreview: false\nverbose: false"]


def test_flags_stay_until_they_are_changed():
    steps = ({"set": {"verbose": " T "}}, {"set": {"preview": False}}, "set")
    assert said(*steps)[-1] == "dry-run: false\npreview: false\nverbose: true"


def test_a_flag_is_true_or_false_not_a_number():
    plan = api.load({"inputs": ["m::m.safetensors"], "transforms": [{"set": {"preview": 1}}]})
    assert ["expected true or false, got 1" in d.message for d in plan.problems] == [True]


def test_preview_says_what_each_step_changes_before_the_step_speaks():
    lines = said({"set": {"preview": True}}, SCALE, {"delete": {"target": "v|b"}}, {"prefixes": {}})
    assert lines == [
        "preview 2/4 scale: created 1: m::half",
        "preview 3/4 delete: deleted 2: m::b, m::v",
        "preview 4/4 prefixes: no tensor changes",
        "Aliases:\n  m::",
        "preview, all steps: changed 0, created 1, deleted 2",
    ]


def test_preview_tells_the_steps_of_a_plan_within_the_plan_as_one():
    inner = {"execute": {"transforms": [SCALE, {"delete": {"target": "v"}}]}}
    assert said({"set": {"preview": True}}, inner)[0] == "preview 2/2 execute: created 1: m::half; deleted 1: m::v"


def test_verbose_tells_each_tensor_with_what_it_was_made_of():
    steps = (
        {"set": {"verbose": True}},
        SCALE,
        {"add": {"from_a": "w", "from_b": "half", "to": "v"}},
        {"move": {"from": "half", "to": "h2"}},
        {"delete": {"target": "w|h2"}},
        {"assert": {"exists": "v"}},
    )
    assert said(*steps) == [
        "scale: w -> half",
        "add: w, half -> v",
        "move: half -> h2",
        "delete: h2\ndelete: w",
        "assert.exists: ok",
    ]


def test_verbose_lines_of_a_dry_run_say_so():
    assert said({"set": {"verbose": True, "dry-run": True}}, SCALE) == ["dry-run scale: w -> half"]


def test_a_dry_run_that_is_turned_off_leaves_the_state_as_it_was():
    state = after(
        {"set": {"dry-run": True}}, {"delete": {"target": "w"}}, {"prefixes": {"mode": "add", "alias": "x"}},
        {"set": {"dry-run": False}},
    )  # fmt: skip
    assert "w" in state.spaces["m"].names
    assert list(state.spaces) == ["m"]


def test_steps_of_a_dry_run_see_what_it_did():
    assert not complaints({"set": {"dry-run": True}}, {"delete": {"target": "w"}}, {"assert": {"not": {"exists": "w"}}})


def test_mistakes_within_a_dry_run_are_mistakes():
    steps = ({"set": {"dry-run": True}}, {"delete": {"target": "w"}}, {"delete": {"target": "w"}})
    assert complaints(*steps, {"set": {"dry-run": False}}) == ["no-match"]


def test_nothing_is_saved_while_a_dry_run_is_on():
    save = {"save": {"path": "a.safetensors"}}
    made = program(save, {"set": {"dry-run": True}}, {"save": {"path": "b.safetensors"}}, output="c.safetensors")
    assert [p.path for p in made.publications] == ["a.safetensors"]
    assert not made.errors


def test_a_load_within_a_dry_run_is_there_for_the_steps_that_follow_in_it():
    world = Headers({"m.safetensors": {"w": "f32[2]"}, "n.safetensors": {"x": "f32[2]"}})
    steps = ({"set": {"dry-run": True}}, {"load": {"path": "n.safetensors", "alias": "n"}})
    assert not complaints(*steps, {"assert": {"exists": "n::x"}}, world=world)


def test_preview_of_a_plan_without_steps_says_nothing():
    plan, world = api.load({"inputs": ["m::m.safetensors"]}).data, Headers({"m.safetensors": {"w": "f32[2]"}})
    made = lower(start(plan, world, Flags(preview=True)), plan, world)
    assert isinstance(made, Program)
    assert made.checks == ()
