"""Writing safetensors: files laid out from avals alone, then filled at their positions in any order, by any thread."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.arrays import byte_view, numpy_dtype
from brainsurgery_jax.store.atomic import Staged, fsync_path
from brainsurgery_jax.store.base import FileRun, Source, TensorInfo
from brainsurgery_jax.store.descriptors import Descriptors
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.positioned import allocate, begin_flush, clone, copy_range, read_bytes, write_all
from brainsurgery_jax.store.safetensors_folder import INDEX, encode_index, shard_name
from brainsurgery_jax.store.safetensors_header import MAX_HEADER, METADATA, encode_header
from brainsurgery_jax.store.unchanged import Original, original_of

if TYPE_CHECKING:
    import numpy as np


_FILE_MODE = 0o644  # less the umask; the stock library leaves 0600, which others cannot read


def plan_shards(avals: Mapping[str, Aval], shard_bytes: int | None) -> list[list[str]]:
    """Names by shard, filled greedily in the order given; a tensor above the limit has a shard of its own."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, aval in avals.items():
        if shard_bytes is not None and shards[-1] and used + aval.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += aval.nbytes
    return shards


def check_storable(path: str, avals: Mapping[str, Aval]) -> None:
    """Raises StoreError for the first tensor that a safetensors file cannot hold."""
    for name, aval in avals.items():
        if not aval.dtype.tag:
            remedy = "Cast it first, for example to complex64, or save real and imaginary parts."
            raise StoreError(path, f"safetensors has no dtype {aval.dtype}", tensor=name, remedy=remedy)
        if aval.size * aval.dtype.bits % 8:
            raise StoreError(path, f"{aval} does not fill whole bytes", tensor=name, remedy="Pad it to whole bytes.")
        if name == METADATA:
            raise StoreError(path, "this name is reserved by the safetensors format", tensor=name, remedy="Rename it.")


def _layout(names: list[str], avals: Mapping[str, Aval]) -> list[tuple[str, Aval]]:
    """Wide elements first, so that every tensor is aligned to its element size."""
    return sorted(((name, avals[name]) for name in names), key=lambda item: -(item[1].dtype.bits // 8))


class SafetensorsWriter:
    """One safetensors file, or a folder with one or more, in the making; see `base.Writer`.

    All files are created at their full size at once. A folder with `shard_bytes` gets numbered shards and an index, as
    the reference writes them, without it `model.safetensors` alone.

    `unchanged` are the tensors that a source holds just so, under the same name. An output file that gets all tensors
    of one source file takes over its header, too: it becomes the same file byte for byte, a clone where it can.
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
    ):
        assert not (single_file and shard_bytes), "a single file has no shards"
        check_storable(staged.destination, avals)
        self._staged, self._avals, self._durable = staged, dict(avals), durable
        self._sharded = shard_bytes is not None
        shards = plan_shards(avals, shard_bytes)
        self._names = [""] if single_file else _file_names(len(shards), self._sharded)
        self._paths = [os.path.join(staged.staging, name) if name else staged.staging for name in self._names]
        self._places: dict[str, TensorInfo] = {}
        self._clones: set[int] = set()
        self._written: Counter[str] = Counter()
        self._lock = Lock()
        self._descriptors = Descriptors(self._paths, os.O_RDWR, watch=False)
        with ExitStack() as on_failure, os_failures(staged.destination, "create the partial output"):
            _reserve(staged.staging, single_file)
            on_failure.callback(self.abort)
            metadata = {"format": "pt", **(metadata or {})}
            for file, names in enumerate(shards):
                original = original_of(names, unchanged or {}, metadata)
                if original is not None:
                    self._take_over(file, names, original)
                else:
                    self._create(file, _layout(names, avals), metadata)
            on_failure.pop_all()

    def _create(self, file: int, layout: list[tuple[str, Aval]], metadata: Mapping[str, str]) -> None:
        try:
            header = encode_header(layout, metadata)
        except UnicodeEncodeError as error:
            remedy = "Rename the tensor, or drop that metadata."
            raise StoreError(
                self._staged.destination, f"a name is not valid Unicode: {error}", remedy=remedy
            ) from error
        if len(header) - 8 > MAX_HEADER:
            problem = f"the header would take {len(header)} bytes, more than readers accept ({MAX_HEADER})"
            raise StoreError(self._staged.destination, problem, remedy="Write a folder with a smaller shard size.")
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
        import numpy as np

        aval = self._places[name].aval
        dtype = numpy_dtype(aval.dtype, path=self._staged.destination, tensor=name)
        assert data.dtype == dtype, f"'{name}' is {aval}, the data are {data.dtype}"
        view = byte_view(np.ascontiguousarray(data))
        position = self._position(name, start, len(view))
        with self._descriptors.lease(self._places[name].file) as fd, self._failures():
            write_all(fd, view, position)
            self._flush_soon(fd, position, len(view))
        self._count(name, len(view))

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        position = self._position(name, start, run.nbytes)
        file = self._places[name].file
        source_path = run.fd_source.header.files[run.file]
        if file in self._clones:
            assert run.offset == position, f"'{name}' is a clone: it has its bytes from {run.offset} already"
            self._count(name, run.nbytes)
            return
        with (
            run.fd_source.fileno(run.file) as source,
            self._descriptors.lease(file) as fd,
            self._failures(f" from {source_path}"),
        ):
            copy_range(source, run.offset, fd, position, run.nbytes, path=source_path)
            self._flush_soon(fd, position, run.nbytes)
        self._count(name, run.nbytes)

    def lane(self, name: str) -> int:
        """The number of the tensor's file: writes to one file take turns, those to different files do not."""
        return self._places[name].file

    def finish(self) -> Staged:
        """The complete checkpoint, ready for `atomic.publish`; a StoreError while bytes are missing."""
        for name, aval in self._avals.items():
            if self._written[name] != aval.nbytes:
                problem = f"{self._written[name]} of {aval.nbytes} bytes were written: a fault of this program"
                raise StoreError(self._staged.destination, problem, tensor=name, remedy="Nothing was published.")
        self._descriptors.close()
        with self._failures():
            if self._sharded:
                self._write_index()
            if self._durable:
                _fsync_all(self._staged.staging)
        return self._staged

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        self._descriptors.close()
        with os_failures(self._staged.staging, "remove the partial output"):
            if os.path.isdir(self._staged.staging):
                shutil.rmtree(self._staged.staging)
            elif os.path.lexists(self._staged.staging):
                os.remove(self._staged.staging)

    def _write_index(self) -> None:
        weight_map = {name: self._names[self._places[name].file] for name in self._avals}
        with open(os.path.join(self._staged.staging, INDEX), "xb") as file:
            file.write(encode_index(self._avals, weight_map))

    def _position(self, name: str, start: int, nbytes: int) -> int:
        aval, _, offset = self._places[name]
        first, odd = divmod(start * aval.dtype.bits, 8)
        assert not odd and 0 <= first <= first + nbytes <= aval.nbytes, f"'{name}' is {aval}: {nbytes} bytes at {start}"
        return offset + first

    def _flush_soon(self, fd: int, position: int, nbytes: int) -> None:
        if self._durable:
            begin_flush(fd, position, nbytes)

    def _count(self, name: str, nbytes: int) -> None:
        with self._lock:
            self._written[name] += nbytes

    def _failures(self, more: str = ""):
        return os_failures(self._staged.destination, f"write the partial output{more}")


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


def _fsync_all(path: str) -> None:
    """Flushes a file, or a folder with all that lies at its top: also sidecars that others put there."""
    if os.path.isdir(path):
        for entry in os.scandir(path):
            if entry.is_file(follow_symlinks=False):
                fsync_path(entry.path)
    fsync_path(path)
