"""NaN and infinity in what a run computes: told when it is over, since no dtype, shape or header shows them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence

from brainsurgery_jax._lazy import np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.engine.run.hosts import Gathering
from brainsurgery_jax.errors import Diagnostic, is_converting, worded
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.numerics.finite import holds_nonfinite
from brainsurgery_jax.numerics.rounding import SATURATING, largest
from brainsurgery_jax.select.natural import natural_key
from brainsurgery_jax.wording import few

Place = tuple[int, str]
"""A tensor of an output: the number of the publication, and the name there."""

_RANGE_OF_FLOAT32 = 1e38
_WHENCE = "If the inputs have none, `assert: {finite: 'ALIAS::.*'}` after a step stops the run where they arise."


def holds_new(expr: Expr, array: np.ndarray) -> bool:
    """Whether a part of a tensor holds NaN or infinity that no input need have: it is computed."""
    return not expr.is_leaf and (expr.aval.dtype.is_float or expr.aval.dtype.is_complex) and holds_nonfinite(array)


def gather_places(hosts: Gathering, own: Collection[Place]) -> frozenset[Place]:
    """What all processes of a run found."""
    if hosts.count == 1:
        return frozenset(own)
    said = map(json.loads, hosts.gather("nonfinite", json.dumps(sorted(own)).encode()))
    return frozenset((number, name) for places in said for number, name in places)


def nonfinite_notes(publications: Sequence[Publication], found: Collection[Place]) -> Iterator[Diagnostic]:
    """A note for each publication with tensors that are computed and hold NaN or infinity."""
    for number, made in enumerate(publications):
        names = sorted((name for at, name in found if at == number), key=natural_key)
        if names:
            shown = few([f"'{name}'" for name in names])
            message = f"{made.path}: {shown} {'hold' if len(names) > 1 else 'holds'} NaN or infinity"
            dtypes = {made.tensors[name].aval.dtype for name in names}
            hint = "" if is_converting() else _WHENCE
            for each in sorted(filter(_is_narrow, dtypes), key=str):
                most = f"{each} holds at most {largest(each):,.0f}"
                hint = f"{most}: {_saturating()} takes that for larger values; bfloat16 holds them.\n{hint}"
            yield Diagnostic("value-nonfinite", message, made.span, hint=hint.rstrip(), severity="note")


def _is_narrow(dtype: DType) -> bool:
    """Whether common floats are beyond the range of a dtype, and become NaN or infinity in it."""
    return dtype.is_float and largest(dtype) < _RANGE_OF_FLOAT32 and dtype.name != SATURATING


def _saturating() -> str:
    """How values beyond the range of a dtype become its largest."""
    if is_converting():
        return worded(shell="`--overflow saturate`", python="`overflow='saturate'`")
    return "`overflow: saturate` in the `cast`, `cast_` or `compute` that rounds to it"
