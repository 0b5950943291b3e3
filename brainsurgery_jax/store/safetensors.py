"""Reading safetensors: one file, or a folder of shards. Only headers are read until somebody asks for elements."""

from __future__ import annotations

import os
from contextlib import ExitStack

from brainsurgery_jax.store.base import Header
from brainsurgery_jax.store.byte_source import ByteSource
from brainsurgery_jax.store.descriptors import Descriptors
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.safetensors_folder import INDEX, check_placement, checkpoint_files, merge
from brainsurgery_jax.store.safetensors_header import FileHeader, read_header


class SafetensorsSource(ByteSource):
    """A safetensors checkpoint open for reading; see `base.Source`. Any thread may read."""

    def __init__(self, path: str, *, open_files: int = 64):
        files, weight_map = checkpoint_files(path) if os.path.isdir(path) else ([path], None)
        descriptors = Descriptors(files, os.O_RDONLY, watch=True, limit=open_files)
        with ExitStack() as on_failure:
            on_failure.callback(descriptors.close)
            headers = [_file_header(descriptors, file, path) for file, path in enumerate(files)]
            shards = [header.tensors for header in headers]
            if weight_map is not None:
                check_placement(os.path.join(path, INDEX), files, weight_map, shards)
            metadata = {key: text for header in reversed(headers) for key, text in header.metadata.items()}
            plain = {file: header.plain for file, header in enumerate(headers) if header.plain is not None}
            super().__init__(Header(path, tuple(files), merge(files, shards), metadata, plain), descriptors)
            on_failure.pop_all()


def _file_header(descriptors: Descriptors, file: int, path: str) -> FileHeader:
    with descriptors.lease(file) as fd, os_failures(path, "read the header"):
        return read_header(fd, path, file)
