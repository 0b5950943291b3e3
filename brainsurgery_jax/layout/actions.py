"""The ops of a rule once every size is known: each one runs forward and in reverse, on any representation of arrays.

A rule works on a *family* of tensors: one for each name in a list and for each index that only one side has. Most ops
treat every member alike; a join removes one of the family's axes, a cut adds one. Actions are invertible and work on
families; `moves` is the engine's index arithmetic on single tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol, TypeVar

from brainsurgery_jax.errors import Refusal

Shape = tuple[int, ...]
T = TypeVar("T")


class Arrays(Protocol[T]):
    """The operations on tensors that actions use."""

    def permute(self, x: T, order: tuple[int, ...]) -> T: ...
    def reshape(self, x: T, shape: Shape) -> T: ...
    def join(self, xs: Sequence[T], axis: int) -> T: ...
    def cut(self, x: T, axis: int, start: int, stop: int) -> T: ...
    def extend(self, x: T, axis: int, size: int) -> T: ...
    def multiply(self, x: T, by: float) -> T: ...
    def add(self, x: T, number: float) -> T: ...


class Shapes:
    """The actions on shapes instead of tensors: the type check of a rule. Raises Refusal for shapes that do not fit."""

    def permute(self, x: Shape, order: tuple[int, ...]) -> Shape:
        if sorted(order) != list(range(len(x))):
            raise Refusal("layout-shape", f"{list(order)} is not an order of the {len(x)} axes of {list(x)}")
        return tuple(x[a] for a in order)

    def reshape(self, x: Shape, shape: Shape) -> Shape:
        if prod(x) != prod(shape):
            found = f"{list(x)} has {prod(x)} elements, but {list(shape)} has {prod(shape)}"
            raise Refusal("layout-shape", found)
        return shape

    def join(self, xs: Sequence[Shape], axis: int) -> Shape:
        for x in xs:
            check_axis(axis, len(x), x)
            if (x[:axis], x[axis + 1 :]) != (xs[0][:axis], xs[0][axis + 1 :]):
                raise Refusal("layout-shape", f"{list(xs[0])} and {list(x)} cannot be joined along axis {axis}")
        return (*xs[0][:axis], sum(x[axis] for x in xs), *xs[0][axis + 1 :])

    def cut(self, x: Shape, axis: int, start: int, stop: int) -> Shape:
        check_axis(axis, len(x), x)
        if stop > x[axis]:
            raise Refusal("layout-shape", f"axis {axis} of {list(x)} is shorter than {stop}")
        return (*x[:axis], stop - start, *x[axis + 1 :])

    def extend(self, x: Shape, axis: int, size: int) -> Shape:
        check_axis(axis, len(x), x)
        if size < x[axis]:
            raise Refusal("layout-shape", f"axis {axis} of {list(x)} cannot be padded to {size}: it is longer")
        return (*x[:axis], size, *x[axis + 1 :])

    def multiply(self, x: Shape, by: float) -> Shape:
        return x

    def add(self, x: Shape, number: float) -> Shape:
        return x


def check_axis(axis: int, rank: int, shape: Shape) -> None:
    """Refuse an axis that a shape does not have."""
    if not 0 <= axis < rank:
        raise Refusal("layout-shape", f"there is no axis {axis} in {list(shape)}")


class Action(Protocol):
    """An op at known sizes: it maps the members of a family to those of the next one, and back."""

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]: ...
    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]: ...


class MemberAction(Protocol):
    """An action on one member."""

    def forward(self, x: T, on: Arrays[T]) -> T: ...
    def inverse(self, x: T, on: Arrays[T]) -> T: ...


class Permuted(NamedTuple):
    """Axis `i` of the result is axis `order[i]` of the source."""

    order: tuple[int, ...]

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.permute(x, self.order)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.permute(x, tuple(sorted(range(len(self.order)), key=self.order.__getitem__)))


class Reshaped(NamedTuple):
    """The same elements in another shape."""

    before: Shape
    after: Shape

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.reshape(x, self.after)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.reshape(x, self.before)


class Multiplied(NamedTuple):
    """A product, computed in float32 and rounded once; the inverse multiplies by `back`."""

    by: float
    back: float

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.multiply(x, self.by)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.multiply(x, self.back)


class Added(NamedTuple):
    """A number added, computed in float32 and rounded once."""

    number: float

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.add(x, self.number)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.add(x, -self.number)


class Extended(NamedTuple):
    """Zeros appended to an axis."""

    axis: int
    before: int
    after: int

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.extend(x, self.axis, self.after)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.cut(x, self.axis, 0, self.before)


class Shortened(NamedTuple):
    """The start of an axis. The inverse fills the rest with zeros."""

    axis: int
    before: int
    after: int

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.cut(x, self.axis, 0, self.after)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.extend(x, self.axis, self.before)


@dataclass(frozen=True, slots=True)
class Members:
    """For each member of a family, its actions, one after the other."""

    steps: tuple[tuple[MemberAction, ...], ...]

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        made = []
        for x, steps in zip(xs, self.steps, strict=True):
            for step in steps:
                x = step.forward(x, on)
            made.append(x)
        return made

    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        made = []
        for x, steps in zip(xs, self.steps, strict=True):
            for step in reversed(steps):
                x = step.inverse(x, on)
            made.append(x)
        return made


@dataclass(frozen=True, slots=True)
class Joined:
    """Members joined along an axis: each group becomes one tensor, in its order. `sizes`: their lengths on that
    axis."""

    groups: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    axis: int

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        return [on.join([xs[at] for at in group], self.axis) for group in self.groups]

    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        parts: dict[int, T] = {}
        for x, group, sizes in zip(xs, self.groups, self.sizes, strict=True):
            start = 0
            for at, size in zip(group, sizes, strict=True):
                parts[at] = on.cut(x, self.axis, start, start + size)
                start += size
        return [parts[at] for at in range(len(parts))]


@dataclass(frozen=True, slots=True)
class Shared:
    """Members that are equal within each group: forward keeps one of them, the inverse repeats it."""

    groups: tuple[tuple[int, ...], ...]

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        return [xs[group[0]] for group in self.groups]

    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        whole = {at: x for x, group in zip(xs, self.groups, strict=True) for at in group}
        return [whole[at] for at in range(len(whole))]


@dataclass(frozen=True, slots=True)
class Flipped:
    """An action with its directions swapped."""

    action: Action

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        return self.action.inverse(xs, on)

    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        return self.action.forward(xs, on)


@dataclass(frozen=True, slots=True)
class Chain:
    """Actions one after the other."""

    actions: tuple[Action, ...]

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        for action in self.actions:
            xs = action.forward(xs, on)
        return list(xs)

    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        for action in reversed(self.actions):
            xs = action.inverse(xs, on)
        return list(xs)
