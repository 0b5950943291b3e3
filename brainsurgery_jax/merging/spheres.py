"""Means of several models on a sphere: one tangent step (multislerp), or the Karcher mean.

Both are linear combinations of the models, and all that their coefficients need are inner products: so one pass over
the models tells the coefficients, and a second one makes the mean. As mergekit rounds them: `stepwise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.merging.combine import combined
from brainsurgery_jax.merging.linear import refuse_no_sum
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.repeating import State, repeat_until_done
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.stepwise import karcher_mean, tangent_step
from brainsurgery_jax.merging.tensors import gram, namespace
from brainsurgery_jax.protocol import TensorExpr


def _count(avals: Any, params: Mapping[str, Any]) -> int:
    return params["count"]


def _norm(products: Array, coefficients: Array) -> Array:
    """The norm of a linear combination."""
    xp = namespace(products)
    square = coefficients @ (products @ coefficients)
    return xp.sqrt(xp.maximum(square, np.float64(0)))


def _sinc(x: Array) -> Array:
    """`sin(x) / x`."""
    xp = namespace(x)
    safe = xp.where(x == 0, np.float64(1), x)
    return xp.where(x == 0, np.float64(1), xp.sin(safe) / safe)


def _multislerp_weights(products: Array, static: Mapping[str, Any]) -> Array:
    """The coefficients of one tangent step from the normalized mean of the directions."""
    xp, eps = namespace(products), static["eps"]
    weights = np.asarray(static["weights"], np.float64)
    norms = xp.sqrt(xp.stack([products[i, i] for i in range(len(weights))]))
    units = xp.stack([xp.where(np.arange(len(weights)) == i, 1 / (n + eps), 0.0) for i, n in enumerate(norms)])
    mean = weights @ units
    length = _norm(products, mean)
    opposed = length < eps
    mean = mean / xp.where(opposed, np.float64(1), length)
    along = units @ (products @ mean)
    tangent = weights @ (units - along[:, None] * mean[None, :])
    angle = _norm(products, tangent)
    merged = (mean * xp.cos(angle) + tangent * _sinc(angle)) * (weights @ norms)
    straight = weights if len(weights) == 2 else np.full(len(weights), np.nan)
    return xp.where(opposed, straight, merged)


multislerp_weights = gram("multislerp_weights", _multislerp_weights, _count)


def multislerp(merging: Merging) -> TensorExpr:
    """One step on the sphere from the normalized mean, along the mean of the tangents, at the mean of the norms. Raises
    Refusal for weights that cannot be normalized."""
    weights, normalize, eps = merging.numbers("weight"), merging.flag("normalize_weights"), merging.number("eps")
    if normalize:
        refuse_no_sum(merging, weights)
    if merging.compat:
        return merging.by_element(
            tangent_step, weights=weights, normalize=normalize, eps=eps, based=merging.base is not None
        )
    if normalize:
        weights = tuple(w / sum(weights) for w in weights)
    found = merging.fold(multislerp_weights, weights=weights, eps=eps, count=len(weights),
                         base=merging.base is not None)  # fmt: skip
    return combined(merging, found)


def _karcher_weights(products: Array, static: Mapping[str, Any]) -> Array:
    """The coefficients of the mean on the sphere, found by steps along the mean tangent."""
    xp, tol, n = namespace(products), static["tol"], static["count"]
    alphas = np.full(n, 1 / n)
    norms = xp.sqrt(xp.maximum(xp.stack([products[i, i] for i in range(n)]), np.float64(0)))
    there = norms > tol
    safe = xp.where(there, norms, np.float64(1))
    shares = xp.where(there, alphas, 0.0)
    shares = shares / xp.maximum(xp.sum(shares), np.float64(1e-300))
    units = xp.where(np.eye(n, dtype=bool) & there[:, None], 1 / safe[:, None], 0.0)
    mean = shares @ units
    length = _norm(products, mean)
    first = (there & (xp.cumsum(there.astype(np.float64)) == 1)).astype(np.float64) @ units
    mean = xp.where(length <= tol, first, mean / xp.where(length <= tol, np.float64(1), length))

    def step(number: object, state: State) -> State:
        mean, done = state
        cosines = xp.clip(units @ (products @ mean), -1, 1)
        angles = xp.arccos(cosines)
        far = (angles >= tol) & (angles > 0) & there
        rates = xp.where(far, shares * angles / xp.sin(xp.where(far, angles, np.float64(1))), 0.0)
        tangent = rates @ (units - cosines[:, None] * mean[None, :])
        length = _norm(products, tangent)
        done = done | (length < tol)
        stepped = mean * xp.cos(length) + tangent * _sinc(length)
        stepped = stepped / xp.maximum(_norm(products, stepped), np.float64(1e-300))
        return xp.where(done, mean, stepped), done

    mean, _ = repeat_until_done(step, (mean, xp.zeros((), bool)), static["max_iter"])
    return xp.where(there.any(), mean * (alphas @ norms), alphas)


karcher_weights = gram("karcher_weights", _karcher_weights, _count)


def karcher(merging: Merging) -> TensorExpr:
    """The Karcher mean of the directions, at the mean of the norms; all models weigh the same. Raises Refusal."""
    max_iter, tol = merging.whole("max_iter"), merging.number("tol")
    if merging.compat:
        return merging.by_element(karcher_mean, max_iter=max_iter, tol=tol)
    found = merging.fold(karcher_weights, max_iter=max_iter, tol=tol, count=len(merging.models), base=False)
    return combined(merging, found)


MULTISLERP = MergeMethod(
    "multislerp", multislerp, "spherical mean by one tangent step, of models or of their differences to a base",
    "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea/",
    {"weight": MergeParameter(1.0, "share of each model", each=True),
     "normalize_weights": MergeParameter(True, "whether weights are divided by their sum"),
     "eps": MergeParameter(1e-8, "what is added to norms", low=0)}, fewest=2, base="possible",
)  # fmt: skip
KARCHER = MergeMethod(
    "karcher", karcher, "mean of models on a sphere",
    "Karcher, Riemannian center of mass and mollifier smoothing, 1977",
    {"max_iter": MergeParameter(10, "steps, at most, from 1 to 1000", low=1, high=1000),
     "tol": MergeParameter(1e-5, "the length of a step that is the last", low=0)}, fewest=2,
)  # fmt: skip
