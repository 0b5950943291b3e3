"""What the processes of a run must agree on before they read: the program, and what each may use of its machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from brainsurgery_jax.engine.run.budget import Budget, machine_identity, processors
from brainsurgery_jax.engine.run.hosts import Gathering
from brainsurgery_jax.errors import StoreError


def share_machine(hosts: Gathering, budget: Budget) -> Budget:
    """The budget of one of several processes: of what their machine has, its share.

    Processes of one machine divide its memory evenly, and those that may use the same processors divide these. What is
    decided by the memory must be decided alike, so all processes take the smallest share of any.
    """
    if hosts.count == 1:
        return budget
    own = json.dumps([machine_identity(), budget.host_bytes, sorted(processors())])
    said = [
        _Place(name, nbytes, frozenset(cpus))
        for name, nbytes, cpus in map(json.loads, hosts.gather("machine", own.encode()))
    ]
    mine = said[hosts.number]
    together = [place for place in said if place.name == mine.name]
    rivals = sum(not place.processors.isdisjoint(mine.processors) for place in together)
    there = Counter(place.name for place in said)
    return budget._replace(
        host_bytes=min(place.host_bytes // there[place.name] for place in said),
        threads=max(1, budget.threads // rivals),
        sharing=len(together),
    )


class _Place(NamedTuple):
    """Where a process runs: the machine, the memory that it may use there, and the processors."""

    name: str
    host_bytes: int
    processors: frozenset[int]


def agree(hosts: Gathering, about: str, own: Mapping[str, str]) -> None:
    """Raise StoreError, on all processes, unless all say the same of each kind."""
    said = [json.loads(data) for data in hosts.gather(about, json.dumps(own).encode())]
    for number, other in enumerate(said):
        if differing := [kind for kind in said[0] if other.get(kind) != said[0][kind]]:
            problem = f"process {number} has other {' and '.join(differing)} than process 0"
            remedy = "Give all processes the same plan, inputs, versions and kind of machine. Nothing was read."
            raise StoreError("--distributed", problem, remedy=remedy)
