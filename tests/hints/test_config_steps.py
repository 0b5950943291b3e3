"""Hints about the config of an alias, and about ops that expand, done as they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.op import OPS, Pattern, control
from brainsurgery_jax.protocol import Edit, Expand, Publish, Substep, View
from tests.hints.calls import DOUBLE, W, hint_of

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.filterwarnings("ignore")]

LAYERS = {"config": {"patch": {"num_hidden_layers": 9}}}


@pytest.fixture(autouse=True)
def _model(here: Path) -> None:
    Path("hf").mkdir()
    shutil.copy("m.safetensors", "hf/model.safetensors")
    Path("hf/config.json").write_text(json.dumps({"num_hidden_layers": 1}))


def _run(*steps: Any, inputs: tuple[str, ...] = ("m::hf",), **output: Any) -> Any:
    plan = {"inputs": list(inputs), "transforms": list(steps), "output": {"path": "out/", **output}}
    bs.load(plan).run(durable=False)
    return json.loads(Path("out/config.json").read_text())


def test_a_config_step_gets_the_values_to_set() -> None:
    hint = hint_of(lambda: _run({"config": {}}), "Write the values to set")
    assert hint == "Write the values to set: `config: {patch: {num_hidden_layers: 9}}`."
    assert _run(LAYERS) == {"num_hidden_layers": 9}


def test_a_config_that_is_a_list_is_corrected() -> None:
    Path("hf/config.json").write_text("[1]")
    hint_of(lambda: _run(LAYERS), "Correct its text.")
    Path("hf/config.json").write_text("{}")
    assert _run(LAYERS) == {"num_hidden_layers": 9}


def test_a_config_step_in_a_plan_of_several_inputs_names_an_alias() -> None:
    inputs = ("m::hf", "n::m.safetensors")
    hint_of(lambda: _run(LAYERS, inputs=inputs, alias="m"), "Add `alias: NAME`.")
    named = {"config": {**LAYERS["config"], "alias": "m"}}
    assert _run(named, inputs=inputs, alias="m") == {"num_hidden_layers": 9}


def test_what_steps_change_in_a_config_is_kept_in_a_folder() -> None:
    plan = bs.load({"inputs": ["m::hf"], "transforms": [LAYERS], "output": "out.safetensors"})
    (note,) = [d for d in plan.explain().program.diagnostics if d.code == "output-config"]
    assert note.hint == "Write to a folder: a path without suffix, or one that ends in a slash."
    assert _run(LAYERS) == {"num_hidden_layers": 9}


def test_the_config_that_an_output_asks_for_is_written_to_a_folder() -> None:
    change = {"num_hidden_layers": 9}
    hint_of(lambda: _run(path="out.safetensors", config=change), "Write to a folder")
    assert _run(config=change) == {"num_hidden_layers": 9}


@pytest.fixture
def _ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op that expands to itself until it is mended, and one that saves a scratch alias until it saves another."""
    _define(monkeypatch, within={"endless": {}}, saved=None)


def _define(monkeypatch: pytest.MonkeyPatch, within: dict[str, Any], saved: str | None) -> None:
    for name in ("endless", "keep_scratch"):
        monkeypatch.delitem(OPS, name, raising=False)

    @control()
    def endless(view: View, *, target: Pattern | None = None) -> Iterator[Edit]:
        """Double tensors."""
        yield Expand(tuple(Substep(name, payload) for name, payload in within.items()))

    @control()
    def keep_scratch(view: View) -> Iterator[Edit]:
        """Save an alias."""
        yield Publish("kept.safetensors", saved or view.scratch(), None, None, None, False)

    for name in ("endless", "keep_scratch"):
        monkeypatch.setitem(OPS, name, OPS.pop(name))


@pytest.mark.usefixtures("_ops")
def test_an_op_that_expands_to_itself_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    hint_of(lambda: _run({"endless": {}}), "Correct the op: it may expand to itself.")
    _define(monkeypatch, within=DOUBLE, saved=None)
    _run({"endless": {}})
    assert bs.open("out")["w"].tolist() == (W * 2).tolist()


@pytest.mark.usefixtures("_ops")
def test_an_alias_that_stays_is_saved_in_place_of_a_scratch_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    hint_of(lambda: _run({"keep_scratch": {}}), "Save another alias.")
    _define(monkeypatch, within=DOUBLE, saved="m")
    _run({"keep_scratch": {}})
    assert bs.open("kept.safetensors")["w"].tolist() == W.tolist()
