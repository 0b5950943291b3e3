"""Ops that only move elements: they compute nothing, and contiguous runs are copied as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict, overload

from pydantic import Field, StrictInt

from brainsurgery_jax._lazy import Array, Shaped, jax, jnp
from brainsurgery_jax.dtypes import Aval, DType, common_dtype, common_dtype_hint
from brainsurgery_jax.errors import Refusal, is_converting, worded
from brainsurgery_jax.index.moves import Concat, Moves, Permute, Reshape, Slice, Update, resolve_shape
from brainsurgery_jax.index.take import Take
from brainsurgery_jax.keys import Word
from brainsurgery_jax.op import Avals, Form, Real, build, kernel, op
from brainsurgery_jax.ops._constants import broadcast, constant
from brainsurgery_jax.protocol import TensorExpr, View
from brainsurgery_jax.select import Index

Dim = Annotated[StrictInt, Field(description="axis; negative counts from the end")]
Axes = Annotated[tuple[StrictInt, ...], Field(min_length=2, max_length=2, description="the two axes to swap")]
_FROM = frozenset({"from"})

MOST_COPIES = 1 << 40
"""No tensor has longer axes."""


@op(
    Form("copy", ("from",), ("to",), "new", slices=_FROM, spread="over"),
    moves=lambda avals, params: Reshape(avals[0].shape),
    noop=lambda avals, params: True,
)
def copy(x: Shaped[Array, "..."]) -> Array:
    """Copy tensors to new names.

    With `over` each match is copied several times, to names that differ in a number or text, `${i}` in the example.
    Example: `copy: {from: 'h\\.0\\.(.*)', to: 'h_new.\\1'}`
    Example: `copy: {from: 'h\\.0\\.(.*)', to: 'h.${i}.\\1', over: {i: ['1:12']}}`
    """
    return x


class ReshapeParams(TypedDict):
    """The new sizes."""

    shape: tuple[int, ...]


def _reshape(avals: Avals, params: ReshapeParams) -> Reshape:
    shape = params["shape"]
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise Refusal("reshape-shape", f"expected positive sizes and at most one -1, got {list(shape)}", key="shape",
                      hint="Leave at most one size open: `shape: [12, 64, -1]`.")  # fmt: skip
    return Reshape(resolve_shape(shape, avals[0].size, avals[0]))


@op(
    Form("reshape", ("from",), ("to",), "new", slices=_FROM),
    Form("reshape_", ("target",), ("target",), "rebind"),
    moves=_reshape,
    noop=lambda avals, params: avals[0].shape == tuple(params["shape"]),
)
def reshape(x: Shaped[Array, "..."], *, shape: Annotated[tuple[StrictInt, ...], Field(min_length=1)]) -> Array:
    """Read the elements in row-major order under another shape; one size may be -1.

    Example: `reshape: {from: w, to: w_heads, shape: [12, 64, -1]}`
    Example: `reshape_: {target: '.*bias', shape: [1, -1]}`
    """
    return jnp.reshape(x, shape)


@kernel(
    moves=lambda avals, params: Reshape(params["shape"]),
    noop=lambda avals, params: avals[0].shape == params["shape"],
)
def with_shape(x: Shaped[Array, "..."], *, shape: tuple[int, ...]) -> Array:
    """The elements in another shape, which is known to fit, even if it is empty."""
    return jnp.reshape(x, shape)


class PermuteParams(TypedDict):
    """The axes in their new order."""

    order: tuple[int, ...]


def _permute(avals: Avals, params: PermuteParams) -> Permute:
    order = params["order"]
    if sorted(order) != list(range(len(avals[0].shape))):
        axes = ", ".join(map(str, range(len(avals[0].shape))))
        found = f"order {list(order)} is not a permutation of the axes [{axes}] of {avals[0]}"
        hint = "Name each axis once, counted from 0: axis `i` of the result is axis `order[i]` of the source."
        raise Refusal("permute-order", found, key="order", hint=hint)
    return Permute(tuple(order))


@op(
    Form("permute", ("from",), ("to",), "new", slices=_FROM),
    Form("permute_", ("target",), ("target",), "rebind"),
    moves=_permute,
    noop=lambda avals, params: params["order"] == tuple(range(len(avals[0].shape))),
)
def permute(x: Shaped[Array, "..."], *, order: Annotated[tuple[StrictInt, ...], Field(min_length=1)]) -> Array:
    """Reorder axes: axis `i` of the result is axis `order[i]` of the source.

    Example: `permute: {from: w, to: w_t, order: [1, 0]}`
    Example: `permute_: {target: '.*\\.conv\\.w', order: [2, 1, 0]}`
    """
    return jnp.transpose(x, order)


class TransposeParams(TypedDict):
    """The axes to swap."""

    axes: tuple[int, ...]


def _transpose(avals: Avals, params: TransposeParams) -> Permute:
    axes = params["axes"]
    rank = len(avals[0].shape)
    if rank < 2:
        hint = "Narrow the pattern, or reshape it to two axes first."
        raise Refusal("axis-range", f"{avals[0]} has no two axes to swap", key="axes", hint=hint)
    a, b = (axis_of(axis, avals[0], key="axes") for axis in axes)
    if a == b:
        raise Refusal("axis-range", f"axes {list(axes)} of {avals[0]} are the same one", key="axes",
                      hint="Name two different ones.")  # fmt: skip
    order = list(range(rank))
    order[a], order[b] = b, a
    return Permute(tuple(order))


@op(
    Form("transpose", ("from",), ("to",), "new", slices=_FROM),
    Form("transpose_", ("target",), ("target",), "rebind"),
    moves=_transpose,
)
def transpose(x: Shaped[Array, "..."], *, axes: Axes = (-2, -1)) -> Array:
    """Swap two axes, by default the last two; negative axes count from the end.

    Example: `transpose: {from: '(.*)\\.kernel', to: '\\1.weight'}`
    Example: `transpose_: {target: '.*\\.kernel', axes: [0, 1]}`
    """
    return jnp.swapaxes(x, *axes)


class JoinParams(TypedDict):
    """The axis along which tensors are joined."""

    axis: int


def _concatenate(avals: Avals, params: JoinParams) -> Concat:
    axis = params["axis"]
    first = avals[0]
    for other in avals[1:]:
        if other.dtype != first.dtype:
            raise Refusal(
                "dtypes-differ", f"dtypes differ: {first} and {other}", hint=_dtype_hint(first.dtype, other.dtype)
            )
        assert _without(other.shape, axis) == _without(first.shape, axis), (first, other, axis)
    return Concat(axis)


def _dtype_hint(a: DType, b: DType) -> str:
    """What to do about tensors of two dtypes: a step, or the option of a conversion, whose steps nobody can change."""
    if not is_converting() or (fitting := common_dtype(a, b)) is None:
        return common_dtype_hint(a, b)
    option = worded(shell=f"`--dtype {fitting}`", python=f"`dtype='{fitting}'`")
    return f"Nothing is promoted. Cast all weights to one dtype: {option}."


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


@kernel(moves=_concatenate)
def concatenate(*xs: Shaped[Array, "..."], axis: int) -> Array:
    """The inputs one after another along `axis`."""
    return jnp.concatenate(xs, axis)


def axis_of(dim: int, aval: Aval, key: str = "dim") -> int:
    """The axis that a plan names, counted from 0."""
    rank = len(aval.shape)
    if not -rank <= dim < rank:
        raise Refusal("axis-range", f"{key.rstrip('s')} {dim} is out of range for {aval}", key=key, hint=_axes(rank))
    return dim % rank


def _axes(rank: int) -> str:
    return f"Valid are {-rank} to {rank - 1}." if rank else "A scalar has no axes. Reshape it to [1] first."


class SectionParams(TypedDict):
    """A range of an axis."""

    axis: int
    start: int
    stop: int


def _slice(avals: Avals, params: SectionParams) -> Moves:
    axis = params["axis"]
    shape = avals[0].shape
    starts, stops = [0] * len(shape), list(shape)
    starts[axis], stops[axis] = params["start"], params["stop"]
    return Slice(Index(tuple(starts), tuple(stops), (1,) * len(shape), (), shape))


@kernel(moves=_slice)
def section(x: Shaped[Array, "..."], *, axis: int, start: int, stop: int) -> Array:
    """`start:stop` along one axis."""
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


class TakeParams(TypedDict):
    """The entries of an axis."""

    indices: tuple[int, ...]
    dim: int


def _take(avals: Avals, params: TakeParams) -> Take:
    indices = params["indices"]
    axis = axis_of(params["dim"], avals[0])
    size = avals[0].shape[axis]
    for index in indices:
        if not -size <= index < size:
            hint = f"Valid are {-size} to {size - 1}." if size else "That axis is empty: no index is valid."
            found = f"index {index} is out of range for axis {axis} of {avals[0]}"
            raise Refusal("index-range", found, key="indices", hint=hint)
    return Take(axis, tuple(index % size for index in indices))


@op(
    Form("take", ("from",), ("to",), "new", slices=_FROM),
    Form("take_", ("target",), ("target",), "rebind"),
    moves=_take,
)
def take(
    x: Shaped[Array, "..."], *, indices: Annotated[tuple[StrictInt, ...], Field(min_length=1)], dim: Dim = 0
) -> Array:
    """Take entries along an axis by their numbers, in the order given.

    Numbers may repeat; negative ones count from the end.
    Example: `take: {from: wte.weight, to: small.weight, indices: [0, 1, 2, -1]}`
    Example: `take_: {target: '.*\\.router\\.weight', indices: [3, 0], dim: 0}`
    """
    entries = jnp.asarray(indices, jnp.int64) % x.shape[dim]
    return jnp.take(x, entries, axis=dim)


@dataclass(frozen=True, slots=True)
class Copies(Sequence[int]):
    """The entries of an axis with repetition, as a sequence that is never materialised."""

    size: int
    times: int
    mode: str

    def __len__(self) -> int:
        return self.size * self.times

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[int, ...]: ...
    def __getitem__(self, at: int | slice) -> int | tuple[int, ...]:
        if isinstance(at, slice):
            return tuple(map(self._entry, range(len(self))[at]))
        return self._entry(range(len(self))[at])

    def _entry(self, number: int) -> int:
        return number % self.size if self.mode == "tile" else number // self.times


class RepeatParams(TypedDict):
    """How often entries of an axis are repeated, and in which order."""

    times: int
    mode: str
    dim: int


def _repeat(avals: Avals, params: RepeatParams) -> Take:
    times = params["times"]
    axis = axis_of(params["dim"], avals[0])
    size = avals[0].shape[axis]
    if size * times > MOST_COPIES:
        found = f"{times:,} times the {size:,} entries of axis {axis} of {avals[0]} are too many"
        raise Refusal("tensor-too-large", found, key="times", hint="Lower `times`.")
    return Take(axis, Copies(size, times, params["mode"]))


@op(
    Form("repeat", ("from",), ("to",), "new", slices=_FROM),
    Form("repeat_", ("target",), ("target",), "rebind"),
    moves=_repeat,
)
def repeat(
    x: Shaped[Array, "..."],
    *,
    times: Annotated[StrictInt, Field(gt=0, description="copies")],
    mode: Annotated[Literal["each", "tile"], Word],
    dim: Dim = 0,
) -> Array:
    """Repeat along an axis: `mode: each` repeats every entry (a, a, b, b), `mode: tile` the whole (a, b, a, b).

    Example: `repeat: {from: kv_heads, to: heads, times: 4, mode: each, dim: 0}`
    Example: `repeat_: {target: '.*\\.bias', times: 2, mode: tile}`
    """
    if mode == "each":
        return jnp.repeat(x, times, axis=dim)
    return jnp.concatenate([x] * times, axis=dim)


Amount = Annotated[StrictInt, Field(ge=0)]
Widths = Annotated[
    tuple[Amount | tuple[Amount, Amount], ...],
    Field(min_length=1, description="entries added to each axis: `n` at its end, or `[before, after]`"),
]
PaddedShape = Annotated[
    tuple[Annotated[StrictInt, Field(ge=-1)], ...], Field(min_length=1, description="new sizes; -1 keeps one")
]


@kernel(moves=lambda avals, params: Update(params["index"]))
def place(base: Shaped[jax.Array, "..."], x: Shaped[Array, "..."], *, index: Index) -> Array:
    """`base` with `x` at `index`."""
    return base.at[index.key].set(x)


def _margins(
    aval: Aval, width: Sequence[int | tuple[int, int]] | None, shape: Sequence[int] | None
) -> list[tuple[int, int]]:
    """The padding before and after each axis."""
    if width is not None and shape is None:
        _one_each("width", width, aval)
        return [(0, w) if isinstance(w, int) else w for w in width]
    if shape is not None and width is None:
        _one_each("shape", shape, aval)
        wanted = [n if m == -1 else m for n, m in zip(aval.shape, shape, strict=True)]
        if any(m < n for n, m in zip(aval.shape, wanted, strict=True)):
            hint = "Padding only adds; a slice (`copy` with `::[:n]`) takes away."
            raise Refusal("pad-shape", f"{aval} cannot be padded to the smaller shape {wanted}", key="shape", hint=hint)
        return [(0, m - n) for n, m in zip(aval.shape, wanted, strict=True)]
    hint = "`width: [[0, 47], 0]` says what is added, `shape: [50304, -1]` what comes out."
    raise Refusal("pad-keys", "give either `width` or `shape`", key="width", hint=hint)


def _one_each(key: str, given: Sequence[object], aval: Aval) -> None:
    if len(given) != len(aval.shape):
        hint = "Give one for each axis; 0 in `width`, and -1 in `shape`, leaves one as it is."
        found = f"`{key}` is for {len(given)} axes, but {aval} has {len(aval.shape)}"
        raise Refusal("pad-axes", found, key=key, hint=hint)


def _pad(view: View, x: TensorExpr, margins: Sequence[tuple[int, int]], value: float) -> TensorExpr:
    if not any(map(any, margins)):
        return x
    shape = tuple(a + n + b for (a, b), n in zip(margins, x.aval.shape, strict=True))
    starts, stops = zip(*((a, a + n) for (a, _), n in zip(margins, x.aval.shape, strict=True)), strict=True)
    base = view.apply(broadcast, view.constant(constant(value, x.aval.dtype, "value"), x.aval.dtype), shape=shape)
    return view.apply(place, base, x, index=Index(starts, stops, (1,) * len(shape), (), shape))


@build(
    Form("pad", ("from",), ("to",), "new", slices=_FROM),
    Form("pad_", ("target",), ("target",), "rebind"),
)
def pad(
    view: View,
    name: str,
    x: TensorExpr,
    *,
    width: Widths | None = None,
    shape: PaddedShape | None = None,
    value: Real = 0.0,
) -> TensorExpr:
    """Pad tensors: `width` is the padding of each axis, or `shape` the resulting shape (padded at the end).

    Example: `pad: {from: wte.weight, to: padded.weight, shape: [50304, -1]}`
    Example: `pad_: {target: wte.weight, width: [[0, 47], 0], value: 0}`
    """
    return _pad(view, x, _margins(x.aval, width, shape), value)
