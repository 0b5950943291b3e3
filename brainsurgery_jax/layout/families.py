"""The tensors that a rule works on at once, and what an op is bound with and yields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.layout.actions import Action, Members, Shape, Shapes, Step, check_axis
from brainsurgery_jax.layout.expressions import Value

Names = Mapping[str, Value]

LIST = "the list"
"""The label of the axis along which the names of a list lie."""


class Axis(NamedTuple):
    """An axis of a family: the index that runs along it, and how far."""

    label: str
    size: int


@dataclass(frozen=True, slots=True)
class Family:
    """The tensors that a rule works on at once: their shapes, in row-major order of the axes."""

    axes: tuple[Axis, ...]
    shapes: tuple[Shape, ...]

    def groups(self, label: str) -> tuple[tuple[int, ...], ...]:
        """The members that differ in one index alone, for every choice of the others."""
        at = self._place(label)
        places = list(product(*(range(a.size) for a in self.axes)))
        found: dict[tuple[int, ...], list[int]] = {}
        for number, place in enumerate(places):
            found.setdefault((*place[:at], *place[at + 1 :]), []).append(number)
        return tuple(map(tuple, found.values()))

    def without(self, label: str) -> tuple[Axis, ...]:
        """The axes but one."""
        at = self._place(label)
        return (*self.axes[:at], *self.axes[at + 1 :])

    def _place(self, label: str) -> int:
        labels = [a.label for a in self.axes]
        if label not in labels:
            there = ", ".join(labels) or "none: each tensor stands alone"
            raise Refusal(
                "layout-family", f"there is nothing to join over {label}", hint=f"Left to join over: {there}."
            )
        return labels.index(label)


class Bind(NamedTuple):
    """What an op is bound with: the family before it, the sizes, and how many tensors lie along an axis to be made."""

    family: Family
    names: Names
    sizes: Mapping[str, int]


class Bound(NamedTuple):
    """An op at known sizes, and the family after it."""

    action: Action
    family: Family


def members(family: Family, steps: Sequence[Sequence[Step]]) -> Bound:
    """Each member by its own steps."""
    action = Members(tuple(map(tuple, steps)))
    return Bound(action, Family(family.axes, tuple(action.forward(family.shapes, Shapes()))))


def axis_of(axis: int, shape: Shape) -> int:
    """An axis that may be counted from the end. Raises Refusal for one that is not there."""
    at = axis + len(shape) if axis < 0 else axis
    check_axis(at, len(shape), shape)
    return at
