"""The vocabulary of stores: what a header tells, and the two protocols that every format implements."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from brainsurgery_jax.boxes import Box
from brainsurgery_jax.dtypes import Aval

if TYPE_CHECKING:
    import numpy as np

    from brainsurgery_jax.store.atomic import Staged


class TensorInfo(NamedTuple):
    """Where a tensor lies: its aval, the index of its file in `Header.files`, its absolute byte offset there."""

    aval: Aval
    file: int
    offset: int


class PlainFile(NamedTuple):
    """A safetensors file with nothing in it but what it must have: a header of `start` bytes, which tells `metadata`,
    and the bytes of `tensors` tensors up to its end at `nbytes`. It may be passed on as it stands."""

    metadata: Mapping[str, str]
    tensors: int
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that a checkpoint tells before a tensor byte is read.

    `tensors` is in state-dict order: by data offset within a file, files by name. `path` is what the user named,
    `files` are the paths behind it, `plain` tells of those that are safetensors files by their index. `left_out` names
    what it holds beside tensors, and says of what kind each is: what trainers note of a run may be private, so its
    values go no further than the reader.
    """

    path: str
    files: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    plain: Mapping[int, PlainFile] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


class FileRun(NamedTuple):
    """A run of bytes in a file of a source, for `Writer.copy`."""

    fd_source: Source
    file: int
    offset: int
    nbytes: int


class Held(NamedTuple):
    """A tensor as a checkpoint holds it: the checkpoint, and the name there."""

    source: Source
    name: str


class WriteOptions(NamedTuple):
    """How a checkpoint is to be written. `unchanged` are the tensors that are written as a checkpoint holds them,
    `options` what the plan says for this format alone, checked already. `keep_files`: files of a sharded checkpoint
    that go out unchanged may stay files of their own; else `shard_bytes` alone says where files end."""

    directory: bool
    metadata: Mapping[str, str]
    shard_bytes: int | None = None
    durable: bool = True
    unchanged: Mapping[str, Held] = {}
    options: Mapping[str, Any] = {}
    keep_files: bool = False


class Cut(NamedTuple):
    """How many files an output has; how many of them are files of a checkpoint as they stand, and the tensor bytes that
    these hold."""

    files: int
    kept: int
    kept_bytes: int


class Source(Protocol):
    """A checkpoint open for reading. Every method may be called from any thread."""

    @property
    def header(self) -> Header:
        """What the checkpoint holds."""
        ...

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far; headers, and bytes that a writer copies from file to file, do not count."""
        ...

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        ...

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        ...

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`, or None where this store cannot name them as a run."""
        ...

    def fileno(self, file: int) -> AbstractContextManager[int]:
        """A descriptor of `header.files[file]`, kept open inside the `with` block and not to be used after it."""
        ...

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        ...

    def close(self) -> None:
        """Gives all descriptors back."""
        ...


class Writer(Protocol):
    """A checkpoint being written to its staging path. `put`, `put_rows` and `copy` come in any order, from any
    thread."""

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        ...

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows`, which are in row-major order, at its own flat element offset of the tensor."""
        ...

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        ...

    def lane(self, name: str) -> int:
        """A number for the tensor: those of different lanes can be written at the same time without waiting for each
        other, those of one lane take turns, since file systems lock a file for every write."""
        ...

    def finish(self) -> Staged:
        """The complete checkpoint, ready for `atomic.publish`; refused while bytes are missing."""
        ...

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        ...
