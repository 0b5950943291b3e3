"""Ops that only move elements: nothing is computed, and contiguous pieces are copied as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, StrictInt

from brainsurgery_jax._lazy import Array, Shaped, jnp
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.moves import Concat, Moves, Permute, Reshape, Slice, resolve_shape
from brainsurgery_jax.op import Form, Name, SlicedPattern, control, kernel, op
from brainsurgery_jax.protocol import Bind, Edit, View
from brainsurgery_jax.select import Index, Ref

Dim = Annotated[StrictInt, Field(description="axis; negative counts from the end")]
_FROM = frozenset({"from"})


@op(
    Form("copy", ("from",), ("to",), "new", slices=_FROM),
    moves=lambda avals: Reshape(avals[0].shape),
    noop=lambda avals, params: True,
)
def copy(x: Shaped[Array, "..."]) -> Array:
    """Give the same values a second name.

    Example: `copy: {from: 'h\\.0\\.(.*)', to: 'h_new.\\1'}`
    """
    return x


def _reshaped(avals: tuple[Aval, ...], *, shape: tuple[int, ...]) -> Reshape:
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise Refusal("reshape-shape", f"expected positive sizes and at most one -1, got {list(shape)}", key="shape",
                      hint="Leave at most one size open: `shape: [12, 64, -1]`.")  # fmt: skip
    return Reshape(resolve_shape(shape, avals[0].size, avals[0]))


@op(
    Form("reshape", ("from",), ("to",), "new", slices=_FROM),
    Form("reshape_", ("target",), ("target",), "rebind"),
    moves=_reshaped,
    noop=lambda avals, params: avals[0].shape == tuple(params["shape"]),
)
def reshape(x: Shaped[Array, "..."], *, shape: Annotated[tuple[StrictInt, ...], Field(min_length=1)]) -> Array:
    """Read the elements in row-major order under another shape; one size may be -1.

    Example: `reshape: {from: w, to: w_heads, shape: [12, 64, -1]}`
    Example: `reshape_: {target: '.*bias', shape: [1, -1]}`
    """
    return jnp.reshape(x, shape)


def _permuted(avals: tuple[Aval, ...], *, order: tuple[int, ...]) -> Permute:
    if sorted(order) != list(range(len(avals[0].shape))):
        axes = ", ".join(map(str, range(len(avals[0].shape))))
        found = f"order {list(order)} is not a permutation of the axes [{axes}] of {avals[0]}"
        hint = "Name each axis once, counted from 0: axis `i` of the result is axis `order[i]` of the source."
        raise Refusal("permute-order", found, key="order", hint=hint)
    return Permute(tuple(order))


@op(Form("permute", ("from",), ("to",), "new", slices=_FROM), moves=_permuted)
def permute(x: Shaped[Array, "..."], *, order: Annotated[tuple[StrictInt, ...], Field(min_length=1)]) -> Array:
    """Reorder axes: axis `i` of the result is axis `order[i]` of the source.

    Example: `permute: {from: w, to: w_t, order: [1, 0]}`
    """
    return jnp.transpose(x, order)


def _concatenated(avals: tuple[Aval, ...], *, axis: int) -> Concat:
    first = avals[0]
    for other in avals[1:]:
        if other.dtype != first.dtype:
            raise Refusal("dtypes-differ", f"dtypes differ: {first} and {other}", hint="Cast one of them first.")
        if _without(other.shape, axis) != _without(first.shape, axis):
            hint = "Sizes must agree on every other axis."
            raise Refusal("shapes-differ", f"{first} and {other} cannot be joined along axis {axis}", hint=hint)
    return Concat(axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


@kernel(moves=_concatenated)
def concatenate(*xs: Shaped[Array, "..."], axis: int) -> Array:
    """The inputs one after another along `axis`."""
    return jnp.concatenate(xs, axis)


def _axis(dim: int, aval: Aval) -> int:
    rank = len(aval.shape)
    if not -rank <= dim < rank:
        raise Refusal("axis-range", f"dim {dim} is out of range for {aval}", key="dim", hint=_axes(rank))
    return dim % rank


def _axes(rank: int) -> str:
    return f"Valid are {-rank} to {rank - 1}." if rank else "A scalar has no axes. Reshape it to [1] first."


@control()
def concat(
    view: View, *, from_: Annotated[tuple[SlicedPattern, ...], Field(min_length=2)], to: Name, dim: Dim = 0
) -> Iterator[Edit]:
    """Join tensors along an axis. Each source must match exactly one tensor.

    Example: `concat: {from: [q.weight, k.weight, v.weight], to: qkv.weight, dim: 0}`
    """
    parts = [view.one(ref, "from").expr for ref in from_]
    joined = view.apply(concatenate, *parts, axis=_axis(dim, parts[0].aval))
    yield Bind(to.alias, view.literal(to, "to"), joined)


def _sliced(avals: tuple[Aval, ...], *, axis: int, start: int, stop: int) -> Moves:
    shape = avals[0].shape
    starts, stops = [0] * len(shape), list(shape)
    starts[axis], stops[axis] = start, stop
    return Slice(Index(tuple(starts), tuple(stops), (1,) * len(shape), (), shape))


@kernel(moves=_sliced)
def section(x: Shaped[Array, "..."], *, axis: int, start: int, stop: int) -> Array:
    """`start:stop` along one axis."""
    return jnp.take(x, jnp.arange(start, stop, dtype=jnp.int64), axis=axis)


@control()
def split(
    view: View,
    *,
    from_: SlicedPattern,
    to: Annotated[tuple[Name, ...], Field(min_length=2)],
    sizes: Annotated[tuple[Annotated[StrictInt, Field(gt=0)], ...], Field(min_length=2)],
    dim: Dim = 0,
) -> Iterator[Edit]:
    """Cut one tensor along an axis into new tensors of the given sizes. The source is kept.

    Example: `split: {from: qkv.weight, to: [q.weight, k.weight, v.weight], sizes: [64, 64, 64], dim: 0}`
    """
    source = view.one(from_, "from").expr
    axis = _axis(dim, source.aval)
    _matching(to, sizes, source.aval, axis)
    start = 0
    for ref, size in zip(to, sizes, strict=True):
        part = view.apply(section, source, axis=axis, start=start, stop=start + size)
        yield Bind(ref.alias, view.literal(ref, "to"), part)
        start += size


def _matching(to: tuple[Ref, ...], sizes: tuple[int, ...], aval: Aval, axis: int) -> None:
    if len(to) != len(sizes):
        raise Refusal("split-sizes", f"{len(to)} names in `to`, but {len(sizes)} sizes", key="sizes",
                      hint="Give one size for each name.")  # fmt: skip
    if sum(sizes) != aval.shape[axis]:
        found = f"the sizes add up to {sum(sizes)}, but axis {axis} of {aval} has {aval.shape[axis]}"
        hint = "The sizes must cover the whole axis; `copy` with a slice takes a part of it."
        raise Refusal("split-sizes", found, key="sizes", hint=hint)
