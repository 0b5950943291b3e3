"""What commands do with `--plot`: the path is checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from brainsurgery_jax.cli import show


def check_plot(path: str | None) -> None:
    """Raises BadParameter for a path whose suffix is not that of a picture."""
    from brainsurgery_jax.plots.canvas import check_path

    if path is not None:
        with refusing():
            check_path(path)


@contextmanager
def refusing(path: str = "") -> Iterator[None]:
    """Make a usage error of what cannot be drawn; afterwards tell what was written, if it is `path`."""
    try:
        yield
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint="--plot") from bad
    if path:
        show.remark(f"wrote {path}", "green")
