"""`boxes`: which elements of a row-major tensor a box picks, held against numpy's indexing."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brainsurgery_jax.index.boxes import Box, contiguous_from, cover, flat_range

shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    dims = []
    for n in shape:
        start = draw(st.integers(0, n))
        dims.append((start, draw(st.integers(start, n)), draw(st.integers(1, 4))))
    return tuple(dims)


def picked(shape: tuple[int, ...], box: Box) -> list[int]:
    """The flat indices of the elements that a box picks."""
    return np.arange(prod(shape)).reshape(shape)[tuple(slice(*span) for span in box)].reshape(-1).tolist()


@settings(max_examples=300)
@given(shape=shapes, data=st.data())
def test_a_box_is_a_flat_range_exactly_if_its_elements_are_neighbours(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    box = data.draw(boxes(shape))
    flat = picked(shape, box)
    neighbours = flat == list(range(flat[0], flat[-1] + 1)) if flat else True
    assert flat_range(shape, box) == (None if not neighbours else (flat[0], flat[-1] + 1) if flat else (0, 0))


def test_columns_of_a_matrix_are_no_flat_range_but_a_part_of_one_row_is() -> None:
    assert flat_range((4, 4), ((0, 4, 1), (0, 2, 1))) is None
    assert flat_range((4, 4), ((1, 2, 1), (0, 2, 1))) == (4, 6)


def test_whole_axes_after_a_range_are_one_run_with_it() -> None:
    assert contiguous_from((5, 4, 3), ((0, 5, 2), (1, 3, 1), (0, 3, 1))) == 1


@settings(max_examples=300)
@given(shape=shapes.filter(lambda shape: prod(shape) > 0), data=st.data())
def test_a_flat_range_is_covered_by_few_boxes_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, prod(shape)))
    stop = data.draw(st.integers(start, prod(shape)))
    found = list(cover(shape, start, stop))
    assert [flat for box in found for flat in picked(shape, box)] == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)
