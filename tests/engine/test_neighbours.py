"""Outputs that lie beside the weights of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

import brainsurgery_jax as bs
from tests.checkpoints import normal, write


@pytest.fixture(autouse=True)
def world(here: Path) -> None:
    (here / "m").mkdir()
    write("m/model.safetensors", {"w": normal((4, 6))})
    Path("m/config.json").write_text("{}")


def plan(output: str, source: str = "m/model.safetensors") -> bs.Plan:
    return bs.load({"inputs": [source], "output": output})


def noted(output: str, source: str = "m/model.safetensors") -> bool:
    return any(note.code == "output-beside" for note in bs.check(plan(output, source)))


def test_an_output_beside_a_models_weights_is_noted_and_the_remedies_work():
    (note,) = bs.check(plan("m/out.safetensors"))
    assert note.severity == "note" and note.hint.endswith("read each by its file from then on: m/out.safetensors.")
    plan("m/out.safetensors").run()
    with pytest.raises(bs.StoreError, match="holds several checkpoints"):
        bs.open("m")
    assert list(bs.open("m/out.safetensors")) == list(bs.open("m/model.safetensors")) == ["w"]
    assert not noted("own/out.safetensors")


def test_steps_that_save_there_are_noted_too():
    steps = [{"save": "m/out.safetensors"}]
    notes = bs.check(bs.load({"inputs": ["m/model.safetensors"], "transforms": steps, "output": "own/"}))
    assert [note.code for note in notes] == ["output-beside"]


@pytest.mark.parametrize("output", ["m/out.npz", "m/out.pt", "m/model.fp16.safetensors", "other.safetensors", "own/"])
def test_an_output_that_leaves_the_folder_readable_is_not_noted(output: str):
    assert not noted(output)
    plan(output).run()
    assert list(bs.open("m")) == ["w"]


def test_files_that_are_no_models_may_lie_beside_each_other():
    write("a.safetensors", {"w": normal((4, 6))})
    assert not noted("b.safetensors", "a.safetensors")


def test_a_folder_that_holds_several_already_is_not_noted():
    write("m/second.safetensors", {"w": normal((4, 6))})
    assert not noted("m/out.safetensors")
