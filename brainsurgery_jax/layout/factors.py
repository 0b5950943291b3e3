"""The ops of a rule applied to the two factors of a weight, derived from what they do to the weight's axes.

A weight `W` with axes [in..., out...] in any order is `A B`, with `A` [in..., rank] and `B` [rank, out...]: each factor
has the axes of its side, in the weight's order. So an op that keeps the sides apart acts on a factor as it acts on the
axes of its side; a number that scales the weight scales `B` alone; stacked weights have stacked factors. Any other op
cannot be expressed on factors and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.layout.actions import Action, Chain, MemberAction, Permuted, Reshaped, Shape, Shared
from brainsurgery_jax.layout.arguments import JoinArgs
from brainsurgery_jax.layout.bind import Correspondence
from brainsurgery_jax.layout.families import LIST, BoundOp, Names, OpContext, TensorFamily, axis_of, members
from brainsurgery_jax.layout.model import OpUse
from brainsurgery_jax.layout.ops import OPS

Side = Literal["in", "out"]


class WeightAxis(NamedTuple):
    """An axis of the weight: its side, and its length."""

    side: Side
    size: int


class Factor:
    """A factor of one side, mapped through the ops of its weight's rule.

    `family`: the factors so far. `axes`: those of one weight; they no longer change once weights are stacked.
    """

    def __init__(self, pair: Correspondence, side: Side, rank: int, *, conv: bool) -> None:
        out, in_ = reversed(pair.hf_shapes[0]) if conv else pair.hf_shapes[0]
        self.side, self.rank = side, rank
        # PEFT stores factors as those of a Linear, [rank, in] and [out, rank], for a Conv1D as well.
        self.start: Shape = (rank, in_) if side == "in" else (out, rank)
        self.axes = [WeightAxis("out", out), WeightAxis("in", in_)]
        if conv:
            self.axes.reverse()
        self.family = TensorFamily(pair.axes, (self.start,) * len(pair.hf))
        self.actions: list[Action] = []
        self.stacked = False
        self.alike([Permuted((1, 0))])

    def take(self, use: OpUse, dims: Names, *, flat: bool) -> None:
        """Apply one op of the rule. Raises Refusal if factors cannot express it. `flat`: see `convert_factor`."""
        match use.name:
            case "is":
                return
            case "multiply" | "divide":
                if self.side == "out":
                    self.add(OPS[use.name].bind(use.args, OpContext(self.family, dims, {})))
            case "stack" if use.args.over != LIST:
                if flat and not self.stacked:
                    self.flatten()
                self.stack(use.args, dims)
            case _ if self.stacked:
                raise _unfit(use, "comes after a stack")
            case "transpose":
                rank = len(self.axes)
                self.permute((*range(rank - 2), rank - 1, rank - 2))
            case "permute":
                self.permute(use.args)
            case "reshape":
                self.reshape(tuple(s.integer(dims) for s in use.args), use)
            case "interleave":
                self.along(use, axis_of(use.args, self.sizes), use.args, dims)
            case "pad" | "cut":
                self.resize(use, dims)
            case "stack":
                self.join(use, self.new_axis(use.args.axis), dims)
            case "concat" if use.args.over == LIST:
                self.join(use, self.longer_axis(use.args.axis), dims)
            case _:
                raise _unfit(use, "cannot be expressed on factors")

    @property
    def sizes(self) -> Shape:
        """The shape of the weight."""
        return tuple(a.size for a in self.axes)

    @property
    def own(self) -> list[int]:
        """The axes of the weight that this factor has, in order."""
        return [at for at, axis in enumerate(self.axes) if axis.side == self.side]

    def place(self, axis: int) -> int:
        """The factor's axis for one of the weight's axes."""
        return self.own.index(axis) + (self.side == "out")

    def add(self, bound: BoundOp) -> None:
        """Append an action on all factors."""
        self.actions.append(bound.action)
        self.family = bound.family

    def alike(self, steps: Sequence[MemberAction]) -> None:
        """Append the same actions on each factor."""
        self.add(members(self.family, [steps] * len(self.family.shapes)))

    def shape_with(self, sizes: Shape) -> Shape:
        """The shape of a factor with these axes of its side."""
        return (*sizes, self.rank) if self.side == "in" else (self.rank, *sizes)

    def permute(self, order: Shape) -> None:
        moved = [self.place(at) for at in order if self.axes[at].side == self.side]
        self.axes = [self.axes[at] for at in order]
        if moved != sorted(moved):
            self.alike([Permuted((*moved, len(moved)) if self.side == "in" else (0, *moved))])

    def reshape(self, sizes: Shape, use: OpUse) -> None:
        """Reshape as the weight is reshaped. Each of its new axes must come from one side."""
        made: list[WeightAxis] = []
        for old, new in _blocks(self.sizes, sizes):
            sides: set[Side] = {self.axes[at].side for at in old if self.axes[at].size > 1}
            if len(sides) > 1:
                raise _unfit(use, "mixes the axes of inputs and outputs")
            side: Side = sides.pop() if sides else self.axes[old[0]].side if old else "out"
            made += [WeightAxis(side, sizes[at]) for at in new]
        before, self.axes = self.family.shapes[0], made
        after = self.shape_with(tuple(made[at].size for at in self.own))
        if before != after:
            self.alike([Reshaped(before, after)])

    def along(self, use: OpUse, axis: int, args: int | tuple[object, ...], dims: Names) -> None:
        """Apply an op along one axis of the weight, if this factor has that axis."""
        if self.axes[axis].side == self.side:
            own = args._replace(axis=self.place(axis)) if isinstance(args, tuple) else self.place(axis)  # type: ignore[attr-defined]
            self.add(OPS[use.name].bind(own, OpContext(self.family, dims, {})))

    def resize(self, use: OpUse, dims: Names) -> None:
        axis = axis_of(use.args.axis, self.sizes)
        self.along(use, axis, use.args, dims)
        self.axes[axis] = self.axes[axis]._replace(size=use.args.to.integer(dims))

    def stack(self, args: JoinArgs, dims: Names) -> None:
        """Stack at the axis where the weights are stacked, or behind the last axis if a factor has fewer."""
        self.stacked = True
        if len(set(self.family.shapes)) > 1:
            raise Refusal("layout-adapter", "factors of different ranks cannot be stacked")
        rank = len(self.family.shapes[0])
        axis = args.axis if args.axis < 0 else min(args.axis, rank)
        self.add(OPS["stack"].bind(JoinArgs(axis, args.over), OpContext(self.family, dims, {})))

    def new_axis(self, axis: int) -> int:
        """The place of the axis that stacking the weights of a list adds."""
        place = axis + len(self.axes) + 1 if axis < 0 else axis
        self.axes.insert(place, WeightAxis("out", len(self.family.groups(LIST)[0])))
        return place

    def longer_axis(self, axis: int) -> int:
        """The place of the axis along which the weights of a list are joined, made as long as all of them."""
        place, count = axis_of(axis, self.sizes), len(self.family.groups(LIST)[0])
        self.axes[place] = self.axes[place]._replace(size=self.axes[place].size * count)
        return place

    def join(self, use: OpUse, axis: int, dims: Names) -> None:
        """Join the weights of a list: along an output they must share `A`, along an input `B`."""
        if self.axes[axis].side == self.side:
            self.add(OPS[use.name].bind(JoinArgs(self.place(axis), LIST), OpContext(self.family, dims, {})))
        else:
            groups = self.family.groups(LIST)
            shapes = tuple(self.family.shapes[group[0]] for group in groups)
            self.add(BoundOp(Shared(groups), TensorFamily(self.family.without(LIST), shapes)))

    def flatten(self) -> None:
        """Merge all axes of the side into one."""
        before = self.family.shapes[0]
        after = self.shape_with((prod(self.axes[at].size for at in self.own),))
        if before != after:
            self.alike([Reshaped(before, after)])


def convert_factor(pair: Correspondence, side: Side, rank: int, dims: Names, *, flat: bool) -> tuple[Factor, Chain]:
    """A factor mapped through the ops of its weight's rule, and the chain of its actions. Raises Refusal.

    `flat`: the library stores its factors with one axis for all inputs or outputs, however many the weight has.
    """
    uses = pair.rule.ops
    conv = pair.target[0].endswith("kernel") and "transpose" not in {use.name for use in uses}
    factor = Factor(pair, side, rank, conv=conv)
    for use in uses:
        factor.take(use, dims, flat=flat)
    if flat and not factor.stacked:
        factor.flatten()
    return factor, Chain(tuple(factor.actions))


def _unfit(use: OpUse, why: str) -> Refusal:
    return Refusal("layout-adapter", f"`{use.name}` {why}")


def _blocks(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of axes, before and after a reshape, with the same number of elements."""
    groups: list[tuple[list[int], list[int]]] = []
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
        groups.append((old, new))
    if i < len(before) or j < len(after):  # axes of one element at the end
        groups.append((list(range(i, len(before))), list(range(j, len(after)))))
    return groups
