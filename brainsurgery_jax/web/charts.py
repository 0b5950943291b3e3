"""Charts as options of ECharts: plain data, made of what the library measured.

Names of tensors are hostile until shown otherwise: tooltips are drawn as text, not as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite

from brainsurgery_jax.looking.heat_maps import HeatMap
from brainsurgery_jax.looking.histograms import Histogram
from brainsurgery_jax.looking.spectra import Spectrum

Options = dict[str, object]

MOST_POINTS = 512
"""The most points of a curve that are drawn."""

MOST_LINES = 200
"""The most curves of a chart."""

FEW = 12
"""A grid of at most so many cells on each side shows their values."""

MOST_ROW_LABELS = 16
"""The most rows of a heat map that are named: more names would cover each other."""

# The page inverts the lightness of charts in the dark: on either ground what is small looks like the ground, what is
# large stands out, and lines have a contrast of at least 3.9.
LINES = ["#3b6fb6", "#c8641b", "#2b8a57", "#8e5bb5", "#b5446e", "#5f6f7f", "#857414", "#1b8596"]
DIVERGING = ["#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"]
SEQUENTIAL = ["#dbe7f3", "#8fbcdc", "#3a86be", "#0a3a73"]
_COMMON: Options = {"animation": False, "color": LINES}
_TOOLTIP = {"renderMode": "richText", "confine": True}


def draw_heat_map(found: HeatMap, most: float) -> Options:
    """The cells of a heat map, in colours from -most to most. Cells that are not finite stay blank."""
    down, across = found.mean.shape
    cells = [
        [x, y, float(f"{value:.6g}")]
        for y, line in enumerate(found.mean.tolist())
        for x, value in enumerate(line)
        if isfinite(value)
    ]
    series: Options = {
        "type": "heatmap", "data": cells, "dimensions": ["columns", "rows", "mean"], "progressive": 0,
        "encode": {"x": 0, "y": 1, "value": 2, "tooltip": [1, 0, 2]},
    }  # fmt: skip
    if max(down, across) <= FEW:
        series["label"] = {"show": True, "formatter": "{@[2]}", "fontSize": 9}
    top = most if most > 0 and isfinite(most) else 1.0
    return {
        **_COMMON, "tooltip": _TOOLTIP, "grid": {"containLabel": True, "left": 8, "right": 8, "top": 8, "bottom": 60},
        "xAxis": {"type": "category", "data": _cell_names(found.columns.tolist()), "splitArea": {"show": True}},
        "yAxis": {"type": "category", "data": _cell_names(found.rows.tolist()), "inverse": True,
                  "axisLabel": {"interval": (down - 1) // MOST_ROW_LABELS}},
        "visualMap": {"min": -top, "max": top, "orient": "horizontal", "left": "center", "bottom": 0, "precision": 4,
                      "itemHeight": 90, "itemWidth": 12, "inRange": {"color": DIVERGING}, "calculable": True},
        "series": [series],
    }  # fmt: skip


def _cell_names(edges: Sequence[int]) -> list[str]:
    """The elements of each cell: `7`, or `0-31`."""
    return [str(start) if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in pairwise(edges)]


def draw_histograms(sides: Mapping[str, Histogram]) -> Options:
    """The counts of one or more histograms over their bins, as steps from edge to edge."""
    series = []
    for name, found in sides.items():
        counts = [*found.counts, *found.counts[-1:]]  # to the end of the last bin
        data = [[float(f"{x:.6g}"), int(n)] for x, n in zip(found.edges, counts, strict=True)]
        series.append({
            "name": name, "type": "line", "step": "end", "showSymbol": False, "areaStyle": {"opacity": 0.3},
            "data": data,
        })  # fmt: skip
    return {
        **_COMMON, "tooltip": {**_TOOLTIP, "trigger": "axis"}, "legend": {"show": len(sides) > 1, "top": 0},
        "grid": {"containLabel": True, "left": 8, "right": 24, "top": 32, "bottom": 28},
        "xAxis": {"type": "value", "name": "value", "nameLocation": "middle", "nameGap": 22, "scale": True,
                  "min": "dataMin", "max": "dataMax", "axisLabel": {"showMinLabel": False, "showMaxLabel": False}},
        "yAxis": {"type": "value", "axisLine": {"onZero": False}}, "series": series,
    }  # fmt: skip


def draw_energy(spectra: Mapping[str, Spectrum]) -> Options:
    """The captured energy against the rank: a line for each matrix that is finite and not zero, the first 200."""
    shown = {name: one for name, one in spectra.items() if one.is_finite and one.values[0]}
    lines = dict(list(shown.items())[:MOST_LINES])
    points = max(2, MOST_POINTS * 8 // max(8, len(lines)))
    series = [_energy_line(name, one, points) for name, one in lines.items()]
    if len(lines) == 1:
        (one,) = lines.values()
        series.append({"name": "singular value / largest", "type": "line", "showSymbol": False,
                       "data": _thin([float(value / one.values[0]) for value in one.values], points)})  # fmt: skip
    count = max((len(one.values) for one in lines.values()), default=1)
    return {
        **_COMMON, "tooltip": {**_TOOLTIP, "trigger": "axis" if len(lines) <= 8 else "item"},
        "legend": {"show": len(lines) <= 8, "top": 0, "type": "scroll"},
        "grid": {"containLabel": True, "left": 28, "right": 24, "top": 36, "bottom": 28},
        "xAxis": {"type": "value", "name": "rank", "nameLocation": "middle", "nameGap": 22, "min": 0, "max": count},
        "yAxis": {"type": "value", "name": "share", "nameLocation": "middle", "nameGap": 32, "min": 0, "max": 1},
        "series": series,
    }  # fmt: skip


def _energy_line(name: str, one: Spectrum, points: int) -> Options:
    return {"name": name, "type": "line", "showSymbol": False, "lineStyle": {"width": 1.5},
            "data": [[0, 0], *_thin(one.energy.tolist(), points)]}  # fmt: skip


def _thin(values: Sequence[float], points: int) -> list[list[float]]:
    """Values at the ranks from 1 on, of these so many, with the last."""
    step = max(1, len(values) // points)
    at = sorted({*range(0, len(values), step), len(values) - 1})
    return [[i + 1, float(f"{values[i]:.6g}")] for i in at]


def draw_change(cells: Mapping[tuple[str, int | None], float]) -> Options:
    """Values by layer across and module down. Those that are not finite stay blank."""
    modules = sorted({module for module, _ in cells})
    layers = sorted({layer for _, layer in cells}, key=lambda layer: -1 if layer is None else layer)
    row, column = ({key: at for at, key in enumerate(keys)} for keys in (modules, layers))
    data = [[column[layer], row[module], float(f"{value:.6g}")]
            for (module, layer), value in cells.items() if isfinite(value)]  # fmt: skip
    return {
        **_COMMON, "tooltip": _TOOLTIP, "grid": {"containLabel": True, "bottom": 68, "top": 8, "left": 8, "right": 48},
        "xAxis": {"type": "category", "data": ["none" if layer is None else str(layer) for layer in layers],
                  "name": "layer"},
        "yAxis": {"type": "category", "data": modules, "axisLabel": {"width": 260, "overflow": "truncate"}},
        "visualMap": {"min": 0, "max": max((value for _, _, value in data), default=0.0) or 1.0, "precision": 4,
                      "orient": "horizontal", "left": "center", "bottom": 0, "calculable": True, "itemWidth": 12,
                      "inRange": {"color": SEQUENTIAL}},
        "series": [{"type": "heatmap", "data": data, "dimensions": ["layer", "module", "relative change"],
                    "encode": {"x": 0, "y": 1, "value": 2, "tooltip": [1, 0, 2]}}],
    }  # fmt: skip
