"""Joining and splitting tensors: listed by name, or over a number in the names of whole sets (`over`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Annotated, NamedTuple, TypedDict

from pydantic import BeforeValidator, Field, StrictInt

from brainsurgery_jax._lazy import Array, Shaped, jax
from brainsurgery_jax.dtypes import Aval, common_dtype_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.moves import Moves, Slice
from brainsurgery_jax.keys import Text
from brainsurgery_jax.op import Avals, Name, Role, SlicedPattern, control, kernel
from brainsurgery_jax.ops.shape import Dim, axis_of, concatenate, section, with_shape
from brainsurgery_jax.protocol import Bind, Edit, Item, TensorExpr, View
from brainsurgery_jax.select import Index, Ref, gather, scatter

GroupNumber = BeforeValidator(lambda v: str(v) if isinstance(v, int) and not isinstance(v, bool) else v)
Along = Annotated[
    Text, GroupNumber, Field(description="the capture to join along, in numeric order; the others tell sets apart")
]
Numbered = Annotated[Text, Field(description="name for the number of each part, from 0 on: `${NAME}` in `to`")]
Sources = Annotated[
    Ref | tuple[Ref, ...],
    Role("pattern", slices=True, plain=Annotated[tuple[SlicedPattern, ...], Field(min_length=2)]),
]
Target = Annotated[Ref, Role("template", plain=Name)]
Targets = Annotated[Ref | tuple[Ref, ...], Role("template", plain=Annotated[tuple[Name, ...], Field(min_length=2)])]
Sizes = Annotated[tuple[Annotated[StrictInt, Field(gt=0)], ...], Field(min_length=1, description="size of each part")]
Parts = Annotated[StrictInt, Field(gt=0, description="how many equal parts")]

MOST_PARTS = 1_000_000


# --- Joining ----------------------------------------------------------------------------------------------------------


def _join_sets(
    view: View, from_: Sources, to: Ref, over: str | None, join: Callable[[Sequence[Item]], TensorExpr]
) -> Iterator[Edit]:
    """Bind the joined tensor of each set."""
    for target, items in _sets(view, from_, to, over):
        yield Bind(to.alias, target, join(items), like=_first(from_, items))


def _sets(view: View, from_: Sources, to: Ref, over: str | None) -> Iterator[tuple[str, list[Item]]]:
    """The name of each result, and the tensors that it is joined from."""
    if over is None or not isinstance(from_, Ref):
        assert isinstance(from_, tuple)
        if _NAMES_CAPTURE.search(str(to.name)):
            yield from _each_match(view, from_, to)
            return
        yield view.literal(to, "to"), [view.one(ref, "from") for ref in from_]
        return
    for target, names in gather(*view.captures(from_, "from"), over, to.name):
        wholes = [view.fetch(from_.alias, name, "from") for name in names]
        parts = [view.slice(whole, from_, "from") for whole in wholes]
        yield target, [Item(name, part) for name, part in zip(names, parts, strict=True)]


_NAMES_CAPTURE = re.compile(r"\\[1-9]|\\g<|\$\{")
"""What a template has and no name: what the first pattern of a list captured."""


def _each_match(view: View, sources: Sequence[Ref], to: Ref) -> Iterator[tuple[str, list[Item]]]:
    """For each match of the first reference, of which the others and `to` are templates: the result and its parts."""
    pattern, *others = sources
    targets = {"to": to, **{f"from {at}": ref for at, ref in enumerate(others, 1)}}
    try:
        rows = view.rename(pattern, targets, written=["to"])
    except Refusal as bad:
        bad.key = bad.key.partition(" ")[0]
        raise
    for name, (target, *rest) in rows:
        names = zip(sources, (name, *rest), strict=True)
        yield target, [Item(n, view.slice(view.fetch(ref.alias, n, "from"), ref, "from")) for ref, n in names]


def _first(from_: Sources, items: Sequence[Item]) -> tuple[str, str]:
    """Alias and name of the first tensor that is joined."""
    ref = from_[0] if isinstance(from_, tuple) else from_
    return ref.alias, items[0].name


def _refuse_unlike(items: Sequence[Item], axis: int | None) -> None:
    """Refuse tensors that differ in dtype, or in shape outside of the axis along which they are joined."""
    first = items[0]
    for other in items[1:]:
        a, b = first.expr.aval, other.expr.aval
        about = f" ('{first.name}', '{other.name}')"
        if a.dtype != b.dtype:
            hint = common_dtype_hint(a.dtype, b.dtype)
            raise Refusal("dtypes-differ", f"dtypes differ: {a} and {b}{about}", key="from", hint=hint)
        if _outside(a.shape, axis) != _outside(b.shape, axis):
            if axis is None:
                message, hint = f"{a} and {b} cannot be stacked", "All shapes must be equal."
            else:
                message, hint = f"{a} and {b} cannot be joined along axis {axis}", "The other sizes must agree."
            raise Refusal("shapes-differ", message + about, key="from", hint=hint)


def _outside(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _join(view: View, parts: Sequence[TensorExpr], axis: int) -> TensorExpr:
    return parts[0] if len(parts) == 1 else view.apply(concatenate, *parts, axis=axis)


@control()
def concat(view: View, *, from_: Sources, to: Target, over: Along | None = None, dim: Dim = 0) -> Iterator[Edit]:
    """Join tensors along an axis: a list of them, or with `over` all that a pattern matches. The sources stay.

    Of a list, each source must match exactly one tensor, and `to` is one literal name; where `to` has captures, there
    is a result for each match of the first source, and the others are templates as well
    (`from: ['h\\.(\\d+)\\.q', 'h.\\1.k'], to: 'h.\\1.qk'`). With `over: e`, tensors whose
    names differ only in the capture `e` are joined in numeric order, and `to` is a template of the other captures:
    `concat: {from: 'h\\.(?P<i>\\d+)\\.experts\\.(?P<e>\\d+)\\.w', to: 'h.\\g<i>.experts.w', over: e}`.
    Example: `concat: {from: [q.weight, k.weight, v.weight], to: qkv.weight, dim: 0}`
    """

    def join(items: Sequence[Item]) -> TensorExpr:
        axis = axis_of(dim, items[0].expr.aval)
        _refuse_unlike(items, axis)
        return _join(view, [item.expr for item in items], axis)

    yield from _join_sets(view, from_, to, over, join)


@control()
def stack(view: View, *, from_: Sources, to: Target, over: Along | None = None, dim: Dim = 0) -> Iterator[Edit]:
    """Join tensors of one shape along a new axis: a list, or with `over` all that a pattern matches. The sources stay.

    `dim` is the place of the new axis in the result. Lists and `over` are as for `concat`:
    `stack: {from: 'h\\.(?P<i>\\d+)\\.experts\\.(?P<e>\\d+)\\.w', to: 'h.\\g<i>.experts.w', over: e}`.
    Example: `stack: {from: [head.0.w, head.1.w], to: heads.w, dim: 0}`
    """

    def join(items: Sequence[Item]) -> TensorExpr:
        shape = items[0].expr.aval.shape
        _refuse_unlike(items, None)
        axis = axis_of(dim, Aval((*shape, 1), items[0].expr.aval.dtype))
        layer = (*shape[:axis], 1, *shape[axis:])
        return _join(view, [view.apply(with_shape, item.expr, shape=layer) for item in items], axis)

    yield from _join_sets(view, from_, to, over, join)


# --- Cutting ----------------------------------------------------------------------------------------------------------


class Pieces(NamedTuple):
    """The parts of a tensor: their number, the key that determines it, and a function that yields each part."""

    number: int
    what: str
    make: Callable[[int], TensorExpr]


def _cut_sets(
    view: View, from_: Ref, to: Targets, over: str | None, cut: Callable[[TensorExpr], Pieces]
) -> Iterator[Edit]:
    """Bind the parts of one tensor, or with `over` of all that match."""
    items = [view.one(from_, "from")] if over is None else view.select(from_, "from")
    pieces = [cut(item.expr) for item in items]
    named = _targets(view, from_, to, over, pieces)
    for item, own, targets in zip(items, pieces, named, strict=True):
        for number, (alias, name) in enumerate(targets):
            yield Bind(alias, name, own.make(number), like=(from_.alias, item.name))


def _targets(
    view: View, from_: Ref, to: Targets, over: str | None, pieces: Sequence[Pieces]
) -> list[list[tuple[str, str]]]:
    """For each of the tensors to cut, alias and name of every part."""
    counts = [own.number for own in pieces]
    if sum(counts) > MOST_PARTS:
        hint = "Cut into fewer, larger parts: `split` with `sizes` or `parts`."
        raise Refusal("split-sizes", f"{sum(counts):,} parts are too many, at most {MOST_PARTS:,} are made", hint=hint)
    if over is not None and isinstance(to, Ref):
        made = scatter(*view.captures(from_, "from"), over, to.name, counts)
        return [[(to.alias, name) for name in names] for names in made]
    assert isinstance(to, tuple)
    if len(to) != counts[0]:
        raise Refusal("split-sizes", f"{len(to)} names in `to`, but {counts[0]} {pieces[0].what}", key="to",
                      hint="Give one name for each part, or a template with `over`.")  # fmt: skip
    return [[(ref.alias, view.literal(ref, "to")) for ref in to]]


def _cuts(aval: Aval, axis: int, sizes: Sequence[int] | None, parts: int | None) -> Sequence[int]:
    """The size of each part along the axis."""
    if (sizes is None) == (parts is None):
        raise Refusal("split-keys", "give either `sizes` or `parts`", key="sizes",
                      hint="`sizes: [64, 64]` cuts into parts of these sizes, `parts: 2` into equal ones.")  # fmt: skip
    found = aval.shape[axis]
    if parts is not None:
        if found % parts:
            raise Refusal("split-sizes", f"axis {axis} of {aval} has {found}, which makes no {parts} equal parts",
                          key="parts", hint="Say how large each part is: `sizes: [...]`.")  # fmt: skip
        return [found // parts] * parts
    assert sizes is not None
    if sum(sizes) != found:
        hint = "The sizes must cover the whole axis; `copy` with a slice takes a part of it."
        message = f"the sizes add up to {sum(sizes)}, but axis {axis} of {aval} has {found}"
        raise Refusal("split-sizes", message, key="sizes", hint=hint)
    return sizes


@control()
def split(
    view: View,
    *,
    from_: SlicedPattern,
    to: Targets,
    over: Numbered | None = None,
    sizes: Sizes | None = None,
    parts: Parts | None = None,
    dim: Dim = 0,
) -> Iterator[Edit]:
    """Split tensors along an axis, into parts of given `sizes` or into equal `parts`. The source is kept.

    One tensor is split into parts with the names in `to`. With `over: e`, every match is split, and `to` is a template
    in which `${e}` is the number of the part:
    `split: {from: 'h\\.(?P<i>\\d+)\\.experts', to: 'h.\\g<i>.expert.${e}', over: e, parts: 8}`.
    Example: `split: {from: qkv.weight, to: [q.weight, k.weight, v.weight], sizes: [64, 64, 64], dim: 0}`
    """

    def cut(x: TensorExpr) -> Pieces:
        axis = axis_of(dim, x.aval)
        ends = [0, *accumulate(_cuts(x.aval, axis, sizes, parts))]
        make = lambda at: view.apply(section, x, axis=axis, start=ends[at], stop=ends[at + 1])  # noqa: E731
        return Pieces(len(ends) - 1, "sizes" if sizes else "parts", make)

    yield from _cut_sets(view, from_, to, over, cut)


class EntryParams(TypedDict):
    """The axis of an entry, and its place."""

    axis: int
    at: int


def _entry(avals: Avals, params: EntryParams) -> Moves:
    axis, at, shape = params["axis"], params["at"], avals[0].shape
    starts, stops = [0] * len(shape), list(shape)
    starts[axis], stops[axis] = at, at + 1
    return Slice(Index(tuple(starts), tuple(stops), (1,) * len(shape), (axis,), shape))


@kernel(moves=_entry)
def entry(x: Shaped[Array, "..."], *, axis: int, at: int) -> Array:
    """Entry `at` along one axis, without that axis."""
    return jax.lax.index_in_dim(x, at, axis, keepdims=False)


@control()
def unstack(
    view: View, *, from_: SlicedPattern, to: Targets, over: Numbered | None = None, dim: Dim = 0
) -> Iterator[Edit]:
    """Turn each entry along an axis into a tensor without that axis. The source is kept.

    One tensor is unstacked to the names in `to`. With `over: e`, every match is unstacked, and `to` is a template
    in which `${e}` is the number of the entry:
    `unstack: {from: 'h\\.(?P<i>\\d+)\\.experts', to: 'h.\\g<i>.expert.${e}', over: e}`.
    Example: `unstack: {from: heads.w, to: [head.0.w, head.1.w], dim: 0}`
    """

    def cut(x: TensorExpr) -> Pieces:
        axis = axis_of(dim, x.aval)
        make = lambda at: view.apply(entry, x, axis=axis, at=at)  # noqa: E731
        return Pieces(x.aval.shape[axis], f"entries along axis {axis} of {x.aval}", make)

    yield from _cut_sets(view, from_, to, over, cut)
