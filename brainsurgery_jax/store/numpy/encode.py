"""Write the files of numpy from memory maps, a piece at a time. `npy.py` describes their contents."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.failures import check_unicode
from brainsurgery_jax.store.io.arrays import byte_view
from brainsurgery_jax.store.io.positioned import CHUNK
from brainsurgery_jax.store.io.zip_members import leads_out

if TYPE_CHECKING:
    import numpy as np

_MAX_TEXT = 65535
"""Bytes; the longest name and the longest comment that an archive holds."""

_DATE = (1980, 1, 1, 0, 0, 0)  # the first that the format knows: the same archive every time


def encode_npy(file: IO[bytes], arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes the one array there is."""
    (array,) = arrays.values()
    write_array(file, array)


def encode_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes an archive, uncompressed, or compressed if the options say so."""
    kind = zipfile.ZIP_DEFLATED if options.options.get("compression") else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.comment = _comment(options.metadata)
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _DATE)
            member.compress_type = kind
            member.comment = array.dtype.name.encode() if _is_foreign(array.dtype) else b""
            with archive.open(member, "w", force_zip64=True) as inner:
                write_array(inner, array)


def _comment(metadata: Mapping[str, str]) -> bytes:
    """The comment of an archive that holds these metadata."""
    return json.dumps(dict(metadata)).encode() if metadata else b""


def check_npy(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError unless there is one tensor, of a dtype that can be told from its bytes alone."""
    if len(avals) > 1:
        problem = f"npy holds one array, and there are {len(avals)} tensors"
        raise StoreError(path, problem, remedy=f"Write '{os.path.splitext(path)[0]}.npz', or one tensor with `target`.")
    check_dtypes(path, avals)


def check_dtypes(path: str, avals: Mapping[str, Aval]) -> None:
    """Raises StoreError for the first tensor whose dtype npy cannot represent."""
    _check_dtypes(path, avals)
    for name, aval in avals.items():
        if aval.dtype.is_float and aval.dtype.bits == 8:
            remedy = "Write .npz, or cast it first."
            problem = f"npy cannot tell {aval.dtype} from other bytes"
            raise StoreError(path, problem, tensor=name, remedy=remedy, castable=True)


def check_npz(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError for the first tensor that an archive cannot hold, or metadata that are too long for it."""
    _check_dtypes(path, avals)
    check_unicode(path, avals)
    for name in avals:
        if "\0" in name or len(name.encode()) > _MAX_TEXT - len(".npy"):
            raise StoreError(path, "a zip archive cannot hold such a name", tensor=name[:80], remedy="Rename it.")
        if leads_out(name):
            problem = "a zip archive with such a name would be unpacked outside of its folder"
            raise StoreError(path, problem, tensor=name, remedy="Rename it.")
        if name.endswith(".npy") and name.removesuffix(".npy") in avals:
            problem = f"numpy cannot tell it from '{name.removesuffix('.npy')}', whose member is called '{name}'"
            raise StoreError(path, problem, tensor=name, remedy="Rename it.")
    if (size := len(_comment(options.metadata))) > _MAX_TEXT:
        problem = f"the metadata take {size} bytes, a zip archive holds {_MAX_TEXT}"
        raise StoreError(path, problem, remedy="Write safetensors, or give less `metadata`.")


def _check_dtypes(path: str, avals: Mapping[str, Aval]) -> None:
    for name, aval in avals.items():
        if aval.dtype.numpy is None:
            remedy = "Write safetensors, which carries the packed bytes."
            raise StoreError(path, f"numpy has no dtype {aval.dtype}", tensor=name, remedy=remedy)


def write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Writes one array as `numpy.save` does, but types of ml_dtypes as raw bytes."""
    from numpy.lib import format as npy

    plain = f"|V{array.dtype.itemsize}" if _is_foreign(array.dtype) else array.dtype.str
    npy.write_array_header_1_0(file, {"descr": plain, "fortran_order": False, "shape": array.shape})
    view = byte_view(array)
    for start in range(0, len(view), CHUNK):
        file.write(view[start : start + CHUNK])


def _is_foreign(dtype: np.dtype) -> bool:
    """Whether it is one of ml_dtypes, which files of numpy hold as raw bytes."""
    return dtype.isbuiltin != 1
