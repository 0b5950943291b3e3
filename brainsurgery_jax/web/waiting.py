"""What takes a while and may be cancelled: computed on another thread, with its state told in the page."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from nicegui import ui
from nicegui.element import Element

from brainsurgery_jax.engine.events import StopSignal
from brainsurgery_jax.errors import PlanError, Stopped, StoreError

T = TypeVar("T")


class Waiting:
    """The computations that a part of the page waits for."""

    def __init__(self) -> None:
        self._stops: set[Event] = set()

    def cancel(self) -> None:
        """End all of them: what they are for is no longer shown."""
        for stop in self._stops:
            stop.set()

    async def run(self, place: Element, told: str, compute: Callable[[StopSignal], T]) -> T | None:
        """The result of a computation, told in an element while it goes on. None if it failed, which is then told
        there, if it was cancelled, or if the element is gone."""
        stop = Event()
        self._stops.add(stop)
        with place, ui.row(align_items="center") as row:
            ui.spinner(size="sm").props("aria-hidden=true")
            state = ui.label(f"{told} ...").props("role=status")
            ui.button("Cancel", on_click=stop.set).props("flat dense no-caps")
        problem = ""
        try:
            return await to_thread(compute, stop)
        except Stopped:
            problem = "cancelled"
        except (StoreError, PlanError, ValueError) as bad:
            problem = str(bad)
        finally:
            self._stops.discard(stop)
            if not row.is_deleted:
                row.delete()
        if not place.is_deleted:
            with place:
                state = ui.label(problem).props("role=status").style("white-space: pre-wrap")
                state.classes("bs-muted" if problem == "cancelled" else "bs-error")
        return None
