"""A pickle machine that builds data and nothing else: it imports no module, calls no function, and creates no object
of a class.

A pickle is a program, and an ordinary reader runs it: that is how such a file takes over a machine. Here a global is a
`Name`, and what would be called, instantiated or given a state is an inert `Object` that records what the pickle says.
Only the calls that the reader of the machine lists have a meaning.

Time and memory follow from the length of the pickle: each opcode takes a byte of it, runs in constant time and creates
at most one small object; what copies more is charged for it. Nothing is hashed, compared or printed in recursion.
Format: https://docs.python.org/3/library/pickle.html and pickletools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

MOST_OBJECTS, SMALL = 16_000_000, 10_000
"""Containers and objects of a pickle, and what is as large as one (about 64 bytes): no more than it has bytes, but for
a small number. A tensor takes about 17, and 150 bytes of a pickle."""

_LINE = 1 << 16  # bytes; the longest argument that ends at a line feed
_KEY_BITS = 32  # of integers that are hashed as they are: with larger ones a file could make them all collide
_KEY_PARTS = 100  # of a tuple that is the key of a dict
_KEY_CHARGE = 1024  # characters of a key that are charged like an object: hashing and comparing take time
_TEXT_CHARGE = 64  # characters that are copied and charged like an object


class Name(NamedTuple):
    """A global that a pickle names: a class, a function, or anything else of a module. Nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Key(NamedTuple):
    """A key of a dict that is neither text nor a small number, by what it is like in Python."""

    text: str

    def __str__(self) -> str:
        return self.text


class Object:
    """What a pickle would create by a call: of what, from which arguments, and what it would do to it afterwards.

    `entries` are set if it behaves like a dict, `items` if it behaves like a list or a set.
    """

    __slots__ = ("entries", "given", "items", "kind", "state")

    def __init__(self, kind: Any, given: Any = ()):
        self.kind, self.given = kind, given
        self.state: object = None
        self.entries: dict[object, object] | None = None
        self.items: list[object] | None = None

    def __str__(self) -> str:
        return str(self.kind) if isinstance(self.kind, Name) else "object"


class Damaged(Exception):
    """The pickle does not follow its own format."""


class Excessive(Exception):
    """The pickle asks for more than a file of tensors needs."""


class Bytes(Protocol):
    """Where pickles are read from, one after the other."""

    @property
    def nbytes(self) -> int:
        """How many bytes there are at most."""
        ...

    def next(self, nbytes: int) -> bytes:
        """The next bytes, at least so many if there are, and as many more as are at hand."""
        ...


class Buffer:
    """A pickle in memory."""

    def __init__(self, data: bytes):
        self._data, self.nbytes = data, len(data)

    def next(self, nbytes: int) -> bytes:
        """All of it, the first time."""
        data, self._data = self._data, b""
        return data


Call = Callable[["PickleMachine", tuple[object, ...]], object]
"""What a known call gives, from its arguments; None where it is to stay an `Object`."""


class PickleMachine:
    """Runs over pickles. `values` are what names stand for, `calls` the calls that have a meaning, `persistent` gives
    what stands for a persistent id."""

    def __init__(
        self, source: Bytes, values: Mapping[Name, Any], calls: Mapping[Name, Call], persistent: Callable[[Any], Any]
    ):
        self.source, self.values, self.calls, self.persistent = source, values, calls, persistent
        self.data, self.at = b"", 0
        self.done = 0
        """Bytes before those in `data`."""
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.steps = self.objects = 0
        self.most_objects = min(MOST_OBJECTS, SMALL + source.nbytes)

    @property
    def position(self) -> int:
        """Bytes that were read so far."""
        return self.done + self.at

    def fill(self, nbytes: int) -> None:
        """Make sure that so many bytes are at hand. Raises Damaged if there are fewer."""
        rest = self.data[self.at :]
        self.done += self.at
        self.data, self.at = rest + self.source.next(nbytes - len(rest)), 0
        if len(self.data) < nbytes:
            raise Damaged("it ends too early")

    def charge(self, objects: int = 1) -> None:
        """Count containers and objects, or what is copied. Raises Excessive if there are too many."""
        self.objects += objects
        if self.objects > self.most_objects:
            raise Excessive(f"it makes more than {self.most_objects:,} objects of {self.source.nbytes:,} bytes")

    def key(self, value: object) -> object:
        """A value as the key of a dict. Hashing it takes constant time, and no file can make many keys collide."""
        if type(value) is str:
            self.charge(len(value) // _KEY_CHARGE)
            return value
        if type(value) in (bool, type(None), Name, Object):  # objects are equal to themselves alone
            return value
        if type(value) is int and value.bit_length() <= _KEY_BITS:
            return value
        parts: list[str] = []
        _spell(value, parts)
        text = "".join(parts)
        self.charge(1 + len(text) // _TEXT_CHARGE)
        return Key(text)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def push_made(self, value: object) -> None:
        """Push a container or an object."""
        self.charge()
        self.stack.append(value)

    def since_mark(self) -> list[object]:
        """What was pushed since the last mark, taken off."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def take(self, nbytes: int) -> bytes:
        """Exactly the next bytes."""
        end = self.at + nbytes
        if end > len(self.data):
            self.fill(nbytes)
            end = nbytes
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def take_number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def take_sized(self, nbytes: int) -> bytes:
        """Bytes whose number stands before them."""
        return self.take(int.from_bytes(self.take(nbytes), "little"))

    def take_line(self) -> bytes:
        """The bytes up to the next line feed, which is passed over."""
        if self.at + _LINE > len(self.data):
            rest = self.data[self.at :]
            self.done += self.at
            self.data, self.at = rest + self.source.next(_LINE - len(rest)), 0
        end = self.data.find(b"\n", self.at, self.at + _LINE)
        if end < 0:
            raise Damaged("a line of it has no end")
        taken = self.data[self.at : end]
        self.at = end + 1
        return taken


def _spell(value: Any, parts: list[str]) -> None:
    """Append what a value is like in Python, in so many parts at most."""
    if len(parts) > _KEY_PARTS:
        raise Excessive("a key of a dict is too large")
    if type(value) is tuple:
        parts.append("(")
        for item in value:
            _spell(item, parts)
            parts.append(", ")
        parts.append(")")
    elif (type(value) in (str, bytes) and len(value) <= _KEY_CHARGE) or type(value) in (bool, type(None), float):
        parts.append(repr(value))
    elif (type(value) is int and value.bit_length() <= 256) or isinstance(value, Name):
        parts.append(str(value))
    else:
        raise Excessive(f"a large {type(value).__name__} is the key of a dict")
