"""The budget of a run: memory, threads, devices, and whether files are flushed to disk."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple
from uuid import getnode

from brainsurgery_jax.engine.compute.devices import Devices

LEAST = 256 << 20


class Budget(NamedTuple):
    """The resources of a run: bytes of host memory held at once, threads that read, compute and write, whether files
    are flushed, and accelerators. `sharing`: the processes of the run on this machine, of whose memory and processors
    this is the share of one."""

    host_bytes: int
    threads: int
    durable: bool = True
    devices: Devices = "all"
    sharing: int = 1


def default_budget(*, host_bytes: int | None = None, durable: bool = True, devices: Devices = "all") -> Budget:
    """The default budget: a quarter of the available memory, and one thread per processor."""
    return Budget(host_bytes or max(LEAST, available_bytes() // 4), len(processors()), durable, devices)


def processors() -> frozenset[int]:
    """The processors that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def machine_identity() -> str:
    """What is the same for all processes of one running system and for no other: the memory that they share is its.
    Containers have the identity of the machine that they run on."""
    return _text("/proc/sys/kernel/random/boot_id") or f"{platform.node()} {getnode()}"


_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Of control groups of version 2 and 1: the limit, what is used, and of what kinds that is."""


def available_bytes(group: str = "/sys/fs/cgroup") -> int:
    """Available memory in bytes: what the system reports, limited by the control group of this process.

    A control group counts cached pages of files as used; the system frees them on demand, so they are not counted here.
    """
    found = [_available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    for limit, used, stat in _GROUP_FILES:
        if (most := _number(f"{group}/{limit}")) is not None:
            free = most - (_number(f"{group}/{used}") or 0) + _file_pages(f"{group}/{stat}")
            found.append(max(0, free))
    return min(found)


def _file_pages(path: str) -> int:
    """Bytes of files that a control group holds in memory and may drop."""
    counts = dict(line.split() for line in (_text(path) or "").splitlines())
    return sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))


def _available() -> int | None:
    """Linux's own estimate; other systems have none."""
    lines = (_text("/proc/meminfo") or "").splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), None)


def _number(path: str) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def _text(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None
