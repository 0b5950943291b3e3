"""Model stock: the mean of fine-tuned models, drawn to their base by how much they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.rows import by_rows, in_result
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import (
    by_values,
    constant_of,
    double,
    gram,
    namespace,
    rounded,
    rounding,
    total,
    widened,
)
from brainsurgery_jax.protocol import TensorExpr

FLOOR = 1e-6
"""The least product of norms that is divided by; the least `1 + (n - 1) c`, below which `t` is 0."""


def _ratio(products: Mapping[tuple[int, int], Array], n: int, work: DType | None) -> Array:
    """`t`, of inner products of task vectors `i <= j`: n c / (1 + (n - 1) c), `c` being their mean cosine. `work`: the
    dtype to which every step is rounded."""
    xp, step = namespace(products[0, 0]), rounding(work)
    norms = [step(xp.sqrt(products[i, i])) for i in range(n)]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    sizes = [xp.maximum(step(norms[i] * norms[j]), np.float64(FLOOR)) for i, j in pairs]
    cosines = [xp.clip(step(step(products[pair]) / size), -1, 1) for pair, size in zip(pairs, sizes, strict=True)]
    cosine = step(xp.mean(xp.stack(cosines), axis=0))
    divisor = step(1 + step((n - 1) * cosine))
    apart = divisor <= FLOOR  # a number beyond rounding: `t` grows without bound, and has no limit
    return xp.where(apart, 0.0, step(step(n * cosine) / xp.where(apart, 1.0, divisor)))


def _flat_ratio(products: Array, static: Mapping[str, Any]) -> Array:
    n = static["count"]
    return _ratio({(i, j): products[i, j] for i in range(n) for j in range(i, n)}, n, static["work"])[None]


stock_ratio = gram("stock_ratio", _flat_ratio, lambda avals, params: 1)


def _pull(base: Array, models: Sequence[Array], t: Array) -> Array:
    mean = total(models) / constant_of(len(models), base)
    return t * mean + (constant_of(1, base) - t) * base


@by_values("model_stock")
def pull(xs: Sequence[Array], values: Sequence[Array], *, dtype: DType, exact: bool) -> Array:
    """`t * mean(models) + (1 - t) * base`."""
    start, *models = widened(xs, exact)
    return rounded(_pull(start, models, values[0][0].astype(start.dtype)), dtype)


@by_rows("model_stock_rows", in_result)
def pull_rows(base: Array, *models: Array, dtype: DType, exact: bool) -> Array:
    """The same with a `t` for each row."""
    start, *wide = widened((base, *models), exact)
    xp, n = namespace(base), len(wide)
    rows = (start.shape[0], -1) if start.ndim > 1 else (1, -1)
    vectors = [double(x - start).reshape(rows) for x in wide]
    products = {(i, j): xp.sum(vectors[i] * vectors[j], axis=1) for i in range(n) for j in range(i, n)}
    t = _ratio(products, n, None if exact else dtype).astype(start.dtype)
    shape = (-1,) + (1,) * (start.ndim - 1) if start.ndim > 1 else (1,)
    return rounded(_pull(start, wide, t.reshape(shape)), dtype)


def model_stock(merging: Merging) -> TensorExpr:
    """A tensor, or with `filter_wise` each of its rows, between the mean of the models and the base."""
    if merging.flag("filter_wise"):
        return merging.by_element(pull_rows)
    work = merging.dtype if merging.compat else None
    t = merging.fold(stock_ratio, base=True, count=len(merging.models), work=work)
    return merging.with_values(pull, [t])


MODEL_STOCK = MergeMethod(
    "model_stock", model_stock, "mean of models, drawn to the base by the angle between task vectors",
    "https://arxiv.org/abs/2403.19522",
    {"filter_wise": MergeParameter(False, "whether each row has an angle of its own")}, fewest=2, base="needed",
)  # fmt: skip
