"""How far a run is, in words: bytes, throughput, time and memory."""

from __future__ import annotations

import os
from pathlib import Path

from brainsurgery_jax.store.sizes import show_size


def describe_progress(done: int, total: int | None, elapsed: float, speed: float | None, memory: int | None) -> str:
    """Bytes read and written, of all, their throughput, the time so far and the time left, and the memory held. Sizes
    are in the units of all messages, powers of 1024; what is not known is left out."""
    parts = [show_size(done) if total is None else f"{show_size(done)} of {show_size(total)}"]
    if speed:
        parts.append(f"{show_size(int(speed))}/s")
    parts.append(show_time(elapsed))
    if total is not None and speed and done < total:
        parts.append(f"{show_time((total - done) / speed)} left")
    if memory is not None:
        parts.append(f"memory {show_size(memory)}")
    return ", ".join(parts)


def show_time(seconds: float) -> str:
    """A duration as a clock shows it: minutes and seconds, and hours if there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory_held() -> int | None:
    """The bytes of memory that this process holds now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
