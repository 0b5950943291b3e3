"""Reading folders of `torch.distributed.checkpoint`: `.metadata` says which chunks a tensor has and where in the
`*.distcp` files they lie; each chunk there is what `torch.save` makes of a tensor.

`.metadata` is a pickle, which torch would load without asking whose it is. Here it is read like those of `.pt` files,
by a table of names that are known (see `pickles.py`); torch is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Header, Source
from brainsurgery_jax.store.chunked import Chunk, ChunkedSource
from brainsurgery_jax.store.descriptors import Descriptors
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import suffix_of
from brainsurgery_jax.store.pickles import Names, Tensor, first, unpickled
from brainsurgery_jax.store.safetensors_folder import shard_path
from brainsurgery_jax.store.safetensors_header import AGAIN
from brainsurgery_jax.store.strided import StridedSource
from brainsurgery_jax.store.torch_files import Placed, placed, read_archive
from brainsurgery_jax.store.zip_members import Window, zip_failures

METADATA = ".metadata"
_WRAPPER = "state_dict."


def recognises(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is such a checkpoint."""
    return METADATA in names or any(suffix_of(name) == ".distcp" for name in names)


class Record:
    """Whatever object the metadata hold; its fields as they are there."""

    def __init__(self, *given: Any):
        self.given = given


class Properties:
    """What the metadata tell of a tensor: only the dtype is of use."""

    dtype: Any = None

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0]


def _text(*parts: Any) -> str:
    return "/".join(map(str, parts))


_CHECKPOINT = "torch.distributed.checkpoint"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"  # before torch 2.3
NAMES: Names = {
    **{
        (f"{_CHECKPOINT}.metadata", name): Record
        for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex",
            "StorageMeta",
        )
    },
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"): Record,
    (f"{_CHECKPOINT}.metadata", "TensorProperties"): Properties,
    (_SHARDED, "TensorProperties"): Properties,
    (f"{_CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"): first,
    (_SHARDED, "MEM_FORMAT_ENCODING"): first,
    ("torch.serialization", "_get_layout"): first,
    ("pathlib", "PosixPath"): _text,
    ("pathlib", "WindowsPath"): _text,
    ("pathlib._local", "PosixPath"): _text,
    ("pathlib._local", "WindowsPath"): _text,
}  # fmt: skip


class Stored(NamedTuple):
    """A chunk as the metadata tell it: whose it is, where it begins there, and where in which file it lies."""

    name: str
    start: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


def open_dcp(path: str) -> Source:
    """The tensors of a folder, in the order of the state dict that was saved."""
    avals, stored, left_out = _read_metadata(path)
    where = os.path.join(path, METADATA)
    files = {name: shard_path(path, name, METADATA) for name in sorted({s.file for s in stored})}
    numbers = {name: number for number, name in enumerate(files)}
    with ExitStack() as on_failure:
        descriptors = Descriptors(list(files.values()), os.O_RDONLY, watch=True)
        on_failure.callback(descriptors.close)
        chunks: dict[str, list[Chunk]] = {name: [] for name in avals}
        kept: dict[str, Placed] = {}
        for number, chunk in enumerate(stored):
            with descriptors.lease(numbers[chunk.file]) as fd, os_failures(files[chunk.file], "read the header"):
                kept[str(number)] = found = _chunk(chunk, fd, numbers[chunk.file], files[chunk.file])
            chunks[chunk.name].append(Chunk(str(number), chunk.start, found.info.aval.shape))
        _check_cover(where, avals, chunks, kept)
        inner = Header(path, tuple(files.values()), {key: p.info for key, p in kept.items()}, {})
        source = StridedSource(inner, descriptors, {key: p.laid for key, p in kept.items()})
        infos = {name: kept[chunks[name][0].key].info._replace(aval=aval) for name, aval in avals.items()}
        on_failure.pop_all()
    return ChunkedSource(Header(path, inner.files, infos, {}, left_out=left_out), source, chunks)


def _read_metadata(folder: str) -> tuple[dict[str, Aval], list[Stored], dict[str, str]]:
    """Tensors by name, their chunks, and what else was saved."""
    path = os.path.join(folder, METADATA)
    if not os.path.isfile(path):
        remedy = "It was not saved to its end, or was not copied as a whole: fetch or save it again."
        raise StoreError(folder, f"has *.distcp files, but no {METADATA}", remedy=remedy)
    with os_failures(path, "read the metadata"), open(path, "rb") as file:
        root = unpickled(file, path, NAMES)
    try:
        entries = vars(root)["state_dict_metadata"]
        avals = {name: aval for name, entry in entries.items() if (aval := _aval(entry)) is not None}
        stored = list(_stored(vars(root)["storage_data"], avals))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(path, f"is not metadata of a checkpoint: {error!r}", remedy=AGAIN) from error
    others = {name: "object" for name in entries if name not in avals}
    if others and avals and all(name.startswith(_WRAPPER) for name in avals):
        avals = {name.removeprefix(_WRAPPER): aval for name, aval in avals.items()}
        stored = [chunk._replace(name=chunk.name.removeprefix(_WRAPPER)) for chunk in stored]
    return avals, stored, others


def _aval(entry: Any) -> Aval | None:
    """Shape and dtype of an entry; None for what is no tensor."""
    fields = vars(entry)
    if "size" not in fields:
        return None
    dtype = fields["properties"].dtype
    if not isinstance(dtype, DType):
        raise ValueError(f"a tensor of the dtype {dtype!r}")
    return Aval(_ints(fields["size"]), dtype)


def _stored(entries: Any, avals: Mapping[str, Aval]) -> Iterator[Stored]:
    for index, info in entries.items():
        name, place = vars(index)["fqn"], vars(info)
        if name not in avals:
            continue
        if place.get("transform_descriptors"):
            raise ValueError(f"'{name}' is compressed by an extension")
        start = vars(index).get("offset")
        start = _ints(start) if start is not None else (0,) * len(avals[name].shape)
        offset, nbytes = _ints((place["offset"], place["length"]))
        yield Stored(name, start, str(place["relative_path"]), offset, nbytes)


def _ints(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if not all(type(n) is int and n >= 0 for n in found):
        raise ValueError(f"numbers {found}")
    return found


def _chunk(chunk: Stored, fd: int, number: int, path: str) -> Placed:
    """Where the elements of a chunk are."""
    if chunk.offset + chunk.nbytes > os.fstat(fd).st_size:
        raise StoreError(path, "is cut off", tensor=chunk.name, remedy=AGAIN)
    with zip_failures(path, f"chunk of '{chunk.name}'"):
        root, place = read_archive(Window(fd, chunk.offset, chunk.nbytes, path=path), path)
    if not isinstance(root, Tensor):
        raise StoreError(path, f"its chunk holds a {type(root).__name__}", tensor=chunk.name, remedy=AGAIN)
    return placed(chunk.name, root, place, number, path)


def _check_cover(
    path: str, avals: Mapping[str, Aval], chunks: Mapping[str, Sequence[Chunk]], kept: Mapping[str, Placed]
) -> None:
    """Raises StoreError unless the chunks of each tensor are of its dtype, lie inside of it and make it up."""
    for name, aval in avals.items():
        inside = all(
            kept[key].info.aval.dtype == aval.dtype
            and len(start) == len(shape) == len(aval.shape)
            and all(low + n <= size for low, n, size in zip(start, shape, aval.shape, strict=True))
            for key, start, shape in chunks[name]
        )
        found = sum(prod(chunk.shape) for chunk in chunks[name])
        if not inside or not chunks[name] or found != aval.size:
            problem = f"{aval} is not made up by its {len(chunks[name])} chunks, of {found} elements"
            raise StoreError(path, problem, tensor=name, remedy=AGAIN)
