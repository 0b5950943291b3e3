"""Folders of `torch.distributed.checkpoint`, as the table of formats wants them."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.io.encoded import EncodedWriter, open_encoded
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.torch.dcp import open_dcp as open_source
from brainsurgery_jax.store.torch.dcp_encode import encode_dcp
from brainsurgery_jax.store.torch.encode import check_torch as check_output

__all__ = ["check_output", "open_source", "open_writer"]


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> EncodedWriter:
    """The writer of an output."""
    return open_encoded(staged, avals, options, encode_dcp)
