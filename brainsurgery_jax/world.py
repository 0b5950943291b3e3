"""The outside as lowering sees it: checkpoints opened once, destinations looked at, paths compared."""

from __future__ import annotations

import os
from collections.abc import Mapping

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.store import atomic
from brainsurgery_jax.store.address import Address, parse_address
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.sidecars import sidecar_folder

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
        opens: bool = True,
    ):
        self.graph = Graph()
        self.provisional, self.overwrite, self.default_shard = provisional, overwrite, default_shard
        self._sources: dict[Address, Source] = {Address(path): source for path, source in (sources or {}).items()}
        self._wanted: dict[str, tuple[int, int]] = {}  # by destination: its disk, and the bytes for it
        self._opens = opens
        self.unopened: dict[str, None] = {}
        """Paths that were asked for and not opened, since this is only a glance."""

    def provisional_twin(self) -> Files:
        """A world with the same choices, to check in."""
        return Files(provisional=True, overwrite=self.overwrite, default_shard=self.default_shard)

    def glance(self) -> Files:
        """A world to look ahead in: it has the checkpoints that are open here, opens no others, and what is made in it
        goes with it."""
        twin = Files(provisional=True, overwrite=self.overwrite, default_shard=self.default_shard, opens=False)
        twin._sources = dict(self._sources)
        twin.graph = self.graph.fork()
        return twin

    @property
    def opened(self) -> tuple[str, ...]:
        """The checkpoints that are open, each by its `key`."""
        return tuple(dict.fromkeys(address.path for address in self._sources))

    def settle(self) -> None:
        """Forget what was to be written: it is, and the space that is left tells so."""
        self._wanted.clear()

    def key(self, path: str) -> str:
        """One spelling for every way to write the path of a checkpoint, or of a part of one."""
        return os.path.realpath(parse_address(path).path)

    def open(self, path: str, format: str | None = None) -> Source:
        """The checkpoint at a path; its header is read the first time only."""
        key = parse_address(path)._replace(path=self.key(path))
        if key not in self._sources:
            if not self._opens:
                self.unopened[path] = None
                raise StoreError(path, "is not open yet")
            self._sources[key] = open_source(path, format)
        return self._sources[key]

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool) -> None:
        """Refuse what cannot be written, or does not fit beside what else this plan writes to the same disk."""
        disk = _device(path)
        self._wanted[self.key(path)] = disk, nbytes
        total = sum(n for d, n in self._wanted.values() if d == disk)
        atomic.check_destination(path, total, overwrite or self.overwrite)

    def side_file(self, checkpoint: str, name: str) -> bytes | None:
        """What a small file beside the weights of a checkpoint holds; None if it has no such file."""
        folder = sidecar_folder(checkpoint)
        place = None if folder is None else folder / name
        if place is None or not place.is_file():
            return None
        with os_failures(place, "read the file"):
            return place.read_bytes()

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
