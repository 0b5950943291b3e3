"""BLAS with one thread per kernel: bits of factorizations depend on the thread count, and we distribute the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Protocol


class Limits(Protocol):
    """Thread counts that can be limited and restored."""

    def restore_original_limits(self) -> None: ...


class SharedLimit:
    """A process-wide limit shared by concurrent runs: the first sets it, the last restores the original value. If each
    run restored it at its own end, the others would continue without it and give other bits.

    `limit` sets it, and returns what restores it.
    """

    def __init__(self, limit: Callable[[], Limits]):
        self._limit, self._lock, self._users = limit, Lock(), 0
        self._before: Limits | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context in which the limit is set."""
        with self._lock:
            if self._before is None:
                self._before = self._limit()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    before, self._before = self._before, None
                    assert before is not None
                    before.restore_original_limits()


class _OneThread:
    """BLAS on one thread, by threadpoolctl."""

    def __init__(self) -> None:
        import numpy  # noqa: F401  (only libraries that are loaded can be limited, and scipy has a BLAS of its own)
        import scipy.linalg  # noqa: F401
        from threadpoolctl import threadpool_limits

        _take_control()
        self._limits = threadpool_limits(1, user_api="blas")

    def restore_original_limits(self) -> None:
        """Restore the original counts."""
        _take_control()
        self._limits.restore_original_limits()


def _take_control() -> None:
    """From its version 3.8 on, threadpoolctl ignores all threads but the one that set a count first."""
    import threadpoolctl

    if (clear := getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)) is not None:
        clear(force=True)


_ONE_THREAD = SharedLimit(_OneThread)


def one_thread() -> AbstractContextManager[None]:
    """A context in which BLAS uses only the calling thread, in the whole process.

    The command sets this in the environment before numpy is loaded, which is free. For users of the library it is set
    on the libraries that are loaded, and restored when the last run of the process ends.
    """
    return nullcontext() if os.environ.get("OPENBLAS_NUM_THREADS") == "1" else _ONE_THREAD.held()
