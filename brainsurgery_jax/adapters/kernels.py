"""Kernels of adapters: whether tensors differ, spectra, ranks that share a budget, factors of a product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import FLOAT64, INT64, Aval
from brainsurgery_jax.numerics.compare import agreement
from brainsurgery_jax.numerics.ladder import values_workspace
from brainsurgery_jax.numerics.lapack import singular_values, svd
from brainsurgery_jax.numerics.math import largest_entries, matrix, on_host, widen
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.op import Avals, Number, Params, kernel
from brainsurgery_jax.protocol import Reduction

NOT_FINITE = "the matrix holds NaN or infinity and cannot be factorized"


def _anywhere(avals: Avals, params: Params) -> bool:
    return True


def _scalar(avals: Avals, params: Params) -> Avals:
    return (Aval((), INT64),)


def _find_difference(avals: Avals, params: Params) -> tuple[Callable[[Any], Reduction], ...]:
    same = agreement().block
    found = Reduction(
        lambda x, y: not same(x, y), lambda a, b: a or b, lambda any_: np.asarray(int(any_), np.int64),
        np.zeros((), np.int64), unordered=True, decisive=True,
    )  # fmt: skip
    return (lambda _: found,)


@kernel(result=_scalar, host=_anywhere, fold=_find_difference)
def differing(x: Array, y: Array) -> Array:
    """1 if any element of two tensors of one shape and dtype differs, else 0. NaN differs from everything."""
    return (x != y).any().astype(np.int64)


@kernel(
    check=lambda avals, params: matrix(avals, "a spectrum"),
    result=lambda avals, params: (Aval((min(avals[0].shape),), FLOAT64),),
    guarded=True,
    refusal=NOT_FINITE,
    host=_anywhere,
    workspace=lambda avals, params: values_workspace(avals[0]),
)
def spectrum(x: Array) -> tuple[Array, Array]:
    """The singular values of a matrix, falling [min(m, n)], and whether it is finite."""
    xp = x.__array_namespace__()
    finite = xp.all(xp.isfinite(x))
    if on_host(x) and not finite:
        return np.zeros(min(x.shape)), finite
    return singular_values(widen(x)).astype(np.float64), finite


@kernel(
    check=lambda avals, params: matrix(avals, "a spectrum"),
    result=_scalar,
    guarded=True,
    refusal=NOT_FINITE,
    host=_anywhere,
    workspace=lambda avals, params: values_workspace(avals[0]),
)
def rank_above(x: Array, *, least: Number) -> tuple[Array, Array]:
    """How many singular values of a matrix are above a bound, an int64 scalar, and whether it is finite."""
    xp = x.__array_namespace__()
    finite = xp.all(xp.isfinite(x))
    if on_host(x) and not finite:
        return np.asarray(0), finite
    return xp.asarray(xp.sum(singular_values(widen(x)).astype(np.float64) > least, dtype=np.int64)), finite


@kernel(result=lambda avals, params: (avals[0],), host=_anywhere)
def pooled(*spectra: Array) -> Array:
    """What a rank of all matrices together keeps: the roots of the sums of squared singular values, falling [n]."""
    return np.sqrt(np.sum(np.square(np.stack(spectra)), axis=0))


class BudgetParams(TypedDict):
    """The parameters that one more rank of each matrix costs, and those that there are."""

    costs: tuple[int, ...]
    budget: int


@kernel(result=lambda avals, params: (Aval((len(avals),), INT64),), host=lambda avals, params: True)
def share_budget(*spectra: Array, costs: tuple[int, ...], budget: int) -> Array:
    """The rank of each matrix [k], so that all together cost at most `budget` parameters and keep the most energy.

    Directions are taken by what they add to the energy for each parameter, the most first. Of one matrix these fall,
    so what is taken of it are its first ones; the first that does not fit ends its rank.
    """
    assert all(map(on_host, spectra))
    gains = np.concatenate([np.square(s) / cost for s, cost in zip(spectra, costs, strict=True)])
    owners = np.concatenate([np.full(len(s), at) for at, s in enumerate(spectra)])
    ranks, closed, left = np.zeros(len(spectra), np.int64), set[int](), budget
    for place in np.argsort(-gains, kind="stable"):
        owner = int(owners[place])
        if owner in closed or gains[place] <= 0:
            continue
        if costs[owner] > left:
            closed.add(owner)
            continue
        ranks[owner] += 1
        left -= costs[owner]
    return ranks


# --- Products of factors ----------------------------------------------------------------------------------------------


def _core(b: Array, a: Array) -> tuple[Array, Array, Array, Array, Array]:
    """`qb`, `u`, `s`, `vh`, `qa` with `b @ a = qb @ u @ diag(s) @ vh @ qa.T`: the product itself is never formed."""
    xp = b.__array_namespace__()
    qb, rb = xp.linalg.qr(widen(b))
    qa, ra = xp.linalg.qr(widen(a).T)
    u, s, vh = svd(rb @ ra.T)
    return qb, u, s, vh, qa


def _fits(avals: Avals, params: Params) -> None:
    b, a = avals
    assert len(b.shape) == len(a.shape) == 2 and b.shape[1] == a.shape[0]


def _new_factors(avals: Avals, params: Any) -> Avals:
    b, a = avals
    return Aval((b.shape[0], params["rank"]), b.dtype), Aval((params["rank"], a.shape[1]), a.dtype)


def _space(avals: Avals, params: Params) -> int:
    b, a = avals
    return 32 * (b.size + a.size) + 64 * b.shape[1] ** 2


def _finite(b: Array, a: Array) -> Array:
    xp = b.__array_namespace__()
    return xp.all(xp.isfinite(b)) & xp.all(xp.isfinite(a))


@kernel(check=_fits, result=_new_factors, guarded=True, refusal=NOT_FINITE, host=_anywhere, workspace=_space)
def refactor(b: Array, a: Array, *, rank: int) -> tuple[tuple[Array, Array], Array]:
    """`b` [m, rank] and `a` [rank, n], whose product is the best approximation of that of factors [m, r] and [r, n],
    and whether these are finite. Beyond the rank of the product, there are zeros. The entry of largest magnitude in
    each column of `b` is positive, so that factors repeat.

    Cost: O((m + n) r^2). Reference: Eckart and Young, 1936.
    """
    xp, finite = b.__array_namespace__(), _finite(b, a)
    if on_host(b) and not finite:
        return (b[:, :rank], a[:rank]), finite
    qb, u, s, vh, qa = _core(b, a)
    kept = min(rank, s.shape[0])
    root = xp.sqrt(s[:kept])
    left, right = qb @ (u[:, :kept] * root[None, :]), (vh[:kept] * root[:, None]) @ qa.T
    sign = xp.where(largest_entries(left, 0) < 0, -1, 1).astype(left.dtype)
    left, right = left * sign, right * sign.T
    if kept < rank:
        left = xp.concat([left, xp.zeros((left.shape[0], rank - kept), left.dtype)], axis=1)
        right = xp.concat([right, xp.zeros((rank - kept, right.shape[1]), right.dtype)], axis=0)
    return (round_to(left, b.dtype), round_to(right, a.dtype)), finite


@kernel(check=_fits, result=_scalar, guarded=True, refusal=NOT_FINITE, host=_anywhere, workspace=_space)
def product_rank(b: Array, a: Array, *, energy: Number) -> tuple[Array, Array]:
    """The least rank that keeps the share `energy` of the squared singular values of a product, an int64 scalar."""
    xp, finite = b.__array_namespace__(), _finite(b, a)
    if on_host(b) and not finite:
        return np.asarray(0), finite
    _, _, s, _, _ = _core(b, a)
    share = xp.cumsum(xp.square(s.astype(np.float64)))
    return xp.minimum(1 + xp.sum(share < energy * share[-1], dtype=np.int64), xp.asarray(s.size)), finite
