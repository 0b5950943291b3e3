"""Checkpoints of orbax, as the table of formats wants them."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.descriptors import check_room
from brainsurgery_jax.store.io.encoded import EncodedWriter, InParts, open_encoded
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.orbax.aggregate import open_orbax as open_source
from brainsurgery_jax.store.orbax.encode import check as check_output
from brainsurgery_jax.store.orbax.encode import encode, encode_part, held_bytes, merge_parts

DESCRIPTORS = 24
"""Files, sockets and event queues that orbax has open at a time, with some in reserve."""

__all__ = ["check_output", "held_bytes", "open_source", "open_writer"]


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> EncodedWriter:
    """The writer of an output. Raises StoreError where orbax, which reports that on its way with tracebacks, would run
    out of descriptors."""
    with os_failures(staged.destination, f"open {DESCRIPTORS} files, which orbax needs"):
        check_room(DESCRIPTORS)
    return open_encoded(staged, avals, options, encode, InParts(encode_part, merge_parts))
