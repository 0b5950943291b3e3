"""Low-rank factorization of matrices: PHLoRA (2025, https://arxiv.org/abs/2509.10971)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from pydantic import Field, PlainValidator, StrictBool, WithJsonSchema

from brainsurgery_jax._lazy import Array, Flag, Inexact, jax, np
from brainsurgery_jax.dtypes import BY_NAME, INT64, Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup
from brainsurgery_jax.numerics import filtered
from brainsurgery_jax.numerics.factor import Lanczos, product
from brainsurgery_jax.numerics.ladder import Attempt, ladder, svd_workspace, values_workspace, workspace
from brainsurgery_jax.numerics.lapack import singular_values, svd
from brainsurgery_jax.numerics.math import fold_seed, matrix, on_host, widen
from brainsurgery_jax.op import Avals, Form, Number, Params, Real, build, kernel
from brainsurgery_jax.ops._factorize import FactorParams, factorize, filter_at_once, is_finite, ladder_of
from brainsurgery_jax.ops._stacked import Stacked, split_matrices, stack_matrices
from brainsurgery_jax.protocol import Results, TensorExpr, View

_NOT_FINITE = "the matrix holds NaN or infinity and cannot be factorized"


class Energy(NamedTuple):
    """A rank chosen from the data: the least that keeps this share of the squared singular values."""

    share: float


def _rank(value: object) -> int | float | Energy:
    wanted = "expected a positive integer, a fraction below 1 of the full rank, or {energy: share}"
    match value:
        case {"energy": int() | float() as share, **others} if not others:
            if 0 < share <= 1:
                return Energy(float(share))
            raise ValueError(f"expected an energy above 0 and at most 1, got {share!r}")
    try:
        number = float(value) if isinstance(value, str | int | float) else float("nan")
    except (TypeError, ValueError, OverflowError):
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
    int | float | Energy,
    PlainValidator(_rank),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}, _SHARE]}),
]


class Numbers(TypedDict):
    """The method, the tolerance, and the key of random values."""

    method: str
    tol: float
    key_high: float
    key_low: float


def _check_matrix(avals: Avals, params: Params) -> None:
    matrix(avals, "a low-rank factorization")


def _factor_avals(avals: Avals, params: FactorParams) -> Avals:
    (x,) = avals
    return Aval((x.shape[0], params["rank"]), x.dtype), Aval((params["rank"], x.shape[1]), x.dtype)


def _workspace(avals: Avals, params: FactorParams, *, rebuilt: bool) -> int:
    return workspace(avals[0], params["rank"], params["method"], rebuilt=rebuilt)


def _workspace_on_device(avals: Avals, params: FactorParams) -> int:
    return filtered.workspace(avals[0], params["rank"])


def _on_devices(avals: Avals, params: FactorParams) -> bool:
    return params["method"] != "exact" and filtered.fits(avals[0], params["rank"])


def _anywhere(avals: Avals, params: Params) -> bool:
    return True


def _exactly(x: Array, rank: int, *, rebuilt: bool) -> tuple[Any, Flag]:
    """The full SVD."""
    none = np.zeros(())
    attempt = Attempt("exact", sure=True, rebuilt=rebuilt)
    outcome = factorize(x, rank=rank, attempt=attempt, tol=none, key_high=none, key_low=none)
    return outcome.value, outcome.accepted


def _at_once(x: Array, rank: int, method: str, *, rebuilt: bool, **numbers: Number) -> tuple[Any, Flag]:
    """The ladder of the host in one function, for callers that cannot look at a result: a rung is computed only if the
    one before is not good enough."""
    tries = [] if on_host(x) else ladder(Aval(x.shape, BY_NAME[x.dtype.name]), rank, method, rebuilt=rebuilt)
    if len(tries) < 2:
        return _exactly(x, rank, rebuilt=rebuilt)
    return _derive_as_svd(
        lambda x, numbers: _first_good(x, tries, None, {"rank": rank, **numbers}), x, numbers, rank, rebuilt=rebuilt
    )


def _filter_at_once(x: jax.Array, rank: int, method: str, *, rebuilt: bool, **numbers: Number) -> tuple[Any, Flag]:
    """The ladder of an accelerator in one function. What none of its rungs certifies is not accepted: a trace cannot
    leave it to the host."""
    return _derive_as_svd(
        lambda x, numbers: filter_at_once(x, rank, method, rebuilt=rebuilt, **numbers),
        x,
        numbers,
        rank,
        rebuilt=rebuilt,
    )


def _derive_as_svd(
    compute: Callable[..., tuple[Any, Flag]], x: Array, numbers: dict[str, Number], rank: int, *, rebuilt: bool
) -> tuple[Any, Flag]:
    """`compute(x, numbers)`, its derivatives those of the full SVD."""

    @jax.custom_jvp
    def call(x: Array, numbers: dict[str, Number]) -> tuple[Any, Flag]:
        return compute(x, numbers)

    @call.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (x, _), (along, _) = primals, tangents
        with jax.enable_x64(True):  # JAX may ask for this rule when `apply` is over
            return jax.jvp(lambda x: _exactly(x, rank, rebuilt=rebuilt), (x,), (along,))

    return call(x, numbers)


def _first_good(x: Array, tries: Sequence[Attempt], state: Lanczos | None, params: Mapping[str, Any]) -> Any:
    """The first result that is accepted, and whether x is finite."""
    first, *others = tries
    value, good, _, state = factorize(x, attempt=first, **params, state=state)
    if not others:
        return value, good
    return jax.lax.cond(good, lambda: (value, good), lambda: _first_good(x, others, state, params))


@kernel(guarded=True)
def factors_within(
    x: jax.Array, *, rank: int, method: str, tol: Number, key_high: Number, key_low: Number
) -> tuple[tuple[Array, Array], Flag]:
    """`factors` on an accelerator, within a trace: all in float32, numbers too."""
    return _filter_at_once(x, rank, method, rebuilt=False, tol=tol, key_high=key_high, key_low=key_low)


@kernel(
    check=_check_matrix,
    result=_factor_avals,
    guarded=True,
    refusal=_NOT_FINITE,
    rungs=lambda avals, params, backend: ladder_of(avals, params, backend, rebuilt=False),
    host=_anywhere,
    workspace=lambda avals, params: _workspace(avals, params, rebuilt=False),
    device=_on_devices,
    on_device=_workspace_on_device,
    within=factors_within,
)
def factors(
    x: Inexact[Array, "m n"], *, rank: int, method: str, tol: Number, key_high: Number, key_low: Number
) -> tuple[Array | tuple[Array, Array] | None, Flag]:
    """`b` [m, r] and `a` [r, n], `b @ a` being the best approximation in Frobenius norm, and whether x is finite.

    Reference: Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    return _at_once(x, rank, method, rebuilt=False, tol=tol, key_high=key_high, key_low=key_low)


@kernel(guarded=True)
def truncate_within(
    x: jax.Array, *, rank: int, method: str, tol: Number, key_high: Number, key_low: Number
) -> tuple[Array, Flag]:
    """`truncate` on an accelerator, within a trace: all in float32, numbers too."""
    return _filter_at_once(x, rank, method, rebuilt=True, tol=tol, key_high=key_high, key_low=key_low)


@kernel(
    "truncated",
    check=_check_matrix,
    result=lambda avals, params: avals,
    guarded=True,
    refusal=_NOT_FINITE,
    rungs=lambda avals, params, backend: ladder_of(avals, params, backend, rebuilt=True),
    host=_anywhere,
    workspace=lambda avals, params: _workspace(avals, params, rebuilt=True),
    device=_on_devices,
    on_device=_workspace_on_device,
    within=truncate_within,
)
def truncate(
    x: Inexact[Array, "m n"], *, rank: int, method: str, tol: Number, key_high: Number, key_low: Number
) -> tuple[Array, Flag]:
    """The best approximation of `x` of that rank, in its own shape, and whether x is finite."""
    return _at_once(x, rank, method, rebuilt=True, tol=tol, key_high=key_high, key_low=key_low)


@kernel(
    "truncated_by_energy",
    check=_check_matrix,
    result=lambda avals, params: avals,
    guarded=True,
    refusal=_NOT_FINITE,
    host=_anywhere,
    workspace=lambda avals, params: svd_workspace(avals[0]),
)
def truncate_by_energy(x: Inexact[Array, "m n"], *, energy: Number) -> tuple[Array, Array]:
    """The best approximation of `x` of the least rank with that share of the energy; the shape needs no rank."""
    xp, finite = x.__array_namespace__(), is_finite(x)
    if on_host(x) and not finite:
        return x, finite
    u, s, vh = svd(widen(x))
    kept = xp.arange(s.size, dtype=np.int64) < _rank_of_energy(s, energy)
    return product(u * xp.where(kept, s, xp.zeros_like(s)).astype(u.dtype)[None, :], vh, x.dtype), finite


def _rank_of_energy(s: Array, energy: Number) -> Array:
    xp = s.__array_namespace__()
    share = xp.cumsum(xp.square(s.astype(np.float64)))
    return xp.minimum(1 + xp.sum(share < energy * share[-1], dtype=np.int64), xp.asarray(s.size))


@kernel(
    check=_check_matrix,
    result=lambda avals, params: (Aval((), INT64),),
    guarded=True,
    refusal=_NOT_FINITE,
    host=_anywhere,
    workspace=lambda avals, params: values_workspace(avals[0]),
)
def energy_rank(x: Inexact[Array, "m n"], *, energy: Number) -> tuple[Array, Array]:
    """The least rank that keeps the share `energy` of the squared singular values, as an int64 scalar."""
    finite = is_finite(x)
    if on_host(x) and not finite:
        return np.asarray(0), finite
    return _rank_of_energy(singular_values(widen(x)), energy), finite


def _resolve_rank(view: View, name: str, x: TensorExpr, rank: int | float | Energy) -> int:
    matrix((x.aval,), f"the low-rank factorization of '{name}'")
    most = min(x.aval.shape)
    match rank:
        case Energy(share):
            return view.number(view.apply(energy_rank, x, energy=share), bound=most)
        case int():
            return min(rank, most)
    return max(1, round(rank * most))


MethodName = Annotated[Literal["auto", "exact", "randomized"], Field(description="how to factorize")]
Tolerance = Annotated[Real, Field(description="relative excess error over the optimum, for `method: auto`")]


@dataclass(frozen=True)
class MethodKeys(KeyGroup):
    """How matrices are factorized."""

    method: MethodName = "auto"
    tol: Tolerance = 1e-4


@dataclass(frozen=True)
class PlaceKeys(KeyGroup):
    """What becomes of a matrix, and of what bears the names of its factors."""

    delete_original: StrictBool = True
    require_missing_dest: StrictBool = True


def numbers_of(how: MethodKeys, seed: int) -> Numbers:
    """How factors are found, as kernels take it."""
    tol = how.tol
    if not tol > 0:
        hint = "For the full SVD write `method: exact`."
        raise Refusal("value-type", f"expected a number above 0, got {tol:g}", key="tol", hint=hint)
    return {"method": how.method, "tol": tol, "key_high": float(seed >> 32), "key_low": float(seed & 0xFFFFFFFF)}


@build(
    Form(
        "phlora", ("target",), ("target_a", "target_b"), "new", beside=True, consumes=True, counted=2,
        noun="factors", endings=(".lora_A", ".lora_B"),
    ),
)  # fmt: skip
def phlora(
    view: View,
    name: str,
    x: TensorExpr,
    *,
    rank: Rank,
    place: PlaceKeys,
    stacked: Stacked = False,
    how: MethodKeys,
) -> Results:
    """Replace matrices by low-rank factors: `b @ a` is the best approximation of the matrix at that rank.

    `target_a` gets sqrt(S) Vh with shape [r, n], `target_b` gets U sqrt(S) with shape [m, r]. A rank above min(m, n) is
    clipped; a fraction is of min(m, n); `{energy: 0.9}` takes the least rank that keeps that share of the energy.
    `method: auto` takes the cheapest way whose error is certified to exceed the least possible by at most the share
    `tol`, `exact` the full SVD, `randomized` block Lanczos without a fall-back. `stacked: true` factorizes each matrix
    of tensors [L, m, n] by itself, into factors [L, r, n] and [L, m, r]; an energy is then kept in each of them.
    Example: `phlora: {target: '(.+)\\.weight', target_a: '\\1.lora_A', target_b: '\\1.lora_B', rank: 16}`
    Reference: PHLoRA, 2025, https://arxiv.org/abs/2509.10971.
    """
    numbers = numbers_of(how, fold_seed(view.seed, name))
    parts = split_matrices(view, name, x) if stacked else [x]
    common = max(_resolve_rank(view, name, one, rank) for one in parts)
    bs, rows = zip(*(view.apply_all(factors, one, rank=common, **numbers) for one in parts), strict=True)
    a, b = (stack_matrices(view, x, made) if stacked else made[0] for made in (rows, bs))
    return Results((a, b), "new" if place.require_missing_dest else "rebind", drops=place.delete_original)


@build(Form("phlora_", ("target",), ("target",), "rebind"))
def phlora_in_place(
    view: View, name: str, x: TensorExpr, *, rank: Rank, stacked: Stacked = False, how: MethodKeys
) -> TensorExpr:
    """Replace matrices by their best approximation of a lower rank, in their own shape.

    Rank, method, tol and stacked as in `phlora`.
    Example: `phlora_: {target: '.+\\.weight', rank: 64}`
    Reference: PHLoRA, 2025, https://arxiv.org/abs/2509.10971.
    """
    parts = split_matrices(view, name, x) if stacked else [x]
    made = [_truncate(view, name, one, rank, how) for one in parts]
    return stack_matrices(view, x, made) if stacked else made[0]


def _truncate(view: View, name: str, x: TensorExpr, rank: int | float | Energy, how: MethodKeys) -> TensorExpr:
    if isinstance(rank, Energy):
        return view.apply(truncate_by_energy, x, energy=rank.share)
    numbers = numbers_of(how, fold_seed(view.seed, name))
    return view.apply(truncate, x, rank=_resolve_rank(view, name, x, rank), **numbers)
