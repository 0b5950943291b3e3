"""The journal of a run: what it has written to its staged outputs, so that another run can go on where it ended.

A line for each item of work: its key, where its bytes went, and their digest. A line is written when its item is done,
and flushed to disk now and then. Data are not flushed before: the run that goes on reads all of it back, and takes only
what has the digest of its line. So neither a lost page nor a torn line does harm.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

from brainsurgery_jax.errors import StoreError, worded
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.leftovers import (
    JOURNAL,
    PAUSED,
    SCRATCH,
    Leftover,
    beside,
    find_journals,
    journals_beside,
    remove,
)
from brainsurgery_jax.store.replacing import resolve

FLUSH_BYTES = 64 << 20
"""Bytes of outputs after which the journal is flushed to disk: what is lost with it is computed again."""


class Extents(NamedTuple):
    """Bytes that were written to a file: `nbytes` at each of `offsets`. `output` is the number of the output, `suffix`
    what the path of the file has behind that of the output."""

    output: int
    suffix: str
    offsets: tuple[int, ...]
    nbytes: int


class WrittenPart(NamedTuple):
    """What a part of an item wrote, in order, and the digest of it."""

    extents: tuple[Extents, ...]
    digest: str


class WrittenItem(NamedTuple):
    """What an item wrote, by its parts."""

    parts: tuple[WrittenPart, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that were written."""
        return sum(len(e.offsets) * e.nbytes for part in self.parts for e in part.extents)


class _Writing(threading.local):
    """What the part of an item that is at work on this thread has written."""

    hash: Any = None
    extents: list[Extents]


class Journal:
    """A journal in the making. `head` is what must be the same for a run that goes on, by kinds; `stagings` the staged
    outputs, in order."""

    def __init__(self, head: Mapping[str, str]):
        self._head, self.stagings = head, list[str]()
        self._now = _Writing()
        self._file: IO[bytes] | None = None
        self._path, self._unflushed = "", 0

    def open(self, path: str, known: Mapping[str, WrittenItem]) -> None:
        """Begin the file, with what is known already."""
        with os_failures(path, "create the journal"):
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115
            self._path = path
            self._file.write(_line({"head": self._head}))
            for key, entry in known.items():
                self._file.write(_line_of(key, entry))
            os.fsync(self._file.fileno())

    # --- Writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def part(self) -> Iterator[list[WrittenPart]]:
        """A block that does a part of an item on this thread; the list then holds what it wrote."""
        from xxhash import xxh3_128

        found: list[WrittenPart] = []
        self._now.hash, self._now.extents = xxh3_128(), []
        try:
            yield found
            found.append(WrittenPart(tuple(self._now.extents), self._now.hash.hexdigest()))
        finally:
            self._now.hash = None

    @property
    def is_writing(self) -> bool:
        """Whether a part of an item is at work on this thread."""
        return self._now.hash is not None

    def wrote(self, path: str, offsets: Sequence[int], nbytes: int, view: memoryview) -> None:
        """Note bytes that were written: `nbytes` at each of `offsets`."""
        if self.is_writing:
            number, staging = max(((n, s) for n, s in enumerate(self.stagings) if path.startswith(s)), key=_length)
            self._now.hash.update(view)
            self._now.extents.append(Extents(number, path[len(staging) :], tuple(offsets), nbytes))

    def note(self, key: str, parts: Sequence[WrittenPart]) -> None:
        """Write the line of an item that is done."""
        assert self._file is not None
        entry = WrittenItem(tuple(parts))
        with os_failures(self._path, "write the journal"):
            self._file.write(_line_of(key, entry))
            self._unflushed += entry.nbytes
            if self._unflushed >= FLUSH_BYTES:
                os.fsync(self._file.fileno())
                self._unflushed = 0

    # --- The end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back what it holds open."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Remove the file, and those of other processes of the run."""
        self.close()
        with suppress(OSError):
            for path in (*journals_beside(self._path), self._path):
                os.remove(path)

    def pause(self, destinations: Sequence[str]) -> None:
        """Give journal and staged outputs the names of a run that was interrupted and can be continued."""
        self.close()
        for staging, destination in zip(self.stagings, destinations, strict=False):
            for suffix in ("", SCRATCH):
                _rename(staging + suffix, beside(resolve(destination), PAUSED) + suffix)
        paused = beside(resolve(destinations[0]), PAUSED) + JOURNAL
        for path in (self._path, *journals_beside(self._path)):
            _rename(path, paused + path[len(self._path) :])


def _length(numbered: tuple[int, str]) -> int:
    return len(numbered[1])


def _rename(path: str, to: str) -> None:
    if os.path.lexists(path):
        remove(to)
        os.rename(path, to)


def _line(data: Mapping[str, object]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _line_of(key: str, entry: WrittenItem) -> bytes:
    return _line({"item": key, "parts": [[part.digest, [list(e) for e in part.extents]] for part in entry.parts]})


# --- What an interrupted run left -------------------------------------------------------------------------------------


class Interrupted(NamedTuple):
    """What an interrupted run left: its staged outputs, the journals of its processes, and what of the outputs is as
    these say."""

    stagings: tuple[str, ...]
    journals: tuple[str, ...]
    entries: Mapping[str, WrittenItem]

    def kept(self) -> frozenset[str]:
        """The paths that are gone on with."""
        return frozenset({*self.journals, *(s + suffix for s in self.stagings for suffix in ("", SCRATCH))})

    def move(self, number: int, staging: str) -> None:
        """Take over a staged output. Files of which nothing is known to be right go first."""
        right = {e.suffix for entry in self.entries.values() for part in entry.parts for e in part.extents
                 if e.output == number}  # fmt: skip
        if right <= {SCRATCH}:  # what a library was making of the scratch file, folders and all
            remove(self.stagings[number])
        for suffix in ("", SCRATCH):
            old = self.stagings[number] + suffix
            for path in _files(old):
                if path[len(self.stagings[number]) :] not in right:
                    os.remove(path)
            _rename(old, staging + suffix)


def _files(path: str) -> Iterator[str]:
    if os.path.isfile(path):
        yield path
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)


def find_interrupted(destinations: Sequence[str], head: Mapping[str, str]) -> Interrupted | None:
    """What an interrupted run of the same plan left beside its destinations, if there is such a run. Raises StoreError
    for one with another head."""
    first = resolve(destinations[0])
    found = find_journals(first)
    if not found:
        return None
    journal = max(found, key=lambda left: os.lstat(left.path).st_mtime_ns)
    journals = (journal.path, *journals_beside(journal.path))
    seen = next(_read_lines(journal.path), {}).get("head", {})
    if differing := [kind for kind in head if seen.get(kind) != head[kind]]:
        problem = f"the interrupted run cannot be resumed: {' and '.join(differing)} changed since"
        without = worded(shell="without `--resume`", python="without `resume=True`")
        remedy = f"Go back to what it had, or run {without}: then its partial output is removed."
        raise StoreError(first, problem, remedy=remedy)
    stagings = tuple(_staging_of(journal, destination) for destination in destinations)
    read = (_item(line) for path in journals for line in _read_lines(path) if "item" in line)
    entries = {key: entry for key, entry in read if all(_is_right(part, stagings) for part in entry.parts)}
    return Interrupted(stagings, journals, entries)


def _staging_of(journal: Leftover, destination: str) -> str:
    return beside(resolve(destination), journal.kind, journal.run)


def _read_lines(path: str) -> Iterator[dict[str, Any]]:
    """The lines of a journal, up to one that was torn."""
    with os_failures(path, "read the journal"), open_regular(path) as file:
        for line in file:
            try:
                data = parse_json(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(data, dict):
                return
            yield data


def _item(line: Mapping[str, Any]) -> tuple[str, WrittenItem]:
    parts: list[WrittenPart] = []
    for digest, extents in line["parts"]:
        listed = (Extents(number, suffix, tuple(offsets), nbytes) for number, suffix, offsets, nbytes in extents)
        parts.append(WrittenPart(tuple(listed), digest))
    return line["item"], WrittenItem(tuple(parts))


def _is_right(part: WrittenPart, stagings: Sequence[str]) -> bool:
    """Whether the files hold what a part wrote."""
    from xxhash import xxh3_128

    found = xxh3_128()
    try:
        for e in part.extents:
            with open_regular(stagings[e.output] + e.suffix) as file:
                for offset in e.offsets:
                    file.seek(offset)
                    found.update(file.read(e.nbytes))
    except OSError:
        return False
    return found.hexdigest() == part.digest
