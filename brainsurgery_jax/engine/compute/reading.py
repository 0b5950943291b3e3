"""Operands that are read while they are computed on: what is read is still in the cache then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brainsurgery_jax.engine.plan.pieces import Piece, is_part
from brainsurgery_jax.graph.expr import Expr, cuts_of, runs_on_numpy
from brainsurgery_jax.index.boxes import flat_range
from brainsurgery_jax.store.io.local import LocalFile

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class LateLeaf:
    """Elements `start:stop` of a leaf, flat. Each slice of them is read when it is asked for."""

    leaf: Expr
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """How many bytes they are."""
        return self.size * self.leaf.aval.dtype.bits // 8

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(self.size)
        return self.leaf.source.read_range(self.leaf.name, self.start + first, self.start + last)


def read_late(uses: Mapping[Piece, int], order: Sequence[tuple[Piece, Sequence[Piece]]]) -> dict[Piece, LateLeaf]:
    """The pieces of leaves that only a call on slices of them needs, each once."""
    found: dict[Piece, LateLeaf] = {}
    for piece, needs in order:
        if not takes_slices(piece):
            continue
        for need in needs:
            if need.expr.is_leaf and uses[need] == 1 and (run := _run_of(need)) is not None:
                found[need] = LateLeaf(need.expr, *run)
    return found


def takes_slices(piece: Piece) -> bool:
    """Whether numpy computes a piece from slices of its operands: of all, or of those that are not needed whole."""
    kernel, cuts = piece.expr.kernel, cuts_of(piece.expr)
    if kernel is None or not runs_on_numpy(piece.expr):
        return False
    return kernel.elementwise or (kernel.needs_whole is not None and cuts is not None and is_part(piece, cuts))


def _run_of(piece: Piece) -> tuple[int, int] | None:
    """The elements of a piece, if no others lie between them, and they lie so in a local file: what must be fetched or
    unpacked is read as a whole."""
    run = (piece.start, piece.stop) if piece.box is None else flat_range(piece.expr.aval.shape, piece.box)
    if run is None or run[0] == run[1]:
        return None
    found = piece.expr.source.file_run(piece.expr.name, *run)
    return run if found is not None and isinstance(found.file, LocalFile) else None
