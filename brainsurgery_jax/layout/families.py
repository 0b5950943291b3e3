"""Families: the tensors that a rule works on together; and the input and output of binding an op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.layout.actions import Action, MemberAction, Members, Shape, Shapes, check_axis
from brainsurgery_jax.layout.expressions import Value

Names = Mapping[str, Value]

LIST = "the list"
"""The label of the axis that runs over the names of a list."""


class Axis(NamedTuple):
    """An axis of a family: the index that runs along it, and its size."""

    label: str
    size: int


@dataclass(frozen=True, slots=True)
class TensorFamily:
    """The tensors that a rule works on together: their shapes, in row-major order of the axes."""

    axes: tuple[Axis, ...]
    shapes: tuple[Shape, ...]

    def groups(self, label: str) -> tuple[tuple[int, ...], ...]:
        """The groups of members that differ in one index alone."""
        at = self._place(label)
        places = list(product(*(range(a.size) for a in self.axes)))
        found: dict[tuple[int, ...], list[int]] = {}
        for number, place in enumerate(places):
            found.setdefault((*place[:at], *place[at + 1 :]), []).append(number)
        return tuple(map(tuple, found.values()))

    def without(self, label: str) -> tuple[Axis, ...]:
        """The axes without one of them."""
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


class OpContext(NamedTuple):
    """The input of binding an op: the family before it, the dims, and the sizes of the axes that ops may create."""

    family: TensorFamily
    names: Names
    sizes: Mapping[str, int]


class BoundOp(NamedTuple):
    """An op at known sizes, and the family after it."""

    action: Action
    family: TensorFamily


def members(family: TensorFamily, steps: Sequence[Sequence[MemberAction]]) -> BoundOp:
    """Apply to each member its own actions."""
    action = Members(tuple(map(tuple, steps)))
    return BoundOp(action, TensorFamily(family.axes, tuple(action.forward(family.shapes, Shapes()))))


def axis_of(axis: int, shape: Shape) -> int:
    """An axis, counted from the start. Raises Refusal for one that does not exist."""
    at = axis + len(shape) if axis < 0 else axis
    check_axis(at, len(shape), shape)
    return at
