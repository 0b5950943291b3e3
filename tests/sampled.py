"""A run as a process of its own, and the anonymous memory that it held at its worst moment, sampled while it ran.

`tests.measured` lets the kernel count, but it counts pages of mapped files as well. Formats that are written from
memory maps need them told apart, and the system gives them back when it likes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def sampled(plan: Mapping[str, Any], tiny: Mapping[str, Any]) -> int:
    """Bytes that a run of `plan` holds above what the process held after a run of `tiny`."""
    line = [sys.executable, "-m", "tests.sampled", json.dumps([plan, tiny])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _sample(plan: Mapping[str, Any], tiny: Mapping[str, Any]) -> int:
    import brainsurgery_jax as bs
    from brainsurgery_jax.cli.environment import keep_freed_memory

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # or the scheduler decides what is held at once
    keep_freed_memory()
    bs.load(tiny).run(durable=False)
    before = peak = _anonymous()
    over = threading.Event()

    def look() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, _anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=look)
    watcher.start()
    bs.load(plan).run(durable=False)
    over.set()
    watcher.join()
    return peak - before


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    print(_sample(*json.loads(sys.argv[1])))
