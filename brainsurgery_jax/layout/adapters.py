"""LoRA adapters by the layout of their base: what a layout does to a weight, done to its two factors.

PEFT keeps `B A` of a module `m` as `base_model.model.m.lora_A.weight` [rank, in] and `...lora_B.weight` [out, rank].
Beside a kernel `k` with axes [in..., out...] JAX libraries keep `k_lora_a` [in..., rank] and `k_lora_b` [rank, out...].
Only what puts axes apart or in order carries over to a factor; a number that scales the weight scales `B` alone. Stacks
of layers or experts are left out: where the axis of the stack stands in a factor differs from library to library.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Literal, NamedTuple

from brainsurgery_jax.layout.actions import Chain, Members, Permuted, Reshaped, Shape, Step
from brainsurgery_jax.layout.bind import Bound, Correspondence
from brainsurgery_jax.layout.expressions import Expression
from brainsurgery_jax.layout.model import OpUse
from brainsurgery_jax.layout.ops import OPS, Bind, Family, Names

HEAD, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
TARGET_DOWN, TARGET_UP = "_lora_a", "_lora_b"

Side = Literal["in", "out"]


def is_adapter(names: Collection[str]) -> bool:
    """Whether these are the names of an adapter, on either side."""
    return bool(names) and all(base_of(n) is not None for n in names)


def base_of(name: str) -> str | None:
    """The weight that a factor belongs to, None if the name is no factor's."""
    if name.endswith((TARGET_DOWN, TARGET_UP)):
        return name[: -len(TARGET_DOWN)]
    if name.startswith(HEAD) and name.endswith((DOWN, UP)):
        return f"{name[len(HEAD) : -len(DOWN)]}.weight"
    return None


def weights_of(names: Collection[str]) -> frozenset[str]:
    """The names; those of an adapter as the weights that its factors belong to."""
    return frozenset(base_of(n) or n for n in names) if is_adapter(names) else frozenset(names)


def adapted(bound: Bound, shapes: Mapping[str, Shape], *, inverse: bool) -> Bound:
    """The layout for the factors that are there instead of the weights; `shapes` are those of the source's tensors."""
    pairs = [p for pair in bound.pairs for p in _factors(pair, bound.dims, shapes, inverse=inverse)]
    return replace(bound, pairs=tuple(pairs), drops=frozenset(), ties=())


def _factors(
    pair: Correspondence, dims: Names, shapes: Mapping[str, Shape], *, inverse: bool
) -> Iterator[Correspondence]:
    if len(pair.hf) != 1 or len(pair.target) != 1 or len(pair.hf_shapes[0]) != 2:
        return
    stem = HEAD + pair.hf[0].removesuffix(".weight")
    sides: tuple[tuple[Side, str, str, int], ...] = (
        ("in", stem + DOWN, pair.target[0] + TARGET_DOWN, -1 if inverse else 0),
        ("out", stem + UP, pair.target[0] + TARGET_UP, 0 if inverse else -1),
    )
    for kept, hf, target, place in sides:
        shape = shapes.get(target if inverse else hf)
        if shape is None or len(shape) < 2:
            continue
        factor = _factor(pair, dims, kept, shape[place])
        if factor is not None:
            before, after = factor.start, tuple(a.size for a in factor.axes)
            chain = Chain((Members((tuple(factor.steps),)),))
            yield Correspondence((hf,), (target,), chain, (before,), (after,), pair.rule)


class _Axis(NamedTuple):
    """An axis of a factor, and how long it is in the weight; the axis of the rank stands for all of its side."""

    side: Side
    size: int
    whole: Shape


class _Factor:
    """A factor on its way: the shape that it begins with, its axes, and the steps so far."""

    def __init__(self, weight: Shape, kept: Side, rank: int, *, turned: bool) -> None:
        out, in_ = weight if turned else reversed(weight)
        self.kept, self.rank = kept, rank
        self.axes = [self._axis("out", (out,)), self._axis("in", (in_,))]
        self.start = tuple(a.size for a in self.axes)
        self.steps: list[Step] = []
        if not turned:  # a Conv1D is [in, out] already, its factors are those of a Linear all the same
            self.turn()

    def _axis(self, side: Side, whole: Shape) -> _Axis:
        return _Axis(side, prod(whole) if side == self.kept else self.rank, whole)

    @property
    def shape(self) -> Shape:
        return tuple(a.size for a in self.axes)

    def turn(self) -> None:
        self.steps.append(Permuted((1, 0)))
        self.axes.reverse()

    def split(self, sizes: Shape) -> bool:
        """Reshape as the weight is; False where a size would take from both sides."""
        before, left = self.shape, list(sizes)
        axes: list[_Axis] = []
        sides: list[Side] = [a.side for a in self.axes]
        for side in dict.fromkeys(sides):
            wanted = prod(n for a in self.axes if a.side == side for n in a.whole)
            taken: list[int] = []
            while left and prod(taken) < wanted:
                taken.append(left.pop(0))
            if prod(taken) != wanted:
                return False
            parts = [_Axis(side, n, (n,)) for n in taken]
            axes += parts if side == self.kept else [self._axis(side, tuple(taken))]
        self.axes = axes
        self.steps.append(Reshaped(before, self.shape))
        return not left

    def each(self, use: OpUse, axis: int, dims: Names) -> None:
        """An op along one axis of the weight, if this factor has it."""
        places = [at for at, a in enumerate(self.axes) for _ in a.whole]
        at = places[axis]
        if self.axes[at].side == self.kept:
            bound = OPS[use.name].bind(at, Bind(Family((), (self.shape,)), dims, {}))
            assert isinstance(bound.action, Members)
            self.steps += bound.action.steps[0]


def _factor(pair: Correspondence, dims: Names, kept: Side, rank: int) -> _Factor | None:
    """A factor taken through the ops of its weight's rule; None where they do not carry over."""
    uses = pair.rule.ops
    turned = any(use.name == "transpose" for use in uses)
    if not turned and not pair.target[0].endswith("kernel"):
        return None
    factor = _Factor(pair.hf_shapes[0], kept, rank, turned=turned)
    for use in uses:
        if not _carried(factor, use, dims):
            return None
    sides = [a.side for a in factor.axes]
    return factor if sides == sorted(sides) else None


def _carried(factor: _Factor, use: OpUse, dims: Names) -> bool:
    match use.name:
        case "transpose" if len(factor.axes) == 2:
            factor.turn()
        case "reshape":
            sizes: tuple[Expression, ...] = use.args
            return factor.split(tuple(s.integer(dims) for s in sizes))
        case "interleave":
            factor.each(use, use.args, dims)
        case "multiply" | "divide":
            if factor.kept == "out":
                bound = OPS[use.name].bind(use.args, Bind(Family((), (factor.shape,)), dims, {}))
                assert isinstance(bound.action, Members)
                factor.steps += bound.action.steps[0]
        case "is":
            pass
        case _:
            return False
    return True
