"""A model of a run over several hosts: the real work of a program, with bandwidths instead of devices.

What is performed by whom is `assign`'s; what each host holds is `projection`'s. Time is a model: a host reads, writes
and computes at the same time, so its slowest resource decides; all hosts wait for each other where the run does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from brainsurgery_jax.engine.plan.assign import assign, cut_long, shares, split
from brainsurgery_jax.engine.plan.projection import projection
from brainsurgery_jax.engine.plan.work import Copy, Fold, Machine, Whole, WorkItem

CLOSE = 0.1
"""Seconds until all processes know that all are done."""


@dataclass(frozen=True, slots=True)
class ClusterModel:
    """Hosts that are alike, each a `machine`, and what they reach.

    - `reads`, `writes`: bytes a second of a host, from and to the file system
    - `shared`: bytes a second of the file system for all hosts together, reads and writes; 0 for no limit
    - `streams`: bytes a second that one thread computes of elementwise chains
    - `flops`: operations a second of a host, or of all its accelerators, on whole operands
    - `start`: seconds until the first item begins
    """

    hosts: int
    machine: Machine
    reads: float = 2e9
    writes: float = 1e9
    shared: float = 0.0
    streams: float = 1e9
    flops: float = 1e11
    start: float = 3.0


class Load(NamedTuple):
    """What a host does in a phase: items, bytes read and written, bytes computed in streams, and operations."""

    items: int = 0
    reads: int = 0
    writes: int = 0
    computed: int = 0
    flops: int = 0

    def add(self, item: WorkItem) -> Load:
        """The load with another item, or the part of this host in one that several compute together."""
        whole, copied = isinstance(item.work, Whole), isinstance(item.work, Copy)
        streamed = 0 if copied else item.writes if whole else item.reads + item.writes
        flops = count_flops(item.work) // item.work.sharers if isinstance(item.work, Whole) else 0
        return Load(self.items + 1, self.reads + item.reads, self.writes + item.writes,
                    self.computed + streamed, self.flops + flops)  # fmt: skip


class Phase(NamedTuple):
    """Work between two moments at which all hosts wait for each other: its name, the load of each host, the seconds
    that it takes, the host that is last, and what that one waits for."""

    name: str
    loads: tuple[Load, ...]
    seconds: float
    slowest: int
    bound: str

    @property
    def imbalance(self) -> float:
        """The largest part over the mean, in bytes read and written."""
        return imbalance_of([load.reads + load.writes for load in self.loads])


class Simulation(NamedTuple):
    """A run on a cluster: its phases, one after the other (the critical path), and the most bytes that each host holds
    at a time."""

    cluster: ClusterModel
    phases: tuple[Phase, ...]
    peaks: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """From the start of the processes to the end."""
        return self.cluster.start + sum(phase.seconds for phase in self.phases)

    @property
    def moved(self) -> tuple[int, ...]:
        """The bytes that each host reads and writes."""
        return tuple(sum(p.loads[h].reads + p.loads[h].writes for p in self.phases) for h in range(self.cluster.hosts))

    @property
    def imbalance(self) -> float:
        """The largest part over the mean, in bytes read and written."""
        return imbalance_of(self.moved)


def imbalance_of(parts: Sequence[int]) -> float:
    """The largest part over the mean."""
    return max(parts) * len(parts) / sum(parts) if sum(parts) else 1.0


def simulate(items: Sequence[WorkItem], cluster: ClusterModel) -> Simulation:
    """The run of a program's items on a cluster."""
    peaks = [0] * cluster.hosts
    phases: list[Phase] = []
    for name, together, passes in stages_of(cut_long(items)):
        homes = assign(together, cluster.hosts)
        parts: list[list[WorkItem]] = [[] for _ in range(cluster.hosts)]
        for item, home in zip(together, homes, strict=True):
            for host, part in shares(item, home):
                parts[host].append(part)
        peaks = [max(most, projection(part, cluster.machine).in_all) for most, part in zip(peaks, parts, strict=True)]
        phases += [_phase(name, parts, cluster)] * passes
    return Simulation(cluster, tuple(phases), tuple(peaks))


def stages_of(items: Iterable[WorkItem]) -> list[tuple[str, list[WorkItem], int]]:
    """The stages of a run after each of which all processes wait for each other: name, items, and how often all of them
    are performed. Folds come first, then what only reads, lest a failing assert be found late."""
    folds = [item.work for item in items if isinstance(item.work, Fold)]
    rest = [item for item in items if not isinstance(item.work, Fold)]
    stages = [(f"fold {number}", list(fold.items), fold.passes) for number, fold in enumerate(folds, 1)]
    stages += [(name, found, 1) for name, found in zip(("questions", "outputs"), split(rest), strict=True) if found]
    return stages


def _phase(name: str, parts: Sequence[Sequence[WorkItem]], cluster: ClusterModel) -> Phase:
    loads: list[Load] = []
    for part in parts:
        load = Load()
        for item in part:
            load = load.add(item)
        loads.append(load)
    times = [_seconds(load, cluster) for load in loads]
    longest = [max(found.values()) for found in times]
    slowest = longest.index(max(longest))
    bound = max(times[slowest], key=lambda resource: times[slowest][resource])
    seconds = longest[slowest]
    if cluster.shared:
        together = sum(load.reads + load.writes for load in loads) / cluster.shared
        if together > seconds:
            seconds, bound = together, "file system"
    return Phase(name, tuple(loads), seconds + CLOSE, slowest, bound)


def _seconds(load: Load, cluster: ClusterModel) -> dict[str, float]:
    """How long each resource of a host is busy."""
    return {
        "reads": load.reads / cluster.reads,
        "writes": load.writes / cluster.writes,
        "streams": load.computed / (cluster.streams * cluster.machine.threads),
        "whole operands": load.flops / cluster.flops,
    }


def count_flops(work: Whole) -> int:
    """Operations of calls on whole operands, as far as shapes tell: for each call two for every element of its largest
    operand and every one of the shorter side of that. A product, a factorization and an iteration are of that order."""
    calls = {call for task in work.tasks for together in task.compute for call in together}
    total = 0
    for call in calls:
        shapes = [s.aval.shape for s in call.srcs] or [a.shape for a in call.avals]
        largest = max(shapes, key=prod)
        total += 2 * prod(largest) * min(largest[-2:], default=1)
    return total
