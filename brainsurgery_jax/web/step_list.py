"""The steps of a plan as lines, to be moved and removed; and a line to type another."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial

from nicegui import events, ui

from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.plan.oly import to_oly
from brainsurgery_jax.plan.source import dump_yaml, plain
from brainsurgery_jax.plan.typed import nodes
from brainsurgery_jax.web.plan_text import add_steps, move_step, remove_step

MOST_LINES = 100
"""The most steps that are listed."""


def write_step(step: object) -> str:
    """A step on one line, where one can hold it; else as YAML."""
    try:
        return to_oly(step)
    except ValueError:
        return dump_yaml(step).strip()


class StepList:
    """The list. `edit` changes the text of the plan by a function, and says whether it has changed."""

    def __init__(self, edit: Callable[[Callable[[str], str]], Awaitable[bool]]):
        self._edit = edit
        self._shown: list[str] | None = None
        ui.label("Steps").props("role=heading aria-level=2").style("font-weight: 600")
        self._place = ui.column().style("width: 100%; gap: 0")
        with ui.row(align_items="end").style("width: 100%"):
            self._line = ui.input("A step on one line", placeholder="scale_: target: w, by: 2").style("flex: 1")
            # The browser tells what stands there: an update of the server under way may be older.
            told = f"() => emit(getElement({self._line.id}).inputValue)"
            self._line.props("dense").on("keydown.enter", self._add, js_handler=told)
            ui.button("Add line").props("no-caps dense").on("click", self._add, js_handler=told)
        self._told = ui.label("").classes("bs-error").props("role=alert")

    def show(self, lines: list[str]) -> None:
        """List the steps of the plan."""
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

    async def _move(self, at: int, by: int) -> None:
        if not await self._edit(partial(move_step, at=at, by=by)):
            ui.notify("Steps in brackets are moved in the text alone.")

    async def _remove(self, at: int) -> None:
        await self._edit(partial(remove_step, at=at))

    async def _add(self, event: events.GenericEventArguments) -> None:
        self._told.set_text("")
        line = str(event.args or "")
        try:
            steps = [plain(node) for node in nodes(line, "line")]
        except PlanError as bad:
            self._told.set_text("; ".join(f"{d.message} {d.hint}".strip() for d in bad.diagnostics))
            return
        field = f"getElement({self._line.id})"  # what was typed meanwhile stays
        ui.run_javascript(f"if ({field}.inputValue === {json.dumps(line)}) {field}.inputValue = '';")
        made = [step if isinstance(step, dict) else {str(step): {}} for step in steps]
        await self._edit(lambda text: add_steps(text, made))
