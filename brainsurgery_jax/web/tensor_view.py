"""One tensor: its statistics, and on demand its spectrum with the energy that each rank captures."""

from __future__ import annotations

from asyncio import to_thread

from nicegui import ui

from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.numerics.moments import TensorStats
from brainsurgery_jax.web.workbench import OpenCheckpoint, Workbench

MOST_POINTS = 512
"""The most points of a curve that are drawn."""


def show_tensor(bench: Workbench, one: OpenCheckpoint, name: str, found: TensorStats | None) -> None:
    """Draw what is known of a tensor."""
    aval = one.avals[name]
    with ui.card().style("width: 100%"):
        ui.label(name).classes("bs-mono").props("role=heading aria-level=2").style("font-weight: 600")
        ui.label(f"{aval} in {one.path}").classes("bs-muted")
        if found is None:
            ui.label("A tensor that is empty, complex or packed has no statistics here.")
        else:
            _show_statistics(found)
        if aval.dtype.is_float and len(aval.shape) == 2 and aval.size:
            holder = ui.column().style("width: 100%")

            async def compute() -> None:
                with holder:
                    told = ui.label("computing the singular values ...").props("role=status")
                try:
                    spectrum = await to_thread(bench.spectrum, one.path, name)
                except (StoreError, PlanError, ValueError) as bad:
                    told.set_text(str(bad))
                    return
                holder.clear()
                with holder:
                    _show_spectrum(spectrum)

            ui.button("Spectrum", on_click=compute).props("no-caps")
            holder.move(target_index=-1)


def _show_statistics(found: TensorStats) -> None:
    shown = {
        "min": found.min, "max": found.max, "mean": found.mean, "std": found.std, "norm": found.norm,
        "zeros": found.zeros, "NaN": found.nans, "infinite": found.infs,
    }  # fmt: skip
    columns = [{"name": key, "label": key, "field": key, "align": "right"} for key in shown]
    row = {key: f"{value:,}" if isinstance(value, int) else f"{value:.6g}" for key, value in shown.items()}
    ui.table(rows=[row], columns=columns).props("dense flat aria-label=Statistics").style("max-width: 100%")


def _show_spectrum(found: Spectrum) -> None:
    if found.rank_of(1) is None:
        ui.label("The matrix holds NaN or infinity, so it has no spectrum.").classes("bs-error")
        return
    count = len(found.values)
    step = max(1, count // MOST_POINTS)
    ranks = list(range(0, count, step))
    curves = [
        {"name": "captured energy", "type": "line", "showSymbol": False,
         "data": [[at + 1, float(found.energy[at])] for at in ranks]},
        {"name": "singular value / largest", "type": "line", "showSymbol": False,
         "data": [[at + 1, float(found.values[at] / (found.values[0] or 1.0))] for at in ranks]},
    ]  # fmt: skip
    ui.echart({
        "aria": {"enabled": True}, "legend": {"top": 0}, "tooltip": {"trigger": "axis"}, "animation": False,
        "xAxis": {"type": "value", "name": "rank", "min": 1, "max": count}, "yAxis": {"type": "value", "max": 1},
        "series": curves,
    }).style("width: 100%; height: 20rem").props('role=img aria-label="Energy against rank"')  # fmt: skip
    told = ui.label().props("role=status")

    def tell(rank: int) -> None:
        energy = float(found.energy[rank - 1])
        rows, columns = found.shape
        told.set_text(
            f"rank {rank:,} of {count:,} captures {energy:.4%} of the energy in "
            f"{rank * (rows + columns):,} numbers instead of {rows * columns:,}; "
            f"effective rank {found.effective_rank:.1f}"
        )

    start = min(found.rank_of(0.9) or 1, count)
    ui.slider(min=1, max=count, value=start, on_change=lambda e: tell(int(e.value or 1))).props('aria-label="Rank"')
    tell(start)
