"""A run over several hosts, as the model of `engine.plan.simulate` has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import get_type_hints

from brainsurgery_jax.api import Explanation
from brainsurgery_jax.documents import Column, Entry, Grid, Record, Text, show_only
from brainsurgery_jax.engine.plan.planner import plan_work
from brainsurgery_jax.engine.plan.projection import projection, refusal_of
from brainsurgery_jax.engine.plan.simulate import ClusterModel, Simulation, simulate
from brainsurgery_jax.engine.plan.sites import calls_of, exceeds
from brainsurgery_jax.engine.plan.work import Machine, Whole, WorkItem, sharers_of
from brainsurgery_jax.store.sizes import parse_size, show_size
from brainsurgery_jax.wording import counted

_PHASES = (
    Column("name", "phase"), Column("seconds", ""), Column("", "seconds"), Column("slowest", "slowest host", "count"),
    Column("bound", "waits for"), Column("bytes_read", "reads", "traffic"),
    Column("bytes_written", "writes", "traffic"),
)  # fmt: skip
_HOSTS = (
    Column("host", "host", "count"), Column("items", "items", "count"), Column("bytes_read", "reads", "traffic"),
    Column("bytes_written", "writes", "traffic"), Column("peak_bytes", "peak", "traffic"),
)  # fmt: skip

SHOWN = 16
"""Hosts that text shows unless all names are."""

OF_THE_MACHINE = {"memory": "host_bytes", "threads": "threads", "devices": "devices", "device_memory": "bytes_each"}
"""What a description says of each host, beside the fields of `ClusterModel`."""


def read_cluster(text: str, found: Explanation, hosts: int) -> ClusterModel:
    """The cluster that a description such as `reads=2GB,shared=40GB,threads=64` stands for, each host else as this one.
    Bandwidths are bytes a second. Raises ValueError."""
    assert found.machine is not None
    kinds = {
        f.name: get_type_hints(ClusterModel)[f.name] for f in fields(ClusterModel) if f.name not in ("hosts", "machine")
    }
    rates, machine = dict[str, float](), dict[str, int]()
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key in OF_THE_MACHINE:
            machine[OF_THE_MACHINE[key]] = int(_number(part, value))
        elif key in kinds:
            rates[key] = _number(part, value)
        else:
            known = ", ".join((*kinds, *OF_THE_MACHINE))
            raise ValueError(f"'{part}' is no part of a cluster; write KEY=VALUE of: {known}")
    return ClusterModel(hosts, replace(found.machine, **machine), **rates)


def _number(part: str, text: str) -> float:
    try:
        number = parse_size(text) if text[-1:] in "bB" and text else float(text)
    except ValueError as bad:
        raise ValueError(f"'{part}': {bad}") from bad
    if number is None or not number > 0:
        raise ValueError(f"'{part}': expected a number above 0")
    return number


def report_hosts(found: Explanation, cluster: ClusterModel, *, everything: bool) -> Record:
    """Phases, which are the critical path, and hosts of a run on a cluster."""
    machine = replace(cluster.machine, processes=cluster.hosts)
    items = plan_work(found.program, machine) if _shares(found, machine) else found.items
    simulation = simulate(items, cluster)
    phases = tuple(
        (p.name, p.seconds, f"{p.seconds:.1f}", p.slowest, p.bound, sum(load.reads for load in p.loads),
         sum(load.writes for load in p.loads)) for p in simulation.phases
    )  # fmt: skip
    hosts = tuple(
        (host, *(sum(getattr(p.loads[host], what) for p in simulation.phases) for what in ("items", "reads", "writes")),
         simulation.peaks[host]) for host in range(cluster.hosts)
    )  # fmt: skip
    left = 0 if everything else max(cluster.hosts - SHOWN, 0)
    by_host = Grid(_HOSTS, hosts, None if everything else SHOWN)
    return Record((
        *show_only(Text(f"\n{counted(cluster.hosts, 'host')}: {_headline(simulation)}")),
        *show_only(_shared(items), _refused(items, machine)),
        Entry("seconds", simulation.seconds), Entry("imbalance", simulation.imbalance),
        Entry("phases", Grid(_PHASES, phases), Grid(_PHASES, phases) if phases else None),
        Entry("hosts", by_host, by_host),
        *show_only(Text(f"and {counted(left, 'more host')}: --all shows them") if left else None),
    ))  # fmt: skip


def _shares(found: Explanation, machine: Machine) -> bool:
    """Whether a call needs more memory than one of these hosts has: then other work is planned than for one."""
    tasks = (task for item in found.items if isinstance(item.work, Whole) for task in item.work.tasks)
    return any(exceeds(call, machine) for task in tasks for call in calls_of(task))


def _shared(items: Iterable[WorkItem]) -> Text | None:
    """What several hosts compute together."""
    sharers = [n for n in map(sharers_of, items) if n > 1]
    if not sharers:
        return None
    return Text(f"{counted(len(sharers), 'item')} of work on {max(sharers)} hosts together, none of which can hold it")


def _refused(items: Sequence[WorkItem], machine: Machine) -> Text | None:
    """Why these hosts would not run the plan."""
    refusal = refusal_of(items, machine, projection(items, machine).largest)
    return None if refusal is None else Text(f"refused: {refusal.message}")


def _headline(simulation: Simulation) -> str:
    seconds, most = simulation.seconds, max(simulation.peaks, default=0)
    time = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{time} by the model, largest part {simulation.imbalance:.2f} x the mean, peak {show_size(most)} on a host"
