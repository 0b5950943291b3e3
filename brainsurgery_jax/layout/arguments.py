"""What may stand behind an op in a rule, read as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.layout.expressions import Expression, parse_expression
from brainsurgery_jax.layout.families import LIST


class JoinArgs(NamedTuple):
    """Along which axis, over which index (the list of names without one), and in which sizes."""

    axis: int
    over: str
    sizes: tuple[Expression, ...] = ()


class SizeArgs(NamedTuple):
    """An axis and its new length."""

    axis: int
    to: Expression


def wrong(what: str, found: Any) -> Refusal:
    """The refusal of an argument of another kind."""
    return Refusal("layout-op", f"expected {what}, got {found!r}")


def read_integer(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong("a whole number", value)
    return value


def read_formula(value: Any) -> Expression:
    """A number or a text as a formula."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong("a formula", value)
    return parse_expression(str(value))


def read_formulas(value: Any) -> tuple[Expression, ...]:
    """A list of formulas, as a shape is written."""
    if not isinstance(value, list):
        raise wrong("a list of sizes", value)
    return tuple(map(read_formula, value))


def read_nothing(value: Any) -> None:
    """Nothing: the op takes no argument."""
    if value is not None:
        raise wrong("no argument", value)


def read_order(value: Any) -> tuple[int, ...]:
    """An order of axes."""
    if not isinstance(value, list):
        raise wrong("a list of axes", value)
    return tuple(map(read_integer, value))


def _keys(value: Any, required: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
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


def read_join(value: Any) -> JoinArgs:
    """What to join over, and along which axis."""
    keys = _keys(value, ("axis",), ("over",))
    return JoinArgs(read_integer(keys["axis"]), str(keys.get("over", LIST)))


def read_split(value: Any) -> JoinArgs:
    """What to cut for, along which axis, and in which sizes."""
    keys = _keys(value, ("axis",), ("over", "sizes"))
    sizes = read_formulas(keys["sizes"]) if "sizes" in keys else ()
    return JoinArgs(read_integer(keys["axis"]), str(keys.get("over", LIST)), sizes)


def read_resize(value: Any) -> SizeArgs:
    """An axis, and how long it becomes."""
    keys = _keys(value, ("axis", "to"))
    return SizeArgs(read_integer(keys["axis"]), read_formula(keys["to"]))
