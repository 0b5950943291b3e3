"""What differs between two sets of tensors, in order of how much, and summed up by layer or by module.

The layer of a tensor is the first number among the parts of its name (`h.3.mlp.w`: 3). Its module is the name with an
asterisk for every number (`h.*.mlp.w`), so that layers, and experts within them, come together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite, sqrt
from typing import Literal, NamedTuple, Protocol, TypeVar

from brainsurgery_jax.numerics.figures import Figures, Sums
from brainsurgery_jax.wording import counted

Order = Literal["name", "change", "cosine", "rank"]
"""By name; or first the largest relative change, the smallest cosine, the largest effective rank of the difference."""

Grouping = Literal["layer", "module"]


class Changed(Protocol):
    """A tensor that differs: its name; in figures how, if it was measured; the effective rank of the difference."""

    @property
    def name(self) -> str: ...
    @property
    def figures(self) -> Figures | None: ...
    @property
    def effective_rank(self) -> float | None: ...


_DIGITS = re.compile(r"(\d+)")
OneOf = TypeVar("OneOf", bound=Changed)


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted, numbers in them by their value: layer 2 before layer 10."""
    return sorted(names, key=lambda name: [(int(p), "") if p.isdecimal() else (-1, p) for p in _DIGITS.split(name)])


def layer_of(name: str) -> int | None:
    """The first number among the parts of a name; None for a name without one."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def module_of(name: str) -> str:
    """The name with an asterisk for every number among its parts."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


class RollUp(NamedTuple):
    """Tensors of other values that belong together. `key`: the number of a layer, or a module; None for names without
    a layer. `figures`: those of all elements together, of which `largest` and `sums` mean something. `rank`: the
    largest effective rank of a difference."""

    key: str | None
    tensors: int
    figures: Figures
    rank: float | None


def roll_up(found: Iterable[Changed], by: Grouping) -> tuple[RollUp, ...]:
    """What differs in value, by layer in order of number, or by module in order of first mention."""
    groups: dict[str | int | None, list[Changed]] = {}
    for one in found:
        if one.figures is not None:
            groups.setdefault(layer_of(one.name) if by == "layer" else module_of(one.name), []).append(one)
    keys: Iterable[str | int | None] = groups
    if by == "layer":
        keys = sorted(groups, key=lambda key: key if isinstance(key, int) else inf)
    return tuple(_join(None if key is None else str(key), groups[key]) for key in keys)


def relative_change(found: Iterable[Changed]) -> dict[tuple[str, int | None], float]:
    """The relative change of what differs in value, by module and layer."""
    cells: dict[tuple[str, int | None], list[Changed]] = {}
    for one in found:
        if one.figures is not None:
            cells.setdefault((module_of(one.name), layer_of(one.name)), []).append(one)
    joined = {key: _join(None, ones).figures.relative for key, ones in cells.items()}
    return {key: value for key, value in joined.items() if value is not None}


def _join(key: str | None, ones: Sequence[Changed]) -> RollUp:
    figures = [one.figures for one in ones if one.figures is not None]
    sums = Sums(*(sum(column) for column in zip(*(f.sums for f in figures), strict=True)))
    whole = Figures(
        sum(f.size for f in figures),
        sum(f.differing for f in figures),
        largest=max(f.largest for f in figures),
        nans=(sum(f.nans[0] for f in figures), sum(f.nans[1] for f in figures)),
        sums=sums,
    )
    ranks = [one.effective_rank for one in ones if one.effective_rank is not None]
    return RollUp(key, len(ones), whole, max(ranks, default=None))


def describe_roll_up(one: RollUp) -> tuple[str, ...]:
    """A row of what sums up, in words."""
    figures, key = one.figures, "no layer" if one.key is None else one.key
    ratios = (("relative", figures.relative, 4), ("cosine", figures.cosine, 6))
    told = ", ".join(f"{name} {value:.{digits}g}" for name, value, digits in ratios if value is not None)
    share = f"{figures.differing:,} of {figures.size:,} differ"
    return key, counted(one.tensors, "tensor"), share, f"largest {figures.largest:.4g}", told, describe_rank(one.rank)


def describe_rank(rank: float | None) -> str:
    """The effective rank of a difference in words; nothing where it was not measured."""
    return "" if rank is None else f"effective rank {rank:.1f}"


def describe_order(order: Order) -> str:
    """What a title adds about an order; nothing for that of names."""
    return {
        "name": "", "change": ", most changed first", "cosine": ", least aligned first", "rank": ", highest rank first"
    }[order]  # fmt: skip


def sort_differences(found: Iterable[OneOf], order: Order) -> tuple[OneOf, ...]:
    """What differs in an order; what has no such figure comes last, what is not finite in it first."""
    if order == "name":
        return tuple(found)
    return tuple(sorted(found, key=_KEYS[order]))


def _key_of_change(one: Changed) -> float:
    figures = one.figures
    if figures is None or not figures.sums.difference:
        return 0.0 if figures is not None and figures.differing else inf
    if figures.relative is not None:
        return -figures.relative
    return -inf if figures.differing else -sqrt(figures.sums.difference)


def _key_of_cosine(one: Changed) -> float:
    cosine = None if one.figures is None else one.figures.cosine
    return inf if cosine is None else cosine


def _key_of_rank(one: Changed) -> float:
    rank = one.effective_rank
    return inf if rank is None else -rank if isfinite(rank) else -inf


_KEYS: dict[Order, Callable[[Changed], float]] = {
    "change": _key_of_change,
    "cosine": _key_of_cosine,
    "rank": _key_of_rank,
}
