"""Checkpoints of orbax, as the table of formats wants them."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.io.encoded import EncodedWriter, open_encoded
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.orbax.aggregate import open_orbax as open_source
from brainsurgery_jax.store.orbax.encode import check as check_output
from brainsurgery_jax.store.orbax.encode import encode

__all__ = ["check_output", "open_source", "open_writer"]


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> EncodedWriter:
    """The writer of an output."""
    return open_encoded(staged, avals, options, encode)
