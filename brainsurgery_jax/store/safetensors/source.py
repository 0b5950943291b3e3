"""Reading safetensors: one file, or a folder of shards. Only headers are read until somebody asks for elements."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from brainsurgery_jax.store.base import Header, Note
from brainsurgery_jax.store.completeness import choose
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.index_files import Indexed, merge, place
from brainsurgery_jax.store.io import local
from brainsurgery_jax.store.io.byte_source import ByteSource
from brainsurgery_jax.store.io.files import File
from brainsurgery_jax.store.safetensors.header import Avals, FileHeader, read_header

SUFFIXES = frozenset({".safetensors"})


class SafetensorsSource(ByteSource):
    """A safetensors checkpoint open for reading; see `base.Source`. Any thread may read."""

    def __init__(self, path: str, files: Sequence[File], listed: Indexed | None = None, notes: tuple[Note, ...] = ()):
        """`path` is what the user named, `files` are those behind it, `listed` is what an index says of them."""
        names = [file.name for file in files]
        with ExitStack() as on_failure:
            for file in files:
                on_failure.callback(file.close)
            avals: Avals = {}
            headers = [_header_of(number, file, avals) for number, file in enumerate(files)]
            shards = [header.tensors for header in headers]
            if listed is not None:
                shards, more = place(listed, names, shards)
                notes = (*notes, *more)
            metadata = {key: text for header in reversed(headers) for key, text in header.metadata.items()}
            plain = {number: header.plain for number, header in enumerate(headers) if header.plain is not None}
            tensors = merge(names, shards)
            super().__init__(Header(path, tuple(names), tensors, metadata, plain, notes=notes), files)
            on_failure.pop_all()


def open_safetensors(path: str, *, open_files: int = 64) -> SafetensorsSource:
    """The checkpoint in a local file or folder; at most `open_files` files are open beside those in use."""
    chosen = choose(path, SUFFIXES)
    return SafetensorsSource(path, local.open_files(chosen.files, limit=open_files), chosen.listed, chosen.notes)


def _header_of(number: int, file: File, avals: Avals) -> FileHeader:
    with os_failures(file.name, "read the header"):
        return read_header(file, number, avals)
