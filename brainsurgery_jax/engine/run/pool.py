"""Jobs on threads: started in order within a memory budget, their results delivered in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.errors import Stopped

T = TypeVar("T")

AHEAD = 4
"""Jobs per thread that may be waiting or running."""

PACE = 0.1
"""Seconds after which `submit` looks at results and at the stop signal, although the next job still waits for room."""


class _Begun(NamedTuple, Generic[T]):
    future: Future[T]
    then: Callable[[T], None]


class Pool:
    """Runs jobs on threads. Reading, computing and writing overlap because different jobs are at different stages.

    `then` of each job is called on the calling thread, in the order of submission, so that verdicts, merged sums,
    progress and errors never depend on timing. A job releases its bytes when it is done; its result, which must be
    small, waits for those of earlier jobs. Once `stop` is set, no job starts any more, and `Stopped` is raised when
    those that run are done.
    """

    def __init__(self, threads: int, host_bytes: int, stop: StopSignal = NEVER):
        self._executor = ThreadPoolExecutor(threads, "brainsurgery")
        self._most, self._free, self._stop = AHEAD * threads, host_bytes, stop
        self._under_way = 0
        self._changed = Condition()
        self._begun: deque[_Begun[Any]] = deque()

    def submit(self, nbytes: int, job: Callable[[], T], then: Callable[[T], None]) -> None:
        """Start a job that needs `nbytes`, once they are free. Raises what an earlier job raised, and Stopped."""
        while True:
            self._hand_over_done()
            if self._stop.is_set():
                raise Stopped
            if self._reserve(nbytes):
                break
        future = self._executor.submit(job)
        self._begun.append(_Begun(future, then))
        future.add_done_callback(lambda _: self._give_back(nbytes))

    def _reserve(self, nbytes: int) -> bool:
        """Whether there is room for a job, if need be after waiting a little."""
        with self._changed:
            found = self._changed.wait_for(lambda: not self._under_way or self._fits(nbytes), PACE)
            if found:
                self._free -= nbytes
                self._under_way += 1
        return found

    def _fits(self, nbytes: int) -> bool:
        return nbytes <= self._free and self._under_way < self._most

    def _give_back(self, nbytes: int) -> None:
        with self._changed:
            self._free += nbytes
            self._under_way -= 1
            # To submit the next job takes the interpreter from those at work: more at a time, or after PACE.
            if self._under_way <= self._most // 2:
                self._changed.notify()

    def drain(self) -> None:
        """Wait for all jobs, and deliver their results."""
        while self._begun:
            self._hand_over()

    def _hand_over_done(self) -> None:
        while self._begun and self._begun[0].future.done():
            self._hand_over()

    def _hand_over(self) -> None:
        if self._stop.is_set():
            raise Stopped
        first = self._begun[0]
        result = first.future.result()
        self._begun.popleft()
        first.then(result)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
