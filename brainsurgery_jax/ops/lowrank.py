"""Low-rank factorization of matrices: PHLoRA (2025, https://arxiv.org/abs/2509.10971)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, StrictBool, WithJsonSchema

from brainsurgery_jax._lazy import Array, Inexact, jnp
from brainsurgery_jax.dtypes import INT64, Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import Bind, Dest, Drop, Edit, Expr, Number, Pattern, Role, View, control, kernel
from brainsurgery_jax.ops._math import matrix, widen
from brainsurgery_jax.select import Ref

_NOT_FINITE = "the matrix holds NaN or infinity and cannot be factorized"


class Energy(NamedTuple):
    """A rank chosen from the data: the least that keeps this share of the squared singular values."""

    share: float


def _rank(value: Any) -> int | float | Energy:
    wanted = "expected a positive integer, a fraction below 1 of the full rank, or {energy: share}"
    if isinstance(value, dict) and set(value) == {"energy"} and isinstance(value["energy"], int | float):
        if 0 < value["energy"] <= 1:
            return Energy(float(value["energy"]))
        raise ValueError(f"expected an energy above 0 and at most 1, got {value['energy']!r}")
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


def _svd(x: Array) -> tuple[Array, Array, Array]:
    """Thin SVD with a fixed sign: the entry of largest magnitude in each left vector is real and positive."""
    u, s, vh = jnp.linalg.svd(widen(x), full_matrices=False)
    top = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0, keepdims=True), axis=0)
    phase = jnp.where(top == 0, jnp.ones_like(top), top / jnp.abs(top))
    return u * phase.conj(), s, vh * phase.reshape(-1, 1)


def _check_matrix(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> None:
    matrix(avals, "a low-rank factorization")


def _factor_avals(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> tuple[Aval, ...]:
    (x,) = avals
    return Aval((x.shape[0], params["rank"]), x.dtype), Aval((params["rank"], x.shape[1]), x.dtype)


@kernel(check=_check_matrix, result=_factor_avals, guarded=True, refusal=_NOT_FINITE)
def factors(x: Inexact[Array, "m n"], *, rank: int) -> tuple[tuple[Array, Array], Array]:
    """`b` [m, r] and `a` [r, n] with `b @ a` the best approximation of rank r in Frobenius norm, and whether x is finite.

    The singular values are shared evenly, as square roots. Low-precision matrices are factorized in float32.
    Reference: Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    u, s, vh = _svd(x)
    root = jnp.sqrt(s[:rank]).astype(u.dtype)
    b, a = u[:, :rank] * root, root[:, None] * vh[:rank]
    return (b.astype(x.dtype), a.astype(x.dtype)), jnp.isfinite(widen(x)).all()


@kernel(check=_check_matrix, result=lambda avals, params: avals, guarded=True, refusal=_NOT_FINITE)
def truncated(x: Inexact[Array, "m n"], *, rank: int | None, energy: Number | None = None) -> tuple[Array, Array]:
    """The best approximation of `x` of the given rank (or of the least rank with that energy), in its own shape."""
    u, s, vh = _svd(x)
    if energy is not None:
        kept = jnp.arange(s.size, dtype=jnp.int64) < _rank_of_energy(s, energy)
        s = jnp.where(kept, s, jnp.zeros_like(s))
    r = s.size if rank is None else rank
    low = jnp.matmul(u[:, :r] * s[:r].astype(u.dtype), vh[:r], precision="highest")
    return low.astype(x.dtype), jnp.isfinite(widen(x)).all()


def _rank_of_energy(s: Array, energy: Array) -> Array:
    share = jnp.cumsum(jnp.square(s.astype(jnp.float64)))
    return jnp.minimum(1 + jnp.sum(share < energy * share[-1], dtype=jnp.int64), s.size)


@kernel(check=_check_matrix, result=lambda avals, params: (Aval((), INT64),), guarded=True, refusal=_NOT_FINITE)
def energy_rank(x: Inexact[Array, "m n"], *, energy: Number) -> tuple[Array, Array]:
    """The least rank that keeps the share `energy` of the squared singular values, as an int64 scalar."""
    return _rank_of_energy(_svd(x)[1], energy), jnp.isfinite(widen(x)).all()


def _resolved(view: View, x: Expr, rank: int | float | Energy) -> int:
    matrix((x.aval,), "a low-rank factorization")
    most = min(x.aval.shape)
    match rank:
        case Energy(share):
            return view.number(view.apply(energy_rank, x, energy=share), bound=most)
        case int():
            return min(rank, most)
    return max(1, round(rank * most))


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
) -> Iterator[Edit]:
    """Replace matrices by low-rank factors: `b @ a` is the best approximation of the matrix at that rank.

    `target_a` gets sqrt(S) Vh with shape [r, n], `target_b` gets U sqrt(S) with shape [m, r]. A rank above min(m, n) is
    clipped; a fraction is of min(m, n); `{energy: 0.9}` takes the least rank that keeps that share of the energy.
    Example: `phlora: {target: '(.+)\\.weight', target_a: '\\1.lora_A', target_b: '\\1.lora_B', rank: 16}`
    Reference: PHLoRA, 2025, https://arxiv.org/abs/2509.10971.
    """
    dest: Dest = "new" if require_missing_dest else "rebind"
    for name, (name_a, name_b) in view.rename(target, {"target_a": target_a, "target_b": target_b}):
        if (target_a.alias, name_a) == (target_b.alias, name_b):
            raise Refusal("names-collide", f"both factors of '{name}' would be called '{name_a}'", key="target_b")
        x = view.fetch(target.alias, name)
        b, a = view.apply(factors, x, rank=_resolved(view, x, rank))
        made = {(target_a.alias, name_a), (target_b.alias, name_b)}
        if delete_original and (target.alias, name) not in made:
            yield Drop(target.alias, name)
        yield Bind(target_a.alias, name_a, a, dest)
        yield Bind(target_b.alias, name_b, b, dest)


@control("phlora_")
def phlora_in_place(view: View, *, target: Pattern, rank: Rank) -> Iterator[Edit]:
    """Replace matrices by their best approximation of a lower rank, in their own shape.

    Example: `phlora_: {target: '.+\\.weight', rank: 64}`
    Reference: PHLoRA, 2025, https://arxiv.org/abs/2509.10971.
    """
    for name, x in view.select(target, "target"):
        if isinstance(rank, Energy):
            low = view.apply(truncated, x, rank=None, energy=rank.share)
        else:
            low = view.apply(truncated, x, rank=_resolved(view, x, rank), energy=None)
        yield Bind(target.alias, name, low, "rebind")
