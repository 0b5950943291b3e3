"""`compare-logits`: compare what two decoders compute."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Json, Memory


def compare_logits(
    left: Annotated[str, typer.Argument(metavar="LEFT", help="A folder with a model and its config.json.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="A second one, with the same vocabulary.")],
    tokens: Annotated[
        str, typer.Option(metavar="IDS|COUNT", help="Ids of tokens (3,1,4), or how many to draw (always the same).")
    ] = "32",
    max_diff: Annotated[
        float | None, typer.Option(metavar="X", help="Exit with 1 if two logits differ by more.", min=0)
    ] = None,
    kl: Annotated[
        float | None, typer.Option(metavar="X", help="Exit with 1 if the KL divergence is larger.", min=0)
    ] = None,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Compare the logits of two decoders for the same tokens, layer by layer in float32.

    The exit code is 0 if all logits are finite and within the limits that were given, and 1 if not.
    """
    arrange(os.environ, compile_cache=True)
    from brainsurgery_jax.cli import logits as pages

    limits = pages.LogitLimits(max_diff, kl)
    raise typer.Exit(pages.compare_logits((left, right), tokens, limits, memory=memory, json=json))
