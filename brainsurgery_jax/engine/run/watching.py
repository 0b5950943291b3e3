"""A computation together with other processes, which never ends if one of these is lost: it is watched from outside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

LOOK = 0.1
"""Seconds between two looks at whether a process is lost."""

PARTING = 2.0
"""Seconds in which a computation may end by itself when a process is lost."""

T = TypeVar("T")


def compute_watched(compute: Callable[[], T], is_lost: Callable[[], bool]) -> Future[T]:
    """Compute in a thread until it is done, or a process is lost: then the thread is left alone if it does not end. So
    it is at a signal, which could not stop this thread within a call that is not Python's."""
    done: Future[T] = Future()
    thread = Thread(target=_fulfil, args=(done, compute), name="together", daemon=True)
    with _output_as_errors():
        thread.start()
        try:
            while not wait([done], LOOK).done and not is_lost():
                pass
        except BaseException:
            _left.append(thread)
            raise
    if is_lost():
        thread.join(PARTING)
        _left.append(thread)
    return done


def _fulfil(done: Future[T], compute: Callable[[], T]) -> None:
    """Compute what someone waits for."""
    try:
        done.set_result(compute())
    except BaseException as error:
        done.set_exception(error)


@contextmanager
def _output_as_errors() -> Iterator[None]:
    """Send what is written to standard output to standard error: JAX's collectives on CPUs greet there."""
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


_left: list[Thread] = []


def is_left_computing() -> bool:
    """Whether a thread still waits for processes that are lost. The end of an interpreter aborts the process when that
    thread wakes up."""
    return any(thread.is_alive() for thread in _left)
