"""A text that windows and the server may change at the same time: the server's side.

`static/shared_text/index.js` is the browser's, and says how the two agree. No change of either is lost, in whatever
order messages come, and if they come twice or not at all until the connection is back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MOST_WRITERS = 64
"""Writers whose last change is remembered; the one that was heard first goes."""


class Message(NamedTuple):
    """A piece of the text as a writer has it: piece `at` of `of`. `number` is that of its last change, `after` the
    revision that it was made on."""

    writer: str
    number: int
    after: int
    piece: str
    at: int
    of: int


class SharedText:
    """A text that is read and written by functions, and its revisions."""

    def __init__(self, read: Callable[[], str], write: Callable[[str], None]):
        self._read, self._write = read, write
        self._text, self._revision = read(), 0
        self._last: str | None = None
        """Who made the last change; None is the server."""
        self._heard: dict[str, int] = {}
        self._pieces: dict[str, list[str]] = {}

    @property
    def revision(self) -> int:
        """The revision of the text as it stands."""
        if (text := self._read()) != self._text:
            self._accept(None, text)
        return self._revision

    def tell(self) -> dict[str, object]:
        """What a window must know: the text, its revision, and the last change of each writer."""
        return {"revision": self.revision, "text": self._text, "heard": dict(self._heard)}

    def take(self, message: Message) -> bool:
        """Write the text of a message, once its last piece is there. Whether it was written: what was made on another
        text is left. The writer learns of that text, and sends its change again with it."""
        if (text := self._join(message)) is None:
            return False
        writer, number, after = message[:3]
        fits = after == self.revision or self._last == writer  # then nobody else has changed it since the one before
        if not fits or number <= self._heard.get(writer, 0):
            return False
        self._heard = {key: value for key, value in self._heard.items() if key != writer} | {writer: number}
        for old in list(self._heard)[:-MOST_WRITERS]:
            del self._heard[old]
        self._write(text)
        self._accept(writer, text)
        return True

    def _join(self, message: Message) -> str | None:
        """The whole text; None if pieces are missing."""
        pieces = self._pieces.setdefault(message.writer, [])
        if message.at == 0:
            pieces.clear()
        if message.at != len(pieces):  # the connection broke within a text: all of it comes again
            return None
        pieces.append(message.piece)
        return "".join(self._pieces.pop(message.writer)) if len(pieces) == message.of else None

    def _accept(self, writer: str | None, text: str) -> None:
        self._text, self._last, self._revision = text, writer, self._revision + 1
