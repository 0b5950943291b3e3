"""Two open checkpoints: a table that can be sorted, a heat map of change, and one tensor on both sides."""

from __future__ import annotations

from functools import partial

from nicegui import events, ui

from brainsurgery_jax.comparison import Difference, TensorDifference
from brainsurgery_jax.looking.chosen import has_numbers
from brainsurgery_jax.looking.heat_maps import flat_shape
from brainsurgery_jax.numerics.rollups import relative_change, sort_differences
from brainsurgery_jax.web.charts import draw_change
from brainsurgery_jax.web.labels import name_image
from brainsurgery_jax.web.opened import Opened
from brainsurgery_jax.web.tensor_view import show_histograms
from brainsurgery_jax.web.waiting import Waiting
from brainsurgery_jax.web.workbench import Workbench
from brainsurgery_jax.web.zoom_view import Panel, ZoomView

MOST_ROWS = 5000
"""The most tensors that the table holds: those that changed most."""

_COLUMNS = ("tensor", "left", "right", "largest", "relative", "cosine", "rank")


class CompareView:
    """The view that compares."""

    def __init__(self, key: str, bench: Workbench):
        self._key, self._bench, self._waiting = key, bench, Waiting()
        with ui.row(align_items="end"):
            self._left = ui.select([], label="Left").style("min-width: 14rem")
            self._right = ui.select([], label="Right").style("min-width: 14rem")
            self._pattern = ui.input("Only names that match").style("min-width: 12rem")
            self._ranks = ui.checkbox("Ranks of the differences")
            ui.button("Compare", on_click=self._compare).props("no-caps color=primary")
            ui.button("Report", on_click=self._write_report).props("no-caps flat")
        self._told = ui.label("").props("role=status")
        self._result = ui.column().style("width: 100%")
        self._zoom = ui.column().style("width: 100%")
        self.refresh()

    def refresh(self) -> None:
        """Offer the checkpoints that are open."""
        paths = list(self._bench.opened)
        for element, at in ((self._left, 0), (self._right, 1)):
            kept = element.value if element.value in paths else (paths[at] if len(paths) > at else None)
            element.set_options(paths, value=kept)
        if len(paths) < 2:
            self._told.set_text("Open two checkpoints in Explore, or try the plan, to compare them.")

    async def _compare(self) -> None:
        left, right = self._left.value, self._right.value
        if not left or not right:
            self._told.set_text("Choose two checkpoints.")
            return
        self._told.set_text("")
        self._waiting.cancel()
        self._result.clear()
        self._zoom.clear()
        pattern, ranks = str(self._pattern.value or ""), bool(self._ranks.value)
        found = await self._waiting.run(
            self._result, "comparing",
            lambda stop: self._bench.opened.compare(left, right, pattern, ranks=ranks, stop=stop),
        )  # fmt: skip
        if found is None:
            return
        self._told.set_text(
            f"{len(found.differing):,} differ, {found.equal:,} equal, {len(found.only_left):,} only left, "
            f"{len(found.only_right):,} only right"
        )
        with self._result:
            self._draw_table(found, left, right)
            _draw_cells(found)

    async def _write_report(self) -> None:
        left, right = self._left.value, self._right.value
        if left and right:
            made = await self._waiting.run(
                self._zoom, "writing the report", lambda stop: self._bench.write_report(left, right, stop)
            )
            if made is not None:
                ui.download(f"/report/{self._key}")

    def _draw_table(self, found: Difference, left: str, right: str) -> None:
        rows = [_row(one) for one in sort_differences(found.differing, "change")[:MOST_ROWS]]
        rows += [{"tensor": name, "left": str(aval), "right": "-"} for name, aval in found.only_left.items()]
        rows += [{"tensor": name, "left": "-", "right": str(aval)} for name, aval in found.only_right.items()]
        columns = [{"name": key, "label": key, "field": key, "sortable": True, "align": "left"} for key in _COLUMNS]
        table = ui.table(rows=rows, columns=columns, row_key="tensor", pagination=15).props(
            'dense flat aria-label="Differences"'
        )
        table.classes("bs-mono").style("max-width: 100%")
        # A button, so that the keyboard reaches it. The name is text: the slot interpolates it.
        table.add_slot("body-cell-tensor", """
            <q-td :props="props"><q-btn flat dense no-caps align="left" :label="props.value"
                @click="() => $parent.$emit('zoom', props.value)" /></q-td>""")  # fmt: skip
        table.on("zoom", partial(self._take_zoom, found, left, right))

    async def _take_zoom(self, found: Difference, left: str, right: str, event: events.GenericEventArguments) -> None:
        await self._show(found, left, right, str(event.args))

    async def _show(self, found: Difference, left: str, right: str, name: str) -> None:
        """One tensor on both sides: figures, histograms, and three heat maps of the same part."""
        self._waiting.cancel()
        self._zoom.clear()
        one = next((one for one in found.differing if one.name == name), None)
        with self._zoom:
            ui.label(name).classes("bs-mono").props("role=heading aria-level=2").style("font-weight: 600")
            if (
                one is None
                or one.left.shape != one.right.shape
                or not (has_numbers(one.left) and has_numbers(one.right))
            ):
                ui.label(
                    "It is on one side alone, or of other shapes, or holds no real numbers: there is nothing to show."
                )
                return
            ui.label(_describe(one)).classes("bs-mono")
            view = ZoomView(_panels(self._bench.opened, left, right, name), flat_shape(one.left), self._waiting)
            histograms = ui.column().style("width: 100%")
        self._zoom.run_method("scrollIntoView")
        await view.show()
        opened, labels = self._bench.opened, (f"left: {left}", f"right: {right}")
        sides = await self._waiting.run(
            histograms, "counting the values",
            lambda stop: dict(zip(labels, opened.histograms(left, right, name, stop), strict=True)),
        )  # fmt: skip
        if sides is not None and not histograms.is_deleted:
            with histograms:
                show_histograms(sides)


def _panels(opened: Opened, left: str, right: str, name: str) -> list[Panel]:
    return [
        Panel(f"left: {left}", lambda window, stop: opened.heat_map(left, name, window, stop), "values"),
        Panel(f"right: {right}", lambda window, stop: opened.heat_map(right, name, window, stop), "values"),
        Panel(
            "right - left", lambda window, stop: opened.heat_map_of_change(left, right, name, window, stop), "change"
        ),
    ]


def _describe(one: TensorDifference) -> str:
    if one.figures is None:
        return f"{one.left} and {one.right}"
    figures = {"relative": one.figures.relative, "cosine": one.figures.cosine, "rank": one.effective_rank}
    told = [f"{key} {value:.6g}" for key, value in figures.items() if value is not None]
    place = "" if one.index is None else f" at {list(one.index)}"
    return f"{one.figures.differing:,} elements differ, largest {one.figures.largest:.6g}{place}, " + ", ".join(told)


def _row(one: TensorDifference) -> dict[str, object]:
    row: dict[str, object] = {"tensor": one.name, "left": str(one.left), "right": str(one.right)}
    figures: dict[str, float | None] = {"rank": one.effective_rank}
    if one.figures is not None:
        figures |= {"largest": one.figures.largest, "relative": one.figures.relative, "cosine": one.figures.cosine}
    # NaN and infinity are no JSON: they are shown as text.
    return row | {key: float(f"{value:.6g}") if abs(value) < float("inf") else str(value)
                  for key, value in figures.items() if value is not None}  # fmt: skip


def _draw_cells(found: Difference) -> None:
    if not (cells := relative_change(found.differing)):
        return
    modules = len({module for module, _ in cells})
    title = "Relative change by layer and module"
    ui.label(title).props("role=heading aria-level=2").style("font-weight: 600")
    name_image(ui.echart(draw_change(cells)), title).style(f"width: 100%; height: {8 + 1.6 * modules}rem")
