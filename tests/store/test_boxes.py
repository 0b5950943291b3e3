"""Boxes of tensors: the same elements as numpy indexing gives, in few reads and little memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store.io import boxes
from brainsurgery_jax.store.io.boxes import BoxRead, pieces
from brainsurgery_jax.store.safetensors.source import open_safetensors


@st.composite
def shape_and_box(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    dims = []
    for n in shape:
        start = draw(st.integers(0, n))
        dims.append((start, draw(st.integers(start, n)), draw(st.integers(1, 4))))
    return shape, tuple(dims)


def index(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*dim) for dim in box)


@pytest.mark.parametrize(("near", "group"), [(64 << 10, 8 << 20), (0, 8 << 20), (8, 16), (64, 1)])
@given(case=shape_and_box(), dtype=st.sampled_from(["int8", "float32", "complex64"]))
def test_a_box_reads_as_numpy_indexes(near: int, group: int, case: tuple[tuple[int, ...], Box], dtype: str) -> None:
    shape, box = case
    whole = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "NEAR", near)
        patch.setattr(boxes, "GROUP", group)
        save_file({"x": whole}, Path(folder, "m.safetensors"))
        source = open_safetensors(str(Path(folder, "m.safetensors")))
        found = source.read("x", box)
        source.close()
    np.testing.assert_array_equal(found, whole[index(box)])
    assert found.shape == whole[index(box)].shape
    assert found.flags.c_contiguous
    assert found.ctypes.data % 64 == 0 or not found.size


def reads(shape: tuple[int, ...], box: Box, itemsize: int = 4) -> list[BoxRead]:
    return list(pieces(shape, box, itemsize))


def test_rows_of_a_matrix_are_one_read_of_just_their_bytes() -> None:
    (piece,) = reads((1000, 768), ((10, 20, 1), (0, 768, 1)))
    assert (piece.start, piece.length, piece.strides) == (7680, 7680, None)


def test_near_columns_are_read_with_the_gaps_between_them() -> None:
    (piece,) = reads((1000, 768), ((0, 1000, 1), (5, 7, 1)))
    assert piece.length == 999 * 768 + 2


def test_far_rows_are_read_one_by_one() -> None:
    found = reads((100, 1 << 20), ((0, 100, 10), (0, 1 << 20, 1)))
    assert [piece.length for piece in found] == [1 << 20] * 10


def test_a_strided_read_takes_bounded_memory_beside_its_result() -> None:
    found = reads((1 << 20, 4096), ((0, 1 << 20, 1), (0, 2048, 1)))
    assert max(piece.length for piece in found) * 4 <= 8 << 20


def test_single_elements_far_apart_are_not_read_with_their_gaps() -> None:
    found = reads((1 << 30,), ((0, 1 << 30, 1 << 28),))
    assert [(piece.start, piece.length) for piece in found] == [(n << 28, 1) for n in range(4)]


def test_a_step_over_one_element_counts_as_no_step() -> None:
    (piece,) = reads((10, 4), ((3, 4, 7), (0, 4, 1)))
    assert piece == BoxRead(12, 4, (), (1, 4), None)


def test_an_empty_box_reads_nothing() -> None:
    assert reads((10, 4), ((3, 3, 1), (0, 4, 1))) == []
