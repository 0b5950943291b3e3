"""The plan: an editor with diagnostics as one types, a preview to agree to, and the run."""

from __future__ import annotations

import os
from asyncio import Lock, to_thread
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import quote

from nicegui import events, ui

from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError
from brainsurgery_jax.lower import Effect
from brainsurgery_jax.plan.recipes import find_recipe, recipe_names
from brainsurgery_jax.web.plan_editor import PlanEditor
from brainsurgery_jax.web.plan_text import add_steps
from brainsurgery_jax.web.step_form import StepForm
from brainsurgery_jax.web.step_list import StepList, write_step
from brainsurgery_jax.web.waiting import Waiting
from brainsurgery_jax.web.workbench import FILE, Workbench
from brainsurgery_jax.wording import counted, few

MOST_STEPS = 200
"""The most inner steps of a step that a preview lists."""

MOST_NAMES = 12
"""The most names of a kind that a preview lists for a step."""


class PlanView:
    """The view of the plan of a workbench."""

    def __init__(self, key: str, bench: Workbench):
        self.key, self._bench, self._waiting = key, bench, Waiting()
        self.when_done: Callable[[], None] = lambda: None
        self._was_active = bench.progress.active
        self._editing = Lock()
        with ui.element("div").classes("bs-columns"):
            with ui.column().classes("bs-column"):
                self._build_editor(key)
            with ui.column().classes("bs-column"):
                self._form = StepForm(self._add_step)
        self._steps = StepList(self.edit)
        self._build_run()
        self._check_later = ui.timer(0.25, self._check)
        ui.timer(0.3, self._follow)
        self._show_progress()

    def _build_editor(self, key: str) -> None:
        with ui.row(align_items="center").classes("bs-tight"):
            self._undo = ui.button("Undo", on_click=self._go_back).props("no-caps dense")
            self._redo = ui.button("Redo", on_click=self._go_forward).props("no-caps dense")
            # Not links: a click comes after all that was typed before it.
            for label, resolved in (("Download plan", False), ("Download resolved plan", True)):
                ui.button(label, on_click=partial(self._download, resolved)).props("no-caps dense flat")
            recipes = ["", *recipe_names()]
            ui.select(recipes, label="Start from a recipe", on_change=self._take_recipe).props("dense").style(
                "min-width: 12rem"
            )
        self._editor = PlanEditor(key, self._bench.shared, self._typed)
        ui.label("Ctrl-Space completes ops, keys and names of tensors. Esc, then Tab leaves the editor.").classes(
            "bs-muted"
        )
        self._problems = ui.column().props("role=status aria-label=Diagnostics").style("gap: 0; width: 100%")

    def _build_run(self) -> None:
        with ui.row(align_items="center"):
            ui.button("Preview and run", on_click=self._preview).props("no-caps color=primary")
            ui.button("Try", on_click=self._try).props("no-caps").tooltip("Look at the result without writing outputs")
            self._upto = ui.number("up to step", min=1, precision=0, format="%d").props("dense clearable")
            self._upto.style("width: 8rem")
            self._cancel = ui.button("Cancel", on_click=self._bench.cancel).props("no-caps flat")
            self._overwrite = ui.checkbox("Replace existing outputs")
            self._lock = ui.checkbox("Lock").tooltip("Write beside each output what it was made of: see `run --lock`")
        self._bar = ui.linear_progress(0, show_value=False).props('instant-feedback aria-label="Progress"')
        self._state = ui.label("").props("role=status")
        self._trial = ui.column().style("width: 100%")
        self._results = ui.column().style("width: 100%")

    # --- what other views do

    async def refer(self, path: str, pattern: str) -> None:
        """Write a pattern of names of a checkpoint into the form of the step."""
        self._form.refer(await to_thread(self._bench.refer, path, pattern))

    async def edit(self, change: Callable[[str], str]) -> bool:
        """Change the text of the plan by a function, in a thread; again if the user typed meanwhile. Whether it
        changed. Raises what the function raises."""
        async with self._editing:  # in the order in which they were asked for
            while True:
                before = self._bench.text
                after = await to_thread(change, before)
                if before == self._bench.text:
                    break
            self._put(after)
        return before != after

    async def add_input(self, path: str) -> None:
        """Add a checkpoint to the inputs of the plan."""
        try:
            await self.edit(lambda text: self._bench.with_input(text, path).text)
        except (PlanError, StoreError) as bad:
            ui.notify(f"The plan cannot be read: {bad}", type="negative", multi_line=True)
            return
        ui.notify(f"{path} is an input of the plan.")

    async def _download(self, resolved: bool) -> None:
        try:
            await to_thread(self._bench.resolve if resolved else lambda: None)
        except (PlanError, StoreError) as bad:
            ui.notify(f"The plan cannot be resolved: {bad}", type="negative", multi_line=True)
            return
        ui.download(f"/plan/{self.key}" + ("?resolved=1" if resolved else ""))

    # --- the text

    def _put(self, text: str) -> None:
        self._bench.write(text)
        self._show_text()

    def _show_text(self) -> None:
        self._editor.show()
        self._check_later.activate()

    def _typed(self) -> None:
        self._check_later.activate()

    def _go_back(self) -> None:
        self._bench.undo()
        self._show_text()

    def _go_forward(self) -> None:
        self._bench.redo()
        self._show_text()

    async def _add_step(self, step: dict[str, object]) -> None:
        await self.edit(lambda text: add_steps(text, [step]))

    def _take_recipe(self, event: events.ValueChangeEventArguments[str]) -> None:
        if event.value:
            self._put(find_recipe(event.value).text)

    async def _check(self) -> None:
        self._check_later.deactivate()
        self._bench.pause()
        text = self._bench.text
        found, lines = await to_thread(self._look)
        if text != self._bench.text:
            self._check_later.activate()
            return
        self._undo.set_enabled(self._bench.can_undo)
        self._redo.set_enabled(self._bench.can_redo)
        self._problems.clear()
        with self._problems:
            if text.strip() and not found:
                ui.label("No mistakes.").classes("bs-muted")
            _draw_diagnostics(found)
        self._mark(found)
        self._steps.show(lines)

    def _look(self) -> tuple[tuple[Diagnostic, ...], list[str]]:
        """The mistakes of the plan, and its steps, each on a line where one can hold it."""
        return self._bench.check(), [write_step(step) for step in self._bench.steps()]

    def _mark(self, found: Sequence[Diagnostic]) -> None:
        count = self._bench.text.count("\n") + 1
        lines = {d.span.line: d.message for d in found if d.span and d.span.file == FILE and 0 < d.span.line <= count}
        self._editor.mark_lines(lines)

    # --- the run

    async def _try(self) -> None:
        """Open what the plan makes, up to a step, beside the other checkpoints."""
        upto = max(int(self._upto.value), 1) if self._upto.value else None
        self._trial.clear()
        found = await self._waiting.run(self._trial, "trying the plan", partial(self._bench.try_plan, upto))
        if found is not None:
            self.when_done()
            with self._trial:
                ui.label(f"'{found.path}' is open: see Explore and Compare. No output was written.").props(
                    "role=status"
                )

    async def _preview(self) -> None:
        overwrite, lock = bool(self._overwrite.value), bool(self._lock.value)
        found, effects, writes = await to_thread(lambda: self._bench.look_ahead(overwrite=overwrite, lock=lock))
        errors = [d for d in found if d.severity == "error"]
        with (
            ui.dialog() as dialog,
            ui.card().props("role=dialog aria-label=Preview").style("min-width: min(90vw, 40rem)"),
        ):
            ui.label("Preview").props("role=heading aria-level=2").style("font-size: 1.1rem; font-weight: 600")
            with ui.element("div").classes("bs-scroll"):
                _draw_diagnostics(found)
                for number, effect in enumerate(effects, 1):
                    _draw_effect(number, effect)
                if not effects:
                    ui.label("The plan has no steps.").classes("bs-muted")
            _draw_writes(writes, wrong=bool(errors))
            with ui.row():
                go = ui.button("Go", on_click=lambda: dialog.submit(True)).props("no-caps color=primary")
                go.set_enabled(not errors)
                ui.button("No-go", on_click=lambda: dialog.submit(False)).props("no-caps flat")
        if await dialog:
            self._bench.run(overwrite=overwrite, lock=lock)
            self._was_active = True
            self._show_progress()
        dialog.delete()

    def _follow(self) -> None:
        if self._editor.show():  # another window of the session has changed it
            self._check_later.activate()
        if self._was_active:
            self._show_progress()
            if not self._bench.progress.active:
                self._was_active = False
                self._show_progress()
                self.when_done()

    def _show_progress(self) -> None:
        progress = self._bench.progress
        self._cancel.set_enabled(progress.active)
        self._bar.set_value(progress.share)
        told = progress.describe()
        share = "" if progress.started is None else f" ({progress.share:.0%}), {told}"
        self._state.set_text(f"Run: {progress.state}{share}")
        self._results.clear()
        with self._results:
            _draw_diagnostics(progress.problems)
            for path, nbytes, tensors in progress.published:
                with ui.row(align_items="center"):
                    ui.label(f"wrote {path}: {tensors:,} tensors, {nbytes:,} bytes").classes("bs-mono")
                    folder = os.path.isdir(self._bench.root.confine(path))
                    _draw_download("Download as tar" if folder else "Download", path)
                    if progress.lock:
                        _draw_download("Download lock", self._bench.find_lock(path))
                    ui.button("Open", on_click=partial(self._open, path)).props("flat dense no-caps")
            for text in [*progress.said, *progress.notes]:
                ui.label(text).classes("bs-mono").style("white-space: pre-wrap")

    async def _open(self, path: str) -> None:
        try:
            await to_thread(self._bench.open, path)
        except StoreError as bad:
            ui.notify(str(bad), type="negative", multi_line=True)
            return
        self.when_done()
        ui.notify(f"{path} is open: see Explore and Compare.")


def _draw_download(label: str, path: str) -> None:
    ui.link(label, f"/download?path={quote(path)}").props("download")


def _draw_diagnostics(found: Sequence[Diagnostic]) -> None:
    for one in found:
        place = f"{one.span.line}:{one.span.col} " if one.span and one.span.line else ""
        label = ui.label(f"{place}{one.severity}: {one.message} [{one.code}]").classes("bs-mono")
        if one.severity == "error":
            label.classes("bs-error")
        for line in one.hint.splitlines():
            ui.label(line).classes("bs-mono bs-muted").style("padding-left: 1.5rem; white-space: pre-wrap")


def _draw_writes(paths: Sequence[str], *, wrong: bool) -> None:
    """What a run would write, where the eye is when it agrees: below the steps, which may be many."""
    for path in paths:
        ui.label(f"writes {path}").classes("bs-mono")
    if not paths and not wrong:
        ui.label("The plan has no output, so nothing is written.").classes("bs-muted")


def _draw_effect(number: int, effect: Effect) -> None:
    """A step and what it does; of a composite one also the steps that it stands for, as a tree."""
    ui.label(f"{number}. {write_step(effect.step.text)}").classes("bs-mono").style("white-space: pre-wrap")
    _draw_names(effect, 1)
    if effect.inner:
        inner = list(effect.walk())[1:]
        with ui.expansion(f"stands for {counted(len(inner), 'step')}").style("width: 100%; padding-left: 1rem"):
            for depth, one in inner[:MOST_STEPS]:
                text = write_step(one.step.text)
                ui.label(text).classes("bs-mono").style(f"white-space: pre-wrap; padding-left: {1.5 * depth}rem")
                _draw_names(one, depth + 1)
            if len(inner) > MOST_STEPS:
                ui.label(f"and {len(inner) - MOST_STEPS:,} more").classes("bs-muted")


def _draw_names(effect: Effect, depth: int) -> None:
    kinds = ("creates", effect.created), ("changes", effect.changed), ("deletes", effect.deleted)
    for word, names in (*kinds, ("configures", effect.configured)):
        if names:
            told = f"{word} {len(names):,}: {few(names, MOST_NAMES)}"
            ui.label(told).classes("bs-mono").style(f"padding-left: {1.5 * depth}rem")
