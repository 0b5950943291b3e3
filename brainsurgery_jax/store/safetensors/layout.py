"""Where the bytes of a safetensors output go, and what its headers hold: found from avals alone, before any file is
created.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import TensorInfo, WriteOptions
from brainsurgery_jax.store.failures import check_unicode
from brainsurgery_jax.store.index_files import encode_index, shard_name
from brainsurgery_jax.store.safetensors.header import MAX_HEADER, METADATA, encode_header
from brainsurgery_jax.store.safetensors.shards import Shard, arrange_shards, header_metadata, plan_shards
from brainsurgery_jax.store.safetensors.unchanged import Original

_MOST_ENTRY = 200
"""Bytes that an entry of the header takes beside its name, generously."""


class FileLayout(NamedTuple):
    """A file of an output: its name there (empty: the output is this file), its header, and its size in bytes. A copy
    of an `original` takes over the header of that."""

    name: str
    header: bytes
    nbytes: int
    original: Original | None = None


class OutputLayout(NamedTuple):
    """Where all bytes of an output go: its files, the place of each tensor, the index if there is one, and whether it
    is a folder. A value that follows from headers alone; nothing was created."""

    files: tuple[FileLayout, ...]
    places: Mapping[str, TensorInfo]
    index_file: bytes | None
    directory: bool


def layout_of(
    path: str, avals: Mapping[str, Aval], options: WriteOptions, *, name: str = "model.safetensors"
) -> OutputLayout:
    """The layout of an output with these tensors. `path` is what errors name, `name` that of the one file of a folder
    that is not sharded. Raises StoreError for what safetensors cannot hold.

    A folder with more than one file gets numbered shards and an index, as the reference writes them. An output file
    that gets all tensors of one source file takes over its header, too, so that it becomes the same file byte for byte.
    """
    check_storable(path, avals, options)
    shards = arrange_shards(avals, options)
    sharded = options.directory and len(shards) > 1
    assert options.directory or len(shards) == 1, "a single file has no shards"
    names = _file_names(len(shards)) if sharded else [name if options.directory else ""]
    metadata = header_metadata(options.metadata)
    places: dict[str, TensorInfo] = {}
    files = [_place_file(path, file, names[file], shard, avals, metadata, places) for file, shard in enumerate(shards)]
    index = encode_index(avals, {name: names[places[name].file] for name in avals}) if sharded else None
    return OutputLayout(tuple(files), places, index, options.directory)


def _place_file(
    path: str,
    file: int,
    name: str,
    shard: Shard,
    avals: Mapping[str, Aval],
    metadata: Mapping[str, str],
    places: dict[str, TensorInfo],
) -> FileLayout:
    """The layout of one file, whose tensors are added to `places`."""
    if shard.original is not None:
        tensors = shard.original.source.header.tensors
        places.update({n: tensors[n]._replace(file=file) for n in shard.names})
        return FileLayout(name, b"", shard.original.plain.nbytes, shard.original)
    layout = _wide_first(shard.names, avals)
    header = encode_header(layout, metadata)
    check_header(path, header)  # again: files that are kept may be cut otherwise
    position = len(header)
    for tensor, aval in layout:
        places[tensor] = TensorInfo(aval, file, position)
        position += aval.nbytes
    return FileLayout(name, header, position)


def _file_names(shards: int) -> list[str]:
    return [shard_name(n, shards) for n in range(1, shards + 1)]


def check_storable(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError for the first tensor that a safetensors file cannot hold, and for a header that is too long."""
    for name, aval in avals.items():
        if not aval.dtype.tag:
            remedy = "Write .npz or .pt, which hold it; or cast it to complex64, which rounds."
            raise StoreError(path, f"safetensors has no dtype {aval.dtype}", tensor=name, remedy=remedy)
        if aval.size * aval.dtype.bits % 8:
            remedy = "Cut it where its elements fill whole bytes."
            raise StoreError(path, f"{aval} does not fill whole bytes", tensor=name, remedy=remedy)
        if name == METADATA:
            raise StoreError(path, "this name is reserved by the safetensors format", tensor=name, remedy="Rename it.")
    check_unicode(path, [*avals, *options.metadata, *options.metadata.values()])
    if sum(map(len, [*avals, *options.metadata.values()])) + _MOST_ENTRY * len(avals) > MAX_HEADER:
        for names in plan_shards(avals, options.shard_bytes):
            check_header(path, encode_header(_wide_first(names, avals), header_metadata(options.metadata)))


def check_header(path: str, header: bytes) -> None:
    """Raises StoreError for a header that readers would refuse."""
    if len(header) - 8 > MAX_HEADER:
        problem = f"the header would take {len(header)} bytes, more than readers accept ({MAX_HEADER})"
        raise StoreError(path, problem, remedy="Write a folder with a smaller shard size.")


def _wide_first(names: list[str], avals: Mapping[str, Aval]) -> list[tuple[str, Aval]]:
    """Wide elements first, so that every tensor is aligned to its element size."""
    return sorted(((name, avals[name]) for name in names), key=lambda item: -(item[1].dtype.bits // 8))
