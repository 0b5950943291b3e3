"""Evaluation of expressions by pieces: each piece of a result is computed from the pieces of operands that it needs.

Pieces are planned (`pieces.py`) and computed without recursion, each at most once per tile. A call that cannot be cut
(a contraction, a factorization) is computed whole; its result is kept in `wholes` until the schedule releases it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.engine.compute.devices import NONE, Accelerators
from brainsurgery_jax.engine.compute.folds import Values, compute_fold
from brainsurgery_jax.engine.compute.kernels import (
    call_block,
    call_elementwise,
    call_in_pieces,
    call_ordinary,
    may_compile,
)
from brainsurgery_jax.engine.compute.ladder import Taken, results_of
from brainsurgery_jax.engine.compute.operands import ArrayReader, Operand, key_of_box
from brainsurgery_jax.engine.compute.order import in_order
from brainsurgery_jax.engine.compute.placement import call_part, call_placed
from brainsurgery_jax.engine.compute.reading import LateLeaf, read_late
from brainsurgery_jax.engine.events import Factorized, Noted
from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.engine.plan.blocks import cuts, pad_length
from brainsurgery_jax.engine.plan.compiling import Lengths, length_for
from brainsurgery_jax.engine.plan.pieces import ElementRange, Piece, is_part, plan_pieces, range_of
from brainsurgery_jax.engine.plan.schedule import Root, Task
from brainsurgery_jax.engine.plan.segments import has_parts, tiles
from brainsurgery_jax.graph.expr import Expr, cuts_of, is_fold, is_whole, runs_on_numpy, walk
from brainsurgery_jax.index.boxes import Box, box_shape, strides
from brainsurgery_jax.index.parts import parts_around
from brainsurgery_jax.store.io.arrays import ALIGNMENT, numpy_dtype
from brainsurgery_jax.store.io.recycling import Recycler, Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

Arrays = Mapping[Expr, Array]
"""Arrays by the nodes of which they are the values."""


class Meeting(Protocol):
    """Several processes that compute some calls together."""

    @property
    def calls(self) -> Collection[Expr]:
        """The calls."""
        ...

    def compute(self, call: Expr, operands: Sequence[Operand]) -> Taken:
        """Run a call together with the others; the results are on the host. Called by all in the same order."""
        ...


class Evaluator:
    """Computes pieces. `given`: arrays for leaves that are not in a store. `own`: accelerators. `known`: results
    that are already computed. `lengths`: those of parts that are compiled although numpy could compute them. `meeting`:
    what computes calls together with other processes. `scratch`: memory for operands, which outlives the evaluator."""

    def __init__(
        self,
        given: Mapping[Expr, Array] | None = None,
        own: Accelerators = NONE,
        known: Values | None = None,
        lengths: Lengths | None = None,
        meeting: Meeting | None = None,
        scratch: Scratch | None = None,
    ):
        self.given, self.own, self.lengths, self.meeting = given or {}, own, lengths or {}, meeting
        self.wholes: dict[Expr, tuple[Array, ...]] = dict(known or {})
        self.told: list[Factorized | Noted] = []
        self._near: dict[Expr, tuple[ElementRange, np.ndarray]] = {}
        self._recycler, self._scratch = Recycler(), scratch or Scratch()

    def hold(self, leaf: Expr, span: ElementRange) -> None:
        """Read a part of a leaf and keep it: pieces that lie in it are taken from it."""
        self._near[leaf] = span, leaf.source.read_range(leaf.name, *span)

    def pieces(self, wanted: Sequence[Piece]) -> Iterator[Array]:
        """Pieces in turn, boxes in row-major order. What they share is computed once."""
        values: dict[Piece, Array | LateLeaf] = {}
        uses, order = plan_pieces(wanted)
        unread = read_late(uses, order)
        made = iter(order)
        for root in wanted:
            while root not in values:
                piece, needs = next(made)
                late = unread.get(piece) if piece.expr not in self._near else None
                values[piece] = self._make(piece, [values[n] for n in needs]) if late is None else late
                for n in needs:
                    _release(n, uses, values)
            found = values[root]
            _release(root, uses, values)
            assert not isinstance(found, LateLeaf), "only calls on slices are given what is not read yet"
            if root.box is not None:
                found = in_order(np.asarray(found).reshape(root.shape))
            yield found

    def blocks(self, roots: Sequence[Expr], start: int, stop: int) -> Iterator[Array]:
        """Elements `start:stop` of each root, flat, in turn; at most one block."""
        return self.pieces([Piece(e, start, stop) for e in roots])

    def box(self, e: Expr, box: Box) -> np.ndarray:
        """A box of `e`, in row-major order."""
        return np.asarray(next(self.pieces([Piece(e, 0, 0, box)])))

    def whole(self, e: Expr) -> Array:
        """All of a tensor, assembled from its tiles."""
        if e.is_leaf:
            return e.source.read(e.name)
        if (held := self._find_held(e)) is not None:
            return held
        assert e.aval.dtype.numpy is not None
        if has_parts(e):
            parted = np.empty(e.aval.shape, numpy_dtype(e.aval.dtype))
            for box in tiles(e):
                parted[key_of_box(box)] = self.box(e, box)
            return parted
        out = np.empty(e.aval.size, numpy_dtype(e.aval.dtype))
        for start, stop in cuts(0, e.aval.size):
            out[start:stop] = next(self.blocks([e], start, stop))
        return out.reshape(e.aval.shape)

    def serve(self, task: Task) -> Iterator[Root]:
        """The roots of a task in turn, each once the whole results that it needs are computed. Results are released
        after their last use."""
        for root, compute, release in zip(task.roots, task.compute, task.release, strict=True):
            for call in compute:
                if call not in self.wholes:
                    self.compute(call)
            yield root
            for call in release:
                del self.wholes[call]

    def compute(self, call: Expr) -> None:
        """Run a call that cannot be cut, or a fold, and keep its results in `wholes`."""
        if is_fold(call):
            self.wholes[call] = compute_fold(call, self)
            return
        begun = perf_counter()
        if self.meeting is not None and call in self.meeting.calls:
            taken = self.meeting.compute(call, [Operand(s, self) for s in call.srcs])
            self.keep(call, taken, perf_counter() - begun)
            return
        with nullcontext() if self.own.devices else self._recycler.serve(_sizes_read(call)):
            taken = call_placed(call, self.operands(call), self.own, self.told.append)
        self.keep(call, taken, perf_counter() - begun)

    def operands(self, call: Expr) -> list[Operand]:
        """Readers of the operands of a call that cannot be cut. Operands that need a device themselves are computed
        now, before the call reserves one."""
        readers = {s: ArrayReader(self.whole(s)) if self.own.devices and has_parts(s) else self for s in set(call.srcs)}
        return [Operand(s, readers[s]) for s in call.srcs]

    def keep(self, call: Expr, taken: Taken, seconds: float) -> None:
        """Keep the results of a call that cannot be cut."""
        rung, outcome = taken
        self.wholes[call] = results_of(outcome)
        if rung.name:
            names = tuple(e.name for e in walk([call]) if e.is_leaf)
            self.told.append(Factorized(names, call.srcs[0].aval.shape, rung.name, outcome.facts, seconds))

    def _find_held(self, e: Expr) -> Array | None:
        """The array of a node that is held whole, or None."""
        if e.is_pick:
            return self.wholes[e.srcs[0]][e.index]
        if is_whole(e):
            return self.wholes[e][0]
        if e.is_given:
            return self.given[e]
        return e.value if e.is_const else None

    def _make(self, piece: Piece, operands: Sequence[Array | LateLeaf]) -> Array:
        e = piece.expr
        if e.is_leaf:
            if e in self._near and self._near[e][0].holds(piece):
                return _take_from(piece, *self._near[e])
            if piece.box is None:
                return e.source.read_range(e.name, piece.start, piece.stop)
            return e.source.read(e.name, piece.box)
        if (held := self._find_held(e)) is not None:
            array = np.asarray(held)
            return array.reshape(-1)[piece.start : piece.stop] if piece.box is None else array[key_of_box(piece.box)]
        assert e.kernel is not None
        if e.kernel.elementwise:
            made = call_in_pieces(e, operands) if runs_on_numpy(e) else _in_blocks(e, operands)
            return made if piece.box is None else np.asarray(made).reshape(piece.shape)
        if e.kernel.blocks and piece.box is None:
            return _blocks(e, piece.start, piece.stop)
        if (cuts := cuts_of(e)) is not None and is_part(piece, cuts):
            return self._call_part(e, operands, piece.shape)
        return _assemble(piece, [np.asarray(x) for x in operands])

    def _call_part(self, e: Expr, operands: Sequence[Array | LateLeaf], shape: tuple[int, ...]) -> np.ndarray:
        """Compute a part of the result of a call from parts of its operands, in pieces if the kernel takes any."""
        assert e.kernel is not None
        if e.kernel.needs_whole is None or not runs_on_numpy(e):
            return call_part(e, [np.asarray(x) for x in operands])
        count = len(operands) - e.kernel.needs_whole(tuple(s.aval for s in e.srcs), dict(e.static))
        parts, whole = operands[:count], [np.asarray(x) for x in operands[count:]]
        if (length := length_for(e, prod(shape), self.lengths)) is not None:
            with self._scratch.serve(x.nbytes + ALIGNMENT for x in parts if isinstance(x, LateLeaf)):
                parts = flat = [x[:] if isinstance(x, LateLeaf) else np.asarray(x).reshape(-1) for x in parts]
            if may_compile() and (made := call_ordinary(e, flat, whole, length)) is not None:
                return made.reshape(shape)
        return call_in_pieces(e, parts, whole).reshape(shape)


def _sizes_read(call: Expr) -> list[int]:
    """Bytes of memory for each operand of a call that is read whole."""
    return [s.aval.nbytes + ALIGNMENT for s in set(call.srcs) if s.is_leaf]


def _take_from(piece: Piece, span: ElementRange, flat: np.ndarray) -> np.ndarray:
    """Cut a piece out of the elements of a span that contains it."""
    first, last = range_of(piece)
    part = flat[first - span.start : last - span.start]
    return part if piece.box is None else _pick_box(piece.expr.aval.shape, piece.box, part)


def _in_blocks(e: Expr, operands: Sequence[Array | LateLeaf]) -> Array:
    """Run a compiled elementwise kernel, block by block: a box can span far more elements than it contains."""
    flat = [np.asarray(x).reshape(-1) for x in operands]
    n = flat[0].size
    if n <= blocks.BLOCK:
        return call_elementwise(e, flat)
    return np.concatenate([np.asarray(call_elementwise(e, [x[at:end] for x in flat])) for at, end in cuts(0, n)])


def _blocks(e: Expr, start: int, stop: int) -> np.ndarray:
    size = pad_length(e.aval.size)
    parts = []
    for number in range(start // size, -(-stop // size)):
        base = number * size
        parts.append(np.asarray(call_block(e, number))[max(0, start - base) : stop - base])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _release(piece: Piece, uses: dict[Piece, int], values: dict[Piece, Array | LateLeaf]) -> None:
    uses[piece] -= 1
    if not uses[piece]:
        del values[piece]


def _assemble(piece: Piece, operands: Sequence[np.ndarray]) -> np.ndarray:
    """Assemble a piece of a structural op from the pieces of its operands."""
    e = piece.expr
    if piece.box is None:
        flat = [in_order(x).reshape(-1) for x in operands]
        return flat[0] if len(flat) == 1 else np.concatenate(flat) if flat else np.empty(0, numpy_dtype(e.aval.dtype))
    if (cuts := cuts_of(e)) is not None:
        return _join_parts(piece, parts_around(e.aval.shape, cuts, piece.box), operands)
    if e.moves is None or e.moves.flat_only:
        return _pick_box(e.aval.shape, piece.box, operands[0])
    parts = e.moves.parts(tuple(s.aval for s in e.srcs), piece.box)
    if len(parts) == 1 and parts[0].shape == piece.shape:
        return e.moves.arrange(operands[0], parts[0])
    out = np.empty(piece.shape, operands[0].dtype)
    for part, x in zip(parts, operands, strict=True):
        out[key_of_box(part.at)] = e.moves.arrange(x, part)
    return out


def _join_parts(piece: Piece, boxes: Sequence[Box], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Assemble a box from the parts that it overlaps, which have no gaps."""
    assert piece.box is not None
    out = np.empty(piece.shape, parts[0].dtype)
    for box, part in zip(boxes, parts, strict=True):
        at, of = [], []
        for (start, stop, step), (low, high, _) in zip(piece.box, box, strict=True):
            first = max(0, -(-(low - start) // step))
            last = max(first, min(len(range(start, stop, step)), -(-(high - start) // step)))
            at.append(slice(first, last))
            of.append(slice(start + first * step - low, start + last * step - low, step))
        out[tuple(at)] = part[tuple(of)]
    return out


def _pick_box(shape: Sequence[int], box: Box, flat: np.ndarray) -> np.ndarray:
    """Select the elements of `box` from the flat range that it spans."""
    if flat.size == prod(box_shape(box)):
        return flat.reshape(box_shape(box))
    steps = [s[2] * st * flat.itemsize for s, st in zip(box, strides(shape), strict=True)]
    known = flat.view(np.uint8) if flat.itemsize == 1 else flat  # numpy has no name for every dtype of one byte
    return np.lib.stride_tricks.as_strided(known, box_shape(box), steps, writeable=False).copy().view(flat.dtype)
