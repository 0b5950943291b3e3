"""One mistake gives one message: what a failed step would have made is unknown, and silences its followers."""

from __future__ import annotations

import pytest

import brainsurgery_jax as bs
from brainsurgery_jax import api
from brainsurgery_jax.lower import Program, lower, start
from tests.null.world import MODEL, Headers, found

FIRST_FAILS = {
    "a copy that never came about is scaled": [
        {"copy": {"from": "typo", "to": "x"}},
        {"scale_": {"target": "x", "by": 2}},
    ],
    "a copy that never came about is moved, cast, and asserted": [
        {"copy": {"from": "typo", "to": "x"}},
        {"move": {"from": "x", "to": "y"}},
        {"cast_": {"target": "y", "to": "bfloat16"}},
        {"assert": {"dtype": {"of": "y", "is": "bfloat16"}}},
    ],
    "what a failed move would have freed is taken": [
        {"move": {"from": "w", "to": "v"}},
        {"copy": {"from": "b", "to": "w"}},
    ],
    "what a failed delete would have freed is taken": [
        {"delete": {"target": "w::[0]"}},
        {"copy": {"from": "b", "to": "w"}},
    ],
    "a tensor of unknown shape is added": [
        {"reshape_": {"target": "w", "shape": [5, 5]}},
        {"add_": {"from": "w", "to": "v"}},
    ],
    "the shape that a failed reshape would have made is asserted": [
        {"reshape_": {"target": "w", "shape": [5, 5]}},
        {"assert": {"shape": {"of": "w", "is": [5, 5]}}},
    ],
    "a value from an unknown one goes on to a third": [
        {"reshape": {"from": "w", "to": "x", "shape": [5]}},
        {"copy": {"from": "x", "to": "y"}},
        {"assign": {"from": "y", "to": "v"}},
        {"scale_": {"target": "v", "by": 2}},
    ],
    "a checkpoint that cannot be opened is used": [
        {"load": {"path": "missing.safetensors", "alias": "o"}},
        {"copy": {"from": "o::w", "to": "m::w2"}},
        {"assert": {"exists": "o::w"}},
        {"dump": {"target": "o::w"}},
    ],
    "a load that is misspelled is used": [
        {"load": {"path": "m.safetensors", "alias": "o", "fromat": "auto"}},
        {"copy": {"from": "o::w", "to": "m::w2"}},
    ],
    "an op that does not exist made what follows": [
        {"cpy": {"from": "w", "to": "x"}},
        {"scale_": {"target": "x", "by": 2}},
    ],
    "an op that does not exist made an alias": [
        {"laod": {"path": "m.safetensors", "alias": "o"}},
        {"scale_": {"target": "o::w", "by": 2}},
    ],
    "an alias that could not be renamed is used": [
        {"prefixes": {"mode": "rename", "from": "n", "to": "o"}},
        {"scale_": {"target": "o::w", "by": 2}},
    ],
    "factors that were never made are multiplied": [
        {"phlora": {"target": "ids", "target_a": "A", "target_b": "B", "rank": 1}},
        {"matmul": {"from_a": "B", "from_b": "A", "to": "low"}},
        {"assert": {"shape": {"of": "low", "is": [4, 3]}}},
    ],
    "factors of a pattern that fails are multiplied": [
        {"phlora": {"target": "(ids|w)", "target_a": r"\1.A", "target_b": r"\1.B", "rank": 1}},
        {"matmul": {"from_a": "w.B", "from_b": "w.A", "to": "w.low"}},
    ],
    "parts of a split that fails are joined": [
        {"split": {"from": "w", "to": ["p", "q"], "sizes": [1, 1]}},
        {"concat": {"from": ["p", "q"], "to": "pq"}},
    ],
    "the whole of a concat that fails is cut": [
        {"concat": {"from": ["w", "b"], "to": "wb"}},
        {"split": {"from": "wb", "to": ["p", "q"], "sizes": [4, 1]}},
    ],
    "an alias that a failed save would have told is saved again": [
        {"save": {"path": "snap.v1"}},
        {"load": {"path": "snap.v1", "alias": "s"}},
        {"copy": {"from": "s::w", "to": "m::x"}},
    ],
    "a made tensor of a wrong size is filled": [
        {"zeroes": {"target": "z", "shape": [0]}},
        {"fill_": {"target": "z", "mode": "constant", "value": 1}},
        {"delete": {"target": "z"}},
    ],
    "a tensor that may have gone counts": [
        {"delete": {"target": "typo"}},
        {"assert": {"count": {"of": "typo", "is": 0}}},
    ],
}


@pytest.mark.parametrize("name", FIRST_FAILS)
def test_the_first_step_fails_and_the_others_are_silent(name: str):
    assert len(errors(FIRST_FAILS[name])) == 1


@pytest.mark.parametrize("name", FIRST_FAILS)
def test_the_output_behind_a_failed_step_is_silent_too(name: str):
    assert len(errors(FIRST_FAILS[name], output="out.safetensors")) == 1


def errors(steps: list[dict[str, object]], output: object = None) -> list[str]:
    plan = api.load({"inputs": ["m::m.safetensors"], "transforms": steps, "output": output})
    world = Headers({"m.safetensors": MODEL})
    lowered = lower(start(plan.data, world), plan.data, world)
    assert isinstance(lowered, Program)
    return [str(d) for d in (*plan.problems, *lowered.errors)]


def test_a_second_mistake_that_does_not_hang_on_the_first_is_told_too():
    steps: list[dict[str, object]] = [
        {"copy": {"from": "typo", "to": "x"}},
        {"scale_": {"target": "x", "by": 2}},
        {"reshape_": {"target": "w", "shape": [5]}},
    ]
    assert [e.rpartition("[")[2].split("]")[0] for e in errors(steps)] == ["no-match", "reshape-size"]


def test_an_assert_that_is_misspelled_casts_no_doubt_on_what_follows():
    steps: list[dict[str, object]] = [
        {"assert": {"dtype": {"of": ".*", "is": "flaot32"}}},
        {"scale_": {"target": "typo", "by": 2}},
    ]
    assert len(errors(steps)) == 2


def test_a_path_that_cannot_be_written_is_told_beside_a_failed_step():
    assert len(errors([{"copy": {"from": "typo", "to": "x"}}], output="out.v1")) == 2


def test_a_missing_input_silences_all_that_uses_it():
    plan = bs.load({"inputs": ["no::no.safetensors"], "transforms": [{"scale_": {"target": "w", "by": 2}}, "dump"]})
    world = Headers({})
    lowered = lower(start(plan.data, world), plan.data, world)
    assert isinstance(lowered, Program)
    assert [d.code for d in lowered.errors] == ["io-input"]


def test_mistakes_that_have_nothing_to_do_with_each_other_are_all_told():
    steps = [
        {"scale_": {"target": "typo1", "by": 2}},
        {"delete": {"target": "typo2"}},
        {"add_": {"from": "typo3", "to": "w"}},
        {"assert": {"count": {"of": "b", "is": 7}}},
        {"cast_": {"target": "typo4", "to": "bfloat16"}},
    ]
    assert [d.code for d in found(*steps)] == ["no-match", "no-match", "no-match", "assert-failed", "no-match"]
