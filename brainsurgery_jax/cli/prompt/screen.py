"""Messages of a desk on a terminal or in a pipe, and as lines of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.progress import Watcher, watching
from brainsurgery_jax.desk import Message, Mood, Remark, Reply, StepNotes
from brainsurgery_jax.engine.events import Published, Said
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.rendering.data import diagnostic_data, document_data, store_error_data
from brainsurgery_jax.rendering.text import as_text

_STYLES: Mapping[Mood, str] = {"plain": "", "done": "green", "caution": "yellow"}


class Screen:
    """Shows messages as they come: reports on stdout, the rest on stderr."""

    def tell(self, message: Message, /) -> None:
        """Print a message."""
        match message:
            case Remark(text, mood):
                show.remark(text, _STYLES[mood])
            case StepNotes(diagnostics):
                show.diagnostics(diagnostics)
            case Said(document):
                show.result(as_text(document))
            case Published():
                pass  # the watcher of the run has shown it

    def watch(self, *, quiet: bool) -> AbstractContextManager[Watcher]:
        """A bar, or lines, while a step runs."""
        return watching(quiet=quiet, verbose=False)


def reply_data(reply: Reply) -> dict[str, object]:
    """A reply for programs: messages, the state of the session, what is expected next, and what went wrong."""
    spaces = reply.session.state.spaces
    return {
        "ok": reply.error is None,
        "next": reply.next,
        "messages": list(map(_message_data, reply.messages)),
        "session": {"steps": len(reply.session.steps), "tensors": {a: len(s.names) for a, s in spaces.items()}},
        "diagnostics": _errors_data(reply),
    }


def _errors_data(reply: Reply) -> list[dict[str, object]]:
    if reply.error is None:
        return []
    if isinstance(reply.error, StoreError):
        return [store_error_data(reply.error)]
    return list(map(diagnostic_data, show.in_order(reply.error.diagnostics)))


def _message_data(message: Message) -> dict[str, object]:
    match message:
        case Remark(text, mood):
            return {"type": "remark", "mood": mood, "text": text}
        case StepNotes(diagnostics):
            return {"type": "notes", "diagnostics": list(map(diagnostic_data, diagnostics))}
        case Said(document):
            return {"type": "report", "document": document_data(document)}
        case Published(path, nbytes, tensors, side_files):
            told = {"path": path, "bytes": nbytes, "tensors": tensors, "side_files": list(side_files)}
            return {"type": "published", **told}
