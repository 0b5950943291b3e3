"""Truncated singular value decompositions: exact, by the Gram matrix, and by a certified block Krylov method.

All of them give right singular vectors `v` [n, r] of a tall matrix `x` [m, n] and the products `x @ v`, from which both
factors and the truncated matrix follow without another decomposition.
"""

from __future__ import annotations

from typing import NamedTuple

from brainsurgery_jax._lazy import Array, jax, jnp

OVERSAMPLE = 8
"""Columns beyond the rank that a Krylov block carries."""

SLAB = 4096
"""Rows that are widened to float64 at a time."""

ROUNDING = 4e-6
"""Relative errors below this are float32's own rounding (a matrix of that very rank): nothing approximates better."""


class Truncation(NamedTuple):
    """`x @ v` [m, r], `v` [n, r], and what is known: squared norms of x and of its part in the span of v, the bound."""

    xv: Array
    v: Array
    norm2: Array
    kept2: Array
    excess: Array


def mm(a: Array, b: Array) -> Array:
    """Matrix product without the shortcuts that accelerators take by default."""
    return jnp.matmul(a, b, precision="highest")


def norm2(x: Array) -> Array:
    """Squared Frobenius norm, summed in float64."""
    return jnp.sum(jnp.square(jnp.abs(x)), dtype=jnp.float64)


def exact(x: Array, rank: int) -> Truncation:
    """By LAPACK's (or the accelerator's) full thin SVD."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    kept = jnp.sum(jnp.square(s[:rank]), dtype=jnp.float64)
    total = jnp.sum(jnp.square(s), dtype=jnp.float64)
    return Truncation(
        u[:, :rank] * s[None, :rank].astype(u.dtype), vh[:rank].conj().T, total, kept, jnp.zeros((), jnp.float64)
    )


def gram(x: Array, rank: int) -> Truncation:
    """By the eigenvectors of `x^T x` in float64: for matrices much taller than wide.

    Squaring loses singular values below 1e-8 of the largest, which carry less than 1e-16 of the energy.
    """
    _, vectors = jnp.linalg.eigh(_gram_matrix(x))
    v = vectors[:, ::-1][:, :rank].astype(x.dtype)
    xv = mm(x, v)
    return Truncation(xv, v, norm2(x), norm2(xv), jnp.zeros((), jnp.float64))


def _gram_matrix(x: Array) -> Array:
    """`x^T x` in float64, summed over slabs of rows, so that a tall matrix is never held whole in float64."""

    def slab(start: Array | int, rows: int) -> Array:
        part = jax.lax.dynamic_slice_in_dim(x, start, rows).astype(jnp.float64)
        return mm(part.T, part)

    whole, rest = divmod(x.shape[0], SLAB)
    total = jnp.zeros((x.shape[1], x.shape[1]), jnp.float64)
    if whole:
        total = jax.lax.fori_loop(0, whole, lambda k, acc: acc + slab(k * SLAB, SLAB), total)
    return total + slab(whole * SLAB, rest) if rest else total


def _orthonormal(y: Array) -> Array:
    """An orthonormal basis of the columns; of a deficient block, completed at random (which does no harm here)."""
    return jnp.linalg.qr(y)[0]


def krylov(x: Array, key: Array, rank: int, depth: int) -> Truncation:
    """By Rayleigh-Ritz on a block Krylov space of `x^T x`, with an a-posteriori bound on the excess error.

    `excess` bounds ||x - x_r|| / (least possible) - 1 from the residuals of the Ritz vectors, provided that no singular
    value was missed: a random start makes that as good as certain.
    References: Musco and Musco, Randomized block Krylov methods, 2015, https://arxiv.org/abs/1504.05477; the bound from
    the residual norms, Parlett, The Symmetric Eigenvalue Problem, 1998, chapter 11.
    """
    width = rank + OVERSAMPLE
    block = _orthonormal(mm(x.T, mm(x, jax.random.normal(key, (x.shape[1], width), x.dtype))))
    blocks = [block]
    for _ in range(depth):
        block = _orthonormal(mm(x.T, mm(x, block)))
        blocks.append(block)
    basis = jnp.linalg.qr(jnp.concatenate(blocks, 1))[0]
    ritz = jnp.linalg.svd(jnp.linalg.qr(mm(x, basis), mode="r"), full_matrices=False)
    v = mm(basis, ritz[2][:rank].T)
    xv = mm(x, v)
    theta = jnp.sum(jnp.square(xv), axis=0, dtype=jnp.float64)
    residual = jnp.linalg.norm(mm(x.T, xv) - v * theta.astype(x.dtype)[None, :], axis=0).astype(jnp.float64)
    below = jnp.square(ritz[1][rank].astype(jnp.float64))
    total, left = norm2(x), norm2(x - mm(xv, v.T))
    return Truncation(xv, v, total, total - left, _excess(theta, residual, below, left, total))


def _excess(theta: Array, residual: Array, below: Array, left: Array, total: Array) -> Array:
    gap = jnp.maximum(theta - below, 1e-300)
    off = jnp.sum(jnp.minimum(residual, jnp.square(residual) / gap))
    bound = jnp.where(off < left, jnp.sqrt(left / jnp.maximum(left - off, 1e-300)) - 1, jnp.inf)
    return jnp.where(left <= jnp.square(ROUNDING) * total, 0.0, bound)
