"""`inspect`: a checkpoint from its headers. Loads neither JAX nor the ops; the engine for statistics only."""

from __future__ import annotations

import typer

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import Diagnostic, did_you_mean
from brainsurgery_jax.rendering.data import diagnostic_data, record_data
from brainsurgery_jax.reports.inspection import report_inspection


def inspect(path: str, target: str | None, format: str, *, stats: bool) -> int:
    """Print a checkpoint's tensors; yields the exit code, 1 if `target` matches none. Raises StoreError."""
    whole = Checkpoint.open(path)
    if format != "json":
        show.diagnostics(whole.notes)
    try:
        chosen = whole if target is None else whole.select(target)
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint="--target") from bad
    if target is not None and not chosen:
        message = f"no tensor of {path} matches '{target}' (of {len(whole):,}).{did_you_mean(target, whole)}"
        if format == "json":
            show.failure([diagnostic_data(Diagnostic("no-match", message))], 1)
        else:
            show.remark(message, "red")
        return 1
    report = report_inspection(chosen, _stats(chosen) if stats else {}, compact=format == "compact")
    if format == "json":
        show.json(**record_data(report))
    else:
        show.report(report)
    return 0


def _stats(chosen: Checkpoint) -> dict[str, dict[str, float]]:
    """The least, greatest and mean value of each tensor; nothing for complex, opaque and empty ones."""
    from brainsurgery_jax.engine.compute.folds import question_of
    from brainsurgery_jax.engine.run.budget import default_budget
    from brainsurgery_jax.engine.run.execute import answers
    from brainsurgery_jax.graph.expr import Graph
    from brainsurgery_jax.summaries import STATISTICS

    graph = Graph()
    asked = {
        name: question_of((graph.leaf(chosen.source, name, aval),), STATISTICS)
        for name, aval in chosen.avals.items()
        if not (aval.dtype.is_opaque or aval.dtype.is_complex) and aval.size
    }
    found = answers(list(asked.values()), default_budget())
    return {name: found[question] for name, question in asked.items()}
