"""`assert: {unchanged: ...}` and the places of failing asserts: what headers tell, without files and without arrays."""

from __future__ import annotations

import pytest

from brainsurgery_jax.errors import Diagnostic
from tests.null.world import after

SCALED = {"scale_": {"target": "w", "by": 2}}


def unchanged(**keys: object) -> dict[str, object]:
    return {"assert": {"unchanged": keys}}


def complaint(*steps: object) -> str:
    """What the one failing assert says."""
    (found,) = after(*steps).diagnostics
    assert found.code == "assert-failed"
    return found.message


def test_what_no_step_touched_is_unchanged_without_a_look_at_values():
    state = after(SCALED, unchanged(**{"except": "w"}), unchanged(of=["v", "b"]))
    assert (state.checks, state.diagnostics) == ((), ())


def test_what_was_changed_and_changed_back_is_compared():
    (check,) = after(SCALED, {"scale_": {"target": "w", "by": 0.5}}, unchanged()).checks
    assert len(check.questions) == 1


def test_a_tensor_moved_away_and_back_is_unchanged():
    steps = [{"move": {"from": "w", "to": "x"}}, {"move": {"from": "x", "to": "w"}}]
    assert after(*steps, unchanged()).diagnostics == ()


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"delete": {"target": "w"}}, "'m' is not as it came in; removed or renamed: 'w'"),
        ({"move": {"from": "w", "to": "x"}}, "removed or renamed: 'w'; added: 'x'"),
        ({"copy": {"from": "w", "to": "x"}}, "'m' is not as it came in; added: 'x'"),
        ({"cast_": {"target": "w", "to": "float16"}}, r"'w' came in as f32[4,3], and is f16[4,3] now"),
    ],
)
def test_headers_tell_what_was_removed_renamed_added_or_cast(step: object, why: str):
    assert why in complaint(step, unchanged(**{"except": ["v"]}))


def test_what_may_change_may_also_go_and_come():
    steps = [{"move": {"from": "w", "to": "x"}}, unchanged(**{"except": ["w", "x"]})]
    assert after(*steps).diagnostics == ()


def test_a_renamed_alias_is_held_against_what_it_came_in_as():
    steps = [SCALED, {"prefixes": {"mode": "rename", "from": "m", "to": "n"}}, {"delete": {"target": "n::v"}}]
    assert "removed or renamed: 'v'" in complaint(*steps, unchanged(**{"except": "n::w"}))


def test_an_alias_of_the_plans_own_is_only_looked_at_when_it_is_named():
    steps = [{"prefixes": {"mode": "add", "alias": "work"}}, {"copy": {"from": "m::w", "to": "work::w"}}]
    assert after(*steps, unchanged()).diagnostics == ()
    assert "added: 'w'" in complaint(*steps, unchanged(of="work::.*"))


def test_nothing_is_said_of_tensors_that_a_failed_step_left_unknown():
    state = after({"add_": {"from": "b", "to": "w"}}, unchanged())
    assert [d.code for d in state.diagnostics] == ["shapes-differ"]


# --- Places -----------------------------------------------------------------------------------------------------------


def placed(assertion: object) -> str:
    """The place of the complaint about an assert."""
    (found,) = after({"assert": assertion}).diagnostics
    assert isinstance(found, Diagnostic) and found.span is not None
    return found.span.file


def test_a_failing_part_is_placed_at_its_own_line():
    assert placed({"all": [{"exists": "x"}, {"exists": "w"}]}) == "transforms[0].assert.all[0]"
    assert placed({"all": [{"exists": "w"}, {"exists": "x"}]}) == "transforms[0].assert.all[1]"


def test_a_part_of_a_part_is_placed_at_its_own_line():
    inner = {"all": [{"exists": "w"}, {"exists": "x"}]}
    assert placed({"all": [{"exists": "w"}, inner]}) == "transforms[0].assert.all[1].all[1]"


def test_where_no_part_alone_is_to_blame_the_whole_is():
    assert placed({"any": [{"exists": "x"}, {"exists": "y"}]}) == "transforms[0].assert"
    assert placed({"not": {"all": [{"exists": "w"}]}}) == "transforms[0].assert"
