"""What is audited as one value: a plan as plain data, and small stand-ins for its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from brainsurgery_jax.api import Plan, load
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.plan.source import flow_yaml
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.store.key_tree import NO_TREE, KeyTree

if TYPE_CHECKING:
    import numpy as np

Data = Mapping[str, Any]
Path = tuple[str | int, ...]
ASSERT = "assert"
CONFIG = "config.json"


class StandIn(NamedTuple):
    """A small checkpoint in memory, in place of the one at `path`. `side`: its side files by relative name."""

    path: str
    tensors: Mapping[str, np.ndarray]
    avals: Mapping[str, Aval]
    metadata: Mapping[str, str] = {}
    tree: KeyTree = NO_TREE
    side: Mapping[str, bytes] = {}

    def with_tensors(self, changed: Mapping[str, np.ndarray], avals: Mapping[str, Aval] = {}) -> StandIn:
        """The same with other values, and with other shapes and dtypes where `avals` says so."""
        return self._replace(tensors={**self.tensors, **changed}, avals={**self.avals, **avals})

    def without(self, names: Iterable[str]) -> StandIn:
        """The same without some tensors."""
        gone = frozenset(names)
        return self._replace(tensors={n: x for n, x in self.tensors.items() if n not in gone},
                             avals={n: x for n, x in self.avals.items() if n not in gone})  # fmt: skip


class Case(NamedTuple):
    """A plan as data, its variables filled in, and the stand-ins that it reads, by `key_of` their paths.

    `inputs`: (alias, path) in order. The steps are those of the plan as it is written, one mapping each.
    """

    inputs: tuple[tuple[str, str], ...]
    steps: tuple[Data, ...]
    outputs: tuple[Any, ...]
    seed: int
    stand_ins: Mapping[str, StandIn]

    def plan(self) -> Plan:
        """The plan, loaded."""
        inputs = [f"{alias}::{path}" for alias, path in self.inputs]
        data = {"inputs": inputs, "transforms": list(self.steps), "outputs": list(self.outputs), "seed": self.seed}
        return load({key: value for key, value in data.items() if value != []})

    def replace_step(self, at: int, *steps: Data) -> Case:
        """The same with other steps in place of one."""
        return self._replace(steps=(*self.steps[:at], *steps, *self.steps[at + 1 :]))

    def replace_stand_in(self, key: str, stand_in: StandIn) -> Case:
        """The same with another checkpoint at a path."""
        return self._replace(stand_ins={**self.stand_ins, key: stand_in})

    def put(self, at: int, path: Path, value: object) -> Case:
        """The same with another value at a place within a step."""
        return self.replace_step(at, put(self.steps[at], path, value))

    @property
    def default_alias(self) -> str:
        """The alias that names mean which name none: that of the only input; or empty."""
        return self.inputs[0][0] if len(self.inputs) == 1 else ""

    def edits(self) -> Iterator[tuple[int, str, Data]]:
        """The steps that are no asserts: number, op, and the keys of the payload, none of one that is a text."""
        for at, step in enumerate(self.steps):
            (op, payload), *_ = step.items()
            if op != ASSERT:
                yield at, op, payload if isinstance(payload, Mapping) else {}


class Mutant(NamedTuple):
    """A case with one error in it. `what`: where it is, and what was put in place of what."""

    what: str
    case: Case


class Mutator(NamedTuple):
    """A way to plant an error. `plant` yields mutants, none where it does not apply to the case. `kind`: the class of
    errors that it belongs to."""

    name: str
    kind: str
    plant: Callable[[Case], Iterable[Mutant]]


def key_of(path: str) -> str:
    """One spelling for every way to write the path of a checkpoint; its parts are checkpoints of their own."""
    address = parse_address(path)
    return str(address._replace(path=os.path.realpath(address.path)))


def config_of(side: Mapping[str, bytes]) -> Mapping[str, Any]:
    """What the config.json among side files says; nothing if it is none, or damaged, which `check` tells."""
    try:
        found = parse_json(side.get(CONFIG, b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


def from_plan(plan: Plan, stand_ins: Mapping[str, StandIn]) -> Case:
    """The case of a plan as it is."""
    data = plan.data
    steps = tuple(step.summary for step in data.steps)
    inputs = tuple((each.alias, each.path) for each in data.inputs)
    return Case(inputs, steps, tuple(output.plain() for output in data.outputs), data.seed, stand_ins)


def put(data: Any, path: Path, value: object) -> Any:
    """Plain data with another value at a place."""
    if not path:
        return value
    head, *rest = path
    if isinstance(data, Mapping):
        return {key: put(item, tuple(rest), value) if key == head else item for key, item in data.items()}
    return [put(item, tuple(rest), value) if at == head else item for at, item in enumerate(data)]


def leaves(data: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The scalars of plain data, with their places."""
    if isinstance(data, Mapping):
        for key, item in data.items():
            yield from leaves(item, (*path, key))
    elif isinstance(data, Sequence) and not isinstance(data, str):
        for at, item in enumerate(data):
            yield from leaves(item, (*path, at))
    else:
        yield path, data


def show(step: object) -> str:
    """A step on one line, as a plan writes it."""
    text = flow_yaml(step).strip()
    return text[1:-1] if text.startswith("{") else text


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, evenly over all of them."""
    if len(items) <= most:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * most)] for i in range(most)]
