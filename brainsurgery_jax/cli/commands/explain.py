"""`explain`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.options import NO_MORE, Items, Json, More, Ops, Overwrite, Shard, know, spread_groups


def explain_code(word: str, *, json: bool) -> bool:
    """Print the page of a code; yields whether there is one."""
    from brainsurgery_jax.reports.codes import code_pages, is_code

    if not is_code(word) or os.path.exists(word):
        return False
    from brainsurgery_jax.cli import codes

    if word not in code_pages():
        raise typer.BadParameter(codes.describe_absence(word))
    codes.explain_code(word, json=json)
    return True


@spread_groups
def explain(
    items: Items,
    ops: Ops = None,
    overwrite: Overwrite = False,
    shard_size: Shard = "5GB",
    tensor: Annotated[
        str | None, typer.Option("--tensor", metavar="NAME", help="Show only which inputs and steps make this tensor.")
    ] = None,
    more: More = NO_MORE,
    json: Json = False,
) -> None:
    """Show what a run would do, step by step; or what the code of a diagnostic means: `explain no-match`.

    Lists the tensors that each step matches, the outputs, the amount of computation and the peak memory.
    """
    if len(items) == 1 and explain_code(items[0], json=json):
        return
    know(ops)
    if tensor is not None:
        from brainsurgery_jax.cli import provenance

        raise typer.Exit(provenance.print_tensor(items, tensor, json=json))
    from brainsurgery_jax.cli import plans

    if more.cluster and more.hosts is None:
        raise typer.BadParameter("needs --hosts", param_hint="--cluster")
    plans.explain(items, more, overwrite=overwrite, shard_size=shard_size, json=json)
