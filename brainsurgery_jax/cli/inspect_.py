"""`inspect`: a checkpoint from its headers. Loads neither JAX nor the ops; the engine for statistics only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import typer

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.plotting import PlotTo, check_plot, refusing
from brainsurgery_jax.errors import Diagnostic, did_you_mean
from brainsurgery_jax.rendering.data import diagnostic_data, record_data
from brainsurgery_jax.reports.inspection import report_inspection

if TYPE_CHECKING:
    from brainsurgery_jax.looking.histograms import Histogram


class Looks(NamedTuple):
    """What is to be read of the tensors beside their statistics."""

    histogram: bool = False
    effective_rank: bool = False
    plot: PlotTo | None = None


PLAIN = Looks()


def inspect(path: str, target: str | None, format: str, *, stats: bool, looks: Looks = PLAIN) -> int:
    """Print a checkpoint's tensors; yields the exit code, 1 if `target` matches none. Raises StoreError."""
    if looks.plot is not None:
        check_plot(looks.plot)
    whole = Checkpoint.open(path)
    if format != "json":
        show.diagnostics(whole.notes)
    try:
        chosen = whole if target is None else whole.select(target)
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint="--target") from bad
    if target is not None and not chosen:
        message = f"no tensor of {path} matches '{target}' (of {len(whole):,}).{did_you_mean(target, whole)}"
        if format == "json":
            show.failure([diagnostic_data(Diagnostic("no-match", message))], 1)
        else:
            show.remark(message, "red")
        return 1
    numbers = _stats(chosen, looks) if stats or looks.histogram or looks.effective_rank else {}
    histograms = _histograms(chosen, list(numbers)) if looks.histogram else {}
    report = report_inspection(chosen, numbers, histograms, compact=format == "compact")
    if format == "json":
        show.json(**record_data(report))
    else:
        show.report(report)
    if looks.plot is not None:
        _plot(chosen, looks.plot.path)
    return 0


def print_fingerprint(path: str, *, as_json: bool) -> int:
    """Print the fingerprint of a checkpoint; yields the exit code. Raises StoreError."""
    from brainsurgery_jax.looking.fingerprint import fingerprint

    found = fingerprint(path)
    if as_json:
        show.json(fingerprint=found)
    else:
        show.result(found)
    return 0


def _stats(chosen: Checkpoint, looks: Looks) -> dict[str, dict[str, float]]:
    """The statistics of each tensor by their names; nothing for complex, opaque and empty ones."""
    from dataclasses import asdict

    from brainsurgery_jax.looking.stats import stats_of

    shown = ("min", "max", "mean", "std", "norm", "zeros", "nans", "infs", "effective_rank")
    found = {name: asdict(one) for name, one in stats_of(chosen, effective_rank=looks.effective_rank).items()}
    return {name: {key: one[key] for key in shown if one[key] is not None} for name, one in found.items()}


def _histograms(chosen: Checkpoint, names: list[str]) -> dict[str, Histogram]:
    from brainsurgery_jax.looking.histograms import histograms_of

    return histograms_of(chosen, names)


def _plot(chosen: Checkpoint, path: str) -> None:
    from brainsurgery_jax.plots.looking import plot_checkpoint

    with refusing(path):
        plot_checkpoint(chosen, path)
