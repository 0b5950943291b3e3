"""The vocabulary of stores: the contents of a header, and the two protocols that every format implements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic, Span
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store.io.files import File, StagedOutput, Stamp
from brainsurgery_jax.store.key_paths import NOTES, Path
from brainsurgery_jax.store.key_tree import NO_TREE, KeyTree, tree_in

if TYPE_CHECKING:
    import numpy as np


class TensorInfo(NamedTuple):
    """The location of a tensor: its aval, the index of its file in `Header.files`, its absolute byte offset there."""

    aval: Aval
    file: int
    offset: int


class PlainFile(NamedTuple):
    """A safetensors file with only the required parts: a header of `start` bytes with `metadata`, and the bytes of
    `tensors` tensors up to its end at `nbytes`. An output may take it over unchanged."""

    metadata: Mapping[str, str]
    tensors: int
    start: int
    nbytes: int


class Unread(NamedTuple):
    """An entry that may belong to the model and cannot be read: why, and what to do."""

    why: str
    remedy: str = ""


class Note(NamedTuple):
    """A remark on a checkpoint that can be read: a code, a message, and a hint. `about`: the entries that it concerns;
    empty for the checkpoint as a whole."""

    code: str
    message: str
    hint: str = ""
    about: tuple[str, ...] = ()

    def at(self, span: Span | None = None) -> Diagnostic:
        """The note as a diagnostic, at the place of a plan that names the checkpoint."""
        return Diagnostic(self.code, self.message, span, self.hint, "note")


@dataclass(frozen=True, slots=True)
class Nesting:
    """How the entries of a checkpoint nest, where its format has containers.

    - `kinds`: by key path, each container: `dict`, `OrderedDict`, `list` or `tuple`
    - `tensors`: the key path of each tensor, by its name
    - `values`: what is no tensor, by key path; read when they are asked for
    - `order`: the key paths of tensors and values, one after the other as they are in the file
    - `base`: the container that names begin in
    """

    kinds: Mapping[Path, str]
    tensors: Mapping[str, Path]
    values: Mapping[Path, object]
    order: Sequence[Path]
    base: Path = ()


class ReadingMemory(NamedTuple):
    """Bytes that reading a checkpoint takes besides the tensors that are read: `held` as long as it is open, and `each`
    for each thread that reads."""

    held: int = 0
    each: int = 0


READS_ALONE = ReadingMemory()
"""What is read needs no other memory."""


@dataclass(frozen=True, slots=True)
class Header:
    """Everything known about a checkpoint before a tensor byte is read.

    `tensors` is in state-dict order: by data offset within a file, files by name. `path` is what the user named,
    `files` are the paths behind it, `plain` describes the safetensors files among them, by index.

    Other contents:

    - `left_out`: entries that are not tensors, with their kinds. Their values may be private and are never written.
    - `unread`: entries that may belong to the model and cannot be read. To read the others, leave these out.
    - `parts`: the default entry if no part is named; several if that is ambiguous, none if the whole is meant.
    - `notes`, and `nesting` if the format has containers.
    - `tree`: the tree of the tensors; in a format without trees, the one that notes in the metadata describe.
    - `reading`: the memory that reading takes.
    - `side_folder`: of a remote checkpoint, the local folder for its side files; empty for a local checkpoint.
    - `bring`: fetches side files into that folder, where files without bytes stand for them until they are read.
    """

    path: str
    files: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    plain: Mapping[int, PlainFile] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, Unread] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    nesting: Nesting | None = None
    tree: KeyTree = NO_TREE
    side_folder: str = ""
    bring: Callable[[Iterable[str]], None] | None = None
    reading: ReadingMemory = READS_ALONE

    def __post_init__(self) -> None:
        if self.tree is NO_TREE and NOTES in self.metadata:
            object.__setattr__(self, "tree", tree_in(self.metadata, self.tensors))

    @property
    def plain_metadata(self) -> Mapping[str, str]:
        """The metadata without the notes of the tree."""
        return {key: text for key, text in self.metadata.items() if key != NOTES}


class Fingerprint(NamedTuple):
    """The identity of a checkpoint, found without reading its tensors: the stamp of each file by name, and a digest of
    the header (names, avals, offsets and metadata). If the fingerprints of local files are equal, no program wrote to
    them in between, except one that sets modification times back."""

    stamps: Mapping[str, Stamp]
    header: str


def fingerprint_of(header: Header, stamps: Mapping[str, Stamp]) -> Fingerprint:
    """The fingerprint of a checkpoint whose files have these stamps."""
    from hashlib import blake2b  # few runs ask

    digest = blake2b(digest_size=16)
    for name, (aval, file, offset) in header.tensors.items():
        digest.update(f"{name}\0{aval}\0{file}\0{offset}\n".encode(errors="surrogatepass"))
    for key, text in sorted(header.metadata.items()):
        digest.update(f"{key}\0{text}\n".encode(errors="surrogatepass"))
    if not header.tree.is_plain:
        told = repr((header.tree.paths, header.tree.others, header.tree.types))
        digest.update(told.encode(errors="surrogatepass"))
    return Fingerprint(dict(stamps), digest.hexdigest())


class Nest(NamedTuple):
    """Where the tensors of an output go: the key path of each, the kind of each container, values to write beside them,
    and what comes before what. `left_out` are values that were asked for as all there are, and are no plain data."""

    paths: Mapping[str, Path]
    kinds: Mapping[Path, str]
    values: Mapping[Path, object]
    order: Sequence[Path]
    left_out: tuple[str, ...] = ()


class FileRun(NamedTuple):
    """A run of bytes in a file, for `Writer.copy`."""

    file: File
    offset: int
    nbytes: int


class Held(NamedTuple):
    """A tensor as a checkpoint holds it: the checkpoint, and the name there."""

    source: Source
    name: str


class WriteOptions(NamedTuple):
    """How to write a checkpoint. `unchanged` are the tensors that are written exactly as a checkpoint holds them,
    `options` the validated options of this format, and `nest` the places of entries in a format with containers.
    `keep_files`: unchanged files of a sharded checkpoint may remain separate files; otherwise `shard_bytes` alone
    decides where files end. `tree`: the places of tensors in a format with trees. `kept`: tensors that a delta leaves
    in its base, all of one checkpoint; `names`: all names in order. `process` of `processes` that write it together.
    `hard_links`: a file that a checkpoint holds as it stands may be a hard link to it."""

    directory: bool
    metadata: Mapping[str, str]
    shard_bytes: int | None = None
    durable: bool = True
    unchanged: Mapping[str, Held] = {}
    options: Mapping[str, object] = {}
    keep_files: bool = False
    nest: Nest | None = None
    tree: KeyTree = NO_TREE
    kept: Mapping[str, Held] = {}
    names: tuple[str, ...] = ()
    process: int = 0
    processes: int = 1
    hard_links: bool = False


class FileCounts(NamedTuple):
    """The number of files of an output; how many of them are unchanged files of a checkpoint, and the tensor bytes in
    these."""

    files: int
    kept: int
    kept_bytes: int


class Source(Protocol):
    """A checkpoint open for reading. Every method may be called from any thread."""

    @property
    def header(self) -> Header:
        """The contents of the checkpoint."""
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

    @property
    def fingerprint(self) -> Fingerprint:
        """The identity of the checkpoint, found without reading its tensors."""
        ...

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file no longer has the stamp that it has in the fingerprint."""
        ...

    def close(self) -> None:
        """Gives back what it holds open."""
        ...


class Writer(Protocol):
    """A checkpoint being written to the place where it is staged. `put`, `put_rows` and `copy` come in any order, from
    any thread."""

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        ...

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows`, which are in row-major order, at its own flat element offset of the tensor."""
        ...

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        ...

    def keep(self, name: str, start: int, count: int) -> None:
        """Counts `count` elements from flat element offset `start` on that an interrupted run wrote, and that are where
        they belong."""
        ...

    def lane(self, name: str) -> int:
        """A number for the tensor: those of different lanes can be written at the same time without waiting for each
        other, those of one lane take turns, since file systems lock a file for every write."""
        ...

    def encode_part(self, wait: Callable[[], object]) -> None:
        """Makes, of several processes, the part of this one of what can only be made when all have written their
        tensors; the first finishes the output afterwards. `wait` returns when all processes have called it."""
        ...

    def finish(self) -> StagedOutput:
        """The complete checkpoint, ready for `Commit.publish`; refused while bytes are missing."""
        ...

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        ...
