"""What a plan makes of its inputs, written aside: to look at it before the plan is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from brainsurgery_jax.api import Plan, Report, run
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.run_options import RunKeywords
from brainsurgery_jax.world import Files


def try_plan(
    plan: Plan, to: str, *, steps: int | None = None, world: Files | None = None, **options: Unpack[RunKeywords]
) -> Report:
    """Write the state after some steps of a plan to a checkpoint aside. Its own outputs and `save` steps write nothing.

    **Arguments**: `to` is the path of a safetensors file, which is replaced; `steps`: so many of the first steps
    (default: all); `world` and `options` are those of `run`.
    **Returns** a `Report`: what the steps reported, and the checkpoint that was written.
    **Raises** those of `run`.
    **Example**:

    >>> try_plan(bs.load("plan.yaml"), "tried.safetensors").published
    (('tried.safetensors', 144, 3),)
    """
    data = plan.data
    alias = data.outputs[0].alias if data.outputs else None
    output = Output(to, alias, format="safetensors", overwrite=True, sidecars=False)
    tried = replace(plan, data=replace(data, steps=data.steps[:steps], outputs=(output,)))
    return run(tried, world=world or Files(overwrite=True), **{**options, "only": to})
