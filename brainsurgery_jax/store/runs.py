"""Which run this is: the process, and the host that it runs on. Names beside an output carry it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

_SHOWN = 24  # letters of a host name in a file name, which may have 255 in all


class RunId(NamedTuple):
    """A run: process id, start time of the process in clock ticks since boot (0 if the system does not report it), the
    host, and its boot (empty if unknown).

    `host` is the name of the host and a checksum of what sets it apart from others of that name: machine id, and
    namespace of process ids, since the processes of another container cannot be seen from here either.
    """

    pid: int
    start: int
    host: str
    boot: str

    def __str__(self) -> str:
        return f"{self.pid}-{self.start}-{self.host}-{self.boot}"


def this_run() -> RunId:
    """The run of this process."""
    return _run_of(os.getpid())


@cache
def _run_of(pid: int) -> RunId:
    """By the process id, which a fork changes."""
    name = os.uname().nodename
    apart = f"{name} {_first_line('/etc/machine-id')} {_namespace()}"
    shown = re.sub(r"[^A-Za-z0-9]", "_", name)[:_SHOWN] or "host"
    host = f"{shown}_{crc32(apart.encode()):08x}"
    return RunId(pid, start_of(pid), host, _first_line("/proc/sys/kernel/random/boot_id")[:8])


def start_of(pid: int) -> int:
    """When a process of this host started, in clock ticks since boot; 0 if the system does not report it, -1 for a dead
    zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if fields[0] == "Z" else int(fields[19])


def _first_line(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip().partition("\n")[0]
    return ""


def _namespace() -> int:
    with suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0
