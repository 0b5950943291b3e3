"""LoRA adapters by the layout of their base model: the two factors are mapped as the layout maps their weight.

PEFT stores `B A` of a module `m` as `base_model.model.m.lora_A.weight` [rank, in] and `...lora_B.weight` [out, rank].
JAX libraries store `p_lora_a` [in..., rank] and `p_lora_b` [rank, out...] beside a parameter `p`, as qwix creates them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.layout.actions import Shape
from brainsurgery_jax.layout.bind import BoundLayout, Correspondence
from brainsurgery_jax.layout.factors import Side, convert_factor
from brainsurgery_jax.layout.families import LIST
from brainsurgery_jax.layout.model import Layout

HEAD, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
TARGET_DOWN, TARGET_UP = "_lora_a", "_lora_b"

_ENDS: tuple[tuple[Side, str, str], ...] = (("in", DOWN, TARGET_DOWN), ("out", UP, TARGET_UP))


class Words(NamedTuple):
    """How a library names factors: the prefix that replaces the weights' prefix, and the last part of the name."""

    prefix: str
    own: str
    end: str

    @classmethod
    def of(cls, layout: Layout) -> Words:
        """The words of a layout."""
        a = layout.adapters
        return cls(_end_with_dot(layout.prefix), _end_with_dot(a.prefix), f".{a.leaf}" if a.leaf else "")

    def factor(self, weight: str, mark: str) -> str:
        """The name of a weight's factor."""
        return self.own + weight.removeprefix(self.prefix) + mark + self.end

    def weight(self, factor: str) -> str | None:
        """The weight that a factor belongs to; None if the name is not that of a factor."""
        name = factor.removesuffix(self.end)
        if not name.endswith((TARGET_DOWN, TARGET_UP)) or not factor.endswith(self.end):
            return None
        return self.prefix + name[: -len(TARGET_DOWN)].removeprefix(self.own)


def _end_with_dot(prefix: str) -> str:
    return f"{prefix}." if prefix else ""


def is_adapter(names: Collection[str]) -> bool:
    """Whether these are the names of an adapter, on either side of a layout."""
    return bool(names) and (of_peft(names) or all(map(_is_target_factor, names)))


def of_peft(names: Collection[str]) -> bool:
    """Whether an adapter has the names of PEFT."""
    return any(map(_is_factor, names))


def _is_factor(name: str) -> bool:
    return name.startswith(HEAD) and name.endswith((DOWN, UP))


def _is_target_factor(name: str) -> bool:
    return name.endswith((TARGET_DOWN, TARGET_UP)) or name.rpartition(".")[0].endswith((TARGET_DOWN, TARGET_UP))


def as_named(layout: Layout, names: Collection[str], *, inverse: bool) -> Layout:
    """The layout for the names of a tree. A file that Flax saved may leave out the last key of its leaves, the box of a
    variable: see `store.orbax.folder.mark_boxes`."""
    keys = {layout.adapters.leaf, *(form.leaf for form in layout.forms.values())} - {""}
    if not inverse or not keys or any(n.endswith(f".{key}") for n in names for key in keys):
        return layout
    forms = {name: form._replace(leaf="") for name, form in layout.forms.items()}
    return replace(layout, forms=forms, adapters=layout.adapters._replace(leaf=""))


def weights_of(names: Collection[str], layout: Layout) -> frozenset[str]:
    """The names. For an adapter, the names of the weights that its factors belong to."""
    if not is_adapter(names):
        return frozenset(names)
    words = Words.of(layout)
    return frozenset(f"{n[len(HEAD) : -len(DOWN)]}.weight" if _is_factor(n) else words.weight(n) or n for n in names)


def adapt(bound: BoundLayout, shapes: Mapping[str, Shape], *, inverse: bool) -> BoundLayout:
    """The layout for an adapter: factors instead of weights. `shapes`: those of the source's tensors.

    Raises Refusal for factors that cannot be expressed on the other side.
    """
    pairs = [p for pair in bound.pairs for p in _factors(bound, pair, shapes, inverse=inverse)]
    return replace(bound, pairs=tuple(pairs), drops=frozenset(), ties=())


MERGE = "Merge the adapter into its base, `W + scale * B @ A`, and convert the result; or remove these modules from it."


def _factors(
    bound: BoundLayout, pair: Correspondence, shapes: Mapping[str, Shape], *, inverse: bool
) -> Iterator[Correspondence]:
    """The correspondences of a weight's two factors, if any of them is present."""
    if any(len(shape) != 2 for shape in pair.hf_shapes):
        return
    words = Words.of(bound.layout)
    both: list[tuple[Side, tuple[str, ...], tuple[str, ...]]] = [
        (side, tuple(_stem(n) + end for n in pair.hf), tuple(words.factor(n, mark) for n in pair.target))
        for side, end, mark in _ENDS
    ]
    if not any(n in shapes for _, hf, target in both for n in (target if inverse else hf)):
        return
    for side, hf, target in both:
        try:
            if not inverse:
                _check_whole(bound.layout, pair, [n for n in hf if n not in shapes])
            found = [shapes[n] for n in (target if inverse else hf) if n in shapes]
            rank = _rank_of_target(bound, pair, side, found) if inverse else _rank(side, found)
            factor, chain = convert_factor(pair, side, rank, bound.dims, flat=bound.layout.adapters.flat)
        except Refusal as bad:
            raise Refusal(bad.code, f"the adapter of '{pair.hf[0]}': {bad.message}", hint=bad.hint or MERGE) from bad
        start = (factor.start,) * len(hf)
        yield Correspondence(hf, target, chain, start, factor.family.shapes, pair.rule, pair.axes)


def _stem(weight: str) -> str:
    return HEAD + weight.removesuffix(".weight")


def _check_whole(layout: Layout, pair: Correspondence, missing: Sequence[str]) -> None:
    """Refuse weights that the target stores as one tensor if the adapter has some of them only, or adapts each
    alone."""
    if any(axis.label == LIST for axis in pair.axes):
        others = ", ".join(f"'{n}'" for n in dict.fromkeys(n.split(".")[-2] for n in pair.hf))
        found = f"{layout.name} stores {others} as one tensor, but their adapters share no factors"
        raise Refusal("layout-adapter", found)
    if len(pair.hf) > 1 and missing:
        found = f"{layout.name} stacks {len(pair.hf)} such weights, but {len(missing)} of them have no factors"
        hint = (
            f"'{missing[0]}' is missing. Fill it with zeros; or keep layers apart, if the layout can (`scan: false`)."
        )
        raise Refusal("layout-adapter", found, hint=hint)


def _rank(side: Side, shapes: Sequence[Shape]) -> int:
    ranks = sorted({shape[0 if side == "in" else -1] for shape in shapes if shape})
    if len(ranks) > 1:
        raise Refusal("layout-adapter", f"factors of ranks {' and '.join(map(str, ranks))} cannot be stacked")
    return ranks[0] if ranks else 1


def _rank_of_target(bound: BoundLayout, pair: Correspondence, side: Side, shapes: Sequence[Shape]) -> int:
    """The rank of factors, whichever axis it has: the number of elements, divided by the number at rank 1."""
    single, _ = convert_factor(pair, side, 1, bound.dims, flat=bound.layout.adapters.flat)
    return max(1, prod(shapes[0]) // prod(single.family.shapes[0])) if shapes else 1
