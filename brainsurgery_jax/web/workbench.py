"""What one tab holds: open checkpoints, the text of a plan with its past, and the run that goes on in the background.

It knows no browser. All that it does goes through the API of the package.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.completion.candidates import Candidate, complete
from brainsurgery_jax.completion.partial import place_of
from brainsurgery_jax.completion.plans import begin_before, cut_step
from brainsurgery_jax.engine.events import (
    NEVER,
    Advanced,
    Event,
    Finishing,
    Noted,
    Published,
    Said,
    Started,
    StopSignal,
)
from brainsurgery_jax.errors import Diagnostic, PlanError, Span, Stopped, StoreError
from brainsurgery_jax.lower import Effect
from brainsurgery_jax.pace import describe_progress, memory_held
from brainsurgery_jax.plan.source import List, Map, Node, compose, dump_yaml
from brainsurgery_jax.plots.page import report
from brainsurgery_jax.provenance.lock import lock_path
from brainsurgery_jax.reading import limit_reads
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.session import Session
from brainsurgery_jax.trial import try_plan
from brainsurgery_jax.web.confined import ConfinedFiles, Root
from brainsurgery_jax.web.opened import OpenCheckpoint, Opened, Shelf
from brainsurgery_jax.web.plan_text import add_input
from brainsurgery_jax.web.shared_text import SharedText

FILE = "plan.yaml"
"""The name of the plan in places of diagnostics."""


class Outlook(NamedTuple):
    """What a run would do: diagnostics, the effects of the steps, the paths that it writes."""

    diagnostics: tuple[Diagnostic, ...]
    effects: tuple[Effect, ...] = ()
    writes: tuple[str, ...] = ()


class WithInput(NamedTuple):
    """The text of a plan that has an input, the alias of the input, and how many inputs there are."""

    text: str
    alias: str
    inputs: int


@dataclass
class Progress:
    """How far a run is. `state` is what people read; `total` and `done` count bytes read and written; with `lock` the
    run writes the lock of each output."""

    state: str = "idle"
    active: bool = False
    total: int = 0
    done: int = 0
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    published: list[tuple[str, int, int]] = field(default_factory=list)
    problems: tuple[Diagnostic, ...] = ()
    lock: bool = False
    started: float | None = None
    took: float | None = None

    def describe(self) -> str:
        """Bytes, throughput, time and memory, while it runs; how long it took, when it is done."""
        if self.started is None:
            return ""
        elapsed = self.took if self.took is not None else monotonic() - self.started
        speed = self.done / elapsed if elapsed else None
        return describe_progress(self.done, self.total, elapsed, speed, memory_held() if self.active else None)

    @property
    def share(self) -> float:
        """The share of the bytes that are done."""
        return self.done / self.total if self.total else float(bool(self.published))

    def hear(self, event: Event) -> None:
        """Take note of an event of the engine."""
        match event:
            case Started(items=items):
                self.total, self.state, self.started = sum(items.values()), "running", monotonic()
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

    def __init__(self, root: Root, *, memory: int | None = None, shelf: Shelf | None = None):
        self.root, self._memory = root, memory
        self.opened = Opened(shelf or Shelf(root), memory)
        self._scratch: TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._texts, self._at, self._typing = [""], 0, False
        self.shared = SharedText(lambda: self.text, partial(self.write, typing=True))
        self._parsed: tuple[str, api.Plan | PlanError | StoreError] | None = None
        self.progress = Progress()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- checkpoints

    def open(self, path: str) -> OpenCheckpoint:
        """Open a checkpoint below the root, anew if it is open. Raises StoreError."""
        return self.opened.open(path)

    def try_plan(self, steps: int | None = None, stop: StopSignal = NEVER) -> OpenCheckpoint:
        """Open what the first steps of the plan, or all, make of its inputs. Later steps may be wrong. Nothing that the
        plan itself would write is written. Raises PlanError, StoreError, Stopped."""
        with self._limits():
            plan = self._load(_keep_steps(compose(self.text, FILE), steps))
            made = len(plan.data.steps)
            path, label = self.scratch(f"after-step-{made}.safetensors"), f"plan after step {made}"
            try_plan(plan, path, world=self._world(), memory=self._memory, stop=stop)
        return self.opened.put_tried(label, path)

    def close(self, path: str) -> None:
        """Close a checkpoint; what was tried is deleted, too."""
        one = self.opened.get(path)
        self.opened.close(path)
        if one is not None and one.tried:
            with suppress(FileNotFoundError):
                os.unlink(one.checkpoint.path)

    def scratch(self, name: str) -> str:
        """The path of a file of this tab, in a hidden folder of the root that goes when the tab is closed."""
        with self._lock:
            if self._scratch is None:
                self._scratch = TemporaryDirectory(prefix=".brainsurgery-jax-", dir=self.root.folder)
            return os.path.join(self._scratch.name, name)

    def write_report(self, path: str, other: str | None = None, stop: StopSignal = NEVER) -> str:
        """Write the report of a checkpoint, or of how another differs from it, aside; its path. Raises StoreError,
        Stopped."""
        sides = (self.opened[side].checkpoint for side in (path, other) if side is not None)
        page = self.scratch("report.html")
        report(*sides, to=page, overwrite=True, memory=self._memory, stop=stop)
        return page

    def close_all(self) -> None:
        """Close the checkpoints of the tab, stop its run, and delete what it wrote aside."""
        self.cancel()
        for path in list(self.opened):
            self.opened.close(path)
        with self._lock:
            if self._scratch is not None:
                self._scratch.cleanup()
            self._scratch = None

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
        """The plan that the text spells, and the files that it reads. Raises PlanError or StoreError."""
        text = self.text
        try:
            plan = self._parse(text)
        except (PlanError, StoreError) as bad:
            self._parsed = text, bad
            raise
        self._parsed = text, plan
        return plan

    def _known_plan(self) -> api.Plan:
        """The plan as it was parsed last, if its text is still the same. Raises PlanError or StoreError."""
        if self._parsed is None or self._parsed[0] != self.text:
            return self.plan()
        if isinstance(found := self._parsed[1], Exception):
            raise found
        return found

    def _parse(self, text: str) -> api.Plan:
        with self._limits():
            return self._load(compose(text, FILE))

    def _load(self, root: Node | None) -> api.Plan:
        if not isinstance(root, Map):
            hint = "Write `inputs: [model.safetensors]` and `transforms: [...]`."
            raise PlanError([Diagnostic("plan-item", "a plan is a mapping", Span(FILE, 1, 1), hint)])
        plan = api.load(root)
        self.root.refuse_texts(root, plan)
        return plan

    def _limits(self) -> AbstractContextManager[None]:
        """Where plans are parsed and lowered: what they read lies below the root, at any depth."""
        return limit_reads(self.root.confine)

    def _world(self) -> ConfinedFiles:
        """The files of a plan that is not run: nothing stands in its way."""
        return self.root.files(overwrite=True)

    def check(self) -> tuple[Diagnostic, ...]:
        """The mistakes in the plan, from headers alone."""
        return self.look_ahead().diagnostics if self.text.strip() else ()

    def look_ahead(self, *, overwrite: bool = True, lock: bool = False) -> Outlook:
        """The mistakes in the plan, what each of its steps creates, changes and deletes, and what a run would write,
        with `lock` the locks of its outputs, too."""
        try:
            with self._limits():
                program = api.lower_plan(self.plan(), self.root.files(overwrite=overwrite))
        except PlanError as bad:
            return Outlook(bad.diagnostics)
        except StoreError as bad:
            return Outlook((_diagnostic_of(bad),))
        paths = [p.path for p in program.publications]
        locks = [lock_path(p.path, directory=p.directory) for p in program.publications if lock]
        return Outlook(program.diagnostics, program.effects, (*paths, *locks))

    def complete(self, text: str) -> list[Candidate]:
        """How the text of a plan may go on at its end, in a step: ops, keys, words, names of tensors, files below the
        root."""
        cut = cut_step(text)
        if cut is None or not self._may_list(cut.step):
            return []
        try:
            with self._limits(), closing(begin_before(self._load(compose(cut.before, FILE)), self._world())) as session:
                return complete(cut.step, session)
        except (PlanError, StoreError):
            return []

    def _may_list(self, step: str) -> bool:
        """Whether the word that is typed is no path outside the root, whose neighbours nobody may see."""
        place = place_of(step)
        word = "" if place is None else place.word
        if os.sep not in word and not word.startswith("~"):
            return True
        try:
            self.root.confine(os.path.dirname(word) or os.sep)
        except StoreError:
            return False
        return True

    def resolve(self) -> str:
        """The plan with its variables filled in and its files read, as text. Raises PlanError or StoreError."""
        plan = self.plan()
        if plan.errors:
            raise PlanError(plan.errors)
        with self._limits(), closing(Session.begin(plan, self._world())) as session:
            return dump_yaml(session.step(*plan.data.steps).session.to_plan(everything=True))

    def steps(self) -> list[object]:
        """The steps of the plan as data; none if it cannot be read."""
        try:
            return [step.text for step in self._known_plan().data.steps]
        except (PlanError, StoreError):
            return []

    def refer(self, path: str, pattern: str) -> str:
        """A pattern as a reference to a checkpoint: with the alias of an input where the plan has several."""
        try:
            inputs = self._known_plan().data.inputs
        except (PlanError, StoreError):
            return pattern
        alias = next((one.alias for one in inputs if one.path == path), None)
        return f"{alias}::{pattern}" if alias is not None and len(inputs) > 1 else pattern

    def with_input(self, text: str, path: str) -> WithInput:
        """The text of a plan with a checkpoint among its inputs. Raises PlanError or StoreError."""
        if path in self.opened and self.opened[path].tried:
            raise StoreError(path, "is what the plan makes, and no file", remedy="Run the plan, and open its output.")
        known = self._parse(text).data.inputs if text.strip() else ()
        if all(one.path != path for one in known):
            text = add_input(text, path)
            known = self._parse(text).data.inputs
        alias = next((one.alias for one in known if one.path == path), None)
        if alias is None:
            raise StoreError(path, "cannot be written into the inputs of this plan")
        return WithInput(text, alias, len(known))

    # --- the run

    def run(self, *, overwrite: bool, lock: bool = False) -> None:
        """Run the plan in the background, with `lock` writing the lock of each output. Nothing is done while a run goes
        on."""
        if self.progress.active:
            return
        self._stop, self.progress = threading.Event(), Progress("planning", active=True, lock=lock)
        self._thread = threading.Thread(target=self._run, args=(self.progress, overwrite), daemon=True)
        self._thread.start()

    def find_lock(self, path: str) -> str:
        """The path of the lock of an output that was published at a path."""
        return lock_path(path, directory=os.path.isdir(self.root.confine(path)))

    def cancel(self) -> None:
        """Ask the run to stop; then nothing is published."""
        self._stop.set()

    def wait(self) -> None:
        """Wait for the end of the run."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, progress: Progress, overwrite: bool) -> None:
        options = RunOptions(
            self._memory, listen=progress.hear, stop=self._stop, overwrite=overwrite, lock=progress.lock or None
        )
        try:
            with self._limits():
                api.run_with(self.plan(), options, self.root.files(overwrite=overwrite))
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
            progress.took = None if progress.started is None else monotonic() - progress.started
            progress.active = False


def _keep_steps(root: Node | None, steps: int | None) -> Node | None:
    """A plan with its first steps alone."""
    if not isinstance(root, Map) or steps is None:
        return root
    kept = ((key, replace(value, items=value.items[:steps]) if key.text == "transforms" and isinstance(value, List)
             else value) for key, value in root.entries)  # fmt: skip
    return replace(root, entries=tuple(kept))


def _diagnostic_of(bad: StoreError) -> Diagnostic:
    return Diagnostic(bad.code or "io", str(bad).partition("\n")[0], None, bad.remedy)
