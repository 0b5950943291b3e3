"""Tensors that go by in blocks: what is written or summarised without ever being held whole.

A *flow* is a range of equally long tensors and what to do with each block. Flows over the same range that read the same
tensor go by together as one *stream*, so that an assert and an output read it once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.engine.blocks import cuts
from brainsurgery_jax.engine.evaluate import Evaluator
from brainsurgery_jax.engine.events import Listener, Wrote
from brainsurgery_jax.engine.folds import summarize
from brainsurgery_jax.engine.segments import Segment
from brainsurgery_jax.engine.verdicts import Verdicts
from brainsurgery_jax.graph.expr import Expr, asked_of, walk
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.base import Writer

MOST_JOINED = 16
"""Tensors that one stream reads at most, to bound what it holds."""


Lane = tuple[Writer, int]
"""A file that is written: threads that write to different ones do not wait for each other."""


class Flow(NamedTuple):
    """Elements `start:stop` of `exprs`. `take(start, blocks)` is called for each block on any thread, `done` with its
    result on the main thread, in block order. `lane` is where it writes to, if it does; `known` gives what stands for a
    result once the rest need not be looked at, else None."""

    exprs: tuple[Expr, ...]
    start: int
    stop: int
    take: Callable[[int, Sequence[Any]], Any]
    done: Callable[[Any], None]
    lane: Lane | None = None
    known: Callable[[], Any] = lambda: None


Stream = tuple[Flow, ...]


def written(segment: Segment, name: str, writer: Writer, tell: Listener) -> Flow:
    """The flow of a computed segment into its output."""

    def take(start: int, blocks: Sequence[Any]) -> int:
        data = np.asarray(blocks[0])
        writer.put(name, segment.at + start - segment.start, data)
        return data.nbytes

    def done(nbytes: int) -> None:
        tell(Wrote(name, nbytes))

    return Flow((segment.expr,), segment.start, segment.stop, take, done, (writer, writer.lane(name)))


def asked(question: Pending, verdicts: Verdicts, parts: int | None = None) -> Flow:
    """The flow of tensors into a reduction: partial results are merged in block order, so threads change no bit.
    `parts`: how many there are, if not one for each block."""
    exprs, reduction = asked_of(question), question.reduction
    size = exprs[0].aval.size
    left = len(list(cuts(0, size))) if parts is None else parts
    partial: list[Any] = []
    decisive: list[Any] = []  # set on any thread: who does not see it yet only does more than is needed

    def take(start: int, blocks: Sequence[Any]) -> Any:
        part = summarize(reduction, start, blocks)
        if reduction.decisive is not None and part == reduction.decisive:
            decisive.append(part)
        return part

    def done(part: Any) -> None:
        nonlocal left
        left -= 1
        partial[:] = [reduction.merge(partial[0], part)] if partial else [part]
        if not left:
            verdicts.answer(question, reduction.finish(partial[0]))

    return Flow(exprs, 0, size, take, done, known=lambda: decisive[0] if decisive else None)


def pass_through(stream: Stream, start: int, stop: int, evaluator: Evaluator) -> list[Any]:
    """Let one block of a stream go by: what each flow's `take` gave."""
    known = [flow.known() for flow in stream]
    if all(result is not None for result in known):
        return known
    roots = [e for flow in stream for e in flow.exprs]
    blocks = evaluator.blocks(roots, start, stop)
    return [flow.take(start, [next(blocks) for _ in flow.exprs]) for flow in stream]


def hand_over(stream: Stream, results: Sequence[Any]) -> None:
    """Give the results of a block to the flows."""
    for flow, result in zip(stream, results, strict=True):
        flow.done(result)


def joined(flows: Sequence[Flow]) -> list[Stream]:
    """Streams: flows over one range that read a tensor in common, in the order of their first flow."""
    streams: dict[int, list[Flow]] = {}
    reads: dict[int, set[Expr]] = {}
    home: dict[tuple[int, int, Expr], int] = {}
    for at, flow in enumerate(flows):
        leaves = {e for e in walk(flow.exprs) if e.kind == "leaf" and e.aval.size == flow.stop - flow.start}
        near = (home.get((flow.start, flow.stop, leaf)) for leaf in leaves)
        place = next((p for p in near if p is not None and len(reads[p] | leaves) <= MOST_JOINED), at)
        streams.setdefault(place, []).append(flow)
        reads.setdefault(place, set()).update(leaves)
        home |= {(flow.start, flow.stop, leaf): place for leaf in leaves}
    return [tuple(streams[place]) for place in sorted(streams)]
