"""The pictures of a checkpoint, of how two differ, and of spectra: what is measured for them, and which tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.comparison import Difference
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.looking.histograms import histograms_of, histograms_on_one_span
from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.looking.stats import stats_of
from brainsurgery_jax.nametree import layer_of, module_of
from brainsurgery_jax.numerics.moments import TensorStats
from brainsurgery_jax.numerics.rollups import relative_change, sort_differences
from brainsurgery_jax.plots.canvas import Picture, compose, show_label, write_figure
from brainsurgery_jax.plots.pictures import choose_panels, draw_cells, draw_energy, draw_histograms

MOST_CHANGED = 6
"""Tensors of which histograms before and after are drawn: those that changed most."""


def picture_checkpoint(chosen: Checkpoint, found: Mapping[str, TensorStats], stop: StopSignal = NEVER) -> list[Picture]:
    """The root mean square by layer and module, and histograms of one tensor of each module."""
    if not found:
        raise ValueError(f"no tensor of real numbers of {chosen.path} was chosen, so there is nothing to draw")
    sums: dict[tuple[str, int | None], list[float]] = {}
    for name, one in found.items():
        cell = sums.setdefault((module_of(name), layer_of(name)), [0.0, 0.0])
        cell[0] += one.norm**2
        cell[1] += one.size
    cells = {key: sqrt(square / size) for key, (square, size) in sums.items()}
    histograms = histograms_of(chosen, choose_panels(list(found)), stop=stop)
    return [draw_cells(cells, "root mean square"), draw_histograms({chosen.path: histograms})]


def picture_difference(
    found: Difference, left: Checkpoint, right: Checkpoint, stop: StopSignal = NEVER
) -> list[Picture]:
    """The relative change by layer and module, and histograms before and after of what changed most."""
    cells = relative_change(found.differing)
    measured = (one for one in found.differing if one.figures is not None)
    names = [one.name for one in sort_differences(measured, "change")][:MOST_CHANGED]
    if not names:
        raise ValueError(f"no tensor of {found.left} and {found.right} differs in value, so there is nothing to draw")
    before, after = histograms_on_one_span(left, right, names, stop=stop)
    maps = [draw_cells(cells, "relative change")] if cells else []
    labels = f"left: {show_label(found.left)}", f"right: {show_label(found.right)}"
    return [*maps, draw_histograms(dict(zip(labels, (before, after), strict=True)))]


def plot_checkpoint(chosen: Checkpoint, path: str) -> None:
    """Draw a checkpoint to a file. Raises StoreError, and ValueError if there is nothing to draw."""
    _write(picture_checkpoint(chosen, stats_of(chosen)), path, chosen.path)


def plot_difference(found: Difference, left: Checkpoint, right: Checkpoint, path: str) -> None:
    """Draw how two checkpoints differ to a file. Raises StoreError, and ValueError if nothing does."""
    _write(picture_difference(found, left, right), path, f"{found.left} and {found.right}")


def plot_spectra(spectra: Mapping[str, Spectrum], path: str, title: str) -> None:
    """Draw the energy of matrices against the rank to a file. Raises StoreError."""
    _write([draw_energy(spectra)], path, title)


def _write(pictures: Iterable[Picture], path: str, title: str) -> None:
    write_figure(compose(list(pictures)), path, title)
