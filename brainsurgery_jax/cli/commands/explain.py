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
    work: Annotated[
        bool, typer.Option("--work", help="List the work item by item: task, site, bytes, memory.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="List all names instead of the first few.")] = False,
    json: Json = False,
) -> None:
    """Show what a run would do, step by step.

    Lists the tensors that each step matches, the outputs, the amount of computation and the peak memory.
    """
    know(ops)
    from brainsurgery_jax.cli import plans

    plans.explain(items, overwrite=overwrite, shard_size=shard_size, everything=everything, json=json, work=work)
