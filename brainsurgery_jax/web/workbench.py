"""What one tab holds: open checkpoints, the text of a plan with its past, and the run that goes on in the background.

It knows no browser. All that it does goes through the API of the package.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.comparison import Difference, diff
from brainsurgery_jax.engine.events import Advanced, Event, Finishing, Noted, Published, Said, Started
from brainsurgery_jax.errors import Diagnostic, PlanError, Span, Stopped, StoreError
from brainsurgery_jax.looking.spectra import Spectrum, spectrum
from brainsurgery_jax.looking.stats import stats
from brainsurgery_jax.lower import Effect
from brainsurgery_jax.numerics.moments import TensorStats
from brainsurgery_jax.plan.source import Map, compose
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.names import BranchedNames

FILE = "plan.yaml"
"""The name of the plan in places of diagnostics."""


class Outlook(NamedTuple):
    """What a run would do: diagnostics, the effects of the steps, the paths that it writes."""

    diagnostics: tuple[Diagnostic, ...]
    effects: tuple[Effect, ...] = ()
    writes: tuple[str, ...] = ()


class OpenCheckpoint:
    """A checkpoint that a tab looks at, and its tree of names."""

    def __init__(self, path: str, checkpoint: Checkpoint):
        self.path, self.checkpoint = path, checkpoint
        self.avals = checkpoint.avals
        self.tree = BranchedNames(self.avals)

    def search(self, pattern: str) -> list[str]:
        """The names that match a regular expression, or a structured pattern written as a YAML list. All for none.
        Raises ValueError or PlanError for a pattern that cannot be read."""
        if not pattern.strip():
            return list(self.avals)
        if pattern.lstrip().startswith("["):
            return list(self.checkpoint.select(_tokens(pattern)))
        return list(self.checkpoint.select(pattern))


def _tokens(text: str) -> list[str]:
    found = api.load(compose(f"vars: {{pattern: {text}}}", "pattern")).variables
    from brainsurgery_jax.plan.source import plain

    data = plain(found) if found is not None else {}
    tokens = data.get("pattern") if isinstance(data, dict) else None
    return [str(token) for token in tokens] if isinstance(tokens, list) else [text]


@dataclass
class Progress:
    """How far a run is. `state` is what people read; `total` and `done` count bytes read and written."""

    state: str = "idle"
    active: bool = False
    total: int = 0
    done: int = 0
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    published: list[tuple[str, int, int]] = field(default_factory=list)
    problems: tuple[Diagnostic, ...] = ()

    @property
    def share(self) -> float:
        """The share of the bytes that are done."""
        return self.done / self.total if self.total else float(bool(self.published))

    def hear(self, event: Event) -> None:
        """Take note of an event of the engine."""
        match event:
            case Started(items=items):
                self.total, self.state = sum(items.values()), "running"
            case Advanced(nbytes=nbytes):
                self.done += nbytes
            case Said(document=document):
                self.said.append(as_text(document))
            case Noted(diagnostic=diagnostic):
                self.notes.append(str(diagnostic))
            case Finishing():
                self.state = "publishing"
            case Published(path=path, nbytes=nbytes, tensors=tensors):
                self.published.append((path, nbytes, tensors))
            case _:
                pass


class Workbench:
    """The state of one tab."""

    def __init__(self, root: Root, *, memory: int | None = None):
        self.root, self._memory = root, memory
        self.checkpoints: dict[str, OpenCheckpoint] = {}
        self._texts, self._at, self._typing = [""], 0, False
        self.progress = Progress()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._spectra: dict[tuple[str, str], Spectrum] = {}

    # --- checkpoints

    def open(self, path: str) -> OpenCheckpoint:
        """Open a checkpoint below the root, anew if it is open. Raises StoreError."""
        source = self.root.files().open(path)
        avals = {name: info.aval for name, info in source.header.tensors.items()}
        if (old := self.checkpoints.get(path)) is not None:
            old.checkpoint.source.close()
        self._spectra = {key: one for key, one in self._spectra.items() if key[0] != path}
        found = self.checkpoints[path] = OpenCheckpoint(path, Checkpoint(source, avals))
        return found

    def close(self, path: str) -> None:
        """Close a checkpoint."""
        if (found := self.checkpoints.pop(path, None)) is not None:
            found.checkpoint.source.close()

    def measure(self, path: str, name: str) -> TensorStats | None:
        """The statistics of a tensor; None for one without. Raises StoreError."""
        one = Checkpoint(self.checkpoints[path].checkpoint.source, {name: self.checkpoints[path].avals[name]})
        return stats(one, memory=self._memory).get(name)

    def spectrum(self, path: str, name: str) -> Spectrum:
        """The spectrum of a matrix. Raises ValueError for another tensor, StoreError."""
        if (path, name) not in self._spectra:
            source = self.checkpoints[path].checkpoint.source
            one = Checkpoint(source, {name: self.checkpoints[path].avals[name]})
            self._spectra[path, name] = spectrum(one, memory=self._memory)[name]
        return self._spectra[path, name]

    def compare(self, left: str, right: str) -> Difference:
        """The difference of two open checkpoints. Raises StoreError."""
        sides = (self.checkpoints[side].checkpoint for side in (left, right))
        return diff(*sides, memory=self._memory)

    # --- the plan

    @property
    def text(self) -> str:
        """The plan as it stands."""
        return self._texts[self._at]

    def write(self, text: str, *, typing: bool = False) -> None:
        """Change the plan; what was undone is forgotten. What is typed without a pause is one change."""
        if text == self.text:
            return
        kept = self._at if typing and self._typing else self._at + 1
        self._texts, self._at, self._typing = [*self._texts[:kept], text], kept, typing

    def pause(self) -> None:
        """End a change that was typed."""
        self._typing = False

    def undo(self) -> None:
        """Go back to the plan before the last change. Files that a run wrote stay."""
        self._at, self._typing = max(self._at - 1, 0), False

    def redo(self) -> None:
        """Go forward to the change that was undone."""
        self._at, self._typing = min(self._at + 1, len(self._texts) - 1), False

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to undo."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether a change was undone."""
        return self._at + 1 < len(self._texts)

    def plan(self) -> api.Plan:
        """The plan that the text spells. Raises PlanError or StoreError."""
        root = compose(self.text, FILE)
        if not isinstance(root, Map):
            hint = "Write `inputs: [model.safetensors]` and `transforms: [...]`."
            raise PlanError([Diagnostic("plan-item", "a plan is a mapping", Span(FILE, 1, 1), hint)])
        plan = api.load(root)
        self.root.refuse_texts(root, plan)
        return plan

    def check(self) -> tuple[Diagnostic, ...]:
        """The mistakes in the plan, from headers alone."""
        return self.look_ahead().diagnostics if self.text.strip() else ()

    def look_ahead(self, *, overwrite: bool = True) -> Outlook:
        """The mistakes in the plan, what each of its steps creates, changes and deletes, and what a run would write."""
        try:
            program = api.lower_plan(self.plan(), self.root.files(overwrite=overwrite))
        except PlanError as bad:
            return Outlook(bad.diagnostics)
        except StoreError as bad:
            return Outlook((_diagnostic_of(bad),))
        return Outlook(program.diagnostics, program.effects, tuple(p.path for p in program.publications))

    # --- the run

    def run(self, *, overwrite: bool) -> None:
        """Run the plan in the background. Nothing is done while a run goes on."""
        if self.progress.active:
            return
        self._stop, self.progress = threading.Event(), Progress("planning", active=True)
        self._thread = threading.Thread(target=self._run, args=(self.progress, overwrite), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the run to stop; then nothing is published."""
        self._stop.set()

    def wait(self) -> None:
        """Wait for the end of the run."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, progress: Progress, overwrite: bool) -> None:
        options: Mapping[str, Any] = {"listen": progress.hear, "stop": self._stop, "memory": self._memory}
        try:
            api.run(self.plan(), world=self.root.files(overwrite=overwrite), overwrite=overwrite, **options)
            progress.state = "done"
        except PlanError as bad:
            progress.state, progress.problems = "failed", bad.diagnostics
        except StoreError as bad:
            progress.state, progress.problems = "failed", (_diagnostic_of(bad),)
        except Stopped:
            progress.state = "cancelled"
        finally:
            if progress.state not in ("done", "failed", "cancelled"):
                progress.state = "failed: a defect, see the terminal"
            progress.active = False


def _diagnostic_of(bad: StoreError) -> Diagnostic:
    return Diagnostic(bad.code or "io", str(bad).partition("\n")[0], None, bad.remedy)


def close_all(bench: Workbench) -> None:
    """Close the checkpoints of a tab."""
    for one in bench.checkpoints.values():
        with closing(one.checkpoint.source):
            pass
    bench.checkpoints.clear()
