"""A run on several processes: which items are whose, and what they tell each other of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from brainsurgery_jax.engine.compute.devices import Accelerators
from brainsurgery_jax.engine.compute.kernels import exact
from brainsurgery_jax.engine.compute.ladder import Taken
from brainsurgery_jax.engine.compute.operands import Operand
from brainsurgery_jax.engine.compute.placement import fetch
from brainsurgery_jax.engine.compute.sharding import TooLarge, call_sharded
from brainsurgery_jax.engine.plan.assign import assign, split
from brainsurgery_jax.engine.plan.schedule import Asked, Root, taking_alone, with_holes
from brainsurgery_jax.engine.plan.work import Whole, WorkItem, questions_of, sharers_of
from brainsurgery_jax.engine.run.answers import pack, unpack
from brainsurgery_jax.engine.run.hosts import Hosts
from brainsurgery_jax.engine.run.perform import Bench
from brainsurgery_jax.errors import Diagnostic, PlanError, worded
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.store.sizes import show_size


class Stage(NamedTuple):
    """Items of a run after which all processes wait for each other: those of this process, those of the others, and
    those of both that this one computes together with others, which come first."""

    mine: list[WorkItem]
    others: list[WorkItem]
    shared: list[WorkItem]


def stages(items: Sequence[WorkItem], hosts: Hosts) -> Iterator[Stage]:
    """The stages of a run. What only reads comes first, so that a failing assert stops all before they write."""
    for together in split(items):
        stage = Stage([], [], [])
        for item, home in zip(together, assign(together, hosts.count), strict=True):
            (stage.mine if home == hosts.number else stage.others).append(item)
            if hosts.number < sharers_of(item) > 1:
                stage.shared.append(item)
        yield stage


class SharedCalls:
    """The processes that compute the calls of an item together: the first of the run, as a mesh of their devices. Of
    accelerators there are `own` in each; without them each process is one device, with so many bytes."""

    def __init__(self, item: WorkItem, hosts: Hosts, own: Accelerators, nbytes: int):
        assert isinstance(item.work, Whole)
        self.calls, self._sharers, self._key = item.work.shared, item.work.sharers, item.key
        self._hosts, self._own, self._nbytes = hosts, own, nbytes

    def compute(self, call: Expr, operands: Sequence[Operand]) -> Taken:
        """Run a call on the devices of all. Raises StoreError if a process is lost, and PlanError."""
        devices = self._hosts.devices(self._sharers, len(self._own.devices))
        mesh = Accelerators(devices, self._own.bytes_each if self._own.devices else self._nbytes)
        topic = f"{self._key}/{self.calls.index(call)}"

        def compute() -> Taken | None:
            with exact():
                return call_sharded(call, operands, mesh, lambda cut: self._hosts.meet(f"{topic}/{cut}", self._sharers))

        try:
            taken = self._hosts.watch(compute)
        except TooLarge:
            raise PlanError([self._refuse(call, "is not cut into parts that fit")]) from None
        if taken is None:
            raise PlanError([self._refuse(call, "finds no result that it certifies")])
        return fetch(taken)

    def _refuse(self, call: Expr, why: str) -> Diagnostic:
        assert call.kernel is not None
        names = ", ".join(dict.fromkeys(f"'{e.name}'" for e in walk([call]) if e.is_leaf))
        alone, there = show_size(with_holes(taking_alone(call))), show_size(self._nbytes)
        found = f"{call.kernel.name} of {names} on {self._sharers} processes {why}"
        found += f"; alone it needs {alone} of memory, a process has {there}"
        more = worded(shell="`--memory`", python="`memory=`")
        return Diagnostic("budget-exceeded", found, call.span, f"Give each process that much: {more}.")


def exchange(items: Iterable[WorkItem], roots: Iterable[Root], bench: Bench) -> None:
    """Tell the others the answers that these items of ours gave, and take theirs. Raises PlanError for an assert that
    fails, on all processes the same."""
    questions = {root.number: root.question for root in roots if isinstance(root, Asked)}
    own = {n: bench.verdicts.answers[questions[n]] for item in items for n in questions_of(item.work)}
    said = bench.hosts.gather("answers", pack(own))
    bench.verdicts.learn({questions[n]: answer for data in said for n, answer in unpack(data).items()})


def agree_on_kept(kept: Collection[str], hosts: Hosts) -> frozenset[str]:
    """The keys of the items that are done, as process 0 has found."""
    if hosts.count == 1:
        return frozenset(kept)
    return frozenset(json.loads(hosts.gather("kept", json.dumps(sorted(kept)).encode())[0]))


def digest_keys(items: Iterable[WorkItem]) -> str:
    """What is the same for all processes that plan the same work."""
    digest = blake2b(digest_size=16)
    for item in items:
        digest.update(f"{item.key} {item.reads} {item.writes}\n".encode())
    return digest.hexdigest()
