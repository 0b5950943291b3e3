"""What takes a while and may be cancelled: computed on another thread, with its state told in the page."""

from __future__ import annotations

import asyncio
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
        self._cancels: set[Callable[[], None]] = set()
        ui.context.client.on_delete(self.cancel)  # nobody waits for it once the page is closed

    def cancel(self) -> None:
        """End all of them: what they are for is no longer shown."""
        for cancel in list(self._cancels):
            cancel()

    async def run(self, place: Element, told: str, compute: Callable[[StopSignal], T]) -> T | None:
        """The result of a computation, told in an element while it goes on. None if it failed, which is then told
        there, if it was cancelled, or if the element is gone."""
        stop, cancelled = Event(), asyncio.Event()

        def cancel() -> None:
            stop.set()
            cancelled.set()

        self._cancels.add(cancel)
        with place, ui.row(align_items="center") as row:
            ui.spinner(size="sm").props("aria-hidden=true")
            state = ui.label(f"{told} ...").props("role=status")
            ui.button("Cancel", on_click=cancel).props("flat dense no-caps")
        problem = ""
        try:
            return await _race(compute, stop, cancelled)
        except Stopped:
            problem = "cancelled"
        except (StoreError, PlanError, ValueError) as bad:
            problem = str(bad)
        finally:
            self._cancels.discard(cancel)
            if not row.is_deleted:
                row.delete()
        if not place.is_deleted:
            with place:
                state = ui.label(problem).props("role=status").style("white-space: pre-wrap")
                state.classes("bs-muted" if problem == "cancelled" else "bs-error")
        return None


async def _race(compute: Callable[[StopSignal], T], stop: StopSignal, cancelled: asyncio.Event) -> T:
    """The result of a computation on another thread. Raises Stopped as soon as it is cancelled: what is being
    factorized then ends unseen."""
    work = asyncio.create_task(asyncio.to_thread(compute, stop))
    waiter = asyncio.create_task(cancelled.wait())
    try:
        await asyncio.wait({work, waiter}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
    if work.done():
        return work.result()
    work.add_done_callback(lambda task: task.cancelled() or task.exception())
    raise Stopped
