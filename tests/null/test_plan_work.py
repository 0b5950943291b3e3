"""How each output and question is made, as a list: without arrays, threads or devices, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from brainsurgery_jax.engine.plan.blocks import BLOCK
from brainsurgery_jax.engine.plan.footprint import on_device
from brainsurgery_jax.engine.plan.planner import COPY_BYTES, plan_work
from brainsurgery_jax.engine.plan.projection import projection, refuse_too_large
from brainsurgery_jax.engine.plan.sites import MOST, calls_of, most_calls
from brainsurgery_jax.engine.plan.work import (
    Boxes,
    Copy,
    Fold,
    Machine,
    Site,
    Stream,
    Whole,
    WorkItem,
    parts_of,
    tensors_of,
)
from brainsurgery_jax.errors import PlanError
from tests.null.world import Headers, program

HOST = Machine(host_bytes=1 << 40, threads=2)
FOUR = replace(HOST, devices=4, bytes_each=1 << 34)
OUT = "out.safetensors"
HALF = {"scale_": {"target": ".*", "by": 0.5}}
MOVED = {"move": {"from": "(.*)", "to": r"n.\1"}}
TURNED = {"transpose_": {"target": ".*"}}
LOW = {"phlora_": {"target": ".*", "rank": 8}}


def items_of(tensors: dict[str, str], *steps: Any, machine: Machine = HOST, output: Any = OUT) -> tuple[WorkItem, ...]:
    lowered = program(*steps, output=output, world=Headers({"m.safetensors": tensors}))
    assert not lowered.errors
    return plan_work(lowered, machine)


def kinds(items: Sequence[WorkItem]) -> list[type]:
    return [type(item.work) for item in items]


def names(item: WorkItem) -> list[str]:
    """The tensors that an item writes, each once."""
    return [name for _, name in tensors_of(item.work)]


# --- Kinds ------------------------------------------------------------------------------------------------------------


def test_what_is_renamed_is_copied_as_bytes_small_tensors_together():
    (item,) = items_of({"a": "f32[4,3]", "b": "bf16[5]"}, MOVED)
    assert isinstance(item.work, Copy)
    assert names(item) == ["n.a", "n.b"]
    assert (item.host_bytes, item.reads, item.writes) == (0, 58, 58)


def test_a_large_tensor_is_copied_in_pieces_that_are_cut_between_elements():
    items = items_of({"a": f"f32[{COPY_BYTES // 2}]"}, MOVED)
    assert [item.writes for item in items] == [COPY_BYTES] * 2
    assert [t.at for item in items if isinstance(item.work, Copy) for t in item.work.transfers] == [0, COPY_BYTES // 4]


def test_arithmetic_streams_and_small_tensors_that_are_one_block_together_are_one_item():
    items = items_of({"a": f"f32[{BLOCK // 2}]", "b": f"f32[{BLOCK // 2}]", "c": "f32[7]"}, HALF)
    assert kinds(items) == [Stream, Stream]
    assert [names(item) for item in items] == [["a", "b"], ["c"]]


def test_a_long_tensor_is_one_item_of_as_many_parts_as_it_has_blocks():
    (item,) = items_of({"a": f"f32[{3 * BLOCK + 1}]"}, HALF)
    ranges = [(p.start, p.stop) for part in parts_of(item.work) if isinstance(part, Stream) for p in part.passages]
    assert ranges == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, 3 * BLOCK), (3 * BLOCK, 3 * BLOCK + 1)]
    assert (item.reads, item.writes) == (12 * BLOCK + 4, 12 * BLOCK + 4)


def test_axes_in_another_order_are_made_in_boxes():
    (item,) = items_of({"a": "f32[400,300]"}, TURNED)
    assert isinstance(item.work, Boxes)
    assert [(p.box, names(item)) for p in item.work.portions] == [(((0, 300, 1), (0, 400, 1)), ["a"])]


def test_columns_of_a_matrix_are_made_of_boxes_of_it_that_are_read_once():
    unstack = {"unstack": {"from": "a", "to": "c.${k}", "over": "k", "dim": 1}}
    (item,) = items_of({"a": "f32[400,30]"}, unstack, {"delete": {"target": "a"}})
    assert isinstance(item.work, Boxes)
    assert item.work.held is not None
    assert names(item) == [f"c.{k}" for k in range(30)]
    assert item.reads == item.writes == 400 * 30 * 4


def test_a_question_and_an_output_that_read_one_tensor_go_by_together():
    (item,) = items_of({"a": "f32[400,300]"}, {"assert": {"not": {"iszero": "a"}}}, HALF)
    assert isinstance(item.work, Stream)
    (passage,) = item.work.passages
    assert len(passage.sinks) == 2
    assert item.reads == 400 * 300 * 4


def test_what_only_reads_comes_before_what_writes():
    items = items_of(
        {"a": "f32[40]", "b": "f32[50]"}, {"assert": {"not": {"iszero": "a"}}}, {"scale_": {"target": "b", "by": 2}}
    )
    assert [item.writes > 0 for item in items] == [False, True, True]
    assert kinds(items) == [Stream, Stream, Copy]


def test_factorizations_are_whole_and_the_largest_comes_first():
    items = items_of({"a": "f32[400,300]", "b": "f32[500,300]"}, LOW)
    assert kinds(items) == [Whole, Whole]
    assert [names(item) for item in items] == [["b"], ["a"]]


def test_a_fold_of_a_large_tensor_comes_first_and_all_else_needs_it():
    clip = {"compute": {"from": {"x": "a"}, "expr": "x / sqrt(sum(x ** 2))"}}
    fold, *others = items_of({"a": "f32[8192,4096]"}, clip)
    assert isinstance(fold.work, Fold)
    assert len(parts_of(fold.work)) > 8
    assert fold.needs == ()
    assert {item.needs for item in others} == {(fold.key,)}
    assert (fold.reads, fold.writes) == (1 << 27, 0)
    assert sum(item.writes for item in others) == 1 << 27


def test_without_folds_nothing_needs_anything_first():
    assert not any(item.needs for item in items_of({"a": "f32[400,300]"}, MOVED, LOW))


# --- Where ------------------------------------------------------------------------------------------------------------


def sites(items: Sequence[WorkItem]) -> list[tuple[Site, ...]]:
    return [item.work.sites for item in items if isinstance(item.work, Whole)]


def test_without_accelerators_every_call_is_made_on_the_host_by_itself():
    items = items_of({f"w{i}": "f32[400,300]" for i in range(3)}, LOW)
    assert sites(items) == [(Site.HOST,)] * 3
    assert not any(item.device_bytes for item in items)


def sizes_of(count: int) -> list[int]:
    items = items_of({f"w{i}": "f32[400,300]" for i in range(count)}, LOW, machine=FOUR)
    return [item.work.size for item in items if isinstance(item.work, Whole)]


def test_a_batch_is_as_large_as_what_is_there_up_to_a_multiple_of_the_devices():
    assert [sizes_of(count) for count in (1, 3, 4, 5, 33)] == [[1], [4], [4], [8], [4 * MOST, 1]]


def test_calls_that_an_accelerator_does_not_compute_stay_on_the_host():
    by_energy = {"phlora_": {**LOW["phlora_"], "rank": {"energy": 0.9}}}
    exact, almost_all = ({"phlora_": {**LOW["phlora_"], **keys}} for keys in ({"method": "exact"}, {"rank": 250}))
    for of, step in (
        ("f64[400,300]", LOW),
        ("f32[400,300]", exact),
        ("f32[400,300]", by_energy),
        ("f32[400,300]", almost_all),
    ):
        assert sites(items_of({"w": of}, step, machine=FOUR)) == [(Site.HOST,)]


def test_calls_of_different_shapes_are_different_batches():
    items = items_of({"a": "f32[400,300]", "b": "f32[300,400]", "c": "f32[400,300]"}, LOW, machine=FOUR)
    assert [names(item) for item in items] == [["a", "c"], ["b"]]


def test_a_batch_takes_no_more_than_a_device_has():
    (alone,) = items_of({"a": "f32[400,300]"}, LOW)
    assert isinstance(alone.work, Whole)
    (task,) = alone.work.tasks
    need = on_device(calls_of(task)[0])
    small = replace(FOUR, devices=1, bytes_each=3 * need + 1)
    assert most_calls(task, small) == 3
    item, _ = items_of({f"w{i}": "f32[400,300]" for i in range(4)}, LOW, machine=small)
    assert item.device_bytes == 3 * need


def test_a_batch_counts_one_devices_share_on_its_way_and_takes_no_more_of_the_host_than_it_may():
    tensors = {f"w{i}": "f32[400,300]" for i in range(6)}
    alone = items_of({"w0": "f32[400,300]"}, LOW)[0].host_bytes
    (together,) = items_of(tensors, LOW, machine=FOUR)
    assert together.host_bytes == 6 * alone + 2 * 400 * 300 * 4
    parted = items_of(tensors, LOW, machine=replace(FOUR, host_bytes=together.host_bytes - 1))
    assert [len(item.work.tasks) for item in parted if isinstance(item.work, Whole)] == [5, 1]
    refuse_too_large(parted, replace(FOUR, host_bytes=together.host_bytes - 1))


def test_a_call_that_is_too_large_for_a_device_is_cut_over_several_or_made_on_the_host():
    for devices, site in ((4, Site.SHARDED), (1, Site.HOST)):
        items = items_of({"a": "f32[400,300]"}, LOW, machine=replace(FOUR, devices=devices, bytes_each=1 << 10))
        assert sites(items) == [(site,)]


FACTORS = {"phlora": {"target": "a", "target_a": "x", "target_b": "y", "rank": 8}}


def on_several(processes: int, host_bytes: int, shape: str = "400,300", **more: Any) -> WorkItem:
    """The item of a factorization in a run of several processes."""
    machine = Machine(host_bytes, threads=2, processes=processes, **more)
    (item,) = items_of({"a": f"f32[{shape}]"}, FACTORS, machine=machine)
    return item


def shared_of(item: WorkItem) -> tuple[tuple[Site, ...], int]:
    assert isinstance(item.work, Whole)
    return item.work.sites, item.work.sharers


def test_a_call_that_no_process_can_hold_is_shared_by_all_and_one_that_fits_by_none():
    alone = on_several(4, 1 << 40).host_bytes
    assert shared_of(on_several(4, alone)) == ((Site.HOST,), 1)
    assert shared_of(on_several(4, 1 << 20)) == ((Site.SHARED,), 4)
    assert shared_of(on_several(1, 1 << 20)) == ((Site.HOST,), 1)


def test_a_call_is_shared_by_as_many_processes_as_divide_it_evenly_with_all_their_devices():
    for processes, shape, sharers in ((3, "400,300", 3), (7, "400,300", 6), (7, "512,512", 4), (7, "401,307", 1)):
        assert shared_of(on_several(processes, 1 << 18, shape))[1] == sharers
    assert shared_of(on_several(7, 1 << 18, "512,512", devices=8, bytes_each=1 << 30)) == ((Site.SHARED,), 4)


def test_more_processes_that_share_a_call_hold_less_each_and_too_few_are_refused():
    each = [on_several(processes, 1 << 20).host_bytes for processes in (2, 4, 10)]
    assert each == sorted(set(each), reverse=True)
    machine = Machine(each[1], threads=2, processes=2)
    with pytest.raises(
        PlanError, match=r"in each of the 2 processes that share it, the budget is .*(?s:.*)more machines"
    ):
        refuse_too_large([on_several(2, 1 << 20)], machine)
    refuse_too_large([on_several(4, 1 << 20)], machine)


def test_a_factorization_that_only_the_host_computes_is_never_shared():
    machine = Machine(1 << 18, threads=2, processes=4)
    assert sites(items_of({"a": "f64[400,300]"}, LOW, machine=machine)) == [(Site.HOST,)]


def test_several_calls_of_one_task_are_made_by_one_device_each():
    product = {"matmul": {"from_a": "a", "from_b": "b", "to": "ab"}}
    square = {"matmul": {"from_a": "ab", "from_b": "ab", "to": "c"}}
    items = items_of({"a": "f32[40,30]", "b": "f32[30,40]"}, product, square, machine=FOUR)
    assert sites(items) == [(Site.DEVICE,)]


# --- Keys, figures ----------------------------------------------------------------------------------------------------


def test_keys_are_the_same_in_every_run_and_differ_between_items():
    def keys() -> list[str]:
        tensors = {"a": f"f32[{3 * BLOCK}]", "b": "f32[400,300]", "c": "f32[7]"}
        steps = (
            {"assert": {"not": {"iszero": "b"}}},
            {"scale_": {"target": "a", "by": 2}},
            {"phlora_": {"target": "b", "rank": 8}},
        )
        return [item.key for item in items_of(tensors, *steps)]

    assert keys() == keys()
    assert len(set(keys())) == len(keys()) == 4


def test_an_item_has_the_same_key_whatever_else_the_plan_does():
    (alone,) = items_of({"a": f"f32[{3 * BLOCK}]"}, HALF)
    beside = items_of({"a": f"f32[{3 * BLOCK}]", "b": "f32[400,300]"}, HALF)
    assert alone.key in {item.key for item in beside}


def test_the_projection_is_that_of_the_largest_parts_at_a_time_within_the_budget():
    items = items_of({"a": "f32[300,300]", "b": "f32[400,400]", "c": "f32[500,500]"}, LOW)
    large, middle, small = (item.host_bytes for item in items)
    assert projection(items, replace(HOST, threads=1)) == (large, large)
    assert projection(items, replace(HOST, threads=2)) == (large, large + middle)
    assert projection(items, replace(HOST, threads=8)) == (large, large + middle + small)
    assert projection(items, Machine(large + 1, threads=8)) == (large, large + 1)


def test_blocks_of_one_tensor_are_projected_as_many_times_as_they_run_at_a_time():
    items = items_of({"a": f"f32[{3 * BLOCK}]"}, HALF)
    (item,) = items
    for threads, times in ((1, 1), (2, 2), (8, 3)):
        assert projection(items, replace(HOST, threads=threads)).in_all == times * item.host_bytes


def test_an_item_that_needs_more_than_the_budget_is_refused_with_both_figures():
    items = items_of({"a": "f32[300,300]"}, LOW)
    with pytest.raises(PlanError, match=r"the largest task needs .* MB of memory, the budget is 1\.0 MB"):
        refuse_too_large(items, replace(HOST, host_bytes=1 << 20))
