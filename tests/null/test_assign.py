"""Who performs which item of a run over several processes: a function of lists."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.engine.plan.assign import GRAIN, assign, cut_long, shares, split
from brainsurgery_jax.engine.plan.blocks import BLOCK
from brainsurgery_jax.engine.plan.planner import plan_work
from brainsurgery_jax.engine.plan.schedule import question_of
from brainsurgery_jax.engine.plan.simulate import CLOSE, ClusterModel, simulate, stages_of
from brainsurgery_jax.engine.plan.work import Ask, Copy, Machine, Passage, Stream, Whole, WorkItem
from brainsurgery_jax.protocol import Reduction
from brainsurgery_jax.store.balance import balance
from tests.null.world import Headers, program

MACHINE = Machine(host_bytes=1 << 40, threads=2)
QUESTION = question_of((), Reduction(len, max, int, 0))


def copy_of(nbytes: int, key: str = "") -> WorkItem:
    return WorkItem(Copy(()), key, 0, 0, nbytes, 0)


def call_of(nbytes: int) -> WorkItem:
    return WorkItem(Whole((), (), ()), "", 0, 0, nbytes, 0)


def asking(nbytes: int, *questions: int) -> WorkItem:
    sinks = tuple(Ask(number, QUESTION, 1) for number in questions)
    return WorkItem(Stream((Passage(sinks, 0, 1),)), "", 0, 0, nbytes, 0)


def loads(items: Sequence[WorkItem], processes: int) -> list[int]:
    found = [0] * processes
    for item, home in zip(items, assign(items, processes), strict=True):
        found[home] += item.reads + item.writes
    return found


def part_of(items: Sequence[WorkItem], process: int, processes: int) -> list[WorkItem]:
    """The items of one process, in the order of the work."""
    return [item for item, home in zip(items, assign(items, processes), strict=True) if home == process]


def test_one_process_performs_everything():
    assert assign([copy_of(5), copy_of(0), asking(3, 0)], 1) == (0, 0, 0)


def shared_call(reads: int, writes: int, sharers: int) -> WorkItem:
    return WorkItem(Whole((), (), (), sharers=sharers), "", 0, 0, reads, writes)


def test_an_item_that_processes_share_is_written_by_the_one_of_them_that_has_least_and_what_they_read_counts_for_none():
    items = [shared_call(100, 8, 2), shared_call(100, 4, 2), shared_call(100, 4, 2), call_of(10)]
    assert assign(items, 3) == (0, 1, 1, 2)


def test_processes_that_share_an_item_read_equal_parts_of_it_and_one_writes_it():
    found = [(k, part.reads, part.writes) for k, part in shares(shared_call(90, 8, 3), 1)]
    assert found == [(0, 30, 0), (1, 30, 8), (2, 30, 0)]
    assert list(shares(call_of(90), 5)) == [(5, call_of(90))]


def test_in_the_model_all_who_share_an_item_read_their_part():
    (phase,) = simulate([shared_call(80, 8, 2)], ClusterModel(4, MACHINE)).phases
    found = [(load.items, load.reads, load.writes) for load in phase.loads]
    assert found == [(1, 40, 8), (1, 40, 0), (0, 0, 0), (0, 0, 0)]


def test_no_items_are_assigned_to_nobody():
    assert assign([], 3) == ()


def test_more_processes_than_items_leave_some_without_work():
    assert sorted(assign([copy_of(5), copy_of(5)], 4)) == [0, 1]


def test_small_items_stay_together_in_the_order_of_the_work():
    assert list(assign([copy_of(1)] * 120, 3)) == [0] * 40 + [1] * 40 + [2] * 40


def test_small_items_fill_what_a_large_one_leaves():
    items = [copy_of(50), *[copy_of(1)] * 100]
    assert loads(items, 3) == [50, 50, 50]


def test_calls_on_whole_operands_are_spread_whatever_else_there_is():
    homes = assign([copy_of(1000), *[call_of(10)] * 4], 4)
    assert sorted(homes[1:]) == [0, 1, 2, 3]


def test_items_that_share_a_question_go_to_one_process():
    items = [asking(10, 0), copy_of(10), asking(10, 1), asking(10, 0, 2), copy_of(10), asking(10, 2)]
    homes = assign(items, 3)
    assert homes[0] == homes[3] == homes[5]


def test_the_parts_of_all_processes_are_all_items_once_and_in_order():
    items = [copy_of(n % 7 * 3, str(n)) for n in range(50)]
    parts = [part_of(items, process, 3) for process in range(3)]
    assert sorted(int(item.key) for part in parts for item in part) == list(range(50))
    assert all([int(item.key) for item in part] == sorted(int(item.key) for item in part) for part in parts)


@pytest.mark.parametrize("processes", [2, 3, 4, 7, 16])
def test_the_largest_part_is_at_most_a_tenth_above_the_mean_as_far_as_single_items_allow(processes: int):
    draw = random.Random(processes)
    for _ in range(50):
        items = [copy_of(int(draw.paretovariate(1.1) * 100)) for _ in range(draw.randint(1, 400))]
        sizes = [item.reads for item in items]
        mean = sum(sizes) / processes
        assert max(loads(items, processes)) <= max(mean * (1 + 1 / GRAIN), mean + max(sizes)) + 1
        if max(sizes) * 10 <= mean:
            assert max(loads(items, processes)) <= 1.1 * mean


# --- The model of a run over hosts ---------------------------------------------------------------------------------


def work_of(tensors: dict[str, str], *steps: object) -> tuple[WorkItem, ...]:
    lowered = program(*steps, output="out.safetensors", world=Headers({"m.safetensors": tensors}))
    assert not lowered.errors
    return plan_work(lowered, MACHINE)


LAYERS = {f"h.{n}": "f32[1024,1024]" for n in range(64)}
MOVED = {"move": {"from": "(.*)", "to": r"n.\1"}}
HALF = {"scale_": {"target": ".*", "by": 0.5}}
LOW = {"phlora_": {"target": ".*", "rank": 8}}
FINITE = {"assert": {"finite": ".*"}}


def test_the_slowest_resource_of_the_slowest_host_decides_how_long_a_phase_takes():
    cluster = ClusterModel(2, MACHINE, reads=1e9, writes=5e8, start=0)
    (phase,) = simulate(work_of(LAYERS, MOVED), cluster).phases
    assert (phase.name, phase.bound) == ("outputs", "writes")
    assert phase.seconds == pytest.approx(64 * (4 << 20) / 2 / 5e8 + CLOSE)


def test_more_hosts_do_not_help_where_the_file_system_is_the_limit():
    items = work_of(LAYERS, MOVED)
    few, many = (simulate(items, ClusterModel(hosts, MACHINE, shared=1e8)) for hosts in (4, 16))
    assert few.phases[0].bound == many.phases[0].bound == "file system"
    assert few.seconds == many.seconds


def test_hosts_share_bytes_evenly_and_hold_less_each_when_calls_are_spread():
    items = work_of({f"w.{n}": "f32[512,512]" for n in range(16)}, LOW)
    one, four = simulate(items, ClusterModel(1, MACHINE)), simulate(items, ClusterModel(4, MACHINE))
    assert sum(one.moved) == sum(four.moved)
    assert four.imbalance == 1
    assert max(four.peaks) <= max(one.peaks)


def test_what_only_reads_comes_before_what_writes_and_hosts_wait_in_between():
    assert [name for name, _, _ in stages_of(work_of(LAYERS, FINITE, MOVED))] == ["questions", "outputs"]


def test_a_fold_is_a_phase_for_each_of_its_passes():
    clip = {"compute": {"from": {"x": "w"}, "expr": "x / sqrt(sum(x ** 2))"}}
    fold, outputs = simulate(work_of({"w": "f32[8192,4096]"}, clip), ClusterModel(2, MACHINE)).phases
    assert (fold.name, outputs.name) == ("fold 1", "outputs")


# --- Stages ---------------------------------------------------------------------------------------------------------


def test_a_question_that_is_also_answered_while_something_is_written_waits_for_that():
    early, late, writing = asking(1, 0), asking(1, 1), asking(1, 1)._replace(writes=5)
    assert split([early, late, writing]) == ([early], [late, writing])


# --- Long tensors -----------------------------------------------------------------------------------------------------


def test_a_long_tensor_that_is_streamed_is_cut_at_blocks_for_several_processes_to_take():
    (item,) = work_of({"a": f"f32[{40 * BLOCK + 3}]"}, HALF)
    pieces = cut_long([item])
    assert [tuple((p.start, p.stop) for p in piece.work.passages) for piece in pieces
            if isinstance(piece.work, Stream)] == [
        ((0, 16 * BLOCK),), ((16 * BLOCK, 32 * BLOCK),), ((32 * BLOCK, 40 * BLOCK + 3),)
    ]  # fmt: skip
    assert sum(piece.reads for piece in pieces) == item.reads
    assert sum(piece.writes for piece in pieces) == item.writes
    assert len({piece.key for piece in pieces}) == 3


def test_what_is_short_or_answers_a_question_is_not_cut():
    items = [*work_of({"a": f"f32[{16 * BLOCK}]"}, HALF), asking(1 << 40, 0)]
    assert cut_long(items) == items


@given(st.lists(st.integers(0, 50), max_size=30), st.lists(st.integers(0, 50), min_size=1, max_size=5))
def test_each_size_goes_to_the_first_process_that_has_the_least(sizes: list[int], loads: list[int]):
    own = list(loads)
    for size, home in zip(sizes, balance(sizes, loads), strict=True):
        assert home == own.index(min(own))
        own[home] += size
