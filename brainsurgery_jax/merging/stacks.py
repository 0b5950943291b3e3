"""Which tensors of a model hold all layers, one after the other (scanned stacks): along which axis, at which depths.

This is decided once for a step, whatever its method and its parameters are, from the names and shapes of all tensors of
the model and from its config.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.piles import LayerPile, Shape, Shapes, find_piles, find_unnamed_piles, levels_of
from brainsurgery_jax.merging.settings import depth_of, layer_of

Config = Callable[[], Mapping[str, object]]
"""The config of a model, which is read where there are tensors that may hold all layers."""


class LayerStack(NamedTuple):
    """A tensor that holds layers: the axis along which it does, and the depth of each, None if not known."""

    head: str
    axis: int
    depths: Sequence[float] | None


class Unclear(NamedTuple):
    """Tensors that may hold all layers and are not known to, and the axes along which they may."""

    head: str
    axes: Sequence[int]
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class Layers:
    """What is known of the tensors that hold all layers, by name.

    `guessed`: axis and number of layers of the stacks that only their shapes tell. `depths`: of the tensors of single
    layers that come after a stack.
    """

    stacks: Mapping[str, LayerStack] = field(default_factory=dict)
    unclear: Mapping[str, Unclear] = field(default_factory=dict)
    guessed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    depths: Mapping[str, float] = field(default_factory=dict)

    def has_layers(self, names: Iterable[str]) -> bool:
        """Whether any name has the number of a layer, or is of a tensor that may hold all layers."""
        return bool(self.stacks or self.unclear) or any(layer_of(name) is not None for name in names)

    def depths_of_layers(self, name: str) -> Sequence[float]:
        """The depth of each layer of a tensor, for a list by layer. Raises Refusal."""
        stack = self.stacks[name]
        if stack.depths is not None:
            return stack.depths
        message = f"a list goes by layer, and no config says which layers '{stack.head}' has in '{name}'"
        hint = "Give one number; or `unstack` the layers of each model before, and give a number for each."
        raise Refusal("merge-parameter", message, key="parameters", hint=hint)


def find_layers(shapes: Shapes, config: Config) -> Layers:
    """The tensors that hold all layers, as names, shapes and a config tell it."""
    piles = find_piles(shapes)
    numbered = _numbered(shapes, piles)
    found = _Found({})
    if piles:
        found = _Found(config())
        for pile in piles:
            found.judge(pile, numbered)
    free = {name: shape for name, shape in shapes.items() if name not in found.stacks and name not in found.unclear}
    if not numbered and (unnamed := find_unnamed_piles(free)):
        alone = len(free) == len(shapes)
        found = _Found(config()) if alone else found
        for pile in unnamed:
            found.judge_unnamed(pile, alone=alone)
    return Layers(found.stacks, found.unclear, found.guessed, found.depths)


def _numbered(shapes: Shapes, piles: Sequence[LayerPile]) -> frozenset[int]:
    """How many layers each list of numbered layers has. A module may have a number, too: a word with a single one
    (`MlpBlock_0`) is no list."""
    held = {name for pile in piles for name in (*pile.shapes, *(pile.rest or ()))}
    lists: dict[str, set[int]] = {}
    for place in (layer_of(name) for name in shapes if name not in held):
        if place is not None:
            lists.setdefault(place[0], set()).add(place[1])
    return frozenset(max(own) + 1 for head, own in lists.items() if len(own) > 1 or not head.endswith("_"))


def _counts_of(config: Mapping[str, object]) -> frozenset[int]:
    """The numbers of layers that a config tells, also within the parts of it that describe parts of the model."""
    found = (level.items() for level in levels_of(config))
    return frozenset(value for items in found for key, value in items if "layer" in key and type(value) is int)


class _Found:
    """What is found so far."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self.config, self.counts = config, _counts_of(config)
        self.stacks: dict[str, LayerStack] = {}
        self.unclear: dict[str, Unclear] = {}
        self.guessed: dict[str, tuple[int, int]] = {}
        self.depths: dict[str, float] = {}

    def judge(self, pile: LayerPile, numbered: frozenset[int]) -> None:
        """Tell whether tensors whose names have a word for layers are a stack."""
        even, axes = self._certain(pile), self._axes(pile)
        told = [axis for axis in axes if self._total(pile, axis) in self.counts - numbered]
        if len(told) == 1:
            self.hold(pile, told[0])
        elif told:
            self._doubt(pile, told)
        elif self.counts:
            are_numbered = (pile.order == "woven" and len(pile.parts) in self.counts) or self.counts & numbered
            if not are_numbered and (pile.sure or even):
                self._doubt(pile, axes)
        elif len(even) == 1 and numbered:
            self._doubt(pile, even)
        elif len(even) == 1:
            self.hold(pile, even[0])
            self.guessed[pile.head] = (even[0], self._total(pile, even[0]))
        elif not numbered and (pile.sure or even):
            self._doubt(pile, axes)

    def judge_unnamed(self, pile: LayerPile, *, alone: bool) -> None:
        """Tell whether tensors are a stack of which only shapes say that they may be one. `alone`: there are no stacks
        that names tell, beside which these would hardly be one that a config does not tell, either."""
        axes = self._certain(pile)
        told = [axis for axis in axes if self._total(pile, axis) in self.counts]
        if len(told) == 1:
            self.hold(pile, told[0])
        elif told or (alone and not self.counts):
            self._doubt(pile, told or axes)

    def hold(self, pile: LayerPile, axis: int) -> None:
        """Take tensors for layers along an axis, at the depths that these have in the model."""
        counts = pile.counts(axis)
        assert counts is not None
        total, layers = pile.total(counts), pile.layers(counts, self.config)
        for name, part in pile.holding(axis, counts):
            depths = None if layers is None else [depth_of(at, total) for at in layers[part]]
            self.stacks[name] = LayerStack(pile.head, axis, depths)
        self.depths |= {name: depth_of(sum(counts) + at, total) for name, at in (pile.rest or {}).items()}

    def _doubt(self, pile: LayerPile, axes: Sequence[int]) -> None:
        unclear = Unclear(pile.head, axes, list(pile.shapes.values()))
        self.unclear |= dict.fromkeys(pile.shapes, unclear)

    def _total(self, pile: LayerPile, axis: int) -> int:
        counts = pile.counts(axis)
        return 0 if counts is None else pile.total(counts)

    def _certain(self, pile: LayerPile) -> list[int]:
        """The axes of which shapes alone tell that they may be those of layers."""
        return [axis for axis in (0, 1) if pile.is_even(axis)]

    def _axes(self, pile: LayerPile) -> list[int]:
        """The axes along which layers may lie. Names with numbers may be those of single layers, whose matrices have
        an axis of one size more often than their matrices and vectors do."""
        if any(layer_of(name) is not None for name in pile.shapes):
            return self._certain(pile)
        return [axis for axis in (0, 1) if pile.counts(axis) is not None]


# --- an axis that the step names


def take_layers(shapes: Shapes, config: Config, axis: int, merged: Collection[str], *, named: bool) -> Layers:
    """The tensors that hold all layers along an axis that the step names, of those that are `merged`. `named`: whether
    the step says which these are. Raises Refusal."""
    found = _Found(config())
    for pile in find_piles(shapes):
        if (own := _fit(pile, axis, merged, found.counts)) is not None:
            found.hold(own, axis)
    free = {name: shape for name, shape in shapes.items() if name not in found.stacks}
    for pile in _fit_unnamed(free, axis, merged, found.counts, named=named, needed=not found.stacks):
        found.hold(pile, axis)
    return Layers(found.stacks, depths=found.depths)


def _fit(pile: LayerPile, axis: int, merged: Collection[str], counts: frozenset[int]) -> LayerPile | None:
    """The pile that has layers along an axis: the whole, or what is merged of it; None if it is none, or nothing of it
    is merged. Raises Refusal."""
    own = {name: shape for name, shape in pile.shapes.items() if name in merged}
    if not own:
        return None
    sizes = pile.counts(axis)
    if not pile.sure and not pile.is_even(axis) and (sizes is None or pile.total(sizes) not in counts):
        return None
    if sizes is not None:
        return pile
    alone = replace(pile, parts={part: {n: own[n] for n in held if n in own} for part, held in pile.parts.items()})
    if alone.counts(axis) is None:
        message = f"the tensors of '{pile.head}' have no axis {axis} of one size: {_few(own.values())}"
        hint = "Name the axis along which all of `of` have their layers."
        raise Refusal("merge-parameter", message, key="layer_axis", hint=hint)
    return alone


def _fit_unnamed(
    shapes: Shapes, axis: int, merged: Collection[str], counts: frozenset[int], *, named: bool, needed: bool
) -> Iterator[LayerPile]:
    """The piles that have layers along an axis, of which no names tell it: those that a config tells, and if any is
    `needed` those that shapes or the step tell. Raises Refusal."""
    found = [pile for pile in find_unnamed_piles(shapes, [axis]) if not pile.shapes.keys().isdisjoint(merged)]
    sizes = {pile.head: pile.total(pile.counts(axis) or [0]) for pile in found}
    if counts & set(sizes.values()):
        found = [pile for pile in found if sizes[pile.head] in counts]
        yield from found
        return
    if not needed:
        return
    if len(set(sizes.values())) == 1:
        yield from found
        return
    of = LayerPile("of", {"of": {name: shapes[name] for name in merged}})
    if named and of.counts(axis) is not None:
        yield of
        return
    message = "no name is that of a tensor that holds all layers, as `layers.w` is"
    hint = "Leave `layer_axis` out; or name those tensors by `of`, and merge all others by a step of their own."
    raise Refusal("merge-parameter", message, key="layer_axis", hint=hint)


# --- words


def refuse_unclear(unclear: Unclear) -> Refusal:
    """That a list goes by layer, and the axis of layers is not known."""
    found = "either the first or the second" if unclear.axes else "neither the first nor the second"
    if len(unclear.axes) == 1:
        found = f"{unclear.axes[0]}, or there is none"
    message = f"a list goes by layer, and the axis of layers of '{unclear.head}' may be {found}: {_few(unclear.shapes)}"
    axis = next(iter(unclear.axes), 0)
    hint = f"Say it: `layer_axis: {axis}`. Or `unstack` the layers of each model before; or give one number."
    return Refusal("merge-parameter", message, key="parameters", hint=hint)


def _few(shapes: Iterable[Shape]) -> str:
    return ", ".join(str(list(s)) for s in list(dict.fromkeys(map(tuple, shapes)))[:3])
