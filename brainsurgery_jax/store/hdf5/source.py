"""Reading HDF5 by h5py: `.weights.h5` of Keras 3, `tf_model.h5`, and any file of arrays. A dataset is called like its
path, with dots between groups (`layers.dense.vars.0`). The extra `[hdf5]`.

A dataset that lies in the file as a whole is read there, without h5py; one in chunks is decoded by h5py, box by box.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any

from brainsurgery_jax.dtypes import BY_NAME, OF_ARRAYS, Aval, DType
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.index.boxes import Box, cover, strides, whole
from brainsurgery_jax.store.base import Fingerprint, Header, Source, TensorInfo, Unread, fingerprint_of
from brainsurgery_jax.store.failures import no_tensor, os_failures
from brainsurgery_jax.store.io.arrays import empty_aligned, numpy_dtype
from brainsurgery_jax.store.io.descriptors import Watch
from brainsurgery_jax.store.io.joined import JoinedSource
from brainsurgery_jax.store.io.local import open_files
from brainsurgery_jax.store.io.strided import Laid, StridedSource
from brainsurgery_jax.store.key_paths import Path, name_of
from brainsurgery_jax.store.key_tree import KeyTree, told
from brainsurgery_jax.store.safetensors.header import AGAIN

if TYPE_CHECKING:
    import numpy as np

_INSTALL = "Install it: `pip install 'brainsurgery-jax[hdf5]'`."


def require_h5py(path: str) -> None:
    """Raises StoreError if h5py is not installed."""
    if find_spec("h5py") is None:
        raise StoreError(path, "needs h5py, which is not installed", remedy=_INSTALL)


DEFAULT_CACHE = 8 << 20
"""Bytes of chunks that HDF5 2 keeps of a dataset by itself."""
MOST_CACHED = 64 << 20
"""Bytes of decoded chunks that are kept between two reads, if a single chunk is not longer."""


class ChunkedDatasets:
    """Datasets that are stored in chunks, maybe compressed; see `base.Source`. h5py lets one thread in at a time.

    A tensor is read in pieces that go through it in row-major order. HDF5 keeps the chunks that a piece shares with the
    next one, so that each is decoded once, but by itself only a few MiB, for as long as a dataset is open. So the
    last one that was read stays open, with room for the chunks that lie side by side, and no other.

    `datasets`: where each lies in the file.
    """

    def __init__(self, path: str, file: Any, datasets: Mapping[str, str], avals: Mapping[str, Aval]):
        self.header = Header(path, (path,), {name: TensorInfo(aval, 0, 0) for name, aval in avals.items()}, {})
        self._file, self._datasets, self._watch = file, datasets, Watch([path])
        self._lock = Lock()
        self._last: tuple[str, Any] = "", None
        self.bytes_read = 0

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        aval = self._aval(name)
        dtype = numpy_dtype(aval.dtype, path=self.header.path, tensor=name)
        box = whole(aval.shape) if box is None else box
        with os_failures(self.header.path, f"read tensor '{name}'"), _damage(self.header.path, name), self._lock:
            found = self._open(name)[tuple(slice(*span) for span in box)]
            self.bytes_read += found.nbytes
        result = empty_aligned(found.shape, dtype)
        result[...] = found.view(dtype) if found.dtype.kind == "V" else found
        return result

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        import numpy as np

        aval = self._aval(name)
        parts = [self.read(name, box).reshape(-1) for box in cover(aval.shape, start, stop)]
        result = empty_aligned((stop - start,), numpy_dtype(aval.dtype, path=self.header.path, tensor=name))
        return np.concatenate(parts, out=result) if parts else result

    def file_run(self, name: str, start: int, stop: int) -> None:
        """None: the bytes may be compressed."""

    @property
    def fingerprint(self) -> Fingerprint:
        """The stamp of the file, and a digest of the header."""
        return fingerprint_of(self.header, self._watch.stamps)

    def verify_unchanged(self) -> None:
        """Raises StoreError if the file was replaced, resized or written to since it was opened."""
        self._watch.verify_unchanged()

    def close(self) -> None:
        """Closes the file."""
        self._last = "", None
        self._file.close()

    def _open(self, name: str) -> Any:
        """The dataset, which stays open until another one is read."""
        import h5py

        if self._last[0] != name:
            self._last = "", None  # closed, and its chunks freed, before the next one gets room for its own
            access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
            path = self._datasets[name].encode()
            if (room := _room_for_chunks(h5py.Dataset(h5py.h5d.open(self._file.id, path)))) is not None:
                access.set_chunk_cache(*room, 1.0)
            self._last = name, h5py.Dataset(h5py.h5d.open(self._file.id, path, access))
        return self._last[1]

    def _aval(self, name: str) -> Aval:
        if name not in self.header.tensors:
            raise no_tensor(self.header.path, name, self.header.tensors)
        return self.header.tensors[name].aval


def _room_for_chunks(dataset: Any) -> tuple[int, int] | None:
    """Slots and bytes for the chunks that one row of a dataset goes through; None for one without chunks."""
    if dataset.chunks is None:
        return None
    each = prod(dataset.chunks) * dataset.dtype.itemsize
    abreast = prod(-(-size // long) for size, long in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
    return 10 * abreast + 1, max(each, min(each * abreast, MOST_CACHED), DEFAULT_CACHE)


def open_hdf5(path: str) -> Source:
    """The datasets of a file, in the order of the file."""
    require_h5py(path)
    import h5py

    with ExitStack() as on_failure:
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            reason = str(error).partition(" (")[2].rstrip(")") or str(error)
            raise StoreError(path, f"is no file of HDF5 that can be read: {reason}", remedy=AGAIN) from error
        on_failure.callback(file.close)
        (opened,) = files = open_files([path])
        on_failure.callback(opened.close)
        with _damage(path):
            source = _sort(path, file, files)
        on_failure.pop_all()
    return source


@contextmanager
def _damage(path: str, name: str | None = None) -> Iterator[None]:
    """Makes what HDF5 raises for damaged tables a StoreError."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, OverflowError, OSError) as error:
        raise StoreError(path, f"is damaged: {error}", tensor=name, remedy=AGAIN) from error


def _sort(path: str, file: Any, files: Any) -> Source:
    """The datasets by how they are stored."""
    plain: dict[str, TensorInfo] = {}
    laid: dict[str, Laid] = {}
    chunked: dict[str, str] = {}
    avals: dict[str, Aval] = {}
    left_out: dict[str, str] = {}
    unread: dict[str, Unread] = {}
    paths: dict[str, Path] = {}
    for keys, dataset in _datasets(file, (), set()):
        name = name_of(keys)
        if name in paths:
            unread[name] = Unread("two datasets have this name, once the keys are joined by dots")
            continue
        paths[name] = keys
        if dataset is None:
            unread[name] = Unread("it lies in another file, which is not followed")
            continue
        dtype = _dtype(dataset)
        if dtype is None and _is_text(dataset):
            left_out[name] = "text"
        elif dtype is None:
            unread[name] = Unread(f"it is of the type {dataset.dtype}")
        if dtype is None:
            continue
        avals[name] = Aval(tuple(dataset.shape), dtype)
        if (offset := _offset(dataset)) is None:
            chunked[name] = dataset.name
        else:
            plain[name] = TensorInfo(avals[name], 0, offset)
            laid[name] = Laid(strides(dataset.shape), not dataset.dtype.isnative)
    tree = KeyTree(told(paths))
    tensors = {name: plain.get(name, TensorInfo(aval, 0, 0)) for name, aval in avals.items()}
    header = Header(path, (path,), tensors, {}, left_out=left_out, unread=unread, tree=tree)
    here = StridedSource(Header(path, (path,), plain, {}), files, laid)
    decoded = ChunkedDatasets(path, file, chunked, {name: avals[name] for name in chunked})
    return JoinedSource(header, [here, decoded])


def _is_text(dataset: Any) -> bool:
    import h5py

    return dataset.dtype.kind in "SU" or h5py.check_string_dtype(dataset.dtype) is not None


def _offset(dataset: Any) -> int | None:
    """Where the bytes of a dataset begin in the file; None where they are in chunks, or not as numpy has them: a type
    that numpy lacks comes widened by h5py."""
    import h5py

    lies_so = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)
    return dataset.id.get_offset() if lies_so else None


def _datasets(group: Any, path: Path, seen: set[int]) -> Any:
    """The datasets below a group with their paths; None for one in another file, which is not followed. Links
    within the file are second names and are left out, as is a group that was `seen` under another name: groups may
    hold each other."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr  # pyright: ignore[reportAttributeAccessIssue]
    if address in seen:
        return
    seen.add(address)
    for key in group:
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            yield (*path, key), None
        if not isinstance(link, h5py.HardLink):
            continue
        inner = group[key]
        if isinstance(inner, h5py.Group):
            yield from _datasets(inner, (*path, key), seen)
        elif isinstance(inner, h5py.Dataset) and inner.shape is not None:  # a type may stand there, too
            yield (*path, key), inner


def _dtype(dataset: Any) -> DType | None:
    """Our dtype of a dataset; bfloat16 lies there as two raw bytes, with its name among the attributes."""
    if dataset.dtype.kind == "V":
        told = BY_NAME.get(str(dataset.attrs.get("dtype", "bfloat16")))
        return told if dataset.dtype.names is None and told and told.bits == 8 * dataset.dtype.itemsize else None
    found = OF_ARRAYS.get(dataset.dtype.name)
    return found if found is not None and found.numpy is not None else None
