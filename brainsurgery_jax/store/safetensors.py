"""Reading safetensors: one file, or a folder of shards. Only headers are read until somebody asks for elements."""

from __future__ import annotations

import os
from contextlib import ExitStack

from brainsurgery_jax.store.base import Header
from brainsurgery_jax.store.byte_source import ByteSource
from brainsurgery_jax.store.completeness import Chosen, choose, is_index
from brainsurgery_jax.store.descriptors import Descriptors
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.index_files import merge, place
from brainsurgery_jax.store.safetensors_header import FileHeader, read_header

SUFFIXES = frozenset({".safetensors"})


class SafetensorsSource(ByteSource):
    """A safetensors checkpoint open for reading; see `base.Source`. Any thread may read."""

    def __init__(self, path: str, *, open_files: int = 64):
        several = os.path.isdir(path) or is_index(os.path.basename(path))
        chosen = choose(path, SUFFIXES) if several else Chosen([path])
        files, notes = chosen.files, chosen.notes
        descriptors = Descriptors(files, os.O_RDONLY, watch=True, limit=open_files)
        with ExitStack() as on_failure:
            on_failure.callback(descriptors.close)
            headers = [_file_header(descriptors, number, file) for number, file in enumerate(files)]
            shards = [header.tensors for header in headers]
            if chosen.listed is not None:
                shards, more = place(chosen.listed, files, shards)
                notes = (*notes, *more)
            metadata = {key: text for header in reversed(headers) for key, text in header.metadata.items()}
            plain = {file: header.plain for file, header in enumerate(headers) if header.plain is not None}
            tensors = merge(files, shards)
            super().__init__(Header(path, tuple(files), tensors, metadata, plain, notes=notes), descriptors)
            on_failure.pop_all()


def _file_header(descriptors: Descriptors, file: int, path: str) -> FileHeader:
    with descriptors.lease(file) as fd, os_failures(path, "read the header"):
        return read_header(fd, path, file)
