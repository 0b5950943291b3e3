"""Files of HDF5, as the table of formats wants them; and writing them, as Keras lays out its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.failures import check_unicode
from brainsurgery_jax.store.flax.layout import keys_of
from brainsurgery_jax.store.hdf5.source import open_hdf5 as open_source
from brainsurgery_jax.store.hdf5.source import require_h5py
from brainsurgery_jax.store.io.encoded import EncodedWriter, open_encoded
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.key_paths import clash

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_output", "open_source", "open_writer"]


def check_output(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError if h5py is missing, and for the first tensor that a file of HDF5 cannot hold."""
    require_h5py(path)
    for name, aval in avals.items():
        if aval.dtype.numpy is None or (aval.dtype.is_float and aval.dtype.bits < 16):
            remedy = "Write safetensors, or cast it first."
            raise StoreError(path, f"HDF5 has no dtype {aval.dtype}", tensor=name, remedy=remedy, castable=True)
        if "" in name.split(".") or "/" in name or "\0" in name:
            raise StoreError(path, "HDF5 has no such name", tensor=name, remedy="Give it a name without slashes.")
    check_unicode(path, avals)
    if two := clash({keys_of(options.tree, name): name for name in avals}):
        problem = f"is the prefix of '{two[1]}': a file of HDF5 cannot hold a tensor and more below it"
        raise StoreError(
            path, problem, tensor=two[0], remedy="Rename one of the two: a name of HDF5 is a dataset, or a group."
        )


def encode_hdf5(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes each array as a dataset below the groups of its name."""
    import h5py

    with h5py.File(path, "x") as file:
        for name, array in arrays.items():
            place = "/".join(keys_of(options.tree, name))
            foreign = array.dtype.isbuiltin != 1
            made = file.create_dataset(place, data=array.view("V2") if foreign else array)
            if foreign:
                made.attrs["dtype"] = array.dtype.name


def open_writer(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> EncodedWriter:
    """The writer of an output."""
    return open_encoded(staged, avals, options, encode_hdf5)
