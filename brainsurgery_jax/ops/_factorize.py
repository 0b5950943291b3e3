"""Rungs of a low-rank factorization: ways to compute it, each of which judges its own result."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

from brainsurgery_jax._lazy import Array, Inexact, jax, jnp, np
from brainsurgery_jax.numerics import filtered
from brainsurgery_jax.numerics.factor import (
    Lanczos,
    Truncation,
    exact,
    gram,
    lengths,
    limit_excess,
    product,
    quick_gram,
    random_blocks,
    reach,
    ritz,
    truncation,
    widened,
)
from brainsurgery_jax.numerics.ladder import Attempt, ladder
from brainsurgery_jax.numerics.math import largest_entries, on_host, widen
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.op import Avals, Number, Outcome, Rung, kernel

HOST = "cpu"
"""The backend of which a ladder is the host's."""


class FactorParams(TypedDict):
    """The rank of a factorization, and how it is found."""

    rank: int
    method: str


class FilteredAttempt(NamedTuple):
    """What a rung on an accelerator does, as `Attempt`: the degrees of the polynomials that it filters by."""

    degrees: tuple[int, ...]
    sure: bool
    rebuilt: bool

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"filtered-{self.degrees[-1]}"


def ladder_of(avals: Avals, params: FactorParams, backend: str, *, rebuilt: bool) -> tuple[Rung, ...]:
    """The rungs of a factorization. On an accelerator none is certain, unless `randomized` asks for no more: what they
    do not accept is for the host."""
    if backend != HOST:
        last = filtered.DEGREES[-1] if params["method"] == "randomized" else None
        attempts = [FilteredAttempt(degrees, degrees is last, rebuilt) for degrees in filtered.DEGREES]
        return tuple(Rung(a.name, factorize_filtered, (("attempt", a),)) for a in attempts)
    attempts = ladder(avals[0], params["rank"], params["method"], rebuilt=rebuilt)
    return tuple(Rung(attempt.name, factorize, (("attempt", attempt),)) for attempt in attempts)


@kernel(resumes=True)
def factorize(
    x: Inexact[Array, "m n"],
    *,
    rank: int,
    attempt: Attempt,
    tol: Number,
    key_high: Number,
    key_low: Number,
    state: Lanczos | None = None,
    **chosen_by: object,
) -> Outcome:
    """One rung: the factors or the truncated matrix, whether it is accepted, facts, and the state for the next rung.

    Low-precision matrices are factorized in float32; wide ones as their transpose. `chosen_by`: the method, by which
    the rungs were chosen.
    """
    way, sure = attempt.way, attempt.sure
    wide = x.shape[0] < x.shape[1]
    tall = _tall(x.T if wide else x, state, way)
    key = key_high, key_low
    # What is continued was looked at before; of what is not finite, no Gram matrix is taken.
    trusted = on_host(x) and (state is not None or way == "quick-gram")
    finite = np.True_ if trusted else is_finite(tall)
    if on_host(x) and not finite:  # LAPACK on numpy raises for these
        return Outcome(None, finite, {}, None)
    if way == "lanczos":
        normal, probe = random_blocks(tall, rank, key)
        state = reach(tall, state, normal, attempt.blocks)
        found = ritz(state, rank)
        if on_host(x) and not sure and limit_excess(found, state.norm2) > tol:
            return Outcome(None, np.False_, {}, state)
        t = truncation(tall, state, found, probe)
    else:
        certain = {"exact": exact, "gram": gram}
        t = quick_gram(tall, rank, tol, key) if way == "quick-gram" else certain[way](tall, rank)
        if on_host(x) and not sure and not t.excess <= tol:
            return Outcome(None, np.False_, {}, None)
    xp = t.v.__array_namespace__()
    facts = {"energy": t.kept2 / xp.maximum(t.norm2, xp.asarray(1e-300)), "excess": t.excess}
    return Outcome(_finish(t, x, rebuilt=attempt.rebuilt), finite if sure else finite & (t.excess <= tol), facts, state)


@kernel(resumes=True)
def factorize_filtered(
    x: jax.Array,
    *,
    rank: int,
    attempt: FilteredAttempt,
    tol: Number,
    key_high: Number,
    key_low: Number,
    state: filtered.Subspace | None = None,
    **chosen_by: object,
) -> Outcome:
    """One rung on an accelerator, as `factorize`: all in float32, numbers too."""
    tall, key = _as_filtered(x), _wrap_key(key_high, key_low)
    state = filtered.reach(tall, state, rank, attempt.degrees, key)
    t = filtered.truncation(tall, state, rank)
    good = jnp.isfinite(t.kept2) if attempt.sure else t.excess <= tol
    return Outcome(
        _finish(t, x, rebuilt=attempt.rebuilt), good, {"energy": t.kept2 / t.norm2, "excess": t.excess}, state
    )


def filter_at_once(
    x: jax.Array, rank: int, method: str, *, rebuilt: bool, tol: Number, key_high: Number, key_low: Number
) -> tuple[Any, Array]:
    """All rungs of an accelerator in one function: the result, and whether one of them accepts it."""
    t = filtered.climb(_as_filtered(x), rank, tol, _wrap_key(key_high, key_low))
    good = jnp.isfinite(t.kept2) if method == "randomized" else t.excess <= tol
    return _finish(t, x, rebuilt=rebuilt), good


def _as_filtered(x: jax.Array) -> jax.Array:
    """A matrix as a tall one, in a dtype whose products are computed as they are."""
    tall = x.T if x.shape[0] < x.shape[1] else x
    return tall if tall.dtype == jnp.bfloat16 else widen(tall)


def _wrap_key(high: Number, low: Number) -> jax.Array:
    """The key of random values whose words are the bits of two float32 numbers."""
    return jax.random.wrap_key_data(jax.lax.bitcast_convert_type(jnp.stack([high, low]), np.uint32))


def _finish(t: Truncation, x: Array, *, rebuilt: bool) -> Any:
    """The truncated matrix, or its factors."""
    wide = x.shape[0] < x.shape[1]
    return _low(t, x, wide) if rebuilt else _split(t, x, wide)


def _tall(x: Array, state: Lanczos | None, way: str) -> Array:
    """The matrix as a tall one, widened if all rungs need it wide."""
    if state is not None and state.x is not None:
        return state.x
    return x if way == "quick-gram" else widened(x)


def is_finite(x: Array) -> Array:
    xp = x.__array_namespace__()
    return xp.all(xp.isfinite(x))


def _low(t: Truncation, x: Array, wide: bool) -> Array:
    vh = t.v.conj().T
    return product(t.v.conj(), t.xv.T, x.dtype) if wide else product(t.xv, vh, x.dtype)


def _split(t: Truncation, x: Array, wide: bool) -> tuple[Array, Array]:
    """`b` [m, r] and `a` [r, n] that share the singular values evenly; the entry of largest magnitude in each column of
    `b` is real and positive, so that factors repeat."""
    xp = t.v.__array_namespace__()
    root = xp.sqrt(lengths(t.xv))
    safe = xp.where(root > 0, root, xp.ones_like(root))
    long, short = t.xv / safe[None, :], t.v * root[None, :]
    b, a = (short.conj(), long.T) if wide else (long, short.conj().T)
    top = largest_entries(b, 0)
    there = top != 0
    phase = xp.where(there, top / xp.where(there, xp.abs(top), xp.ones_like(root)), xp.ones_like(top))
    return round_to(b * phase.conj(), x.dtype), round_to(a * phase.reshape(-1, 1), x.dtype)
