"""Staging: the outputs of a run are written beside their destinations, then published together or removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.store.base import FileCounts, Held, WriteOptions, Writer
from brainsurgery_jax.store.io.files import Commit, Left, StagedOutput
from brainsurgery_jax.store.sidecars import copy_side_files, put_sidecars
from brainsurgery_jax.store.uninterrupted import defer_signals


class Staging:
    """One writer per publication. Leaving the context without `publish` removes everything that was written."""

    def __init__(self, publications: Sequence[Publication], commit: Commit, *, durable: bool):
        self.publications, self._commit, self._durable = publications, commit, durable
        self.writers: list[Writer] = []
        self._staged: list[StagedOutput] = []
        self._published = False

    def __enter__(self) -> Staging:
        with ExitStack() as on_failure:
            on_failure.callback(self._abort)
            for p in self.publications:
                staged = self._commit.stage(p.path, overwrite=p.overwrite, own=p.replaces.own if p.replaces else ())
                self._staged.append(staged)
                self.writers.append(p.format.write(staged, *_content(p, durable=self._durable)))
                if p.sidecars is not None:
                    copy_side_files(p.sidecars, staged.place)
                put_sidecars(staged.place, p.side_files)
            on_failure.pop_all()
        return self

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """Notes on the destinations."""
        return tuple(note for staged in self._staged for note in staged.notes)

    def complete(self, look: Callable[[StagedOutput], None] | None = None) -> None:
        """Complete all outputs. `look` is called with each before any is published; if it raises, none is."""
        for writer in self.writers:
            writer.finish()
        if look is not None:
            for staged in self._staged:
                look(staged)

    def publish(self) -> tuple[Left, ...]:
        """Publish all outputs, which are complete. Return the replaced checkpoints that could not be removed."""
        left = self._commit.publish(self._staged, durable=self._durable)
        self._published = True
        return left

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:
            self._abort()

    def _abort(self) -> None:
        with defer_signals(), ExitStack() as everything:
            for staged in self._staged:
                everything.callback(staged.abandon)
            for writer in self.writers:
                everything.callback(writer.abort)


def cut(p: Publication) -> FileCounts | None:
    """The files that an output will have; None if its format does not know them in advance."""
    return None if p.format.cut is None else p.format.cut(*_content(p, durable=False))


def _content(p: Publication, *, durable: bool) -> tuple[dict[str, Aval], WriteOptions]:
    """What an output holds, and how it is written. Tensors that a checkpoint holds as they are may be kept there."""
    unchanged = {name: Held(e.source, e.name) for name, e in p.written.items() if e.is_leaf}
    options = WriteOptions(
        p.directory, p.metadata, p.shard_bytes, durable, unchanged, p.options, p.keep_files, p.nest, p.tree, p.kept,
        tuple(p.tensors),
    )  # fmt: skip
    return {name: e.aval for name, e in p.written.items()}, options
