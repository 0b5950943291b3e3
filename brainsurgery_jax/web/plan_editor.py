"""The editor of the plan: a text that the user and the server may change at the same time, without losing a change.

The editor of NiceGUI sends its whole value with every update of the element, which takes back what was typed meanwhile.
`shared_text` says how this one works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import nicegui.elements.codemirror  # its import makes the library known to the page
from nicegui import events
from nicegui.element import Element

from brainsurgery_jax.web.shared_text import Message, SharedText

assert nicegui.elements.codemirror

MOST_CHARACTERS = 2_000_000
"""The longest text that a user may make: each change sends all of it."""


class PlanEditor(Element, component="static/plan_editor.js", esm={"brainsurgery-shared-text": "static/shared_text"}):
    """The editor of a text of a session. `typed` is called after each change of the user."""

    def __init__(self, session: str, shared: SharedText, typed: Callable[[], None]):
        super().__init__()
        self._shared, self._typed = shared, typed
        self._known = shared.revision
        self._marks: Mapping[int, str] | None = None
        self._props["session"] = session
        self._props["most"] = MOST_CHARACTERS
        self._props["told"] = self._tell()
        self.on("typed", self._take)
        self.classes("bs-editor")

    def show(self) -> bool:
        """Show the text as it stands; what the user types meanwhile is kept. Whether it was another."""
        if changed := self._shared.revision != self._known:
            self._known, self._marks = self._shared.revision, None
            self._props["told"] = self._tell()
        return changed

    def mark_lines(self, marks: Mapping[int, str]) -> None:
        """Mark lines of the text as wrong, each with a message, and no others."""
        self._marks = marks
        self._props["told"] = self._tell()

    def _tell(self) -> dict[str, object]:
        return self._shared.tell() | {"marks": self._marks}

    def _take(self, event: events.GenericEventArguments) -> None:
        self.show()  # another window of the session may have changed it
        if not self._shared.take(Message(**event.args)):
            return
        self._known = self._shared.revision
        with self._props.suspend_updates():  # the browser has this text: it is for an update of another reason
            self._props["told"] = self._shared.tell() | {"marks": None}
        self._typed()
