"""Heat maps side by side of one part of a tensor, with zoom from the whole to single values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nicegui import events, ui

from brainsurgery_jax._lazy import np
from brainsurgery_jax.engine.events import StopSignal
from brainsurgery_jax.looking.heat_maps import HeatMap, Window
from brainsurgery_jax.web.charts import FEW, draw_heat_map
from brainsurgery_jax.web.labels import name_image
from brainsurgery_jax.web.waiting import Waiting

STEP = 4
"""How many times smaller each side of the window gets by a click."""


class Panel(NamedTuple):
    """One of the heat maps: its title, how it is measured, and the panels whose scale of colours it shares."""

    title: str
    measure: Callable[[Window | None, StopSignal], HeatMap]
    scale: str = ""


class ZoomView:
    """Panels of the same part of tensors of one shape: rows and columns, where all axes but the last are rows."""

    def __init__(self, panels: list[Panel], shape: tuple[int, int], waiting: Waiting):
        self._panels, self._shape, self._waiting = panels, shape, waiting
        self._whole: Window = (0, shape[0]), (0, shape[1])
        self._window: Window = self._whole
        with ui.row(align_items="end"):
            self._ends = [ui.number(label, min=0, precision=0, format="%d").props("dense").style("width: 7rem")
                          for label in ("First row", "End row", "First column", "End column")]  # fmt: skip
            ui.button("Show", on_click=self._show_typed).props("dense no-caps")
            ui.button("Zoom in", on_click=self._zoom_in).props("dense no-caps flat")
            ui.button("Zoom out", on_click=self._zoom_out).props("dense no-caps flat")
            ui.button("Whole", on_click=lambda: self.show(self._whole)).props("dense no-caps flat")
        self._told = ui.label("").props("role=status").classes("bs-muted")
        self._place = ui.element("div").classes("bs-columns")

    async def show(self, window: Window | None = None) -> None:
        """Measure and draw a part of the tensors, at first all of them."""
        self._window = self._whole if window is None else window
        for element, end in zip(self._ends, (*self._window[0], *self._window[1]), strict=True):
            element.set_value(end)
        self._place.clear()
        asked, measured = self._window, [panel.measure for panel in self._panels]
        found = await self._waiting.run(self._place, "reading", lambda stop: [one(asked, stop) for one in measured])
        if found is None or self._place.is_deleted or asked != self._window:
            return
        (top, bottom), (left, right) = asked
        cells = found[0].mean.shape
        each = "each cell is a value" if cells == (bottom - top, right - left) else "each cell is a mean"
        self._told.set_text(
            f"rows {top:,} to {bottom - 1:,} of {self._shape[0]:,}, columns {left:,} to {right - 1:,} of "
            f"{self._shape[1]:,}; {each}. Click a cell to zoom in."
        )
        with self._place:
            for panel, one in zip(self._panels, found, strict=True):
                self._draw(panel, one, self._scale(panel, found))

    def _scale(self, panel: Panel, found: list[HeatMap]) -> float:
        alike = [one for other, one in zip(self._panels, found, strict=True) if other.scale == panel.scale]
        finite = [np.abs(one.mean[np.isfinite(one.mean)]) for one in alike]
        return max((float(values.max()) for values in finite if values.size), default=0.0)

    def _draw(self, panel: Panel, found: HeatMap, most: float) -> None:
        with ui.column().classes("bs-panel"):
            title = ui.label(panel.title).props("role=heading aria-level=3")
            title.style("font-weight: 600; overflow-wrap: anywhere")
            chart = ui.echart(draw_heat_map(found, most), on_point_click=lambda e: self._zoom_at(found, e))
            name_image(chart, f"Heat map: {panel.title}").style("width: 100%; height: 24rem")
            finite = found.mean[np.isfinite(found.mean)]
            blank = found.mean.size - finite.size
            told = f"cells from {finite.min():.4g} to {finite.max():.4g}" if finite.size else "no finite cell"
            largest = found.absmax[np.isfinite(found.absmax)]
            told += f", largest magnitude {largest.max():.4g}" if largest.size else ""
            ui.label(told + (f", {blank:,} not finite" if blank else "")).classes("bs-muted")

    async def _zoom_at(self, found: HeatMap, event: events.EChartPointClickEventArguments) -> None:
        if isinstance(event.value, list | tuple) and len(event.value) >= 2:
            x, y = int(event.value[0]), int(event.value[1])
            middle = (
                (int(found.rows[y]) + int(found.rows[y + 1])) // 2,
                (int(found.columns[x]) + int(found.columns[x + 1])) // 2,
            )
            await self.show(_around(self._shape, self._window, middle, 1 / STEP))

    async def _zoom_in(self) -> None:
        await self.show(_around(self._shape, self._window, _middle(self._window), 1 / STEP))

    async def _zoom_out(self) -> None:
        await self.show(_around(self._shape, self._window, _middle(self._window), STEP))

    async def _show_typed(self) -> None:
        top, bottom, left, right = (int(element.value or 0) for element in self._ends)
        await self.show((_clip(top, bottom, self._shape[0]), _clip(left, right, self._shape[1])))


def _middle(window: Window) -> tuple[int, int]:
    (top, bottom), (left, right) = window
    return (top + bottom) // 2, (left + right) // 2


def _around(shape: tuple[int, int], window: Window, middle: tuple[int, int], share: float) -> Window:
    """A window around a place whose sides are so many times those of another, within the tensor."""
    rows, columns = (
        _span(size, round((stop - start) * share), at)
        for size, (start, stop), at in zip(shape, window, middle, strict=True)
    )
    return rows, columns


def _span(size: int, wanted: int, middle: int) -> tuple[int, int]:
    length = min(size, max(wanted, FEW))
    start = min(max(middle - length // 2, 0), size - length)
    return start, start + length


def _clip(start: int, stop: int, size: int) -> tuple[int, int]:
    start = min(max(start, 0), size - 1)
    return start, min(max(stop, start + 1), size)
