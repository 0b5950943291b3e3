"""Reading numpy's files: `.npy` holds one array, `.npz` is a zip archive of these. Nothing is ever unpickled.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

An array is called what its member is called, that of a `.npy` file like the file. Arrays that are not compressed are
read in place, in either order and either byte order.

numpy has no bfloat16 and no float8 and writes such arrays as raw bytes, `|V2` and `|V1`. Of two bytes bfloat16 is the
only such type, and so it is read. Our archives say it for each: the comment of the member is the name of its dtype; and
the comment of the archive is the checkpoint's metadata, as JSON. Other programs pass over comments.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, NamedTuple

from brainsurgery_jax.dtypes import BY_NAME, OF_ARRAYS, Aval, DType
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.index.boxes import strides
from brainsurgery_jax.store.base import Header, Source, TensorInfo, Unread
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.local import LocalFile, open_files
from brainsurgery_jax.store.io.strided import Laid, StridedSource
from brainsurgery_jax.store.io.zip_members import (
    Window,
    data_offset,
    is_stored,
    leads_out,
    refuse_encrypted,
    zip_failures,
)
from brainsurgery_jax.store.io.zipped import ZippedSource
from brainsurgery_jax.store.safetensors.header import AGAIN, json_object

if TYPE_CHECKING:
    import numpy as np

_NO_TENSOR = {"U": "text", "S": "text", "M": "dates", "m": "times"}


_RENAME = "If you trust it, load it with `numpy.load(PATH)`, and save its arrays under other names."
_PACK = "Unpack the archive, and pack it again without compression: `zip -0 -r`."
_PICKLED = "If you trust it, load it with `numpy.load(PATH, allow_pickle=True)`, and save the arrays in it by name."


class Array(NamedTuple):
    """The contents of an array's header: its aval, the order of its elements, and the byte at which they begin."""

    aval: Aval
    laid: Laid
    start: int


def open_npy(path: str) -> Source:
    """The one array of a `.npy` file, called like the file without its suffix."""
    name = Path(path).stem
    with ExitStack() as on_failure:
        (opened,) = files = open_files([path])
        on_failure.callback(opened.close)
        with os_failures(path, "read the header"):
            found = read_head(io.BufferedReader(Window(opened)), "")
            found = _check_size(found, opened.size) if isinstance(found, Array) else found
        if isinstance(found, str):
            raise StoreError(path, f"holds {found}, not numbers", remedy="Only arrays of numbers can be read.")
        if isinstance(found, Unread):
            raise StoreError(path, found.why, tensor=name, remedy=found.remedy)
        header = Header(path, (path,), {name: TensorInfo(found.aval, 0, found.start)}, {})
        source = StridedSource(header, files, {name: found.laid})
        on_failure.pop_all()
    return source


def open_npz(path: str) -> Source:
    """The arrays of a `.npz` archive, in the order of the archive."""
    with ExitStack() as on_failure:
        (opened,) = open_files([path])
        on_failure.callback(opened.close)
        with os_failures(path, "read the archive"), zip_failures(path, "archive"):
            source = _archive(opened)
        on_failure.pop_all()
    return source


def _archive(opened: LocalFile) -> Source:
    path, window = opened.name, Window(opened)
    tensors: dict[str, TensorInfo] = {}
    laid: dict[str, Laid] = {}
    packed: dict[str, zipfile.ZipInfo] = {}
    left_out: dict[str, str] = {}
    unread: dict[str, Unread] = {}
    seen: set[str] = set()
    with zipfile.ZipFile(io.BufferedReader(window)) as archive:
        refuse_encrypted(archive, path)
        metadata = _metadata(archive.comment)
        for name, member in _members(archive):
            begin = data_offset(window, member, path=path)
            found = Unread("it is in the archive twice", AGAIN) if name in seen else _member(archive, member, name)
            seen.add(name)
            if isinstance(found, str):
                left_out[name] = found
                continue
            if isinstance(found, Unread):
                unread[name] = found
                continue
            start = found.start
            if is_stored(member):
                start += begin
            else:
                packed[name] = member
            tensors[name], laid[name] = TensorInfo(found.aval, 0, start), found.laid
    header = Header(path, (path,), tensors, metadata, left_out=left_out, unread=unread)
    source = StridedSource(header, [opened], laid)
    return ZippedSource(source, laid, packed) if packed else source


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The members of the archive by their names in numpy."""
    for member in archive.infolist():
        yield member.filename.removesuffix(".npy"), member


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Array | Unread | str:
    """The contents of a member. A damaged member does not affect the others."""
    if name == member.filename:
        return Unread("it is a file that is no array")
    if leads_out(name):
        return Unread("its name leads out of the archive", _RENAME)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Unread("it is compressed in a way that numpy never does, and may take any memory", _PACK)
    with archive.open(member) as file:
        found = read_head(file, member.comment.decode(errors="replace"))
    return found if not isinstance(found, Array) else _check_size(found, member.file_size)


def read_head(file: IO[bytes], told: str) -> Array | Unread | str:
    """What stands before the elements of an array, or what it holds if that is no tensor. `told` is the name of its
    dtype, if something beside the head tells it."""
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        with warnings.catch_warnings():  # that Python 2 wrote it
            warnings.simplefilter("ignore")
            shape, fortran, dtype = read(file)
    except KeyError as error:
        return Unread(f"it is of the npy version {error}, which is not read", "Save it as numbers of another type.")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, TokenError) as error:
        return Unread(f"its npy header is damaged: {error}", AGAIN)
    if dtype.kind in _NO_TENSOR:
        return _NO_TENSOR[dtype.kind]
    if dtype.kind == "O":
        return Unread("it holds pickled Python objects, which may be arrays; nothing is unpickled", _PICKLED)
    ours = _dtype(dtype, told)
    if ours is None:
        return Unread(f"its elements are of numpy's type {dtype}", "Save it as numbers of another type.")
    if any(n < 0 for n in shape):
        return Unread(f"it has the shape {shape}", AGAIN)
    apart = strides(shape[::-1])[::-1] if fortran else strides(shape)
    return Array(Aval(tuple(shape), ours), Laid(apart, not dtype.isnative), file.tell())


def _dtype(dtype: np.dtype, told: str) -> DType | None:
    """Ours for one of numpy's; raw bytes are what is told, and two of them bfloat16."""
    if dtype.kind != "V":
        return OF_ARRAYS.get(dtype.name)
    if dtype.names is not None or dtype.subdtype is not None:
        return None
    ours = BY_NAME.get(told or ("bfloat16" if dtype.itemsize == 2 else ""))
    return ours if ours is not None and ours.bits == 8 * dtype.itemsize else None


def _check_size(found: Array, nbytes: int) -> Array | Unread:
    """The array, if it takes as many bytes with its header as there are."""
    need = found.start + prod(found.aval.shape) * found.aval.dtype.bits // 8
    if need != nbytes:
        return Unread(f"{found.aval} takes {need} bytes with its header, found {nbytes}", AGAIN)
    return found


def _metadata(comment: bytes) -> dict[str, str]:
    """The metadata in the comment of an archive; a comment in words is none."""
    try:
        table = json_object(comment, "", "comment") if comment.startswith(b"{") else {}
    except StoreError:
        return {}
    texts = {key: text for key, text in table.items() if isinstance(text, str)}
    return texts if len(texts) == len(table) else {}
