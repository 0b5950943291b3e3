"""Means on a sphere as mergekit computes them: every step on tensors is rounded to their dtype (`compat: mergekit`).

What the next step needs are norms of what the one before rounded, so tensors are held whole. Sums are taken in double
precision and rounded once; PyTorch takes them in float32, by the vectors of the processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import FLOAT32, FLOAT64, DType
from brainsurgery_jax.merging.repeating import State, repeat_until_done
from brainsurgery_jax.merging.tensors import (
    SLAB,
    Params,
    anywhere,
    constant_of,
    double,
    namespace,
    result_aval,
    rounded,
    rounding,
    total,
)
from brainsurgery_jax.numerics.math import on_host, widen
from brainsurgery_jax.op import Avals, kernel


def _space(avals: Avals, params: Params) -> int:
    """Bytes of units, tangents, their mean, and some results on the way, each of which is widened."""
    return avals[0].size * (3 * len(avals) + 6) * max(4, avals[0].dtype.bits // 8)


def _sum(x: Array) -> Array:
    """The sum of all elements in double precision."""
    flat = x.reshape(-1)
    if not on_host(flat):
        return double(flat).sum()
    pieces = (double(flat[at : at + SLAB]).sum() for at in range(0, flat.size, SLAB))
    return sum(pieces, np.zeros(()))


def _inner(x: Array, y: Array) -> Array:
    """The inner product of two tensors in double precision."""
    one, other = x.reshape(-1), y.reshape(-1)
    if not on_host(one):
        return (double(one) * double(other)).sum()
    slabs = (slice(at, at + SLAB) for at in range(0, one.size, SLAB))
    return sum((np.dot(double(one[at]), double(other[at])) for at in slabs), np.zeros(()))


def _scale(x: Array, number: Array) -> Array:
    """A tensor times a scalar tensor, which PyTorch rounds to the dtype of the tensor before."""
    return x * number.astype(x.dtype)


def _times(x: Array, number: Array) -> Array:
    """A tensor times a plain number, which PyTorch does not round before."""
    wide = widen(x)
    return (wide * number.astype(wide.dtype)).astype(x.dtype)


def _divide(x: Array, number: Array) -> Array:
    """A tensor by a number that may have more bits, rounded once: so PyTorch divides."""
    wide = widen(x)
    return (wide / number.astype(wide.dtype)).astype(x.dtype)


@kernel("multislerp_by_step", result=result_aval, host=anywhere, workspace=_space)
def tangent_step(
    *xs: Array, weights: tuple[float, ...], normalize: bool, eps: float, based: bool, dtype: DType, exact: bool
) -> Array:
    """One step on the sphere from the normalized mean of directions along the mean of their tangents."""
    start, xp, step = xs[0], namespace(xs[0]), rounding(dtype)
    vectors = [x - start for x in xs[1:]] if based else list(xs)
    shares = step(np.asarray(weights, np.float64))
    shares = step(shares / step(shares.sum())) if normalize else shares
    own = [constant_of(float(share), start) for share in shares]
    norms = [step(xp.sqrt(_inner(x, x))) for x in vectors]
    units = [x / step(n + eps).astype(x.dtype) for x, n in zip(vectors, norms, strict=True)]
    mean = total([u * w for u, w in zip(units, own, strict=True)])
    length = step(xp.sqrt(_inner(mean, mean)))
    opposed = length < eps
    mean = mean / xp.where(opposed, np.float64(1), length).astype(mean.dtype)
    along = [step(_sum(u * mean)).astype(u.dtype) for u in units]
    tangent = total([(u - a * mean) * w for u, a, w in zip(units, along, own, strict=True)])
    angle = step(xp.sqrt(_inner(tangent, tangent)))
    sinc = xp.where(angle == 0, np.float64(1), step(step(xp.sin(angle)) / xp.where(angle == 0, np.float64(1), angle)))
    there = mean * step(xp.cos(angle)).astype(mean.dtype) + tangent * sinc.astype(tangent.dtype)
    size = step(sum((step(n * s) for n, s in zip(norms, shares, strict=True)), np.zeros(())))
    straight = total([x * w for x, w in zip(vectors, own, strict=True)])
    other = straight if len(vectors) == 2 else xp.full_like(straight, np.nan)
    merged = xp.where(opposed, other, there * size.astype(there.dtype))
    return rounded(start + merged if based else merged, dtype)


def _directions(xs: Sequence[Array], norms: Sequence[Array], tol: float) -> tuple[list[Array], list[Array]]:
    """The tensors divided by their norms, and the share of each: none where the norm is at most `tol`."""
    xp = namespace(xs[0])
    there = [norm > tol for norm in norms]
    count = sum((one.astype(np.float64) for one in there), np.zeros(()))
    units = [_divide(x, xp.where(ok, n, np.float64(1))) for x, n, ok in zip(xs, norms, there, strict=True)]
    return units, [xp.where(ok, 1 / xp.maximum(count, np.float64(1)), 0.0) for ok in there]


@kernel("karcher_by_step", result=result_aval, host=anywhere, workspace=_space)
def karcher_mean(*xs: Array, max_iter: int, tol: float, dtype: DType, exact: bool) -> Array:
    """The mean of directions, found by steps along the mean of the tangents. Norms have at least float32."""
    xp, step, norm_step = namespace(xs[0]), rounding(dtype), rounding(FLOAT64 if dtype == FLOAT64 else FLOAT32)

    def norm(x: Array) -> Array:
        return norm_step(xp.sqrt(_inner(x, x)))

    norms = [norm(x) for x in xs]
    units, shares = _directions(xs, norms, tol)
    mean = xp.zeros_like(units[0])
    for unit, share in zip(units, shares, strict=True):
        mean = mean + _times(unit, share)
    length = norm(mean)
    first = units[0]
    for unit, own, before in zip(units[1:], norms[1:], norms, strict=False):
        first = xp.where((before <= tol) & (own > tol), unit, first)
    mean = xp.where(length <= tol, first, _divide(mean, xp.where(length <= tol, np.float64(1), length)))

    def advance(number: object, state: State) -> State:
        mean, done = state
        tangent = xp.zeros_like(mean)
        for unit, share in zip(units, shares, strict=True):
            angle = step(xp.arccos(xp.clip(step(_inner(mean, unit)), -1, 1)))
            far = (angle >= tol) & (angle > 0) & (share > 0)
            rate = step(angle / step(xp.sin(xp.where(far, angle, np.float64(1)))))
            away = unit - step(xp.cos(angle)).astype(mean.dtype) * mean
            tangent = xp.where(far, tangent + step(share * rate).astype(mean.dtype) * away, tangent)
        length = norm(tangent)
        done = done | (length < tol)
        safe = xp.where(length == 0, np.float64(1), length)
        stepped = _scale(mean, norm_step(xp.cos(length))) + _scale(_divide(tangent, safe), norm_step(xp.sin(length)))
        size = norm(stepped)
        stepped = _divide(stepped, xp.where(size == 0, np.float64(1), size))
        return xp.where(done, mean, stepped), done

    mean, _ = repeat_until_done(advance, (mean, xp.zeros((), bool)), max_iter)
    scale = norm_step(sum((norm_step(n / len(norms)) for n in norms), np.zeros(())))
    kept = xp.stack([share > 0 for share in shares]).any()
    return rounded(xp.where(kept, _scale(mean, scale), xp.zeros_like(mean)), dtype)
