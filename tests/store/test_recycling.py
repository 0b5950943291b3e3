"""Memory of large arrays is used again within a task, never while anything looks at it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import pytest

from brainsurgery_jax.store.io import recycling
from brainsurgery_jax.store.io.arrays import ALIGNMENT, empty_aligned
from brainsurgery_jax.store.io.recycling import Recycler, Scratch, Scratches

BYTE = np.dtype(np.uint8)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recycling, "LEAST", 1)
    yield
    gc.collect()


def address(x: np.ndarray) -> int:
    return x.ctypes.data


def serve(recycler: Recycler, *sizes: int) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(recycler.serve(size + ALIGNMENT for size in sizes))
    return stack


def test_an_array_takes_the_place_of_one_of_its_size_that_is_gone() -> None:
    recycler = Recycler()
    with serve(recycler, 1000):
        first = empty_aligned((1000,), BYTE)
        place = address(first)
        del first
    with serve(recycler, 1000):
        again = empty_aligned((10, 25), np.dtype(np.float32))
    assert address(again) == place and place % ALIGNMENT == 0


def test_a_view_of_a_view_keeps_the_memory_from_others() -> None:
    recycler = Recycler()
    with serve(recycler, 1000):
        view = empty_aligned((1000,), BYTE).view(np.float32)[3:].reshape(1, -1)
        view[:] = 7
        other = empty_aligned((1000,), BYTE)
        other[:] = 0
    assert (view == 7).all()


def test_what_the_next_call_does_not_read_is_dropped() -> None:
    recycler = Recycler()
    with serve(recycler, 1000, 1000, 500):
        held = [empty_aligned((n,), BYTE) for n in (1000, 1000, 500)]
        del held
    with serve(recycler, 1000):
        assert {size: len(idle) for size, idle in recycler._idle.items()} == {1000 + ALIGNMENT: 1}


def test_of_other_sizes_the_last_one_is_kept() -> None:
    recycler = Recycler()
    with serve(recycler, 1000):
        for size in (300, 400, 400):
            empty_aligned((size,), BYTE)
        assert recycler._other is not None and recycler._other.nbytes == 400 + ALIGNMENT


def test_nothing_is_kept_outside_of_a_task() -> None:
    recycler = Recycler()
    with serve(recycler, 1000):
        pass
    empty_aligned((1000,), BYTE)
    assert not recycler._idle[1000 + ALIGNMENT]


# --- What is read for one part of a tensor ----------------------------------------------------------------------------


def read_part(scratch: Scratch, *sizes: int, others: Sequence[int] = ()) -> list[np.ndarray]:
    with scratch.serve([size + ALIGNMENT for size in sizes]):
        return [empty_aligned((n,), BYTE) for n in (*others, *sizes)]


def test_the_operands_of_a_part_lie_where_those_of_the_last_one_lay_although_these_are_still_referred_to() -> None:
    scratch = Scratch()
    first = read_part(scratch, 1000, 600)
    assert list(map(address, read_part(scratch, 1000, 600))) == list(map(address, first))


@pytest.mark.parametrize("others", [[], [500], [1000], [1000, 1000, 1000]])
def test_what_is_made_for_one_part_never_overlaps(others: Sequence[int]) -> None:
    """A source that unpacks or joins makes arrays on the way to an operand, maybe of its size."""
    scratch = Scratch()
    for sizes in ((1000, 1000, 1000), (1000, 900, 500)):
        arrays = read_part(scratch, *sizes, others=others)
        for number, array in enumerate(arrays):
            array[:] = number
        assert [set(array.tolist()) for array in arrays] == [{number} for number in range(len(arrays))]


def test_scratch_keeps_what_one_part_needs_and_nothing_that_is_made_on_the_way() -> None:
    scratch = Scratch()
    read_part(scratch, 1000, 1000, others=[1000, 700])
    assert sum(memory.nbytes for memory in scratch._kept) == 2 * (1000 + ALIGNMENT)
    before = list(map(weakref.ref, scratch._kept))
    read_part(scratch, 200)
    gc.collect()
    assert [kept() for kept in before] == [None, None]
    assert [memory.nbytes for memory in scratch._kept] == [200 + ALIGNMENT]


def test_jobs_leave_their_scratch_to_the_next_until_one_of_another_kind_begins() -> None:
    scratches = Scratches()
    with scratches.take() as first, scratches.take() as beside:
        assert first is not beside
    with scratches.take() as again:
        assert again in (first, beside)
    scratches.drop()
    with scratches.take() as fresh:
        assert fresh not in (first, beside)
