"""How far two sides of an equation are apart, in one pass: by the largest difference, and by norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf, sqrt
from typing import NamedTuple

from brainsurgery_jax._lazy import Array, jax, jnp, np
from brainsurgery_jax.numerics.compare import both, in_pieces
from brainsurgery_jax.numerics.doubles import as64, differences, unequal
from brainsurgery_jax.reduction import Reduction


class Gap(NamedTuple):
    """Of `size` elements number `at` differs most, by `most`; `values` are those of both sides there, `scale` is the
    largest magnitude on the right."""

    size: int
    most: float = 0.0
    at: int = -1
    values: tuple[complex, ...] = ()
    scale: float = 0.0


def _gap(x: np.ndarray, y: np.ndarray) -> Gap:
    gaps = np.where(unequal(x, y), np.abs(differences(x, y)), 0.0)
    gaps = np.where(np.isnan(gaps), inf, gaps)  # NaN against anything is the worst there is
    finite = np.abs(as64(y))[np.isfinite(y)]
    at = int(gaps.argmax())
    return Gap(x.size, float(gaps[at]), at, (x[at].item(), y[at].item()), float(finite.max(initial=0.0)))


def _join(a: Gap, b: Gap) -> Gap:
    worst = b._replace(at=b.at + a.size) if b.most > a.most else a
    return worst._replace(size=a.size + b.size, scale=max(a.scale, b.scale))


@lru_cache
def agreement_in_scale(rtol: float, atol: float) -> Reduction[Gap, Gap]:
    """The `Gap` of two tensors; traced, whether it is at most `atol + rtol * scale`."""

    def is_close(x: jax.Array, y: jax.Array) -> jax.Array:
        scale = jnp.max(jnp.where(jnp.isfinite(y), abs(as64(y)), 0.0), initial=0.0)
        return ((x == y) | (abs(as64(x) - as64(y)) <= atol + rtol * scale)).all()

    return Reduction(in_pieces(_gap, _join), _join, lambda found: found, Gap(0), traced=is_close)


def truth() -> Reduction[bool, bool]:
    """Whether all of a tensor is true."""
    return both(lambda x: bool(x.all()), lambda x: x.all())


class Squares(NamedTuple):
    """Sums of squares: of the difference of two tensors, and of the right one."""

    apart: float
    right: float


def _squares(x: np.ndarray, y: np.ndarray) -> Squares:
    return Squares(float(np.sum(np.abs(differences(x, y)) ** 2)), float(np.sum(np.abs(as64(y)) ** 2)))


def _ratio(found: Squares) -> float:
    """The norm of the difference by that of the right; infinity if only the latter is 0."""
    return sqrt(found.apart / found.right) if found.right else inf if found.apart else found.apart


@lru_cache
def relative_error(holds: Callable[[Array], Array]) -> Reduction[Squares, float]:
    """The Frobenius norm of `left - right` by that of `right`, in double precision; NaN if an element is.

    0 if both are 0, infinity if `right` alone is. Traced, whether `holds` is true of it.
    """

    def join(a: Squares, b: Squares) -> Squares:
        return Squares(a.apart + b.apart, a.right + b.right)

    def traced(x: jax.Array, y: jax.Array) -> Array:
        apart, right = ((abs(z) ** 2).sum() ** 0.5 for z in (as64(x) - as64(y), as64(y)))
        return holds(jnp.where(apart == 0, 0.0, apart / right))

    return Reduction(in_pieces(_squares, join), join, _ratio, 0.0, traced=traced)
