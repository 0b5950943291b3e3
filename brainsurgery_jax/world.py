"""The outside as lowering sees it: checkpoints opened once, destinations looked at, paths compared."""

from __future__ import annotations

import os
from collections.abc import Mapping

from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.store import atomic
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.detect import open_source

DEFAULT_SHARD = "5GB"


class Files:
    """The file system. Holds every source that a run opened; `close` gives their descriptors back."""

    def __init__(
        self,
        *,
        provisional: bool = False,
        overwrite: bool = False,
        default_shard: str = DEFAULT_SHARD,
        sources: Mapping[str, Source] | None = None,
    ):
        self.graph = Graph()
        self.provisional, self.overwrite, self.default_shard = provisional, overwrite, default_shard
        self._sources: dict[str, Source] = dict(sources or {})
        self._wanted: dict[str, tuple[int, int]] = {}  # by destination: its disk, and the bytes for it

    def provisional_twin(self) -> Files:
        """A world with the same choices, to check in."""
        return Files(provisional=True, overwrite=self.overwrite, default_shard=self.default_shard)

    def key(self, path: str) -> str:
        """One spelling for every way to write a path."""
        return os.path.realpath(os.path.expanduser(path))

    def open(self, path: str) -> Source:
        """The checkpoint at a path; its header is read the first time only."""
        key = self.key(path)
        if key not in self._sources:
            self._sources[key] = open_source(path)
        return self._sources[key]

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool) -> None:
        """Refuse what cannot be written, or does not fit beside what else this plan writes to the same disk."""
        disk = _device(path)
        self._wanted[self.key(path)] = disk, nbytes
        total = sum(n for d, n in self._wanted.values() if d == disk)
        atomic.check_destination(path, total, overwrite or self.overwrite)

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far from all sources."""
        return sum(s.bytes_read for s in self._sources.values())

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources.values():
            source.close()


def _device(path: str) -> int:
    """The disk that a path (or its nearest existing parent) lies on."""
    folder = os.path.realpath(os.path.expanduser(path))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return os.stat(folder).st_dev
