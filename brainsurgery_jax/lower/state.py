"""The state that the fold threads through the steps: immutable, so that a failed step or an undo costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.lower.program import Check, Effect, Publication
from brainsurgery_jax.lower.trees import TreeDraft
from brainsurgery_jax.plan.model import Input, PlanData, Step
from brainsurgery_jax.protocol import NO_FLAGS, Flags
from brainsurgery_jax.select import Match, Pattern, Ref, compile_pattern
from brainsurgery_jax.store.base import Header, Source
from brainsurgery_jax.store.key_tree import NO_TREE, KeyTree
from brainsurgery_jax.store.replacing import Replacement
from brainsurgery_jax.store.sidecars import SideFiles, is_of_tokenizer
from brainsurgery_jax.wording import few


@dataclass(frozen=True, slots=True)
class Extras:
    """What an alias holds beside its tensors.

    - `origin`: the checkpoint whose side files belong to the alias; None if the alias was created empty.
    - `metadata`: the header metadata.
    - `tree`: the tree that the tensors lie in, with its leaves that hold none. It follows the names of tensors.
    - `configs`: the configs that steps changed, by file name. Other configs are as they lie beside `origin`, and are
      read when they are asked for.
    - `doubtful`: a step that changes configs failed, so their values are unknown.
    - `tokenizer`: the checkpoint whose tokenizer the alias has; None: that of `origin`.
    - `made_tokenizer`: the files of a tokenizer that a step made, in place of any other.
    """

    origin: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    doubtful: bool = False
    tree: KeyTree = NO_TREE
    tokenizer: str | None = None
    made_tokenizer: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def has_new_tokenizer(self) -> bool:
        """Whether its tokenizer is not the one beside `origin`."""
        return self.tokenizer is not None or bool(self.made_tokenizer)

    @property
    def without_tokenizer(self) -> Extras:
        """These extras without what steps changed in files of the tokenizer."""
        return replace(self, configs={file: c for file, c in self.configs.items() if not is_of_tokenizer(file)})

    def home_of(self, name: str) -> str | None:
        """The checkpoint beside which a side file of that name lies."""
        if self.made_tokenizer and is_of_tokenizer(name):
            return None
        return self.tokenizer if self.tokenizer is not None and is_of_tokenizer(name) else self.origin

    def borrow(self, others: Iterable[Extras]) -> Extras:
        """These extras as outputs see them: an alias without a checkpoint of its own takes the side files and configs
        of the first of `others` that has one. Its own configs win."""
        donor = None if self.origin is not None else next((e for e in others if e.origin is not None), None)
        if donor is None:
            return self
        donor = donor.without_tokenizer if self.has_new_tokenizer else donor
        return replace(
            self,
            origin=donor.origin,
            configs={**donor.configs, **self.configs},
            doubtful=self.doubtful or donor.doubtful,
            tokenizer=self.tokenizer or donor.tokenizer,
            made_tokenizer=self.made_tokenizer or donor.made_tokenizer,
        )


@dataclass(frozen=True, slots=True)
class Space:
    """The tensors of one alias, in state-dict order, with how often each was read and written.

    `extras` is what the alias holds beside them. `tainted`: an earlier step failed here, so its names are
    unreliable; a name that seems missing may exist. `unknown`: names that failed steps would have created or changed.
    `original`: the tensors that the alias was created with; `grown`: its tree then (None: unchanged since).
    """

    names: Mapping[str, Expr]
    extras: Extras = Extras()
    reads: Mapping[str, int] = field(default_factory=dict)
    writes: Mapping[str, int] = field(default_factory=dict)
    tainted: bool = False
    unknown: frozenset[str] = frozenset()
    original: Mapping[str, Expr] | None = None
    grown: KeyTree | None = None


@lru_cache(maxsize=4096)
def pattern_of(name: str | tuple[str, ...]) -> Pattern:
    """The pattern that the name of a reference spells, compiled once. Raises Refusal."""
    return compile_pattern(name)


def matching(ref: Ref, names: Mapping[str, Expr]) -> list[Match]:
    """The tensors that a reference matches by name and kind, sorted, with the captures of each name. Tensors of a
    failed step may be of any kind. Raises Refusal."""
    found = pattern_of(ref.name).matches(names)
    return found if ref.kind is None else [match for match in found if is_meant(ref, names[match[0]])]


def is_meant(ref: Ref, expr: Expr) -> bool:
    """Whether a tensor is of the kind that a reference asks for."""
    return expr.is_poison or ref.takes(expr.aval.dtype)


class Draft:
    """A space while it is edited, with copies of its mutable parts."""

    __slots__ = ("_tree", "extras", "grown", "names", "original", "reads", "tainted", "unknown", "writes")

    def __init__(self, space: Space):
        self.names, self.reads, self.writes = dict(space.names), dict(space.reads), dict(space.writes)
        self.extras, self.tainted, self.unknown = space.extras, space.tainted, space.unknown
        self.original = space.names if space.original is None else space.original
        self.grown = space.extras.tree if space.grown is None else space.grown
        self._tree: TreeDraft | None = None

    @property
    def tree(self) -> TreeDraft:
        """The tree, for changes."""
        if self._tree is None:
            self._tree = TreeDraft(self.extras.tree)
        return self._tree

    @property
    def leaves(self) -> KeyTree | TreeDraft:
        """The tree, read-only."""
        return self._tree or self.extras.tree

    @property
    def key_tree(self) -> KeyTree:
        """The current tree."""
        return self.extras.tree if self._tree is None else self._tree.freeze(self.names)

    def rename(self, renamed: Mapping[str, str | None]) -> None:
        """Give tensors other names, at their places; None removes them. Counts of the old names are forgotten."""
        named = dict(zip(map(renamed.get, self.names, self.names), self.names.values(), strict=True))
        named.pop(None, None)
        self.names = cast("dict[str, Expr]", named)
        self.reads, self.writes = (
            {name: times for name, times in counts.items() if name not in renamed}
            for counts in (self.reads, self.writes)
        )

    def freeze(self) -> Space:
        extras = self.extras if self._tree is None else replace(self.extras, tree=self.key_tree)
        return Space(self.names, extras, self.reads, self.writes, self.tainted, self.unknown, self.original, self.grown)


@dataclass(frozen=True, slots=True)
class State:
    """The state after some steps.

    - `known`: numbers computed for steps whose shapes depend on data.
    - `written`: the aliases that the plan's own steps wrote to; `written_within`: those that inner plans wrote to.
    - `images`: the saved tensors by path (None: a step failed that may have saved there).
    - `doubtful`: a faulty part of the plan creates aliases, so aliases that seem missing may exist.
    - `before_dry_run`: the state to restore when a dry run is turned off; `nested`: inside `execute`.
    - `within`: the steps around the steps at work, outermost first; `scratch`: the aliases that end with one
      of them.
    """

    spaces: Mapping[str, Space]
    default_alias: str | None = None
    seed: int = 0
    flags: Flags = NO_FLAGS
    before_dry_run: State | None = None
    nested: bool = False
    within: tuple[Step, ...] = ()
    scratch: frozenset[str] = frozenset()
    known: Mapping[Expr, int] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    written_within: frozenset[str] = frozenset()
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

    @property
    def writes(self) -> frozenset[str]:
        """The aliases that steps wrote to: those of the plan itself, or of the inner plan at work."""
        return self.written_within if self.nested else self.written

    def with_writes(self, aliases: Iterable[str]) -> State:
        """This state with other `writes`."""
        if self.nested:
            return replace(self, written_within=frozenset(aliases))
        return replace(self, written=frozenset(aliases))

    def drop_scratch(self, scratch: frozenset[str]) -> State:
        """This state without the scratch aliases of its last step."""
        if not scratch:
            return self
        *earlier, own = self.effects
        kept = {alias: space for alias, space in self.spaces.items() if alias not in scratch}
        after = replace(self, spaces=kept, effects=(*earlier, own.without(scratch)))
        return after.with_writes(after.writes - scratch)

    def with_checks(self, checks: tuple[Check, ...]) -> State:
        """This state with other checks."""
        return replace(self, checks=checks)

    def with_flags(self, flags: Flags) -> State:
        """This state with other flags. Turning a dry run on remembers the state; turning it off restores it."""
        if flags.dry_run == self.flags.dry_run:
            return replace(self, flags=flags)
        if flags.dry_run:
            return replace(self, flags=flags, before_dry_run=self)
        assert self.before_dry_run is not None
        return replace(
            self.before_dry_run, flags=flags, known=self.known, nested=self.nested, within=self.within,
            scratch=self.scratch, default_alias=self.default_alias,
            checks=self.checks, effects=self.effects, diagnostics=self.diagnostics,
        )  # fmt: skip


class Demand(NamedTuple):
    """Numbers that depend on data and that `step` needs. `state`: the state before that step."""

    exprs: tuple[Expr, ...]
    step: Step
    state: State


Answer = Callable[[Demand], Mapping[Expr, int]]
"""Computes all numbers of a demand, or none; then the step uses their bounds. May raise."""


def take_bounds(demand: Demand) -> Mapping[Expr, int]:
    """Compute no number, as `check` and `explain` do."""
    return {}


class World(Protocol):
    """The interface of lowering to the file system: headers of checkpoints, and whether a destination can be written.

    `default_shard`: the largest file of an output folder whose plan gives no size.
    """

    graph: Graph
    default_shard: str

    def open(self, path: str, format: str | None = None) -> Source: ...
    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> Replacement | None: ...
    def key(self, path: str) -> str: ...
    def side_file(self, checkpoint: str, name: str) -> bytes | None: ...
    def side_files(self, checkpoint: str) -> SideFiles | None: ...


def open_space(world: World, path: str, format: str | None = None) -> Space:
    """The space of a checkpoint: one leaf per tensor, from its header. Raises StoreError."""
    source = world.open(path, format)
    header = source.header
    names = {name: world.graph.leaf(source, name, info.aval) for name, info in header.tensors.items()}
    return Space(names, Extras(path, header.plain_metadata, tree=header.tree))


def start(plan: PlanData, world: World, flags: Flags = NO_FLAGS) -> State:
    """The state before the first step: the plan's inputs, their headers read."""
    spaces: dict[str, Space] = {}
    problems: list[Diagnostic] = []
    for entry in plan.inputs:
        if not entry.path:  # the parser has reported its mistake
            spaces[entry.alias] = Space({}, tainted=True)
            continue
        try:
            spaces[entry.alias] = open_space(world, entry.path)
            problems += _note_left_out(world.open(entry.path).header, entry)
            problems += (note.at(entry.span) for note in world.open(entry.path).header.notes)
        except StoreError as bad:
            spaces[entry.alias] = Space({}, tainted=True)
            problems.append(unreadable(bad, entry))
    begun = State(spaces, plan.default_alias, plan.seed, doubtful=plan.doubtful, diagnostics=tuple(problems))
    return begun.with_flags(flags)


def describe_left_out(header: Header) -> str:
    """The entries of a checkpoint that are no tensors, in words; empty if there are none. Values are never shown."""
    if not header.left_out:
        return ""
    kept = ", unless an output's `keep` names them" if header.nesting is not None else ""
    return f"{header.path} holds entries that are no tensors; they are left out{kept}: {few([*header.left_out])}"


def _note_left_out(header: Header, entry: Input) -> Iterator[Diagnostic]:
    if told := describe_left_out(header):
        yield Diagnostic("input-left-out", told, entry.span, severity="note")


def unreadable(bad: StoreError, entry: object) -> Diagnostic:
    """A store's error as a diagnostic, at the place in the plan that names the checkpoint."""
    where = f"{bad.path}: tensor '{bad.tensor}'" if bad.tensor is not None else bad.path
    head, colon, rest = bad.path.partition(":")
    single = colon and head.isidentifier() and not rest.startswith((":", "\\", "/"))
    remedy = f"An alias is set off by two colons: '{head}::{rest}'." if single else bad.remedy
    return Diagnostic("io-input", f"{where}: {bad.problem}", getattr(entry, "span", None), remedy)
