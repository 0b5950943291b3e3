"""Tensors that hold all layers of a model, one after the other (scanned stacks), and the axis along which they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.settings import layer_of

Shape = Sequence[int]

_LAYERS = re.compile(r"(?:^|[./])(?:\w*layers|\w*blocks|h)(?=[./])", re.IGNORECASE)
"""Words that stand for all layers."""


class LayerAxes(NamedTuple):
    """The axis of layers of every tensor that is merged layer by layer; and the stacks that may hold all layers and are
    not known to, each with the axes that may be that of layers."""

    known: Mapping[str, int]
    unclear: Mapping[str, Sequence[int]] = {}


def stack_of(name: str) -> str | None:
    """The stack of which a tensor seems to hold one layer after the other: its name has the word for layers, and no
    number; else None."""
    found = _LAYERS.search(name) if layer_of(name) is None else None
    return None if found is None else name[: found.end()]


def has_layers(names: Iterable[str]) -> bool:
    """Whether any name has the number of a layer, or is of a tensor that holds all layers."""
    return any(layer_of(name) is not None or stack_of(name) is not None for name in names)


def layer_axes(
    shapes: Mapping[str, Shape],
    config: Callable[[], Mapping[str, object]],
    given: int | None,
    is_by_layer: Callable[[str], bool],
    *,
    apart: bool,
) -> LayerAxes:
    """Which tensors are merged layer by layer, and along which axis: those of stacks, if the step names the axis
    (`given`), if a parameter of one goes by layer, or if the method looks at a tensor as a whole (`apart`) and a
    `config`, read where there are stacks, says how many layers there are. A model that numbers layers has no stacks
    that only `apart` would take apart. Raises Refusal."""
    stacks: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if (stack := stack_of(name)) is not None:
            stacks.setdefault(stack, {})[name] = shape
    if given is not None:
        _refuse_given(stacks, given)
        return LayerAxes({name: given for own in stacks.values() for name in own})
    apart = apart and not any(layer_of(name) for name in shapes)
    by_layer = {stack for stack, own in stacks.items() if any(map(is_by_layer, own))}
    wanted = {stack: own for stack, own in stacks.items() if apart or stack in by_layer}
    counts = _counts_of(config()) if wanted else frozenset()
    known, unclear = dict[str, int](), dict[str, Sequence[int]]()
    for stack, own in wanted.items():
        if stack in by_layer:
            even = _even(own.values())
            told = [at for at in even if next(iter(own.values()))[at] in counts]
            known |= dict.fromkeys(own, _only(stack, own.values(), told or even))
            continue
        matrices = [shape for shape in own.values() if len(shape) > 1]
        even = _even(matrices) if len(matrices) > 1 else []
        told = [at for at in even if matrices[0][at] in counts]
        if len(told) == 1:  # a vector may be one that all layers share
            (axis,), count = told, matrices[0][told[0]]
            known |= {name: axis for name, shape in own.items() if len(shape) > axis and shape[axis] == count}
        elif even:
            unclear[stack] = even
    return LayerAxes(known, unclear)


def _counts_of(config: Mapping[str, object]) -> frozenset[int]:
    """The numbers of layers that a config tells, also within the parts of it that describe parts of the model."""
    found = set[int]()
    for level in (config, *(part for part in config.values() if isinstance(part, Mapping))):
        found |= {value for key, value in level.items() if "layer" in key and type(value) is int}
    return frozenset(found)


def _even(shapes: Collection[Shape]) -> list[int]:
    """The axes, of 0 and 1, along which all tensors have one size."""
    return [at for at in (0, 1) if _is_even(shapes, at)]


def _is_even(shapes: Iterable[Shape], axis: int) -> bool:
    """Whether all tensors have that axis, and one size along it."""
    sizes = {s[axis] if -len(s) <= axis < len(s) else None for s in shapes}
    return len(sizes) == 1 and None not in sizes


def _only(stack: str, shapes: Iterable[Shape], axes: Sequence[int]) -> int:
    """The only one of some axes. Raises Refusal."""
    if len(axes) == 1:
        return axes[0]
    found = "either the first or the second" if axes else "neither the first nor the second"
    message = f"a list goes by layer, and the axis of layers of '{stack}' may be {found}: {_few(shapes)}"
    hint = "Say it: `layer_axis: 0`. Or `unstack` the layers of each model before; or give one number."
    raise Refusal("merge-parameter", message, key="parameters", hint=hint)


def _refuse_given(stacks: Mapping[str, Mapping[str, Shape]], axis: int) -> None:
    """Refuse an axis that cannot be that of layers."""
    if not stacks:
        message = "no name is that of a tensor that holds all layers, as `layers.w` is"
        raise Refusal("merge-parameter", message, key="layer_axis", hint="Leave `layer_axis` out.")
    for stack, own in stacks.items():
        if not _is_even(own.values(), axis):
            message = f"the tensors of '{stack}' have no axis {axis} of one size: {_few(own.values())}"
            hint = "Name the axis along which all of `of` have their layers."
            raise Refusal("merge-parameter", message, key="layer_axis", hint=hint)


def _few(shapes: Iterable[Shape]) -> str:
    return ", ".join(str(list(s)) for s in list(dict.fromkeys(map(tuple, shapes)))[:3])
