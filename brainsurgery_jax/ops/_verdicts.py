"""Shared by the operators of assert: verdicts on each match, on pairs, and on bounds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictInt

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup
from brainsurgery_jax.protocol import NO_MATCH, Every, Item, Known, TensorExpr, Verdict, View
from brainsurgery_jax.select import Ref
from brainsurgery_jax.wording import few

Unmatched = Annotated[
    Literal["error", "drop"] | None,
    Field(description="tensors on one side alone: error, or drop (leave them out); else those on the right are noted"),
]
Bound = Annotated[StrictInt, Field(ge=0)]
MOST_NAMES = 4
"""The most names that a message lists."""

TESTS: Mapping[str, Callable[[float, float], bool]] = {
    "is": operator.eq, "ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt,
}  # fmt: skip
WORDS = {"is": "exactly", "ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


@dataclass(frozen=True)
class BoundKeys(KeyGroup):
    """Bounds of a number of things."""

    is_: Bound | None = None
    ge: Bound | None = None
    gt: Bound | None = None
    le: Bound | None = None
    lt: Bound | None = None

    @property
    def bounds(self) -> dict[str, int | None]:
        """The bounds by their keys."""
        return {"is": self.is_, "ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}


def judge_types(here: TensorExpr, there: TensorExpr, name: str) -> Known | None:
    """The verdict on tensors of which no values can be subtracted, since their shapes differ or one is opaque; else
    None."""
    if here.aval.shape != there.aval.shape or here.aval.dtype.is_opaque or there.aval.dtype.is_opaque:
        return Known(False, f"'{name}' is {here.aval} on the left and {there.aval} on the right")
    return None


def judge_bounds(label: str, found: float, bounds: Mapping[str, float | None]) -> Known:
    """The verdict on a number and its bounds, with the bound that it violates."""
    broken = [f"{WORDS[k]} {b}" for k, b in bounds.items() if b is not None and not TESTS[k](found, b)]
    return Known(not broken, f"{label} is {found}, expected {' and '.join(broken)}" if broken else "")


def check_bounds(bounds: Mapping[str, float | None], *, whole: bool = True) -> None:
    """Refuse bounds that no number satisfies (with `whole`, no integer)."""
    given = {k: b for k, b in bounds.items() if b is not None}
    if not given:
        raise Refusal("bounds-missing", "give at least one of is, ge, gt, le, lt",
                      hint="Write, for example, `is: 2`, or `ge: 1` and `le: 3`.")  # fmt: skip
    low = max([given[k] + (whole and k == "gt") for k in ("ge", "gt", "is") if k in given], default=0)
    high = min([given[k] - (whole and k == "lt") for k in ("le", "lt", "is") if k in given], default=low)
    if low > high:
        text = ", ".join(f"{k}: {b}" for k, b in given.items())
        raise Refusal("bounds-contradict", f"no number satisfies {text}", hint="Loosen one of them, or leave it out.")


def of_each(view: View, ref: Ref, judge: Callable[[Item], Verdict]) -> Verdict:
    """The verdict that `judge` holds for every match, and that there is a match."""
    items = view.select(ref, "of", required=False)
    return Every(tuple(judge(i) for i in items)) if items else absent(view, ref)


def absent(view: View, ref: Ref) -> Known:
    """The verdict on an empty set of tensors: it fails, whatever the condition."""
    bad = view.nothing(ref)
    return Known(False, bad.message, code=bad.code, hint=bad.hint)


def check_pairs(
    view: View,
    left: Ref,
    right: Ref,
    unmatched: Unmatched,
    compare: Callable[[TensorExpr, TensorExpr, str], Verdict],
    types: Callable[[str, str], Known] | None = None,
) -> Verdict:
    """That what `compare` asks holds of every match on the left and the tensor that `right` names for it, and `types`
    of their names; what becomes of those on one side alone says `unmatched`."""
    if not view.match(left, "left"):
        return absent(view, left)
    found = view.pair(left, {"right": right})
    alone = list(dict.fromkeys(other.name for other in found.others))
    if alone and unmatched == "error":
        return Known(False, f"{list_sorted(alone)} of '{right.alias}' is compared with nothing on the left")
    if alone and unmatched is None and left.alias != right.alias:
        hint = "Write `unmatched: drop` to accept this, `unmatched: error` to refuse it."
        view.note(
            "unmatched", f"{list_sorted(alone)} of '{right.alias}' is compared with nothing on the left", hint=hint
        )
    if unmatched == "drop" and not found.rows:
        return Known(False, f"no match of '{left}' has a partner", code=NO_MATCH)
    parts: list[Verdict] = []
    rows = found.rows if unmatched == "drop" else sorted([*found.rows, *found.alone])
    for name, (other,) in rows:
        if not view.has(right.alias, other):
            parts.append(Known(False, f"there is no '{other}' in '{right.alias}' to compare '{name}' with"))
            continue
        here = view.slice(view.fetch(left.alias, name), left, "left")
        there = view.slice(view.fetch(right.alias, other), right, "right")
        parts += [compare(here, there, name), *([] if types is None else [types(name, other)])]
    return Every(tuple(parts))


def list_sorted(names: Collection[str]) -> str:
    """The first names, sorted and quoted, and how many more there are."""
    return few([f"'{name}'" for name in sorted(names)], MOST_NAMES)
