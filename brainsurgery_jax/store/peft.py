"""Folders of PEFT: an adapter's tensors in `adapter_model.safetensors` (or `.bin`), its kind in `adapter_config.json`.

The config travels as text in the metadata, so that an adapter that went through another format can be written back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.atomic import Staged, discard, fsync_tree
from brainsurgery_jax.store.base import FileRun, Source, WriteOptions
from brainsurgery_jax.store.completeness import adapter_notes
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import ADAPTER, ADAPTER_CONFIG, OLD_ADAPTER
from brainsurgery_jax.store.safetensors import SafetensorsSource
from brainsurgery_jax.store.safetensors_header import json_object
from brainsurgery_jax.store.safetensors_writer import SafetensorsWriter
from brainsurgery_jax.store.torch_files import open_torch

if TYPE_CHECKING:
    import numpy as np

IN_METADATA = "peft.adapter_config"
"""The key of the metadata that holds the text of the config."""


def open_peft(path: str) -> Source:
    """The tensors of an adapter, its config among the metadata."""
    config = os.path.join(path, ADAPTER_CONFIG)
    with os_failures(config, "read the config"), open(config, "rb") as file:
        text = file.read()
    json_object(text, config, "config")
    name = ADAPTER if os.path.exists(os.path.join(path, ADAPTER)) else OLD_ADAPTER
    notes = adapter_notes(path, name)
    weights = os.path.join(path, name)
    source = SafetensorsSource(weights) if name == ADAPTER else open_torch(weights)
    metadata = {**source.header.metadata, IN_METADATA: text.decode()}
    source.header = replace(source.header, path=path, metadata=metadata, notes=(*notes, *source.header.notes))
    return source


class PeftWriter:
    """An adapter's folder in the making; see `base.Writer`. Its config is one of the small files of the output."""

    def __init__(self, staged: Staged, avals: Mapping[str, Aval], options: WriteOptions):
        self._staged, self._durable = staged, options.durable
        with os_failures(staged.destination, "create the partial output"):
            os.mkdir(staged.staging)
        with ExitStack() as on_failure:
            on_failure.callback(discard, staged)
            self._file = SafetensorsWriter(
                Staged(os.path.join(staged.staging, ADAPTER), staged.destination),
                avals,
                single_file=True,
                metadata={key: text for key, text in options.metadata.items() if key != IN_METADATA},
                durable=options.durable,
                unchanged={name: held.source for name, held in options.unchanged.items() if held.name == name},
            )
            on_failure.pop_all()

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        self._file.put(name, start, data)

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows` at its own flat element offset of the tensor."""
        self._file.put_rows(name, starts, rows)

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        self._file.copy(name, start, run)

    def lane(self, name: str) -> int:
        """All tensors go to one file."""
        return 0

    def finish(self) -> Staged:
        """The complete adapter, ready for `atomic.publish`; a StoreError while bytes are missing."""
        self._file.finish()
        with os_failures(self._staged.destination, "write the partial output"):
            if self._durable:
                fsync_tree(self._staged.staging)
        return self._staged

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        self._file.abort()
        discard(self._staged)
