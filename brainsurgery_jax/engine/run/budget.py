"""The budget of a run: memory, threads, devices, and whether files are flushed to disk."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple
from uuid import getnode

from brainsurgery_jax.engine.compute.devices import Devices
from brainsurgery_jax.engine.run.control_groups import bytes_left, read_text
from brainsurgery_jax.store.sizes import read_size

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


def default_budget(*, host_bytes: int | str | None = None, durable: bool = True, devices: Devices = "all") -> Budget:
    """The default budget: a quarter of the available memory, and one thread per processor.

    `host_bytes`: what a caller gives as `memory`, a number of bytes or a text. Raises TypeError and ValueError.
    """
    asked = read_size(host_bytes, "memory")
    return Budget(asked or max(LEAST, available_bytes() // 4), len(processors()), durable, devices)


def processors() -> frozenset[int]:
    """The processors that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def machine_identity() -> str:
    """What is the same for all processes of one running system and for no other: the memory that they share is its.
    Containers have the identity of the machine that they run on."""
    return read_text("/proc/sys/kernel/random/boot_id") or f"{platform.node()} {getnode()}"


def available_bytes(process: str = "/proc/self") -> int:
    """Available memory in bytes: what the system reports, limited by the control groups of a process, which is told by
    its folder in `/proc`."""
    found = _available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([found, *bytes_left(process)])


def _available() -> int | None:
    """Linux's own estimate; other systems have none."""
    lines = read_text("/proc/meminfo").splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), None)
