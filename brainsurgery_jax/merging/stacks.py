"""Tensors that hold all layers of a model, one after the other (scanned stacks), and the axis along which they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.settings import layer_of

Shape = Sequence[int]

_LAYERS = re.compile(r"(?:^|[./])(?:\w*layers|\w*blocks|h)(?=[./])", re.IGNORECASE)
"""Words that stand for all layers."""


class LayerAxes(NamedTuple):
    """The axis of layers of every tensor that is merged layer by layer, and the stacks that may hold all layers and are
    not known to."""

    known: Mapping[str, int]
    unclear: Sequence[str] = ()


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
    counts: Sequence[object],
    given: int | None,
    is_by_layer: Callable[[str], bool],
    *,
    apart: bool,
) -> LayerAxes:
    """Which tensors are merged layer by layer, and along which axis: those of stacks, if the step names the axis
    (`given`), if a parameter of one goes by layer, or if the method looks at a tensor as a whole (`apart`) and a config
    says how many layers there are (`counts`). Raises Refusal."""
    stacks: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if (stack := stack_of(name)) is not None:
            stacks.setdefault(stack, {})[name] = shape
    if given is not None:
        _refuse_given(stacks, given)
        return LayerAxes({name: given for own in stacks.values() for name in own})
    known, unclear = dict[str, int](), list[str]()
    for stack, own in stacks.items():
        even = [at for at in (0, 1) if _is_even(own.values(), at)]
        told = [at for at in even if next(iter(own.values()))[at] in counts]
        if any(map(is_by_layer, own)):
            known |= dict.fromkeys(own, _only(stack, own.values(), told or even))
        elif apart and len(told) == 1:
            known |= dict.fromkeys(own, told[0])
        elif apart and even and len(own) > 1:
            unclear.append(stack)
    return LayerAxes(known, unclear)


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
