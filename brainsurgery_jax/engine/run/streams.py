"""Partial results of questions, merged while their tensors are streamed."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.engine.compute.folds import summarize
from brainsurgery_jax.engine.plan.work import Ask


class Tally:
    """The partial results of a question, merged in the order of the work, so that threads change no bit."""

    def __init__(self, ask: Ask):
        self._reduction, self._left = ask.question.reduction, ask.parts
        self._merged: list[object] = []
        self._decisive: list[object] = []  # set on any thread: who does not see it yet only does more than is needed

    @property
    def known(self) -> object:
        """The partial result that decides the question, so that no more blocks need to be read; else None."""
        return self._decisive[0] if self._decisive else None

    def look(self, start: int, blocks: Sequence[Array]) -> object:
        """The partial result of a block of each tensor, from element `start` on. Called on any thread."""
        part = summarize(self._reduction, start, blocks)
        if self._reduction.decisive is not None and part == self._reduction.decisive:
            self._decisive.append(part)
        return part

    def add(self, part: object) -> bool:
        """Merge a partial result; return whether it was the last. Called on the main thread, in order of the work."""
        self._merged[:] = [self._reduction.merge(self._merged[0], part)] if self._merged else [part]
        self._left -= 1
        return not self._left

    def answer(self) -> object:
        """The answer, once all partial results have been merged; they are not kept beside it."""
        return self._reduction.finish(self._merged.pop())
