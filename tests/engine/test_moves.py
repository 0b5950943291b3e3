"""`moves`: both ways in which a structural op says where its elements come from agree with numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.index import moves
from brainsurgery_jax.index import take as taking
from brainsurgery_jax.index.boxes import Box, box_shape
from brainsurgery_jax.index.moves import Broadcast, Concat, Moves, Permute, Reshape, Slice, Update
from brainsurgery_jax.index.take import Take
from brainsurgery_jax.select.slices import Range, SliceSpec, resolve
from tests.checkpoints import counting


class Case(NamedTuple):
    """A structural op with its inputs, and numpy's result."""

    op: Moves
    inputs: tuple[np.ndarray, ...]
    result: np.ndarray

    @property
    def avals(self) -> tuple[Aval, ...]:
        return tuple(Aval(x.shape, BY_NAME["int32"]) for x in self.inputs)


shapes = st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple)


@st.composite
def specs(draw: st.DrawFn, shape: tuple[int, ...]) -> SliceSpec:
    parts: list[int | Range] = []
    for n in shape:
        bound = st.none() | st.integers(-n - 1, n + 1)
        kinds = [st.builds(Range, bound, bound, st.none() | st.integers(1, 3)), st.just(Range())]
        parts.append(draw(st.one_of(*kinds, *([st.integers(-n, n - 1)] if n else []))))
    return SliceSpec(parts)


@st.composite
def sliced(draw: st.DrawFn) -> Case:
    x = counting(draw(shapes), np.int32)
    index = resolve(draw(specs(x.shape)), x.shape)
    return Case(Slice(index), (x,), x[index.key])


@st.composite
def updated(draw: st.DrawFn) -> Case:
    x = counting(draw(shapes), np.int32)
    index = resolve(draw(specs(x.shape)), x.shape)
    value = -1 - counting(index.shape, np.int32)
    result = x.copy()
    result[index.key] = value
    return Case(Update(index), (x, value), result)


@st.composite
def permuted(draw: st.DrawFn) -> Case:
    x = counting(draw(shapes), np.int32)
    order = tuple(draw(st.permutations(range(x.ndim))))
    return Case(Permute(order), (x,), x.transpose(order))


@st.composite
def concatenated(draw: st.DrawFn) -> Case:
    shape = list(draw(shapes))
    axis, inputs = draw(st.integers(0, len(shape) - 1)), []
    for k, size in enumerate(draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))):
        shape[axis] = size
        inputs.append(counting(shape, np.int32) + 1000 * k)
    return Case(Concat(axis), tuple(inputs), np.concatenate(inputs, axis))


@st.composite
def repeated(draw: st.DrawFn) -> Case:
    shape = draw(shapes)
    kept = draw(st.integers(0, len(shape)))
    ones = draw(st.lists(st.booleans(), min_size=kept, max_size=kept))
    small = tuple(1 if one else n for one, n in zip(ones, shape[len(shape) - kept :], strict=True))
    x = counting(small, np.int32)
    return Case(Broadcast(shape), (x,), np.broadcast_to(x, shape))


@st.composite
def taken(draw: st.DrawFn) -> Case:
    x = counting(draw(shapes.filter(all)), np.int32)
    axis = draw(st.integers(0, x.ndim - 1))
    entries = draw(st.lists(st.integers(0, x.shape[axis] - 1), min_size=1, max_size=9))
    return Case(Take(axis, tuple(entries)), (x,), x.take(entries, axis))


cases = st.one_of(sliced(), updated(), permuted(), concatenated(), repeated(), taken())


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    """A non-empty box of `shape`."""
    out = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        taken = range(start, draw(st.integers(start + 1, n)), draw(st.integers(1, 3)))
        out.append((start, taken[-1] + 1, taken.step))
    return tuple(out)


def by_runs(case: Case, start: int, stop: int) -> np.ndarray | None:
    runs = case.op.runs(case.avals, start, stop)
    if runs is None:
        return None
    return np.concatenate([np.empty(0, np.int32), *(case.inputs[r.src].reshape(-1)[r.start : r.stop] for r in runs)])


def by_parts(case: Case, box: Box) -> np.ndarray:
    out = np.full(box_shape(box), -(10**6), np.int32)
    for part in case.op.parts(case.avals, box):
        piece = case.inputs[part.src][tuple(slice(*s) for s in part.box)]
        assert piece.shape == box_shape(part.box), "a part asks for what its input does not have"
        at = tuple(slice(*s) for s in part.at)
        out[at] = case.op.arrange(piece, part)
    return out


@settings(max_examples=400)
@given(case=cases)
def test_the_shape_rule_of_a_move_is_numpys(case: Case) -> None:
    assert case.op.aval(case.avals).shape == case.result.shape


@settings(max_examples=600)
@given(case=cases, data=st.data(), least=st.sampled_from([1, 16, 1 << 16]))
def test_flat_runs_of_inputs_make_any_flat_range_of_the_result(case: Case, data: st.DataObject, least: int) -> None:
    start = data.draw(st.integers(0, case.result.size))
    stop = data.draw(st.integers(start, case.result.size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moves, "LEAST_RUN", least)
        found = by_runs(case, start, stop)
    assert found is None or found.tolist() == case.result.reshape(-1)[start:stop].tolist()


@settings(max_examples=600)
@given(
    case=cases.filter(lambda c: c.result.size > 0),
    data=st.data(),
    limits=st.sampled_from([(1 << 16, 1 << 20), (8, 1 << 20), (1 << 16, 8), (0, 0)]),
)
def test_boxes_of_inputs_make_any_box_of_the_result(case: Case, data: st.DataObject, limits: tuple[int, int]) -> None:
    box = data.draw(boxes(case.result.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moves, "LEAST_RUN", limits[0])
        patch.setattr(taking, "TOGETHER", limits[1])
        taking._chunks.cache_clear()
        assert by_parts(case, box).tolist() == case.result[tuple(slice(*s) for s in box)].tolist()


def test_every_row_may_be_a_run_of_its_own_if_rows_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "LEAST_RUN", 1)
    x = Aval((4, 6), BY_NAME["int32"])
    index = resolve(SliceSpec([Range(), Range(2, 5)]), x.shape)
    assert Slice(index).runs((x,), 0, 12) == [(0, 2, 5), (0, 8, 11), (0, 14, 17), (0, 20, 23)]


def test_short_rows_are_no_runs() -> None:
    x = Aval((4, 6), BY_NAME["int32"])
    index = resolve(SliceSpec([Range(), Range(2, 5)]), x.shape)
    assert Slice(index).runs((x,), 0, 12) is None


def test_a_permutation_of_axes_of_size_one_moves_nothing() -> None:
    x = Aval((1, 5, 1, 3), BY_NAME["int32"])
    assert Permute((2, 1, 3, 0)).runs((x,), 2, 9) == [(0, 2, 9)]


@pytest.mark.parametrize(("shape", "size"), [((2, -1), 12), ((-1,), 12), ((3, 4), 12), ((-1, 12), 12)])
def test_one_size_of_a_shape_is_filled_in(shape: tuple[int, ...], size: int) -> None:
    found = moves.resolve_shape(shape, size, Aval((size,), BY_NAME["int32"]))
    assert found == np.zeros(size).reshape(shape).shape


def test_a_reshape_is_asked_for_flat_ranges() -> None:
    assert Reshape((3, 4)).runs((Aval((12,), BY_NAME["int32"]),), 5, 7) == [(0, 5, 7)]
