"""The hint of a name without an alias, where a plan has no inputs: it names what earlier steps opened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import read, write
from tests.hints.cases import quoted

pytestmark = pytest.mark.usefixtures("here")

STEP = {"scale_": {"target": "w", "by": 2}}
W = np.array([1, 2], np.float32)


def refused(plan: dict[str, Any]) -> str:
    """The hint of the one mistake of a plan."""
    (found,) = bs.check(bs.load(plan))
    assert found.code == "ref-no-alias"
    return found.hint


def plan_of(*steps: Any, **keys: Any) -> dict[str, Any]:
    return {"transforms": list(steps), "output": {"path": "out.safetensors", "alias": "m"}, **keys}


def load(alias: str) -> dict[str, Any]:
    return {"load": {"path": "model.safetensors", "alias": alias}}


def test_what_an_earlier_step_opened_is_named() -> None:
    write("model.safetensors", {"w": W})
    hint = refused(plan_of(load("m"), STEP))
    (name,) = (text.removeprefix("Write which input is meant: '").rstrip("'.") for text in [hint])
    bs.load(plan_of(load("m"), {"scale_": {"target": name, "by": 2}})).run(durable=False)
    assert read("out.safetensors")["w"].tolist() == [2, 4]


def test_several_are_named_and_one_that_a_later_step_opens_is_not() -> None:
    write("model.safetensors", {"w": W})
    assert refused(plan_of(load("m"), load("n"), STEP, load("later"))).endswith("'m::w' or 'n::w'.")


@pytest.mark.parametrize("way", ["inputs", "load"])
def test_where_nothing_is_open_the_hint_says_how_to_open_something(way: str) -> None:
    write("model.safetensors", {"w": W})
    hint = refused(plan_of(STEP))
    assert quoted(hint) == ["inputs", "load"]
    if way == "inputs":
        plan = plan_of(STEP, inputs=["m::model.safetensors"])
    else:
        plan = plan_of(load("m"), {"scale_": {"target": "m::w", "by": 2}})
    bs.load(plan).run(durable=False)
    assert read("out.safetensors")["w"].tolist() == [2, 4]
