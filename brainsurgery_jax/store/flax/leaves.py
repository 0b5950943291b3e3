"""The leaves of a file of flax: arrays by their places, numbers, text, and what is none of these.

`flax.serialization` writes a tree of dicts with text for keys. An array is an extension whose payload is msgpack again:
shape, dtype and bytes. One that would take more than a gigabyte is a dict of flat chunks. EasyLM writes a stream of
pairs instead, the key path and the leaf as flax writes it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeGuard

from brainsurgery_jax.dtypes import OF_ARRAYS, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Unread
from brainsurgery_jax.store.flax.wire import AGAIN, Blob, Extension, Walker
from brainsurgery_jax.store.io.files import File
from brainsurgery_jax.store.key_paths import ListIndex, Path, name_of

ARRAY, COMPLEX, SCALAR = 1, 2, 3
"""Codes of the extensions of flax: an array, a Python complex number, a scalar of numpy."""

CHUNKED = "__msgpack_chunked_array__"

_OTHER_TYPE = "Save it as numbers of another type."


class StoredArray(NamedTuple):
    """An array in a file: its aval, and where its elements begin, in runs of so many elements each."""

    aval: Aval
    runs: tuple[tuple[int, int], ...]


Leaf = StoredArray | Unread | Blob | None | bool | int | float | complex | str | dict[str, object] | list[object]
"""The value at the end of a key path. A dict or a list is an empty one."""


Special = Callable[[Mapping[object, object]], str | None]
"""The text that a dict encodes if it is a leaf; None for a container."""


def read_leaves(file: File, special: Special = lambda node: None) -> dict[Path, Leaf]:
    """The leaves of a file by key path, in their order. Raises StoreError for what flax does not write."""
    walker = Walker(file)
    if not file.size:
        raise StoreError(file.name, "is empty", remedy=AGAIN)
    first = walker.read()
    stream = _is_pair(first)
    entries: dict[Path, Leaf] = {}
    found = _pair(file, first) if stream else _leaves(file, first, (), special)
    while True:
        for path, leaf in found:
            if path in entries:
                raise StoreError(file.name, "is in the file twice", tensor=name_of(path), remedy=AGAIN)
            entries[path] = leaf
        if walker.at == walker.end:
            return entries
        found = _pair(file, walker.read()) if stream else ()
        if not stream:
            raise walker.damage("something after its end")


def _is_pair(value: object) -> bool:
    """Whether a value is an entry of a stream: a key path, and the bytes of a leaf."""
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list)):
        return False
    return isinstance(value[1], Blob) and all(isinstance(key, str) for key in value[0])


def _pair(file: File, value: Any) -> Iterator[tuple[Path, Leaf]]:
    if not _is_pair(value):
        raise StoreError(file.name, "is a stream of keys and arrays, and holds something else", remedy=AGAIN)
    keys, payload = value
    inner = Walker(file, payload.start, payload.start + payload.nbytes)
    yield from _leaves(file, inner.read(), tuple(keys), lambda node: None)
    if inner.at != inner.end:
        raise inner.damage("something after its end")


def _leaves(file: File, node: Any, path: Path, special: Special) -> Iterator[tuple[Path, Leaf]]:
    """The leaves below a value."""
    if isinstance(node, dict) and CHUNKED in node:
        yield path, _chunked(file, node, name_of(path))
    elif isinstance(node, dict) and (text := special(node)) is not None:
        yield path, text
    elif isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(file, value, (*path, key), special)
    elif isinstance(node, list) and node:
        for at, value in enumerate(node):
            yield from _leaves(file, value, (*path, ListIndex(at)), special)
    else:
        yield path, _extension(file, node, name_of(path)) if isinstance(node, Extension) else node


def _extension(file: File, found: Extension, name: str) -> Leaf:
    if found.code in (ARRAY, SCALAR):
        return _array(file, found, name)
    walker = Walker(file, found.start, found.start + found.nbytes)
    if found.code == COMPLEX:
        match walker.read():
            case [float() | int() as real, float() | int() as imaginary]:
                return complex(real, imaginary)
        raise walker.damage("a complex number without two parts")
    return Unread(f"it is of the type {found.code}, which flax does not know", _OTHER_TYPE)


def _array(file: File, found: Extension, name: str) -> StoredArray | Unread:
    walker = Walker(file, found.start, found.start + found.nbytes)
    match walker.read():
        case [[*shape], str() as dtype, Blob(start=start, nbytes=nbytes)] if _are_sizes(shape):
            pass
        case _:
            raise StoreError(file.name, "is an array without shape, dtype and bytes", tensor=name, remedy=AGAIN)
    ours = OF_ARRAYS.get("bfloat16" if dtype == "V2" else dtype)  # as numpy called it before it knew the type
    if ours is None or ours.numpy is None:
        return Unread(f"its elements are of the type {dtype}", _OTHER_TYPE)
    aval = Aval(tuple(shape), ours)
    if aval.nbytes != nbytes:
        problem = f"{aval} takes {aval.nbytes} bytes, found {nbytes}"
        raise StoreError(file.name, problem, tensor=name, remedy=AGAIN)
    return StoredArray(aval, ((start, aval.size),))


def _are_sizes(shape: Sequence[object]) -> TypeGuard[Sequence[int]]:
    return all(type(n) is int and n >= 0 for n in shape)


def _chunked(file: File, node: Mapping[Any, Any], name: str) -> StoredArray | Unread:
    shape, chunks = _sequence(node.get("shape")), _sequence(node.get("chunks"))
    parts = [_array(file, chunk, name) for chunk in chunks or () if isinstance(chunk, Extension)]
    stored = [part for part in parts if isinstance(part, StoredArray)]
    if unread := next((part for part in parts if isinstance(part, Unread)), None):
        return unread
    dtypes = {part.aval.dtype for part in stored}
    size = sum(part.aval.size for part in stored)
    if shape is None or not _are_sizes(shape) or len(dtypes) != 1 or len(stored) != len(chunks or ()):
        raise StoreError(file.name, "is an array in chunks without shape or chunks", tensor=name, remedy=AGAIN)
    if prod(shape) != size:
        problem = f"its chunks hold {size} elements, and its shape {tuple(shape)} has {prod(shape)}"
        raise StoreError(file.name, problem, tensor=name, remedy=AGAIN)
    return StoredArray(Aval(tuple(shape), dtypes.pop()), tuple(run for part in stored for run in part.runs))


def _sequence(node: object) -> list[object] | None:
    """The items of what flax makes of a tuple: a dict by their numbers as text. Of a list it makes none."""
    if isinstance(node, list):
        return node
    if not isinstance(node, dict) or list(node) != [str(n) for n in range(len(node))]:
        return None
    return list(node.values())
