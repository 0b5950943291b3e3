"""The editor of the plan: a text that the user and the server may change at the same time, without losing a change.

The editor of NiceGUI sends its whole value with every update of the element, which takes back what was typed meanwhile.
`static/plan_editor.js` says how this one works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import nicegui.elements.codemirror  # its import makes the library known to the page
from nicegui import events
from nicegui.element import Element

assert nicegui.elements.codemirror


class PlanEditor(Element, component="static/plan_editor.js"):
    """The editor. `read` gives the text as it stands; `typed` is called with each text that the user makes of it."""

    def __init__(self, session: str, read: Callable[[], str], typed: Callable[[str], None]):
        super().__init__()
        self._read, self._typed = read, typed
        self._text, self._base, self._id = read(), 0, 0
        self._marks: Mapping[int, str] | None = None
        self._props["session"] = session
        self._props["told"] = self._tell()
        self.on("typed", self._take)
        self.classes("bs-editor")

    def show(self) -> bool:
        """Show the text as it stands; what the user types meanwhile is kept. Whether it was another."""
        text = self._read()
        if changed := text != self._text:
            self._text, self._marks = text, None
            self._id += 1
            self._props["told"] = self._tell()
        return changed

    def mark_lines(self, marks: Mapping[int, str]) -> None:
        """Mark lines of the text as wrong, each with a message, and no others."""
        self._marks = marks
        self._props["told"] = self._tell()

    def _tell(self) -> dict[str, object]:
        return {"base": self._base, "id": self._id, "text": self._text, "marks": self._marks}

    def _take(self, event: events.GenericEventArguments) -> None:
        number, after, text = (event.args[key] for key in ("number", "after", "text"))
        self.show()  # another window of the session may have changed it
        if after != self._id or number <= self._base:  # the browser sends it again, with our change in it
            return
        self._text, self._base = str(text), int(number)
        with self._props.suspend_updates():  # the browser has this text: it is for an update of another reason
            self._props["told"] = self._tell() | {"marks": None}
        self._typed(self._text)
