"""The JSON Schema of plans accepts what the parser accepts, and names the mistakes that an editor should underline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import brainsurgery_jax.ops  # noqa: F401  (says which ops there are)
from brainsurgery_jax import api
from brainsurgery_jax.op import ASSERTS, OPS, Op
from brainsurgery_jax.plan.endpoints import OUTPUT_KEYS
from brainsurgery_jax.plan.parse import KEYS
from brainsurgery_jax.plan.schema import plan_schema
from brainsurgery_jax.plan.source import compose, plain

SCHEMA = plan_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
EVERYTHING = {**OPS, **{f"assert.{name}": op for name, op in ASSERTS.items()}}


def plain_yaml(text: str) -> Any:
    """The data of a YAML text, in the dialect of plans and of YAML 1.2, where `1e-6` is a number."""
    node = compose(text, "example")
    assert node is not None
    return plain(node)


def example(op: Op) -> Any:
    """The step that the docstring of an op shows."""
    found = re.search(r"Example: `(.+?)`\s*(?:\n|$)", op.doc)
    assert found is not None, f"the docstring of {op.name} shows no example"
    return plain_yaml(found[1])


def plan(step: Any) -> dict[str, Any]:
    return {"inputs": ["m::m.safetensors"], "transforms": [step], "output": "out.safetensors"}


def accepted(document: Any) -> bool:
    return VALIDATOR.is_valid(document)


def test_the_schema_is_itself_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_is_plain_json():
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_example_of_every_op_satisfies_the_schema(name: str):
    VALIDATOR.validate(plan(example(EVERYTHING[name])))


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_example_of_every_op_parses(name: str):
    assert api.load(plan(example(EVERYTHING[name]))).problems == ()


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("plans/*.yaml")), ids=lambda p: p.stem)
def test_every_worked_example_satisfies_the_schema(path: Path):
    VALIDATOR.validate(plain_yaml(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", OPS)
def test_every_op_refuses_an_unknown_key(name: str):
    if not OPS[name].bare:
        assert not accepted(plan({name: {"no_such_key": 1}}))


@pytest.mark.parametrize("name", OPS)
def test_an_op_with_required_keys_refuses_an_empty_mapping(name: str):
    required = SCHEMA["$defs"][f"op.{name}"]["properties"][name].get("required")
    if required:
        assert not accepted(plan({name: {}}))


@pytest.mark.parametrize("name", OPS)
def test_every_key_of_every_op_is_in_the_schema(name: str):
    text = json.dumps(SCHEMA["$defs"][f"op.{name}"])
    keys = [f.key for f in OPS[name].fields() if f.key != OPS[name].bare]
    assert all(json.dumps(key) in text for key in keys)


def test_every_key_of_a_plan_has_a_description():
    assert all("description" in SCHEMA["properties"][key] for key in KEYS)


def test_every_key_of_an_output_has_a_description():
    keys = SCHEMA["$defs"]["output"]["anyOf"][1]["properties"]
    assert all("description" in keys[key] for key in OUTPUT_KEYS)


@pytest.mark.parametrize(
    "document",
    [
        {"transform": []},
        {"transforms": [{"copy": {"from": "a", "to": "b"}, "delete": {"target": "a"}}]},
        {"transforms": [{"cast_": {"target": "a", "to": "float31"}}]},
        {"transforms": [{"assert": {"exist": "a"}}]},
        {"transforms": [{"assert": {"all": [{"not": {"exist": "a"}}]}}]},
        {"transforms": [{"move": {"from": "a::[0]", "to": {"name": "b", "slice": "[0]"}}}]},
        {"transforms": ["copy"]},
        {"output": {"alias": "m"}},
        {"output": "a", "outputs": ["b"]},
        {"version": 2},
        {"seed": "seven"},
    ],
    ids=lambda d: json.dumps(d)[:60],
)
def test_a_mistake_is_refused(document: dict[str, Any]):
    assert not accepted(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"inputs": ["m.safetensors"]},
        {"transforms": ["exit", {"dump": None}, "dump"]},
        {"transforms": {"delete": {"target": "a"}}},
        {"transforms": [{"load": "a.safetensors"}]},
        {"transforms": [{"assert": {"iszero": "a"}}]},
        {"transforms": [{"cast_": {"target": ["h", "*i"], "to": "BF16".lower()}}]},
        {"transforms": [{"phlora": {"target": "(w)", "target_a": "a", "target_b": "b", "rank": {"energy": 0.9}}}]},
        {"transforms": [{"scale_": {"target": {"alias": "m", "name": "w", "slice": "[:2]"}, "by": "1e-6"}}]},
        {"vars": {"r": 4}, "transforms": [{"ones": {"target": "x", "shape": "${vars.shape}"}}]},
        {"outputs": [{"path": "a", "metadata": {"k": "v"}}, "b.safetensors"]},
    ],
    ids=lambda d: json.dumps(d)[:60],
)
def test_what_the_language_allows_is_accepted(document: dict[str, Any]):
    VALIDATOR.validate(document)
