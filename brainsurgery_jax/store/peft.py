"""Folders of PEFT: an adapter's tensors in `adapter_model.safetensors` (or `.bin`), its kind in `adapter_config.json`.

The config travels as text in the metadata, so that an adapter that went through another format can be written back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.base import Source, WriteOptions
from brainsurgery_jax.store.completeness import adapter_notes
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import ADAPTER, ADAPTER_CONFIG, OLD_ADAPTER
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.safetensors.header import json_object
from brainsurgery_jax.store.safetensors.layout import check_storable as check_output
from brainsurgery_jax.store.safetensors.layout import layout_of
from brainsurgery_jax.store.safetensors.source import open_safetensors
from brainsurgery_jax.store.safetensors.writer import SafetensorsWriter
from brainsurgery_jax.store.torch.source import open_torch

__all__ = ["IN_METADATA", "check_output", "open_source", "open_writer"]

IN_METADATA = "peft.adapter_config"
"""The key of the metadata that holds the text of the config."""


def open_source(path: str) -> Source:
    """The tensors of an adapter, its config among the metadata."""
    config = os.path.join(path, ADAPTER_CONFIG)
    with os_failures(config, "read the config"):
        text = read_regular(config)
    json_object(text, config, "config")
    name = ADAPTER if os.path.exists(os.path.join(path, ADAPTER)) else OLD_ADAPTER
    notes = adapter_notes(path, name)
    weights = os.path.join(path, name)
    source = open_safetensors(weights) if name == ADAPTER else open_torch(weights)
    metadata = {**source.header.metadata, IN_METADATA: text.decode()}
    source.header = replace(source.header, path=path, metadata=metadata, notes=(*notes, *source.header.notes))
    return source


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> SafetensorsWriter:
    """The writer for an adapter's folder. Its config is one of the small files of the output."""
    metadata = {key: text for key, text in options.metadata.items() if key != IN_METADATA}
    one_file = options._replace(metadata=metadata, directory=True, shard_bytes=None, keep_files=False)
    layout = layout_of(staged.destination, avals, one_file, name=ADAPTER)
    return SafetensorsWriter(staged, layout, durable=options.durable)
