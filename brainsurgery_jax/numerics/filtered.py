"""Truncated singular value decompositions for accelerators: Chebyshev-filtered subspace iteration with a certificate.

Made of matrix products, Cholesky factorizations and eigenvalues of matrices as narrow as the rank, all in float32: a
TPU emulates float64, and compiles a full-size `eigh`, `qr` or `svd` for minutes, if at all. What no round certifies is
computed on the host, in float64.

References: Zhou, Saad, Tiago and Chelikowsky, Self-consistent-field calculations using Chebyshev-filtered subspace
iteration, 2006; Fukaya and others, Shifted Cholesky QR for computing the QR factorization of ill-conditioned matrices,
2020.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, chain
from math import acosh, cosh
from typing import NamedTuple

from brainsurgery_jax._lazy import Array, jax, jnp, np
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.numerics.factor import ROUNDING, SANE, Truncation
from brainsurgery_jax.numerics.math import widen

OVERSAMPLE = 12
"""Columns beyond the rank at least; the width is a multiple of `LANES`."""

LANES = 8

WIDEST = 256
"""Columns of the widest block: of a wider matrix, XLA for TPUs compiles `eigh` for minutes."""

NARROW = 4
"""The shorter side of a matrix has at least so many times the columns of a block; else finding all is as cheap."""

DEGREES = (0, 0, 0, 2), (4,), (8,), (16,), (16, 32)
"""Degrees of the filters of each round; 0: each column is multiplied once, as subspace iteration does. Low ones first:
a vector far above the others must be accurate before it is set aside from a filter of a high degree."""

RANGE = 1e4
"""How much more than the least wanted vector a filter may amplify another one: orthogonalization in float32 loses what
is 1e-7 of a column. Vectors that would exceed it are set aside."""

PASSES = 5
"""Passes of Cholesky-QR: from columns that differ by rounding alone, each but the last comes 200 times nearer."""

SHIFT = 1.2e-7
"""What is added to the diagonal of the Gram matrix of unit columns, for each column, in all passes but the last: so
much rounding may take from its least eigenvalue, if they are nearly parallel. In the last, this once."""

NOISE = 2e-7
"""Length of the random column that is added to a unit column: dependent columns differ in it, and it is rounding."""

DECADES = 1e-4
LEVELS = 4
"""An `eigh` in float32 tells eigenvalues down to `DECADES` of the largest; each level goes on with what is below."""

LEAST = 1e-11
"""Share of the largest eigenvalue below which the filter takes all for one: rounding alone is there."""

OWN_ERROR = 4e-7
"""Bound on the relative error, in the norm of the matrix, that rounding alone adds to the product of the factors."""


class Subspace(NamedTuple):
    """Ritz vectors `v` [n, l] of `x^T x`, `xv = x @ v` [m, l], and the squared norms `theta` [l], falling."""

    v: jax.Array
    xv: jax.Array
    theta: jax.Array


def width(rank: int) -> int:
    """Columns of a block for a rank."""
    return -(-(rank + OVERSAMPLE) // LANES) * LANES


def fits(x: Aval, rank: int) -> bool:
    """Whether matrices of a shape and dtype can be factorized this way."""
    block = width(rank)
    return x.dtype.is_float and x.dtype.bits <= 32 and block <= WIDEST and NARROW * block <= min(x.shape)


def workspace(x: Aval, rank: int) -> int:
    """Bytes on the device besides the matrix and the results: the matrix widened, its approximation, their difference
    squared, and blocks of columns."""
    return 4 * (3 * x.size + 12 * width(rank) * sum(x.shape) + 16 * width(rank) ** 2)


def reach(x: jax.Array, state: Subspace | None, rank: int, degrees: tuple[int, ...], key: jax.Array) -> Subspace:
    """The subspace after filters of some degrees, begun at random or continued. One loop, so that all rounds compile as
    one filter does."""
    noise = _columns(key, x.shape[1], width(rank))
    return _go_through(x, _begin(x, noise) if state is None else state, noise, degrees, 0, len(degrees))


def climb(x: jax.Array, rank: int, tol: Array, key: jax.Array) -> Truncation:
    """The truncation by the first round of `DEGREES` whose excess error is at most `tol`, else by the last: for callers
    that cannot look at a result. One loop, as in `reach`, around the rounds."""
    noise = _columns(key, x.shape[1], width(rank))
    ends = jnp.asarray([0, *accumulate(map(len, DEGREES))], np.int32)
    degrees = tuple(chain.from_iterable(DEGREES))

    def is_wanted(reached: tuple[jax.Array, Subspace, Truncation]) -> jax.Array:
        at, _, found = reached
        return (at < len(DEGREES)) & ~(found.excess <= tol)

    def go_on(reached: tuple[jax.Array, Subspace, Truncation]) -> tuple[jax.Array, Subspace, Truncation]:
        at, state, _ = reached
        state = _go_through(x, state, noise, degrees, ends[at], ends[at + 1])
        return at + 1, state, truncation(x, state, rank)

    begun = _begin(x, noise)
    outline = jax.eval_shape(partial(truncation, rank=rank), x, begun)
    nothing = jax.tree.map(lambda part: jnp.full(part.shape, np.inf, part.dtype), outline)
    return jax.lax.while_loop(is_wanted, go_on, (jnp.zeros((), np.int32), begun, nothing))[2]


def _begin(x: jax.Array, noise: jax.Array) -> Subspace:
    return Subspace(noise, multiply(x, noise), jnp.zeros(noise.shape[1], np.float32))


def _go_through(
    x: jax.Array,
    state: Subspace,
    noise: jax.Array,
    degrees: tuple[int, ...],
    start: int | jax.Array,
    stop: int | jax.Array,
) -> Subspace:
    """The subspace after the filters of these degrees from position `start` to before `stop`."""
    caps = jnp.asarray([_cap(degree) for degree in degrees], np.float32)
    counts = jnp.asarray(degrees, np.int32)

    def go_on(at: jax.Array, state: Subspace) -> Subspace:
        return _rotate(x, _filter(x, state, noise, counts[at], caps[at]))

    return jax.lax.fori_loop(start, stop, go_on, state)


def _cap(degree: int) -> float:
    """The largest eigenvalue that a filter amplifies by no more than `RANGE`, as a multiple of the least Ritz value."""
    return (cosh(acosh(RANGE) / degree) + 1) / 2 if degree else 0


def truncation(x: jax.Array, state: Subspace, rank: int) -> Truncation:
    """The best approximation within the subspace, and a bound on its excess error. All that is told is in float32.

    Squared norms are shares of that of `x`. The error is that of the factors themselves, by a look at every element:
    a difference of squared norms would lose what is below 1e-7 of them. Residuals count what leaves the kept vectors,
    since a mixture among these is the same approximation. The next eigenvalue is taken for as large as its residual
    allows.
    References: as `factor.limit_excess`.
    """
    v, xv = state.v[:, :rank], state.xv[:, :rank]
    total = _sum_squares(widen(x))
    pulled = multiply(x.T, state.xv[:, : rank + 1])
    outside = pulled - v @ (v.T @ pulled)
    others = outside[:, rank] - state.v[:, rank] * state.theta[rank]
    residual = jnp.linalg.vector_norm(outside[:, :rank], axis=0) / total
    below = (state.theta[rank] + jnp.linalg.vector_norm(others)) / total
    gap = state.theta[:rank] / total - below
    near = jnp.minimum(residual, jnp.square(residual) / jnp.where(gap > 0, gap, 1))
    off = jnp.sum(jnp.where(gap > 0, near, residual - gap)) + OWN_ERROR**2
    left = _sum_squares(widen(x) - xv @ v.T) / total
    infinite = np.float32(np.inf)
    excess = jnp.where(off < left, jnp.expm1(-0.5 * jnp.log1p(-off / left)), infinite)
    excess = jnp.where(left <= ROUNDING**2, jnp.zeros_like(left), excess)
    told = (total > SANE[0]) & (total < SANE[1]) & jnp.isfinite(left)
    return Truncation(xv, v, total, (1 - left) * total, jnp.where(told, excess, infinite))


def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x @ y` in float32. Of bfloat16, each product of two elements is exact and the sums are in float32; `y`, in
    float32, is split into three terms that add up to it, so that nothing else is rounded."""
    if x.dtype != jnp.bfloat16:
        return widen(x) @ y
    first, second = _to_bfloat16(y), _to_bfloat16(y - _to_bfloat16(y))
    terms = jnp.concat([first, second, _to_bfloat16(y - first - second)], axis=1).astype(jnp.bfloat16)
    parts = jnp.matmul(x, terms, preferred_element_type=jnp.float32)
    one, two, three = jnp.split(parts, 3, axis=1)
    return one + (two + three)


def _to_bfloat16(y: jax.Array) -> jax.Array:
    """Rounded to what bfloat16 holds. XLA may leave out a conversion there and back, but not this."""
    return jax.lax.reduce_precision(y, exponent_bits=8, mantissa_bits=7)


def _sum_squares(x: jax.Array) -> jax.Array:
    """Squared Frobenius norm: row by row, so that no long sum rounds much."""
    return jnp.sum(jnp.sum(jnp.square(x), axis=1))


def _columns(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Random columns of about unit length."""
    return jax.random.normal(key, (rows, columns), np.float32) * np.float32(rows**-0.5)


def orthonormal(y: jax.Array, noise: jax.Array) -> jax.Array:
    """An orthonormal basis of the columns of `y`, in their order, by Cholesky-QR with a shift. Dependent columns give
    way to random ones."""
    length = jnp.linalg.vector_norm(y, axis=0)
    y = y / jnp.where(length > 0, length, 1)[None, :] + NOISE * noise
    eye = jnp.eye(y.shape[1], dtype=y.dtype)

    def orthogonalize(at: jax.Array, y: jax.Array) -> jax.Array:
        shift = jnp.where(at < PASSES - 1, np.float32(SHIFT * y.shape[1]), np.float32(SHIFT))
        lower = jnp.linalg.cholesky(y.T @ y + shift * eye)
        return y @ jax.scipy.linalg.solve_triangular(lower, eye, lower=True).T

    return jax.lax.fori_loop(0, PASSES, orthogonalize, y)


def _filter(x: jax.Array, state: Subspace, noise: jax.Array, degree: jax.Array, cap: jax.Array) -> jax.Array:
    """A block of which a Chebyshev polynomial of `x^T x`, small up to the least Ritz value, amplifies the wanted part.

    Vectors that it would amplify beyond `RANGE` are multiplied once and set aside; the others are kept orthogonal to
    them, twice, since rounding brings back what is amplified most.
    """
    v, theta = state.v, state.theta
    bound = jnp.maximum(theta[-1], LEAST * theta[0])
    bound = jnp.where(bound > 0, bound, 1)
    aside = (theta[None, :] > cap * bound) | (degree == 0)
    above, wanted = jnp.where(aside, v, 0), jnp.where(aside, 0, v)

    def apply(z: jax.Array) -> jax.Array:
        image = multiply(x.T, multiply(x, z)) * (2 / bound)
        for _ in range(2):
            image = image - above @ (above.T @ image)
        return image - z

    def recur(at: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before, now = pair
        return now, jnp.where(at == 0, 1, 2) * apply(now) - before

    _, filtered = jax.lax.fori_loop(0, degree, recur, (jnp.zeros_like(wanted), wanted))
    return orthonormal(jnp.where(aside, multiply(x.T, state.xv), filtered), noise)


def _rotate(x: jax.Array, q: jax.Array) -> Subspace:
    """The Ritz vectors in the span of orthonormal columns (Rayleigh and Ritz).

    One `eigh` in float32 is as exact as the largest eigenvalue allows. So it goes down level by level: couplings with
    what is found are removed to first order, and the rest has an `eigh` of its own, in its own scale.
    """
    xq, eye = multiply(x, q), jnp.eye(q.shape[1], dtype=q.dtype)
    last = jnp.arange(2 * q.shape[1], q.shape[1], -1, dtype=q.dtype)  # above all of the rest, and falling

    def descend(level: jax.Array, w: jax.Array) -> jax.Array:
        y = xq @ w
        small = y.T @ y
        theta = jnp.diagonal(small)
        scale = jnp.max(theta) * jnp.power(np.float32(DECADES), level.astype(q.dtype))
        found = theta > scale
        apart = theta[None, :] - theta[:, None]
        coupled = (found[:, None] | found[None, :]) & (jnp.abs(small) < 0.1 * jnp.abs(apart))
        turn = jnp.where(coupled, small / jnp.where(apart == 0, 1, apart), 0)
        inner = ~found[:, None] & ~found[None, :]
        rest = jnp.where(inner, small / jnp.where(scale > 0, scale, 1), 0) + jnp.diag(jnp.where(found, last, 0))
        vectors = jnp.linalg.eigh(rest)[1][:, ::-1]
        return _orthonormalize(w + w @ turn, times=2) @ vectors

    v = _orthonormalize(q @ jax.lax.fori_loop(0, LEVELS, descend, eye), times=1)
    xv = multiply(x, v)
    return Subspace(v, xv, jnp.sum(jnp.square(xv), axis=0))


def _orthonormalize(w: jax.Array, times: int) -> jax.Array:
    """Columns that are nearly orthonormal, made more so by Newton and Schulz's iteration."""
    eye = jnp.eye(w.shape[1], dtype=w.dtype)
    for _ in range(times):
        w = w + w @ (eye - w.T @ w) / 2
    return w
