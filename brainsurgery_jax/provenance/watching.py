"""Digests taken while a run reads and writes, so that nothing is read for them alone where that can be avoided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.index.boxes import Box, flat_range
from brainsurgery_jax.numerics.digest import LOCKED, PIECE, begin_xxh3, digest_xxh3
from brainsurgery_jax.store.base import FileRun, Source, Writer
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.arrays import byte_view
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.store.io.forwarding import SourceOver
from brainsurgery_jax.store.io.local import LocalFile

if TYPE_CHECKING:
    import numpy as np

READ = 1 << 20
"""Bytes that are read at a time to digest what the system copies: they stay in the cache."""


class PassingDigests:
    """The digests of tensors whose bytes pass by in any order, on any thread, some of them twice.

    Only pieces that pass as a whole count. A tensor of which one never does has no digest here.
    """

    def __init__(self, avals: Mapping[str, Aval]):
        self._avals = avals
        self._pieces: dict[str, dict[int, bytes]] = {}

    def look(self, name: str, start: int, data: memoryview) -> None:
        """Take the bytes of a tensor from element `start` on."""
        bits = self._avals[name].dtype.bits
        for number, first, last in self._missing(name, start, len(data) * 8 // bits):
            digest = digest_xxh3(data[(first - start) * bits // 8 : (last - start) * bits // 8])
            self._pieces[name][number] = digest

    def look_at_file(self, name: str, start: int, run: FileRun) -> None:
        """Read and take the bytes of a tensor from element `start` on, which lie in a file."""
        bits = self._avals[name].dtype.bits
        buffer = memoryview(bytearray(min(READ, run.nbytes)))
        for number, first, last in self._missing(name, start, run.nbytes * 8 // bits):
            found, at, end = begin_xxh3(), (first - start) * bits // 8, (last - start) * bits // 8
            for offset in range(at, end, READ):
                part = buffer[: end - offset]
                with os_failures(run.file.name, f"read tensor '{name}'"):
                    run.file.read_into(part, run.offset + offset, tensor=name)
                found.update(part)
            self._pieces[name][number] = found.digest()

    def _missing(self, name: str, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """The pieces that lie whole in `count` elements from `start` on and have not passed: number, start, stop."""
        size, pieces = self._avals[name].size, self._pieces.setdefault(name, {})
        for number in range(-(-start // PIECE), -(-(start + count) // PIECE)):
            first, last = number * PIECE, min((number + 1) * PIECE, size)
            if last <= start + count and number not in pieces:
                yield number, first, last

    def digest(self, name: str) -> bytes | None:
        """The digest of a tensor, if all of it has passed."""
        if not self._avals[name].size:
            return LOCKED.empty
        pieces = self._pieces.get(name, {})
        if len(pieces) != -(-self._avals[name].size // PIECE):
            return None
        return LOCKED.finish(b"".join(pieces[number] for number in range(len(pieces))))


class WatchedSource(SourceOver):
    """A source that digests what is read of it; see `base.Source`."""

    def __init__(self, source: Source):
        super().__init__(source.header, source)
        self.digests = PassingDigests({name: info.aval for name, info in source.header.tensors.items()})

    @property
    def inner(self) -> Source:
        """The source itself."""
        return self._source

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor."""
        array = self._source.read(name, box)
        run = (0, array.size) if box is None else flat_range(self.header.tensors[name].aval.shape, box)
        if run is not None:
            self.digests.look(name, run[0], byte_view(array))
        return array

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order."""
        array = self._source.read_range(name, start, stop)
        self.digests.look(name, start, byte_view(array))
        return array

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; what is copied is digested where it is written."""
        return self._source.file_run(name, start, stop)


class WatchedWriter:
    """A writer that digests what is written; see `base.Writer`."""

    def __init__(self, writer: Writer, avals: Mapping[str, Aval]):
        self._writer = writer
        self.digests = PassingDigests(avals)

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        import numpy as np

        data = np.ascontiguousarray(data)
        self._writer.put(name, start, data)
        self.digests.look(name, start, byte_view(data))

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows` at its own flat element offset of the tensor."""
        self._writer.put_rows(name, starts, rows)

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run`, and reads them once more for their digest; those of another machine are digested
        from the output."""
        self._writer.copy(name, start, run)
        if isinstance(run.file, LocalFile):
            self.digests.look_at_file(name, start, run)

    def keep(self, name: str, start: int, count: int) -> None:
        """Counts elements that are where they belong already; they are digested from the output."""
        self._writer.keep(name, start, count)

    def lane(self, name: str) -> int:
        """A number for the tensor: those of one lane take turns."""
        return self._writer.lane(name)

    def encode_part(self, wait: Callable[[], object]) -> None:
        """Makes the part of this process, of several."""
        self._writer.encode_part(wait)

    def finish(self) -> StagedOutput:
        """The complete checkpoint."""
        return self._writer.finish()

    def abort(self) -> None:
        """Removes what was written."""
        self._writer.abort()
