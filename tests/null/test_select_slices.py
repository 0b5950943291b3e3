"""Slices: how they are written, what they select, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.select import Index, Range, RefError, SliceSpec, parse_slice, resolve

BOUNDS = st.none() | st.integers(-7, 7)
COMPONENTS = st.integers(-4, 4) | st.builds(Range, BOUNDS, BOUNDS, st.none() | st.integers(1, 4))
SPECS = st.lists(COMPONENTS, max_size=3).map(SliceSpec)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[]", []),
        ("[ ]", []),
        ("[:]", [Range()]),
        ("[3]", [3]),
        ("[-1]", [-1]),
        ("[+1_000]", [1000]),
        ("[1:5]", [Range(1, 5)]),
        ("[:5]", [Range(None, 5)]),
        ("[1:]", [Range(1)]),
        ("[::2]", [Range(None, None, 2)]),
        ("[1::2]", [Range(1, None, 2)]),
        ("[0:8:2]", [Range(0, 8, 2)]),
        ("[ 0 , : , 1 : 3 ]", [0, Range(), Range(1, 3)]),
    ],
)
def test_a_slice_is_a_list_of_integers_and_ranges(text: str, parts: list[int | Range]):
    assert parse_slice(text) == SliceSpec(parts)


@pytest.mark.parametrize("text", ["[...]", "[None]", "[[0, 1]]", "[a]", "[1.5]", "[1:2:3:4]", "[1 2]", "[True]"])
def test_only_basic_indexing_can_be_written(text: str):
    with pytest.raises(RefError, match=r"component 1, .* is neither an integer nor a range") as caught:
        parse_slice(text)
    assert caught.value.code == "slice-syntax"


@pytest.mark.parametrize(("text", "at"), [("[0,]", 2), ("[,0]", 1), ("[0,,1]", 2)])
def test_an_empty_component_is_refused(text: str, at: int):
    with pytest.raises(RefError, match=f"component {at} is empty"):
        parse_slice(text)


@pytest.mark.parametrize("text", ["0", "[0", "0]", "[", "", " [0]"])
def test_a_slice_stands_in_brackets(text: str):
    with pytest.raises(RefError, match="it is not in brackets"):
        parse_slice(text)


@given(SPECS)
def test_a_printed_slice_parses_to_itself(spec: SliceSpec):
    assert parse_slice(str(spec)) == spec


@given(SPECS, SHAPES)
def test_slices_select_what_numpy_selects(spec: SliceSpec, shape: tuple[int, ...]):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    try:
        expected = array[tuple(part if isinstance(part, int) else slice(*part) for part in spec)]
    except IndexError:
        with pytest.raises(RefError, match=r"asks for index|components?, but"):
            resolve(spec, shape)
    else:
        index = resolve(spec, shape)
        assert index.shape == expected.shape
        assert np.array_equal(array[index.key], expected)
        assert index.full == (expected.shape == array.shape and np.array_equal(expected, array))


@given(COMPONENTS, COMPONENTS, st.integers(1, 5))
def test_two_spellings_of_one_selection_are_equal(left: int | Range, right: int | Range, size: int):
    def selected(part: int | Range) -> tuple[bool, list[int]]:
        taken = np.arange(size)[part if isinstance(part, int) else slice(*part)]
        return isinstance(part, int), np.atleast_1d(taken).tolist()

    try:
        one, other = selected(left), selected(right)
    except IndexError:
        return
    same = resolve(SliceSpec([left]), (size,)) == resolve(SliceSpec([right]), (size,))
    assert same == (one == other)


def test_missing_trailing_components_take_everything():
    assert resolve(parse_slice("[1]"), (2, 3)) == resolve(parse_slice("[1, :]"), (2, 3))


def test_no_slice_and_an_empty_slice_select_everything():
    assert resolve(None, (2, 3)) == resolve(parse_slice("[]"), (2, 3))
    assert resolve(None, (2, 3)).full


def test_an_integer_drops_its_dimension():
    index = resolve(parse_slice("[:, -1]"), (2, 3))
    assert index == Index(starts=(0, 2), stops=(2, 3), steps=(1, 1), dropped=(1,), source=(2, 3))
    assert index.shape == (2,)


def test_dropping_a_dimension_of_size_one_is_not_the_whole_tensor():
    assert not resolve(parse_slice("[0]"), (1, 3)).full


def test_ranges_clip_silently():
    assert resolve(parse_slice("[-9:9]"), (4,)).full


def test_an_index_out_of_range_names_dimension_and_size():
    with pytest.raises(RefError, match=r"\[:, 5\] asks for index 5 of dimension 1, of size 3\n.*-3 to 2") as caught:
        resolve(parse_slice("[:, 5]"), (2, 3))
    assert caught.value.code == "slice-range"


def test_an_empty_dimension_has_no_index():
    with pytest.raises(RefError, match=r"index 0 of dimension 0, of size 0\n.*no index is valid"):
        resolve(parse_slice("[0]"), (0,))


def test_too_many_components_are_refused():
    with pytest.raises(RefError, match=r"has 3 components, but the tensor has 2 dimensions \(\[2, 3\]\)"):
        resolve(parse_slice("[0, 0, :]"), (2, 3))


@pytest.mark.parametrize("step", [0, -1])
def test_steps_go_forward(step: int):
    with pytest.raises(RefError, match=rf"step {step} in dimension 0 \(size 4\)"):
        resolve(parse_slice(f"[::{step}]"), (4,))
