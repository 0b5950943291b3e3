"""Places in the sorted order of a large tensor: a sample, one count, and another one where the sample misled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from brainsurgery_jax.numerics import windows
from brainsurgery_jax.numerics.places import PlaceSearch
from brainsurgery_jax.reduction import Again, Reduction
from tests.checkpoints import normal

SIZE = 1 << 17


def answer_in_blocks(reduction: Reduction, blocks: Sequence[np.ndarray]) -> Any:
    part = reduction.block(blocks[0])
    for x in blocks[1:]:
        part = reduction.merge(part, reduction.block(x))
    return reduction.finish(part)


def find(x: np.ndarray, wanted: Sequence[int], length: int = 1 << 13, sampled: slice = slice(None)) -> tuple[Any, int]:
    """The elements at places, or None, and how often all elements were counted. `sampled`: the blocks of the sample."""
    blocks = [x[at : at + length] for at in range(0, x.size, length)]
    sample, count = PlaceSearch(x.dtype, wanted, x.size, lambda found: found, None).passes()
    known, readings = answer_in_blocks(sample(None), blocks[sampled]), 1
    while isinstance(found := answer_in_blocks(count(known), blocks), Again):
        known, readings = found.known, readings + 1
    return found, readings


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_neighbours_in_the_order_are_found_by_one_count(share: float, dtype: str) -> None:
    x = normal((SIZE,)).astype(dtype)
    at = int(share * (SIZE - 2))
    found, readings = find(x, (at, at + 1))
    assert readings == 1 if (share, dtype) == (0.2, "float32") else readings <= 3
    np.testing.assert_array_equal(found, np.sort(x)[[at, at + 1]])


@pytest.mark.parametrize("length", [1 << 10, 12_345, SIZE])
def test_blocks_of_any_length_have_the_same_answer(length: int) -> None:
    x = normal((SIZE,))
    assert find(x, (99, SIZE // 3), length)[0].tolist() == np.sort(x)[[99, SIZE // 3]].tolist()


def test_a_sample_unlike_the_rest_costs_readings_and_changes_no_answer() -> None:
    x = np.sort(normal((SIZE,)))
    found, readings = find(x, (SIZE // 2,), sampled=slice(1))
    assert found == x[SIZE // 2]
    assert readings > 1


def test_equal_elements_fill_any_window() -> None:
    x = np.where(normal((SIZE,)) > 0, np.float32(-0.0), np.float32(0.0))
    zeros = int(np.signbit(x).sum())
    found, _ = find(x, (zeros - 1, zeros))
    assert np.signbit(found).tolist() == [True, False]


@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_one_nan_leaves_no_place(nan: float) -> None:
    x = normal((SIZE,))
    x[777] = nan
    assert find(x, (5,))[0] is None


def test_what_is_kept_is_counted_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little may lie in a window uncounted."""
    monkeypatch.setattr(windows, "LOOSE", 100)
    x = normal((SIZE,))
    assert find(x, (SIZE // 5,))[0] == np.sort(x)[SIZE // 5]


def test_short_tensors_and_other_dtypes_are_counted_by_digits() -> None:
    assert PlaceSearch.pays(np.dtype(np.float32), SIZE)
    assert not PlaceSearch.pays(np.dtype(np.float32), 1000)
    assert not PlaceSearch.pays(np.dtype(np.float16), SIZE)
    assert not PlaceSearch.pays(np.dtype(np.int32), SIZE)
