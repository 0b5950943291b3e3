"""What the process needs around it before JAX is loaded, set unless the user has set it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

# From glibc's malloc.h: which setting, and bytes.
_TRIM_THRESHOLD = -1, 32 << 20
_MMAP_THRESHOLD = -3, 16 << 20


def arrange(environment: MutableMapping[str, str], *, compile_cache: bool) -> None:
    """One BLAS thread per kernel, since bits of factorizations change with it; compiled kernels in the user's cache;
    freed memory used again.

    Parallel work comes from running several kernels at a time. Users of the library set the same for themselves.
    """
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    environment.setdefault(
        "PJRT_NPROC", "1"
    )  # XLA's threads on the CPU, which would only stand in our own threads' way
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # its runtime logs every connection as information
    if compile_cache:
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache_folder(environment))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed blocks, up to 32 MiB a thread, and give that of whole matrices back at once.

    By itself it gives a block of some megabytes back to the system as soon as it is freed, and every new block then
    costs a fault per page: a tenth to a quarter of the time of a cast. For a program of one's own the environment says
    the same, from its start: `MALLOC_MMAP_THRESHOLD_=16777216 MALLOC_TRIM_THRESHOLD_=33554432`. Elsewhere than on Linux
    with glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    import ctypes

    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for setting, nbytes in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(setting, nbytes)


def cache_folder(environment: Mapping[str, str]) -> str:
    """Where compiled kernels are kept: below the user's cache folder."""
    base = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "brainsurgery-jax", "kernels")
