"""What the ops of a rule do to one of the two factors of a weight, worked out on the weight's axes.

A weight `W` with axes [in..., out...] in any order is `A B`, with `A` [in..., rank] and `B` [rank, out...]: each factor
has the axes of its side in the order in which the weight has them. So an op that keeps the sides apart does to a factor
what it does to the axes of its side; a number that scales the weight scales `B` alone; weights that are stacked have
stacked factors. Anything else has no form as factors and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.layout.actions import Action, Chain, Permuted, Reshaped, Shape, Shared, Step
from brainsurgery_jax.layout.arguments import JoinArgs
from brainsurgery_jax.layout.bind import Correspondence
from brainsurgery_jax.layout.families import LIST, Bind, Bound, Family, Names, axis_of, members
from brainsurgery_jax.layout.model import OpUse
from brainsurgery_jax.layout.ops import OPS

Side = Literal["in", "out"]


class WeightAxis(NamedTuple):
    """An axis of the weight: its side, and its length."""

    side: Side
    size: int


class Factor:
    """A factor of one side on its way through the ops of its weight's rule.

    `family` are the factors as they are by now, `axes` those of one weight. Once weights are stacked, its axes are left
    alone.
    """

    def __init__(self, pair: Correspondence, side: Side, rank: int, *, conv: bool) -> None:
        out, in_ = reversed(pair.hf_shapes[0]) if conv else pair.hf_shapes[0]
        self.side, self.rank = side, rank
        # Factors are those of a Linear, [rank, in] and [out, rank], also where the weight is that of a Conv1D.
        self.start: Shape = (rank, in_) if side == "in" else (out, rank)
        self.axes = [WeightAxis("out", out), WeightAxis("in", in_)]
        if conv:
            self.axes.reverse()
        self.family = Family(pair.axes, (self.start,) * len(pair.hf))
        self.actions: list[Action] = []
        self.stacked = False
        self.alike([Permuted((1, 0))])

    def take(self, use: OpUse, dims: Names) -> None:
        """One op of the rule. Raises Refusal where it does not carry over to factors."""
        match use.name:
            case "is":
                return
            case "multiply" | "divide":
                if self.side == "out":
                    self.add(OPS[use.name].bind(use.args, Bind(self.family, dims, {})))
            case "stack" if use.args.over != LIST:
                self.stack(use.args, dims)
            case _ if self.stacked:
                raise _unfit(use, "comes after a stack")
            case "transpose" | "permute":
                self.permute(use)
            case "reshape":
                self.reshape(tuple(s.integer(dims) for s in use.args), use)
            case "interleave":
                self.along(use, axis_of(use.args, self.sizes), use.args, dims)
            case "pad" | "cut":
                self.resize(use, dims)
            case "stack" | "concat" if use.args.over == LIST:
                self.join(use, dims)
            case _:
                raise _unfit(use, "has no form as factors")

    @property
    def sizes(self) -> Shape:
        """The shape of the weight."""
        return tuple(a.size for a in self.axes)

    @property
    def own(self) -> list[int]:
        """The axes of the weight that the factor has, in order."""
        return [at for at, axis in enumerate(self.axes) if axis.side == self.side]

    def place(self, axis: int) -> int:
        """Where in the factor an axis of the weight is that it has."""
        return self.own.index(axis) + (self.side == "out")

    def add(self, bound: Bound) -> None:
        """An action on all factors."""
        self.actions.append(bound.action)
        self.family = bound.family

    def alike(self, steps: Sequence[Step]) -> None:
        """The same steps on each of the factors."""
        self.add(members(self.family, [steps] * len(self.family.shapes)))

    def shaped(self, sizes: Shape) -> Shape:
        """The shape of a factor with these axes of its side."""
        return (*sizes, self.rank) if self.side == "in" else (self.rank, *sizes)

    def permute(self, use: OpUse) -> None:
        rank = len(self.axes)
        order = (*range(rank - 2), rank - 1, rank - 2) if use.name == "transpose" else use.args
        moved = [self.place(at) for at in order if self.axes[at].side == self.side]
        self.axes = [self.axes[at] for at in order]
        if moved != sorted(moved):
            self.alike([Permuted((*moved, len(moved)) if self.side == "in" else (0, *moved))])

    def reshape(self, sizes: Shape, use: OpUse) -> None:
        """As the weight is: each of its new axes must come from one side."""
        made: list[WeightAxis] = []
        for old, new in _blocks(self.sizes, sizes):
            sides: set[Side] = {self.axes[at].side for at in old if self.axes[at].size > 1}
            if len(sides) > 1:
                raise _unfit(use, "mixes the axes of inputs and outputs")
            side: Side = sides.pop() if sides else self.axes[old[0]].side if old else "out"
            made += [WeightAxis(side, sizes[at]) for at in new]
        before, self.axes = self.family.shapes[0], made
        after = self.shaped(tuple(made[at].size for at in self.own))
        if before != after:
            self.alike([Reshaped(before, after)])

    def along(self, use: OpUse, axis: int, args: int | tuple[object, ...], dims: Names) -> None:
        """An op along one axis of the weight, if this factor has that axis."""
        if self.axes[axis].side == self.side:
            own = args._replace(axis=self.place(axis)) if isinstance(args, tuple) else self.place(axis)  # type: ignore[attr-defined]
            self.add(OPS[use.name].bind(own, Bind(self.family, dims, {})))

    def resize(self, use: OpUse, dims: Names) -> None:
        axis = axis_of(use.args.axis, self.sizes)
        self.along(use, axis, use.args, dims)
        self.axes[axis] = self.axes[axis]._replace(size=use.args.to.integer(dims))

    def stack(self, args: JoinArgs, dims: Names) -> None:
        """Stacked at the place where the weights are, or behind all axes where a factor has fewer."""
        self.stacked = True
        if len(set(self.family.shapes)) > 1:
            raise Refusal("layout-adapter", "factors of different ranks cannot be stacked")
        rank = len(self.family.shapes[0])
        axis = args.axis if args.axis < 0 else min(args.axis, rank)
        self.add(OPS["stack"].bind(JoinArgs(axis, args.over), Bind(self.family, dims, {})))

    def join(self, use: OpUse, dims: Names) -> None:
        """Weights of a list made one: along an output they have `A` in common, along an input `B`."""
        count, args = len(self.family.groups(LIST)[0]), use.args
        if use.name == "stack":
            axis = args.axis + len(self.axes) + 1 if args.axis < 0 else args.axis
            self.axes.insert(axis, WeightAxis("out", count))
        else:
            axis = axis_of(args.axis, self.sizes)
            self.axes[axis] = self.axes[axis]._replace(size=self.axes[axis].size * count)
        if self.axes[axis].side == self.side:
            self.add(OPS[use.name].bind(JoinArgs(self.place(axis), LIST), Bind(self.family, dims, {})))
        else:
            groups = self.family.groups(LIST)
            shapes = tuple(self.family.shapes[group[0]] for group in groups)
            self.add(Bound(Shared(groups), Family(self.family.without(LIST), shapes)))

    def flatten(self) -> None:
        """One axis for all of the side."""
        before = self.family.shapes[0]
        after = self.shaped((prod(self.axes[at].size for at in self.own),))
        if before != after:
            self.alike([Reshaped(before, after)])


def factored(pair: Correspondence, side: Side, rank: int, dims: Names, *, flat: bool) -> tuple[Factor, Chain]:
    """A factor taken through the ops of its weight's rule, and the chain that leads there and back. Raises Refusal.

    With `flat`, a library keeps its factors with one axis for all inputs or outputs, however many the weight has.
    """
    uses = pair.rule.ops
    conv = pair.target[0].endswith("kernel") and not any(use.name == "transpose" for use in uses)
    factor = Factor(pair, side, rank, conv=conv)
    for use in uses:
        if flat and not factor.stacked and use.name == "stack" and use.args.over != LIST:
            factor.flatten()
        factor.take(use, dims)
    if flat and not factor.stacked:
        factor.flatten()
    return factor, Chain(tuple(factor.actions))


def _unfit(use: OpUse, why: str) -> Refusal:
    return Refusal("layout-adapter", f"`{use.name}` {why}")


def _blocks(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of axes, before and after a reshape, that hold the same elements."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        old, new, a, b = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                old.append(i)
                a, i = a * before[i], i + 1
            else:
                new.append(j)
                b, j = b * after[j], j + 1
        found.append((old, new))
    if i < len(before) or j < len(after):  # axes of one element at the end
        found.append((list(range(i, len(before))), list(range(j, len(after)))))
    return found
