"""Text that is still being typed: the position of its end in a step, and how it could be closed. Raises no errors.

The text may be OLY, YAML blocks, or brackets inside either. What is read is only as much as completion needs: the path
of keys down to the cursor, the word that was begun there, and the keys that stand beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from brainsurgery_jax.completion.cursor import Cursor, Kind, Path
from brainsurgery_jax.plan.oly_words import MAX_DEPTH, PAIR, bare_end

_WORD = re.compile(r"[\w-]*")
_KEY = re.compile(r"[\w-]+[ \t]*:(?=\s|$)")
_QUOTED = {"'": re.compile(r"(?:[^']|'')*'"), '"': re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL)}


class _Here(Exception):
    """The end of the text was reached, inside this place."""

    def __init__(self, place: Cursor):
        self.place = place


class _Lost(Exception):
    """The text cannot start a step."""


def place_of(text: str) -> Cursor | None:
    """Locate the end of a text in a step; None if no step could continue from it."""
    reader = _Reader(text)
    try:
        reader.step()
    except _Here as here:
        return replace(here.place, given=reader.given, yaml=reader.yaml)
    except _Lost:
        return None
    return None


def is_open(text: str) -> bool:
    """Whether a bracket or a quote is open at the end of a text."""
    reader = _Reader(text)
    with suppress(_Here, _Lost):
        reader.step()
    return bool(reader.opened)


def mended(text: str) -> list[str]:
    """Complete an unfinished text: itself up to its last complete value, with all brackets closed."""
    reader = _Reader(text)
    with suppress(_Here, _Lost):
        reader.step()
    tries = [text, text + reader.closing]
    if reader.good:
        at, closing = reader.good
        tries.append(text[:at] + closing)
    return list(dict.fromkeys(tries))


class _Reader:
    """Reads a text to its end, which is inside something. `at` is the place of the next character."""

    def __init__(self, text: str):
        self.text, self.at = text, 0
        self.given: dict[str, object] = {}
        self.yaml = False
        self.opened: list[str] = []  # what would close what is open
        self.good: tuple[int, str] | None = None

    @property
    def closing(self) -> str:
        return "".join(reversed(self.opened))

    @property
    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def here(self, kind: Kind, path: Path, start: int | None = None, quote: str = "") -> NoReturn:
        at = len(self.text) if start is None else start
        depth = sum(c in "]}" for c in self.opened)
        raise _Here(Cursor(kind, path, at, self.text[at:], quote, depth=depth))

    def step(self) -> NoReturn:
        first = self.text.lstrip()
        self.yaml = "\n" in first.rstrip(" ") or first[:1] in ("-", "{", "[", "#")
        if self.yaml and first[:1] not in ("{", "["):
            _Block(self).read()
        self.blanks()
        if first[:1] == "[":
            self.value((), lambda value: None)
        elif first[:1] == "{":
            self.braces((), self.given)
        self.pair((), self.given, first=True)
        raise _Lost

    # --- inside a line, and inside brackets

    def pair(self, path: Path, into: dict[str, object], *, first: bool = False) -> None:
        """A key, its colon and its value. `first`: the key is the op's name, whose payload needs no braces."""
        key = self.word(path)
        self.blanks()
        if self.next != ":":
            raise _Lost
        self.at += 1
        into[key] = None
        self.blanks()
        if first:
            self.payload((*path, key), into)
        else:
            self.value((*path, key), lambda value: into.__setitem__(key, value))

    def word(self, path: Path) -> str:
        """A key; the place is here if the text ends in it."""
        if self.next in ("'", '"'):
            return self.quoted(path, "key")
        found = _WORD.match(self.text, self.at)
        assert found is not None
        if found.end() >= len(self.text):
            self.here("key", path, self.at)
        if not found[0]:
            raise _Lost
        self.at = found.end()
        return found[0]

    def payload(self, path: Path, into: dict[str, object]) -> None:
        """What follows the name of an op: keys with values, or a value."""
        key = str(path[-1])
        if self.next in ("{", "[", "'", '"'):
            self.value(path, lambda value: into.__setitem__(key, value))
            self.after(path[:-1])
            raise _Lost
        found = _WORD.match(self.text, self.at)
        assert found is not None
        if found.end() >= len(self.text):
            self.here("entry", path, self.at)
        if PAIR.match(self.text, self.at):
            inner = into[key] = {}
            self.pairs(path, inner, "")
        self.value(path, lambda value: into.__setitem__(key, value))
        self.after(path[:-1])

    def pairs(self, path: Path, into: dict[str, object], closing: str) -> None:
        """Pairs with commas between them, up to the closing bracket."""
        while True:
            self.space()
            if closing and self.next == closing:
                return
            self.pair(path, into)
            self.space()
            if self.at >= len(self.text):
                self.here("after", path)
            if self.next == closing:
                return
            if self.next != ",":
                raise _Lost
            self.at += 1

    def after(self, path: Path) -> None:
        self.space()
        if self.at >= len(self.text):
            self.here("after", path)

    def value(self, path: Path, keep: Callable[[object], None]) -> None:
        """A value of any kind; the place is here if the text ends in it."""
        if len(self.opened) >= MAX_DEPTH:
            raise _Lost
        match self.next:
            case "":
                self.here("value", path)
            case "{":
                inner: dict[str, object] = {}
                keep(inner)
                self.braces(path, inner)
            case "[":
                items: list[object] = []
                keep(items)
                self.items(path, items)
            case "'" | '"':
                keep(self.quoted(path, "value"))
            case _:
                keep(self.bare(path))
        self.good = self.at, self.closing

    def braces(self, path: Path, into: dict[str, object]) -> None:
        self.at += 1
        self.opened.append("}")
        self.pairs(path, into, "}")
        self.opened.pop()
        self.at += 1

    def items(self, path: Path, into: list[object]) -> None:
        self.at += 1
        self.opened.append("]")
        while True:
            self.space()
            if self.next == "]":
                break
            at = len(into)
            self.value((*path, at), into.append)
            self.space()
            if self.at >= len(self.text):
                self.here("after", path)
            if self.next == ",":
                self.at += 1
            elif self.next != "]":
                raise _Lost
        self.opened.pop()
        self.at += 1

    def quoted(self, path: Path, kind: Kind) -> str:
        quote, start = self.next, self.at + 1
        self.at = start
        self.opened.append(quote)
        ended = _QUOTED[quote].match(self.text, start)
        if ended is None:
            self.here(kind, path, start, quote)
        self.at = ended.end()
        self.opened.pop()
        return self.text[start : self.at - 1].replace("''", "'")

    def bare(self, path: Path) -> str:
        start = self.at
        if self.yaml:
            ends = ",]}\n" if self.opened else "\n"
            self.at = next((at for at in range(start, len(self.text)) if self.text[at] in ends), len(self.text))
        else:
            self.at, unclosed = bare_end(self.text, start)
            if unclosed is not None:
                self.at = len(self.text)
        if self.at >= len(self.text) and not self.text[start:].endswith((" ", "\n")):
            self.good = (self.at, self.closing) if self.text[start:] else self.good
            self.here("value", path, start)
        return self.text[start : self.at].strip()

    def blanks(self) -> None:
        while self.next in (" ", "\t"):
            self.at += 1

    def space(self) -> None:
        while self.next.isspace():
            self.at += 1


@dataclass(slots=True)
class _Frame:
    """A key (or the place of a list item) at a column of a YAML block, and what stands below it."""

    column: int
    key: str | int


class _Block:
    """Reads the lines of YAML blocks by their indentation; brackets and values are the reader's."""

    def __init__(self, reader: _Reader):
        self.reader = reader
        self.frames: list[_Frame] = []

    @property
    def path(self) -> Path:
        keys = [f.key for f in self.frames]
        return tuple(keys[1:] if keys and isinstance(keys[0], int) else keys)

    def read(self) -> NoReturn:
        r = self.reader
        while True:
            start = r.at
            r.blanks()
            if r.next == "#":
                r.at = r.text.find("\n", r.at)
                if r.at < 0:
                    raise _Lost
            if r.next == "\n":
                r.at += 1
                continue
            self.line(r.at - start)

    def line(self, column: int) -> None:
        """The rest of a line, whose first character stands at this column."""
        r = self.reader
        while r.next == "-" and r.text[r.at + 1 : r.at + 2] in (" ", ""):
            self.item(column)
            if r.at + 1 >= len(r.text):
                raise _Lost
            start = r.at
            r.at += 1
            r.blanks()
            column += r.at - start
        while self.frames and self.frames[-1].column >= column:
            self.frames.pop()
        found = _KEY.match(r.text, r.at)
        if found is None:
            self.scalar()
            return
        key = found[0].rstrip(": \t")
        r.at = found.end()
        holder = self.holder()
        if isinstance(holder, dict):
            holder[key] = None
        self.frames.append(_Frame(column, key))
        r.blanks()
        if r.at >= len(r.text):
            r.here("value", self.path)
        if r.next not in ("\n", "#"):
            r.value(self.path, lambda value: holder.__setitem__(key, value) if isinstance(holder, dict) else None)
            r.blanks()
            if r.at >= len(r.text):
                r.here("after", self.path[:-1])

    def item(self, column: int) -> None:
        """A dash: the next item of the list at this column, or the first."""
        before = -1
        while self.frames and (
            self.frames[-1].column > column
            or (self.frames[-1].column == column and isinstance(self.frames[-1].key, int))
        ):
            gone = self.frames.pop()
            if gone.column == column and isinstance(gone.key, int):
                before = gone.key
        self.frames.append(_Frame(column, before + 1))
        if len(self.frames) == 1:  # the list of steps: each begins anew
            self.reader.given = {}

    def holder(self) -> object:
        """The mapping that the next key goes into, made where there is none."""
        found: object = self.reader.given
        for key in map(str, self.path):
            if not isinstance(found, dict):
                return None
            if found.get(key) is None:
                found[key] = {}
            found = found[key]
        return found

    def scalar(self) -> None:
        """A line that is no key with its colon: an item, a bracket, or a word at the end of the text."""
        r = self.reader
        start = r.at
        found = _WORD.match(r.text, r.at)
        assert found is not None
        if found.end() >= len(r.text) and not (self.frames and isinstance(self.frames[-1].key, int) and self.path):
            r.here("entry" if self.path else "key", self.path, start)
        holder = self.holder_of_items()
        r.value(self.path, holder)
        r.blanks()

    def holder_of_items(self) -> Callable[[object], None]:
        """Takes an item of a list into what was read."""
        path = self.path

        def keep(value: object) -> None:
            if len(path) < 2 or not isinstance(path[-1], int):
                return
            found: Any = self.reader.given
            for key in path[:-2]:
                found = found.get(key) if isinstance(found, dict) else None
            if isinstance(found, dict):
                items = found.get(str(path[-2]))
                found[str(path[-2])] = [*items, value] if isinstance(items, list) else [value]

        return keep
