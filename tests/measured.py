"""A run as a process of its own: the memory that it projected, and what it held at its worst moment.

The process is arranged like the command's. What it holds after a run of the same steps on tiny tensors is its own (the
interpreter, libraries); what it holds above that is the run's. The kernel keeps the highest count of resident pages by
itself, so that no peak is too short to be seen.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from resource import getpagesize
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
Plan = Mapping[str, Any]


class Measured(NamedTuple):
    """Bytes: projected for the largest task and in all; held at the worst moment, without pages of mapped files; these,
    by how much they grew."""

    largest: int
    in_all: int
    anonymous: int
    mapped: int


def measured(
    plan: Plan, tiny: Plan, *, threads: int = 2, memory: int | None = None, fast_bfloat16: bool = False
) -> Measured:
    """What a run of `plan` takes after one of `tiny`. `fast_bfloat16`: as if the processor had products of bfloat16."""
    line = [sys.executable, "-m", "tests.measured", json.dumps([plan, tiny, threads, memory, fast_bfloat16])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Measured(*json.loads(done.stdout))


def _measure(plan: Plan, tiny: Plan, threads: int, memory: int | None, fast_bfloat16: bool) -> Measured:
    import brainsurgery_jax as bs
    from brainsurgery_jax.cli.environment import keep_freed_memory

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    keep_freed_memory()
    if fast_bfloat16:
        _expect_fast_bfloat16()
    bs.load(tiny).run(durable=False, overwrite=True)
    projected = bs.load(plan).explain()
    largest, in_all = projected.peak, projected.peak_in_all
    del projected
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest count starts again from what is held now
    before = _status()
    bs.load(plan).run(durable=False, memory=memory, overwrite=True)
    after = _status()
    return Measured(
        largest,
        in_all,
        after["VmHWM"] - after["RssFile"] - before["RssAnon"] - getpagesize(),  # the last page may be used in part
        after["RssFile"] - before["RssFile"],
    )


def _expect_fast_bfloat16() -> None:
    """Take products of bfloat16 for matrices of any size; JAX is loaded, and has computed one."""
    import ml_dtypes
    import numpy as np

    from brainsurgery_jax.numerics import bfloat16

    bfloat16.LEAST, bfloat16.is_fast = 0, lambda: True
    bfloat16.gram(np.zeros((bfloat16.SLAB, bfloat16.ALIGNED), ml_dtypes.bfloat16))


def _status() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[-1] == "kB"}


if __name__ == "__main__":
    print(json.dumps(_measure(*json.loads(sys.argv[1]))))
