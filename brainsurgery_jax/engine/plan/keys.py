"""Keys of work items: short digests that are the same in every run of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from brainsurgery_jax.engine.plan.schedule import Root, Written
from brainsurgery_jax.engine.plan.work import Boxes, Copy, Fold, Put, Sink, Stream, Whole, Work


def key_of(work: Work, needs: tuple[str, ...] = ()) -> str:
    """A digest of the kind of the work, its targets, and the keys of the items that it needs."""
    digest = blake2b("".join((type(work).__name__, *needs)).encode(), digest_size=8)
    for target in _targets(work):
        digest.update(repr(target).encode())
    return digest.hexdigest()


def _targets(work: Work) -> Iterator[tuple[object, ...]]:
    match work:
        case Fold(calls):
            yield from ((number, call.kernel.name if call.kernel else "") for number, call in enumerate(calls))
        case Copy(transfers):
            yield from ((t.publication, t.name, t.at, t.run.nbytes) for t in transfers)
        case Stream(passages):
            yield from ((*_name(sink), p.start, p.stop) for p in passages for sink in p.sinks)
        case Boxes(_, portions):
            yield from ((*_name(sink), p.box) for p in portions for sink in p.sinks)
        case Whole(tasks):
            yield from (_root_name(root) for task in tasks for root in task.roots)


def _name(sink: Sink) -> tuple[object, ...]:
    return (sink.publication, sink.name, sink.shift) if isinstance(sink, Put) else (sink.number,)


def _root_name(root: Root) -> tuple[object, ...]:
    return (root.publication, root.name) if isinstance(root, Written) else (root.number,)
