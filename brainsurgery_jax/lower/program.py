"""The result of lowering: the checks to perform, the checkpoints to write, and the effects of every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from brainsurgery_jax.documents import Text
from brainsurgery_jax.errors import Diagnostic, Span
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.protocol import NO_FLAGS, Flags, Pending, PendingReport, Verdict, pendings, report
from brainsurgery_jax.store.base import Held, Nest
from brainsurgery_jax.store.formats import SAFETENSORS, Format
from brainsurgery_jax.store.key_tree import NO_TREE, KeyTree
from brainsurgery_jax.store.replacing import Replacement
from brainsurgery_jax.store.sidecars import SideFiles


class Check(NamedTuple):
    """An assert that needs values, or a report that waits for its turn in the plan. `logged`: the report exists because
    of the flag `verbose`, and is not a result of the step."""

    step: Step
    says: Verdict | PendingReport
    logged: bool = False

    @property
    def questions(self) -> tuple[Pending, ...]:
        """The reductions whose answers it waits for."""
        return self.says.pending if isinstance(self.says, PendingReport) else tuple(pendings(self.says))


def log(step: Step, text: str) -> Check:
    """A report of one line, printed because of a flag of the session."""
    return Check(step, report(Text(text)), logged=True)


class Publication(NamedTuple):
    """A checkpoint to write: its tensors in order, and everything else in the file or folder."""

    path: str
    directory: bool
    tensors: Mapping[str, Expr]
    metadata: Mapping[str, str]
    shard_bytes: int | None
    sidecars: SideFiles | None
    overwrite: bool
    span: Span | None
    format: Format = SAFETENSORS
    options: Mapping[str, Any] = {}
    keep_files: bool = False  # files of sharded inputs may be kept: the plan asks for no shard size
    side_files: Mapping[str, bytes] = {}  # by name in the folder; in place of those that are copied (`sidecars`)
    replaces: Replacement | None = None  # the checkpoint that is at the path now
    nest: Nest | None = None  # where tensors go in a format with containers, if they go back into those of their input
    tree: KeyTree = NO_TREE  # where they go in a format with trees
    kept: Mapping[str, Held] = {}  # tensors that a delta leaves in its base, all of one checkpoint
    alias: str = ""  # whose tensors they are

    @property
    def side_names(self) -> tuple[str, ...]:
        """The side files of the output, as relative paths."""
        return tuple(dict.fromkeys((*(self.sidecars.copied if self.sidecars else ()), *self.side_files)))

    @property
    def written(self) -> Mapping[str, Expr]:
        """The tensors that will be written."""
        return {n: e for n, e in self.tensors.items() if n not in self.kept} if self.kept else self.tensors

    @property
    def nbytes(self) -> int:
        """Tensor bytes that will be written."""
        return sum(e.aval.nbytes for e in self.written.values())

    @property
    def disk_bytes(self) -> int:
        """The most bytes that it takes on disk while it is written: a scratch file holds computed tensors."""
        scratch = sum(e.aval.nbytes for e in self.written.values() if not e.is_leaf) if self.format.encoded else 0
        return self.nbytes + scratch


class Effect(NamedTuple):
    """What a step did to the names, as `alias::name`.

    `configured`: the keys of configs that it changed, as `alias::key`, with dots to inner keys; `skipped`: matches that
    it left out, since something that it needs is missing (`if_missing: skip`); `staged`: its shapes depend on values
    that a run computes before it; `inner`: what the steps did that it expanded to, or that stand in a plan within it.
    """

    step: Step
    created: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()
    skipped: int = 0
    staged: bool = False
    inner: tuple[Effect, ...] = ()

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Effect]]:
        """This effect and all its inner effects, outer ones first, each with its depth."""
        yield depth, self
        for effect in self.inner:
            yield from effect.walk(depth + 1)

    def without(self, aliases: Collection[str]) -> Effect:
        """This effect and its inner effects, without the names of these aliases."""

        def keep(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if name.partition("::")[0] not in aliases)

        return self._replace(
            created=keep(self.created), changed=keep(self.changed), deleted=keep(self.deleted),
            configured=keep(self.configured), inner=tuple(effect.without(aliases) for effect in self.inner),
        )  # fmt: skip


def flatten(effects: Iterable[Effect]) -> Iterator[Effect]:
    """Effects and all their inner effects, in order."""
    return (effect for outer in effects for _, effect in outer.walk())


class Program(NamedTuple):
    """A lowered plan. With errors among the diagnostics it must not run."""

    checks: tuple[Check, ...]
    publications: tuple[Publication, ...]
    effects: tuple[Effect, ...]
    diagnostics: tuple[Diagnostic, ...]
    flags: Flags = NO_FLAGS
    """The flags after the last step."""

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.diagnostics if d.severity == "error")

    @property
    def sizes(self) -> Mapping[str, int]:
        """The bytes written for each tensor name, summed over all outputs."""
        sizes: Counter[str] = Counter()
        for p in self.publications:
            for name, e in p.tensors.items():
                sizes[name] += e.aval.nbytes
        return sizes
