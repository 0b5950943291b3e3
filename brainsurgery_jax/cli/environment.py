"""What the process needs around it before JAX is loaded, set unless the user has set it."""

from __future__ import annotations

import os
from collections.abc import MutableMapping


def arrange(environment: MutableMapping[str, str], *, compile_cache: bool) -> None:
    """One BLAS thread per kernel, since bits of factorizations change with it; compiled kernels in the user's cache.

    Parallel work comes from running several kernels at a time. Users of the library set the same for themselves.
    """
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    if compile_cache:
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache_folder(environment))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def cache_folder(environment: MutableMapping[str, str]) -> str:
    """Where compiled kernels are kept: below the user's cache folder."""
    base = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "brainsurgery-jax", "kernels")
