"""Numbers of layers, experts, heads or neurons that data tell: a list in a tensor, or the units of some scores.

They are a stage boundary: a run computes them before it goes on, `check` and `explain` take the first ones instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from brainsurgery_jax._lazy import Array, Flag, Inexact, jnp, np
from brainsurgery_jax.dtypes import INT64, Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.numerics.math import keep_subnormal, on_host
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.ops.sets import entry
from brainsurgery_jax.protocol import TensorExpr, View
from brainsurgery_jax.select import parse_ref

Rule = Literal["smallest", "largest", "below", "above"]
RULES: tuple[Rule, ...] = ("smallest", "largest", "below", "above")
_COUNTED = RULES[:2]
FORM = "{scores: TENSOR, smallest: 4} (or `largest`, `below`, `above`), or {numbers: TENSOR}"
SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {
        "scores": {"type": "string"}, "numbers": {"type": "string"},
        **{rule: {"type": ["number", "string"] if rule in _COUNTED else "number"} for rule in RULES},
    },
    "additionalProperties": False,
}  # fmt: skip
MOST = 4096
"""Numbers that one step asks for: each is a question of its own to the engine."""


class UnitChoice(NamedTuple):
    """A choice as a plan writes it: the tensor of scores, or (`rule` None) of the numbers themselves. `amount`: how
    many units, which share of them, a bound of their scores, or the name of a scalar with the first."""

    tensor: str
    rule: Rule | None = None
    amount: int | float | str = 0


def read_chosen(value: Mapping[object, object]) -> UnitChoice:
    """The choice of a mapping. Raises ValueError."""
    wanted = f"expected {FORM}, got {value!r}"
    given = dict(value)
    numbers, scores = given.pop("numbers", None), given.pop("scores", None)
    if isinstance(numbers, str) and scores is None and not given:
        return UnitChoice(numbers)
    if not isinstance(scores, str) or numbers is not None or len(given) != 1:
        raise ValueError(wanted)
    ((rule, amount),) = given.items()
    found: Rule | None = next((known for known in RULES if known == rule), None)
    counts = found in _COUNTED
    if found is None or isinstance(amount, bool) or not isinstance(amount, int | float | str):
        raise ValueError(wanted)
    if (isinstance(amount, float) and not 0 < amount < 1) if counts else isinstance(amount, str):
        raise ValueError(wanted)
    if counts and isinstance(amount, int) and amount < 1:
        raise ValueError(wanted)
    return UnitChoice(scores, found, amount)


def _check_scores(avals: Avals, params: Mapping[str, object]) -> None:
    (x,) = avals
    if len(x.shape) != 1 or not x.size or not x.dtype.is_float:
        raise Refusal("choice-scores", f"scores are a vector of floats, one for each unit, got {x}",
                      hint="Reduce them: `reduce: {from: ..., to: ..., mode: norm, dim: 1}`.")  # fmt: skip


@kernel(
    check=_check_scores,
    result=lambda avals, params: (Aval(avals[0].shape, INT64),),
    host=lambda avals, params: True,
    guarded=True,
    refusal="a score is NaN or infinite, so that no order is known",
)
def ranked_units(x: Inexact[Array, " n"], *, largest: bool) -> tuple[Array, Flag]:
    """The numbers of units, those with the smallest (or largest) scores first; of equal ones the first."""
    xp = np if on_host(x) else jnp
    scores = -x if largest else x
    if on_host(x):
        order = np.argsort(scores, kind="stable").astype(np.int64)
    else:
        order = keep_subnormal(lambda scores: jnp.argsort(scores, stable=True), np.int64, scores)
    return order, xp.isfinite(x).all()


@kernel(
    check=_check_scores,
    result=lambda avals, params: (Aval((), INT64),),
    host=lambda avals, params: True,
)
def units_beyond(x: Inexact[Array, " n"], *, bound: float, above: bool) -> Array:
    """How many scores are above (or below) a bound, which is none of either."""

    def count(x: Array) -> Array:
        xp = np if on_host(x) else jnp
        limit = xp.asarray(bound, dtype=np.float64)
        wide = x.astype(np.float64)
        return xp.asarray(xp.sum(wide > limit if above else wide < limit, dtype=np.int64))

    return count(x) if on_host(x) else keep_subnormal(count, np.int64, x)


def choose(view: View, chosen: UnitChoice, key: str, *, drops: bool = False) -> tuple[int, ...]:
    """The numbers of a choice: scored ones ascending, others as they come. Raises Refusal.

    `drops`: what is chosen goes, so that none is taken while it is not known how many they are.
    """
    values = _tensor(view, chosen.tensor, key)
    if len(values.aval.shape) != 1:
        raise Refusal("choice-scores", f"'{chosen.tensor}' is {values.aval}, no vector", key=key,
                      hint="Name a vector with one entry for each unit, or a list of numbers.")  # fmt: skip
    return _choose(view, chosen, values, key, drops=drops)


def choose_by_layer(view: View, chosen: UnitChoice, key: str) -> Mapping[int | None, tuple[int, ...]]:
    """The numbers of a choice that go: for all layers (None), or by layer if its tensor is [layers, ...].

    Raises Refusal.
    """
    values = _tensor(view, chosen.tensor, key)
    if len(values.aval.shape) != 2:
        return {None: choose(view, chosen, key, drops=True)}
    rows = [view.apply(entry, values, axis=0, at=at) for at in range(values.aval.shape[0])]
    return {at: _choose(view, chosen, row, key, drops=True) for at, row in enumerate(rows)}


def _tensor(view: View, name: str, key: str) -> TensorExpr:
    try:
        return view.one(parse_ref(name, view.default_alias), key).expr
    except Refusal as bad:
        bad.key = bad.key or key
        raise


def _choose(view: View, chosen: UnitChoice, values: TensorExpr, key: str, *, drops: bool) -> tuple[int, ...]:
    (units,) = values.aval.shape
    if chosen.rule is None:
        if not values.aval.dtype.is_integer:
            raise Refusal("choice-scores", f"'{chosen.tensor}' is {values.aval}, no list of whole numbers", key=key,
                          hint="Write `{scores: TENSOR, smallest: 4}` for a choice by scores.")  # fmt: skip
        return _entries(view, values, units, key)
    count = _count(view, chosen, values, key, 0 if drops else units)
    if not count and not isinstance(chosen.amount, str) and chosen.rule in _COUNTED:
        raise Refusal("choice-scores", f"{chosen.amount} of {units} units are none", key=key,
                      hint=f"Choose 1 to {units}, or a larger share.")  # fmt: skip
    if count > units:
        raise Refusal("choice-scores", f"{count} of {units} units cannot be chosen", key=key,
                      hint=f"Choose at most {units}.")  # fmt: skip
    largest = chosen.rule in ("largest", "above")
    order = view.apply(ranked_units, values, largest=largest)
    return tuple(sorted(_entries(view, order, count, key)))


def _count(view: View, chosen: UnitChoice, values: TensorExpr, key: str, unknown: int) -> int:
    """How many units are chosen; `unknown` as long as only data tell."""
    (units,) = values.aval.shape
    if isinstance(chosen.amount, str):
        scalar = _tensor(view, chosen.amount, key)
        if scalar.aval.size != 1 or not scalar.aval.dtype.is_integer:
            raise Refusal("choice-scores", f"'{chosen.amount}' is {scalar.aval}, no whole number", key=key,
                          hint="Name a tensor with one whole number, or write the number.")  # fmt: skip
        return view.number(scalar, unknown)
    if chosen.rule in ("below", "above"):
        found = view.apply(units_beyond, values, bound=float(chosen.amount), above=chosen.rule == "above")
        return view.number(found, unknown)
    return chosen.amount if isinstance(chosen.amount, int) else int(chosen.amount * units)


def _entries(view: View, numbers: TensorExpr, count: int, key: str) -> tuple[int, ...]:
    """The first entries of a vector; their places while they are not known."""
    if count > MOST:
        raise Refusal("choice-scores", f"{count:,} units are more than a step chooses one by one, {MOST:,}", key=key,
                      hint="Keep them with a step `keep_largest_`, for each tensor that has them.")  # fmt: skip
    asked: Sequence[int] = [view.number(view.apply(entry, numbers, axis=0, at=at), at) for at in range(count)]
    return tuple(int(number) for number in asked)
