"""Tensors that may hold the layers of a model, as their names say: in one stack, or in several between them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from brainsurgery_jax.merging.settings import layer_of

Shape = Sequence[int]
Shapes = Mapping[str, Shape]

_PLURAL = re.compile(r"(?:^|[./])(?:\w*layers|\w*blocks|h)(?=[./])", re.IGNORECASE)
"""Words that stand for all layers."""

_SINGULAR = re.compile(r"(?:^|[./])(?:\w*layer|\w*block|stack(?:ed)?|scan(?:ned)?)(?=[./])", re.IGNORECASE)
"""Words that stand for all layers in some models (`encoderblock` of big_vision), and in others for a single one."""

_NUMBERED = re.compile(r"[./]\d+(?=[._/]|$)")
"""The number of a layer just after its word."""

_OF_BODY = re.compile(r"(layers?|blocks?|h)_(\d+)", re.IGNORECASE)
"""A layer in the body of a scan that repeats several: `layers.layers_0` of MaxText's Gemma 3, gpt-oss and OLMo 3."""

_OF_KIND = re.compile(r"\w+_(local|global)", re.IGNORECASE)
"""A module of one of the two kinds of layers that a scan goes over together, as in MaxText's Gemma 2."""

_KINDS = {"local": "sliding_attention", "global": "full_attention"}
"""The kinds as `layer_types` of a config has them."""

_TURNS = ("dense_layers", "moe_layers")
"""Stacks that follow each other, as in MaxText's DeepSeek: layers with experts come after those without."""

Order = Literal["one", "woven", "kinds", "turns"]


@dataclass(frozen=True)
class LayerPile:
    """The tensors that hold the layers of a model between them, in one part or in several.

    `order`: how layers go over the parts. `one` is a single part. `woven`: every part has one layer of each repeat of a
    scan. `kinds`: a config says which layers are of which kind. `turns`: one part after the other. `rest`: layers that
    come after them, by name. `sure`: whether the word for layers is one that has no other meaning.
    """

    head: str
    parts: Mapping[str, Shapes]
    order: Order = "one"
    rest: Mapping[str, int] | None = None
    sure: bool = True

    @property
    def shapes(self) -> Shapes:
        """All tensors that may hold layers."""
        return {name: shape for part in self.parts.values() for name, shape in part.items()}

    def counts(self, axis: int) -> list[int] | None:
        """How many layers each part holds along an axis; None if that cannot be the axis of layers."""
        found = [_count_along(part.values(), axis) for part in self.parts.values()]
        counts = [count for count in found if count is not None]
        if len(counts) < len(found) or not counts:
            return None
        falls = all(a >= b >= counts[0] - 1 for a, b in pairwise(counts))
        return counts if self.order != "woven" or falls else None

    def total(self, counts: Sequence[int]) -> int:
        """The number of layers of the model."""
        return sum(counts) + (max(self.rest.values()) + 1 if self.rest else 0)

    def holding(self, axis: int, counts: Sequence[int]) -> Iterator[tuple[str, int]]:
        """The tensors that have a layer for each along an axis, with the number of their part: all others are vectors
        that layers share."""
        for at, (part, count) in enumerate(zip(self.parts.values(), counts, strict=True)):
            yield from ((name, at) for name, shape in part.items() if _size(shape, axis) == count)

    def is_even(self, axis: int) -> bool:
        """Whether shapes alone tell that layers may lie along an axis: matrices of different shapes have one size along
        it, and vectors have that size, too."""
        return self.counts(axis) is not None and all(_is_even(part, axis) for part in self.parts.values())

    def layers(self, counts: Sequence[int], config: Mapping[str, object]) -> list[list[int]] | None:
        """The numbers of the layers that each part holds; None if these are not known."""
        if self.order == "woven":
            return [[at + len(counts) * repeat for repeat in range(count)] for at, count in enumerate(counts)]
        if self.order == "kinds":
            return _layers_of_kinds(list(self.parts), counts, config)
        starts = [sum(counts[:at]) for at in range(len(counts))]
        return [list(range(start, start + count)) for start, count in zip(starts, counts, strict=True)]


def _layers_of_kinds(
    kinds: Sequence[str], counts: Sequence[int], config: Mapping[str, object]
) -> list[list[int]] | None:  # fmt: skip
    """The numbers of the layers of each kind, as a config says them."""
    for level in levels_of(config):
        if isinstance(types := level.get("layer_types"), list):
            found = [[at for at, each in enumerate(types) if each == _KINDS[kind]] for kind in kinds]
            return found if [len(each) for each in found] == list(counts) else None
    if config.get("model_type") != "gemma2":
        return None
    # A config before transformers 4.53 has no `layer_types`; there the first layer is local, then kinds alternate.
    return [list(range(0 if kind == "local" else 1, sum(counts), 2)) for kind in kinds]


def levels_of(config: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """A config, and the parts of it that describe parts of the model."""
    yield config
    yield from (part for part in config.values() if isinstance(part, Mapping))


# --- shapes


def _size(shape: Shape, axis: int) -> int | None:
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _count_along(shapes: Collection[Shape], axis: int) -> int | None:
    """The one size that all matrices have along an axis, or all vectors where there are no matrices."""
    sizes = {_size(shape, axis) for shape in [s for s in shapes if len(s) > 1] or shapes}
    return sizes.pop() if len(sizes) == 1 else None


def _is_even(shapes: Shapes, axis: int) -> bool:
    """Whether there are matrices of different shapes, and all tensors have one size along an axis."""
    if len({tuple(shape) for shape in shapes.values() if len(shape) > 1}) < 2:
        return False
    sizes = {_size(shape, axis) for shape in shapes.values()}
    return len(sizes) == 1 and None not in sizes


# --- names


def _head_of(name: str) -> tuple[str, bool] | None:
    """The stack that a tensor is in by its name: up to the word for layers, if no number stands before or just after
    it; and whether that word means nothing else."""
    for pattern in (_PLURAL, _SINGULAR):
        if (found := pattern.search(name)) is None or _NUMBERED.match(name, found.end()):
            continue  # most names have their number here
        numbered = layer_of(name)
        if numbered is None or len(numbered[0]) > found.end():
            return name[: found.end()], pattern is _PLURAL
    return None


def find_piles(shapes: Shapes) -> list[LayerPile]:
    """What may hold layers, by the names of a model."""
    heads: dict[tuple[str, bool], dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if (head := _head_of(name)) is not None:
            heads.setdefault(head, {})[name] = shape
    piles = [_pile_of(head, own, sure, shapes) for (head, sure), own in heads.items()]
    return list(_join_turns(piles))


def _pile_of(head: str, own: Shapes, sure: bool, everything: Shapes) -> LayerPile:
    """The tensors below a word for layers: one stack, or the parts that their names tell."""
    found = {name: name[len(head) + 1 :].replace("/", ".").partition(".")[0] for name in own}
    bodies = {name: _OF_BODY.fullmatch(first) for name, first in found.items()}
    stems = {body and body[1] for body in bodies.values()}
    if len(stems) == 1 and None not in stems:
        numbers = sorted({int(body[2]) for body in bodies.values() if body})
        if numbers == list(range(len(numbers))):
            parts = {f"{at}": {n: own[n] for n, body in bodies.items() if body and int(body[2]) == at}
                     for at in numbers}  # fmt: skip
            return LayerPile(head, parts, "woven", _remainder(head, everything), sure)
    kinds = {name: kind[1].lower() for name, first in found.items() if (kind := _OF_KIND.fullmatch(first))}
    if len(kinds) == len(own) and set(kinds.values()) == set(_KINDS):
        return LayerPile(
            head, {kind: {n: own[n] for n in own if kinds[n] == kind} for kind in _KINDS}, "kinds", sure=sure
        )
    return LayerPile(head, {head: own}, sure=sure)


def _remainder(head: str, shapes: Shapes) -> dict[str, int]:
    """The layers that are too few for one more repeat of a scan, which MaxText has by themselves after the stacks."""
    start = f"{head}_remainder"
    numbered = {name: layer_of(name) for name in shapes if name.startswith((f"{start}.", f"{start}/"))}
    return {name: found[1] for name, found in numbered.items() if found is not None}


def _join_turns(piles: Sequence[LayerPile]) -> Iterator[LayerPile]:
    """Stacks that follow each other as one pile, and all others as they are."""
    for pile in piles:
        above = pile.head[: len(pile.head) - len(word)] if (word := _turn_of(pile)) else ""
        together = [other for turn in _TURNS for other in piles if word and other.head == above + turn]
        if len(together) < len(_TURNS):
            yield pile
        elif word == _TURNS[0]:
            parts = {other.head: other.shapes for other in together}
            yield LayerPile(" and ".join(parts), parts, "turns")


def _turn_of(pile: LayerPile) -> str:
    last = re.split(r"[./]", pile.head)[-1]
    return last if last in _TURNS and pile.order == "one" else ""


def find_unnamed_piles(shapes: Shapes, axes: Sequence[int] = (0, 1)) -> list[LayerPile]:
    """What may hold layers by shapes alone: all tensors below one prefix have one size along an axis."""
    below: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        for cut in re.finditer(r"[./]", name):
            below.setdefault(name[: cut.start()], {})[name] = shape
    found: list[LayerPile] = []
    taken: set[str] = set()
    for prefix in sorted(below, key=len):
        if taken.isdisjoint(below[prefix]) and any(_is_even(below[prefix], axis) for axis in axes):
            found.append(LayerPile(prefix, {prefix: below[prefix]}, sure=False))
            taken |= below[prefix].keys()
    return found
