"""What differs between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.comparison import Difference, TensorDifference
from brainsurgery_jax.comparison.side_files import shorten
from brainsurgery_jax.documents import Entry, Parts, Record, Table, Text, Value, show_only
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.numerics.figures import describe_figures
from brainsurgery_jax.numerics.rollups import (
    Grouping,
    Order,
    RollUp,
    describe_order,
    describe_rank,
    describe_roll_up,
    roll_up,
    sort_differences,
)
from brainsurgery_jax.wording import counted


class Wishes(NamedTuple):
    """What to compare, and how; and in which order to list how much of it, or what to sum it up by."""

    target: str | None = None
    eps: float = 0.0
    rtol: float = 0.0
    ignore_dtype: bool = False
    quick: bool = False
    memory: str | None = None
    effective_rank: bool = False
    order: Order = "name"
    top: int | None = None
    by: Grouping | None = None


def report_difference(found: Difference, wishes: Wishes) -> Record:
    """The tensors and leaves that differ, by how they differ, and how many there are."""
    differing = sort_differences(found.differing, wishes.order)
    avals = [one for one in differing if _unlike(one, wishes)]
    values = [one for one in differing if not _unlike(one, wishes)]
    listed = differing[: wishes.top]
    groups = () if wishes.by is None else roll_up(found.differing, wishes.by)
    leaves = ((name, f"{a or 'nothing'} -> {b or 'nothing'}") for name, (a, b) in sorted(found.leaves.items()))
    side_files = ((name, f"{shorten(a)} -> {shorten(b)}") for name, (a, b) in found.side_files.items())
    shown = _show(avals, values, groups, wishes)
    return Record((
        Entry("same", found.same),
        Entry("left", found.left),
        Entry("right", found.right),
        Entry("eps", wishes.eps),
        Entry("rtol", wishes.rtol),
        Entry("target", wishes.target),
        Entry("ignore_dtype", wishes.ignore_dtype),
        Entry("equal", found.equal),
        Entry("close", found.close),
        Entry("only_left", _sizes(found.only_left), _names(f"only in {found.left}", found.only_left)),
        Entry("only_right", _sizes(found.only_right), _names(f"only in {found.right}", found.only_right)),
        Entry("differing", {one.name: _tensor(one) for one in listed}, Parts(shown, space=1) if shown else None),
        *([Entry(f"by_{wishes.by}", list(map(_group, groups)))] if wishes.by else []),
        Entry("leaves", {name: {"left": left, "right": right} for name, (left, right) in found.leaves.items()},
              _table("other leaves of the tree", leaves)),
        Entry("side_files", {name: {"left": a, "right": b} for name, (a, b) in found.side_files.items()},
              _table("other side files", side_files)),
        Entry("notes", list(map(str, found.notes))),
        Entry("diagnostics", list(found.notes)),
        *show_only(Text(_summary(found, avals, values))),
    ), space=1)  # fmt: skip


def _show(
    avals: list[TensorDifference], values: list[TensorDifference], groups: Sequence[RollUp], wishes: Wishes
) -> tuple[Table | Text, ...]:
    """The tables of what differs: of values the first ones, or what they sum up to."""
    head = f"other values by {wishes.by}" if wishes.by else "other values"
    rows = list(map(describe_roll_up, groups)) if wishes.by else list(map(_row, values))
    if not wishes.by:
        head += describe_order(wishes.order)
    more = len(rows) - len(rows[: wishes.top])
    tables = _table("other shape or dtype", map(_row, avals)), _table(head, rows[: wishes.top])
    found = tuple(table for table in tables if table is not None)
    return (*found, Text(f"and {more:,} more, left out by `--top {wishes.top}`")) if more else found


def _group(one: RollUp) -> dict[str, Value]:
    figures = one.figures
    return {
        "key": one.key,
        "tensors": one.tensors,
        "elements": figures.size,
        "differing": figures.differing,
        "largest": figures.largest,
        "relative": figures.relative,
        "cosine": figures.cosine,
        "effective_rank": one.rank,
    }


def _names(title: str, avals: Mapping[str, Aval]) -> Table | None:
    return _table(title, ((name, str(aval)) for name, aval in avals.items()))


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> Table | None:
    """A table; None without rows."""
    return Table(title, listed) if (listed := tuple(rows)) else None


def _unlike(one: TensorDifference, wishes: Wishes) -> bool:
    """Whether shapes differ, or dtypes, where they count."""
    return one.left != one.right and not (wishes.ignore_dtype and one.left.shape == one.right.shape)


def _row(one: TensorDifference) -> tuple[str, ...]:
    kind = str(one.left) if one.left == one.right else f"{one.left} -> {one.right}"
    if one.figures is None:
        return one.name, kind
    told = one.name, kind, *describe_figures(one.figures, one.left.shape)
    return told if one.effective_rank is None else (*told, describe_rank(one.effective_rank))


def _summary(found: Difference, avals: list[TensorDifference], values: list[TensorDifference]) -> str:
    counts = [
        (found.close, "within the tolerance"),
        (len(values), "of other values"),
        (len(avals), "of another shape or dtype"),
        (len(found.only_left), "only on the left"),
        (len(found.only_right), "only on the right"),
        (len(found.leaves), "other leaves of the tree"),
    ]
    told = [f"{number:,} {what}" for number, what in counts if number]
    if found.side_files:
        told.append(f"{counted(len(found.side_files), 'difference')} in side files")
    head = "same" if found.same else "different"
    return ", ".join((f"{head}: {counted(found.equal, 'tensor')} equal", *told))


def _sizes(avals: Mapping[str, Aval]) -> dict[str, Value]:
    return {name: _size(aval) for name, aval in avals.items()}


def _size(aval: Aval) -> dict[str, Value]:
    return {"shape": list(aval.shape), "dtype": aval.dtype.name}


def _tensor(one: TensorDifference) -> dict[str, Value]:
    sides: dict[str, Value] = {"left": _size(one.left), "right": _size(one.right)}
    if (figures := one.figures) is None:
        return sides
    left, right = figures.values or (None, None)
    rank: dict[str, Value] = {} if one.effective_rank is None else {"effective_rank": one.effective_rank}
    return (
        sides
        | rank
        | {
            "elements": figures.size,
            "differing": figures.differing,
            "largest": figures.largest,
            "index": None if one.index is None else list(one.index),
            "values": None if one.index is None else [left, right],
            "relative": figures.relative,
            "cosine": figures.cosine,
            "nans": list(figures.nans),
        }
    )
