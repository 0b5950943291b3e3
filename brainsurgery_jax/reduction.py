"""One pass over tensors, block by block: what asserts, reports and the small values of kernels have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from brainsurgery_jax._lazy import Array, np

Part = TypeVar("Part")
Answer = TypeVar("Answer")


class Reduction(NamedTuple, Generic[Part, Answer]):
    """A one-pass summary of one or several equally shaped tensors, by blocks in row-major order.

    `block` maps the blocks (1-D numpy arrays) to a partial result, `merge` joins two neighbours, `finish` gives the
    answer; `empty` is the answer for tensors without elements. A partial result equal to `decisive` settles the answer
    whatever the other blocks hold: they need not be read. `traced` serves `apply` under `jax.jit`, where no answer
    can be looked at: it maps whole arrays to the verdict itself, a boolean scalar. Without it an assert can only be
    skipped there. `unordered`: `block` and `merge` give the same for elements in any order, if all tensors have it.
    `placed`: `block` gets the place of its first element before the blocks: `block(start, *blocks)`. `passing`: the
    bytes that `block` takes for each element; None: all in double precision, and their difference. `sampled`: the
    answer is an estimate that another pass starts from, for which some of the blocks of a long tensor are enough.
    """

    block: Callable[..., Part]
    merge: Callable[[Part, Part], Part]
    finish: Callable[[Part], Answer]
    empty: Answer
    traced: Callable[..., Array] | None = None
    unordered: bool = False
    decisive: Part | None = None
    placed: bool = False
    passing: int | None = None
    sampled: bool = False

    def summarize(self, start: int, blocks: Sequence[np.ndarray]) -> Part:
        """The partial result of blocks, the first elements of which are number `start` of their tensors."""
        return self.block(start, *blocks) if self.placed else self.block(*blocks)


class Again(NamedTuple):
    """The answer of a pass that is to be repeated, with what it starts from then."""

    known: object


def join_reductions(a: Reduction, b: Reduction) -> Reduction:
    """Two reductions of the same tensors in one pass; the answer is the pair of theirs. Neither is placed."""
    assert not (a.placed or b.placed)
    return Reduction(lambda *xs: (a.block(*xs), b.block(*xs)),
                     lambda p, q: (a.merge(p[0], q[0]), b.merge(p[1], q[1])),
                     lambda part: (a.finish(part[0]), b.finish(part[1])), (a.empty, b.empty))  # fmt: skip
