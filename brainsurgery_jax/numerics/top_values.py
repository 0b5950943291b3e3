"""The largest singular values of a matrix on the host, and how much of its energy they hold, without a full SVD.

The ladder of low-rank factorization (`ladder.py`) finds the space that they live in, with a bound on what a better one
could hold; where none is good enough, all singular values are computed.
"""

from __future__ import annotations

from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.numerics.factor import (
    Lanczos,
    Truncation,
    lengths,
    limit_excess,
    quick_gram,
    random_blocks,
    reach,
    ritz,
    truncation,
)
from brainsurgery_jax.numerics.ladder import Attempt, ladder
from brainsurgery_jax.numerics.lapack import singular_values

TOLERANCE = 1e-4
"""The norm of what is left may exceed the least possible by this share."""


class TopValues(NamedTuple):
    """The largest singular values, falling, in double precision; the share of the energy that they hold; and by which
    share the norm of the rest may exceed that of the best approximation of this rank."""

    values: np.ndarray
    captured: float
    excess: float


def top_values(x: np.ndarray, rank: int) -> TopValues:
    """The `rank` largest singular values of a finite matrix of float32 or float64."""
    tall = x.T if x.shape[0] < x.shape[1] else x
    state: Lanczos | None = None
    rungs = ladder(Aval(x.shape, BY_NAME[x.dtype.name]), rank, "auto")
    for rung in rungs[:1] if rungs[0].way == "quick-gram" else rungs:
        found, state = _climb(tall, rank, rung, state)
        if found is not None and found.excess <= TOLERANCE:
            return _read(found, rank)
    values = np.asarray(singular_values(x), np.float64)
    squares = np.square(values / (values[0] or 1.0))
    return TopValues(values[:rank], float(squares[:rank].sum() / (squares.sum() or 1.0)) if values[0] else 1.0, 0.0)


def _climb(
    tall: np.ndarray, rank: int, rung: Attempt, state: Lanczos | None
) -> tuple[Truncation | None, Lanczos | None]:
    """What a rung finds, and the Lanczos process to go on with. In place of a certain Gram matrix in float64, which
    takes longer than all values, comes the quick one, which has a bound of its own."""
    key = rank, 0
    if rung.way == "exact":
        return None, None
    if rung.way != "lanczos":
        return quick_gram(tall, rank, TOLERANCE, key), None
    normal, probe = random_blocks(tall, rank, key)
    state = reach(tall, state, normal, rung.blocks)
    found = ritz(state, rank)
    if limit_excess(found, state.norm2) > TOLERANCE:
        return None, state
    return truncation(tall, state, found, probe), state


def _read(found: Truncation, rank: int) -> TopValues:
    values = np.sort(lengths(found.xv).astype(np.float64))[::-1]
    total = float(found.norm2)
    return TopValues(values, min(float(found.kept2) / total, 1.0) if total else 1.0, float(found.excess))
