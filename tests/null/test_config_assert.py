"""`assert: {config: ...}`: what config.json says, read beside the headers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brainsurgery_jax.errors import Diagnostic
from tests.null.world import Headers, found

CONFIG = {
    "num_hidden_layers": 24,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "architectures": ["LlamaForCausalLM"],
    "text_config": {"hidden_size": 64, "rope": {"theta": 10000.0}},
    "quantization_config": None,
    "pattern": {},
}


def said(asked: Any, **files: Any) -> tuple[Diagnostic, ...]:
    world = Headers({"m": {"w": "f32[2]"}, "ad": {"w": "f32[2]"}})
    given = files or {"m/config.json": json.dumps(CONFIG)}
    world.contents = {path: text.encode() for path, text in given.items()}
    return found({"assert": asked}, world=world, inputs=("m::m", "ad::ad"))


@pytest.mark.parametrize(
    "asked",
    [
        {"of": "m::num_hidden_layers", "is": 24},
        {"of": "m::num_hidden_layers", "is": 24.0},
        {"of": "m::num_hidden_layers", "in": [12, 24]},
        {"of": "m::tie_word_embeddings", "is": True},
        {"of": "m::architectures", "is": ["LlamaForCausalLM"]},
        {"of": "m::architectures.0", "is": "LlamaForCausalLM"},
        {"of": "m::text_config.rope.theta", "is": 10000},
        {"of": "m::text_config.rope", "is": {"theta": 10000}},
        {"of": "m::pattern", "is": {}},
        {"of": "m::pattern", "in": [None, {}]},
        {"of": "m::quantization_config", "is": None},
        {"of": "m::quantization_config"},
        {"of": "m::nowhere", "is": None},
        {"of": "m::nowhere.below", "in": [False, None]},
        {"of": "m::architectures.7"},
    ],
)
def test_a_key_has_a_value_and_one_that_is_not_there_is_null(asked: Any):
    assert said({"config": asked}) == ()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"of": "m::num_hidden_layers", "is": 12}, "'num_hidden_layers' in config.json of 'm' is 24, not 12"),
        ({"of": "m::num_hidden_layers"}, "is 24, not null"),
        ({"of": "m::tie_word_embeddings", "is": 1}, "is true, not 1"),
        ({"of": "m::tie_word_embeddings", "in": [False, None]}, "is true, none of false, null"),
        ({"of": "m::nowhere", "is": 0}, "is null, not 0"),
        ({"of": "m::architectures", "is": "LlamaForCausalLM"}, r'is ["LlamaForCausalLM"], not "LlamaForCausalLM"'),
        ({"of": "m::text_config", "is": {"hidden_size": 64}}, '"theta": 10000.0}}, not {"hidden_size": 64}'),
    ],
)
def test_another_value_is_told_with_the_one_that_was_wanted(asked: Any, why: str):
    (problem,) = said({"config": asked})
    assert problem.code == "assert-failed"
    assert why in problem.message


def test_not_turns_it_around():
    assert said({"not": {"config": {"of": "m::num_hidden_layers", "is": 12}}}) == ()


def test_of_an_adapter_its_own_config_is_read():
    files = {"ad/adapter_config.json": json.dumps({"r": 8, "rank_pattern": {"q": 2}})}
    assert said({"config": {"of": "ad::r", "is": 8}}, **files) == ()
    (problem,) = said({"config": {"of": "ad::rank_pattern", "in": [None, {}]}}, **files)
    assert "rank_pattern' in adapter_config.json of 'ad' is {\"q\": 2}, none of null, {}" in problem.message


def test_without_a_config_nothing_is_known():
    (problem,) = said({"config": {"of": "ad::r"}})
    assert problem.message == "assert.config: 'ad' came without a config.json, so 'r' is not known"


def test_a_config_that_is_no_json_is_named():
    (problem,) = said({"config": {"of": "m::r"}}, **{"m/config.json": "{"})
    assert problem.code == "io-input"
    assert "the config.json of 'm' is not JSON" in problem.message


def test_an_unknown_alias_is_named():
    (problem,) = said({"config": {"of": "mm::r"}})
    assert problem.code == "alias-unknown"


@pytest.mark.parametrize("bounds", [{"ge": 24, "le": 24}, {"gt": 23, "lt": 24.5}, {"in": [12, 24], "gt": 12}])
def test_a_number_satisfies_bounds(bounds: Any):
    assert said({"config": {"of": "m::num_hidden_layers", **bounds}}) == ()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            {"of": "m::num_hidden_layers", "ge": 25},
            "config.json of 'm' is 24, expected at least 25",
        ),
        ({"of": "m::text_config.hidden_size", "gt": 0, "lt": 64}, "is 64, expected less than 64"),
        ({"of": "m::num_hidden_layers", "is": 12, "ge": 1}, "is 24, not 12"),
        ({"of": "m::nowhere", "ge": 1}, "is null, which is no number"),
        ({"of": "m::tie_word_embeddings", "ge": 1}, "is true, which is no number"),
    ],
)
def test_a_bound_that_is_broken_is_told(asked: Any, why: str):
    (problem,) = said({"config": asked})
    assert problem.code == "assert-failed"
    assert why in problem.message


def test_bounds_that_no_number_satisfies_are_refused():
    (problem,) = said({"config": {"of": "m::num_hidden_layers", "gt": 3, "lt": 2}})
    assert problem.code == "bounds-contradict"
