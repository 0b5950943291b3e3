"""Two open checkpoints beside each other: a table that can be sorted, and a heat map of change by layer and module."""

from __future__ import annotations

from asyncio import to_thread

from nicegui import ui

from brainsurgery_jax.comparison import Difference, TensorDifference
from brainsurgery_jax.comparison.rollups import relative_change
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.web.workbench import Workbench

MOST_ROWS = 5000
"""The most tensors that the table holds."""

_COLUMNS = ("tensor", "left", "right", "largest", "relative", "cosine")


class CompareView:
    """The view that compares."""

    def __init__(self, bench: Workbench):
        self._bench = bench
        with ui.row(align_items="end"):
            self._left = ui.select([], label="Left").style("min-width: 14rem")
            self._right = ui.select([], label="Right").style("min-width: 14rem")
            ui.button("Compare", on_click=self._compare).props("no-caps color=primary")
        self._told = ui.label("").props("role=status")
        self._result = ui.column().style("width: 100%")
        self.refresh()

    def refresh(self) -> None:
        """Offer the checkpoints that are open."""
        paths = list(self._bench.checkpoints)
        for element, at in ((self._left, 0), (self._right, 1)):
            kept = element.value if element.value in paths else (paths[at] if len(paths) > at else None)
            element.set_options(paths, value=kept)
        if len(paths) < 2:
            self._told.set_text("Open two checkpoints in Explore to compare them.")

    async def _compare(self) -> None:
        left, right = self._left.value, self._right.value
        if not left or not right:
            self._told.set_text("Choose two checkpoints.")
            return
        self._told.set_text("comparing ...")
        self._result.clear()
        try:
            found = await to_thread(self._bench.compare, left, right)
        except (StoreError, PlanError, ValueError) as bad:
            self._told.set_text(str(bad))
            return
        self._told.set_text(
            f"{len(found.differing):,} differ, {found.equal:,} equal, {len(found.only_left):,} only left, "
            f"{len(found.only_right):,} only right"
        )
        with self._result:
            _draw_table(found)
            _draw_heat_map(found)


def _draw_table(found: Difference) -> None:
    rows = [_row(one) for one in found.differing[:MOST_ROWS]]
    rows += [{"tensor": name, "left": str(aval), "right": "-"} for name, aval in found.only_left.items()]
    rows += [{"tensor": name, "left": "-", "right": str(aval)} for name, aval in found.only_right.items()]
    columns = [{"name": key, "label": key, "field": key, "sortable": True, "align": "left"} for key in _COLUMNS]
    ui.table(rows=rows, columns=columns, row_key="tensor", pagination=15).props(
        'dense flat aria-label="Differences"'
    ).classes("bs-mono").style("max-width: 100%")


def _row(one: TensorDifference) -> dict[str, object]:
    row: dict[str, object] = {"tensor": one.name, "left": str(one.left), "right": str(one.right)}
    if one.figures is not None:
        figures = {"largest": one.figures.largest, "relative": one.figures.relative, "cosine": one.figures.cosine}
        # NaN and infinity are no JSON: they are shown as text.
        row |= {key: float(f"{value:.6g}") if abs(value) < float("inf") else str(value)
                for key, value in figures.items() if value is not None}  # fmt: skip
    return row


def _draw_heat_map(found: Difference) -> None:
    cells = {(module, layer): value for (module, layer), value in relative_change(found).items() if layer is not None}
    if not cells:
        return
    modules = sorted({module for module, _ in cells})
    layers = sorted({layer for _, layer in cells})
    row, column = ({key: at for at, key in enumerate(keys)} for keys in (modules, layers))
    data = [[column[layer], row[module], value] for (module, layer), value in cells.items()]
    top = max(cells.values()) or 1.0
    ui.label("Relative change by layer and module").props("role=heading aria-level=2").style("font-weight: 600")
    ui.echart({
        "aria": {"enabled": True}, "tooltip": {}, "animation": False, "grid": {"containLabel": True, "bottom": 60},
        "xAxis": {"type": "category", "data": [str(layer) for layer in layers], "name": "layer"},
        "yAxis": {"type": "category", "data": modules, "axisLabel": {"width": 260, "overflow": "truncate"}},
        "visualMap": {"min": 0, "max": top, "orient": "horizontal", "left": "center", "bottom": 0,
                      "inRange": {"color": ["#440154", "#31688e", "#35b779", "#fde725"]}},
        "series": [{"type": "heatmap", "data": data}],
    }).style(f"width: 100%; height: {8 + 1.6 * len(modules)}rem").props(
        'role=img aria-label="Relative change by layer and module"'
    )  # fmt: skip
