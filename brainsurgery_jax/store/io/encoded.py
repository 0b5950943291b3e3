"""Writing formats that a library makes in one go, from start to end: tensors are gathered in a scratch file first.

The library is then given memory maps, of the scratch file, and of the files of inputs for what comes from there as it
is. So however large the model, little of it is ever held: the system reads pages when they are needed, and drops them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import FileRun, Held, TensorInfo, WriteOptions
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.arrays import ALIGNMENT, numpy_dtype
from brainsurgery_jax.store.io.byte_sink import ByteSink
from brainsurgery_jax.store.io.descriptors import most_open
from brainsurgery_jax.store.io.file_maps import FileMap, guard
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.io.local import LocalFile, LocalPlace
from brainsurgery_jax.store.leftovers import SCRATCH

if TYPE_CHECKING:
    import numpy as np

Encode = Callable[[str, Mapping[str, "np.ndarray"], WriteOptions], None]
"""`encode(path, arrays, options)` writes a checkpoint to a path: the folder is there, the file is not. The arrays are
read-only memory maps in state-dict order."""


EncodeStream = Callable[[IO[bytes], Mapping[str, "np.ndarray"], WriteOptions], None]
"""`encode(file, arrays, options)` writes a checkpoint of one file, from its start to its end."""


class EncodedWriter:
    """A checkpoint that `encode` makes of the whole; see `base.Writer`. A file or folder at the staging path."""

    def __init__(self, staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions, encode: Encode):
        self._staged, self._avals, self._options, self._encode = staged, dict(avals), options, encode
        self._scratch = _scratch(staged)
        self._mapped = _usable_places(options.unchanged, avals)
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

    def finish(self) -> StagedOutput:
        """The complete checkpoint, ready for `Commit.publish`; a StoreError while bytes are missing."""
        self._sink.check_complete()
        self._sink.close()
        with os_failures(self._staged.destination, "write the partial output"):
            self._encode_files(_path_of(self._staged), self._map_files())
            os.remove(self._scratch.path)
            if self._options.durable:
                self._staged.place.flush()
        return self._staged

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        self._sink.close()
        self._staged.abandon()
        if os.path.exists(self._scratch.path):
            os.remove(self._scratch.path)

    def _map_files(self) -> dict[int, FileMap]:
        """Maps of the files of inputs that are used in place, by the identity of these."""
        return {key: FileMap(file) for key, file in {id(file): file for file, _ in self._mapped.values()}.items()}

    def _encode_files(self, staging: str, maps: Mapping[int, FileMap]) -> None:
        try:
            with guard(maps.values()):
                self._encode(staging, self._arrays(maps), self._options)
        except Exception as bad:
            _verify(maps)  # bytes that are gone are why it failed, whatever the library says
            if not isinstance(bad, StoreError):
                raise
            path = bad.path.replace(staging, self._staged.destination)
            raise StoreError(path, bad.problem, tensor=bad.tensor, remedy=bad.remedy) from bad
        _verify(maps)

    def _arrays(self, maps: Mapping[int, FileMap]) -> dict[str, np.ndarray]:
        """All tensors as views of memory maps, one map a file."""
        if any(aval.size for aval, _, _ in self._places.values()):
            with open(self._scratch.path, "rb") as file:
                scratch = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            scratch = b""
        arrays = {}
        for name, aval in self._avals.items():
            if (found := self._mapped.get(name)) is None:
                arrays[name] = _view(scratch, self._places[name].offset, aval)
            else:
                file, offset = found
                arrays[name] = _view(maps[id(file)].buffer, offset, aval)
        return arrays


def _path_of(staged: StagedOutput) -> str:
    """Where an output is written, for who needs a path."""
    return staged.staging if isinstance(staged, Staged) else staged.destination


def _scratch(staged: StagedOutput) -> LocalPlace:
    """Beside an output of a file system; else among the temporary files of this machine."""
    if isinstance(staged, Staged):
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
    staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions, encode: Encode
) -> EncodedWriter:
    """The writer of an output that `encode` makes. Raises StoreError for a place that is no file system."""
    if not isinstance(staged, Staged):
        problem = "this format is written to local files only, safetensors, flax, torch and npz to any place"
        raise StoreError(staged.destination, problem)
    return EncodedWriter(staged, avals, options, encode)


def _verify(maps: Mapping[int, FileMap]) -> None:
    for each in maps.values():
        each.verify()


def _usable_places(unchanged: Mapping[str, Held], avals: Mapping[str, Aval]) -> dict[str, tuple[LocalFile, int]]:
    """The file and offset of each tensor that can be used in place. A map holds a descriptor: of more files than a
    process may well have open, the tensors are gathered like others."""
    found: dict[str, tuple[LocalFile, int]] = {}
    files: set[int] = set()
    room = most_open() // 2
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
