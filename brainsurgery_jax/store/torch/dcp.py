"""Reading folders of `torch.distributed.checkpoint`: `.metadata` says which chunks a tensor has and where in the
`*.distcp` files they lie; each chunk there is what `torch.save` makes of a tensor.

`.metadata` is a pickle, which torch would load without asking whose it is. Here it is read like those of `.pt` files,
and nothing of it is run (see `pickle_machine.py`); torch is not needed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.store.base import Header, Nesting, Source, TensorInfo
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import suffix_of
from brainsurgery_jax.store.index_files import shard_path
from brainsurgery_jax.store.io.chunked import ChunkedSource, TensorChunk
from brainsurgery_jax.store.io.files import File
from brainsurgery_jax.store.io.local import open_files
from brainsurgery_jax.store.io.strided import StridedSource
from brainsurgery_jax.store.io.zip_members import Window, zip_failures
from brainsurgery_jax.store.key_paths import ListIndex, Path
from brainsurgery_jax.store.safetensors.header import AGAIN
from brainsurgery_jax.store.torch.pickle_machine import Object
from brainsurgery_jax.store.torch.pickles import Tensor, unpickle
from brainsurgery_jax.store.torch.source import Found, PlacedTensor, place_tensor, read_archive
from brainsurgery_jax.store.torch.tree import DEEPEST

METADATA = ".metadata"
_WRAPPER = "state_dict"
_LOST = "It was not saved to its end, or was not copied as a whole: fetch or save it again."
_MOST_CORNERS = 4_000_000
"""Corners of the chunks of a tensor."""


def recognises(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is such a checkpoint."""
    return METADATA in names or any(suffix_of(name) == ".distcp" for name in names)


class Stored(NamedTuple):
    """A chunk as the metadata tell it: whose it is, where it begins there, and where in which file it lies."""

    name: str
    start: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


Read = Callable[[Stored], Found]


class Told(NamedTuple):
    """What the metadata tell: the tensors, the chunks that each is cut into (where they begin, and their shapes), where
    chunks and other values are stored, the key path of each entry, and all entries in order."""

    avals: Mapping[str, Aval]
    cuts: Mapping[str, Sequence[tuple[tuple[int, ...], tuple[int, ...]]]]
    chunks: Sequence[Stored]
    values: Mapping[str, Stored]
    paths: Mapping[str, Path]
    entries: Sequence[str]


def open_dcp(path: str) -> Source:
    """The tensors of a folder, in the order of the state dict that was saved."""
    told = _read_metadata(path)
    stored = (*told.chunks, *told.values.values())
    files = {name: shard_path(path, name, METADATA, _LOST) for name in sorted({s.file for s in stored})}
    numbers = {name: number for number, name in enumerate(files)}
    with ExitStack() as on_failure:
        opened = open_files(list(files.values()))
        for one in opened:
            on_failure.callback(one.close)

        def read(at: Stored) -> Found:
            with os_failures(files[at.file], "read the header"):
                return _read_saved(at, opened[numbers[at.file]])

        chunks: dict[str, list[TensorChunk]] = {name: [] for name in told.avals}
        kept: dict[str, PlacedTensor] = {}
        for number, at in enumerate(told.chunks):
            kept[str(number)] = found = _chunk(at, *read(at), numbers[at.file], files[at.file])
            chunks[at.name].append(TensorChunk(str(number), at.start, found.info.aval.shape))
        for name, aval in told.avals.items():
            dtypes = {kept[chunk.key].info.aval.dtype for chunk in chunks[name]}
            check_cover(os.path.join(path, METADATA), name, aval, chunks[name], dtypes, told.cuts[name])
        inner = Header(path, tuple(files.values()), {key: p.info for key, p in kept.items()}, {})
        source = StridedSource(inner, opened, {key: p.laid for key, p in kept.items()})
        infos = {name: kept[chunks[name][0].key].info._replace(aval=aval) for name, aval in told.avals.items()}
        on_failure.pop_all()
    return ChunkedSource(_header(path, inner.files, infos, told, read), source, chunks)


def _header(path: str, files: tuple[str, ...], infos: Mapping[str, TensorInfo], told: Told, read: Read) -> Header:
    wrapped = told.values and all(name.startswith(f"{_WRAPPER}.") for name in infos)
    paths = {name: told.paths.get(name, (name,)) for name in told.entries if name in infos or name in told.values}
    values = _Values({paths[name]: stored for name, stored in told.values.items()}, read)
    nesting = Nesting(_kinds(paths.values()), {name: paths[name] for name in infos}, values, list(paths.values()))
    left_out = dict.fromkeys(told.values, "object")
    return Header(path, files, infos, {}, left_out=left_out, parts=(_WRAPPER,) if wrapped else (), nesting=nesting)


def _kinds(paths: Iterable[Path]) -> dict[Path, str]:
    """The containers on the way to entries: lists where an index follows, else dicts."""
    return {
        path[:end]: "list" if isinstance(path[end], ListIndex) else "dict" for path in paths for end in range(len(path))
    }


class _Values(Mapping[Path, object]):
    """Values that are no tensors, each read when it is asked for."""

    def __init__(self, stored: Mapping[Path, Stored], read: Read):
        self._stored, self._read = stored, read

    def __getitem__(self, path: Path) -> object:
        return self._read(self._stored[path])[0]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _read_metadata(folder: str) -> Told:
    path = os.path.join(folder, METADATA)
    if not os.path.isfile(path):
        raise StoreError(folder, f"has *.distcp files, but no {METADATA}", remedy=_LOST)
    with os_failures(path, "read the metadata"), open_regular(path) as file:
        root = unpickle(file.read(), path)
    try:
        fields = _fields(root)
        entries = {str(name): _fields(entry) for name, entry in fields["state_dict_metadata"].items()}
        tensors = {name: entry for name, entry in entries.items() if "size" in entry}
        avals = {name: _aval(entry) for name, entry in tensors.items()}
        cuts = {name: [_cut(chunk) for chunk in entry["chunks"]] for name, entry in tensors.items()}
        stored = [_parse_stored(_fields(index), _fields(info), avals) for index, info in fields["storage_data"].items()]
        paths = {str(name): _path(keys) for name, keys in (fields.get("planner_data") or {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(path, f"is not metadata of a checkpoint: {_reason(error)}", remedy=AGAIN) from error
    values = {s.name: s for s in stored if s.name in entries and s.name not in avals}
    return Told(avals, cuts, [s for s in stored if s.name in avals], values, paths, list(entries))


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _fields(record: Any) -> Mapping[Any, Any]:
    """The fields of an object in the metadata."""
    if not isinstance(record, Object) or not isinstance(record.state, dict):
        if isinstance(record, Object) and record.state is None:
            return {}
        raise ValueError("a record has no fields")
    return record.state


def _aval(entry: Mapping[str, Any]) -> Aval:
    """Shape and dtype of an entry: of its properties the dtype comes first."""
    properties = entry["properties"]
    state = properties.state if isinstance(properties, Object) else None
    dtype = state[0] if type(state) is tuple and state else None
    if not isinstance(dtype, DType):
        raise ValueError("a tensor has a dtype that is not known")
    return Aval(_ints(entry["size"]), dtype)


def _cut(chunk: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    fields = _fields(chunk)
    return _ints(fields["offsets"]), _ints(fields["sizes"])


def _parse_stored(index: Mapping[str, Any], place: Mapping[str, Any], avals: Mapping[str, Aval]) -> Stored:
    name, start = str(index["fqn"]), index.get("offset")
    if place.get("transform_descriptors"):
        raise ValueError(f"'{name}' is compressed by an extension")
    begin = _ints(start) if start is not None else (0,) * len(avals[name].shape) if name in avals else ()
    offset, nbytes = _ints((place["offset"], place["length"]))
    return Stored(name, begin, _text(place["relative_path"]), offset, nbytes)


def _text(path: Any) -> str:
    """A path that is text, or an object of `pathlib`."""
    parts: Any = path.given if isinstance(path, Object) else (path,)
    if type(parts) is not tuple or not parts or not all(type(part) is str for part in parts):
        raise ValueError("a file has no name")
    return "/".join(parts)


def _path(keys: Any) -> Path:
    """A key path as torch notes it: the integers in it are places in lists."""
    if type(keys) is not tuple or not 0 < len(keys) <= DEEPEST or not all(type(key) in (str, int) for key in keys):
        raise ValueError("an entry has no key path")
    return tuple(ListIndex(key) if type(key) is int else key for key in keys)


def _ints(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in values):
        raise ValueError("sizes or offsets are no counts")
    return tuple(values)


def _read_saved(at: Stored, opened: File) -> Found:
    """What `torch.save` wrote into a range of a file."""
    path = opened.name
    if at.offset + at.nbytes > opened.size:
        raise StoreError(path, "is cut off", tensor=at.name, remedy=AGAIN)
    with zip_failures(path, f"chunk of '{at.name}'"):
        return read_archive(Window(opened, at.offset, at.nbytes), path)


def _chunk(at: Stored, root: Any, place: Any, number: int, path: str) -> PlacedTensor:
    """Where the elements of a chunk are."""
    if not isinstance(root, Tensor):
        raise StoreError(path, f"its chunk holds a {type(root).__name__}", tensor=at.name, remedy=AGAIN)
    return place_tensor(at.name, root, place, number, path)


def check_cover(
    path: str,
    name: str,
    aval: Aval,
    chunks: Sequence[TensorChunk],
    dtypes: Collection[DType],
    cuts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Raises StoreError unless the chunks are of the tensor's dtype, are those that the metadata list, and each element
    of the tensor lies in just one of them."""
    rank = len(aval.shape)
    if not chunks or any(len(chunk.start) != rank or len(chunk.shape) != rank for chunk in chunks):
        problem = f"{aval} has no chunk of {rank} dimensions"
    elif set(dtypes) != {aval.dtype}:
        problem = f"{aval} has chunks of another dtype: {', '.join(sorted(d.name for d in dtypes))}"
    elif sorted((chunk.start, chunk.shape) for chunk in chunks) != sorted(cuts):
        problem = f"{aval} is stored in other chunks than the {len(cuts)} that are listed"
    elif not tiles(aval.shape, chunks):
        problem = f"{aval} is not made up by its {len(chunks)} chunks: they overlap, leave a gap or go beyond it"
    else:
        return
    raise StoreError(path, problem, tensor=name, remedy=AGAIN)


def tiles(shape: tuple[int, ...], chunks: Sequence[TensorChunk]) -> bool:
    """Whether each element of a tensor lies in just one chunk, and no chunk goes beyond it. False if that would take
    more than `_MOST_CORNERS` to tell. Boxes without elements count for nothing.

    A box is given by its corners: sign a corner by how many of its coordinates are ends of the box, and the sum over
    boxes of their signed corners is the (discrete) mixed derivative of how often each element is covered. So it is
    that of the whole tensor if and only if each element is covered once. That takes 2**axes steps a chunk.
    """
    cut = [a for a, n in enumerate(shape) if any(c.start[a] != 0 or c.shape[a] != n for c in chunks)]
    if len(chunks) << len(cut) > _MOST_CORNERS:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for start, size, sign in ((c.start, c.shape, 1) for c in chunks):
        _add_corners(corners, start, size, cut, sign)
    _add_corners(corners, (0,) * len(shape), shape, cut, -1)
    return not any(corners.values())


def _add_corners(
    corners: Counter[tuple[int, ...]], start: Sequence[int], size: Sequence[int], axes: Sequence[int], sign: int
) -> None:
    for ends in product((0, 1), repeat=len(axes)) if 0 not in size else ():
        at = tuple(start[axis] + end * size[axis] for axis, end in zip(axes, ends, strict=True))
        corners[at] += sign * (-1) ** sum(ends)
