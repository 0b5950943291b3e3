"""Files with one array of numpy, as the table of formats wants them."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.io.encoded import EncodedWriter, open_streamed
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.numpy.encode import check_npy as check_output
from brainsurgery_jax.store.numpy.encode import encode_npy
from brainsurgery_jax.store.numpy.source import open_npy as open_source

__all__ = ["check_output", "open_source", "open_writer"]


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> EncodedWriter:
    """The writer of an output."""
    return open_streamed(staged, avals, options, encode_npy)
