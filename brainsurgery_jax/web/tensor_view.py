"""One tensor: its statistics, and on demand a histogram, a heat map with zoom, and a spectrum."""

from __future__ import annotations

from nicegui import ui

from brainsurgery_jax.looking.heat_maps import flat_shape
from brainsurgery_jax.looking.histograms import Histogram
from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.numerics.moments import TensorStats
from brainsurgery_jax.web.charts import draw_energy, draw_histograms
from brainsurgery_jax.web.labels import name_image
from brainsurgery_jax.web.opened import OpenCheckpoint, Opened
from brainsurgery_jax.web.waiting import Waiting
from brainsurgery_jax.web.zoom_view import Panel, ZoomView

HOW_MANY = {64: "64 largest", 256: "256 largest", 0: "all"}
"""How many singular values are offered; 0 for all."""


class TensorView:
    """What is known of a tensor, in a card. Each part is measured when it is asked for."""

    def __init__(self, opened: Opened, one: OpenCheckpoint, name: str, waiting: Waiting):
        self._opened, self._one, self._name, self._waiting = opened, one, name, waiting
        self._aval = one.avals[name]

    def draw(self, found: TensorStats | None) -> None:
        """Draw the statistics, and buttons for all else."""
        aval = self._aval
        with ui.card().style("width: 100%"):
            ui.label(self._name).classes("bs-mono").props("role=heading aria-level=2").style("font-weight: 600")
            ui.label(f"{aval} in {self._one.path}").classes("bs-muted")
            if found is None:
                ui.label("A tensor that is empty, complex or packed has no statistics here.")
                return
            show_statistics(found)
            with ui.row(align_items="center"):
                ui.button("Histogram", on_click=self._show_histogram).props("no-caps")
                ui.button("Heat map", on_click=self._show_heat_map).props("no-caps")
                if aval.dtype.is_float and len(aval.shape) == 2:
                    ui.button("Spectrum", on_click=self._show_spectrum).props("no-caps")
                    self._count = (
                        ui.select(HOW_MANY, label="Singular values", value=64)
                        .props("dense outlined")
                        .style("min-width: 10rem")
                    )
            self._histogram = ui.column().style("width: 100%")
            self._heat_map = ui.column().style("width: 100%")
            self._spectrum = ui.column().style("width: 100%")

    async def _show_histogram(self) -> None:
        place, path, name = self._histogram, self._one.path, self._name
        place.clear()
        found = await self._waiting.run(
            place, "counting the values", lambda stop: self._opened.histogram(path, name, stop)
        )
        if found is not None and not place.is_deleted:
            with place:
                show_histograms({name: found})

    async def _show_heat_map(self) -> None:
        path, name = self._one.path, self._name
        self._heat_map.clear()
        with self._heat_map:
            view = ZoomView([Panel(self._name, lambda window, stop: self._opened.heat_map(path, name, window, stop))],
                            flat_shape(self._aval), self._waiting)  # fmt: skip
        await view.show()

    async def _show_spectrum(self) -> None:
        place, path, name, most = self._spectrum, self._one.path, self._name, int(self._count.value or 0) or None
        place.clear()
        found = await self._waiting.run(
            place, "computing the singular values", lambda stop: self._opened.spectrum(path, name, most, stop)
        )
        if found is not None and not place.is_deleted:
            with place:
                show_spectrum(name, found)


def show_statistics(found: TensorStats) -> None:
    """A table of one row."""
    shown = {
        "min": found.min, "max": found.max, "mean": found.mean, "std": found.std, "norm": found.norm,
        "zeros": found.zeros, "NaN": found.nans, "infinite": found.infs,
    }  # fmt: skip
    columns = [{"name": key, "label": key, "field": key, "align": "right"} for key in shown]
    row = {key: f"{value:,}" if isinstance(value, int) else f"{value:.6g}" for key, value in shown.items()}
    ui.table(rows=[row], columns=columns).props("dense flat aria-label=Statistics").style("max-width: 100%")


def show_histograms(sides: dict[str, Histogram]) -> None:
    """The histograms of one tensor on one or more sides, and their quantiles."""
    name_image(ui.echart(draw_histograms(sides)), "Histogram").style("width: 100%; height: 16rem")
    shares = list(next(iter(sides.values())).quantiles)
    heads = [("side", ""), *((str(share), _name_share(share)) for share in shares)]
    columns = [{"name": key, "label": label, "field": key, "align": "right"} for key, label in heads]
    rows = [
        {"side": side if len(sides) > 1 else "quantiles"}
        | {str(share): f"{value:.4g}" for share, value in one.quantiles.items()}
        for side, one in sides.items()
    ]
    ui.table(rows=rows, columns=columns, row_key="side").props("dense flat aria-label=Quantiles").style(
        "max-width: 100%"
    )
    for side, one in sides.items():
        lost = [f"{count:,} {what}" for count, what in ((one.nans, "NaN"), (one.infs, "infinite")) if count]
        if lost:
            ui.label(f"{side}: {', '.join(lost)}").classes("bs-error")


def _name_share(share: float) -> str:
    return {0.0: "min", 0.5: "median", 1.0: "max"}.get(share, f"{share:.0%}")


def show_spectrum(name: str, found: Spectrum) -> None:
    """The captured energy against the rank, with a slider that tells what a rank keeps and takes."""
    if not found.is_finite:
        ui.label("The matrix holds NaN or infinity, so it has no spectrum.").classes("bs-error")
        return
    count, (rows, columns) = len(found.values), found.shape
    name_image(ui.echart(draw_energy({"captured energy": found})), f"Energy against rank of {name}").style(
        "width: 100%; height: 20rem"
    )
    told = ui.label().props("role=status")
    effective = f"effective rank {found.effective_rank:.1f}" if found.is_complete else f"{count:,} values computed"

    def tell(rank: int) -> None:
        told.set_text(
            f"rank {rank:,} of {min(rows, columns):,} captures {float(found.energy[rank - 1]):.4%} of the energy in "
            f"{rank * (rows + columns):,} numbers instead of {rows * columns:,}; {effective}"
        )

    start = min(max(found.rank_of(0.9) or count, 1), count)
    ui.slider(min=1, max=count, value=start, on_change=lambda e: tell(int(e.value or 1))).props('aria-label="Rank"')
    tell(start)
