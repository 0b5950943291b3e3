"""Writing safetensors: files are created as their layout says, then filled in any order, by any thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.store.base import FileRun, WriteOptions
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.index_files import INDEX
from brainsurgery_jax.store.io.byte_sink import ByteSink
from brainsurgery_jax.store.io.files import NewFile, StagedOutput, read_bytes
from brainsurgery_jax.store.safetensors.layout import FileLayout, OutputLayout, layout_of

if TYPE_CHECKING:
    import numpy as np


class SafetensorsWriter:
    """The files of a layout in the making; see `base.Writer`.

    All files are created at their full size at once. A file that is a copy of an original is a clone of it where the
    place can; then nothing of it needs to be copied.
    """

    def __init__(self, staged: StagedOutput, layout: OutputLayout, *, durable: bool = True, hard_links: bool = False):
        self._staged, self._layout, self._durable, self._hard_links = staged, layout, durable, hard_links
        self._place = staged.place
        self._clones: set[int] = set()
        with ExitStack() as on_failure, os_failures(staged.destination, "create the partial output"):
            if layout.directory:
                self._place.create_folder()
                on_failure.callback(staged.abandon)
            files: list[NewFile] = []
            for number, file in enumerate(layout.files):
                files.append(self._create(number, file))
                on_failure.callback(staged.abandon)
                on_failure.callback(files[-1].close)
                if number not in self._clones:
                    files[-1].write(memoryview(_header_of(file)), 0)
            self._sink = ByteSink(staged.destination, files, layout.places, flush=durable)
            on_failure.pop_all()

    def _create(self, number: int, file: FileLayout) -> NewFile:
        """A new file; complete if it could be cloned."""
        if file.original is not None:
            cloned = self._place.clone(file.name, file.original.run.file, link=self._hard_links)
            if cloned is not None:
                self._clones.add(number)
                return cloned
        return self._place.create(file.name, file.nbytes)

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        self._sink.put(name, start, data)

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows` at its own flat element offset of the tensor."""
        self._sink.put_rows(name, starts, rows)

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        if self._layout.places[name].file not in self._clones:
            self._sink.copy(name, start, run)
            return
        position = self._sink.position(name, start, run.nbytes)
        assert run.offset == position, f"'{name}' is a clone: it has its bytes from {run.offset} already"
        self._sink.count(name, run.nbytes)

    def keep(self, name: str, start: int, count: int) -> None:
        """Counts `count` elements from `start` on that are where they belong already."""
        self._sink.keep(name, count)

    def lane(self, name: str) -> int:
        """The number of the tensor's file: writes to one file take turns, those to different files do not."""
        return self._layout.places[name].file

    def encode_part(self, wait: Callable[[], object]) -> None:
        """Nothing: every byte is written to its place at once."""

    def finish(self) -> StagedOutput:
        """The complete checkpoint, ready for `Commit.publish`; a StoreError while bytes are missing."""
        self._sink.check_complete()
        self._sink.close()
        with os_failures(self._staged.destination, "write the partial output"):
            if self._layout.index_file is not None:
                self._place.write(INDEX, self._layout.index_file)
            if self._durable:
                self._place.flush()
        return self._staged

    def abort(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        self._sink.close()
        self._staged.abandon()


def _header_of(file: FileLayout) -> bytes:
    if file.original is None:
        return file.header
    return read_bytes(file.original.run.file, file.original.plain.start, 0)


def write(staged: StagedOutput, avals: Mapping[str, Aval], options: WriteOptions) -> SafetensorsWriter:
    """The writer for an output."""
    layout = layout_of(staged.destination, avals, options)
    return SafetensorsWriter(staged, layout, durable=options.durable, hard_links=options.hard_links)
