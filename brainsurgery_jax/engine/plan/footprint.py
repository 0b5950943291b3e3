"""Bytes that computing one value takes: a block of a stream, or the results of a call on whole operands.

These are upper bounds, fitted to measurements (tests/engine/test_memory.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.plan.blocks import PIECE, padded_length
from brainsurgery_jax.graph.expr import Expr, asked_of, is_whole, runs_on_numpy
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.io.boxes import GROUP

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
        length = max(elements, padded_length(elements))
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


def on_device(e: Expr, backend: str) -> int:
    """Bytes that a call on whole operands takes on an accelerator: operands and results, each also in at least float32,
    the workspace that the kernel declares, and one intermediate result of the largest size."""
    assert e.kernel is not None
    avals = tuple(s.aval for s in e.srcs)
    held = sum(a.nbytes for a in (*avals, *e.avals))
    wide = [a.size * max(4, a.dtype.bits // 8) for a in (*avals, *e.avals)]
    return held + sum(wide) + max(wide) + _workspace_on_device(e, avals, backend)


def _workspace_on_device(e: Expr, avals: tuple[Aval, ...], backend: str) -> int:
    assert e.kernel is not None
    if e.kernel.on_device is not None:
        return e.kernel.on_device(avals, dict(e.static), backend)
    return 0 if e.kernel.workspace is None else e.kernel.workspace(avals, dict(e.static))
