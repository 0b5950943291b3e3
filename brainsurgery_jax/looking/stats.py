"""`bs.stats`: the statistics of the tensors of a checkpoint, all in one pass that never holds a tensor whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.looking.chosen import ask_about, choose, has_numbers
from brainsurgery_jax.looking.spectra import spectra_of
from brainsurgery_jax.numerics.moments import MOMENTS, TensorStats


def stats(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    target: str | list[str] | None = None,
    effective_rank: bool = False,
    memory: int | str | None = None,
    stop: StopSignal = NEVER,
) -> Mapping[str, TensorStats]:
    """Compute statistics of the tensors of a checkpoint of any format. Every tensor is read once, by blocks.

    **Arguments**: `path` is that of a file or a folder, or what `bs.open` returns. `target` selects names.
    `effective_rank` also factorizes the floating-point matrices, which takes much longer and reads them once more.
    `memory` is the budget, a number of bytes or a text such as "5GB" (default: a quarter of the available memory).
    `stop`: a `threading.Event`, or anything with `is_set`, that ends it early.
    **Returns** a `TensorStats` by name, in state-dict order: min, max, mean, std (of the population), norm, and how
    many elements are zero, NaN and infinite, in double precision. Complex, packed and empty tensors are left out.
    **Raises** StoreError for what cannot be read, ValueError for a bad `target` or one that matches nothing, PlanError
    for a budget that is too small, Stopped.
    **Example**:

    >>> bs.stats("model.safetensors", target="bias")["bias"].mean
    1.5
    """
    with ExitStack() as opened:
        chosen = choose(open_side(path, opened, "stats"), target)
        found = stats_of(chosen, memory, effective_rank=effective_rank, stop=stop)
        chosen.source.verify_unchanged()
        return found


def stats_of(
    chosen: Checkpoint, memory: int | str | None = None, *, effective_rank: bool = False, stop: StopSignal = NEVER
) -> dict[str, TensorStats]:
    """The statistics of tensors that are chosen already. See `stats`."""
    asked = {name: ask_about(chosen, name, MOMENTS) for name, aval in chosen.avals.items() if has_numbers(aval)}
    answered = answers(list(asked.values()), default_budget(host_bytes=memory), stop)
    found: dict[str, TensorStats] = {name: answered[question] for name, question in asked.items()}
    if effective_rank:
        ranks = {name: one.effective_rank for name, one in spectra_of([chosen], memory, stop=stop).items()}
        found |= {name: replace(found[name], effective_rank=rank) for name, rank in ranks.items()}
    return found
