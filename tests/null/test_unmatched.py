"""Sets of tensors that do not pair up: what each word of `unmatched` does with what one side alone has."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from brainsurgery_jax.errors import Diagnostic
from tests.null.world import Headers, found, program

WORLD = {
    "a": {"w": "f32[2]", "x": "f32[2]"},
    "b": {"w": "f32[2]", "y": "f32[2]"},
    "same": {"w": "f32[2]", "x": "f32[2]"},
    "more": {"w": "f32[2]", "x": "f32[2]", "y": "f32[2]", "z": "f32[2]"},
    "deep": {f"layers.{i}.{n}": "f32[2]" for i in range(3) for n in ("w", "b")} | {"head": "f32[2]"},
    "flat": {f"layers.{i}.w": "f32[2]" for i in range(2)},
    "adapter": {"x.A": "f32[2]", "x.B": "f32[2]", "y.A": "f32[2]", "y.B": "f32[2]", "z.B": "f32[2]"},
}
INPUTS = tuple(f"{alias}::{alias}" for alias in WORLD)
WORK = {"prefixes": {"mode": "add", "alias": "out"}}


class Told(NamedTuple):
    """What comes of steps: the tensors of an alias afterwards, and what is said."""

    made: Any
    said: tuple[Diagnostic, ...]

    @property
    def errors(self) -> list[str]:
        return [d.code for d in self.said if d.severity == "error"]

    @property
    def notes(self) -> list[str]:
        return [d.message for d in self.said if d.severity == "note"]


def told(*steps: Any, alias: str = "a") -> Told:
    done = program(*steps, world=Headers(WORLD), inputs=INPUTS, output={"path": "out/", "alias": alias})
    names = sorted(done.publications[0].tensors) if done.publications else None
    return Told(names, done.diagnostics)


def compute(a: Any, b: Any, **keys: Any) -> Any:
    return {"compute": {"from": {"a": a, "b": b}, "expr": "a + b", **keys}}


IN_PLACE = compute("a::.*", r"b::\g<0>")["compute"]
ELSEWHERE = {**IN_PLACE, "to": r"out::\g<0>"}


# --- Whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "alias", "word", "made"),
    [
        (IN_PLACE, "a", "keep", ["w", "x", "y"]),
        (IN_PLACE, "a", "drop", ["w", "x"]),
        (ELSEWHERE, "out", "keep", ["w", "x", "y"]),
        (ELSEWHERE, "out", "drop", ["w"]),
    ],
)
def test_keep_gives_the_union_and_drop_works_on_what_both_have(step: Any, alias: str, word: str, made: list[str]):
    assert told(WORK, {"compute": {**step, "unmatched": word}}, alias=alias) == (made, ())


@pytest.mark.parametrize("step", [IN_PLACE, ELSEWHERE])
@pytest.mark.parametrize("word", [{}, {"unmatched": "error"}])
def test_both_sides_are_listed_where_whole_models_do_not_pair_up(step: Any, word: Any):
    (problem,) = told(WORK, {"compute": {**step, **word}}).said
    assert problem.code == "unmatched"
    assert "1 tensor of 'a' has no partner in 'b' ('x')" in problem.message
    assert "1 tensor of 'b' has no partner in 'a' ('y')" in problem.message
    assert "`unmatched: keep`" in problem.hint
    assert "`unmatched: drop`" in problem.hint


def test_of_three_sets_those_that_lack_a_tensor_are_named():
    step = {
        "from": {"a": "a::.*", "same": r"same::\g<0>", "b": r"b::\g<0>"},
        "expr": "a + same + b",
        "to": r"out::\g<0>",
    }
    (problem,) = told(WORK, {"compute": {**step, "unmatched": "error"}}).said
    assert "1 tensor of 'a' has no partner in 'b' ('x')" in problem.message
    assert "in 'same'" not in problem.message
    more = step | {"from": step["from"] | {"a": "more::.*"}}
    (problem,) = told(WORK, {"compute": {**more, "unmatched": "error"}}).said
    assert "1 tensor of 'more' has no partner in 'b' ('x')" in problem.message
    assert "1 tensor of 'more' has no partner in 'same' ('y')" in problem.message
    assert "1 tensor of 'more' has no partner in 'same' and 'b' ('z')" in problem.message


def test_many_names_are_counted_and_the_first_are_listed():
    (problem,) = told(compute("flat::.*", r"deep::\g<0>")).said
    assert "5 tensors of 'deep' have no partner in 'flat' ('head', 'layers.0.b', " in problem.message
    assert "and 1 more)" in problem.message


def test_models_of_the_same_names_pair_up_whatever_the_word():
    for word in ({}, {"unmatched": "error"}, {"unmatched": "keep"}, {"unmatched": "drop"}):
        assert told(compute("a::.*", r"same::\g<0>", **word)) == (["w", "x"], ())


def test_a_missing_partner_alone_is_told_with_the_nearest_name_as_ever():
    (problem,) = told(compute("more::.*", r"same::\g<0>")).said
    assert problem.code == "tensor-missing"
    assert "`unmatched: keep` takes them into 'more' as they are" in problem.hint
    assert "`unmatched: drop`" in problem.hint


@pytest.mark.parametrize(
    "step",
    [
        {"lerp_": {"from": "same::(.*)", "to": r"more::\1", "t": 0.5}},
        {"add_": {"from": "same::(.*)", "to": r"more::\1"}},
        {"add": {"from_a": "same::(.*)", "from_b": r"more::\1", "to": r"same::\1"}},
        {"einsum": {"from_a": "same::(.*)", "from_b": r"more::\1", "to": r"out::\1", "equation": "i,i->i"}},
        compute("same::(.*)", r"more::\1"),
        compute({"alias": "same", "name": ["*n"]}, {"alias": "more", "name": ["*n"]}),
    ],
)
def test_every_step_over_two_sets_has_it(step: Any):
    assert told(WORK, step, alias="same").errors == ["unmatched"]
    ((op, payload),) = step.items()
    assert told(WORK, {op: {**payload, "unmatched": "drop"}}, alias="same").errors == []
    kept = told(WORK, {op: {**payload, "unmatched": "keep"}}, alias="out" if op == "einsum" else "same")
    assert kept == ((["w", "x"] if op.endswith("_") else ["w", "x", "y", "z"]), ())


@pytest.mark.parametrize("step", [{"copy": {"from": "a::w", "to": "a::v"}}, {"assign": {"from": "a::w", "to": "b::w"}},
                                  {"scale_": {"target": "a::w", "by": 2}}])  # fmt: skip
def test_a_step_that_reads_one_set_does_not(step: Any):
    ((op, payload),) = step.items()
    with pytest.raises(AssertionError, match="key-unknown"):
        told({op: {**payload, "unmatched": "drop"}})


# --- Parts of models --------------------------------------------------------------------------------------------------

PART = compute(r"flat::layers\.0\.(.*)", r"deep::layers.0.\1")["compute"]


def test_of_a_part_what_is_left_out_is_noted_once():
    done = told({"compute": PART}, alias="flat")
    assert done.errors == []
    assert done.notes == ["compute: 1 tensor of 'deep' has no partner in 'flat' ('layers.0.b'): left out"]


@pytest.mark.parametrize(
    ("word", "made"), [("drop", ["layers.0.w", "layers.1.w"]), ("keep", ["layers.0.b", "layers.0.w", "layers.1.w"])]
)
def test_a_word_silences_the_note(word: str, made: list[str]):
    assert told({"compute": {**PART, "unmatched": word}}, alias="flat") == (made, ())


def test_error_refuses_a_part_that_does_not_pair_up():
    assert told({"compute": {**PART, "unmatched": "error"}}).errors == ["unmatched"]


@pytest.mark.parametrize(
    "step",
    [
        compute(r"flat::layers\.0\.w", "deep::head"),  # a literal partner
        compute(r"flat::layers\.\d+\.(w)", "deep::head"),  # one for all
        compute(r"flat::layers\.(0)\.(.*)", r"deep::layers.\1.\2", to=r"deep::layers.\1.\2"),  # it stays where it is
        compute(r"flat::layers\.([01])\.w", r"deep::layers.\1.w"),  # the reach is what is used
        compute(r"adapter::(.)\.A", r"adapter::\1.B"),  # within one alias
    ],
)
def test_nothing_is_said_where_nothing_is_lost(step: Any):
    assert told(step, alias="flat").said == ()


def test_within_one_alias_it_is_refused_where_the_plan_says_so():
    (problem,) = told(compute(r"adapter::(.)\.A", r"adapter::\1.B", unmatched="error")).said
    assert "1 tensor of 'adapter' has no partner in 'adapter' ('z.B')" in problem.message


def test_a_model_that_has_lost_tensors_is_no_whole_one():
    done = told({"delete": {"target": "same::w"}}, compute("same::.*", r"more::\g<0>"), alias="same")
    assert done.errors == []
    assert len(done.notes) == 1


def test_a_model_that_was_renamed_is_still_whole():
    renamed = {"move": {"from": "same::(.*)", "to": r"same::m.\1"}}
    assert told(renamed, compute(r"same::m\.(.*)", r"more::\1")).errors == ["unmatched"]


# --- `if_missing` and `unmatched` -------------------------------------------------------------------------------------


def test_if_missing_is_the_word_for_the_side_of_the_pattern():
    step = compute("more::.*", r"same::\g<0>", if_missing="skip")
    assert told(step, alias="more") == (["w", "x", "y", "z"], ())
    both = compute("a::.*", r"b::\g<0>", if_missing="skip")
    (problem,) = told(both).said
    assert "of 'b'" in problem.message
    assert "of 'a' has" not in problem.message


def test_unmatched_goes_first_where_both_are_said():
    step = compute("more::.*", r"same::\g<0>", if_missing="skip", to=r"out::\g<0>", unmatched="keep")
    assert told(WORK, step, alias="out").made == ["w", "x", "y", "z"]


@pytest.mark.parametrize("word", ["keep", "drop"])
def test_a_step_in_which_nothing_pairs_up_is_a_mistake(word: str):
    (problem,) = told(compute("same::.*", r"deep::\g<0>", unmatched=word)).said
    assert problem.code == "unmatched"
    assert "no match of 'same::.*' has a partner" in problem.message
    assert told(compute("same::.*", r"deep::\g<0>", unmatched=word, if_missing="skip"), alias="same").errors == []


def test_no_word_is_proposed_where_nothing_pairs_up():
    (problem,) = told(compute("same::.*", r"deep::\g<0>", unmatched="error")).said
    assert problem.message.startswith("compute: no match of 'same::.*' has a partner, so there is nothing to do: ")
    assert problem.hint == "Compare the names on both sides."


# --- Where keep is not clear ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (compute("same::(.*)::[:1]", r"more::\1::[:1]", to=r"out::\1"), "it takes whole tensors"),
        (compute("same::[wx]", r"more::${lower(\g<0>)}"), "cannot be told from the references"),
        (compute("same::(.*)", r"more::\1", to="out::one"), "would both become 'one'"),
    ],
)
def test_keep_is_refused_where_it_is_not_clear(step: Any, why: str):
    ((op, payload),) = step.items()
    (problem,) = told(WORK, {op: {**payload, "unmatched": "keep"}}).said
    assert problem.code in ("unmatched", "names-collide")
    assert why in problem.message
    (refused,) = told(WORK, {op: {**payload, "unmatched": "error"}}).said
    assert "keep" not in refused.hint, "a remedy that does not help"


def test_what_two_of_three_sets_have_is_not_kept():
    step = {
        "compute": {
            "from": {"a": "same::.*", "b": r"more::\g<0>", "c": r"b::\g<0>"},
            "expr": "a + b + c",
            "to": r"out::\g<0>",
            "unmatched": "keep",
        }
    }
    (problem,) = told(WORK, step).said
    assert "'same::x' has a partner, 'more::x', but not all" in problem.message
    assert told(WORK, {"compute": {**step["compute"], "unmatched": "drop"}}, alias="out").made == ["w"]


def test_a_kept_tensor_overwrites_none_of_another_kind():
    step = {"from_a": "a::(.*)", "from_b": r"b::\1", "to": r"out::\1", "unmatched": "keep"}
    made = [{"zeroes": {"target": "out::w", "shape": [2]}}, {"zeroes": {"target": "out::x", "shape": [3]}}]
    assert told(WORK, *made, {"add": step}).errors == ["dest-differs"]
    taken = compute("a::(w)", r"b::\1", to=r"same::\1")
    assert told(taken, alias="same").errors == []


def test_after_a_failed_step_nothing_is_told_of_what_may_be_missing():
    bad = {"copy": {"from": "more::nowhere", "to": "more::v"}}
    assert told(bad, compute("same::.*", r"more::\g<0>")).errors == ["no-match"]


def test_after_a_step_that_would_have_kept_and_failed_nothing_is_told_of_what_is_kept():
    bad = compute("same::.*", r"more::\g<0>", unmatched="keep")
    bad["compute"]["expr"] = "a @ b @ a"
    assert told(bad, {"scale_": {"target": "same::z", "by": 2}}, alias="same").errors == ["expression-value"]


# --- Asserts and diff -------------------------------------------------------------------------------------------------


def test_an_assert_notes_what_is_compared_with_nothing():
    step = {"assert": {"equal": {"left": "same::.*", "right": r"more::\g<0>"}}}
    (note,) = found(step, world=Headers(WORLD), inputs=INPUTS)
    assert (note.code, note.severity) == ("unmatched", "note")
    assert "'y', 'z' of 'more' is compared with nothing on the left" in note.message


@pytest.mark.parametrize("operator", ["equal", "close", "identical"])
def test_an_assert_on_sets_refuses_or_leaves_out_what_is_alone(operator: str):
    def said(left: str, right: str, word: str) -> list[str]:
        payload = {"left": f"{left}::.*", "right": rf"{right}::\g<0>", "unmatched": word}
        return [d.code for d in found({"assert": {operator: payload}}, world=Headers(WORLD), inputs=INPUTS)]

    assert said("same", "more", "error") == said("more", "same", "error") == ["assert-failed"]
    assert said("same", "more", "drop") == said("more", "same", "drop") == []
    assert said("same", "deep", "drop") == ["no-match"]


def test_diff_lists_refuses_or_leaves_out_what_is_alone():
    def said(word: str, right: str = "more") -> list[str]:
        payload = {"mode": "aliases", "left_alias": "same", "right_alias": right, "unmatched": word}
        return [d.code for d in found({"diff": payload}, world=Headers(WORLD), inputs=INPUTS)]

    assert said("keep") == said("drop") == []
    assert said("error") == ["unmatched"]
    assert said("drop", "deep") == ["unmatched"]
