"""Tensors whose elements no library can read, six or four bits wide: the bytes in the files are compared."""

from __future__ import annotations

from collections.abc import Iterator

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.io.files import CHUNK, read_bytes


def same_bytes(left: tuple[Source, str], right: tuple[Source, str]) -> bool:
    """Whether two tensors, each the name of one in a store, are of the same bytes."""
    return all(a == b for a, b in zip(_chunks(*left), _chunks(*right), strict=True))


def _chunks(source: Source, name: str) -> Iterator[bytes]:
    path = source.header.path
    run = source.file_run(name, 0, source.header.tensors[name].aval.size)
    if run is None:
        raise StoreError(path, "this format cannot tell where the bytes of a packed dtype lie", tensor=name)
    for at in range(0, run.nbytes, CHUNK):
        yield read_bytes(run.file, min(CHUNK, run.nbytes - at), run.offset + at)
