"""Compressed members of an archive. They can be decoded from their start only, so whoever reads on goes on where the
last read ended: reading a tensor in blocks, in their order, decodes it once for each thread that does so.

A read takes the memory of what it spans, from its first element to its last. Nothing else is kept but where decoding
stands, some hundred kilobytes for each of a few places.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.index.boxes import Box, whole
from brainsurgery_jax.store.base import FileRun, Fingerprint
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.arrays import byte_view, empty_aligned, numpy_dtype
from brainsurgery_jax.store.io.strided import Laid, StridedSource, gather, gather_range
from brainsurgery_jax.store.io.zip_members import zip_failures
from brainsurgery_jax.store.safetensors.header import AGAIN

if TYPE_CHECKING:
    import numpy as np

_PLACES = 4
"""Streams kept open where reads of a tensor ended."""


class ZippedSource:
    """An archive of which some members are compressed, the `packed` ones; see `base.Source`. `laid` tells for all of
    them how their elements lie; an offset of the header counts from the start of the member."""

    def __init__(self, stored: StridedSource, laid: Mapping[str, Laid], packed: Mapping[str, zipfile.ZipInfo]):
        self.header = stored.header
        self._stored, self._laid = stored, laid
        path = self.header.path
        with os_failures(path, "open the file"), zip_failures(path, "archive"):
            self._archive = zipfile.ZipFile(path)
        self._streams = {name: _Stream(self._archive, member, path, name) for name, member in packed.items()}

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far, decoded ones included, passed over ones not."""
        return self._stored.bytes_read + sum(stream.bytes_read for stream in self._streams.values())

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        if name not in self._streams:
            return self._stored.read(name, box)
        shape = self.header.tensors[name].aval.shape
        return gather(self._fetch(name), self._laid[name], whole(shape) if box is None else box, self._dtype(name))

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        if name not in self._streams:
            return self._stored.read_range(name, start, stop)
        shape = self.header.tensors[name].aval.shape
        if self._laid[name].is_plain(shape):
            return self._elements(name, start, stop)
        return gather_range(self._fetch(name), self._laid[name], shape, start, stop, self._dtype(name))

    def _fetch(self, name: str):
        return lambda start, stop: self._elements(name, start, stop)

    def _elements(self, name: str, start: int, stop: int) -> np.ndarray:
        dtype = self._dtype(name)
        result = empty_aligned((stop - start,), dtype)
        self._streams[name].read(byte_view(result), self.header.tensors[name].offset + start * dtype.itemsize)
        return result

    def _dtype(self, name: str) -> np.dtype:
        return numpy_dtype(self.header.tensors[name].aval.dtype, path=self.header.path, tensor=name)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if they do not lie one after the other, or are compressed."""
        return None if name in self._streams else self._stored.file_run(name, start, stop)

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the files that are read."""
        return self._stored.fingerprint

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        self._stored.verify_unchanged()

    def close(self) -> None:
        """Gives all descriptors back."""
        self._stored.close()
        self._archive.close()


class _Stream:
    """One member, decoded forward from wherever an earlier read ended."""

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str, name: str):
        self._archive, self._member, self._path, self._name = archive, member, path, name
        self._lock = Lock()
        self._places: list[zipfile.ZipExtFile] = []
        self.bytes_read = 0

    def read(self, view: memoryview, start: int) -> None:
        """Fills `view` with the decoded bytes from `start` on."""
        with os_failures(self._path, f"read tensor '{self._name}'"), zip_failures(self._path, "archive"):
            file = self._at_or_before(start)
            file.seek(start)
            done = 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
        if done < len(view):
            raise StoreError(self._path, "is cut off", tensor=self._name, remedy=AGAIN)
        with self._lock:
            self.bytes_read += done
            self._places = [*self._places, file][-_PLACES:]

    def _at_or_before(self, start: int) -> zipfile.ZipExtFile:
        """The stream at the nearest position before `start`; the caller now owns it."""
        with self._lock:
            nearest = max((f for f in self._places if f.tell() <= start), key=lambda f: f.tell(), default=None)
            if nearest is not None:
                self._places.remove(nearest)
                return nearest
        opened = self._archive.open(self._member)
        assert isinstance(opened, zipfile.ZipExtFile)
        return opened
