"""Reports as plain, frozen values. `rendering.text` draws them for a terminal, `rendering.data` for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from brainsurgery_jax.errors import Diagnostic

Value = str | int | float | complex | bool | None | Sequence["Value"] | Mapping[str, "Value"]
"""Plain data: what JSON has, and complex numbers."""

Style = Literal["compact", "tree", "json"]
"""How a tree is drawn: lists of equal items folded, every item on its line, or as one line of JSON."""


class Text(NamedTuple):
    """Lines of prose."""

    text: str


class Table(NamedTuple):
    """Rows of cells below a title. Rows may be shorter than the longest; without rows nothing is shown."""

    title: str
    rows: tuple[tuple[str, ...], ...]


class Facts(NamedTuple):
    """Values by name, in order, under a title; names may repeat. A value that is a list is shown with one item a line.

    `summary`: a last line.
    """

    title: str
    facts: tuple[tuple[str, Value], ...]
    summary: str = ""


class NameTree(NamedTuple):
    """Tensors by dotted name with facts about each, under a title (an alias) or none. `style`: how to draw it."""

    title: str
    leaves: tuple[tuple[str, Mapping[str, Value]], ...]
    style: Style = "compact"


class Parts(NamedTuple):
    """Documents below each other, with `space` empty lines between them."""

    parts: tuple[Document, ...]
    space: int = 0


class Hanging(NamedTuple):
    """A paragraph that starts with `head`; where text is folded, its further lines are indented to the end of the
    head."""

    head: str
    text: str


Unit = Literal["text", "count", "bytes", "traffic", "shape", "figure"]
"""What the values of a column are: words (or lists of words), numbers, bytes, bytes of which 0 is shown as nothing,
sizes of axes, or numbers that are shown with the head of the column (of whole ones not 0)."""


class Column(NamedTuple):
    """A column of typed values. `key`: its name in data; without one only text has it. `head`: its name in text;
    without one only data have it."""

    key: str
    head: str
    unit: Unit = "text"


class Grid(NamedTuple):
    """Rows of typed values below heads. Text leaves out columns with nothing in them.

    `shown`: rows that text has, at most; None for all. Data have all rows.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    shown: int | None = None


class Branches(NamedTuple):
    """Rows of typed values by dotted name, drawn as a tree with columns. None is a value that a row lacks.

    `others`: names with a word each, which only text has. `compact`: neighbouring items with equal rows are folded.
    """

    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Value, ...]]
    others: Mapping[str, str]
    compact: bool = True


class Entry(NamedTuple):
    """A part of a record. `key`: its name in data; without one only text has it. `shown`: what text has of it, or None
    for nothing."""

    key: str
    value: Datum
    shown: Document | None = None


class Record(NamedTuple):
    """Entries, each a value for programs, or a document for people, or both, in the order of either.

    `space`: empty lines between the documents.
    """

    entries: tuple[Entry, ...]
    space: int = 0


Datum = Value | Grid | Branches | Record | Diagnostic | Sequence["Datum"] | Mapping[str, "Datum"]
"""What data have under a key."""

Document = Text | Table | Facts | NameTree | Parts | Hanging | Grid | Branches | Record
"""What is reported."""


def show_only(*documents: Document | None) -> tuple[Entry, ...]:
    """Entries for people only; None is left out."""
    return tuple(Entry("", None, document) for document in documents if document is not None)
