"""What the methods share: numbers in double precision, systems of equations, and cuts into rows."""

from __future__ import annotations

from math import prod
from typing import Any

from brainsurgery_jax._lazy import Array, Flag, jnp, np
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.numerics.math import on_host, to_float64
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.numerics.symmetry import is_symmetric, scale_to_ones
from brainsurgery_jax.op import Avals, Params

PART = 1 << 20
"""Elements of a part."""
EPS = 2.0**-52
"""The precision of float64."""


def anywhere(avals: Avals, params: Params) -> bool:
    """That a kernel also runs on numpy arrays."""
    return True


def like_first(avals: Avals, params: Params) -> Avals:
    """A result of the shape and dtype of the first operand."""
    return avals[:1]


def namespace(x: Array) -> Any:
    """The array API that an array is of."""
    return np if on_host(x) else jnp


def double(x: Array) -> Array:
    """A float of any width in float64."""
    if on_host(x):
        return x.astype(np.float64)
    return x if x.dtype == np.float64 else to_float64(x)


def solve(a: Array, b: Array) -> Array:
    """`inv(a) @ b` in double precision; NaN where `a` is singular."""
    xp = namespace(a)
    if xp is not np:
        return xp.linalg.solve(a, b)
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        return np.full(b.shape, np.nan)


def is_positive(a: Array, stored: float = EPS) -> Flag:
    """Whether a matrix is symmetric and positive definite, beyond what rounding its entries to the precision `stored`
    does to it. It is scaled to a diagonal of ones first, so that units do not matter."""
    xp, size = namespace(a), a.shape[0]
    unit = scale_to_ones((a + a.T) / 2)
    # Errors of entries, which are random, change eigenvalues by about this. What is left of the matrix has a factor of
    # Cholesky if its least eigenvalue is larger.
    noise = xp.maximum(stored * xp.sqrt((unit * unit).sum() / size), size * EPS)
    factor = lower_factor(unit - noise * np.eye(size))
    return (xp.diagonal(a) > 0).all() & is_symmetric(a, stored) & xp.isfinite(factor).all()


def lower_factor(a: Array) -> Array:
    """The factor of Cholesky; NaN where there is none."""
    xp = namespace(a)
    if xp is not np:
        return xp.linalg.cholesky(a, symmetrize_input=False)
    try:
        return np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        return np.full(a.shape, np.nan)


def solve_positive(a: Array, b: Array, stored: float = EPS) -> Array:
    """`inv(a) @ b` in double precision; NaN where `a` is not positive definite (see `is_positive`)."""
    return namespace(a).where(is_positive(a, stored), solve(a, b), np.nan)


def orthonormal_rows(rows: Array, stored: float) -> tuple[Array, Flag]:
    """Orthonormal rows that span some vectors [n, width] in float64, n up to the width, and whether these are
    independent: each must lie apart from the span of those before it by more than the rounding to the precision
    `stored` that they were read in."""
    xp = namespace(rows)
    sizes = xp.sqrt((rows * rows).sum(axis=1, keepdims=True))
    units = rows / xp.where(sizes > 0, sizes, xp.ones_like(sizes))
    fine = xp.isfinite(units).all() & (sizes > 0).all()
    if rows.shape[0] == 1:
        return units, fine
    q, r = xp.linalg.qr(units.T)
    # A row that depends on others has an error of about 0.2 `stored` in its own rounding, and shares of theirs.
    return q.T, fine & (abs(xp.diagonal(r)) > max(2 * stored, max(rows.shape) * EPS)).all()


def rounded(made: Array, like: Array) -> tuple[Array, Flag]:
    """A result in the dtype of a tensor, and whether all of it is finite; else it is zeros."""
    xp = namespace(made)
    finite = xp.isfinite(made).all()
    return round_to(xp.where(finite, made, 0.0), like.dtype), finite


def check_floats(avals: Avals) -> None:
    """Refuse what is no real float."""
    for aval in avals:
        if not aval.dtype.is_float:
            hint = "Cast it to a float first, or narrow the pattern."
            raise Refusal("dtype-unsupported", f"this edit computes on floats, got {aval}", hint=hint, kinds=("float",))


def check_shape(what: str, aval: Aval, wanted: tuple[int, ...], hint: str) -> None:
    """Refuse a tensor of another shape."""
    if aval.shape != wanted:
        raise Refusal("shapes-differ", f"{what} are {aval}, not [{','.join(map(str, wanted))}]", hint=hint)


def cut_along(shape: tuple[int, ...], axis: int, operands: tuple[int | None, ...]) -> Cuts:
    """Parts of a tensor along one axis, each of the same part of the operands along theirs."""
    step = max(1, PART // max(1, prod(shape) // max(1, shape[axis])))
    return (AxisCut(axis, shape[axis], step, operands),) if step < shape[axis] else ()


def cut_beside(shape: tuple[int, ...], axis: int) -> Cuts:
    """Parts along the first axis that is longer than one and is not `axis`; a second operand is needed whole."""
    others = [at for at, n in enumerate(shape) if at != axis and n > 1]
    return cut_along(shape, others[0], (others[0], None)) if others else ()
