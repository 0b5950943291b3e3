"""`explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from brainsurgery_jax.cli.options import Items, Json, Ops, Overwrite, Shard, know


def explain(
    items: Items,
    ops: Ops = None,
    overwrite: Overwrite = False,
    shard_size: Shard = "5GB",
    work: Annotated[bool, typer.Option("--work", help="The work item by item: what, where, bytes, memory.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every name, not the first few.")] = False,
    json: Json = False,
) -> None:
    """Tell what a run would do, step by step.

    What each step matches, what is written, how much is computed, how much memory it takes.
    """
    know(ops)
    from brainsurgery_jax.cli import plans

    plans.explain(items, overwrite=overwrite, shard_size=shard_size, everything=everything, json=json, work=work)
