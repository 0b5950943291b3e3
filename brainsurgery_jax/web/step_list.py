"""The steps of a plan as lines, to be moved and removed; and a line to type another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nicegui import ui

from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.plan.oly import to_oly
from brainsurgery_jax.plan.source import dump_yaml, plain
from brainsurgery_jax.plan.typed import nodes
from brainsurgery_jax.web.plan_text import add_step, move_step, remove_step
from brainsurgery_jax.web.workbench import Workbench

MOST_LINES = 100
"""The most steps that are listed."""


def write_step(step: object) -> str:
    """A step on one line, where one can hold it; else as YAML."""
    try:
        return to_oly(step)
    except ValueError:
        return dump_yaml(step).strip()


class StepList:
    """The list. `changed` is called after each change of the plan."""

    def __init__(self, bench: Workbench, changed: Callable[[], None]):
        self._bench, self._changed = bench, changed
        self._shown: list[str] | None = None
        ui.label("Steps").props("role=heading aria-level=2").style("font-weight: 600")
        self._place = ui.column().style("width: 100%; gap: 0")
        with ui.row(align_items="end").style("width: 100%"):
            self._line = ui.input("A step on one line", placeholder="scale_: target: w, by: 2").style("flex: 1")
            self._line.props("dense").on("keydown.enter", self._add)
            ui.button("Add line", on_click=self._add).props("no-caps dense")
        self._told = ui.label("").classes("bs-error").props("role=alert")

    def refresh(self) -> None:
        """List the steps of the plan as it stands."""
        lines = [write_step(step) for step in self._bench.steps()]
        if lines == self._shown:  # the focus stays where it is
            return
        self._shown = lines
        self._place.clear()
        with self._place:
            if not lines:
                ui.label("No steps yet.").classes("bs-muted")
            for at, line in enumerate(lines[:MOST_LINES]):
                self._draw(at, line, len(lines))
            if len(lines) > MOST_LINES:
                ui.label(f"and {len(lines) - MOST_LINES:,} more").classes("bs-muted")

    def _draw(self, at: int, line: str, count: int) -> None:
        with ui.row(align_items="center", wrap=False).style("width: 100%; gap: .2rem"):
            for icon, label, by in (("arrow_upward", "up", -1), ("arrow_downward", "down", 1)):
                button = ui.button(icon=icon, on_click=partial(self._move, at, by)).props("flat dense size=sm")
                button.props["aria-label"] = f"Move step {at + 1} {label}"
                button.set_enabled(0 <= at + by < count)
            button = ui.button(icon="delete", on_click=partial(self._remove, at))
            button.props("flat dense size=sm").props["aria-label"] = f"Remove step {at + 1}"
            ui.label(f"{at + 1}. {line}").classes("bs-mono").style("white-space: pre-wrap")

    def _move(self, at: int, by: int) -> None:
        moved = move_step(self._bench.text, at, by)
        if moved == self._bench.text:
            ui.notify("Steps in brackets are moved in the text alone.")
        self._put(moved)

    def _remove(self, at: int) -> None:
        self._put(remove_step(self._bench.text, at))

    def _add(self) -> None:
        self._told.set_text("")
        text = self._bench.text
        try:
            for node in nodes(str(self._line.value or ""), "line"):
                step = plain(node)
                text = add_step(text, step if isinstance(step, dict) else {str(step): {}})
        except PlanError as bad:
            self._told.set_text("; ".join(f"{d.message} {d.hint}".strip() for d in bad.diagnostics))
            return
        self._line.set_value("")
        self._put(text)

    def _put(self, text: str) -> None:
        self._bench.write(text)
        self._changed()
