"""Zarr metadata, versions 2 and 3: what an array is, and where the bytes of plain ones lie.

Formats: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html and .../v2/v2.0.html; the `sharding_indexed`
codec keeps many chunks in one value, with a table of their places at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import DTYPES, WIDER, Aval, DType
from brainsurgery_jax.index.boxes import strides
from brainsurgery_jax.json_text import parse_json

METADATA = {"zarr": ".zarray", "zarr3": "zarr.json"}
"""The key of an array's metadata, by tensorstore's name of the zarr version."""

_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex", "b": "bool"}


class ChunkRange(NamedTuple):
    """Consecutive elements in one chunk: the chunk's key, its number in the value there (None if it is all of it), the
    first element in the chunk, and how many there are."""

    key: str
    inner: int | None
    start: int
    length: int


class ZarrArray(NamedTuple):
    """An array by its metadata. `stored` is the element type on disk, of which the aval's may be a wider one.

    Values hold chunks of `outer` elements, cut into `inner` ones. `plain`: little-endian bytes without compression, cut
    along the first axis only, so that a range of elements is a few ranges of bytes; `indexed`: by way of a table.
    `filled`: every value is stored, so that one that is not there is lost; else it stands for zeros. `place`: the key
    below which a store keeps the array.
    """

    driver: str
    aval: Aval
    stored: str
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    plain: bool
    indexed: bool
    separator: str
    filled: bool = False
    place: str = ""

    def chunk_keys(self) -> Iterator[str]:
        """The keys of all values, one by one: there may be more than memory holds."""
        counts = [-(-n // size) for n, size in zip(self.aval.shape, self.outer, strict=True)]
        for number in range(prod(counts)):
            yield self._key([str(number // apart % n) for n, apart in zip(counts, strides(counts), strict=True)])

    @property
    def row_bytes(self) -> int:
        """Bytes of the chunks that hold the first row: what must be decoded to go through the tensor in order."""
        return prod(self.outer[:1]) * prod(self.aval.shape[1:]) * self.aval.dtype.bits // 8

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk that is decoded as a whole."""
        return prod(self.inner) * self.aval.dtype.bits // 8

    @property
    def count_stored_bytes(self) -> int:
        """Bytes of all chunks; those at an edge reach beyond the array."""
        counts = (-(-n // size) for n, size in zip(self.aval.shape, self.inner, strict=True))
        return prod(counts) * self.chunk_bytes

    @property
    def inner_chunks(self) -> int:
        """How many chunks a value holds."""
        return prod(-(-a // b) for a, b in zip(self.outer, self.inner, strict=True))

    def key(self, row: int) -> str:
        """The key of the value with the chunks of that row of chunks, all others being whole."""
        return self._key([str(row), *("0" for _ in self.outer[1:])] if self.outer else [])

    def _key(self, indices: Iterable[str]) -> str:
        if self.driver == "zarr3":
            return self.separator.join(["c", *indices])
        return self.separator.join(indices) or "0"

    def runs(self, start: int, stop: int, most: int) -> Iterator[ChunkRange]:
        """Where elements `start` to `stop` of a plain array lie, at most `most` in a run."""
        row = prod(self.aval.shape[1:])
        outer, inner = (row * prod(shape[:1]) for shape in (self.outer, self.inner))
        while start < stop:
            value, within = divmod(start, outer)
            chunk, first = divmod(within, inner)
            length = min(stop - start, inner - first, most)
            yield ChunkRange(self.key(value), chunk if self.indexed else None, first, length)
            start += length


COMPRESSORS = ("blosc", "bz2", "gzip", "zlib", "zstd")
"""What tensorstore unpacks in version 2."""

COMPRESSORS_3 = ("blosc", "gzip", "zstd")
"""What it unpacks in version 3."""

CODECS = (*COMPRESSORS_3, "bytes", "crc32c", "sharding_indexed", "transpose")
"""All that it undoes in version 3."""


class UnknownCodec(ValueError):
    """Chunks are packed in a way that tensorstore does not know. `known`: those that it does."""

    def __init__(self, name: object, known: Iterable[str]):
        super().__init__(f"its chunks are packed by '{name}', which tensorstore does not know")
        self.known = known


UNKNOWN = (ValueError, KeyError, TypeError, AttributeError)
"""What `parse` raises for a document that describes no array that we know."""


def parse(driver: str, raw: bytes) -> ZarrArray:
    """The array that a metadata document describes. Raises one of UNKNOWN."""
    table = parse_json(raw)
    return _version_3(table) if driver == "zarr3" else _version_2(table)


def _version_2(table: Mapping[str, Any]) -> ZarrArray:
    stored = _dtype_name(table["dtype"])
    packing = [codec["id"] for codec in (table["compressor"], *(table.get("filters") or ())) if codec is not None]
    if table.get("filters") or not {*packing} <= {*COMPRESSORS}:
        raise UnknownCodec(packing[-1], COMPRESSORS)
    shape, chunks = tuple(table["shape"]), tuple(table["chunks"])
    plain = (
        table["compressor"] is None and not table.get("filters") and table["order"] == "C" and _little(table["dtype"])
    )
    separator = table.get("dimension_separator", ".")
    aval = _aval(stored, shape, chunks, chunks)
    plain = plain and _is_by_rows(aval, stored, chunks, chunks)
    filled = table.get("fill_value") is None
    return ZarrArray("zarr", aval, stored, chunks, chunks, plain, indexed=False, separator=separator, filled=filled)


def _version_3(table: Mapping[str, Any]) -> ZarrArray:
    shape, outer = tuple(table["shape"]), tuple(table["chunk_grid"]["configuration"]["chunk_shape"])
    codecs, inner, indexed = table["codecs"], outer, False
    at_end = True
    if codecs and codecs[0]["name"] == "sharding_indexed":
        settings = codecs[0]["configuration"]
        inner, indexed = tuple(settings["chunk_shape"]), True
        at_end = settings.get("index_location", "end") == "end" and _is_checked_index(settings["index_codecs"])
        codecs = [*settings["codecs"], *codecs[1:]]
    for codec in codecs:
        if codec["name"] not in CODECS:
            raise UnknownCodec(codec["name"], COMPRESSORS_3)
    plain = at_end and len(codecs) == 1 and _is_plain(codecs[0])
    encoding = table["chunk_key_encoding"]
    separator = encoding.get("configuration", {}).get("separator", "/" if encoding["name"] == "default" else ".")
    stored = table["data_type"]
    aval = _aval(stored, shape, outer, inner)
    plain = plain and encoding["name"] == "default" and _is_by_rows(aval, stored, outer, inner)
    return ZarrArray("zarr3", aval, stored, outer, inner, plain, indexed, separator)


def _is_plain(codec: Mapping[str, Any]) -> bool:
    return codec["name"] == "bytes" and codec.get("configuration", {}).get("endian", "little") == "little"


def _is_checked_index(codecs: Any) -> bool:
    """Whether the table of places is 16 bytes a chunk and a checksum of 4."""
    return len(codecs) == 2 and _is_plain(codecs[0]) and codecs[1]["name"] == "crc32c"


def _aval(stored: str, shape: tuple[int, ...], outer: tuple[int, ...], inner: tuple[int, ...]) -> Aval:
    """The shape and dtype of an array, its chunks checked. Raises ValueError."""
    dtype = _dtype(stored)
    for sizes, least in ((shape, 0), (outer, 1), (inner, 1)):
        if len(sizes) != len(shape) or not all(type(n) is int and n >= least for n in sizes):
            raise ValueError("its shape or its chunks are no sizes")
    return Aval(shape, dtype)


def _is_by_rows(aval: Aval, stored: str, outer: tuple[int, ...], inner: tuple[int, ...]) -> bool:
    """Whether each chunk is some whole rows, of the dtype that we have them in."""
    return outer[1:] == inner[1:] == aval.shape[1:] and stored == aval.dtype.name


def _dtype(stored: str) -> DType:
    dtype = _BY_NAME.get(WIDER.get(stored, stored))
    if dtype is None or dtype.numpy is None:
        raise ValueError(f"the element type '{stored}' is not known")
    return dtype


def _dtype_name(dtype: object) -> str:
    """The name of an element type of version 2: numpy's code, such as `<f4`, or a name of its own."""
    if not isinstance(dtype, str):
        raise ValueError("its elements are records")
    match = re.fullmatch(r"[<>|]([fiucb])([0-9]+)", dtype)
    if match is None:
        return dtype
    return "bool" if match[1] == "b" else f"{_KINDS[match[1]]}{8 * int(match[2])}"


def _little(dtype: str) -> bool:
    return not dtype.startswith(">")
