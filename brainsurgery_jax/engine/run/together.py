"""A run on several processes: which items are whose, and what they tell each other of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b

from brainsurgery_jax.engine.plan.assign import assign, split
from brainsurgery_jax.engine.plan.schedule import Asked, Root
from brainsurgery_jax.engine.plan.work import WorkItem, questions_of
from brainsurgery_jax.engine.run.answers import pack, unpack
from brainsurgery_jax.engine.run.hosts import Hosts
from brainsurgery_jax.engine.run.perform import Bench


def stages(items: Sequence[WorkItem], hosts: Hosts) -> Iterator[tuple[list[WorkItem], list[WorkItem]]]:
    """The items of this process and those of the others, by stages after which all wait for each other. What only reads
    comes first, so that a failing assert stops all before they write."""
    for together in split(items):
        mine: list[WorkItem] = []
        others: list[WorkItem] = []
        for item, home in zip(together, assign(together, hosts.count), strict=True):
            (mine if home == hosts.number else others).append(item)
        yield mine, others


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
