"""Folders of deltas, as the table of formats wants them: `delta.safetensors` and a manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Source, WriteOptions
from brainsurgery_jax.store.delta.manifest import manifest_of, read_manifest
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import DELTA, DELTA_MANIFEST
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.safetensors.layout import check_storable as check_output
from brainsurgery_jax.store.safetensors.layout import layout_of
from brainsurgery_jax.store.safetensors.writer import SafetensorsWriter

__all__ = ["check_output", "open_source", "open_writer"]


def open_source(path: str) -> Source:
    """Raises StoreError: a delta alone is no checkpoint."""
    base = read_manifest(os.path.join(path, DELTA_MANIFEST)).base
    raise StoreError(path, "is a delta, which is read together with its base", remedy=f"Write '{base} + {path}'.")


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> SafetensorsWriter:
    """The writer of a delta: of the tensors that its base does not hold."""
    layout = layout_of(staged.destination, avals, options._replace(directory=True, unchanged={}), name=DELTA)
    manifest = manifest_of(options.names, options.kept)
    writer = SafetensorsWriter(staged, layout, durable=options.durable)
    with os_failures(staged.destination, "write the manifest"):
        staged.place.write(DELTA_MANIFEST, manifest.encode())
    return writer
