"""Ops that only move elements, as index arithmetic: which part of which input makes a given part of the output.

Each `Moves` answers three questions without arrays. `aval`: the shape of the result. `runs`: which flat (row-major)
ranges of the inputs, in order, make a flat range of the output; this is what lets bytes be copied from file to file.
`parts`: which boxes of the inputs make a box of the output, for everything that is not contiguous. What else the engine
asks (`axes`, `mixes`, `place`) follows from where each axis of an input is found; a plugin's own moves say that, too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.boxes import (
    Box,
    box_shape,
    compose,
    contiguous_from,
    extent,
    flat_range,
    meet,
    strides,
    whole,
    with_span,
)
from brainsurgery_jax.index.reshaping import box_before
from brainsurgery_jax.select import Index

if TYPE_CHECKING:
    import numpy as np

LEAST_RUN = 1 << 16
"""Bytes: shorter pieces are cheaper to read as a box and index in memory than to copy one by one."""


class Run(NamedTuple):
    """The flat range `start:stop` of input number `src`."""

    src: int
    start: int
    stop: int


class Part(NamedTuple):
    """`result[at] = piece`, where piece is box `box` of input `src`, transposed or reshaped to fit, or its entries
    number `picks` along an axis."""

    src: int
    box: Box
    at: Box
    picks: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what it makes."""
        return box_shape(self.at)


Axes = tuple[int | None, ...]
"""Of each axis of an input, where it is found in the result, all of it and in order; None: nowhere."""


class Moves(Protocol):
    """Index arithmetic of one op with its parameters filled in: hashable, so that equal calls are one node.

    A subclass defines the first four methods. With `axes` the engine also knows how to stream it: the others follow.
    """

    __slots__ = ()
    flat_only: ClassVar[bool] = False
    """Whether all elements keep their row-major order, so that `parts` is never asked."""

    @abstractmethod
    def aval(self, avals: tuple[Aval, ...]) -> Aval: ...
    @abstractmethod
    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None: ...
    @abstractmethod
    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]: ...
    @abstractmethod
    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray: ...

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        """Of each input, where its axes are found: a box of the result along such an axis needs no more of the input
        than the same box of it. Not known, unless a subclass says so."""
        return tuple((None,) * len(aval.shape) for aval in avals)

    def mixes(self, avals: tuple[Aval, ...]) -> bool:
        """Whether axes are put in another order: a flat block of the result then needs a part of every row."""
        order = [at for at, n in zip(self.axes(avals)[0], avals[0].shape, strict=True) if n != 1 and at is not None]
        return order != sorted(order)

    def box_before(self, avals: tuple[Aval, ...], box: Box) -> Box | None:
        """Of moves that keep the row-major order, the box of the input that has the elements of a box of the result."""
        return None

    def place(self, avals: tuple[Aval, ...], src: int, box: Box) -> Box | None:
        """The box of the result that a box of input number `src` makes; None if it is not known to make one."""
        result, source = self.aval(avals), avals[src]
        made = list(whole(result.shape))
        for at, span, n in zip(self.axes(avals)[src], box, source.shape, strict=True):
            if at is not None:
                made[at] = span
            elif n != 1:
                return None
        return tuple(made) if result.size == source.size else None


def index_box(index: Index) -> Box:
    """The box an index selects, its dropped axes as single rows."""
    return tuple(zip(index.starts, index.stops, index.steps, strict=True))


@dataclass(frozen=True, slots=True)
class Rows:
    """A box as equally long flat ranges, in row-major order."""

    shape: tuple[int, ...]
    box: Box
    axis: int  # axes before it are walked, axes from it on are one range
    first: int
    length: int

    @property
    def count(self) -> int:
        return prod(box_shape(self.box[: self.axis]))

    def __getitem__(self, number: int) -> tuple[int, int]:
        """The flat range of row `number`."""
        start = self.first
        for span, stride in reversed(list(zip(self.box[: self.axis], strides(self.shape), strict=False))):
            number, at = divmod(number, extent(span))
            start += (span[0] + at * span[2]) * stride
        return start, start + self.length


def _rows(shape: tuple[int, ...], box: Box, itemsize: int) -> Rows | None:
    """The rows of a box; None where they are shorter than LEAST_RUN bytes (one row is never too short)."""
    if 0 in box_shape(box):
        return Rows(shape, box, 0, 0, 0)
    axis = contiguous_from(shape, box)
    inner = flat_range(shape[axis:], box[axis:])
    assert inner is not None
    rows = Rows(shape, box, axis, inner[0], inner[1] - inner[0])
    return rows if rows.count == 1 or rows.length * itemsize >= LEAST_RUN else None


def itemsize(aval: Aval) -> int:
    """Bytes of an element; a packed one counts as a byte."""
    return max(1, aval.dtype.bits // 8)


def clip(pieces: Iterator[Run], start: int, stop: int) -> list[Run]:
    """The part of consecutive pieces that lies in `start:stop` of their concatenation."""
    out, at = [], 0
    for src, a, b in pieces:
        low, high = max(start, at), min(stop, at + b - a)
        if low < high:
            out.append(Run(src, a + low - at, a + high - at))
        at += b - a
        if at >= stop:
            break
    return out


@dataclass(frozen=True, slots=True)
class Slice(Moves):
    """`x[index]`: basic indexing with positive steps."""

    index: Index

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        kept = [extent(s) for axis, s in enumerate(index_box(self.index)) if axis not in self.index.dropped]
        return Aval(tuple(kept), avals[0].dtype)

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        rows = _rows(avals[0].shape, index_box(self.index), itemsize(avals[0]))
        if rows is None or start >= stop:
            return rows and []
        first = start // rows.length
        pieces = (Run(0, *rows[k]) for k in range(first, -(-stop // rows.length)))
        return clip(pieces, start - first * rows.length, stop - first * rows.length)

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        wanted = iter(box)
        source = tuple(
            s if axis in self.index.dropped else compose(s, next(wanted))
            for axis, s in enumerate(index_box(self.index))
        )
        return [Part(0, source, whole(box_shape(box)))]

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        return piece.reshape(part.shape)

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        spans, dropped = zip(index_box(self.index), avals[0].shape, strict=True), self.index.dropped
        return (
            tuple(
                at - sum(gone < at for gone in dropped) if at not in dropped and span == (0, n, 1) else None
                for at, (span, n) in enumerate(spans)
            ),
        )


@dataclass(frozen=True, slots=True)
class Reshape(Moves):
    """The same elements in row-major order under another shape (already resolved, no -1)."""

    shape: tuple[int, ...]
    flat_only = True

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        return Aval(self.shape, avals[0].dtype)

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        return [Run(0, start, stop)]

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        raise AssertionError("a reshape is asked for flat ranges only")

    def box_before(self, avals: tuple[Aval, ...], box: Box) -> Box | None:
        return box_before(avals[0].shape, self.shape, box)

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        return piece.reshape(part.shape)

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        return (tuple(_same_axis(at, avals[0].shape, self.shape) for at in range(len(avals[0].shape))),)


@dataclass(frozen=True, slots=True)
class Permute(Moves):
    """Axis `i` of the result is axis `order[i]` of the input."""

    order: tuple[int, ...]

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        return Aval(tuple(avals[0].shape[a] for a in self.order), avals[0].dtype)

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        moved = [a for a in self.order if avals[0].shape[a] != 1]
        return [Run(0, start, stop)] if moved == sorted(moved) else None

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        source = tuple(span for _, span in sorted(zip(self.order, box, strict=True)))
        return [Part(0, source, whole(box_shape(box)))]

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        return piece.transpose(self.order)

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        return (tuple(map(self.order.index, range(len(self.order)))),)


@dataclass(frozen=True, slots=True)
class Concat(Moves):
    """Inputs one after another along an existing axis."""

    axis: int

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        shape = list(avals[0].shape)
        shape[self.axis] = sum(a.shape[self.axis] for a in avals)
        return Aval(tuple(shape), avals[0].dtype)

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        rows = [prod(a.shape[self.axis :]) for a in avals]
        outer = prod(avals[0].shape[: self.axis])
        if start >= stop or (outer > 1 and max(rows) * itemsize(avals[0]) < LEAST_RUN):
            return None if start < stop else []
        first, skipped = start // sum(rows), start // sum(rows) * sum(rows)
        pieces = (Run(s, i * n, i * n + n) for i in range(first, outer) for s, n in enumerate(rows))
        return clip(pieces, start - skipped, stop - skipped)

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        out, offset, within = [], 0, whole(box_shape(box))
        for src, aval in enumerate(avals):
            size = aval.shape[self.axis]
            if (hit := meet(box[self.axis], (offset, offset + size, 1))) is not None:
                at, inside = hit
                out.append(Part(src, with_span(box, self.axis, inside), with_span(within, self.axis, at)))
            offset += size
        return out

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        return piece.reshape(part.shape)

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        return (tuple(at if at != self.axis else None for at in range(len(avals[0].shape))),) * len(avals)

    def place(self, avals: tuple[Aval, ...], src: int, box: Box) -> Box | None:
        start, stop, step = box[self.axis]
        offset = sum(aval.shape[self.axis] for aval in avals[:src])
        return with_span(box, self.axis, (start + offset, stop + offset, step))


@dataclass(frozen=True, slots=True)
class Update(Moves):
    """`base.at[index].set(value)`: the base, with what the index selects replaced by the value."""

    index: Index

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        return avals[0]

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        base = avals[0]
        rows = _rows(base.shape, index_box(self.index), itemsize(base))
        return None if rows is None else clip(self._weave(rows, base.size), start, stop)

    def _weave(self, rows: Rows, size: int) -> Iterator[Run]:
        at = taken = 0
        for number in range(rows.count):
            a, b = rows[number]
            yield Run(0, at, a)
            yield Run(1, taken, taken + b - a)
            at, taken = b, taken + b - a
        yield Run(0, at, size)

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        hits = [meet(want, have) for want, have in zip(box, index_box(self.index), strict=True)]
        base = Part(0, box, whole(box_shape(box)))
        if any(hit is None for hit in hits):
            return [base]
        kept = [hit for axis, hit in enumerate(hits) if axis not in self.index.dropped]
        value = Part(1, tuple(h[1] for h in kept if h), tuple(h[0] for h in hits if h))
        return [value] if box_shape(value.at) == box_shape(box) else [base, value]

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        return piece.reshape(part.shape)

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        spans = list(zip(index_box(self.index), avals[0].shape, strict=True))
        kept = [at for at in range(len(spans)) if at not in self.index.dropped]
        value = tuple(at if spans[at][0] == (0, spans[at][1], 1) else None for at in kept)
        return tuple(range(len(spans))), value


@dataclass(frozen=True, slots=True)
class Broadcast(Moves):
    """The input repeated to a larger shape, by the trailing-dimension rules of numpy."""

    shape: tuple[int, ...]

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        return Aval(self.shape, avals[0].dtype)

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        return [Run(0, start, stop)] if avals[0].size == prod(self.shape) else None

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        tail = box[len(box) - len(avals[0].shape) :]
        source = tuple((0, 1, 1) if n == 1 else s for n, s in zip(avals[0].shape, tail, strict=True))
        return [Part(0, source, whole(box_shape(box)))]

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        from numpy import broadcast_to

        return broadcast_to(piece, part.shape)

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        source = avals[0].shape
        new = len(self.shape) - len(source)
        return (tuple(at + new if n == self.shape[at + new] else None for at, n in enumerate(source)),)


def _same_axis(at: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """The axis of the same size with as many elements before it."""
    same = (q for q, n in enumerate(after) if n == before[at] and prod(after[:q]) == prod(before[:at]))
    return next(same, None)


def resolve_shape(shape: Sequence[int], size: int, found: Aval) -> tuple[int, ...]:
    """`shape` with its one -1 filled in, so that it holds `size` elements."""
    known = prod(n for n in shape if n != -1)
    filled = tuple(size // known if n == -1 and known else n for n in shape)
    if prod(filled) != size:
        unfit = f"{found} has {size} elements, which do not fit the shape [{', '.join(map(str, shape))}]"
        hint = "The sizes must multiply to the number of elements; one size may be -1 and is then worked out."
        raise Refusal("reshape-size", unfit, key="shape", hint=hint)
    return filled
