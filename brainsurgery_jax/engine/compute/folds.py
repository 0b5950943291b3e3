"""Folds: reductions of large tensors to small values, computed by streaming the operands.

One mechanism answers the questions of asserts and reports and computes the folds of the graph: a `Reduction` of blocks
whose places follow from shapes alone, merged in their order. So threads and budgets change no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import starmap
from typing import Any, Protocol, TypeVar

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.engine.compute.kernels import accept
from brainsurgery_jax.engine.plan.blocks import cuts
from brainsurgery_jax.engine.plan.schedule import question_of
from brainsurgery_jax.engine.plan.segments import blocks_to_ask, boxes_to_ask
from brainsurgery_jax.graph.expr import Expr, asked_of, passes_of
from brainsurgery_jax.index.boxes import Box, flat_range
from brainsurgery_jax.protocol import Pending, Reduction
from brainsurgery_jax.reduction import Again

Part = TypeVar("Part")
Answer = TypeVar("Answer")

INTEGER = Reduction(lambda x: int(x[0]), max, int, 0)
"""The value of an integer scalar."""


Values = Mapping[Expr, tuple[Array, ...]]
"""Results of calls that are computed already."""


class Reader(Protocol):
    """Computes boxes and flat ranges of tensors."""

    def box(self, e: Expr, box: Box) -> Array: ...

    def blocks(self, roots: Sequence[Expr], start: int, stop: int) -> Iterator[Array]: ...


def summarize(reduction: Reduction[Part, Any], start: int, blocks: Sequence[Array]) -> Part:
    """The partial result of blocks of any length that begin at element `start` of their tensors."""
    arrays = [np.asarray(block) for block in blocks]
    parts = (reduction.summarize(start + at, [x[at:end] for x in arrays]) for at, end in cuts(0, len(arrays[0])))
    return reduce(reduction.merge, parts)


def place_of(e: Expr, box: Box) -> int:
    """The number of the first element of a box without gaps; 0 if it has gaps, which placed reductions never get."""
    run = flat_range(e.aval.shape, box)
    return 0 if run is None else run[0]


def answer(question: Pending[Answer], reader: Reader) -> Answer:
    """The answer to a question, one block after the other."""
    exprs, reduction = asked_of(question), question.reduction
    if not exprs[0].aval.size:
        return reduction.empty
    if boxes := boxes_to_ask(question):
        looked_at: Iterable[tuple[int, Sequence[Array]]] = (
            (place_of(exprs[0], box), [reader.box(e, box).reshape(-1) for e in exprs]) for box in boxes
        )
    else:
        looked_at = ((start, list(reader.blocks(exprs, start, stop))) for start, stop in blocks_to_ask(question))
    # A loop variable would keep each block alive while the next one is read; `starmap` drops it first.
    return reduction.finish(reduce(reduction.merge, starmap(partial(summarize, reduction), looked_at)))


def compute_folds(calls: Sequence[Expr], ask: Callable[[Sequence[Pending]], Mapping[Pending, object]]) -> Values:
    """The values of independent folds. Each pass over the operands serves all of them."""
    passes = {call: made for call in calls if (made := passes_of(call)) is not None}
    found: dict[Expr, Any] = dict.fromkeys(passes)
    done = dict.fromkeys(passes, 0)
    while now := {e: made[done[e]](found[e]) for e, made in passes.items() if done[e] < len(made)}:
        questions = {e: question_of(e.srcs, reduction) for e, reduction in now.items()}
        answers = ask(list(questions.values()))
        for e, question in questions.items():
            answer = answers[question]
            repeated = isinstance(answer, Again)
            found[e] = answer.known if repeated else answer
            done[e] += not repeated
    return {e: (accept(e, value),) for e, value in found.items()}


def compute_fold(call: Expr, reader: Reader) -> tuple[Array, ...]:
    """The value of one fold, block by block."""
    return compute_folds([call], lambda questions: {q: answer(q, reader) for q in questions})[call]
