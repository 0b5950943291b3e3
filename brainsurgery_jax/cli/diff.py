"""`diff`: what differs between two checkpoints, for people and as JSON. Exit codes as those of the Unix command."""

from __future__ import annotations

import typer

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.plotting import PlotTo, check_plot, refusing
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.comparison import Difference
from brainsurgery_jax.comparison import diff as compared
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.rendering.data import diagnostic_data, record_data, store_error_data
from brainsurgery_jax.reports.difference import Wishes, report_difference

SAME, DIFFERENT, TROUBLE = range(3)


def diff(left: str, right: str, wishes: Wishes, *, json: bool, plot: PlotTo | None = None) -> int:
    """Print the differences, and draw them to `plot`. Returns the exit code: 0 equal, 1 different, 2 not comparable."""
    try:
        check_plot(plot)
        found = _compare(left, right, wishes)
    except StoreError as error:
        if json:
            show.failure([store_error_data(error)], TROUBLE)
        else:
            show.store_error(error)
        return TROUBLE
    except PlanError as error:
        if json:
            show.failure(map(diagnostic_data, error.diagnostics), TROUBLE)
        else:
            show.diagnostics(error.diagnostics)
        return TROUBLE
    report = report_difference(found, wishes)
    if json:
        show.json(**record_data(report))
    else:
        show.diagnostics(found.notes)
        show.report(report)
    if plot is not None and found.same:
        show.remark(f"nothing differs, so {plot.path} was not written")
    elif plot is not None:
        _plot(found, left, right, plot.path)
    return SAME if found.same else DIFFERENT


def _compare(left: str, right: str, wishes: Wishes) -> Difference:
    memory = size_of(wishes.memory, "--memory")
    try:
        return compared(
            left, right, target=wishes.target, eps=wishes.eps, rtol=wishes.rtol, ignore_dtype=wishes.ignore_dtype,
            figures=not wishes.quick, effective_rank=wishes.effective_rank, memory=memory,
        )  # fmt: skip
    except ValueError as bad:
        raise typer.BadParameter(str(bad)) from bad


def _plot(found: Difference, left: str, right: str, path: str) -> None:
    from brainsurgery_jax.plots.looking import plot_difference

    with refusing(path):
        plot_difference(found, Checkpoint.open(left), Checkpoint.open(right), path)
