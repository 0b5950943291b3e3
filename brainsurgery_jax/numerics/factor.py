"""Truncated singular value decompositions: exact, by the Gram matrix, and by a certified block Lanczos method.

All of them take a tall matrix `x` [m, n] and give right singular vectors `v` [n, r] and the products `x @ v`, from
which factors and the truncated matrix follow without another decomposition. Written to the array API standard: on the
CPU they run on numpy, whose LAPACK needs no compiling, elsewhere compiled by JAX.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax._lazy import Array, jax, np
from brainsurgery_jax.numerics import bfloat16, leading
from brainsurgery_jax.numerics.lapack import svd, top_eigenvectors
from brainsurgery_jax.numerics.math import on_host, widen
from brainsurgery_jax.numerics.orthonormal import or_one, orthonormal
from brainsurgery_jax.numerics.rounding import round_to

if TYPE_CHECKING:
    Key = tuple[float | Array, float | Array]

OVERSAMPLE = 8
"""Columns beyond the rank that a Lanczos block carries, if the rank is small."""

WIDTH = 32
"""Columns of a block for larger ranks: a narrow block reaches the same accuracy in a smaller space, but meets at most
so many equal singular values. Therefore:"""

PROBE = 8, 3
"""Columns and steps of a second, unrelated block: what the first has missed shows there."""

SLAB = 1024
"""Rows that are widened at a time, so that a large matrix is never held whole in a wider dtype."""

FEW = 16
"""Slabs whose Gram matrices may be added in float32 without more error than each has."""

LOOKED_AT = 1 << 20
"""Elements at most that are compared with their approximation at a time."""

WIDENED = 1 << 25
"""Elements of a matrix that is widened once and for all: each product would else do it again."""

ROUNDING = 4e-6
"""Relative errors below this are float32's own rounding (a matrix of that very rank): nothing approximates better."""

GRAM_ROUNDING = 4e-6
"""What rounding to float32 adds to products with a Gram matrix, as a share of its trace, at least: measured at most
3.1e-6, for a matrix of equal entries, and 1e-7 for random ones. It is more where one row is far larger than the others
(2.7e-5), which `limit_error` measures."""

PROBED = 2.53
"""How many times as large as the longest of its products with 16 normal vectors an error may be (`limit_error`)."""

TELLING = 1e-3
"""Share of the squared norm above which what is missed is told by a difference of squared norms."""

SANE = 1e-12, 1e30
"""Squared norms outside of these bounds are left to the methods in float64: squares would leave float32's range."""


class Truncation(NamedTuple):
    """`x @ v` [m, r], `v` [n, r], and what is known: squared norms of x and of its part in the span of v, the bound."""

    xv: Array
    v: Array
    norm2: Array
    kept2: Array
    excess: Array


# --- Products ---------------------------------------------------------------------------------------------------------


def _slabs(x: Array, rows: int = SLAB) -> Iterator[tuple[slice, Array]]:
    """The rows of `x` in at least float32, some at a time; all at once where the compiler cuts for itself."""
    step = rows if on_host(x) else x.shape[0]
    for start in range(0, x.shape[0], step):
        at = slice(start, start + step)
        yield at, widen(x[at])


def times(x: Array, v: Array) -> Array:
    """`x @ v`."""
    return v.__array_namespace__().concat([rows @ v for _, rows in _slabs(x)])


def multiply_transposed(x: Array, u: Array) -> Array:
    """`x^T @ u`."""
    return _add_up(rows.T @ u[at] for at, rows in _slabs(x))


def _add_up(parts: Iterator[Array]) -> Array:
    return reduce(operator.add, parts, 0 + next(parts))


def product(a: Array, b: Array, dtype: np.dtype) -> Array:
    """`a @ b`, rounded to a dtype."""
    if not on_host(a):
        return round_to(a @ b, dtype)
    out = np.empty((a.shape[0], b.shape[1]), dtype)
    for at, rows in _slabs(a):
        if out.dtype == rows.dtype:
            np.matmul(rows, b, out=out[at])
        else:
            out[at] = round_to(rows @ b, dtype)
    return out


def _sum_squares(x: Array) -> Array:
    """Squared Frobenius norm of a real matrix: of each row in its own dtype, their sum in float64."""
    xp = x.__array_namespace__()
    return xp.sum(xp.einsum("ij,ij->i", x, x), dtype=np.float64)


def norm2(x: Array) -> Array:
    """Squared Frobenius norm of a real matrix."""
    total = _add_up(_sum_squares(rows) for _, rows in _slabs(x))
    if on_host(x) and not SANE[0] < total < SANE[1]:  # squares left the range of float32, or came close
        return _add_up(_sum_squares(rows.astype(np.float64)) for _, rows in _slabs(x))
    return total


def lengths(x: Array) -> Array:
    """The lengths of the columns, whatever their scale."""
    xp = x.__array_namespace__()
    scale = or_one(xp.max(xp.abs(x)))
    return xp.linalg.vector_norm(x / scale, axis=0) * scale


def what_is_missed(x: Array, xv: Array, v: Array, total: Array) -> Array:
    """Squared norm of what the span of v misses: the difference, if it is large enough to be told by float32."""
    left = total - norm2(xv)
    return left if on_host(x) and left > TELLING * total else _residual(x, xv, v)


def _residual(x: Array, xv: Array, v: Array) -> Array:
    """The same, by a look at every element, in slabs that stay in the cache."""
    if on_host(x) and x.flags.f_contiguous:  # a wide matrix, seen from its other side
        x, xv, v = x.T, v, xv
    return _add_up(_sum_squares(rows - xv[at] @ v.T) for at, rows in _slabs(x, residual_rows(x.shape)))


def residual_rows(shape: tuple[int, ...]) -> int:
    """Rows in such a slab."""
    return max(1, min(SLAB // 2, LOOKED_AT // shape[1]))


# --- Certain methods --------------------------------------------------------------------------------------------------


def exact(x: Array, rank: int) -> Truncation:
    """By LAPACK's (or the accelerator's) full thin SVD."""
    xp = x.__array_namespace__()
    u, s, vh = svd(widen(x))
    squares = xp.square(s.astype(np.float64))
    v = xp.conj(vh[:rank]).T
    return Truncation(
        u[:, :rank] * s[None, :rank].astype(u.dtype),
        v,
        xp.sum(squares),
        xp.sum(squares[:rank]),
        xp.zeros((), dtype=np.float64),
    )


def gram(x: Array, rank: int) -> Truncation:
    """By the eigenvectors of `x^T x`, all in float64.

    Squaring loses singular values below 1e-8 of the largest, which carry less than 1e-16 of the energy.
    """
    _, vectors = top_eigenvectors(_gram_matrix(x, np.float64), rank)
    return _project(x, vectors, norm2(x))


def quick_gram(x: Array, rank: int, tol: float | Array, key: Key) -> Truncation:
    """By the leading eigenvectors of `x^T x` in the dtype of `x`, with a bound.

    The bound allows for the rounding of the Gram matrix; where that is too much, residuals with `x` itself decide.
    """
    c = bfloat16.gram(x) if on_host(x) and bfloat16.pays(x) else None
    x = widened(x)
    if c is not None and SANE[0] < (total := np.linalg.trace(c)) < SANE[1]:
        quick = _by_leading(x, c, rank, total, tol, key)
        if quick.excess <= tol:
            return quick
    c = _gram_matrix(x, widen(x[:0]).dtype)
    total = c.__array_namespace__().linalg.trace(c)
    if on_host(x) and not SANE[0] < total < SANE[1]:  # LAPACK has trouble with infinity
        return Truncation(x[:, :rank], x[:rank].T, total, total, np.asarray(np.inf))
    return _by_leading(x, c, rank, total, tol, key)


def widened(x: Array) -> Array:
    """A matrix, widened once and for all unless it is large."""
    return widen(x) if x.size <= WIDENED else x


def limit_error(x: Array, c: Array, key: Key) -> Array:
    """A bound on the norm of E = `c - x^T x`, however `c` was computed.

    For k independent normal vectors g, ||E|| is at most a * sqrt(2 / pi) times the largest ||E g||, but for a
    probability of a^-k: of 1e-8 here, where k is 16 and a is 3.17. And E g = c g - x^T (x g).
    Reference: Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061, 2011, lemma 4.1.
    """
    normal = _normal(x, leading.WIDTH, key)
    error = c.astype(normal.dtype) @ normal - multiply_transposed(x, times(x, normal))
    return PROBED * lengths(error).max()


def _by_leading(x: Array, c: Array, rank: int, total: Array, tol: float | Array, key: Key) -> Truncation:
    """By the leading eigenvectors of the Gram matrix `c`, whose error is measured. Beside exact residuals that is all
    that is allowed for; before, products with `c` are not exact either."""
    xp, n = c.__array_namespace__(), x.shape[1]
    starts = on_host(x) and leading.starts(n, rank)
    normal = np.asarray(_normal(x, leading.WIDTH, key), c.dtype) if starts else None
    found = leading.leading(c.astype(widen(x[:0]).dtype), rank, total, tol, normal)
    t = _project(x, found.vectors, total)
    theta, rest = xp.sum(xp.square(t.xv), axis=0, dtype=np.float64), found.rest.astype(np.float64)
    error = limit_error(x, c, key).astype(np.float64)
    off = xp.maximum(GRAM_ROUNDING * total, error)
    ritz = Ritz(t.v, theta, rest + off, found.residual.astype(np.float64) + off)
    excess = limit_excess(ritz, total)
    if on_host(x) and excess <= tol:
        return t._replace(excess=excess)
    pulled = multiply_transposed(x, t.xv)
    residual = xp.linalg.vector_norm(pulled - t.v @ (t.v.T @ pulled), axis=0).astype(np.float64)
    total = norm2(x)
    exact = limit_excess(ritz._replace(below=rest + error, residual=residual), total)
    return t._replace(norm2=total, excess=xp.minimum(excess, exact))


def _project(x: Array, vectors: Array, total: Array) -> Truncation:
    """The truncation to the span of `vectors`, taken for the best one."""
    xp, v = x.__array_namespace__(), vectors.astype(widen(x[:0]).dtype)
    xv = times(x, v)
    return Truncation(xv, v, total, norm2(xv), xp.zeros((), dtype=np.float64))


def _gram_matrix(x: Array, dtype: np.dtype | type[np.float64]) -> Array:
    """`x^T x`, its products computed in `dtype`, summed over slabs of rows in float64 if there are many."""

    def slab(rows: Array) -> Array:
        wide = rows.astype(dtype)
        return wide.T @ wide

    n = x.shape[1]
    if on_host(x):
        step = 4 * SLAB if x.dtype == dtype else SLAB  # fewer sums, where that takes no more memory
        total = np.zeros((n, n), dtype if x.shape[0] <= FEW * step else np.float64)
        for start in range(0, x.shape[0], step):
            total += slab(x[start : start + step])
        return total
    whole, rest = divmod(x.shape[0], SLAB)
    total = jax.numpy.zeros((n, n), np.float64)
    cut = jax.lax.dynamic_slice_in_dim
    if whole:
        total = jax.lax.fori_loop(0, whole, lambda k, acc: acc + slab(cut(x, k * SLAB, SLAB)).astype(np.float64), total)
    return total + slab(x[whole * SLAB :]).astype(np.float64) if rest else total


# --- Block Lanczos ----------------------------------------------------------------------------------------------------


class Lanczos(NamedTuple):
    """Orthonormal `u` [m, k] and `v` [n, k] with `x @ v = u @ b`, and `x^T @ u = v @ b^T` but for the last block of u.

    There, `onward @ coupling` is left over; `onward` [n, w] is the next block of v. Directions that the matrix does not
    have are columns of zeros. `norm2` is the squared norm of x; on the host x itself, widened, goes along.
    """

    u: Array
    v: Array
    b: Array
    onward: Array
    coupling: Array
    norm2: Array
    x: Array | None


def block_width(rank: int) -> int:
    """Columns of a block of v."""
    return min(rank + OVERSAMPLE, WIDTH)


def random_blocks(x: Array, rank: int, key: Key) -> tuple[Array, Array | None]:
    """Normal values to start from, and for a probe where blocks have fewer columns than the rank. `key`: two words."""
    width = block_width(rank)
    more = PROBE[0] if width < rank + OVERSAMPLE else 0
    normal = _normal(x, width + more, key)
    return normal[:, :width], normal[:, width:] if more else None


def _normal(x: Array, columns: int, key: Key) -> Array:
    """Normal values [n, columns], in at least float32, for `x` [m, n]."""
    shape, dtype = (x.shape[1], columns), widen(x[:0]).dtype
    if on_host(x):
        return np.random.Generator(np.random.Philox(key=[int(word) for word in key])).standard_normal(shape, dtype)
    words = jax.numpy.stack(key).astype(np.uint32)
    normal = jax.random.normal(jax.random.wrap_key_data(words), shape, np.float32)
    return normal.astype(dtype)  # bits for float64 are drawn when the code is lowered, maybe without 64-bit types


def reach(x: Array, state: Lanczos | None, normal: Array, blocks: int) -> Lanczos:
    """The process after so many blocks, begun from `normal` or continued."""
    if state is None:
        xp = normal.__array_namespace__()
        u, v, b = (xp.zeros((n, 0), dtype=normal.dtype) for n in (*x.shape, 0))
        state = Lanczos(u, v, b, orthonormal(normal, v), b, norm2(x), x if on_host(x) else None)
    while state.v.shape[1] < blocks * normal.shape[1]:
        state = extend(x, state)
    return state


def extend(x: Array, state: Lanczos) -> Lanczos:
    """One step more: a block on either side.

    References: Golub, Luk and Overton, A block Lanczos method for computing the singular values of a matrix, 1981;
    both sides are kept orthogonal in full.
    """
    xp = state.v.__array_namespace__()
    v = xp.concat([state.v, state.onward], axis=1)
    y = times(x, state.onward)
    u = xp.concat([state.u, orthonormal(y, state.u)], axis=1)
    below = xp.zeros((u.shape[1] - state.b.shape[0], state.b.shape[1]), dtype=y.dtype)
    b = xp.concat([xp.concat([state.b, below], axis=0), u.T @ y], axis=1)
    z = multiply_transposed(x, u[:, state.u.shape[1] :])
    onward = orthonormal(z, v)
    return state._replace(u=u, v=v, b=b, onward=onward, coupling=onward.T @ z)


class Ritz(NamedTuple):
    """What the small matrix tells of the best approximation within the space reached: its right singular vectors in the
    basis `v` [k, r], squared singular values up to the rank, the next one, and the norms of the residuals."""

    vectors: Array
    theta: Array
    below: Array
    residual: Array


def ritz(state: Lanczos, rank: int) -> Ritz:
    """By the eigenvectors of `b^T b` in float64."""
    xp = state.b.__array_namespace__()
    b = state.b.astype(np.float64)
    theta, vectors = xp.linalg.eigh(b.T @ b)
    vectors = vectors[:, ::-1][:, :rank]
    last = b[-state.coupling.shape[1] :] @ vectors
    residual = xp.linalg.vector_norm(state.coupling.astype(np.float64) @ last, axis=0)
    return Ritz(vectors, theta[::-1][:rank], theta[-1 - rank], residual)


def limit_excess(found: Ritz, total: Array) -> Array:
    """A bound on the relative excess error, from squared singular values and residuals alone.

    It bounds ||x - x_r|| / (least possible) - 1 from the residuals of the Ritz vectors, provided that no other squared
    singular value is above `below`.
    References: Musco and Musco, Randomized block Krylov methods, 2015, https://arxiv.org/abs/1504.05477; the bound from
    the residual norms, Parlett, The Symmetric Eigenvalue Problem, 1998, chapter 11.
    """
    xp = found.theta.__array_namespace__()
    tiny = xp.asarray(1e-300)
    left = xp.maximum(total - xp.sum(found.theta), ROUNDING**2 * total)
    gap = found.theta - found.below
    off = xp.sum(xp.minimum(found.residual, xp.square(found.residual) / xp.maximum(gap, tiny)))
    off = off + xp.sum(xp.maximum(-gap, xp.zeros_like(gap)))  # singular values that others may take the place of
    bound = xp.where(off < left, xp.sqrt(left / xp.maximum(left - off, tiny)) - 1, xp.asarray(np.inf))
    return xp.where((total > SANE[0]) & (total < SANE[1]), bound, xp.asarray(np.inf))


def truncation(x: Array, state: Lanczos, found: Ritz, probe: Array | None) -> Truncation:
    """The best approximation within the space reached, of which `found` is known.

    `probe` [n, p] starts a second, unrelated Lanczos process besides: had the first missed a singular value, the best
    approximation would now keep more. What it does keep more counts as excess.
    """
    xp, total = state.v.__array_namespace__(), state.norm2
    excess = xp.where(_finds_more(state), limit_excess(found, total), xp.asarray(np.inf))
    if probe is not None:
        state = probe_space(x, state, probe)
        first, found = found, ritz(state, found.theta.shape[0])
        gain = xp.maximum(xp.sum(found.theta) - xp.sum(first.theta), xp.asarray(0.0))
        missed = xp.maximum(total - xp.sum(found.theta), ROUNDING**2 * total)
        excess = xp.maximum(excess, xp.sqrt(1 + gain / missed) - 1)
    v = state.v @ found.vectors.astype(state.v.dtype)
    xv = times(x, v)
    left = what_is_missed(x, xv, v, total)
    return Truncation(xv, v, total, total - left, xp.where(left <= ROUNDING**2 * total, xp.asarray(0.0), excess))


def _finds_more(state: Lanczos) -> Array:
    """Whether the process still finds as many directions as a block has columns: else there may be others it cannot."""
    return state.v.__array_namespace__().sum(state.onward**2, dtype=np.float64) > state.onward.shape[1] - 0.5


def probe_space(x: Array, state: Lanczos, probe: Array) -> Lanczos:
    """The space reached, and what a second Lanczos process finds beside it."""
    state = state._replace(onward=orthonormal(probe, state.v))
    for _ in range(PROBE[1]):
        state = extend(x, state)
    return state
