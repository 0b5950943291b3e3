"""The header of one safetensors file, to and from bytes. Format: https://github.com/huggingface/safetensors#format

Everything is checked here, so that nobody above has to: a file that passes holds exactly the tensors it lists, without
overlap or gap, and ends where the last one ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import BY_TAG, Aval
from brainsurgery_jax.errors import StoreError, did_you_mean
from brainsurgery_jax.store.base import PlainFile, TensorInfo
from brainsurgery_jax.store.io.files import File, read_bytes

MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""

METADATA = "__metadata__"
DATA_ALIGNMENT = 64
AGAIN = "The file is damaged or incomplete: download or save it again."
_MAX_RANK = 64  # numpy's
_INTEGERS = frozenset({int})
_MAX_ELEMENTS = 1 << 59  # 16-byte elements still have a 63-bit size

Avals = dict[tuple[object, ...], tuple[Aval, int]]
"""Shapes and dtypes that are checked, by the tag and the numbers of an entry, each with its bytes."""


class FileHeader(NamedTuple):
    """What one file tells: its tensors in the order of their bytes, its metadata, and whether that is all."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    plain: PlainFile | None


def read_header(source: File, file: int = 0, avals: Avals | None = None) -> FileHeader:
    """The checked header of an open file; `file` is the index that its `TensorInfo`s carry. `avals`: those of other
    files of the checkpoint, which mostly has the same shapes in all."""
    path, size = source.name, source.size
    if size < 8:
        raise StoreError(path, f"is {size} bytes long, too short for a safetensors file", remedy=AGAIN)
    prefix = read_bytes(source, 8, 0)
    length = int.from_bytes(prefix, "little")
    if prefix == b"version ":
        raise StoreError(path, "is a git-lfs pointer, not the file itself", remedy="Fetch the file: `git lfs pull`.")
    if length > MAX_HEADER:
        remedy = "It is not a safetensors file, or it is damaged: download or save it again."
        raise StoreError(path, f"claims a header of {length} bytes (at most {MAX_HEADER} are allowed)", remedy=remedy)
    if length > size - 8:
        raise StoreError(path, f"claims a header of {length} bytes, but only {size - 8} follow", remedy=AGAIN)
    return parse_header(read_bytes(source, length, 8), path, size, file, avals)


def parse_header(raw: bytes, path: str, file_size: int, file: int = 0, avals: Avals | None = None) -> FileHeader:
    """The checked header from its JSON bytes, for a file of `file_size` bytes."""
    plain = _parse_plain(raw)
    table = json_object(raw, path, "header") if plain is None else plain
    metadata = _metadata(table.pop(METADATA, {}), path)
    avals = {} if avals is None else avals
    entries = [(*_entry(path, name, entry, avals), name) for name, entry in table.items()]
    entries.sort(key=itemgetter(0, 1))
    tensors: dict[str, TensorInfo] = {}
    start, position = 8 + len(raw), 0
    for begin, end, aval, name in entries:
        if begin != position:
            raise _place_error(path, name, begin, position)
        tensors[name] = TensorInfo(aval, file, start + begin)
        position = end
    if start + position != file_size:
        raise _wrong_length(path, tensors, start + position, file_size)
    # The format wants the brace first.
    usual = raw.startswith(b"{") and (
        plain is not None or all(isinstance(entry, dict) and len(entry) == 3 for entry in table.values())
    )
    return FileHeader(tensors, metadata, PlainFile(metadata, len(tensors), start, file_size) if usual else None)


def _parse_plain(raw: bytes) -> dict[str, dict[str, object]] | None:
    """The header, if it is as writers make it: three keys for each tensor, no escapes. None for anything else.

    Looking for repeated keys while parsing takes twice as long. They are found by counting: a repeated key is dropped,
    so that the text has more strings than the result.
    """
    try:
        table = None if b"\\" in raw else json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, dict):
        return None
    entries = list(table.values())
    strings = 5 * len(entries)  # the name, three keys, and the dtype
    if isinstance(metadata := table.get(METADATA), dict):
        entries.remove(metadata)
        strings += 1 + 2 * len(metadata) - 5
    usual = {dict}.issuperset(map(type, entries)) and {3}.issuperset(map(len, entries))
    return table if usual and raw.count(b'"') == 2 * strings else None


def json_object(raw: bytes, path: str, what: str) -> dict[str, object]:
    """A JSON object from its bytes; keys must be unique at every depth and valid Unicode."""
    try:
        table = json.loads(raw.decode(), object_pairs_hook=_unique)
        if b"\\u" in raw:
            json.dumps(table, ensure_ascii=False).encode()  # an escape may spell half a surrogate pair
    except UnicodeError as error:
        raise StoreError(path, f"the {what} is not valid UTF-8: {error}", remedy=AGAIN) from error
    except ValueError as error:
        raise StoreError(path, f"the {what} is not valid JSON: {error}", remedy=AGAIN) from error
    except RecursionError as error:
        raise StoreError(path, f"the {what} is nested too deeply", remedy=AGAIN) from error
    if not isinstance(table, dict):
        raise StoreError(path, f"the {what} is a JSON {type(table).__name__}, expected an object", remedy=AGAIN)
    return table


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key '{twice}' appears twice")
    return table


def _metadata(value: object, path: str) -> dict[str, str]:
    if value is None:  # which some writers put where there are none
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        remedy = "Write the file again with text values only."
        raise StoreError(path, f"{METADATA} must map names to text, found {_show(value)}", remedy=remedy)
    return value


def _entry(path: str, name: str, entry: Any, avals: Avals) -> tuple[int, int, Aval]:
    """Begin, end and aval of one tensor. Kept short: it runs once a tensor, and models have tens of thousands."""
    try:
        tag, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise _entry_error(path, name, entry) from None
    if type(tag) is not str or type(shape) is not list or not _INTEGERS.issuperset(map(type, shape)):
        raise _entry_error(path, name, entry)
    found = avals.get(key := (tag, *shape))
    if found is None:
        found = avals[key] = _aval(path, name, tag, tuple(shape))
    aval, nbytes = found
    if end - begin != nbytes:
        problem = (
            f"{aval} takes {nbytes} bytes, but its data_offsets [{_int(begin)}, {_int(end)}] span {_int(end - begin)}"
        )
        raise StoreError(path, problem, tensor=name, remedy=AGAIN)
    return begin, end, aval


def _entry_error(path: str, name: str, entry: object) -> StoreError:
    problem = (
        "its header entry needs dtype (text), shape (list of integers), data_offsets (two integers, begin <= end); "
        f"found {_show(entry)}"
    )
    return StoreError(path, problem, tensor=name, remedy=AGAIN)


def _aval(path: str, name: str, tag: str, shape: tuple[int, ...]) -> tuple[Aval, int]:
    dtype = BY_TAG.get(tag)
    if dtype is None:
        remedy = f"Known are {' '.join(BY_TAG)}.{did_you_mean(tag, BY_TAG)}"
        raise StoreError(path, f"unknown dtype '{tag[:40]}'", tensor=name, remedy=remedy)
    if len(shape) > _MAX_RANK:
        raise StoreError(
            path, f"has {len(shape)} dimensions, at most {_MAX_RANK} are allowed", tensor=name, remedy=AGAIN
        )
    if any(n < 0 for n in shape):
        raise StoreError(path, f"has a negative dimension: {_show(list(shape))}", tensor=name, remedy=AGAIN)
    if any(n >= _MAX_ELEMENTS for n in shape) or prod(n or 1 for n in shape) >= _MAX_ELEMENTS:
        raise StoreError(path, f"has an absurd shape: {_show(list(shape))}", tensor=name, remedy=AGAIN)
    aval = Aval(shape, dtype)
    if aval.size * dtype.bits % 8:
        problem = f"{aval} does not fill whole bytes ({aval.size} elements of {dtype.bits} bits)"
        raise StoreError(path, problem, tensor=name, remedy="Pad the tensor to whole bytes when it is packed.")
    return aval, aval.nbytes


def _place_error(path: str, name: str, begin: int, position: int) -> StoreError:
    what = "overlaps the tensor before it" if begin < position else "leaves a gap behind the tensor before it"
    problem = f"{what}: its data begin at {_int(begin)}, expected {position}"
    return StoreError(path, problem, tensor=name, remedy=AGAIN)


def _wrong_length(path: str, tensors: Mapping[str, TensorInfo], expected: int, found: int) -> StoreError:
    if found > expected:
        problem = f"has {found - expected} bytes behind its last tensor that its header does not account for"
        return StoreError(path, problem, remedy=AGAIN)
    cut = next(name for name, info in tensors.items() if info.offset + info.aval.nbytes > found)
    problem = f"is cut off: the header promises {_int(expected)} bytes, the file has {found}"
    return StoreError(path, problem, tensor=cut, remedy=AGAIN)


def _int(number: int) -> str:
    """A number from a file, which may be too long for Python to print."""
    return str(number) if number.bit_length() <= 256 else f"a number of {number.bit_length()} bits"


def _show(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists in lists in lists
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 120 else text[:117] + "..."


def encode_header(layout: Sequence[tuple[str, Aval]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a file that holds `layout` in this order, padded so that data start at a multiple of 64."""
    table: dict[str, object] = {METADATA: dict(metadata)}
    position = 0
    for name, aval in layout:
        end = position + aval.nbytes
        table[name] = {"dtype": aval.dtype.tag, "shape": aval.shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
