"""What a run tells while it goes on, kept for its report and for what stops it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from brainsurgery_jax.documents import Document
from brainsurgery_jax.errors import Diagnostic


class Heard:
    """What the events of a run say: documents, notes (by message: one for all layers), and what was published. Every
    event is passed on to `listen`."""

    def __init__(self, listen: Callable[[Any], None] | None):
        self.reports: list[Document] = []
        self.noted: dict[str, Diagnostic] = {}
        self.published: list[tuple[str, int, int]] = []
        self._listen = listen

    def tell(self, event: Any) -> None:
        """Take an event."""
        from brainsurgery_jax.engine.events import Noted, Published, Said

        match event:
            case Said(document):
                self.reports.append(document)
            case Noted(diagnostic, _):
                self.noted.setdefault(diagnostic.message, diagnostic)
            case Published(path, nbytes, tensors, _):
                self.published.append((path, nbytes, tensors))
        if self._listen is not None:
            self._listen(event)


@contextmanager
def stops_told(published: Sequence[tuple[str, int, int]]) -> Iterator[None]:
    """A block in which checkpoints are published: what stops it from outside gets a note of those that are."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if not getattr(stop, "__notes__", ()):
            paths = ", ".join(path for path, _, _ in published)
            stop.add_note(f"published already: {paths}" if published else "nothing was published")
        raise
