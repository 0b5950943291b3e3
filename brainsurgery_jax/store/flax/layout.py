"""Where the bytes of an output of flax go: found from avals alone, before any file is created. `leaves.py` has the
format. Dicts have text for keys throughout, as in the state dicts of flax: a list is a dict by the numbers of items.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from brainsurgery_jax.dtypes import UINT8, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import FileCounts, TensorInfo, WriteOptions
from brainsurgery_jax.store.failures import check_unicode
from brainsurgery_jax.store.flax.leaves import ARRAY, CHUNKED
from brainsurgery_jax.store.key_paths import clash
from brainsurgery_jax.store.key_tree import PLAIN, SCALAR, TEXT, KeyTree
from brainsurgery_jax.store.safetensors.shards import plan_shards

WEIGHTS = "flax_model.msgpack"
MAX_CHUNK = 1 << 30
"""Bytes of an array, above which flax cuts it into chunks: msgpack holds no value of 4 GB."""

_NUMBERS = {"int64": 0xD3, "uint64": 0xCF, "float64": 0xCB}
"""By dtype, the byte that begins a number of 8 bytes, big-endian."""


class FlatPiece(NamedTuple):
    """Consecutive elements of a tensor in the file: `size` of them from `start` on. `number`: they are one number, as
    msgpack writes it."""

    name: str
    start: int
    size: int
    number: bool = False


class FlaxFile(NamedTuple):
    """A file of an output: its name there (empty: the output is this file), the bytes between tensors by their offsets,
    and its size."""

    name: str
    heads: tuple[tuple[int, bytes], ...]
    nbytes: int


class FlaxLayout(NamedTuple):
    """Where all bytes of an output go: its files, the pieces of each tensor with their places, and the index."""

    files: tuple[FlaxFile, ...]
    pieces: Mapping[str, Sequence[FlatPiece]]
    places: Mapping[str, TensorInfo]
    index_file: bytes | None


def key_of(piece: FlatPiece) -> str:
    """What the place of a piece is called."""
    return f"{piece.name}\0{piece.start}"


def lay_out(avals: Mapping[str, Aval], options: WriteOptions, most: int = MAX_CHUNK) -> FlaxLayout:
    """The layout of an output with these tensors, arrays of more than `most` bytes in chunks."""
    shards = _cut(avals, options)
    total = len(shards)
    names = [_file_name(number, total) for number in range(1, total + 1)] if options.directory else [""]
    tree = options.tree
    others = _others(avals, tree)
    files: list[FlaxFile] = []
    pieces: dict[str, list[FlatPiece]] = {}
    places: dict[str, TensorInfo] = {}
    for number, tensors in enumerate(shards):
        leaves: dict[str, object] = {name: avals[name] for name in tensors}
        if number == 0:
            leaves |= others
        encoder = _Encoder(tree, most)
        parts = encoder.stream(leaves) if options.options.get("stream") else encoder.tree(leaves)
        files.append(_place(names[number], number, parts, avals, pieces, places))
    index = _index(avals, shards, names, tree) if total > 1 else None
    return FlaxLayout(tuple(files), pieces, places, index)


def keys_of(tree: KeyTree, name: str) -> tuple[str, ...]:
    """The keys of a leaf, all of which are text in a state dict of flax."""
    return tuple(map(str, tree.path(name)))


def _others(avals: Mapping[str, Aval], tree: KeyTree) -> dict[str, object]:
    """Leaves that are no tensors, where tensors leave them room. A state dict of flax has dicts for all containers."""
    tensors = {keys_of(tree, name) for name in avals}
    taken = {keys[:end] for keys in tensors for end in range(1, len(keys) + 1)}
    found: dict[str, object] = {}
    for name, leaf in tree.others.items():
        keys = keys_of(tree, name)
        if keys not in taken and not any(keys[:end] in tensors for end in range(1, len(keys))):
            found[name] = leaf.text if leaf.kind == TEXT else None if leaf.kind == "None" else {}
    return found


def _cut(avals: Mapping[str, Aval], options: WriteOptions) -> list[list[str]]:
    return plan_shards(avals, options.shard_bytes) if options.directory else [list(avals)]


def cut_flax(avals: Mapping[str, Aval], options: WriteOptions) -> FileCounts:
    """The number of files of an output; none is an unchanged file of a source."""
    return FileCounts(len(_cut(avals, options)), 0, 0)


def _file_name(number: int, total: int) -> str:
    stem, suffix = os.path.splitext(WEIGHTS)
    return WEIGHTS if total == 1 else f"{stem}-{number:05d}-of-{total:05d}{suffix}"


def _index(avals: Mapping[str, Aval], shards: Sequence[Sequence[str]], names: Sequence[str], tree: KeyTree) -> bytes:
    """The index of shards, with keys joined by slashes as transformers writes them."""
    home = {"/".join(keys_of(tree, n)): file for file, shard in zip(names, shards, strict=True) for n in shard}
    total = sum(aval.nbytes for aval in avals.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": home}, indent=2, ensure_ascii=False).encode()


def _place(
    name: str,
    number: int,
    parts: Iterable[bytes | FlatPiece],
    avals: Mapping[str, Aval],
    pieces: dict[str, list[FlatPiece]],
    places: dict[str, TensorInfo],
) -> FlaxFile:
    """The layout of one file; the places of its tensors are added to `places`."""
    heads: list[tuple[int, bytes]] = []
    at = 0
    for is_head, run in groupby(parts, lambda part: isinstance(part, bytes)):
        if is_head:
            head = b"".join(part for part in run if isinstance(part, bytes))
            heads.append((at, head))
            at += len(head)
            continue
        for piece in run:
            assert isinstance(piece, FlatPiece), "what is no head is a piece"
            dtype = avals[piece.name].dtype
            shape = () if piece.number else (piece.size,)
            aval = Aval(shape, UINT8 if piece.number and dtype.is_bool else dtype)
            pieces.setdefault(piece.name, []).append(piece)
            places[key_of(piece)] = TensorInfo(aval, number, at)
            at += aval.nbytes
    return FlaxFile(name, tuple(heads), at)


class _Encoder:
    """Makes msgpack of leaves: bytes, and pieces of tensors where their elements go."""

    def __init__(self, tree: KeyTree, most: int):
        import msgpack

        self._tree, self._most = tree, most
        self._packer = msgpack.Packer()

    def tree(self, leaves: Mapping[str, Any]) -> Iterator[bytes | FlatPiece]:
        """Dicts of dicts, as flax nests them."""
        root: dict[str, Any] = {}
        for name in leaves:
            *parents, last = keys_of(self._tree, name)
            node = root
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = _Leaf(name)
        yield from self._node(root, leaves)

    def _node(self, node: dict[str, Any], leaves: Mapping[str, Any]) -> Iterator[bytes | FlatPiece]:
        yield self._packer.pack_map_header(len(node))
        for key, inner in node.items():
            yield self._packer.pack(key)
            if isinstance(inner, _Leaf):
                yield from self._leaf(inner.name, leaves[inner.name])
            else:
                yield from self._node(inner, leaves)

    def stream(self, leaves: Mapping[str, Any]) -> Iterator[bytes | FlatPiece]:
        """Pairs of a key path and a leaf, one after the other, as EasyLM writes them."""
        for name, leaf in leaves.items():
            parts = list(self._leaf(name, leaf))
            nbytes = sum(len(part) if isinstance(part, bytes) else self._nbytes(part, leaf) for part in parts)
            yield b"\x92" + self._packer.pack(list(keys_of(self._tree, name))) + _with_size(nbytes, b"\xc4\xc5\xc6")
            yield from parts

    def _nbytes(self, piece: FlatPiece, aval: Aval) -> int:
        return piece.size * aval.dtype.bits // 8

    def _leaf(self, name: str, leaf: object) -> Iterator[bytes | FlatPiece]:
        if not isinstance(leaf, Aval):
            yield self._packer.pack(leaf)
        elif self._is_number(name, leaf) and leaf.dtype.is_bool:
            yield FlatPiece(name, 0, 1, number=True)
        elif self._is_number(name, leaf) and leaf.dtype.name in _NUMBERS:
            yield bytes([_NUMBERS[leaf.dtype.name]])
            yield FlatPiece(name, 0, 1, number=True)
        elif leaf.nbytes > self._most:
            yield from self._chunks(name, leaf)
        else:
            yield self._array_head(leaf)
            yield FlatPiece(name, 0, leaf.size)

    def _is_number(self, name: str, aval: Aval) -> bool:
        return not aval.shape and self._tree.types.get(name, PLAIN).holder == SCALAR

    def _chunks(self, name: str, aval: Aval) -> Iterator[bytes | FlatPiece]:
        pack, most = self._packer.pack, max(1, self._most * 8 // aval.dtype.bits)
        shape = {str(axis): n for axis, n in enumerate(aval.shape)}
        starts = range(0, aval.size, most)
        yield b"\x83" + pack(CHUNKED) + pack(True) + pack("shape") + pack(shape) + pack("chunks")
        yield self._packer.pack_map_header(len(starts))
        for number, start in enumerate(starts):
            size = min(most, aval.size - start)
            yield pack(str(number)) + self._array_head(Aval((size,), aval.dtype))
            yield FlatPiece(name, start, size)

    def _array_head(self, aval: Aval) -> bytes:
        """The bytes before the elements of an array: the extension, shape, dtype, and the number of bytes."""
        assert aval.dtype.numpy is not None, "checked before"
        inner = b"\x93" + self._packer.pack(list(aval.shape)) + self._packer.pack(aval.dtype.numpy)
        inner += _with_size(aval.nbytes, b"\xc4\xc5\xc6")
        nbytes = len(inner) + aval.nbytes
        fixed = {1: b"\xd4", 2: b"\xd5", 4: b"\xd6", 8: b"\xd7", 16: b"\xd8"}.get(nbytes)
        return (fixed or _with_size(nbytes, b"\xc7\xc8\xc9")) + bytes([ARRAY]) + inner


_MOST_ENTRY = (1 << 32) - (1 << 20)
"""Bytes of an array in an entry of a stream, whose size is a number of 32 bits; the head of the array goes in, too."""


class _Leaf(NamedTuple):
    """A leaf in a tree on its way."""

    name: str


def _with_size(nbytes: int, heads: bytes) -> bytes:
    """A head with the shortest number of bytes that holds a size."""
    width = next(at for at in range(3) if nbytes < 1 << (8 << at))
    return heads[width : width + 1] + nbytes.to_bytes(1 << width, "big")


def check_flax(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError for the first tensor that a file of flax cannot hold."""
    for name, aval in avals.items():
        if aval.dtype.numpy is None:
            remedy = "Write safetensors, which carries the packed bytes."
            raise StoreError(path, f"flax has no dtype {aval.dtype}", tensor=name, remedy=remedy)
        if options.options.get("stream") and aval.nbytes >= _MOST_ENTRY:
            problem = f"an entry of a stream holds less than 4 GB, and this is {aval}"
            raise StoreError(path, problem, tensor=name, remedy="Write it without the option `stream`.")
    check_unicode(path, avals)
    if two := clash({keys_of(options.tree, name): name for name in avals}):
        problem = f"is the prefix of '{two[1]}': a tree cannot hold a tensor and more below it"
        raise StoreError(
            path, problem, tensor=two[0], remedy="Rename one of the two: a key of flax holds a tensor, or more keys."
        )
