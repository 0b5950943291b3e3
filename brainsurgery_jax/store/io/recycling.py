"""Memory of large arrays, used again for arrays of the same size.

The system clears every page of fresh memory, which takes longer than to read a file from its cache into it. Layers of a
model have operands of the same sizes, one after the other.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEAST = 1 << 20
"""Bytes of the smallest array whose memory is kept: of smaller ones the allocator keeps it."""


class _MemoryLease:
    """What an array of borrowed bytes is based on, and so lives as long as any view of it."""

    def __init__(self, memory: np.ndarray):
        self.__array_interface__ = memory.__array_interface__


class Recycler:
    """Keeps memory between the calls of one task: as much as the next call reads, and one array of another size, since
    what is read part by part has parts of one size."""

    def __init__(self) -> None:
        self._wanted: Counter[int] = Counter()
        self._idle: dict[int, list[np.ndarray]] = {}
        self._other: np.ndarray | None = None

    @contextmanager
    def serve(self, sizes: Iterable[int]) -> Iterator[None]:
        """Let arrays of this thread use what is kept. `sizes`, in bytes, are those that are read whole: what none of
        them needs is dropped."""
        wanted = Counter(sizes)
        self._idle = {size: self._idle.get(size, [])[:count] for size, count in wanted.items()}
        self._wanted = wanted
        self._other = None
        with _serve(self):
            yield

    def borrow(self, nbytes: int) -> np.ndarray:
        """Bytes that are given back when the last view of them is gone."""
        import numpy as np

        if alike := self._idle.get(nbytes):
            memory = alike.pop()
        elif self._other is not None and self._other.nbytes == nbytes:
            memory, self._other = self._other, None
        else:
            memory = np.empty(nbytes, np.uint8)
        lease = _MemoryLease(memory)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return np.asarray(lease)

    def _give_back(self, memory: np.ndarray) -> None:
        """Called on any thread, XLA's among them, at any moment: each step is one that nothing can come between."""
        alike = self._idle.get(memory.nbytes)
        if alike is None:
            self._other = memory
        elif len(alike) < self._wanted[memory.nbytes]:
            alike.append(memory)


class Scratch:
    """Memory for what is read for one part of a tensor, used again for the next part: it is in the cache still. It does
    not wait until the arrays are gone, since JAX lets go of its operands only when it is called again."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._unused: list[np.ndarray] = []

    @contextmanager
    def serve(self, sizes: Iterable[int]) -> Iterator[None]:
        """Let arrays of these sizes, in bytes, that this thread makes lie here until this is called again: then nobody
        may use them any more. Arrays of other sizes, and more of one size, are made as usual."""
        import numpy as np

        large = [size for size in sizes if size >= LEAST]
        if [memory.nbytes for memory in self._kept] != large:
            self._kept = self._unused = []  # what was kept goes before there is other memory
            self._kept = [np.empty(size, np.uint8) for size in large]
        self._unused = list(self._kept)
        with _serve(self):
            yield

    def borrow(self, nbytes: int) -> np.ndarray:
        """Bytes that no other array since the last `serve` has."""
        import numpy as np

        at = next((at for at, memory in enumerate(self._unused) if memory.nbytes == nbytes), None)
        return np.empty(nbytes, np.uint8) if at is None else self._unused.pop(at)


class Scratches:
    """Scratch memory that jobs leave to the next of their kind."""

    def __init__(self) -> None:
        self._idle: list[Scratch] = []

    @contextmanager
    def take(self) -> Iterator[Scratch]:
        """Some for one job, what another left if there is any."""
        try:
            scratch = self._idle.pop()
        except IndexError:
            scratch = Scratch()
        yield scratch
        self._idle.append(scratch)

    def drop(self) -> None:
        """Keep nothing for later: a job of another kind begins, which may need all memory."""
        self._idle.clear()


_serving: ContextVar[Recycler | Scratch | None] = ContextVar("serving", default=None)


@contextmanager
def _serve(lender: Recycler | Scratch) -> Iterator[None]:
    token = _serving.set(lender)
    try:
        yield
    finally:
        _serving.reset(token)


def empty_bytes(nbytes: int) -> np.ndarray:
    """Uninitialised bytes: of what is kept on this thread, or fresh."""
    import numpy as np

    lender = _serving.get() if nbytes >= LEAST else None
    return np.empty(nbytes, np.uint8) if lender is None else lender.borrow(nbytes)
