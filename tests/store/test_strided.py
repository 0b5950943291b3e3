"""Elements that do not lie row by row, collected from their file, against numpy's own strides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.io import strided
from brainsurgery_jax.store.io.strided import Laid, gather, gather_range
from tests.checkpoints import bits

FILE = np.arange(4000, dtype=np.int32)


class Fetched:
    """Elements of a file, and which spans of it were asked for."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> np.ndarray:
        self.spans.append((start, stop))
        return FILE[start:stop].copy()


def view(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(FILE, shape, tuple(4 * s for s in strides), writeable=False)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    return shape, tuple(draw(st.sampled_from([0, 1, 2, 3, 7, 21, 100])) for _ in shape)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    spans = []
    for n in shape:
        start = draw(st.integers(0, n))
        spans.append((start, draw(st.integers(start, n)), draw(st.integers(1, 3))))
    return tuple(spans)


@pytest.fixture(params=[(8, 2), (64, 16), (1 << 20, 1 << 16)], ids=["tiny", "small", "all at once"], scope="module")
def limits(request: pytest.FixtureRequest):
    """However little is read at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "GROUP", request.param[0])
        patch.setattr(strided, "NEAR", request.param[1])
        yield


@settings(max_examples=100)
@given(st.data())
def test_every_box_of_every_layout_is_what_numpy_sees(limits: None, data: st.DataObject) -> None:
    shape, strides = data.draw(layouts())
    box = data.draw(boxes(shape))
    found = gather(Fetched(), Laid(strides), box, np.dtype(np.int32))
    expected = view(shape, strides)[tuple(slice(*span) for span in box)]
    assert found.shape == expected.shape
    assert bits(found) == bits(expected)
    assert found.flags.c_contiguous and (not found.size or found.ctypes.data % 64 == 0)


@settings(max_examples=100)
@given(st.data())
def test_every_range_of_every_layout_is_what_numpy_sees(limits: None, data: st.DataObject) -> None:
    shape, strides = data.draw(layouts())
    flat = view(shape, strides).reshape(-1)
    start = data.draw(st.integers(0, flat.size))
    stop = data.draw(st.integers(start, flat.size))
    found = gather_range(Fetched(), Laid(strides), shape, start, stop, np.dtype(np.int32))
    assert bits(found) == bits(flat[start:stop])


@settings(max_examples=100)
@given(st.data())
def test_a_layout_is_plain_only_if_it_is_row_by_row(data: st.DataObject) -> None:
    shape, strides = data.draw(layouts())
    assert Laid(strides).is_plain(shape) == view(shape, strides).flags.c_contiguous
    assert not Laid(strides, swapped=True).is_plain(shape)


def test_rows_far_apart_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "NEAR", 64)
    fetched = Fetched()
    gather(fetched, Laid((1, 100)), ((0, 3, 1), (0, 5, 1)), np.dtype(np.int32))
    assert fetched.spans == [(start, start + 3) for start in (0, 100, 200, 300, 400)]


def test_blocks_of_a_tensor_are_collected_together(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(200.0, dtype=np.float32).reshape(20, 10))
    np.save(tmp_path / "x.npy", x)
    source = open_source(str(tmp_path / "x.npy"))
    for start in range(0, 200, 20):
        assert bits(source.read_range("x", start, start + 20)) == bits(np.ascontiguousarray(x).reshape(-1)[start:][:20])
    assert source.bytes_read < 2 * x.nbytes
    found = source.read_range("x", 3, 20)
    assert found.ctypes.data % 64 == 0
    found[...] = 0
    assert bits(source.read_range("x", 0, 5)) == bits(np.ascontiguousarray(x).reshape(-1)[:5])
