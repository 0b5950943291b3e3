"""What the functions that look at checkpoints are given: a tensor by its name, or tensors by a pattern."""

from __future__ import annotations

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.compute.folds import question_of
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.protocol import Pending, Reduction


def has_numbers(aval: Aval) -> bool:
    """Whether a tensor holds real numbers that can be computed on, and any at all."""
    return bool(aval.size) and not (aval.dtype.is_opaque or aval.dtype.is_complex)


def choose(whole: Checkpoint, target: str | list[str] | None) -> Checkpoint:
    """The tensors that a pattern selects, all without one. Raises ValueError if it matches nothing."""
    chosen = whole if target is None else whole.select(target)
    if target is not None and not chosen:
        near = did_you_mean(target, whole) if isinstance(target, str) else ""
        raise ValueError(f"no tensor of {whole.path} matches '{target}'.{near}")
    return chosen


def find_numbers(whole: Checkpoint, name: str) -> Aval:
    """The shape and dtype of one tensor of real numbers. Raises ValueError for any other, and if it is not there."""
    aval = whole.avals.get(name)
    if aval is None:
        raise ValueError(f"no tensor of {whole.path} is named '{name}'.{did_you_mean(name, whole)}")
    if not has_numbers(aval):
        raise ValueError(f"'{name}' of {whole.path} is {aval}: only tensors of real numbers can be looked at")
    return aval


def ask_about(chosen: Checkpoint, name: str, reduction: Reduction) -> Pending:
    """The question of a reduction about one tensor."""
    leaf = Graph().leaf(chosen.source, chosen.prefix + name, chosen.avals[name])
    return question_of((leaf,), reduction)
