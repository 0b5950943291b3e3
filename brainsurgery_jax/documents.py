"""Reports as plain, frozen values. `rendering.text` draws them for a terminal, `rendering.data` for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

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


Document = Text | Table | Facts | NameTree | Parts
