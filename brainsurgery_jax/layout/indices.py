"""The indices of a rule: which its names use, and whether its ops join or create those that only one side has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from brainsurgery_jax.layout.expressions import SizeExpression
from brainsurgery_jax.layout.families import LIST
from brainsurgery_jax.layout.ops import OpCall
from brainsurgery_jax.layout.templates import NameTemplate


def indices_of(side: Sequence[NameTemplate], ranges: Mapping[str, SizeExpression]) -> set[str]:
    """The indices that names use, and the list itself if there are several names."""
    return {n for t in side for n in t.names if n in ranges} | ({LIST} if len(side) > 1 else set())


def unaccounted(left: set[str], right: set[str], ops: Sequence[OpCall]) -> Iterator[tuple[str, str]]:
    """What is wrong, and the remedy, for each index that only one side has and that no op joins or creates."""
    joined, made = {u.op.joins(u.args) for u in ops}, {u.op.makes(u.args) for u in ops}
    for label in sorted(left - right - joined):
        hint = f"Join over it, as in `{{stack: {{{_over(label)}axis: 0}}}}`, or use it on the other side, too."
        yield f"only `hf` uses {label}, and no op joins over it", hint
    for label in sorted(right - left - made):
        yield (
            f"only `to` uses {label}, and no op creates it",
            f"Cut for it, as in `{{split: {{{_over(label)}axis: 0}}}}`.",
        )


def _over(label: str) -> str:
    return "" if label == LIST else f"over: {label}, "
