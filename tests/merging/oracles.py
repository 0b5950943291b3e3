"""What each merge method makes of one tensor, in double precision and as its publication writes it.

Written from the formulas, with whole arrays and sorting, and nothing of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

Models = Sequence[np.ndarray]


def doubles(xs: Models) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in xs]


# --- Averages ---------------------------------------------------------------------------------------------------------


def linear(base: Any, xs: Models, weights: Sequence[float], normalize: bool = True) -> np.ndarray:
    made = np.tensordot(np.asarray(weights, float), np.stack(doubles(xs)), 1)
    return made / sum(weights) if normalize else made


def slerp(base: Any, xs: Models, t: float) -> np.ndarray:
    a, b = doubles(xs)
    units = [x / np.linalg.norm(x) if np.linalg.norm(x) > 1e-8 else x for x in (a, b)]
    cosine = float(np.clip(np.sum(units[0] * units[1]), -1, 1))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    theta = math.acos(cosine)
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


def _nuslerp_vectors(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Of each vector along the last axis."""
    norms = [np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 1e-7) for x in (a, b)]
    theta = np.arccos(np.clip(((a / norms[0]) * (b / norms[1])).sum(-1, keepdims=True), -1, 1))
    with np.errstate(all="ignore"):
        bent = (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)
    return np.where(np.abs(np.sin(theta)) < 1e-8, (1 - t) * a + t * b, bent)


def nuslerp(
    base: Any, xs: Models, weights: Sequence[float], flatten: bool = True, row_wise: bool = False
) -> np.ndarray:
    start = 0.0 if base is None else np.asarray(base, np.float64)
    a, b = (x - start for x in doubles(xs))
    t = weights[1] / sum(weights)
    if flatten:
        made = _nuslerp_vectors(a.reshape(1, -1), b.reshape(1, -1), t).reshape(a.shape)
    elif row_wise and a.ndim > 1:
        made = np.moveaxis(_nuslerp_vectors(np.moveaxis(a, 0, -1), np.moveaxis(b, 0, -1), t), -1, 0)
    else:
        made = _nuslerp_vectors(a, b, t)
    return start + made


def multislerp(base: Any, xs: Models, weights: Sequence[float]) -> np.ndarray:
    start = 0.0 if base is None else np.asarray(base, np.float64)
    flat = [(x - start).ravel() for x in doubles(xs)]
    w = np.asarray(weights) / sum(weights)
    norms = np.array([np.linalg.norm(x) for x in flat])
    units = [x / (n + 1e-8) for x, n in zip(flat, norms, strict=True)]
    mean = sum(a * u for a, u in zip(w, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(a * (u - (u @ mean) * mean) for a, u in zip(w, units, strict=True))
    size = np.linalg.norm(tangent)
    there = mean * np.cos(size) + (tangent / size * np.sin(size) if size > 0 else 0)
    return start + (there * (w @ norms)).reshape(np.shape(xs[0]))


def karcher(base: Any, xs: Models, steps: int = 200) -> np.ndarray:
    """The minimum of the sum of squared angles, by many steps."""
    flat = [x.ravel() for x in doubles(xs)]
    norms = np.array([np.linalg.norm(x) for x in flat])
    units = [x / n for x, n in zip(flat, norms, strict=True)]
    u = np.mean(units, axis=0)
    u = u / np.linalg.norm(u)
    for _ in range(steps):
        tangent = np.zeros_like(u)
        for v in units:
            angle = math.acos(min(1.0, max(-1.0, float(u @ v))))
            if angle > 1e-12:
                tangent += angle / math.sin(angle) * (v - math.cos(angle) * u) / len(units)
        size = np.linalg.norm(tangent)
        if size > 0:
            u = math.cos(size) * u + math.sin(size) * tangent / size
    return (u * norms.mean()).reshape(np.shape(xs[0]))


def fisher(base: Any, xs: Models, information: Models) -> np.ndarray:
    f = np.stack(doubles(information))
    x, divisor = np.stack(doubles(xs)), f.sum(0)
    with np.errstate(all="ignore"):
        return np.where(divisor == 0, x.mean(0), (f * x).sum(0) / divisor)


def regmean(base: Any, xs: Models, products: Models, off: float = 0.9) -> np.ndarray:
    grams = [off * g + (1 - off) * np.diag(np.diag(g)) for g in doubles(products)]
    right = sum(g @ x.T for g, x in zip(grams, doubles(xs), strict=True))
    return np.linalg.solve(sum(grams), right).T


# --- Task vectors -----------------------------------------------------------------------------------------------------


def deltas(base: Any, xs: Models) -> list[np.ndarray]:
    return [x - np.asarray(base, np.float64) for x in doubles(xs)]


def trim(d: np.ndarray, density: float, top: float = 0.0) -> np.ndarray:
    """Entries by rank of magnitude: `top` of the largest left out, `density` kept."""
    size = d.size
    kept = max(1, math.floor(density * size))
    out = max(0, min(math.floor(top * size), size - kept))
    order = np.argsort(-np.abs(d).ravel(), kind="stable")
    mask = np.zeros(size, bool)
    mask[order[out : out + kept]] = True
    return np.where(mask.reshape(d.shape), d, 0)


def add(
    base: Any, parts: Models, weights: Sequence[float], scale: float = 1.0, *, vote: bool, normalize: bool
) -> np.ndarray:
    weighted = [w * p for w, p in zip(weights, parts, strict=True)]
    if vote:
        sign = np.where(sum(weighted) >= 0, 1, -1)
        agree = [np.sign(p) == sign for p in weighted]
        made = sum(np.where(a, p, 0) for a, p in zip(agree, weighted, strict=True))
        divisor = sum(np.where(a, w, 0.0) for a, w in zip(agree, weights, strict=True))
        divisor = np.where(divisor == 0, 1, divisor)
    else:
        made, divisor = sum(weighted), sum(weights)
    return np.asarray(base, np.float64) + scale * (made / divisor if normalize else made)


def task_arithmetic(base: Any, xs: Models, weights: Sequence[float], scale: float = 1.0) -> np.ndarray:
    return add(base, deltas(base, xs), weights, scale, vote=False, normalize=False)


def ties(base: Any, xs: Models, weights: Sequence[float], density: Sequence[float]) -> np.ndarray:
    parts = [trim(d, p) for d, p in zip(deltas(base, xs), density, strict=True)]
    return add(base, parts, weights, vote=True, normalize=True)


def breadcrumbs(
    base: Any, xs: Models, weights: Sequence[float], density: float, gamma: float, *, vote: bool = False
) -> np.ndarray:
    parts = [trim(d, density, gamma) for d in deltas(base, xs)]
    return add(base, parts, weights, vote=vote, normalize=False)


def model_stock(base: Any, xs: Models, filter_wise: bool = False) -> np.ndarray:
    start = np.asarray(base, np.float64)
    rows = start.shape[0] if filter_wise and start.ndim > 1 else 1
    out = []
    for own, *models in zip(*(x.reshape(rows, -1) for x in (start, *doubles(xs))), strict=True):
        vectors = [m - own for m in models]
        cosines = [a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6) for a, b in combinations(vectors, 2)]
        n, c = len(models), float(np.mean(cosines))
        t = n * c / (1 + (n - 1) * c)
        out.append(t * np.mean(models, axis=0) + (1 - t) * own)
    return np.stack(out).reshape(start.shape)


def sce(base: Any, xs: Models, topk: float) -> np.ndarray:
    d = np.stack(deltas(base, xs))
    if topk < 1:
        variance = d.var(0)
        kept = math.floor(topk * np.count_nonzero(variance))
        least = np.sort(variance.ravel())[::-1][kept - 1]
        d = np.where(variance >= least, d, 0)
    energy = (d**2).reshape(len(d), -1).mean(1)
    q = energy / energy.sum()
    agree = np.sign(d) == np.sign(d.sum(0))
    weights = np.tensordot(q, agree.astype(float), 1)
    return np.asarray(base, np.float64) + np.tensordot(q, np.where(agree, d, 0), 1) / np.maximum(weights, 1e-6)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def arcee_fusion(base: Any, xs: Models) -> np.ndarray:
    start, (x,) = np.asarray(base, np.float64), doubles(xs)
    p, q = _softmax(x) + 1e-8, _softmax(start) + 1e-8
    importance = np.abs(x - start) * (p * np.log(p / q)).sum(-1, keepdims=True)
    low, median, high = np.quantile(importance, [0.25, 0.5, 0.75], method="lower")
    return np.where(importance >= median + 1.5 * (high - low), x, start)


def nearswap(base: Any, xs: Models, t: float) -> np.ndarray:
    a, (c,) = np.asarray(base, np.float64), doubles(xs)
    w = np.clip(t / np.maximum(np.abs(a - c), 1e-6), 0, 1)
    return w * c + (1 - w) * a


def ram(base: Any, xs: Models, epsilon: float, r: float = 0.0, alpha: float = 0.0) -> np.ndarray:
    d = np.stack(deltas(base, xs))
    changed = np.abs(d) > epsilon
    n = changed.sum(0)
    factors = []
    for own in changed:
        alone, shared = np.sum(own & (n == 1)), np.sum(own & (n > 1))
        factors.append(1 + r * min(shared / alone if alone else np.inf, alpha))
    factor = np.where(n == 1, np.reshape(factors, (-1,) + (1,) * n.ndim), 1.0)
    return np.asarray(base, np.float64) + np.where(changed, d * factor, 0).sum(0) / np.maximum(n, 1)


# --- Beyond mergekit --------------------------------------------------------------------------------------------------


def _nearest_orthogonal(x: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


def tsv_m(base: Any, xs: Models, scale: float = 1.0) -> np.ndarray:
    d = deltas(base, xs)
    if d[0].ndim != 2:
        return np.asarray(base, np.float64) + np.mean(d, axis=0)
    k = max(1, min(d[0].shape) // len(d))
    parts = [np.linalg.svd(x, full_matrices=False) for x in d]
    u = _nearest_orthogonal(np.hstack([p[0][:, :k] for p in parts]))
    v = _nearest_orthogonal(np.vstack([p[2][:k] for p in parts]))
    return base + scale * u @ np.diag(np.concatenate([p[1][:k] for p in parts])) @ v


def iso_c(base: Any, xs: Models, scale: float = 1.0) -> np.ndarray:
    d = deltas(base, xs)
    if d[0].ndim != 2:
        return np.asarray(base, np.float64) + np.mean(d, axis=0)
    u, s, v = np.linalg.svd(sum(d), full_matrices=False)
    return base + scale * s.mean() * (u @ v)


def magmax(base: Any, xs: Models) -> np.ndarray:
    d = np.stack(deltas(base, xs))
    return base + np.take_along_axis(d, np.abs(d).argmax(0)[None], 0)[0]


def emr(base: Any, xs: Models, task: int | None = None) -> np.ndarray:
    d = np.stack(deltas(base, xs))
    sign = np.sign(d.sum(0))
    elected = sign * np.where(np.sign(d) == sign, np.abs(d), 0).max(0)
    if task is None:
        return base + elected
    masked = np.where(d[task] * elected > 0, elected, 0)
    return base + masked * np.abs(d[task]).sum() / np.abs(masked).sum()


def consensus(base: Any, xs: Models, mask: float, least: int) -> np.ndarray:
    d = np.stack(deltas(base, xs))
    merged = d.sum(0)
    votes = np.sum(np.abs(d) >= mask * np.abs(merged - d), axis=0)
    return base + np.where(votes >= least, merged, 0)


def bitdelta(base: Any, xs: Models) -> np.ndarray:
    (d,) = deltas(base, xs)
    return base + np.where(d > 0, 1, -1) * np.abs(d).mean()


def add_all(base: Any, xs: Models, weights: Sequence[float], *, vote: bool, normalize: bool) -> np.ndarray:
    """Task vectors of which all entries are kept."""
    return add(base, deltas(base, xs), weights, vote=vote, normalize=normalize)


Oracle = Callable[..., np.ndarray]
