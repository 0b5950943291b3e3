"""What the step `diff` asks of two tensors, and how it tells the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import Field, StrictBool, StrictInt

from brainsurgery_jax._lazy import np
from brainsurgery_jax.documents import Document, Facts
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import KeyGroup, Word
from brainsurgery_jax.numerics.compare import gap, largest, pair
from brainsurgery_jax.numerics.figures import Figures, Tolerance, describe_figures, measuring
from brainsurgery_jax.numerics.rollups import (
    Grouping,
    Order,
    describe_order,
    describe_rank,
    describe_roll_up,
    in_order,
    roll_up,
    sort_differences,
)
from brainsurgery_jax.numerics.spectrum import effective_rank, has_spectrum, measure_spectrum
from brainsurgery_jax.protocol import Known, Pending, PendingReport, Reduction, TensorExpr, View, settle
from brainsurgery_jax.reduction import join_reductions
from brainsurgery_jax.summaries import VALUES

_LARGEST = largest(gap)


@dataclass(frozen=True)
class TellingKeys(KeyGroup):
    """What is measured of tensors that differ, and how it is listed."""

    figures: Annotated[StrictBool, Field(description="measure what differs")] = True
    effective_rank: Annotated[StrictBool, Field(description="also factorize the differences of matrices")] = False
    sort: Annotated[Order, Word] = "name"
    top: Annotated[StrictInt, Field(ge=1, description="list only so many")] | None = None
    by: Annotated[Grouping, Word] | None = None

    @property
    def ranks(self) -> bool:
        """Whether differences are factorized."""
        return self.effective_rank or self.sort == "rank"

    def check(self) -> None:
        """Raises Refusal for figures that are asked for and switched off."""
        if not self.figures and (self.ranks or self.by or self.sort != "name"):
            problem = "without figures there is nothing to sort or to sum up"
            raise Refusal("diff-keys", problem, key="figures", hint="Leave out `figures: false`.")


Answer: TypeAlias = "float | tuple[float, Figures] | np.ndarray"
"""What decides about two tensors, and with `figures` how they differ; or the singular values of the difference."""


class ComparedPair(NamedTuple):
    """Two tensors of one name: what is known of them already, or the questions that are asked."""

    name: str
    shape: tuple[int, ...]
    eps: float | None
    known: str | None = None
    asked: tuple[Pending, ...] = ()


class DescribedDifference(NamedTuple):
    """A tensor that differs, in words and in figures. See `rollups.Changed`."""

    name: str
    text: str
    shape: tuple[int, ...]
    figures: Figures | None = None
    effective_rank: float | None = None


def find_difference(
    view: View, name: str, ours: TensorExpr, theirs: TensorExpr, eps: float | None, telling: TellingKeys
) -> ComparedPair:
    """What is known of two tensors, or the questions that tell."""
    verdict = pair(ours, theirs, name, eps)
    shape = ours.aval.shape
    if (known := settle(verdict, None)) is not None:
        return ComparedPair(name, shape, eps, None if known.holds else known.why)
    if not isinstance(verdict, Pending):
        return ComparedPair(name, shape, eps)
    decide = verdict.reduction if eps is None else _LARGEST
    reduction = join_reductions(decide, measuring(Tolerance(eps or 0.0))) if telling.figures else decide
    asked = [_ask(verdict.exprs, reduction)]
    if telling.ranks and has_spectrum(ours.aval, theirs.aval):
        asked.append(_ask((view.apply(measure_spectrum, theirs, ours),), VALUES))
    return ComparedPair(name, shape, eps, None, tuple(asked))


def _ask(exprs: tuple[TensorExpr, ...], reduction: Reduction) -> Pending:
    return Pending(exprs, reduction, lambda answer: Known(True))


def report_differences(
    titles: tuple[str, str],
    found: Sequence[ComparedPair],
    missing: tuple[list[str], list[str]],
    others: Sequence[str],
    telling: TellingKeys,
) -> PendingReport:
    """The report of two sets: names that only one has, what differs, other differences in words, and figures."""

    def show(answers: Sequence[Answer]) -> Document:
        told = list(_judge(found, iter(answers)))
        differing = [*(one.text for one in told), *others]
        names = (f"missing in {titles[0]}", f"missing in {titles[1]}", "differing")
        sections = tuple(zip(names, map(tuple, (*missing, differing)), strict=True))
        more = tuple(_measure(told, telling))
        none = "" if any(facts for _, facts in sections) else "no difference"
        return Facts(f"diff {titles[0]} {titles[1]}", sections + more, none)

    return PendingReport(tuple(question for one in found for question in one.asked), show)


def _judge(found: Sequence[ComparedPair], answers: Iterator[Answer]) -> Iterator[DescribedDifference]:
    """What differs of all, by the answers in the order of the questions."""
    for one in found:
        if one.known is not None:
            yield DescribedDifference(one.name, one.known, one.shape)
        if not one.asked:
            continue
        taken = [next(answers) for _ in one.asked]
        rank = next((effective_rank(values) for values in taken if isinstance(values, np.ndarray)), None)
        decided, figures = taken[0] if isinstance(taken[0], tuple) else (taken[0], None)
        if not isinstance(decided, np.ndarray) and (text := _differs(one, decided)) is not None:
            yield DescribedDifference(one.name, text, one.shape, figures, rank)


def _differs(one: ComparedPair, decided: float) -> str | None:
    """In which words two tensors differ; None if they do not."""
    if one.eps is None:
        return None if decided else f"'{one.name}' differs in value"
    return None if decided <= one.eps else f"'{one.name}' differs by {decided:.6g}, more than {one.eps:.6g}"


def _measure(told: Sequence[DescribedDifference], telling: TellingKeys) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The figures, one line a tensor or a group, under a title."""
    known = {one.name: one for one in told if one.figures is not None and one.figures.differing}
    measured = [known[name] for name in in_order(known)]
    if not measured:
        return
    if telling.by is not None:
        title, rows = f"figures by {telling.by}", [describe_roll_up(one) for one in roll_up(measured, telling.by)]
    else:
        title = f"figures{describe_order(telling.sort)}"
        rows = [(one.name, *_describe(one)) for one in sort_differences(measured, telling.sort)]
    lines = [f"{name}: {'; '.join(filter(None, words))}" for name, *words in rows]
    shown = lines[: telling.top]
    yield title, (*shown, *([f"and {len(lines) - len(shown):,} more"] if len(lines) > len(shown) else []))


def _describe(one: DescribedDifference) -> tuple[str, ...]:
    figures = () if one.figures is None else describe_figures(one.figures, one.shape)
    return *figures, describe_rank(one.effective_rank)
