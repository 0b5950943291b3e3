"""BLAS on one thread a kernel: bits of factorizations change with their number, and sharing out work is our part."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS keeps to the thread that calls it, for the whole process.

    The command says so in the environment before numpy is loaded, which is free; for users of the library it is said to
    the libraries that are loaded, and taken back afterwards.
    """
    if os.environ.get("OPENBLAS_NUM_THREADS") == "1":
        return nullcontext()
    import numpy  # noqa: F401  (a BLAS must be there to be told, and scipy has one of its own)
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")
