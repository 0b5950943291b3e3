"""What is drawn: values by layer and module, histograms, and captured energy against rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import TYPE_CHECKING

from brainsurgery_jax._lazy import np
from brainsurgery_jax.looking.histograms import Histogram
from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.nametree import layer_of, module_of
from brainsurgery_jax.plots.canvas import Picture, add_legend, add_panels, set_ticks, set_title, size_of_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import FigureBase

Cells = Mapping[tuple[str, int | None], float]
"""Values by module and layer."""

MOST_MODULES = 60
"""Rows of a heat map; the largest are drawn."""

MOST_PANELS = 12
FAR_APART = 8
"""The largest value is so many times the median, where colours are in proportion to logarithms."""

COLOURS = "#3b6fb6", "#d9822b"
"""Of the left and the right checkpoint: told apart by people who see few colours."""


def draw_cells(cells: Cells, title: str) -> Picture:
    """A heat map of values by layer across and by module down. Values that are not finite are left blank."""
    tops: dict[str, float] = {}
    for (module, _), value in cells.items():
        tops[module] = max(tops.get(module, 0.0), value if isfinite(value) else inf)
    modules = list(tops)
    if len(modules) > MOST_MODULES:
        title += f" ({MOST_MODULES} of {len(modules):,} modules, those with the largest)"
        kept = set(sorted(modules, key=lambda module: -tops[module])[:MOST_MODULES])
        modules = [module for module in modules if module in kept]
    layers = sorted({layer for _, layer in cells}, key=lambda layer: -1 if layer is None else layer)
    grid = np.full((len(modules), len(layers)), np.nan)
    for (module, layer), value in cells.items():
        if module in modules and isfinite(value):
            grid[modules.index(module), layers.index(layer)] = value

    def draw(figure: FigureBase) -> None:
        (axes,) = add_panels(figure, 1)
        image = axes.imshow(grid, cmap="viridis", aspect="auto", norm=_scale(grid))
        axes.set_facecolor("#eceef0")
        axes.spines[:].set_visible(False)
        set_ticks(axes, ["none" if layer is None else str(layer) for layer in layers], modules)
        axes.set_xlabel("layer")
        set_title(axes, title, most=120)
        figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)

    return Picture((min(14.0, 5.5 + 0.3 * len(layers)), 1.2 + 0.24 * len(modules)), draw)


def _scale(grid: np.ndarray) -> Normalize:
    """Colours from 0 on; in proportion to the logarithm where values lie so far apart that most would look like 0."""
    from matplotlib.colors import LogNorm, Normalize

    present = grid[np.isfinite(grid)]
    positive = present[present > 0]
    if positive.size and float(np.median(positive)) * FAR_APART < float(positive.max()):
        return LogNorm(float(positive.min()), float(positive.max()), clip=True)
    return Normalize(0.0, float(positive.max()) if positive.size else 1.0)


def draw_histograms(sides: Mapping[str, Mapping[str, Histogram]]) -> Picture:
    """The histograms of tensors, a panel each, those of several checkpoints in one. `sides`: by checkpoint and name."""
    names = list(dict.fromkeys(name for found in sides.values() for name in found))[:MOST_PANELS]

    def draw(figure: FigureBase) -> None:
        panels = add_panels(figure, len(names))
        for name, axes in zip(names, panels, strict=True):
            for colour, (side, found) in zip(COLOURS, sides.items(), strict=False):
                if name in found:
                    _draw_histogram(axes, found[name], colour, side)
            set_title(axes, name)
            axes.tick_params(labelsize=7)
            axes.locator_params(nbins=5)
            axes.set_ylim(bottom=0)
        if panels and len(sides) > 1:  # above the panels: inside, it would cover a curve
            add_legend(figure, panels[0])

    width, height = size_of_panels(len(names))
    return Picture((width, height + (0.3 if len(sides) > 1 else 0.0)), draw)


def _draw_histogram(axes: Axes, found: Histogram, colour: str, side: str) -> None:
    axes.stairs(found.counts, found.edges, fill=True, color=colour, alpha=0.35)
    axes.stairs(found.counts, found.edges, color=colour, linewidth=1, label=side)
    if lost := [f"{count:,} {what}" for count, what in ((found.nans, "NaN"), (found.infs, "infinite")) if count]:
        axes.text(0.98, 0.9, ", ".join(lost), transform=axes.transAxes, ha="right", color="#a40e26", fontsize=7)


def draw_energy(spectra: Mapping[str, Spectrum]) -> Picture:
    """The captured energy against the rank: a panel for each module, a line for each layer. Matrices of zeros, and
    those that are not finite, have none; raises ValueError if there are no others."""
    groups: dict[str, dict[str, Spectrum]] = {}
    for name, one in spectra.items():
        if not one.is_finite or not one.values[0]:  # a difference of equal matrices has no energy to capture
            continue
        groups.setdefault(module_of(name), {})[name] = one
    if not groups:
        raise ValueError("all matrices are zero or not finite, so there is nothing to draw")
    shown = dict(list(groups.items())[:MOST_PANELS])

    def draw(figure: FigureBase) -> None:
        for (module, members), axes in zip(shown.items(), add_panels(figure, len(shown)), strict=True):
            _draw_curves(axes, members)
            set_title(axes, module)
            axes.set_ylim(0, 1.02)
            axes.set_xlim(left=0)
            axes.set_xlabel("rank", fontsize=7)
            axes.set_ylabel("captured energy", fontsize=7)
            axes.tick_params(labelsize=7)

    return Picture(size_of_panels(len(shown)), draw)


def _draw_curves(axes: Axes, members: Mapping[str, Spectrum]) -> None:
    layers = sorted({layer for name in members if (layer := layer_of(name)) is not None})
    for name, one in members.items():
        layer = layer_of(name)
        share = 0.0 if layer is None or len(layers) < 2 else layers.index(layer) / (len(layers) - 1)
        ranks = np.arange(len(one.energy) + 1)
        axes.plot(ranks, [0.0, *one.energy], color=_colour(share), linewidth=1)
        first_and_last = layer is not None and len(layers) > 1 and layer in (layers[0], layers[-1])
        if first_and_last:
            axes.plot([], [], color=_colour(share), label=f"layer {layer}")
    if len(layers) > 1:
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=7, loc="lower right")


def _colour(share: float) -> tuple[float, float, float, float]:
    """A colour of viridis without its lightest end, which is not seen on white."""
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["viridis"](0.85 * share)
    return float(red), float(green), float(blue), float(alpha)


def choose_panels(names: Sequence[str]) -> list[str]:
    """Of each module one tensor, in order: those whose histograms are drawn."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(module_of(name), name)
    return list(first.values())[:MOST_PANELS]
