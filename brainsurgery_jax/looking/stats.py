"""`bs.stats`: the statistics of the tensors of a checkpoint, all in one pass that never holds a tensor whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.engine.compute.folds import question_of
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.looking.moments import MOMENTS, TensorStats


def stats(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    target: str | list[str] | None = None,
    memory: int | None = None,
) -> Mapping[str, TensorStats]:
    """Compute statistics of the tensors of a checkpoint of any format. Every tensor is read once, by blocks.

    **Arguments**: `path` is that of a file or a folder, or what `bs.open` returns. `target` selects names. `memory` is
    the budget in bytes (default: a quarter of the available memory).
    **Returns** a `TensorStats` by name, in state-dict order: min, max, mean, std (of the population), norm, and how
    many elements are zero, NaN and infinite, in double precision. Complex, packed and empty tensors are left out.
    **Raises** StoreError for what cannot be read, ValueError for a bad `target` or one that matches nothing, PlanError
    for a budget that is too small.
    **Example**:

    >>> bs.stats("model.safetensors", target="bias")["bias"].mean
    1.5
    """
    with ExitStack() as opened:
        whole = open_side(path, opened, "stats")
        chosen = whole if target is None else whole.select(target)
        if target is not None and not chosen:
            near = did_you_mean(target, whole) if isinstance(target, str) else ""
            raise ValueError(f"no tensor of {whole.path} matches '{target}'.{near}")
        found = stats_of(chosen, memory)
        chosen.source.verify_unchanged()
        return found


def stats_of(chosen: Checkpoint, memory: int | None = None) -> dict[str, TensorStats]:
    """The statistics of tensors that are chosen already. See `stats`."""
    graph = Graph()
    asked = {
        name: question_of((graph.leaf(chosen.source, chosen.prefix + name, aval),), MOMENTS)
        for name, aval in chosen.avals.items()
        if not (aval.dtype.is_opaque or aval.dtype.is_complex) and aval.size
    }
    found = answers(list(asked.values()), default_budget(host_bytes=memory))
    return {name: found[question] for name, question in asked.items()}
