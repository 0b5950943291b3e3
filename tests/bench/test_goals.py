"""Goals of the benchmarks, judged on figures made up for the purpose."""

from __future__ import annotations

import pytest

from benchmarks._goals import GOALS, Beside, Faster, Flat, Linear, Memory, Seconds


def _took(wall_s: float, anonymous_mb: float = 0.0, moved_gb: float = 1.0) -> dict[str, float]:
    return {"wall_s": wall_s, "anonymous_mb": anonymous_mb, "moved_gb": moved_gb}


def test_start_up_is_taken_off_before_a_job_is_compared_with_a_copy():
    jobs = {"check": _took(0.3), "cp": _took(2.0), "ours": _took(2.5)}
    assert Beside("ours", "cp", 1.15).judged(jobs) == ("ours", "≤ start + 1.15 x (cp)", 1.1, "x", True)
    assert not Beside("ours", "cp", 1.05).judged(jobs).met


def test_a_job_is_faster_by_how_often_it_goes_into_its_peer():
    jobs = {"ours": _took(2.0), "torch script": _took(13.0)}
    assert Faster("ours", "torch script", 6).judged(jobs) == ("ours", "≥ 6 x as fast as torch script", 6.5, "x", True)
    assert not Faster("ours", "torch script", 7).judged(jobs).met


def test_seconds_count_from_start_to_exit():
    assert Seconds("help", 0.2).judged({"help": _took(0.21)}) == ("help", "≤ 0.2 s", 0.21, "s", False)


def test_memory_may_be_counted_over_that_of_the_start():
    jobs = {"check": _took(0.3, 25), "ours": _took(2.0, 170)}
    assert Memory("ours", 150, over="check").judged(jobs) == ("ours", "≤ 150 MB over start", 145, "MB", True)
    assert not Memory("ours", 150).judged(jobs).met


@pytest.mark.parametrize(("last", "met"), [(8.0, True), (16.0, False)])
def test_time_is_linear_if_the_largest_size_costs_no_more_per_byte_than_the_one_before(last: float, met: bool):
    jobs = {f"cast, {gb} GB": _took(s, moved_gb=gb) for gb, s in ((0.5, 0.9), (2, 2.0), (8, last))}
    assert Linear("cast").judged(jobs).met is met


@pytest.mark.parametrize(("last", "met"), [(110.0, True), (400.0, False)])
def test_memory_is_flat_if_the_largest_size_takes_what_the_second_smallest_takes(last: float, met: bool):
    jobs = {f"cast, {gb} GB": _took(1, mb) for gb, mb in ((0.1, 40), (0.5, 100), (8, last))}
    assert Flat("cast").judged(jobs).met is met


def test_every_goal_asks_something_of_a_job_of_ours():
    assert all(goal.job not in ("check", "cp") for goals in GOALS.values() for goal in goals)
