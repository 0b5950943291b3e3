"""What the ops of a rule do once every size is known: each goes forward and back, on whatever stands for arrays.

A rule works on a *family* of tensors: one for each name in a list, for each index that only one side has. Most ops
treat every member alike; joining takes one of the family's axes away, cutting adds one.
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
    """What the actions need to be able to do with a tensor."""

    def permute(self, x: T, order: tuple[int, ...]) -> T: ...
    def reshape(self, x: T, shape: Shape) -> T: ...
    def join(self, xs: Sequence[T], axis: int) -> T: ...
    def cut(self, x: T, axis: int, start: int, stop: int) -> T: ...
    def extend(self, x: T, axis: int, size: int) -> T: ...
    def multiply(self, x: T, by: float) -> T: ...
    def add(self, x: T, number: float) -> T: ...


class Shapes:
    """Shapes in the place of tensors. Raises Refusal where they do not fit: the type check of a rule."""

    def permute(self, x: Shape, order: tuple[int, ...]) -> Shape:
        if sorted(order) != list(range(len(x))):
            raise Refusal("layout-shape", f"{list(order)} is not an order of the {len(x)} axes of {list(x)}")
        return tuple(x[a] for a in order)

    def reshape(self, x: Shape, shape: Shape) -> Shape:
        if prod(x) != prod(shape):
            found = f"{list(x)} holds {prod(x)} elements, and {list(shape)} takes {prod(shape)}"
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
            raise Refusal("layout-shape", f"axis {axis} of {list(x)} does not reach to {stop}")
        return (*x[:axis], stop - start, *x[axis + 1 :])

    def extend(self, x: Shape, axis: int, size: int) -> Shape:
        check_axis(axis, len(x), x)
        if size < x[axis]:
            raise Refusal("layout-shape", f"axis {axis} of {list(x)} cannot be padded to {size}, it is longer")
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
    """An op at known sizes: what it makes of a family's members, and of that the members again."""

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]: ...
    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]: ...


class Step(Protocol):
    """The same for one member."""

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
    """A product, in float32 and rounded once; back by the number that undoes it."""

    by: float
    back: float

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.multiply(x, self.by)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.multiply(x, self.back)


class Added(NamedTuple):
    """A sum with a number, in float32 and rounded once."""

    number: float

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.add(x, self.number)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.add(x, -self.number)


class Extended(NamedTuple):
    """Zeros behind the end of an axis."""

    axis: int
    before: int
    after: int

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.extend(x, self.axis, self.after)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.cut(x, self.axis, 0, self.before)


class Shortened(NamedTuple):
    """The start of an axis; what is cut off comes back as zeros."""

    axis: int
    before: int
    after: int

    def forward(self, x: T, on: Arrays[T]) -> T:
        return on.cut(x, self.axis, 0, self.after)

    def inverse(self, x: T, on: Arrays[T]) -> T:
        return on.extend(x, self.axis, self.before)


@dataclass(frozen=True, slots=True)
class Members:
    """Steps for each member of a family, one after the other."""

    steps: tuple[tuple[Step, ...], ...]

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
    """Members joined along an axis: those of each group, in its order, become one. `sizes` are theirs on that axis."""

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
    """Members that are one and the same in each group; back, every one of the group is that."""

    groups: tuple[tuple[int, ...], ...]

    def forward(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        return [xs[group[0]] for group in self.groups]

    def inverse(self, xs: Sequence[T], on: Arrays[T]) -> list[T]:
        whole = {at: x for x, group in zip(xs, self.groups, strict=True) for at in group}
        return [whole[at] for at in range(len(whole))]


@dataclass(frozen=True, slots=True)
class Flipped:
    """An action the other way round."""

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
