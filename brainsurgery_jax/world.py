"""The outside as lowering sees it: checkpoints opened once, destinations looked at, paths compared."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.address import (
    PLUS,
    Address,
    expand_hub_name,
    is_remote,
    parse_address,
    split_sum,
    without_main,
)
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.files import Commit
from brainsurgery_jax.store.leftovers import measure_left, refuse_to_read
from brainsurgery_jax.store.publishing import BY_PLACE, check_remote
from brainsurgery_jax.store.replacing import Reads, Replacement, check_destination
from brainsurgery_jax.store.sidecars import Bring, SideFiles, all_there, find_side_files, sidecar_folder

DEFAULT_SHARD = "5GB"


class _Wanted(NamedTuple):
    """What an output takes of a disk: its bytes, and those that earlier runs left beside it, which are free to it."""

    disk: int
    nbytes: int
    left: int


class Files:
    """The file system. Holds every source that a run opened; `close` gives their descriptors back. `commit` is how its
    outputs appear."""

    commit: Commit = BY_PLACE

    def __init__(
        self,
        *,
        overwrite: bool = False,
        default_shard: str = DEFAULT_SHARD,
        sources: Mapping[str, Source] | None = None,
        opens: bool = True,
    ):
        self.graph = Graph()
        self.overwrite, self.default_shard = overwrite, default_shard
        self._sources: dict[Address, Source] = {Address(path): source for path, source in (sources or {}).items()}
        self._given = frozenset(self._sources)
        self._lent: frozenset[Address] = frozenset()  # of these, those that another world closes
        self._wanted: dict[str, _Wanted] = {}  # by destination
        self._opens = opens
        self.watch: Callable[[Source], Source] = lambda source: source
        """What stands between a run and each source that is opened from now on."""
        self._files: dict[str, tuple[str, ...]] = {}  # of the sources, by their keys
        self._also: dict[str, None] = {}
        self.unopened: dict[str, None] = {}
        """Paths that were asked for and not opened, since this is only a glance."""

    def twin(self, *, opens: bool = True) -> Files:
        """A world with the same choices, to check in."""
        twin = Files(overwrite=self.overwrite, default_shard=self.default_shard, opens=opens)
        twin._sources = {key: source for key, source in self._sources.items() if key in self._given}
        twin._given, twin._lent = self._given, self._given
        twin.also_reads(*self._also)
        return twin

    def glance(self) -> Files:
        """A world to look ahead in: it has the checkpoints that are open here, opens no others, and what is made in it
        goes with it."""
        twin = self.twin(opens=False)
        twin._sources = dict(self._sources)
        twin.graph = self.graph.fork()
        return twin

    @property
    def open_keys(self) -> tuple[str, ...]:
        """The checkpoints that are open, each by its `key`."""
        return tuple(dict.fromkeys(address.path for address in self._sources))

    def settle(self) -> None:
        """Forget what was to be written: it is, and the space that is left tells so."""
        self._wanted.clear()

    def key(self, path: str) -> str:
        """One spelling for every way to write the path of a checkpoint, or of a part of one."""
        return _key(parse_address(path).path)

    def open(self, path: str, format: str | None = None) -> Source:
        """The checkpoint at a path; its header is read the first time only."""
        key = parse_address(path)._replace(path=self.key(path))
        if key not in self._sources:
            if not self._opens:
                self.unopened[path] = None
                raise StoreError(path, "is not open yet")
            self._sources[key] = self.watch(open_source(path, format))
        return self._sources[key]

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> Replacement | None:
        """What an output would replace. Refuse what cannot be written, or does not fit beside what else this plan
        writes to the same disk."""
        disk = _device(tempfile.gettempdir() if is_remote(path) else path)
        self._wanted[self.key(path)] = _Wanted(disk, nbytes, 0 if is_remote(path) else measure_left(path))
        here = [wanted for wanted in self._wanted.values() if wanted.disk == disk]
        total, left, replaces = sum(w.nbytes for w in here), sum(w.left for w in here), overwrite or self.overwrite
        if is_remote(path):  # a glance opens no connection
            return check_remote(path, total, overwrite=replaces, directory=directory) if self._opens else None
        reads = self.reads()
        refuse_to_read(path, reads)
        return check_destination(path, total, replaces, directory=directory, reads=reads, left=left)

    def reads(self) -> Reads:
        """What is read: checkpoints that are open, and files that were named by `also_reads`."""
        for address, source in self._sources.items():
            if address.path not in self._files:
                self._files[address.path] = tuple(map(_entry, source.header.files))
        return Reads(dict(self._files), tuple(map(self.key, self._also)))

    def also_reads(self, *files: str) -> None:
        """Note files that are read beside checkpoints (plans, ops, configs), which no output may replace."""
        self._also.update(dict.fromkeys(files))

    def side_files(self, checkpoint: str) -> SideFiles | None:
        """The side files of a checkpoint that go with its tensors; None if there is no folder of them."""
        folder, bring = self._side_folder(checkpoint)
        return None if folder is None or not folder.is_dir() else find_side_files(folder)._replace(bring=bring)

    def side_file(self, checkpoint: str, name: str) -> bytes | None:
        """What a small file beside the weights of a checkpoint holds; None if it has no such file."""
        folder, bring = self._side_folder(checkpoint)
        place = None if folder is None else folder / name
        if place is None or not place.is_file():
            return None
        bring([name])
        with os_failures(place, "read the file"):
            return read_regular(place)

    def _side_folder(self, checkpoint: str) -> tuple[Path | None, Bring]:
        """The folder of the side files of a checkpoint on this machine, and what fetches them into it."""
        path = expand_hub_name(parse_address(checkpoint).path)
        if is_remote(path) or split_sum(path) is not None:
            header = self.open(checkpoint).header
            return Path(header.side_folder), header.bring or all_there
        return sidecar_folder(checkpoint), all_there

    @property
    def sources(self) -> tuple[Source, ...]:
        """The checkpoints that are open."""
        return tuple(self._sources.values())

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far from all sources."""
        return sum(s.bytes_read for s in self._sources.values())

    def close(self) -> None:
        """Close all sources, but for those that another world has lent."""
        for key, source in self._sources.items():
            if key not in self._lent:
                source.close()


class Elsewhere(Files):
    """The file system, for a run that will be on other machines: an output needs no space here."""

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> Replacement | None:
        """What an output would replace. Refuse what cannot be written."""
        return super().check_destination(path, 0, overwrite=overwrite, directory=directory)


def _key(path: str) -> str:
    if (both := split_sum(path)) is not None:
        return PLUS.join(map(_key, both))
    return without_main(path) if is_remote(path) else os.path.realpath(os.path.expanduser(path))


def _entry(path: str) -> str:
    """The path of a file in its real folder; a link stays one. Of a remote file, its address."""
    if is_remote(path):
        return path
    folder, name = os.path.split(os.path.expanduser(path))
    return os.path.join(os.path.realpath(folder), name)


def _device(path: str) -> int:
    """The disk that a path (or its nearest existing parent) lies on."""
    folder = os.path.realpath(os.path.expanduser(path))
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return os.stat(folder).st_dev
