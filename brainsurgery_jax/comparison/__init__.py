"""Two checkpoints beside each other: which names only one has, which tensors differ, and by how much.

First all pairs are read until they are known to differ: equal ones once, others up to their first difference. Then
those that differ are read for figures. Nothing is held but blocks, on every thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.comparison.packed import same_bytes
from brainsurgery_jax.comparison.side_files import side_file_gaps
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.engine.run.budget import Budget, default_budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.errors import Diagnostic, did_you_mean
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.numerics.figures import (
    APART,
    CLOSE,
    EQUAL,
    Figures,
    Tolerance,
    likeness,
    measuring,
    place_of_largest,
)  # fmt: skip
from brainsurgery_jax.numerics.rollups import in_order
from brainsurgery_jax.protocol import Known, Pending, Reduction
from brainsurgery_jax.rendering.notebook import MOST_ROWS, HtmlTable, as_html, show_in_treescope
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.key_tree import tree_gaps
from brainsurgery_jax.store.sidecars import find_side_files


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that both have and that is not the same: in shape, in dtype, or in value. `figures` are None where no
    elements stand beside each other, or none were asked for; `effective_rank` is that of the difference of matrices,
    if it was asked for (see `Spectrum`)."""

    name: str
    left: Aval
    right: Aval
    figures: Figures | None = None
    effective_rank: float | None = None

    @property
    def index(self) -> tuple[int, ...] | None:
        """The place of the largest difference."""
        return None if self.figures is None else place_of_largest(self.figures, self.left.shape)


@dataclass(frozen=True, slots=True)
class Difference:
    """What two checkpoints have and have not in common; names in order, numbers in them by value.

    Of the tensors that both have `differing` differ, `equal` hold the same values, and `close` others are within the
    tolerance. `leaves` tell, by name, how the trees differ beside the values of tensors, each side in words (none: it
    has no such leaf). `notes` tell what of them was not read.
    """

    left: str
    right: str
    only_left: Mapping[str, Aval]
    only_right: Mapping[str, Aval]
    differing: tuple[TensorDifference, ...]
    equal: int
    close: int
    notes: tuple[Diagnostic, ...] = ()
    leaves: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    side_files: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = (("equal", self.equal), ("close", self.close), ("differing", len(self.differing)),
                  ("only left", len(self.only_left)), ("only right", len(self.only_right)),
                  ("other leaves", len(self.leaves)), ("other side files", len(self.side_files)))  # fmt: skip
        told = ", ".join(f"{number:,} {what}" for what, number in counts if number)
        return f"<Difference of {self.left} and {self.right}: {told or 'no tensors'}>"

    __treescope_repr__ = show_in_treescope

    def _repr_html_(self) -> str:
        """What a notebook shows: the first tensors that differ."""
        rows = [
            (one.name, str(one.left), str(one.right), *_figures_in_words(one)) for one in self.differing[:MOST_ROWS]
        ]
        heads = ("tensor", "left", "right", "largest", "relative", "cosine")
        return as_html(repr(self)[1:-1], (), HtmlTable(heads, rows, len(self.differing) - len(rows)))

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not (self.only_left or self.only_right or self.differing or self.leaves)


def _figures_in_words(one: TensorDifference) -> tuple[str, str, str]:
    if one.figures is None:
        return "", "", ""
    ratios = ("" if ratio is None else f"{ratio:.4g}" for ratio in (one.figures.relative, one.figures.cosine))
    relative, cosine = ratios
    return f"{one.figures.largest:.4g}", relative, cosine


def diff(
    left: str | os.PathLike[str] | Checkpoint,
    right: str | os.PathLike[str] | Checkpoint,
    *,
    target: str | list[str] | None = None,
    eps: float = 0.0,
    rtol: float = 0.0,
    ignore_dtype: bool = False,
    figures: bool = True,
    effective_rank: bool = False,
    memory: int | str | None = None,
    stop: StopSignal = NEVER,
) -> Difference:
    """Compare two checkpoints of any format.

    **Arguments**: `target` selects names, on both sides. Values may differ by `eps + rtol * |left|`; without either
    they must be equal, where NaN equals NaN and the signs of zeros do not matter. With `ignore_dtype` values alone
    count. Without `figures` a tensor is read up to its first difference and no further. `effective_rank` also
    factorizes the differences of matrices, which takes longer. `memory` is the budget, a number of bytes or a text such
    as "5GB" (default: a quarter of the available memory). `stop`: a `threading.Event`, or anything with `is_set`, that
    ends it early. Where both tell of their trees (those of orbax do), leaves that hold no tensor are compared, too, and
    whether one is an array of JAX or numpy, a Python number or a random key. The side files of two folders are
    compared, JSON by its keys; they do not count in `same`.
    **Returns** a `Difference`: names that only one side has, and the tensors that differ.
    **Raises** StoreError for what cannot be read, ValueError for a bad `target` or one that matches nothing,
    TypeError for trees, Stopped.
    **Example**:

    >>> bs.diff("model.safetensors", "model.safetensors").same
    True
    """
    if not all(isfinite(given) and given >= 0 for given in (eps, rtol)):
        raise ValueError(f"tolerances are finite and not negative, got eps={eps} and rtol={rtol}")
    with ExitStack() as opened:
        pair = [open_side(side, opened, "diff") for side in (left, right)]
        ours, theirs = pair if target is None else _choose(pair, target)
        found = _Comparison(ours, theirs, default_budget(host_bytes=memory), stop)
        result = found.compare(Tolerance(eps, rtol), measure=figures, ignore_dtype=ignore_dtype)
        if effective_rank:
            result = _add_ranks(result, [theirs, ours], memory, stop)
        result = replace(result, side_files=side_file_gaps(*map(_folder_of, (ours, theirs))))
        for side in pair:
            side.source.verify_unchanged()
        return result


def _add_ranks(found: Difference, sides: list[Checkpoint], memory: int | str | None, stop: StopSignal) -> Difference:
    """The difference with the effective ranks of what differs in value."""
    from brainsurgery_jax.looking.spectra import spectra_of  # numpy and factorizations, which few comparisons need

    names = {one.name for one in found.differing if one.figures is not None}
    ranks = {name: one.effective_rank for name, one in spectra_of(sides, memory, names, stop=stop).items()}
    return replace(found, differing=tuple(replace(d, effective_rank=ranks.get(d.name)) for d in found.differing))


def _folder_of(side: Checkpoint) -> str:
    """The path beside whose tensors the side files lie, on this machine: all of a remote checkpoint are fetched."""
    header = side.source.header
    if header.bring is not None:
        header.bring(find_side_files(header.side_folder).copied)
    return header.side_folder or side.path


def _choose(pair: Sequence[Checkpoint], target: str | list[str]) -> list[Checkpoint]:
    chosen = [side.select(target) for side in pair]
    if not any(chosen):
        names = dict.fromkeys(name for side in pair for name in side)
        near = did_you_mean(target, names) if isinstance(target, str) else ""
        raise ValueError(f"no tensor of {pair[0].path} or {pair[1].path} matches '{target}'.{near}")
    return chosen


class _Comparison:
    """Two checkpoints, and the questions about pairs of their tensors."""

    def __init__(self, left: Checkpoint, right: Checkpoint, budget: Budget, stop: StopSignal):
        self._left, self._right, self._budget, self._stop = left, right, budget, stop
        self._ours, self._theirs = left.avals, right.avals
        self._graph = Graph()

    def compare(self, tolerance: Tolerance, *, measure: bool, ignore_dtype: bool) -> Difference:
        shared = in_order(self._ours.keys() & self._theirs.keys())
        unlike = [name for name in shared if self._unlike(name, ignore_dtype=ignore_dtype)]
        levels = dict.fromkeys(unlike, APART)
        packed = [name for name in shared if name not in levels and self._opaque(name)]
        levels |= {n: EQUAL if same_bytes(*self._places(n)) else APART for n in packed}
        levels |= self._ask([name for name in shared if name not in levels], likeness(tolerance))
        apart = [name for name in shared if levels[name] == APART]
        measured = self._ask(filter(self._measurable, apart), measuring(tolerance)) if measure else {}
        found = (TensorDifference(n, self._ours[n], self._theirs[n], measured.get(n)) for n in apart)
        counts = list(levels.values())
        only_left, only_right = self._only(self._ours, self._theirs), self._only(self._theirs, self._ours)
        return Difference(self._left.path, self._right.path, only_left, only_right, tuple(found), counts.count(EQUAL),
                          counts.count(CLOSE), (*self._left.notes, *self._right.notes),
                          tree_gaps(self._left.tree, self._right.tree, shared))  # fmt: skip

    def _only(self, ours: Mapping[str, Aval], theirs: Mapping[str, Aval]) -> dict[str, Aval]:
        return {name: ours[name] for name in in_order(ours.keys() - theirs.keys())}

    def _unlike(self, name: str, *, ignore_dtype: bool) -> bool:
        """Whether the headers tell that a tensor differs."""
        left, right = self._ours[name], self._theirs[name]
        if left.shape != right.shape:
            return True
        return left.dtype != right.dtype and (not ignore_dtype or self._opaque(name))

    def _opaque(self, name: str) -> bool:
        return self._ours[name].dtype.is_opaque or self._theirs[name].dtype.is_opaque

    def _measurable(self, name: str) -> bool:
        return self._ours[name].shape == self._theirs[name].shape and not self._opaque(name)

    def _ask(self, names: Iterable[str], reduction: Reduction) -> dict[str, Any]:
        questions = {name: self._question(name, reduction) for name in names}
        found = answers(list(questions.values()), self._budget, self._stop)
        return {name: found[question] for name, question in questions.items()}

    def _question(self, name: str, reduction: Reduction) -> Pending:
        left, right = self._places(name)
        leaves = self._graph.leaf(*left, self._ours[name]), self._graph.leaf(*right, self._theirs[name])
        return Pending(leaves, reduction, lambda answer: Known(True))

    def _places(self, name: str) -> tuple[tuple[Source, str], tuple[Source, str]]:
        """The store of each side, and the name that the tensor has there."""
        left, right = self._left, self._right
        return (left.source, left.prefix + name), (right.source, right.prefix + name)


__all__ = ("Difference", "Figures", "TensorDifference", "diff")
