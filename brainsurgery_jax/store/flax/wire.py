"""Walking a msgpack file by position, without its payloads. Format: https://github.com/msgpack/msgpack/blob/master/spec.md

The msgpack library holds a payload as a whole even where it only skips it, and here payloads are whole models. So the
heads are read here, some kilobytes at a time, and of a long payload only its place is kept.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.files import File, read_bytes

AGAIN = "The file is damaged or was not copied as a whole: save or copy it again."
DEEPEST = 100
"""Levels of containers; what is deeper is no checkpoint."""

MOST = 4_000_000
"""Values in a file."""

SHORT = 1 << 16
"""Bytes of text that are read; what is longer is kept as a place."""

_AHEAD = 4 << 10
"""Bytes that are read at a time: heads are short, and what follows them is not wanted."""

_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_FEW = frozenset(bytes([head]) for head in range(0x91, 0xA0))  # heads of short lists
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY, _MAP = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}
_EXTENSION = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def begins_map(head: bytes) -> bool:
    """Whether these bytes begin a dict with text for its first key."""
    match tuple(head[:6]):
        case (first, key, *_) if 0x81 <= first <= 0x8F:
            return _begins_text(key)
        case (0xDE, _, _, key, *_) | (0xDF, _, _, _, _, key):
            return _begins_text(key)
    return False


def begins_pair(head: bytes) -> bool:
    """Whether these bytes begin a pair of a list of text and something else."""
    return head[:1] == b"\x92" and head[1:2] in _FEW and _begins_text(*head[2:3])


def _begins_text(head: int = 0) -> bool:
    return 0xA0 <= head < 0xC0 or head in _TEXT


class Blob(NamedTuple):
    """Bytes of a file that were not read: binary data, or text that is too long (`text`)."""

    start: int
    nbytes: int
    text: bool = False


class Extension(NamedTuple):
    """A value of a type that the program defined which wrote it, by its code."""

    code: int
    start: int
    nbytes: int


class Walker:
    """Values of a file one after the other, from `at` up to `end` (default: all of it). Raises StoreError for what is
    no msgpack."""

    def __init__(self, file: File, at: int = 0, end: int | None = None):
        self.at, self.end = at, file.size if end is None else end
        self._file = file
        self._window, self._begin = b"", 0
        self._left = MOST

    def read(self, depth: int = 0) -> Any:
        """The next value: None, numbers, text, lists and dicts as they are, the rest as a Blob or an Extension."""
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise self.damage(f"more than {DEEPEST} levels or {MOST:,} values")
        head = self._take(1)[0]
        if head < 0x80 or head >= 0xE0:
            return head if head < 0x80 else head - 0x100
        if head in _CONSTANTS:
            return _CONSTANTS[head]
        if head in _NUMBERS:
            return struct.unpack(_NUMBERS[head], self._take(struct.calcsize(_NUMBERS[head])))[0]
        if head < 0xC0 or head in _TEXT or head in _ARRAY or head in _MAP:
            return self._read_sized(head, depth)
        if head in _BINARY:
            return self._skip(self._integer(_BINARY[head]))
        if head in _EXTENSION or 0xD4 <= head <= 0xD8:
            nbytes = self._integer(_EXTENSION[head]) if head in _EXTENSION else 1 << head - 0xD4
            code = struct.unpack("b", self._take(1))[0]
            return Extension(code, self._skip(nbytes).start, nbytes)
        raise self.damage(f"the byte {head:#04x}, which begins no value")

    def _read_sized(self, head: int, depth: int) -> object:
        """Text, a list or a dict."""
        if head in _TEXT or 0xA0 <= head < 0xC0:
            return self._text(self._integer(_TEXT[head]) if head in _TEXT else head & 0x1F)
        if head in _ARRAY or 0x90 <= head < 0xA0:
            number = self._integer(_ARRAY[head]) if head in _ARRAY else head & 0x0F
            return [self.read(depth + 1) for _ in range(self._check_number(number))]
        number = self._integer(_MAP[head]) if head in _MAP else head & 0x0F
        return self._map(self._check_number(2 * number) // 2, depth)

    def _map(self, number: int, depth: int) -> dict[object, object]:
        entries: dict[object, object] = {}
        for _ in range(number):
            key = self.read(depth + 1)
            if type(key) not in (str, int):
                raise self.damage("a key that is neither text nor an integer")
            if key in entries:
                raise self.damage(f"the key {key!r} twice")
            entries[key] = self.read(depth + 1)
        return entries

    def _text(self, nbytes: int) -> str | Blob:
        if nbytes > SHORT:
            return self._skip(nbytes)._replace(text=True)
        try:
            return self._take(nbytes).decode()
        except UnicodeDecodeError as error:
            raise self.damage("text that is not UTF-8") from error

    def _check_number(self, number: int) -> int:
        """As many values as a head announces; each takes a byte at least."""
        if number > self.end - self.at:
            raise self.damage("a container that is longer than the file")
        return number

    def _integer(self, nbytes: int) -> int:
        return int.from_bytes(self._take(nbytes), "big")

    def _take(self, nbytes: int) -> bytes:
        self._check_room(nbytes)
        first = self.at - self._begin
        if not 0 <= first <= first + nbytes <= len(self._window):
            self._window = read_bytes(self._file, min(max(nbytes, _AHEAD), self.end - self.at), self.at)
            self._begin, first = self.at, 0
        self.at += nbytes
        return self._window[first : first + nbytes]

    def _skip(self, nbytes: int) -> Blob:
        self._check_room(nbytes)
        self.at += nbytes
        return Blob(self.at - nbytes, nbytes)

    def _check_room(self, nbytes: int) -> None:
        if self.at + nbytes > self.end:
            missing = self.at + nbytes - self.end
            where = "is cut off" if self.end == self._file.size else "holds a value that ends too early"
            raise StoreError(self._file.name, f"{where}: {missing} bytes are missing at its end", remedy=AGAIN)

    def damage(self, found: str) -> StoreError:
        """The error for bytes that are not the msgpack of a checkpoint."""
        return StoreError(self._file.name, f"is no msgpack of a checkpoint: {found}, at byte {self.at}", remedy=AGAIN)
