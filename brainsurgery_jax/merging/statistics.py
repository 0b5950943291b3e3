"""Merges by what is known of the data: Fisher information of each parameter, or inner products of inputs (RegMean).

Both read it from checkpoints whose tensors have the names of those that they are about.
"""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.linear import mean, refuse_no_sum
from brainsurgery_jax.merging.method import MergeMethod, Merging, ModelTensor
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import (
    Params,
    anywhere,
    by_element,
    constant_of,
    double,
    namespace,
    result_aval,
    rounded,
    total,
    widen,
)
from brainsurgery_jax.numerics.symmetry import is_symmetric, precision
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.ops.sets import entry
from brainsurgery_jax.ops.shape import with_shape
from brainsurgery_jax.protocol import TensorExpr


def _statistics_of(merging: Merging, model: ModelTensor) -> TensorExpr | None:
    """What is known of a tensor of a model; None if the checkpoint has nothing of that name."""
    alias = str(merging.settings.value("statistics", merging.name, model.alias))
    if not alias:
        message = f"no statistics of '{model.alias}' are given"
        hint = f"Name the alias of a checkpoint: `{model.alias}: {{statistics: {_candidate(merging)}}}`."
        raise Refusal("merge-parameter", message, key="models", hint=hint)
    if not merging.view.has(alias, merging.name):
        return None
    found = merging.view.fetch(alias, merging.name, "models")
    if merging.layer is not None and len(found.aval.shape) > merging.layer[0]:
        axis, at = merging.layer
        found = merging.view.apply(entry, found, axis=axis, at=at)
    return found if found.aval.shape else merging.view.apply(with_shape, found, shape=(1,))


def _candidate(merging: Merging) -> str:
    """The alias of the one checkpoint that has a tensor of that name and is not merged; else a placeholder."""
    merged = {model.alias for model in merging.models}
    view = merging.view
    found = [alias for alias in view.aliases() if alias not in merged and view.has(alias, merging.name)]
    return found[0] if len(found) == 1 else "ALIAS"


@by_element(
    "fisher", guarded=True,
    refusal="Fisher information is negative, infinite or NaN. It is the mean of squared gradients: square them before, "
    "and set to 0 what rounding has made negative, by `clamp_: {target: ..., min: 0}`",
)  # fmt: skip
def weigh_by_fisher(*xs: Array, weights: tuple[float, ...], dtype: DType, exact: bool) -> tuple[Array, Array]:
    """The mean of tensors weighted by what comes after them, element by element; the plain mean where that is 0."""
    count = len(weights)
    wide = [widen(x) for x in xs]
    xp = namespace(wide[0])
    known = xp.stack([((f >= 0) & xp.isfinite(f)).all() for f in wide[count:]]).all()
    factors = [f * constant_of(w, f) for f, w in zip(wide[count:], weights, strict=True)]
    plain = total([x * constant_of(w, x) for x, w in zip(wide, weights, strict=False)])
    divisor = total(factors)
    none = divisor == 0
    weighted = total([x * f for x, f in zip(wide, factors, strict=False)])
    mean = plain / constant_of(sum(weights), plain)
    made = xp.where(none, mean, weighted / xp.where(none, constant_of(1, divisor), divisor))
    return rounded(made, dtype), known


def fisher(merging: Merging) -> TensorExpr:
    """`sum(weight * F * x) / sum(weight * F)`, `F` being the diagonal of the Fisher information. Raises Refusal."""
    weights = merging.numbers("weight")
    refuse_no_sum(merging, weights)
    found = [_statistics_of(merging, model) for model in merging.models]
    there = [e for e in found if e is not None]
    if len(there) < len(found):
        return mean(merging, weights)
    for model, e in zip(merging.models, there, strict=True):
        if e.aval.shape != merging.aval.shape:
            message = f"'{merging.name}' of '{model.alias}' is {merging.aval}, its statistics are {e.aval}"
            raise Refusal("shapes-differ", message, key="models", hint="Fisher information has a value for each entry.")
    return merging.by_element(weigh_by_fisher, *there, weights=weights)


# --- RegMean ----------------------------------------------------------------------------------------------------------


_UNFIT = "a tensor or its statistics hold NaN or infinity, or statistics are not symmetric (a triangle is not enough)"


def _regmean_space(avals: Avals, params: Params) -> int:
    return 8 * (5 * avals[0].size + 8 * avals[-1].size)


@kernel(
    "regmean", result=result_aval, host=anywhere,
    workspace=_regmean_space, guarded=True, refusal=_UNFIT,
)  # fmt: skip
def solve_regmean(*xs: Array, off_diagonal: float, transposed: bool, dtype: DType, exact: bool) -> tuple[Array, Array]:
    """`sum(W G) inv(sum(G))` of matrices [out, in] and the inner products of their inputs [in, in], which come after
    them; of matrices [in, out] (`transposed`) `inv(sum(G)) sum(G W)`. Solved for what is to be added to the mean of the
    matrices: that is 0 for inputs that no model has."""
    xp, count = namespace(xs[0]), len(xs) // 2
    mean = total([double(x) for x in xs[:count]]) / count
    products = right = None
    for x, g in zip(xs[:count], xs[count:], strict=True):
        gram = double(g) * (off_diagonal + (1 - off_diagonal) * np.eye(g.shape[0]))
        apart = double(x) - mean
        one = gram @ apart if transposed else apart @ gram
        right = one if right is None else right + one
        products = gram if products is None else products + gram
    assert products is not None and right is not None
    finite = xp.isfinite(right).all() & xp.isfinite(products).all()
    for g in xs[count:]:
        finite = finite & is_symmetric(double(g), precision(g.dtype))
    if xp is np and not finite:
        return np.zeros(xs[0].shape, to_numpy(dtype)), np.zeros((), np.bool_)
    least = products.shape[0] * float(np.finfo(np.float64).eps)  # of the largest eigenvalue; below it all is rounding
    inverse = xp.linalg.pinv(products, least, hermitian=True)
    return rounded(mean + (inverse @ right if transposed else right @ inverse), dtype), finite


def regmean(merging: Merging) -> TensorExpr:
    """The matrix whose outputs are nearest to those of each model on its own inputs; the mean of what is no matrix, of
    what has no statistics, and of the entries for inputs that are 0 in all of these. Raises Refusal."""
    found = [_statistics_of(merging, model) for model in merging.models]
    there = [e for e in found if e is not None]
    if len(merging.aval.shape) != 2 or len(there) < len(found):
        return mean(merging, [1.0] * len(merging.models))
    transposed = merging.flag("transposed")
    width, height = merging.aval.shape if transposed else merging.aval.shape[::-1]
    for model, e in zip(merging.models, there, strict=True):
        if e.aval.shape != (width, width):
            message = f"'{merging.name}' of '{model.alias}' is {merging.aval}, its statistics are {e.aval}"
            hint = f"They are the inner products of its inputs, here [{width}, {width}]."
            if e.aval.shape == (height, height) and not transposed:
                hint = "If matrices are [in, out], as in GPT-2, say so: `parameters: {transposed: true}`."
            elif e.aval.shape == (height, height):
                hint = "If matrices are [out, in], say so: `parameters: {transposed: false}`."
            raise Refusal("shapes-differ", message, key="models", hint=hint)
    return merging.by_element(solve_regmean, *there, off_diagonal=merging.number("off_diagonal"), transposed=transposed)


_STATISTICS = MergeParameter("", "alias of a checkpoint with the statistics of a model", each=True)
FISHER = MergeMethod(
    "fisher", fisher, "average weighted by Fisher information", "https://arxiv.org/abs/2111.09832",
    {"weight": MergeParameter(1.0, "factor of each model", each=True, low=0), "statistics": _STATISTICS},
    by_element=True,
)  # fmt: skip
REGMEAN = MergeMethod(
    "regmean", regmean, "least squares on the inputs of each model", "https://arxiv.org/abs/2212.09849",
    {"statistics": _STATISTICS,
     "off_diagonal": MergeParameter(0.9, "factor of inner products of different inputs", low=0, high=1),
     "transposed": MergeParameter(False, "whether matrices are [in, out] instead of [out, in]")},
)  # fmt: skip
