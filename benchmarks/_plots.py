"""Pictures of the records: small SVG files that are the same from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 8, "axes.spines.top": False,
     "axes.spines.right": False, "figure.constrained_layout.use": True}
)  # fmt: skip
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)

Record = Mapping[str, Any]

COLOURS = {"ours": "#1f6fb4", "peer": "#b8b8b8", "start": "#8fbbe0"}


def draw(rows: Mapping[str, Record], folder: Path) -> None:
    """Write `performance-times.svg`, and `performance-sweep.svg` where that was measured."""
    plain = [row for row in rows.values() if row["row"] != "sweep"]
    if plain:
        _save(_times(plain), folder / "performance-times.svg")
    if "sweep" in rows:
        _save(_sweep(rows["sweep"]), folder / "performance-sweep.svg")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _times(rows: list[Record]) -> Any:
    """A bar for each job, a group for each row, seconds on a logarithmic axis."""
    bars = [(row, name, figures) for row in rows for name, figures in row["jobs"].items()]
    gaps = [sum(1 for row in rows if rows.index(row) <= rows.index(bar[0])) for bar in bars]
    places = [at + gap for at, gap in enumerate(gaps)]
    figure, axes = plt.subplots(figsize=(7, 0.15 * (len(bars) + 2 * len(rows)) + 0.6))
    axes.barh(places, [f["wall_s"] for *_, f in bars], color=[COLOURS[f["kind"]] for *_, f in bars])
    for place, (_, name, figures) in zip(places, bars, strict=True):
        axes.annotate(f" {figures['wall_s']:.2g} s  {name}", (figures["wall_s"], place), va="center", fontsize=6)
    starts = [next(p for p, bar in zip(places, bars, strict=True) if bar[0] is row) for row in rows]
    axes.set_yticks(starts, [row["question"] for row in rows])
    axes.set(xscale="log", xlabel="seconds (blue: ours; light blue: its start, `check`; grey: peers)")
    axes.invert_yaxis()
    axes.margins(x=0.25, y=0.01)
    return figure


def _sweep(row: Record) -> Any:
    """Seconds over bytes read and written, both axes logarithmic, and memory over the same."""
    families: dict[str, list[Record]] = {}
    for name, figures in row["jobs"].items():
        families.setdefault(name.rpartition(", ")[0], []).append(figures)
    figure, (time, memory) = plt.subplots(1, 2, figsize=(7, 2.6))
    for job, points in families.items():
        ours = points[0]["kind"] == "ours"
        style = {"marker": "o", "markersize": 3, "label": job} | ({} if ours else {"color": "#999999", "ls": ":"})
        moved = [p["moved_gb"] for p in points]
        time.plot(moved, [p["wall_s"] for p in points], **style)
        if ours:
            memory.plot(moved, [p["anonymous_mb"] for p in points], **style)
    time.set(xscale="log", yscale="log", xlabel="GB read and written", ylabel="seconds")
    memory.set(xscale="log", ylim=(0, None), xlabel="GB read and written", ylabel="MB of anonymous memory")
    time.legend(frameon=False)
    return figure
