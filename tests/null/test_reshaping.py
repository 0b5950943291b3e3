"""Boxes through a reshape: where axes are split or joined, no more than the box is read."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.engine.compute.operands import key_of_box
from brainsurgery_jax.index.boxes import box_shape
from brainsurgery_jax.index.reshaping import box_before
from tests.null.test_plan_work import items_of

FACTORS = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5)


@st.composite
def a_shape(draw: st.DrawFn, factors: list[int]) -> tuple[int, ...]:
    """Some of the factors joined, and axes of one element here and there."""
    shape: list[int] = []
    for n in factors:
        if shape and draw(st.booleans()):
            shape[-1] *= n
        else:
            shape.append(n)
    return tuple(shape) + (1,) * draw(st.integers(0, 1))


@given(st.data())
def test_a_box_of_the_operand_has_the_elements_of_the_box(data: st.DataObject):
    factors = data.draw(FACTORS)
    before, after = data.draw(a_shape(factors)), data.draw(a_shape(factors))
    spans = []
    for n in after:
        start = data.draw(st.integers(0, n))
        spans.append((start, data.draw(st.integers(start, n)), data.draw(st.integers(1, 3))))
    x = np.arange(prod(factors))
    if (source := box_before(before, after, tuple(spans))) is not None:
        wanted = x.reshape(after)[key_of_box(tuple(spans))]
        found = x.reshape(before)[key_of_box(source)]
        assert found.reshape(box_shape(tuple(spans))).tolist() == wanted.tolist()


def test_a_box_of_split_axes_is_a_box_of_the_axis():
    assert box_before((1024, 30), (64, 16, 30), ((0, 64, 1), (0, 16, 1), (3, 9, 1))) == ((0, 1024, 1), (3, 9, 1))
    assert box_before((1024, 30), (64, 16, 30), ((2, 4, 1), (0, 16, 1), (3, 9, 2))) == ((32, 64, 1), (3, 9, 2))


def test_a_box_of_joined_axes_is_a_box_where_it_is_one_run():
    assert box_before((5, 64, 16), (5, 1024), ((1, 3, 1), (32, 64, 1))) == ((1, 3, 1), (2, 4, 1), (0, 16, 1))
    assert box_before((5, 64, 16), (5, 1024), ((1, 3, 1), (30, 64, 1))) is None


def test_a_permuted_reshape_of_a_permuted_tensor_takes_little_memory_and_reads_each_element_once():
    steps = (
        {"permute_": {"target": "e", "order": [1, 0]}},
        {"reshape_": {"target": "e", "shape": [64, 16, -1]}},
        {"permute_": {"target": "e", "order": [2, 0, 1]}},
    )
    items = items_of({"e": "f32[128256,1024]"}, *steps)
    nbytes = 128256 * 1024 * 4
    assert sum(item.reads for item in items) == nbytes
    assert max(item.host_bytes for item in items) < nbytes // 3
