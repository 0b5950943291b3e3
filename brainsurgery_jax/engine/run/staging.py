"""Staging: the outputs of a run are written beside their destinations, then published together or removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.run.hosts import ALONE, Hosts
from brainsurgery_jax.engine.run.resume import Resumption
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError, worded
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.store.address import is_remote
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import FileCounts, Held, WriteOptions, Writer
from brainsurgery_jax.store.io.encoded import path_of
from brainsurgery_jax.store.io.files import Commit, Left, StagedOutput
from brainsurgery_jax.store.io.local import count_links
from brainsurgery_jax.store.joining import Join
from brainsurgery_jax.store.publishing import BY_PLACE
from brainsurgery_jax.store.sidecars import copy_side_files, put_sidecars
from brainsurgery_jax.store.uninterrupted import defer_signals


def _pass_on(number: int, writer: Writer) -> Writer:
    """The writer as it is."""
    return writer


def _add_nothing(number: int, staged: StagedOutput) -> None:
    """No other output."""


class Handling(NamedTuple):
    """What is done with the outputs of a run, beside writing them.

    - `commit`: how they appear
    - `watch`: what stands between the run and the writer of each output, by the number of its publication
    - `look`: called with each complete output before any is published; may raise
    - `resumption`: what keeps a journal, and is the commit then
    - `hard_links`: files that an input holds as they stand may be hard links to those of the input
    - `seal`: called after it, with the number too; may add files, or return an output that is published with the others
    """

    commit: Commit = BY_PLACE
    watch: Callable[[int, Writer], Writer] = _pass_on
    look: Callable[[StagedOutput], None] | None = None
    seal: Callable[[int, StagedOutput], StagedOutput | None] = _add_nothing
    resumption: Resumption | None = None
    hard_links: bool = False


PLAINLY = Handling()
"""Outputs are written and renamed into place."""


class Staging:
    """One writer per publication. Leaving the context without `publish` removes everything that was written."""

    def __init__(self, publications: Sequence[Publication], handling: Handling, *, durable: bool, hosts: Hosts = ALONE):
        self.publications, self._handling, self._durable, self._hosts = publications, handling, durable, hosts
        self.writers: list[Writer] = []
        self._staged: list[StagedOutput] = []
        self._published = False

    def __enter__(self) -> Staging:
        with ExitStack() as on_failure:
            on_failure.push(self.__exit__)
            commit = self._join() if self._hosts.number else self._handling.commit
            for number, p in enumerate(self.publications):
                own = p.replaces.own if p.replaces else ()
                staged = commit.stage(p.path, overwrite=p.overwrite, own=own)
                self._staged.append(staged)
                avals, options = _content(p, durable=self._durable, hosts=self._hosts)
                writer = p.format.write(staged, avals, options._replace(hard_links=self._handling.hard_links))
                self.writers.append(self._handling.watch(number, writer))
                if not self._hosts.number:
                    _put_side_files(p, staged)
            if not self._hosts.number:
                paths = [staged.staging for staged in self._staged if isinstance(staged, Staged)]
                self._hosts.gather("staged", json.dumps(paths).encode())
            on_failure.pop_all()
        return self

    def _join(self) -> Commit:
        """The commit of outputs that process 0 has staged."""
        paths = json.loads(self._hosts.gather("staged")[0])
        resumption = self._handling.resumption
        return Join(paths) if resumption is None or not paths else resumption.join(paths)

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """Notes on the destinations."""
        return tuple(note for staged in self._staged for note in staged.notes)

    def encode_part(self) -> None:
        """Make the part of this process, of several, of what is made when all have written their tensors."""
        for number, writer in enumerate(self.writers):
            writer.encode_part(lambda number=number: self._hosts.gather(f"tensors of output {number}"))

    def complete(self) -> None:
        """Complete all outputs, have them looked at and sealed, and upload the data of remote ones. If that raises,
        none is published."""
        for writer in self.writers:
            writer.finish()
        if self._handling.look is not None:
            for staged in self._staged:
                self._handling.look(staged)
        for number, staged in enumerate(tuple(self._staged)):
            if (more := self._handling.seal(number, staged)) is not None:
                self._staged.append(more)
        self._handling.commit.prepare(self._staged)

    def leave(self) -> None:
        """Complete the part of this process in outputs that process 0 publishes."""
        self._abort()
        if self._durable:
            for staged in self._staged:
                staged.place.flush()
        if self._handling.resumption is not None:
            self._handling.resumption.pause()
        self._published = True

    @property
    def links(self) -> tuple[tuple[str, int], ...]:
        """Complete outputs with files that are hard links, and how many these are."""
        if not self._handling.hard_links:
            return ()
        counted = ((staged.destination, count_links(path_of(staged))) for staged in self._staged)
        return tuple((path, count) for path, count in counted if count)

    def publish(self) -> tuple[Left, ...]:
        """Publish all outputs, which are complete. Return the replaced checkpoints that could not be removed."""
        left = self._handling.commit.publish(self._staged, durable=self._durable)
        self._published = True
        return left

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._published:
            return
        if (resumption := self._handling.resumption) is not None:
            if isinstance(error, PlanError):  # it would fail again
                resumption.abandon()
            else:
                resumption.pause()
                _note_pause(error)
        self._abort()

    def _abort(self) -> None:
        with defer_signals(), ExitStack() as everything:
            for staged in self._staged:
                everything.callback(staged.abandon)
            for writer in self.writers:
                everything.callback(writer.abort)


def _note_pause(error: BaseException | None) -> None:
    """Note that a run can be continued."""
    again = worded(shell="`--resume`", python="`resume=True`")
    told = f"to continue, run again with {again}"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        told = f"nothing was published; {told}"
    if error is not None:
        error.add_note(told)


def _put_side_files(p: Publication, staged: StagedOutput) -> None:
    if p.sidecars is not None:
        copy_side_files(p.sidecars, staged.place)
    put_sidecars(staged.place, p.side_files)


def refuse_to_share(publications: Sequence[Publication]) -> None:
    """Raise StoreError for an output that several processes cannot write together."""
    for p in publications:
        if not p.format.together or p.kept:
            what = "a delta" if p.kept else f"{p.format.name}"
            remedy = "Write `format: safetensors` or `format: orbax`, or run without --distributed."
            raise StoreError(p.path, f"is {what}, which one process must write alone", remedy=remedy)
        if is_remote(p.path):
            remedy = "Write to a folder that all processes share, or run without --distributed."
            raise StoreError(p.path, "does not lie in a file system, where several processes can write", remedy=remedy)


def cut(p: Publication) -> FileCounts | None:
    """The files that an output will have; None if its format does not know them in advance."""
    return None if p.format.cut is None else p.format.cut(*_content(p, durable=False))


def held_at_end(publications: Iterable[Publication]) -> int:
    """The most bytes that a library holds that makes an output of tensors that are all there; one follows another."""
    found = (p.format.held(*_content(p, durable=False)) for p in publications if p.format.held is not None)
    return max(found, default=0)


def _content(p: Publication, *, durable: bool, hosts: Hosts = ALONE) -> tuple[dict[str, Aval], WriteOptions]:
    """What an output holds, and how it is written. Tensors that a checkpoint holds as they are may be kept there."""
    unchanged = {name: Held(e.source, e.name) for name, e in p.written.items() if e.is_leaf}
    options = WriteOptions(
        p.directory, p.metadata, p.shard_bytes, durable, unchanged, p.options, p.keep_files, p.nest, p.tree, p.kept,
        tuple(p.tensors), hosts.number, hosts.count,
    )  # fmt: skip
    return {name: e.aval for name, e in p.written.items()}, options
