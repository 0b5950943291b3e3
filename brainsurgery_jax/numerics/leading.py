"""The largest eigenvalues of a symmetric matrix, and a proof that none was missed.

By a block Lanczos process where few are wanted, else by LAPACK.
"""

from __future__ import annotations

from typing import NamedTuple

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.numerics.lapack import is_positive_definite, top_eigenvectors
from brainsurgery_jax.numerics.math import on_host
from brainsurgery_jax.numerics.orthonormal import orthonormal

WIDTH = 16
"""Columns of a block."""

SPACE = 2.5
"""Size of the space to look at first, as a multiple of the wanted eigenvalues: where most matrices tried are done."""

STEP = 2
"""Blocks between two looks."""

MOST = 0.4
"""Share of the whole space beyond which finding all eigenvalues is cheaper."""


class Leading(NamedTuple):
    """Eigenvalues, falling, their vectors [n, r], the norms of their residuals, and a bound on all the others."""

    theta: Array
    vectors: Array
    residual: Array
    rest: Array


def leading(c: Array, rank: int, total: Array, tol: float | Array, normal: np.ndarray | None) -> Leading:
    """The `rank` largest eigenvalues of a positive semidefinite matrix of trace `total`.

    Where a Lanczos process is quicker (`normal` [n, WIDTH] starts it), they are as exact as the share `tol` of what
    they leave of the trace. None is missed: that all others are below `rest` is proven by a Cholesky factorization.
    References: Parlett, The Symmetric Eigenvalue Problem, 1998, chapters 11 and 13.
    """
    if normal is not None and on_host(c) and (found := _lanczos(c, rank, total, tol, normal)) is not None:
        return found
    values, vectors = top_eigenvectors(c, min(rank + 1, c.shape[0]))
    xp = values.__array_namespace__()
    rest = values[rank] if rank < c.shape[0] else xp.zeros((), dtype=values.dtype)
    return Leading(values[:rank], vectors[:, :rank], xp.zeros_like(values[:rank]), rest)


def starts(short: int, rank: int) -> bool:
    """Whether a Lanczos process is quicker on the host than finding all eigenvalues."""
    return _first_look(rank) <= MOST * short and _lanczos_cost(short, rank) < _direct_cost(short)


def _first_look(rank: int) -> int:
    return -(-int(SPACE * (rank + 8)) // WIDTH) * WIDTH


def cost(n: int, rank: int) -> float:
    """Operations of a large product in float32 that take as long, as measured on one core. The Lanczos process is for
    numpy alone: compiled code finds all eigenvalues."""
    return _lanczos_cost(n, rank) if starts(n, rank) else _direct_cost(n)


def _lanczos_cost(n: int, rank: int) -> float:
    """Products with the matrix, orthogonalizations, eigenvalues of the small matrix, and the proof."""
    k = _first_look(rank) + WIDTH
    return 3 * n**2 * k + 12 * n * k**2 + 40 * k**3 + 0.6 * n**3


def _direct_cost(n: int) -> float:
    """Some eigenvectors by LAPACK."""
    return 4.5 * n**3


def workspace(n: int, item: int) -> int:
    """Bytes besides the matrix: the basis, the small matrix with its eigenvectors, and the matrix to be proven."""
    most = int(MOST * n) + WIDTH
    return item * (n * most + 4 * most**2 + 2 * n**2)


def _lanczos(c: np.ndarray, rank: int, total: Array, tol: float | Array, normal: np.ndarray) -> Leading | None:
    """By a block Lanczos process with full orthogonalization, unless its space grows too large."""
    n, first = c.shape[0], _first_look(rank)
    most = int(MOST * n) // WIDTH * WIDTH
    basis = np.empty((n, most + WIDTH), c.dtype, order="F")
    small = np.zeros((most, most), c.dtype)
    basis[:, :WIDTH] = orthonormal(normal, basis[:, :0])
    for end in range(WIDTH, most + 1, WIDTH):
        last, spanned = slice(end - WIDTH, end), basis[:, :end]
        image = c @ basis[:, last]
        small[:end, last] = spanned.T @ image
        small[last, :end] = small[:end, last].T
        onward = orthonormal(image, spanned)
        basis[:, end : end + WIDTH] = onward
        if end >= first and (end - first) % (STEP * WIDTH) == 0:
            values, inner = top_eigenvectors(small[:end, :end], rank + 1)
            residual = np.linalg.norm((onward.T @ image) @ inner[last, :rank], axis=0)
            found = Leading(values[:rank], spanned[:, :0], residual, values[rank])
            if (allowed := _allow(found, total, tol)) is not None:
                vectors = spanned @ inner[:, :rank]
                return _prove(c, found._replace(vectors=vectors, rest=allowed))
    return None


def _allow(found: Leading, total: Array, tol: float | Array) -> np.ndarray | None:
    """How large another eigenvalue may be, if what is found is exact enough; else None.

    Half of what `tol` allows is for the residuals, the other half for eigenvalues that are too close to tell apart.
    """
    theta, residual = found.theta.astype(np.float64), found.residual.astype(np.float64)
    left = max(float(total) - float(np.sum(theta)), 0.0)
    rest = float(found.rest) + max((theta[-1] - float(found.rest)) / 2, tol * left / len(theta) / 2)
    gaps = np.maximum(theta - rest, 1e-300)
    return np.asarray(rest) if np.sum(np.minimum(residual, residual**2 / gaps)) <= tol * left else None


def _prove(c: np.ndarray, found: Leading) -> Leading | None:
    """`found`, if all others are below `rest`: then `rest - c`, what was found aside, is positive definite."""
    without = np.asarray((found.vectors * found.theta) @ found.vectors.T)
    without -= c
    without.flat[:: c.shape[0] + 1] += c.dtype.type(found.rest)
    return found if is_positive_definite(without) else None
