"""Reading orbax checkpoints: names, shapes and dtypes without data, then single leaves, slices and ranges.

Neither orbax nor JAX is imported: tensorstore reads what the small files of the checkpoint describe. Arrays without
compression are read by byte ranges, so that of a large leaf only what is asked for is ever in memory. Compressed ones
are decoded by chunks, which stay in a cache of `CACHE` bytes and as many as the chunks take that hold the first row of
the widest leaf: a leaf that is one chunk is decoded once, however small the pieces it is read in.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice, repeat
from math import prod
from struct import unpack
from threading import Lock
from typing import TYPE_CHECKING, Any

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.index.boxes import Box, box_shape, cover, whole
from brainsurgery_jax.store.base import FileRun, Fingerprint, Header, ReadingMemory, TensorInfo, fingerprint_of
from brainsurgery_jax.store.failures import no_tensor, os_failures
from brainsurgery_jax.store.io.arrays import byte_view, empty_aligned, numpy_dtype
from brainsurgery_jax.store.io.box_reads import read_box
from brainsurgery_jax.store.io.descriptors import Watch
from brainsurgery_jax.store.io.local import LocalFile, open_files
from brainsurgery_jax.store.key_paths import name_of
from brainsurgery_jax.store.key_tree import PLAIN, KeyTree
from brainsurgery_jax.store.orbax.folder import OrbaxTree, find, place_of, read_tree
from brainsurgery_jax.store.orbax.zarr import METADATA, UNKNOWN, ChunkRange, UnknownCodec, ZarrArray, parse

if TYPE_CHECKING:
    import numpy as np

CACHE = 64 << 20
"""Bytes of decoded chunks that are kept."""

PIECE = 8 << 20
"""Bytes of a plain array that are read at a time."""

AHEAD = 1
"""Pieces that are being read while one is taken over."""

AT_ONCE = 4
"""Chunks that are being read, and that are being decoded, at a time, each by a thread of tensorstore."""

POOL = 24 << 20
"""Bytes that malloc keeps in a pool for each of these threads of what it has freed, where chunks are smaller than
`MAPPED`: those of 256 kB to 4 MB took 35 to 90 MB more in all than with a single pool."""

MAPPED = 16 << 20
"""Bytes from which blocks have a mapping of their own, which goes when they are freed."""

_NODES = 16 << 20
"""Bytes kept of the tables that say where chunks lie."""

_DAMAGED = "The checkpoint is damaged or incomplete: copy or save it again."
_NO_CHUNK = (1 << 64) - 1


class OrbaxSource:
    """An orbax checkpoint open for reading; see `base.Source`. Any thread may read."""

    def __init__(self, path: str, tree: OrbaxTree | None = None):
        """`tree` is what the small files in the folder say, if that is known already."""
        tree = read_tree(find(path)) if tree is None else tree
        files = _files_of(tree.folder)
        self._tree, self._watch = tree, Watch(files)
        self._files = {} if tree.ocdbt else dict(zip(files, open_files(files), strict=True))
        self._lock = Lock()
        self._bytes_read = 0
        self._store = _key_value_store(tree)
        self._arrays = _arrays(path, tree, self._store)
        self._open: dict[str, Any] = {}
        self._tables: dict[tuple[str, str], Sequence[int]] = {}
        self._context: Any = None
        infos = {name: TensorInfo(array.aval, 0, 0) for name, array in self._arrays.items()}
        with_stored, reading = _with_stored(tree.tree, self._arrays), self._reading()
        self.header = Header(path, files, infos, tree.metadata, tree=with_stored, reading=reading)

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far, before compression; gaps of strided reads included."""
        return self._bytes_read

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        array = self._array(name)
        box = whole(array.aval.shape) if box is None else box
        if array.plain:
            dtype = numpy_dtype(array.aval.dtype, path=self.header.path, tensor=name)
            return read_box(array.aval.shape, dtype, box, lambda view, start: self._fill(name, view, start))
        return self._decode(name, [box]).reshape(box_shape(box))

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        array = self._array(name)
        assert 0 <= start <= stop <= array.aval.size, (name, start, stop)
        if not array.plain:
            return self._decode(name, list(cover(array.aval.shape, start, stop)))
        result = empty_aligned((stop - start,), numpy_dtype(array.aval.dtype, path=self.header.path, tensor=name))
        self._fill(name, byte_view(result), start)
        return result

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if they do not lie one after the other in one file, or where
        tensorstore alone knows."""
        array = self._array(name)
        runs = list(islice(array.runs(start, stop, stop - start), 2)) if array.plain and start < stop else []
        file = self._file(array, runs[0]) if len(runs) == 1 else None
        size = array.aval.dtype.bits // 8
        return None if file is None else FileRun(file, runs[0].start * size, runs[0].length * size)

    def _file(self, array: ZarrArray, run: ChunkRange) -> LocalFile | None:
        """The file that is the value with a run, where each value is a file with one chunk."""
        key = os.path.join(self._tree.folder, *array.place.split("/"), *run.key.split("/"))
        return None if array.indexed else self._files.get(key)

    @property
    def fingerprint(self) -> Fingerprint:
        """The stamps of the files, and a digest of what the header comes to."""
        return fingerprint_of(self.header, self._watch.stamps)

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        self._watch.verify_unchanged()

    def close(self) -> None:
        """Gives cached chunks and descriptors back."""
        for file in self._files.values():
            file.close()
        self._open.clear()
        self._context = None

    def _reading(self) -> ReadingMemory:
        """The memory that tensorstore takes: tables, pieces of plain arrays, decoded chunks that are kept, and what
        malloc keeps for its threads. Of what is decoded, each thread waits for a chunk as it is stored, or for the
        small chunks of a block, and gets a copy."""
        arrays = self._arrays.values()
        decoded = [array for array in arrays if not array.plain]
        pieces = any(array.plain for array in arrays) and (self._tree.ocdbt or any(array.indexed for array in arrays))
        kept = min(sum(array.count_stored_bytes for array in decoded), self._cache_bytes) if decoded else 0
        small = sum(array.count_stored_bytes for array in decoded if array.chunk_bytes < MAPPED)
        chunk = max((array.chunk_bytes for array in decoded), default=0)
        return ReadingMemory(
            _NODES + kept + min(small, AT_ONCE * POOL),
            max((AHEAD + 2) * PIECE if pieces else 0, chunk + 2 * PIECE if decoded else 0),
        )

    @property
    def _cache_bytes(self) -> int:
        return CACHE + max(array.row_bytes for array in self._arrays.values() if not array.plain)

    def _array(self, name: str) -> ZarrArray:
        array = self._arrays.get(name)
        if array is None:
            raise no_tensor(self.header.path, name, self._arrays)
        return array

    def _fill(self, name: str, view: memoryview, start: int) -> None:
        """Fills `view` with the bytes of a plain array from element `start` on."""
        import numpy as np

        array = self._arrays[name]
        size = array.aval.dtype.bits // 8
        target = np.frombuffer(view, np.uint8)
        done = 0
        waiting: deque[tuple[str, int, Any]] = deque()
        for run in chain(array.runs(start, start + len(view) // size, PIECE // size), repeat(None, AHEAD)):
            if run is not None and (file := self._file(array, run)) is not None:
                nbytes = run.length * size
                file.read_into(view[done : done + nbytes], run.start * size, tensor=name)
                done += nbytes
            elif run is not None:
                key, nbytes = f"{array.place}/{run.key}", run.length * size
                at = run.start * size + (0 if run.inner is None else self._place(name, key, run.inner))
                waiting.append((key, nbytes, self._store.read(key, byte_range=slice(at, at + nbytes))))
            if waiting and (run is None or len(waiting) > AHEAD):
                key, nbytes, future = waiting.popleft()
                data = self._value(name, key, future, nbytes)
                np.copyto(target[done : done + nbytes], np.frombuffer(data, np.uint8))
                done += nbytes
        self._count(len(view))

    def _place(self, name: str, key: str, inner: int) -> int:
        """The byte offset of a chunk in the value that holds it, from the table at the value's end."""
        table = self._tables.get((name, key))
        if table is None:
            nbytes = 16 * self._arrays[name].inner_chunks + 4
            data = self._value(name, key, self._store.read(key, byte_range=slice(-nbytes, None)), nbytes)
            table = self._tables[name, key] = unpack(f"<{nbytes // 8}Q", data[:-4])[::2]
        if table[inner] == _NO_CHUNK:
            raise StoreError(self.header.path, f"chunk {inner} of {key} is missing", tensor=name, remedy=_DAMAGED)
        return table[inner]

    def _value(self, name: str, key: str, future: Any, nbytes: int) -> bytes:
        """What tensorstore found under a key; a StoreError unless it is `nbytes` long."""
        with _failures(self.header.path, name, self._tree.folder):
            found = future.result()
        place = f"{key} in {self._tree.folder}" if self._tree.ocdbt else os.path.join(self._tree.folder, key)
        if found.state != "value":
            problem = f"its data are missing: there is no {place}"
            raise StoreError(self.header.path, problem, tensor=name, remedy=_DAMAGED)
        data = found.value
        if len(data) != nbytes:
            problem = f"{place} is cut off" if data else f"the data file with {place} is missing"
            raise StoreError(self.header.path, problem, tensor=name, remedy=_DAMAGED)
        return data

    def _decode(self, name: str, boxes: Sequence[Box]) -> np.ndarray:
        """The elements of boxes in turn, flat, decoded by tensorstore."""
        array = self._arrays[name]
        dtype = numpy_dtype(array.aval.dtype, path=self.header.path, tensor=name)
        sizes = [prod(box_shape(box)) for box in boxes]
        result = empty_aligned((sum(sizes),), dtype)
        at = 0
        with _failures(self.header.path, name, self._tree.folder):
            store = self._open_array(name)
            for box, size in zip(boxes, sizes, strict=True):
                part = store[tuple(slice(*span) for span in box)].read().result()
                result[at : at + size] = part.astype(dtype, copy=False).reshape(-1)
                at += size
        self._count(result.nbytes)
        return result

    def _open_array(self, name: str) -> Any:
        import tensorstore as ts

        with self._lock:
            if self._context is None:
                cache = {"total_bytes_limit": self._cache_bytes}
                threads = {"file_io_concurrency": {"limit": AT_ONCE}, "data_copy_concurrency": {"limit": AT_ONCE}}
                self._context = ts.Context({"cache_pool": cache, **threads})
            if name not in self._open:
                array = self._arrays[name]
                spec = {
                    "driver": array.driver,
                    "kvstore": _spec(self._tree, f"{array.place}/"),
                    "recheck_cached_data": "open",
                }
                if array.filled:
                    spec["fill_missing_data_reads"] = False
                self._open[name] = ts.open(spec, open=True, read=True, context=self._context).result()
            return self._open[name]

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._bytes_read += nbytes


def _files_of(folder: str) -> tuple[str, ...]:
    """All files of a tree, the tables first."""
    with os_failures(folder, "list the folder"):
        found = [os.path.join(inner, name) for inner, _, names in os.walk(folder) for name in names]
    return tuple(sorted(found, key=lambda path: (path.count(os.sep), path)))


def _spec(tree: OrbaxTree, path: str = "") -> dict[str, object]:
    """Where tensorstore finds the values of a tree whose keys begin with `path`."""
    folder = f"{os.path.abspath(tree.folder)}/"
    if not tree.ocdbt:
        return {"driver": "file", "path": folder + path}
    return {"driver": "ocdbt", "base": {"driver": "file", "path": folder}, "path": path}


def _key_value_store(tree: OrbaxTree) -> Any:
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": _NODES}})
    with _failures(tree.folder):
        return ts.KvStore.open(_spec(tree), context=context).result()


def _arrays(path: str, tree: OrbaxTree, store: Any) -> dict[str, ZarrArray]:
    """The arrays of all leaves, their metadata read together."""
    places = {(name := name_of(keys)): tree.places.get(name, place_of(keys)) for keys in tree.paths}
    if len(places) < len(tree.paths):
        counts = Counter(map(name_of, tree.paths))
        twice = next(name for name, count in counts.items() if count > 1)
        raise StoreError(path, "is the name of two arrays", tensor=twice, remedy="Save it again with other names.")
    arrays: dict[str, ZarrArray] = {}
    for driver in tree.drivers:
        left = [name for name in places if name not in arrays]
        with _failures(path):
            values = [store.read(f"{places[name]}/{METADATA[driver]}") for name in left]
            found = {name: value.result() for name, value in zip(left, values, strict=True)}
        arrays |= {name: _parse(path, name, driver, v.value) for name, v in found.items() if v.state == "value"}
    for name in places:
        if name not in arrays:
            problem = "is listed, but its data are missing"
            raise StoreError(path, problem, tensor=name, remedy=_DAMAGED)
    arrays = {n: a._replace(place=places[n], filled=a.filled or tree.filled) for n, a in arrays.items()}
    _check_chunks(path, arrays, store)
    # Where a chunk that is not there is one of zeros, tensorstore makes it.
    return {name: arrays[name]._replace(plain=arrays[name].plain and arrays[name].filled) for name in places}


def _with_stored(tree: KeyTree, arrays: Mapping[str, ZarrArray]) -> KeyTree:
    """The tree with the narrow types of tensors that are read in wider ones."""
    narrow = {n: a.stored for n, a in arrays.items() if a.stored != a.aval.dtype.name}
    types = {name: tree.types.get(name, PLAIN)._replace(stored=stored) for name, stored in narrow.items()}
    return replace(tree, types={**tree.types, **types}) if types else tree


def _check_chunks(path: str, arrays: Mapping[str, ZarrArray], store: Any) -> None:
    """Raises StoreError if a chunk is missing of an array that is stored as a whole."""
    with _failures(path):
        keys = set(store.list().result())
    for name, array in arrays.items():
        for key in array.chunk_keys() if array.filled else ():
            if f"{array.place}/{key}".encode() in keys:
                continue
            problem = f"its data are missing: there is no chunk {key}"
            raise StoreError(path, problem, tensor=name, remedy=_DAMAGED)


def _parse(path: str, name: str, driver: str, raw: bytes) -> ZarrArray:
    try:
        return parse(driver, raw)
    except UNKNOWN as error:
        problem = f"its metadata lack {error}" if isinstance(error, KeyError) else f"cannot be read: {error}"
        if isinstance(error, TypeError | AttributeError):  # of Python, about a value of another kind
            problem = "cannot be read: its metadata hold a value of another kind than zarr has there"
        raise StoreError(path, problem, tensor=name, remedy=_remedy_for(error)) from error


def _remedy_for(error: Exception) -> str:
    if isinstance(error, UnknownCodec):
        return f"Save it with one of these compressors alone: {', '.join(error.known)}."
    return _DAMAGED


@contextmanager
def _failures(path: str, name: str | None = None, folder: str = "") -> Iterator[None]:
    """Makes what tensorstore raises a StoreError with the first sentence of its reasons. `folder` holds the tree."""
    try:
        yield
    except (ValueError, KeyError, OSError, NotImplementedError, RuntimeError) as error:
        problem = _short(str(error), folder) or f"cannot be read: {str(error).split(' [', 1)[0]}"
        raise StoreError(path, problem, tensor=name, remedy=_DAMAGED) from error


def _short(reason: str, folder: str) -> str:
    """That a file is missing or ends too early, by its name: tensorstore tells only how long it is. Empty for other
    reasons."""
    found = re.search(r"not valid for value of size (\d+)|Existing shard has size of (0) bytes", reason)
    if not folder or found is None:
        return ""
    if found[2]:
        return f"a data file is missing in {folder}"
    short = [path for path in _files_of(folder) if os.path.getsize(path) == int(found[1])]
    place = short[0] if len(short) == 1 else f"a data file in {folder}"
    return f"{place} is cut off: it ends after {found[1]} bytes"
