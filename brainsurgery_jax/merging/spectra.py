"""Merges of the singular values of task matrices: TSV-M and Iso-C. Matrices are held whole; of what is no matrix the
mean of the task vectors is taken."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType, to_numpy
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.sparsify import Sparsifier
from brainsurgery_jax.merging.task_vectors import Summing, add_task_vectors
from brainsurgery_jax.merging.tensors import (
    Params,
    anywhere,
    constant_of,
    deltas,
    namespace,
    result_aval,
    rounded,
    widened,
)
from brainsurgery_jax.numerics.lapack import svd
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.protocol import TensorExpr

_NOT_FINITE = "a task matrix holds NaN or infinity and has no singular values"


def _space(avals: Avals, params: Params) -> int:
    return 8 * (4 + 3 * len(avals)) * avals[0].size


def _finite(xs: Sequence[Array]) -> Array:
    """Whether all entries of some tensors are numbers."""
    xp = namespace(xs[0])
    return xp.asarray(xp.stack([xp.all(xp.isfinite(x)) for x in xs]).all())


@kernel("tsv_m", result=result_aval, host=anywhere, workspace=_space, guarded=True, refusal=_NOT_FINITE)
def merge_tsv(*xs: Array, share: float, scale: float, dtype: DType, exact: bool) -> tuple[Array, Array]:
    """The base and the product of the leading singular vectors of all task matrices, made orthogonal to each other, and
    their singular values. Vectors of singular values that are zero are any that LAPACK finds: they are left out.
    """
    (base,) = widened(xs[:1], exact)
    xp, parts = namespace(base), deltas(xs, exact)
    if xp is np and not _finite(parts):
        return np.zeros(base.shape, to_numpy(dtype)), np.zeros((), np.bool_)
    rank = max(1, int(min(base.shape) * share))
    factors = [_without_null_vectors(*svd(part)) for part in parts]
    u = _orthogonal(xp.concatenate([f[0][:, :rank] for f in factors], axis=1))
    v = _orthogonal(xp.concatenate([f[2][:rank] for f in factors], axis=0))
    s = xp.concatenate([f[1][:rank] for f in factors])
    merged = (u * s[None, :]) @ v
    return rounded(base + constant_of(scale, base) * merged, dtype), _finite(parts)


def _orthogonal(x: Array) -> Array:
    """The nearest matrix with orthonormal rows or columns, or as near to it as its rank allows."""
    left, _, right = _without_null_vectors(*svd(x))
    return left @ right


def _without_null_vectors(u: Array, s: Array, v: Array) -> tuple[Array, Array, Array]:
    """A decomposition [m, k], [k], [k, n] with zeros for the vectors whose singular value is zero but for rounding."""
    xp = namespace(s)
    rounding = float(xp.finfo(s.dtype).eps) * max(u.shape[0], v.shape[1])
    kept = xp.astype(s > rounding * xp.max(s), s.dtype)
    return u * kept[None, :], s, v * kept[:, None]


@kernel("iso_c", result=result_aval, host=anywhere, workspace=_space, guarded=True, refusal=_NOT_FINITE)
def merge_iso(*xs: Array, scale: float, dtype: DType, exact: bool) -> tuple[Array, Array]:
    """The base and the sum of the task matrices, with the mean of its singular values in place of each that is not
    zero."""
    (base,) = widened(xs[:1], exact)
    xp, parts = namespace(base), deltas(xs, exact)
    if xp is np and not _finite(parts):
        return np.zeros(base.shape, to_numpy(dtype)), np.zeros((), np.bool_)
    u, s, v = _without_null_vectors(*svd(sum(parts[1:], parts[0])))
    return rounded(base + constant_of(scale, base) * xp.mean(s) * (u @ v), dtype), _finite(parts)


def _spectral(merging: Merging, method: Kernel[..., tuple[Array, Array]], **static: float) -> TensorExpr:
    scale, shape = merging.number("lambda"), merging.aval.shape
    if len(shape) == 2:  # a single row or column, too: a matrix of rank 1
        operands = [merging.in_dtype(e, merging.work) for e in merging.expressions]
        exact = not merging.compat
        return merging.view.apply(method, *operands, scale=scale, dtype=merging.dtype, exact=exact, **static)
    count = len(merging.models)
    mean = Summing((1.0 / count,) * count, (Sparsifier(),) * count, 1.0, consensus=False, normalize=False)
    return merging.with_values(add_task_vectors, [], summing=mean)


def tsv_m(merging: Merging) -> TensorExpr:
    """Task singular vectors, with interference between tasks removed. Each task has the share `1 / tasks` of the rank,
    or `share`."""
    share = merging.number("share") or 1 / len(merging.models)
    return _spectral(merging, merge_tsv, share=min(share, 1 / len(merging.models)))


def iso_c(merging: Merging) -> TensorExpr:
    """Isotropic merging in the common subspace: a flat spectrum."""
    return _spectral(merging, merge_iso)


_SCALE = MergeParameter(1.0, "factor of the merged task matrix")
TSV_M = MergeMethod(
    "tsv_m", tsv_m, "leading singular vectors of task matrices, made orthogonal", "https://arxiv.org/abs/2412.00081",
    {"share": MergeParameter(0.0, "share of the rank of each task; 0: one over the number of tasks", low=0, high=1),
     "lambda": _SCALE}, base="needed",
)  # fmt: skip
ISO_C = MergeMethod(
    "iso_c", iso_c, "sum of task matrices with a flat spectrum", "https://arxiv.org/abs/2502.04959",
    {"lambda": _SCALE}, base="needed",
)  # fmt: skip
