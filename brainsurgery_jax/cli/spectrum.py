"""`spectrum`: a table of ranks for people, singular values as JSON."""

from __future__ import annotations

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.plotting import PlotTo, check_plot, refusing
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.looking.spectra import spectrum as measure
from brainsurgery_jax.plots.looking import plot_spectra
from brainsurgery_jax.rendering.text import align_columns

SHARES = (0.9, 0.95, 0.99)
"""The shares of the energy for which ranks are given."""


def spectrum(
    sides: tuple[str, str | None],
    target: str | None,
    rank: int | None,
    *,
    memory: str | None,
    json: bool,
    most: int | None = None,
    plot: PlotTo | None = None,
) -> None:
    """Print the spectra, and with `rank` that many singular values of each; JSON has all without it. `most`: compute
    only so many, the largest. `plot`: where to draw the energy against the rank."""
    check_plot(plot)
    budget = size_of(memory, "--memory")
    try:
        found = measure(*sides, target=target, most=most, memory=budget)
    except ValueError as bad:
        raise typer.BadParameter(str(bad)) from bad
    if json:
        show.json(path=sides[0], other=sides[1], spectra={n: _data_of(one, rank) for n, one in found.items()})
    else:
        heads = ["matrix", "shape", *(f"{share:.0%}" for share in SHARES), "effective rank", "largest"]
        rows = [heads, *(_row(name, one, rank or 1) for name, one in found.items())]
        show.result("\n".join(align_columns(rows, right=frozenset(range(2, 6)))))
    if plot is not None:
        with refusing(plot.path):
            plot_spectra(found, plot.path, " and ".join(filter(None, sides)))


def _row(name: str, one: Spectrum, count: int) -> list[str]:
    ranks = [one.rank_of(share) for share in SHARES]
    unknown = "-" if one.is_complete or not one.is_finite else f">{len(one.values):,}"
    told = [unknown if rank is None else f"{rank:,}" for rank in ranks]
    values = " ".join(f"{value:.4g}" for value in one.values[:count])
    effective = f"{one.effective_rank:.1f}" if one.is_complete else "-"
    return [name, str(list(one.shape)), *told, effective, values]


def _data_of(one: Spectrum, count: int | None) -> dict[str, object]:
    return {
        "shape": list(one.shape),
        "ranks": {f"{share:g}": one.rank_of(share) for share in SHARES},
        "effective_rank": one.effective_rank if one.is_finite and one.is_complete else None,
        "values": one.values[:count].tolist() if one.is_finite else None,
        "energy": one.energy[:count].tolist() if one.is_finite else None,
        "captured": one.captured if one.is_finite else None,
        "excess": one.excess if one.is_finite else None,
    }
