"""The outputs of a run on their way: written beside their destinations, published together or removed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.store.atomic import Staged, publish, stage
from brainsurgery_jax.store.base import Source, Writer
from brainsurgery_jax.store.safetensors_writer import SafetensorsWriter, plan_shards
from brainsurgery_jax.store.sidecars import copy_sidecars, sidecar_folder


class Staging:
    """One writer per publication. Leaving the context without `publish` removes everything that was written."""

    def __init__(self, publications: Sequence[Publication], *, durable: bool):
        self.publications, self._durable = publications, durable
        self.writers: list[Writer] = []
        self._published = False

    def __enter__(self) -> Staging:
        with ExitStack() as on_failure:
            on_failure.callback(self._abort)
            for p in self.publications:
                self.writers.append(_writer(p, durable=self._durable))
            on_failure.pop_all()
        return self

    def publish(self) -> None:
        """Complete all outputs and put them in their places."""
        staged = [w.finish() for w in self.writers]
        publish(staged, durable=self._durable)
        self._published = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:
            self._abort()

    def _abort(self) -> None:
        for writer in self.writers:
            writer.abort()


def _writer(p: Publication, *, durable: bool) -> Writer:
    avals = {name: e.aval for name, e in p.tensors.items()}
    sharded = p.directory and len(plan_shards(avals, p.shard_bytes)) > 1
    staged: Staged = stage(p.path, overwrite=p.overwrite)
    writer = SafetensorsWriter(
        staged,
        avals,
        single_file=not p.directory,
        shard_bytes=p.shard_bytes if sharded else None,
        metadata=p.metadata,
        durable=durable,
        unchanged=_unchanged(p),
    )
    if p.sidecars_from is not None and (folder := sidecar_folder(p.sidecars_from)) is not None:
        copy_sidecars(folder, staged.staging)
    return writer


def _unchanged(p: Publication) -> dict[str, Source]:
    """The tensors that are written as a checkpoint holds them, under the same name, and that checkpoint."""
    return {name: e.source for name, e in p.tensors.items() if e.kind == "leaf" and e.name == name}
