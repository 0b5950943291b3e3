"""A place that is no file system, and how outputs appear there: by a marker that is written last."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Sequence
from typing import IO, NamedTuple

from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.store.io.files import (
    File,
    Left,
    NewFile,
    StagedOutput,
    Stamp,
    copy_through_memory,
    truncation_error,
)

MARKER = "_COMMITTED"


class Bucket:
    """Objects by key, as an object store has them; counts what is done to it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytearray] = {}
        self.versions: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.bytes_read = 0

    def put(self, key: str, content: bytearray) -> bytearray:
        self.objects[key] = content
        self.versions[key] += 1
        return content

    def stamp(self, key: str) -> Stamp:
        return Stamp(len(self.objects.get(key, b"")), f"v{self.versions[key]}")

    def is_published(self, destination: str) -> bool:
        return f"{destination}/{MARKER}" in self.objects


class BucketFile:
    """An object open for reading; see `files.File`."""

    def __init__(self, bucket: Bucket, key: str):
        self.name, self._bucket = key, bucket
        self.stamp = bucket.stamp(key)
        self.size = self.stamp.size

    def read_into(self, view: memoryview, offset: int, *, tensor: str | None = None) -> None:
        content = self._bucket.objects[self.name][offset : offset + len(view)]
        self._bucket.reads[self.name] += 1
        self._bucket.bytes_read += len(content)
        if len(content) < len(view):
            raise truncation_error(self.name, offset + len(content), len(view) - len(content), tensor=tensor)
        view[:] = content

    def verify_unchanged(self) -> None:
        if self._bucket.stamp(self.name) != self.stamp:
            raise StoreError(self.name, "changed while running")

    def close(self) -> None:
        pass


class NewBucketFile:
    """An object in the making; see `files.NewFile`."""

    def __init__(self, key: str, content: bytearray):
        self.name, self._content = key, content

    def write(self, view: memoryview, offset: int) -> None:
        self._content[offset : offset + len(view)] = view

    def write_rows(self, view: memoryview, offsets: Sequence[int], nbytes: int) -> None:
        for number, offset in enumerate(offsets):
            self.write(view[number * nbytes : (number + 1) * nbytes], offset)

    def copy(self, file: File, start: int, offset: int, nbytes: int) -> None:
        copy_through_memory(file, start, self, offset, nbytes)

    def begin_flush(self, offset: int, nbytes: int) -> None:
        pass

    def close(self) -> None:
        pass


class _Upload(io.BytesIO):
    """Bytes that are an object once they are all there."""

    def __init__(self, bucket: Bucket, key: str):
        super().__init__()
        self._bucket, self._key = bucket, key

    def close(self) -> None:
        if not self.closed:
            self._bucket.put(self._key, bytearray(self.getvalue()))
        super().close()


class BucketPlace:
    """The objects below a key; see `files.Place`."""

    def __init__(self, bucket: Bucket, prefix: str):
        self._bucket, self._prefix = bucket, prefix

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}".rstrip("/")

    def list(self) -> Sequence[str]:
        below = f"{self._prefix}/"
        return sorted(key.removeprefix(below) for key in self._bucket.objects if key.startswith(below))

    def open(self, name: str) -> BucketFile:
        return BucketFile(self._bucket, self._key(name))

    def create_folder(self) -> None:
        if self.list():
            raise FileExistsError(self._prefix)

    def create(self, name: str, nbytes: int) -> NewFile:
        return NewBucketFile(self._key(name), self._bucket.put(self._key(name), bytearray(nbytes)))

    def stream(self, name: str) -> IO[bytes]:
        return _Upload(self._bucket, self._key(name))

    def clone(self, name: str, file: File, *, link: bool = False) -> None:
        pass

    def write(self, name: str, content: bytes) -> None:
        self._bucket.put(self._key(name), bytearray(content))

    def flush(self) -> None:
        pass


class InBucket(NamedTuple):
    """An output whose files have their last names already; see `files.StagedOutput`."""

    bucket: Bucket
    destination: str

    @property
    def place(self) -> BucketPlace:
        return BucketPlace(self.bucket, self.destination)

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        return ()

    def abandon(self) -> None:
        for name in self.place.list():
            del self.bucket.objects[f"{self.destination}/{name}"]


class ByMarker:
    """Outputs are there once their marker is; see `files.Commit`."""

    def __init__(self, bucket: Bucket):
        self._bucket = bucket

    def stage(self, destination: str, *, overwrite: bool, own: Collection[str]) -> InBucket:
        return InBucket(self._bucket, destination)

    def prepare(self, staged: Sequence[StagedOutput]) -> None:
        pass

    def publish(self, staged: Sequence[StagedOutput], *, durable: bool) -> tuple[Left, ...]:
        for output in staged:
            output.place.write(MARKER, b"")
        return ()
