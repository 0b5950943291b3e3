"""The output of a run: what steps report on stdout, and on a terminal a bar of the bytes read and written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from brainsurgery_jax.cli import log, show
from brainsurgery_jax.documents import Document
from brainsurgery_jax.engine.events import (
    Advanced,
    Awaiting,
    Event,
    Factorized,
    Finishing,
    Noted,
    Published,
    Said,
    Started,
    Wrote,
)
from brainsurgery_jax.pace import describe_progress, memory_held
from brainsurgery_jax.rendering.data import diagnostic_data, document_data
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import counted, show_side_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress


class Watcher(Protocol):
    """A listener that receives the events of a run."""

    def __call__(self, event: Event, /) -> None: ...


class Plain:
    """Prints what steps say and what was published; for pipes, logs and `--quiet`."""

    def __init__(self, *, quiet: bool, verbose: bool):
        self.quiet, self.verbose = quiet, verbose
        self.left: dict[str, int] = {}  # bytes of each tensor that are not written yet
        self.sizes: Mapping[str, int] = {}

    def __call__(self, event: Event, /) -> None:
        match event:
            case Said(document):
                show.result(as_text(document))
            case Awaiting(coordinator, process, processes):
                show.remark(f"process {process} waits at {coordinator} for all {processes} processes of the run")
            case Started(nbytes, tasks, sizes, _) if self.verbose:
                self.sizes, self.left = sizes, dict(sizes)
                show.remark(f"{counted(tasks, 'task')}, {show_size(nbytes)} to write")
            case Wrote(name, nbytes, _) if self.verbose:
                self.left[name] -= nbytes
                if not self.left[name]:
                    show.remark(f"{name}: {show_size(self.sizes[name])}")
            case Published(path, nbytes, tensors, side_files) if not self.quiet:
                more = f", with {show_side_files(side_files)}" if side_files else ""
                show.remark(f"wrote {path}: {counted(tensors, 'tensor')}, {show_size(nbytes)}{more}", "green")


class Bar:
    """A bar on stderr of the bytes that the items of the work read and write, and above it all that `Plain` prints."""

    def __init__(self, plain: Plain, bar: Progress):
        self.plain, self.bar = plain, bar
        self.task = bar.add_task("", total=None, label="starting")

    def __call__(self, event: Event, /) -> None:
        match event:
            case Started():
                self.bar.update(self.task, total=sum(event.items.values()) or None, label="computing")
            case Advanced(_, nbytes):
                self.bar.update(self.task, advance=nbytes)
            case Wrote(name):
                self.bar.update(self.task, label=_end_of(name))
            case Finishing():
                self.bar.update(self.task, label="completing")
            case Said() | Published() | Awaiting():
                self.bar.stop()  # the bar is on another stream, and must not be torn by text on this one
                self.plain(event)
                if not isinstance(event, Published):
                    self.bar.start()


class JsonLines:
    """Writes each event as a line of JSON on stderr; what steps say stays on stdout, too."""

    def __init__(self, plain: Plain):
        self.plain = plain

    def __call__(self, event: Event, /) -> None:
        _log_event(event)
        if isinstance(event, Said):
            self.plain(event)


def _log_event(event: Event) -> None:
    log.write_event(type(event).__name__.lower(), **_event_data(event))


def _event_data(event: Event) -> dict[str, object]:
    """An event as data. Of what a run is going to do the sums are told: there may be a million items."""
    match event:
        case Awaiting(coordinator, process, processes):
            return {"coordinator": coordinator, "process": process, "processes": processes}
        case Started(nbytes, tasks, sizes, items):
            return {"bytes": nbytes, "tasks": tasks, "tensors": len(sizes), "work_bytes": sum(items.values())}
        case Advanced(item, nbytes):
            return {"item": item, "bytes": nbytes}
        case Wrote(name, nbytes, item):
            return {"tensor": name, "bytes": nbytes, "item": item}
        case Said(document):
            return {"document": document_data(document)}
        case Factorized(names, shape, method, facts, seconds, item):
            found = {"tensors": names, "shape": shape, "method": method, "facts": dict(facts)}
            return {**found, "seconds": seconds, "item": item}
        case Noted(diagnostic, item):
            return {"diagnostic": diagnostic_data(diagnostic), "item": item}
        case Finishing():
            return {}
        case Published(path, nbytes, tensors, side_files):
            return {"path": path, "bytes": nbytes, "tensors": tensors, "side_files": side_files}


def _end_of(name: str, width: int = 32) -> str:
    """The end of a long name: that is where it differs from its neighbours."""
    return name if len(name) <= width else "…" + name[1 - width :]


def collect(reports: list[Document]) -> Watcher:
    """A listener that appends the reports of steps to a list, and logs events where the log is JSON."""
    logs = log.is_json()

    def hear(event: Event, /) -> None:
        if isinstance(event, Said):
            reports.append(event.document)
        if logs:
            _log_event(event)

    return hear


def watching(*, quiet: bool, verbose: bool) -> AbstractContextManager[Watcher]:
    """A listener for a run: JSON lines where the log is that, a bar where stderr is a terminal, else plain lines."""
    plain = Plain(quiet=quiet, verbose=verbose)
    if log.is_json():
        return nullcontext(JsonLines(plain))
    return _bar(plain) if sys.stderr.isatty() and not quiet and not verbose else nullcontext(plain)


@contextmanager
def _bar(plain: Plain) -> Iterator[Watcher]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class RunFigures(ProgressColumn):
        """Bytes, throughput, time and memory."""

        max_refresh = 0.5  # the remaining time would flicker

        def render(self, task: Task) -> Text:
            done, total = int(task.completed), None if task.total is None else int(task.total)
            return Text(describe_progress(done, total, task.elapsed or 0.0, task.speed, memory_held()))

    # Names may hold brackets. On a narrow terminal there is no room for them beside the figures.
    label = TextColumn("{task.fields[label]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    console = Console(stderr=True)
    columns = (BarColumn(10), RunFigures(Column(no_wrap=True)), *([label] if console.width >= 100 else []))
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        yield Bar(plain, bar)
