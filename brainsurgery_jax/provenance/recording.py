"""Recording a run: what it reads and writes becomes the lock of each output, or is compared with a lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple

from brainsurgery_jax.engine.plan.schedule import exprs_of, roots_of
from brainsurgery_jax.engine.run.budget import Budget
from brainsurgery_jax.engine.run.execute import choose_accelerators
from brainsurgery_jax.engine.run.staging import Handling
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError, worded
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.lower.origins import Origins
from brainsurgery_jax.lower.program import Program, Publication
from brainsurgery_jax.plan.model import PlanData
from brainsurgery_jax.plan.resolved import resolve
from brainsurgery_jax.plan.source import Map, get, public
from brainsurgery_jax.provenance.digests import locked_digests
from brainsurgery_jax.provenance.lock import (
    Lock,
    LockedFile,
    LockedInput,
    LockedTensor,
    differing_tensors,
    differing_versions,
    sha256_of,
    versions_of,
)
from brainsurgery_jax.provenance.paths import hides_environment, map_step_path, relate
from brainsurgery_jax.provenance.places import check_places, place_of
from brainsurgery_jax.provenance.watching import WatchedSource, WatchedWriter
from brainsurgery_jax.store.address import is_remote
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import Source, Writer
from brainsurgery_jax.store.delta.source import open_alone
from brainsurgery_jax.store.folder import DELTA_MANIFEST, LOCKFILE
from brainsurgery_jax.store.io.files import Commit, StagedOutput
from brainsurgery_jax.store.io.local import fsync_path
from brainsurgery_jax.store.replacing import resolve as resolve_path

SHOWN = 5


class Wish(NamedTuple):
    """What a run is recorded for: `write` locks, with `sha256` the SHA-256 of files of weights in them, and that of the
    only output at `path` (None: beside it); `expected`: the locks that its outputs must agree with, by path. `folders`:
    at least outputs that are folders get one; without `digests` it has what headers say, and no tensor is read for it.
    """

    write: bool
    path: str | None = None
    sha256: bool = False
    expected: Mapping[str, Lock] = MappingProxyType({})
    folders: bool = False
    digests: bool = True


HEADERS_ONLY = Wish(write=False, folders=True, digests=False)
"""What runs are recorded for that ask for nothing."""


class Recording:
    """The record of one run. `watch_source`, `origins` and `handle` are passed to what reads, lowers and writes;
    `begin` is called in between."""

    def __init__(self, data: PlanData, document: Map | None, wish: Wish, budget: Budget):
        self._data, self._document, self._wish, self._budget = data, document, wish, budget
        self._sources: dict[Source, None] = {}
        self._digests: dict[tuple[Source, str], bytes] = {}
        self._writers: dict[int, WatchedWriter] = {}
        self._expected: Mapping[int, tuple[str, Lock]] = {}
        self._program: Program | None = None
        self._aliases: Mapping[int, str] = {}
        self._versions: Mapping[str, str] = {}
        self._say = cache(str)  # layers repeat shapes
        self.origins = Origins()

    def watch_source(self, source: Source) -> Source:
        """The source, watched if digests are wanted."""
        watched = WatchedSource(source) if self._wish.digests else source
        self._sources[watched] = None
        return watched

    def begin(self, program: Program, inputs: Mapping[str, Source]) -> None:
        """Compare what is known before anything is read, and look at the places of the locks. `inputs` are the
        checkpoints by alias. Raises PlanError and StoreError."""
        self._program, self._aliases = program, {id(source): alias for alias, source in reversed(list(inputs.items()))}
        if not self._wish.digests and not any(map(_may_carry, program.publications)):
            return
        backend = choose_accelerators(exprs_of(roots_of(program)), self._budget.devices).backend
        self._versions = versions_of(backend)
        for p in program.publications if self._wish.digests else ():
            if is_remote(p.path):
                remedy = "Write to a folder, or run without a lock."
                raise StoreError(p.path, "is remote, and a lock is of an output of this machine", remedy=remedy)
        if self._wish.write:
            check_places(self._wish.path, program.publications)
        self._expected = _assign(self._wish.expected, program.publications)
        for number, (place, lock) in self._expected.items():
            own = self._of(program.publications[number], {}, {})
            differing = [*_differing_plans(lock, own), *differing_versions(lock.versions, own.versions)]
            _refuse(place, [*differing, *_differing_inputs(lock, own)])

    def handle(self, commit: Commit, look: Any) -> Handling:
        """How the run is to handle its outputs."""
        if self._wish.digests:
            return Handling(commit, self._watch_writer, look, partial(self._seal, commit))
        return Handling(commit, look=look, seal=self._add_header)

    def _watch_writer(self, number: int, writer: Writer) -> Writer:
        assert self._program is not None
        p = self._program.publications[number]
        self._writers[number] = WatchedWriter(writer, {name: e.aval for name, e in p.tensors.items()})
        return self._writers[number]

    # --- The lock of an output ----------------------------------------------------------------------------------------

    def _seal(self, commit: Commit, number: int, staged: StagedOutput) -> StagedOutput | None:
        """Compare a complete output with the lock that is expected, and write its own lock."""
        assert self._program is not None
        p = self._program.publications[number]
        if not isinstance(staged, Staged):
            raise StoreError(p.path, "a lock can be written of outputs in a file system only")
        lock = self._lock_of(number, p, staged)
        if number in self._expected:
            place, expected = self._expected[number]
            found = differing_tensors(expected.tensors, lock.tensors)
            _refuse(place, [*_differing_inputs(expected, lock), *(f"output: {text}" for text in found)])
        if p.directory and (self._wish.write or self._wish.folders):
            self._put(lock, staged)
        place = place_of(self._wish.path, p) if self._wish.write else None
        if place is None:
            return None
        moved = self._move(lock, p, os.path.dirname(resolve_path(place)))
        beside = commit.stage(place, overwrite=True, own=())
        beside.place.write("", moved.to_json())
        if self._budget.durable:
            beside.place.flush()
        return beside

    def _add_header(self, number: int, staged: StagedOutput) -> None:
        """Write the lock of what headers say, unless the output is made of values in memory."""
        assert self._program is not None
        p = self._program.publications[number]
        leaves = (e for e in walk(p.tensors.values()) if e.is_leaf)
        if _may_carry(p) and isinstance(staged, Staged) and all(leaf.source in self._sources for leaf in leaves):
            self._put(self._complete(p, staged, {}), staged)

    def _put(self, lock: Lock, staged: Staged) -> None:
        staged.place.write(LOCKFILE, lock.to_json())
        if self._budget.durable:
            fsync_path(staged.place.path_of(LOCKFILE))

    def _lock_of(self, number: int, p: Publication, staged: Staged) -> Lock:
        digests = self._digests_of_output(number, p, staged)
        self._digest_inputs(p, digests)
        kept = {name: self._digests[held.source, held.name] for name, held in p.kept.items()}
        return self._complete(p, staged, digests | kept)

    def _complete(self, p: Publication, staged: Staged, digests: Mapping[str, bytes]) -> Lock:
        """The lock of a complete output, for its own folder."""
        labels = self._labels()
        tensors = {name: self._tensor(name, e, digests.get(name), labels)._replace(kept=name in p.kept)
                   for name, e in p.tensors.items()}  # fmt: skip
        small = (*p.side_names, DELTA_MANIFEST) if self._wish.digests else ()
        hashed = staged.place.list() if self._wish.sha256 else small
        files = {name: _file(staged.place.path_of(name), full=name in hashed)
                 for name in staged.place.list() if name != LOCKFILE}  # fmt: skip
        return self._of(p, tensors, files)

    def _of(self, p: Publication, tensors: Mapping[str, LockedTensor], files: Mapping[str, LockedFile]) -> Lock:
        """The lock of an output of these tensors and files, for its own folder."""
        return self._move(Lock(self._versions, {}, {}, "", tensors, files), p, _folder_of(p))

    def _move(self, lock: Lock, p: Publication, folder: str) -> Lock:
        """The lock of an output as it is in a folder: paths are relative to that."""
        name = _name_of(p, folder)
        files = lock.files if p.directory else dict(zip([name], lock.files.values(), strict=False))
        return lock._replace(plan=self._plan(folder), inputs=self._inputs(folder), output=name, files=files)

    def _plan(self, folder: str) -> dict[str, Any]:
        """The plan, its paths relative to a folder; what refers to the environment stays as it was written."""
        step_paths = partial(map_step_path, change=partial(relate, folder=folder))
        plan = resolve(self._data, [step_paths(step.summary) for step in self._data.steps])
        for key, convert in (("inputs", _relate_input), ("output", _relate_output), ("outputs", _relate_output)):
            if key in plan:
                written = None if self._document is None else get(self._document, key)
                said = None if written is None else public(written)
                plan[key] = said if hides_environment(said) else _each(plan[key], partial(convert, folder=folder))
        return plan

    def _tensor(self, name: str, e: Expr, digest: bytes | None, labels: Mapping[Source, str]) -> LockedTensor:
        leaves = [leaf for leaf in walk([e]) if leaf.is_leaf]
        inputs = tuple(f"{labels[leaf.source]}::{leaf.name}" for leaf in leaves)
        return LockedTensor(self._say(e.aval), _hex(digest), inputs, self.origins.steps_of(name, e))

    # --- Digests ------------------------------------------------------------------------------------------------------

    def _digests_of_output(self, number: int, p: Publication, staged: Staged) -> dict[str, bytes]:
        """The digests of an output: those that were taken while it was written, the others by reading it."""
        passed = self._writers[number].digests
        found = {name: digest for name in p.written if (digest := passed.digest(name)) is not None}
        if missing := [name for name in p.written if name not in found]:
            with closing(open_alone(staged.staging) if p.kept else p.format.open(staged.staging)) as written:
                there = [name for name in missing if name in written.header.tensors]
                found |= locked_digests(written, there, self._budget, passed)
        return found

    def _digest_inputs(self, p: Publication, digests: Mapping[str, bytes]) -> None:
        """Complete the digests of the tensors of inputs that an output is made of."""
        for name, e in p.tensors.items():
            if e.is_leaf and name in digests:
                self._digests[e.source, e.name] = digests[name]
        missing: dict[WatchedSource, dict[str, None]] = {}
        for leaf in (e for e in walk(p.tensors.values()) if e.is_leaf):
            key = (leaf.source, leaf.name)
            if key in self._digests:
                continue
            if (passed := leaf.source.digests.digest(leaf.name)) is not None:
                self._digests[key] = passed
            else:
                missing.setdefault(leaf.source, {})[leaf.name] = None
        for source, names in missing.items():
            for name, digest in locked_digests(source.inner, list(names), self._budget, source.digests).items():
                self._digests[source, name] = digest

    # --- Inputs -------------------------------------------------------------------------------------------------------

    def _labels(self) -> dict[Source, str]:
        """What each checkpoint is called: the alias of an input, else `load-N`."""
        labels: dict[Source, str] = {}
        for source in self._sources:
            labels[source] = self._aliases.get(id(source), f"load-{len(labels) + 1}")
        return labels

    def _inputs(self, folder: str) -> dict[str, LockedInput]:
        found: dict[str, LockedInput] = {}
        for source, label in self._labels().items():
            tensors = {name: LockedTensor(self._say(info.aval), _hex(self._digests.get((source, name))))
                       for name, info in source.header.tensors.items()}  # fmt: skip
            found[label] = LockedInput(relate(source.header.path, folder), tensors)
        return found


def _may_carry(p: Publication) -> bool:
    """Whether an output is a folder of this machine, in which a lock may lie unasked."""
    return p.directory and not is_remote(p.path)


def _assign(locks: Mapping[str, Lock], publications: Sequence[Publication]) -> dict[int, tuple[str, Lock]]:
    """The lock of each output that is published, with its path. Raises PlanError unless each has one."""
    found: dict[int, tuple[str, Lock]] = {}
    for place, lock in locks.items():
        number = 0 if len(publications) == 1 else lock.number
        if number in found or number >= len(publications):
            others = f"that of {found[number][0]}" if number in found else f"none of the {len(publications)} outputs"
            _refuse(place, [f"it is of output {number + 1}, which is {others} of this run"])
        found[number] = place, lock
    for number, p in enumerate(publications if found else ()):
        if number not in found:
            remedy = worded(
                shell="`--locked LOCK` once for each output", python="`locked=[...]` with one for each output"
            )
            message = f"the plan also writes {p.path}, and none of the locks is of it"
            raise PlanError([Diagnostic("lock-differs", message, hint=f"Name the lock of every output: {remedy}.")])
    return found


def _refuse(place: str, differing: Sequence[str]) -> None:
    """Raise PlanError if anything differs from the lock at a path."""
    if differing:
        more = [f"and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
        told = "; ".join((*differing[:SHOWN], *more))
        without = worded(shell="without `--locked`", python="without `locked=`")
        hint = f"Go back to what the lock names, or run {without}."
        raise PlanError([Diagnostic("lock-differs", f"{place}: {told}", hint=hint)])


def _name_of(p: Publication, folder: str) -> str:
    """The path of an output in a lock that lies in a folder."""
    path = resolve_path(p.path)
    return "." if path == folder else relate(path, folder)


def _folder_of(p: Publication) -> str:
    """The folder of the lock of an output that lies in it, or beside it."""
    path = resolve_path(p.path)
    return path if p.directory else os.path.dirname(path)


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _file(path: str, *, full: bool) -> LockedFile:
    if not full:
        return LockedFile(os.path.getsize(path), None)
    with open(path, "rb") as file:
        return LockedFile(os.path.getsize(path), sha256_of(file))


def _each(value: Any, change: Any) -> Any:
    return [change(item) for item in value] if isinstance(value, list) else change(value)


def _relate_input(text: str, folder: str) -> str:
    alias, _, path = text.partition("::")
    return f"{alias}::{relate(path, folder)}"


def _relate_output(output: str | Mapping[str, Any], folder: str) -> Any:
    if isinstance(output, str):
        return relate(output, folder)
    return {**output, "path": relate(output["path"], folder)}


def _differing_plans(lock: Lock, own: Lock) -> Iterator[str]:
    """How the plan of a run differs from that of a lock. Where things lie does not count: what was read does."""
    locked, plan = _without_places(lock.plan), _without_places(own.plan)
    for key in dict.fromkeys((*locked, *plan)):
        was, now = locked.get(key), plan.get(key)
        if key == "transforms" and isinstance(was, list) and isinstance(now, list) and was != now:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(was, now, strict=False))
            yield f"the plan differs from step {sum(1 for _ in same) + 1} on"
        elif was != now:
            yield f"`{key}` of the plan differs"


def _without_places(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan without the paths of checkpoints, and whether they may be replaced."""
    steps = [map_step_path(step, lambda path: "") for step in plan.get("transforms", ())]
    rest = {"transforms": steps}
    if isinstance(inputs := plan.get("inputs", []), list):
        rest["inputs"] = [text.partition("::")[0] if isinstance(text, str) else text for text in inputs]
    for key in ("output", "outputs"):
        if key in plan:
            rest[key] = _each(plan[key], _without_place)
    return dict(plan) | rest


def _without_place(output: Any) -> Any:
    return {k: v for k, v in output.items() if k not in ("path", "overwrite")} if isinstance(output, Mapping) else {}


def _differing_inputs(lock: Lock, own: Lock) -> Iterator[str]:
    for alias, was in lock.inputs.items():
        if alias not in own.inputs:
            yield f"input '{alias}' is missing"
            continue
        for text in differing_tensors(was.tensors, own.inputs[alias].tensors):
            yield f"input '{alias}': {text}"
