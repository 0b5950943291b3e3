"""Factorizations and solutions of small dense matrices, batched over leading axes, in double precision, rounded once.

What has no single answer is given one: the largest entry of each left singular vector and of each eigenvector is
positive, and so is the diagonal of R of a QR factorization. So numpy and JAX agree, on every backend. Symmetric
matrices are read from their lower triangle, as numpy reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TypeAlias

from brainsurgery_jax._lazy import Array, Flag, jax, jnp, np
from brainsurgery_jax.numerics.math import largest_entries, on_host

Answer: TypeAlias = "tuple[Array, Flag]"
"""A result, and whether the matrices have one; what else there is then means nothing."""

Method: TypeAlias = "Callable[..., Array]"
"""`(numpy or jax.numpy, operands in double precision) -> result`."""


def _compute(method: Method, shape: tuple[int, ...], *xs: Array) -> Answer:
    """What a method gives in double precision, in the dtype of its operands, and whether all of it is finite."""
    if all(map(on_host, xs)):
        try:
            with np.errstate(all="ignore"):
                made = method(np, *(x.astype(np.float64) for x in xs))
        except np.linalg.LinAlgError:
            return np.full(shape, np.nan, xs[0].dtype), np.bool_(False)
        return made.astype(xs[0].dtype), np.isfinite(made).all()
    wide = lambda *xs: method(jnp, *(x.astype(np.float64) for x in xs)).astype(xs[0].dtype)  # noqa: E731
    narrow = lambda *xs: method(jnp, *xs)  # noqa: E731  (TPUs factorize no matrix of float64)
    found = jax.lax.platform_dependent(*xs, tpu=narrow, default=wide)
    return found, jnp.isfinite(found).all()


def solve(a: Array, b: Array) -> Answer:
    """`a^-1 @ b` [..., n, k], of `a` [..., n, n] and `b` [..., n, k], or of a vector `b` [n]."""
    vector = b.ndim == 1
    shape = a.shape[:-1] if vector else (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:])

    def method(xp: ModuleType, a: Array, b: Array) -> Array:
        return xp.linalg.solve(a, b[:, None])[..., 0] if vector else xp.linalg.solve(a, b)

    return _compute(method, shape, a, b)


def inverse(a: Array) -> Answer:
    """`a^-1`, of `a` [..., n, n]."""
    return _compute(lambda xp, a: xp.linalg.inv(a), a.shape, a)


def pseudo_inverse(x: Array) -> Answer:
    """The Moore-Penrose inverse [..., n, m] of `x` [..., m, n]: singular values below max(m, n) times the precision of
    its dtype, as a share of the largest, are taken for zero."""
    share = max(x.shape[-2:]) * float(np.finfo(x.dtype).eps)
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    return _compute(lambda xp, x: xp.linalg.pinv(x, rtol=share), shape, x)


def cholesky(x: Array) -> Answer:
    """The lower triangular factor `l` of `x = l @ l.T`, of a symmetric positive definite `x` [..., n, n]."""

    def method(xp: ModuleType, x: Array) -> Array:
        return xp.linalg.cholesky(x) if xp is np else xp.linalg.cholesky(_symmetric(x), symmetrize_input=False)

    return _compute(method, x.shape, x)


def determinant(x: Array) -> Array:
    """The determinant of `x` [..., n, n]."""

    def method(xp: ModuleType, x: Array) -> Array:
        if xp is np:
            return np.linalg.det(x)
        lu, pivots, _ = jax.lax.linalg.lu(x)
        swaps = jnp.sum(pivots != jax.lax.broadcasted_iota(pivots.dtype, pivots.shape, pivots.ndim - 1), axis=-1)
        return jnp.prod(jnp.diagonal(lu, axis1=-2, axis2=-1), axis=-1) * jnp.where(swaps % 2 == 1, -1.0, 1.0)

    return _compute(method, x.shape[:-2], x)[0]


def packed_qr(x: Array) -> Answer:
    """`q^T` and `r` side by side [..., k, m + n], of `x = q @ r` [..., m, n], k the shorter side.

    The diagonal of `r` is not negative.
    """
    *lead, m, n = x.shape

    def method(xp: ModuleType, x: Array) -> Array:
        q, r = xp.linalg.qr(x)
        signs = _signs(xp, xp.diagonal(r, axis1=-2, axis2=-1))[..., None]
        return xp.concatenate([xp.swapaxes(q, -1, -2) * signs, r * signs], axis=-1)

    return _compute(method, (*lead, min(m, n), m + n), x)


def packed_svd(x: Array) -> Answer:
    """`u^T`, the singular values falling and `v^T` side by side [..., k, m + 1 + n], of `x` [..., m, n], k the shorter
    side."""
    *lead, m, n = x.shape

    def method(xp: ModuleType, x: Array) -> Array:
        u, s, vh = xp.linalg.svd(x, full_matrices=False)
        ut = xp.swapaxes(u, -1, -2)
        signs = _signs(xp, largest_entries(ut, -1))
        return xp.concatenate([ut * signs, s[..., None], vh * signs], axis=-1)

    return _compute(method, (*lead, min(m, n), m + 1 + n), x)


def packed_eigh(x: Array) -> Answer:
    """The eigenvalues rising, and the eigenvectors as rows, side by side [..., n, 1 + n], of a symmetric `x`."""
    *lead, n, _ = x.shape

    def method(xp: ModuleType, x: Array) -> Array:
        w, v = xp.linalg.eigh(x) if xp is np else xp.linalg.eigh(_symmetric(x), symmetrize_input=False)
        rows = xp.swapaxes(v, -1, -2)
        return xp.concatenate([w[..., None], rows * _signs(xp, largest_entries(rows, -1))], axis=-1)

    return _compute(method, (*lead, n, 1 + n), x)


def trace(xp: ModuleType, x: Array) -> Array:
    """The sum of the diagonal of `x` [..., m, n], of floats in double precision."""
    wide = np.float64 if np.issubdtype(x.dtype, np.floating) else None
    return xp.sum(xp.diagonal(x, axis1=-2, axis2=-1), axis=-1, dtype=wide)


def _symmetric(x: Array) -> Array:
    """The symmetric matrix whose lower triangle is that of `x`."""
    low = jnp.tril(x, -1)
    return jnp.tril(x) + jnp.swapaxes(low, -1, -2)


def _signs(xp: ModuleType, x: Array) -> Array:
    """1, and -1 for what is negative."""
    return xp.where(x < 0, -1.0, 1.0).astype(x.dtype)
