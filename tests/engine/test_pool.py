"""The pool: jobs on threads, a budget of bytes, results in the order of the jobs."""

from __future__ import annotations

import threading
import time

import pytest

from brainsurgery_jax.engine.run.pool import Pool
from brainsurgery_jax.errors import Stopped


def test_results_are_handed_over_in_the_order_of_the_jobs():
    seen: list[int] = []
    with Pool(4, 100) as pool:
        for i in range(20):
            pool.submit(1, lambda i=i: time.sleep(0.002 * (i % 3)) or i, seen.append)
        pool.drain()
    assert seen == list(range(20))


def test_jobs_never_hold_more_bytes_together_than_the_budget():
    lock, held, worst = threading.Lock(), [0], [0]

    def job(nbytes: int) -> None:
        with lock:
            held[0] += nbytes
            worst[0] = max(worst[0], held[0])
        time.sleep(0.002)
        with lock:
            held[0] -= nbytes

    with Pool(4, 10) as pool:
        for nbytes in (3, 4, 5, 9, 1, 1, 1, 6, 10, 2):
            pool.submit(nbytes, lambda n=nbytes: job(n), lambda _: None)
        pool.drain()
    assert 0 < worst[0] <= 10


def test_the_error_of_the_earliest_job_is_the_one_that_is_raised():
    late = threading.Event()

    def first() -> None:
        late.wait()
        raise ValueError("first")

    def second() -> None:
        late.set()
        raise ValueError("second")

    with Pool(2, 10) as pool:
        pool.submit(1, first, lambda _: None)
        pool.submit(1, second, lambda _: None)
        with pytest.raises(ValueError, match="first"):
            pool.drain()


def test_results_are_handed_over_while_the_next_job_waits_for_room():
    seen, found = threading.Event(), list[bool]()
    with Pool(2, 10) as pool:
        pool.submit(1, lambda: None, lambda _: seen.set())
        pool.submit(9, lambda: seen.wait(60), found.append)
        pool.submit(9, lambda: None, lambda _: None)  # has room when the second job is done, which waits for the first
        pool.drain()
    assert found == [True]


def test_a_stop_is_noticed_while_the_next_job_waits_for_room():
    stop, may_end = threading.Event(), threading.Event()
    with Pool(1, 10, stop) as pool:
        pool.submit(9, may_end.wait, lambda _: None)
        threading.Timer(0.05, stop.set).start()
        try:
            with pytest.raises(Stopped):
                pool.submit(9, lambda: None, lambda _: None)
        finally:
            may_end.set()
