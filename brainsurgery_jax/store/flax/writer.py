"""Write the files of flax: create them from their layout, then fill them in any order, on any thread."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import FileRun, WriteOptions
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.flax.layout import MAX_CHUNK, WEIGHTS, FlatPiece, FlaxLayout, key_of, lay_out
from brainsurgery_jax.store.io.byte_sink import ByteSink
from brainsurgery_jax.store.io.files import NewFile, StagedOutput, read_bytes

if TYPE_CHECKING:
    import numpy as np


class _Share(NamedTuple):
    """Elements `start` to `stop` of a tensor that go to one piece."""

    piece: FlatPiece
    start: int
    stop: int


class FlaxWriter:
    """The files of a layout in the making; see `base.Writer`."""

    def __init__(self, staged: StagedOutput, avals: Mapping[str, Aval], layout: FlaxLayout, options: WriteOptions):
        self._staged, self._avals, self._layout, self._durable = staged, avals, layout, options.durable
        self._begins = {name: [piece.start for piece in pieces] for name, pieces in layout.pieces.items()}
        with ExitStack() as on_failure, os_failures(staged.destination, "create the partial output"):
            if options.directory:
                staged.place.create_folder()
            on_failure.callback(staged.abandon)
            files: list[NewFile] = []
            for file in layout.files:
                files.append(staged.place.create(file.name, file.nbytes))
                on_failure.callback(files[-1].close)
                for offset, head in file.heads:
                    files[-1].write(memoryview(head), offset)
            self._sink = ByteSink(staged.destination, files, layout.places, flush=options.durable)
            on_failure.pop_all()

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        flat = data.reshape(-1)
        for piece, first, last in self._shares(name, start, start + data.size):
            part = flat[first - start : last - start]
            self._sink.put(key_of(piece), first - piece.start, _as_number(part) if piece.number else part)

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows` at its own flat element offset of the tensor."""
        import numpy as np

        width = rows.size // max(1, len(rows))
        left = np.ones(len(rows), bool)
        for piece in self._layout.pieces[name]:
            inside = (starts >= piece.start) & (starts + width <= piece.start + piece.size)
            if inside.any() and not piece.number:
                self._sink.put_rows(key_of(piece), starts[inside] - piece.start, np.ascontiguousarray(rows[inside]))
                left &= ~inside
        for at in np.flatnonzero(left):  # they go over the end of a chunk, or are a number
            self.put(name, int(starts[at]), rows[at])

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        size = self._avals[name].dtype.bits // 8
        for piece, first, last in self._shares(name, start, start + run.nbytes // size):
            part = FileRun(run.file, run.offset + (first - start) * size, (last - first) * size)
            if piece.number:
                self.put(name, first, _of_bytes(read_bytes(part.file, part.nbytes, part.offset), self._avals[name]))
            else:
                self._sink.copy(key_of(piece), first - piece.start, part)

    def keep(self, name: str, start: int, count: int) -> None:
        """Counts `count` elements from `start` on that are where they belong already."""
        for piece, first, last in self._shares(name, start, start + count):
            self._sink.keep(key_of(piece), last - first)

    def _shares(self, name: str, start: int, stop: int) -> Iterator[_Share]:
        """What of these elements goes to which piece."""
        begins, pieces = self._begins[name], self._layout.pieces[name]
        while start < stop:
            piece = pieces[bisect_right(begins, start) - 1]
            end = min(stop, piece.start + piece.size)
            yield _Share(piece, start, end)
            start = end

    def lane(self, name: str) -> int:
        """The number of the tensor's file."""
        return self._layout.places[key_of(self._layout.pieces[name][0])].file

    def encode_part(self, wait: Callable[[], object]) -> None:
        """Nothing: every byte is written to its place at once."""

    def finish(self) -> StagedOutput:
        """The complete checkpoint, ready for `Commit.publish`; a StoreError while bytes are missing."""
        self._sink.check_complete()
        self._sink.close()
        with os_failures(self._staged.destination, "write the partial output"):
            if self._layout.index_file is not None:
                self._staged.place.write(f"{WEIGHTS}.index.json", self._layout.index_file)
            if self._durable:
                self._staged.place.flush()
        return self._staged

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        self._sink.close()
        self._staged.abandon()


def _as_number(data: np.ndarray) -> np.ndarray:
    """A number as msgpack writes it: big-endian; true and false are a byte each."""
    import numpy as np

    if data.dtype == np.bool_:
        return (data.view(np.uint8) + 0xC2).astype(np.uint8).reshape(())
    return data.byteswap().reshape(())


def _of_bytes(raw: bytes, aval: Aval) -> np.ndarray:
    import numpy as np

    return np.frombuffer(raw, aval.dtype.numpy).reshape(aval.shape)


def open_writer(
    staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions, most: int = MAX_CHUNK
) -> FlaxWriter:
    """The writer of an output, arrays of more than `most` bytes in chunks."""
    return FlaxWriter(staged, avals, lay_out(avals, options, most), options)
