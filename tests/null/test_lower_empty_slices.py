"""A slice that selects nothing: taken, as Python takes it, and told once for each shape."""

from __future__ import annotations

import pytest

from tests.null.world import Headers, found, program

SIX = {"a": "f32[64,4]", "b": "f32[64,4]", "c": "f32[8]", "none": "f32[0,4]"}


def notes(*steps: object) -> list[tuple[str, str, str]]:
    told = found(*steps, world=Headers({"m.safetensors": SIX}))
    assert {d.code for d in told} <= {"slice-empty"}
    return [(d.severity, d.message, d.hint) for d in told]


def test_it_is_told_with_the_shape_and_the_indices_that_there_are():
    (note,) = notes({"scale_": {"target": "a::[64:96]", "by": 2}})
    assert note == (
        "note",
        "scale_.target: slice [64:96] selects nothing of shape [64, 4]",
        "Dimension 0 has the indices 0 to 63; a range ends before its second number.",
    )


@pytest.mark.parametrize("index", ["[3:1]", "[:, 4:]", "[5:5]", "[2, 9:]"])
def test_any_empty_range_is_told(index: str):
    assert len(notes({"copy": {"from": f"a::{index}", "to": "x"}})) == 1


def test_tensors_of_one_shape_are_told_of_once():
    assert len(notes({"copy": {"from": "(a|b)::[70:]", "to": r"\1.x"}})) == 1


def test_tensors_of_several_shapes_are_told_of_each():
    assert len(notes({"copy": {"from": "(a|c)::[70:]", "to": r"\1.x"}})) == 2


@pytest.mark.parametrize("ref", ["none", "none::[:]", "none::[0:3]"])
def test_a_tensor_that_is_empty_itself_is_no_surprise(ref: str):
    assert notes({"copy": {"from": ref, "to": "x"}}) == []


def test_the_step_is_done():
    made = program({"copy": {"from": "a::[64:96]", "to": "x"}}, world=Headers({"m.safetensors": SIX}))
    assert made.effects[0].created == ("m::x",)
