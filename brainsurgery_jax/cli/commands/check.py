"""`check`."""

from __future__ import annotations

import typer

from brainsurgery_jax.cli.options import Items, Json, Ops, Overwrite, Shard


def check(
    items: Items, ops: Ops = None, overwrite: Overwrite = False, shard_size: Shard = "5GB", json: Json = False
) -> None:
    """Report every mistake in a plan, from headers alone.

    The exit code is 1 if the plan has a mistake, and 3 if the only problem is a checkpoint that cannot be read or
    written.
    """
    from brainsurgery_jax.cli import plans

    raise typer.Exit(plans.check(items, ops or (), overwrite=overwrite, shard_size=shard_size, json=json))
