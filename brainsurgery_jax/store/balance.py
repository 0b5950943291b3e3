"""How work is spread over several processes, by bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heapreplace


def balance(sizes: Iterable[int], loads: Sequence[int]) -> list[int]:
    """For each size in turn the number of the process that has the least then: the first of those that have as little.
    `loads`: what each process has before.

    If the largest sizes come first and nobody has a load before, the largest load is at most 4/3 of the least possible
    one. Reference: Graham, Bounds on multiprocessing timing anomalies, 1969.
    """
    heap = [(load, process) for process, load in enumerate(loads)]
    heapify(heap)
    homes: list[int] = []
    for size in sizes:
        load, process = heap[0]
        heapreplace(heap, (load + size, process))
        homes.append(process)
    return homes
