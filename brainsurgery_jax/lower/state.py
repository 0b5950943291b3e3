"""The state that the fold threads through the steps: immutable, so that a failed step or an undo costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.lower.program import Check, Effect, Publication
from brainsurgery_jax.plan.model import Plan
from brainsurgery_jax.store.base import Source


@dataclass(frozen=True, slots=True)
class Space:
    """The tensors of one alias, in state-dict order, with how often each was read and written.

    `origin` is the checkpoint that the alias came from. `tainted`: an earlier step on it failed, so what it holds is
    not known, and what seems to be missing may not be. `unknown` names what failed steps would have made
    or changed.
    """

    names: Mapping[str, Expr]
    origin: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    reads: Mapping[str, int] = field(default_factory=dict)
    writes: Mapping[str, int] = field(default_factory=dict)
    tainted: bool = False
    unknown: frozenset[str] = frozenset()


class Draft:
    """A space being edited: its own copies of what changes."""

    __slots__ = ("metadata", "names", "origin", "reads", "tainted", "unknown", "writes")

    def __init__(self, space: Space):
        self.names, self.reads, self.writes = dict(space.names), dict(space.reads), dict(space.writes)
        self.origin, self.metadata, self.tainted, self.unknown = (
            space.origin, space.metadata, space.tainted, space.unknown,
        )  # fmt: skip

    def freeze(self) -> Space:
        return Space(self.names, self.origin, self.metadata, self.reads, self.writes, self.tainted, self.unknown)


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is so after some steps.

    - `known` holds numbers computed for steps whose shapes depend on data, `written` the aliases that steps wrote to.
    - `images` are what was saved under which path (None: a step failed that may have saved it).
    - `doubtful`: a part of the plan that makes aliases is wrong, so there may be others than it seems.
    """

    spaces: Mapping[str, Space]
    default_alias: str | None = None
    seed: int = 0
    known: Mapping[Expr, int] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    images: Mapping[str, Mapping[str, Expr] | None] = field(default_factory=dict)
    stopped: bool = False
    doubtful: bool = False
    checks: tuple[Check, ...] = ()
    publications: tuple[Publication, ...] = ()
    effects: tuple[Effect, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()

    def complain(self, *found: Diagnostic) -> State:
        """This state with more diagnostics."""
        return replace(self, diagnostics=self.diagnostics + found)


class World(Protocol):
    """All that lowering may ask of the outside: headers of checkpoints, and whether a destination can be written.

    `provisional`: numbers that only data can tell are taken at their bounds (check, explain) instead of being demanded.
    `default_shard`: the largest file of an output folder whose plan gives no size.
    """

    graph: Graph
    provisional: bool
    default_shard: str

    def open(self, path: str) -> Source: ...
    def check_destination(self, path: str, nbytes: int, *, overwrite: bool) -> None: ...
    def key(self, path: str) -> str: ...


def opened(world: World, path: str) -> Space:
    """The space of a checkpoint: one leaf per tensor, from its header. Raises StoreError."""
    source = world.open(path)
    header = source.header
    names = {name: world.graph.leaf(source, name, info.aval) for name, info in header.tensors.items()}
    return Space(names, path, header.metadata)


def start(plan: Plan, world: World) -> State:
    """The state before the first step: the plan's inputs, their headers read."""
    spaces: dict[str, Space] = {}
    problems: list[Diagnostic] = []
    for entry in plan.inputs:
        if not entry.path:  # the parser has told what is wrong with it
            spaces[entry.alias] = Space({}, tainted=True)
            continue
        try:
            spaces[entry.alias] = opened(world, entry.path)
        except StoreError as bad:
            spaces[entry.alias] = Space({}, tainted=True)
            problems.append(unreadable(bad, entry))
    return State(spaces, plan.default_alias, plan.seed, doubtful=plan.doubtful, diagnostics=tuple(problems))


def unreadable(bad: StoreError, entry: object) -> Diagnostic:
    """A store's bad news as a diagnostic at the place in the plan that names the checkpoint."""
    where = f"{bad.path}: tensor '{bad.tensor}'" if bad.tensor is not None else bad.path
    return Diagnostic("io-input", f"{where}: {bad.problem}", getattr(entry, "span", None), bad.remedy)
