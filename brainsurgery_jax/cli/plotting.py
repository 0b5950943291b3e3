"""What commands do with `--plot`: the path is checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import typer

from brainsurgery_jax.cli import show


class PlotTo(NamedTuple):
    """Where to draw, and whether what is there may be replaced."""

    path: str
    overwrite: bool = False


def wish_plot(path: str | None, *, overwrite: bool) -> PlotTo | None:
    """What `--plot` and `--overwrite` ask for. Raises BadParameter if there is nothing to overwrite."""
    if path is None:
        if overwrite:
            raise typer.BadParameter("nothing is written without --plot FILE", param_hint="--overwrite")
        return None
    return PlotTo(path, overwrite)


def check_plot(plot: PlotTo | None) -> None:
    """Raises BadParameter for a path whose suffix is not that of a picture, StoreError for one that is taken."""
    from brainsurgery_jax.plots.canvas import check_path

    if plot is not None:
        with refusing():
            check_path(plot.path, overwrite=plot.overwrite)


@contextmanager
def refusing(path: str = "") -> Iterator[None]:
    """Make a usage error of what cannot be drawn; afterwards tell what was written, if it is `path`."""
    try:
        yield
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint="--plot") from bad
    if path:
        show.remark(f"wrote {path}", "green")
