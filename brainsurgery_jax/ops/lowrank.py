"""Low-rank factorization of matrices: PHLoRA (2025, https://arxiv.org/abs/2509.10971)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, StrictBool, WithJsonSchema

from brainsurgery_jax._lazy import Array, Inexact, jax, jnp
from brainsurgery_jax.dtypes import INT64, Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import Number, Pattern, Role, Rung, control, kernel
from brainsurgery_jax.ops._factor import OVERSAMPLE, Truncation, exact, gram, krylov, mm
from brainsurgery_jax.ops._math import fold_seed, matrix, widen
from brainsurgery_jax.protocol import Bind, Dest, Drop, Edit, Expr, View
from brainsurgery_jax.select import Ref

_NOT_FINITE = "the matrix holds NaN or infinity and cannot be factorized"


class Energy(NamedTuple):
    """A rank chosen from the data: the least that keeps this share of the squared singular values."""

    share: float


def _rank(value: Any) -> int | float | Energy:
    wanted = "expected a positive integer, a fraction below 1 of the full rank, or {energy: share}"
    match value:
        case {"energy": int() | float() as share, **others} if not others:
            if 0 < share <= 1:
                return Energy(float(share))
            raise ValueError(f"expected an energy above 0 and at most 1, got {share!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{wanted}, got {value!r}") from None
    if number.is_integer() and number > 0:
        return int(number)
    if 0 < number < 1:
        return number
    raise ValueError(f"{wanted}, got {value!r}")


_SHARE = {
    "type": "object",
    "properties": {"energy": {"type": "number"}},
    "required": ["energy"],
    "additionalProperties": False,
}
Rank = Annotated[
    Any,
    BeforeValidator(_rank),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}, _SHARE]}),
]


SMALL = 256
"""Matrices with a side of at most this are always factorized exactly: nothing is faster."""

_LADDERS = ((2, 3, 5, 8), (2, 3, 5), (3, 5), (3,), (2,))
"""Depths of the Krylov space to try one after another; the first ladder that is worth its risk is taken."""

_RISK = 0.35
"""How much of the certain method's cost may be spent on quick ones that are then rejected."""


def _check_matrix(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> None:
    matrix(avals, "a low-rank factorization")


def _factor_avals(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> tuple[Aval, ...]:
    (x,) = avals
    return Aval((x.shape[0], params["rank"]), x.dtype), Aval((params["rank"], x.shape[1]), x.dtype)


def _ladder(avals: tuple[Aval, ...], params: Mapping[str, Any], finish: str) -> tuple[Rung, ...]:
    """The ways to factorize a matrix, cheapest first, the last one certain."""
    (x,) = avals
    rank, method = params["rank"], params["method"]
    long, short = max(x.shape), min(x.shape)
    last = Rung("exact", factorize, {"way": "exact", "depth": 0, "finish": finish})
    if method == "exact" or short <= SMALL or x.dtype.kind != "float":
        return (last,)
    if method == "randomized":
        *first, best = _depths(long, short, rank, float("inf")) or (0,)
        quick = [
            Rung(f"krylov-{q}", factorize, {"way": "krylov", "depth": q, "finish": finish}) for q in (*first, best)
        ]
        return (*quick[:-1], quick[-1]._replace(certain=True))
    if long >= 2 * short:
        last = Rung("gram", factorize, {"way": "gram", "depth": 0, "finish": finish})
    depths = _depths(long, short, rank, _RISK * _certain_cost(long, short))
    quick = [Rung(f"krylov-{q}", factorize, {"way": "krylov", "depth": q, "finish": finish}) for q in depths]
    return (*quick, last)


def _depths(long: int, short: int, rank: int, most: float) -> tuple[int, ...]:
    """The depths to try: as many as cost no more than `most` together, in spaces much smaller than the matrix."""
    for depths in _LADDERS:
        widths = [(rank + OVERSAMPLE) * (q + 1) for q in depths]
        if max(widths) <= 0.4 * short and sum(_krylov_cost(long, short, w) for w in widths) <= most:
            return depths
    return ()


def _krylov_cost(long: int, short: int, width: int) -> float:
    """Operations: three products with the basis (building it, Ritz values, residuals), and two orthogonalizations."""
    return 6 * long * short * width + 2 * (long + 2 * short) * width**2


def _certain_cost(long: int, short: int) -> float:
    """Operations of the exact methods, in units of a matrix product's: measured, within a factor of two."""
    return 4 * long * short**2 + 20 * short**3


@kernel()
def factorize(
    x: Inexact[Array, "m n"],
    *,
    rank: int,
    method: str,
    way: str,
    depth: int,
    finish: str,
    tol: Number,
    key_high: Number,
    key_low: Number,
) -> tuple[Any, Array, dict[str, Array]]:
    """One rung: the factors or the truncated matrix, whether it is good enough, and the facts about it.

    Low-precision matrices are factorized in float32; wide ones as their transpose.
    """
    w = widen(x)
    wide = x.shape[0] < x.shape[1]
    tall = w.T if wide else w
    if way == "krylov":
        data = jnp.stack([key_high, key_low]).astype(jnp.uint32)
        t = krylov(tall, jax.random.wrap_key_data(data), rank, depth)
    else:
        t = exact(tall, rank) if way == "exact" else gram(tall, rank)
    finite = jnp.isfinite(w).all()
    facts = {"energy": t.kept2 / jnp.maximum(t.norm2, 1e-300), "excess": t.excess}
    value = _low(t, x, wide) if finish == "matrix" else _split(t, x, wide)
    return value, finite & (t.excess <= tol), facts


def _low(t: Truncation, x: Array, wide: bool) -> Array:
    low = mm(t.xv, t.v.conj().T)
    return (low.T if wide else low).astype(x.dtype)


def _split(t: Truncation, x: Array, wide: bool) -> tuple[Array, Array]:
    """`b` [m, r] and `a` [r, n] that share the singular values evenly; the entry of largest magnitude in each column of
    `b` is real and positive, so that factors repeat."""
    s = jnp.linalg.norm(t.xv, axis=0)
    root = jnp.sqrt(s)
    safe = jnp.where(root > 0, root, jnp.ones_like(root))
    long, short = t.xv / safe[None, :], t.v * root[None, :]
    b, a = (short.conj(), long.T) if wide else (long, short.conj().T)
    top = jnp.take_along_axis(b, jnp.argmax(jnp.abs(b), axis=0, keepdims=True), axis=0)
    phase = jnp.where(top == 0, jnp.ones_like(top), top / jnp.abs(jnp.where(top == 0, jnp.ones_like(top), top)))
    return (b * phase.conj()).astype(x.dtype), (a * phase.reshape(-1, 1)).astype(x.dtype)


@kernel(
    check=_check_matrix,
    result=_factor_avals,
    guarded=True,
    refusal=_NOT_FINITE,
    rungs=lambda avals, params: _ladder(avals, params, "factors"),
)
def factors(
    x: Inexact[Array, "m n"], *, rank: int, method: str, tol: Number, key_high: Number, key_low: Number
) -> tuple[tuple[Array, Array], Array]:
    """`b` [m, r] and `a` [r, n], `b @ a` being the best approximation in Frobenius norm, and whether x is finite.

    Reference: Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    value, accepted, _ = factorize(
        x, rank=rank, method=method, way="exact", depth=0, finish="factors", tol=tol, key_high=key_high, key_low=key_low
    )
    return value, accepted


@kernel(
    check=_check_matrix,
    result=lambda avals, params: avals,
    guarded=True,
    refusal=_NOT_FINITE,
    rungs=lambda avals, params: _ladder(avals, params, "matrix"),
)
def truncated(
    x: Inexact[Array, "m n"], *, rank: int, method: str, tol: Number, key_high: Number, key_low: Number
) -> tuple[Array, Array]:
    """The best approximation of `x` of that rank, in its own shape, and whether x is finite."""
    value, accepted, _ = factorize(
        x, rank=rank, method=method, way="exact", depth=0, finish="matrix", tol=tol, key_high=key_high, key_low=key_low
    )
    return value, accepted


@kernel(check=_check_matrix, result=lambda avals, params: avals, guarded=True, refusal=_NOT_FINITE)
def truncated_by_energy(x: Inexact[Array, "m n"], *, energy: Number) -> tuple[Array, Array]:
    """The best approximation of `x` of the least rank with that share of the energy; the shape needs no rank."""
    u, s, vh = jnp.linalg.svd(widen(x), full_matrices=False)
    kept = jnp.arange(s.size, dtype=jnp.int64) < _rank_of_energy(s, energy)
    low = mm(u * jnp.where(kept, s, jnp.zeros_like(s)).astype(u.dtype)[None, :], vh)
    return low.astype(x.dtype), jnp.isfinite(widen(x)).all()


def _rank_of_energy(s: Array, energy: Number) -> Array:
    share = jnp.cumsum(jnp.square(s.astype(jnp.float64)))
    return jnp.minimum(1 + jnp.sum(share < energy * share[-1], dtype=jnp.int64), s.size)


@kernel(check=_check_matrix, result=lambda avals, params: (Aval((), INT64),), guarded=True, refusal=_NOT_FINITE)
def energy_rank(x: Inexact[Array, "m n"], *, energy: Number) -> tuple[Array, Array]:
    """The least rank that keeps the share `energy` of the squared singular values, as an int64 scalar."""
    s = jnp.linalg.svd(widen(x), compute_uv=False)
    return _rank_of_energy(s, energy), jnp.isfinite(widen(x)).all()


def _resolved(view: View, name: str, x: Expr, rank: int | float | Energy) -> int:
    matrix((x.aval,), f"the low-rank factorization of '{name}'")
    most = min(x.aval.shape)
    match rank:
        case Energy(share):
            return view.number(view.apply(energy_rank, x, energy=share), bound=most)
        case int():
            return min(rank, most)
    return max(1, round(rank * most))


MethodName = Annotated[Literal["auto", "exact", "randomized"], Field(description="how to factorize")]
Tolerance = Annotated[Number, Field(description="relative excess error over the optimum, for `method: auto`")]


def _how(method: str, tol: float, seed: int) -> dict[str, Any]:
    if not tol > 0:
        hint = "For the full SVD write `method: exact`."
        raise Refusal("value-type", f"expected a number above 0, got {tol:g}", key="tol", hint=hint)
    return {"method": method, "tol": tol, "key_high": float(seed >> 32), "key_low": float(seed & 0xFFFFFFFF)}


@control()
def phlora(
    view: View,
    *,
    target: Pattern,
    target_a: Annotated[Ref, Role("template", beside="target")],
    target_b: Annotated[Ref, Role("template", beside="target")],
    rank: Rank,
    delete_original: StrictBool = True,
    require_missing_dest: StrictBool = True,
    method: MethodName = "auto",
    tol: Tolerance = 1e-4,
) -> Iterator[Edit]:
    """Replace matrices by low-rank factors: `b @ a` is the best approximation of the matrix at that rank.

    `target_a` gets sqrt(S) Vh with shape [r, n], `target_b` gets U sqrt(S) with shape [m, r]. A rank above min(m, n) is
    clipped; a fraction is of min(m, n); `{energy: 0.9}` takes the least rank that keeps that share of the energy.
    `method: auto` takes the cheapest way whose error is certified to exceed the least possible by at most the share
    `tol`, `exact` the full SVD, `randomized` block Krylov without a fall-back.
    Example: `phlora: {target: '(.+)\\.weight', target_a: '\\1.lora_A', target_b: '\\1.lora_B', rank: 16}`
    Reference: PHLoRA, 2025, https://arxiv.org/abs/2509.10971.
    """
    dest: Dest = "new" if require_missing_dest else "rebind"
    for name, (name_a, name_b) in view.rename(target, {"target_a": target_a, "target_b": target_b}):
        if (target_a.alias, name_a) == (target_b.alias, name_b):
            hint = "Give `target_a` and `target_b` different endings, such as '.lora_A' and '.lora_B'."
            found = f"both factors of '{name}' would be called '{name_a}'"
            raise Refusal("names-collide", found, key="target_b", hint=hint)
        view.has(target.alias, name)  # which the plan language counts as a read
        x = view.fetch(target.alias, name)
        how = _how(method, tol, fold_seed(view.seed, name))
        b, a = view.apply(factors, x, rank=_resolved(view, name, x, rank), **how)
        made = {(target_a.alias, name_a), (target_b.alias, name_b)}
        if delete_original and (target.alias, name) not in made:
            yield Drop(target.alias, name)
        yield Bind(target_a.alias, name_a, a, dest)
        yield Bind(target_b.alias, name_b, b, dest)


@control("phlora_")
def phlora_in_place(
    view: View, *, target: Pattern, rank: Rank, method: MethodName = "auto", tol: Tolerance = 1e-4
) -> Iterator[Edit]:
    """Replace matrices by their best approximation of a lower rank, in their own shape.

    Rank, method and tol as in `phlora`.
    Example: `phlora_: {target: '.+\\.weight', rank: 64}`
    Reference: PHLoRA, 2025, https://arxiv.org/abs/2509.10971.
    """
    for name, x in view.select(target, "target"):
        if isinstance(rank, Energy):
            low = view.apply(truncated_by_energy, x, energy=rank.share)
        else:
            how = _how(method, tol, fold_seed(view.seed, name))
            low = view.apply(truncated, x, rank=_resolved(view, name, x, rank), **how)
        yield Bind(target.alias, name, low, "rebind")
