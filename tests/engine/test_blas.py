"""Runs that go on at the same time in one process: BLAS stays on one thread until the last of them ends."""

from __future__ import annotations

from threading import Event, Thread

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  (it has a BLAS of its own)
from threadpoolctl import threadpool_info, threadpool_limits

from brainsurgery_jax.engine.compute.blas import SharedLimit, one_thread


class Recorder:
    """A limit that records what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def limit(self) -> Recorder:
        self.done.append("set")
        return self

    def restore_original_limits(self) -> None:
        self.done.append("restored")


def test_the_first_run_sets_the_limit_and_the_last_restores_it():
    seen = Recorder()
    shared = SharedLimit(seen.limit)
    first, second = shared.held(), shared.held()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert seen.done == ["set"]
    second.__exit__(None, None, None)
    assert seen.done == ["set", "restored"]


def test_a_limit_can_be_set_again_after_it_was_restored():
    seen = Recorder()
    shared = SharedLimit(seen.limit)
    for _ in range(2):
        with shared.held():
            pass
    assert seen.done == ["set", "restored"] * 2


def test_a_run_that_fails_counts_as_ended():
    seen = Recorder()
    shared = SharedLimit(seen.limit)
    with pytest.raises(ZeroDivisionError), shared.held():
        raise ZeroDivisionError
    assert seen.done == ["set", "restored"]


def test_a_run_that_ends_leaves_one_thread_to_another_that_still_computes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    begun, ended = Event(), Event()

    def short() -> None:
        with one_thread():
            begun.set()
            assert ended.wait(60)

    with threadpool_limits(2, user_api="blas"):  # set by this thread, lowered by the other
        before = blas_threads()
        first = Thread(target=short)
        first.start()
        assert begun.wait(60)
        with one_thread():
            ended.set()
            first.join()
            assert blas_threads() == {1}
            np.linalg.svd(np.eye(8))
        assert blas_threads() == before


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
