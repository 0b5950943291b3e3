"""The arguments of the ops in a rule, read from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.layout.expressions import SizeExpression, parse_expression
from brainsurgery_jax.layout.families import LIST


class JoinArgs(NamedTuple):
    """The axis to join or cut along, the index to do it over (`LIST`: the list of names), and the sizes of the
    parts."""

    axis: int
    over: str
    sizes: tuple[SizeExpression, ...] = ()


class SizeArgs(NamedTuple):
    """An axis and its new length."""

    axis: int
    to: SizeExpression


def wrong(what: str, found: object) -> Refusal:
    """The refusal of an argument of the wrong kind."""
    return Refusal("layout-op", f"expected {what}, got {found!r}")


def read_integer(value: object) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong("a whole number", value)
    return value


def read_formula(value: object) -> SizeExpression:
    """A number or a text as a formula."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong("a formula", value)
    return parse_expression(str(value))


def read_formulas(value: object) -> tuple[SizeExpression, ...]:
    """A list of formulas: a shape."""
    if not isinstance(value, list):
        raise wrong("a list of sizes", value)
    return tuple(map(read_formula, value))


def read_nothing(value: object) -> None:
    """Nothing: the op takes no argument."""
    if value is not None:
        raise wrong("no argument", value)


def read_order(value: object) -> tuple[int, ...]:
    """An order of axes."""
    if not isinstance(value, list):
        raise wrong("a list of axes", value)
    return tuple(map(read_integer, value))


def _keys(value: object, required: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise wrong(f"a mapping with {' and '.join(required)}", value)
    known = (*required, *optional)
    for key in value:
        if key not in known:
            raise Refusal(
                "layout-op", f"unknown key '{key}'.{did_you_mean(key, known)}", hint=f"Keys: {', '.join(known)}."
            )
    for key in required:
        if key not in value:
            raise Refusal("layout-op", f"missing key '{key}'")
    return value


def read_join(value: object) -> JoinArgs:
    """The index to join over, and the axis to join along."""
    keys = _keys(value, ("axis",), ("over",))
    return JoinArgs(read_integer(keys["axis"]), str(keys.get("over", LIST)))


def read_split(value: object) -> JoinArgs:
    """The index to cut for, the axis to cut along, and the sizes of the parts."""
    keys = _keys(value, ("axis",), ("over", "sizes"))
    sizes = read_formulas(keys["sizes"]) if "sizes" in keys else ()
    return JoinArgs(read_integer(keys["axis"]), str(keys.get("over", LIST)), sizes)


def read_resize(value: object) -> SizeArgs:
    """An axis, and its new length."""
    keys = _keys(value, ("axis", "to"))
    return SizeArgs(read_integer(keys["axis"]), read_formula(keys["to"]))
