"""Where attention has its queries, keys and values, and what reads heads: as columns, whatever holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.structure.axes import sections
from brainsurgery_jax.structure.described import Described
from brainsurgery_jax.structure.given import refuse_given

WIDTH = "D"


class Within(NamedTuple):
    """Expressions for a part of a tensor: what reads it, and the whole tensor with `NEW` in its place."""

    part: str
    whole: str


class PlacedProjection(NamedTuple):
    """Queries, keys or values of all heads: names of the weight and of the bias (empty: there is none), and where in
    them they are, as columns [in, out] of the weight `w` and as entries of the bias `b`."""

    weight: str
    bias: str
    columns: Within
    entries: Within


def projection(model: Described, at: int) -> PlacedProjection:
    """Queries (0), keys (1) or values (2) of a model, alone or in a tensor of all. Raises Refusal."""
    model.require("qkv" if "qkv" in model.roles else "qkv"[at])
    weight, together = _find(model, at)
    bias = weight.removesuffix("weight") + "bias"
    bias = bias if bias in model.kin else ""
    part, axis = model.part_of(weight, WIDTH)
    turned = "w" if axis == 0 else "transpose(w, (1, 0))"
    columns, entries = Within(turned, "NEW"), Within("b", "NEW")
    if together:
        text = part.axes[1 - axis]
        columns, entries = (_within(model, turned, text, at, (model.size(WIDTH),)), _within(model, "b", text, at, ()))
    back = columns if axis == 0 else columns._replace(whole=f"transpose({columns.whole}, (1, 0))")
    return PlacedProjection(weight, bias, back, entries)


def _find(model: Described, at: int) -> tuple[str, bool]:
    """The weight that holds them, and whether it holds the others too."""
    found: list[tuple[str, bool]] = []
    if "qkv" in model.roles:
        whole = f"{model.roles['qkv']}.weight"
        apart = model.place.family.fused.get(whole)
        found = [(whole, True), *([(apart[at], False)] if apart else [])]
    if "qkv"[at] in model.roles:
        found.append((f"{model.roles['qkv'[at]]}.weight", False))
    named = [(model.names([table])[0], together) for table, together in found]
    if (there := next((each for each in named if each[0] in model.kin), None)) is None:
        raise Refusal("structure-model", f"'{model.alias}' has no '{named[0][0]}', as a {model.place.kind} has it",
                      key="alias", hint="Put a step `fuse` or `unfuse` before this.")  # fmt: skip
    return there


class OutputMatrix(NamedTuple):
    """The matrix behind attention: its name, and whether it is [out, in]: the stream is its first axis."""

    name: str
    out_first: bool


def output_of(model: Described) -> OutputMatrix:
    """The matrix behind attention."""
    model.require("o")
    (name,) = model.names([f"{model.roles['o']}.weight"])
    return OutputMatrix(name, model.part_of(name, WIDTH)[1] == 0)


def sums_values(model: Described) -> bool:
    """Whether it is known where queries, keys and values are, and attention sums up values and nothing else. A step
    that describes a model says so by its roles."""
    known = model.roles.keys()
    return model.given is not None or ({"o"} < known and ("qkv" in known or {"q", "k", "v"} <= known))


CLIP = "clip_qkv"


def refuse_clipped(model: Described, why: str) -> None:
    """Refuse a model whose values are clipped."""
    if model.place.config.get(CLIP) is not None:
        raise Refusal("structure-model", f"config.json of '{model.alias}' has {CLIP}: {why}", key="alias",
                      hint="Leave the step out.")  # fmt: skip


def _within(model: Described, whole: str, text: str, at: int, lead: tuple[int, ...]) -> Within:
    """A part of three along the last axis of a tensor with these axes before it: they lie one after another, or beside
    each other for every head."""
    first, *others = cut = sections(text, model.sizes)
    if len(cut) == 3:
        start, stop = cut[at].start, cut[at].stop
        placed = _place(whole, len(lead), (start, stop), others[-1].stop)
        return Within(_slice(whole, len(lead), f"{start}:{stop}"), placed)
    if "3" not in first.factors:
        raise refuse_given(f"an axis {text} does not hold three parts of the same kind: queries, keys and values",
                     "Write it as `N*H + K*H + K*H`, `3*N*H` or `N*3*H`.")  # fmt: skip
    turn = first.factors.index("3")
    axis, shape = len(lead) + turn, (*lead, *first.counts)
    apart, flat = f"reshape({whole}, {_shape(shape)})", _shape((*lead, -1))
    one = _shape(tuple(1 if place == axis else n for place, n in enumerate(shape)))
    placed = _place(apart, axis, (at, at + 1), 3).replace("NEW", f"reshape(NEW, {one})")
    return Within(f"reshape({_slice(apart, axis, f'{at}:{at + 1}')}, {flat})", f"reshape({placed}, {flat})")


def _place(whole: str, axis: int, part: tuple[int, int], size: int) -> str:
    """A tensor with `NEW` in the place of a part of an axis."""
    before = [_slice(whole, axis, f":{part[0]}")] if part[0] else []
    behind = [_slice(whole, axis, f"{part[1]}:")] if part[1] < size else []
    return f"concat([{', '.join([*before, 'NEW', *behind])}], axis={axis})"


def _slice(whole: str, axis: int, text: str) -> str:
    return f"{whole}[{', '.join([*[':'] * axis, text])}]"


def _shape(sizes: Sequence[int]) -> str:
    return f"({', '.join(map(str, sizes))},)" if len(sizes) == 1 else f"({', '.join(map(str, sizes))})"
