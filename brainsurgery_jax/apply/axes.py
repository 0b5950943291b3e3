"""Along which axes of a mesh a result is cut, from how its operands are: index arithmetic on specs, without arrays.

JAX derives this for operations one by one, and asks where it is ambiguous. A step must not ask, so there is one rule
for all ops:

1. An op on equal shapes keeps the spec of its operands: of each axis that of the first operand that is cut there.
2. An op that moves elements carries an axis of the mesh to where its axis of the tensor went; a reshape carries it to
   the axis that begins at the same element.
3. Otherwise an axis of a result takes the mesh axes of the operand's axis at the same place or, if the number of axes
   differs, of the next one of its size.

Mesh axes are carried only where they divide the axis evenly, and each only once; what is left is replicated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.graph.expr import Expr

Spec = tuple[tuple[str, ...], ...]
"""For each axis of a tensor the axes of the mesh that it is cut along."""

Sizes = Mapping[str, int]
"""The axes of a mesh and how many devices each has."""


def specs_of_results(e: Expr, operands: Sequence[Spec], sizes: Sizes) -> tuple[Spec, ...]:
    """The spec of each result of a call, from those of its operands."""
    return tuple(_spec_of(aval, e, operands, sizes) for aval in e.avals)


def _spec_of(made: Aval, e: Expr, operands: Sequence[Spec], sizes: Sizes) -> Spec:
    found: dict[int, tuple[str, ...]] = {}
    for at, names in _wishes(made, e, operands):
        used = {name for taken in found.values() for name in taken}
        if names and at not in found and used.isdisjoint(names) and _divides(names, made.shape[at], sizes):
            found[at] = names
    return tuple(found.get(at, ()) for at in range(len(made.shape)))


def _divides(names: Sequence[str], size: int, sizes: Sizes) -> bool:
    return size % prod(sizes[name] for name in names) == 0


def _wishes(made: Aval, e: Expr, operands: Sequence[Spec]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Axes of the result with mesh axes that they would take, best first."""
    avals = tuple(s.aval for s in e.srcs)
    if e.moves is not None:
        for axes, spec in zip(e.moves.axes(avals), operands, strict=True):
            yield from ((at, names) for at, names in zip(axes, spec, strict=True) if at is not None)
        if e.moves.flat_only:
            yield from _same_beginnings(avals[0].shape, made.shape, operands[0])
            return
    for aval, spec in zip(avals, operands, strict=True):
        if len(spec) == len(made.shape):
            yield from enumerate(spec)
        elif e.moves is None:
            yield from _same_sizes(aval.shape, made.shape, spec)


def _same_beginnings(before: Sequence[int], after: Sequence[int], spec: Spec) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Axes of a reshaped tensor that begin at the same element as one of the axes that it had."""
    first = {prod(after[:at]): at for at in reversed(range(len(after))) if after[at] > 1}
    for at, names in enumerate(spec):
        if before[at] > 1 and (there := first.get(prod(before[:at]))) is not None:
            yield there, names


def _same_sizes(before: Sequence[int], after: Sequence[int], spec: Spec) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Axes of a result that have, in order, the sizes of an operand's."""
    start = 0
    for size, names in zip(before, spec, strict=True):
        there = next((at for at in range(start, len(after)) if after[at] == size), None)
        if there is not None:
            yield there, names
            start = there + 1
