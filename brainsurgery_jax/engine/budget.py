"""What a run may use: memory, threads, and whether files are flushed to disk."""

from __future__ import annotations

import os
from typing import NamedTuple

LEAST = 256 << 20


class Budget(NamedTuple):
    """Bytes of host memory that may be held at once, threads that read, compute and write, and durability."""

    host_bytes: int
    threads: int
    durable: bool = True


def default_budget(*, host_bytes: int | None = None, durable: bool = True) -> Budget:
    """A quarter of the memory that this process may use, and a thread per processor that it may run on."""
    return Budget(host_bytes or max(LEAST, available_bytes() // 4), _processors(), durable)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int:
    """Memory that can still be had: what the system calls available, less what a control group withholds."""
    system = _available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    return system if limit is None else min(system, max(0, limit - (used or 0)))


def _available() -> int | None:
    """Linux's own estimate; other systems have none."""
    try:
        with open("/proc/meminfo") as info:
            return next((int(line.split()[1]) << 10 for line in info if line.startswith("MemAvailable")), None)
    except OSError:
        return None


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
