"""Bytes that computing a value takes: a block or a box with all that it is computed from, or the results of a call on
whole operands.

These are upper bounds, fitted to measurements (tests/engine/test_memory.py). A block and a box are priced by walking
through their pieces as the evaluator does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from math import prod
from typing import NamedTuple, TypeVar

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.engine.plan.blocks import cuts, pad_length
from brainsurgery_jax.engine.plan.compiling import LONGER
from brainsurgery_jax.engine.plan.pieces import Piece, is_part, needs_of, plan_pieces, reshaped_box
from brainsurgery_jax.graph.expr import Expr, asked_of, cuts_of, is_whole, operand_avals, runs_on_numpy
from brainsurgery_jax.index.boxes import Box, box_shape, flat_range
from brainsurgery_jax.index.parts import PIECE, Cuts
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.io.boxes import GROUP, elements_read

Node = TypeVar("Node")

HOLES = 6
"""One part in this many is lost to fragmentation between arrays of tens of megabytes."""

HEAP = 2 << 20
"""Bytes that are lost beside that where arrays of some megabytes are made in turn: what is freed stays with the
process, and the next array rarely fits into it."""

LATE = 8
"""Results of a compiled kernel that may exist at the same time: XLA frees them late and rarely reuses freed memory."""

COMPILED = 16 << 20
"""Bytes that a compiled kernel takes even for the shortest block."""

SCATTERED = 1
"""Times its size that a block from a compiled kernel leaves in holes while it is there: XLA allocates it on a thread of
its own, amid what it needs only on the way, and other threads do not find what is freed around it."""

FOLDS = 8
"""A fold holds this many times the bytes of its result: totals in double precision, and those of unmerged blocks."""

PACKED = 2 << 10
"""Bytes of the packing buffers of BLAS for each row of a product, and its fixed buffers."""

BLAS = 2 << 20

BOOKKEEPING = 128 << 10
"""Bytes of Python objects of a job: its closure, its entry in the queue, arrays of a few elements."""


class Cost(NamedTuple):
    """Bytes held at the worst moment, and bytes read."""

    peak: int
    reads: int


def block_cost(
    exprs: Sequence[Expr], start: int, stop: int, questions: Sequence[Pending], known: dict[Hashable, Cost]
) -> Cost:
    """The cost of streaming a range of tensors, and of answering `questions` about it: the peak of the longest block,
    and the bytes of all. `known`: costs of ranges of other tensors, which may be like these; it is added to."""
    key = None if questions else _key_of(exprs, start, stop)
    if key in known:
        return known[key]
    first, last = max(cuts(start, stop), key=lambda block: block[1] - block[0])
    _, order = plan_pieces([Piece(e, first, last) for e in exprs])
    asking = max((looking(question, last - first) for question in questions), default=0)
    reads = _bytes_read(p for p, _ in order) * (stop - start) // (last - first)
    cost = Cost(worst_moment(order, piece_bytes, _making) + asking + BOOKKEEPING, reads)
    if key is not None:
        known[key] = cost
    return cost


def _key_of(exprs: Sequence[Expr], start: int, stop: int) -> Hashable:
    """What the cost of a block depends on, if that is an elementwise call on leaves, as it is of most tensors of most
    plans; else None."""
    e = exprs[0]
    if len(exprs) > 1 or e.kernel is None or not e.kernel.elementwise or e.moves is not None:
        return None
    if not all(s.is_leaf for s in e.srcs) or len(set(e.srcs)) < len(e.srcs):
        return None
    return e.kernel, e.static, e.numbers, e.avals, operand_avals(e), start, stop


def box_cost(exprs: Sequence[Expr], box: Box, questions: Sequence[Pending] = ()) -> Cost:
    """The cost of computing a box of each tensor, of copying it into row-major order, where permuted axes are a view
    that takes no memory, and of answering `questions` about it."""
    peak = reads = 0
    for e in exprs:
        wanted = Piece(e, 0, 0, box)
        _, order = plan_pieces([wanted])
        peak += worst_moment(order, piece_bytes, _making_view)
        peak += piece_bytes(wanted)
        reads += _bytes_read(p for p, _ in order)
    elements = min(blocks.BLOCK, prod(box_shape(box)))
    return Cost(peak + max((looking(question, elements) for question in questions), default=0), reads)


def box_cost_once(exprs: Sequence[Expr], box: Box, questions: Sequence[Pending], known: dict[Hashable, Cost]) -> Cost:
    """The same, computed once for parts that are alike. `known`: see `block_cost`."""
    e, shape = exprs[0], box_shape(box)
    cuts = None if questions or len(exprs) > 1 else cuts_of(e)
    if cuts is None or not is_part(Piece(e, 0, 0, box), cuts):
        return box_cost(exprs, box, questions)
    if (e, shape) not in known:
        if (key := _key_of_part(e, cuts, shape)) is None:
            return box_cost(exprs, box)
        known[e, shape] = known[key] = known.get(key) or box_cost(exprs, box)
    return known[e, shape]


def _key_of_part(e: Expr, cuts: Cuts, shape: tuple[int, ...]) -> Hashable:
    """What the cost of a part of that shape depends on, if it is one of a call on leaves and on what every part needs
    whole; else None."""
    whole = [s for at, s in enumerate(e.srcs) if all(cut.operands[at] is None for cut in cuts)]
    if len(set(e.srcs)) < len(e.srcs) or not all(s.is_leaf for s in e.srcs if s not in whole):
        return None
    return e.kernel, e.static, e.numbers, e.avals, operand_avals(e), (*whole,), shape


def _bytes_read(pieces: Iterable[Piece]) -> int:
    """Bytes read for the leaves among some pieces, including gaps."""
    return sum(elements_of(p) * p.expr.aval.dtype.bits // 8 for p in pieces if p.expr.is_leaf)


def elements_of(piece: Piece) -> int:
    """The number of elements read for a piece of a leaf, including gaps."""
    if piece.box is None:
        return piece.stop - piece.start
    return elements_read(piece.expr.aval.shape, piece.box, item_bytes(piece.expr))


def piece_bytes(piece: Piece) -> int:
    """Bytes that a piece holds while others are computed."""
    return 0 if piece.is_view else holding_block(piece.expr, prod(piece.shape))


def _making_view(piece: Piece) -> int:
    """The same where a permutation of axes is a view and takes no memory. To reshape a view takes a copy."""
    is_view = piece.expr.moves is not None and reshaped_box(piece) is None
    return _making(piece) - (piece_bytes(piece) if is_view else 0)


def _making(piece: Piece) -> int:
    """Bytes that it takes to compute a piece, including the piece, excluding the pieces of its operands."""
    e = piece.expr
    if piece.is_view:
        return 0
    if (parted := cuts_of(e)) is not None:
        made = held = piece_bytes(piece)
        if is_part(piece, parted):
            assert e.kernel is not None and e.kernel.workspace is not None
            avals = tuple(Aval(need.shape, need.expr.aval.dtype) for need in needs_of(piece))
            made = e.kernel.workspace(avals, dict(e.static))
            if e.kernel.alike is not None:  # it may be compiled, and padded
                made = max(made, LONGER * sum(a.nbytes for a in avals))
        return held + made + (held + made) // HOLES
    gaps = e.is_leaf and piece.box is not None and flat_range(e.aval.shape, piece.box) is None
    return making_block(e, prod(piece.shape)) + (reading_gaps(e) if gaps else 0)


def worst_moment(
    order: Sequence[tuple[Node, Sequence[Node]]], nbytes: Callable[[Node], int], making: Callable[[Node], int]
) -> int:
    """The most bytes held while nodes are computed in order and dropped after their last use.

    `making` counts the node itself and its workspace, but not its operands. Nodes that no other uses stay to the end.
    """
    uses = Counter(n for _, needs in order for n in needs)
    held = worst = 0
    for node, needs in order:
        worst = max(worst, held + making(node))
        held += nbytes(node)
        for n in needs:
            uses[n] -= 1
            if not uses[n]:
                held -= nbytes(n)
    return worst


def item_bytes(e: Expr) -> int:
    """Bytes of an element; a packed one counts as a byte."""
    return max(1, e.aval.dtype.bits // 8)


def holding_block(e: Expr, elements: int) -> int:
    """Bytes that so many elements of a node hold while others are made."""
    size = elements * item_bytes(e)
    return size + (SCATTERED * size if e.kernel is not None and e.kernel.blocks else 0)


def making_block(e: Expr, elements: int) -> int:
    """Bytes that it takes to compute this many elements of a node, including the elements, excluding operands."""
    size = elements * item_bytes(e)
    if e.kernel is None or is_whole(e):
        return size
    if e.kernel.elementwise and runs_on_numpy(e):
        return size + _on_the_way(e, min(elements, PIECE))
    if e.kernel.elementwise or e.kernel.blocks:
        wide = max(4, item_bytes(e)) if e.kernel.blocks else item_bytes(e)
        length = max(elements, pad_length(elements))
        return length * (sum(map(item_bytes, e.srcs)) + LATE * wide) + holding_block(e, elements) + COMPILED
    return 3 * size  # selected, reordered, flattened


def reading_gaps(e: Expr) -> int:
    """Bytes of the gaps that are read with a part of a tensor; twice, since the next read rarely fits into the memory
    that they free."""
    return 2 * min(GROUP, e.aval.nbytes)


def _on_the_way(e: Expr, elements: int) -> int:
    """Of a piece: what its kernel says, else each operand in the dtype that is computed in, a result, and one or two
    more."""
    if e.kernel is not None and e.kernel.workspace is not None:
        pieces = tuple(Aval((elements,), s.aval.dtype) for s in e.srcs)
        return e.kernel.workspace(pieces, dict(e.static))
    float_like = all(s.aval.dtype.is_inexact for s in (e, *e.srcs))
    wide = max(4 if float_like else 8, *(item_bytes(s) for s in (e, *e.srcs)))
    return (len(e.srcs) + 3) * elements * wide


def comparing(exprs: Sequence[Expr], elements: int) -> int:
    """Bytes that a question takes for this many elements of each of its tensors: all tensors in double precision, and
    their difference."""
    wide = max(16 if e.aval.dtype.is_complex else 8 for e in exprs)
    return (len(exprs) + 1) * elements * wide


def looking(question: Pending, elements: int) -> int:
    """Bytes that a question takes for this many elements of each of its tensors."""
    passing = question.reduction.passing
    return comparing(asked_of(question), elements) if passing is None else passing * elements


def calling(e: Expr) -> int:
    """Bytes that a call on whole operands needs besides them, including results: the workspace that its kernel
    declares, or else a widened copy of each operand and the buffers of BLAS."""
    assert e.kernel is not None
    avals, static = tuple(s.aval for s in e.srcs), dict(e.static)
    results = sum(a.nbytes for a in e.avals)
    if e.kernel.workspace is not None:
        return results + e.kernel.workspace(avals, static)
    widened = sum(4 * a.size for a in avals if a.dtype.bits < 32)
    made = sum(a.size * max(4, a.dtype.bits // 8) for a in e.avals)
    rows = max((a.shape[-2] for a in e.avals if len(a.shape) > 1), default=0)
    packed = min(rows * PACKED + BLAS, sum(a.size * max(4, a.dtype.bits // 8) for a in avals))
    return results + widened + made + packed + (0 if runs_on_numpy(e) else made + COMPILED)


def on_device(e: Expr) -> int:
    """Bytes that a call on whole operands takes on an accelerator: operands and results, each also in at least float32,
    the workspace that the kernel declares, and one intermediate result of the largest size."""
    assert e.kernel is not None
    avals = tuple(s.aval for s in e.srcs)
    held = sum(a.nbytes for a in (*avals, *e.avals))
    wide = [a.size * max(4, a.dtype.bits // 8) for a in (*avals, *e.avals)]
    return held + sum(wide) + max(wide) + _workspace_on_device(e, avals)


def _workspace_on_device(e: Expr, avals: tuple[Aval, ...]) -> int:
    assert e.kernel is not None
    if e.kernel.on_device is not None:
        return e.kernel.on_device(avals, dict(e.static))
    return 0 if e.kernel.workspace is None else e.kernel.workspace(avals, dict(e.static))
