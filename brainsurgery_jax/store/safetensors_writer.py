"""Writing safetensors: files laid out from avals alone, then filled at their positions in any order, by any thread."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.atomic import Staged, discard, fsync_tree
from brainsurgery_jax.store.base import FileRun, Source, TensorInfo, WriteOptions
from brainsurgery_jax.store.byte_sink import ByteSink
from brainsurgery_jax.store.failures import check_unicode, os_failures
from brainsurgery_jax.store.index_files import INDEX, encode_index, shard_name
from brainsurgery_jax.store.positioned import allocate, clone, read_bytes, write_all
from brainsurgery_jax.store.safetensors_header import MAX_HEADER, METADATA, encode_header
from brainsurgery_jax.store.safetensors_shards import header_metadata, plan_shards, planned, same_named, shards_of
from brainsurgery_jax.store.unchanged import Original

if TYPE_CHECKING:
    import numpy as np


_MOST_ENTRY = 200
"""Bytes that an entry of the header takes beside its name, generously."""

_FILE_MODE = 0o666  # less the umask; the stock library leaves 0600, which others cannot read


def check_storable(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError for the first tensor that a safetensors file cannot hold, and for a header that is too long."""
    for name, aval in avals.items():
        if not aval.dtype.tag:
            remedy = "Write .npz or .pt, which hold it; or cast it to complex64, which rounds."
            raise StoreError(path, f"safetensors has no dtype {aval.dtype}", tensor=name, remedy=remedy)
        if aval.size * aval.dtype.bits % 8:
            remedy = "Cut it where its elements fill whole bytes."
            raise StoreError(path, f"{aval} does not fill whole bytes", tensor=name, remedy=remedy)
        if name == METADATA:
            raise StoreError(path, "this name is reserved by the safetensors format", tensor=name, remedy="Rename it.")
    check_unicode(path, [*avals, *options.metadata, *options.metadata.values()])
    if sum(map(len, [*avals, *options.metadata.values()])) + _MOST_ENTRY * len(avals) > MAX_HEADER:
        for names in plan_shards(avals, options.shard_bytes):
            check_header(path, encode_header(_layout(names, avals), header_metadata(options.metadata)))


def check_header(path: str, header: bytes) -> None:
    """Raises StoreError for a header that readers would refuse."""
    if len(header) - 8 > MAX_HEADER:
        problem = f"the header would take {len(header)} bytes, more than readers accept ({MAX_HEADER})"
        raise StoreError(path, problem, remedy="Write a folder with a smaller shard size.")


def _layout(names: list[str], avals: Mapping[str, Aval]) -> list[tuple[str, Aval]]:
    """Wide elements first, so that every tensor is aligned to its element size."""
    return sorted(((name, avals[name]) for name in names), key=lambda item: -(item[1].dtype.bits // 8))


class SafetensorsWriter:
    """One safetensors file, or a folder with one or more, in the making; see `base.Writer`.

    All files are created at their full size at once. A folder with `shard_bytes` gets numbered shards and an index, as
    the reference writes them, without it `model.safetensors` alone.

    `unchanged` are the tensors that a source holds just so, under the same name. An output file that gets all tensors
    of one source file takes over its header, too: it becomes the same file byte for byte, a clone where it can. With
    `keep_files` shards end where that makes such files, too.
    """

    def __init__(
        self,
        staged: Staged,
        avals: Mapping[str, Aval],
        *,
        single_file: bool,
        shard_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
        durable: bool = True,
        unchanged: Mapping[str, Source] | None = None,
        keep_files: bool = False,
    ):
        assert not (single_file and shard_bytes), "a single file has no shards"
        check_storable(staged.destination, avals, WriteOptions(not single_file, metadata or {}, shard_bytes))
        self._staged, self._avals, self._durable = staged, dict(avals), durable
        self._sharded = shard_bytes is not None
        metadata = header_metadata(metadata or {})
        shards = shards_of(avals, shard_bytes, unchanged or {}, metadata, keep_files=keep_files)
        self._names = [""] if single_file else _file_names(len(shards), self._sharded)
        self._paths = [os.path.join(staged.staging, name) if name else staged.staging for name in self._names]
        self._places: dict[str, TensorInfo] = {}
        self._clones: set[int] = set()
        self._sink = ByteSink(staged.destination, self._paths, self._places, flush=durable)
        with ExitStack() as on_failure, os_failures(staged.destination, "create the partial output"):
            _reserve(staged.staging, single_file)
            on_failure.callback(self.abort)
            for file, (names, original) in enumerate(shards):
                if original is not None:
                    self._take_over(file, names, original)
                else:
                    self._create(file, _layout(names, avals), metadata)
            on_failure.pop_all()

    def _create(self, file: int, layout: list[tuple[str, Aval]], metadata: Mapping[str, str]) -> None:
        header = encode_header(layout, metadata)
        check_header(self._staged.destination, header)  # again: files that are kept may be cut otherwise
        position = len(header)
        for name, aval in layout:
            self._places[name] = TensorInfo(aval, file, position)
            position += aval.nbytes
        with _new_file(self._paths[file]) as fd:
            allocate(fd, position)
            write_all(fd, memoryview(header), 0)

    def _take_over(self, file: int, names: list[str], original: Original) -> None:
        """Makes a file that will be the original as it stands. It is already, if the file system can clone."""
        tensors, path = original.source.header.tensors, original.source.header.files[original.file]
        self._places |= {name: tensors[name]._replace(file=file) for name in names}
        with _new_file(self._paths[file]) as fd, original.source.fileno(original.file) as source:
            if clone(source, fd):
                self._clones.add(file)
                return
            allocate(fd, original.plain.nbytes)
            write_all(fd, memoryview(read_bytes(source, original.plain.start, 0, path=path)), 0)

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        self._sink.put(name, start, data)

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows` at its own flat element offset of the tensor."""
        self._sink.put_rows(name, starts, rows)

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        if self._places[name].file not in self._clones:
            self._sink.copy(name, start, run)
            return
        position = self._sink.position(name, start, run.nbytes)
        assert run.offset == position, f"'{name}' is a clone: it has its bytes from {run.offset} already"
        self._sink.count(name, run.nbytes)

    def lane(self, name: str) -> int:
        """The number of the tensor's file: writes to one file take turns, those to different files do not."""
        return self._places[name].file

    def finish(self) -> Staged:
        """The complete checkpoint, ready for `atomic.publish`; a StoreError while bytes are missing."""
        self._sink.check_complete()
        self._sink.close()
        with os_failures(self._staged.destination, "write the partial output"):
            if self._sharded:
                self._write_index()
            if self._durable:
                fsync_tree(self._staged.staging)
        return self._staged

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        self._sink.close()
        discard(self._staged)

    def _write_index(self) -> None:
        weight_map = {name: self._names[self._places[name].file] for name in self._avals}
        with open(os.path.join(self._staged.staging, INDEX), "xb") as file:
            file.write(encode_index(self._avals, weight_map))


def write(staged: Staged, avals: Mapping[str, Aval], options: WriteOptions) -> SafetensorsWriter:
    """The writer for an output: a folder of one file is not sharded, whatever the limit."""
    return SafetensorsWriter(
        staged,
        avals,
        single_file=not options.directory,
        shard_bytes=options.shard_bytes if len(planned(avals, options)) > 1 else None,
        metadata=options.metadata,
        durable=options.durable,
        unchanged=same_named(options),
        keep_files=options.keep_files,
    )


def _reserve(staging: str, single_file: bool) -> None:
    """Makes the staging path; fails if it is there, since then somebody else is writing to it."""
    if single_file:
        os.close(os.open(staging, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE))
    else:
        os.mkdir(staging)


@contextmanager
def _new_file(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, _FILE_MODE)
    try:
        yield fd
    finally:
        os.close(fd)


def _file_names(shards: int, sharded: bool) -> list[str]:
    return [shard_name(n, shards) for n in range(1, shards + 1)] if sharded else ["model.safetensors"]
