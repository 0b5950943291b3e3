"""Many outputs that are parts of each row of one tensor: it is read once, box by box, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.engine.plan import segments
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store.io.boxes import elements_read, pieces
from brainsurgery_jax.world import Files
from tests.checkpoints import Tensors, normal, plan_of, read, same

GONE = {"delete": {"target": "w"}}
COLUMNS = {"unstack": {"from": "w", "to": "c.${k}", "over": "k", "dim": 1}}


def made_of(folder: Path, tensors: Tensors, steps: Sequence[Any]) -> tuple[Tensors, int]:
    """The tensors that a plan writes, and how many bytes it read for them."""
    plan, world = plan_of(folder, tensors, list(steps)), Files()
    bs.load(plan).run(durable=False, world=world)
    return read(plan["output"]["path"]), world.bytes_read


@pytest.fixture(params=[1 << 25, 1 << 16, 1 << 13])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of a box: more than the tensors of these tests have, some rows, a few rows."""
    monkeypatch.setattr(segments, "LIMIT", request.param)
    return request.param


# --- What is read, and what is written --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_all_columns_of_a_matrix_take_one_reading(tmp_path: Path, limit: int, dtype: Any) -> None:
    w = (10 * normal((60, 300))).astype(dtype)
    out, nbytes = made_of(tmp_path, {"w": w}, [COLUMNS, GONE])
    assert nbytes == w.nbytes
    assert len(out) == 300
    assert all(same(out[f"c.{k}"], w[:, k]) for k in range(300))


def test_parts_of_rows_take_one_reading(tmp_path: Path, limit: int) -> None:
    w = normal((300, 100))
    step = {"split": {"from": "w", "to": ["a", "b", "c"], "sizes": [30, 60, 10], "dim": 1}}
    out, nbytes = made_of(tmp_path, {"w": w}, [step, GONE])
    assert nbytes == w.nbytes
    for name, part in zip("abc", np.split(w, [30, 90], 1), strict=True):
        assert same(out[name], part)


@pytest.mark.parametrize("dim", [1, 2])
def test_entries_of_an_inner_axis_take_one_reading(tmp_path: Path, limit: int, dim: int) -> None:
    w = normal((6, 40, 50))
    out, nbytes = made_of(tmp_path, {"w": w}, [{"unstack": COLUMNS["unstack"] | {"dim": dim}}, GONE])
    assert nbytes == w.nbytes
    assert all(same(out[f"c.{k}"], w.take(k, dim)) for k in range(w.shape[dim]))


def test_layers_that_were_stacked_in_the_middle_are_turned_in_one_reading(tmp_path: Path, limit: int) -> None:
    w = normal((64, 12, 40))
    turn = {"permute_": {"target": "c.*", "order": [1, 0]}}
    out, nbytes = made_of(tmp_path, {"w": w}, [COLUMNS, turn, GONE])
    assert nbytes == w.nbytes
    assert all(same(out[f"c.{k}"], w[:, k].T) for k in range(12))


def test_what_is_computed_before_and_after_is_computed_on_the_same_reading(tmp_path: Path, limit: int) -> None:
    w = normal((200, 60))
    before, after = ({"scale_": {"target": target, "by": by}} for target, by in (("w", 0.1), ("c.*", 3.3)))
    out, nbytes = made_of(tmp_path, {"w": w}, [before, COLUMNS, after, GONE])
    assert nbytes == w.nbytes
    wanted = (w * np.float32(0.1)) * np.float32(3.3)
    assert all(same(out[f"c.{k}"], wanted[:, k]) for k in range(60))


def test_columns_that_are_put_together_in_another_order_take_one_reading(tmp_path: Path, limit: int) -> None:
    w = normal((200, 8))
    join = {"concat": {"from": ["c.7", "c.2", "c.5"], "to": "j", "dim": 0}}
    out, nbytes = made_of(tmp_path, {"w": w}, [COLUMNS, join, GONE])
    assert nbytes <= 2 * w.nbytes  # once for the columns; `j` may be read by itself
    assert same(out["j"], w[:, [7, 2, 5]].T.reshape(-1))
    assert same(out["c.7"], w[:, 7])


def test_the_tensor_itself_may_go_out_too(tmp_path: Path, limit: int) -> None:
    w = normal((200, 60))
    out, nbytes = made_of(tmp_path, {"w": w}, [COLUMNS])
    assert nbytes == w.nbytes
    assert same(out["w"], w)


def test_an_assert_on_the_columns_is_still_judged(tmp_path: Path) -> None:
    steps = [COLUMNS, {"assert": {"iszero": {"of": "c.3"}}}]
    with pytest.raises(bs.PlanError, match=r"c\.3"):
        made_of(tmp_path, {"w": normal((20, 6))}, steps)


# --- When it pays -----------------------------------------------------------------------------------------------------


def test_a_column_by_itself_is_read_as_ever(tmp_path: Path) -> None:
    w = normal((100, 50))
    out, nbytes = made_of(tmp_path, {"w": w}, [{"copy": {"from": "w::[:, 7]", "to": "c"}}, GONE])
    assert same(out["c"], w[:, 7])
    assert nbytes == w.nbytes - 49 * 4  # with the gaps, which cost less than a call for each element


def test_few_columns_of_long_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    w = normal((20, 40000))
    steps = [{"copy": {"from": f"w::[:, {k}]", "to": f"c.{k}"}} for k in (5, 39000)]
    out, nbytes = made_of(tmp_path, {"w": w}, [*steps, GONE])
    assert same(out["c.39000"], w[:, 39000])
    assert nbytes == 2 * 20 * 4


def test_boxes_of_a_single_row_still_take_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LIMIT", 2000)
    w = normal((12, 500))
    out, nbytes = made_of(tmp_path, {"w": w}, [COLUMNS, GONE])
    assert nbytes == w.nbytes
    assert all(same(out[f"c.{k}"], w[:, k]) for k in range(500))


def test_rows_that_do_not_fit_into_a_box_are_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LIMIT", 100)
    w = normal((30, 50))
    out, _ = made_of(tmp_path, {"w": w}, [COLUMNS, GONE])
    assert all(same(out[f"c.{k}"], w[:, k]) for k in range(50))


def test_columns_of_some_rows_are_what_numpy_says(tmp_path: Path, limit: int) -> None:
    w = normal((300, 40))
    steps = [{"copy": {"from": f"w::[10:290:2, {k}]", "to": f"c.{k}"}} for k in range(40)]
    out, nbytes = made_of(tmp_path, {"w": w}, [*steps, GONE])
    assert all(same(out[f"c.{k}"], w[10:290:2, k]) for k in range(40))
    if limit > w.nbytes:
        assert nbytes == w.nbytes


spans = st.integers(1, 40).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n), st.integers(1, 4))
)


@given(st.lists(spans, min_size=1, max_size=3), st.sampled_from([1, 4, 4000, 90000]))
def test_the_elements_that_a_box_brings_are_never_underrated(
    axes: list[tuple[int, int, int, int]], itemsize: int
) -> None:
    shape = tuple(n for n, *_ in axes)
    box: Box = tuple((min(a, b), max(a, b), step) for _, a, b, step in axes)
    read = [piece.length for piece in pieces(shape, box, itemsize)]
    assert sum(read) <= elements_read(shape, box, itemsize)
    if len(read) <= 1:
        assert sum(read) == elements_read(shape, box, itemsize)
