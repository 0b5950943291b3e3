"""Writing formats that a library makes in one go, from start to end: tensors are gathered in a scratch file first.

The library is then given memory maps, of the scratch file, and of the files of inputs for what comes from there as it
is. So however large the model, little of it is ever held: the system reads pages when they are needed, and drops them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple
from uuid import uuid4

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.balance import balance
from brainsurgery_jax.store.base import FileRun, Held, TensorInfo, WriteOptions
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.arrays import ALIGNMENT, numpy_dtype
from brainsurgery_jax.store.io.byte_sink import ByteSink
from brainsurgery_jax.store.io.descriptors import most_open
from brainsurgery_jax.store.io.file_maps import FileMap, guard
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.io.local import LocalFile, LocalPlace
from brainsurgery_jax.store.joining import JoinedOutput
from brainsurgery_jax.store.leftovers import SCRATCH

if TYPE_CHECKING:
    import numpy as np

Encode = Callable[[str, Mapping[str, "np.ndarray"], WriteOptions], None]
"""`encode(path, arrays, options)` writes a checkpoint to a path: the folder is there, the file is not. The arrays are
read-only memory maps in state-dict order."""


class InParts(NamedTuple):
    """How several processes make a checkpoint together: each encodes the tensors that it is given, and when all have,
    one merges what they made. `merge` takes the shapes and dtypes of all tensors, and not their values."""

    encode: Encode
    merge: Encode


EncodeStream = Callable[[IO[bytes], Mapping[str, "np.ndarray"], WriteOptions], None]
"""`encode(file, arrays, options)` writes a checkpoint of one file, from its start to its end."""


class EncodedWriter:
    """A checkpoint that `encode` makes of the whole; see `base.Writer`. A file or folder at the staging path."""

    def __init__(
        self,
        staged: StagedOutput,
        avals: Mapping[str, Aval],
        options: WriteOptions,
        encode: Encode,
        in_parts: InParts | None = None,
    ):
        self._staged, self._avals, self._options, self._encode = staged, dict(avals), options, encode
        self._in_parts = in_parts if options.processes > 1 else None
        self._scratch = _scratch(staged)
        # Of several processes each maps what it encodes alone, and all must come to the same layout.
        room = most_open() // 2 if options.processes == 1 else len(avals)
        self._mapped = _usable_places(options.unchanged, avals, room)
        self._places, size = _layout({name: aval for name, aval in avals.items() if name not in self._mapped})
        with ExitStack() as on_failure, os_failures(staged.destination, "create the partial output"):
            on_failure.callback(staged.abandon)
            self._sink = ByteSink(staged.destination, [self._scratch.create("", size)], self._places, flush=False)
            on_failure.callback(self._sink.close)
            if options.directory:
                staged.place.create_folder()
            on_failure.pop_all()

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        self._sink.put(name, start, data)

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows` at its own flat element offset of the tensor."""
        self._sink.put_rows(name, starts, rows)

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, unless they are taken from where they
        are."""
        if name not in self._mapped:
            self._sink.copy(name, start, run)

    def keep(self, name: str, start: int, count: int) -> None:
        """Counts `count` elements from `start` on that are where they belong already."""
        if name not in self._mapped:
            self._sink.keep(name, count)

    def lane(self, name: str) -> int:
        """All tensors go to one file."""
        return 0

    def encode_part(self, wait: Callable[[], object]) -> None:
        """Encodes the tensors of this process, of several."""
        self._sink.close()
        wait()
        if self._in_parts is not None:
            names = share(self._avals, self._options.process, self._options.processes)
            with os_failures(self._staged.destination, "write the partial output"):
                self._encode_files(self._in_parts.encode, names)

    def finish(self) -> StagedOutput:
        """The complete checkpoint, ready for `Commit.publish`; a StoreError while bytes are missing."""
        self._sink.check_complete()
        self._sink.close()
        with os_failures(self._staged.destination, "write the partial output"):
            if self._in_parts is None:
                self._encode_files(self._encode, self._avals)
            else:
                shapes = {name: _without_values(aval) for name, aval in self._avals.items()}
                with self._destination_in_errors() as staging:
                    self._in_parts.merge(staging, shapes, self._options)
            os.remove(self._scratch.path)
            if self._options.durable:
                self._staged.place.flush()
        return self._staged

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        self._sink.close()
        self._staged.abandon()
        if not isinstance(self._staged, JoinedOutput) and os.path.exists(self._scratch.path):
            os.remove(self._scratch.path)

    def _map_files(self, names: Iterable[str]) -> dict[int, FileMap]:
        """Maps of the files of inputs that are used in place, by the identity of these."""
        files = {id(found[0]): found[0] for name in names if (found := self._mapped.get(name)) is not None}
        return {key: FileMap(file) for key, file in files.items()}

    def _encode_files(self, encode: Encode, names: Collection[str]) -> None:
        maps = self._map_files(names)
        with self._destination_in_errors() as staging:
            try:
                with guard(maps.values()):
                    encode(staging, self._arrays(maps, names), self._options)
            except Exception:
                _verify(maps)  # bytes that are gone are why it failed, whatever the library says
                raise
        _verify(maps)

    @contextmanager
    def _destination_in_errors(self) -> Iterator[str]:
        """A block that writes to the path that it yields, and whose errors name the destination."""
        staging = path_of(self._staged)
        try:
            yield staging
        except StoreError as bad:
            path = bad.path.replace(staging, self._staged.destination)
            raise StoreError(path, bad.problem, tensor=bad.tensor, remedy=bad.remedy) from bad

    def _arrays(self, maps: Mapping[int, FileMap], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Tensors as views of memory maps, one map a file."""
        if any(aval.size for aval, _, _ in self._places.values()):
            with open(self._scratch.path, "rb") as file:
                scratch = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            scratch = b""
        arrays = {}
        for name in names:
            aval = self._avals[name]
            if (found := self._mapped.get(name)) is None:
                arrays[name] = _view(scratch, self._places[name].offset, aval)
            else:
                file, offset = found
                arrays[name] = _view(maps[id(file)].buffer, offset, aval)
        return arrays


def path_of(staged: StagedOutput) -> str:
    """Where an output is written, for who needs a path."""
    return staged.staging if isinstance(staged, Staged | JoinedOutput) else staged.destination


def share(avals: Mapping[str, Aval], process: int, processes: int) -> list[str]:
    """The tensors that one of several processes encodes, in order."""
    names = sorted(avals, key=lambda name: (-avals[name].nbytes, name))
    homes = balance([avals[name].nbytes for name in names], [0] * processes)
    mine = {name for name, home in zip(names, homes, strict=True) if home == process}
    return [name for name in avals if name in mine]


def _without_values(aval: Aval) -> np.ndarray:
    """An array of this shape and dtype that takes no memory."""
    import numpy as np

    return np.broadcast_to(np.zeros((), numpy_dtype(aval.dtype)), aval.shape)


def _scratch(staged: StagedOutput) -> LocalPlace:
    """Beside an output of a file system; else among the temporary files of this machine."""
    if isinstance(staged, Staged | JoinedOutput):
        return staged.scratch
    return LocalPlace(os.path.join(tempfile.gettempdir(), f"brainsurgery-{uuid4().hex}{SCRATCH}"), private=True)


def open_streamed(
    staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions, encode: EncodeStream, name: str = ""
) -> EncodedWriter:
    """The writer of an output of one file that `encode` makes; `name` is what it is called in a folder."""

    def encode_file(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
        with staged.place.stream(name if options.directory else "") as file:
            encode(file, arrays, options)

    return EncodedWriter(staged, avals, options, encode_file)


def open_encoded(
    staged: StagedOutput,
    avals: Mapping[str, Aval],
    options: WriteOptions,
    encode: Encode,
    in_parts: InParts | None = None,
) -> EncodedWriter:
    """The writer of an output that `encode` makes, or several processes `in_parts`. Raises StoreError for a place that
    is no file system."""
    if not isinstance(staged, Staged | JoinedOutput):
        problem = "this format is written to local files only, safetensors, flax, torch and npz to any place"
        raise StoreError(staged.destination, problem)
    return EncodedWriter(staged, avals, options, encode, in_parts)


def _verify(maps: Mapping[int, FileMap]) -> None:
    for each in maps.values():
        each.verify()


def _usable_places(
    unchanged: Mapping[str, Held], avals: Mapping[str, Aval], room: int
) -> dict[str, tuple[LocalFile, int]]:
    """The file and offset of each tensor that can be used in place. A map holds a descriptor: of more files than there
    is room for, the tensors are gathered like others."""
    found: dict[str, tuple[LocalFile, int]] = {}
    files: set[int] = set()
    for name, held in unchanged.items():
        place = _usable_place(held, avals[name])
        if place is not None and (id(place[0]) in files or len(files) < room):
            files.add(id(place[0]))
            found[name] = place
    return found


def _usable_place(held: Held, aval: Aval) -> tuple[LocalFile, int] | None:
    """The file and offset of a tensor, if it has elements, and they can be used in place."""
    run = held.source.file_run(held.name, 0, aval.size) if aval.size else None
    if run is None or not isinstance(run.file, LocalFile) or run.offset % _item_bytes(aval):
        return None
    return run.file, run.offset


def _item_bytes(aval: Aval) -> int:
    return max(1, aval.dtype.bits // 8)


def _layout(avals: Mapping[str, Aval]) -> tuple[dict[str, TensorInfo], int]:
    """A place for each tensor in one file, and the size of it."""
    places: dict[str, TensorInfo] = {}
    position = 0
    for name, aval in avals.items():
        places[name] = TensorInfo(aval, 0, position)
        position += -(-aval.nbytes // ALIGNMENT) * ALIGNMENT
    return places, position


def _view(buffer: mmap.mmap | bytes, offset: int, aval: Aval) -> np.ndarray:
    import numpy as np

    dtype = numpy_dtype(aval.dtype)
    if not aval.size:
        return np.empty(aval.shape, dtype)
    return np.frombuffer(buffer, dtype, aval.size, offset).reshape(aval.shape)
