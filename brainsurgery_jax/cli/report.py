"""`report`: writes the page, and tells where."""

from __future__ import annotations

import os
from typing import NamedTuple

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.plots.page import default_page
from brainsurgery_jax.plots.page import report as write_report


class ReportWishes(NamedTuple):
    """What to report of, and how."""

    target: str | None = None
    spectra: bool = False
    overwrite: bool = False
    memory: str | None = None


def report(sides: tuple[str, str | None], to: str | None, wishes: ReportWishes, *, json: bool = False) -> None:
    """Write the report of a checkpoint or two. Raises StoreError, and BadParameter if the target selects nothing."""
    page = default_page(sides[1] or sides[0]) if to is None else to
    memory = size_of(wishes.memory, "--memory")
    try:
        write_report(*sides, to=page, target=wishes.target, spectra=wishes.spectra, overwrite=wishes.overwrite,
                     memory=memory)  # fmt: skip
    except ValueError as bad:
        raise typer.BadParameter(str(bad)) from bad
    if json:
        show.json(path=sides[0], other=sides[1], page=page, bytes=os.path.getsize(page))
    else:
        show.remark(f"wrote {page}", "green")
